//! Sources that are read again, fail and list other servers, and loops through the servers.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use crate::inherited::ListenerKey;
use crate::supervisor::listeners::Listeners;
use crate::supervisor::pools::Pools;
use evener_core::Endpoint;
use evener_core::spec::{DiscoverSpec, FoundSettings, ServerSpec, Transport};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A pool with a source of each kind, and its discovery.
struct Case {
    discovery: Discovery,
    spec: Spec,
    inputs: mpsc::Receiver<Input>,
    now: Time,
}

impl Case {
    fn new() -> Self {
        let (sender, inputs) = mpsc::channel(16);
        let settings = FoundSettings::DEFAULT;
        let pool = PoolSpec {
            discover: vec![
                DiscoverSpec::File { path: "/no/such/file".into(), port: None, settings },
                DiscoverSpec::Dns { name: "app.example".into(), port: 80, settings },
            ],
            ..PoolSpec::new("p", vec![ServerSpec::new("10.0.0.1:80".parse().unwrap())])
        };
        let spec = Spec { pools: vec![pool], ..Spec::default() };
        Self { discovery: Discovery::new(sender), spec, inputs, now: Time::ZERO }
    }

    fn dns(&self) -> Source {
        Source::Dns { name: "app.example".into(), port: 80, resolvers: Vec::new() }
    }

    fn file(&self) -> Source {
        Source::File { path: "/no/such/file".into(), port: None }
    }

    fn configure(&mut self, readings: Vec<(Source, Scan)>) -> Vec<&'static str> {
        self.configure_at(Instant::now(), readings)
    }

    /// Applies a configuration with first readings of this time.
    fn configure_at(&mut self, at: Instant, readings: Vec<(Source, Scan)>) -> Vec<&'static str> {
        let reading = |(source, scan)| Found::new("p".into(), source, Reading::at(scan, at));
        let readings = readings.into_iter().map(reading);
        let events = self.discovery.configure(&self.spec, FirstReadings::new(readings.collect()), self.now);
        events.iter().map(Event::name).collect()
    }

    /// Applies the result of a read that was due. Returns whether the servers changed, and the event.
    fn read(&mut self, source: Source, scan: Scan) -> (bool, Option<&'static str>) {
        self.discovery.reads += 1;
        let number = self.discovery.reads;
        let key = ("p".into(), source.clone());
        self.discovery.sources.get_mut(&key).unwrap().reading = Some(number);
        let found = Found::new("p".into(), source, Reading::at(scan, Instant::now()));
        let (changed, event) = self.discovery.on_found(found, number, self.now);
        (changed.is_some(), event.as_ref().map(Event::name))
    }

    fn addresses(&mut self) -> Vec<String> {
        let (config, pools) = (Config::default(), Pools::default());
        let (listeners, new_listeners) = (Listeners::default(), NewListeners::new());
        let loops = LoopCheck::new(&config, &pools, (&listeners, &new_listeners));
        let (expanded, _) = self.discovery.expand(
            &self.spec.pools[0],
            &loops,
            (&mut Operator::default(), &Scripts::default()),
        );
        expanded.targets().iter().map(ToString::to_string).collect()
    }
}

/// Two services, each with its own pool, whose servers are in a file.
struct TwoServices {
    config: Config,
    discovery: Discovery,
    pools: Pools,
}

