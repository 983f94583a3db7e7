//! The clients that a service has seen: a bounded table with a record for each client.
//!
//! Workers share the table. It is split by the hash of the client into shards with a short lock each, which
//! is taken once for a new connection or flow. Traffic after that is added to the client's record, which its
//! connections hold. A table of up to [`SHARD_CLIENTS`] clients is one shard. A full shard evicts the client
//! that was seen the least recently. It spares up to `CHANCES_MAX` clients that moved bytes since their last
//! connection.

use crate::hash;
use crate::lock::lock;
use crate::lru::Lru;
use crate::time::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Number of clients that one shard holds before the table is split.
pub const SHARD_CLIENTS: usize = 4096;
/// Maximum number of shards.
const SHARDS_MAX: usize = 1024;
/// Number of busy clients that are passed over before one of them is evicted.
const CHANCES_MAX: usize = 8;

/// Activity of a client. Any worker writes and any thread reads.
#[derive(Debug, Default)]
pub struct ClientRecord {
    connects: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    seen: AtomicU64,
    server: Mutex<Option<LastServer>>,
}

/// The last server of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastServer {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// Name of the server in the pool.
    pub server: Arc<str>,
}

/// A copy of a client's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSeen {
    /// Address of the client.
    pub address: IpAddr,
    /// Connections and flows that the client opened.
    pub connects: u64,
    /// Bytes received from the client.
    pub bytes_in: u64,
    /// Bytes sent to the client.
    pub bytes_out: u64,
    /// Time of the last new connection or of the last bytes.
    pub seen: Time,
    /// The last server.
    pub last_server: Option<LastServer>,
}

impl ClientRecord {
    /// Counts a connection or a flow that the client opened.
    pub fn connected(&self, now: Time) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.set_seen(now);
    }

    /// Counts bytes received from the client and sent to it.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64, now: Time) {
        if bytes_in > 0 {
            self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        }
        if bytes_out > 0 {
            self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        }
        self.set_seen(now);
    }

    /// Records the present server of the client.
    pub fn record_server(&self, pool: &Arc<str>, server: &Arc<str>) {
        let mut last = lock(&self.server);
        let same = last.as_ref().is_some_and(|last| last.pool == *pool && last.server == *server);
        if !same {
            *last = Some(LastServer { pool: Arc::clone(pool), server: Arc::clone(server) });
        }
    }

    fn set_seen(&self, now: Time) {
        self.seen.store(now.as_nanos(), Ordering::Relaxed);
    }

    fn seen(&self) -> Time {
        Time::from_nanos(self.seen.load(Ordering::Relaxed))
    }

    fn snapshot(&self, address: IpAddr) -> ClientSeen {
        ClientSeen {
            address,
            connects: self.connects.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            seen: self.seen(),
            last_server: lock(&self.server).clone(),
        }
    }
}

type Shard = Lru<IpAddr, Arc<ClientRecord>>;

/// The table of the clients of a service.
#[derive(Debug)]
pub struct Clients {
    shards: Box<[Mutex<Shard>]>,
    size: u32,
}

impl Clients {
    /// Creates an empty table for `size` clients, at least one. `key` seeds its hashing.
    #[must_use]
    pub fn new(size: u32, key: u64) -> Self {
        let wanted = size.max(1) as usize;
        let shards = wanted.div_ceil(SHARD_CLIENTS).next_power_of_two().min(SHARDS_MAX);
        let capacity = wanted.div_ceil(shards);
        Self { shards: (0..shards).map(|_| Mutex::new(Lru::new(capacity, key))).collect(), size }
    }

    /// Returns the configured number of clients.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Returns the record of a client that has just connected, and creates it if the client is unknown.
    #[must_use]
    pub fn enter(&self, client: IpAddr, now: Time) -> Arc<ClientRecord> {
        let client = client.to_canonical();
        let mut shard = self.shard(client);
        if let Some(record) = shard.touch(&client, now) {
            return Arc::clone(record);
        }
        pass_over_the_busy(&mut shard);
        let record = Arc::new(ClientRecord::default());
        record.set_seen(now);
        shard.insert(client, Arc::clone(&record), now);
        record
    }

    /// Returns the number of clients in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns true if the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns at most `most` clients that were seen since `since`, the most recently seen first, and the
    /// number of all clients that were seen since then.
    #[must_use]
    pub fn newest(&self, since: Time, most: usize) -> (Vec<ClientSeen>, usize) {
        let (mut heap, mut total) = (BinaryHeap::new(), 0);
        for shard in &self.shards {
            for (client, record, _) in lock(shard).iter() {
                let seen = record.seen();
                if seen < since {
                    continue;
                }
                total += 1;
                let is_newer = |Reverse((oldest, _)): &Reverse<(Time, IpAddr)>| seen > *oldest;
                if heap.len() < most || heap.peek().is_some_and(is_newer) {
                    heap.push(Reverse((seen, *client)));
                    if heap.len() > most {
                        heap.pop();
                    }
                }
            }
        }
        let newest = heap.into_sorted_vec().into_iter().filter_map(|Reverse((_, client))| self.peek(client));
        (newest.collect(), total)
    }

    /// Takes over the records of those clients of another table that connected since `since`. If there are
    /// more than fit, the newest remain. A client that this table has already keeps its record.
    pub fn adopt(&self, other: &Self, since: Time) {
        let mut records = Vec::new();
        for shard in &other.shards {
            let shard = lock(shard);
            let new = shard.iter().filter(|(.., used)| *used >= since);
            records.extend(new.map(|(client, record, _)| (record.seen(), *client, Arc::clone(record))));
        }
        records.sort_by_key(|(seen, ..)| *seen);
        for (seen, client, record) in records {
            let mut shard = self.shard(client);
            if shard.peek(&client).is_none() {
                shard.insert(client, record, seen);
            }
        }
    }

