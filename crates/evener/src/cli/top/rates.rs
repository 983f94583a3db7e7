//! Rates between two views, and their history, for each row. Rows that are no longer in the view are forgotten, so
//! the table is as large as the view.

use super::board::Id;
use crate::state::LiveRow;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Rates that are kept for a row: the widest chart.
const SAMPLES_MAX: usize = 60;
/// Bars of a chart, from low to high.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Bars of a chart on a terminal that has no Unicode.
const BARS_ASCII: [char; 8] = ['.', ':', '-', '=', '+', '*', '%', '#'];

/// Growth a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) served: f64,
    pub(super) errors: f64,
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
}

/// Totals at a time.
#[derive(Clone, Copy, Debug)]
struct Totals {
    at: Instant,
    served: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Debug)]
struct Track {
    totals: Totals,
    rate: Option<Rate>,
    samples: VecDeque<f64>,
}

/// Rates of all rows.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<Id, Track>);

impl Totals {
    fn of(row: &LiveRow, at: Instant) -> Self {
        let LiveRow { served, errors, bytes_in, bytes_out, .. } = *row;
        Self { at, served, errors, bytes_in, bytes_out }
    }

    /// Returns the growth a second since `before`. Returns `None` if no time passed, or if a counter is smaller than
    /// before: it belongs to another server of the name.
    fn rate_since(&self, before: &Self) -> Option<Rate> {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        let growth = |now: u64, before: u64| Some(now.checked_sub(before)? as f64 / seconds);
        (seconds > 0.0).then_some(())?;
        Some(Rate {
            served: growth(self.served, before.served)?,
            errors: growth(self.errors, before.errors)?,
            bytes_in: growth(self.bytes_in, before.bytes_in)?,
            bytes_out: growth(self.bytes_out, before.bytes_out)?,
        })
    }
}

impl Rates {
    /// Adds the totals of a view.
    pub(super) fn add(&mut self, rows: &[LiveRow], now: Instant) {
        let mut tracks = HashMap::with_capacity(rows.len());
        for row in rows {
            let (id, totals) = (Id::of(row), Totals::of(row, now));
            let mut track =
                self.0.remove(&id).unwrap_or(Track { totals, rate: None, samples: VecDeque::new() });
            track.rate = totals.rate_since(&track.totals);
            track.totals = totals;
            if let Some(rate) = track.rate {
                if track.samples.len() == SAMPLES_MAX {
                    track.samples.pop_front();
                }
                track.samples.push_back(rate.served);
            }
            tracks.insert(id, track);
        }
        self.0 = tracks;
    }

    /// Forgets all totals, because another instance counts from 0.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the rates of a row, once they are known.
    pub(super) fn of(&self, row: &LiveRow) -> Option<Rate> {
        self.0.get(&Id::of(row))?.rate
    }

    /// Draws the last rates of a row as a chart of at most `width` characters.
    pub(super) fn chart(&self, row: &LiveRow, width: usize, has_unicode: bool) -> String {
        let Some(track) = self.0.get(&Id::of(row)) else { return String::new() };
        let skipped = track.samples.len().saturating_sub(width);
        let shown = track.samples.iter().skip(skipped);
        let most = shown.clone().copied().fold(0.0, f64::max);
        let bars = if has_unicode { BARS } else { BARS_ASCII };
        let bar = |rate: &f64| {
            // A row without traffic has the lowest bar, and the highest rate has the highest.
            let height = if most > 0.0 { (rate / most * 7.0).ceil() } else { 0.0 };
            bars[(height as usize).min(bars.len() - 1)]
        };
        shown.map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::board::tests::server;
    use std::time::Duration;

    #[test]
    fn rates_are_the_growth_between_two_views() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut row = server("web", "a");
        for (second, served) in [(0, 100), (1, 110), (3, 210), (4, 210)] {
            row.served = served;
            rates.add(std::slice::from_ref(&row), start + Duration::from_secs(second));
        }
        assert_eq!(rates.of(&row).map(|rate| rate.served), Some(0.0));
        assert_eq!(rates.chart(&row, 8, true), "▃█▁");
        assert_eq!(rates.chart(&row, 2, false), "#.");
    }

    #[test]
    fn a_counter_that_begins_again_has_no_rate_and_a_missing_row_is_forgotten() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut row = server("web", "a");
        row.served = 100;
        rates.add(std::slice::from_ref(&row), start);
        row.served = 5;
        rates.add(std::slice::from_ref(&row), start + Duration::from_secs(1));
        assert_eq!(rates.of(&row), None);
        rates.add(&[], start + Duration::from_secs(2));
        assert!(rates.0.is_empty());
    }

    #[test]
    fn a_chart_keeps_a_bounded_number_of_rates() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut row = server("web", "a");
        for second in 0..200 {
            row.served += 1;
            rates.add(std::slice::from_ref(&row), start + Duration::from_secs(second));
        }
        assert_eq!(rates.chart(&row, 1000, true).chars().count(), SAMPLES_MAX);
    }
}
