//! Keys of the XDP plane: the table `xdp`, and the keys of a service that the plane serves.

use super::access::{read_prefixes, read_rate};
use super::address::parse_listen;
use super::fields::{Fields, Reading};
use super::raw::{Made, Table, Value, shown};
use evener_core::Endpoint;
use evener_core::spec::{
    Forward, NextHop, Protocol, QuicId, SourceRate, TunnelSource, XdpEventLevel, XdpMode, XdpServiceSpec,
    XdpSpec,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of SYNs, events or packets a second.
const RATE_MAX: u32 = 1_000_000_000;
/// Minimum of `idle_timeout`: the plane counts seconds.
const IDLE_MIN: Duration = Duration::from_secs(2);
/// Maximum of `idle_timeout`: associations keep times modulo 52 days.
const IDLE_MAX: Duration = Duration::from_secs(26 * 24 * 3600);

/// Reads `xdp { flows = 1048576, mode = "auto" }`.
pub(super) fn read<'a>(reading: &'a Reading<'a>, made: &'a Made) -> XdpSpec {
    let mut fields = Fields::new(reading, made, "xdp".into());
    let defaults = XdpSpec::default();
    let mode = fields.word("mode", &XdpMode::ALL.map(XdpMode::name), |word| {
        XdpMode::ALL.into_iter().find(|mode| mode.name() == word)
    });
    let events = fields.word("events", &XdpEventLevel::ALL.map(XdpEventLevel::name), |word| {
        XdpEventLevel::ALL.into_iter().find(|level| level.name() == word)
    });
    let pin = fields.text("pin").map(|text| read_pin(text, &mut fields));
    let spec = XdpSpec {
        flows: fields.integer("flows", 1..=XdpSpec::FLOWS_MAX).unwrap_or(defaults.flows),
        mode: mode.unwrap_or(defaults.mode),
        pin: pin.unwrap_or(defaults.pin),
        events: events.unwrap_or(defaults.events),
        events_per_second: fields
            .integer("events_per_second", 1..=RATE_MAX)
            .unwrap_or(defaults.events_per_second),
        tarpit: read_prefixes(&mut fields, "tarpit"),
        tarpit_interfaces: read_interface_list(&mut fields, "tarpit_interfaces").unwrap_or_default(),
    };
    if !spec.tarpit_interfaces.is_empty() && !fields.has("tarpit") {
        fields.problem_with("tarpit_interfaces", "needs tarpit: add the prefixes without hosts");
    }
    if let Some(item) = made.table().list().first() {
        fields.problem_with_item(
            0,
            item.text(),
            format!("xdp has only keys, such as flows = 1048576, got {}", item.shown()),
        );
    }
    fields.finish();
    spec
}

fn read_pin(text: &str, fields: &mut Fields<'_>) -> std::path::PathBuf {
    if !text.starts_with('/') || text.contains('\0') {
        fields.must_hint(
            "pin",
            "be the absolute path of a directory in a BPF file system",
            &format!("write \"{}\"", XdpSpec::PIN),
        );
    }
    text.into()
}

