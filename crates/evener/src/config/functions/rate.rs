//! Limits of events a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts events, and refuses those above a maximum a second.
pub(super) struct PerSecond {
    max: u32,
    /// Beginning of a second, and the number of events since then.
    second: Mutex<Option<(Instant, u32)>>,
}

/// Decision about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    Admitted,
    /// The first event of the second that is refused.
    FirstRefused,
    Refused,
}

impl PerSecond {
    pub(super) fn new(max: u32) -> Self {
        Self { max, second: Mutex::default() }
    }

    /// Counts an event.
    pub(super) fn admit(&self, now: Instant) -> Rate {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match *second {
            Some((began, count)) if now.saturating_duration_since(began) < Duration::from_secs(1) => {
                *second = Some((began, count.saturating_add(1)));
                count
            }
            _ => {
                *second = Some((now, 1));
                0
            }
        };
        match count {
            count if count < self.max => Rate::Admitted,
            count if count == self.max => Rate::FirstRefused,
            _ => Rate::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_above_the_maximum_of_a_second_are_refused() {
        let (rate, began) = (PerSecond::new(2), Instant::now());
        for (milliseconds, expected) in [
            (0, Rate::Admitted),
            (500, Rate::Admitted),
            (600, Rate::FirstRefused),
            (999, Rate::Refused),
            (1000, Rate::Admitted),
            (1001, Rate::Admitted),
            (1002, Rate::FirstRefused),
        ] {
            assert_eq!(
                rate.admit(began + Duration::from_millis(milliseconds)),
                expected,
                "{milliseconds} ms"
            );
        }
    }
}
