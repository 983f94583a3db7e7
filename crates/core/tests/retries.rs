//! A seeded simulation of retries: servers fail and revive under load, and the connections, requests, datagrams
//! and queries of four protocols are tried at them by [`Attempt`]. A failure prints the seed.
#![allow(clippy::disallowed_methods, reason = "the seed to replay comes from the environment")]

use evener_core::attempt::{Attempt, AttemptLimits, FailedTry};
use evener_core::health::Failure;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::{Choice, Entry, NoServer, Request, Snapshot};
use evener_core::spec::{PassiveSpec, Policy, PoolSpec, RetryBudgetSpec, ServerSpec};
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 4;
/// Number of further tries that a protocol permits after a server was reached.
const RETRIES: u32 = 2;
/// Maximum number of connections that can be reused.
const POOLED_MAX: u64 = 50;

/// State of a simulated server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Serves,
    Refuses,
    Times,
    /// Accepts connections and requests, and closes.
    Closes,
}

/// The use that a protocol makes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Connection attempts only.
    Tcp,
    /// A connection that is established can close without a response.
    Http,
    /// The first server is known, because the flow has begun there.
    Udp,
    /// Servers may not suit, may be silent, and may be queried again.
    Dns,
}

const SHAPES: [Shape; 4] = [Shape::Tcp, Shape::Http, Shape::Udp, Shape::Dns];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    requests: u64,
    /// Tries that reached a server, or failed because of a server.
    tries: u64,
    served: u64,
    /// Requests that failed because the budget was used up.
    refused: u64,
}

struct Simulation {
    random: Random,
    now: Time,
    pool: Pool,
    snapshot: Arc<Snapshot>,
    behaviours: Vec<Behaviour>,
    /// Failures that the supervisor has not processed yet.
    reports: VecDeque<ServerId>,
    /// Some tries fail for a local reason.
    has_local_failures: bool,
    /// Number of connections that have carried a response and can be reused.
    pooled: u64,
    tally: Tally,
}

impl Simulation {
    fn new(seed: u64, servers: usize, change: impl FnOnce(&mut PoolSpec, &mut Random)) -> Self {
        let mut random = Random::seeded(seed);
        let server = |number| {
            let endpoint: Endpoint = format!("10.0.0.1:{}", 8000 + number).parse().expect("an address");
            ServerSpec::new(endpoint)
        };
        let mut spec = PoolSpec::new("simulated", (0..servers).map(server).collect());
        spec.policy = Policy::named(Policy::NAMES[random.below(Policy::NAMES.len())]).expect("a policy");
        if let Policy::Maglev { table } = &mut spec.policy {
            *table = 251;
        }
        change(&mut spec, &mut random);
        let targets: Vec<Target> =
            spec.servers.iter().map(|server| server.endpoint.target().expect("an address")).collect();
        let setting = PoolSetting { workers: WORKERS, key: seed, first_id: 0 };
        let mut pool = Pool::new(&spec, &targets, setting, Time::ZERO);
        let snapshot = Arc::new(pool.snapshot().expect("a new pool has a snapshot"));
        let behaviours = vec![Behaviour::Serves; servers];
        let (reports, tally) = (VecDeque::new(), Tally::default());
        let (now, has_local_failures) = (Time::ZERO, false);
        Self { random, now, pool, snapshot, behaviours, reports, has_local_failures, pooled: 0, tally }
    }

    /// Lets time pass, with some requests of a random or given shape in every millisecond.
    fn run(&mut self, millis: u64, per_milli: usize, shape: Option<Shape>) {
        for _ in 0..millis {
            self.now += Duration::from_millis(1);
            let _ = self.pool.on_time(self.now);
            // The supervisor processes reports a little later.
            for server in std::mem::take(&mut self.reports) {
                let _ = self.pool.on_failure(self.now, server, &Failure::Refused);
            }
            if let Some(snapshot) = self.pool.snapshot() {
                self.snapshot = Arc::new(snapshot);
            }
            for _ in 0..per_milli {
                let any = SHAPES[self.random.below(SHAPES.len())];
                self.request(shape.unwrap_or(any));
            }
        }
    }

