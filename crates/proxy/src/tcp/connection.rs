//! One TCP connection of a client with its connection to a server: the preamble, the attempt to reach a server,
//! both directions, and the end of both. The events and deadlines are handled by the component.

mod closing;
mod listing;
mod log;
mod passing;
mod preamble;

pub(super) use self::preamble::PreambleStep;

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::context::pool_queue::Queued;
use crate::context::ring::ConnectId;
use crate::context::unserved::{Traffic, Unserved};
use crate::io::connect::{connect, failed_try, note_failure, note_success, open_socket};
use crate::io::relay::{self, Direction, End, Pumped, Scratch};
use crate::io::request_log::Tap;
use crate::io::sys;
use crate::service::admission::{self, Admission, Admitted, Refused, reset_at_close};
use crate::service::failures::{note_client, note_unserved};
use crate::service::hops::limit_connection;
use crate::service::preamble::Preamble;
use crate::service::{Backend, Permits, Service, Settings, note_retry, pool_queue};
use crate::tcp::ring_relay::RingState;
use evener_core::attempt::Attempt;
use evener_core::clients::ClientRecord;
use evener_core::limits::Lease;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::{Choice, NoServer, Request};
use evener_core::spec::FastClose;
use evener_core::{Target, Time};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown, sockopt};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A client's connection, with its connection to a server.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: OwnedFd,
    upstream: Option<Upstream>,
    pub(super) from_client: Direction,
    pub(super) from_server: Direction,
    pub(super) stage: Stage,
    pub(super) service: Arc<Service>,
    pub(super) settings: Arc<Settings>,
    address: IpAddr,
    /// Index of the backend that serves the client, in the settings.
    backend: u32,
    /// The preamble, which is received before a server is chosen. Boxed: most connections have none.
    preamble: Option<Box<Preamble>>,
    /// Permits and records of the client beyond its slot. Boxed: most connections have none.
    admitted: Option<Box<Admitted>>,
    /// The attempt to reach a server.
    attempt: Attempt,
    /// Time of the last byte that moved; before that, the beginning of the connection attempt.
    active_at: Time,
    /// Bytes that were relayed in both directions.
    relayed: u64,
    /// State in the ring, while the bytes are relayed there.
    pub(super) ring: Option<Box<RingState>>,
    /// Connection id, unique within the worker.
    number: u32,
    /// True while the connection is in the ready queue.
    queued: bool,
    /// Slot in the service, and the two descriptors of the connection.
    permits: Permits,
}

/// The connection to the server.
#[derive(Debug)]
struct Upstream {
    socket: OwnedFd,
    /// Distinguishes completions of this connection to a server from completions of earlier connections.
    generation: u32,
    choice: Choice,
}

/// Stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The preamble is being received.
    Preamble,
    /// The client was refused; the connection stays open for some time.
    Tarpit,
    /// Every server is at its limit; the client waits for a permit.
    Queued,
    /// The connection to the server is not established yet.
    Connecting,
    /// Bytes move.
    Relaying,
    /// Everything is delivered; input is still read, for a limited time.
    Lingering,
    /// Closed; the entry is removed when the present events are handled.
    Over,
}

/// Outcome of a relay step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for the next event.
    Wait,
    /// Continue after other connections.
    Again,
    /// Begin to linger.
    Linger,
    /// Close both sides.
    Close,
}

impl Connection {
    pub(super) fn new(
        client: OwnedFd,
        address: IpAddr,
        service: Arc<Service>,
        settings: Arc<Settings>,
        permits: Permits,
        cx: &mut Context,
    ) -> Self {
        let backend = settings.default_backend.unwrap_or_default() as u32;
        Self {
            client,
            upstream: None,
            from_client: Direction::default(),
            from_server: Direction::to_writable_sink(),
            stage: Stage::Connecting,
            service,
            settings,
            address,
            backend,
            preamble: None,
            admitted: None,
            attempt: Attempt::new(cx.id),
            active_at: cx.now,
            relayed: 0,
            ring: None,
            number: cx.number(),
            queued: false,
            permits,
        }
    }

    /// Returns whether one side has ended and the other one may still send.
    pub(super) fn is_half_closed(&self) -> bool {
        self.stage == Stage::Relaying && self.from_client.is_done() != self.from_server.is_done()
    }

    /// The backend that serves the client.
    pub(super) fn backend(&self) -> &Backend {
        &self.settings.backends[self.backend as usize]
    }

