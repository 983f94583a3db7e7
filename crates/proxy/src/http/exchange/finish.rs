//! End of an exchange: its connection is pooled, becomes private to the same client, or is closed. Also
//! prepares an exchange for another attempt on another connection.

use super::{Exchange, Reach, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::{Client, LINGER, LINGER_BYTES_MAX};
use crate::http::exchange::Shared;
use crate::http::pooled::Idle;
use crate::io::transport::Received;
use crate::service::admission::reset_at_close;
use crate::service::pool_queue;
use evener_core::reason::{Cause, Reason};
use std::time::Duration;

/// Time for which an idle connection to a server is pooled.
const IDLE: Duration = Duration::from_secs(30);

/// Use of a connection after its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Keep {
    /// Any client may use the connection.
    Shared,
    /// The same client may use the connection; the caller stores its key.
    Private,
    /// The connection is closed.
    No,
    /// The connection is closed. If the end of the client ends both sides (`fast_close`), the server is drained
    /// first, so that it receives everything.
    Unserved,
}

impl Exchange {
    /// Prepares the entry of the request log for a failure: a local response follows, unless the response of
    /// the server has begun.
    pub(in crate::http) fn log_failure(&mut self, client: &mut Client, cause: Cause) {
        if self.http.as_ref().is_some_and(|http| http.has_responded) {
            self.entry.iter_mut().for_each(|entry| entry.set_cause(cause));
        } else {
            client.put_log_entry(self.take_log_entry());
        }
    }
}

impl Shared {
    /// Ends an exchange; returns the connection to the server if the same client may use it again.
    pub(in crate::http) fn end(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        keep: Keep,
    ) -> Option<ServerConnectionKey> {
        self.exchange_timers.clear(exchange_key);
        let mut exchange = self.exchanges.remove(exchange_key)?;
        if let Some(mut entry) = exchange.take_log_entry() {
            if let Some(reason) = exchange.early_end(client.end_reason()) {
                entry.set_default_cause(reason);
            }
            entry.finish(cx, client);
        }
        exchange.note_end(client.service.live.counters.of(cx.id));
        exchange.queued.iter().for_each(|queued| cx.queues.remove(queued));
        if exchange.choice.is_some() {
            pool_queue::note_freed(cx, &exchange.backend().pool);
        }
        if let Some(server_key) = exchange.private.and_then(|server_key| self.find_unused(server_key)) {
            self.give_back(client, server_key);
            self.close_server(cx, server_key);
        }
        let (Reach::Open(server_key) | Reach::Connecting(server_key)) = exchange.reach else { return None };
        let server = &mut self.servers[server_key];
        server.exchange = None;
        server.idle_since = cx.now;
        let may_be_used = server.is_sound() && !(keep == Keep::Shared && server.personal);
        match keep {
            Keep::Unserved if exchange.settings.options.fast_close.by_client() => self.linger(cx, server_key),
            Keep::Private if may_be_used => return Some(server_key),
            Keep::Shared if may_be_used && !cx.draining && client.reserve_descriptor() => {
                self.pool(cx, client, server_key);
            }
            _ => {
                self.give_back(client, server_key);
                self.close_server(cx, server_key);
            }
        }
        None
    }

    /// Pools a connection, if the pool has room for it.
    fn pool(&mut self, cx: &mut Context, client: &mut Client, server_key: ServerConnectionKey) {
        let server = &self.servers[server_key];
        if !self.pooled.add(&server.pool, server.id, Idle::new(server_key, cx.now)) {
            self.give_back(client, server_key);
            return self.close_server(cx, server_key);
        }
        self.server_timers.set(server_key, cx.now + IDLE);
        if server.transport.is_readable() {
            self.on_pooled_readable(cx, server_key);
        }
    }

    /// Drains a server before its connection is closed: a reset would destroy bytes that the server has not
    /// read yet.
    fn linger(&mut self, cx: &mut Context, server_key: ServerConnectionKey) {
        let server = &mut self.servers[server_key];
        if server.stage == Stage::Open && !server.transport.is_broken() && server.transport.begin_draining() {
            server.stage = Stage::Lingering;
            self.server_timers.set(server_key, cx.now + LINGER);
            self.drain(cx, server_key);
        } else {
            self.close_server(cx, server_key);
        }
    }

    /// Receives and discards bytes of a lingering server. Closes the connection when the server ends, has
    /// received everything, or sends too many bytes.
    pub(super) fn drain(&mut self, cx: &mut Context, server_key: ServerConnectionKey) {
        let server = &mut self.servers[server_key];
        let mut received = 0;
        while received < LINGER_BYTES_MAX && server.transport.receive(&mut self.buffers) == Received::Some {
            received += server.transport.unread().len();
            server.transport.consume(usize::MAX);
            server.transport.settle(&mut self.buffers);
        }
        if received >= LINGER_BYTES_MAX || server.transport.end().is_some() || server.transport.left() == 0 {
            self.close_server(cx, server_key);
        }
    }

    /// Ends an exchange at any stage. An open connection to the server is reset.
    pub(in crate::http) fn abandon(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) {
        if let Some(Exchange { reach: Reach::Open(server_key), .. }) =
            self.exchanges.get(exchange_key).map(|one| &**one)
        {
            // A partial request must not look complete to the server.
            reset_at_close(self.servers[*server_key].transport.socket());
        }
        self.end(cx, client, exchange_key, Keep::No);
    }

    /// Counts and reports a request whose client closed before the response.
    pub(in crate::http) fn note_aborted(&self, cx: &Context, client: &Client, exchange_key: ExchangeKey) {
        client.service.live.counters.of(cx.id).requests_aborted.one();
        let parties = || self.exchanges[exchange_key].parties();
        client.note_unserved(cx, Reason::ClientClosed.into(), None, parties);
    }

    /// Prepares another attempt for the same request, on another connection.
    pub(super) fn prepare_retry(&mut self, cx: &mut Context, client: &mut Client, exchange_key: ExchangeKey) {
        self.exchange_timers.clear(exchange_key);
        let exchange = &mut self.exchanges[exchange_key];
        exchange.ended = None;
        let Reach::Open(server_key) = std::mem::replace(&mut exchange.reach, Reach::Wanted) else { return };
        let fresh = !self.servers[server_key].reused;
        match exchange.choice.take() {
            Some(choice) if fresh => exchange.attempt.retry_elsewhere(choice.server.id),
            // The server may be healthy although its pooled connection was closed.
            _ => exchange.attempt.repeat(),
        }
        self.note_freed(cx, exchange_key);
        self.give_up_server(cx, client, server_key);
    }
}