/// Reads the keys of a service in the XDP plane, except those that other planes have, too.
pub(super) fn read_service(fields: &mut Fields<'_>, protocol: Protocol) -> XdpServiceSpec {
    let idle_timeout = fields.optional_duration("idle_timeout").flatten();
    if idle_timeout.is_some_and(|idle| idle < IDLE_MIN || idle.subsec_nanos() > 0) {
        fields.must("idle_timeout", "be 2s or more, in whole seconds");
    }
    if idle_timeout.is_some_and(|idle| idle > IDLE_MAX) {
        fields.must("idle_timeout", "be 26d or less; without it, associations do not end");
    }
    let spec = XdpServiceSpec {
        interfaces: read_interfaces(fields),
        forward: read_forward(fields),
        next_hop: read_next_hop(fields).unwrap_or(NextHop::Route),
        idle_timeout,
        rate: read_source_rate(fields),
        syn_cookies: fields.integer("syn_cookies", 1..=RATE_MAX),
        quic_id_length: fields
            .integer("quic_id_length", 1..=QuicId::BYTES_MAX as u32)
            .map(|length| length as u8),
    };
    let needs = match protocol {
        Protocol::Udp => Some(("syn_cookies", "tcp")).filter(|_| spec.syn_cookies.is_some()),
        _ => Some(("quic_id_length", "udp")).filter(|_| spec.quic_id_length.is_some()),
    };
    if let Some((key, protocol)) = needs {
        fields.problem(key, format!("{key} needs protocol = \"{protocol}\""));
    }
    if spec.forward == Forward::Direct && spec.next_hop == NextHop::Sender {
        fields.problem_with(
            "next_hop",
            "cannot be \"sender\" with forward = \"direct\", whose packets go to the servers: remove next_hop",
        );
    }
    spec
}

/// Reads `interface = "eth0"`, or `interfaces = { "eth0", "eth1" }`.
fn read_interfaces(fields: &mut Fields<'_>) -> Vec<Arc<str>> {
    let one = read_interface_list(fields, "interface");
    let list = read_interface_list(fields, "interfaces");
    if one.is_some() && list.is_some() {
        fields.problem_with("interface", "cannot be combined with `interfaces`: remove one of them");
    }
    let interfaces = one.or(list);
    if interfaces.is_none() || (interfaces.as_ref().is_some_and(Vec::is_empty) && is_empty_list(fields)) {
        let message =
            "plane = \"xdp\" needs the interface that the packets come from: add interface = \"eth0\"";
        fields.problem("plane", message);
    }
    interfaces.unwrap_or_default()
}

fn is_empty_list(fields: &mut Fields<'_>) -> bool {
    ["interface", "interfaces"]
        .into_iter()
        .any(|key| matches!(fields.take(key), Some(Value::Table(table)) if table.list().is_empty()))
}

fn read_interface_list(fields: &mut Fields<'_>, key: &'static str) -> Option<Vec<Arc<str>>> {
    let wanted = "the name of an interface such as \"eth0\", or a list of names";
    let names = fields.texts(key, wanted, |text| match is_interface(text) {
        true => Ok(Arc::from(text)),
        false => Err(format!(
            "{} is not the name of an interface: a name has 1 to {} bytes, without spaces and `/` (`ip link` lists them)",
            shown(text),
            XdpServiceSpec::INTERFACE_BYTES_MAX
        )),
    })?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(Arc::clone(name))) {
        fields.problem(key, format!("interface `{twice}` is listed twice: remove one of them"));
    }
    if names.len() > XdpServiceSpec::INTERFACES_MAX {
        fields.must(key, format!("have at most {} interfaces", XdpServiceSpec::INTERFACES_MAX));
    }
    Some(names)
}

