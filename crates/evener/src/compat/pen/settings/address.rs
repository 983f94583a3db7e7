//! Addresses on pen's command line and in its commands: where the program listens, where requests are logged,
//! and names of hosts and services. Names are resolved once, when they are parsed.

use evener_core::Endpoint;
use evener_core::request_log::RequestLogFormat;
use evener_core::spec::{LogDestination, RequestLog};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Request log as an operator of pen names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PenLog {
    /// As written, for display.
    text: String,
    destination: LogDestination,
}

impl PenLog {
    /// Parses a file, or `host:port` of penlogd.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let destination = match text.rsplit_once(':').filter(|_| !text.starts_with('/')) {
            None => LogDestination::File(text.into()),
            Some((host, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                let port =
                    port.ok_or_else(|| format!("log {text}: write a file, or host:port of penlogd"))?;
                LogDestination::Udp(SocketAddr::new(resolve(host)?, port))
            }
        };
        Ok(Self { text: text.to_owned(), destination })
    }

    pub(super) fn request_log(&self) -> RequestLog {
        RequestLog {
            destination: self.destination.clone(),
            format: RequestLogFormat::Pen,
            sample: RequestLog::ALL,
        }
    }
}

impl fmt::Display for PenLog {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// Listen address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) struct Listen {
    /// As written, for display.
    text: String,
    address: ListenAddress,
}

/// A parsed listen address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) enum ListenAddress {
    Path(PathBuf),
    Ip(IpAddr, u16),
}

impl Listen {
    /// Parses `[host:]port` or a path.
    pub(in crate::compat::pen) fn parse(text: &str) -> Result<Self, String> {
        let address = if text.contains('/') {
            ListenAddress::Path(text.into())
        } else {
            let (host, port) = text.rsplit_once(':').unwrap_or(("0.0.0.0", text));
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let wrong = || {
                let prefix = if port == text { String::new() } else { format!("`{text}`: ") };
                format!(
                    "{prefix}`{port}` is not a port to listen on: write [HOST:]PORT (1 to 65535, or a name such as http), or a path with a `/`"
                )
            };
            let port = port_number(port).ok_or_else(wrong)?;
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            ListenAddress::Ip(resolve(host)?, port)
        };
        Ok(Self { text: text.to_owned(), address })
    }

    /// Returns the address to bind.
    pub(in crate::compat::pen) fn into_address(self) -> ListenAddress {
        self.address
    }

    pub(super) fn port(&self) -> Option<u16> {
        match &self.address {
            ListenAddress::Path(_) => None,
            ListenAddress::Ip(_, port) => Some(*port),
        }
    }

    pub(super) fn is_path(&self) -> bool {
        matches!(self.address, ListenAddress::Path(_))
    }

    /// Returns true if both listen to the same address, possibly written differently.
    pub(super) fn is_same_address(&self, other: &Self) -> bool {
        self.address == other.address
    }

    /// Returns true if connections to this server come back to the listen address.
    pub(super) fn receives(&self, server: IpAddr, server_port: u16) -> bool {
        let ListenAddress::Ip(address, port) = self.address else { return false };
        let covers_loopback = address.is_unspecified() && server.is_ipv4() == address.is_ipv4();
        server_port == port && (server == address || server.is_loopback() && covers_loopback)
    }

    /// Returns the listen addresses. `::` includes IPv4, as for pen where net.ipv6.bindv6only is 0.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        match &self.address {
            ListenAddress::Path(path) => vec![Endpoint::Unix(path.clone())],
            ListenAddress::Ip(address, port) => {
                let all = matches!(address, IpAddr::V6(address) if address.is_unspecified());
                let both = all.then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)));
                let single = SocketAddr::new(*address, *port);
                [Some(single), both].into_iter().flatten().map(Endpoint::Ip).collect()
            }
        }
    }

    pub(super) fn make_absolute(&mut self, directory: &Path) {
        if let ListenAddress::Path(path) = &mut self.address {
            *path = directory.join(&*path);
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
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
pub(in crate::compat::pen) fn port_number(text: &str) -> Option<u16> {
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
    fn listen_addresses_of_the_command_line_are_parsed() {
        let check = |text: &str, address: &str, port: u16| {
            let listen = Listen::parse(text).expect(text);
            assert_eq!(
                listen.address,
                ListenAddress::Ip(address.parse().expect("an address"), port),
                "{text}"
            );
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
