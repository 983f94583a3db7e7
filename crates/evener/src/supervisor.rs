//! The supervisor: the only writer of the pools. It publishes their snapshots, receives reports of workers and
//! checks, applies configurations, and shuts the program down in order.

mod access;
mod apply;
mod certificates;
mod connections;
mod discovery;
mod handle;
mod inspect;
mod listeners;
mod paths;
mod probes;
mod publish;
mod reload;
mod reservation;
mod shortage;
mod signals;

use crate::certificates::TlsSettings;
use crate::config::Config;
use crate::events::Events;
use crate::request_log::RequestLogs;
use crate::signals::Signals;
use arc_swap::ArcSwap;
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::Snapshot;
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use evener_proxy::{Driver, Plane, PlaneOptions, Report, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

pub(crate) use access::{AccessChange, AccessError};
pub(crate) use certificates::Reread;
pub(crate) use discovery::Scanned;
pub(crate) use handle::{Handle, Request, StateChange};
pub(crate) use listeners::ListenerKey;
pub(crate) use probes::Probed;
pub(crate) use reload::Loaded;

/// Maximum number of queued reports, probes and requests. Workers drop further reports and repeat them later.
const INPUTS_MAX: usize = 4096;
/// Interval of checks while draining whether all connections have ended.
const DRAIN_CHECK_EVERY: Duration = Duration::from_millis(50);

/// Settings of the whole program.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    workers: usize,
    pin: bool,
    driver: Driver,
    events: Events,
    drain_timeout: Duration,
    source: ConfigSource,
}

impl Setting {
    /// Creates the settings of an instance with `workers` workers that use epoll and are not pinned.
    pub(crate) fn new(workers: usize, source: ConfigSource, events: Events) -> Self {
        Self { workers, pin: false, driver: Driver::Epoll, events, drain_timeout: Duration::ZERO, source }
    }

    /// Lets clients finish for this time after a request to end.
    pub(crate) fn drain_for(self, drain_timeout: Duration) -> Self {
        Self { drain_timeout, ..self }
    }

    /// Changes the I/O mechanism of the workers.
    pub(crate) fn driven_by(self, driver: Driver) -> Self {
        Self { driver, ..self }
    }

    /// Pins worker n to core n if `pin` is true.
    pub(crate) fn pinned(self, pin: bool) -> Self {
        Self { pin, ..self }
    }
}

/// The changes that a new configuration made, or every problem.
pub(crate) type Outcome = Result<Vec<String>, Vec<String>>;

/// Treatment of TLS files when a front end applies another configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// Files are read only where the configuration of TLS changed. The program may have given up the right to
    /// read the other files.
    KeepUnchanged,
    /// All files are read again.
    ReadAll,
}

/// Source of the configuration for a reload.
#[derive(Clone, Debug)]
pub(crate) enum ConfigSource {
    /// A reload is not possible.
    None,
    /// A file.
    File(PathBuf),
    /// A front end. It receives the request and calls [`Handle::apply`] when it is ready.
    Front(mpsc::Sender<oneshot::Sender<Outcome>>),
}

/// Messages to the supervisor.
pub(crate) enum Input {
    Report(Report),
    Probed { probed: Probed, result: Probe, took: Duration },
    Loaded(Loaded),
    Reread(Reread),
    Scanned(Scanned),
    DirectoryChanged,
    Request(Request),
}

/// A pool with the cell in which its snapshots are published.
struct RunningPool {
    pool: Pool,
    slot: Arc<ArcSwap<Snapshot>>,
    usable: bool,
}

/// A listener with its service, its bound address and its identity in the plane.
struct RunningListener {
    service: Arc<str>,
    /// The service in the plane. A change of the protocol replaces it.
    serving: Arc<Service>,
    bound: Endpoint,
    id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining { until: Time },
    Ended,
}

