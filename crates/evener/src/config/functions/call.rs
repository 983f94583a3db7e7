//! One call of a function: its Lua thread, its slices and its budget.

use super::library::Socket;
use super::{BUDGET, CALL_CONNECTIONS_MAX, MEMORY_BYTES_MAX, PAUSELESS_MAX, Runtime, SLICE, first_chars};
use crate::config::{Problem, error_text, location_of, raise};
use mlua::debug::Debug;
use mlua::{Function, HookTriggers, IntoLuaMulti, Lua, MultiValue, VmState};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

/// Number of instructions between two looks at the clock. It is small, because an instruction can concatenate long
/// texts.
const INSTRUCTIONS_STEP: u32 = 100;

/// Maximum number of Lua threads that wait for calls.
const IDLE_THREADS_MAX: usize = 64;

/// Longest part of the time of a call that its operations leave for handling their failures.
const HANDLING_MAX: Duration = Duration::from_millis(100);
/// Time that operations wait for permits before this counts as a reason of their failure.
const QUEUED_MIN: Duration = Duration::from_millis(50);

/// A call of a function.
pub(super) struct Call {
    /// File and line of the function.
    script: String,
    /// Identity of the check that called the function.
    tag: Option<u64>,
    clock: Arc<Clock>,
    slice_began: AtomicU64,
    /// Nanoseconds of earlier slices.
    spent: AtomicU64,
    /// True if the call had to pause in this slice.
    is_pausing: AtomicBool,
    is_stopped: AtomicBool,
    got_no_memory: AtomicBool,
    reason: Mutex<Option<String>>,
    /// Operations of the libraries.
    operations: Mutex<Vec<AbortHandle>>,
    /// Sockets that are closed at the end of the call.
    sockets: Mutex<Vec<Weak<Socket>>>,
    /// Permits for connections.
    connections: Arc<Semaphore>,
}

/// Times of a call and of its operations.
pub(super) struct Clock {
    began: Instant,
    /// Time limit of the call.
    limit: Duration,
    /// Nanoseconds in which operations waited for permits.
    queued: AtomicU64,
    /// Number of operations that run.
    operating: AtomicUsize,
}

/// Counts an operation until it is dropped.
pub(super) struct Operating(Arc<Clock>);

impl Drop for Operating {
    fn drop(&mut self) {
        self.0.operating.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clock {
    pub(super) fn new(limit: Duration) -> Self {
        let (queued, operating) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { began: Instant::now(), limit, queued, operating }
    }

    /// Returns the time that an operation may take, so that the function can still handle its failure.
    pub(super) fn left_for_operation(&self) -> Duration {
        let left = self.limit.saturating_sub(self.began.elapsed());
        left - (left / 10).min(HANDLING_MAX)
    }

    /// Adds the time in which an operation waited for a permit.
    pub(super) fn add_queued(&self, waited: Duration) {
        self.queued.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Returns true if operations of the call waited for permits for a noticeable time.
    pub(super) fn was_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > QUEUED_MIN.as_nanos() as u64
    }

    /// Counts an operation that begins.
    pub(super) fn begin_operation(self: &Arc<Self>) -> Operating {
        self.operating.fetch_add(1, Ordering::Relaxed);
        Operating(Arc::clone(self))
    }

    /// Returns true if the call waits for a response, and not only because its operations waited for permits.
    fn waits_for_response(&self) -> bool {
        self.operating.load(Ordering::Relaxed) > 0 && !self.was_queued()
    }
}

/// Reason why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// The function failed or was stopped.
    Error(String),
    /// The time of the call ended while an operation ran.
    NoResponse(String),
}

impl Call {
    pub(super) fn new(script: String, tag: Option<u64>, timeout: Duration) -> Self {
        Self {
            script,
            tag,
            clock: Arc::new(Clock::new(timeout)),
            slice_began: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            is_pausing: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            got_no_memory: AtomicBool::new(false),
            reason: Mutex::default(),
            operations: Mutex::default(),
            sockets: Mutex::default(),
            connections: Arc::new(Semaphore::new(CALL_CONNECTIONS_MAX)),
        }
    }

    /// Returns the file and line of the function.
    pub(super) fn script(&self) -> &str {
        &self.script
    }