impl TwoServices {
    /// Creates services `a` and `b` with these listen addresses.
    fn new(listen: [&str; 2]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let file = std::env::temp_dir().join(format!("evener-discovery-{process}-{number}.lua"));
        let service = |name: &str, listen: &str| {
            format!("service '{name}' {{ listen = '{listen}', discover.file '/no/{name}' }}\n")
        };
        std::fs::write(&file, service("a", listen[0]) + &service("b", listen[1])).unwrap();
        let config = crate::config::load(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let (sender, _) = mpsc::channel(1);
        Self { config, discovery: Discovery::new(sender), pools: Pools::default() }
    }

    /// Applies the configuration again, with these servers in the files. Returns the servers of both pools,
    /// and the number of servers that were newly refused.
    fn apply(&mut self, listed: [&[&str]; 2], new_listeners: &NewListeners) -> ([Vec<String>; 2], usize) {
        let found = |(name, addresses): (&str, &[&str])| {
            let source = Source::File { path: format!("/no/{name}").into(), port: None };
            Found::new(name.into(), source, Reading::at(list(addresses), Instant::now()))
        };
        let readings = FirstReadings::new(["a", "b"].into_iter().zip(listed).map(found).collect());
        self.discovery.configure(&self.config.spec, readings, Time::ZERO);
        let listeners = Listeners::default();
        let loops = LoopCheck::new(&self.config, &self.pools, (&listeners, new_listeners));
        let expanded: Vec<_> = (self.config.spec.pools.iter())
            .map(|spec| self.discovery.expand(spec, &loops, (&mut Operator::default(), &Scripts::default())))
            .collect();
        let mut refused = 0;
        let servers = expanded.iter().map(|(pool, events)| {
            refused += events.len();
            self.pools.apply(pool, (1, 0), Time::ZERO);
            pool.targets().iter().map(ToString::to_string).collect()
        });
        let servers: Vec<Vec<String>> = servers.collect();
        (servers.try_into().unwrap(), refused)
    }
}

fn list(addresses: &[&str]) -> Scan {
    Scan::listed(addresses.iter().map(|address| Listed::at(Target::Ip(address.parse().unwrap()))).collect())
}

fn failed(problem: &str) -> Scan {
    Scan::Failed(problem.into())
}

#[test]
fn each_source_keeps_its_last_servers_when_it_fails() {
    let mut case = Case::new();
    let (file, host) = (case.file(), case.dns());
    let first =
        vec![(file.clone(), list(&["10.0.0.2:80"])), (host.clone(), list(&["10.0.0.3:80", "10.0.0.1:80"]))];
    assert_eq!(case.configure(first), [""; 0]);
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    assert_eq!(case.read(host.clone(), failed("a")), (false, Some("discovery_failed")));
    assert_eq!(case.read(host.clone(), failed("b")), (false, None), "the failure of a name is logged once");
    assert_eq!(case.read(file.clone(), failed("line 1")), (false, Some("discovery_failed")));
    assert_eq!(case.read(file.clone(), failed("line 1")), (false, None));
    assert_eq!(case.read(file.clone(), failed("line 2")), (false, Some("discovery_failed")));
    assert_eq!(case.read(file.clone(), Scan::Unchanged), (false, None));
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    assert_eq!(case.read(host, list(&["10.0.0.4:80"])), (true, Some("discovery_recovered")));
    assert_eq!(case.read(file, list(&["10.0.0.2:80"])), (false, Some("discovery_recovered")));
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]);
}

#[test]
fn a_failure_of_a_name_is_logged_although_it_had_a_problem_with_some_servers() {
    let mut case = Case::new();
    let host = case.dns();
    let partial = |problem: &str| list(&["10.0.0.3:80"]).with_problem(Some(problem.into()));
    case.configure(vec![(case.file(), list(&["10.0.0.2:80"])), (host.clone(), list(&["10.0.0.3:80"]))]);
    for (scan, expected) in [
        (partial("a target has no address"), Some("discovery_failed")),
        (partial("a target has no address"), None),
        (partial("another target has no address"), Some("discovery_failed")),
        (failed("no response"), Some("discovery_failed")),
        (failed("no such name"), None),
        (partial("a target has no address"), Some("discovery_failed")),
        (list(&["10.0.0.3:80"]), Some("discovery_recovered")),
    ] {
        let problem = scan.problem().map(str::to_owned);
        assert_eq!(case.read(host.clone(), scan), (false, expected), "{problem:?}");
    }
}

