//! Servers: verdicts, load, counters and checks.

use super::Traffic;
use super::counters::{CountersView, DeclarationsView};
use super::metrics::{Families, Labels};
use super::pool::CheckSpecView;
use super::recent::{RecentView, Times, TimesView, Trouble};
use crate::table::{self, Cell, Row, Tone, seconds};
use evener_core::Time;
use evener_core::counters::{CheckCounters, CounterSet, ServerCounters};
use evener_core::health::Verdict;
use evener_core::pool::{LastCheck, Server};
use evener_core::spec::AdminState;
use serde::{Deserialize, Serialize};

/// Counters of errors, which are added up in the row of a server, with their descriptions.
const ERRORS: [Trouble; 8] = [
    Trouble("connect_failures.refused", "connection", "refused"),
    Trouble("connect_failures.timeout", "connection attempt", "timed out"),
    Trouble("connect_failures.error", "connection attempt", "failed"),
    Trouble("resets", "connection", "reset"),
    Trouble("response_timeouts", "response", "not in time"),
    Trouble("responses_bad", "invalid or incomplete response", ""),
    Trouble("tls_failed", "TLS handshake", "failed"),
    Trouble("persistent_connection_faults", "persistent connection", "failed"),
];

/// A server.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ServerView {
    name: String,
    /// Resolved address.
    address: String,
    /// Source that lists the server, unless the configuration names the server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    source: Option<String>,
    tier: u8,
    /// The server takes clients only while the pool is below its quorum; absent for other servers.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    sorry: bool,
    weight: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hard: Option<u32>,
    /// `ready`, `drain` or `maintenance`.
    state: String,
    /// Seconds since the last change of the state.
    #[serde(default)]
    state_since_s: u64,
    /// Seconds until the server is ready again; absent if the state is permanent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    state_left_s: Option<u64>,
    /// `up`, `down`, or `unchecked` until the first check.
    verdict: String,
    /// Reason why the server is down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    /// Seconds since the last change of the verdict.
    since_s: u64,
    /// Number of connections and flows.
    active: u32,
    /// Number of associations of clients in the XDP plane or of connections in IPVS, as they were counted in the last
    /// seconds.
    #[serde(default)]
    associations: u32,
    /// Number of warm connections.
    warm: u32,
    /// The server's own active check; absent if the check of the pool applies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    check: Option<CheckSpecView>,
    /// The last check; absent before the first check, and without checks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_check: Option<CheckView>,
    counters: CountersView,
    /// Figures of the last 10 to 20 seconds.
    #[serde(default)]
    recent: RecentView,
    /// Seconds since the server was excluded by its checks or by an operator; `None` if it is not excluded. Only
    /// front ends use it: the API does not have it.
    #[serde(skip)]
    excluded_s: Option<u64>,
}

/// The last check of a server.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct CheckView {
    passed: bool,
    /// Reason why the check failed; absent if it passed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    /// Seconds since the end of the check.
    ago_s: f64,
    /// Seconds that the check took.
    took_s: f64,
}

impl CheckView {
    fn new(check: &LastCheck, now: Time) -> Self {
        Self {
            passed: check.failure.is_none(),
            reason: check.failure.clone(),
            ago_s: (now.since(check.at).as_secs_f64() * 10.0).round() / 10.0,
            took_s: (check.took.as_secs_f64() * 1e6).round() / 1e6,
        }
    }

    fn text(&self) -> String {
        let (ago, took) = (table::time(self.ago_s), table::time(self.took_s));
        match &self.reason {
            Some(reason) => format!("last check failed {ago} ago after {took}: {reason}"),
            None => format!("last check passed {ago} ago in {took}"),
        }
    }
}

