//! HTTP/2 with clients. The frames are the `h2` crate's, which asks for nothing but bytes in and out: here it is polled by
//! hand in the worker's own loop, over buffers in memory instead of a socket. Each stream is an exchange like a request of
//! HTTP/1, and its head goes through the same reader, so that the same rules hold.

mod rest;
mod stream;
mod wire;

use crate::context::Context;
use crate::context::keys::{ExchangeKey, SessionKey, Table, of};
use crate::http::Http;
use crate::http::message::OwnAnswer;
use crate::http::session::{self, LINGER, Mode, ROUNDS_MAX, Session};
use crate::io::transport::{PENDING_BYTES_MAX, Received};
use bytes::Bytes;
use evener_core::Time;
use evener_core::pace::Pace;
use evener_core::snapshot::NoServer;
use evener_core::wire::http::HeadLimits;
use h2::server::{Connection, Handshake, SendResponse};
use h2::{RecvStream, SendStream};
use rest::Rests;
use std::pin::Pin;
use std::task::{self, Poll, Waker};
use std::time::Duration;
use wire::Wire;

/// Streams of one client at once.
const STREAMS_MAX: u32 = 128;
/// What a client may send of a body before it is taken: for each stream, and for all together.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of each answer for a client that does not take it.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// What small DATA frames that wait may cost together, by the count of `h2` (256 bytes each, less what they carry): its own
/// choice would end a client whose frames of one byte fill one read.
const SMALL_FRAMES_BUDGET: usize = 2 * 1024 * 1024;
/// A client that was told to go has so much time to take leave.
const LEAVE: Duration = Duration::from_secs(5);
/// The same while the program drains: a client that does not answer the PING, by which the last GOAWAY waits for requests
/// that are on their way (RFC 9113, section 6.8), does not hold the program.
const DRAIN_LEAVE: Duration = Duration::from_secs(1);

/// The client's side of HTTP/2.
pub(crate) struct Http2 {
    wire: Wire,
    state: State,
    streams: Table<of::Stream, Stream>,
    /// Bodies that are for nobody any more.
    rests: Rests,
    /// The client was told to go, as it asked for nothing.
    leaves: bool,
    /// It has no streams, and the deadline is that of such clients.
    idle: bool,
}

enum State {
    Begins(Handshake<Wire, Bytes>),
    Open(Connection<Wire, Bytes>),
    /// What is left goes out, then it ends.
    Ends,
}

/// A request with its answer.
struct Stream {
    exchange: Option<ExchangeKey>,
    /// When a byte of its bodies moved last.
    active_at: Time,
    /// How much of the response the client took, as the server sent it, and how fast.
    taken: u64,
    pace: Pace,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// Where the answer's body goes, once its head is out.
    send: Option<SendStream<Bytes>>,
}

impl std::fmt::Debug for Http2 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http2").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Http2 {
    pub(crate) fn new(limits: &HeadLimits) -> Self {
        let wire = Wire::default();
        let handshake = h2::server::Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(list_bytes_max(limits))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .data_frame_budget(SMALL_FRAMES_BUDGET)
            .handshake(wire.clone());
        Self {
            wire,
            state: State::Begins(handshake),
            streams: Table::default(),
            rests: Rests::default(),
            leaves: false,
            idle: true,
        }
    }

    /// Whether a stream has others beside it.
    pub(crate) fn is_shared(&self) -> bool {
        self.streams.len() > 1
    }

    /// The exchanges that are under way.
    pub(crate) fn exchanges(&self) -> Vec<ExchangeKey> {
        self.streams.iter().filter_map(|(_, stream)| stream.exchange).collect()
    }

    /// Whether it has no streams, and was not told to go.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.is_empty() && !self.leaves
    }

    /// Lets the connection write more frames; requests that come meanwhile wait inside of it.
    fn write_frames(&mut self) {
        let mut context = task::Context::from_waker(Waker::noop());
        if let State::Open(connection) = &mut self.state {
            // What it says of itself, the next accept says again.
            let _ = connection.poll_closed(&mut context);
        }
    }

    /// Lets the connection do what it can; a request if one came.
    fn poll(&mut self) -> Polled {
        let mut context = task::Context::from_waker(Waker::noop());
        loop {
            match &mut self.state {
                State::Begins(handshake) => match Future::poll(Pin::new(handshake), &mut context) {
                    Poll::Ready(Ok(connection)) => self.state = State::Open(connection),
                    Poll::Ready(Err(_)) => self.state = State::Ends,
                    Poll::Pending => return Polled::Nothing,
                },
                State::Open(connection) => match connection.poll_accept(&mut context) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        return Polled::Request(Box::new(request), respond);
                    }
                    Poll::Ready(Some(Err(_)) | None) => self.state = State::Ends,
                    Poll::Pending => return Polled::Nothing,
                },
                State::Ends => return Polled::Over,
            }
        }
    }
}

