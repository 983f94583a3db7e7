//! Services, destinations and settings of IPVS as values. No value of these types depends on netlink.

mod destination;
mod service;
mod settings;
mod statistics;

pub use destination::{Destination, DestinationKey, DestinationState, Forwarding, Tunnel, TunnelFlags};
pub use service::{Family, Flags, Persistence, Protocol, Service, ServiceKey, ServiceState};
pub use settings::{Daemon, DaemonRole, Info, Timeouts};
pub use statistics::Statistics;

/// A service of the kernel with its destinations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The service.
    pub service: ServiceState,
    /// The destinations.
    pub destinations: Vec<DestinationState>,
}
