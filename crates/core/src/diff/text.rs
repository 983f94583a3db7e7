//! Texts of values in changes, in the words of the configuration. They are for readers: a list is summarised where
//! it may be long.

use crate::acl::{Access, Acl};
use crate::address::Endpoint;
use crate::limits::Limits;
use crate::pace::MinRate;
use crate::route::{HostPattern, Route};
use crate::spec::{
    AbortOnClose, AdminState, Balance, CertificateFiles, CheckTls, ClientSubnetSpec, Denied, Dialect,
    DiscoverSpec, Failover, FastClose, Forward, ForwardedMode, Http2, IpvsEngine, IpvsForward, IpvsScheduler,
    IpvsSchedulerFlags, IpvsSyncRole, IpvsTransport, LogDestination, NextHop, OnDown, OnFailure,
    OnScriptError, Plane, Policy, Presence, ProgramSpec, Protocol, QuicId, RedirectSpec, RequestLog, Resolve,
    RetryOn, Source, SourceRate, StateFile, StickyBy, TlsVersion, TunnelSource, Verification, XdpEventLevel,
    XdpMode,
};
use crate::throttle::Rate;
use crate::wire::proxy;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of items of a list that are written out.
const ITEMS_MAX: usize = 8;
/// Maximum number of bytes of a text that are written out.
const BYTES_MAX: usize = 64;

/// A value in a change.
pub(super) trait Text {
    /// Returns the value for a reader.
    fn text(&self) -> String;
}

macro_rules! texts {
    ($($type:ty => |$value:pat_param| $text:expr),* $(,)?) => {
        $(impl Text for $type {
            fn text(&self) -> String {
                let $value = self;
                $text.into()
            }
        })*
    };
}

