//! Index of pooled connections to servers, by pool and server. A pooled connection has no exchange. The index
//! chooses the connection that is used next, and the connection that is closed first to free descriptors. It
//! does not own connections.

use crate::context::keys::ServerConnectionKey;
use evener_core::hash::Keyed;
use evener_core::{ServerId, Time};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Most pooled connections to one server.
const CONNECTIONS_MAX: usize = 256;

/// Pooled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    key: ServerConnectionKey,
    since: Time,
}

impl Idle {
    pub(super) fn new(key: ServerConnectionKey, since: Time) -> Self {
        Self { key, since }
    }

    pub(super) fn key(&self) -> ServerConnectionKey {
        self.key
    }

    /// Returns the time since the connection became idle.
    pub(super) fn duration(&self, now: Time) -> Duration {
        now.since(self.since)
    }
}

/// Pooled connections of a worker.
#[derive(Debug)]
pub(super) struct Pooled {
    /// Connections by the name of the pool and the server, in the order in which they became idle.
    pools: HashMap<Arc<str>, HashMap<ServerId, Vec<Idle>, Keyed>, Keyed>,
    seed: u64,
}

impl Pooled {
    pub(super) fn new(seed: u64) -> Self {
        Self { pools: HashMap::with_hasher(Keyed::new(seed)), seed }
    }

    /// Returns the most recently used connection to a server.
    pub(super) fn last(&self, pool: &str, server: ServerId) -> Option<Idle> {
        self.pools.get(pool)?.get(&server)?.last().copied()
    }

    /// Returns the connection that has been idle for the longest time, of all servers.
    pub(super) fn oldest(&self) -> Option<ServerConnectionKey> {
        let firsts = self.pools.values().flat_map(HashMap::values).filter_map(|idle| idle.first());
        firsts.min_by_key(|idle| idle.since).map(|idle| idle.key)
    }

    /// Adds a connection that became idle. Returns false if the server has the maximum number of pooled connections.
    pub(super) fn add(&mut self, pool: &Arc<str>, server: ServerId, idle: Idle) -> bool {
        let servers = match self.pools.get_mut(pool) {
            Some(servers) => servers,
            None => self.pools.entry(Arc::clone(pool)).or_insert(HashMap::with_hasher(Keyed::new(self.seed))),
        };
        let connections = servers.entry(server).or_default();
        let has_room = connections.len() < CONNECTIONS_MAX;
        if has_room {
            connections.push(idle);
        }
        has_room
    }

    /// Takes out a connection for an exchange. The memory of its list stays allocated, because most connections
    /// return soon; [`Pooled::remove`] frees it.
    pub(super) fn take(&mut self, pool: &str, server: ServerId, key: ServerConnectionKey) {
        let idle = self.pools.get_mut(pool).and_then(|servers| servers.get_mut(&server));
        if let Some(idle) = idle {
            idle.retain(|idle| idle.key != key);
        }
    }

    /// Removes a connection that ends, if it is pooled.
    pub(super) fn remove(&mut self, pool: &str, server: ServerId, key: ServerConnectionKey) {
        let Some(servers) = self.pools.get_mut(pool) else { return };
        let Some(idle) = servers.get_mut(&server) else { return };
        idle.retain(|idle| idle.key != key);
        if idle.is_empty() {
            servers.remove(&server);
        }
        if servers.is_empty() {
            self.pools.remove(pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::keys::Handle;

    const SERVER: ServerId = ServerId(7);

    fn idle(number: u64) -> Idle {
        Idle { key: ServerConnectionKey::from_raw(number), since: Time::ZERO + Duration::from_secs(number) }
    }

    fn pooled(entries: &[(&str, u32, u64)]) -> Pooled {
        let mut pooled = Pooled::new(1);
        for &(pool, server, number) in entries {
            pooled.add(&pool.into(), ServerId(server), idle(number));
        }
        pooled
    }

    #[test]
    fn the_most_recently_used_connection_is_used_next() {
        let pooled = pooled(&[("a", 7, 1), ("a", 7, 2), ("a", 8, 3), ("b", 7, 4)]);
        let check = |pool: &str, server: u32, expected: Option<u64>| {
            assert_eq!(pooled.last(pool, ServerId(server)), expected.map(idle), "{pool} {server}");
        };
        check("a", 7, Some(2));
        check("a", 8, Some(3));
        check("b", 7, Some(4));
        check("b", 8, None);
        check("c", 7, None);
    }

    #[test]
    fn the_longest_idle_connection_is_closed_first() {
        let mut pooled = pooled(&[("a", 7, 5), ("a", 7, 6), ("b", 7, 2), ("b", 8, 4)]);
        let mut closed = Vec::new();
        while let Some(key) = pooled.oldest() {
            closed.push(key.into_raw());
            for (pool, server) in [("a", 7), ("b", 7), ("b", 8)] {
                pooled.remove(pool, ServerId(server), key);
            }
        }
        assert_eq!(closed, [2, 4, 5, 6]);
    }

    #[test]
    fn a_server_has_a_bounded_number_of_pooled_connections() {
        let mut pooled = Pooled::new(1);
        let pool: Arc<str> = "a".into();
        for number in 0..CONNECTIONS_MAX as u64 {
            assert!(pooled.add(&pool, SERVER, idle(number)), "{number}");
        }
        let next = CONNECTIONS_MAX as u64;
        assert!(!pooled.add(&pool, SERVER, idle(next)));
        assert_eq!(pooled.last(&pool, SERVER), Some(idle(next - 1)), "the refused connection is not pooled");
        assert!(pooled.add(&pool, ServerId(8), idle(next)), "the limit holds for each server");
        pooled.remove(&pool, SERVER, idle(3).key);
        assert!(pooled.add(&pool, SERVER, idle(next)));
    }

    #[test]
    fn a_taken_connection_leaves_no_entry_after_its_end() {
        let mut pooled = pooled(&[("a", 7, 1)]);
        pooled.take("a", SERVER, idle(1).key);
        pooled.take("a", SERVER, idle(1).key);
        pooled.take("b", SERVER, idle(1).key);
        assert_eq!((pooled.last("a", SERVER), pooled.oldest()), (None, None));
        pooled.remove("a", SERVER, idle(1).key);
        assert!(pooled.pools.is_empty());
    }

    #[test]
    fn pools_without_connections_are_removed() {
        let mut pooled = pooled(&[("a", 7, 1), ("b", 7, 2)]);
        pooled.remove("a", SERVER, idle(2).key);
        assert_eq!(pooled.last("a", SERVER), Some(idle(1)), "a connection of another pool stays");
        pooled.remove("a", SERVER, idle(1).key);
        pooled.remove("a", SERVER, idle(1).key);
        pooled.remove("b", SERVER, idle(2).key);
        assert!(pooled.pools.is_empty());
    }
}
