//! pen and its companion programs. This module has the common parts of their command lines.

mod control;
mod front;
pub(super) mod import;
mod lines;
pub(super) mod mergelogs;
pub(super) mod penctl;
pub(super) mod penlog;
pub(super) mod penlogd;
pub(super) mod run;
mod settings;
mod view;

use anyhow::{Context, bail};
use std::ops::RangeInclusive;
use std::process::ExitCode;

/// Reports a wrong command line and the usage, and returns a failure. pen's programs print only the usage,
/// and some of them report success; scripts need to know that they did not run.
fn usage_error(program: &str, usage: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{program}: {error:#}\n{usage}");
    ExitCode::from(2)
}

/// Converts the result of a program to its exit code.
fn exit_code(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let io = error.downcast_ref::<std::io::Error>();
    if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::from(crate::output::READER_EXITED);
    }
    eprintln!("{program}: {error:#}");
    ExitCode::FAILURE
}

/// Returns the value of the option that was just parsed, as a number in the allowed range.
fn number(parser: &mut lexopt::Parser, allowed: RangeInclusive<i64>) -> anyhow::Result<i64> {
    let value = parser.value()?;
    let value = value.to_str().with_context(|| format!("{} is not a number", value.display()))?;
    number_within(value, allowed)
}

fn number_within(value: &str, allowed: RangeInclusive<i64>) -> anyhow::Result<i64> {
    let number: i64 = value.parse().with_context(|| format!("`{value}` is not a number"))?;
    if !allowed.contains(&number) {
        bail!("{number} is not between {} and {}", allowed.start(), allowed.end());
    }
    Ok(number)
}

fn port(value: &str) -> anyhow::Result<u16> {
    let port = number_within(value, 1..=i64::from(u16::MAX)).context("the port")?;
    Ok(u16::try_from(port).expect("the number was checked to be a port"))
}
