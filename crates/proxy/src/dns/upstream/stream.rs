//! Streams to servers. All clients share a few streams to each server, with many outstanding queries on each
//! stream. A client that is reported to the server (PROXY header, mname) has streams of its own, and so has
//! each zone transfer. Such a stream closes when its client or its transfer ends.

mod open;

use crate::context::Context;
use crate::context::keys::{DnsClientKey, DnsStreamKey, DnsUpstreamKey, QueryKey};
use crate::context::ready::Ready;
use crate::context::registry::Readiness;
use crate::context::report::Report;
use crate::dns::Dns;
use crate::dns::framed::{Framed, Received};
use crate::dns::query::{self, Cause, Taken, Waits};
use crate::dns::upstream::ids::Ids;
use crate::dns::upstream::persistent::{Session, v4_of};
use crate::io::connect::{count_failure, failed_try};
use crate::service::Settings;
use evener_core::attempt::{FailedTry, Fault};
use evener_core::snapshot::Entry;
use evener_core::spec::{Dialect, Transport};
use evener_core::wire::dns as wire;
use evener_core::wire::mname::{self, Frame};
use evener_core::{Target, Time};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::sync::Arc;
use std::time::Duration;

/// Number of unsent bytes from which on a stream takes no more queries.
const OUTBOX_MAX: usize = 262_144;
/// Maximum number of reads before other work continues.
const READS_MAX: usize = 8;
/// Idle time after which a shared stream is closed (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Maximum number of streams for a single client, besides streams of transfers.
const PERSONAL_MAX: usize = 8;
/// Maximum number of consecutive unexpected messages of a server.
const BAD_MAX: u32 = 1024;
/// Time for a server of mname to accept a TCP session.
const ACCEPT: Duration = Duration::from_secs(10);

/// Stage of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// Waiting for the acceptance of the session (mname).
    Accepting,
    Open,
    Over,
}

/// The users of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// All clients.
    All,
    /// One client.
    Client(DnsClientKey),
    /// One transfer of a client.
    Transfer(DnsClientKey),
}

/// A stream to a server.
pub(in crate::dns) struct Stream {
    upstream: DnsUpstreamKey,
    server: Arc<Entry>,
    pool: Arc<str>,
    framed: Framed,
    ids: Ids,
    owner: Owner,
    stage: Stage,
    /// At least one response arrived.
    was_used: bool,
    /// Time at which the connection attempt began.
    begun_at: Time,
    active_at: Time,
    /// Time of the last message.
    received_at: Time,
    /// Consecutive unexpected messages.
    bad: u32,
    /// The stream takes no more queries, and closes after the last outstanding one.
    is_given_up: bool,
    /// Time at which the client resumed reading after a pause.
    resumed_at: Option<Time>,
    /// The persistent connection with the mname server at the time when the stream was opened.
    session: Option<Session>,
    dirty: bool,
}

impl Stream {
    pub(in crate::dns) fn upstream(&self) -> DnsUpstreamKey {
        self.upstream
    }

    /// Returns whether no query waits at this stream.
    pub(in crate::dns) fn is_idle(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Cause of the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The server could not be reached, which is reported already.
    Failed(FailedTry),
    /// The server closed the stream.
    Broken,
    /// Evener closed the stream.
    Closed,
}

impl Ending {
    /// Returns the reason why the outstanding queries of the stream are sent again.
    fn cause(self, was_used: bool) -> Cause {
        match self {
            Self::Failed(FailedTry { fault: Fault::Server, .. }) => Cause::Refused,
            Self::Failed(_) => Cause::Local,
            Self::Broken if was_used => Cause::CutShort,
            Self::Broken => Cause::Refused,
            Self::Closed => Cause::Closed,
        }
    }
}

impl Dns {
    /// Sends a query of a client to a server.
    pub(in crate::dns) fn give_to_stream(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        client: DnsClientKey,
        server: &Arc<Entry>,
    ) -> Taken {
        let query = &self.queries[key];
        if server.dialect == Dialect::Mname && v4_of(query.requester().client).is_none() {
            return Taken::Unfit;
        }
        if self.open_client(client).is_none() {
            return Taken::Unfit;
        }
        let query = &self.queries[key];
        let is_introduced = query.requester().is_introduced(settings);
        let owner = if query.is_transfer() {
            Owner::Transfer(client)
        } else if is_introduced || server.dialect == Dialect::Mname {
            Owner::Client(client)
        } else {
            Owner::All
        };
        let served_by = query.requester().server(server.id);
        let upstream = self.find_upstream(cx, served_by, server);
        self.upstreams[upstream].used_at = cx.now;
        let at = match self.find_stream(settings, upstream, owner) {
            Some(at) => at,
            None if !self.may_open_stream(settings, upstream, owner) => return Taken::Unfit,
            None => match self.open_stream(cx, settings, key, upstream, server, owner) {
                Ok(at) => at,
                // The queue of the unix socket is full.
                Err(Errno::AGAIN) if matches!(server.target, Target::Unix(_)) => return Taken::Unfit,
                Err(error) => return self.on_unopened_stream(cx, settings, key, server, error),
            },
        };
        let (stream, query) = (&mut self.streams[at], &mut self.queries[key]);
        let id = match owner {
            Owner::All => stream.ids.give(key, &mut self.secrets),
            Owner::Client(_) | Owner::Transfer(_) => {
                stream.ids.keep(query.client_id(), key, &mut self.secrets)
            }
        };
        let Some(id) = id else { return Taken::Unfit };
        query.wait(Waits::AtStream(at), id);
        stream.framed.queue_message(query.framed());
        let bytes = query.framed().len() as u64 + 2;
        stream.active_at = cx.now;
        server.live.counters.of(cx.id).bytes_in.add(bytes);
        self.queue_stream(at);
        Taken::Yes
    }

