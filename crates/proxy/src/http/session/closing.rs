//! Closing of sessions by the program: while the program drains, to free descriptors, when all connections to a
//! server are ended, and by the number of a session.

use super::{DRAIN_LINGER, Mode, Session};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, SessionKey};
use crate::context::unserved::Traffic;
use crate::http::Http;
use crate::http::client::After;
use crate::http::exchange::Progress;
use crate::service::admission::reset_at_close;
use crate::service::ending::Ending;
use evener_core::Time;
use evener_core::reason::Reason;
use rustix::net::{RecvFlags, recv};

impl Http {
    /// Begins to drain: idle clients are closed now, other clients after their present response.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        self.sessions.keys(|_| true).into_iter().for_each(|key| self.on_drain(cx, key));
    }

    fn on_drain(&mut self, cx: &mut Context, key: SessionKey) {
        let Session { client, mode } = &mut *self.sessions[key];
        let after = match mode {
            Mode::Http1(http) => http.on_drain(cx, client, &mut self.shared),
            Mode::Http2(http) => http.on_drain(cx, client, &mut self.shared),
            Mode::Lingering(_) => return self.shared.session_timers.set(key, cx.now + DRAIN_LINGER),
            _ => return,
        };
        self.settle(cx, key, after);
    }

    /// Closes up to `wanted` idle sessions that were served, the longest idle first; returns the number of
    /// freed descriptors.
    pub(crate) fn shed(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        let idle = self.sessions.iter().filter(|(_, session)| session.may_be_shed(cx.now));
        let mut idle: Vec<(Time, SessionKey)> =
            idle.map(|(key, session)| (session.client.active_at, key)).collect();
        let count = idle.len().min(wanted as usize);
        if let Some(last) = count.checked_sub(1) {
            idle.select_nth_unstable_by_key(last, |(active_at, _)| *active_at);
        }
        let shed = idle[..count].iter().filter(|&&(_, key)| self.make_room(cx, key));
        2 * shed.count() as u32
    }

    /// Closes an idle client to free its descriptors; a client of HTTP/2 gets GOAWAY. Returns false if the
    /// client has just sent a request, and therefore stays.
    fn make_room(&mut self, cx: &mut Context, key: SessionKey) -> bool {
        let Session { client, mode } = &mut *self.sessions[key];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        if recv(client.transport.socket(), &mut [0], flags).is_ok_and(|(_, length)| length > 0) {
            return false;
        }
        client.service.live.counters.of(cx.id).closed.idle_shed.one();
        let after = if let Mode::Http2(http) = mode {
            http.dismiss(cx, client, &mut self.shared)
        } else {
            client.transport.finish(&mut self.shared.buffers);
            After::Close
        };
        self.settle(cx, key, after);
        true
    }

    /// Ends the exchanges with a server, and the pooled connections to this server; returns the number of ended
    /// exchanges.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let mut ended = 0;
        for server_key in self.shared.connections_of(ending) {
            if let Some(exchange_key) = self.shared.end_connection(cx, server_key) {
                ended += 1;
                self.on_server_ended(cx, exchange_key, ending);
            }
        }
        ended
    }

    fn on_server_ended(&mut self, cx: &mut Context, exchange_key: ExchangeKey, ending: &Ending) {
        let key = self.shared.exchanges[exchange_key].session();
        let Session { client, mode } = &*self.sessions[key];
        ending.counter(client.service.live.counters.of(cx.id)).one();
        self.shared.exchanges[exchange_key].end_for(ending.cause().reason());
        if matches!(mode, Mode::Relay(_)) {
            client.note_connection(cx, Traffic::Connection, ending.cause());
            reset_at_close(client.transport.socket());
            self.close(cx, key);
        } else {
            self.on_progress(cx, exchange_key, Progress::Moved);
        }
    }

    /// Counts and reports the requests, or the relay, that end with their session.
    fn note_closed(&mut self, cx: &Context, key: SessionKey, reason: Reason) {
        self.sessions[key].client.set_end_reason(reason);
        let Session { client, mode } = &*self.sessions[key];
        let requests = match mode {
            Mode::Http1(http) => http.exchange().into_iter().collect(),
            Mode::Http2(http) => http.exchanges(),
            Mode::Relay(_) => {
                client.note_connection(cx, Traffic::Connection, reason.into());
                return;
            }
            _ => return,
        };
        for exchange_key in requests {
            client.note_unserved(cx, reason.into(), None, || self.shared.exchanges[exchange_key].parties());
        }
    }

    /// Closes all sessions.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        for key in self.sessions.keys(|session| !session.has_ended()) {
            self.sessions[key].client.service.live.counters.of(cx.id).closed.drain_timeout.one();
            self.note_closed(cx, key, Reason::Drain);
            self.close(cx, key);
        }
    }

    /// Closes the session with this number. Returns false if there is no such session.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let found = self.sessions.keys(|session| session.client.number == number && !session.has_ended());
        let Some(&key) = found.first() else { return false };
        self.sessions[key].client.service.live.counters.of(cx.id).closed.operator.one();
        self.note_closed(cx, key, Reason::Operator);
        self.close(cx, key);
        true
    }
}
