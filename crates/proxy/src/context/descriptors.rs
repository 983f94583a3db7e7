//! Descriptors of the process: the number that clients, flows and their servers may use. Some are reserved for
//! other purposes (the admin socket, checks, a reload), and each accepted client takes one for the connection
//! to its server as well.
//!
//! The limit applies to the process, so there is one budget for all workers. Taking or releasing a descriptor
//! costs one atomic operation.

use evener_core::Time;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// Maximum number of descriptors that are set to be closed, one by one.
const INHERITED_MAX: libc::c_long = 1 << 20;

/// Number of unused connections that are closed when a client waits for descriptors.
pub(crate) const SHED_MAX: u32 = 8;
/// Minimum time between two wake-ups of workers to close unused connections.
const WAKE_EVERY: Duration = Duration::from_millis(50);
/// One in this many descriptors is reserved.
const RESERVED_PART: u64 = 16;
const RESERVED_MIN: u64 = 8;
const RESERVED_MAX: u64 = 64;
/// Concurrent checks use at most one in this many descriptors.
const CHECKS_PART: u64 = 8;
/// Minimum budget: enough for one client, even if too few descriptors are left.
const ROOM_MIN: u64 = 2;

static BUDGET: Budget = Budget::new();

/// The use of the descriptors of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The limit; `None` when there is none.
    pub limit: Option<u64>,
    /// Number of reserved descriptors.
    pub reserved: u64,
    /// Number of open descriptors without clients: listeners, logs, event loops.
    pub others: u64,
    /// Number of descriptors of clients, including promised ones.
    pub clients: u64,
    /// Maximum number of connections, at two descriptors each.
    pub connections_max: u64,
}

/// The descriptors of the process, by their use.
#[derive(Debug)]
struct Budget {
    limit: AtomicU64,
    reserved: AtomicU64,
    /// Open descriptors without clients: listeners, logs, event loops.
    others: AtomicU64,
    /// Descriptors of clients, flows and their servers, including promised ones.
    taken: AtomicU64,
    /// Promised descriptors that are not open yet.
    promised: AtomicU64,
    /// A listener waits for descriptors.
    waiting: AtomicBool,
    /// Number of unused connections to close.
    wanted: AtomicU32,
    /// Time of the last wake-up of workers to close unused connections.
    woken_at: AtomicU64,
}

/// A descriptor of the budget, released on drop.
#[derive(Debug)]
pub(crate) struct Unit(());

/// A descriptor that a client will need for its server, released on drop.
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
    /// Takes a descriptor, if one is left.
    pub(crate) fn take() -> Option<Self> {
        BUDGET.take(1).then(|| Self(()))
    }

    /// Takes two descriptors, if two are left.
    pub(crate) fn take_two() -> Option<[Self; 2]> {
        BUDGET.take(2).then(|| [Self(()), Self(())])
    }

    /// Takes two descriptors for a client. Returns `None` if too few are left; then [`wants_wake`] returns true
    /// once after the next release.
    pub(crate) fn take_two_or_wait() -> Option<[Self; 2]> {
        Self::take_two().or_else(|| {
            BUDGET.waiting.store(true, Ordering::Relaxed);
            // Either this thread sees the release, or the releasing thread sees the flag.
            fence(Ordering::SeqCst);
            Self::take_two()
        })
    }

    /// Takes two descriptors for a client that is connected already, beyond the budget if necessary.
    pub(crate) fn take_two_beyond() -> [Self; 2] {
        BUDGET.taken.fetch_add(2, Ordering::Relaxed);
        [Self(()), Self(())]
    }

    /// Takes a descriptor, beyond the budget if necessary: some descriptors are reserved for such cases.
    pub(crate) fn take_beyond() -> Self {
        BUDGET.taken.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Marks the descriptor as not open yet.
    pub(crate) fn promise(self) -> Promise {
        std::mem::forget(self);
        BUDGET.promised.fetch_add(1, Ordering::Relaxed);
        Promise(())
    }
}

impl Promise {
    /// Marks the descriptor as open.
    pub(crate) fn fulfil(self) -> Unit {
        std::mem::forget(self);
        BUDGET.promised.fetch_sub(1, Ordering::Relaxed);
        Unit(())
    }
}

/// Returns true if a listener waits for descriptors and has to be woken. The caller has released descriptors
/// and then issued a memory fence. Only one of several concurrent callers gets true.
pub(crate) fn wants_wake() -> bool {
    BUDGET.waiting.load(Ordering::Relaxed) && BUDGET.waiting.swap(false, Ordering::Relaxed)
}

/// Requests that unused connections are closed, because clients wait. Returns true if the caller has to wake
/// the workers for this purpose, at most once in [`WAKE_EVERY`].
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

