//! The plane as the program holds it: a handle that sends commands to a thread of its own, which owns the loaded program
//! and its maps, follows next hops and interfaces, and counts.
//!
//! The program stays attached when the process ends: packets go on, and another process takes the maps over.

mod runner;

use crate::associations::{AssociationFilter, Associations, Done};
use crate::counting::ServersLive;
use crate::events::Decision;
use evener_core::service::ServiceLive;
use evener_core::spec::XdpSpec;
use evener_core::table::ServiceTable;
use runner::Runner;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// The XDP plane of an instance.
#[derive(Debug)]
pub struct Plane {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Settings of a plane.
pub struct PlaneOptions {
    /// Origin of times.
    pub origin: Instant,
    /// Receives reports on the thread of the plane, so it must not block.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
}

/// Settings that have to be possible before a configuration is applied.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Settings of the plane as a whole.
    pub spec: XdpSpec,
    /// Interfaces of all services.
    pub interfaces: Vec<Arc<str>>,
    /// The services with the servers that are known now.
    pub services: Vec<ServiceTable>,
}

/// The services of the plane, with the counters of everything that it counts.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// The services.
    pub services: Vec<(ServiceTable, Arc<ServiceLive>)>,
    /// Counters of servers.
    pub servers: ServersLive,
}

/// An observation of the plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The program runs at an interface.
    Attached {
        /// Name of the interface.
        interface: String,
        /// Mode.
        mode: &'static str,
        /// Reason why the native mode is not used, in the kernel's words.
        not_native: Option<String>,
    },
    /// Something does not work; it is reported once.
    Problem(String),
    /// Servers with this address cannot be reached.
    NoNextHop(IpAddr, String),
    /// Servers with this address can be reached again.
    NextHop(IpAddr),
    /// A decision about a packet, as far as the configuration wants them.
    Decision(Box<Decision>),
}

enum Command {
    Prepare(Box<Setup>, SyncSender<Result<(), Vec<String>>>),
    Configure(Box<Services>, SyncSender<Result<(), String>>),
    Update(Box<Services>),
    Associations(Box<AssociationFilter>, usize, Done),
    Stop,
}

impl Plane {
    /// Starts the thread. It loads nothing until a configuration is prepared.
    ///
    /// # Errors
    /// The system can create no more threads or descriptors.
    pub fn start(options: PlaneOptions) -> io::Result<Self> {
        let (commands, received) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let runner = Runner::new(options, Arc::clone(&wake));
        let thread = std::thread::Builder::new().name("xdp".into()).spawn(move || run(runner, &received))?;
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    /// Loads the program and attaches it to new interfaces. Packets pass it until services are configured.
    ///
    /// # Errors
    /// The reasons why the configuration cannot be applied. Nothing changed then.
    pub fn prepare(&self, setup: Setup) -> Result<(), Vec<String>> {
        let (reply, result) = sync_channel(1);
        self.send(Command::Prepare(Box::new(setup), reply));
        result.recv().unwrap_or_else(|_| Err(vec!["the XDP plane has ended".to_owned()]))
    }

    /// Replaces the services, and detaches the program from interfaces that no service has. Returns when the program
    /// uses them.
    ///
    /// # Errors
    /// The reason why the services stay as they were.
    pub fn configure(&self, services: Services) -> Result<(), String> {
        let (reply, result) = sync_channel(1);
        self.send(Command::Configure(Box::new(services), reply));
        result.recv().unwrap_or_else(|_| Err("the XDP plane has ended".to_owned()))
    }

    /// Replaces the services after servers or their states changed, without waiting.
    pub fn update(&self, services: Services) {
        self.send(Command::Update(Box::new(services)));
    }

    /// Returns a handle that lists associations, for other threads.
    #[must_use]
    pub fn associations(&self) -> AssociationLister {
        AssociationLister { commands: self.commands.clone(), wake: Arc::clone(&self.wake) }
    }

    /// Ends the thread. The program stays attached, with all associations.
    pub fn stop(mut self) {
        self.send(Command::Stop);
        let _ = self.thread.take().map(JoinHandle::join);
    }

    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// Lists associations.
#[derive(Clone, Debug)]
pub struct AssociationLister {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl AssociationLister {
    /// Lists at most `most` associations that meet the conditions, and counts them. `done` is called on the thread of
    /// the plane, so it must not block; it is not called if the plane ends before.
    pub fn list(
        &self,
        filter: AssociationFilter,
        most: usize,
        done: impl FnOnce(Associations) + Send + 'static,
    ) {
        let _ = self.commands.send(Command::Associations(Box::new(filter), most, Box::new(done)));
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

fn run(mut runner: Runner, commands: &Receiver<Command>) {
    loop {
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Prepare(setup, reply) => {
                    let _ = reply.send(runner.prepare(*setup));
                }
                Command::Configure(services, reply) => {
                    let _ = reply.send(runner.configure(&services));
                }
                Command::Update(services) => runner.update(&services),
                Command::Associations(filter, most, done) => runner.list(*filter, most, done),
                Command::Stop => return runner.stop(),
            }
        }
        runner.on_time();
        runner.wait();
    }
}
