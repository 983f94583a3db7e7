//! Functions of the configuration that run while the instance runs: checks, timers and handlers of events. An actor
//! on its own thread runs them, each call in its own Lua thread. A call pauses after some milliseconds, so that other
//! calls run, and is stopped when it has used up its budget.

mod actor;
mod bounds;
mod call;
mod library;
mod objects;
mod pattern;
mod rate;
#[cfg(test)]
mod tests;

pub(crate) use actor::{Actor, Checker, Outputs, Verdict};
pub(crate) use bounds::{Stopped, install};
pub(crate) use library::library_name;
pub(crate) use objects::{Change, ChangeRequest, add_pool_methods};

use arc_swap::ArcSwap;
use call::Call;
use evener_core::event::{Event, Level, ScriptLevel};
use evener_core::snapshot::Snapshot;
use mlua::Lua;
use rate::{PerSecond, Rate};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

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
/// Maximum number of messages, and of errors of timers and handlers, that functions send to the supervisor in a second.
const EVENTS_PER_SECOND: u32 = 200;
/// Maximum number of changes of pools that functions request in a second.
const CHANGES_PER_SECOND: u32 = 1000;
/// Maximum number of changes of pools that wait for the supervisor.
const CHANGES_WAITING_MAX: usize = 256;
/// Interval at which a change tries again if there were too many.
const CHANGE_RETRY: Duration = Duration::from_millis(50);
/// Maximum number of connections of all functions.
const CONNECTIONS_MAX: usize = 256;
/// Maximum number of connections of a call.
const CALL_CONNECTIONS_MAX: usize = 16;
/// Memory that functions may use in addition to the values of the configuration.
const MEMORY_BYTES_MAX: usize = 16 << 20;
/// Free memory that functions must have after a call failed because it got none. With less, they are started anew.
const MEMORY_BYTES_FREE: usize = MEMORY_BYTES_MAX / 4;
/// Longest text of a function that is logged or shown: a message, a reason or an error.
const TEXT_CHARS_MAX: usize = 2000;

/// The pools, with the cells of their snapshots.
pub(crate) type PoolSlots = BTreeMap<Arc<str>, Arc<ArcSwap<Snapshot>>>;

/// A message of the scripts to the supervisor.
pub(crate) enum Output {
    /// A change of a pool.
    Change(ChangeRequest),
    /// An event to log.
    Event(Event),
}

/// Returns the first characters of a text, at most `TEXT_CHARS_MAX`.
fn first_chars(text: &[u8]) -> String {
    // A character has at most 4 bytes.
    let first = &text[..text.len().min(4 * TEXT_CHARS_MAX)];
    String::from_utf8_lossy(first).chars().take(TEXT_CHARS_MAX).collect()
}

/// State that the functions of one configuration share.
struct Runtime {
    origin: Instant,
    pools: PoolSlots,
    outputs: Outputs,
    allowed: BTreeSet<String>,
    /// Number of the configuration.
    generation: u64,
    current: Mutex<Option<Arc<Call>>>,
    /// Nanoseconds since `origin` at which the running slice began; 0 if no call runs.
    running_since: AtomicU64,
    /// Permits for operations of the libraries.
    operations: Arc<Semaphore>,
    /// Permits for connections.
    connections: Arc<Semaphore>,
    /// Permit for a slice of a call that has paused: other calls wait for one such slice, whatever their number.
    long_turn: Semaphore,
    /// Number of events that wait for their handlers.
    waiting: AtomicUsize,
    messages: PerSecond,
    failures: PerSecond,
    changes: PerSecond,
    /// Permits for changes that wait for the supervisor.
    changes_waiting: Arc<Semaphore>,
    /// Limit of the memory of Lua.
    memory_max: AtomicUsize,
    /// File and line of the function after which the memory was full of values that are in use.
    filled_by: Mutex<Option<String>>,
    /// The call that did not end, if the thread was given up.
    given_up: Mutex<Option<Arc<Call>>>,
    /// True when the functions have to end.
    end: watch::Sender<bool>,
}

impl Runtime {
    fn new(generation: u64, pools: PoolSlots, outputs: Outputs, allowed: BTreeSet<String>) -> Self {
        Self {
            origin: Instant::now(),
            pools,
            outputs,
            allowed,
            generation,
            current: Mutex::default(),
            running_since: AtomicU64::new(0),
            operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            long_turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            messages: PerSecond::new(EVENTS_PER_SECOND),
            failures: PerSecond::new(EVENTS_PER_SECOND),
            changes: PerSecond::new(CHANGES_PER_SECOND),
            changes_waiting: Arc::new(Semaphore::new(CHANGES_WAITING_MAX)),
            memory_max: AtomicUsize::new(usize::MAX),
            filled_by: Mutex::default(),
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

    /// Sends an event to the supervisor, unless there were too many in a second, so that its queue is never full.
    fn report(&self, rate: &PerSecond, event: Event, script: &str) {
        let event = match rate.admit(Instant::now()) {
            Rate::Admitted => event,
            Rate::FirstRefused => Event::ScriptMessage {
                severity: ScriptLevel(Level::Warn),
                script: script.to_owned(),
                text: format!(
                    "there were more than {EVENTS_PER_SECOND} messages or errors in a second: those of the rest of the second are dropped"
                ),
            },
            Rate::Refused => return,
        };
        (self.outputs)(Output::Event(event));
    }

    /// Waits until a change may be requested. It waits for the supervisor until the permit is dropped.
    async fn admit_change(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.changes_waiting).acquire_owned().await.ok();
        while self.changes.admit(Instant::now()) != Rate::Admitted {
            tokio::time::sleep(CHANGE_RETRY).await;
        }
        permit
    }

    /// Collects the garbage after a call that got no memory, and records whether the memory is still full.
    fn collect_garbage(&self, lua: &Lua, call: &Arc<Call>) {
        // Functions that finalize values run in this slice.
        self.enter(call);
        let collected = lua.gc_collect();
        self.leave(call);
        let used_max = self.memory_max.load(Ordering::Relaxed).saturating_sub(MEMORY_BYTES_FREE);
        if collected.is_err() || lua.used_memory() > used_max {
            let script = call.script().to_owned();
            self.filled_by.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(script);
        }
    }

    /// Returns file and line of the function after which the memory was full.
    fn filled_by(&self) -> Option<String> {
        self.filled_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_ended(&self) -> bool {
        *self.end.borrow()
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
