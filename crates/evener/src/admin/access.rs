//! `GET /v1/access` and `POST /v1/access`: lists and changes the access rules that the operator adds at run
//! time.

use super::guard::Audit;
use super::parameters::Body;
use super::problem::Failures;
use super::{duration_of, failed, shutting_down};
use crate::state::RuleView;
use crate::supervisor::{AccessChange, AccessError, Handle};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::acl::{Access, PrefixError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[utoipa::path(get, path = "/v1/access", responses((status = 200, description = "Done", body = Vec<RuleView>), Failures))]
pub(super) async fn access(State(supervisor): State<Handle>) -> Response {
    match supervisor.access_rules().await {
        Some(rules) => Json(rules).into_response(),
        None => shutting_down(),
    }
}

/// Body of a request to change the access rules of a service.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct AccessRequest {
    service: String,
    prefix: String,
    /// `permit`, `deny` or `forget`.
    action: String,
    /// Duration of the rule, such as `10m`. The rule is permanent when absent.
    #[serde(default, rename = "for")]
    time: Option<String>,
}

/// Response to a change.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct AccessChangedView {
    service: String,
    /// The change, such as `deny 192.0.2.0/24`.
    done: String,
}

impl AccessRequest {
    /// Creates a request for `action`: `permit`, `deny` or `forget`.
    pub(crate) fn new(service: &str, prefix: &str, action: &str, time: Option<Duration>) -> Self {
        Self {
            service: service.into(),
            prefix: prefix.into(),
            action: action.into(),
            time: time.map(|time| humantime::format_duration(time).to_string()),
        }
    }

    fn change(&self) -> Result<AccessChange, String> {
        let prefix = self.prefix.parse().map_err(|error: PrefixError| error.to_string())?;
        let time = duration_of(self.time.as_deref())?;
        match self.action.as_str() {
            "permit" => Ok(AccessChange::Add(Access::Permit, prefix, time)),
            "deny" => Ok(AccessChange::Add(Access::Deny, prefix, time)),
            "forget" => Ok(AccessChange::Remove(prefix)),
            other => Err(format!("`{other}` is not an action: use permit, deny or forget")),
        }
    }
}

#[utoipa::path(post, path = "/v1/access", request_body = AccessRequest, responses((status = 200, description = "Done", body = AccessChangedView), Failures))]
pub(super) async fn change_access(State(supervisor): State<Handle>, wanted: Body<AccessRequest>) -> Response {
    let wanted = wanted.into_inner();
    let change = match wanted.change() {
        Ok(change) => change,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.change_access(wanted.service.clone(), change).await {
        Some(Ok(done)) => {
            let audit = Audit::new("access", format!("service {}", wanted.service)).after(&done);
            audit.on(Json(AccessChangedView { service: wanted.service, done }).into_response())
        }
        Some(Err(AccessError::Unknown(why))) => failed(StatusCode::NOT_FOUND, why),
        Some(Err(AccessError::Impossible(why))) => failed(StatusCode::UNPROCESSABLE_ENTITY, why),
        None => shutting_down(),
    }
}
