//! Judging of requests: a request is parsed, admitted and routed. It becomes an exchange, or gets a local
//! response. The rules are the same for all versions of HTTP, because the header section of an HTTP/2 request
//! is rewritten in the form of HTTP/1.1 before the request is judged.

use super::client::{Client, Parties};
use super::exchange::{Body, Exchange, Shared};
use super::local_response::LocalResponse;
use super::message::{self, ForwardedFields, LoopRisk};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::service::admission::{self, Admission, Refused};
use crate::service::hops::{may_request_loop, note_loop};
use crate::service::{Refusal, Settings};
use evener_core::clients::RefusedFor;
use evener_core::limits::Lease;
use evener_core::reason::{Cause, Reason};
use evener_core::spec::{Balance, ForwardedMode, HttpSpec, StickyBy};
use evener_core::wire::chunked::Decoder;
use evener_core::wire::forwarded::Client as Reported;
use evener_core::wire::http::{Framing, Request, Target};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A service without a pool cannot open a tunnel.
const NO_TUNNEL: Cause = Cause::with(Reason::RequestInvalid, "CONNECT for a service that responds itself");
/// A redirection needs the host of the request.
const NO_HOST: Cause = Cause::with(Reason::RequestInvalid, "a redirection needs a host");

/// Verdict on a request.
enum Verdict {
    /// A server of this backend gets the request. The address is the client's, for the choice of the server.
    Serve(usize, IpAddr),
    /// The request gets a local response.
    Respond(LocalResponse, Why),
    /// The connection is closed.
    Close,
    /// The connection stays open without a response for a time.
    Tarpit(Lease, Duration),
    /// The request loops between instances.
    Loop,
}

/// Reason for a local response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The service responds itself: redirects, health, the configured response.
    Local,
    /// The client is refused.
    Refused,
    /// No route matches.
    NoRoute,
}

/// Decision on a request.
pub(super) enum Judged {
    /// The request became this exchange.
    Exchange(ExchangeKey),
    /// The request gets a local response, after which the client's connection stays open or is closed.
    Respond(LocalResponse, Next),
    /// The connection is closed.
    Close,
    /// The connection stays open without a response for a time.
    Tarpit,
}

/// Continuation of a client's connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    End,
}

/// Connection or stream on which a request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// On a connection of HTTP/1. A `refusal` is the reason for which all requests of the connection are
    /// refused.
    Http1 { refusal: Option<Reason> },
    /// On a stream of HTTP/2; `is_alone` if the connection has no other stream.
    Stream { key: StreamKey, has_body: bool, is_alone: bool },
}

/// Parses a header section and decides on the request; `Err` is the cause for an invalid request.
pub(super) fn judge_header(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    header: &[u8],
    arrival: Arrival,
) -> Result<Judged, Cause> {
    client.refresh_settings();
    let Some(spec) = client.settings.http.clone() else { return Ok(Judged::Close) };
    client.begin_log_entry(header, cx.now);
    if let (Some(entry), Arrival::Stream { .. }) = (client.log_entry(), arrival) {
        entry.set_http2();
    }
    let mut request = std::mem::take(&mut shared.headers.request);
    let judged = match request.parse(header, &spec.limits) {
        // A tunnel through one stream is not offered (RFC 9113, section 8.5).
        Ok(()) if matches!(arrival, Arrival::Stream { .. }) && request.method(header) == b"CONNECT" => {
            Err(Cause::with(Reason::MethodUnsupported, "CONNECT over HTTP/2"))
        }
        Ok(()) => {
            if let Some(entry) = client.log_entry() {
                entry.add_fields(&request, header);
            }
            let target = request.target(header);
            Ok(serve(
                cx,
                client,
                shared,
                &ParsedRequest { request: &request, header, target, spec: &spec, arrival },
            ))
        }
        Err(error) => Err(error.cause(&spec.limits)),
    };
    shared.headers.request = request;
    judged
}

/// Refuses a request of HTTP/2 that is malformed or beyond the limits.
pub(super) fn refuse_stream(cx: &Context, client: &mut Client, header: &[u8], cause: Cause) -> Judged {
    client.begin_log_entry(header, cx.now);
    if let Some(entry) = client.log_entry() {
        entry.set_http2();
    }
    count_bad(cx, client, cause);
    // A response to HEAD has no body, even if the rest of the header section is invalid.
    let is_head = header.starts_with(b"HEAD ");
    Judged::Respond(LocalResponse::page(cause).for_method(is_head), Next::Request)
}

/// Counts an invalid request.
pub(super) fn count_bad(cx: &Context, client: &Client, cause: Cause) {
    let counters = client.service.live.counters.of(cx.id);
    counters.requests_bad.one();
    if cause.reason() == Reason::HeaderTooLarge {
        counters.headers_too_large.one();
    }
}

