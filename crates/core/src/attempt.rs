//! An attempt to reach a server for one connection, request, query or flow: the next server after a failure,
//! within the retry budget of the pool, and the moment to give up. An attempt owns the list of servers that
//! were tried. It neither opens connections nor changes the health of servers.

use crate::ServerId;
use crate::random::Random;
use crate::snapshot::{Choice, Entry, NoServer, Request, Snapshot, Why};
use crate::time::Time;
use std::time::Duration;

/// Maximum number of servers that are picked one by one. After these the order of all remaining servers is
/// computed, so that trying a server costs about as much in a large pool as in a small pool.
const CHOSEN_MAX: usize = 16;
/// Maximum number of times that the order is computed. Each new order includes the servers that became
/// available in the meantime.
const ORDERS_MAX: u32 = 4;
/// Maximum number of servers that may fail fast for one client.
pub const QUICK_FAILURES_MAX: usize = 10_000;
/// Maximum number of servers that passive checks had marked down and that may fail fast for one client.
const LAST_RESORTS_MAX: u32 = 16;
/// Maximum number of servers that are passed over for a more suitable server.
const UNSUITABLE_MAX: usize = 16;

/// Limits of the cost of failed servers for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// Number of servers that may fail slowly.
    pub slow_max: u32,
    /// Time from the first pick to the end of the last connection attempt.
    pub time_max: Duration,
    /// The client can wait in the queue of the pool. It then waits for a full server instead of trying a
    /// server that passive checks marked down.
    pub can_wait: bool,
    /// A server that passive checks marked down may be tried.
    pub last_resorts: bool,
}

impl AttemptLimits {
    /// No configured limits. Fixed limits, such as [`QUICK_FAILURES_MAX`], still apply.
    pub const NONE: Self =
        Self { slow_max: u32::MAX, time_max: Duration::MAX, can_wait: false, last_resorts: true };
}

/// Cost of a failed server for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Almost none: the server or the local system refused immediately.
    Quick,
    /// Time.
    Slow,
}

/// The party at fault for a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server or the network on the path to it.
    Server,
    /// The local system: no descriptor, port or memory was left, or a local rule forbids the connection.
    Local,
    /// The client, for example because its connections loop.
    Client,
}

/// A try that failed at one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedTry {
    /// The party at fault. Only a try that failed because of the server makes the next try a retry: the other
    /// failed tries reached no server.
    pub fault: Fault,
    /// Cost for the client.
    pub cost: Cost,
}

impl FailedTry {
    /// The server failed, and the failure was known immediately.
    pub const QUICK: Self = Self { fault: Fault::Server, cost: Cost::Quick };
    /// The server failed after some time.
    pub const SLOW: Self = Self { fault: Fault::Server, cost: Cost::Slow };
    /// The local system could not try the server.
    pub const LOCAL: Self = Self { fault: Fault::Local, cost: Cost::Quick };
}

/// An attempt to reach a server. Most attempts succeed with the first server, so the failures are
/// a separate allocation.
///
/// ```
/// use evener_core::attempt::{Attempt, AttemptLimits, FailedTry};
/// use evener_core::pool::{Pool, PoolSetting};
/// use evener_core::snapshot::Request;
/// use evener_core::spec::{PoolSpec, ServerSpec};
/// use evener_core::{Endpoint, Random, Time};
///
/// let endpoints: [Endpoint; 2] = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| text.parse().unwrap());
/// let targets: Vec<_> = endpoints.iter().filter_map(Endpoint::target).collect();
/// let spec = PoolSpec::new("web", endpoints.map(ServerSpec::new).into());
/// let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
/// let snapshot = Pool::new(&spec, &targets, setting, Time::ZERO).snapshot().unwrap();
/// let request = Request::of("192.0.2.1".parse().unwrap(), Time::ZERO);
/// let mut random = Random::seeded(1);
///
/// let mut attempt = Attempt::new(0);
/// let first = attempt.next(&snapshot, &request, &AttemptLimits::NONE, &mut random).unwrap();
/// attempt.failed(first.server.id, first.why, FailedTry::QUICK);
/// let second = attempt.next(&snapshot, &request, &AttemptLimits::NONE, &mut random).unwrap();
/// assert_ne!(first.server.id, second.server.id);
/// assert!(second.is_retry);
/// ```
#[derive(Clone, Debug)]
pub struct Attempt {
    began: Time,
    worker: u32,
    next_try: Try,
    failures: Option<Box<Failures>>,
}

