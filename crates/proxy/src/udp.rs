//! The UDP way: a datagram finds its flow, or begins one; a flow has a connected socket to its server; answers go back
//! in batches from the address that the client sent to. When a server refuses or leaves, its flows go on elsewhere at
//! once.

mod header;
mod leave;
mod party;
mod responses;
mod spread;
mod table;

use crate::context::descriptors::Unit;
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::report::{Notice, Report};
use crate::io::batch::{BATCH, Batch, Local, Names};
use crate::io::connect::{count_refusal, is_ours, note_local};
use crate::io::listener::{self, Seen};
use crate::service::admission;
use crate::service::hops::{FlowWatch, HOPS_MAX, may_go_round, note_loop};
use crate::service::{Service, Settings};
use crate::worker::Worker;
use evener_core::Time;
use evener_core::attempt::{Attempt, AttemptLimits, Cost};
use evener_core::clients::ClientRecord;
use evener_core::flow::{Flow, FlowKey, FlowTable, Turns, Via};
use evener_core::health::Failure;
use evener_core::snapshot::{Choice, Entry, NoServer, Request, Snapshot};
use evener_core::wire::proxy::{self, Ends};
use header::{header_of, introduce};
use party::{Party, Pools, party_of};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use slab::Slab;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) use leave::{close_left, leave};
use responses::Answers;
pub(crate) use responses::{flush_answers, on_flow_event};
pub(crate) use table::{close, end_all, end_astray, end_server, expire};

/// After so many batches of one socket others have their turn.
const BATCHES_MAX: usize = 4;
/// A flow of a listener that is to close is over when nothing moved for so long.
pub(crate) const DRAIN_IDLE: Duration = Duration::from_secs(1);
/// The same where its last datagram has its response.
const DRAIN_ANSWERED_IDLE: Duration = Duration::from_millis(100);
/// Places of a batch that go nowhere.
const DROPPED: u32 = u32::MAX;

/// The datagrams of one worker.
pub(crate) struct Udp {
    pub(crate) listeners: Slab<DatagramListener>,
    pub(crate) flows: Slab<FlowSocket>,
    pub(crate) inbound: Option<Box<Batch>>,
    answers: Option<Box<Answers>>,
    /// Flows that ended during the present events.
    pub(crate) retired: Vec<usize>,
    /// When flows were looked through for expired ones.
    pub(crate) swept_at: Time,
}

impl Udp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Slab::new(),
            flows: Slab::new(),
            inbound: None,
            answers: None,
            retired: Vec::new(),
            swept_at: Time::ZERO,
        }
    }

    /// Closes the sockets of flows that ended.
    pub(crate) fn bury(&mut self) {
        while let Some(slot) = self.retired.pop() {
            self.flows.try_remove(slot);
        }
    }
}

/// A listener of a worker for datagrams.
#[derive(Debug)]
pub(crate) struct DatagramListener {
    pub(crate) id: u64,
    pub(crate) service: Arc<Service>,
    pub(crate) socket: OwnedFd,
    pub(crate) local: Local,
    pub(crate) flows: FlowTable,
    /// Of a service that spreads the datagrams of a client.
    pub(crate) turns: Turns,
    /// Since when it is to close once its flows are over.
    pub(crate) leaving: Option<Time>,
    pub(crate) watch: FlowWatch,
}

/// A flow's socket to its server.
#[derive(Debug)]
pub(crate) struct FlowSocket {
    socket: OwnedFd,
    listener: usize,
    key: FlowKey,
    choice: Choice,
    /// The PROXY header that each datagram begins with.
    header: Option<Box<[u8]>>,
    identity: Identity,
    party: Party,
    answered_at: Time,
    _descriptor: Unit,
}

/// What a flow keeps when it goes on at another server.
#[derive(Clone, Debug)]
struct Identity {
    /// Tells it from all others of its worker.
    number: u32,
    /// Where it is written down what the client does.
    record: Option<Arc<ClientRecord>>,
}

