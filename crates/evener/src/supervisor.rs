//! The supervisor: the one writer. It owns the pools, publishes their snapshots, receives reports of workers
//! and checks, applies configurations, and shuts the program down in order.

mod access;
mod apply;
mod certificates;
mod connections;
mod discovery;
mod listeners;
mod paths;
mod publish;
mod reload;
mod reservation;
mod shortage;
mod signalled;

use crate::certificates::Materials;
use crate::check::{self, CheckedServer};
use crate::config::Config;
use crate::observe::Log;
use crate::request_log::RequestLogs;
use crate::signals::Signals;
use arc_swap::ArcSwap;
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::Snapshot;
use evener_core::spec::AdminState;
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use evener_proxy::{Driver, Plane, PlaneOptions, Report, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

pub(crate) use access::{AccessChange, AccessRefused, Rule};
pub(crate) use certificates::Reread;
pub(crate) use discovery::Scanned;
pub(crate) use listeners::ListenerKey;
pub(crate) use reload::Loaded;

/// Maximum number of queued reports, probes and requests. Workers drop reports beyond it, to repeat them.
const INPUTS_MAX: usize = 4096;
/// Interval at which the end of all connections is checked while draining.
const DRAIN_CHECK_EVERY: Duration = Duration::from_millis(50);

/// Settings of the whole program.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
    pub(crate) pin: bool,
    pub(crate) driver: Driver,
    pub(crate) log: Log,
    pub(crate) drain_timeout: Duration,
    pub(crate) source: ConfigSource,
}

/// The changes that a new configuration made, or every problem.
pub(crate) type Outcome = Result<Vec<String>, Vec<String>>;

/// Treatment of TLS files when a front end applies another configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// Files are read only where the configuration of TLS changed. The program may have given up the right to
    /// read the others.
    Unchanged,
    /// All files are read again.
    Anew,
}

/// Source of the configuration for a reload.
#[derive(Clone, Debug)]
pub(crate) enum ConfigSource {
    /// A reload is not possible.
    None,
    /// A file.
    File(PathBuf),
    /// A front end. It gets the request and calls [`Handle::apply`] when it is ready.
    Front(mpsc::Sender<oneshot::Sender<Outcome>>),
}

/// Messages to the supervisor.
pub(crate) enum Input {
    Report(Report),
    Probed { who: Probed, seen: Probe },
    Loaded(Loaded),
    Reread(Reread),
    Scanned(Scanned),
    DirectoryChanged,
    Ask(Ask),
}

/// A server that was probed, with its address at that time. A reload may have changed the address since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probed {
    pool: Arc<str>,
    server: ServerId,
    target: Target,
    /// Round of its health. It changes with maintenance and with another check.
    round: u32,
}

/// Requests to the supervisor, each with a channel for the response.
pub(crate) enum Ask {
    Inspect(Box<dyn FnOnce(&Supervisor) + Send>),
    Reload(oneshot::Sender<Outcome>),
    SetState { wanted: StateChange, done: oneshot::Sender<Result<String, String>> },
    Apply { config: Box<Config>, files: Files, done: reload::Done },
    Access { service: String, change: AccessChange, done: oneshot::Sender<Result<String, AccessRefused>> },
    Stop,
}

/// A change of the administrative state of a server.
#[derive(Clone, Debug)]
pub(crate) struct StateChange {
    /// `pool/server`, or the server alone when only one pool has it.
    pub(crate) server: String,
    pub(crate) state: AdminState,
    /// Duration of the state; permanent when absent.
    pub(crate) time: Option<Duration>,
}

/// Sends requests to the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Input>);

