//! Synchronisation daemons, timeouts, and properties of the kernel's IPVS.

use std::net::IpAddr;
use std::time::Duration;

/// Role of a synchronisation daemon. The kernel runs at most one daemon of each role.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DaemonRole {
    /// Sends connections to backups
    Master,
    /// Receives connections from a master
    Backup,
}

impl DaemonRole {
    /// Returns the name that ipvsadm uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// Synchronisation daemon, a thread of the kernel that shares connections between directors.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Daemon {
    /// Role
    pub role: DaemonRole,
    /// Multicast interface, such as `eth0`
    pub interface: String,
    /// Identity of the group of directors; a backup with 0 accepts all
    pub sync_id: u32,
    /// Maximum length of a message in bytes; `None` follows the interface's MTU
    pub length_max: Option<u16>,
    /// Multicast group; `None` is the kernel's 224.0.0.81
    pub group: Option<IpAddr>,
    /// UDP port; `None` is the kernel's 8848
    pub port: Option<u16>,
    /// Time to live (TTL) of multicast packets; `None` is the kernel's 1
    pub ttl: Option<u8>,
}

impl Daemon {
    /// A daemon with the kernel's defaults.
    #[must_use]
    pub fn new(role: DaemonRole, interface: &str, sync_id: u32) -> Self {
        let interface = interface.to_owned();
        Self { role, interface, sync_id, length_max: None, group: None, port: None, ttl: None }
    }
}

/// Timeouts of connections without traffic. The kernel counts whole seconds, and does not change a timeout of 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// TCP connections
    pub tcp: Duration,
    /// TCP connections after a FIN
    pub tcp_fin: Duration,
    /// UDP flows
    pub udp: Duration,
}

/// Properties of the kernel's IPVS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Info {
    /// Version as major, minor, patch
    pub version: (u8, u8, u8),
    /// Number of buckets of the connection table
    pub connection_table_size: u32,
}
