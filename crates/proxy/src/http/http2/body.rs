//! Moves both bodies of a stream, and the header section of its response, no faster than the receivers take
//! them.

use super::Http2;
use super::header::translate;
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey, StreamKey};
use crate::http::client::Client;
use crate::http::exchange::{Exchange, ReadResponse, Shared, cut_response, invalid_header, no_response};
use crate::io::relay::End;
use crate::io::transport::{PENDING_BYTES_MAX, Received};
use bytes::Bytes;
use evener_core::reason::{Cause, Reason};
use evener_core::wire::http::{Found, Response};
use std::task::{self, Poll, Waker};
use std::time::Duration;

/// The status or a field of the response is not possible in HTTP/2.
const NOT_FOR_HTTP2: Cause =
    Cause::with(Reason::ResponseInvalid, "HTTP/2 does not permit its status or a field");

/// Keys of a stream, of its exchange, and of the connection to the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamPath {
    stream_key: StreamKey,
    exchange_key: ExchangeKey,
    server_key: ServerConnectionKey,
}

impl StreamPath {
    pub(super) fn new(
        stream_key: StreamKey,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) -> Self {
        Self { stream_key, exchange_key, server_key }
    }
}

/// Outcome of pumping a stream.
pub(super) enum Pumped {
    /// Another step may be possible immediately.
    Again,
    Blocked,
    /// The server sent no valid response.
    BadResponse(Cause),
    /// The client's body broke off, or the client receives no more of the response.
    Reset,
    Complete,
}

impl Http2 {
    /// Moves bytes in both directions, as many as both sides allow without waiting.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        path: StreamPath,
    ) -> Pumped {
        shared.servers[path.server_key].transport.flush(&mut shared.buffers);
        match self.upload(cx, client, shared, path) {
            Uploaded::Blocked => {}
            Uploaded::More => client.queue(cx),
            Uploaded::Broken => return Pumped::Reset,
        }
        let exchange = &mut shared.exchanges[path.exchange_key];
        let limits = exchange.settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
        let Some(http) = exchange.http.as_deref_mut() else { return Pumped::Blocked };
        if let Some(scan) = http.scan() {
            let server = &mut shared.servers[path.server_key];
            let found = scan.find(server.transport.unread(), &limits);
            let found = found.map_err(|error| invalid_header(error, server.transport.unread(), &limits));
            let silent = !scan.has_begun();
            return match found {
                Ok(Some(found)) => self.take_header(cx, client, shared, path, found),
                Ok(None) if server.transport.receive(&mut shared.buffers) == Received::Some => Pumped::Again,
                Ok(None) if server.transport.end().is_none() && !server.transport.is_broken() => {
                    Pumped::Blocked
                }
                Ok(None) if silent && shared.may_retry(cx, client, path.exchange_key, path.server_key) => {
                    let cause = no_response(shared.servers[path.server_key].transport.end(), b"");
                    shared.retry(cx, client, path.exchange_key, cause);
                    Pumped::Again
                }
                Ok(None) => {
                    let transport = &shared.servers[path.server_key].transport;
                    Pumped::BadResponse(no_response(transport.end(), transport.unread()))
                }
                Err(cause) => Pumped::BadResponse(cause),
            };
        }
        self.download(cx, client, shared, path)
    }
}

/// Progress of an upload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Uploaded {
    Blocked,
    /// More bytes can be moved, and no event will report them; the worker handles other sessions first.
    More,
    /// The client's body broke off.
    Broken,
}

impl Http2 {
    /// Sends the body of the request to the server.
    fn upload(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        path: StreamPath,
    ) -> Uploaded {
        let mut context = task::Context::from_waker(Waker::noop());
        let now = cx.now;
        let Shared { exchanges, servers, buffers, exchange_timers, .. } = &mut *shared;
        let (exchange, server) = (&mut exchanges[path.exchange_key], &mut servers[path.server_key]);
        let Some(stream) = self.streams.get_mut(path.stream_key) else { return Uploaded::Blocked };
        let Exchange { http: Some(http), settings, .. } = &mut **exchange else {
            return Uploaded::Blocked;
        };
        if http.is_uploaded() && http.outgoing_bytes() == 0 {
            return Uploaded::Blocked;
        }
        let begins = http.outgoing_bytes() > 0;
        let line =
            settings.request_log.as_ref().filter(|log| begins && log.is_pen()).map(|_| http.request_line());
        let (mut outcome, mut bytes) = (Uploaded::Blocked, 0);
        while !http.is_uploaded() && server.transport.pending() < PENDING_BYTES_MAX {
            if http.outgoing_bytes() >= PENDING_BYTES_MAX {
                outcome = Uploaded::More;
                break;
            }
            match stream.body.poll_data(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(data))) => {
                    bytes += data.len() as u64;
                    http.queue_upload(&data);
                    let _ = stream.body.flow_control().release_capacity(data.len());
                }
                Poll::Ready(Some(Err(_))) => {
                    outcome = Uploaded::Broken;
                    break;
                }
                Poll::Ready(None) => http.end_upload(),
            }
            if stream.body.is_end_stream() && !http.is_uploaded() {
                http.end_upload();
            }
        }
        let mut sent = 0;
        if outcome != Uploaded::Broken {
            sent = http.flush_upload(&mut server.transport, buffers);
        }
        if bytes > 0 {
            (client.active_at, stream.active_at) = (now, now);
        }
        client.count(cx, bytes, 0);
        if begins && !http.is_uploaded() && !http.has_responded() {
            let patience = settings.http.as_ref().map_or(Duration::MAX, |spec| spec.progress_interval());
            exchange_timers.set(path.exchange_key, now + patience);
        }
        let uploaded = http.is_uploaded();
        exchange.count(cx, sent as u64, 0);
        if begins && outcome != Uploaded::Broken {
            shared.note_request(cx, client, path.exchange_key, line.as_deref());
        }
        if uploaded {
            shared.await_response(cx, path.exchange_key);
        }
        outcome
    }
}

