//! The pace of a body: detects a peer that sends or receives it below a minimum rate over a sliding window.
//! Only time in which bytes were due counts. The callers decide when to measure and how to react.

use crate::time::Time;
use std::time::Duration;

/// Number of steps in which the window slides.
const SLOTS: usize = 6;

/// The minimum rate of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes a second, on average over the window.
    pub bytes_per_second: u32,
    /// Length of the window.
    pub window: Duration,
}

impl MinRate {
    /// The default rate of Kestrel and IIS, over a minute.
    pub const DEFAULT: Self = Self { bytes_per_second: 240, window: Duration::from_secs(60) };
    /// The shortest window.
    pub const WINDOW_MIN: Duration = Duration::from_secs(1);
    /// The longest window.
    pub const WINDOW_MAX: Duration = Duration::from_secs(3600);
    /// The highest rate.
    pub const BYTES_PER_SECOND_MAX: u32 = 1_000_000_000;

    /// Returns the interval at which a pace has to be measured.
    #[must_use]
    pub fn step(&self) -> Duration {
        self.window / SLOTS as u32
    }

    /// Returns true if `bytes` are too few for `time`.
    fn is_missed_by(&self, bytes: u64, time: Duration) -> bool {
        u128::from(bytes) * 1000 < u128::from(self.bytes_per_second) * time.as_millis()
    }
}

/// Progress of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that moved since the beginning of the body.
    pub moved: u64,
    /// Value of [`Progress::moved`] once all bytes that wait for the peer have moved; `None` when no bytes
    /// wait.
    pub due: Option<u64>,
}

/// One step of the window: the time that counts, and the bytes that moved in it.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    time_ms: u32,
    bytes: u32,
}

/// The pace of one body.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    measured: Option<(Time, Progress)>,
    slots: [Slot; SLOTS],
    at: u8,
}

impl Pace {
    /// Takes a measurement. Returns true if the peer was slower than `rate` on average over a whole window.
    ///
    /// The time since the previous measurement counts if bytes were due at both measurements, and the bytes
    /// that were due at the previous one have not all moved since. Otherwise the peer has caught up, and its
    /// earlier delays are forgotten.
    pub fn is_slow(&mut self, now: Time, progress: Progress, rate: &MinRate) -> bool {
        let Some((at, before)) = self.measured.replace((now, progress)) else { return false };
        let caught_up = before.due.is_none_or(|due| progress.moved >= due);
        if caught_up || progress.due.is_none() {
            (self.slots, self.at) = ([Slot::default(); SLOTS], 0);
            return false;
        }
        self.count(now.since(at), progress.moved.saturating_sub(before.moved), rate);
        let time: u64 = self.slots.iter().map(|slot| u64::from(slot.time_ms)).sum();
        let bytes: u64 = self.slots.iter().map(|slot| u64::from(slot.bytes)).sum();
        let time = Duration::from_millis(time);
        time >= rate.window && rate.is_missed_by(bytes, time)
    }

    fn count(&mut self, time: Duration, bytes: u64, rate: &MinRate) {
        let saturated = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        if Duration::from_millis(self.slots[usize::from(self.at)].time_ms.into()) >= rate.step() {
            self.at = (self.at + 1) % SLOTS as u8;
            self.slots[usize::from(self.at)] = Slot::default();
        }
        let slot = &mut self.slots[usize::from(self.at)];
        let time = saturated(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        slot.time_ms = slot.time_ms.saturating_add(time);
        slot.bytes = slot.bytes.saturating_add(saturated(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const RATE: MinRate = MinRate::DEFAULT;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    /// Measures every `step` seconds. Returns the time at which the peer is detected as slow, if
    /// that happens within ten minutes.
    fn slow_at(step: u64, progress: impl Fn(u64) -> Progress) -> Option<u64> {
        let mut pace = Pace::default();
        (0..=600).step_by(step as usize).find(|&now| pace.is_slow(at(now), progress(now), &RATE))
    }

    fn due(moved: u64) -> Progress {
        Progress { moved, due: Some(u64::MAX) }
    }

    #[test]
    fn a_peer_below_the_rate_is_slow_after_the_window_and_not_before() {
        for step in [1, 5, 10] {
            assert_eq!(slow_at(step, |_| due(0)), Some(60), "{step}");
            assert_eq!(slow_at(step, due), Some(60), "a byte a second, {step}");
            assert_eq!(slow_at(step, |now| due(now * 239)), Some(60), "{step}");
            assert_eq!(slow_at(step, |now| due(now * 240)), None, "{step}");
        }
        // Late measurements give the same result.
        assert_eq!(slow_at(50, due), Some(100));
    }

    #[test]
    fn a_peer_that_becomes_slow_is_detected_although_it_was_fast() {
        let found = slow_at(10, |now| due(now.min(300) * 300 + now.saturating_sub(300)));
        assert!(found.is_some_and(|at| (310..=370).contains(&at)), "{found:?}");
    }

    #[test]
    fn the_average_rate_of_bursts_counts() {
        assert_eq!(slow_at(10, |now| due(now / 30 * 7200)), None);
        assert_eq!(slow_at(10, |now| due(now / 30 * 7000)), Some(60));
    }

    #[test]
    fn time_without_due_bytes_does_not_count() {
        let idle = |moved| Progress { moved, due: None };
        assert_eq!(slow_at(10, |_| idle(0)), None);
        // Events of fifty bytes each, one of which is in transit at every measurement.
        let event = |now: u64| Progress { moved: now * 5, due: Some(now * 5 + 50) };
        assert_eq!(slow_at(10, event), None);
        // Bytes that are due for fifty seconds and then received, repeatedly.
        let taken = |now: u64| if now.is_multiple_of(60) { idle(now * 10) } else { due(now / 60 * 600) };
        assert_eq!(slow_at(10, taken), None);
        // A few bytes that are never received.
        assert_eq!(slow_at(10, |_| Progress { moved: 7, due: Some(17) }), Some(60));
    }

    #[test]
    fn a_steady_peer_is_judged_by_its_rate_whenever_it_is_measured() {
        let mut random = Random::seeded(7);
        for _ in 0..200 {
            let rate = random.below(480) as u64;
            let (mut pace, mut now, mut slow) = (Pace::default(), Time::ZERO, false);
            for _ in 0..500 {
                now += Duration::from_millis(random.below(11_000) as u64);
                let moved = now.as_nanos() / 1_000_000 * rate / 1000;
                slow |= pace.is_slow(now, due(moved), &RATE);
            }
            // Whole bytes are measured, so one byte of each slot may be missing.
            assert!(slow == (rate < 240) || rate == 240, "{rate}");
        }
    }
}
