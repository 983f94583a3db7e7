//! Client of a session: its connection, facts about the client, and the descriptor that the client was
//! promised.

use super::local_response::LocalResponse;
use super::log_entry::LogEntry;
use super::message::{LoopRisk, Sender};
use crate::context::Context;
use crate::context::descriptors::{Promise, Unit};
use crate::context::keys::{ExchangeKey, SessionKey};
use crate::context::ready::Ready;
use crate::context::registry::Readiness;
use crate::context::unserved::{Status, Traffic, Unserved};
use crate::io::tls::{TlsFacts, failure_with_client};
use crate::io::transport::Transport;
use crate::service::accepted::Accepted;
use crate::service::access_entry::AccessEntry;
use crate::service::admission::Admitted;
use crate::service::failures::{note_client, note_unserved};
use crate::service::preamble::{self, Origin};
use crate::service::{Backend, Service, Settings};
use evener_core::clients::RefusedFor;
use evener_core::limits::Lease;
use evener_core::pace::Pace;
use evener_core::reason::{Cause, Reason};
use evener_core::request_log::RequestText;
use evener_core::snapshot::Entry;
use evener_core::{ServerId, Time};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Time without progress after which a client that ended its sending direction is considered to have left.
pub(super) const LEAVE_DELAY: Duration = Duration::from_millis(200);

/// Longest time for which a peer that still sends is drained before its socket is closed, so that the peer can
/// receive everything.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// Most bytes that are drained from a peer.
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;
/// Most bytes of a partial request that are considered for the request log.
const PARTIAL_BYTES_MAX: usize = 8 * 1024;
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
    local: Option<SocketAddr>,
    pub(super) facts: Option<Box<TlsFacts>>,
    pub(super) admitted: Admitted,
    /// The client ended its sending direction while a request was under way.
    left_early: bool,
    /// The settings changed: the access list has to admit the client again with the next request.
    needs_admission: bool,
    /// Entry of the request log for a request that has no exchange yet, or no longer.
    entry: Option<Box<LogEntry>>,
    /// Reason why the program ends the session while requests are under way.
    end_reason: Option<Reason>,
    /// Server of the last request, if the next request has to go to the same server.
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
    served: bool,
    /// Slot in the service, or among the clients in the tarpit.
    slot: Lease,
    _descriptor: Unit,
    /// Descriptor for a connection to a server, while no connection uses it.
    promise: Option<Promise>,
}

/// Client, pool and server of a request, for reports.
#[derive(Clone, Debug, Default)]
pub(super) struct Parties {
    /// Address of the client, if it is not the address of the connection.
    client: Option<IpAddr>,
    pool: Option<Arc<str>>,
    server: Option<Arc<str>>,
}

impl Parties {
    /// Names the client only.
    pub(super) fn client(address: IpAddr) -> Self {
        Self { client: Some(address), ..Self::default() }
    }

    /// Names the client, the pool, and the server if one was chosen.
    pub(super) fn new(client: IpAddr, pool: Arc<str>, server: Option<Arc<str>>) -> Self {
        Self { client: Some(client), pool: Some(pool), server }
    }
}

