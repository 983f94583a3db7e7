//! Datagrams to servers. Each server is queried from a few random ports, with unguessable IDs. The sockets
//! are connected, so the kernel accepts only datagrams from the server's address (RFC 5452, section 4).

use crate::context::Context;
use crate::context::keys::{DnsSocketKey, DnsUpstreamKey, QueryKey, Table, of};
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::dns::listener::Datagram;
use crate::dns::listener::responses::Responses;
use crate::dns::query::declined;
use crate::dns::query::{self, Cause, Taken, Waits};
use crate::dns::upstream::ids::Ids;
use crate::dns::upstream::{self, Upstream};
use crate::dns::{Dns, Origin, ReturnPath};
use crate::io::batch::BATCH;
use crate::io::connect::{self, count_local_error, count_refusal, is_local_error};
use crate::io::source::SourceAddress;
use crate::service::{Service, Settings};
use evener_core::health::Failure;
use evener_core::snapshot::Entry;
use evener_core::spec::Transport;
use evener_core::wire::dns as wire;
use evener_core::{Target, Time};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of batches before other work continues.
const BATCHES_MAX: usize = 4;
/// Number of unexpected responses after which a port is given up: such responses may be guesses.
const UNEXPECTED_MAX: u32 = 1024;
/// Maximum age of a port. An attacker can use a port that was found out for a short time only.
const AGE_MAX: Duration = Duration::from_secs(60);

/// A socket to a server.
pub(in crate::dns) struct Socket {
    upstream: DnsUpstreamKey,
    socket: OwnedFd,
    ids: Ids,
    /// Queries that are sent after the present events, each with the length of its message.
    outgoing: Vec<(QueryKey, usize)>,
    /// Number of unexpected responses minus the number of expected responses.
    unexpected: u32,
    opened_at: Time,
}

impl Socket {
    pub(in crate::dns) fn upstream(&self) -> DnsUpstreamKey {
        self.upstream
    }

