//! Reconciliation of a wanted table with the table of the kernel: the ordered list of changes, and nothing else. Only
//! differences are changed.
//!
//! Entries that are neither wanted nor recorded as [`Owned`] belong to other programs and stay, unless the whole table is
//! owned. A destination that is no longer wanted drains first: it gets the weight 0, and is deleted when it has no
//! connections or after a timeout. The weight of a wanted destination is always the wanted one, so the 0 of a drain ends
//! when the destination returns, also if the process was replaced in between.
//!
//! Destinations are added before others stop, so a service with destinations is never left without one.

mod owned;

pub use owned::{Owned, OwnedError};

use crate::kernel::Change;
use crate::model::{Destination, DestinationKey, DestinationState, Entry, Forwarding, Service, ServiceKey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The wanted services by their keys.
pub type Wanted = BTreeMap<ServiceKey, WantedService>;

/// A wanted service with its destinations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WantedService {
    /// The service
    pub service: Service,
    /// The destinations
    pub destinations: BTreeMap<DestinationKey, Destination>,
    /// Destinations that are deleted without a drain: their connections are lost anyway, or are to be closed.
    pub without_drain: BTreeSet<DestinationKey>,
    /// Maximum time for which a destination that is no longer wanted keeps its connections
    pub drain_timeout: Duration,
}

impl WantedService {
    /// A service without destinations.
    #[must_use]
    pub fn new(service: Service, drain_timeout: Duration) -> Self {
        Self { service, destinations: BTreeMap::new(), without_drain: BTreeSet::new(), drain_timeout }
    }
}

/// A change of the kernel's table with its reason.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// The change
    pub change: Change,
    /// The reason
    pub reason: Reason,
}

/// Reason of a change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The kernel has no such entry.
    Missing,
    /// The kernel has another value, in words.
    Differs(String),
    /// The kernel has the entry, and it is not wanted.
    Unwanted,
    /// The drain of the entry ended.
    Drained,
}

/// State that a reconciliation has between its rounds.
#[derive(Clone, Debug, Default)]
pub struct Reconciler {
    owned: Owned,
    /// All entries of the kernel's table belong to the wanted table.
    owns_table: bool,
    /// Beginnings of the present drains.
    draining: BTreeMap<(ServiceKey, DestinationKey), Duration>,
    /// Drain timeouts of services, also of services that are no longer wanted.
    timeouts: BTreeMap<ServiceKey, Duration>,
}

/// The changes by the stage of a safe order.
#[derive(Default)]
struct Stages {
    /// New services, and destinations that begin to take clients.
    opening: Vec<Step>,
    /// Other values.
    setting: Vec<Step>,
    /// Destinations that stop taking clients.
    closing: Vec<Step>,
    /// Deletions.
    deleting: Vec<Step>,
}

impl Reconciler {
    /// Drain timeout of a service that an earlier process left.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(900);

    /// Continues with the entries that an earlier process recorded.
    #[must_use]
    pub fn new(owned: Owned) -> Self {
        Self { owned, ..Self::default() }
    }

    /// Entries that belong to this instance. They have to be stored before the changes of a plan are applied, so that a
    /// process that is killed leaves no entry that its successor does not recognize.
    #[must_use]
    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    /// Sets whether all entries of the kernel's table belong to the wanted table.
    pub fn own_table(&mut self, owns_table: bool) {
        self.owns_table = owns_table;
    }

    /// Number of destinations that drain.
    #[must_use]
    pub fn draining(&self) -> usize {
        self.draining.len()
    }

