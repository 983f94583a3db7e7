//! Connections to servers that nobody uses just now: kept for anybody, or by a session for itself alone.

use super::{Reach, Reuse, ServerLink, Stage, close_server, descriptor};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey};
use crate::http::Http;
use crate::io::transport::Received;
use evener_core::ServerId;
use std::sync::Arc;
use std::time::Duration;

/// A request that cannot be repeated goes only over connections that were used this lately: a server that is about to
/// close would most likely have done so by then.
const FRESH: Duration = Duration::from_secs(1);

/// The connection that a session keeps for itself, if it is still there and no exchange has it.
pub(super) fn private(all: &Http, slot: ServerLinkKey) -> Option<ServerLinkKey> {
    let server = all.servers.get(slot)?;
    (server.stage == Stage::Open && server.exchange.is_none()).then_some(slot)
}

/// The client's own connection, if it leads to the chosen server; else it is closed.
pub(super) fn find_kept(
    all: &mut Http,
    cx: &mut Context,
    number: ExchangeKey,
    (pool, id): (&str, ServerId),
) -> Option<ServerLinkKey> {
    let kept = all.exchanges[number].kept.take()?;
    let slot = private(all, kept)?;
    let (exchange, server) = (&all.exchanges[number], &all.servers[slot]);
    let harmless = exchange.http.as_ref().is_some_and(|http| http.reuse_own() == Reuse::Any);
    let young = cx.now.since(server.idle_since) <= FRESH;
    let is_of = *server.pool == *pool && server.id == id;
    if is_of && leads(all, number, slot) && (harmless || young) {
        return Some(slot);
    }
    descriptor::give_back(all, all.exchanges[number].session, slot);
    close_server(all, cx, slot);
    None
}

/// Whether a connection leads to the chosen server, spoken to as it is now.
fn leads(all: &Http, number: ExchangeKey, slot: ServerLinkKey) -> bool {
    let (exchange, server) = (&all.exchanges[number], &all.servers[slot]);
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
pub(super) fn find_idle(
    all: &mut Http,
    cx: &mut Context,
    number: ExchangeKey,
    (pool, id): (&str, ServerId),
    reuse: Reuse,
) -> Option<ServerLinkKey> {
    if reuse == Reuse::Never {
        return None;
    }
    loop {
        let idle = all.pooled.last(pool, id)?;
        if reuse == Reuse::Fresh && cx.now.since(idle.since) > FRESH {
            return None;
        }
        if leads(all, number, idle.key) {
            return Some(idle.key);
        }
        // A reload moved the server, or speaks to it differently.
        close_server(all, cx, idle.key);
    }
}

pub(super) fn use_idle(all: &mut Http, cx: &mut Context, number: ExchangeKey, slot: ServerLinkKey) {
    take_from_idle(all, slot);
    all.server_timers.clear(slot);
    let server = &mut all.servers[slot];
    server.exchange = Some(number);
    server.reused = true;
    all.exchanges[number].reach = Reach::Open(slot);
    all.exchanges[number].since = cx.now;
    // It has a descriptor of its own.
    let session = all.exchanges[number].session;
    all.sessions[session].promise = None;
}

pub(super) fn take_from_idle(all: &mut Http, slot: ServerLinkKey) {
    if let Some(server) = all.servers.get(slot) {
        all.pooled.remove(&server.pool, server.id, slot);
    }
}

/// An unused connection is readable: only what TLS has to say for itself (tickets) is no reason to leave it.
pub(super) fn on_idle_readable(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let server = &mut all.servers[slot];
    while server.link.receive(&mut all.buffers) == Received::Some {
        if !server.link.input.is_empty() {
            break;
        }
    }
    if !server.link.input.is_empty() || server.link.end.is_some() || server.link.failure.is_some() {
        close_server(all, cx, slot);
    }
}

/// A connection that nobody used for long enough is closed; so is one that still speaks to nobody.
pub(crate) fn on_idle_deadline(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let unused = |server: &ServerLink| {
        server.exchange.is_none() && matches!(server.stage, Stage::Open | Stage::Lingering)
    };
    if all.servers.get(slot).is_some_and(|server| unused(server)) {
        close_server(all, cx, slot);
    }
}

/// Closes a connection that a session kept for itself.
pub(crate) fn let_go(all: &mut Http, cx: &mut Context, kept: ServerLinkKey) {
    if let Some(slot) = private(all, kept) {
        close_server(all, cx, slot);
    }
}
