//! Periodic work on a sticky table: the removal of expired clients, and the rebalancing of clients from a
//! server that has many more clients than another server.

use super::{Pool, SLOW_START_STEPS, Server};
use crate::ServerId;
use crate::event::Event;
use crate::limits::Known;
use crate::policy::WEIGHT_UNIT;
use crate::snapshot::Admission;
use crate::spec::{Failover, Policy, StickySpec};
use crate::sticky::balance::{Rival, surplus};
use crate::time::Time;
use std::time::Duration;

/// Interval at which expired clients are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Minimum interval of rebalancing; shorter configured intervals are raised to it.
const REBALANCE_EVERY_MIN: Duration = Duration::from_millis(100);

/// Times of the next work on the table.
#[derive(Debug)]
pub(super) struct Upkeep {
    sweep: Time,
    rebalance: Time,
}

impl Upkeep {
    /// Schedules the work of a new table, if there is one.
    pub(super) fn plan(table: Option<&StickySpec>, now: Time) -> Self {
        let swept = table.is_some_and(|spec| spec.ttl.is_some());
        Self {
            sweep: if swept { now + SWEEP_EVERY } else { Time::NEVER },
            rebalance: table.map_or(Time::NEVER, |spec| next_rebalance(spec, now)),
        }
    }

    /// Returns the time of the next work.
    pub(super) fn deadline(&self) -> Time {
        self.sweep.min(self.rebalance)
    }
}

fn next_rebalance(spec: &StickySpec, now: Time) -> Time {
    spec.rebalance.map_or(Time::NEVER, |every| now + every.max(REBALANCE_EVERY_MIN))
}

impl Pool {
    /// Does the work that is due. Returns an event if clients were rebalanced.
    pub(super) fn maintain_sticky(&mut self, now: Time) -> Option<Event> {
        let sticky = self.live.sticky.as_ref().filter(|_| self.upkeep.deadline() <= now)?;
        if self.upkeep.sweep <= now {
            sticky.sweep(now);
            self.upkeep.sweep = now + SWEEP_EVERY;
        }
        if self.upkeep.rebalance > now {
            return None;
        }
        self.upkeep.rebalance = next_rebalance(sticky.spec(), now);
        self.rebalance(now)
    }

    fn rebalance(&self, now: Time) -> Option<Event> {
        // Policies by address or in a fixed order would pick the same server again.
        if matches!(self.spec.policy, Policy::Hash | Policy::Maglev { .. } | Policy::First) {
            return None;
        }
        let sticky = self.live.sticky.as_ref()?;
        let surplus = surplus(&self.rivals(&sticky.homes(now)))?;
        let clients = sticky.forget_some(surplus.server, surplus.clients);
        let server = self.server(surplus.server)?.spec.name.clone();
        // The table may have evicted all clients of the surplus in the meantime.
        (clients > 0).then(|| Event::ClientsRebalanced { pool: self.spec.name.clone(), server, clients })
    }

    /// Returns the same servers as [`crate::snapshot::Snapshot::first_choices`]: the first candidates for
    /// clients without a history.
    fn rivals(&self, homes: &[(ServerId, usize)]) -> Vec<Rival> {
        let is_open = |server: &&Server| server.admission() == Admission::Open && !server.spec.is_sorry;
        let counts = |server: &&Server| {
            !server.spec.is_sorry && (self.spec.failover == Failover::Never || is_open(server))
        };
        let tier = self.servers.iter().filter(counts).map(|server| server.spec.tier).min();
        let of_tier = self.servers.iter().filter(|server| Some(server.spec.tier) == tier).filter(is_open);
        of_tier.map(|server| self.rival(server, homes)).collect()
    }

    fn rival(&self, server: &Server, homes: &[(ServerId, usize)]) -> Rival {
        let at = homes.binary_search_by_key(&server.id, |(id, _)| *id);
        let limit = server.spec.limits.bound(Known::No);
        Rival {
            server: server.id,
            clients: at.map_or(0, |at| homes[at].1),
            share: self.share_of_clients(server),
            has_room: server.live.occupancy.active() < limit,
        }
    }

    /// Returns the share of a server with its slow start. A sorry server has none.
    pub(super) fn share(&self, server: &Server) -> u32 {
        let full = server.spec.weight * WEIGHT_UNIT;
        match (self.spec.slow_start, server.slow_start) {
            (Some(_), Some(slow)) if !server.spec.is_sorry => {
                full / SLOW_START_STEPS * slow.step.min(SLOW_START_STEPS)
            }
            _ => full,
        }
    }

    /// Returns the share of new clients that the policy gives to a server. Round robin ignores weights, but a
    /// slow start always counts.
    fn share_of_clients(&self, server: &Server) -> u32 {
        let share = self.share(server);
        if self.spec.policy == Policy::RoundRobin { share / server.spec.weight.max(1) } else { share }
    }
}
