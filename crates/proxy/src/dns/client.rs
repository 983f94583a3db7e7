//! Clients over TCP. Each message is preceded by its length, many can be outstanding, and responses are sent
//! in any order (RFC 7766). Reading pauses while a client does not read its responses, or has too many
//! outstanding queries.

mod list;

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{DnsClientKey, DnsServiceKey, DnsStreamKey};
use crate::context::ready::Ready;
use crate::context::registry::{Readiness, Token};
use crate::context::unserved::Traffic;
use crate::dns::framed::{Framed, Received};
use crate::dns::query::transfers::Transfers;
use crate::dns::query::{self};
use crate::dns::{Dns, Origin, Party, Requester};
use crate::service::Permits;
use crate::service::admission::{self, Admission, Admitted, Refused, reset_at_close};
use crate::service::failures::note_client;
use crate::service::hops::note_loop;
use crate::service::preamble::PREAMBLE;
use crate::service::preamble::{self, Origin as ClientOrigin};
use crate::service::{Service, Settings};
use evener_core::Time;
use evener_core::clients::ClientRecord;
use evener_core::limits::Lease;
use evener_core::reason::Reason;
use rustix::fd::OwnedFd;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Number of unsent bytes from which on reading pauses.
const OUTBOX_MAX: usize = 65_536;
/// Maximum number of reads before other work continues.
const READS_MAX: usize = 2;
/// Idle time after which a client is closed while the program drains.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Stage of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for a PROXY header.
    Preamble,
    Open,
    /// The client was refused, and is kept waiting.
    Tarpit,
    Over,
}

/// A client over TCP.
pub(super) struct Client {
    service: DnsServiceKey,
    /// Connection number, unique within the worker.
    number: u32,
    framed: Framed,
    origin: ClientOrigin,
    stage: Stage,
    refused: bool,
    /// Outstanding queries.
    outstanding: u32,
    /// At least one query arrived.
    has_queried: bool,
    /// The client sends no more bytes.
    ended: bool,
    active_at: Time,
    /// Listed in `clients_dirty`.
    dirty: bool,
    /// The round in which the client was last handled.
    round: u32,
    /// Streams to servers for this client only.
    streams: Vec<DnsStreamKey>,
    transfers: Transfers,
    permits: Option<Lease>,
    _descriptor: Unit,
    admission: Admitted,
}

impl Client {
    /// Counts and reports that the connection is closed for this reason.
    fn note_end(&self, cx: &Context, service: &Service, reason: Reason) {
        note_client(cx, service, Traffic::Connection, self.origin.client().ip(), reason);
    }

    /// Returns the record of the client, if the service remembers clients.
    pub(super) fn record(&self) -> Option<&Arc<ClientRecord>> {
        self.admission.record.as_ref()
    }

    pub(super) fn service(&self) -> DnsServiceKey {
        self.service
    }

    /// Streams to servers for this client only.
    pub(super) fn streams(&self) -> &[DnsStreamKey] {
        &self.streams
    }

    pub(super) fn add_stream(&mut self, at: DnsStreamKey) {
        self.streams.push(at);
    }

    pub(super) fn remove_stream(&mut self, at: DnsStreamKey) {
        self.streams.retain(|other| *other != at);
    }

    pub(super) fn transfers(&mut self) -> &mut Transfers {
        &mut self.transfers
    }

    /// Returns whether so many bytes are unsent that reading pauses, both from the client and from the streams
    /// for this client only.
    pub(super) fn is_slow(&self) -> bool {
        self.framed.waiting() >= OUTBOX_MAX
    }

    fn is_idle(&self) -> bool {
        self.outstanding == 0 && self.framed.waiting() == 0
    }
}

/// Result of reading queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appetite {
    /// All complete messages were taken.
    More,
    /// The limit of outstanding queries, or of unsent responses, is reached.
    Full,
    /// The client is closed.
    Gone,
}

/// Result of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Well,
    Broken,
}

impl Dns {
    /// Begins to serve an accepted client.
    pub(crate) fn begin(
        &mut self,
        cx: &mut Context,
        socket: OwnedFd,
        peer: SocketAddr,
        service: &Arc<Service>,
        settings: &Settings,
        permits: Permits,
    ) {
        let (service, number) = (self.service_key(service), cx.number());
        let has_preamble = settings.is_proxy(peer.ip());
        let key = self.clients.insert(Box::new(Client {
            service,
            number,
            framed: Framed::new(socket),
            origin: ClientOrigin::new(peer),
            stage: if has_preamble { Stage::Preamble } else { Stage::Open },
            refused: false,
            outstanding: 0,
            has_queried: false,
            ended: false,
            active_at: cx.now,
            dirty: false,
            round: self.round.wrapping_sub(1),
            streams: Vec::new(),
            transfers: Transfers::default(),
            permits: Some(permits.lease),
            _descriptor: permits.client,
            admission: Admitted::default(),
        }));
        if has_preamble {
            self.client_timers.set(key, cx.now + PREAMBLE);
        } else {
            self.admit_client(cx, key, settings);
        }
        let client = &self.clients[key];
        if client.stage == Stage::Over {
            return;
        }
        if cx.registry.register(client.framed.socket(), Token::DnsClient(key)).is_err() {
            return self.close_client(cx, key);
        }
        self.queue_client(key);
    }

