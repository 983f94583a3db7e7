//! Functions of the configuration that run while the instance runs: checks, timers and handlers of events. An actor
//! on its own thread runs them, each call in its own Lua thread. A call pauses after some milliseconds, so that other
//! calls run, and is stopped when it has used up its budget.

mod actor;
mod bounds;
mod call;
mod library;
mod objects;
mod pattern;
#[cfg(test)]
mod tests;

pub(crate) use actor::{Actor, Checker, Outputs, Verdict};
pub(crate) use bounds::{Stopped, install};
pub(crate) use library::library_name;
pub(crate) use objects::{Change, ChangeRequest, add_pool_methods};

use arc_swap::ArcSwap;
use call::Call;
use evener_core::event::Event;
use evener_core::snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Time after which a call pauses.
const SLICE: Duration = Duration::from_millis(2);
/// Time that a call may run in all.
const BUDGET: Duration = Duration::from_secs(1);
/// Time that a call may run where it cannot pause, such as in a metamethod that the library calls.
const PAUSELESS_MAX: Duration = Duration::from_millis(20);
/// Time after which a thread that does not return from a call is given up.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// Maximum number of events that wait for their handlers.
const EVENTS_MAX: usize = 256;
/// Maximum number of operations of the libraries at the same time.
const OPERATIONS_MAX: usize = 256;
/// Memory that functions may use in addition to the values of the configuration.
const MEMORY_BYTES_MAX: usize = 16 << 20;

/// The pools, with the cells of their snapshots.
pub(crate) type PoolSlots = BTreeMap<Arc<str>, Arc<ArcSwap<Snapshot>>>;

/// A message of the scripts to the supervisor.
pub(crate) enum Output {
    /// A change of a pool.
    Change(ChangeRequest),
    /// An event to log.
    Event(Event),
}

/// State that the functions of one configuration share.
struct Runtime {
    origin: Instant,
    pools: ArcSwap<PoolSlots>,
    outputs: Outputs,
    allowed: BTreeSet<String>,
    /// Number of the configuration.
    generation: u64,
    current: Mutex<Option<Arc<Call>>>,
    /// Nanoseconds since `origin` at which the running slice began; 0 if no call runs.
    running_since: AtomicU64,
    /// Permits for operations of the libraries.
    operations: Arc<Semaphore>,
    /// Number of events that wait for their handlers.
    waiting: AtomicUsize,
    /// The call that did not end, if the thread was given up.
    given_up: Mutex<Option<Arc<Call>>>,
    /// True when the functions have to end.
    end: watch::Sender<bool>,
}

impl Runtime {
    fn new(generation: u64, pools: PoolSlots, outputs: Outputs, allowed: BTreeSet<String>) -> Self {
        Self {
            origin: Instant::now(),
            pools: ArcSwap::from_pointee(pools),
            outputs,
            allowed,
            generation,
            current: Mutex::default(),
            running_since: AtomicU64::new(0),
            operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
            waiting: AtomicUsize::new(0),
            given_up: Mutex::default(),
            end: watch::Sender::new(false),
        }
    }

    /// Ends all functions.
    fn end(&self) {
        self.end.send_replace(true);
    }

    /// Ends all functions, because a call did not end.
    fn give_up(&self, call: Arc<Call>) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
        self.end();
    }

    /// Returns the call that did not end.
    fn given_up(&self) -> Option<Arc<Call>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wait_for_end(&self) {
        let _ = self.end.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Counts an event that waits for its handler. Returns false if too many wait.
    fn begin_waiting(&self) -> bool {
        let has_room = self.waiting.load(Ordering::Relaxed) < EVENTS_MAX;
        if has_room {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    fn end_waiting(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Returns the call that runs now.
    fn current(&self) -> Option<Arc<Call>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins a slice of a call.
    fn enter(&self, call: &Arc<Call>) {
        let now = self.now().max(1);
        call.begin_slice(now);
        self.running_since.store(now, Ordering::Release);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(call));
    }

    /// Ends a slice of a call.
    fn leave(&self, call: &Call) {
        self.running_since.store(0, Ordering::Release);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        call.end_slice(self.now());
    }

    /// Returns the name of the call that has not paused for too long.
    fn stuck(&self) -> Option<Arc<Call>> {
        let since = self.running_since.load(Ordering::Acquire);
        let is_stuck = since > 0 && self.now().saturating_sub(since) > STUCK_AFTER.as_nanos() as u64;
        is_stuck.then(|| self.current()).flatten()
    }
}