/// Meaning of the next try for the retry budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    /// The first try, which adds to the budget.
    First,
    /// The first try or a retry that is accounted for, but has reached no server.
    Accounted,
    /// A server failed: the next try uses up a retry.
    Retry,
    /// A reused connection ended: the next try counts as a retry, but is always permitted.
    Repetition,
}

#[derive(Clone, Debug, Default)]
struct Failures {
    /// Sorted.
    tried: Vec<ServerId>,
    slow: u32,
    last_resorts: u32,
    /// A server that passive checks marked down failed slowly again.
    is_exhausted: bool,
    /// A server was reached, and the request goes to another server nevertheless.
    was_reached: bool,
    order: Order,
}

/// Servers in reverse of the order in which the policy would pick them: the next server is the last element.
#[derive(Clone, Debug, Default)]
struct Order {
    left: Vec<(ServerId, Why)>,
    computed: u32,
}

impl Attempt {
    /// Creates an attempt by worker number `worker`. Its first try adds to the retry budget.
    #[must_use]
    pub const fn new(worker: usize) -> Self {
        Self { began: Time::NEVER, worker: worker as u32, next_try: Try::First, failures: None }
    }

    /// Creates an attempt whose first try does not add to the retry budget, because [`Attempt::first_try`] of
    /// another attempt does.
    #[must_use]
    pub const fn uncounted(worker: usize) -> Self {
        Self { began: Time::NEVER, worker: worker as u32, next_try: Try::Accounted, failures: None }
    }

    /// Creates an attempt whose first try is at a server that is known already. The try adds to the retry
    /// budget.
    #[must_use]
    pub fn first_try(worker: usize, snapshot: &Snapshot, now: Time) -> Self {
        snapshot.retry_budget.deposit(worker, now);
        Self::uncounted(worker)
    }

    /// Counts the first try of an [`Attempt::uncounted`] that no server took, because no other attempt follows
    /// that would count it.
    pub fn count_first_failure(&self, snapshot: &Snapshot, now: Time) {
        if self.tried() > 0 {
            snapshot.retry_budget.deposit(self.worker as usize, now);
        }
    }

