//! Virtual servers and their real servers.

use super::check::KINDS;
use super::{Reader, endpoint, note};
use crate::compat::lvs::syntax::Statement;
use crate::compat::lvs::{Hooks, RealServer, VirtualServer};
use crate::config::Location;
use evener_core::spec::IpvsScheduler;

/// Statements of a virtual server that are not taken over.
const SKIPPED: &[(&str, &str)] = &[
    ("alpha", "servers are up until a check fails"),
    ("omega", "see `notify`"),
    ("ha_suspend", "start and stop evener with VRRP's notify scripts"),
    ("sorry_server_inhibit", "the sorry server is in the table only while it is needed"),
    ("sorry_server_lvs_method", "all servers of a service have one method"),
    ("smtp_alert", "follow `evener events`"),
    ("snmp_name", "`evener status --json` has the names"),
    ("hashed", "the kernel ignores it"),
    ("flag-3", "no scheduler of the kernel uses it"),
    ("ip_family", "the family follows from the addresses"),
    ("virthost", "write host in the check"),
    ("virtualhost", "write host in the check"),
    ("log_all_failures", "each failure of a check is counted"),
    ("notify_down_timeout", "write timeout in notify"),
    ("notify_up_timeout", "write timeout in notify"),
    ("quorum_up_timeout", "write timeout in notify"),
    ("quorum_down_timeout", "write timeout in notify"),
];

/// Further statements of a virtual server, for hints.
const TAKEN: &[&str] = &[
    "delay_loop",
    "lb_algo",
    "lvs_sched",
    "lb_kind",
    "lvs_method",
    "protocol",
    "persistence_timeout",
    "persistence_granularity",
    "persistence_engine",
    "ops",
    "sh-port",
    "sh-fallback",
    "mh-port",
    "mh-fallback",
    "flag-1",
    "flag-2",
    "connect_timeout",
    "retry",
    "delay_before_retry",
    "warmup",
    "weight",
    "sorry_server",
    "quorum",
    "quorum_up",
    "quorum_down",
    "hysteresis",
    "inhibit_on_failure",
    "real_server",
];

/// Further statements of a real server, for hints.
const TAKEN_BY_SERVER: &[&str] = &[
    "weight",
    "uthreshold",
    "lthreshold",
    "inhibit_on_failure",
    "notify_up",
    "notify_down",
    "lvs_method",
    "connect_timeout",
    "retry",
    "delay_before_retry",
    "delay_loop",
];

impl Reader {
    /// Reads a virtual server.
    pub(super) fn virtual_server(&mut self, statement: &Statement) -> Option<VirtualServer> {
        let (name, listen, mark) = self.listen(statement)?;
        let mut server = VirtualServer::new(statement.location().clone(), name, listen, mark);
        let mut weight = None;
        for line in statement.block() {
            match line.keyword() {
                "delay_loop" => server.every = self.milliseconds(line).unwrap_or(server.every),
                "connect_timeout" => server.timeout = self.milliseconds(line).unwrap_or(server.timeout),
                "retry" => server.retries = self.number(line),
                "delay_before_retry" => server.retry_pause = self.milliseconds(line),
                "warmup" => server.warm_up = self.milliseconds(line),
                "weight" => weight = self.number(line),
                "lb_algo" | "lvs_sched" => self.scheduler(line, &mut server),
                "lb_kind" | "lvs_method" => self.method(line, &mut server),
                "protocol" => self.protocol(line, &mut server),
                "ops" => server.is_one_packet = true,
                "persistence_timeout" => {
                    let seconds = if line.arguments().is_empty() { Some(360) } else { self.number(line) };
                    server.persistence.get_or_insert_default().seconds = seconds;
                }
                "persistence_granularity" => match line.arguments() {
                    [text] if prefix_of(text).is_some() => {
                        server.persistence.get_or_insert_default().prefix = prefix_of(text);
                    }
                    _ => self.wrong(line, "a netmask such as 255.255.255.0, or the length of a prefix"),
                },
                "persistence_engine" => match line.arguments() {
                    [name] if name == "sip" => server.persistence.get_or_insert_default().is_sip = true,
                    _ => self.wrong(line, "sip"),
                },
                "sh-port" | "mh-port" | "flag-2" => server.scheduler_flags.push("port"),
                "sh-fallback" | "mh-fallback" | "flag-1" => server.scheduler_flags.push("fallback"),
                "quorum_up" => self.hook(line, "quorum_up", &mut server.hooks),
                "quorum_down" => self.hook(line, "quorum_down", &mut server.hooks),
                "quorum" => server.quorum = self.number(line),
                "hysteresis" => server.hysteresis = self.number(line),
                "inhibit_on_failure" => server.inhibits = true,
                "sorry_server" => server.sorry = self.address(line),
                "real_server" => server.servers.extend(self.real_server(line, &server)),
                word => match SKIPPED.iter().find(|(skipped, _)| *skipped == word) {
                    Some((_, instead)) => self.notes.push(note(line, instead)),
                    None => {
                        let known = SKIPPED.iter().map(|(word, _)| *word).chain(TAKEN.iter().copied());
                        self.unknown(line, known, "virtual_server");
                    }
                },
            }
        }
        for real in &mut server.servers {
            real.weight = real.weight.or(weight);
        }
        self.share_hooks(&mut server);
        server.inhibits |= server.servers.iter().any(|real| real.inhibits);
        if server.servers.is_empty()
            && server.sorry.is_none()
            && statement.block().iter().all(|line| line.keyword() != "real_server")
        {
            self.problems
                .push(statement.problem("the virtual server has no real_server: add one, or remove it"));
        }
        Some(server)
    }

