//! Descriptors for connections to servers. A session is promised one when it is accepted; the connection of its exchange
//! takes that, and brings it back. Further ones, of HTTP/2, take what is left, if anything.

use super::idle::private;
use super::{Reach, close_server};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey};
use crate::http::Http;
use crate::http::session::Mode;
use evener_core::snapshot::NoServer;
use std::sync::Arc;

/// A descriptor for a connection of this exchange. Without one, no server can be had for it.
pub(super) fn take(all: &mut Http, cx: &mut Context, number: ExchangeKey) -> Option<Unit> {
    let session = all.exchanges[number].session;
    if let Some(promise) = all.sessions[session].promise.take() {
        return Some(promise.fulfil());
    }
    if let Some(unit) = Unit::take().or_else(|| take_unused(all, cx)) {
        return Some(unit);
    }
    // A client that asks one thing at a time never has more than was promised to it.
    if !matches!(all.sessions[session].mode, Mode::Http2(_)) {
        return Some(Unit::take_beyond());
    }
    let service = Arc::clone(&all.sessions[session].service);
    let exchange = &mut all.exchanges[number];
    exchange.choice = None;
    exchange.reach = Reach::Failed(NoServer::NoDescriptor);
    crate::service::note_no_server(cx, &service, NoServer::NoDescriptor);
    None
}

/// The connection that is unused the longest makes room.
fn take_unused(all: &mut Http, cx: &mut Context) -> Option<Unit> {
    let slot = all.pooled.oldest()?;
    let unit = all.servers[slot].unit.take();
    close_server(all, cx, slot);
    unit
}

/// A descriptor that was for a server is for the next one.
pub(super) fn keep(all: &mut Http, number: ExchangeKey, unit: Unit) {
    let session = all.exchanges[number].session;
    if let Some(session) = all.sessions.get_mut(session) {
        session.promise.get_or_insert_with(|| unit.promise());
    }
}

/// A connection is about to be closed: its session has the descriptor for the next one.
pub(super) fn give_back(all: &mut Http, session: SessionKey, slot: ServerLinkKey) {
    let (Some(session), Some(server)) = (all.sessions.get_mut(session), all.servers.get_mut(slot)) else {
        return;
    };
    if session.promise.is_none() {
        session.promise = server.unit.take().map(Unit::promise);
    }
}

/// The same for a connection that the session kept for itself.
pub(super) fn give_back_kept(all: &mut Http, session: SessionKey, kept: ServerLinkKey) {
    if let Some(slot) = private(all, kept) {
        give_back(all, session, slot);
    }
}

/// Whether a session has a descriptor for its next connection, besides the one that is about to be kept unused.
pub(super) fn is_promised(all: &mut Http, session: SessionKey) -> bool {
    let Some(session) = all.sessions.get_mut(session) else { return true };
    if session.promise.is_none() {
        session.promise = Unit::take().map(Unit::promise);
    }
    session.promise.is_some()
}

/// Closes connections that nobody uses, the longest unused first; how many there were.
pub(crate) fn shed_idle(all: &mut Http, cx: &mut Context, wanted: u32) -> u32 {
    let mut closed = 0;
    while closed < wanted
        && let Some(slot) = all.pooled.oldest()
    {
        close_server(all, cx, slot);
        closed += 1;
    }
    closed
}
