//! What workers report to the supervisor, and how often a condition that lasts is reported again.

use evener_core::health::Failure;
use evener_core::snapshot::NoServer;
use evener_core::{ServerId, Target, Time};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A condition that lasts is reported at most this often, for each service.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// Whether something that lasts should be said again; `told_at` is when it was said last, 0 for never. True for one caller.
pub(crate) fn is_due(told_at: &AtomicU64, now: Time) -> bool {
    let last = told_at.load(Ordering::Relaxed);
    let due = last == 0 || now.since(Time::from_nanos(last)) >= NOTICE_EVERY;
    let claim =
        || told_at.compare_exchange(last, now.as_nanos().max(1), Ordering::Relaxed, Ordering::Relaxed);
    due && claim().is_ok()
}

/// The lasting conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    NoServer,
    Untakable,
    Full,
    AcceptFailed,
    NoDescriptors,
    Loop,
}

/// What a worker tells the supervisor.
#[derive(Debug)]
pub enum Report {
    /// Traffic could not reach a server.
    Failure {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// Where it was.
        target: Target,
        /// What went wrong.
        failure: Failure,
    },
    /// A connect failed for a reason of our own, which is no verdict on the server.
    LocalError {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// What the system said.
        error: std::io::Error,
    },
    /// Traffic reached a server that had failed before.
    Success {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// Where it was.
        target: Target,
    },
    /// The connection that has to stand with a server does for this worker, or no longer does and why.
    Session {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
        /// Where it was.
        target: Target,
        /// The worker.
        worker: usize,
        /// Why it does not stand; `None` when it does.
        fault: Option<String>,
    },
    /// No server that was left could take a question.
    Untakable {
        /// The service.
        service: Arc<str>,
    },
    /// What clients send comes back to the service.
    Loop {
        /// The service.
        service: Arc<str>,
    },
    /// A client got no server.
    NoServer {
        /// The service.
        service: Arc<str>,
        /// Why.
        reason: NoServer,
    },
    /// The service is full.
    Full {
        /// The service.
        service: Arc<str>,
        /// Its limit.
        connections_max: u32,
    },
    /// As many clients are there as descriptors allow.
    NoDescriptors {
        /// A service that accepts no more for now.
        service: Arc<str>,
        /// How many connections there can be.
        connections_max: u32,
    },
    /// There is no io_uring here; epoll does the work.
    NoRing {
        /// What the system said.
        error: std::io::Error,
    },
    /// Accepting failed.
    AcceptFailed {
        /// The service.
        service: Arc<str>,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Takes reports from any worker; must not block.
pub type Reporter = Arc<dyn Fn(Report) + Send + Sync>;
