//! Escaping of text in lines of request logs. The results are printable ASCII, so that neither a reader of the
//! log nor a terminal misinterprets them.

use std::io::Write;

/// Context of a value in a line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    /// Between quotes: a space belongs to the value.
    Quoted,
    /// Between other values: a space would end the value.
    Bare,
}

/// Appends a value to a line of text, with `\xHH` for bytes that are not printable ASCII, quotes and
/// backslashes, as nginx and Apache write them.
pub(super) fn text(value: &[u8], context: Context, line: &mut Vec<u8>) {
    for &byte in value {
        match byte {
            b'"' | b'\\' => escape_byte(byte, line),
            b' ' if context == Context::Bare => escape_byte(byte, line),
            b' '..=b'~' => line.push(byte),
            _ => escape_byte(byte, line),
        }
    }
}

fn escape_byte(byte: u8, line: &mut Vec<u8>) {
    let _ = write!(line, "\\x{byte:02X}");
}

/// Appends a string of JSON. Characters other than printable ASCII are escaped; bytes that are not UTF-8 become
/// U+FFFD.
pub(super) fn json(value: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    for chunk in value.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => line.extend_from_slice(&[b'\\', character as u8]),
                ' '..='~' => line.push(character as u8),
                _ => {
                    let mut units = [0; 2];
                    for unit in character.encode_utf16(&mut units) {
                        let _ = write!(line, "\\u{unit:04x}");
                    }
                }
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice(b"\\ufffd");
        }
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_surrogates_for_characters_beyond_16_bits() {
        let check = |value: &str, expected: &str| {
            let mut line = Vec::new();
            json(value.as_bytes(), &mut line);
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        };
        check("a\u{202e}b", "\"a\\u202eb\"");
        check("\u{1f600}\u{7f}\t", "\"\\ud83d\\ude00\\u007f\\u0009\"");
    }
}
