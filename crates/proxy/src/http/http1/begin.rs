//! A request begins: it is understood, admitted, routed, and becomes an exchange, or is answered at once.

use super::body::{Body, HttpPart, REPLAY_BYTES_MAX};
use super::{Http1, Next, Stage, Then, Verb, answer_own, bad_request, count_bad, set_stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey, StreamKey};
use crate::http::Http;
use crate::http::exchange::{Exchange, Reach};
use crate::http::message::{self, OwnAnswer, Sender, Told};
use crate::http::session::{self, Mode, Session};
use crate::service::admission::{self, Admission, Refused};
use crate::service::hops::{HOPS_MAX, may_request_go_round, note_loop};
use crate::service::{Refusal, Settings};
use evener_core::Time;
use evener_core::attempt::Attempt;
use evener_core::limits::Lease;
use evener_core::pace::Pace;
use evener_core::spec::{Balance, ForwardedMode, HttpSpec, StickyBy};
use evener_core::wire::chunked;
use evener_core::wire::forwarded::Client;
use evener_core::wire::http::{Found, Framing, HttpVersion, Request, Target};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What is to be done with a request.
enum Verdict {
    /// A server of this backend gets it; the client that it comes from.
    Serve(usize, IpAddr),
    /// It is answered at once.
    Answer(OwnAnswer, Why),
    /// The connection is closed.
    Close,
    /// The client is kept waiting.
    Tarpit(Lease, Duration),
    /// It goes round between instances.
    Loop,
}

/// Why an answer is our own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is our part: redirects, health, what is said to everybody.
    Ours,
    /// The client may not.
    Refused,
    /// Nobody is meant by it.
    Nobody,
}

/// What was decided of a request.
pub(crate) enum Judged {
    /// It is this exchange now.
    Exchange(ExchangeKey),
    /// It is answered at once.
    Answer(Own),
    /// The connection is closed.
    Close,
    /// The client is kept waiting.
    Waits,
}

/// An answer of our own, with what matters of the request.
pub(crate) struct Own {
    pub(crate) answer: OwnAnswer,
    pub(crate) is_head: bool,
    /// Whether the client's connection may go on.
    stays: bool,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// On a connection of HTTP/1.
    Http1,
    /// On this stream of HTTP/2, with a body behind it.
    Stream(StreamKey),
    /// The same without a body.
    Complete(StreamKey),
}

/// The head of a request of HTTP/1 is whole.
pub(super) fn request(all: &mut Http, cx: &mut Context, index: SessionKey, found: Found) -> Next {
    let session = &mut *all.sessions[index];
    let bytes = &session.link.input.unread()[found.start..found.end];
    // The head is looked at while the session changes.
    let mut head = std::mem::take(&mut all.heads.head);
    head.clear();
    head.extend_from_slice(bytes);
    session.link.input.consume(found.end);
    session.link.settle(&mut all.buffers);
    let judged = judge_head(all, cx, index, &head, Outgoing::Http1);
    all.heads.head = head;
    match judged {
        Ok(Judged::Exchange(number)) => {
            set_stage(all, index, Stage::Exchange(number));
            Next::Step
        }
        Ok(Judged::Answer(own)) => {
            let verb = if own.is_head { Verb::Head } else { Verb::Other };
            let then = if own.stays { Then::NextRequest } else { Then::End };
            answer_own(all, cx, index, &own.answer, verb, then)
        }
        Ok(Judged::Close) => {
            session::finish(all, cx, index);
            Next::Wait
        }
        Ok(Judged::Waits) => Next::Wait,
        Err(status) => bad_request(all, cx, index, status),
    }
}

/// The head of a request of HTTP/2, written as HTTP/1.1 would have it.
pub(crate) fn judge_stream(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    head: &[u8],
    outgoing: Outgoing,
) -> Judged {
    judge_head(all, cx, index, head, outgoing)
        .unwrap_or_else(|status| refuse_stream(all, cx, index, head, status))
}

