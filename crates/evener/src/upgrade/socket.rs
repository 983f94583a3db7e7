//! Listening sockets as records of messages.

use crate::inherited::ListenerKey;
use evener_core::Endpoint;
use evener_core::spec::Transport;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// A service accepts connections.
    Stream,
    /// A service receives datagrams.
    Datagram,
    /// The admin API.
    Admin,
    /// The metrics.
    Metrics,
    /// The admin API over TCP.
    Api,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketRecord {
    role: Role,
    /// Address as configured, or path of a unix socket.
    address: String,
    /// The service, if the system chose the port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    service: Option<String>,
    /// Address with the port that the system chose.
    bound: String,
}

impl SocketRecord {
    /// Creates the record of a socket of the admin API or of the metrics.
    pub(crate) fn of_endpoint(role: Role, address: String) -> Self {
        Self { role, bound: address.clone(), address, service: None }
    }

    /// Creates the record of a socket of a listener.
    pub(crate) fn of_listener(key: &ListenerKey, bound: &Endpoint) -> Self {
        Self {
            role: match key.transport() {
                Transport::Stream => Role::Stream,
                Transport::Datagram => Role::Datagram,
            },
            address: key.address().to_string(),
            service: key.owner().map(ToString::to_string),
            bound: bound.to_string(),
        }
    }

    /// Returns the use of the socket.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Returns the path of a socket of the admin API.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(&self.address)
    }

    /// Returns the address of a socket of the API over TCP.
    pub(super) fn api_address(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }

    /// Returns the listener and its bound address. Returns `None` if the socket is no listener of a service, or the
    /// address is malformed.
    pub(super) fn listener(&self) -> Option<(ListenerKey, Endpoint)> {
        let transport = match self.role {
            Role::Stream => Transport::Stream,
            Role::Datagram => Transport::Datagram,
            Role::Admin | Role::Metrics | Role::Api => return None,
        };
        let (address, bound) = endpoint(&self.address).zip(endpoint(&self.bound))?;
        let service: Arc<str> = self.service.as_deref().unwrap_or_default().into();
        Some((ListenerKey::new(transport, &address, &service), bound))
    }

    /// Returns whether the socket is a unix socket.
    pub(crate) fn is_of_path(&self) -> bool {
        matches!(endpoint(&self.bound), Some(Endpoint::Unix(_)))
    }
}

fn endpoint(text: &str) -> Option<Endpoint> {
    Endpoint::parse_listen(text).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn listeners_survive_their_records() {
        let bound = endpoint("127.0.0.1:7").unwrap();
        for text in ["127.0.0.1:80", "127.0.0.1:0", "[::]:53", "/run/a.sock", "unix:a.sock", "./b.sock"] {
            for transport in [Transport::Stream, Transport::Datagram] {
                let key = ListenerKey::new(transport, &endpoint(text).unwrap(), &"web".into());
                let record = SocketRecord::of_listener(&key, &bound);
                assert_eq!(record.listener(), Some((key, bound.clone())), "{text}");
            }
        }
        assert_eq!(SocketRecord::of_endpoint(Role::Admin, "/run/a.sock".into()).listener(), None);
    }
}
