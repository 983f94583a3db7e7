//! Responses of servers: reads their header sections and decides on the framing of the body, or sends the
//! request again.

use super::{Body, Exchange, FailedServer};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::context::report::Report;
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::io::relay::End;
use crate::service;
use evener_core::reason::{Cause, Detail, Reason};
use evener_core::snapshot::{Choice, Snapshot, Why};
use evener_core::wire::chunked::Decoder;
use evener_core::wire::http::{Found, Framing, HeaderError, HeaderLimits, Response};
use std::sync::Arc;

/// Most interim responses that a server may send before the final one.
const INTERIMS_MAX: u32 = 16;

/// Header section of a response.
pub(in crate::http) enum ReadResponse {
    /// Interim response: another header section follows.
    Interim,
    /// Another protocol follows.
    Relay { cookie: Option<String> },
    /// The body follows, with this framing.
    Final { framing: Option<Framing>, cookie: Option<String> },
}

impl Shared {
    /// Returns whether a request may be sent again after the server sent no byte of a response: a retry is left
    /// or the connection was reused, repeating the request is harmless, all its bytes are stored, and the retry
    /// budget of the pool permits a retry.
    pub(in crate::http) fn may_retry(
        &self,
        cx: &Context,
        client: &Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) -> bool {
        let exchange = &self.exchanges[exchange_key];
        // A server that closes a pooled connection has not failed: `retries` may be 0.
        let is_reused = self.servers[server_key].reused;
        let is_repeatable = exchange.http.as_ref().is_some_and(|http| {
            let may = http.retries > 0 || is_reused;
            may && http.is_idempotent && http.interims == 0 && http.replay.is_some()
        });
        let Exchange { attempt, choice, settings, .. } = &**exchange;
        let permits = |snapshot: &Snapshot| {
            let limits = settings.options.attempt_limits();
            let has_other = |server| attempt.has_other(snapshot, &exchange.request(cx.now), &limits, server);
            service::may_retry(cx, &client.service, attempt, snapshot, || {
                choice.as_ref().is_some_and(|choice| has_other(choice.server.id))
            })
        };
        is_repeatable && (is_reused || permits(&exchange.backend().pool.load()))
    }

    /// Prepares a request to be sent again, on another connection, after it failed for this cause.
    pub(in crate::http) fn retry(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) {
        let exchange = &mut self.exchanges[exchange_key];
        let cause = exchange.explain(cause);
        exchange.failed = exchange
            .choice
            .as_ref()
            .map(|choice| Box::new(FailedServer { server: Arc::clone(&choice.server.name), cause }));
        self.prepare_retry(cx, client, exchange_key);
        if let Some(http) = self.exchanges[exchange_key].http.as_deref_mut() {
            http.retries = http.retries.saturating_sub(1);
            http.is_repeated = true;
            let mut outgoing = http.replay.replace(Vec::new()).unwrap_or_default();
            outgoing.append(&mut http.outgoing);
            http.outgoing = outgoing;
            http.download = Body::header();
        }
    }

    /// Counts a response that is invalid, or that broke off.
    pub(in crate::http) fn count_bad_response(&self, cx: &Context, exchange_key: ExchangeKey) {
        if let Some(choice) = &self.exchanges[exchange_key].choice {
            choice.server.live.counters.of(cx.id).responses_bad.one();
        }
    }

