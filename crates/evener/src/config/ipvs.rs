//! Keys of the IPVS plane: the table `ipvs`, and the keys of a service that the plane serves.

use super::fields::{Fields, Reading};
use super::hints::one_of;
use super::raw::{Made, Value, shown};
use super::xdp::is_interface;
use evener_core::Endpoint;
use evener_core::spec::{
    IpvsEngine, IpvsForward, IpvsPersistence, IpvsScheduler, IpvsSchedulerFlags, IpvsServiceSpec, IpvsSpec,
    IpvsSync, IpvsSyncRole, IpvsTimeouts, IpvsTransport,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Maximum of a timeout of the kernel: the kernel counts ticks in 31 bits.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400 * 24);

/// Reads `ipvs { own_table = true, sync = { ... }, timeouts = { ... } }`.
pub(super) fn read<'a>(reading: &'a Reading<'a>, made: &'a Made) -> IpvsSpec {
    let mut fields = Fields::new(reading, made, "ipvs".into());
    let spec = IpvsSpec {
        own_table: fields.bool("own_table").unwrap_or_default(),
        sync: read_sync(&mut fields),
        timeouts: read_timeouts(&mut fields),
    };
    if let Some(item) = made.table().list().first() {
        let message = format!("ipvs has only keys, such as own_table = true, got {}", item.shown());
        fields.problem_with_item(0, item.text(), message);
    }
    fields.finish();
    spec
}

fn read_sync(fields: &mut Fields<'_>) -> Option<IpvsSync> {
    let table = match fields.take("sync")? {
        Value::Table(table) => table,
        _ => {
            fields.must("sync", "be a table such as { role = \"master\", interface = \"eth0\" }");
            return None;
        }
    };
    let mut nested = fields.within("sync", table);
    let role = nested.word("role", &IpvsSyncRole::ALL.map(IpvsSyncRole::name), |word| {
        IpvsSyncRole::ALL.into_iter().find(|role| role.name() == word)
    });
    let interface = read_interface(&mut nested, "interface");
    let id = nested.integer("id", 0..=255).map_or(0, |id| id as u8);
    for key in ["role", "interface"] {
        if !nested.has(key) {
            let example = if key == "role" { "master" } else { "eth0" };
            nested.problem_here(format!("sync has no {key}: add {key} = \"{example}\""));
        }
    }
    nested.finish();
    Some(IpvsSync { role: role?, interface: interface?, id })
}

fn read_timeouts(fields: &mut Fields<'_>) -> IpvsTimeouts {
    match fields.take("timeouts") {
        None => IpvsTimeouts::default(),
        Some(Value::Table(table)) => {
            let mut nested = fields.within("timeouts", table);
            let timeouts = IpvsTimeouts {
                tcp: read_seconds(&mut nested, "tcp", TIMEOUT_MAX),
                tcp_fin: read_seconds(&mut nested, "tcp_fin", TIMEOUT_MAX),
                udp: read_seconds(&mut nested, "udp", TIMEOUT_MAX),
            };
            nested.finish();
            timeouts
        }
        Some(_) => {
            fields.must("timeouts", "be a table such as { tcp = \"15min\" }");
            IpvsTimeouts::default()
        }
    }
}

/// Reads a duration of whole seconds: the kernel counts seconds.
fn read_seconds(fields: &mut Fields<'_>, key: &'static str, most: Duration) -> Option<Duration> {
    let time = fields.duration(key)?;
    if time.subsec_nanos() > 0 || time > most {
        let days = most.as_secs() / 86_400;
        fields.must(key, format!("be between 1s and {days}days, in whole seconds"));
        return None;
    }
    Some(time)
}

fn read_interface(fields: &mut Fields<'_>, key: &'static str) -> Option<Arc<str>> {
    let name = fields.text(key)?;
    if !is_interface(name) {
        fields.must(key, "be the name of an interface such as \"eth0\" (`ip link` lists them)");
        return None;
    }
    Some(name.into())
}

/// Reads the keys of a service in the IPVS plane, except those that other planes have, too.
pub(super) fn read_service(fields: &mut Fields<'_>, transport: IpvsTransport) -> IpvsServiceSpec {
    let spec = IpvsServiceSpec {
        transport,
        fwmark: fields.integer("fwmark", 1..=u32::MAX),
        forward: read_forward(fields),
        scheduler: read_scheduler(fields),
        scheduler_flags: read_scheduler_flags(fields),
        one_packet: fields.bool("one_packet").unwrap_or_default(),
        persistence: read_persistence(fields),
        address_on: read_interface(fields, "address_on"),
        drain_timeout: fields.duration("drain_timeout").unwrap_or(IpvsServiceSpec::DRAIN_TIMEOUT),
    };
    if spec.one_packet && transport != IpvsTransport::Udp {
        fields.problem("one_packet", "one_packet needs protocol = \"udp\"");
    }
    if spec.one_packet && spec.forward == IpvsForward::Nat {
        fields.problem(
            "one_packet",
            "one_packet loses the responses with forward = \"nat\": write forward = \"direct\"",
        );
    }
    if spec.one_packet && spec.persistence.is_some() {
        fields.problem("one_packet", "one_packet cannot be combined with persistence: remove one of them");
    }
    let is_sip = spec.persistence.as_ref().is_some_and(|one| one.engine == Some(IpvsEngine::Sip));
    if is_sip && transport != IpvsTransport::Udp {
        fields.problem("persistence", "persistence.engine = \"sip\" needs protocol = \"udp\"");
    }
    if spec.address_on.is_some() && spec.fwmark.is_some() {
        fields.problem(
            "address_on",
            "address_on needs listen addresses, and a service with fwmark has none: remove it",
        );
    }
    spec
}

