//! Sticky tables by client address: the clients, their servers, and the number of clients of each server.

use crate::table::table;
use evener_core::health::Verdict;
use evener_core::pool::{Pool, Server};
use evener_core::spec::AdminState;
use evener_core::sticky::StickyClient;
use evener_core::{ServerId, Target, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Contents of the sticky tables by client address.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct StickyView {
    /// Number of clients, including clients that are not shown.
    total: usize,
    /// The servers, pool by pool.
    servers: Vec<StickyServerView>,
    /// The clients, pool by pool, sorted by address.
    clients: Vec<StickyClientView>,
}

impl StickyView {
    /// Adds the servers and clients of a pool, if the pool has a table. At most `most` clients are shown in
    /// total. `number_of` returns the number of a server that was found in a directory.
    pub(crate) fn add(
        &mut self,
        pool: &Pool,
        now: Time,
        most: usize,
        number_of: impl Fn(&Target) -> Option<u32>,
    ) {
        let Some(sticky) = pool.sticky() else { return };
        let name = &pool.spec().name;
        let clients: BTreeMap<ServerId, usize> = sticky.homes(now).into_iter().collect();
        self.total += clients.values().sum::<usize>();
        let clients_of = |server: &Server| clients.get(&server.id).copied().unwrap_or_default();
        let server = |server: &Server| {
            StickyServerView::new(name, server, number_of(&server.target), clients_of(server))
        };
        self.servers.extend(pool.servers().iter().map(server));
        let client = |client: StickyClient| {
            let home = pool.server(client.assignment.home)?;
            let substitute = client.assignment.substitute.and_then(|server| pool.server(server));
            Some(StickyClientView {
                client: client.address,
                pool: name.to_string(),
                server: home.spec.name.to_string(),
                id: number_of(&home.target),
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

/// A server with its number of sticky clients.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
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
    fn new(pool: &str, server: &Server, id: Option<u32>, clients: usize) -> Self {
        Self {
            pool: pool.into(),
            server: server.spec.name.to_string(),
            id,
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
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct StickyClientView {
    #[schema(value_type = String)]
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
