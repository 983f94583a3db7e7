//! HTTP/1 with clients: requests are read one after the other, each becomes an exchange with a server, and its answer
//! goes back in the client's own framing. What a client sends is never passed on unread: heads are parsed and written
//! anew, bodies lose their coding and get another.

mod answer;
mod begin;
mod body;

use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey};
use crate::http::Http;
use crate::http::exchange::{self, Reach};
use crate::http::http2;
use crate::http::message::{Afterwards, OwnAnswer};
use crate::http::session::{self, Mode, ROUNDS_MAX, Session};
use crate::io::relay::End;
use crate::io::transport::Received;
use evener_core::snapshot::NoServer;
use evener_core::spec::HttpSpec;
use evener_core::wire::http::{Request, Response, Scan};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use answer::{Answer, may_repeat, read_answer, repeat};
pub(crate) use begin::{Judged, Outgoing, judge_stream, refuse_stream};
pub(crate) use body::{Body, HttpPart, await_answer, flush_upload, is_slow, note_request, put, take};

/// A client that closed, or ended its side, is taken for gone when nothing moves for so long.
pub(crate) const CLOSED: Duration = Duration::from_millis(200);

/// What the heads of a worker's messages are read and written with.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    pub(crate) request: Request,
    pub(crate) response: Response,
    /// The head of the request that is looked at.
    pub(crate) head: Vec<u8>,
    /// What is about to be sent to a client; empty between steps, for the next one is another client's.
    pub(crate) out: Vec<u8>,
}

/// The client's side of HTTP/1.
#[derive(Debug)]
pub(crate) struct Http1 {
    scan: Scan,
    stage: Stage,
    /// A connection to a server that is for this client only.
    private: Option<ServerLinkKey>,
    /// The answer that every request gets.
    refusal: Option<u16>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The head of a request.
    Head,
    /// This exchange.
    Exchange(ExchangeKey),
    /// What was said has to be taken, then another request or the end.
    Flush(Then),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    NextRequest,
    End,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another one may follow.
    Step,
    /// Something has to happen first; or the session is over.
    Wait,
}

impl Http1 {
    pub(crate) fn new() -> Self {
        Self { scan: Scan::default(), stage: Stage::Head, private: None, refusal: None }
    }

    /// Every request is answered so, and the connection closed.
    pub(crate) fn refuse(&mut self, status: u16) {
        self.refusal = Some(status);
    }

    pub(crate) fn exchange(&self) -> Option<ExchangeKey> {
        match self.stage {
            Stage::Exchange(number) => Some(number),
            Stage::Head | Stage::Flush(_) => None,
        }
    }

    /// Whether no request has begun.
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == Stage::Head && !self.scan.has_begun()
    }

    pub(crate) fn private(&self) -> Option<ServerLinkKey> {
        self.private
    }
}

/// The parts of a session that speaks HTTP/1.
fn http1(session: &mut Session) -> Option<&mut Http1> {
    match &mut session.mode {
        Mode::Http1(http) => Some(http),
        _ => None,
    }
}

/// Does what can be done without waiting.
pub(crate) fn drive(all: &mut Http, cx: &mut Context, index: SessionKey) {
    for _ in 0..ROUNDS_MAX {
        if step(all, cx, index) == Next::Wait {
            return;
        }
    }
    session::queue(all, cx, index);
}

fn step(all: &mut Http, cx: &mut Context, index: SessionKey) -> Next {
    debug_assert!(all.heads.out.is_empty(), "what is left would go to a stranger");
    all.heads.out.clear();
    let Some(session) = all.sessions.get_mut(index) else { return Next::Wait };
    session.link.flush(&mut all.buffers);
    let Some(stage) = http1(session).map(|http| http.stage) else { return Next::Wait };
    if let Stage::Exchange(number) = stage {
        watch_client(all, cx, index, number);
    }
    let session = &mut all.sessions[index];
    if session.link.broken || matches!(session.link.end, Some(End::Error(_))) {
        if matches!(stage, Stage::Exchange(_)) {
            session.service.live.counters.of(cx.id).requests_aborted.one();
        }
        session::close(all, cx, index);
        return Next::Wait;
    }
    match stage {
        Stage::Head => read_head(all, cx, index),
        Stage::Exchange(number) => match exchange::reach(all, cx, number) {
            Reach::Open(_) => body::pump(all, cx, index, number),
            Reach::Connecting(_) | Reach::Queued | Reach::Wanted => Next::Wait,
            Reach::Failed(reason) => {
                let status = if reason == NoServer::Failed { 502 } else { 503 };
                fail_exchange(all, cx, index, number, status)
            }
        },
        Stage::Flush(then) => {
            if session.link.pending() > 0 {
                return Next::Wait;
            }
            flushed(all, cx, index, then)
        }
    }
}

