//! Sessions: connections of clients that have more layers than bytes. A session begins with what its client says of
//! itself (a PROXY header, a handshake of TLS), and goes on as requests of HTTP or as a relay.

use crate::context::Context;
use crate::context::descriptors::{Promise, Unit};
use crate::context::keys::{ExchangeKey, SessionKey};
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::http::Http;
use crate::http::exchange::{self, Exchange, Keep, Reach};
use crate::http::http1::{self, Http1};
use crate::http::http2::{self, Http2};
use crate::http::tunnel::{self, Relayed};
use crate::io::relay::End;
use crate::io::tls::{Tls, TlsFacts};
use crate::io::transport::{Link, Received};
use crate::service::accepted::Accepted;
use crate::service::admission::{self, Admission, Guest, Refused, reset_at_close};
use crate::service::hops::note_loop;
use crate::service::preamble::{self, GREETING, Origin};
use crate::service::{Backend, Service, Settings};
use evener_core::limits::Lease;
use evener_core::pace::Pace;
use evener_core::snapshot::Entry;
use evener_core::spec::Balance;
use evener_core::wire::hello;
use evener_core::{ServerId, Time};
use mio::event::Event;
use rustix::net::{RecvFlags, recv};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Who still sends when all is said is heard for so long, so that it receives everything.
pub(crate) const LINGER: Duration = Duration::from_secs(5);
/// The same while the program drains, as long as the client takes nothing: it does not hold the program.
const DRAIN_LINGER: Duration = Duration::from_secs(1);
/// And for so many bytes at most.
pub(crate) const LINGER_BYTES_MAX: usize = 16 << 20;
/// A client that was quiet for less may have its next request under way. Those that are busy end with a response.
const QUIET_MIN: Duration = Duration::from_secs(1);
/// After so many rounds another session has its turn.
pub(crate) const ROUNDS_MAX: usize = 16;

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: Link,
    pub(crate) service: Arc<Service>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) origin: Origin,
    /// The address that the client connected to; known when HTTP begins.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) facts: Option<Box<TlsFacts>>,
    pub(crate) guest: Guest,
    /// Its client closed while a request was under way.
    pub(crate) left_early: bool,
    /// The settings changed: the access list is asked for the next request, too.
    pub(crate) asks_again: bool,
    /// The server that the last request had, where the next one wants the same.
    pub(crate) stay: Option<Stay>,
    pub(crate) mode: Mode,
    /// When something moved last.
    pub(crate) active_at: Time,
    /// How fast it takes what it is sent.
    pace: Pace,
    /// What the client had not received when that was looked at.
    left: usize,
    /// Tells it from all others of its worker.
    pub(crate) number: u32,
    /// It is in the worker's list of those that have more to do.
    pub(crate) queued: bool,
    /// It was served: it may go when nobody asks anything and others wait.
    pub(crate) served: bool,
    /// Its place in the service, or among those that are kept waiting.
    pub(crate) place: Lease,
    _descriptor: Unit,
    /// The descriptor for its server, while no connection has it.
    pub(crate) promise: Option<Promise>,
}

/// A server, with the name of its pool: its identity means nothing in another one.
#[derive(Debug)]
pub(crate) struct Stay {
    pool: Arc<str>,
    server: ServerId,
}

impl Stay {
    /// Where an exchange was, if the next one of its connection is to go there, too.
    pub(crate) fn of(exchange: &Exchange) -> Option<Self> {
        let wanted = exchange.settings.http.as_ref().is_some_and(|spec| spec.balance == Balance::Connection);
        let server = exchange.choice.as_ref().filter(|_| wanted)?.server.id;
        Some(Self { pool: Arc::clone(&exchange.backend().pool.load().pool), server })
    }

    /// The server, if it is of this backend's pool.
    pub(crate) fn at(&self, backend: &Backend) -> Option<ServerId> {
        (backend.pool.load().pool == self.pool).then_some(self.server)
    }
}

/// What a session is about now.
#[derive(Debug)]
pub(crate) enum Mode {
    /// A PROXY header has to come.
    Proxy,
    /// A handshake of TLS is under way: its place among them, and the name that the client asks for.
    Handshake(Option<Lease>, Option<String>),
    /// Requests of HTTP/1.
    Http1(Box<Http1>),
    /// Streams of HTTP/2.
    Http2(Box<Http2>),
    /// Bytes go both ways; the exchange that does so.
    Relay(ExchangeKey),
    /// It was refused, and is kept waiting.
    Tarpit,
    /// All is said; the client is heard to its end, for a time and so many bytes.
    Lingering(usize),
    /// It is over; its slot is freed when the present events are done.
    Over,
}

