//! A request is understood, admitted and routed: it becomes an exchange, or gets a local response. That is the same for all
//! versions of HTTP: a request of HTTP/2 comes here as HTTP/1.1 would have it.

use super::client::Client;
use super::exchange::{Body, Exchange, HttpPart, REPLAY_BYTES_MAX, Shared};
use super::message::{self, ForwardedFields, LocalResponse, Sender};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, StreamKey};
use crate::service::admission::{self, Admission, Refused};
use crate::service::hops::{HOPS_MAX, may_request_loop, note_loop};
use crate::service::{Refusal, Settings};
use evener_core::limits::Lease;
use evener_core::pace::Pace;
use evener_core::spec::{Balance, ForwardedMode, HttpSpec, StickyBy};
use evener_core::wire::chunked::Decoder;
use evener_core::wire::forwarded::Client as Known;
use evener_core::wire::http::{Framing, HttpVersion, Request, Target};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Verdict on a request.
enum Verdict {
    /// A server of this backend gets it; the client that it comes from.
    Serve(usize, IpAddr),
    /// A local response.
    Respond(LocalResponse, Why),
    /// The connection is closed.
    Close,
    /// The client is kept waiting.
    Tarpit(Lease, Duration),
    /// The request goes round between instances.
    Loop,
}

/// Reason for a local response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Part of the service: redirects, health, the configured response.
    Ours,
    /// The client may not.
    Refused,
    /// No route matches.
    NoRoute,
}

/// Decision on a request.
pub(super) enum Judged {
    /// The request became this exchange.
    Exchange(ExchangeKey),
    /// The request gets a local response.
    Respond(Local),
    /// The connection is closed.
    Close,
    /// The client is kept waiting.
    Waits,
}

/// A local response, with what matters of the request.
pub(super) struct Local {
    pub(super) response: LocalResponse,
    pub(super) is_head: bool,
    /// The client's connection may go on.
    pub(super) stays: bool,
}

/// Transport of a request from its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// On a connection of HTTP/1; the status that every request of it gets, if there is one.
    Http1 { refusal: Option<u16> },
    /// On this stream of HTTP/2.
    Stream { key: StreamKey, has_body: bool, is_alone: bool },
}

/// Reads a header section and decides; `Err` has the status for one that is not understood.
pub(super) fn judge_header(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    header: &[u8],
    arrival: Arrival,
) -> Result<Judged, u16> {
    refresh(client);
    let Some(spec) = client.settings.http.clone() else { return Ok(Judged::Close) };
    let mut request = std::mem::take(&mut shared.headers.request);
    let judged = match request.parse(header, &spec.limits) {
        // A tunnel through one stream is not offered (RFC 9113, section 8.5).
        Ok(()) if matches!(arrival, Arrival::Stream { .. }) && request.method(header) == b"CONNECT" => {
            Err(501)
        }
        Ok(()) => {
            let target = request.target(header);
            Ok(serve(
                cx,
                client,
                shared,
                &Inquiry { request: &request, header, target, spec: &spec, arrival },
            ))
        }
        Err(error) => Err(error.status()),
    };
    shared.headers.request = request;
    judged
}

/// Refuses a request of HTTP/2 that is malformed or beyond the limits, with this status.
pub(super) fn refuse_stream(cx: &Context, client: &Client, header: &[u8], status: u16) -> Judged {
    count_bad(cx, client, status);
    // A response to HEAD has no body, even if the rest of the head is not understood.
    let is_head = header.starts_with(b"HEAD ");
    Judged::Respond(Local { response: LocalResponse::page(status), is_head, stays: true })
}

/// Counts a request that is not understood.
pub(super) fn count_bad(cx: &Context, client: &Client, status: u16) {
    let counters = client.service.live.counters.of(cx.id);
    counters.requests_bad.one();
    if status == 431 {
        counters.headers_too_large.one();
    }
}

/// A reload, or another word of the operator, since the last request counts for this one: the client has to be admitted
/// again.
fn refresh(client: &mut Client) {
    let current = client.service.settings.load();
    if Arc::ptr_eq(&current, &client.settings) || current.http.is_none() {
        return;
    }
    // The pool for refused clients may have another number now, or be gone.
    let known = client.admitted.backend.map(|backend| client.settings.backends[backend].pool.load());
    client.admitted.backend = known
        .and_then(|known| current.backends.iter().position(|backend| backend.pool.load().pool == known.pool));
    client.settings = Arc::clone(&current);
    client.asks_again = true;
}