    fn request(&mut self, shape: Shape) {
        let client = [10, 1, self.random.below(256) as u8, self.random.below(256) as u8];
        let request = Request::of(client.into(), self.now);
        let snapshot = Arc::clone(&self.snapshot);
        let worker = self.random.below(WORKERS);
        let mut attempt = match shape {
            Shape::Udp => Attempt::first_try(worker, &snapshot, self.now),
            Shape::Tcp | Shape::Http | Shape::Dns => Attempt::new(worker),
        };
        self.tally.requests += 1;
        let (mut tried, mut retries, mut is_first) = (Vec::new(), RETRIES, true);
        loop {
            let choice = match self.pick(shape, &snapshot, &request, &mut attempt) {
                Ok(choice) => choice,
                Err(reason) => {
                    self.tally.refused += u64::from(reason == NoServer::RetryBudget);
                    return;
                }
            };
            assert_eq!(choice.is_retry, !is_first, "every further try is a retry");
            is_first = false;
            let server = choice.server.id;
            assert!(!tried.contains(&server), "{shape:?}: a server is tried once");
            self.tally.tries += 1;
            let behaviour = self.behaviours[server.0 as usize];
            match (behaviour, shape) {
                (Behaviour::Serves, _) => {
                    self.tally.served += 1;
                    self.pooled = (self.pooled + 1).min(POOLED_MAX);
                    return;
                }
                // The connection is established.
                (Behaviour::Closes, Shape::Tcp) => return,
                (Behaviour::Closes, _) => {
                    if shape == Shape::Http && self.pooled > 0 {
                        self.pooled -= 1;
                        attempt.repeat();
                        continue;
                    }
                    if retries == 0 || !attempt.may_retry(&snapshot, self.now) {
                        self.tally.refused += u64::from(retries > 0);
                        return;
                    }
                    retries -= 1;
                    attempt.retry_elsewhere(server);
                }
                (Behaviour::Refuses, _) => {
                    attempt.failed(server, choice.why, FailedTry::QUICK);
                    self.reports.push_back(server);
                }
                (Behaviour::Times, Shape::Dns) if retries > 0 && self.random.below(8) == 0 => {
                    retries -= 1;
                    attempt.failed(server, choice.why, FailedTry::QUICK);
                    attempt.try_all_again(&[]);
                    tried.clear();
                    continue;
                }
                (Behaviour::Times, _) => {
                    // The timeouts of a query are bounded by its number of retries.
                    let is_query = shape == Shape::Dns;
                    let failed = if is_query { FailedTry::QUICK } else { FailedTry::SLOW };
                    attempt.failed(server, choice.why, failed);
                    self.reports.push_back(server);
                }
            }
            tried.push(server);
        }
    }

    fn pick(
        &mut self,
        shape: Shape,
        snapshot: &Snapshot,
        request: &Request,
        attempt: &mut Attempt,
    ) -> Result<Choice, NoServer> {
        let limits = AttemptLimits { slow_max: 3, ..AttemptLimits::NONE };
        // After a local failure the next try is not a retry.
        if self.has_local_failures && self.random.below(50) == 0 {
            let choice = attempt.next(snapshot, request, &limits, &mut self.random)?;
            attempt.failed(choice.server.id, choice.why, FailedTry::LOCAL);
            if choice.is_retry {
                return attempt.next(snapshot, request, &limits, &mut self.random).map(|next| {
                    assert!(!next.is_retry, "a retry that reached no server is charged once");
                    Choice { is_retry: true, ..next }
                });
            }
        }
        match shape {
            Shape::Dns => {
                let salt = self.random.below(7) as u32;
                let suits = |server: &Entry| !(server.id.0 + salt).is_multiple_of(7);
                attempt.next_suitable(snapshot, request, &limits, &mut self.random, suits)
            }
            Shape::Tcp | Shape::Http | Shape::Udp => {
                attempt.next(snapshot, request, &limits, &mut self.random)
            }
        }
    }

    fn fail_all(&mut self) {
        for behaviour in &mut self.behaviours {
            *behaviour = [Behaviour::Refuses, Behaviour::Times, Behaviour::Closes][self.random.below(3)];
        }
    }
}

fn for_each_seed(run: impl Fn(u64)) {
    let from = std::env::var("EVENER_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in from.map_or(0..24, |seed: u64| seed..seed + 1) {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
        assert!(result.is_ok(), "the simulation failed: run it again with EVENER_SEED={seed}");
    }
}

#[test]
fn while_all_servers_fail_tries_stay_within_the_budget() {
    for_each_seed(|seed| {
        let servers = 2 + seed as usize % 11;
        let mut simulation = Simulation::new(seed, servers, |spec, random| {
            let failures = random.below(2) as u32;
            spec.passive = PassiveSpec { failures, down_for: Duration::from_secs(1) };
        });
        simulation.has_local_failures = seed % 2 == 0;
        let healthy_millis = 2_000 + simulation.random.below(12_000) as u64;
        simulation.run(healthy_millis, 1, None);
        let before = simulation.tally;
        assert_eq!((before.tries, before.served, before.refused), (before.requests, before.requests, 0));
        simulation.fail_all();
        for _ in 0..15 {
            simulation.run(1_000, 1, None);
            let Tally { requests, tries, .. } = simulation.tally;
            // Each reused connection may end once, even if the budget is used up.
            assert!((tries - POOLED_MAX) * 100 < requests * 120, "{tries} tries for {requests} requests");
        }
        // While all servers are known to be down, some attempts end after one slow failure.
        let passive = &simulation.pool.spec().passive;
        assert!(passive.failures > 0 || simulation.tally.refused > 0, "the budget is used up");
        simulation.behaviours.fill(Behaviour::Serves);
        // All servers are up after `down_for`.
        simulation.run(2_000, 1, None);
        let before = simulation.tally;
        simulation.run(1_000, 1, None);
        assert_eq!(simulation.tally.served - before.served, 1_000, "revived servers serve every request");
        assert_eq!(simulation.tally.tries - before.tries, 1_000);
    });
}

