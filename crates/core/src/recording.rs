//! The inputs of a choice as plain data. They are recorded from a pool, and the choice is derived from them again by
//! the code that made it, without the pool. What is recorded depends on nothing that changes afterwards.

use crate::ServerId;
use crate::acl::{Access, Acl};
use crate::address::Target;
use crate::budget::{RetryBudget, RetryLedger};
use crate::explain::{Explanation, explain};
use crate::limits::{Limits, Occupancy};
use crate::policy::{Latency, WEIGHT_UNIT, is_prime};
use crate::random::Random;
use crate::snapshot::{Admission, Entry, PoolLive, Quorum, Request, ServerLive, Snapshot, SnapshotParts};
use crate::spec::{Dialect, Failover, Policy, QueueSpec, StickyBy, StickySpec};
use crate::sticky::{Assignment, Sticky};
use crate::time::Time;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Maximum number of servers in a recording that comes from outside.
pub const SERVERS_MAX: usize = 65_536;
/// Maximum weight of a server.
const WEIGHT_MAX: u32 = 65_535;

/// Everything that a choice depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceInputs {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// The policy.
    pub policy: Policy,
    /// Name of the cookie that identifies clients.
    pub cookie: Option<Arc<str>>,
    /// Treatment of clients whose server cannot take them.
    pub failover: Failover,
    /// The quorum, if the pool needs one.
    pub quorum: Option<Quorum>,
    /// Queue for clients while every server is at its limit.
    pub queue: Option<QueueSpec>,
    /// Number of clients and requests in the queue.
    pub waiting: u32,
    /// Number of the choice, for policies that take turns.
    pub turn: u64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// The client.
    pub client: IpAddr,
    /// Time of the choice.
    pub now: Time,
    /// Entry of the client in the sticky table.
    pub assignment: Option<Assignment>,
    /// Every server, in the order of the configuration.
    pub servers: Vec<ServerInputs>,
}

/// Everything that a choice depends on at one server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerInputs {
    /// Identity in the pool.
    pub id: ServerId,
    /// Name.
    pub name: Arc<str>,
    /// Name by which policies place the server.
    pub placement_name: Arc<str>,
    /// Tier.
    pub tier: u8,
    /// The server takes clients only while the pool is below its quorum.
    pub is_sorry: bool,
    /// Configured weight.
    pub weight: u32,
    /// Weight in [`WEIGHT_UNIT`]s, with slow start.
    pub share: u32,
    /// Limits.
    pub limits: Limits,
    /// The access list of the server permits the client.
    pub permits: bool,
    /// Clients that the server can get.
    pub admission: Admission,
    /// Number of connections and flows.
    pub active: u32,
    /// Average latency in whole nanoseconds, and the time of its last measurement; `None` without a measurement.
    pub latency: Option<(u64, Time)>,
}

/// Reason why inputs are not those of a pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInputs {
    /// There are more servers than a pool has.
    #[error("a pool has at most {SERVERS_MAX} servers")]
    TooManyServers,
    /// Two servers have one identity.
    #[error("two servers have the identity {0}")]
    TwiceTheSame(u32),
    /// A weight or share is above its maximum.
    #[error("server `{0}` has an invalid weight")]
    Weight(Arc<str>),
    /// A latency is 0.
    #[error("server `{0}` has an invalid latency")]
    Latency(Arc<str>),
    /// The size of the Maglev table is not allowed.
    #[error("the size of the Maglev table must be a prime of at most {}", Policy::MAGLEV_TABLE_MAX)]
    Maglev,
}

impl ChoiceInputs {
    /// Records the inputs of the choice for a client. Takes neither a slot nor a turn.
    #[must_use]
    pub fn of(snapshot: &Snapshot, request: &Request, seed: u64) -> Self {
        let failover = if snapshot.has_no_failover() { Failover::Never } else { Failover::Next };
        let server = |entry: &Arc<Entry>| ServerInputs {
            id: entry.id,
            name: entry.name.clone(),
            placement_name: entry.placement_name.clone(),
            tier: entry.tier,
            is_sorry: entry.is_sorry,
            weight: entry.weight,
            share: entry.share,
            limits: entry.limits,
            permits: entry.permits(request.client),
            admission: entry.admission.clone(),
            active: entry.live.occupancy.active(),
            latency: entry.live.latency.parts().map(|(average, at)| ((average.round() as u64).max(1), at)),
        };
        Self {
            pool: snapshot.pool.clone(),
            policy: snapshot.policy,
            cookie: snapshot.cookie.clone(),
            failover,
            quorum: snapshot.quorum().copied(),
            queue: snapshot.queue,
            waiting: snapshot.queued(),
            turn: snapshot.next_turn(),
            seed,
            client: request.client,
            now: request.now,
            assignment: snapshot.assignment(request),
            servers: snapshot.servers().iter().map(server).collect(),
        }
    }

