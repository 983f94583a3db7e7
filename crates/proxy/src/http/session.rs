//! Sessions: connections of clients that have more layers than bytes. A session begins with a preamble (a PROXY header, a
//! handshake of TLS), and goes on as requests of HTTP or as a relay. It owns its exchanges: what comes of them is handled
//! here, by the protocol that the session speaks.

use super::Http;
use super::client::{After, Client, LINGER, LINGER_BYTES_MAX, ROUNDS_MAX};
use super::exchange::{Exchange, Keep, Progress, Reach};
use super::http1::Http1;
use super::http2::Http2;
use super::tunnel::{self, Relayed};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey, SessionKey};
use crate::context::registry::{Readiness, Token};
use crate::io::relay::End;
use crate::io::tls::Tls;
use crate::io::transport::Received;
use crate::service::accepted::Accepted;
use crate::service::admission::{Admission, Refused, admit, reset_at_close};
use crate::service::ending::Ending;
use crate::service::hops::note_loop;
use crate::service::preamble::{self, PREAMBLE};
use evener_core::Time;
use evener_core::limits::Lease;
use evener_core::wire::hello;
use rustix::net::{RecvFlags, recv};
use std::sync::Arc;
use std::time::Duration;

/// The time to linger while the program drains, as long as the client takes nothing: it does not hold the program.
const DRAIN_LINGER: Duration = Duration::from_secs(1);
/// A client that was quiet for less may have its next request under way. Those that are busy end with a response.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) mode: Mode,
}

/// Stage of a session.
#[derive(Debug)]
pub(super) enum Mode {
    /// A PROXY header has to come.
    Proxy,
    /// A handshake of TLS is under way: its permit, and the name that the client asks for.
    Handshake(Option<Lease>, Option<String>),
    /// Requests of HTTP/1.
    Http1(Box<Http1>),
    /// Streams of HTTP/2.
    Http2(Box<Http2>),
    /// Bytes go both ways; the exchange that does so.
    Relay(ExchangeKey),
    /// The client was refused, and is kept waiting.
    Tarpit,
    /// Everything is sent; the client is received from to its end, for a time and so many bytes.
    Lingering(usize),
    /// The session is over; it is freed when the present events are done.
    Over,
}

impl Session {
    /// Returns whether it speaks HTTP, and no request is under way.
    fn is_idle(&self) -> bool {
        let quiet = self.client.transport.input.is_empty() && self.client.transport.pending() == 0;
        quiet
            && match &self.mode {
                Mode::Http1(http) => http.is_idle(),
                Mode::Http2(http) => http.is_idle(),
                _ => false,
            }
    }

    /// Returns whether it may make room for others: it was served, and is idle for long enough.
    fn may_go(&self, now: Time) -> bool {
        self.client.served && self.is_idle() && now.since(self.client.active_at) >= QUIET_MIN
    }

    fn is_over(&self) -> bool {
        matches!(self.mode, Mode::Over)
    }
}

impl Http {
    /// A client was accepted.
    pub(crate) fn begin(&mut self, cx: &mut Context, accepted: Accepted) {
        let awaits_proxy = accepted.settings.is_proxy(accepted.peer.ip());
        let key = self.sessions.insert_with(|key| {
            let client = Client::new(key, cx, accepted);
            Box::new(Session { client, mode: Mode::Proxy })
        });
        if cx.registry.register(&self.sessions[key].client.transport.socket, Token::Session(key)).is_err() {
            return self.close(cx, key);
        }
        if awaits_proxy {
            self.shared.session_timers.set(key, cx.now + PREAMBLE);
        } else {
            self.admit(cx, key);
        }
    }

    /// The client is known: may it come in?
    fn admit(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let address = client.origin.client().ip();
        match admit(&client.service, &client.settings, address, cx.id, cx.now) {
            Admission::Enter(admitted) => {
                client.admitted = admitted;
                self.begin_layers(cx, key);
            }
            Admission::Refused(Refused::Drop) => self.close(cx, key),
            // A response of HTTP is possible only without TLS, whose handshake would be a service to an unwanted client.
            Admission::Refused(Refused::Reject(status))
                if client.settings.http.is_some() && client.settings.tls.is_none() =>
            {
                *mode = Mode::Http1(Box::new(Http1::refusing(status)));
                let patience = client.settings.http.as_ref().map_or(PREAMBLE, |spec| spec.header_timeout);
                self.shared.session_timers.set(key, cx.now + patience);
                self.drive(cx, key);
            }
            Admission::Refused(Refused::Reject(_)) => {
                reset_at_close(&client.transport.socket);
                self.close(cx, key);
            }
            Admission::Refused(Refused::Tarpit(slot, time)) => {
                (client.slot, client.promise) = (slot, None);
                *mode = Mode::Tarpit;
                self.shared.session_timers.set(key, cx.now + time);
            }
        }
    }

