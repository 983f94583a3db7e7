//! Requests to the instance: its state and its events at an interval, and changes of servers. They run beside the
//! picture, which never waits for them.

use crate::admin::server_state::StateRequest;
use crate::cli::InstanceArgs;
use crate::events::RecentEvents;
use crate::state::View;
use crossterm::event::KeyEvent;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;

/// A response of the instance.
#[derive(Debug)]
pub(super) struct Polled {
    pub(super) view: View,
    pub(super) events: RecentEvents,
}

/// An occasion at which the picture changes.
#[derive(Debug)]
pub(super) enum Update {
    Polled(Box<Polled>),
    /// The instance does not respond, with the reason.
    Failed(String),
    /// A change of a server, or the reason why there is none.
    Done(Result<String, String>),
    Key(KeyEvent),
    Resized,
    /// The terminal has gone.
    NoTerminal,
}

/// The instance that is queried.
#[derive(Clone, Debug)]
pub(super) struct Source {
    instance: InstanceArgs,
}

/// Handle of the requests at an interval.
#[derive(Clone, Debug)]
pub(super) struct Polls {
    updates: Sender<Update>,
    is_paused: Arc<AtomicBool>,
    nudge: Arc<Notify>,
}

impl Source {
    pub(super) fn new(instance: InstanceArgs) -> Self {
        Self { instance }
    }

    /// Requests the state and the events after the event with the number `after`.
    pub(super) async fn poll(&self, after: u64) -> anyhow::Result<Box<Polled>> {
        // The instance is looked up each time, because it may have been started again elsewhere.
        let client = self.instance.client()?;
        let view = client.get("/v1/status").await?;
        let events = client.get(&format!("/v1/events?level=info&after={after}")).await?;
        Ok(Box::new(Polled { view, events }))
    }

    /// Starts requests at an interval, whose responses become updates.
    pub(super) fn start(&self, interval: Duration, after: u64, updates: Sender<Update>) -> Polls {
        let (source, is_paused, nudge) = (self.clone(), Arc::new(AtomicBool::new(false)), Arc::default());
        let polls = Polls { updates, is_paused, nudge };
        let handle = polls.clone();
        tokio::spawn(async move { source.poll_on(interval, after, &handle).await });
        polls
    }

    async fn poll_on(&self, interval: Duration, mut after: u64, polls: &Polls) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = polls.nudge.notified() => {}
            }
            if polls.is_paused.load(Ordering::Relaxed) {
                continue;
            }
            let update = match self.poll(after).await {
                Ok(polled) => {
                    after = polled.events.last().unwrap_or(after);
                    Update::Polled(polled)
                }
                Err(error) => Update::Failed(format!("{error:#}")),
            };
            if polls.updates.send(update).await.is_err() {
                return;
            }
        }
    }

    /// Changes the state of a server. The outcome becomes an update.
    pub(super) fn set_state(&self, server: String, state: &'static str, polls: &Polls) {
        let (source, updates) = (self.clone(), polls.updates.clone());
        tokio::spawn(async move {
            let request = StateRequest::new(&server, state, None);
            let done: anyhow::Result<Value> =
                async { source.instance.client()?.post("/v1/servers/state", &request).await }.await;
            let outcome = match done {
                Ok(_) => Ok(format!("{server}: {state}")),
                Err(error) => Err(format!("{server}: {error:#}")),
            };
            let _ = updates.send(Update::Done(outcome)).await;
        });
    }
}

impl Polls {
    /// Requests the state now.
    pub(super) fn at_once(&self) {
        self.nudge.notify_one();
    }

    /// Pauses the requests, or resumes them.
    pub(super) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
        if !is_paused {
            self.at_once();
        }
    }
}
