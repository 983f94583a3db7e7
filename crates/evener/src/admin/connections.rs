//! `GET /v1/connections`, `DELETE /v1/connections/NUMBER` and `DELETE /v1/connections?server=NAME`: what is open, and its
//! end.

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

/// What is open.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionsView {
    /// How many there are, shown or not.
    pub(crate) total: usize,
    /// By their numbers.
    pub(crate) connections: Vec<ConnectionView>,
}

/// A connection of a client, or its flow.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionView {
    pub(crate) number: u64,
    pub(crate) service: String,
    pub(crate) client: IpAddr,
    /// Where it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) client_port: Option<u16>,
    /// The server that it has, or is about to have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server: Option<String>,
    pub(crate) stage: String,
    /// Seconds since something moved.
    pub(crate) idle_s: f64,
    /// The descriptors of both sockets; a flow has one of its own only to its server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) client_socket: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server_socket: Option<i32>,
    /// Bytes that wait to be taken by either side.
    pub(crate) to_client: usize,
    pub(crate) to_server: usize,
}

/// What is asked for.
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

/// Which one was closed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClosedView {
    pub(crate) closed: u64,
}

pub(super) async fn close(
    State(supervisor): State<Handle>,
    number: Result<Path<u64>, PathRejection>,
) -> Response {
    let Ok(Path(number)) = number else {
        return failed(StatusCode::UNPROCESSABLE_ENTITY, "a connection is named by its number");
    };
    match supervisor.close(number).await {
        Some(Closed::Done) => Json(ClosedView { closed: number }).into_response(),
        Some(Closed::Nobody) => failed(
            StatusCode::NOT_FOUND,
            format!("there is no connection {number}; `evener connections` lists them"),
        ),
        None => gone(),
    }
}

/// The server whose connections end.
#[derive(Debug, Deserialize)]
pub(super) struct OfServer {
    server: String,
}

/// Connections of a server that were closed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerClosedView {
    /// Its full name.
    pub(crate) server: String,
    /// Number of connections, requests and flows that were closed.
    pub(crate) closed: usize,
}

pub(super) async fn close_server(
    State(supervisor): State<Handle>,
    wanted: Result<Query<OfServer>, QueryRejection>,
) -> Response {
    let Ok(Query(OfServer { server })) = wanted else {
        return failed(StatusCode::UNPROCESSABLE_ENTITY, "say of which server: ?server=pool/server");
    };
    match supervisor.close_server(server).await {
        Some(Ok((server, closed))) => Json(ServerClosedView { server, closed }).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}
