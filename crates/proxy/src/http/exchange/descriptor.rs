//! Descriptors for connections to servers. A session is promised one descriptor when its client is accepted;
//! the connection of its exchange takes this descriptor, and returns it at the end. Further connections for
//! streams of HTTP/2 take free descriptors, or the descriptors of pooled connections, which are then closed.

use super::Reach;
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::service::note_no_server;
use evener_core::reason::Reason;
use evener_core::snapshot::NoServer;

impl Shared {
    /// Takes a descriptor for a connection of this exchange. If none is left, the exchange of an HTTP/2 stream
    /// fails, and any other exchange takes a descriptor beyond the budget.
    pub(super) fn take_descriptor(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) -> Option<Unit> {
        if let Some(unit) = client.take_promised().or_else(Unit::take).or_else(|| self.take_from_pooled(cx)) {
            return Some(unit);
        }
        let exchange = &mut self.exchanges[exchange_key];
        // A client with one request at a time never needs more than the promised descriptor.
        if !exchange.is_of_stream() {
            return Some(Unit::take_beyond());
        }
        exchange.choice = None;
        exchange.reach = Reach::Failed(Reason::NoDescriptor);
        note_no_server(cx, &client.service, NoServer::NoDescriptor);
        None
    }

    /// Closes the connection that has been idle for the longest time, and takes its descriptor.
    fn take_from_pooled(&mut self, cx: &mut Context) -> Option<Unit> {
        let server_key = self.pooled.oldest()?;
        let unit = self.servers[server_key].unit.take();
        self.close_server(cx, server_key);
        unit
    }

    /// Gives the client the descriptor of a connection that is about to be closed. The client's next connection
    /// will use this descriptor.
    pub(super) fn give_back(&mut self, client: &mut Client, server_key: ServerConnectionKey) {
        let Some(server) = self.servers.get_mut(server_key) else { return };
        client.give_back(|| server.unit.take());
    }

    /// Closes up to `wanted` pooled connections, the longest idle first; returns the number of closed
    /// connections.
    pub(in crate::http) fn shed_pooled(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        let mut closed = 0;
        while closed < wanted
            && let Some(server_key) = self.pooled.oldest()
        {
            self.close_server(cx, server_key);
            closed += 1;
        }
        closed
    }
}
