//! One deadline for each entry of a table, in a hashed wheel (Varghese and Lauck 1987, scheme 6): setting and
//! clearing take constant time, and the memory is proportional to the largest number of entries that existed at
//! the same time.

use super::keys::Handle;
use evener_core::Time;
use std::marker::PhantomData;
use std::time::Duration;

const SLOTS: usize = 1024;
const NONE: u32 = u32::MAX;
const TICK: Duration = Duration::from_millis(32);

/// The wheel, for the entries of one table.
#[derive(Debug)]
pub(crate) struct Timers<K = usize> {
    firsts: Box<[u32; SLOTS]>,
    nodes: Vec<Node>,
    /// The last tick whose slot was handled.
    done: u64,
    /// No deadline is before this tick; the next deadline may be later.
    earliest: u64,
    count: usize,
    of: PhantomData<fn() -> K>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    previous: u32,
    /// The tick of the deadline; 0 when there is none.
    due: u64,
    /// The handle of the entry.
    raw: u64,
}

const UNSET: Node = Node { next: NONE, previous: NONE, due: 0, raw: 0 };

/// The first tick that is not before `at`.
fn tick(at: Time) -> u64 {
    at.as_nanos().div_ceil(TICK.as_nanos() as u64)
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

/// Returns the index of the node of a handle. An index belongs to one entry at a time; a later entry reuses the
/// node.
fn node_of(raw: u64) -> usize {
    raw as u32 as usize
}

impl<K: Handle> Timers<K> {
    pub(crate) fn new() -> Self {
        let firsts = Box::new([NONE; SLOTS]);
        Self { firsts, nodes: Vec::new(), done: 0, earliest: u64::MAX, count: 0, of: PhantomData }
    }

    /// Sets the deadline of an entry, replacing an earlier deadline.
    pub(crate) fn set(&mut self, key: K, deadline: Time) {
        let raw = key.into_raw();
        let index = node_of(raw);
        self.unlink(index as u32);
        if self.nodes.len() <= index {
            self.nodes.resize(index + 1, UNSET);
        }
        let due = tick(deadline).max(self.done + 1);
        let first = std::mem::replace(&mut self.firsts[slot(due)], index as u32);
        self.nodes[index] = Node { next: first, previous: NONE, due, raw };
        if first != NONE {
            self.nodes[first as usize].previous = index as u32;
        }
        self.earliest = self.earliest.min(due);
        self.count += 1;
    }

    /// Sets the deadline of an entry, unless it has an earlier one.
    pub(crate) fn set_if_earlier(&mut self, key: K, deadline: Time) {
        let earlier = |node: &Node| node.due <= tick(deadline);
        if !self.node(key).is_some_and(earlier) {
            self.set(key, deadline);
        }
    }

    /// Returns whether an entry has a deadline.
    pub(crate) fn is_set(&self, key: K) -> bool {
        self.node(key).is_some()
    }

    /// Clears the deadline of an entry, if it has one.
    pub(crate) fn clear(&mut self, key: K) {
        if self.is_set(key) {
            self.unlink(node_of(key.into_raw()) as u32);
        }
    }

    fn node(&self, key: K) -> Option<&Node> {
        let raw = key.into_raw();
        self.nodes.get(node_of(raw)).filter(|node| node.due != 0 && node.raw == raw)
    }

    fn unlink(&mut self, node: u32) {
        let node_index = node as usize;
        let Some(node) = self.nodes.get(node_index).copied().filter(|node| node.due != 0) else { return };
        match node.previous {
            NONE => self.firsts[slot(node.due)] = node.next,
            previous => self.nodes[previous as usize].next = node.next,
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        self.nodes[node_index] = UNSET;
        self.count -= 1;
    }

    /// Returns the time in which no deadline can be due; `None` when there is no deadline.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        let at = Time::from_nanos(self.earliest.saturating_mul(TICK.as_nanos() as u64));
        (self.count > 0).then(|| at.since(now))
    }

    /// Moves the entries whose deadline has passed into `due`, and clears their deadlines.
    pub(crate) fn expire(&mut self, now: Time, due: &mut Vec<K>) {
        let now = now.as_nanos() / TICK.as_nanos() as u64;
        if self.earliest > now {
            self.done = self.done.max(now.min(self.earliest - 1));
            return;
        }
        // Each slot is visited at most once, even if more than one turn of the wheel has passed.
        for tick in (self.done + 1)..=now.min(self.done + SLOTS as u64) {
            self.expire_slot(tick, now, due);
        }
        self.done = now;
        self.earliest = self.next_occupied();
    }

    fn expire_slot(&mut self, tick: u64, now: u64, due: &mut Vec<K>) {
        let mut at = self.firsts[slot(tick)];
        while at != NONE {
            let node = self.nodes[at as usize];
            if node.due <= now {
                self.unlink(at);
                due.push(K::from_raw(node.raw));
            }
            at = node.next;
        }
    }

    /// Returns the tick of the next slot with an entry, which may be due in a later turn.
    fn next_occupied(&self) -> u64 {
        let ahead = (self.done + 1)..=(self.done + SLOTS as u64);
        ahead.into_iter().find(|&tick| self.firsts[slot(tick)] != NONE).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::Random;
    use std::collections::BTreeMap;

    #[test]
    fn a_removed_entry_has_no_deadline_and_clears_no_other_deadline() {
        let old = 5_u64 | 1 << 32;
        let new = 5_u64 | 2 << 32;
        let keys = [old, new].map(crate::context::keys::Key::<u8>::from_raw);
        let (mut timers, mut due) = (Timers::new(), Vec::new());
        timers.set(keys[0], Time::ZERO + Duration::from_secs(1));
        timers.set(keys[1], Time::ZERO + Duration::from_secs(2));
        timers.clear(keys[0]);
        assert!(!timers.is_set(keys[0]) && timers.is_set(keys[1]));
        timers.expire(Time::ZERO + Duration::from_secs(3), &mut due);
        assert_eq!(due, [keys[1]]);
    }

    #[test]
    fn deadlines_expire_once_not_early_and_at_most_a_tick_late() {
        let mut random = Random::seeded(4);
        let mut timers: Timers = Timers::new();
        let mut model: BTreeMap<usize, Time> = BTreeMap::new();
        let mut now = Time::ZERO;
        for _ in 0..20_000 {
            let index = random.below(200);
            match random.below(4) {
                0 => {
                    timers.clear(index);
                    model.remove(&index);
                }
                1 => {
                    let deadline = now + Duration::from_millis(random.below(100_000) as u64);
                    timers.set(index, deadline);
                    model.insert(index, deadline);
                }
                _ => now += Duration::from_millis(random.below(400) as u64),
            }
            let mut due = Vec::new();
            timers.expire(now, &mut due);
            for index in due {
                let deadline = model.remove(&index).expect("only entries with a deadline expire");
                assert!(deadline <= now, "no deadline expires early");
            }
            assert!(model.values().all(|deadline| *deadline + TICK * 2 > now), "no deadline expires late");
            assert_eq!(timers.count, model.len());
            let wait = timers.wait(now);
            assert_eq!(wait.is_none(), model.is_empty());
            let next = model.values().min().copied().unwrap_or(Time::NEVER);
            assert!(wait.is_none_or(|wait| now + wait <= next + TICK * 2), "no wait exceeds a deadline");
        }
    }

    #[test]
    fn a_deadline_is_advanced_and_never_postponed() {
        let at = |secs: u64| Time::ZERO + Duration::from_secs(secs);
        let (mut timers, mut due): (Timers, _) = (Timers::new(), Vec::new());
        timers.set_if_earlier(3, at(20));
        timers.set_if_earlier(3, at(10));
        timers.set_if_earlier(3, at(30));
        timers.expire(at(9), &mut due);
        assert!(due.is_empty() && timers.is_set(3));
        timers.expire(at(11), &mut due);
        assert_eq!((due.as_slice(), timers.is_set(3)), (&[3][..], false));
        assert_eq!(timers.wait(at(11)), None);
    }

    #[test]
    fn a_deadline_in_the_past_expires_at_the_next_tick() {
        let now = Time::ZERO + Duration::from_secs(5);
        let (mut timers, mut due): (Timers, _) = (Timers::new(), Vec::new());
        timers.expire(now, &mut due);
        timers.set(1, Time::ZERO);
        assert!(timers.wait(now).is_some_and(|wait| wait <= TICK));
        timers.expire(now + TICK, &mut due);
        assert_eq!(due, [1]);
    }
}