#[test]
fn a_pool_has_its_sources_and_each_has_one_text() {
    let mut case = Case::new();
    let other = |name: &str| PoolSpec { name: name.into(), ..case.spec.pools[0].clone() };
    let others = ["o", "p1", "q"].map(other);
    case.spec.pools.extend(others);
    let pool = &mut case.spec.pools[0];
    pool.servers.push(ServerSpec::new("app.example:80".parse().unwrap()));
    let host = Source::of_server(pool, &pool.servers[1]).unwrap();
    let (file, dns) = (case.file(), case.dns());
    case.configure(vec![(file, list(&["10.0.0.2:80"])), (dns, list(&["10.0.0.3:80"])), (host, list(&[]))]);
    let sources = serde_json::to_value(case.discovery.sources_of("p")).unwrap();
    let expected = serde_json::json!([
        {"source": "discover.file /no/such/file", "servers": 1},
        {"source": "app.example:80", "servers": 0},
        {"source": "discover.dns app.example:80", "servers": 1},
    ]);
    assert_eq!(sources, expected);
    case.addresses();
    assert_eq!(case.discovery.source_of("p", "10.0.0.3:80"), Some("discover.dns app.example:80"));
}

#[test]
fn a_configuration_keeps_the_servers_of_sources_that_stay() {
    let mut case = Case::new();
    let (file, host) = (case.file(), case.dns());
    case.configure(vec![(file.clone(), list(&["10.0.0.2:80"])), (host.clone(), list(&["10.0.0.3:80"]))]);
    let events = case.configure(vec![(file, failed("x")), (host.clone(), failed("y"))]);
    assert_eq!(events, ["discovery_failed"; 2]);
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    // A read that began before the configuration is ignored.
    let found = Found::new("p".into(), host.clone(), Reading::at(list(&[]), Instant::now()));
    assert_eq!(case.discovery.on_found(found, 1, case.now), (None, None));
    case.spec.pools[0].discover.truncate(1);
    case.configure(Vec::new());
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
    case.spec.pools[0].discover.clear();
    case.configure(Vec::new());
    assert_eq!((case.discovery.deadline(), case.addresses().len()), (Time::NEVER, 1));
}

#[test]
fn a_slow_configuration_keeps_servers_that_were_found_later() {
    let mut case = Case::new();
    let (file, host) = (case.file(), case.dns());
    let first = vec![(file.clone(), list(&["10.0.0.2:80"])), (host.clone(), list(&["10.0.0.3:80"]))];
    case.configure(first.clone());
    let began = Instant::now();
    assert_eq!(case.read(file.clone(), list(&["10.0.0.4:80"])), (true, None));
    assert_eq!(case.read(host.clone(), list(&["10.0.0.5:80"])), (true, None));
    case.configure_at(began, first);
    assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.4:80", "10.0.0.5:80"]);
    let failures = vec![(file, failed("x")), (host, failed("y"))];
    assert_eq!(case.configure_at(began, failures), [""; 0], "an old failure is not logged");
}

#[test]
fn the_lifetime_of_a_name_counts_from_its_read() {
    let mut case = Case::new();
    let minute = Duration::from_secs(60);
    let lasting = |address: &str| list(&[address]).lasting(minute);
    case.spec.pools[0].discover.remove(0);
    let Some(earlier) = Instant::now().checked_sub(minute / 2) else { return };
    case.configure_at(earlier, vec![(case.dns(), lasting("10.0.0.3:80"))]);
    assert!(case.discovery.deadline() <= case.now + minute / 2);
    let Some(earlier) = Instant::now().checked_sub(minute / 4) else { return };
    case.configure_at(earlier, vec![(case.dns(), lasting("10.0.0.4:80"))]);
    let next = case.discovery.deadline();
    assert!(next > case.now + minute / 2 && next <= case.now + minute * 3 / 4, "{next:?}");
}

#[tokio::test]
async fn a_configuration_repeats_reads_that_were_due_or_in_progress() {
    let mut case = Case::new();
    let minute = Duration::from_secs(60);
    let (file, host) = (case.file(), case.dns());
    let readings =
        vec![(file.clone(), list(&["10.0.0.2:80"])), (host, list(&["10.0.0.3:80"]).lasting(minute))];
    let is_due = |case: &Case, source: Source| case.discovery.sources[&("p".into(), source)].next <= case.now;
    case.configure(readings.clone());
    case.read(file.clone(), list(&["10.0.0.2:80"]));
    // No file changed, so nothing is due after another configuration.
    case.configure(readings.clone());
    assert!(!is_due(&case, case.file()) && !is_due(&case, case.dns()));
    // A file changes while a configuration is being read.
    case.discovery.on_files_changed(case.now);
    case.configure(readings.clone());
    assert!(is_due(&case, case.file()) && !is_due(&case, case.dns()));
    // Reads are in progress.
    case.now += minute;
    case.discovery.on_time(case.now);
    case.configure(readings.clone());
    assert!(is_due(&case, case.file()) && is_due(&case, case.dns()));
    // The result of such a read is not applied.
    let Some(Input::Found { found, number }) = case.inputs.recv().await else { panic!("expected a result") };
    assert_eq!(case.discovery.on_found(found, number, case.now), (None, None));
    // The lifetime of a name ends.
    case.read(case.dns(), list(&["10.0.0.3:80"]).lasting(minute));
    case.configure(readings.clone());
    assert!(!is_due(&case, case.dns()));
    case.now += minute;
    case.configure(readings);
    assert!(is_due(&case, case.dns()));
}

