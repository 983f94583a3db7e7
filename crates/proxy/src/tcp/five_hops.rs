//! The way of a client of TCP, in five hops: accept, admit, pick, connect (the next candidate on failure), relay.

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ConnectionKey, ListenerKey};
use crate::context::ready::Ready;
use crate::context::registry::{Readiness, Token};
use crate::context::ring::{ConnectId, Mark};
use crate::io;
use crate::io::connect::{TRIES_MAX, cost, note_failure, note_success, open_socket};
use crate::service::accepted::Accepted;
use crate::service::admission::{self, Admission, Refused, reset_at_close};
use crate::service::hops::{limit_connection, note_loop};
use crate::service::pool_queue;
use crate::service::preamble::{self, Greeted, PREAMBLE, Preamble};
use crate::service::{Permits, Settings, note_no_server};
use crate::tcp::connection::{Connection, Stage, Step, Upstream};
use crate::tcp::pausing::{Full, Queue};
use evener_core::snapshot::{Choice, NoServer, Request};
use evener_core::spec::Protocol;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recv, sockopt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Tcp;
/// Clients accepted by one listener before others have their turn.
const ACCEPTS_MAX: usize = 64;
/// Longest time for which a client is drained after everything was delivered to it.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes of one receive of the preamble.
const PREAMBLE_BYTES: usize = 4096;

impl Tcp {
    /// Hop 1: accept. The rest of the queue is accepted when others had their turn.
    pub(crate) fn accept(&mut self, cx: &mut Context, key: ListenerKey) {
        if self.accept_some(cx, key) == Queue::More {
            cx.ready.push(Ready::Accept(key));
        }
    }

