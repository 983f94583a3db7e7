//! The supervisor: the only writer of the pools. It publishes their snapshots, receives reports of workers and
//! checks, applies configurations, and shuts the program down in order.

mod access;
mod api;
mod apply;
mod cache;
mod certificates;
mod confirmation;
mod connections;
mod discovery;
mod failures;
mod handle;
mod hooks;
mod ipvs;
mod listeners;
mod operator;
mod paths;
mod plan;
mod pools;
mod probes;
mod query;
mod reload;
mod reservation;
mod samples;
mod scripts;
mod shortage;
mod signals;
mod succession;
mod upgrade;
mod view;
mod xdp;

use crate::certificates::unix_time;
use crate::config::Config;
use crate::discover::Found;
use crate::events::Events;
use crate::exec::notify::Notifier;
use crate::planes::{IpvsPlane, IpvsReport, Planes, RunningService, XdpPlane, event_of, event_of_ipvs};
use crate::request_log::RequestLogs;
use crate::service_manager;
use crate::signals::Signals;
use crate::upgrade::EndpointPhase;
use crate::upgrade::predecessor::Passed;
use crate::upgrade::socket::Role;
use crate::upgrade::successor::HandOver;
use certificates::Certificates;
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::service::ServiceLive;
use evener_core::{Random, Time};
use evener_proxy::{Bound, Driver, EndReason, PlaneOptions, Report};
use listeners::Listeners;
use pools::{Pools, Reported};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use access::{AccessChange, AccessError};
pub(crate) use api::Endpoints;
pub(crate) use cache::{ExpungeError, ExpungeExtent};
pub(crate) use certificates::Reread;
pub(crate) use confirmation::GoneBack;
use confirmation::PendingView;
pub(crate) use handle::{Decision, Handle, Request, StateChange};
pub(crate) use operator::{Operate, OperateError, Operation};
pub(crate) use plan::{Applied, ApplyRequest, PlanSetting, Planned, Refusal, ServiceFate};
pub(crate) use probes::Probed;
pub(crate) use reload::Loaded;
pub(crate) use scripts::ScriptVerdict;
pub(crate) use upgrade::{UpgradeRequest, UpgradeStep, Upgraded};

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
    /// Origin of times; the start of the instance if it is `None`.
    origin: Option<Instant>,
}

impl Setting {
    /// Creates the settings of an instance with `workers` workers that use epoll and are not pinned.
    pub(crate) fn new(workers: usize, source: ConfigSource, events: Events) -> Self {
        let drain_timeout = Duration::ZERO;
        Self { workers, pin: false, driver: Driver::Auto, events, drain_timeout, source, origin: None }
    }