    /// Returns the identity of the check that called the function.
    pub(super) fn tag(&self) -> Option<u64> {
        self.tag
    }

    /// Returns the times of the call and of its operations.
    pub(super) fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.clock)
    }

    pub(super) fn begin_slice(&self, now: u64) {
        self.slice_began.store(now, Ordering::Relaxed);
        self.is_pausing.store(false, Ordering::Relaxed);
    }

    pub(super) fn end_slice(&self, now: u64) {
        let slice = now.saturating_sub(self.slice_began.load(Ordering::Relaxed));
        self.spent.fetch_add(slice, Ordering::Relaxed);
    }

    /// Returns true if the call was stopped. It never runs again, so that no `pcall` can catch this.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Adds an operation, which ends with the call.
    pub(super) fn add_operation(&self, operation: AbortHandle) {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations.retain(|operation| !operation.is_finished());
        operations.push(operation);
    }

    /// Takes a permit for a connection, if the call has not too many.
    pub(super) fn connection_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Adds a socket, which is closed at the end of the call.
    pub(super) fn add_socket(&self, socket: &Arc<Socket>) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|socket| socket.upgrade().is_some_and(|socket| !socket.is_closed()));
        sockets.push(Arc::downgrade(socket));
    }

    fn slice(&self, now: u64) -> u64 {
        now.saturating_sub(self.slice_began.load(Ordering::Relaxed))
    }

    /// Returns true if the call has to pause.
    pub(super) fn is_late(&self, now: u64) -> bool {
        self.slice(now) > SLICE.as_nanos() as u64
    }

    /// Stops the call because it used too much memory. A call that `pcall` lets run on would do nothing but collect
    /// garbage.
    pub(super) fn stop_for_memory(&self) {
        self.got_no_memory.store(true, Ordering::Relaxed);
        self.stop(&memory_text(&self.script), None);
    }

    /// Returns the text about a call that got no arguments.
    pub(super) fn failed_to_begin(
        self: &Arc<Self>,
        runtime: &Runtime,
        lua: &Lua,
        error: &mlua::Error,
    ) -> String {
        if is_memory_error(error) {
            self.stop_for_memory();
            runtime.collect_garbage(lua, self);
        }
        error_text(error)
    }

    fn stop(&self, reason: &str, location: Option<String>) {
        let mut stored = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let location_text = location.map(|location| format!("{location}: ")).unwrap_or_default();
        stored.get_or_insert_with(|| format!("{location_text}{reason}"));
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    fn reason(&self) -> String {
        let stored = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        stored.clone().unwrap_or_else(|| "it was stopped".into())
    }

    /// Decides after some instructions.
    fn on_instructions(&self, runtime: &Runtime, debug: &Debug<'_>) -> mlua::Result<VmState> {
        let slice = self.slice(runtime.now());
        let location_text = || location_of(debug).map(|location| location.to_string());
        // A loop of long library functions pauses in them, so that each of its slices may be short here.
        if self.spent.load(Ordering::Relaxed) + slice > BUDGET.as_nanos() as u64 {
            let reason = format!("it ran for more than {BUDGET:?} in all: check for an endless loop");
            self.stop(&reason, location_text());
        } else if slice <= SLICE.as_nanos() as u64 {
            return Ok(VmState::Continue);
        }
        // A call that had to pause and runs on is where it cannot pause.
        if self.is_pausing.swap(true, Ordering::Relaxed) && slice > PAUSELESS_MAX.as_nanos() as u64 {
            let reason =
                "it ran for too long in a function that the library calls: make the function shorter";
            self.stop(reason, location_text());
            return Err(raise(Problem::new(reason)));
        }
        Ok(VmState::Yield)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let operations = self.operations.get_mut().unwrap_or_else(PoisonError::into_inner);
        operations.iter().for_each(AbortHandle::abort);
        let sockets = self.sockets.get_mut().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().filter_map(Weak::upgrade).for_each(|socket| socket.close());
    }
}

fn is_memory_error(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_memory_error(cause),
        _ => false,
    }
}

fn memory_text(script: &str) -> String {
    format!(
        "{script}: the functions used more than {} MiB of memory: check for tables or texts that grow",
        MEMORY_BYTES_MAX >> 20
    )
}