/// The supervisor.
pub(crate) struct Supervisor {
    setting: Setting,
    config: Config,
    pools: BTreeMap<Arc<str>, RunningPool>,
    services: BTreeMap<Arc<str>, Arc<Service>>,
    /// Destinations of request logs.
    request_logs: RequestLogs,
    tls: TlsSettings,
    /// Checks of certificate files.
    watch: certificates::Watch,
    /// State of the discovery of servers.
    discovery: discovery::Discovery,
    /// Number of configurations that were applied. Files that were read for an earlier configuration are not
    /// used for the present configuration.
    configurations: u64,
    /// Access rules that the operator added at run time.
    access: access::AccessRules,
    listeners: BTreeMap<ListenerKey, RunningListener>,
    /// Addresses for datagrams that a reload removed, with the time until which workers may still use them.
    leaving: BTreeMap<Endpoint, Time>,
    /// Addresses that were bound before the first configuration was applied.
    prebound: listeners::NewListeners,
    /// Checks of the files of unix sockets.
    paths: paths::Paths,
    /// Services that were removed and still have connections.
    retiring: Vec<Arc<Service>>,
    probes: probes::Probes,
    /// Workers that have a persistent connection to a server.
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
    /// True if a notice that SIGUSR2 has no effect was logged.
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
        let handle = Handle::new(sender.clone());
        let supervisor = Self {
            request_logs: RequestLogs::new(setting.events.clone()),
            setting,
            config: Config::default(),
            pools: BTreeMap::new(),
            services: BTreeMap::new(),
            tls: TlsSettings::default(),
            watch: certificates::Watch::default(),
            discovery: discovery::Discovery::default(),
            configurations: 0,
            access: access::AccessRules::default(),
            listeners: BTreeMap::new(),
            leaving: BTreeMap::new(),
            prebound: listeners::NewListeners::new(),
            paths: paths::Paths::default(),
            retiring: Vec::new(),
            probes: probes::Probes::default(),
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

    /// Returns a receiver that resolves when new clients are no longer accepted.
    pub(crate) fn draining(&mut self) -> oneshot::Receiver<()> {
        let (watcher, draining) = oneshot::channel();
        self.watchers.push(watcher);
        draining
    }

    /// Runs until a signal or a request ends it, then shuts down in order.
    pub(crate) async fn run(mut self, mut signals: Signals) {
        while self.phase != Phase::Ended {
            self.on_time();
            let until = tokio::time::Instant::from_std(
                self.origin + Duration::from_nanos(self.deadline().as_nanos().min(1 << 60)),
            );
            tokio::select! {
                input = self.inputs.recv() => {
                    if let Some(input) = input {
                        self.on_input(input);
                    }
                    // All queued inputs are handled before anything is published. The bound keeps a flood of
                    // inputs from delaying signals.
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
        self.setting.events.emit(&Event::Stopped {});
        self.setting.events.flush();
    }

    /// Emits an event, to the log and to all other receivers of events.
    pub(crate) fn log(&self, event: &Event) {
        self.setting.events.emit(event);
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Report(report) => self.on_report(report),
            Input::Probed { probed, result, took } => self.on_probed(probed, result, took),
            Input::Loaded(loaded) => self.on_loaded(loaded),
            Input::Reread(reread) => self.on_reread(reread),
            Input::Scanned(scanned) => self.on_scanned(scanned),
            Input::DirectoryChanged => self.on_directory_changed(),
            Input::Request(Request::Access { service, change, done }) => {
                self.change_access(&service, change, done);
            }
            Input::Request(Request::Inspect(inspect)) => inspect(self),
            Input::Request(Request::Reload(done)) => self.begin_reload(Some(done)),
            Input::Request(Request::SetState { wanted, done }) => drop(done.send(self.set_state(&wanted))),
            Input::Request(Request::Apply { config, files, done }) => self.begin_apply(*config, files, done),
            Input::Request(Request::Stop) => self.on_stop("request"),
        }
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        let event = match report {
            Report::Failure { pool, server, target, failure } => {
                let Some(name) = self.name_at(&pool, server, &target) else { return };
                let running = self.pools.get_mut(&pool);
                let event = running.and_then(|running| running.pool.on_failure(now, server, failure));
                self.log(&Event::ConnectFailed { pool, server: name, reason: failure.reason() });
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
            Report::NoRing { error } => Some(Event::Notice {
                text: format!("io_uring is not available ({error}): the workers use epoll"),
            }),
            Report::AcceptFailed { service, error } => {
                Some(Event::AcceptFailed { service, error: error.to_string() })
            }
        };
        event.iter().for_each(|event| self.log(event));
    }

    /// Handles a persistent connection that opened or closed. A server that needs a persistent connection is up
    /// while at least one worker has such a connection.
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
            self.log(&Event::PersistentConnectionFailed { pool: pool.clone(), server: name, reason });
        }
        let persistent = self.persistent.entry((pool.clone(), server)).or_default();
        let result = match fault {
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
        self.pools.get_mut(&pool)?.pool.on_session(now, server, result)
    }

    /// Returns the name of a server if its address is still `target`, the address in a report.
    fn name_at(&self, pool: &Arc<str>, server: ServerId, target: &Target) -> Option<Arc<str>> {
        let server = self.pools.get(pool)?.pool.server(server)?;
        (server.target == *target).then(|| server.spec.name.clone())
    }

    /// Does all work that is due, such as the end of passive failures, slow starts, probes and the end of a
    /// drain, and publishes changed pools.
    fn on_time(&mut self) {
        let now = self.now();
        let events: Vec<Event> =
            self.pools.values_mut().flat_map(|running| running.pool.on_time(now)).collect();
        events.iter().for_each(|event| self.log(event));
        self.expire_access(now);
        self.apply_access();
        self.check_certificates(now);
        self.scan_directories(now);
        self.count_descriptors(shortage::CountWhen::Due);
        self.check_paths(now);
        self.begin_probes(now);
        self.publish();
        self.check_drain(now);
        self.retiring.retain(|service| service.active() > 0);
        self.leaving.retain(|_, until| *until > now);
    }

    fn deadline(&self) -> Time {
        let now = self.now();
        let next = self.pools.values().map(|running| running.pool.deadline()).min().unwrap_or(Time::NEVER);
        let next = next.min(self.access.deadline()).min(self.certificates_deadline());
        let next = next.min(self.discovery_deadline()).min(self.paths_deadline());
        match self.phase {
            Phase::Serving => next,
            Phase::Draining { .. } | Phase::Ended => next.min(now + DRAIN_CHECK_EVERY),
        }
    }

    /// Handles a request to end. After the first request, no new clients are accepted and present clients may
    /// finish. The second request closes their connections.
    fn on_stop(&mut self, signal: &'static str) {
        match self.phase {
            Phase::Serving => {
                self.plane.drain();
                for watcher in self.watchers.drain(..) {
                    let _ = watcher.send(());
                }
                self.phase = Phase::Draining { until: self.now() + self.setting.drain_timeout };
                let deadline = humantime::format_duration(self.setting.drain_timeout).to_string();
                self.log(&Event::Draining { signal, connections: self.active(), deadline });
            }
            Phase::Draining { .. } => self.close_all(),
            Phase::Ended => {}
        }
    }

    fn check_drain(&mut self, now: Time) {
        let Phase::Draining { until } = self.phase else { return };
        if self.active() == 0 {
            self.log(&Event::Drained {});
            self.phase = Phase::Ended;
        } else if until <= now {
            self.close_all();
        }
    }

    fn close_all(&mut self) {
        self.log(&Event::Cut { connections: self.active() });
        self.plane.cut();
        self.phase = Phase::Ended;
    }

    fn pool_setting(&mut self) -> PoolSetting {
        PoolSetting { workers: self.plane.workers(), key: self.random.bits(), first_id: self.next_id }
    }
}
