//! Responses to clients if no server responds.

use super::notes::{cause_of_failure, note_failed_query};
use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::context::report::{Notice, Report};
use crate::dns::Dns;
use crate::dns::query::spec;
use crate::service::Settings;
use crate::service::note_no_server;
use evener_core::dns::Freshness;
use evener_core::reason::Reason;
use evener_core::snapshot::NoServer;
use evener_core::spec::OnFailure;
use evener_core::wire::dns as wire;
use std::sync::Arc;

impl Dns {
    /// Ends a query that no server responded to: with an expired response from the cache, the response of a
    /// server that declined, an error, or no response.
    pub(super) fn fail(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        reason: Option<NoServer>,
    ) {
        let service = Arc::clone(&self.services[self.queries[key].requester.service].service);
        let counters = service.live.counters.of(cx.id);
        if self.respond_stale(cx, settings, key) || self.give_declined(cx, settings, key) {
            return;
        }
        let mut query = self.retire(cx, key);
        for follower in std::mem::take(&mut query.followers) {
            self.fail(cx, settings, follower, reason);
        }
        counters.requests_failed.one();
        let is_unfit = !query.unfit.is_empty() && query.attempt.tried() == query.unfit.len();
        if is_unfit {
            counters.drops.no_capable_server.one();
            if service.may_notice(Notice::NoCapableServer, cx.now) {
                cx.report(Report::NoCapableServer { service: service.live.name.clone() });
            }
        } else if let Some(reason) = reason {
            note_no_server(cx, &service, reason);
        }
        let backend = query.requester.backend(settings);
        let pool = || backend.map(|backend| Arc::clone(&backend.pool.load().pool));
        let note = |rcode: Option<u8>| {
            let cause = if is_unfit { Reason::NoCapableServer.into() } else { cause_of_failure(reason) };
            query.log_failure(cx, cause, rcode);
            note_failed_query(cx, &service, &query.requester, cause, rcode, pool);
        };
        let rcode = match spec(settings).map(|spec| spec.on_failure) {
            Some(OnFailure::ServFail) => wire::SERVFAIL,
            Some(OnFailure::Refused) => wire::REFUSED,
            Some(OnFailure::Drop) | None => {
                if !is_unfit {
                    counters.drops.no_server.one();
                }
                note(None);
                return self.give_back(query.message);
            }
        };
        note(Some(rcode));
        self.respond_with_error(cx, &query.requester, &query.view, &query.message, rcode);
        self.give_back(query.message);
    }

    /// Responds with an expired response from the cache. Returns false if there is none.
    pub(super) fn respond_stale(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) -> bool {
        let query = &self.queries[key];
        let (requester, view, message) = (query.requester, query.view, query.message.clone());
        let mut message = message;
        wire::set_id(&mut message, query.id);
        let stale = self.respond_from_cache(cx, settings, &requester, &view, &message, Freshness::Stale);
        let Some(response) = stale else { return false };
        if let Some(entry) = &self.queries[key].entry {
            entry.responded(response.rcode, response.bytes, cx.now);
        }
        let service = Arc::clone(&self.services[requester.service].service);
        service.live.counters.of(cx.id).cache_stale.one();
        let mut query = self.retire(cx, key);
        for follower in std::mem::take(&mut query.followers) {
            if !self.respond_stale(cx, settings, follower) {
                self.fail(cx, settings, follower, None);
            }
        }
        self.give_back(query.message);
        true
    }
}
