//! Addresses in textual form ([`Endpoint`]), and resolved addresses to which a plane connects ([`Target`]).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Maximum length of the path of a unix socket: `sun_path` holds 108 bytes with the terminator (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// An address in textual form: `10.0.0.1:80`, `[2001:db8::1]:80`, `[fe80::1%2]:80` (with the number of an
/// interface), `www.example:80`, `/run/app.sock` or `unix:app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// An IP address with its port. The port of a server may be 0 in the XDP plane: the port to which the client
    /// sends.
    Ip(SocketAddr),
    /// A host name, which has to be resolved before use.
    Host {
        /// The name, as written.
        name: String,
        /// The port.
        port: u16,
    },
    /// The path of a unix stream socket, or `@` and the name of an abstract one.
    Unix(PathBuf),
}

/// An address that a plane can connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// An IP address with its port.
    Ip(SocketAddr),
    /// The path of a unix stream socket.
    Unix(PathBuf),
}

/// Reason why a text is not an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is empty.
    #[error("an address is empty: write host:port or the path of a unix socket")]
    Empty,
    /// The text is only a port.
    #[error("`{0}` has no host: write 0.0.0.0:{port} for all IPv4 addresses, [::]:{port} for all IPv6 addresses, or both", port = .0.trim_start_matches(['*', ':']))]
    NoHost(String),
    /// The text is a URL.
    #[error("`{0}` is a URL; write only its host and port, such as 10.0.0.1:80")]
    Url(String),
    /// The host has no port.
    #[error("`{0}` has no port: write it as {0}:80")]
    NoPort(String),
    /// The port is not a number between 1 and 65535.
    #[error("port must be between 1 and 65535, got `{port}` in `{text}`")]
    Port {
        /// The whole text.
        text: String,
        /// The part after the last colon.
        port: String,
    },
    /// An IPv6 address without brackets, or brackets around something else.
    #[error("`{0}` is not an address: write an IPv6 address as [2001:db8::1]:80")]
    Brackets(String),
    /// A link-local address without an interface. The same address may belong to a different machine on each
    /// interface (RFC 4007, section 6).
    #[error("`{0}` is a link-local address without an interface: write it as [fe80::1%eth0]:80")]
    NoInterface(String),
    /// An interface after an address that is not link-local.
    #[error("`{0}` names an interface; only a link-local address (fe80::/10) does")]
    NotLinkLocal(String),
    /// The name or number after `%` is not a known interface.
    #[error("`{text}`: this machine has no interface `{interface}` (`ip link` lists them)")]
    Interface {
        /// The whole text.
        text: String,
        /// The part after the percent sign.
        interface: String,
    },
    /// The host is neither an IPv4 address nor a host name (RFC 1123, section 2.1).
    #[error("`{0}` is neither an IPv4 address nor a host name")]
    Host(String),
    /// The path of a unix socket has a null byte.
    #[error("the socket path `{0}` has a null byte")]
    NullByte(String),
    /// The path does not fit into a socket address.
    #[error("the socket path `{0}` is longer than {UNIX_PATH_BYTES_MAX} bytes")]
    PathLength(String),
}

impl FromStr for Endpoint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = unix_path(text) {
            return if path.contains('\0') {
                Err(AddressError::NullByte(path.replace('\0', "\\0")))
            } else if path.is_empty() || path == "@" {
                Err(AddressError::Empty)
            } else if path.len() > UNIX_PATH_BYTES_MAX {
                Err(AddressError::PathLength(path.into()))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.contains("://") {
            return Err(AddressError::Url(text.into()));
        }
        if text.strip_prefix(['*', ':']).is_some() || text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AddressError::NoHost(text.into()));
        }
        if let Some(rest) = text.strip_prefix('[') {
            return bracketed(text, rest);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::NoPort(text.into()))?;
        if host.contains([':', ']']) {
            return Err(AddressError::Brackets(text.into()));
        }
        named(text, host, parse_port(text, port)?)
    }
}

fn unix_path(text: &str) -> Option<&str> {
    text.strip_prefix("unix:").or_else(|| text.starts_with(['/', '.', '@']).then_some(text))
}

/// Returns the name in the path `@name` of an abstract unix socket (unix(7)), which has no file; `None` for
/// other paths. A file whose name begins with `@` is written `unix:./@name`.
#[must_use]
pub fn abstract_name(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix('@')
}

