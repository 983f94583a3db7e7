//! Requests to the supervisor from other tasks: the admin API and front ends.

use super::access::{AccessChange, AccessError};
use super::{Files, Input, Outcome, Supervisor, reload};
use crate::config::Config;
use evener_core::spec::AdminState;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Requests to the supervisor, each with a channel for the response.
pub(crate) enum Request {
    Inspect(Box<dyn FnOnce(&Supervisor) + Send>),
    Reload(oneshot::Sender<Outcome>),
    SetState { wanted: StateChange, done: oneshot::Sender<Result<String, String>> },
    Apply { config: Box<Config>, files: Files, done: reload::Done },
    Access { service: String, change: AccessChange, done: oneshot::Sender<Result<String, AccessError>> },
    Stop,
}

/// A change of the administrative state of a server.
#[derive(Clone, Debug)]
pub(crate) struct StateChange {
    server: String,
    state: AdminState,
    time: Option<Duration>,
}

impl StateChange {
    /// Creates a change of `server`, which is `pool/server`, or just the server if only one pool has it. The
    /// new state is permanent if `time` is `None`.
    pub(crate) fn new(server: String, state: AdminState, time: Option<Duration>) -> Self {
        Self { server, state, time }
    }
}

/// Sends requests to the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Input>);

impl Handle {
    pub(super) fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self(inputs)
    }

    /// Runs a function on the supervisor and returns its result. Returns `None` if the supervisor has ended.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        inspect: impl FnOnce(&Supervisor) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, response) = oneshot::channel();
        let inspect = Box::new(move |supervisor: &Supervisor| drop(done.send(inspect(supervisor))));
        self.0.send(Input::Request(Request::Inspect(inspect))).await.ok()?;
        response.await.ok()
    }

    /// Reads the configuration again. Returns the changes, or every problem.
    pub(crate) async fn reload(&self) -> Option<Outcome> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Request(Request::Reload(done))).await.ok()?;
        response.await.ok()
    }

    /// Applies a configuration that did not come from the file. Returns the changes, or every problem.
    pub(crate) async fn apply(&self, config: Config, files: Files) -> Option<Outcome> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Request(Request::Apply { config: Box::new(config), files, done })).await.ok()?;
        response.await.ok()
    }

    /// Sets a server to ready, drain or maintenance. Returns its full name, or the reason of the failure.
    pub(crate) async fn set_state(&self, wanted: StateChange) -> Option<Result<String, String>> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Request(Request::SetState { wanted, done })).await.ok()?;
        response.await.ok()
    }

    /// Changes the access rules of a service. Returns the change that was made, or the reason of the failure.
    pub(crate) async fn change_access(
        &self,
        service: String,
        change: AccessChange,
    ) -> Option<Result<String, AccessError>> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Request(Request::Access { service, change, done })).await.ok()?;
        response.await.ok()
    }

    /// Shuts the program down as SIGTERM does.
    pub(crate) async fn stop(&self) {
        let _ = self.0.send(Input::Request(Request::Stop)).await;
    }
}

impl Supervisor {
    /// Changes the state of a server. Returns its full name, or the reason of the failure.
    pub(super) fn set_state(&mut self, change: &StateChange) -> Result<String, String> {
        let (pool, id, full) = self.pools.find_server(&change.server)?;
        let now = self.now();
        let until = change.time.map(|time| now + time);
        let events = self.pools.set_state(now, (&pool, id), change.state, until);
        self.log_all(&events);
        Ok(full)
    }
}
