//! The response bodies of the admin API, made from the state of the supervisor.

use crate::supervisor::{Rule, Supervisor};
use evener_core::acl::Access;
use evener_core::counters::{CounterSet, Sharded};
use evener_core::pool::Server;
use evener_proxy::Service;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The program's version.
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Seconds since the start.
    pub(crate) uptime_s: u64,
    pub(crate) workers: usize,
    /// True if new clients are no longer accepted.
    pub(crate) draining: bool,
    #[serde(default)]
    pub(crate) descriptors: DescriptorsView,
    pub(crate) services: Vec<ServiceView>,
    pub(crate) pools: Vec<PoolView>,
}

/// Use of file descriptors by the process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DescriptorsView {
    /// Maximum number of open descriptors; absent when there is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) limit: Option<u64>,
    /// Number in use by clients, flows and connections to servers, including those reserved for connects.
    pub(crate) used: u64,
    /// Number reserved for everything else: this socket, checks, reloads.
    pub(crate) reserved: u64,
    /// Maximum number of connections that the descriptors allow, at two descriptors each; absent when there
    /// is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) connections_max: Option<u64>,
}

fn descriptors() -> DescriptorsView {
    let usage = evener_proxy::descriptors::usage();
    DescriptorsView {
        limit: usage.limit,
        used: usage.clients,
        reserved: usage.reserved,
        connections_max: usage.limit.map(|_| usage.connections_max),
    }
}

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServiceView {
    pub(crate) name: String,
    pub(crate) protocol: String,
    /// True if clients connect with TLS.
    #[serde(default)]
    pub(crate) tls: bool,
    /// Listen addresses, as bound.
    pub(crate) listen: Vec<String>,
    /// Pool for clients that no route matches; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pool: Option<String>,
    /// Number of open TCP connections.
    pub(crate) connections_active: u32,
    /// Number of connects to servers in progress; counted where `pending_max` is set.
    #[serde(default)]
    pub(crate) connects_pending: u32,
    /// Number of warm connections to servers, open and unused.
    #[serde(default)]
    pub(crate) warm: u32,
    /// Number of UDP flows.
    pub(crate) flows_active: u32,
    /// Response cache; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) cache: Option<CacheView>,
    /// All counters since the start, including those that are 0.
    pub(crate) counters: BTreeMap<String, u64>,
}

/// The response cache of a DNS service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CacheView {
    /// Number of entries.
    pub(crate) entries: usize,
    /// Bytes that the entries use.
    pub(crate) bytes: u64,
    /// Queries since the start that an entry served, including expired entries.
    pub(crate) hits: u64,
    /// Queries since the start without an entry.
    pub(crate) misses: u64,
}

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PoolView {
    pub(crate) name: String,
    pub(crate) policy: String,
    /// Number of clients in the sticky table; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) sticky_clients: Option<usize>,
    pub(crate) servers: Vec<ServerView>,
}

/// A server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerView {
    pub(crate) name: String,
    /// Resolved address.
    pub(crate) address: String,
    pub(crate) tier: u8,
    pub(crate) weight: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hard: Option<u32>,
    /// `ready`, `drain` or `maintenance`.
    pub(crate) state: String,
    /// `up`, `down`, or `unchecked` until the first check.
    pub(crate) verdict: String,
    /// Reason why the server is down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) reason: Option<String>,
    /// Seconds since the last change of the verdict.
    pub(crate) since_s: u64,
    /// Number of connections and flows.
    pub(crate) active: u32,
    /// Number of warm connections.
    pub(crate) warm: u32,
    pub(crate) counters: BTreeMap<String, u64>,
}

/// Returns the state of the whole instance.
pub(crate) fn status(supervisor: &Supervisor) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_s: supervisor.now().since(evener_core::Time::ZERO).as_secs(),
        workers: supervisor.workers(),
        draining: supervisor.is_draining(),
        descriptors: descriptors(),
        services: services(supervisor),
        pools: pools(supervisor),
    }
}

