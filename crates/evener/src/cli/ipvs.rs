//! `evener ipvs`: the kernel's table of IPVS, including entries that other programs added. These commands work on
//! the kernel directly, without a running instance, and change nothing.

use crate::output::printable;
use clap::{Args, Subcommand};
use evener_ipvs::model::{
    DestinationState, Entry, Flags, Forwarding, Service, ServiceKey, Statistics, Tunnel, TunnelFlags,
};
use evener_ipvs::{Client, Kernel, save};
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  evener ipvs list            services, servers, weights and connections
  evener ipvs stats --json    counters and rates, for scripts
  evener ipvs save            text that `ipvsadm -R` reads

Root is needed (CAP_NET_ADMIN), and the kernel's module ip_vs.";

#[derive(Debug, Subcommand)]
pub(super) enum IpvsCommand {
    /// Show services and servers with their weights and numbers of connections
    #[command(after_help = EXAMPLES)]
    List(OutputArgs),
    /// Show counters and rates of services and servers; they lag by about two seconds
    Stats(OutputArgs),
    /// Print the table as `ipvsadm -Sn` does, for `ipvsadm -R`
    Save,
}

#[derive(Args, Debug)]
pub(super) struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl IpvsCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let table = Client::open()?.table()?;
        match self {
            Self::List(OutputArgs { json: true }) | Self::Stats(OutputArgs { json: true }) => {
                println!("{:#}", json!({ "services": table.iter().map(to_json).collect::<Vec<_>>() }));
            }
            Self::List(_) => print!("{}", list(&table)),
            Self::Stats(_) => print!("{}", stats(&table)),
            Self::Save => print!("{}", printable_lines(&save::text(&table))),
        }
        Ok(())
    }
}

/// Replaces control characters, which a name in the kernel may contain, except the ends of lines.
fn printable_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", printable(line))).collect()
}

fn list(table: &[Entry]) -> String {
    let mut text = format!(
        "{:<49} {:<7} {:>6} {:>7} {:>7}\n",
        "SERVICE, SERVER", "FORWARD", "WEIGHT", "ACTIVE", "INACT"
    );
    for entry in table {
        let service = &entry.service.service;
        let words = format!("{} {}{}", service.key, service.scheduler, options(service));
        text.push_str(&format!("{}\n", printable(&words)));
        for state in &entry.destinations {
            let destination = &state.destination;
            text.push_str(&format!(
                "  {:<47} {:<7} {:>6} {:>7} {:>7}\n",
                destination.key.to_string(),
                method(destination.forwarding),
                destination.weight,
                state.active,
                state.inactive
            ));
        }
    }
    if table.is_empty() {
        text = "the kernel has no IPVS services\n".to_owned();
    }
    text
}

/// Returns the flags and the persistence of a service in words.
fn options(service: &Service) -> String {
    let mut words = String::new();
    if let Some(persistence) = &service.persistence {
        words.push_str(&format!(" persistent {} s", persistence.timeout.as_secs()));
        if persistence.prefix != service.key.family().bits() {
            words.push_str(&format!(" /{}", persistence.prefix));
        }
        if let Some(engine) = &persistence.engine {
            words.push_str(&format!(" {engine}"));
        }
    }
    for name in flag_names(service.flags) {
        words.push_str(&format!(" {name}"));
    }
    words
}

fn flag_names(flags: Flags) -> Vec<&'static str> {
    [
        (flags.one_packet, "one_packet"),
        (flags.scheduler_1, "flag_1"),
        (flags.scheduler_2, "flag_2"),
        (flags.scheduler_3, "flag_3"),
    ]
    .into_iter()
    .filter_map(|(is_set, name)| is_set.then_some(name))
    .collect()
}

/// Returns the forwarding method in the configuration's words.
fn method(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Nat => "nat",
        Forwarding::Direct => "direct",
        Forwarding::Tunnel(Tunnel::Ipip) => "ipip",
        Forwarding::Tunnel(Tunnel::Gue { .. }) => "gue",
        Forwarding::Tunnel(Tunnel::Gre { .. }) => "gre",
        Forwarding::Local => "local",
        Forwarding::Bypass => "bypass",
    }
}

fn stats(table: &[Entry]) -> String {
    let mut text = format!(
        "{:<32} {:>8} {:>7} {:>7} {:>7} {:>7} {:>5}\n",
        "SERVICE, SERVER", "CONNS", "PKT IN", "PKT OUT", "B IN", "B OUT", "CPS"
    );
    for entry in table {
        text.push_str(&stats_line(&entry.service.service.key.to_string(), &entry.service.statistics));
        for DestinationState { destination, statistics, .. } in &entry.destinations {
            text.push_str(&stats_line(&format!("  {}", destination.key), statistics));
        }
    }
    if table.is_empty() {
        text = "the kernel has no IPVS services\n".to_owned();
    }
    text
}

fn stats_line(name: &str, statistics: &Statistics) -> String {
    // A long IPv6 address has a line of its own, so that the columns stay.
    let name = if name.len() > 32 { format!("{name}\n{:<32}", "") } else { format!("{name:<32}") };
    format!(
        "{name} {:>8} {:>7} {:>7} {:>7} {:>7} {:>5}\n",
        short(statistics.connections),
        short(statistics.packets_in),
        short(statistics.packets_out),
        short(statistics.bytes_in),
        short(statistics.bytes_out),
        short(statistics.connection_rate)
    )
}

