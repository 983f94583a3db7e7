//! Limits per client of a service: concurrent connections, new connections and requests per second.
//!
//! Rates are token buckets, stored as one time each (the generic cell rate algorithm, ITU-T I.371, annex A).
//! The table is bounded: a new client replaces the least recently seen client. Under a flood from more
//! addresses than the table holds, the limits get looser, never tighter. The table is split into shards with
//! short locks, which are taken once for a connection or request of a service with such limits.

use crate::hash;
use crate::lock::lock;
use crate::lru::Lru;
use crate::time::Time;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const SHARDS: usize = 16;

/// A number of events in a period. All of them may happen at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Number of events.
    pub count: u32,
    /// Length of the period.
    pub period: Duration,
}

/// Error of a text that is not a rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate: write 20/s, 100/m or 1000/h")]
pub struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let fail = || RateError(text.into());
        let (count, unit) = text.split_once('/').ok_or_else(fail)?;
        let count =
            count.trim().parse().ok().filter(|count| (1..=1_000_000_000).contains(count)).ok_or_else(fail)?;
        let period = match unit.trim() {
            "s" | "second" => 1,
            "m" | "minute" => 60,
            "h" | "hour" => 3600,
            _ => return Err(fail()),
        };
        Ok(Self { count, period: Duration::from_secs(period) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(out, "{}/{unit}", self.count)
    }
}

impl Rate {
    /// Returns true if one more event is admitted now. In that case advances `full_at`, the time at which the
    /// bucket is full again.
    pub(crate) fn admits(self, full_at: &mut Time, now: Time) -> bool {
        let interval = self.period / self.count;
        let next = (*full_at).max(now) + interval;
        let fits = next.since(now) <= self.period;
        if fits {
            *full_at = next;
        }
        fits
    }
}

/// Limits per client of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleSpec {
    /// Concurrent connections.
    pub connections: Option<u32>,
    /// New connections.
    pub connection_rate: Option<Rate>,
    /// HTTP requests.
    pub request_rate: Option<Rate>,
    /// Number of clients in the table.
    pub size: usize,
}

impl ThrottleSpec {
    /// Maximum number of clients in the table.
    pub const SIZE_MAX: usize = 16_000_000;
}

/// State of a client.
#[derive(Clone, Copy, Debug, Default)]
struct ClientState {
    connections: u32,
    connections_full_at: Time,
    requests_full_at: Time,
}

/// The table of the clients of a service.
#[derive(Debug)]
pub struct Throttle {
    spec: ThrottleSpec,
    shards: Box<[Mutex<Lru<IpAddr, ClientState>>]>,
}

/// A limit that a client reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// Concurrent connections.
    Connections,
    /// New connections in a period.
    ConnectionRate,
    /// HTTP requests in a period.
    RequestRate,
}

/// Number of present connections of a client, and the limits that the client has used up. Reading them counts
/// neither a connection nor a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Number of present connections.
    pub connections: u32,
    /// The limit that refuses the client's next connection.
    pub connection: Option<Exceeded>,
    /// The limit that refuses the client's next request.
    pub request: Option<Exceeded>,
}

impl Throttle {
    /// Creates an empty table according to `spec`. `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &ThrottleSpec, key: u64) -> Self {
        let capacity = spec.size.div_ceil(SHARDS);
        let shards = (0..SHARDS).map(|_| Mutex::new(Lru::new(capacity, key))).collect();
        Self { spec: spec.clone(), shards }
    }

    /// Returns the configuration of the table.
    #[must_use]
    pub fn spec(&self) -> &ThrottleSpec {
        &self.spec
    }

    /// Takes a slot for a new connection of `client`.
    ///
    /// # Errors
    /// The limit that the client reached.
    pub fn enter(self: &Arc<Self>, client: IpAddr, now: Time) -> Result<ClientLease, Exceeded> {
        let key = key_of(client);
        let mut shard = self.shard(key);
        let mut seen = shard.peek(&key).map(|(seen, _)| *seen).unwrap_or_default();
        if self.spec.connections.is_some_and(|most| seen.connections >= most) {
            return Err(Exceeded::Connections);
        }
        if self.spec.connection_rate.is_some_and(|rate| !rate.admits(&mut seen.connections_full_at, now)) {
            return Err(Exceeded::ConnectionRate);
        }
        seen.connections += 1;
        shard.insert(key, seen, now);
        drop(shard);
        Ok(ClientLease { throttle: Arc::clone(self), key })
    }

    /// Counts a request of `client` and returns true if it may be served.
    #[must_use]
    pub fn admits_request(&self, client: IpAddr, now: Time) -> bool {
        let Some(rate) = self.spec.request_rate else { return true };
        let key = key_of(client);
        let mut shard = self.shard(key);
        let mut seen = shard.peek(&key).map(|(seen, _)| *seen).unwrap_or_default();
        let admitted = rate.admits(&mut seen.requests_full_at, now);
        shard.insert(key, seen, now);
        admitted
    }

    /// Returns the number of connections of a client, and the limits that the client has used up now.
    #[must_use]
    pub fn used(&self, client: IpAddr, now: Time) -> Used {
        let key = key_of(client);
        let mut seen = self.shard(key).peek(&key).map(|(seen, _)| *seen).unwrap_or_default();
        let refuses = |rate: Option<Rate>, full_at| rate.is_some_and(|rate| !rate.admits(full_at, now));
        let connection = if self.spec.connections.is_some_and(|most| seen.connections >= most) {
            Some(Exceeded::Connections)
        } else {
            refuses(self.spec.connection_rate, &mut seen.connections_full_at)
                .then_some(Exceeded::ConnectionRate)
        };
        let request =
            refuses(self.spec.request_rate, &mut seen.requests_full_at).then_some(Exceeded::RequestRate);
        Used { connections: seen.connections, connection, request }
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

    fn leave(&self, key: IpAddr) {
        let mut shard = self.shard(key);
        let seen = shard.peek(&key).map(|(seen, used)| (*seen, used));
        if let Some((mut seen, used)) = seen {
            seen.connections = seen.connections.saturating_sub(1);
            shard.insert(key, seen, used);
        }
    }

    fn shard(&self, key: IpAddr) -> MutexGuard<'_, Lru<IpAddr, ClientState>> {
        lock(&self.shards[hash::of_client(key) as usize % SHARDS])
    }
}

