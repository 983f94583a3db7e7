//! The path of a TCP client, in five hops: accept, admit, pick, connect (the next candidate on failure), relay.

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ConnectionKey, ListenerKey};
use crate::context::ready::Ready;
use crate::context::registry::{Readiness, Token};
use crate::context::ring::Mark;
use crate::io::connect::TRIES_MAX;
use crate::service::accepted::Accepted;
use crate::service::admission::{Refused, reset_at_close};
use crate::service::hops::note_loop;
use crate::service::pool_queue;
use crate::service::preamble::{PREAMBLE, Preamble};
use crate::service::{Permits, Settings, note_no_server};
use crate::tcp::connection::{Connection, Opening, PreambleStep, Stage, Step};
use crate::tcp::pausing::{Full, Queue};
use evener_core::Target;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::{Choice, NoServer};
use evener_core::spec::Protocol;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Tcp;

/// Number of clients that one listener accepts before other work continues.
const ACCEPTS_MAX: usize = 64;
/// Maximum time for which a client is drained after everything was delivered to it.
const LINGER: Duration = Duration::from_secs(5);

impl Tcp {
    /// Hop 1: accept. The rest of the queue is accepted after other work.
    pub(crate) fn accept(&mut self, cx: &mut Context, key: ListenerKey) {
        if self.accept_some(cx, key) == Queue::More {
            cx.ready.push(Ready::Accept(key));
        }
    }

