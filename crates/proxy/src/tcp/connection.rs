//! One TCP connection of a client with its connection to a server: both directions and how they end together.

use crate::context::keys::ConnectionKey;
use crate::context::ring::ConnectId;
use crate::io::relay::{self, Direction, End, Pumped, Scratch};
use crate::io::request_log::Tap;
use crate::io::sys;
use crate::service::admission::{Admitted, reset_at_close};
use crate::service::preamble::Preamble;
use crate::service::{Backend, Permits, Service, Settings};
use crate::tcp::ring_relay::RingState;
use evener_core::Time;
use evener_core::attempt::Attempt;
use evener_core::clients::ClientRecord;
use evener_core::snapshot::Choice;
use evener_core::spec::FastClose;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{Shutdown, shutdown};
use std::net::IpAddr;
use std::sync::Arc;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: OwnedFd,
    pub(super) upstream: Option<Upstream>,
    pub(super) from_client: Direction,
    pub(super) from_server: Direction,
    pub(super) stage: Stage,
    pub(super) service: Arc<Service>,
    pub(super) settings: Arc<Settings>,
    pub(super) address: IpAddr,
    /// Index of the backend that serves the client, in the settings.
    pub(super) backend: u32,
    /// The preamble, which comes before a server is chosen. Boxed: most connections have none.
    pub(super) preamble: Option<Box<Preamble>>,
    /// Permits and limits of the client beyond its slot. Boxed for the same reason.
    pub(super) admitted: Option<Box<Admitted>>,
    /// Servers that could not be reached so far.
    pub(super) attempt: Attempt,
    /// Time of the last byte moved; before that, of the beginning of the connect.
    pub(super) active_at: Time,
    /// State in the ring, while the bytes are relayed there.
    pub(super) ring: Option<Box<RingState>>,
    /// Connection id, unique within the worker.
    pub(super) number: u32,
    /// True while the connection is in the ready queue.
    pub(super) queued: bool,
    /// Slot in the service.
    pub(super) permits: Permits,
}

/// The server's side.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) socket: OwnedFd,
    /// Tells completions of this connect and what follows from those of others.
    pub(super) generation: u32,
    pub(super) choice: Choice,
}

/// Stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The preamble is being received.
    Preamble,
    /// The client was refused, and is held.
    Tarpit,
    /// Every server is at its limit; the client waits for a permit.
    Queued,
    /// The server has not accepted yet.
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
    /// Go on after other connections had their turn.
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
            attempt: Attempt::new(),
            active_at: Time::ZERO,
            ring: None,
            number: 0,
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

    /// The connect that is in progress or done, as the ring names it; `key` is the connection's.
    pub(super) fn connect_id(&self, key: ConnectionKey) -> Option<ConnectId> {
        self.generation().map(|generation| ConnectId { slot: key.slot(), generation })
    }

    /// The generation of the connect that is in progress or done.
    pub(super) fn generation(&self) -> Option<u32> {
        self.upstream.as_ref().map(|upstream| upstream.generation)
    }

    /// The request log for what the client sends, if there is one. Discarded input is not logged.
    pub(super) fn tap(&self, worker: usize) -> Option<Tap<'_>> {
        if self.from_client.is_discarding() {
            return None;
        }
        tap(self.admitted.as_deref(), self.address, self.upstream.as_ref()?, &self.service, worker)
    }

    /// Moves bytes both ways as far as the sockets allow, and counts them.
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
        of_service.bytes_in.add(counted_in);
        of_service.bytes_out.add(counted_out);
        of_server.bytes_in.add(counted_in);
        of_server.bytes_out.add(counted_out);
        if let Some(record) = self.record() {
            record.moved(counted_in, counted_out, now);
        }
    }

    /// The record of the client, if the service keeps records.
    pub(super) fn record(&self) -> Option<&ClientRecord> {
        self.admitted.as_deref()?.record.as_deref()
    }

    /// Decides how to go on from the outcomes of both directions.
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
            (Pumped::Ended(End::Error(_)), _) | (_, Pumped::SinkClosed(_)) => return self.client_gone(),
            (_, Pumped::Ended(End::Error(_))) => return self.server_reset(scratch, worker),
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
            return self.over(scratch);
        }
        // A half-close is passed on; closing both sides makes it unnecessary.
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

    /// Returns whether the end of one side is the end of both (`fast_close`).
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

    /// Closes a connection whose sides both ended, or one of them for both. Input that arrives after the close would be rejected
    /// with a reset, which discards what the other side has not received yet: so both sides are drained for a limited time.
    fn over(&mut self, scratch: &mut Scratch) -> Step {
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

    /// Drains the client until it ends, and the server until it has acknowledged everything. (The acknowledgement of our FIN
    /// is an edge.)
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

    /// Resets the server side: the client reset the connection or receives nothing any more, and the server must not see an
    /// orderly end.
    fn client_gone(&mut self) -> Step {
        self.upstream.iter().for_each(|upstream| reset_at_close(&upstream.socket));
        Step::Close
    }

    /// Handles a reset by the server; everything it sent before is in the client's socket. The reset is passed on to a client that
    /// has received all of it and sends nothing. A client that still sends is drained first, because its own data would cause a
    /// reset that discards what it has not received yet.
    fn server_reset(&mut self, scratch: &mut Scratch, worker: usize) -> Step {
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
    let log = admitted?.log.as_deref()?;
    let counters = service.live.counters.of(worker);
    Some(Tap::new(log, client, &upstream.choice.server.target, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_small() {
        assert!(size_of::<Connection>() <= 256, "{}", size_of::<Connection>());
    }
}
