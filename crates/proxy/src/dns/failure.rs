//! What a client hears when no server answers.

use super::query::{retire, spec};
use super::{declined, reply};
use crate::context::report::{Notice, Report};
use crate::service::Settings;
use crate::service::note_no_server;
use crate::worker::Worker;
use evener_core::dns::Freshness;
use evener_core::snapshot::NoServer;
use evener_core::spec::OnFailure;
use evener_core::wire::dns as wire;
use std::sync::Arc;

/// No server answers: what is kept though it expired, or the word for it.
pub(super) fn fail(worker: &mut Worker, settings: &Settings, slot: usize, reason: Option<NoServer>) {
    let service = Arc::clone(&worker.dns.services[worker.dns.queries[slot].asker.service].service);
    let counters = service.live.counters.of(worker.cx.id);
    if answer_stale(worker, settings, slot) || declined::give(worker, settings, slot) {
        return;
    }
    let mut query = retire(worker, slot);
    for follower in std::mem::take(&mut query.followers) {
        fail(worker, settings, follower, reason);
    }
    counters.requests_failed.one();
    let is_unfit = !query.unfit.is_empty() && query.attempt.tried() == query.unfit.len();
    if is_unfit {
        counters.drop_untakable.one();
        if service.may_notice(Notice::Untakable, worker.cx.now) {
            (worker.cx.report)(Report::Untakable { service: service.name.clone() });
        }
    } else if let Some(reason) = reason {
        note_no_server(&worker.cx, &service, reason);
    }
    let rcode = match spec(settings).map(|spec| spec.on_failure) {
        Some(OnFailure::ServFail) => wire::SERVFAIL,
        Some(OnFailure::Refused) => wire::REFUSED,
        Some(OnFailure::Drop) | None => {
            if !is_unfit {
                counters.drop_no_server.one();
            }
            return worker.dns.give_back(query.message);
        }
    };
    reply::answer_error(worker, &query.asker, &query.view, &query.message, rcode);
    worker.dns.give_back(query.message);
}

/// Answers with what is kept though it expired, if there is something.
pub(super) fn answer_stale(worker: &mut Worker, settings: &Settings, slot: usize) -> bool {
    let query = &worker.dns.queries[slot];
    let (asker, view, message) = (query.asker, query.view, query.message.clone());
    let mut message = message;
    wire::set_id(&mut message, query.id);
    if !reply::answer_from_cache(worker, settings, &asker, &view, &message, Freshness::Stale) {
        return false;
    }
    let service = Arc::clone(&worker.dns.services[asker.service].service);
    service.live.counters.of(worker.cx.id).cache_stale.one();
    let mut query = retire(worker, slot);
    for follower in std::mem::take(&mut query.followers) {
        if !answer_stale(worker, settings, follower) {
            fail(worker, settings, follower, None);
        }
    }
    worker.dns.give_back(query.message);
    true
}
