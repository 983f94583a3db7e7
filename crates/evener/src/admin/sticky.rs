//! `GET /v1/sticky`: the clients in sticky tables, their servers, and the number of clients of each server.

use super::clients::shown;
use super::{failed, gone};
use crate::supervisor::{Handle, RunningPool, Supervisor};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::ServerId;
use evener_core::health::Verdict;
use evener_core::pool::{Pool, Server};
use evener_core::spec::AdminState;
use evener_core::sticky::{Sticky, StickyClient};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Contents of the sticky tables by client address.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StickyView {
    /// Number of clients, including those that are not shown.
    pub(crate) total: usize,
    /// The servers, pool by pool.
    pub(crate) servers: Vec<HomeView>,
    /// The clients, by their addresses.
    pub(crate) clients: Vec<RememberedView>,
}

/// A server with its number of sticky clients.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HomeView {
    pub(crate) pool: String,
    pub(crate) server: String,
    /// Number of a server that was found in a directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) id: Option<u32>,
    pub(crate) address: String,
    /// True if the server is up and in state `ready`.
    pub(crate) ok: bool,
    pub(crate) clients: usize,
}

/// A client in a sticky table.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RememberedView {
    pub(crate) client: IpAddr,
    pub(crate) pool: String,
    /// Server that the table names.
    pub(crate) server: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) id: Option<u32>,
    /// Server in use while that one is not usable.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) meanwhile: Option<String>,
    /// Seconds since the client was last seen.
    pub(crate) seen_s: u64,
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    pool: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn sticky(
    State(supervisor): State<Handle>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let most = match shown(wanted.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.inspect(move |supervisor| inspect(supervisor, wanted.pool.as_deref(), most)).await {
        Some(Ok(view)) => Json(view).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

fn inspect(supervisor: &Supervisor, wanted: Option<&str>, most: usize) -> Result<StickyView, String> {
    if let Some(name) = wanted {
        let running = supervisor.pools.get(name);
        let running =
            running.ok_or_else(|| format!("there is no pool `{name}`; `evener status` lists them"))?;
        if running.pool.sticky().is_none() {
            return Err(format!(
                "pool `{name}` has no sticky table: give it sticky = {{ by = \"client_ip\" }}"
            ));
        }
    }
    let mut view = StickyView::default();
    let is_meant = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    for (name, RunningPool { pool, .. }) in supervisor.pools.iter().filter(|(name, _)| is_meant(name)) {
        if let Some(sticky) = pool.sticky() {
            add_pool(supervisor, name, (pool, sticky), most, &mut view);
        }
    }
    Ok(view)
}

fn add_pool(
    supervisor: &Supervisor,
    name: &str,
    (pool, sticky): (&Pool, &Sticky),
    most: usize,
    view: &mut StickyView,
) {
    let now = supervisor.now();
    let homes: BTreeMap<ServerId, usize> = sticky.homes(now).into_iter().collect();
    view.total += homes.values().sum::<usize>();
    let clients = |id: ServerId| homes.get(&id).copied().unwrap_or_default();
    let home = |server: &Server| HomeView {
        pool: name.into(),
        server: server.spec.name.to_string(),
        id: supervisor.number_of(name, &server.target),
        address: server.target.to_string(),
        ok: is_ok(server),
        clients: clients(server.id),
    };
    view.servers.extend(pool.servers().iter().map(home));
    let remembered = |one: StickyClient| {
        let home = pool.server(one.assignment.home)?;
        let meanwhile = one.assignment.substitute.and_then(|server| pool.server(server));
        Some(RememberedView {
            client: one.address,
            pool: name.into(),
            server: home.spec.name.to_string(),
            id: supervisor.number_of(name, &home.target),
            meanwhile: meanwhile.map(|server| server.spec.name.to_string()),
            seen_s: now.since(one.seen_at).as_secs(),
        })
    };
    let room = most.saturating_sub(view.clients.len());
    let mut shown: Vec<_> = sticky.clients(now, room).into_iter().filter_map(remembered).collect();
    shown.sort_by_key(|one| one.client);
    view.clients.extend(shown);
}

fn is_ok(server: &Server) -> bool {
    server.health.verdict() != Verdict::Down && server.state != AdminState::Maintenance
}