fn serve(cx: &mut Context, client: &mut Client, shared: &mut Shared, inquiry: &Inquiry<'_>) -> Judged {
    let Inquiry { request, header, spec, .. } = *inquiry;
    client.active_at = cx.now;
    client.left_early = false;
    let service = Arc::clone(&client.service);
    let counters = service.live.counters.of(cx.id);
    counters.requests.one();
    client.count(cx, header.len() as u64, 0);
    let verdict = match inquiry.arrival {
        Arrival::Http1 { refusal: Some(status) } => {
            Verdict::Respond(LocalResponse::page(status), Why::Refused)
        }
        _ => judge(cx, client, inquiry),
    };
    let is_head = request.method(header) == b"HEAD";
    match verdict {
        Verdict::Serve(backend, address) => {
            // Beside other streams the time to look at all of them stays.
            if !matches!(inquiry.arrival, Arrival::Stream { is_alone: false, .. }) {
                shared.session_timers.set(client.key, cx.now + spec.progress_interval());
            }
            Judged::Exchange(shared.begin(exchange_of(cx, client, inquiry, backend, address)))
        }
        Verdict::Respond(response, why) => {
            if why == Why::Ours {
                counters.requests_local.one();
            }
            // A body that is not read would be taken for another request.
            let stays = why != Why::Refused && request.keeps_alive() && request.framing().is_none();
            Judged::Respond(Local { response, is_head, stays })
        }
        Verdict::Loop => {
            note_loop(cx, &service);
            Judged::Respond(Local { response: LocalResponse::page(508), is_head, stays: false })
        }
        Verdict::Close => Judged::Close,
        Verdict::Tarpit(slot, time) => {
            (client.slot, client.promise) = (slot, None);
            shared.session_timers.set(client.key, cx.now + time);
            Judged::Waits
        }
    }
}

/// Decides on a request.
fn judge(cx: &Context, client: &mut Client, inquiry: &Inquiry<'_>) -> Verdict {
    let Inquiry { request, header, spec, .. } = *inquiry;
    let path = &*message::target_bytes(&inquiry.target);
    let settings = Arc::clone(&client.settings);
    if spec
        .health
        .as_ref()
        .is_some_and(|health| path.split(|&byte| byte == b'?').next() == Some(health.as_bytes()))
    {
        return Verdict::Respond(LocalResponse::health(is_usable(&settings)), Why::Ours);
    }
    let fields = request.fields().iter().map(|field| (field.kind, field.value.of(header)));
    let peer = client.origin.client().ip();
    let declared = ForwardedFields::of(fields);
    if declared.hops >= HOPS_MAX {
        return Verdict::Loop;
    }
    let declared = declared.client(peer, &spec.forwarded);
    let address = declared.address();
    let asks = declared != Known::Known(peer) || std::mem::take(&mut client.asks_again);
    if asks && client.admitted.backend.is_none() && !settings.permits_reported(declared) {
        client.service.live.counters.of(cx.id).denied.one();
        return refused(client, settings.denied, address, 403, cx.id);
    }
    if settings.throttle.as_ref().is_some_and(|throttle| !throttle.admits_request(address, cx.now)) {
        client.service.live.counters.of(cx.id).limited.one();
        return refused(client, settings.exceeded, address, 429, cx.id);
    }
    if let Some(backend) = client.admitted.backend {
        // A client that the access list refused gets the pool for such clients, whatever the routes say.
        return Verdict::Serve(backend, address);
    }
    // A route wins over the local response of the service, which is for everything that no route names.
    if let Some(backend) = settings.routes.find(request.authority(header), path) {
        return Verdict::Serve(*backend, address);
    }
    let responds_locally = spec.redirect.is_some() || spec.respond.is_some();
    if responds_locally && matches!(inquiry.target, Target::Authority(_)) {
        // A client that wants a tunnel does not want a page.
        return Verdict::Respond(LocalResponse::page(400), Why::Refused);
    }
    if let Some(redirect) = spec.redirect {
        let response = LocalResponse::redirect(redirect, request.authority(header), path);
        return Verdict::Respond(response.unwrap_or_else(|| LocalResponse::page(400)), Why::Ours);
    }
    if let Some(respond) = &spec.respond {
        return Verdict::Respond(LocalResponse::respond(respond), Why::Ours);
    }
    match settings.default_backend {
        Some(backend) => Verdict::Serve(backend, address),
        None => Verdict::Respond(LocalResponse::page(404), Why::NoRoute),
    }
}

/// Refuses a client, as it is configured.
fn refused(client: &Client, refusal: Refusal, address: IpAddr, status: u16, worker: usize) -> Verdict {
    match admission::refuse(&client.service, refusal, worker, status) {
        Admission::Enter(admitted) => Verdict::Serve(admitted.backend.unwrap_or_default(), address),
        Admission::Refused(Refused::Drop) => Verdict::Close,
        Admission::Refused(Refused::Reject(status)) => {
            Verdict::Respond(LocalResponse::page(status), Why::Refused)
        }
        Admission::Refused(Refused::Tarpit(permits, time)) => Verdict::Tarpit(permits, time),
    }
}

