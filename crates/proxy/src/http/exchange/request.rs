//! The part of an exchange that is a request of HTTP: what goes to its server, and how far both bodies are.

use super::{Exchange, Reach, Reuse};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::io::request_log::Tap;
use crate::io::transport::{Buffers, Transport};
use evener_core::pace::{Pace, Progress};
use evener_core::wire::chunked::{self, Decoder, Step};
use evener_core::wire::http::Scan;
use std::time::Duration;

/// Longest request that is kept, to be sent to another server if need be.
pub(in crate::http) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// The part of an exchange that is HTTP.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about the request")]
pub(in crate::http) struct HttpPart {
    /// Bytes that go to the server next, the header section first.
    pub(in crate::http) outgoing: Vec<u8>,
    /// All that went to the server, while it is little; absent when it was too much to be sent again.
    pub(in crate::http) replay: Option<Vec<u8>>,
    pub(in crate::http) upload: Body,
    /// Bytes of the body that came so far.
    pub(in crate::http) uploaded: u64,
    pub(in crate::http) pace: Pace,
    pub(in crate::http) uploads_chunks: bool,
    pub(in crate::http) download: Body,
    pub(in crate::http) downloads_chunks: bool,
    pub(in crate::http) is_head: bool,
    pub(in crate::http) is_connect: bool,
    pub(in crate::http) is_idempotent: bool,
    pub(in crate::http) is_http10: bool,
    /// The client asks for another protocol.
    pub(in crate::http) upgrades: bool,
    /// The client keeps the connection afterwards.
    pub(in crate::http) stays: bool,
    /// So does the server.
    pub(in crate::http) server_stays: bool,
    /// The final response began.
    pub(in crate::http) responded: bool,
    /// Interim responses so far.
    pub(in crate::http) interims: u32,
    pub(in crate::http) retries: u32,
    /// The server's connection is for this client only.
    pub(in crate::http) is_private: bool,
    /// The stream of HTTP/2 that it belongs to.
    pub(in crate::http) stream: Option<StreamKey>,
}

impl HttpPart {
    /// Returns which of the pooled connections will do.
    pub(in crate::http) fn reuse(&self) -> Reuse {
        if self.is_private { Reuse::Never } else { self.default_reuse() }
    }

    /// The line that the request begins with, as its client would say it; to be asked before anything went out.
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

    /// Returns how recently the client's own connection must have been used.
    pub(in crate::http) fn default_reuse(&self) -> Reuse {
        if self.is_idempotent { Reuse::Any } else { Reuse::Fresh }
    }
}

/// Progress of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Body {
    /// The header section of a response is awaited.
    Header(Scan),
    /// So many bytes are to come.
    Length(u64),
    /// Chunks are to come.
    Chunked(Decoder),
    /// Everything until the end of the connection.
    Close,
    /// The body is complete.
    Done,
}

impl Body {
    pub(in crate::http) fn header() -> Self {
        Self::Header(Scan::of_response())
    }
}

/// Sends what there is of a request, and keeps it for another server while it is little; returns how many bytes that were.
pub(in crate::http) fn flush_upload(
    http: &mut HttpPart,
    server: &mut Transport,
    buffers: &mut Buffers,
) -> usize {
    let sent = http.outgoing.len();
    if let Some(replay) = &mut http.replay {
        if replay.len() + sent <= REPLAY_BYTES_MAX {
            replay.extend_from_slice(&http.outgoing);
        } else {
            http.replay = None;
        }
    }
    server.send(&http.outgoing, buffers);
    http.outgoing.clear();
    sent
}

/// Takes what comes next of a body; returns how many bytes that used.
pub(in crate::http) fn take<'a>(
    body: &mut Body,
    bytes: &'a [u8],
) -> Result<(usize, Step<'a>), chunked::Malformed> {
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
            // The end may be read with the last data only by another step.
            if decoder.is_done() {
                *body = Body::Done;
            }
            Ok(taken)
        }
        Body::Close => Ok((bytes.len(), Step::Data(bytes))),
        Body::Header(_) | Body::Done => Ok((0, Step::Done)),
    }
}

