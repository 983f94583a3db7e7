//! HTTP/1 with clients. Requests are read one after the other. Each becomes an exchange with a server or gets a
//! local response, and the response is sent with the framing for the client. No byte of a request is passed on
//! unparsed: header sections are parsed and written anew, bodies are decoded and framed again.

mod body;
mod response;

use super::client::{After, Client, LEAVE_DELAY, Parties, ROUNDS_MAX};
use super::exchange::{Reach, Shared};
use super::judge::{Arrival, Judged, Next, count_bad, judge_header};
use super::local_response::LocalResponse;
use super::message::Afterwards;
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::io::relay::End;
use crate::io::transport::Received;
use crate::service::admission::reset_at_close;
use evener_core::reason::{Cause, Reason};
use evener_core::spec::HttpSpec;
use evener_core::wire::hello;
use evener_core::wire::http::{Found, RequestError, Scan};
use std::sync::Arc;
use std::time::Duration;

/// Time for a request that is under way when the next instance takes over.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// HTTP/1 on a client's connection.
#[derive(Debug)]
pub(super) struct Http1 {
    scan: Scan,
    stage: Stage,
    /// Connection to a server that is for this client only.
    private: Option<ServerConnectionKey>,
    /// Reason for which all requests are refused.
    refusal: Option<Reason>,
}

/// Stage of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The header section of a request is read.
    Header,
    /// An exchange is under way.
    Exchange(ExchangeKey),
    /// The client has to receive the queued bytes; then another request or the end follows.
    Flush(Next),
}

/// Outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Another step may follow.
    Continue,
    /// An event has to come first.
    Blocked,
    /// HTTP/1 has ended on this connection.
    Finished(After),
}

impl Http1 {
    pub(super) fn new() -> Self {
        Self { scan: Scan::default(), stage: Stage::Header, private: None, refusal: None }
    }

    /// Creates a connection that refuses its first request for this reason, and is then closed.
    pub(super) fn refusing(reason: Reason) -> Self {
        Self { refusal: Some(reason), ..Self::new() }
    }

    /// Returns the exchange that is under way.
    pub(super) fn exchange(&self) -> Option<ExchangeKey> {
        match self.stage {
            Stage::Exchange(exchange_key) => Some(exchange_key),
            Stage::Header | Stage::Flush(_) => None,
        }
    }

    /// Returns whether no request has begun.
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Header && !self.scan.has_begun()
    }
}

