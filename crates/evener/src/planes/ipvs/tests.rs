//! The thread of the plane with a kernel in memory.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::counting::Counted;
use super::runner::Running;
use super::state::StateFile;
use super::{Report, Setup, wanted};
use evener_core::health::Probe;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::service::ServiceLive;
use evener_core::spec::{
    AdminState, CheckKind, CheckSpec, IpvsPersistence, IpvsServiceSpec, OnDown, Plane, Policy, PoolSpec,
    Protocol, QuorumSpec, ServerSpec, ServiceSpec,
};
use evener_core::table::{PoolTable, ServiceTable};
use evener_core::time::Time;
use evener_ipvs::fake::FakeKernel;
use evener_ipvs::model::{
    Daemon, DaemonRole, DestinationState, Info, Service, ServiceKey, ServiceState, Timeouts,
};
use evener_ipvs::reconcile::{Reconciler, WantedService};
use evener_ipvs::{Change, Kernel, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A kernel in memory that the test and the plane share.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<FakeKernel>>);

impl Shared {
    fn with<T>(&self, use_it: impl FnOnce(&mut FakeKernel) -> T) -> T {
        use_it(&mut self.0.lock().unwrap())
    }

    /// Returns the services with their schedulers, and their destinations with their weights.
    fn listing(&self) -> Vec<String> {
        let table = self.with(|kernel| kernel.table().unwrap());
        let mut lines = Vec::new();
        for entry in table {
            lines.push(format!("{} {}", entry.service.service.key, entry.service.service.scheduler));
            let mut destinations: Vec<String> = entry
                .destinations
                .iter()
                .map(|one| format!("-> {} {}", one.destination.key, one.destination.weight))
                .collect();
            destinations.sort();
            lines.extend(destinations);
        }
        lines
    }

    fn expect(&self, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.listing() != expected {
            assert!(Instant::now() < deadline, "{:#?}", self.listing());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Kernel for Shared {
    fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<()>>> {
        self.with(|kernel| kernel.apply(changes))
    }
    fn service(&mut self, key: &ServiceKey) -> Result<ServiceState> {
        self.with(|kernel| kernel.service(key))
    }
    fn services(&mut self) -> Result<Vec<ServiceState>> {
        self.with(Kernel::services)
    }
    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>> {
        self.with(|kernel| kernel.destinations(service))
    }
    fn start_daemon(&mut self, daemon: &Daemon) -> Result<()> {
        self.with(|kernel| kernel.start_daemon(daemon))
    }
    fn stop_daemon(&mut self, role: DaemonRole, sync_id: u32) -> Result<()> {
        self.with(|kernel| kernel.stop_daemon(role, sync_id))
    }
    fn daemons(&mut self) -> Result<Vec<Daemon>> {
        self.with(Kernel::daemons)
    }
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.with(|kernel| kernel.set_timeouts(timeouts))
    }
    fn timeouts(&mut self) -> Result<Timeouts> {
        self.with(Kernel::timeouts)
    }
    fn info(&mut self) -> Result<Info> {
        self.with(Kernel::info)
    }
    fn find_scheduler(&mut self, scheduler: &str, engine: Option<&str>) -> Result<()> {
        self.with(|kernel| kernel.find_scheduler(scheduler, engine))
    }
    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        self.with(|kernel| kernel.zero(service))
    }
    fn flush(&mut self) -> Result<()> {
        self.with(Kernel::flush)
    }
}

/// A directory that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evener-ipvs-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Starts the thread with the state file of the directory.
    fn start(&self, kernel: &Shared) -> (Running, Receiver<Report>) {
        let (sender, reports) = channel();
        let kernel = kernel.clone();
        let open = Box::new(move || Ok(Box::new(kernel.clone()) as Box<dyn Kernel + Send>));
        let state = StateFile::new(self.0.join("state"));
        let report = Arc::new(move |report| drop(sender.send(report)));
        let running = Running::start(open, state, report).unwrap();
        running.prepare(BTreeSet::new()).unwrap();
        (running, reports)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the table of a service with servers of these weights.
fn table(settings: IpvsServiceSpec, pool: &PoolSpec) -> ServiceTable {
    table_after(settings, pool, &[])
}

/// Returns the table of a service after the checks of these servers failed.
fn table_after(settings: IpvsServiceSpec, pool: &PoolSpec, failed: &[usize]) -> ServiceTable {
    let targets: Vec<_> = pool.servers.iter().map(|server| server.endpoint.target().unwrap()).collect();
    let setting = PoolSetting { workers: 1, key: 0, first_id: 0 };
    let mut running = Pool::new(pool, &targets, setting, Time::ZERO);
    let ids: Vec<_> = running.servers().iter().map(|server| server.id).collect();
    for at in failed {
        running.on_probe(Time::ZERO, ids[*at], Probe::Fail("refused".into()));
    }
    let snapshot = running.snapshot().unwrap();
    let rows = Arc::new(PoolTable::derive(pool, &snapshot));
    let service = ServiceSpec {
        listen: vec!["192.0.2.1:80".parse().unwrap()],
        plane: Plane::Ipvs,
        ipvs: Some(Arc::new(settings)),
        pool: Some("web".into()),
        ..ServiceSpec::new("s", Protocol::Tcp)
    };
    ServiceTable::derive(&service, |_| Some(Arc::clone(&rows)))
}

fn pool(servers: &[(&str, u32)]) -> PoolSpec {
    let server = |(address, weight): &(&str, u32)| ServerSpec {
        weight: *weight,
        ..ServerSpec::new(address.parse().unwrap())
    };
    PoolSpec { policy: Policy::Weighted, ..PoolSpec::new("web", servers.iter().map(server).collect()) }
}

fn setup(servers: &[(&str, u32)]) -> Setup {
    derived(IpvsServiceSpec::default(), &pool(servers))
}

fn derived(settings: IpvsServiceSpec, pool: &PoolSpec) -> Setup {
    counted(settings, pool, &Arc::new(ServiceLive::new("s".into(), Protocol::Tcp, 1)))
}

fn counted(settings: IpvsServiceSpec, pool: &PoolSpec, live: &Arc<ServiceLive>) -> Setup {
    let mut setup = Setup::default();
    for one in wanted::derive(&table(settings, pool)) {
        one.enter(&mut setup, |_, _| Counted::new(None, Arc::clone(live)));
    }
    setup
}

#[test]
fn the_kernel_gets_the_table_and_drift_is_undone_and_reported() {
    let (scratch, kernel) = (Scratch::new("drift"), Shared::default());
    let (running, reports) = scratch.start(&kernel);
    running.configure(setup(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 3), ("10.0.0.3:80", 0)]));
    let expected = ["TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1", "-> 10.0.0.2:80 3", "-> 10.0.0.3:80 0"];
    assert_eq!(kernel.listing(), expected);
    let key = ServiceKey::tcp("192.0.2.1:80".parse().unwrap());
    kernel.with(|kernel| kernel.set_service(&Service::new(key).scheduler("rr")).unwrap());
    kernel.expect(&expected);
    let drift = reports.iter().find(|report| matches!(report, Report::Drift(_)));
    let expected = "TCP 192.0.2.1:80: found scheduler rr, no persistence; set scheduler wrr, no persistence";
    assert_eq!(drift, Some(Report::Drift(expected.into())));
    running.stop();
    assert_eq!(kernel.listing().len(), 4, "the table stays");
}

