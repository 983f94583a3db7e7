//! Exchanges that wait in the queue of their pool.

use super::{Reach, refuse, take_server, tell_session};
use crate::context::Context;
use crate::context::keys::ExchangeKey;
use crate::context::pool_queue::Waiter;
use crate::http::Http;
use crate::service::pool_queue;
use evener_core::snapshot::{NoServer, Request, Snapshot};
use std::sync::Arc;

/// It waits in the queue of its pool, if that has room.
pub(super) fn enter_queue(
    all: &mut Http,
    cx: &mut Context,
    number: ExchangeKey,
    snapshot: &Snapshot,
) -> bool {
    let exchange = &all.exchanges[number];
    let service = Arc::clone(&all.sessions[exchange.session].service);
    let entered = pool_queue::enter(cx, &service, snapshot, Waiter::Exchange(number));
    let Some((queued, timeout)) = entered else { return false };
    let exchange = &mut all.exchanges[number];
    (exchange.reach, exchange.queued) = (Reach::Queued, Some(queued));
    all.exchange_timers.set(number, cx.now + timeout);
    true
}

/// Gives it a server, if one has a permit for it now. Whether it does not wait any more.
pub(crate) fn serve_queued(all: &mut Http, cx: &mut Context, number: ExchangeKey) -> bool {
    let exchange = &mut all.exchanges[number];
    let request =
        Request { client: exchange.client, now: cx.now, token: exchange.token, stay: exchange.stay };
    let snapshot = exchange.backend().pool.load_full();
    let limits = exchange.settings.options.attempt_limits();
    exchange.attempt.begin_anew();
    let picked = exchange.attempt.next(&snapshot, &request, &limits, &mut cx.random);
    if matches!(picked, Err(NoServer::Full)) {
        return false;
    }
    leave_queue(all, cx, number);
    match picked {
        Ok(choice) => take_server(all, cx, number, &snapshot.pool, choice),
        Err(reason) => refuse(all, cx, number, reason),
    }
    tell_session(all, cx, number);
    true
}

pub(super) fn leave_queue(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    all.exchange_timers.clear(number);
    let exchange = &mut all.exchanges[number];
    if let Some(queued) = exchange.queued.take() {
        cx.queues.remove(&queued);
        exchange.reach = Reach::Wanted;
        // Nothing of its body was taken meanwhile.
        all.sessions[exchange.session].active_at = cx.now;
    }
}

/// Its time in the queue is over.
pub(super) fn on_deadline(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let session = all.exchanges[number].session;
    let service = Arc::clone(&all.sessions[session].service);
    service.live.counters.of(cx.id).queue_timeouts.one();
    leave_queue(all, cx, number);
    refuse(all, cx, number, NoServer::Full);
    tell_session(all, cx, number);
}