fn serve(cx: &mut Context, client: &mut Client, shared: &mut Shared, parsed: &ParsedRequest<'_>) -> Judged {
    let ParsedRequest { request, header, spec, .. } = *parsed;
    client.begin_request(cx.now);
    let service = Arc::clone(&client.service);
    let counters = service.live.counters.of(cx.id);
    counters.requests.one();
    client.note_request(cx.now);
    client.count(cx, header.len() as u64, 0);
    let verdict = match parsed.arrival {
        Arrival::Http1 { refusal: Some(reason) } => {
            Verdict::Respond(LocalResponse::page(reason), Why::Refused)
        }
        _ => judge(cx, client, parsed),
    };
    let is_head = request.method(header) == b"HEAD";
    match verdict {
        Verdict::Serve(backend, address) => {
            // While other streams are open, their deadline for the next progress check stays.
            if !matches!(parsed.arrival, Arrival::Stream { is_alone: false, .. }) {
                shared.session_timers.set(client.key, cx.now + spec.progress_interval());
            }
            let mut exchange = exchange_of(cx, client, parsed, backend, address);
            exchange.set_log_entry(client.take_log_entry());
            Judged::Exchange(shared.begin(exchange))
        }
        Verdict::Respond(response, why) => {
            if why == Why::Local {
                counters.requests_local.one();
            }
            // An unread body would be parsed as the next request.
            let stays = why != Why::Refused && request.keeps_alive() && request.framing().is_none();
            Judged::Respond(response.for_method(is_head), if stays { Next::Request } else { Next::End })
        }
        Verdict::Loop => {
            note_loop(cx, &service);
            Judged::Respond(LocalResponse::page(Reason::Loop).for_method(is_head), Next::End)
        }
        Verdict::Close => {
            client.log_refused(cx);
            Judged::Close
        }
        Verdict::Tarpit(slot, time) => {
            client.log_refused(cx);
            client.enter_tarpit(slot);
            shared.session_timers.set(client.key, cx.now + time);
            Judged::Tarpit
        }
    }
}

/// Decides on a request.
fn judge(cx: &Context, client: &mut Client, parsed: &ParsedRequest<'_>) -> Verdict {
    let ParsedRequest { request, header, spec, .. } = *parsed;
    let path = &*message::target_bytes(&parsed.target);
    let settings = Arc::clone(&client.settings);
    if spec
        .health
        .as_ref()
        .is_some_and(|health| path.split(|&byte| byte == b'?').next() == Some(health.as_bytes()))
    {
        return Verdict::Respond(LocalResponse::health(is_usable(&settings)), Why::Local);
    }
    let fields = request.fields().iter().map(|field| (field.kind, field.value.of(header)));
    let peer = client.origin.client().ip();
    let declared = ForwardedFields::of(fields);
    if declared.is_loop() {
        return Verdict::Loop;
    }
    let declared = declared.client(peer, &spec.forwarded);
    let address = declared.address();
    if let Some(entry) = client.log_entry() {
        entry.set_client(address);
    }
    let needs_admission = declared != Reported::Known(peer) || client.take_needs_admission();
    if needs_admission && client.admitted.backend.is_none() && !settings.permits_reported(declared) {
        client.service.live.counters.of(cx.id).denied.one();
        client.note_refusal(address, RefusedFor::AccessList);
        return refused(cx, client, settings.denied, address, Reason::ClientDenied);
    }
    if settings.throttle.as_ref().is_some_and(|throttle| !throttle.admits_request(address, cx.now)) {
        client.service.live.counters.of(cx.id).limited.one();
        client.note_refusal(address, RefusedFor::Limit);
        return refused(cx, client, settings.exceeded, address, Reason::ClientLimited);
    }
    if let Some(backend) = client.admitted.backend {
        // A refused client gets the pool for refused clients; routes do not apply.
        return Verdict::Serve(backend, address);
    }
    // The local response of the service is for requests that no route matches.
    if let Some(backend) = settings.routes.find(request.authority(header), path) {
        return Verdict::Serve(*backend, address);
    }
    let responds_locally = spec.redirect.is_some() || spec.respond.is_some();
    if responds_locally && matches!(parsed.target, Target::Authority(_)) {
        // CONNECT requests a tunnel, not a page.
        return Verdict::Respond(LocalResponse::page(NO_TUNNEL), Why::Refused);
    }
    if let Some(redirect) = spec.redirect {
        let response = LocalResponse::redirect(redirect, request.authority(header), path);
        return Verdict::Respond(response.unwrap_or_else(|| LocalResponse::page(NO_HOST)), Why::Local);
    }
    if let Some(respond) = &spec.respond {
        return Verdict::Respond(LocalResponse::respond(respond), Why::Local);
    }
    match settings.default_backend {
        Some(backend) => Verdict::Serve(backend, address),
        None => Verdict::Respond(LocalResponse::page(Reason::NoRoute), Why::NoRoute),
    }
}

