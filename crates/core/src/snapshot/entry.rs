//! A server as the planes see it, and what of servers and pools lives on across snapshots.

use crate::ServerId;
use crate::acl::{Access, Acl};
use crate::address::Target;
use crate::attempt::work;
use crate::counters::{ServerCounters, Sharded};
use crate::dns::Transports;
use crate::limits::{Known, Limits, Occupancy};
use crate::policy::{self, Contender, Latency};
use crate::spec::Dialect;
use crate::sticky::Sticky;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What of a server lives on across snapshots and reloads.
#[derive(Debug)]
pub struct ServerLive {
    /// Connections and flows now.
    pub occupancy: Occupancy,
    /// Connections that wait for clients: they hold no places, and are made only where places are left.
    pub warm: Occupancy,
    /// How fast it accepts.
    pub latency: Latency,
    /// What was counted.
    pub counters: Sharded<ServerCounters>,
    /// Some traffic failed of late, so the next success is worth a report.
    pub suspect: AtomicBool,
    /// Which transports of DNS it refuses.
    pub transports: Transports,
}

impl ServerLive {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            occupancy: Occupancy::default(),
            warm: Occupancy::default(),
            latency: Latency::default(),
            counters: Sharded::new(workers),
            suspect: AtomicBool::new(false),
            transports: Transports::default(),
        }
    }
}

/// What of a pool lives on across snapshots.
#[derive(Debug, Default)]
pub struct PoolLive {
    /// Numbers the choices, for policies that take turns.
    pub turn: AtomicU64,
    /// Which client had which server.
    pub sticky: Option<Sticky>,
    /// Clients and requests that wait for a server.
    pub queued: Occupancy,
}

/// Whether a server gets clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Everybody.
    Open,
    /// Only clients that the sticky table names for it: it drains, or has the weight 0.
    KnownOnly(KnownOnly),
    /// Clients that the sticky table names for it, and others only when no server is open for them: its first check has not
    /// come back yet.
    Unchecked,
    /// Only when nobody else is left: real traffic took it out, and why.
    LastResort(Arc<str>),
    /// Nobody, for a check found it down, and why.
    Down(Arc<str>),
    /// Nobody, for the operator took it out.
    Maintenance,
}

/// Why a server gets no new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownOnly {
    /// The operator drains it.
    Drain,
    /// Its weight is 0.
    Weight,
}

/// A server in a snapshot.
#[derive(Debug)]
pub struct Entry {
    /// Its identity in the pool.
    pub id: ServerId,
    /// Its name.
    pub name: Arc<str>,
    /// Stands for its name in cookies: the same in every instance and after every restart.
    pub token: u64,
    /// Where to connect to.
    pub target: Target,
    /// How it is spoken to.
    pub dialect: Dialect,
    /// Its tier.
    pub tier: u8,
    /// Its weight as configured.
    pub weight: u32,
    /// Its weight in [`policy::WEIGHT_UNIT`]s, a slow start considered.
    pub share: u32,
    /// Its limits.
    pub limits: Limits,
    /// Its access list.
    pub acl: Option<Arc<Acl>>,
    /// Whether it gets clients.
    pub admission: Admission,
    /// What lives on.
    pub live: Arc<ServerLive>,
}

impl Contender for Entry {
    fn name(&self) -> &str {
        &self.name
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

    /// Whether a client may have it that can have no other one.
    pub(super) fn admits_chosen(&self) -> bool {
        matches!(self.admission, Admission::Open | Admission::Unchecked)
    }

    pub(crate) fn permits(&self, client: IpAddr) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
    }

    /// Returns the number of connections that may wait for clients here: all free permits but the last one.
    #[must_use]
    pub fn warm_max(&self) -> u32 {
        let taken = self.live.occupancy.active().saturating_add(1);
        self.limits.bound(Known::No).saturating_sub(taken)
    }

    pub(super) fn has_room_for(&self, client: IpAddr, known: Known) -> bool {
        work::add(1);
        self.live.occupancy.active() < self.limits.bound(known) && self.permits(client)
    }
}