    /// Returns the changes that lead from the kernel's table to the wanted one, in a safe order. `now` is the time since
    /// a fixed moment.
    pub fn plan(&mut self, wanted: &Wanted, kernel: &[Entry], now: Duration) -> Vec<Step> {
        let mut stages = Stages::default();
        let by_key: BTreeMap<ServiceKey, &Entry> =
            kernel.iter().map(|entry| (entry.service.service.key, entry)).collect();
        for (key, wanted) in wanted {
            self.timeouts.insert(*key, wanted.drain_timeout);
            self.owned.add(*key, wanted.destinations.keys().copied());
            self.service(wanted, by_key.get(key).copied(), now, &mut stages);
        }
        for (key, entry) in by_key.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
            if self.owns_table || self.owned.has_service(key) {
                self.unwanted_service(entry, now, &mut stages);
            }
        }
        self.forget(wanted, &by_key);
        let Stages { opening, setting, closing, deleting } = stages;
        [opening, setting, closing, deleting].into_iter().flatten().collect()
    }

    fn service(&mut self, wanted: &WantedService, found: Option<&Entry>, now: Duration, stages: &mut Stages) {
        let key = wanted.service.key;
        match found.map(|entry| &entry.service.service) {
            None => stages
                .opening
                .push(Step { change: Change::AddService(wanted.service.clone()), reason: Reason::Missing }),
            Some(found) if *found != wanted.service => stages.setting.push(Step {
                change: Change::SetService(wanted.service.clone()),
                reason: Reason::Differs(service_text(found)),
            }),
            Some(_) => {}
        }
        let found: BTreeMap<DestinationKey, &DestinationState> = found
            .into_iter()
            .flat_map(|entry| &entry.destinations)
            .map(|one| (one.destination.key, one))
            .collect();
        for (destination, wanted) in &wanted.destinations {
            self.draining.remove(&(key, *destination));
            stages.destination(key, wanted, found.get(destination).map(|found| &found.destination));
        }
        let unwanted =
            found.into_iter().filter(|(destination, _)| !wanted.destinations.contains_key(destination));
        for (destination, found) in unwanted {
            if !self.owns_table && !self.owned.has_destination(&key, &destination) {
                continue;
            }
            if wanted.without_drain.contains(&destination) {
                let change = Change::DeleteDestination(key, destination);
                stages.deleting.push(Step { change, reason: Reason::Unwanted });
            } else {
                self.drain(key, found, now, stages);
            }
        }
    }

    /// Drains the destinations of a service that is not wanted, then deletes it. A service with destinations of other
    /// programs stays.
    fn unwanted_service(&mut self, entry: &Entry, now: Duration, stages: &mut Stages) {
        let key = entry.service.service.key;
        let mut ended = 0;
        for found in &entry.destinations {
            if self.owns_table || self.owned.has_destination(&key, &found.destination.key) {
                ended += usize::from(self.drain(key, found, now, stages));
            }
        }
        if ended == entry.destinations.len() {
            stages.deleting.push(Step { change: Change::DeleteService(key), reason: Reason::Drained });
        }
    }

    /// Drains a destination, and deletes it when the drain has ended. Returns true in this case.
    fn drain(
        &mut self,
        service: ServiceKey,
        found: &DestinationState,
        now: Duration,
        stages: &mut Stages,
    ) -> bool {
        let key = found.destination.key;
        if found.destination.weight > 0 {
            self.draining.entry((service, key)).or_insert(now);
            let stopped = found.destination.weight(0);
            let change = Change::SetDestination(service, stopped);
            stages.closing.push(Step { change, reason: Reason::Unwanted });
            return false;
        }
        let Some(began) = self.draining.get(&(service, key)).copied() else {
            // An earlier process began to drain it, or another program set the weight.
            self.draining.insert((service, key), now);
            return false;
        };
        let timeout = self.timeouts.get(&service).copied().unwrap_or(Self::DRAIN_TIMEOUT);
        let has_connections = found.active > 0 || found.inactive > 0 || found.persistent > 0;
        let is_over = !has_connections || now.saturating_sub(began) >= timeout;
        if is_over {
            let change = Change::DeleteDestination(service, key);
            stages.deleting.push(Step { change, reason: Reason::Drained });
        }
        is_over
    }

    /// Forgets entries that are neither wanted nor in the kernel.
    fn forget(&mut self, wanted: &Wanted, kernel: &BTreeMap<ServiceKey, &Entry>) {
        let in_kernel = |service: &ServiceKey, key: &DestinationKey| {
            let entry = kernel.get(service);
            entry.is_some_and(|entry| entry.destinations.iter().any(|found| found.destination.key == *key))
        };
        let wants = |service: &ServiceKey, key: &DestinationKey| {
            wanted.get(service).is_some_and(|wanted| wanted.destinations.contains_key(key))
        };
        self.draining.retain(|(service, key), _| in_kernel(service, key));
        self.timeouts.retain(|service, _| wanted.contains_key(service) || kernel.contains_key(service));
        // Sets make this independent of the order of the kernel, which is not sorted.
        let present: BTreeSet<(ServiceKey, DestinationKey)> = kernel
            .iter()
            .flat_map(|(service, entry)| {
                entry.destinations.iter().map(|found| (*service, found.destination.key))
            })
            .collect();
        self.owned.retain(
            |service| wanted.contains_key(service) || kernel.contains_key(service),
            |service, key| wants(service, key) || present.contains(&(*service, *key)),
        );
    }
}

