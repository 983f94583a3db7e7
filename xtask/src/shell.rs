//! Running other programs: prints each command, and returns a failure as an error.

use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::Command;

/// Returns the root of the workspace.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| ".".into(), Into::into)
}

/// Prints a command, runs it and waits for its end. A status other than success is an error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    println!("> {}", words.join(" "));
    let status = command.status().with_context(|| format!("{} cannot be run", words[0]))?;
    if !status.success() {
        bail!("`{}` failed: {status}", words.join(" "));
    }
    Ok(())
}
