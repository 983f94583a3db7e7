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
use std::time::Duration;

/// Number of clients that one shard holds before the table is split.
pub const SHARD_CLIENTS: usize = 4096;
/// Maximum number of shards.
const SHARDS_MAX: usize = 1024;
/// Number of busy clients that are passed over before one of them is evicted.
const CHANCES_MAX: usize = 8;
/// Length of the windows in which recent connections and requests are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// Reason why a client was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// The access list denies the client.
    AccessList,
    /// The client exceeded a limit.
    Limit,
}

/// Order in which clients are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientOrder {
    /// The most recently active client first.
    #[default]
    Recent,
    /// The client with the most connections or requests a second first.
    Rate,
    /// The client with the most bytes in both directions first.
    Bytes,
    /// The client with the most connections first, refused connections included.
    Connections,
}

impl ClientOrder {
    /// All orders by name.
    pub const NAMED: [(&str, Self); 4] = [
        ("recent", Self::Recent),
        ("rate", Self::Rate),
        ("bytes", Self::Bytes),
        ("connections", Self::Connections),
    ];
}

/// Clients to list.
#[derive(Clone, Copy, Debug)]
pub struct ClientSelection {
    /// The present time.
    pub now: Time,
    /// Clients that were not active since this time are skipped.
    pub since: Time,
    /// The order.
    pub order: ClientOrder,
    /// Maximum number of clients.
    pub most: usize,
}

/// Number of events in the present window and in the window before it.
#[derive(Debug, Default)]
struct Recent {
    /// Number of the present window in the upper half, events in the lower half.
    present: AtomicU64,
    /// Events in the window before it.
    before: AtomicU64,
}

/// Splits the value of [`Recent::present`] into the number of the window and the events in it.
fn window_and_count(present: u64) -> (u64, u64) {
    (present >> 32, present & u64::from(u32::MAX))
}

impl Recent {
    /// Returns the number of the window at a time.
    fn window(now: Time) -> u64 {
        (now.as_nanos() / WINDOW.as_nanos() as u64) & u64::from(u32::MAX)
    }

    fn count(&self, now: Time) {
        let (window, present) = (Self::window(now), self.present.load(Ordering::Relaxed));
        let (begun, count) = window_and_count(present);
        if window > begun {
            let next = window << 32 | 1;
            let relaxed = Ordering::Relaxed;
            if self.present.compare_exchange(present, next, relaxed, relaxed).is_ok() {
                let is_adjacent = begun + 1 == window;
                return self.before.store(if is_adjacent { count } else { 0 }, relaxed);
            }
        }
        self.present.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the events a second: an estimate over the last one to two windows.
    fn rate(&self, now: Time) -> f64 {
        let elapsed = (now.as_nanos() % WINDOW.as_nanos() as u64) as f64 / WINDOW.as_nanos() as f64;
        let (begun, count) = window_and_count(self.present.load(Ordering::Relaxed));
        let events = match Self::window(now).saturating_sub(begun) {
            0 => count as f64 + self.before.load(Ordering::Relaxed) as f64 * (1.0 - elapsed),
            1 => count as f64 * (1.0 - elapsed),
            _ => 0.0,
        };
        events / WINDOW.as_secs_f64()
    }
}

/// Activity of a client. Any worker writes and any thread reads.
#[derive(Debug, Default)]
pub struct ClientRecord {
    connects: AtomicU64,
    requests: AtomicU64,
    denied: AtomicU64,
    limited: AtomicU64,
    turned_away: AtomicU64,
    recent_connects: Recent,
    recent_requests: Recent,
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
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSeen {
    /// Address of the client.
    pub address: IpAddr,
    /// Connections and flows that the client opened.
    pub connects: u64,
    /// Requests of HTTP and queries of DNS.
    pub requests: u64,
    /// Connections, flows and requests that an access list refused.
    pub denied: u64,
    /// Connections and requests that a limit refused.
    pub limited: u64,
    /// Recent connections or requests a second, whichever are more; refused ones are included.
    pub rate: f64,
    /// Bytes received from the client.
    pub bytes_in: u64,
    /// Bytes sent to the client.
    pub bytes_out: u64,
    /// Time of the last new or refused connection, of the last request or of the last bytes.
    pub seen: Time,
    /// The last server.
    pub last_server: Option<LastServer>,
}

impl ClientRecord {
    /// Counts a connection or a flow that the client opened.
    pub fn connected(&self, now: Time) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.recent_connects.count(now);
        self.set_seen(now);
    }

