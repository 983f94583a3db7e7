//! `cargo xtask bench xdp`: measures the XDP plane, in a separate network namespace and without a network.
//!
//! Times for each packet come from `BPF_PROG_TEST_RUN` with a program that restores the packet and calls the measured
//! program. They are CPU time, net of a program that does nothing, and the minimum of interleaved passes.

mod bench_program;
mod live;
mod lru;
mod packets;
mod per_packet;
mod prototype;
mod scale;
mod scene;
mod start;

use crate::shell;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Environment variable that is set for the process inside the namespace.
const INSIDE: &str = "EVENER_BENCH_XDP_INSIDE";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Fewer and shorter passes: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only these parts (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    case: Vec<Case>,
    /// Object file of the prototype's program, to be measured in the same run
    #[arg(long, env = "EVENER_BENCH_PROTOTYPE", value_name = "FILE")]
    prototype: Option<PathBuf>,
    /// The binary to measure (default: target/dist/evener)
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Time for each packet: pass-through, known and new clients
    Packet,
    /// Time for each packet by the number of flows, servers and services
    Scale,
    /// Associations that are left in an LRU map
    Lru,
    /// Live frames: native and generic mode, nftables and pen
    Live,
    /// Time and memory at the start of the program
    Start,
}

impl Case {
    const ALL: [Self; 5] = [Self::Packet, Self::Scale, Self::Lru, Self::Live, Self::Start];
}

/// Measures and prints the tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return measure(options);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark needs root, to load programs into the kernel");
    }
    let this = std::env::current_exe()?;
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--"]).arg(this).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(inside.exec()).context("unshare cannot be run")
}

fn measure(options: &Options) -> anyhow::Result<()> {
    for case in Case::ALL {
        if !options.case.is_empty() && !options.case.contains(&case) {
            continue;
        }
        match case {
            Case::Packet => per_packet::measure(options.quick, options.prototype.as_deref())?,
            Case::Scale => scale::measure(options.quick)?,
            Case::Lru => lru::measure(options.quick)?,
            Case::Live => live::measure(options.quick)?,
            Case::Start => {
                let binary = options.binary.clone();
                start::measure(
                    options.quick,
                    &binary.unwrap_or_else(|| shell::root().join("target/dist/evener")),
                )?;
            }
        }
    }
    Ok(())
}

/// Binds the current thread to a processor.
fn bind_to_cpu(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("processor {cpu} cannot be used"))
}

/// Shows the progress on the terminal.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:<70}");
    }
}

/// Removes the progress from the terminal.
fn progress_done() {
    if std::io::stderr().is_terminal() {
        eprint!("\r{:70}\r", "");
    }
}
