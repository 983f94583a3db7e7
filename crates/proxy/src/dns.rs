//! The DNS way: each question on its own, over UDP and TCP. It is looked for among kept answers, then given to a server
//! with an ID that nobody can guess; an answer counts only when it comes from where the question went and repeats it
//! (RFC 5452). A server that does not answer costs one time-out, then another one is asked.
//!
//! What a question lives through is in `query.rs`, its tries in `attempt.rs`, what becomes of SERVFAIL in
//! `declined.rs`, what is for us alone in `hop.rs`, what its client hears in `reply.rs`, who waits with it in `twins.rs`; how
//! datagrams come and go in `listener.rs`, `sockets.rs` and `answers.rs`, streams in `client.rs` and `stream.rs`, the frames of
//! mname in `standing.rs`.

mod client;
mod framed;
mod listener;
mod query;
mod upstream;

use crate::context::Context;
use crate::context::keys::{
    DnsClientKey, DnsListenerKey, DnsServiceKey, DnsSocketKey, DnsStreamKey, DnsUpstreamKey, PersistentKey,
    QueryKey, Table, of,
};
use crate::context::ready::Ready;
use crate::context::timers::Timers;
use crate::io::batch::{BATCH, Batch};
use crate::io::gso::Burst;
use crate::service::{Backend, Service, Settings};
use client::Client;
use evener_core::hash::Keyed;
use evener_core::spec::Transport;
use evener_core::wire::proxy::Ends;
use evener_core::{ServerId, Time};
use listener::Listener;
use listener::responses::Responses;
use query::Query;
use query::declined::Declined;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use upstream::Upstream;
use upstream::ids::Secrets;
use upstream::persistent::Persistent;
use upstream::socket::Socket;
use upstream::stream::Stream;

/// Buffers of questions that are over, kept for those to come.
const SPARES_MAX: usize = 1024;
/// A buffer that a large question made large is not kept.
const SPARE_BYTES_MAX: usize = 1024;
/// How much is read from a stream at once.
const READ_BYTES: usize = 65_536;

/// All that a worker has of DNS.
pub(crate) struct Dns {
    services: Table<of::DnsService, Served>,
    listeners: Table<of::DnsListener, Listener>,
    /// Some of them are to close.
    is_leaving: bool,
    queries: Table<of::Query, Query>,
    /// Bytes that they hold.
    held: usize,
    /// The questions that others may wait for, by what they ask.
    coalesced: HashMap<Vec<u8>, QueryKey, Keyed>,
    /// Answers that others wait for, too, and who does.
    shared: Vec<(Vec<QueryKey>, Vec<u8>)>,
    /// Responses that decline, for which something better may be had.
    declined: Vec<Declined>,
    upstreams: Table<of::DnsUpstream, Upstream>,
    upstream_of: HashMap<ServerOf, DnsUpstreamKey, Keyed>,
    sockets: Table<of::DnsSocket, Socket>,
    streams: Table<of::DnsStream, Box<Stream>>,
    clients: Table<of::DnsClient, Box<Client>>,
    persistents: Table<of::Persistent, Box<Persistent>>,
    persistent_of: HashMap<ServerOf, PersistentKey, Keyed>,
    query_timers: Timers<QueryKey>,
    client_timers: Timers<DnsClientKey>,
    stream_timers: Timers<DnsStreamKey>,
    persistent_timers: Timers<PersistentKey>,
    /// Servers or listeners came or went since persistent connections were looked at.
    is_changed: bool,
    secrets: Secrets,
    inbound: Option<Box<Batch>>,
    responses: Option<Box<Responses>>,
    spares: Vec<Vec<u8>>,
    buffer: Vec<u8>,
    /// What sends datagrams to servers.
    burst: Box<Burst>,
    /// The key of the question that is looked for just now.
    key: Vec<u8>,
    /// The frame that is written just now.
    frame: Vec<u8>,
    /// Numbers the rounds of events.
    round: u32,
    /// Who has something to send once the present events are done.
    sockets_dirty: Vec<DnsSocketKey>,
    clients_dirty: Vec<DnsClientKey>,
    streams_dirty: Vec<DnsStreamKey>,
    persistents_dirty: Vec<PersistentKey>,
    clients_over: Vec<DnsClientKey>,
    streams_over: Vec<DnsStreamKey>,
}

