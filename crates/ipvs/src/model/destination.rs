//! A destination (real server) of a service: its key, and its settings.

use super::{Family, Statistics};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Identity of a destination, unique within its service.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DestinationKey {
    /// Address of the server
    pub address: IpAddr,
    /// Port of the server; 0 uses the port of the packet
    pub port: u16,
}

impl DestinationKey {
    /// Family of the address.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }
}

impl From<SocketAddr> for DestinationKey {
    fn from(address: SocketAddr) -> Self {
        Self { address: address.ip(), port: address.port() }
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(formatter)
    }
}

/// Method by which packets reach a destination.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Forwarding {
    /// Network address translation (masquerading)
    Nat,
    /// Direct routing: only the link-layer address changes
    Direct,
    /// Encapsulation
    Tunnel(Tunnel),
    /// Delivery to this machine
    Local,
    /// Forwarding to the packet's own address, which a cache cluster uses
    Bypass,
}

impl Forwarding {
    /// Returns the name that ipvsadm lists.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "Masq",
            Self::Direct => "Route",
            Self::Tunnel(_) => "Tunnel",
            Self::Local => "Local",
            Self::Bypass => "Bypass",
        }
    }
}

/// Encapsulation of packets to a destination.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Tunnel {
    /// IP in IP
    Ipip,
    /// Generic UDP encapsulation (GUE)
    Gue {
        /// UDP port of the destination, which is not 0
        port: u16,
        /// Checksum of the outer packet
        flags: TunnelFlags,
    },
    /// Generic routing encapsulation (GRE)
    Gre {
        /// Checksum of the outer packet; remote checksum offload needs GUE
        flags: TunnelFlags,
    },
}

/// Checksums of a tunnel.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum TunnelFlags {
    /// No checksum
    #[default]
    NoChecksum,
    /// Checksum
    Checksum,
    /// Remote checksum offload (GUE only)
    RemoteChecksum,
}

/// Wanted destination.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Destination {
    /// Identity
    pub key: DestinationKey,
    /// Method by which packets reach it
    pub forwarding: Forwarding,
    /// Weight; 0 accepts no new connection
    pub weight: u32,
    /// Number of connections above which no new connection is accepted; 0 is no limit
    pub upper_threshold: u32,
    /// Number of connections below which an overloaded destination accepts connections again; 0 lets the
    /// kernel choose
    pub lower_threshold: u32,
}

impl Destination {
    /// A destination of weight 1 without thresholds.
    #[must_use]
    pub fn new(key: impl Into<DestinationKey>, forwarding: Forwarding) -> Self {
        Self { key: key.into(), forwarding, weight: 1, upper_threshold: 0, lower_threshold: 0 }
    }

    /// The same destination with another weight.
    #[must_use]
    pub fn weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// The same destination with thresholds.
    #[must_use]
    pub fn thresholds(self, lower: u32, upper: u32) -> Self {
        Self { lower_threshold: lower, upper_threshold: upper, ..self }
    }
}

/// Destination as it is in the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DestinationState {
    /// The destination
    pub destination: Destination,
    /// Active connections
    pub active: u32,
    /// Inactive connections
    pub inactive: u32,
    /// Persistence templates
    pub persistent: u32,
    /// Counters and rates, which lag by about 2 seconds
    pub statistics: Statistics,
}