    /// Returns the name, the addresses and the mark of a virtual server.
    fn listen(&mut self, statement: &Statement) -> Option<(String, Vec<String>, Option<u32>)> {
        match statement.arguments() {
            [word, name] if word == "group" => {
                let Some(group) = self.groups.get(name).cloned() else {
                    let message = format!("there is no virtual_server_group {name}");
                    self.problems.push(statement.problem(message));
                    return None;
                };
                let mut marks = group.marks.iter().copied();
                let mark = marks.next();
                if mark.is_some() && (marks.next().is_some() || !group.addresses.is_empty()) {
                    let message = "a service has addresses or one firewall mark: split the group";
                    self.problems.push(statement.problem(message));
                }
                Some((name.clone(), group.addresses, mark))
            }
            [word, mark] if word == "fwmark" => match mark.parse::<u32>() {
                Ok(number) if number > 0 => Some((format!("fwmark {number}"), Vec::new(), Some(number))),
                _ => {
                    self.wrong(statement, "a number of 1 and up after fwmark");
                    None
                }
            },
            _ => self.address(statement).map(|address| (address.clone(), vec![address], None)),
        }
    }

    /// Returns the address and the port after a word.
    fn address(&mut self, statement: &Statement) -> Option<String> {
        let found = match statement.arguments() {
            [address] => endpoint(address, None),
            [address, port] => endpoint(address, Some(port)),
            _ => None,
        };
        if found.is_none() {
            self.wrong(statement, "an IP address and a port, such as 192.0.2.1 80");
        }
        found
    }

    fn scheduler(&mut self, line: &Statement, server: &mut VirtualServer) {
        let [name, flags @ ..] = line.arguments() else {
            return self.wrong(line, "a scheduler such as wlc");
        };
        match IpvsScheduler::named(name) {
            Some(scheduler) => server.scheduler = scheduler.name(),
            None => {
                let known = crate::config::nearest(name, IpvsScheduler::NAMES.into_iter());
                self.problems.push(line.problem(format!("the kernel has no scheduler `{name}`{known}")));
            }
        }
        let flags = flags.iter().flat_map(|flags| flags.split(['(', ')', ',']));
        for flag in flags.filter(|flag| !flag.is_empty()) {
            match flag {
                "sh-port" | "mh-port" | "flag-2" => server.scheduler_flags.push("port"),
                "sh-fallback" | "mh-fallback" | "flag-1" => server.scheduler_flags.push("fallback"),
                _ => self.wrong(line, "a scheduler and its flags"),
            }
        }
    }

    fn method(&mut self, line: &Statement, server: &mut VirtualServer) {
        let words: Vec<&str> = line.arguments().iter().map(String::as_str).collect();
        let (forward, port) = match &words[..] {
            ["NAT"] => ("nat", None),
            ["DR"] => ("direct", None),
            ["TUN"] | ["TUN", "type", "ipip", ..] => ("ipip", None),
            ["TUN", "type", "gre", ..] => ("gre", None),
            ["TUN", "type", "gue", "port", port, ..] if port.parse::<u16>().is_ok() => {
                ("gue", port.parse().ok())
            }
            _ => return self.wrong(line, "NAT, DR or TUN"),
        };
        (server.forward, server.tunnel_port) = (forward, port);
    }