    /// Takes the origin of times of the previous instance.
    pub(crate) fn originated(self, origin: Instant) -> Self {
        Self { origin: Some(origin), ..self }
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
    /// An observation of the XDP plane.
    Xdp(evener_xdp::plane::Report),
    /// An observation of the IPVS plane.
    Ipvs(IpvsReport),
    Probed {
        probed: Probed,
        result: Probe,
        took: Duration,
    },
    /// A message of a function of the configuration.
    Script(crate::config::functions::Output),
    /// Result of a function that checked a server.
    ScriptChecked {
        probed: Probed,
        result: ScriptVerdict,
        took: Duration,
    },
    Loaded(Box<Loaded>),
    /// The configuration before an apply that was not confirmed, with its inputs.
    GoneBack(Box<GoneBack>),
    Reread(Reread),
    /// Servers that a source lists for a pool, in the response to the read with this number.
    Found {
        found: Found,
        number: u64,
    },
    /// A file or directory with servers may have changed.
    FilesChanged,
    /// A step of an upgrade.
    Upgrade(UpgradeStep),
    /// The previous instance passed something on.
    Passed(Passed),
    Request(Request),
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
    notifier: Notifier,
    config: Config,
    pools: Pools,
    services: BTreeMap<Arc<str>, RunningService>,
    /// Destinations of request logs.
    request_logs: RequestLogs,
    certificates: Certificates,
    /// State of the discovery of servers.
    discovery: discovery::Discovery,
    /// Number of configurations that were applied. Files that were read for an earlier configuration are not
    /// used for the present configuration.
    configurations: u64,
    /// Inputs of the configuration in use, as they were when it was applied.
    inputs_in_use: Option<crate::inputs::Inputs>,
    /// Access rules that the operator added at run time.
    access: access::AccessRules,
    listeners: Listeners,
    /// The address of the admin API.
    api: api::Api,
    /// Services that were removed and still have connections.
    retiring: Vec<Arc<ServiceLive>>,
    probes: probes::Probes,
    reloads: reload::Reloads,
    /// The configuration that was applied, and the wait for its confirmation.
    confirmation: confirmation::Confirmation,
    origin: Instant,
    random: Random,
    plane: Planes,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    phase: Phase,
    samples: samples::Samples,
    /// Functions of the configuration, and their changes.
    scripts: scripts::Scripts,
    /// Changes by operators.
    operator: operator::Operator,
    /// Shortages of local resources that were logged.
    shortage: shortage::Shortage,
    upgrades: upgrade::Upgrades,
    /// Channels that are notified when new clients are no longer accepted.
    watchers: Vec<oneshot::Sender<()>>,
}

/// Shortest time between two turns of the work that is due. Each turn looks at all servers, so that thousands of
/// checks a second, and their results, have to share turns.
const TURN_MIN: Duration = Duration::from_millis(5);

/// The turns of the work that is due.
#[derive(Default)]
struct Turn {
    /// Earliest time of the next turn.
    earliest: Time,
    due: Time,
}

impl Turn {
    fn is_due(&self, now: Time) -> bool {
        self.due <= now
    }

    /// Ends a turn. `deadline` is the time at which there is work again.
    fn end(&mut self, now: Time, deadline: Time) {
        self.earliest = now + TURN_MIN;
        self.due = deadline.max(self.earliest);
    }

    /// Makes the next turn as early as it may be, because an input may have caused work.
    fn hasten(&mut self) {
        self.due = self.due.min(self.earliest);
    }
}

impl Supervisor {
    /// Starts the workers. They serve nothing until a configuration is applied.
    pub(crate) fn start(setting: Setting) -> std::io::Result<(Self, Handle)> {
        let origin = setting.origin.unwrap_or_else(Instant::now);
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let reports = sender.clone();
        let xdp_reports = sender.clone();
        let ipvs_reports = sender.clone();
        let xdp =
            XdpPlane::new(origin, Arc::new(move |report| drop(xdp_reports.try_send(Input::Xdp(report)))));
        let ipvs = IpvsPlane::new(
            ipvs::state_file(&setting.source),
            Arc::new(move |report| drop(ipvs_reports.try_send(Input::Ipvs(report)))),
        );
        let plane = Planes::start(
            &PlaneOptions {
                workers: setting.workers,
                pin: setting.pin,
                driver: setting.driver,
                origin,
                seed,
                report: Arc::new(move |report| drop(reports.try_send(Input::Report(report)))),
                wants_details: setting.events.wants_details(),
            },
            xdp,
            ipvs,
        )?;
        let handle = Handle::new(sender.clone());
        let supervisor = Self {
            notifier: Notifier::new(setting.events.clone()),
            reloads: reload::Reloads::new(setting.source.clone(), sender.clone()),
            request_logs: RequestLogs::new(setting.events.clone()),
            setting,
            config: Config::default(),
            pools: Pools::default(),
            services: BTreeMap::new(),
            certificates: Certificates::default(),
            discovery: discovery::Discovery::new(sender.clone()),
            configurations: 0,
            inputs_in_use: None,
            access: access::AccessRules::default(),
            listeners: Listeners::default(),
            api: api::Api::default(),
            retiring: Vec::new(),
            probes: probes::Probes::default(),
            confirmation: confirmation::Confirmation::default(),
            origin,
            random: Random::seeded(seed),
            plane,
            inputs,
            sender,
            phase: Phase::Serving,
            samples: samples::Samples::default(),
            scripts: scripts::Scripts::default(),
            operator: operator::Operator::default(),
            shortage: shortage::Shortage::default(),
            upgrades: upgrade::Upgrades::default(),
            watchers: Vec::new(),
        };
        Ok((supervisor, handle))
    }