impl Handle {
    /// Runs a function on the supervisor and returns its result. Returns `None` if the supervisor is gone.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        inspect: impl FnOnce(&Supervisor) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, response) = oneshot::channel();
        let inspect = Box::new(move |supervisor: &Supervisor| drop(done.send(inspect(supervisor))));
        self.0.send(Input::Ask(Ask::Inspect(inspect))).await.ok()?;
        response.await.ok()
    }

    /// Reads the configuration again. Returns the changes, or every problem.
    pub(crate) async fn reload(&self) -> Option<Outcome> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Reload(done))).await.ok()?;
        response.await.ok()
    }

    /// Applies a configuration that did not come from the file. Returns the changes, or every problem.
    pub(crate) async fn apply(&self, config: Config, files: Files) -> Option<Outcome> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Apply { config: Box::new(config), files, done })).await.ok()?;
        response.await.ok()
    }

    /// Sets a server to ready, drain or maintenance. Returns its full name, or the reason of the failure.
    pub(crate) async fn set_state(&self, wanted: StateChange) -> Option<Result<String, String>> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Ask(Ask::SetState { wanted, done })).await.ok()?;
        response.await.ok()
    }

    /// Changes the access rules of a service. Returns the change that was made, or the reason of the failure.
    pub(crate) async fn change_access(
        &self,
        service: String,
        change: AccessChange,
    ) -> Option<Result<String, AccessRefused>> {
        let (done, response) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Access { service, change, done })).await.ok()?;
        response.await.ok()
    }

    /// Shuts the program down as SIGTERM does.
    pub(crate) async fn stop(&self) {
        let _ = self.0.send(Input::Ask(Ask::Stop)).await;
    }
}

/// A pool with the cell in which its snapshots are published.
pub(crate) struct RunningPool {
    pub(crate) pool: Pool,
    pub(crate) slot: Arc<ArcSwap<Snapshot>>,
    usable: bool,
}

/// A listener: its address as bound, and its identity in the plane.
pub(crate) struct RunningListener {
    pub(crate) service: Arc<str>,
    /// The service in the plane. A change of the protocol makes a new one.
    serving: Arc<Service>,
    pub(crate) bound: Endpoint,
    id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining { until: Time },
    Over,
}

/// The supervisor.
pub(crate) struct Supervisor {
    pub(crate) setting: Setting,
    pub(crate) config: Config,
    pub(crate) pools: BTreeMap<Arc<str>, RunningPool>,
    pub(crate) services: BTreeMap<Arc<str>, Arc<Service>>,
    /// Destinations of request logs.
    pub(crate) request_logs: RequestLogs,
    materials: Materials,
    /// Next check of their files.
    watch: certificates::Watch,
    /// State of the discovery of servers.
    discovery: discovery::Discovery,
    /// Number of configurations that were applied. Files that were read for an earlier one are not used for
    /// this one.
    configurations: u64,
    /// Access rules that the operator added at run time, by service.
    pub(crate) access: BTreeMap<Arc<str>, Vec<Rule>>,
    /// Services whose rules changed, with the requests that wait until the rules are in force.
    access_changed: access::Changed,
    pub(crate) listeners: BTreeMap<ListenerKey, RunningListener>,
    /// Addresses for datagrams that a reload removed, with the time until which workers may still use them.
    leaving: BTreeMap<Endpoint, Time>,
    /// Addresses that were bound before there was a configuration.
    prebound: listeners::Fresh,
    /// Next check of the files of unix sockets.
    paths: paths::Paths,
    /// Services that were removed and still have connections.
    retiring: Vec<Arc<Service>>,
    probing: BTreeMap<Probed, AbortHandle>,
    /// Workers that have a persistent connection with a server.
    persistent: BTreeMap<(Arc<str>, ServerId), BTreeSet<usize>>,
    reloads: reload::Reloads,
    /// Next identity of a server. Identities of removed pools are not used again.
    next_id: u32,
    origin: Instant,
    random: Random,
    plane: Plane,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    phase: Phase,
    /// Shortages of local resources that were logged.
    shortage: shortage::Shortage,
    /// True if the log says that SIGUSR2 does nothing.
    user2_logged: bool,
    /// Channels that are notified when new clients are no longer accepted.
    watchers: Vec<oneshot::Sender<()>>,
}

