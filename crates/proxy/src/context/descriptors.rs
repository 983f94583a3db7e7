//! Descriptors of the process: how many clients, flows and what serves them may take, so that some are left for everything
//! else (the admin socket, checks, a reload) and each client that is accepted has one for its server.
//!
//! The limit is the process's, hence the one budget for all workers. Taking and giving back is an atomic each.

use evener_core::Time;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// When a client waits for descriptors, so many that nobody uses just now are to be closed.
pub(crate) const SHED_MAX: u32 = 8;
/// Workers are woken for that this often.
const WAKE_EVERY: Duration = Duration::from_millis(50);
/// Of so many that may be open, one is kept back.
const KEPT_BACK_PART: u64 = 16;
const KEPT_BACK_MIN: u64 = 8;
const KEPT_BACK_MAX: u64 = 64;
/// Checks under way at once take one of so many at most.
const CHECKS_PART: u64 = 8;
/// However few there are, one client can be served.
const ROOM_MIN: u64 = 2;

static BUDGET: Budget = Budget::new();

/// How the descriptors of the process are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How many may be open; `None` when there is no limit.
    pub limit: Option<u64>,
    /// How many of them are kept back.
    pub kept_back: u64,
    /// How many clients have, with what is promised to them.
    pub clients: u64,
    /// How many connections there can be, with two each.
    pub connections_max: u64,
}

/// The descriptors of the process, and who has them.
#[derive(Debug)]
struct Budget {
    limit: AtomicU64,
    kept_back: AtomicU64,
    /// Open, but not of clients: listeners, logs, what workers wait with.
    others: AtomicU64,
    /// Taken by clients, flows and what serves them, with what is promised.
    taken: AtomicU64,
    /// Promised, but not open yet.
    promised: AtomicU64,
    /// A listener waits for some.
    waiting: AtomicBool,
    /// So many that nobody uses are to be closed.
    wanted: AtomicU32,
    /// When workers were woken for that.
    woken_at: AtomicU64,
}

/// A descriptor, given back when dropped.
#[derive(Debug)]
pub(crate) struct Unit(());

/// A descriptor that a client will need for its server, given back when dropped.
#[derive(Debug)]
pub(crate) struct Promise(());

