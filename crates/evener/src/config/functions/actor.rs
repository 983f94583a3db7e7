//! The actor that runs functions on its own thread, and the watchdog that replaces a stuck thread.

use super::call::{Call, Failure, IdleThreads, run};
use super::objects::{Objects, arguments};
use super::rate::{PerSecond, Rate};
use super::{EVENTS_MAX, MEMORY_BYTES_MAX, Output, PoolSlots, Runtime, first_chars, library};
use crate::config::Program;
use arc_swap::ArcSwap;
use evener_core::ServerId;
use evener_core::event::{Event, Level, ScriptLevel};
use mlua::{IntoLuaMulti, Lua, MultiValue, Value};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};

/// Time limit of a timer's or handler's call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval at which the watchdog looks.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Number of slices between two looks at sockets, timers and new commands. With the default of Tokio, a loop would
/// delay them by 60 slices.
const POLLS_BETWEEN_EVENTS: u32 = 4;

/// A look that comes later than this says nothing: the whole process or the machine stood still.
const STOOD_STILL: Duration = Duration::from_millis(400);
/// Maximum number of threads that were given up and still run. Each of them may use a processor for ever.
const GIVEN_UP_MAX: usize = 3;
/// Maximum number of times that functions are started anew within `RESTARTS_TIME`.
const RESTARTS_MAX: usize = 2;
const RESTARTS_TIME: Duration = Duration::from_secs(600);

/// Number of verdicts after which no further ones are awaited.
const REPLIES_TOGETHER_MAX: usize = 32;

/// Maximum number of events of functions a second that functions handle.
const SCRIPT_EVENTS_MAX: u32 = 100;

/// Sends a message to the supervisor. Returns false if it was not sent.
pub(crate) type Outputs = Arc<dyn Fn(Output) -> bool + Send + Sync>;

/// Result of a function that checks a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Fail(String),
    /// The function gave no verdict.
    Nothing,
    /// The function did not run, or not to its end, for a reason that is not its own, such as a reload.
    Cancelled,
    /// The function failed or was stopped.
    Error(String),
}