impl Session {
    /// Whether the client took something since this was asked the last time; the kernel may hold much for it, and says
    /// so only when there is room again.
    pub(crate) fn is_taking(&mut self) -> bool {
        let left = self.link.left();
        std::mem::replace(&mut self.left, left) > left
    }

    /// Whether nothing moved of late, and the client has all that it was sent.
    pub(crate) fn is_quiet(&self, now: Time) -> bool {
        now.since(self.active_at) >= http1::CLOSED && self.link.left() == 0
    }

    /// Looks whether the client took something since the last time, which counts as a move; whether it takes what it is
    /// sent below the minimum rate.
    pub(crate) fn is_slow(&mut self, now: Time) -> bool {
        if self.is_taking() {
            self.active_at = now;
        }
        let rate = self.settings.http.as_ref().and_then(|spec| spec.min_rate);
        rate.is_some_and(|rate| self.pace.is_slow(now, self.link.progress(), &rate))
    }

    /// Whether it speaks HTTP, and nothing is asked or said.
    pub(crate) fn is_idle(&self) -> bool {
        let quiet = self.link.input.is_empty() && self.link.pending() == 0;
        quiet
            && match &self.mode {
                Mode::Http1(http) => http.is_idle(),
                Mode::Http2(http) => http.is_idle(),
                _ => false,
            }
    }

    /// Counts bytes that came from the client, and that went to it.
    pub(crate) fn count(&self, bytes_in: u64, bytes_out: u64, worker: usize, now: Time) {
        let counters = self.service.live.counters.of(worker);
        counters.bytes_in.add(bytes_in);
        counters.bytes_out.add(bytes_out);
        if let Some(record) = self.guest.record.as_ref().filter(|_| bytes_in + bytes_out > 0) {
            record.moved(bytes_in, bytes_out, now);
        }
    }

    /// Writes down which server the client has.
    pub(crate) fn had(&self, backend: &Backend, server: &Entry) {
        if let Some(record) = &self.guest.record {
            record.had(&backend.pool.load().pool, &server.name);
        }
    }

    /// The name that the client asked for by TLS.
    pub(crate) fn name(&self) -> Option<&str> {
        self.facts.as_ref().and_then(|facts| facts.name.as_deref())
    }
}

/// A client was accepted.
pub(crate) fn begin(all: &mut Http, cx: &mut Context, accepted: Accepted) {
    let Accepted { client, peer, service, settings, place } = accepted;
    let awaits_proxy = settings.is_proxy(peer.ip());
    let session = Session {
        link: Link::new(client),
        service,
        settings,
        origin: Origin::new(peer),
        local: None,
        facts: None,
        guest: Guest::default(),
        left_early: false,
        asks_again: false,
        stay: None,
        mode: Mode::Proxy,
        active_at: cx.now,
        pace: Pace::default(),
        left: usize::MAX,
        number: cx.number(),
        queued: false,
        served: false,
        place: place.lease,
        _descriptor: place.client,
        promise: Some(place.server.promise()),
    };
    let index = all.sessions.insert(Box::new(session));
    if cx.registry.register(&all.sessions[index].link.socket, Token::Session(index)).is_err() {
        return close(all, cx, index);
    }
    if awaits_proxy {
        all.session_timers.set(index, cx.now + GREETING);
    } else {
        admit(all, cx, index);
    }
}

/// The client is known: may it come in?
fn admit(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    let client = session.origin.client.ip();
    match admission::admit(&session.service, &session.settings, client, cx.id, cx.now) {
        Admission::Enter(guest) => {
            session.guest = guest;
            begin_layers(all, cx, index);
        }
        Admission::Refused(Refused::Drop) => close(all, cx, index),
        // An answer of HTTP is possible only without TLS, whose handshake would be a service to somebody unwanted.
        Admission::Refused(Refused::Reject(status))
            if session.settings.http.is_some() && session.settings.tls.is_none() =>
        {
            let mut http = Http1::new();
            http.refuse(status);
            session.mode = Mode::Http1(Box::new(http));
            let patience = session.settings.http.as_ref().map_or(GREETING, |spec| spec.head_timeout);
            all.session_timers.set(index, cx.now + patience);
            drive(all, cx, index);
        }
        Admission::Refused(Refused::Reject(_)) => {
            reset_at_close(&session.link.socket);
            close(all, cx, index);
        }
        Admission::Refused(Refused::Tarpit(place, time)) => {
            (session.place, session.promise) = (place, None);
            session.mode = Mode::Tarpit;
            all.session_timers.set(index, cx.now + time);
        }
    }
}

