//! Bodies: the request's body is sent to the server and the response's body to the client, no faster than the
//! receivers take them.

use super::{Http1, Next, Stage, Step};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::{After, Client, ROUNDS_MAX};
use crate::http::exchange::{Exchange, HttpPart, Shared, cut_response};
use crate::io::relay::End;
use crate::io::transport::{Buffers, PENDING_BYTES_MAX, Received, Transport};
use evener_core::reason::{Cause, Reason};
use evener_core::wire::chunked::{self, Step as BodyStep};
use std::time::Duration;

/// Size from which parts of a body are sent directly; smaller parts are joined with the bytes before them.
const DIRECT_BYTES_MIN: usize = 16 * 1024;
/// Number of bytes of a body after which the worker handles other sessions.
const TURN_BYTES_MAX: u64 = 1 << 20;

/// The client closed before its body was complete.
const BODY_CUT: Cause = Cause::with(Reason::BodyInvalid, "the client closed in the middle of the body");

impl Http1 {
    /// Moves bytes in both directions, as many as both sides allow without waiting.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> Step {
        let Some(server_key) = shared.exchanges[exchange_key].open_connection() else { return Step::Blocked };
        shared.servers[server_key].transport.flush(&mut shared.buffers);
        let uploaded = upload(cx, client, shared, exchange_key, server_key);
        if let Moved::Broken(cause) = uploaded {
            return self.bad_body(cx, client, shared, exchange_key, cause);
        }
        let next = self.download(cx, client, shared, exchange_key, server_key);
        if uploaded == Moved::More {
            client.queue(cx);
        }
        next
    }
}

/// Progress of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// No more bytes can be moved now.
    Blocked,
    /// More bytes can be moved, after the worker has handled other sessions.
    More,
    /// The body is malformed, or broke off.
    Broken(Cause),
}

impl Http1 {
    /// Fails an exchange whose client sent a malformed body, or closed in the middle of it.
    fn bad_body(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) -> Step {
        client.service.live.counters.of(cx.id).requests_bad.one();
        self.fail_exchange(cx, client, shared, exchange_key, cause)
    }
}

/// Sends the queued header section, and the bytes of the body that the client has sent.
fn upload(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    exchange_key: ExchangeKey,
    server_key: ServerConnectionKey,
) -> Moved {
    let Shared { exchanges, servers, buffers, .. } = &mut *shared;
    let (exchange, server) = (&mut exchanges[exchange_key], &mut servers[server_key]);
    let Exchange { http: Some(http), settings, .. } = &mut **exchange else { return Moved::Blocked };
    if http.is_uploaded() && http.outgoing_bytes() == 0 {
        return Moved::Blocked;
    }
    let header = http.outgoing_bytes();
    let line =
        settings.request_log.as_ref().filter(|log| header > 0 && log.is_pen()).map(|_| http.request_line());
    let (mut body_bytes, mut sent, mut outcome) = (0, 0, Moved::More);
    for _ in 0..ROUNDS_MAX {
        match upload_part(http, &mut client.transport, &mut server.transport, buffers) {
            Ok((data, bytes)) => (body_bytes, sent) = (body_bytes + data as u64, sent + bytes),
            Err(end) => outcome = end,
        }
        if outcome != Moved::More || body_bytes >= TURN_BYTES_MAX {
            break;
        }
    }
    if !matches!(outcome, Moved::Broken(_)) {
        sent += http.flush_upload(&mut server.transport, buffers);
    }
    let uploaded = http.is_uploaded();
    exchange.count(cx, sent as u64, 0);
    client.count(cx, body_bytes, 0);
    if body_bytes > 0 {
        client.active_at = cx.now;
    }
    if header > 0 && sent > 0 {
        shared.note_request(cx, client, exchange_key, line.as_deref());
    }
    if uploaded {
        shared.await_response(cx, exchange_key);
    }
    outcome
}

/// Moves the next part of the client's body. Returns the number of its data bytes, and the number of bytes that
/// were sent.
fn upload_part(
    http: &mut HttpPart,
    client: &mut Transport,
    server: &mut Transport,
    buffers: &mut Buffers,
) -> Result<(usize, usize), Moved> {
    if server.is_full() || http.is_uploaded() {
        return Err(Moved::Blocked);
    }
    if client.unread().is_empty() {
        if let Some(uploaded) = http.splice_upload(client, server, buffers) {
            return Ok(uploaded);
        }
        if client.receive(buffers) == Received::Nothing {
            return Err(client.end().map_or(Moved::Blocked, |_| Moved::Broken(BODY_CUT)));
        }
    }
    let read = http.read_upload(client.unread());
    let (used, step) = read
        .map_err(|chunked::Malformed| Moved::Broken(Cause::with(Reason::BodyInvalid, "malformed chunk")))?;
    let data: &[u8] = if let BodyStep::Data(data) = step { data } else { b"" };
    let (length, mut sent) = (data.len(), 0);
    if length >= DIRECT_BYTES_MIN {
        sent = http.send_upload(data, server, buffers);
    } else {
        http.queue_upload(data);
    }
    if http.is_uploaded() {
        http.end_upload();
    }
    client.consume(used);
    client.settle(buffers);
    if http.outgoing_bytes() >= DIRECT_BYTES_MIN {
        sent += http.flush_upload(server, buffers);
    }
    Ok((length, sent))
}

