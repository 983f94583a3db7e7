//! A seeded simulation of every choice: thousands of random steps (servers are added, removed, fail, drain;
//! clients connect and leave; time passes; configurations change). The invariants are checked after each step.
//! A failure prints the seed.
#![allow(clippy::disallowed_methods, reason = "the seed to replay comes from the environment")]

#[path = "simulation/model.rs"]
mod model;

use evener_core::acl::{Access, Acl};
use evener_core::attempt::{Attempt, AttemptLimits, FailedTry};
use evener_core::explain::{Reason, explain};
use evener_core::health::{Failure, Probe, Verdict};
use evener_core::limits::{Known, Limits};
use evener_core::pool::{Pool, PoolSetting, Server};
use evener_core::snapshot::{Admission, Choice, Entry, NoServer, Request, Snapshot, Why};
use evener_core::spec::{
    AdminState, CheckKind, CheckSpec, PassiveSpec, Policy, PoolSpec, ServerSpec, StickyBy, StickySpec,
};
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use model::Model;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

struct Simulation {
    random: Random,
    now: Time,
    pool: Pool,
    snapshot: Arc<Snapshot>,
    connections: Vec<(IpAddr, Choice)>,
    /// Expected content of the sticky table.
    model: Model,
}

const CLIENTS: usize = 300;
const CLIENTS_OFTEN: usize = 20;

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        let spec = random_spec(&mut random);
        let setting = PoolSetting { workers: 2, key: seed, first_id: 0 };
        let mut pool = Pool::new(&spec, &targets(&spec), setting, Time::ZERO);
        let snapshot = Arc::new(pool.snapshot().expect("a new pool has a snapshot to publish"));
        let model = Model::new(spec.sticky.as_ref(), Time::ZERO);
        Self { random, now: Time::ZERO, pool, snapshot, connections: Vec::new(), model }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..40 => self.connect(),
            40..65 => self.disconnect(),
            65..75 => self.probe(),
            75..82 => self.fail(),
            82..86 => self.administer(),
            86..98 => self.pass_time(),
            _ => self.reload(),
        }
        self.publish();
        self.check();
    }

    fn publish(&mut self) {
        if let Some(snapshot) = self.pool.snapshot() {
            assert!(snapshot.generation > self.snapshot.generation, "generations grow");
            self.snapshot = Arc::new(snapshot);
        }
    }

    /// Returns a random client. Some clients connect often enough that a server that failed since their last
    /// connection is up again.
    fn client(&mut self) -> IpAddr {
        let among = if self.random.below(2) == 0 { CLIENTS } else { CLIENTS_OFTEN };
        IpAddr::from((0x0a00_0000 + self.random.below(among) as u32).to_be_bytes())
    }

    /// Acts like a data plane: picks a server, sometimes fails and tries the next candidate, and remembers the
    /// server of the client.
    fn connect(&mut self) {
        let client = self.client();
        let request = Request::of(client, self.now);
        let explained = explain(&self.snapshot, &request, &mut self.random.clone());
        let (mut tried, mut attempt) = (Vec::new(), Attempt::new(0));
        // For some clients every server fails, so that the order of many servers is used, too.
        let unlucky = self.random.below(20) == 0;
        loop {
            let choice = match attempt.next(&self.snapshot, &request, &AttemptLimits::NONE, &mut self.random)
            {
                Ok(choice) => choice,
                Err(refusal) => return self.check_refusal(client, &tried, refusal),
            };
            assert!(!tried.contains(&choice.server.id), "a server is tried at most once");
            self.check_choice(client, &choice, &tried);
            if tried.is_empty() && !explained.by_chance {
                assert_eq!(
                    explained.servers[0].server, choice.server.name,
                    "explain names the server that is picked"
                );
                assert_eq!(explained.servers[0].reason, Reason::Candidate(1, choice.why));
            }
            if !unlucky && self.random.below(10) > 0 {
                self.snapshot.remember(client, choice.server.id, self.now);
                self.model.remember(&self.snapshot, client, choice.server.id, self.now);
                self.connections.push((client, choice));
                return;
            }
            tried.push(choice.server.id);
            attempt.failed(choice.server.id, choice.why, FailedTry::QUICK);
            let _ = self.pool.on_failure(self.now, choice.server.id, &Failure::Refused);
        }
    }

    fn check_choice(&self, client: IpAddr, choice: &Choice, tried: &[ServerId]) {
        let server = self.pool.servers().iter().find(|server| server.id == choice.server.id);
        let server = server.expect("the chosen server is in the pool");
        let known = if choice.why == Why::Sticky { Known::Yes } else { Known::No };
        let active = choice.server.live.occupancy.active();
        assert!(active <= server.spec.limits.bound(known), "{active} exceed {:?}", server.spec.limits);
        assert!(server.spec.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit));
        assert_ne!(server.state, AdminState::Maintenance);
        self.model.check_choice(&self.snapshot, client, choice, tried, self.now);
        match choice.why {
            Why::Sticky => {}
            Why::Policy => {
                assert!(server.state == AdminState::Ready && server.spec.weight > 0);
                assert_eq!(choice.server.admission, Admission::Open);
                let is_better = |other: &Entry| other.tier < choice.server.tier;
                self.check_passed_over(client, tried, |other| {
                    is_better(other) && other.admission == Admission::Open
                });
            }
            Why::Unchecked => {
                assert!(server.state == AdminState::Ready && server.spec.weight > 0);
                assert_eq!(choice.server.admission, Admission::Unchecked);
                let is_better = |other: &Entry| other.tier < choice.server.tier;
                self.check_passed_over(client, tried, |other| match other.admission {
                    Admission::Open => true,
                    Admission::Unchecked => is_better(other),
                    _ => false,
                });
            }
            Why::LastResort => {
                assert!(server.health.is_only_passively_down());
                self.check_passed_over(client, tried, |other| {
                    matches!(other.admission, Admission::Open | Admission::Unchecked)
                });
            }
        }
    }

    /// Checks that the servers that come before the chosen server cannot take the client.
    fn check_passed_over(&self, client: IpAddr, tried: &[ServerId], is_before: impl Fn(&Entry) -> bool) {
        for other in self.snapshot.servers().iter().filter(|other| is_before(other)) {
            let full = other.live.occupancy.active() >= other.limits.bound(Known::No);
            let denied = other.acl.as_ref().is_some_and(|acl| acl.access(client) == Access::Deny);
            assert!(full || denied || tried.contains(&other.id), "{} was passed over", other.name);
        }
    }

    fn check_refusal(&self, client: IpAddr, tried: &[ServerId], refusal: NoServer) {
        let usable = self.snapshot.servers().iter().filter(|server| {
            matches!(server.admission, Admission::Open | Admission::Unchecked)
                && !tried.contains(&server.id)
                && server.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
        });
        for server in usable {
            assert_eq!(refusal, NoServer::Full);
            assert!(
                server.live.occupancy.active() >= server.limits.bound(Known::No),
                "{refusal}: {}",
                server.name
            );
        }
    }

    fn disconnect(&mut self) {
        if !self.connections.is_empty() {
            let at = self.random.below(self.connections.len());
            self.connections.swap_remove(at);
        }
    }

    fn any_server(&mut self) -> Option<ServerId> {
        let count = self.pool.servers().len();
        (count > 0).then(|| self.pool.servers()[self.random.below(count)].id)
    }

    fn probe(&mut self) {
        let Some(id) = self.any_server() else { return };
        let seen = if self.random.below(3) > 0 { Probe::Pass } else { Probe::Fail("simulated".into()) };
        let (before, passed) = (self.verdict(id), seen == Probe::Pass);
        let _ = self.pool.on_probe(self.now, id, seen);
        if before == Verdict::Unchecked {
            let expected = if passed { Verdict::Up } else { Verdict::Down };
            assert_eq!(self.verdict(id), expected, "the first check decides the verdict");
        }
        assert_ne!((self.pool.spec().check.is_some(), self.verdict(id)), (true, Verdict::Unchecked));
        let _ = self.pool.on_probe(self.now, ServerId(u32::MAX), Probe::Pass);
    }

    fn verdict(&self, id: ServerId) -> Verdict {
        self.pool.server(id).expect("the server is in the pool").health.verdict()
    }

    fn fail(&mut self) {
        let Some(id) = self.any_server() else { return };
        match self.random.below(3) {
            0 => drop(self.pool.on_failure(self.now, id, &Failure::Timeout)),
            1 => drop(self.pool.on_failure(self.now, id, &Failure::Refused)),
            _ => drop(self.pool.on_success(self.now, id)),
        }
    }

    fn administer(&mut self) {
        let Some(id) = self.any_server() else { return };
        let state = AdminState::ALL[self.random.below(3)];
        let _ = self.pool.set_state(self.now, id, state, None);
        let server = self
            .pool
            .servers()
            .iter()
            .find(|server| server.id == id)
            .expect("the server is still in the pool");
        assert_eq!(server.state, state);
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_millis(self.random.below(3_000) as u64);
        let events = self.pool.on_time(self.now);
        self.publish();
        self.model.on_time(&self.pool, &self.snapshot, &events, self.now);
        let due = self.pool.due_probes(self.now, &mut self.random);
        assert!(due.len() <= self.pool.servers().len());
        assert!(self.pool.deadline() > self.now, "the next deadline is in the future");
    }

    fn reload(&mut self) {
        let before: BTreeMap<Arc<str>, (ServerId, Target, Verdict, bool)> = (self.pool.servers().iter())
            .map(|s| {
                (
                    s.spec.name.clone(),
                    (s.id, s.target.clone(), s.health.verdict(), s.health.is_only_passively_down()),
                )
            })
            .collect();
        let is_in_maintenance = |server: &&Server| server.state == AdminState::Maintenance;
        let was_in_maintenance: BTreeSet<ServerId> =
            self.pool.servers().iter().filter(is_in_maintenance).map(|s| s.id).collect();
        let had_check = self.pool.spec().check.is_some();
        let mut spec = random_spec(&mut self.random);
        if self.random.below(4) > 0 {
            spec.sticky = self.pool.spec().sticky.clone();
        }
        let _ = self.pool.apply(&spec, &targets(&spec), self.now);
        for server in self.pool.servers() {
            let Some((id, target, verdict, passive)) = before.get(&server.spec.name) else { continue };
            assert_eq!(*id, server.id, "a server keeps its id");
            let lifted = had_check && spec.check.is_none() || *passive && spec.passive.failures == 0;
            if *target == server.target && !lifted {
                let was_in_maintenance =
                    was_in_maintenance.contains(id) && server.state != AdminState::Maintenance;
                let resumed = was_in_maintenance && server.health.verdict() == Verdict::Unchecked;
                assert!(
                    resumed || *verdict == server.health.verdict(),
                    "an unchanged server keeps its verdict"
                );
            } else if *target != server.target {
                let anew = if spec.check.is_some() { Verdict::Unchecked } else { Verdict::Up };
                assert_eq!(server.health.verdict(), anew, "a server with another target gets a new verdict");
            }
        }
        let ids: BTreeSet<ServerId> = self.pool.servers().iter().map(|server| server.id).collect();
        self.model.reload(spec.sticky.as_ref(), |id| ids.contains(&id), self.now);
    }

    fn check(&self) {
        self.pool.check_invariants();
        let mut held: BTreeMap<ServerId, u32> = BTreeMap::new();
        self.connections.iter().for_each(|(_, choice)| *held.entry(choice.server.id).or_default() += 1);
        for server in self.pool.servers() {
            let expected = held.get(&server.id).copied().unwrap_or(0);
            assert_eq!(server.live.occupancy.active(), expected, "each open connection counts exactly once");
        }
        self.snapshot.servers().iter().for_each(|server| {
            assert!(server.share <= server.weight * evener_core::policy::WEIGHT_UNIT);
        });
        self.pool.remembered().into_iter().for_each(|count| assert!(count <= CLIENTS));
        self.model.check(&self.pool, self.now);
    }
}

