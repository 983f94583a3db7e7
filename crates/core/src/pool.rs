//! A pool in the supervisor: servers with their health and administrative state, and the snapshots made of
//! them. A server keeps its identity across reloads: its name in the pool, or its name in the configuration and
//! its address of a host name. Verdict, counters, stickiness and flows stay.

mod forecast;
mod observed;
mod quorum;
mod upkeep;

use crate::ServerId;
use crate::address::Target;
use crate::budget::{RetryBudget, RetryLedger};
use crate::event::Event;
use crate::hash;
use crate::health::{Change, Failure, Health, Probe, Verdict};
use crate::limits::Limits;
use crate::random::Random;
use crate::snapshot::{Admission, Entry, KnownOnly, PoolLive, Quorum, ServerLive, Snapshot, SnapshotParts};
use crate::spec::{AdminState, Dialect, PoolSpec, ServerSpec, StickyBy};
use crate::sticky::Sticky;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use upkeep::Upkeep;

pub use forecast::{Fate, Forecast, MoveReason, Tally};
pub use observed::{LastCheck, Observed};

/// Number of steps in which a slow start grows a share.
const SLOW_START_STEPS: u32 = 16;
/// Separates the tokens of cookies from other hashes of names.
const COOKIE_SALT: u64 = 0x636f_6f6b_6965;

/// Input of a new pool besides its specification.
#[derive(Clone, Copy, Debug)]
pub struct PoolSetting {
    /// Number of workers.
    pub workers: usize,
    /// Seeds the hashing of the sticky table.
    pub key: u64,
    /// Identity of the first server. A pool with the name of a removed pool must not reuse the identities of
    /// the removed servers.
    pub first_id: u32,
}

/// A pool of servers.
///
/// ```
/// use evener_core::pool::{Pool, PoolSetting};
/// use evener_core::snapshot::Request;
/// use evener_core::spec::{PoolSpec, ServerSpec};
/// use evener_core::{Endpoint, Random, Time};
///
/// let endpoint: Endpoint = "10.0.0.1:80".parse()?;
/// let targets = vec![endpoint.target().unwrap()];
/// let spec = PoolSpec::new("web", vec![ServerSpec::new(endpoint)]);
/// let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
/// let mut pool = Pool::new(&spec, &targets, setting, Time::ZERO);
///
/// let snapshot = pool.snapshot().expect("a new pool has a new snapshot");
/// let request = Request::of("192.0.2.1".parse().unwrap(), Time::ZERO);
/// let choice = snapshot.pick(&request, &[], &mut Random::seeded(1)).unwrap();
/// assert_eq!(choice.server.target.to_string(), "10.0.0.1:80");
/// # Ok::<(), evener_core::address::AddressError>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    servers: Vec<Server>,
    by_id: BTreeMap<ServerId, usize>,
    setting: PoolSetting,
    next_id: u32,
    generation: u64,
    live: Arc<PoolLive>,
    retries: Arc<RetryLedger>,
    upkeep: Upkeep,
    quorum: Option<Quorum>,
    changed: bool,
    /// True for a copy that only shows the effect of a change. It must not write to state that it shares with planes.
    is_forecast: bool,
}

/// A server of a pool.
#[derive(Clone, Debug)]
pub struct Server {
    /// Identity of the server.
    pub id: ServerId,
    /// Configuration of the server.
    pub spec: ServerSpec,
    /// Address of the server.
    pub target: Target,
    /// Administrative state.
    pub state: AdminState,
    /// End of a temporary administrative state, after which the server is ready again.
    pub state_until: Option<Time>,
    /// Start of the administrative state.
    pub state_since: Time,
    /// Health of the server.
    pub health: Health,
    /// State that planes share.
    pub live: Arc<ServerLive>,
    /// Time of the last change of the verdict.
    pub since: Time,
    /// Observations for the status.
    pub observed: Observed,
    slow_start: Option<SlowStart>,
    placement_name: Arc<str>,
}

/// Progress of a slow start.
#[derive(Clone, Copy, Debug)]
struct SlowStart {
    began: Time,
    /// The present step, from 1 to [`SLOW_START_STEPS`]; the slow start ends after the last step.
    step: u32,
}

impl SlowStart {
    fn at(began: Time) -> Self {
        Self { began, step: 1 }
    }

