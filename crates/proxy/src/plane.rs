//! The plane as the program holds it: starts the workers and hands listeners and commands to them.

use crate::context::report::Reporter;
use crate::io::listener::Bound;
use crate::service::ending::{EndReason, Ending};
use crate::service::open::{self, CloseReply, Closed, ListRequest, Listing};
use crate::service::{Backend, PoolIs, Service, Settings};
use crate::worker::{Command, Worker, WorkerParts};
use evener_core::snapshot::Entry;
use mio::Waker;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// Kernel interface through which workers wait for events of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// epoll(7).
    Epoll,
    /// io_uring(7) for small messages of TCP, epoll for all else; epoll alone where it is forbidden.
    IoUring,
}

/// Options of the workers.
pub struct PlaneOptions {
    /// Number of workers; one for each core is right.
    pub workers: usize,
    /// Pins worker n to core n.
    pub pin: bool,
    /// Kernel interface for events.
    pub driver: Driver,
    /// The origin of [`evener_core::Time`], the same for the whole program.
    pub origin: Instant,
    /// Seed of random choices and of the hashing of tables.
    pub seed: u64,
    /// Receives the reports of the workers.
    pub report: Reporter,
}

/// The running workers.
#[derive(Debug)]
pub struct Plane {
    inboxes: Vec<Sender<Command>>,
    wakers: Arc<OnceLock<Vec<Waker>>>,
    threads: Vec<JoinHandle<()>>,
    listeners: u64,
}

impl Plane {
    /// Starts the workers.
    ///
    /// # Errors
    /// The system has no threads or descriptors left.
    pub fn start(options: &PlaneOptions) -> io::Result<Self> {
        let peers = Arc::new(OnceLock::new());
        let (mut inboxes, mut wakers, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..options.workers.max(1) {
            let (sender, inbox) = channel();
            let (worker, waker) = Worker::new(WorkerParts {
                id,
                workers: options.workers.max(1),
                driver: options.driver,
                origin: options.origin,
                seed: evener_core::hash::mix(options.seed, id as u64),
                report: Arc::clone(&options.report),
                inbox,
                peers: Arc::clone(&peers),
            })?;
            let pin = options.pin;
            let thread = Builder::new().name(format!("worker-{id}")).spawn(move || {
                if pin {
                    pin_to(id);
                }
                worker.run();
            })?;
            inboxes.push(sender);
            wakers.push(waker);
            threads.push(thread);
        }
        let _ = peers.set(wakers);
        Ok(Self { inboxes, wakers: peers, threads, listeners: 0 })
    }

    /// The number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// Accepts clients of a service at an address. Returns the id of the listener, for [`Plane::unlisten`] and [`Plane::assign`].
    pub fn listen(&mut self, service: &Arc<Service>, bound: Bound) -> u64 {
        self.listeners += 1;
        let id = self.listeners;
        for (inbox, socket) in self.inboxes.iter().zip(bound.into_sockets()) {
            let _ = inbox.send(Command::Listen { id, service: Arc::clone(service), socket });
        }
        self.wake();
        id
    }

    /// Closes a listener; clients in its queue are accepted first. Connections go on. A listener for datagrams closes when its flows and
    /// queries are finished.
    pub fn unlisten(&self, id: u64) {
        self.tell(|| Command::Unlisten { id });
    }

    /// Gives a service other settings; its listeners, connections and flows stay.
    pub fn reconfigure(&self, service: &Service, settings: Settings) {
        let same = |old: Option<&Backend>, new: Option<&Backend>| match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(&old.pool, &new.pool) && old.send_proxy == new.send_proxy,
            (old, new) => old.is_none() && new.is_none(),
        };
        let old = service.settings.load_full();
        let pool = if !same(old.backends.first(), settings.backends.first()) {
            PoolIs::Another
        } else if !same(old.refused(), settings.refused()) {
            PoolIs::AnotherOfRefused
        } else {
            PoolIs::Same
        };
        service.settings.store(Arc::new(settings));
        self.tell(|| Command::Refresh { service: service.name.clone(), pool });
    }

    /// Hands a listener over to another service; clients in its queue are not lost. Flows end, connections go on.
    pub fn assign(&self, id: u64, service: &Arc<Service>) {
        self.tell(|| Command::Assign { id, service: Arc::clone(service) });
    }

    /// Opens and closes persistent connections, after servers came or went.
    pub fn maintain(&self) {
        self.tell(|| Command::Maintain);
    }

    /// Stops accepting clients; connections and flows may finish.
    pub fn drain(&self) {
        self.tell(|| Command::Drain);
    }

    /// Lists open connections, sessions and flows, of one service or of all: at most `most` of each worker, and their total number.
    /// `done` is called on a worker's thread, so it must not block.
    pub fn connections(
        &self,
        service: Option<Arc<str>>,
        most: usize,
        done: impl FnOnce(Listing) + Send + 'static,
    ) {
        let request = Arc::new(ListRequest::new(service, most, done));
        self.tell(|| Command::List(Arc::clone(&request)));
    }

    /// Closes the connection or flow with this number, on both sides. `done` is called on a worker's thread with the outcome, so it
    /// must not block.
    pub fn close(&self, number: u64, done: impl FnOnce(Closed) + Send + 'static) {
        let Some((worker, serial)) = open::find(number, self.workers()) else {
            return done(Closed::NotFound);
        };
        let reply = CloseReply::new(done);
        let _ = self.inboxes[worker].send(Command::Close { serial, reply });
        self.wake();
    }

    /// Closes the connections, requests and flows that clients have with a server. `done` is called on a worker's thread with their
    /// number, so it must not block.
    pub fn end_server(&self, server: &Entry, reason: EndReason, done: impl FnOnce(usize) + Send + 'static) {
        let ending = Arc::new(Ending::new(server, reason, done));
        self.tell(|| Command::End(Arc::clone(&ending)));
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.tell(|| Command::Cut);
    }

    /// Stops the workers, with all connections and flows.
    pub fn stop(self) {
        self.tell(|| Command::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        self.inboxes.iter().for_each(|inbox| drop(inbox.send(command())));
        self.wake();
    }

    fn wake(&self) {
        self.wakers.get().into_iter().flatten().for_each(|waker| drop(waker.wake()));
    }
}

fn pin_to(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    // Without the right to pin, the worker runs unpinned.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
