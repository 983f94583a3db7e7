//! Settings of pen, as options and commands set them. The configuration is built from them (`spec.rs`); the
//! state of clients and servers is not part of them.

use super::lists::{Countries, LISTS, List};
use evener_core::spec::RequestLog;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) udp: bool,
    /// `-X`: the control port may end the program.
    pub(super) exit_enabled: bool,
    /// `-r`: clients do not stay with their servers.
    pub(super) roundrobin: bool,
    pub(super) hash: bool,
    /// `-N`: servers are chosen by hash, and clients are not tracked.
    pub(super) forget: bool,
    pub(super) weight: bool,
    pub(super) prio: bool,
    pub(super) stubborn: bool,
    pub(super) http: bool,
    pub(super) dummy: bool,
    pub(super) ascii: bool,
    pub(super) abort_on_error: bool,
    pub(super) peek: bool,
    pub(super) keepalive: bool,
    pub(super) tcp_nodelay: bool,
    pub(super) transparent: bool,
    /// In seconds, as all times here.
    pub(super) blacklist: u32,
    pub(super) timeout: u32,
    /// 0: clients are tracked without a time limit.
    pub(super) tracking: u32,
    /// 0: idle connections stay open.
    pub(super) idle_timeout: u32,
    /// `None` until it is set. Then it only grows.
    pub(super) clients_max: Option<u32>,
    pub(super) conn_max: Option<u32>,
    pub(super) pending_max: u32,
    pub(super) idlers: u32,
    pub(super) backlog: u32,
    pub(super) debug: u32,
    pub(super) client_acl: usize,
    pub(super) control_acl: usize,
    pub(super) lists: [List; LISTS],
    /// Database of countries (MaxMind's format).
    pub(super) geoip: Option<PathBuf>,
    /// Countries that access lists use.
    pub(super) countries: Countries,
    pub(super) log: Option<Log>,
    pub(super) web_stats: Option<PathBuf>,
    pub(super) listen: Option<Listen>,
    pub(super) control: Option<String>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) servers: Vec<Slot>,
    pub(super) emergency: Option<Slot>,
    pub(super) abuse: Option<Slot>,
    pub(super) source: Option<IpAddr>,
    pub(super) fast_close: FastClose,
    pub(super) tls: Tls,
}

impl State {
    pub(super) const CLIENTS_MAX: u32 = 2048;
    pub(super) const CONN_MAX: u32 = 500;
    pub(super) const BACKLOG_MIN: u32 = 50;
    /// Highest number of a server.
    pub(super) const SERVER_MAX: usize = 9_999;

    pub(super) fn clients_max(&self) -> u32 {
        self.clients_max.unwrap_or(Self::CLIENTS_MAX)
    }

    pub(super) fn conn_max(&self) -> u32 {
        self.conn_max.unwrap_or(Self::CONN_MAX)
    }

    /// Creates the tables, which then only grow.
    pub(super) fn make_tables(&mut self) {
        self.clients_max.get_or_insert(Self::CLIENTS_MAX);
        self.conn_max.get_or_insert(Self::CONN_MAX);
    }

    /// Returns true if clients stay with their servers.
    pub(super) fn tracks(&self) -> bool {
        !self.roundrobin && !self.forget
    }

    /// Returns the slot with this number. The table grows as needed.
    pub(super) fn slot(&mut self, number: usize) -> &mut Slot {
        if self.servers.len() <= number {
            self.servers.resize_with(number + 1, Slot::default);
        }
        &mut self.servers[number]
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            udp: false,
            exit_enabled: false,
            roundrobin: false,
            hash: false,
            forget: false,
            weight: false,
            prio: false,
            stubborn: false,
            http: false,
            dummy: false,
            ascii: false,
            abort_on_error: false,
            peek: false,
            keepalive: false,
            tcp_nodelay: false,
            transparent: false,
            blacklist: 30,
            timeout: 3,
            tracking: 0,
            idle_timeout: 0,
            clients_max: None,
            conn_max: None,
            pending_max: 100,
            idlers: 0,
            backlog: 500,
            debug: 0,
            client_acl: 0,
            control_acl: 0,
            lists: Default::default(),
            geoip: usual_geoip(),
            countries: Countries::default(),
            log: None,
            web_stats: None,
            listen: None,
            control: None,
            config_file: None,
            servers: Vec::new(),
            emergency: None,
            abuse: None,
            source: None,
            fast_close: FastClose::Off,
            tls: Tls::default(),
        }
    }
}

/// Returns the database of countries that a Debian package installs.
fn usual_geoip() -> Option<PathBuf> {
    let usual = ["/var/lib/GeoIP/GeoLite2-Country.mmdb", "/usr/share/GeoIP/GeoLite2-Country.mmdb"];
    usual.iter().map(PathBuf::from).find(|path| path.exists())
}

/// `tcp_fastclose`, in pen's words: up is towards the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastClose {
    Off,
    Up,
    Down,
    Both,
}

impl FastClose {
    pub(super) const ALL: [(&'static str, Self); 4] =
        [("off", Self::Off), ("up", Self::Up), ("down", Self::Down), ("both", Self::Both)];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("off", |(name, _)| name)
    }
}

/// TLS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// `-E`
    pub(super) certificate: Option<PathBuf>,
    /// `-K`
    pub(super) key: Option<PathBuf>,
    /// `-G`
    pub(super) ca_file: Option<PathBuf>,
    /// `-A`
    pub(super) ca_directory: Option<PathBuf>,
    /// `-R`
    pub(super) required: bool,
    pub(super) sni_path: Option<PathBuf>,
    pub(super) ocsp: Option<PathBuf>,
    /// Options of `ssl_option`, as written.
    pub(super) options: Vec<String>,
    pub(super) ciphers: Option<String>,
}

