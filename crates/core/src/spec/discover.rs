//! Sources of servers at run time.

use crate::limits::Limits;
use std::fmt;
use std::path::PathBuf;

/// Source of servers at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoverSpec {
    /// Each socket in a directory is a server that speaks [`Dialect::Mname`](super::Dialect::Mname).
    Mname {
        /// The directory.
        directory: PathBuf,
    },
    /// A file lists the servers ([`crate::server_list`]).
    File {
        /// The file.
        path: PathBuf,
        /// Port of the addresses without a port.
        port: Option<u16>,
        /// Settings of the servers.
        settings: FoundSettings,
    },
    /// Each address of a host name is a server.
    Dns {
        /// The host name.
        name: String,
        /// Port of the servers.
        port: u16,
        /// Settings of the servers.
        settings: FoundSettings,
    },
    /// Each target of SRV records (RFC 2782) is a server. The records have the ports, weights and priorities.
    Srv {
        /// The name of the records.
        name: String,
        /// Limits of each server.
        limits: Limits,
    },
}

impl DiscoverSpec {
    /// Maximum number of sources of a pool.
    pub const SOURCES_MAX: usize = 64;
    /// Maximum number of servers that a name can have.
    pub const ADDRESSES_MAX: usize = 1024;
}

impl fmt::Display for DiscoverSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mname { directory } => write!(out, "discover.mname {}", directory.display()),
            Self::File { path, .. } => write!(out, "discover.file {}", path.display()),
            Self::Dns { name, port, .. } => write!(out, "discover.dns {name}:{port}"),
            Self::Srv { name, .. } => write!(out, "discover.srv {name}"),
        }
    }
}

/// Settings of the servers of a source that a configured server has, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundSettings {
    /// Share within the tier.
    pub weight: u32,
    /// Tier.
    pub tier: u8,
    /// Limits of each server.
    pub limits: Limits,
}

impl FoundSettings {
    /// The default.
    pub const DEFAULT: Self = Self { weight: 1, tier: 1, limits: Limits { soft: None, hard: None } };
}

/// Need for the servers of a source at the start and at a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolve {
    /// A source that has no servers makes the configuration invalid.
    #[default]
    Required,
    /// The other servers are used until the source has servers.
    Optional,
}

impl Resolve {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Required, Self::Optional];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}
