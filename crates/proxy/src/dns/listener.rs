//! Where questions come by datagrams.

use super::answers::{self, Way};
use super::query::{self, Asker, Origin, Party};
use crate::batch::{BATCH, Batch, Local, Names};
use crate::greeting;
use crate::registry::Token;
use crate::service::{Refusal, Service, Settings};
use crate::worker::{Retry, Worker};
use evener_core::wire::proxy::{self, Ends};
use rustix::fd::{AsFd, OwnedFd};
use std::net::SocketAddr;
use std::sync::Arc;

/// After so many batches others have their turn.
const BATCHES_MAX: usize = 4;

/// A listener of a worker for datagrams.
pub(super) struct Listener {
    id: u64,
    pub(super) service: usize,
    /// Tells it from one that has its place later.
    pub(super) serial: u32,
    pub(super) socket: OwnedFd,
    local: Local,
    bound: Option<SocketAddr>,
}

/// Questions come to this socket from now on.
pub(crate) fn listen(worker: &mut Worker, id: u64, service: &Arc<Service>, socket: OwnedFd, local: Local) {
    let (service, serial) = (worker.dns.place_of(service), worker.number());
    let bound = greeting::local_address(&socket);
    let listener = Listener { id, service, serial, socket, local, bound };
    let index = worker.dns.listeners.insert(listener);
    super::tend(worker);
    if worker.registry.register(&worker.dns.listeners[index].socket, Token::DnsListener(index)).is_ok() {
        on_listener_event(worker, index);
    }
}

/// Gives a listener's socket to somebody else, if there is such a listener. Answers that wait go out first; questions that
/// are under way get none.
pub(crate) fn release(worker: &mut Worker, id: u64) -> Option<(OwnedFd, Local)> {
    let (index, _) = worker.dns.listeners.iter().find(|(_, listener)| listener.id == id)?;
    answers::flush(worker);
    let listener = worker.dns.listeners.try_remove(index)?;
    worker.registry.deregister(&listener.socket);
    super::tend(worker);
    Some((listener.socket, listener.local))
}

/// Another service has this listener; whether it is one of DNS. Questions that are under way are answered.
pub(crate) fn assign(worker: &mut Worker, id: u64, service: &Arc<Service>) -> bool {
    let Some((index, _)) = worker.dns.listeners.iter().find(|(_, listener)| listener.id == id) else {
        return false;
    };
    let place = worker.dns.place_of(service);
    worker.dns.listeners[index].service = place;
    super::tend(worker);
    true
}

/// Clients asked something.
pub(crate) fn on_listener_event(worker: &mut Worker, index: usize) {
    if worker.draining {
        return;
    }
    let mut batch = worker.inbound.take().unwrap_or_else(|| Box::new(Batch::new(BATCH)));
    let emptied = (0..BATCHES_MAX).any(|_| {
        let Some(listener) = worker.dns.listeners.get(index) else { return true };
        match batch.receive(listener.socket.as_fd(), 0, Names::Wanted, listener.local) {
            Ok(count) => {
                take_in(worker, index, &mut batch, count);
                count < BATCH
            }
            // The socket is not connected, so this concerns nobody in particular.
            Err(_) => false,
        }
    });
    if !emptied {
        worker.again.push_back(Retry::DnsListener(index));
    }
    worker.inbound = Some(batch);
}

fn take_in(worker: &mut Worker, index: usize, batch: &mut Batch, count: usize) {
    if count == 0 {
        return;
    }
    let place = worker.dns.listeners[index].service;
    let service = Arc::clone(&worker.dns.services[place].service);
    let settings = service.settings.load_full();
    let bytes: usize = (0..count).map(|at| batch.len(at)).sum();
    let counters = service.live.counters.of(worker.id);
    counters.datagrams_in.add(count as u64);
    counters.bytes_in.add(bytes as u64);
    for at in 0..count {
        let Some(asker) = asker_of(worker, index, batch, at, &settings) else { continue };
        query::ask(worker, &settings, &asker, batch.bytes_of(at));
    }
}

/// Whose datagram `at` is. What stands before us tells of its client in each one; `None` when it does not, or when the
/// client may not come in.
fn asker_of(
    worker: &Worker,
    index: usize,
    batch: &mut Batch,
    at: usize,
    settings: &Settings,
) -> Option<Asker> {
    let listener = &worker.dns.listeners[index];
    let counters = worker.dns.services[listener.service].service.live.counters.of(worker.id);
    let sender = batch.sender(at)?;
    let local = if listener.local == Local::Each { batch.local(at) } else { None };
    let own = listener.bound.map(|bound| SocketAddr::new(local.unwrap_or(bound.ip()), bound.port()));
    let mut ends = own.map(|destination| Ends { source: sender, destination });
    if settings.is_proxy(sender.ip()) {
        let Ok(Some(header)) = proxy::parse(batch.bytes_of(at)) else {
            counters.drop_greeting.one();
            return None;
        };
        let length = header.length;
        ends = header.ends.or(ends);
        batch.strip(at, length);
    }
    let client = ends.map_or(sender, |ends| ends.source);
    let party = party_of(client, settings);
    if party != Some(Party::Admitted) {
        counters.denied.one();
    }
    let Some(party) = party else {
        counters.drop_denied.one();
        return None;
    };
    let way = Way { listener: index, serial: listener.serial, address: sender, local };
    let destination = ends.map(|ends| ends.destination);
    let origin = Origin::Datagram(way);
    Some(Asker { service: listener.service, client, destination, party, origin, keepalive: false })
}

/// What the access list makes of a client; `None` when it is not heard.
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
