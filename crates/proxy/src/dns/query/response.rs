//! Responses to clients: from servers, from the cache, and errors.

use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::dns::query::hop;
use crate::dns::query::{Query, TRANSFER_PAUSE, Waits, spec};
use crate::dns::{Dns, Origin, Party, Requester};
use crate::io::connect::note_success;
use crate::service::Settings;
use evener_core::dns::{Cache, Freshness, network};
use evener_core::wire::dns as wire;
use std::net::IpAddr;

/// Maximum size of a datagram of IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// A response that was sent to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) rcode: u8,
    pub(super) bytes: usize,
}

impl Query {
    /// Returns whether a message is a response to this query. A transfer has several responses.
    pub(in crate::dns) fn is_response(&self, response: &[u8]) -> bool {
        // Further messages of a transfer need not repeat the question section (RFC 5936, section 2.2.1).
        let is_piece = self.pieces > 0
            && response.get(2).is_some_and(|flags| flags & 0x80 != 0)
            && response.get(4..6) == Some(&[0, 0]);
        is_piece || self.view.matches_response(&self.message, response)
    }

    /// Counts and reports a response of the server.
    pub(in crate::dns) fn note_response(&self, cx: &Context, settings: &Settings, bytes: usize) {
        let Some(choice) = &self.choice else { return };
        let server = &choice.server;
        let counters = server.live.counters.of(cx.id);
        counters.responses.one();
        counters.response_seconds.record_since(self.sent_at, cx.now);
        counters.bytes_out.add(bytes as u64);
        let Some(backend) = self.requester.backend(settings) else { return };
        let snapshot = backend.pool.load();
        if let Some(record) = &self.record {
            record.record_server(&snapshot.pool, &server.name);
            record.moved(0, bytes as u64, cx.now);
        }
        snapshot.observe(server, cx.now.since(self.sent_at), cx.now);
        note_success(cx, &snapshot.pool, choice);
    }

    /// Returns whether the client accepts a response of this size.
    pub(in crate::dns) fn is_taken(&self, bytes: usize) -> bool {
        fits(&self.requester, &self.view, bytes)
    }

    /// Returns whether more than the ID of a response has to change. Without an OPT in the query the response
    /// has none (RFC 6891, section 6.1.1).
    pub(in crate::dns) fn is_altered(&self, settings: &Settings, response: &[u8]) -> bool {
        self.added().is_some()
            || self.view.has_edns()
                && wire::has_hop_options(response, hop::cookies(settings, &self.requester))
    }
}

impl Dns {
    /// Responds with an error.
    pub(super) fn respond_with_error(
        &mut self,
        cx: &Context,
        requester: &Requester,
        view: &wire::Query,
        message: &[u8],
        rcode: u8,
    ) {
        let mut out = self.spare();
        view.emit_error(message, rcode, &mut out);
        self.deliver(cx, requester, &out);
        self.give_back(out);
    }

    /// Sends a response to a client.
    pub(super) fn deliver(&mut self, cx: &Context, requester: &Requester, response: &[u8]) {
        match requester.origin {
            Origin::Datagram(path) => self.push_response(cx, path, response),
            Origin::Stream(client) if requester.keepalive => {
                self.respond_with_keepalive(cx, client, response);
            }
            Origin::Stream(client) => self.respond_to_client(cx, client, response),
        }
    }

    /// Turns a server's response into a response for the client, with the client's ID, and stores it in the
    /// cache.
    pub(in crate::dns) fn finish(
        &mut self,
        cx: &Context,
        settings: &Settings,
        query: &Query,
        response: &mut Vec<u8>,
    ) {
        wire::set_id(response, query.id);
        if let Some(added) = query.added() {
            wire::strip(response, added);
        }
        wire::strip_hop_options(response, hop::cookies(settings, &query.requester));
        self.store_response(cx, settings, query, response);
    }

    /// Does the same as [`Dns::finish`] if only the ID has to change.
    pub(in crate::dns) fn finish_in_place(
        &mut self,
        cx: &Context,
        settings: &Settings,
        query: &Query,
        response: &mut [u8],
    ) {
        wire::set_id(response, query.id);
        self.store_response(cx, settings, query, response);
    }

    fn store_response(&mut self, cx: &Context, settings: &Settings, query: &Query, response: &[u8]) {
        let Some(cache) = cache(settings, &query.requester) else { return };
        if key_of(&mut self.key, settings, &query.requester, &query.view, &query.message) {
            cache.store(&self.key, response, cx.now);
        }
    }

