//! `evener help`: the help of a command, of a key of the configuration, or an overview of both.

use super::Cli;
use crate::config::help;
use anyhow::Error;
use clap::{Args, CommandFactory};

#[derive(Args, Debug)]
pub(super) struct HelpCommand {
    /// A command such as `run`, or a key of the configuration such as `pool.sticky` or `sticky`
    words: Vec<String>,
    /// List all keys of the configuration
    #[arg(long, conflicts_with = "words")]
    keys: bool,
}

/// Prints the help that a command line asks for.
pub(super) fn help(wanted: &HelpCommand) -> anyhow::Result<()> {
    if wanted.keys {
        print!("{}", help::list());
        return Ok(());
    }
    let mut command = Cli::command();
    command.build();
    let Some(first) = wanted.words.first() else {
        print!("{}\n{}", command.render_help(), help::overview());
        return Ok(());
    };
    // `evener help pool sticky` means the same as `evener help pool.sticky`.
    let path = wanted.words.join(".");
    if let Some(command) = command.find_subcommand_mut(first) {
        if help::describes(&path) {
            println!("`{path}` is a command and a word of the configuration, described below.\n");
        }
        print!("{}", command.render_long_help());
        if help::describes(&path) {
            let described = help::describe(&path).map_err(Error::msg)?;
            print!("\n`{path}` in a configuration:\n\n{described}");
        }
        return Ok(());
    }
    print!("{}", help::describe(&path).map_err(Error::msg)?);
    Ok(())
}