#[test]
fn a_successor_removes_what_its_predecessor_left_and_nothing_else() {
    let (scratch, kernel) = (Scratch::new("successor"), Shared::default());
    let other = ServiceKey::tcp("192.0.2.9:80".parse().unwrap());
    kernel.with(|kernel| kernel.add_service(&Service::new(other)).unwrap());
    let (running, _) = scratch.start(&kernel);
    running.configure(setup(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]));
    // The thread ends without a trace, as if the process were killed.
    running.stop();
    let (running, reports) = scratch.start(&kernel);
    running.configure(setup(&[("10.0.0.1:80", 1)]));
    kernel.expect(&["TCP 192.0.2.9:80 wlc", "TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1"]);
    let drained = reports.iter().find(|report| matches!(report, Report::Drained(_)));
    assert_eq!(drained, Some(Report::Drained("10.0.0.2:80 of TCP 192.0.2.1:80".into())));
    running.configure(Setup::default());
    kernel.expect(&["TCP 192.0.2.9:80 wlc"]);
    running.stop();
}

#[test]
fn a_failed_change_is_reported_once_and_tried_again() {
    let (scratch, kernel) = (Scratch::new("failure"), Shared::default());
    let (running, reports) = scratch.start(&kernel);
    kernel.with(|kernel| kernel.fail_next(evener_ipvs::Command::AddDestination, 12));
    running.configure(setup(&[("10.0.0.1:80", 1)]));
    let problem = reports.iter().find(|report| matches!(report, Report::Problem(_))).unwrap();
    assert!(
        format!("{problem:?}").contains("add destination 10.0.0.1:80 of TCP 192.0.2.1:80"),
        "{problem:?}"
    );
    kernel.expect(&["TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1"]);
    running.stop();
    assert!(
        !reports.iter().any(|report| matches!(report, Report::Drift(_))),
        "no other program changed the table"
    );
}