    /// TLS comes first, if there is any.
    fn begin_layers(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Some(acceptor) = client.settings.tls.clone() else { return self.begin_protocol(cx, key) };
        let counters = client.service.live.counters.of(cx.id);
        let Some(permit) = client.service.live.handshakes.enter(acceptor.handshakes_max) else {
            counters.tls_refused.one();
            return self.close(cx, key);
        };
        *mode = Mode::Handshake(Some(permit), None);
        self.shared.session_timers.set(key, cx.now + acceptor.handshake_timeout);
        self.drive(cx, key);
    }

    /// The layers are there: what is spoken on them?
    fn begin_protocol(&mut self, cx: &mut Context, key: SessionKey) {
        self.shared.session_timers.clear(key);
        let Session { client, mode } = &mut *self.sessions[key];
        client.active_at = cx.now;
        if let Some(http) = client.settings.http.clone() {
            client.local = preamble::local_address(&client.transport.socket);
            let alpn = client.facts.as_ref().and_then(|facts| facts.alpn.as_deref());
            *mode = if alpn == Some(b"h2") {
                Mode::Http2(Box::new(Http2::new(&http.limits)))
            } else {
                Mode::Http1(Box::new(Http1::new()))
            };
            self.shared.session_timers.set(key, cx.now + http.keepalive_timeout);
            return self.drive(cx, key);
        }
        let name = client.name().unwrap_or_default();
        let routed = client.settings.routes.find(name.as_bytes(), b"").copied();
        let Some(backend) = client.admitted.backend.or(routed).or(client.settings.default_backend) else {
            client.service.live.counters.of(cx.id).preamble_refused.one();
            return self.close(cx, key);
        };
        *mode = Mode::Relay(self.shared.begin(Exchange::new(client, backend, cx.now)));
        // What the client sent already is in its input.
        self.drive(cx, key);
    }