/// Sends the body of the response to the client.
pub(super) fn download_body(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    exchange_key: ExchangeKey,
    server_key: ServerConnectionKey,
) -> Moved {
    let Shared { exchanges, servers, buffers, headers, .. } = &mut *shared;
    let (exchange, server) = (&mut exchanges[exchange_key], &mut servers[server_key]);
    let Some(http) = exchange.http.as_deref_mut() else { return Moved::Blocked };
    let (mut bytes, mut outcome) = (0, Moved::More);
    for _ in 0..ROUNDS_MAX {
        match download_part(http, &mut server.transport, &mut client.transport, &mut headers.out, buffers) {
            Ok(data) => bytes += data as u64,
            Err(end) => outcome = end,
        }
        if outcome != Moved::More || bytes >= TURN_BYTES_MAX {
            break;
        }
    }
    // The bytes so far are sent without waiting for more.
    client.transport.send(&headers.out, buffers);
    client.count(cx, 0, bytes);
    exchange.count_response(cx, bytes);
    if bytes > 0 || !headers.out.is_empty() {
        client.active_at = cx.now;
    }
    headers.out.clear();
    outcome
}

/// Moves the next part of the response's body, or writes it to `out`. Returns the number of its data bytes.
fn download_part(
    http: &mut HttpPart,
    server: &mut Transport,
    client: &mut Transport,
    out: &mut Vec<u8>,
    buffers: &mut Buffers,
) -> Result<usize, Moved> {
    if http.is_downloaded() || client.is_full() {
        return Err(Moved::Blocked);
    }
    if server.unread().is_empty() {
        if let Some(data) = http.splice_download(server, client, out, buffers) {
            return Ok(data);
        }
        if server.receive(buffers) == Received::Nothing {
            return Err(on_download_pause(http, server, out));
        }
    }
    let read = http.read_download(server.unread());
    let (used, step) = read.map_err(|chunked::Malformed| {
        Moved::Broken(Cause::with(Reason::ResponseIncomplete, "malformed chunk"))
    })?;
    let data: &[u8] = if let BodyStep::Data(data) = step { data } else { b"" };
    let length = data.len();
    if length >= DIRECT_BYTES_MIN && !http.downloads_chunks() {
        client.send_both([out, data], buffers);
        out.clear();
    } else {
        http.write_download(data, out);
    }
    http.write_download_end(out);
    server.consume(used);
    server.settle(buffers);
    if out.len() >= PENDING_BYTES_MAX {
        client.send(out, buffers);
        out.clear();
    }
    Ok(length)
}

/// Handles the absence of input: the server has sent nothing more yet, has ended the body by its close, or has
/// broken off.
fn on_download_pause(http: &mut HttpPart, server: &Transport, out: &mut Vec<u8>) -> Moved {
    match server.end() {
        None => Moved::Blocked,
        Some(End::Fin) if http.lasts_until_close() && !server.is_cut() => {
            http.end_download();
            http.write_download_end(out);
            Moved::Blocked
        }
        Some(end) => Moved::Broken(cut_response(end)),
    }
}

impl Http1 {
    /// Ends an exchange whose response is complete. The connection to the server is pooled, stays private to
    /// the client, or is closed; the client's connection stays open or is closed.
    pub(super) fn complete(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> Step {
        let exchange = &shared.exchanges[exchange_key];
        let Some(http) = &exchange.http else { return Step::Blocked };
        let (keep, stays) = (http.keep(), http.client_stays() && http.is_uploaded());
        let patience =
            exchange.settings.http.as_ref().map_or(Duration::ZERO, |spec| spec.progress_interval());
        let stay = exchange.stay();
        let private = shared.end(cx, client, exchange_key, keep);
        client.stay = stay;
        self.private = private;
        self.stage = Stage::Flush(if stays { Next::Request } else { Next::End });
        if client.transport.pending() > 0 {
            shared.session_timers.set(client.key, cx.now + patience);
        }
        Step::Continue
    }

    /// Ends HTTP on the connection: its exchange becomes a relay.
    pub(super) fn become_relay(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> Step {
        shared.exchange_timers.clear(exchange_key);
        shared.session_timers.clear(client.key);
        shared.exchanges[exchange_key].become_relay();
        client.service.live.counters.of(cx.id).upgrades.one();
        Step::Finished(After::Relay(exchange_key))
    }
}
