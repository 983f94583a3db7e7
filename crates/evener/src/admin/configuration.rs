//! `GET /v1/config`: the running configuration, as Lua or JSON.

use super::parameters::Parameters;
use super::problem::Failures;
use super::{aside, failed, shutting_down};
use crate::config::{print, spec_as_json};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// First line of a configuration in Lua that lacks the functions of the file.
pub(crate) const WITHOUT_FUNCTIONS: &str =
    "-- Without the functions of the file (checks, every, on), which cannot be printed: copy them.\n";

/// Query parameters of the request.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ConfigQuery {
    /// `lua` or `json`; else the header field `Accept` decides, and JSON is the default.
    format: Option<String>,
}

#[utoipa::path(get, path = "/v1/config", params(ConfigQuery), responses((status = 200, description = "Done", content((Object = "application/json"), (String = "application/x-lua"))), Failures))]
pub(super) async fn configuration(
    State(supervisor): State<Handle>,
    headers: HeaderMap,
    query: Parameters<ConfigQuery>,
) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let is_lua = match query.into_inner().format.as_deref() {
        Some("lua") => true,
        Some("json") => false,
        None => accept.contains("lua"),
        Some(_) => return failed(StatusCode::UNPROCESSABLE_ENTITY, "`format` must be lua or json"),
    };
    let Some((spec, has_functions)) = supervisor.spec().await else { return shutting_down() };
    if is_lua {
        let comment = if has_functions { WITHOUT_FUNCTIONS } else { "" };
        return match aside(move || print(&spec, &|_| None)).await.map(|text| format!("{comment}{text}")) {
            Some(text) => ([(CONTENT_TYPE, "application/x-lua")], text).into_response(),
            None => failed(StatusCode::INTERNAL_SERVER_ERROR, "the configuration cannot be printed"),
        };
    }
    match aside(move || spec_as_json(&spec)).await {
        Some(Ok(mut json)) => {
            if has_functions && let Some(values) = json.as_object_mut() {
                values.insert("has_functions".into(), true.into());
            }
            Json(json).into_response()
        }
        Some(Err(why)) => failed(StatusCode::INTERNAL_SERVER_ERROR, why),
        None => failed(StatusCode::INTERNAL_SERVER_ERROR, "the configuration cannot be printed"),
    }
}