impl Supervisor {
    /// Starts the workers. They serve nothing until a configuration is applied.
    pub(crate) fn start(setting: Setting) -> std::io::Result<(Self, Handle)> {
        let origin = Instant::now();
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let reports = sender.clone();
        let plane = Plane::start(&PlaneOptions {
            workers: setting.workers,
            pin: setting.pin,
            driver: setting.driver,
            origin,
            seed,
            report: Arc::new(move |report| drop(reports.try_send(Input::Report(report)))),
        })?;
        let handle = Handle(sender.clone());
        let supervisor = Self {
            request_logs: RequestLogs::new(setting.log.clone()),
            setting,
            config: Config::default(),
            pools: BTreeMap::new(),
            services: BTreeMap::new(),
            materials: Materials::default(),
            watch: certificates::Watch::default(),
            discovery: discovery::Discovery::default(),
            configurations: 0,
            access: BTreeMap::new(),
            access_changed: access::Changed::default(),
            listeners: BTreeMap::new(),
            leaving: BTreeMap::new(),
            prebound: listeners::Fresh::new(),
            paths: paths::Paths::default(),
            retiring: Vec::new(),
            probing: BTreeMap::new(),
            persistent: BTreeMap::new(),
            reloads: reload::Reloads::default(),
            next_id: 0,
            origin,
            random: Random::seeded(seed),
            plane,
            inputs,
            sender,
            phase: Phase::Serving,
            shortage: shortage::Shortage::default(),
            user2_logged: false,
            watchers: Vec::new(),
        };
        Ok((supervisor, handle))
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Time {
        Time::since_origin(self.origin.elapsed())
    }

    /// Returns the number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.plane.workers()
    }

    /// Returns true if new clients are no longer accepted.
    pub(crate) fn is_draining(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Returns a receiver that resolves when new clients are no longer accepted.
    pub(crate) fn draining(&mut self) -> oneshot::Receiver<()> {
        let (watcher, draining) = oneshot::channel();
        self.watchers.push(watcher);
        draining
    }

    /// Runs until a signal or a request ends it, then shuts down in order.
    pub(crate) async fn run(mut self, mut signals: Signals) {
        while self.phase != Phase::Over {
            self.on_time();
            let until = tokio::time::Instant::from_std(
                self.origin + Duration::from_nanos(self.deadline().as_nanos().min(1 << 60)),
            );
            tokio::select! {
                input = self.inputs.recv() => {
                    if let Some(input) = input {
                        self.on_input(input);
                    }
                    // All queued inputs are handled before anything is published. The bound lets signals in
                    // between.
                    for _ in 0..INPUTS_MAX {
                        let Ok(input) = self.inputs.try_recv() else { break };
                        self.on_input(input);
                    }
                }
                caught = signals.next() => self.on_signal(caught),
                () = tokio::time::sleep_until(until) => {}
            }
        }
        self.plane.stop();
        self.request_logs.flush();
        self.setting.log.event(&Event::Stopped {});
        self.setting.log.flush();
    }

    /// Logs an event.
    pub(crate) fn tell(&self, event: &Event) {
        self.setting.log.event(event);
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Report(report) => self.on_report(report),
            Input::Probed { who, seen } => self.on_probed(who, seen),
            Input::Loaded(loaded) => self.on_loaded(loaded),
            Input::Reread(reread) => self.on_reread(reread),
            Input::Scanned(scanned) => self.on_scanned(scanned),
            Input::DirectoryChanged => self.on_directory_changed(),
            Input::Ask(Ask::Access { service, change, done }) => {
                self.change_access(&service, change, done);
            }
            Input::Ask(Ask::Inspect(inspect)) => inspect(self),
            Input::Ask(Ask::Reload(done)) => self.begin_reload(Some(done)),
            Input::Ask(Ask::SetState { wanted, done }) => drop(done.send(self.set_state(&wanted))),
            Input::Ask(Ask::Apply { config, files, done }) => self.begin_apply(*config, files, done),
            Input::Ask(Ask::Stop) => self.on_stop("request"),
        }
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        let event = match report {
            Report::Failure { pool, server, target, failure } => {
                let Some(name) = self.name_at(&pool, server, &target) else { return };
                let running = self.pools.get_mut(&pool);
                let event = running.and_then(|running| running.pool.on_failure(now, server, failure));
                self.tell(&Event::ConnectFailed { pool, server: name, reason: failure.reason() });
                event
            }
            Report::LocalError { pool, server, error } => self.local_error(pool, server, &error),
            Report::Success { pool, server, target } => {
                if self.name_at(&pool, server, &target).is_none() {
                    return;
                }
                self.pools.get_mut(&pool).and_then(|running| running.pool.on_success(now, server))
            }
            Report::Session { pool, server, target, worker, fault } => {
                self.on_session((pool, server), &target, worker, fault)
            }
            Report::NoCapableServer { service } => Some(Event::NoCapableServer { service }),
            Report::Loop { service } => Some(Event::LoopFound { service }),
            Report::NoServer { service, reason } => {
                Some(Event::NoServer { service, reason: reason.to_string() })
            }
            Report::Full { service, connections_max } => {
                Some(Event::ServiceFull { service, connections_max })
            }
            Report::NoDescriptors { service, connections_max } => {
                Some(Event::DescriptorsUsedUp { service, connections_max })
            }
            Report::NoRing { error } => {
                Some(Event::Notice { text: format!("no io_uring here ({error}): epoll does the work") })
            }
            Report::AcceptFailed { service, error } => {
                Some(Event::AcceptFailed { service, error: error.to_string() })
            }
        };
        event.iter().for_each(|event| self.tell(event));
    }

