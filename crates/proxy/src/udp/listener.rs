//! Listeners for datagrams, and the datagrams of clients: each is assigned to its client, then to a flow, and
//! the datagrams of one flow are sent together.

use super::client_class::Pools;
use super::{BATCHES_MAX, DatagramListener, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use crate::context::ready::Ready;
use crate::context::unserved::Traffic;
use crate::io::batch::{BATCH, Batch, Local, Senders, Ttls};
use crate::service::Settings;
use crate::service::failures::note_client;
use crate::service::hops::{HOPS_MAX, note_loop};
use evener_core::flow::{Flow, FlowKey, Via};
use evener_core::reason::Reason;
use evener_core::wire::proxy::{self, Ends};
use rustix::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl DatagramListener {
    /// Applies the sizes and times of new settings; returns the flows that no longer fit.
    pub(super) fn resize(&mut self, settings: &Settings, cx: &Context) -> Vec<Flow> {
        if self.leaving.is_none() {
            self.flows.set_idle(flow_idle(settings));
        }
        let size = table_size(settings, cx);
        self.turns.resize(size);
        let ended = self.flows.resize(size);
        self.service.live.flows.fetch_sub(ended.len() as u32, Ordering::Relaxed);
        ended
    }

    /// Returns the client of datagram `nth` of a batch. A proxy of the service reports the client in each
    /// datagram, in a header that is removed here. `None` when the datagram is dropped.
    fn client_of(&self, cx: &Context, batch: &mut Batch, nth: usize, settings: &Settings) -> Option<FlowKey> {
        let local = if self.local == Local::Each { batch.local(nth) } else { None };
        let sender = batch.sender(nth)?;
        if self.local == Local::Each
            && batch.is_broadcast_or_multicast(nth)
            && !cx.handles_broadcasts_of(sender)
        {
            return None;
        }
        let direct = FlowKey { client: sender, local, via: None, lane: None };
        if !settings.is_proxy(sender.ip()) {
            return Some(direct);
        }
        let Ok(Some(header)) = proxy::parse(batch.bytes_of(nth)) else {
            self.service.live.counters.of(cx.id).drops.preamble.one();
            note_client(cx, &self.service, Traffic::Datagram, sender.ip(), Reason::ProxyHeaderInvalid);
            return None;
        };
        let (length, ends, hops) = (header.length, header.ends, header.extras.hops);
        if hops >= HOPS_MAX {
            note_loop(cx, &self.service);
            return None;
        }
        batch.strip(nth, length);
        Some(match ends {
            None => direct,
            Some(Ends { source, destination }) => {
                FlowKey { client: source, via: Some(Via { proxy: sender, destination, hops }), ..direct }
            }
        })
    }
}

/// Returns the share of one worker in the flows of its service.
pub(super) fn table_size(settings: &Settings, cx: &Context) -> usize {
    cx.share(settings.options.flows_max).max(1) as usize
}

/// Returns the idle timeout of flows.
pub(super) fn flow_idle(settings: &Settings) -> Duration {
    settings.options.idle_timeout.unwrap_or(Duration::MAX)
}

impl Udp {
    /// Receives and forwards datagrams of clients, up to [`BATCHES_MAX`] batches.
    pub(crate) fn on_listener_event(&mut self, cx: &mut Context, at: DatagramListenerKey) {
        let mut batch = self.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
        let is_drained = (0..BATCHES_MAX).any(|_| {
            let Some(listener) = self.listeners.get(at).filter(|listener| !listener.suspended) else {
                return true;
            };
            batch.set_ttls(if listener.watch.reads_ttls() { Ttls::Received } else { Ttls::Ignored });
            match batch.receive(listener.socket.as_fd(), 0, Senders::Received, listener.local) {
                Ok(count) => {
                    self.forward(cx, at, &mut batch, count);
                    count < BATCH
                }
                // A listener's socket is not connected, so the error does not concern its flows.
                Err(_) => false,
            }
        });
        if !is_drained {
            cx.ready.push(Ready::Datagrams(at));
        }
        self.inbound = Some(batch);
    }

    /// Forwards a batch, all datagrams of one flow together.
    fn forward(&mut self, cx: &mut Context, at: DatagramListenerKey, batch: &mut Batch, count: usize) {
        if count == 0 {
            return;
        }
        let service = Arc::clone(&self.listeners[at].service);
        let settings = service.settings.load_full();
        let pools = Pools::load(&settings);
        let mut sockets = [None; BATCH];
        for (index, socket) in sockets.iter_mut().enumerate().take(count) {
            let client = self.listeners[at].client_of(cx, batch, index, &settings);
            let Some(key) = client else { continue };
            let ttl = batch.ttl(index);
            *socket = match settings.options.spread {
                None => self.flow_of(cx, at, (key, ttl), &pools),
                Some(datagrams) => self.spread(cx, at, (key, ttl), datagrams, &pools),
            };
        }
        service.live.counters.of(cx.id).datagrams_in.add(count as u64);
        let mut indices = [0; BATCH];
        for first in 0..count {
            let Some(socket) = sockets[first].take() else { continue };
            indices[0] = first;
            let mut length = 1;
            for (index, other) in sockets.iter_mut().enumerate().take(count).skip(first + 1) {
                if *other == Some(socket) {
                    *other = None;
                    indices[length] = index;
                    length += 1;
                }
            }
            self.introduce(socket, batch, &indices[..length]);
            self.send_to_server(cx, at, socket, batch, &indices[..length], &pools);
        }
    }
}
