//! Settings of a pool for clients whose server fails or is full.

use std::time::Duration;

/// Treatment of the connections, requests and flows of a server that a check takes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// All continue as long as they can.
    #[default]
    Keep,
    /// All end at once.
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
    /// Maximum time of waiting.
    pub timeout: Duration,
}

impl QueueSpec {
    /// The default.
    pub const DEFAULT: Self = Self { size: 1024, timeout: Duration::from_secs(5) };
    /// Maximum size of a queue.
    pub const SIZE_MAX: u32 = 1_000_000;
}

/// Treatment of a client whose server does not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// The client gets the next server.
    Next,
    /// The client gets none: the first pick is the only one, in any state.
    Never,
}
