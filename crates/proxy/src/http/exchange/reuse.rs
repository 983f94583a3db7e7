//! Reuse of connections to servers: pooled for all clients, or private to one client.

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

/// Maximum idle time of a reused connection for a request that cannot be repeated. A server that closes idle
/// connections has most likely not closed such a connection yet.
const FRESH: Duration = Duration::from_secs(1);

impl ServerConnection {
    /// Returns whether the connection can carry another request: the connection is open in both directions, all
    /// bytes were sent, and no bytes came after the response.
    pub(super) fn is_sound(&self) -> bool {
        self.stage == Stage::Open
            && self.transport.unread().is_empty()
            && self.transport.end().is_none()
            && self.transport.pending() == 0
            && !self.transport.is_broken()
    }
}

impl Shared {
    /// Returns a private connection if it is still open and no exchange uses it.
    pub(super) fn find_unused(&self, server_key: ServerConnectionKey) -> Option<ServerConnectionKey> {
        let server = self.servers.get(server_key)?;
        (server.stage == Stage::Open && server.exchange.is_none()).then_some(server_key)
    }

    /// Returns the private connection of the client if it leads to the chosen server and is fresh enough for
    /// the request; closes the connection otherwise.
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

    /// Returns whether a connection leads to the chosen server, at its present address, with its present TLS
    /// settings and verified for its present name.
    fn leads(&self, exchange_key: ExchangeKey, server_key: ServerConnectionKey) -> bool {
        let (exchange, server) = (&self.exchanges[exchange_key], &self.servers[server_key]);
        let Some(choice) = &exchange.choice else { return false };
        let same = match (&server.connector, &exchange.backend().tls) {
            (None, None) => true,
            (Some(old), Some(new)) => {
                Arc::ptr_eq(old, new) && (new.name.is_some() || server.host == choice.server.host)
            }
            _ => false,
        };
        // A personal connection belongs to one client, and a service with personal connections uses no shared
        // connections.
        let same = same && server.personal == exchange.is_personal();
        same && choice.server.target == server.target
    }

    /// Returns the most recently used pooled connection to the chosen server. Pooled connections to an earlier
    /// address of the server, with earlier TLS settings or verified for an earlier name, are closed.
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
            // The address of the server, its host name or its TLS settings changed.
            self.close_server(cx, idle.key());
        }
    }

    /// Gives an exchange an existing connection.
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
        // The connection has a descriptor already.
        client.drop_promise();
    }

    /// Handles an event of a connection without an exchange: the server closes it, or sends unexpected bytes.
    pub(in crate::http) fn on_unused_event(
        &mut self,
        cx: &mut Context,
        server_key: ServerConnectionKey,
        ready: Readiness,
    ) {
        let Some(server) = self.servers.get_mut(server_key) else { return };
        server.transport.on_readable(ready);
        match server.stage {
            Stage::Closed => {}
            Stage::Lingering => self.drain(cx, server_key),
            _ if ready.readable || ready.ended => self.on_pooled_readable(cx, server_key),
            // The socket may become writable again.
            _ => server.transport.on_writable(ready),
        }
    }

    /// Reads a pooled connection, and closes it if payload or the end came. Messages of TLS itself, such as
    /// tickets, are harmless.
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

    /// Handles the deadlines of connections without an exchange.
    pub(in crate::http) fn on_unused_deadlines(&mut self, cx: &mut Context) {
        let mut due = Vec::new();
        self.server_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|server_key| self.on_unused_deadline(cx, server_key));
    }

    /// Closes a connection that was idle or lingering for too long.
    fn on_unused_deadline(&mut self, cx: &mut Context, server_key: ServerConnectionKey) {
        let unused = |server: &ServerConnection| {
            server.exchange.is_none() && matches!(server.stage, Stage::Open | Stage::Lingering)
        };
        if self.servers.get(server_key).is_some_and(|server| unused(server)) {
            self.close_server(cx, server_key);
        }
    }

    /// Closes a private connection, unless an exchange uses it.
    pub(in crate::http) fn close_private(&mut self, cx: &mut Context, private: ServerConnectionKey) {
        if let Some(server_key) = self.find_unused(private) {
            self.close_server(cx, server_key);
        }
    }
}
