//! A worker: one thread with its own epoll. It owns listeners, connections, flows, timers and buffers, and takes commands
//! from the control thread.

mod commands;
mod shed;

use crate::context::descriptors;
use crate::context::registry::{Registry, Token};
use crate::context::ring::{Mark, Ring};
use crate::context::timers::Timers;
use crate::dns::{self, Dns};
use crate::http::exchange::{self, Exchange, IdleKey, ServerLink};
use crate::http::http1::Heads;
use crate::http::session::{self, Session};
use crate::io::batch::{Batch, Local};
use crate::io::listener::{StreamListener, UnixPath};
use crate::io::relay::Scratch;
use crate::io::transport::Buffers;
use crate::plane::Driver;
use crate::service::ending::Ending;
use crate::service::open::{Hearer, Question};
use crate::service::pool_queue::{self, PoolQueues};
use crate::service::{Pending, Report, Reporter, Service};
use crate::tcp;
use crate::tcp::connection::{Connection, Stage};
use crate::tcp::ring_relay::{self, SendUnderWay, Starved};
use crate::tcp::warm::{self, Warm};
use crate::udp::{self, Answers, DatagramListener, FlowSocket};
use evener_core::hash::{self, Keyed};
use evener_core::limits::Lease;
use evener_core::spec::Transport;
use evener_core::{Random, Time};
use mio::event::Event;
use mio::{Events, Poll, Waker};
use rustix::fd::{AsRawFd, OwnedFd};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const EVENTS_MAX: usize = 1024;
/// Flows are looked through for expired ones at most this often.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// What still has something to do without a new event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Retry {
    Accept(usize),
    Relay(usize),
    Datagrams(usize),
    Flow(usize),
    Session(usize),
    DnsListener(usize),
    DnsSocket(usize),
    DnsClient(usize),
    DnsStream(usize),
    DnsStanding(usize),
}

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

/// Whether a service keeps its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolIs {
    Same,
    Another,
    /// Its own is the same, that of clients whom the access list refuses is not.
    AnotherOfRefused,
}