fn random_spec(random: &mut Random) -> PoolSpec {
    let mut names: Vec<u16> = (0..12).filter(|_| random.below(3) > 0).collect();
    let turn = random.below(names.len().max(1));
    names.rotate_left(turn);
    let servers = names.into_iter().map(|number| random_server(random, number)).collect();
    let policy = Policy::NAMES[random.below(Policy::NAMES.len())];
    let policy = match Policy::named(policy).expect("a policy of the list") {
        Policy::Maglev { .. } => Policy::Maglev { table: 251 },
        policy => policy,
    };
    let check = CheckSpec { jitter: 0.5, ..CheckSpec::new(CheckKind::Tcp) };
    PoolSpec {
        policy,
        sticky: (random.below(3) > 0).then_some(StickySpec {
            by: StickyBy::ClientIp,
            size: 1024,
            ttl: (random.below(3) == 0).then_some(Duration::from_secs(20)),
            failback: random.below(2) == 0,
            rebalance: (random.below(2) == 0).then_some(Duration::from_secs(5)),
        }),
        check: (random.below(2) > 0).then_some(check),
        passive: PassiveSpec { failures: random.below(3) as u32, down_for: Duration::from_secs(5) },
        slow_start: (random.below(3) == 0).then_some(Duration::from_secs(10)),
        ..PoolSpec::new("simulated", servers)
    }
}