impl Http1 {
    /// Continues the connection until it has to wait.
    pub(super) fn drive(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> After {
        for _ in 0..ROUNDS_MAX {
            match self.step(cx, client, shared) {
                Step::Continue => {}
                Step::Blocked => return After::Stays,
                Step::Finished(after) => return after,
            }
        }
        client.queue(cx);
        After::Stays
    }

    fn step(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> Step {
        debug_assert!(shared.headers.out.is_empty(), "leftover bytes would be sent to another client");
        shared.headers.out.clear();
        client.transport.flush(&mut shared.buffers);
        if let Stage::Exchange(exchange_key) = self.stage {
            watch_client(cx, client, shared, exchange_key);
        }
        if client.transport.is_broken() || matches!(client.transport.end(), Some(End::Error(_))) {
            if let Stage::Exchange(exchange_key) = self.stage {
                shared.note_aborted(cx, client, exchange_key);
            }
            return Step::Finished(After::Close);
        }
        match self.stage {
            Stage::Header => self.read_header(cx, client, shared),
            Stage::Exchange(exchange_key) => match shared.reach(cx, client, exchange_key) {
                Reach::Open(_) => self.pump(cx, client, shared, exchange_key),
                Reach::Connecting(_) | Reach::Queued | Reach::Wanted => Step::Blocked,
                Reach::Failed(reason) => self.fail_exchange(cx, client, shared, exchange_key, reason.into()),
            },
            Stage::Flush(next) => {
                if client.transport.pending() > 0 {
                    return Step::Blocked;
                }
                self.flushed(cx, client, shared, next)
            }
        }
    }
}

/// Checks whether the client closed while its request is under way. A client that ended only its sending
/// direction may still wait for the response, so its request is aborted only after [`LEAVE_DELAY`] without
/// progress.
fn watch_client(cx: &mut Context, client: &mut Client, shared: &mut Shared, exchange_key: ExchangeKey) {
    let Shared { exchanges, buffers, .. } = &mut *shared;
    let Some(exchange) = exchanges.get(exchange_key) else { return };
    let aborts = exchange.aborts_on_close();
    if aborts && client.transport.tls().is_some() && client.transport.unread().is_empty() {
        // With TLS, only a read finds the end. The read may return the next request instead.
        client.transport.receive(buffers);
    }
    let closed = client.transport.has_peer_closed();
    if aborts && closed && client.leave_early() {
        shared.session_timers.set(client.key, cx.now + LEAVE_DELAY);
    }
}

impl Http1 {
    fn flushed(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared, next: Next) -> Step {
        let leaves = cx.draining && !cx.has_successor() && client.transport.unread().is_empty();
        if next == Next::End || leaves {
            return Step::Finished(After::Finish);
        }
        let is_empty = client.transport.unread().is_empty();
        let Some(spec) = client.settings.http.clone() else { return Step::Blocked };
        client.set_served();
        (self.stage, self.scan) = (Stage::Header, Scan::default());
        // The next request may have begun already.
        let wait = if is_empty { spec.keepalive_timeout } else { spec.header_timeout };
        let wait = if is_empty && cx.draining { wait.min(LAST_REQUEST) } else { wait };
        shared.session_timers.set(client.key, cx.now + wait);
        Step::Continue
    }

    fn read_header(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) -> Step {
        let Some(spec) = client.settings.http.clone() else { return Step::Blocked };
        let transport = &mut client.transport;
        let had_begun = self.scan.has_begun();
        match self.scan.find(transport.unread(), &spec.limits) {
            Ok(Some(found)) => self.begin(cx, client, shared, found),
            Ok(None) | Err(_) if hello::is_record(transport.unread()) => {
                client.begin_partial_log_entry(cx.now);
                self.bad_request(cx, client, shared, Reason::TlsOnPlainPort.into())
            }
            Ok(None) => {
                if self.scan.has_begun() && !had_begun {
                    shared.session_timers.set(client.key, cx.now + spec.header_timeout);
                }
                if transport.receive(&mut shared.buffers) == Received::Some {
                    return Step::Continue;
                }
                if transport.end().is_some() {
                    // No client waits for a response to a partial request.
                    return Step::Finished(After::Finish);
                }
                Step::Blocked
            }
            Err(error) => {
                client.begin_partial_log_entry(cx.now);
                self.bad_request(cx, client, shared, RequestError::from(error).cause(&spec.limits))
            }
        }
    }

    /// Judges a request whose header section is complete.
    fn begin(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared, found: Found) -> Step {
        let bytes = &client.transport.unread()[found.start..found.end];
        // The header section is borrowed while the client changes, so it is copied.
        let mut header = std::mem::take(&mut shared.headers.header);
        header.clear();
        header.extend_from_slice(bytes);
        client.transport.consume(found.end);
        client.transport.settle(&mut shared.buffers);
        let judged = judge_header(cx, client, shared, &header, Arrival::Http1 { refusal: self.refusal });
        shared.headers.header = header;
        match judged {
            Ok(Judged::Exchange(exchange_key)) => {
                shared.exchanges[exchange_key].offer_private(self.private.take());
                self.stage = Stage::Exchange(exchange_key);
                Step::Continue
            }
            Ok(Judged::Respond(response, next)) => self.respond_locally(cx, client, shared, &response, next),
            Ok(Judged::Close) => Step::Finished(After::Finish),
            Ok(Judged::Tarpit) => Step::Finished(After::Tarpit),
            Err(cause) => self.bad_request(cx, client, shared, cause),
        }
    }

    /// Responds to an invalid request. The bytes after it are not read.
    fn bad_request(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        cause: Cause,
    ) -> Step {
        count_bad(cx, client, cause);
        self.respond_locally(cx, client, shared, &LocalResponse::page(cause), Next::End)
    }
}

impl Http1 {
    /// Sends a local response, counts it by its reason, and reports it.
    fn respond_locally(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        response: &LocalResponse,
        next: Next,
    ) -> Step {
        response.note(cx, client);
        self.send_local_response(cx, client, shared, response, next)
    }

    /// Sends a local response that is counted already.
    fn send_local_response(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        response: &LocalResponse,
        next: Next,
    ) -> Step {
        let afterwards = if next == Next::End { Afterwards::Closes } else { Afterwards::Stays };
        client.log_local_response(cx, response);
        response.write(afterwards, &mut shared.headers.out);
        client.transport.send(&shared.headers.out, &mut shared.buffers);
        client.count(cx, 0, shared.headers.out.len() as u64);
        shared.headers.out.clear();
        let patience = client.settings.http.as_ref().map_or(Duration::ZERO, |spec| spec.progress_interval());
        client.active_at = cx.now;
        self.stage = Stage::Flush(next);
        shared.session_timers.set(client.key, cx.now + patience);
        Step::Continue
    }

    /// Ends an exchange that gets no complete response from its server. The client gets a local response, or a
    /// reset if the response has begun.
    fn fail_exchange(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) -> Step {
        client.service.live.counters.of(cx.id).requests_failed.one();
        let exchange = &shared.exchanges[exchange_key];
        let cause = exchange.explain(cause);
        let http = exchange.http.as_deref();
        let (responded, is_head) = http.map_or((false, false), |http| (http.has_responded(), http.is_head()));
        // Unread bytes of the body would be parsed as the next request.
        let stays = http.is_some_and(|http| http.client_stays() && http.is_uploaded()) && !cx.draining;
        let response = (!responded).then(|| LocalResponse::page(cause).for_method(is_head));
        let status = response.as_ref().map(LocalResponse::status);
        client.note_unserved(cx, cause, status, || exchange.parties());
        shared.exchanges[exchange_key].log_failure(client, cause);
        shared.abandon(cx, client, exchange_key);
        let Some(response) = response else {
            // A partial response cannot be taken back; the reset shows that it is not complete.
            self.stage = Stage::Header;
            reset_at_close(client.transport.socket());
            return Step::Finished(After::Close);
        };
        let next = if stays { Next::Request } else { Next::End };
        self.send_local_response(cx, client, shared, &response, next)
    }
}

impl Http1 {
    /// Handles the deadline of the client's connection.
    pub(super) fn on_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
    ) -> After {
        let Some(spec) = client.settings.http.clone() else { return After::Stays };
        let service = Arc::clone(&client.service);
        let counters = service.live.counters.of(cx.id);
        match self.stage {
            Stage::Header if self.scan.has_begun() => {
                counters.preamble_timeouts.one();
                client.begin_partial_log_entry(cx.now - spec.header_timeout);
                self.respond_locally(
                    cx,
                    client,
                    shared,
                    &LocalResponse::page(Reason::RequestTimeout),
                    Next::End,
                );
                self.drive(cx, client, shared)
            }
            Stage::Header => {
                counters.closed.idle_timeout.one();
                After::Finish
            }
            Stage::Flush(_) => self.on_progress_check(cx, client, shared, &spec, None),
            Stage::Exchange(exchange_key) => {
                self.on_progress_check(cx, client, shared, &spec, Some(exchange_key))
            }
        }
    }

    /// Checks whether bodies move, and move fast enough; fails the exchange or closes the connection otherwise.
    fn on_progress_check(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        spec: &HttpSpec,
        exchange: Option<ExchangeKey>,
    ) -> After {
        let service = Arc::clone(&client.service);
        let counters = service.live.counters.of(cx.id);
        let takes_slowly = client.is_slow(cx.now);
        let sends_slowly = exchange.is_some_and(|exchange_key| shared.is_slow(cx, exchange_key));
        let waits = exchange.is_some_and(|exchange_key| shared.exchanges[exchange_key].waits_for_response());
        let deadline = client.active_at + spec.stall_timeout;
        let leaving = exchange
            .filter(|exchange_key| client.left_early() && shared.exchanges[*exchange_key].aborts_on_close());
        if let Some(exchange_key) = leaving
            && client.is_quiet(cx.now)
        {
            shared.note_aborted(cx, client, exchange_key);
            return After::Close;
        }
        let progress_interval = if leaving.is_some() { LEAVE_DELAY } else { spec.progress_interval() };
        let next = match (takes_slowly || sends_slowly, deadline > cx.now) {
            (true, _) => None,
            (false, true) => Some(deadline.min(cx.now + progress_interval)),
            // While the response is awaited, the response timeout of the exchange applies instead.
            (false, false) => waits.then(|| cx.now + progress_interval),
        };
        if let Some(next) = next {
            shared.session_timers.set(client.key, next);
            return After::Stays;
        }
        if takes_slowly {
            counters.slow_responses.one();
        } else if !sends_slowly {
            counters.closed.idle_timeout.one();
        }
        let responded = |exchange_key: ExchangeKey| {
            shared.exchanges[exchange_key].http.as_ref().is_some_and(|http| http.has_responded())
        };
        match exchange.filter(|exchange_key| !takes_slowly && !responded(*exchange_key)) {
            Some(exchange_key) => {
                let fault = shared.is_delayed_by_server(cx, exchange_key);
                if sends_slowly && !fault {
                    counters.slow_requests.one();
                }
                let reason = match (fault, sends_slowly) {
                    (true, _) => Reason::ServerStalled,
                    (false, true) => Reason::RequestSlow,
                    (false, false) => Reason::RequestStalled,
                };
                self.fail(cx, client, shared, exchange_key, reason.into())
            }
            None => {
                let reason = if takes_slowly { Reason::ResponseSlow } else { Reason::ResponseStalled };
                client.set_end_reason(reason);
                client.note_unserved(cx, reason.into(), None, || match exchange {
                    Some(exchange_key) => shared.exchanges[exchange_key].parties(),
                    None => Parties::default(),
                });
                if takes_slowly || exchange.is_some() {
                    // A partial response must not look complete. The reset also frees the bytes that the kernel
                    // has queued.
                    reset_at_close(client.transport.socket());
                }
                After::Close
            }
        }
    }

    /// Fails an exchange whose server did not begin its response in time.
    pub(super) fn on_response_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) -> After {
        shared.count_timeout(cx, exchange_key);
        self.fail(cx, client, shared, exchange_key, Reason::ResponseTimeout.into())
    }

    /// Fails an exchange, and continues the client's connection.
    fn fail(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) -> After {
        match self.fail_exchange(cx, client, shared, exchange_key, cause) {
            Step::Finished(after) => after,
            Step::Continue | Step::Blocked => self.drive(cx, client, shared),
        }
    }

    /// Handles the beginning of a drain: a client without a request is closed. If the next instance serves new
    /// connections, a request that is under way has [`LAST_REQUEST`] to arrive, so that an upgrade fails none.
    pub(super) fn on_drain(&self, cx: &Context, client: &Client, shared: &mut Shared) -> After {
        let is_idle = client.transport.unread().is_empty() && self.stage == Stage::Header;
        if is_idle && !cx.has_successor() {
            return After::Finish;
        }
        if is_idle {
            shared.session_timers.set(client.key, cx.now + LAST_REQUEST);
        }
        After::Stays
    }

    /// Ends the exchange and closes the private connection to a server.
    pub(super) fn end(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared) {
        if let Stage::Exchange(exchange_key) = self.stage {
            shared.abandon(cx, client, exchange_key);
        }
        if let Some(private) = self.private.take() {
            shared.close_private(cx, private);
        }
    }
}
