//! Open connections and flows.

use crate::planes::Listed;
use crate::table::{age, server_name, short_bytes, table};
use evener_core::ServerId;
use evener_core::acl::Prefix;
use evener_proxy::{ListFilter, Open};
use evener_xdp::associations::{Association, AssociationFilter};
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

    /// Returns the conditions for the XDP plane, with the server that was looked up.
    pub(crate) fn association_filter(&self, server: Option<(Arc<str>, ServerId)>) -> AssociationFilter {
        AssociationFilter { service: self.service.as_deref().map(Arc::from), clients: self.clients, server }
    }

    /// Returns the conditions for the workers, except for the server, whose name must be looked up.
    pub(crate) fn filter(&self) -> ListFilter {
        let service = self.service.as_deref().map(Arc::from);
        ListFilter::default().of_service(service).of_clients(self.clients)
    }
}

/// The open connections and flows, and the associations of the XDP plane.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ConnectionsView {
    /// Number of connections and flows, including connections and flows that are not shown.
    total: usize,
    /// The connections and flows that are shown, sorted by number.
    connections: Vec<ConnectionView>,
    /// Number of associations of the XDP plane, including associations that are not shown.
    #[serde(default)]
    associations_total: usize,
    /// The associations that are shown, in no order.
    #[serde(default)]
    associations: Vec<AssociationView>,
}

impl ConnectionsView {
    /// Describes a listing; at most `most` of its connections and flows.
    pub(crate) fn new(listed: Listed, most: usize) -> Self {
        let associations = AssociationView::all(&listed);
        let associations_total = listed.associations_total();
        let open = listed.into_open();
        let connections = open.open.into_iter().take(most).map(ConnectionView::new).collect();
        Self { total: open.total, connections, associations_total, associations }
    }

    /// Adds the connections and flows of another view.
    pub(crate) fn add(&mut self, other: Self) {
        self.total += other.total;
        self.connections.extend(other.connections);
        self.associations_total += other.associations_total;
        self.associations.extend(other.associations);
    }

    /// Returns the connections and flows that are shown, sorted by number.
    pub(crate) fn into_connections(self) -> Vec<ConnectionView> {
        self.connections
    }

    /// Formats the connections and flows as a table.
    pub(crate) fn text(&self) -> String {
        let heading = ["NUMBER", "SERVICE", "CLIENT", "SERVER", "STAGE", "IDLE", "TO CLIENT", "TO SERVER"];
        let connections = self.connections.iter().map(ConnectionView::row).collect::<Vec<_>>();
        let heading_xdp = ["SERVICE", "CLIENT", "ADDRESS", "SERVER", "IDLE"];
        let associations = self.associations.iter().map(AssociationView::row).collect::<Vec<_>>();
        let mut text = String::new();
        if !connections.is_empty() || associations.is_empty() {
            text += &table(&heading, &connections);
        }
        if !associations.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            text += &format!("{gap}{}", table(&heading_xdp, &associations));
        }
        text
    }

    /// Returns the number of connections, flows and associations that are shown, and their total number.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.connections.len() + self.associations.len(), self.total + self.associations_total)
    }
}

/// An association of a client with a server of the XDP plane.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct AssociationView {
    service: String,
    #[schema(value_type = String)]
    client: IpAddr,
    /// Absent if the association is for all ports of the client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    client_port: Option<u16>,
    /// The address that the client sends to.
    #[schema(value_type = String)]
    virtual_address: IpAddr,
    /// Pool of the server; absent if the server was removed, so that the next packet goes to another server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    server: Option<String>,
    /// Seconds without packets, in steps of about a second; absent if the service has no idle time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    idle_s: Option<f64>,
}

impl AssociationView {
    /// Returns the view of each association that is listed.
    pub(super) fn all(listed: &Listed) -> Vec<Self> {
        listed.associations().map(|(association, server)| Self::new(association, server)).collect()
    }

    /// Describes an association with a server, which is given with its pool.
    fn new(association: &Association, server: Option<(String, String)>) -> Self {
        let (pool, server) = server.unzip();
        Self {
            service: association.service.to_string(),
            client: association.client,
            client_port: association.client_port,
            virtual_address: association.virtual_address,
            pool,
            server,
            idle_s: association.idle.map(|idle| idle.as_secs_f64()),
        }
    }

    /// Returns the name of the server, if it is present.
    pub(super) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Returns true if the association is for all ports of the client.
    pub(super) fn is_by_address(&self) -> bool {
        self.client_port.is_none()
    }

    /// Returns the client's address, with its port if the association is for one.
    pub(super) fn client(&self) -> String {
        match self.client_port {
            Some(port) => SocketAddr::new(self.client, port).to_string(),
            None => self.client.to_string(),
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.client(),
            self.virtual_address.to_string(),
            server_name(self.pool.as_deref(), self.server.as_deref()),
            self.idle_s.map_or_else(|| "-".into(), |idle| age(idle as u64)),
        ]
    }
}

/// A connection or flow of a client.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ConnectionView {
    number: u64,
    service: String,
    #[schema(value_type = String)]
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
