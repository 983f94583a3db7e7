//! One call of a function: its Lua thread, its slices and its budget.

use super::{BUDGET, MEMORY_BYTES_MAX, PAUSELESS_MAX, Runtime, SLICE};
use crate::config::{Problem, error_text, location_of, raise};
use mlua::debug::Debug;
use mlua::{Function, HookTriggers, IntoLuaMulti, Lua, MultiValue, VmState};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Number of instructions between two looks at the clock. It is small, because an instruction can concatenate long
/// texts.
const INSTRUCTIONS_STEP: u32 = 100;

/// A call of a function.
pub(super) struct Call {
    /// File and line of the function.
    script: String,
    /// Identity of the check that called the function.
    tag: Option<u64>,
    slice_began: AtomicU64,
    /// Nanoseconds of earlier slices.
    spent: AtomicU64,
    /// True if the call had to pause in this slice.
    is_pausing: AtomicBool,
    is_stopped: AtomicBool,
    reason: Mutex<Option<String>>,
    /// Operations of the libraries.
    operations: Mutex<Vec<AbortHandle>>,
    /// Work at the end of the call.
    endings: Mutex<Vec<Ending>>,
}

type Ending = Box<dyn FnOnce() + Send>;

impl Call {
    pub(super) fn new(script: String, tag: Option<u64>) -> Self {
        Self {
            script,
            tag,
            slice_began: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            is_pausing: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            reason: Mutex::default(),
            operations: Mutex::default(),
            endings: Mutex::default(),
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

    /// Does some work at the end of the call.
    pub(super) fn at_end(&self, work: impl FnOnce() + Send + 'static) {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(work));
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
        self.stop(&memory_text(&self.script), None);
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
        let endings = self.endings.get_mut().unwrap_or_else(PoisonError::into_inner);
        endings.drain(..).for_each(|work| work());
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

/// Runs a function to its end, slice by slice. `Err` describes the error.
pub(super) async fn run(
    lua: &Lua,
    runtime: &Arc<Runtime>,
    function: &Function,
    arguments: impl IntoLuaMulti,
    call: Arc<Call>,
    timeout: Duration,
) -> Result<MultiValue, String> {
    let failed = |error: mlua::Error| match is_memory_error(&error) {
        true => memory_text(call.script()),
        false => error_text(&error),
    };
    let thread = lua.create_thread(function.clone()).map_err(failed)?;
    let (of_hook, hooked) = (Arc::clone(&call), Arc::clone(runtime));
    let triggers = HookTriggers::new().every_nth_instruction(INSTRUCTIONS_STEP);
    thread.set_hook(triggers, move |_, debug| of_hook.on_instructions(&hooked, debug)).map_err(failed)?;
    let mut running = pin!(thread.into_async::<MultiValue>(arguments).map_err(failed)?);
    let slices = poll_fn(|context| {
        runtime.enter(&call);
        let polled = running.as_mut().poll(context);
        runtime.leave(&call);
        match polled {
            _ if call.is_stopped() => Poll::Ready(Err(call.reason())),
            Poll::Ready(outcome) => Poll::Ready(outcome.map_err(failed)),
            Poll::Pending => Poll::Pending,
        }
    });
    match tokio::time::timeout(timeout, slices).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("{}: it did not end within {timeout:?}", call.script())),
    }
}
