//! `GET /v1/explain`: the server that a client of a service would get, and the reasons against the other
//! servers, or the reason why the client would get no server. The request changes neither counters nor state.

use super::parameters::Parameters;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::state::{ExplainQuery, Explanation};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

#[utoipa::path(get, path = "/v1/explain", params(ExplainQuery), responses((status = 200, description = "Done", body = Explanation), Failures))]
pub(super) async fn explain(State(supervisor): State<Handle>, query: Parameters<ExplainQuery>) -> Response {
    let query = query.into_inner();
    match supervisor.explain(query).await {
        Some(Ok(explanation)) => Json(explanation).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
