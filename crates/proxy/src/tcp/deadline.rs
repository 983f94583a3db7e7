//! Deadlines of connections: connects, the preamble, lingering, and relays on which nothing moves.

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::tcp::Tcp;
use crate::tcp::connection::Stage;
use evener_core::Time;
use evener_core::snapshot::NoServer;
use rustix::io::Errno;

impl Tcp {
    /// The deadline of a connection came.
    pub(crate) fn on_deadline(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        match connection.stage {
            Stage::Connecting => self.next_server(cx, key, Errno::TIMEDOUT),
            Stage::Queued => {
                connection.service.live.counters.of(cx.id).queue_timeouts.one();
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
                let Some(quiet) = connection.settings.options.traffic_timeout(is_half_closed) else { return };
                let deadline: Time = connection.active_at + quiet;
                if deadline > cx.now {
                    return self.timers.set(key, deadline);
                }
                connection.service.live.counters.of(cx.id).timeouts(is_half_closed).one();
                self.close(cx, key);
            }
        }
    }
}
