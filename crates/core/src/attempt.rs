//! An attempt: one client's way to a server. Which server is next after one that failed, and when it is given up. It owns
//! what was tried; it refuses to know how a connect is made, and what its failure means for the server.

use crate::ServerId;
use crate::random::Random;
use crate::snapshot::{Choice, NoServer, Request, Snapshot, Why};
use crate::time::Time;
use std::time::Duration;

/// So many servers are chosen one by one, each as if the others were not there. From then on the order of all that are left
/// is made once, so that a pool of any size costs about as much for each server as a small one.
const CHOSEN_MAX: usize = 16;
/// So often the order is made: servers that changed meanwhile are in the next one.
const ORDERS_MAX: u32 = 4;
/// So many servers may fail at once for one client.
pub const QUICK_FAILURES_MAX: usize = 10_000;
/// So many servers that traffic took out may fail at once for one client.
const LAST_RESORTS_MAX: u32 = 16;

/// Limits of what failed servers may cost a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// Servers that may fail otherwise than at once.
    pub slow_max: u32,
    /// From the first choice to the last connect.
    pub time_max: Duration,
    /// The client can wait in the queue of the pool: rather than try a server that traffic took out, it waits for one that
    /// is full.
    pub can_wait: bool,
}

impl AttemptLimits {
    /// Nothing but [`QUICK_FAILURES_MAX`] limits it.
    pub const NONE: Self = Self { slow_max: u32::MAX, time_max: Duration::MAX, can_wait: false };
}

/// The cost of a failed server to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Next to nothing: it refused, or the system did.
    Quick,
    /// Time.
    Slow,
}

/// An attempt. Most succeed at once: what failed is kept apart.
#[derive(Clone, Debug)]
pub struct Attempt {
    began: Time,
    failures: Option<Box<Failures>>,
}

impl Default for Attempt {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Debug, Default)]
struct Failures {
    /// Sorted.
    tried: Vec<ServerId>,
    slow: u32,
    last_resorts: u32,
    /// A server that traffic had taken out cost time again.
    is_hopeless: bool,
    /// A server was reached, and will be for others.
    was_served: bool,
    order: Order,
}

/// Servers in the order in which the policy would choose them; the next one is last.
#[derive(Clone, Debug, Default)]
struct Order {
    left: Vec<(ServerId, Why)>,
    made: u32,
}

impl Attempt {
    /// Nothing tried yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { began: Time::NEVER, failures: None }
    }

    /// Returns the number of servers that were tried.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.failures.as_ref().map_or(0, |failures| failures.tried.len())
    }

    /// Chooses the next server and takes a place there.
    ///
    /// # Errors
    /// Why none is chosen. [`NoServer::Failed`] also when the limits are reached.
    pub fn next(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        let choice = self.choose(snapshot, request, limits, random)?;
        let is_tried = |id| self.failures.as_ref().is_some_and(|failures| failures.has_tried(id));
        let should_wait = limits.can_wait && choice.why == Why::LastResort;
        if should_wait && snapshot.is_worth_waiting(request, is_tried) {
            return Err(NoServer::Full);
        }
        Ok(choice)
    }

    fn choose(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        self.began = self.began.min(request.now);
        let Some(failures) = &mut self.failures else { return snapshot.pick(request, &[], random) };
        if failures.exceed(limits) || request.now.since(self.began) >= limits.time_max {
            Err(NoServer::Failed)
        } else if failures.tried.len() >= CHOSEN_MAX && !snapshot.is_alone() {
            failures.next_in_order(snapshot, request, random)
        } else if failures.was_served {
            snapshot.pick_again(request, &failures.tried, random)
        } else {
            snapshot.pick(request, &failures.tried, random)
        }
    }

    /// The chosen server failed: it is passed over from now on.
    pub fn failed(&mut self, server: ServerId, why: Why, cost: Cost) {
        self.pass_over(server);
        let failures = self.failures.get_or_insert_default();
        failures.slow += u32::from(cost == Cost::Slow);
        failures.last_resorts += u32::from(why == Why::LastResort);
        failures.is_hopeless |= why == Why::LastResort && cost == Cost::Slow;
    }

    /// The server was reached, but the request has to go to another one: that has as much time as the first one had.
    pub fn again(&mut self, server: ServerId) {
        self.pass_over(server);
        self.failures.get_or_insert_default().was_served = true;
        self.began = Time::NEVER;
    }

    /// The client waited in a queue, or its request was under way: that time does not count, and servers that were full
    /// may have room since.
    pub fn begin_anew(&mut self) {
        self.began = Time::NEVER;
        if let Some(failures) = &mut self.failures {
            failures.order = Order::default();
        }
    }

    /// Passes a server over, for a reason of the request.
    pub fn pass_over(&mut self, server: ServerId) {
        let tried = &mut self.failures.get_or_insert_default().tried;
        if let Err(at) = tried.binary_search(&server) {
            tried.insert(at, server);
        }
    }

    /// When a connect that begins now is given up.
    #[must_use]
    pub fn deadline(&self, now: Time, connect_timeout: Duration, limits: &AttemptLimits) -> Time {
        let whole = self.began.min(now) + limits.time_max;
        whole.min(now + connect_timeout)
    }
}

