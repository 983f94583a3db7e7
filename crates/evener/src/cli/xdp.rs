//! `evener xdp`: what an interface can, what is pinned in the kernel, and taking it away. These commands work on the
//! kernel directly, without a running instance.

use crate::output::printable;
use anyhow::bail;
use clap::{Args, Subcommand};
use evener_core::spec::XdpSpec;
use evener_xdp::check::{Report, Verdict};
use evener_xdp::installation::{self, Installation, Removed};
use evener_xdp::interface::AttachMode;
use serde_json::json;
use std::path::PathBuf;

const CHECK_EXAMPLES: &str = "\
Examples:
  evener xdp check eth0          before a service with plane = \"xdp\" and interface = \"eth0\"
  evener xdp check eth0 --json   for scripts

Exit status: 0 if the plane can work there, 1 if something stands in the way.";

const DETACH_EXAMPLES: &str = "\
Examples:
  evener xdp detach              after the last stop, or before another program takes the interfaces
  evener xdp detach eth0         only from eth0

The instance must be stopped before: it would attach its program again.";

#[derive(Debug, Subcommand)]
pub(super) enum XdpCommand {
    /// Say what an interface can do for the XDP plane, and what stands in the way
    ///
    /// Changes nothing. Run it as root: the kernel tells others less.
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The interface
        #[arg(value_name = "IFNET")]
        interface: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the interfaces and maps of the XDP plane that are pinned in the kernel
    Status {
        #[command(flatten)]
        pin_args: PinArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Detach the XDP plane from an interface, or from all interfaces and remove its maps, too
    ///
    /// The plane works on when its process ends; this takes it away. Associations of clients are lost with the maps.
    #[command(after_help = DETACH_EXAMPLES)]
    Detach {
        /// The interface (default: all, and the maps, too)
        #[arg(value_name = "IFNET")]
        interface: Option<String>,
        #[command(flatten)]
        pin_args: PinArgs,
    },
}

#[derive(Args, Debug)]
pub(super) struct PinArgs {
    /// The pin directory of the configuration, `xdp { pin = ... }` (default: /sys/fs/bpf/evener)
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
}

impl PinArgs {
    fn path(self) -> PathBuf {
        self.pin.unwrap_or_else(|| XdpSpec::default().pin)
    }
}

impl XdpCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { interface, json } => check(&interface, json),
            Self::Status { pin_args, json } => status(pin_args, json),
            Self::Detach { interface, pin_args } => detach(interface.as_deref(), pin_args),
        }
    }
}

fn check(interface: &str, is_json: bool) -> anyhow::Result<()> {
    let report = Report::of(interface);
    if is_json {
        let findings: Vec<_> = report
            .findings()
            .iter()
            .map(|found| json!({ "topic": found.topic, "verdict": found.verdict.name(), "text": found.text }))
            .collect();
        let usable = report.is_usable();
        println!("{:#}", json!({ "interface": interface, "usable": usable, "findings": findings }));
    } else {
        for found in report.findings() {
            println!("{:<8} {:<13} {}", found.verdict.name(), found.topic, printable(&found.text));
        }
    }
    let is_problem = |verdict: Verdict| verdict == Verdict::Problem;
    let problems = report.findings().iter().filter(|found| is_problem(found.verdict)).count();
    match problems {
        0 => Ok(()),
        1 => bail!("the XDP plane cannot work on {interface}: see the problem above"),
        _ => bail!("the XDP plane cannot work on {interface}: see the {problems} problems above"),
    }
}

fn status(pin_args: PinArgs, is_json: bool) -> anyhow::Result<()> {
    let path = pin_args.path();
    let Some(found) = Installation::read(&path)? else {
        if is_json {
            println!("{:#}", json!({ "pin": path, "links": [], "maps": [], "owner": null }));
        } else {
            println!("nothing is pinned at {}", path.display());
        }
        return Ok(());
    };
    if is_json {
        println!("{:#}", status_json(&path, &found));
        return Ok(());
    }
    let owner = found.owner.as_deref().unwrap_or("no process; the kernel works on by itself");
    println!("{}: {}", path.display(), printable(owner));
    println!("{:<16} {:<10} {:>8} TAG", "INTERFACE", "MODE", "PROGRAM");
    for link in &found.links {
        let mode = link.mode.map_or("gone", |mode| mode.name());
        println!("{:<16} {mode:<10} {:>8} {}", printable(&link.interface), link.program, link.tag);
    }
    println!("{:<16} {:>10}", "MAP", "ENTRIES");
    for map in &found.maps {
        println!("{:<16} {:>10}", map.name, map.max_entries);
    }
    Ok(())
}

fn status_json(path: &std::path::Path, found: &Installation) -> serde_json::Value {
    let links: Vec<_> = found
        .links
        .iter()
        .map(|link| {
            let mode = link.mode.map(AttachMode::name);
            json!({ "interface": link.interface, "mode": mode, "program": link.program, "tag": link.tag })
        })
        .collect();
    let map = |map: &installation::PinnedMap| json!({ "name": map.name, "max_entries": map.max_entries });
    let maps: Vec<_> = found.maps.iter().map(map).collect();
    json!({ "pin": path, "owner": found.owner, "links": links, "maps": maps })
}

fn detach(interface: Option<&str>, pin_args: PinArgs) -> anyhow::Result<()> {
    let path = pin_args.path();
    let Some(removed) = installation::detach(&path, interface)? else {
        println!("nothing is pinned at {}", path.display());
        return Ok(());
    };
    let Removed { interfaces, maps } = removed;
    if let (Some(interface), true) = (interface, interfaces.is_empty()) {
        bail!("the XDP plane of {} is not attached to {interface}", path.display());
    }
    for interface in &interfaces {
        println!("detached from {}", printable(interface));
    }
    if interface.is_none() {
        println!("removed {maps} maps and {}", path.display());
    }
    Ok(())
}