    /// Panics unless every shard is consistent and each client is in the shard of its hash.
    pub fn check_invariants(&self) {
        for (number, shard) in self.shards.iter().enumerate() {
            let shard = lock(shard);
            shard.check_invariants();
            assert!(
                shard.iter().all(|(client, ..)| self.number(*client) == number),
                "each client is in the shard of its hash"
            );
        }
    }

    fn peek(&self, client: IpAddr) -> Option<ClientSeen> {
        self.shard(client).peek(&client).map(|(record, _)| record.snapshot(client))
    }

    fn number(&self, client: IpAddr) -> usize {
        hash::of_client(client) as usize & (self.shards.len() - 1)
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.number(client)])
    }
}

/// Prevents a full shard from evicting clients that moved bytes since their last connection, by making up to
/// `CHANCES_MAX` of them newer.
fn pass_over_the_busy(shard: &mut Shard) {
    if shard.len() < shard.capacity() {
        return;
    }
    for _ in 0..CHANCES_MAX {
        let Some((client, used)) = shard.oldest() else { return };
        let Some(seen) = shard.peek(&client).map(|(record, _)| record.seen()).filter(|seen| *seen > used)
        else {
            return;
        };
        shard.touch(&client, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;
    use std::time::Duration;

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    /// Returns the clients in the table, the most recently seen first.
    fn listed(clients: &Clients) -> Vec<IpAddr> {
        clients.check_invariants();
        clients.newest(Time::ZERO, usize::MAX).0.into_iter().map(|seen| seen.address).collect()
    }

    #[test]
    fn a_client_is_listed_with_its_activity_so_far() {
        let clients = Clients::new(10, 1);
        let record = clients.enter(client(1), at(1));
        record.connected(at(1));
        clients.enter(client(1), at(2)).connected(at(2));
        record.moved(10, 0, at(3));
        record.moved(5, 70, at(4));
        record.record_server(&"web".into(), &"a:1".into());
        record.record_server(&"web".into(), &"b:1".into());
        let last_server = Some(LastServer { pool: "web".into(), server: "b:1".into() });
        let expected = ClientSeen {
            address: client(1),
            connects: 2,
            bytes_in: 15,
            bytes_out: 70,
            seen: at(4),
            last_server,
        };
        assert_eq!(clients.newest(Time::ZERO, 9), (vec![expected], 1));
        let mapped: IpAddr = "::ffff:0.0.0.1".parse().unwrap();
        assert!(
            Arc::ptr_eq(&clients.enter(mapped, at(5)), &record),
            "an IPv4-mapped address counts as the IPv4 address"
        );
    }

    #[test]
    fn the_most_recently_seen_clients_come_first_up_to_the_limit() {
        let clients = Clients::new(100, 1);
        (1..=9).for_each(|n| drop(clients.enter(client(n), at(u64::from(n)))));
        clients.enter(client(3), at(20)).connected(at(20));
        let (newest, total) = clients.newest(at(7), 3);
        let newest: Vec<_> = newest.into_iter().map(|seen| seen.address).collect();
        assert_eq!((newest, total), (vec![client(3), client(9), client(8)], 4));
        assert_eq!(clients.newest(at(7), 0), (Vec::new(), 4));
    }

    #[test]
    fn a_full_table_evicts_an_idle_client_before_a_busy_client() {
        let clients = Clients::new(2, 1);
        let busy = clients.enter(client(1), at(1));
        let _idle = clients.enter(client(2), at(2));
        busy.moved(1, 1, at(3));
        let _new = clients.enter(client(3), at(4));
        assert_eq!(listed(&clients), [client(3), client(1)]);
    }

    #[test]
    fn a_busy_client_is_evicted_when_all_are_busy() {
        let clients = Clients::new(20, 1);
        for n in 0..20 {
            clients.enter(client(n), at(1)).moved(1, 1, at(2));
        }
        let _new = clients.enter(client(99), at(3));
        assert_eq!(clients.len(), 20);
        assert_eq!(listed(&clients)[0], client(99));
    }

    #[test]
    fn a_table_of_another_size_adopts_the_newest_records() {
        let (old, small, large) = (Clients::new(4, 1), Clients::new(2, 1), Clients::new(20_000, 1));
        let records: Vec<_> = (0..4).map(|n| old.enter(client(n), at(u64::from(n) + 1))).collect();
        records[0].moved(1, 0, at(9));
        small.adopt(&old, Time::ZERO);
        assert_eq!(listed(&small), [client(0), client(3)]);
        large.adopt(&small, Time::ZERO);
        assert_eq!(listed(&large), [client(0), client(3)]);
        records[3].moved(7, 0, at(10));
        assert_eq!(
            large.newest(at(10), 1).0[0].bytes_in,
            7,
            "the bytes of an open connection are still counted"
        );
        let _late = old.enter(client(8), at(11));
        large.adopt(&old, at(11));
        assert_eq!(listed(&large), [client(8), client(3), client(0)]);
    }

    #[test]
    fn the_table_stays_bounded_and_consistent() {
        let (clients, mut random) = (Clients::new(10_000, 7), Random::seeded(11));
        for step in 0..40_000_u64 {
            let record = clients.enter(client(random.below(30_000) as u32), Time::from_nanos(step));
            if random.below(3) == 0 {
                record.moved(random.below(100) as u64, 1, Time::from_nanos(step + 1));
            }
        }
        clients.check_invariants();
        assert!((9_000..=10_004).contains(&clients.len()), "{}", clients.len());
    }
}
