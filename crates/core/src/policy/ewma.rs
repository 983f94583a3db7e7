//! Peak EWMA: the latency of a server as an exponentially weighted moving average that rises immediately to
//! a peak and decays slowly (as in Finagle and linkerd), times the present load.

use super::{Contender, WEIGHT_UNIT};
use crate::time::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Assumed latency of an unmeasured server, and minimum latency of a measured server: small, so that an
/// unmeasured server is tried soon.
const UNKNOWN_NANOS: f64 = 1_000.0;

/// The moving average of one server. All workers update it; an update that is lost to a concurrent one does
/// no harm.
#[derive(Debug, Default)]
pub struct Latency {
    average_nanos: AtomicU64,
    seen_at: AtomicU64,
}

impl Latency {
    /// Creates an average that was measured last at `seen_at`.
    pub(crate) fn of(average_nanos: f64, seen_at: Time) -> Self {
        Self { average_nanos: average_nanos.to_bits().into(), seen_at: seen_at.as_nanos().into() }
    }

    /// Returns the average in nanoseconds at the last measurement, and its time; `None` without a measurement.
    pub(crate) fn parts(&self) -> Option<(f64, Time)> {
        let bits = self.average_nanos.load(Ordering::Relaxed);
        let seen_at = Time::from_nanos(self.seen_at.load(Ordering::Relaxed));
        (bits != 0).then(|| (f64::from_bits(bits), seen_at))
    }

    /// Records the duration of a connection attempt or of a response.
    pub fn observe(&self, took: Duration, now: Time, decay: Duration) {
        let sample = took.as_nanos() as f64;
        let average = self.at(now, decay).map_or(sample, |average| {
            if sample >= average {
                sample
            } else {
                let keep = self.keep(now, decay);
                f64::from_bits(self.average_nanos.load(Ordering::Relaxed)) * keep + sample * (1.0 - keep)
            }
        });
        self.average_nanos.store(average.to_bits(), Ordering::Relaxed);
        self.seen_at.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Returns the average in nanoseconds, decayed to `now`, or `None` without a measurement.
    #[must_use]
    pub fn at(&self, now: Time, decay: Duration) -> Option<f64> {
        let bits = self.average_nanos.load(Ordering::Relaxed);
        (bits != 0).then(|| f64::from_bits(bits) * self.keep(now, decay))
    }

    fn keep(&self, now: Time, decay: Duration) -> f64 {
        let age = now.since(Time::from_nanos(self.seen_at.load(Ordering::Relaxed)));
        (-age.as_secs_f64() / decay.as_secs_f64().max(1e-3)).exp()
    }
}

/// Returns the cost of one more connection at a contender.
pub(super) fn cost(contender: &impl Contender, now: Time, decay: Duration) -> f64 {
    let latency = contender.latency().at(now, decay).unwrap_or(0.0).max(UNKNOWN_NANOS);
    latency * f64::from(contender.active() + 1) * f64::from(WEIGHT_UNIT) / f64::from(contender.share())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_counts_immediately_and_decays() {
        let (latency, decay) = (Latency::default(), Duration::from_secs(10));
        let at = |secs| Time::ZERO + Duration::from_secs(secs);
        let millis = |secs| latency.at(at(secs), decay).map(|nanos| (nanos / 1e6).round());
        assert_eq!(millis(0), None);
        latency.observe(Duration::from_millis(10), at(1), decay);
        latency.observe(Duration::from_millis(500), at(1), decay);
        assert_eq!(millis(1), Some(500.0));
        assert_eq!(millis(11), Some(184.0));
        latency.observe(Duration::from_millis(10), at(11), decay);
        assert_eq!(millis(11), Some(190.0), "the older the average is, the more a lower sample counts");
    }
}
