//! A worker: one thread with its own epoll. It owns listeners, connections, flows, timers and buffers, and takes commands
//! from the control thread.

mod commands;
mod shed;

use crate::context::Context;
use crate::context::pool_queue::Waiter;
use crate::context::ready::Ready;
use crate::context::registry::{Registry, Token};
use crate::context::report::{Report, Reporter};
use crate::context::ring::{Mark, Ring};
use crate::dns::Dns;
use crate::http::Http;
use crate::io::batch::Local;
use crate::io::listener::UnixPath;
use crate::plane::Driver;
use crate::service::ending::Ending;
use crate::service::open::{Hearer, Question};
use crate::service::{PoolIs, Service};
use crate::tcp::Tcp;

use crate::service::accepted::Accepted;
use crate::tcp::Paused;
use crate::udp::Udp;
use evener_core::Time;
use evener_core::spec::{Protocol, Transport};
use mio::event::Event;
use mio::{Events, Poll, Waker};
use rustix::fd::{AsRawFd, OwnedFd};
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const EVENTS_MAX: usize = 1024;
/// Entries that were unused for too long are looked for at most this often.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// What the control thread wants.
#[derive(Debug)]
pub(crate) enum Command {
    Listen {
        id: u64,
        service: Arc<Service>,
        socket: OwnedFd,
        transport: Transport,
        local: Local,
        unix: Option<Arc<UnixPath>>,
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
        pool: PoolIs,
    },
    List(Arc<Question>),
    Close {
        serial: u32,
        hearer: Hearer,
    },
    /// What clients have of a server ends.
    End(Arc<Ending>),
    /// Servers with which connections have to stand came or went.
    Tend,
    Drain,
    Cut,
    Stop,
}

/// The worker.
pub(crate) struct Worker {
    pub(crate) cx: Context,
    pub(crate) tcp: Tcp,
    pub(crate) http: Http,
    pub(crate) udp: Udp,
    pub(crate) dns: Dns,
    driver: Driver,
    poll: Poll,
    origin: Instant,
    inbox: Receiver<Command>,
    /// Something is about to be closed for want of descriptors.
    shed_any: bool,
    /// Until then nothing is closed for want of descriptors.
    shed_after: Time,
    /// The time of the last sweep.
    swept_at: Time,
    running: bool,
}

/// What a worker is made with.
pub(crate) struct WorkerParts {
    pub(crate) id: usize,
    pub(crate) workers: usize,
    pub(crate) driver: Driver,
    pub(crate) origin: Instant,
    pub(crate) seed: u64,
    pub(crate) report: Reporter,
    pub(crate) inbox: Receiver<Command>,
    pub(crate) peers: Arc<OnceLock<Vec<Waker>>>,
}