    fn on_stream_connected(&mut self, cx: &Context, at: DnsStreamKey) {
        let stream = &mut self.streams[at];
        let counters = stream.server.live.counters.of(cx.id);
        counters.connections.one();
        counters.connect_seconds.record_since(stream.begun_at, cx.now);
        stream.server.live.transports.responded(Transport::Stream, cx.now);
        let (stage, time) = match stream.server.dialect {
            Dialect::Plain => (Stage::Open, IDLE),
            Dialect::Mname => (Stage::Accepting, ACCEPT),
        };
        stream.stage = stage;
        self.stream_timers.set(at, cx.now + time);
    }

    /// Handles an event of a stream's socket.
    pub(crate) fn on_stream_event(&mut self, cx: &mut Context, at: DnsStreamKey, event: Readiness) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        if event.readable || event.ended {
            stream.framed.set_readable();
        }
        if stream.stage == Stage::Connecting {
            let failed = sockopt::socket_error(stream.framed.socket());
            match failed.unwrap_or(Ok(())) {
                Err(error) => return self.on_stream_connect_error(cx, at, error),
                Ok(()) if event.writable => self.on_stream_connected(cx, at),
                Ok(()) => {}
            }
        }
        self.queue_stream(at);
    }

    fn on_stream_connect_error(&mut self, cx: &mut Context, at: DnsStreamKey, error: Errno) {
        let stream = &self.streams[at];
        let (pool, server) = (stream.pool.clone(), Arc::clone(&stream.server));
        note_stream_refusal(cx, pool, &server, error);
        self.end_stream(cx, at, Ending::Failed(failed_try(error)));
    }

    /// Lists a stream to be handled after the present events.
    pub(crate) fn queue_stream(&mut self, at: DnsStreamKey) {
        if let Some(stream) = self.streams.get_mut(at)
            && !std::mem::replace(&mut stream.dirty, true)
        {
            self.streams_dirty.push(at);
        }
    }

