//! Tunnel: relays bytes between the transports of a client and its server, in both directions. Each side may
//! use TLS.

use super::client::{Client, ROUNDS_MAX};
use super::exchange::{Exchange, Reach, Shared};
use crate::context::Context;
use crate::context::keys::ExchangeKey;
use crate::context::unserved::Traffic;
use crate::io::relay::{self, End};
use crate::io::request_log::Tap;
use crate::io::transport::{Buffers, PENDING_BYTES_MAX, Received, Transport};
use evener_core::reason::Reason;
use evener_core::spec::FastClose;

/// Outcome of pumping a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    /// An event of a socket has to come first.
    Blocked,
    /// More bytes can be moved, after the worker has handled other sessions.
    Again,
    /// Both directions ended in order, or no server could be reached.
    Finished,
    /// Both directions ended in order, but the client has not received everything, or has sent bytes that are
    /// not read yet: it must be drained before its socket is closed.
    MustDrain,
    /// The client's connection is broken. The server must not see an orderly end.
    Broken,
    /// The server reset its connection, and the client's socket has all bytes that the server sent.
    Reset,
}

/// Moves bytes in both directions, as many as both sides allow without waiting.
pub(super) fn pump(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    exchange_key: ExchangeKey,
) -> Relayed {
    let server_key = match shared.reach(cx, client, exchange_key) {
        Reach::Open(server_key) => server_key,
        // A client that reset its connection leaves the queue.
        Reach::Queued if client.transport.is_broken() => return Relayed::Broken,
        Reach::Connecting(_) | Reach::Queued | Reach::Wanted => return Relayed::Blocked,
        Reach::Failed(reason) => {
            note_unreached(cx, client, &shared.exchanges[exchange_key], reason);
            return Relayed::Finished;
        }
    };
    let Shared { exchanges, servers, buffers, session_timers, .. } = &mut *shared;
    let (exchange, server) = (&mut exchanges[exchange_key], &mut servers[server_key]);
    let counters = client.service.live.counters.of(cx.id);
    // A service of HTTP logs its requests, not the bytes after an upgrade.
    let log = client.settings.request_log.as_deref().filter(|_| client.settings.http.is_none());
    let tap = log.and_then(|log| exchange.tap(log, counters));
    let (mut up, mut bytes_in) = pump_direction(&mut client.transport, &mut server.transport, buffers, tap);
    let (mut down, mut bytes_out) =
        pump_direction(&mut server.transport, &mut client.transport, buffers, None);
    let fast_close = exchange.settings.options.fast_close;
    if end_both(&mut client.transport, &mut server.transport, fast_close) {
        // Bytes that were read are still delivered, then each side gets its end.
        let (late_in, late_out);
        (up, late_in) = pump_direction(&mut client.transport, &mut server.transport, buffers, tap);
        (down, late_out) = pump_direction(&mut server.transport, &mut client.transport, buffers, None);
        (bytes_in, bytes_out) = (bytes_in + late_in, bytes_out + late_out);
    }
    if bytes_in + bytes_out > 0 {
        client.active_at = cx.now;
        client.count(cx, bytes_in, bytes_out);
        exchange.count_relayed(cx, bytes_in, bytes_out);
    }
    let is_half_closed = is_half_closed(&client.transport, &server.transport);
    if let Some(quiet) = exchange.settings.options.traffic_timeout(is_half_closed)
        && (is_half_closed || !session_timers.is_set(client.key))
    {
        session_timers.set(client.key, cx.now + quiet);
    }
    match outcome(&client.transport, &server.transport, up, down) {
        Relayed::Finished if fast_close != FastClose::Off => {
            // Further bytes of the server have no receiver, so they are discarded. The client is drained,
            // because a reset would destroy bytes that it has not read yet.
            relay::drain(server.transport.socket());
            if client.transport.begin_draining() { Relayed::MustDrain } else { Relayed::Finished }
        }
        relayed => relayed,
    }
}

/// Counts and reports a connection for which no server was reached.
fn note_unreached(cx: &Context, client: &Client, exchange: &Exchange, reason: Reason) {
    let cause = exchange.explain(reason.into());
    client.note_unserved_as(cx, Traffic::Connection, cause, None, || exchange.parties());
}

/// Returns whether one side has ended its sending direction, and the other one has not.
pub(super) fn is_half_closed(client: &Transport, server: &Transport) -> bool {
    client.end().is_some() != server.end().is_some()
}

/// Stops receiving from one side after the other side ended, if the end of one side ends both (`fast_close`).
/// Returns true if this call stopped receiving.
fn end_both(client: &mut Transport, server: &mut Transport, fast_close: FastClose) -> bool {
    let ended = |transport: &Transport| transport.end() == Some(End::Fin);
    if fast_close.by_client() && ended(client) && server.end().is_none() {
        server.stop_receiving();
        return true;
    }
    if fast_close.by_server() && ended(server) && client.end().is_none() {
        client.stop_receiving();
        return true;
    }
    false
}

fn outcome(client: &Transport, server: &Transport, up: Pumped, down: Pumped) -> Relayed {
    let is_error = |transport: &Transport| matches!(transport.end(), Some(End::Error(_)));
    if client.is_broken() || is_error(client) {
        return Relayed::Broken;
    }
    if is_error(server) && client.pending() == 0 {
        return Relayed::Reset;
    }
    // All bytes were delivered in both directions, or their receiver is closed.
    if client.is_finished() && (server.is_broken() || (client.end().is_some() && server.is_finished())) {
        return Relayed::Finished;
    }
    if up == Pumped::More || down == Pumped::More { Relayed::Again } else { Relayed::Blocked }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pumped {
    More,
    Blocked,
}

/// Moves the bytes and the end of `from` to `to`, and logs the bytes to `tap`. Returns the number of bytes.
fn pump_direction(
    from: &mut Transport,
    to: &mut Transport,
    buffers: &mut Buffers,
    tap: Option<Tap<'_>>,
) -> (Pumped, u64) {
    let mut bytes = 0;
    to.flush(buffers);
    for _ in 0..ROUNDS_MAX {
        if to.pending() >= PENDING_BYTES_MAX {
            return (Pumped::Blocked, bytes);
        }
        if from.unread().is_empty() && from.receive(buffers) == Received::Nothing {
            if from.is_at_end() {
                to.finish(buffers);
            }
            return (Pumped::Blocked, bytes);
        }
        if let Some(tap) = tap.filter(|_| !to.is_broken() && !from.unread().is_empty()) {
            tap.piece(from.unread());
        }
        // Bytes for a broken sink are read and discarded.
        bytes += from.unread().len() as u64;
        to.send(from.unread(), buffers);
        from.consume(usize::MAX);
        from.settle(buffers);
    }
    (Pumped::More, bytes)
}
