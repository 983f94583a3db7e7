//! `GET /v1/explain`: the server that a client of a service would get, and the reasons against the others, or
//! the reason why it would get none. It counts nothing and changes no state.

use super::{failed, gone};
use crate::supervisor::{Handle, Supervisor};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::acl::Access;
use evener_core::explain::{self as core, Entrance, Gate};
use evener_core::snapshot::Request;
use evener_core::spec::Protocol;
use evener_core::throttle::{Exceeded, Throttle};
use evener_core::{Random, Time};
use evener_proxy::{Refusal, Service, Settings};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Body of the response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Explained {
    pub(crate) service: String,
    /// Pool of the server that the client gets; absent when it gets none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) policy: Option<String>,
    pub(crate) client: IpAddr,
    /// True if the access list of the service admits the client.
    pub(crate) permitted: bool,
    /// The limit of `per_client` that the client reached: `connections`, `connection_rate` or `request_rate`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) limit: Option<String>,
    /// Action for a client that is not permitted or reached a limit: `drop`, `reject`, `tarpit` or `pool`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) refusal: Option<String>,
    /// Further facts that matter for the choice, in sentences.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    /// Server in the sticky table for this client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) sticky: Option<String>,
    /// True if the policy is random: the order differs from one request to the next.
    pub(crate) by_chance: bool,
    /// Candidates in their order, then the other servers.
    pub(crate) servers: Vec<ExplainedServer>,
}

impl Explained {
    /// Creates a response without any fact about the client.
    fn of(who: &WhoAsks) -> Self {
        Self {
            service: who.service.clone(),
            pool: None,
            policy: None,
            client: who.client,
            permitted: true,
            limit: None,
            refusal: None,
            notes: Vec::new(),
            sticky: None,
            by_chance: false,
            servers: Vec::new(),
        }
    }
}

/// Facts about one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExplainedServer {
    pub(crate) server: String,
    pub(crate) tier: u8,
    pub(crate) reason: String,
}

/// Query parameters of the request: the client and the target of its request.
#[derive(Debug, Deserialize)]
pub(super) struct WhoAsks {
    service: String,
    client: IpAddr,
    host: Option<String>,
    path: Option<String>,
}

