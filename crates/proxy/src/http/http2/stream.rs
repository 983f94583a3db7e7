//! One stream: its request becomes an exchange, its body goes to the server, the answer comes back in frames.

use super::{Stream, http2, own_answer, status_of};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey, StreamKey};
use crate::http::Http;
use crate::http::exchange::{self, Exchange, Keep, Reach};
use crate::http::http1::{self, Body, HttpPart, Judged, Outgoing};
use crate::http::message::OwnAnswer;
use crate::http::session::{self, LINGER, Mode, ROUNDS_MAX, Stay};
use crate::io::relay::End;
use crate::io::transport::{PENDING_BYTES_MAX, Received};
use bytes::Bytes;
use evener_core::pace::{Pace, Progress};
use evener_core::wire::chunked::{self, Step};
use evener_core::wire::http::{Found, Framing, HeadLimits, Response};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use std::task::{self, Poll, Waker};
use std::time::Duration;

/// A request came.
pub(super) fn begin(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let active_at = cx.now;
    let mut head = std::mem::take(&mut all.heads.head);
    write_head(&parts, body.is_end_stream(), &mut head);
    let Some(session) = all.sessions.get_mut(index) else { return };
    let too_large = session.settings.http.as_ref().is_some_and(|spec| exceeds(&parts, &head, &spec.limits));
    let Some(http) = http2(session) else { return };
    let bodyless = body.is_end_stream();
    http.idle = false;
    let key = http.streams.insert(Stream {
        exchange: None,
        active_at,
        taken: 0,
        pace: Pace::default(),
        body,
        respond,
        send: None,
    });
    let outgoing = if bodyless { Outgoing::Complete(key) } else { Outgoing::Stream(key) };
    let judged = if too_large {
        http1::refuse_stream(all, cx, index, &head, 431)
    } else {
        http1::judge_stream(all, cx, index, &head, outgoing)
    };
    all.heads.head = head;
    match judged {
        Judged::Exchange(number) => {
            if let Some(stream) = stream_of(all, index, key) {
                stream.exchange = Some(number);
            }
            drive(all, cx, index, number);
        }
        Judged::Answer(own) => answer_own(all, cx, index, key, &own.answer, own.is_head),
        Judged::Close => session::close(all, cx, index),
        Judged::Waits => {}
    }
}

/// Whether a head has more fields or bytes than the limits allow, as it came: pieces of a cookie are fields, too. Bytes are
/// counted as HTTP/1.1 would have them.
fn exceeds(parts: &http::request::Parts, head: &[u8], limits: &HeadLimits) -> bool {
    let pieces = parts.headers.get_all(http::header::COOKIE).iter().count();
    // Joined, each piece but the first costs two bytes instead of `cookie: ` and the end of the line.
    let bytes = head.len() + pieces.saturating_sub(1) * ("cookie: \r\n".len() - "; ".len());
    parts.headers.len() > limits.fields_max || bytes > limits.bytes_max
}

