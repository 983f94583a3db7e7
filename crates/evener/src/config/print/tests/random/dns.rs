//! Random settings that only DNS services have.

use super::{Chance, Kind};
use evener_core::spec::*;
use evener_core::throttle::Rate;
use std::path::PathBuf;
use std::time::Duration;

impl Chance<'_> {
    /// Returns the servers and directories of a DNS pool: some servers have IP addresses, others are unix
    /// sockets with mname.
    pub(super) fn dns_servers(&mut self) -> (Vec<ServerSpec>, Vec<DiscoverSpec>) {
        let discover = self.maybe(|chance| chance.some(1..=3, Self::directory)).unwrap_or_default();
        let least = usize::from(discover.is_empty());
        let mut servers = self.some(least..=4, |chance| {
            if chance.one_in(2) {
                return chance.server(Kind::Datagrams);
            }
            let path = format!("/run/{} {}", chance.word(), chance.unique());
            let server = ServerSpec { endpoint: path.parse().unwrap(), ..chance.server(Kind::Datagrams) };
            ServerSpec { dialect: Dialect::Mname, name: path.into(), ..server }
        });
        servers.iter_mut().take(1).for_each(|server| server.weight = server.weight.max(1));
        (servers, discover)
    }

    fn directory(&mut self) -> DiscoverSpec {
        let directory = PathBuf::from(format!("/run/{}/{}", self.word(), self.unique()));
        DiscoverSpec::Mname { directory }
    }

    pub(super) fn dns_check(&mut self) -> CheckKind {
        let names = ["a.root-servers.net.", ".", "Example.org", "\\001\\.a\\\"b.example.", "_x-y.1"];
        CheckKind::Dns {
            name: self.pick(&names).into(),
            qtype: self.or(1, |chance| chance.within(1..=65_535) as u16),
            rcode: self.maybe(|chance| chance.within(0..=15) as u8),
        }
    }

    pub(super) fn dns(&mut self) -> DnsSpec {
        let defaults = DnsSpec::default();
        let (moment, minute) = (Duration::from_nanos(1), Duration::from_secs(60));
        DnsSpec {
            query_timeout: self.or(defaults.query_timeout, |chance| chance.duration(moment, minute)),
            retries: self.or(defaults.retries, |chance| chance.within(0..=DnsSpec::RETRIES_MAX)),
            on_failure: self.pick(&OnFailure::ALL),
            retry_on: RetryOn { servfail: self.one_in(2), refused: self.one_in(2) },
            outstanding_max: self
                .or(defaults.outstanding_max, |chance| chance.within(1..=DnsSpec::OUTSTANDING_MAX)),
            sockets: self.or(defaults.sockets, |chance| chance.within(1..=DnsSpec::SOCKETS_MAX)),
            pipeline_max: self.or(defaults.pipeline_max, |chance| chance.within(1..=DnsSpec::PIPELINE_MAX)),
            cache: self.maybe(Self::dns_cache),
            client_subnet: self.maybe(|chance| ClientSubnetSpec {
                v4: chance.or(24, |chance| chance.within(0..=32) as u8),
                v6: chance.or(56, |chance| chance.within(0..=128) as u8),
            }),
            rate_limit: self.maybe(Self::dns_rate),
        }
    }

    fn dns_cache(&mut self) -> DnsCacheSpec {
        let defaults = DnsCacheSpec::default();
        let units = [1, 1 << 10, 1 << 20, 1 << 30];
        let bytes = |chance: &mut Self| chance.pick(&units) * u64::from(chance.within(65_536..=70_000) / 64);
        DnsCacheSpec {
            entries: self.or(defaults.entries, |chance| chance.within(1..=DnsCacheSpec::ENTRIES_MAX)),
            bytes: self.or(defaults.bytes, bytes).clamp(DnsCacheSpec::BYTES_MIN, 1 << 40),
            ttl_max: self.or(defaults.ttl_max, Self::time),
            negative_ttl_max: self.or(defaults.negative_ttl_max, Self::time),
            failure_ttl: self
                .or(defaults.failure_ttl, |c| c.duration(Duration::ZERO, Duration::from_secs(300))),
            stale: self.or(defaults.stale, Self::time),
        }
    }

    fn dns_rate(&mut self) -> DnsRateSpec {
        let rate =
            Rate { count: self.within(1..=1000), period: Duration::from_secs(self.pick(&[1, 60, 3600])) };
        let defaults = DnsRateSpec::new(rate);
        DnsRateSpec {
            v4: self.or(defaults.v4, |chance| chance.within(0..=32) as u8),
            v6: self.or(defaults.v6, |chance| chance.within(0..=128) as u8),
            slip: self.or(defaults.slip, |chance| chance.within(0..=1000)),
            size: self.or(defaults.size, |chance| chance.within(1..=16_000_000)),
            ..defaults
        }
    }
}
