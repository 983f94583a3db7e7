//! Queries: from the cache, or to one server after another until one responds.

mod alter;
mod attempt;
mod choose;
mod coalesce;
pub(super) mod declined;
mod failure;
mod hop;
mod log;
mod notes;
mod response;
pub(super) mod transfers;

use self::notes::{cause_of_message, note_query, rate_verdict};
use crate::context::Context;
use crate::context::keys::{DnsSocketKey, DnsStreamKey, PersistentKey, QueryKey};
use crate::context::report::Report;
use crate::dns::query::alter::Altered;
use crate::dns::query::attempt::EarlierAttempt;
use crate::dns::{Dns, Origin, Party, Requester};
use crate::service::Settings;
use crate::service::access_entry::AccessEntry;
use crate::service::admission;
use crate::service::hops::{HOPS_MAX, note_loop};
use evener_core::attempt::{Attempt, FailedTry};
use evener_core::clients::{ClientRecord, RefusedFor};
use evener_core::dns::{Freshness, RateVerdict};
use evener_core::health::Failure;
use evener_core::reason::Reason;
use evener_core::snapshot::{Choice, Entry, NoServer};
use evener_core::spec::{self, Dialect, DnsSpec};
use evener_core::wire::dns::{self as wire, QueryError, Transfer};
use evener_core::{ServerId, Time};
use std::sync::Arc;
use std::time::Duration;

/// Assumed average size of outstanding queries. If queries are larger, fewer of them can be outstanding.
const BYTES_HELD: usize = 512;
/// Maximum number of times that a query is sent again because its connection or socket closed.
const CUT_SHORT_MAX: u32 = 8;
/// Time without a message after which a transfer counts as finished or aborted.
pub(super) const TRANSFER_PAUSE: Duration = Duration::from_secs(30);

/// The response that a query waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    Nowhere,
    AtSocket(DnsSocketKey),
    AtStream(DnsStreamKey),
    AtPersistent(PersistentKey),
    /// The response to an equal query.
    AtQuery,
    /// The end of other transfers of its client.
    ForTurn,
}

/// An outstanding query.
pub(super) struct Query {
    requester: Requester,
    view: wire::Query,
    /// The message of the client, with the ID for the server.
    message: Vec<u8>,
    /// The client's ID.
    id: u16,
    /// The message for the server, if it differs from `message`.
    altered: Option<Altered>,
    choice: Option<Choice>,
    /// The record of the client.
    record: Option<Arc<ClientRecord>>,
    /// The entry in the log of the service, if it has one.
    entry: Option<Box<AccessEntry>>,
    waits: Waits,
    sent_at: Time,
    /// Earlier attempts that may still get a response.
    earlier: Vec<EarlierAttempt>,
    /// An earlier attempt was resumed instead of a new one.
    was_resumed: bool,
    /// Servers that did not respond, or cannot take the query.
    attempt: Attempt,
    /// The servers that cannot take the query.
    unfit: Vec<ServerId>,
    /// Number of further attempts that timeouts and declining responses may cause.
    retries: u32,
    /// The response of a server that declined, while other servers are queried.
    declined: Option<Vec<u8>>,
    /// If no server is left, silent servers may be queried again.
    may_repeat: bool,
    /// Number of connections and sockets that closed during the query, which is not a fault of the server.
    cut_short: u32,
    /// Equal queries that wait for the response, and their common key.
    followers: Vec<QueryKey>,
    coalesce_key: Option<Vec<u8>>,
    /// Number of response messages; only transfers of zones have several.
    pieces: u32,
    transfer: Transfer,
    /// The query counts among the running transfers of its client.
    has_turn: bool,
}

impl Query {
    pub(super) fn requester(&self) -> &Requester {
        &self.requester
    }

    /// Returns the client's ID.
    pub(super) fn client_id(&self) -> u16 {
        self.id
    }

    /// Returns the server of the current attempt.
    pub(super) fn server(&self) -> Option<Arc<Entry>> {
        self.choice.as_ref().map(|choice| Arc::clone(&choice.server))
    }

    pub(super) fn sent_at(&self) -> Time {
        self.sent_at
    }

    pub(super) fn is_waiting(&self, waits: Waits) -> bool {
        self.waits == waits
    }

