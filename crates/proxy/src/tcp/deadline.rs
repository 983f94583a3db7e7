//! Deadlines of connections: connection attempts, the preamble, lingering, and relays without traffic.

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::service::note_no_server;
use crate::tcp::Tcp;
use crate::tcp::connection::Stage;
use evener_core::reason::Reason;
use evener_core::snapshot::NoServer;
use rustix::io::Errno;
use std::sync::Arc;

impl Tcp {
    /// Handles the deadline of a connection.
    pub(crate) fn on_deadline(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        match connection.stage {
            Stage::Connecting => self.next_server(cx, key, Errno::TIMEDOUT),
            Stage::Queued => {
                connection.service.live.counters.of(cx.id).queue_failures.timeout.one();
                let service = Arc::clone(&connection.service);
                note_no_server(cx, &service, NoServer::Full);
                connection.note_failed(cx, Reason::QueueTimeout);
                self.close(cx, key);
            }
            Stage::Preamble => {
                connection.service.live.counters.of(cx.id).preamble_timeouts.one();
                connection.note_unserved(cx, Reason::PreambleTimeout.into());
                self.close(cx, key);
            }
            Stage::Lingering | Stage::Tarpit => self.close(cx, key),
            Stage::Over => {}
            Stage::Relaying => {
                let is_half_closed = connection.is_half_closed();
                let Some(timeout) = connection.settings.options.traffic_timeout(is_half_closed) else {
                    return;
                };
                let deadline = connection.idle_deadline(timeout);
                if deadline > cx.now {
                    return self.timers.set(key, deadline);
                }
                connection.service.live.counters.of(cx.id).timeouts(is_half_closed).one();
                connection.set_end(Reason::IdleTimeout);
                self.close(cx, key);
            }
        }
    }
}