/// TLS comes first, if there is any.
fn begin_layers(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    let Some(acceptor) = session.settings.tls.clone() else { return begin_protocol(all, cx, index) };
    let counters = session.service.live.counters.of(cx.id);
    let Some(place) = session.service.live.handshakes.enter(acceptor.handshakes_max) else {
        counters.tls_refused.one();
        return close(all, cx, index);
    };
    session.mode = Mode::Handshake(Some(place), None);
    all.session_timers.set(index, cx.now + acceptor.handshake_timeout);
    drive(all, cx, index);
}

/// The layers are there: what is spoken on them?
fn begin_protocol(all: &mut Http, cx: &mut Context, index: SessionKey) {
    all.session_timers.clear(index);
    let session = &mut all.sessions[index];
    session.active_at = cx.now;
    if let Some(http) = session.settings.http.clone() {
        session.local = preamble::local_address(&session.link.socket);
        let alpn = session.facts.as_ref().and_then(|facts| facts.alpn.as_deref());
        session.mode = if alpn == Some(b"h2") {
            Mode::Http2(Box::new(Http2::new(&http.limits)))
        } else {
            Mode::Http1(Box::new(Http1::new()))
        };
        all.session_timers.set(index, cx.now + http.keepalive_timeout);
        return drive(all, cx, index);
    }
    let name = session.name().unwrap_or_default();
    let routed = session.settings.routes.find(name.as_bytes(), b"").copied();
    let Some(backend) = session.guest.backend.or(routed).or(session.settings.default_backend) else {
        session.service.live.counters.of(cx.id).greeting_refused.one();
        return close(all, cx, index);
    };
    exchange::begin_relay(all, cx, index, backend);
}

/// Something happened at the client's socket.
pub(crate) fn on_event(all: &mut Http, cx: &mut Context, index: SessionKey, event: &Event) {
    let Some(session) = all.sessions.get_mut(index) else { return };
    let ended = event.is_read_closed() || event.is_error();
    session.link.readable |= event.is_readable() || ended;
    session.link.hung_up |= ended;
    session.link.writable |= event.is_writable() || event.is_error();
    session.link.broken |= event.is_error();
    drive(all, cx, index);
}

/// Does what can be done without waiting.
pub(crate) fn drive(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let Some(session) = all.sessions.get_mut(index) else { return };
    match &session.mode {
        Mode::Proxy => read_proxy(all, cx, index),
        Mode::Handshake(..) => shake_hands(all, cx, index),
        Mode::Http1(_) => http1::drive(all, cx, index),
        Mode::Http2(_) => http2::drive(all, cx, index),
        Mode::Relay(exchange) => {
            let exchange = *exchange;
            match tunnel::relay(all, cx, exchange) {
                Relayed::Again => queue(all, cx, index),
                Relayed::Wait => {}
                Relayed::Over => {
                    exchange::end(all, cx, exchange, Keep::Unserved);
                    close(all, cx, index);
                }
                Relayed::Unheard => {
                    exchange::end(all, cx, exchange, Keep::Unserved);
                    finish(all, cx, index);
                }
                Relayed::Broken => close(all, cx, index),
                Relayed::Reset => on_server_reset(all, cx, index, exchange),
            }
        }
        Mode::Lingering(_) => linger(all, cx, index),
        Mode::Tarpit | Mode::Over => {}
    }
}

/// The server of a relay reset its connection. A client that has received everything gets the reset; another one is let
/// receive the rest, which a reset would take from it.
fn on_server_reset(all: &mut Http, cx: &mut Context, index: SessionKey, exchange: ExchangeKey) {
    exchange::end(all, cx, exchange, Keep::No);
    let session = &all.sessions[index];
    if session.link.left() > 0 {
        return finish(all, cx, index);
    }
    reset_at_close(&session.link.socket);
    close(all, cx, index);
}

/// It has more to do when others had their turn.
pub(crate) fn queue(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let Some(session) = all.sessions.get_mut(index) else { return };
    if !std::mem::replace(&mut session.queued, true) {
        cx.ready.push(Ready::Session(index));
    }
}