    /// Returns whether no query waits at this socket.
    pub(in crate::dns) fn is_idle(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Returns the effect of a local error on a query. A server that cannot be reached from the source address is
/// passed over, because other servers may be reachable.
pub(super) fn no_room(error: Errno) -> Taken {
    if error == Errno::ADDRNOTAVAIL { Taken::Unfit } else { Taken::NoRoom }
}

impl Dns {
    /// Sends a query to a server.
    pub(in crate::dns) fn give_to_socket(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        server: &Arc<Entry>,
    ) -> Taken {
        if !matches!(server.target, Target::Ip(_)) {
            return Taken::Unfit;
        }
        let served_by = self.queries[key].requester().server(server.id);
        let upstream = self.find_upstream(cx, served_by, server);
        let at = match self.socket_of(cx, upstream, settings) {
            Ok(at) => at,
            Err(error) if is_local_error(error) => {
                if let Some(backend) = self.queries[key].requester().backend(settings) {
                    count_local_error(cx, &backend.pool.load().pool, server.id, &server.live, error);
                }
                return no_room(error);
            }
            Err(_) => {
                server.live.counters.of(cx.id).connect_failures.error.one();
                self.report_failure(cx, settings, key, server, Failure::Unreachable);
                return Taken::Failed;
            }
        };
        let Some((at, id)) = self.id_at_socket(upstream, at, key) else { return Taken::Unfit };
        let socket = &mut self.sockets[at];
        if socket.outgoing.is_empty() {
            self.sockets_dirty.push(at);
        }
        let query = &mut self.queries[key];
        query.wait(Waits::AtSocket(at), id);
        let bytes = query.datagram().len();
        socket.outgoing.push((key, bytes));
        let counters = server.live.counters.of(cx.id);
        counters.datagrams_in.one();
        counters.bytes_in.add(bytes as u64);
        Taken::Yes
    }

    /// Returns an ID at this socket of an upstream, or at another socket if none is left.
    fn id_at_socket(
        &mut self,
        upstream: DnsUpstreamKey,
        at: DnsSocketKey,
        key: QueryKey,
    ) -> Option<(DnsSocketKey, u16)> {
        if let Some(id) = self.sockets[at].ids.give(key, &mut self.secrets) {
            return Some((at, id));
        }
        let others = &self.upstreams[upstream].sockets;
        others.iter().find_map(|&other| Some((other, self.sockets[other].ids.give(key, &mut self.secrets)?)))
    }

    /// Returns the socket of this round, so that queries that arrived together are sent together.
    fn socket_of(
        &mut self,
        cx: &Context,
        upstream: DnsUpstreamKey,
        settings: &Settings,
    ) -> Result<DnsSocketKey, Errno> {
        let (now, round) = (cx.now, self.round);
        let there = &mut self.upstreams[upstream];
        there.used_at = now;
        if there.round != round {
            there.round = round;
            there.turn = self.secrets.below(upstream::width(settings));
        }
        if let Some(&at) = there.sockets.get(there.turn) {
            return Ok(at);
        }
        let target = there.target.clone();
        let source =
            settings.options.source.and_then(|_| SourceAddress::of(&settings.options, [0, 0, 0, 0].into()));
        let socket = connect::datagram_socket(&target, source)?;
        // Responses to all queries of a burst arrive at the same time.
        crate::io::listener::grow_buffers(&socket);
        let ids = Ids::default();
        let socket = Socket { upstream, socket, ids, outgoing: Vec::new(), unexpected: 0, opened_at: now };
        let at = self.sockets.insert(socket);
        if let Err(error) = cx.registry.register(&self.sockets[at].socket, Token::DnsSocket(at)) {
            self.sockets.remove(at);
            return Err(error);
        }
        let there = &mut self.upstreams[upstream];
        there.turn = there.sockets.len();
        there.sockets.push(at);
        Ok(at)
    }

    /// Removes a query that no longer waits at this socket.
    pub(in crate::dns) fn withdraw_from_socket(&mut self, at: DnsSocketKey, id: u16) {
        if let Some(socket) = self.sockets.get_mut(at)
            && let Some(key) = socket.ids.free(id)
            && let Some(slot) = socket.outgoing.iter().position(|(other, _)| *other == key)
        {
            socket.outgoing.swap_remove(slot);
        }
    }

    /// Sends all queued queries.
    pub(in crate::dns) fn flush_socket(&mut self, cx: &mut Context, at: DnsSocketKey) {
        let Some(socket) = self.sockets.get_mut(at) else { return };
        let mut outgoing = std::mem::take(&mut socket.outgoing);
        // Adjacent datagrams of the same length are sent as one message.
        outgoing.sort_unstable_by_key(|(_, bytes)| *bytes);
        let (mut from, mut unsendable, mut refused) = (0, Vec::new(), None);
        while from < outgoing.len() {
            let batch = &outgoing[from..(from + BATCH).min(outgoing.len())];
            let mut datagrams: [&[u8]; BATCH] = [&[]; BATCH];
            for (datagram, (key, _)) in datagrams.iter_mut().zip(batch) {
                *datagram = self.queries[*key].datagram();
            }
            let socket = self.sockets[at].socket.as_fd();
            let (taken, error) = self.burst.send(socket, &datagrams[..batch.len()]);
            from += taken;
            match error {
                None => {}
                // The unsent queries are sent again after their timeouts.
                Some(Errno::AGAIN | Errno::NOBUFS) => {
                    let upstream = self.sockets[at].upstream;
                    let service = &self.upstream_service(upstream).live.counters;
                    service.of(cx.id).drops.send_full.add((outgoing.len() - from) as u64);
                    break;
                }
                // The datagram is too large for its route, or a local rule forbids it: the server is not at
                // fault.
                Some(error) if error == Errno::MSGSIZE || error == Errno::INVAL || is_local_error(error) => {
                    unsendable.push(outgoing[from].0);
                    from += 1;
                }
                Some(error) => {
                    // The error belongs to an earlier datagram (ICMP), but concerns all queries at this socket.
                    refused = Some(error);
                    break;
                }
            }
        }
        outgoing.clear();
        self.sockets[at].outgoing = outgoing;
        unsendable.into_iter().for_each(|key| self.on_unsendable(cx, key, at));
        if let Some(error) = refused {
            self.on_socket_refused(cx, at, error);
        }
    }

    fn upstream_service(&self, upstream: DnsUpstreamKey) -> &Arc<Service> {
        &self.services[self.upstreams[upstream].server.service].service
    }

    pub(in crate::dns) fn on_unsendable(&mut self, cx: &mut Context, key: QueryKey, at: DnsSocketKey) {
        let query = self.queries.get(key).filter(|query| query.is_waiting(Waits::AtSocket(at)));
        let Some(query) = query else { return };
        let service = Arc::clone(&self.services[query.requester().service].service);
        service.live.counters.of(cx.id).drops.unsendable.one();
        let settings = service.settings.load_full();
        self.again(cx, &settings, key, Cause::Local);
    }

    /// Receives responses, or an error.
    pub(crate) fn on_socket_event(&mut self, cx: &mut Context, at: DnsSocketKey) {
        for _ in 0..BATCHES_MAX {
            let Some(socket) = self.sockets.get(at) else { return };
            let settings = self.upstream_service(socket.upstream).settings.load_full();
            let mut responses = self.take_responses(cx);
            let room = responses.room().min(BATCH);
            let socket = self.sockets[at].socket.as_fd();
            let received = responses.receive(socket);
            if let Ok(count) = received {
                self.take_datagrams(cx, &settings, at, &mut responses, count);
            }
            self.responses = Some(responses);
            self.share_deferred(cx);
            self.take_declined(cx, &settings);
            match received {
                Ok(count) if count < room => return,
                Ok(_) => {}
                Err(error) => {
                    // No further event reports the datagrams that are still queued, so the socket is read
                    // again.
                    self.on_socket_refused(cx, at, error);
                    break;
                }
            }
        }
        cx.ready.push(Ready::DnsSocket(at));
    }

    fn take_datagrams(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        at: DnsSocketKey,
        responses: &mut Responses,
        count: usize,
    ) {
        for _ in 0..count {
            let path = self.take_datagram(cx, settings, at, responses.next());
            responses.send_next(path.filter(|path| self.is_listening(path)));
        }
    }

    /// Turns a datagram into the response to its query. The response is sent from the buffer in which it was
    /// received.
    fn take_datagram(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        at: DnsSocketKey,
        mut datagram: Datagram<'_>,
    ) -> Option<ReturnPath> {
        let response = datagram.bytes();
        let socket = &self.sockets[at];
        let owner = socket.ids.owner(wire::id(response));
        let owner = owner.filter(|key| self.queries[*key].is_response(response));
        let Some(key) = owner else {
            self.on_unexpected(cx, at);
            return None;
        };
        let (upstream, bytes, id) = (socket.upstream, response.len(), wire::id(response));
        self.turn_to_attempt(key, Waits::AtSocket(at), id);
        let sent_at = self.queries[key].sent_at();
        let upstream = &mut self.upstreams[upstream];
        upstream.on_response(cx.now, sent_at, query::timeout(settings));
        upstream.live.transports.responded(Transport::Datagram, cx.now);
        upstream.live.counters.of(cx.id).datagrams_out.one();
        let socket = &mut self.sockets[at];
        socket.unexpected = socket.unexpected.saturating_sub(1);
        if declined::is_declined(settings, &self.queries[key], datagram.bytes()) {
            self.keep_declined(key, at, datagram.bytes());
            return None;
        }
        let mut query = self.retire(cx, key);
        query.note_response(cx, settings, bytes);
        if query.is_altered(settings, datagram.bytes()) || query.has_followers() || !query.is_taken(bytes) {
            let mut response = self.spare();
            response.extend_from_slice(datagram.bytes());
            self.finish(cx, settings, &query, &mut response);
            self.keep_shared(&mut query, &response);
            self.truncate_for(cx, &query, &mut response);
            datagram.put(&response);
            self.give_back(response);
        } else {
            self.finish_in_place(cx, settings, &query, datagram.bytes_mut());
        }
        query.log_response(cx, datagram.bytes());
        let origin = query.requester().origin;
        self.give_back(query.into_message());
        match origin {
            Origin::Datagram(path) => Some(path),
            Origin::Stream(_) => None,
        }
    }

    /// Counts an unexpected response, which is late or forged.
    fn on_unexpected(&mut self, cx: &Context, at: DnsSocketKey) {
        let socket = &mut self.sockets[at];
        socket.unexpected += 1;
        let (is_too_much, upstream) = (socket.unexpected >= UNEXPECTED_MAX, socket.upstream);
        let upstream = &mut self.upstreams[upstream];
        upstream.live.counters.of(cx.id).responses_bad.one();
        if is_too_much {
            give_up(upstream, at);
        }
    }

    /// Handles an ICMP error: all outstanding queries are sent to another server, before their clients repeat
    /// them.
    fn on_socket_refused(&mut self, cx: &mut Context, at: DnsSocketKey, error: Errno) {
        // Errors about packet sizes concern single datagrams, not the server.
        if error == Errno::MSGSIZE || is_local_error(error) {
            return;
        }
        let Some(socket) = self.sockets.get(at) else { return };
        let upstream = socket.upstream;
        let settings = self.upstream_service(upstream).settings.load_full();
        let mut is_reported = false;
        // Among several queries it is unknown which was refused, and which the server received.
        let is_alone = socket.ids.len() == 1;
        for (id, key) in socket.ids.owners() {
            if !self.is_current_attempt(cx, key, Waits::AtSocket(at), id) {
                continue;
            }
            let query = &self.queries[key];
            if let Some(server) = query.server()
                && !std::mem::replace(&mut is_reported, true)
            {
                self.note_socket_refusal(cx, &settings, (key, upstream), &server, error);
            }
            if is_alone {
                self.again(cx, &settings, key, Cause::Refused);
            } else {
                self.again_unless_received(cx, &settings, key, Cause::Refused);
            }
        }
    }

    /// Counts a refused datagram, and reports the server unless it accepts TCP, which is tried first.
    fn note_socket_refusal(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        (key, upstream): (QueryKey, DnsUpstreamKey),
        server: &Arc<Entry>,
        error: Errno,
    ) {
        let failure = count_refusal(cx, server, error);
        let transports = &server.live.transports;
        transports.refused(Transport::Datagram, cx.now);
        let is_telling = transports.is_telling(Transport::Datagram, cx.now);
        let is_known = transports.refuses(Transport::Stream, cx.now);
        if is_telling && (is_known || !self.probe_stream(cx, settings, key, upstream, server)) {
            self.report_failure(cx, settings, key, server, failure);
        }
    }

    /// Closes a socket of an upstream. Its outstanding queries are sent again.
    pub(super) fn close_socket(&mut self, cx: &mut Context, at: DnsSocketKey, upstream: DnsUpstreamKey) {
        let Some(socket) = self.sockets.get(at).filter(|socket| socket.upstream == upstream) else {
            return;
        };
        for (id, key) in socket.ids.owners() {
            if !self.is_current_attempt(cx, key, Waits::AtSocket(at), id) {
                continue;
            }
            let query = &self.queries[key];
            let settings = self.services[query.requester().service].service.settings.load_full();
            self.again_unless_received(cx, &settings, key, Cause::Closed);
        }
        self.sockets.remove(at);
    }
}

/// Stops sending new queries through a socket. Queries that wait at the socket may still get a response.
fn give_up(upstream: &mut Upstream, at: DnsSocketKey) {
    if let Some(slot) = upstream.sockets.iter().position(|other| *other == at) {
        upstream.sockets.swap_remove(slot);
        upstream.given_up.push(at);
        // `turn` may be the index of this socket.
        upstream.turn = usize::MAX;
    }
}

/// Gives up the old sockets of an upstream.
pub(super) fn age(sockets: &mut Table<of::DnsSocket, Socket>, upstream: &mut Upstream, now: Time) {
    let is_old =
        |at: &DnsSocketKey| sockets.get(*at).is_none_or(|socket| now.since(socket.opened_at) >= AGE_MAX);
    let old: Vec<DnsSocketKey> = upstream.sockets.iter().copied().filter(is_old).collect();
    old.into_iter().for_each(|at| give_up(upstream, at));
}
