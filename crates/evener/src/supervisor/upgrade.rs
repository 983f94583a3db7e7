//! Live upgrades: starts the next instance, leaves the listeners to it as soon as it can serve, and drains then. If it
//! fails, everything goes on here.

use super::{ConfigSource, Input, Phase, Supervisor};
use crate::config::failure;
use crate::inherited::ListenerKey;
use crate::planes::{ListenerId, RunningService};
use crate::service_manager;
use crate::upgrade::EndpointPhase;
use crate::upgrade::predecessor::{Passed, Predecessor};
use crate::upgrade::socket::{Role, SocketRecord};
use crate::upgrade::state::{CountersOf, CountersRecord, Numbers};
use crate::upgrade::successor::{self, HandOver, Order, Plan, Progress, installed_binary};
use anyhow::Context;
use evener_core::event::Event;
use evener_core::spec::{Plane, Protocol, ServiceSpec};
use evener_core::{Endpoint, Time};
use evener_proxy::{Lent, PassedFlow};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Time until a new instance must be ready, unless the request gives another time.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the responses to requests of the admin API, before an instance without clients ends.
const RESPONSES: Duration = Duration::from_millis(100);
/// Interval at which the next instance gets the counts of a draining one.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// A request to upgrade.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpgradeRequest {
    /// The program; `None` is the program that runs, as it is installed now.
    binary: Option<PathBuf>,
    /// Time until the new instance must be ready.
    timeout: Option<Duration>,
}

impl UpgradeRequest {
    pub(crate) fn new(binary: Option<PathBuf>, timeout: Option<Duration>) -> Self {
        Self { binary, timeout }
    }
}

/// The outcome of an upgrade.
#[derive(Clone, Debug)]
pub(crate) struct Upgraded {
    /// Process number of the new instance.
    pid: u32,
    binary: PathBuf,
}

impl Upgraded {
    /// Returns the process number of the new instance, and its program.
    pub(crate) fn into_parts(self) -> (u32, PathBuf) {
        (self.pid, self.binary)
    }
}

pub(super) type Done = oneshot::Sender<Result<Upgraded, String>>;

/// A step of an upgrade that other threads made.
#[derive(Debug)]
pub(crate) enum UpgradeStep {
    /// The workers copied the descriptors of their listeners.
    Lent(std::io::Result<Vec<Lent>>),
    /// No worker reads the listeners any more that the new instance takes, nor these flows.
    Suspended(Vec<PassedFlow>),
    /// The new instance reported its progress.
    Progress(Progress),
}

/// State of upgrades.
pub(super) struct Upgrades {
    /// Sockets of the admin API and of the metrics.
    endpoints: Vec<(SocketRecord, OwnedFd)>,
    state: watch::Sender<EndpointPhase>,
    running: Option<Running>,
    /// The configuration is applied, but the sockets and the tables of the kernel still belong to the previous
    /// instance.
    waits: bool,
    /// The instance does not end before this time.
    ends_after: Time,
    /// The next instance, which serves.
    successor: Option<Successor>,
    /// Counts that the next instance has.
    counted: BTreeMap<CountersOf, Numbers>,
}

/// The next instance, while this one drains.
struct Successor {
    hand_over: HandOver,
    /// Services whose relayed connections it continues.
    services: Arc<BTreeSet<Arc<str>>>,
    /// Time at which it got counts last.
    counted_at: Time,
}

/// An upgrade in progress.
struct Running {
    binary: PathBuf,
    timeout: Duration,
    done: Option<Done>,
    /// The thread that waits for the new instance, as soon as it is started.
    hand_over: Option<HandOver>,
    /// Listener of each socket, by its position; `None` is an endpoint.
    positions: Vec<Option<u64>>,
    /// The listeners are suspended.
    is_suspended: bool,
}

impl Default for Upgrades {
    fn default() -> Self {
        let state = watch::Sender::new(EndpointPhase::Open);
        Self {
            endpoints: Vec::new(),
            state,
            running: None,
            waits: false,
            ends_after: Time::ZERO,
            successor: None,
            counted: BTreeMap::new(),
        }
    }
}

impl Upgrades {
    /// Adds a socket of the admin API or of the metrics, which the next instance takes over.
    pub(super) fn add_endpoint(&mut self, role: Role, address: String, socket: OwnedFd) {
        self.endpoints.push((SocketRecord::of_endpoint(role, address), socket));
    }

    /// Returns a receiver of the process that serves the endpoints.
    pub(super) fn endpoint_phase(&self) -> watch::Receiver<EndpointPhase> {
        self.state.subscribe()
    }

