//! HTTP and TLS: sessions with clients, exchanges with servers.

pub(crate) mod exchange;
pub(crate) mod http1;
pub(crate) mod http2;
mod list;
pub(crate) mod message;
mod pooled;
pub(crate) mod session;
pub(crate) mod tunnel;

use self::exchange::{Exchange, ServerLink};
use self::http1::Heads;
use self::pooled::Pooled;
use self::session::Session;
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey, Table, of};
use crate::context::timers::Timers;
use crate::io::transport::Buffers;
use crate::service::accepted::Accepted;
use crate::service::ending::Ending;
use evener_core::Time;
use mio::event::Event;
use std::sync::Arc;
use std::time::Duration;

/// The clients of one worker that speak HTTP or TLS.
pub(crate) struct Http {
    pub(crate) sessions: Table<of::Session, Box<Session>>,
    pub(crate) exchanges: Table<of::Exchange, Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(crate) servers: Table<of::ServerLink, Box<ServerLink>>,
    /// Those of them that no exchange has.
    pooled: Pooled,
    pub(crate) session_timers: Timers<SessionKey>,
    pub(crate) exchange_timers: Timers<ExchangeKey>,
    pub(crate) server_timers: Timers<ServerLinkKey>,
    pub(crate) buffers: Buffers,
    pub(crate) heads: Heads,
    /// Sessions that ended during the present events.
    pub(crate) sessions_over: Vec<SessionKey>,
    pub(crate) servers_over: Vec<ServerLinkKey>,
}

impl Http {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            sessions: Table::default(),
            exchanges: Table::default(),
            servers: Table::default(),
            pooled: Pooled::new(seed),
            session_timers: Timers::new(),
            exchange_timers: Timers::new(),
            server_timers: Timers::new(),
            buffers: Buffers::default(),
            heads: Heads::default(),
            sessions_over: Vec::new(),
            servers_over: Vec::new(),
        }
    }
    /// A client was accepted.
    pub(crate) fn begin(&mut self, cx: &mut Context, accepted: Accepted) {
        session::begin(self, cx, accepted);
    }

    /// Something happened at a client's socket.
    pub(crate) fn on_session_event(&mut self, cx: &mut Context, index: SessionKey, event: &Event) {
        session::on_event(self, cx, index, event);
    }

    /// Something happened at a server's socket.
    pub(crate) fn on_server_event(&mut self, cx: &mut Context, slot: ServerLinkKey, event: &Event) {
        exchange::on_event(self, cx, slot, event);
    }

    /// A session has its turn again.
    pub(crate) fn resume(&mut self, cx: &mut Context, index: SessionKey) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        session.queued = false;
        session::drive(self, cx, index);
    }

    /// Gives a server to an exchange that waits in a queue; returns whether it does not wait any more.
    pub(crate) fn serve_queued(&mut self, cx: &mut Context, number: ExchangeKey) -> bool {
        exchange::serve_queued(self, cx, number)
    }

    /// Handles the deadlines that came.
    pub(crate) fn on_deadlines(&mut self, cx: &mut Context) {
        let mut due = Vec::new();
        self.session_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|key| session::on_deadline(self, cx, key));
        let mut due = Vec::new();
        self.exchange_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|key| exchange::on_deadline(self, cx, key));
        let mut due = Vec::new();
        self.server_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|key| exchange::on_idle_deadline(self, cx, key));
    }

    /// Returns how long nothing can be due; `None` when there is no deadline.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        let waits =
            [self.session_timers.wait(now), self.exchange_timers.wait(now), self.server_timers.wait(now)];
        waits.into_iter().flatten().min()
    }

    /// Has idle clients leave, and others after their present response.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        let sessions = self.sessions.keys(|_| true);
        sessions.into_iter().for_each(|index| session::on_drain(self, cx, index));
    }

    /// Closes all sessions.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        let all = self.sessions.keys(|_| true);
        all.into_iter().for_each(|index| session::cut(self, cx, index));
    }

    /// Closes the session with this number; returns whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        list::close_numbered(self, cx, number)
    }

    /// Ends the exchanges with a server, and its pooled connections; returns how many exchanges there were.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        exchange::end_server(self, cx, ending)
    }

    /// Closes pooled connections to servers, the longest idle first; returns how many.
    pub(crate) fn shed_pooled(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        exchange::shed_idle(self, cx, wanted)
    }

    /// Closes sessions that were served and are idle, the longest idle first; returns how many descriptors that frees.
    pub(crate) fn shed(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        session::shed_idle(self, cx, wanted)
    }

    /// Frees what ended. Connections to servers go first: sessions may wait for their slots.
    pub(crate) fn reap(&mut self, cx: &mut Context) {
        while let Some(slot) = self.servers_over.pop() {
            let Some(mut server) = self.servers.remove(slot) else { continue };
            server.link.release(&mut self.buffers);
        }
        while let Some(index) = self.sessions_over.pop() {
            let Some(mut session) = self.sessions.remove(index) else { continue };
            session.link.release(&mut self.buffers);
            let service = Arc::clone(&session.service);
            drop(session);
            service.wake_waiting(cx);
        }
    }
}
