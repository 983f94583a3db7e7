//! Settings of the XDP plane, and of services in it.

use crate::acl::Acl;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
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

impl Default for XdpSpec {
    fn default() -> Self {
        Self {
            flows: 1_048_576,
            mode: XdpMode::Auto,
            pin: "/sys/fs/bpf/evener".into(),
            events: XdpEventLevel::Error,
            events_per_second: 1000,
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

/// Settings of a service in the XDP plane.
#[derive(Clone, Debug, PartialEq)]
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
    /// Length of the server IDs in connection IDs of QUIC, in bytes (draft-ietf-quic-load-balancers).
    pub quic_id_length: Option<u8>,
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
    /// Generic UDP Encapsulation to this port.
    Gue(TunnelSource, u16),
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
