//! Services: their listen addresses, load, caches and counters.

use super::Served;
use super::counters::CountersView;
use super::pool::PoolView;
use crate::planes::RunningService;
use crate::table::bytes;
use evener_core::Endpoint;
use evener_core::spec::{Protocol, ServiceSpec};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

pub(super) const HEADING: [&str; 11] = [
    "SERVICE",
    "PROTOCOL",
    "LISTEN",
    "POOL",
    "ACTIVE",
    "TOTAL",
    "IN",
    "OUT",
    "NO SERVER",
    "DENIED",
    "DROPPED",
];

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServiceView {
    name: String,
    protocol: String,
    /// True if clients connect with TLS.
    #[serde(default)]
    tls: bool,
    /// Listen addresses, with the ports that the system chose.
    listen: Vec<String>,
    /// Pool for clients that no route matches; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    /// Number of open TCP connections.
    connections_active: u32,
    /// Number of connection attempts to servers in progress; counted only if `pending_max` is set.
    #[serde(default)]
    connects_pending: u32,
    /// Number of warm connections to servers, open and unused.
    #[serde(default)]
    warm: u32,
    /// Number of UDP flows.
    flows_active: u32,
    /// Response cache; absent if the service has no cache.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cache: Option<CacheView>,
    /// All counters since the start, including counters that are 0.
    counters: CountersView,
}

impl ServiceView {
    /// Describes a service that is bound to the addresses `listen`.
    pub(crate) fn new<'a>(
        spec: &ServiceSpec,
        service: &RunningService,
        listen: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Self {
        let live = service.live();
        Self {
            name: spec.name.to_string(),
            protocol: spec.protocol.name().into(),
            tls: spec.tls.is_some(),
            listen: listen.into_iter().map(ToString::to_string).collect(),
            pool: spec.pool.as_ref().map(ToString::to_string),
            connections_active: live.connections.active(),
            connects_pending: live.pending.active(),
            warm: live.warm.active(),
            flows_active: live.active_flows(),
            cache: CacheView::of(service),
            counters: CountersView::new(&live.counters),
        }
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    /// Returns the number of open connections and flows.
    pub(crate) fn active(&self) -> u32 {
        self.connections_active + self.flows_active
    }

    /// Returns the number of warm connections to servers.
    pub(crate) fn warm(&self) -> u32 {
        self.warm
    }

    /// Returns the listen addresses that are IP addresses.
    pub(super) fn ip_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen.iter().filter_map(|address| address.parse().ok())
    }

    /// Returns true if this is a DNS service whose default pool is `pool`.
    pub(super) fn sends_queries_to(&self, pool: &PoolView) -> bool {
        self.unit() == Served::Queries && self.pool.as_deref().is_some_and(|name| pool.is_named(name))
    }

    /// Returns the cells of the service below [`HEADING`].
    pub(super) fn row(&self) -> Vec<String> {
        let counters = &self.counters;
        vec![
            self.name.clone(),
            format!("{}{}", self.protocol, if self.tls { "+tls" } else { "" }),
            self.listen.join(" "),
            self.pool.clone().unwrap_or_else(|| "by route".into()),
            self.active().to_string(),
            counters.served(self.unit()).to_string(),
            bytes(counters.value("bytes_in")),
            bytes(counters.value("bytes_out")),
            counters.value("no_server").to_string(),
            counters.sum(&["denied", "limited"]).to_string(),
            counters.value("drops").to_string(),
        ]
    }

    /// Describes the cache of the service and the hit rate of the cache.
    pub(super) fn cache_text(&self) -> Option<String> {
        let CacheView { entries, bytes: used, hits, misses } = self.cache.as_ref()?;
        let queries = hits + misses;
        let percent = if queries == 0 { 0.0 } else { 100.0 * *hits as f64 / queries as f64 };
        let (name, used) = (&self.name, bytes(*used));
        Some(format!(
            "\ncache of {name}: {entries} responses, {used}; {percent:.1} % of {queries} queries were hits\n"
        ))
    }

    fn unit(&self) -> Served {
        if self.protocol == Protocol::Dns.name() { Served::Queries } else { Served::Connections }
    }
}

/// The response cache of a DNS service.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CacheView {
    /// Number of entries.
    entries: usize,
    /// Bytes that the entries use.
    bytes: u64,
    /// Number of queries since the start that were served from an entry, including stale entries.
    hits: u64,
    /// Number of queries since the start for which there was no usable entry.
    misses: u64,
}

impl CacheView {
    fn of(service: &RunningService) -> Option<Self> {
        let RunningService::Proxy(service) = service;
        let settings = service.settings.load();
        let stats = settings.dns.as_ref()?.cache.as_ref()?.stats();
        let counters = &service.live.counters;
        let stale = counters.total("cache_stale");
        let hits = counters.total("cache_lookups.hit") + stale;
        // A query that gets a stale response was a miss at first.
        let misses = counters.total("cache_lookups.miss").saturating_sub(stale);
        Some(Self { entries: stats.entries, bytes: stats.bytes, hits, misses })
    }
}
