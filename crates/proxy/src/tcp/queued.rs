//! Clients that waited in the queue of their pool.

use super::{Progress, connect, fail, give_up, relay, try_servers};
use crate::tcp::connection::Stage;
use crate::worker::Worker;
use evener_core::snapshot::{Choice, NoServer};

/// A client that waited in a queue gets a server, or learns that there is none.
pub(crate) fn take_server(worker: &mut Worker, index: usize, picked: Result<Choice, NoServer>) {
    let progress = match picked {
        Err(reason) => return give_up(worker, index, reason),
        Ok(choice) => match connect(worker, index, choice) {
            Ok(()) => Progress::Begun,
            Err(failed) => {
                fail(worker, index, &failed.choice, failed.error);
                try_servers(worker, index)
            }
        },
    };
    if progress == Progress::Begun && worker.connections[index].stage == Stage::Relaying {
        relay(worker, index);
    }
}
