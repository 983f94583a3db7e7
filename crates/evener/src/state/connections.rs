//! Open connections and flows.

use crate::table::{age, server_name, short_bytes, table};
use evener_core::acl::Prefix;
use evener_proxy::{ListFilter, Listing, Open};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Query for connections and flows.
#[derive(Debug)]
pub(crate) struct ConnectionsQuery {
    service: Option<String>,
    clients: Option<Prefix>,
    /// `pool/server`, or just the server if only one pool has it.
    server: Option<String>,
    most: usize,
}

impl ConnectionsQuery {
    /// Creates a query for at most `most` connections and flows of all services.
    pub(crate) fn new(most: usize) -> Self {
        Self { service: None, clients: None, server: None, most }
    }

    pub(crate) fn of_service(self, service: Option<String>) -> Self {
        Self { service, ..self }
    }

    pub(crate) fn of_clients(self, clients: Option<Prefix>) -> Self {
        Self { clients, ..self }
    }

    pub(crate) fn of_server(self, server: Option<String>) -> Self {
        Self { server, ..self }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Returns the conditions for the workers, except for the server, whose name must be looked up.
    pub(crate) fn filter(&self) -> ListFilter {
        let service = self.service.as_deref().map(Arc::from);
        ListFilter::default().of_service(service).of_clients(self.clients)
    }
}

/// The open connections and flows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ConnectionsView {
    /// Number of connections and flows, including connections and flows that are not shown.
    total: usize,
    /// The connections and flows that are shown, sorted by number.
    connections: Vec<ConnectionView>,
}

impl ConnectionsView {
    /// Describes a listing of the workers; at most `most` of its connections and flows.
    pub(crate) fn new(listing: Listing, most: usize) -> Self {
        let connections = listing.open.into_iter().take(most).map(ConnectionView::new).collect();
        Self { total: listing.total, connections }
    }

    /// Returns the connections and flows that are shown, sorted by number.
    pub(crate) fn into_connections(self) -> Vec<ConnectionView> {
        self.connections
    }

    /// Formats the connections and flows as a table.
    pub(crate) fn text(&self) -> String {
        let heading = ["NUMBER", "SERVICE", "CLIENT", "SERVER", "STAGE", "IDLE", "TO CLIENT", "TO SERVER"];
        table(&heading, &self.connections.iter().map(ConnectionView::row).collect::<Vec<_>>())
    }

    /// Returns the number of connections and flows that are shown, and their total number.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.connections.len(), self.total)
    }
}

/// A connection or flow of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionView {
    number: u64,
    service: String,
    client: IpAddr,
    /// Absent when unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    client_port: Option<u16>,
    /// Pool of the current server, or of the server being connected to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    server: Option<String>,
    stage: String,
    /// Seconds since bytes were last transferred.
    idle_s: f64,
    /// File descriptor of the socket to the client; absent for a flow, which has only a socket to its server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    client_socket: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    server_socket: Option<i32>,
    /// Bytes that are queued because the client has not read them yet.
    to_client: usize,
    to_server: usize,
}

impl ConnectionView {
    /// Describes a connection or flow.
    pub(crate) fn new(open: Open) -> Self {
        let (pool, server) =
            open.server.map(|current| (current.pool.to_string(), current.server.to_string())).unzip();
        Self {
            number: open.number,
            service: open.service.to_string(),
            client: open.client,
            client_port: open.client_port,
            pool,
            server,
            stage: open.stage.into(),
            idle_s: open.idle.as_secs_f64(),
            client_socket: open.client_socket,
            server_socket: open.server_socket,
            to_client: open.to_client,
            to_server: open.to_server,
        }
    }

    /// Returns the number, which identifies the connection or flow in the instance.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the address of the client.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    /// Returns the pool and the name of the current server, or of the server being connected to.
    pub(crate) fn server(&self) -> Option<(&str, &str)> {
        self.pool.as_deref().zip(self.server.as_deref())
    }

    /// Returns true if a server is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.server_socket.is_some() && self.stage != "connecting"
    }

    /// Returns the file descriptor of the socket to the client.
    pub(crate) fn client_socket(&self) -> Option<i32> {
        self.client_socket
    }

    /// Returns the file descriptor of the socket to the server.
    pub(crate) fn server_socket(&self) -> Option<i32> {
        self.server_socket
    }

    /// Returns the number of bytes that are queued for the client.
    pub(crate) fn to_client(&self) -> usize {
        self.to_client
    }

    /// Returns the number of bytes that are queued for the server.
    pub(crate) fn to_server(&self) -> usize {
        self.to_server
    }

    fn row(&self) -> Vec<String> {
        let client = match self.client_port {
            Some(port) => SocketAddr::new(self.client, port).to_string(),
            None => self.client.to_string(),
        };
        vec![
            self.number.to_string(),
            self.service.clone(),
            client,
            server_name(self.pool.as_deref(), self.server.as_deref()),
            self.stage.clone(),
            age(self.idle_s as u64),
            short_bytes(self.to_client as u64),
            short_bytes(self.to_server as u64),
        ]
    }
}
