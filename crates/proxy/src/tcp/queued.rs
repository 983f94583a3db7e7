//! Clients that wait in the queue of their pool.

use super::five_hops::Progress;
use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::context::pool_queue::Waiter;
use crate::context::registry::Token;
use crate::service::pool_queue;
use crate::tcp::Tcp;
use crate::tcp::connection::Stage;
use evener_core::snapshot::{Choice, NoServer, Request};
use std::sync::Arc;

impl Tcp {
    /// Connects a client that waited to the server that was picked, or closes it.
    fn take_server(&mut self, cx: &mut Context, key: ConnectionKey, picked: Result<Choice, NoServer>) {
        let progress = match picked {
            Err(reason) => return self.give_up(cx, key, reason),
            Ok(choice) => match self.connect(cx, key, choice) {
                Ok(()) => Progress::Begun,
                Err(failed) => {
                    self.fail(cx, key, &failed.choice, failed.error);
                    self.try_servers(cx, key)
                }
            },
        };
        if progress == Progress::Begun && self.connections[key].stage == Stage::Relaying {
            self.relay(cx, key);
        }
    }
}
impl Tcp {
    /// Puts a client into the queue of its pool; returns false when there is no queue or no room.
    pub(super) fn enter_queue(&mut self, cx: &mut Context, key: ConnectionKey) -> bool {
        let connection = &self.connections[key];
        let service = Arc::clone(&connection.service);
        let snapshot = connection.backend().pool.load_full();
        let Some((queued, timeout)) = pool_queue::enter(cx, &service, &snapshot, Waiter::Connection(key))
        else {
            return false;
        };
        let rides = self.rides(cx, key);
        let connection = &mut self.connections[key];
        connection.admitted.get_or_insert_default().queued = Some(queued);
        connection.stage = Stage::Queued;
        self.timers.set(key, cx.now + timeout);
        if rides {
            // Until the ring has the client, epoll reports when it leaves; without that, the deadline of the queue closes it.
            let _ = cx.registry.register(&self.connections[key].client, Token::Client(key));
        }
        true
    }

    /// Returns whether the ring, and not epoll, has the client as soon as its server accepted.
    fn rides(&self, cx: &Context, key: ConnectionKey) -> bool {
        cx.ring.is_some() && self.connections[key].preamble.is_none()
    }

    /// Takes a client out of the queue of its pool.
    pub(super) fn leave_queue(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        let Some(queued) = connection.admitted.as_mut().and_then(|admitted| admitted.queued.take()) else {
            return;
        };
        cx.queues.remove(&queued);
        self.timers.clear(key);
        if self.rides(cx, key) {
            cx.registry.deregister(&self.connections[key].client);
        }
    }

    pub(crate) fn serve_queued(&mut self, cx: &mut Context, key: ConnectionKey) -> bool {
        let connection = &mut self.connections[key];
        let request = Request::of(connection.address, cx.now);
        let snapshot = connection.backend().pool.load_full();
        let limits = connection.settings.options.attempt_limits();
        connection.attempt.begin_anew();
        match connection.attempt.next(&snapshot, &request, &limits, &mut cx.random) {
            Err(NoServer::Full) => false,
            picked => {
                self.leave_queue(cx, key);
                self.take_server(cx, key, picked);
                true
            }
        }
    }
}
