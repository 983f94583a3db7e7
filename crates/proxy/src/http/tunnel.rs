//! The relay between transports: bytes of a client and its server go both ways, whatever layers either side has.

use super::client::{Client, ROUNDS_MAX};
use super::exchange::{Reach, Shared};
use crate::context::Context;
use crate::context::keys::ExchangeKey;
use crate::io::relay::{self, End};
use crate::io::request_log::Tap;
use crate::io::transport::{Buffers, PENDING_BYTES_MAX, Received, Transport};
use evener_core::spec::FastClose;

/// Outcome of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    Wait,
    Again,
    /// In order.
    Over,
    /// The same, but the client has not received everything, or sends something that no server gets.
    Unheard,
    /// The client is gone: the server must not take that for an orderly end.
    Broken,
    /// The server is gone, and the client's socket has all that it sent.
    Reset,
}

/// Moves what can be moved both ways.
pub(super) fn relay(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    number: ExchangeKey,
) -> Relayed {
    let slot = match shared.reach(cx, client, number) {
        Reach::Open(slot) => slot,
        // One that reset its connection does not wait.
        Reach::Queued if client.transport.broken => return Relayed::Broken,
        Reach::Connecting(_) | Reach::Queued | Reach::Wanted => return Relayed::Wait,
        Reach::Failed(_) => return Relayed::Over,
    };
    let Shared { exchanges, servers, buffers, session_timers, .. } = &mut *shared;
    let (exchange, server) = (&exchanges[number], &mut servers[slot]);
    let counters = client.service.live.counters.of(cx.id);
    // Of HTTP its requests are written down, not what comes after an upgrade.
    let log = client.settings.request_log.as_deref().filter(|_| client.settings.http.is_none());
    let tap = log.zip(exchange.choice.as_ref()).map(|(log, choice)| Tap {
        log,
        client: exchange.client,
        server: &choice.server.target,
        counters,
    });
    let (mut up, mut bytes_in) = carry(&mut client.transport, &mut server.transport, buffers, tap);
    let (mut down, mut bytes_out) = carry(&mut server.transport, &mut client.transport, buffers, None);
    let fast_close = exchange.settings.options.fast_close;
    if end_both(&mut client.transport, &mut server.transport, fast_close) {
        // What was read is still delivered, then each side gets its end.
        let (rest_in, rest_out);
        (up, rest_in) = carry(&mut client.transport, &mut server.transport, buffers, tap);
        (down, rest_out) = carry(&mut server.transport, &mut client.transport, buffers, None);
        (bytes_in, bytes_out) = (bytes_in + rest_in, bytes_out + rest_out);
    }
    if bytes_in + bytes_out > 0 {
        client.active_at = cx.now;
        client.count(cx, bytes_in, bytes_out);
        if let Some(choice) = &exchange.choice {
            let of_server = choice.server.live.counters.of(cx.id);
            of_server.bytes_in.add(bytes_in);
            of_server.bytes_out.add(bytes_out);
        }
    }
    let is_half_closed = is_half_closed(&client.transport, &server.transport);
    if let Some(quiet) = exchange.settings.options.traffic_timeout(is_half_closed)
        && (is_half_closed || !session_timers.is_set(client.key))
    {
        session_timers.set(client.key, cx.now + quiet);
    }
    match outcome(&client.transport, &server.transport, up, down) {
        Relayed::Over if fast_close != FastClose::Off => {
            // What a server still sends is for no client; a client would lose by a reset what is on its way to it.
            relay::drain(&server.transport.socket);
            if client.transport.hear_out() { Relayed::Unheard } else { Relayed::Over }
        }
        relayed => relayed,
    }
}

/// Returns whether one side of a relay has ended, and the other one may still say something.
pub(super) fn is_half_closed(client: &Transport, server: &Transport) -> bool {
    client.end.is_some() != server.end.is_some()
}

/// Reads nothing more of the other side where the end of one side is that of both; returns whether that is new.
fn end_both(client: &mut Transport, server: &mut Transport, fast_close: FastClose) -> bool {
    let ended = |transport: &Transport| transport.end == Some(End::Fin);
    if fast_close.by_client() && ended(client) && server.end.is_none() {
        server.end = Some(End::Fin);
        return true;
    }
    if fast_close.by_server() && ended(server) && client.end.is_none() {
        client.end = Some(End::Fin);
        return true;
    }
    false
}

fn outcome(client: &Transport, server: &Transport, up: Carried, down: Carried) -> Relayed {
    let is_error = |transport: &Transport| matches!(transport.end, Some(End::Error(_)));
    if client.broken || is_error(client) {
        return Relayed::Broken;
    }
    if is_error(server) && client.pending() == 0 {
        return Relayed::Reset;
    }
    // Everything was sent both ways and taken, or the side that should take the rest is gone.
    if client.is_finished() && (server.broken || (client.end.is_some() && server.is_finished())) {
        return Relayed::Over;
    }
    if up == Carried::More || down == Carried::More { Relayed::Again } else { Relayed::Wait }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    More,
    Waits,
}

/// Moves what `from` has to `to`, and its end; `tap` gets what is read, too. Returns how many bytes.
fn carry(
    from: &mut Transport,
    to: &mut Transport,
    buffers: &mut Buffers,
    tap: Option<Tap<'_>>,
) -> (Carried, u64) {
    let mut bytes = 0;
    to.flush(buffers);
    for _ in 0..ROUNDS_MAX {
        if to.pending() >= PENDING_BYTES_MAX {
            return (Carried::Waits, bytes);
        }
        if from.input.is_empty() && from.receive(buffers) == Received::Nothing {
            if from.is_at_end() {
                to.finish(buffers);
            }
            return (Carried::Waits, bytes);
        }
        if let Some(tap) = tap.filter(|_| !to.broken && !from.input.is_empty()) {
            tap.piece(from.input.unread());
        }
        // To a sink that is gone it is read and thrown away.
        bytes += from.input.len() as u64;
        to.send(from.input.unread(), buffers);
        from.input.consume(usize::MAX);
        from.settle(buffers);
    }
    (Carried::More, bytes)
}
