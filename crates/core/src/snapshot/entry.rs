//! Read-only view of a server for the planes, and the state of servers and pools that outlives a snapshot.

use crate::ServerId;
use crate::acl::{Access, Acl};
use crate::address::Target;
use crate::attempt::work;
use crate::counters::{CheckCounters, ServerCounters, Sharded};
use crate::dns::Transports;
use crate::limits::{Known, Limits, Occupancy};
use crate::policy::{self, Contender, Latency};
use crate::spec::{Dialect, QuicId};
use crate::sticky::Sticky;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// State of a server that outlives snapshots and reloads.
#[derive(Debug)]
pub struct ServerLive {
    /// Number of present connections and flows.
    pub occupancy: Occupancy,
    /// Number of unused pre-opened connections. They occupy no slots, and are opened only while slots are
    /// free.
    pub warm: Occupancy,
    /// Number of present associations of the XDP plane or of connections in IPVS, as it was counted last.
    pub associations: AtomicU32,
    /// Latency of connection attempts and responses.
    pub latency: Latency,
    /// Counters.
    pub counters: Sharded<ServerCounters>,
    /// Counters of checks. The control thread counts.
    pub check_counters: Sharded<CheckCounters>,
    /// Traffic failed recently, so the next success is reported.
    pub suspect: AtomicBool,
    /// DNS transports that the server refuses.
    pub transports: Transports,
}

impl ServerLive {
    /// Creates the state of a new server.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            occupancy: Occupancy::default(),
            warm: Occupancy::default(),
            associations: AtomicU32::new(0),
            latency: Latency::default(),
            counters: Sharded::new(workers),
            check_counters: Sharded::new(1),
            suspect: AtomicBool::new(false),
            transports: Transports::default(),
        }
    }
}

/// State of a pool that outlives snapshots.
#[derive(Debug, Default)]
pub struct PoolLive {
    /// Number of the next choice, for policies that take turns.
    pub turn: AtomicU64,
    /// Servers of known clients.
    pub sticky: Option<Sticky>,
    /// Clients and requests that wait for a server.
    pub queued: Occupancy,
}

/// Clients that a server can get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// All clients.
    Open,
    /// Only clients whose sticky server this is, because the server drains or has the weight 0.
    KnownOnly(KnownOnly),
    /// The first check has not ended yet: clients whose sticky server this is, and others only if no server is
    /// open for them.
    Unchecked,
    /// Only clients without another server: a passive check marked the server down, with the reason.
    LastResort(Arc<str>),
    /// No clients: a check found the server down, with the reason.
    Down(Arc<str>),
    /// No clients: an operator put the server into maintenance.
    Maintenance,
}

/// Reason why a server gets no new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownOnly {
    /// The operator drains the server.
    Drain,
    /// The weight is 0.
    Weight,
}

/// A server in a snapshot.
#[derive(Debug)]
pub struct Entry {
    /// Identity in the pool.
    pub id: ServerId,
    /// Name.
    pub name: Arc<str>,
    /// Name by which policies place the server. It does not depend on the number of addresses of a host name.
    pub placement_name: Arc<str>,
    /// Token of the name in cookies: the same in every instance and after every restart.
    pub token: u64,
    /// Address to connect to.
    pub target: Target,
    /// Host name to which the address belongs, if the server was given by a name.
    pub host: Option<Arc<str>>,
    /// Protocol of the connections.
    pub dialect: Dialect,
    /// Tier.
    pub tier: u8,
    /// The server takes clients only while the pool is below its quorum.
    pub is_sorry: bool,
    /// Configured weight.
    pub weight: u32,
    /// Weight in [`policy::WEIGHT_UNIT`]s, with slow start.
    pub share: u32,
    /// Limits.
    pub limits: Limits,
    /// Access list.
    pub acl: Option<Arc<Acl>>,
    /// Identity in connection IDs of QUIC.
    pub quic_id: Option<QuicId>,
    /// Clients that the server can get.
    pub admission: Admission,
    /// State that outlives the snapshot.
    pub live: Arc<ServerLive>,
}

impl Contender for Entry {
    fn placement_name(&self) -> &str {
        &self.placement_name
    }
    fn share(&self) -> u32 {
        self.share
    }
    fn full_share(&self) -> u32 {
        self.weight * policy::WEIGHT_UNIT
    }
    fn active(&self) -> u32 {
        self.live.occupancy.active()
    }
    fn latency(&self) -> &Latency {
        &self.live.latency
    }
}

impl Entry {
    pub(super) fn takes_known(&self, client: IpAddr) -> bool {
        self.admits_known() && self.has_room_for(client, Known::Yes)
    }

    pub(super) fn admits_known(&self) -> bool {
        matches!(self.admission, Admission::Open | Admission::Unchecked | Admission::KnownOnly(_))
    }

    /// Returns true if the server can take a client that may use no other server.
    pub(super) fn admits_chosen(&self) -> bool {
        matches!(self.admission, Admission::Open | Admission::Unchecked)
    }

    pub(crate) fn permits(&self, client: IpAddr) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
    }

    /// Returns the maximum number of pre-opened connections: all free slots but the last.
    #[must_use]
    pub fn warm_max(&self) -> u32 {
        let taken = self.live.occupancy.active().saturating_add(1);
        self.limits.bound(Known::No).saturating_sub(taken)
    }

    pub(super) fn has_room_for(&self, client: IpAddr, known: Known) -> bool {
        work::add(1);
        self.has_room(known) && self.permits(client)
    }

    #[inline]
    pub(super) fn has_room(&self, known: Known) -> bool {
        self.live.occupancy.active() < self.limits.bound(known)
    }
}
