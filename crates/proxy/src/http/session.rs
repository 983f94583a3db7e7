//! Sessions: connections of clients that use TLS, HTTP, or a PROXY header. A session begins with a preamble (a
//! PROXY header, a TLS handshake), and continues with requests of HTTP or as a relay. The session owns its
//! exchanges, and passes their progress to its protocol.

mod closing;
mod list;

use super::Http;
use super::client::{After, Client, LINGER, LINGER_BYTES_MAX, ROUNDS_MAX};
use super::exchange::{Exchange, Keep, Progress, Reach};
use super::http1::Http1;
use super::http2::Http2;
use super::local_response::LocalResponse;
use super::message::Afterwards;
use super::tunnel::{self, Relayed};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey, SessionKey};
use crate::context::registry::{Readiness, Token};
use crate::context::unserved::Traffic;
use crate::io::relay::End;
use crate::io::tls::Tls;
use crate::io::transport::Received;
use crate::service::accepted::Accepted;
use crate::service::admission::{Admission, Refused, admit, reset_at_close};
use crate::service::hops::note_loop;
use crate::service::preamble::{self, PREAMBLE};
use evener_core::Time;
use evener_core::limits::Lease;
use evener_core::reason::Reason;
use evener_core::wire::hello::{self, HelloError};
use evener_core::wire::http::is_http;
use std::sync::Arc;
use std::time::Duration;

/// Maximum time to linger while the program drains, if the client receives nothing in that time: such a client
/// must not delay the exit.
const DRAIN_LINGER: Duration = Duration::from_secs(1);
/// Minimum idle time of a client that is closed to free descriptors. A client that was idle for a shorter time
/// may have its next request under way, and is closed after a response instead.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// Session of a client.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    mode: Mode,
}

/// Stage of a session.
#[derive(Debug)]
enum Mode {
    /// The PROXY header is awaited.
    Proxy,
    /// A TLS handshake is under way; its permit, and the server name that the client requests.
    Handshake(Option<Lease>, Option<String>),
    /// Requests of HTTP/1.
    Http1(Box<Http1>),
    /// Streams of HTTP/2.
    Http2(Box<Http2>),
    /// This exchange relays bytes in both directions.
    Relay(ExchangeKey),
    /// The client was refused; its connection stays open without a response for a time.
    Tarpit,
    /// All bytes are sent; the client is drained for a limited time. Contains the number of drained bytes.
    Lingering(usize),
    /// The session has ended; it is freed after the present events.
    Ended,
}

impl Session {
    /// Returns whether the session uses HTTP, no request is under way, and no bytes wait in either direction.
    fn is_idle(&self) -> bool {
        let quiet = self.client.transport.unread().is_empty() && self.client.transport.pending() == 0;
        quiet
            && match &self.mode {
                Mode::Http1(http) => http.is_idle(),
                Mode::Http2(http) => http.is_idle(),
                _ => false,
            }
    }

    /// Returns whether the session may be closed to free descriptors: a request was served, and the session has
    /// been idle for long enough.
    fn may_be_shed(&self, now: Time) -> bool {
        self.client.is_served() && self.is_idle() && now.since(self.client.active_at) >= QUIET_MIN
    }

    fn has_ended(&self) -> bool {
        matches!(self.mode, Mode::Ended)
    }
}

#[cfg(test)]
impl Session {
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Makes the session use HTTP/2, as if the TLS handshake had negotiated HTTP/2.
    pub(super) fn become_http2(&mut self, http2: Http2) {
        self.mode = Mode::Http2(Box::new(http2));
    }
}

impl Http {
    /// Begins a session with an accepted client.
    pub(crate) fn begin(&mut self, cx: &mut Context, accepted: Accepted) {
        let awaits_proxy = accepted.settings.is_proxy(accepted.peer.ip());
        let key = self.sessions.insert_with(|key| {
            let client = Client::new(key, cx, accepted);
            Box::new(Session { client, mode: Mode::Proxy })
        });
        if cx.registry.register(self.sessions[key].client.transport.socket(), Token::Session(key)).is_err() {
            return self.close(cx, key);
        }
        if awaits_proxy {
            self.shared.session_timers.set(key, cx.now + PREAMBLE);
        } else {
            self.admit(cx, key);
        }
    }

