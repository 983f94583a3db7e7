//! `cargo xtask test`: everything.

use crate::{packages, shell};
use std::process::Command;

/// Installs what is missing, then runs every test of the workspace.
pub(crate) fn run(filter: &[String]) -> anyhow::Result<()> {
    packages::install(false)?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut tests = Command::new(&cargo);
    tests.current_dir(shell::root()).args(["test", "--workspace"]);
    if !filter.is_empty() {
        tests.arg("--").args(filter);
    }
    // What needs root or a program fails here instead of being skipped.
    if rustix::process::geteuid().is_root() {
        tests.env("EVENER_TEST_STRICT", "1");
    }
    shell::run(&mut tests)?;
    if !filter.is_empty() {
        return Ok(());
    }
    println!("\nEnd to end once more, with io_uring:");
    let mut again = Command::new(cargo);
    again.current_dir(shell::root()).args(["test", "--package", "evener", "--test", "e2e"]);
    if rustix::process::geteuid().is_root() {
        again.env("EVENER_TEST_STRICT", "1");
    }
    shell::run(again.env("EVENER_TEST_DRIVER", "io_uring"))
}
