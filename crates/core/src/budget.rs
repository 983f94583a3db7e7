//! Retry budget of a pool: bounds the number of retries by a share of the recent requests, so that retries do
//! not multiply an overload. A retry is any further try to reach a server for the same connection, request,
//! query or flow.
//!
//! Each worker counts its first tries in its own cache line. A retry, which is rare, adds up these lines. The
//! budget chooses no servers; [`crate::attempt`] asks it before each retry.

use crate::spec::RetryBudgetSpec;
use crate::time::Time;
use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Minimum length of the window in which requests and retries are compared.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Number of slots of a window: four whole slots and the present one.
const SLOTS: usize = 5;
/// Length of a slot.
const SLOT_NANOS: u64 = WINDOW.as_nanos() as u64 / (SLOTS as u64 - 1);
/// Number of low bits of a slot that hold its count. The other bits hold the number of the slot.
const COUNT_BITS: u32 = 40;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_MASK: u64 = u64::MAX >> COUNT_BITS;

/// Number of events in each of the latest slots of time. A slot holds its number beside its count, so that
/// obsolete counts need no removal.
#[derive(Debug, Default)]
struct Window([AtomicU64; SLOTS]);

/// A slot of time.
#[derive(Clone, Copy, Debug)]
struct Slot(u64);

impl Slot {
    const fn at(now: Time) -> Self {
        Self(now.as_nanos() / SLOT_NANOS)
    }

    const fn index(self) -> usize {
        (self.0 % SLOTS as u64) as usize
    }

    /// Returns the value of the slot after one more event.
    const fn counted(self, value: u64) -> u64 {
        let number = self.0 & NUMBER_MASK;
        if value >> COUNT_BITS == number { value + 1 } else { (number << COUNT_BITS) | 1 }
    }

    /// Returns the count in `value` if it belongs to the window that ends with this slot. The clock of another
    /// worker may be in the next slot already.
    const fn count(self, value: u64) -> u64 {
        let age = self.0.wrapping_sub(value >> COUNT_BITS) & NUMBER_MASK;
        if age < SLOTS as u64 || age == NUMBER_MASK { value & COUNT_MASK } else { 0 }
    }
}

