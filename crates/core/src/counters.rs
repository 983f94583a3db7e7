//! Counters, declared once: each declaration makes the atomic, its name, help, unit and labels, and the code that
//! adds up its shards. The log, the API, the metrics and the documentation take them from here.
//!
//! Every worker has its own shard, so counting on the packet path shares no cache line with another core.

mod declared;

pub use declared::*;

use crate::histogram::{BUCKETS, Distribution};
use crate::lock::lock;
use crossbeam_utils::CachePadded;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter of one shard. Only the worker of the shard adds, except by [`Counter::one_shared`]; any thread
/// reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. The shard has one writer, so a load and a store are enough.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds one to a counter to which several threads add.
    pub fn one_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// The distribution of measured values.
    Histogram,
}

impl Kind {
    /// Returns the name in lower case, as in the exposition format of Prometheus.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! units {
    ($($(#[$doc:meta])* $unit:ident $name:literal),* $(,)?) => {
        /// Unit in which a metric counts or measures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Unit { $($(#[$doc])* $unit),* }

        impl Unit {
            /// Returns the name in lower case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$unit => $name),* }
            }
        }
    };
}

units! {
    /// Bytes.
    Bytes "bytes",
    /// System calls.
    Calls "calls",
    /// Checks of servers.
    Checks "checks",
    /// Clients: each of their connections, requests, queries or flows.
    Clients "clients",
    /// Connections.
    Connections "connections",
    /// Datagrams.
    Datagrams "datagrams",
    /// Events.
    Events "events",
    /// UDP flows.
    Flows "flows",
    /// TLS handshakes.
    Handshakes "handshakes",
    /// Lines of a log.
    Lines "lines",
    /// IP packets.
    Packets "packets",
    /// Pauses of accepting.
    Pauses "pauses",
    /// HTTP requests and DNS queries.
    Requests "requests",
    /// HTTP and DNS responses.
    Responses "responses",
    /// Seconds; recorded in microseconds.
    Seconds "seconds",
}

/// A metric as it was declared.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Name in the API and, with a prefix, in metrics.
    pub name: &'static str,
    /// Description for people: sentences.
    pub help: &'static str,
    /// Kind of the metric.
    pub kind: Kind,
    /// Unit in which the metric counts or measures.
    pub unit: Unit,
    /// The label, if the metric has one value for each value of a label.
    pub label: Option<Label>,
}

/// A label of a metric, with all its values.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Name of the label.
    pub name: &'static str,
    /// Values of the label.
    pub values: &'static [LabelValue],
}

/// A value of a label.
#[derive(Clone, Copy, Debug)]
pub struct LabelValue {
    /// The value.
    pub name: &'static str,
    /// Description for people: sentences.
    pub help: &'static str,
}

impl Declaration {
    /// Returns how many numbers the metric has in [`CounterSet::values`].
    const fn width(&self) -> usize {
        match (self.kind, self.label) {
            (Kind::Histogram, _) => BUCKETS + 1,
            (Kind::Counter, Some(label)) => label.values.len(),
            (Kind::Counter, None) => 1,
        }
    }

    /// Returns the name of each number of the metric.
    fn names(&self) -> Vec<String> {
        match (self.kind, self.label) {
            (Kind::Counter, None) => vec![self.name.to_owned()],
            (Kind::Counter, Some(label)) => {
                label.values.iter().map(|value| format!("{}.{}", self.name, value.name)).collect()
            }
            (Kind::Histogram, _) => (0..self.width()).map(|at| format!("{}.{at}", self.name)).collect(),
        }
    }

    /// Returns each of the declarations of a set with its total, made from the numbers of the set.
    pub(crate) fn totals(
        declared: &'static [Self],
        numbers: &[u64],
    ) -> impl Iterator<Item = (&'static Self, Total)> {
        let mut at = 0;
        declared.iter().map(move |declaration| {
            let part = &numbers[at..at + declaration.width()];
            at += part.len();
            (declaration, declaration.total(part))
        })
    }

    /// Makes the total of the metric from its numbers.
    fn total(&self, numbers: &[u64]) -> Total {
        match (self.kind, self.label) {
            (Kind::Histogram, _) => Total::Histogram(Distribution::new(self.unit, numbers)),
            (Kind::Counter, Some(label)) => Total::Labelled(
                label.values.iter().map(|value| value.name).zip(numbers.iter().copied()).collect(),
            ),
            (Kind::Counter, None) => Total::Count(numbers[0]),
        }
    }
}