    /// Returns the step that is reached at `now`.
    fn reached(self, length: Duration, now: Time) -> u32 {
        let done = now.since(self.began).as_secs_f64() / length.as_secs_f64();
        (done.min(1.0) * f64::from(SLOW_START_STEPS)).floor() as u32 + 1
    }

    /// Returns the time of the next step.
    fn next(self, length: Duration) -> Time {
        self.began + length * self.step / SLOW_START_STEPS + Duration::from_nanos(1)
    }
}

impl Pool {
    /// Creates a pool according to `spec`; `targets` are the addresses of the servers in `spec`, in the same
    /// order.
    #[must_use]
    pub fn new(spec: &PoolSpec, targets: &[Target], setting: PoolSetting, now: Time) -> Self {
        let empty = PoolSpec { servers: Vec::new(), sticky: None, ..spec.clone() };
        let mut pool = Self {
            spec: empty,
            servers: Vec::new(),
            by_id: BTreeMap::new(),
            setting,
            next_id: setting.first_id,
            generation: 0,
            live: Arc::default(),
            retries: Arc::new(RetryLedger::new(setting.workers)),
            upkeep: Upkeep::plan(None, now),
            quorum: None,
            changed: true,
            is_forecast: false,
        };
        pool.apply(spec, targets, now);
        // The servers of a new pool have their full share.
        pool.servers.iter_mut().for_each(|server| server.slow_start = None);
        pool
    }

    /// Returns the configuration of the pool.
    #[must_use]
    pub fn spec(&self) -> &PoolSpec {
        &self.spec
    }

