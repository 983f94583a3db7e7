//! Options of a service that depend on its protocol: limits, timeouts and sockets.

use crate::config::fields::Fields;
use crate::config::hints::{one_of, values};
use crate::config::raw::Value;
use evener_core::spec::{FastClose, Plane, Protocol, ServiceOptions, Source};
use std::time::Duration;

const PROTOCOLS: [&str; 4] = ["tcp", "udp", "http", "dns"];

/// Reads `protocol`. An unknown protocol is a problem, and counts as the protocol that is probably meant, so that
/// its keys are not reported in addition.
pub(super) fn read_protocol(fields: &mut Fields<'_>) -> Protocol {
    let given = fields.take("protocol").map(|value| value.text().unwrap_or_default());
    let misspelt =
        || fields.misspelt("protocol", &["mode", "proto", "type"]).filter(|word| PROTOCOLS.contains(word));
    match given.or_else(misspelt) {
        None | Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("http") => Protocol::Http,
        Some("dns") => Protocol::Dns,
        Some(word) => {
            match values::protocol(word) {
                Some(hint) => fields.must_hint("protocol", format!("be {}", one_of(&PROTOCOLS, "")), hint),
                None => fields.must_be_one_of("protocol", &PROTOCOLS, ""),
            }
            match values::protocol(word) {
                Some(hint) if hint.contains("\"http\"") => Protocol::Http,
                Some(hint) if hint.contains("\"udp\"") => Protocol::Udp,
                Some(hint) if hint.contains("\"dns\"") => Protocol::Dns,
                _ => similar_protocol(word),
            }
        }
    }
}

/// Returns the protocol of a word in capital letters. Other words count as tcp.
fn similar_protocol(word: &str) -> Protocol {
    match word.to_ascii_lowercase().as_str() {
        "http" => Protocol::Http,
        "udp" => Protocol::Udp,
        "dns" => Protocol::Dns,
        _ => Protocol::Tcp,
    }
}

/// Reads `plane`. A plane that this version does not have is a problem.
pub(super) fn read_plane(fields: &mut Fields<'_>) -> Plane {
    let Some(value) = fields.take("plane") else { return Plane::default() };
    let text = value.text().unwrap_or_default();
    Plane::named(text).unwrap_or_else(|| {
        let accepted = one_of(&Plane::NAMES, "");
        // `xdp` and `ipvs` without quotes are functions.
        let is_function = matches!(value, Value::Other(_));
        let hint = match text {
            "lvs" => "write plane = \"ipvs\"",
            _ if is_function => "write the name in quotes",
            _ => "",
        };
        fields.must_hint("plane", format!("be {accepted}"), hint);
        Plane::default()
    })
}

/// Reads the options of a service. Options that the protocol does not have are not read, and so are reported as
/// unknown keys.
pub(super) fn read_options(protocol: Protocol, fields: &mut Fields<'_>) -> ServiceOptions {
    let mut options = ServiceOptions::of(protocol);
    options.idle_timeout = read_idle_timeout(protocol, fields).unwrap_or(options.idle_timeout);
    options.freebind = fields.bool("freebind").unwrap_or(options.freebind);
    options.source = read_source(protocol, fields);
    if protocol == Protocol::Udp {
        options.flows_max = fields.integer("flows_max", 1..=16_000_000).unwrap_or(options.flows_max);
        options.spread = fields.integer("spread", 1..=ServiceOptions::SPREAD_MAX);
        return options;
    }
    options.connections_max =
        fields.integer("connections_max", 1..=16_000_000).unwrap_or(options.connections_max);
    options.connect_timeout = fields.duration("connect_timeout").unwrap_or(options.connect_timeout);
    options.backlog = fields.integer("backlog", 1..=65_535).unwrap_or(options.backlog);
    if matches!(fields.take("keepalive"), Some(Value::Int(count)) if *count > 0) {
        fields.must_hint(
            "keepalive",
            "be a duration such as \"2min\", the time before probes of TCP keepalive",
            "connections to servers are kept without a key",
        );
    } else {
        options.keepalive = fields.optional_duration("keepalive").unwrap_or(options.keepalive);
    }
    check_keepalive("keepalive", options.keepalive, fields);
    if protocol != Protocol::Dns {
        read_stream_options(&mut options, fields);
    }
    options
}

