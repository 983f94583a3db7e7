//! A kernel in memory for ordinary tests. It behaves as the real kernel does: same errors, whole entries in
//! changes, old statistics of a destination that is added again.

use super::{Change, Kernel};
use crate::error::{Command, Error, ErrorKind, Result};
use crate::model::{
    Daemon, DaemonRole, Destination, DestinationKey, DestinationState, Entry, Forwarding, Info, Service,
    ServiceKey, ServiceState, Statistics, Timeouts, Tunnel,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Schedulers of Debian's kernel.
const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos"];
const ENGINES: [&str; 1] = ["sip"];

/// IPVS in memory.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    entries: Vec<Entry>,
    /// Statistics of deleted destinations, which the kernel remembers for a while.
    trash: Vec<(ServiceKey, DestinationKey, Statistics)>,
    daemons: BTreeMap<DaemonRole, Daemon>,
    timeouts: Timeouts,
    messages: BTreeMap<Command, usize>,
    failures: Vec<(Command, libc::c_int)>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        let timeouts = Timeouts {
            tcp: Duration::from_secs(900),
            tcp_fin: Duration::from_secs(120),
            udp: Duration::from_secs(300),
        };
        Self {
            entries: Vec::new(),
            trash: Vec::new(),
            daemons: BTreeMap::new(),
            timeouts,
            messages: BTreeMap::new(),
            failures: Vec::new(),
        }
    }
}

impl FakeKernel {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of messages of a command since the last [`Self::forget_messages`].
    #[must_use]
    pub fn messages(&self, command: Command) -> usize {
        self.messages.get(&command).copied().unwrap_or_default()
    }

    /// Number of messages that wrote or tried to.
    #[must_use]
    pub fn writes(&self) -> usize {
        let is_reading = |command: &Command| {
            matches!(
                command,
                Command::GetService
                    | Command::GetDestinations
                    | Command::GetDaemons
                    | Command::GetTimeouts
                    | Command::GetInfo
                    | Command::FindScheduler
            )
        };
        self.messages.iter().filter(|(command, _)| !is_reading(command)).map(|(_, count)| count).sum()
    }

    /// Counts messages from 0 again.
    pub fn forget_messages(&mut self) {
        self.messages.clear();
    }

    /// Makes the next message of a command fail with an `errno`.
    pub fn fail_next(&mut self, command: Command, errno: i32) {
        self.failures.push((command, errno));
    }

    /// Sets the numbers of connections of a destination, as traffic does.
    ///
    /// # Panics
    /// The destination does not exist.
    pub fn set_connections(
        &mut self,
        service: &ServiceKey,
        destination: &DestinationKey,
        active: u32,
        inactive: u32,
    ) {
        let state = self.state(service, destination).expect("the test added the destination");
        (state.active, state.inactive) = (active, inactive);
    }

    /// Sets the statistics of a destination, as traffic does.
    ///
    /// # Panics
    /// The destination does not exist.
    pub fn set_statistics(&mut self, service: &ServiceKey, key: &DestinationKey, statistics: Statistics) {
        self.state(service, key).expect("the test added the destination").statistics = statistics;
    }

    fn state(&mut self, service: &ServiceKey, key: &DestinationKey) -> Option<&mut DestinationState> {
        let entry = self.entry(service)?;
        entry.destinations.iter_mut().find(|state| state.destination.key == *key)
    }