    /// Passes a response on to the client, unless a better response is found or requested. Afterwards the query
    /// is finished, unless it is a transfer with further messages.
    pub(in crate::dns) fn pass_on(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        response: &mut Vec<u8>,
    ) {
        if self.is_bettered(cx, settings, key, response) {
            return;
        }
        let query = &mut self.queries[key];
        // A refusal, or a response without records, is a single message.
        let goes_on = query.pieces > 0
            || (wire::rcode(response) == wire::NOERROR && response.get(6..8) != Some(&[0, 0]));
        if query.view.is_transfer() && matches!(query.waits, Waits::AtStream(_)) && goes_on {
            return self.pass_piece_on(cx, settings, key, response);
        }
        let bytes = response.len();
        let mut query = self.retire(cx, key);
        query.note_response(cx, settings, bytes);
        self.finish(cx, settings, &query, response);
        self.share(cx, &mut query, response);
        self.truncate_for(cx, &query, response);
        query.log_response(cx, response);
        self.deliver(cx, &query.requester, response);
        self.give_back(query.message);
    }

    fn pass_piece_on(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        response: &mut Vec<u8>,
    ) {
        let query = &mut self.queries[key];
        query.pieces = query.pieces.saturating_add(1);
        let (requester, id, is_over) = (query.requester, query.id, query.transfer.take(response));
        if query.pieces == 1 {
            self.withdraw_earlier_attempts(cx, key);
            self.queries[key].note_response(cx, settings, response.len());
        }
        self.queries[key].log_response(cx, response);
        wire::set_id(response, id);
        wire::strip_hop_options(response, hop::cookies(settings, &requester));
        self.deliver(cx, &requester, response);
        if is_over {
            let query = self.retire(cx, key);
            return self.give_back(query.message);
        }
        self.query_timers.set(key, cx.now + TRANSFER_PAUSE);
    }

    /// Truncates a response over UDP that is too long for the client.
    pub(super) fn truncate(
        &mut self,
        cx: &Context,
        requester: &Requester,
        view: &wire::Query,
        message: &[u8],
        response: &mut Vec<u8>,
    ) {
        if !fits(requester, view, response.len()) {
            let mut out = self.spare();
            view.emit_truncated(message, Some(response), &mut out);
            std::mem::swap(response, &mut out);
            self.give_back(out);
            let service = &self.services[requester.service].service;
            service.live.counters.of(cx.id).truncated.one();
        }
    }

    /// Truncates the response to a finished query.
    pub(in crate::dns) fn truncate_for(&mut self, cx: &Context, query: &Query, response: &mut Vec<u8>) {
        self.truncate(cx, &query.requester, &query.view, &query.message, response);
    }

    /// Responds from the cache. Returns `None` if the cache has no response.
    pub(super) fn respond_from_cache(
        &mut self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        view: &wire::Query,
        message: &[u8],
        freshness: Freshness,
    ) -> Option<Sent> {
        let cache = cache(settings, requester)?;
        if !key_of(&mut self.key, settings, requester, view, message) {
            return None;
        }
        let mut out = self.spare();
        let mut sent = None;
        let found = cache.lookup(&self.key, cx.now, freshness, &mut out);
        if found {
            address(&mut out, view, message);
            self.truncate(cx, requester, view, message, &mut out);
            self.deliver(cx, requester, &out);
            sent = Some(Sent { rcode: wire::rcode(&out), bytes: out.len() });
        } else if freshness == Freshness::Fresh {
            let service = &self.services[requester.service].service;
            service.live.counters.of(cx.id).cache_lookups.miss.one();
        }
        self.give_back(out);
        sent
    }
}

/// Returns whether a client accepts a response of this size.
fn fits(requester: &Requester, view: &wire::Query, bytes: usize) -> bool {
    matches!(requester.origin, Origin::Stream(_)) || bytes <= view.udp_size().min(DATAGRAM_BYTES_MAX)
}

/// Adapts a response to an equal query: clients check that the response repeats the ID and the spelling of the
/// name in their query.
pub(in crate::dns) fn address(response: &mut [u8], view: &wire::Query, message: &[u8]) {
    wire::set_id(response, wire::id(message));
    let section = view.question_section(message);
    // A header alone has no question section.
    if let Some(copied) = response.get_mut(wire::HEADER_BYTES..wire::HEADER_BYTES + section.len()) {
        copied.copy_from_slice(section);
    }
}

/// Returns the cache of a service. Refused clients do not use the cache, because other servers respond to them.
pub(super) fn cache<'a>(settings: &'a Settings, requester: &Requester) -> Option<&'a Cache> {
    settings.dns.as_ref()?.cache.as_deref().filter(|_| requester.party == Party::Admitted)
}

/// Builds the cache key of a query, and returns whether responses to it can be cached.
pub(super) fn key_of(
    key: &mut Vec<u8>,
    settings: &Settings,
    requester: &Requester,
    view: &wire::Query,
    message: &[u8],
) -> bool {
    if !view.cache_key(message, key) {
        return false;
    }
    // Servers may respond differently to each network.
    if let Some(subnet) = spec(settings).and_then(|spec| spec.client_subnet) {
        match network(requester.client.ip(), subnet.v4, subnet.v6) {
            IpAddr::V4(network) => key.extend_from_slice(&network.octets()),
            IpAddr::V6(network) => key.extend_from_slice(&network.octets()),
        }
    }
    true
}
