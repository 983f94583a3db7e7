//! Developer commands of cargo xtask: setup, test, guest, fuzz, bpf, bench, deb, musl, tidy.

mod bench;
mod bpf;
mod deb;
mod fuzz;
mod ipvs_vm;
mod musl;
mod packages;
mod shell;
mod test;
mod tidy;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use test::Tier;

/// Developer commands of Evener
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the Debian packages that tests need (as root), and say which
    Setup {
        /// Install those of the benchmark, too
        #[arg(long)]
        bench: bool,
    },
    /// Run every test: unit, simulation, end to end with the real peers; `setup` comes first
    Test {
        /// Only unit tests, the simulation and a few end-to-end tests, without installing anything
        #[arg(long)]
        fast: bool,
        /// Only tests whose names contain one of these
        filters: Vec<String>,
    },
    /// Run the tests of IPVS in a virtual machine with Debian's kernel, under emulation (fetches 100 MB once)
    #[command(name = "guest")]
    IpvsVm(ipvs_vm::Options),
    /// Run the fuzz targets over their inputs and over what is found from there
    Fuzz(fuzz::Options),
    /// Compile the programs of the XDP plane (clang-19)
    Bpf(bpf::Options),
    /// Measure against pen, haproxy, nginx and dnsdist, and print the table of norms and ratios
    Bench(bench::Options),
    /// Make the Debian package in target/package (installs cargo-deb if it is missing)
    Deb(deb::Options),
    /// Build a static binary with musl, and check that it runs (installs the target if it is missing)
    Musl(musl::Options),
    /// Check the rules of style that a machine can check
    Tidy(tidy::Options),
}

fn main() -> ExitCode {
    // An error is for the reader of the terminal; a stack backtrace would hide it.
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup { bench } => packages::install(bench),
        Command::Test { fast, filters } => test::run(if fast { Tier::Fast } else { Tier::Whole }, &filters),
        Command::IpvsVm(options) => ipvs_vm::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bpf(options) => bpf::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Deb(options) => deb::run(&options),
        Command::Musl(options) => musl::run(&options),
        Command::Tidy(options) => tidy::run(&options),
    }
}
