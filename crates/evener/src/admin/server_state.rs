//! `POST /v1/servers/state`: changes the administrative state of a server.

use super::guard::Audit;
use super::parameters::Body;
use super::problem::Failures;
use super::{duration_of, failed, shutting_down};
use crate::supervisor::{Handle, StateChange};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::spec::AdminState;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Body of the request.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct StateRequest {
    server: String,
    state: String,
    /// Duration of the state, such as `10m`. The state is permanent when absent.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

/// Response to a change.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct StateChangedView {
    /// Full name, `pool/server`.
    server: String,
    state: String,
}

impl StateRequest {
    /// Creates a request for `state`: `ready`, `drain` or `maintenance`.
    pub(crate) fn new(server: &str, state: &str, time: Option<Duration>) -> Self {
        let time = time.map(|time| humantime::format_duration(time).to_string());
        Self { server: server.into(), state: state.into(), time }
    }

    fn change(&self) -> Result<StateChange, String> {
        let state = AdminState::ALL.into_iter().find(|state| state.name() == self.state);
        let state =
            state.ok_or_else(|| format!("`{}` is not a state: ready, drain or maintenance", self.state))?;
        let time = duration_of(self.time.as_deref())?;
        if time.is_some() && state == AdminState::Ready {
            return Err("state `ready` has no time limit: remove `for`".into());
        }
        Ok(StateChange::new(self.server.clone(), state, time))
    }
}

#[utoipa::path(post, path = "/v1/servers/state", request_body = StateRequest, responses((status = 200, description = "Done", body = StateChangedView), Failures))]
pub(super) async fn set_state(State(supervisor): State<Handle>, wanted: Body<StateRequest>) -> Response {
    let wanted = wanted.into_inner();
    let change = match wanted.change() {
        Ok(change) => change,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.set_state(change).await {
        Some(Ok(changed)) => {
            let (server, before, after) = changed.into_parts();
            let audit = Audit::new("state", format!("server {server}")).values(before, after);
            audit.on(Json(StateChangedView { server, state: wanted.state }).into_response())
        }
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
