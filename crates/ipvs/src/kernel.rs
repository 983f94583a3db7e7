//! The operations of IPVS, as a trait: the client over netlink and the fake kernel implement it.

pub mod fake;

use crate::error::{Command, Result};
use crate::model::{
    Daemon, DaemonRole, Destination, DestinationKey, DestinationState, Entry, Info, Service, ServiceKey,
    ServiceState, Timeouts,
};

/// Change of the table of services and destinations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Adds a service
    AddService(Service),
    /// Replaces the settings of a service
    SetService(Service),
    /// Deletes a service and its destinations
    DeleteService(ServiceKey),
    /// Adds a destination to a service
    AddDestination(ServiceKey, Destination),
    /// Replaces the settings of a destination
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination; its connections lose their server
    DeleteDestination(ServiceKey, DestinationKey),
}

/// The operations of the kernel's IPVS.
pub trait Kernel {
    /// Applies changes in their order, several in a datagram. A failed change does not stop the following
    /// changes; the result has one element a change.
    ///
    /// # Errors
    /// The outer error is a failure of the transport: no change is known to be applied.
    fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<()>>>;

    /// Applies one change.
    ///
    /// # Errors
    /// The kernel refuses the change.
    fn apply_one(&mut self, change: Change) -> Result<()> {
        self.apply(&[change])?.pop().unwrap_or(Ok(()))
    }

    /// Adds a service.
    ///
    /// # Errors
    /// The service exists, or the kernel has no such scheduler.
    fn add_service(&mut self, service: &Service) -> Result<()> {
        self.apply_one(Change::AddService(service.clone()))
    }

    /// Replaces all settings of a service.
    ///
    /// # Errors
    /// The service does not exist, or the kernel has no such scheduler.
    fn set_service(&mut self, service: &Service) -> Result<()> {
        self.apply_one(Change::SetService(service.clone()))
    }

    /// Deletes a service and its destinations.
    ///
    /// # Errors
    /// The service does not exist.
    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.apply_one(Change::DeleteService(*key))
    }

    /// Adds a destination to a service.
    ///
    /// # Errors
    /// The service does not exist, the destination exists, or its thresholds are out of order.
    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.apply_one(Change::AddDestination(*service, *destination))
    }

    /// Replaces all settings of a destination.
    ///
    /// # Errors
    /// The service or the destination does not exist, or its thresholds are out of order.
    fn set_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.apply_one(Change::SetDestination(*service, *destination))
    }

    /// Deletes a destination. Packets of its connections are dropped from then on; weight 0 lets them finish.
    ///
    /// # Errors
    /// The service or the destination does not exist.
    fn delete_destination(&mut self, service: &ServiceKey, key: &DestinationKey) -> Result<()> {
        self.apply_one(Change::DeleteDestination(*service, *key))
    }

    /// Reads one service.
    ///
    /// # Errors
    /// The service does not exist.
    fn service(&mut self, key: &ServiceKey) -> Result<ServiceState>;

    /// Reads all services, without their destinations.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn services(&mut self) -> Result<Vec<ServiceState>>;

    /// Reads the destinations of a service. A service that does not exist has none, as in the kernel.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>>;

    /// Reads all services with their destinations.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn table(&mut self) -> Result<Vec<Entry>> {
        let mut table = Vec::new();
        for service in self.services()? {
            let destinations = self.destinations(&service.service.key)?;
            table.push(Entry { service, destinations });
        }
        Ok(table)
    }

    /// Starts a synchronisation daemon.
    ///
    /// # Errors
    /// A daemon of the role runs, or the interface does not exist.
    fn start_daemon(&mut self, daemon: &Daemon) -> Result<()>;

    /// Stops the synchronisation daemon of a role; `sync_id` is the running daemon's.
    ///
    /// # Errors
    /// No daemon of the role runs.
    fn stop_daemon(&mut self, role: DaemonRole, sync_id: u32) -> Result<()>;

    /// Reads the running synchronisation daemons.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn daemons(&mut self) -> Result<Vec<Daemon>>;

    /// Changes the timeouts of connections; a timeout of 0 stays as it is.
    ///
    /// # Errors
    /// The kernel refuses the values.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()>;

    /// Reads the timeouts of connections.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn timeouts(&mut self) -> Result<Timeouts>;

    /// Reads the properties of the kernel's IPVS.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn info(&mut self) -> Result<Info>;

    /// Makes sure that the kernel has a scheduler and a persistence engine, and lets it load their modules. The
    /// table stays as it is.
    ///
    /// # Errors
    /// The kernel does not have them.
    fn find_scheduler(&mut self, scheduler: &str, engine: Option<&str>) -> Result<()>;

    /// Sets the statistics of one service or of all services to zero.
    ///
    /// # Errors
    /// The service does not exist.
    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()>;

    /// Deletes all services.
    ///
    /// # Errors
    /// The process lacks a capability.
    fn flush(&mut self) -> Result<()>;
}

impl Change {
    /// Command of the change.
    #[must_use]
    pub fn command(&self) -> Command {
        match self {
            Self::AddService(_) => Command::AddService,
            Self::SetService(_) => Command::SetService,
            Self::DeleteService(_) => Command::DeleteService,
            Self::AddDestination(..) => Command::AddDestination,
            Self::SetDestination(..) => Command::SetDestination,
            Self::DeleteDestination(..) => Command::DeleteDestination,
        }
    }

    /// Returns the changed entry for messages.
    #[must_use]
    pub fn entry(&self) -> String {
        match self {
            Self::AddService(service) | Self::SetService(service) => service.key.to_string(),
            Self::DeleteService(key) => key.to_string(),
            Self::AddDestination(service, destination) | Self::SetDestination(service, destination) => {
                format!("{} of {service}", destination.key)
            }
            Self::DeleteDestination(service, key) => format!("{key} of {service}"),
        }
    }
}