enum Command {
    Check {
        number: usize,
        pool: Arc<str>,
        server: ServerId,
        tag: u64,
        timeout: Duration,
        reply: oneshot::Sender<Verdict>,
    },
    Event(usize, Vec<(&'static str, String)>),
}

/// The thread that runs functions now.
struct Thread {
    commands: mpsc::UnboundedSender<Command>,
    runtime: Arc<Runtime>,
    program: Arc<Program>,
    handle: JoinHandle<()>,
}

/// The times at which functions were started anew.
#[derive(Default)]
struct Restarts {
    times: VecDeque<Instant>,
    /// Threads that were given up and still run.
    running: Vec<Arc<Thread>>,
}

impl Restarts {
    /// Records that a thread has to be replaced. `Err` says why no other one may be started.
    fn admit(&mut self, thread: &Arc<Thread>, now: Instant) -> Result<(), String> {
        self.running.push(Arc::clone(thread));
        self.running.retain(|thread| !thread.handle.is_finished());
        if self.running.len() >= GIVEN_UP_MAX {
            return Err(format!("functions that did not end still run on {GIVEN_UP_MAX} threads"));
        }
        while self.times.front().is_some_and(|time| now.duration_since(*time) > RESTARTS_TIME) {
            self.times.pop_front();
        }
        if self.times.len() >= RESTARTS_MAX {
            let minutes = RESTARTS_TIME.as_secs() / 60;
            return Err(format!(
                "functions did not end or filled the memory {} times within {minutes} minutes",
                RESTARTS_MAX + 1
            ));
        }
        self.times.push_back(now);
        Ok(())
    }
}

struct Shared {
    thread: ArcSwap<Thread>,
    /// Set when the actor ends.
    stop: Mutex<bool>,
}

/// Runs the functions of a configuration until it is dropped.
pub(crate) struct Actor {
    shared: Arc<Shared>,
    handlers: BTreeSet<String>,
    generation: u64,
    /// Limits the events of functions that are handled, because a handler can cause the event that it handles.
    script_events: PerSecond,
    /// Limits the reports of events that are dropped.
    drop_reports: PerSecond,
}

/// Returns true if functions caused an event.
fn is_of_script(event: &Event) -> bool {
    matches!(
        event,
        Event::ScriptChanged { .. }
            | Event::ScriptFailed { .. }
            | Event::ScriptsRestarted { .. }
            | Event::ScriptMessage { .. }
    )
}

/// The part of the actor that tasks share.
#[derive(Clone)]
pub(crate) struct Checker(Arc<Shared>);

impl Checker {
    /// Runs a function that checks a server. Dropping the future cancels the call.
    pub(crate) async fn check(
        &self,
        number: usize,
        (pool, server): (Arc<str>, ServerId),
        tag: u64,
        timeout: Duration,
    ) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        let command = Command::Check { number, pool, server, tag, timeout, reply };
        let thread = self.0.thread.load_full();
        // A thread that was given up and not replaced would keep the command for ever.
        if thread.runtime.given_up().is_some() || thread.commands.send(command).is_err() {
            return Verdict::Cancelled;
        }
        tokio::select! {
            biased;
            verdict = verdict => verdict.unwrap_or(Verdict::Cancelled),
            // A thread that was given up drops nothing, so that the reply would never come.
            () = thread.runtime.wait_for_end() => match thread.runtime.given_up() {
                Some(call) if call.tag() == Some(tag) => {
                    Verdict::Error(format!("{}: it did not end, and all functions were started anew", call.script()))
                }
                _ => Verdict::Cancelled,
            },
        }
    }
}

impl Actor {
    /// Starts the functions of a configuration.
    pub(crate) fn start(
        program: &Arc<Program>,
        generation: u64,
        pools: PoolSlots,
        outputs: Outputs,
    ) -> std::io::Result<Self> {
        let thread = Thread::start(program, generation, pools, outputs)?;
        let shared = Arc::new(Shared { thread: ArcSwap::from_pointee(thread), stop: Mutex::new(false) });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new().name("scripts-watch".into()).spawn(move || watch(&watched))?;
        let handlers = program.handlers().iter().map(|(name, _)| name.clone()).collect();
        let (script_events, drop_reports) = (PerSecond::new(SCRIPT_EVENTS_MAX), PerSecond::new(1));
        Ok(Self { shared, handlers, generation, script_events, drop_reports })
    }

    /// Returns the number of the configuration.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the part that checks servers.
    pub(crate) fn checker(&self) -> Checker {
        Checker(Arc::clone(&self.shared))
    }

    /// Runs the handlers of an event.
    pub(crate) fn on_event(&self, event: &Event) {
        if !self.handlers.contains(event.name()) {
            return;
        }
        if is_of_script(event) && self.script_events.admit(Instant::now()) != Rate::Admitted {
            return;
        }
        let thread = self.shared.thread.load();
        if thread.runtime.has_ended() {
            return;
        }
        let mut fields = vec![("name", event.name().to_owned())];
        event.fields(&mut |name, value| fields.push((name, value.to_string())));
        for (name, number) in thread.program.handlers() {
            if name != event.name() {
                continue;
            }
            if thread.runtime.begin_waiting() {
                if thread.commands.send(Command::Event(*number, fields.clone())).is_err() {
                    thread.runtime.end_waiting();
                }
            } else if self.drop_reports.admit(Instant::now()) == Rate::Admitted {
                let script = thread.program.function(*number).map_or_else(String::new, |(_, script)| script);
                let text = format!(
                    "{EVENTS_MAX} events wait for their handlers: {name} and further ones are dropped"
                );
                let severity = ScriptLevel(Level::Warn);
                (thread.runtime.outputs)(Output::Event(Event::ScriptMessage { severity, script, text }));
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        *self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.thread.load().runtime.end();
    }
}

/// Replaces a thread that does not return from a call, or whose memory is full. A thread that does not return ends
/// when its call does.
fn watch(shared: &Shared) {
    let mut restarts = Restarts::default();
    loop {
        let before = Instant::now();
        std::thread::sleep(WATCH_EVERY);
        if *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) {
            return;
        }
        if before.elapsed() > STOOD_STILL {
            continue;
        }
        let thread = shared.thread.load_full();
        let script = match (thread.runtime.stuck(), thread.runtime.filled_by()) {
            (Some(call), _) => {
                let script = call.script().to_owned();
                thread.runtime.give_up(call);
                script
            }
            (None, Some(script)) => {
                thread.runtime.end();
                script
            }
            (None, None) => continue,
        };
        let replacement = restarts.admit(&thread, Instant::now()).and_then(|()| {
            (thread.runtime.outputs)(Output::Event(Event::ScriptsRestarted { script: script.clone() }));
            thread.replacement()
        });
        match replacement {
            Ok(next) => {
                let next = Arc::new(next);
                shared.thread.store(Arc::clone(&next));
                if *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) {
                    next.runtime.end();
                }
            }
            Err(why) => {
                let error = format!("no function runs until a reload: {why}");
                let event = Event::ScriptFailed { script, pool: None, server: None, error };
                (thread.runtime.outputs)(Output::Event(event));
                return;
            }
        }
    }
}

impl Thread {
    /// Starts a thread with the same functions, read from the file again.
    fn replacement(&self) -> Result<Self, String> {
        let program = Arc::new(self.program.again()?);
        let pools = self.runtime.pools.clone();
        let outputs = Arc::clone(&self.runtime.outputs);
        Self::start(&program, self.runtime.generation, pools, outputs).map_err(|error| error.to_string())
    }