    /// Records which process serves the endpoints.
    pub(super) fn note(&self, state: EndpointPhase) {
        let _ = self.state.send_replace(state);
    }

    /// Returns true while the sockets and the tables of the kernel belong to the previous instance.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Returns true if the responses to requests of the admin API have had time.
    pub(super) fn may_end(&self, now: Time) -> bool {
        self.ends_after <= now
    }

    /// Returns records of all counts.
    pub(super) fn begin_counting(&mut self, counters: BTreeMap<CountersOf, Numbers>) -> Vec<CountersRecord> {
        self.counted.clear();
        self.count(counters)
    }

    /// Returns records of the growth since the last call.
    pub(super) fn count(&mut self, counters: BTreeMap<CountersOf, Numbers>) -> Vec<CountersRecord> {
        let before = std::mem::replace(&mut self.counted, counters);
        let none = Numbers::new();
        let growth = |(of, now)| CountersRecord::of_growth(of, before.get(of).unwrap_or(&none), now);
        self.counted.iter().filter_map(growth).collect()
    }

    /// Returns true while an upgrade is in progress.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns the sockets to hand over, and their listeners.
    #[allow(clippy::type_complexity, reason = "two lists of the same length")]
    fn sockets(
        &self,
        lent: Vec<Lent>,
        records: &BTreeMap<u64, SocketRecord>,
    ) -> std::io::Result<(Vec<(SocketRecord, OwnedFd)>, Vec<Option<u64>>)> {
        let (mut sockets, mut positions) = (Vec::new(), Vec::new());
        for (record, socket) in &self.endpoints {
            sockets.push((record.clone(), socket.try_clone()?));
            positions.push(None);
        }
        let mut unix = BTreeSet::new();
        for Lent { listener, socket } in lent {
            let Some(record) = records.get(&listener) else { continue };
            // The workers share the socket of a path.
            if record.is_of_path() && !unix.insert(listener) {
                continue;
            }
            sockets.push((record.clone(), socket));
            positions.push(Some(listener));
        }
        Ok((sockets, positions))
    }
}

impl Supervisor {
    /// Begins an upgrade. `done` gets the outcome.
    pub(super) fn begin_upgrade(&mut self, request: &UpgradeRequest, done: Option<Done>) {
        let binary = match self.check_upgrade(request) {
            Ok(binary) => binary,
            Err(problem) => return self.upgrade_failed(done, &problem),
        };
        self.log(&Event::UpgradeBegun { binary: binary.display().to_string() });
        self.upgrades.running = Some(Running {
            binary,
            timeout: request.timeout.unwrap_or(TIMEOUT),
            done,
            hand_over: None,
            positions: Vec::new(),
            is_suspended: false,
        });
        let (sender, lent) = oneshot::channel();
        self.plane.lend(move |sockets| drop(sender.send(sockets)));
        self.send_step(async move { Some(UpgradeStep::Lent(lent.await.ok()?)) });
    }