    /// Accepts up to [`ACCEPTS_MAX`] clients. The others stay in the kernel's queue while the service is full.
    fn accept_some(&mut self, cx: &mut Context, key: ListenerKey) -> Queue {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.listeners.get(key) else { return Queue::Left };
            let settings = listener.service.settings.load_full();
            let Some(permits) = listener.service.enter(settings.options.connections_max) else {
                return self.pause_full(cx, key, Full::Connections(settings.options.connections_max));
            };
            let Some(units) = Unit::take_two_or_wait() else {
                return self.pause_full(cx, key, Full::Descriptors);
            };
            if let Some(pending_max) = settings.options.pending_max {
                // A worker that missed the slot given back here tries again soon.
                let Some(pending) = listener.service.enter_pending(pending_max) else {
                    return self.pause_full(cx, key, Full::Pending);
                };
                self.pending = Some(pending);
            }
            let accepted = self.accept_one(cx, key, settings, Permits::new(permits, units));
            if self.pending.take().is_some() {
                // Not needed: the connect was done at once, or comes later.
                let service = Arc::clone(&self.listeners[key].service);
                service.wake_waiting(cx);
            }
            if let Some(queue) = accepted {
                return queue;
            }
        }
        Queue::More
    }

    /// Accepts all clients in the queue of a listener that is about to close, beyond the limit if necessary: they are connected
    /// already.
    pub(super) fn accept_rest(&mut self, cx: &mut Context, key: ListenerKey) {
        while let Some(listener) = self.listeners.get(key) {
            let settings = listener.service.settings.load_full();
            let Some(permits) = listener.service.enter(u32::MAX) else { return };
            let permits = Permits::new(permits, Unit::take_two_beyond());
            if self.accept_one(cx, key, settings, permits).is_some() {
                return;
            }
        }
    }

    /// Accepts one client; `Some` when there is none, or accepting failed.
    fn accept_one(
        &mut self,
        cx: &mut Context,
        key: ListenerKey,
        settings: Arc<Settings>,
        permits: Permits,
    ) -> Option<Queue> {
        let listener = &mut self.listeners[key];
        match acceptfrom_with(&listener.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((client, address)) => {
                self.admit(cx, key, client, preamble::client_address(address), settings, permits);
            }
            Err(Errno::AGAIN) => {
                listener.paused = None;
                let service = Arc::clone(&listener.service);
                // The slots were not used; another worker may have found the service full because of them.
                drop((permits, self.pending.take()));
                service.wake_waiting(cx);
                return Some(Queue::Left);
            }
            // The client left while it waited, or its network failed (accept(2)): the next one may be fine.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => {}
            Err(error) => return Some(self.pause_failed(cx, key, error)),
        }
        None
    }

    /// Hop 2: admit. Clients that speak more than bytes are handed over; a preamble is received first.
    fn admit(
        &mut self,
        cx: &mut Context,
        key: ListenerKey,
        client: OwnedFd,
        peer: SocketAddr,
        settings: Arc<Settings>,
        permits: Permits,
    ) {
        let service = Arc::clone(&self.listeners[key].service);
        service.live.counters.of(cx.id).connections.one();
        if service.protocol == Protocol::Dns || settings.is_layered() {
            return self.handed_over.push_back(Accepted { client, peer, service, settings, permits });
        }
        let preamble = Preamble::new(peer, &settings);
        let introduces = settings.backends.iter().any(|backend| backend.send_proxy.is_some());
        let key = {
            let mut connection = Connection::new(client, peer.ip(), service, settings, permits);
            (connection.number, connection.active_at) = (cx.number(), cx.now);
            self.connections.insert(Box::new(connection))
        };
        let (greets, awaits_proxy) = (!preamble.is_over(), preamble.awaits_proxy());
        if greets || introduces {
            self.connections[key].preamble = Some(Box::new(preamble));
        }
        // The client of a PROXY header is admitted when the header has arrived.
        if !awaits_proxy && self.admit_client(cx, key) == Progress::Over {
            return;
        }
        let connection = &mut self.connections[key];
        if greets {
            connection.stage = Stage::Preamble;
            self.timers.set(key, cx.now + PREAMBLE);
        } else if self.try_servers(cx, key) == Progress::Over {
            return;
        }
        // With a ring, the client's input is received from when its server accepted.
        let connection = &self.connections[key];
        let rides = cx.ring.is_some() && connection.preamble.is_none();
        if !rides && cx.registry.register(&connection.client, Token::Client(key)).is_err() {
            self.close(cx, key);
        }
    }

    /// Applies the access list and the limits.
    fn admit_client(&mut self, cx: &mut Context, key: ConnectionKey) -> Progress {
        let connection = &mut self.connections[key];
        let (service, settings) = (&connection.service, &connection.settings);
        match admission::admit(service, settings, connection.address, cx.id, cx.now) {
            Admission::Enter(admitted) => {
                connection.backend = admitted.backend.map_or(connection.backend, |backend| backend as u32);
                connection.admitted = (!admitted.is_plain()).then(|| Box::new(admitted));
                return Progress::Begun;
            }
            Admission::Refused(Refused::Drop) => self.close(cx, key),
            Admission::Refused(Refused::Reject(_)) => {
                reset_at_close(&connection.client);
                self.close(cx, key);
            }
            Admission::Refused(Refused::Tarpit(permits, time)) => {
                // Its slot in the service is free for others.
                connection.permits.lease = permits;
                connection.stage = Stage::Tarpit;
                self.timers.set(key, cx.now + time);
            }
        }
        Progress::Over
    }

    /// Receives the preamble, which decides the choice of a server.
    fn greet(&mut self, cx: &mut Context, key: ConnectionKey) {
        loop {
            let connection = &mut self.connections[key];
            let Some(preamble) = &mut connection.preamble else { return };
            match preamble.read() {
                Greeted::Known if preamble.origin.goes_round() => {
                    let service = Arc::clone(&connection.service);
                    note_loop(cx, &service);
                    return self.close(cx, key);
                }
                Greeted::Known => {
                    connection.address = preamble.origin.client.ip();
                    if self.admit_client(cx, key) == Progress::Over {
                        return;
                    }
                }
                Greeted::Done => return self.greeted(cx, key),
                Greeted::Malformed => {
                    connection.service.live.counters.of(cx.id).preamble_refused.one();
                    return self.close(cx, key);
                }
                Greeted::More => {
                    let mut piece = [0; PREAMBLE_BYTES];
                    match recv(&connection.client, &mut piece, RecvFlags::empty()) {
                        Ok((read @ 1.., _)) => preamble.bytes.extend_from_slice(&piece[..read]),
                        Err(Errno::AGAIN) => return,
                        Err(Errno::INTR) => {}
                        Ok(_) | Err(_) => return self.close(cx, key),
                    }
                }
            }
        }
    }

    /// Routes a client whose preamble is complete.
    fn greeted(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.timers.clear(key);
        let connection = &mut self.connections[key];
        let name =
            connection.preamble.as_ref().and_then(|preamble| preamble.name.as_deref()).unwrap_or_default();
        let routed = connection.settings.routes.find(name.as_bytes(), b"").copied();
        let admitted = connection.admitted.as_ref().and_then(|admitted| admitted.backend);
        let Some(backend) = admitted.or(routed).or(connection.settings.default_backend) else {
            // No route matches.
            connection.service.live.counters.of(cx.id).preamble_refused.one();
            return self.close(cx, key);
        };
        connection.backend = backend as u32;
        // Bytes after the preamble are still in the socket, and there will be no other edge for them.
        connection.from_client.readable = true;
        if self.try_servers(cx, key) == Progress::Begun && self.connections[key].stage == Stage::Relaying {
            self.relay(cx, key);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A connect is in progress, or done.
    Begun,
    /// No server could be reached; the connection is closed.
    Over,
}

impl Tcp {
    /// Hops 3 and 4: pick and connect, until a connect is at least in progress.
    pub(super) fn try_servers(&mut self, cx: &mut Context, key: ConnectionKey) -> Progress {
        for _ in 0..TRIES_MAX {
            let connection = &mut self.connections[key];
            let limits = connection.settings.options.attempt_limits();
            let request = Request::of(connection.address, cx.now);
            let snapshot = connection.settings.backends[connection.backend as usize].pool.load();
            let behind = connection.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request);
            let picked = if behind {
                Err(NoServer::Full)
            } else {
                connection.attempt.next(&snapshot, &request, &limits, &mut cx.random)
            };
            drop(snapshot);
            match picked {
                Err(NoServer::Full) if self.enter_queue(cx, key) => return Progress::Begun,
                Err(reason) => {
                    self.give_up(cx, key, reason);
                    return Progress::Over;
                }
                Ok(choice) => match self.connect(cx, key, choice) {
                    Ok(()) => return Progress::Begun,
                    Err(failed) => self.fail(cx, key, &failed.choice, failed.error),
                },
            }
        }
        self.connections[key].stage = Stage::Connecting;
        self.timers.set(key, cx.now);
        Progress::Begun
    }
}

