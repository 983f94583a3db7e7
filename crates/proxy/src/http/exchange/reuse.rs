//! Connections to servers that are used again: pooled for all clients, or held by a session for itself alone.

use super::{Reach, Reuse, ServerConnection, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::context::registry::Readiness;
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::io::transport::Received;
use evener_core::ServerId;
use std::sync::Arc;
use std::time::Duration;

/// A request that cannot be repeated goes only over connections that were used this lately: a server that is about to
/// close would most likely have done so by then.
const FRESH: Duration = Duration::from_secs(1);

impl ServerConnection {
    /// Returns whether it can carry another request: more than the response, or the end, may have come already.
    pub(super) fn is_sound(&self) -> bool {
        self.stage == Stage::Open
            && self.transport.unread().is_empty()
            && self.transport.end().is_none()
            && self.transport.pending() == 0
            && !self.transport.is_broken()
    }
}

impl Shared {
    /// The connection that a session holds for itself, if it is still there and no exchange has it.
    pub(super) fn find_unused(&self, server_key: ServerConnectionKey) -> Option<ServerConnectionKey> {
        let server = self.servers.get(server_key)?;
        (server.stage == Stage::Open && server.exchange.is_none()).then_some(server_key)
    }

    /// The client's own connection, if it leads to the chosen server; else it is closed.
    pub(super) fn find_private(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        (pool, id): (&str, ServerId),
    ) -> Option<ServerConnectionKey> {
        let private = self.exchanges[exchange_key].private.take()?;
        let server_key = self.find_unused(private)?;
        let (exchange, server) = (&self.exchanges[exchange_key], &self.servers[server_key]);
        let harmless = exchange.http.as_ref().is_some_and(|http| http.default_reuse() == Reuse::Any);
        let young = cx.now.since(server.idle_since) <= FRESH;
        let is_of = *server.pool == *pool && server.id == id;
        if is_of && self.leads(exchange_key, server_key) && (harmless || young) {
            return Some(server_key);
        }
        self.give_back(client, server_key);
        self.close_server(cx, server_key);
        None
    }

    /// Returns whether a connection leads to the chosen server, spoken to as it is now.
    fn leads(&self, exchange_key: ExchangeKey, server_key: ServerConnectionKey) -> bool {
        let (exchange, server) = (&self.exchanges[exchange_key], &self.servers[server_key]);
        let same = match (&server.connector, &exchange.backend().tls) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        // A connection that a server takes for one client's is for no other, and where it has to be so, nothing else will do.
        let same = same && server.personal == exchange.is_personal();
        same && exchange.choice.as_ref().is_some_and(|choice| choice.server.target == server.target)
    }

    /// A pooled connection to the chosen server that still leads there.
    pub(super) fn find_pooled(
        &mut self,
        cx: &mut Context,
        exchange_key: ExchangeKey,
        (pool, id): (&str, ServerId),
        reuse: Reuse,
    ) -> Option<ServerConnectionKey> {
        if reuse == Reuse::Never {
            return None;
        }
        loop {
            let idle = self.pooled.last(pool, id)?;
            if reuse == Reuse::Fresh && idle.duration(cx.now) > FRESH {
                return None;
            }
            if self.leads(exchange_key, idle.key()) {
                return Some(idle.key());
            }
            // A reload moved the server, or speaks to it differently.
            self.close_server(cx, idle.key());
        }
    }

    /// An exchange gets a connection that is there.
    pub(super) fn reuse(
        &mut self,
        cx: &Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) {
        let server = &mut self.servers[server_key];
        self.pooled.take(&server.pool, server.id, server_key);
        self.server_timers.clear(server_key);
        server.exchange = Some(exchange_key);
        server.reused = true;
        let exchange = &mut self.exchanges[exchange_key];
        (exchange.reach, exchange.since) = (Reach::Open(server_key), cx.now);
        // It has a descriptor of its own.
        client.promise = None;
    }

    /// Something happened at the socket of a server that no exchange has: it closes, or sends something out of turn.
    pub(in crate::http) fn on_unused_event(
        &mut self,
        cx: &mut Context,
        server_key: ServerConnectionKey,
        ready: Readiness,
    ) {
        let Some(server) = self.servers.get_mut(server_key) else { return };
        server.transport.on_readable(ready);
        match server.stage {
            Stage::Over => {}
            Stage::Lingering => self.hear(cx, server_key),
            _ if ready.readable || ready.ended => self.on_pooled_readable(cx, server_key),
            // It may become writable again.
            _ => server.transport.on_writable(ready),
        }
    }

    /// A pooled connection is readable. Messages of TLS itself (tickets) are no reason to leave it.
    pub(super) fn on_pooled_readable(&mut self, cx: &mut Context, server_key: ServerConnectionKey) {
        let transport = &mut self.servers[server_key].transport;
        while transport.receive(&mut self.buffers) == Received::Some {
            if !transport.unread().is_empty() {
                break;
            }
        }
        if !transport.unread().is_empty() || transport.end().is_some() || transport.tls_failure().is_some() {
            self.close_server(cx, server_key);
        }
    }

    /// Closes a connection that was unused for long enough; so is one that still sends for no client.
    pub(in crate::http) fn on_unused_deadline(&mut self, cx: &mut Context, server_key: ServerConnectionKey) {
        let unused = |server: &ServerConnection| {
            server.exchange.is_none() && matches!(server.stage, Stage::Open | Stage::Lingering)
        };
        if self.servers.get(server_key).is_some_and(|server| unused(server)) {
            self.close_server(cx, server_key);
        }
    }

    /// Closes a connection that a session held for itself.
    pub(in crate::http) fn let_go(&mut self, cx: &mut Context, private: ServerConnectionKey) {
        if let Some(server_key) = self.find_unused(private) {
            self.close_server(cx, server_key);
        }
    }
}