enum Polled {
    Request(Box<http::Request<RecvStream>>, SendResponse<Bytes>),
    Nothing,
    Over,
}

/// The limits of a head by the count of HTTP/2: 32 bytes more for each field (RFC 9113, section 6.5.2). What the reader
/// refuses is answered and counted like a head of HTTP/1; what goes beyond even this, `h2` answers itself.
fn list_bytes_max(limits: &HeadLimits) -> u32 {
    u32::try_from(limits.bytes_max + 32 * limits.fields_max).unwrap_or(u32::MAX)
}

/// The parts of a session that speaks HTTP/2.
fn http2(session: &mut Session) -> Option<&mut Http2> {
    match &mut session.mode {
        Mode::Http2(http) => Some(http),
        _ => None,
    }
}

/// The client sent something, or takes more.
pub(crate) fn drive(all: &mut Http, cx: &mut Context, index: SessionKey) {
    for _ in 0..ROUNDS_MAX {
        let received = receive(all, index);
        if !accept(all, cx, index) {
            return;
        }
        let now = cx.now;
        let http = all.sessions.get_mut(index).and_then(|session| http2(session));
        let exchanges = http.map(|http| {
            http.rests.take(now);
            http.exchanges()
        });
        for number in exchanges.unwrap_or_default() {
            stream::drive(all, cx, index, number);
        }
        match flush(all, cx, index) {
            Flushed::Over => return,
            // What went out made room for more.
            Flushed::Some => {}
            Flushed::Nothing if received == Received::Some => {}
            Flushed::Nothing => return,
        }
    }
    session::queue(all, cx, index);
}

/// Something happened at the server of one stream.
pub(crate) fn on_server(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    for _ in 0..ROUNDS_MAX {
        stream::drive(all, cx, index, number);
        if flush(all, cx, index) != Flushed::Some {
            return;
        }
    }
    session::queue(all, cx, index);
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    /// Something went out.
    Some,
    Nothing,
    /// The session is over.
    Over,
}

fn receive(all: &mut Http, index: SessionKey) -> Received {
    let Http { sessions, buffers, .. } = &mut *all;
    let session = &mut *sessions[index];
    let Mode::Http2(http) = &mut session.mode else { return Received::Nothing };
    // What the client takes now may be what others wait for.
    session.link.flush(buffers);
    if session.link.pending() >= PENDING_BYTES_MAX {
        // Who does not read what it gets is not heard either.
        return Received::Nothing;
    }
    let received = session.link.receive(buffers);
    if !session.link.input.is_empty() {
        http.wire.put(session.link.input.unread());
        session.link.input.consume(usize::MAX);
        session.link.settle(buffers);
    }
    if session.link.end.is_some() {
        http.wire.end();
    }
    received
}

/// Takes in the requests that came. False when the session is over.
fn accept(all: &mut Http, cx: &mut Context, index: SessionKey) -> bool {
    loop {
        let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) else {
            return false;
        };
        match http.poll() {
            Polled::Request(request, respond) => stream::begin(all, cx, index, *request, respond),
            Polled::Nothing => return true,
            Polled::Over => {
                count_aborted(all, cx, index);
                flush_out(all, index);
                session::finish(all, cx, index);
                return false;
            }
        }
    }
}

/// The client is gone, and with it whatever it asked for.
fn count_aborted(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let Some(session) = all.sessions.get_mut(index) else { return };
    let under_way = http2(session).map_or(0, |http| http.exchanges().len());
    session.service.live.counters.of(cx.id).requests_aborted.add(under_way as u64);
}

/// Brings what the connection has to say to the client.
fn flush(all: &mut Http, cx: &mut Context, index: SessionKey) -> Flushed {
    // What streams said has to become frames first.
    if !accept(all, cx, index) {
        return Flushed::Over;
    }
    let flushed = flush_out(all, index);
    note_idle(all, cx, index);
    let Some(session) = all.sessions.get_mut(index) else { return Flushed::Over };
    if session.link.broken {
        count_aborted(all, cx, index);
        session::close(all, cx, index);
        return Flushed::Over;
    }
    flushed
}

/// With the last stream, the time of a client without a request begins.
fn note_idle(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let Some(session) = all.sessions.get_mut(index) else { return };
    let Some(wait) = session.settings.http.as_ref().map(|spec| spec.keepalive_timeout) else { return };
    let Some(http) = http2(session) else { return };
    let was_idle = std::mem::replace(&mut http.idle, http.streams.is_empty());
    if http.idle && !was_idle {
        // The program may drain since: this client was told so, with the others.
        http.leaves |= cx.draining;
        let wait = if cx.draining { DRAIN_LEAVE } else { wait };
        // Bodies that are for nobody have their time, too.
        let wait = if http.rests.is_empty() { wait } else { wait.min(LINGER) };
        session.served = true;
        all.session_timers.set(index, cx.now + wait);
    }
}