    fn entry(&mut self, key: &ServiceKey) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.service.service.key == *key)
    }

    fn count(&mut self, command: Command) -> std::result::Result<(), ErrorKind> {
        *self.messages.entry(command).or_default() += 1;
        let Some(at) = self.failures.iter().position(|(failing, _)| *failing == command) else {
            return Ok(());
        };
        let (_, errno) = self.failures.remove(at);
        Err(match errno {
            libc::EPERM => ErrorKind::NotPermitted,
            errno => std::io::Error::from_raw_os_error(errno).into(),
        })
    }

    fn change(&mut self, change: &Change) -> std::result::Result<(), ErrorKind> {
        self.count(change.command())?;
        match change {
            Change::AddService(service) => {
                check_service(service)?;
                if self.entry(&service.key).is_some() {
                    return Err(ErrorKind::AlreadyExists);
                }
                let service = ServiceState { service: service.clone(), statistics: Statistics::default() };
                self.entries.push(Entry { service, destinations: Vec::new() });
            }
            Change::SetService(service) => {
                check_service(service)?;
                let entry = self.entry(&service.key).ok_or(ErrorKind::NoSuchService)?;
                entry.service.service = service.clone();
            }
            Change::DeleteService(key) => {
                self.entry(key).ok_or(ErrorKind::NoSuchService)?;
                self.entries.retain(|entry| entry.service.service.key != *key);
                self.trash.retain(|(service, ..)| service != key);
            }
            Change::AddDestination(service, destination) => self.add(service, destination)?,
            Change::SetDestination(service, destination) => {
                self.entry(service).ok_or(ErrorKind::NoSuchService)?;
                check_destination(service, destination)?;
                let state = self.state(service, &destination.key).ok_or(ErrorKind::NoSuchDestination)?;
                state.destination = *destination;
            }
            Change::DeleteDestination(service, key) => {
                self.entry(service).ok_or(ErrorKind::NoSuchService)?;
                let state = self.state(service, key).ok_or(ErrorKind::NoSuchDestination)?;
                let statistics = state.statistics;
                self.trash.push((*service, *key, statistics));
                let entry = self.entry(service).ok_or(ErrorKind::NoSuchService)?;
                entry.destinations.retain(|state| state.destination.key != *key);
            }
        }
        Ok(())
    }

    fn add(&mut self, service: &ServiceKey, destination: &Destination) -> std::result::Result<(), ErrorKind> {
        self.entry(service).ok_or(ErrorKind::NoSuchService)?;
        check_destination(service, destination)?;
        if self.state(service, &destination.key).is_some() {
            return Err(ErrorKind::AlreadyExists);
        }
        let old = self
            .trash
            .iter()
            .position(|(old_service, key, _)| old_service == service && *key == destination.key)
            .map(|at| self.trash.remove(at).2);
        let statistics = old.unwrap_or_default();
        let state =
            DestinationState { destination: *destination, active: 0, inactive: 0, persistent: 0, statistics };
        self.entry(service).ok_or(ErrorKind::NoSuchService)?.destinations.push(state);
        Ok(())
    }
}

fn check_scheduler(scheduler: &str, engine: Option<&str>) -> std::result::Result<(), ErrorKind> {
    if SCHEDULERS.contains(&scheduler) && engine.is_none_or(|engine| ENGINES.contains(&engine)) {
        return Ok(());
    }
    Err(ErrorKind::NoSuchScheduler { scheduler: scheduler.to_owned(), engine: engine.map(str::to_owned) })
}

fn check_service(service: &Service) -> std::result::Result<(), ErrorKind> {
    let engine = service.persistence.as_ref().and_then(|persistence| persistence.engine.as_deref());
    check_scheduler(&service.scheduler, engine)?;
    match service.key {
        ServiceKey::Fwmark { mark: 0, .. } => Err(ErrorKind::Invalid("a firewall mark is not 0")),
        ServiceKey::Address { port: 0, .. } if service.persistence.is_none() => {
            Err(ErrorKind::Invalid("a service of every port needs persistence"))
        }
        _ => Ok(()),
    }
}

fn check_destination(service: &ServiceKey, destination: &Destination) -> std::result::Result<(), ErrorKind> {
    let is_tunnel = matches!(destination.forwarding, Forwarding::Tunnel(_));
    if destination.key.family() != service.family() && !is_tunnel {
        return Err(ErrorKind::Invalid("a destination of another family needs a tunnel"));
    }
    if matches!(destination.forwarding, Forwarding::Tunnel(Tunnel::Gue { port: 0, .. })) {
        return Err(ErrorKind::Invalid("a GUE tunnel needs a port"));
    }
    if destination.weight > i32::MAX.unsigned_abs()
        || destination.lower_threshold > destination.upper_threshold
    {
        return Err(ErrorKind::ThresholdsOutOfOrder);
    }
    Ok(())
}