fn bracketed(text: &str, rest: &str) -> Result<Endpoint, AddressError> {
    let wrong = || AddressError::Brackets(text.into());
    let (host, tail) = rest.split_once(']').ok_or_else(wrong)?;
    let (host, interface) = host.split_once('%').map_or((host, None), |(host, after)| (host, Some(after)));
    let address: Ipv6Addr = host.parse().map_err(|_| wrong())?;
    let scope = match interface {
        None if address.is_unicast_link_local() => return Err(AddressError::NoInterface(text.into())),
        None => 0,
        Some(_) if !address.is_unicast_link_local() => return Err(AddressError::NotLinkLocal(text.into())),
        Some(interface) => parse_interface(text, interface)?,
    };
    let port = tail.strip_prefix(':').ok_or_else(|| AddressError::NoPort(text.into()))?;
    Ok(Endpoint::Ip(SocketAddrV6::new(address, parse_port(text, port)?, 0, scope).into()))
}

fn parse_interface(text: &str, interface: &str) -> Result<u32, AddressError> {
    let digits = interface.bytes().all(|byte| byte.is_ascii_digit());
    let number = interface.parse().ok().filter(|&number: &u32| digits && number > 0);
    number.ok_or_else(|| AddressError::Interface { text: text.into(), interface: interface.into() })
}

fn parse_port(text: &str, port: &str) -> Result<u16, AddressError> {
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|&number: &u16| digits && number > 0);
    number.ok_or_else(|| AddressError::Port { text: text.into(), port: port.into() })
}

fn named(text: &str, host: &str, port: u16) -> Result<Endpoint, AddressError> {
    if let Ok(address) = host.parse::<std::net::Ipv4Addr>() {
        return Ok(Endpoint::Ip(SocketAddr::new(IpAddr::V4(address), port)));
    }
    if is_host_name(host) {
        return Ok(Endpoint::Host { name: host.into(), port });
    }
    Err(AddressError::Host(if host.is_empty() { text.into() } else { host.into() }))
}

/// Returns true for a host name (RFC 1123, section 2.1). Underscores are accepted because they are in use. A
/// name of digits and dots alone is refused as a mistyped address.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let numeric = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    name.len() <= 253 && !numeric && name.split('.').all(label)
}

impl Endpoint {
    /// Parses a listen address. An IP address may have the port 0, so that the system chooses a port.
    ///
    /// # Errors
    /// The text is not an address.
    pub fn parse_listen(text: &str) -> Result<Self, AddressError> {
        match text.strip_suffix(":0").map(|host| format!("{host}:1").parse()) {
            Some(Ok(Self::Ip(mut address))) => {
                address.set_port(0);
                Ok(Self::Ip(address))
            }
            _ => text.parse(),
        }
    }

    /// Parses the address of a server without a port: an IP address or a host name. Its port is 0: the port to which
    /// the client sends.
    ///
    /// ```
    /// use evener_core::Endpoint;
    ///
    /// for text in ["10.0.0.4", "2001:db8::4", "app.example"] {
    ///     assert_eq!(Endpoint::parse_without_port(text).map(|address| address.server_text()), Some(text.into()));
    /// }
    /// assert_eq!(Endpoint::parse_without_port("10.0.0.4:80"), None);
    /// ```
    #[must_use]
    pub fn parse_without_port(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        match (bare, text.parse::<IpAddr>()) {
            (Some(bare), _) => {
                let ip = bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6).filter(|ip| !is_link_local(ip));
                ip.map(|ip| Self::Ip(SocketAddr::new(ip, 0)))
            }
            (None, Ok(ip)) => Some(Self::Ip(SocketAddr::new(ip, 0))).filter(|_| !is_link_local(&ip)),
            (None, Err(_)) if is_host_name(text) && unix_path(text).is_none() => {
                Some(Self::Host { name: text.into(), port: 0 })
            }
            (None, Err(_)) => None,
        }
    }

    /// Returns the address of a server as a text, without the port if it has none.
    #[must_use]
    pub fn server_text(&self) -> String {
        match self {
            Self::Host { name, port: 0 } => name.clone(),
            _ => self.target().map_or_else(|| self.to_string(), |target| target.to_string()),
        }
    }

    /// Returns true if the address of a server has no port.
    #[must_use]
    pub fn lacks_port(&self) -> bool {
        match self {
            Self::Ip(address) => address.port() == 0,
            Self::Host { port, .. } => *port == 0,
            Self::Unix(_) => false,
        }
    }

    /// Returns the host name, if the address has to be resolved.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Host { name, .. } => Some(name),
            Self::Ip(_) | Self::Unix(_) => None,
        }
    }

    /// Returns the address, unless it has to be resolved first.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        match self {
            Self::Ip(address) => Some(Target::Ip(*address)),
            Self::Unix(path) => Some(Target::Unix(path.clone())),
            Self::Host { .. } => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(out),
            Self::Host { name, port } => write!(out, "{name}:{port}"),
            Self::Unix(path) => fmt_path(path, out),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The address of a server without a port.
            Self::Ip(address) if address.port() == 0 => address.ip().fmt(out),
            Self::Ip(address) => address.fmt(out),
            Self::Unix(path) => fmt_path(path, out),
        }
    }
}