impl Drop for Unit {
    fn drop(&mut self) {
        BUDGET.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        BUDGET.promised.fetch_sub(1, Ordering::Relaxed);
        BUDGET.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Unit {
    /// One more, if there is one.
    pub(crate) fn take() -> Option<Self> {
        BUDGET.take(1).then(|| Self(()))
    }

    /// Two more, if there are as many.
    pub(crate) fn take_two() -> Option<[Self; 2]> {
        BUDGET.take(2).then(|| [Self(()), Self(())])
    }

    /// Two more for a client; when there are none, [`wants_wake`] tells whoever gives some back that a listener waits.
    pub(crate) fn take_two_or_wait() -> Option<[Self; 2]> {
        Self::take_two().or_else(|| {
            BUDGET.waiting.store(true, Ordering::Relaxed);
            // Either this sees what is given back now, or who gives it back sees the flag.
            fence(Ordering::SeqCst);
            Self::take_two()
        })
    }

    /// Two more for a client that is connected already and has to be taken in.
    pub(crate) fn take_two_beyond() -> [Self; 2] {
        BUDGET.taken.fetch_add(2, Ordering::Relaxed);
        [Self(()), Self(())]
    }

    /// One more, whether there is one or not: what is kept back has to do.
    pub(crate) fn take_beyond() -> Self {
        BUDGET.taken.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// It is not open yet.
    pub(crate) fn promise(self) -> Promise {
        std::mem::forget(self);
        BUDGET.promised.fetch_add(1, Ordering::Relaxed);
        Promise(())
    }
}

impl Promise {
    /// It is open from now on.
    pub(crate) fn fulfil(self) -> Unit {
        std::mem::forget(self);
        BUDGET.promised.fetch_sub(1, Ordering::Relaxed);
        Unit(())
    }
}

/// Whether a listener waits for descriptors, now that some were given back. True for one caller; the caller has seen to
/// the order of memory.
pub(crate) fn wants_wake() -> bool {
    BUDGET.waiting.load(Ordering::Relaxed) && BUDGET.waiting.swap(false, Ordering::Relaxed)
}

/// Clients wait: connections that nobody uses are to be closed. True when workers have to be woken for that: they are not,
/// again and again, by each other.
pub(crate) fn want_some(now: Time) -> bool {
    BUDGET.wanted.store(SHED_MAX, Ordering::Relaxed);
    let last = BUDGET.woken_at.load(Ordering::Relaxed);
    let due = last == 0 || now.since(Time::from_nanos(last)) >= WAKE_EVERY;
    let claim = || {
        let now = now.as_nanos().max(1);
        BUDGET.woken_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
    };
    due && claim().is_ok()
}

/// How many are to be closed; 0 once there is room again.
pub(crate) fn wanted() -> u32 {
    let wanted = BUDGET.wanted.load(Ordering::Relaxed);
    if wanted > 0 && BUDGET.taken.load(Ordering::Relaxed) + 2 <= BUDGET.room() {
        BUDGET.wanted.store(0, Ordering::Relaxed);
        return 0;
    }
    wanted
}

/// So many were closed.
pub(crate) fn shed(count: u32) {
    let rest = |wanted: u32| Some(wanted.saturating_sub(count));
    let _ = BUDGET.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
}

/// How many connections there can be as descriptors go.
pub(crate) fn connections_max() -> u32 {
    u32::try_from(BUDGET.room() / 2).unwrap_or(u32::MAX)
}

/// Sets how many descriptors may be open (`None` is no limit), and how many servers are checked. Returns how many checks
/// may be under way at once.
pub fn set_limit(limit: Option<u64>, checked: u64) -> u64 {
    let limit = limit.unwrap_or(u64::MAX);
    let checks = checked.min(limit / CHECKS_PART).max(1);
    BUDGET.limit.store(limit, Ordering::Relaxed);
    BUDGET.kept_back.store(kept_back(limit) + checks, Ordering::Relaxed);
    checks
}

fn kept_back(limit: u64) -> u64 {
    (limit / KEPT_BACK_PART).clamp(KEPT_BACK_MIN, KEPT_BACK_MAX)
}

/// Takes in how many descriptors are open in the whole process.
pub fn measured(open: u64) {
    let promised = BUDGET.promised.load(Ordering::Relaxed);
    let of_clients = BUDGET.taken.load(Ordering::Relaxed).saturating_sub(promised);
    BUDGET.others.store(open.saturating_sub(of_clients), Ordering::Relaxed);
}

/// Takes in how many descriptors are open beside those of clients, where that can only be guessed.
pub fn estimated(others: u64) {
    BUDGET.others.store(others, Ordering::Relaxed);
}

/// How descriptors are used now.
#[must_use]
pub fn usage() -> Usage {
    let limit = BUDGET.limit.load(Ordering::Relaxed);
    Usage {
        limit: (limit < u64::MAX).then_some(limit),
        kept_back: BUDGET.kept_back.load(Ordering::Relaxed),
        clients: BUDGET.taken.load(Ordering::Relaxed),
        connections_max: BUDGET.room() / 2,
    }
}

impl Budget {
    const fn new() -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            kept_back: AtomicU64::new(0),
            others: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            woken_at: AtomicU64::new(0),
        }
    }

    /// How many there are for clients.
    fn room(&self) -> u64 {
        let [limit, kept_back, others] =
            [&self.limit, &self.kept_back, &self.others].map(|part| part.load(Ordering::Relaxed));
        limit.saturating_sub(kept_back).saturating_sub(others).max(ROOM_MIN)
    }

    fn take(&self, count: u64) -> bool {
        let room = self.room();
        let below = |taken: u64| (taken + count <= room).then_some(taken + count);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_neither_kept_back_nor_in_use_otherwise() {
        let check = |limit: u64, others: u64, expected: u64| {
            let budget = Budget::new();
            budget.limit.store(limit, Ordering::Relaxed);
            budget.kept_back.store(kept_back(limit), Ordering::Relaxed);
            budget.others.store(others, Ordering::Relaxed);
            let mut taken = 0;
            while taken < 5000 && budget.take(2) {
                taken += 2;
            }
            assert_eq!((taken, budget.room().min(5000) / 2 * 2), (expected, expected), "{limit} {others}");
        };
        check(1024, 24, 936);
        check(1024, 25, 934);
        check(100, 30, 62);
        check(40, 20, 12);
        // Less than is kept back: one client at a time.
        check(10, 20, 2);
        check(u64::MAX, 20, 5000);
    }
}
