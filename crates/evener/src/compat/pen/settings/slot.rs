//! A slot in pen's table of servers: its settings, and the traffic of its server.

use super::address::{port_number, resolve};
use super::command::parse_list_number;
use crate::state::ServerView;
use evener_core::Endpoint;
use evener_core::acl::Acl;
use evener_core::limits::Limits;
use evener_core::spec::{ServerSpec, WEIGHT_MAX};
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A slot in the table of servers. Slots without address or port are unused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::compat::pen) struct Slot {
    address: Option<IpAddr>,
    port: u16,
    /// Soft limit. 0: no limit, and `hard` has no effect.
    max: u32,
    hard: u32,
    weight: u32,
    prio: i32,
    acl: usize,
}

impl Slot {
    /// Parses `host[:port[:soft[:hard[:weight[:prio]]]]]`, or with `[v6addr]`.
    pub(super) fn parse(text: &str, port: Option<u16>) -> Result<Self, String> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(inner) => {
                inner.split_once(']').ok_or_else(|| format!("server `{text}`: a `]` is missing"))?
            }
            None => text.split_once(':').map_or((text, ""), |(host, rest)| (host, rest)),
        };
        let mut words = rest.strip_prefix(':').unwrap_or(rest).split(':').filter(|_| !rest.is_empty());
        if text.contains("://") {
            return Err(format!("server `{text}`: write HOST:PORT, not a URL"));
        }
        let wrong = |name: &str, word: &str| format!("server `{text}`: `{word}` is not a {name}");
        let port = match words.next() {
            Some(word) => port_number(word).ok_or_else(|| wrong("port", word))?,
            None => port
                .ok_or_else(|| format!("server `{text}` has no port, and neither has the listen address"))?,
        };
        let mut slot = Self { address: Some(resolve(host)?), port, ..Self::default() };
        let mut limit = |name: &str| match words.next() {
            Some(word) => word.parse::<u32>().map_err(|_| wrong(name, word)),
            None => Ok(0),
        };
        (slot.max, slot.hard) = (limit("soft limit")?, limit("hard limit")?);
        slot.weight = limit("weight")?;
        if let Some(word) = words.next() {
            slot.prio = word.parse().map_err(|_| wrong("priority", word))?;
        }
        match words.next() {
            Some(word) => Err(wrong("part of a server: after the priority nothing follows", word)),
            None => Ok(slot),
        }
    }

    /// Sets a parameter of the command `server`. Returns false if there is no parameter of this name.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let wrong = || format!("server: {name} is not a number: `{value}`");
        let number = || value.parse::<u32>().map_err(|_| wrong());
        match name {
            "acl" => self.acl = parse_list_number(value)?,
            "address" => self.address = Some(resolve(value)?),
            "port" => {
                let port = port_number(value);
                self.port = port.ok_or_else(|| format!("server: `{value}` is not a port"))?;
            }
            "max" => self.max = number()?,
            "hard" => self.hard = number()?,
            "weight" => self.weight = number()?,
            "prio" => self.prio = value.parse().map_err(|_| wrong())?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn is_used(&self) -> bool {
        self.address.is_some() && self.port != 0
    }

    pub(super) fn priority(&self) -> i32 {
        self.prio
    }

    /// Returns the server; `None` if the slot has no address.
    pub(super) fn server_spec(&self, name: String) -> Option<ServerSpec> {
        let endpoint = Endpoint::Ip(SocketAddr::new(self.address?, self.port));
        // Without a soft limit pen ignores the hard limit, too; a hard limit below the soft one has no effect.
        let soft = (self.max > 0).then_some(self.max);
        let limits = Limits { soft, hard: soft.map(|soft| self.hard.max(soft)) };
        Some(ServerSpec { name: name.into(), limits, ..ServerSpec::new(endpoint) })
    }

    /// Returns the server of a numbered slot, with its access list.
    pub(super) fn numbered_spec(
        &self,
        number: usize,
        use_weight: bool,
        lists: &[Option<Arc<Acl>>],
    ) -> Option<ServerSpec> {
        let weight = if use_weight { self.weight.min(WEIGHT_MAX) } else { 1 };
        let server = self.server_spec(number.to_string())?;
        Some(ServerSpec { weight, acl: lists[self.acl].clone(), ..server })
    }

    /// Returns true if the server is the listen address of this program.
    pub(super) fn is_at(&self, listen: &super::address::Listen) -> bool {
        self.address.is_some_and(|address| listen.receives(address, self.port))
    }

    /// Formats the server as on the command line.
    pub(super) fn argument(&self) -> String {
        let address = match self.address {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            Some(address) => address.to_string(),
            None => String::new(),
        };
        format!("{address}:{}:{}:{}:{}:{}", self.port, self.max, self.hard, self.weight, self.prio)
    }

    /// Formats the command `server` that restores the slot.
    pub(super) fn command(&self, number: usize) -> String {
        let Self { address, port, max, hard, weight, prio, acl } = self;
        let mut text = format!("server {number} acl {acl}");
        if let Some(address) = address {
            let _ = write!(text, " address {address}");
        }
        if *port != 0 {
            let _ = write!(text, " port {port}");
        }
        let _ = write!(text, " max {max} hard {hard} weight {weight} prio {prio}");
        text
    }

    /// Formats a line of the response to `servers`.
    pub(in crate::compat::pen) fn status_line(&self, number: usize, traffic: &SlotTraffic) -> String {
        let Self { port, max, hard, weight, prio, .. } = self;
        let SlotTraffic { connections, sent, received, .. } = traffic;
        format!(
            "{number} addr {} port {port} conn {connections} max {max} hard {hard} weight {weight} prio {prio} sx {sent} \
             rx {received}\n",
            self.shown_address()
        )
    }

    /// Returns the cells of a row of the status page.
    pub(in crate::compat::pen) fn status_row(&self, number: usize, traffic: &SlotTraffic) -> Vec<String> {
        let cells: [&dyn Display; 11] = [
            &number,
            &self.shown_address(),
            &traffic.excluded_since,
            &self.port,
            &traffic.connections,
            &self.max,
            &self.hard,
            &traffic.sent,
            &traffic.received,
            &self.weight,
            &self.prio,
        ];
        cells.iter().map(ToString::to_string).collect()
    }

    /// Formats the address, which an unused slot does not have.
    fn shown_address(&self) -> String {
        self.address.map_or_else(|| "(unknown address family 0".into(), |address| address.to_string())
    }
}

