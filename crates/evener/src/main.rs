//! The program `evener`: passes its command line to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    evener::main_with(&std::env::args_os().collect::<Vec<_>>())
}