    /// Returns the identity of the connection to the server for operations of the ring; `key` is the key of
    /// this connection.
    pub(super) fn connect_id(&self, key: ConnectionKey) -> Option<ConnectId> {
        self.upstream.as_ref().map(|upstream| ConnectId::new(key, upstream.generation))
    }

    /// Returns whether the ring connects and relays the connection. Connections with a preamble use epoll.
    pub(super) fn uses_ring(&self, cx: &Context) -> bool {
        cx.ring.is_some() && !self.has_preamble()
    }

    /// Returns whether the connection is open and has this number.
    pub(super) fn has_number(&self, number: u32) -> bool {
        self.number == number && self.stage != Stage::Over
    }

    /// Marks the connection as an entry of the ready queue. Returns false if it is there already.
    pub(super) fn enter_ready_queue(&mut self) -> bool {
        !std::mem::replace(&mut self.queued, true)
    }

    /// Notes that the connection was taken from the ready queue.
    pub(super) fn leave_ready_queue(&mut self) {
        self.queued = false;
    }

    /// Time at which the connection has been without traffic for `timeout`.
    pub(super) fn idle_deadline(&self, timeout: Duration) -> Time {
        self.active_at + timeout
    }

    /// The socket to the server.
    pub(super) fn server_socket(&self) -> Option<&OwnedFd> {
        self.upstream.as_ref().map(|upstream| &upstream.socket)
    }

    /// The server that was chosen.
    pub(super) fn choice(&self) -> Option<&Choice> {
        self.upstream.as_ref().map(|upstream| &upstream.choice)
    }
}

/// Admission, and permits beyond the slot in the service.
impl Connection {
    /// Applies the access list and the limits.
    ///
    /// # Errors
    /// The client is refused.
    pub(super) fn admit(&mut self, worker: usize, now: Time) -> Result<(), (Refused, Reason)> {
        match admission::admit(&self.service, &self.settings, self.address, worker, now) {
            Admission::Enter(mut admitted) => {
                admitted.entry = self.admitted.take().and_then(|admitted| admitted.entry);
                self.backend = admitted.backend.map_or(self.backend, |backend| backend as u32);
                self.admitted = (!admitted.is_plain()).then(|| Box::new(admitted));
                Ok(())
            }
            Admission::Refused(refused, reason) => Err((refused, reason)),
        }
    }

    /// Keeps a refused client waiting. `permit` replaces the client's slot in the service, which becomes free
    /// for other clients.
    pub(super) fn tarpit(&mut self, permit: Lease) {
        self.permits.lease = permit;
        self.stage = Stage::Tarpit;
    }

    /// Enters the queue of the pool.
    pub(super) fn enter_queue(&mut self, queued: Queued) {
        self.admitted.get_or_insert_default().queued = Some(queued);
        self.stage = Stage::Queued;
    }

    /// Takes the slot in the queue of the pool, if the client waits there.
    pub(super) fn take_queued(&mut self) -> Option<Queued> {
        self.admitted.as_mut()?.queued.take()
    }

    /// Counts a pending connection attempt: keeps the slot that the client already has, or takes the slot in
    /// `slot`, or else takes a slot beyond the limit.
    pub(super) fn begin_pending(&mut self, slot: &mut Option<Lease>) {
        let admitted = self.admitted.get_or_insert_default();
        let slot = admitted.pending.take().or_else(|| slot.take());
        admitted.pending = slot.or_else(|| self.service.live.pending.enter(u32::MAX));
    }

    /// Takes the slot of a pending connection attempt.
    pub(super) fn take_pending(&mut self) -> Option<Lease> {
        self.admitted.as_mut()?.pending.take()
    }
}