/// How many flows a worker's table has of the service's.
pub(crate) fn table_size(settings: &Settings, workers: usize) -> usize {
    (settings.options.flows_max as usize).div_ceil(workers.max(1)).max(1)
}

/// How long a flow lives unused.
pub(crate) fn flow_idle(settings: &Settings) -> Duration {
    settings.options.idle_timeout.unwrap_or(Duration::MAX)
}

/// Clients sent something.
pub(crate) fn on_listener_event(worker: &mut Worker, index: usize) {
    let mut batch = worker.udp.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
    let emptied = (0..BATCHES_MAX).any(|_| {
        let Some(listener) = worker.udp.listeners.get(index) else { return true };
        batch.wants_ttl = listener.watch.counts;
        match batch.receive(listener.socket.as_fd(), 0, Names::Wanted, listener.local) {
            Ok(count) => {
                forward(worker, index, &mut batch, count);
                count < BATCH
            }
            // A listener's socket is not connected, so this concerns no particular flow.
            Err(_) => false,
        }
    });
    if !emptied {
        worker.cx.ready.push(Ready::Datagrams(index));
    }
    batch.wants_ttl = false;
    worker.udp.inbound = Some(batch);
}

/// Sends a batch on, all datagrams of one flow together.
fn forward(worker: &mut Worker, index: usize, batch: &mut Batch, count: usize) {
    if count == 0 {
        return;
    }
    let service = Arc::clone(&worker.udp.listeners[index].service);
    let settings = service.settings.load_full();
    let pools = Pools::load(&settings);
    let mut slots = [DROPPED; BATCH];
    for (at, slot) in slots.iter_mut().enumerate().take(count) {
        let Some(key) = key_of(worker, index, batch, at, &settings) else { continue };
        let ttl = if batch.wants_ttl { batch.ttl(at) } else { None };
        let flow = match settings.options.spread {
            None => flow_of(worker, index, (key, ttl), &pools),
            Some(datagrams) => spread::flow_of(worker, index, (key, ttl), datagrams, &pools),
        };
        *slot = flow.unwrap_or(DROPPED);
    }
    service.live.counters.of(worker.cx.id).datagrams_in.add(count as u64);
    let mut places = [0; BATCH];
    for first in 0..count {
        let slot = std::mem::replace(&mut slots[first], DROPPED);
        if slot == DROPPED {
            continue;
        }
        places[0] = first;
        let mut length = 1;
        for (at, other) in slots.iter_mut().enumerate().take(count).skip(first + 1) {
            if *other == slot {
                *other = DROPPED;
                places[length] = at;
                length += 1;
            }
        }
        introduce(worker, slot as usize, batch, &places[..length]);
        send_to_server(worker, index, slot as usize, batch, &places[..length], &pools);
    }
}

/// Whose datagram `at` is. What stands before us tells of its client in each one; `None` when it does not.
fn key_of(
    worker: &Worker,
    index: usize,
    batch: &mut Batch,
    at: usize,
    settings: &Settings,
) -> Option<FlowKey> {
    let listener = &worker.udp.listeners[index];
    let local = if listener.local == Local::Each { batch.local(at) } else { None };
    let sender = batch.sender(at)?;
    if listener.local == Local::Each && batch.is_for_all(at) && !worker.cx.takes_broadcasts_of(sender) {
        return None;
    }
    let own = FlowKey { client: sender, local, via: None, lane: None };
    if !settings.is_proxy(sender.ip()) {
        return Some(own);
    }
    let Ok(Some(header)) = proxy::parse(batch.bytes_of(at)) else {
        listener.service.live.counters.of(worker.cx.id).drop_greeting.one();
        return None;
    };
    let (length, ends, hops) = (header.length, header.ends, header.extras.hops);
    if hops >= HOPS_MAX {
        note_loop(&worker.cx, &listener.service);
        return None;
    }
    batch.strip(at, length);
    Some(match ends {
        None => own,
        Some(Ends { source, destination }) => {
            FlowKey { client: source, via: Some(Via { proxy: sender, destination, hops }), ..own }
        }
    })
}

