//! The flows of a listener as a whole: which of them end, and what others are told of them.

use super::Udp;
use super::party::Party;
use super::{DRAIN_ANSWERED_IDLE, DRAIN_IDLE, DatagramListener, end, flow_idle};
use crate::context::Context;
use crate::service::ending::Ending;
use crate::service::open::{self, Collector, Open};
use crate::service::{PoolIs, Settings};
use crate::worker::Worker;
use evener_core::Time;
use evener_core::flow::{Flow, FlowKey};
use rustix::fd::AsRawFd;
use std::sync::atomic::Ordering;

/// Ends the flows that were unused for too long.
pub(crate) fn expire(worker: &mut Worker, index: usize) {
    let listener = &mut worker.udp.listeners[index];
    let idle = flow_idle(&listener.service.settings.load());
    listener.turns.expire(idle, worker.cx.now);
    while let Some((key, flow)) = worker.udp.listeners[index].flows.expire(worker.cx.now) {
        let listener = &mut worker.udp.listeners[index];
        let idle = if listener.leaving.is_some() {
            DRAIN_IDLE
        } else {
            flow_idle(&listener.service.settings.load())
        };
        let answered_at =
            worker.udp.flows.get(flow.slot as usize).map_or(Time::ZERO, |flow| flow.answered_at);
        if worker.cx.now.since(answered_at) < idle {
            // Its server still speaks: it stays, as if its client had sent at that moment.
            let _ = listener.flows.begin(key, flow, worker.cx.now);
            continue;
        }
        listener.service.live.counters.of(worker.cx.id).flows_expired.one();
        listener.service.live.flows.fetch_sub(1, Ordering::Relaxed);
        worker.udp.retired.push(flow.slot as usize);
    }
}

/// Ends the flows of a listener that is to close whose server responded to the last datagram and is quiet since.
pub(super) fn end_answered(worker: &mut Worker, index: usize) {
    let listener = &worker.udp.listeners[index];
    let is_answered = |key: &FlowKey, flow: &Flow| {
        let answered_at = worker.udp.flows.get(flow.slot as usize).map(|socket| socket.answered_at);
        let quiet = |at: &Time| worker.cx.now.since(*at) >= DRAIN_ANSWERED_IDLE;
        answered_at.filter(quiet) > listener.flows.used(key)
    };
    let flows = listener.flows.iter();
    let answered: Vec<FlowKey> =
        flows.filter(|(key, flow)| is_answered(key, flow)).map(|(key, _)| *key).collect();
    answered.iter().for_each(|key| end(worker, index, key));
    worker.udp.bury();
}

/// Ends the flows that are not where their clients belong now: the access list says something else of them, or those
/// that it refuses have another pool.
pub(crate) fn end_astray(worker: &mut Worker, index: usize, settings: &Settings, pool: PoolIs) {
    let is_astray = |key: &FlowKey, flow: &Flow| {
        let party = worker.udp.flows.get(flow.slot as usize).map(|socket| socket.party);
        let moves = party == Some(Party::Refused) && pool == PoolIs::AnotherOfRefused;
        moves || party != Party::of(key.client.ip(), settings)
    };
    let flows = worker.udp.listeners[index].flows.iter();
    let astray: Vec<FlowKey> =
        flows.filter(|(key, flow)| is_astray(key, flow)).map(|(key, _)| *key).collect();
    astray.iter().for_each(|key| end(worker, index, key));
    worker.udp.bury();
}

impl Udp {
    /// Lists the flows that a question asks for.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, listener) in &self.listeners {
            if collector.is_meant(&listener.service.name) {
                listener
                    .flows
                    .iter()
                    .for_each(|(key, flow)| collector.take(|| self.open(cx, listener, key, flow)));
            }
        }
    }

    fn open(&self, cx: &Context, listener: &DatagramListener, key: &FlowKey, flow: &Flow) -> Open {
        let socket = self.flows.get(flow.slot as usize);
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

/// Ends the flow with this number; whether there was one.
pub(crate) fn close(worker: &mut Worker, number: u32) -> bool {
    let is_it = |flow: &Flow| {
        worker.udp.flows.get(flow.slot as usize).is_some_and(|socket| socket.identity.number == number)
    };
    let mut listeners = worker.udp.listeners.iter();
    let found = listeners.find_map(|(index, listener)| {
        listener.flows.iter().find(|(_, flow)| is_it(flow)).map(|(key, _)| (index, *key))
    });
    let Some((index, key)) = found else { return false };
    worker.udp.listeners[index].service.live.counters.of(worker.cx.id).closed.one();
    end(worker, index, &key);
    true
}

/// Ends the flows of a server; returns how many there were. The next datagram of a client begins another one.
pub(crate) fn end_server(worker: &mut Worker, ending: &Ending) -> usize {
    let is_meant = |flow: &Flow| {
        let socket = worker.udp.flows.get(flow.slot as usize);
        socket.is_some_and(|socket| {
            let server = &socket.choice.server;
            ending.means(&server.live, &server.target)
        })
    };
    let of_listener = |(index, listener): (usize, &DatagramListener)| {
        let meant = listener.flows.iter().filter(|(_, flow)| is_meant(flow));
        meant.map(|(key, _)| (index, *key)).collect::<Vec<_>>()
    };
    let meant: Vec<(usize, FlowKey)> = worker.udp.listeners.iter().flat_map(of_listener).collect();
    for (index, key) in &meant {
        let service = &worker.udp.listeners[*index].service;
        ending.counter(service.live.counters.of(worker.cx.id)).one();
        end(worker, *index, key);
    }
    worker.udp.bury();
    meant.len()
}

/// Ends every flow of a listener that goes.
pub(crate) fn end_all(worker: &mut Worker, index: usize) {
    let keys: Vec<FlowKey> = worker.udp.listeners[index].flows.iter().map(|(key, _)| *key).collect();
    keys.iter().for_each(|key| end(worker, index, key));
    worker.udp.bury();
}