#[test]
fn without_earlier_requests_only_the_floor_exceeds_the_share() {
    for_each_seed(|seed| {
        let shape = SHAPES[seed as usize % 4];
        let (share_percent, min_per_second) = ((seed as u32 * 37) % 101, (seed as u32 * 7) % 23);
        let mut simulation = Simulation::new(seed, 5, |spec, _| {
            spec.retry_budget = Some(RetryBudgetSpec { share_percent, min_per_second });
            spec.passive.failures = 0;
        });
        simulation.behaviours.fill(Behaviour::Refuses);
        let floor = u64::from(min_per_second) * 10;
        for _ in 0..20 {
            simulation.run(1_000, 1, Some(shape));
            let Tally { requests, tries, .. } = simulation.tally;
            let retries_max = requests * u64::from(share_percent) / 100 + floor;
            assert!(tries <= requests + retries_max, "{tries} tries for {requests} requests");
        }
    });
}

#[test]
fn a_dead_server_loses_no_request_of_a_steady_load() {
    for_each_seed(|seed| {
        let servers = 2 + seed as usize % 7;
        let down_for = Duration::from_secs(3);
        let mut simulation = Simulation::new(seed, servers, |spec, _| spec.passive.down_for = down_for);
        for _ in 0..5 {
            let period_millis = 1_000 + simulation.random.below(6_000) as u64;
            simulation.run(period_millis, 1, None);
            let (dead, is_silent) = (simulation.random.below(servers), simulation.random.below(2) == 0);
            simulation.behaviours[dead] = if is_silent { Behaviour::Times } else { Behaviour::Refuses };
            simulation.run(period_millis, 1, None);
            simulation.behaviours[dead] = Behaviour::Serves;
            // Only one server is out at a time.
            simulation.run(down_for.as_millis() as u64 + 1, 1, None);
        }
        let Tally { requests, served, refused, .. } = simulation.tally;
        assert_eq!((served, refused), (requests, 0), "every request is served");
    });
}

#[test]
fn all_requests_in_progress_at_a_dying_server_are_retried() {
    let mut simulation = Simulation::new(1, 3, |spec, _| spec.policy = Policy::RoundRobin);
    simulation.run(10_000, 1, Some(Shape::Http));
    // A third of two seconds of requests are in progress at the server.
    let snapshot = Arc::clone(&simulation.snapshot);
    let retried = (0..2_000 / 3).filter(|number| {
        let request = Request::of([10, 1, 0, *number as u8].into(), simulation.now);
        let mut attempt = Attempt::new(0);
        let limits = AttemptLimits::NONE;
        let choice = attempt.next(&snapshot, &request, &limits, &mut simulation.random);
        let server = choice.expect("all servers are up").server.id;
        attempt.retry_elsewhere(server);
        attempt.next(&snapshot, &request, &limits, &mut simulation.random).is_ok()
    });
    assert_eq!(retried.count(), 2_000 / 3);
}

#[test]
fn a_client_at_times_finds_the_only_living_server_of_a_pool() {
    for_each_seed(|seed| {
        let servers = [30, 300][seed as usize % 2];
        let mut simulation = Simulation::new(seed, servers, |spec, _| spec.passive.failures = 0);
        simulation.behaviours.fill(Behaviour::Refuses);
        simulation.behaviours[seed as usize % servers] = Behaviour::Serves;
        let pause = Duration::from_secs(if servers == 30 { 5 } else { 13 });
        for _ in 0..10 {
            simulation.now += pause;
            simulation.request(SHAPES[seed as usize / 2 % 4]);
        }
        assert_eq!((simulation.tally.served, simulation.tally.refused), (10, 0));
    });
}

#[test]
fn without_a_budget_every_server_is_tried() {
    let mut simulation = Simulation::new(1, 10, |spec, _| {
        (spec.retry_budget, spec.passive.failures) = (None, 0);
    });
    simulation.behaviours.fill(Behaviour::Refuses);
    simulation.run(500, 1, Some(Shape::Tcp));
    let Tally { requests, tries, refused, .. } = simulation.tally;
    assert_eq!((requests, refused), (500, 0));
    assert_eq!(tries, 5_000);
}