/// A request of HTTP/2 that is malformed or beyond the limits: it is answered with this status.
pub(crate) fn refuse_stream(all: &Http, cx: &Context, index: SessionKey, head: &[u8], status: u16) -> Judged {
    count_bad(&all.sessions[index], cx.id, status);
    // An answer to HEAD has no body, even if the rest of the head is not understood.
    let is_head = head.starts_with(b"HEAD ");
    Judged::Answer(Own { answer: OwnAnswer::page(status), is_head, stays: true })
}

/// Reads a head and decides; `Err` has the status for one that is not understood.
fn judge_head(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    head: &[u8],
    outgoing: Outgoing,
) -> Result<Judged, u16> {
    refresh(all, index);
    let Some(spec) = all.sessions[index].settings.http.clone() else { return Ok(Judged::Close) };
    let mut request = std::mem::take(&mut all.heads.request);
    let judged = match request.parse(head, &spec.limits) {
        // A tunnel through one stream is not offered (RFC 9113, section 8.5).
        Ok(()) if outgoing != Outgoing::Http1 && request.method(head) == b"CONNECT" => Err(501),
        Ok(()) => Ok(serve(all, cx, index, &request, head, &spec, outgoing)),
        Err(error) => Err(error.status()),
    };
    all.heads.request = request;
    judged
}

/// A reload, or another word of the operator, since the last request counts for this one: the client has to be admitted
/// again.
fn refresh(all: &mut Http, index: SessionKey) {
    let session = &mut all.sessions[index];
    let current = session.service.settings.load();
    if Arc::ptr_eq(&current, &session.settings) || current.http.is_none() {
        return;
    }
    // Where refused clients are sent may have another number now, or be gone.
    let known = session.guest.backend.map(|backend| Arc::clone(&session.settings.backends[backend].pool));
    session.guest.backend =
        known.and_then(|pool| current.backends.iter().position(|backend| Arc::ptr_eq(&backend.pool, &pool)));
    session.settings = Arc::clone(&current);
    session.asks_again = true;
}

fn serve(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    request: &Request,
    head: &[u8],
    spec: &HttpSpec,
    way: Outgoing,
) -> Judged {
    let now = cx.now;
    let session = &mut *all.sessions[index];
    session.active_at = now;
    session.left_early = false;
    let service = Arc::clone(&session.service);
    let counters = service.live.counters.of(cx.id);
    counters.requests.one();
    session.count(head.len() as u64, 0, cx.id, now);
    let refusal = match &session.mode {
        Mode::Http1(http) => http.refusal,
        _ => None,
    };
    let target = request.target(head);
    let verdict = match refusal {
        Some(status) => Verdict::Answer(OwnAnswer::page(status), Why::Refused),
        None => judge(session, request, head, &target, spec, (cx.id, now)),
    };
    match verdict {
        Verdict::Serve(backend, client) => {
            // Beside other streams the time to look at all of them stays.
            if !matches!(&session.mode, Mode::Http2(http) if http.is_shared()) {
                all.session_timers.set(index, now + spec.look_after());
            }
            let asked = Asked { request, head, target, spec, way };
            Judged::Exchange(begin_exchange(all, cx, index, &asked, backend, client))
        }
        Verdict::Answer(answer, why) => {
            if why == Why::Ours {
                counters.requests_own.one();
            }
            // A body that nobody reads would be taken for another request.
            let stays = why != Why::Refused && request.keeps_alive() && request.framing().is_none();
            Judged::Answer(Own { answer, is_head: request.method(head) == b"HEAD", stays })
        }
        Verdict::Loop => {
            note_loop(cx, &service);
            let is_head = request.method(head) == b"HEAD";
            Judged::Answer(Own { answer: OwnAnswer::page(508), is_head, stays: false })
        }
        Verdict::Close => Judged::Close,
        Verdict::Tarpit(place, time) => {
            let session = &mut all.sessions[index];
            (session.place, session.promise) = (place, None);
            session::enter(all, cx, index, Mode::Tarpit);
            all.session_timers.set(index, now + time);
            Judged::Waits
        }
    }
}

