//! DNS settings of a service.

use crate::throttle::Rate;
use crate::wire::dns::{REFUSED, SERVFAIL};
use std::time::Duration;

/// DNS settings of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSpec {
    /// Time for a server to respond before another one is tried.
    pub query_timeout: Duration,
    /// Number of further servers that are tried after a timeout.
    pub retries: u32,
    /// Response to the client if no server responded.
    pub on_failure: OnFailure,
    /// RCODEs after which another server is tried.
    pub retry_on: RetryOn,
    /// Outstanding queries. Split evenly between the workers.
    pub outstanding_max: u32,
    /// Sockets of a worker for each server, each with its own port.
    pub sockets: u32,
    /// Outstanding queries of one TCP connection; reading pauses at the limit.
    pub pipeline_max: u32,
    /// Cache of responses.
    pub cache: Option<DnsCacheSpec>,
    /// Client subnets in queries to servers (RFC 7871).
    pub client_subnet: Option<ClientSubnetSpec>,
    /// Limit of the queries over UDP of a client network.
    pub rate_limit: Option<DnsRateSpec>,
}

impl DnsSpec {
    /// Maximum number of sockets of a worker for a server.
    pub const SOCKETS_MAX: u32 = 64;
    /// Maximum number of outstanding queries.
    pub const OUTSTANDING_MAX: u32 = 4_000_000;
    /// Maximum number of outstanding queries of a connection.
    pub const PIPELINE_MAX: u32 = 4096;
    /// Maximum number of further servers after a timeout.
    pub const RETRIES_MAX: u32 = 16;
}

impl Default for DnsSpec {
    fn default() -> Self {
        Self {
            query_timeout: Duration::from_millis(1500),
            retries: 2,
            on_failure: OnFailure::ServFail,
            retry_on: RetryOn { servfail: true, refused: false },
            outstanding_max: 65_536,
            sockets: 4,
            pipeline_max: 128,
            cache: None,
            client_subnet: None,
            rate_limit: None,
        }
    }
}

/// Response to a client if no server responded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// SERVFAIL (RFC 1035, section 4.1.1).
    ServFail,
    /// REFUSED: resolvers try another server of the zone immediately.
    Refused,
    /// No response; a TCP connection stays open.
    Drop,
}

impl OnFailure {
    /// All values.
    pub const ALL: [Self; 3] = [Self::ServFail, Self::Refused, Self::Drop];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServFail => "servfail",
            Self::Refused => "refused",
            Self::Drop => "drop",
        }
    }
}

/// RCODEs after which another server is tried, as after a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// SERVFAIL: the server failed.
    pub servfail: bool,
    /// REFUSED: the server refuses the query.
    pub refused: bool,
}

impl RetryOn {
    /// No RCODE: every response is passed on.
    pub const NONE: Self = Self { servfail: false, refused: false };

    /// Returns true if another server is tried after a response with this RCODE.
    #[must_use]
    pub const fn has(self, rcode: u8) -> bool {
        match rcode {
            SERVFAIL => self.servfail,
            REFUSED => self.refused,
            _ => false,
        }
    }

    /// Returns the names of these RCODEs in the configuration.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let each = [("servfail", self.servfail), ("refused", self.refused)];
        each.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(name, _)| name)
    }
}

/// Settings of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCacheSpec {
    /// Maximum number of responses.
    pub entries: u32,
    /// Maximum number of bytes of all responses.
    pub bytes: u64,
    /// Maximum lifetime of a response.
    pub ttl_max: Duration,
    /// Maximum lifetime of a negative response (RFC 2308, section 5).
    pub negative_ttl_max: Duration,
    /// Lifetime of a failure (SERVFAIL; RFC 2308, section 7.1); zero caches none.
    pub failure_ttl: Duration,
    /// Time after its expiry in which a response is used if no server responds (RFC 8767); zero for never.
    pub stale: Duration,
}

impl DnsCacheSpec {
    /// Maximum number of entries.
    pub const ENTRIES_MAX: u32 = 64_000_000;
    /// Minimum number of bytes.
    pub const BYTES_MIN: u64 = 64 << 10;
}

impl Default for DnsCacheSpec {
    fn default() -> Self {
        Self {
            entries: 100_000,
            bytes: 64 << 20,
            ttl_max: Duration::from_secs(86_400),
            negative_ttl_max: Duration::from_secs(3600),
            failure_ttl: Duration::from_secs(1),
            stale: Duration::ZERO,
        }
    }
}

/// Length of the client subnet in queries (RFC 7871, section 11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSubnetSpec {
    /// Bits of an IPv4 address.
    pub v4: u8,
    /// Bits of an IPv6 address.
    pub v6: u8,
}

impl Default for ClientSubnetSpec {
    fn default() -> Self {
        Self { v4: 24, v6: 56 }
    }
}

/// Limit of the queries over UDP from a network. A client with a genuine address can retry over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRateSpec {
    /// The rate.
    pub rate: Rate,
    /// Bits of an IPv4 address that identify a network.
    pub v4: u8,
    /// Bits of an IPv6 address that identify a network.
    pub v6: u8,
    /// Every `slip`-th query beyond the rate gets a truncated response, and the others get no response; with
    /// 0, none of them gets a response.
    pub slip: u32,
    /// Number of networks in the table.
    pub size: u32,
}

impl DnsRateSpec {
    /// Creates a limit with this rate and the defaults.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { rate, v4: 24, v6: 56, slip: 2, size: 65_536 }
    }
}
