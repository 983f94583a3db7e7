//! The explanation of a choice: the server that a client of a service would get, and the reasons against the other
//! servers, or the reason why the client would get no server. An explanation changes neither counters nor state.

mod in_kernel;
mod recording;

pub(crate) use recording::RecordedChoice;

use crate::table::{Style, Tone, paragraph, table, time};
use evener_core::acl::{Access, Prefix};
use evener_core::budget::BudgetUse;
use evener_core::explain::{self as core, Entrance, Gate};
use evener_core::recording::ChoiceInputs;
use evener_core::snapshot::{NoServer, Quorum, Request};
use evener_core::spec::{Policy, Protocol};
use evener_core::throttle::{Exceeded, Throttle};
use evener_core::{Random, Time};
use evener_proxy::{Refusal, Service, Settings};
use evener_xdp::associations::AssociationFilter;
use recording::InputsView;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The client whose choice is explained, and the target of its request.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainQuery {
    service: String,
    #[param(value_type = String)]
    client: IpAddr,
    host: Option<String>,
    path: Option<String>,
    /// The inputs of the choice are wanted, too.
    #[serde(default)]
    record: bool,
}

impl ExplainQuery {
    /// Creates a query for a client.
    #[cfg(test)]
    fn of(service: &str, client: IpAddr) -> Self {
        Self { service: service.into(), client, host: None, path: None, record: false }
    }

    /// Returns the name of the service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Returns the conditions on the associations of the client.
    pub(crate) fn association_filter(&self) -> AssociationFilter {
        let length = if self.client.is_ipv4() { 32 } else { 128 };
        let clients = Some(Prefix::new(self.client, length));
        AssociationFilter { service: Some(self.service.as_str().into()), clients, server: None }
    }
}

/// The server that a client would get, with the reasons.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Explanation {
    service: String,
    /// Pool of the server that the client gets; absent if the client gets no server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    policy: Option<String>,
    #[schema(value_type = String)]
    client: IpAddr,
    /// True if the access list of the service admits the client.
    permitted: bool,
    /// The limit of `per_client` that the client reached: `connections`, `connection_rate` or `request_rate`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    limit: Option<String>,
    /// Action for a client that is not permitted or reached a limit: `drop`, `reject`, `tarpit` or `pool`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    refusal: Option<String>,
    /// Result as a code: `chosen`, `queued`, `refused`, `local_response`, `no_route`, or the reason why there is
    /// no server: `no_servers`, `down`, `full`, `denied`, `no_failover`.
    #[serde(default)]
    result: String,
    /// Further facts that affect the choice, one sentence each.
    #[serde(default)]
    notes: Vec<String>,
    /// Codes of the facts, in the same order.
    #[serde(default)]
    note_codes: Vec<String>,
    /// Server in the sticky table for this client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky: Option<String>,
    /// True if the policy is random, so that the order may differ for the next request.
    by_chance: bool,
    /// Candidates in the order in which they would be tried, then the other servers.
    servers: Vec<ServerReason>,
    /// Inputs of the choice, if they were wanted and a server is to be chosen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<Object>)]
    inputs: Option<Box<InputsView>>,
    /// Servers whose associations move, because they take no clients.
    #[serde(skip)]
    moving: Vec<String>,
}

impl Explanation {
    /// Creates an explanation for a permitted client, without pool, servers and notes.
    pub(crate) fn new(query: &ExplainQuery) -> Self {
        Self {
            service: query.service.clone(),
            pool: None,
            policy: None,
            client: query.client,
            permitted: true,
            limit: None,
            refusal: None,
            result: String::new(),
            notes: Vec::new(),
            note_codes: Vec::new(),
            sticky: None,
            by_chance: false,
            servers: Vec::new(),
            inputs: None,
            moving: Vec::new(),
        }
    }

    /// Adds a note that the instance accepts no new clients.
    pub(crate) fn note_draining(&mut self) {
        self.note("draining", "the instance is shutting down: no new clients are accepted");
    }

    /// Adds the server that the client would get from `service` now, and the reasons.
    pub(crate) fn explain(&mut self, service: &Service, query: &ExplainQuery, now: Time) {
        let settings = service.settings.load();
        reached_limits(service, &settings).into_iter().for_each(|note| self.note("service_full", note));
        let backend = match self.admit(service, &settings, now) {
            Some(Refusal::Backend(backend)) => Some(backend),
            Some(_) => None,
            None => self.route(&settings, query),
        };
        if let Some(backend) = backend {
            self.choose(service.live.protocol, &settings, backend, (now, query.record));
        }
    }

