//! TCP clients and HTTP requests that wait in the queues of pools because every server is at its limit. Each worker
//! has a queue; the pool bounds the total of all workers. A permit that is given back, at any worker, wakes the
//! queues; the components decide which waiter takes it.

use crate::context::Context;
use crate::context::pool_queue::{Queued, Waiter};
use crate::service::Service;
use arc_swap::ArcSwap;
use evener_core::snapshot::{Request, Snapshot};
use std::time::Duration;

/// Returns whether a newcomer has to wait behind others, even if a permit is free.
pub(crate) fn is_behind(snapshot: &Snapshot, request: &Request) -> bool {
    snapshot.queue.is_some() && snapshot.queued() > 0 && !snapshot.may_pass_the_queue(request)
}

/// Takes a slot in the queue of a pool; `None` when the pool has no queue, or a full one.
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

/// Has the queue of a pool served soon, now that a permit of it is given back.
pub(crate) fn note_freed(cx: &mut Context, pool: &ArcSwap<Snapshot>) {
    if pool.load().queued() > 0 {
        cx.queues.note_freed();
    }
}
