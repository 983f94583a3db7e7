//! HTTP/2 with clients. The frames are the `h2` crate's, which asks for nothing but bytes in and out: here it is polled by
//! hand in the worker's own loop, over buffers in memory instead of a socket. Each stream is an exchange like a request of
//! HTTP/1, and its header section goes through the same reader, so that the same rules hold.

mod body;
mod header;
mod rest;
mod stream;
mod wire;

use self::rest::Rests;
use self::wire::Wire;
use super::client::{After, Client, LINGER, ROUNDS_MAX};
use super::exchange::Shared;
use crate::context::Context;
use crate::context::keys::{ExchangeKey, Table, of};
use crate::io::transport::{Buffers, PENDING_BYTES_MAX, Received};
use crate::service::admission::reset_at_close;
use bytes::Bytes;
use evener_core::Time;
use evener_core::pace::Pace;
use evener_core::wire::http::HeaderLimits;
use h2::server::{Connection, Handshake, SendResponse};
use h2::{RecvStream, SendStream};
use std::pin::Pin;
use std::task::{self, Poll, Waker};
use std::time::Duration;

/// Streams of one client at once.
const STREAMS_MAX: u32 = 128;
/// Bytes of bodies that a client may send before they are taken: for each stream, and for all together.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of each response that are kept for a client that does not take them.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// Cost of small DATA frames that may wait, by the count of `h2` (256 bytes each, less what they carry): its own
/// choice would end a client whose frames of one byte fill one read.
const SMALL_FRAMES_BUDGET: usize = 2 * 1024 * 1024;
/// Time for a client to leave after GOAWAY.
const LEAVE: Duration = Duration::from_secs(5);
/// The same while the program drains: a client that does not acknowledge the PING, by which the last GOAWAY waits for requests
/// that are on their way (RFC 9113, section 6.8), does not hold the program.
const DRAIN_LEAVE: Duration = Duration::from_secs(1);

/// The client's side of HTTP/2.
pub(super) struct Http2 {
    wire: Wire,
    state: State,
    streams: Table<of::Stream, Stream>,
    /// Bodies that are for no exchange any more.
    rests: Rests,
    /// The client got GOAWAY, as it had no request.
    leaves: bool,
    /// The client has no streams, and the deadline is that of such clients.
    idle: bool,
}

enum State {
    Begins(Handshake<Wire, Bytes>),
    Open(Connection<Wire, Bytes>),
    /// The rest goes out, then the connection ends.
    Ends,
}

/// A request with its response.
struct Stream {
    exchange: Option<ExchangeKey>,
    /// Time at which a byte of its bodies moved last.
    active_at: Time,
    /// Bytes of the response that the client took, as the server sent them.
    taken: u64,
    pace: Pace,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// The way for the body of the response, once its header section is out.
    send: Option<SendStream<Bytes>>,
}

