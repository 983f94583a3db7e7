//! Servers that are found while the program runs: addresses of host names, lists in files, and sockets in
//! directories. Each source has its own interval. Servers are added to and removed from their pools as a reload
//! adds and removes servers, and keep their identity. A source that cannot be read changes nothing.

use super::listeners::Listeners;
use super::pools::Pools;
use super::{Input, Supervisor};
use crate::config::Config;
use crate::discover::{
    Expanded, FirstReadings, Found, Listed, Numbers, Reading, Scan, Source, Stamp, Watcher, expand,
};
use crate::loops::Guard;
use crate::state::SourceView;
use evener_core::event::Event;
use evener_core::pool::Pool;
use evener_core::spec::{PoolSpec, Spec};
use evener_core::{Target, Time};
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// A source of a pool.
type Key = (Arc<str>, Source);

/// The sources of all pools, with the servers that they list.
pub(super) struct Discovery {
    sender: mpsc::Sender<Input>,
    sources: BTreeMap<Key, State>,
    pools: BTreeMap<Arc<str>, PoolState>,
    watcher: Option<Watcher>,
    /// Directories that the watcher watches.
    watched: BTreeSet<PathBuf>,
    /// Time of the next read of any source.
    next: Time,
    /// Number of the last read.
    reads: u64,
}

/// State of a source.
#[derive(Debug, Default)]
struct State {
    /// The last servers that the source listed.
    servers: Vec<Listed>,
    problem: Option<String>,
    /// Time of the next read.
    next: Time,
    /// Number of the read in progress.
    reading: Option<u64>,
    /// True if another read has to follow: a file changed during the read in progress, which may have missed the
    /// change.
    again: bool,
    /// Start of the last read that was applied.
    began: Option<Instant>,
    /// Number of consecutive failures.
    failures: u32,
    stamp: Option<Stamp>,
}

/// State of a pool.
#[derive(Debug, Default)]
struct PoolState {
    numbers: Numbers,
    /// Sources of the servers that were found, by name.
    origins: BTreeMap<Arc<str>, String>,
    /// Addresses whose refusal was logged. It is not logged again.
    refused: BTreeSet<Arc<str>>,
}

impl State {
    /// Applies the result of a read, unless the result of a later read was applied. Returns whether the servers
    /// changed, and an event.
    fn apply(&mut self, (pool, source): &Key, reading: &Reading, now: Time) -> (bool, Option<Event>) {
        if self.began.is_some_and(|began| reading.began() < began) {
            return (false, None);
        }
        self.began = Some(reading.began());
        let scan = reading.scan();
        if *scan == Scan::Unchanged {
            self.next = now + source.pause(reading, self.failures);
            return (false, None);
        }
        self.stamp = reading.stamp();
        let servers = scan.servers_after(&self.servers).filter(|servers| *servers != self.servers);
        let is_changed = servers.is_some();
        self.servers = servers.unwrap_or_else(|| std::mem::take(&mut self.servers));
        self.failures = if scan.failure().is_some() { self.failures.saturating_add(1) } else { 0 };
        self.next = now + source.pause(reading, self.failures);
        let (pool, source_text) = (pool.clone(), source.to_string());
        let before = std::mem::replace(&mut self.problem, scan.problem().map(str::to_owned));
        let event = match (before, self.problem.clone()) {
            // The reasons why a name does not resolve may alternate.
            (Some(before), Some(problem)) if before == problem || !source.is_watched() => None,
            (_, Some(problem)) => Some(Event::DiscoveryFailed { pool, source: source_text, problem }),
            (Some(_), None) => Some(Event::DiscoveryRecovered { pool, source: source_text }),
            (None, None) => None,
        };
        (is_changed, event)
    }

    /// Prepares for the first reading of a new configuration, which may be older than the present state. A read
    /// in progress is not applied, so another read follows.
    fn prepare(&mut self, now: Time) {
        self.again |= self.reading.take().is_some() || self.next <= now;
    }
}

impl Discovery {
    pub(super) fn new(sender: mpsc::Sender<Input>) -> Self {
        Self {
            sender,
            sources: BTreeMap::new(),
            pools: BTreeMap::new(),
            watcher: None,
            watched: BTreeSet::new(),
            next: Time::NEVER,
            reads: 0,
        }
    }

