//! Questions that ask the same while one is under way: only one goes to a server, and all get its answer. Beside the work that
//! saves, a forger who has many of one question asked would otherwise have as many IDs to hit (RFC 5452, section 5). Only
//! where answers are kept: elsewhere a server may mean each of them for one client.

use super::alter;
use super::query::{self, Origin, Query, Waits};
use super::reply;
use crate::service::Settings;
use crate::worker::Worker;
use evener_core::wire::dns as wire;

/// Those who take more than so many bytes over UDP do not wait for one who does not, for whom an answer may be cut. No finer:
/// each class is one more question under way.
const SIZES: [usize; 2] = [wire::UDP_BYTES, 1232];

/// Lets a question wait for one that asks the same, or gives it to a server.
pub(super) fn set_out(worker: &mut Worker, settings: &Settings, slot: usize) {
    if !join(worker, settings, slot) {
        alter::alter(worker, settings, slot);
        query::place(worker, settings, slot);
    }
}

/// Lets a question wait for another one that asks the same, if there is one; whether it does. Otherwise others may wait for
/// this one.
fn join(worker: &mut Worker, settings: &Settings, slot: usize) -> bool {
    let query = &worker.dns.queries[slot];
    let (asker, view, message) = (query.asker, query.view, &query.message);
    let key = &mut worker.dns.key;
    if reply::cache(settings, &asker).is_none() || !reply::key_of(key, settings, &asker, &view, message) {
        return false;
    }
    // What is cut for datagrams is no answer for a stream, nor what is cut for a short one for a long one.
    key.push(u8::from(matches!(asker.origin, Origin::Stream { .. })));
    key.push(SIZES.iter().filter(|size| view.udp_size() > **size).count() as u8);
    key.extend_from_slice(&asker.service.to_ne_bytes());
    if let Some(&leader) = worker.dns.twins.get(key.as_slice()) {
        worker.dns.queries[leader].followers.push(slot);
        worker.dns.queries[slot].waits = Waits::AtQuery;
        return true;
    }
    worker.dns.twins.insert(key.clone(), slot);
    worker.dns.queries[slot].twin_key = Some(std::mem::take(key));
    false
}

/// Nobody can wait for this question any more.
pub(super) fn leave(worker: &mut Worker, query: &mut Query) {
    if let Some(key) = query.twin_key.take() {
        worker.dns.twins.remove(&key);
    }
}

/// Gives an answer to all who wait for it. It is as it will be kept: its ID and the spelling of its question are of whoever
/// asked first.
pub(super) fn share(worker: &mut Worker, query: &mut Query, answer: &[u8]) {
    let followers = std::mem::take(&mut query.followers);
    share_with(worker, followers, answer);
}

/// The same once the batch that is just filled may take more.
pub(super) fn keep(worker: &mut Worker, query: &mut Query, answer: &[u8]) {
    if !query.followers.is_empty() {
        worker.dns.shared.push((std::mem::take(&mut query.followers), answer.to_vec()));
    }
}

/// Gives what was kept to those who wait for it.
pub(super) fn share_kept(worker: &mut Worker) {
    while let Some((followers, answer)) = worker.dns.shared.pop() {
        share_with(worker, followers, &answer);
    }
}

fn share_with(worker: &mut Worker, followers: Vec<usize>, answer: &[u8]) {
    for slot in followers {
        let follower = query::retire(worker, slot);
        let mut copy = worker.dns.spare();
        copy.extend_from_slice(answer);
        let Query { asker, view, message, .. } = &follower;
        reply::address(&mut copy, view, message);
        reply::cut(worker, asker, view, message, &mut copy);
        reply::deliver(worker, asker, &copy);
        worker.dns.give_back(copy);
        worker.dns.give_back(follower.message);
    }
}

/// The question that they waited for is not asked any more: one of them is, and the others wait for that.
pub(super) fn part(worker: &mut Worker, settings: &Settings, query: &mut Query) {
    for slot in std::mem::take(&mut query.followers) {
        worker.dns.queries[slot].waits = Waits::Nowhere;
        set_out(worker, settings, slot);
    }
}
