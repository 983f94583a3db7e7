//! The end of all connections and flows of one server, because a check marked it down or an operator closes
//! them. Connections of clients are reset; requests that may be repeated are retried on another server.

use evener_core::Target;
use evener_core::counters::{Counter, ServiceCounters};
use evener_core::lock::lock;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::{Entry, ServerLive};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The reason why the connections of a server end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A check marked the server down: the connections to the checked address end.
    Down,
    /// An operator closes them: all connections of the server end.
    Operator,
}

impl EndReason {
    /// Returns the name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Operator => "operator",
        }
    }
}

/// Receives the number of connections and flows that ended.
type Done = Box<dyn FnOnce(usize) + Send>;

/// A request to all workers to end connections and flows. When the last worker drops the request, the total is
/// sent.
pub(crate) struct Ending {
    live: Arc<ServerLive>,
    target: Target,
    reason: EndReason,
    ended: AtomicUsize,
    done: Mutex<Option<Done>>,
}

impl Ending {
    pub(crate) fn new(server: &Entry, reason: EndReason, done: impl FnOnce(usize) + Send + 'static) -> Self {
        let done: Done = Box::new(done);
        Self {
            live: Arc::clone(&server.live),
            target: server.target.clone(),
            reason,
            ended: AtomicUsize::new(0),
            done: Mutex::new(Some(done)),
        }
    }

    /// Returns whether connections to this server at this address are to end.
    pub(crate) fn means(&self, live: &Arc<ServerLive>, target: &Target) -> bool {
        Arc::ptr_eq(live, &self.live) && (self.reason == EndReason::Operator || *target == self.target)
    }

    /// Adds the number of connections and flows that a worker closed.
    pub(crate) fn add(&self, ended: usize) {
        self.ended.fetch_add(ended, Ordering::Relaxed);
    }

    /// Returns the cause for which connections and requests end.
    pub(crate) fn cause(&self) -> Cause {
        match self.reason {
            EndReason::Down => Reason::ServerDown.into(),
            EndReason::Operator => Reason::ServerEnded.into(),
        }
    }

    /// Returns the counter of a service for connections that end for this reason.
    pub(crate) fn counter<'a>(&self, counters: &'a ServiceCounters) -> &'a Counter {
        match self.reason {
            EndReason::Down => &counters.closed.server_down,
            EndReason::Operator => &counters.closed.operator,
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(done) = lock(&self.done).take() {
            done(*self.ended.get_mut());
        }
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Ending").field("target", &self.target).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::TestPool;
    use std::sync::mpsc::channel;

    fn target(address: &str) -> Target {
        Target::Ip(address.parse().unwrap())
    }

    /// Checks whether the end of the first server's connections includes a connection to `server` at `address`.
    fn check(reason: EndReason, server: usize, address: &str, expected: bool) {
        let pool = TestPool::new("pool", &["192.0.2.1:80", "192.0.2.2:80"].map(target));
        let snapshot = pool.published().load_full();
        let ending = Ending::new(&snapshot.servers()[0], reason, |_| {});
        let means = ending.means(&snapshot.servers()[server].live, &target(address));
        assert_eq!(means, expected, "{reason:?} {server} {address}");
    }

    #[test]
    fn a_check_ends_connections_to_one_address_and_an_operator_all_of_the_server() {
        check(EndReason::Down, 0, "192.0.2.1:80", true);
        check(EndReason::Down, 0, "192.0.2.9:80", false);
        check(EndReason::Operator, 0, "192.0.2.9:80", true);
        check(EndReason::Operator, 1, "192.0.2.1:80", false);
    }

    #[test]
    fn the_total_is_sent_when_the_last_worker_is_done_or_stopped() {
        let pool = TestPool::new("pool", &[target("192.0.2.1:80")]);
        let (sender, totals) = channel();
        let server = Arc::clone(&pool.published().load().servers()[0]);
        let ending =
            Arc::new(Ending::new(&server, EndReason::Down, move |total| sender.send(total).unwrap()));
        let other = Arc::clone(&ending);
        ending.add(2);
        drop(ending);
        assert!(totals.try_recv().is_err(), "one worker is not done yet");
        other.add(3);
        drop(other);
        assert_eq!(totals.try_recv(), Ok(5));
    }

    #[test]
    fn services_count_ended_connections_by_reason() {
        let pool = TestPool::new("pool", &[target("192.0.2.1:80")]);
        let server = Arc::clone(&pool.published().load().servers()[0]);
        for (reason, expected) in [(EndReason::Down, [1, 0]), (EndReason::Operator, [0, 1])] {
            let counters = ServiceCounters::default();
            Ending::new(&server, reason, |_| {}).counter(&counters).one();
            assert_eq!(
                [counters.closed.server_down.read(), counters.closed.operator.read()],
                expected,
                "{}",
                reason.name()
            );
        }
    }
}
