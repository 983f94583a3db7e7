//! Operations on all flows of a listener: the end of flows, and listings.

use super::client_class::ClientClass;
use super::flow::socket_of;
use super::leaving::DRAIN_IDLE;
use super::listener::flow_idle;
use super::{DatagramListener, FlowSocket, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use crate::context::unserved::Traffic;
use crate::service::ending::Ending;
use crate::service::failures::note_client;
use crate::service::open::{self, Collector, Open};
use crate::service::{PoolChange, Settings};
use evener_core::Time;
use evener_core::flow::{Flow, FlowKey};
use evener_core::reason::Reason;
use rustix::fd::AsRawFd;

impl Udp {
    /// Ends the flows whose idle timeout has passed.
    pub(super) fn expire(&mut self, cx: &Context, at: DatagramListenerKey) {
        let listener = &mut self.listeners[at];
        let service_idle = flow_idle(&listener.service.settings.load());
        listener.turns.expire(service_idle, cx.now);
        let idle = if listener.leaving.is_some() { DRAIN_IDLE } else { service_idle };
        while let Some((key, flow)) = self.listeners[at].flows.expire(cx.now) {
            let responded_at =
                self.sockets.get(socket_of(&flow)).map_or(Time::ZERO, |flow| flow.responded_at);
            if cx.now.since(responded_at) < idle {
                // The server still sends: the flow stays as if its client had just sent a datagram.
                let _ = self.listeners[at].flows.begin(key, flow, cx.now);
                continue;
            }
            self.listeners[at].service.live.counters.of(cx.id).flows_ended.expired.one();
            self.retire(at, socket_of(&flow));
        }
    }

    /// Ends the flows of clients whose class changed with the access list, and the flows of refused clients if
    /// their pool changed.
    pub(super) fn end_misplaced(&mut self, at: DatagramListenerKey, settings: &Settings, pool: PoolChange) {
        self.end_where(at, |socket, _| {
            let moves = socket.class == ClientClass::Refused && pool == PoolChange::AnotherOfRefused;
            moves || Some(socket.class) != ClientClass::of(socket.key.client.ip(), settings)
        });
    }

    /// Ends every flow of a listener.
    pub(super) fn end_all(&mut self, at: DatagramListenerKey) {
        self.end_where(at, |_, _| true);
    }

    /// Ends the flows of a listener that `is_meant` selects, by the socket and the time of the client's last
    /// datagram.
    pub(super) fn end_where(
        &mut self,
        at: DatagramListenerKey,
        is_meant: impl Fn(&FlowSocket, Option<Time>) -> bool,
    ) {
        let flows = &self.listeners[at].flows;
        let meant = flows.iter().filter(|(key, flow)| {
            self.sockets.get(socket_of(flow)).is_none_or(|socket| is_meant(socket, flows.used(key)))
        });
        let meant: Vec<FlowKey> = meant.map(|(key, _)| *key).collect();
        meant.iter().for_each(|key| self.end(at, key));
        self.reap();
    }

    /// Lists the flows of the requested services.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, listener) in self.listeners.iter() {
            if collector.is_meant(&listener.service.live.name) {
                let flows = listener.flows.iter();
                flows.for_each(|(key, flow)| collector.take(|| self.open(cx, listener, key, flow)));
            }
        }
    }

    fn open(&self, cx: &Context, listener: &DatagramListener, key: &FlowKey, flow: &Flow) -> Open {
        let socket = self.sockets.get(socket_of(flow));
        let settings = listener.service.settings.load();
        let moved = listener.flows.used(key).max(socket.map(|socket| socket.responded_at));
        Open {
            number: cx.global_number(socket.map_or(0, |socket| socket.identity.number)),
            service: listener.service.live.name.clone(),
            client: key.client.ip(),
            client_port: Some(key.client.port()),
            server: socket.map(|socket| {
                open::last_server(&socket.class.backend(&settings).pool.load().pool, &socket.choice.server)
            }),
            stage: "flow",
            idle: cx.now.since(moved.unwrap_or_default()),
            client_socket: None,
            server_socket: socket.map(|socket| socket.socket.as_raw_fd()),
            to_client: 0,
            to_server: 0,
        }
    }

    /// Ends the flow with this number; returns whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &Context, number: u32) -> bool {
        let Some((at, key)) = self.flows_where(|socket| socket.identity.number == number).pop() else {
            return false;
        };
        let service = &self.listeners[at].service;
        service.live.counters.of(cx.id).closed.operator.one();
        note_client(cx, service, Traffic::Datagram, key.client.ip(), Reason::Operator);
        self.end(at, &key);
        true
    }

    /// Ends the flows of a server, and returns their number. The next datagram of a client begins another flow.
    pub(crate) fn end_server(&mut self, cx: &Context, ending: &Ending) -> usize {
        let of_server = self.flows_where(|socket| {
            let server = &socket.choice.server;
            ending.means(&server.live, &server.target)
        });
        for (at, key) in &of_server {
            ending.counter(self.listeners[*at].service.live.counters.of(cx.id)).one();
            self.end(*at, key);
        }
        self.reap();
        of_server.len()
    }

    /// Returns the flows whose sockets `is_meant` selects.
    fn flows_where(&self, is_meant: impl Fn(&FlowSocket) -> bool) -> Vec<(DatagramListenerKey, FlowKey)> {
        let is_meant = |flow: &Flow| self.sockets.get(socket_of(flow)).is_some_and(&is_meant);
        let of_listener = |(at, listener): (DatagramListenerKey, &DatagramListener)| {
            let meant = listener.flows.iter().filter(|(_, flow)| is_meant(flow));
            meant.map(|(key, _)| (at, *key)).collect::<Vec<_>>()
        };
        self.listeners.iter().flat_map(of_listener).collect()
    }
}
