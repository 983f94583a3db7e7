//! Descriptors for connections to servers. A session is promised one when it is accepted; the connection of its exchange
//! takes that, and brings it back. Further ones, of HTTP/2, take what is left, if anything.

use super::Reach;
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::service::note_no_server;
use evener_core::snapshot::NoServer;

impl Shared {
    /// Takes a descriptor for a connection of this exchange. Without one, no server can be had for it.
    pub(super) fn take_descriptor(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) -> Option<Unit> {
        if let Some(promise) = client.promise.take() {
            return Some(promise.fulfil());
        }
        if let Some(unit) = Unit::take().or_else(|| self.take_from_pooled(cx)) {
            return Some(unit);
        }
        let exchange = &mut self.exchanges[exchange_key];
        // A client with one request at a time never has more than was promised to it.
        if !exchange.is_of_stream() {
            return Some(Unit::take_beyond());
        }
        exchange.choice = None;
        exchange.reach = Reach::Failed(NoServer::NoDescriptor);
        note_no_server(cx, &client.service, NoServer::NoDescriptor);
        None
    }

    /// The connection that is idle the longest makes room.
    fn take_from_pooled(&mut self, cx: &mut Context) -> Option<Unit> {
        let server_key = self.pooled.oldest()?;
        let unit = self.servers[server_key].unit.take();
        self.close_server(cx, server_key);
        unit
    }

    /// A connection is about to be closed: its client has the descriptor for the next one.
    pub(super) fn give_back(&mut self, client: &mut Client, server_key: ServerConnectionKey) {
        let Some(server) = self.servers.get_mut(server_key) else { return };
        if client.promise.is_none() {
            client.promise = server.unit.take().map(Unit::promise);
        }
    }

    /// Closes pooled connections, the longest idle first; returns how many.
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

/// Returns whether a client has a descriptor for its next connection, besides that of the one about to be pooled.
pub(super) fn is_promised(client: &mut Client) -> bool {
    if client.promise.is_none() {
        client.promise = Unit::take().map(Unit::promise);
    }
    client.promise.is_some()
}
