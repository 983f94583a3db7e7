//! The commands that list clients and connections, and close connections.

use super::AdminArgs;
use super::client::{bytes, percent_encoded, print_json, table};
use crate::admin::client::Client;
use crate::admin::clients::{ClientView, ClientsView};
use crate::admin::connections::{ClosedView, ConnectionView, ConnectionsView, ServerClosedView};
use std::net::SocketAddr;
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
    let found: ClientsView = Client::find(admin_args.socket.as_deref())?.get(&path).await?;
    if admin_args.json {
        return print_json(&found);
    }
    let heading = ["SERVICE", "CLIENT", "CONNECTS", "IN", "OUT", "SEEN", "SERVER"];
    print!("{}", table(&heading, &found.clients.iter().map(client_row).collect::<Vec<_>>()));
    say_rest(found.clients.len(), found.total);
    Ok(())
}

fn client_row(client: &ClientView) -> Vec<String> {
    vec![
        client.service.clone(),
        client.client.to_string(),
        client.connects.to_string(),
        bytes(client.bytes_in),
        bytes(client.bytes_out),
        format!("{} ago", humantime::format_duration(Duration::from_secs(client.seen_s))),
        server_name(client.pool.as_deref(), client.server.as_deref()),
    ]
}

/// Formats `pool/server`, or a dash.
fn server_name(pool: Option<&str>, server: Option<&str>) -> String {
    match (pool, server) {
        (Some(pool), Some(server)) => format!("{pool}/{server}"),
        _ => "-".into(),
    }
}

/// Notes on standard error that more entries exist than were shown.
pub(super) fn say_rest(shown: usize, total: usize) {
    if shown < total {
        eprintln!("{shown} of {total}; --limit N shows more");
    }
}

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
    let found: ConnectionsView = Client::find(admin_args.socket.as_deref())?.get(&path).await?;
    if admin_args.json {
        return print_json(&found);
    }
    let heading =
        ["NUMBER", "SERVICE", "CLIENT", "SERVER", "STAGE", "IDLE", "SOCKETS", "TO CLIENT", "TO SERVER"];
    print!("{}", table(&heading, &found.connections.iter().map(connection_row).collect::<Vec<_>>()));
    say_rest(found.connections.len(), found.total);
    Ok(())
}

fn connection_row(open: &ConnectionView) -> Vec<String> {
    let client = match open.client_port {
        Some(port) => SocketAddr::new(open.client, port).to_string(),
        None => open.client.to_string(),
    };
    let socket = |socket: Option<i32>| socket.map_or_else(|| "-".into(), |socket| socket.to_string());
    vec![
        open.number.to_string(),
        open.service.clone(),
        client,
        server_name(open.pool.as_deref(), open.server.as_deref()),
        open.stage.clone(),
        humantime::format_duration(Duration::from_secs(open.idle_s as u64)).to_string(),
        format!("{} {}", socket(open.client_socket), socket(open.server_socket)),
        bytes(open.to_client as u64),
        bytes(open.to_server as u64),
    ]
}

/// `evener close --server SERVER`
pub(super) async fn close_server(server: &str, admin_args: &AdminArgs) -> anyhow::Result<()> {
    let path = format!("/v1/connections?server={}", percent_encoded(server));
    let closed: ServerClosedView = Client::find(admin_args.socket.as_deref())?.delete(&path).await?;
    if admin_args.json {
        return print_json(&closed);
    }
    println!("{}: {} closed", closed.server, closed.closed);
    Ok(())
}

/// `evener close NUMBER`
pub(super) async fn close(number: u64, admin_args: &AdminArgs) -> anyhow::Result<()> {
    let closed: ClosedView =
        Client::find(admin_args.socket.as_deref())?.delete(&format!("/v1/connections/{number}")).await?;
    if admin_args.json {
        return print_json(&closed);
    }
    println!("{}: closed", closed.closed);
    Ok(())
}
