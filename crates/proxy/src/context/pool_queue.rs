//! The TCP clients and HTTP requests of one worker that wait in the queues of pools, in the order of their
//! arrival.

use super::keys::{ConnectionKey, ExchangeKey};
use evener_core::Time;
use evener_core::limits::Lease;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Interval between passes through the queues without a wake-up. Such passes are necessary because no wake-up
/// follows when a datagram flow releases a permit, or when a server comes up.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Number of waiters of one pool that may get no server before a pass stops. A pass tries this many from the
/// oldest on, and this many again from the point where the last pass stopped, because servers may admit later
/// waiters although they do not admit earlier ones.
const FAILED_MAX: u32 = 8;

/// A slot in the queue of a pool, released on drop.
#[derive(Debug)]
pub(crate) struct Queued {
    ticket: u64,
    _slot: Lease,
}

/// An entry of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Exchange(ExchangeKey),
    Connection(ConnectionKey),
}

#[derive(Clone, Debug)]
struct Entry {
    ticket: u64,
    /// The name of the pool.
    pool: Arc<str>,
    waiter: Waiter,
}

/// The waiters of one worker.
#[derive(Debug, Default)]
pub(crate) struct PoolQueues {
    /// The waiters in the order of their tickets.
    entries: VecDeque<Entry>,
    next_ticket: u64,
    retry_at: Time,
    /// This worker released a permit of a pool that has waiters at any worker.
    freed: bool,
    /// Another worker released a permit, or a pool got its first waiter.
    woken: bool,
    /// Pools whose last pass stopped before its end, with the first ticket that was not tried.
    stopped: Vec<(Arc<str>, u64)>,
}

/// The progress of one pass through the queue of a pool.
#[derive(Debug)]
struct Pass {
    pool: Arc<str>,
    failed: u32,
    /// The ticket where the last pass stopped.
    resume: u64,
}

impl Pass {
    /// Returns whether an entry has to be tried.
    fn should_try(&self, ticket: u64) -> bool {
        self.failed < FAILED_MAX || (ticket >= self.resume && self.failed < 2 * FAILED_MAX)
    }
}

/// One pass through all queues.
#[derive(Debug)]
pub(crate) struct Round {
    /// The next ticket to try, and the first ticket that is too late for this round.
    from: u64,
    until: u64,
    passes: Vec<Pass>,
    /// The pass to which the last waiter belongs.
    current: usize,
    before: Vec<(Arc<str>, u64)>,
    stopped: Vec<(Arc<str>, u64)>,
}

impl Round {
    /// Notes that the last waiter got no server.
    pub(crate) fn note_failed(&mut self) {
        self.passes[self.current].failed += 1;
    }

    /// Returns the index of the pass through the queue that this entry belongs to.
    fn pass_of(&mut self, entry: &Entry) -> usize {
        self.passes.iter().position(|pass| pass.pool == entry.pool).unwrap_or_else(|| {
            let resume = self.before.iter().find(|(pool, _)| *pool == entry.pool);
            let resume = resume.map_or(0, |(_, ticket)| *ticket);
            self.passes.push(Pass { pool: Arc::clone(&entry.pool), failed: 0, resume });
            self.passes.len() - 1
        })
    }
}

impl PoolQueues {
    /// Adds a waiter. `is_first` is true if its pool has no other waiter at any worker. Then the next pass
    /// begins immediately, because the missing permit may have been released before the waiter was in the
    /// queue.
    pub(crate) fn enter(
        &mut self,
        pool: &Arc<str>,
        waiter: Waiter,
        slot: Lease,
        now: Time,
        is_first: bool,
    ) -> Queued {
        if self.entries.is_empty() {
            self.retry_at = now + RETRY_EVERY;
        }
        self.woken |= is_first;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.entries.push_back(Entry { ticket, pool: Arc::clone(pool), waiter });
        Queued { ticket, _slot: slot }
    }

    /// Removes an entry that no longer waits.
    pub(crate) fn remove(&mut self, queued: &Queued) {
        if let Ok(at) = self.entries.binary_search_by_key(&queued.ticket, |entry| entry.ticket) {
            self.entries.remove(at);
        }
    }

    /// Notes that this worker released a permit of a pool that has waiters.
    pub(crate) fn note_freed(&mut self) {
        self.freed = true;
    }

    /// Returns whether this worker released a permit, so that the other workers have to try their waiters as
    /// well.
    pub(crate) fn is_freed(&self) -> bool {
        self.freed
    }

    /// Notes that another worker woke this one.
    pub(crate) fn wake(&mut self) {
        self.woken = true;
    }