    fn note(&mut self, code: &str, note: impl Into<String>) {
        self.note_codes.push(code.into());
        self.notes.push(note.into());
    }

    /// Checks admission. Returns the refusal of the client, or `None` if the client is admitted.
    fn admit(&mut self, service: &Service, settings: &Settings, now: Time) -> Option<Refusal> {
        let client = self.client;
        let serves_denied = matches!(settings.denied, Refusal::Backend(_));
        let (acl, throttle) = (settings.acl.as_deref(), settings.throttle.as_deref());
        self.permitted = acl.is_none_or(|acl| acl.access(client) == Access::Permit);
        let gate = Gate { protocol: service.live.protocol, acl, serves_denied, throttle };
        let (refusal, why) = match (gate.entrance(client, now), throttle) {
            (Entrance::Denied, _) => {
                (settings.denied, "the access list of the service refuses this client".to_owned())
            }
            (Entrance::Exceeded(exceeded), Some(throttle)) => {
                self.limit = Some(key_of(exceeded).into());
                let why = exceeded_limit(exceeded, throttle, client, now);
                if service.live.protocol == Protocol::Dns {
                    self.note(
                        "limited",
                        format!("{why}: its next connection is refused, its queries over UDP are not"),
                    );
                    return None;
                }
                (settings.exceeded, why)
            }
            _ => return None,
        };
        let (word, effect) = effect(refusal, service.live.protocol, settings, self.limit.is_some());
        self.refusal = Some(word.into());
        self.note(if self.limit.is_some() { "limited" } else { "denied" }, format!("{why}: {effect}"));
        self.result = "refused".into();
        Some(refusal)
    }

    /// Returns the backend for an admitted client. Returns `None` if the client gets a local response or no
    /// route matches.
    fn route(&mut self, settings: &Settings, query: &ExplainQuery) -> Option<usize> {
        let (host, path) = (query.host.as_deref(), query.path.as_deref());
        let found =
            settings.routes.find(host.unwrap_or("").as_bytes(), path.unwrap_or("/").as_bytes()).copied();
        let is_specific = host.is_some() || path.is_some();
        if found.is_some() && (is_specific || settings.default_backend.is_none()) {
            self.note("route", "a route selects this pool");
            return found;
        }
        if !settings.routes.is_empty() && !is_specific {
            self.note(
                "routes_exist",
                "routes select other pools for some hosts or paths: give --host and --path",
            );
        }
        let local_response = settings.http.as_ref().and_then(|http| {
            let redirect = http.redirect.as_ref().map(|_| "redirect");
            redirect.or(http.respond.as_ref().map(|_| "respond"))
        });
        if let Some(key) = local_response {
            self.result = "local_response".into();
            self.note(key, format!("the service sends a local response (`{key}`) without a server"));
            return None;
        }
        let backend = found.filter(|_| is_specific).or(settings.default_backend);
        if backend.is_none() {
            self.result = "no_route".into();
            self.note("no_route", "no route matches, and the service has no default pool");
        }
        backend
    }

    /// Explains the choice among the servers of a backend, and records its inputs if they are wanted.
    fn choose(
        &mut self,
        protocol: Protocol,
        settings: &Settings,
        backend: usize,
        (now, record): (Time, bool),
    ) {
        let Some(backend) = settings.backends.get(backend) else { return };
        let snapshot = backend.pool.load();
        let request = Request::of(self.client, now);
        let seed = now.as_nanos();
        let inputs = record.then(|| ChoiceInputs::of(&snapshot, &request, seed));
        // Workers change the inputs at any time, so the recorded ones are explained.
        let choice = match &inputs {
            Some(inputs) => inputs.explain(),
            None => core::explain(&snapshot, &request, &mut Random::seeded(seed)),
        };
        if snapshot.cookie.is_some() {
            self.note(
                "cookie",
                "the pool is sticky by cookie: a client that sends a cookie gets the server in it",
            );
        }
        if let Some(usage) = snapshot.retry_budget.usage(now).filter(BudgetUse::is_used_up) {
            self.note("retry_budget_used_up", format!(
                "the retry budget is used up: {} of at most {} retries in the last 10 s (`retry_budget`); a client whose server fails gets no other server",
                usage.retries, usage.retries_max
            ));
        }
        self.inputs = inputs.map(|inputs| Box::new(InputsView::new(&inputs, protocol, self.notes.len())));
        self.derive(protocol, &choice, &snapshot.pool, snapshot.policy);
    }