texts! {
    bool => |value| if *value { "true" } else { "false" },
    u8 => |value| value.to_string(),
    u16 => |value| value.to_string(),
    u32 => |value| value.to_string(),
    u64 => |value| value.to_string(),
    usize => |value| value.to_string(),
    f64 => |value| value.to_string(),
    String => |value| shortened(value),
    ProgramSpec => |value| shortened(format!("{} {}", value.path, value.arguments.join(" ")).trim_end()),
    Arc<str> => |value| shortened(value),
    StateFile => |value| match value {
        StateFile::Default => "default".to_owned(),
        StateFile::Off => "false".to_owned(),
        StateFile::At(path) => shortened(path),
    },
    PathBuf => |value| value.display().to_string(),
    Vec<u8> => |value| shortened(&value.escape_ascii().to_string()),
    Duration => |value| duration(*value),
    Endpoint => |value| value.to_string(),
    IpAddr => |value| value.to_string(),
    Rate => |value| value.to_string(),
    HostPattern => |value| value.to_string(),
    Protocol => |value| value.name(),
    Plane => |value| value.name(),
    Policy => |value| match value {
        Policy::Ewma { decay } => format!("ewma (decay {})", duration(*decay)),
        Policy::Maglev { table } => format!("maglev (table {table})"),
        other => other.name().to_owned(),
    },
    Dialect => |value| match value {
        Dialect::Plain => "plain",
        Dialect::Mname => "mname",
    },
    AdminState => |value| value.name(),
    OnScriptError => |value| value.name(),
    OnDown => |value| value.name(),
    OnFailure => |value| value.name(),
    FastClose => |value| value.name(),
    Failover => |value| match value {
        Failover::Next => "next",
        Failover::Never => "never",
    },
    Balance => |value| match value {
        Balance::Request => "request",
        Balance::Connection => "connection",
    },
    AbortOnClose => |value| match value {
        AbortOnClose::Never => "never",
        AbortOnClose::Idempotent => "idempotent",
        AbortOnClose::Always => "always",
    },
    Http2 => |value| match value {
        Http2::On => "on",
        Http2::Off => "off",
    },
    ForwardedMode => |value| match value {
        ForwardedMode::Replace => "replace",
        ForwardedMode::Append => "append",
        ForwardedMode::Off => "off",
    },
    Presence => |value| match value {
        Presence::Required => "required",
        Presence::Optional => "optional",
    },
    TlsVersion => |value| match value {
        TlsVersion::V12 => "1.2",
        TlsVersion::V13 => "1.3",
    },
    Verification => |value| match value {
        Verification::Full => "full",
        Verification::Off => "off",
    },
    proxy::Version => |value| match value {
        proxy::Version::V1 => "v1",
        proxy::Version::V2 => "v2",
    },
    Source => |value| match value {
        Source::Address(address) => address.to_string(),
        Source::Client => "client".into(),
    },
    Denied => |value| match value {
        Denied::Drop => "drop".into(),
        Denied::Reject => "reject".into(),
        Denied::Tarpit(time) => format!("tarpit {}", duration(*time)),
        Denied::Pool(pool) => format!("pool {pool}"),
    },
    RequestLog => |RequestLog { destination, format, sample }| {
        let destination = match destination {
            LogDestination::File(path) => path.display().to_string(),
            LogDestination::Udp(address) => format!("udp {address}"),
            LogDestination::Syslog(path) => format!("syslog {}", path.display()),
        };
        let sample = match *sample {
            RequestLog::ALL => String::new(),
            sample => format!(", sample {}", f64::from(sample) / f64::from(RequestLog::ALL)),
        };
        format!("{destination} ({}{sample})", shortened(format.name()))
    },
    StickyBy => |value| match value {
        StickyBy::ClientIp => "client_ip".into(),
        StickyBy::Cookie(name) => format!("cookie {name}"),
    },
    RetryOn => |value| list(value.names().map(str::to_owned)),
    RedirectSpec => |RedirectSpec { status, port }| format!("{status} to port {port}"),
    MinRate => |MinRate { bytes_per_second, window }| format!("{bytes_per_second} B/s over {}", duration(*window)),
    ClientSubnetSpec => |ClientSubnetSpec { v4, v6 }| format!("/{v4} and /{v6}"),
    Limits => |Limits { soft, hard }| format!("{} and {}", soft.text(), hard.text()),
    CheckTls => |CheckTls { sni, insecure, ca_file }| {
        format!("sni {}, ca {}, verify {}", sni.text(), ca_file.text(), (!insecure).text())
    },
    CertificateFiles => |CertificateFiles { chain, key, ocsp, issuers }| {
        format!("{chain} with key {key}, ocsp {}, issuers {}", ocsp.text(), issuers.text())
    },
    DiscoverSpec => |value| value.to_string(),
    Resolve => |value| match value {
        Resolve::Required => "required",
        Resolve::Optional => "optional",
    },
    SocketAddr => |value| value.to_string(),
    Route<Arc<str>> => |Route { hosts, path, to }| {
        format!("{}{} to {to}", hosts.text(), path.as_deref().unwrap_or_default())
    },
    QuicId => |value| value.to_string(),
    XdpMode => |value| value.name(),
    XdpEventLevel => |value| value.name(),
    NextHop => |value| value.name(),
    IpvsEngine => |value| value.name(),
    IpvsTransport => |value| value.name(),
    IpvsSyncRole => |value| value.name(),
    IpvsScheduler => |value| value.name(),
    IpvsSchedulerFlags => |value| list(value.names().map(str::to_owned)),
    IpvsForward => |value| match value {
        IpvsForward::Gue(port) => format!("gue to port {port}"),
        other => other.name().to_owned(),
    },
    Forward => |value| {
        let tunnel = |(source, port): (TunnelSource, Option<u16>)| {
            let TunnelSource { v4, v6 } = source;
            let sources = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)].into_iter().flatten();
            let sources = sources.map(|source| format!(" from {source}"));
            port.map(|port| format!(" to port {port}")).into_iter().chain(sources).collect::<String>()
        };
        format!("{}{}", value.name(), value.tunnel().map(tunnel).unwrap_or_default())
    },
    SourceRate => |SourceRate { packets_per_second, burst, prefix_v4, prefix_v6 }| {
        format!("{packets_per_second}/s for each /{prefix_v4} and /{prefix_v6}, burst {burst}")
    },
    Acl => |acl| {
        let groups = acl.groups();
        let prefixes = |(access, prefixes): &(Access, Vec<_>)| {
            let prefixes: &[crate::acl::Prefix] = prefixes;
            format!("{} {}", access_name(*access), list(prefixes.iter().map(ToString::to_string)))
        };
        let otherwise = format!("otherwise {}", access_name(acl.otherwise()));
        groups.iter().map(prefixes).chain([otherwise]).collect::<Vec<_>>().join(", ")
    },
    BTreeSet<u16> => |value| list(value.iter().map(u16::to_string)),
}