pub(super) struct ConnectFailed {
    pub(super) choice: Choice,
    pub(super) error: Errno,
}

impl Tcp {
    /// Begins a connect, which on loopback is often complete at once.
    pub(super) fn connect(
        &mut self,
        cx: &mut Context,
        key: ConnectionKey,
        choice: Choice,
    ) -> Result<(), ConnectFailed> {
        let (socket, opening) = match self.warm_or_fresh(cx, key, &choice) {
            Ok(begun) => begun,
            Err(error) => return Err(ConnectFailed { choice, error }),
        };
        let connection = &mut self.connections[key];
        connection.stage = Stage::Connecting;
        connection.active_at = cx.now;
        let options = &connection.settings.options;
        let limits = options.attempt_limits();
        let deadline = connection.attempt.deadline(cx.now, options.connect_timeout, &limits);
        let generation = self.generations.next();
        let upstream = connection.upstream.insert(Upstream { socket, generation, choice });
        if let Some(ring) = cx.ring.as_mut().filter(|_| connection.preamble.is_none()) {
            if opening == Opening::Connecting {
                let mark = Mark::Connect(ConnectId { slot: key.slot(), generation });
                ring.poll(upstream.socket.as_raw_fd(), libc::POLLOUT, mark);
            }
        } else if let Err(error) = cx.registry.register(&upstream.socket, Token::Server(key)) {
            let Some(upstream) = connection.upstream.take() else { return Ok(()) };
            return Err(ConnectFailed { choice: upstream.choice, error });
        }
        if opening != Opening::Connecting {
            self.connected(cx, key, opening);
        } else {
            self.begin_pending(cx, key);
            self.timers.set(key, deadline);
        }
        Ok(())
    }
}

