//! Pools: their servers, queues, retry budgets and sources of servers.

use super::Traffic;
use super::counters::DeclarationsView;
use super::metrics::{Families, Labels};
use super::server::ServerView;
use crate::table::{self, Row, Style, Tone};
use evener_core::Time;
use evener_core::budget::BudgetUse;
use evener_core::pool::{Pool, Server};
use evener_core::snapshot::Quorum;
use evener_core::spec::{CheckSpec, StickyBy};
use serde::{Deserialize, Serialize};

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct PoolView {
    name: String,
    policy: String,
    /// Number of clients in the sticky table; absent if the pool has no sticky table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky_clients: Option<usize>,
    /// Identification of sticky clients: `client_ip` or `cookie`; absent if the pool is not sticky.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky_by: Option<String>,
    /// The queue for clients while every server is at its limit; absent if the pool has no queue.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    queue: Option<QueueView>,
    /// The quorum; absent if the pool needs none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    quorum: Option<QuorumView>,
    /// Use of the retry budget; absent if retries are not bounded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    retry_budget: Option<BudgetView>,
    /// The active check of servers without their own check; absent if the pool has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    check: Option<CheckSpecView>,
    /// Sources of servers: host names, files and directories.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    sources: Vec<SourceView>,
    servers: Vec<ServerView>,
}

/// The queue of a pool.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct QueueView {
    /// Number of waiting clients and requests.
    waiting: u32,
    /// Maximum number of waiting clients and requests.
    size: u32,
    /// Maximum waiting time in seconds.
    timeout_s: f64,
}

/// The quorum of a pool.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct QuorumView {
    /// The demanded weight.
    quorum: u32,
    hysteresis: u32,
    /// Weight of the usable servers.
    weight: u32,
    met: bool,
}

/// Use of a retry budget in the last 10 seconds.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct BudgetView {
    retries: u64,
    retries_max: u64,
}

/// The active check of a pool or a server.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct CheckSpecView {
    /// Kind of the check, such as `http`.
    kind: String,
    every_s: f64,
    timeout_s: f64,
    rise: u32,
    fall: u32,
}

/// A source of servers.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct SourceView {
    source: String,
    /// Number of servers that the source lists.
    servers: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    problem: Option<String>,
}

impl SourceView {
    pub(crate) fn new(source: String, servers: usize, problem: Option<String>) -> Self {
        Self { source, servers, problem }
    }

    /// Returns a line about the problem of the source, if it has one.
    fn trouble(&self) -> Option<String> {
        self.problem.as_ref().map(|problem| format!("{}: {problem}", self.source))
    }
}

impl PoolView {
    /// Adds the metrics of the pool and its servers.
    pub(super) fn add_to(&self, families: &mut Families) {
        let labels = Labels::default().with("pool", &self.name);
        let mut gauge = |name: &str, help, value: u64| {
            families.gauge(&format!("evener_pool_{name}"), help, &labels, value);
        };
        let usable = self.ordinary().filter(|server| server.is_usable()).count();
        let servers = self.ordinary().count();
        gauge("servers", "Servers of the pool, without the sorry server.", servers as u64);
        gauge("servers_usable", "Servers that take new clients, without the sorry server.", usable as u64);
        if let Some(quorum) = &self.quorum {
            gauge("quorum_met", "1 if the usable servers have the quorum.", u64::from(quorum.met));
        }
        if let Some(clients) = self.sticky_clients {
            gauge("sticky_clients", "Clients in the sticky table.", clients as u64);
        }
        if let Some(queue) = &self.queue {
            gauge("queue_waiting", "Clients and requests in the queue.", queue.waiting.into());
            gauge("queue_max", "Maximum number of clients and requests in the queue.", queue.size.into());
        }
        for source in &self.sources {
            let labels = labels.with("source", &source.source);
            let failed = u8::from(source.problem.is_some());
            families.gauge("evener_pool_source_failed", "1 if the source has a problem.", &labels, failed);
        }
        self.servers.iter().for_each(|server| server.add_to(families, &labels));
    }

