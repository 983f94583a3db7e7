//! The TCP way in, in five hops: accept, admit, pick, connect (the next candidate on failure), relay.

pub(crate) mod connection;
mod deadline;
mod first;
mod list;
pub(crate) mod listener;
pub(crate) mod pausing;
mod pending;
mod queued;
pub(crate) mod ring_relay;
pub(crate) mod warm;

pub(crate) use deadline::on_deadline;
pub(crate) use list::{close_numbered, end_server};
pub(crate) use queued::serve_queued;

use self::listener::StreamListener;
use self::ring_relay::{SendUnderWay, Starved};
use self::warm::Warm;
use crate::context::descriptors::Unit;
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::ring::{GENERATION_MASK, Mark};
use crate::context::timers::Timers;
use crate::dns;
use crate::http::session;
use crate::io;
use crate::io::connect::{TRIES_MAX, cost, note_failure, note_success, open_socket};
use crate::io::relay::Scratch;
use crate::service::admission::{self, Admission, Refused, reset_at_close};
use crate::service::hops::{limit_connection, note_loop};
use crate::service::pool_queue;
use crate::service::preamble::{self, Greeted, Greeting};
use crate::service::{Place, Settings, note_no_server};
use crate::tcp::connection::{Connection, Stage, Step, Upstream};
use crate::tcp::pausing::{Full, Queue, pause_failed, pause_full};
use crate::worker::Worker;
use evener_core::limits::Lease;
use evener_core::snapshot::{Choice, NoServer, Request};
use evener_core::spec::Protocol;
use mio::event::Event;
use pending::{begin_pending, end_pending};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recv, sockopt};
use slab::Slab;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The clients of one worker whose bytes are relayed, and the listeners for all connections.
pub(crate) struct Tcp {
    pub(crate) listeners: Slab<StreamListener>,
    pub(crate) connections: Slab<Box<Connection>>,
    pub(crate) timers: Timers,
    pub(crate) scratch: Scratch,
    /// Sends of the ring.
    pub(crate) sends: Slab<SendUnderWay>,
    pub(crate) starved: Vec<Starved>,
    /// The slot among the connects under way of the client that is accepted just now.
    pub(crate) pending: Option<Lease>,
    /// Connections to servers that are made before clients want them.
    pub(crate) warm: Warm,
    /// Numbers the connects of this worker.
    pub(crate) generation: u32,
    /// Connections that ended during the present events.
    pub(crate) over: Vec<usize>,
}

impl Tcp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Slab::new(),
            connections: Slab::new(),
            timers: Timers::new(),
            scratch: Scratch::new(),
            sends: Slab::new(),
            starved: Vec::new(),
            pending: None,
            warm: Warm::default(),
            generation: 0,
            over: Vec::new(),
        }
    }
}

/// So many clients of one listener are accepted before others have their turn.
const ACCEPTS_MAX: usize = 64;
/// A client that still sends after everything was delivered to it is heard for so long.
const LINGER: Duration = Duration::from_secs(5);
/// What has to be said before a server is chosen is said within this.
pub(crate) const GREETING: Duration = Duration::from_secs(10);
/// One receive of a greeting.
const GREETING_BYTES: usize = 4096;

/// Hop 1: accept. What is not done now is done when others had their turn.
pub(crate) fn accept(worker: &mut Worker, index: usize) {
    if accept_some(worker, index) == Queue::More {
        worker.cx.ready.push(Ready::Accept(index));
    }
}

/// Accepts up to [`ACCEPTS_MAX`] clients. What waits in the kernel's queue stays there while the service is full.
fn accept_some(worker: &mut Worker, index: usize) -> Queue {
    for _ in 0..ACCEPTS_MAX {
        let Some(listener) = worker.tcp.listeners.get(index) else { return Queue::Left };
        let settings = listener.service.settings.load_full();
        let Some(place) = listener.service.enter(settings.options.connections_max) else {
            return pause_full(worker, index, Full::Connections(settings.options.connections_max));
        };
        let Some(units) = Unit::take_two_or_wait() else {
            return pause_full(worker, index, Full::Descriptors);
        };
        if let Some(pending_max) = settings.options.pending_max {
            // Should somebody have missed the place that is given back here, it tries again soon.
            let Some(pending) = listener.service.enter_pending(pending_max) else {
                return pause_full(worker, index, Full::Pending);
            };
            worker.tcp.pending = Some(pending);
        }
        let accepted = accept_one(worker, index, settings, Place::new(place, units));
        if worker.tcp.pending.take().is_some() {
            // It was not needed: the connect was done at once, or comes later.
            let service = Arc::clone(&worker.tcp.listeners[index].service);
            service.wake_waiting(&worker.cx);
        }
        if let Some(queue) = accepted {
            return queue;
        }
    }
    Queue::More
}

