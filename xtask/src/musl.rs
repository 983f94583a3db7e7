//! `cargo xtask musl`: builds a static binary and runs it. The container of packaging/docker is made from such a binary.

use crate::shell;
use anyhow::{Context, bail};
use clap::Args;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-musl";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Profile of the binary
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Builds the binary, checks that it is static, and lets it check an example.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let installed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    let installed = installed.context("rustup cannot be run")?.stdout;
    if !String::from_utf8_lossy(&installed).lines().any(|line| line == TARGET) {
        shell::run(Command::new("rustup").current_dir(shell::root()).args(["target", "add", TARGET]))?;
    }
    let mut build = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    build.current_dir(shell::root()).args(["build", "--package", "evener", "--target", TARGET]);
    shell::run(build.args(["--profile", &options.profile]))?;
    let folder = if options.profile == "dev" { "debug" } else { &options.profile };
    let binary = shell::root().join("target").join(TARGET).join(folder).join("evener");
    let headers = Command::new("readelf").args(["--program-headers", "--wide"]).arg(&binary).output();
    let headers = headers.context("readelf cannot be run")?;
    if !headers.status.success() || String::from_utf8_lossy(&headers.stdout).contains("INTERP") {
        bail!("{} is not static", binary.display());
    }
    let example = shell::root().join("examples/web.lua");
    shell::run(Command::new(&binary).arg("check").arg(example))?;
    println!("{}: static, {} bytes", binary.display(), binary.metadata()?.len());
    Ok(())
}
