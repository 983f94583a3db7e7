//! The connections of a worker as they are listed, and those that are closed by an operator or with their server.

use super::connection::{Connection, Stage};
use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::service::admission::reset_at_close;
use crate::service::ending::Ending;
use crate::service::open::{Collector, Open, had, number, port};
use crate::tcp::Tcp;
use rustix::fd::AsRawFd;
use std::net::SocketAddr;

impl Tcp {
    /// Lists the connections of the services that the listing is for.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, one) in self.connections.iter().filter(|(_, one)| one.stage != Stage::Over) {
            if collector.is_meant(&one.service.name) {
                collector.take(|| of_connection(cx, one));
            }
        }
    }
}

impl Tcp {
    /// Closes the connection with this number; returns whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let found = self.connections.keys(|one| one.number == number && one.stage != Stage::Over);
        let Some(&key) = found.first() else { return false };
        let connection = &self.connections[key];
        connection.service.live.counters.of(cx.id).closed.one();
        // The server must not take it for the client's orderly end.
        connection.upstream.iter().for_each(|upstream| reset_at_close(&upstream.socket));
        self.close(cx, key);
        true
    }

    /// Ends relayed connections with a server; returns how many there were. What still connects goes on to the next server by
    /// itself.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let connections = self.connections.iter().filter(|(_, one)| {
            let is_meant = one.upstream.as_ref().is_some_and(|upstream| {
                let server = &upstream.choice.server;
                ending.means(&server.live, &server.target)
            });
            is_meant && matches!(one.stage, Stage::Relaying | Stage::Lingering)
        });
        let meant: Vec<ConnectionKey> = connections.map(|(key, _)| key).collect();
        for &key in &meant {
            let connection = &self.connections[key];
            ending.counter(connection.service.live.counters.of(cx.id)).one();
            // Neither side must take it for the other one's orderly end.
            reset_at_close(&connection.client);
            connection.upstream.iter().for_each(|upstream| reset_at_close(&upstream.socket));
            self.close(cx, key);
        }
        meant.len()
    }
}

fn of_connection(cx: &Context, connection: &Connection) -> Open {
    let upstream = connection.upstream.as_ref();
    let pool = || connection.backend().pool.load().pool.clone();
    let waiting = |side| connection.ring.as_ref().map_or(0, |ring| ring.waiting(side));
    Open {
        number: number(cx, connection.number),
        service: connection.service.name.clone(),
        client: connection.address,
        client_port: peer_of(connection).and_then(|peer| port(peer, connection.address)),
        server: upstream.map(|upstream| had(&pool(), &upstream.choice.server)),
        stage: match connection.stage {
            Stage::Preamble => "preamble",
            Stage::Tarpit => "tarpit",
            Stage::Queued => "queued",
            Stage::Connecting => "connecting",
            Stage::Relaying => "relaying",
            Stage::Lingering => "lingering",
            Stage::Over => "over",
        },
        idle: cx.now.since(connection.active_at),
        client_socket: Some(connection.client.as_raw_fd()),
        server_socket: upstream.map(|upstream| upstream.socket.as_raw_fd()),
        to_client: connection.from_server.queued_bytes() + waiting(1),
        to_server: connection.from_client.queued_bytes() + waiting(0),
    }
}

/// The client's address and port, from the PROXY header or the socket.
fn peer_of(connection: &Connection) -> Option<SocketAddr> {
    let announced = connection.preamble.as_ref().map(|preamble| preamble.origin.client);
    let known = || rustix::net::getpeername(&connection.client).ok()?;
    announced.or_else(|| known().and_then(|peer| SocketAddr::try_from(peer).ok()))
}