/// Takes in everybody who waits in the queue of a listener that is about to close, beyond the limit if need be: they are
/// connected already.
pub(crate) fn accept_rest(worker: &mut Worker, index: usize) {
    while let Some(listener) = worker.tcp.listeners.get(index) {
        let settings = listener.service.settings.load_full();
        let Some(place) = listener.service.enter(u32::MAX) else { return };
        let place = Place::new(place, Unit::take_two_beyond());
        if accept_one(worker, index, settings, place).is_some() {
            return;
        }
    }
}

/// Accepts one client; `Some` when there is none, or it cannot be now.
fn accept_one(worker: &mut Worker, index: usize, settings: Arc<Settings>, place: Place) -> Option<Queue> {
    let listener = &mut worker.tcp.listeners[index];
    match acceptfrom_with(&listener.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok((client, address)) => {
            admit(worker, index, client, preamble::client_address(address), settings, place);
        }
        Err(Errno::AGAIN) => {
            listener.paused = None;
            let service = Arc::clone(&listener.service);
            // The places were held for nobody; another worker may have found the service full for them.
            drop((place, worker.tcp.pending.take()));
            service.wake_waiting(&worker.cx);
            return Some(Queue::Left);
        }
        // The client left while it waited, or the network failed it (accept(2)): the next one may be well.
        Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => {}
        Err(error) => return Some(pause_failed(worker, index, error)),
    }
    None
}

/// Hop 2: admit. What has more layers than bytes goes its own way; whoever has to say something first is heard.
fn admit(
    worker: &mut Worker,
    index: usize,
    client: OwnedFd,
    peer: SocketAddr,
    settings: Arc<Settings>,
    place: Place,
) {
    let service = Arc::clone(&worker.tcp.listeners[index].service);
    service.live.counters.of(worker.cx.id).connections.one();
    if service.protocol == Protocol::Dns {
        return dns::begin(worker, client, peer, &service, &settings, place);
    }
    if settings.is_layered() {
        return session::begin(worker, client, peer, service, settings, place);
    }
    let greeting = Greeting::new(peer, &settings);
    let introduces = settings.backends.iter().any(|backend| backend.send_proxy.is_some());
    let index = {
        let mut connection = Connection::new(client, peer.ip(), service, settings, place);
        (connection.number, connection.active_at) = (worker.cx.number(), worker.cx.now);
        worker.tcp.connections.insert(Box::new(connection))
    };
    let (greets, awaits_proxy) = (!greeting.is_over(), greeting.awaits_proxy());
    if greets || introduces {
        worker.tcp.connections[index].greeting = Some(Box::new(greeting));
    }
    // Who is told of by a PROXY header is admitted when that has come.
    if !awaits_proxy && admit_client(worker, index) == Progress::Over {
        return;
    }
    let connection = &mut worker.tcp.connections[index];
    if greets {
        connection.stage = Stage::Greeting;
        worker.tcp.timers.set(index, worker.cx.now + GREETING);
    } else if try_servers(worker, index) == Progress::Over {
        return;
    }
    // With a ring, the client is heard from when its server accepted.
    let connection = &worker.tcp.connections[index];
    let rides = worker.cx.ring.is_some() && connection.greeting.is_none();
    if !rides && worker.cx.registry.register(&connection.client, Token::Client(index)).is_err() {
        close(worker, index);
    }
}

/// Asks the access list and the limits.
fn admit_client(worker: &mut Worker, index: usize) -> Progress {
    let connection = &mut worker.tcp.connections[index];
    let (service, settings) = (&connection.service, &connection.settings);
    match admission::admit(service, settings, connection.address, worker.cx.id, worker.cx.now) {
        Admission::Enter(guest) => {
            connection.backend = guest.backend.map_or(connection.backend, |backend| backend as u32);
            connection.guest = (!guest.is_plain()).then(|| Box::new(guest));
            return Progress::Begun;
        }
        Admission::Refused(Refused::Drop) => close(worker, index),
        Admission::Refused(Refused::Reject(_)) => {
            reset_at_close(&connection.client);
            close(worker, index);
        }
        Admission::Refused(Refused::Tarpit(place, time)) => {
            // It gives its place in the service to others.
            connection.place.lease = place;
            connection.stage = Stage::Tarpit;
            worker.tcp.timers.set(index, worker.cx.now + time);
        }
    }
    Progress::Over
}

