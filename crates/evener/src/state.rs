//! The state of an instance as records: the model that the supervisor fills, the admin API sends as JSON, and
//! commands, front ends and the demo read. Each record has its text for people beside it. The records are copies:
//! they do not follow the instance, and nothing here reads or changes a supervisor.

mod access;
mod certificates;
mod clients;
mod connections;
mod counters;
mod explanation;
mod filter;
mod live;
mod metrics;
mod plan;
mod pool;
mod recent;
mod scope;
mod scripts;
mod server;
mod service;
mod sticky;

pub(crate) use access::RuleView;
pub(crate) use clients::{ClientView, ClientsQuery, ClientsView};
pub(crate) use connections::{ConnectionView, ConnectionsQuery, ConnectionsView};
pub(crate) use explanation::{ExplainQuery, Explanation, RecordedChoice};
pub(crate) use filter::{ServerFilter, ServersView};
pub(crate) use live::{LiveKind, LiveRow};
pub(crate) use metrics::MetricsFormat;
pub(crate) use plan::{ApplyView, ConfirmationView, PlanCounts, PlanView, PoolMovesView};
pub(crate) use pool::{PoolView, SourceView};
pub(crate) use scripts::{ScriptChangeView, ScriptErrorView, ScriptsView};
pub(crate) use server::ServerView;
pub(crate) use service::ServiceView;
pub(crate) use sticky::StickyView;

use crate::certificates::TrackedCertificate;
use crate::table::{self, Style, Tone};
use certificates::CertificateView;
use counters::{CountersView, DeclarationsView};
use evener_core::counters::{CounterSet, Sharded};
use evener_core::event::EventCounters;
use metrics::{Families, Labels};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// The part of the state that a view contains. A small part costs little, even if the instance has many
/// services and servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ViewScope {
    /// All services and pools.
    Instance,
    /// One service, without pools.
    Service(String),
    /// One service, and the pool of its clients that no route matches.
    ServiceWithPool(String),
    /// One server, named by `pool/server` or by its name if only one pool has it, with its pool but without the other
    /// servers.
    Server(String),
}

/// The state of the instance, or of a part of it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct View {
    /// The program's version.
    version: String,
    pid: u32,
    /// Seconds since the start.
    uptime_s: u64,
    workers: usize,
    /// True if new clients are no longer accepted.
    draining: bool,
    /// The applied configuration that waits for its confirmation; absent if none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmation: Option<ConfirmationView>,
    /// The file that `evener apply` applied, if a reload would replace it by another text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    applied_file: Option<String>,
    #[serde(default)]
    descriptors: DescriptorsView,
    services: Vec<ServiceView>,
    pools: Vec<PoolView>,
    /// Certificates in use, the first to expire first; at most 1000.
    #[serde(default)]
    certificates: Vec<CertificateView>,
    /// Errors and changes of functions; absent if there are none.
    #[serde(default, skip_serializing_if = "ScriptsView::is_empty")]
    scripts: ScriptsView,
    /// Counters of the instance: the number of events by name.
    #[serde(default)]
    counters: CountersView,
    /// Descriptions of all counters: of the instance, of a service, of a server.
    #[serde(default)]
    declarations: DeclarationsView,
}

impl View {
    /// Creates a view of this process, which has run for `uptime`, without services and pools.
    pub(crate) fn new(uptime: Duration, workers: usize, draining: bool) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: uptime.as_secs(),
            workers,
            draining,
            confirmation: None,
            applied_file: None,
            descriptors: DescriptorsView::measure(),
            services: Vec::new(),
            pools: Vec::new(),
            certificates: Vec::new(),
            scripts: ScriptsView::default(),
            counters: CountersView::default(),
            declarations: DeclarationsView::default(),
        }
    }

    /// Adds the file that was applied, and the wait for its confirmation.
    pub(crate) fn with_applied(self, file: Option<&str>, confirmation: Option<ConfirmationView>) -> Self {
        Self { applied_file: file.map(str::to_owned), confirmation, ..self }
    }

    /// Adds the counters of the instance, and the descriptions of all counters.
    pub(crate) fn with_counters(self, events: &Sharded<EventCounters>) -> Self {
        Self { counters: CountersView::new(events), declarations: DeclarationsView::all(), ..self }
    }

    /// Adds certificates, described at `now`, in seconds since 1970.
    pub(crate) fn with_certificates(self, certificates: &[TrackedCertificate], now: i64) -> Self {
        Self { certificates: CertificateView::list(certificates, now), ..self }
    }

    /// Adds errors and changes of functions.
    pub(crate) fn with_scripts(self, scripts: ScriptsView) -> Self {
        Self { scripts, ..self }
    }

    /// Adds services, in the order in which they are listed.
    pub(crate) fn with_services(self, services: impl Iterator<Item = ServiceView>) -> Self {
        Self { services: services.collect(), ..self }
    }

    /// Adds pools, in the order in which they are listed.
    pub(crate) fn with_pools(self, pools: impl Iterator<Item = PoolView>) -> Self {
        Self { pools: pools.collect(), ..self }
    }

    /// Returns a service.
    pub(crate) fn service(&self, name: &str) -> Option<&ServiceView> {
        self.services.iter().find(|service| service.is_named(name))
    }

    /// Returns the IP addresses that a service listens on, with the ports that the system chose.
    pub(crate) fn listen_addresses(&self, service: &str) -> Vec<SocketAddr> {
        self.service(service).into_iter().flat_map(ServiceView::ip_addresses).collect()
    }

    /// Returns the servers of all pools.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &ServerView> {
        self.pools.iter().flat_map(PoolView::servers)
    }

    /// Formats the numbers of the state as metrics, in parts.
    pub(crate) fn metrics(&self, format: MetricsFormat) -> Vec<String> {
        let (mut families, none) = (Families::default(), Labels::default());
        let version = none.with("version", &self.version);
        families.gauge("evener_build_info", "The version, as a label of the value 1.", &version, 1);
        families.gauge("evener_uptime_seconds", "Seconds since the start.", &none, self.uptime_s);
        families.gauge("evener_workers", "Threads that move bytes.", &none, self.workers);
        let draining = u8::from(self.draining);
        families.gauge("evener_draining", "1 if new clients are no longer accepted.", &none, draining);
        self.descriptors.add_to(&mut families);
        families.set("", &[EventCounters::DECLARED], &self.counters, &none);
        self.certificates.iter().for_each(|certificate| certificate.add_to(&mut families));
        self.services.iter().for_each(|service| service.add_to(&mut families));
        self.pools.iter().for_each(|pool| pool.add_to(&mut families));
        families.parts(format)
    }

    /// Formats the state for people.
    pub(crate) fn text(&self, style: Style) -> String {
        let mut text = format!("{}\n", self.headline());
        if let Some(confirmation) = &self.confirmation {
            text += &confirmation.text(style);
        }
        if let Some(file) = &self.applied_file {
            let line = format!("applied: {file}; a reload replaces it by the file of the start");
            text += &table::paragraph(&line, 0, Tone::Normal, style);
        }
        text += &self.descriptors.text();
        for traffic in Traffic::ALL {
            text += &ServiceView::table(self.services.iter(), traffic, style);
        }
        text += &certificates::text(&self.certificates);
        text += &self.scripts.text();
        self.pools.iter().for_each(|pool| text += &pool.text(self.traffic_of(pool), style));
        text
    }

    /// Explains the columns of the text, for a terminal.
    pub(crate) fn legend(style: Style) -> String {
        let lines = LEGEND.map(|line| table::paragraph(line, 0, Tone::Faint, style));
        format!("\n{}", lines.concat())
    }

    /// Returns the kind of traffic that a pool gets.
    fn traffic_of(&self, pool: &PoolView) -> Traffic {
        let users = self.services.iter().filter(|service| service.uses(pool));
        users.map(ServiceView::traffic).min().unwrap_or(Traffic::Tcp)
    }
}