    /// Adds sockets that are bound already, for the addresses of the first configuration. The program may have
    /// no right to bind these addresses any more.
    pub(crate) fn add_prebound(&mut self, bound: Vec<(crate::inherited::ListenerKey, Bound)>) {
        self.listeners.add_prebound(bound);
    }

    /// Adds a socket of the admin API or of the metrics, which the next instance takes over at an upgrade.
    pub(crate) fn add_endpoint(&mut self, role: Role, address: String, socket: OwnedFd) {
        self.upgrades.add_endpoint(role, address, socket);
    }

    /// Returns a receiver of the process that serves the admin API and the metrics.
    pub(crate) fn endpoint_phase(&self) -> watch::Receiver<EndpointPhase> {
        self.upgrades.endpoint_phase()
    }

    /// Returns a receiver of the address at which the admin API has to be served.
    pub(crate) fn api_endpoint(&self) -> Endpoints {
        self.api.subscribe()
    }

    /// Returns a receiver that resolves when new clients are no longer accepted.
    pub(crate) fn draining(&mut self) -> oneshot::Receiver<()> {
        let (watcher, draining) = oneshot::channel();
        self.watchers.push(watcher);
        draining
    }

    /// Runs until a signal or a request ends it, then shuts down in order.
    pub(crate) async fn run(mut self, mut signals: Signals) {
        let mut turn = Turn::default();
        loop {
            let now = self.now();
            if turn.is_due(now) {
                self.on_time();
                turn.end(now, self.deadline());
            } else {
                self.publish();
                self.check_drain(now);
            }
            if self.phase == Phase::Ended {
                break;
            }
            let until = tokio::time::Instant::from_std(
                self.origin + Duration::from_nanos(turn.due.as_nanos().min(1 << 60)),
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
                    turn.hasten();
                }
                caught = signals.next() => {
                    self.on_signal(caught);
                    turn = Turn::default();
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
        let succeeded = self.finish_passing();
        self.plane.stop();
        succeeded.into_iter().for_each(HandOver::finish);
        // Connections that were cut at the drain deadline are the last reports of the workers.
        for _ in 0..INPUTS_MAX {
            let Ok(input) = self.inputs.try_recv() else { break };
            if let Input::Report(Report::Unserved { service, unserved, similar }) = input {
                self.setting.events.emit(&failures::event_of(service, *unserved, similar));
            }
        }
        self.request_logs.flush();
        self.setting.events.emit(&Event::Stopped {});
        self.setting.events.flush();
    }

    /// Emits an event, to the log and to all other receivers of events.
    pub(crate) fn log(&self, event: &Event) {
        self.setting.events.emit(event);
        self.run_hook(event);
        self.scripts.on_event(event);
    }

    /// Logs events in order.
    fn log_all(&self, events: &[Event]) {
        events.iter().for_each(|event| self.log(event));
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Report(report) => self.on_report(report),
            Input::Xdp(report) => self.log(&event_of(report)),
            Input::Ipvs(report) => self.log(&event_of_ipvs(report)),
            Input::Probed { probed, result, took } => self.on_probed(&probed, result, took),
            Input::Script(output) => self.on_script(output),
            Input::ScriptChecked { probed, result, took } => self.on_script_checked(&probed, result, took),
            Input::Loaded(loaded) => self.on_loaded(*loaded),
            Input::GoneBack(found) => self.on_gone_back(*found),
            Input::Reread(reread) => match self.certificates.on_reread(reread, self.configurations) {
                Ok(tls) => tls.into_iter().for_each(|tls| self.apply_tls(tls)),
                Err(refused) => self.log(&refused),
            },
            Input::Found { found, number } => self.on_found(found, number),
            Input::FilesChanged => self.discovery.on_files_changed(self.now()),
            Input::Upgrade(step) => self.on_upgrade_step(step),
            Input::Passed(passed) => self.on_passed(passed),
            Input::Request(request) => self.on_request(request),
        }
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        let event = match report {
            Report::Failure { pool, server, target, failure } => {
                let at = Reported::new(&pool, server, &target);
                let events = self.pools.on_failure(now, at, &failure);
                return self.log_all(&events);
            }
            Report::LocalError { pool, server, error } => self.local_error(pool, server, &error),
            Report::Success { pool, server, target } => {
                self.pools.on_success(now, Reported::new(&pool, server, &target))
            }
            Report::Session { pool, server, target, worker, fault } => {
                let at = Reported::new(&pool, server, &target);
                let events = self.pools.on_session(now, at, worker, fault);
                return self.log_all(&events);
            }
            Report::NoCapableServer { service } => Some(Event::NoCapableServer { service }),
            Report::RetriesExhausted { service, pool } => Some(Event::RetriesExhausted { service, pool }),
            Report::Loop { service } => Some(Event::LoopFound { service }),
            Report::Unserved { service, unserved, similar } => {
                Some(failures::event_of(service, *unserved, similar))
            }
            Report::Repaired { service, pool, server, detail } => {
                Some(Event::ResponseRepaired { service, pool, server, detail })
            }
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

    /// Publishes one snapshot of every pool that changed, and closes the connections of servers that are down
    /// since, where the configuration requires it.
    fn publish(&mut self) {
        let (events, down) = self.pools.publish(&mut self.plane);
        self.log_all(&events);
        down.iter().for_each(|(pool, server)| self.end_server(pool, server, EndReason::Down, |_| {}));
    }

    /// Does all work that is due, such as the end of passive failures, slow starts, probes and the end of a
    /// drain, and publishes changed pools.
    fn on_time(&mut self) {
        let now = self.now();
        let events = self.pools.on_time(now);
        self.log_all(&events);
        let events = self.access.on_time(now);
        self.log_all(&events);
        self.apply_access();
        let (config, configuration) = (&self.config, self.configurations);
        let events = self.certificates.on_time(now, unix_time(), config, configuration, &self.sender);
        self.log_all(&events);
        self.count_descriptors(shortage::CountWhen::Due);
        if self.phase == Phase::Serving {
            self.discovery.on_time(now);
        }
        if self.phase == Phase::Serving && !self.upgrades.is_running() {
            self.confirm_on_time(now);
            let events = self.listeners.on_time(now, &mut self.plane);
            self.log_all(&events);
        }
        self.begin_probes(now);
        self.samples.on_time(now, &mut self.pools, &self.services);
        self.publish();
        self.check_drain(now);
        self.retiring.retain(|service| service.active() > 0);
    }

    fn deadline(&self) -> Time {
        let now = self.now();
        let next = self.pools.deadline().min(self.access.deadline()).min(self.certificates.deadline());
        let next = next.min(self.samples.deadline());
        match self.phase {
            Phase::Serving if self.upgrades.is_running() => next.min(self.discovery.deadline()),
            Phase::Serving => {
                let next = next.min(self.discovery.deadline()).min(self.listeners.deadline());
                next.min(self.confirmation.deadline())
            }
            Phase::Draining { .. } | Phase::Ended => next.min(now + DRAIN_CHECK_EVERY),
        }
    }

    /// Handles a request to end. After the first request, no new clients are accepted and present clients may
    /// finish. The second request closes their connections.
    fn on_stop(&mut self, signal: &'static str) {
        match self.phase {
            Phase::Serving => {
                self.give_up_upgrade();
                service_manager::stopping(self.setting.drain_timeout);
                self.upgrades.note(EndpointPhase::Draining);
                self.begin_drain(signal);
            }
            Phase::Draining { .. } => self.close_all(),
            Phase::Ended => {}
        }
    }

    /// Accepts no new clients; present clients may finish.
    fn begin_drain(&mut self, signal: &'static str) {
        self.plane.drain();
        // The next instance can bind the address.
        let events = self.api.serve(None);
        self.log_all(&events);
        for watcher in self.watchers.drain(..) {
            let _ = watcher.send(());
        }
        self.phase = Phase::Draining { until: self.now() + self.setting.drain_timeout };
        let deadline = humantime::format_duration(self.setting.drain_timeout).to_string();
        self.log(&Event::Draining { signal, connections: self.active(), deadline });
    }

    fn check_drain(&mut self, now: Time) {
        let Phase::Draining { until } = self.phase else { return };
        self.pass_on(now);
        if self.active() == 0 && self.upgrades.may_end(now) {
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
}
