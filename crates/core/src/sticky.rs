//! Stickiness: the bounded table of which client had which server.
//!
//! Workers share it. It is split by the client's hash into shards, each with its own short lock, taken once for a new
//! connection or flow of a pool that is sticky, never for a packet. A table of up to [`SHARD_CLIENTS`] clients is one
//! shard, so its eviction is exactly the least recently used; a larger one evicts the least recently used of a shard.

use crate::ServerId;
use crate::hash;
use crate::lru::Lru;
use crate::spec::StickySpec;
use crate::time::Time;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many clients one shard holds before the table is split.
pub const SHARD_CLIENTS: usize = 4096;
/// The most shards a table is split into.
const SHARDS_MAX: usize = 64;

/// The table of a pool.
#[derive(Debug)]
pub struct Sticky {
    shards: Box<[Mutex<Lru<IpAddr, ServerId>>]>,
    spec: StickySpec,
}

impl Sticky {
    /// An empty table as `spec` says; `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &StickySpec, key: u64) -> Self {
        let shards = spec.size.div_ceil(SHARD_CLIENTS).next_power_of_two().min(SHARDS_MAX);
        let capacity = spec.size.div_ceil(shards);
        Self {
            shards: (0..shards).map(|_| Mutex::new(Lru::new(capacity, key))).collect(),
            spec: spec.clone(),
        }
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &StickySpec {
        &self.spec
    }

    /// The server that `client` had last, unless that is longer ago than the time to live.
    #[must_use]
    pub fn lookup(&self, client: IpAddr, now: Time) -> Option<ServerId> {
        let shard = self.shard(client);
        let (&server, used) = shard.peek(&client)?;
        self.alive(used, now).then_some(server)
    }

    /// Remembers that `client` is with `server` now.
    pub fn remember(&self, client: IpAddr, server: ServerId, now: Time) {
        self.shard(client).insert(client, server, now);
    }

    /// Forgets every client of a server that left.
    pub fn forget_server(&self, server: ServerId) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let gone: Vec<IpAddr> =
                shard.iter().filter(|(_, with, _)| **with == server).map(|(client, ..)| *client).collect();
            for client in &gone {
                shard.remove(client);
            }
        }
    }

    /// How many clients are in the table, those whose time is over included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what another table remembers, the oldest first, as far as there is room.
    pub fn adopt(&self, other: &Self, now: Time) {
        for shard in &other.shards {
            let mut entries: Vec<_> =
                lock(shard).iter().map(|(client, with, used)| (used, *client, *with)).collect();
            entries.reverse();
            for (used, client, server) in entries {
                if other.alive(used, now) {
                    self.shard(client).insert(client, server, used);
                }
            }
        }
    }

    /// Panics unless every shard is sound.
    pub fn check_invariants(&self) {
        self.shards.iter().for_each(|shard| lock(shard).check_invariants());
    }

    fn alive(&self, used: Time, now: Time) -> bool {
        self.spec.ttl.is_none_or(|ttl: Duration| now.since(used) < ttl)
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, Lru<IpAddr, ServerId>> {
        lock(&self.shards[hash::of_client(client) as usize & (self.shards.len() - 1)])
    }
}

/// A shard is sound between its methods, so a panic elsewhere while it was locked leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::StickyBy;

    fn table(size: usize, ttl_secs: Option<u64>) -> Sticky {
        Sticky::new(&StickySpec { by: StickyBy::ClientIp, size, ttl: ttl_secs.map(Duration::from_secs) }, 3)
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn the_least_recently_seen_client_goes_first() {
        let sticky = table(2, None);
        (1..=2).for_each(|n| sticky.remember(client(n), ServerId(n), at(u64::from(n))));
        sticky.remember(client(1), ServerId(1), at(3));
        sticky.remember(client(3), ServerId(3), at(4));
        let seen: Vec<_> = (1..=3).map(|n| sticky.lookup(client(n), at(5))).collect();
        assert_eq!(seen, [Some(ServerId(1)), None, Some(ServerId(3))]);
    }

    #[test]
    fn a_client_is_forgotten_after_its_time_to_live() {
        let sticky = table(8, Some(10));
        sticky.remember(client(1), ServerId(1), at(0));
        assert_eq!(sticky.lookup(client(1), at(9)), Some(ServerId(1)));
        assert_eq!(sticky.lookup(client(1), at(10)), None);
    }

    #[test]
    fn a_million_clients_fit_and_no_more() {
        let sticky = table(1_000_000, None);
        (0..1_200_000).for_each(|n| sticky.remember(client(n), ServerId(n % 7), at(1)));
        assert!((980_000..=1_000_064).contains(&sticky.len()), "{}", sticky.len());
        assert_eq!(sticky.lookup(client(1_199_999), at(1)), Some(ServerId(1_199_999 % 7)));
        sticky.forget_server(ServerId(3));
        assert_eq!(sticky.lookup(client(1_199_999 - 1_199_999 % 7 + 3 - 7), at(1)), None);
        sticky.check_invariants();
    }

    #[test]
    fn another_size_keeps_the_newest() {
        let (old, new) = (table(4, Some(10)), table(2, Some(10)));
        (0..4).for_each(|n| old.remember(client(n), ServerId(n), at(u64::from(n))));
        new.adopt(&old, at(5));
        assert_eq!((new.lookup(client(3), at(5)), new.lookup(client(1), at(5))), (Some(ServerId(3)), None));
        assert_eq!(new.lookup(client(3), at(13)), None, "the time of the last use is kept");
    }
}