    /// Sets the socket or connection where the current attempt waits, and the ID of the attempt.
    pub(super) fn wait(&mut self, waits: Waits, id: u16) {
        self.call(id);
        self.waits = waits;
    }

    pub(super) fn is_transfer(&self) -> bool {
        self.view.is_transfer()
    }

    pub(super) fn has_followers(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Counts a connection or socket that closed during the query. After too many of them the server is not
    /// queried again.
    fn bounded(&mut self, cause: Cause) -> Cause {
        let instead = match cause {
            Cause::CutShort | Cause::SessionLost => Cause::Refused,
            Cause::Closed => Cause::Local,
            Cause::Timeout | Cause::Refused | Cause::Local | Cause::Declined => return cause,
        };
        self.cut_short += 1;
        if self.cut_short > CUT_SHORT_MAX { instead } else { cause }
    }

    pub(super) fn into_message(self) -> Vec<u8> {
        self.message
    }

    /// Returns whether a second server may receive the query. Only standard queries certainly change nothing at
    /// a server; UPDATE (RFC 2136, section 3), NOTIFY and future operations may do so.
    pub(super) fn may_repeat_elsewhere(&self) -> bool {
        self.view.opcode() == 0
    }
}

/// Returns the DNS settings of a service.
pub(super) fn spec(settings: &Settings) -> Option<&DnsSpec> {
    settings.dns.as_ref().map(|dns| &*dns.spec)
}

/// Returns the time for a server to respond.
pub(super) fn timeout(settings: &Settings) -> Duration {
    spec(settings).map_or(Duration::MAX, |spec| spec.query_timeout)
}

/// Result of sending a query to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The query is sent.
    Yes,
    /// The server cannot take this query, which is not a failure.
    Unfit,
    /// The server cannot be reached, which is reported already.
    Failed,
    /// No descriptor or port is left.
    NoRoom,
}

/// Result of dispatching a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dispatched {
    Yes,
    /// The query waits for an earlier attempt, or is finished.
    No,
}

/// Reason for querying the next server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The timeout passed.
    Timeout,
    /// The failure was known immediately.
    Refused,
    /// The server cannot receive the query for a local reason, or was removed. It has not failed.
    Local,
    /// The server closed a reused connection. The server may be queried again.
    CutShort,
    /// The persistent connection ended after responses. The server can be queried again only after it is
    /// connected again.
    SessionLost,
    /// Evener closed the connection or the socket. The server may be queried again.
    Closed,
    /// The server declined.
    Declined,
}

impl Dns {
    /// Handles a message of a client.
    pub(super) fn take_query(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        mut requester: Requester,
        message: &[u8],
    ) {
        let view = &match hop::read(settings, &mut requester, message) {
            Ok(view) => view,
            Err(error) => return self.refuse(cx, settings, &requester, message, error),
        };
        let (requester, query) = (&requester, (view, message));
        let service = Arc::clone(&self.services[requester.service].service);
        let counters = service.live.counters.of(cx.id);
        counters.requests.one();
        let record = self.record_at_hand(cx, settings, requester);
        record.iter().for_each(|record| record.requested(cx.now));
        let verdict = rate_verdict(cx, settings, requester);
        if verdict != RateVerdict::Respond {
            counters.rate_limited.one();
            let rcode = (verdict == RateVerdict::Truncate).then_some(wire::NOERROR);
            self.log_refused(cx, settings, requester, query, (Reason::RateLimited, rcode));
            note_query(cx, &service, requester, Reason::RateLimited, None);
            record.iter().for_each(|record| record.refused(RefusedFor::Limit));
            if verdict == RateVerdict::Truncate {
                let mut out = self.spare();
                view.emit_truncated(message, None, &mut out);
                self.deliver(cx, requester, &out);
                self.give_back(out);
            }
            return;
        }
        if requester.party == Party::Rejected {
            self.note_refused(cx, settings, requester, query, (Reason::ClientDenied, Some(wire::REFUSED)));
            return self.respond_with_error(cx, requester, view, message, wire::REFUSED);
        }
        if view.hops(message) >= HOPS_MAX {
            note_loop(cx, &service);
            self.note_refused(cx, settings, requester, query, (Reason::Loop, Some(wire::SERVFAIL)));
            return self.respond_with_error(cx, requester, view, message, wire::SERVFAIL);
        }
        let cached = self.respond_from_cache(cx, settings, requester, view, message, Freshness::Fresh);
        if let Some(response) = cached {
            self.log_cached(cx, settings, requester, (view, message), response);
            counters.cache_lookups.hit.one();
            return;
        }
        let Some(spec) = spec(settings) else { return };
        let most = cx.share(spec.outstanding_max);
        let is_held = self.held >= most as usize * BYTES_HELD;
        if self.services[requester.service].in_flight >= most || is_held {
            counters.drops.outstanding.one();
            // Over UDP, excess queries get no response, because the client's address may be forged.
            let responds = matches!(requester.origin, Origin::Stream(_));
            let rcode = responds.then_some(wire::SERVFAIL);
            self.note_refused(cx, settings, requester, query, (Reason::Outstanding, rcode));
            if responds {
                self.respond_with_error(cx, requester, view, message, wire::SERVFAIL);
            }
            return;
        }
        let key = self.begin_query(cx, settings, requester, (view, message), record, spec.retries);
        self.start(cx, settings, key);
    }

