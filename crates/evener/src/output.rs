//! Standard output and standard error of commands. The macros replace the macros of the standard library, which
//! panic if the reader of a pipe has exited, as in `evener status | less`.
//!
//! Commands that run an instance (`run`, one-liners, `pen`) continue if their output cannot be written, so they
//! do not use this module.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// Exit status if the reader of the output has exited: the status that shells show for a program that SIGPIPE
/// ended.
pub(crate) const READER_EXITED: u8 = 128 + 13;

/// Prints to standard output. Ends the program quietly if the reader has exited.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!($($text)*)) };
}

/// Prints a line to standard output. Ends the program quietly if the reader has exited.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line to standard error, if possible.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes to standard output. On failure the program ends: quietly if the reader has exited, else with the
/// reason.
pub(crate) fn to_stdout(text: Arguments) {
    or_end(io::stdout().lock().write_fmt(text));
}

/// Writes bytes to standard output.
pub(crate) fn bytes_to_stdout(bytes: &[u8]) {
    or_end(io::stdout().lock().write_all(bytes));
}

/// Returns a text with escaped control and format characters: a terminal would execute them, or show the text
/// in another order. Texts of a configuration, of its files and of servers may have such characters.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_unprintable(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Returns true for a control character, and for an invisible character that changes the order or the form of
/// the text around it.
pub(crate) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

fn or_end(written: io::Result<()>) {
    // Text without a newline is buffered, so a failure to write it would be lost without this flush.
    let Err(error) = written.and_then(|()| io::stdout().lock().flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(READER_EXITED.into());
    }
    eprintln!("evener: cannot write to standard output: {error}");
    std::process::exit(1);
}

/// Writes to standard error. A failure is ignored, because it cannot be reported anywhere; the exit status
/// shows the outcome.
pub(crate) fn to_stderr(text: Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_and_format_characters_are_escaped() {
        assert_eq!(printable("pool `é“日本”`, a\\b"), "pool `é“日本”`, a\\b");
        assert_eq!(printable("a\x1b[31m\n\u{9b}b"), "a\\u{1b}[31m\\n\\u{9b}b");
        assert_eq!(printable("\u{202e}gpj.exe\u{feff}"), "\\u{202e}gpj.exe\\u{feff}");
    }
}