impl Stages {
    fn destination(&mut self, service: ServiceKey, wanted: &Destination, found: Option<&Destination>) {
        let Some(found) = found else {
            let change = Change::AddDestination(service, *wanted);
            return self.opening.push(Step { change, reason: Reason::Missing });
        };
        if is_same(found, wanted) {
            return;
        }
        let stage = match (found.weight, wanted.weight) {
            (0, 1..) => &mut self.opening,
            (1.., 0) => &mut self.closing,
            _ => &mut self.setting,
        };
        let change = Change::SetDestination(service, *wanted);
        stage.push(Step { change, reason: Reason::Differs(destination_text(found)) });
    }
}

/// Returns true if the kernel has a destination as wanted. It delivers to addresses of the machine itself locally,
/// whatever the wanted way is.
fn is_same(found: &Destination, wanted: &Destination) -> bool {
    let forwarding =
        if found.forwarding == Forwarding::Local { Forwarding::Local } else { wanted.forwarding };
    *found == Destination { forwarding, ..*wanted }
}

fn service_text(service: &Service) -> String {
    let Service { key: _, scheduler, flags, persistence } = service;
    let persistence = persistence.as_ref().map_or("no persistence".to_owned(), |persistence| {
        let engine =
            persistence.engine.as_deref().map(|engine| format!(", engine {engine}")).unwrap_or_default();
        format!("persistence {:?} /{}{engine}", persistence.timeout, persistence.prefix)
    });
    let flags = [
        (flags.one_packet, ", one_packet"),
        (flags.scheduler_1, ", flag 1"),
        (flags.scheduler_2, ", flag 2"),
        (flags.scheduler_3, ", flag 3"),
    ];
    let flags: String = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    format!("scheduler {scheduler}, {persistence}{flags}")
}

fn destination_text(destination: &Destination) -> String {
    let Destination { key: _, forwarding, weight, upper_threshold, lower_threshold } = destination;
    let tunnel = match forwarding {
        Forwarding::Tunnel(tunnel) => format!(" {tunnel:?}"),
        _ => String::new(),
    };
    let thresholds = match (upper_threshold, lower_threshold) {
        (0, 0) => String::new(),
        (upper, lower) => format!(", thresholds {upper} and {lower}"),
    };
    format!("weight {weight}, {}{tunnel}{thresholds}", forwarding.name())
}

impl Step {
    /// Returns the entry with the value that was found and the value that is set: `10.0.0.1:80 of TCP 192.0.2.1:80:
    /// found weight 5, Masq; set weight 1, Masq`.
    #[must_use]
    pub fn describe(&self) -> String {
        let found = match &self.reason {
            Reason::Missing => "missing".to_owned(),
            Reason::Differs(found) => found.clone(),
            Reason::Unwanted | Reason::Drained => "present".to_owned(),
        };
        let set = match &self.change {
            Change::AddService(service) => format!("added with {}", service_text(service)),
            Change::SetService(service) => format!("set {}", service_text(service)),
            Change::AddDestination(_, destination) => format!("added with {}", destination_text(destination)),
            Change::SetDestination(_, destination) => format!("set {}", destination_text(destination)),
            Change::DeleteService(_) | Change::DeleteDestination(..) => "deleted".to_owned(),
        };
        format!("{}: found {found}; {set}", self.change.entry())
    }
}

#[cfg(test)]
mod tests;