    /// Handles a persistent connection that opened or closed. A server that needs one is up as long as any
    /// worker has one.
    fn on_session(
        &mut self,
        (pool, server): (Arc<str>, ServerId),
        target: &Target,
        worker: usize,
        fault: Option<String>,
    ) -> Option<Event> {
        let now = self.now();
        let name = self.name_at(&pool, server, target)?;
        if let Some(reason) = fault.clone() {
            self.tell(&Event::PersistentConnectionFailed { pool: pool.clone(), server: name, reason });
        }
        let persistent = self.persistent.entry((pool.clone(), server)).or_default();
        let seen = match fault {
            None => {
                persistent.insert(worker);
                Probe::Pass
            }
            Some(reason) => {
                persistent.remove(&worker);
                if !persistent.is_empty() {
                    return None;
                }
                self.persistent.remove(&(pool.clone(), server));
                Probe::Fail(reason)
            }
        };
        self.pools.get_mut(&pool)?.pool.on_session(now, server, seen)
    }

    /// Returns the name of a server if its address is still the one that a report is about.
    fn name_at(&self, pool: &Arc<str>, server: ServerId, target: &Target) -> Option<Arc<str>> {
        let server = self.pools.get(pool)?.pool.server(server)?;
        (server.target == *target).then(|| server.spec.name.clone())
    }

    fn on_probed(&mut self, who: Probed, seen: Probe) {
        let now = self.now();
        self.probing.remove(&who);
        let Some(name) = self.name_at(&who.pool, who.server, &who.target) else { return };
        let Some(running) = self.pools.get_mut(&who.pool) else { return };
        if running.pool.server(who.server).is_none_or(|server| server.health.round() != who.round) {
            return;
        }
        let failed = match &seen {
            Probe::Pass => None,
            Probe::Fail(reason) => {
                Some(Event::ProbeFailed { pool: who.pool, server: name, reason: reason.clone() })
            }
            Probe::Unmade(error) => return self.on_unmade(&who, name, error),
        };
        let event = running.pool.on_probe(now, who.server, seen);
        failed.iter().chain(&event).for_each(|event| self.tell(event));
    }

    fn set_state(&mut self, change: &StateChange) -> Result<String, String> {
        let (pool, id, full) = self.find_server(&change.server)?;
        let now = self.now();
        let until = change.time.map(|time| now + time);
        let running = self.pools.get_mut(&pool);
        let events = running.map(|running| running.pool.set_state(now, id, change.state, until));
        events.iter().flatten().for_each(|event| self.tell(event));
        Ok(full)
    }

