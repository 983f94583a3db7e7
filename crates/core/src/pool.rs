//! A pool as the supervisor keeps it: servers with their health and administrative state, and the snapshots made of it.
//! A server keeps its identity (its name in the pool) across reloads: verdict, counters, stickiness and flows stay.

use crate::ServerId;
use crate::address::Target;
use crate::event::Event;
use crate::health::{Change, Failure, Health, Probe, Verdict};
use crate::limits::Limits;
use crate::policy::WEIGHT_UNIT;
use crate::random::Random;
use crate::snapshot::{Admission, Entry, KnownOnly, PoolLive, ServerLive, Snapshot, SnapshotParts};
use crate::spec::{AdminState, PoolSpec, ServerSpec};
use crate::sticky::Sticky;
use crate::time::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A slow start grows a share in so many steps.
const SLOW_START_STEPS: u32 = 16;

/// What a pool is made with, besides its specification.
#[derive(Clone, Copy, Debug)]
pub struct PoolSetting {
    /// How many workers count.
    pub workers: usize,
    /// Seeds the hashing of the sticky table.
    pub key: u64,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    servers: Vec<Server>,
    setting: PoolSetting,
    next_id: u32,
    generation: u64,
    live: Arc<PoolLive>,
    changed: bool,
}

/// A server of a pool.
#[derive(Debug)]
pub struct Server {
    /// Its identity.
    pub id: ServerId,
    /// What the configuration says.
    pub spec: ServerSpec,
    /// Where it is.
    pub target: Target,
    /// What the operator wants now.
    pub state: AdminState,
    /// Its health.
    pub health: Health,
    /// What planes share.
    pub live: Arc<ServerLive>,
    /// When its verdict became what it is.
    pub since: Time,
    slow_start_began: Option<Time>,
}

impl Pool {
    /// A pool as `spec` says; `targets` are the addresses of its servers, in their order.
    #[must_use]
    pub fn new(spec: &PoolSpec, targets: &[Target], setting: PoolSetting, now: Time) -> Self {
        let empty = PoolSpec { servers: Vec::new(), sticky: None, ..spec.clone() };
        let mut pool = Self {
            spec: empty,
            servers: Vec::new(),
            setting,
            next_id: 0,
            generation: 0,
            live: Arc::default(),
            changed: true,
        };
        pool.apply(spec, targets, now);
        // What is there from the beginning has its full share.
        pool.servers.iter_mut().for_each(|server| server.slow_start_began = None);
        pool
    }

    /// What the configuration says.
    #[must_use]
    pub fn spec(&self) -> &PoolSpec {
        &self.spec
    }

    /// The servers, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// How many clients the sticky table remembers; `None` without one.
    #[must_use]
    pub fn remembered(&self) -> Option<usize> {
        self.live.sticky.as_ref().map(Sticky::len)
    }

