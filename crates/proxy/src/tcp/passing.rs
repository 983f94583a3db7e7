//! Relayed connections that pass to the next instance, with both sockets and the bytes between them. Connections with
//! a preamble, with a permit for their client, or with a request log stay.

use super::Tcp;
use super::connection::Stage;
use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::context::registry::Token;
use crate::io::relay::PassedDirection;
use crate::service::{Service, pool_queue};
use evener_core::{Target, Time};
use rustix::fd::OwnedFd;
use std::net::IpAddr;
use std::sync::Arc;

/// A relayed connection between two processes.
#[derive(Debug)]
pub struct PassedRelay {
    /// Name of the service.
    pub service: Arc<str>,
    /// Name of the pool.
    pub pool: Arc<str>,
    /// Name of the server.
    pub server: Arc<str>,
    /// Address of the server.
    pub target: Target,
    /// Address of the client.
    pub client: IpAddr,
    /// Time of the last byte that moved.
    pub active_at: Time,
    /// Bytes that were relayed in both directions.
    pub relayed: u64,
    /// The connection with the client, and the one with the server.
    pub sockets: [OwnedFd; 2],
    /// The direction from the client.
    pub from_client: PassedDirection,
    /// The direction from the server.
    pub from_server: PassedDirection,
}

impl Tcp {
    /// Takes the connections out whose services are `wanted`, and gives them to `receive`.
    pub(crate) fn pass(
        &mut self,
        cx: &mut Context,
        wanted: impl Fn(&str) -> bool,
        receive: impl Fn(PassedRelay),
    ) {
        let keys =
            self.connections.keys(|one| one.stage == Stage::Relaying && wanted(&one.service.live.name));
        for key in keys {
            if self.connections[key].ring.is_some() {
                // The connection passes when its operations have ended.
                self.leave(cx, key);
            }
            if let Some(passed) = self.take_out(cx, key) {
                receive(passed);
            }
        }
    }

    /// Removes a connection without closing its sockets for its peers. Returns `None` if it stays.
    fn take_out(&mut self, cx: &mut Context, key: ConnectionKey) -> Option<PassedRelay> {
        let connection = &mut self.connections[key];
        let is_ready = connection.is_passable()
            && connection.from_client.prepare_to_pass(&mut self.scratch)
            && connection.from_server.prepare_to_pass(&mut self.scratch);
        if !is_ready {
            return None;
        }
        self.timers.clear(key);
        cx.registry.deregister(&self.connections[key].client);
        if let Some(server) = self.connections[key].server_socket() {
            cx.registry.deregister(server);
        }
        let connection = self.connections.remove(key)?;
        let (service, pool) = (Arc::clone(&connection.service), Arc::clone(&connection.backend().pool));
        let passed = connection.into_passed();
        pool_queue::note_freed(cx, &pool);
        service.wake_waiting(cx);
        passed
    }

    /// Continues a connection of the previous instance. It is closed if its server is no longer in the pool.
    pub(crate) fn adopt_relay(&mut self, cx: &mut Context, service: &Arc<Service>, passed: PassedRelay) {
        let Some(connection) =
            super::connection::Connection::adopt(service, passed, &mut self.generations, cx)
        else {
            return;
        };
        let key = self.connections.insert(Box::new(connection));
        let connection = &self.connections[key];
        let mut registered = cx.registry.register(&connection.client, Token::Client(key)).is_ok();
        if let Some(server) = connection.server_socket() {
            registered &= cx.registry.register(server, Token::Server(key)).is_ok();
        }
        if !registered {
            return self.close(cx, key);
        }
        let half = connection.is_half_closed();
        if let Some(timeout) = connection.settings.options.traffic_timeout(half) {
            self.timers.set(key, connection.idle_deadline(timeout).max(cx.now));
        }
        self.relay(cx, key);
    }
}
