//! The effect of another specification on the clients of a pool, before it is applied: which of them stay with their
//! server, and for what reason the others leave it. The new servers are those of [`Pool::apply`] itself, on a copy, so
//! the forecast and the change cannot disagree.
//!
//! New servers count as if their first check had passed. Nothing here changes the pool or its sticky table.

use super::{Pool, Server};
use crate::ServerId;
use crate::address::Target;
use crate::health::{Probe, Verdict};
use crate::snapshot::{Entry, Placement, PoolLive, Snapshot};
use crate::spec::{PoolSpec, StickyBy, StickySpec};
use crate::sticky::{Assignment, Sticky};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seed of the hashing of a table that is used once.
const KEY: u64 = 0x666f_7265;

/// Reason why clients leave their server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveReason {
    /// The service is removed.
    ServiceRemoved,
    /// The service gets another pool, plane or protocol.
    PoolChanged,
    /// The listener is removed or passes to another service.
    ListenerRemoved,
    /// The server is removed.
    ServerRemoved,
    /// The server has another address.
    AddressChanged,
    /// The state of the server, or the new weight 0, lets it take no such clients.
    StateChanged,
    /// The access list does not admit the client.
    AccessChanged,
    /// The sticky table is removed, or is too small or too short-lived for the client.
    StickyChanged,
    /// Another policy places the client elsewhere.
    PolicyChanged,
    /// A server of a lower tier takes the client.
    TierChanged,
    /// A new server takes the client.
    ServerAdded,
    /// Weights changed, and the policy places the client elsewhere.
    WeightChanged,
    /// Other servers or settings of the pool changed, and the policy places the client elsewhere.
    ServersChanged,
}

impl MoveReason {
    /// Returns the name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServiceRemoved => "service_removed",
            Self::PoolChanged => "pool_changed",
            Self::ListenerRemoved => "listener_removed",
            Self::ServerRemoved => "server_removed",
            Self::AddressChanged => "address_changed",
            Self::StateChanged => "state_changed",
            Self::AccessChanged => "access_changed",
            Self::StickyChanged => "sticky_changed",
            Self::PolicyChanged => "policy_changed",
            Self::TierChanged => "tier_changed",
            Self::ServerAdded => "server_added",
            Self::WeightChanged => "weight_changed",
            Self::ServersChanged => "servers_changed",
        }
    }
}

/// The effect on one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The client keeps its server.
    Stays,
    /// The client gets another server, or none.
    Moves(MoveReason),
    /// The client is no longer bound to its server, which is one of several that it may get.
    MayMove(MoveReason),
}

/// Numbers of clients by their fate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Clients that have a server now.
    pub tracked: usize,
    /// Clients that get another server, by reason.
    pub moved: BTreeMap<MoveReason, usize>,
    /// Clients that may get another server, by reason.
    pub may_move: BTreeMap<MoveReason, usize>,
}

impl Tally {
    /// Counts a client.
    pub fn add(&mut self, fate: Fate) {
        self.tracked += 1;
        match fate {
            Fate::Stays => {}
            Fate::Moves(reason) => *self.moved.entry(reason).or_default() += 1,
            Fate::MayMove(reason) => *self.may_move.entry(reason).or_default() += 1,
        }
    }

    /// Returns the number of clients that move or may move.
    #[must_use]
    pub fn leaving(&self) -> usize {
        self.moved.values().chain(self.may_move.values()).sum()
    }
}

/// The effect of another specification on the clients of a pool.
#[derive(Debug)]
pub struct Forecast {
    before: Arc<Snapshot>,
    after: Snapshot,
    /// The table of the new specification.
    table: Option<StickySpec>,
}

impl Pool {
    /// Returns the effect of another specification on clients that choose by `before`, the published snapshot.
    #[must_use]
    pub fn forecast(
        &self,
        before: Arc<Snapshot>,
        spec: &PoolSpec,
        targets: &[Target],
        now: Time,
    ) -> Forecast {
        let mut copy = self.copied();
        copy.apply(spec, targets, now);
        copy.pass_first_checks(self, now);
        copy.changed = true;
        let after = copy.snapshot().expect("a pool that changed has a new snapshot");
        let table = spec.sticky.as_ref().filter(|sticky| sticky.by == StickyBy::ClientIp).cloned();
        Forecast { before, after, table }
    }

