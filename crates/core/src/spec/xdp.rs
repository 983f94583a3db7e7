//! Settings of the XDP plane, and of services in it.

use crate::acl::Acl;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Settings of the XDP plane as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct XdpSpec {
    /// Maximum number of associations of clients, for each address family that services listen on.
    pub flows: u32,
    /// Mode in which the program is attached to interfaces.
    pub mode: XdpMode,
    /// Directory in a BPF file system that keeps the program and its maps while no process runs.
    pub pin: PathBuf,
    /// Decisions about packets are reported up to this level.
    pub events: XdpEventLevel,
    /// Maximum number of reported decisions a second, for each core.
    pub events_per_second: u32,
    /// Addresses without a host, for which the plane responds to delay scanners; `None` for none.
    pub tarpit: Option<Arc<Acl>>,
    /// Interfaces with addresses of the tarpit, besides the interfaces of services.
    pub tarpit_interfaces: Vec<Arc<str>>,
}

impl XdpSpec {
    /// Default of [`XdpSpec::flows`].
    pub const FLOWS: u32 = 1_048_576;
    /// Maximum of [`XdpSpec::flows`]; the kernel takes about 80 (IPv4) or 96 (IPv6) bytes for each.
    pub const FLOWS_MAX: u32 = 64 << 20;
    /// Default of [`XdpSpec::pin`].
    pub const PIN: &str = "/sys/fs/bpf/evener";
    /// Default of [`XdpSpec::events_per_second`].
    pub const EVENTS_PER_SECOND: u32 = 1000;
}

impl Default for XdpSpec {
    fn default() -> Self {
        Self {
            flows: Self::FLOWS,
            mode: XdpMode::Auto,
            pin: Self::PIN.into(),
            events: XdpEventLevel::Error,
            events_per_second: Self::EVENTS_PER_SECOND,
            tarpit: None,
            tarpit_interfaces: Vec::new(),
        }
    }
}

/// Mode of an XDP program at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Native if the driver can, else generic.
    Auto,
    /// In the driver of the interface.
    Native,
    /// In the network stack.
    Generic,
}

impl XdpMode {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Native, Self::Generic];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Levels of reported decisions, as sbulb has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpEventLevel {
    /// The plane cannot go on.
    Critical,
    /// No server.
    Error,
    /// Malformed packets.
    Warning,
    /// Refused packets of servers.
    Info,
    /// New and reused associations.
    Debug,
    /// Packets for other destinations.
    Trace,
}

impl XdpEventLevel {
    /// All values.
    pub const ALL: [Self; 6] =
        [Self::Critical, Self::Error, Self::Warning, Self::Info, Self::Debug, Self::Trace];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Settings of a service in the XDP plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpServiceSpec {
    /// Interfaces to which the program is attached for the service.
    pub interfaces: Vec<Arc<str>>,
    /// Way to the servers.
    pub forward: Forward,
    /// Next hop of packets.
    pub next_hop: NextHop,
    /// Time without packets after which an association ends; `None` for never.
    pub idle_timeout: Option<Duration>,
    /// Limit of packets of each source prefix.
    pub rate: Option<SourceRate>,
    /// TCP: number of SYNs a second, for each core, above which clients have to prove their address.
    pub syn_cookies: Option<u32>,
    /// UDP: length of the server IDs in connection IDs of QUIC, in bytes (draft-ietf-quic-load-balancers).
    pub quic_id_length: Option<u8>,
}

impl XdpServiceSpec {
    /// Maximum number of interfaces of a service.
    pub const INTERFACES_MAX: usize = 16;
    /// Maximum length of the name of an interface: `IFNAMSIZ` without the terminator (netdevice(7)).
    pub const INTERFACE_BYTES_MAX: usize = 15;
    /// Maximum number of ports of a service.
    pub const PORTS_MAX: usize = 1024;
}

impl Default for XdpServiceSpec {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            forward: Forward::Nat,
            next_hop: NextHop::Route,
            idle_timeout: None,
            rate: None,
            syn_cookies: None,
            quic_id_length: None,
        }
    }
}

