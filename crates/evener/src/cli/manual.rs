//! `evener man`: the manual pages of the commands, from the definition of the command line, and of the configuration.

use super::Cli;
use crate::config::manual;
use anyhow::Context as _;
use clap::CommandFactory;
use std::path::Path;

/// Writes evener(1), a page for each command, and evener.lua(5).
pub(super) fn write(directory: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write manual pages into {}", directory.display());
    clap_mangen::generate_to(Cli::command(), directory).with_context(failed)?;
    std::fs::write(directory.join("evener.lua.5"), manual()).with_context(failed)
}