impl Tls {
    /// Returns true if there are TLS settings without a certificate.
    pub(super) fn is_in_vain(&self) -> bool {
        let Self { key, ca_file, ca_directory, sni_path, .. } = self;
        let some = [key, ca_file, ca_directory, sni_path].into_iter().any(Option::is_some);
        self.certificate.is_none() && (some || self.required)
    }
}

/// A slot in the table of servers. Slots without address or port are unused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// 0: no limit, also for `hard`.
    pub(super) max: u32,
    pub(super) hard: u32,
    pub(super) weight: u32,
    pub(super) prio: i32,
    pub(super) acl: usize,
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
        let wrong = |what: &str, word: &str| format!("server `{text}`: `{word}` is not a {what}");
        let port = match words.next() {
            Some(word) => port_number(word).ok_or_else(|| wrong("port", word))?,
            None => port
                .ok_or_else(|| format!("server `{text}` has no port, and neither has the listen address"))?,
        };
        let mut slot = Self { address: Some(resolve(host)?), port, ..Self::default() };
        let mut limit = |what: &str| match words.next() {
            Some(word) => word.parse::<u32>().map_err(|_| wrong(what, word)),
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

    pub(super) fn is_used(&self) -> bool {
        self.address.is_some() && self.port != 0
    }
}

/// Destination of request logs. A host name is resolved once, when it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    /// As written, for display.
    pub(super) text: String,
    pub(super) to: RequestLog,
}

impl Log {
    /// Parses a file, or `host:port` of penlogd.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let to = match text.rsplit_once(':').filter(|_| !text.starts_with('/')) {
            None => RequestLog::File(text.into()),
            Some((host, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                let port =
                    port.ok_or_else(|| format!("log {text}: write a file, or host:port of penlogd"))?;
                RequestLog::Udp(SocketAddr::new(resolve(host)?, port))
            }
        };
        Ok(Self { text: text.to_owned(), to })
    }
}

/// Listen address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    /// As written, for display.
    pub(super) text: String,
    pub(super) to: ListenTo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListenTo {
    Path(PathBuf),
    Ip(IpAddr, u16),
}

impl Listen {
    /// Parses `[host:]port` or a path.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let to = if text.contains('/') {
            ListenTo::Path(text.into())
        } else {
            let (host, port) = text.rsplit_once(':').unwrap_or(("0.0.0.0", text));
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let wrong = || {
                let whole = if port == text { String::new() } else { format!("`{text}`: ") };
                format!(
                    "{whole}`{port}` is not a port to listen on: write [HOST:]PORT (1 to 65535, or a name such as http), or a path with a `/`"
                )
            };
            let port = port_number(port).ok_or_else(wrong)?;
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            ListenTo::Ip(resolve(host)?, port)
        };
        Ok(Self { text: text.to_owned(), to })
    }

    pub(super) fn port(&self) -> Option<u16> {
        match &self.to {
            ListenTo::Path(_) => None,
            ListenTo::Ip(_, port) => Some(*port),
        }
    }
}

/// Resolves an address or a name, and returns the first address. Names are resolved once: pen does not follow
/// changes.
pub(super) fn resolve(host: &str) -> Result<IpAddr, String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address);
    }
    let found = (host, 0).to_socket_addrs().map_err(|error| format!("`{host}` does not resolve: {error}"))?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("`{host}` has no address"))
}

/// Parses a port, or the name of a service.
pub(super) fn port_number(text: &str) -> Option<u16> {
    match text.parse::<u16>() {
        Ok(number) => Some(number).filter(|number| *number > 0),
        Err(_) => service_port(text),
    }
}

/// Names of services in pen's manual, for systems without /etc/services.
const SERVICES: [(&str, u16); 9] = [
    ("domain", 53),
    ("ftp", 21),
    ("http", 80),
    ("https", 443),
    ("imap2", 143),
    ("ldap", 389),
    ("pop3", 110),
    ("smtp", 25),
    ("telnet", 23),
];

fn service_port(name: &str) -> Option<u16> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (service, port) = (words.next()?, words.next()?);
        (service == name || words.any(|alias| alias == name)).then(|| port.split('/').next()?.parse().ok())?
    };
    let listed = std::fs::read_to_string(Path::new("/etc/services")).unwrap_or_default();
    let known = || SERVICES.iter().find(|(known, _)| *known == name).map(|(_, port)| *port);
    listed.lines().find_map(of_line).or_else(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_command_line_are_parsed() {
        let check = |text: &str, expected: (&str, u16, u32, u32, u32, i32)| {
            let slot = Slot::parse(text, Some(80)).expect(text);
            let seen = (slot.port, slot.max, slot.hard, slot.weight, slot.prio);
            let (address, port, max, hard, weight, prio) = expected;
            assert_eq!(
                (slot.address, seen),
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

    #[test]
    fn listen_addresses_of_the_command_line_are_parsed() {
        let check = |text: &str, address: &str, port: u16| {
            let listen = Listen::parse(text).expect(text);
            assert_eq!(listen.to, ListenTo::Ip(address.parse().expect("an address"), port), "{text}");
        };
        check("80", "0.0.0.0", 80);
        check("smtp", "0.0.0.0", 25);
        check("127.0.0.1:81", "127.0.0.1", 81);
        check(":::53", "::", 53);
        check("::1:10080", "::1", 10080);
        check("[::1]:80", "::1", 80);
        assert_eq!(Listen::parse("/run/x").expect("a path").port(), None);
        assert!(Listen::parse("nonsense").is_err());
    }
}
