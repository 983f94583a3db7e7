//! Evener, the program as a library: command line, configuration, supervisor, checks and admin API around the
//! planes.
//!
//! The public items are [`main_with`], which is the program, and [`instance`], which starts an instance inside
//! another program, such as a test.

#[macro_use]
mod output;

mod activation;
mod admin;
mod api_access;
mod certificates;
mod check;
mod cli;
mod compat;
mod config;
mod discover;
mod events;
mod exec;
mod inherited;
mod inputs;
pub mod instance;
mod loops;
mod observe;
mod planes;
mod request_log;
mod runtime_directory;
mod scope;
mod service_manager;
mod signals;
mod state;
mod supervisor;
mod table;
mod tls;
mod unix_socket;
mod upgrade;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with a command line, whose first word is the name of the program. Must be called first in
/// `main`: it blocks signals while there is only one thread.
pub fn main_with(arguments: &[OsString]) -> ExitCode {
    signals::block();
    match compat::called(arguments) {
        Some((program, rest)) => program.run(rest.to_vec()),
        None => cli::main(arguments),
    }
}
