//! The flows of a listener as a whole: which of them end, and what others are told of them.

use super::Udp;
use super::flow::socket_of;
use super::party::Party;
use super::{DRAIN_ANSWERED_IDLE, DRAIN_IDLE, DatagramListener, flow_idle};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use crate::service::ending::Ending;
use crate::service::open::{self, Collector, Open};
use crate::service::{PoolIs, Settings};
use evener_core::Time;
use evener_core::flow::{Flow, FlowKey};
use rustix::fd::AsRawFd;
use std::sync::atomic::Ordering;

impl Udp {
    /// Ends the flows that were unused for too long.
    pub(crate) fn expire(&mut self, cx: &mut Context, index: DatagramListenerKey) {
        let listener = &mut self.listeners[index];
        let idle = flow_idle(&listener.service.settings.load());
        listener.turns.expire(idle, cx.now);
        while let Some((key, flow)) = self.listeners[index].flows.expire(cx.now) {
            let listener = &mut self.listeners[index];
            let idle = if listener.leaving.is_some() {
                DRAIN_IDLE
            } else {
                flow_idle(&listener.service.settings.load())
            };
            let answered_at = self.flows.get(socket_of(&flow)).map_or(Time::ZERO, |flow| flow.answered_at);
            if cx.now.since(answered_at) < idle {
                // Its server still speaks: it stays, as if its client had sent at that moment.
                let _ = listener.flows.begin(key, flow, cx.now);
                continue;
            }
            listener.service.live.counters.of(cx.id).flows_expired.one();
            listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
            self.retired.push(socket_of(&flow));
        }
    }

    /// Ends the flows of a listener that is to close whose server responded to the last datagram and is quiet since.
    pub(super) fn end_answered(&mut self, cx: &mut Context, index: DatagramListenerKey) {
        let listener = &self.listeners[index];
        let is_answered = |key: &FlowKey, flow: &Flow| {
            let answered_at = self.flows.get(socket_of(flow)).map(|socket| socket.answered_at);
            let quiet = |at: &Time| cx.now.since(*at) >= DRAIN_ANSWERED_IDLE;
            answered_at.filter(quiet) > listener.flows.used(key)
        };
        let flows = listener.flows.iter();
        let answered: Vec<FlowKey> =
            flows.filter(|(key, flow)| is_answered(key, flow)).map(|(key, _)| *key).collect();
        answered.iter().for_each(|key| self.end(index, key));
        self.reap();
    }

    /// Ends the flows that are not where their clients belong now: the access list says something else of them, or those
    /// that it refuses have another pool.
    pub(crate) fn end_astray(&mut self, index: DatagramListenerKey, settings: &Settings, pool: PoolIs) {
        let is_astray = |key: &FlowKey, flow: &Flow| {
            let party = self.flows.get(socket_of(flow)).map(|socket| socket.party);
            let moves = party == Some(Party::Refused) && pool == PoolIs::AnotherOfRefused;
            moves || party != Party::of(key.client.ip(), settings)
        };
        let flows = self.listeners[index].flows.iter();
        let astray: Vec<FlowKey> =
            flows.filter(|(key, flow)| is_astray(key, flow)).map(|(key, _)| *key).collect();
        astray.iter().for_each(|key| self.end(index, key));
        self.reap();
    }
}

impl Udp {
    /// Lists the flows that a question asks for.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, listener) in self.listeners.iter() {
            if collector.is_meant(&listener.service.name) {
                listener
                    .flows
                    .iter()
                    .for_each(|(key, flow)| collector.take(|| self.open(cx, listener, key, flow)));
            }
        }
    }

    fn open(&self, cx: &Context, listener: &DatagramListener, key: &FlowKey, flow: &Flow) -> Open {
        let socket = self.flows.get(socket_of(flow));
        let settings = listener.service.settings.load();
        let moved = listener.flows.used(key).max(socket.map(|socket| socket.answered_at));
        Open {
            number: open::number(cx, socket.map_or(0, |socket| socket.identity.number)),
            service: listener.service.name.clone(),
            client: key.client.ip(),
            client_port: Some(key.client.port()),
            server: socket.map(|socket| {
                open::had(&socket.party.backend(&settings).pool.load().pool, &socket.choice.server)
            }),
            stage: "flow",
            idle: cx.now.since(moved.unwrap_or_default()),
            client_socket: None,
            server_socket: socket.map(|socket| socket.socket.as_raw_fd()),
            to_client: 0,
            to_server: 0,
        }
    }
}

impl Udp {
    /// Ends the flow with this number; whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let is_it = |flow: &Flow| {
            self.flows.get(socket_of(flow)).is_some_and(|socket| socket.identity.number == number)
        };
        let found = self.listeners.iter().find_map(|(index, listener)| {
            listener.flows.iter().find(|(_, flow)| is_it(flow)).map(|(key, _)| (index, *key))
        });
        let Some((index, key)) = found else { return false };
        self.listeners[index].service.live.counters.of(cx.id).closed.one();
        self.end(index, &key);
        true
    }

    /// Ends the flows of a server; returns how many there were. The next datagram of a client begins another one.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let is_meant = |flow: &Flow| {
            let socket = self.flows.get(socket_of(flow));
            socket.is_some_and(|socket| {
                let server = &socket.choice.server;
                ending.means(&server.live, &server.target)
            })
        };
        let of_listener = |(index, listener): (DatagramListenerKey, &DatagramListener)| {
            let meant = listener.flows.iter().filter(|(_, flow)| is_meant(flow));
            meant.map(|(key, _)| (index, *key)).collect::<Vec<_>>()
        };
        let meant: Vec<(DatagramListenerKey, FlowKey)> =
            self.listeners.iter().flat_map(of_listener).collect();
        for (index, key) in &meant {
            let service = &self.listeners[*index].service;
            ending.counter(service.live.counters.of(cx.id)).one();
            self.end(*index, key);
        }
        self.reap();
        meant.len()
    }

    /// Ends every flow of a listener that goes.
    pub(crate) fn end_all(&mut self, index: DatagramListenerKey) {
        let keys: Vec<FlowKey> = self.listeners[index].flows.iter().map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.end(index, key));
        self.reap();
    }
}
