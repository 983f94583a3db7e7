//! A request for a server, and its result: a choice, or the reason why there is none.

use super::Entry;
use crate::ServerId;
use crate::limits::Lease;
use crate::time::Time;
use std::net::IpAddr;
use std::sync::Arc;

/// The client that needs a server, and the time.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Address of the client. Clients of a unix socket count as 127.0.0.1.
    pub client: IpAddr,
    /// Present time.
    pub now: Time,
    /// Server that the client's cookie names, by its [`Entry::token`].
    pub token: Option<u64>,
    /// Server to which the client's connection is bound.
    pub stay: Option<ServerId>,
}

impl Request {
    /// Creates the request of a client without a cookie.
    #[must_use]
    pub fn of(client: IpAddr, now: Time) -> Self {
        Self { client, now, token: None, stay: None }
    }
}

/// A server that was chosen for a client, and the slot that the client occupies.
#[derive(Debug)]
pub struct Choice {
    /// The server.
    pub server: Arc<Entry>,
    /// The slot, which is given back on drop.
    pub lease: Lease,
    /// Reason for the choice.
    pub why: Why,
    /// An earlier server failed for the same client, and the retry budget was charged.
    pub is_retry: bool,
}

/// Reason for the choice of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client used the server before.
    Sticky,
    /// The policy picked the server.
    Policy,
    /// The first check of the server has not ended, and no checked server can take the client.
    Unchecked,
    /// Traffic recently failed to reach the server, but no other server was left.
    LastResort,
}

impl Why {
    /// Returns the name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Policy => "policy",
            Self::Unchecked => "unchecked",
            Self::LastResort => "last_resort",
        }
    }
}

/// Reason why no server was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoServer {
    /// The pool has no servers.
    #[error("the pool has no servers")]
    Empty,
    /// All usable servers were tried and failed.
    #[error("every usable server failed")]
    Failed,
    /// All usable servers are full.
    #[error("every usable server is at its limit")]
    Full,
    /// The access lists of the servers refuse the client.
    #[error("no server admits this client")]
    Denied,
    /// No server is up and ready.
    #[error("no server is up and ready")]
    Down,
    /// The process has no descriptor for a connection to the server.
    #[error("no descriptor is left for a connection to a server")]
    NoDescriptor,
    /// The picked server cannot take the client, and there is no failover.
    #[error("the client's server cannot take it, and no other server may be tried")]
    NoFailover,
    /// The server failed, and the retry budget of the pool permits no further server.
    #[error("the retry budget of the pool is used up")]
    RetryBudget,
}

impl NoServer {
    /// Returns true if servers were tried and failed.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::RetryBudget)
    }
}
