//! HTTP part of an exchange: the bytes for its server, and the progress of both bodies.

use super::{Exchange, HttpPart, Keep, Reach, Reuse};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::http::message::Afterwards;
use crate::io::request_log::Tap;
use crate::io::transport::{Buffers, Transport};
use evener_core::pace::{Pace, Progress};
use evener_core::spec::Balance;
use evener_core::wire::chunked::{self, Decoder, Step};
use evener_core::wire::http::{self as wire, Framing, HttpVersion, Response, Scan};
use std::time::Duration;

/// Longest request that is stored for a retry.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

impl Exchange {
    /// Makes the exchange carry an HTTP request. `header` is the header section that the client sent,
    /// `outgoing` the header section for the server.
    pub(in crate::http) fn set_request(
        &mut self,
        request: &wire::Request,
        header: &[u8],
        outgoing: Vec<u8>,
        upload: Body,
        stream: Option<StreamKey>,
    ) {
        let method = request.method(header);
        let spec = self.settings.http.as_deref();
        let is_bound_to_client = spec.is_some_and(|spec| spec.balance == Balance::Connection);
        self.http = Some(Box::new(HttpPart {
            pace: Pace::default(),
            uploaded: 0,
            downloaded: 0,
            replay: (outgoing.len() <= REPLAY_BYTES_MAX).then(Vec::new),
            outgoing,
            upload,
            uploads_chunks: request.framing() == Some(Framing::Chunked),
            download: Body::header(),
            downloads_chunks: false,
            is_head: method == b"HEAD",
            is_connect: method == b"CONNECT",
            is_idempotent: request.is_idempotent(header),
            is_http10: request.version() == HttpVersion::Http10,
            upgrades: request.upgrade(header).is_some(),
            client_stays: request.keeps_alive(),
            server_stays: false,
            has_responded: false,
            is_relay: false,
            is_repeated: false,
            interims: 0,
            retries: spec.map_or(0, |spec| spec.retries),
            stream,
            is_private: is_bound_to_client || self.is_personal(),
        }));
    }
}

impl HttpPart {
    /// Returns whether the request had the method HEAD.
    pub(in crate::http) fn is_head(&self) -> bool {
        self.is_head
    }

    /// Returns the stream of HTTP/2 to which the request belongs.
    pub(in crate::http) fn stream(&self) -> Option<StreamKey> {
        self.stream
    }

    /// Returns whether the client receives interim responses, which HTTP/1.0 does not have (RFC 9110, section
    /// 15.2).
    pub(in crate::http) fn takes_interims(&self) -> bool {
        !self.is_http10
    }

    /// Returns whether the final response has begun.
    pub(in crate::http) fn has_responded(&self) -> bool {
        self.has_responded
    }

    /// Returns whether the client's connection stays open after the response.
    pub(in crate::http) fn client_stays(&self) -> bool {
        self.client_stays
    }

    /// Returns the use of the server's connection after the response.
    pub(in crate::http) fn keep(&self) -> Keep {
        match (self.server_stays && self.is_uploaded(), self.is_private) {
            (false, _) => Keep::No,
            (true, true) => Keep::Private,
            (true, false) => Keep::Shared,
        }
    }

    /// Returns whether the whole body of the request was received.
    pub(in crate::http) fn is_uploaded(&self) -> bool {
        self.upload == Body::Done
    }

    /// Returns the number of bytes queued for the server.
    pub(in crate::http) fn outgoing_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Reads the next part of the client's body.
    pub(in crate::http) fn read_upload<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(usize, Step<'a>), chunked::Malformed> {
        take(&mut self.upload, input)
    }

    /// Queues a part of the client's body for the server.
    pub(in crate::http) fn queue_upload(&mut self, data: &[u8]) {
        self.uploaded += data.len() as u64;
        put(data, self.uploads_chunks, &mut self.outgoing);
    }

    /// Ends the body of the request.
    pub(in crate::http) fn end_upload(&mut self) {
        self.upload = Body::Done;
        if self.uploads_chunks {
            self.outgoing.extend_from_slice(chunked::BODY_END);
        }
    }

    /// Sends the queued bytes to the server and returns their number. Stores them for a retry, unless the
    /// request is longer than [`REPLAY_BYTES_MAX`].
    pub(in crate::http) fn flush_upload(&mut self, server: &mut Transport, buffers: &mut Buffers) -> usize {
        self.send_queued(b"", server, buffers)
    }

