//! Stickiness: the bounded table of the servers of known clients.
//!
//! Workers share the table. It is split by the hash of the client into shards. Each shard has its own lock,
//! which is taken briefly, once for each new connection or flow of a sticky pool, and never for a packet. A
//! table of up to [`SHARD_CLIENTS`] clients is one shard, so it evicts exactly the least recently used
//! client; a larger table evicts the least recently used client of one shard.
//!
//! The table does not know which servers are usable. The snapshot looks up a client's [`Assignment`] and
//! records the result.

pub mod balance;
mod shard;

use crate::ServerId;
use crate::hash;
use crate::lock::lock;
use crate::spec::StickySpec;
use crate::time::Time;
use shard::Shard;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

/// Number of clients that one shard holds before the table is split.
pub const SHARD_CLIENTS: usize = 4096;
/// Maximum number of shards.
const SHARDS_MAX: usize = 64;
/// Maximum number of expired clients that are removed while a shard is locked, so that other workers wait only
/// briefly.
const SWEEP_MAX: usize = 1024;

/// The server of a client, and its substitute while that server is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Server to which the client is assigned.
    pub home: ServerId,
    /// Server of the client while its home is unavailable; only with [`StickySpec::failback`].
    pub substitute: Option<ServerId>,
}

impl Assignment {
    /// Creates an assignment without a substitute.
    #[must_use]
    pub const fn at(home: ServerId) -> Self {
        Self { home, substitute: None }
    }

    /// Returns the assignment of a client whose present server is `server`. `moves` returns true for a home to
    /// which the client must not return.
    fn with(self, server: ServerId, moves: impl FnOnce(ServerId) -> bool) -> Self {
        if self.home == server || moves(self.home) {
            Self::at(server)
        } else {
            Self { home: self.home, substitute: Some(server) }
        }
    }
}

/// A client in a sticky table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyClient {
    /// Address of the client.
    pub address: IpAddr,
    /// Home of the client, and its substitute.
    pub assignment: Assignment,
    /// Time at which the client was seen last.
    pub seen_at: Time,
}

/// The sticky table of a pool.
///
/// ```
/// use evener_core::spec::{StickyBy, StickySpec};
/// use evener_core::sticky::{Assignment, Sticky};
/// use evener_core::{ServerId, Time};
///
/// let spec = StickySpec { by: StickyBy::ClientIp, size: 1000, ttl: None, failback: false, rebalance: None };
/// let sticky = Sticky::new(&spec, 7);
/// let client = "192.0.2.1".parse().unwrap();
/// sticky.remember(client, ServerId(3), Time::ZERO, |_| false);
/// assert_eq!(sticky.lookup(client, Time::ZERO), Some(Assignment::at(ServerId(3))));
/// ```
#[derive(Debug)]
pub struct Sticky {
    shards: Box<[Mutex<Shard>]>,
    spec: StickySpec,
}

