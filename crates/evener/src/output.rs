//! Standard output and standard error of commands. The macros replace the macros of the standard library, which
//! panic if the reader of a pipe has exited, as in `evener status | less`.
//!
//! Commands that run an instance (`run`, one-liners, `pen`) continue if their output cannot be written, so they
//! do not use this module.

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
