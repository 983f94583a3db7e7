//! The supervisor: the one writer. It owns the pools, publishes their snapshots, hears what workers and checks saw, takes
//! on configurations, and ends the program in order.

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

use crate::check::{self, Patient};
use crate::config::Config;
use crate::material::Materials;
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

/// Reports, probes and requests that may wait; workers drop reports beyond it, for there will be others.
const INPUTS_MAX: usize = 4096;
/// While draining, how often to look whether everybody finished.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// How the program runs.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
    pub(crate) pin: bool,
    pub(crate) driver: Driver,
    pub(crate) log: Log,
    pub(crate) drain_timeout: Duration,
    pub(crate) source: ConfigSource,
}

/// What a new configuration changed, or every problem.
pub(crate) type Outcome = Result<Vec<String>, Vec<String>>;

/// What of the files that TLS is made of, when a front end has another configuration taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// They are read where something else is said of them; the program may have given up the right to read them.
    Kept,
    /// They are read again.
    Anew,
}

/// Where a reload has the configuration from.
#[derive(Clone, Debug)]
pub(crate) enum ConfigSource {
    /// There is nothing to reload.
    None,
    /// A file.
    File(PathBuf),
    /// A front end: it is told, and asks for [`Handle::apply`] in its own time.
    Front(mpsc::Sender<oneshot::Sender<Outcome>>),
}

/// What the supervisor hears.
pub(crate) enum Input {
    Report(Report),
    Probed { who: Probed, seen: Probe },
    Loaded(Loaded),
    Reread(Reread),
    Scanned(Scanned),
    DirectoryChanged,
    Ask(Ask),
}

/// Which server was probed, and where it was then: a reload may have moved it since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probed {
    pool: Arc<str>,
    server: ServerId,
    target: Target,
    /// Of its health: maintenance or another check may have come since.
    round: u32,
}

/// What others want of the supervisor. Each has a place for the answer.
pub(crate) enum Ask {
    Look(Box<dyn FnOnce(&Supervisor) + Send>),
    Reload(oneshot::Sender<Outcome>),
    SetState { wanted: StateChange, done: oneshot::Sender<Result<String, String>> },
    Apply { config: Box<Config>, files: Files, done: reload::Done },
    Access { service: String, change: AccessChange, done: oneshot::Sender<Result<String, AccessRefused>> },
    Stop,
}

/// What a server should be.
#[derive(Clone, Debug)]
pub(crate) struct StateChange {
    /// `pool/server`, or the server alone when only one pool has it.
    pub(crate) server: String,
    pub(crate) state: AdminState,
    /// For how long; until told otherwise when absent.
    pub(crate) time: Option<Duration>,
}

/// Lets others ask.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Input>);

impl Handle {
    /// Has a look at the supervisor; `None` when it is gone.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Supervisor) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = oneshot::channel();
        let look = Box::new(move |supervisor: &Supervisor| drop(done.send(look(supervisor))));
        self.0.send(Input::Ask(Ask::Look(look))).await.ok()?;
        answer.await.ok()
    }

    /// Reads the configuration again; what changed, or every problem.
    pub(crate) async fn reload(&self) -> Option<Outcome> {
        let (done, answer) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Reload(done))).await.ok()?;
        answer.await.ok()
    }

    /// Takes on a configuration that did not come from the file; what changed, or every problem.
    pub(crate) async fn apply(&self, config: Config, files: Files) -> Option<Outcome> {
        let (done, answer) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Apply { config: Box::new(config), files, done })).await.ok()?;
        answer.await.ok()
    }

    /// Makes a server ready, lets it drain or takes it out. Answers with its full name, or why not.
    pub(crate) async fn set_state(&self, wanted: StateChange) -> Option<Result<String, String>> {
        let (done, answer) = oneshot::channel();
        self.0.send(Input::Ask(Ask::SetState { wanted, done })).await.ok()?;
        answer.await.ok()
    }

    /// Changes who may come in to a service. Answers with what was done, or why not.
    pub(crate) async fn change_access(
        &self,
        service: String,
        change: AccessChange,
    ) -> Option<Result<String, AccessRefused>> {
        let (done, answer) = oneshot::channel();
        self.0.send(Input::Ask(Ask::Access { service, change, done })).await.ok()?;
        answer.await.ok()
    }

    /// Ends the program as SIGTERM does.
    pub(crate) async fn stop(&self) {
        let _ = self.0.send(Input::Ask(Ask::Stop)).await;
    }
}

