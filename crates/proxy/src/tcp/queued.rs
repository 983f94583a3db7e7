//! Clients that wait in the queue of their pool.

use super::five_hops::{Connect, Progress};
use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::context::pool_queue::Waiter;
use crate::context::registry::Token;
use crate::service::pool_queue;
use crate::tcp::Tcp;
use crate::tcp::connection::Stage;
use evener_core::snapshot::{Choice, NoServer};
use std::sync::Arc;

impl Tcp {
    /// Connects a queued client to the server that was picked, or closes the client if none was picked.
    fn take_server(&mut self, cx: &mut Context, key: ConnectionKey, picked: Result<Choice, NoServer>) {
        let progress = match picked {
            Err(reason) => return self.give_up(cx, key, reason),
            Ok(choice) => match self.connect(cx, key, choice) {
                Connect::Begun => Progress::Begun,
                Connect::Failed => self.try_servers(cx, key),
            },
        };
        if progress == Progress::Begun && self.connections[key].stage == Stage::Relaying {
            self.relay(cx, key);
        }
    }
}

impl Tcp {
    /// Puts a client into the queue of its pool; returns false if the pool has no queue or the queue is full.
    pub(super) fn enter_queue(&mut self, cx: &mut Context, key: ConnectionKey) -> bool {
        let connection = &self.connections[key];
        let service = Arc::clone(&connection.service);
        let snapshot = connection.backend().pool.load_full();
        let Some((queued, timeout)) = pool_queue::enter(cx, &service, &snapshot, Waiter::Connection(key))
        else {
            return false;
        };
        let rides = self.connections[key].uses_ring(cx);
        self.connections[key].enter_queue(queued);
        self.timers.set(key, cx.now + timeout);
        if rides {
            // Until the ring relays the client, epoll reports its close. If the registration fails, the client
            // is closed at the deadline of the queue.
            let _ = cx.registry.register(&self.connections[key].client, Token::Client(key));
        }
        true
    }

    /// Removes a client from the queue of its pool.
    pub(super) fn leave_queue(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        let Some(queued) = connection.take_queued() else { return };
        cx.queues.remove(&queued);
        self.timers.clear(key);
        if self.connections[key].uses_ring(cx) {
            cx.registry.deregister(&self.connections[key].client);
        }
    }

    /// Offers a free permit to a queued client. Returns false if the client has to wait further.
    pub(crate) fn serve_queued(&mut self, cx: &mut Context, key: ConnectionKey) -> bool {
        match self.connections[key].pick_queued(cx) {
            Err(NoServer::Full) => false,
            picked => {
                self.leave_queue(cx, key);
                self.take_server(cx, key, picked);
                true
            }
        }
    }
}
