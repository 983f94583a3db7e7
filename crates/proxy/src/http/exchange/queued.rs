//! Exchanges that wait in the queue of their pool.

use super::{Reach, refuse, take_server, tell_session};
use crate::service::pool_queue::{self, Waiter};
use crate::worker::Worker;
use evener_core::snapshot::{NoServer, Request, Snapshot};
use std::sync::Arc;

/// It waits in the queue of its pool, if that has room.
pub(super) fn enter_queue(worker: &mut Worker, number: usize, snapshot: &Snapshot) -> bool {
    let exchange = &worker.exchanges[number];
    let service = Arc::clone(&worker.sessions[exchange.session].service);
    let pool = Arc::clone(&exchange.backend().pool);
    let entered = pool_queue::enter(worker, &service, &pool, snapshot, Waiter::Exchange(number));
    let Some((queued, timeout)) = entered else { return false };
    let exchange = &mut worker.exchanges[number];
    (exchange.reach, exchange.queued) = (Reach::Queued, Some(queued));
    worker.exchange_timers.set(number, worker.now + timeout);
    true
}

/// Gives it a server, if one has a permit for it now. Whether it does not wait any more.
pub(crate) fn serve_queued(worker: &mut Worker, number: usize) -> bool {
    let exchange = &mut worker.exchanges[number];
    let request =
        Request { client: exchange.client, now: worker.now, token: exchange.token, stay: exchange.stay };
    let snapshot = exchange.backend().pool.load_full();
    let limits = exchange.settings.options.attempt_limits();
    exchange.attempt.begin_anew();
    let picked = exchange.attempt.next(&snapshot, &request, &limits, &mut worker.random);
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
    worker.exchange_timers.clear(number);
    let exchange = &mut worker.exchanges[number];
    if let Some(queued) = exchange.queued.take() {
        worker.queues.remove(&queued);
        exchange.reach = Reach::Wanted;
        // Nothing of its body was taken meanwhile.
        worker.sessions[exchange.session].active_at = worker.now;
    }
}

/// Its time in the queue is over.
pub(super) fn on_deadline(worker: &mut Worker, number: usize) {
    let session = worker.exchanges[number].session;
    let service = Arc::clone(&worker.sessions[session].service);
    service.live.counters.of(worker.id).queue_timeouts.one();
    leave_queue(worker, number);
    refuse(worker, number, NoServer::Full);
    tell_session(worker, number);
}
