//! Histograms of times and sizes that are cheap enough to record on the packet path: one writer, integers only.
//!
//! All histograms have the same bounds, one for each leading digit of the value in base 4: 64, 128, 192, 256, 512,
//! 768, 1024, ... up to 2^26. Times are recorded in microseconds (64 us to 67 s), sizes in bytes (64 bytes to
//! 64 MiB). So a value is known within a factor of 2 or less.

use crate::Time;
use crate::counters::{Counter, Numbers, Unit};
use std::time::Duration;

/// Number of buckets: one up to the first bound, three for each further digit in base 4, and one above the last
/// bound.
pub const BUCKETS: usize = 32;
/// Bits of the first bound.
const FIRST_BITS: u32 = 6;

/// The values recorded by one shard. Only the worker of the shard records; any thread reads.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

impl Histogram {
    /// Records a size in bytes.
    pub fn record_bytes(&self, bytes: u64) {
        self.record(bytes);
    }

    /// Records a time.
    pub fn record_time(&self, time: Duration) {
        self.record_since(Time::ZERO, Time::since_origin(time));
    }

    /// Records the time from `begun` to `now`.
    pub fn record_since(&self, begun: Time, now: Time) {
        // A `Duration` in between would take two more divisions.
        self.record(now.as_nanos().saturating_sub(begun.as_nanos()) / 1000);
    }

    fn record(&self, value: u64) {
        self.buckets[bucket(value)].one();
        self.sum.add(value);
    }
}

impl Numbers for Histogram {
    fn append_to(&self, values: &mut Vec<u64>) {
        values.extend(self.buckets.iter().map(Counter::read));
        values.push(self.sum.read());
    }
}

/// Returns the bucket of a value: the first whose bound is not below the value.
fn bucket(value: u64) -> usize {
    // A bound belongs to the bucket below it.
    let multiple = value.saturating_sub(1) >> FIRST_BITS;
    // The first digit of `multiple` in base 4, and the number of digits after it.
    let digits = (multiple | 1).ilog2() / 2;
    let first = multiple >> (2 * digits);
    (3 * digits as usize + first as usize).min(BUCKETS - 1)
}

/// Returns the upper bound of a bucket, which belongs to the bucket. Returns `None` for the last bucket.
const fn bound(bucket: usize) -> Option<u64> {
    if bucket == BUCKETS - 1 {
        return None;
    }
    if bucket == 0 {
        return Some(1 << FIRST_BITS);
    }
    let digits = (bucket - 1) / 3;
    let above = (bucket - 1) % 3 + 2;
    Some((above as u64) << (FIRST_BITS as usize + 2 * digits))
}

/// Returns the bounds of a bucket, as recorded. The last bucket is taken as empty.
fn bounds(at: usize) -> (f64, f64) {
    let lower = at.checked_sub(1).and_then(bound).unwrap_or(0);
    (lower as f64, bound(at).unwrap_or(lower) as f64)
}

/// The values recorded by all shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    unit: Unit,
    /// Number of values in each of the [`BUCKETS`].
    buckets: Vec<u64>,
    sum: u64,
}

impl Distribution {
    /// Makes a distribution from the numbers of a [`Histogram`]: its buckets and the sum.
    pub(crate) fn new(unit: Unit, numbers: &[u64]) -> Self {
        Self { unit, buckets: numbers[..BUCKETS].to_vec(), sum: numbers[BUCKETS] }
    }

