//! Bodies: what a client uploads goes to the server, what the server answers goes to the client, each as far as the
//! other side takes it.

use super::{Next, Stage, Then, answer, fail_exchange, http1, set_stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey, StreamKey};
use crate::http::Http;
use crate::http::exchange::{self, Exchange, Keep, Reach, Reuse};
use crate::http::session::{self, Mode, ROUNDS_MAX, Stay};
use crate::io::relay::End;
use crate::io::request_log::Tap;
use crate::io::transport::{Buffers, Link, PENDING_BYTES_MAX, Received};
use evener_core::pace::{Pace, Progress};
use evener_core::wire::chunked::{self, Decoder, Step};
use evener_core::wire::http::Scan;
use std::time::Duration;

/// What was sent to a server is kept up to this size, to be sent to another one if need be.
pub(super) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Parts of bodies from this size on are sent as they are; smaller ones go together with what is before them.
const DIRECT_BYTES_MIN: usize = 16 * 1024;

/// The part of an exchange that is HTTP.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about the request")]
pub(crate) struct HttpPart {
    /// What goes to the server next, the head first.
    pub(crate) outgoing: Vec<u8>,
    /// All that went to the server, while it is little; absent when it was too much to be sent again.
    pub(super) replay: Option<Vec<u8>>,
    pub(crate) upload: Body,
    /// How much of the body came, and how fast.
    pub(crate) uploaded: u64,
    pub(super) pace: Pace,
    pub(crate) uploads_chunks: bool,
    pub(crate) download: Body,
    pub(super) downloads_chunks: bool,
    pub(crate) is_head: bool,
    pub(super) is_connect: bool,
    pub(crate) is_idempotent: bool,
    pub(super) is_http10: bool,
    /// The client asks for another protocol.
    pub(super) upgrades: bool,
    /// The client keeps the connection afterwards.
    pub(crate) stays: bool,
    /// So does the server.
    pub(crate) server_stays: bool,
    /// The final answer began.
    pub(crate) answered: bool,
    /// Answers before the final one.
    pub(super) interims: u32,
    pub(super) retries: u32,
    /// The server's connection is for this client only.
    pub(crate) is_private: bool,
    /// The stream of HTTP/2 that it belongs to.
    pub(crate) stream: Option<StreamKey>,
}

impl HttpPart {
    /// Which of the kept connections will do.
    pub(crate) fn reuse(&self) -> Reuse {
        if self.is_private { Reuse::Never } else { self.reuse_own() }
    }

    /// The line that the request begins with, as its client would say it; to be asked before anything went out.
    pub(crate) fn request_line(&self) -> Vec<u8> {
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

    /// Whether the client's own kept connection will do.
    pub(crate) fn reuse_own(&self) -> Reuse {
        if self.is_idempotent { Reuse::Any } else { Reuse::Fresh }
    }
}

/// Progress of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The head of an answer is awaited.
    Head(Scan),
    /// So many bytes are to come.
    Length(u64),
    /// Chunks are to come.
    Chunked(Decoder),
    /// Everything until the end of the connection.
    Close,
    /// It is complete.
    Done,
}

impl Body {
    pub(super) fn head() -> Self {
        Self::Head(Scan::of_response())
    }
}

/// Moves what can be moved both ways.
pub(super) fn pump(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) -> Next {
    let Reach::Open(slot) = all.exchanges[number].reach else { return Next::Wait };
    all.servers[slot].link.flush(&mut all.buffers);
    let uploaded = upload(all, cx, index, number, slot);
    if uploaded == Moved::Broken {
        return bad_body(all, cx, index, number);
    }
    let next = answer::download(all, cx, index, number, slot);
    if uploaded == Moved::On {
        session::queue(all, cx, index);
    }
    next
}

/// How far a direction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// As far as it goes now.
    Waits,
    /// There is more; others come first.
    On,
    /// The source is malformed, or broke off.
    Broken,
}

/// The client's body is malformed, or the client left in its middle.
fn bad_body(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) -> Next {
    let session = &mut all.sessions[index];
    session.service.live.counters.of(cx.id).requests_bad.one();
    fail_exchange(all, cx, index, number, 400)
}

