//! Attempts of a query: the current one, and earlier ones without a response within `query_timeout`. While
//! the query is outstanding, a response to any of them counts. Their IDs stay taken, and responses are
//! checked in the same way. The next server is chosen elsewhere.

use crate::context::Context;
use crate::context::keys::{DnsUpstreamKey, QueryKey};
use crate::dns::Dns;
use crate::dns::query::{self, Query, Waits};
use crate::dns::upstream::Upstream;
use crate::dns::upstream::socket::Socket;
use crate::service::Settings;
use evener_core::Time;
use evener_core::health::Failure;
use evener_core::snapshot::{Choice, Entry};
use evener_core::spec::Dialect;

/// An attempt that is not the current one. A query has at most as many earlier attempts as retries.
pub(in crate::dns) struct EarlierAttempt {
    waits: Waits,
    id: u16,
    choice: Option<Choice>,
    sent_at: Time,
    /// The attempt timed out, and its server is not blamed yet.
    is_overdue: bool,
}

impl EarlierAttempt {
    fn is_at(&self, waits: Waits, id: u16) -> bool {
        self.waits == waits && self.id == id
    }
}

impl Query {
    /// Returns whether the current attempt is at `waits`, under this ID.
    pub(super) fn is_at(&self, waits: Waits, id: u16) -> bool {
        self.waits == waits && self.called() == id
    }

    /// Adds the current attempt to the earlier attempts.
    fn set_aside(&mut self, is_overdue: bool) {
        let (id, sent_at) = (self.called(), self.sent_at);
        let (waits, choice) = (std::mem::replace(&mut self.waits, Waits::Nowhere), self.choice.take());
        if matches!(waits, Waits::AtSocket(_) | Waits::AtStream(_) | Waits::AtPersistent(_)) {
            self.earlier.push(EarlierAttempt { waits, id, choice, sent_at, is_overdue });
        }
    }

    /// Makes an earlier attempt the current one.
    fn take_up(&mut self, position: usize) {
        let EarlierAttempt { waits, id, choice, sent_at, .. } = self.earlier.swap_remove(position);
        self.call(id);
        (self.waits, self.choice, self.sent_at) = (waits, choice, sent_at);
    }
}

impl Dns {
    /// Sets the current attempt aside after its timeout. A response to it still counts.
    pub(super) fn set_attempt_aside(&mut self, key: QueryKey) {
        self.query_timers.clear(key);
        let query = &mut self.queries[key];
        // The server of the last attempt is blamed already.
        query.set_aside(query.retries > 0);
    }

    /// Makes the attempt at `waits`, under this ID, the current attempt, because its response arrived.
    pub(in crate::dns) fn turn_to_attempt(&mut self, key: QueryKey, waits: Waits, id: u16) {
        let query = &mut self.queries[key];
        if !query.is_at(waits, id)
            && let Some(position) = query.earlier.iter().position(|attempt| attempt.is_at(waits, id))
        {
            // The attempt that was current so far did not time out.
            query.set_aside(false);
            query.take_up(position);
        }
    }

    /// Returns whether the current attempt is at `waits`, under this ID. An earlier attempt is removed, because
    /// it can get no response.
    pub(in crate::dns) fn is_current_attempt(
        &mut self,
        cx: &mut Context,
        key: QueryKey,
        waits: Waits,
        id: u16,
    ) -> bool {
        let Some(query) = self.queries.get_mut(key) else { return false };
        if query.is_at(waits, id) {
            return true;
        }
        let count = query.earlier.len();
        query.earlier.retain(|attempt| !attempt.is_at(waits, id));
        if query.earlier.len() < count {
            self.free_id(cx, key, waits, id);
        }
        false
    }

    /// Continues to wait for the latest earlier attempt that `is_worth_it` selects. Returns false if there is
    /// none.
    fn resume_attempt(
        &mut self,
        cx: &Context,
        settings: &Settings,
        key: QueryKey,
        is_worth_it: impl Fn(&Self, &EarlierAttempt) -> bool,
    ) -> bool {
        let Some(spec) = query::spec(settings) else { return false };
        let earlier = &self.queries[key].earlier;
        let Some(position) = earlier.iter().rposition(|attempt| is_worth_it(self, attempt)) else {
            return false;
        };
        self.queries[key].take_up(position);
        self.query_timers.set(key, cx.now + spec.query_timeout);
        true
    }

    /// Continues to wait for the latest earlier attempt, because no server is left.
    pub(super) fn resume_any_attempt(&mut self, cx: &Context, settings: &Settings, key: QueryKey) -> bool {
        self.resume_attempt(cx, settings, key, |_, _| true)
    }