    /// Something happened at the client's socket.
    pub(crate) fn on_session_event(&mut self, cx: &mut Context, key: SessionKey, ready: Readiness) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.client.on_event(ready);
        self.drive(cx, key);
    }

    /// A session has its turn again.
    pub(crate) fn resume(&mut self, cx: &mut Context, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.client.leave_queue();
        self.drive(cx, key);
    }

    /// Something happened at a server's socket.
    pub(crate) fn on_server_event(&mut self, cx: &mut Context, slot: ServerConnectionKey, ready: Readiness) {
        let Some(number) = self.shared.exchange_on(slot) else {
            return self.shared.on_unused_event(cx, slot, ready);
        };
        let client = &mut self.sessions[self.shared.exchanges[number].session].client;
        let progress = self.shared.on_server_event(cx, client, (number, slot), ready);
        self.on_progress(cx, number, progress);
    }

    /// Gives a server to an exchange that waits in a queue; returns whether it does not wait any more.
    pub(crate) fn serve_queued(&mut self, cx: &mut Context, number: ExchangeKey) -> bool {
        let client = &mut self.sessions[self.shared.exchanges[number].session].client;
        let served = self.shared.serve_queued(cx, client, number);
        if served {
            self.on_progress(cx, number, Progress::Moved);
        }
        served
    }

    /// An exchange can go on, or not: the protocol of its session reacts.
    fn on_progress(&mut self, cx: &mut Context, number: ExchangeKey, progress: Progress) {
        let Some(exchange) = self.shared.exchanges.get(number).filter(|_| progress == Progress::Moved) else {
            return;
        };
        let key = exchange.session;
        let Session { client, mode } = &mut *self.sessions[key];
        if let Mode::Http2(http) = mode {
            let after = http.on_progress(cx, client, &mut self.shared, number);
            self.settle(cx, key, after);
        } else {
            self.drive(cx, key);
        }
    }

    /// The deadline of an exchange came.
    pub(super) fn on_exchange_deadline(&mut self, cx: &mut Context, number: ExchangeKey) {
        // What was handled just now may have given it another deadline.
        if self.shared.exchange_timers.is_set(number) {
            return;
        }
        let Some(exchange) = self.shared.exchanges.get(number) else { return };
        let key = exchange.session;
        let Session { client, mode } = &mut *self.sessions[key];
        if !matches!(exchange.reach, Reach::Open(_)) {
            let progress = self.shared.on_reach_deadline(cx, client, number);
            return self.on_progress(cx, number, progress);
        }
        let after = match mode {
            Mode::Http2(http) if exchange.stands() => http.on_stalled(cx, client, &mut self.shared, number),
            Mode::Http2(http) => http.on_response_deadline(cx, client, &mut self.shared, number),
            Mode::Http1(http) => http.on_response_deadline(cx, client, &mut self.shared, number),
            _ => return,
        };
        self.settle(cx, key, after);
    }

    /// Does what can be done without waiting.
    fn drive(&mut self, cx: &mut Context, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Session { client, mode } = &mut **session;
        match mode {
            Mode::Proxy => self.read_proxy(cx, key),
            Mode::Handshake(..) => self.shake_hands(cx, key),
            Mode::Http1(http) => {
                let after = http.drive(cx, client, &mut self.shared);
                self.settle(cx, key, after);
            }
            Mode::Http2(http) => {
                let after = http.drive(cx, client, &mut self.shared);
                self.settle(cx, key, after);
            }
            Mode::Relay(number) => {
                let number = *number;
                self.relay(cx, key, number);
            }
            Mode::Lingering(_) => self.linger(cx, key),
            Mode::Tarpit | Mode::Over => {}
        }
    }

    /// Does what the protocol of a session decided.
    fn settle(&mut self, cx: &mut Context, key: SessionKey, after: After) {
        match after {
            After::Stays => {}
            After::Finish => self.finish(cx, key),
            After::Close => self.close(cx, key),
            After::Tarpit => self.enter(cx, key, Mode::Tarpit),
            After::Relay(number) => {
                self.sessions[key].mode = Mode::Relay(number);
                self.relay(cx, key, number);
            }
        }
    }

    fn relay(&mut self, cx: &mut Context, key: SessionKey, number: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        match tunnel::relay(cx, client, &mut self.shared, number) {
            Relayed::Again => client.queue(cx),
            Relayed::Wait => {}
            Relayed::Over => {
                self.shared.end(cx, client, number, Keep::Unserved);
                self.close(cx, key);
            }
            Relayed::Unheard => {
                self.shared.end(cx, client, number, Keep::Unserved);
                self.finish(cx, key);
            }
            Relayed::Broken => self.close(cx, key),
            Relayed::Reset => self.on_server_reset(cx, key, number),
        }
    }

    /// The server of a relay reset its connection. A client that has received everything gets the reset; another one is let
    /// receive the rest, which a reset would take from it.
    fn on_server_reset(&mut self, cx: &mut Context, key: SessionKey, number: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        self.shared.end(cx, client, number, Keep::No);
        if client.transport.left() > 0 {
            return self.finish(cx, key);
        }
        reset_at_close(&client.transport.socket);
        self.close(cx, key);
    }

    fn read_proxy(&mut self, cx: &mut Context, key: SessionKey) {
        loop {
            let client = &mut self.sessions[key].client;
            match preamble::read_proxy(client.transport.input.unread(), &mut client.origin) {
                Ok(Some(length)) => {
                    client.transport.input.consume(length);
                    client.transport.settle(&mut self.shared.buffers);
                    if client.origin.is_loop() {
                        note_loop(cx, &client.service);
                        return self.close(cx, key);
                    }
                    self.shared.session_timers.clear(key);
                    return self.admit(cx, key);
                }
                Ok(None) if client.transport.receive(&mut self.shared.buffers) == Received::Some => {}
                Ok(None) if client.transport.end.is_none() => return,
                Ok(None) => return self.close(cx, key),
                Err(_) => {
                    client.service.live.counters.of(cx.id).preamble_refused.one();
                    return self.close(cx, key);
                }
            }
        }
    }

    /// The ClientHello is looked at for its name; then rustls has everything.
    fn shake_hands(&mut self, cx: &mut Context, key: SessionKey) {
        loop {
            let Session { client, mode } = &mut *self.sessions[key];
            let Mode::Handshake(_, name) = mode else { return };
            let buffers = &mut self.shared.buffers;
            if client.transport.tls().is_none() {
                match hello::parse(client.transport.input.unread()) {
                    Ok(None) if client.transport.end.is_none() => {}
                    // What is malformed is for rustls to refuse, with the right alert.
                    found => {
                        *name = found.ok().flatten().and_then(|hello| hello.name);
                        let tls = client.settings.tls.as_ref().and_then(|tls| Tls::server(&tls.config).ok());
                        let Some(tls) = tls else { return self.close(cx, key) };
                        client.transport.begin_tls(tls, buffers);
                    }
                }
            }
            let established = client.transport.tls().is_some() && client.transport.is_established();
            if client.transport.failure.is_some() || (client.transport.end.is_some() && !established) {
                client.service.live.counters.of(cx.id).tls_failed.one();
                return self.finish(cx, key);
            }
            if established {
                return self.shaken(cx, key);
            }
            if client.transport.receive(buffers) == Received::Nothing && client.transport.end.is_none() {
                return client.transport.flush(buffers);
            }
        }
    }

    fn shaken(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Mode::Handshake(permit, name) = mode else { return };
        drop(permit.take());
        let name = name.take();
        client.facts = client.transport.tls().map(|tls| Box::new(tls.facts(name)));
        let counters = client.service.live.counters.of(cx.id);
        counters.tls_handshakes.one();
        if client.facts.as_ref().is_some_and(|facts| facts.resumed) {
            counters.tls_resumed.one();
        }
        self.begin_protocol(cx, key);
    }

    /// Sends the end, and hears the client to its own, so that what it has not read yet is not lost by a reset.
    fn finish(&mut self, cx: &mut Context, key: SessionKey) {
        self.sessions[key].client.transport.finish(&mut self.shared.buffers);
        self.enter(cx, key, Mode::Lingering(0));
        let time = if cx.draining { DRAIN_LINGER } else { LINGER };
        self.shared.session_timers.set(key, cx.now + time);
        self.linger(cx, key);
    }

    /// A session is about something else from now on; what it was about lets go of its connections to servers.
    fn enter(&mut self, cx: &mut Context, key: SessionKey, mode: Mode) {
        let Session { client, mode: present } = &mut *self.sessions[key];
        match std::mem::replace(present, mode) {
            Mode::Relay(number) => self.shared.abandon(cx, client, number),
            Mode::Http1(mut http) => http.end(cx, client, &mut self.shared),
            Mode::Http2(http) => http.end(cx, client, &mut self.shared),
            Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Over => {}
        }
    }

    fn linger(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Mode::Lingering(bytes_received) = mode else { return };
        let (transport, buffers) = (&mut client.transport, &mut self.shared.buffers);
        for _ in 0..ROUNDS_MAX {
            transport.flush(buffers);
            let received = transport.receive(buffers);
            *bytes_received += transport.input.len();
            transport.input.consume(usize::MAX);
            transport.settle(buffers);
            let over = transport.end.is_some() && transport.is_finished();
            let failed = transport.broken || matches!(transport.end, Some(End::Error(_)));
            if over || failed || *bytes_received > LINGER_BYTES_MAX {
                return self.close(cx, key);
            }
            if received == Received::Nothing {
                return;
            }
        }
        client.queue(cx);
    }

    /// A client that still takes its response while the program drains has more time, up to the drain timeout.
    fn linger_on(&mut self, cx: &mut Context, key: SessionKey) {
        if self.sessions[key].client.is_taking() {
            self.shared.session_timers.set(key, cx.now + DRAIN_LINGER);
        } else {
            self.close(cx, key);
        }
    }

    /// The deadline of a session came.
    pub(super) fn on_session_deadline(&mut self, cx: &mut Context, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Session { client, mode } = &mut **session;
        let after = match mode {
            Mode::Proxy | Mode::Handshake(..) => {
                client.service.live.counters.of(cx.id).preamble_timeouts.one();
                After::Close
            }
            Mode::Http1(http) => http.on_deadline(cx, client, &mut self.shared),
            Mode::Http2(http) => http.on_deadline(cx, client, &mut self.shared),
            Mode::Relay(number) => {
                let number = *number;
                return self.on_quiet(cx, key, number);
            }
            Mode::Lingering(_) if cx.draining && client.transport.left() > 0 => {
                return self.linger_on(cx, key);
            }
            Mode::Tarpit | Mode::Lingering(_) | Mode::Over => After::Close,
        };
        self.settle(cx, key, after);
    }

    /// Checks whether anything moves in a relay.
    fn on_quiet(&mut self, cx: &mut Context, key: SessionKey, number: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        let is_half_closed = match self.shared.exchanges.get(number).map(|exchange| exchange.reach) {
            Some(Reach::Open(slot)) => {
                tunnel::is_half_closed(&client.transport, &self.shared.servers[slot].transport)
            }
            _ => false,
        };
        let Some(quiet) = client.settings.options.traffic_timeout(is_half_closed) else { return };
        let deadline = client.active_at + quiet;
        if deadline > cx.now {
            return self.shared.session_timers.set(key, deadline);
        }
        client.service.live.counters.of(cx.id).timeouts(is_half_closed).one();
        self.shared.end(cx, client, number, Keep::No);
        self.close(cx, key);
    }

    /// Has idle clients leave, and others after their present response: the program drains.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        self.sessions.keys(|_| true).into_iter().for_each(|key| self.on_drain(cx, key));
    }

    fn on_drain(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let after = match mode {
            Mode::Http1(http) => http.on_drain(client),
            Mode::Http2(http) => http.on_drain(cx, client, &mut self.shared),
            Mode::Lingering(_) => return self.shared.session_timers.set(key, cx.now + DRAIN_LINGER),
            _ => return,
        };
        self.settle(cx, key, after);
    }

    /// Closes sessions that were served and are idle, the longest idle first; returns how many descriptors that frees.
    pub(crate) fn shed(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        let idle = self.sessions.iter().filter(|(_, session)| session.may_go(cx.now));
        let mut idle: Vec<(Time, SessionKey)> =
            idle.map(|(key, session)| (session.client.active_at, key)).collect();
        let count = idle.len().min(wanted as usize);
        if let Some(last) = count.checked_sub(1) {
            idle.select_nth_unstable_by_key(last, |(active_at, _)| *active_at);
        }
        let shed = idle[..count].iter().filter(|&&(_, key)| self.make_room(cx, key));
        2 * shed.count() as u32
    }

    /// An idle client makes room for others: one of HTTP/2 gets GOAWAY, one of HTTP/1 is closed. Not one that has just sent a
    /// request; returns whether it goes.
    fn make_room(&mut self, cx: &mut Context, key: SessionKey) -> bool {
        let Session { client, mode } = &mut *self.sessions[key];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        if recv(&client.transport.socket, &mut [0], flags).is_ok_and(|(_, length)| length > 0) {
            return false;
        }
        client.service.live.counters.of(cx.id).idle_shed.one();
        let after = if let Mode::Http2(http) = mode {
            http.dismiss(cx, client, &mut self.shared)
        } else {
            client.transport.finish(&mut self.shared.buffers);
            After::Close
        };
        self.settle(cx, key, after);
        true
    }

    /// Ends the exchanges with a server, and its pooled connections; returns how many exchanges there were.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let mut ended = 0;
        for slot in self.shared.servers_meant(ending) {
            if let Some(number) = self.shared.end_connection(cx, slot) {
                ended += 1;
                self.on_server_ended(cx, number, ending);
            }
        }
        ended
    }

    fn on_server_ended(&mut self, cx: &mut Context, number: ExchangeKey, ending: &Ending) {
        let key = self.shared.exchanges[number].session;
        let Session { client, mode } = &*self.sessions[key];
        ending.counter(client.service.live.counters.of(cx.id)).one();
        if matches!(mode, Mode::Relay(_)) {
            reset_at_close(&client.transport.socket);
            self.close(cx, key);
        } else {
            self.on_progress(cx, number, Progress::Moved);
        }
    }

    /// Closes all sessions.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        for key in self.sessions.keys(|session| !session.is_over()) {
            self.sessions[key].client.service.live.counters.of(cx.id).cut.one();
            self.close(cx, key);
        }
    }

    /// Closes the session with this number; returns whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let found = self.sessions.keys(|session| session.client.number == number && !session.is_over());
        let Some(&key) = found.first() else { return false };
        self.sessions[key].client.service.live.counters.of(cx.id).closed.one();
        self.close(cx, key);
        true
    }

    /// Ends a session. It is freed only when the present events are done.
    fn close(&mut self, cx: &mut Context, key: SessionKey) {
        if self.sessions.get(key).is_none_or(|session| session.is_over()) {
            return;
        }
        self.enter(cx, key, Mode::Over);
        self.shared.session_timers.clear(key);
        self.over.push(key);
    }

    /// Frees what ended. Connections to servers go first: sessions may wait for their slots.
    pub(crate) fn reap(&mut self, cx: &mut Context) {
        self.shared.reap();
        while let Some(key) = self.over.pop() {
            let Some(mut session) = self.sessions.remove(key) else { continue };
            session.client.transport.release(&mut self.shared.buffers);
            let service = Arc::clone(&session.client.service);
            drop(session);
            service.wake_waiting(cx);
        }
    }
}