/// Origin of a connection to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// The connect is in progress.
    Connecting,
    /// Made for this client.
    Fresh,
    /// Made before the client came.
    Warm,
}

impl Tcp {
    /// Takes a warm connection, or begins a connect.
    fn warm_or_fresh(
        &mut self,
        cx: &mut Context,
        key: ConnectionKey,
        choice: &Choice,
    ) -> Result<(OwnedFd, Opening), Errno> {
        let Connection { settings, backend, .. } = &*self.connections[key];
        if settings.options.warm > 0
            && !settings.is_personal(*backend as usize)
            && let Some(socket) = {
                let Connection { service, .. } = &*self.connections[key];
                self.warm.take(cx, service, &self.connections[key].backend().pool, choice)
            }
        {
            return Ok((socket, Opening::Warm));
        }
        let connection = &self.connections[key];
        let (client, target) = (connection.address, &choice.server.target);
        let socket = open_socket(target, &connection.settings.options, client)?;
        limit_connection(cx, &connection.service, (&connection.client, client), (&socket, target))?;
        match io::listener::connect(&socket, &choice.server.target) {
            Ok(()) => Ok((socket, Opening::Fresh)),
            Err(Errno::INPROGRESS) => Ok((socket, Opening::Connecting)),
            Err(error) => Err(error),
        }
    }

    /// Counts and reports a failed connect; the server is not tried again for this client.
    pub(super) fn fail(&mut self, cx: &mut Context, key: ConnectionKey, choice: &Choice, error: Errno) {
        let connection = &mut self.connections[key];
        connection.attempt.failed(choice.server.id, choice.why, cost(error));
        let pool = connection.backend().pool.load().pool.clone();
        note_failure(cx, pool, &choice.server, error);
    }

    pub(super) fn give_up(&mut self, cx: &mut Context, key: ConnectionKey, reason: NoServer) {
        let service = Arc::clone(&self.connections[key].service);
        note_no_server(cx, &service, reason);
        self.close(cx, key);
    }

    /// Handles the completion of a connect.
    fn connected(&mut self, cx: &mut Context, key: ConnectionKey, opening: Opening) {
        self.end_pending(cx, key);
        let connection = &self.connections[key];
        let Some(upstream) = &connection.upstream else { return };
        let (server, now) = (&upstream.choice.server, cx.now);
        let snapshot = connection.backend().pool.load();
        snapshot.remember(connection.address, server.id, now);
        if opening == Opening::Fresh {
            snapshot.observe(server, now.since(connection.active_at), now);
        }
        if let Some(record) = connection.record() {
            record.record_server(&snapshot.pool, &server.name);
        }
        server.live.counters.of(cx.id).connections.one();
        note_success(cx, &snapshot.pool, &upstream.choice);
        let connection = &mut self.connections[key];
        connection.stage = Stage::Relaying;
        connection.from_client.writable = true;
        connection.active_at = now;
        match connection.settings.options.idle_timeout {
            Some(idle) => self.timers.set(key, now + idle),
            None => self.timers.clear(key),
        }
        if connection.preamble.is_some() {
            self.send_first(cx, key);
        } else if cx.ring.is_some() {
            self.adopt(cx, key);
        }
    }

    /// Handles a completion of the ring for a connecting socket: writable, or failed.
    pub(super) fn on_connect_polled(&mut self, cx: &mut Context, key: ConnectionKey, events: i16) {
        if self.connections[key].stage != Stage::Connecting {
            return;
        }
        if events & (libc::POLLERR | libc::POLLHUP) == 0 {
            self.connected(cx, key, Opening::Fresh);
        } else {
            self.on_connect_error(cx, key);
        }
    }