/// What is to be done with it.
fn judge(
    session: &mut Session,
    request: &Request,
    head: &[u8],
    target: &Target<'_>,
    spec: &HttpSpec,
    (worker, now): (usize, Time),
) -> Verdict {
    let path = &*message::target_bytes(target);
    let settings = Arc::clone(&session.settings);
    if spec
        .health
        .as_ref()
        .is_some_and(|health| path.split(|&byte| byte == b'?').next() == Some(health.as_bytes()))
    {
        return Verdict::Answer(OwnAnswer::health(is_usable(&settings)), Why::Ours);
    }
    let fields = request.fields().iter().map(|field| (field.kind, field.value.of(head)));
    let peer = session.origin.client.ip();
    let told = Told::of(fields);
    if told.hops >= HOPS_MAX {
        return Verdict::Loop;
    }
    let told = told.client(peer, &spec.forwarded);
    let client = told.address();
    let asks = told != Client::Known(peer) || std::mem::take(&mut session.asks_again);
    if asks && session.guest.backend.is_none() && !settings.permits_told(told) {
        session.service.live.counters.of(worker).denied.one();
        return refused(session, settings.denied, client, 403, worker);
    }
    if settings.throttle.as_ref().is_some_and(|throttle| !throttle.admits_request(client, now)) {
        session.service.live.counters.of(worker).limited.one();
        return refused(session, settings.exceeded, client, 429, worker);
    }
    if let Some(backend) = session.guest.backend {
        // Whom the access list refused gets what is meant for such, not what is meant for everybody.
        return Verdict::Serve(backend, client);
    }
    // A route wins over what the service answers itself: that is for everything that no route names.
    if let Some(backend) = settings.routes.find(request.authority(head), path) {
        return Verdict::Serve(*backend, client);
    }
    let answers_itself = spec.redirect.is_some() || spec.respond.is_some();
    if answers_itself && matches!(target, Target::Authority(_)) {
        // Who wants a tunnel does not want a page.
        return Verdict::Answer(OwnAnswer::page(400), Why::Refused);
    }
    if let Some(redirect) = spec.redirect {
        let answer = OwnAnswer::redirect(redirect, request.authority(head), path);
        return Verdict::Answer(answer.unwrap_or_else(|| OwnAnswer::page(400)), Why::Ours);
    }
    if let Some(respond) = &spec.respond {
        return Verdict::Answer(OwnAnswer::respond(respond), Why::Ours);
    }
    match settings.default_backend {
        Some(backend) => Verdict::Serve(backend, client),
        None => Verdict::Answer(OwnAnswer::page(404), Why::Nobody),
    }
}

/// The client may not; what that means is configured.
fn refused(session: &mut Session, refusal: Refusal, client: IpAddr, status: u16, worker: usize) -> Verdict {
    match admission::refuse(&session.service, refusal, worker, status) {
        Admission::Enter(guest) => Verdict::Serve(guest.backend.unwrap_or_default(), client),
        Admission::Refused(Refused::Drop) => Verdict::Close,
        Admission::Refused(Refused::Reject(status)) => Verdict::Answer(OwnAnswer::page(status), Why::Refused),
        Admission::Refused(Refused::Tarpit(place, time)) => Verdict::Tarpit(place, time),
    }
}

/// Whether any pool that clients are meant to get has somebody who serves. Where none is meant, all is well.
fn is_usable(settings: &Settings) -> bool {
    let mut meant = settings.default_backend.iter().chain(settings.routes.targets()).peekable();
    meant.peek().is_none() || meant.any(|index| settings.backends[*index].pool.load().is_usable())
}

/// A request that was understood.
struct Asked<'a> {
    request: &'a Request,
    head: &'a [u8],
    target: Target<'a>,
    spec: &'a HttpSpec,
    way: Outgoing,
}