/// Looks whether the client closed while its request is under way. One that ended its side only may still wait for the
/// response: it is given [`CLOSED`].
fn watch_client(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    let Http { sessions, exchanges, buffers, .. } = &mut *all;
    let (session, Some(exchange)) = (&mut *sessions[index], exchanges.get(number)) else { return };
    let aborts = exchange.aborts_on_close();
    if aborts && session.link.tls().is_some() && session.link.input.is_empty() {
        // What it says is sealed: the end of it is found by reading. Another request may come instead.
        session.link.receive(buffers);
    }
    let closed = session.link.hung_up || session.link.end.is_some();
    if aborts && closed && !std::mem::replace(&mut session.left_early, true) {
        all.session_timers.set(index, cx.now + CLOSED);
    }
}

fn flushed(all: &mut Http, cx: &mut Context, index: SessionKey, then: Then) -> Next {
    let session = &mut all.sessions[index];
    if then == Then::End || (cx.draining && session.link.input.is_empty()) {
        session::finish(all, cx, index);
        return Next::Wait;
    }
    let input = session.link.input.is_empty();
    let Some(spec) = session.settings.http.clone() else { return Next::Wait };
    session.served = true;
    let Some(http) = http1(session) else { return Next::Wait };
    (http.stage, http.scan) = (Stage::Head, Scan::default());
    // Another request may have begun already.
    let wait = if input { spec.keepalive_timeout } else { spec.head_timeout };
    all.session_timers.set(index, cx.now + wait);
    Next::Step
}

fn read_head(all: &mut Http, cx: &mut Context, index: SessionKey) -> Next {
    let session = &mut all.sessions[index];
    let Some(spec) = session.settings.http.clone() else { return Next::Wait };
    let Session { mode: Mode::Http1(http), link, .. } = &mut **session else { return Next::Wait };
    let had_begun = http.scan.has_begun();
    match http.scan.find(link.input.unread(), &spec.limits) {
        Ok(Some(found)) => begin::request(all, cx, index, found),
        Ok(None) => {
            if http.scan.has_begun() && !had_begun {
                all.session_timers.set(index, cx.now + spec.head_timeout);
            }
            if link.receive(&mut all.buffers) == Received::Some {
                return Next::Step;
            }
            if link.end.is_some() {
                // Half a request is none, and nobody waits for an answer to it.
                session::finish(all, cx, index);
            }
            Next::Wait
        }
        Err(error) => {
            bad_request(all, cx, index, evener_core::wire::http::RequestError::from(error).status())
        }
    }
}

/// A request that is not understood: it is answered, and what follows is not looked at.
fn bad_request(all: &mut Http, cx: &mut Context, index: SessionKey, status: u16) -> Next {
    let session = &mut all.sessions[index];
    count_bad(session, cx.id, status);
    answer_own(all, cx, index, &OwnAnswer::page(status), Verb::Other, Then::End)
}

/// Counts a request that is not understood.
fn count_bad(session: &Session, worker: usize, status: u16) {
    let counters = session.service.live.counters.of(worker);
    counters.requests_bad.one();
    if status == 431 {
        counters.headers_too_large.one();
    }
}

/// Whether a body may follow the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Head,
    Other,
}

/// Answers for ourselves.
fn answer_own(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    answer: &OwnAnswer,
    verb: Verb,
    then: Then,
) -> Next {
    let session = &mut all.sessions[index];
    let afterwards = if then == Then::End { Afterwards::Closes } else { Afterwards::Stays };
    answer.write(verb == Verb::Head, afterwards, &mut all.heads.out);
    session.link.send(&all.heads.out, &mut all.buffers);
    session.count(0, all.heads.out.len() as u64, cx.id, cx.now);
    all.heads.out.clear();
    let patience = session.settings.http.as_ref().map_or(Duration::ZERO, |spec| spec.look_after());
    session.active_at = cx.now;
    if let Some(http) = http1(session) {
        http.stage = Stage::Flush(then);
    }
    all.session_timers.set(index, cx.now + patience);
    Next::Step
}

/// No server answered: the client is told, if nothing was said yet.
fn fail_exchange(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    status: u16,
) -> Next {
    let session = &mut all.sessions[index];
    session.service.live.counters.of(cx.id).requests_failed.one();
    let http = all.exchanges[number].http.as_deref();
    let answered = http.is_some_and(|http| http.answered);
    let verb = if http.is_some_and(|http| http.is_head) { Verb::Head } else { Verb::Other };
    // What is left of the body would be taken for another request.
    let stays = http.is_some_and(|http| http.stays && http.upload == Body::Done) && !cx.draining;
    exchange::abandon(all, cx, number);
    if answered {
        // Half an answer cannot be taken back; its end is what tells.
        set_stage(all, index, Stage::Head);
        crate::service::admission::reset_at_close(&all.sessions[index].link.socket);
        session::close(all, cx, index);
        return Next::Wait;
    }
    let then = if stays { Then::NextRequest } else { Then::End };
    answer_own(all, cx, index, &OwnAnswer::page(status), verb, then)
}

