//! Lists the connections of a worker, and closes connections by their number or with their server.

use super::connection::Stage;
use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::service::admission::reset_at_close;
use crate::service::ending::Ending;
use crate::service::open::Collector;
use crate::tcp::Tcp;
use evener_core::reason::Reason;

impl Tcp {
    /// Lists the connections of the requested services.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, one) in self.connections.iter().filter(|(_, one)| one.stage != Stage::Over) {
            if collector.is_meant(&one.service.live.name) {
                collector.take(|| one.describe(cx));
            }
        }
    }

    /// Closes the connection with this number. Returns false if there is no such connection.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let found = self.connections.keys(|one| one.has_number(number));
        let Some(&key) = found.first() else { return false };
        let connection = &self.connections[key];
        connection.service.live.counters.of(cx.id).closed.operator.one();
        connection.note_unserved(cx, Reason::Operator.into());
        // The server must not take the close for an orderly end of the client.
        connection.reset_server_at_close();
        self.close(cx, key);
        true
    }

    /// Closes the relayed connections with a server; returns their number. Clients that are still connecting to
    /// this server try the next server if the attempt fails.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let meant: Vec<ConnectionKey> = self.connections.keys(|one| one.ends_with(ending));
        for &key in &meant {
            let connection = &self.connections[key];
            ending.counter(connection.service.live.counters.of(cx.id)).one();
            connection.note_unserved(cx, ending.cause());
            // Neither side must take the close for an orderly end of the other side.
            reset_at_close(&connection.client);
            connection.reset_server_at_close();
            self.close(cx, key);
        }
        meant.len()
    }
}
