//! `GET /v1/connections`, `DELETE /v1/connections/NUMBER` and `DELETE /v1/connections?server=NAME`: lists and
//! closes connections and flows.

use super::clients::entries_max;
use super::guard::Audit;
use super::parameters::Parameters;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::state::{ConnectionsQuery, ConnectionsView};
use crate::supervisor::Handle;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::acl::Prefix;
use evener_proxy::Closed;
use serde::{Deserialize, Serialize};

/// Query parameters of the request.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ConnectionsParameters {
    service: Option<String>,
    /// Address or prefix of clients.
    client: Option<String>,
    server: Option<String>,
    limit: Option<usize>,
}

impl ConnectionsParameters {
    fn query(self) -> Result<ConnectionsQuery, String> {
        let clients = self.client.map(|client| client.parse::<Prefix>()).transpose();
        let clients = clients.map_err(|error| error.to_string())?;
        let query = ConnectionsQuery::new(entries_max(self.limit)?);
        Ok(query.of_service(self.service).of_clients(clients).of_server(self.server))
    }
}

#[utoipa::path(get, path = "/v1/connections", params(ConnectionsParameters), responses((status = 200, description = "Done", body = ConnectionsView), Failures))]
pub(super) async fn connections(
    State(supervisor): State<Handle>,
    parameters: Parameters<ConnectionsParameters>,
) -> Response {
    let query = match parameters.into_inner().query() {
        Ok(query) => query,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.connections(query).await {
        Some(Ok(connections)) => Json(connections).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => shutting_down(),
    }
}

/// Number of the connection that was closed.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ClosedView {
    closed: u64,
}

impl ClosedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        format!("{}: closed\n", self.closed)
    }
}

#[utoipa::path(delete, path = "/v1/connections/{number}", params(("number" = u64, Path, description = "Number of the connection")), responses((status = 200, description = "Done", body = ClosedView), Failures))]
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
        Some(Closed::Done) => {
            let audit = Audit::new("close", format!("connection {number}"));
            audit.on(Json(ClosedView { closed: number }).into_response())
        }
        Some(Closed::NotFound) => failed(
            StatusCode::NOT_FOUND,
            format!("there is no connection {number}; `evener connections` lists them"),
        ),
        None => shutting_down(),
    }
}

/// Query parameters of a request to close all connections of a server, or of clients.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CloseParameters {
    server: Option<String>,
    client: Option<String>,
}

/// Result of closing all connections of clients.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ClientsClosedView {
    /// Address or prefix.
    client: String,
    /// Number of closed connections and flows.
    closed: usize,
}

impl ClientsClosedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        format!("{}: {} closed\n", self.client, self.closed)
    }
}

/// Response to a request to close all connections of a server, or of clients.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only the document of the API has it")]
pub(super) enum AllClosedView {
    Server(ServerClosedView),
    Clients(ClientsClosedView),
}

/// Result of closing all connections of a server.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
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

#[utoipa::path(delete, path = "/v1/connections", params(CloseParameters), responses((status = 200, description = "Done", body = AllClosedView), Failures))]
pub(super) async fn close_all(
    State(supervisor): State<Handle>,
    parameters: Result<Query<CloseParameters>, QueryRejection>,
) -> Response {
    match parameters.map(|Query(wanted)| (wanted.server, wanted.client)) {
        Ok((Some(server), None)) => match supervisor.close_server(server).await {
            Some(Ok((server, closed))) => {
                let audit = Audit::new("close", format!("server {server}")).after(format!("{closed} closed"));
                audit.on(Json(ServerClosedView { server, closed }).into_response())
            }
            Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
            None => shutting_down(),
        },
        Ok((None, Some(client))) => close_clients(&supervisor, client).await,
        _ => failed(StatusCode::UNPROCESSABLE_ENTITY, "give ?server=pool/server or ?client=PREFIX"),
    }
}

/// Closes the connections and flows of clients that are open now.
async fn close_clients(supervisor: &Handle, client: String) -> Response {
    let clients = match client.parse::<Prefix>() {
        Ok(clients) => clients,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
    };
    let query = ConnectionsQuery::new(usize::MAX).of_clients(Some(clients));
    let Some(Ok(open)) = supervisor.connections(query).await else { return shutting_down() };
    let mut closed = 0;
    for connection in open.into_connections() {
        match supervisor.close(connection.number()).await {
            Some(Closed::Done) => closed += 1,
            Some(Closed::NotFound) => {}
            None => return shutting_down(),
        }
    }
    let audit = Audit::new("close", format!("client {client}")).after(format!("{closed} closed"));
    audit.on(Json(ClientsClosedView { client, closed }).into_response())
}
