//! Client of a session: its connection, the facts about it, and the descriptor that it was promised.

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

/// Time without progress after which a client that ended its sending direction is considered to have left.
pub(super) const LEAVE_DELAY: Duration = Duration::from_millis(200);

/// Longest time for which a peer that still sends is drained before its socket is closed, so that it can receive everything.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// Most bytes that are drained from a peer.
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;
/// Number of rounds before the worker handles another session.
pub(super) const ROUNDS_MAX: usize = 16;

/// A client.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about the client")]
pub(super) struct Client {
    /// Session of the client.
    pub(super) key: SessionKey,
    pub(super) transport: Transport,
    pub(super) service: Arc<Service>,
    pub(super) settings: Arc<Settings>,
    pub(super) origin: Origin,
    /// Address that the client connected to; set when HTTP begins.
    pub(super) local: Option<SocketAddr>,
    pub(super) facts: Option<Box<TlsFacts>>,
    pub(super) admitted: Admitted,
    /// The client ended its sending direction while a request was under way.
    pub(super) left_early: bool,
    /// The settings changed: the access list has to admit the client again with the next request.
    pub(super) needs_admission: bool,
    /// Server of the last request, if the next one has to go to the same.
    pub(super) stay: Option<Stay>,
    /// Time at which bytes of the client moved last.
    pub(super) active_at: Time,
    /// Rate at which the client receives.
    pace: Pace,
    /// Number of bytes that the client had not acknowledged at the last check.
    left: usize,
    /// Number of the client in listings, unique within the worker.
    pub(super) number: u32,
    /// The session is in the ready queue.
    is_queued: bool,
    /// A request of the client was served: the client may be closed when it is idle and other clients wait for
    /// descriptors.
    pub(super) served: bool,
    /// Slot in the service, or among the clients in the tarpit.
    pub(super) slot: Lease,
    _descriptor: Unit,
    /// Descriptor for a connection to a server, while no connection uses it.
    pub(super) promise: Option<Promise>,
}

/// Server that a client stays at, with the name of its pool: the identity of a server is unique within its pool only.
#[derive(Debug)]
pub(super) struct Stay {
    pool: Arc<str>,
    server: ServerId,
}

impl Stay {
    pub(super) fn new(backend: &Backend, server: ServerId) -> Self {
        Self { pool: Arc::clone(&backend.pool.load().pool), server }
    }

    /// Returns the server if it belongs to the pool of this backend.
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
            needs_admission: false,
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

    /// Records an event of the socket.
    pub(super) fn on_event(&mut self, ready: Readiness) {
        self.transport.on_event(ready);
    }

    /// Puts the session into the ready queue, so that the worker continues it after other sessions.
    pub(super) fn queue(&mut self, cx: &mut Context) {
        if !std::mem::replace(&mut self.is_queued, true) {
            cx.ready.push(Ready::Session(self.key));
        }
    }

    /// Records that the session left the ready queue.
    pub(super) fn leave_queue(&mut self) {
        self.is_queued = false;
    }

    /// Returns whether the client received bytes since the last call. The kernel may have queued many bytes for it, and
    /// reports progress only when there is room again.
    pub(super) fn is_taking(&mut self) -> bool {
        let left = self.transport.left();
        std::mem::replace(&mut self.left, left) > left
    }

    /// Returns whether no byte moved lately, and the client has received everything.
    pub(super) fn is_quiet(&self, now: Time) -> bool {
        now.since(self.active_at) >= LEAVE_DELAY && self.transport.left() == 0
    }

    /// Returns whether the client receives below the minimum rate. Bytes received since the last call count as activity.
    pub(super) fn is_slow(&mut self, now: Time) -> bool {
        if self.is_taking() {
            self.active_at = now;
        }
        let rate = self.settings.http.as_ref().and_then(|spec| spec.min_rate);
        rate.is_some_and(|rate| self.pace.is_slow(now, self.transport.progress(), &rate))
    }

    /// Counts bytes that were received from the client and sent to it.
    pub(super) fn count(&self, cx: &Context, bytes_in: u64, bytes_out: u64) {
        let counters = self.service.live.counters.of(cx.id);
        counters.bytes_in.add(bytes_in);
        counters.bytes_out.add(bytes_out);
        if let Some(record) = self.admitted.record.as_ref().filter(|_| bytes_in + bytes_out > 0) {
            record.moved(bytes_in, bytes_out, cx.now);
        }
    }

    /// Records the server of the client.
    pub(super) fn note_server(&self, backend: &Backend, server: &Entry) {
        if let Some(record) = &self.admitted.record {
            record.had(&backend.pool.load().pool, &server.name);
        }
    }

    /// Returns the server name that the client requested by TLS.
    pub(super) fn name(&self) -> Option<&str> {
        self.facts.as_ref().and_then(|facts| facts.server_name())
    }
}

/// Decision of a protocol about its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum After {
    /// The session goes on.
    Stays,
    /// The session ends after all bytes are sent; the client is drained for a time.
    Finish,
    /// The session ends now.
    Close,
    /// The client was refused; its connection stays open without a response for a time.
    Tarpit,
    /// This exchange relays bytes from now on.
    Relay(ExchangeKey),
}
