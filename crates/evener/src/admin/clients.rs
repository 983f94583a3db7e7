//! `GET /v1/clients`: the clients that a service recorded, and their traffic.

use super::{failed, shutting_down};
use crate::planes::RunningService;
use crate::supervisor::{Handle, Supervisor};
use crate::table::{bytes, seconds, server_name, table};
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

/// The clients of one service, or of all services.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientsView {
    /// Number of clients, including clients that are not shown.
    total: usize,
    /// The most recently active client first.
    clients: Vec<ClientView>,
}

impl ClientsView {
    fn of(supervisor: &Supervisor, query: &ClientsQuery, most: usize) -> Result<Self, String> {
        let now = supervisor.now();
        let since = query.since.map_or(Time::ZERO, |secs| now - Duration::from_secs(secs));
        if let Some(name) = &query.service {
            let RunningService::Proxy(service) = supervisor.find_service(name)?;
            if service.settings.load().clients.is_none() {
                return Err(format!(
                    "service `{name}` does not record clients: give it `clients`, such as clients = 1000"
                ));
            }
        }
        let is_wanted = |name: &str| query.service.as_ref().is_none_or(|wanted| wanted == name);
        let (mut clients, mut total) = (Vec::new(), 0);
        for RunningService::Proxy(service) in supervisor.running_services() {
            let name = &service.live.name;
            if !is_wanted(name) {
                continue;
            }
            let settings = service.settings.load();
            let Some(table) = &settings.clients else { continue };
            let (newest, count) = table.newest(since, most);
            total += count;
            let view = |client: ClientSeen| (client.seen, ClientView::new(name, client, now));
            clients.extend(newest.into_iter().map(view));
        }
        clients.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
        Ok(Self { total, clients: clients.into_iter().take(most).map(|(_, view)| view).collect() })
    }

    /// Formats the clients as a table.
    pub(crate) fn text(&self) -> String {
        let rows: Vec<_> = self.clients.iter().map(ClientView::row).collect();
        table(&["SERVICE", "CLIENT", "CONNECTS", "IN", "OUT", "SEEN", "SERVER"], &rows)
    }

    /// Returns the number of clients that are shown and the number of all clients.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.total)
    }
}

/// A client of a service.
#[derive(Debug, Serialize, Deserialize)]
struct ClientView {
    service: String,
    client: IpAddr,
    /// Number of connections and flows that the client opened.
    connects: u64,
    /// Bytes received from the client.
    bytes_in: u64,
    /// Bytes sent to the client.
    bytes_out: u64,
    /// Seconds since the client last opened a connection or transferred bytes.
    seen_s: u64,
    /// Pool of the last server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    server: Option<String>,
}

impl ClientView {
    fn new(service: &str, client: ClientSeen, now: Time) -> Self {
        let (pool, server) =
            client.last_server.map(|last| (last.pool.to_string(), last.server.to_string())).unzip();
        Self {
            service: service.into(),
            client: client.address,
            connects: client.connects,
            bytes_in: client.bytes_in,
            bytes_out: client.bytes_out,
            seen_s: now.since(client.seen).as_secs(),
            pool,
            server,
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.client.to_string(),
            self.connects.to_string(),
            bytes(self.bytes_in),
            bytes(self.bytes_out),
            format!("{} ago", seconds(self.seen_s)),
            server_name(self.pool.as_deref(), self.server.as_deref()),
        ]
    }
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct ClientsQuery {
    service: Option<String>,
    since: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn clients(
    State(supervisor): State<Handle>,
    query: Result<Query<ClientsQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let most = match entries_max(query.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.inspect(move |supervisor| ClientsView::of(supervisor, &query, most)).await {
        Some(Ok(clients)) => Json(clients).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