    /// Sends a large part of the client's body after the queued bytes, without a copy if it needs no framing and
    /// no TLS. Returns the number of bytes that were sent.
    pub(in crate::http) fn send_upload(
        &mut self,
        data: &[u8],
        server: &mut Transport,
        buffers: &mut Buffers,
    ) -> usize {
        if self.uploads_chunks || server.tls().is_some() {
            self.queue_upload(data);
            return self.flush_upload(server, buffers);
        }
        self.uploaded += data.len() as u64;
        self.send_queued(data, server, buffers)
    }

    fn send_queued(&mut self, data: &[u8], server: &mut Transport, buffers: &mut Buffers) -> usize {
        let sent = self.outgoing.len() + data.len();
        if let Some(replay) = &mut self.replay {
            if replay.len() + sent <= REPLAY_BYTES_MAX {
                replay.extend_from_slice(&self.outgoing);
                replay.extend_from_slice(data);
            } else {
                self.replay = None;
            }
        }
        server.send_both([&self.outgoing, data], buffers);
        self.outgoing.clear();
        sent
    }

    /// Returns the scan for the header section of the response, while the header section is awaited.
    pub(in crate::http) fn scan(&mut self) -> Option<&mut Scan> {
        if let Body::Header(scan) = &mut self.download { Some(scan) } else { None }
    }

    /// Decides how the body of the response is framed for a client of HTTP/1, and whether the client's
    /// connection stays open.
    pub(in crate::http) fn begin_download(
        &mut self,
        response: &Response,
        framing: Option<Framing>,
        client_leaves: bool,
    ) -> (Option<Framing>, Afterwards) {
        // A body of unknown length is sent in chunks, unless the client does not understand chunks.
        let outgoing = match framing {
            // A response without a body, such as to HEAD, must not announce chunks to a client of HTTP/1.0
            // either (RFC 9112, section 6.1).
            None => response.declared_framing().filter(|forwarded| {
                response.status() != 204 && !(self.is_http10 && *forwarded == Framing::Chunked)
            }),
            Some(Framing::Length(length)) => Some(Framing::Length(length)),
            Some(Framing::Chunked | Framing::Close) if self.is_http10 => Some(Framing::Close),
            Some(Framing::Chunked | Framing::Close) => Some(Framing::Chunked),
        };
        self.downloads_chunks = framing.is_some() && outgoing == Some(Framing::Chunked);
        // A client that still uploads may never finish, and the rest of its body must not be parsed as the next
        // request.
        self.client_stays &= outgoing != Some(Framing::Close) && !client_leaves && self.is_uploaded();
        let afterwards = match (self.client_stays, self.is_http10) {
            (false, _) => Afterwards::Closes,
            (true, false) => Afterwards::Stays,
            (true, true) => Afterwards::KeepAlive,
        };
        (outgoing, afterwards)
    }

    /// Returns whether the whole response was received.
    pub(in crate::http) fn is_downloaded(&self) -> bool {
        self.download == Body::Done
    }

    /// Returns whether the client gets the body of the response in chunks.
    pub(in crate::http) fn downloads_chunks(&self) -> bool {
        self.downloads_chunks
    }

    /// Reads the next part of the response's body.
    pub(in crate::http) fn read_download<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(usize, Step<'a>), chunked::Malformed> {
        take(&mut self.download, input)
    }

    /// Reads up to `room` bytes of the response's body into `data`; returns the number of consumed bytes. Small
    /// chunks are joined, because many small frames look like an attack to clients. Chunk framing needs no
    /// room, so the end of the body is read even when the client's window is used up.
    pub(in crate::http) fn gather_download(
        &mut self,
        input: &[u8],
        room: usize,
        data: &mut Vec<u8>,
    ) -> Result<usize, chunked::Malformed> {
        let (body, mut consumed) = (&mut self.download, 0);
        while consumed < input.len() && *body != Body::Done {
            let mut ahead = *body;
            let (used, step) = take(&mut ahead, &input[consumed..])?;
            let Step::Data(found) = step else {
                *body = ahead;
                consumed += used;
                continue;
            };
            let excess = found.len().saturating_sub(room - data.len());
            if excess > 0 {
                let used = used - excess;
                if let (_, Step::Data(fits)) = take(body, &input[consumed..consumed + used])? {
                    data.extend_from_slice(fits);
                }
                return Ok(consumed + used);
            }
            data.extend_from_slice(found);
            *body = ahead;
            consumed += used;
        }
        Ok(consumed)
    }