    /// Returns the program of the new instance, or the reason why there can be no upgrade now.
    fn check_upgrade(&self, request: &UpgradeRequest) -> Result<PathBuf, String> {
        let is_standard_input = |path: &Path| {
            path == Path::new("-") || path.starts_with("/dev/stdin") || path.starts_with("/proc/self")
        };
        let problem = match &self.setting.source {
            ConfigSource::Front(_) => {
                Some("this program has the command line of another one: restart it instead")
            }
            ConfigSource::File(file) if is_standard_input(file) => Some(
                "the configuration was read from the standard input, which the new instance cannot read again",
            ),
            _ if std::process::id() == 1 => {
                Some("this instance is the first process of its container, which would end with it")
            }
            _ if self.phase != Phase::Serving => Some("this instance is shutting down"),
            _ if self.operator.has_unsaved() => Some(
                "the servers that commands added, removed or weighted would be lost, because this instance has no state \
                 file: `evener save` writes a configuration with them",
            ),
            _ if self.upgrades.is_running() => Some("an upgrade is in progress"),
            _ if self.reloads.is_running() => Some("a reload is in progress: try again when it has ended"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(problem.to_owned());
        }
        if let Some(problem) = self.confirmation.refusal(self.now()) {
            return Err(problem);
        }
        let installed =
            || installed_binary().map_err(|error| format!("the path of the program is unknown: {error}"));
        request.binary.clone().map_or_else(installed, Ok)
    }

    fn upgrade_failed(&self, done: Option<Done>, problem: &str) {
        self.log(&Event::UpgradeFailed { problem: problem.to_owned() });
        done.into_iter().for_each(|done| drop(done.send(Err(problem.to_owned()))));
    }

    /// Sends a step to this supervisor as soon as it is made.
    fn send_step(&self, step: impl Future<Output = Option<UpgradeStep>> + Send + 'static) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            if let Some(step) = step.await {
                let _ = sender.send(Input::Upgrade(step)).await;
            }
        });
    }

    pub(super) fn on_upgrade_step(&mut self, step: UpgradeStep) {
        let outcome = match step {
            UpgradeStep::Lent(lent) => self.start_successor(lent),
            UpgradeStep::Progress(Progress::Ready { taken }) => {
                self.suspend_listeners(&taken);
                Ok(())
            }
            UpgradeStep::Suspended(flows) => {
                self.let_successor_begin(flows);
                Ok(())
            }
            UpgradeStep::Progress(Progress::Serving { pid, continues }) => {
                self.leave_to_successor(pid, &continues);
                Ok(())
            }
            UpgradeStep::Progress(Progress::Failed(problem)) => Err(problem),
        };
        if let Err(problem) = outcome {
            self.end_upgrade(&problem);
        }
    }

    /// Starts the new instance.
    fn start_successor(&mut self, lent: std::io::Result<Vec<Lent>>) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("the sockets cannot be copied: {error}");
        let records: BTreeMap<u64, SocketRecord> = self.listener_records();
        let api = self
            .api
            .copy()
            .map_err(failed)?
            .map(|(address, socket)| (SocketRecord::of_endpoint(Role::Api, address.to_string()), socket));
        let lent = lent.and_then(|lent| self.upgrades.sockets(lent, &records));
        let (mut sockets, mut positions) = lent.map_err(failed)?;
        positions.extend(api.iter().map(|_| None));
        sockets.extend(api);
        let caches = self.caches();
        let Some(running) = &mut self.upgrades.running else { return Ok(()) };
        running.positions = positions;
        let (binary, timeout) = (running.binary.clone(), running.timeout);
        let plan = Plan::new(binary, sockets, timeout, self.origin).with_caches(caches);
        let plan = plan.after(self.operator.written());
        let sender: mpsc::Sender<Input> = self.sender.clone();
        let report = move |progress| {
            let _ = sender.blocking_send(Input::Upgrade(UpgradeStep::Progress(progress)));
        };
        running.hand_over = Some(successor::start(plan, report).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn listener_records(&self) -> BTreeMap<u64, SocketRecord> {
        let record = |(key, bound, ListenerId::Proxy(id)): (&ListenerKey, &Endpoint, ListenerId)| {
            (id, SocketRecord::of_listener(key, bound))
        };
        self.listeners.iter().map(record).collect()
    }

    /// Leaves the queues of the listeners to the new instance. Listeners that it does not use are drained here.
    fn suspend_listeners(&mut self, taken: &[u32]) {
        let Some(running) = &mut self.upgrades.running else { return };
        if self.phase != Phase::Serving {
            return;
        }
        running.is_suspended = true;
        let taken = taken.iter().filter_map(|&at| *running.positions.get(at as usize)?);
        let taken: BTreeSet<u64> = taken.collect();
        let (sender, suspended) = oneshot::channel();
        self.plane.suspend(taken, move |flows| {
            let _ = sender.send(flows);
        });
        self.upgrades.note(EndpointPhase::Suspended);
        self.plane.leave_kernel();
        self.send_step(async move { suspended.await.ok().map(UpgradeStep::Suspended) });
    }

    fn let_successor_begin(&mut self, flows: Vec<PassedFlow>) {
        let state = self.state_for_successor();
        let running = self.upgrades.running.as_ref();
        if let Some(hand_over) = running.and_then(|running| running.hand_over.as_ref()) {
            let _ = hand_over.orders().send(Order::Begin(state, flows));
        }
    }

    /// Drains after the new instance serves.
    fn leave_to_successor(&mut self, pid: u32, continues: &[String]) {
        let Some(running) = self.upgrades.running.take() else { return };
        service_manager::main_process(pid);
        self.upgrades.note(EndpointPhase::PassedOn);
        self.log(&Event::Upgraded { pid });
        let services = Arc::new(continues.iter().map(|name| name.as_str().into()).collect());
        self.upgrades.successor =
            running.hand_over.map(|hand_over| Successor { hand_over, services, counted_at: Time::ZERO });
        let upgraded = Upgraded { pid, binary: running.binary };
        running.done.into_iter().for_each(|done| drop(done.send(Ok(upgraded.clone()))));
        self.begin_drain("upgrade");
        self.upgrades.ends_after = self.now() + RESPONSES;
    }

    /// Goes on after an upgrade failed.
    fn end_upgrade(&mut self, problem: &str) {
        let Some(running) = self.upgrades.running.take() else { return };
        if running.is_suspended {
            self.resume_after_upgrade();
        }
        self.upgrade_failed(running.done, problem);
    }

    fn resume_after_upgrade(&mut self) {
        self.plane.resume();
        self.upgrades.note(EndpointPhase::Open);
        let config = self.config.clone();
        let problems =
            [self.prepare_xdp(&config), self.prepare_ipvs(&config)].into_iter().filter_map(Result::err);
        for problem in problems.flatten().map(|problem| problem.to_string()).collect::<Vec<_>>() {
            self.log(&Event::Notice { text: problem });
        }
        self.configure_xdp(&config.spec);
        self.configure_ipvs(&config.spec);
    }

    /// Gives up an upgrade in progress, because the instance ends. The new instance is killed.
    pub(super) fn give_up_upgrade(&mut self) {
        if self.upgrades.is_running() {
            self.end_upgrade("this instance ends");
        }
    }
}

