//! Listeners for datagrams: their services, and what clients send to them.

use super::party::Pools;
use super::{BATCHES_MAX, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use crate::context::ready::Ready;
use crate::io::batch::{BATCH, Batch, Local, Names};
use crate::service::hops::{FlowWatch, HOPS_MAX, note_loop};
use crate::service::{Service, Settings};
use evener_core::Time;
use evener_core::flow::{FlowKey, FlowTable, Turns, Via};
use evener_core::wire::proxy::{self, Ends};
use rustix::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A listener of a worker for datagrams.
#[derive(Debug)]
pub(super) struct DatagramListener {
    pub(super) id: u64,
    pub(super) service: Arc<Service>,
    pub(super) socket: OwnedFd,
    pub(super) local: Local,
    pub(super) flows: FlowTable,
    /// Of a service that spreads the datagrams of a client.
    pub(super) turns: Turns,
    /// Since when it is to close once its flows are over.
    pub(super) leaving: Option<Time>,
    pub(super) watch: FlowWatch,
}

/// How many flows a worker's table has of the service's.
pub(super) fn table_size(settings: &Settings, workers: usize) -> usize {
    (settings.options.flows_max as usize).div_ceil(workers.max(1)).max(1)
}

/// How long a flow lives unused.
pub(super) fn flow_idle(settings: &Settings) -> Duration {
    settings.options.idle_timeout.unwrap_or(Duration::MAX)
}

impl Udp {
    /// Clients sent something.
    pub(crate) fn on_listener_event(&mut self, cx: &mut Context, index: DatagramListenerKey) {
        let mut batch = self.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
        let emptied = (0..BATCHES_MAX).any(|_| {
            let Some(listener) = self.listeners.get(index) else { return true };
            batch.wants_ttl = listener.watch.counts;
            match batch.receive(listener.socket.as_fd(), 0, Names::Wanted, listener.local) {
                Ok(count) => {
                    self.forward(cx, index, &mut batch, count);
                    count < BATCH
                }
                // A listener's socket is not connected, so this concerns no particular flow.
                Err(_) => false,
            }
        });
        if !emptied {
            cx.ready.push(Ready::Datagrams(index));
        }
        batch.wants_ttl = false;
        self.inbound = Some(batch);
    }

    /// Sends a batch on, all datagrams of one flow together.
    pub(super) fn forward(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        batch: &mut Batch,
        count: usize,
    ) {
        if count == 0 {
            return;
        }
        let service = Arc::clone(&self.listeners[index].service);
        let settings = service.settings.load_full();
        let pools = Pools::load(&settings);
        let mut slots = [None; BATCH];
        for (at, slot) in slots.iter_mut().enumerate().take(count) {
            let Some(key) = self.key_of(cx, index, batch, at, &settings) else { continue };
            let ttl = if batch.wants_ttl { batch.ttl(at) } else { None };
            let flow = match settings.options.spread {
                None => self.flow_of(cx, index, (key, ttl), &pools),
                Some(datagrams) => self.spread_flow_of(cx, index, (key, ttl), datagrams, &pools),
            };
            *slot = flow;
        }
        service.live.counters.of(cx.id).datagrams_in.add(count as u64);
        let mut places = [0; BATCH];
        for first in 0..count {
            let Some(slot) = slots[first].take() else { continue };
            places[0] = first;
            let mut length = 1;
            for (at, other) in slots.iter_mut().enumerate().take(count).skip(first + 1) {
                if *other == Some(slot) {
                    *other = None;
                    places[length] = at;
                    length += 1;
                }
            }
            self.introduce(slot, batch, &places[..length]);
            self.send_to_server(cx, index, slot, batch, &places[..length], &pools);
        }
    }

    /// Whose datagram `at` is. What stands before us tells of its client in each one; `None` when it does not.
    pub(super) fn key_of(
        &self,
        cx: &Context,
        index: DatagramListenerKey,
        batch: &mut Batch,
        at: usize,
        settings: &Settings,
    ) -> Option<FlowKey> {
        let listener = &self.listeners[index];
        let local = if listener.local == Local::Each { batch.local(at) } else { None };
        let sender = batch.sender(at)?;
        if listener.local == Local::Each && batch.is_for_all(at) && !cx.takes_broadcasts_of(sender) {
            return None;
        }
        let own = FlowKey { client: sender, local, via: None, lane: None };
        if !settings.is_proxy(sender.ip()) {
            return Some(own);
        }
        let Ok(Some(header)) = proxy::parse(batch.bytes_of(at)) else {
            listener.service.live.counters.of(cx.id).drop_greeting.one();
            return None;
        };
        let (length, ends, hops) = (header.length, header.ends, header.extras.hops);
        if hops >= HOPS_MAX {
            note_loop(cx, &listener.service);
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
}
