//! The commands that list clients and connections, and close connections.

use super::AdminArgs;
use super::client::percent_encoded;
use crate::admin::client::Client;
use crate::admin::connections::{ClosedView, ServerClosedView};
use crate::state::{ClientsView, ConnectionsView};
use std::time::Duration;

/// `evener clients [SERVICE] [--since TIME] [--limit N]`
pub(super) async fn clients(
    service: Option<&str>,
    since: Option<Duration>,
    limit: Option<usize>,
    admin_args: &AdminArgs,
) -> anyhow::Result<()> {
    let since = since.map(|since| since.as_secs().to_string());
    let path = path_with("/v1/clients", &[("service", service), ("since", since.as_deref())], limit);
    let clients: ClientsView = Client::find(admin_args.socket.as_deref())?.get(&path).await?;
    admin_args.print_part(&clients, ClientsView::text, clients.counts())
}

/// Returns a path with query parameters.
pub(super) fn path_with(path: &str, values: &[(&str, Option<&str>)], limit: Option<usize>) -> String {
    let limit = limit.map(|limit| limit.to_string());
    let values = values.iter().copied().chain([("limit", limit.as_deref())]);
    let values = values.filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded(value?))));
    let values: Vec<String> = values.collect();
    if values.is_empty() { path.into() } else { format!("{path}?{}", values.join("&")) }
}

/// `evener connections [SERVICE] [--limit N]`
pub(super) async fn connections(
    service: Option<&str>,
    limit: Option<usize>,
    admin_args: &AdminArgs,
) -> anyhow::Result<()> {
    let path = path_with("/v1/connections", &[("service", service)], limit);
    let connections: ConnectionsView = Client::find(admin_args.socket.as_deref())?.get(&path).await?;
    admin_args.print_part(&connections, ConnectionsView::text, connections.counts())
}

/// `evener close --server SERVER`
pub(super) async fn close_server(server: &str, admin_args: &AdminArgs) -> anyhow::Result<()> {
    let path = format!("/v1/connections?server={}", percent_encoded(server));
    let closed: ServerClosedView = Client::find(admin_args.socket.as_deref())?.delete(&path).await?;
    admin_args.print(&closed, ServerClosedView::text)
}

/// `evener close NUMBER`
pub(super) async fn close(number: u64, admin_args: &AdminArgs) -> anyhow::Result<()> {
    let closed: ClosedView =
        Client::find(admin_args.socket.as_deref())?.delete(&format!("/v1/connections/{number}")).await?;
    admin_args.print(&closed, ClosedView::text)
}