    /// Returns the servers in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Returns the server with this identity.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(*self.by_id.get(&id)?)
    }

    /// Returns the identity of the next new server.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Returns the number of clients and requests that wait for a server, at all workers.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.live.queued.active()
    }

    /// Returns the number of clients in the sticky table, or `None` without one.
    #[must_use]
    pub fn remembered(&self) -> Option<usize> {
        self.live.sticky.as_ref().map(Sticky::len)
    }

    /// Returns the sticky table, if there is one.
    #[must_use]
    pub fn sticky(&self) -> Option<&Sticky> {
        self.live.sticky.as_ref()
    }

    /// Applies another specification and returns the events of the changes. Servers that stay keep their
    /// identity and state; a server at another address or with another protocol begins with a new verdict.
    pub fn apply(&mut self, spec: &PoolSpec, targets: &[Target], now: Time) -> Vec<Event> {
        debug_assert_eq!(spec.servers.len(), targets.len(), "a target for each server");
        let mut events = Vec::new();
        let before = std::mem::take(&mut self.servers).into_iter();
        let mut before: BTreeMap<Arc<str>, Server> =
            before.map(|server| (server.spec.name.clone(), server)).collect();
        let renamed = renamed(&before, spec);
        self.renew_sticky(spec, now);
        for (server_spec, target) in spec.servers.iter().zip(targets) {
            let old_name = || renamed.get(&(server_spec.configured_name.clone()?, target.clone()));
            let known = before.remove(&server_spec.name).or_else(|| before.remove(old_name()?));
            let server = match known {
                Some(known) => self.adopt(known, spec, server_spec, target, now, &mut events),
                None => self.admit(spec, server_spec, target, now, &mut events),
            };
            self.servers.push(server);
        }
        self.by_id = self.servers.iter().enumerate().map(|(at, server)| (server.id, at)).collect();
        for removed in before.into_values() {
            if let Some(sticky) = &self.live.sticky {
                sticky.forget_server(removed.id);
            }
            events.push(Event::ServerRemoved { pool: self.spec.name.clone(), server: removed.spec.name });
        }
        self.spec = spec.clone();
        self.changed = true;
        events
    }

    fn adopt(
        &self,
        mut server: Server,
        spec: &PoolSpec,
        server_spec: &ServerSpec,
        target: &Target,
        now: Time,
        events: &mut Vec<Event>,
    ) -> Server {
        if server.spec.state != server_spec.state {
            server.put_into(server_spec.state, now);
            server.state_until = None;
        }
        let is_moved = server.target != *target;
        let change = if !is_moved && server.spec.dialect == server_spec.dialect {
            server.health.configure(spec.check_of(server_spec), &spec.passive, now)
        } else {
            // Observations at the old address or with the old protocol no longer count.
            let was_down = server.health.verdict() == Verdict::Down;
            server.health = health(spec, server_spec, now);
            (server.since, server.slow_start) = (now, Some(SlowStart::at(now)));
            if !self.is_forecast {
                server.live.suspect.store(false, Ordering::Relaxed);
            }
            let is_up = server.health.verdict() == Verdict::Up;
            (was_down && is_up).then_some(Change::Up)
        };
        if is_moved {
            events.push(Event::ServerMoved {
                pool: spec.name.clone(),
                server: server_spec.name.clone(),
                before: server.target.to_string(),
                after: target.to_string(),
            });
        }
        if server.spec.name != server_spec.name {
            events.push(Event::ServerRenamed {
                pool: spec.name.clone(),
                before: server.spec.name.clone(),
                server: server_spec.name.clone(),
            });
        }
        server.spec = server_spec.clone();
        server.target = target.clone();
        server.placement_name = server_spec.placement_name(target);
        events.extend(change.map(|change| server.enter(&spec.name, change, now)));
        server
    }

    fn admit(
        &mut self,
        spec: &PoolSpec,
        server_spec: &ServerSpec,
        target: &Target,
        now: Time,
        events: &mut Vec<Event>,
    ) -> Server {
        let id = ServerId(self.next_id);
        self.next_id += 1;
        events.push(Event::ServerAdded { pool: spec.name.clone(), server: server_spec.name.clone() });
        Server {
            id,
            spec: server_spec.clone(),
            target: target.clone(),
            state: server_spec.state,
            state_until: None,
            state_since: now,
            health: health(spec, server_spec, now),
            live: Arc::new(ServerLive::new(self.setting.workers)),
            since: now,
            observed: Observed::new(now),
            slow_start: Some(SlowStart::at(now)),
            placement_name: server_spec.placement_name(target),
        }
    }

    fn renew_sticky(&mut self, spec: &PoolSpec, now: Time) {
        let table = spec.sticky.as_ref().filter(|sticky| sticky.by == StickyBy::ClientIp);
        if self.live.sticky.as_ref().map(Sticky::spec) == table {
            return;
        }
        let sticky = table.map(|wanted| {
            let fresh = Sticky::new(wanted, self.setting.key);
            self.live.sticky.iter().for_each(|old| fresh.adopt(old, now));
            fresh
        });
        self.upkeep = Upkeep::plan(table, now);
        let turn = AtomicU64::new(self.live.turn.load(Ordering::Relaxed));
        let queued = self.live.queued.clone();
        self.live = Arc::new(PoolLive { turn, sticky, queued });
    }

    /// Records the result of a probe of a server. A removed server is ignored.
    pub fn on_probe(&mut self, now: Time, id: ServerId, seen: Probe) -> Option<Event> {
        self.change(now, id, |server| server.health.on_probe(seen))
    }

    /// Records that the persistent connection to a server was established, or failed with a reason.
    pub fn on_session(&mut self, now: Time, id: ServerId, seen: Probe) -> Option<Event> {
        self.change(now, id, |server| server.health.on_session(seen))
    }

    /// Records that real traffic could not reach a server.
    pub fn on_failure(&mut self, now: Time, id: ServerId, failure: &Failure) -> Option<Event> {
        self.change(now, id, |server| {
            let change = server.health.on_failure(now, failure);
            server.live.suspect.store(true, Ordering::Relaxed);
            change
        })
    }

    /// Records that real traffic reached a suspect server.
    pub fn on_success(&mut self, now: Time, id: ServerId) -> Option<Event> {
        self.change(now, id, |server| {
            server.live.suspect.store(false, Ordering::Relaxed);
            server.health.forgive()
        })
    }

    /// Changes the administrative state of a server, until a given time or permanently. The state `Ready`
    /// also clears the failures of real traffic.
    pub fn set_state(
        &mut self,
        now: Time,
        id: ServerId,
        state: AdminState,
        until: Option<Time>,
    ) -> Vec<Event> {
        let pool = self.spec.name.clone();
        let Some(server) = self.by_id.get(&id).map(|&at| &mut self.servers[at]) else { return Vec::new() };
        let mut events = Vec::new();
        server.state_until = until;
        if server.state != state {
            let was_in_maintenance = server.state == AdminState::Maintenance;
            server.put_into(state, now);
            events.push(Event::ServerState { pool, server: server.spec.name.clone(), state: state.name() });
            if was_in_maintenance && state == AdminState::Ready {
                server.slow_start = Some(SlowStart::at(now));
            }
        }
        self.changed = true;
        if state == AdminState::Ready {
            events.extend(self.change(now, id, |server| server.health.forgive()));
        }
        events
    }

    /// Handles deadlines that have passed.
    pub fn on_time(&mut self, now: Time) -> Vec<Event> {
        let pool = self.spec.name.clone();
        let has_expired = |server: &&Server| server.state_until.is_some_and(|until| until <= now);
        let expired: Vec<ServerId> =
            self.servers.iter().filter(has_expired).map(|server| server.id).collect();
        let ready = expired.into_iter().flat_map(|id| self.set_state(now, id, AdminState::Ready, None));
        let mut events: Vec<Event> = ready.collect();
        for server in &mut self.servers {
            let change = server.health.on_time(now);
            events.extend(change.map(|change| server.enter(&pool, change, now)));
        }
        let stepped = self.step_slow_starts(now);
        self.changed |= stepped || !events.is_empty();
        // Rebalanced clients need no new snapshot.
        events.extend(self.maintain_sticky(now));
        events
    }

    /// Advances slow starts and ends the complete ones. Returns true if a share changed.
    fn step_slow_starts(&mut self, now: Time) -> bool {
        let Some(length) = self.spec.slow_start else { return false };
        let mut any = false;
        for server in &mut self.servers {
            // The slow start of an unchecked server begins with its first check.
            let Some(slow) =
                server.slow_start.as_mut().filter(|_| server.health.verdict() != Verdict::Unchecked)
            else {
                continue;
            };
            let reached = slow.reached(length, now);
            any |= std::mem::replace(&mut slow.step, reached) != reached;
            if reached > SLOW_START_STEPS {
                server.slow_start = None;
            }
        }
        any
    }

    /// Returns the servers whose probes are due, and schedules their next probes.
    pub fn due_probes(&mut self, now: Time, random: &mut Random) -> Vec<ServerId> {
        let wanted = |server: &&mut Server| server.state != AdminState::Maintenance;
        let due = self
            .servers
            .iter_mut()
            .filter(wanted)
            .filter_map(|server| server.health.probe_due(now, random).then_some(server.id));
        due.collect()
    }

    /// Returns the time at which [`Pool::on_time`] or [`Pool::due_probes`] has to be called next.
    #[must_use]
    pub fn deadline(&self) -> Time {
        let of_server = |server: &Server| {
            let grows = server.health.verdict() != Verdict::Unchecked;
            let growing = self.spec.slow_start.zip(server.slow_start.filter(|_| grows));
            let step = growing.map_or(Time::NEVER, |(length, slow)| slow.next(length));
            let probed = server.state != AdminState::Maintenance;
            let alone = step.min(server.state_until.unwrap_or(Time::NEVER));
            if probed { server.health.deadline().min(alone) } else { alone }
        };
        self.servers.iter().map(of_server).min().unwrap_or(Time::NEVER).min(self.upkeep.deadline())
    }

    /// Returns the snapshot to publish, if anything changed since the last one.
    pub fn snapshot(&mut self) -> Option<Snapshot> {
        std::mem::take(&mut self.changed).then(|| {
            self.generation += 1;
            Snapshot::new(SnapshotParts {
                pool: self.spec.name.clone(),
                generation: self.generation,
                policy: self.spec.policy,
                cookie: self.cookie(),
                failover: self.spec.failover,
                quorum: self.count_quorum(),
                queue: self.spec.queue,
                retry_budget: self.retry_budget(),
                entries: self.servers.iter().map(|server| self.entry(server)).collect(),
                live: Arc::clone(&self.live),
            })
        })
    }

    /// Returns the retry budget as configured now.
    #[must_use]
    pub fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.spec.retry_budget, self.servers.len(), Arc::clone(&self.retries))
    }

    fn cookie(&self) -> Option<Arc<str>> {
        match &self.spec.sticky.as_ref()?.by {
            StickyBy::Cookie(name) => Some(name.as_str().into()),
            StickyBy::ClientIp => None,
        }
    }

    fn entry(&self, server: &Server) -> Entry {
        let Limits { soft, hard } = server.spec.limits;
        Entry {
            id: server.id,
            name: server.spec.name.clone(),
            placement_name: server.placement_name.clone(),
            token: hash::of_name(&server.spec.name, COOKIE_SALT),
            target: server.target.clone(),
            host: server.spec.endpoint.host().map(Arc::from),
            dialect: server.spec.dialect,
            tier: server.spec.tier,
            is_sorry: server.spec.is_sorry,
            weight: server.spec.weight,
            share: self.share(server),
            limits: Limits { soft, hard },
            acl: server.spec.acl.clone(),
            quic_id: server.spec.quic_id,
            admission: server.admission(),
            live: Arc::clone(&server.live),
        }
    }

    fn change(
        &mut self,
        now: Time,
        id: ServerId,
        act: impl FnOnce(&mut Server) -> Option<Change>,
    ) -> Option<Event> {
        let server = &mut self.servers[*self.by_id.get(&id)?];
        // A check that confirms the failures of traffic ends the use as a last resort, even if the verdict
        // stays.
        let before = server.admission();
        let event = act(server).map(|change| server.enter(&self.spec.name, change, now));
        self.changed |= event.is_some() || before != server.admission();
        event
    }

    /// Panics unless servers, identities and health agree.
    pub fn check_invariants(&self) {
        let mut ids: Vec<ServerId> = self.servers.iter().map(|server| server.id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "each identity belongs to one server");
        assert!(ids.iter().all(|id| id.0 < self.next_id));
        assert_eq!(self.servers.len(), self.spec.servers.len());
        assert_eq!(self.by_id.len(), self.servers.len());
        assert!(self.by_id.iter().all(|(id, &at)| self.servers[at].id == *id));
        for (server, spec) in self.servers.iter().zip(&self.spec.servers) {
            assert_eq!(server.spec, *spec);
            server.health.check_invariants();
        }
    }
}