/// Returns true if an interface can have the name (`dev_valid_name` of Linux).
pub(super) fn is_interface(name: &str) -> bool {
    (1..=XdpServiceSpec::INTERFACE_BYTES_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'))
}

fn read_next_hop(fields: &mut Fields<'_>) -> Option<NextHop> {
    fields.word("next_hop", &NextHop::ALL.map(NextHop::name), |word| {
        NextHop::ALL.into_iter().find(|next_hop| next_hop.name() == word)
    })
}

/// Reads `forward = "gue"` with `tunnel = { source = "192.0.2.1", port = 6080 }`.
fn read_forward(fields: &mut Fields<'_>) -> Forward {
    let named = |word: &str| Forward::NAMES.into_iter().find(|name| *name == word);
    let forward = fields.word("forward", &Forward::NAMES, named).unwrap_or(Forward::NAMES[0]);
    let (source, port) = match fields.take("tunnel") {
        None | Some(Value::Unknown) => (TunnelSource::default(), None),
        Some(Value::Table(table)) => read_tunnel(fields.within("tunnel", table)),
        Some(_) => {
            fields.must("tunnel", "be a table such as { source = \"192.0.2.1\" }");
            (TunnelSource::default(), None)
        }
    };
    let has_tunnel = fields.has("tunnel");
    match forward {
        "ipip" => {
            if port.is_some() {
                fields.problem("tunnel", "tunnel.port needs forward = \"gue\": packets of ipip have no port");
            }
            Forward::Ipip(source)
        }
        "gue" => Forward::Gue(source, port.unwrap_or(Forward::GUE_PORT)),
        forward => {
            if has_tunnel {
                fields.problem("tunnel", "tunnel needs forward = \"ipip\" or \"gue\"");
            }
            if forward == "direct" { Forward::Direct } else { Forward::Nat }
        }
    }
}

fn read_tunnel(mut nested: Fields<'_>) -> (TunnelSource, Option<u16>) {
    let wanted = "an IP address of this machine, or an IPv4 and an IPv6 address";
    let parse = |text: &str| match text.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => Err(format!("tunnel.source must be {wanted}, got {}", shown(text))),
    };
    let mut source = TunnelSource::default();
    for ip in nested.texts("source", wanted, parse).unwrap_or_default() {
        let is_twice = match ip {
            IpAddr::V4(ip) => source.v4.replace(ip).is_some(),
            IpAddr::V6(ip) => source.v6.replace(ip).is_some(),
        };
        if is_twice {
            nested.must("source", format!("be {wanted}"));
        }
    }
    let port = nested.integer("port", 1..=65_535).map(|port| port as u16);
    nested.finish();
    (source, port)
}

/// Reads `source_rate = "1000/s"`, or `{ rate = "1000/s", burst = 2000, v4 = 24, v6 = 56 }`.
fn read_source_rate(fields: &mut Fields<'_>) -> Option<SourceRate> {
    let table = match fields.take("source_rate")? {
        Value::Text(_) => {
            return read_packets(fields, "source_rate").map(|packets| source_rate(packets, packets));
        }
        Value::Table(table) => table,
        Value::Unknown => return None,
        other => {
            let hint = other.number().map(|number| format!("write \"{number}/s\"")).unwrap_or_default();
            fields.must_hint("source_rate", "be a rate such as \"1000/s\", or { rate = \"1000/s\" }", &hint);
            return None;
        }
    };
    read_rate_table(fields.within("source_rate", table), table)
}

fn read_rate_table(mut nested: Fields<'_>, table: &Table) -> Option<SourceRate> {
    if !nested.has("rate") || !table.list().is_empty() {
        nested.problem_here("source_rate has no rate: write source_rate = { rate = \"1000/s\" }");
    }
    let packets = read_packets(&mut nested, "rate");
    let burst = nested.integer("burst", 1..=RATE_MAX);
    let length = |nested: &mut Fields<'_>, key, most| nested.integer(key, 1..=most).map(|bits| bits as u8);
    let (prefix_v4, prefix_v6) = (length(&mut nested, "v4", 32), length(&mut nested, "v6", 128));
    nested.finish();
    let defaults = source_rate(packets?, burst.unwrap_or(packets?));
    Some(SourceRate {
        prefix_v4: prefix_v4.unwrap_or(defaults.prefix_v4),
        prefix_v6: prefix_v6.unwrap_or(defaults.prefix_v6),
        ..defaults
    })
}

/// Returns a limit for the usual prefixes.
fn source_rate(packets_per_second: u32, burst: u32) -> SourceRate {
    SourceRate {
        packets_per_second,
        burst,
        prefix_v4: SourceRate::PREFIX_V4,
        prefix_v6: SourceRate::PREFIX_V6,
    }
}

