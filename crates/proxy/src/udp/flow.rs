//! Flows: their beginning at a server, their move to another server, their end, and the datagrams of clients to
//! servers.

use super::client_class::{ClientClass, Pools};
use super::{DatagramListener, FlowSocket, Identity, NewFlow, Udp};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey, Handle, Key};
use crate::context::registry::Token;
use crate::context::report::Report;
use crate::context::unserved::{Traffic, Unserved};
use crate::io::batch::Batch;
use crate::io::connect::{self, count_local_error, count_refusal, is_local_error};
use crate::io::source::SourceAddress;
use crate::service::access_entry::AccessEntry;
use crate::service::failures::note_unserved;
use crate::service::hops::{may_loop, note_loop};
use crate::service::{Service, Settings, admission, note_no_server, note_retry};
use evener_core::Time;
use evener_core::attempt::{Attempt, AttemptLimits, FailedTry};
use evener_core::flow::{Flow, FlowKey};
use evener_core::health::Failure;
use evener_core::reason::Reason;
use evener_core::request_log::RequestText;
use evener_core::snapshot::{Choice, Entry, NoServer, Request, Snapshot};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reason why a flow cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeginError {
    /// No server can take the flow.
    NoServer(NoServer),
    /// No descriptor or port is left.
    NoSocket,
    /// The client's datagrams loop.
    Loop,
}

impl BeginError {
    /// Counts the datagram that is dropped for this reason, and its failed attempt.
    pub(super) fn note(
        self,
        cx: &Context,
        service: &Service,
        client: IpAddr,
        (attempt, snapshot): (&Attempt, &Snapshot),
    ) {
        attempt.count_first_failure(snapshot, cx.now);
        let counters = service.live.counters.of(cx.id);
        let reason = match self {
            Self::NoServer(reason) => {
                counters.drops.no_server.one();
                reason.into()
            }
            Self::NoSocket => {
                counters.drops.no_socket.one();
                Reason::NoDescriptor
            }
            Self::Loop => {
                note_loop(cx, service);
                Reason::Loop
            }
        };
        note_unserved(cx, service, reason, || Unserved {
            pool: Some(Arc::clone(&snapshot.pool)),
            ..Unserved::new(Traffic::Datagram, client, reason)
        });
    }
}

/// The reason why there is no socket to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectError {
    /// Another server may succeed.
    ThisServer(FailedTry),
    /// No descriptor or port is left for any server.
    Exhausted,
}

/// Returns the key of a flow's socket.
pub(super) fn socket_of(flow: &Flow) -> FlowSocketKey {
    Key::from_raw(flow.handle)
}

/// Creates a socket to a server.
fn connect(cx: &Context, new: &NewFlow<'_>, server: &Entry) -> Result<(OwnedFd, Unit), ConnectError> {
    let pool = &new.snapshot.pool;
    let Some(unit) = Unit::take() else {
        count_local_error(cx, pool, server.id, &server.live, Errno::MFILE);
        return Err(ConnectError::Exhausted);
    };
    let source = SourceAddress::of(&new.settings.options, new.key.client.ip());
    match connect::datagram_socket(&server.target, source) {
        Ok(socket) => Ok((socket, unit)),
        // The client's address cannot be the source address towards this server. The server is not at fault,
        // and a free port would not help.
        Err(Errno::ADDRNOTAVAIL) => {
            count_local_error(cx, pool, server.id, &server.live, Errno::ADDRNOTAVAIL);
            Err(ConnectError::ThisServer(FailedTry::LOCAL))
        }
        Err(error) if is_local_error(error) => {
            count_local_error(cx, pool, server.id, &server.live, error);
            Err(ConnectError::Exhausted)
        }
        Err(_) => {
            server.live.counters.of(cx.id).connect_failures.error.one();
            report_failure(cx, new.snapshot, server, Failure::Unreachable);
            Err(ConnectError::ThisServer(FailedTry::QUICK))
        }
    }
}

fn report_failure(cx: &Context, snapshot: &Snapshot, server: &Entry, failure: Failure) {
    let (pool, target) = (snapshot.pool.clone(), server.target.clone());
    cx.report(Report::Failure { pool, server: server.id, target, failure });
}

/// Counts and reports a datagram that its server refused.
pub(super) fn note_refusal(cx: &Context, snapshot: &Snapshot, server: &Entry, error: Errno) {
    report_failure(cx, snapshot, server, count_refusal(cx, server, error));
}

impl DatagramListener {
    /// Gives a new flow its identity, and records its client if the service remembers clients.
    fn identify(&self, cx: &mut Context, new: &NewFlow<'_>) -> Identity {
        let number = cx.number();
        let record = admission::record_of(&self.service, new.settings, new.key.client.ip(), cx.now);
        record.iter().for_each(|record| record.connected(cx.now));
        Identity { number, record }
    }
}