/// The slot of a flow; begins or moves it if need be. `None` when its datagram is dropped.
fn flow_of(
    worker: &mut Worker,
    index: usize,
    (key, ttl): (FlowKey, Option<u8>),
    pools: &Pools<'_>,
) -> Option<u32> {
    let (listener, client) = (&mut worker.udp.listeners[index], key.client.ip());
    let mut identity = None;
    if let Some(flow) = listener.flows.datagram(&key, worker.cx.now) {
        let socket = || worker.udp.flows.get(flow.slot as usize);
        let refused =
            pools.refused.is_some() && socket().is_some_and(|socket| socket.party == Party::Refused);
        let snapshot = pools.of(if refused { Party::Refused } else { Party::Admitted });
        if flow.generation == snapshot.generation {
            return Some(flow.slot);
        }
        let target = socket().map(|socket| &socket.choice.server.target);
        if target.is_some_and(|target| snapshot.keeps_flow(flow.server, target, client)) {
            flow.generation = snapshot.generation;
            return Some(flow.slot);
        }
        listener.service.live.counters.of(worker.cx.id).flows_moved.one();
        identity = socket().map(|socket| socket.identity.clone());
        // Its own place must not stand in the way of its new one.
        end(worker, index, &key);
    }
    let party = party_of(worker, index, client, pools, identity.is_none())?;
    let wish = Wish { key, ttl, party, identity, settings: pools.settings, snapshot: pools.of(party) };
    let begun = begin(worker, index, &wish, &mut Attempt::new());
    slot_of(worker, index, begun)
}

/// The slot of a flow that was begun; `None`, and its datagram counted, when it could not be.
fn slot_of(worker: &Worker, index: usize, begun: Result<u32, Unplaced>) -> Option<u32> {
    let counters = worker.udp.listeners[index].service.live.counters.of(worker.cx.id);
    match begun {
        Ok(slot) => return Some(slot),
        Err(Unplaced::NoServer) => counters.drop_no_server.one(),
        Err(Unplaced::NoSocket) => counters.drop_no_socket.one(),
        Err(Unplaced::Loop) => note_loop(&worker.cx, &Arc::clone(&worker.udp.listeners[index].service)),
    }
    None
}

/// Why a flow could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unplaced {
    /// No server could be had.
    NoServer,
    /// No descriptor or port could be had.
    NoSocket,
    /// It went round.
    Loop,
}

/// What a flow is begun with.
struct Wish<'a> {
    key: FlowKey,
    /// How far its first datagram might still go, where that is watched.
    ttl: Option<u8>,
    party: Party,
    /// Of a flow that was there already, and goes on elsewhere.
    identity: Option<Identity>,
    settings: &'a Settings,
    snapshot: &'a Snapshot,
}

/// Begins a flow, or lets it go on at another server than those that failed.
fn begin(worker: &mut Worker, index: usize, wish: &Wish<'_>, attempt: &mut Attempt) -> Result<u32, Unplaced> {
    let &Wish { key, snapshot, .. } = wish;
    let request = Request::of(key.client.ip(), worker.cx.now);
    loop {
        let choice = match attempt.next(snapshot, &request, &AttemptLimits::NONE, &mut worker.cx.random) {
            Ok(choice) => choice,
            Err(reason) => {
                note_no_server(worker, index, reason);
                end(worker, index, &key);
                return Err(Unplaced::NoServer);
            }
        };
        let (server, why) = (choice.server.id, choice.why);
        if let Some(placed) = begin_at(worker, index, wish, choice) {
            return placed;
        }
        attempt.failed(server, why, Cost::Quick);
    }
}

fn note_no_server(worker: &Worker, index: usize, reason: NoServer) {
    let service = &worker.udp.listeners[index].service;
    service.live.counters.of(worker.cx.id).no_server.one();
    if service.may_notice(Notice::NoServer, worker.cx.now) {
        (worker.cx.report)(Report::NoServer { service: service.name.clone(), reason });
    }
}