    /// Applies the access list and the limits.
    fn admit_client(&mut self, cx: &mut Context, key: DnsClientKey, settings: &Settings) {
        let client = &mut self.clients[key];
        let service = &self.services[client.service].service;
        match admission::admit(service, settings, client.origin.client().ip(), cx.id, cx.now) {
            Admission::Enter(admission) => {
                client.refused = admission.backend.is_some();
                client.admission = admission;
                client.stage = Stage::Open;
                self.arm_client(cx, key, settings);
            }
            Admission::Refused(refused, reason) => {
                let address = client.origin.client().ip();
                note_client(cx, service, Traffic::Connection, address, reason);
                self.refuse_client(cx, key, refused);
            }
        }
    }

    fn refuse_client(&mut self, cx: &mut Context, key: DnsClientKey, refused: Refused) {
        let client = &mut self.clients[key];
        match refused {
            Refused::Drop => self.close_client(cx, key),
            Refused::Reject => {
                reset_at_close(client.framed.socket());
                self.close_client(cx, key);
            }
            Refused::Tarpit(permits, time) => {
                // The client's permit of the service is released for other clients.
                client.permits = Some(permits);
                client.stage = Stage::Tarpit;
                self.client_timers.set(key, cx.now + time);
            }
        }
    }

    /// Returns the idle time of a client that is not closed; zero while the program drains.
    pub(super) fn client_idle_time(&mut self, cx: &Context, key: DnsClientKey) -> Option<Duration> {
        self.open_client(key)?;
        let idle = self.client_settings(key).options.idle_timeout.unwrap_or(Duration::MAX);
        Some(if cx.draining { Duration::ZERO } else { idle })
    }

    fn arm_client(&mut self, cx: &Context, key: DnsClientKey, settings: &Settings) {
        let active_at = self.clients[key].active_at;
        match client_idle_timeout(cx, settings) {
            Some(idle) => self.client_timers.set(key, active_at + idle),
            None => self.client_timers.clear(key),
        }
    }

    fn client_settings(&self, key: DnsClientKey) -> Arc<Settings> {
        self.services[self.clients[key].service].service.settings.load_full()
    }