impl Worker {
    /// A worker with its waker.
    pub(crate) fn new(parts: WorkerParts) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token::Waker.encode())?;
        let registry = Registry::new(poll.registry().try_clone()?);
        let worker = Self {
            cx: Context::new((parts.id, parts.workers), parts.seed, registry, parts.report, parts.peers),
            tcp: Tcp::new(),
            http: Http::new(parts.seed),
            udp: Udp::new(),
            dns: Dns::new(parts.seed),
            driver: parts.driver,
            poll,
            origin: parts.origin,
            inbox: parts.inbox,
            shed_any: false,
            shed_after: Time::ZERO,
            swept_at: Time::ZERO,
            running: true,
        };
        Ok((worker, waker))
    }

    /// Works until told to stop.
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
            self.bury();
        }
    }

    /// Gives permits to those that wait, if some may be there.
    fn serve_queues(&mut self) {
        if self.cx.queues.is_freed() {
            self.cx.wake_all();
        }
        let Some(mut round) = self.cx.queues.begin(self.cx.now) else { return };
        while let Some(waiter) = self.cx.queues.next(&mut round) {
            let served = match waiter {
                Waiter::Exchange(number) => self.http.serve_queued(&mut self.cx, number),
                Waiter::Connection(index) => self.tcp.serve_queued(&mut self.cx, index),
            };
            if !served {
                round.in_vain();
            }
        }
        self.cx.queues.end(round);
    }

    /// A ring belongs to the thread that made it.
    fn open_ring(&mut self) {
        match Ring::new() {
            Ok(mut ring) => {
                ring.poll(self.poll.as_raw_fd(), libc::POLLIN, Mark::Epoll);
                self.cx.ring = Some(ring);
            }
            Err(error) => (self.cx.report)(Report::NoRing { error }),
        }
    }

    /// Waits for something to do, and does it.
    fn await_events(&mut self, events: &mut Events) {
        let wait = self.wait();
        let Some(ring) = &mut self.cx.ring else { return self.poll_events(events, wait) };
        ring.wait(wait);
        self.cx.now = Time::since_origin(self.origin.elapsed());
        let mut epoll = false;
        while let Some(completion) = self.cx.ring.as_mut().and_then(Ring::next) {
            epoll |= completion.mark == Mark::Epoll;
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
                    self.obey(command);
                }
                self.tcp.resume_accepting(&mut self.cx, Paused::All);
                self.cx.queues.wake();
            }
            Token::Stream(index) => self.tcp.accept(&mut self.cx, index),
            Token::Client(index) => self.tcp.on_client_event(&mut self.cx, index, event.into()),
            Token::Server(index) => self.tcp.on_server_event(&mut self.cx, index, event.into()),
            Token::Datagrams(index) => self.udp.on_listener_event(&mut self.cx, index),
            Token::Flow(slot) => self.udp.on_flow_event(&mut self.cx, slot),
            Token::Session(index) => self.http.on_session_event(&mut self.cx, index, event.into()),
            Token::Upstream(slot) => self.http.on_server_event(&mut self.cx, slot, event.into()),
            Token::DnsListener(index) => self.dns.on_listener_event(&mut self.cx, index),
            Token::DnsSocket(at) => self.dns.on_socket_event(&mut self.cx, at),
            Token::DnsClient(index) => self.dns.on_client_event(index, event.into()),
            Token::DnsStream(index) => self.dns.on_stream_event(&mut self.cx, index, event.into()),
            Token::DnsPersistent(at) => self.dns.on_persistent_event(at, event.into()),
        }
    }

    /// Goes on with what had more to do; what has still more waits for the next round.
    fn retry(&mut self) {
        for _ in 0..self.cx.ready.len() {
            match self.cx.ready.pop() {
                None => return,
                Some(Ready::Accept(index)) => self.tcp.accept(&mut self.cx, index),
                Some(Ready::Datagrams(index)) => self.udp.on_listener_event(&mut self.cx, index),
                Some(Ready::Flow(slot)) => self.udp.on_flow_event(&mut self.cx, slot),
                Some(Ready::Session(index)) => self.http.resume(&mut self.cx, index),
                Some(Ready::DnsListener(index)) => self.dns.on_listener_event(&mut self.cx, index),
                Some(Ready::DnsSocket(at)) => self.dns.on_socket_event(&mut self.cx, at),
                Some(Ready::DnsClient(index)) => self.dns.queue_client(index),
                Some(Ready::DnsStream(index)) => self.dns.queue_stream(index),
                Some(Ready::DnsPersistent(at)) => self.dns.queue_persistent(at),
                Some(Ready::Relay(key)) => self.tcp.resume(&mut self.cx, key),
            }
        }
    }

    /// Passes clients on that were accepted for other components.
    fn hand_over(&mut self) {
        while let Some(accepted) = self.tcp.take_accepted() {
            if accepted.service.protocol == Protocol::Dns {
                let Accepted { client, peer, service, settings, place } = accepted;
                self.dns.begin(&mut self.cx, client, peer, &service, &settings, place);
            } else {
                self.http.begin(&mut self.cx, accepted);
            }
        }
    }

    /// Makes and drops persistent connections to servers of DNS, after servers or listeners came or went.
    fn maintain_dns(&mut self) {
        self.dns.maintain(&mut self.cx, self.tcp.services());
    }

    /// How long epoll may wait; `None` for ever.
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

    /// Frees what ended. Places that became free may be waited for, here or by another worker.
    fn bury(&mut self) {
        self.tcp.reap(&mut self.cx);
        self.http.reap(&mut self.cx);
        self.udp.reap();
        if std::mem::take(&mut self.shed_any) {
            self.cx.wake_all();
        }
    }
}
