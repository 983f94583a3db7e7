//! Options of a line.

use crate::model::{
    Destination, DestinationKey, Family, Flags, Forwarding, Persistence, Protocol, Service, ServiceKey,
    Tunnel, TunnelFlags,
};
use std::iter::Peekable;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::{FromStr, SplitWhitespace};
use std::time::Duration;

/// Persistence of `-p` without a number, in seconds.
const PERSISTENCE_DEFAULT: u64 = 300;

/// Words of a line.
pub(super) struct Words<'a>(Peekable<SplitWhitespace<'a>>);

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self(line.split_whitespace().peekable())
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn value(&mut self, option: &str) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| format!("{option} needs a value"))
    }

    fn number<T: FromStr>(&mut self, option: &str) -> Result<T, String> {
        let word = self.value(option)?;
        word.parse().map_err(|_| format!("{option} needs a number in range, got `{word}`"))
    }

    /// Returns the next word if it is a number.
    fn optional_number(&mut self) -> Option<u64> {
        let number = self.0.peek()?.parse().ok()?;
        self.0.next();
        Some(number)
    }
}

/// Forwarding method of an option.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Method {
    Nat,
    Direct,
    Tunnel,
}

/// Options of a line, as they were written.
#[derive(Debug, Default)]
pub(super) struct Options<'a> {
    key: Option<(Kind, &'a str)>,
    is_ipv6: bool,
    scheduler: Option<&'a str>,
    persistence: Option<Option<u64>>,
    netmask: Option<&'a str>,
    engine: Option<&'a str>,
    one_packet: bool,
    scheduler_flags: Option<&'a str>,
    server: Option<&'a str>,
    method: Option<Method>,
    weight: Option<u32>,
    upper: Option<u32>,
    lower: Option<u32>,
    tunnel: Option<&'a str>,
    tunnel_port: Option<u16>,
    tunnel_flags: Option<TunnelFlags>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Protocol(Protocol),
    Fwmark,
}

impl<'a> Options<'a> {
    pub(super) fn parse(mut words: Words<'a>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(option) = words.next() {
            match option {
                "-t" | "--tcp-service" => {
                    options.set_key(Kind::Protocol(Protocol::Tcp), words.value(option)?)?;
                }
                "-u" | "--udp-service" => {
                    options.set_key(Kind::Protocol(Protocol::Udp), words.value(option)?)?;
                }
                "--sctp-service" => options.set_key(Kind::Protocol(Protocol::Sctp), words.value(option)?)?,
                "-f" | "--fwmark-service" => options.set_key(Kind::Fwmark, words.value(option)?)?,
                "-6" | "--ipv6" => options.is_ipv6 = true,
                "-s" | "--scheduler" => options.scheduler = Some(words.value(option)?),
                "-p" | "--persistent" => options.persistence = Some(words.optional_number()),
                "-M" | "--netmask" => options.netmask = Some(words.value(option)?),
                "--pe" => options.engine = Some(words.value(option)?),
                "-o" | "--ops" => options.one_packet = true,
                "-b" | "--sched-flags" => options.scheduler_flags = Some(words.value(option)?),
                "-r" | "--real-server" => options.server = Some(words.value(option)?),
                "-m" | "--masquerading" => options.method = Some(Method::Nat),
                "-g" | "--gatewaying" => options.method = Some(Method::Direct),
                "-i" | "--ipip" => options.method = Some(Method::Tunnel),
                "-w" | "--weight" => options.weight = Some(words.number(option)?),
                "-x" | "--u-threshold" => options.upper = Some(words.number(option)?),
                "-y" | "--l-threshold" => options.lower = Some(words.number(option)?),
                "--tun-type" => options.tunnel = Some(words.value(option)?),
                "--tun-port" => options.tunnel_port = Some(words.number(option)?),
                "--tun-nocsum" => options.tunnel_flags = Some(TunnelFlags::NoChecksum),
                "--tun-csum" => options.tunnel_flags = Some(TunnelFlags::Checksum),
                "--tun-remcsum" => options.tunnel_flags = Some(TunnelFlags::RemoteChecksum),
                other => return Err(format!("unknown option `{other}`")),
            }
        }
        Ok(options)
    }

    fn set_key(&mut self, kind: Kind, value: &'a str) -> Result<(), String> {
        match self.key.replace((kind, value)) {
            Some(_) => Err("more than one of -t, -u, --sctp-service and -f".to_owned()),
            None => Ok(()),
        }
    }

    pub(super) fn key(&self) -> Result<ServiceKey, String> {
        let (kind, value) = self.key.ok_or("-t, -u, --sctp-service or -f is missing")?;
        match kind {
            Kind::Protocol(protocol) => {
                let address = endpoint(value)?;
                Ok(ServiceKey::Address { protocol, address: address.ip(), port: address.port() })
            }
            Kind::Fwmark => {
                let mark = value.parse().ok().filter(|mark| *mark != 0);
                let mark = mark.ok_or_else(|| format!("not a firewall mark: `{value}`"))?;
                Ok(ServiceKey::Fwmark { mark, family: if self.is_ipv6 { Family::V6 } else { Family::V4 } })
            }
        }
    }

    fn refuse_destination_options(&self) -> Result<(), String> {
        if self.server.is_some() || self.method.is_some() || self.weight.is_some() || self.tunnel.is_some() {
            return Err("options of a destination on the line of a service".to_owned());
        }
        Ok(())
    }
}

