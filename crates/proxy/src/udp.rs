//! Datagram services. A datagram finds its flow, or begins one. A flow has a connected socket to its server;
//! responses go back in batches, from the address that the client sent to. When a server refuses datagrams or
//! is removed, its flows continue immediately at another server.
//!
//! The flow table of a listener belongs to the core, which decides the end of flows. This component owns the
//! sockets.

mod client_class;
mod flow;
mod header;
mod leaving;
mod listener;
mod passing;
mod responses;
mod spread;
mod succession;
mod table;
#[cfg(test)]
mod tests;

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey, Table, of};
use crate::context::registry::Token;
use crate::io::batch::{Batch, Local};
use crate::service::access_entry::AccessEntry;
use crate::service::hops::FlowWatch;
use crate::service::succession::PassedFlow;
use crate::service::{PoolChange, Service, Settings};
use client_class::ClientClass;
use evener_core::Time;
use evener_core::clients::ClientRecord;
use evener_core::flow::{FlowKey, FlowTable, Turns};
use evener_core::snapshot::{Choice, Snapshot};
use flow::socket_of;
use listener::{flow_idle, table_size};
use responses::Responses;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Number of batches that are read from one socket before other work continues.
const BATCHES_MAX: usize = 4;

/// The datagram services of one worker, except DNS.
pub(crate) struct Udp {
    listeners: Table<of::DatagramListener, DatagramListener>,
    sockets: Table<of::FlowSocket, FlowSocket>,
    /// Buffers for datagrams of clients. `None` before the first event, and while a batch is forwarded.
    inbound: Option<Box<Batch>>,
    /// Responses that wait to be sent to clients.
    responses: Option<Box<Responses>>,
    /// Sockets of flows that ended while the present events were handled.
    retired: Vec<FlowSocketKey>,
}

/// A listener of a worker for datagrams.
#[derive(Debug)]
struct DatagramListener {
    id: u64,
    service: Arc<Service>,
    socket: OwnedFd,
    local: Local,
    flows: FlowTable,
    /// The present server of each client whose datagrams are spread.
    turns: Turns,
    /// Time since which the listener has been waiting for the end of its flows before it closes; `None` if it
    /// does not close.
    leaving: Option<Time>,
    /// The next instance is about to take the socket over, or has taken it: datagrams are left to it.
    suspended: bool,
    watch: FlowWatch,
}

/// A flow's socket to its server.
#[derive(Debug)]
struct FlowSocket {
    socket: OwnedFd,
    listener: DatagramListenerKey,
    key: FlowKey,
    choice: Choice,
    /// The PROXY header with which each datagram to the server begins.
    header: Option<Box<[u8]>>,
    identity: Identity,
    class: ClientClass,
    begun_at: Time,
    /// The time of the last response.
    responded_at: Time,
    /// The entry of the flow in the log of the service, if it has one.
    entry: Option<Box<AccessEntry>>,
    /// The next instance has a copy of the socket, and reads it or will soon.
    is_lent: bool,
    _descriptor: Unit,
}

/// The part of a flow that stays when it continues at another server.
#[derive(Clone, Debug)]
struct Identity {
    /// Unique within the worker.
    number: u32,
    /// The record of the client, if the service remembers clients.
    record: Option<Arc<ClientRecord>>,
}

/// A flow that is to begin.
struct NewFlow<'a> {
    key: FlowKey,
    /// The TTL of the first datagram, if TTLs are watched.
    ttl: Option<u8>,
    class: ClientClass,
    /// The identity of a flow that continues at another server.
    identity: Option<Identity>,
    settings: &'a Settings,
    snapshot: &'a Snapshot,
}