    /// Returns the number of servers that are excluded, because they failed or were passed over.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.failures.as_ref().map_or(0, |failures| failures.tried.len())
    }

    /// Picks the next server and takes a slot of that server.
    ///
    /// # Errors
    /// The reason why no server is picked. [`NoServer::Failed`] also means that the limits are reached.
    pub fn next(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        let choice = self.candidate(snapshot, request, limits, random)?;
        self.charge(choice, snapshot, request.now)
    }

    /// Picks the next server like [`Attempt::next`]. Servers that do not suit come last, if there are only some
    /// of them.
    ///
    /// # Errors
    /// As for [`Attempt::next`].
    pub fn next_suitable(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
        suits: impl Fn(&Entry) -> bool,
    ) -> Result<Choice, NoServer> {
        let first = self.candidate(snapshot, request, limits, random)?;
        let choice = if suits(&first.server) {
            first
        } else {
            let mut others = self.clone();
            others.pass_over(first.server.id);
            others.suitable(snapshot, request, limits, random, suits).unwrap_or(first)
        };
        self.charge(choice, snapshot, request.now)
    }

    fn suitable(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
        suits: impl Fn(&Entry) -> bool,
    ) -> Option<Choice> {
        for _ in 0..UNSUITABLE_MAX {
            let choice = self.candidate(snapshot, request, limits, random).ok()?;
            if suits(&choice.server) {
                return Some(choice);
            }
            self.pass_over(choice.server.id);
        }
        None
    }

    /// Accounts for a try at the chosen server in the retry budget.
    fn charge(&mut self, choice: Choice, snapshot: &Snapshot, now: Time) -> Result<Choice, NoServer> {
        let budget = &snapshot.retry_budget;
        let is_retry = match self.next_try {
            Try::First => {
                budget.deposit(self.worker as usize, now);
                false
            }
            Try::Accounted => false,
            Try::Retry if budget.withdraw(now) => true,
            Try::Retry => return Err(NoServer::RetryBudget),
            Try::Repetition => {
                budget.overdraw(now);
                true
            }
        };
        self.next_try = Try::Accounted;
        Ok(Choice { is_retry, ..choice })
    }

    /// Returns true if a retry is within the budget now. Protocols check this before they discard the result of
    /// a failed try.
    #[must_use]
    pub fn may_retry(&self, snapshot: &Snapshot, now: Time) -> bool {
        snapshot.retry_budget.permits(now)
    }

    /// Returns true if another server than `current` could take the request, if the retry budget permitted it.
    #[must_use]
    pub fn has_other(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        current: ServerId,
    ) -> bool {
        let failures = self.failures.as_deref();
        let is_tried = |id| id == current || failures.is_some_and(|failures| failures.has_tried(id));
        !failures.is_some_and(|failures| failures.exceed(limits))
            && snapshot.has_untried(request, limits.last_resorts, is_tried)
    }

    /// Picks the next server without accounting for it.
    fn candidate(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        limits: &AttemptLimits,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        let choice = self.choose(snapshot, request, limits, random)?;
        if choice.why == Why::LastResort && !limits.last_resorts {
            return Err(NoServer::Failed);
        }
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
        } else if failures.tried.len() >= CHOSEN_MAX && !snapshot.has_no_failover() {
            failures.next_in_order(snapshot, request, random)
        } else if failures.was_reached {
            snapshot.pick_again(request, &failures.tried, random)
        } else {
            snapshot.pick(request, &failures.tried, random)
        }
    }

    /// Records the failed try at the chosen server, which is not picked again.
    pub fn failed(&mut self, server: ServerId, why: Why, FailedTry { fault, cost }: FailedTry) {
        self.pass_over(server);
        if fault == Fault::Server {
            self.next_try = Try::Retry;
        }
        let failures = self.failures.get_or_insert_default();
        failures.slow += u32::from(cost == Cost::Slow);
        failures.last_resorts += u32::from(why == Why::LastResort);
        failures.is_exhausted |= why == Why::LastResort && cost == Cost::Slow;
    }

    /// Excludes a server that was reached, because the request has to go to another server. The time limit
    /// begins anew for the next server.
    pub fn retry_elsewhere(&mut self, server: ServerId) {
        self.pass_over(server);
        self.failures.get_or_insert_default().was_reached = true;
        self.next_try = Try::Retry;
        self.began = Time::NEVER;
    }

    /// Begins anew after a reused connection ended. The server did not fail, and the connection has carried a
    /// response before. So the next try counts as a retry, but is permitted even if the budget is used up.
    pub fn repeat(&mut self) {
        self.next_try = Try::Repetition;
        self.begin_anew();
    }

    /// Makes every server available again except `unfit`, after all were tried without a response.
    pub fn try_all_again(&mut self, unfit: &[ServerId]) {
        (self.began, self.failures) = (Time::NEVER, None);
        unfit.iter().for_each(|server| self.pass_over(*server));
    }

    /// Restarts the clock after the client waited in a queue or its request was in progress. Servers that
    /// were full may have free slots again.
    pub fn begin_anew(&mut self) {
        self.began = Time::NEVER;
        if let Some(failures) = &mut self.failures {
            failures.order = Order::default();
        }
    }

    /// Excludes a server without recording a failure, for example because the server cannot take this
    /// request.
    pub fn pass_over(&mut self, server: ServerId) {
        let tried = &mut self.failures.get_or_insert_default().tried;
        if let Err(at) = tried.binary_search(&server) {
            tried.insert(at, server);
        }
    }

    /// Returns the time at which a connection attempt that begins now times out.
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
        self.is_exhausted
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
                // The server may have been tried or passed over since the order was computed.
                if is_tried(id) {
                    continue;
                }
                if let Some(choice) = snapshot.take(id, request, why) {
                    return Ok(choice);
                }
            }
            if order.computed < ORDERS_MAX {
                order.computed += 1;
                order.left = snapshot.order(request, random, is_tried);
            }
            if order.left.is_empty() {
                return Err(snapshot.refusal(request, self.tried.len(), is_tried));
            }
        }
    }
}

/// Counts the servers that were inspected, in tests only.
pub(crate) mod work {
    #[cfg(test)]
    thread_local! {
        static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(not(test))]
    pub(crate) const fn add(_inspected: usize) {}

    #[cfg(test)]
    pub(crate) fn add(inspected: usize) {
        DONE.set(DONE.get() + inspected as u64);
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
mod tests;
