//! Requests to the supervisor from other tasks: the admin API and front ends.

use super::access::{AccessChange, AccessError};
use super::cache::{self, ExpungeExtent};
use super::operator::{Operate, OperateError, Operated, StateChanged};
use super::query::Query;
use super::{
    Applied, ApplyRequest, Files, Input, Outcome, Phase, Refusal, Supervisor, UpgradeRequest, Upgraded,
    reload,
};
use crate::config::Config;
use evener_core::event::Event;
use evener_core::spec::AdminState;
use evener_proxy::Closed;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Requests to the supervisor, with channels for the responses.
pub(crate) enum Request {
    Query(Query),
    Reload(oneshot::Sender<Outcome>),
    SetState { wanted: StateChange, done: oneshot::Sender<Result<Operated, String>> },
    Operate { wanted: Operate, done: oneshot::Sender<Result<Operated, OperateError>> },
    Apply { config: Box<Config>, files: Files, done: reload::Done },
    ApplyPlanned { wanted: Box<ApplyRequest>, done: oneshot::Sender<Result<Applied, Refusal>> },
    Confirm { decision: Decision, done: oneshot::Sender<Result<String, String>> },
    Access { service: String, change: AccessChange, done: oneshot::Sender<Result<String, AccessError>> },
    Close { number: u64, done: oneshot::Sender<Closed> },
    CloseServer { server: String, done: oneshot::Sender<Result<(String, usize), String>> },
    Expunge { service: String, extent: ExpungeExtent, done: cache::Done },
    Upgrade { request: UpgradeRequest, done: oneshot::Sender<Result<Upgraded, String>> },
    Log(Event),
    Stop,
}

/// The decision about an applied configuration that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The configuration stays.
    Keep,
    /// The configuration before comes back now.
    GoBack,
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

    /// Sends a request and returns the response. Returns `None` if the supervisor has ended.
    pub(super) async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Request(request(done))).await.ok()?;
        response.await.ok()
    }

    /// Logs an event, unless the supervisor has ended.
    pub(crate) async fn log(&self, event: Event) {
        let _ = self.0.send(Input::Request(Request::Log(event))).await;
    }

    /// Reads the configuration again. Returns the changes, or every problem.
    pub(crate) async fn reload(&self) -> Option<Outcome> {
        self.request(Request::Reload).await
    }

    /// Applies a configuration that did not come from the file. Returns the changes, or every problem.
    pub(crate) async fn apply(&self, config: Config, files: Files) -> Option<Outcome> {
        self.request(|done| Request::Apply { config: Box::new(config), files, done }).await
    }

    /// Changes the servers of a pool. Returns the change, or the reason of the failure.
    pub(crate) async fn operate(&self, wanted: Operate) -> Option<Result<Operated, OperateError>> {
        self.request(|done| Request::Operate { wanted, done }).await
    }

    /// Applies a configuration that an operator gave.
    pub(crate) async fn apply_planned(&self, wanted: ApplyRequest) -> Option<Result<Applied, Refusal>> {
        self.request(|done| Request::ApplyPlanned { wanted: Box::new(wanted), done }).await
    }

    /// Decides about an applied configuration that waits for its confirmation. Returns its file, or the reason of the failure.
    pub(crate) async fn confirm(&self, decision: Decision) -> Option<Result<String, String>> {
        self.request(|done| Request::Confirm { decision, done }).await
    }

    /// Sets a server to ready, drain or maintenance. Returns the change, or the reason of the failure.
    pub(crate) async fn set_state(&self, wanted: StateChange) -> Option<Result<Operated, String>> {
        self.request(|done| Request::SetState { wanted, done }).await
    }

    /// Changes the access rules of a service. Returns the change that was made, or the reason of the failure.
    pub(crate) async fn change_access(
        &self,
        service: String,
        change: AccessChange,
    ) -> Option<Result<String, AccessError>> {
        self.request(|done| Request::Access { service, change, done }).await
    }

    /// Starts a new instance that takes over. Returns it, or the reason why this instance goes on.
    pub(crate) async fn upgrade(&self, request: UpgradeRequest) -> Option<Result<Upgraded, String>> {
        self.request(|done| Request::Upgrade { request, done }).await
    }

    /// Shuts the program down as SIGTERM does.
    pub(crate) async fn stop(&self) {
        let _ = self.0.send(Input::Request(Request::Stop)).await;
    }
}

impl Supervisor {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Query(query) => self.on_query(query),
            Request::Reload(done) => self.begin_reload(Some(done)),
            Request::SetState { wanted, done } => drop(done.send(self.set_state(&wanted))),
            Request::Operate { wanted, done } => drop(done.send(self.operate(wanted))),
            Request::Apply { config, files, done } => self.begin_apply(*config, files, done),
            Request::ApplyPlanned { wanted, done } => drop(done.send(self.apply_planned(*wanted))),
            Request::Confirm { decision, done } => drop(done.send(self.confirm(decision))),
            Request::Access { service, change, done } => self.change_access(&service, change, done),
            Request::Close { number, done } => self.close(number, done),
            Request::CloseServer { server, done } => self.close_server(&server, done),
            Request::Expunge { service, extent, done } => self.expunge(&service, extent, done),
            Request::Upgrade { request, done } => self.begin_upgrade(&request, Some(done)),
            Request::Log(event) if self.phase != Phase::Ended => self.log(&event),
            Request::Log(_) => {}
            Request::Stop => self.on_stop("request"),
        }
    }

    /// Changes the state of a server. Returns the change, or the reason of the failure.
    pub(super) fn set_state(&mut self, change: &StateChange) -> Result<Operated, String> {
        let (pool, id, server) = self.pools.find_server(&change.server)?;
        let found = self.pools.get(&pool).and_then(|pool| pool.server(id));
        let Some(found) = found else { return Err(format!("there is no server `{server}`")) };
        let (before, state) = (found.state.name().to_owned(), change.state);
        let changed = StateChanged { name: Arc::clone(&found.spec.name), file: found.spec.state, state };
        let now = self.now();
        let until = change.time.map(|time| now + time);
        let events = self.pools.set_state(now, (&pool, id), state, until);
        self.log_all(&events);
        self.record_state((&pool, &changed), change.time);
        let time = change.time.map(|time| format!(" for {}", humantime::format_duration(time)));
        let after = format!("{}{}", state.name(), time.unwrap_or_default());
        Ok(Operated::new(server, before, after))
    }
}