fn flush_out(all: &mut Http, index: SessionKey) -> Flushed {
    let Http { sessions, buffers, .. } = &mut *all;
    let Some(session) = sessions.get_mut(index) else { return Flushed::Over };
    let Session { mode: Mode::Http2(http), link, .. } = &mut **session else { return Flushed::Over };
    link.flush(buffers);
    let mut flushed = Flushed::Nothing;
    for _ in 0..ROUNDS_MAX {
        if link.pending() >= PENDING_BYTES_MAX {
            // It goes on when the client took that.
            return Flushed::Nothing;
        }
        let out = http.wire.take_output();
        if out.is_empty() {
            break;
        }
        link.send(&out, buffers);
        flushed = Flushed::Some;
        // The connection may have had more than the wire held.
        http.write_frames();
    }
    flushed
}

/// The deadline of the client's side came.
pub(crate) fn on_deadline(all: &mut Http, cx: &mut Context, index: SessionKey) {
    take_rests(all, cx, index);
    let session = &mut all.sessions[index];
    let Some(spec) = session.settings.http.clone() else { return };
    let slow = session.is_slow(cx.now);
    let active_at = session.active_at;
    let Some(http) = http2(session) else { return };
    let idle = http.streams.is_empty();
    if idle && http.leaves {
        return session::close(all, cx, index);
    }
    let exchanges = http.exchanges();
    if slow && !idle {
        session.service.live.counters.of(cx.id).slow_responses.one();
        crate::service::admission::reset_at_close(&session.link.socket);
        return session::close(all, cx, index);
    }
    let deadline = active_at + if idle { spec.keepalive_timeout } else { spec.stall_timeout };
    if deadline > cx.now {
        let look = match (http.rests.is_empty(), idle) {
            (false, _) => cx.now + spec.look_after().min(LINGER),
            (true, true) => deadline,
            (true, false) => cx.now + spec.look_after(),
        };
        return all.session_timers.set(index, deadline.min(look));
    }
    if exchanges.iter().any(|number| all.exchanges[*number].waits_for_response()) {
        // Servers' time to answer has a deadline of its own.
        return all.session_timers.set(index, cx.now + spec.look_after());
    }
    let session = &mut all.sessions[index];
    session.service.live.counters.of(cx.id).idle_timeouts.one();
    if !idle {
        return session::close(all, cx, index);
    }
    shut_down(all, cx, index, LEAVE);
}

/// An idle client makes room for others.
pub(crate) fn dismiss(all: &mut Http, cx: &mut Context, index: SessionKey) {
    shut_down(all, cx, index, LEAVE);
}

/// Takes bodies that are for nobody; those whose time is over are reset.
fn take_rests(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let now = cx.now;
    let http = all.sessions.get_mut(index).and_then(|session| http2(session));
    if let Some(http) = http.filter(|http| !http.rests.is_empty()) {
        http.rests.take(now);
        flush(all, cx, index);
    }
}

/// The deadline of a stream came whose bodies move: one that stands still ends, though others go on.
pub(crate) fn on_stalled(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let index = all.exchanges[number].session;
    stream::on_look(all, cx, index, number);
    flush(all, cx, index);
}

/// The program drains.
pub(crate) fn on_drain(all: &mut Http, cx: &mut Context, index: SessionKey) {
    shut_down(all, cx, index, DRAIN_LEAVE);
}

/// No new requests; those that are there may finish. A client without any is closed after `leave`, whatever it answers.
fn shut_down(all: &mut Http, cx: &mut Context, index: SessionKey, leave: Duration) {
    let Some(http) = all.sessions.get_mut(index).and_then(|session| http2(session)) else { return };
    if http.streams.is_empty() {
        // A request that is on its way has that time to come.
        http.leaves = true;
        all.session_timers.set(index, cx.now + leave);
    }
    match &mut http.state {
        State::Open(connection) => connection.graceful_shutdown(),
        State::Begins(_) | State::Ends => return session::finish(all, cx, index),
    }
    flush(all, cx, index);
}

/// No server answers this stream's request.
pub(crate) fn fail(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey, status: u16) {
    stream::fail(all, cx, index, number, status);
    flush(all, cx, index);
}

/// The status that tells why nobody could be had.
fn status_of(reason: NoServer) -> u16 {
    if reason == NoServer::Failed { 502 } else { 503 }
}

/// Makes a page of our own into an answer.
fn own_answer(answer: &OwnAnswer) -> (http::Response<()>, Bytes) {
    let mut response = http::Response::new(());
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    let fields = response.headers_mut();
    if answer.has_body() {
        if let Ok(kind) = http::HeaderValue::from_bytes(answer.kind.as_bytes()) {
            fields.insert(http::header::CONTENT_TYPE, kind);
        }
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(answer.body.len()));
    }
    fields.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    if let Some(location) =
        answer.location.as_ref().and_then(|value| http::HeaderValue::from_bytes(value).ok())
    {
        fields.insert(http::header::LOCATION, location);
    }
    (response, Bytes::copy_from_slice(answer.body.as_bytes()))
}
