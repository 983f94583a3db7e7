//! One TCP connection of a client with its connection to a server: both directions and how they end together.

use crate::context::keys::ConnectionKey;
use crate::context::ring::ConnectId;
use crate::io::relay::{self, Direction, End, Pumped, Scratch};
use crate::io::request_log::Tap;
use crate::io::sys;
use crate::service::admission::{Guest, reset_at_close};
use crate::service::preamble::Greeting;
use crate::service::{Backend, Place, Service, Settings};
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
    /// Which backend of the settings serves it.
    pub(super) backend: u32,
    /// What it says before a server is chosen, and what the server gets first; kept apart, most connections have none.
    pub(super) greeting: Option<Box<Greeting>>,
    /// Its place among the connections of its address, or where it is sent though it was refused; kept apart, too.
    pub(super) guest: Option<Box<Guest>>,
    /// The servers that it has not been able to reach.
    pub(super) attempt: Attempt,
    /// When something moved last; before that, when the connect began.
    pub(super) active_at: Time,
    /// Its part in the ring, while it is relayed there.
    pub(super) ring: Option<Box<RingState>>,
    /// Tells it from all others of its worker.
    pub(super) number: u32,
    /// It is in the worker's list of those that have more to do.
    pub(super) queued: bool,
    /// Its place in the service.
    pub(super) place: Place,
}

/// The server's side.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) socket: OwnedFd,
    /// Tells completions of this connect and what follows from those of others.
    pub(super) generation: u32,
    pub(super) choice: Choice,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The client says what a server is chosen by.
    Greeting,
    /// The client was refused, and is kept waiting.
    Tarpit,
    /// Every server is at its limit; it waits for a permit.
    Queued,
    /// The server has not accepted yet.
    Connecting,
    /// Bytes move.
    Relaying,
    /// All is delivered; the client is heard to its end, for a time.
    Lingering,
    /// It is over; the slot is freed when the present events are done.
    Over,
}

/// What follows from a relay step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits.
    Wait,
    /// It has more to do.
    Again,
    /// It begins to linger.
    Linger,
    /// It is over.
    Close,
}

