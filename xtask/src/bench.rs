//! `cargo xtask bench`: measures what Evener and its peers add, in turn, in one run and in a separate network
//! namespace.
//!
//! added = CPU time of proxy, client and backend for a request, less that of client and backend without a proxy: what
//! the proxy costs all three. A proxy that sends larger batches makes its neighbours cheaper, too.
//! norm = CPU time of the proxy / (CPU time of client and backend). On a shared machine absolute times are
//! meaningless, but ratios within a run are meaningful.

mod apply;
mod cpu;
mod dns;
mod growth;
mod http;
mod idle;
mod instance;
mod load;
mod peers;
mod plot;
mod report;
mod scripts;
mod xdp;

use crate::{packages, shell};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use peers::{Case, Ground, Peer};
use report::Results;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Environment variable that is set for the process inside the namespace.
const INSIDE: &str = "EVENER_BENCH_INSIDE";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    plane: Option<Plane>,
    /// Fewer and shorter rounds: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only these cases (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    case: Vec<Case>,
    /// Only Evener and these peers (default: all)
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    /// Rounds (default: 5, quick 2)
    #[arg(long)]
    rounds: Option<usize>,
    /// The binary to measure (default: build target/dist/evener)
    #[arg(long)]
    binary: Option<String>,
    /// Another binary of Evener, which is measured beside it
    #[arg(long, value_name = "PATH")]
    against: Option<String>,
}

/// A benchmark of its own.
#[derive(Debug, Subcommand)]
enum Plane {
    /// Measure the XDP plane (as root), without a network
    Xdp(xdp::Options),
    /// Measure checks by functions
    Scripts(scripts::Options),
    /// Measure plans and applies of 10 000 servers
    Apply(apply::Options),
    /// Measure the cost of a request against the number of connections, servers, services, clients and rules
    Growth(growth::Options),
}

impl Options {
    /// Returns the binary to measure, if one is given.
    fn binary(&self) -> Option<String> {
        match &self.plane {
            Some(Plane::Growth(growth)) => growth.binary(),
            _ => self.binary.clone(),
        }
    }
}

/// Measures and prints the tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match &options.plane {
        Some(Plane::Xdp(options)) => return xdp::run(options),
        Some(Plane::Scripts(options)) => return scripts::run(options),
        Some(Plane::Apply(options)) => return apply::run(options),
        Some(Plane::Growth(_)) | None => {}
    }
    if std::env::var_os(INSIDE).is_some() {
        return measure(options);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark needs root, for a network namespace of its own");
    }
    packages::install(true)?;
    instance::binary(options.binary().as_ref())?;
    let this = std::env::current_exe()?;
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--"]).arg(this).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(inside.exec()).context("unshare cannot be run")
}

/// Raises the limit of file descriptors to the maximum, and returns the number of connections that a proxy can
/// have at the same time: two descriptors for each connection, and 200 in reserve.
fn connections_max() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).min(1 << 20);
    descriptors.saturating_sub(200) / 2
}

fn measure(options: &Options) -> anyhow::Result<()> {
    shell::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let binary =
        options.binary().unwrap_or_else(|| shell::root().join("target/dist/evener").display().to_string());
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 5 });
    let length = Duration::from_secs(if options.quick { 2 } else { 4 });
    let ground = Ground::prepare(&binary, options.against.as_ref(), connections_max())?;
    if let Some(Plane::Growth(options)) = &options.plane {
        return growth::measure(&ground, options);
    }
    let wanted = |case: &Case| options.case.is_empty() || options.case.contains(case);
    for case in Case::ALL.into_iter().filter(wanted) {
        if case == Case::Idle {
            idle::measure(&ground)?;
            continue;
        }
        let mut peers: Vec<Peer> = Peer::of(case)
            .into_iter()
            .filter(|peer| {
                peer.is_ours() || options.peer.is_empty() || options.peer.iter().any(|name| peer.name == name)
            })
            .collect();
        if options.against.is_some() {
            peers.insert(1, peers[0].against());
        }
        let mut results = Results::new(case, &peers);
        let running = ground.start(&peers)?;
        for round in 1..=rounds {
            eprint!("\r{case:?}: round {round} of {rounds}, {:<20}", "no proxy");
            results.add_direct(load::direct(case, &ground, length)?);
            for (at, proxy) in running.iter().enumerate() {
                eprint!("\r{case:?}: round {round} of {rounds}, {:<20}", peers[at].name);
                let sample = load::sample(case, &ground, proxy, length)?;
                results.add(at, sample);
            }
        }
        eprint!("\r{:60}\r", "");
        println!("{}", results.table());
    }
    Ok(())
}
