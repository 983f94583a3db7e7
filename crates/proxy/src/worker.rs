//! The loop of a worker: one thread with its own epoll. The loop calls the same few methods of each component,
//! and passes accepted clients on to the component that serves them. Commands arrive from the control thread.

mod commands;
mod shed;
mod succession;

pub(crate) use succession::Passage;

use crate::context::Context;
use crate::context::pool_queue::Waiter;
use crate::context::ready::Ready;
use crate::context::registry::{Registry, Token};
use crate::context::report::{Details, Report, Reporter};
use crate::context::ring::{Mark, Ring};
use crate::dns::Dns;
use crate::http::Http;
use crate::io::listener::ListeningSocket;
use crate::service::accepted::Accepted;
use crate::service::ending::Ending;
use crate::service::open::{CloseReply, ListRequest};
use crate::service::succession::PassedFlow;
use crate::service::succession::{Lending, Suspension};
use crate::service::{PoolChange, Service};
use crate::tcp::passing::PassedRelay;
use crate::tcp::{Paused, Tcp};
use crate::udp::Udp;
use evener_core::Time;
use evener_core::spec::Protocol;
use mio::event::Event;
use mio::{Events, Poll, Waker};
use rustix::fd::AsRawFd;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const EVENTS_MAX: usize = 1024;
/// Shortest interval between two searches for expired entries.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Kernel interface through which workers wait for events of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring(7) if the system allows all its operations that workers use, else epoll.
    Auto,
    /// epoll(7).
    Epoll,
    /// io_uring(7) for small messages of TCP, epoll for all else; epoll alone where io_uring is forbidden.
    IoUring,
}

/// Options of the workers.
pub struct PlaneOptions {
    /// Number of workers; usually one for each core.
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
    /// True while a reader wants debug events: the log, or a subscriber.
    pub wants_details: Arc<AtomicBool>,
}

/// A command of the control thread.
#[derive(Debug)]
pub(crate) enum Command {
    Listen {
        id: u64,
        service: Arc<Service>,
        socket: ListeningSocket,
        /// Flows of the previous instance.
        flows: Vec<PassedFlow>,
    },
    Unlisten {
        id: u64,
    },
    Assign {
        id: u64,
        service: Arc<Service>,
    },
    Refresh {
        service: Arc<str>,
        pool: PoolChange,
    },
    List(Arc<ListRequest>),
    Close {
        serial: u32,
        reply: CloseReply,
    },
    /// Close the connections, requests and flows of a server.
    End(Arc<Ending>),
    /// Open and close persistent connections, after servers were added or removed.
    Maintain,
    Drain,
    /// Copy the descriptors of all listeners for the next instance.
    Lend(Arc<Lending>),
    /// Read nothing more from these listeners: the next instance is about to take their sockets over.
    Suspend(Arc<Suspension>),
    /// Continue the suspended listeners, because the next instance failed.
    Resume,
    /// Take the relays out that the next instance can continue.
    Pass(Arc<Passage>),
    /// Continue a relay of the previous instance.
    Adopt {
        service: Arc<Service>,
        relay: Box<PassedRelay>,
    },
    Cut,
    Stop,
}

/// A worker.
pub(crate) struct Worker {
    cx: Context,
    tcp: Tcp,
    http: Http,
    udp: Udp,
    dns: Dns,
    driver: Driver,
    poll: Poll,
    origin: Instant,
    inbox: Receiver<Command>,
    /// Entries were closed to free descriptors while the present events were handled.
    shed_any: bool,
    /// End of the pause in closing entries to free descriptors.
    shed_after: Time,
    /// The time of the last sweep.
    swept_at: Time,
    running: bool,
}