impl Connection {
    pub(super) fn new(
        client: OwnedFd,
        address: IpAddr,
        service: Arc<Service>,
        settings: Arc<Settings>,
        place: Place,
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
            greeting: None,
            guest: None,
            attempt: Attempt::new(),
            active_at: Time::ZERO,
            ring: None,
            number: 0,
            queued: false,
            place,
        }
    }

    /// Whether one side has ended, and the other one may still say something.
    pub(super) fn is_half_closed(&self) -> bool {
        self.stage == Stage::Relaying && self.from_client.done != self.from_server.done
    }

    /// The backend that serves it.
    pub(super) fn backend(&self) -> &Backend {
        &self.settings.backends[self.backend as usize]
    }

    /// The connect that is under way or done, as the ring names it; `key` is the connection's.
    pub(super) fn connect_id(&self, key: ConnectionKey) -> Option<ConnectId> {
        self.generation().map(|generation| ConnectId { slot: key.slot(), generation })
    }

    /// The generation of the connect that is under way or done.
    pub(super) fn generation(&self) -> Option<u32> {
        self.upstream.as_ref().map(|upstream| upstream.generation)
    }

    /// What the client says is told to this, if it is written down; not what is for nobody any more.
    pub(super) fn tap(&self, worker: usize) -> Option<Tap<'_>> {
        if self.from_client.discards() {
            return None;
        }
        tap(self.guest.as_deref(), self.address, self.upstream.as_ref()?, &self.service, worker)
    }

    /// Moves what can be moved both ways, and counts it.
    pub(super) fn relay(&mut self, scratch: &mut Scratch, worker: usize, now: Time) -> Step {
        let Some(upstream) = &self.upstream else { return Step::Wait };
        let (mut bytes_in, mut bytes_out) = (0, 0);
        let (mut up, mut down) = (Pumped::Waiting, Pumped::Waiting);
        if !self.from_client.done {
            let tap = tap(self.guest.as_deref(), self.address, upstream, &self.service, worker);
            (bytes_in, up) = self.from_client.pump(&self.client, &upstream.socket, scratch, tap);
        }
        if !self.from_server.done {
            (bytes_out, down) = self.from_server.pump(&upstream.socket, &self.client, scratch, None);
        }
        self.count(bytes_in, bytes_out, worker, now);
        self.conclude(up, down, scratch, worker)
    }

    /// Counts what was delivered.
    pub(super) fn count(&mut self, bytes_in: u64, bytes_out: u64, worker: usize, now: Time) {
        let Some(upstream) = self.upstream.as_ref().filter(|_| bytes_in + bytes_out > 0) else { return };
        self.active_at = now;
        let of_service = self.service.live.counters.of(worker);
        let of_server = upstream.choice.server.live.counters.of(worker);
        let said = self.greeting.as_mut().map_or(bytes_in, |greeting| greeting.count_of_client(bytes_in));
        let counted_in = if self.from_client.discards() { 0 } else { said };
        let counted_out = if self.from_server.discards() { 0 } else { bytes_out };
        of_service.bytes_in.add(counted_in);
        of_service.bytes_out.add(counted_out);
        of_server.bytes_in.add(counted_in);
        of_server.bytes_out.add(counted_out);
        if let Some(record) = self.record() {
            record.moved(counted_in, counted_out, now);
        }
    }

    /// Where it is written down what the client does.
    pub(super) fn record(&self) -> Option<&ClientRecord> {
        self.guest.as_deref()?.record.as_deref()
    }

    /// What follows from the outcomes of both directions.
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
            (Pumped::Ended(End::Error(_)), _) | (_, Pumped::SinkGone(_)) => return self.client_gone(),
            (_, Pumped::Ended(End::Error(_))) => return self.server_reset(scratch, worker),
            _ => {}
        }
        let (up_ended, down_ended) = (matches!(up, Pumped::Ended(_)), matches!(down, Pumped::Ended(_)));
        self.from_client.done |= up_ended;
        self.from_server.done |= down_ended;
        if (up_ended || down_ended) && self.ends_both(up_ended, down_ended) {
            self.end_both();
        }
        if self.from_client.done && self.from_server.done {
            return self.over(scratch);
        }
        // Half-close is passed on; closing both makes it unnecessary.
        if up_ended && let Some(upstream) = &self.upstream {
            let _ = shutdown(&upstream.socket, Shutdown::Write);
        }
        if down_ended {
            let _ = shutdown(&self.client, Shutdown::Write);
        }
        if matches!(up, Pumped::SinkGone(_)) {
            self.from_client.discard(&mut scratch.pipes);
            return Step::Again;
        }
        if self.from_server.done && self.from_client.discards() {
            return Step::Linger;
        }
        let more = up == Pumped::More || down == Pumped::More;
        if more { Step::Again } else { Step::Wait }
    }

    /// Whether the end of one side is that of both (`fast_close`).
    pub(super) fn ends_both(&self, client_ended: bool, server_ended: bool) -> bool {
        let fast_close = self.settings.options.fast_close;
        (client_ended && fast_close.by_client()) || (server_ended && fast_close.by_server())
    }

    /// Nothing more is read; what was read is still delivered, both ways.
    fn end_both(&mut self) {
        for direction in [&mut self.from_client, &mut self.from_server] {
            direction.stop();
            direction.done |= direction.is_empty();
        }
    }

    /// Both sides ended, or one of them for both: then the other one may say something that nobody reads, and lose by the
    /// reset, which is the answer to that, what it has not received yet. Whoever may is heard for a time.
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
            self.from_client.hear_out(&mut scratch.pipes);
        }
        if !server_served {
            self.from_server.hear_out(&mut scratch.pipes);
        }
        Step::Linger
    }

    /// Whether the server has received everything.
    fn is_server_served(&self) -> bool {
        self.upstream.as_ref().is_none_or(|upstream| sys::is_all_delivered(upstream.socket.as_fd()))
    }

    /// All is said: a client is heard for nobody until it ends in whatever way, a server until it has received everything.
    /// (When our end is acknowledged, that makes an edge.)
    fn linger(&mut self, up: Pumped, down: Pumped) -> Step {
        self.from_client.done |= matches!(up, Pumped::Ended(_));
        self.from_server.done |= matches!(down, Pumped::Ended(_) | Pumped::SinkGone(_));
        if self.from_client.done && (self.from_server.done || self.is_server_served()) {
            return Step::Close;
        }
        if up == Pumped::More || down == Pumped::More { Step::Again } else { Step::Wait }
    }

    /// The client reset the connection, or takes nothing any more: the server must not take that for an orderly end.
    fn client_gone(&mut self) -> Step {
        self.upstream.iter().for_each(|upstream| reset_at_close(&upstream.socket));
        Step::Close
    }

    /// The server reset the connection; whatever it sent before was taken by the client's socket. A client that has
    /// received all that, and sends nothing, gets the reset. One that still sends is heard to its end first, else its own
    /// data would reset what it has not received yet.
    fn server_reset(&mut self, scratch: &mut Scratch, worker: usize) -> Step {
        self.upstream
            .iter()
            .for_each(|upstream| upstream.choice.server.live.counters.of(worker).resets.one());
        let client = self.client.as_fd();
        let silent = self.from_client.done || (self.from_client.is_empty() && sys::is_all_read(client));
        if silent && sys::is_all_delivered(client) {
            reset_at_close(&self.client);
            return Step::Close;
        }
        if self.from_client.done {
            return Step::Close;
        }
        self.from_server.done = true;
        let _ = shutdown(&self.client, Shutdown::Write);
        self.from_client.discard(&mut scratch.pipes);
        Step::Linger
    }
}

fn tap<'a>(
    guest: Option<&'a Guest>,
    client: IpAddr,
    upstream: &'a Upstream,
    service: &'a Service,
    worker: usize,
) -> Option<Tap<'a>> {
    let log = guest?.log.as_deref()?;
    let counters = service.live.counters.of(worker);
    Some(Tap { log, client, server: &upstream.choice.server.target, counters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_small() {
        assert!(size_of::<Connection>() <= 256, "{}", size_of::<Connection>());
    }
}
