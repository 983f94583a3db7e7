//! Pools and servers in the status: verdicts, load and counters.

use super::Served;
use super::counters::CountersView;
use crate::table::{bytes, seconds, table};
use evener_core::Time;
use evener_core::pool::{Pool, Server};
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
pub(super) struct PoolView {
    name: String,
    policy: String,
    /// Number of clients in the sticky table; absent if the pool has no sticky table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky_clients: Option<usize>,
    servers: Vec<ServerView>,
}

impl PoolView {
    pub(super) fn new(pool: &Pool, now: Time) -> Self {
        Self {
            name: pool.spec().name.to_string(),
            policy: pool.spec().policy.name().into(),
            sticky_clients: pool.remembered(),
            servers: pool.servers().iter().map(|server| ServerView::new(server, now)).collect(),
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
        format!("\npool {} ({}{sticky})\n{}", self.name, self.policy, table(&HEADING, &rows))
    }
}

/// A server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerView {
    name: String,
    /// Resolved address.
    address: String,
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
}

impl ServerView {
    fn new(server: &Server, now: Time) -> Self {
        Self {
            name: server.spec.name.to_string(),
            address: server.target.to_string(),
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
            bytes(self.counters.value("bytes_in")),
            bytes(self.counters.value("bytes_out")),
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

    /// Returns the total number of connections or of datagrams from clients, whichever is larger.
    pub(crate) fn served(&self) -> u64 {
        self.counters.value("connections").max(self.counters.value("datagrams_in"))
    }
}