/// The head as HTTP/1.1 would have it: one reader for both, so that the same is refused and understood.
fn write_head(parts: &http::request::Parts, bodyless: bool, out: &mut Vec<u8>) {
    out.clear();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    for part in [parts.method.as_str(), " ", path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut field = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    // `:authority` comes before `Host`, which then says the same (RFC 9113, section 8.3.1).
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    if let Some(authority) = authority {
        field("host", authority.as_bytes());
    }
    // Cookies may come in pieces (RFC 9113, section 8.2.3).
    let cookies: Vec<&[u8]> =
        parts.headers.get_all(http::header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
    if !cookies.is_empty() {
        field("cookie", &cookies.join(&b"; "[..]));
    }
    for (name, value) in &parts.headers {
        let said = name == http::header::COOKIE || (name == http::header::HOST && authority.is_some());
        if !said {
            field(name.as_str(), value.as_bytes());
        }
    }
    if !bodyless && !parts.headers.contains_key(http::header::CONTENT_LENGTH) {
        field("transfer-encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
}

fn stream_of(all: &mut Http, index: SessionKey, key: StreamKey) -> Option<&mut Stream> {
    all.sessions.get_mut(index).and_then(|session| http2(session))?.streams.get_mut(key)
}

fn key_of(all: &Http, number: ExchangeKey) -> Option<StreamKey> {
    all.exchanges.get(number)?.http.as_ref()?.stream
}

/// Answers for ourselves; the stream is over.
fn answer_own(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    key: StreamKey,
    answer: &OwnAnswer,
    is_head: bool,
) {
    let (response, body) = own_answer(answer);
    let bodyless = is_head || !answer.has_body();
    let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) else { return };
    let Some(mut stream) = http.streams.remove(key) else { return };
    if let Ok(mut send) = stream.respond.send_response(response, bodyless)
        && !bodyless
    {
        let _ = send.send_data(body, true);
    }
    leave_body(all, cx, index, stream.body);
}

/// The response is out: what still comes of the request's body is for nobody.
fn leave_body(all: &mut Http, cx: &mut Context, index: SessionKey, body: RecvStream) {
    let now = cx.now;
    let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) else { return };
    http.rests.add(body, now);
    if !http.rests.is_empty() {
        all.session_timers.hasten(index, now + LINGER);
    }
}

/// No server answers.
pub(super) fn fail(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey, status: u16) {
    let Some(key) = key_of(all, number) else { return };
    let session = &all.sessions[index];
    session.service.live.counters.of(cx.id).requests_failed.one();
    let http = all.exchanges[number].http.as_deref();
    let (answered, is_head) = http.map_or((false, false), |http| (http.answered, http.is_head));
    exchange::abandon(all, cx, number);
    if answered {
        return reset(all, index, key, Reason::INTERNAL_ERROR);
    }
    answer_own(all, cx, index, key, &OwnAnswer::page(status), is_head);
}

/// It is time to look whether its bodies move, and fast enough.
pub(super) fn on_look(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    let Some(key) = key_of(all, number) else { return };
    let Some(spec) = all.sessions[index].settings.http.clone() else { return };
    let Some(active_at) = stream_of(all, index, key).map(|stream| stream.active_at) else { return };
    // What waits for the client as a whole is judged as a whole; a little is always under way where others go on.
    let held = all.sessions[index].link.left() >= PENDING_BYTES_MAX;
    let sends_slowly = http1::is_slow(all, cx, number);
    let takes_slowly = takes_slowly(all, cx, index, number, key, held);
    let deadline = active_at + spec.stall_timeout;
    if !sends_slowly && !takes_slowly && (held || deadline > cx.now) {
        let look = cx.now + spec.look_after();
        return all.exchange_timers.set(number, if held { look } else { deadline.min(look) });
    }
    let counters = all.sessions[index].service.live.counters.of(cx.id);
    match (sends_slowly, takes_slowly) {
        (true, _) if http1::is_servers_fault(all, cx, number) => {}
        (true, _) => counters.slow_requests.one(),
        (_, true) => counters.slow_responses.one(),
        (false, false) => counters.idle_timeouts.one(),
    }
    exchange::abandon(all, cx, number);
    reset(all, index, key, Reason::CANCEL);
}

/// Whether the client takes the response of one stream below the minimum rate: the server's bytes wait for its window.
fn takes_slowly(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    key: StreamKey,
    held: bool,
) -> bool {
    let now = cx.now;
    let exchange = &all.exchanges[number];
    let Some(rate) = exchange.settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
    let waiting = match exchange.reach {
        Reach::Open(slot) => all.servers[slot].link.input.len() as u64,
        _ => 0,
    };
    let Some(stream) = stream_of(all, index, key) else { return false };
    let waits = waiting > 0 && stream.send.is_some() && !held;
    let progress = Progress { moved: stream.taken, owed: waits.then_some(stream.taken + waiting) };
    stream.pace.is_slow(now, progress, &rate)
}

/// The stream cannot go on.
fn reset(all: &mut Http, index: SessionKey, key: StreamKey, reason: Reason) {
    let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) else { return };
    if let Some(mut stream) = http.streams.remove(key) {
        match &mut stream.send {
            Some(send) => send.send_reset(reason),
            None => stream.respond.send_reset(reason),
        }
    }
}

/// Does for one exchange what can be done without waiting.
pub(super) fn drive(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    let Some(key) = key_of(all, number) else { return };
    let mut context = task::Context::from_waker(Waker::noop());
    // The client does not want it any more.
    let gone = stream_of(all, index, key).is_none_or(|stream| match &mut stream.send {
        Some(send) => send.poll_reset(&mut context).is_ready(),
        None => stream.respond.poll_reset(&mut context).is_ready(),
    });
    if gone {
        all.sessions[index].service.live.counters.of(cx.id).requests_aborted.one();
        exchange::abandon(all, cx, number);
        if let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) {
            http.streams.remove(key);
        }
        return;
    }
    for _ in 0..ROUNDS_MAX {
        match exchange::reach(all, cx, number) {
            Reach::Open(slot) => match pump(all, cx, index, number, slot, key) {
                Pumped::Again => {}
                Pumped::Waits => return,
                Pumped::Bad => return bad_answer(all, cx, index, number),
                Pumped::Reset => {
                    exchange::abandon(all, cx, number);
                    return reset(all, index, key, Reason::CANCEL);
                }
                Pumped::Complete => return complete(all, cx, index, number, key),
            },
            Reach::Connecting(_) | Reach::Queued | Reach::Wanted => return,
            Reach::Failed(reason) => return fail(all, cx, index, number, status_of(reason)),
        }
    }
    session::queue(all, cx, index);
}

