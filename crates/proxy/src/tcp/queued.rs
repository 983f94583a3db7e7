//! Clients that wait in the queue of their pool.

use super::{Progress, connect, fail, give_up, relay, try_servers};
use crate::context::pool_queue::Waiter;
use crate::context::registry::Token;
use crate::service::pool_queue;
use crate::tcp::connection::Stage;
use crate::worker::Worker;
use evener_core::snapshot::{Choice, NoServer, Request};
use std::sync::Arc;

/// A client that waited in a queue gets a server, or learns that there is none.
fn take_server(worker: &mut Worker, index: usize, picked: Result<Choice, NoServer>) {
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
    if progress == Progress::Begun && worker.tcp.connections[index].stage == Stage::Relaying {
        relay(worker, index);
    }
}
/// A client of TCP waits in the queue of its pool, if that has room.
pub(super) fn enter_queue(worker: &mut Worker, index: usize) -> bool {
    let connection = &worker.tcp.connections[index];
    let service = Arc::clone(&connection.service);
    let snapshot = connection.backend().pool.load_full();
    let Some((queued, timeout)) =
        pool_queue::enter(&mut worker.cx, &service, &snapshot, Waiter::Connection(index))
    else {
        return false;
    };
    let rides = rides(worker, index);
    let connection = &mut worker.tcp.connections[index];
    connection.guest.get_or_insert_default().queued = Some(queued);
    connection.stage = Stage::Queued;
    worker.tcp.timers.set(index, worker.cx.now + timeout);
    if rides {
        // Until the ring has it, epoll tells when it leaves; if that cannot be, its time is up some day.
        let _ = worker.cx.registry.register(&worker.tcp.connections[index].client, Token::Client(index));
    }
    true
}

/// Whether a client is the ring's as soon as its server accepted, and not epoll's.
fn rides(worker: &Worker, index: usize) -> bool {
    worker.cx.ring.is_some() && worker.tcp.connections[index].greeting.is_none()
}

/// A client of TCP does not wait any more.
pub(super) fn leave_queue(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    let Some(queued) = connection.guest.as_mut().and_then(|guest| guest.queued.take()) else { return };
    worker.cx.queues.remove(&queued);
    worker.tcp.timers.clear(index);
    if rides(worker, index) {
        worker.cx.registry.deregister(&worker.tcp.connections[index].client);
    }
}

pub(crate) fn serve_queued(worker: &mut Worker, index: usize) -> bool {
    let connection = &mut worker.tcp.connections[index];
    let request = Request::of(connection.address, worker.cx.now);
    let snapshot = connection.backend().pool.load_full();
    let limits = connection.settings.options.attempt_limits();
    connection.attempt.begin_anew();
    match connection.attempt.next(&snapshot, &request, &limits, &mut worker.cx.random) {
        Err(NoServer::Full) => false,
        picked => {
            leave_queue(worker, index);
            take_server(worker, index, picked);
            true
        }
    }
}
