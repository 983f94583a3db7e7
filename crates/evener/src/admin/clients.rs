//! `GET /v1/clients`: the clients that a service recorded, and their traffic.

use super::parameters::Parameters;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::state::ClientsQuery;
use crate::state::ClientsView;
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::clients::ClientOrder;
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
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ClientsParameters {
    service: Option<String>,
    since: Option<u64>,
    sort: Option<String>,
    limit: Option<usize>,
}

/// Returns the order with a name.
fn order_of(name: Option<&str>) -> Result<ClientOrder, String> {
    let Some(name) = name else { return Ok(ClientOrder::Recent) };
    let found = ClientOrder::NAMED.into_iter().find(|(known, _)| *known == name);
    let unknown = || {
        let names = ClientOrder::NAMED.map(|(known, _)| known).join(", ");
        format!("`sort` must be one of {names}, got `{name}`")
    };
    found.map(|(_, order)| order).ok_or_else(unknown)
}

#[utoipa::path(get, path = "/v1/clients", params(ClientsParameters), responses((status = 200, description = "Done", body = ClientsView), Failures))]
pub(super) async fn clients(
    State(supervisor): State<Handle>,
    query: Parameters<ClientsParameters>,
) -> Response {
    let query = query.into_inner();
    let wanted = entries_max(query.limit).and_then(|most| Ok((order_of(query.sort.as_deref())?, most)));
    let (order, most) = match wanted {
        Ok(wanted) => wanted,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let since = query.since.map(Duration::from_secs);
    match supervisor.clients(ClientsQuery::new(query.service, since, order, most)).await {
        Some(Ok(clients)) => Json(clients).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
