//! Responses by which a server declines: SERVFAIL and REFUSED. Another server may be asked then; where none does better, what
//! is kept though it expired is given, or the response itself.

use super::query::{self, Cause, Query, retire};
use super::{attempt, failure, reply, twins};
use crate::service::Settings;
use crate::worker::Worker;
use evener_core::wire::dns as wire;

/// A longer response is passed on at once: it is kept while others are asked.
const KEPT_BYTES_MAX: usize = 512;

/// A response that declines, which came while a batch was filled.
pub(super) struct Declined {
    slot: usize,
    socket: usize,
    response: Vec<u8>,
}

/// Whether something better than this response may be had.
pub(super) fn is_declined(settings: &Settings, query: &Query, response: &[u8]) -> bool {
    let rcode = wire::rcode(response);
    if !matches!(rcode, wire::SERVFAIL | wire::REFUSED) || !query.may_repeat_elsewhere() || query.pieces > 0 {
        return false;
    }
    let Some(spec) = query::spec(settings) else { return false };
    spec.retry_on.has(rcode) || spec.cache.as_ref().is_some_and(|cache| !cache.stale.is_zero())
}

/// Keeps such a response until the batch that is just filled may take more.
pub(super) fn keep(worker: &mut Worker, slot: usize, socket: usize, response: &[u8]) {
    worker.dns.declined.push(Declined { slot, socket, response: response.to_vec() });
}

/// Handles what was kept.
pub(super) fn take_kept(worker: &mut Worker, settings: &Settings) {
    while let Some(Declined { slot, socket, mut response }) = worker.dns.declined.pop() {
        let waits = query::Waits::AtSocket(socket);
        // It may have come twice.
        let query = worker.dns.queries.get(slot).filter(|query| query.is_at(waits, wire::id(&response)));
        if query.is_some_and(|query| reply::is_answered_by(query, &response)) {
            reply::pass_on(worker, settings, slot, &mut response);
        }
    }
}

/// Looks for something better than this response; whether there is, or may be.
pub(super) fn is_bettered(worker: &mut Worker, settings: &Settings, slot: usize, response: &[u8]) -> bool {
    if !is_declined(settings, &worker.dns.queries[slot], response) {
        return false;
    }
    reply::note_answer(worker, settings, &worker.dns.queries[slot], response.len());
    let is_wanted = query::spec(settings).is_some_and(|spec| spec.retry_on.has(wire::rcode(response)));
    let query = &mut worker.dns.queries[slot];
    if is_wanted && response.len() <= KEPT_BYTES_MAX {
        query.declined = Some(response.to_vec());
        if query.retries > 0 {
            query.retries -= 1;
            query::again(worker, settings, slot, Cause::Declined);
            return true;
        }
        // Whoever was asked before may answer still.
        attempt::withdraw(worker, slot);
        if attempt::resume_any(worker, settings, slot) {
            return true;
        }
    }
    let query = &mut worker.dns.queries[slot];
    (query.choice, query.declined) = (None, None);
    failure::answer_stale(worker, settings, slot)
}

/// Passes on what the last server that declined said, if one did: nobody did better.
pub(super) fn give(worker: &mut Worker, settings: &Settings, slot: usize) -> bool {
    let Some(mut response) = worker.dns.queries[slot].declined.take() else { return false };
    let mut query = retire(worker, slot);
    reply::finish(worker, settings, &query, &mut response);
    twins::share(worker, &mut query, &response);
    reply::cut(worker, &query.asker, &query.view, &query.message, &mut response);
    reply::deliver(worker, &query.asker, &response);
    worker.dns.give_back(query.message);
    true
}