    /// Prepares for a new configuration, with the first readings of its sources.
    pub(super) fn configure(&mut self, spec: &Spec, readings: FirstReadings, now: Time) -> Vec<Event> {
        let keys = spec
            .pools
            .iter()
            .flat_map(|pool| Source::all_of(pool).into_iter().map(|source| (pool.name.clone(), source)));
        let mut before = std::mem::take(&mut self.sources);
        let mut state_of = |key: &Key| match before.remove(key) {
            Some(mut state) => {
                state.prepare(now);
                state
            }
            // The watch begins with a read, which finds changes since the first reading.
            None => State { again: key.1.is_watched(), ..State::default() },
        };
        self.sources = keys
            .map(|key| {
                let state = state_of(&key);
                (key, state)
            })
            .collect();
        let mut old_pools = std::mem::take(&mut self.pools);
        let retained =
            |pool: &PoolSpec| (pool.name.clone(), old_pools.remove(&pool.name).unwrap_or_default());
        self.pools = spec.pools.iter().map(retained).collect();
        let apply = |found: Found| {
            let (key, reading) = found.into_parts();
            self.sources.get_mut(&key)?.apply(&key, &reading, now).1
        };
        let events = readings.into_found().filter_map(apply).collect();
        let watched: BTreeSet<PathBuf> =
            self.sources.keys().filter_map(|(_, source)| source.location()).collect();
        let is_watched_anew = self.watched != watched;
        if is_watched_anew {
            (self.watcher, self.watched) = (None, watched);
        }
        for ((_, source), state) in &mut self.sources {
            // An immediate read finds changes between the first reading and the start of the watch.
            if std::mem::take(&mut state.again) || (is_watched_anew && source.is_watched()) {
                state.next = now;
            }
        }
        self.schedule();
        events
    }

    fn schedule(&mut self) {
        let idle = self.sources.values().filter(|state| state.reading.is_none());
        self.next = idle.map(|state| state.next).min().unwrap_or(Time::NEVER);
    }

    /// Returns the time at which [`Self::on_time`] has to be called next.
    pub(super) fn deadline(&self) -> Time {
        self.next
    }

    /// Begins the reads that are due.
    pub(super) fn on_time(&mut self, now: Time) {
        if now < self.next {
            return;
        }
        self.start_watcher();
        let watcher = self.watcher.as_ref();
        for ((pool, source), state) in &mut self.sources {
            if state.reading.is_some() || now < state.next {
                continue;
            }
            self.reads += 1;
            (state.reading, state.again) = (Some(self.reads), false);
            let (number, sender) = (self.reads, self.sender.clone());
            let (pool, source) = (pool.clone(), source.clone());
            let read = source.clone().read(state.stamp, watcher);
            tokio::spawn(async move {
                let found = Found::new(pool, source, read.await);
                let _ = sender.send(Input::Found { found, number }).await;
            });
        }
        self.schedule();
    }

    fn start_watcher(&mut self) {
        if self.watcher.is_none() && !self.watched.is_empty() {
            let sender = self.sender.clone();
            let changed = move || {
                let sender = sender.clone();
                async move { sender.send(Input::FilesChanged).await.is_ok() }
            };
            self.watcher = Watcher::start(changed).ok();
        }
    }

    /// Reads all sources in the file system soon: one of them may have changed.
    pub(super) fn on_files_changed(&mut self, now: Time) {
        for ((_, source), state) in &mut self.sources {
            if source.is_watched() {
                (state.again, state.next) = (state.reading.is_some(), now);
                self.next = now;
            }
        }
    }

    /// Returns the number of a server that was found in a directory.
    pub(super) fn number_of(&self, pool: &str, target: &Target) -> Option<u32> {
        let Target::Unix(path) = target else { return None };
        self.pools.get(pool)?.numbers.known(path)
    }

    /// Returns the source that lists a server, unless the configuration names the server.
    pub(super) fn source_of(&self, pool: &str, server: &str) -> Option<&str> {
        self.pools.get(pool)?.origins.get(server).map(String::as_str)
    }

    /// Returns the sources of a pool.
    pub(super) fn sources_of(&self, pool: &str) -> Vec<SourceView> {
        let sources = self.sources.iter().filter(|((of, _), _)| **of == *pool);
        let status = |((_, source), state): (&Key, &State)| {
            SourceView::new(source.to_string(), state.servers.len(), state.problem.clone())
        };
        sources.map(status).collect()
    }