    /// Handles a message that is not a query: with the shortest response, or none.
    fn refuse(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        requester: &Requester,
        message: &[u8],
        error: QueryError,
    ) {
        let service = Arc::clone(&self.services[requester.service].service);
        let counters = service.live.counters.of(cx.id);
        let (cause, rcode) = cause_of_message(error, message);
        note_query(cx, &service, requester, cause, rcode);
        match error {
            QueryError::Short | QueryError::Response => {
                counters.drops.no_query.one();
                if let Origin::Stream(client) = requester.origin {
                    self.abandon_client(cx, client);
                }
            }
            QueryError::Malformed => {
                counters.formerr.one();
                if rate_verdict(cx, settings, requester) == RateVerdict::Respond {
                    let mut out = self.spare();
                    wire::emit_malformed(message, &mut out);
                    self.deliver(cx, requester, &out);
                    self.give_back(out);
                }
            }
        }
    }

    fn begin_query(
        &mut self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        (view, message): (&wire::Query, &[u8]),
        known: Option<Arc<ClientRecord>>,
        retries: u32,
    ) -> QueryKey {
        let service = &self.services[requester.service].service;
        let is_counted = known.is_some();
        let record = known.or_else(|| admission::record_of(service, settings, requester.client.ip(), cx.now));
        if let Some(record) = &record {
            if matches!(requester.origin, Origin::Datagram(_)) {
                record.connected(cx.now);
            }
            if !is_counted {
                record.requested(cx.now);
            }
            record.moved(message.len() as u64, 0, cx.now);
        }
        let mut copy = self.spare();
        copy.extend_from_slice(view.whole(message));
        let view = view.without_hop_options(&mut copy, hop::cookies(settings, requester));
        view.count_hop(&mut copy);
        self.services[requester.service].in_flight += 1;
        self.held += copy.len();
        match &requester.origin {
            Origin::Datagram(path) => self.begin_listener_query(path),
            Origin::Stream(client) => self.begin_client_query(*client),
        }
        let entry = self.begin_entry(cx, settings, requester, (&view, &copy));
        self.queries.insert(Query {
            requester: *requester,
            view,
            id: wire::id(&copy),
            transfer: Transfer::of(&view, &copy),
            has_turn: false,
            message: copy,
            altered: None,
            choice: None,
            record,
            entry,
            waits: Waits::Nowhere,
            sent_at: cx.now,
            earlier: Vec::new(),
            was_resumed: false,
            attempt: Attempt::new(cx.id),
            unfit: Vec::new(),
            retries,
            declined: None,
            may_repeat: false,
            cut_short: 0,
            followers: Vec::new(),
            coalesce_key: None,
            pieces: 0,
        })
    }