fn services(supervisor: &Supervisor) -> Vec<ServiceView> {
    let view = |spec: &evener_core::spec::ServiceSpec| {
        let service = supervisor.services.get(&spec.name)?;
        let listeners = supervisor.listeners.values().filter(|listener| listener.service == spec.name);
        // One address may have a TCP and a UDP listener; it is listed once.
        let listen: BTreeSet<&evener_core::Endpoint> = listeners.map(|listener| &listener.bound).collect();
        Some(ServiceView {
            name: spec.name.to_string(),
            protocol: spec.protocol.name().into(),
            tls: spec.tls.is_some(),
            listen: listen.iter().map(ToString::to_string).collect(),
            pool: spec.pool.as_ref().map(ToString::to_string),
            connections_active: service.live.connections.active(),
            connects_pending: service.live.pending.active(),
            warm: service.live.warm.active(),
            flows_active: service.live.flows.load(Ordering::Relaxed),
            cache: cache(service),
            counters: totals(&service.live.counters),
        })
    };
    supervisor.config.spec.services.iter().filter_map(view).collect()
}

fn cache(service: &Service) -> Option<CacheView> {
    let settings = service.settings.load();
    let stats = settings.dns.as_ref()?.cache.as_ref()?.stats();
    let counters = &service.live.counters;
    let hits = counters.total("cache_hits") + counters.total("cache_stale");
    let misses = counters.total("cache_misses");
    Some(CacheView { entries: stats.entries, bytes: stats.bytes, hits, misses })
}

fn pools(supervisor: &Supervisor) -> Vec<PoolView> {
    let view = |spec: &evener_core::spec::PoolSpec| {
        let pool = &supervisor.pools.get(&spec.name)?.pool;
        Some(PoolView {
            name: spec.name.to_string(),
            policy: spec.policy.name().into(),
            sticky_clients: pool.remembered(),
            servers: pool.servers().iter().map(|one| server(supervisor, one)).collect(),
        })
    };
    supervisor.config.spec.pools.iter().filter_map(view).collect()
}

fn server(supervisor: &Supervisor, server: &Server) -> ServerView {
    ServerView {
        name: server.spec.name.to_string(),
        address: server.target.to_string(),
        tier: server.spec.tier,
        weight: server.spec.weight,
        max: server.spec.limits.soft,
        hard: server.spec.limits.hard,
        state: server.state.name().into(),
        verdict: server.health.verdict().name().into(),
        reason: server.health.reason().map(str::to_owned),
        since_s: supervisor.now().since(server.since).as_secs(),
        active: server.live.occupancy.active(),
        warm: server.live.warm.active(),
        counters: totals(&server.live.counters),
    }
}

fn totals<C: CounterSet>(counters: &Sharded<C>) -> BTreeMap<String, u64> {
    counters.totals().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// An access rule that the operator added at run time, in `GET /v1/access`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RuleView {
    pub(crate) service: String,
    pub(crate) prefix: String,
    /// `permit` or `deny`.
    pub(crate) action: String,
    /// Seconds until the rule expires; absent for a permanent rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) left_s: Option<u64>,
}

/// Returns the access rules that the operator added at run time.
pub(crate) fn access(supervisor: &Supervisor) -> Vec<RuleView> {
    let now = supervisor.now();
    let of_service = |(service, rules): (&std::sync::Arc<str>, &Vec<Rule>)| {
        let view = |rule: &Rule| RuleView {
            service: service.to_string(),
            prefix: rule.prefix.to_string(),
            action: if rule.access == Access::Deny { "deny" } else { "permit" }.into(),
            left_s: rule.until.map(|until| until.since(now).as_secs()),
        };
        rules.iter().map(view).collect::<Vec<_>>()
    };
    supervisor.access.iter().flat_map(of_service).collect()
}
