//! The thread of the IPVS plane: it owns the client, writes differences, reads the table of the kernel again from time to
//! time, and counts. The table stays when the process ends.

use super::addresses::Addresses;
use super::counting::Counting;
use super::settings;
use super::state::StateFile;
use super::wanted::Scheduling;
use super::{OnReport, Report, Setup};
use evener_ipvs::model::Entry;
use evener_ipvs::reconcile::{Reason, Reconciler};
use evener_ipvs::{Change, Error, Kernel};
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval at which the table of the kernel is read. Its statistics are as old.
const INTERVAL: Duration = Duration::from_secs(2);
/// Interval while destinations drain.
const INTERVAL_DRAINING: Duration = Duration::from_millis(500);

/// Opens the kernel's IPVS.
pub(super) type Open = Box<dyn Fn() -> Result<Box<dyn Kernel + Send>, Error> + Send>;

/// The last update that the thread has not taken.
type Latest = Arc<Mutex<Option<Setup>>>;

/// The thread.
pub(super) struct Running {
    commands: Sender<Command>,
    latest: Latest,
    thread: JoinHandle<()>,
}

enum Command {
    Prepare(BTreeSet<Scheduling>, SyncSender<Result<(), String>>),
    Configure(Box<Setup>, SyncSender<()>),
    /// The services changed.
    Update,
    Stop,
}

impl Running {
    /// Starts the thread. It reads and writes nothing until it is configured.
    ///
    /// # Errors
    /// The system can create no more threads.
    pub(super) fn start(open: Open, state: StateFile, report: OnReport) -> std::io::Result<Self> {
        let (commands, received) = channel();
        let latest = Latest::default();
        let (runner, setups) = (Runner::new(open, state, report), Arc::clone(&latest));
        let run = move || run(runner, &received, &setups);
        let thread = std::thread::Builder::new().name("ipvs".into()).spawn(run)?;
        Ok(Self { commands, latest, thread })
    }

    /// Makes sure that the kernel has IPVS and these schedulers, and permits its use.
    ///
    /// # Errors
    /// The reason why the plane cannot be used.
    pub(super) fn prepare(&self, schedulers: BTreeSet<Scheduling>) -> Result<(), String> {
        let (reply, result) = sync_channel(1);
        let _ = self.commands.send(Command::Prepare(schedulers, reply));
        result.recv().unwrap_or_else(|_| Err("the IPVS plane has ended".to_owned()))
    }

    /// Replaces the services, and returns when the kernel has them.
    pub(super) fn configure(&self, setup: Setup) {
        // An update that waits is older.
        drop(lock(&self.latest).take());
        let (reply, result) = sync_channel(1);
        let _ = self.commands.send(Command::Configure(Box::new(setup), reply));
        let _ = result.recv();
    }

    /// Replaces the services after servers or their states changed, without waiting.
    pub(super) fn update(&self, setup: Setup) {
        // Of the updates that wait for the thread, only the last one counts.
        if lock(&self.latest).replace(setup).is_none() {
            let _ = self.commands.send(Command::Update);
        }
    }

    /// Ends the thread. The table of the kernel stays.
    pub(super) fn stop(self) {
        let _ = self.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

fn lock(latest: &Mutex<Option<Setup>>) -> MutexGuard<'_, Option<Setup>> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut runner: Runner, commands: &Receiver<Command>, latest: &Mutex<Option<Setup>>) {
    let mut due = Instant::now() + INTERVAL;
    loop {
        match commands.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Command::Prepare(schedulers, reply)) => {
                let _ = reply.send(runner.prepare(&schedulers));
            }
            Ok(Command::Configure(setup, reply)) => {
                runner.configure(*setup);
                let _ = reply.send(());
            }
            Ok(Command::Update) => {
                let setup = lock(latest).take();
                setup.into_iter().for_each(|setup| runner.update(setup));
            }
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                runner.round(Cause::Time);
                due = Instant::now() + INTERVAL;
            }
        }
        due = due.min(Instant::now() + runner.interval());
    }
}

/// Cause of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The wanted table changed.
    Change,
    /// Time passed: another program made the differences.
    Time,
}

struct Runner {
    open: Open,
    kernel: Option<Box<dyn Kernel + Send>>,
    origin: Instant,
    report: OnReport,
    state: StateFile,
    setup: Option<Setup>,
    reconciler: Reconciler,
    addresses: Addresses,
    counting: Counting,
    /// Problems that were reported and last.
    problems: BTreeSet<String>,
    /// The wanted table is not in the kernel, because a change failed.
    is_incomplete: bool,
    settings: settings::Applied,
}

