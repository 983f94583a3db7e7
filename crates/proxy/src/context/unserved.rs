//! Traffic that was not served, as workers report it.

use evener_core::reason::Cause;
use std::net::IpAddr;
use std::sync::Arc;

/// Kind of traffic that was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A request of HTTP.
    Request,
    /// A TLS handshake with a client.
    Handshake,
    /// A connection of TCP.
    Connection,
    /// A query of DNS.
    Query,
    /// A datagram of UDP.
    Datagram,
}

/// Request, connection, query or datagram that was not served.
#[derive(Debug)]
pub struct Unserved {
    /// Kind of traffic.
    pub traffic: Traffic,
    /// The reason with its details.
    pub cause: Cause,
    /// Address of the client.
    pub client: IpAddr,
    /// Status of the response to the client.
    pub status: Option<Status>,
    /// Pool, if one was involved.
    pub pool: Option<Arc<str>>,
    /// Server, if one was involved.
    pub server: Option<Arc<str>>,
}

/// Status of a local response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Status of HTTP.
    Http(u16),
    /// Response code of DNS.
    Dns(&'static str),
}

impl Unserved {
    /// Creates a description without a server.
    pub(crate) fn new(traffic: Traffic, client: IpAddr, cause: impl Into<Cause>) -> Self {
        Self { traffic, cause: cause.into(), client, status: None, pool: None, server: None }
    }
}
