//! Choices of a pool for clients whose server fails or is full.

use std::time::Duration;

/// The fate of the connections, requests and flows of a server that a check takes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They go on as long as they can.
    #[default]
    Keep,
    /// They end at once.
    Close,
}

impl OnDown {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Close];

    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Close => "close",
        }
    }
}

/// The queue of a pool, for clients of TCP and requests of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Largest number that may wait at once.
    pub size: u32,
    /// Longest time that each may wait.
    pub timeout: Duration,
}

impl QueueSpec {
    /// The default.
    pub const DEFAULT: Self = Self { size: 1024, timeout: Duration::from_secs(5) };
    /// The largest queue.
    pub const SIZE_MAX: u32 = 1_000_000;
}

/// What becomes of a client whose server does not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// It gets the next one.
    Next,
    /// It gets none: whoever was chosen first, whatever its state, is the only one.
    Never,
}