/// Returns the number of connections to close; 0 once enough descriptors are free.
pub(crate) fn wanted() -> u32 {
    let wanted = BUDGET.wanted.load(Ordering::Relaxed);
    if wanted > 0 && BUDGET.taken.load(Ordering::Relaxed) + 2 <= BUDGET.room() {
        BUDGET.wanted.store(0, Ordering::Relaxed);
        return 0;
    }
    wanted
}

/// Notes the number of connections that were closed.
pub(crate) fn shed(count: u32) {
    let rest = |wanted: u32| Some(wanted.saturating_sub(count));
    let _ = BUDGET.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
}

/// Returns the maximum number of connections that descriptors allow.
pub(crate) fn connections_max() -> u32 {
    u32::try_from(BUDGET.room() / 2).unwrap_or(u32::MAX)
}

/// Sets the limit of descriptors (`None` is no limit) and the number of checked servers. Returns the maximum
/// number of concurrent checks.
pub fn set_limit(limit: Option<u64>, checked: u64) -> u64 {
    let limit = limit.unwrap_or(u64::MAX);
    let checks = checked.min(limit / CHECKS_PART).max(1);
    BUDGET.limit.store(limit, Ordering::Relaxed);
    BUDGET.reserved.store(reserve_of(limit) + checks, Ordering::Relaxed);
    checks
}

fn reserve_of(limit: u64) -> u64 {
    (limit / RESERVED_PART).clamp(RESERVED_MIN, RESERVED_MAX)
}

/// Updates the number of descriptors without clients, from the number of `open` descriptors of the whole
/// process.
pub fn measured(open: u64) {
    let promised = BUDGET.promised.load(Ordering::Relaxed);
    let of_clients = BUDGET.taken.load(Ordering::Relaxed).saturating_sub(promised);
    BUDGET.others.store(open.saturating_sub(of_clients), Ordering::Relaxed);
}

/// Updates the number of descriptors without clients with an estimate, where open descriptors cannot be
/// counted.
pub fn estimated(others: u64) {
    BUDGET.others.store(others, Ordering::Relaxed);
}

/// The present use of descriptors.
#[must_use]
pub fn usage() -> Usage {
    let limit = BUDGET.limit.load(Ordering::Relaxed);
    Usage {
        limit: (limit < u64::MAX).then_some(limit),
        reserved: BUDGET.reserved.load(Ordering::Relaxed),
        others: BUDGET.others.load(Ordering::Relaxed),
        clients: BUDGET.taken.load(Ordering::Relaxed),
        connections_max: BUDGET.room() / 2,
    }
}

impl Budget {
    const fn new() -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            others: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            woken_at: AtomicU64::new(0),
        }
    }

    /// Number of descriptors for clients.
    fn room(&self) -> u64 {
        let [limit, reserved, others] =
            [&self.limit, &self.reserved, &self.others].map(|part| part.load(Ordering::Relaxed));
        limit.saturating_sub(reserved).saturating_sub(others).max(ROOM_MIN)
    }

    fn take(&self, count: u64) -> bool {
        let room = self.room();
        let below = |taken: u64| (taken + count <= room).then_some(taken + count);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok()
    }
}

/// Makes a program inherit no descriptors except standard input, output and error, also none that this process
/// inherited from the process that started it.
pub fn inherit_none(command: &mut std::process::Command) {
    // SAFETY: between fork and exec, the function makes only system calls, which are async-signal-safe, and does not
    // allocate.
    unsafe {
        command.pre_exec(|| {
            let first: libc::c_uint = 3;
            let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) == 0 {
                return Ok(());
            }
            // Linux before 5.11 does not have the call or the flag.
            let last = libc::sysconf(libc::_SC_OPEN_MAX).clamp(0, INHERITED_MAX) as libc::c_int;
            for descriptor in 3..last {
                libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_the_descriptors_that_are_neither_reserved_nor_otherwise_in_use() {
        let check = |limit: u64, others: u64, expected: u64| {
            let budget = Budget::new();
            budget.limit.store(limit, Ordering::Relaxed);
            budget.reserved.store(reserve_of(limit), Ordering::Relaxed);
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
        // If the limit leaves no descriptor for clients, one client at a time is served nevertheless.
        check(10, 20, 2);
        check(u64::MAX, 20, 5000);
    }

    #[test]
    fn a_sixteenth_is_reserved_within_bounds() {
        let check = |limit: u64, expected: u64| assert_eq!(reserve_of(limit), expected, "{limit}");
        check(0, 8);
        check(128, 8);
        check(320, 20);
        check(1024, 64);
        check(u64::MAX, 64);
    }

    #[test]
    fn descriptors_are_taken_together_or_not_at_all() {
        let budget = Budget::new();
        budget.limit.store(5, Ordering::Relaxed);
        assert_eq!(
            [budget.take(2), budget.take(2), budget.take(2), budget.take(1), budget.take(1)],
            [true, true, false, true, false]
        );
        assert_eq!(budget.taken.load(Ordering::Relaxed), 5);
    }
}
