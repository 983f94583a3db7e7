//! `GET /v1/connections`, `DELETE /v1/connections/NUMBER` and `DELETE /v1/connections?server=NAME`: lists and
//! closes connections and flows.

use super::clients::shown;
use super::{failed, gone};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_proxy::{Closed, Open};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The open connections and flows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionsView {
    /// Number of connections and flows, including those that are not shown.
    pub(crate) total: usize,
    /// Sorted by number.
    pub(crate) connections: Vec<ConnectionView>,
}

/// A connection or flow of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionView {
    pub(crate) number: u64,
    pub(crate) service: String,
    pub(crate) client: IpAddr,
    /// Absent when unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) client_port: Option<u16>,
    /// Pool of the current server, or of the server being connected to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server: Option<String>,
    pub(crate) stage: String,
    /// Seconds since the last bytes.
    pub(crate) idle_s: f64,
    /// Descriptors of both sockets. A flow has only a socket to its server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) client_socket: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server_socket: Option<i32>,
    /// Bytes that wait for the client to read them.
    pub(crate) to_client: usize,
    pub(crate) to_server: usize,
}

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    service: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn connections(
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
    match supervisor.connections(wanted.service, most).await {
        Some(Ok(listing)) => {
            let connections = listing.open.into_iter().take(most).map(view).collect();
            Json(ConnectionsView { total: listing.total, connections }).into_response()
        }
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

fn view(open: Open) -> ConnectionView {
    let (pool, server) = open.server.map(|had| (had.pool.to_string(), had.server.to_string())).unzip();
    ConnectionView {
        number: open.number,
        service: open.service.to_string(),
        client: open.client,
        client_port: open.client_port,
        pool,
        server,
        stage: open.stage.into(),
        idle_s: open.idle.as_secs_f64(),
        client_socket: open.client_socket,
        server_socket: open.server_socket,
        to_client: open.to_client,
        to_server: open.to_server,
    }
}

/// Number of the connection that was closed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClosedView {
    pub(crate) closed: u64,
}

pub(super) async fn close(
    State(supervisor): State<Handle>,
    number: Result<Path<u64>, PathRejection>,
) -> Response {
    let Ok(Path(number)) = number else {
        return failed(
            StatusCode::UNPROCESSABLE_ENTITY,
            "a connection is a number, as `evener connections` shows it",
        );
    };
    match supervisor.close(number).await {
        Some(Closed::Done) => Json(ClosedView { closed: number }).into_response(),
        Some(Closed::NotFound) => failed(
            StatusCode::NOT_FOUND,
            format!("there is no connection {number}; `evener connections` lists them"),
        ),
        None => gone(),
    }
}

/// Query parameters of a request to close all connections of a server.
#[derive(Debug, Deserialize)]
pub(super) struct OfServer {
    server: String,
}

/// Result of closing all connections of a server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerClosedView {
    /// Full name, `pool/server`.
    pub(crate) server: String,
    /// Number of closed connections, requests and flows.
    pub(crate) closed: usize,
}

pub(super) async fn close_server(
    State(supervisor): State<Handle>,
    wanted: Result<Query<OfServer>, QueryRejection>,
) -> Response {
    let Ok(Query(OfServer { server })) = wanted else {
        return failed(StatusCode::UNPROCESSABLE_ENTITY, "`server` is missing: give ?server=pool/server");
    };
    match supervisor.close_server(server).await {
        Some(Ok((server, closed))) => Json(ServerClosedView { server, closed }).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}
