//! `GET /v1/sticky`: the clients in sticky tables, their servers, and the number of clients of each server.

use super::clients::entries_max;
use super::{failed, shutting_down};
use crate::supervisor::{Handle, Supervisor};
use crate::table::table;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::ServerId;
use evener_core::health::Verdict;
use evener_core::pool::{Pool, Server};
use evener_core::spec::AdminState;
use evener_core::sticky::{Sticky, StickyClient};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Contents of the sticky tables by client address.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StickyView {
    /// Number of clients, including clients that are not shown.
    total: usize,
    /// The servers, pool by pool.
    servers: Vec<StickyServerView>,
    /// The clients, sorted by address.
    clients: Vec<StickyClientView>,
}

/// A server with its number of sticky clients.
#[derive(Debug, Serialize, Deserialize)]
struct StickyServerView {
    pool: String,
    server: String,
    /// Number of a server that was found in a directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    id: Option<u32>,
    address: String,
    /// True if the server is not down and not in maintenance.
    ok: bool,
    clients: usize,
}

impl StickyServerView {
    fn new(supervisor: &Supervisor, pool: &str, server: &Server, clients: usize) -> Self {
        Self {
            pool: pool.into(),
            server: server.spec.name.to_string(),
            id: supervisor.number_of(pool, &server.target),
            address: server.target.to_string(),
            ok: server.health.verdict() != Verdict::Down && server.state != AdminState::Maintenance,
            clients,
        }
    }

    fn row(&self) -> Vec<String> {
        let ok = if self.ok { "ok" } else { "-" };
        vec![id_or_name(self.id, &self.server), ok.into(), self.clients.to_string(), self.address.clone()]
    }
}

/// A client in a sticky table.
#[derive(Debug, Serialize, Deserialize)]
struct StickyClientView {
    client: IpAddr,
    pool: String,
    /// Server in the table.
    server: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    id: Option<u32>,
    /// Server that the client uses while the server in the table is not usable.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    substitute: Option<String>,
    /// Seconds since the last activity of the client.
    seen_s: u64,
}

impl StickyClientView {
    fn row(&self) -> Vec<String> {
        vec![id_or_name(self.id, &self.server), self.client.to_string()]
    }
}

/// Returns the number of a server, or its name if it has no number.
fn id_or_name(id: Option<u32>, server: &str) -> String {
    id.map_or_else(|| server.to_owned(), |id| id.to_string())
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct StickyQuery {
    pool: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn sticky(
    State(supervisor): State<Handle>,
    query: Result<Query<StickyQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let most = match entries_max(query.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.inspect(move |supervisor| StickyView::of(supervisor, query.pool.as_deref(), most)).await
    {
        Some(Ok(view)) => Json(view).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}

impl StickyView {
    fn of(supervisor: &Supervisor, wanted: Option<&str>, most: usize) -> Result<Self, String> {
        if let Some(name) = wanted
            && supervisor.find_pool(name)?.sticky().is_none()
        {
            return Err(format!(
                "pool `{name}` has no sticky table: give it sticky = {{ by = \"client_ip\" }}"
            ));
        }
        let mut view = Self::default();
        let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
        for pool in supervisor.running_pools().filter(|pool| is_wanted(&pool.spec().name)) {
            if let Some(sticky) = pool.sticky() {
                view.add(supervisor, pool, sticky, most);
            }
        }
        Ok(view)
    }

    fn add(&mut self, supervisor: &Supervisor, pool: &Pool, sticky: &Sticky, most: usize) {
        let (name, now) = (&pool.spec().name, supervisor.now());
        let clients: BTreeMap<ServerId, usize> = sticky.homes(now).into_iter().collect();
        self.total += clients.values().sum::<usize>();
        let clients_of = |server: &Server| clients.get(&server.id).copied().unwrap_or_default();
        let server = |server| StickyServerView::new(supervisor, name, server, clients_of(server));
        self.servers.extend(pool.servers().iter().map(server));
        let client = |client: StickyClient| {
            let home = pool.server(client.assignment.home)?;
            let substitute = client.assignment.substitute.and_then(|server| pool.server(server));
            Some(StickyClientView {
                client: client.address,
                pool: name.to_string(),
                server: home.spec.name.to_string(),
                id: supervisor.number_of(name, &home.target),
                substitute: substitute.map(|server| server.spec.name.to_string()),
                seen_s: now.since(client.seen_at).as_secs(),
            })
        };
        let room = most.saturating_sub(self.clients.len());
        let mut shown: Vec<_> = sticky.clients(now, room).into_iter().filter_map(client).collect();
        shown.sort_by_key(|view| view.client);
        self.clients.extend(shown);
    }

    /// Formats the servers and the clients as the two tables of mname-balancer's `balstat`.
    pub(crate) fn text(&self) -> String {
        let backends: Vec<_> = self.servers.iter().map(StickyServerView::row).collect();
        let peers: Vec<_> = self.clients.iter().map(StickyClientView::row).collect();
        format!(
            "BACKENDS\n{}\nREMOTE PEERS\n{}",
            table(&["ID", "OK", "REMOTES", "PATH"], &backends),
            table(&["BACKEND", "ADDRESS"], &peers)
        )
    }

    /// Returns the number of clients that are shown and the number of all clients.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.total)
    }

    /// Returns true if there is neither a server nor a client.
    pub(crate) fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.clients.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn servers_and_clients_are_formatted_as_two_tables() {
        let server = |server: &str, id, ok, clients| StickyServerView {
            pool: "mname".into(),
            server: server.into(),
            id,
            address: format!("/s/{server}"),
            ok,
            clients,
        };
        let client = StickyClientView {
            client: "192.0.2.7".parse().unwrap(),
            pool: "mname".into(),
            server: "5300".into(),
            id: Some(5300),
            substitute: None,
            seen_s: 3,
        };
        let servers = vec![server("5300", Some(5300), true, 1), server("plain", None, false, 0)];
        let view = StickyView { total: 1, servers, clients: vec![client] };
        let expected = "BACKENDS\nID     OK  REMOTES  PATH\n5300   ok  1        /s/5300\nplain  -   0        /s/plain\n\
                        \nREMOTE PEERS\nBACKEND  ADDRESS\n5300     192.0.2.7\n";
        assert_eq!(view.text(), expected);
    }
}
