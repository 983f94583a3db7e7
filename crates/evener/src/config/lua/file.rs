//! Reads the files of a configuration, and reports what is not text in UTF-8.

use crate::config::Location;
use crate::config::Problem;
use crate::config::problem::reason;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const FILE_BYTES_MAX: u64 = 16 << 20;

/// True if standard input was read. It can be read only once.
static STANDARD_INPUT_IS_USED: AtomicBool = AtomicBool::new(false);

/// Reads a file as the text of a program.
pub(super) fn read(path: &Path, name: &str) -> Result<String, Problem> {
    let bytes = bytes(path).map_err(|why| Problem::new(format!("{name}: {why}")))?;
    text(bytes, name)
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| reason(&error);
    let is_input = is_standard_input(path);
    let path = if is_input { Path::new("/dev/stdin") } else { path };
    let meta = std::fs::metadata(path).map_err(explain)?;
    if meta.is_dir() {
        let usual = path.join("evener.lua");
        let file = if usual.exists() { usual.display().to_string() } else { "the file in it".into() };
        return Err(format!("is a directory: give {file}"));
    }
    let is_pipe = path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd") || is_input;
    let is_readable = is_pipe && (meta.file_type().is_fifo() || meta.file_type().is_char_device());
    if !meta.is_file() && !is_readable {
        return Err("not a regular file".into());
    }
    if is_input && STANDARD_INPUT_IS_USED.swap(true, Ordering::Relaxed) {
        return Err("standard input was read before: a reload needs a file".into());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("the file is larger than {} MiB, the maximum", FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-") || path == Path::new("/dev/stdin")
}

/// Returns the text of a program. Comments may have bytes that are not UTF-8.
pub(super) fn text(mut bytes: Vec<u8>, name: &str) -> Result<String, Problem> {
    if let Some(encoding) = utf_16(&bytes) {
        let message = format!(
            "{name}: the file is {encoding} and must be UTF-8: convert it, such as by iconv -f {encoding} -t UTF-8"
        );
        return Err(Problem::new(message));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        let message = "is a NUL byte: the file is damaged, or is not a configuration";
        return Err(problem_at(&bytes, at, name, message));
    }
    if std::str::from_utf8(&bytes).is_err() {
        replace_in_comments(&mut bytes);
    }
    if let Err(error) = std::str::from_utf8(&bytes) {
        let at = error.valid_up_to();
        let byte = bytes[at];
        let message = format!(
            "has the byte 0x{byte:02X}, which is not UTF-8: save the file as UTF-8 (from Latin-1: iconv -f LATIN1 -t UTF-8)"
        );
        return Err(problem_at(&bytes, at, name, &message));
    }
    let text = String::from_utf8(bytes).map_err(|_| Problem::new(format!("{name}: not UTF-8 text")))?;
    // Some editors on Windows write a byte order mark at the beginning of a file.
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    // The first line of an executable file names its interpreter.
    Ok(if text.starts_with("#!") { format!("--{text}") } else { text })
}

/// Returns the encoding of a text in UTF-16, which has a byte order mark or a NUL byte in each character.
fn utf_16(bytes: &[u8]) -> Option<&'static str> {
    let begin = &bytes[..bytes.len().min(64)];
    let nul_at =
        |offset: usize| begin.len() >= 8 && begin.iter().skip(offset).step_by(2).all(|byte| *byte == 0);
    match begin {
        [0xff, 0xfe, ..] => Some("UTF-16LE"),
        [0xfe, 0xff, ..] => Some("UTF-16BE"),
        _ if nul_at(1) => Some("UTF-16LE"),
        _ if nul_at(0) => Some("UTF-16BE"),
        _ => None,
    }
}

/// Creates a problem at a byte.
fn problem_at(bytes: &[u8], at: usize, name: &str, message: &str) -> Problem {
    let before = &bytes[..at];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let column = 1 + String::from_utf8_lossy(&before[begin..]).chars().count();
    Problem::at(&Location::new(name, line as u32), format!("column {column} {message}"))
}

/// Replaces the bytes of comments that are not UTF-8 by `?`.
fn replace_in_comments(bytes: &mut [u8]) {
    let mut from = 0;
    while let Some(range) = next_comment(bytes, from) {
        from = range.end;
        let comment = &mut bytes[range];
        if let Err(error) = std::str::from_utf8(comment) {
            let rest = &mut comment[error.valid_up_to()..];
            rest.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
    }
}

/// Returns the next comment. `from` must not be inside a text or a comment.
fn next_comment(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let mut rest = &bytes[from..];
    loop {
        match rest {
            [] => return None,
            [b'-', b'-', after @ ..] => {
                let begin = bytes.len() - rest.len();
                let end = match long_bracket(after) {
                    Some(level) => end_of_long(after, level),
                    None => after.iter().position(|byte| *byte == b'\n'),
                };
                return Some(begin..end.map_or(bytes.len(), |end| begin + 2 + end));
            }
            [quote @ (b'"' | b'\''), after @ ..] => {
                let mut escaped = false;
                let end = after.iter().position(|byte| {
                    let ends = (byte == quote && !escaped) || *byte == b'\n';
                    escaped = *byte == b'\\' && !escaped;
                    ends
                })?;
                rest = &after[end + 1..];
            }
            [b'[', ..] if long_bracket(rest).is_some() => {
                rest = &rest[end_of_long(rest, long_bracket(rest).unwrap_or(0))?..];
            }
            [_, after @ ..] => rest = after,
        }
    }
}

/// Returns the level of a long bracket (`[[`, `[==[`) at the beginning.
fn long_bracket(bytes: &[u8]) -> Option<usize> {
    let inner = bytes.strip_prefix(b"[")?;
    let level = inner.iter().take_while(|byte| **byte == b'=').count();
    (inner.get(level) == Some(&b'[')).then_some(level)
}

/// Returns the position behind a long bracket that begins with the bytes.
fn end_of_long(bytes: &[u8], level: usize) -> Option<usize> {
    let close = [&b"]"[..], &b"=".repeat(level), b"]"].concat();
    bytes.windows(close.len()).position(|window| window == close).map(|at| at + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn check(bytes: &[u8], expected: &str) {
        let seen = text(bytes.to_vec(), "c.lua").unwrap_or_else(|problem| format!("! {problem}"));
        assert_eq!(seen, expected);
    }

    #[test]
    fn other_encodings_are_refused_with_their_location_unless_they_are_in_comments() {
        check(b"x = 1", "x = 1");
        check("\u{feff}x = 1".as_bytes(), "x = 1");
        check(b"#!/usr/bin/env evener\nx = 1", "--#!/usr/bin/env evener\nx = 1");
        check(b"-- caf\xe9 \xe8\nx = 1", "-- caf? ?\nx = 1");
        check(b"--[[ caf\xe9\n\xe8 ]] x = 1", "--[[ caf?\n? ]] x = 1");
        check(b"--[==[ \xe9 ]] ]==] x = \"\" -- \xe9", "--[==[ ? ]] ]==] x = \"\" -- ?");
        check(b"--[[ \xe9 ]] x = \"\xc3\xa9\"", "--[[ ? ]] x = \"é\"");
        let latin = "is not UTF-8: save the file as UTF-8 (from Latin-1: iconv -f LATIN1 -t UTF-8)";
        check(b"-- a\nx = \"caf\xe9\"", &format!("! c.lua:2: column 9 has the byte 0xE9, which {latin}"));
        check(b"x = \"--\xe9\"", &format!("! c.lua:1: column 8 has the byte 0xE9, which {latin}"));
        check(b"x = [[ --\xe9 ]]", &format!("! c.lua:1: column 10 has the byte 0xE9, which {latin}"));
        let nul = "is a NUL byte: the file is damaged, or is not a configuration";
        check(b"x = 1\n\0", &format!("! c.lua:2: column 1 {nul}"));
        for text in [&b"\xff\xfex\0=\0"[..], b"x\0 \0=\0 \x001\0"] {
            check(
                text,
                "! c.lua: the file is UTF-16LE and must be UTF-8: convert it, such as by iconv -f UTF-16LE -t UTF-8",
            );
        }
    }

    #[test]
    fn a_hundred_thousand_comments_in_another_encoding_are_read_in_seconds() {
        let begun = Instant::now();
        // A loop that reads the text again for each comment needs several minutes.
        check(&b"-- caf\xe9\n".repeat(100_000), &"-- caf?\n".repeat(100_000));
        assert!(begun.elapsed() < Duration::from_secs(10), "reading took {:?}", begun.elapsed());
    }
}