/// Begins a flow at this server; `None` when that cannot be reached.
fn begin_at(
    worker: &mut Worker,
    index: usize,
    wish: &Wish<'_>,
    choice: Choice,
) -> Option<Result<u32, Unplaced>> {
    let &Wish { party, settings, snapshot, .. } = wish;
    let key = FlowKey { lane: wish.key.lane.map(|_| choice.server.id), ..wish.key };
    if key != wish.key {
        // The client may have a flow to this server already.
        end(worker, index, &wish.key);
        if let Some(flow) = worker.udp.listeners[index].flows.peek(&key) {
            return Some(Ok(flow.slot));
        }
    }
    let Some(unit) = Unit::take() else {
        note_local(&worker.cx, &snapshot.pool, &choice.server, Errno::MFILE);
        return Some(Err(no_socket(worker, index)));
    };
    let seen = Seen::of(&settings.options, key.client.ip());
    let socket = match listener::datagram_socket(&choice.server.target, seen) {
        Ok(socket) => socket,
        // This client cannot be shown to this server: no other flow would make room for it, and it is nobody's failure.
        Err(Errno::ADDRNOTAVAIL) => {
            choice.server.live.counters.of(worker.cx.id).connect_errors.one();
            note_local(&worker.cx, &snapshot.pool, &choice.server, Errno::ADDRNOTAVAIL);
            return None;
        }
        Err(error) if is_ours(error) => {
            note_local(&worker.cx, &snapshot.pool, &choice.server, error);
            return Some(Err(no_socket(worker, index)));
        }
        Err(_) => {
            choice.server.live.counters.of(worker.cx.id).connect_errors.one();
            report_failure(worker, snapshot, &choice.server, Failure::Unreachable);
            return None;
        }
    };
    if may_go_round(key.client.ip(), &choice.server.target) {
        let DatagramListener { watch, socket: listener, .. } = &mut worker.udp.listeners[index];
        let to = (&socket, &choice.server.target);
        if watch.on_flow(worker.cx.now, listener, to, wish.ttl).is_err() {
            return Some(Err(Unplaced::Loop));
        }
    }
    let header = party.backend(settings).send_proxy.map(|_| header_of(worker, index, &key));
    let identity = wish.identity.clone().unwrap_or_else(|| identify(worker, index, &key, settings));
    let flow = FlowSocket {
        socket,
        listener: index,
        key,
        choice,
        header,
        identity,
        party,
        answered_at: Time::ZERO,
        _descriptor: unit,
    };
    Some(install(worker, index, flow, snapshot).ok_or(Unplaced::NoSocket))
}

/// A new flow gets a number, and its client is written down if the service remembers its clients.
fn identify(worker: &mut Worker, index: usize, key: &FlowKey, settings: &Settings) -> Identity {
    let number = worker.cx.number();
    let service = &worker.udp.listeners[index].service;
    let record = admission::record_of(service, settings, key.client.ip(), worker.cx.now);
    record.iter().for_each(|record| record.connected(worker.cx.now));
    Identity { number, record }
}

/// There are no descriptors or ports: the flow that was unused the longest makes room, for the next datagram.
fn no_socket(worker: &mut Worker, index: usize) -> Unplaced {
    if let Some(oldest) = worker.udp.listeners[index].flows.oldest() {
        worker.udp.listeners[index].service.live.counters.of(worker.cx.id).flows_evicted.one();
        end(worker, index, &oldest);
    }
    Unplaced::NoSocket
}