    fn protocol(&mut self, line: &Statement, server: &mut VirtualServer) {
        server.protocol = match line.arguments() {
            [name] if name == "TCP" => "tcp",
            [name] if name == "UDP" => "udp",
            [name] if name == "SCTP" => "sctp",
            _ => return self.wrong(line, "TCP, UDP or SCTP"),
        };
    }

    fn real_server(&mut self, statement: &Statement, of: &VirtualServer) -> Option<RealServer> {
        let address = self.address(statement);
        let line = Some(statement.location().line());
        let mut server = RealServer {
            line,
            address: String::new(),
            weight: None,
            upper: None,
            lower: None,
            inhibits: false,
            hooks: Hooks::new(),
            check: None,
        };
        for line in statement.block() {
            match line.keyword() {
                "weight" => server.weight = self.number(line),
                "inhibit_on_failure" => server.inhibits = true,
                "notify_up" => self.hook(line, "up", &mut server.hooks),
                "notify_down" => self.hook(line, "down", &mut server.hooks),
                "lthreshold" => server.lower = self.number(line),
                "uthreshold" => server.upper = self.number(line),
                "lvs_method" | "lb_kind" => {
                    let mut described =
                        VirtualServer::new(of.location.clone(), String::new(), Vec::new(), None);
                    self.method(line, &mut described);
                    if described.forward != of.forward {
                        let message = "all servers of a service have one method: write two virtual servers";
                        self.problems.push(line.problem(message));
                    }
                }
                "retry" | "delay_before_retry" | "connect_timeout" | "delay_loop" | "warmup" => {
                    self.notes.push(note(line, "write it in the check"));
                }
                word if KINDS.contains(&word) => {
                    let check = self.check(line);
                    if server.check.is_some() && check.is_some() {
                        self.notes.push(note(line, "a server has one check, the first"));
                    } else {
                        server.check = server.check.or(check);
                    }
                }
                word => match SKIPPED.iter().find(|(skipped, _)| *skipped == word) {
                    Some((_, instead)) => self.notes.push(note(line, instead)),
                    None => {
                        let skipped = SKIPPED.iter().map(|(word, _)| *word);
                        let known = TAKEN_BY_SERVER.iter().copied().chain(KINDS).chain(skipped);
                        self.unknown(line, known, "real_server");
                    }
                },
            }
        }
        server.address = address?;
        Some(server)
    }
}

impl VirtualServer {
    /// Creates a virtual server with the defaults of keepalived.
    pub(in crate::compat::lvs) fn new(
        location: Location,
        name: String,
        listen: Vec<String>,
        mark: Option<u32>,
    ) -> Self {
        Self {
            location,
            name,
            listen,
            mark,
            protocol: "tcp",
            scheduler: "wlc",
            scheduler_flags: Vec::new(),
            forward: "nat",
            tunnel_port: None,
            is_one_packet: false,
            persistence: None,
            every: 60_000,
            timeout: 5000,
            retries: None,
            retry_pause: None,
            warm_up: None,
            servers: Vec::new(),
            sorry: None,
            quorum: None,
            hysteresis: None,
            inhibits: false,
            hooks: Hooks::new(),
            has_default_check: false,
        }
    }
}

/// Returns the length of a prefix that is given as a number or as a netmask.
fn prefix_of(text: &str) -> Option<u8> {
    if let Ok(mask) = text.parse::<std::net::Ipv4Addr>() {
        let bits = u32::from(mask);
        let length = bits.leading_ones();
        return (bits.count_ones() == length && length > 0).then_some(length as u8);
    }
    text.parse::<u8>().ok().filter(|length| (1..=128).contains(length))
}

/// Returns the statements that virtual servers and real servers can have.
#[cfg(test)]
pub(super) fn keywords() -> impl Iterator<Item = &'static str> {
    SKIPPED.iter().map(|(word, _)| *word).chain(TAKEN.iter().copied()).chain(TAKEN_BY_SERVER.iter().copied())
}

/// Returns the statements that are not taken over.
#[cfg(test)]
pub(super) fn skipped() -> impl Iterator<Item = &'static str> {
    SKIPPED.iter().map(|(word, _)| *word)
}
