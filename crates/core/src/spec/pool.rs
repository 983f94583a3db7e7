//! Settings of a pool for clients whose server fails or is full.

use std::time::Duration;

/// Treatment of the connections, requests and flows of a server that a check marks down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// All continue until they end by themselves.
    #[default]
    Keep,
    /// All are closed immediately.
    Close,
}

impl OnDown {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Close];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Close => "close",
        }
    }
}

/// The queue of a pool, for TCP clients and HTTP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Maximum number of waiting clients and requests.
    pub size: u32,
    /// Maximum waiting time.
    pub timeout: Duration,
}

impl QueueSpec {
    /// The default.
    pub const DEFAULT: Self = Self { size: 1024, timeout: Duration::from_secs(5) };
    /// Maximum size of a queue.
    pub const SIZE_MAX: u32 = 1_000_000;
}

/// Weight that the servers of a pool must have together.
///
/// The pool loses its quorum when the weights of its usable servers sum up to less than the quorum minus the
/// hysteresis, and gains it with the quorum plus the hysteresis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumSpec {
    /// The quorum, a sum of weights.
    pub weight: u32,
    /// Distance of the two thresholds from the quorum; less than the quorum.
    pub hysteresis: u32,
}

impl QuorumSpec {
    /// The quorum of a pool that has a sorry server and no quorum in the configuration: one usable server.
    pub const ANY: Self = Self { weight: 1, hysteresis: 0 };
    /// Maximum of the quorum.
    pub const WEIGHT_MAX: u32 = 1_000_000_000;

    /// Returns true if usable servers with this weight are enough for a pool that had its quorum, or not.
    #[must_use]
    pub const fn is_met(&self, weight: u32, had_quorum: bool) -> bool {
        let least = if had_quorum {
            self.weight.saturating_sub(self.hysteresis)
        } else {
            self.weight.saturating_add(self.hysteresis)
        };
        weight > 0 && weight >= least
    }
}

/// Bound on the retries of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudgetSpec {
    /// Maximum number of retries, in percent of the connections, requests and queries of the last 10 s.
    pub share_percent: u32,
    /// Number of retries a second that are permitted regardless of the number of requests; 0 for none.
    pub min_per_second: u32,
}

impl RetryBudgetSpec {
    /// The default.
    pub const DEFAULT: Self = Self { share_percent: 20, min_per_second: 10 };
    /// Maximum of `share_percent`.
    pub const SHARE_PERCENT_MAX: u32 = 100;
    /// Maximum of `min_per_second`.
    pub const MIN_PER_SECOND_MAX: u32 = 1_000_000;
}

/// Treatment of a client whose server cannot take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// The client gets the next server.
    Next,
    /// The client gets no server: only the server that was picked first may serve it.
    Never,
}
