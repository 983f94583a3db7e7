//! The XDP plane of an instance: the tables of its services, and the thread that writes them into the kernel. The thread
//! starts with the first service.

use super::Listed;
use evener_core::Time;
use evener_core::event::{Event, Severity};
use evener_core::pool::{Pool, PoolSetting};
use evener_core::service::ServiceLive;
use evener_core::snapshot::Snapshot;
use evener_core::spec::{Plane, PoolSpec, ServiceSpec, Spec};
use evener_core::table::{Edit, PoolTable, ServiceChanges, ServiceTable, TableChange, Tables};
use evener_xdp::associations::AssociationFilter;
use evener_xdp::plane::{AssociationLister, PlaneOptions, Report, Services, Setup};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Receives reports on the thread of the plane.
pub(crate) type OnReport = Arc<dyn Fn(Report) + Send + Sync>;

/// A pool as the plane needs it: its configuration and its published snapshot.
pub(crate) type PoolState<'a> = (&'a PoolSpec, Arc<Snapshot>);

/// The XDP plane.
pub(crate) struct XdpPlane {
    origin: Instant,
    on_report: OnReport,
    running: Option<evener_xdp::plane::Plane>,
    tables: Tables,
    services: BTreeMap<Arc<str>, Arc<ServiceLive>>,
    /// Published snapshots of the pools of the services.
    snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
}

/// The associations of the plane.
pub(crate) struct Associations {
    lister: AssociationLister,
    snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
}

impl Associations {
    /// Lists at most `most` associations that meet the conditions, in addition to the connections and flows of the
    /// workers. `done` is called on the thread of the plane, so it must not block.
    pub(crate) fn list(
        self,
        filter: AssociationFilter,
        most: usize,
        listed: Listed,
        done: impl FnOnce(Listed) + Send + 'static,
    ) {
        let Self { lister, snapshots } = self;
        lister.list(filter, most, move |found| done(listed.with_associations(found, snapshots)));
    }
}

impl XdpPlane {
    pub(crate) fn new(origin: Instant, on_report: OnReport) -> Self {
        Self {
            origin,
            on_report,
            running: None,
            tables: Tables::default(),
            services: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        }
    }

    /// Loads the program and attaches it to new interfaces, if a configuration has services of the plane.
    ///
    /// # Errors
    /// The reasons why the configuration cannot be applied. Nothing changed then.
    pub(crate) fn prepare(&mut self, spec: &Spec) -> Result<(), Vec<String>> {
        let services = || spec.services.iter().filter(|service| service.plane == Plane::Xdp);
        if services().next().is_none() && self.running.is_none() {
            return Ok(());
        }
        if self.running.is_none() {
            let options = PlaneOptions { origin: self.origin, report: Arc::clone(&self.on_report) };
            let started = evener_xdp::plane::Plane::start(options);
            self.running =
                Some(started.map_err(|error| vec![format!("the XDP plane cannot start: {error}")])?);
        }
        let Some(running) = &self.running else { return Ok(()) };
        let of_service = |service: &ServiceSpec| {
            service.xdp.iter().flat_map(|xdp| xdp.interfaces.clone()).collect::<Vec<_>>()
        };
        let tarpit = spec.xdp.tarpit.iter().flat_map(|_| spec.xdp.tarpit_interfaces.clone());
        let interfaces: BTreeSet<Arc<str>> = services().flat_map(of_service).chain(tarpit).collect();
        running.prepare(Setup {
            spec: spec.xdp.clone(),
            interfaces: interfaces.into_iter().collect(),
            services: services().map(|service| configured_table(service, spec)).collect(),
        })
    }