    /// Checks inputs that come from outside.
    ///
    /// # Errors
    /// No pool has these inputs.
    pub fn validate(&self) -> Result<(), InvalidInputs> {
        if self.servers.len() > SERVERS_MAX {
            return Err(InvalidInputs::TooManyServers);
        }
        if let Policy::Maglev { table } = self.policy
            && !(is_prime(table) && table <= Policy::MAGLEV_TABLE_MAX)
        {
            return Err(InvalidInputs::Maglev);
        }
        let mut ids: Vec<ServerId> = self.servers.iter().map(|server| server.id).collect();
        ids.sort_unstable();
        if let Some(same) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(InvalidInputs::TwiceTheSame(same[0].0));
        }
        for server in &self.servers {
            if server.weight > WEIGHT_MAX || server.share > WEIGHT_MAX * WEIGHT_UNIT {
                return Err(InvalidInputs::Weight(server.name.clone()));
            }
            if server.latency.is_some_and(|(average, _)| average == 0) {
                return Err(InvalidInputs::Latency(server.name.clone()));
            }
        }
        Ok(())
    }

    /// Explains the choice.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let request = Request::of(self.client, self.now);
        explain(&self.snapshot(), &request, &mut Random::seeded(self.seed))
    }

    /// Creates the snapshot of a pool with these inputs.
    fn snapshot(&self) -> Snapshot {
        let live = PoolLive {
            turn: AtomicU64::new(self.turn),
            sticky: self.assignment.map(|assignment| self.sticky(assignment)),
            queued: Occupancy::of(self.waiting),
        };
        Snapshot::new(SnapshotParts {
            pool: self.pool.clone(),
            generation: 1,
            policy: self.policy,
            cookie: self.cookie.clone(),
            failover: self.failover,
            quorum: self.quorum,
            queue: self.queue,
            retry_budget: RetryBudget::new(None, 0, Arc::new(RetryLedger::new(1))),
            entries: self.servers.iter().map(ServerInputs::entry).collect(),
            live: Arc::new(live),
        })
    }

    /// Creates a sticky table with the entry of the client.
    fn sticky(&self, assignment: Assignment) -> Sticky {
        let by = StickyBy::ClientIp;
        let spec = StickySpec { by, size: 1, ttl: None, failback: true, rebalance: None };
        let sticky = Sticky::new(&spec, 0);
        sticky.remember(self.client, assignment.home, self.now, |_| false);
        if let Some(substitute) = assignment.substitute {
            sticky.remember(self.client, substitute, self.now, |_| false);
        }
        sticky
    }
}