    fn start(
        program: &Arc<Program>,
        generation: u64,
        pools: PoolSlots,
        outputs: Outputs,
    ) -> std::io::Result<Self> {
        let runtime = Arc::new(Runtime::new(generation, pools, outputs, program.allowed().clone()));
        let (commands, received) = mpsc::unbounded_channel();
        let tokio = tokio::runtime::Builder::new_current_thread()
            .event_interval(POLLS_BETWEEN_EVENTS)
            .global_queue_interval(POLLS_BETWEEN_EVENTS)
            .enable_all()
            .build()?;
        let (of_thread, its_program) = (Arc::clone(&runtime), Arc::clone(program));
        let handle = std::thread::Builder::new().name("scripts".into()).spawn(move || {
            let ended = Arc::clone(&of_thread);
            tokio.block_on(async {
                tokio::select! {
                    outcome = serve(its_program, of_thread, received) => {
                        if let Err(error) = outcome {
                            let error = crate::config::error_text(&error);
                            let event = Event::ScriptFailed { script: "start".into(), pool: None, server: None, error };
                            (ended.outputs)(Output::Event(event));
                        }
                    }
                    () = ended.wait_for_end() => {}
                }
            });
            tokio.shutdown_background();
        })?;
        Ok(Self { commands, runtime, program: Arc::clone(program), handle })
    }
}

/// Makes the functions of a program ready to run.
pub(super) fn prepare(program: &Program, runtime: &Arc<Runtime>) -> mlua::Result<Lua> {
    let lua = program.begin()?.clone();
    lua.set_app_data(Arc::clone(runtime));
    lua.set_app_data(IdleThreads::default());
    lua.set_app_data(Objects::default());
    let limit = lua.used_memory() + MEMORY_BYTES_MAX;
    lua.set_memory_limit(limit)?;
    runtime.memory_max.store(limit, Ordering::Relaxed);
    library::begin(&lua)?;
    Ok(lua)
}

/// Verdicts that wait to be sent together, so that the receiving thread wakes up once for several of them.
#[derive(Default)]
struct Replies {
    waiting: Mutex<Vec<(oneshot::Sender<Verdict>, Verdict)>>,
    added: Notify,
}

impl Replies {
    fn waiting(&self) -> MutexGuard<'_, Vec<(oneshot::Sender<Verdict>, Verdict)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, reply: oneshot::Sender<Verdict>, verdict: Verdict) {
        self.waiting().push((reply, verdict));
        self.added.notify_one();
    }

    /// Sends the waiting verdicts.
    fn send(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        for (reply, verdict) in waiting {
            let _ = reply.send(verdict);
        }
    }
}

impl Drop for Replies {
    /// Loses no verdict when the thread ends.
    fn drop(&mut self) {
        self.send();
    }
}