/// A pool with the place where its snapshots are published.
pub(crate) struct RunningPool {
    pub(crate) pool: Pool,
    pub(crate) slot: Arc<ArcSwap<Snapshot>>,
    usable: bool,
}

/// A listener: its address as bound, and what the plane knows it by.
pub(crate) struct RunningListener {
    pub(crate) service: Arc<str>,
    /// The service as the plane has it: one of another protocol is another one.
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
    /// Where lines about requests go.
    pub(crate) request_logs: RequestLogs,
    /// What TLS is made of.
    materials: Materials,
    /// When their files are looked at again.
    watch: certificates::Watch,
    /// Servers that are found while it runs.
    discovery: discovery::Discovery,
    /// How many configurations were taken on: what was read for an earlier one is not for this one.
    configurations: u64,
    /// What the operator said at run time of who may come in, by service.
    pub(crate) access: BTreeMap<Arc<str>, Vec<Rule>>,
    /// Services whose rules changed, with those who wait for that to be in force.
    access_changed: access::Changed,
    pub(crate) listeners: BTreeMap<ListenerKey, RunningListener>,
    /// Addresses of datagrams that a reload took out, which workers may have until then.
    leaving: BTreeMap<Endpoint, Time>,
    /// Addresses that were bound before there was a configuration.
    brought: listeners::Fresh,
    /// When the files of unix sockets are looked at again.
    paths: paths::Paths,
    /// Services that left, while they still have connections.
    retiring: Vec<Arc<Service>>,
    probing: BTreeMap<Probed, AbortHandle>,
    /// The workers whose connections stand with a server.
    standing: BTreeMap<(Arc<str>, ServerId), BTreeSet<usize>>,
    reloads: reload::Reloads,
    /// Identities of servers of pools that left are not given again.
    next_id: u32,
    origin: Instant,
    random: Random,
    plane: Plane,
    inputs: mpsc::Receiver<Input>,
    outside: mpsc::Sender<Input>,
    phase: Phase,
    /// What was said of shortages of our own.
    shortage: shortage::Shortage,
    /// The log says that SIGUSR2 does nothing.
    user2_told: bool,
    /// Those that want to know when new clients are no longer taken.
    watchers: Vec<oneshot::Sender<()>>,
}

impl Supervisor {
    /// Starts the workers; nothing is served before a configuration is taken on.
    pub(crate) fn start(setting: Setting) -> std::io::Result<(Self, Handle)> {
        let origin = Instant::now();
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let (outside, inputs) = mpsc::channel(INPUTS_MAX);
        let reports = outside.clone();
        let plane = Plane::start(&PlaneOptions {
            workers: setting.workers,
            pin: setting.pin,
            driver: setting.driver,
            origin,
            seed,
            report: Arc::new(move |report| drop(reports.try_send(Input::Report(report)))),
        })?;
        let handle = Handle(outside.clone());
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
            brought: listeners::Fresh::new(),
            paths: paths::Paths::default(),
            retiring: Vec::new(),
            probing: BTreeMap::new(),
            standing: BTreeMap::new(),
            reloads: reload::Reloads::default(),
            next_id: 0,
            origin,
            random: Random::seeded(seed),
            plane,
            inputs,
            outside,
            phase: Phase::Serving,
            shortage: shortage::Shortage::default(),
            user2_told: false,
            watchers: Vec::new(),
        };
        Ok((supervisor, handle))
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Time {
        Time::since_origin(self.origin.elapsed())
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.plane.workers()
    }

