//! `GET /v1/status`: the state of the whole instance, as JSON and as text for people.

mod counters;
mod pool;
mod service;

pub(crate) use pool::ServerView;

use super::shutting_down;
use crate::supervisor::{Handle, Supervisor};
use crate::table;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use counters::{CountersView, DeclarationsView};
use pool::PoolView;
use serde::{Deserialize, Serialize};
use service::ServiceView;
use std::net::SocketAddr;

/// The state of the instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The program's version.
    version: String,
    pid: u32,
    /// Seconds since the start.
    uptime_s: u64,
    workers: usize,
    /// True if new clients are no longer accepted.
    draining: bool,
    #[serde(default)]
    descriptors: DescriptorsView,
    services: Vec<ServiceView>,
    pools: Vec<PoolView>,
    /// Counters of the instance: the number of events by name.
    #[serde(default)]
    counters: CountersView,
    /// Descriptions of all counters: of the instance, of a service, of a server.
    #[serde(default)]
    declarations: DeclarationsView,
}

pub(super) async fn status(State(supervisor): State<Handle>) -> Response {
    match supervisor.inspect(Status::of).await {
        Some(status) => Json(status).into_response(),
        None => shutting_down(),
    }
}

impl Status {
    /// Returns the present state.
    pub(crate) fn of(supervisor: &Supervisor) -> Self {
        let services = supervisor.configured_services();
        let pools = supervisor.configured_pools();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: supervisor.now().since(evener_core::Time::ZERO).as_secs(),
            workers: supervisor.workers(),
            draining: supervisor.is_draining(),
            descriptors: DescriptorsView::measure(),
            services: services.map(|(spec, service)| ServiceView::new(supervisor, spec, service)).collect(),
            pools: pools.map(|pool| PoolView::new(pool, supervisor.now())).collect(),
            counters: CountersView::new(supervisor.events().counters()),
            declarations: DeclarationsView::all(),
        }
    }

    /// Returns the IP addresses that a service listens on, with the ports that the system chose.
    pub(crate) fn listen_addresses(&self, service: &str) -> Vec<SocketAddr> {
        let service = self.services.iter().filter(|one| one.is_named(service));
        service.flat_map(ServiceView::ip_addresses).collect()
    }

    /// Returns the servers of all pools.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &ServerView> {
        self.pools.iter().flat_map(PoolView::servers)
    }

    /// Formats the state for people.
    pub(crate) fn text(&self) -> String {
        let Self { version, pid, workers, .. } = self;
        let uptime = table::seconds(self.uptime_s);
        let draining = if self.draining { ", draining" } else { "" };
        let mut text = format!("evener {version}, pid {pid}, up {uptime}, {workers} workers{draining}\n");
        text += &self.descriptors.text();
        let rows: Vec<_> = self.services.iter().map(ServiceView::row).collect();
        text += &table::table(&service::HEADING, &rows);
        text.extend(self.services.iter().filter_map(ServiceView::cache_text));
        for pool in &self.pools {
            let has_dns = self.services.iter().any(|service| service.sends_queries_to(pool));
            text += &pool.text(if has_dns { Served::Queries } else { Served::Connections });
        }
        text
    }
}

/// Use of file descriptors by the process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct DescriptorsView {
    /// Maximum number of open descriptors; absent when there is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    limit: Option<u64>,
    /// Number in use by clients, flows and connections to servers, including descriptors that are reserved for
    /// connection attempts.
    used: u64,
    /// Number reserved for all other uses: the admin socket, checks, reloads.
    reserved: u64,
    /// Maximum number of connections that the descriptors allow, at two descriptors each; absent when there
    /// is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    connections_max: Option<u64>,
}

impl DescriptorsView {
    /// Returns the present use.
    fn measure() -> Self {
        let usage = evener_proxy::descriptors::usage();
        Self {
            limit: usage.limit,
            used: usage.clients,
            reserved: usage.reserved,
            connections_max: usage.limit.map(|_| usage.connections_max),
        }
    }

    /// Describes the use of descriptors, and the number of connections that they allow.
    fn text(&self) -> String {
        let Self { limit, used, reserved, connections_max } = self;
        let (Some(limit), Some(most)) = (limit, connections_max) else { return "\n".into() };
        format!(
            "descriptors: clients and flows use {used} of {limit}, {reserved} are reserved; enough for {most} connections\n\n"
        )
    }
}

/// Unit in which the work of a service or server is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// Connections and flows.
    Connections,
    /// DNS queries.
    Queries,
}