    /// Applies the result of read `number`. Returns the pool if its servers changed, and an event.
    fn on_found(&mut self, found: Found, number: u64, now: Time) -> (Option<Arc<str>>, Option<Event>) {
        let (key, reading) = found.into_parts();
        // A read for an earlier configuration is ignored.
        let Some(state) = self.sources.get_mut(&key).filter(|state| state.reading == Some(number)) else {
            return (None, None);
        };
        state.reading = None;
        let (is_changed, event) = state.apply(&key, &reading, now);
        if std::mem::take(&mut state.again) {
            state.next = now;
        }
        self.next = self.next.min(state.next);
        (is_changed.then_some(key.0), event)
    }

    /// Returns the servers of a pool, and an event for each address that is newly refused.
    fn expand(&mut self, spec: &PoolSpec, refuses: impl Fn(&Target) -> bool) -> (Expanded, Vec<Event>) {
        let sources = &self.sources;
        let listed = |source: &Source| {
            sources.get(&(spec.name.clone(), source.clone())).map_or(&[][..], |state| &state.servers)
        };
        let pool = self.pools.entry(spec.name.clone()).or_default();
        let mut expanded = expand(spec, listed, refuses, &mut pool.numbers);
        pool.origins = expanded.take_origins();
        let refused = expanded.refused().difference(&pool.refused).map(|server| Event::ServerRefused {
            pool: spec.name.clone(),
            server: server.clone(),
            reason:
                "it is an address of a service that uses the pool, so clients would be forwarded without end"
                    .into(),
        });
        let events = refused.collect();
        pool.refused.clone_from(expanded.refused());
        (expanded, events)
    }
}

/// Returns the servers of a pool of a configuration.
fn expand_pool(
    discovery: &mut Discovery,
    (config, spec): (&Config, &PoolSpec),
    pools: &Pools,
    listeners: &Listeners,
) -> (Expanded, Vec<Event>) {
    let guard = LazyCell::new(|| Guard::new(config, listeners.addresses()));
    let targets = |pool: &str| -> Vec<Target> {
        let servers = pools.get(pool).map_or(&[][..], Pool::servers);
        servers.iter().map(|server| server.target.clone()).collect()
    };
    discovery.expand(spec, |target| guard.is_loop(&spec.name, target, targets))
}

impl Supervisor {
    /// Returns the servers of each pool of a configuration that is being applied.
    pub(super) fn expand_all(&mut self, config: &Config) -> Vec<Expanded> {
        let mut all = Vec::with_capacity(config.spec.pools.len());
        for spec in &config.spec.pools {
            let (expanded, events) =
                expand_pool(&mut self.discovery, (config, spec), &self.pools, &self.listeners);
            self.log_all(&events);
            all.push(expanded);
        }
        all
    }

    /// Adds and removes servers of a pool after a source listed others.
    pub(super) fn on_found(&mut self, found: Found, number: u64) {
        let now = self.now();
        let (changed, event) = self.discovery.on_found(found, number, now);
        event.iter().for_each(|event| self.log(event));
        let Some(name) = changed else { return };
        let Some(spec) = self.config.spec.pools.iter().find(|pool| pool.name == name) else { return };
        let (expanded, events) =
            expand_pool(&mut self.discovery, (&self.config, spec), &self.pools, &self.listeners);
        self.log_all(&events);
        let had_persistent = self.pools.has_persistent(&name);
        if let Some(events) = self.pools.update(&expanded, now) {
            self.log_all(&events);
            self.publish();
            if had_persistent || self.pools.has_persistent(&name) {
                self.plane.maintain();
            }
            // More servers may be checked now.
            let spec = std::mem::take(&mut self.config.spec);
            self.divide_descriptors(&spec);
            self.config.spec = spec;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::spec::{DiscoverSpec, FoundSettings, ServerSpec};
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
            let spec = Spec { pools: vec![pool], services: Vec::new() };
            Self { discovery: Discovery::new(sender), spec, inputs, now: Time::ZERO }
        }

        fn host(&self) -> Source {
            Source::Host { name: "app.example".into(), port: 80, resolvers: Vec::new() }
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
            let events =
                self.discovery.configure(&self.spec, FirstReadings::new(readings.collect()), self.now);
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
            let spec = self.spec.pools[0].clone();
            let (expanded, _) = self.discovery.expand(&spec, |_| false);
            expanded.targets().iter().map(ToString::to_string).collect()
        }
    }

