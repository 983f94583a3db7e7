//! TCP clients and HTTP requests that wait in the queues of pools because every server is at its limit. Each
//! worker has a queue; the pool bounds the total of all workers. A permit that is released, at any worker,
//! wakes the queues; the components decide which waiter takes the permit.

use crate::context::Context;
use crate::context::pool_queue::{Queued, Waiter};
use crate::service::Service;
use arc_swap::ArcSwap;
use evener_core::snapshot::{Request, Snapshot};
use std::time::Duration;

/// Returns whether a new client has to wait behind others, even if a permit is free.
pub(crate) fn is_behind(snapshot: &Snapshot, request: &Request) -> bool {
    snapshot.queue.is_some() && snapshot.queued() > 0 && !snapshot.may_pass_the_queue(request)
}

/// Takes a slot in the queue of a pool; `None` if the pool has no queue, or its queue is full.
pub(crate) fn enter(
    cx: &mut Context,
    service: &Service,
    snapshot: &Snapshot,
    waiter: Waiter,
) -> Option<(Queued, Duration)> {
    let spec = snapshot.queue?;
    let counters = service.live.counters.of(cx.id);
    let Some(slot) = snapshot.enter_queue() else {
        counters.queue_failures.full.one();
        return None;
    };
    counters.queued.one();
    let is_first = snapshot.queued() == 1;
    Some((cx.queues.enter(&snapshot.pool, waiter, slot, cx.now, is_first), spec.timeout))
}

/// Makes the worker serve the queue of a pool soon, after a permit of the pool was released.
pub(crate) fn note_freed(cx: &mut Context, pool: &ArcSwap<Snapshot>) {
    if pool.load().queued() > 0 {
        cx.queues.note_freed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::keys::Handle;
    use crate::service::testing::{TestPool, service};
    use evener_core::spec::{Protocol, QueueSpec};

    /// A pool with one server, and with a queue if `size` is given.
    fn pool(size: Option<u32>) -> TestPool {
        let server = evener_core::Target::Ip("192.0.2.1:80".parse().unwrap());
        TestPool::with("pool", &[server], |spec| {
            spec.queue = size.map(|size| QueueSpec { size, timeout: Duration::from_secs(5) });
        })
    }

    fn waiter(number: u64) -> Waiter {
        Waiter::Connection(Handle::from_raw(number))
    }

    #[test]
    fn a_pool_without_a_queue_or_with_a_full_queue_takes_no_waiter() {
        let (mut cx, _) = Context::for_tests();
        let none = pool(None);
        let unqueued = service(Protocol::Tcp, &none);
        assert!(enter(&mut cx, &unqueued, &none.published().load(), waiter(1)).is_none());
        assert_eq!(unqueued.live.counters.total("queue_failures.full"), 0);

        let one = pool(Some(1));
        let service = service(Protocol::Tcp, &one);
        let snapshot = one.published().load_full();
        let (slot, timeout) = enter(&mut cx, &service, &snapshot, waiter(1)).expect("there is room");
        assert_eq!(timeout, Duration::from_secs(5));
        assert!(enter(&mut cx, &service, &snapshot, waiter(2)).is_none());
        drop(slot);
        assert!(enter(&mut cx, &service, &snapshot, waiter(2)).is_some());
        let counted = ["queued", "queue_failures.full"].map(|counter| service.live.counters.total(counter));
        assert_eq!(counted, [2, 1]);
    }

    #[test]
    fn new_clients_wait_behind_queued_clients() {
        let (mut cx, _) = Context::for_tests();
        let pool = pool(Some(8));
        let (service, snapshot) = (service(Protocol::Tcp, &pool), pool.published().load_full());
        let request = Request::of([192, 0, 2, 9].into(), cx.now);
        assert!(!is_behind(&snapshot, &request));
        let slot = enter(&mut cx, &service, &snapshot, waiter(1));
        assert!(is_behind(&snapshot, &request));
        drop(slot);
        assert!(!is_behind(&snapshot, &request));
    }

    #[test]
    fn a_released_permit_wakes_the_queue_only_while_a_client_waits() {
        let (mut cx, _) = Context::for_tests();
        let pool = pool(Some(8));
        let (service, snapshot) = (service(Protocol::Tcp, &pool), pool.published().load_full());
        note_freed(&mut cx, &pool.published());
        assert!(!cx.queues.is_freed());
        let _slot = enter(&mut cx, &service, &snapshot, waiter(1));
        note_freed(&mut cx, &pool.published());
        assert!(cx.queues.is_freed());
    }
}
