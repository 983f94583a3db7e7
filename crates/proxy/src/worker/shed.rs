//! What a worker closes when clients wait for descriptors: what nobody uses just now. Connections to servers and pipes that
//! are kept go first, then clients that keep a connection of HTTP, or of DNS over TCP, without asking anything, the longest idle first.

use super::Worker;
use crate::context::descriptors;
use crate::http::exchange;
use crate::http::session::{self, Session};
use evener_core::Time;
use std::time::Duration;

/// When all was looked through, the next look is this much later.
const SHED_EVERY: Duration = Duration::from_millis(50);
/// A client that was quiet for less may have its next request under way. Those that are busy end with a response.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// Closes what nobody uses, as long as that is wanted.
pub(super) fn shed(worker: &mut Worker) {
    let wanted = descriptors::wanted();
    if wanted == 0 || worker.cx.now < worker.shed_after {
        return;
    }
    worker.shed_after = worker.cx.now + SHED_EVERY;
    let mut closed = worker.tcp.shed(worker.cx.now);
    if closed < wanted {
        closed += exchange::shed_idle(worker, wanted - closed);
    }
    if closed < wanted {
        closed += shed_sessions(worker, wanted - closed);
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

/// Sessions that were served and ask nothing, the longest idle first.
fn shed_sessions(worker: &mut Worker, wanted: u32) -> u32 {
    let now = worker.cx.now;
    let is_quiet = |session: &Session| now.since(session.active_at) >= QUIET_MIN;
    let is_idle = |session: &Session| session.served && session.is_idle() && is_quiet(session);
    let idle = worker.http.sessions.iter().filter(|(_, session)| is_idle(session));
    let mut idle: Vec<(Time, usize)> = idle.map(|(index, session)| (session.active_at, index)).collect();
    let count = idle.len().min(wanted as usize);
    if let Some(last) = count.checked_sub(1) {
        idle.select_nth_unstable(last);
    }
    let shed = idle[..count].iter().filter(|&&(_, index)| session::shed(worker, index));
    2 * shed.count() as u32
}