/// A service that this worker serves.
struct Served {
    service: Arc<Service>,
    /// Questions under way, and how many of them others were told of.
    in_flight: u32,
    reported: u32,
}

/// A server as the queries of a service reach it. Its ID is unique within its pool, and the party chooses the pool; after a
/// reload that may be another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ServerOf {
    service: DnsServiceKey,
    party: Party,
    id: ServerId,
}

/// Where a datagram came from, and so where its answer goes.
#[derive(Clone, Copy, Debug)]
struct ReturnPath {
    listener: DnsListenerKey,
    address: SocketAddr,
    local: Option<IpAddr>,
}

/// How a question came, and so how its answer goes.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Datagram(ReturnPath),
    /// On this connection.
    Stream(DnsClientKey),
}

impl Origin {
    /// How its server is asked, too.
    const fn transport(self) -> Transport {
        match self {
            Self::Datagram(_) => Transport::Datagram,
            Self::Stream(_) => Transport::Stream,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Requester {
    service: DnsServiceKey,
    /// As far as we are told.
    client: SocketAddr,
    /// What the client sent to.
    destination: Option<SocketAddr>,
    party: Party,
    /// How many instances of Evener passed it on with us, as far as a PROXY header tells.
    hops: u8,
    origin: Origin,
    /// Asks in this query for how long its TCP connection may be idle.
    keepalive: bool,
}

/// What the access list makes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Admitted,
    /// It is refused, but there is a pool for such.
    Refused,
    /// It is refused, and told so.
    Rejected,
}

impl Party {
    /// Where its servers are; nowhere when a reload took away the pool of those who are refused.
    fn backend(self, settings: &Settings) -> Option<&Backend> {
        match self {
            Self::Admitted => settings.backends.first(),
            Self::Refused => settings.refused(),
            Self::Rejected => None,
        }
    }
}

impl Requester {
    /// Where its servers are.
    fn backend<'a>(&self, settings: &'a Settings) -> Option<&'a Backend> {
        self.party.backend(settings)
    }

    /// A server of its pool.
    const fn server(&self, id: ServerId) -> ServerOf {
        ServerOf { service: self.service, party: self.party, id }
    }

    /// Returns whether its server is told of it.
    fn is_introduced(&self, settings: &Settings) -> bool {
        self.backend(settings).is_some_and(|backend| backend.send_proxy.is_some())
    }

    /// Both ends, for servers that are told.
    fn ends(&self) -> Option<Ends> {
        self.destination.map(|destination| Ends { source: self.client, destination })
    }
}

impl Dns {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            services: Table::default(),
            listeners: Table::default(),
            is_leaving: false,
            queries: Table::default(),
            held: 0,
            coalesced: HashMap::with_hasher(Keyed::new(seed)),
            shared: Vec::new(),
            declined: Vec::new(),
            upstreams: Table::default(),
            upstream_of: HashMap::with_hasher(Keyed::new(seed)),
            sockets: Table::default(),
            streams: Table::default(),
            clients: Table::default(),
            persistents: Table::default(),
            persistent_of: HashMap::with_hasher(Keyed::new(seed)),
            query_timers: Timers::new(),
            client_timers: Timers::new(),
            stream_timers: Timers::new(),
            persistent_timers: Timers::new(),
            is_changed: false,
            secrets: Secrets::default(),
            inbound: None,
            responses: None,
            spares: Vec::new(),
            buffer: Vec::new(),
            burst: Box::new(Burst::new(BATCH)),
            key: Vec::new(),
            frame: Vec::new(),
            round: 0,
            sockets_dirty: Vec::new(),
            clients_dirty: Vec::new(),
            streams_dirty: Vec::new(),
            persistents_dirty: Vec::new(),
            clients_over: Vec::new(),
            streams_over: Vec::new(),
        }
    }

    /// Returns how long nothing can be due.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        if self.is_changed {
            return Some(Duration::ZERO);
        }
        let waits = [
            self.query_timers.wait(now),
            self.client_timers.wait(now),
            self.stream_timers.wait(now),
            self.persistent_timers.wait(now),
        ];
        waits.into_iter().flatten().min()
    }

    /// An empty buffer.
    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    /// A buffer that is not needed any more.
    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.spares.push(buffer);
        }
    }

    /// The buffer for reading streams, taken for as long as one is read.
    fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        buffer
    }

    /// The place of a service.
    fn service_key(&mut self, service: &Arc<Service>) -> DnsServiceKey {
        let known = self.services.iter().find(|(_, served)| Arc::ptr_eq(&served.service, service));
        known.map(|(at, _)| at).unwrap_or_else(|| {
            self.services.insert(Served { service: Arc::clone(service), in_flight: 0, reported: 0 })
        })
    }
}

