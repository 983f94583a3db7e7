//! Closes unused entries when clients wait for descriptors: first pooled connections to servers and pipes, then
//! idle connections of clients (HTTP, and DNS over TCP), the longest idle first.

use super::Worker;
use crate::context::descriptors;
use std::time::Duration;

/// Pause after a search for unused entries.
const SHED_EVERY: Duration = Duration::from_millis(50);

/// Closes unused entries while descriptors are wanted.
pub(super) fn shed(worker: &mut Worker) {
    let wanted = descriptors::wanted();
    if wanted == 0 || worker.cx.now < worker.shed_after {
        return;
    }
    worker.shed_after = worker.cx.now + SHED_EVERY;
    let mut closed = worker.tcp.shed(worker.cx.now);
    if closed < wanted {
        closed += worker.http.shed_pooled(&mut worker.cx, wanted - closed);
    }
    if closed < wanted {
        closed += worker.http.shed(&mut worker.cx, wanted - closed);
    }
    if closed < wanted {
        closed += worker.dns.shed(&mut worker.cx, wanted - closed);
    }
    if closed > 0 {
        descriptors::shed(closed);
        // The entries are removed after the present events are handled; then all workers are woken.
        worker.shed_any = true;
    }
}