/// The attempt to reach a server.
impl Connection {
    /// Picks the next server. The first pick returns [`NoServer::Full`] if the client has to wait behind queued
    /// clients.
    pub(super) fn pick(&mut self, cx: &mut Context) -> Result<Choice, NoServer> {
        let request = Request::of(self.address, cx.now);
        let snapshot = self.settings.backends[self.backend as usize].pool.load();
        if self.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request) {
            return Err(NoServer::Full);
        }
        let limits = self.settings.options.attempt_limits();
        let picked = self.attempt.next(&snapshot, &request, &limits, &mut cx.random);
        note_retry(cx, &self.service, &snapshot.pool, &picked);
        picked
    }

    /// Picks a server for a client that waited in the queue of the pool.
    pub(super) fn pick_queued(&mut self, cx: &mut Context) -> Result<Choice, NoServer> {
        let request = Request::of(self.address, cx.now);
        let snapshot = self.backend().pool.load_full();
        let limits = self.settings.options.attempt_limits();
        self.attempt.begin_anew();
        let picked = self.attempt.next(&snapshot, &request, &limits, &mut cx.random);
        note_retry(cx, &self.service, &snapshot.pool, &picked);
        picked
    }

    /// Returns whether a pre-opened connection may serve the client.
    pub(super) fn may_use_warm(&self) -> bool {
        self.settings.options.warm > 0 && !self.settings.is_personal(self.backend as usize)
    }

    /// Opens a socket to a server, and begins to connect it, unless the ring will do this.
    pub(super) fn open(&self, cx: &mut Context, target: &Target) -> Result<(OwnedFd, Opening), Errno> {
        let socket = open_socket(target, &self.settings.options, self.address)?;
        limit_connection(cx, &self.service, (&self.client, self.address), (&socket, target))?;
        if matches!(target, Target::Ip(_)) {
            if !sys::is_all_read(self.client.as_fd()) {
                // Bytes for the server follow at once: they acknowledge its SYN, which saves a packet, and the
                // server finds them when it accepts the connection (tcp(7), TCP_QUICKACK).
                let _ = sockopt::set_tcp_quickack(&socket, false);
            }
            if self.uses_ring(cx) {
                return Ok((socket, Opening::Connecting));
            }
        }
        match connect(&socket, target) {
            Ok(()) => Ok((socket, Opening::Fresh)),
            Err(Errno::INPROGRESS) => Ok((socket, Opening::Connecting)),
            Err(error) => Err(error),
        }
    }

    /// Records the connection to a server, and returns the time at which its connection attempt times out.
    pub(super) fn begin_connect(
        &mut self,
        socket: OwnedFd,
        generation: u32,
        choice: Choice,
        now: Time,
    ) -> Time {
        self.stage = Stage::Connecting;
        self.active_at = now;
        if let Some(entry) = self.entry() {
            entry.tried(&self.backend().pool.load().pool, &choice.server);
        }
        self.upstream = Some(Upstream { socket, generation, choice });
        let options = &self.settings.options;
        self.attempt.deadline(now, options.connect_timeout, &options.attempt_limits())
    }

    /// Records a failed connection attempt; the server is not tried again for this client.
    pub(super) fn on_connect_failed(&mut self, cx: &Context, choice: &Choice, error: Errno) {
        self.attempt.failed(choice.server.id, choice.why, failed_try(error));
        note_failure(cx, self.backend().pool.load().pool.clone(), &choice.server, error);
    }

    /// Counts and reports that the client was not served.
    pub(super) fn note_unserved(&self, cx: &Context, cause: Cause) {
        self.set_end(cause);
        note_client(cx, &self.service, Traffic::Connection, self.address, cause);
    }

    /// Counts and reports that no server of the pool took the client.
    pub(super) fn note_no_server(&self, cx: &Context, reason: NoServer) {
        let has_queue = self.backend().pool.load().queue.is_some();
        let is_queue_full = reason == NoServer::Full && has_queue;
        self.note_failed(cx, if is_queue_full { Reason::QueueFull } else { reason.into() });
    }

    /// Counts and reports that no server of the pool took the client, for this reason.
    pub(super) fn note_failed(&self, cx: &Context, reason: Reason) {
        self.set_end(reason);
        note_unserved(cx, &self.service, reason, || {
            let pool = Arc::clone(&self.backend().pool.load().pool);
            Unserved { pool: Some(pool), ..Unserved::new(Traffic::Connection, self.address, reason) }
        });
    }

    /// Begins to relay with the server, whose connection is established.
    pub(super) fn on_connected(&mut self, cx: &Context, opening: Opening) {
        let Some(upstream) = &self.upstream else { return };
        let (server, now) = (&upstream.choice.server, cx.now);
        let snapshot = self.backend().pool.load();
        snapshot.remember(self.address, server.id, now);
        let counters = server.live.counters.of(cx.id);
        if opening == Opening::Fresh {
            snapshot.observe(server, now.since(self.active_at), now);
            counters.connect_seconds.record_since(self.active_at, now);
        }
        if let Some(record) = self.record() {
            record.record_server(&snapshot.pool, &server.name);
        }
        if let Some(entry) = self.entry() {
            entry.connected(now);
        }
        counters.connections.one();
        note_success(cx, &snapshot.pool, &upstream.choice);
        self.stage = Stage::Relaying;
        self.from_client.on_sink_connected();
        self.active_at = now;
    }
}