#[test]
fn the_connections_of_destinations_are_added_up() {
    let (scratch, kernel) = (Scratch::new("connections"), Shared::default());
    let (running, _reports) = scratch.start(&kernel);
    let live = Arc::new(ServiceLive::new("s".into(), Protocol::Tcp, 1));
    let servers = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1)];
    running.configure(counted(IpvsServiceSpec::default(), &pool(&servers), &live));
    kernel.expect(&["TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1", "-> 10.0.0.2:80 1"]);
    let connect = |active: u32| {
        let table = kernel.with(|kernel| kernel.table().unwrap());
        let service = table[0].service.service.key;
        for one in &table[0].destinations {
            kernel.with(|kernel| kernel.set_connections(&service, &one.destination.key, active, 9));
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while live.associations.load(Ordering::Relaxed) != 2 * active {
            assert!(Instant::now() < deadline, "{live:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    connect(7);
    connect(0);
    running.stop();
}

#[test]
fn servers_that_are_down_are_not_destinations() {
    let destinations = |settings: IpvsServiceSpec, on_down: OnDown| {
        let mut spec = pool(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
        spec.servers[1].state = AdminState::Maintenance;
        spec.on_down = on_down;
        let derived = derived(settings, &spec).wanted.into_values().next().unwrap();
        (derived.destinations.len(), derived.without_drain.len())
    };
    let persistent =
        IpvsServiceSpec { persistence: Some(IpvsPersistence::default()), ..IpvsServiceSpec::default() };
    assert_eq!(destinations(IpvsServiceSpec::default(), OnDown::Keep), (1, 0));
    assert_eq!(destinations(IpvsServiceSpec::default(), OnDown::Close), (1, 1));
    assert_eq!(destinations(persistent, OnDown::Keep), (1, 1));
}

#[test]
fn a_mark_has_a_service_for_each_family_of_its_servers() {
    let settings = IpvsServiceSpec { fwmark: Some(7), ..IpvsServiceSpec::default() };
    let setup = derived(settings, &pool(&[("10.0.0.1:80", 1), ("[2001:db8::1]:80", 1)]));
    let lines: Vec<String> =
        setup.wanted.iter().map(|(key, wanted)| format!("{key} {}", wanted.destinations.len())).collect();
    assert_eq!(lines, ["FWM 7 1", "FWM 7 IPv6 1"]);
}

#[test]
fn the_sorry_server_replaces_the_servers_below_the_quorum_and_the_virtual_address_goes() {
    let (scratch, kernel) = (Scratch::new("sorry"), Shared::default());
    let (running, _reports) = scratch.start(&kernel);
    let mut spec = pool(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.1:80", 1)]);
    (spec.servers[2].name, spec.servers[2].is_sorry) = ("sorry".into(), true);
    spec.quorum = Some(QuorumSpec { weight: 2, hysteresis: 0 });
    let settings = IpvsServiceSpec::default();
    running.configure(derived(settings.clone(), &spec));
    kernel.expect(&["TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1", "-> 10.0.0.2:80 1"]);
    // The sorry server is one of the servers that are left.
    spec.servers[1].state = AdminState::Drain;
    assert!(!table(settings.clone(), &spec).pools().any(|(_, pool)| pool.traits().has_quorum));
    running.configure(derived(settings, &spec));
    kernel.expect(&["TCP 192.0.2.1:80 wrr", "-> 10.0.0.1:80 1"]);
    running.stop();
}

#[test]
fn a_scheduler_that_the_kernel_does_not_have_is_found_before_anything_changes() {
    let (scratch, kernel) = (Scratch::new("scheduler"), Shared::default());
    let (running, _) = scratch.start(&kernel);
    kernel.with(FakeKernel::forget_messages);
    assert_eq!(running.prepare(BTreeSet::from([("wrr", None), ("mh", Some("sip"))])), Ok(()));
    let missing = running.prepare(BTreeSet::from([("rr", None), ("wllc", None)]));
    assert_eq!(missing, Err("find scheduler: the kernel has no scheduler `wllc`".to_owned()));
    assert_eq!(kernel.with(|kernel| kernel.writes()), 0, "nothing is written");
    running.stop();
}

#[test]
fn servers_that_fail_stay_with_the_weight_0_if_the_pool_inhibits_them() {
    let mut spec = pool(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
    spec.check = Some(CheckSpec::new(CheckKind::Tcp));
    let weights = |spec: &PoolSpec, failed: &[usize]| -> Vec<u32> {
        let table = table_after(IpvsServiceSpec::default(), spec, failed);
        let live = Arc::new(ServiceLive::new("s".into(), Protocol::Tcp, 1));
        let mut setup = Setup::default();
        for one in wanted::derive(&table) {
            one.enter(&mut setup, |_, _| Counted::new(None, Arc::clone(&live)));
        }
        let destinations = |service: &WantedService| -> Vec<u32> {
            service.destinations.values().map(|one| one.weight).collect()
        };
        setup.wanted.values().flat_map(destinations).collect()
    };
    assert_eq!(weights(&spec, &[1]), [1]);
    spec.inhibit_on_failure = true;
    assert_eq!(weights(&spec, &[1]), [1, 0]);
    spec.servers[1].tier = 2;
    assert_eq!(weights(&spec, &[]), [1], "the server of an unused tier is not a destination");
    assert_eq!(weights(&spec, &[1]), [1], "a server of an unused tier that failed is not a destination");
    assert_eq!(weights(&spec, &[0]), [0, 1], "a server that failed stays while the next tier is used");
    spec.servers[1].tier = 1;
    spec.servers[1].state = AdminState::Maintenance;
    assert_eq!(weights(&spec, &[]), [1], "a server in maintenance is not a destination");
}

#[test]
fn a_sorry_server_with_persistent_clients_is_deleted_when_the_quorum_returns() {
    let mut spec = pool(&[("10.0.0.1:80", 1), ("10.0.0.9:80", 1)]);
    spec.servers[1].is_sorry = true;
    let without_drain = |settings: IpvsServiceSpec| {
        let wanted = derived(settings, &spec).wanted.into_values().next().unwrap();
        (wanted.destinations.len(), wanted.without_drain.len())
    };
    let persistent =
        IpvsServiceSpec { persistence: Some(IpvsPersistence::default()), ..IpvsServiceSpec::default() };
    assert_eq!(without_drain(IpvsServiceSpec::default()), (1, 0));
    assert_eq!(without_drain(persistent), (1, 1));
}

/// Applies the changes from one wanted table to another one by one, and checks that clients always have a server.
fn expect_servers_all_along(kernel: &mut FakeKernel, reconciler: &mut Reconciler, wanted: &Setup) {
    let takes_clients = |kernel: &mut FakeKernel| {
        let table = kernel.table().unwrap();
        table.iter().all(|entry| entry.destinations.iter().any(|one| one.destination.weight > 0))
    };
    let had_servers = takes_clients(kernel) && !kernel.table().unwrap().is_empty();
    let found = kernel.table().unwrap();
    for step in reconciler.plan(&wanted.wanted, &found, Duration::ZERO) {
        kernel.apply(&[step.change]).unwrap().into_iter().for_each(|result| result.unwrap());
        assert!(!had_servers || takes_clients(kernel), "{:?}", kernel.table());
    }
    assert!(takes_clients(kernel));
}

#[test]
fn a_service_is_never_empty_while_the_sorry_server_comes_and_leaves() {
    let mut healthy = pool(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.9:80", 1)]);
    (healthy.servers[2].name, healthy.servers[2].is_sorry) = ("sorry".into(), true);
    healthy.quorum = Some(QuorumSpec { weight: 2, hysteresis: 1 });
    for state in [AdminState::Maintenance, AdminState::Drain] {
        for inhibit_on_failure in [false, true] {
            for is_persistent in [false, true] {
                let timeout = Duration::from_secs(300);
                let persistence = is_persistent.then_some(IpvsPersistence {
                    timeout,
                    prefix_v4: 32,
                    prefix_v6: 128,
                    engine: None,
                });
                let settings = IpvsServiceSpec { persistence, ..IpvsServiceSpec::default() };
                healthy.inhibit_on_failure = inhibit_on_failure;
                let mut failed = healthy.clone();
                failed.servers[..2].iter_mut().for_each(|server| server.state = state);
                let (mut kernel, mut reconciler) = (FakeKernel::default(), Reconciler::default());
                for spec in [&healthy, &failed, &healthy, &failed] {
                    expect_servers_all_along(&mut kernel, &mut reconciler, &derived(settings.clone(), spec));
                }
            }
        }
    }
}

#[test]
fn one_changed_destination_of_2000_is_one_message() {
    let (scratch, kernel) = (Scratch::new("one"), Shared::default());
    let (running, _) = scratch.start(&kernel);
    let names: Vec<String> = (0..2000).map(|n| format!("10.0.{}.{}:80", n / 250, n % 250 + 1)).collect();
    let servers = |changed: u32| -> Vec<(&str, u32)> {
        let weight = |n: usize| if n == 1234 { changed } else { 1 };
        names.iter().enumerate().map(|(n, name)| (name.as_str(), weight(n))).collect()
    };
    running.configure(setup(&servers(1)));
    assert_eq!(kernel.with(|kernel| kernel.writes()), 2001, "a service and its destinations are added");
    kernel.with(FakeKernel::forget_messages);
    running.configure(setup(&servers(5)));
    assert_eq!(kernel.with(|kernel| kernel.writes()), 1, "the weight is written, and nothing else");
    assert_eq!(kernel.with(|kernel| kernel.messages(evener_ipvs::Command::SetDestination)), 1);
    running.stop();
}
