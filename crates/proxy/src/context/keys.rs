//! Generational handles, and the tables that they index. Using the key of another table does not compile. The
//! key of a removed entry finds nothing, even if a later entry has the same index.

#![allow(dead_code, reason = "the components adopt keys one by one")]

use slab::Slab;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A handle that can be encoded for the kernel: in the token of an epoll event, or in the user data of the
/// ring.
pub(crate) trait Handle: Copy {
    /// The low half is the index, the high half the generation.
    fn into_raw(self) -> u64;
    fn from_raw(raw: u64) -> Self;
}

impl Handle for usize {
    fn into_raw(self) -> u64 {
        self as u64
    }

    fn from_raw(raw: u64) -> Self {
        raw as Self
    }
}

/// The handle of an entry of a [`Table`].
pub(crate) struct Key<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation, of: PhantomData }
    }

    /// The slot in the table, which another entry may get later.
    pub(crate) const fn slot(self) -> u32 {
        self.index
    }
}

impl<T> Handle for Key<T> {
    fn into_raw(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_raw(raw: u64) -> Self {
        Self::new(raw as u32, (raw >> 32) as u32)
    }
}

// Derived implementations would require the same traits of `T`, which is only a name.
impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<T> Eq for Key<T> {}

impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.into_raw().hash(hasher);
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.index, self.generation)
    }
}

/// Marker types for the kinds of entries of tables.
pub(crate) mod of {
    /// A listener for connections.
    pub(crate) enum Listener {}
    /// A relayed connection.
    pub(crate) enum Connection {}
    /// A send of the ring.
    pub(crate) enum Send {}
    /// A client of HTTP or TLS.
    pub(crate) enum Session {}
    /// A request, or the relay of a tunnel.
    pub(crate) enum Exchange {}
    /// A stream of HTTP/2.
    pub(crate) enum Stream {}
    /// A connection of exchanges to a server.
    pub(crate) enum ServerConnection {}
    /// A listener for datagrams.
    pub(crate) enum DatagramListener {}
    /// A flow's socket to its server.
    pub(crate) enum FlowSocket {}
    /// A DNS service.
    pub(crate) enum DnsService {}
    /// A listener for DNS datagrams.
    pub(crate) enum DnsListener {}
    /// An outstanding DNS query.
    pub(crate) enum Query {}
    /// The connections of one service with one DNS server.
    pub(crate) enum DnsUpstream {}
    /// A socket for datagrams to a DNS server.
    pub(crate) enum DnsSocket {}
    /// A connection to a DNS server.
    pub(crate) enum DnsStream {}
    /// A client of DNS over TCP.
    pub(crate) enum DnsClient {}
    /// A persistent connection to a DNS server.
    pub(crate) enum Persistent {}
}

pub(crate) type ListenerKey = Key<of::Listener>;
pub(crate) type ConnectionKey = Key<of::Connection>;
pub(crate) type SendKey = Key<of::Send>;
pub(crate) type SessionKey = Key<of::Session>;
pub(crate) type ExchangeKey = Key<of::Exchange>;
pub(crate) type StreamKey = Key<of::Stream>;
pub(crate) type ServerConnectionKey = Key<of::ServerConnection>;
pub(crate) type DatagramListenerKey = Key<of::DatagramListener>;
pub(crate) type FlowSocketKey = Key<of::FlowSocket>;
pub(crate) type DnsServiceKey = Key<of::DnsService>;
pub(crate) type DnsListenerKey = Key<of::DnsListener>;
pub(crate) type QueryKey = Key<of::Query>;
pub(crate) type DnsUpstreamKey = Key<of::DnsUpstream>;
pub(crate) type DnsSocketKey = Key<of::DnsSocket>;
pub(crate) type DnsStreamKey = Key<of::DnsStream>;
pub(crate) type DnsClientKey = Key<of::DnsClient>;
pub(crate) type PersistentKey = Key<of::Persistent>;

/// Largest generation; the next one is 0. A generation has only 27 bits, so that the kind of an event or of an
/// operation of the ring fits into the same 64 bits as a key.
pub(crate) const GENERATION_MASK: u32 = (1 << 27) - 1;

#[derive(Debug)]
struct Slot<V> {
    generation: u32,
    value: V,
}

/// Values by their keys. Indices are reused; generations repeat only after a wrap.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    slots: Slab<Slot<V>>,
    generation: u32,
    of: PhantomData<fn() -> K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { slots: Slab::new(), generation: 0, of: PhantomData }
    }
}

