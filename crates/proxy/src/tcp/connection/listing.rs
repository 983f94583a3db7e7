//! Description of a connection in listings, and the check whether a connection ends with its server.

use super::{Connection, Stage};
use crate::context::Context;
use crate::service::ending::Ending;
use crate::service::open::{Open, last_server, port};
use rustix::fd::AsRawFd;
use std::net::SocketAddr;

impl Stage {
    /// Returns the name in listings.
    const fn name(self) -> &'static str {
        match self {
            Self::Preamble => "preamble",
            Self::Tarpit => "tarpit",
            Self::Queued => "queued",
            Self::Connecting => "connecting",
            Self::Relaying => "relaying",
            Self::Lingering => "lingering",
            Self::Over => "over",
        }
    }
}

impl Connection {
    /// Describes the connection for a listing.
    pub(in crate::tcp) fn describe(&self, cx: &Context) -> Open {
        let pool = || self.backend().pool.load().pool.clone();
        let waiting = |side| self.ring.as_ref().map_or(0, |ring| ring.waiting(side));
        Open {
            number: cx.global_number(self.number),
            service: self.service.live.name.clone(),
            client: self.address,
            client_port: self.peer().and_then(|peer| port(peer, self.address)),
            server: self.choice().map(|choice| last_server(&pool(), &choice.server)),
            stage: self.stage.name(),
            idle: cx.now.since(self.active_at),
            client_socket: Some(self.client.as_raw_fd()),
            server_socket: self.server_socket().map(AsRawFd::as_raw_fd),
            to_client: self.from_server.queued_bytes() + waiting(1),
            to_server: self.from_client.queued_bytes() + waiting(0),
        }
    }

    /// The client's address and port, from the PROXY header or the socket.
    fn peer(&self) -> Option<SocketAddr> {
        let announced = self.preamble.as_ref().map(|preamble| preamble.origin().client());
        let known = || rustix::net::getpeername(&self.client).ok()?;
        announced.or_else(|| known().and_then(|peer| SocketAddr::try_from(peer).ok()))
    }

    /// Returns whether the connection relays bytes with the server whose connections `ending` ends.
    pub(in crate::tcp) fn ends_with(&self, ending: &Ending) -> bool {
        let is_meant = |server: &evener_core::snapshot::Entry| ending.means(&server.live, &server.target);
        self.choice().is_some_and(|choice| is_meant(&choice.server))
            && matches!(self.stage, Stage::Relaying | Stage::Lingering)
    }
}
