//! penlogd

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs it.
pub(crate) fn main(_arguments: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