/// The client says what has to be known before a server is chosen.
fn greet(worker: &mut Worker, index: usize) {
    loop {
        let connection = &mut worker.tcp.connections[index];
        let Some(greeting) = &mut connection.greeting else { return };
        match greeting.read() {
            Greeted::Known if greeting.origin.goes_round() => {
                let service = Arc::clone(&connection.service);
                note_loop(worker, &service);
                return close(worker, index);
            }
            Greeted::Known => {
                connection.address = greeting.origin.client.ip();
                if admit_client(worker, index) == Progress::Over {
                    return;
                }
            }
            Greeted::Done => return greeted(worker, index),
            Greeted::Malformed => {
                connection.service.live.counters.of(worker.cx.id).greeting_refused.one();
                return close(worker, index);
            }
            Greeted::More => {
                let mut piece = [0; GREETING_BYTES];
                match recv(&connection.client, &mut piece, RecvFlags::empty()) {
                    Ok((read @ 1.., _)) => greeting.bytes.extend_from_slice(&piece[..read]),
                    Err(Errno::AGAIN) => return,
                    Err(Errno::INTR) => {}
                    Ok(_) | Err(_) => return close(worker, index),
                }
            }
        }
    }
}

/// All is said: where does it lead?
fn greeted(worker: &mut Worker, index: usize) {
    worker.tcp.timers.clear(index);
    let connection = &mut worker.tcp.connections[index];
    let name = connection.greeting.as_ref().and_then(|greeting| greeting.name.as_deref()).unwrap_or_default();
    let routed = connection.settings.routes.find(name.as_bytes(), b"").copied();
    let guest = connection.guest.as_ref().and_then(|guest| guest.backend);
    let Some(backend) = guest.or(routed).or(connection.settings.default_backend) else {
        // Nobody is meant by that name.
        connection.service.live.counters.of(worker.cx.id).greeting_refused.one();
        return close(worker, index);
    };
    connection.backend = backend as u32;
    // What came after the greeting is still in the socket, without another edge.
    connection.from_client.readable = true;
    if try_servers(worker, index) == Progress::Begun && worker.tcp.connections[index].stage == Stage::Relaying
    {
        relay(worker, index);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// A connect is under way, or done.
    Begun,
    /// Nobody could be had; the connection is closed.
    Over,
}

/// Hops 3 and 4: pick and connect, until a connect is at least under way.
fn try_servers(worker: &mut Worker, index: usize) -> Progress {
    for _ in 0..TRIES_MAX {
        let connection = &mut worker.tcp.connections[index];
        let limits = connection.settings.options.attempt_limits();
        let request = Request::of(connection.address, worker.cx.now);
        let snapshot = connection.settings.backends[connection.backend as usize].pool.load();
        let behind = connection.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request);
        let picked = if behind {
            Err(NoServer::Full)
        } else {
            connection.attempt.next(&snapshot, &request, &limits, &mut worker.cx.random)
        };
        drop(snapshot);
        match picked {
            Err(NoServer::Full) if queued::enter_queue(worker, index) => return Progress::Begun,
            Err(reason) => {
                give_up(worker, index, reason);
                return Progress::Over;
            }
            Ok(choice) => match connect(worker, index, choice) {
                Ok(()) => return Progress::Begun,
                Err(failed) => fail(worker, index, &failed.choice, failed.error),
            },
        }
    }
    worker.tcp.connections[index].stage = Stage::Connecting;
    worker.tcp.timers.set(index, worker.cx.now);
    Progress::Begun
}

struct ConnectFailed {
    choice: Choice,
    error: Errno,
}