/// Sends verdicts when no further ones come at once.
async fn send_replies(replies: Arc<Replies>) {
    loop {
        replies.added.notified().await;
        let mut before = 0;
        loop {
            tokio::task::yield_now().await;
            let number = replies.waiting().len();
            if number == before || number >= REPLIES_TOGETHER_MAX {
                break;
            }
            before = number;
        }
        replies.send();
    }
}

async fn serve(
    program: Arc<Program>,
    runtime: Arc<Runtime>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) -> mlua::Result<()> {
    let lua = prepare(&program, &runtime)?;
    for (interval, number) in program.timers() {
        let (program, runtime, lua) = (Arc::clone(&program), Arc::clone(&runtime), lua.clone());
        let (interval, number) = (*interval, *number);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                call_alone(&program, &runtime, &lua, number, ()).await;
            }
        });
    }
    let replies = Arc::new(Replies::default());
    tokio::spawn(send_replies(Arc::clone(&replies)));
    while let Some(command) = commands.recv().await {
        let replies = Arc::clone(&replies);
        let (program, runtime, lua) = (Arc::clone(&program), Arc::clone(&runtime), lua.clone());
        match command {
            Command::Check { number, pool, server, tag, timeout, mut reply } => {
                tokio::spawn(async move {
                    let verdict = tokio::select! {
                        verdict = check(&program, &runtime, &lua, number, (pool, server), tag, timeout) => verdict,
                        () = reply.closed() => return,
                    };
                    replies.add(reply, verdict);
                });
            }
            Command::Event(number, fields) => {
                tokio::spawn(async move {
                    if let Ok(event) = lua.create_table_from(fields) {
                        call_alone(&program, &runtime, &lua, number, event).await;
                    }
                    runtime.end_waiting();
                });
            }
        }
    }
    Ok(())
}

async fn check(
    program: &Program,
    runtime: &Arc<Runtime>,
    lua: &Lua,
    number: usize,
    (pool, server): (Arc<str>, ServerId),
    tag: u64,
    timeout: Duration,
) -> Verdict {
    let Some((function, script)) = program.function(number) else { return Verdict::Cancelled };
    let entry = runtime.pools.get(&pool).and_then(|slot| slot.load().server(server).cloned());
    let Some(entry) = entry else { return Verdict::Cancelled };
    let call = Arc::new(Call::new(script.clone(), Some(tag), timeout));
    let arguments = match arguments(lua, &pool, &entry) {
        Ok(arguments) => arguments,
        Err(error) => return Verdict::Error(call.failed_to_begin(runtime, lua, &error)),
    };
    match run(lua, runtime, function, arguments, call).await {
        Ok(values) => verdict(&values, &script),
        Err(Failure::NoResponse(why)) => Verdict::Fail(why),
        Err(Failure::Error(why)) => Verdict::Error(why),
    }
}

/// Returns the verdict that a function returned: `true`, or `false` and a reason, or nothing.
pub(super) fn verdict(values: &MultiValue, script: &str) -> Verdict {
    match values.front() {
        None | Some(Value::Nil) => Verdict::Nothing,
        Some(Value::Boolean(true)) => Verdict::Pass,
        Some(Value::Boolean(false)) => match values.get(1) {
            Some(Value::String(reason)) => {
                Verdict::Fail(crate::output::printable(&first_chars(&reason.as_bytes())).to_string())
            }
            _ => Verdict::Fail(format!("the check at {script} returned false")),
        },
        Some(other) => {
            let kind = other.type_name();
            Verdict::Error(format!("{script}: a check must return true, false or nothing, got a {kind}"))
        }
    }
}

/// Runs a function of a timer or handler, and reports its error.
async fn call_alone(
    program: &Program,
    runtime: &Arc<Runtime>,
    lua: &Lua,
    number: usize,
    arguments: impl IntoLuaMulti,
) {
    let Some((function, script)) = program.function(number) else { return };
    let call = Arc::new(Call::new(script.clone(), None, CALL_TIMEOUT));
    if let Err(Failure::Error(error) | Failure::NoResponse(error)) =
        run(lua, runtime, function, arguments, call).await
    {
        runtime.report(
            &runtime.failures,
            Event::ScriptFailed { script: script.clone(), pool: None, server: None, error },
            &script,
        );
    }
}