    /// Accepts up to [`ACCEPTS_MAX`] clients. If the service is full, accepting pauses, and further clients
    /// stay in the kernel's queue.
    fn accept_some(&mut self, cx: &mut Context, key: ListenerKey) -> Queue {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.listeners.get(key).filter(|listener| !listener.is_suspended()) else {
                return Queue::Left;
            };
            let settings = listener.service().settings.load_full();
            let Some(permits) = listener.service().enter(settings.options.connections_max) else {
                return self.pause_full(cx, key, Full::Connections(settings.options.connections_max));
            };
            let Some(units) = Unit::take_two_or_wait() else {
                return self.pause_full(cx, key, Full::Descriptors);
            };
            if let Some(pending_max) = settings.options.pending_max {
                // This slot may be released unused below. A worker that found no slot in the meantime tries
                // again soon.
                let Some(pending) = listener.service().enter_pending(pending_max) else {
                    return self.pause_full(cx, key, Full::Pending);
                };
                self.pending = Some(pending);
            }
            let accepted = self.accept_one(cx, key, settings, Permits::new(permits, units));
            if self.pending.take().is_some() {
                // The slot was not needed: the connection attempt succeeded immediately, or begins later.
                let service = Arc::clone(self.listeners[key].service());
                service.wake_waiting(cx);
            }
            if let Some(queue) = accepted {
                return queue;
            }
        }
        Queue::More
    }

    /// Accepts all clients in the queue of a listener that is about to close, beyond the limit if necessary:
    /// these clients are connected already.
    pub(super) fn accept_rest(&mut self, cx: &mut Context, key: ListenerKey) {
        while let Some(listener) = self.listeners.get(key) {
            let settings = listener.service().settings.load_full();
            let Some(permits) = listener.service().enter(u32::MAX) else { return };
            let permits = Permits::new(permits, Unit::take_two_beyond());
            if self.accept_one(cx, key, settings, permits).is_some() {
                return;
            }
        }
    }

    /// Accepts one client. Returns the state of the queue if it is empty or accepting failed.
    fn accept_one(
        &mut self,
        cx: &mut Context,
        key: ListenerKey,
        settings: Arc<Settings>,
        permits: Permits,
    ) -> Option<Queue> {
        let listener = &mut self.listeners[key];
        match listener.accept() {
            Ok((client, peer)) => self.admit(cx, key, client, peer, settings, permits),
            Err(Errno::AGAIN) => {
                let service = Arc::clone(listener.service());
                // The slots were not used; another worker may have found the service full because of them.
                drop((permits, self.pending.take()));
                service.wake_waiting(cx);
                return Some(Queue::Left);
            }
            // The client closed while it waited, or its network failed (accept(2)): the next client may be
            // fine.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => {}
            Err(error) => return Some(self.pause_failed(cx, key, error)),
        }
        None
    }

    /// Hop 2: admit. Clients of HTTP, TLS and DNS are handed over to other components. If a preamble is
    /// expected, it is received before a server is chosen.
    fn admit(
        &mut self,
        cx: &mut Context,
        key: ListenerKey,
        client: OwnedFd,
        peer: SocketAddr,
        settings: Arc<Settings>,
        permits: Permits,
    ) {
        let service = Arc::clone(self.listeners[key].service());
        service.live.counters.of(cx.id).connections.one();
        if service.live.protocol == Protocol::Dns || settings.is_layered() {
            return self.handed_over.push_back(Accepted { client, peer, service, settings, permits });
        }
        let preamble = Preamble::new(peer, &settings);
        let introduces = settings.backends.iter().any(|backend| backend.send_proxy.is_some());
        let key = {
            let connection = Connection::new(client, peer.ip(), service, settings, permits, cx);
            self.connections.insert(Box::new(connection))
        };
        self.connections[key].begin_entry(cx, peer);
        let (has_preamble, awaits_proxy) = (!preamble.is_over(), preamble.awaits_proxy());
        if has_preamble || introduces {
            self.connections[key].set_preamble(preamble);
        }
        // A client that is announced by a PROXY header is admitted when the header has arrived.
        if !awaits_proxy && self.admit_client(cx, key) == Progress::Over {
            return;
        }
        let connection = &mut self.connections[key];
        if has_preamble {
            connection.stage = Stage::Preamble;
            self.timers.set(key, cx.now + PREAMBLE);
        } else if self.try_servers(cx, key) == Progress::Over {
            return;
        }
        // With a ring, input of the client is received once the server is connected.
        let connection = &self.connections[key];
        if !connection.uses_ring(cx) && cx.registry.register(&connection.client, Token::Client(key)).is_err()
        {
            self.close(cx, key);
        }
    }

    /// Applies the access list and the limits.
    fn admit_client(&mut self, cx: &mut Context, key: ConnectionKey) -> Progress {
        let connection = &mut self.connections[key];
        let Err((refused, reason)) = connection.admit(cx.id, cx.now) else { return Progress::Begun };
        connection.note_unserved(cx, reason.into());
        match refused {
            Refused::Drop => self.close(cx, key),
            Refused::Reject => {
                reset_at_close(&connection.client);
                self.close(cx, key);
            }
            Refused::Tarpit(permit, time) => {
                connection.tarpit(permit);
                self.timers.set(key, cx.now + time);
            }
        }
        Progress::Over
    }

    /// Receives the preamble, which decides the choice of a server.
    fn receive_preamble(&mut self, cx: &mut Context, key: ConnectionKey) {
        loop {
            let connection = &mut self.connections[key];
            match connection.read_preamble() {
                PreambleStep::Wait => return,
                PreambleStep::ClientKnown => {
                    if self.admit_client(cx, key) == Progress::Over {
                        return;
                    }
                }
                PreambleStep::Complete => return self.on_preamble(cx, key),
                PreambleStep::Loop => {
                    let service = Arc::clone(&connection.service);
                    note_loop(cx, &service);
                    connection.note_unserved(cx, Reason::Loop.into());
                    return self.close(cx, key);
                }
                PreambleStep::Malformed(cause) => return self.refuse_preamble(cx, key, cause),
                PreambleStep::Closed => return self.close(cx, key),
            }
        }
    }

    fn refuse_preamble(&mut self, cx: &mut Context, key: ConnectionKey, cause: Cause) {
        let connection = &self.connections[key];
        connection.service.live.counters.of(cx.id).preamble_refused.one();
        connection.note_unserved(cx, cause);
        self.close(cx, key);
    }

    /// Routes a client whose preamble is complete.
    fn on_preamble(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.timers.clear(key);
        if !self.connections[key].route() {
            return self.refuse_preamble(cx, key, Reason::NoRoute.into());
        }
        if self.try_servers(cx, key) == Progress::Begun && self.connections[key].stage == Stage::Relaying {
            self.relay(cx, key);
        }
    }
}

