//! The end of an exchange: its connection is pooled, goes back to its client, or is closed; or the exchange goes on by another.

use super::descriptor;
use super::idle::{let_go, on_idle_readable};
use super::{Exchange, Reach, Stage, close_server, drop_server, note_freed};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey};
use crate::http::Http;
use crate::http::pooled::Idle;
use crate::http::session::{LINGER, LINGER_BYTES_MAX};
use crate::io::transport::Received;
use crate::service::admission::reset_at_close;
use crate::service::pool_queue;
use std::time::Duration;

/// A connection to a server that nobody uses is kept for so long.
const IDLE: Duration = Duration::from_secs(30);

/// Whether a connection may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// By anybody.
    Shared,
    /// By the same client only; the caller holds it.
    Private,
    /// No more.
    No,
    /// No more, once the server has received everything: its client ended for both (`fast_close`).
    Unserved,
}

/// An exchange is over; returns its server's connection when it is kept for the same client.
pub(crate) fn end(
    all: &mut Http,
    cx: &mut Context,
    number: ExchangeKey,
    keep: Keep,
) -> Option<ServerLinkKey> {
    all.exchange_timers.clear(number);
    let exchange = all.exchanges.remove(number)?;
    exchange.queued.iter().for_each(|queued| cx.queues.remove(queued));
    if exchange.choice.is_some() {
        pool_queue::note_freed(cx, &exchange.backend().pool);
    }
    if let Some(kept) = exchange.kept {
        descriptor::give_back_kept(all, exchange.session, kept);
        let_go(all, cx, kept);
    }
    let (Reach::Open(slot) | Reach::Connecting(slot)) = exchange.reach else { return None };
    let server = &mut all.servers[slot];
    server.exchange = None;
    // More than was asked for, or the end, came already.
    let sound = server.stage == Stage::Open
        && server.link.input.is_empty()
        && server.link.end.is_none()
        && server.link.pending() == 0
        && !server.link.broken;
    server.idle_since = cx.now;
    if keep == Keep::Unserved && exchange.settings.options.fast_close.by_client() {
        return linger(all, cx, slot);
    }
    if matches!(keep, Keep::No | Keep::Unserved) || !sound || (keep == Keep::Shared && server.personal) {
        descriptor::give_back(all, exchange.session, slot);
        close_server(all, cx, slot);
        return None;
    }
    if keep == Keep::Private {
        return Some(slot);
    }
    let may_stay = !cx.draining && descriptor::is_promised(all, exchange.session);
    let server = &all.servers[slot];
    if !may_stay || !all.pooled.has_room(&server.pool, server.id) {
        descriptor::give_back(all, exchange.session, slot);
        close_server(all, cx, slot);
    } else {
        all.pooled.add(&server.pool, server.id, Idle { key: slot, since: cx.now });
        all.server_timers.set(slot, cx.now + IDLE);
        if all.servers[slot].link.readable {
            on_idle_readable(all, cx, slot);
        }
    }
    None
}

/// What a server says goes to nobody any more; what it gets must not be lost by a reset, the answer to that.
fn linger(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) -> Option<ServerLinkKey> {
    let server = &mut all.servers[slot];
    if server.stage == Stage::Open && !server.link.broken && server.link.hear_out() {
        server.stage = Stage::Lingering;
        all.server_timers.set(slot, cx.now + LINGER);
        hear(all, cx, slot);
    } else {
        close_server(all, cx, slot);
    }
    None
}

/// Hears a server for nobody.
pub(super) fn hear(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let server = &mut all.servers[slot];
    let mut heard = 0;
    while heard < LINGER_BYTES_MAX && server.link.receive(&mut all.buffers) == Received::Some {
        heard += server.link.input.len();
        server.link.input.consume(usize::MAX);
        server.link.settle(&mut all.buffers);
    }
    if heard >= LINGER_BYTES_MAX || server.link.end.is_some() || server.link.left() == 0 {
        close_server(all, cx, slot);
    }
}

/// An exchange is over, whatever it was about.
pub(crate) fn abandon(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    if let Some(Exchange { reach: Reach::Open(slot), .. }) = all.exchanges.get(number).map(|one| &**one) {
        // Half a request must not look like a whole one.
        reset_at_close(&all.servers[*slot].link.socket);
    }
    end(all, cx, number, Keep::No);
}

/// The same request goes to another server, or to the same by another connection.
pub(crate) fn again(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    all.exchange_timers.clear(number);
    let exchange = &mut all.exchanges[number];
    let Reach::Open(slot) = std::mem::replace(&mut exchange.reach, Reach::Wanted) else { return };
    let fresh = !all.servers[slot].reused;
    match exchange.choice.take() {
        Some(choice) if fresh => exchange.attempt.again(choice.server.id),
        // The server may be well: its pooled connection was not.
        _ => exchange.attempt.begin_anew(),
    }
    note_freed(all, cx, number);
    drop_server(all, cx, slot);
}