/// Sends the head, and what there is of the body.
fn upload(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
) -> Moved {
    let Http { sessions, exchanges, servers, buffers, .. } = &mut *all;
    let (session, exchange, server) = (&mut sessions[index], &mut exchanges[number], &mut servers[slot]);
    let Exchange { http: Some(http), choice, settings, .. } = &mut **exchange else { return Moved::Waits };
    if http.upload == Body::Done && http.outgoing.is_empty() {
        return Moved::Waits;
    }
    let mut outcome = Moved::On;
    let mut body_bytes = 0;
    let (mut sent, head) = (0, http.outgoing.len());
    let line = settings.request_log.as_ref().filter(|_| head > 0).map(|_| http.request_line());
    for _ in 0..ROUNDS_MAX {
        if server.link.pending() >= PENDING_BYTES_MAX || http.upload == Body::Done {
            outcome = Moved::Waits;
            break;
        }
        if session.link.input.is_empty() && session.link.receive(buffers) == Received::Nothing {
            outcome = if session.link.end.is_some() { Moved::Broken } else { Moved::Waits };
            break;
        }
        let (used, step) = match take(&mut http.upload, session.link.input.unread()) {
            Ok(taken) => taken,
            Err(chunked::Malformed) => {
                outcome = Moved::Broken;
                break;
            }
        };
        if let Step::Data(data) = step {
            body_bytes += data.len() as u64;
            http.uploaded += data.len() as u64;
            put(data, http.uploads_chunks, &mut http.outgoing);
        }
        if http.upload == Body::Done && http.uploads_chunks {
            http.outgoing.extend_from_slice(chunked::BODY_END);
        }
        session.link.input.consume(used);
        session.link.settle(buffers);
        if http.outgoing.len() >= DIRECT_BYTES_MIN {
            sent += flush_upload(http, &mut server.link, buffers);
        }
    }
    if outcome != Moved::Broken {
        sent += flush_upload(http, &mut server.link, buffers);
    }
    if let Some(choice) = choice {
        let of_server = choice.server.live.counters.of(cx.id);
        of_server.bytes_in.add(sent as u64);
    }
    session.count(body_bytes, 0, cx.id, cx.now);
    if body_bytes > 0 {
        session.active_at = cx.now;
    }
    let uploaded = http.upload == Body::Done;
    if head > 0 && sent > 0 {
        note_request(all, cx, number, line.as_deref());
    }
    if uploaded {
        await_answer(all, cx, number);
    }
    outcome
}

/// A request of HTTP went out: its client is with this server, and the line of it is written down.
pub(crate) fn note_request(all: &Http, cx: &Context, number: ExchangeKey, line: Option<&[u8]>) {
    let exchange = &all.exchanges[number];
    let (session, Some(choice)) = (&all.sessions[exchange.session], &exchange.choice) else { return };
    choice.server.live.counters.of(cx.id).requests.one();
    session.had(exchange.backend(), &choice.server);
    if let Some((log, line)) = exchange.settings.request_log.as_deref().zip(line) {
        let counters = session.service.live.counters.of(cx.id);
        Tap { log, client: exchange.client, server: &choice.server.target, counters }.request(line);
    }
}

/// Whether the body of a request comes, or its server takes it, below the minimum rate. Once the response began, both
/// sides may take their time: the body may be one half of a dialogue.
pub(crate) fn is_slow(all: &mut Http, cx: &mut Context, number: ExchangeKey) -> bool {
    let now = cx.now;
    let Exchange { http: Some(http), settings, reach, .. } = &mut *all.exchanges[number] else {
        return false;
    };
    let Some(rate) = settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
    let owes = matches!(reach, Reach::Open(_)) && http.upload != Body::Done && !http.answered;
    http.pace.is_slow(now, Progress { moved: http.uploaded, owed: owes.then_some(u64::MAX) }, &rate)
}

/// The request is whole: from here on it is the server's turn.
pub(crate) fn await_answer(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let exchange = &mut all.exchanges[number];
    // It may have answered already, while the body still came.
    if exchange.http.as_ref().is_some_and(|http| http.answered) {
        return;
    }
    let patience = exchange.settings.http.as_ref().map_or(Duration::MAX, |spec| spec.answer_timeout);
    exchange.since = cx.now;
    all.exchange_timers.set(number, cx.now + patience);
}

