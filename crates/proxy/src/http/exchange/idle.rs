//! Connections to servers that nobody uses just now: kept for anybody, or by a session for itself alone.

use super::{Reach, Reuse, ServerLink, Stage, close_server, descriptor};
use crate::io::transport::Received;
use crate::service::Backend;
use crate::worker::Worker;
use evener_core::ServerId;
use std::sync::Arc;
use std::time::Duration;

/// A request that cannot be repeated goes only over connections that were used this lately: a server that is about to
/// close would most likely have done so by then.
const FRESH: Duration = Duration::from_secs(1);

/// Whose unused connections those are: the pool, by where it is published, and the server.
pub(crate) type IdleKey = (usize, ServerId);

pub(super) fn key_of(backend: &Backend, server: ServerId) -> IdleKey {
    (Arc::as_ptr(&backend.pool) as usize, server)
}

/// A connection that a session keeps for itself. It may be gone, and its slot another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    slot: usize,
    serial: u64,
}

impl Kept {
    pub(super) fn at(slot: usize, server: &ServerLink) -> Self {
        Self { slot, serial: server.serial }
    }

    /// Its slot, if it is still there and nobody uses it.
    pub(super) fn find(self, worker: &Worker) -> Option<usize> {
        let server = worker.http.servers.get(self.slot)?;
        let sound = server.serial == self.serial && server.stage == Stage::Open && server.exchange.is_none();
        sound.then_some(self.slot)
    }
}

/// The client's own connection, if it leads to the chosen server; else it is closed.
pub(super) fn find_kept(worker: &mut Worker, number: usize, key: IdleKey) -> Option<usize> {
    let slot = worker.http.exchanges[number].kept.take()?.find(worker)?;
    let exchange = &worker.http.exchanges[number];
    let harmless = exchange.http.as_ref().is_some_and(|http| http.reuse_own() == Reuse::Any);
    let young = worker.cx.now.since(worker.http.servers[slot].idle_since) <= FRESH;
    if worker.http.servers[slot].key == key && leads(worker, number, slot) && (harmless || young) {
        return Some(slot);
    }
    descriptor::give_back(worker, worker.http.exchanges[number].session, slot);
    close_server(worker, slot);
    None
}

/// Whether a connection leads to the chosen server, spoken to as it is now.
fn leads(worker: &Worker, number: usize, slot: usize) -> bool {
    let (exchange, server) = (&worker.http.exchanges[number], &worker.http.servers[slot]);
    let same = match (&server.connector, &exchange.backend().tls) {
        (None, None) => true,
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        _ => false,
    };
    // What a server takes for one client's is for nobody else, and where it has to be so, nothing else will do.
    let same = same && server.personal == exchange.is_personal();
    same && exchange.choice.as_ref().is_some_and(|choice| choice.server.target == server.target)
}

/// An unused connection to the chosen server that still leads there.
pub(super) fn find_idle(worker: &mut Worker, number: usize, key: IdleKey, reuse: Reuse) -> Option<usize> {
    if reuse == Reuse::Never {
        return None;
    }
    loop {
        let slot = *worker.http.idle.get(&key)?.last()?;
        if reuse == Reuse::Fresh && worker.cx.now.since(worker.http.servers[slot].idle_since) > FRESH {
            return None;
        }
        if leads(worker, number, slot) {
            return Some(slot);
        }
        // A reload moved the server, or speaks to it differently.
        close_server(worker, slot);
    }
}

pub(super) fn use_idle(worker: &mut Worker, number: usize, slot: usize) {
    take_from_idle(worker, slot);
    worker.http.server_timers.clear(slot);
    let server = &mut worker.http.servers[slot];
    server.exchange = Some(number);
    server.reused = true;
    worker.http.exchanges[number].reach = Reach::Open(slot);
    worker.http.exchanges[number].since = worker.cx.now;
    // It has a descriptor of its own.
    let session = worker.http.exchanges[number].session;
    worker.http.sessions[session].promise = None;
}

pub(super) fn take_from_idle(worker: &mut Worker, slot: usize) {
    let key = worker.http.servers[slot].key;
    if let Some(idle) = worker.http.idle.get_mut(&key) {
        idle.retain(|other| *other != slot);
        if idle.is_empty() {
            worker.http.idle.remove(&key);
        }
    }
}

/// An unused connection is readable: only what TLS has to say for itself (tickets) is no reason to leave it.
pub(super) fn on_idle_readable(worker: &mut Worker, slot: usize) {
    let server = &mut worker.http.servers[slot];
    while server.link.receive(&mut worker.http.buffers) == Received::Some {
        if !server.link.input.is_empty() {
            break;
        }
    }
    if !server.link.input.is_empty() || server.link.end.is_some() || server.link.failure.is_some() {
        close_server(worker, slot);
    }
}

/// A connection that nobody used for long enough is closed; so is one that still speaks to nobody.
pub(crate) fn on_idle_deadline(worker: &mut Worker, slot: usize) {
    let unused = |server: &ServerLink| {
        server.exchange.is_none() && matches!(server.stage, Stage::Open | Stage::Lingering)
    };
    if worker.http.servers.get(slot).is_some_and(|server| unused(server)) {
        close_server(worker, slot);
    }
}

/// Closes a connection that a session kept for itself.
pub(crate) fn let_go(worker: &mut Worker, kept: Kept) {
    if let Some(slot) = kept.find(worker) {
        close_server(worker, slot);
    }
}
