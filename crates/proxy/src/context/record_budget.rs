//! Bound on the records of clients whose addresses may be forged, or whose traffic must not wait for locks.

use evener_core::Time;
use std::cell::Cell;
use std::time::Duration;

/// Number of look-ups of a worker in a second.
const LOOKUPS_PER_SECOND: u32 = 1000;
/// Number of new records of a worker in a second. More of them would evict the clients of a small table.
const INSERTS_PER_SECOND: u32 = 10;

/// The look-ups and new records that are left to a worker in the present second.
#[derive(Debug)]
pub(crate) struct RecordBudget {
    since: Cell<Time>,
    lookups: Cell<u32>,
    inserts: Cell<u32>,
}

impl Default for RecordBudget {
    fn default() -> Self {
        let (lookups, inserts) = (Cell::new(LOOKUPS_PER_SECOND), Cell::new(INSERTS_PER_SECOND));
        Self { since: Cell::new(Time::ZERO), lookups, inserts }
    }
}

impl RecordBudget {
    /// Takes the right to look for a record. Returns false if there were too many look-ups in this second.
    pub(crate) fn take_lookup(&self, now: Time) -> bool {
        if now.since(self.since.get()) >= Duration::from_secs(1) {
            self.since.set(now);
            self.lookups.set(LOOKUPS_PER_SECOND);
            self.inserts.set(INSERTS_PER_SECOND);
        }
        take(&self.lookups)
    }

    /// Takes the right to create a record after a look-up that found none. Returns false if there were too many
    /// new records in this second.
    pub(crate) fn take_insert(&self) -> bool {
        take(&self.inserts)
    }
}

fn take(left: &Cell<u32>) -> bool {
    let before = left.get();
    left.set(before.saturating_sub(1));
    before > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_a_bounded_number_of_lookups_and_new_records() {
        let budget = RecordBudget::default();
        for second in 1..=2 {
            let now = Time::ZERO + Duration::from_secs(second);
            let lookups = (0..5000).filter(|_| budget.take_lookup(now)).count();
            let inserts = (0..5000).filter(|_| budget.take_insert()).count();
            assert_eq!((lookups, inserts), (1000, 10), "second {second}");
        }
    }
}
