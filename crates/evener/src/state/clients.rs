//! Clients that services recorded, and their traffic.

use crate::table::{rate, server_name, short_bytes, table};
use evener_core::Time;
use evener_core::clients::{ClientOrder, ClientRank, ClientSeen, ClientSelection, Clients};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Query for clients.
#[derive(Debug)]
pub(crate) struct ClientsQuery {
    /// `None` is all services.
    service: Option<String>,
    /// Only clients that were active within this time.
    since: Option<Duration>,
    order: ClientOrder,
    /// Maximum number of clients.
    most: usize,
}

impl ClientsQuery {
    pub(crate) fn new(
        service: Option<String>,
        since: Option<Duration>,
        order: ClientOrder,
        most: usize,
    ) -> Self {
        Self { service, since, order, most }
    }

    /// Returns a query for all clients of a service, the most recently active client first.
    pub(crate) fn all_of(service: &str) -> Self {
        Self::new(Some(service.into()), None, ClientOrder::Recent, usize::MAX)
    }

    pub(crate) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    fn selection(&self, now: Time) -> ClientSelection {
        let since = self.since.map_or(Time::ZERO, |since| now - since);
        ClientSelection { now, since, order: self.order, most: self.most }
    }
}

/// The clients of one service, or of all services.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ClientsView {
    /// Number of clients, including clients that are not shown.
    total: usize,
    /// Number of services that record clients.
    #[serde(default)]
    services: usize,
    /// In the order of the query.
    clients: Vec<ClientView>,
}

impl ClientsView {
    /// Collects the clients that a query wants from the tables of services, given by their names.
    pub(crate) fn new(
        tables: impl Iterator<Item = (Arc<str>, Arc<Clients>)>,
        now: Time,
        query: &ClientsQuery,
    ) -> Self {
        let selection = query.selection(now);
        let (mut clients, mut total, mut services) = (Vec::new(), 0, 0);
        for (service, table) in tables {
            let (listed, count) = table.list(&selection);
            total += count;
            services += 1;
            let view =
                |(rank, client): (ClientRank, ClientSeen)| (rank, ClientView::new(&service, client, now));
            clients.extend(listed.into_iter().map(view));
            clients.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
            clients.truncate(query.most);
        }
        Self { total, services, clients: clients.into_iter().map(|(_, view)| view).collect() }
    }

    /// Formats the clients as a table. Columns that would have the same value in all rows are omitted: the
    /// service if there is only one, and requests and refusals if there are none.
    pub(crate) fn text(&self) -> String {
        let any = |value: fn(&ClientView) -> u64| self.clients.iter().any(|client| value(client) > 0);
        let first = self.clients.first().map(|client| &client.service);
        let columns = [
            ("SERVICE", self.clients.iter().any(|client| Some(&client.service) != first)),
            ("CLIENT", true),
            ("RATE", true),
            ("OPENED", true),
            ("REQS", any(|client| client.requests)),
            ("DENIED", any(|client| client.denied)),
            ("LIMITED", any(|client| client.limited)),
            ("IN", true),
            ("OUT", true),
            ("SEEN", true),
            ("LAST SERVER", true),
        ];
        let shown = |cells: Vec<String>| -> Vec<String> {
            let cells = cells.into_iter().zip(columns);
            cells.filter(|(_, (_, is_shown))| *is_shown).map(|(cell, _)| cell).collect()
        };
        let heading = shown(columns.map(|(heading, _)| heading.to_owned()).to_vec());
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let rows: Vec<_> = self.clients.iter().map(|client| shown(client.row())).collect();
        table(&heading, &rows)
    }

    /// Returns true if no service records clients.
    pub(crate) fn is_unrecorded(&self) -> bool {
        self.services == 0
    }

    /// Returns the clients that are shown.
    pub(crate) fn clients(&self) -> &[ClientView] {
        &self.clients
    }

    /// Returns the number of clients that are shown and the number of all clients.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.total)
    }
}

/// A client of a service.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ClientView {
    service: String,
    #[schema(value_type = String)]
    client: IpAddr,
    /// Number of connections and flows that the client opened.
    connects: u64,
    /// Number of requests of HTTP and queries of DNS.
    #[serde(default)]
    requests: u64,
    /// Number of connections, flows and requests that an access list refused.
    #[serde(default)]
    denied: u64,
    /// Number of connections and requests that a limit refused.
    #[serde(default)]
    limited: u64,
    /// Connections or requests a second within the last 5 to 10 seconds, whichever are more; refused ones are
    /// included.
    #[serde(default)]
    rate: f64,
    /// Bytes received from the client.
    bytes_in: u64,
    /// Bytes sent to the client.
    bytes_out: u64,
    /// Seconds since the client last opened or tried to open a connection, or transferred bytes.
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
            requests: client.requests,
            denied: client.denied,
            limited: client.limited,
            rate: (client.rate * 10.0).round() / 10.0,
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
            format!("{}/s", rate(self.rate)),
            self.connects.to_string(),
            self.requests.to_string(),
            self.denied.to_string(),
            self.limited.to_string(),
            short_bytes(self.bytes_in),
            short_bytes(self.bytes_out),
            crate::table::age(self.seen_s),
            server_name(self.pool.as_deref(), self.server.as_deref()),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use evener_core::clients::RefusedFor;

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    fn view(tables: &[(&str, &Arc<Clients>)], order: ClientOrder, most: usize) -> ClientsView {
        let tables = tables.iter().map(|(name, table)| (Arc::from(*name), Arc::clone(table)));
        ClientsView::new(tables, at(10), &ClientsQuery::new(None, None, order, most))
    }

    #[test]
    fn the_columns_say_which_client_floods_and_fit_80_characters() {
        let table = Arc::new(Clients::new(10, 1));
        let flood = table.enter("192.0.2.207".parse().unwrap(), at(9));
        for number in 0..60_000 {
            flood.requested(at(9));
            if number % 2 == 0 {
                flood.refused(RefusedFor::Limit);
            }
        }
        flood.connected(at(9));
        flood.moved(20 << 20, 3 << 30, at(10));
        flood.record_server(&"www".into(), &"10.0.0.51:80".into());
        table.enter("2001:db8::7".parse().unwrap(), at(1)).connected(at(1));
        let shown = view(&[("www", &table)], ClientOrder::Rate, 10).text();
        let expected = "\
CLIENT       RATE     OPENED  REQS   LIMITED  IN   OUT   SEEN  LAST SERVER
192.0.2.207  12000/s  1       60000  30000    20M  3.0G  0s    www/10.0.0.51:80
2001:db8::7  0/s      1       0      0        0B   0B    9s    -
";
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
    }

    #[test]
    fn the_limit_applies_to_all_services_together() {
        let [www, api] = [1, 2].map(|key| Arc::new(Clients::new(10, key)));
        for (table, last, times) in [(&www, 1, 3), (&www, 2, 1), (&api, 3, 2), (&api, 4, 4)] {
            let record = table.enter([192, 0, 2, last].into(), at(9));
            (0..times).for_each(|_| record.connected(at(9)));
        }
        let tables = [("www", &www), ("api", &api)];
        let shown = view(&tables, ClientOrder::Connections, 3);
        let connects: Vec<u64> = shown.clients().iter().map(ClientView::connects).collect();
        assert_eq!((connects, shown.counts()), (vec![4, 3, 2], (3, 4)));
        assert!(shown.text().starts_with("SERVICE  CLIENT"), "{}", shown.text());
        assert!(!view(&tables, ClientOrder::Recent, 0).is_unrecorded());
        assert!(view(&[], ClientOrder::Recent, 3).is_unrecorded());
    }
}
