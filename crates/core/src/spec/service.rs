//! Parts of the configuration of a service: its pools, and the end of its connections.

use super::{Denied, ServiceSpec};
use std::sync::Arc;

impl ServiceSpec {
    /// Returns the names of the pools that can serve clients, possibly several times: the default pool, the
    /// pools of routes, and the pools of refused clients.
    pub fn pool_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let routed = self.routes.iter().map(|route| &route.to);
        let refused = [&self.denied, &self.exceeded].into_iter().filter_map(|denied| match denied {
            Denied::Pool(pool) => Some(pool),
            Denied::Drop | Denied::Reject | Denied::Tarpit(_) => None,
        });
        self.pool.iter().chain(routed).chain(refused)
    }
}

/// The side whose close ends both sides of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastClose {
    /// Neither side: a half-closed connection continues in the other direction.
    Off,
    /// The client.
    Client,
    /// The server.
    Server,
    /// Either side.
    Both,
}

impl FastClose {
    /// All values.
    pub const ALL: [Self; 4] = [Self::Off, Self::Client, Self::Server, Self::Both];

    /// Returns true if a close by the client ends both sides.
    #[must_use]
    pub const fn by_client(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }

    /// Returns true if a close by the server ends both sides.
    #[must_use]
    pub const fn by_server(self) -> bool {
        matches!(self, Self::Server | Self::Both)
    }

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "both",
        }
    }
}