/// Begins a connect. On loopback it is often complete at once.
fn connect(worker: &mut Worker, index: usize, choice: Choice) -> Result<(), ConnectFailed> {
    let (socket, way) = match warm_or_fresh(worker, index, &choice) {
        Ok(begun) => begun,
        Err(error) => return Err(ConnectFailed { choice, error }),
    };
    let connection = &mut worker.tcp.connections[index];
    connection.stage = Stage::Connecting;
    connection.active_at = worker.cx.now;
    let options = &connection.settings.options;
    let limits = options.attempt_limits();
    let deadline = connection.attempt.deadline(worker.cx.now, options.connect_timeout, &limits);
    let generation = worker.tcp.generation;
    worker.tcp.generation = worker.tcp.generation.wrapping_add(1) & GENERATION_MASK;
    let upstream = connection.upstream.insert(Upstream { socket, generation, choice });
    if let Some(ring) = worker.cx.ring.as_mut().filter(|_| connection.greeting.is_none()) {
        if way == Way::Connecting {
            let mark = Mark::Connect { index: index as u32, generation };
            ring.poll(upstream.socket.as_raw_fd(), libc::POLLOUT, mark);
        }
    } else if let Err(error) = worker.cx.registry.register(&upstream.socket, Token::Server(index)) {
        let Some(upstream) = connection.upstream.take() else { return Ok(()) };
        return Err(ConnectFailed { choice: upstream.choice, error });
    }
    if way != Way::Connecting {
        connected(worker, index, way);
    } else {
        begin_pending(worker, index);
        worker.tcp.timers.set(index, deadline);
    }
    Ok(())
}

/// How a connection to a server came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its connect is under way.
    Connecting,
    /// It was made for this client.
    Fresh,
    /// It was there before the client.
    Warm,
}

/// A connection that is there already, or a connect that begins.
fn warm_or_fresh(worker: &mut Worker, index: usize, choice: &Choice) -> Result<(OwnedFd, Way), Errno> {
    let Connection { settings, backend, .. } = &*worker.tcp.connections[index];
    if settings.options.warm > 0
        && !settings.is_personal(*backend as usize)
        && let Some(socket) = warm::take(worker, index, choice)
    {
        return Ok((socket, Way::Warm));
    }
    let connection = &worker.tcp.connections[index];
    let (client, target) = (connection.address, &choice.server.target);
    let socket = open_socket(target, &connection.settings.options, client)?;
    limit_connection(worker, &connection.service, (&connection.client, client), (&socket, target))?;
    match io::listener::connect(&socket, &choice.server.target) {
        Ok(()) => Ok((socket, Way::Fresh)),
        Err(Errno::INPROGRESS) => Ok((socket, Way::Connecting)),
        Err(error) => Err(error),
    }
}

/// A connect failed: it is counted and reported, and that server is passed over for this client.
fn fail(worker: &mut Worker, index: usize, choice: &Choice, error: Errno) {
    let connection = &mut worker.tcp.connections[index];
    connection.attempt.failed(choice.server.id, choice.why, cost(error));
    let pool = connection.backend().pool.load().pool.clone();
    note_failure(&worker.cx, pool, &choice.server, error);
}

fn give_up(worker: &mut Worker, index: usize, reason: NoServer) {
    let service = Arc::clone(&worker.tcp.connections[index].service);
    note_no_server(&worker.cx, &service, reason);
    close(worker, index);
}

/// The server accepted.
fn connected(worker: &mut Worker, index: usize, way: Way) {
    end_pending(worker, index);
    let connection = &worker.tcp.connections[index];
    let Some(upstream) = &connection.upstream else { return };
    let (server, now) = (&upstream.choice.server, worker.cx.now);
    let snapshot = connection.backend().pool.load();
    snapshot.remember(connection.address, server.id, now);
    if way == Way::Fresh {
        snapshot.observe(server, now.since(connection.active_at), now);
    }
    if let Some(record) = connection.record() {
        record.had(&snapshot.pool, &server.name);
    }
    server.live.counters.of(worker.cx.id).connections.one();
    note_success(&worker.cx, &snapshot.pool, &upstream.choice);
    let connection = &mut worker.tcp.connections[index];
    connection.stage = Stage::Relaying;
    connection.from_client.writable = true;
    connection.active_at = now;
    match connection.settings.options.idle_timeout {
        Some(idle) => worker.tcp.timers.set(index, now + idle),
        None => worker.tcp.timers.clear(index),
    }
    if connection.greeting.is_some() {
        first::say_first(worker, index);
    } else if worker.cx.ring.is_some() {
        ring_relay::adopt(worker, index);
    }
}

/// The ring tells that a socket that connects became writable, or failed.
pub(crate) fn on_connect_polled(worker: &mut Worker, index: usize, events: i16) {
    if worker.tcp.connections[index].stage != Stage::Connecting {
        return;
    }
    if events & (libc::POLLERR | libc::POLLHUP) == 0 {
        connected(worker, index, Way::Fresh);
    } else {
        on_connect_error(worker, index);
    }
}

