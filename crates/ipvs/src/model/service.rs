//! A virtual service: its key, and its settings.

use super::Statistics;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Address family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Returns the family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Returns the name in capital letters, as ipvsadm lists it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Identity of a service: at most one service of the kernel has it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ServiceKey {
    /// Packets to an address and port.
    Address {
        /// Transport protocol
        protocol: Protocol,
        /// Virtual address
        address: IpAddr,
        /// Virtual port; 0 is every port that has no service of its own, and needs persistence
        port: u16,
    },
    /// Packets with a firewall mark (nftables: `meta mark set`).
    Fwmark {
        /// The mark, which is not 0
        mark: u32,
        /// Family of the packets
        family: Family,
    },
}

impl ServiceKey {
    /// A TCP service.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        Self::Address { protocol: Protocol::Tcp, address: address.ip(), port: address.port() }
    }

    /// A UDP service.
    #[must_use]
    pub fn udp(address: SocketAddr) -> Self {
        Self::Address { protocol: Protocol::Udp, address: address.ip(), port: address.port() }
    }

    /// Family of the service's packets.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Fwmark { family, .. } => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address, port } => {
                write!(formatter, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            Self::Fwmark { mark, family: Family::V4 } => write!(formatter, "FWM {mark}"),
            Self::Fwmark { mark, family: Family::V6 } => write!(formatter, "FWM {mark} IPv6"),
        }
    }
}

/// Flags of a service, besides persistence.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flags {
    /// Each UDP packet is scheduled separately.
    pub one_packet: bool,
    /// The scheduler's first flag (`sh`, `mh`: fall back to another destination).
    pub scheduler_1: bool,
    /// The scheduler's second flag (`sh`, `mh`: include the client's port).
    pub scheduler_2: bool,
    /// The scheduler's third flag.
    pub scheduler_3: bool,
}

/// Persistence: connections of a client, or of a network of clients, use the same destination.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Persistence {
    /// Time for which a client without connections is remembered; the kernel counts whole seconds.
    pub timeout: Duration,
    /// Length of the prefix that clients share, at most [`Family::bits`].
    pub prefix: u8,
    /// Persistence engine, such as `sip`; `None` uses the address only.
    pub engine: Option<String>,
}

/// Wanted service.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Service {
    /// Identity
    pub key: ServiceKey,
    /// Name of the scheduler, such as `wlc`; the kernel loads its module.
    pub scheduler: String,
    /// Flags
    pub flags: Flags,
    /// Persistence, if any
    pub persistence: Option<Persistence>,
}

impl Service {
    /// Scheduler that ipvsadm uses when none is named.
    pub const DEFAULT_SCHEDULER: &'static str = "wlc";

    /// A service with the default scheduler, without flags or persistence.
    #[must_use]
    pub fn new(key: ServiceKey) -> Self {
        let scheduler = Self::DEFAULT_SCHEDULER.to_owned();
        Self { key, scheduler, flags: Flags::default(), persistence: None }
    }

    /// The same service with another scheduler.
    #[must_use]
    pub fn scheduler(self, name: &str) -> Self {
        Self { scheduler: name.to_owned(), ..self }
    }
}

/// Service as it is in the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceState {
    /// The service
    pub service: Service,
    /// Counters and rates, which lag by about 2 seconds
    pub statistics: Statistics,
}