impl Udp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Table::default(),
            sockets: Table::default(),
            inbound: None,
            responses: None,
            retired: Vec::new(),
        }
    }

    /// Begins to listen, and continues the flows of the previous instance.
    pub(crate) fn listen(
        &mut self,
        cx: &mut Context,
        id: u64,
        service: Arc<Service>,
        (socket, local): (OwnedFd, Local),
        flows_before: Vec<PassedFlow>,
    ) {
        let settings = service.settings.load_full();
        let (size, idle) = (table_size(&settings, cx), flow_idle(&settings));
        let flows = FlowTable::new(size, idle, cx.random.bits());
        let turns = Turns::new(size, cx.random.bits());
        let watch = FlowWatch::default();
        let listener = DatagramListener {
            id,
            service,
            socket,
            local,
            flows,
            turns,
            leaving: None,
            suspended: false,
            watch,
        };
        let at = self.listeners.insert(listener);
        self.adopt_flows(cx, at, flows_before);
        if cx.registry.register(&self.listeners[at].socket, Token::Datagrams(at)).is_ok() {
            self.on_listener_event(cx, at);
        }
    }

    /// Makes a listener close as soon as its flows have ended.
    pub(crate) fn unlisten(&mut self, cx: &mut Context, id: u64) {
        for at in self.listeners.keys(|listener| listener.id == id) {
            self.listeners[at].leave(cx.now);
        }
        self.close_left(cx);
    }

    /// Makes every listener close as soon as its flows have ended.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        self.listeners.keys(|listener| listener.suspended).into_iter().for_each(|at| self.end_lent(at));
        self.listeners.iter_mut().for_each(|(_, listener)| listener.leave(cx.now));
        self.close_left(cx);
    }

    /// Assigns a listener to another service. Its flows end.
    pub(crate) fn assign(&mut self, cx: &mut Context, id: u64, service: &Arc<Service>) {
        for at in self.listeners.keys(|listener| listener.id == id) {
            self.end_all(at);
            self.listeners[at].service = Arc::clone(service);
        }
        self.refresh(cx, &service.live.name, PoolChange::Same);
    }

    /// Removes a listener, and returns its socket for another component. Its flows end.
    pub(crate) fn release(&mut self, cx: &mut Context, id: u64) -> Option<(OwnedFd, Local)> {
        let at = self.find(id)?;
        self.end_all(at);
        self.flush(cx);
        let DatagramListener { socket, local, .. } = self.listeners.remove(at)?;
        cx.registry.deregister(&socket);
        Some((socket, local))
    }

    /// Applies the new settings of a service.
    pub(crate) fn refresh(&mut self, cx: &mut Context, service: &str, pool: PoolChange) {
        for at in self.listeners.keys(|listener| &*listener.service.live.name == service) {
            if pool == PoolChange::Another {
                self.end_all(at);
            }
            let settings = self.listeners[at].service.settings.load_full();
            self.end_misplaced(at, &settings, pool);
            let ended = self.listeners[at].resize(&settings, cx);
            self.retired.extend(ended.iter().map(socket_of));
        }
    }

    /// Returns the time of the next sweep with work; `None` without flows.
    pub(crate) fn next_sweep(&self) -> Option<Time> {
        if self.listeners.iter().any(|(_, listener)| listener.leaving.is_some()) {
            return Some(Time::ZERO);
        }
        self.listeners.iter().filter_map(|(_, listener)| listener.flows.next_expiry()).min()
    }

    /// Ends the flows whose idle timeout has passed, and closes leaving listeners without flows.
    pub(crate) fn sweep(&mut self, cx: &mut Context) {
        let is_due =
            |listener: &DatagramListener| listener.flows.next_expiry().is_some_and(|at| at <= cx.now);
        self.listeners.keys(is_due).into_iter().for_each(|at| self.expire(cx, at));
        self.close_left(cx);
    }

    /// Closes the sockets of flows that ended.
    pub(crate) fn reap(&mut self) {
        while let Some(socket) = self.retired.pop() {
            self.sockets.remove(socket);
        }
    }

    fn find(&self, id: u64) -> Option<DatagramListenerKey> {
        self.listeners.iter().find(|(_, listener)| listener.id == id).map(|(at, _)| at)
    }

    /// Counts a flow that left the table, and closes its socket after the present events. Datagrams of the same
    /// batch may still be sent through it.
    fn retire(&mut self, at: DatagramListenerKey, socket: FlowSocketKey) {
        self.listeners[at].service.live.flows.fetch_sub(1, Ordering::Relaxed);
        self.retired.push(socket);
    }
}
