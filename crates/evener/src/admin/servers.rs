//! `POST /v1/pools/POOL/servers`, and `PATCH` and `DELETE` of `/v1/pools/POOL/servers/SERVER`: adds, changes and removes
//! servers.

use super::guard::Audit;
use super::parameters::{Body, Names};
use super::problem::Failures;
use super::{aside, duration_of, failed, shutting_down};
use crate::config::{check_with_server, server_of_json};
use crate::supervisor::{Handle, Operate, OperateError, Operation, StateChange};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::spec::{AdminState, WEIGHT_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// Body of a request to add a server: its address, and the keys that a server of a file has.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct AddRequest {
    address: String,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl AddRequest {
    pub(crate) fn new(address: &str, settings: Map<String, Value>) -> Self {
        Self { address: address.into(), settings }
    }
}

/// A state, and its duration.
type Wanted = (AdminState, Option<Duration>);

/// Body of a request to change a server.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    /// `ready`, `drain` or `maintenance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Duration of the state, such as `10m`. The state is permanent when absent.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

impl ChangeRequest {
    /// Creates a request for another weight.
    pub(crate) fn weight(weight: u32) -> Self {
        Self { weight: Some(weight), ..Self::default() }
    }

    /// Returns the weight, and the state with its duration.
    fn parsed(&self) -> Result<(Option<u32>, Option<Wanted>), String> {
        if let Some(weight) = self.weight.filter(|weight| *weight > WEIGHT_MAX) {
            return Err(format!("weight must be between 0 and {WEIGHT_MAX}, got {weight}"));
        }
        let state = self.state.as_deref().map(|name| {
            let state = AdminState::ALL.into_iter().find(|state| state.name() == name);
            state.ok_or_else(|| format!("`{name}` is not a state: ready, drain or maintenance"))
        });
        let (state, time) = (state.transpose()?, duration_of(self.time.as_deref())?);
        match (state, time) {
            (None, Some(_)) => Err("`for` needs a `state`".into()),
            (Some(AdminState::Ready), Some(_)) => Err("state `ready` has no time limit: remove `for`".into()),
            (None, None) if self.weight.is_none() => Err("give a `weight` or a `state`".into()),
            _ => Ok((self.weight, state.map(|state| (state, time)))),
        }
    }
}

/// Response to a change of the servers of a pool.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ServerChangedView {
    /// Full name, `pool/server`.
    server: String,
    /// The values before the change, such as `weight 1`.
    before: String,
    after: String,
}

impl ServerChangedView {
    /// Describes a server that was added or removed, in one line.
    pub(crate) fn text(&self, done: &str) -> String {
        format!("{}: {done}\n", self.server)
    }

    /// Describes a change of a server in one line.
    pub(crate) fn values_text(&self) -> String {
        format!("{}: {} -> {}\n", self.server, self.before, self.after)
    }
}

fn changed(status: StatusCode, action: &'static str, values: (String, String, String)) -> Response {
    let (server, before, after) = values;
    let audit = Audit::new(action, format!("server {server}")).values(&before, &after);
    audit.on((status, Json(ServerChangedView { server, before, after })).into_response())
}

fn refused(error: OperateError) -> Response {
    match error {
        OperateError::Unknown(why) => failed(StatusCode::NOT_FOUND, why),
        OperateError::Conflict(why) => failed(StatusCode::CONFLICT, why),
        OperateError::Impossible(why) => failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    }
}

#[utoipa::path(post, path = "/v1/pools/{pool}/servers", params(("pool" = String, Path, description = "Name of the pool")), request_body = AddRequest, responses((status = 201, description = "Done", body = ServerChangedView), Failures))]
pub(super) async fn add(
    State(supervisor): State<Handle>,
    Names(pool): Names<String>,
    wanted: Body<AddRequest>,
) -> Response {
    let AddRequest { address, settings } = wanted.into_inner();
    let server = match server_of_json(&address, &settings) {
        Ok(server) => server,
        Err(problems) => return invalid(problems),
    };
    let Some((spec, _)) = supervisor.spec().await else { return shutting_down() };
    let in_pool = spec.pools.iter().find(|one| *one.name == *pool).map_or(&[][..], |one| &one.servers);
    if let Some(same) = in_pool.iter().find(|one| one.name == server.name || one.endpoint == server.endpoint)
    {
        let why = format!("pool `{pool}` has the server {} already", same.name);
        return failed(StatusCode::CONFLICT, why);
    }
    let (of, with) = (pool.clone(), server.clone());
    match aside(move || check_with_server(&spec, &of, &with)).await {
        Some(Ok(())) => {}
        Some(Err(problems)) => return invalid(problems),
        None => return failed(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot be checked"),
    }
    let operation = Operation::Add { server: Box::new(server), address, settings };
    match supervisor.operate(Operate::new(pool, operation)).await {
        Some(Ok(operated)) => changed(StatusCode::CREATED, "add", operated.into_parts()),
        Some(Err(error)) => refused(error),
        None => shutting_down(),
    }
}

fn invalid(problems: Vec<String>) -> Response {
    super::Problem::new(StatusCode::UNPROCESSABLE_ENTITY, problems).into_response()
}

#[utoipa::path(delete, path = "/v1/pools/{pool}/servers/{server}", params(("pool" = String, Path, description = "Name of the pool"), ("server" = String, Path, description = "Name of the server")), responses((status = 200, description = "Done", body = ServerChangedView), Failures))]
pub(super) async fn remove(
    State(supervisor): State<Handle>,
    Names((pool, server)): Names<(String, String)>,
) -> Response {
    let operation = Operation::Remove { server };
    match supervisor.operate(Operate::new(pool, operation)).await {
        Some(Ok(operated)) => changed(StatusCode::OK, "remove", operated.into_parts()),
        Some(Err(error)) => refused(error),
        None => shutting_down(),
    }
}

#[utoipa::path(patch, path = "/v1/pools/{pool}/servers/{server}", params(("pool" = String, Path, description = "Name of the pool"), ("server" = String, Path, description = "Name of the server")), request_body = ChangeRequest, responses((status = 200, description = "Done", body = ServerChangedView), Failures))]
pub(super) async fn change(
    State(supervisor): State<Handle>,
    Names((pool, server)): Names<(String, String)>,
    wanted: Body<ChangeRequest>,
) -> Response {
    let (weight, state) = match wanted.into_inner().parsed() {
        Ok(parsed) => parsed,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let (mut before, mut after, full) = (Vec::new(), Vec::new(), format!("{pool}/{server}"));
    if let Some(weight) = weight {
        let operation = Operation::Weight { server, weight };
        match supervisor.operate(Operate::new(pool, operation)).await {
            Some(Ok(operated)) => {
                let (_, old, new) = operated.into_parts();
                before.push(old);
                after.push(new);
            }
            Some(Err(error)) => return refused(error),
            None => return shutting_down(),
        }
    }
    if let Some((state, time)) = state {
        match supervisor.set_state(StateChange::new(full.clone(), state, time)).await {
            Some(Ok(operated)) => {
                let (_, old, new) = operated.into_parts();
                before.push(old);
                after.push(new);
            }
            Some(Err(why)) => return failed(StatusCode::NOT_FOUND, why),
            None => return shutting_down(),
        }
    }
    changed(StatusCode::OK, "change", (full, before.join(", "), after.join(", ")))
}