enum Pumped {
    /// Something else may be done at once.
    Again,
    Waits,
    /// The server's answer is none.
    Bad,
    /// The client's body broke off.
    Reset,
    Complete,
}

fn pump(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    key: StreamKey,
) -> Pumped {
    all.servers[slot].link.flush(&mut all.buffers);
    match upload(all, cx, index, number, slot, key) {
        Uploaded::Waits => {}
        Uploaded::On => session::queue(all, cx, index),
        Uploaded::Broken => return Pumped::Reset,
    }
    let exchange = &mut all.exchanges[number];
    let limits = exchange.settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
    let Some(http) = exchange.http.as_deref_mut() else { return Pumped::Waits };
    if let Body::Head(scan) = &mut http.download {
        let server = &mut all.servers[slot];
        let found = scan.find(server.link.input.unread(), &limits);
        let silent = !scan.has_begun();
        return match found {
            Ok(Some(found)) => take_head(all, cx, index, number, key, found),
            Ok(None) if server.link.receive(&mut all.buffers) == Received::Some => Pumped::Again,
            Ok(None) if server.link.end.is_none() && !server.link.broken => Pumped::Waits,
            Ok(None) if silent && http1::may_repeat(all, number, slot) => {
                http1::repeat(all, cx, index, number);
                Pumped::Again
            }
            Ok(None) | Err(_) => Pumped::Bad,
        };
    }
    download(all, cx, index, number, slot, key)
}

/// How far an upload went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Uploaded {
    Waits,
    /// There is more, of which nobody will tell again; others come first.
    On,
    /// The client broke it off.
    Broken,
}

/// The body goes to the server.
fn upload(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    key: StreamKey,
) -> Uploaded {
    let mut context = task::Context::from_waker(Waker::noop());
    let now = cx.now;
    let Http { sessions, exchanges, servers, buffers, exchange_timers, .. } = &mut *all;
    let (session, exchange, server) = (&mut sessions[index], &mut exchanges[number], &mut servers[slot]);
    let Mode::Http2(http2) = &mut session.mode else { return Uploaded::Waits };
    let Some(stream) = http2.streams.get_mut(key) else { return Uploaded::Waits };
    let Exchange { http: Some(http), choice, settings, .. } = &mut **exchange else { return Uploaded::Waits };
    if http.upload == Body::Done && http.outgoing.is_empty() {
        return Uploaded::Waits;
    }
    let begins = !http.outgoing.is_empty();
    let line = settings.request_log.as_ref().filter(|_| begins).map(|_| http.request_line());
    let (mut outcome, mut bytes) = (Uploaded::Waits, 0);
    while http.upload != Body::Done && server.link.pending() < PENDING_BYTES_MAX {
        if http.outgoing.len() >= PENDING_BYTES_MAX {
            outcome = Uploaded::On;
            break;
        }
        match stream.body.poll_data(&mut context) {
            Poll::Pending => break,
            Poll::Ready(Some(Ok(data))) => {
                bytes += data.len() as u64;
                http.uploaded += data.len() as u64;
                http1::put(&data, http.uploads_chunks, &mut http.outgoing);
                let _ = stream.body.flow_control().release_capacity(data.len());
            }
            Poll::Ready(Some(Err(_))) => {
                outcome = Uploaded::Broken;
                break;
            }
            Poll::Ready(None) => end_upload(http),
        }
        if stream.body.is_end_stream() && http.upload != Body::Done {
            end_upload(http);
        }
    }
    if outcome != Uploaded::Broken {
        let sent = http1::flush_upload(http, &mut server.link, buffers);
        if let Some(choice) = choice {
            let of_server = choice.server.live.counters.of(cx.id);
            of_server.bytes_in.add(sent as u64);
        }
    }
    if bytes > 0 {
        (session.active_at, stream.active_at) = (now, now);
    }
    session.count(bytes, 0, cx.id, now);
    if begins && http.upload != Body::Done && !http.answered {
        let patience = settings.http.as_ref().map_or(Duration::MAX, |spec| spec.look_after());
        exchange_timers.set(number, now + patience);
    }
    let uploaded = http.upload == Body::Done;
    if begins && outcome != Uploaded::Broken {
        http1::note_request(all, cx, number, line.as_deref());
    }
    if uploaded {
        http1::await_answer(all, cx, number);
    }
    outcome
}

