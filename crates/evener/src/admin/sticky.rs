//! `GET /v1/sticky`: the clients in sticky tables, their servers, and the number of clients of each server.

use super::clients::entries_max;
use super::parameters::Parameters;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::state::StickyView;
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// Query parameters of the request.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StickyQuery {
    pool: Option<String>,
    limit: Option<usize>,
}

#[utoipa::path(get, path = "/v1/sticky", params(StickyQuery), responses((status = 200, description = "Done", body = StickyView), Failures))]
pub(super) async fn sticky(State(supervisor): State<Handle>, query: Parameters<StickyQuery>) -> Response {
    let query = query.into_inner();
    let most = match entries_max(query.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.sticky(query.pool, most).await {
        Some(Ok(view)) => Json(view).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
