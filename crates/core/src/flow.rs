//! The associations of a datagram service: the server of each client, and the plane's handle for it.
//!
//! The table receives events (a datagram, the time, a removed server) and returns the flows that end. Sockets
//! belong to the plane. The table is bounded: when it is full, it evicts the least recently used flow.

use crate::ServerId;
use crate::lru::Lru;
use crate::time::Time;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Identity of a flow: the client and the address that it sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The local address that the client sends to, when the listener has several.
    pub local: Option<IpAddr>,
    /// The proxy that reported the client by a PROXY header.
    pub via: Option<Via>,
    /// The server, when the datagrams of one client are spread over several servers. The client has one flow to
    /// each of them.
    pub lane: Option<ServerId>,
}

/// A proxy between this instance and a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Via {
    /// Address and port of the proxy. Responses go there.
    pub proxy: SocketAddr,
    /// The address that the client sent to.
    pub destination: SocketAddr,
    /// Number of instances of Evener that passed the datagrams on.
    pub hops: u8,
}

impl FlowKey {
    /// Returns the address that responses are sent to.
    #[must_use]
    pub fn sender(&self) -> SocketAddr {
        self.via.map_or(self.client, |via| via.proxy)
    }
}

/// The destination of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The server.
    pub server: ServerId,
    /// The plane's handle for the flow's socket to the server; opaque here.
    pub handle: u64,
    /// Generation of the snapshot of the pool that last allowed this flow.
    pub generation: u64,
}

/// The table of one listener of one worker.
#[derive(Debug)]
pub struct FlowTable {
    flows: Lru<FlowKey, Flow>,
    idle: Duration,
}

impl FlowTable {
    /// Creates an empty table for at most `capacity` flows, each of which ends when it is unused for `idle`.
    /// `key` seeds the hashing.
    #[must_use]
    pub fn new(capacity: usize, idle: Duration, key: u64) -> Self {
        Self { flows: Lru::new(capacity, key), idle }
    }

    /// Changes the idle timeout of all flows.
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Changes the capacity. Ends the flows beyond the new capacity, the longest unused first, and returns
    /// them with their handles.
    pub fn resize(&mut self, capacity: usize) -> Vec<Flow> {
        let surplus = self.len().saturating_sub(capacity.max(1));
        let ended = (0..surplus).filter_map(|_| self.flows.pop_oldest().map(|(_, flow)| flow)).collect();
        self.flows.resize(capacity);
        ended
    }

    /// Returns the number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns true if there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Returns the flow of a datagram that arrived for `key`, and makes it the newest.
    pub fn datagram(&mut self, key: &FlowKey, now: Time) -> Option<&mut Flow> {
        self.flows.touch(key, now)
    }

    /// Returns the flow of `key` without making it newer.
    #[must_use]
    pub fn peek(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.peek(key).map(|(flow, _)| flow)
    }

    /// Begins a flow, or moves it to another server. Returns the flow that was replaced or evicted; its handle
    /// is free.
    #[must_use]
    pub fn begin(&mut self, key: FlowKey, flow: Flow, now: Time) -> Option<Flow> {
        self.flows.insert(key, flow, now).map(|(_, evicted)| evicted)
    }

    /// Ends a flow and returns it; the handle of the flow is free.
    pub fn end(&mut self, key: &FlowKey) -> Option<Flow> {
        self.flows.remove(key)
    }

    /// Removes and returns the next flow whose idle timeout has passed; its handle is free. Call it until it
    /// returns `None`.
    pub fn expire(&mut self, now: Time) -> Option<(FlowKey, Flow)> {
        let (_, used) = self.flows.oldest()?;
        (now.since(used) >= self.idle).then(|| self.flows.pop_oldest())?
    }

    /// Returns the time at which the next flow ends if nothing arrives for it.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.flows.oldest().map(|(_, used)| used + self.idle)
    }

    /// Returns the least recently used flow.
    #[must_use]
    pub fn oldest(&self) -> Option<FlowKey> {
        self.flows.oldest().map(|(key, _)| key)
    }

    /// Returns the time of the last datagram of the flow of `key`.
    #[must_use]
    pub fn used(&self, key: &FlowKey) -> Option<Time> {
        self.flows.peek(key).map(|(_, used)| used)
    }

    /// Returns every flow, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.iter().map(|(key, flow, _)| (key, flow))
    }

    /// Panics unless the table is consistent and each handle belongs to one flow.
    pub fn check_invariants(&self) {
        self.flows.check_invariants();
        let mut handles: Vec<u64> = self.iter().map(|(_, flow)| flow.handle).collect();
        handles.sort_unstable();
        assert!(handles.windows(2).all(|pair| pair[0] != pair[1]), "each handle belongs to one flow");
    }
}

/// The present server of each client whose datagrams are spread over several servers. Bounded like the flows.
#[derive(Debug)]
pub struct Turns(Lru<FlowKey, Turn>);

#[derive(Clone, Copy, Debug)]
struct Turn {
    server: ServerId,
    /// Number of further datagrams in this turn.
    left: u32,
}