/// Lua threads whose calls have ended. The next calls run on them.
#[derive(Default)]
pub(super) struct IdleThreads(Vec<mlua::Thread>);

/// Returns a Lua thread that will run a function, with the hook that bounds its call.
fn thread_for(lua: &Lua, runtime: &Arc<Runtime>, function: &Function) -> mlua::Result<mlua::Thread> {
    let idle = lua.app_data_mut::<IdleThreads>().and_then(|mut threads| threads.0.pop());
    if let Some(thread) = idle
        && thread.reset(function.clone()).is_ok()
    {
        return Ok(thread);
    }
    let thread = lua.create_thread(function.clone())?;
    let runtime = Arc::downgrade(runtime);
    let hook = move |_: &Lua, debug: &Debug<'_>| match runtime.upgrade() {
        Some(runtime) => {
            runtime.current().map_or(Ok(VmState::Continue), |call| call.on_instructions(&runtime, debug))
        }
        None => Ok(VmState::Continue),
    };
    thread.set_hook(HookTriggers::new().every_nth_instruction(INSTRUCTIONS_STEP), hook)?;
    Ok(thread)
}

/// Makes a thread available for other calls, if its function has returned.
fn keep(lua: &Lua, thread: mlua::Thread) {
    if thread.is_finished()
        && let Some(mut threads) = lua.app_data_mut::<IdleThreads>()
        && threads.0.len() < IDLE_THREADS_MAX
    {
        threads.0.push(thread);
    }
}

/// Runs a function to its end, slice by slice. `Err` describes the error.
pub(super) async fn run(
    lua: &Lua,
    runtime: &Arc<Runtime>,
    function: &Function,
    arguments: impl IntoLuaMulti,
    call: Arc<Call>,
) -> Result<MultiValue, Failure> {
    let outcome = run_slices(lua, runtime, function, arguments, &call).await;
    if call.got_no_memory.load(Ordering::Relaxed) {
        runtime.collect_garbage(lua, &call);
    }
    outcome
}

async fn run_slices(
    lua: &Lua,
    runtime: &Arc<Runtime>,
    function: &Function,
    arguments: impl IntoLuaMulti,
    call: &Arc<Call>,
) -> Result<MultiValue, Failure> {
    let failed = |error: mlua::Error| {
        if is_memory_error(&error) {
            call.stop_for_memory();
            return Failure::Error(memory_text(call.script()));
        }
        Failure::Error(first_chars(error_text(&error).as_bytes()))
    };
    let thread = thread_for(lua, runtime, function).map_err(failed)?;
    let mut running = pin!(thread.clone().into_async::<MultiValue>(arguments).map_err(failed)?);
    let slices = async {
        let mut turn = None;
        loop {
            let slice = poll_fn(|context| {
                runtime.enter(call);
                let polled = running.as_mut().poll(context);
                let has_paused = polled.is_pending() && call.is_late(runtime.now());
                runtime.leave(call);
                match polled {
                    _ if call.is_stopped() => Poll::Ready(Some(Err(Failure::Error(call.reason())))),
                    Poll::Ready(outcome) => Poll::Ready(Some(outcome.map_err(failed))),
                    Poll::Pending if has_paused => Poll::Ready(None),
                    Poll::Pending => {
                        drop(turn.take());
                        Poll::Pending
                    }
                }
            });
            if let Some(outcome) = slice.await {
                return outcome;
            }
            // Tasks that are ready now find the permit taken: none of them is another slice.
            tokio::task::yield_now().await;
            drop(turn.take());
            // The semaphore is never closed.
            turn = runtime.long_turn.acquire().await.ok();
        }
    };
    let timeout = call.clock.limit;
    match tokio::time::timeout(timeout, slices).await {
        Ok(outcome) => {
            if outcome.is_ok() {
                keep(lua, thread);
            }
            outcome
        }
        Err(_) if call.clock.waits_for_response() => {
            Err(Failure::NoResponse(format!("no response within {timeout:?}")))
        }
        Err(_) => Err(Failure::Error(format!("{}: it did not end within {timeout:?}", call.script()))),
    }
}
