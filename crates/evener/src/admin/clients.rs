//! `GET /v1/clients`: the clients that a service recorded, and their traffic.

use super::parameters::Parameters;
use super::{failed, shutting_down};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::time::Duration;

/// Default number of entries in a response.
const ENTRIES: usize = 1000;
/// Maximum number of entries in a response.
const ENTRIES_MAX: usize = 100_000;

/// Returns the maximum number of entries in a response: the `limit` of the request, or the default.
pub(super) fn entries_max(limit: Option<usize>) -> Result<usize, String> {
    match limit {
        Some(limit) if limit > ENTRIES_MAX => {
            Err(format!("`limit` must be at most {ENTRIES_MAX}, got {limit}"))
        }
        limit => Ok(limit.unwrap_or(ENTRIES)),
    }
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct ClientsQuery {
    service: Option<String>,
    since: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn clients(State(supervisor): State<Handle>, query: Parameters<ClientsQuery>) -> Response {
    let query = query.into_inner();
    let most = match entries_max(query.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let since = query.since.map(Duration::from_secs);
    match supervisor.clients(query.service, since, most).await {
        Some(Ok(clients)) => Json(clients).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