    /// Writes data of the response's body for the client.
    pub(in crate::http) fn write_download(&self, data: &[u8], out: &mut Vec<u8>) {
        put(data, self.downloads_chunks, out);
    }

    /// Writes the end of the response's body for the client, once the body is complete.
    pub(in crate::http) fn write_download_end(&self, out: &mut Vec<u8>) {
        if self.is_downloaded() && self.downloads_chunks {
            out.extend_from_slice(chunked::BODY_END);
        }
    }

    /// Returns whether the body of the response lasts until the server closes its connection.
    pub(in crate::http) fn lasts_until_close(&self) -> bool {
        self.download == Body::Close
    }

    /// Ends the body of the response.
    pub(in crate::http) fn end_download(&mut self) {
        self.download = Body::Done;
    }

    /// Returns the pooled connections that the request may use.
    pub(in crate::http) fn reuse(&self) -> Reuse {
        if self.is_private { Reuse::Never } else { self.default_reuse() }
    }

    /// Returns the request line, with the version that the client used. The header section must still be
    /// queued.
    pub(in crate::http) fn request_line(&self) -> Vec<u8> {
        let end = self.outgoing.windows(2).position(|end| end == b"\r\n").unwrap_or(self.outgoing.len());
        let line = &self.outgoing[..end];
        let version: &[u8] = match self.stream {
            Some(_) => b"HTTP/2.0",
            None if self.is_http10 => b"HTTP/1.0",
            None => b"HTTP/1.1",
        };
        let until = line.iter().rposition(|byte| *byte == b' ').map_or(line.len(), |at| at + 1);
        [&line[..until], version].concat()
    }

    /// Returns the connections that the request may reuse, pooled or private: any connection if repeating the
    /// request is harmless, and fresh connections otherwise.
    pub(in crate::http) fn default_reuse(&self) -> Reuse {
        if self.is_idempotent { Reuse::Any } else { Reuse::Fresh }
    }
}

/// Progress of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Body {
    /// The header section of the response is awaited.
    Header(Scan),
    /// This number of bytes is still to come.
    Length(u64),
    /// Chunks are still to come.
    Chunked(Decoder),
    /// The body lasts until the connection ends.
    Close,
    /// The body is complete.
    Done,
}

impl Body {
    pub(in crate::http) fn header() -> Self {
        Self::Header(Scan::of_response())
    }
}

/// Reads the next part of a body; returns the number of consumed bytes.
fn take<'a>(body: &mut Body, bytes: &'a [u8]) -> Result<(usize, Step<'a>), chunked::Malformed> {
    match body {
        Body::Length(left) => {
            let length = (*left).min(bytes.len() as u64);
            *left -= length;
            if *left == 0 {
                *body = Body::Done;
            }
            Ok((length as usize, Step::Data(&bytes[..length as usize])))
        }
        Body::Chunked(decoder) => {
            let taken = decoder.step(bytes)?;
            // After the last data, the decoder may need another step to read the end of the body.
            if decoder.is_done() {
                *body = Body::Done;
            }
            Ok(taken)
        }
        Body::Close => Ok((bytes.len(), Step::Data(bytes))),
        Body::Header(_) | Body::Done => Ok((0, Step::Done)),
    }
}

/// Writes a part of a body, as a chunk or unframed.
fn put(data: &[u8], as_chunk: bool, out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    if as_chunk {
        chunked::emit_size(data.len(), out);
    }
    out.extend_from_slice(data);
    if as_chunk {
        out.extend_from_slice(chunked::CHUNK_END);
    }
}

impl Shared {
    /// Counts a request that was sent for the first time or again, records the server of the client, and logs
    /// the request line if there is a log.
    pub(in crate::http) fn note_request(
        &mut self,
        cx: &Context,
        client: &Client,
        exchange_key: ExchangeKey,
        line: Option<&[u8]>,
    ) {
        let exchange = &mut self.exchanges[exchange_key];
        if exchange.http.as_deref_mut().is_some_and(|http| std::mem::take(&mut http.is_repeated)) {
            client.service.live.counters.of(cx.id).requests_retried.one();
        }
        if let Some(entry) = &mut exchange.entry {
            entry.on_sent(cx.now);
        }
        let Some(choice) = &exchange.choice else { return };
        choice.server.live.counters.of(cx.id).requests.one();
        client.note_server(cx, exchange.backend(), &choice.server);
        if let Some((log, line)) = exchange.settings.request_log.as_deref().zip(line) {
            let counters = client.service.live.counters.of(cx.id);
            Tap::new(log, exchange.client, &choice.server.target, counters).request(line);
        }
    }