    /// Replaces the services. Returns the events.
    pub(crate) fn configure<'a>(
        &mut self,
        specs: &[ServiceSpec],
        live: impl Fn(&str) -> Option<Arc<ServiceLive>>,
        pool: impl Fn(&str) -> Option<PoolState<'a>>,
    ) -> Vec<Event> {
        let Some(running) = &self.running else { return Vec::new() };
        let pools = specs.iter().flat_map(ServiceSpec::pools);
        let pools: BTreeMap<&Arc<str>, PoolState<'a>> =
            pools.filter_map(|name| Some((name, pool(name)?))).collect();
        self.snapshots =
            pools.iter().map(|(name, (_, snapshot))| ((*name).clone(), Arc::clone(snapshot))).collect();
        self.services =
            specs.iter().filter_map(|spec| Some((spec.name.clone(), live(&spec.name)?))).collect();
        let state = |name: &str| {
            let (_, (spec, snapshot)) = pools.iter().find(|(known, _)| &****known == name)?;
            Some((*spec, &**snapshot))
        };
        let changes = self.tables.configure(specs, state);
        match running.configure(self.current()) {
            Ok(()) => listen_events(&changes, specs),
            Err(problem) => vec![Event::XdpProblem { problem }],
        }
    }

    /// Passes the state of a pool on, after its snapshot was published.
    pub(crate) fn on_pool(&mut self, spec: &PoolSpec, snapshot: &Arc<Snapshot>) {
        let Some(known) = self.snapshots.get_mut(&spec.name) else { return };
        *known = Arc::clone(snapshot);
        if !self.tables.on_pool(spec, snapshot).is_empty()
            && let Some(running) = &self.running
        {
            running.update(self.current());
        }
    }

    /// Returns the associations, if the plane runs.
    pub(crate) fn associations(&self) -> Option<Associations> {
        Some(Associations {
            lister: self.running.as_ref()?.associations(),
            snapshots: self.snapshots.clone(),
        })
    }

    /// Returns the services with their present tables.
    fn current(&self) -> Services {
        let table = |(name, live): (&Arc<str>, &Arc<ServiceLive>)| {
            Some((self.tables.of(name)?.clone(), Arc::clone(live)))
        };
        let servers = self.snapshots.iter().flat_map(|(pool, snapshot)| {
            snapshot.servers().iter().map(|server| ((pool.clone(), server.id), Arc::clone(&server.live)))
        });
        Services { services: self.services.iter().filter_map(table).collect(), servers: servers.collect() }
    }

    /// Ends the thread. The kernel goes on.
    pub(crate) fn leave(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// Returns the table of a service with the servers that the configuration names by address.
fn configured_table(service: &ServiceSpec, spec: &Spec) -> ServiceTable {
    let pool = |name: &Arc<str>| {
        let mut pool = spec.pools.iter().find(|pool| pool.name == *name)?.clone();
        pool.servers.retain(|server| server.endpoint.target().is_some());
        let targets: Vec<_> = pool.servers.iter().filter_map(|server| server.endpoint.target()).collect();
        let setting = PoolSetting { workers: 1, key: 0, first_id: 0 };
        let snapshot = Pool::new(&pool, &targets, setting, Time::ZERO).snapshot()?;
        Some(Arc::new(PoolTable::derive(&pool, &snapshot)))
    };
    ServiceTable::derive(service, pool)
}

/// Returns the events of listen addresses that were added or removed.
pub(super) fn listen_events(changes: &[ServiceChanges], specs: &[ServiceSpec]) -> Vec<Event> {
    let event = |change: &TableChange| match change {
        TableChange::Listen { service, edit: Edit::Add(address) } => {
            let protocol = specs.iter().find(|spec| spec.name == *service)?.protocol.name();
            let (service, address) = (service.clone(), address.to_string());
            Some(Event::Listening { service, protocol, address })
        }
        TableChange::Listen { service, edit: Edit::Remove(address) } => {
            Some(Event::ListenerClosed { service: service.clone(), address: address.to_string() })
        }
        _ => None,
    };
    changes.iter().flat_map(|service| &service.changes).filter_map(event).collect()
}

/// Returns the event of a report.
pub(crate) fn event_of(report: Report) -> Event {
    match report {
        Report::Attached { interface, mode, not_native } => {
            Event::XdpAttached { interface, mode, not_native }
        }
        Report::Problem(problem) => Event::XdpProblem { problem },
        Report::NoNextHop(address, reason) => Event::XdpUnreachable { address, reason },
        Report::NextHop(address) => Event::XdpReachable { address },
        Report::Decision(decision) => {
            let boxed = |address: Option<SocketAddr>| address.map(Box::new);
            Event::PacketDecision {
                severity: Severity(decision.level),
                decision: decision.decision,
                reason: decision.reason,
                service: decision.service,
                protocol: decision.protocol,
                source: boxed(decision.source),
                destination: boxed(decision.destination),
                new_source: boxed(decision.new_source),
                new_destination: boxed(decision.new_destination),
            }
        }
    }
}
