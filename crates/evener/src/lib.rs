//! Evener, the program: command line, configuration, supervisor, checks and admin API around the planes.

#[macro_use]
mod output;

mod admin;
mod check;
mod cli;
mod compat;
mod config;
mod discover;
mod instance;
mod loops;
mod material;
mod observe;
mod outside;
mod request_log;
mod resolve;
mod scope;
mod signals;
mod supervisor;
mod unix_socket;

use std::process::ExitCode;

fn main() -> ExitCode {
    signals::hold();
    compat::called().map_or_else(cli::main, |(program, arguments)| program.run(arguments))
}