fn set_stage(all: &mut Http, index: SessionKey, stage: Stage) {
    if let Some(http) = all.sessions.get_mut(index).and_then(|session| http1(session)) {
        http.stage = stage;
    }
}

/// The deadline of the client's side came.
pub(crate) fn on_deadline(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    let Some(spec) = session.settings.http.clone() else { return };
    let Some(http) = http1(session) else { return };
    let (stage, begun) = (http.stage, http.scan.has_begun());
    let service = Arc::clone(&session.service);
    let counters = service.live.counters.of(cx.id);
    match stage {
        Stage::Head if begun => {
            counters.greeting_timeouts.one();
            answer_own(all, cx, index, &OwnAnswer::page(408), Verb::Other, Then::End);
            drive(all, cx, index);
        }
        Stage::Head => {
            counters.idle_timeouts.one();
            session::finish(all, cx, index);
        }
        Stage::Flush(_) => on_look(all, cx, index, &spec, None),
        Stage::Exchange(number) => on_look(all, cx, index, &spec, Some(number)),
    }
}

/// It is time to look whether bodies move, and fast enough.
fn on_look(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    spec: &HttpSpec,
    exchange: Option<ExchangeKey>,
) {
    let service = Arc::clone(&all.sessions[index].service);
    let counters = service.live.counters.of(cx.id);
    let takes_slowly = all.sessions[index].is_slow(cx.now);
    let sends_slowly = exchange.is_some_and(|number| is_slow(all, cx, number));
    let waits = exchange.is_some_and(|number| all.exchanges[number].waits_for_response());
    let deadline = all.sessions[index].active_at + spec.stall_timeout;
    let leaves = all.sessions[index].left_early
        && exchange.is_some_and(|number| all.exchanges[number].aborts_on_close());
    if leaves && all.sessions[index].is_quiet(cx.now) {
        counters.requests_aborted.one();
        return session::close(all, cx, index);
    }
    let look_after = if leaves { CLOSED } else { spec.look_after() };
    let next = match (takes_slowly || sends_slowly, deadline > cx.now) {
        (true, _) => None,
        (false, true) => Some(deadline.min(cx.now + look_after)),
        // The server's time to answer has a deadline of its own.
        (false, false) => waits.then(|| cx.now + look_after),
    };
    if let Some(next) = next {
        return all.session_timers.set(index, next);
    }
    if takes_slowly {
        counters.slow_responses.one();
    } else if !sends_slowly {
        counters.idle_timeouts.one();
    }
    let answered =
        |number: ExchangeKey| all.exchanges[number].http.as_ref().is_some_and(|http| http.answered);
    match exchange.filter(|number| !takes_slowly && !answered(*number)) {
        Some(number) => {
            let fault = is_servers_fault(all, cx, number);
            if sends_slowly && !fault {
                counters.slow_requests.one();
            }
            fail_exchange(all, cx, index, number, if fault { 504 } else { 408 });
            drive(all, cx, index);
        }
        None => {
            if takes_slowly || exchange.is_some() {
                // Half an answer must not look like a whole one, and what is left is not to be held by the kernel either.
                crate::service::admission::reset_at_close(&all.sessions[index].link.socket);
            }
            session::close(all, cx, index);
        }
    }
}

/// Whether it is the server that does not go on with a request: it is not reached, or does not take what it gets.
pub(crate) fn is_servers_fault(all: &Http, cx: &Context, number: ExchangeKey) -> bool {
    let exchange = &all.exchanges[number];
    let fault = match exchange.reach {
        Reach::Open(slot) => all.servers[slot].link.pending() > 0,
        _ => true,
    };
    if let Some(choice) = exchange.choice.as_ref().filter(|_| fault) {
        choice.server.live.counters.of(cx.id).answer_timeouts.one();
    }
    fault
}

/// A server did not begin its answer in time.
pub(crate) fn on_answer_deadline(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let exchange = &all.exchanges[number];
    let index = exchange.session;
    if let Some(choice) = &exchange.choice {
        choice.server.live.counters.of(cx.id).answer_timeouts.one();
    }
    if matches!(all.sessions[index].mode, Mode::Http2(_)) {
        return http2::fail(all, cx, index, number, 504);
    }
    fail_exchange(all, cx, index, number, 504);
    drive(all, cx, index);
}

/// The program drains: a client without a request leaves.
pub(crate) fn on_drain(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    let idle = session.link.input.is_empty();
    if idle && http1(session).is_some_and(|http| http.stage == Stage::Head) {
        session::finish(all, cx, index);
    }
}