/// Returns whether any pool of routes and of the service has a usable server; also when there is no such pool.
fn is_usable(settings: &Settings) -> bool {
    let mut meant = settings.default_backend.iter().chain(settings.routes.targets()).peekable();
    meant.peek().is_none() || meant.any(|index| settings.backends[*index].pool.load().is_usable())
}

/// A request that was understood.
struct Inquiry<'a> {
    request: &'a Request,
    header: &'a [u8],
    target: Target<'a>,
    spec: &'a HttpSpec,
    arrival: Arrival,
}

fn exchange_of(
    cx: &Context,
    client: &Client,
    inquiry: &Inquiry<'_>,
    backend: usize,
    address: IpAddr,
) -> Exchange {
    let Inquiry { request, header, spec, .. } = *inquiry;
    let mut exchange = Exchange::new(client, backend, cx.now);
    exchange.client = address;
    let snapshot = exchange.backend().pool.load();
    let cookie = snapshot.cookie.as_ref().and_then(|name| cookie_of(request, header, name));
    let token = cookie.and_then(|value| u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok());
    drop(snapshot);
    exchange.token = token;
    let stays = spec.balance == Balance::Connection;
    let stay = client.stay.as_ref().filter(|_| stays);
    exchange.stay = stay.and_then(|stay| stay.at(exchange.backend()));
    let is_private = stays || exchange.settings.is_personal(backend);
    let may_loop = spec.forwarded.mode == ForwardedMode::Off
        && may_request_loop(&client.service, client.origin.client().ip(), exchange.backend());
    exchange.http = Some(Box::new(part_of(inquiry, outgoing(client, inquiry, may_loop), is_private)));
    exchange
}

/// The cookie by which the pool knows a client again. One with the name of its own that it has by default also takes the
/// cookie of the plain name: it may be from before another pool came to the service.
fn cookie_of<'a>(request: &Request, header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    request.cookie(header, name.as_bytes()).or_else(|| {
        let is_of_pool = name.starts_with(StickyBy::COOKIE_OF_POOL);
        request.cookie(header, StickyBy::COOKIE.as_bytes()).filter(|_| is_of_pool)
    })
}

/// The head as the server gets it.
fn outgoing(client: &Client, inquiry: &Inquiry<'_>, may_loop: bool) -> Vec<u8> {
    let Inquiry { request, header, spec, .. } = *inquiry;
    let parts = message::parts_of(request, header, &inquiry.target);
    let subject = client.facts.as_ref().and_then(|facts| facts.subject.as_deref());
    let sender = Sender {
        client: client.origin.client().ip(),
        local: client.origin.destination.or(client.local),
        secure: client.facts.is_some() || client.origin.secure,
        may_loop,
        subject: spec.subject_field.as_deref().map(|name| (name, subject)),
    };
    let declared =
        ForwardedFields::of(request.fields().iter().map(|field| (field.kind, field.value.of(header))));
    let passed_on = request.passed_on(header).map(|field| (field.name.of(header), field.value.of(header)));
    let mut outgoing = Vec::with_capacity(header.len() + 256);
    message::write_request(&parts, passed_on, &declared, &sender, &spec.forwarded, &mut outgoing);
    outgoing
}

fn part_of(inquiry: &Inquiry<'_>, outgoing: Vec<u8>, is_private: bool) -> HttpPart {
    let Inquiry { request, header, spec, arrival, .. } = *inquiry;
    let method = request.method(header);
    HttpPart {
        pace: Pace::default(),
        uploaded: 0,
        replay: (outgoing.len() <= REPLAY_BYTES_MAX).then(Vec::new),
        outgoing,
        upload: match (arrival, request.framing()) {
            (Arrival::Stream { has_body: false, .. }, _)
            | (Arrival::Http1 { .. }, None | Some(Framing::Length(0))) => Body::Done,
            // Its frames tell the end.
            (Arrival::Stream { .. }, _) => Body::Close,
            (Arrival::Http1 { .. }, Some(Framing::Length(length))) => Body::Length(length),
            (Arrival::Http1 { .. }, Some(Framing::Chunked | Framing::Close)) => {
                Body::Chunked(Decoder::default())
            }
        },
        uploads_chunks: request.framing() == Some(Framing::Chunked),
        download: Body::header(),
        downloads_chunks: false,
        is_head: method == b"HEAD",
        is_connect: method == b"CONNECT",
        is_idempotent: request.is_idempotent(header),
        is_http10: request.version() == HttpVersion::Http10,
        upgrades: request.upgrade(header).is_some(),
        stays: request.keeps_alive(),
        server_stays: false,
        responded: false,
        interims: 0,
        retries: spec.retries,
        stream: match arrival {
            Arrival::Http1 { .. } => None,
            Arrival::Stream { key, .. } => Some(key),
        },
        is_private,
    }
}