impl<K, V> Table<K, V> {
    pub(crate) fn insert(&mut self, value: V) -> Key<K> {
        self.insert_with(|_| value)
    }

    /// Inserts a value that is made from its own key.
    ///
    /// # Panics
    /// With more than 4 billion entries.
    pub(crate) fn insert_with(&mut self, value: impl FnOnce(Key<K>) -> V) -> Key<K> {
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let vacant = self.slots.vacant_entry();
        let index = u32::try_from(vacant.key())
            .expect("descriptors or memory are exhausted before 4 billion entries");
        let key = Key::new(index, generation);
        vacant.insert(Slot { generation, value: value(key) });
        key
    }

    pub(crate) fn get(&self, key: Key<K>) -> Option<&V> {
        let slot = self.slots.get(key.index as usize)?;
        (slot.generation == key.generation).then_some(&slot.value)
    }

    pub(crate) fn get_mut(&mut self, key: Key<K>) -> Option<&mut V> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation).then_some(&mut slot.value)
    }

    /// Returns the key of the entry that is in a slot now.
    pub(crate) fn key_at(&self, slot: u32) -> Option<Key<K>> {
        self.slots.get(slot as usize).map(|entry| Key::new(slot, entry.generation))
    }

    pub(crate) fn contains(&self, key: Key<K>) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remove(&mut self, key: Key<K>) -> Option<V> {
        self.contains(key).then(|| self.slots.remove(key.index as usize).value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<K>, &V)> {
        self.slots.iter().map(|(index, slot)| (Key::new(index as u32, slot.generation), &slot.value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key<K>, &mut V)> {
        self.slots.iter_mut().map(|(index, slot)| (Key::new(index as u32, slot.generation), &mut slot.value))
    }

    /// Returns the keys of the entries that `is_meant` selects. They are collected first, so that the caller
    /// can change the entries.
    pub(crate) fn keys(&self, is_meant: impl Fn(&V) -> bool) -> Vec<Key<K>> {
        self.iter().filter(|(_, value)| is_meant(value)).map(|(key, _)| key).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl<K, V> Index<Key<K>> for Table<K, V> {
    type Output = V;

    fn index(&self, key: Key<K>) -> &V {
        self.get(key).expect("the key of an index expression belongs to a present entry")
    }
}

impl<K, V> IndexMut<Key<K>> for Table<K, V> {
    fn index_mut(&mut self, key: Key<K>) -> &mut V {
        self.get_mut(key).expect("the key of an index expression belongs to a present entry")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::Random;
    use std::collections::HashMap;

    enum Thing {}

    #[test]
    fn a_stale_key_finds_no_entry_after_its_index_is_reused() {
        let mut table: Table<Thing, &str> = Table::default();
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!((table.get(first), table.get(second)), (None, Some(&"second")));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn keys_survive_encoding_for_the_kernel() {
        for (index, generation) in [(0, 0), (7, 1), (u32::MAX, GENERATION_MASK)] {
            let key: Key<Thing> = Key::new(index, generation);
            assert_eq!(Key::from_raw(key.into_raw()), key);
            assert!(key.into_raw() < 1 << 59);
        }
        assert_eq!(usize::from_raw(9_usize.into_raw()), 9);
    }

    #[test]
    fn a_table_agrees_with_a_model() {
        let (mut random, mut table) = (Random::seeded(11), Table::<Thing, u64>::default());
        let mut model: HashMap<Key<Thing>, u64> = HashMap::new();
        let mut ever: Vec<Key<Thing>> = Vec::new();
        for round in 0..5_000 {
            if random.below(2) == 0 || ever.is_empty() {
                let key = table.insert_with(|_| round);
                assert_eq!(model.insert(key, round), None, "each key is unique");
                ever.push(key);
            } else {
                let key = ever[random.below(ever.len())];
                assert_eq!(table.remove(key), model.remove(&key));
            }
            let key = ever[random.below(ever.len())];
            assert_eq!(table.get(key), model.get(&key));
            assert_eq!(table.len(), model.len());
        }
        let mut listed: Vec<u64> = table.iter().map(|(_, value)| *value).collect();
        let mut expected: Vec<u64> = model.values().copied().collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        let even = table.keys(|value| value % 2 == 0);
        assert!(even.iter().all(|key| table[*key] % 2 == 0 && table.contains(*key)));
        assert_eq!(even.len(), expected.iter().filter(|value| *value % 2 == 0).count());
        even.into_iter().for_each(|key| table[key] += 1);
        assert!(table.iter_mut().all(|(_, value)| *value % 2 == 1));
        assert!(!table.is_empty());
    }
}