/// Writes a part of a body in its new framing.
pub(in crate::http) fn put(data: &[u8], as_chunk: bool, out: &mut Vec<u8>) {
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
    /// A request went out: its client is with this server, and the line of it is logged.
    pub(in crate::http) fn note_request(
        &self,
        cx: &Context,
        client: &Client,
        number: ExchangeKey,
        line: Option<&[u8]>,
    ) {
        let exchange = &self.exchanges[number];
        let Some(choice) = &exchange.choice else { return };
        choice.server.live.counters.of(cx.id).requests.one();
        client.note_server(exchange.backend(), &choice.server);
        if let Some((log, line)) = exchange.settings.request_log.as_deref().zip(line) {
            let counters = client.service.live.counters.of(cx.id);
            Tap { log, client: exchange.client, server: &choice.server.target, counters }.request(line);
        }
    }

    /// Returns whether the body of a request comes, or its server takes it, below the minimum rate. Once the response began, both
    /// sides may take their time: the body may be one half of a dialogue.
    pub(in crate::http) fn is_slow(&mut self, cx: &Context, number: ExchangeKey) -> bool {
        let Exchange { http: Some(http), settings, reach, .. } = &mut *self.exchanges[number] else {
            return false;
        };
        let Some(rate) = settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
        let owes = matches!(reach, Reach::Open(_)) && http.upload != Body::Done && !http.responded;
        let progress = Progress { moved: http.uploaded, due: owes.then_some(u64::MAX) };
        http.pace.is_slow(cx.now, progress, &rate)
    }

    /// The request is whole: from here on it is the server's turn.
    pub(in crate::http) fn await_response(&mut self, cx: &Context, number: ExchangeKey) {
        let exchange = &mut self.exchanges[number];
        // The response may have begun already, while the body still came.
        if exchange.http.as_ref().is_some_and(|http| http.responded) {
            return;
        }
        let patience = exchange.settings.http.as_ref().map_or(Duration::MAX, |spec| spec.response_timeout);
        exchange.since = cx.now;
        self.exchange_timers.set(number, cx.now + patience);
    }

    /// Returns whether the server holds up a request: it is not reached, or does not take what it gets. Counts that.
    pub(in crate::http) fn is_servers_fault(&self, cx: &Context, number: ExchangeKey) -> bool {
        let fault = match self.exchanges[number].reach {
            Reach::Open(slot) => self.servers[slot].transport.pending() > 0,
            _ => true,
        };
        if fault {
            self.note_timeout(cx, number);
        }
        fault
    }

    /// Counts that a server did not go on in time.
    pub(in crate::http) fn note_timeout(&self, cx: &Context, number: ExchangeKey) {
        if let Some(choice) = &self.exchanges[number].choice {
            choice.server.live.counters.of(cx.id).response_timeouts.one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a body in pieces of this length, and returns it in chunks or as it is.
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
    fn bodies_are_taken_however_they_are_cut() {
        let chunked = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\nnext";
        for piece in 1..=chunked.len() {
            let taken = reframed(Body::Chunked(Decoder::default()), chunked, piece, false);
            assert_eq!(taken, Some((Body::Done, "abcde".into())), "chunks in pieces of {piece}");
            let taken = reframed(Body::Length(5), b"abcdenext", piece, false);
            assert_eq!(taken, Some((Body::Done, "abcde".into())), "a length in pieces of {piece}");
            let taken = reframed(Body::Close, b"abcde", piece, false);
            assert_eq!(taken, Some((Body::Close, "abcde".into())), "until the end in pieces of {piece}");
        }
    }

    #[test]
    fn bodies_get_chunks_and_malformed_ones_are_refused() {
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