impl Udp {
    /// Returns the socket of a flow, which begins or moves to another server if necessary. `None` when the
    /// datagram is dropped.
    pub(super) fn flow_of(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        (key, ttl): (FlowKey, Option<u8>),
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let (listener, client) = (&mut self.listeners[at], key.client.ip());
        let mut identity = None;
        if let Some(flow) = listener.flows.datagram(&key, cx.now) {
            let socket = self.sockets.get(socket_of(flow));
            let snapshot = pools.of(socket.map_or(ClientClass::Permitted, |socket| socket.class));
            if flow.generation == snapshot.generation {
                return Some(socket_of(flow));
            }
            let target = socket.map(|socket| &socket.choice.server.target);
            if target.is_some_and(|target| snapshot.keeps_flow(flow.server, target, client)) {
                flow.generation = snapshot.generation;
                return Some(socket_of(flow));
            }
            listener.service.live.counters.of(cx.id).flows_moved.one();
            identity = socket.map(|socket| socket.identity.clone());
            // The flow ends first, so that it does not count against the limit of its next server.
            self.end(at, &key);
        }
        let service = Arc::clone(&self.listeners[at].service);
        let class = ClientClass::at_begin(cx, &service, client, pools.settings, identity.is_none())?;
        let new = NewFlow { key, ttl, class, identity, settings: pools.settings, snapshot: pools.of(class) };
        let mut attempt = Attempt::uncounted(cx.id);
        let begun = self.begin(cx, at, &new, &mut attempt);
        begun.inspect_err(|error| error.note(cx, &service, client, (&attempt, new.snapshot))).ok()
    }