    /// Whether new clients are no longer taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Becomes ready when new clients are no longer taken.
    pub(crate) fn draining(&mut self) -> oneshot::Receiver<()> {
        let (watcher, draining) = oneshot::channel();
        self.watchers.push(watcher);
        draining
    }

    /// Works until told to end, then ends in order.
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
                    // A burst is taken in whole before anything is published, but signals get their turn.
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
            Input::Ask(Ask::Look(look)) => look(self),
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
            Report::Untakable { service } => Some(Event::Untakable { service }),
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

    /// A server with which a connection has to stand is up as long as one of a worker does.
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
            self.tell(&Event::SessionFailed { pool: pool.clone(), server: name, reason });
        }
        let standing = self.standing.entry((pool.clone(), server)).or_default();
        let seen = match fault {
            None => {
                standing.insert(worker);
                Probe::Pass
            }
            Some(reason) => {
                standing.remove(&worker);
                if !standing.is_empty() {
                    return None;
                }
                self.standing.remove(&(pool.clone(), server));
                Probe::Fail(reason)
            }
        };
        self.pools.get_mut(&pool)?.pool.on_session(now, server, seen)
    }

    /// The name of a server, if it is still where it was when something was seen of it.
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

    /// What time alone brings: passive failures that are over, slow starts, probes, the end of a drain. Then publishes.
    fn on_time(&mut self) {
        let now = self.now();
        let events: Vec<Event> =
            self.pools.values_mut().flat_map(|running| running.pool.on_time(now)).collect();
        events.iter().for_each(|event| self.tell(event));
        self.expire_access(now);
        self.apply_access();
        self.look_at_certificates(now);
        self.look_for_servers(now);
        self.count_descriptors(shortage::Counted::InTime);
        self.look_at_paths(now);
        self.begin_probes(now);
        self.publish();
        self.look_at_drain(now);
        self.retiring.retain(|service| service.active() > 0);
        self.leaving.retain(|_, until| *until > now);
    }

    fn begin_probes(&mut self, now: Time) {
        let places = self.check_places();
        for (name, running) in &mut self.pools {
            let due = running.pool.due_probes(now, &mut self.random);
            let Some(spec) = running.pool.spec().check.clone().filter(|_| !due.is_empty()) else { continue };
            let spec = Arc::new(spec);
            let limits = check::head_limits(self.services.values(), &running.slot);
            for server in due.iter().filter_map(|id| running.pool.server(*id)) {
                let (pool, round) = (Arc::clone(name), server.health.round());
                let who = Probed { pool, server: server.id, target: server.target.clone(), round };
                // A server that is slower than the interval is asked again when it has answered.
                if self.probing.contains_key(&who) {
                    continue;
                }
                // One of an earlier round says nothing any more, and must not stand in the way.
                let first = Probed { round: 0, ..who.clone() };
                let stale: Vec<Probed> =
                    self.probing.range(first..who.clone()).map(|(who, _)| who.clone()).collect();
                for who in &stale {
                    let _ = self.probing.remove(who).map(|task| task.abort());
                }
                let patient = Patient {
                    endpoint: server.spec.endpoint.clone(),
                    target: server.target.clone(),
                    send_proxy: running.pool.spec().send_proxy,
                    limits,
                };
                let (spec, outside) = (Arc::clone(&spec), self.outside.clone());
                let places = Arc::clone(&places);
                let key = who.clone();
                let task = tokio::spawn(async move {
                    // One that is closed is never: the places of before a reload are still places.
                    let _place = places.acquire().await;
                    let seen = check::probe(&patient, &spec).await;
                    let _ = outside.send(Input::Probed { who, seen }).await;
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
            Phase::Draining { .. } | Phase::Over => of_pools.min(now + DRAIN_LOOK),
        }
    }

    /// Connections and flows of all services.
    fn active(&self) -> u64 {
        self.services.values().chain(&self.retiring).map(|service| service.active()).sum()
    }

    /// The first time: no new clients, those that are there may finish. The second time: at once.
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

    fn look_at_drain(&mut self, now: Time) {
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