impl Dns {
    /// What is due.
    pub(crate) fn on_deadlines(&mut self, cx: &mut Context) {
        let mut queries = Vec::new();
        self.query_timers.expire(cx.now, &mut queries);
        queries.into_iter().for_each(|key| self.on_query_deadline(cx, key));
        let mut clients = Vec::new();
        self.client_timers.expire(cx.now, &mut clients);
        clients.into_iter().for_each(|key| self.on_client_deadline(cx, key));
        let mut streams = Vec::new();
        self.stream_timers.expire(cx.now, &mut streams);
        streams.into_iter().for_each(|at| self.on_stream_deadline(cx, at));
        let mut persistents = Vec::new();
        self.persistent_timers.expire(cx.now, &mut persistents);
        persistents.into_iter().for_each(|at| self.on_persistent_deadline(cx, at));
    }

    /// Sends what waits, and frees what ended, once the present events are done.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        // Whoever is looked at may give others something to do; each client is looked at once, and each question goes on a
        // bounded number of times.
        loop {
            if let Some(at) = self.persistents_dirty.pop() {
                self.flush_persistent(cx, at);
            } else if let Some(index) = self.streams_dirty.pop() {
                self.flush_stream(cx, index);
            } else if let Some(index) = self.clients_dirty.pop() {
                // Who has more to do at once waits until others had their turn.
                if !self.flush_client_once(cx, index) {
                    cx.ready.push(Ready::DnsClient(index));
                }
            } else if let Some(at) = self.sockets_dirty.pop() {
                self.flush_socket(cx, at);
            } else {
                break;
            }
        }
        self.flush_responses(cx);
        self.close_left(cx);
        self.reap(cx);
        self.round = self.round.wrapping_add(1);
        for (_, served) in self.services.iter_mut() {
            if served.in_flight != served.reported {
                served
                    .service
                    .live
                    .flows
                    .fetch_add(served.in_flight.wrapping_sub(served.reported), Ordering::Relaxed);
                served.reported = served.in_flight;
            }
        }
    }

    fn reap(&mut self, cx: &Context) {
        while let Some(index) = self.streams_over.pop() {
            self.streams.remove(index);
        }
        while let Some(index) = self.clients_over.pop() {
            if let Some(client) = self.clients.remove(index) {
                let service = Arc::clone(&self.services[client.service()].service);
                drop(client);
                service.wake_waiting(cx);
            }
        }
    }

    /// Closes what was unused for long, and forgets services that nobody has any more.
    pub(crate) fn sweep(&mut self, cx: &mut Context) {
        self.sweep_upstreams(cx);
        let is_used = |at: DnsServiceKey| {
            self.listeners.iter().any(|(_, listener)| listener.service() == at)
                || self.clients.iter().any(|(_, client)| client.service() == at)
                || self.upstreams.iter().any(|(_, upstream)| upstream.service() == at)
                || self.queries.iter().any(|(_, query)| query.requester().service == at)
        };
        let alone = |served: &Served| Arc::strong_count(&served.service) == 1;
        let gone: Vec<DnsServiceKey> = self
            .services
            .iter()
            .filter(|(at, served)| alone(served) && !is_used(*at))
            .map(|(at, _)| at)
            .collect();
        gone.into_iter().for_each(|at| drop(self.services.remove(at)));
    }

    /// Listeners close and clients leave as soon as their questions are answered.
    pub(crate) fn drain(&mut self, cx: &Context) {
        self.leave_all(cx);
        self.clients.keys(|_| true).into_iter().for_each(|index| self.drain_client(cx, index));
    }
}

#[cfg(test)]
mod tests;