impl Runner {
    fn new(open: Open, state: StateFile, report: OnReport) -> Self {
        Self {
            open,
            kernel: None,
            origin: Instant::now(),
            report,
            state,
            setup: None,
            reconciler: Reconciler::default(),
            addresses: Addresses::default(),
            counting: Counting::default(),
            problems: BTreeSet::new(),
            is_incomplete: false,
            settings: settings::Applied::default(),
        }
    }

    fn interval(&self) -> Duration {
        if self.reconciler.draining() > 0 { INTERVAL_DRAINING } else { INTERVAL }
    }

    fn prepare(&mut self, schedulers: &BTreeSet<Scheduling>) -> Result<(), String> {
        if self.kernel.is_none() {
            let mut kernel = (self.open)().map_err(|error| error.to_string())?;
            kernel.info().map_err(|error| error.to_string())?;
            self.kernel = Some(kernel);
            match self.state.read() {
                Ok((owned, addresses)) => {
                    self.reconciler = Reconciler::new(owned);
                    self.addresses = addresses;
                }
                Err(problem) => (self.report)(Report::Problem(problem)),
            }
        }
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        schedulers.iter().try_for_each(|(scheduler, engine)| {
            kernel.find_scheduler(scheduler, *engine).map_err(|error| error.to_string())
        })
    }

    fn configure(&mut self, setup: Setup) {
        let advice = settings::advice(&setup);
        self.reconciler.own_table(setup.spec.own_table);
        let spec = setup.spec.clone();
        self.update(setup);
        if let Some(kernel) = &mut self.kernel {
            let problems = self.settings.apply(kernel.as_mut(), &spec);
            problems.into_iter().for_each(|problem| (self.report)(Report::Problem(problem)));
        }
        for advice in advice.into_iter().filter(|advice| self.settings.is_new(advice)).collect::<Vec<_>>() {
            (self.report)(Report::Setting(advice));
        }
    }

    fn update(&mut self, setup: Setup) {
        self.counting.configure(&setup);
        self.setup = Some(setup);
        self.round(Cause::Change);
    }

    /// Reads the table, writes the differences, and counts.
    fn round(&mut self, cause: Cause) {
        let (Some(kernel), Some(setup)) = (&mut self.kernel, &self.setup) else { return };
        let up = setup.addresses();
        let mut problems = BTreeSet::new();
        match kernel.table() {
            Ok(table) => {
                self.counting.count(&table);
                let repairs = cause == Cause::Time && !self.is_incomplete;
                let changes = self.write(&table, repairs);
                problems.extend(changes);
            }
            Err(error) => drop(problems.insert(error.to_string())),
        }
        self.is_incomplete = !problems.is_empty();
        let (changes, failures) = self.addresses.apply(&up);
        changes.into_iter().for_each(|change| (self.report)(change));
        problems.extend(failures);
        problems.extend(self.state.write(self.reconciler.owned(), &self.addresses).err());
        for problem in problems.difference(&self.problems) {
            (self.report)(Report::Problem(problem.clone()));
        }
        self.problems = problems;
    }

    /// Writes the differences. Returns the problems.
    fn write(&mut self, table: &[Entry], repairs: bool) -> Vec<String> {
        let (Some(kernel), Some(setup)) = (&mut self.kernel, &self.setup) else { return Vec::new() };
        let steps = self.reconciler.plan(&setup.wanted, table, self.origin.elapsed());
        if steps.is_empty() {
            return Vec::new();
        }
        // A process that is killed during the changes has recorded what is its own.
        let mut problems: Vec<String> =
            self.state.write(self.reconciler.owned(), &self.addresses).err().into_iter().collect();
        let changes: Vec<Change> = steps.iter().map(|step| step.change.clone()).collect();
        let results = match kernel.apply(&changes) {
            Ok(results) => results,
            Err(error) => {
                problems.push(error.to_string());
                return problems;
            }
        };
        for (step, result) in steps.iter().zip(results) {
            match (result, &step.reason) {
                (Err(error), _) => problems.push(error.to_string()),
                (Ok(()), Reason::Drained) => {
                    (self.report)(Report::Drained(step.change.entry()));
                }
                (Ok(()), _) if repairs => (self.report)(Report::Drift(step.describe())),
                (Ok(()), _) => {}
            }
        }
        problems
    }
}