/// Use of file descriptors by the process.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
struct DescriptorsView {
    /// Maximum number of open descriptors; absent when there is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    limit: Option<u64>,
    /// Number in use by clients, flows and connections to servers, including descriptors that are reserved for
    /// connection attempts.
    used: u64,
    /// Number reserved for all other uses: the admin socket, checks, reloads.
    reserved: u64,
    /// Number in use by the program itself: listeners, logs, event loops.
    #[serde(default)]
    others: u64,
    /// Maximum number of connections that the descriptors allow, at two descriptors each; absent when there
    /// is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    connections_max: Option<u64>,
}

impl DescriptorsView {
    /// Adds the metrics.
    fn add_to(&self, families: &mut Families) {
        let none = Labels::default();
        let used = self.used + self.others;
        families.gauge("evener_descriptors_used", "Descriptors in use.", &none, used);
        if let Some(limit) = self.limit {
            families.gauge("evener_descriptors_max", "Maximum number of descriptors.", &none, limit);
        }
    }

    /// Returns the present use.
    fn measure() -> Self {
        let usage = evener_proxy::descriptors::usage();
        Self {
            limit: usage.limit,
            used: usage.clients,
            reserved: usage.reserved,
            others: usage.others,
            connections_max: usage.limit.map(|_| usage.connections_max),
        }
    }

    /// Describes the use of descriptors, and the number of connections that they allow.
    fn text(&self) -> String {
        let Self { limit, used, reserved, others, connections_max } = self;
        let (Some(limit), Some(most)) = (limit, connections_max) else { return String::new() };
        let mut text = format!(
            "descriptors: {used} of {limit} used, {others} others, {reserved} reserved; {most} connections at most"
        );
        if used + 2 > 2 * most {
            text += &format!(
                "\nall {most} connections that the descriptors allow are in use; clients wait: raise LimitNOFILE"
            );
        }
        let paragraph = |line: &str| table::paragraph(line, 0, Tone::Normal, Style::Plain);
        text.lines().map(paragraph).collect()
    }
}

/// Explanation of the columns.
const LEGEND: [&str; 3] = [
    "/S, P50, P95 and shares in brackets are of the last 10 to 20 s (or since the",
    "start): requests per second, and the time within which about half and 95 % of",
    "the responses began (TCP: connections to servers). Others: since the start.",
];

/// Kind of traffic of a service or server, which decides on the figures that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Traffic {
    Http,
    Dns,
    Tcp,
    Udp,
    /// Packets of the XDP plane.
    Xdp,
}

impl Traffic {
    const ALL: [Self; 5] = [Self::Http, Self::Dns, Self::Tcp, Self::Udp, Self::Xdp];

    /// Returns the counter of the traffic.
    const fn counter(self) -> &'static str {
        match self {
            Self::Http | Self::Dns => "requests",
            Self::Tcp => "connections",
            Self::Udp => "flows",
            Self::Xdp => "packets_in",
        }
    }

    /// Returns the heading of the counter.
    const fn heading(self) -> &'static str {
        match self {
            Self::Http => "REQUESTS",
            Self::Dns => "QUERIES",
            Self::Tcp => "CONNS",
            Self::Udp => "FLOWS",
            Self::Xdp => "PACKETS",
        }
    }
}
