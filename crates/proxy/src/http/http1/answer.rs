//! Answers: the head is read, and written anew for the client.

use super::body::{self, Body, HttpPart, Moved};
use super::{Next, fail_exchange};
use crate::context::Context;
use crate::context::descriptors;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey};
use crate::http::Http;
use crate::http::exchange::{self, Exchange};
use crate::http::message::{self, Afterwards};
use crate::io::transport::{PENDING_BYTES_MAX, Received};
use evener_core::snapshot::{Choice, Snapshot, Why};
use evener_core::wire::chunked::Decoder;
use evener_core::wire::http::{Found, Framing, Response};

/// A server may say so many things before its final answer.
const INTERIMS_MAX: u32 = 16;

/// Brings what the server answers to the client.
pub(super) fn download(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
) -> Next {
    loop {
        let Some(http) = all.exchanges[number].http.as_deref_mut() else { return Next::Wait };
        let Body::Head(scan) = &mut http.download else { break };
        let (server, session) = (&mut all.servers[slot], &all.sessions[index]);
        if session.link.pending() >= PENDING_BYTES_MAX {
            return Next::Wait;
        }
        let limits = session.settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
        match scan.find(server.link.input.unread(), &limits) {
            Ok(Some(found)) => match take_head(all, cx, index, number, slot, found) {
                Taken::Again => {}
                Taken::Body => break,
                Taken::Relay => return body::become_relay(all, cx, index, number),
                Taken::Bad => return bad_answer(all, cx, index, number),
            },
            Ok(None) => {
                let silent = !scan.has_begun();
                if server.link.receive(&mut all.buffers) == Received::Some {
                    continue;
                }
                if server.link.end.is_none() && !server.link.broken {
                    return Next::Wait;
                }
                return if silent && may_repeat(all, number, slot) {
                    repeat(all, cx, index, number);
                    Next::Step
                } else {
                    bad_answer(all, cx, index, number)
                };
            }
            Err(_) => return bad_answer(all, cx, index, number),
        }
    }
    match body::download_body(all, cx, index, number, slot) {
        Moved::Broken => bad_answer(all, cx, index, number),
        _ if is_complete(all, number) => body::complete(all, cx, index, number),
        Moved::On => Next::Step,
        Moved::Waits => Next::Wait,
    }
}

fn is_complete(all: &Http, number: ExchangeKey) -> bool {
    all.exchanges[number].http.as_ref().is_some_and(|http| http.download == Body::Done)
}

fn bad_answer(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) -> Next {
    if let Some(choice) = &all.exchanges[number].choice {
        choice.server.live.counters.of(cx.id).answers_bad.one();
    }
    fail_exchange(all, cx, index, number, 502)
}

/// Nothing came back. A request that does no harm twice is sent again, if all of it is still there.
pub(crate) fn may_repeat(all: &Http, number: ExchangeKey, slot: ServerLinkKey) -> bool {
    let http = all.exchanges[number].http.as_ref();
    http.is_some_and(|http| {
        // A kept connection that its server closed says nothing about the server.
        let may = http.retries > 0 || all.servers[slot].reused;
        may && http.is_idempotent && http.interims == 0 && http.replay.is_some()
    })
}

/// Sends it again.
pub(crate) fn repeat(all: &mut Http, cx: &mut Context, index: SessionKey, number: ExchangeKey) {
    let session = &all.sessions[index];
    session.service.live.counters.of(cx.id).requests_retried.one();
    exchange::again(all, cx, number);
    let exchange = &mut all.exchanges[number];
    if let Some(http) = exchange.http.as_deref_mut() {
        http.retries = http.retries.saturating_sub(1);
        let mut outgoing = http.replay.replace(Vec::new()).unwrap_or_default();
        outgoing.append(&mut http.outgoing);
        http.outgoing = outgoing;
        http.download = Body::head();
    }
}

enum Taken {
    /// An interim answer; another head follows.
    Again,
    /// The body follows.
    Body,
    /// Another protocol follows.
    Relay,
    /// It is no answer to this request.
    Bad,
}

fn take_head(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    found: Found,
) -> Taken {
    let mut response = std::mem::take(&mut all.heads.response);
    let taken = read_head(all, cx, index, number, slot, found, &mut response);
    all.heads.response = response;
    taken
}

/// The head of an answer that was read.
pub(crate) enum Answer {
    /// Another one follows.
    Interim,
    /// Another protocol follows.
    Relay { cookie: Option<String> },
    /// The body follows, framed so.
    Final { framing: Option<Framing>, cookie: Option<String> },
}

