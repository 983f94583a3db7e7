//! Deadlines of connections: connects, the preamble, lingering, and relays on which nothing moves.

use super::{close, give_up, next_server};
use crate::tcp::connection::Stage;
use crate::worker::Worker;
use evener_core::Time;
use evener_core::snapshot::NoServer;
use rustix::io::Errno;

/// The deadline of a connection came.
pub(crate) fn on_deadline(worker: &mut Worker, index: usize) {
    let Some(connection) = worker.tcp.connections.get(index) else { return };
    match connection.stage {
        Stage::Connecting => next_server(worker, index, Errno::TIMEDOUT),
        Stage::Queued => {
            connection.service.live.counters.of(worker.cx.id).queue_timeouts.one();
            give_up(worker, index, NoServer::Full);
        }
        Stage::Greeting => {
            connection.service.live.counters.of(worker.cx.id).greeting_timeouts.one();
            close(worker, index);
        }
        Stage::Lingering | Stage::Tarpit => close(worker, index),
        Stage::Over => {}
        Stage::Relaying => {
            let is_half_closed = connection.is_half_closed();
            let Some(quiet) = connection.settings.options.quiet_max(is_half_closed) else { return };
            let deadline: Time = connection.active_at + quiet;
            if deadline > worker.cx.now {
                return worker.tcp.timers.set(index, deadline);
            }
            connection.service.live.counters.of(worker.cx.id).quiet(is_half_closed).one();
            close(worker, index);
        }
    }
}