    /// Returns a copy that shares the occupancy of its servers, but no table.
    fn copied(&self) -> Self {
        let turn = AtomicU64::new(self.live.turn.load(Ordering::Relaxed));
        let live = PoolLive { turn, sticky: None, queued: self.live.queued.clone() };
        Self {
            spec: PoolSpec { sticky: None, ..self.spec.clone() },
            servers: self.servers.clone(),
            by_id: self.by_id.clone(),
            setting: self.setting,
            next_id: self.next_id,
            generation: self.generation,
            live: Arc::new(live),
            retries: Arc::clone(&self.retries),
            upkeep: super::Upkeep::plan(None, Time::ZERO),
            quorum: self.quorum,
            changed: true,
            is_forecast: true,
        }
    }

    /// Lets the servers that the change made unchecked pass their first check.
    fn pass_first_checks(&mut self, before: &Self, now: Time) {
        let is_unchecked = |server: &Server| server.health.verdict() == Verdict::Unchecked;
        let was_unchecked = |id| before.server(id).is_some_and(is_unchecked);
        let fresh: Vec<ServerId> =
            self.servers.iter().filter(|server| is_unchecked(server)).map(|server| server.id).collect();
        for id in fresh.into_iter().filter(|&id| !was_unchecked(id)) {
            let _ = self.on_probe(now, id, Probe::Pass);
        }
    }
}

impl Forecast {
    /// Returns the pool before the change.
    #[must_use]
    pub fn before(&self) -> &Arc<Snapshot> {
        &self.before
    }

    /// Returns the pool after the change.
    #[must_use]
    pub fn after(&self) -> &Snapshot {
        &self.after
    }

    /// Calls `visit` for each client of the sticky table that its server takes now, with that server and its fate.
    pub fn visit_sticky(&self, now: Time, mut visit: impl FnMut(IpAddr, ServerId, Fate)) {
        let Some(sticky) = self.before.sticky() else { return };
        let after = TableAfter::new(sticky, self, now);
        sticky.visit(now, |client| {
            let placed = self.before.placement(client.address, Some(client.assignment), now);
            if let Placement::Assigned(server) = placed {
                let bound = Bound {
                    before: Some(client.assignment),
                    after: after.assignment(client.address, client.assignment, now),
                };
                visit(client.address, server, self.fate(client.address, server, bound, now));
            }
        });
    }

    /// Counts the clients of the sticky table.
    #[must_use]
    pub fn tally_sticky(&self, now: Time) -> Tally {
        let mut tally = Tally::default();
        self.visit_sticky(now, |_, _, fate| tally.add(fate));
        tally
    }

    /// Returns the server of a client that only the policy places, with its fate; `None` if the server is not certain.
    #[must_use]
    pub fn fate_by_policy(&self, client: IpAddr, now: Time) -> Option<(ServerId, Fate)> {
        let server = self.before.placement(client, None, now).server()?;
        Some((server, self.fate(client, server, Bound::default(), now)))
    }

    /// Returns the fate of a flow of a client with a server whose address was `target` when the flow began.
    #[must_use]
    pub fn fate_of_flow(&self, server: ServerId, target: &Target, client: IpAddr) -> Fate {
        if self.after.keeps_flow(server, target, client) {
            return Fate::Stays;
        }
        Fate::Moves(match self.after.server(server) {
            None => MoveReason::ServerRemoved,
            Some(after) if after.target != *target => MoveReason::AddressChanged,
            Some(after) if !after.permits(client) => MoveReason::AccessChanged,
            Some(_) => MoveReason::StateChanged,
        })
    }

    /// Returns the part of `samples` addresses that the policy places elsewhere; `None` if it does not place clients by
    /// their addresses.
    #[must_use]
    pub fn share_moved(&self, samples: u32, now: Time) -> Option<f64> {
        if !self.before.is_by_address() || samples == 0 {
            return None;
        }
        // Every second address of 10.0.0.0/8, from the beginning: hashes of addresses are evenly distributed.
        let client = |number: u32| IpAddr::from((0x0a00_0000 + 2 * (number % (1 << 23))).to_be_bytes());
        let fates = (0..samples).filter_map(|number| self.fate_by_policy(client(number), now));
        let (mut placed, mut moved) = (0_u32, 0_u32);
        for (_, fate) in fates {
            placed += 1;
            moved += u32::from(fate != Fate::Stays);
        }
        (placed > 0).then(|| f64::from(moved) / f64::from(placed))
    }

