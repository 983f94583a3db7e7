//! Clients that services recorded, and their traffic.

use crate::table::{bytes, seconds, server_name, table};
use evener_core::Time;
use evener_core::clients::{ClientSeen, Clients};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The clients of one service, or of all services.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ClientsView {
    /// Number of clients, including clients that are not shown.
    total: usize,
    /// The most recently active client first.
    clients: Vec<ClientView>,
}

impl ClientsView {
    /// Collects the clients of services, given by their names and tables, that were active within the time
    /// `since`; at most `most` of them.
    pub(crate) fn new(
        tables: impl Iterator<Item = (Arc<str>, Arc<Clients>)>,
        now: Time,
        since: Option<Duration>,
        most: usize,
    ) -> Self {
        let since = since.map_or(Time::ZERO, |since| now - since);
        let (mut clients, mut total) = (Vec::new(), 0);
        for (service, table) in tables {
            let (newest, count) = table.newest(since, most);
            total += count;
            let view = |client: ClientSeen| (client.seen, ClientView::new(&service, client, now));
            clients.extend(newest.into_iter().map(view));
        }
        clients.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
        Self { total, clients: clients.into_iter().take(most).map(|(_, view)| view).collect() }
    }

    /// Formats the clients as a table.
    pub(crate) fn text(&self) -> String {
        let rows: Vec<_> = self.clients.iter().map(ClientView::row).collect();
        table(&["SERVICE", "CLIENT", "CONNECTS", "IN", "OUT", "SEEN", "SERVER"], &rows)
    }

    /// Returns the clients that are shown, the most recently active client first.
    pub(crate) fn clients(&self) -> &[ClientView] {
        &self.clients
    }

    /// Returns the number of clients that are shown and the number of all clients.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.total)
    }
}

/// A client of a service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientView {
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

    pub(crate) fn address(&self) -> IpAddr {
        self.client
    }

    /// Returns the number of connections and flows that the client opened.
    pub(crate) fn connects(&self) -> u64 {
        self.connects
    }

    /// Returns the bytes received from the client.
    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Returns the bytes sent to the client.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Returns the seconds since the last activity of the client.
    pub(crate) fn seen_s(&self) -> u64 {
        self.seen_s
    }

    /// Returns the pool and the name of the last server.
    pub(crate) fn last_server(&self) -> Option<(&str, &str)> {
        self.pool.as_deref().zip(self.server.as_deref())
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
