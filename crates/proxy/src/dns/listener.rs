//! Listeners for queries over UDP.

pub(super) mod responses;
mod succession;

use crate::context::Context;
use crate::context::keys::{DnsListenerKey, DnsServiceKey};
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::unserved::Traffic;
use crate::dns::query::{self};
use crate::dns::{Dns, Origin, Party, Requester, ReturnPath};
use crate::io::batch::{BATCH, Batch, Local, Senders};
use crate::service::admission;
use crate::service::failures::note_client;
use crate::service::hops::{HOPS_MAX, note_loop};
use crate::service::preamble;
use crate::service::{Refusal, Service, Settings};
use evener_core::Time;
use evener_core::reason::Reason;
use evener_core::wire::proxy::{self, Ends};
use rustix::fd::{AsFd, OwnedFd};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of batches before other work continues.
const BATCHES_MAX: usize = 4;

/// A listener for datagrams.
pub(super) struct Listener {
    id: u64,
    service: DnsServiceKey,
    socket: OwnedFd,
    local: Local,
    bound: Option<SocketAddr>,
    /// Outstanding queries of this listener.
    queries: u32,
    /// Time since which the listener has been leaving.
    leaving: Option<Time>,
    /// The next instance is about to take the socket over, or has taken it: queries are left to it.
    suspended: bool,
}

/// A datagram in a batch.
pub(super) struct Datagram<'a> {
    batch: &'a mut Batch,
    at: usize,
}

impl Datagram<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        self.batch.bytes_of(self.at)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.batch.bytes_of_mut(self.at)
    }

    /// Replaces the content of the datagram.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.batch.set_bytes(self.at, bytes);
    }
}

impl Listener {
    pub(super) fn service(&self) -> DnsServiceKey {
        self.service
    }
}

impl Dns {
    /// Adds a listener.
    pub(crate) fn listen(
        &mut self,
        cx: &mut Context,
        id: u64,
        service: &Arc<Service>,
        socket: OwnedFd,
        local: Local,
    ) {
        let service = self.service_key(service);
        let bound = preamble::local_address(&socket);
        let listener =
            Listener { id, service, socket, local, bound, queries: 0, leaving: None, suspended: false };
        let key = self.listeners.insert(listener);
        self.note_change();
        if cx.registry.register(&self.listeners[key].socket, Token::DnsListener(key)).is_ok() {
            self.on_listener_event(cx, key);
        }
    }

    /// Removes a listener and returns its socket, if there is such a listener. Queued responses are sent
    /// first. Outstanding queries get no response.
    pub(crate) fn release(&mut self, cx: &mut Context, id: u64) -> Option<(OwnedFd, Local)> {
        let (key, _) = self.listeners.iter().find(|(_, listener)| listener.id == id)?;
        self.flush_responses(cx);
        let listener = self.listeners.remove(key)?;
        cx.registry.deregister(&listener.socket);
        self.note_change();
        Some((listener.socket, listener.local))
    }

    /// Assigns a listener to another service. Returns false if there is no DNS listener with this number.
    /// Outstanding queries get their responses.
    pub(crate) fn assign(&mut self, id: u64, service: &Arc<Service>) -> bool {
        let found = self.listeners.keys(|listener| listener.id == id);
        if found.is_empty() {
            return false;
        }
        let service = self.service_key(service);
        found.into_iter().for_each(|key| self.listeners[key].service = service);
        self.note_change();
        true
    }

    /// Counts one more outstanding query of a listener.
    pub(super) fn begin_listener_query(&mut self, path: &ReturnPath) {
        if let Some(listener) = self.listener_of(path) {
            listener.queries += 1;
        }
    }

    /// Uncounts an outstanding query of a listener.
    pub(super) fn end_listener_query(&mut self, path: &ReturnPath) {
        if let Some(listener) = self.listener_of(path) {
            listener.queries = listener.queries.saturating_sub(1);
        }
    }

    /// Returns the listener that received a query, unless it was removed.
    fn listener_of(&mut self, path: &ReturnPath) -> Option<&mut Listener> {
        self.listeners.get_mut(path.listener)
    }

    /// Closes a listener as soon as its queries are finished. New queries are served until then, because no
    /// successor can use the address before.
    pub(crate) fn leave(&mut self, cx: &Context, id: u64) {
        let now = cx.now;
        for (_, listener) in self.listeners.iter_mut().filter(|(_, listener)| listener.id == id) {
            listener.leaving.get_or_insert(now);
            self.is_leaving = true;
        }
    }

    /// Closes all listeners as soon as their queries are finished.
    pub(super) fn leave_all(&mut self, cx: &Context) {
        let ids: Vec<u64> = self.listeners.iter().map(|(_, listener)| listener.id).collect();
        ids.into_iter().for_each(|id| self.leave(cx, id));
    }

    /// Returns whether a listener accepts no more queries, because the next instance takes it over or it leaves. That is the case when all queries from
    /// before it began to leave must be finished. Under load, a listener that accepted further queries would
    /// never close.
    fn is_deaf(&self, cx: &Context, listener: &Listener) -> bool {
        if listener.suspended {
            return true;
        }
        let Some(since) = listener.leaving else { return false };
        let settings = self.services[listener.service].service.settings.load();
        let open =
            query::spec(&settings).map_or(Duration::ZERO, |spec| spec.query_timeout * (spec.retries + 1));
        cx.now.since(since) >= open
    }

