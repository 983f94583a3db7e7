//! A model of a kernel plane: it holds the rows of one service and applies changes one by one.

use evener_core::snapshot::Takes;
use evener_core::table::{Edit, PoolTraits, Row, ServiceTable, ServiceTraits, TableChange};
use evener_core::{Endpoint, ServerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The rows of a service, as a plane knows them.
#[derive(Debug, Default)]
pub(crate) struct Model {
    traits: BTreeMap<(), ServiceTraits>,
    listen: BTreeMap<Endpoint, Endpoint>,
    pools: BTreeMap<Arc<str>, PoolTraits>,
    rows: BTreeMap<(Arc<str>, ServerId), Row>,
}

/// Numbers of events in a simulation, which show that it tested enough.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    picked: u32,
    refused: u32,
    changes: BTreeMap<String, u32>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.picked += other.picked;
        self.refused += other.refused;
        other
            .changes
            .iter()
            .for_each(|(kind, count)| *self.changes.entry(kind.clone()).or_default() += count);
    }

    pub(crate) fn is_enough(&self) -> bool {
        let takes = ["new", "known", "none"];
        let takes = takes.iter().flat_map(|from| takes.map(|to| (from.to_string(), to)));
        let takes = takes.filter(|(from, to)| from != to).map(|(from, to)| format!("takes {from} -> {to}"));
        let things = ["service", "listen", "pool", "server"]
            .iter()
            .flat_map(|thing| ["add", "set", "remove"].map(|kind| format!("{kind} {thing}")));
        let fields = ["target", "share", "weight", "tier", "limits"].map(str::to_owned);
        let mut wanted = takes.chain(things).chain(fields).filter(|kind| kind != "set listen");
        self.picked > 1000
            && self.refused > 100
            && wanted.all(|kind| self.changes.get(&kind).is_some_and(|count| *count > 5))
    }

    /// Counts a new client that got a server or none.
    pub(crate) fn count_client(&mut self, is_served: bool) {
        *if is_served { &mut self.picked } else { &mut self.refused } += 1;
    }

    fn note(&mut self, kind: String) {
        *self.changes.entry(kind).or_default() += 1;
    }

    fn note_row(&mut self, edit: &Edit<Row>) {
        let Edit::Set { before, after } = edit else { return };
        let takes = [before, after].map(|row| row.role.takes.name());
        let differs = [
            ("target", before.target != after.target),
            ("share", before.share != after.share && before.weight == after.weight),
            ("weight", before.weight != after.weight),
            ("tier", before.tier != after.tier),
            ("limits", before.limits != after.limits),
        ];
        differs.iter().filter(|(_, differs)| *differs).for_each(|(field, _)| self.note((*field).into()));
        if takes[0] != takes[1] {
            self.note(format!("takes {} -> {}", takes[0], takes[1]));
        }
    }
}

impl Model {
    pub(crate) fn is_empty(&self) -> bool {
        self.traits.is_empty()
    }

    /// Applies changes that lead to `table`. There is no moment at which a service that has a server for new
    /// clients before and after has none.
    pub(crate) fn apply_all(
        &mut self,
        changes: &[TableChange],
        table: Option<&ServiceTable>,
        seen: &mut Seen,
    ) {
        let has_server = table.is_some_and(|table| {
            let default = table.pools().find(|(name, _)| Some(*name) == table.traits().default_pool.as_ref());
            default.is_some_and(|(_, pool)| pool.rows().any(|(_, row)| row.role.takes == Takes::New))
        });
        let stays_open = self.is_open() && has_server;
        for change in changes {
            assert!(!change.to_string().ends_with(": "), "each change is described: {change}");
            self.apply(change, seen);
            assert!(!stays_open || self.is_open(), "no server is left after {change}");
        }
        assert_eq!(table.is_none(), self.is_empty());
    }

    /// Returns true if new clients get a server of the default pool.
    fn is_open(&self) -> bool {
        let default = self.traits.get(&()).and_then(|traits| traits.default_pool.as_ref());
        self.rows.iter().any(|((pool, _), row)| Some(pool) == default && row.role.takes == Takes::New)
    }

    fn apply(&mut self, change: &TableChange, seen: &mut Seen) {
        match change {
            TableChange::Service { edit, .. } => {
                seen.note(format!("{} service", enter(&mut self.traits, (), edit)));
                let is_removed = self.traits.is_empty();
                assert!(!is_removed || self.listen.is_empty() && self.pools.is_empty());
            }
            TableChange::Listen { edit, .. } => {
                let (Edit::Add(address) | Edit::Remove(address) | Edit::Set { after: address, .. }) = edit;
                seen.note(format!("{} listen", enter(&mut self.listen, address.clone(), edit)));
                assert!(!self.traits.is_empty(), "an address belongs to a service");
            }
            TableChange::Pool { pool, edit } => {
                seen.note(format!("{} pool", enter(&mut self.pools, pool.clone(), edit)));
                let has_servers = self.rows.keys().any(|(of, _)| of == pool);
                assert!(self.pools.contains_key(pool) || !has_servers);
            }
            TableChange::Server { pool, server, edit } => {
                assert!(self.pools.contains_key(pool), "a server belongs to a pool");
                seen.note(format!("{} server", enter(&mut self.rows, (pool.clone(), *server), edit)));
                seen.note_row(edit);
            }
        }
    }

    pub(crate) fn check(&self, table: &ServiceTable) {
        assert_eq!(self.traits.get(&()), Some(table.traits()));
        assert_eq!(self.listen.keys().cloned().collect::<BTreeSet<_>>(), *table.listen());
        let pools = table.pools().map(|(name, pool)| (name, pool.traits()));
        assert!(self.pools.iter().eq(pools));
        let rows = table.pools().flat_map(|(name, pool)| pool.rows().map(move |(id, row)| ((name, id), row)));
        assert!(self.rows.iter().map(|((name, id), row)| ((name, *id), row)).eq(rows));
    }
}

/// Applies a change of one thing; returns the kind of change.
fn enter<K: Ord, V: Clone + PartialEq + std::fmt::Debug>(
    things: &mut BTreeMap<K, V>,
    key: K,
    edit: &Edit<V>,
) -> &'static str {
    match edit {
        Edit::Add(new) => {
            assert_eq!(things.insert(key, new.clone()), None, "a new thing is new");
            "add"
        }
        Edit::Remove(old) => {
            assert_eq!(things.remove(&key).as_ref(), Some(old), "a removed thing existed");
            "remove"
        }
        Edit::Set { before, after } => {
            assert_eq!(things.insert(key, after.clone()).as_ref(), Some(before), "the old value is right");
            assert_ne!(before, after);
            "set"
        }
    }
}
