//! Bodies: the request's body is sent to the server and the response's body to the client, no faster than the
//! receivers take them.

use super::{Http1, Next, Stage, Step};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::{After, Client, ROUNDS_MAX};
use crate::http::exchange::{Exchange, Shared, cut_response};
use crate::io::relay::End;
use crate::io::transport::{PENDING_BYTES_MAX, Received};
use evener_core::reason::{Cause, Reason};
use evener_core::wire::chunked::{self, Step as BodyStep};
use std::time::Duration;

/// Size from which parts of a body are sent directly; smaller parts are joined with the bytes before them.
const DIRECT_BYTES_MIN: usize = 16 * 1024;

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
    let mut outcome = Moved::More;
    let mut body_bytes = 0;
    let (mut sent, header) = (0, http.outgoing_bytes());
    let line =
        settings.request_log.as_ref().filter(|log| header > 0 && log.is_pen()).map(|_| http.request_line());
    for _ in 0..ROUNDS_MAX {
        if server.transport.pending() >= PENDING_BYTES_MAX || http.is_uploaded() {
            outcome = Moved::Blocked;
            break;
        }
        if client.transport.unread().is_empty() && client.transport.receive(buffers) == Received::Nothing {
            outcome = match client.transport.end() {
                Some(_) => Moved::Broken(BODY_CUT),
                None => Moved::Blocked,
            };
            break;
        }
        let (used, data_bytes) = match http.read_upload(client.transport.unread()) {
            Ok(read) => read,
            Err(chunked::Malformed) => {
                outcome = Moved::Broken(Cause::with(Reason::BodyInvalid, "malformed chunk"));
                break;
            }
        };
        body_bytes += data_bytes as u64;
        client.transport.consume(used);
        client.transport.settle(buffers);
        if http.outgoing_bytes() >= DIRECT_BYTES_MIN {
            sent += http.flush_upload(&mut server.transport, buffers);
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
    let mut bytes = 0;
    let mut outcome = Moved::More;
    for _ in 0..ROUNDS_MAX {
        if http.is_downloaded() || client.transport.pending() >= PENDING_BYTES_MAX {
            outcome = Moved::Blocked;
            break;
        }
        if server.transport.unread().is_empty() && server.transport.receive(buffers) == Received::Nothing {
            outcome = match server.transport.end() {
                None => Moved::Blocked,
                Some(End::Fin) if http.lasts_until_close() && !server.transport.is_cut() => {
                    http.end_download();
                    http.write_download_end(&mut headers.out);
                    Moved::Blocked
                }
                Some(end) => Moved::Broken(cut_response(end)),
            };
            break;
        }
        let (used, step) = match http.read_download(server.transport.unread()) {
            Ok(read) => read,
            Err(chunked::Malformed) => {
                outcome = Moved::Broken(Cause::with(Reason::ResponseIncomplete, "malformed chunk"));
                break;
            }
        };
        if let BodyStep::Data(data) = step {
            bytes += data.len() as u64;
            if data.len() >= DIRECT_BYTES_MIN && !http.downloads_chunks() {
                client.transport.send(&headers.out, buffers);
                headers.out.clear();
                client.transport.send(data, buffers);
            } else {
                http.write_download(data, &mut headers.out);
            }
        }
        http.write_download_end(&mut headers.out);
        server.transport.consume(used);
        server.transport.settle(buffers);
        if headers.out.len() >= PENDING_BYTES_MAX {
            client.transport.send(&headers.out, buffers);
            headers.out.clear();
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
