//! Pools for unit tests of components, without a supervisor.

use arc_swap::ArcSwap;
use evener_core::health::Probe;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::Snapshot;
use evener_core::spec::{AdminState, PoolSpec, ServerSpec};
use evener_core::{Endpoint, Target, Time};
use std::sync::Arc;

/// A pool that publishes its snapshots like the supervisor.
pub(crate) struct TestPool {
    pool: Pool,
    published: Arc<ArcSwap<Snapshot>>,
}

impl TestPool {
    /// Creates a pool of these servers, which have their addresses as names.
    pub(crate) fn new(name: &str, targets: &[Target]) -> Self {
        Self::with(name, targets, |_| {})
    }

    /// Creates a pool with another specification.
    pub(crate) fn with(name: &str, targets: &[Target], change: impl FnOnce(&mut PoolSpec)) -> Self {
        let endpoint = |target: &Target| match target {
            Target::Ip(address) => Endpoint::Ip(*address),
            Target::Unix(path) => Endpoint::Unix(path.clone()),
        };
        let servers = targets.iter().map(|target| ServerSpec::new(endpoint(target))).collect();
        let mut spec = PoolSpec::new(name, servers);
        change(&mut spec);
        let setting = PoolSetting { workers: 1, key: 1, first_id: 0 };
        let mut pool = Pool::new(&spec, targets, setting, Time::ZERO);
        let snapshot = pool.snapshot().expect("a new pool has a snapshot");
        Self { pool, published: Arc::new(ArcSwap::from_pointee(snapshot)) }
    }

    /// The slot where its snapshots are published.
    pub(crate) fn published(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.published)
    }

    /// Sets the state of the server at this position of the specification, and publishes a snapshot.
    pub(crate) fn set_state(&mut self, nth: usize, state: AdminState, now: Time) {
        let id = self.pool.servers()[nth].id;
        self.pool.set_state(now, id, state, None);
        self.publish();
    }

    /// Records a persistent connection with the server at this position of the specification, and publishes a
    /// snapshot.
    pub(crate) fn begin_session(&mut self, nth: usize, now: Time) {
        let id = self.pool.servers()[nth].id;
        self.pool.on_session(now, id, Probe::Pass);
        self.publish();
    }

    /// Publishes a snapshot if anything changed.
    fn publish(&mut self) {
        if let Some(snapshot) = self.pool.snapshot() {
            self.published.store(Arc::new(snapshot));
        }
    }
}
