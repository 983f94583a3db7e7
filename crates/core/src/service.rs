//! A service while it runs, for every plane: its identity, its occupancy and its counters. The settings that only
//! one plane has belong to that plane.

use crate::counters::{ServiceCounters, Sharded};
use crate::limits::Occupancy;
use crate::spec::Protocol;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// State of a service that outlives reloads. The supervisor and the plane of the service share it.
///
/// ```
/// use evener_core::service::ServiceLive;
/// use evener_core::spec::Protocol;
///
/// let service = ServiceLive::new("web".into(), Protocol::Tcp, 2);
/// let connection = service.connections.enter(100);
/// service.counters.of(1).connections.one();
/// assert_eq!((service.active(), service.counters.total("connections")), (1, 1));
/// drop(connection);
/// assert_eq!((service.active(), service.counters.total("connections")), (0, 1));
/// ```
#[derive(Debug)]
pub struct ServiceLive {
    /// The name, unique among the services.
    pub name: Arc<str>,
    /// The protocol. A service with another protocol is another service.
    pub protocol: Protocol,
    /// Number of present TCP connections.
    pub connections: Occupancy,
    /// Pending connection attempts to servers; counted with `pending_max` only.
    pub pending: Occupancy,
    /// Unused pre-opened connections to servers.
    pub warm: Occupancy,
    /// Number of present UDP flows.
    pub flows: AtomicU32,
    /// Number of present associations of the XDP plane or of connections in IPVS, as it was counted last.
    pub associations: AtomicU32,
    /// The counters, with a shard for each worker.
    pub counters: Sharded<ServiceCounters>,
}

impl ServiceLive {
    /// Creates the state of a new service.
    #[must_use]
    pub fn new(name: Arc<str>, protocol: Protocol, workers: usize) -> Self {
        Self {
            name,
            protocol,
            connections: Occupancy::default(),
            pending: Occupancy::default(),
            warm: Occupancy::default(),
            flows: AtomicU32::new(0),
            associations: AtomicU32::new(0),
            counters: Sharded::new(workers),
        }
    }

    /// Returns the present number of UDP flows.
    #[must_use]
    pub fn active_flows(&self) -> u32 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Returns the present number of connections, flows and queries.
    #[must_use]
    pub fn active(&self) -> u64 {
        u64::from(self.connections.active()) + u64::from(self.active_flows())
    }
}