impl Window {
    /// Counts an event. Only one thread may call this.
    fn count(&self, slot: Slot) {
        let cell = &self.0[slot.index()];
        cell.store(slot.counted(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Counts an event. Any thread may call this.
    fn count_shared(&self, slot: Slot) {
        let counted = |value| Some(slot.counted(value));
        let _ = self.0[slot.index()].fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Removes an event that was counted in this slot.
    fn remove_shared(&self, slot: Slot) {
        self.0[slot.index()].fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of events in the window that ends with this slot.
    fn sum(&self, slot: Slot) -> u64 {
        self.0.iter().map(|cell| slot.count(cell.load(Ordering::Relaxed))).sum()
    }
}

/// Counts of the first tries and retries of a pool. They outlive snapshots and reloads.
#[derive(Debug)]
pub struct RetryLedger {
    /// First tries, by worker.
    firsts: Box<[CachePadded<Window>]>,
    retries: CachePadded<Window>,
}

impl RetryLedger {
    /// Creates the ledger of a new pool.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let firsts = (0..workers.max(1)).map(|_| CachePadded::default()).collect();
        Self { firsts, retries: CachePadded::default() }
    }

    fn firsts(&self, slot: Slot) -> u64 {
        self.firsts.iter().map(|window| window.sum(slot)).sum()
    }
}

/// The retry budget of a pool, as configured.
///
/// ```
/// use evener_core::Time;
/// use evener_core::budget::{RetryBudget, RetryLedger};
/// use evener_core::spec::RetryBudgetSpec;
/// use std::sync::Arc;
///
/// let spec = RetryBudgetSpec { share_percent: 20, min_per_second: 0 };
/// let budget = RetryBudget::new(Some(spec), 3, Arc::new(RetryLedger::new(1)));
/// (0..6).for_each(|_| budget.deposit(0, Time::ZERO));
/// assert!(budget.withdraw(Time::ZERO));
/// assert!(!budget.withdraw(Time::ZERO));
/// ```
#[derive(Clone, Debug)]
pub struct RetryBudget {
    terms: Option<Terms>,
    ledger: Arc<RetryLedger>,
}

/// Terms of a limited budget.
#[derive(Clone, Copy, Debug)]
struct Terms {
    share_percent: u64,
    /// Number of retries that a window permits regardless of the number of requests.
    floor: u64,
}

/// Use of a budget in the present window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetUse {
    /// Number of retries.
    pub retries: u64,
    /// Maximum number of retries.
    pub retries_max: u64,
}

impl BudgetUse {
    /// Returns true if no further retry is permitted.
    #[must_use]
    pub const fn is_used_up(&self) -> bool {
        self.retries >= self.retries_max
    }
}

impl RetryBudget {
    /// Creates the budget of a pool with this number of servers; without a specification there is no limit.
    #[must_use]
    pub fn new(spec: Option<RetryBudgetSpec>, servers: usize, ledger: Arc<RetryLedger>) -> Self {
        Self { terms: spec.map(|spec| Terms::new(spec, servers)), ledger }
    }

    /// Counts the first try of a connection, request or query by worker number `worker`.
    pub fn deposit(&self, worker: usize, now: Time) {
        if self.terms.is_some() {
            let firsts = &self.ledger.firsts;
            firsts.get(worker).unwrap_or(&firsts[0]).count(Slot::at(now));
        }
    }

    /// Returns true if one more retry is within the budget.
    #[must_use]
    pub fn permits(&self, now: Time) -> bool {
        let slot = Slot::at(now);
        self.terms.is_none_or(|terms| {
            let retries = self.ledger.retries.sum(slot);
            // The first tries of all workers are added up only if the floor is not enough.
            retries < terms.floor || retries < terms.retries_max(self.ledger.firsts(slot))
        })
    }

    /// Counts a retry. Returns false, and counts nothing, if the budget is used up.
    #[must_use]
    pub fn withdraw(&self, now: Time) -> bool {
        if self.terms.is_none() {
            return true;
        }
        if !self.permits(now) {
            return false;
        }
        let slot = Slot::at(now);
        self.ledger.retries.count_shared(slot);
        // Other workers may have used up the budget in the meantime.
        let usage = self.usage(now);
        let is_within = usage.is_none_or(|usage| usage.retries <= usage.retries_max);
        if !is_within {
            self.ledger.retries.remove_shared(slot);
        }
        is_within
    }

    /// Counts a retry that is permitted even if the budget is used up.
    pub fn overdraw(&self, now: Time) {
        if self.terms.is_some() {
            self.ledger.retries.count_shared(Slot::at(now));
        }
    }

    /// Returns the use of the budget, or `None` without a limit.
    #[must_use]
    pub fn usage(&self, now: Time) -> Option<BudgetUse> {
        let slot = Slot::at(now);
        let retries_max = self.terms?.retries_max(self.ledger.firsts(slot));
        Some(BudgetUse { retries: self.ledger.retries.sum(slot), retries_max })
    }
}

impl Terms {
    /// Without traffic one client can still try every server once.
    fn new(spec: RetryBudgetSpec, servers: usize) -> Self {
        let floor = u64::from(spec.min_per_second) * WINDOW.as_secs();
        let floor = if floor == 0 { 0 } else { floor.max(servers as u64) };
        Self { share_percent: spec.share_percent.into(), floor }
    }

    /// Returns the maximum number of retries in a window with this number of first tries.
    fn retries_max(self, firsts: u64) -> u64 {
        // The greater of the two, not their sum: under load the floor adds nothing. The retries are fewer than
        // the share, so that the sum of all tries stays below it, too.
        self.floor.max((firsts * self.share_percent).saturating_sub(1) / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(share_percent: u32, min_per_second: u32, servers: usize) -> RetryBudget {
        let spec = RetryBudgetSpec { share_percent, min_per_second };
        RetryBudget::new(Some(spec), servers, Arc::new(RetryLedger::new(2)))
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// Withdraws until the budget is used up, and returns the number of retries.
    fn drain(budget: &RetryBudget, now: Time) -> u64 {
        (0..).take_while(|_| budget.withdraw(now)).count() as u64
    }

    #[test]
    fn retries_are_a_share_of_the_requests_of_all_workers() {
        let budget = budget(20, 0, 3);
        assert_eq!(drain(&budget, at(0)), 0);
        (0..51).for_each(|number| budget.deposit(number % 2, at(0)));
        assert!(budget.permits(at(0)));
        assert_eq!(drain(&budget, at(0)), 10);
        assert!(!budget.permits(at(0)));
        assert_eq!(budget.usage(at(0)), Some(BudgetUse { retries: 10, retries_max: 10 }));
    }

    #[test]
    fn requests_and_retries_leave_the_window_after_ten_seconds() {
        let budget = budget(50, 0, 3);
        (0..11).for_each(|_| budget.deposit(0, at(2_499)));
        assert_eq!(drain(&budget, at(12_499)), 5);
        (0..11).for_each(|_| budget.deposit(0, at(12_499)));
        // The earlier requests have left the window; the retries have not.
        assert_eq!(drain(&budget, at(12_500)), 0);
        assert_eq!(drain(&budget, at(22_499)), 0);
        (0..2).for_each(|_| budget.deposit(0, at(22_499)));
        assert_eq!(drain(&budget, at(22_499)), 1);
        assert_eq!(drain(&budget, at(22_500)), 0);
        (0..10).for_each(|_| budget.deposit(0, at(30_000)));
        assert_eq!(drain(&budget, at(30_000)), 4);
    }

    #[test]
    fn the_floor_is_not_added_to_the_share() {
        let budget = budget(20, 1, 3);
        assert_eq!(drain(&budget, at(0)), 10);
        (0..50).for_each(|_| budget.deposit(0, at(0)));
        assert_eq!(drain(&budget, at(0)), 0);
        (0..51).for_each(|_| budget.deposit(0, at(0)));
        assert_eq!(drain(&budget, at(0)), 10);
    }

    #[test]
    fn one_client_can_try_every_server_of_a_large_pool() {
        assert_eq!(drain(&budget(20, 10, 600), at(0)), 600);
        assert_eq!(drain(&budget(20, 10, 5), at(0)), 100);
        assert_eq!(drain(&budget(20, 0, 600), at(0)), 0);
    }

    #[test]
    fn an_overdrawn_budget_permits_fewer_other_retries() {
        let budget = budget(20, 0, 3);
        (0..51).for_each(|_| budget.deposit(0, at(0)));
        (0..4).for_each(|_| budget.overdraw(at(0)));
        assert_eq!(drain(&budget, at(0)), 6);
        budget.overdraw(at(0));
        assert_eq!(budget.usage(at(0)), Some(BudgetUse { retries: 11, retries_max: 10 }));
    }

    #[test]
    fn a_budget_without_terms_permits_everything() {
        let budget = RetryBudget::new(None, 3, Arc::new(RetryLedger::new(1)));
        assert!((0..10_000).all(|_| budget.withdraw(at(0))));
        assert_eq!(budget.usage(at(0)), None);
    }

    #[test]
    fn a_new_configuration_keeps_the_counts() {
        let old = budget(20, 0, 3);
        (0..101).for_each(|_| old.deposit(0, at(0)));
        assert!(old.withdraw(at(0)));
        let spec = RetryBudgetSpec { share_percent: 10, min_per_second: 0 };
        let new = RetryBudget::new(Some(spec), 3, Arc::clone(&old.ledger));
        assert_eq!(new.usage(at(0)), Some(BudgetUse { retries: 1, retries_max: 10 }));
    }

    #[test]
    fn the_clock_of_another_worker_may_be_ahead() {
        let budget = budget(20, 0, 3);
        (0..51).for_each(|_| budget.deposit(1, at(2_500)));
        assert_eq!(drain(&budget, at(2_499)), 10);
        assert_eq!(drain(&budget, at(2_500)), 0);
    }
}