/// Reads a number of packets a second.
fn read_packets(fields: &mut Fields<'_>, key: &'static str) -> Option<u32> {
    let rate = read_rate(fields, key)?;
    if rate.period != Duration::from_secs(1) {
        fields.must(key, "be a number of packets a second, such as \"1000/s\"");
        return None;
    }
    Some(rate.count)
}

/// Reads `ports = 5683`, or a list of ports and ranges such as `{ 5683, "6000-6010" }`.
pub(super) fn read_ports(fields: &mut Fields<'_>) -> Option<Vec<u16>> {
    const WANTED: &str = "be a port, or a list of ports and ranges such as { 5683, \"6000-6010\" }";
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    for (_, item) in fields.items("ports")? {
        let range = match item {
            Value::Int(port) => u16::try_from(*port).ok().map(|port| (port, port)),
            Value::Text(text) => read_range(text),
            _ => None,
        };
        let Some((first, last)) = range.filter(|(first, last)| *first > 0 && first <= last) else {
            fields.value_must("ports", item, WANTED, "");
            continue;
        };
        for port in first..=last {
            if !seen.insert(port) {
                fields.problem("ports", format!("port {port} is listed twice: remove one of them"));
                break;
            }
            ports.push(port);
        }
    }
    if ports.len() > XdpServiceSpec::PORTS_MAX {
        fields.problem(
            "ports",
            format!("a service must have at most {} ports, got {}", XdpServiceSpec::PORTS_MAX, ports.len()),
        );
        ports.truncate(1);
    }
    if ports.is_empty()
        && matches!(fields.take("ports"), Some(Value::Table(table)) if table.list().is_empty())
    {
        fields.problem_with("ports", "must not be empty: write ports = { 5683 }");
    }
    Some(ports)
}

fn read_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// Parses a virtual address. The port of an address without a port is 0, if the service has `ports`.
pub(super) fn parse_virtual(text: &str, has_ports: bool, usual: u16) -> Result<Endpoint, String> {
    let without = Endpoint::parse_without_port(text).filter(|endpoint| endpoint.host().is_none());
    let endpoint = match without.filter(|_| has_ports) {
        Some(endpoint) => endpoint,
        None => parse_listen(text, usual)?,
    };
    match &endpoint {
        Endpoint::Ip(address) if address.ip().is_unspecified() => Err(format!(
            "`{text}` is not one address: with plane = \"xdp\" write the virtual address to which clients send"
        )),
        Endpoint::Ip(address) if address.ip().is_multicast() => {
            Err(format!("`{text}` is a multicast address, which plane = \"xdp\" does not forward"))
        }
        Endpoint::Ip(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_some() => {
            Err(format!("`{text}` is an IPv4 address in the form of IPv6: write it as IPv4"))
        }
        Endpoint::Ip(address) if address.port() == 0 && !has_ports => Err(format!(
            "`{text}` has the port 0: with plane = \"xdp\" the system does not choose a port; write the port"
        )),
        Endpoint::Ip(_) => Ok(endpoint),
        Endpoint::Unix(_) => {
            Err(format!("`{text}` is a unix socket: plane = \"xdp\" needs an IP address and a port"))
        }
        Endpoint::Host { .. } => Err(format!("`{text}` is a host name: write an IP address")),
    }
}

/// Returns the addresses with their ports: an address without a port has each of `ports`.
pub(super) fn with_ports(listen: Vec<Endpoint>, ports: &[u16]) -> Vec<(Endpoint, Endpoint)> {
    let each = |endpoint: Endpoint| -> Vec<(Endpoint, Endpoint)> {
        match &endpoint {
            Endpoint::Ip(address) if address.port() == 0 => {
                let at = |port: &u16| Endpoint::Ip(SocketAddr::new(address.ip(), *port));
                ports.iter().map(|port| (endpoint.clone(), at(port))).collect()
            }
            _ => vec![(endpoint.clone(), endpoint)],
        }
    };
    listen.into_iter().flat_map(each).collect()
}
