//! Reports of workers to the supervisor, and the rate at which lasting conditions are repeated.

use super::unserved::Unserved;
use evener_core::event::Similar;
use evener_core::health::Failure;
use evener_core::snapshot::NoServer;
use evener_core::{ServerId, Target, Time};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Minimum time between two reports of a lasting condition of one service.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// Returns true if a lasting condition has to be reported now: at most once in [`NOTICE_EVERY`]. `reported_at`
/// is the time of the last report, or 0 before the first. Only one of several concurrent callers gets true.
pub(crate) fn is_due(reported_at: &AtomicU64, now: Time) -> bool {
    let last = reported_at.load(Ordering::Relaxed);
    let due = last == 0 || now.since(Time::from_nanos(last)) >= NOTICE_EVERY;
    let claim =
        || reported_at.compare_exchange(last, now.as_nanos().max(1), Ordering::Relaxed, Ordering::Relaxed);
    due && claim().is_ok()
}

/// Most reports that a worker makes in a second for readers of debug events.
const DETAILS_PER_SECOND_MAX: u32 = 500;

/// Reports for readers of debug events: whether there is such a reader, and how many reports are left in the present
/// second.
#[derive(Debug)]
pub(crate) struct Details {
    wanted: Arc<AtomicBool>,
    second: Cell<Time>,
    left: Cell<u32>,
}

impl Details {
    pub(crate) fn new(wanted: Arc<AtomicBool>) -> Self {
        Self { wanted, second: Cell::new(Time::ZERO), left: Cell::new(DETAILS_PER_SECOND_MAX) }
    }

    /// Takes the right to make one more report. Returns false if no reader wants it, or there were too many.
    pub(crate) fn take(&self, now: Time) -> bool {
        if !self.wanted.load(Ordering::Relaxed) {
            return false;
        }
        if now.since(self.second.get()) >= NOTICE_EVERY {
            self.second.set(now);
            self.left.set(DETAILS_PER_SECOND_MAX);
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

/// Conditions that last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    NoServer,
    NoCapableServer,
    RetriesExhausted,
    Full,
    AcceptFailed,
    NoDescriptors,
    Loop,
}

/// A report of a worker to the supervisor.
#[derive(Debug)]
pub enum Report {
    /// Traffic failed to reach a server.
    Failure {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// The address.
        target: Target,
        /// The failure.
        failure: Failure,
    },
    /// A connection attempt failed for a local reason, which does not count against the server.
    LocalError {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// The error of the system.
        error: std::io::Error,
    },
    /// Traffic reached a server that had failed before.
    Success {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// The address.
        target: Target,
    },
    /// The persistent connection of this worker with a server is established, or failed.
    Session {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// The address.
        target: Target,
        /// The worker.
        worker: usize,
        /// The reason of the failure; `None` when the connection is established.
        fault: Option<String>,
    },
    /// No capable server was left for a query.
    NoCapableServer {
        /// The service.
        service: Arc<str>,
    },
    /// The retry budget of a pool is used up.
    RetriesExhausted {
        /// The service.
        service: Arc<str>,
        /// The pool.
        pool: Arc<str>,
    },
    /// Traffic of clients loops.
    Loop {
        /// The service.
        service: Arc<str>,
    },
    /// A request, connection, query or datagram was not served.
    Unserved {
        /// The service.
        service: Arc<str>,
        /// The traffic, and the reason.
        unserved: Box<Unserved>,
        /// Relation to similar failures.
        similar: Similar,
    },
    /// A response was repaired.
    Repaired {
        /// The service.
        service: Arc<str>,
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: Arc<str>,
        /// The fault of the response.
        detail: &'static str,
    },
    /// No server was available for a client.
    NoServer {
        /// The service.
        service: Arc<str>,
        /// The reason.
        reason: NoServer,
    },
    /// The service is full.
    Full {
        /// The service.
        service: Arc<str>,
        /// The limit.
        connections_max: u32,
    },
    /// Descriptors allow no more clients.
    NoDescriptors {
        /// A service that accepts no more clients for now.
        service: Arc<str>,
        /// The maximum number of connections.
        connections_max: u32,
    },
    /// io_uring is not available; epoll is used instead.
    NoRing {
        /// The error of the system.
        error: std::io::Error,
    },
    /// Accepting failed.
    AcceptFailed {
        /// The service.
        service: Arc<str>,
        /// The error of the system.
        error: std::io::Error,
    },
}

/// Receives reports from any worker; must not block.
pub type Reporter = Arc<dyn Fn(Report) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_reported_if_wanted_and_their_number_is_limited() {
        let wanted = Arc::new(AtomicBool::new(false));
        let details = Details::new(Arc::clone(&wanted));
        let now = Time::ZERO + Duration::from_secs(5);
        assert!(!details.take(now), "no reader wants them");
        wanted.store(true, Ordering::Relaxed);
        let taken = (0..2 * DETAILS_PER_SECOND_MAX).filter(|_| details.take(now)).count();
        assert_eq!(taken, DETAILS_PER_SECOND_MAX as usize);
        assert!(details.take(now + NOTICE_EVERY), "another second has begun");
    }

    #[test]
    fn a_lasting_condition_is_due_once_a_second() {
        let reported_at = AtomicU64::new(0);
        let due = |millis: u64| is_due(&reported_at, Time::ZERO + Duration::from_millis(millis));
        assert_eq!([1, 2, 1000, 1001, 1002, 5000].map(due), [true, false, false, true, false, true]);
    }
}