    /// Returns whether the body of a request arrives below the minimum rate, because the client sends slowly or
    /// the server takes no more bytes. After the response has begun there is no minimum rate, because the body
    /// may be one half of a dialogue.
    pub(in crate::http) fn is_slow(&mut self, cx: &Context, exchange_key: ExchangeKey) -> bool {
        let Exchange { http: Some(http), settings, reach, .. } = &mut *self.exchanges[exchange_key] else {
            return false;
        };
        let Some(rate) = settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
        let owes = matches!(reach, Reach::Open(_)) && http.upload != Body::Done && !http.has_responded;
        let progress = Progress { moved: http.uploaded, due: owes.then_some(u64::MAX) };
        http.pace.is_slow(cx.now, progress, &rate)
    }

    /// Begins the wait for the response: the request is complete.
    pub(in crate::http) fn await_response(&mut self, cx: &Context, exchange_key: ExchangeKey) {
        let exchange = &mut self.exchanges[exchange_key];
        // The response may have begun while the body was still received.
        if exchange.http.as_ref().is_some_and(|http| http.has_responded) {
            return;
        }
        let patience = exchange.settings.http.as_ref().map_or(Duration::MAX, |spec| spec.response_timeout);
        exchange.since = cx.now;
        self.exchange_timers.set(exchange_key, cx.now + patience);
    }

    /// Returns true if the server delays a request: the server is not reached yet, or does not take the queued
    /// bytes. In that case also counts a timeout of the server.
    pub(in crate::http) fn is_delayed_by_server(&self, cx: &Context, exchange_key: ExchangeKey) -> bool {
        let fault = match self.exchanges[exchange_key].reach {
            Reach::Open(server_key) => self.servers[server_key].transport.pending() > 0,
            _ => true,
        };
        if fault {
            self.count_timeout(cx, exchange_key);
        }
        fault
    }

    /// Counts a timeout of a server.
    pub(in crate::http) fn count_timeout(&self, cx: &Context, exchange_key: ExchangeKey) {
        if let Some(choice) = &self.exchanges[exchange_key].choice {
            choice.server.live.counters.of(cx.id).response_timeouts.one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body in pieces of this length. Returns its progress and its data, in chunks or unframed; `None`
    /// if it is malformed.
    fn reframed(mut body: Body, bytes: &[u8], piece: usize, as_chunks: bool) -> Option<(Body, String)> {
        let (mut out, mut start, mut end) = (Vec::new(), 0, 0);
        while end < bytes.len() && body != Body::Done {
            end = bytes.len().min(end + piece);
            loop {
                let (used, step) = take(&mut body, &bytes[start..end]).ok()?;
                start += used;
                match step {
                    Step::Data(data) if !data.is_empty() => put(data, as_chunks, &mut out),
                    _ if used == 0 || body == Body::Done => break,
                    _ => {}
                }
            }
        }
        Some((body, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn bodies_are_read_in_pieces_of_any_length() {
        let chunked = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\nnext";
        for piece in 1..=chunked.len() {
            let taken = reframed(Body::Chunked(Decoder::default()), chunked, piece, false);
            assert_eq!(taken, Some((Body::Done, "abcde".into())), "chunked body in pieces of {piece}");
            let taken = reframed(Body::Length(5), b"abcdenext", piece, false);
            assert_eq!(taken, Some((Body::Done, "abcde".into())), "body with a length, in pieces of {piece}");
            let taken = reframed(Body::Close, b"abcde", piece, false);
            assert_eq!(
                taken,
                Some((Body::Close, "abcde".into())),
                "body until the close, in pieces of {piece}"
            );
        }
    }

    #[test]
    fn bodies_are_chunked_and_malformed_bodies_are_refused() {
        let check = |body: Body, bytes: &[u8], expected: Option<&str>| {
            let taken = reframed(body, bytes, 4, true).map(|(_, text)| text);
            assert_eq!(taken.as_deref(), expected, "{}", String::from_utf8_lossy(bytes));
        };
        check(Body::Length(6), b"abcdef", Some("4\r\nabcd\r\n2\r\nef\r\n"));
        check(Body::Close, b"", Some(""));
        check(Body::Chunked(Decoder::default()), b"2\r\nab\r\n0\r\n\r\n", Some("1\r\na\r\n1\r\nb\r\n"));
        check(Body::Chunked(Decoder::default()), b"x\r\n", None);
        check(Body::Chunked(Decoder::default()), b"2\r\nabc", None);
    }
}
