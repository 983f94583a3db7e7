//! Limits of concurrent connections and flows: exact across workers, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The limits of a server. New clients are admitted up to `soft`, and clients that are assigned to the server
/// up to `hard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// At this number of connections or flows, new clients get another server.
    pub soft: Option<u32>,
    /// Number of connections or flows that is never exceeded.
    pub hard: Option<u32>,
}

impl Limits {
    /// Returns the limit that holds for a client.
    #[must_use]
    pub fn bound(self, known: Known) -> u32 {
        let hard = self.hard.unwrap_or(u32::MAX);
        match (known, self.soft) {
            (Known::Yes, _) => self.hard.unwrap_or(u32::MAX),
            (Known::No, soft) => soft.unwrap_or(u32::MAX).min(hard),
        }
    }
}

/// Assignment of a client to a server by the sticky table, by a cookie or by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The client is assigned to the server.
    Yes,
    /// The client is new at this server.
    No,
}

/// Count of connections and flows. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Occupancy(Arc<AtomicU32>);

impl Occupancy {
    /// Creates a count that begins at `active`.
    pub(crate) fn of(active: u32) -> Self {
        Self(Arc::new(AtomicU32::new(active)))
    }

    /// Returns the present count.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes one slot. Returns `None` if `bound` slots are taken.
    ///
    /// ```
    /// use evener_core::limits::Occupancy;
    ///
    /// let occupancy = Occupancy::default();
    /// let lease = occupancy.enter(1);
    /// assert!(lease.is_some() && occupancy.enter(1).is_none());
    /// drop(lease);
    /// assert_eq!(occupancy.active(), 0);
    /// ```
    #[must_use]
    pub fn enter(&self, bound: u32) -> Option<Lease> {
        let below = |active: u32| (active < bound).then(|| active + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(Lease(self.clone()))
    }
}

/// One slot, which is given back on drop.
#[derive(Debug)]
pub struct Lease(Occupancy);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_client_may_exceed_the_soft_limit_but_not_the_hard_limit() {
        let limits = Limits { soft: Some(2), hard: Some(3) };
        let seen = Occupancy::default();
        let enter = |known| seen.enter(limits.bound(known));
        let first = (enter(Known::No), enter(Known::No));
        assert!(first.0.is_some() && first.1.is_some());
        assert!(enter(Known::No).is_none());
        let third = enter(Known::Yes);
        assert!(third.is_some() && enter(Known::Yes).is_none());
        drop(first);
        assert_eq!(seen.active(), 1);
        assert!(enter(Known::No).is_some());
    }

    #[test]
    fn a_hard_limit_without_a_soft_limit_applies_to_every_client() {
        let limits = Limits { soft: None, hard: Some(1) };
        assert_eq!((limits.bound(Known::No), limits.bound(Known::Yes)), (1, 1));
    }
}