/// The body is whole.
fn end_upload(http: &mut HttpPart) {
    http.upload = Body::Done;
    if http.uploads_chunks {
        http.outgoing.extend_from_slice(chunked::BODY_END);
    }
}

fn take_head(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    key: StreamKey,
    found: Found,
) -> Pumped {
    let mut response = std::mem::take(&mut all.heads.response);
    let pumped = read_head(all, cx, index, number, key, found, &mut response);
    all.heads.response = response;
    pumped
}

fn read_head(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    key: StreamKey,
    found: Found,
    response: &mut Response,
) -> Pumped {
    let Reach::Open(slot) = all.exchanges[number].reach else { return Pumped::Waits };
    let Some(read) = http1::read_answer(all, cx, index, number, slot, found, response) else {
        return Pumped::Bad;
    };
    let Http { sessions, exchanges, servers, buffers, exchange_timers, .. } = &mut *all;
    let now = cx.now;
    let server = &mut servers[slot];
    let head = &server.link.input.unread()[found.start..found.end];
    let mut pumped = Pumped::Again;
    if matches!(read, http1::Answer::Interim) {
        say_interim(&mut sessions[index].mode, key, response, head);
    }
    if let http1::Answer::Final { framing, cookie } = read {
        let Some(http) = exchanges[number].http.as_deref_mut() else { return Pumped::Bad };
        let Some(answer) = translate(response, head, framing, cookie.as_deref()) else { return Pumped::Bad };
        let Mode::Http2(http2) = &mut sessions[index].mode else { return Pumped::Waits };
        let Some(stream) = http2.streams.get_mut(key) else { return Pumped::Waits };
        let ends = http.download == Body::Done;
        match stream.respond.send_response(answer, ends) {
            Ok(send) => stream.send = Some(send),
            Err(_) => return Pumped::Reset,
        }
        if ends {
            pumped = Pumped::Complete;
        } else {
            stream.active_at = now;
            let spec = exchanges[number].settings.http.as_ref();
            exchange_timers.set(number, now + spec.map_or(Duration::MAX, |spec| spec.look_after()));
        }
    }
    server.link.input.consume(found.end);
    server.link.settle(buffers);
    pumped
}

/// What the server says before its final answer goes on (RFC 9110, section 15.2).
fn say_interim(mode: &mut Mode, key: StreamKey, response: &Response, head: &[u8]) {
    let Mode::Http2(http2) = mode else { return };
    let answer = translate(response, head, None, None);
    if let Some((stream, answer)) = http2.streams.get_mut(key).zip(answer) {
        // One that cannot be said is left out; the final one matters.
        let _ = stream.respond.send_informational(answer);
    }
}

