//! Streams: a request becomes an exchange, or gets a local response; its stream ends in order, or is reset.

use super::body::{Pumped, StreamPath};
use super::header::{exceeds, write_header};
use super::{Http2, Stream};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::http::client::{After, Client, LINGER, ROUNDS_MAX};
use crate::http::exchange::{Keep, Reach, Shared};
use crate::http::judge::{Arrival, Judged, judge_header, refuse_stream};
use crate::http::local_response::LocalResponse;
use crate::io::transport::PENDING_BYTES_MAX;
use bytes::Bytes;
use evener_core::Time;
use evener_core::pace::{Pace, Progress};
use evener_core::reason::{Cause, Reason};
use h2::server::SendResponse;
use h2::{Reason as ResetCode, RecvStream};
use std::sync::Arc;
use std::task::{self, Waker};

impl Http2 {
    /// Begins a stream for a request.
    pub(super) fn begin_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> After {
        let (parts, body) = request.into_parts();
        let active_at = cx.now;
        let mut header = std::mem::take(&mut shared.headers.header);
        write_header(&parts, body.is_end_stream(), &mut header);
        let too_large =
            client.settings.http.as_ref().is_some_and(|spec| exceeds(&parts, &header, &spec.limits));
        let bodyless = body.is_end_stream();
        self.idle = false;
        let key = self.streams.insert(Stream {
            exchange: None,
            active_at,
            taken: 0,
            pace: Pace::default(),
            body,
            respond,
            send: None,
        });
        let arrival = Arrival::Stream { key, has_body: !bodyless, is_alone: self.streams.len() == 1 };
        let judged = if too_large {
            refuse_stream(cx, client, &header, Reason::HeaderTooLarge.into())
        } else {
            judge_header(cx, client, shared, &header, arrival)
                .unwrap_or_else(|cause| refuse_stream(cx, client, &header, cause))
        };
        shared.headers.header = header;
        match judged {
            Judged::Exchange(exchange_key) => {
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.exchange = Some(exchange_key);
                }
                self.drive_stream(cx, client, shared, exchange_key);
            }
            Judged::Respond(response, _) => self.respond_locally(cx, client, shared, key, &response),
            Judged::Close => return After::Close,
            Judged::Tarpit => return After::Tarpit,
        }
        After::Stays
    }
}

/// Returns the stream that an exchange belongs to.
fn stream_of(shared: &Shared, exchange_key: ExchangeKey) -> Option<StreamKey> {
    shared.exchanges.get(exchange_key)?.http.as_ref()?.stream()
}

impl Http2 {
    /// Sends a local response, counts it by its reason, and reports it.
    fn respond_locally(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        key: StreamKey,
        local: &LocalResponse,
    ) {
        local.note(cx, client);
        self.send_local_response(cx, client, shared, key, local);
    }

    /// Sends a local response that is counted already.
    fn send_local_response(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        key: StreamKey,
        local: &LocalResponse,
    ) {
        client.log_local_response(cx, local);
        let (response, body) = local.to_http2();
        let Some(mut stream) = self.streams.remove(key) else { return };
        if let Ok(mut send) = stream.respond.send_response(response, body.is_none())
            && let Some(body) = body
        {
            let _ = send.send_data(body, true);
        }
        self.drain_body(cx, client, shared, stream.body);
    }

    /// Drains the body of a request after the response.
    fn drain_body(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared, body: RecvStream) {
        let now = cx.now;
        self.drained_bodies.add(body, now);
        if !self.drained_bodies.is_empty() {
            shared.session_timers.set_if_earlier(client.key, now + LINGER);
        }
    }