/// Outcome of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The client is admitted or queued, a connection attempt is in progress, or the server is connected.
    Begun,
    /// The client was refused, or no server could be reached. The connection is closed, or in the tarpit.
    Over,
}

impl Tcp {
    /// Hops 3 and 4: pick and connect, until a connection attempt is in progress or has succeeded. After
    /// [`TRIES_MAX`] immediate failures, other work continues first.
    pub(super) fn try_servers(&mut self, cx: &mut Context, key: ConnectionKey) -> Progress {
        for _ in 0..TRIES_MAX {
            match self.connections[key].pick(cx) {
                Err(NoServer::Full) if self.enter_queue(cx, key) => return Progress::Begun,
                Err(reason) => {
                    self.give_up(cx, key, reason);
                    return Progress::Over;
                }
                Ok(choice) => {
                    if self.connect(cx, key, choice) == Connect::Begun {
                        return Progress::Begun;
                    }
                }
            }
        }
        self.connections[key].stage = Stage::Connecting;
        self.timers.set(key, cx.now);
        Progress::Begun
    }
}

/// Outcome of the beginning of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connect {
    /// The attempt is in progress or has succeeded.
    Begun,
    /// The attempt failed, and the failure is recorded.
    Failed,
}

impl Tcp {
    /// Takes a warm connection, or begins a connection attempt, which on loopback often succeeds immediately.
    pub(super) fn connect(&mut self, cx: &mut Context, key: ConnectionKey, choice: Choice) -> Connect {
        let (socket, opening) = match self.warm_or_fresh(cx, key, &choice) {
            Ok(begun) => begun,
            Err(error) => {
                self.connections[key].on_connect_failed(cx, &choice, error);
                return Connect::Failed;
            }
        };
        let generation = self.generations.next();
        let deadline = self.connections[key].begin_connect(socket, generation, choice, cx.now);
        if let Err(error) = self.watch_server(cx, key, opening) {
            let connection = &mut self.connections[key];
            if let Some(choice) = connection.close_server(cx.ring.as_mut()) {
                connection.on_connect_failed(cx, &choice, error);
            }
            return Connect::Failed;
        }
        if opening != Opening::Connecting {
            self.connected(cx, key, opening);
        } else {
            self.begin_pending(key);
            self.timers.set(key, deadline);
        }
        Connect::Begun
    }

    /// Waits for the socket to the server: the ring connects it, or epoll reports its events.
    fn watch_server(&self, cx: &mut Context, key: ConnectionKey, opening: Opening) -> Result<(), Errno> {
        let connection = &self.connections[key];
        let Some((socket, connect)) = connection.server_socket().zip(connection.connect_id(key)) else {
            return Ok(());
        };
        if !connection.uses_ring(cx) {
            return cx.registry.register(socket, Token::Server(key));
        }
        if opening == Opening::Connecting
            && let Some(Target::Ip(address)) = connection.choice().map(|choice| &choice.server.target)
            && let Some(ring) = &mut cx.ring
        {
            ring.connect(socket, (*address).into(), Mark::Connect(connect));
        }
        Ok(())
    }
}

impl Tcp {
    /// Takes a warm connection, or begins to connect a fresh socket.
    fn warm_or_fresh(
        &mut self,
        cx: &mut Context,
        key: ConnectionKey,
        choice: &Choice,
    ) -> Result<(OwnedFd, Opening), Errno> {
        let connection = &self.connections[key];
        if connection.may_use_warm()
            && let Some(socket) = self.warm.take(cx, &connection.service, &connection.backend().pool, choice)
        {
            return Ok((socket, Opening::Warm));
        }
        connection.open(cx, &choice.server.target)
    }

    /// Closes a client for which no server is available, and reports that.
    pub(super) fn give_up(&mut self, cx: &mut Context, key: ConnectionKey, reason: NoServer) {
        let service = Arc::clone(&self.connections[key].service);
        note_no_server(cx, &service, reason);
        self.connections[key].note_no_server(cx, reason);
        self.close(cx, key);
    }

