//! One stream: its request becomes an exchange, or gets a local response; it ends in order, or is reset.

use super::body::{At, Pumped};
use super::header::{exceeds, local_response, write_header};
use super::{Http2, Stream};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::http::client::{After, Client, LINGER, ROUNDS_MAX};
use crate::http::exchange::{Body, Keep, Reach, Shared};
use crate::http::judge::{Arrival, Judged, judge_header, refuse_stream};
use crate::http::message::LocalResponse;
use crate::io::transport::PENDING_BYTES_MAX;
use bytes::Bytes;
use evener_core::Time;
use evener_core::pace::{Pace, Progress};
use evener_core::snapshot::NoServer;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use std::task::{self, Waker};

impl Http2 {
    /// A request came.
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
            refuse_stream(cx, client, &header, 431)
        } else {
            judge_header(cx, client, shared, &header, arrival)
                .unwrap_or_else(|status| refuse_stream(cx, client, &header, status))
        };
        shared.headers.header = header;
        match judged {
            Judged::Exchange(number) => {
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.exchange = Some(number);
                }
                self.drive_stream(cx, client, shared, number);
            }
            Judged::Respond(local) => {
                self.respond_locally(cx, client, shared, key, &local.response, local.is_head);
            }
            Judged::Close => return After::Close,
            Judged::Waits => return After::Tarpit,
        }
        After::Stays
    }
}

/// The stream that an exchange belongs to.
fn stream_of(shared: &Shared, number: ExchangeKey) -> Option<StreamKey> {
    shared.exchanges.get(number)?.http.as_ref()?.stream
}

impl Http2 {
    /// Sends a local response; the stream is over.
    fn respond_locally(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        key: StreamKey,
        local: &LocalResponse,
        is_head: bool,
    ) {
        let (response, body) = local_response(local);
        let bodyless = is_head || !local.has_body();
        let Some(mut stream) = self.streams.remove(key) else { return };
        if let Ok(mut send) = stream.respond.send_response(response, bodyless)
            && !bodyless
        {
            let _ = send.send_data(body, true);
        }
        self.leave_body(cx, client, shared, stream.body);
    }

    /// Discards what still comes of a request's body after the response.
    fn leave_body(&mut self, cx: &mut Context, client: &mut Client, shared: &mut Shared, body: RecvStream) {
        let now = cx.now;
        self.rests.add(body, now);
        if !self.rests.is_empty() {
            shared.session_timers.set_if_earlier(client.key, now + LINGER);
        }
    }