    /// Counts a request of HTTP or a query of DNS.
    pub fn requested(&self, now: Time) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.recent_requests.count(now);
        self.set_seen(now);
    }

    /// Counts the refusal of a connection, flow or request. [`Self::connected`], [`Self::requested`] or
    /// [`Self::turned_away`] counts the connection, flow or request itself.
    pub fn refused(&self, reason: RefusedFor) {
        let counter = match reason {
            RefusedFor::AccessList => &self.denied,
            RefusedFor::Limit => &self.limited,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection or flow that was refused and not served by any pool.
    pub fn turned_away(&self, now: Time) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
        self.recent_connects.count(now);
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

    /// Returns the value by which clients are sorted, the greatest first.
    fn rank(&self, order: ClientOrder, now: Time) -> u64 {
        let sum = |counters: &[&AtomicU64]| -> u64 {
            counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
        };
        match order {
            ClientOrder::Recent => 0,
            ClientOrder::Rate => (self.rate(now) * 1000.0) as u64,
            ClientOrder::Bytes => sum(&[&self.bytes_in, &self.bytes_out]),
            ClientOrder::Connections => sum(&[&self.connects, &self.turned_away]),
        }
    }

    fn rate(&self, now: Time) -> f64 {
        self.recent_connects.rate(now).max(self.recent_requests.rate(now))
    }

    fn snapshot(&self, address: IpAddr, now: Time) -> ClientSeen {
        ClientSeen {
            address,
            connects: self.connects.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            rate: self.rate(now),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            seen: self.seen(),
            last_server: lock(&self.server).clone(),
        }
    }
}

/// Position of a client in a list: by the value of the order, then by the time of its last activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientRank {
    value: u64,
    seen: Time,
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

    /// Returns the record of a client that sent something, if the client is known.
    #[must_use]
    pub fn find(&self, client: IpAddr, now: Time) -> Option<Arc<ClientRecord>> {
        let client = client.to_canonical();
        self.shard(client).touch(&client, now).map(|record| Arc::clone(record))
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

    /// Returns the selected clients in their order, each with the rank by which it is sorted, and the number of
    /// all clients that were seen since the selected time.
    #[must_use]
    pub fn list(&self, selection: &ClientSelection) -> (Vec<(ClientRank, ClientSeen)>, usize) {
        let ClientSelection { now, since, order, most } = *selection;
        let (mut heap, mut total) = (BinaryHeap::new(), 0);
        for shard in &self.shards {
            for (client, record, _) in lock(shard).iter() {
                let rank = ClientRank { value: record.rank(order, now), seen: record.seen() };
                if rank.seen < since {
                    continue;
                }
                total += 1;
                let is_above = |Reverse((lowest, _)): &Reverse<(ClientRank, IpAddr)>| rank > *lowest;
                if heap.len() < most || heap.peek().is_some_and(is_above) {
                    heap.push(Reverse((rank, *client)));
                    if heap.len() > most {
                        heap.pop();
                    }
                }
            }
        }
        let listed = heap.into_sorted_vec().into_iter();
        let listed = listed.filter_map(|Reverse((rank, client))| Some((rank, self.peek(client, now)?)));
        (listed.collect(), total)
    }

    /// Returns all clients, the most recently seen first.
    #[must_use]
    pub fn newest(&self, now: Time) -> Vec<ClientSeen> {
        let selection =
            ClientSelection { now, since: Time::ZERO, order: ClientOrder::Recent, most: usize::MAX };
        self.list(&selection).0.into_iter().map(|(_, client)| client).collect()
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

    fn peek(&self, client: IpAddr, now: Time) -> Option<ClientSeen> {
        self.shard(client).peek(&client).map(|(record, _)| record.snapshot(client, now))
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

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    /// Returns the clients in the table, the most recently seen first.
    fn listed(clients: &Clients) -> Vec<IpAddr> {
        clients.check_invariants();
        clients.newest(at(100)).into_iter().map(|seen| seen.address).collect()
    }

    /// Returns the addresses of at most `most` clients, and the number of clients seen since `since`.
    fn selected(clients: &Clients, order: ClientOrder, since: Time, most: usize) -> (Vec<IpAddr>, usize) {
        let (listed, total) = clients.list(&ClientSelection { now: at(20), since, order, most });
        (listed.into_iter().map(|(_, seen)| seen.address).collect(), total)
    }

    #[test]
    fn a_client_is_listed_with_its_activity_so_far() {
        let clients = Clients::new(10, 1);
        let record = clients.enter(client(1), at(1));
        record.connected(at(1));
        clients.enter(client(1), at(2)).connected(at(2));
        record.requested(at(2));
        record.refused(RefusedFor::Limit);
        record.moved(10, 0, at(3));
        record.moved(5, 70, at(4));
        record.record_server(&"web".into(), &"a:1".into());
        record.record_server(&"web".into(), &"b:1".into());
        let last_server = Some(LastServer { pool: "web".into(), server: "b:1".into() });
        let expected = ClientSeen {
            address: client(1),
            connects: 2,
            requests: 1,
            denied: 0,
            limited: 1,
            rate: 0.4,
            bytes_in: 15,
            bytes_out: 70,
            seen: at(4),
            last_server,
        };
        assert_eq!(clients.newest(at(4)), [expected]);
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
        let recent = |most| selected(&clients, ClientOrder::Recent, at(7), most);
        assert_eq!(recent(3), (vec![client(3), client(9), client(8)], 4));
        assert_eq!(recent(0), (Vec::new(), 4));
    }

    #[test]
    fn clients_are_sorted_by_rate_bytes_or_connections() {
        let clients = Clients::new(100, 1);
        let [quiet, busy, large] = [1, 2, 3].map(|number| clients.enter(client(number), at(1)));
        (0..9).for_each(|_| quiet.connected(at(1)));
        (0..8).for_each(|_| busy.requested(at(19)));
        (0..3).for_each(|_| busy.connected(at(19)));
        large.connected(at(19));
        large.moved(1, 5000, at(18));
        let first = |order| selected(&clients, order, Time::ZERO, 1).0;
        assert_eq!(first(ClientOrder::Rate), [client(2)]);
        assert_eq!(first(ClientOrder::Bytes), [client(3)]);
        assert_eq!(first(ClientOrder::Connections), [client(1)]);
        let refused = clients.enter(client(4), at(19));
        for _ in 0..20 {
            refused.refused(RefusedFor::AccessList);
            refused.turned_away(at(19));
        }
        assert_eq!(first(ClientOrder::Connections), [client(4)], "refused connections count");
        assert_eq!(first(ClientOrder::Rate), [client(4)], "refused connections count");
    }

    #[test]
    fn the_rate_of_a_client_rises_and_falls_within_two_windows() {
        let record = ClientRecord::default();
        let rates = |times: &[u64]| times.iter().map(|&secs| record.rate(at(secs))).collect::<Vec<_>>();
        for second in 10..20 {
            (0..100).for_each(|_| record.requested(at(second)));
        }
        assert_eq!(rates(&[20, 22, 25, 30]), [100.0, 60.0, 0.0, 0.0]);
        record.requested(at(40));
        assert_eq!(rates(&[40]), [0.2], "windows long ago do not count");
        record.requested(at(39));
        assert_eq!(rates(&[40]), [0.4], "a late event counts in the present window");
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
        assert_eq!(large.newest(at(10))[0].bytes_in, 7, "the bytes of an open connection are still counted");
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
