//! Slots of the arrays that the program reads. A thing keeps its slot as long as it exists, also when another process
//! takes the maps over: its identity is a hash of its names, which is stored beside the slot.

use evener_core::Time;
use evener_core::hash::of_name;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Time for which a free slot is not used again: packets in flight and the previous tables of choices may still name
/// the slot.
pub(crate) const GRACE: Duration = Duration::from_secs(360);

/// Identity of a service, virtual address, pool or server across processes: 128 bits of hashes of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity(u128);

impl Identity {
    /// Returns the identity of a thing with these names.
    pub(crate) fn of(names: &[&str]) -> Self {
        // A character that names cannot have separates them.
        let text = names.join("\n");
        // The all-zero identity means "none".
        Self(((u128::from(of_name(&text, 17)) << 64) | u128::from(of_name(&text, 23))).max(1))
    }

    /// Returns the words in which the identity is stored.
    pub(crate) fn words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// Returns the identity that is stored in these words; `None` if they are 0.
    pub(crate) fn from_words([high, low]: [u64; 2]) -> Option<Self> {
        let bits = (u128::from(high) << 64) | u128::from(low);
        (bits != 0).then_some(Self(bits))
    }
}

/// All slots are in use, or were in use until a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The numbers of an array. Number 0 means "none" and is never used.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    is_used: Vec<bool>,
    /// Numbers that became free, with the time from which they may be used again.
    resting: VecDeque<(Time, u32)>,
    /// The next number that was never used.
    fresh: u32,
}

impl Numbers {
    /// Creates the numbers of an array with `size` entries, some of which an earlier process used.
    pub(crate) fn new(size: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let mut numbers = Self { is_used: vec![false; size as usize], resting: VecDeque::new(), fresh: 1 };
        for number in used.into_iter().filter(|number| (1..size).contains(number)) {
            numbers.is_used[number as usize] = true;
            numbers.fresh = numbers.fresh.max(number + 1);
        }
        // Free numbers below the highest one in use may have been given up a moment ago.
        let free = (1..numbers.fresh).filter(|&number| !numbers.is_used[number as usize]);
        numbers.resting = free.map(|number| (Time::ZERO + GRACE, number)).collect();
        numbers
    }

    /// Returns a number that was never used, else the number that is free for the longest time.
    pub(crate) fn take(&mut self, now: Time) -> Result<u32, Full> {
        let number = if (self.fresh as usize) < self.is_used.len() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            self.resting.pop_front_if(|(from, _)| *from <= now).ok_or(Full)?.1
        };
        self.is_used[number as usize] = true;
        Ok(number)
    }

    /// Frees a number. It rests before it is used again.
    pub(crate) fn release(&mut self, number: u32, now: Time) {
        self.is_used[number as usize] = false;
        self.resting.push_back((now + GRACE, number));
    }
}

/// The slots of one array, by the identities of the things in them.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    by_identity: HashMap<Identity, u32>,
    numbers: Numbers,
}

impl Slots {
    /// Creates the slots of an array with `size` entries, with the things of an earlier process.
    pub(crate) fn new(size: u32, known: impl IntoIterator<Item = (Identity, u32)>) -> Self {
        let by_identity: HashMap<Identity, u32> = known.into_iter().collect();
        let numbers = Numbers::new(size, by_identity.values().copied());
        Self { by_identity, numbers }
    }

    /// Returns the slot of a thing.
    pub(crate) fn get(&self, identity: Identity) -> Option<u32> {
        self.by_identity.get(&identity).copied()
    }

    /// Returns the things with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Identity, u32)> {
        self.by_identity.iter().map(|(identity, slot)| (*identity, *slot))
    }

    /// Returns the slot of a thing. A new thing gets a slot.
    pub(crate) fn take(&mut self, identity: Identity, now: Time) -> Result<u32, Full> {
        if let Some(slot) = self.get(identity) {
            return Ok(slot);
        }
        let slot = self.numbers.take(now)?;
        self.by_identity.insert(identity, slot);
        Ok(slot)
    }

    /// Frees the slot of a thing. It rests before it is used again.
    pub(crate) fn release(&mut self, identity: Identity, now: Time) {
        if let Some(slot) = self.by_identity.remove(&identity) {
            self.numbers.release(slot, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(number: u32) -> Identity {
        Identity::of(&["pool", &number.to_string()])
    }

    #[test]
    fn free_slots_rest_before_they_are_used_again() {
        let mut slots = Slots::new(4, []);
        let start = Time::ZERO;
        assert_eq!([1, 2, 3].map(|n| slots.take(thing(n), start)), [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(slots.take(thing(4), start), Err(Full));
        slots.release(thing(2), start);
        assert_eq!(slots.take(thing(4), start + GRACE / 2), Err(Full));
        assert_eq!(slots.take(thing(4), start + GRACE), Ok(2));
        assert_eq!((slots.get(thing(2)), slots.iter().count()), (None, 3));
    }

    #[test]
    fn another_process_finds_the_slots_by_the_stored_identities() {
        let words = thing(7).words();
        let known = Identity::from_words(words).map(|identity| (identity, 3));
        let mut slots = Slots::new(5, known);
        assert_eq!((slots.get(thing(7)), slots.get(thing(8))), (Some(3), None));
        assert_eq!(slots.take(thing(8), Time::ZERO), Ok(4), "lower slots may be in flight");
        assert_eq!(slots.take(thing(9), Time::ZERO + GRACE), Ok(1));
        assert_eq!(Identity::from_words([0, 0]), None);
        assert_ne!(Identity::of(&["ab", "c"]), Identity::of(&["a", "bc"]));
    }
}