/// Returns the key of a client. A /64 of IPv6 counts as one client, because it belongs to one site (RFC
/// 6177).
fn key_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// A client's slot, which is given back on drop.
#[derive(Debug)]
pub struct ClientLease {
    throttle: Arc<Throttle>,
    key: IpAddr,
}

impl Drop for ClientLease {
    fn drop(&mut self) {
        self.throttle.leave(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_nanos(1_000_000_000 + ms * 1_000_000)
    }

    fn throttle(connections: Option<u32>, rate: Option<&str>, size: usize) -> Arc<Throttle> {
        let rate = rate.map(|rate| rate.parse().unwrap());
        let spec = ThrottleSpec { connections, connection_rate: rate, request_rate: rate, size };
        Arc::new(Throttle::new(&spec, 1))
    }

    #[test]
    fn concurrent_connections_are_limited_per_client() {
        let throttle = throttle(Some(2), None, 100);
        let enter = |client: &str| throttle.enter(client.parse().unwrap(), at(0));
        let first = (enter("192.0.2.1").unwrap(), enter("192.0.2.1").unwrap());
        assert_eq!(enter("192.0.2.1").unwrap_err(), Exceeded::Connections);
        let _other = enter("192.0.2.2").unwrap();
        drop(first);
        assert!(enter("192.0.2.1").is_ok());
    }

    #[test]
    fn all_addresses_of_an_ipv6_64_prefix_count_as_one_client() {
        let throttle = throttle(Some(1), None, 100);
        let enter = |client: &str| throttle.enter(client.parse().unwrap(), at(0));
        let _slot = enter("2001:db8::1").unwrap();
        assert!(enter("2001:db8::2:3").is_err());
        assert!(enter("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn a_bucket_holds_the_events_of_one_period_and_refills_evenly() {
        let throttle = throttle(None, Some("10/s"), 100);
        let client = "192.0.2.1".parse().unwrap();
        let admitted = |ms: u64| throttle.admits_request(client, at(ms));
        assert_eq!((0..20).filter(|_| admitted(0)).count(), 10);
        assert!(!admitted(99));
        assert!(admitted(100) && !admitted(100));
        assert_eq!((0..20).filter(|_| admitted(60_000)).count(), 10);
    }

    #[test]
    fn reading_the_limits_does_not_count_as_an_event() {
        let throttle = throttle(Some(3), Some("2/s"), 100);
        let client = "192.0.2.1".parse().unwrap();
        let mut slots = Vec::new();
        for ms in [0, 0, 0, 600, 700, 5000, 5000, 9000] {
            let readings = [throttle.used(client, at(ms)), throttle.used(client, at(ms))];
            assert_eq!(readings[0], readings[1], "{ms}");
            assert_eq!(readings[0].connections, slots.len() as u32, "{ms}");
            match throttle.enter(client, at(ms)) {
                Ok(slot) => {
                    assert_eq!(readings[0].connection, None, "{ms}");
                    slots.push(slot);
                }
                Err(exceeded) => assert_eq!(readings[0].connection, Some(exceeded), "{ms}"),
            }
            assert_eq!(throttle.admits_request(client, at(ms)), readings[0].request.is_none(), "{ms}");
        }
        assert_eq!(slots.len(), 3);
    }

    #[test]
    fn the_table_is_bounded_and_slots_of_evicted_clients_can_be_released() {
        let throttle = throttle(Some(1), None, 160);
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let slots: Vec<_> =
            (0..10_000).map(|number| throttle.enter(address(number), at(0)).unwrap()).collect();
        assert!(throttle.len() <= 160 + SHARDS);
        drop(slots);
        assert!(throttle.enter(address(9_999), at(1)).is_ok());
    }

    #[test]
    fn rates_need_a_unit_and_are_printed_with_it() {
        for text in ["20/s", "100/m", "1000/h"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for wrong in ["", "20", "0/s", "-1/s", "20/d", "x/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
