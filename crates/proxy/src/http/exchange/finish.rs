//! The end of an exchange: its connection is pooled, goes back to its client, or is closed; or the exchange goes on by another.

use super::descriptor::is_promised;
use super::{Exchange, Reach, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::{Client, LINGER, LINGER_BYTES_MAX};
use crate::http::exchange::Shared;
use crate::http::pooled::Idle;
use crate::io::transport::Received;
use crate::service::admission::reset_at_close;
use crate::service::pool_queue;
use std::time::Duration;

/// A connection to a server is pooled for so long.
const IDLE: Duration = Duration::from_secs(30);

/// Further use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Keep {
    /// For any client.
    Shared,
    /// By the same client only; the caller holds it.
    Private,
    /// No more.
    No,
    /// No more, once the server has received everything: its client ended for both (`fast_close`).
    Unserved,
}

impl Shared {
    /// Ends an exchange; returns its server's connection when it is kept for the same client.
    pub(in crate::http) fn end(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        keep: Keep,
    ) -> Option<ServerConnectionKey> {
        self.exchange_timers.clear(number);
        let exchange = self.exchanges.remove(number)?;
        exchange.queued.iter().for_each(|queued| cx.queues.remove(queued));
        if exchange.choice.is_some() {
            pool_queue::note_freed(cx, &exchange.backend().pool);
        }
        if let Some(slot) = exchange.private.and_then(|slot| self.find_unused(slot)) {
            self.give_back(client, slot);
            self.close_server(cx, slot);
        }
        let (Reach::Open(slot) | Reach::Connecting(slot)) = exchange.reach else { return None };
        let server = &mut self.servers[slot];
        server.exchange = None;
        server.idle_since = cx.now;
        let may_be_used = server.is_sound() && !(keep == Keep::Shared && server.personal);
        match keep {
            Keep::Unserved if exchange.settings.options.fast_close.by_client() => self.linger(cx, slot),
            Keep::Private if may_be_used => return Some(slot),
            Keep::Shared if may_be_used && !cx.draining && is_promised(client) => {
                self.pool(cx, client, slot);
            }
            _ => {
                self.give_back(client, slot);
                self.close_server(cx, slot);
            }
        }
        None
    }

    /// Pools a connection, if there is room for it.
    fn pool(&mut self, cx: &mut Context, client: &mut Client, slot: ServerConnectionKey) {
        let server = &self.servers[slot];
        if !self.pooled.has_room(&server.pool, server.id) {
            self.give_back(client, slot);
            return self.close_server(cx, slot);
        }
        self.pooled.add(&server.pool, server.id, Idle { key: slot, since: cx.now });
        self.server_timers.set(slot, cx.now + IDLE);
        if server.transport.readable {
            self.on_pooled_readable(cx, slot);
        }
    }

    /// Receives what a server still sends, for no client: a reset would take from the server what is on its way to it.
    fn linger(&mut self, cx: &mut Context, slot: ServerConnectionKey) {
        let server = &mut self.servers[slot];
        if server.stage == Stage::Open && !server.transport.broken && server.transport.hear_out() {
            server.stage = Stage::Lingering;
            self.server_timers.set(slot, cx.now + LINGER);
            self.hear(cx, slot);
        } else {
            self.close_server(cx, slot);
        }
    }

    /// Receives what a server sends for no client.
    pub(super) fn hear(&mut self, cx: &mut Context, slot: ServerConnectionKey) {
        let server = &mut self.servers[slot];
        let mut received = 0;
        while received < LINGER_BYTES_MAX && server.transport.receive(&mut self.buffers) == Received::Some {
            received += server.transport.input.len();
            server.transport.input.consume(usize::MAX);
            server.transport.settle(&mut self.buffers);
        }
        if received >= LINGER_BYTES_MAX || server.transport.end.is_some() || server.transport.left() == 0 {
            self.close_server(cx, slot);
        }
    }

    /// Ends an exchange amid whatever it is about.
    pub(in crate::http) fn abandon(&mut self, cx: &mut Context, client: &mut Client, number: ExchangeKey) {
        if let Some(Exchange { reach: Reach::Open(slot), .. }) = self.exchanges.get(number).map(|one| &**one)
        {
            // Half a request must not look like a whole one.
            reset_at_close(&self.servers[*slot].transport.socket);
        }
        self.end(cx, client, number, Keep::No);
    }

    /// The same request goes to another server, or to the same by another connection.
    pub(super) fn again(&mut self, cx: &mut Context, client: &mut Client, number: ExchangeKey) {
        self.exchange_timers.clear(number);
        let exchange = &mut self.exchanges[number];
        let Reach::Open(slot) = std::mem::replace(&mut exchange.reach, Reach::Wanted) else { return };
        let fresh = !self.servers[slot].reused;
        match exchange.choice.take() {
            Some(choice) if fresh => exchange.attempt.retry_elsewhere(choice.server.id),
            // The server may be well: its pooled connection was not.
            _ => exchange.attempt.begin_anew(),
        }
        self.note_freed(cx, number);
        self.give_up_server(cx, client, slot);
    }
}
