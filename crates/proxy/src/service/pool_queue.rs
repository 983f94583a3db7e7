//! Clients of TCP and requests of HTTP that wait in the queues of pools, because every server was at its limit. Each worker
//! keeps its own; how many wait at all workers together is bounded by the pool. A permit that is given back, here or by another
//! worker, wakes them; who gets it is not decided here.

use crate::context::Context;
use crate::context::pool_queue::{Queued, Waiter};
use crate::service::Service;
use arc_swap::ArcSwap;
use evener_core::snapshot::{Request, Snapshot};
use std::time::Duration;

/// Whether a newcomer has to wait behind others, whether a permit is free or not.
pub(crate) fn is_behind(snapshot: &Snapshot, request: &Request) -> bool {
    snapshot.queue.is_some() && snapshot.queued() > 0 && !snapshot.may_pass_the_queue(request)
}

/// A slot in the queue of a pool; `None` when it has none, or that is full.
pub(crate) fn enter(
    cx: &mut Context,
    service: &Service,
    snapshot: &Snapshot,
    waiter: Waiter,
) -> Option<(Queued, Duration)> {
    let spec = snapshot.queue?;
    let counters = service.live.counters.of(cx.id);
    let Some(slot) = snapshot.enter_queue() else {
        counters.queue_full.one();
        return None;
    };
    counters.queued.one();
    let is_first = snapshot.queued() == 1;
    Some((cx.queues.enter(&snapshot.pool, waiter, slot, cx.now, is_first), spec.timeout))
}

/// A permit of a pool is given back: who waits for one is looked at soon.
pub(crate) fn note_freed(cx: &mut Context, pool: &ArcSwap<Snapshot>) {
    if pool.load().queued() > 0 {
        cx.queues.note_freed();
    }
}