fn begin_exchange(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    asked: &Asked<'_>,
    backend: usize,
    client: IpAddr,
) -> ExchangeKey {
    let Asked { request, head, spec, .. } = *asked;
    let session = &mut *all.sessions[index];
    let settings = Arc::clone(&session.settings);
    let snapshot = settings.backends[backend].pool.load();
    let cookie = snapshot.cookie.as_ref().and_then(|name| cookie_of(request, head, name));
    let token = cookie.and_then(|value| u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok());
    drop(snapshot);
    let is_private = spec.balance == Balance::Connection || settings.is_personal(backend);
    let may_go_round = spec.forwarded.mode == ForwardedMode::Off
        && may_request_go_round(&session.service, session.origin.client.ip(), &settings.backends[backend]);
    let part = part_of(asked, outgoing(session, asked, may_go_round), is_private);
    let stay = session.stay.as_ref().filter(|_| spec.balance == Balance::Connection);
    let stay = stay.and_then(|stay| stay.at(&settings.backends[backend]));
    let kept = match &mut session.mode {
        Mode::Http1(http) => http.private.take(),
        _ => None,
    };
    let exchange = Exchange {
        session: index,
        settings,
        backend,
        client,
        token,
        stay,
        kept,
        choice: None,
        reach: Reach::Wanted,
        queued: None,
        attempt: Attempt::new(),
        since: cx.now,
        http: Some(Box::new(part)),
    };
    all.exchanges.insert(Box::new(exchange))
}

/// The cookie by which the pool knows a client again. One with the name of its own that it has by default also takes the
/// cookie of the plain name: it may be from before another pool came to the service.
fn cookie_of<'a>(request: &Request, head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    request.cookie(head, name.as_bytes()).or_else(|| {
        let is_of_pool = name.starts_with(StickyBy::COOKIE_OF_POOL);
        request.cookie(head, StickyBy::COOKIE.as_bytes()).filter(|_| is_of_pool)
    })
}

/// The head as the server gets it.
fn outgoing(session: &Session, asked: &Asked<'_>, may_go_round: bool) -> Vec<u8> {
    let Asked { request, head, spec, .. } = *asked;
    let parts = message::parts_of(request, head, &asked.target);
    let subject = session.facts.as_ref().and_then(|facts| facts.subject.as_deref());
    let sender = Sender {
        client: session.origin.client.ip(),
        local: session.origin.destination.or(session.local),
        secure: session.facts.is_some() || session.origin.secure,
        may_go_round,
        subject: spec.subject_field.as_deref().map(|name| (name, subject)),
    };
    let told = Told::of(request.fields().iter().map(|field| (field.kind, field.value.of(head))));
    let passed_on = request.passed_on(head).map(|field| (field.name.of(head), field.value.of(head)));
    let mut outgoing = Vec::with_capacity(head.len() + 256);
    message::write_request(&parts, passed_on, &told, &sender, &spec.forwarded, &mut outgoing);
    outgoing
}

fn part_of(asked: &Asked<'_>, outgoing: Vec<u8>, is_private: bool) -> HttpPart {
    let Asked { request, head, spec, way, .. } = *asked;
    let method = request.method(head);
    HttpPart {
        pace: Pace::default(),
        uploaded: 0,
        replay: (outgoing.len() <= REPLAY_BYTES_MAX).then(Vec::new),
        outgoing,
        upload: match (way, request.framing()) {
            (Outgoing::Complete(_), _) | (Outgoing::Http1, None | Some(Framing::Length(0))) => Body::Done,
            // Its frames tell the end.
            (Outgoing::Stream(_), _) => Body::Close,
            (Outgoing::Http1, Some(Framing::Length(length))) => Body::Length(length),
            (Outgoing::Http1, Some(Framing::Chunked | Framing::Close)) => {
                Body::Chunked(chunked::Decoder::default())
            }
        },
        uploads_chunks: request.framing() == Some(Framing::Chunked),
        download: Body::head(),
        downloads_chunks: false,
        is_head: method == b"HEAD",
        is_connect: method == b"CONNECT",
        is_idempotent: request.is_idempotent(head),
        is_http10: request.version() == HttpVersion::Http10,
        upgrades: request.upgrade(head).is_some(),
        stays: request.keeps_alive(),
        server_stays: false,
        answered: false,
        interims: 0,
        retries: spec.retries,
        stream: match way {
            Outgoing::Http1 => None,
            Outgoing::Stream(key) | Outgoing::Complete(key) => Some(key),
        },
        is_private,
    }
}

impl Http1 {
    /// Keeps a connection to a server for the next request.
    pub(super) fn keep(&mut self, kept: Option<ServerLinkKey>) {
        self.private = kept;
    }
}
