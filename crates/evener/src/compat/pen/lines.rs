//! Lines of a file or a pipe, with a bound on their length in memory.

use std::io::{self, BufRead};

/// Result of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineRead {
    /// A line with its newline, which may be missing from the last line.
    Whole,
    /// The beginning of a line that is longer than the bound. The rest was discarded.
    Cut,
    End,
}

/// Reads the next line into `line`, at most `max` bytes of it.
pub(super) fn read(reader: &mut impl BufRead, max: usize, line: &mut Vec<u8>) -> io::Result<LineRead> {
    line.clear();
    let (mut any, mut cut) = (false, false);
    loop {
        let part = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            part => part?,
        };
        let newline = part.iter().position(|byte| *byte == b'\n');
        let length = newline.map_or(part.len(), |at| at + 1);
        let stored = length.min(max - line.len());
        line.extend_from_slice(&part[..stored]);
        any |= length > 0;
        cut |= stored < length;
        reader.consume(length);
        if newline.is_some() || length == 0 {
            return Ok(if cut {
                LineRead::Cut
            } else if any {
                LineRead::Whole
            } else {
                LineRead::End
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LineRead, read};
    use std::io::BufReader;

    #[test]
    fn lines_are_cut_at_the_bound_for_reads_of_any_size() {
        for capacity in 1..12 {
            let mut reader = BufReader::with_capacity(capacity, &b"ab\n\nabcd\nabc\nabcdefghi\nx"[..]);
            let mut line = Vec::new();
            let mut lines = Vec::new();
            loop {
                match read(&mut reader, 4, &mut line).expect("memory can be read") {
                    LineRead::End => break,
                    result => lines.push((result, String::from_utf8_lossy(&line).into_owned())),
                }
            }
            let expected = [
                (LineRead::Whole, "ab\n"),
                (LineRead::Whole, "\n"),
                (LineRead::Cut, "abcd"),
                (LineRead::Whole, "abc\n"),
                (LineRead::Cut, "abcd"),
                (LineRead::Whole, "x"),
            ];
            assert_eq!(lines, expected.map(|(result, text)| (result, text.to_owned())));
        }
    }
}
