//! How a service understands DNS.

use crate::throttle::Rate;
use crate::wire::dns::{REFUSED, SERVFAIL};
use std::time::Duration;

/// Settings of a service whose protocol is DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSpec {
    /// How long a server may take to answer before another one is asked.
    pub query_timeout: Duration,
    /// How many more servers are asked when one does not answer.
    pub retries: u32,
    /// What a client hears when none did.
    pub on_failure: OnFailure,
    /// Response codes for which another server is asked.
    pub retry_on: RetryOn,
    /// Questions under way at once. Split evenly between the workers.
    pub outstanding_max: u32,
    /// Sockets, each with a port of its own, that a worker has for a server.
    pub sockets: u32,
    /// Questions of one TCP connection under way at once; no more are read meanwhile.
    pub pipeline_max: u32,
    /// Answers are kept.
    pub cache: Option<DnsCacheSpec>,
    /// Servers are told of the client's network (RFC 7871).
    pub client_subnet: Option<ClientSubnetSpec>,
    /// How many questions over UDP the clients of a network may ask.
    pub rate_limit: Option<DnsRateSpec>,
}

impl DnsSpec {
    /// The most sockets of a worker for a server.
    pub const SOCKETS_MAX: u32 = 64;
    /// The most questions under way.
    pub const OUTSTANDING_MAX: u32 = 4_000_000;
    /// The most questions of one connection under way.
    pub const PIPELINE_MAX: u32 = 4096;
    /// The most other servers.
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

/// What a client hears when no server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// SERVFAIL (RFC 1035, section 4.1.1).
    ServFail,
    /// REFUSED: resolvers ask another server of the zone at once.
    Refused,
    /// Nothing; a TCP connection stays open.
    Drop,
}

impl OnFailure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ServFail, Self::Refused, Self::Drop];

    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServFail => "servfail",
            Self::Refused => "refused",
            Self::Drop => "drop",
        }
    }
}

/// Response codes for which another server is asked, as if this one had not responded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// SERVFAIL: the server could not do it.
    pub servfail: bool,
    /// REFUSED: the server will not do it.
    pub refused: bool,
}

impl RetryOn {
    /// No code: whatever a server responds is passed on.
    pub const NONE: Self = Self { servfail: false, refused: false };

    /// Whether another server is asked after a response with this code.
    #[must_use]
    pub const fn has(self, rcode: u8) -> bool {
        match rcode {
            SERVFAIL => self.servfail,
            REFUSED => self.refused,
            _ => false,
        }
    }

    /// The words of the configuration.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let each = [("servfail", self.servfail), ("refused", self.refused)];
        each.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(name, _)| name)
    }
}

/// How answers are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCacheSpec {
    /// The most answers.
    pub entries: u32,
    /// The most bytes that they take, all told.
    pub bytes: u64,
    /// No answer is kept longer, whatever its records say.
    pub ttl_max: Duration,
    /// That there is no such name or type is not believed longer (RFC 2308, section 5).
    pub negative_ttl_max: Duration,
    /// That a server failed (SERVFAIL) is believed for so long (RFC 2308, section 7.1); zero not at all.
    pub failure_ttl: Duration,
    /// When no server answers, answers that expired within this time are given (RFC 8767); zero none.
    pub stale: Duration,
}

impl DnsCacheSpec {
    /// The most entries.
    pub const ENTRIES_MAX: u32 = 64_000_000;
    /// The fewest bytes that make sense.
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

/// How much of a client's address servers are told (RFC 7871, section 11.1).
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

/// How many questions over UDP a network may ask. Whoever really is there can still ask over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRateSpec {
    /// The rate.
    pub rate: Rate,
    /// Bits of an IPv4 address that make a network.
    pub v4: u8,
    /// Bits of an IPv6 address that do.
    pub v6: u8,
    /// Each so-many-th question beyond the rate gets a truncated answer, the others none; 0 none.
    pub slip: u32,
    /// How many networks are remembered.
    pub size: u32,
}

impl DnsRateSpec {
    /// A rate with the defaults.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { rate, v4: 24, v6: 56, slip: 2, size: 65_536 }
    }
}