    /// Time until the next pass; `None` without waiters.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        if self.freed {
            return Some(Duration::ZERO);
        }
        (!self.entries.is_empty()).then(|| self.retry_at.since(now))
    }

    /// Begins a pass through the queues, if permits may be free.
    pub(crate) fn begin(&mut self, now: Time) -> Option<Round> {
        let freed = std::mem::take(&mut self.freed);
        let woken = std::mem::take(&mut self.woken);
        if self.entries.is_empty() || !(freed || woken || self.retry_at <= now) {
            return None;
        }
        self.retry_at = now + RETRY_EVERY;
        let before = std::mem::take(&mut self.stopped);
        let (passes, stopped) = (Vec::new(), Vec::new());
        Some(Round { from: 0, until: self.next_ticket, passes, current: 0, before, stopped })
    }

    /// The next waiter to try.
    pub(crate) fn next(&self, round: &mut Round) -> Option<Waiter> {
        while let Some(entry) = self.first_from(round.from).filter(|entry| entry.ticket < round.until) {
            round.from = entry.ticket + 1;
            let at = round.pass_of(entry);
            if round.passes[at].should_try(entry.ticket) {
                round.current = at;
                return Some(entry.waiter);
            }
            let is_new = round.stopped.iter().all(|(pool, _)| *pool != entry.pool);
            if round.passes[at].failed == 2 * FAILED_MAX && is_new {
                round.stopped.push((Arc::clone(&entry.pool), entry.ticket));
            }
        }
        None
    }

    /// Ends a pass; the next pass continues where it stopped.
    pub(crate) fn end(&mut self, round: Round) {
        self.stopped = round.stopped;
    }

    fn first_from(&self, ticket: u64) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| entry.ticket < ticket);
        self.entries.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::keys::Handle;
    use evener_core::limits::Occupancy;

    fn key(nth: usize) -> ExchangeKey {
        ExchangeKey::from_raw(nth as u64)
    }

    struct Fixture {
        queues: PoolQueues,
        slots: Occupancy,
        waiting: Vec<Queued>,
    }

    impl Fixture {
        fn new() -> Self {
            Self { queues: PoolQueues::default(), slots: Occupancy::default(), waiting: Vec::new() }
        }

        fn enter(&mut self, pool: &str, nth: usize) {
            let slot = self.slots.enter(u32::MAX).unwrap();
            let queued = self.queues.enter(&pool.into(), Waiter::Exchange(key(nth)), slot, Time::ZERO, false);
            self.waiting.push(queued);
        }

        /// Makes one pass, in which the waiters in `served` get a server and leave. Returns the numbers of the
        /// waiters that were tried.
        fn pass(&mut self, served: &[usize]) -> Vec<usize> {
            self.queues.wake();
            let mut given = Vec::new();
            let mut round = self.queues.begin(Time::ZERO).unwrap();
            while let Some(Waiter::Exchange(key)) = self.queues.next(&mut round) {
                let number = key.into_raw() as usize;
                given.push(number);
                if served.contains(&number) {
                    let queued = self.waiting.iter().find(|one| one.ticket == number as u64).unwrap();
                    self.queues.remove(queued);
                } else {
                    round.note_failed();
                }
            }
            self.queues.end(round);
            given
        }
    }

    #[test]
    fn waiters_are_tried_in_order_after_others_left() {
        let mut fixture = Fixture::new();
        (0..5).for_each(|number| fixture.enter("a", number));
        assert_eq!(fixture.pass(&[3, 0]), [0, 1, 2, 3, 4]);
        assert_eq!(fixture.pass(&[]), [1, 2, 4]);
        fixture.enter("a", 5);
        assert_eq!(fixture.pass(&[5]), [1, 2, 4, 5]);
        let queued = &fixture.waiting[5];
        fixture.queues.remove(queued);
        assert_eq!(fixture.pass(&[]), [1, 2, 4], "a second removal has no effect");
    }

    #[test]
    fn a_pass_stops_after_failures_and_the_next_pass_continues_there() {
        let mut fixture = Fixture::new();
        (0..40).for_each(|number| fixture.enter("a", number));
        fixture.enter("b", 40);
        let first: Vec<usize> = (0..16).chain([40]).collect();
        assert_eq!(fixture.pass(&[]), first, "another pool has its own pass");
        let second: Vec<usize> = (0..8).chain(16..24).chain([40]).collect();
        assert_eq!(fixture.pass(&[]), second);
    }

    #[test]
    fn waiters_that_enter_during_a_pass_wait_for_the_next_pass() {
        let mut fixture = Fixture::new();
        fixture.enter("a", 0);
        fixture.queues.wake();
        let mut round = fixture.queues.begin(Time::ZERO).unwrap();
        fixture.enter("a", 1);
        assert_eq!(fixture.queues.next(&mut round), Some(Waiter::Exchange(key(0))));
        assert_eq!(fixture.queues.next(&mut round), None);
        fixture.queues.end(round);
        assert_eq!(fixture.pass(&[]), [0, 1]);
    }

    #[test]
    fn slots_are_released_when_waiters_leave() {
        let mut fixture = Fixture::new();
        (0..3).for_each(|number| fixture.enter("a", number));
        assert_eq!(fixture.slots.active(), 3);
        fixture.waiting.clear();
        assert_eq!(fixture.slots.active(), 0);
    }

    #[test]
    fn no_pass_is_due_without_waiters() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.queues.wait(Time::ZERO), None);
        fixture.enter("a", 0);
        assert_eq!(fixture.queues.wait(Time::ZERO), Some(RETRY_EVERY));
        assert!(fixture.queues.begin(Time::ZERO).is_none(), "the interval has not passed");
        assert!(fixture.queues.begin(Time::ZERO + RETRY_EVERY).is_some());
        fixture.queues.note_freed();
        assert!(fixture.queues.is_freed());
        assert_eq!(fixture.queues.wait(Time::ZERO), Some(Duration::ZERO));
        assert!(fixture.queues.begin(Time::ZERO).is_some());
        fixture.queues.remove(&fixture.waiting[0]);
        assert_eq!(fixture.queues.wait(Time::ZERO), None);
    }

    #[test]
    fn the_first_waiter_of_a_pool_is_tried_again_immediately() {
        let (mut queues, slots) = (PoolQueues::default(), Occupancy::default());
        let waiter = Waiter::Connection(ConnectionKey::from_raw(7));
        let _queued = queues.enter(&"a".into(), waiter, slots.enter(1).unwrap(), Time::ZERO, true);
        let mut round = queues.begin(Time::ZERO).unwrap();
        assert_eq!(queues.next(&mut round), Some(waiter));
    }
}