    /// Sends a query to the first server that takes it.
    pub(super) fn dispatch(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) -> Dispatched {
        loop {
            let query = &self.queries[key];
            let Some(backend) = query.requester.backend(settings) else {
                self.fail(cx, settings, key, None);
                return Dispatched::No;
            };
            let snapshot = backend.pool.load();
            let (client, may_repeat) = (query.requester.client.ip(), query.may_repeat);
            let choice = match self.choose_server(cx, &snapshot, key) {
                Ok(choice) => choice,
                Err(reason) if may_repeat && reason != NoServer::RetryBudget => {
                    self.queries[key].may_repeat = false;
                    if self.resume_late_attempt(cx, settings, key) {
                        return Dispatched::No;
                    }
                    // All servers were queried: a query or response that was lost may get through now.
                    let query = &mut self.queries[key];
                    query.attempt.try_all_again(&query.unfit);
                    continue;
                }
                Err(_) if self.resume_any_attempt(cx, settings, key) => return Dispatched::No,
                Err(reason) => {
                    self.fail(cx, settings, key, Some(reason));
                    return Dispatched::No;
                }
            };
            let (server, why) = (Arc::clone(&choice.server), choice.why);
            let query = &mut self.queries[key];
            if let Some(entry) = &query.entry {
                entry.tried(&snapshot.pool, &server);
                entry.connected(cx.now);
            }
            query.choice = Some(choice);
            self.mark(cx, settings, key, &server);
            match self.give(cx, settings, key, &server) {
                Taken::Yes => {
                    snapshot.remember(client, server.id, cx.now);
                    server.live.counters.of(cx.id).requests.one();
                    return Dispatched::Yes;
                }
                Taken::Unfit => {
                    let query = &mut self.queries[key];
                    query.unfit.push(server.id);
                    query.attempt.failed(server.id, why, FailedTry::LOCAL);
                }
                Taken::Failed => self.queries[key].attempt.failed(server.id, why, FailedTry::QUICK),
                Taken::NoRoom => {
                    self.query_counters(cx, key, |counters| counters.drops.no_socket.one());
                    self.fail(cx, settings, key, None);
                    return Dispatched::No;
                }
            }
            self.queries[key].choice = None;
        }
    }

    fn give(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey, server: &Arc<Entry>) -> Taken {
        let query = &mut self.queries[key];
        query.sent_at = cx.now;
        let origin = query.requester.origin;
        let taken = match (server.dialect, origin) {
            (Dialect::Mname, _) if !query.view.has_question_section() => Taken::Unfit,
            (Dialect::Plain, Origin::Datagram(_)) => self.give_to_socket(cx, settings, key, server),
            (Dialect::Mname, Origin::Datagram(_)) => self.give_to_persistent(cx, key, server),
            (_, Origin::Stream(client)) => self.give_to_stream(cx, settings, key, client, server),
        };
        if let (Taken::Yes, Some(spec)) = (taken, spec(settings)) {
            self.query_timers.set(key, cx.now + spec.query_timeout);
        }
        taken
    }

    fn query_counters(
        &self,
        cx: &Context,
        key: QueryKey,
        count: impl FnOnce(&evener_core::counters::ServiceCounters),
    ) {
        let query = &self.queries[key];
        count(self.services[query.requester.service].service.live.counters.of(cx.id));
    }

    /// Handles the timeout of a query.
    pub(super) fn on_query_deadline(&mut self, cx: &mut Context, key: QueryKey) {
        let Some(query) = self.queries.get(key) else { return };
        let settings = self.services[query.requester.service].service.settings.load_full();
        if let (Waits::AtStream(at), Some(spec)) = (query.waits, spec(&settings))
            && self.was_stream_held(cx, at, spec.query_timeout)
        {
            // The client reads too slowly, so the stream to its server is not read.
            return self.query_timers.set(key, cx.now + spec.query_timeout);
        }
        if query.pieces > 0 {
            // Only the requester knows whether the transfer is complete.
            return drop(self.retire(cx, key));
        }
        if let Some(server) = query.choice.as_ref().map(|choice| Arc::clone(&choice.server)) {
            server.live.counters.of(cx.id).response_timeouts.one();
        }
        self.blame_overdue(cx, key);
        if self.queries[key].retries == 0 {
            self.blame_current(cx, key);
        }
        if let Waits::AtStream(at) = self.queries[key].waits {
            self.on_stream_silence(cx, at, self.queries[key].sent_at);
        }
        let query = &mut self.queries[key];
        if !query.may_repeat_elsewhere() && query.retries > 0 {
            // The server has the query, and may still respond.
            query.retries -= 1;
            return self.query_timers.set(key, cx.now + timeout(&settings));
        }
        // From the second timeout on, an expired response now is better than a fresh response after the
        // client's timeout (RFC 8767, section 5).
        let is_first = spec(&settings).is_none_or(|spec| self.queries[key].retries >= spec.retries);
        if !is_first && self.respond_stale(cx, &settings, key) {
            return;
        }
        self.again(cx, &settings, key, Cause::Timeout);
    }

