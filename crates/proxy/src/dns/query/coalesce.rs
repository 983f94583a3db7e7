//! Equal queries while one is outstanding: only one is sent to a server, and all get its response. This saves
//! work and protects against forged responses: each further equal query would give an attacker one more chance
//! to guess an ID (RFC 5452, section 5). Limited to services with a cache: elsewhere a response may be meant
//! for one client only.

use crate::context::Context;
use crate::context::keys::{Handle, QueryKey};
use crate::dns::query::response;
use crate::dns::query::{Query, Waits};
use crate::dns::{Dns, Origin};
use crate::service::Settings;
use evener_core::wire::dns as wire;

/// Accepted UDP sizes that separate classes of clients. A response may be truncated for a class, so clients of
/// a larger class do not wait for it. Each class costs one more outstanding query.
const SIZES: [usize; 2] = [wire::UDP_BYTES, 1232];

impl Dns {
    /// Lets a query wait for an equal query, or sends it to a server.
    pub(super) fn coalesce_or_dispatch(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) {
        if !self.join(settings, key) {
            self.alter(settings, key);
            self.dispatch(cx, settings, key);
        }
    }

    /// Lets a query wait for an outstanding equal query. Returns false if there is none, or if responses to the
    /// query are not cached. If they are cached, later equal queries can wait for this query.
    fn join(&mut self, settings: &Settings, key: QueryKey) -> bool {
        let query = &self.queries[key];
        let (requester, view, message) = (&query.requester, &query.view, &query.message);
        let cache_key = &mut self.key;
        if response::cache(settings, requester).is_none()
            || !response::key_of(cache_key, settings, requester, view, message)
        {
            return false;
        }
        // A response that was truncated for UDP is of no use over a stream, nor for a client that takes more.
        cache_key.push(u8::from(matches!(requester.origin, Origin::Stream(_))));
        cache_key.push(SIZES.iter().filter(|size| view.udp_size() > **size).count() as u8);
        cache_key.extend_from_slice(&requester.service.into_raw().to_ne_bytes());
        if let Some(&leader) = self.coalesced.get(cache_key.as_slice()) {
            self.queries[leader].followers.push(key);
            self.queries[key].waits = Waits::AtQuery;
            return true;
        }
        self.coalesced.insert(cache_key.clone(), key);
        self.queries[key].coalesce_key = Some(std::mem::take(cache_key));
        false
    }

    /// Removes a query from the queries that equal queries can wait for.
    pub(super) fn leave_coalesced(&mut self, query: &mut Query) {
        if let Some(key) = query.coalesce_key.take() {
            self.coalesced.remove(&key);
        }
    }

    /// Gives a response to all queries that wait for it. Each copy is adapted to the ID and the spelling of its
    /// query, as a response from the cache is.
    pub(in crate::dns) fn share(&mut self, cx: &mut Context, query: &mut Query, response: &[u8]) {
        let followers = std::mem::take(&mut query.followers);
        self.share_with(cx, followers, response);
    }

    /// Shares a response later, when the batch of responses is free.
    pub(in crate::dns) fn keep_shared(&mut self, query: &mut Query, response: &[u8]) {
        if !query.followers.is_empty() {
            self.shared.push((std::mem::take(&mut query.followers), response.to_vec()));
        }
    }

    /// Gives the deferred responses to the queries that wait for them.
    pub(in crate::dns) fn share_deferred(&mut self, cx: &mut Context) {
        while let Some((followers, response)) = self.shared.pop() {
            self.share_with(cx, followers, &response);
        }
    }

    fn share_with(&mut self, cx: &mut Context, followers: Vec<QueryKey>, response: &[u8]) {
        for key in followers {
            let follower = self.retire(cx, key);
            let mut copy = self.spare();
            copy.extend_from_slice(response);
            let Query { requester, view, message, .. } = &follower;
            response::address(&mut copy, view, message);
            self.truncate(cx, requester, view, message, &mut copy);
            follower.log_response(cx, &copy);
            self.deliver(cx, requester, &copy);
            self.give_back(copy);
            self.give_back(follower.message);
        }
    }

    /// Sends one of the queries that waited for a query that is abandoned. The others wait for the query that
    /// is sent.
    pub(super) fn part(&mut self, cx: &mut Context, settings: &Settings, query: &mut Query) {
        for key in std::mem::take(&mut query.followers) {
            self.queries[key].waits = Waits::Nowhere;
            self.coalesce_or_dispatch(cx, settings, key);
        }
    }
}
