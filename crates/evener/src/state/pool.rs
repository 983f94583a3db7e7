//! Pools and servers: verdicts, load and counters.

use super::Served;
use super::counters::CountersView;
use crate::table::{bytes, seconds, table};
use evener_core::Time;
use evener_core::health::Verdict;
use evener_core::pool::{Pool, Server};
use evener_core::spec::AdminState;
use serde::{Deserialize, Serialize};

const HEADING: [&str; 11] =
    ["  SERVER", "TIER", "WEIGHT", "STATE", "VERDICT", "SINCE", "ACTIVE", "TOTAL", "IN", "OUT", "FAILED"];

/// Counters of failures, which are added up in the row of a server.
const FAILURES: [&str; 6] = [
    "connect_failures",
    "resets",
    "response_timeouts",
    "responses_bad",
    "tls_failed",
    "persistent_connection_faults",
];

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PoolView {
    name: String,
    policy: String,
    /// Number of clients in the sticky table; absent if the pool has no sticky table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky_clients: Option<usize>,
    /// Sources of servers: host names, files and directories.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    sources: Vec<SourceView>,
    servers: Vec<ServerView>,
}

/// A source of servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Describes a pool. `source_of` returns the source of a server that was found.
    pub(crate) fn new<'a>(
        pool: &Pool,
        sources: Vec<SourceView>,
        source_of: impl Fn(&str) -> Option<&'a str>,
        now: Time,
    ) -> Self {
        let name = &pool.spec().name;
        let server = |server: &Server| {
            let source = source_of(&server.spec.name).map(str::to_owned);
            ServerView { source, ..ServerView::new(server, now) }
        };
        Self {
            name: name.to_string(),
            policy: pool.spec().policy.name().into(),
            sticky_clients: pool.remembered(),
            sources,
            servers: pool.servers().iter().map(server).collect(),
        }
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    pub(super) fn servers(&self) -> impl Iterator<Item = &ServerView> {
        self.servers.iter()
    }

    /// Formats the pool with a table of its servers.
    pub(super) fn text(&self, unit: Served) -> String {
        let sticky =
            self.sticky_clients.map(|clients| format!(", {clients} sticky clients")).unwrap_or_default();
        let rows: Vec<_> = self.servers.iter().map(|server| server.row(unit)).collect();
        let troubles = self.sources.iter().filter_map(SourceView::trouble);
        let troubles: String = troubles.map(|trouble| format!("  {trouble}\n")).collect();
        format!("\npool {} ({}{sticky})\n{}{troubles}", self.name, self.policy, table(&HEADING, &rows))
    }
}

/// A server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerView {
    name: String,
    /// Resolved address.
    address: String,
    /// Source that lists the server, unless the configuration names the server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    source: Option<String>,
    tier: u8,
    weight: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hard: Option<u32>,
    /// `ready`, `drain` or `maintenance`.
    state: String,
    /// `up`, `down`, or `unchecked` until the first check.
    verdict: String,
    /// Reason why the server is down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    /// Seconds since the last change of the verdict.
    since_s: u64,
    /// Number of connections and flows.
    active: u32,
    /// Number of warm connections.
    warm: u32,
    counters: CountersView,
    /// Seconds since the server was excluded by its checks or by an operator; `None` if it is not excluded. Only
    /// front ends use it: the API does not have it.
    #[serde(skip)]
    excluded_s: Option<u64>,
}

impl ServerView {
    fn new(server: &Server, now: Time) -> Self {
        Self {
            name: server.spec.name.to_string(),
            address: server.target.to_string(),
            source: None,
            tier: server.spec.tier,
            weight: server.spec.weight,
            max: server.spec.limits.soft,
            hard: server.spec.limits.hard,
            state: server.state.name().into(),
            verdict: server.health.verdict().name().into(),
            reason: server.health.reason().map(str::to_owned),
            since_s: now.since(server.since).as_secs(),
            active: server.live.occupancy.active(),
            warm: server.live.warm.active(),
            counters: CountersView::new(&server.live.counters).with(&server.live.check_counters),
            excluded_s: excluded_since(server).map(|since| now.since(since).as_secs()),
        }
    }

    /// Returns the cells of the server below [`HEADING`].
    fn row(&self, unit: Served) -> Vec<String> {
        let limits = [self.max, self.hard].into_iter().flatten().map(|limit| format!("/{limit}"));
        let limit: String = limits.collect();
        let reason = self.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        // The address is shown unless it is also the name.
        let at = if self.name == self.address { String::new() } else { format!(" ({})", self.address) };
        vec![
            format!("  {}{at}", self.name),
            self.tier.to_string(),
            self.weight.to_string(),
            self.state.clone(),
            format!("{}{reason}", self.verdict),
            seconds(self.since_s),
            format!("{}{limit}", self.active),
            self.counters.served(unit).to_string(),
            bytes(self.bytes_in()),
            bytes(self.bytes_out()),
            self.counters.sum(&FAILURES).to_string(),
        ]
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Describes the change of the verdict since `before`, a verdict that [`Self::verdict`] returned earlier.
    /// Returns `None` if the verdict did not change.
    pub(crate) fn change(&self, before: &str) -> Option<String> {
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        (before != self.verdict).then(|| format!("{} is {}{reason}", self.name, self.verdict))
    }

    pub(crate) fn verdict(&self) -> &str {
        &self.verdict
    }

    /// Returns the number of open connections and flows.
    pub(crate) fn active(&self) -> u32 {
        self.active
    }

    /// Returns the number of open connections and flows, including warm connections.
    pub(crate) fn active_and_warm(&self) -> u32 {
        self.active + self.warm
    }

    /// Returns the bytes that clients sent to the server.
    pub(crate) fn bytes_in(&self) -> u64 {
        self.counters.value("bytes_in")
    }

    /// Returns the bytes that the server sent to clients.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.counters.value("bytes_out")
    }

    /// Returns the seconds since the server was excluded, by its checks or by an operator; `None` if it is not
    /// excluded.
    pub(crate) fn excluded_s(&self) -> Option<u64> {
        self.excluded_s
    }

    /// Returns the total number of connections or of datagrams from clients, whichever is larger.
    pub(crate) fn served(&self) -> u64 {
        self.counters.value("connections").max(self.counters.value("datagrams_in"))
    }
}

/// Returns the time since which a server is excluded; `None` if it is not excluded.
fn excluded_since(server: &Server) -> Option<Time> {
    match (server.state, server.health.verdict()) {
        (AdminState::Ready, Verdict::Up | Verdict::Unchecked) => None,
        (AdminState::Ready, Verdict::Down) => Some(server.since),
        (AdminState::Drain | AdminState::Maintenance, _) => Some(server.state_since),
    }
}