    /// Sends and reads within the limits.
    pub(in crate::dns) fn flush_stream(&mut self, cx: &mut Context, at: DnsStreamKey) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.dirty = false;
        if matches!(stream.stage, Stage::Over | Stage::Connecting) {
            return;
        }
        // Messages that the server sent before it closed are still received.
        let is_broken = stream.framed.flush().is_err();
        for _ in 0..READS_MAX {
            let stream = &self.streams[at];
            if stream.stage == Stage::Over || self.is_stream_held(at) {
                return;
            }
            if !stream.framed.is_readable() {
                if is_broken {
                    self.end_stream(cx, at, Ending::Broken);
                }
                return;
            }
            let mut buffer = self.take_buffer();
            let received = self.streams[at].framed.receive(&mut buffer);
            self.buffer = buffer;
            self.take_stream_responses(cx, at);
            match received {
                Ok(Received::Some | Received::Blocked) => {}
                Ok(Received::End) | Err(_) => return self.end_stream(cx, at, Ending::Broken),
            }
        }
        cx.ready.push(Ready::DnsStream(at));
    }

    /// Returns whether reading pauses, because the only client of the stream reads too slowly.
    fn is_stream_held(&self, at: DnsStreamKey) -> bool {
        match self.streams.get(at).map(|stream| stream.owner) {
            None | Some(Owner::All) => false,
            Some(Owner::Client(client) | Owner::Transfer(client)) => {
                self.clients.get(client).is_some_and(|client| client.is_slow())
            }
        }
    }

    /// Returns whether reading pauses, or paused within this time.
    pub(in crate::dns) fn was_stream_held(&self, cx: &Context, at: DnsStreamKey, within: Duration) -> bool {
        let resumed_at = self.streams.get(at).and_then(|stream| stream.resumed_at);
        self.is_stream_held(at) || resumed_at.is_some_and(|at| cx.now.since(at) < within)
    }

    /// Resumes a stream whose client reads again.
    pub(in crate::dns) fn resume_stream(&mut self, cx: &Context, at: DnsStreamKey) {
        if let Some(stream) = self.streams.get_mut(at) {
            stream.resumed_at = Some(cx.now);
            self.queue_stream(at);
        }
    }

    /// Handles the complete messages that were received.
    fn take_stream_responses(&mut self, cx: &mut Context, at: DnsStreamKey) {
        if self.streams[at].stage == Stage::Accepting && !self.take_acceptance(cx, at) {
            return;
        }
        let mut message = self.spare();
        while let Some(stream) = self.streams.get_mut(at).filter(|stream| stream.stage == Stage::Open) {
            if !stream.framed.take_message(&mut message) {
                break;
            }
            let id = wire::id(&message);
            let owner = stream.ids.owner(id);
            let owner = owner.filter(|key| self.queries[*key].is_response(&message));
            let Some(key) = owner else {
                // The response is late or forged.
                stream.server.live.counters.of(cx.id).responses_bad.one();
                stream.bad += 1;
                if stream.bad >= BAD_MAX {
                    self.end_stream(cx, at, Ending::Broken);
                }
                continue;
            };
            (stream.was_used, stream.active_at, stream.received_at) = (true, cx.now, cx.now);
            // The stream is slow, but alive.
            (stream.bad, stream.is_given_up) = (0, false);
            let upstream = stream.upstream;
            self.turn_to_attempt(key, Waits::AtStream(at), id);
            let query = &self.queries[key];
            let (sent_at, service) = (query.sent_at(), query.requester().service);
            let settings = self.services[service].service.settings.load_full();
            if let Some(upstream) = self.upstreams.get_mut(upstream) {
                upstream.on_response(cx.now, sent_at, query::timeout(&settings));
                upstream.live.transports.responded(Transport::Stream, cx.now);
            }
            self.pass_on(cx, &settings, key, &mut message);
        }
        self.give_back(message);
    }

    /// Reads the response of an mname server to a TCP session, and returns whether the server accepted the
    /// session.
    fn take_acceptance(&mut self, cx: &mut Context, at: DnsStreamKey) -> bool {
        let stream = &mut self.streams[at];
        match mname::parse(stream.framed.pending()) {
            Ok(None) => return false,
            Ok(Some((Frame::TcpOk, length))) => {
                stream.framed.consume(length);
                stream.framed.let_go();
                stream.stage = Stage::Open;
                self.stream_timers.set(at, cx.now + IDLE);
                self.queue_stream(at);
                self.close_stream_if_done(cx, at);
                return true;
            }
            Ok(Some(_)) | Err(_) => {}
        }
        self.fault_session(cx, at, "it responded to a TCP session with something else than its acceptance");
        self.end_stream(cx, at, Ending::Failed(FailedTry::QUICK));
        false
    }

    /// Ends the persistent connection with an mname server that did not accept a TCP session, unless that
    /// connection is newer than the stream.
    fn fault_session(&mut self, cx: &mut Context, at: DnsStreamKey, reason: &str) {
        let stream = &self.streams[at];
        if let Some(session) = stream.session {
            self.end_session(cx, session, reason);
        }
    }

    /// Closes a stream. Its outstanding queries are sent again, perhaps to other servers.
    fn end_stream(&mut self, cx: &mut Context, at: DnsStreamKey, ending: Ending) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        let stage = std::mem::replace(&mut stream.stage, Stage::Over);
        if stage == Stage::Over {
            return;
        }
        let (was_used, keys, upstream) = (stream.was_used, stream.ids.owners(), stream.upstream);
        if ending == Ending::Broken && !was_used && !keys.is_empty() {
            stream.server.live.counters.of(cx.id).responses_bad.one();
        }
        match stream.owner {
            Owner::All => {
                if let Some(upstream) = self.upstreams.get_mut(upstream) {
                    upstream.streams.retain(|other| *other != at);
                }
            }
            Owner::Client(client) | Owner::Transfer(client) => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.remove_stream(at);
                }
            }
        }
        self.stream_timers.clear(at);
        self.streams_over.push(at);
        for (id, key) in keys {
            if !self.is_current_attempt(cx, key, Waits::AtStream(at), id) {
                continue;
            }
            let query = &self.queries[key];
            let settings = self.services[query.requester().service].service.settings.load_full();
            let cause = ending.cause(was_used);
            if stage == Stage::Open {
                self.again_unless_received(cx, &settings, key, cause);
            } else {
                self.again(cx, &settings, key, cause);
            }
        }
    }

    /// Closes a stream.
    pub(in crate::dns) fn close_stream(&mut self, cx: &mut Context, at: DnsStreamKey) {
        self.end_stream(cx, at, Ending::Closed);
    }

    /// Removes a query that no longer waits at this stream.
    pub(in crate::dns) fn withdraw_from_stream(&mut self, cx: &mut Context, at: DnsStreamKey, id: u16) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.ids.free(id);
        self.close_stream_if_done(cx, at);
    }

    /// Closes an abandoned stream or the stream of a transfer, if no query waits there. A stream whose TCP
    /// session an mname server has not accepted yet stays open.
    fn close_stream_if_done(&mut self, cx: &mut Context, at: DnsStreamKey) {
        let stream = &self.streams[at];
        let takes_no_more = stream.is_given_up || matches!(stream.owner, Owner::Transfer(_));
        if takes_no_more && stream.ids.is_empty() && stream.stage != Stage::Accepting {
            self.close_stream(cx, at);
        }
    }

    /// Abandons a stream after a query without a response, if no message arrived since the query was sent. A
    /// server with late responses is an exception.
    pub(in crate::dns) fn on_stream_silence(&mut self, cx: &Context, at: DnsStreamKey, since: Time) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        let is_late = self.upstreams.get(stream.upstream).is_some_and(|upstream| upstream.is_late);
        let is_slow = is_late && cx.now.since(stream.received_at) < IDLE;
        stream.is_given_up |= stream.stage == Stage::Open && stream.received_at < since && !is_slow;
    }

    /// Returns whether a response may still arrive on a stream.
    pub(in crate::dns) fn is_stream_alive(&self, at: DnsStreamKey) -> bool {
        let stream = self.streams.get(at);
        stream.is_some_and(|stream| stream.stage != Stage::Over && !stream.is_given_up)
    }

    /// Handles a deadline: for a connection attempt, an acceptance, or an idle stream.
    pub(in crate::dns) fn on_stream_deadline(&mut self, cx: &mut Context, at: DnsStreamKey) {
        let Some(stream) = self.streams.get(at) else { return };
        match stream.stage {
            Stage::Over => {}
            Stage::Connecting => self.on_stream_connect_error(cx, at, Errno::TIMEDOUT),
            Stage::Accepting => {
                self.fault_session(cx, at, "it did not accept a TCP session within 10 s");
                self.end_stream(cx, at, Ending::Failed(FailedTry::SLOW));
            }
            Stage::Open => {
                let is_idle = stream.ids.is_empty() && cx.now.since(stream.active_at) >= IDLE;
                match stream.owner {
                    Owner::All if is_idle => self.close_stream(cx, at),
                    Owner::All => self.stream_timers.set(at, cx.now + IDLE),
                    // The stream ends with its client, or its transfer.
                    Owner::Client(_) | Owner::Transfer(_) => {}
                }
            }
        }
    }
}

