//! Counters and histograms in the status, and their declarations.

use super::Traffic;
use super::metrics::{Families, Labels};
use super::recent::RecentView;
use crate::table::{self, Style, Tone};
use evener_core::counters::{
    CheckCounters, CounterSet, Declaration, ServerCounters, ServiceCounters, Sharded, Total, Unit,
};
use evener_core::event::EventCounters;
use evener_core::histogram::Distribution;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Counters and histograms by name, since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub(super) struct CountersView(BTreeMap<Name, TotalView>);

/// A declared name, which is not copied: a status has hundreds of thousands.
type Name = Cow<'static, str>;

/// The total of a counter or histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TotalView {
    Count(u64),
    Histogram(HistogramView),
    /// A count for each value of the label.
    Labelled(BTreeMap<Name, u64>),
}

/// A histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HistogramView {
    /// Number of recorded values.
    count: u64,
    /// Sum of the recorded values.
    sum: f64,
    /// Upper bounds with the number of values above the bound before and up to this bound. Buckets without
    /// values are absent. The bound of the last bucket is null: there is none.
    buckets: Vec<(Option<f64>, u64)>,
}

impl CountersView {
    pub(super) fn new<C: CounterSet>(counters: &Sharded<C>) -> Self {
        let totals = counters.totals();
        Self(totals.map(|(declaration, total)| (declaration.name.into(), total.into())).collect())
    }

    /// Adds the counters of another set, whose names are different.
    pub(super) fn with<C: CounterSet>(mut self, counters: &Sharded<C>) -> Self {
        self.0.extend(Self::new(counters).0);
        self
    }

    /// Adds a counter unless it is 0. Histograms are not added.
    pub(super) fn add_if_counted(&mut self, name: &'static str, total: Total) {
        let is_counted = match &total {
            Total::Count(count) => *count > 0,
            Total::Labelled(counts) => counts.iter().any(|(_, count)| *count > 0),
            Total::Histogram(_) => false,
        };
        if is_counted {
            self.0.insert(name.into(), total.into());
        }
    }

    /// Returns the counters that are not 0 with their values. The value of a label has its own entry, such as
    /// `drops.no_server`. Histograms are not included.
    pub(super) fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = self.0.iter().flat_map(|(name, total)| match total {
            TotalView::Count(count) => vec![(name.to_string(), *count)],
            TotalView::Labelled(counts) => {
                counts.iter().map(|(value, count)| (format!("{name}.{value}"), *count)).collect()
            }
            TotalView::Histogram(_) => Vec::new(),
        });
        counts.filter(|(_, count)| *count > 0)
    }

    /// Returns the value of a counter, or 0 if there is no such counter. A counter with a label has the sum over
    /// the values of the label, `drops.no_server` is one of them. A histogram has its number of values.
    pub(super) fn value(&self, name: &str) -> u64 {
        let (name, label) = name.split_once('.').map_or((name, None), |(name, label)| (name, Some(label)));
        match self.0.get(name) {
            Some(TotalView::Count(count)) => *count,
            Some(TotalView::Labelled(counts)) => match label {
                Some(label) => counts.get(label).copied().unwrap_or_default(),
                None => counts.values().sum(),
            },
            Some(TotalView::Histogram(histogram)) => histogram.count,
            None => 0,
        }
    }

    pub(super) fn sum(&self, names: &[&str]) -> u64 {
        names.iter().map(|name| self.value(name)).sum()
    }

    /// Formats the counters that are not 0, with their recent growth and their descriptions.
    pub(super) fn text<'a>(&self, recent: &RecentView, help: &dyn Fn(&str) -> Option<&'a str>) -> String {
        let line = |(name, count): (String, u64)| {
            let growth = recent.value(&name);
            let growth = if growth == 0 { String::new() } else { format!(" (+{growth})") };
            let help = help(&name).unwrap_or_default();
            table::paragraph(&format!("{name} {count}{growth}: {help}"), 4, Tone::Normal, Style::Plain)
        };
        let lines: String = self.counts().map(line).collect();
        if lines.is_empty() {
            return "  counters: all are 0\n".into();
        }
        format!("  counters since the start (in brackets: the last {:.0} s):\n{lines}", recent.seconds())
    }

    /// Adds a declared counter or histogram to the metrics as the family `name`. A histogram without values has no
    /// samples: most of those of many servers.
    pub(super) fn add_to(
        &self,
        families: &mut Families,
        name: &str,
        declaration: &'static Declaration,
        labels: &Labels,
    ) {
        match self.0.get(declaration.name) {
            Some(TotalView::Count(count)) => families.counter(name, declaration.help, labels, *count),
            Some(TotalView::Labelled(counts)) => {
                let label = declaration.label.map_or("value", |label| label.name);
                for (value, count) in counts {
                    families.counter_of(name, declaration.help, labels, (label, value), *count);
                }
            }
            Some(TotalView::Histogram(histogram)) if histogram.count > 0 => {
                let buckets = histogram.up_to(declaration.unit);
                families.histogram(name, declaration.help, labels, buckets, histogram.sum);
            }
            Some(TotalView::Histogram(_)) | None => {}
        }
    }

    /// Returns the connections, flows, requests or queries.
    pub(super) fn served(&self, traffic: Traffic) -> u64 {
        self.value(traffic.counter())
    }
}