    /// Begins a flow at one server after another, except servers that failed, until one takes it.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        new: &NewFlow<'_>,
        attempt: &mut Attempt,
    ) -> Result<FlowSocketKey, BeginError> {
        let request = Request::of(new.key.client.ip(), cx.now);
        loop {
            let picked = attempt.next(new.snapshot, &request, &AttemptLimits::NONE, &mut cx.random);
            note_retry(cx, &self.listeners[at].service, &new.snapshot.pool, &picked);
            let choice = match picked {
                Ok(choice) => choice,
                Err(reason) => {
                    note_no_server(cx, &self.listeners[at].service, reason);
                    self.end(at, &new.key);
                    return Err(BeginError::NoServer(reason));
                }
            };
            let (server, why) = (choice.server.id, choice.why);
            match self.begin_at(cx, at, new, choice) {
                Ok(begun) => return begun,
                Err(failed) => attempt.failed(server, why, failed),
            }
        }
    }

    /// Begins a flow at this server.
    ///
    /// # Errors
    /// Another server may be tried.
    pub(super) fn begin_at(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        new: &NewFlow<'_>,
        choice: Choice,
    ) -> Result<Result<FlowSocketKey, BeginError>, FailedTry> {
        let key = FlowKey { lane: new.key.lane.map(|_| choice.server.id), ..new.key };
        if key != new.key {
            // The client may have a flow to this server already.
            self.end(at, &new.key);
            if let Some(flow) = self.listeners[at].flows.peek(&key) {
                return Ok(Ok(socket_of(flow)));
            }
        }
        let (socket, unit) = match connect(cx, new, &choice.server) {
            Ok(connected) => connected,
            Err(ConnectError::ThisServer(failed)) => return Err(failed),
            Err(ConnectError::Exhausted) => {
                self.make_room(cx, at);
                return Ok(Err(BeginError::NoSocket));
            }
        };
        let listener = &mut self.listeners[at];
        let target = &choice.server.target;
        if may_loop(key.client.ip(), target)
            && listener.watch.on_flow(cx.now, &listener.socket, (&socket, target), new.ttl).is_err()
        {
            return Ok(Err(BeginError::Loop));
        }
        let backend = new.class.backend(new.settings);
        let flow = FlowSocket {
            socket,
            listener: at,
            key,
            choice,
            header: backend.send_proxy.map(|_| listener.header_of(&key)),
            identity: new.identity.clone().unwrap_or_else(|| listener.identify(cx, new)),
            class: new.class,
            begun_at: cx.now,
            responded_at: Time::ZERO,
            entry: AccessEntry::begin(cx, &listener.service, new.settings, key.client, RequestText::default),
            is_lent: false,
            _descriptor: unit,
        };
        Ok(self.install(cx, flow, new.snapshot).ok_or(BeginError::NoSocket))
    }

    /// Ends the least recently used flow, so that the next datagram finds a descriptor and a port.
    fn make_room(&mut self, cx: &Context, at: DatagramListenerKey) {
        let listener = &self.listeners[at];
        if let Some(oldest) = listener.flows.oldest() {
            listener.service.live.counters.of(cx.id).flows_ended.evicted.one();
            self.end(at, &oldest);
        }
    }

    /// Inserts a flow into the table, replacing a flow with the same key. `None` when the socket cannot be
    /// registered.
    fn install(&mut self, cx: &Context, flow: FlowSocket, snapshot: &Snapshot) -> Option<FlowSocketKey> {
        let (at, key, server) = (flow.listener, flow.key, Arc::clone(&flow.choice.server));
        if let Some(record) = &flow.identity.record {
            record.record_server(&snapshot.pool, &server.name);
        }
        if let Some(entry) = &flow.entry {
            entry.tried(&snapshot.pool, &server);
            entry.connected(cx.now);
        }
        self.end(at, &key);
        let socket = self.sockets.insert(flow);
        if cx.registry.register(&self.sockets[socket].socket, Token::Flow(socket)).is_err() {
            self.sockets.remove(socket);
            return None;
        }
        let listener = &mut self.listeners[at];
        let flow = Flow { server: server.id, handle: socket.into_raw(), generation: snapshot.generation };
        let evicted = listener.flows.begin(key, flow, cx.now);
        let counters = listener.service.live.counters.of(cx.id);
        counters.flows.one();
        server.live.counters.of(cx.id).flows.one();
        listener.service.live.flows.fetch_add(1, Ordering::Relaxed);
        if let Some(evicted) = evicted {
            counters.flows_ended.evicted.one();
            self.retire(at, socket_of(&evicted));
        }
        snapshot.remember(key.client.ip(), server.id, cx.now);
        Some(socket)
    }

    /// Ends a flow, if there is one.
    pub(super) fn end(&mut self, at: DatagramListenerKey, key: &FlowKey) {
        if let Some(flow) = self.listeners[at].flows.end(key) {
            self.retire(at, socket_of(&flow));
        }
    }

    /// Moves a flow to a server that has not failed.
    pub(super) fn move_on(
        &mut self,
        cx: &mut Context,
        socket: FlowSocketKey,
        (settings, snapshot): (&Settings, &Snapshot),
        attempt: &mut Attempt,
    ) -> Result<FlowSocketKey, BeginError> {
        let flow = &self.sockets[socket];
        let (at, key, class, identity) = (flow.listener, flow.key, flow.class, Some(flow.identity.clone()));
        let new = NewFlow { key, ttl: None, class, identity, settings, snapshot };
        let next = self.begin(cx, at, &new, attempt)?;
        self.listeners[at].service.live.counters.of(cx.id).flows_moved.one();
        Ok(next)
    }

    /// Sends datagrams of one flow to its server; after a refusal, to the next server.
    pub(super) fn send_to_server(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        socket: FlowSocketKey,
        batch: &mut Batch,
        indices: &[usize],
        pools: &Pools<'_>,
    ) {
        let (mut socket, mut left) = (socket, indices);
        let Some(class) = self.sockets.get(socket).map(|flow| flow.class) else { return };
        let mut attempt = Attempt::first_try(cx.id, pools.of(class), cx.now);
        while let Some(flow) = self.sockets.get(socket) {
            let counters = self.listeners[at].service.live.counters.of(cx.id);
            let (taken, error) = batch.send_connected(flow.socket.as_fd(), left);
            let (done, rest) = left.split_at(taken);
            let bytes = batch.bytes(done);
            counters.bytes_in.add(bytes);
            let of_server = flow.choice.server.live.counters.of(cx.id);
            of_server.datagrams_in.add(done.len() as u64);
            of_server.bytes_in.add(bytes);
            if let Some(record) = &flow.identity.record {
                record.moved(bytes, 0, cx.now);
            }
            if let Some(entry) = &flow.entry {
                entry.moved(bytes, 0, cx.now);
            }
            left = rest;
            match error {
                None => return,
                Some(Errno::AGAIN | Errno::NOBUFS) => return counters.drops.send_full.add(left.len() as u64),
                // The datagram is too large for its route, or a local rule forbids it: the server is not at
                // fault.
                Some(error) if error == Errno::MSGSIZE || error == Errno::INVAL || is_local_error(error) => {
                    counters.drops.unsendable.one();
                    left = &left[1..];
                }
                // The error (ICMP) concerns an earlier datagram of the flow. The present datagrams were not
                // sent yet, and go to the next server.
                Some(error) => {
                    let (server, snapshot) = (&flow.choice.server, pools.of(flow.class));
                    attempt.failed(server.id, flow.choice.why, FailedTry::QUICK);
                    note_refusal(cx, snapshot, server, error);
                    match self.move_on(cx, socket, (pools.settings, snapshot), &mut attempt) {
                        Ok(next) => socket = next,
                        Err(_) => {
                            let counters = self.listeners[at].service.live.counters.of(cx.id);
                            return counters.drops.refused.add(left.len() as u64);
                        }
                    }
                }
            }
        }
    }
}