/// Counts a stream that a server refused. The refusal is reported if it concerns the server as a whole: a
/// server without TCP is still queried over UDP.
fn note_stream_refusal(cx: &Context, pool: Arc<str>, server: &Entry, error: Errno) {
    let Some(failure) = count_failure(cx, &pool, server, error) else { return };
    let transports = &server.live.transports;
    transports.refused(Transport::Stream, cx.now);
    if server.dialect == Dialect::Mname || transports.is_telling(Transport::Stream, cx.now) {
        cx.report(Report::Failure { pool, server: server.id, target: server.target.clone(), failure });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_servers_make_the_queries_of_a_stream_retries() {
        let failed = |error| Ending::Failed(failed_try(error)).cause(false);
        assert_eq!(failed(Errno::CONNREFUSED), Cause::Refused);
        assert_eq!(failed(Errno::TIMEDOUT), Cause::Refused);
        assert_eq!(failed(Errno::ADDRNOTAVAIL), Cause::Local);
        assert_eq!(failed(Errno::PERM), Cause::Local);
        for (ending, fresh, used) in [
            (Ending::Broken, Cause::Refused, Cause::CutShort),
            (Ending::Closed, Cause::Closed, Cause::Closed),
        ] {
            assert_eq!([false, true].map(|was_used| ending.cause(was_used)), [fresh, used]);
        }
    }
}
