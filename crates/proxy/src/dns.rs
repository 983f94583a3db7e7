//! DNS, query by query, over UDP and TCP. A query is looked up in the cache, then sent to a server under an
//! unguessable ID. A message counts as the response only if it comes from the address to which the query was
//! sent and repeats the query (RFC 5452). A server that does not respond costs one timeout, then the next
//! server is queried.
//!
//! The life of a query is in `query.rs` and below: its attempts, queries that are coalesced with it, responses
//! that decline, failures. The sockets, streams and persistent connections (mname) to servers are below
//! `upstream.rs`, clients over UDP in `listener.rs`, clients over TCP in `client.rs`. Nothing here uses the
//! other protocol components.

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

/// Maximum number of buffers of finished queries that are kept for new ones.
const SPARES_MAX: usize = 1024;
/// Maximum capacity of a buffer that is kept. Larger buffers are freed.
const SPARE_BYTES_MAX: usize = 1024;
/// Maximum number of bytes of one read from a stream.
const READ_BYTES: usize = 65_536;

/// The DNS component of a worker.
pub(crate) struct Dns {
    services: Table<of::DnsService, Served>,
    listeners: Table<of::DnsListener, Listener>,
    /// At least one listener is leaving.
    is_leaving: bool,
    queries: Table<of::Query, Query>,
    /// Total size of the messages of all queries.
    held: usize,
    /// The outstanding queries that equal queries can wait for, by their cache keys.
    coalesced: HashMap<Vec<u8>, QueryKey, Keyed>,
    /// Responses for which coalesced queries wait, with the keys of these queries.
    shared: Vec<(Vec<QueryKey>, Vec<u8>)>,
    /// Responses that decline. They are handled when the batch of responses is no longer being filled.
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
    /// Servers or listeners changed since the last maintenance of persistent connections.
    is_changed: bool,
    secrets: Secrets,
    inbound: Option<Box<Batch>>,
    responses: Option<Box<Responses>>,
    spares: Vec<Vec<u8>>,
    buffer: Vec<u8>,
    /// Sends datagrams to servers.
    burst: Box<Burst>,
    /// The cache key that is being built.
    key: Vec<u8>,
    /// The frame that is being built.
    frame: Vec<u8>,
    /// Number of the round of events.
    round: u32,
    /// Sockets, clients and streams with data to send after the present events.
    sockets_dirty: Vec<DnsSocketKey>,
    clients_dirty: Vec<DnsClientKey>,
    streams_dirty: Vec<DnsStreamKey>,
    persistents_dirty: Vec<PersistentKey>,
    clients_over: Vec<DnsClientKey>,
    streams_over: Vec<DnsStreamKey>,
}

/// A service of this worker.
struct Served {
    service: Arc<Service>,
    /// Number of outstanding queries, and the part of it that was added to the counter of the service.
    in_flight: u32,
    reported: u32,
}

/// A server as seen by the queries of a service. The ID is unique within the pool, and the party determines
/// the pool, which a reload can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ServerOf {
    service: DnsServiceKey,
    party: Party,
    id: ServerId,
}

/// The source of a datagram, and therefore the destination of its response.
#[derive(Clone, Copy, Debug)]
struct ReturnPath {
    listener: DnsListenerKey,
    address: SocketAddr,
    local: Option<IpAddr>,
}

/// The transport of a query, and therefore of its response.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Datagram(ReturnPath),
    /// On this connection.
    Stream(DnsClientKey),
}

impl Origin {
    /// Returns the transport of the query. The server is queried over the same transport.
    const fn transport(self) -> Transport {
        match self {
            Self::Datagram(_) => Transport::Datagram,
            Self::Stream(_) => Transport::Stream,
        }
    }
}

/// The client behind a query.
#[derive(Clone, Copy, Debug)]
struct Requester {
    service: DnsServiceKey,
    /// The client's address, from the socket or a PROXY header.
    client: SocketAddr,
    /// The address that the client sent to.
    destination: Option<SocketAddr>,
    party: Party,
    /// Number of instances of Evener that passed the query on, including this one, according to a PROXY
    /// header.
    hops: u8,
    origin: Origin,
    /// The query requests the idle time of its TCP connection (RFC 7828).
    keepalive: bool,
}

/// The verdict of the access list on a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Admitted,
    /// The client is refused, and served by the pool for refused clients.
    Refused,
    /// The client is refused with a response.
    Rejected,
}

impl Party {
    /// Returns the pool and its options; `None` if a reload removed the pool for refused clients.
    fn backend(self, settings: &Settings) -> Option<&Backend> {
        match self {
            Self::Admitted => settings.backends.first(),
            Self::Refused => settings.refused(),
            Self::Rejected => None,
        }
    }
}

impl Requester {
    /// Returns the pool and its options.
    fn backend<'a>(&self, settings: &'a Settings) -> Option<&'a Backend> {
        self.party.backend(settings)
    }

    /// Returns the key of a server of the requester's pool.
    const fn server(&self, id: ServerId) -> ServerOf {
        ServerOf { service: self.service, party: self.party, id }
    }

    /// Returns whether a PROXY header reports the client to the server.
    fn is_introduced(&self, settings: &Settings) -> bool {
        self.backend(settings).is_some_and(|backend| backend.send_proxy.is_some())
    }

    /// Both ends of the client's connection, for PROXY headers.
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

    /// Returns the time until the next deadline.
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

    /// Returns an empty buffer.
    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    /// Takes back a buffer that is no longer needed.
    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.spares.push(buffer);
        }
    }

    /// Takes the buffer for reading streams, until the stream is read.
    fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        buffer
    }

    /// Returns the key of a service, which is added if it is new.
    fn service_key(&mut self, service: &Arc<Service>) -> DnsServiceKey {
        let known = self.services.iter().find(|(_, served)| Arc::ptr_eq(&served.service, service));
        known.map(|(at, _)| at).unwrap_or_else(|| {
            self.services.insert(Served { service: Arc::clone(service), in_flight: 0, reported: 0 })
        })
    }
}

impl Dns {
    /// Handles all timers that are due.
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

    /// Sends all queued data and removes finished clients and streams, after the present events.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        // Each step may cause work for others. The loop ends nevertheless: a client is handled once in a round,
        // and the attempts of a query are bounded.
        loop {
            if let Some(at) = self.persistents_dirty.pop() {
                self.flush_persistent(cx, at);
            } else if let Some(at) = self.streams_dirty.pop() {
                self.flush_stream(cx, at);
            } else if let Some(key) = self.clients_dirty.pop() {
                // A client with more work waits until the other clients have been handled.
                if !self.flush_client_once(cx, key) {
                    cx.ready.push(Ready::DnsClient(key));
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
        while let Some(key) = self.streams_over.pop() {
            self.streams.remove(key);
        }
        while let Some(key) = self.clients_over.pop() {
            if let Some(client) = self.clients.remove(key) {
                let service = Arc::clone(&self.services[client.service()].service);
                drop(client);
                service.wake_waiting(cx);
            }
        }
    }

    /// Closes unused sockets and streams, and removes services without users.
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

    /// Closes the listeners, and the clients as soon as their queries are finished.
    pub(crate) fn drain(&mut self, cx: &Context) {
        self.leave_all(cx);
        self.clients.keys(|_| true).into_iter().for_each(|index| self.drain_client(cx, index));
    }
}

#[cfg(test)]
mod tests;