    /// Reports that a query failed at a server.
    pub(super) fn report_failure(
        &self,
        cx: &Context,
        settings: &Settings,
        key: QueryKey,
        server: &Entry,
        failure: Failure,
    ) {
        let Some(backend) = self.queries[key].requester.backend(settings) else { return };
        let pool = backend.pool.load().pool.clone();
        cx.report(Report::Failure { pool, server: server.id, target: server.target.clone(), failure });
    }

    /// Queries the next server. If the query must not reach two servers, and the last one may have received it,
    /// the query fails instead.
    pub(super) fn again_unless_received(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        cause: Cause,
    ) {
        if self.queries[key].may_repeat_elsewhere() || self.is_moot(key) {
            return self.again(cx, settings, key, cause);
        }
        self.fail(cx, settings, key, Some(NoServer::Failed));
    }

    /// Queries the next server, unless the response is no longer needed or no retries are left.
    pub(super) fn again(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey, cause: Cause) {
        let chosen = self.queries[key].choice.as_ref().map(|choice| (choice.server.id, choice.why));
        if cause == Cause::Timeout {
            self.set_attempt_aside(key);
        } else {
            self.withdraw_attempt(cx, key);
        }
        if self.is_moot(key) {
            let mut query = self.retire(cx, key);
            self.part(cx, settings, &mut query);
            if let Origin::Stream(client) = query.requester.origin {
                // If the client is still connected, its transfer is incomplete.
                self.dismiss_client(client);
            }
            return self.give_back(query.message);
        }
        let query = &mut self.queries[key];
        let cause = query.bounded(cause);
        let exhausted = cause == Cause::Timeout && query.retries == 0;
        if cause == Cause::Timeout {
            query.retries = query.retries.saturating_sub(1);
            query.may_repeat = true;
        }
        match (chosen, cause) {
            (Some((server, _)), Cause::Declined) => query.attempt.retry_elsewhere(server),
            // The number of timeouts is bounded by `retries`.
            (Some((server, why)), Cause::Timeout | Cause::Refused) => {
                query.attempt.failed(server, why, FailedTry::QUICK);
            }
            (Some((server, why)), Cause::Local) => query.attempt.failed(server, why, FailedTry::LOCAL),
            (Some((server, _)), Cause::SessionLost) => {
                query.attempt.pass_over(server);
                query.attempt.repeat();
            }
            (_, Cause::CutShort) => query.attempt.repeat(),
            (_, Cause::Closed) => query.attempt.begin_anew(),
            (None, _) => {}
        }
        if exhausted {
            return self.fail(cx, settings, key, Some(NoServer::Failed));
        }
        let service = Arc::clone(&self.services[query.requester.service].service);
        if self.dispatch(cx, settings, key) == Dispatched::Yes {
            service.live.counters.of(cx.id).requests_retried.one();
        }
    }

    /// Returns whether the response is no longer needed, because the client is closed or has received a part of
    /// a transfer.
    fn is_moot(&mut self, key: QueryKey) -> bool {
        let query = &self.queries[key];
        match query.requester.origin {
            Origin::Datagram(_) => false,
            Origin::Stream(client) => query.pieces > 0 || self.open_client(client).is_none(),
        }
    }

    /// Removes a query and all references to it.
    pub(super) fn retire(&mut self, cx: &mut Context, key: QueryKey) -> Query {
        self.withdraw_earlier_attempts(cx, key);
        self.withdraw_attempt(cx, key);
        let mut query = self.queries.remove(key).expect("a query is retired once");
        self.leave_coalesced(&mut query);
        self.services[query.requester.service].in_flight -= 1;
        self.held -= query.message.len();
        wire::set_id(&mut query.message, query.id);
        self.end_transfer(&query);
        match &query.requester.origin {
            Origin::Datagram(path) => self.end_listener_query(path),
            Origin::Stream(client) => self.end_client_query(*client),
        }
        query
    }
}
