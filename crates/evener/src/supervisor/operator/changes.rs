//! The changes that operators made to one pool, and their effect on its servers.

use crate::discover::Expanded;
use evener_core::spec::{AdminState, PoolSpec, ServerSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Changes of a pool. Each has the value that the file had when it was made: if the file has another value now, the
/// file is newer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PoolChanges {
    /// Servers that were added.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) added: BTreeMap<String, Added>,
    /// Servers that were removed, with their addresses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) removed: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) weights: BTreeMap<String, WeightOverride>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) states: BTreeMap<String, StateOverride>,
}

/// A server that was added, as it was requested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Added {
    pub(super) address: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) settings: Map<String, Value>,
    /// The server that these settings describe.
    #[serde(skip)]
    pub(super) server: Option<ServerSpec>,
}

/// A weight in place of that of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WeightOverride {
    pub(super) weight: u32,
    /// The weight in the file or of the source, once it is known.
    #[serde(default)]
    file: Option<u32>,
}

/// A state in place of that of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateOverride {
    state: String,
    pub(super) file: String,
    /// End of a temporary state, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

impl StateOverride {
    pub(super) fn new(state: AdminState, file: AdminState, until: Option<u64>) -> Self {
        Self { state: state.name().into(), file: file.name().into(), until }
    }

    pub(super) fn state(&self) -> Option<AdminState> {
        AdminState::ALL.into_iter().find(|state| state.name() == self.state)
    }

    /// Returns true if the time of the state has passed.
    pub(super) fn is_over(&self, unix: u64) -> bool {
        self.until.is_some_and(|until| until <= unix)
    }

    /// Returns the rest of the time of a temporary state.
    pub(super) fn left(&self, unix: u64) -> Option<Duration> {
        self.until.map(|until| Duration::from_secs(until.saturating_sub(unix)))
    }
}