/// State and origin of a connection to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The connection attempt is in progress.
    Connecting,
    /// The connection is established, and was opened for this client.
    Fresh,
    /// The connection is established, and was opened before the client connected.
    Warm,
}

/// The relay of bytes.
impl Connection {
    /// The request log for the bytes of the client, if there is one. Discarded input is not logged.
    pub(super) fn tap(&self, worker: usize) -> Option<Tap<'_>> {
        if self.from_client.is_discarding() {
            return None;
        }
        tap(self.admitted.as_deref(), self.address, self.upstream.as_ref()?, &self.service, worker)
    }

    /// Moves bytes in both directions until the sockets block, and counts them.
    pub(super) fn relay(&mut self, scratch: &mut Scratch, worker: usize, now: Time) -> Step {
        let Some(upstream) = &self.upstream else { return Step::Wait };
        let (mut bytes_in, mut bytes_out) = (0, 0);
        let (mut up, mut down) = (Pumped::Waiting, Pumped::Waiting);
        if !self.from_client.is_done() {
            let tap = tap(self.admitted.as_deref(), self.address, upstream, &self.service, worker);
            (bytes_in, up) = self.from_client.pump(&self.client, &upstream.socket, scratch, tap);
        }
        if !self.from_server.is_done() {
            (bytes_out, down) = self.from_server.pump(&upstream.socket, &self.client, scratch, None);
        }
        self.count(bytes_in, bytes_out, worker, now);
        self.conclude(up, down, scratch, worker)
    }

    /// Counts delivered bytes.
    pub(super) fn count(&mut self, bytes_in: u64, bytes_out: u64, worker: usize, now: Time) {
        let Some(upstream) = self.upstream.as_ref().filter(|_| bytes_in + bytes_out > 0) else { return };
        self.active_at = now;
        let of_service = self.service.live.counters.of(worker);
        let of_server = upstream.choice.server.live.counters.of(worker);
        let counted = self.preamble.as_mut().map_or(bytes_in, |preamble| preamble.count_of_client(bytes_in));
        let counted_in = if self.from_client.is_discarding() { 0 } else { counted };
        let counted_out = if self.from_server.is_discarding() { 0 } else { bytes_out };
        self.relayed += counted_in + counted_out;
        of_service.bytes_in.add(counted_in);
        of_service.bytes_out.add(counted_out);
        of_server.bytes_in.add(counted_in);
        of_server.bytes_out.add(counted_out);
        if let Some(record) = self.record() {
            record.moved(counted_in, counted_out, now);
        }
        if let Some(entry) = self.entry() {
            entry.moved(counted_in, counted_out, now);
        }
    }

    /// The record of the client, if the service keeps records.
    fn record(&self) -> Option<&ClientRecord> {
        self.admitted.as_deref()?.record.as_deref()
    }

    /// Decides the next step from the outcomes of both directions.
    pub(super) fn conclude(
        &mut self,
        up: Pumped,
        down: Pumped,
        scratch: &mut Scratch,
        worker: usize,
    ) -> Step {
        if self.stage == Stage::Lingering {
            return self.linger(up, down);
        }
        match (up, down) {
            (Pumped::Ended(End::Error(_)), _) | (_, Pumped::SinkClosed(_)) => return self.on_client_reset(),
            (_, Pumped::Ended(End::Error(_))) => return self.on_server_reset(scratch, worker),
            _ => {}
        }
        let (up_ended, down_ended) = (matches!(up, Pumped::Ended(_)), matches!(down, Pumped::Ended(_)));
        if up_ended {
            self.from_client.set_done();
        }
        if down_ended {
            self.from_server.set_done();
        }
        if (up_ended || down_ended) && self.ends_both(up_ended, down_ended) {
            self.end_both();
        }
        if self.from_client.is_done() && self.from_server.is_done() {
            return self.close_both(scratch);
        }
        // Passes a half-close on. If both sides have ended, `close_both` was called above.
        if up_ended && let Some(upstream) = &self.upstream {
            let _ = shutdown(&upstream.socket, Shutdown::Write);
        }
        if down_ended {
            let _ = shutdown(&self.client, Shutdown::Write);
        }
        if matches!(up, Pumped::SinkClosed(_)) {
            self.from_client.discard(scratch);
            return Step::Again;
        }
        if self.from_server.is_done() && self.from_client.is_discarding() {
            return Step::Linger;
        }
        let more = up == Pumped::More || down == Pumped::More;
        if more { Step::Again } else { Step::Wait }
    }

    /// Returns whether the close of one side ends both sides (`fast_close`).
    pub(super) fn ends_both(&self, client_ended: bool, server_ended: bool) -> bool {
        let fast_close = self.settings.options.fast_close;
        (client_ended && fast_close.by_client()) || (server_ended && fast_close.by_server())
    }

    /// Stops reading on both sides; bytes that were read are still delivered.
    fn end_both(&mut self) {
        for direction in [&mut self.from_client, &mut self.from_server] {
            direction.stop();
            if direction.is_empty() {
                direction.set_done();
            }
        }
    }

    /// Closes a connection after both sides ended, or after one side ended both (`fast_close`). In the second
    /// case a side may still send, and the kernel would respond to input after the close with a reset, which
    /// destroys bytes that this side has not received yet. So such a side is drained for a limited time.
    fn close_both(&mut self, scratch: &mut Scratch) -> Step {
        if self.settings.options.fast_close == FastClose::Off {
            return Step::Close;
        }
        self.upstream.iter().for_each(|upstream| relay::drain(&upstream.socket));
        let client = self.client.as_fd();
        let client_served = sys::is_all_read(client) && sys::is_all_delivered(client);
        let server_served = self.is_server_served();
        if client_served && server_served {
            return Step::Close;
        }
        for socket in self.upstream.iter().map(|upstream| &upstream.socket).chain([&self.client]) {
            let _ = shutdown(socket, Shutdown::Write);
        }
        if !client_served {
            self.from_client.discard_until_end(scratch);
        }
        if !server_served {
            self.from_server.discard_until_end(scratch);
        }
        Step::Linger
    }

    /// Returns whether the server has acknowledged everything.
    fn is_server_served(&self) -> bool {
        self.upstream.as_ref().is_none_or(|upstream| sys::is_all_delivered(upstream.socket.as_fd()))
    }

    /// Drains the client until it ends, and the server until it has acknowledged everything. (The
    /// acknowledgement of the local FIN causes an event.)
    fn linger(&mut self, up: Pumped, down: Pumped) -> Step {
        if matches!(up, Pumped::Ended(_)) {
            self.from_client.set_done();
        }
        if matches!(down, Pumped::Ended(_) | Pumped::SinkClosed(_)) {
            self.from_server.set_done();
        }
        if self.from_client.is_done() && (self.from_server.is_done() || self.is_server_served()) {
            return Step::Close;
        }
        if up == Pumped::More || down == Pumped::More { Step::Again } else { Step::Wait }
    }

    /// Resets the server side: the client reset the connection or receives no more bytes, and the server must
    /// not see an orderly end.
    fn on_client_reset(&mut self) -> Step {
        self.set_end(Reason::ClientClosed);
        self.reset_server_at_close();
        Step::Close
    }

    /// Handles a reset by the server, after all bytes of the server were passed to the client's socket. A
    /// client that has received these bytes and sends nothing is reset. A client that has ended its sending
    /// direction is closed in order. Any other client is drained first, because its data would cause a reset,
    /// which destroys bytes that the client has not received yet.
    fn on_server_reset(&mut self, scratch: &mut Scratch, worker: usize) -> Step {
        self.set_end(Reason::ServerClosed);
        self.upstream
            .iter()
            .for_each(|upstream| upstream.choice.server.live.counters.of(worker).resets.one());
        let client = self.client.as_fd();
        let silent = self.from_client.is_done() || (self.from_client.is_empty() && sys::is_all_read(client));
        if silent && sys::is_all_delivered(client) {
            reset_at_close(&self.client);
            return Step::Close;
        }
        if self.from_client.is_done() {
            return Step::Close;
        }
        self.from_server.set_done();
        let _ = shutdown(&self.client, Shutdown::Write);
        self.from_client.discard(scratch);
        Step::Linger
    }
}

fn tap<'a>(
    admitted: Option<&'a Admitted>,
    client: IpAddr,
    upstream: &'a Upstream,
    service: &'a Service,
    worker: usize,
) -> Option<Tap<'a>> {
    let log = admitted?.log.as_deref().filter(|log| log.is_pen())?;
    let counters = service.live.counters.of(worker);
    Some(Tap::new(log, client, &upstream.choice.server.target, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_small() {
        assert!(size_of::<Connection>() <= 264, "{}", size_of::<Connection>());
    }
}