impl Failures {
    fn has_tried(&self, id: ServerId) -> bool {
        self.tried.binary_search(&id).is_ok()
    }

    fn exceed(&self, limits: &AttemptLimits) -> bool {
        self.is_hopeless
            || self.slow >= limits.slow_max
            || self.last_resorts >= LAST_RESORTS_MAX
            || self.tried.len() >= QUICK_FAILURES_MAX
    }

    fn next_in_order(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        let is_tried = |id: ServerId| self.tried.binary_search(&id).is_ok();
        let order = &mut self.order;
        loop {
            while let Some((id, why)) = order.left.pop() {
                if let Some(choice) = snapshot.take(id, request, why) {
                    return Ok(choice);
                }
            }
            if order.made < ORDERS_MAX {
                order.made += 1;
                order.left = snapshot.order(request, random, is_tried);
            }
            if order.left.is_empty() {
                return Err(snapshot.refusal(request, self.tried.len(), is_tried));
            }
        }
    }
}

/// Counts the servers that were looked at, in tests only.
pub(crate) mod work {
    #[cfg(test)]
    thread_local! {
        static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(not(test))]
    pub(crate) const fn add(_looked_at: usize) {}

    #[cfg(test)]
    pub(crate) fn add(looked_at: usize) {
        DONE.set(DONE.get() + looked_at as u64);
    }

    #[cfg(test)]
    pub(crate) fn reset() {
        DONE.set(0);
    }