    /// Reads the header section, decides on the framing of the body, and counts the response. Fails if the
    /// header section is not a valid response to this request. The bytes stay in the server's input.
    pub(in crate::http) fn read_response(
        &mut self,
        cx: &Context,
        client: &Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
        found: Found,
        response: &mut Response,
    ) -> Result<ReadResponse, Cause> {
        let Self { exchanges, servers, exchange_timers, .. } = self;
        let (exchange, server) = (&mut exchanges[exchange_key], &servers[server_key]);
        let Exchange {
            http: Some(http),
            choice: Some(choice),
            settings,
            backend,
            client: address,
            since,
            entry,
            ..
        } = &mut **exchange
        else {
            return Err(Reason::ResponseInvalid.into());
        };
        let invalid = |words| Err(Cause::with(Reason::ResponseInvalid, words));
        // An empty line is permitted before requests only (RFC 9112, section 2.2).
        if found.start > 0 {
            return invalid("an empty line before the status line");
        }
        let header = &server.transport.unread()[found.start..found.end];
        let limits = settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
        response.parse(header, &limits).map_err(|error| invalid_header(error.0, header, &limits))?;
        let status = response.status();
        if (100..200).contains(&status) && status != 101 {
            http.interims += 1;
            http.download = Body::header();
            return if http.interims <= INTERIMS_MAX {
                Ok(ReadResponse::Interim)
            } else {
                Err(Cause::new(
                    Reason::ResponseInvalid,
                    Detail::Above(INTERIMS_MAX.into(), "interim responses"),
                ))
            };
        }
        let relays = status == 101 || (http.is_connect && (200..300).contains(&status));
        // During an upload the protocol would change in the middle of the request.
        let may_change = http.upgrades && http.upload == Body::Done && response.upgrade(header).is_some();
        if status == 101 && !may_change {
            return invalid("status 101, but the client did not request another protocol");
        }
        http.has_responded = true;
        if let Some(entry) = entry {
            entry.on_response(status, cx.now);
        }
        if let Some(repair) = response.repair().filter(|_| cx.takes_detail()) {
            cx.report(Report::Repaired {
                service: Arc::clone(&client.service.live.name),
                pool: Arc::clone(&settings.backends[*backend].pool.load().pool),
                server: Arc::clone(&choice.server.name),
                detail: repair,
            });
        }
        let of_server = choice.server.live.counters.of(cx.id);
        of_server.responses.one();
        of_server.response_seconds.record_since(*since, cx.now);
        if (500..600).contains(&status) {
            of_server.responses_5xx.one();
            client.service.live.counters.of(cx.id).responses_5xx.one();
        }
        let snapshot = settings.backends[*backend].pool.load();
        snapshot.remember(*address, choice.server.id, cx.now);
        snapshot.observe(&choice.server, cx.now.since(*since), cx.now);
        let cookie = cookie(&snapshot, choice, client.facts.is_some());
        exchange_timers.clear(exchange_key);
        if relays {
            http.is_relay = true;
            return Ok(ReadResponse::Relay { cookie });
        }
        let method: &[u8] = if http.is_head { b"HEAD" } else { b"GET" };
        let framing = response.framing(method);
        http.download = match framing {
            None | Some(Framing::Length(0)) => Body::Done,
            Some(Framing::Length(length)) => Body::Length(length),
            Some(Framing::Chunked) => Body::Chunked(Decoder::default()),
            Some(Framing::Close) => Body::Close,
        };
        http.server_stays = response.keeps_alive() && framing != Some(Framing::Close);
        Ok(ReadResponse::Final { framing, cookie })
    }
}

/// The server does not use HTTP/1.
const NOT_HTTP: Cause = Cause::with(Reason::ResponseInvalid, "not HTTP/1");

/// Returns whether the first bytes of a server cannot be a response of HTTP/1.
fn is_not_http(bytes: &[u8]) -> bool {
    !bytes.starts_with(b"HTTP/") && !b"HTTP/".starts_with(bytes)
}

/// Returns the cause for a header section that is not one of HTTP/1.
pub(in crate::http) fn invalid_header(error: HeaderError, bytes: &[u8], limits: &HeaderLimits) -> Cause {
    if is_not_http(bytes) {
        return NOT_HTTP;
    }
    match error.exceeded(limits) {
        Some(limit) => Cause::new(Reason::ResponseTooLarge, limit),
        None => Cause::with(Reason::ResponseInvalid, error.words()),
    }
}

/// Returns the cause if a server ended its connection before the header section of its response was complete.
pub(in crate::http) fn no_response(end: Option<End>, bytes: &[u8]) -> Cause {
    if is_not_http(bytes) {
        return NOT_HTTP;
    }
    let is_silent = bytes.is_empty();
    Cause::with(
        Reason::ServerClosed,
        match (end, is_silent) {
            (Some(End::Fin), true) => "it sent no byte",
            (Some(End::Fin), false) => "it closed in the middle of the header section",
            (_, true) => "it reset the connection before it sent a byte",
            (_, false) => "it reset the connection in the middle of the header section",
        },
    )
}

/// Returns the cause if a server ended its connection before the body of its response was complete.
pub(in crate::http) fn cut_response(end: End) -> Cause {
    let words = match end {
        End::Fin => "the server closed in the middle of the body",
        End::Error(_) => "the server reset the connection in the middle of the body",
    };
    Cause::with(Reason::ResponseIncomplete, words)
}

/// Returns the cookie that makes later requests of the client go to the same server. Returns `None` if the pool
/// sets no cookies, or the client's cookie chose this server.
fn cookie(snapshot: &Snapshot, choice: &Choice, secure: bool) -> Option<String> {
    let name = snapshot.cookie.as_ref().filter(|_| choice.why != Why::Sticky)?;
    let secure = if secure { "; Secure" } else { "" };
    Some(format!("{name}={:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", choice.server.token))
}