fn fmt_path(path: &Path, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = path.to_string_lossy();
    let prefix = if text.starts_with(['/', '.']) { "" } else { "unix:" };
    write!(out, "{prefix}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &str) {
        let seen = match text.parse::<Endpoint>() {
            Ok(endpoint) => format!("{endpoint}"),
            Err(error) => format!("! {error}"),
        };
        assert!(seen.contains(expected), "{text}: {seen}");
    }

    #[test]
    fn addresses_in_all_forms_are_parsed_or_refused_with_a_reason() {
        check("10.0.0.1:80", "10.0.0.1:80");
        check("[2001:db8::1]:53", "[2001:db8::1]:53");
        check("[fe80::1%3]:53", "[fe80::1%3]:53");
        check("[febf::1%03]:53", "[febf::1%3]:53");
        check("www.example:8080", "www.example:8080");
        check("/run/app.sock", "/run/app.sock");
        check("unix:app.sock", "unix:app.sock");
        check("unix:@app", "unix:@app");
        check("@app", "unix:@app");
        check("unix:@", "! an address is empty");
        check("unix:./@app", "./@app");
        check("./app.sock", "./app.sock");
        check("", "! an address is empty");
        check("unix:", "! an address is empty");
        check("10.0.0.1", "has no port: write it as 10.0.0.1:80");
        check("10.0.0.1:99999", "port must be between 1 and 65535, got `99999` in `10.0.0.1:99999`");
        check("10.0.0.1:0", "got `0` in");
        check("10.0.0.1:+5", "got `+5` in");
        check("2001:db8::1:80", "write an IPv6 address as");
        check("[10.0.0.1]:80", "write an IPv6 address as");
        check("[fe80::1]:80", "without an interface: write it as [fe80::1%eth0]:80");
        check("[fe80::1%eth0]:80", "no interface `eth0`");
        check("[fe80::1%]:80", "no interface ``");
        check("[fe80::1%0]:80", "no interface `0`");
        check("[fe80::1%+3]:80", "no interface `+3`");
        check("[fe80::1%4294967296]:80", "no interface `4294967296`");
        check("[2001:db8::1%3]:80", "only a link-local address");
        check("[::1%1]:80", "only a link-local address");
        check("[10.0.0.1%1]:80", "write an IPv6 address as");
        check("10.0.0.256:80", "neither an IPv4 address nor a host name");
        check("a b:80", "neither an IPv4 address nor a host name");
        check(":80", "has no host: write 0.0.0.0:80 for all IPv4 addresses, [::]:80 for");
        check("*:80", "has no host: write 0.0.0.0:80");
        check("8080", "has no host: write 0.0.0.0:8080");
        check("http://10.0.0.1:80", "is a URL");
        check("/run/x\0y", "the socket path `/run/x\\0y` has a null byte");
        check(&format!("/{}", "x".repeat(107)), "longer than 107 bytes");
    }

    #[test]
    fn only_an_ip_address_to_listen_on_may_have_the_port_0() {
        for text in ["10.0.0.1:0", "0.0.0.0:0", "[::]:0", "[fe80::1%3]:0", "10.0.0.1:80", "/run/app:0"] {
            assert_eq!(Endpoint::parse_listen(text).map(|address| address.to_string()), Ok(text.into()));
        }
        for text in ["www.example:0", ":0", "0", "[10.0.0.1]:0", "10.0.0.1:00", ""] {
            assert_eq!(Endpoint::parse_listen(text), text.parse(), "{text}");
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_address_is_printed_in_a_form_that_parses_to_it(text in "[\\[\\]a-z0-9:./_-]{0,40}|\\[fe[0-9a-f]{2}::[0-9%]{0,5}\\]:[0-9]{1,5}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
