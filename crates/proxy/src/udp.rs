//! The UDP way: a datagram finds its flow, or begins one; a flow has a connected socket to its server; answers go back
//! in batches from the address that the client sent to. When a server refuses or leaves, its flows go on elsewhere at
//! once.

mod flow;
mod header;
mod leave;
mod listener;
mod party;
mod responses;
mod spread;
mod table;

use crate::context::Context;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey, Table, of};
use crate::context::registry::Token;
use crate::io::batch::{Batch, Local};
use crate::service::hops::FlowWatch;
use crate::service::{PoolIs, Service};
use evener_core::Time;
use evener_core::flow::{FlowTable, Turns};
use flow::{FlowSocket, socket_of};
use listener::{DatagramListener, flow_idle, table_size};
use responses::Answers;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After so many batches of one socket others have their turn.
const BATCHES_MAX: usize = 4;
/// A flow of a listener that is to close is over when nothing moved for so long.
const DRAIN_IDLE: Duration = Duration::from_secs(1);
/// The same where its last datagram has its response.
const DRAIN_ANSWERED_IDLE: Duration = Duration::from_millis(100);

/// The datagrams of one worker.
pub(crate) struct Udp {
    listeners: Table<of::DatagramListener, DatagramListener>,
    flows: Table<of::FlowSocket, FlowSocket>,
    inbound: Option<Box<Batch>>,
    answers: Option<Box<Answers>>,
    /// Flows that ended during the present events.
    retired: Vec<FlowSocketKey>,
}

impl Udp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Table::default(),
            flows: Table::default(),
            inbound: None,
            answers: None,
            retired: Vec::new(),
        }
    }

    /// Begins to listen.
    pub(crate) fn listen(
        &mut self,
        cx: &mut Context,
        id: u64,
        service: Arc<Service>,
        socket: OwnedFd,
        local: Local,
    ) {
        let settings = service.settings.load_full();
        let (size, idle) = (table_size(&settings, cx.workers), flow_idle(&settings));
        let flows = FlowTable::new(size, idle, cx.random.bits());
        let turns = Turns::new(size, cx.random.bits());
        let listener = DatagramListener {
            id,
            service,
            socket,
            local,
            flows,
            turns,
            leaving: None,
            watch: FlowWatch::default(),
        };
        let index = self.listeners.insert(listener);
        if cx.registry.register(&self.listeners[index].socket, Token::Datagrams(index)).is_ok() {
            self.on_listener_event(cx, index);
        }
    }

    /// A listener closes as soon as its flows are over.
    pub(crate) fn unlisten(&mut self, cx: &mut Context, id: u64) {
        if let Some(index) = self.find(id) {
            self.leave(cx, index);
            self.close_left(cx);
        }
    }

    /// Every listener closes as soon as its flows are over.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        self.listeners.keys(|_| true).into_iter().for_each(|key| self.leave(cx, key));
        self.close_left(cx);
    }

    /// Gives a listener to another service. Its flows end.
    pub(crate) fn assign(&mut self, cx: &mut Context, id: u64, service: &Arc<Service>) {
        let Some(index) = self.find(id) else { return };
        self.end_all(index);
        self.listeners[index].service = Arc::clone(service);
        self.refresh(cx, &service.name, PoolIs::Same);
    }

    /// Gives up a listener, whose socket another component goes on with. Its flows end.
    pub(crate) fn release(&mut self, cx: &mut Context, id: u64) -> Option<(OwnedFd, Local)> {
        let index = self.find(id)?;
        self.end_all(index);
        self.flush_answers(cx);
        let DatagramListener { socket, local, .. } = self.listeners.remove(index)?;
        cx.registry.deregister(&socket);
        Some((socket, local))
    }

    /// Takes on the new settings of a service.
    pub(crate) fn refresh(&mut self, cx: &mut Context, service: &str, pool: PoolIs) {
        for index in self.listeners.keys(|listener| &*listener.service.name == service) {
            if pool == PoolIs::Another {
                self.end_all(index);
            }
            let settings = self.listeners[index].service.settings.load_full();
            self.end_astray(index, &settings, pool);
            let listener = &mut self.listeners[index];
            if listener.leaving.is_none() {
                listener.flows.set_idle(flow_idle(&settings));
            }
            listener.turns.resize(table_size(&settings, cx.workers));
            let ended = listener.flows.resize(table_size(&settings, cx.workers));
            listener.service.live.flows.fetch_sub(ended.len() as u32, Ordering::Relaxed);
            self.retired.extend(ended.iter().map(socket_of));
        }
    }

    /// When a sweep has something to do next; `None` for never.
    pub(crate) fn next_sweep(&self) -> Option<Time> {
        if self.listeners.iter().any(|(_, listener)| listener.leaving.is_some()) {
            return Some(Time::ZERO);
        }
        self.listeners.iter().filter_map(|(_, listener)| listener.flows.next_expiry()).min()
    }

    /// Ends the flows that were unused for too long, and closes the listeners whose flows are over.
    pub(crate) fn sweep(&mut self, cx: &mut Context) {
        let is_due =
            |listener: &DatagramListener| listener.flows.next_expiry().is_some_and(|at| at <= cx.now);
        self.listeners.keys(is_due).into_iter().for_each(|key| self.expire(cx, key));
        self.close_left(cx);
    }

    fn find(&self, id: u64) -> Option<DatagramListenerKey> {
        self.listeners.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
    }

    /// Closes the sockets of flows that ended.
    pub(crate) fn reap(&mut self) {
        while let Some(slot) = self.retired.pop() {
            self.flows.remove(slot);
        }
    }
}
