//! Limits on the rate of DNS queries over UDP from each client network (response rate limiting, as in BIND and
//! NSD). A query beyond the rate gets either no response or a truncated one. A client with a genuine address
//! retries over TCP after a truncated response.

use crate::hash;
use crate::lock::lock;
use crate::lru::Lru;
use crate::spec::DnsRateSpec;
use crate::time::Time;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

const SHARDS: usize = 16;

/// Verdict on a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateVerdict {
    /// The query gets its response.
    Respond,
    /// The query gets a truncated response.
    Truncate,
    /// The query gets no response.
    Drop,
}

/// Query rate of a client network.
#[derive(Clone, Copy, Debug, Default)]
struct NetworkState {
    full_at: Time,
    /// Number of queries beyond the rate. Queries within the rate do not reset it; otherwise a client that is
    /// just over the rate would never be sent to TCP.
    beyond: u32,
}

/// The table of the client networks of a service.
#[derive(Debug)]
pub struct RateLimit {
    spec: DnsRateSpec,
    shards: Box<[Mutex<Lru<IpAddr, NetworkState>>]>,
}

impl RateLimit {
    /// Creates an empty table according to `spec`. `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &DnsRateSpec, key: u64) -> Self {
        let capacity = (spec.size as usize).div_ceil(SHARDS);
        let shards = (0..SHARDS).map(|_| Mutex::new(Lru::new(capacity, key))).collect();
        Self { spec: spec.clone(), shards }
    }

    /// Returns the configuration of the table.
    #[must_use]
    pub fn spec(&self) -> &DnsRateSpec {
        &self.spec
    }

    /// Counts one more query of `client` and returns the verdict on it.
    #[must_use]
    pub fn admit(&self, client: IpAddr, now: Time) -> RateVerdict {
        let key = network(client, self.spec.v4, self.spec.v6);
        let shard = &self.shards[hash::of_client(key) as usize % SHARDS];
        let mut shard = lock(shard);
        let mut seen = shard.peek(&key).map(|(seen, _)| *seen).unwrap_or_default();
        let verdict = if self.spec.rate.admits(&mut seen.full_at, now) {
            RateVerdict::Respond
        } else {
            seen.beyond = seen.beyond.wrapping_add(1);
            let slips = self.spec.slip > 0 && seen.beyond.is_multiple_of(self.spec.slip);
            if slips { RateVerdict::Truncate } else { RateVerdict::Drop }
        };
        shard.insert(key, seen, now);
        verdict
    }
}

/// Returns the network of an address. `v4` and `v6` are the prefix lengths of IPv4 and IPv6 networks. An
/// IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) counts as IPv4.
#[must_use]
pub fn network(client: IpAddr, v4: u8, v6: u8) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::Rate;
    use std::time::Duration;

    #[test]
    fn every_other_query_beyond_the_rate_is_truncated_and_networks_are_counted_separately() {
        let spec = DnsRateSpec::new(Rate { count: 3, period: Duration::from_secs(1) });
        let limit = RateLimit::new(&spec, 1);
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        let admit = |client: &str, millis| limit.admit(client.parse().unwrap(), at(millis));
        let seen: Vec<_> = (1..8).map(|host| admit(&format!("192.0.2.{host}"), 1)).collect();
        use RateVerdict::{Drop, Respond, Truncate};
        assert_eq!(seen, [Respond, Respond, Respond, Drop, Truncate, Drop, Truncate]);
        assert_eq!(admit("192.0.3.1", 1), Respond);
        assert_eq!(admit("::ffff:192.0.2.9", 2), Drop, "an IPv4-mapped address is in the same network");
        assert_eq!(admit("2001:db8:0:ff::1", 2), Respond);
        assert_eq!(admit("192.0.2.1", 1100), Respond, "queries are admitted again after a while");
    }

    #[test]
    fn queries_within_the_rate_do_not_reset_the_slip_count() {
        let check = |slip, expected: &str| {
            let spec =
                DnsRateSpec { slip, ..DnsRateSpec::new(Rate { count: 2, period: Duration::from_secs(1) }) };
            let limit = RateLimit::new(&spec, 1);
            // Three queries a second: once the burst is used up in the first second, one query in each second
            // is beyond the rate.
            let seen = (0..15_u64).map(|n| {
                let at = Time::ZERO + Duration::from_millis(1000 * n / 3);
                match limit.admit([192, 0, 2, 1].into(), at) {
                    RateVerdict::Respond => 'a',
                    RateVerdict::Truncate => 't',
                    RateVerdict::Drop => 'd',
                }
            });
            assert_eq!(seen.filter(|verdict| *verdict != 'a').collect::<String>(), expected, "slip {slip}");
        };
        check(0, "dddd");
        check(1, "tttt");
        check(2, "dtdt");
        check(3, "ddtd");
    }

    #[test]
    fn addresses_are_cut_to_the_prefix_length_of_their_network() {
        let check = |client: &str, v4, v6, expected: &str| {
            assert_eq!(network(client.parse().unwrap(), v4, v6), expected.parse::<IpAddr>().unwrap());
        };
        check("192.0.2.77", 24, 56, "192.0.2.0");
        check("192.0.2.77", 32, 56, "192.0.2.77");
        check("192.0.2.77", 0, 56, "0.0.0.0");
        check("2001:db8:1:2ff::1", 24, 56, "2001:db8:1:200::");
        check("2001:db8::1", 24, 0, "::");
        check("2001:db8::1", 24, 128, "2001:db8::1");
    }
}