#[test]
fn found_servers_that_form_a_loop_are_refused_from_the_start() {
    let mut services = TwoServices::new(["127.0.0.1:1", "127.0.0.1:2"]);
    let none = NewListeners::new();
    let to_each_other: [&[&str]; 2] = [&["10.0.0.1:80", "127.0.0.1:2"], &["10.0.0.2:80", "127.0.0.1:1"]];
    let (servers, refused) = services.apply(to_each_other, &none);
    assert_eq!((servers, refused), ([vec!["10.0.0.1:80".into()], vec!["10.0.0.2:80".into()]], 2));
    let (servers, refused) = services.apply([to_each_other[0], &["10.0.0.2:80"]], &none);
    let both = vec!["10.0.0.1:80".to_owned(), "127.0.0.1:2".to_owned()];
    assert_eq!((servers, refused), ([both.clone(), vec!["10.0.0.2:80".into()]], 0));
    // A server that is in use stays.
    for newly_refused in [1, 0] {
        let (servers, refused) = services.apply(to_each_other, &none);
        assert_eq!((servers, refused), ([both.clone(), vec!["10.0.0.2:80".into()]], newly_refused));
    }
    let affected = |changed: &str| services.discovery.affected_by(changed).into_iter().collect::<Vec<_>>();
    assert_eq!(affected("a"), ["a".into(), "b".into()], "a refused server is checked again");
    assert_eq!(affected("b"), ["b".into()]);
}

#[test]
fn an_address_of_a_new_listener_is_refused() {
    let mut services = TwoServices::new(["127.0.0.1:0", "127.0.0.1:0"]);
    let new_listeners = Listeners::default().bind_new(&services.config, 1).unwrap();
    let any = Endpoint::Ip("127.0.0.1:0".parse().unwrap());
    let address = |name: &str| {
        let key = ListenerKey::new(Transport::Stream, &any, &name.into());
        new_listeners[&key].address.to_string()
    };
    let (a, b) = (address("a"), address("b"));
    let (servers, refused) = services.apply([&[&a, &b], &["10.0.0.2:80"]], &new_listeners);
    assert_eq!((servers, refused), ([vec![b], vec!["10.0.0.2:80".into()]], 1));
}

#[tokio::test]
async fn sources_are_read_when_they_are_due() {
    let mut case = Case::new();
    case.spec.pools[0].discover.truncate(1);
    case.configure(vec![(case.file(), list(&["10.0.0.2:80"]))]);
    assert_eq!(case.discovery.deadline(), case.now, "the watch of a new file begins with a read");
    case.discovery.on_time(case.now);
    assert_eq!(case.discovery.deadline(), Time::NEVER, "a read is in progress");
    // A change during the read causes another read.
    case.discovery.on_files_changed(case.now);
    let Some(Input::Found { found, number }) = case.inputs.recv().await else { panic!("expected a result") };
    let (changed, event) = case.discovery.on_found(found, number, case.now);
    assert_eq!((changed, event.as_ref().map(Event::name)), (None, Some("discovery_failed")));
    assert_eq!(case.discovery.deadline(), case.now);
    case.discovery.on_time(case.now);
    let Some(Input::Found { found, number }) = case.inputs.recv().await else { panic!("expected a result") };
    case.discovery.on_found(found, number, case.now);
    assert_eq!(case.discovery.deadline(), case.now + Duration::from_secs(1));
}
