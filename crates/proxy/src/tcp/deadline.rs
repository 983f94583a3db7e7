//! Deadlines of connections: connection attempts, the preamble, lingering, and relays without traffic.

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::tcp::Tcp;
use crate::tcp::connection::Stage;
use evener_core::snapshot::NoServer;
use rustix::io::Errno;

impl Tcp {
    /// Handles the deadline of a connection.
    pub(crate) fn on_deadline(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        match connection.stage {
            Stage::Connecting => self.next_server(cx, key, Errno::TIMEDOUT),
            Stage::Queued => {
                connection.service.live.counters.of(cx.id).queue_failures.timeout.one();
                self.give_up(cx, key, NoServer::Full);
            }
            Stage::Preamble => {
                connection.service.live.counters.of(cx.id).preamble_timeouts.one();
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
                self.close(cx, key);
            }
        }
    }
}
