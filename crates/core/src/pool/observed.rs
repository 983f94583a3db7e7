//! Observations of a server for its status: samples of its counters, and its last check. No decision uses them.

use super::{Pool, Server};
use crate::ServerId;
use crate::counters::ServerCounters;
use crate::health::Probe;
use crate::recent::{Growth, Recent};
use crate::time::Time;
use std::time::Duration;

/// Observations of a server.
#[derive(Clone, Debug)]
pub struct Observed {
    recent: Recent<ServerCounters>,
    last_check: Option<LastCheck>,
}

/// The last check of a server that had a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// Time of the result.
    pub at: Time,
    /// Time that the check took.
    pub took: Duration,
    /// Reason why the check failed; `None` if it passed.
    pub failure: Option<String>,
}

impl Observed {
    /// Creates the observations of a new server.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { recent: Recent::new(now), last_check: None }
    }

    /// Returns the last check with a result, if there was one.
    #[must_use]
    pub const fn last_check(&self) -> Option<&LastCheck> {
        self.last_check.as_ref()
    }
}

impl Server {
    /// Returns the growth of the counters in the last seconds.
    #[must_use]
    pub fn growth(&self, now: Time) -> Growth<ServerCounters> {
        self.observed.recent.growth(now, &self.live.counters)
    }
}

impl Pool {
    /// Takes samples of the counters of the servers whose identity, divided by `parts`, leaves the remainder
    /// `part`. So the work for many servers can be spread over time.
    pub fn sample(&mut self, now: Time, part: u32, parts: u32) {
        for server in self.servers.iter_mut().filter(|server| server.id.0 % parts == part) {
            server.observed.recent.sample(now, &server.live.counters);
        }
    }

    /// Records a check for the status. A check without a result, or of a removed server, is ignored.
    pub fn record_check(&mut self, now: Time, id: ServerId, took: Duration, seen: &Probe) {
        let failure = match seen {
            Probe::Pass => None,
            Probe::Fail(reason) => Some(reason.clone()),
            Probe::Unmade(_) => return,
        };
        if let Some(&at) = self.by_id.get(&id) {
            self.servers[at].observed.last_check = Some(LastCheck { at: now, took, failure });
        }
    }
}