    /// Handles an event of a client's socket.
    pub(crate) fn on_client_event(&mut self, key: DnsClientKey, event: Readiness) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if event.readable || event.ended {
            client.framed.set_readable();
        }
        self.queue_client(key);
    }

    /// Lists a client to be handled after the present events.
    pub(crate) fn queue_client(&mut self, key: DnsClientKey) {
        if let Some(client) = self.clients.get_mut(key)
            && !std::mem::replace(&mut client.dirty, true)
        {
            self.clients_dirty.push(key);
        }
    }

    /// Handles a client. Returns false if the client was already handled in this round.
    pub(super) fn flush_client_once(&mut self, cx: &mut Context, key: DnsClientKey) -> bool {
        let round = self.round;
        let Some(client) = self.clients.get_mut(key) else { return true };
        let is_first = std::mem::replace(&mut client.round, round) != round;
        if is_first {
            // Responses that arrive in the meantime are sent by later rounds.
            self.flush_client(cx, key);
        }
        if let Some(client) = self.clients.get_mut(key) {
            client.dirty = false;
        }
        is_first
    }

    /// Sends and reads within the limits.
    fn flush_client(&mut self, cx: &mut Context, key: DnsClientKey) {
        let settings = self.client_settings(key);
        self.begin_next_transfers(cx, &settings, key);
        for _ in 0..READS_MAX {
            let client = &self.clients[key];
            if client.stage == Stage::Over {
                return;
            }
            let appetite = self.take_queries(cx, key, &settings);
            if self.send_to_client(cx, key) == Sent::Broken || appetite == Appetite::Gone {
                return;
            }
            if appetite == Appetite::Full {
                if self.is_client_full(key, &settings) {
                    return;
                }
            } else if !self.clients[key].framed.is_readable() {
                return self.close_client_if_done(cx, key);
            } else {
                self.receive_from_client(cx, key);
            }
        }
        cx.ready.push(Ready::DnsClient(key));
    }

    fn is_client_full(&self, key: DnsClientKey, settings: &Settings) -> bool {
        let client = &self.clients[key];
        let most = query::spec(settings).map_or(1, |spec| spec.pipeline_max.max(1));
        client.outstanding >= most || client.is_slow()
    }

    /// Takes the complete messages that were received.
    fn take_queries(&mut self, cx: &mut Context, key: DnsClientKey, settings: &Settings) -> Appetite {
        let stage = self.clients[key].stage;
        match stage {
            Stage::Preamble if !self.read_preamble(cx, key, settings) => {
                return if self.clients[key].stage == Stage::Over { Appetite::Gone } else { Appetite::More };
            }
            Stage::Tarpit => {
                // Input of the client is ignored.
                let client = &mut self.clients[key];
                let count = client.framed.pending().len();
                client.framed.consume(count);
                return Appetite::More;
            }
            Stage::Preamble | Stage::Open | Stage::Over => {}
        }
        let mut message = self.spare();
        let appetite = loop {
            if self.clients[key].stage != Stage::Open {
                break Appetite::Gone;
            }
            if self.is_client_full(key, settings) {
                break Appetite::Full;
            }
            let client = &mut self.clients[key];
            if !client.framed.take_message(&mut message) {
                break Appetite::More;
            }
            client.has_queried = true;
            client.active_at = cx.now;
            let requester = self.requester_of_client(key);
            self.count_client_bytes(cx, key, message.len() + 2);
            self.take_query(cx, settings, requester, &message);
        };
        self.give_back(message);
        appetite
    }

    /// Reads the PROXY header, and returns whether the client is admitted now.
    fn read_preamble(&mut self, cx: &mut Context, key: DnsClientKey, settings: &Settings) -> bool {
        let client = &mut self.clients[key];
        match preamble::read_proxy(client.framed.pending(), &mut client.origin) {
            Ok(None) => return false,
            Ok(Some(length)) => client.framed.consume(length),
            Err(error) => {
                let service = &self.services[client.service].service;
                service.live.counters.of(cx.id).preamble_refused.one();
                let cause = preamble::cause_of_header(error, client.framed.pending());
                note_client(cx, service, Traffic::Connection, client.origin.client().ip(), cause);
                self.close_client(cx, key);
                return false;
            }
        }
        if self.clients[key].origin.is_loop() {
            let service = Arc::clone(&self.services[self.clients[key].service].service);
            note_loop(cx, &service);
            self.close_client(cx, key);
            return false;
        }
        self.admit_client(cx, key, settings);
        self.clients[key].stage == Stage::Open
    }

    fn requester_of_client(&self, key: DnsClientKey) -> Requester {
        let client = &self.clients[key];
        let ends = client.origin.ends(client.framed.socket());
        Requester {
            service: client.service,
            client: client.origin.client(),
            destination: ends.map(|ends| ends.destination),
            party: if client.refused { Party::Refused } else { Party::Admitted },
            hops: client.origin.next_hop(),
            origin: Origin::Stream(key),
            keepalive: false,
        }
    }

    fn count_client_bytes(&self, cx: &Context, key: DnsClientKey, bytes: usize) {
        let client = &self.clients[key];
        self.services[client.service].service.live.counters.of(cx.id).bytes_in.add(bytes as u64);
    }

    fn send_to_client(&mut self, cx: &mut Context, key: DnsClientKey) -> Sent {
        let client = &mut self.clients[key];
        if client.stage == Stage::Over {
            return Sent::Broken;
        }
        let was_slow = client.is_slow();
        let Ok(count) = client.framed.flush() else {
            self.close_client(cx, key);
            return Sent::Broken;
        };
        if count > 0 {
            client.active_at = cx.now;
            let counters = self.services[client.service].service.live.counters.of(cx.id);
            counters.bytes_out.add(count as u64);
        }
        let client = &self.clients[key];
        if was_slow && !client.is_slow() {
            // Reading from the client's streams had paused.
            for at in client.streams.clone() {
                self.resume_stream(cx, at);
            }
        }
        Sent::Well
    }

    fn receive_from_client(&mut self, cx: &mut Context, key: DnsClientKey) {
        let mut buffer = self.take_buffer();
        let client = &mut self.clients[key];
        match client.framed.receive(&mut buffer) {
            Ok(Received::Some | Received::Blocked) => {}
            Ok(Received::End) => client.ended = true,
            Err(_) => self.close_client(cx, key),
        }
        self.buffer = buffer;
    }

    /// Closes an idle client that sends no more bytes; while the program drains, also any other idle client
    /// that has sent a query.
    fn close_client_if_done(&mut self, cx: &mut Context, key: DnsClientKey) {
        let client = &self.clients[key];
        if client.is_idle() && (client.ended || (cx.draining && client.has_queried)) {
            self.close_client(cx, key);
        }
    }

    /// Counts one more outstanding query of a client.
    pub(super) fn begin_client_query(&mut self, key: DnsClientKey) {
        if let Some(client) = self.open_client(key) {
            client.outstanding += 1;
        }
    }

    /// Uncounts an outstanding query of a client, with or without a response.
    pub(super) fn end_client_query(&mut self, key: DnsClientKey) {
        if let Some(client) = self.open_client(key) {
            client.outstanding = client.outstanding.saturating_sub(1);
            self.queue_client(key);
        }
    }

    /// Queues a response for a client.
    pub(super) fn respond_to_client(&mut self, cx: &Context, key: DnsClientKey, response: &[u8]) {
        if let Some(client) = self.open_client(key) {
            client.framed.queue_message(response);
            let service = client.service;
            let counters = self.services[service].service.live.counters.of(cx.id);
            counters.response_bytes.record_bytes(response.len() as u64);
            self.queue_client(key);
        }
    }

    /// Closes a client after all queued messages are sent. Only the close indicates that the rest of a transfer
    /// is missing.
    pub(super) fn dismiss_client(&mut self, key: DnsClientKey) {
        if let Some(client) = self.open_client(key) {
            client.ended = true;
            self.queue_client(key);
        }
    }

    /// Closes a client whose bytes are not DNS messages.
    pub(super) fn abandon_client(&mut self, cx: &mut Context, key: DnsClientKey) {
        if self.open_client(key).is_some() {
            self.close_client(cx, key);
        }
    }

    /// Returns a client that is not closed.
    pub(super) fn open_client(&mut self, key: DnsClientKey) -> Option<&mut Client> {
        let client = self.clients.get_mut(key)?;
        (client.stage != Stage::Over).then_some(&mut **client)
    }

    /// The origin of a client and its socket, for the preamble to a server.
    pub(super) fn client_origin(&self, key: DnsClientKey) -> Option<(&ClientOrigin, &OwnedFd)> {
        self.clients.get(key).map(|client| (&client.origin, client.framed.socket()))
    }

    fn close_client(&mut self, cx: &mut Context, key: DnsClientKey) {
        let client = &mut self.clients[key];
        if std::mem::replace(&mut client.stage, Stage::Over) == Stage::Over {
            return;
        }
        self.client_timers.clear(key);
        self.clients_over.push(key);
        self.abandon_transfers(cx, key);
        for at in std::mem::take(&mut self.clients[key].streams) {
            self.close_stream(cx, at);
        }
    }

    /// Handles a deadline: for the preamble, of a tarpit, or of an idle client.
    pub(super) fn on_client_deadline(&mut self, cx: &mut Context, key: DnsClientKey) {
        let Some(client) = self.clients.get(key) else { return };
        let settings = self.client_settings(key);
        let service = &self.services[client.service].service;
        let counters = service.live.counters.of(cx.id);
        match client.stage {
            Stage::Over => return,
            Stage::Tarpit => {}
            Stage::Preamble => {
                counters.preamble_timeouts.one();
                let address = client.origin.client().ip();
                note_client(cx, service, Traffic::Connection, address, Reason::PreambleTimeout);
            }
            Stage::Open => {
                // A client that waits for servers stays open, because queries have their own timeouts. A client
                // that does not read its responses is closed.
                let waits = client.outstanding > 0 && client.framed.waiting() == 0;
                let idle = client_idle_timeout(cx, &settings);
                if idle.is_none_or(|idle| cx.now.since(client.active_at) < idle) {
                    return self.arm_client(cx, key, &settings);
                }
                if waits {
                    self.clients[key].active_at = cx.now;
                    return self.arm_client(cx, key, &settings);
                }
                counters.closed.idle_timeout.one();
            }
        }
        self.close_client(cx, key);
    }

    /// Shortens the idle time of a client, because the program drains.
    pub(super) fn drain_client(&mut self, cx: &Context, key: DnsClientKey) {
        let settings = self.client_settings(key);
        if self.clients[key].stage == Stage::Open {
            self.clients[key].active_at = cx.now;
            self.arm_client(cx, key, &settings);
        }
        self.queue_client(key);
    }
}

/// Returns the idle time of clients.
fn client_idle_timeout(cx: &Context, settings: &Settings) -> Option<Duration> {
    if cx.draining { Some(DRAIN_IDLE) } else { settings.options.idle_timeout }
}