fn random_server(random: &mut Random, number: u16) -> ServerSpec {
    let endpoint: Endpoint =
        format!("10.0.{}.1:{}", random.below(40) / 39, 8000 + number).parse().expect("an address");
    let deny = Acl::new(&[("10.0.0.0/26".parse().expect("a prefix"), Access::Deny)], Access::Permit);
    let soft = (random.below(3) == 0).then(|| 1 + random.below(20) as u32);
    ServerSpec {
        name: format!("server-{number}").into(),
        weight: random.below(5) as u32,
        tier: 1 + (random.below(8) / 6) as u8,
        limits: Limits { soft, hard: soft.filter(|_| random.below(2) == 0).map(|soft| soft + 2) },
        acl: (random.below(6) == 0).then(|| Arc::new(deny)),
        ..ServerSpec::new(endpoint)
    }
}

fn targets(spec: &PoolSpec) -> Vec<Target> {
    spec.servers
        .iter()
        .map(|server| server.endpoint.target().expect("an address needs no resolving"))
        .collect()
}

#[test]
fn random_histories_of_pools_keep_every_invariant() {
    let from = std::env::var("EVENER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = from.map_or(0..40, |seed: u64| seed..seed + 1);
    let mut seen = (0, 0);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut simulation = Simulation::new(seed);
            (0..2_500).for_each(|_| simulation.step());
            simulation.model.moves()
        });
        match std::panic::catch_unwind(run) {
            Ok((rebalanced, returned)) => seen = (seen.0 + rebalanced, seen.1 + returned),
            Err(_) => panic!("the simulation failed: run it again with EVENER_SEED={seed}"),
        }
    }
    let enough = from.is_some() || seen.0 > 100 && seen.1 > 50;
    assert!(enough, "too few clients were rebalanced or returned to their homes: {seen:?}");
}

#[test]
fn a_seed_replays_the_same_history() {
    let history = |seed| {
        let mut simulation = Simulation::new(seed);
        (0..1_000).for_each(|_| simulation.step());
        let held: Vec<_> =
            simulation.connections.iter().map(|(client, choice)| (*client, choice.server.id)).collect();
        (simulation.now, held, simulation.snapshot.generation)
    };
    assert_eq!(history(42), history(42));
}