/// Reads the head, decides how the body comes, and counts. `None` when it is no answer to this request. The bytes stay
/// in the server's input.
pub(crate) fn read_answer(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    found: Found,
    response: &mut Response,
) -> Option<Answer> {
    let Http { sessions, exchanges, servers, exchange_timers, .. } = &mut *all;
    let now = cx.now;
    let id = cx.id;
    let (session, exchange, server) = (&sessions[index], &mut exchanges[number], &servers[slot]);
    let Exchange { http: Some(http), choice: Some(choice), settings, backend, client, since, .. } =
        &mut **exchange
    else {
        return None;
    };
    // An empty line before it is for requests only (RFC 9112, section 2.2).
    if found.start > 0 {
        return None;
    }
    let head = &server.link.input.unread()[found.start..found.end];
    let limits = settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
    response.parse(head, &limits).ok()?;
    let status = response.status();
    if (100..200).contains(&status) && status != 101 {
        http.interims += 1;
        http.download = Body::head();
        return (http.interims <= INTERIMS_MAX).then_some(Answer::Interim);
    }
    let relays = status == 101 || (http.is_connect && (200..300).contains(&status));
    // Amid an upload the change would come in the middle of it.
    let may_change = http.upgrades && http.upload == Body::Done && response.upgrade(head).is_some();
    if status == 101 && !may_change {
        return None;
    }
    http.answered = true;
    let of_server = choice.server.live.counters.of(id);
    of_server.answers.one();
    if (500..600).contains(&status) {
        of_server.answers_5xx.one();
    }
    let snapshot = settings.backends[*backend].pool.load();
    snapshot.remember(*client, choice.server.id, now);
    snapshot.observe(&choice.server, now.since(*since), now);
    let cookie = cookie(&snapshot, choice, session.facts.is_some());
    exchange_timers.clear(number);
    if relays {
        return Some(Answer::Relay { cookie });
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
    Some(Answer::Final { framing, cookie })
}

/// The head for a client of HTTP/1.
fn read_head(
    all: &mut Http,
    cx: &mut Context,
    index: SessionKey,
    number: ExchangeKey,
    slot: ServerLinkKey,
    found: Found,
    response: &mut Response,
) -> Taken {
    let Some(answer) = read_answer(all, cx, index, number, slot, found, response) else { return Taken::Bad };
    // While other clients wait for descriptors, connections end with their response: no request is lost by that.
    let makes_room = descriptors::wanted() > 0;
    let leaves = cx.draining || makes_room;
    let Http { sessions, exchanges, servers, buffers, heads, .. } = &mut *all;
    let id = cx.id;
    let (session, exchange, server) = (&mut sessions[index], &mut exchanges[number], &mut servers[slot]);
    let Exchange { http: Some(http), .. } = &mut **exchange else { return Taken::Bad };
    let head = &server.link.input.unread()[found.start..found.end];
    let taken = match answer {
        Answer::Interim => {
            // HTTP/1.0 knows no interim answers (RFC 9110, section 15.2).
            if !http.is_http10 {
                message::write_answer(response, head, None, Afterwards::Stays, None, &mut heads.out);
            }
            Taken::Again
        }
        Answer::Relay { cookie } => {
            let afterwards = if response.status() == 101 { Afterwards::Upgrades } else { Afterwards::Stays };
            message::write_answer(response, head, None, afterwards, cookie.as_deref(), &mut heads.out);
            Taken::Relay
        }
        Answer::Final { framing, cookie } => {
            let stayed = http.stays;
            begin_body(http, response, head, framing, leaves, cookie.as_deref(), &mut heads.out);
            if makes_room && stayed {
                descriptors::shed(2);
                session.service.live.counters.of(id).idle_shed.one();
            }
            Taken::Body
        }
    };
    if !matches!(taken, Taken::Body) {
        session.link.send(&heads.out, buffers);
        heads.out.clear();
    }
    server.link.input.consume(found.end);
    server.link.settle(buffers);
    taken
}

/// Decides how the body goes on, and writes the head for the client.
fn begin_body(
    http: &mut HttpPart,
    response: &Response,
    head: &[u8],
    framing: Option<Framing>,
    leaves: bool,
    cookie: Option<&str>,
    out: &mut Vec<u8>,
) {
    // What the client gets: chunks where the length is unknown, unless it knows no chunks.
    let outgoing = match framing {
        // HTTP/1.0 knows no chunks, not even of a body that is only told of (RFC 9112, section 6.1).
        None => response
            .told_framing()
            .filter(|told| response.status() != 204 && !(http.is_http10 && *told == Framing::Chunked)),
        Some(Framing::Length(length)) => Some(Framing::Length(length)),
        Some(Framing::Chunked | Framing::Close) if http.is_http10 => Some(Framing::Close),
        Some(Framing::Chunked | Framing::Close) => Some(Framing::Chunked),
    };
    http.downloads_chunks = framing.is_some() && outgoing == Some(Framing::Chunked);
    // A client that still uploads may never end; the rest of its body must not be taken for a request.
    let waits = http.upload != Body::Done;
    http.stays &= outgoing != Some(Framing::Close) && !leaves && !waits;
    let afterwards = match (http.stays, http.is_http10) {
        (false, _) => Afterwards::Closes,
        (true, false) => Afterwards::Stays,
        (true, true) => Afterwards::StaysSaid,
    };
    message::write_answer(response, head, outgoing, afterwards, cookie, out);
}

/// The cookie that brings the client back to its server, when it does not have it.
fn cookie(snapshot: &Snapshot, choice: &Choice, secure: bool) -> Option<String> {
    let name = snapshot.cookie.as_ref().filter(|_| choice.why != Why::Sticky)?;
    let secure = if secure { "; Secure" } else { "" };
    Some(format!("{name}={:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", choice.server.token))
}
