//! The client of a session, as its exchanges see it: its connection, what is known of it, and what it was promised.

use crate::context::Context;
use crate::context::descriptors::{Promise, Unit};
use crate::context::keys::{ExchangeKey, SessionKey};
use crate::context::ready::Ready;
use crate::context::registry::Readiness;
use crate::io::tls::TlsFacts;
use crate::io::transport::Transport;
use crate::service::accepted::Accepted;
use crate::service::admission::Admitted;
use crate::service::preamble::Origin;
use crate::service::{Backend, Service, Settings};
use evener_core::limits::Lease;
use evener_core::pace::Pace;
use evener_core::snapshot::Entry;
use evener_core::{ServerId, Time};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A client that closed, or ready.ended its side, is taken for gone when nothing moves for so long.
pub(super) const CLOSED: Duration = Duration::from_millis(200);

/// A side that still sends when all is sent to it is received from for so long, so that it gets everything.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// And for so many bytes at most.
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;
/// After so many rounds another session has its turn.
pub(super) const ROUNDS_MAX: usize = 16;

/// A client.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about the client")]
pub(super) struct Client {
    /// Session of the client.
    pub(super) key: SessionKey,
    pub(super) transport: Transport,
    pub(super) service: Arc<Service>,
    pub(super) settings: Arc<Settings>,
    pub(super) origin: Origin,
    /// The address that the client connected to; known when HTTP begins.
    pub(super) local: Option<SocketAddr>,
    pub(super) facts: Option<Box<TlsFacts>>,
    pub(super) admitted: Admitted,
    /// The client closed while a request was under way.
    pub(super) left_early: bool,
    /// The settings changed: the access list decides on the next request, too.
    pub(super) asks_again: bool,
    /// The server that the last request had, where the next one wants the same.
    pub(super) stay: Option<Stay>,
    /// Time of the last move of bytes.
    pub(super) active_at: Time,
    /// Rate at which the client takes what it is sent.
    pace: Pace,
    /// Bytes that the client had not received at the last look.
    left: usize,
    /// Number in lists, unique within the worker.
    pub(super) number: u32,
    /// The session is in the ready queue.
    is_queued: bool,
    /// A request of the client was served: it may be closed when it is idle and others wait for descriptors.
    pub(super) served: bool,
    /// Slot in the service, or among the clients in the tarpit.
    pub(super) slot: Lease,
    _descriptor: Unit,
    /// The descriptor for its server, while no connection has it.
    pub(super) promise: Option<Promise>,
}

/// A server, with the name of its pool: its identity means nothing in another one.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) pool: Arc<str>,
    pub(super) server: ServerId,
}

impl Stay {
    /// The server, if it is of this backend's pool.
    pub(super) fn at(&self, backend: &Backend) -> Option<ServerId> {
        (backend.pool.load().pool == self.pool).then_some(self.server)
    }
}

impl Client {
    pub(super) fn new(key: SessionKey, cx: &mut Context, accepted: Accepted) -> Self {
        let Accepted { client, peer, service, settings, permits } = accepted;
        Self {
            key,
            transport: Transport::new(client),
            service,
            settings,
            origin: Origin::new(peer),
            local: None,
            facts: None,
            admitted: Admitted::default(),
            left_early: false,
            asks_again: false,
            stay: None,
            active_at: cx.now,
            pace: Pace::default(),
            left: usize::MAX,
            number: cx.number(),
            is_queued: false,
            served: false,
            slot: permits.lease,
            _descriptor: permits.client,
            promise: Some(permits.server.promise()),
        }
    }

    /// Something happened at its socket.
    pub(super) fn on_event(&mut self, ready: Readiness) {
        self.transport.readable |= ready.readable || ready.ended;
        self.transport.hung_up |= ready.ended;
        self.transport.writable |= ready.writable || ready.error;
        self.transport.broken |= ready.error;
    }

    /// Puts the session into the ready queue: there is more to do when others had their turn.
    pub(super) fn queue(&mut self, cx: &mut Context) {
        if !std::mem::replace(&mut self.is_queued, true) {
            cx.ready.push(Ready::Session(self.key));
        }
    }

    /// Notes that the session left the ready queue.
    pub(super) fn leave_queue(&mut self) {
        self.is_queued = false;
    }

    /// Returns whether the client took something since the last call; the kernel may hold much for it, and reports that
    /// only when there is room again.
    pub(super) fn is_taking(&mut self) -> bool {
        let left = self.transport.left();
        std::mem::replace(&mut self.left, left) > left
    }

    /// Returns whether nothing moved of late, and the client has all that it was sent.
    pub(super) fn is_quiet(&self, now: Time) -> bool {
        now.since(self.active_at) >= CLOSED && self.transport.left() == 0
    }

    /// Returns whether it takes what it is sent below the minimum rate. That it took something since the last call counts as
    /// a move.
    pub(super) fn is_slow(&mut self, now: Time) -> bool {
        if self.is_taking() {
            self.active_at = now;
        }
        let rate = self.settings.http.as_ref().and_then(|spec| spec.min_rate);
        rate.is_some_and(|rate| self.pace.is_slow(now, self.transport.progress(), &rate))
    }

    /// Counts bytes that came from the client, and that went to it.
    pub(super) fn count(&self, cx: &Context, bytes_in: u64, bytes_out: u64) {
        let counters = self.service.live.counters.of(cx.id);
        counters.bytes_in.add(bytes_in);
        counters.bytes_out.add(bytes_out);
        if let Some(record) = self.admitted.record.as_ref().filter(|_| bytes_in + bytes_out > 0) {
            record.moved(bytes_in, bytes_out, cx.now);
        }
    }

    /// Records which server the client has.
    pub(super) fn note_server(&self, backend: &Backend, server: &Entry) {
        if let Some(record) = &self.admitted.record {
            record.record_server(&backend.pool.load().pool, &server.name);
        }
    }

    /// Returns the name that the client asked for by TLS.
    pub(super) fn name(&self) -> Option<&str> {
        self.facts.as_ref().and_then(|facts| facts.name.as_deref())
    }
}

/// Decision of a protocol about its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum After {
    /// The session goes on.
    Stays,
    /// Everything is sent to the client, which may still send for a time.
    Finish,
    /// The session is over.
    Close,
    /// The client was refused, and is kept waiting.
    Tarpit,
    /// This exchange relays bytes from now on.
    Relay(ExchangeKey),
}