    /// Handles everything that is due: the end of passive failures, slow starts, probes, the end of a drain.
    /// Then publishes.
    fn on_time(&mut self) {
        let now = self.now();
        let events: Vec<Event> =
            self.pools.values_mut().flat_map(|running| running.pool.on_time(now)).collect();
        events.iter().for_each(|event| self.tell(event));
        self.expire_access(now);
        self.apply_access();
        self.check_certificates(now);
        self.scan_directories(now);
        self.count_descriptors(shortage::Counted::InTime);
        self.check_paths(now);
        self.begin_probes(now);
        self.publish();
        self.check_drain(now);
        self.retiring.retain(|service| service.active() > 0);
        self.leaving.retain(|_, until| *until > now);
    }

    fn begin_probes(&mut self, now: Time) {
        let permits = self.check_permits();
        for (name, running) in &mut self.pools {
            let due = running.pool.due_probes(now, &mut self.random);
            let Some(spec) = running.pool.spec().check.clone().filter(|_| !due.is_empty()) else { continue };
            let spec = Arc::new(spec);
            let limits = check::header_limits(self.services.values(), &running.slot);
            for server in due.iter().filter_map(|id| running.pool.server(*id)) {
                let (pool, round) = (Arc::clone(name), server.health.round());
                let who = Probed { pool, server: server.id, target: server.target.clone(), round };
                // A server that is slower than the interval is not probed again before its response.
                if self.probing.contains_key(&who) {
                    continue;
                }
                // A probe of an earlier round has no effect any more, and must not prevent a new one.
                let first = Probed { round: 0, ..who.clone() };
                let stale: Vec<Probed> =
                    self.probing.range(first..who.clone()).map(|(who, _)| who.clone()).collect();
                for who in &stale {
                    let _ = self.probing.remove(who).map(|task| task.abort());
                }
                let server = CheckedServer {
                    endpoint: server.spec.endpoint.clone(),
                    target: server.target.clone(),
                    send_proxy: running.pool.spec().send_proxy,
                    limits,
                };
                let (spec, sender) = (Arc::clone(&spec), self.sender.clone());
                let permits = Arc::clone(&permits);
                let key = who.clone();
                let task = tokio::spawn(async move {
                    // The semaphore is never closed. A reload does not replace it, so its permits stay valid.
                    let _permit = permits.acquire().await;
                    let seen = check::probe(&server, &spec).await;
                    let _ = sender.send(Input::Probed { who, seen }).await;
                });
                self.probing.insert(key, task.abort_handle());
            }
        }
    }

    fn deadline(&self) -> Time {
        let now = self.now();
        let of_pools =
            self.pools.values().map(|running| running.pool.deadline()).min().unwrap_or(Time::NEVER);
        let of_pools = of_pools.min(self.access_deadline()).min(self.certificates_deadline());
        let of_pools = of_pools.min(self.discovery_deadline()).min(self.paths_deadline());
        match self.phase {
            Phase::Serving => of_pools,
            Phase::Draining { .. } | Phase::Over => of_pools.min(now + DRAIN_CHECK_EVERY),
        }
    }

    /// Returns the number of connections and flows of all services.
    fn active(&self) -> u64 {
        self.services.values().chain(&self.retiring).map(|service| service.active()).sum()
    }

    /// Handles a request to end. The first one stops new clients and lets present ones finish; the second one
    /// ends at once.
    fn on_stop(&mut self, signal: &'static str) {
        match self.phase {
            Phase::Serving => {
                self.plane.drain();
                for watcher in self.watchers.drain(..) {
                    let _ = watcher.send(());
                }
                self.phase = Phase::Draining { until: self.now() + self.setting.drain_timeout };
                let deadline = humantime::format_duration(self.setting.drain_timeout).to_string();
                self.tell(&Event::Draining { signal, connections: self.active(), deadline });
            }
            Phase::Draining { .. } => self.cut(),
            Phase::Over => {}
        }
    }

    fn check_drain(&mut self, now: Time) {
        let Phase::Draining { until } = self.phase else { return };
        if self.active() == 0 {
            self.tell(&Event::Drained {});
            self.phase = Phase::Over;
        } else if until <= now {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.tell(&Event::Cut { connections: self.active() });
        self.plane.cut();
        self.phase = Phase::Over;
    }

    fn pool_setting(&mut self) -> PoolSetting {
        PoolSetting { workers: self.plane.workers(), key: self.random.bits(), first_id: self.next_id }
    }
}
