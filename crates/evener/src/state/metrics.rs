//! The state in the text formats of Prometheus (0.0.4) and of OpenMetrics (1.0.0). Names follow
//! <https://prometheus.io/docs/practices/naming/>. No client is a label: clients are many.

use super::counters::CountersView;
use evener_core::counters::Declaration;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricsFormat {
    /// The text format of Prometheus.
    Prometheus,
    /// OpenMetrics, which names counters without their suffix and ends with a mark.
    OpenMetrics,
}

impl MetricsFormat {
    /// Returns the format for the value of the header field Accept.
    pub(crate) fn of_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the media type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Kind of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels of a sample, escaped: `service="www"`.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(String);

impl Labels {
    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut text = self.0.clone();
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{name}=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
        Self(text)
    }
}

/// A family of metrics: its samples have the same name and different labels.
#[derive(Debug)]
struct Family {
    kind: Kind,
    help: &'static str,
    samples: String,
}

/// The families, by name. A family is declared once, whatever the order of its samples.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<String, Family>);

impl Families {
    /// Adds a sample of a gauge.
    pub(super) fn gauge(&mut self, name: &str, help: &'static str, labels: &Labels, value: impl Display) {
        self.sample(Kind::Gauge, name, help, "", labels, value);
    }

    /// Adds a sample of a counter, whose name gets the suffix `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &'static str, labels: &Labels, value: u64) {
        self.sample(Kind::Counter, name, help, "_total", labels, value);
    }

    /// Adds a histogram: the number of values up to each bound, not only above the bound before. The last bound, `None`,
    /// is infinite.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &'static str,
        labels: &Labels,
        buckets: impl Iterator<Item = (Option<f64>, u64)>,
        sum: f64,
    ) {
        let mut count = 0;
        for (bound, values) in buckets {
            count = values;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.sample(Kind::Histogram, name, help, "_bucket", &labels.with("le", &bound), values);
        }
        self.sample(Kind::Histogram, name, help, "_sum", labels, sum);
        self.sample(Kind::Histogram, name, help, "_count", labels, count);
    }

    /// Adds the counters and histograms of a set, as `evener_SCOPE_NAME`.
    pub(super) fn set(
        &mut self,
        scope: &str,
        declared: &[&'static [Declaration]],
        counters: &CountersView,
        labels: &Labels,
    ) {
        for declaration in declared.iter().copied().flatten() {
            let name = format!("evener_{scope}{}", declaration.name);
            counters.add_to(self, &name, declaration, labels);
        }
    }

    fn sample(
        &mut self,
        kind: Kind,
        name: &str,
        help: &'static str,
        suffix: &str,
        Labels(labels): &Labels,
        value: impl Display,
    ) {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Family { kind, help, samples: String::new() });
        }
        let Some(family) = self.0.get_mut(name) else { return };
        debug_assert_eq!((family.kind, family.help), (kind, help), "{name} is declared once");
        let samples = &mut family.samples;
        let _ = if labels.is_empty() {
            writeln!(samples, "{name}{suffix} {value}")
        } else {
            writeln!(samples, "{name}{suffix}{{{labels}}} {value}")
        };
    }

    /// Formats the families.
    pub(super) fn text(self, format: MetricsFormat) -> String {
        let mut text = String::new();
        for (name, Family { kind, help, samples }) in self.0 {
            let suffix =
                if kind == Kind::Counter && format == MetricsFormat::Prometheus { "_total" } else { "" };
            let _ = write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {}\n", kind.name());
            text += &samples;
        }
        if format == MetricsFormat::OpenMetrics {
            text += "# EOF\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Families {
        let mut families = Families::default();
        let labels = Labels::default().with("service", "a\\b\"c\nd");
        families.counter("evener_service_connections", "Connections.", &labels, 3);
        families.gauge("evener_workers", "Workers.", &Labels::default(), 2);
        families.counter(
            "evener_service_connections",
            "Connections.",
            &Labels::default().with("service", "t"),
            4,
        );
        families.histogram(
            "evener_server_connect_seconds",
            "Times.",
            &Labels::default().with("server", "x"),
            [(Some(0.25), 1), (None, 3)].into_iter(),
            1.5,
        );
        families
    }

    #[test]
    fn each_family_is_declared_once_with_escaped_labels() {
        let expected = "\
# HELP evener_server_connect_seconds Times.
# TYPE evener_server_connect_seconds histogram
evener_server_connect_seconds_bucket{server=\"x\",le=\"0.25\"} 1
evener_server_connect_seconds_bucket{server=\"x\",le=\"+Inf\"} 3
evener_server_connect_seconds_sum{server=\"x\"} 1.5
evener_server_connect_seconds_count{server=\"x\"} 3
# HELP evener_service_connections_total Connections.
# TYPE evener_service_connections_total counter
evener_service_connections_total{service=\"a\\\\b\\\"c\\nd\"} 3
evener_service_connections_total{service=\"t\"} 4
# HELP evener_workers Workers.
# TYPE evener_workers gauge
evener_workers 2
";
        assert_eq!(families().text(MetricsFormat::Prometheus), expected);
    }

    #[test]
    fn openmetrics_names_counters_without_suffix_and_ends_with_a_mark() {
        let text = families().text(MetricsFormat::OpenMetrics);
        assert!(
            text.contains("# TYPE evener_service_connections counter\nevener_service_connections_total{"),
            "{text}"
        );
        assert!(text.ends_with("evener_workers 2\n# EOF\n"), "{text}");
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        assert_eq!(MetricsFormat::of_accept(accept), MetricsFormat::OpenMetrics);
        assert_eq!(MetricsFormat::of_accept("*/*"), MetricsFormat::Prometheus);
    }
}
