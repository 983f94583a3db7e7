//! `GET /v1/connections`, `DELETE /v1/connections/NUMBER` and `DELETE /v1/connections?server=NAME`: lists and
//! closes connections and flows.

use super::clients::entries_max;
use super::parameters::Parameters;
use super::{failed, shutting_down};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_proxy::Closed;
use serde::{Deserialize, Serialize};

/// Query parameters of the request.
#[derive(Debug, Deserialize)]
pub(super) struct ConnectionsQuery {
    service: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn connections(
    State(supervisor): State<Handle>,
    query: Parameters<ConnectionsQuery>,
) -> Response {
    let query = query.into_inner();
    let most = match entries_max(query.limit) {
        Ok(most) => most,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.connections(query.service, most).await {
        Some(Ok(connections)) => Json(connections).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}

/// Number of the connection that was closed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClosedView {
    closed: u64,
}

impl ClosedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        format!("{}: closed\n", self.closed)
    }
}

pub(super) async fn close(
    State(supervisor): State<Handle>,
    number: Result<Path<u64>, PathRejection>,
) -> Response {
    let Ok(Path(number)) = number else {
        return failed(
            StatusCode::UNPROCESSABLE_ENTITY,
            "give the number of a connection; `evener connections` lists them",
        );
    };
    match supervisor.close(number).await {
        Some(Closed::Done) => Json(ClosedView { closed: number }).into_response(),
        Some(Closed::NotFound) => failed(
            StatusCode::NOT_FOUND,
            format!("there is no connection {number}; `evener connections` lists them"),
        ),
        None => shutting_down(),
    }
}

/// Query parameters of a request to close all connections of a server.
#[derive(Debug, Deserialize)]
pub(super) struct ServerQuery {
    server: String,
}

/// Result of closing all connections of a server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerClosedView {
    /// Full name, `pool/server`.
    server: String,
    /// Number of closed connections, requests and flows.
    closed: usize,
}

impl ServerClosedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        format!("{}: {} closed\n", self.server, self.closed)
    }
}

pub(super) async fn close_server(
    State(supervisor): State<Handle>,
    query: Result<Query<ServerQuery>, QueryRejection>,
) -> Response {
    let Ok(Query(ServerQuery { server })) = query else {
        return failed(StatusCode::UNPROCESSABLE_ENTITY, "`server` is missing: give ?server=pool/server");
    };
    match supervisor.close_server(server).await {
        Some(Ok((server, closed))) => Json(ServerClosedView { server, closed }).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}