/// The sum of a metric over its shards.
#[derive(Clone, Debug)]
pub enum Total {
    /// A count.
    Count(u64),
    /// A count for each value of the label.
    Labelled(Vec<(&'static str, u64)>),
    /// A distribution of values.
    Histogram(Distribution),
}

/// A set of metrics.
pub trait CounterSet: Default + Send + Sync {
    /// The declarations.
    const DECLARED: &'static [Declaration];

    /// Returns the numbers of all metrics, in the order of [`CounterSet::DECLARED`].
    fn values(&self) -> Vec<u64>;
}

/// A part of a [`CounterSet`] that can append its numbers to the values of the set.
pub(crate) trait Numbers {
    /// Appends the numbers.
    fn append_to(&self, values: &mut Vec<u64>);
}

impl Numbers for Counter {
    fn append_to(&self, values: &mut Vec<u64>) {
        values.push(self.read());
    }
}

/// The shards of one counter set, one for each worker.
///
/// ```
/// use evener_core::counters::{ServerCounters, Sharded};
///
/// let counters = Sharded::<ServerCounters>::new(2);
/// counters.of(0).connections.one();
/// counters.of(1).connections.add(2);
/// assert_eq!(counters.total("connections"), 3);
/// ```
#[derive(Debug)]
pub struct Sharded<C> {
    shards: Box<[CachePadded<C>]>,
    /// Numbers of earlier processes, which every sum includes; empty if there are none.
    carried: Mutex<Vec<u64>>,
}

impl<C: CounterSet> Sharded<C> {
    /// Creates the shards for `workers` workers, at least one.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let shards = (0..workers.max(1)).map(|_| CachePadded::new(C::default())).collect();
        Self { shards, carried: Mutex::default() }
    }

    /// Returns the shard of worker number `worker`, or the first shard if there is no such worker.
    #[must_use]
    pub fn of(&self, worker: usize) -> &C {
        // `get` is faster than a remainder, and this is on the path of each packet.
        self.shards.get(worker).unwrap_or(&self.shards[0])
    }

    /// Returns the last shard, for a plane in the kernel: a pool that it uses has a shard beyond those of the workers.
    #[must_use]
    pub fn last(&self) -> &C {
        &self.shards[self.shards.len() - 1]
    }

    /// Returns the sum of one counter over the shards of this process.
    pub fn sum(&self, counter: impl Fn(&C) -> &Counter) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(counter(shard).read()))
    }

    /// Returns the numbers of all metrics, summed over the shards, in the order of the declarations.
    pub(crate) fn sums(&self) -> Vec<u64> {
        let mut sums = self.shards[0].values();
        for shard in &self.shards[1..] {
            sums.iter_mut().zip(shard.values()).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
        }
        let carried = lock(&self.carried);
        sums.iter_mut().zip(carried.iter()).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        sums
    }

    /// Returns the numbers above zero with names that stay the same in later versions: `connections`,
    /// `drops.no_server`, or `check_seconds.3` for a bucket of a histogram.
    #[must_use]
    pub fn named(&self) -> Vec<(String, u64)> {
        let names = C::DECLARED.iter().flat_map(Declaration::names);
        names.zip(self.sums()).filter(|(_, value)| *value > 0).collect()
    }

    /// Adds numbers that an earlier process counted, by the names of [`Sharded::named`]. Unknown names are ignored.
    ///
    /// ```
    /// use evener_core::counters::{ServerCounters, Sharded};
    ///
    /// let (before, after) = (Sharded::<ServerCounters>::new(2), Sharded::<ServerCounters>::new(1));
    /// before.of(1).connections.add(2);
    /// after.of(0).connections.one();
    /// after.carry(&before.named());
    /// assert_eq!(after.total("connections"), 3);
    /// ```
    pub fn carry(&self, numbers: &[(String, u64)]) {
        let numbers: BTreeMap<&str, u64> = numbers.iter().map(|(name, value)| (&**name, *value)).collect();
        let names = C::DECLARED.iter().flat_map(Declaration::names);
        let values = names.map(|name| numbers.get(&*name).copied().unwrap_or(0));
        let mut carried = lock(&self.carried);
        let before = std::mem::take(&mut *carried);
        let before = before.into_iter().chain(std::iter::repeat(0));
        *carried = values.zip(before).map(|(value, before)| value.wrapping_add(before)).collect();
    }

    /// Returns each declaration with the sum over the shards.
    pub fn totals(&self) -> impl Iterator<Item = (&'static Declaration, Total)> {
        let totals: Vec<_> = Declaration::totals(C::DECLARED, &self.sums()).collect();
        totals.into_iter()
    }

    /// Returns the sum of the counter called `name` over the shards. The counter of a label's value is called
    /// `drops.no_server`.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        let (name, value) = name.split_once('.').map_or((name, None), |(name, value)| (name, Some(value)));
        let found = self.totals().find(|(declaration, _)| declaration.name == name);
        let count = match (found, value) {
            (Some((_, Total::Count(count))), None) => Some(count),
            (Some((_, Total::Labelled(counts))), Some(value)) => {
                counts.into_iter().find_map(|(known, count)| (known == value).then_some(count))
            }
            _ => None,
        };
        debug_assert!(count.is_some(), "there is no counter {name}");
        count.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventCounters;

    #[test]
    fn the_total_of_a_counter_is_the_sum_over_its_shards() {
        let sharded = Sharded::<ServerCounters>::new(2);
        sharded.of(0).bytes_in.add(5);
        sharded.of(1).bytes_in.add(7);
        sharded.of(0).connect_failures.refused.one();
        sharded.of(1).connect_failures.timeout.one();
        sharded.of(1).connect_failures.timeout.one();
        assert_eq!((sharded.total("bytes_in"), sharded.total("connect_failures.timeout")), (12, 2));
        let totals: Vec<_> = sharded.totals().collect();
        assert_eq!(totals.len(), ServerCounters::DECLARED.len());
        let failures = totals.iter().find(|(declaration, _)| declaration.name == "connect_failures");
        let Some((_, Total::Labelled(failures))) = failures else { panic!("{failures:?} must have labels") };
        assert_eq!(failures[..], [("refused", 1), ("timeout", 2), ("error", 0)]);
    }

    #[test]
    fn carried_numbers_are_part_of_every_total_and_can_be_carried_again() {
        let [first, second, third] = [2, 1, 3].map(Sharded::<ServerCounters>::new);
        first.of(0).connections.add(3);
        first.of(1).connect_failures.refused.add(4);
        first.of(1).connect_seconds.record_time(std::time::Duration::from_millis(3));
        second.carry(&first.named());
        second.of(0).connections.one();
        second.carry(&[("connections".into(), 10), ("removed_since".into(), 5)]);
        third.carry(&second.named());
        assert_eq!((third.total("connections"), third.total("connect_failures.refused")), (14, 4));
        assert_eq!(third.named(), second.named());
        let histogram = |of: &Sharded<ServerCounters>| {
            of.named()
                .into_iter()
                .filter(|(name, _)| name.starts_with("connect_seconds."))
                .collect::<Vec<_>>()
        };
        assert!(!histogram(&first).is_empty());
        assert_eq!(histogram(&third), histogram(&first));
    }

    /// 10 000 servers have such a shard for each worker.
    #[test]
    fn the_metrics_of_a_server_are_small() {
        assert_eq!(size_of::<CachePadded<ServerCounters>>(), 768);
        assert_eq!(size_of::<CachePadded<CheckCounters>>(), 384);
    }

    #[test]
    fn every_set_has_as_many_values_as_it_declares() {
        fn check<C: CounterSet>() {
            let declared: usize = C::DECLARED.iter().map(Declaration::width).sum();
            assert_eq!(C::default().values().len(), declared);
        }
        check::<ServiceCounters>();
        check::<ServerCounters>();
        check::<CheckCounters>();
        check::<EventCounters>();
    }

    /// Naming rules: <https://prometheus.io/docs/practices/naming/>, and the suffixes that the exposition format
    /// reserves.
    #[test]
    fn names_follow_the_rules_of_prometheus_and_every_help_is_a_sentence() {
        fn check_name(name: &str) {
            let is_word = |word: &str| {
                !word.is_empty()
                    && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            assert!(
                name.split('_').all(is_word) && name.starts_with(|first: char| first.is_alphabetic()),
                "{name}"
            );
        }
        fn check_help(name: &str, help: &str) {
            let is_sentence = help.starts_with(|first: char| first.is_uppercase()) && help.ends_with('.');
            assert!(
                is_sentence && !help.contains("  ") && !help.contains('\n'),
                "the help of {name}: {help:?}"
            );
        }
        for set in [
            ServiceCounters::DECLARED,
            ServerCounters::DECLARED,
            CheckCounters::DECLARED,
            EventCounters::DECLARED,
        ] {
            for (at, Declaration { name, help, kind, unit, label }) in set.iter().enumerate() {
                check_name(name);
                check_help(name, help);
                assert!(set[..at].iter().all(|earlier| earlier.name != *name), "{name} is declared twice");
                let words: Vec<_> = name.split('_').collect();
                for reserved in ["total", "count", "sum", "bucket", "counter", "histogram", "ms", "us", "kb"]
                {
                    assert!(!words.contains(&reserved), "{name} must not contain `{reserved}`");
                }
                let measures = matches!(unit, Unit::Seconds | Unit::Bytes);
                assert!(!measures || words.contains(&unit.name()), "{name} must contain `{}`", unit.name());
                if *kind == Kind::Histogram {
                    assert!(measures && name.ends_with(unit.name()), "{name} must end in its unit");
                    assert!(label.is_none(), "{name}: histograms have no label of their own");
                }
                let Some(label) = label else { continue };
                check_name(label.name);
                assert!(
                    !["le", "quantile", "service", "pool", "server"].contains(&label.name),
                    "{}",
                    label.name
                );
                for value in label.values {
                    check_name(value.name);
                    check_help(value.name, value.help);
                }
            }
        }
    }
}
