//! HTTP/2 with clients. The `h2` crate handles the frames; the worker's loop polls `h2`, which uses buffers in
//! memory instead of a socket. Each stream is an exchange, as is each request of HTTP/1, and one parser reads
//! the header sections of both, so that the same rules apply.

mod body;
mod drain;
mod header;
mod stream;
mod wire;

use self::drain::DrainedBodies;
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
use evener_core::reason::Reason;
use evener_core::wire::http::HeaderLimits;
use h2::server::{Connection, Handshake, SendResponse};
use h2::{RecvStream, SendStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, Waker};
use std::time::Duration;

/// Most streams of one client at the same time.
const STREAMS_MAX: u32 = 128;
/// Most bytes of bodies that a client may send before they are read: for each stream, and for all streams
/// together.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Most bytes of a response that are buffered while the client does not receive them.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// Limit for small DATA frames that are not read yet. `h2` counts 256 bytes minus the data for each frame. The
/// default limit of `h2` would disconnect a client whose frames of one byte fill one read.
const SMALL_FRAMES_BUDGET: usize = 2 * 1024 * 1024;
/// Time for a client to leave after GOAWAY.
const LEAVE: Duration = Duration::from_secs(5);
/// Time for a client to leave after GOAWAY while the program drains. The last GOAWAY is sent after the client
/// has acknowledged a PING, so that requests under way can arrive first (RFC 9113, section 6.8). A client that
/// does not acknowledge the PING must not delay the exit.
const DRAIN_LEAVE: Duration = Duration::from_secs(1);

/// HTTP/2 on a client's connection.
pub(super) struct Http2 {
    wire: Wire,
    state: State,
    streams: Table<of::Stream, Stream>,
    /// Bodies without an exchange, which are drained.
    drained_bodies: DrainedBodies,
    /// The client got GOAWAY and had no open stream: the next deadline without streams closes the connection.
    leaves: bool,
    /// The client has no streams, and the deadline for idle clients applies.
    idle: bool,
}

enum State {
    Begins(Handshake<Wire, Bytes>),
    Open(Connection<Wire, Bytes>),
    /// The queued bytes are sent, then the connection ends.
    Ends,
}

/// Request of a stream, with its response.
struct Stream {
    exchange: Option<ExchangeKey>,
    /// Time at which bytes of the request's or the response's body last moved.
    active_at: Time,
    /// Number of bytes of the response's body that were passed on to the client, including the server's
    /// framing.
    taken: u64,
    pace: Pace,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// Sender of the response's body, after the header section was sent.
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
            drained_bodies: DrainedBodies::default(),
            leaves: false,
            idle: true,
        }
    }

    /// Returns the exchanges that are under way.
    pub(super) fn exchanges(&self) -> Vec<ExchangeKey> {
        self.streams.iter().filter_map(|(_, stream)| stream.exchange).collect()
    }

    /// Returns whether the client has no streams, and was not sent GOAWAY while it had none.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty() && !self.leaves
    }

    /// Makes the connection write more frames. Requests that arrive meanwhile are queued in the connection.
    fn write_frames(&mut self) {
        let mut context = task::Context::from_waker(Waker::noop());
        if let State::Open(connection) = &mut self.state {
            // The next call of `poll_accept` returns the same error.
            let _ = connection.poll_closed(&mut context);
        }
    }

    /// Polls the connection; returns a request if one has come.
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
                State::Ends => return Polled::Ended,
            }
        }
    }
}

enum Polled {
    Request(Box<http::Request<RecvStream>>, SendResponse<Bytes>),
    Nothing,
    Ended,
}

/// Returns the maximum size of a header section as HTTP/2 counts it, with 32 additional bytes for each field
/// (RFC 9113, section 6.5.2). `h2` refuses larger requests, which are neither counted nor logged, so the size is
/// twice the limit. Smaller requests that exceed `limits` are refused, counted and logged as in HTTP/1.
fn list_bytes_max(limits: &HeaderLimits) -> u32 {
    u32::try_from(2 * (limits.bytes_max + 32 * limits.fields_max)).unwrap_or(u32::MAX)
}

/// Outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    /// Bytes were sent.
    Some,
    Nothing,
    /// HTTP/2 has ended on this connection.
    Ended(After),
}

impl Http2 {
    /// Continues all streams, after the client sent or received bytes.
    pub(super) fn drive(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        for _ in 0..ROUNDS_MAX {
            let received = self.receive(client, &mut shared.buffers);
            if let Some(after) = self.accept(cx, client, shared) {
                return after;
            }
            self.drained_bodies.discard_received(cx.now);
            for exchange_key in self.exchanges() {
                self.drive_stream(cx, client, shared, exchange_key);
            }
            match self.flush(cx, client, shared) {
                Flushed::Ended(after) => return after,
                // The bytes that were sent made room for more.
                Flushed::Some => {}
                Flushed::Nothing if received == Received::Some => {}
                Flushed::Nothing => return After::Stays,
            }
        }
        client.queue(cx);
        After::Stays
    }

    /// Continues the stream of one exchange.
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
                Flushed::Ended(after) => return after,
            }
        }
        client.queue(cx);
        After::Stays
    }

    fn receive(&mut self, client: &mut Client, buffers: &mut Buffers) -> Received {
        // Bytes that the socket takes now make room, and streams may wait for this room.
        client.transport.flush(buffers);
        if client.transport.pending() >= PENDING_BYTES_MAX {
            // Nothing is received from a client that does not read its responses.
            return Received::Nothing;
        }
        let received = client.transport.receive(buffers);
        if !client.transport.unread().is_empty() {
            self.wire.add_input(client.transport.unread());
            client.transport.consume(usize::MAX);
            client.transport.settle(buffers);
        }
        if client.transport.end().is_some() {
            self.wire.end();
        }
        received
    }

    /// Begins streams for the requests that came; `Some` if HTTP/2 has ended on this connection.
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
                Polled::Ended => {
                    self.note_aborted(cx, client, shared);
                    self.flush_out(client, &mut shared.buffers);
                    return Some(After::Finish);
                }
            }
        }
    }

    /// Counts the requests that a client abandons by closing.
    fn note_aborted(&self, cx: &Context, client: &Client, shared: &Shared) {
        for exchange_key in self.exchanges() {
            shared.note_aborted(cx, client, exchange_key);
        }
    }

    /// Sends the frames that the connection has for the client.
    fn flush(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> Flushed {
        // The data of the streams has to become frames first.
        if let Some(after) = self.accept(cx, client, shared) {
            return Flushed::Ended(after);
        }
        let flushed = self.flush_out(client, &mut shared.buffers);
        self.note_idle(cx, client, shared);
        if client.transport.is_broken() {
            self.note_aborted(cx, client, shared);
            return Flushed::Ended(After::Close);
        }
        flushed
    }

    /// Flushes, and returns the decision about the session.
    fn flush_all(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        match self.flush(cx, client, shared) {
            Flushed::Ended(after) => after,
            Flushed::Some | Flushed::Nothing => After::Stays,
        }
    }

    /// Sets the deadline for idle clients when the last stream ends.
    fn note_idle(&mut self, cx: &Context, client: &mut Client, shared: &mut Shared) {
        let Some(wait) = client.settings.http.as_ref().map(|spec| spec.keepalive_timeout) else { return };
        let was_idle = std::mem::replace(&mut self.idle, self.streams.is_empty());
        if self.idle && !was_idle {
            // If the program drains, this client got GOAWAY when the drain began.
            self.leaves |= cx.draining;
            let wait = if cx.draining { DRAIN_LEAVE } else { wait };
            // Drained bodies also have a deadline.
            let wait = if self.drained_bodies.is_empty() { wait } else { wait.min(LINGER) };
            client.set_served();
            shared.session_timers.set(client.key, cx.now + wait);
        }
    }

    fn flush_out(&mut self, client: &mut Client, buffers: &mut Buffers) -> Flushed {
        let transport = &mut client.transport;
        transport.flush(buffers);
        let mut flushed = Flushed::Nothing;
        for _ in 0..ROUNDS_MAX {
            if transport.pending() >= PENDING_BYTES_MAX {
                // An event follows when the client has received these bytes.
                return Flushed::Nothing;
            }
            let out = self.wire.take_output();
            if out.is_empty() {
                break;
            }
            transport.send(&out, buffers);
            flushed = Flushed::Some;
            // The connection may have more frames than the wire could take.
            self.write_frames();
        }
        flushed
    }

    /// Handles the deadline of the client's connection.
    pub(super) fn on_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
    ) -> After {
        if !self.drained_bodies.is_empty() {
            // Bodies that were drained for too long are reset.
            self.drained_bodies.discard_received(cx.now);
            if let Flushed::Ended(after) = self.flush(cx, client, shared) {
                return after;
            }
        }
        let Some(spec) = client.settings.http.clone() else { return After::Stays };
        let slow = client.is_slow(cx.now);
        let idle = self.streams.is_empty();
        if idle && self.leaves {
            return After::Close;
        }
        let service = Arc::clone(&client.service);
        let counters = service.live.counters.of(cx.id);
        if slow && !idle {
            counters.slow_responses.one();
            client.set_end_reason(Reason::ResponseSlow);
            self.note_closed(cx, client, shared, Reason::ResponseSlow);
            reset_at_close(client.transport.socket());
            return After::Close;
        }
        let deadline = client.active_at + if idle { spec.keepalive_timeout } else { spec.stall_timeout };
        let waits = || {
            self.exchanges().iter().any(|exchange_key| shared.exchanges[*exchange_key].waits_for_response())
        };
        let next = if deadline > cx.now {
            Some(match (self.drained_bodies.is_empty(), idle) {
                (false, _) => deadline.min(cx.now + spec.progress_interval().min(LINGER)),
                (true, true) => deadline,
                (true, false) => deadline.min(cx.now + spec.progress_interval()),
            })
        } else {
            // While a stream waits for its response, the response timeout of its exchange applies instead.
            waits().then(|| cx.now + spec.progress_interval())
        };
        if let Some(next) = next {
            shared.session_timers.set(client.key, next);
            return After::Stays;
        }
        counters.closed.idle_timeout.one();
        if idle {
            return self.dismiss(cx, client, shared);
        }
        client.set_end_reason(Reason::ResponseStalled);
        self.note_closed(cx, client, shared, Reason::ResponseStalled);
        After::Close
    }

    /// Reports the requests that end with the connection.
    fn note_closed(&self, cx: &Context, client: &Client, shared: &Shared, reason: Reason) {
        for exchange_key in self.exchanges() {
            client.note_unserved(cx, reason.into(), None, || shared.exchanges[exchange_key].parties());
        }
    }

    /// Sends GOAWAY to an idle client, and closes the connection after [`LEAVE`].
    pub(super) fn dismiss(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        self.shut_down(cx, client, shared, LEAVE)
    }

    /// Handles the deadline of a stream whose bodies move: a stalled stream ends, other streams continue.
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

    /// Fails a stream whose server did not begin its response in time.
    pub(super) fn on_response_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> After {
        shared.count_timeout(cx, exchange_key);
        self.fail_stream(cx, client, shared, exchange_key, Reason::ResponseTimeout.into());
        self.flush_all(cx, client, shared)
    }

    /// Handles the beginning of a drain.
    pub(super) fn on_drain(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        self.shut_down(cx, client, shared, DRAIN_LEAVE)
    }

    /// Sends GOAWAY: no more requests are accepted, and present requests may finish. A client without requests
    /// is closed after `leave`, unless a request arrives before.
    fn shut_down(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        leave: Duration,
    ) -> After {
        if self.streams.is_empty() {
            // A request that is under way has this time to arrive.
            self.leaves = true;
            shared.session_timers.set(client.key, cx.now + leave);
        }
        match &mut self.state {
            State::Open(connection) => connection.graceful_shutdown(),
            State::Begins(_) | State::Ends => return After::Finish,
        }
        self.flush_all(cx, client, shared)
    }

    /// Ends all exchanges.
    pub(super) fn end(&self, cx: &mut Context, client: &mut Client, shared: &mut Shared) {
        self.exchanges().into_iter().for_each(|exchange_key| shared.abandon(cx, client, exchange_key));
    }
}