/// Something happened at the client's socket.
pub(crate) fn on_client_event(worker: &mut Worker, index: usize, event: &Event) {
    let Some(connection) = worker.tcp.connections.get_mut(index) else { return };
    let ended = event.is_read_closed() || event.is_error();
    connection.from_client.readable |= event.is_readable() || ended;
    connection.from_client.hung_up |= ended;
    connection.from_server.writable |= event.is_writable() || event.is_error();
    match connection.stage {
        Stage::Greeting => greet(worker, index),
        Stage::Connecting | Stage::Queued if event.is_error() => close(worker, index),
        Stage::Connecting | Stage::Queued | Stage::Tarpit | Stage::Over => {}
        Stage::Relaying | Stage::Lingering => relay(worker, index),
    }
}

/// Something happened at the server's socket.
pub(crate) fn on_server_event(worker: &mut Worker, index: usize, event: &Event) {
    let Some(connection) = worker.tcp.connections.get_mut(index) else { return };
    let ended = event.is_read_closed() || event.is_error();
    match connection.stage {
        Stage::Connecting if ended => return on_connect_error(worker, index),
        Stage::Connecting if event.is_writable() => connected(worker, index, Way::Fresh),
        Stage::Greeting | Stage::Tarpit | Stage::Queued | Stage::Connecting | Stage::Over => return,
        Stage::Relaying | Stage::Lingering => {}
    }
    let Some(connection) = worker.tcp.connections.get_mut(index) else { return };
    connection.from_server.readable |= event.is_readable() || ended;
    connection.from_server.hung_up |= ended;
    connection.from_client.writable |= event.is_writable() || event.is_error();
    relay(worker, index);
}

/// The socket has an error, or was closed as soon as it was accepted.
fn on_connect_error(worker: &mut Worker, index: usize) {
    let Some(upstream) = &worker.tcp.connections[index].upstream else { return };
    match sockopt::socket_error(&upstream.socket) {
        Ok(Err(error)) | Err(error) => next_server(worker, index, error),
        Ok(Ok(())) => {
            connected(worker, index, Way::Fresh);
            let connection = &mut worker.tcp.connections[index];
            connection.from_server.readable = true;
            connection.from_server.hung_up = true;
            relay(worker, index);
        }
    }
}

fn next_server(worker: &mut Worker, index: usize, error: Errno) {
    ring_relay::cancel_connect(worker, index);
    worker.tcp.timers.clear(index);
    // There is none where so many failed at once that others had their turn.
    if let Some(upstream) = worker.tcp.connections[index].upstream.take() {
        fail(worker, index, &upstream.choice, error);
        drop(upstream);
        let pool = Arc::clone(&worker.tcp.connections[index].backend().pool);
        pool_queue::note_freed(&mut worker.cx, &pool);
    }
    // The client waits meanwhile; what it sent is still in its socket.
    if try_servers(worker, index) == Progress::Begun && worker.tcp.connections[index].stage == Stage::Relaying
    {
        relay(worker, index);
    }
}

/// Hop 5: relay.
pub(crate) fn relay(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    if connection.ring.is_some() {
        return;
    }
    let step = connection.relay(&mut worker.tcp.scratch, worker.cx.id, worker.cx.now);
    follow(worker, index, step);
}

/// Does what follows from a relay step.
pub(crate) fn follow(worker: &mut Worker, index: usize, step: Step) {
    let connection = &mut worker.tcp.connections[index];
    if connection.is_half_closed()
        && let Some(quiet) = connection.settings.options.quiet_max(true)
    {
        worker.tcp.timers.set(index, worker.cx.now + quiet);
    }
    match step {
        Step::Wait => {}
        Step::Again => queue(worker, index),
        Step::Linger => {
            connection.stage = Stage::Lingering;
            worker.tcp.timers.set(index, worker.cx.now + LINGER);
            // What the client sent meanwhile may have had its edge already.
            queue(worker, index);
        }
        Step::Close => close(worker, index),
    }
}

fn queue(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    if !std::mem::replace(&mut connection.queued, true) {
        worker.cx.ready.push(Ready::Relay(index));
    }
}

/// Ends a connection. Its slot is freed only when the present events are done, so that none of them meets a stranger.
pub(crate) fn close(worker: &mut Worker, index: usize) {
    queued::leave_queue(worker, index);
    worker.tcp.timers.clear(index);
    ring_relay::abandon(worker, index);
    worker.tcp.connections[index].stage = Stage::Over;
    worker.tcp.over.push(index);
}