impl ServerView {
    /// Describes a server. `source` is the source that lists it.
    pub(super) fn new(server: &Server, source: Option<String>, now: Time) -> Self {
        Self {
            name: server.spec.name.to_string(),
            address: server.target.to_string(),
            source,
            tier: server.spec.tier,
            sorry: server.spec.is_sorry,
            weight: server.spec.weight,
            max: server.spec.limits.soft,
            hard: server.spec.limits.hard,
            state: server.state.name().into(),
            state_since_s: now.since(server.state_since).as_secs(),
            state_left_s: server.state_until.map(|until| until.since(now).as_secs()),
            verdict: server.health.verdict().name().into(),
            reason: server.health.reason().map(str::to_owned),
            since_s: now.since(server.since).as_secs(),
            active: server.live.occupancy.active(),
            associations: server.live.associations.load(std::sync::atomic::Ordering::Relaxed),
            warm: server.live.warm.active(),
            check: server.spec.check.as_deref().map(CheckSpecView::new),
            last_check: server.observed.last_check().map(|check| CheckView::new(check, now)),
            counters: CountersView::new(&server.live.counters).with(&server.live.check_counters),
            recent: RecentView::new(&server.growth(now)),
            excluded_s: excluded_since(server).map(|since| now.since(since).as_secs()),
        }
    }

    /// Adds the metrics.
    pub(super) fn add_to(&self, families: &mut Families, pool: &Labels) {
        let labels = pool.with("server", &self.name);
        families.set(
            "server_",
            &[ServerCounters::DECLARED, CheckCounters::DECLARED],
            &self.counters,
            &labels,
        );
        let is_up = u8::from(self.verdict != Verdict::Down.name());
        families.gauge("evener_server_up", "0 if checks or failures marked the server down.", &labels, is_up);
        let help = "1 for the state that is set by the configuration or by operators, 0 for others.";
        for state in AdminState::ALL {
            let is_set = u8::from(self.state == state.name());
            families.gauge("evener_server_state", help, &labels.with("state", state.name()), is_set);
        }
        families.gauge("evener_server_weight", "Weight.", &labels, self.weight);
        families.gauge("evener_server_active", "Open connections, requests and flows.", &labels, self.active);
        let help = "Associations and connections in the kernel.";
        families.gauge("evener_server_associations_active", help, &labels, self.associations);
        if let Some(most) = self.hard.or(self.max) {
            families.gauge("evener_server_active_max", "Maximum of the active ones.", &labels, most);
        }
        if let Some(check) = &self.last_check {
            let passed = u8::from(check.passed);
            families.gauge("evener_server_check_passed", "1 if the last check passed.", &labels, passed);
            let help = "Duration of the last check.";
            families.gauge("evener_server_check_duration_seconds", help, &labels, check.took_s);
        }
    }

