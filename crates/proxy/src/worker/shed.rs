//! What a worker closes when clients wait for descriptors: what nobody uses just now. Connections to servers and pipes that
//! are kept go first, then clients that keep a connection of HTTP, or of DNS over TCP, without asking anything, the longest idle first.

use super::Worker;
use crate::context::descriptors;
use std::time::Duration;

/// When all was looked through, the next look is this much later.
const SHED_EVERY: Duration = Duration::from_millis(50);

/// Closes what nobody uses, as long as that is wanted.
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
        // They are closed when the present events are done; whoever waits looks after that.
        worker.shed_any = true;
    }
}