    /// Closes the leaving listeners without outstanding queries.
    pub(super) fn close_left(&mut self, cx: &mut Context) {
        if !self.is_leaving {
            return;
        }
        let is_idle = |listener: &Listener| listener.leaving.is_some() && listener.queries == 0;
        let idle = self.listeners.keys(is_idle);
        for key in idle {
            if self.take_in_rest(cx, key) {
                // The responses are sent first.
                cx.ready.push(Ready::DnsListener(key));
                continue;
            }
            if let Some(listener) = self.listeners.remove(key) {
                cx.registry.deregister(&listener.socket);
            }
            if !cx.draining {
                // While the program drains, TCP clients may still need the persistent connections.
                self.note_change();
            }
        }
        self.is_leaving = self.listeners.iter().any(|(_, listener)| listener.leaving.is_some());
    }

    /// Receives the queries in a listener's queue, and returns whether there were any.
    fn take_in_rest(&mut self, cx: &mut Context, key: DnsListenerKey) -> bool {
        let listener = &self.listeners[key];
        if self.is_deaf(cx, listener) {
            return false;
        }
        let mut batch = self.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
        let received = batch.receive(listener.socket.as_fd(), 0, Senders::Received, listener.local);
        let count = received.unwrap_or_default();
        self.take_in(cx, key, &mut batch, count);
        self.inbound = Some(batch);
        count > 0
    }

    /// Receives queries.
    pub(crate) fn on_listener_event(&mut self, cx: &mut Context, key: DnsListenerKey) {
        if self.listeners.get(key).is_some_and(|listener| self.is_deaf(cx, listener)) {
            return;
        }
        let mut batch = self.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
        let emptied = (0..BATCHES_MAX).any(|_| {
            let Some(listener) = self.listeners.get(key) else { return true };
            match batch.receive(listener.socket.as_fd(), 0, Senders::Received, listener.local) {
                Ok(count) => {
                    self.take_in(cx, key, &mut batch, count);
                    count < BATCH
                }
                // The socket is not connected, so the error does not belong to a particular client.
                Err(_) => false,
            }
        });
        if !emptied {
            cx.ready.push(Ready::DnsListener(key));
        }
        self.inbound = Some(batch);
    }

    fn take_in(&mut self, cx: &mut Context, key: DnsListenerKey, batch: &mut Batch, count: usize) {
        if count == 0 {
            return;
        }
        let service = self.listeners[key].service;
        let service = Arc::clone(&self.services[service].service);
        let settings = service.settings.load_full();
        let bytes: usize = (0..count).map(|at| batch.len(at)).sum();
        let counters = service.live.counters.of(cx.id);
        counters.datagrams_in.add(count as u64);
        counters.bytes_in.add(bytes as u64);
        for at in 0..count {
            let mut datagram = Datagram { batch, at };
            let requester = self.requester_of_datagram(cx, key, &mut datagram, &settings);
            if let Some(requester) = requester {
                self.take_query(cx, &settings, requester, datagram.bytes());
            }
        }
    }

    /// Returns the requester of a datagram, whom a proxy reports in each datagram; `None` if the datagram is
    /// dropped.
    fn requester_of_datagram(
        &self,
        cx: &Context,
        key: DnsListenerKey,
        Datagram { batch, at }: &mut Datagram<'_>,
        settings: &Settings,
    ) -> Option<Requester> {
        let listener = &self.listeners[key];
        let service = &self.services[listener.service].service;
        let counters = service.live.counters.of(cx.id);
        let at = *at;
        let sender = batch.sender(at)?;
        let local = if listener.local == Local::Each { batch.local(at) } else { None };
        if listener.local == Local::Each
            && batch.is_broadcast_or_multicast(at)
            && !cx.handles_broadcasts_of(sender)
        {
            return None;
        }
        let local_address =
            listener.bound.map(|bound| SocketAddr::new(local.unwrap_or(bound.ip()), bound.port()));
        let mut ends = local_address.map(|destination| Ends { source: sender, destination });
        let mut hops = 0;
        if settings.is_proxy(sender.ip()) {
            let Ok(Some(header)) = proxy::parse(batch.bytes_of(at)) else {
                counters.drops.preamble.one();
                note_client(cx, service, Traffic::Query, sender.ip(), Reason::ProxyHeaderInvalid);
                return None;
            };
            let length = header.length;
            if header.extras.hops >= HOPS_MAX {
                note_loop(cx, service);
                return None;
            }
            hops = header.extras.hops + 1;
            ends = header.ends.or(ends);
            batch.strip(at, length);
        }
        let client = ends.map_or(sender, |ends| ends.source);
        let party = party_of(client, settings);
        if party != Some(Party::Admitted) {
            counters.denied.one();
            admission::record_denied(cx, service, settings, client.ip());
        }
        let Some(party) = party else {
            counters.drops.denied.one();
            note_client(cx, service, Traffic::Query, client.ip(), Reason::ClientDenied);
            return None;
        };
        let path = ReturnPath { listener: key, address: sender, local };
        let destination = ends.map(|ends| ends.destination);
        let origin = Origin::Datagram(path);
        Some(Requester {
            service: listener.service,
            client,
            destination,
            party,
            hops,
            origin,
            keepalive: false,
        })
    }
}

/// Returns the verdict of the access list on a client; `None` if it gets no response.
fn party_of(client: SocketAddr, settings: &Settings) -> Option<Party> {
    if settings.permits(client.ip()) {
        return Some(Party::Admitted);
    }
    match settings.denied {
        Refusal::Backend(_) => Some(Party::Refused),
        Refusal::Reject => Some(Party::Rejected),
        Refusal::Drop | Refusal::Tarpit(_) => None,
    }
}