impl ServerInputs {
    fn entry(&self) -> Entry {
        let mut live = ServerLive::new(1);
        live.occupancy = Occupancy::of(self.active);
        live.latency =
            self.latency.map(|(average, seen_at)| Latency::of(average as f64, seen_at)).unwrap_or_default();
        let denied = || Arc::new(Acl::new(&[], Access::Deny));
        Entry {
            id: self.id,
            name: self.name.clone(),
            placement_name: self.placement_name.clone(),
            // An explanation is for a client without a cookie, and connects to no server.
            token: 0,
            target: Target::Unix(PathBuf::new()),
            host: None,
            dialect: Dialect::Plain,
            tier: self.tier,
            is_sorry: self.is_sorry,
            weight: self.weight,
            share: self.share,
            limits: self.limits,
            acl: (!self.permits).then(denied),
            quic_id: None,
            admission: self.admission.clone(),
            live: Arc::new(live),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Pool, PoolSetting};
    use crate::spec::{AdminState, PoolSpec, QuorumSpec, ServerSpec};
    use proptest::prelude::*;
    use std::time::Duration;

    /// A server: weight, tier, soft limit, connections, latency in microseconds, administrative state.
    type Draft = (u32, u8, Option<u32>, u32, Option<u64>, u8);

    fn spec(drafts: &[Draft], policy: Policy, failover: bool, quorum: Option<u32>) -> PoolSpec {
        let server = |(at, draft): (usize, &Draft)| {
            let endpoint: crate::Endpoint = format!("10.0.0.{}:80", at + 1).parse().unwrap();
            let mut server = ServerSpec::new(endpoint);
            (server.weight, server.tier, server.limits.soft) = (draft.0, draft.1, draft.2);
            server.is_sorry = quorum.is_some() && at == 0;
            server
        };
        let mut spec = PoolSpec::new("web", drafts.iter().enumerate().map(server).collect());
        spec.policy = policy;
        spec.failover = if failover { Failover::Next } else { Failover::Never };
        spec.quorum = quorum.map(|weight| QuorumSpec { weight, hysteresis: 0 });
        let by = StickyBy::ClientIp;
        spec.sticky = Some(StickySpec { by, size: 8, ttl: None, failback: true, rebalance: None });
        spec
    }

    /// Creates a pool with the states of the drafts.
    fn pool(spec: &PoolSpec, drafts: &[Draft], now: Time) -> Pool {
        let targets: Vec<Target> =
            spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect();
        let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
        let mut pool = Pool::new(spec, &targets, setting, Time::ZERO);
        let ids: Vec<ServerId> = pool.servers().iter().map(|server| server.id).collect();
        for (id, draft) in ids.into_iter().zip(drafts) {
            let states = [AdminState::Ready, AdminState::Drain, AdminState::Maintenance];
            if let Some(state) = states.get(usize::from(draft.5)).filter(|state| **state != AdminState::Ready)
            {
                pool.set_state(now, id, *state, None);
            }
        }
        pool
    }

    proptest! {
        #[test]
        fn a_choice_follows_from_its_recorded_inputs(
            drafts in prop::collection::vec(
                (0..5_u32, 1..3_u8, prop::option::of(1..4_u32), 0..4_u32, prop::option::of(1..9_u64), 0..6_u8),
                0..9,
            ),
            policy in 0..Policy::NAMES.len(),
            failover: bool,
            quorum in prop::option::of(1..9_u32),
            homes in prop::option::of((0..9_u32, prop::option::of(0..9_u32))),
            (turns, seed, client) in (0..9_usize, any::<u64>(), any::<[u8; 4]>()),
        ) {
            let now = Time::ZERO + Duration::from_secs(100);
            let mut policy = Policy::named(Policy::NAMES[policy]).unwrap();
            if let Policy::Maglev { table } = &mut policy {
                *table = 1009;
            }
            let spec = spec(&drafts, policy, failover, quorum);
            let mut pool = pool(&spec, &drafts, now);
            let snapshot = pool.snapshot().unwrap();
            let request = Request::of(client.into(), now);
            let mut held = Vec::new();
            for (server, draft) in snapshot.servers().iter().zip(&drafts) {
                held.extend((0..draft.3).map(|_| server.live.occupancy.enter(u32::MAX)));
                if let Some(micros) = draft.4 {
                    let decay = Policy::EWMA_DECAY;
                    server.live.latency.observe(Duration::from_micros(micros), now, decay);
                }
            }
            let mut random = Random::seeded(1);
            held.extend((0..turns).map(|_| {
                snapshot.pick(&Request::of([10, 9, 8, 7].into(), now), &[], &mut random).ok().map(|one| one.lease)
            }));
            if let Some((home, substitute)) = homes {
                snapshot.remember(request.client, ServerId(home), now);
                substitute.into_iter().for_each(|id| snapshot.remember(request.client, ServerId(id), now));
            }
            let live = explain(&snapshot, &request, &mut Random::seeded(seed));
            let inputs = ChoiceInputs::of(&snapshot, &request, seed);
            prop_assert_eq!(inputs.validate(), Ok(()));
            // What happens afterwards changes nothing.
            drop(held);
            drop(snapshot);
            prop_assert_eq!(inputs.explain(), live);
        }
    }
}
