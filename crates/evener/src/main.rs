//! Evener, the program: command line, configuration, supervisor, checks and admin API around the planes.

mod admin;
mod check;
mod cli;
mod config;
mod material;
mod observe;
mod outside;
mod resolve;
mod supervisor;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