impl Options<'_> {
    /// Returns the service of a line of a service.
    pub(super) fn service(&self, key: ServiceKey) -> Result<Service, String> {
        self.refuse_destination_options()?;
        let scheduler = self.scheduler.unwrap_or(Service::DEFAULT_SCHEDULER).to_owned();
        let family = key.family();
        let prefix = self.netmask.map_or(Ok(family.bits()), |mask| prefix(family, mask))?;
        let persistence = self.persistence.map(|seconds| Persistence {
            timeout: Duration::from_secs(seconds.unwrap_or(PERSISTENCE_DEFAULT)),
            prefix,
            engine: self.engine.map(str::to_owned),
        });
        if persistence.is_none() && (self.netmask.is_some() || self.engine.is_some()) {
            return Err("-M and --pe need -p".to_owned());
        }
        let flags = self.scheduler_flags.map_or(Ok(Flags::default()), parse_scheduler_flags)?;
        Ok(Service { key, scheduler, flags: Flags { one_packet: self.one_packet, ..flags }, persistence })
    }

    /// Returns the destination of a line of a destination.
    pub(super) fn destination(&self) -> Result<Destination, String> {
        let server = self.server.ok_or("-r is missing")?;
        let address: SocketAddr = endpoint(server)?;
        let forwarding = self.forwarding()?;
        Ok(Destination {
            key: DestinationKey::from(address),
            forwarding,
            weight: self.weight.unwrap_or(1),
            upper_threshold: self.upper.unwrap_or_default(),
            lower_threshold: self.lower.unwrap_or_default(),
        })
    }

    fn forwarding(&self) -> Result<Forwarding, String> {
        let flags = self.tunnel_flags.unwrap_or_default();
        if self.method != Some(Method::Tunnel) {
            return match self.tunnel {
                Some(_) => Err("--tun-type needs -i".to_owned()),
                None if self.method == Some(Method::Nat) => Ok(Forwarding::Nat),
                None => Ok(Forwarding::Direct),
            };
        }
        Ok(Forwarding::Tunnel(match self.tunnel {
            None | Some("ipip") => Tunnel::Ipip,
            Some("gue") => Tunnel::Gue { port: self.tunnel_port.ok_or("--tun-port is missing")?, flags },
            Some("gre") => Tunnel::Gre { flags },
            Some(other) => return Err(format!("unknown tunnel type `{other}`")),
        }))
    }
}

/// Reads an address with a port; a port that is missing is 0.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let without_port = || {
        let address = text.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        Some(SocketAddr::new(address, 0))
    };
    text.parse()
        .ok()
        .or_else(without_port)
        .ok_or_else(|| format!("not an address with a numeric port: `{text}`; save with `ipvsadm -Sn`"))
}

pub(super) fn netmask(family: Family, prefix: u8) -> String {
    match family {
        Family::V4 => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or_default();
            Ipv4Addr::from(mask).to_string()
        }
        Family::V6 => prefix.to_string(),
    }
}

fn prefix(family: Family, text: &str) -> Result<u8, String> {
    let length = match family {
        Family::V4 => text.parse().ok().map(Ipv4Addr::to_bits).and_then(|mask| {
            (mask.leading_ones() + mask.trailing_zeros() >= 32).then_some(mask.leading_ones())
        }),
        Family::V6 => text.parse().ok().filter(|length| *length <= 128),
    };
    let length = length.and_then(|length| u8::try_from(length).ok());
    length.ok_or_else(|| format!("not a netmask: `{text}`"))
}

/// Names of the flags of a scheduler, in ipvsadm's words.
pub(super) fn scheduler_flags(scheduler: &str, flags: Flags) -> String {
    let names = match scheduler {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let set = [flags.scheduler_1, flags.scheduler_2, flags.scheduler_3];
    let names: Vec<&str> =
        names.into_iter().zip(set).filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
    names.join(",")
}

fn parse_scheduler_flags(text: &str) -> Result<Flags, String> {
    let mut flags = Flags::default();
    for name in text.split(',') {
        match name {
            "flag-1" | "sh-fallback" | "mh-fallback" => flags.scheduler_1 = true,
            "flag-2" | "sh-port" | "mh-port" => flags.scheduler_2 = true,
            "flag-3" => flags.scheduler_3 = true,
            other => return Err(format!("unknown flag of a scheduler `{other}`")),
        }
    }
    Ok(flags)
}
