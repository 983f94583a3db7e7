//! Hooks: programs that run when servers or the quorum of a pool change. The hooks of a pool run one after the other,
//! in the order of the events.

use super::{Environment, failure, run};
use crate::events::Events;
use evener_core::event::Event;
use evener_core::spec::{NotifySpec, ProgramSpec};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Maximum number of hooks that run at the same time.
const RUNNING_MAX: usize = 16;
/// Maximum number of hooks of a pool that wait.
const WAITING_MAX: usize = 256;

/// The hooks of an instance.
pub(crate) struct Notifier {
    events: Events,
    queues: Mutex<HashMap<Arc<str>, Sender<Hook>>>,
    permits: Arc<Semaphore>,
}

/// A hook that is to be run.
struct Hook {
    name: &'static str,
    program: ProgramSpec,
    environment: Environment,
    timeout: Duration,
}

impl Notifier {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, queues: Mutex::default(), permits: Arc::new(Semaphore::new(RUNNING_MAX)) }
    }

    /// Runs the hook for an event of a pool, if there is one. `more` describes the pool and the server.
    pub(crate) fn notify(&self, spec: &NotifySpec, event: &Event, more: Environment) {
        let Some((pool, name)) = hook_of(event) else { return };
        let program =
            spec.programs().into_iter().find(|(hook, _)| *hook == name).and_then(|(_, program)| program);
        let Some(program) = program.cloned() else { return };
        let mut environment = vec![("EVENER_HOOK", name.to_owned())];
        event.fields(&mut |field, value| {
            let variable = match field {
                "pool" => "EVENER_POOL",
                "server" => "EVENER_SERVER",
                "reason" => "EVENER_REASON",
                "weight" => "EVENER_WEIGHT",
                "quorum" => "EVENER_QUORUM",
                _ => return,
            };
            environment.push((variable, value.to_string()));
        });
        environment.extend(more);
        let hook = Hook { name, program, environment, timeout: spec.timeout };
        if let Err(error) = self.queue(pool).try_send(hook) {
            let hook = error.into_inner();
            let problem = format!("{WAITING_MAX} hooks of the pool wait: it does not run");
            self.events.emit(&hook.failed(pool, problem));
        }
    }

    /// Returns the queue of a pool. Its task ends with this notifier.
    fn queue(&self, pool: &Arc<str>) -> Sender<Hook> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (sender, receiver) = channel(WAITING_MAX);
            tokio::spawn(run_all(pool.clone(), receiver, self.events.clone(), Arc::clone(&self.permits)));
            sender
        };
        queues.entry(pool.clone()).or_insert_with(start).clone()
    }
}

/// Returns the pool and the hook of an event.
fn hook_of(event: &Event) -> Option<(&Arc<str>, &'static str)> {
    match event {
        Event::ServerUp { pool, .. } => Some((pool, "up")),
        Event::ServerDown { pool, .. } => Some((pool, "down")),
        Event::QuorumGained { pool, .. } => Some((pool, "quorum_up")),
        Event::QuorumLost { pool, .. } => Some((pool, "quorum_down")),
        _ => None,
    }
}

/// Returns the pool of an event that may have a hook.
pub(crate) fn pool_of(event: &Event) -> Option<&Arc<str>> {
    hook_of(event).map(|(pool, _)| pool)
}

async fn run_all(pool: Arc<str>, mut hooks: Receiver<Hook>, events: Events, permits: Arc<Semaphore>) {
    while let Some(hook) = hooks.recv().await {
        let _permit = permits.acquire().await;
        let ran = tokio::time::timeout(hook.timeout, run(&hook.program, &hook.environment)).await;
        let problem = match ran {
            Ok(Ok(status)) => failure(status),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("killed after {:?}", hook.timeout)),
        };
        if let Some(problem) = problem {
            events.emit(&hook.failed(&pool, problem));
        }
    }
}

impl Hook {
    fn failed(&self, pool: &Arc<str>, problem: String) -> Event {
        let program = self.program.path.clone();
        Event::NotifyFailed { pool: pool.clone(), hook: self.name, program, problem }
    }
}