/// A number in at most five characters, with a decimal unit.
fn short(number: u64) -> String {
    let mut rest = number;
    for unit in ["", "k", "M", "G", "T", "P"] {
        if rest < 10_000 {
            return format!("{rest}{unit}");
        }
        rest /= 1000;
    }
    format!("{rest}E")
}

fn to_json(entry: &Entry) -> Value {
    let service = &entry.service.service;
    let (protocol, address, port, fwmark) = match service.key {
        ServiceKey::Address { protocol, address, port } => {
            (json!(protocol.name().to_lowercase()), json!(address), json!(port), Value::Null)
        }
        ServiceKey::Fwmark { mark, .. } => (Value::Null, Value::Null, Value::Null, json!(mark)),
    };
    let persistence = service.persistence.as_ref().map(|persistence| {
        json!({
            "timeout_s": persistence.timeout.as_secs(),
            "prefix": persistence.prefix,
            "engine": persistence.engine,
        })
    });
    json!({
        "protocol": protocol,
        "address": address,
        "port": port,
        "fwmark": fwmark,
        "family": if service.key.family().bits() == 32 { "ipv4" } else { "ipv6" },
        "scheduler": service.scheduler,
        "flags": flag_names(service.flags),
        "persistence": persistence,
        "statistics": statistics_json(&entry.service.statistics),
        "servers": entry.destinations.iter().map(server_json).collect::<Vec<_>>(),
    })
}

fn server_json(state: &DestinationState) -> Value {
    let destination = &state.destination;
    let (tunnel_port, flags) = match destination.forwarding {
        Forwarding::Tunnel(Tunnel::Gue { port, flags }) => (Some(port), Some(flags)),
        Forwarding::Tunnel(Tunnel::Gre { flags }) => (None, Some(flags)),
        _ => (None, None),
    };
    let checksum = flags.map(|flags| match flags {
        TunnelFlags::NoChecksum => "none",
        TunnelFlags::Checksum => "full",
        TunnelFlags::RemoteChecksum => "remote",
    });
    json!({
        "address": destination.key.address,
        "port": destination.key.port,
        "forward": method(destination.forwarding),
        "tunnel_port": tunnel_port,
        "tunnel_checksum": checksum,
        "weight": destination.weight,
        "upper_threshold": destination.upper_threshold,
        "lower_threshold": destination.lower_threshold,
        "active": state.active,
        "inactive": state.inactive,
        "persistent": state.persistent,
        "statistics": statistics_json(&state.statistics),
    })
}

fn statistics_json(statistics: &Statistics) -> Value {
    json!({
        "connections": statistics.connections,
        "packets_in": statistics.packets_in,
        "packets_out": statistics.packets_out,
        "bytes_in": statistics.bytes_in,
        "bytes_out": statistics.bytes_out,
        "connections_per_s": statistics.connection_rate,
        "packets_in_per_s": statistics.packet_rate_in,
        "packets_out_per_s": statistics.packet_rate_out,
        "bytes_in_per_s": statistics.byte_rate_in,
        "bytes_out_per_s": statistics.byte_rate_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_ipvs::fake::FakeKernel;
    use evener_ipvs::model::{Destination, Persistence};
    use std::net::SocketAddr;
    use std::time::Duration;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A table with the longest addresses.
    fn table() -> Vec<Entry> {
        let mut kernel = FakeKernel::new();
        let key = ServiceKey::tcp(address("10.0.0.1:80"));
        let persistence = Persistence { timeout: Duration::from_secs(300), prefix: 24, engine: None };
        kernel.add_service(&Service { persistence: Some(persistence), ..Service::new(key) }).unwrap();
        let server = Destination::new(address("10.0.0.2:80"), Forwarding::Nat).weight(3);
        kernel.add_destination(&key, &server).unwrap();
        let statistics = Statistics { connections: 12_345, bytes_in: u64::MAX, ..Statistics::default() };
        kernel.set_statistics(&key, &server.key, statistics);
        let long = ServiceKey::udp(address("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"));
        kernel.add_service(&Service::new(long)).unwrap();
        let server = address("[2001:db8:1111:2222:3333:4444:5555:7777]:65535");
        kernel.add_destination(&long, &Destination::new(server, Forwarding::Direct)).unwrap();
        kernel.table().unwrap()
    }

    #[test]
    fn text_shows_the_table_within_80_columns() {
        let (list, stats) = (list(&table()), stats(&table()));
        for line in list.lines().chain(stats.lines()) {
            assert!(line.len() <= 80, "{} columns: {line}", line.len());
        }
        assert!(list.contains("TCP 10.0.0.1:80 wlc persistent 300 s /24\n"), "{list}");
        let words: Vec<&str> = list.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(words, ["10.0.0.2:80", "nat", "3", "0", "0"]);
        let words: Vec<&str> = stats.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(words, ["10.0.0.2:80", "12k", "0", "0", "18E", "0", "0"]);
        assert_eq!(super::list(&[]), "the kernel has no IPVS services\n");
    }

    #[test]
    fn json_has_all_that_the_kernel_reports() {
        let json = to_json(&table()[0]);
        assert_eq!(json["address"], "10.0.0.1");
        assert_eq!(json["persistence"]["prefix"], 24);
        assert_eq!(json["servers"][0]["forward"], "nat");
        assert_eq!(json["servers"][0]["statistics"]["connections"], 12_345);
    }
}