impl PoolChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.has_same_servers() && self.states.is_empty()
    }

    /// Returns true if no server was added, removed or given a weight.
    pub(super) fn has_same_servers(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.weights.is_empty()
    }

    pub(super) fn forget_expired(&mut self, unix: u64) {
        self.states.retain(|_, record| !record.is_over(unix));
    }

    /// Records that a server was added. A server of the file that was removed comes back, unless it is added with
    /// other settings.
    pub(super) fn add(&mut self, server: ServerSpec, address: String, settings: Map<String, Value>) {
        let name = server.name.to_string();
        self.weights.remove(&name);
        self.states.remove(&name);
        let target = server.endpoint.target().map(|target| target.to_string());
        let is_plain = settings.keys().all(|key| key == "name");
        if is_plain && self.removed.get(&name) == target.as_ref() {
            self.removed.remove(&name);
            return;
        }
        self.added.insert(name, Added { address, settings, server: Some(server) });
    }

    /// Brings back earlier changes, unless there are newer ones of the same servers.
    pub(super) fn restore(&mut self, before: &Self) {
        fn missing<T: Clone>(now: &mut BTreeMap<String, T>, before: &BTreeMap<String, T>) {
            for (name, change) in before {
                now.entry(name.clone()).or_insert_with(|| change.clone());
            }
        }
        missing(&mut self.added, &before.added);
        missing(&mut self.removed, &before.removed);
        missing(&mut self.weights, &before.weights);
        missing(&mut self.states, &before.states);
    }

    /// Records that a server was removed.
    pub(super) fn remove(&mut self, name: &str, target: String) {
        self.weights.remove(name);
        self.states.remove(name);
        if self.added.remove(name).is_none() {
            self.removed.insert(name.to_owned(), target);
        }
    }

    /// Records another weight.
    pub(super) fn weigh(&mut self, name: &str, weight: u32, file: Option<u32>) {
        if let Some(added) = self.added.get_mut(name) {
            added.settings.insert("weight".into(), weight.into());
            added.server.iter_mut().for_each(|server| server.weight = weight);
            return;
        }
        // A server that a source lists has no weight in the file: `apply` learns that of the source.
        let file = self.weights.get(name).and_then(|record| record.file).or(file);
        if Some(weight) == file {
            self.weights.remove(name);
        } else {
            self.weights.insert(name.to_owned(), WeightOverride { weight, file });
        }
    }

    /// Makes the changes, and forgets those that are older than the file. Changes of servers that sources may list
    /// again stay.
    pub(super) fn apply(&mut self, expanded: &mut Expanded, has_sources: bool) {
        let servers = expanded.spec().servers.iter().zip(expanded.targets());
        let present: BTreeMap<Arc<str>, (String, u32)> = servers
            .map(|(server, target)| (Arc::clone(&server.name), (target.to_string(), server.weight)))
            .collect();
        self.removed.retain(|name, target| match present.get(&**name) {
            Some((now, _)) => now == target,
            None => has_sources,
        });
        self.weights.retain(|name, record| match present.get(&**name) {
            Some((_, weight)) => *record.file.get_or_insert(*weight) == *weight,
            None => has_sources,
        });
        let removed = &self.removed;
        expanded.retain(|server| !removed.contains_key(&*server.name));
        let stays = |name: &str, target: &str| {
            removed.contains_key(name)
                || present.iter().all(|(other, (address, _))| {
                    removed.contains_key(&**other) || (**other != *name && address != target)
                })
        };
        self.added.retain(|name, added| {
            let target = added.server.as_ref().and_then(|server| server.endpoint.target());
            target.is_some_and(|target| stays(name, &target.to_string()))
        });
        let added = self.added.values().filter_map(|added| added.server.as_ref());
        expanded.add_all(added.map(|server| (server, "operator".to_owned())));
        if !self.weights.is_empty() {
            expanded.set_weights(|name| self.weights.get(name).map(|record| record.weight));
        }
    }

    /// Returns a pool of a file with the changes that a file can express. Temporary states are not among them.
    pub(super) fn in_file(&self, pool: &PoolSpec, unix: u64) -> PoolSpec {
        let mut pool = pool.clone();
        pool.servers.retain(|server| !self.removed.contains_key(&*server.name));
        pool.servers.extend(self.added.values().filter_map(|added| added.server.clone()));
        for server in &mut pool.servers {
            if let Some(record) = self.weights.get(&*server.name) {
                server.weight = record.weight;
            }
            if let Some(record) = self.states.get(&*server.name)
                && record.left(unix).is_none()
            {
                server.state = record.state().unwrap_or(server.state);
            }
        }
        pool
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    fn pool(servers: &[(&str, u32)]) -> PoolSpec {
        let server = |(address, weight): &(&str, u32)| {
            let mut server = ServerSpec::new(address.parse().unwrap());
            server.weight = *weight;
            server
        };
        PoolSpec::new("web", servers.iter().map(server).collect())
    }

    fn effect(changes: &mut PoolChanges, file: &[(&str, u32)]) -> String {
        let mut expanded = Expanded::for_test(&pool(file)).unwrap();
        changes.apply(&mut expanded, false);
        let servers = expanded.spec().servers.iter();
        servers.map(|server| format!("{}={}", server.name, server.weight)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_newest_change_of_a_field_wins() {
        let file: &[(&str, u32)] = &[("10.0.0.1:1", 1), ("10.0.0.2:1", 1)];
        let mut changes = PoolChanges::default();
        changes.weigh("10.0.0.1:1", 5, Some(1));
        changes.remove("10.0.0.2:1", "10.0.0.2:1".into());
        changes.add(ServerSpec::new("10.0.0.3:1".parse().unwrap()), "10.0.0.3:1".into(), Map::new());
        assert_eq!(effect(&mut changes, file), "10.0.0.1:1=5 10.0.0.3:1=1");
        // Another field of the file changed.
        let other: &[(&str, u32)] = &[("10.0.0.1:1", 1), ("10.0.0.2:1", 2), ("10.0.0.4:1", 1)];
        assert_eq!(effect(&mut changes, other), "10.0.0.1:1=5 10.0.0.4:1=1 10.0.0.3:1=1");
        // The file has another weight, and later its old one.
        let newer: &[(&str, u32)] = &[("10.0.0.1:1", 2), ("10.0.0.3:1", 7)];
        assert_eq!(effect(&mut changes, newer), "10.0.0.1:1=2 10.0.0.3:1=7");
        assert_eq!(effect(&mut changes, file), "10.0.0.1:1=1 10.0.0.2:1=1");
        assert!(changes.is_empty(), "{changes:?}");
    }

    #[test]
    fn a_removed_server_of_the_file_comes_back_when_it_is_added() {
        let file: &[(&str, u32)] = &[("10.0.0.1:1", 4)];
        let mut changes = PoolChanges::default();
        changes.remove("10.0.0.1:1", "10.0.0.1:1".into());
        assert_eq!(effect(&mut changes, file), "");
        let server = || ServerSpec::new("10.0.0.1:1".parse().unwrap());
        changes.add(server(), "10.0.0.1:1".into(), Map::new());
        assert_eq!(effect(&mut changes, file), "10.0.0.1:1=4");
        assert!(changes.is_empty());
        changes.remove("10.0.0.1:1", "10.0.0.1:1".into());
        let weight = Map::from_iter([("weight".to_owned(), 9.into())]);
        changes.add(ServerSpec { weight: 9, ..server() }, "10.0.0.1:1".into(), weight);
        assert_eq!(effect(&mut changes, file), "10.0.0.1:1=9");
        changes.remove("10.0.0.1:1", "10.0.0.1:1".into());
        assert_eq!(effect(&mut changes, file), "");
    }
}