    /// Applies the access list and the limits, once the client's address is known.
    fn admit(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let address = client.origin.client().ip();
        match admit(&client.service, &client.settings, address, cx.id, cx.now) {
            Admission::Enter(admitted) => {
                client.enter(cx, admitted);
                self.begin_tls(cx, key);
            }
            // An HTTP response is possible only without TLS: a handshake would cost too much for a refused
            // client.
            Admission::Refused(Refused::Reject, reason)
                if client.settings.http.is_some() && client.settings.tls.is_none() =>
            {
                *mode = Mode::Http1(Box::new(Http1::refusing(reason)));
                let patience = client.settings.http.as_ref().map_or(PREAMBLE, |spec| spec.header_timeout);
                self.shared.session_timers.set(key, cx.now + patience);
                self.drive(cx, key);
            }
            Admission::Refused(refused, reason) => {
                client.note_connection(cx, Traffic::Connection, reason.into());
                self.refuse(cx, key, refused);
            }
        }
    }

    /// Refuses a client without a response.
    fn refuse(&mut self, cx: &mut Context, key: SessionKey, refused: Refused) {
        let Session { client, mode } = &mut *self.sessions[key];
        match refused {
            Refused::Drop => self.close(cx, key),
            Refused::Reject => {
                reset_at_close(client.transport.socket());
                self.close(cx, key);
            }
            Refused::Tarpit(slot, time) => {
                client.enter_tarpit(slot);
                *mode = Mode::Tarpit;
                self.shared.session_timers.set(key, cx.now + time);
            }
        }
    }

    /// Begins the TLS handshake, if the service has TLS.
    fn begin_tls(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Some(acceptor) = client.settings.tls.clone() else { return self.begin_protocol(cx, key) };
        let counters = client.service.live.counters.of(cx.id);
        let Some(permit) = client.service.enter_handshake(acceptor.handshakes_max) else {
            counters.tls_refused.one();
            client.note_connection(cx, Traffic::Handshake, Reason::TlsBusy.into());
            return self.close(cx, key);
        };
        *mode = Mode::Handshake(Some(permit), None);
        self.shared.session_timers.set(key, cx.now + acceptor.handshake_timeout);
        self.drive(cx, key);
    }

    /// Begins HTTP or a relay, after the PROXY header and TLS.
    fn begin_protocol(&mut self, cx: &mut Context, key: SessionKey) {
        self.shared.session_timers.clear(key);
        let Session { client, mode } = &mut *self.sessions[key];
        client.active_at = cx.now;
        if let Some(http) = client.settings.http.clone() {
            client.record_local_address();
            *mode = if client.facts.as_ref().is_some_and(|facts| facts.is_http2()) {
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
            client.note_connection(cx, Traffic::Connection, Reason::NoRoute.into());
            return self.close(cx, key);
        };
        *mode = Mode::Relay(self.shared.begin(Exchange::new(client, backend, cx)));
        // The first bytes of the client may have been received already, so that no event reports them.
        self.drive(cx, key);
    }

    /// Handles an event of the client's socket.
    pub(crate) fn on_session_event(&mut self, cx: &mut Context, key: SessionKey, ready: Readiness) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.client.on_event(ready);
        self.drive(cx, key);
    }

    /// Continues a session from the ready queue.
    pub(crate) fn resume(&mut self, cx: &mut Context, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.client.leave_queue();
        self.drive(cx, key);
    }

    /// Handles an event of a server's socket.
    pub(crate) fn on_server_event(
        &mut self,
        cx: &mut Context,
        server_key: ServerConnectionKey,
        ready: Readiness,
    ) {
        let Some(exchange_key) = self.shared.exchange_on(server_key) else {
            return self.shared.on_unused_event(cx, server_key, ready);
        };
        let client = &mut self.sessions[self.shared.exchanges[exchange_key].session()].client;
        let progress = self.shared.on_server_event(cx, client, (exchange_key, server_key), ready);
        self.on_progress(cx, exchange_key, progress);
    }

    /// Gives a server to an exchange that waits in a queue; returns whether the exchange has left the queue.
    pub(crate) fn serve_queued(&mut self, cx: &mut Context, exchange_key: ExchangeKey) -> bool {
        let client = &mut self.sessions[self.shared.exchanges[exchange_key].session()].client;
        let served = self.shared.serve_queued(cx, client, exchange_key);
        if served {
            self.on_progress(cx, exchange_key, Progress::Moved);
        }
        served
    }

    /// Passes the progress of an exchange to the protocol of its session.
    fn on_progress(&mut self, cx: &mut Context, exchange_key: ExchangeKey, progress: Progress) {
        let Some(exchange) = self.shared.exchanges.get(exchange_key).filter(|_| progress == Progress::Moved)
        else {
            return;
        };
        let key = exchange.session();
        let Session { client, mode } = &mut *self.sessions[key];
        if let Mode::Http2(http) = mode {
            let after = http.on_progress(cx, client, &mut self.shared, exchange_key);
            self.settle(cx, key, after);
        } else {
            self.drive(cx, key);
        }
    }