pub(super) async fn explain(
    State(supervisor): State<Handle>,
    who: Result<Query<WhoAsks>, QueryRejection>,
) -> Response {
    let who = match who {
        Ok(Query(who)) => who,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    match supervisor.inspect(move |supervisor: &Supervisor| explained(supervisor, &who)).await {
        Some(Ok(explanation)) => Json(explanation).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

fn explained(supervisor: &Supervisor, who: &WhoAsks) -> Result<Explained, String> {
    let unknown = || format!("there is no service `{}`; `evener status` lists them", who.service);
    let service = supervisor.services.get(who.service.as_str()).ok_or_else(unknown)?;
    let settings = service.settings.load();
    let mut explained = Explained::of(who);
    if supervisor.is_draining() {
        explained.notes.push("the instance is shutting down: no new clients are accepted".into());
    }
    explained.notes.extend(full(service, &settings));
    let backend = match enter(&mut explained, service, &settings, supervisor.now()) {
        Some(Refusal::Backend(backend)) => Some(backend),
        Some(_) => return Ok(explained),
        None => routed(&mut explained, &settings, who),
    };
    if let Some(backend) = backend {
        choose(&mut explained, &settings, backend, supervisor.now());
    }
    Ok(explained)
}

/// Describes the limits of the service as a whole that are reached.
fn full(service: &Service, settings: &Settings) -> Vec<String> {
    let (live, options) = (&service.live, &settings.options);
    let bounds = [
        ("connections", live.connections.active(), Some(options.connections_max), "connections_max"),
        ("pending connects", live.pending.active(), options.pending_max, "pending_max"),
    ];
    let reached = |(what, active, bound, key): (&str, u32, Option<u32>, &str)| {
        let bound = bound.filter(|bound| active >= *bound)?;
        Some(format!("the service is full: {active} of {bound} {what} (`{key}`); new clients wait"))
    };
    bounds.into_iter().filter_map(reached).collect()
}

/// Checks admission and returns the refusal of a client that is not admitted.
fn enter(explained: &mut Explained, service: &Service, settings: &Settings, now: Time) -> Option<Refusal> {
    let client = explained.client;
    let serves_denied = matches!(settings.denied, Refusal::Backend(_));
    let (acl, throttle) = (settings.acl.as_deref(), settings.throttle.as_deref());
    explained.permitted = acl.is_none_or(|acl| acl.access(client) == Access::Permit);
    let gate = Gate { protocol: service.protocol, acl, serves_denied, throttle };
    let (refusal, why) = match (gate.entrance(client, now), throttle) {
        (Entrance::Denied, _) => {
            (settings.denied, "the access list of the service refuses this client".to_owned())
        }
        (Entrance::Exceeded(exceeded), Some(throttle)) => {
            explained.limit = Some(key_of(exceeded).into());
            let why = reached(exceeded, throttle, client, now);
            if service.protocol == Protocol::Dns {
                explained
                    .notes
                    .push(format!("{why}: its next connection is refused, its queries over UDP are not"));
                return None;
            }
            (settings.exceeded, why)
        }
        _ => return None,
    };
    let (word, fate) = fate(refusal, service.protocol, settings, explained.limit.is_some());
    explained.refusal = Some(word.into());
    explained.notes.push(format!("{why}: {fate}"));
    Some(refusal)
}

/// Returns the key of `per_client` for a limit.
fn key_of(exceeded: Exceeded) -> &'static str {
    match exceeded {
        Exceeded::Connections => "connections",
        Exceeded::ConnectionRate => "connection_rate",
        Exceeded::RequestRate => "request_rate",
    }
}

fn reached(exceeded: Exceeded, throttle: &Throttle, client: IpAddr, now: Time) -> String {
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

/// Describes a refusal with a word and a sentence.
fn fate(refusal: Refusal, protocol: Protocol, settings: &Settings, by_limit: bool) -> (&'static str, String) {
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

/// Returns the backend for a client that was admitted.
fn routed(explained: &mut Explained, settings: &Settings, who: &WhoAsks) -> Option<usize> {
    let (host, path) = (who.host.as_deref(), who.path.as_deref());
    let found = settings.routes.find(host.unwrap_or("").as_bytes(), path.unwrap_or("/").as_bytes()).copied();
    let is_specific = host.is_some() || path.is_some();
    if found.is_some() && (is_specific || settings.default_backend.is_none()) {
        explained.notes.push("a route selects this pool".into());
        return found;
    }
    if !settings.routes.is_empty() && !is_specific {
        explained
            .notes
            .push("routes select other pools for some hosts or paths: give --host and --path".into());
    }
    let itself = settings.http.as_ref().and_then(|http| {
        let redirect = http.redirect.as_ref().map(|_| "redirect");
        redirect.or(http.respond.as_ref().map(|_| "respond"))
    });
    if let Some(key) = itself {
        explained.notes.push(format!("the service sends a local response (`{key}`) without a server"));
        return None;
    }
    let backend = found.filter(|_| is_specific).or(settings.default_backend);
    if backend.is_none() {
        explained.notes.push("no route matches, and the service has no default pool".into());
    }
    backend
}

/// Explains the choice among the servers of a backend.
fn choose(explained: &mut Explained, settings: &Settings, backend: usize, now: Time) {
    let Some(backend) = settings.backends.get(backend) else { return };
    let snapshot = backend.pool.load();
    let request = Request::of(explained.client, now);
    let choice = core::explain(&snapshot, &request, &mut Random::seeded(now.as_nanos()));
    if snapshot.cookie.is_some() {
        explained
            .notes
            .push("the pool is sticky by cookie: a client that sends a cookie gets the server in it".into());
    }
    explained.pool = Some(snapshot.pool.to_string());
    explained.policy = Some(snapshot.policy.name().into());
    explained.sticky = choice.sticky.map(|server| server.to_string());
    explained.by_chance = choice.by_chance;
    let row = |row: core::Row| ExplainedServer {
        server: row.server.to_string(),
        tier: row.tier,
        reason: row.reason.to_string(),
    };
    explained.servers = choice.servers.into_iter().map(row).collect();
}