impl std::fmt::Debug for Http2 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http2").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Http2 {
    pub(super) fn new(limits: &HeaderLimits) -> Self {
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

    /// The exchanges that are under way.
    pub(super) fn exchanges(&self) -> Vec<ExchangeKey> {
        self.streams.iter().filter_map(|(_, stream)| stream.exchange).collect()
    }

    /// Returns whether the client has no streams, and did not get GOAWAY.
    pub(super) fn is_idle(&self) -> bool {
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
/// refuses is counted like a request of HTTP/1; `h2` itself refuses what goes beyond even this.
fn list_bytes_max(limits: &HeaderLimits) -> u32 {
    u32::try_from(limits.bytes_max + 32 * limits.fields_max).unwrap_or(u32::MAX)
}

/// Outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    /// Something went out.
    Some,
    Nothing,
    /// HTTP/2 is over on this connection.
    Over(After),
}

impl Http2 {
    /// The client sent something, or takes more.
    pub(super) fn drive(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        for _ in 0..ROUNDS_MAX {
            let received = self.receive(client, &mut shared.buffers);
            if let Some(after) = self.accept(cx, client, shared) {
                return after;
            }
            self.rests.take(cx.now);
            for exchange_key in self.exchanges() {
                self.drive_stream(cx, client, shared, exchange_key);
            }
            match self.flush(cx, client, shared) {
                Flushed::Over(after) => return after,
                // What went out made room for more.
                Flushed::Some => {}
                Flushed::Nothing if received == Received::Some => {}
                Flushed::Nothing => return After::Stays,
            }
        }
        client.queue(cx);
        After::Stays
    }

    /// The exchange of one stream can go on.
    pub(super) fn on_progress(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> After {
        for _ in 0..ROUNDS_MAX {
            self.drive_stream(cx, client, shared, exchange_key);
            match self.flush(cx, client, shared) {
                Flushed::Some => {}
                Flushed::Nothing => return After::Stays,
                Flushed::Over(after) => return after,
            }
        }
        client.queue(cx);
        After::Stays
    }

    fn receive(&mut self, client: &mut Client, buffers: &mut Buffers) -> Received {
        // What the client takes now may be what others wait for.
        client.transport.flush(buffers);
        if client.transport.pending() >= PENDING_BYTES_MAX {
            // Nothing is received from a client that does not read what it gets.
            return Received::Nothing;
        }
        let received = client.transport.receive(buffers);
        if !client.transport.unread().is_empty() {
            self.wire.put(client.transport.unread());
            client.transport.consume(usize::MAX);
            client.transport.settle(buffers);
        }
        if client.transport.end().is_some() {
            self.wire.end();
        }
        received
    }

    /// Takes in the requests that came; `Some` when HTTP/2 is over on this connection.
    fn accept(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> Option<After> {
        loop {
            match self.poll() {
                Polled::Request(request, respond) => {
                    match self.begin_stream(cx, client, shared, *request, respond) {
                        After::Stays => {}
                        after => return Some(after),
                    }
                }
                Polled::Nothing => return None,
                Polled::Over => {
                    self.count_aborted(cx, client);
                    self.flush_out(client, &mut shared.buffers);
                    return Some(After::Finish);
                }
            }
        }
    }

    /// The client is gone, and with it whatever it asked for.
    fn count_aborted(&self, cx: &Context, client: &Client) {
        let pending = self.exchanges().len();
        client.service.live.counters.of(cx.id).requests_aborted.add(pending as u64);
    }

    /// Sends what the connection has for the client.
    fn flush(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> Flushed {
        // What streams have has to become frames first.
        if let Some(after) = self.accept(cx, client, shared) {
            return Flushed::Over(after);
        }
        let flushed = self.flush_out(client, &mut shared.buffers);
        self.note_idle(cx, client, shared);
        if client.transport.is_broken() {
            self.count_aborted(cx, client);
            return Flushed::Over(After::Close);
        }
        flushed
    }

    /// Flushes; returns the end that may come of it.
    fn flush_all(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        match self.flush(cx, client, shared) {
            Flushed::Over(after) => after,
            Flushed::Some | Flushed::Nothing => After::Stays,
        }
    }

    /// With the last stream, the time of a client without a request begins.
    fn note_idle(&mut self, cx: &Context, client: &mut Client, shared: &mut Shared) {
        let Some(wait) = client.settings.http.as_ref().map(|spec| spec.keepalive_timeout) else { return };
        let was_idle = std::mem::replace(&mut self.idle, self.streams.is_empty());
        if self.idle && !was_idle {
            // The program may drain since: this client got GOAWAY, with the others.
            self.leaves |= cx.draining;
            let wait = if cx.draining { DRAIN_LEAVE } else { wait };
            // Bodies that are for no exchange have their time, too.
            let wait = if self.rests.is_empty() { wait } else { wait.min(LINGER) };
            client.served = true;
            shared.session_timers.set(client.key, cx.now + wait);
        }
    }

    fn flush_out(&mut self, client: &mut Client, buffers: &mut Buffers) -> Flushed {
        let transport = &mut client.transport;
        transport.flush(buffers);
        let mut flushed = Flushed::Nothing;
        for _ in 0..ROUNDS_MAX {
            if transport.pending() >= PENDING_BYTES_MAX {
                // It goes on when the client took that.
                return Flushed::Nothing;
            }
            let out = self.wire.take_output();
            if out.is_empty() {
                break;
            }
            transport.send(&out, buffers);
            flushed = Flushed::Some;
            // The connection may have had more than the wire held.
            self.write_frames();
        }
        flushed
    }

    /// The deadline of the client's side came.
    pub(super) fn on_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
    ) -> After {
        if !self.rests.is_empty() {
            // Those whose time is over are reset.
            self.rests.take(cx.now);
            if let Flushed::Over(after) = self.flush(cx, client, shared) {
                return after;
            }
        }
        let Some(spec) = client.settings.http.clone() else { return After::Stays };
        let slow = client.is_slow(cx.now);
        let idle = self.streams.is_empty();
        if idle && self.leaves {
            return After::Close;
        }
        let counters = client.service.live.counters.of(cx.id);
        if slow && !idle {
            counters.slow_responses.one();
            reset_at_close(client.transport.socket());
            return After::Close;
        }
        let deadline = client.active_at + if idle { spec.keepalive_timeout } else { spec.stall_timeout };
        let waits = || {
            self.exchanges().iter().any(|exchange_key| shared.exchanges[*exchange_key].waits_for_response())
        };
        let next = if deadline > cx.now {
            Some(match (self.rests.is_empty(), idle) {
                (false, _) => deadline.min(cx.now + spec.progress_interval().min(LINGER)),
                (true, true) => deadline,
                (true, false) => deadline.min(cx.now + spec.progress_interval()),
            })
        } else {
            // Servers' time to respond has a deadline of its own.
            waits().then(|| cx.now + spec.progress_interval())
        };
        if let Some(next) = next {
            shared.session_timers.set(client.key, next);
            return After::Stays;
        }
        counters.idle_timeouts.one();
        if idle { self.dismiss(cx, client, shared) } else { After::Close }
    }

    /// Has an idle client leave, which makes room for others.
    pub(super) fn dismiss(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        self.shut_down(cx, client, shared, LEAVE)
    }

    /// The deadline of a stream came whose bodies move: one that stands still ends, though others go on.
    pub(super) fn on_stalled(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> After {
        self.check_stream(cx, client, shared, exchange_key);
        self.flush_all(cx, client, shared)
    }

    /// A server did not begin its response in time.
    pub(super) fn on_response_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> After {
        shared.note_timeout(cx, exchange_key);
        self.fail_stream(cx, client, shared, exchange_key, 504);
        self.flush_all(cx, client, shared)
    }

    /// The program drains.
    pub(super) fn on_drain(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        self.shut_down(cx, client, shared, DRAIN_LEAVE)
    }

    /// No new requests; those that are there may finish. A client without any is closed after `leave`, whatever it does.
    fn shut_down(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        leave: Duration,
    ) -> After {
        if self.streams.is_empty() {
            // A request that is on its way has that time to come.
            self.leaves = true;
            shared.session_timers.set(client.key, cx.now + leave);
        }
        match &mut self.state {
            State::Open(connection) => connection.graceful_shutdown(),
            State::Begins(_) | State::Ends => return After::Finish,
        }
        self.flush_all(cx, client, shared)
    }

    /// Ends what it has of servers.
    pub(super) fn end(&self, cx: &mut Context, client: &mut Client, shared: &mut Shared) {
        self.exchanges().into_iter().for_each(|exchange_key| shared.abandon(cx, client, exchange_key));
    }
}