    /// Describes a choice.
    fn derive(&mut self, protocol: Protocol, choice: &core::Explanation, pool: &str, policy: Policy) {
        self.add_quorum(choice.quorum);
        self.conclude(protocol, choice);
        self.pool = Some(pool.to_owned());
        self.policy = Some(policy.name().into());
        self.sticky = choice.sticky.as_ref().map(ToString::to_string);
        self.by_chance = choice.by_chance;
        let reason = |row: &core::Row| ServerReason {
            server: row.server.to_string(),
            tier: row.tier,
            score: row.score,
            code: row.reason.code().into(),
            rank: row.reason.rank().map(|(rank, _)| rank),
            why: row.reason.rank().map(|(_, why)| why.name().into()),
            reason: row.reason.to_string(),
        };
        self.servers = choice.servers.iter().map(reason).collect();
    }

    /// Notes that the pool is below its quorum.
    fn add_quorum(&mut self, quorum: Option<Quorum>) {
        if let Some(Quorum { spec, weight, is_met: false }) = quorum {
            self.note("below_quorum", format!(
                "the pool is below its quorum: usable servers have the weight {weight}, the quorum is {}; the sorry server comes first, if there is one",
                spec.weight
            ));
        }
    }

    /// Records the result of the choice: a server, the queue, or the reason why there is neither.
    fn conclude(&mut self, protocol: Protocol, choice: &core::Explanation) {
        // Datagrams and queries do not wait.
        let queue = choice.queue.filter(|_| matches!(protocol, Protocol::Tcp | Protocol::Http));
        let numbers = queue.map(|queue| {
            let timeout = humantime::format_duration(queue.spec.timeout);
            format!("{} of {} clients wait, each for at most {timeout}", queue.waiting, queue.spec.size)
        });
        let result = match (choice.refusal, numbers) {
            (refusal, Some(numbers)) if choice.waits() => {
                let why = match refusal {
                    Some(_) => "every usable server is at its limit",
                    None => "other clients wait already",
                };
                self.note("queued", format!("{why}: the client waits in the queue of the pool ({numbers})"));
                "queued"
            }
            (Some(NoServer::Full), Some(numbers)) => {
                self.note(
                    "queue_full",
                    format!("every usable server is at its limit, and the queue is full: {numbers}"),
                );
                "full"
            }
            (Some(refusal), _) => {
                self.note(core::code_of(refusal), format!("the client gets no server: {refusal}"));
                core::code_of(refusal)
            }
            (None, _) => "chosen",
        };
        self.result = result.into();
    }

    /// Formats the explanation for people.
    pub(crate) fn text(&self) -> String {
        let Self { service, client, .. } = self;
        let mut text = format!("client {client} of service {service}");
        if let (Some(pool), Some(policy)) = (&self.pool, &self.policy) {
            text += &format!(", pool {pool}, policy {policy}");
        }
        text += "\n";
        self.notes.iter().for_each(|note| text += &paragraph(note, 0, Tone::Normal, Style::Plain));
        if let Some(server) = &self.sticky {
            let is_associated = self.note_codes.iter().any(|code| code == "associated");
            if !is_associated {
                text += &format!("the sticky table names {server}\n");
            }
        }
        if self.by_chance && !self.note_codes.iter().any(|code| code == "by_turn") {
            text += "the policy is random: the order may differ for the next client\n";
        }
        if self.pool.is_none() {
            return text;
        }
        let has_scores = self.servers.iter().any(|server| server.score.is_some());
        let is_cost = self.policy.as_deref() == Some("ewma");
        let rows: Vec<_> = self.servers.iter().map(|server| server.row(has_scores, is_cost)).collect();
        let heading: &[&str] =
            if has_scores { &["SERVER", "TIER", "SCORE", "REASON"] } else { &["SERVER", "TIER", "REASON"] };
        text + "\n" + &table(heading, &rows)
    }
}