    fn list(addresses: &[&str]) -> Scan {
        Scan::listed(
            addresses.iter().map(|address| Listed::at(Target::Ip(address.parse().unwrap()))).collect(),
        )
    }

    fn failed(problem: &str) -> Scan {
        Scan::Failed(problem.into())
    }

    #[test]
    fn each_source_keeps_its_last_servers_when_it_fails() {
        let mut case = Case::new();
        let (file, host) = (case.file(), case.host());
        let first = vec![
            (file.clone(), list(&["10.0.0.2:80"])),
            (host.clone(), list(&["10.0.0.3:80", "10.0.0.1:80"])),
        ];
        assert_eq!(case.configure(first), [""; 0]);
        assert_eq!(case.addresses(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        assert_eq!(case.read(host.clone(), failed("a")), (false, Some("discovery_failed")));
        assert_eq!(
            case.read(host.clone(), failed("b")),
            (false, None),
            "the failure of a name is logged once"
        );
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
    fn a_configuration_keeps_the_servers_of_sources_that_stay() {
        let mut case = Case::new();
        let (file, host) = (case.file(), case.host());
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
        let (file, host) = (case.file(), case.host());
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
        case.configure_at(earlier, vec![(case.host(), lasting("10.0.0.3:80"))]);
        assert!(case.discovery.deadline() <= case.now + minute / 2);
        let Some(earlier) = Instant::now().checked_sub(minute / 4) else { return };
        case.configure_at(earlier, vec![(case.host(), lasting("10.0.0.4:80"))]);
        let next = case.discovery.deadline();
        assert!(next > case.now + minute / 2 && next <= case.now + minute * 3 / 4, "{next:?}");
    }

    #[tokio::test]
    async fn a_configuration_repeats_reads_that_were_due_or_in_progress() {
        let mut case = Case::new();
        let minute = Duration::from_secs(60);
        let (file, host) = (case.file(), case.host());
        let readings =
            vec![(file.clone(), list(&["10.0.0.2:80"])), (host, list(&["10.0.0.3:80"]).lasting(minute))];
        let is_due =
            |case: &Case, source: Source| case.discovery.sources[&("p".into(), source)].next <= case.now;
        case.configure(readings.clone());
        case.read(file.clone(), list(&["10.0.0.2:80"]));
        // No file changed, so nothing is due after another configuration.
        case.configure(readings.clone());
        assert!(!is_due(&case, case.file()) && !is_due(&case, case.host()));
        // A file changes while a configuration is being read.
        case.discovery.on_files_changed(case.now);
        case.configure(readings.clone());
        assert!(is_due(&case, case.file()) && !is_due(&case, case.host()));
        // Reads are in progress.
        case.now += minute;
        case.discovery.on_time(case.now);
        case.configure(readings.clone());
        assert!(is_due(&case, case.file()) && is_due(&case, case.host()));
        // The result of such a read is not applied.
        let Some(Input::Found { found, number }) = case.inputs.recv().await else {
            panic!("expected a result")
        };
        assert_eq!(case.discovery.on_found(found, number, case.now), (None, None));
        // The lifetime of a name ends.
        case.read(case.host(), list(&["10.0.0.3:80"]).lasting(minute));
        case.configure(readings.clone());
        assert!(!is_due(&case, case.host()));
        case.now += minute;
        case.configure(readings);
        assert!(is_due(&case, case.host()));
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
        let Some(Input::Found { found, number }) = case.inputs.recv().await else {
            panic!("expected a result")
        };
        let (changed, event) = case.discovery.on_found(found, number, case.now);
        assert_eq!((changed, event.as_ref().map(Event::name)), (None, Some("discovery_failed")));
        assert_eq!(case.discovery.deadline(), case.now);
        case.discovery.on_time(case.now);
        let Some(Input::Found { found, number }) = case.inputs.recv().await else {
            panic!("expected a result")
        };
        case.discovery.on_found(found, number, case.now);
        assert_eq!(case.discovery.deadline(), case.now + Duration::from_secs(1));
    }
}