/// The worker.
pub(crate) struct Worker {
    pub(crate) id: usize,
    pub(crate) workers: usize,
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) registry: Registry,
    pub(crate) report: Reporter,
    pub(crate) streams: Slab<StreamListener>,
    pub(crate) connections: Slab<Box<Connection>>,
    pub(crate) sessions: Slab<Box<Session>>,
    pub(crate) exchanges: Slab<Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(crate) servers: Slab<Box<ServerLink>>,
    /// Those of them that nobody uses; the last one was used last.
    pub(crate) idle: HashMap<IdleKey, Vec<usize>, Keyed>,
    pub(crate) datagrams: Slab<DatagramListener>,
    pub(crate) flows: Slab<FlowSocket>,
    pub(crate) dns: Dns,
    pub(crate) timers: Timers,
    pub(crate) session_timers: Timers,
    pub(crate) exchange_timers: Timers,
    pub(crate) server_timers: Timers,
    pub(crate) buffers: Buffers,
    pub(crate) heads: Heads,
    pub(crate) scratch: Scratch,
    /// io_uring, when it is wanted and to be had.
    pub(crate) ring: Option<Ring>,
    pub(crate) sends: Slab<SendUnderWay>,
    pub(crate) starved: Vec<Starved>,
    /// Numbers the connections of exchanges to servers.
    pub(crate) next_serial: u64,
    /// Numbers connections of clients, sessions and flows.
    pub(crate) next_number: u32,
    /// The place among the connects under way of the client that is accepted just now.
    pub(crate) pending: Option<Lease>,
    /// Clients and requests that wait for a permit of a server.
    pub(crate) queues: PoolQueues,
    /// Connections to servers that are made before clients want them.
    pub(crate) warm: Warm,
    /// Numbers the connects of this worker.
    pub(crate) generation: u32,
    pub(crate) inbound: Option<Box<Batch>>,
    pub(crate) answers: Option<Box<Answers>>,
    /// What has more to do once others had their turn.
    pub(crate) again: VecDeque<Retry>,
    /// Connections that ended during the present events.
    pub(crate) over: Vec<usize>,
    pub(crate) sessions_over: Vec<usize>,
    pub(crate) servers_over: Vec<usize>,
    /// No new clients; those that are idle leave.
    pub(crate) draining: bool,
    /// Flows that ended during the present events.
    pub(crate) retired: Vec<usize>,
    driver: Driver,
    poll: Poll,
    origin: Instant,
    inbox: Receiver<Command>,
    peers: Arc<OnceLock<Vec<Waker>>>,
    swept_at: Time,
    /// Something is about to be closed for want of descriptors.
    shed_any: bool,
    /// Until then nothing is closed for want of descriptors.
    shed_after: Time,
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
    /// Whether this worker is the one to take what this client sent to a broadcast address or a group: all get a copy.
    pub(crate) fn takes_broadcasts_of(&self, client: SocketAddr) -> bool {
        let number = hash::of_client(client.ip()) ^ u64::from(client.port());
        number % self.workers.max(1) as u64 == self.id as u64
    }

    /// A worker with its waker.
    pub(crate) fn new(parts: WorkerParts) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token::Waker.encode())?;
        let worker = Self {
            id: parts.id,
            workers: parts.workers,
            now: Time::ZERO,
            random: Random::seeded(parts.seed),
            registry: Registry::new(poll.registry().try_clone()?),
            report: parts.report,
            streams: Slab::new(),
            connections: Slab::new(),
            sessions: Slab::new(),
            exchanges: Slab::new(),
            servers: Slab::new(),
            idle: HashMap::with_hasher(Keyed::new(parts.seed)),
            datagrams: Slab::new(),
            flows: Slab::new(),
            dns: Dns::new(parts.seed),
            timers: Timers::new(),
            session_timers: Timers::new(),
            exchange_timers: Timers::new(),
            server_timers: Timers::new(),
            buffers: Buffers::default(),
            heads: Heads::default(),
            scratch: Scratch::new(),
            ring: None,
            sends: Slab::new(),
            starved: Vec::new(),
            next_serial: 0,
            next_number: 0,
            pending: None,
            queues: PoolQueues::default(),
            warm: Warm::default(),
            generation: 0,
            driver: parts.driver,
            inbound: None,
            answers: None,
            again: VecDeque::new(),
            over: Vec::new(),
            sessions_over: Vec::new(),
            servers_over: Vec::new(),
            draining: false,
            retired: Vec::new(),
            poll,
            origin: parts.origin,
            inbox: parts.inbox,
            peers: parts.peers,
            swept_at: Time::ZERO,
            shed_any: false,
            shed_after: Time::ZERO,
            running: true,
        };
        Ok((worker, waker))
    }

    /// The number of one more connection, session or flow.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        number
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut due = Vec::new();
        if self.driver == Driver::IoUring {
            self.open_ring();
        }
        while self.running {
            self.await_events(&mut events);
            self.retry();
            self.timers.expire(self.now, &mut due);
            due.drain(..).for_each(|index| tcp::on_deadline(&mut self, index));
            self.session_timers.expire(self.now, &mut due);
            due.drain(..).for_each(|index| session::on_deadline(&mut self, index));
            self.exchange_timers.expire(self.now, &mut due);
            due.drain(..).for_each(|number| exchange::on_deadline(&mut self, number));
            self.server_timers.expire(self.now, &mut due);
            due.drain(..).for_each(|slot| exchange::on_idle_deadline(&mut self, slot));
            dns::on_time(&mut self, &mut due);
            self.resume_accepting(Due::Only);
            self.sweep();
            if self.warm.due().is_some_and(|due| due <= self.now) {
                warm::tend(&mut self);
            }
            udp::flush_answers(&mut self);
            dns::flush(&mut self);
            ring_relay::feed_starved(&mut self);
            pool_queue::serve(&mut self);
            shed::shed(&mut self);
            self.bury();
        }
    }

    /// A ring belongs to the thread that made it.
    fn open_ring(&mut self) {
        match Ring::new() {
            Ok(mut ring) => {
                ring.poll(self.poll.as_raw_fd(), libc::POLLIN, Mark::Epoll);
                self.ring = Some(ring);
            }
            Err(error) => (self.report)(Report::NoRing { error }),
        }
    }

    /// Waits for something to do, and does it.
    fn await_events(&mut self, events: &mut Events) {
        let wait = self.wait();
        let Some(ring) = &mut self.ring else { return self.poll_events(events, wait) };
        ring.wait(wait);
        self.now = Time::since_origin(self.origin.elapsed());
        let mut epoll = false;
        while let Some(completion) = self.ring.as_mut().and_then(Ring::next) {
            epoll |= completion.mark == Mark::Epoll;
            ring_relay::on_completion(self, completion);
        }
        if epoll {
            self.poll_events(events, Some(Duration::ZERO));
            if let Some(ring) = &mut self.ring {
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
        self.now = Time::since_origin(self.origin.elapsed());
        events.iter().for_each(|event| self.dispatch(event));
    }

    fn dispatch(&mut self, event: &Event) {
        match Token::decode(event.token()) {
            Token::Waker => {
                while let Ok(command) = self.inbox.try_recv() {
                    self.obey(command);
                }
                self.resume_accepting(Due::Any);
                self.queues.wake();
            }
            Token::Stream(index) => tcp::accept(self, index),
            Token::Client(index) => tcp::on_client_event(self, index, event),
            Token::Server(index) => tcp::on_server_event(self, index, event),
            Token::Datagrams(index) => udp::on_listener_event(self, index),
            Token::Flow(slot) => udp::on_flow_event(self, slot),
            Token::Session(index) => session::on_event(self, index, event),
            Token::Upstream(slot) => exchange::on_event(self, slot, event),
            Token::DnsListener(index) => dns::on_listener_event(self, index),
            Token::DnsSocket(at) => dns::on_socket_event(self, at),
            Token::DnsClient(index) => dns::on_client_event(self, index, event),
            Token::DnsStream(index) => dns::on_stream_event(self, index, event),
            Token::DnsStanding(at) => dns::on_standing_event(self, at, event),
        }
    }

    /// Goes on with what had more to do; what has still more waits for the next round.
    fn retry(&mut self) {
        for _ in 0..self.again.len() {
            match self.again.pop_front() {
                None => return,
                Some(Retry::Accept(index)) => tcp::accept(self, index),
                Some(Retry::Datagrams(index)) => udp::on_listener_event(self, index),
                Some(Retry::Flow(slot)) => udp::on_flow_event(self, slot),
                Some(Retry::DnsListener(index)) => dns::on_listener_event(self, index),
                Some(Retry::DnsSocket(at)) => dns::on_socket_event(self, at),
                Some(Retry::DnsClient(index)) => dns::queue_client(self, index),
                Some(Retry::DnsStream(index)) => dns::queue_stream(self, index),
                Some(Retry::DnsStanding(at)) => dns::queue_standing(self, at),
                Some(Retry::Session(index)) => {
                    let Some(session) = self.sessions.get_mut(index) else { continue };
                    session.queued = false;
                    session::drive(self, index);
                }
                Some(Retry::Relay(index)) => {
                    let Some(connection) = self.connections.get_mut(index) else { continue };
                    connection.queued = false;
                    if matches!(connection.stage, Stage::Relaying | Stage::Lingering) {
                        tcp::relay(self, index);
                    }
                }
            }
        }
    }

    /// How long epoll may wait; `None` for ever.
    fn wait(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let paused = self.streams.iter().filter_map(|(_, listener)| listener.paused).min();
        let expiry = self.datagrams.iter().filter_map(|(_, listener)| listener.flows.next_expiry()).min();
        let is_leaving = self.datagrams.iter().any(|(_, listener)| listener.leaving.is_some());
        let expiry = if is_leaving { Some(Time::ZERO) } else { expiry };
        let sweep = expiry.map(|expiry| expiry.max(self.swept_at + SWEEP_EVERY));
        let until = |at: Time| at.since(self.now);
        let timers = [&self.timers, &self.session_timers, &self.exchange_timers, &self.server_timers];
        let timer = timers.into_iter().filter_map(|timers| timers.wait(self.now)).min();
        let dns = self.dns.wait(self.now);
        let queues = self.queues.wait(self.now);
        let waits = [timer, paused.map(until), sweep.map(until), self.warm.due().map(until), dns, queues];
        waits.into_iter().flatten().min()
    }

    fn resume_accepting(&mut self, which: Due) {
        let ready = |paused: Time| which == Due::Any || paused <= self.now;
        let waiting = self.streams.iter().filter(|(_, listener)| listener.paused.is_some_and(ready));
        let waiting: Vec<usize> = waiting.map(|(index, _)| index).collect();
        waiting.into_iter().for_each(|index| tcp::accept(self, index));
    }

    fn sweep(&mut self) {
        let now = self.now;
        if now.since(self.swept_at) < SWEEP_EVERY {
            return;
        }
        self.swept_at = now;
        let due = |(_, listener): &(usize, &DatagramListener)| {
            listener.flows.next_expiry().is_some_and(|at| at <= now)
        };
        let due: Vec<usize> = self.datagrams.iter().filter(due).map(|(index, _)| index).collect();
        due.into_iter().for_each(|index| udp::expire(self, index));
        udp::close_left(self);
        dns::sweep(self);
    }

    /// Frees what ended. Places that became free may be waited for, here or by another worker.
    fn bury(&mut self) {
        // What was queued names descriptors: it must reach the kernel before they are closed and given to others.
        if let Some(ring) = self.ring.as_mut().filter(|_| !self.over.is_empty()) {
            ring.submit();
        }
        while let Some(index) = self.over.pop() {
            let Some(mut connection) = self.connections.try_remove(index) else { continue };
            connection.from_client.release(&mut self.scratch.pipes);
            connection.from_server.release(&mut self.scratch.pipes);
            let service = Arc::clone(&connection.service);
            if connection.upstream.is_some() {
                pool_queue::note_freed(self, &connection.backend().pool);
            }
            drop(connection);
            self.wake_waiting(&service);
        }
        self.bury_sessions();
        self.bury_flows();
        if std::mem::take(&mut self.shed_any) {
            self.wake_all();
        }
    }

    /// The same for what has layers. Connections to servers go first: sessions may wait for their places.
    fn bury_sessions(&mut self) {
        while let Some(slot) = self.servers_over.pop() {
            let Some(mut server) = self.servers.try_remove(slot) else { continue };
            server.link.release(&mut self.buffers);
        }
        while let Some(index) = self.sessions_over.pop() {
            let Some(mut session) = self.sessions.try_remove(index) else { continue };
            session.link.release(&mut self.buffers);
            let service = Arc::clone(&session.service);
            drop(session);
            self.wake_waiting(&service);
        }
    }

    /// A place of a service became free: listeners that wait for one, here or at another worker, try again.
    pub(crate) fn wake_waiting(&self, service: &Service) {
        if service.wants_wake() || descriptors::wants_wake() {
            self.wake_all();
        }
    }

    /// All workers look at what waits.
    pub(crate) fn wake_all(&self) {
        self.peers.get().into_iter().flatten().for_each(|peer| drop(peer.wake()));
    }

    /// A connect of a session is done, or given up.
    pub(crate) fn end_pending(&self, pending: Option<Pending>) {
        if let Some(pending) = pending {
            let service = Arc::clone(&pending.service);
            drop(pending);
            self.wake_waiting(&service);
        }
    }

    /// Closes the sockets of flows that ended.
    pub(crate) fn bury_flows(&mut self) {
        while let Some(slot) = self.retired.pop() {
            self.flows.try_remove(slot);
        }
    }
}

/// Which paused listeners are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Those whose pause is over.
    Only,
    /// All: a place became free.
    Any,
}
