//! The new instance as the running one sees it: a child process that is started, gets the sockets, and reports when
//! it can serve. A thread waits for it, so that the control thread goes on. A process that fails is killed.

use super::channel::{Channel, ChannelError};
use super::flow::FlowRecord;
use super::message::{DESCRIPTORS_MAX, Message, chunks};
use super::monotonic_of;
use super::relay::{DESCRIPTORS_OF_RELAY, apart};
use super::socket::SocketRecord;
use super::state::{CachedRecord, CountersRecord};
use evener_core::Time;
use evener_core::dns::Cache;
use evener_proxy::descriptors::inherit_none;
use evener_proxy::{PassedFlow, PassedRelay};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::Serialize;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Variable with the process number of the running instance. The channel is the standard input.
pub(super) const VARIABLE: &str = "EVENER_UPGRADE";
/// Time in which the new instance must serve after it may begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the state file to be written, on a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a process that closed its channel to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of relays in a message.
const RELAYS_MAX: usize = 60;
/// Maximum number of counters records in a message.
const RECORDS_MAX: usize = 4000;
/// Maximum size of the cached responses that pass on.
const CACHED_BYTES_MAX: usize = 64 << 20;
/// Maximum size of a cached response that passes on.
const RESPONSE_BYTES_MAX: usize = 16 << 10;
/// Suffix of the path of an executable whose file was replaced (proc(5)).
const DELETED: &str = " (deleted)";

/// A new instance that is to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    binary: PathBuf,
    /// The sockets, in the order of their positions.
    sockets: Vec<(SocketRecord, OwnedFd)>,
    /// Time until the new instance must be ready.
    timeout: Duration,
    /// Origin of the times of this instance.
    origin: Instant,
    /// Caches of DNS services, by the names of the services.
    caches: Vec<(Arc<str>, Arc<Cache>)>,
    /// Is closed when the new instance can read the state file.
    saved: Option<Receiver<()>>,
}

impl Plan {
    /// Plans to start `binary`, which gets `sockets` and must be ready within `timeout`. `origin` is the origin of
    /// the times of this instance.
    pub(crate) fn new(
        binary: PathBuf,
        sockets: Vec<(SocketRecord, OwnedFd)>,
        timeout: Duration,
        origin: Instant,
    ) -> Self {
        Self { binary, sockets, timeout, origin, caches: Vec::new(), saved: None }
    }

    /// Adds the caches of DNS services.
    pub(crate) fn with_caches(self, caches: Vec<(Arc<str>, Arc<Cache>)>) -> Self {
        Self { caches, ..self }
    }

    /// Lets the new instance start when `saved` is closed.
    pub(crate) fn after(self, saved: Option<Receiver<()>>) -> Self {
        Self { saved, ..self }
    }
}

/// A report about the new instance.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The new instance can serve, and uses the sockets at these positions.
    Ready { taken: Vec<u32> },
    /// The new instance serves, and can continue the relayed connections of these services.
    Serving { pid: u32, continues: Vec<String> },
    /// The new instance failed, and was killed if it still ran.
    Failed(String),
}

/// An order to the thread. If the sender is dropped before [`Order::Begin`], the new instance is killed.
#[derive(Debug)]
pub(crate) enum Order {
    /// The new instance may begin. It gets this state and these flows first.
    Begin(Vec<Message>, Vec<PassedFlow>),
    /// The new instance, which serves, continues a relayed connection.
    Relay(Box<PassedRelay>),
    /// The new instance adds counts of this one.
    Count(Vec<CountersRecord>),
}

/// Returns the path of this program, as it is installed now.
pub(crate) fn installed_binary() -> std::io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    Ok(path.to_str().and_then(|text| text.strip_suffix(DELETED)).map_or(path.clone(), PathBuf::from))
}

/// The thread of a hand-over, and its orders.
#[derive(Debug)]
pub(crate) struct HandOver {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

impl HandOver {
    /// Returns the sender of orders.
    pub(crate) fn orders(&self) -> &Sender<Order> {
        &self.orders
    }