    /// Ends an exchange that gets no complete response from its server. The client gets a local response, or a
    /// reset of the stream if the response has begun.
    pub(super) fn fail_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) {
        let Some(key) = stream_of(shared, exchange_key) else { return };
        client.service.live.counters.of(cx.id).requests_failed.one();
        let exchange = &shared.exchanges[exchange_key];
        let cause = exchange.explain(cause);
        let http = exchange.http.as_deref();
        let (responded, is_head) = http.map_or((false, false), |http| (http.has_responded(), http.is_head()));
        let response = (!responded).then(|| LocalResponse::page(cause).for_method(is_head));
        let status = response.as_ref().map(LocalResponse::status);
        client.note_unserved(cx, cause, status, || exchange.parties());
        shared.exchanges[exchange_key].log_failure(client, cause);
        shared.abandon(cx, client, exchange_key);
        match response {
            Some(response) => self.send_local_response(cx, client, shared, key, &response),
            None => self.reset_stream(key, ResetCode::INTERNAL_ERROR),
        }
    }

    /// Checks whether the bodies of a stream move, and move fast enough; resets the stream otherwise.
    pub(super) fn check_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) {
        let Some(key) = stream_of(shared, exchange_key) else { return };
        let Some(spec) = client.settings.http.clone() else { return };
        let Some(active_at) = self.streams.get_mut(key).map(|stream| stream.active_at) else { return };
        // If so many bytes are queued for the whole connection, the deadline of the client applies instead.
        // Fewer bytes are often queued while other streams move.
        let held = client.transport.left() >= PENDING_BYTES_MAX;
        let sends_slowly = shared.is_slow(cx, exchange_key);
        let takes_slowly = self.takes_slowly(cx.now, shared, exchange_key, key, held);
        let deadline = active_at + spec.stall_timeout;
        if !sends_slowly && !takes_slowly && (held || deadline > cx.now) {
            let check = cx.now + spec.progress_interval();
            return shared.exchange_timers.set(exchange_key, if held { check } else { deadline.min(check) });
        }
        let service = Arc::clone(&client.service);
        let counters = service.live.counters.of(cx.id);
        let responded = shared.exchanges[exchange_key].http.as_ref().is_some_and(|http| http.has_responded());
        let reason = match (sends_slowly, takes_slowly) {
            (true, _) if shared.is_delayed_by_server(cx, exchange_key) => Reason::ServerStalled,
            (true, _) => {
                counters.slow_requests.one();
                Reason::RequestSlow
            }
            (_, true) => {
                counters.slow_responses.one();
                Reason::ResponseSlow
            }
            (false, false) => {
                counters.closed.idle_timeout.one();
                if responded { Reason::ResponseStalled } else { Reason::RequestStalled }
            }
        };
        client.note_unserved(cx, reason.into(), None, || shared.exchanges[exchange_key].parties());
        if let Some(entry) = shared.exchanges[exchange_key].log_entry() {
            entry.set_cause(reason);
        }
        shared.abandon(cx, client, exchange_key);
        self.reset_stream(key, ResetCode::CANCEL);
    }

    /// Returns whether the client receives the response of one stream below the minimum rate, while bytes from
    /// the server wait for the window of the stream.
    fn takes_slowly(
        &mut self,
        now: Time,
        shared: &Shared,
        exchange_key: ExchangeKey,
        key: StreamKey,
        held: bool,
    ) -> bool {
        let exchange = &shared.exchanges[exchange_key];
        let Some(rate) = exchange.settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
        let waiting = exchange
            .open_connection()
            .map_or(0, |server_key| shared.servers[server_key].transport.unread().len() as u64);
        let Some(stream) = self.streams.get_mut(key) else { return false };
        let waits = waiting > 0 && stream.send.is_some() && !held;
        let progress = Progress { moved: stream.taken, due: waits.then_some(stream.taken + waiting) };
        stream.pace.is_slow(now, progress, &rate)
    }

    /// Resets a stream.
    fn reset_stream(&mut self, key: StreamKey, code: ResetCode) {
        if let Some(mut stream) = self.streams.remove(key) {
            match &mut stream.send {
                Some(send) => send.send_reset(code),
                None => stream.respond.send_reset(code),
            }
        }
    }

    /// Continues one exchange until it has to wait or is complete.
    pub(super) fn drive_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
    ) {
        let Some(key) = stream_of(shared, exchange_key) else { return };
        let mut context = task::Context::from_waker(Waker::noop());
        // The client may have reset the stream.
        let gone = self.streams.get_mut(key).is_none_or(|stream| match &mut stream.send {
            Some(send) => send.poll_reset(&mut context).is_ready(),
            None => stream.respond.poll_reset(&mut context).is_ready(),
        });
        if gone {
            shared.note_aborted(cx, client, exchange_key);
            shared.abandon(cx, client, exchange_key);
            self.streams.remove(key);
            return;
        }
        for _ in 0..ROUNDS_MAX {
            match shared.reach(cx, client, exchange_key) {
                Reach::Open(server_key) => {
                    match self.pump(cx, client, shared, StreamPath::new(key, exchange_key, server_key)) {
                        Pumped::Again => {}
                        Pumped::Blocked => return,
                        Pumped::BadResponse(cause) => {
                            return self.bad_response(cx, client, shared, exchange_key, cause);
                        }
                        Pumped::Reset => {
                            shared.note_aborted(cx, client, exchange_key);
                            shared.abandon(cx, client, exchange_key);
                            return self.reset_stream(key, ResetCode::CANCEL);
                        }
                        Pumped::Complete => return self.complete(cx, client, shared, exchange_key, key),
                    }
                }
                Reach::Connecting(_) | Reach::Queued | Reach::Wanted => return,
                Reach::Failed(reason) => {
                    return self.fail_stream(cx, client, shared, exchange_key, reason.into());
                }
            }
        }
        client.queue(cx);
    }
}

impl Http2 {
    fn bad_response(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) {
        shared.count_bad_response(cx, exchange_key);
        self.fail_stream(cx, client, shared, exchange_key, cause);
    }

    /// Ends an exchange whose response is complete. The connection to the server is pooled if other clients may
    /// use it, and closed otherwise.
    fn complete(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        key: StreamKey,
    ) {
        let http = shared.exchanges[exchange_key].http.as_ref();
        let is_shared = http.is_some_and(|http| http.keep() == Keep::Shared);
        let stay = shared.exchanges[exchange_key].stay();
        shared.end(cx, client, exchange_key, if is_shared { Keep::Shared } else { Keep::No });
        client.active_at = cx.now;
        client.stay = stay;
        if let Some(stream) = self.streams.remove(key) {
            self.drain_body(cx, client, shared, stream.body);
        }
    }
}