pub(crate) fn flush_upload(http: &mut HttpPart, server: &mut Link, buffers: &mut Buffers) -> usize {
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
pub(crate) fn take<'a>(body: &mut Body, bytes: &'a [u8]) -> Result<(usize, Step<'a>), chunked::Malformed> {
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
        Body::Head(_) | Body::Done => Ok((0, Step::Done)),
    }
}

/// Writes a part of a body in its new framing.
pub(crate) fn put(data: &[u8], as_chunk: bool, out: &mut Vec<u8>) {
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

/// Brings the answer's body to the client.
pub(super) fn download_body(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
) -> Moved {
    let Http { sessions, exchanges, servers, buffers, heads, .. } = &mut *all;
    let (session, exchange, server) = (&mut sessions[index], &mut exchanges[number], &mut servers[slot]);
    let Exchange { http: Some(http), choice, .. } = &mut **exchange else { return Moved::Waits };
    let mut bytes = 0;
    let mut outcome = Moved::On;
    for _ in 0..ROUNDS_MAX {
        if http.download == Body::Done || session.link.pending() >= PENDING_BYTES_MAX {
            outcome = Moved::Waits;
            break;
        }
        if server.link.input.is_empty() && server.link.receive(buffers) == Received::Nothing {
            outcome = match (server.link.end, http.download) {
                (None, _) => Moved::Waits,
                (Some(End::Fin), Body::Close) if !server.link.cut => {
                    http.download = Body::Done;
                    if http.downloads_chunks {
                        heads.out.extend_from_slice(chunked::BODY_END);
                    }
                    Moved::Waits
                }
                (Some(_), _) => Moved::Broken,
            };
            break;
        }
        let (used, step) = match take(&mut http.download, server.link.input.unread()) {
            Ok(taken) => taken,
            Err(chunked::Malformed) => {
                outcome = Moved::Broken;
                break;
            }
        };
        if let Step::Data(data) = step {
            bytes += data.len() as u64;
            if data.len() >= DIRECT_BYTES_MIN && !http.downloads_chunks {
                session.link.send(&heads.out, buffers);
                heads.out.clear();
                session.link.send(data, buffers);
            } else {
                put(data, http.downloads_chunks, &mut heads.out);
            }
        }
        if http.download == Body::Done && http.downloads_chunks {
            heads.out.extend_from_slice(chunked::BODY_END);
        }
        server.link.input.consume(used);
        server.link.settle(buffers);
        if heads.out.len() >= PENDING_BYTES_MAX {
            session.link.send(&heads.out, buffers);
            heads.out.clear();
        }
    }
    // Waiting for the rest is no reason to keep back what there is.
    session.link.send(&heads.out, buffers);
    session.count(0, bytes, cx.id, cx.now);
    if let Some(choice) = choice {
        choice.server.live.counters.of(cx.id).bytes_out.add(bytes);
    }
    if bytes > 0 || !heads.out.is_empty() {
        session.active_at = cx.now;
    }
    heads.out.clear();
    outcome
}

/// The answer is complete: the server's connection is kept, the client's goes on or ends.
pub(super) fn complete(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) -> Next {
    let exchange = &all.exchanges[number];
    let Some(http) = &exchange.http else { return Next::Wait };
    let uploaded = http.upload == Body::Done;
    let keep = match (http.server_stays && uploaded, http.is_private) {
        (false, _) => Keep::No,
        (true, true) => Keep::Private,
        (true, false) => Keep::Shared,
    };
    let stays = http.stays && uploaded;
    let patience = exchange.settings.http.as_ref().map_or(Duration::ZERO, |spec| spec.look_after());
    let stay = Stay::of(exchange);
    let private = exchange::end(all, cx, number, keep);
    let session = &mut all.sessions[index];
    session.stay = stay;
    if let Some(http) = http1(session) {
        http.keep(private);
    }
    set_stage(all, index, Stage::Flush(if stays { Then::NextRequest } else { Then::End }));
    if all.sessions[index].link.pending() > 0 {
        all.session_timers.set(index, cx.now + patience);
    }
    Next::Step
}

/// The connection is a relay from now on.
pub(super) fn become_relay(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) -> Next {
    all.exchange_timers.clear(number);
    all.session_timers.clear(index);
    all.exchanges[number].http = None;
    let session = &mut all.sessions[index];
    session.service.live.counters.of(cx.id).upgrades.one();
    session.mode = Mode::Relay(number);
    session::drive(all, cx, index);
    Next::Wait
}
