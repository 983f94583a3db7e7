//! Rows of a view that is redrawn: services, pools and servers with the figures that change. The reader keeps the
//! totals of earlier views, and so knows the rates between two views.

use super::{PoolView, ServerView, ServiceView, Traffic, View};
use crate::table::{self, Cell, Tone};

/// Kind of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LiveKind {
    Service,
    Pool,
    Server,
}

/// A service, pool or server.
#[derive(Clone, Debug)]
pub(crate) struct LiveRow {
    pub(crate) kind: LiveKind,
    /// Name that `evener status` takes; of a server `pool/server`.
    pub(crate) name: String,
    /// Name as it is shown below its pool.
    pub(crate) label: String,
    pub(crate) state: Cell,
    /// Open connections, requests, flows or associations.
    pub(crate) active: u32,
    /// The limit of the active ones, if there is one.
    pub(crate) active_max: Option<u32>,
    /// Requests, connections, flows or packets since the start.
    pub(crate) served: u64,
    pub(crate) errors: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Median and 95th percentile of the recent response times, in seconds; of a TCP server those of connections.
    pub(crate) times: Option<(f64, f64)>,
    /// Reasons for the state, and troubles, one sentence each.
    pub(crate) reasons: Vec<Cell>,
    /// The server, or a server of the pool, can get new clients.
    pub(crate) is_usable: bool,
}

impl View {
    /// Returns the services, then each pool with its servers, in the order of the configuration.
    pub(crate) fn live_rows(&self) -> Vec<LiveRow> {
        let mut rows: Vec<LiveRow> = self.services.iter().map(ServiceView::live).collect();
        for pool in &self.pools {
            let traffic = self.traffic_of(pool);
            rows.push(pool.live(traffic));
            rows.extend(pool.servers().map(|server| server.live(pool.name(), traffic)));
        }
        rows
    }

    /// Returns the line about the process: `evener 0.1.0, pid 7, up 3m, 2 workers`.
    pub(crate) fn headline(&self) -> String {
        let Self { version, pid, workers, .. } = self;
        let draining = if self.draining { ", draining" } else { "" };
        format!(
            "evener {version}, pid {pid}, up {}, {workers} workers{draining}",
            table::seconds(self.uptime_s)
        )
    }

    /// Returns the process ID of the instance.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

impl ServiceView {
    fn live(&self) -> LiveRow {
        let traffic = self.traffic();
        let errors: &[&str] = match traffic {
            Traffic::Http => &["requests_failed"],
            Traffic::Dns => &["no_server", "drops"],
            Traffic::Tcp => &["no_server"],
            Traffic::Udp => &["drops"],
            Traffic::Xdp => &super::service::XDP_DROPS,
        };
        let reasons = self.troubles();
        let tone = if reasons.is_empty() { Tone::Normal } else { Tone::Bad };
        let state = if self.is_full() { "full".to_owned() } else { self.kind() };
        LiveRow {
            kind: LiveKind::Service,
            name: self.name().to_owned(),
            label: self.name().to_owned(),
            state: Cell::new(state, tone),
            active: self.shown_active(),
            active_max: None,
            served: self.counters().served(traffic),
            errors: self.counters().sum(errors),
            bytes_in: self.counters().value("bytes_in"),
            bytes_out: self.counters().value("bytes_out"),
            times: None,
            reasons: std::iter::once(Cell::new(self.addresses(), Tone::Faint)).chain(reasons).collect(),
            is_usable: true,
        }
    }
}

impl PoolView {
    fn live(&self, traffic: Traffic) -> LiveRow {
        let sum = |figure: &dyn Fn(&ServerView) -> u64| self.servers().map(figure).sum::<u64>();
        let (usable, all) = self.usable();
        let tone = match usable {
            0 => Tone::Bad,
            _ if usable < all => Tone::Warning,
            _ => Tone::Normal,
        };
        let reasons = self.troubles().map(|trouble| Cell::new(trouble, Tone::Warning));
        LiveRow {
            kind: LiveKind::Pool,
            name: self.name().to_owned(),
            label: format!("pool {}", self.name()),
            state: Cell::new(format!("{usable}/{all} up"), tone),
            active: self.servers().map(|server| server.shown_active(traffic)).sum(),
            active_max: None,
            served: sum(&|server| server.counters().served(traffic)),
            errors: sum(&ServerView::errors),
            bytes_in: sum(&ServerView::bytes_in),
            bytes_out: sum(&ServerView::bytes_out),
            times: None,
            reasons: std::iter::once(Cell::new(self.headline(), Tone::Faint)).chain(reasons).collect(),
            is_usable: usable > 0,
        }
    }
}

impl ServerView {
    fn live(&self, pool: &str, traffic: Traffic) -> LiveRow {
        let remark = Some(self.remark()).filter(|remark| !remark.is_empty());
        let remark = remark.map(|remark| Cell::new(remark, Tone::Faint));
        LiveRow {
            kind: LiveKind::Server,
            name: format!("{pool}/{}", self.name()),
            label: self.name().to_owned(),
            state: self.state_cell(),
            active: self.shown_active(traffic),
            active_max: self.limit(),
            served: self.counters().served(traffic),
            errors: self.errors(),
            bytes_in: self.bytes_in(),
            bytes_out: self.bytes_out(),
            times: self.times(traffic).map(super::recent::TimesView::median_and_p95),
            reasons: remark.into_iter().chain(self.troubles()).collect(),
            is_usable: self.is_usable(),
        }
    }
}
