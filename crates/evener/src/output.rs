//! Standard output and standard error of commands. The macros take the place of those of the standard library, which
//! panic when the other end of a pipe is gone: `evener status | head` is no fault of ours.
//!
//! What serves (`run`, one-liners, `pen`) does not end because its output cannot be written: it writes by itself.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// Exit status when the reader of our output left first: that of a program which SIGPIPE ended, as shells show it.
pub(crate) const READER_GONE: u8 = 128 + 13;

/// Prints to standard output; ends the program quietly when the reader left.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!($($text)*)) };
}

/// Prints a line to standard output; ends the program quietly when the reader left.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line to standard error, if that can be written.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes to standard output. When that fails the program ends: quietly when the reader left, else with the reason.
pub(crate) fn to_stdout(text: Arguments) {
    or_end(io::stdout().lock().write_fmt(text));
}

/// The same with bytes.
pub(crate) fn bytes_to_stdout(bytes: &[u8]) {
    or_end(io::stdout().lock().write_all(bytes));
}

fn or_end(written: io::Result<()>) {
    // What has no newline yet waits in a buffer, and would fail unheard.
    let Err(error) = written.and_then(|()| io::stdout().lock().flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(READER_GONE.into());
    }
    eprintln!("evener: cannot write to standard output: {error}");
    std::process::exit(1);
}

/// Writes to standard error. Nothing is left to say it to when that fails, and the exit status tells the same.
pub(crate) fn to_stderr(text: Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}
