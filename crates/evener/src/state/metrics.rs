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
    name: String,
    kind: Kind,
    help: &'static str,
    samples: String,
}

/// The families. A family is declared once, whatever the order of its samples.
#[derive(Debug, Default)]
pub(super) struct Families {
    families: Vec<Family>,
    /// Position of each family by its name.
    positions: BTreeMap<String, usize>,
    /// Position after the family of the last sample: the samples of one server are in the order of those of the server
    /// before it.
    next: usize,
    /// Space for a name.
    name: String,
    /// Texts of the bounds of histograms, by their bits.
    bounds: BTreeMap<u64, String>,
}

impl Families {
    /// Adds a sample of a gauge.
    pub(super) fn gauge(&mut self, name: &str, help: &'static str, labels: &Labels, value: impl Display) {
        self.sample((Kind::Gauge, name, help), "", (labels, None), value);
    }

    /// Adds a sample of a counter, whose name gets the suffix `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &'static str, labels: &Labels, value: u64) {
        self.sample((Kind::Counter, name, help), "_total", (labels, None), value);
    }

    /// Adds a sample of a counter for a value of a further label, which needs no escapes.
    pub(super) fn counter_of(
        &mut self,
        name: &str,
        help: &'static str,
        labels: &Labels,
        label: (&str, &str),
        value: u64,
    ) {
        self.sample((Kind::Counter, name, help), "_total", (labels, Some(label)), value);
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
        let (mut count, mut bounds) = (0, std::mem::take(&mut self.bounds));
        let family = (Kind::Histogram, name, help);
        for (bound, values) in buckets {
            count = values;
            let bound = bound.unwrap_or(f64::INFINITY);
            let text = bounds
                .entry(bound.to_bits())
                .or_insert_with(|| if bound.is_infinite() { "+Inf".to_owned() } else { bound.to_string() });
            self.sample(family, "_bucket", (labels, Some(("le", text))), values);
        }
        self.bounds = bounds;
        self.sample(family, "_sum", (labels, None), sum);
        self.sample(family, "_count", (labels, None), count);
    }

    /// Adds the counters and histograms of a set, as `evener_SCOPE_NAME`.
    pub(super) fn set(
        &mut self,
        scope: &str,
        declared: &[&'static [Declaration]],
        counters: &CountersView,
        labels: &Labels,
    ) {
        let mut name = std::mem::take(&mut self.name);
        for declaration in declared.iter().copied().flatten() {
            name.clear();
            name.extend(["evener_", scope, declaration.name]);
            counters.add_to(self, &name, declaration, labels);
        }
        self.name = name;
    }

    /// Returns the family, which is declared by its first sample.
    fn family(&mut self, (kind, name, help): (Kind, &str, &'static str)) -> &mut Family {
        let is_at = |at: &usize| self.families.get(*at).is_some_and(|family| family.name == name);
        // A family may have several samples of one server.
        let near = [self.next, self.next.saturating_sub(1)].into_iter().find(is_at);
        let known = near.or_else(|| self.positions.get(name).copied());
        let at = known.unwrap_or_else(|| {
            let at = self.families.len();
            self.families.push(Family { name: name.to_owned(), kind, help, samples: String::new() });
            self.positions.insert(name.to_owned(), at);
            at
        });
        self.next = at + 1;
        &mut self.families[at]
    }

    fn sample(
        &mut self,
        family: (Kind, &str, &'static str),
        suffix: &str,
        (Labels(labels), more): (&Labels, Option<(&str, &str)>),
        value: impl Display,
    ) {
        let Family { name, kind, help, samples } = self.family(family);
        debug_assert_eq!((*kind, *help), (family.0, family.2), "{name} is declared once");
        samples.push_str(name);
        samples.push_str(suffix);
        if !labels.is_empty() || more.is_some() {
            samples.push('{');
            samples.push_str(labels);
            if let Some((label, text)) = more {
                let comma = if labels.is_empty() { "" } else { "," };
                samples.extend([comma, label, "=\"", text, "\""]);
            }
            samples.push('}');
        }
        let _ = writeln!(samples, " {value}");
    }

    /// Formats the families, in parts: the text of 10 000 servers has some 24 MB.
    pub(super) fn parts(self, format: MetricsFormat) -> Vec<String> {
        let Self { mut families, positions, .. } = self;
        let mut parts = Vec::with_capacity(2 * families.len() + 1);
        for at in positions.into_values() {
            let Family { name, kind, help, samples } = &mut families[at];
            let suffix =
                if *kind == Kind::Counter && format == MetricsFormat::Prometheus { "_total" } else { "" };
            let kind = kind.name();
            parts.push(format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
            parts.push(std::mem::take(samples));
        }
        if format == MetricsFormat::OpenMetrics {
            parts.push("# EOF\n".to_owned());
        }
        parts
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
        assert_eq!(families().parts(MetricsFormat::Prometheus).concat(), expected);
    }

    #[test]
    fn openmetrics_names_counters_without_suffix_and_ends_with_a_mark() {
        let text = families().parts(MetricsFormat::OpenMetrics).concat();
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