    /// Returns the number of recorded values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of the recorded values, in the unit of the histogram.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.scaled(self.sum)
    }

    /// Returns the upper bound of each bucket, in the unit of the histogram, with the number of values above the
    /// bound before it and up to this one. The last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bound = |at| bound(at).map_or(f64::INFINITY, |bound| self.scaled(bound));
        self.buckets.iter().enumerate().map(move |(at, count)| (bound(at), *count))
    }

    /// Returns the mean of the recorded values, in the unit of the histogram; `None` without values.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum() / count as f64)
    }

    /// Returns an estimate of the value that `percent` percent of the recorded values do not exceed, in the unit
    /// of the histogram; `None` without values. The estimate lies in the same bucket as the value. A value above
    /// the last bound is estimated as that bound.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<f64> {
        let rank = (self.count() * u64::from(percent)).div_ceil(100).max(1);
        let mut below = 0;
        for (at, in_bucket) in self.buckets.iter().enumerate() {
            if below + in_bucket < rank || *in_bucket == 0 {
                below += in_bucket;
                continue;
            }
            let share = ((rank - below) as f64 - 0.5) / *in_bucket as f64;
            let (lower, upper) = self.range(at);
            return Some(self.scaled(1) * (lower + (upper - lower) * share));
        }
        None
    }

    /// Returns the range over which the values of a bucket are taken as spread evenly. The range of the highest
    /// bucket with values is narrowed, so that its mean agrees with the sum of all values.
    fn range(&self, at: usize) -> (f64, f64) {
        let (lower, upper) = bounds(at);
        if self.buckets[at + 1..].iter().any(|count| *count > 0) {
            return (lower, upper);
        }
        let middle = |at| f64::midpoint(bounds(at).0, bounds(at).1);
        let of_others: f64 =
            self.buckets[..at].iter().enumerate().map(|(at, count)| middle(at) * *count as f64).sum();
        let mean = ((self.sum as f64 - of_others) / self.buckets[at] as f64).clamp(lower, upper);
        (lower.max(2.0 * mean - upper), upper.min(2.0 * mean - lower))
    }

    fn scaled(&self, value: u64) -> f64 {
        if self.unit == Unit::Seconds { value as f64 / 1e6 } else { value as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        let bounds: Vec<u64> = (0..BUCKETS).map_while(bound).collect();
        assert_eq!(bounds[..8], [64, 128, 192, 256, 512, 768, 1024, 2048]);
        assert_eq!((bounds.len(), bounds[BUCKETS - 2]), (BUCKETS - 1, 1 << 26));
        let near = bounds.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
        for value in near.chain(0..2000).chain([u64::MAX - 1, u64::MAX]) {
            let expected = bounds.iter().position(|bound| value <= *bound).unwrap_or(BUCKETS - 1);
            assert_eq!(bucket(value), expected, "the bucket of {value}");
        }
    }

    #[test]
    fn a_distribution_has_the_count_and_the_sum_of_the_recorded_values() {
        let histogram = Histogram::default();
        for micros in [10, 64, 65, 100_000_000] {
            histogram.record_time(Duration::from_micros(micros));
        }
        let mut numbers = Vec::new();
        histogram.append_to(&mut numbers);
        let distribution = Distribution::new(Unit::Seconds, &numbers);
        assert_eq!((distribution.count(), distribution.sum()), (4, 100.000139));
        let filled: Vec<_> = distribution.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000064, 2), (0.000128, 1), (f64::INFINITY, 1)]);
    }

    #[test]
    fn a_percentile_is_estimated_within_the_bucket_of_its_value() {
        let check = |micros: &[u64], percent, expected: Option<u64>| {
            let histogram = Histogram::default();
            micros.iter().for_each(|micros| histogram.record_time(Duration::from_micros(*micros)));
            let mut numbers = Vec::new();
            histogram.append_to(&mut numbers);
            let distribution = Distribution::new(Unit::Seconds, &numbers);
            let micros_of = |seconds: f64| (seconds * 1e6).round() as u64;
            assert_eq!(
                distribution.percentile(percent).map(micros_of),
                expected,
                "{percent} % of {micros:?}"
            );
        };
        check(&[], 50, None);
        // The mean is known, so values in one bucket are estimated well.
        check(&[200], 50, Some(200));
        check(&[300_000; 20], 50, Some(298_107));
        check(&[300_000; 20], 95, Some(332_178));
        check(&[10, 10, 10, 1000], 50, Some(32));
        check(&[10, 10, 10, 1000], 95, Some(934));
        // The values of lower buckets are taken as spread evenly.
        check(&[100, 100, 100, 1000], 50, Some(96));
        check(&[100_000_000], 99, Some(67_108_864));
    }
}