/// Reads the options that only tcp and http services have.
fn read_stream_options(options: &mut ServiceOptions, fields: &mut Fields<'_>) {
    options.unix_mode = read_unix_mode(fields);
    options.attempts_max = fields.integer("attempts_max", 1..=1000).unwrap_or(options.attempts_max);
    if let Some(most) = fields.duration("connect_time_max") {
        options.connect_time_max = most;
        if most < options.connect_timeout {
            let timeout = humantime::format_duration(options.connect_timeout);
            fields.must("connect_time_max", format!("be at least connect_timeout ({timeout})"));
        }
    }
    options.half_closed_timeout =
        fields.optional_duration("half_closed_timeout").unwrap_or(options.half_closed_timeout);
    options.nodelay = fields.bool("nodelay").unwrap_or(options.nodelay);
    let fast_close = fields.word("fast_close", &FastClose::ALL.map(FastClose::name), |word| {
        FastClose::ALL.into_iter().find(|fast_close| fast_close.name() == word)
    });
    options.fast_close = fast_close.unwrap_or(options.fast_close);
    options.pending_max = fields.integer("pending_max", 1..=16_000_000);
    options.warm = fields.integer("warm", 0..=10_000).unwrap_or(options.warm);
    options.server_keepalive =
        fields.optional_duration("server_keepalive").unwrap_or(options.server_keepalive);
    check_keepalive("server_keepalive", options.server_keepalive, fields);
}

/// Reads `idle_timeout`. Only tcp and http services can set it to `false`.
fn read_idle_timeout(protocol: Protocol, fields: &mut Fields<'_>) -> Option<Option<Duration>> {
    let idle = fields.optional_duration("idle_timeout")?;
    let reason = match protocol {
        Protocol::Udp => "only it ends flows",
        Protocol::Dns => "idle clients would use up the connections",
        Protocol::Tcp | Protocol::Http => return Some(idle),
    };
    if idle.is_none() {
        let message = format!("cannot be false with protocol = \"{}\": {reason}", protocol.name());
        fields.problem_with("idle_timeout", message);
    }
    Some(idle)
}

/// Reads `source = "192.0.2.1"`, or `"client"`.
fn read_source(protocol: Protocol, fields: &mut Fields<'_>) -> Option<Source> {
    let text = fields.text("source")?;
    let source = match text {
        "client" => Some(Source::Client),
        address => address.parse().map(Source::Address).ok(),
    };
    if source.is_none() {
        let is_interface = std::path::Path::new("/sys/class/net").join(text).is_dir() && !text.contains('/');
        let hint = match is_interface || text.starts_with("eth") {
            true => format!("write an address of the interface, which ip addr show {text} lists"),
            false => String::new(),
        };
        fields.must_hint("source", "be an IP address of this machine or \"client\"", &hint);
    }
    if protocol == Protocol::Dns && source == Some(Source::Client) {
        fields.problem(
            "source",
            "source = \"client\" is not available with protocol = \"dns\": write an address of this machine",
        );
    }
    source
}

/// Reads the octal mode of unix sockets. A number is refused, because Lua reads it as decimal.
fn read_unix_mode(fields: &mut Fields<'_>) -> Option<u32> {
    let text = match fields.take("unix_mode")? {
        Value::Int(mode) => {
            // Lua reads 0660 as 660. A number with other digits is the mode in decimal.
            let digits = mode.to_string();
            let octal = if digits.bytes().all(|digit| matches!(digit, b'0'..=b'7')) {
                i64::from_str_radix(&digits, 8).ok()
            } else {
                Some(*mode)
            };
            let octal = octal.filter(|octal| (0..=0o777).contains(octal));
            match octal {
                Some(octal) => {
                    let hint = format!("write \"0{octal:03o}\"");
                    fields.must_hint("unix_mode", "be a file mode in quotes", &hint);
                }
                None => fields.must("unix_mode", "be a file mode such as \"0660\""),
            }
            return None;
        }
        _ => fields.text("unix_mode")?,
    };
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        fields.must("unix_mode", "be a file mode such as \"0660\"");
    }
    mode
}

fn check_keepalive(key: &str, keepalive: Option<Duration>, fields: &mut Fields<'_>) {
    if keepalive.is_some_and(|after| after < Duration::from_secs(1) || after.as_secs() > 32_767) {
        fields.must(key, "be between 1s and 32767s (tcp(7))");
    }
}