    /// Waits until all orders are carried out.
    pub(crate) fn finish(self) {
        drop(self.orders);
        let _ = self.thread.join();
    }
}

/// Starts the new instance on a thread. `report` is called there.
///
/// # Errors
/// There is no channel or thread.
pub(crate) fn start(plan: Plan, report: impl Fn(Progress) + Send + 'static) -> std::io::Result<HandOver> {
    let (orders, inbox) = channel();
    let (local, remote) = Channel::pair()?;
    let thread = std::thread::Builder::new().name("upgrade".into()).spawn(move || {
        let binary = plan.binary.clone();
        let mut channel = local;
        match run(plan, &mut channel, remote, &inbox, &report) {
            Ok((pid, continues)) => {
                report(Progress::Serving { pid, continues });
                follow(&channel, &inbox);
            }
            Err(problem) => report(Progress::Failed(format!("{}: {problem}", binary.display()))),
        }
    })?;
    Ok(HandOver { orders, thread })
}

/// Carries orders out until there are no more.
fn follow(channel: &Channel, inbox: &Receiver<Order>) {
    let (mut records, mut descriptors) = (Vec::new(), Vec::new());
    let mut next = inbox.recv().ok();
    while let Some(order) = next {
        let mut counts = None;
        match order {
            Order::Relay(relay) => {
                let (record, of_relay) = apart(*relay);
                records.push(record);
                descriptors.extend(of_relay);
            }
            Order::Count(growth) => counts = Some(growth),
            Order::Begin(..) => {}
        }
        next = inbox.try_recv().ok();
        let is_full =
            descriptors.len() + DESCRIPTORS_OF_RELAY > DESCRIPTORS_MAX || records.len() >= RELAYS_MAX;
        if !records.is_empty() && (next.is_none() || counts.is_some() || is_full) {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            let message = Message::Relays(std::mem::take(&mut records));
            let _ = channel.send(&message, &borrowed, Instant::now() + BEGIN_TIMEOUT);
            descriptors.clear();
        }
        for part in counts.map(|counts| chunks(counts, RECORDS_MAX)).into_iter().flatten() {
            let _ = channel.send(&Message::Counters(part), &[], Instant::now() + BEGIN_TIMEOUT);
        }
        next = next.or_else(|| inbox.recv().ok());
    }
}

/// Runs the hand-over until the new instance serves. Returns its process number, and the services whose relayed
/// connections it can continue.
fn run(
    plan: Plan,
    channel: &mut Channel,
    remote: OwnedFd,
    inbox: &Receiver<Order>,
    report: &impl Fn(Progress),
) -> Result<(u32, Vec<String>), String> {
    // The new instance reads the changes of operators in the state file.
    if let Some(saved) = &plan.saved {
        let _ = saved.recv_timeout(SAVE_TIMEOUT);
    }
    let mut child = spawn(&plan.binary, remote).map_err(|error| format!("cannot be started: {error}"))?;
    match hand_over(plan, channel, inbox, report) {
        Ok(continues) => Ok((child.id(), continues)),
        Err(Stopped::Aborted) => {
            end(&mut child);
            Err("the upgrade was given up, because this instance ends".into())
        }
        Err(Stopped::Reported(problem)) => {
            end(&mut child);
            Err(problem)
        }
        Err(Stopped::Channel(ChannelError::Closed)) => Err(exit_of(&mut child)),
        Err(Stopped::Channel(error)) => {
            end(&mut child);
            Err(error.to_string())
        }
    }
}

/// Reason why the hand-over ended.
enum Stopped {
    /// This instance ends.
    Aborted,
    /// The new instance reported a problem.
    Reported(String),
    Channel(ChannelError),
}

impl From<ChannelError> for Stopped {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}

fn hand_over(
    plan: Plan,
    channel: &mut Channel,
    inbox: &Receiver<Order>,
    report: &impl Fn(Progress),
) -> Result<Vec<String>, Stopped> {
    let deadline = Instant::now() + plan.timeout;
    let (pid, program) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
    let origin = monotonic_of(plan.origin);
    channel.send(&Message::Hello { pid, program, origin }, &[], deadline)?;
    send_with_descriptors(channel, plan.sockets, Message::Sockets, deadline)?;
    channel.send(&Message::AllSockets {}, &[], deadline)?;
    let mut taken = Vec::new();
    loop {
        match channel.receive(deadline)?.0 {
            Message::Taken(positions) => taken.extend(positions),
            Message::Failed { problem } => return Err(Stopped::Reported(problem)),
            Message::Ready { .. } => break,
            _ => {}
        }
    }
    send_cached(channel, plan.origin, &plan.caches)?;
    report(Progress::Ready { taken });
    let Ok(Order::Begin(state, flows)) = inbox.recv() else { return Err(Stopped::Aborted) };
    let deadline = Instant::now() + BEGIN_TIMEOUT;
    for message in state {
        channel.send(&message, &[], deadline)?;
    }
    let flows = flows.into_iter().map(FlowRecord::apart).collect();
    send_with_descriptors(channel, flows, Message::Flows, deadline)?;
    channel.send(&Message::Begin {}, &[], deadline)?;
    let mut continues = Vec::new();
    loop {
        match channel.receive(deadline)?.0 {
            Message::Continues(services) => continues.extend(services),
            Message::Serving {} => return Ok(continues),
            Message::Failed { problem } => return Err(Stopped::Reported(problem)),
            _ => {}
        }
    }
}

/// Sends the cached responses, while this instance still serves. Those that it stores from now on stay here.
fn send_cached(
    channel: &Channel,
    origin: Instant,
    caches: &[(Arc<str>, Arc<Cache>)],
) -> Result<(), ChannelError> {
    let now = Time::from_nanos(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let deadline = Instant::now() + BEGIN_TIMEOUT;
    for (service, cache) in caches {
        let responses = cache.responses(now, CACHED_BYTES_MAX / caches.len());
        let short = responses.iter().filter(|stored| stored.message().len() <= RESPONSE_BYTES_MAX);
        let records = short.map(|stored| CachedRecord::new(service, stored)).collect();
        for part in chunks(records, RECORDS_MAX) {
            channel.send(&Message::Cached(part), &[], deadline)?;
        }
    }
    Ok(())
}

/// Sends records with a descriptor each, as many with each message as fit.
fn send_with_descriptors<Record: Serialize>(
    channel: &Channel,
    records: Vec<(Record, OwnedFd)>,
    message: impl Fn(Vec<Record>) -> Message,
    deadline: Instant,
) -> Result<(), ChannelError> {
    let (records, descriptors): (Vec<Record>, Vec<OwnedFd>) = records.into_iter().unzip();
    let mut descriptors = descriptors.into_iter();
    for part in chunks(records, DESCRIPTORS_MAX) {
        let of_part: Vec<OwnedFd> = descriptors.by_ref().take(part.len()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = of_part.iter().map(AsFd::as_fd).collect();
        channel.send(&message(part), &borrowed, deadline)?;
    }
    Ok(())
}

/// Starts the program with the command line of this process.
fn spawn(binary: &Path, channel: OwnedFd) -> std::io::Result<Child> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| OsString::from("evener"));
    let mut command = Command::new(binary);
    command
        .arg0(name)
        .args(words)
        .env(VARIABLE, std::process::id().to_string())
        // These belong to the process that the service manager started.
        .env_remove("WATCHDOG_PID")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .stdin(Stdio::from(channel));
    inherit_none(&mut command);
    command.spawn()
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Describes the end of a process that closed its channel. Kills it if it does not end.
fn exit_of(child: &mut Child) -> String {
    let until = Instant::now() + END_TIMEOUT;
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return format!("ended before it served ({status}); its messages are in the log");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    end(child);
    "closed the hand-over before it served, and was killed".into()
}
