//! The present tables of several services. A change of a pool derives only the tables of the services that use
//! the pool.

use super::change::diff_of_pool;
use super::{PoolTable, ServiceTable, TableChange, diff};
use crate::snapshot::Snapshot;
use crate::spec::{PoolSpec, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The tables of services by name.
#[derive(Debug, Default)]
pub struct Tables {
    services: BTreeMap<Arc<str>, ServiceTable>,
    pools: BTreeMap<Arc<str>, UsedPool>,
    derived: u64,
}

/// A pool and the services that use it.
#[derive(Debug)]
struct UsedPool {
    table: Arc<PoolTable>,
    services: BTreeSet<Arc<str>>,
}

/// The changes of the table of one service; not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceChanges {
    /// Name of the service.
    pub service: Arc<str>,
    /// The changes, in the order of [`diff`].
    pub changes: Vec<TableChange>,
}

impl Tables {
    /// Replaces the services and returns the changes. `pool` returns the configuration and the snapshot of a
    /// pool.
    pub fn configure<'a>(
        &mut self,
        services: &[ServiceSpec],
        pool: impl Fn(&str) -> Option<(&'a PoolSpec, &'a Snapshot)>,
    ) -> Vec<ServiceChanges> {
        let old_pools = std::mem::take(&mut self.pools);
        let mut old_services = std::mem::take(&mut self.services);
        for service in services {
            for name in service.pools() {
                let Some((spec, snapshot)) = pool(name) else { continue };
                let used = self.pools.entry(name.clone()).or_insert_with(|| {
                    let old = old_pools.get(name).map(|old| &old.table);
                    UsedPool { table: derive(spec, snapshot, old), services: BTreeSet::new() }
                });
                used.services.insert(service.name.clone());
            }
        }
        let mut changed = Vec::new();
        for service in services {
            let table = |name: &Arc<str>| self.pools.get(name).map(|used| Arc::clone(&used.table));
            let table = ServiceTable::derive(service, table);
            self.derived += 1;
            let old = old_services.remove(&service.name);
            changed.extend(changes(&service.name, diff(old.as_ref(), Some(&table))));
            self.services.insert(service.name.clone(), table);
        }
        let removed = old_services.iter().filter_map(|(name, old)| changes(name, diff(Some(old), None)));
        changed.extend(removed);
        changed
    }

    /// Derives the tables of the services that use a pool, after the pool published a snapshot or a server
    /// reached a limit or fell below it. Returns the changes.
    pub fn on_pool(&mut self, spec: &PoolSpec, snapshot: &Snapshot) -> Vec<ServiceChanges> {
        let Some(used) = self.pools.get_mut(&spec.name) else { return Vec::new() };
        let table = derive(spec, snapshot, Some(&used.table));
        let of_pool = diff_of_pool(&spec.name, &used.table, &table);
        if of_pool.is_empty() {
            return Vec::new();
        }
        used.table = Arc::clone(&table);
        let mut changed = Vec::new();
        for name in &used.services {
            let Some(service) = self.services.get_mut(name) else { continue };
            service.replace_pool(&spec.name, &table);
            self.derived += 1;
            changed.extend(changes(name, of_pool.clone()));
        }
        changed
    }

    /// Returns the table of a service.
    #[must_use]
    pub fn of(&self, service: &str) -> Option<&ServiceTable> {
        self.services.get(service)
    }

    /// Returns the number of service tables that were derived.
    #[must_use]
    pub fn derived(&self) -> u64 {
        self.derived
    }
}

/// Returns the table of a pool: the old one if nothing changed, so that services do not compare its rows.
fn derive(spec: &PoolSpec, snapshot: &Snapshot, old: Option<&Arc<PoolTable>>) -> Arc<PoolTable> {
    let new = PoolTable::derive(spec, snapshot);
    old.filter(|old| ***old == new).map_or_else(|| Arc::new(new), Arc::clone)
}

fn changes(service: &Arc<str>, changes: Vec<TableChange>) -> Option<ServiceChanges> {
    (!changes.is_empty()).then(|| ServiceChanges { service: service.clone(), changes })
}