fn install(worker: &mut Worker, index: usize, flow_socket: FlowSocket, snapshot: &Snapshot) -> Option<u32> {
    let (key, choice) = (flow_socket.key, &flow_socket.choice);
    let (server, live) = (choice.server.id, Arc::clone(&choice.server.live));
    if let Some(record) = &flow_socket.identity.record {
        record.had(&snapshot.pool, &choice.server.name);
    }
    end(worker, index, &key);
    let slot = worker.udp.flows.insert(flow_socket);
    if worker.cx.registry.register(&worker.udp.flows[slot].socket, Token::Flow(slot)).is_err() {
        worker.udp.flows.remove(slot);
        return None;
    }
    let listener = &mut worker.udp.listeners[index];
    let flow = Flow { server, slot: slot as u32, generation: snapshot.generation };
    let evicted = listener.flows.begin(key, flow, worker.cx.now);
    let counters = listener.service.live.counters.of(worker.cx.id);
    counters.flows.one();
    live.counters.of(worker.cx.id).flows.one();
    listener.service.live.flows.fetch_add(1, Ordering::Relaxed);
    if let Some(evicted) = evicted {
        counters.flows_evicted.one();
        listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
        worker.udp.retired.push(evicted.slot as usize);
    }
    snapshot.remember(key.client.ip(), server, worker.cx.now);
    Some(slot as u32)
}

/// Ends a flow, if there is one. Its slot is freed only when the present events are done: datagrams of the same batch
/// may still name it.
fn end(worker: &mut Worker, index: usize, key: &FlowKey) {
    let listener = &mut worker.udp.listeners[index];
    if let Some(flow) = listener.flows.end(key) {
        listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
        worker.udp.retired.push(flow.slot as usize);
    }
}

/// Sends the datagrams of one flow; when its server refuses, to the next one.
fn send_to_server(
    worker: &mut Worker,
    index: usize,
    slot: usize,
    batch: &mut Batch,
    places: &[usize],
    pools: &Pools<'_>,
) {
    let (mut slot, mut left) = (slot, places);
    let mut attempt = Attempt::new();
    loop {
        let Some(flow) = worker.udp.flows.get(slot) else { return };
        let service = &worker.udp.listeners[index].service;
        let counters = service.live.counters.of(worker.cx.id);
        let sent = batch.send_connected(flow.socket.as_fd(), left);
        let (done, rest) = left.split_at(sent.taken);
        counters.bytes_in.add(batch.bytes(done));
        let of_server = flow.choice.server.live.counters.of(worker.cx.id);
        of_server.datagrams_in.add(done.len() as u64);
        of_server.bytes_in.add(batch.bytes(done));
        if let Some(record) = &flow.identity.record {
            record.moved(batch.bytes(done), 0, worker.cx.now);
        }
        left = rest;
        match sent.error {
            None => return,
            Some(Errno::AGAIN | Errno::NOBUFS) => return counters.drop_send_full.add(left.len() as u64),
            // Too large for the way there, or forbidden here: it is the datagram's fault, not the server's.
            Some(error) if error == Errno::MSGSIZE || error == Errno::INVAL || is_ours(error) => {
                counters.drop_unsendable.one();
                left = &left[1..];
            }
            Some(error) => {
                // The error belongs to an earlier datagram of this flow (ICMP), these were not sent yet: on to the next.
                let (key, party) = (flow.key, flow.party);
                attempt.failed(flow.choice.server.id, flow.choice.why, Cost::Quick);
                let snapshot = pools.of(party);
                note_refusal(worker, snapshot, slot, error);
                let service = Arc::clone(&worker.udp.listeners[index].service);
                let identity = worker.udp.flows.get(slot).map(|flow| flow.identity.clone());
                let wish = Wish { key, ttl: None, party, identity, settings: pools.settings, snapshot };
                let Ok(next) = begin(worker, index, &wish, &mut attempt) else {
                    return service.live.counters.of(worker.cx.id).drop_refused.add(left.len() as u64);
                };
                service.live.counters.of(worker.cx.id).flows_moved.one();
                slot = next as usize;
            }
        }
    }
}

/// The server of a flow refused a datagram: passive failure.
fn note_refusal(worker: &mut Worker, snapshot: &Snapshot, slot: usize, error: Errno) {
    let server = &worker.udp.flows[slot].choice.server;
    let failure = count_refusal(&worker.cx, server, error);
    report_failure(worker, snapshot, server, failure);
}

fn report_failure(worker: &Worker, snapshot: &Snapshot, server: &Entry, failure: Failure) {
    let (pool, target) = (snapshot.pool.clone(), server.target.clone());
    (worker.cx.report)(Report::Failure { pool, server: server.id, target, failure });
}
