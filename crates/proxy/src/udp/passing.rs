//! Flows that pass to the next instance with their sockets. Clients keep their servers, and responses that are on their
//! way arrive.

use super::client_class::ClientClass;
use super::flow::socket_of;
use super::{FlowSocket, Identity, Udp};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{DatagramListenerKey, Handle};
use crate::context::registry::Token;
use crate::service::access_entry::AccessEntry;
use crate::service::admission;
use crate::service::succession::{PassedFlow, Suspension};
use evener_core::flow::{Flow, FlowKey};
use evener_core::request_log::RequestText;
use evener_core::snapshot::{Choice, Why};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Udp {
    /// Leaves the flows of a listener to the next instance. Their sockets are read no more.
    pub(super) fn lend_flows(&mut self, cx: &Context, at: DatagramListenerKey, suspension: &Suspension) {
        self.flush(cx);
        let listener = &self.listeners[at];
        let Ok(number) = crate::socket_number(&listener.socket) else { return };
        for (key, flow) in listener.flows.iter() {
            let Some(flow) = self.sockets.get_mut(socket_of(flow)) else { continue };
            let Ok(socket) = flow.socket.try_clone() else { return };
            let server = &flow.choice.server;
            let passed = PassedFlow {
                listener: number,
                key: *key,
                server: Arc::clone(&server.name),
                target: server.target.clone(),
                begun_at: flow.begun_at,
                used_at: listener.flows.used(key).unwrap_or(flow.begun_at),
                responded_at: flow.responded_at,
                socket,
            };
            if !suspension.add(passed) {
                return;
            }
            flow.is_lent = true;
            cx.registry.deregister(&flow.socket);
        }
    }

    /// Takes the flows back that were lent to the next instance, because it failed.
    pub(super) fn take_flows_back(&mut self, cx: &mut Context) {
        for key in self.sockets.keys(|flow| flow.is_lent) {
            self.sockets[key].is_lent = false;
            if cx.registry.register(&self.sockets[key].socket, Token::Flow(key)).is_ok() {
                self.on_flow_event(cx, key);
            }
        }
    }

    /// Forgets the flows that the next instance continues.
    pub(super) fn end_lent(&mut self, at: DatagramListenerKey) {
        self.end_where(at, |flow, _| flow.is_lent);
    }

    /// Continues the flows of the previous instance at a listener that has not begun. A flow whose server the pool
    /// no longer has ends.
    pub(super) fn adopt_flows(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        mut flows: Vec<PassedFlow>,
    ) {
        // The table orders flows by their last use.
        flows.sort_by_key(|flow| flow.used_at);
        for flow in flows {
            self.adopt_flow(cx, at, flow);
        }
    }

    fn adopt_flow(&mut self, cx: &mut Context, at: DatagramListenerKey, passed: PassedFlow) -> Option<()> {
        let service = Arc::clone(&self.listeners[at].service);
        let settings = service.settings.load_full();
        let client = passed.key.client.ip();
        let class = ClientClass::of(client, &settings)?;
        let backend = class.backend(&settings);
        let snapshot = backend.pool.load_full();
        let mut servers = snapshot.servers().iter();
        let server = servers.find(|one| one.name == passed.server && one.target == passed.target)?;
        let unit = Unit::take().filter(|_| snapshot.keeps_flow(server.id, &server.target, client))?;
        let lease = server.live.occupancy.enter(u32::MAX)?;
        let key = FlowKey { lane: passed.key.lane.map(|_| server.id), ..passed.key };
        let record = admission::record_of(&service, &settings, client, cx.now);
        let flow = FlowSocket {
            socket: passed.socket,
            listener: at,
            key,
            choice: Choice { server: Arc::clone(server), lease, why: Why::Sticky, is_retry: false },
            header: backend.send_proxy.map(|_| self.listeners[at].header_of(&key)),
            identity: Identity { number: cx.number(), record },
            class,
            begun_at: passed.begun_at,
            responded_at: passed.responded_at,
            entry: AccessEntry::begin(cx, &service, &settings, key.client, RequestText::default),
            is_lent: false,
            _descriptor: unit,
        };
        let socket = self.sockets.insert(flow);
        if cx.registry.register(&self.sockets[socket].socket, Token::Flow(socket)).is_err() {
            self.sockets.remove(socket);
            return None;
        }
        let flow = Flow { server: server.id, handle: socket.into_raw(), generation: snapshot.generation };
        service.live.flows.fetch_add(1, Ordering::Relaxed);
        let evicted = self.listeners[at].flows.begin(key, flow, passed.used_at.min(cx.now));
        evicted.into_iter().for_each(|evicted| self.retire(at, socket_of(&evicted)));
        Some(())
    }
}