    /// Continues to wait for an earlier attempt, after all servers were queried and may be queried again. A
    /// server gets the query again only if the query may have been lost: nothing is lost on a live connection,
    /// and a server whose last response was late has probably received the query.
    pub(super) fn resume_late_attempt(&mut self, cx: &Context, settings: &Settings, key: QueryKey) -> bool {
        let may_skip = !std::mem::replace(&mut self.queries[key].was_resumed, true);
        self.resume_attempt(cx, settings, key, |dns, attempt| match attempt.waits {
            Waits::AtSocket(_) => may_skip && dns.is_attempt_late(attempt.waits),
            Waits::AtStream(at) => dns.is_stream_alive(at),
            Waits::AtPersistent(_) => true,
            Waits::AtQuery | Waits::ForTurn | Waits::Nowhere => false,
        })
    }

    /// Returns whether the last response of the server of an attempt was late.
    fn is_attempt_late(&self, waits: Waits) -> bool {
        self.upstream_of_attempt(waits).and_then(|at| self.upstreams.get(at)).is_some_and(Upstream::is_late)
    }

    fn upstream_of_attempt(&self, waits: Waits) -> Option<DnsUpstreamKey> {
        match waits {
            Waits::AtSocket(at) => self.sockets.get(at).map(Socket::upstream),
            Waits::AtStream(at) => self.streams.get(at).map(|stream| stream.upstream()),
            Waits::AtPersistent(_) | Waits::AtQuery | Waits::ForTurn | Waits::Nowhere => None,
        }
    }

    /// Withdraws the current attempt. A response to it is ignored from now on.
    pub(super) fn withdraw_attempt(&mut self, cx: &mut Context, key: QueryKey) {
        self.query_timers.clear(key);
        let query = &mut self.queries[key];
        let id = query.called();
        let waits = std::mem::replace(&mut query.waits, Waits::Nowhere);
        self.free_id(cx, key, waits, id);
    }

    /// Withdraws all earlier attempts.
    pub(super) fn withdraw_earlier_attempts(&mut self, cx: &mut Context, key: QueryKey) {
        if self.queries[key].earlier.is_empty() {
            return;
        }
        self.blame_overdue(cx, key);
        for attempt in std::mem::take(&mut self.queries[key].earlier) {
            self.free_id(cx, key, attempt.waits, attempt.id);
        }
    }

    fn free_id(&mut self, cx: &mut Context, key: QueryKey, waits: Waits, id: u16) {
        match waits {
            Waits::AtSocket(at) => self.withdraw_from_socket(at, id),
            Waits::AtStream(at) => self.withdraw_from_stream(cx, at, id),
            Waits::AtPersistent(at) => self.withdraw_from_persistent(at, key, id),
            Waits::AtQuery | Waits::ForTurn | Waits::Nowhere => {}
        }
    }

    /// Blames the servers of earlier attempts that have been silent for another `query_timeout`, or until the
    /// query ended.
    pub(super) fn blame_overdue(&mut self, cx: &Context, key: QueryKey) {
        let mut earlier = std::mem::take(&mut self.queries[key].earlier);
        for attempt in &mut earlier {
            if std::mem::take(&mut attempt.is_overdue)
                && let Some(choice) = &attempt.choice
            {
                self.blame(cx, key, &choice.server, (attempt.waits, attempt.sent_at));
            }
        }
        self.queries[key].earlier = earlier;
    }

    /// Blames the server of the current attempt.
    pub(super) fn blame_current(&mut self, cx: &Context, key: QueryKey) {
        let query = &self.queries[key];
        if let Some(server) = query.choice.as_ref().map(|choice| choice.server.clone()) {
            let since = (query.waits, query.sent_at);
            self.blame(cx, key, &server, since);
        }
    }

    /// Reports the server of an attempt if the server has sent no response to any query since. One lost
    /// datagram is not a failure, and neither is one name that the server cannot resolve. Persistent
    /// connections have heartbeats instead.
    fn blame(&mut self, cx: &Context, key: QueryKey, server: &Entry, (waits, sent_at): (Waits, Time)) {
        let upstream = self.upstream_of_attempt(waits);
        let query = &self.queries[key];
        let Some(upstream) = upstream.and_then(|at| self.upstreams.get_mut(at)) else { return };
        if server.dialect != Dialect::Plain || upstream.has_responded_since(sent_at) {
            return;
        }
        if upstream.on_silence(query.view.question_section(&query.message), cx.now) {
            let settings = self.services[query.requester.service].service.settings.load_full();
            self.report_failure(cx, &settings, key, server, Failure::Silent);
        }
    }
}
