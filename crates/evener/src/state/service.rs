//! Services: their listen addresses, load, caches and counters.

use super::Traffic;
use super::counters::{CountersView, DeclarationsView};
use super::metrics::{Families, Labels};
use super::pool::PoolView;
use super::recent::{RecentView, Trouble};
use crate::planes::RunningService;
use crate::table::{self, Cell, Row, Style, Tone, bytes};
use evener_core::Endpoint;
use evener_core::counters::{CounterSet, ServiceCounters};
use evener_core::recent::Growth;
use evener_core::spec::{Plane, Protocol, ServiceSpec};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Counters of troubles, with their descriptions.
const TROUBLES: [Trouble; 25] = [
    Trouble("requests_failed", "request", "failed (502, 503, 504 or an incomplete response)"),
    Trouble("no_server", "client", "without a usable server"),
    Trouble("queue_failures.timeout", "client", "waited too long in the queue"),
    Trouble("queue_failures.full", "client", "refused because the queue was full"),
    Trouble("retries_exhausted", "failure", "not retried (retry_budget)"),
    Trouble("limited", "client", "refused by per_client limits"),
    Trouble("denied", "client", "denied by the access list"),
    Trouble("requests_bad", "invalid request", ""),
    Trouble("headers_too_large", "request", "with too large a header section"),
    Trouble("slow_requests", "request", "with too slow a body"),
    Trouble("slow_responses", "response", "read too slowly"),
    Trouble("tls_failed", "TLS handshake", "with clients failed"),
    Trouble("tls_refused", "client", "refused because of too many TLS handshakes"),
    Trouble("preamble_refused", "connection", "with an invalid preamble"),
    Trouble("preamble_timeouts", "connection", "without a complete preamble in time"),
    Trouble("rate_limited", "response", "truncated or dropped (rate limit)"),
    Trouble("loops", "client", "refused because of a loop"),
    Trouble("accept_errors", "accept call", "failed"),
    Trouble("xdp.no_next_hop", "packet", "without a known next hop"),
    Trouble("xdp.limited", "packet", "above source_rate"),
    Trouble("xdp.denied", "packet", "denied by the access list"),
    Trouble("xdp.refused_egress", "packet", "from a server to a client of another server"),
    Trouble("xdp.too_big", "packet", "too large for the tunnel"),
    Trouble("xdp.malformed", "malformed packet", ""),
    Trouble("xdp.flow_not_stored", "association", "could not be stored"),
];

/// Reasons for which the XDP plane drops packets, besides access lists and limits.
pub(super) const XDP_DROPS: [&str; 9] = [
    "xdp.malformed",
    "xdp.ttl_exceeded",
    "xdp.no_server",
    "xdp.refused_egress",
    "xdp.no_next_hop",
    "xdp.too_big",
    "xdp.syn_invalid",
    "xdp.icmp_unknown",
    "xdp.internal",
];

/// Maximum number of listen addresses in the text.
const LISTEN_MAX: usize = 8;

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ServiceView {
    name: String,
    protocol: String,
    /// The part that moves the bytes: `proxy` or `xdp`.
    #[serde(default)]
    plane: String,
    /// True if clients connect with TLS.
    #[serde(default)]
    tls: bool,
    /// Listen addresses, with the ports that the system chose.
    listen: Vec<String>,
    /// Pool for clients that no route matches; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    /// All pools of the service: the default pool, the pools of routes and the pools of refused clients.
    #[serde(default)]
    pools: Vec<String>,
    /// Maximum number of open TCP connections.
    #[serde(default)]
    connections_max: u32,
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
    /// Number of associations of clients in the XDP plane or of connections in IPVS, as they were counted in the last
    /// seconds; absent in the proxy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    associations: Option<u32>,
    /// Response cache; absent if the service has no cache.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cache: Option<CacheView>,
    /// All counters since the start, including counters that are 0.
    counters: CountersView,
    /// Figures of the last 10 to 20 seconds.
    #[serde(default)]
    recent: RecentView,
}