impl From<Total> for TotalView {
    fn from(total: Total) -> Self {
        match total {
            Total::Count(count) => Self::Count(count),
            Total::Labelled(counts) => {
                Self::Labelled(counts.into_iter().map(|(value, count)| (value.into(), count)).collect())
            }
            Total::Histogram(distribution) => Self::Histogram(HistogramView::new(&distribution)),
        }
    }
}

impl HistogramView {
    fn new(distribution: &Distribution) -> Self {
        let filled = distribution.buckets().filter(|(_, count)| *count > 0);
        Self {
            count: distribution.count(),
            sum: distribution.sum(),
            buckets: filled.map(|(bound, count)| (bound.is_finite().then_some(bound), count)).collect(),
        }
    }

    /// Returns the number of values up to each power of two from 64 us or bytes to 67 s or 64 MiB, and of all.
    fn up_to(&self, unit: Unit) -> impl Iterator<Item = (Option<f64>, u64)> {
        let scale = if unit == Unit::Seconds { 1e6 } else { 1.0 };
        let bounds = (6..=26).map(move |bits| f64::from(1_u32 << bits) / scale);
        let count = |bound: f64| {
            let below = self.buckets.iter().filter(|(upper, _)| upper.is_some_and(|upper| upper <= bound));
            below.map(|(_, count)| count).sum()
        };
        bounds.map(move |bound| (Some(bound), count(bound))).chain([(None, self.count)])
    }
}

/// The declarations of all counters and histograms, by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct DeclarationsView {
    instance: BTreeMap<String, DeclarationView>,
    service: BTreeMap<String, DeclarationView>,
    server: BTreeMap<String, DeclarationView>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct DeclarationView {
    help: String,
    /// `counter` or `histogram`.
    kind: String,
    /// Unit in which the metric counts or measures.
    unit: String,
    /// Name of the label; absent if the counter has one value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    label: Option<String>,
    /// Values of the label, with their descriptions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    values: BTreeMap<String, String>,
}

impl DeclarationsView {
    /// Returns the description of a counter of a service, or of a value of its label: `drops.no_server`.
    pub(super) fn help_of_service(&self, name: &str) -> Option<&str> {
        Self::help(&self.service, name)
    }

    /// Returns the description of a counter of a server, or of a value of its label.
    pub(super) fn help_of_server(&self, name: &str) -> Option<&str> {
        Self::help(&self.server, name)
    }

    fn help<'a>(declared: &'a BTreeMap<String, DeclarationView>, name: &str) -> Option<&'a str> {
        let (name, label) = name.split_once('.').map_or((name, None), |(name, label)| (name, Some(label)));
        let declaration = declared.get(name)?;
        match label {
            Some(label) => declaration.values.get(label).map(String::as_str),
            None => Some(&declaration.help),
        }
    }

    /// Returns the declarations of this program.
    pub(super) fn all() -> Self {
        let view = |declared: &[Declaration]| {
            declared.iter().map(|one| (one.name.to_owned(), DeclarationView::new(one))).collect()
        };
        Self {
            instance: view(EventCounters::DECLARED),
            service: view(ServiceCounters::DECLARED),
            server: view(&[ServerCounters::DECLARED, CheckCounters::DECLARED].concat()),
        }
    }
}