fn read_proxy(all: &mut Http, cx: &mut Context, index: SessionKey) {
    loop {
        let session = &mut all.sessions[index];
        match preamble::read_proxy(session.link.input.unread(), &mut session.origin) {
            Ok(Some(length)) => {
                session.link.input.consume(length);
                session.link.settle(&mut all.buffers);
                if session.origin.goes_round() {
                    let service = Arc::clone(&session.service);
                    note_loop(cx, &service);
                    return close(all, cx, index);
                }
                all.session_timers.clear(index);
                return admit(all, cx, index);
            }
            Ok(None) if session.link.receive(&mut all.buffers) == Received::Some => {}
            Ok(None) if session.link.end.is_none() => return,
            Ok(None) => return close(all, cx, index),
            Err(_) => {
                session.service.live.counters.of(cx.id).greeting_refused.one();
                return close(all, cx, index);
            }
        }
    }
}

/// The ClientHello is looked at for its name; then rustls has everything.
fn shake_hands(all: &mut Http, cx: &mut Context, index: SessionKey) {
    loop {
        let session = &mut all.sessions[index];
        let Mode::Handshake(_, name) = &mut session.mode else { return };
        if session.link.tls().is_none() {
            match hello::parse(session.link.input.unread()) {
                Ok(None) if session.link.end.is_none() => {}
                // What is malformed is for rustls to refuse, with the right alert.
                found => {
                    *name = found.ok().flatten().and_then(|hello| hello.name);
                    let tls = session.settings.tls.as_ref().and_then(|tls| Tls::server(&tls.config).ok());
                    let Some(tls) = tls else { return close(all, cx, index) };
                    session.link.begin_tls(tls, &mut all.buffers);
                }
            }
        }
        let established = session.link.tls().is_some() && session.link.is_established();
        if session.link.failure.is_some() || (session.link.end.is_some() && !established) {
            session.service.live.counters.of(cx.id).tls_failed.one();
            return finish(all, cx, index);
        }
        if established {
            return shaken(all, cx, index);
        }
        if session.link.receive(&mut all.buffers) == Received::Nothing && session.link.end.is_none() {
            return session.link.flush(&mut all.buffers);
        }
    }
}

fn shaken(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    let Mode::Handshake(place, name) = &mut session.mode else { return };
    drop(place.take());
    let name = name.take();
    session.facts = session.link.tls().map(|tls| Box::new(tls.facts(name)));
    let counters = session.service.live.counters.of(cx.id);
    counters.tls_handshakes.one();
    if session.facts.as_ref().is_some_and(|facts| facts.resumed) {
        counters.tls_resumed.one();
    }
    begin_protocol(all, cx, index);
}

/// Says the end, and hears the client to its own, so that what it has not read yet is not lost by a reset.
pub(crate) fn finish(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &mut all.sessions[index];
    session.link.finish(&mut all.buffers);
    enter(all, cx, index, Mode::Lingering(0));
    let time = if cx.draining { DRAIN_LINGER } else { LINGER };
    all.session_timers.set(index, cx.now + time);
    linger(all, cx, index);
}

/// A session is about something else from now on; what it was about lets go of its connections to servers.
pub(crate) fn enter(all: &mut Http, cx: &mut Context, index: SessionKey, mode: Mode) {
    match std::mem::replace(&mut all.sessions[index].mode, mode) {
        Mode::Relay(exchange) => exchange::abandon(all, cx, exchange),
        Mode::Http1(http) => {
            http.exchange().into_iter().for_each(|exchange| exchange::abandon(all, cx, exchange));
            http.private().into_iter().for_each(|kept| exchange::let_go(all, cx, kept));
        }
        Mode::Http2(http) => {
            http.exchanges().into_iter().for_each(|exchange| exchange::abandon(all, cx, exchange));
        }
        Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Over => {}
    }
}

fn linger(all: &mut Http, cx: &mut Context, index: SessionKey) {
    for _ in 0..ROUNDS_MAX {
        let session = &mut all.sessions[index];
        let Mode::Lingering(heard) = &mut session.mode else { return };
        session.link.flush(&mut all.buffers);
        let received = session.link.receive(&mut all.buffers);
        *heard += session.link.input.len();
        session.link.input.consume(usize::MAX);
        session.link.settle(&mut all.buffers);
        let over = session.link.end.is_some() && session.link.is_finished();
        if over
            || session.link.broken
            || matches!(session.link.end, Some(End::Error(_)))
            || *heard > LINGER_BYTES_MAX
        {
            return close(all, cx, index);
        }
        if received == Received::Nothing {
            return;
        }
    }
    queue(all, cx, index);
}