impl<T: Text> Text for Option<T> {
    fn text(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), Text::text)
    }
}

impl<T: Text> Text for Arc<T> {
    fn text(&self) -> String {
        (**self).text()
    }
}

macro_rules! lists {
    ($($type:ty),* $(,)?) => {
        $(impl Text for Vec<$type> {
            fn text(&self) -> String {
                list(self.iter().map(Text::text))
            }
        })*
    };
}

lists!(String, Arc<str>, HostPattern, Route<Arc<str>>, CertificateFiles, DiscoverSpec, SocketAddr);

const fn access_name(access: Access) -> &'static str {
    match access {
        Access::Permit => "permit",
        Access::Deny => "deny",
    }
}

/// Joins items; of a long list only the first ones.
pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(ITEMS_MAX);
    if more > 0 {
        items.truncate(ITEMS_MAX);
        items.push(format!("and {more} more"));
    }
    if items.is_empty() { "none".into() } else { items.join(" ") }
}

/// Cuts a long text, and makes control characters visible.
fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(BYTES_MAX);
    let rest = if end < text.len() { "..." } else { "" };
    format!("{}{rest}", text[..end].escape_debug())
}

/// Formats a duration with its largest unit that leaves no fraction.
fn duration(value: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
    ];
    let nanos = value.as_nanos();
    let unit = UNITS.iter().find(|(size, _)| nanos >= *size && nanos.is_multiple_of(*size));
    unit.map_or_else(|| format!("{value:?}"), |(size, name)| format!("{}{name}", nanos / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &impl Text, expected: &str) {
        assert_eq!(value.text(), expected);
    }

    #[test]
    fn values_read_as_in_the_configuration() {
        check(&Some(3_u32), "3");
        check(&None::<u32>, "none");
        check(&Duration::from_millis(1500), "1500ms");
        check(&Duration::from_secs(7200), "2h");
        check(&Duration::from_nanos(5), "5ns");
        check(&Duration::ZERO, "0ns");
        check(&Denied::Tarpit(Duration::from_secs(90)), "tarpit 90s");
        check(&Policy::Maglev { table: 7 }, "maglev (table 7)");
        check(&RetryOn { servfail: true, refused: true }, "servfail refused");
        check(&RetryOn::NONE, "none");
        check(
            &Route::<Arc<str>> { hosts: Vec::new(), path: Some("/api".into()), to: "api".into() },
            "none/api to api",
        );
    }

    #[test]
    fn long_values_are_shortened() {
        check(&"x".repeat(65), &format!("{}...", "x".repeat(64)));
        check(&"é".repeat(40), &format!("{}...", "é".repeat(32)));
        check(&b"a\r\n\x80".to_vec(), "a\\\\r\\\\n\\\\x80");
        check(&(0..10).map(|n| n.to_string()).collect::<Vec<_>>(), "0 1 2 3 4 5 6 7 and 2 more");
        let prefixes: Vec<_> = (0..9).map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
        let acl = Acl::in_order(&[(Access::Permit, prefixes)], Access::Deny);
        assert!(acl.text().ends_with("10.7.0.0/16 and 1 more, otherwise deny"), "{}", acl.text());
    }
}