    /// Ends an exchange without a response of a server: the client gets this status, or a reset amid a response.
    pub(super) fn fail_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        number: ExchangeKey,
        status: u16,
    ) {
        let Some(key) = stream_of(shared, number) else { return };
        client.service.live.counters.of(cx.id).requests_failed.one();
        let http = shared.exchanges[number].http.as_deref();
        let (responded, is_head) = http.map_or((false, false), |http| (http.responded, http.is_head));
        shared.abandon(cx, client, number);
        if responded {
            return self.reset_stream(key, Reason::INTERNAL_ERROR);
        }
        self.respond_locally(cx, client, shared, key, &LocalResponse::page(status), is_head);
    }

    /// Checks whether the bodies of a stream move, and fast enough.
    pub(super) fn check_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        number: ExchangeKey,
    ) {
        let Some(key) = stream_of(shared, number) else { return };
        let Some(spec) = client.settings.http.clone() else { return };
        let Some(active_at) = self.streams.get_mut(key).map(|stream| stream.active_at) else { return };
        // What waits for the client as a whole is judged as a whole; a little is always under way where others go on.
        let held = client.transport.left() >= PENDING_BYTES_MAX;
        let sends_slowly = shared.is_slow(cx, number);
        let takes_slowly = self.takes_slowly(cx.now, shared, number, key, held);
        let deadline = active_at + spec.stall_timeout;
        if !sends_slowly && !takes_slowly && (held || deadline > cx.now) {
            let check = cx.now + spec.progress_interval();
            return shared.exchange_timers.set(number, if held { check } else { deadline.min(check) });
        }
        let counters = client.service.live.counters.of(cx.id);
        match (sends_slowly, takes_slowly) {
            (true, _) if shared.is_servers_fault(cx, number) => {}
            (true, _) => counters.slow_requests.one(),
            (_, true) => counters.slow_responses.one(),
            (false, false) => counters.idle_timeouts.one(),
        }
        shared.abandon(cx, client, number);
        self.reset_stream(key, Reason::CANCEL);
    }

    /// Returns whether the client takes the response of one stream below the minimum rate: the server's bytes wait for its window.
    fn takes_slowly(
        &mut self,
        now: Time,
        shared: &Shared,
        number: ExchangeKey,
        key: StreamKey,
        held: bool,
    ) -> bool {
        let exchange = &shared.exchanges[number];
        let Some(rate) = exchange.settings.http.as_ref().and_then(|spec| spec.min_rate) else { return false };
        let waiting = match exchange.reach {
            Reach::Open(slot) => shared.servers[slot].transport.input.len() as u64,
            _ => 0,
        };
        let Some(stream) = self.streams.get_mut(key) else { return false };
        let waits = waiting > 0 && stream.send.is_some() && !held;
        let progress = Progress { moved: stream.taken, due: waits.then_some(stream.taken + waiting) };
        stream.pace.is_slow(now, progress, &rate)
    }

    /// The stream cannot go on.
    fn reset_stream(&mut self, key: StreamKey, reason: Reason) {
        if let Some(mut stream) = self.streams.remove(key) {
            match &mut stream.send {
                Some(send) => send.send_reset(reason),
                None => stream.respond.send_reset(reason),
            }
        }
    }

    /// Does for one exchange what can be done without waiting.
    pub(super) fn drive_stream(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        number: ExchangeKey,
    ) {
        let Some(key) = stream_of(shared, number) else { return };
        let mut context = task::Context::from_waker(Waker::noop());
        // The client does not want it any more.
        let gone = self.streams.get_mut(key).is_none_or(|stream| match &mut stream.send {
            Some(send) => send.poll_reset(&mut context).is_ready(),
            None => stream.respond.poll_reset(&mut context).is_ready(),
        });
        if gone {
            client.service.live.counters.of(cx.id).requests_aborted.one();
            shared.abandon(cx, client, number);
            self.streams.remove(key);
            return;
        }
        for _ in 0..ROUNDS_MAX {
            match shared.reach(cx, client, number) {
                Reach::Open(slot) => match self.pump(cx, client, shared, At { key, number, slot }) {
                    Pumped::Again => {}
                    Pumped::Waits => return,
                    Pumped::Bad => return self.bad_response(cx, client, shared, number),
                    Pumped::Reset => {
                        shared.abandon(cx, client, number);
                        return self.reset_stream(key, Reason::CANCEL);
                    }
                    Pumped::Complete => return self.complete(cx, client, shared, number, key),
                },
                Reach::Connecting(_) | Reach::Queued | Reach::Wanted => return,
                Reach::Failed(reason) => {
                    return self.fail_stream(cx, client, shared, number, status_of(reason));
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
        number: ExchangeKey,
    ) {
        shared.note_bad_response(cx, number);
        self.fail_stream(cx, client, shared, number, 502);
    }

    /// The response is whole; the server's connection is kept for others.
    fn complete(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        number: ExchangeKey,
        key: StreamKey,
    ) {
        let http = shared.exchanges[number].http.as_ref();
        let is_shared =
            http.is_some_and(|http| http.server_stays && http.upload == Body::Done && !http.is_private);
        let stay = shared.exchanges[number].stay();
        shared.end(cx, client, number, if is_shared { Keep::Shared } else { Keep::No });
        client.active_at = cx.now;
        client.stay = stay;
        if let Some(stream) = self.streams.remove(key) {
            self.leave_body(cx, client, shared, stream.body);
        }
    }
}

/// Returns the status for the reason why no server was reached.
fn status_of(reason: NoServer) -> u16 {
    if reason == NoServer::Failed { 502 } else { 503 }
}
