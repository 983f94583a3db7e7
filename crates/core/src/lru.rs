//! A bounded map that evicts the entry that was unused the longest: a hash index over a slab with an order of
//! use. It never grows beyond its capacity and takes memory only for its entries.

use crate::hash::Keyed;
use crate::time::Time;
use std::collections::HashMap;
use std::hash::Hash;

const NONE: u32 = u32::MAX;

/// The bounded map. `newest` was used last; `oldest` is evicted first.
#[derive(Debug)]
pub struct Lru<K, V> {
    index: HashMap<K, u32, Keyed>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    entry: Option<(K, V)>,
    used: Time,
    newer: u32,
    older: u32,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// Creates an empty map for at most `capacity` entries (at least one). `key` seeds its hashing.
    #[must_use]
    pub fn new(capacity: usize, key: u64) -> Self {
        Self {
            index: HashMap::with_hasher(Keyed::new(key)),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity: capacity.clamp(1, NONE as usize - 1),
        }
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns true if there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Returns the maximum number of entries.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the entry of `key` and the time of its last use, which does not change.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<(&V, Time)> {
        let slot = &self.slots[*self.index.get(key)? as usize];
        slot.entry.as_ref().map(|(_, value)| (value, slot.used))
    }

    /// Returns the entry of `key` for a change. The time of its last use does not change.
    pub fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = &mut self.slots[*self.index.get(key)? as usize];
        slot.entry.as_mut().map(|(_, value)| value)
    }

    /// Returns the entry of `key` and makes it the newest.
    pub fn touch(&mut self, key: &K, now: Time) -> Option<&mut V> {
        let at = *self.index.get(key)?;
        self.renew(at, now);
        self.slots[at as usize].entry.as_mut().map(|(_, value)| value)
    }

    /// Inserts an entry as the newest. Returns the previous entry of the key, or the oldest one if the map
    /// was full.
    pub fn insert(&mut self, key: K, value: V, now: Time) -> Option<(K, V)> {
        if let Some(&at) = self.index.get(&key) {
            self.renew(at, now);
            return self.slots[at as usize].entry.replace((key, value));
        }
        let evicted = if self.len() >= self.capacity { self.pop_oldest() } else { None };
        let at = self.vacant();
        self.slots[at as usize].entry = Some((key, value));
        self.slots[at as usize].used = now;
        self.link_newest(at);
        self.index.insert(key, at);
        evicted
    }

    /// Removes the entry of `key`.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        self.unlink(at);
        self.free.push(at);
        self.slots[at as usize].entry.take().map(|(_, value)| value)
    }

    /// Removes the oldest entry.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (key, _) = self.oldest()?;
        self.remove(&key).map(|value| (key, value))
    }

    /// Returns the least recently used key and the time of its last use.
    #[must_use]
    pub fn oldest(&self) -> Option<(K, Time)> {
        let slot = self.slots.get(self.oldest as usize)?;
        slot.entry.as_ref().map(|(key, _)| (*key, slot.used))
    }

    /// Returns every entry with its last use, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V, Time)> {
        self.walk(self.newest, |slot| slot.older)
    }

    /// Returns every entry with its last use, the oldest first.
    pub fn iter_oldest(&self) -> impl Iterator<Item = (&K, &V, Time)> {
        self.walk(self.oldest, |slot| slot.newer)
    }

    fn walk(&self, from: u32, next: fn(&Slot<K, V>) -> u32) -> impl Iterator<Item = (&K, &V, Time)> {
        let mut at = from;
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            at = next(slot);
            slot.entry.as_ref().map(|(key, value)| (key, value, slot.used))
        })
    }

    /// Changes the capacity. Evicts the entries beyond the new capacity, the oldest first.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity.clamp(1, NONE as usize - 1);
        while self.len() > self.capacity {
            self.pop_oldest();
        }
    }

    fn vacant(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { entry: None, used: Time::ZERO, newer: NONE, older: NONE });
            (self.slots.len() - 1) as u32
        })
    }

    fn renew(&mut self, at: u32, now: Time) {
        self.slots[at as usize].used = now;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn link_newest(&mut self, at: u32) {
        self.slots[at as usize].newer = NONE;
        self.slots[at as usize].older = self.newest;
        match self.newest {
            NONE => self.oldest = at,
            newest => self.slots[newest as usize].newer = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.slots[at as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    /// Panics unless index, slab and order agree.
    pub fn check_invariants(&self) {
        assert!(self.len() <= self.capacity, "the map is within its capacity");
        assert_eq!(self.len() + self.free.len(), self.slots.len(), "each slot is used or free");
        assert_eq!(self.iter().count(), self.len(), "the order has every entry once");
        assert_eq!(self.iter_oldest().count(), self.len(), "the reverse order has every entry once");
        for (key, _, used) in self.iter() {
            let at = self.index[key] as usize;
            assert_eq!(self.slots[at].used, used, "the index and the order agree");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;
    use std::collections::VecDeque;

    #[test]
    fn the_map_behaves_like_a_list_with_the_newest_entry_in_front() {
        let mut random = Random::seeded(7);
        let (mut lru, mut model) = (Lru::new(8, 1), VecDeque::new());
        for step in 0..5_000_u64 {
            let (key, now) = (random.below(20) as u32, Time::from_nanos(step));
            let at = model.iter().position(|&(known, _)| known == key);
            match random.below(4) {
                0 => {
                    let removed = at.and_then(|at| model.remove(at)).map(|(_, value)| value);
                    assert_eq!(lru.remove(&key), removed);
                }
                1 => {
                    let found = at.and_then(|at| model.remove(at));
                    found.into_iter().for_each(|entry| model.push_front(entry));
                    assert_eq!(lru.touch(&key, now).copied(), found.map(|(_, value)| value));
                }
                _ => {
                    let replaced = at.and_then(|at| model.remove(at));
                    let full = replaced.is_none() && model.len() == 8;
                    let evicted = if full { model.pop_back() } else { replaced };
                    model.push_front((key, step));
                    assert_eq!(lru.insert(key, step, now), evicted);
                }
            }
            lru.check_invariants();
            assert!(lru.iter().map(|(key, value, _)| (*key, *value)).eq(model.iter().copied()));
        }
    }

    #[test]
    fn a_smaller_capacity_evicts_the_oldest() {
        let mut lru = Lru::new(4, 1);
        (0..4).for_each(|key| assert!(lru.insert(key, 1, Time::from_nanos(key)).is_none()));
        lru.resize(2);
        assert_eq!(lru.iter().map(|(key, ..)| *key).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(lru.iter_oldest().map(|(key, ..)| *key).collect::<Vec<_>>(), [2, 3]);
        lru.peek_mut(&2).into_iter().for_each(|value| *value = 20);
        assert_eq!(
            (lru.oldest(), lru.peek(&2)),
            (Some((2, Time::from_nanos(2))), Some((&20, Time::from_nanos(2))))
        );
        lru.check_invariants();
    }
}