    /// Handles the deadline of an exchange.
    pub(super) fn on_exchange_deadline(&mut self, cx: &mut Context, exchange_key: ExchangeKey) {
        // An event that was handled before may have set a new deadline.
        if self.shared.exchange_timers.is_set(exchange_key) {
            return;
        }
        let Some(exchange) = self.shared.exchanges.get(exchange_key) else { return };
        let key = exchange.session();
        let Session { client, mode } = &mut *self.sessions[key];
        if !matches!(exchange.reach(), Reach::Open(_)) {
            let progress = self.shared.on_reach_deadline(cx, client, exchange_key);
            return self.on_progress(cx, exchange_key, progress);
        }
        let after = match mode {
            Mode::Http2(http) if exchange.has_moving_stream() => {
                http.on_stalled(cx, client, &mut self.shared, exchange_key)
            }
            Mode::Http2(http) => http.on_response_deadline(cx, client, &mut self.shared, exchange_key),
            Mode::Http1(http) => http.on_response_deadline(cx, client, &mut self.shared, exchange_key),
            _ => return,
        };
        self.settle(cx, key, after);
    }

    /// Continues a session until it has to wait.
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
            Mode::Relay(exchange_key) => {
                let exchange_key = *exchange_key;
                self.relay(cx, key, exchange_key);
            }
            Mode::Lingering(_) => self.linger(cx, key),
            Mode::Tarpit | Mode::Ended => {}
        }
    }

    /// Applies the decision of a protocol to its session.
    fn settle(&mut self, cx: &mut Context, key: SessionKey, after: After) {
        match after {
            After::Stays => {}
            After::Finish => self.finish(cx, key),
            After::Close => self.close(cx, key),
            After::Tarpit => self.enter(cx, key, Mode::Tarpit),
            After::Relay(exchange_key) => {
                self.sessions[key].mode = Mode::Relay(exchange_key);
                self.relay(cx, key, exchange_key);
            }
        }
    }

    fn relay(&mut self, cx: &mut Context, key: SessionKey, exchange_key: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        match tunnel::pump(cx, client, &mut self.shared, exchange_key) {
            Relayed::Again => client.queue(cx),
            Relayed::Blocked => {}
            Relayed::Finished => {
                self.shared.end(cx, client, exchange_key, Keep::Unserved);
                self.close(cx, key);
            }
            Relayed::MustDrain => {
                self.shared.end(cx, client, exchange_key, Keep::Unserved);
                self.finish(cx, key);
            }
            Relayed::Broken => self.close(cx, key),
            Relayed::Reset => self.on_server_reset(cx, key, exchange_key),
        }
    }

    /// Handles a reset by the server of a relay. A client that has received everything is reset. Any other
    /// client may receive the remaining bytes first, which a reset would destroy.
    fn on_server_reset(&mut self, cx: &mut Context, key: SessionKey, exchange_key: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        if let Some(exchange) = self.shared.exchanges.get_mut(exchange_key) {
            exchange.log_server_reset();
        }
        self.shared.end(cx, client, exchange_key, Keep::No);
        if client.transport.left() > 0 {
            return self.finish(cx, key);
        }
        reset_at_close(client.transport.socket());
        self.close(cx, key);
    }

    fn read_proxy(&mut self, cx: &mut Context, key: SessionKey) {
        loop {
            let client = &mut self.sessions[key].client;
            match preamble::read_proxy(client.transport.unread(), &mut client.origin) {
                Ok(Some(length)) => {
                    client.transport.consume(length);
                    client.transport.settle(&mut self.shared.buffers);
                    if client.origin.is_loop() {
                        note_loop(cx, &client.service);
                        client.note_connection(cx, Traffic::Connection, Reason::Loop.into());
                        return self.close(cx, key);
                    }
                    self.shared.session_timers.clear(key);
                    return self.admit(cx, key);
                }
                Ok(None) if client.transport.receive(&mut self.shared.buffers) == Received::Some => {}
                Ok(None) if client.transport.end().is_none() => return,
                Ok(None) => return self.close(cx, key),
                Err(error) => {
                    client.service.live.counters.of(cx.id).preamble_refused.one();
                    let cause = preamble::cause_of_header(error, client.transport.unread());
                    client.note_connection(cx, Traffic::Connection, cause);
                    return self.close(cx, key);
                }
            }
        }
    }

    /// Continues the TLS handshake. The ClientHello is parsed for the server name before rustls gets all bytes.
    fn shake_hands(&mut self, cx: &mut Context, key: SessionKey) {
        loop {
            let Session { client, mode } = &mut *self.sessions[key];
            let Mode::Handshake(_, name) = mode else { return };
            let buffers = &mut self.shared.buffers;
            if client.transport.tls().is_none() {
                match hello::parse(client.transport.unread()) {
                    Ok(None) if client.transport.end().is_none() => {}
                    Ok(None) if client.transport.unread().is_empty() => {
                        client.note_connection(cx, Traffic::Handshake, Reason::Unused.into());
                        return self.close(cx, key);
                    }
                    Err(HelloError::NotTls) if is_http(client.transport.unread()) != Some(false) => {
                        if is_http(client.transport.unread()) == Some(true) {
                            return self.refuse_plain_http(cx, key);
                        }
                        if client.transport.receive(buffers) == Received::Some {
                            continue;
                        }
                        if client.transport.end().is_none() {
                            return;
                        }
                        client.note_connection(cx, Traffic::Handshake, Reason::NotTls.into());
                        return self.close(cx, key);
                    }
                    // A malformed ClientHello is left to rustls, which sends the right alert.
                    found => {
                        *name = found.ok().flatten().and_then(|hello| hello.name);
                        let tls = client.settings.tls.as_ref().and_then(|tls| Tls::server(&tls.config).ok());
                        let Some(tls) = tls else { return self.close(cx, key) };
                        client.transport.begin_tls(tls, buffers);
                    }
                }
            }
            let established = client.transport.tls().is_some() && client.transport.is_established();
            if client.transport.tls_failure().is_some() || (client.transport.end().is_some() && !established)
            {
                client.service.live.counters.of(cx.id).tls_failed.one();
                client.note_connection(cx, Traffic::Handshake, client.handshake_failure());
                return self.finish(cx, key);
            }
            if established {
                return self.end_handshake(cx, key);
            }
            if client.transport.receive(buffers) == Received::Nothing && client.transport.end().is_none() {
                return client.transport.flush(buffers);
            }
        }
    }

    /// Responds to a request of plain HTTP at a port that expects TLS. The request need not be complete. Clients
    /// of HTTP/2 get the response of HTTP/1.1, too. A service without HTTP only closes the connection.
    fn refuse_plain_http(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, .. } = &mut *self.sessions[key];
        client.service.live.counters.of(cx.id).tls_failed.one();
        client.note_connection(cx, Traffic::Handshake, Reason::PlainHttp.into());
        if client.settings.http.is_some() {
            let is_head = client.transport.unread().starts_with(b"HEAD ");
            let mut out = std::mem::take(&mut self.shared.headers.out);
            let response = LocalResponse::page(Reason::PlainHttp).for_method(is_head);
            client.begin_partial_log_entry(cx.now);
            client.log_local_response(cx, &response);
            response.write(Afterwards::Closes, &mut out);
            client.transport.send(&out, &mut self.shared.buffers);
            out.clear();
            self.shared.headers.out = out;
        }
        client.transport.consume(usize::MAX);
        client.transport.settle(&mut self.shared.buffers);
        // The client is drained for a time, so that a reset does not destroy the response.
        self.finish(cx, key);
    }

    fn end_handshake(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Mode::Handshake(permit, name) = mode else { return };
        drop(permit.take());
        let name = name.take();
        client.facts = client.transport.tls().map(|tls| Box::new(tls.facts(name)));
        let counters = client.service.live.counters.of(cx.id);
        counters.tls_handshakes.one();
        if client.facts.as_ref().is_some_and(|facts| facts.is_resumed()) {
            counters.tls_resumed.one();
        }
        self.begin_protocol(cx, key);
    }

    /// Ends the sending direction, and drains the client until the client ends, so that a reset does not
    /// destroy bytes that the client has not read yet.
    fn finish(&mut self, cx: &mut Context, key: SessionKey) {
        self.sessions[key].client.transport.finish(&mut self.shared.buffers);
        self.enter(cx, key, Mode::Lingering(0));
        let time = if cx.draining { DRAIN_LINGER } else { LINGER };
        self.shared.session_timers.set(key, cx.now + time);
        self.linger(cx, key);
    }

    /// Puts a session into another mode. The previous mode gives up its exchanges and connections to servers.
    fn enter(&mut self, cx: &mut Context, key: SessionKey, mode: Mode) {
        let Session { client, mode: present } = &mut *self.sessions[key];
        match std::mem::replace(present, mode) {
            Mode::Relay(exchange_key) => self.shared.abandon(cx, client, exchange_key),
            Mode::Http1(mut http) => http.end(cx, client, &mut self.shared),
            Mode::Http2(http) => http.end(cx, client, &mut self.shared),
            Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Ended => {}
        }
    }

    fn linger(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let Mode::Lingering(bytes_received) = mode else { return };
        let (transport, buffers) = (&mut client.transport, &mut self.shared.buffers);
        for _ in 0..ROUNDS_MAX {
            transport.flush(buffers);
            let received = transport.receive(buffers);
            *bytes_received += transport.unread().len();
            transport.consume(usize::MAX);
            transport.settle(buffers);
            let over = transport.end().is_some() && transport.is_finished();
            let failed = transport.is_broken() || matches!(transport.end(), Some(End::Error(_)));
            if over || failed || *bytes_received > LINGER_BYTES_MAX {
                return self.close(cx, key);
            }
            if received == Received::Nothing {
                return;
            }
        }
        client.queue(cx);
    }

    /// Extends the lingering of a client that still receives its response while the program drains, up to the
    /// drain timeout. Closes any other client.
    fn extend_linger(&mut self, cx: &mut Context, key: SessionKey) {
        if self.sessions[key].client.is_taking() {
            self.shared.session_timers.set(key, cx.now + DRAIN_LINGER);
        } else {
            self.close(cx, key);
        }
    }

    /// Handles the deadline of a session.
    pub(super) fn on_session_deadline(&mut self, cx: &mut Context, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Session { client, mode } = &mut **session;
        let after = match mode {
            Mode::Proxy => {
                client.service.live.counters.of(cx.id).preamble_timeouts.one();
                client.note_connection(cx, Traffic::Connection, Reason::PreambleTimeout.into());
                After::Close
            }
            Mode::Handshake(..) => {
                client.service.live.counters.of(cx.id).preamble_timeouts.one();
                client.note_connection(cx, Traffic::Handshake, Reason::TlsTimeout.into());
                After::Close
            }
            Mode::Http1(http) => http.on_deadline(cx, client, &mut self.shared),
            Mode::Http2(http) => http.on_deadline(cx, client, &mut self.shared),
            Mode::Relay(exchange_key) => {
                let exchange_key = *exchange_key;
                return self.on_idle_relay(cx, key, exchange_key);
            }
            Mode::Lingering(_) if cx.draining && client.transport.left() > 0 => {
                return self.extend_linger(cx, key);
            }
            Mode::Tarpit | Mode::Lingering(_) | Mode::Ended => After::Close,
        };
        self.settle(cx, key, after);
    }

    /// Closes a relay in which no byte moved for too long.
    fn on_idle_relay(&mut self, cx: &mut Context, key: SessionKey, exchange_key: ExchangeKey) {
        let client = &mut self.sessions[key].client;
        let is_half_closed = match self.shared.exchanges.get(exchange_key).map(|exchange| exchange.reach()) {
            Some(Reach::Open(server_key)) => {
                tunnel::is_half_closed(&client.transport, &self.shared.servers[server_key].transport)
            }
            _ => false,
        };
        let Some(quiet) = client.settings.options.traffic_timeout(is_half_closed) else { return };
        let deadline = client.active_at + quiet;
        if deadline > cx.now {
            return self.shared.session_timers.set(key, deadline);
        }
        client.service.live.counters.of(cx.id).timeouts(is_half_closed).one();
        client.note_idle_relay(cx);
        self.shared.end(cx, client, exchange_key, Keep::No);
        self.close(cx, key);
    }

    /// Ends a session. It is freed after the present events.
    fn close(&mut self, cx: &mut Context, key: SessionKey) {
        if self.sessions.get(key).is_none_or(|session| session.has_ended()) {
            return;
        }
        self.enter(cx, key, Mode::Ended);
        self.shared.session_timers.clear(key);
        self.ended.push(key);
    }

    /// Frees ended sessions. Connections to servers are freed first, because other sessions may wait for the
    /// permits of these connections.
    pub(crate) fn reap(&mut self, cx: &mut Context) {
        self.shared.reap();
        while let Some(key) = self.ended.pop() {
            let Some(mut session) = self.sessions.remove(key) else { continue };
            session.client.end_connection_entry(cx);
            session.client.transport.release(&mut self.shared.buffers);
            let service = Arc::clone(&session.client.service);
            drop(session);
            service.wake_waiting(cx);
        }
    }
}