    /// Returns the headings of the rows of servers.
    pub(super) fn heading(traffic: Traffic) -> Vec<&'static str> {
        if traffic == Traffic::Xdp {
            return vec!["SERVER", "<STATE", "ACTIVE", traffic.heading(), "/S", "FLOWS", "IN", "OUT"];
        }
        let mut heading = vec!["SERVER", "<STATE", "ACTIVE", traffic.heading(), "/S"];
        heading.extend((traffic == Traffic::Http).then_some("5XX"));
        heading.extend(["ERRORS", "P50", "P95"]);
        heading.extend(
            matches!(traffic, Traffic::Tcp | Traffic::Udp).then_some(["IN", "OUT"]).into_iter().flatten(),
        );
        heading
    }

    /// Returns the row of the server, with troubles below it. `usual` is the median response time of the servers
    /// of the pool.
    pub(super) fn row(&self, traffic: Traffic, usual: Option<f64>) -> Row {
        let recent = &self.recent;
        let times = self.times(traffic);
        let is_slow = times.zip(usual).is_some_and(|(times, usual)| is_slow(times.median_and_p95().0, usual));
        let time = |seconds: Option<f64>| {
            Cell::from(seconds.map_or_else(|| "-".into(), table::time)).toned_if(is_slow, Tone::Warning)
        };
        let errors = |count: &dyn Fn(&str) -> u64| ERRORS.iter().map(|error| count(error.0)).sum::<u64>();
        let new_errors = errors(&|name| recent.value(name));
        let limits = [self.max, self.hard].into_iter().flatten().map(|limit| format!("/{limit}"));
        let is_full = self.max.or(self.hard).is_some_and(|limit| self.active >= limit);
        let mut cells = vec![
            self.state_cell(),
            Cell::from(format!("{}{}", self.active, limits.collect::<String>()))
                .toned_if(is_full, Tone::Warning),
            Cell::from(table::count(self.counters.served(traffic))),
            Cell::from(table::rate(recent.rate(traffic.counter()))),
        ];
        if traffic == Traffic::Xdp {
            // The planes of the kernel see neither errors nor times.
            cells[1] = self.associations.to_string().into();
            cells.push(table::count(self.counters.sum(&["flows", "connections"])).into());
            cells.extend([self.bytes_in(), self.bytes_out()].map(|bytes| table::short_bytes(bytes).into()));
            let mut row = Row::new(&*self.name, cells).with_remark(&self.remark());
            row.add_details(self.troubles().into_iter());
            return row;
        }
        if traffic == Traffic::Http {
            cells.push(self.cell_of_5xx());
        }
        let all_errors = table::count(errors(&|name| self.counters.value(name)));
        cells.push(Cell::from(all_errors).toned_if(new_errors > 0, Tone::Bad));
        cells.push(time(times.map(|times| times.median_and_p95().0)));
        cells.push(time(times.map(|times| times.median_and_p95().1)));
        if matches!(traffic, Traffic::Tcp | Traffic::Udp) {
            cells.extend(
                [self.bytes_in(), self.bytes_out()].map(|bytes| Cell::from(table::short_bytes(bytes))),
            );
        }
        let mut row = Row::new(&*self.name, cells).with_remark(&self.remark());
        row.add_details(self.troubles().into_iter());
        row
    }

    /// Returns the number of responses with 5xx, with their recent share of the responses.
    fn cell_of_5xx(&self) -> Cell {
        let total = table::count(self.counters.value("responses_5xx"));
        let (bad, all) = (self.recent.value("responses_5xx"), self.recent.value("responses"));
        if bad == 0 {
            return total.into();
        }
        let percent = 100.0 * bad as f64 / all.max(bad) as f64;
        let share = if percent < 1.0 { "<1".into() } else { format!("{percent:.0}") };
        Cell::new(format!("{total} ({share}%)"), Tone::Bad)
    }

    /// Returns the recent response times. They are connection times for TCP.
    pub(super) fn times(&self, traffic: Traffic) -> Option<&TimesView> {
        self.recent.times(if traffic == Traffic::Tcp { Times::Connections } else { Times::Responses })
    }

    /// Returns the median of the recent response times.
    pub(super) fn median(&self, traffic: Traffic) -> Option<f64> {
        self.times(traffic).map(|times| times.median_and_p95().0)
    }

    /// Returns true if the server has its own check.
    pub(super) fn has_check(&self) -> bool {
        self.check.is_some()
    }

    /// Returns true if the server takes clients only while the pool is below its quorum.
    pub(super) fn is_sorry(&self) -> bool {
        self.sorry
    }

    /// Returns the address if it is not the name; weight and tier unless they are 1.
    pub(super) fn remark(&self) -> String {
        let address = (self.name != self.address).then(|| self.address.clone());
        let weight = (self.weight != 1).then(|| format!("weight {}", self.weight));
        let tier = (self.tier != 1).then(|| format!("tier {}", self.tier));
        let sorry = self.sorry.then(|| "sorry server".to_owned());
        [address, weight, tier, sorry].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Returns the administrative state if it is not `ready`, else the verdict, with the time since when.
    pub(super) fn state_cell(&self) -> Cell {
        let (word, since, tone) = match self.state_word() {
            "maintenance" => ("maint", self.state_since_s, Tone::Warning),
            "down" => ("down", self.since_s, Tone::Bad),
            "drain" => ("drain", self.state_since_s, Tone::Warning),
            "up" => ("up", self.since_s, Tone::Normal),
            verdict => (verdict, self.since_s, Tone::Warning),
        };
        Cell::new(format!("{word} {}", table::age(since)), tone)
    }

    /// Returns the administrative state if it is not `ready`, else the verdict. A server that drains and is down is
    /// down.
    pub(super) fn state_word(&self) -> &str {
        match (self.state.as_str(), self.verdict.as_str()) {
            ("maintenance", _) => "maintenance",
            ("drain", verdict) if verdict != "down" => "drain",
            (_, verdict) => verdict,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn tier(&self) -> u8 {
        self.tier
    }

    /// Returns lines about the troubles of the server.
    pub(super) fn troubles(&self) -> Vec<Cell> {
        let mut troubles = Vec::new();
        let left =
            self.state_left_s.map(|left| format!(", ready again in {}", seconds(left))).unwrap_or_default();
        match self.state.as_str() {
            "drain" => troubles.push(Cell::new(format!("draining: no new clients{left}"), Tone::Warning)),
            "maintenance" => {
                troubles.push(Cell::new(format!("in maintenance: no clients{left}"), Tone::Warning));
            }
            _ => {}
        }
        // A server in maintenance is not checked, so its last verdict is out of date.
        let is_checked = self.state != "maintenance";
        if let Some(reason) = self.reason.as_ref().filter(|_| is_checked && self.verdict == "down") {
            troubles.push(Cell::new(format!("down: {reason}"), Tone::Bad));
        } else if let Some(check) = self.last_check.as_ref().filter(|check| is_checked && !check.passed) {
            troubles.push(Cell::new(check.text(), Tone::Warning));
        }
        troubles.extend(self.recent.troubles(&ERRORS).map(|errors| Cell::new(errors, Tone::Bad)));
        troubles
    }

    /// Formats everything that is known about the server.
    pub(super) fn details(&self, declarations: &DeclarationsView) -> String {
        let line = |name: &str, text: String| {
            table::paragraph(&format!("{name}: {text}"), 2, Tone::Normal, table::Style::Plain)
        };
        let state = match self.state.as_str() {
            "ready" => "ready".into(),
            state => format!("{state} for {}", seconds(self.state_since_s)),
        };
        let mut text = line("address", self.address.clone());
        text += &line("state", format!("{state}; {} for {}", self.verdict, seconds(self.since_s)));
        text += &line("weight", format!("{}, tier {}", self.weight, self.tier));
        let limit = |limit: Option<u32>| limit.map_or_else(|| "none".into(), |limit| limit.to_string());
        let (max, hard) = (limit(self.max), limit(self.hard));
        text += &line("active", format!("{} connections and flows (max {max}, hard {hard})", self.active));
        text.extend((self.warm > 0).then(|| line("warm", format!("{} unused connections", self.warm))));
        text.extend(self.source.as_ref().map(|source| line("source", source.clone())));
        text.extend(self.check.as_ref().map(|check| line("own check", check.text())));
        text.extend(
            self.last_check.as_ref().filter(|check| check.passed).map(|check| line("check", check.text())),
        );
        for (name, of) in [("responses", Times::Responses), ("connections to it", Times::Connections)] {
            let times = self.recent.times(of).map(TimesView::text);
            let times = times.map(|times| format!("{times}, in the last {:.0} s", self.recent.seconds()));
            text.extend(times.map(|times| line(name, times)));
        }
        text + &self.counters.text(&self.recent, &|name| declarations.help_of_server(name))
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

    pub(super) fn has_address(&self, address: &str) -> bool {
        self.address == address
    }

    /// Returns true if the server can get new clients.
    pub(super) fn is_usable(&self) -> bool {
        self.verdict != "down" && self.state == "ready" && self.weight > 0
    }

    /// Returns true if the number of connections and flows is limited.
    pub(super) fn has_limit(&self) -> bool {
        self.max.is_some() || self.hard.is_some()
    }

    /// Returns the number of open connections and flows, or of associations in the kernel.
    pub(super) fn shown_active(&self, traffic: Traffic) -> u32 {
        if traffic == Traffic::Xdp { self.associations } else { self.active }
    }

    /// Returns the limit of the active ones, if there is one.
    pub(super) fn limit(&self) -> Option<u32> {
        self.max.or(self.hard)
    }

    pub(super) fn counters(&self) -> &CountersView {
        &self.counters
    }

    /// Returns the number of errors since the start.
    pub(super) fn errors(&self) -> u64 {
        ERRORS.iter().map(|error| self.counters.value(error.0)).sum()
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

/// Returns true if a median response time stands out: 5 times the usual time, and at least 5 ms.
fn is_slow(median: f64, usual: f64) -> bool {
    median >= 0.005 && median >= 5.0 * usual
}

/// Returns the time since which a server is excluded; `None` if it is not excluded.
fn excluded_since(server: &Server) -> Option<Time> {
    match (server.state, server.health.verdict()) {
        (AdminState::Ready, Verdict::Up | Verdict::Unchecked) => None,
        (AdminState::Ready, Verdict::Down) => Some(server.since),
        (AdminState::Drain | AdminState::Maintenance, _) => Some(server.state_since),
    }
}
