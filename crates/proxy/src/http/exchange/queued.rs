//! Exchanges that wait in the queue of their pool.

use super::{Reach, refuse, take_server, tell_session};
use crate::context::pool_queue::Waiter;
use crate::service::pool_queue;
use crate::worker::Worker;
use evener_core::snapshot::{NoServer, Request, Snapshot};
use std::sync::Arc;

/// It waits in the queue of its pool, if that has room.
pub(super) fn enter_queue(worker: &mut Worker, number: usize, snapshot: &Snapshot) -> bool {
    let exchange = &worker.http.exchanges[number];
    let service = Arc::clone(&worker.http.sessions[exchange.session].service);
    let entered = pool_queue::enter(&mut worker.cx, &service, snapshot, Waiter::Exchange(number));
    let Some((queued, timeout)) = entered else { return false };
    let exchange = &mut worker.http.exchanges[number];
    (exchange.reach, exchange.queued) = (Reach::Queued, Some(queued));
    worker.http.exchange_timers.set(number, worker.cx.now + timeout);
    true
}

/// Gives it a server, if one has a permit for it now. Whether it does not wait any more.
pub(crate) fn serve_queued(worker: &mut Worker, number: usize) -> bool {
    let exchange = &mut worker.http.exchanges[number];
    let request =
        Request { client: exchange.client, now: worker.cx.now, token: exchange.token, stay: exchange.stay };
    let snapshot = exchange.backend().pool.load_full();
    let limits = exchange.settings.options.attempt_limits();
    exchange.attempt.begin_anew();
    let picked = exchange.attempt.next(&snapshot, &request, &limits, &mut worker.cx.random);
    if matches!(picked, Err(NoServer::Full)) {
        return false;
    }
    leave_queue(worker, number);
    match picked {
        Ok(choice) => take_server(worker, number, choice),
        Err(reason) => refuse(worker, number, reason),
    }
    tell_session(worker, number);
    true
}

pub(super) fn leave_queue(worker: &mut Worker, number: usize) {
    worker.http.exchange_timers.clear(number);
    let exchange = &mut worker.http.exchanges[number];
    if let Some(queued) = exchange.queued.take() {
        worker.cx.queues.remove(&queued);
        exchange.reach = Reach::Wanted;
        // Nothing of its body was taken meanwhile.
        worker.http.sessions[exchange.session].active_at = worker.cx.now;
    }
}

/// Its time in the queue is over.
pub(super) fn on_deadline(worker: &mut Worker, number: usize) {
    let session = worker.http.exchanges[number].session;
    let service = Arc::clone(&worker.http.sessions[session].service);
    service.live.counters.of(worker.cx.id).queue_timeouts.one();
    leave_queue(worker, number);
    refuse(worker, number, NoServer::Full);
    tell_session(worker, number);
}