impl Sticky {
    /// Creates an empty table according to `spec`. `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &StickySpec, key: u64) -> Self {
        let shards = spec.size.div_ceil(SHARD_CLIENTS).next_power_of_two().min(SHARDS_MAX);
        let capacity = spec.size.div_ceil(shards);
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new(capacity, key))).collect(),
            spec: spec.clone(),
        }
    }

    /// Returns the configuration of the table.
    #[must_use]
    pub fn spec(&self) -> &StickySpec {
        &self.spec
    }

    /// Returns the assignment of a client, unless it has expired.
    #[must_use]
    pub fn lookup(&self, client: IpAddr, now: Time) -> Option<Assignment> {
        let (assignment, seen) = self.shard(client).assignment(client)?;
        self.alive(seen, now).then_some(assignment)
    }

    /// Records `server` as the present server of `client`. Without failback the server becomes the client's
    /// home. With failback it becomes the home if there is none or `moves` returns true for the present home;
    /// otherwise it becomes the substitute.
    pub fn remember(
        &self,
        client: IpAddr,
        server: ServerId,
        now: Time,
        moves: impl FnOnce(ServerId) -> bool,
    ) {
        let mut shard = self.shard(client);
        let known = if self.spec.failback { shard.assignment(client) } else { None };
        let known = known.filter(|&(_, seen)| self.alive(seen, now));
        let assignment =
            known.map_or(Assignment::at(server), |(assignment, _)| assignment.with(server, moves));
        shard.put(client, assignment, now);
    }

    /// Forgets every client whose home is the removed server, and removes the server as the substitute of
    /// other clients.
    pub fn forget_server(&self, server: ServerId) {
        self.shards.iter().for_each(|shard| lock(shard).forget_server(server));
    }

    /// Forgets up to `count` clients of a home, the least recently seen first, and returns their number. Each
    /// shard contributes in proportion to the number of its clients with that home.
    pub fn forget_some(&self, home: ServerId, count: usize) -> usize {
        let counts: Vec<usize> = self.shards.iter().map(|shard| lock(shard).clients_of(home)).collect();
        let all = counts.iter().sum::<usize>().max(1);
        let mut left = count;
        for (shard, of_home) in self.shards.iter().zip(counts) {
            // A table has fewer than 2^24 clients, so the product fits.
            let part = (count.min(all) * of_home).div_ceil(all).min(left);
            left -= lock(shard).forget_oldest(home, part);
        }
        count - left
    }

    /// Removes the expired clients.
    pub fn sweep(&self, now: Time) {
        let is_expired = |seen| !self.alive(seen, now);
        for shard in &self.shards {
            while lock(shard).sweep(SWEEP_MAX, is_expired) == SWEEP_MAX {}
        }
    }

    /// Returns the number of clients, including clients that expired since the last [`Sticky::sweep`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns true if the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the expired clients. Returns the number of clients of each home, in the order of the servers'
    /// identities.
    #[must_use]
    pub fn homes(&self, now: Time) -> Vec<(ServerId, usize)> {
        self.sweep(now);
        let mut homes = BTreeMap::new();
        for shard in &self.shards {
            lock(shard).homes().for_each(|(home, clients)| *homes.entry(home).or_default() += clients);
        }
        homes.into_iter().collect()
    }

    /// Calls `visit` for every client that has not expired. A shard is locked while its clients are copied, not
    /// while they are visited.
    pub fn visit(&self, now: Time, mut visit: impl FnMut(StickyClient)) {
        for shard in &self.shards {
            let clients: Vec<_> = lock(shard).clients().collect();
            let alive = clients.into_iter().filter(|&(.., seen)| self.alive(seen, now));
            alive.for_each(|(address, assignment, seen_at)| {
                visit(StickyClient { address, assignment, seen_at });
            });
        }
    }

    /// Returns at most `max` clients, the most recently seen first.
    #[must_use]
    pub fn clients(&self, now: Time, max: usize) -> Vec<StickyClient> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let alive = shard.clients().take_while(|&(.., seen)| self.alive(seen, now));
            all.extend(alive.take(max).map(|(address, assignment, seen_at)| StickyClient {
                address,
                assignment,
                seen_at,
            }));
            drop(shard);
            // Both parts are sorted already, so the stable sort merges them.
            all.sort_by_key(|client| std::cmp::Reverse(client.seen_at));
            all.truncate(max);
        }
        all
    }

    /// Adds a client of another process, with the time at which it was seen there.
    pub fn restore(&self, client: &StickyClient) {
        let assignment = client.assignment;
        let assignment = if self.spec.failback { assignment } else { Assignment::at(assignment.home) };
        self.shard(client.address).put(client.address, assignment, client.seen_at);
    }

    /// Copies the clients of another table, the oldest first. If there are more than fit, the newest remain.
    pub fn adopt(&self, other: &Self, now: Time) {
        for shard in &other.shards {
            let mut entries: Vec<_> = lock(shard).clients().collect();
            entries.reverse();
            for (client, assignment, seen) in entries {
                if other.alive(seen, now) {
                    let assignment =
                        if self.spec.failback { assignment } else { Assignment::at(assignment.home) };
                    self.shard(client).put(client, assignment, seen);
                }
            }
        }
    }

    /// Panics unless every shard is consistent.
    pub fn check_invariants(&self) {
        self.shards.iter().for_each(|shard| lock(shard).check_invariants(self.spec.failback));
    }

    fn alive(&self, seen: Time, now: Time) -> bool {
        self.spec.ttl.is_none_or(|ttl| now.since(seen) < ttl)
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, Shard> {
        lock(&self.shards[hash::of_client(client) as usize & (self.shards.len() - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::StickyBy;
    use std::time::Duration;

    fn table(size: usize, ttl_secs: Option<u64>) -> Sticky {
        with_failback(size, ttl_secs, false)
    }

    fn with_failback(size: usize, ttl_secs: Option<u64>, failback: bool) -> Sticky {
        let ttl = ttl_secs.map(Duration::from_secs);
        let by = StickyBy::ClientIp;
        Sticky::new(&StickySpec { by, size, ttl, failback, rebalance: None }, 3)
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    fn remember(sticky: &Sticky, number: u32, server: u32, secs: u64) {
        sticky.remember(client(number), ServerId(server), at(secs), |_| false);
    }

    fn home(sticky: &Sticky, number: u32, secs: u64) -> Option<u32> {
        sticky.lookup(client(number), at(secs)).map(|assignment| assignment.home.0)
    }

    #[test]
    fn the_least_recently_seen_client_is_evicted_first() {
        let sticky = table(2, None);
        (1..=2).for_each(|n| remember(&sticky, n, n, u64::from(n)));
        remember(&sticky, 1, 1, 3);
        remember(&sticky, 3, 3, 4);
        let seen: Vec<_> = (1..=3).map(|n| home(&sticky, n, 5)).collect();
        assert_eq!(seen, [Some(1), None, Some(3)]);
        assert_eq!(sticky.homes(at(5)), [(ServerId(1), 1), (ServerId(3), 1)]);
    }

    #[test]
    fn a_client_is_forgotten_after_its_time_to_live() {
        let sticky = table(8, Some(10));
        remember(&sticky, 1, 1, 0);
        remember(&sticky, 2, 1, 5);
        assert_eq!(home(&sticky, 1, 9), Some(1));
        assert_eq!(home(&sticky, 1, 10), None);
        let expected =
            StickyClient { address: client(2), assignment: Assignment::at(ServerId(1)), seen_at: at(5) };
        assert_eq!(sticky.clients(at(10), 9), [expected]);
        assert_eq!(sticky.len(), 2, "an expired client remains in the table until a sweep");
        assert_eq!((sticky.homes(at(10)), sticky.len()), (vec![(ServerId(1), 1)], 1));
        sticky.sweep(at(15));
        assert_eq!((sticky.homes(at(15)), sticky.is_empty()), (vec![], true));
    }

    #[test]
    fn a_sweep_removes_all_expired_clients_and_no_others() {
        let sticky = table(20_000, Some(10));
        (0..10_000).for_each(|n| remember(&sticky, n, n % 3, 0));
        (10_000..10_500).for_each(|n| remember(&sticky, n, 7, 5));
        sticky.sweep(at(10));
        assert_eq!((sticky.homes(at(10)), sticky.len()), (vec![(ServerId(7), 500)], 500));
        sticky.check_invariants();
    }

    #[test]
    fn a_table_for_a_million_clients_holds_nearly_a_million() {
        let sticky = table(1_000_000, None);
        (0..1_200_000).for_each(|n| remember(&sticky, n, n % 7, 1));
        assert!((980_000..=1_000_064).contains(&sticky.len()), "{}", sticky.len());
        assert_eq!(home(&sticky, 1_199_999, 1), Some(1_199_999 % 7));
        sticky.forget_server(ServerId(3));
        assert_eq!(home(&sticky, 1_199_999 - 1_199_999 % 7 + 3 - 7, 1), None);
        sticky.check_invariants();
    }

    #[test]
    fn a_table_of_another_size_adopts_the_newest_clients() {
        let (old, new) = (table(4, Some(10)), table(2, Some(10)));
        (0..4).for_each(|n| remember(&old, n, n, u64::from(n)));
        new.adopt(&old, at(5));
        assert_eq!((home(&new, 3, 5), home(&new, 1, 5)), (Some(3), None));
        assert_eq!(home(&new, 3, 13), None, "the time of the last use is kept");
        new.check_invariants();
    }

    #[test]
    fn a_client_keeps_its_home_while_it_has_a_substitute() {
        let sticky = with_failback(8, Some(10), true);
        let check = |secs, expected: Option<(u32, Option<u32>)>| {
            let assignment = sticky.lookup(client(1), at(secs));
            assert_eq!(
                assignment.map(|assignment| (assignment.home.0, assignment.substitute.map(|id| id.0))),
                expected
            );
            sticky.check_invariants();
        };
        remember(&sticky, 1, 5, 0);
        check(0, Some((5, None)));
        remember(&sticky, 1, 6, 1);
        check(1, Some((5, Some(6))));
        remember(&sticky, 1, 7, 2);
        check(2, Some((5, Some(7))));
        sticky.forget_server(ServerId(7));
        check(2, Some((5, None)));
        remember(&sticky, 1, 6, 3);
        remember(&sticky, 1, 5, 4);
        check(4, Some((5, None)));
        // A home that the client must leave, a home that was removed, and an expired assignment.
        sticky.remember(client(1), ServerId(8), at(5), |home| home == ServerId(5));
        check(5, Some((8, None)));
        sticky.forget_server(ServerId(8));
        check(5, None);
        remember(&sticky, 1, 5, 6);
        remember(&sticky, 1, 6, 16);
        check(16, Some((6, None)));
    }

    #[test]
    fn without_failback_the_last_server_is_the_home() {
        let sticky = table(8, None);
        remember(&sticky, 1, 5, 0);
        remember(&sticky, 1, 6, 1);
        assert_eq!(sticky.lookup(client(1), at(1)), Some(Assignment::at(ServerId(6))));
        // A table without failback adopts the home of a client, not its substitute.
        let old = with_failback(8, None, true);
        remember(&old, 1, 5, 0);
        remember(&old, 1, 6, 1);
        let (with, without) = (with_failback(9, None, true), table(9, None));
        with.adopt(&old, at(2));
        without.adopt(&old, at(2));
        let substitute =
            |sticky: &Sticky| sticky.lookup(client(1), at(2)).map(|assignment| assignment.substitute);
        assert_eq!((substitute(&with), substitute(&without)), (Some(Some(ServerId(6))), Some(None)));
    }

    #[test]
    fn the_longest_unseen_clients_of_a_server_are_forgotten_first() {
        let sticky = table(100, None);
        (0..10).for_each(|n| remember(&sticky, n, n % 2, u64::from(n)));
        assert_eq!(sticky.forget_some(ServerId(0), 3), 3);
        let left: Vec<_> = (0..10).filter(|&n| home(&sticky, n, 10).is_some()).collect();
        assert_eq!(left, [1, 3, 5, 6, 7, 8, 9]);
        assert_eq!(sticky.forget_some(ServerId(0), 9), 2, "the server has two clients left");
        assert_eq!(sticky.forget_some(ServerId(0), 9), 0);
        assert_eq!(sticky.homes(at(10)), [(ServerId(1), 5)]);
    }

    #[test]
    fn every_shard_forgets_clients_in_proportion_to_its_clients() {
        let sticky = table(64 * SHARD_CLIENTS, None);
        (0..64_000).for_each(|n| remember(&sticky, n, n % 2, 1));
        assert_eq!(sticky.forget_some(ServerId(1), 8_000), 8_000);
        assert_eq!(sticky.homes(at(1)), [(ServerId(0), 32_000), (ServerId(1), 24_000)]);
        // Of about 500 clients in a shard about 375 are left.
        let parts: Vec<usize> =
            sticky.shards.iter().map(|shard| lock(shard).clients_of(ServerId(1))).collect();
        assert!(parts[..63].iter().all(|part| (250..500).contains(part)), "{parts:?}");
        sticky.check_invariants();
    }

    #[test]
    fn a_listing_has_the_newest_clients_of_all_shards() {
        let sticky = with_failback(2 * SHARD_CLIENTS, None, true);
        (0..100).for_each(|n| remember(&sticky, n, 1, u64::from(n)));
        remember(&sticky, 7, 2, 100);
        let one = |number, substitute, secs| StickyClient {
            address: client(number),
            assignment: Assignment { home: ServerId(1), substitute },
            seen_at: at(secs),
        };
        let listed = sticky.clients(at(200), 3);
        assert_eq!(listed, [one(7, Some(ServerId(2)), 100), one(99, None, 99), one(98, None, 98),]);
        assert_eq!(sticky.clients(at(200), 1000).len(), 100);
        assert!(sticky.clients(at(200), 0).is_empty());
    }
}
