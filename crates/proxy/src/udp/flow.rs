//! Flows: how one begins at a server, goes on at another one, and ends; and what clients send on its way to servers.

use super::Udp;
use super::listener::DatagramListener;
use super::party::{Party, Pools};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey, Handle, Key};
use crate::context::registry::Token;
use crate::context::report::{Notice, Report};
use crate::io::batch::Batch;
use crate::io::connect::{count_refusal, is_ours, note_local};
use crate::io::listener::{self, Seen};
use crate::service::Settings;
use crate::service::admission;
use crate::service::hops::{may_go_round, note_loop};
use evener_core::Time;
use evener_core::attempt::{Attempt, AttemptLimits, Cost};
use evener_core::clients::ClientRecord;
use evener_core::flow::{Flow, FlowKey};
use evener_core::health::Failure;
use evener_core::snapshot::{Choice, Entry, NoServer, Request, Snapshot};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A flow's socket to its server.
#[derive(Debug)]
pub(super) struct FlowSocket {
    pub(super) socket: OwnedFd,
    pub(super) listener: DatagramListenerKey,
    pub(super) key: FlowKey,
    pub(super) choice: Choice,
    /// The PROXY header that each datagram begins with.
    pub(super) header: Option<Box<[u8]>>,
    pub(super) identity: Identity,
    pub(super) party: Party,
    pub(super) answered_at: Time,
    _descriptor: Unit,
}

/// The socket of a flow of the table.
pub(super) fn socket_of(flow: &Flow) -> FlowSocketKey {
    Key::from_raw(flow.handle)
}

/// What a flow keeps when it goes on at another server.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Tells it from all others of its worker.
    pub(super) number: u32,
    /// Where it is written down what the client does.
    pub(super) record: Option<Arc<ClientRecord>>,
}

impl Udp {
    /// The slot of a flow; begins or moves it if need be. `None` when its datagram is dropped.
    pub(super) fn flow_of(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        (key, ttl): (FlowKey, Option<u8>),
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let (listener, client) = (&mut self.listeners[index], key.client.ip());
        let mut identity = None;
        if let Some(flow) = listener.flows.datagram(&key, cx.now) {
            let socket = || self.flows.get(socket_of(flow));
            let refused =
                pools.refused.is_some() && socket().is_some_and(|socket| socket.party == Party::Refused);
            let snapshot = pools.of(if refused { Party::Refused } else { Party::Admitted });
            if flow.generation == snapshot.generation {
                return Some(socket_of(flow));
            }
            let target = socket().map(|socket| &socket.choice.server.target);
            if target.is_some_and(|target| snapshot.keeps_flow(flow.server, target, client)) {
                flow.generation = snapshot.generation;
                return Some(socket_of(flow));
            }
            listener.service.live.counters.of(cx.id).flows_moved.one();
            identity = socket().map(|socket| socket.identity.clone());
            // Its own place must not stand in the way of its new one.
            self.end(index, &key);
        }
        let party = self.party_of(cx, index, client, pools, identity.is_none())?;
        let wish = Wish { key, ttl, party, identity, settings: pools.settings, snapshot: pools.of(party) };
        let begun = self.begin(cx, index, &wish, &mut Attempt::new());
        self.slot_of(cx, index, begun)
    }

    /// The slot of a flow that was begun; `None`, and its datagram counted, when it could not be.
    pub(super) fn slot_of(
        &self,
        cx: &Context,
        index: DatagramListenerKey,
        begun: Result<FlowSocketKey, Unplaced>,
    ) -> Option<FlowSocketKey> {
        let counters = self.listeners[index].service.live.counters.of(cx.id);
        match begun {
            Ok(slot) => return Some(slot),
            Err(Unplaced::NoServer) => counters.drop_no_server.one(),
            Err(Unplaced::NoSocket) => counters.drop_no_socket.one(),
            Err(Unplaced::Loop) => note_loop(cx, &Arc::clone(&self.listeners[index].service)),
        }
        None
    }
}

/// Why a flow could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unplaced {
    /// No server could be had.
    NoServer,
    /// No descriptor or port could be had.
    NoSocket,
    /// It went round.
    Loop,
}

