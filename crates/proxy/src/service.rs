//! A service as workers share it: its present settings, what is counted, and what is reported of it.

use arc_swap::ArcSwap;
use evener_core::acl::{Access, Acl};
use evener_core::counters::{ServiceCounters, Sharded};
use evener_core::health::Failure;
use evener_core::limits::{Lease, Occupancy};
use evener_core::snapshot::{NoServer, Snapshot};
use evener_core::spec::{Protocol, ServiceOptions};
use evener_core::{ServerId, Target, Time};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// A condition that lasts is reported at most this often, for each service.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// What a service does, as the present configuration says.
#[derive(Debug)]
pub struct Settings {
    /// Limits and times.
    pub options: ServiceOptions,
    /// Who may come in.
    pub acl: Option<Arc<Acl>>,
    /// The pool that serves it, where its snapshots are published.
    pub pool: Arc<ArcSwap<Snapshot>>,
}

impl Settings {
    pub(crate) fn permits(&self, client: IpAddr) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
    }
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What it does now; a reload puts another one here.
    pub settings: ArcSwap<Settings>,
    /// What lives on across reloads.
    pub live: ServiceLive,
}

/// What of a service lives on across reloads.
#[derive(Debug)]
pub struct ServiceLive {
    /// TCP connections now.
    pub connections: Occupancy,
    /// UDP flows now.
    pub flows: AtomicU32,
    /// What was counted.
    pub counters: Sharded<ServiceCounters>,
    /// A listener waits for a place.
    waiting: AtomicBool,
    noticed_at: [AtomicU64; 3],
}

impl Service {
    /// A service that nobody uses yet.
    #[must_use]
    pub fn new(name: Arc<str>, protocol: Protocol, settings: Settings, workers: usize) -> Self {
        let live = ServiceLive {
            connections: Occupancy::default(),
            flows: AtomicU32::new(0),
            counters: Sharded::new(workers),
            waiting: AtomicBool::new(false),
            noticed_at: Default::default(),
        };
        Self { name, protocol, settings: ArcSwap::from_pointee(settings), live }
    }

    /// A place for one more connection. When there is none, [`Service::wants_wake`] tells whoever leaves that somebody
    /// waits.
    pub(crate) fn enter(&self, connections_max: u32) -> Option<Lease> {
        self.live.connections.enter(connections_max).or_else(|| {
            self.live.waiting.store(true, Ordering::Relaxed);
            // Either this sees the place that is given back now, or who gives it back sees the flag.
            fence(Ordering::SeqCst);
            self.live.connections.enter(connections_max)
        })
    }

    /// Whether a listener waits for a place, now that one was given back. True for one caller.
    pub(crate) fn wants_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.live.waiting.load(Ordering::Relaxed) && self.live.waiting.swap(false, Ordering::Relaxed)
    }

    /// Whether a lasting condition should be reported again.
    pub(crate) fn may_notice(&self, kind: Notice, now: Time) -> bool {
        let slot = &self.live.noticed_at[kind as usize];
        let last = slot.load(Ordering::Relaxed);
        let due = last == 0 || now.since(Time::from_nanos(last)) >= NOTICE_EVERY;
        due && slot
            .compare_exchange(last, now.as_nanos().max(1), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// The lasting conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    NoServer,
    Full,
    AcceptFailed,
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
    /// Traffic reached a server that had failed before.
    Success {
        /// The pool.
        pool: Arc<str>,
        /// The server.
        server: ServerId,
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