impl Supervisor {
    /// Passes relayed connections and counts on to the next instance, while this one drains.
    pub(super) fn pass_on(&mut self, now: Time) {
        let Some(successor) = &mut self.upgrades.successor else { return };
        let orders = successor.hand_over.orders().clone();
        self.plane.pass(&successor.services, move |relay| {
            let _ = orders.send(Order::Relay(Box::new(relay)));
        });
        if now.since(successor.counted_at) >= COUNT_EVERY {
            successor.counted_at = now;
            self.pass_counts();
        }
    }

    fn pass_counts(&mut self) {
        let growth = self.growth();
        let successor = self.upgrades.successor.as_ref().filter(|_| !growth.is_empty());
        successor
            .into_iter()
            .for_each(|next| drop(next.hand_over.orders().send(Order::Count(growth.clone()))));
    }

    /// Passes the last counts on. The caller waits for the thread.
    pub(super) fn finish_passing(&mut self) -> Option<HandOver> {
        self.pass_counts();
        self.upgrades.successor.take().map(|successor| successor.hand_over)
    }

    /// Receives what the previous instance passes on while it drains.
    pub(crate) fn follow(&self, before: Predecessor) {
        let sender = self.sender.clone();
        before.follow(move |passed| drop(sender.blocking_send(Input::Passed(passed))));
    }

    pub(super) fn on_passed(&mut self, passed: Passed) {
        match passed {
            Passed::Counters(records) => self.adopt_counters(records),
            Passed::Relays(relays) => {
                for relay in relays {
                    let service = self.services.get(&relay.service).and_then(RunningService::of_workers);
                    if let Some(service) = service.cloned() {
                        self.plane.adopt(&service, relay);
                    }
                }
            }
        }
    }

    /// Uses the sockets of the running instance for the next configuration. Nothing is accepted until
    /// [`Self::take_over`].
    pub(crate) fn await_predecessor(&mut self, before: &mut Predecessor) {
        self.upgrades.waits = true;
        self.plane.hold();
        self.listeners.add_inherited(before.take_listeners());
        self.api.add_inherited(before.take_api());
    }

    /// Takes over from the running instance, after the configuration was applied.
    ///
    /// # Errors
    /// The running instance goes on.
    pub(crate) fn take_over(&mut self, before: &mut Predecessor) -> anyhow::Result<()> {
        self.listeners.forget_inherited();
        before.report_ready(|key| self.listeners.contains(key)).context("the running instance")?;
        let (state, flows) =
            before.await_begin().context("the running instance did not let this one begin")?;
        self.upgrades.waits = false;
        self.adopt_state(state);
        let config = self.config.clone();
        for prepared in [self.prepare_xdp(&config), self.prepare_ipvs(&config)] {
            prepared.map_err(|problems| failure(&problems))?;
        }
        self.configure_xdp(&config.spec);
        self.configure_ipvs(&config.spec);
        self.plane.release(flows);
        let is_tcp =
            |service: &&ServiceSpec| service.plane == Plane::Proxy && service.protocol == Protocol::Tcp;
        let continues = config.spec.services.iter().filter(is_tcp).map(|service| service.name.to_string());
        before.report_serving(continues.collect());
        let (pid, version) = (before.pid(), before.program().to_owned());
        self.log(&Event::TookOver { pid, version, listeners: self.listeners.len() });
        Ok(())
    }
}