/// Refuses a client in the configured way.
fn refused(cx: &Context, client: &mut Client, refusal: Refusal, address: IpAddr, reason: Reason) -> Verdict {
    if let Some(entry) = client.log_entry() {
        entry.set_cause(reason);
    }
    match admission::refuse(&client.service, refusal, cx.id, reason) {
        Admission::Enter(admitted) => Verdict::Serve(admitted.backend.unwrap_or_default(), address),
        Admission::Refused(refused, reason) => {
            let parties = || Parties::client(address);
            match refused {
                Refused::Reject => {
                    return Verdict::Respond(LocalResponse::page(reason).about(parties()), Why::Refused);
                }
                Refused::Drop | Refused::Tarpit(..) => client.note_unserved(cx, reason.into(), None, parties),
            }
            match refused {
                Refused::Tarpit(permits, time) => Verdict::Tarpit(permits, time),
                Refused::Drop | Refused::Reject => Verdict::Close,
            }
        }
    }
}

/// Returns whether any pool of the service has a usable server. A service without pools is usable.
fn is_usable(settings: &Settings) -> bool {
    let mut backends = settings.default_backend.iter().chain(settings.routes.targets()).peekable();
    backends.peek().is_none() || backends.any(|index| settings.backends[*index].pool.load().is_usable())
}

/// Parsed request.
struct ParsedRequest<'a> {
    request: &'a Request,
    header: &'a [u8],
    target: Target<'a>,
    spec: &'a HttpSpec,
    arrival: Arrival,
}

fn exchange_of(
    cx: &Context,
    client: &Client,
    parsed: &ParsedRequest<'_>,
    backend: usize,
    address: IpAddr,
) -> Exchange {
    let ParsedRequest { request, header, spec, .. } = *parsed;
    let mut exchange = Exchange::new(client, backend, cx);
    let snapshot = exchange.backend().pool.load();
    let cookie = snapshot.cookie.as_ref().and_then(|name| cookie_of(request, header, name));
    let token = cookie.and_then(|value| u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok());
    drop(snapshot);
    let stay = client.stay.as_ref().filter(|_| spec.balance == Balance::Connection);
    exchange.choose_by(address, token, stay);
    let may_loop = spec.forwarded.mode == ForwardedMode::Off
        && may_request_loop(&client.service, client.origin.client().ip(), exchange.backend());
    let loop_risk = if may_loop { LoopRisk::Possible } else { LoopRisk::None };
    let stream = match parsed.arrival {
        Arrival::Http1 { .. } => None,
        Arrival::Stream { key, .. } => Some(key),
    };
    let (upload, outgoing) = (upload_of(request, parsed.arrival), outgoing(client, parsed, loop_risk));
    exchange.set_request(request, header, outgoing, upload, stream);
    exchange
}

/// Returns the value of the client's cookie for the pool. If the name of the cookie is the default name with a
/// suffix for the pool, the cookie without the suffix is accepted too: the client may have received that cookie
/// when the service had no other pool.
fn cookie_of<'a>(request: &Request, header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    request.cookie(header, name.as_bytes()).or_else(|| {
        let is_of_pool = name.starts_with(StickyBy::COOKIE_OF_POOL);
        request.cookie(header, StickyBy::COOKIE.as_bytes()).filter(|_| is_of_pool)
    })
}

/// Returns the header section for the server.
fn outgoing(client: &Client, parsed: &ParsedRequest<'_>, loop_risk: LoopRisk) -> Vec<u8> {
    let ParsedRequest { request, header, spec, .. } = *parsed;
    let parts = message::parts_of(request, header, &parsed.target);
    let sender = client.sender(spec.subject_field.as_deref(), loop_risk);
    let declared =
        ForwardedFields::of(request.fields().iter().map(|field| (field.kind, field.value.of(header))));
    let passed_on = request.passed_on(header).map(|field| (field.name.of(header), field.value.of(header)));
    let mut outgoing = Vec::with_capacity(header.len() + 256);
    message::write_request(&parts, passed_on, &declared, &sender, &spec.forwarded, &mut outgoing);
    outgoing
}

/// Returns the framing of the request's body. On a stream of HTTP/2, the frames mark the end of the body.
fn upload_of(request: &Request, arrival: Arrival) -> Body {
    match (arrival, request.framing()) {
        (Arrival::Stream { has_body: false, .. }, _)
        | (Arrival::Http1 { .. }, None | Some(Framing::Length(0))) => Body::Done,
        (Arrival::Stream { .. }, _) => Body::Close,
        (Arrival::Http1 { .. }, Some(Framing::Length(length))) => Body::Length(length),
        (Arrival::Http1 { .. }, Some(Framing::Chunked | Framing::Close)) => Body::Chunked(Decoder::default()),
    }
}
