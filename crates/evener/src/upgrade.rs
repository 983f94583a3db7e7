//! Live upgrade: the running instance starts a new one, which takes its sockets over. [`successor`] is the side of
//! the running instance, [`predecessor`] the side of the new one; [`message`] is the format between them.

pub(crate) mod channel;
mod flow;
pub(crate) mod message;
pub(crate) mod predecessor;
mod relay;
pub(crate) mod socket;
pub(crate) mod state;
pub(crate) mod successor;

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The process that serves the endpoints of the instance: the admin socket, and the addresses of the API and of the
/// metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointPhase {
    /// This process serves them.
    Open,
    /// The next instance is about to take them over: new connections wait in their queues.
    Suspended,
    /// The instance drains, and leaves the paths to another one.
    Draining,
    /// The next instance serves them.
    PassedOn,
}

impl EndpointPhase {
    /// Returns a receiver of an endpoint that stays open.
    pub(crate) fn open() -> watch::Receiver<Self> {
        watch::channel(Self::Open).1
    }

    /// Returns whether this process accepts connections.
    pub(crate) fn accepts(self) -> bool {
        matches!(self, Self::Open | Self::Draining)
    }

    /// Waits until `is_wanted` is true. Waits for ever if the instance ends first.
    pub(crate) async fn wait(mut state: watch::Receiver<Self>, is_wanted: impl Fn(Self) -> bool) -> Self {
        match state.wait_for(|state| is_wanted(*state)).await.map(|state| *state) {
            Ok(state) => state,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Returns an instant as nanoseconds of the monotonic clock, which all processes share.
fn monotonic_of(instant: Instant) -> u64 {
    let passed = u64::try_from(instant.elapsed().as_nanos()).unwrap_or(u64::MAX);
    monotonic_now().saturating_sub(passed)
}

/// Returns the instant of a time of the monotonic clock; now for a time that is not in the past.
fn instant_of(monotonic: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_nanos(monotonic_now().saturating_sub(monotonic))).unwrap_or(now)
}

fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