    #[cfg(test)]
    pub(crate) fn done() -> u64 {
        DONE.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Failure;
    use crate::pool::{Pool, PoolSetting};
    use crate::spec::{Policy, PoolSpec, ServerSpec, StickyBy, StickySpec};
    use crate::{Endpoint, Target};
    use std::net::Ipv4Addr;

    const LIMITS: AttemptLimits =
        AttemptLimits { slow_max: 3, time_max: Duration::from_secs(10), can_wait: true };

    fn pool(policy: &str, servers: usize, change: impl FnOnce(&mut PoolSpec)) -> Pool {
        let server = |at: usize| {
            let mut server = ServerSpec::new(Endpoint::Unix(format!("/{at}").into()));
            server.tier = u8::from(at.is_multiple_of(3));
            server
        };
        let mut spec = PoolSpec::new("p", (0..servers).map(server).collect());
        spec.policy = Policy::named(policy).unwrap();
        change(&mut spec);
        let targets: Vec<Target> =
            spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect();
        Pool::new(&spec, &targets, PoolSetting { workers: 1, key: 1, first_id: 0 }, Time::ZERO)
    }

    fn sticky(spec: &mut PoolSpec) {
        let by = StickyBy::ClientIp;
        spec.sticky = Some(StickySpec { by, size: 16, ttl: None, failback: true, rebalance: None });
    }

    /// Fails everywhere; the servers in turn, and why there was none at the end.
    fn all(snapshot: &Snapshot, cost: Cost) -> (Vec<ServerId>, NoServer) {
        let (mut attempt, mut random, mut seen) = (Attempt::new(), Random::seeded(1), Vec::new());
        let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
        loop {
            match attempt.next(snapshot, &request, &LIMITS, &mut random) {
                Ok(choice) => {
                    assert!(seen.len() <= attempt.tried());
                    seen.push(choice.server.id);
                    attempt.failed(choice.server.id, choice.why, cost);
                }
                Err(reason) => return (seen, reason),
            }
        }
    }

    #[test]
    fn thousands_of_servers_that_refuse_cost_hardly_more_each_than_a_few() {
        const SERVERS: usize = 5_000;
        for policy in Policy::NAMES {
            let snapshot = pool(policy, SERVERS, sticky).snapshot().unwrap();
            let client = Ipv4Addr::LOCALHOST.into();
            snapshot.remember(client, snapshot.servers()[7].id, Time::ZERO);
            work::reset();
            let (mut seen, reason) = all(&snapshot, Cost::Quick);
            // Some passes over all of them, not one for each.
            let looked = work::done();
            assert!(looked < (CHOSEN_MAX as u64 * 10 + 40) * SERVERS as u64, "{policy}: {looked}");
            assert_eq!((seen.len(), reason), (SERVERS, NoServer::Failed), "{policy}");
            let tiers: Vec<u8> = seen.iter().skip(1).map(|id| snapshot.server(*id).unwrap().tier).collect();
            assert!(tiers.is_sorted(), "{policy}: a lower tier came first");
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), SERVERS, "{policy}: each is tried once");
        }
    }

    #[test]
    fn the_order_of_many_is_that_of_choosing_one_by_one() {
        for policy in ["hash", "maglev", "first", "least_outstanding"] {
            let snapshot = pool(policy, 60, |_| {}).snapshot().unwrap();
            let (mut tried, mut random) = (Vec::new(), Random::seeded(1));
            let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
            while let Ok(choice) = snapshot.pick(&request, &tried, &mut random) {
                tried.push(choice.server.id);
            }
            assert_eq!(all(&snapshot, Cost::Quick).0, tried, "{policy}");
        }
    }

    #[test]
    fn servers_that_cost_time_are_bounded_in_number_and_time() {
        let snapshot = pool("round_robin", 50, |_| {}).snapshot().unwrap();
        assert_eq!((all(&snapshot, Cost::Slow).0.len(), all(&snapshot, Cost::Slow).1), (3, NoServer::Failed));
        let (mut attempt, mut random) = (Attempt::new(), Random::seeded(1));
        let at = |secs| Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO + Duration::from_secs(secs));
        let choice = attempt.next(&snapshot, &at(5), &LIMITS, &mut random).unwrap();
        let deadline = |attempt: &Attempt, now, timeout| {
            attempt.deadline(now, Duration::from_secs(timeout), &LIMITS).since(now).as_secs()
        };
        assert_eq!(deadline(&attempt, at(5).now, 3), 3);
        attempt.failed(choice.server.id, choice.why, Cost::Slow);
        assert_eq!(deadline(&attempt, at(13).now, 3), 2);
        assert!(attempt.next(&snapshot, &at(14), &LIMITS, &mut random).is_ok());
        assert_eq!(attempt.next(&snapshot, &at(15), &LIMITS, &mut random).unwrap_err(), NoServer::Failed);
        // Another request of the same client, or the same one again, has its own time.
        attempt.again(choice.server.id);
        assert!(attempt.next(&snapshot, &at(60), &LIMITS, &mut random).is_ok());
        assert_eq!(attempt.next(&snapshot, &at(90), &LIMITS, &mut random).unwrap_err(), NoServer::Failed);
        attempt.begin_anew();
        assert!(attempt.next(&snapshot, &at(90), &LIMITS, &mut random).is_ok());
        assert_eq!(deadline(&attempt, at(90).now, 3), 3);
    }

    #[test]
    fn a_client_waits_for_a_full_server_rather_than_try_one_that_traffic_took_out() {
        let mut pool = pool("first", 2, |spec| {
            for server in &mut spec.servers {
                (server.tier, server.limits.hard) = (1, Some(1));
            }
        });
        let dead = pool.servers()[1].id;
        let _ = pool.on_failure(Time::ZERO, dead, Failure::Timeout);
        let snapshot = pool.snapshot().unwrap();
        let (request, mut random) = (Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO), Random::seeded(1));
        let mut next = |limits| Attempt::new().next(&snapshot, &request, limits, &mut random);
        let taken = next(&LIMITS).unwrap();
        assert_eq!(next(&LIMITS).unwrap_err(), NoServer::Full);
        // Who cannot wait tries it.
        assert_eq!(next(&AttemptLimits::NONE).unwrap().server.id, dead);
        drop(taken);
        assert_ne!(next(&LIMITS).unwrap().server.id, dead);
    }

    #[test]
    fn a_client_that_waited_after_many_failures_gets_the_server_that_was_full() {
        let snapshot = pool("first", 40, |spec| {
            spec.servers.iter_mut().for_each(|server| (server.tier, server.limits.hard) = (1, Some(1)));
        });
        let snapshot = { snapshot }.snapshot().unwrap();
        let (request, mut random) = (Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO), Random::seeded(1));
        let last = snapshot.servers()[39].live.occupancy.enter(1).unwrap();
        let mut attempt = Attempt::new();
        for _ in 0..39 {
            let choice = attempt.next(&snapshot, &request, &LIMITS, &mut random).unwrap();
            attempt.failed(choice.server.id, choice.why, Cost::Quick);
        }
        for _ in 0..10 {
            attempt.begin_anew();
            assert_eq!(attempt.next(&snapshot, &request, &LIMITS, &mut random).unwrap_err(), NoServer::Full);
        }
        drop(last);
        attempt.begin_anew();
        assert!(attempt.next(&snapshot, &request, &LIMITS, &mut random).is_ok());
    }

    #[test]
    fn where_all_are_known_to_be_dead_one_that_costs_time_is_enough() {
        let mut pool = pool("round_robin", 20, |_| {});
        let ids: Vec<ServerId> = pool.servers().iter().map(|server| server.id).collect();
        for id in &ids {
            let _ = pool.on_failure(Time::ZERO, *id, Failure::Timeout);
        }
        let snapshot = pool.snapshot().unwrap();
        assert_eq!((all(&snapshot, Cost::Slow).0.len(), all(&snapshot, Cost::Slow).1), (1, NoServer::Failed));
        // A refusal costs nothing: some more are asked.
        assert_eq!(all(&snapshot, Cost::Quick).0.len(), LAST_RESORTS_MAX as usize);
    }
}