impl Turns {
    /// Creates an empty table for at most `capacity` clients. `key` seeds the hashing.
    #[must_use]
    pub fn new(capacity: usize, key: u64) -> Self {
        Self(Lru::new(capacity, key))
    }

    /// Counts one datagram of `key` and returns its server, or `None` if there is no turn or the server has
    /// got all datagrams of its turn.
    pub fn datagram(&mut self, key: &FlowKey, now: Time) -> Option<ServerId> {
        let turn = self.0.touch(key, now)?;
        turn.left = turn.left.checked_sub(1)?;
        Some(turn.server)
    }

    /// Returns the server that had the last turn.
    #[must_use]
    pub fn last(&self, key: &FlowKey) -> Option<ServerId> {
        self.0.peek(key).map(|(turn, _)| turn.server)
    }

    /// Begins the turn of a server. It lasts `datagrams` datagrams, and the first one has arrived.
    pub fn begin(&mut self, key: FlowKey, server: ServerId, datagrams: u32, now: Time) {
        self.0.insert(key, Turn { server, left: datagrams.saturating_sub(1) }, now);
    }

    /// Forgets clients that sent nothing for `idle`.
    pub fn expire(&mut self, idle: Duration, now: Time) {
        while self.0.oldest().is_some_and(|(_, used)| now.since(used) >= idle) {
            self.0.pop_oldest();
        }
    }

    /// Changes the capacity.
    pub fn resize(&mut self, capacity: usize) {
        self.0.resize(capacity);
    }

    /// Returns the number of clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there is no client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;
    use std::collections::BTreeSet;

    fn key(number: u16) -> FlowKey {
        FlowKey { client: SocketAddr::from(([192, 0, 2, 1], number)), local: None, via: None, lane: None }
    }

    fn flow(handle: u64) -> Flow {
        Flow { server: ServerId((handle % 3) as u32), handle, generation: 0 }
    }

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_flow_ends_after_the_idle_timeout_since_its_last_use() {
        let mut table = FlowTable::new(8, Duration::from_secs(10), 1);
        assert_eq!(table.begin(key(1), flow(1), at(0)), None);
        assert_eq!(table.begin(key(2), flow(2), at(1)), None);
        assert!(table.datagram(&key(1), at(9)).is_some());
        assert_eq!(table.next_expiry(), Some(at(11)));
        assert_eq!(table.expire(at(10)), None);
        assert_eq!(table.expire(at(11)), Some((key(2), flow(2))));
        assert_eq!(table.expire(at(11)), None);
        assert_eq!(table.expire(at(19)), Some((key(1), flow(1))));
        assert!(table.is_empty());
    }

    #[test]
    fn a_full_table_evicts_the_least_recently_used_flow() {
        let mut table = FlowTable::new(2, Duration::from_secs(10), 1);
        assert_eq!(table.begin(key(1), flow(1), at(0)), None);
        assert_eq!(table.begin(key(2), flow(2), at(1)), None);
        assert!(table.datagram(&key(1), at(2)).is_some());
        assert_eq!(table.begin(key(3), flow(3), at(3)), Some(flow(2)));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_turn_lasts_for_the_given_number_of_datagrams() {
        let mut turns = Turns::new(2, 1);
        assert_eq!((turns.datagram(&key(1), at(0)), turns.last(&key(1))), (None, None));
        turns.begin(key(1), ServerId(7), 3, at(0));
        let seen: Vec<_> = (0..4).map(|_| turns.datagram(&key(1), at(1))).collect();
        assert_eq!(seen, [Some(ServerId(7)), Some(ServerId(7)), None, None]);
        assert_eq!(turns.last(&key(1)), Some(ServerId(7)));
        turns.begin(key(2), ServerId(8), 1, at(2));
        assert_eq!(turns.datagram(&key(2), at(2)), None);
        // A full table forgets the client that was unused the longest, and idle clients are forgotten.
        turns.begin(key(3), ServerId(9), 1, at(3));
        assert_eq!((turns.len(), turns.last(&key(1))), (2, None));
        turns.expire(Duration::from_secs(5), at(7));
        assert_eq!((turns.len(), turns.last(&key(2))), (1, None));
        turns.expire(Duration::from_secs(5), at(8));
        assert!(turns.is_empty());
    }

    #[test]
    fn each_handle_belongs_to_one_flow_or_is_free() {
        let mut random = Random::seeded(5);
        let mut table = FlowTable::new(16, Duration::from_millis(40), 9);
        let mut free: BTreeSet<u64> = (0..17).collect();
        for step in 0..20_000_u64 {
            let now = Time::ZERO + Duration::from_millis(step);
            while let Some((_, flow)) = table.expire(now) {
                assert!(free.insert(flow.handle));
            }
            let key = key(random.below(40) as u16);
            if random.below(10) == 0 {
                table.end(&key).into_iter().for_each(|flow| assert!(free.insert(flow.handle)));
            } else if table.datagram(&key, now).is_none() {
                let handle = free.pop_first().unwrap();
                let evicted = table.begin(key, flow(handle), now);
                evicted.into_iter().for_each(|flow| assert!(free.insert(flow.handle)));
            }
            table.check_invariants();
            assert_eq!(table.len() + free.len(), 17);
        }
    }
}