impl Worker {
    /// Creates the worker with index `id` of `workers` workers, and its waker.
    pub(crate) fn new(
        (id, workers): (usize, usize),
        options: &PlaneOptions,
        driver: Driver,
        inbox: Receiver<Command>,
        peers: Arc<OnceLock<Vec<Waker>>>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token::Waker.encode())?;
        let registry = Registry::new(poll.registry().try_clone()?);
        let seed = evener_core::hash::mix(options.seed, id as u64);
        let report = (Arc::clone(&options.report), Details::new(Arc::clone(&options.wants_details)));
        let worker = Self {
            cx: Context::new((id, workers), seed, registry, report, peers),
            tcp: Tcp::new(),
            http: Http::new(seed),
            udp: Udp::new(),
            dns: Dns::new(seed),
            driver,
            poll,
            origin: options.origin,
            inbox,
            shed_any: false,
            shed_after: Time::ZERO,
            swept_at: Time::ZERO,
            running: true,
        };
        Ok((worker, waker))
    }

    /// Runs until the command to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        if self.driver == Driver::IoUring {
            self.open_ring();
        }
        while self.running {
            self.await_events(&mut events);
            self.retry();
            self.hand_over();
            self.tcp.on_deadlines(&mut self.cx);
            self.http.on_deadlines(&mut self.cx);
            self.dns.on_deadlines(&mut self.cx);
            self.hand_over();
            self.sweep();
            self.udp.flush(&self.cx);
            self.maintain_dns();
            self.dns.flush(&mut self.cx);
            self.tcp.flush(&mut self.cx);
            self.serve_queues();
            shed::shed(&mut self);
            self.reap();
        }
    }

    /// Offers free permits to the clients and requests that wait for one.
    fn serve_queues(&mut self) {
        if self.cx.queues.is_freed() {
            self.cx.wake_all();
        }
        let Some(mut round) = self.cx.queues.begin(self.cx.now) else { return };
        while let Some(waiter) = self.cx.queues.next(&mut round) {
            let served = match waiter {
                Waiter::Exchange(key) => self.http.serve_queued(&mut self.cx, key),
                Waiter::Connection(key) => self.tcp.serve_queued(&mut self.cx, key),
            };
            if !served {
                round.note_failed();
            }
        }
        self.cx.queues.end(round);
    }

    /// Opens the ring, on the thread that will use it.
    fn open_ring(&mut self) {
        match Ring::new() {
            Ok(mut ring) => {
                ring.poll(self.poll.as_raw_fd(), libc::POLLIN, Mark::Epoll);
                self.cx.ring = Some(ring);
            }
            Err(error) => self.cx.report(Report::NoRing { error }),
        }
    }

    /// Waits for events and handles them.
    fn await_events(&mut self, events: &mut Events) {
        let wait = self.wait();
        let Some(ring) = &mut self.cx.ring else { return self.poll_events(events, wait) };
        ring.wait(wait);
        self.cx.now = Time::since_origin(self.origin.elapsed());
        let mut epoll = false;
        while let Some(completion) = self.cx.ring.as_mut().and_then(Ring::next) {
            epoll |= completion.mark() == Mark::Epoll;
            self.tcp.on_completion(&mut self.cx, completion);
        }
        if epoll {
            self.poll_events(events, Some(Duration::ZERO));
            if let Some(ring) = &mut self.cx.ring {
                ring.poll(self.poll.as_raw_fd(), libc::POLLIN, Mark::Epoll);
            }
        }
    }

    fn poll_events(&mut self, events: &mut Events, wait: Option<Duration>) {
        if let Err(error) = self.poll.poll(events, wait) {
            debug_assert_eq!(
                error.kind(),
                io::ErrorKind::Interrupted,
                "epoll_wait fails only when interrupted"
            );
            events.clear();
        }
        self.cx.now = Time::since_origin(self.origin.elapsed());
        events.iter().for_each(|event| self.dispatch(event));
    }

    fn dispatch(&mut self, event: &Event) {
        match Token::decode(event.token()) {
            Token::Waker => {
                while let Ok(command) = self.inbox.try_recv() {
                    self.execute(command);
                }
                self.tcp.resume_accepting(&mut self.cx, Paused::All);
                self.cx.queues.wake();
            }
            Token::Stream(key) => self.tcp.accept(&mut self.cx, key),
            Token::Client(key) => self.tcp.on_client_event(&mut self.cx, key, event.into()),
            Token::Server(key) => self.tcp.on_server_event(&mut self.cx, key, event.into()),
            Token::Datagrams(key) => self.udp.on_listener_event(&mut self.cx, key),
            Token::Flow(key) => self.udp.on_flow_event(&mut self.cx, key),
            Token::Session(key) => self.http.on_session_event(&mut self.cx, key, event.into()),
            Token::Upstream(key) => self.http.on_server_event(&mut self.cx, key, event.into()),
            Token::DnsListener(key) => self.dns.on_listener_event(&mut self.cx, key),
            Token::DnsSocket(key) => self.dns.on_socket_event(&mut self.cx, key),
            Token::DnsClient(key) => self.dns.on_client_event(key, event.into()),
            Token::DnsStream(key) => self.dns.on_stream_event(&mut self.cx, key, event.into()),
            Token::DnsPersistent(key) => self.dns.on_persistent_event(key, event.into()),
        }
    }

    /// Continues the entries of the ready queue. Entries that are still not finished wait for the next round.
    fn retry(&mut self) {
        for _ in 0..self.cx.ready.len() {
            match self.cx.ready.pop() {
                None => return,
                Some(Ready::Accept(key)) => self.tcp.accept(&mut self.cx, key),
                Some(Ready::Datagrams(key)) => self.udp.on_listener_event(&mut self.cx, key),
                Some(Ready::Flow(key)) => self.udp.on_flow_event(&mut self.cx, key),
                Some(Ready::Session(key)) => self.http.resume(&mut self.cx, key),
                Some(Ready::DnsListener(key)) => self.dns.on_listener_event(&mut self.cx, key),
                Some(Ready::DnsSocket(key)) => self.dns.on_socket_event(&mut self.cx, key),
                Some(Ready::DnsClient(key)) => self.dns.queue_client(key),
                Some(Ready::DnsStream(key)) => self.dns.queue_stream(key),
                Some(Ready::DnsPersistent(key)) => self.dns.queue_persistent(key),
                Some(Ready::Relay(key)) => self.tcp.resume(&mut self.cx, key),
            }
        }
    }

    /// Passes on the clients that were accepted for other components.
    fn hand_over(&mut self) {
        while let Some(accepted) = self.tcp.take_accepted() {
            if accepted.service.live.protocol == Protocol::Dns {
                let Accepted { client, peer, service, settings, permits } = accepted;
                self.dns.begin(&mut self.cx, client, peer, &service, &settings, permits);
            } else {
                self.http.begin(&mut self.cx, accepted);
            }
        }
    }

    /// Opens and closes persistent connections to DNS servers, after servers or listeners were added or
    /// removed.
    fn maintain_dns(&mut self) {
        self.dns.maintain(&mut self.cx, self.tcp.services());
    }

    /// Returns the time until the next deadline; `None` without a deadline.
    fn wait(&self) -> Option<Duration> {
        if !self.cx.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let sweep = self.udp.next_sweep().map(|at| at.max(self.swept_at + SWEEP_EVERY));
        let until = |at: Time| at.since(self.cx.now);
        let http = self.http.wait(self.cx.now);
        let dns = self.dns.wait(self.cx.now);
        let queues = self.cx.queues.wait(self.cx.now);
        let waits = [self.tcp.wait(self.cx.now), http, sweep.map(until), dns, queues];
        waits.into_iter().flatten().min()
    }

    fn sweep(&mut self) {
        if self.cx.now.since(self.swept_at) < SWEEP_EVERY {
            return;
        }
        self.swept_at = self.cx.now;
        self.udp.sweep(&mut self.cx);
        self.dns.sweep(&mut self.cx);
    }

    /// Removes the entries that were closed while the present events were handled. If entries were closed to
    /// free descriptors, wakes all workers, because clients of any worker may wait for descriptors.
    fn reap(&mut self) {
        self.tcp.reap(&mut self.cx);
        self.http.reap(&mut self.cx);
        self.udp.reap();
        if std::mem::take(&mut self.shed_any) {
            self.cx.wake_all();
        }
    }
}