/// Reads `forward = "gue"` with `tunnel = { port = 6080 }`.
fn read_forward(fields: &mut Fields<'_>) -> IpvsForward {
    let forward = match fields.take("forward") {
        None => IpvsForward::NAMES[0],
        Some(value) => {
            let found = IpvsForward::NAMES.into_iter().find(|name| value.text() == Some(name));
            if found.is_none() {
                let hint = match value.text().unwrap_or_default().to_ascii_lowercase().as_str() {
                    "masq" | "masquerading" => "write forward = \"nat\"",
                    "dr" | "gatewaying" | "route" => "write forward = \"direct\"",
                    "tun" | "tunnel" | "ipencap" => "write forward = \"ipip\"",
                    _ => "",
                };
                fields.must_hint("forward", format!("be {}", one_of(&IpvsForward::NAMES, "")), hint);
            }
            found.unwrap_or(IpvsForward::NAMES[0])
        }
    };
    let port = match fields.take("tunnel") {
        None | Some(Value::Unknown) => None,
        Some(Value::Table(table)) => {
            let mut nested = fields.within("tunnel", table);
            if nested.take("source").is_some() {
                nested.problem_with(
                    "source",
                    "is not available with plane = \"ipvs\": the kernel takes an address of the interface; remove it",
                );
            }
            let port = nested.integer("port", 1..=65_535).map(|port| port as u16);
            nested.finish();
            port
        }
        Some(_) => {
            fields.must("tunnel", "be a table such as { port = 6080 }");
            None
        }
    };
    if forward != "gue" && fields.has("tunnel") {
        fields.problem("tunnel", "tunnel needs forward = \"gue\"");
    }
    match forward {
        "direct" => IpvsForward::Direct,
        "ipip" => IpvsForward::Ipip,
        "gue" => IpvsForward::Gue(port.unwrap_or(IpvsForward::GUE_PORT)),
        "gre" => IpvsForward::Gre,
        _ => IpvsForward::Nat,
    }
}

fn read_scheduler(fields: &mut Fields<'_>) -> Option<IpvsScheduler> {
    fields.word("scheduler", &IpvsScheduler::NAMES, IpvsScheduler::named)
}

fn read_scheduler_flags(fields: &mut Fields<'_>) -> IpvsSchedulerFlags {
    let mut flags = IpvsSchedulerFlags::default();
    let wanted = "\"fallback\", \"port\", or a list of both";
    let parse = |text: &str| {
        IpvsSchedulerFlags::NAMES
            .into_iter()
            .find(|name| *name == text)
            .ok_or_else(|| format!("scheduler_flags must be {wanted}, got {}", shown(text)))
    };
    for name in fields.texts("scheduler_flags", wanted, parse).unwrap_or_default() {
        flags.fallback |= name == "fallback";
        flags.port |= name == "port";
    }
    flags
}

/// Reads `persistence = "5min"`, or `{ timeout = "5min", v4 = 24, v6 = 64, engine = "sip" }`.
fn read_persistence(fields: &mut Fields<'_>) -> Option<IpvsPersistence> {
    let defaults = IpvsPersistence::default();
    match fields.take("persistence")? {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(defaults),
        Value::Table(table) => {
            let mut nested = fields.within("persistence", table);
            let timeout = read_seconds(&mut nested, "timeout", IpvsPersistence::TIMEOUT_MAX);
            let engine = nested.word("engine", &IpvsEngine::ALL.map(IpvsEngine::name), |word| {
                IpvsEngine::ALL.into_iter().find(|engine| engine.name() == word)
            });
            let persistence = IpvsPersistence {
                timeout: timeout.unwrap_or(defaults.timeout),
                prefix_v4: nested.integer("v4", 1..=32).map_or(defaults.prefix_v4, |bits| bits as u8),
                prefix_v6: nested.integer("v6", 1..=128).map_or(defaults.prefix_v6, |bits| bits as u8),
                engine,
            };
            nested.finish();
            Some(persistence)
        }
        _ => {
            let timeout = read_seconds(fields, "persistence", IpvsPersistence::TIMEOUT_MAX);
            Some(IpvsPersistence { timeout: timeout.unwrap_or(defaults.timeout), ..defaults })
        }
    }
}

/// Parses a virtual address. The port of an address without a port is 0, which means every port.
pub(super) fn parse_virtual(text: &str) -> Result<Endpoint, String> {
    let example = "write an IP address with a port, such as \"192.0.2.1:80\"";
    let parsed = Endpoint::parse_without_port(text).or_else(|| text.parse().ok());
    match parsed {
        Some(Endpoint::Ip(address)) if address.ip().is_unspecified() => Err(format!(
            "`{text}` is not one address: with plane = \"ipvs\" write the virtual address to which clients send"
        )),
        Some(Endpoint::Ip(address)) if address.ip().is_multicast() => {
            Err(format!("`{text}` is a multicast address, which plane = \"ipvs\" does not forward"))
        }
        Some(Endpoint::Ip(SocketAddr::V6(address))) if address.ip().to_ipv4_mapped().is_some() => {
            Err(format!("`{text}` is an IPv4 address in the form of IPv6: write it as IPv4"))
        }
        Some(endpoint @ Endpoint::Ip(_)) => Ok(endpoint),
        Some(Endpoint::Unix(_)) => {
            Err(format!("`{text}` is a unix socket: plane = \"ipvs\" needs an IP address and a port"))
        }
        Some(Endpoint::Host { .. }) => Err(format!("`{text}` is a host name: write an IP address")),
        None => Err(format!("`{text}` is not a virtual address: {example}")),
    }
}
