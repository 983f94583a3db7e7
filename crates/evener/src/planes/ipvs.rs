//! The IPVS plane of an instance: the tables of its services, and the thread that writes them into the kernel. The thread
//! starts with the first service.

mod addresses;
mod counting;
mod runner;
mod settings;
mod state;
mod wanted;

use super::xdp::{PoolState, listen_events};
use addresses::Address;
use counting::{Counted, ServersLive};
use evener_core::event::Event;
use evener_core::service::ServiceLive;
use evener_core::snapshot::Snapshot;
use evener_core::spec::{IpvsSpec, Plane, PoolSpec, ServiceSpec, Spec};
use evener_core::table::Tables;
use evener_ipvs::model::{DestinationKey, ServiceKey};
use evener_ipvs::reconcile::Wanted;
use runner::Running;
use state::StateFile;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Receives reports on the thread of the plane.
pub(crate) type OnReport = Arc<dyn Fn(Report) + Send + Sync>;

/// An observation of the plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Something does not work; it is reported once.
    Problem(String),
    /// Another program changed the table; the change was undone.
    Drift(String),
    /// A destination or service was deleted after its connections ended.
    Drained(String),
    /// A sysctl whose value does not fit.
    Setting(String),
    /// An interface has a virtual address now.
    AddressAdded(IpAddr, Arc<str>),
    /// An interface has a virtual address no longer.
    AddressRemoved(IpAddr, Arc<str>),
}

/// The wanted table, and everything that the thread needs with it.
#[derive(Clone, Debug, Default)]
struct Setup {
    spec: IpvsSpec,
    wanted: Wanted,
    counted: HashMap<(ServiceKey, DestinationKey), Counted>,
    /// Addresses on interfaces, with the services behind them.
    addresses: Vec<(Address, ServiceKey)>,
    /// Services whose pool is below the quorum of the configuration.
    without_quorum: BTreeSet<ServiceKey>,
}

impl Setup {
    /// Returns the addresses on interfaces. An address is wanted if one of its services takes clients, and its pool
    /// has the quorum of the configuration.
    fn addresses(&self) -> BTreeMap<Address, bool> {
        let mut addresses = BTreeMap::new();
        for (address, service) in &self.addresses {
            let destinations =
                self.wanted.get(service).into_iter().flat_map(|wanted| wanted.destinations.values());
            *addresses.entry(address.clone()).or_default() |=
                !self.without_quorum.contains(service) && destinations.into_iter().any(|one| one.weight > 0);
        }
        addresses
    }
}

/// The IPVS plane.
pub(crate) struct IpvsPlane {
    on_report: OnReport,
    state: PathBuf,
    running: Option<Running>,
    spec: IpvsSpec,
    tables: Tables,
    services: BTreeMap<Arc<str>, Arc<ServiceLive>>,
    /// Published snapshots of the pools of the services.
    snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
}

impl IpvsPlane {
    /// Creates the plane. `state` is the path of the file that lists what belongs to this instance.
    pub(crate) fn new(state: PathBuf, on_report: OnReport) -> Self {
        Self {
            on_report,
            state,
            running: None,
            spec: IpvsSpec::default(),
            tables: Tables::default(),
            services: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        }
    }

    /// Opens the kernel's IPVS, if a configuration has services of the plane.
    ///
    /// # Errors
    /// The reasons why the configuration cannot be applied. Nothing changed then.
    pub(crate) fn prepare(&mut self, spec: &Spec) -> Result<(), Vec<String>> {
        if spec.services.iter().all(|service| service.plane != Plane::Ipvs) {
            return Ok(());
        }
        if self.running.is_none() {
            let open = Box::new(|| Ok(Box::new(evener_ipvs::Client::open()?) as Box<_>));
            let started =
                Running::start(open, StateFile::new(self.state.clone()), Arc::clone(&self.on_report));
            self.running =
                Some(started.map_err(|error| vec![format!("the IPVS plane cannot start: {error}")])?);
        }
        let Some(running) = &self.running else { return Ok(()) };
        running
            .prepare(wanted::schedulers(spec))
            .map_err(|problem| vec![format!("plane = \"ipvs\" is not available: {problem}")])
    }

    /// Replaces the services. Returns the events.
    pub(crate) fn configure<'a>(
        &mut self,
        spec: &IpvsSpec,
        specs: &[ServiceSpec],
        live: impl Fn(&str) -> Option<Arc<ServiceLive>>,
        pool: impl Fn(&str) -> Option<PoolState<'a>>,
    ) -> Vec<Event> {
        if self.running.is_none() {
            return Vec::new();
        }
        let pools = specs.iter().flat_map(ServiceSpec::pools);
        let pools: BTreeMap<&str, PoolState<'a>> =
            pools.filter_map(|name| Some((&**name, pool(name)?))).collect();
        self.snapshots =
            pools.iter().map(|(name, (_, snapshot))| (Arc::from(*name), Arc::clone(snapshot))).collect();
        self.services =
            specs.iter().filter_map(|spec| Some((spec.name.clone(), live(&spec.name)?))).collect();
        self.spec = spec.clone();
        let state = |name: &str| pools.get(name).map(|(spec, snapshot)| (*spec, &**snapshot));
        let changes = self.tables.configure(specs, state);
        if let Some(running) = &self.running {
            running.configure(self.current());
        }
        listen_events(&changes, specs)
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

    /// Returns the present tables of the services as a table of the kernel.
    fn current(&self) -> Setup {
        let lives: ServersLive = self
            .snapshots
            .iter()
            .flat_map(|(pool, snapshot)| {
                snapshot.servers().iter().map(|server| ((pool.clone(), server.id), Arc::clone(&server.live)))
            })
            .collect();
        let mut setup = Setup { spec: self.spec.clone(), ..Setup::default() };
        for (name, live) in &self.services {
            let Some(table) = self.tables.of(name) else { continue };
            let addresses = wanted::addresses(table);
            for derived in wanted::derive(table) {
                let key = derived.key();
                if !table.pools().all(|(_, pool)| pool.traits().has_quorum) {
                    setup.without_quorum.insert(key);
                }
                if let ServiceKey::Address { address, .. } = key {
                    let here = addresses.iter().filter(|(one, _)| *one == address);
                    setup.addresses.extend(here.map(|one| (one.clone(), key)));
                }
                derived.enter(&mut setup, |pool, id| {
                    Counted::new(lives.get(&(pool, id)).map(Arc::clone), Arc::clone(live))
                });
            }
        }
        // Each address of a service is listed once for each of its ports.
        setup.addresses.sort();
        setup.addresses.dedup();
        setup
    }

    /// Ends the thread. The table of the kernel stays.
    pub(crate) fn leave(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// Returns the event of a report.
pub(crate) fn event_of_ipvs(report: Report) -> Event {
    match report {
        Report::Problem(problem) => Event::IpvsProblem { problem },
        Report::Drift(change) => Event::IpvsDrift { change },
        Report::Drained(entry) => Event::IpvsDrained { entry },
        Report::Setting(advice) => Event::IpvsSetting { advice },
        Report::AddressAdded(address, interface) => Event::IpvsAddressAdded { address, interface },
        Report::AddressRemoved(address, interface) => Event::IpvsAddressRemoved { address, interface },
    }
}

#[cfg(test)]
mod tests;
