//! Responses by which a server declines: SERVFAIL and REFUSED. Another server may be queried then. If no server
//! gives a better response, the client gets an expired response from the cache, or else the response that
//! declines.

use crate::context::Context;
use crate::context::keys::{DnsSocketKey, QueryKey};
use crate::dns::Dns;
use crate::dns::query::{self, Cause, Query};
use crate::service::{self, Settings};
use evener_core::snapshot::Request;
use evener_core::wire::dns as wire;

/// Maximum size of a response that is retained while other servers are queried. Longer responses are passed on
/// immediately.
const DECLINED_BYTES_MAX: usize = 512;

/// A response that declines, received while the batch of responses was filled.
pub(in crate::dns) struct Declined {
    key: QueryKey,
    socket: DnsSocketKey,
    response: Vec<u8>,
}

/// Returns whether a better response than this one may be available.
pub(in crate::dns) fn is_declined(settings: &Settings, query: &Query, response: &[u8]) -> bool {
    let rcode = wire::rcode(response);
    if !matches!(rcode, wire::SERVFAIL | wire::REFUSED) || !query.may_repeat_elsewhere() || query.pieces > 0 {
        return false;
    }
    let Some(spec) = query::spec(settings) else { return false };
    spec.retry_on.has(rcode) || spec.cache.as_ref().is_some_and(|cache| !cache.stale.is_zero())
}

impl Dns {
    /// Defers a response that declines until the batch of responses is free.
    pub(in crate::dns) fn keep_declined(&mut self, key: QueryKey, socket: DnsSocketKey, response: &[u8]) {
        self.declined.push(Declined { key, socket, response: response.to_vec() });
    }

    /// Handles the deferred responses.
    pub(in crate::dns) fn take_declined(&mut self, cx: &mut Context, settings: &Settings) {
        while let Some(Declined { key, socket, mut response }) = self.declined.pop() {
            let waits = query::Waits::AtSocket(socket);
            // The response may be a duplicate.
            let query = self.queries.get(key).filter(|query| query.is_at(waits, wire::id(&response)));
            if query.is_some_and(|query| query.is_response(&response)) {
                self.pass_on(cx, settings, key, &mut response);
            }
        }
    }

    /// Returns whether a better response was found, or is being requested.
    pub(super) fn is_bettered(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        response: &[u8],
    ) -> bool {
        if !is_declined(settings, &self.queries[key], response) {
            return false;
        }
        self.queries[key].note_response(cx, settings, response.len());
        let is_wanted = query::spec(settings).is_some_and(|spec| spec.retry_on.has(wire::rcode(response)));
        let query = &mut self.queries[key];
        if is_wanted && response.len() <= DECLINED_BYTES_MAX {
            query.declined = Some(response.to_vec());
            if query.retries > 0 && self.may_retry(cx, settings, key) {
                self.queries[key].retries -= 1;
                self.again(cx, settings, key, Cause::Declined);
                return true;
            }
            // The servers of earlier attempts may still respond.
            self.withdraw_attempt(cx, key);
            if self.resume_any_attempt(cx, settings, key) {
                return true;
            }
        }
        let query = &mut self.queries[key];
        (query.choice, query.declined) = (None, None);
        self.respond_stale(cx, settings, key)
    }

    /// Returns whether the retry budget of the pool is not used up.
    fn may_retry(&self, cx: &Context, settings: &Settings, key: QueryKey) -> bool {
        let query = &self.queries[key];
        let service = &self.services[query.requester.service].service;
        let Some(backend) = query.requester.backend(settings) else { return false };
        let (snapshot, request) = (backend.pool.load(), Request::of(query.requester.client.ip(), cx.now));
        service::may_retry(cx, service, &query.attempt, &snapshot, || {
            let limits = query.limits();
            let server = query.choice.as_ref().map(|choice| choice.server.id);
            server.is_some_and(|server| query.attempt.has_other(&snapshot, &request, &limits, server))
        })
    }

    /// Gives the client the response of the last server that declined. Returns false if no server declined.
    pub(super) fn give_declined(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) -> bool {
        let Some(mut response) = self.queries[key].declined.take() else { return false };
        let mut query = self.retire(cx, key);
        self.finish(cx, settings, &query, &mut response);
        self.share(cx, &mut query, &response);
        self.truncate_for(cx, &query, &mut response);
        query.log_response(cx, &response);
        self.deliver(cx, &query.requester, &response);
        self.give_back(query.message);
        true
    }
}