    /// Describes a pool with some of its servers. `source_of` returns the source of a server that was found.
    pub(crate) fn new<'a, 's>(
        pool: &Pool,
        servers: impl Iterator<Item = &'s Server>,
        sources: Vec<SourceView>,
        source_of: impl Fn(&str) -> Option<&'a str>,
        now: Time,
    ) -> Self {
        let spec = pool.spec();
        let server =
            |server: &Server| ServerView::new(server, source_of(&server.spec.name).map(str::to_owned), now);
        Self {
            name: spec.name.to_string(),
            policy: spec.policy.name().into(),
            sticky_clients: pool.remembered(),
            sticky_by: spec.sticky.as_ref().map(|sticky| match sticky.by {
                StickyBy::ClientIp => "client_ip".into(),
                StickyBy::Cookie(_) => "cookie".into(),
            }),
            queue: spec.queue.map(|queue| QueueView {
                waiting: pool.queued(),
                size: queue.size,
                timeout_s: queue.timeout.as_secs_f64(),
            }),
            quorum: pool.quorum().map(|Quorum { spec, weight, is_met }| QuorumView {
                quorum: spec.weight,
                hysteresis: spec.hysteresis,
                weight: *weight,
                met: *is_met,
            }),
            retry_budget: pool.retry_budget().usage(now).map(BudgetView::new),
            check: spec.check.as_ref().map(CheckSpecView::new),
            sources,
            servers: servers.map(server).collect(),
        }
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn servers(&self) -> impl Iterator<Item = &ServerView> {
        self.servers.iter()
    }

    /// Keeps the servers for which `is_wanted` returns true.
    pub(super) fn keep_servers(&mut self, is_wanted: impl Fn(&ServerView) -> bool) {
        self.servers.retain(is_wanted);
    }

    /// Keeps only one server.
    pub(super) fn keep_server(&mut self, name: &str) {
        self.servers.retain(|server| server.name() == name);
    }

    /// Formats the pool with a table of its servers.
    pub(super) fn text(&self, traffic: Traffic, style: Style) -> String {
        let mut text = format!("\n{}", table::paragraph(&self.headline(), 0, Tone::Strong, style));
        text += &self.table(traffic, style);
        let warn = |line: String| table::paragraph(&line, 2, Tone::Warning, style);
        text.extend(self.troubles().map(warn));
        text
    }

    /// Formats the table of the servers; nothing if there are none.
    fn table(&self, traffic: Traffic, style: Style) -> String {
        let mut medians: Vec<f64> = self.servers.iter().filter_map(|server| server.median(traffic)).collect();
        medians.sort_by(f64::total_cmp);
        // The lower one of two medians is the usual one: the other server is the slow one.
        let usual = medians.len().checked_sub(1).map(|last| medians[last / 2]);
        let rows: Vec<Row> = self.servers.iter().map(|server| server.row(traffic, usual)).collect();
        if rows.is_empty() {
            return String::new();
        }
        table::report(&ServerView::heading(traffic), &rows, 2, style)
    }

    /// Returns the servers other than the sorry server.
    fn ordinary(&self) -> impl Iterator<Item = &ServerView> {
        self.servers.iter().filter(|server| !server.is_sorry())
    }

    /// Returns the number of servers that can get new clients, and of all servers, without the sorry server.
    pub(super) fn usable(&self) -> (usize, usize) {
        (self.ordinary().filter(|server| server.is_usable()).count(), self.ordinary().count())
    }

    /// Describes the pool in a line.
    pub(super) fn headline(&self) -> String {
        let (usable, all) = self.usable();
        let mut parts = vec![self.policy.clone()];
        parts.extend(self.sticky_clients.map(|clients| match clients {
            1 => "1 sticky client".to_owned(),
            clients => format!("{clients} sticky clients"),
        }));
        parts.extend(
            self.sticky_by.as_ref().filter(|by| *by == "cookie").map(|_| "sticky by cookie".to_owned()),
        );
        let is_limited = self.servers.iter().any(ServerView::has_limit);
        let queue = self.queue.as_ref().filter(|queue| queue.waiting > 0 || is_limited);
        parts.extend(queue.map(|queue| format!("queue {} of {}", queue.waiting, queue.size)));
        format!("pool {}: {usable} of {all} servers usable ({})", self.name, parts.join(", "))
    }

    /// Returns lines about the troubles of the pool.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> {
        let is_unusable = !self.servers.iter().any(ServerView::is_usable);
        let unusable = is_unusable.then(|| "no server is usable for new clients".to_owned());
        let quorum = self.quorum.as_ref().filter(|quorum| !quorum.met).map(QuorumView::text);
        let budget = self.retry_budget.as_ref().filter(|budget| budget.is_used_up());
        let budget = budget.map(|BudgetView { retries, retries_max }| {
            format!("the retry budget is used up: {retries} of {retries_max} retries in the last 10 s; failed tries are not repeated")
        });
        unusable
            .into_iter()
            .chain(quorum)
            .chain(budget)
            .chain(self.sources.iter().filter_map(SourceView::trouble))
    }

