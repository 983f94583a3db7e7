//! Settings of the IPVS plane, and of services in it.

use std::sync::Arc;
use std::time::Duration;

/// Settings of the IPVS plane as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsSpec {
    /// The whole table of the kernel belongs to the configuration: entries of other programs are removed.
    pub own_table: bool,
    /// Synchronization of connections with other machines.
    pub sync: Option<IpvsSync>,
    /// Lifetimes of idle connections.
    pub timeouts: IpvsTimeouts,
}

/// Synchronization of connections with other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSync {
    /// Direction.
    pub role: IpvsSyncRole,
    /// Interface of the messages.
    pub interface: Arc<str>,
    /// Identity of the group of machines.
    pub id: u8,
}

/// Direction of the synchronization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsSyncRole {
    /// Connections are sent.
    Master,
    /// Connections are received.
    Backup,
    /// Connections are sent and received.
    Both,
}

impl IpvsSyncRole {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Master, Self::Backup, Self::Both];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
            Self::Both => "both",
        }
    }
}

/// Lifetimes of idle connections in the kernel, in whole seconds; `None` leaves the value of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpvsTimeouts {
    /// Of established TCP connections.
    pub tcp: Option<Duration>,
    /// Of TCP connections after the first FIN.
    pub tcp_fin: Option<Duration>,
    /// Of UDP flows.
    pub udp: Option<Duration>,
}

/// Settings of a service in the IPVS plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsServiceSpec {
    /// Protocol of the packets.
    pub transport: IpvsTransport,
    /// Firewall mark of the packets, instead of listen addresses.
    pub fwmark: Option<u32>,
    /// Way to the servers.
    pub forward: IpvsForward,
    /// Name of the kernel's scheduler; `None` if it follows from the policy of the pool.
    pub scheduler: Option<IpvsScheduler>,
    /// Options of the schedulers `sh` and `mh`.
    pub scheduler_flags: IpvsSchedulerFlags,
    /// Each datagram is scheduled by itself.
    pub one_packet: bool,
    /// Clients keep their server.
    pub persistence: Option<IpvsPersistence>,
    /// Interface that has the listen addresses while the service can serve clients.
    pub address_on: Option<Arc<str>>,
    /// Maximum time for which a removed server keeps its connections.
    pub drain_timeout: Duration,
}

impl IpvsServiceSpec {
    /// Default of [`IpvsServiceSpec::drain_timeout`]: the kernel's lifetime of an idle TCP connection.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(900);
}

impl Default for IpvsServiceSpec {
    fn default() -> Self {
        Self {
            transport: IpvsTransport::Tcp,
            fwmark: None,
            forward: IpvsForward::Nat,
            scheduler: None,
            scheduler_flags: IpvsSchedulerFlags::default(),
            one_packet: false,
            persistence: None,
            address_on: None,
            drain_timeout: Self::DRAIN_TIMEOUT,
        }
    }
}

/// Protocol of the packets of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsTransport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl IpvsTransport {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Way of packets to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsForward {
    /// The destination address is replaced.
    Nat,
    /// Unchanged, to the MAC address of the server.
    Direct,
    /// Inside IP packets.
    Ipip,
    /// Inside UDP datagrams to this port.
    Gue(u16),
    /// Inside GRE packets.
    Gre,
}

impl IpvsForward {
    /// Names in the configuration.
    pub const NAMES: [&'static str; 5] = ["nat", "direct", "ipip", "gue", "gre"];
    /// Default port of GUE.
    pub const GUE_PORT: u16 = 6080;

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => Self::NAMES[0],
            Self::Direct => Self::NAMES[1],
            Self::Ipip => Self::NAMES[2],
            Self::Gue(_) => Self::NAMES[3],
            Self::Gre => Self::NAMES[4],
        }
    }

    /// Returns true if packets go through a tunnel, which carries either address family.
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue(_) | Self::Gre)
    }
}

/// A scheduler of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpvsScheduler(&'static str);

impl IpvsScheduler {
    /// Names of the schedulers of Linux.
    pub const NAMES: [&'static str; 14] =
        ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"];

    /// Returns the scheduler called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|known| *known == name).map(Self)
    }

    /// Returns the name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// Options of the schedulers `sh` and `mh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpvsSchedulerFlags {
    /// Another server is chosen if the server of the client is not available.
    pub fallback: bool,
    /// The port of the client is part of the hash.
    pub port: bool,
}

impl IpvsSchedulerFlags {
    /// Names in the configuration.
    pub const NAMES: [&'static str; 2] = ["fallback", "port"];

    /// Returns the names of the options that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let [fallback, port] = Self::NAMES;
        [(self.fallback, fallback), (self.port, port)].into_iter().filter(|one| one.0).map(|one| one.1)
    }
}

/// Persistence: clients keep their server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsPersistence {
    /// Time after the last connection for which a client keeps its server, in whole seconds.
    pub timeout: Duration,
    /// Length of the IPv4 prefixes that count as one client.
    pub prefix_v4: u8,
    /// Length of the IPv6 prefixes that count as one client.
    pub prefix_v6: u8,
    /// Engine that recognizes clients by their packets.
    pub engine: Option<IpvsEngine>,
}

/// Engine of a persistence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsEngine {
    /// By the Call-ID of SIP.
    Sip,
}

impl IpvsEngine {
    /// All values.
    pub const ALL: [Self; 1] = [Self::Sip];

    /// Returns the name in the configuration and in the kernel.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sip => "sip",
        }
    }
}

impl IpvsPersistence {
    /// Default of the timeout, as of ipvsadm.
    pub const TIMEOUT: Duration = Duration::from_secs(300);
    /// Maximum of the timeout: 31 days, as of ipvsadm.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(86_400 * 31);
}

impl Default for IpvsPersistence {
    fn default() -> Self {
        Self { timeout: Self::TIMEOUT, prefix_v4: 32, prefix_v6: 128, engine: None }
    }
}