/// The head of an answer in the terms of HTTP/2, where nothing is said of the connection.
fn translate(
    response: &Response,
    head: &[u8],
    framing: Option<Framing>,
    cookie: Option<&str>,
) -> Option<http::Response<()>> {
    let mut answer = http::Response::new(());
    *answer.status_mut() = http::StatusCode::from_u16(response.status()).ok()?;
    let fields = answer.headers_mut();
    for field in response.passed_on(head) {
        let name = http::HeaderName::from_bytes(field.name.of(head)).ok()?;
        fields.append(name, http::HeaderValue::from_bytes(field.value.of(head)).ok()?);
    }
    // Where no body comes, the length that it would have is told all the same (RFC 9110, section 8.6).
    let may_have = response.status() >= 200 && response.status() != 204;
    let told = framing.or(response.told_framing().filter(|_| may_have));
    if let Some(Framing::Length(length)) = told {
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    if let Some(cookie) = cookie {
        fields.append(http::header::SET_COOKIE, http::HeaderValue::from_str(cookie).ok()?);
    }
    Some(answer)
}

/// Brings the answer's body to the client, as far as it takes it.
fn download(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    key: StreamKey,
) -> Pumped {
    let now = cx.now;
    let mut context = task::Context::from_waker(Waker::noop());
    let Http { sessions, exchanges, servers, buffers, .. } = &mut *all;
    let (session, server) = (&mut *sessions[index], &mut servers[slot]);
    let Mode::Http2(http2) = &mut session.mode else { return Pumped::Waits };
    let Some(send) = http2.streams.get_mut(key).and_then(|stream| stream.send.as_mut()) else {
        return Pumped::Waits;
    };
    let Exchange { http: Some(http), choice, .. } = &mut *exchanges[number] else { return Pumped::Waits };
    if session.link.pending() >= PENDING_BYTES_MAX {
        return Pumped::Waits;
    }
    if server.link.input.is_empty() {
        return match (server.link.receive(buffers), server.link.end, http.download) {
            // TLS may have had something to say for itself only, its end among that: no other event tells of the rest.
            (Received::Some, ..) => Pumped::Again,
            (_, None, _) => Pumped::Waits,
            (_, Some(End::Fin), Body::Close) if !server.link.cut => {
                let _ = send.send_data(Bytes::new(), true);
                http.download = Body::Done;
                Pumped::Complete
            }
            (_, Some(_), _) => Pumped::Bad,
        };
    }
    let available = server.link.input.len().min(PENDING_BYTES_MAX);
    send.reserve_capacity(available);
    if send.capacity() == 0 && matches!(send.poll_capacity(&mut context), Poll::Ready(Some(Err(_)) | None)) {
        return Pumped::Reset;
    }
    let room = send.capacity().min(available);
    let mut data = Vec::with_capacity(room);
    let Ok(used) = gather(&mut http.download, server.link.input.unread(), room, &mut data) else {
        return Pumped::Bad;
    };
    if used == 0 {
        // It goes on when the client takes more.
        return Pumped::Waits;
    }
    let done = http.download == Body::Done;
    let bytes = data.len() as u64;
    if (done || !data.is_empty()) && send.send_data(data.into(), done).is_err() {
        return Pumped::Reset;
    }
    server.link.input.consume(used);
    server.link.settle(buffers);
    session.active_at = now;
    if let Some(stream) = http2.streams.get_mut(key) {
        stream.active_at = now;
        stream.taken += used as u64;
    }
    session.count(0, bytes, cx.id, now);
    if let Some(choice) = choice {
        choice.server.live.counters.of(cx.id).bytes_out.add(bytes);
    }
    if done { Pumped::Complete } else { Pumped::Again }
}

/// Takes so much of a body as there is room for; returns how many bytes that used. Small chunks become one frame, as
/// clients take many small ones for an attack, and the framing needs no room: the end is told when the window is used up.
fn gather(
    body: &mut Body,
    input: &[u8],
    room: usize,
    data: &mut Vec<u8>,
) -> Result<usize, chunked::Malformed> {
    let mut at = 0;
    while at < input.len() && *body != Body::Done {
        let mut ahead = *body;
        let (used, step) = http1::take(&mut ahead, &input[at..])?;
        let Step::Data(found) = step else {
            *body = ahead;
            at += used;
            continue;
        };
        let excess = found.len().saturating_sub(room - data.len());
        if excess > 0 {
            let used = used - excess;
            if let (_, Step::Data(fits)) = http1::take(body, &input[at..at + used])? {
                data.extend_from_slice(fits);
            }
            return Ok(at + used);
        }
        data.extend_from_slice(found);
        *body = ahead;
        at += used;
    }
    Ok(at)
}

fn bad_answer(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    if let Some(choice) = &all.exchanges[number].choice {
        choice.server.live.counters.of(cx.id).answers_bad.one();
    }
    fail(all, cx, index, number, 502);
}

/// The answer is whole; the server's connection is kept for others.
fn complete(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey, key: StreamKey) {
    let http = all.exchanges[number].http.as_ref();
    let shared = http.is_some_and(|http| http.server_stays && http.upload == Body::Done && !http.is_private);
    let stay = Stay::of(&all.exchanges[number]);
    exchange::end(all, cx, number, if shared { Keep::Shared } else { Keep::No });
    let session = &mut *all.sessions[index];
    session.active_at = cx.now;
    session.stay = stay;
    let stream = http2(session).and_then(|http| http.streams.remove(key));
    if let Some(stream) = stream {
        leave_body(all, cx, index, stream.body);
    }
}
