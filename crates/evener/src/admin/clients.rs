//! `GET /v1/clients`: the clients that a service has seen, and their traffic.

use super::{failed, gone};
use crate::supervisor::{Handle, Supervisor};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::Time;
use evener_core::clients::ClientSeen;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// Default number of clients in a response.
const SHOWN: usize = 1000;
/// Maximum number of clients in a response.
const SHOWN_MAX: usize = 100_000;

/// Checks the number of entries to show, and applies the default.
pub(super) fn shown(limit: Option<usize>) -> Result<usize, String> {
    match limit {
        Some(limit) if limit > SHOWN_MAX => Err(format!("`limit` must be at most {SHOWN_MAX}, got {limit}")),
        limit => Ok(limit.unwrap_or(SHOWN)),
    }
}

/// The clients of one service or of all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientsView {
    /// Number of clients, including those that are not shown.
    pub(crate) total: usize,
    /// Most recently seen first.
    pub(crate) clients: Vec<ClientView>,
}

/// A client of a service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientView {
    pub(crate) service: String,
    pub(crate) client: IpAddr,
    /// Number of connections and flows that the client opened.
    pub(crate) connects: u64,
    /// Bytes received from the client.
    pub(crate) bytes_in: u64,
    /// Bytes sent to the client.
    pub(crate) bytes_out: u64,
    /// Seconds since the last connect or the last bytes.
    pub(crate) seen_s: u64,
    /// Pool of the last server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server: Option<String>,
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    service: Option<String>,
    since: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn clients(
    State(supervisor): State<Handle>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let most = match shown(wanted.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.inspect(move |supervisor| inspect(supervisor, &wanted, most)).await {
        Some(Ok(clients)) => Json(clients).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

fn inspect(supervisor: &Supervisor, wanted: &Wanted, most: usize) -> Result<ClientsView, String> {
    let now = supervisor.now();
    let since = wanted.since.map_or(Time::ZERO, |secs| now - Duration::from_secs(secs));
    let (mut seen, mut total) = (Vec::new(), 0);
    if let Some(name) = &wanted.service {
        let service = supervisor.services.get(name.as_str());
        let service =
            service.ok_or_else(|| format!("there is no service `{name}`; `evener status` lists them"))?;
        if service.settings.load().clients.is_none() {
            return Err(format!(
                "service `{name}` does not record clients: give it `clients`, such as clients = 1000"
            ));
        }
    }
    let is_meant = |name: &str| wanted.service.as_ref().is_none_or(|wanted| wanted == name);
    for (name, service) in supervisor.services.iter().filter(|(name, _)| is_meant(name)) {
        let settings = service.settings.load();
        let Some(clients) = &settings.clients else { continue };
        let (newest, count) = clients.newest(since, most);
        total += count;
        seen.extend(newest.into_iter().map(|one| (one.seen, view(name, one, now))));
    }
    seen.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
    Ok(ClientsView { total, clients: seen.into_iter().take(most).map(|(_, view)| view).collect() })
}

fn view(service: &str, seen: ClientSeen, now: Time) -> ClientView {
    let (pool, server) = seen.last_server.map(|had| (had.pool.to_string(), had.server.to_string())).unzip();
    ClientView {
        service: service.into(),
        client: seen.address,
        connects: seen.connects,
        bytes_in: seen.bytes_in,
        bytes_out: seen.bytes_out,
        seen_s: now.since(seen.seen).as_secs(),
        pool,
        server,
    }
}
