//! `POST /v1/upgrade`: starts a new instance that takes over.

use super::guard::Audit;
use super::parameters::Body;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::supervisor::{Handle, UpgradeRequest};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Longest time until the new instance must be ready. Clients wait a little longer for the response.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// A request to upgrade.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct UpgradeParameters {
    /// The program; the one that runs, as it is installed now, if it is absent.
    #[schema(value_type = Option<String>)]
    binary: Option<PathBuf>,
    /// Time until the new instance must be ready.
    timeout: Option<String>,
}

impl UpgradeParameters {
    pub(crate) fn new(binary: Option<PathBuf>, timeout: Duration) -> Self {
        Self { binary, timeout: Some(humantime::format_duration(timeout).to_string()) }
    }
}

/// The new instance.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct NewInstance {
    /// Process number.
    pid: u32,
    /// Path of the program.
    binary: String,
}

impl NewInstance {
    /// Returns the process number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

#[utoipa::path(post, path = "/v1/upgrade", request_body = UpgradeParameters, responses((status = 200, description = "Done", body = NewInstance), Failures))]
pub(super) async fn upgrade(
    State(supervisor): State<Handle>,
    parameters: Body<UpgradeParameters>,
) -> Response {
    let UpgradeParameters { binary, timeout } = parameters.into_inner();
    let timeout = match timeout.as_deref().map(humantime::parse_duration).transpose() {
        Ok(timeout) if timeout.is_none_or(|timeout| !timeout.is_zero() && timeout <= TIMEOUT_MAX) => timeout,
        _ => {
            let problem = "`timeout` must be a duration above zero of at most 30s, such as 10s";
            return failed(StatusCode::UNPROCESSABLE_ENTITY, problem);
        }
    };
    if binary.as_ref().is_some_and(|binary| !binary.is_absolute()) {
        return failed(StatusCode::UNPROCESSABLE_ENTITY, "`binary` must be an absolute path");
    }
    match supervisor.upgrade(UpgradeRequest::new(binary, timeout)).await {
        Some(Ok(upgraded)) => {
            let (pid, binary) = upgraded.into_parts();
            let binary = binary.display().to_string();
            let before = format!("process {}", std::process::id());
            let audit = Audit::new("upgrade", "instance").values(&before, format!("process {pid}, {binary}"));
            audit.on(Json(NewInstance { pid, binary }).into_response())
        }
        Some(Err(problem)) => failed(StatusCode::CONFLICT, problem),
        None => shutting_down(),
    }
}