    /// Handles the success of a connection attempt.
    fn connected(&mut self, cx: &mut Context, key: ConnectionKey, opening: Opening) {
        self.end_pending(cx, key);
        let connection = &mut self.connections[key];
        if connection.choice().is_none() {
            return;
        }
        connection.on_connected(cx, opening);
        match connection.settings.options.idle_timeout {
            Some(idle) => self.timers.set(key, cx.now + idle),
            None => self.timers.clear(key),
        }
        if connection.has_preamble() {
            connection.send_preamble(cx.id, &mut cx.random);
            self.queue(cx, key);
        } else if cx.ring.is_some() {
            self.adopt(cx, key);
        }
    }

    /// Handles the end of a connection attempt in the ring.
    pub(super) fn on_connect_completed(
        &mut self,
        cx: &mut Context,
        key: ConnectionKey,
        result: Result<u32, Errno>,
    ) {
        match result {
            _ if self.connections[key].stage != Stage::Connecting => {}
            Ok(_) => self.connected(cx, key, Opening::Fresh),
            Err(error) => self.next_server(cx, key, error),
        }
    }

    /// Handles an event of the client's socket.
    pub(crate) fn on_client_event(&mut self, cx: &mut Context, key: ConnectionKey, ready: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.from_client.on_source_event(ready);
        connection.from_server.on_sink_event(ready);
        match connection.stage {
            Stage::Preamble => self.receive_preamble(cx, key),
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
        connection.from_server.on_source_event(ready);
        connection.from_client.on_sink_event(ready);
        self.relay(cx, key);
    }

    /// Handles an error event of a connecting socket: the attempt failed, or the server closed the connection
    /// right after accepting it.
    fn on_connect_error(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(socket) = self.connections[key].server_socket() else { return };
        match sockopt::socket_error(socket) {
            Ok(Err(error)) | Err(error) => self.next_server(cx, key, error),
            Ok(Ok(())) => {
                self.connected(cx, key, Opening::Fresh);
                let connection = &mut self.connections[key];
                let ended = Readiness { ended: true, ..Readiness::default() };
                connection.from_server.on_source_event(ended);
                self.relay(cx, key);
            }
        }
    }

    /// Tries the next server after a failed connection attempt.
    pub(super) fn next_server(&mut self, cx: &mut Context, key: ConnectionKey, error: Errno) {
        self.cancel_connect(cx, key);
        self.timers.clear(key);
        let connection = &mut self.connections[key];
        // The connection has no server if the last turn stopped after [`TRIES_MAX`] immediate failures.
        if let Some(choice) = connection.close_server(cx.ring.as_mut()) {
            connection.on_connect_failed(cx, &choice, error);
            let pool = Arc::clone(&connection.backend().pool);
            drop(choice);
            pool_queue::note_freed(cx, &pool);
        }
        // The bytes that the client sent in the meantime are still in its socket.
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
            && let Some(timeout) = connection.settings.options.traffic_timeout(true)
        {
            self.timers.set(key, cx.now + timeout);
        }
        match step {
            Step::Wait => {}
            Step::Again => self.queue(cx, key),
            Step::Linger => {
                connection.stage = Stage::Lingering;
                self.timers.set(key, cx.now + LINGER);
                // The event for bytes that the client sent in the meantime may have been handled already.
                self.queue(cx, key);
            }
            Step::Close => self.close(cx, key),
        }
    }

    /// Adds a connection to the ready queue.
    pub(super) fn queue(&mut self, cx: &mut Context, key: ConnectionKey) {
        if self.connections[key].enter_ready_queue() {
            cx.ready.push(Ready::Relay(key));
        }
    }

    /// Closes a connection. The entry is removed when the present events are handled.
    pub(super) fn close(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.leave_queue(cx, key);
        self.timers.clear(key);
        self.abandon(cx, key);
        self.connections[key].note_end(cx.id);
        self.connections[key].end_entry(cx.now);
        self.connections[key].stage = Stage::Over;
        self.closed.push(key);
    }
}