impl Kernel for FakeKernel {
    fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<()>>> {
        let mut results = Vec::new();
        for change in changes {
            let result = self.change(change);
            results.push(result.map_err(|kind| Error::new(change.command(), change.entry(), kind)));
        }
        Ok(results)
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceState> {
        let error = |kind| Error::new(Command::GetService, key.to_string(), kind);
        self.count(Command::GetService).map_err(error)?;
        let entry = self.entry(key).ok_or_else(|| error(ErrorKind::NoSuchService))?;
        Ok(entry.service.clone())
    }

    fn services(&mut self) -> Result<Vec<ServiceState>> {
        self.count(Command::GetService).map_err(|kind| Error::new(Command::GetService, "", kind))?;
        Ok(self.entries.iter().map(|entry| entry.service.clone()).collect())
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>> {
        self.count(Command::GetDestinations)
            .map_err(|kind| Error::new(Command::GetDestinations, service.to_string(), kind))?;
        Ok(self.entry(service).map(|entry| entry.destinations.clone()).unwrap_or_default())
    }

    fn start_daemon(&mut self, daemon: &Daemon) -> Result<()> {
        let error = |kind| Error::new(Command::StartDaemon, daemon.role.name(), kind);
        self.count(Command::StartDaemon).map_err(error)?;
        if self.daemons.contains_key(&daemon.role) {
            return Err(error(ErrorKind::AlreadyExists));
        }
        self.daemons.insert(daemon.role, daemon.clone());
        Ok(())
    }

    fn stop_daemon(&mut self, role: DaemonRole, _sync_id: u32) -> Result<()> {
        let error = |kind| Error::new(Command::StopDaemon, role.name(), kind);
        self.count(Command::StopDaemon).map_err(error)?;
        self.daemons.remove(&role).map(|_| ()).ok_or_else(|| error(ErrorKind::NoSuchDaemon))
    }

    fn daemons(&mut self) -> Result<Vec<Daemon>> {
        self.count(Command::GetDaemons).map_err(|kind| Error::new(Command::GetDaemons, "", kind))?;
        Ok(self.daemons.values().cloned().collect())
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.count(Command::SetTimeouts).map_err(|kind| Error::new(Command::SetTimeouts, "", kind))?;
        let set = |old: &mut Duration, new: Duration| {
            if new.as_secs() > 0 {
                *old = Duration::from_secs(new.as_secs());
            }
        };
        set(&mut self.timeouts.tcp, timeouts.tcp);
        set(&mut self.timeouts.tcp_fin, timeouts.tcp_fin);
        set(&mut self.timeouts.udp, timeouts.udp);
        Ok(())
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.count(Command::GetTimeouts).map_err(|kind| Error::new(Command::GetTimeouts, "", kind))?;
        Ok(self.timeouts)
    }

    fn info(&mut self) -> Result<Info> {
        self.count(Command::GetInfo).map_err(|kind| Error::new(Command::GetInfo, "", kind))?;
        Ok(Info { version: (1, 2, 1), connection_table_size: 4096 })
    }

    fn find_scheduler(&mut self, scheduler: &str, engine: Option<&str>) -> Result<()> {
        let found = self.count(Command::FindScheduler).and_then(|()| check_scheduler(scheduler, engine));
        found.map_err(|kind| Error::new(Command::FindScheduler, "", kind))
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        let name = service.map(ToString::to_string).unwrap_or_default();
        let error = |kind| Error::new(Command::Zero, name.clone(), kind);
        self.count(Command::Zero).map_err(error)?;
        if service.is_some_and(|key| self.entry(key).is_none()) {
            return Err(error(ErrorKind::NoSuchService));
        }
        let entries = self.entries.iter_mut();
        for entry in entries.filter(|entry| service.is_none_or(|key| entry.service.service.key == *key)) {
            entry.service.statistics = Statistics::default();
            entry.destinations.iter_mut().for_each(|state| state.statistics = Statistics::default());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.count(Command::Flush).map_err(|kind| Error::new(Command::Flush, "", kind))?;
        self.entries.clear();
        self.trash.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> std::net::SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn errors_are_the_kernels() {
        let mut kernel = FakeKernel::new();
        let key = ServiceKey::tcp(address("10.0.0.1:80"));
        let service = Service::new(key);
        let destination = Destination::new(address("10.0.0.2:80"), Forwarding::Nat);
        let error = |result: Result<()>| result.unwrap_err().to_string();
        assert_eq!(
            error(kernel.add_destination(&key, &destination)),
            "add destination 10.0.0.2:80 of TCP 10.0.0.1:80: no such service"
        );
        kernel.add_service(&service).unwrap();
        assert_eq!(error(kernel.add_service(&service)), "add service TCP 10.0.0.1:80: it exists already");
        let unknown = service.scheduler("unknown");
        assert_eq!(
            error(kernel.set_service(&unknown)),
            "change service TCP 10.0.0.1:80: the kernel has no scheduler `unknown`"
        );
        assert!(error(kernel.set_destination(&key, &destination)).ends_with("no such destination"));
        assert!(
            error(kernel.add_destination(&key, &destination.thresholds(3, 2))).contains("lower threshold")
        );
        kernel.add_destination(&key, &destination).unwrap();
        assert_eq!(kernel.messages(Command::AddDestination), 3);
    }

    #[test]
    fn a_destination_that_is_added_again_has_its_old_statistics() {
        let mut kernel = FakeKernel::new();
        let key = ServiceKey::tcp(address("10.0.0.1:80"));
        let destination = Destination::new(address("10.0.0.2:80"), Forwarding::Nat);
        kernel.add_service(&Service::new(key)).unwrap();
        kernel.add_destination(&key, &destination).unwrap();
        let statistics = Statistics { connections: 7, ..Statistics::default() };
        kernel.set_statistics(&key, &destination.key, statistics);
        kernel.delete_destination(&key, &destination.key).unwrap();
        kernel.add_destination(&key, &destination).unwrap();
        assert_eq!(kernel.destinations(&key).unwrap()[0].statistics, statistics);
    }
}
