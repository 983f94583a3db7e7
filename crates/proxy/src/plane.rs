//! The program's handle for the plane: starts the workers, and sends listeners and commands to them.

mod succession;

use crate::context::report::Report;
use crate::context::ring::Ring;
use crate::io::listener::Bound;
use crate::service::ending::{EndReason, Ending};
use crate::service::open::{self, CloseReply, Closed, ListFilter, ListRequest, Listing};
use crate::service::succession::PassedFlow;
use crate::service::{Backend, PoolChange, Service, Settings};
use crate::worker::{Command, Driver, PlaneOptions, Worker};
use evener_core::snapshot::Entry;
use mio::Waker;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

/// The running workers.
#[derive(Debug)]
pub struct Plane {
    inboxes: Vec<Sender<Command>>,
    wakers: Arc<OnceLock<Vec<Waker>>>,
    threads: Vec<JoinHandle<()>>,
    listeners: u64,
    /// Number of adopted relays, which are divided between the workers.
    adopted: usize,
    /// Listeners that begin to accept at the end of a hand-over; `None` while listeners begin at once.
    held: Option<Vec<(u64, Arc<Service>, Bound)>>,
    /// Number of commands that were sent.
    commands: AtomicU64,
    driver: Driver,
}

/// Returns the driver that the options wish, or epoll if the system does not allow io_uring.
fn available(options: &PlaneOptions) -> Driver {
    if options.driver == Driver::Epoll {
        return Driver::Epoll;
    }
    match Ring::probe() {
        Ok(()) => Driver::IoUring,
        Err(error) => {
            (options.report)(Report::NoRing { error });
            Driver::Epoll
        }
    }
}

impl Plane {
    /// Starts the workers.
    ///
    /// # Errors
    /// The system can create no more threads or descriptors.
    pub fn start(options: &PlaneOptions) -> io::Result<Self> {
        let peers = Arc::new(OnceLock::new());
        let (mut inboxes, mut wakers, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        let workers = options.workers.max(1);
        let driver = available(options);
        for id in 0..workers {
            let (sender, inbox) = channel();
            let (worker, waker) = Worker::new((id, workers), options, driver, inbox, Arc::clone(&peers))?;
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
        Ok(Self {
            inboxes,
            wakers: peers,
            threads,
            listeners: 0,
            adopted: 0,
            held: None,
            commands: AtomicU64::new(0),
            driver,
        })
    }

    /// The driver of the workers: [`Driver::Epoll`] or [`Driver::IoUring`].
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// The number of commands that were sent to workers.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Accepts clients of a service at an address. Returns the id of the listener, for [`Plane::unlisten`] and
    /// [`Plane::assign`].
    pub fn listen(&mut self, service: &Arc<Service>, bound: Bound) -> u64 {
        self.listeners += 1;
        let id = self.listeners;
        match &mut self.held {
            Some(held) => held.push((id, Arc::clone(service), bound)),
            None => self.begin_to_listen(id, service, bound, &mut BTreeMap::new()),
        }
        id
    }

    /// Gives each worker its sockets. After a hand-over there may be more sockets than workers.
    fn begin_to_listen(
        &self,
        id: u64,
        service: &Arc<Service>,
        bound: Bound,
        flows: &mut BTreeMap<u64, Vec<PassedFlow>>,
    ) {
        for (inbox, socket) in self.inboxes.iter().cycle().zip(bound.into_sockets()) {
            self.count_command();
            let of_socket = socket.number().ok().filter(|_| !flows.is_empty());
            let flows = of_socket.and_then(|number| flows.remove(&number)).unwrap_or_default();
            let _ = inbox.send(Command::Listen { id, service: Arc::clone(service), socket, flows });
        }
        self.wake();
    }

    /// Closes a listener; clients in its accept queue are accepted first. Connections continue. A listener for
    /// datagrams closes when its flows and queries are finished.
    pub fn unlisten(&self, id: u64) {
        self.send(|| Command::Unlisten { id });
    }

    /// Changes the settings of a service; its listeners, connections and flows stay.
    pub fn reconfigure(&self, service: &Service, settings: Settings) {
        let is_same = |old: Option<&Backend>, new: Option<&Backend>| match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(&old.pool, &new.pool) && old.send_proxy == new.send_proxy,
            (old, new) => old.is_none() && new.is_none(),
        };
        let old = service.settings.load_full();
        let pool = if !is_same(old.backends.first(), settings.backends.first()) {
            PoolChange::Another
        } else if !is_same(old.refused(), settings.refused()) {
            PoolChange::AnotherOfRefused
        } else {
            PoolChange::Same
        };
        service.settings.store(Arc::new(settings));
        self.send(|| Command::Refresh { service: service.live.name.clone(), pool });
    }

    /// Assigns a listener to another service. Clients in its accept queue are not lost. Its flows end; its
    /// connections continue.
    pub fn assign(&self, id: u64, service: &Arc<Service>) {
        self.send(|| Command::Assign { id, service: Arc::clone(service) });
    }

    /// Opens and closes persistent connections, after servers were added or removed.
    pub fn maintain(&self) {
        self.send(|| Command::Maintain);
    }

    /// Stops accepting clients; connections and flows may finish.
    pub fn drain(&self) {
        self.send(|| Command::Drain);
    }

    /// Lists open connections, sessions and flows that meet the conditions: at most `most` of each worker, and
    /// the total number. `done` is called on a worker's thread, so it must not block.
    pub fn connections(&self, filter: ListFilter, most: usize, done: impl FnOnce(Listing) + Send + 'static) {
        let request = Arc::new(ListRequest::new(filter, most, done));
        self.send(|| Command::List(Arc::clone(&request)));
    }

    /// Closes the connection or flow with this number, on both sides. `done` is called with the outcome. It
    /// must not block, because it runs on a worker's thread (or on the caller's, if no worker assigns such a
    /// number).
    pub fn close(&self, number: u64, done: impl FnOnce(Closed) + Send + 'static) {
        let Some((worker, serial)) = open::find(number, self.workers()) else {
            return done(Closed::NotFound);
        };
        let reply = CloseReply::new(done);
        self.count_command();
        let _ = self.inboxes[worker].send(Command::Close { serial, reply });
        self.wake();
    }

    /// Closes the connections, requests and flows that clients have with a server. `done` is called on a
    /// worker's thread with the total number of closed entries, so it must not block.
    pub fn end_server(&self, server: &Entry, reason: EndReason, done: impl FnOnce(usize) + Send + 'static) {
        let ending = Arc::new(Ending::new(server, reason, done));
        self.send(|| Command::End(Arc::clone(&ending)));
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.send(|| Command::Cut);
    }

    /// Stops the workers. All connections and flows end.
    pub fn stop(self) {
        self.send(|| Command::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    fn send(&self, command: impl Fn() -> Command) {
        for inbox in &self.inboxes {
            self.count_command();
            let _ = inbox.send(command());
        }
        self.wake();
    }

    fn count_command(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
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