/// Way of packets to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The destination address is replaced; responses pass the balancer, too.
    Nat,
    /// Only the destination MAC address is replaced: the servers have the virtual address and respond directly.
    Direct,
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip(TunnelSource),
    /// Generic UDP Encapsulation (draft-ietf-intarea-gue, variant 1) to this port.
    Gue(TunnelSource, u16),
}

impl Forward {
    /// Names in the configuration.
    pub const NAMES: [&'static str; 4] = ["nat", "direct", "ipip", "gue"];
    /// Default port of Generic UDP Encapsulation, which IANA assigned.
    pub const GUE_PORT: u16 = 6080;

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => Self::NAMES[0],
            Self::Direct => Self::NAMES[1],
            Self::Ipip(_) => Self::NAMES[2],
            Self::Gue(..) => Self::NAMES[3],
        }
    }

    /// Returns the source addresses of the tunnel, and the port if the tunnel has one.
    #[must_use]
    pub const fn tunnel(self) -> Option<(TunnelSource, Option<u16>)> {
        match self {
            Self::Nat | Self::Direct => None,
            Self::Ipip(source) => Some((source, None)),
            Self::Gue(source, port) => Some((source, Some(port))),
        }
    }
}

/// Source addresses of tunnels; `None` for an address of the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSource {
    /// For servers with IPv4 addresses.
    pub v4: Option<Ipv4Addr>,
    /// For servers with IPv6 addresses.
    pub v6: Option<Ipv6Addr>,
}

/// Next hop of packets to servers and clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The host that a packet came from: the MAC addresses are exchanged (one-armed behind a router).
    Sender,
    /// The next hop of the routing table.
    Route,
}

impl NextHop {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Sender, Self::Route];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Route => "route",
        }
    }
}

/// Limit of the packets of a source prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRate {
    /// Packets a second.
    pub packets_per_second: u32,
    /// Packets at once after a pause.
    pub burst: u32,
    /// Length of the prefixes of IPv4 clients.
    pub prefix_v4: u8,
    /// Length of the prefixes of IPv6 clients.
    pub prefix_v6: u8,
}

impl SourceRate {
    /// Default of [`SourceRate::prefix_v4`]: each address.
    pub const PREFIX_V4: u8 = 32;
    /// Default of [`SourceRate::prefix_v6`]: the network of one customer, at least.
    pub const PREFIX_V6: u8 = 64;
}

/// Identity of a server in connection IDs of QUIC (draft-ietf-quic-load-balancers, section 4): 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuicId {
    length: u8,
    /// Bytes after the length are 0.
    bytes: [u8; Self::BYTES_MAX],
}

impl QuicId {
    /// Maximum number of bytes: a connection ID has 20, of which the first one and at least 4 are no server ID.
    pub const BYTES_MAX: usize = 15;

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Reason why a text is not the identity of a server in QUIC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 15 bytes in hexadecimal, such as \"a01f\", got \"{0}\"")]
pub struct QuicIdError(String);

impl FromStr for QuicId {
    type Err = QuicIdError;

    fn from_str(text: &str) -> Result<Self, QuicIdError> {
        let wrong = || QuicIdError(text.escape_debug().to_string());
        let digits = text.as_bytes();
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        if !is_hex || !digits.len().is_multiple_of(2) || !(2..=2 * Self::BYTES_MAX).contains(&digits.len()) {
            return Err(wrong());
        }
        let mut bytes = [0; Self::BYTES_MAX];
        for (byte, at) in bytes.iter_mut().zip((0..digits.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self { length: (digits.len() / 2) as u8, bytes })
    }
}

impl fmt::Display for QuicId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for QuicId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_ids_of_quic_are_one_to_fifteen_bytes() {
        for text in ["00", "a01f", "000102030405060708090a0b0c0d0e"] {
            assert_eq!(text.parse::<QuicId>().map(|id| id.to_string()), Ok(text.into()));
        }
        assert_eq!("A01F".parse::<QuicId>().unwrap().as_bytes(), [0xa0, 0x1f]);
        for text in ["", "a", "0x1f", "g0", "+1", "é", "000102030405060708090a0b0c0d0e0f"] {
            assert!(text.parse::<QuicId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_longer_id_of_zeros_is_another_id() {
        assert_ne!("00".parse::<QuicId>(), "0000".parse::<QuicId>());
    }
}