/// Traffic of the server of a slot.
#[derive(Clone, Debug, Default)]
pub(in crate::compat::pen) struct SlotTraffic {
    /// Number of connections and flows.
    connections: u32,
    /// Bytes sent to the server.
    sent: u64,
    /// Bytes received from the server.
    received: u64,
    /// Time at which the server was excluded, in seconds since 1970; 0 if it is not excluded.
    excluded_since: u64,
}

impl SlotTraffic {
    pub(in crate::compat::pen) fn of(server: &ServerView) -> Self {
        Self {
            connections: server.active_and_warm(),
            sent: server.bytes_in(),
            received: server.bytes_out(),
            excluded_since: server.excluded_s().map_or(0, |excluded| epoch().saturating_sub(excluded)),
        }
    }
}

/// Returns the seconds since 1970.
fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_command_line_are_parsed() {
        let check = |text: &str, expected: (&str, u16, u32, u32, u32, i32)| {
            let slot = Slot::parse(text, Some(80)).expect(text);
            let parameters = (slot.port, slot.max, slot.hard, slot.weight, slot.prio);
            let (address, port, max, hard, weight, prio) = expected;
            assert_eq!(
                (slot.address, parameters),
                (address.parse().ok(), (port, max, hard, weight, prio)),
                "{text}"
            );
        };
        check("10.0.0.1", ("10.0.0.1", 80, 0, 0, 0, 0));
        check("10.0.0.1:8000:10", ("10.0.0.1", 8000, 10, 0, 0, 0));
        check("10.0.0.1:smtp:10:20:3:-4", ("10.0.0.1", 25, 10, 20, 3, -4));
        check("[2001:db8::1]", ("2001:db8::1", 80, 0, 0, 0, 0));
        check("[2001:db8::1]:81:1:2", ("2001:db8::1", 81, 1, 2, 0, 0));
    }

    #[test]
    fn invalid_servers_are_reported() {
        let error = |text: &str, port| Slot::parse(text, port).unwrap_err();
        assert!(error("10.0.0.1", None).contains("has no port"));
        assert!(error("10.0.0.1:x", None).contains("`x` is not a port"));
        assert!(error("10.0.0.1:80:many", None).contains("`many` is not a soft limit"));
        assert!(error("10.0.0.1:80:1:2:3:4:5", None).contains("nothing follows"));
        assert!(error("[::1", None).contains("missing"));
    }
}
