//! Questions that ask the same while one is under way: only one goes to a server, and all get its answer. Beside the work that
//! saves, a forger who has many of one question asked would otherwise have as many IDs to hit (RFC 5452, section 5). Only
//! where answers are kept: elsewhere a server may mean each of them for one client.

use super::Dns;
use super::query::{Origin, Query, Waits};
use super::reply;
use crate::context::Context;
use crate::context::keys::{Handle, QueryKey};
use crate::service::Settings;
use evener_core::wire::dns as wire;

/// Those who take more than so many bytes over UDP do not wait for one who does not, for whom an answer may be cut. No finer:
/// each class is one more question under way.
const SIZES: [usize; 2] = [wire::UDP_BYTES, 1232];

impl Dns {
    /// Lets a question wait for one that asks the same, or gives it to a server.
    pub(super) fn coalesce_or_place(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) {
        if !self.join(settings, key) {
            self.alter(settings, key);
            self.place(cx, settings, key);
        }
    }

    /// Lets a question wait for another one that asks the same, if there is one; whether it does. Otherwise others may wait for
    /// this one.
    fn join(&mut self, settings: &Settings, key: QueryKey) -> bool {
        let query = &self.queries[key];
        let (asker, view, message) = (query.asker, query.view, &query.message);
        let question = &mut self.key;
        if reply::cache(settings, &asker).is_none()
            || !reply::key_of(question, settings, &asker, &view, message)
        {
            return false;
        }
        // What is cut for datagrams is no answer for a stream, nor what is cut for a short one for a long one.
        question.push(u8::from(matches!(asker.origin, Origin::Stream(_))));
        question.push(SIZES.iter().filter(|size| view.udp_size() > **size).count() as u8);
        question.extend_from_slice(&asker.service.into_raw().to_ne_bytes());
        if let Some(&leader) = self.twins.get(question.as_slice()) {
            self.queries[leader].followers.push(key);
            self.queries[key].waits = Waits::AtQuery;
            return true;
        }
        self.twins.insert(question.clone(), key);
        self.queries[key].twin_key = Some(std::mem::take(question));
        false
    }

    /// Nobody can wait for this question any more.
    pub(super) fn leave_coalesced(&mut self, query: &mut Query) {
        if let Some(key) = query.twin_key.take() {
            self.twins.remove(&key);
        }
    }

    /// Gives an answer to all who wait for it. It is as it will be kept: its ID and the spelling of its question are of whoever
    /// asked first.
    pub(super) fn share(&mut self, cx: &mut Context, query: &mut Query, answer: &[u8]) {
        let followers = std::mem::take(&mut query.followers);
        self.share_with(cx, followers, answer);
    }

    /// The same once the batch that is just filled may take more.
    pub(super) fn keep_shared(&mut self, query: &mut Query, answer: &[u8]) {
        if !query.followers.is_empty() {
            self.shared.push((std::mem::take(&mut query.followers), answer.to_vec()));
        }
    }

    /// Gives what was kept to those who wait for it.
    pub(super) fn share_kept(&mut self, cx: &mut Context) {
        while let Some((followers, answer)) = self.shared.pop() {
            self.share_with(cx, followers, &answer);
        }
    }

    fn share_with(&mut self, cx: &mut Context, followers: Vec<QueryKey>, answer: &[u8]) {
        for key in followers {
            let follower = self.retire(cx, key);
            let mut copy = self.spare();
            copy.extend_from_slice(answer);
            let Query { asker, view, message, .. } = &follower;
            reply::address(&mut copy, view, message);
            self.truncate(cx, asker, view, message, &mut copy);
            self.deliver(cx, asker, &copy);
            self.give_back(copy);
            self.give_back(follower.message);
        }
    }

    /// The question that they waited for is not asked any more: one of them is, and the others wait for that.
    pub(super) fn part(&mut self, cx: &mut Context, settings: &Settings, query: &mut Query) {
        for key in std::mem::take(&mut query.followers) {
            self.queries[key].waits = Waits::Nowhere;
            self.coalesce_or_place(cx, settings, key);
        }
    }
}