    /// Takes on another specification. What stays keeps its identity and all that belongs to it.
    pub fn apply(&mut self, spec: &PoolSpec, targets: &[Target], now: Time) -> Vec<Event> {
        debug_assert_eq!(spec.servers.len(), targets.len(), "a target for each server");
        let mut events = Vec::new();
        let mut before = std::mem::take(&mut self.servers);
        self.renew_sticky(spec, now);
        for (server_spec, target) in spec.servers.iter().zip(targets) {
            let known = before.iter().position(|server| server.spec.name == server_spec.name);
            let server = match known {
                Some(at) => self.adopt(before.swap_remove(at), spec, server_spec, target, now, &mut events),
                None => self.admit(spec, server_spec, target, now, &mut events),
            };
            self.servers.push(server);
        }
        for gone in before {
            if let Some(sticky) = &self.live.sticky {
                sticky.forget_server(gone.id);
            }
            events.push(Event::ServerRemoved { pool: self.spec.name.clone(), server: gone.spec.name });
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
            server.state = server_spec.state;
        }
        let change = if server.target == *target {
            server.health.configure(spec.check.as_ref(), &spec.passive, now)
        } else {
            let was_down = server.health.verdict() == Verdict::Down;
            server.health = Health::new(spec.check.as_ref(), &spec.passive, now);
            was_down.then_some(Change::Up)
        };
        server.spec = server_spec.clone();
        server.target = target.clone();
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
            health: Health::new(spec.check.as_ref(), &spec.passive, now),
            live: Arc::new(ServerLive::new(self.setting.workers)),
            since: now,
            slow_start_began: Some(now),
        }
    }

    fn renew_sticky(&mut self, spec: &PoolSpec, now: Time) {
        if self.live.sticky.as_ref().map(Sticky::spec) == spec.sticky.as_ref() {
            return;
        }
        let sticky = spec.sticky.as_ref().map(|wanted| {
            let fresh = Sticky::new(wanted, self.setting.key);
            self.live.sticky.iter().for_each(|old| fresh.adopt(old, now));
            fresh
        });
        let turn = AtomicU64::new(self.live.turn.load(Ordering::Relaxed));
        self.live = Arc::new(PoolLive { turn, sticky });
    }

    /// A probe of a server came back; one that left meanwhile is none of ours.
    pub fn on_probe(&mut self, now: Time, id: ServerId, seen: Probe) -> Option<Event> {
        self.change(now, id, |server| server.health.on_probe(seen))
    }

    /// Real traffic could not reach a server.
    pub fn on_failure(&mut self, now: Time, id: ServerId, failure: Failure) -> Option<Event> {
        self.change(now, id, |server| {
            let change = server.health.on_failure(now, failure);
            server.live.suspect.store(true, Ordering::Relaxed);
            change
        })
    }

    /// Real traffic reached a server that was suspect.
    pub fn on_success(&mut self, now: Time, id: ServerId) -> Option<Event> {
        self.change(now, id, |server| {
            server.live.suspect.store(false, Ordering::Relaxed);
            server.health.forgive()
        })
    }

    /// The operator wants something else of a server. Making it ready forgives what traffic saw.
    pub fn set_state(&mut self, now: Time, id: ServerId, state: AdminState) -> Vec<Event> {
        let pool = self.spec.name.clone();
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return Vec::new() };
        let mut events = Vec::new();
        if server.state != state {
            server.state = state;
            events.push(Event::ServerState { pool, server: server.spec.name.clone(), state: state.name() });
            if state == AdminState::Ready {
                server.slow_start_began = Some(now);
            }
        }
        self.changed = true;
        if state == AdminState::Ready {
            events.extend(self.change(now, id, |server| server.health.forgive()));
        }
        events
    }

    /// Time passed.
    pub fn on_time(&mut self, now: Time) -> Vec<Event> {
        let pool = self.spec.name.clone();
        let mut events = Vec::new();
        for server in &mut self.servers {
            let change = server.health.on_time(now);
            events.extend(change.map(|change| server.enter(&pool, change, now)));
        }
        self.changed |= !events.is_empty() || self.step_slow_starts(now);
        events
    }

    /// Whether a share grew; ends those that are complete.
    fn step_slow_starts(&mut self, now: Time) -> bool {
        let Some(length) = self.spec.slow_start else { return false };
        let mut any = false;
        for server in &mut self.servers {
            if let Some(began) = server.slow_start_began {
                any = true;
                if now.since(began) >= length {
                    server.slow_start_began = None;
                }
            }
        }
        any
    }

    /// The servers whose probes are due; their next ones are planned.
    pub fn due_probes(&mut self, now: Time, random: &mut Random) -> Vec<ServerId> {
        let wanted = |server: &&mut Server| server.state != AdminState::Maintenance;
        let due = self
            .servers
            .iter_mut()
            .filter(wanted)
            .filter_map(|server| server.health.probe_due(now, random).then_some(server.id));
        due.collect()
    }

    /// When to call [`Pool::on_time`] or [`Pool::due_probes`] next.
    #[must_use]
    pub fn deadline(&self, now: Time) -> Time {
        let of_server = |server: &Server| {
            let step = self.spec.slow_start.filter(|_| server.slow_start_began.is_some());
            let step = step.map_or(Time::NEVER, |length| now + length / SLOW_START_STEPS);
            let probed = server.state != AdminState::Maintenance;
            if probed { server.health.deadline().min(step) } else { step }
        };
        self.servers.iter().map(of_server).min().unwrap_or(Time::NEVER)
    }

    /// The snapshot to publish, if anything changed since the last one.
    pub fn snapshot(&mut self, now: Time) -> Option<Snapshot> {
        std::mem::take(&mut self.changed).then(|| {
            self.generation += 1;
            Snapshot::new(SnapshotParts {
                pool: self.spec.name.clone(),
                generation: self.generation,
                policy: self.spec.policy,
                entries: self.servers.iter().map(|server| self.entry(server, now)).collect(),
                live: Arc::clone(&self.live),
            })
        })
    }

    fn entry(&self, server: &Server, now: Time) -> Entry {
        let Limits { soft, hard } = server.spec.limits;
        Entry {
            id: server.id,
            name: server.spec.name.clone(),
            target: server.target.clone(),
            tier: server.spec.tier,
            weight: server.spec.weight,
            share: self.share(server, now),
            limits: Limits { soft, hard },
            acl: server.spec.acl.clone(),
            admission: server.admission(),
            live: Arc::clone(&server.live),
        }
    }

    fn share(&self, server: &Server, now: Time) -> u32 {
        let full = server.spec.weight * WEIGHT_UNIT;
        match (self.spec.slow_start, server.slow_start_began) {
            (Some(length), Some(began)) if now.since(began) < length => {
                let done = now.since(began).as_secs_f64() / length.as_secs_f64();
                let steps = (done * f64::from(SLOW_START_STEPS)).floor() as u32 + 1;
                (full / SLOW_START_STEPS * steps).min(full)
            }
            _ => full,
        }
    }

    fn change(
        &mut self,
        now: Time,
        id: ServerId,
        act: impl FnOnce(&mut Server) -> Option<Change>,
    ) -> Option<Event> {
        let server = self.servers.iter_mut().find(|server| server.id == id)?;
        // Without another verdict, a check that agrees with traffic still ends the last resort.
        let before = server.admission();
        let event = act(server).map(|change| server.enter(&self.spec.name, change, now));
        self.changed |= event.is_some() || before != server.admission();
        event
    }

    /// Panics unless servers, identities and health agree.
    pub fn check_invariants(&self) {
        let mut ids: Vec<ServerId> = self.servers.iter().map(|server| server.id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "an identity belongs to one server");
        assert!(ids.iter().all(|id| id.0 < self.next_id));
        assert_eq!(self.servers.len(), self.spec.servers.len());
        for (server, spec) in self.servers.iter().zip(&self.spec.servers) {
            assert_eq!(server.spec, *spec);
            server.health.check_invariants();
        }
    }
}

impl Server {
    fn enter(&mut self, pool: &Arc<str>, change: Change, now: Time) -> Event {
        self.since = now;
        let (pool, server) = (pool.clone(), self.spec.name.clone());
        match change {
            Change::Up => {
                self.slow_start_began = Some(now);
                Event::ServerUp { pool, server }
            }
            Change::Down(reason) => Event::ServerDown { pool, server, reason },
        }
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
            (AdminState::Drain, Verdict::Up) => Admission::KnownOnly(KnownOnly::Drain),
            (AdminState::Ready, Verdict::Up) if self.spec.weight == 0 => {
                Admission::KnownOnly(KnownOnly::Weight)
            }
            (AdminState::Ready, Verdict::Up) => Admission::Open,
        }
    }
}