    /// Formats everything that is known about the pool except its servers.
    pub(super) fn details(&self) -> String {
        let mut lines = Vec::new();
        if let Some(check) = &self.check {
            lines.push(format!("check: {}", check.text()));
        } else if self.servers.iter().any(ServerView::has_check) {
            lines.push("check: none for the whole pool; some servers have their own checks".into());
        } else {
            lines.push("check: none; only failures of traffic mark a server down".into());
        }
        lines.extend(self.queue.as_ref().map(|QueueView { waiting, size, timeout_s }| {
            format!("queue: {waiting} of {size} clients and requests wait, for at most {timeout_s} s")
        }));
        lines.extend(self.quorum.as_ref().map(QuorumView::text));
        lines.extend(self.retry_budget.as_ref().map(|BudgetView { retries, retries_max }| {
            format!("retries: {retries} of at most {retries_max} in the last 10 s (retry_budget)")
        }));
        lines.extend(
            self.sources.iter().map(|source| format!("source {}: {} servers", source.source, source.servers)),
        );
        lines.iter().map(|line| table::paragraph(line, 2, Tone::Normal, Style::Plain)).collect()
    }

    /// Formats everything that is known about the servers of this view.
    pub(super) fn server_text(
        &self,
        traffic: Traffic,
        declarations: &DeclarationsView,
        style: Style,
    ) -> String {
        let details: String = self.servers.iter().map(|server| server.details(declarations)).collect();
        let title = table::paragraph(&format!("pool {}", self.name), 0, Tone::Strong, style);
        title + &self.table(traffic, style) + &details
    }
}

impl QuorumView {
    fn text(&self) -> String {
        let Self { quorum, hysteresis, weight, met } = self;
        let hysteresis = if *hysteresis > 0 { format!(", hysteresis {hysteresis}") } else { String::new() };
        match met {
            true => format!("quorum {quorum}{hysteresis}: usable servers have the weight {weight}"),
            false => format!(
                "below the quorum {quorum}{hysteresis}: usable servers have the weight {weight}; a sorry server takes the new clients, if there is one"
            ),
        }
    }
}

impl BudgetView {
    fn new(usage: BudgetUse) -> Self {
        Self { retries: usage.retries, retries_max: usage.retries_max }
    }

    fn is_used_up(&self) -> bool {
        self.retries > 0 && self.retries >= self.retries_max
    }
}

impl CheckSpecView {
    pub(super) fn new(check: &CheckSpec) -> Self {
        Self {
            kind: check.kind.name().into(),
            every_s: check.every.as_secs_f64(),
            timeout_s: check.timeout.as_secs_f64(),
            rise: check.rise,
            fall: check.fall,
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { kind, every_s, timeout_s, rise, fall } = self;
        format!(
            "{kind}, every {every_s} s, timeout {timeout_s} s; up after {rise} passed, down after {fall} failed"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::metrics::MetricsFormat;
    use evener_core::address::Target;
    use evener_core::pool::PoolSetting;
    use evener_core::spec::{CheckKind, PoolSpec, QuorumSpec, ServerSpec};
    use std::sync::Arc;

    fn server(name: &str) -> ServerSpec {
        ServerSpec { name: name.into(), ..ServerSpec::new("10.0.0.1:80".parse().expect("a valid address")) }
    }

    fn view(spec: &PoolSpec) -> PoolView {
        let target = Target::Ip("10.0.0.1:80".parse().expect("a valid address"));
        let targets = vec![target; spec.servers.len()];
        let mut pool = Pool::new(spec, &targets, PoolSetting { workers: 1, key: 1, first_id: 0 }, Time::ZERO);
        pool.snapshot();
        PoolView::new(&pool, pool.servers().iter(), Vec::new(), |_| None, Time::ZERO)
    }

    #[test]
    fn the_check_of_a_single_server_is_in_the_status() {
        let check = Some(Arc::new(CheckSpec::new(CheckKind::Tcp)));
        let view = view(&PoolSpec::new("web", vec![ServerSpec { check, ..server("a") }, server("b")]));
        let json = serde_json::to_value(&view).expect("a view is valid JSON");
        assert_eq!(json["servers"][0]["check"]["kind"], "tcp");
        assert!(json["servers"][1].get("check").is_none(), "the server b has no check: {json}");
        assert!(view.details().contains("some servers have their own checks"), "{}", view.details());
    }

    #[test]
    fn the_sorry_server_is_not_counted_as_a_usable_server() {
        let sorry = ServerSpec { is_sorry: true, ..server("sorry") };
        let mut spec = PoolSpec::new("web", vec![server("a"), sorry]);
        spec.quorum = Some(QuorumSpec { weight: 2, hysteresis: 0 });
        let mut families = Families::default();
        view(&spec).add_to(&mut families);
        let text = families.parts(MetricsFormat::Prometheus).concat();
        for line in
            ["evener_pool_servers_usable{pool=\"web\"} 1\n", "evener_pool_quorum_met{pool=\"web\"} 0\n"]
        {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