impl Http2 {
    fn take_header(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        path: StreamPath,
        found: Found,
    ) -> Pumped {
        let mut response = std::mem::take(&mut shared.headers.response);
        let pumped = self.read_header(cx, client, shared, path, found, &mut response);
        shared.headers.response = response;
        pumped
    }

    fn read_header(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        path: StreamPath,
        found: Found,
        response: &mut Response,
    ) -> Pumped {
        let read = match shared.read_response(cx, client, path.exchange_key, path.server_key, found, response)
        {
            Ok(read) => read,
            Err(cause) => return Pumped::BadResponse(cause),
        };
        let Shared { exchanges, servers, buffers, exchange_timers, .. } = &mut *shared;
        let now = cx.now;
        let server = &mut servers[path.server_key];
        let header = &server.transport.unread()[found.start..found.end];
        let mut pumped = Pumped::Again;
        if matches!(read, ReadResponse::Interim) {
            self.send_interim(path.stream_key, response, header);
        }
        if let ReadResponse::Final { framing, cookie } = read {
            let Some(http) = exchanges[path.exchange_key].http.as_deref_mut() else {
                return Pumped::Blocked;
            };
            let Some(translated) = translate(response, header, framing, cookie.as_deref()) else {
                return Pumped::BadResponse(NOT_FOR_HTTP2);
            };
            let Some(stream) = self.streams.get_mut(path.stream_key) else { return Pumped::Blocked };
            let ends = http.is_downloaded();
            match stream.respond.send_response(translated, ends) {
                Ok(send) => stream.send = Some(send),
                Err(_) => return Pumped::Reset,
            }
            if ends {
                pumped = Pumped::Complete;
            } else {
                stream.active_at = now;
                let spec = exchanges[path.exchange_key].settings.http.as_ref();
                exchange_timers.set(
                    path.exchange_key,
                    now + spec.map_or(Duration::MAX, |spec| spec.progress_interval()),
                );
            }
        }
        server.transport.consume(found.end);
        server.transport.settle(buffers);
        pumped
    }
}

impl Http2 {
    /// Sends an interim response to the client (RFC 9110, section 15.2).
    fn send_interim(&mut self, key: StreamKey, response: &Response, header: &[u8]) {
        let translated = translate(response, header, None, None);
        if let Some((stream, translated)) = self.streams.get_mut(key).zip(translated) {
            // An interim response that cannot be sent is omitted; only the final one is required.
            let _ = stream.respond.send_informational(translated);
        }
    }
}

impl Http2 {
    /// Sends the body of the response to the client, as many bytes as the client's window allows.
    fn download(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        path: StreamPath,
    ) -> Pumped {
        let now = cx.now;
        let mut context = task::Context::from_waker(Waker::noop());
        let Shared { exchanges, servers, buffers, .. } = &mut *shared;
        let server = &mut servers[path.server_key];
        let Some(send) = self.streams.get_mut(path.stream_key).and_then(|stream| stream.send.as_mut()) else {
            return Pumped::Blocked;
        };
        let exchange = &mut exchanges[path.exchange_key];
        let Some(http) = exchange.http.as_deref_mut() else { return Pumped::Blocked };
        if client.transport.pending() >= PENDING_BYTES_MAX {
            return Pumped::Blocked;
        }
        if server.transport.unread().is_empty() {
            // The received bytes may contain no payload but messages of TLS, even the end of TLS. No event
            // reports the remaining bytes, so another step follows.
            if server.transport.receive(buffers) == Received::Some {
                return Pumped::Again;
            }
            return match server.transport.end() {
                None => Pumped::Blocked,
                Some(End::Fin) if http.lasts_until_close() && !server.transport.is_cut() => {
                    http.end_download();
                    let _ = send.send_data(Bytes::new(), true);
                    Pumped::Complete
                }
                Some(end) => Pumped::BadResponse(cut_response(end)),
            };
        }
        let available = server.transport.unread().len().min(PENDING_BYTES_MAX);
        send.reserve_capacity(available);
        if send.capacity() == 0
            && matches!(send.poll_capacity(&mut context), Poll::Ready(Some(Err(_)) | None))
        {
            return Pumped::Reset;
        }
        let room = send.capacity().min(available);
        let mut data = Vec::with_capacity(room);
        let Ok(used) = http.gather_download(server.transport.unread(), room, &mut data) else {
            return Pumped::BadResponse(Cause::with(Reason::ResponseIncomplete, "malformed chunk"));
        };
        if used == 0 {
            // An event follows when the client enlarges its window.
            return Pumped::Blocked;
        }
        let done = http.is_downloaded();
        let bytes = data.len() as u64;
        if (done || !data.is_empty()) && send.send_data(data.into(), done).is_err() {
            return Pumped::Reset;
        }
        server.transport.consume(used);
        server.transport.settle(buffers);
        client.active_at = now;
        if let Some(stream) = self.streams.get_mut(path.stream_key) {
            stream.active_at = now;
            stream.taken += used as u64;
        }
        client.count(cx, 0, bytes);
        exchange.count_response(cx, bytes);
        if done { Pumped::Complete } else { Pumped::Again }
    }
}