impl ServiceView {
    /// Describes a service that is bound to the addresses `listen`.
    pub(crate) fn new<'a>(
        spec: &ServiceSpec,
        service: &RunningService,
        growth: Option<&Growth<ServiceCounters>>,
        listen: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Self {
        let live = service.live();
        let mut pools: Vec<String> = Vec::new();
        for pool in spec.pools().map(ToString::to_string) {
            if !pools.contains(&pool) {
                pools.push(pool);
            }
        }
        Self {
            name: spec.name.to_string(),
            protocol: spec.protocol.name().into(),
            plane: spec.plane.name().into(),
            tls: spec.tls.is_some(),
            listen: listen.into_iter().map(ToString::to_string).collect(),
            pool: spec.pool.as_ref().map(ToString::to_string),
            pools,
            connections_max: spec.options.connections_max,
            connections_active: live.connections.active(),
            connects_pending: live.pending.active(),
            warm: live.warm.active(),
            flows_active: live.active_flows(),
            associations: (spec.plane != Plane::Proxy)
                .then(|| live.associations.load(std::sync::atomic::Ordering::Relaxed)),
            cache: CacheView::of(service),
            counters: CountersView::new(&live.counters),
            recent: growth.map(RecentView::new).unwrap_or_default(),
        }
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    pub(super) fn name(&self) -> &str {
        &self.name
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

    /// Adds the metrics.
    pub(super) fn add_to(&self, families: &mut Families) {
        let labels = Labels::default().with("service", &self.name);
        families.set("service_", &[ServiceCounters::DECLARED], &self.counters, &labels);
        let mut gauge = |name: &str, help, value: u64| {
            families.gauge(&format!("evener_service_{name}"), help, &labels, value);
        };
        gauge("connections_active", "Open connections.", self.connections_active.into());
        gauge("connections_max", "Maximum number of open connections.", self.connections_max.into());
        gauge("flows_active", "Present UDP flows.", self.flows_active.into());
        gauge("warm_connections", "Warm connections to servers, open and unused.", self.warm.into());
        if let Some(associations) = self.associations {
            gauge("associations_active", "Associations and connections in the kernel.", associations.into());
        }
        if let Some(cache) = &self.cache {
            gauge("cache_entries", "Entries of the response cache.", cache.entries as u64);
            gauge("cache_bytes", "Bytes of the response cache.", cache.bytes);
            let (hits, misses) = (cache.hits, cache.misses);
            families.counter("evener_service_cache_hits", "Queries served from the cache.", &labels, hits);
            let help = "Queries without a usable entry in the cache.";
            families.counter("evener_service_cache_misses", help, &labels, misses);
        }
    }

    /// Returns true if clients of the service can get servers of `pool`.
    pub(super) fn uses(&self, pool: &PoolView) -> bool {
        self.pools.iter().any(|name| pool.is_named(name))
    }

    /// Returns the kind of traffic.
    pub(super) fn traffic(&self) -> Traffic {
        if self.plane != Plane::Proxy.name() {
            return Traffic::Xdp;
        }
        let protocols =
            [(Protocol::Http, Traffic::Http), (Protocol::Dns, Traffic::Dns), (Protocol::Udp, Traffic::Udp)];
        let found = protocols.iter().find(|(protocol, _)| protocol.name() == self.protocol);
        found.map_or(Traffic::Tcp, |(_, traffic)| *traffic)
    }

    /// Formats a table of the services with this kind of traffic, if there are any.
    pub(super) fn table<'a>(
        services: impl Iterator<Item = &'a Self>,
        traffic: Traffic,
        style: Style,
    ) -> String {
        let rows: Vec<Row> = services.filter(|one| one.traffic() == traffic).map(Self::row).collect();
        if rows.is_empty() {
            return String::new();
        }
        let mut heading = vec!["SERVICE", "ACTIVE"];
        heading.extend([traffic.heading(), "/S"]);
        heading.extend(match traffic {
            Traffic::Http => &["5XX", "FAILED"][..],
            Traffic::Dns => &["FAILED", "DROPPED"],
            Traffic::Tcp => &["FAILED"],
            Traffic::Udp => &["DROPPED"],
            Traffic::Xdp => &["FLOWS", "DROPPED"],
        });
        heading.extend(["LIMITED", "DENIED", "IN", "OUT"]);
        format!("\n{}", table::report(&heading, &rows, 0, style))
    }

    /// Returns true if the clients of the service have flows or associations.
    pub(super) fn has_flows(&self) -> bool {
        matches!(self.traffic(), Traffic::Udp | Traffic::Xdp)
    }

    /// Returns the number of open connections and flows, or of associations in the kernel.
    pub(super) fn shown_active(&self) -> u32 {
        self.associations.unwrap_or_else(|| self.active())
    }

    pub(super) fn counters(&self) -> &CountersView {
        &self.counters
    }

    fn row(&self) -> Row {
        let traffic = self.traffic();
        let (counters, recent) = (&self.counters, &self.recent);
        let trouble = |names: &[&str]| {
            let grows = names.iter().any(|name| recent.value(name) > 0);
            Cell::from(table::count(counters.sum(names))).toned_if(grows, Tone::Bad)
        };
        let active = self.shown_active();
        let mut cells = vec![Cell::from(active.to_string()).toned_if(self.is_full(), Tone::Bad)];
        cells.extend([
            Cell::from(table::count(counters.served(traffic))),
            Cell::from(table::rate(recent.rate(traffic.counter()))),
        ]);
        cells.extend(match traffic {
            Traffic::Http => vec![trouble(&["responses_5xx"]), trouble(&["requests_failed"])],
            Traffic::Dns => vec![trouble(&["no_server"]), trouble(&["drops"])],
            Traffic::Tcp => vec![trouble(&["no_server"])],
            Traffic::Udp => vec![trouble(&["drops"])],
            Traffic::Xdp => {
                vec![table::count(counters.sum(&["flows", "connections"])).into(), trouble(&XDP_DROPS)]
            }
        });
        cells.extend([
            trouble(&["limited", "rate_limited", "xdp.limited"]),
            trouble(&["denied", "xdp.denied"]),
        ]);
        cells.extend(["bytes_in", "bytes_out"].map(|name| table::short_bytes(counters.value(name)).into()));
        let mut row = Row::new(&*self.name, cells);
        row.add_detail(Cell::new(self.addresses(), Tone::Faint));
        row.add_details(self.troubles().into_iter());
        row.add_details(self.cache.iter().map(CacheView::text));
        row
    }

    /// Describes the addresses and the pools: `http+tls on 0.0.0.0:443, pool web`. A service of the XDP plane may have
    /// many addresses.
    pub(super) fn addresses(&self) -> String {
        let pools = match (&self.pool, &self.pools[..]) {
            (Some(pool), [_]) => format!("pool {pool}"),
            (_, []) => "no pool".into(),
            (_, pools) => format!("pools {}", pools.join(" ")),
        };
        let plane = match self.traffic() {
            Traffic::Xdp => format!(" by {}", self.plane),
            _ => String::new(),
        };
        let more = match self.listen.len().saturating_sub(LISTEN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listen = self.listen[..self.listen.len().min(LISTEN_MAX)].join(" ");
        format!("{}{plane} on {listen}{more}, {pools}", self.kind())
    }

    /// Returns the protocol, such as `http` or `http+tls`.
    pub(super) fn kind(&self) -> String {
        format!("{}{}", self.protocol, if self.tls { "+tls" } else { "" })
    }

    pub(super) fn is_full(&self) -> bool {
        self.connections_max > 0 && self.connections_active >= self.connections_max
    }

    /// Returns lines about the troubles of the service.
    pub(super) fn troubles(&self) -> Vec<Cell> {
        let full = self.is_full().then(|| {
            let (active, most) = (self.connections_active, self.connections_max);
            format!("full: {active} of {most} connections (connections_max); new clients wait")
        });
        let recent = self.recent.troubles(&TROUBLES);
        full.into_iter().chain(recent).map(|trouble| Cell::new(trouble, Tone::Bad)).collect()
    }

    /// Formats everything that is known about the service.
    pub(super) fn details(&self, declarations: &DeclarationsView) -> String {
        let mut lines = vec![match self.associations {
            Some(associations) if self.plane == Plane::Xdp.name() => {
                format!("active: {associations} associations")
            }
            Some(connections) => format!("active: {connections} connections in the kernel"),
            None => format!(
                "active: {} of {} connections, {} flows",
                self.connections_active, self.connections_max, self.flows_active
            ),
        }];
        lines.extend(
            (self.connects_pending > 0)
                .then(|| format!("pending connection attempts: {}", self.connects_pending)),
        );
        lines.extend((self.warm > 0).then(|| format!("warm connections: {}", self.warm)));
        let lines: String =
            lines.iter().map(|line| table::paragraph(line, 2, Tone::Normal, Style::Plain)).collect();
        lines + &self.counters.text(&self.recent, &|name| declarations.help_of_service(name))
    }
}

/// The response cache of a DNS service.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
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
        let service = service.of_workers()?;
        let settings = service.settings.load();
        let stats = settings.dns.as_ref()?.cache.as_ref()?.stats();
        let counters = &service.live.counters;
        let stale = counters.total("cache_stale");
        let hits = counters.total("cache_lookups.hit") + stale;
        // A query that gets a stale response was a miss at first.
        let misses = counters.total("cache_lookups.miss").saturating_sub(stale);
        Some(Self { entries: stats.entries, bytes: stats.bytes, hits, misses })
    }

    /// Describes the cache and its hit rate.
    fn text(&self) -> Cell {
        let Self { entries, bytes: used, hits, misses } = self;
        let queries = hits + misses;
        let percent = if queries == 0 { 0.0 } else { 100.0 * *hits as f64 / queries as f64 };
        let used = bytes(*used);
        format!("cache: {entries} responses, {used}; {percent:.1} % of {queries} queries were hits").into()
    }
}