/// A client that still takes its response while the program drains has more time, up to the drain timeout.
fn linger_on(all: &mut Http, cx: &mut Context, index: SessionKey) {
    if all.sessions[index].is_taking() {
        all.session_timers.set(index, cx.now + DRAIN_LINGER);
    } else {
        close(all, cx, index);
    }
}

/// The deadline of a session came.
pub(crate) fn on_deadline(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let Some(session) = all.sessions.get(index) else { return };
    let counters = session.service.live.counters.of(cx.id);
    match &session.mode {
        Mode::Proxy | Mode::Handshake(..) => {
            counters.greeting_timeouts.one();
            close(all, cx, index);
        }
        Mode::Http1(_) => http1::on_deadline(all, cx, index),
        Mode::Http2(_) => http2::on_deadline(all, cx, index),
        Mode::Relay(exchange) => {
            let is_half_closed = match all.exchanges.get(*exchange).map(|exchange| exchange.reach) {
                Some(Reach::Open(slot)) => tunnel::is_half_closed(&session.link, &all.servers[slot].link),
                _ => false,
            };
            let Some(quiet) = session.settings.options.quiet_max(is_half_closed) else { return };
            let deadline = session.active_at + quiet;
            if deadline > cx.now {
                return all.session_timers.set(index, deadline);
            }
            counters.quiet(is_half_closed).one();
            let exchange = *exchange;
            exchange::end(all, cx, exchange, Keep::No);
            close(all, cx, index);
        }
        Mode::Lingering(_) if cx.draining && session.link.left() > 0 => linger_on(all, cx, index),
        Mode::Tarpit | Mode::Lingering(_) | Mode::Over => close(all, cx, index),
    }
}

/// The program drains: who is idle leaves now, who is not leaves after the present answer.
pub(crate) fn on_drain(all: &mut Http, cx: &mut Context, index: SessionKey) {
    match all.sessions.get(index).map(|session| &session.mode) {
        Some(Mode::Http1(_)) => http1::on_drain(all, cx, index),
        Some(Mode::Http2(_)) => http2::on_drain(all, cx, index),
        Some(Mode::Lingering(_)) => all.session_timers.set(index, cx.now + DRAIN_LINGER),
        _ => {}
    }
}

/// An idle client makes room for others: one of HTTP/2 is told to go, one of HTTP/1 is gone. Not one that has just asked
/// something: returns whether it goes.
pub(crate) fn shed(all: &mut Http, cx: &mut Context, index: SessionKey) -> bool {
    let session = &mut all.sessions[index];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    if recv(&session.link.socket, &mut [0], flags).is_ok_and(|(_, length)| length > 0) {
        return false;
    }
    session.service.live.counters.of(cx.id).idle_shed.one();
    if matches!(session.mode, Mode::Http2(_)) {
        http2::dismiss(all, cx, index);
        return true;
    }
    session.link.finish(&mut all.buffers);
    close(all, cx, index);
    true
}

/// Sessions that were served and are idle are closed, the longest idle first.
pub(crate) fn shed_idle(all: &mut Http, cx: &mut Context, wanted: u32) -> u32 {
    let now = cx.now;
    let is_quiet = |session: &Session| now.since(session.active_at) >= QUIET_MIN;
    let is_idle = |session: &Session| session.served && session.is_idle() && is_quiet(session);
    let idle = all.sessions.iter().filter(|(_, session)| is_idle(session));
    let mut idle: Vec<(Time, SessionKey)> = idle.map(|(index, session)| (session.active_at, index)).collect();
    let count = idle.len().min(wanted as usize);
    if let Some(last) = count.checked_sub(1) {
        idle.select_nth_unstable_by_key(last, |(active_at, _)| *active_at);
    }
    let shed = idle[..count].iter().filter(|&&(_, index)| shed(all, cx, index));
    2 * shed.count() as u32
}

/// Closes a session because the program ends.
pub(crate) fn cut(all: &mut Http, cx: &mut Context, index: SessionKey) {
    let session = &all.sessions[index];
    if !matches!(session.mode, Mode::Over) {
        session.service.live.counters.of(cx.id).cut.one();
        close(all, cx, index);
    }
}

/// Ends a session. Its slot is freed only when the present events are done.
pub(crate) fn close(all: &mut Http, cx: &mut Context, index: SessionKey) {
    if all.sessions.get(index).is_none_or(|session| matches!(session.mode, Mode::Over)) {
        return;
    }
    enter(all, cx, index, Mode::Over);
    all.session_timers.clear(index);
    all.sessions_over.push(index);
}