    fn fate(&self, client: IpAddr, server: ServerId, bound: Bound, now: Time) -> Fate {
        match self.after.placement(client, bound.after, now) {
            Placement::Assigned(after) | Placement::Determined(after) if after == server => Fate::Stays,
            Placement::Assigned(after) | Placement::Determined(after) => {
                Fate::Moves(self.reason(server, Some(after), bound))
            }
            Placement::Open if self.after.may_choose(server, client) => {
                Fate::MayMove(self.reason(server, None, bound))
            }
            Placement::Open | Placement::None => Fate::Moves(self.reason(server, None, bound)),
        }
    }

    /// Returns the reason why a client of `server` gets `next` or, if it is not certain, some server.
    fn reason(&self, server: ServerId, next: Option<ServerId>, bound: Bound) -> MoveReason {
        let (Some(old), Some(new)) = (self.before.server(server), self.after.server(server)) else {
            return MoveReason::ServerRemoved;
        };
        if old.admits_otherwise_than(new) {
            return MoveReason::StateChanged;
        }
        if old.acl != new.acl {
            return MoveReason::AccessChanged;
        }
        match bound {
            Bound { before: Some(_), after } if self.has_other_table() => {
                if after.is_none_or(|after| !names(after, server)) {
                    return MoveReason::StickyChanged;
                }
            }
            // The table forgets the clients of a removed home, also those that a substitute serves.
            Bound { before: Some(_), after: None } => return MoveReason::ServerRemoved,
            Bound { .. } => {}
        }
        let next = next.and_then(|next| self.after.server(next));
        if self.before.policy != self.after.policy {
            MoveReason::PolicyChanged
        } else if next.is_some_and(|next| next.tier != new.tier) || old.tier != new.tier {
            MoveReason::TierChanged
        } else if next.is_some_and(|next| self.before.server(next.id).is_none()) {
            MoveReason::ServerAdded
        } else if self.has_other_weights() {
            MoveReason::WeightChanged
        } else {
            MoveReason::ServersChanged
        }
    }

    fn has_other_table(&self) -> bool {
        self.before.sticky().map(Sticky::spec) != self.table.as_ref()
    }

    fn has_other_weights(&self) -> bool {
        let weight = |entry: &Arc<Entry>| entry.weight;
        let mut both = self.after.servers().iter().filter_map(|new| Some((self.before.server(new.id)?, new)));
        both.any(|(old, new)| weight(old) != weight(new))
    }
}

/// The assignment of a client in the sticky table, before and after the change.
#[derive(Clone, Copy, Debug, Default)]
struct Bound {
    before: Option<Assignment>,
    after: Option<Assignment>,
}

/// Returns true if an assignment has the server.
fn names(assignment: Assignment, server: ServerId) -> bool {
    assignment.home == server || assignment.substitute == Some(server)
}

/// The sticky table after the change.
enum TableAfter {
    /// There is none.
    None,
    /// The same table, without these servers.
    Same(BTreeSet<ServerId>),
    /// Another table, with the clients that it adopts.
    Other(Sticky),
}

impl TableAfter {
    fn new(before: &Sticky, forecast: &Forecast, now: Time) -> Self {
        let ids = forecast.before.servers().iter().map(|server| server.id);
        let removed: BTreeSet<ServerId> = ids.filter(|&id| forecast.after.server(id).is_none()).collect();
        match &forecast.table {
            None => Self::None,
            Some(spec) if spec == before.spec() => Self::Same(removed),
            Some(spec) => {
                let table = Sticky::new(spec, KEY);
                table.adopt(before, now);
                removed.into_iter().for_each(|server| table.forget_server(server));
                Self::Other(table)
            }
        }
    }

    /// Returns the assignment of a client after the change.
    fn assignment(&self, client: IpAddr, before: Assignment, now: Time) -> Option<Assignment> {
        match self {
            Self::None => None,
            Self::Same(removed) if removed.contains(&before.home) => None,
            Self::Same(removed) => {
                let substitute = before.substitute.filter(|substitute| !removed.contains(substitute));
                Some(Assignment { home: before.home, substitute })
            }
            Self::Other(table) => table.lookup(client, now),
        }
    }
}