/// Facts about one server.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct ServerReason {
    server: String,
    tier: u8,
    /// Number by which the policy compares the server: `least_conn`, `least_outstanding` and `p2c` the connections for
    /// a weight of 1, with one more; `ewma` these times the latency in nanoseconds; the lowest wins. `hash`: a number
    /// from the client and the server, of which the highest wins. Absent for other policies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    score: Option<f64>,
    /// Code of the reason: `chosen`, `candidate`, `later_candidate`, `full`, `denied`, `draining`, `weight_zero`,
    /// `down`, `maintenance`, `sorry_server` or `no_failover`.
    #[serde(default)]
    code: String,
    /// Position of a candidate in the order in which servers would be tried; the chosen server has 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rank: Option<usize>,
    /// Reason for the rank of a candidate: `sticky`, `policy`, `unchecked` or `last_resort`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    why: Option<String>,
    /// The reason in words.
    reason: String,
}

impl ServerReason {
    /// Returns the row, with the score if there are scores. A score that is a cost is a time.
    fn row(&self, has_scores: bool, is_cost: bool) -> Vec<String> {
        let score = |score: f64| match score {
            score if is_cost => time(score / 1e9),
            score if score < 1000.0 => format!("{score:.3}"),
            score => format!("{score:.0}"),
        };
        let score = has_scores.then(|| self.score.map_or_else(|| "-".into(), score));
        let mut row = vec![self.server.clone(), self.tier.to_string()];
        row.extend(score);
        row.push(self.reason.clone());
        row
    }
}

/// Describes each limit of the whole service that has been reached.
fn reached_limits(service: &Service, settings: &Settings) -> Vec<String> {
    let (live, options) = (&service.live, &settings.options);
    let bounds = [
        ("connections", live.connections.active(), Some(options.connections_max), "connections_max"),
        ("pending connection attempts", live.pending.active(), options.pending_max, "pending_max"),
    ];
    let reached = |(what, active, bound, key): (&str, u32, Option<u32>, &str)| {
        let bound = bound.filter(|bound| active >= *bound)?;
        Some(format!("the service is full: {active} of {bound} {what} (`{key}`); new clients wait"))
    };
    bounds.into_iter().filter_map(reached).collect()
}

/// Returns the key of `per_client` that sets the exceeded limit.
fn key_of(exceeded: Exceeded) -> &'static str {
    match exceeded {
        Exceeded::Connections => "connections",
        Exceeded::ConnectionRate => "connection_rate",
        Exceeded::RequestRate => "request_rate",
    }
}

/// Describes a limit that the client exceeded.
fn exceeded_limit(exceeded: Exceeded, throttle: &Throttle, client: IpAddr, now: Time) -> String {
    let spec = throttle.spec();
    let rate = match exceeded {
        Exceeded::Connections => {
            let (active, most) = (throttle.used(client, now).connections, spec.connections.unwrap_or(0));
            return format!(
                "this client has {active} of at most {most} connections (`per_client.connections`)"
            );
        }
        Exceeded::ConnectionRate => spec.connection_rate,
        Exceeded::RequestRate => spec.request_rate,
    };
    let rate = rate.map(|rate| rate.to_string()).unwrap_or_default();
    format!("this client exceeded `per_client.{} = \"{rate}\"`", key_of(exceeded))
}

/// Returns the name of a refusal, and a description of its effect.
fn effect(
    refusal: Refusal,
    protocol: Protocol,
    settings: &Settings,
    by_limit: bool,
) -> (&'static str, String) {
    match refusal {
        Refusal::Drop if protocol == Protocol::Udp => ("drop", "the client's datagrams are dropped".into()),
        Refusal::Drop => ("drop", "the connection is closed without a response".into()),
        Refusal::Reject => {
            let how = match protocol {
                Protocol::Dns => "queries get REFUSED, and connections are reset".into(),
                Protocol::Http if settings.tls.is_none() => {
                    format!("requests get status {}", if by_limit { 429 } else { 403 })
                }
                _ => "the connection is reset".into(),
            };
            ("reject", how)
        }
        Refusal::Tarpit(time) => (
            "tarpit",
            format!("the connection is held for {}, then closed", humantime::format_duration(time)),
        ),
        Refusal::Backend(backend) => {
            let pool = settings.backends.get(backend).map(|backend| backend.pool.load().pool.to_string());
            ("pool", format!("the client gets a server of pool {}", pool.unwrap_or_default()))
        }
    }
}
