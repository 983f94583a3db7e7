//! The choice of a server: the policy of a pool, and the stickiness of its clients.

use std::time::Duration;

/// The way a server is picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Each server in turn.
    RoundRobin,
    /// The first server with a free slot, in the order of the configuration.
    First,
    /// By weight, smoothly, in the order of nginx.
    Weighted,
    /// The server with the fewest connections for its weight.
    LeastConn,
    /// The server with the fewest outstanding connections or queries for its weight; of equal servers, the
    /// server with the lower latency.
    LeastOutstanding,
    /// The less loaded of two random servers.
    P2c,
    /// The one of two random servers with the lower product of latency (peak EWMA) and load.
    Ewma {
        /// Time in which an old peak loses 63 % of its effect.
        decay: Duration,
    },
    /// By the client's address (rendezvous hashing): evenly, and when a server leaves, only its clients move.
    Hash,
    /// By the client's address through a table (Eisenbud et al., NSDI 2016): constant time for any number of
    /// servers.
    Maglev {
        /// Size of the table; a prime.
        table: u32,
    },
}

impl Policy {
    /// Names in the configuration.
    pub const NAMES: [&'static str; 9] = [
        "round_robin",
        "weighted",
        "least_conn",
        "p2c",
        "ewma",
        "hash",
        "maglev",
        "first",
        "least_outstanding",
    ];
    /// Default size of the Maglev table.
    pub const MAGLEV_TABLE: u32 = 65_537;
    /// Maximum size of the Maglev table: 5 million entries are 20 MiB.
    pub const MAGLEV_TABLE_MAX: u32 = 5_000_011;
    /// Default decay of EWMA.
    pub const EWMA_DECAY: Duration = Duration::from_secs(10);

    /// Returns the policy called `name` with its defaults.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "round_robin" => Self::RoundRobin,
            "weighted" => Self::Weighted,
            "least_conn" => Self::LeastConn,
            "p2c" => Self::P2c,
            "ewma" => Self::Ewma { decay: Self::EWMA_DECAY },
            "hash" => Self::Hash,
            "maglev" => Self::Maglev { table: Self::MAGLEV_TABLE },
            "first" => Self::First,
            "least_outstanding" => Self::LeastOutstanding,
            _ => return None,
        })
    }

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => Self::NAMES[0],
            Self::Weighted => Self::NAMES[1],
            Self::LeastConn => Self::NAMES[2],
            Self::P2c => Self::NAMES[3],
            Self::Ewma { .. } => Self::NAMES[4],
            Self::Hash => Self::NAMES[5],
            Self::Maglev { .. } => Self::NAMES[6],
            Self::First => Self::NAMES[7],
            Self::LeastOutstanding => Self::NAMES[8],
        }
    }
}

/// Stickiness: clients stay with their server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySpec {
    /// Identification of clients.
    pub by: StickyBy,
    /// Number of clients in the table; a full table evicts the least recently seen.
    pub size: usize,
    /// Lifetime of an assignment since its last use; `None` for no limit.
    pub ttl: Option<Duration>,
    /// A client whose server is unavailable gets a substitute, and returns when its server is available
    /// again.
    pub failback: bool,
    /// Interval of rebalancing: if a server has many more clients than another server, some of them are
    /// assigned anew.
    pub rebalance: Option<Duration>,
}

/// Identification of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickyBy {
    /// By address, in a table.
    ClientIp,
    /// By a cookie of this name that the response sets (HTTP).
    Cookie(String),
}

impl StickyBy {
    /// Default name of the cookie.
    pub const COOKIE: &str = "EVENER";
    /// Default prefix of the cookie's name if several pools with cookies serve one service; the pool's name
    /// follows. If the pools shared one name, each would overwrite the cookies of the others.
    pub const COOKIE_OF_POOL: &str = "EVENER_";
}

impl StickySpec {
    /// Maximum number of clients in a table.
    pub const SIZE_MAX: usize = 16_000_000;
}