/// What a flow is begun with.
pub(super) struct Wish<'a> {
    pub(super) key: FlowKey,
    /// How far its first datagram might still go, where that is watched.
    pub(super) ttl: Option<u8>,
    pub(super) party: Party,
    /// Of a flow that was there already, and goes on elsewhere.
    pub(super) identity: Option<Identity>,
    pub(super) settings: &'a Settings,
    pub(super) snapshot: &'a Snapshot,
}

impl Udp {
    /// Begins a flow, or lets it go on at another server than those that failed.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        wish: &Wish<'_>,
        attempt: &mut Attempt,
    ) -> Result<FlowSocketKey, Unplaced> {
        let &Wish { key, snapshot, .. } = wish;
        let request = Request::of(key.client.ip(), cx.now);
        loop {
            let choice = match attempt.next(snapshot, &request, &AttemptLimits::NONE, &mut cx.random) {
                Ok(choice) => choice,
                Err(reason) => {
                    self.note_no_server(cx, index, reason);
                    self.end(index, &key);
                    return Err(Unplaced::NoServer);
                }
            };
            let (server, why) = (choice.server.id, choice.why);
            if let Some(placed) = self.begin_at(cx, index, wish, choice) {
                return placed;
            }
            attempt.failed(server, why, Cost::Quick);
        }
    }

    pub(super) fn note_no_server(&self, cx: &Context, index: DatagramListenerKey, reason: NoServer) {
        let service = &self.listeners[index].service;
        service.live.counters.of(cx.id).no_server.one();
        if service.may_notice(Notice::NoServer, cx.now) {
            (cx.report)(Report::NoServer { service: service.name.clone(), reason });
        }
    }

    /// Begins a flow at this server; `None` when that cannot be reached.
    pub(super) fn begin_at(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        wish: &Wish<'_>,
        choice: Choice,
    ) -> Option<Result<FlowSocketKey, Unplaced>> {
        let &Wish { party, settings, snapshot, .. } = wish;
        let key = FlowKey { lane: wish.key.lane.map(|_| choice.server.id), ..wish.key };
        if key != wish.key {
            // The client may have a flow to this server already.
            self.end(index, &wish.key);
            if let Some(flow) = self.listeners[index].flows.peek(&key) {
                return Some(Ok(socket_of(flow)));
            }
        }
        let Some(unit) = Unit::take() else {
            note_local(cx, &snapshot.pool, &choice.server, Errno::MFILE);
            return Some(Err(self.no_socket(cx, index)));
        };
        let seen = Seen::of(&settings.options, key.client.ip());
        let socket = match listener::datagram_socket(&choice.server.target, seen) {
            Ok(socket) => socket,
            // This client cannot be shown to this server: no other flow would make room for it, and it is nobody's failure.
            Err(Errno::ADDRNOTAVAIL) => {
                choice.server.live.counters.of(cx.id).connect_errors.one();
                note_local(cx, &snapshot.pool, &choice.server, Errno::ADDRNOTAVAIL);
                return None;
            }
            Err(error) if is_ours(error) => {
                note_local(cx, &snapshot.pool, &choice.server, error);
                return Some(Err(self.no_socket(cx, index)));
            }
            Err(_) => {
                choice.server.live.counters.of(cx.id).connect_errors.one();
                self.report_failure(cx, snapshot, &choice.server, Failure::Unreachable);
                return None;
            }
        };
        if may_go_round(key.client.ip(), &choice.server.target) {
            let DatagramListener { watch, socket: listener, .. } = &mut self.listeners[index];
            let to = (&socket, &choice.server.target);
            if watch.on_flow(cx.now, listener, to, wish.ttl).is_err() {
                return Some(Err(Unplaced::Loop));
            }
        }
        let header = party.backend(settings).send_proxy.map(|_| self.header_of(index, &key));
        let identity = wish.identity.clone().unwrap_or_else(|| self.identify(cx, index, &key, settings));
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
        Some(self.install(cx, index, flow, snapshot).ok_or(Unplaced::NoSocket))
    }

    /// A new flow gets a number, and its client is written down if the service remembers its clients.
    pub(super) fn identify(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        key: &FlowKey,
        settings: &Settings,
    ) -> Identity {
        let number = cx.number();
        let service = &self.listeners[index].service;
        let record = admission::record_of(service, settings, key.client.ip(), cx.now);
        record.iter().for_each(|record| record.connected(cx.now));
        Identity { number, record }
    }

    /// There are no descriptors or ports: the flow that was unused the longest makes room, for the next datagram.
    pub(super) fn no_socket(&mut self, cx: &mut Context, index: DatagramListenerKey) -> Unplaced {
        if let Some(oldest) = self.listeners[index].flows.oldest() {
            self.listeners[index].service.live.counters.of(cx.id).flows_evicted.one();
            self.end(index, &oldest);
        }
        Unplaced::NoSocket
    }

    pub(super) fn install(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        flow_socket: FlowSocket,
        snapshot: &Snapshot,
    ) -> Option<FlowSocketKey> {
        let (key, choice) = (flow_socket.key, &flow_socket.choice);
        let (server, live) = (choice.server.id, Arc::clone(&choice.server.live));
        if let Some(record) = &flow_socket.identity.record {
            record.had(&snapshot.pool, &choice.server.name);
        }
        self.end(index, &key);
        let slot = self.flows.insert(flow_socket);
        if cx.registry.register(&self.flows[slot].socket, Token::Flow(slot)).is_err() {
            self.flows.remove(slot);
            return None;
        }
        let listener = &mut self.listeners[index];
        let flow = Flow { server, handle: slot.into_raw(), generation: snapshot.generation };
        let evicted = listener.flows.begin(key, flow, cx.now);
        let counters = listener.service.live.counters.of(cx.id);
        counters.flows.one();
        live.counters.of(cx.id).flows.one();
        listener.service.live.flows.fetch_add(1, Ordering::Relaxed);
        if let Some(evicted) = evicted {
            counters.flows_evicted.one();
            listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
            self.retired.push(socket_of(&evicted));
        }
        snapshot.remember(key.client.ip(), server, cx.now);
        Some(slot)
    }

    /// Ends a flow, if there is one. Its slot is freed only when the present events are done: datagrams of the same batch
    /// may still name it.
    pub(super) fn end(&mut self, index: DatagramListenerKey, key: &FlowKey) {
        let listener = &mut self.listeners[index];
        if let Some(flow) = listener.flows.end(key) {
            listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
            self.retired.push(socket_of(&flow));
        }
    }

    /// Sends the datagrams of one flow; when its server refuses, to the next one.
    pub(super) fn send_to_server(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        slot: FlowSocketKey,
        batch: &mut Batch,
        places: &[usize],
        pools: &Pools<'_>,
    ) {
        let (mut slot, mut left) = (slot, places);
        let mut attempt = Attempt::new();
        loop {
            let Some(flow) = self.flows.get(slot) else { return };
            let service = &self.listeners[index].service;
            let counters = service.live.counters.of(cx.id);
            let sent = batch.send_connected(flow.socket.as_fd(), left);
            let (done, rest) = left.split_at(sent.taken);
            counters.bytes_in.add(batch.bytes(done));
            let of_server = flow.choice.server.live.counters.of(cx.id);
            of_server.datagrams_in.add(done.len() as u64);
            of_server.bytes_in.add(batch.bytes(done));
            if let Some(record) = &flow.identity.record {
                record.moved(batch.bytes(done), 0, cx.now);
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
                    self.note_refusal(cx, snapshot, slot, error);
                    let service = Arc::clone(&self.listeners[index].service);
                    let identity = self.flows.get(slot).map(|flow| flow.identity.clone());
                    let wish = Wish { key, ttl: None, party, identity, settings: pools.settings, snapshot };
                    let Ok(next) = self.begin(cx, index, &wish, &mut attempt) else {
                        return service.live.counters.of(cx.id).drop_refused.add(left.len() as u64);
                    };
                    service.live.counters.of(cx.id).flows_moved.one();
                    slot = next;
                }
            }
        }
    }

    /// The server of a flow refused a datagram: passive failure.
    pub(super) fn note_refusal(
        &mut self,
        cx: &mut Context,
        snapshot: &Snapshot,
        slot: FlowSocketKey,
        error: Errno,
    ) {
        let server = &self.flows[slot].choice.server;
        let failure = count_refusal(cx, server, error);
        self.report_failure(cx, snapshot, server, failure);
    }

    pub(super) fn report_failure(&self, cx: &Context, snapshot: &Snapshot, server: &Entry, failure: Failure) {
        let (pool, target) = (snapshot.pool.clone(), server.target.clone());
        (cx.report)(Report::Failure { pool, server: server.id, target, failure });
    }
}