/// Server for all requests of a client's connection, with the name of its pool: the id of a server is unique
/// only within its pool.
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
            entry: None,
            end_reason: None,
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

    /// Records the address that the client connected to, for the header fields of its requests.
    pub(super) fn record_local_address(&mut self) {
        self.local = preamble::local_address(self.transport.socket());
    }

    /// Returns the facts about the client for the header fields of a request. `subject_field` is the name of
    /// the field for the subject of the client's certificate.
    pub(super) fn sender<'a>(&'a self, subject_field: Option<&'a str>, loop_risk: LoopRisk) -> Sender<'a> {
        Sender::new(&self.origin, self.local, self.facts.as_deref(), subject_field, loop_risk)
    }

    /// Applies settings that changed since the last request: the client has to be admitted again.
    pub(super) fn refresh_settings(&mut self) {
        let current = self.service.settings.load();
        if Arc::ptr_eq(&current, &self.settings) || current.http.is_none() {
            return;
        }
        // The pool for refused clients may have another index now, or may be removed.
        let pool = self.admitted.backend.map(|backend| self.settings.backends[backend].pool.load());
        self.admitted.backend = pool.and_then(|pool| {
            current.backends.iter().position(|backend| backend.pool.load().pool == pool.pool)
        });
        self.settings = Arc::clone(&current);
        self.needs_admission = true;
    }

    /// Returns whether the settings changed since the client was admitted, and clears this mark.
    pub(super) fn take_needs_admission(&mut self) -> bool {
        std::mem::take(&mut self.needs_admission)
    }

    /// Begins an entry of the request log if the service has a log, unless the entry has begun already. `bytes`
    /// begin with the request line.
    pub(super) fn begin_log_entry(&mut self, bytes: &[u8], received_at: Time) {
        let log = self.settings.request_log.as_ref().filter(|log| !log.is_pen());
        if let (None, Some(log)) = (&self.entry, log) {
            self.entry = Some(Box::new(LogEntry::new(log, self.origin.client(), bytes, received_at)));
        }
    }

    /// Begins an entry of the request log for the bytes that came but are not a complete request.
    pub(super) fn begin_partial_log_entry(&mut self, received_at: Time) {
        if self.entry.is_none() && self.settings.request_log.is_some() {
            let bytes = self.transport.unread();
            let bytes = bytes[..bytes.len().min(PARTIAL_BYTES_MAX)].to_vec();
            self.begin_log_entry(&bytes, received_at);
        }
    }

    /// Returns the entry of the request log that has begun.
    pub(super) fn log_entry(&mut self) -> Option<&mut LogEntry> {
        self.entry.as_deref_mut()
    }

    /// Takes the entry of the request log that has begun, for an exchange.
    pub(super) fn take_log_entry(&mut self) -> Option<Box<LogEntry>> {
        self.entry.take()
    }

    /// Stores the entry of a request whose exchange is over. A local response follows.
    pub(super) fn put_log_entry(&mut self, entry: Option<Box<LogEntry>>) {
        self.entry = entry;
    }

    /// Logs a request with a local response.
    pub(super) fn log_local_response(&mut self, cx: &Context, response: &LocalResponse) {
        if let Some(mut entry) = self.entry.take() {
            entry.on_local_response(response);
            entry.finish(cx, self);
        }
    }

    /// Logs a request that gets no response.
    pub(super) fn log_refused(&mut self, cx: &Context) {
        if let Some(entry) = self.entry.take() {
            entry.finish(cx, self);
        }
    }

    /// Sets the reason why the program ends the session.
    pub(super) fn set_end_reason(&mut self, reason: Reason) {
        self.end_reason = Some(reason);
    }

    /// Returns the reason why the program ends the session.
    pub(super) fn end_reason(&self) -> Option<Reason> {
        self.end_reason
    }

    /// Records that a request came.
    pub(super) fn begin_request(&mut self, now: Time) {
        self.active_at = now;
        self.left_early = false;
    }

    /// Records that the client ended its sending direction while a request is under way. Returns false if that
    /// was recorded before.
    pub(super) fn leave_early(&mut self) -> bool {
        !std::mem::replace(&mut self.left_early, true)
    }

    /// Returns whether the client ended its sending direction while a request was under way.
    pub(super) fn left_early(&self) -> bool {
        self.left_early
    }

    /// Records that a request was served: the client may be closed when it is idle and other clients wait for
    /// descriptors.
    pub(super) fn set_served(&mut self) {
        self.served = true;
    }

    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// Moves the client to a slot in the tarpit. It needs no descriptor for a server any more.
    pub(super) fn enter_tarpit(&mut self, slot: Lease) {
        (self.slot, self.promise) = (slot, None);
    }

    /// Takes the promised descriptor for a connection to a server, if no connection has it.
    pub(super) fn take_promised(&mut self) -> Option<Unit> {
        self.promise.take().map(Promise::fulfil)
    }

    /// Gives up the promised descriptor, because the client's connection to a server has a descriptor already.
    pub(super) fn drop_promise(&mut self) {
        self.promise = None;
    }

    /// Gives a descriptor back to the client for its next connection, unless the client has a promised
    /// descriptor already.
    pub(super) fn give_back(&mut self, unit: impl FnOnce() -> Option<Unit>) {
        if self.promise.is_none() {
            self.promise = unit().map(Unit::promise);
        }
    }

    /// Reserves a descriptor for the client's next connection, if none is promised yet. Returns false if no
    /// descriptor is left.
    pub(super) fn reserve_descriptor(&mut self) -> bool {
        self.give_back(Unit::take);
        self.promise.is_some()
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

    /// Returns whether the client received bytes since the last call. The kernel may queue many bytes for the
    /// client, and reports progress only when its queue has room again, so the bytes that the client has not
    /// acknowledged are compared.
    pub(super) fn is_taking(&mut self) -> bool {
        let left = self.transport.left();
        std::mem::replace(&mut self.left, left) > left
    }

    /// Returns whether no byte moved lately, and the client has received everything.
    pub(super) fn is_quiet(&self, now: Time) -> bool {
        now.since(self.active_at) >= LEAVE_DELAY && self.transport.left() == 0
    }

    /// Returns whether the client receives below the minimum rate. Bytes received since the last call count as
    /// activity.
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
        if let Some(entry) = &self.admitted.entry {
            entry.moved(bytes_in, bytes_out, cx.now);
        }
    }

    /// Takes over the permits and records of the client. A connection that is relayed and has no requests begins its
    /// entry in the log of the service.
    pub(super) fn enter(&mut self, cx: &Context, admitted: Admitted) {
        self.admitted = admitted;
        if self.settings.http.is_none() {
            let (client, none) = (self.origin.client(), RequestText::default);
            self.admitted.entry = AccessEntry::begin(cx, &self.service, &self.settings, client, none);
        }
    }

    /// Records a server that is tried in the entry of the connection.
    pub(super) fn log_try(&self, pool: &Arc<str>, server: &Arc<Entry>) {
        if let Some(entry) = &self.admitted.entry {
            entry.tried(pool, server);
        }
    }

    /// Records the end of the connection in its entry.
    pub(super) fn end_connection_entry(&self, cx: &Context) {
        let Some(entry) = &self.admitted.entry else { return };
        entry.ended(self.origin.client().ip(), cx.now);
        if let Some(facts) = &self.facts {
            entry.set_tls(facts.version(), facts.server_name());
        }
    }

    /// Counts a request for the client.
    pub(super) fn note_request(&self, now: Time) {
        self.admitted.record.iter().for_each(|record| record.requested(now));
    }

    /// Counts a refused request of a client for the record of the connection. A client that a trusted proxy reports
    /// has no record here, and the proxy was not refused.
    pub(super) fn note_refusal(&self, address: IpAddr, reason: RefusedFor) {
        if address.to_canonical() == self.origin.client().ip().to_canonical() {
            self.admitted.record.iter().for_each(|record| record.refused(reason));
        }
    }

    /// Records the server of the client.
    pub(super) fn note_server(&self, cx: &Context, backend: &Backend, server: &Entry) {
        if let Some(entry) = &self.admitted.entry {
            entry.connected(cx.now);
        }
        if let Some(record) = &self.admitted.record {
            record.record_server(&backend.pool.load().pool, &server.name);
        }
    }

    /// Counts and reports a connection or a handshake that failed.
    pub(super) fn note_connection(&self, cx: &Context, traffic: Traffic, cause: Cause) {
        if let Some(entry) = &self.admitted.entry {
            entry.set_cause(cause);
        }
        note_client(cx, &self.service, traffic, self.origin.client().ip(), cause);
    }

    /// Records that no byte moved in a relay for too long. Only upgraded connections and tunnels are reported.
    pub(super) fn note_idle_relay(&mut self, cx: &Context) {
        self.end_reason = Some(Reason::IdleTimeout);
        if self.settings.http.is_some() {
            self.note_connection(cx, Traffic::Connection, Reason::IdleTimeout.into());
        }
    }

    /// Returns the cause for which the TLS handshake failed.
    pub(super) fn handshake_failure(&self) -> Cause {
        failure_with_client(self.transport.tls_failure())
    }

    /// Counts and reports a request that was not served; `status` is the status of the local response.
    pub(super) fn note_unserved(
        &self,
        cx: &Context,
        cause: Cause,
        status: Option<u16>,
        parties: impl FnOnce() -> Parties,
    ) {
        self.note_unserved_as(cx, Traffic::Request, cause, status, parties);
    }

    /// Counts and reports a request or a relayed connection that was not served.
    pub(super) fn note_unserved_as(
        &self,
        cx: &Context,
        traffic: Traffic,
        cause: Cause,
        status: Option<u16>,
        parties: impl FnOnce() -> Parties,
    ) {
        if let Some(entry) = &self.admitted.entry {
            entry.set_cause(cause);
        }
        note_unserved(cx, &self.service, cause.reason(), || {
            let Parties { client, pool, server } = parties();
            let client = client.unwrap_or_else(|| self.origin.client().ip());
            let status = status.map(Status::Http);
            Unserved { traffic, cause, client, status, pool, server }
        });
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
    /// The session continues.
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