impl DeclarationView {
    fn new(declaration: &Declaration) -> Self {
        let values = declaration.label.iter().flat_map(|label| label.values);
        Self {
            help: declaration.help.into(),
            kind: declaration.kind.name().into(),
            unit: declaration.unit.name().into(),
            label: declaration.label.map(|label| label.name.into()),
            values: values.map(|value| (value.name.to_owned(), value.help.to_owned())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn served_clients_are_counted_in_the_unit_of_the_protocol() {
        let counters = [("connections", 1), ("flows", 2), ("requests", 4), ("packets_in", 8)];
        let counters = counters.map(|(name, count)| (name.into(), TotalView::Count(count)));
        let counters = CountersView(counters.into());
        assert_eq!(Traffic::ALL.map(|traffic| counters.served(traffic)), [4, 4, 1, 2, 8]);
    }

    #[test]
    fn labels_and_histograms_are_nested_and_can_be_read_again() {
        let counters = Sharded::<ServiceCounters>::new(1);
        counters.of(0).drops.no_server.add(3);
        let json = serde_json::to_value(CountersView::new(&counters)).unwrap();
        assert_eq!((&json["drops"]["no_server"], &json["drops"]["denied"]), (&3.into(), &0.into()));
        let view: CountersView = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((view.value("drops"), serde_json::to_value(&view).unwrap()), (3, json));
    }

    #[test]
    fn declarations_have_help_unit_and_label() {
        let json = serde_json::to_value(DeclarationsView::all()).unwrap();
        let drops = &json["service"]["drops"];
        assert_eq!(
            (&drops["kind"], &drops["unit"], &drops["label"]),
            (&"counter".into(), &"datagrams".into(), &"reason".into())
        );
        assert_eq!(drops["values"]["no_server"], "No server was available.");
        assert_eq!(json["service"]["flows"]["help"], "UDP flows opened.");
    }

    #[test]
    fn every_counter_has_a_declaration() {
        fn names<K: AsRef<str>, T>(map: &BTreeMap<K, T>) -> Vec<&str> {
            map.keys().map(AsRef::as_ref).collect()
        }
        let declarations = DeclarationsView::all();
        let service = CountersView::new(&Sharded::<ServiceCounters>::new(1));
        let server = CountersView::new(&Sharded::<ServerCounters>::new(1));
        let server = server.with(&Sharded::<CheckCounters>::new(1));
        assert_eq!(names(&service.0), names(&declarations.service));
        assert_eq!(names(&server.0), names(&declarations.server));
    }

    const BEGIN: &str = "<!-- counters: begin -->\n";
    const END: &str = "<!-- counters: end -->\n";

    /// Formats the table of a set for docs/operating.md.
    fn table(of: &str, sets: &[&[Declaration]]) -> String {
        let mut table = format!("\n| {of} | unit | counts |\n|---|---|---|\n");
        for Declaration { name, help, kind, unit, label } in sets.iter().flat_map(|set| *set) {
            let kind = if *kind == evener_core::counters::Kind::Histogram { " (histogram)" } else { "" };
            let label = label.filter(|label| label.name != "event");
            let by = label.map(|label| format!(" by `{}`", label.name)).unwrap_or_default();
            let values = label.iter().flat_map(|label| label.values);
            let values: String =
                values.map(|value| format!("<br>`{}`: {}", value.name, value.help)).collect();
            let _ = writeln!(table, "| `{name}`{by}{kind} | {} | {help}{values} |", unit.name());
        }
        table
    }

    /// With `EVENER_UPDATE_DOCS=1` the test writes the table instead.
    #[test]
    fn the_tables_of_counters_in_the_documentation_are_made_from_the_declarations() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(BEGIN).expect("docs/operating.md has the mark");
        let (_, after) = rest.split_once(END).expect("docs/operating.md has the second mark");
        let tables = table("of a service", &[ServiceCounters::DECLARED])
            + &table("of a server", &[ServerCounters::DECLARED, CheckCounters::DECLARED])
            + &table("of the instance", &[EventCounters::DECLARED]);
        let expected = format!("{before}{BEGIN}{tables}\n{END}{after}");
        if std::env::var_os("EVENER_UPDATE_DOCS").is_some() {
            std::fs::write(path, expected).unwrap();
            return;
        }
        assert!(
            text == expected,
            "the counters in docs/operating.md are old: EVENER_UPDATE_DOCS=1 cargo test -p evener --lib"
        );
    }
}