/// Returns the earlier names of servers that may get another name, by configured name and address. The name of a
/// server that was given by a host name depends on the number of addresses of the host.
fn renamed(before: &BTreeMap<Arc<str>, Server>, spec: &PoolSpec) -> BTreeMap<(Arc<str>, Target), Arc<str>> {
    if spec.servers.iter().all(|server| server.configured_name.is_none()) {
        return BTreeMap::new();
    }
    let names: BTreeSet<&Arc<str>> = spec.servers.iter().map(|server| &server.name).collect();
    let old_name = |(name, server): (&Arc<str>, &Server)| {
        let configured_name = server.spec.configured_name.clone().filter(|_| !names.contains(name))?;
        Some(((configured_name, server.target.clone()), name.clone()))
    };
    before.iter().filter_map(old_name).collect()
}

fn health(spec: &PoolSpec, server: &ServerSpec, now: Time) -> Health {
    match server.dialect {
        Dialect::Plain => Health::new(spec.check_of(server), &spec.passive, now),
        Dialect::Mname => Health::with_session(&spec.passive, now),
    }
}

impl Server {
    fn enter(&mut self, pool: &Arc<str>, change: Change, now: Time) -> Event {
        self.since = now;
        let (pool, server) = (pool.clone(), self.spec.name.clone());
        match change {
            Change::Up => {
                self.slow_start = Some(SlowStart::at(now));
                Event::ServerUp { pool, server }
            }
            Change::Checked => {
                // A server of a new pool has its full share.
                self.slow_start = self.slow_start.map(|_| SlowStart::at(now));
                Event::ServerChecked { pool, server }
            }
            Change::Down(reason) => Event::ServerDown { pool, server, reason },
        }
    }

    /// Enters another administrative state. A server in maintenance was not probed, so its verdict is obsolete.
    fn put_into(&mut self, state: AdminState, now: Time) {
        if self.state == AdminState::Maintenance {
            self.health.resume(now);
        }
        (self.state, self.state_since) = (state, now);
    }

    fn admission(&self) -> Admission {
        let reason = || Arc::from(self.health.reason().unwrap_or_default());
        match (self.state, self.health.verdict()) {
            (AdminState::Maintenance, _) => Admission::Maintenance,
            (AdminState::Ready, Verdict::Down)
                if self.health.is_only_passively_down() && self.spec.weight > 0 =>
            {
                Admission::LastResort(reason())
            }
            (_, Verdict::Down) => Admission::Down(reason()),
            (AdminState::Drain, _) => Admission::KnownOnly(KnownOnly::Drain),
            (AdminState::Ready, _) if self.spec.weight == 0 => Admission::KnownOnly(KnownOnly::Weight),
            (AdminState::Ready, Verdict::Unchecked) => Admission::Unchecked,
            (AdminState::Ready, Verdict::Up) => Admission::Open,
        }
    }
}
