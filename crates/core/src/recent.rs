//! Figures of the last seconds: the growth of counters since an earlier sample of them. Samples are taken from
//! time to time by the control thread, so that the path of packets counts nothing twice.

use crate::counters::{CounterSet, Declaration, Sharded, Total};
use crate::time::Time;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// Interval of the samples of a counter set. Recent figures cover between one and two intervals.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// The numbers of a counter set at one time. Equal samples share the memory of their numbers.
#[derive(Clone, Debug)]
struct Sample {
    at: Time,
    /// The numbers, in the order of the declarations; empty means that all numbers are 0.
    numbers: Arc<[u64]>,
}

/// The last two samples of a counter set.
///
/// ```
/// use evener_core::Time;
/// use evener_core::counters::{ServerCounters, Sharded};
/// use evener_core::recent::{Recent, SAMPLE_EVERY};
///
/// let counters = Sharded::<ServerCounters>::new(1);
/// let mut recent = Recent::new(Time::ZERO);
/// counters.of(0).requests.add(5);
/// recent.sample(Time::ZERO + SAMPLE_EVERY, &counters);
/// recent.sample(Time::ZERO + 2 * SAMPLE_EVERY, &counters);
/// counters.of(0).requests.add(2);
/// let growth = recent.growth(Time::ZERO + 2 * SAMPLE_EVERY, &counters);
/// assert_eq!((growth.span(), growth.count("requests")), (SAMPLE_EVERY, 2));
/// ```
pub struct Recent<C> {
    older: Sample,
    newer: Sample,
    counters: PhantomData<fn(&C)>,
}

impl<C> Clone for Recent<C> {
    fn clone(&self) -> Self {
        Self { older: self.older.clone(), newer: self.newer.clone(), counters: PhantomData }
    }
}

impl<C> fmt::Debug for Recent<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Recent").field("older", &self.older).field("newer", &self.newer).finish()
    }
}

impl<C: CounterSet> Recent<C> {
    /// Creates the samples of counters that are 0 at `now`.
    #[must_use]
    pub fn new(now: Time) -> Self {
        let zero = Sample { at: now, numbers: Arc::default() };
        Self { older: zero.clone(), newer: zero, counters: PhantomData }
    }

    /// Takes a sample, which replaces the older of the two samples.
    pub fn sample(&mut self, now: Time, counters: &Sharded<C>) {
        let numbers = counters.sums();
        let numbers =
            if *numbers == *self.newer.numbers { Arc::clone(&self.newer.numbers) } else { numbers.into() };
        self.older = std::mem::replace(&mut self.newer, Sample { at: now, numbers });
    }

    /// Returns the growth of the counters since the older sample.
    #[must_use]
    pub fn growth(&self, now: Time, counters: &Sharded<C>) -> Growth<C> {
        let mut numbers = counters.sums();
        for (number, before) in numbers.iter_mut().zip(&*self.older.numbers) {
            *number = number.saturating_sub(*before);
        }
        Growth { span: now.since(self.older.at), numbers, counters: PhantomData }
    }
}

/// Growth of the counters of a set during a span of time.
pub struct Growth<C> {
    span: Duration,
    numbers: Vec<u64>,
    counters: PhantomData<fn(&C)>,
}

impl<C: CounterSet> Growth<C> {
    /// Returns the span of time.
    #[must_use]
    pub const fn span(&self) -> Duration {
        self.span
    }

    /// Returns true if nothing was counted.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.numbers.iter().all(|number| *number == 0)
    }

    /// Returns each declaration with the growth of its metric.
    pub fn totals(&self) -> impl Iterator<Item = (&'static Declaration, Total)> {
        Declaration::totals(C::DECLARED, &self.numbers)
    }

    /// Returns the growth of a counter without a label, or 0 if there is no such counter.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        let found = self.totals().find(|(declaration, _)| declaration.name == name);
        if let Some((_, Total::Count(count))) = found { count } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::ServerCounters;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn growth_covers_one_to_two_intervals() {
        let counters = Sharded::<ServerCounters>::new(2);
        let mut recent = Recent::new(at(5));
        let check = |recent: &Recent<ServerCounters>, now: u64, expected: (u64, u64)| {
            let growth = recent.growth(at(now), &counters);
            assert_eq!((growth.span().as_secs(), growth.count("requests")), expected, "at {now} s");
        };
        counters.of(1).requests.add(3);
        check(&recent, 6, (1, 3));
        recent.sample(at(10), &counters);
        check(&recent, 12, (7, 3));
        counters.of(0).requests.add(4);
        recent.sample(at(20), &counters);
        check(&recent, 21, (11, 4));
        recent.sample(at(30), &counters);
        check(&recent, 30, (10, 0));
        counters.of(0).requests.one();
        check(&recent, 39, (19, 1));
    }

    #[test]
    fn samples_of_an_idle_server_share_their_memory() {
        let counters = Sharded::<ServerCounters>::new(1);
        let mut recent = Recent::new(at(0));
        counters.of(0).requests.one();
        recent.sample(at(10), &counters);
        recent.sample(at(20), &counters);
        assert!(Arc::ptr_eq(&recent.older.numbers, &recent.newer.numbers));
    }

    #[test]
    fn the_growth_of_a_histogram_has_only_recent_values() {
        let counters = Sharded::<ServerCounters>::new(1);
        let mut recent = Recent::new(at(0));
        counters.of(0).response_seconds.record_time(Duration::from_secs(3));
        recent.sample(at(10), &counters);
        recent.sample(at(20), &counters);
        counters.of(0).response_seconds.record_time(Duration::from_millis(2));
        let growth = recent.growth(at(25), &counters);
        let found = growth.totals().find(|(declaration, _)| declaration.name == "response_seconds");
        let Some((_, Total::Histogram(times))) = found else { panic!("expected a histogram") };
        assert_eq!((times.count(), times.sum()), (1, 0.002));
    }
}
