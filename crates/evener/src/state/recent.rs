//! Figures of the last seconds: counters that grew, and the times of connection attempts and responses.

use super::counters::CountersView;
use evener_core::counters::{CounterSet, Total};
use evener_core::histogram::Distribution;
use evener_core::recent::Growth;
use serde::{Deserialize, Serialize};

/// Growth of the counters of a service or server in the last 10 to 20 seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct RecentView {
    /// Seconds that the figures cover.
    seconds: f64,
    /// Growth of the counters that grew.
    counters: CountersView,
    /// Times until connections to the server were established; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    connect_seconds: Option<TimesView>,
    /// Times until responses of the server began; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    response_seconds: Option<TimesView>,
}

/// Distribution of times, in seconds. Percentiles are estimates within the bucket of the histogram.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct TimesView {
    /// Number of recorded times.
    count: u64,
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl RecentView {
    pub(super) fn new<C: CounterSet>(growth: &Growth<C>) -> Self {
        let seconds = (growth.span().as_secs_f64() * 10.0).round() / 10.0;
        let mut view = Self { seconds, ..Self::default() };
        // Most servers of a large instance are idle.
        if growth.is_zero() {
            return view;
        }
        for (declaration, total) in growth.totals() {
            match declaration.name {
                "connect_seconds" => view.connect_seconds = TimesView::of(&total),
                "response_seconds" => view.response_seconds = TimesView::of(&total),
                name => view.counters.add_if_counted(name, total),
            }
        }
        view
    }

    /// Returns the number of seconds that the figures cover.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Returns the growth of a counter, or of one value of its label: `connect_failures.refused`.
    pub(super) fn value(&self, name: &str) -> u64 {
        self.counters.value(name)
    }

    /// Describes the troubles that occurred: `in the last 14 s: 3 connections refused, 1 response not in time`.
    /// Returns `None` if there were none.
    pub(super) fn troubles(&self, troubles: &[Trouble]) -> Option<String> {
        let counts = troubles.iter().map(|trouble| (self.value(trouble.0), trouble));
        let words: Vec<String> =
            counts.filter(|(count, _)| *count > 0).map(|(count, trouble)| trouble.text(count)).collect();
        (!words.is_empty())
            .then(|| format!("in the last {:.0} s: {}", self.seconds.max(1.0), words.join(", ")))
    }

    /// Returns the growth of a counter in a second.
    pub(super) fn rate(&self, name: &str) -> f64 {
        self.value(name) as f64 / self.seconds.max(1.0)
    }

    /// Returns the times of the responses, or of the connection attempts.
    pub(super) fn times(&self, of: Times) -> Option<&TimesView> {
        match of {
            Times::Connections => self.connect_seconds.as_ref(),
            Times::Responses => self.response_seconds.as_ref(),
        }
    }
}

/// A counter of troubles: its name, the noun that it counts, and words after the noun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

impl Trouble {
    fn text(self, count: u64) -> String {
        let Self(_, noun, rest) = self;
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {noun}{plural} {rest}").trim_end().to_owned()
    }
}

/// Events whose times are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Times {
    Connections,
    Responses,
}

impl TimesView {
    fn of(total: &Total) -> Option<Self> {
        let Total::Histogram(times) = total else { return None };
        let percentile = |times: &Distribution, percent| times.percentile(percent);
        Some(Self {
            count: times.count(),
            mean: times.mean()?,
            p50: percentile(times, 50)?,
            p95: percentile(times, 95)?,
            p99: percentile(times, 99)?,
        })
    }

    /// Returns the median and the 95th percentile.
    pub(super) fn median_and_p95(&self) -> (f64, f64) {
        (self.p50, self.p95)
    }

    /// Describes the times in words: `mean 2.1ms, median 2.0ms, 95 % within 5.0ms, 99 % within 9.0ms`.
    pub(super) fn text(&self) -> String {
        let [mean, p50, p95, p99] = [self.mean, self.p50, self.p95, self.p99].map(crate::table::time);
        format!("mean {mean}, median {p50}, 95 % within {p95}, 99 % within {p99}")
    }
}