    /// Handles an event of the client's socket.
    pub(crate) fn on_client_event(&mut self, cx: &mut Context, key: ConnectionKey, ready: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.from_client.readable |= ready.readable || ready.ended;
        connection.from_client.hung_up |= ready.ended;
        connection.from_server.writable |= ready.writable || ready.error;
        match connection.stage {
            Stage::Preamble => self.greet(cx, key),
            Stage::Connecting | Stage::Queued if ready.error => self.close(cx, key),
            Stage::Connecting | Stage::Queued | Stage::Tarpit | Stage::Over => {}
            Stage::Relaying | Stage::Lingering => self.relay(cx, key),
        }
    }

    /// Handles an event of the server's socket.
    pub(crate) fn on_server_event(&mut self, cx: &mut Context, key: ConnectionKey, ready: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        match connection.stage {
            Stage::Connecting if ready.ended => return self.on_connect_error(cx, key),
            Stage::Connecting if ready.writable => self.connected(cx, key, Opening::Fresh),
            Stage::Preamble | Stage::Tarpit | Stage::Queued | Stage::Connecting | Stage::Over => return,
            Stage::Relaying | Stage::Lingering => {}
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.from_server.readable |= ready.readable || ready.ended;
        connection.from_server.hung_up |= ready.ended;
        connection.from_client.writable |= ready.writable || ready.error;
        self.relay(cx, key);
    }

    /// Handles an error of a connecting socket, which may also have been closed right after it was accepted.
    fn on_connect_error(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(upstream) = &self.connections[key].upstream else { return };
        match sockopt::socket_error(&upstream.socket) {
            Ok(Err(error)) | Err(error) => self.next_server(cx, key, error),
            Ok(Ok(())) => {
                self.connected(cx, key, Opening::Fresh);
                let connection = &mut self.connections[key];
                connection.from_server.readable = true;
                connection.from_server.hung_up = true;
                self.relay(cx, key);
            }
        }
    }

    pub(super) fn next_server(&mut self, cx: &mut Context, key: ConnectionKey, error: Errno) {
        self.cancel_connect(cx, key);
        self.timers.clear(key);
        // There is none after so many failures at once that others had their turn.
        if let Some(upstream) = self.connections[key].upstream.take() {
            self.fail(cx, key, &upstream.choice, error);
            drop(upstream);
            let pool = Arc::clone(&self.connections[key].backend().pool);
            pool_queue::note_freed(cx, &pool);
        }
        // The client waited meanwhile; its bytes are still in its socket.
        if self.try_servers(cx, key) == Progress::Begun && self.connections[key].stage == Stage::Relaying {
            self.relay(cx, key);
        }
    }

    /// Hop 5: relay.
    pub(super) fn relay(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if connection.ring.is_some() {
            return;
        }
        let step = connection.relay(&mut self.scratch, cx.id, cx.now);
        self.follow(cx, key, step);
    }

    /// Acts on the outcome of a relay step.
    pub(super) fn follow(&mut self, cx: &mut Context, key: ConnectionKey, step: Step) {
        let connection = &mut self.connections[key];
        if connection.is_half_closed()
            && let Some(quiet) = connection.settings.options.traffic_timeout(true)
        {
            self.timers.set(key, cx.now + quiet);
        }
        match step {
            Step::Wait => {}
            Step::Again => self.queue(cx, key),
            Step::Linger => {
                connection.stage = Stage::Lingering;
                self.timers.set(key, cx.now + LINGER);
                // Bytes that the client sent meanwhile may have had their edge already.
                self.queue(cx, key);
            }
            Step::Close => self.close(cx, key),
        }
    }

    pub(super) fn queue(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if !std::mem::replace(&mut connection.queued, true) {
            cx.ready.push(Ready::Relay(key));
        }
    }

    /// Closes a connection. The entry is removed when the present events are handled.
    pub(super) fn close(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.leave_queue(cx, key);
        self.timers.clear(key);
        self.abandon(cx, key);
        self.connections[key].stage = Stage::Over;
        self.over.push(key);
    }
}
