//! The commands that show who is there.

use super::Talk;
use super::talk::{bytes, percent_encoded, print_json, table};
use crate::admin::client::Client;
use crate::admin::clients::{ClientView, ClientsView};
use std::time::Duration;

/// `evener clients [SERVICE] [--since TIME] [--limit N]`
pub(super) async fn clients(
    service: Option<&str>,
    since: Option<Duration>,
    limit: Option<usize>,
    talk: &Talk,
) -> anyhow::Result<()> {
    let since = since.map(|since| since.as_secs().to_string());
    let path = path_with("/v1/clients", &[("service", service), ("since", since.as_deref())], limit);
    let found: ClientsView = Client::find(talk.socket.as_deref())?.get(&path).await?;
    if talk.json {
        return print_json(&found);
    }
    let head = ["SERVICE", "CLIENT", "CONNECTS", "IN", "OUT", "SEEN", "SERVER"];
    print!("{}", table(&head, &found.clients.iter().map(client_row).collect::<Vec<_>>()));
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

/// `pool/server`, or a dash.
fn server_name(pool: Option<&str>, server: Option<&str>) -> String {
    match (pool, server) {
        (Some(pool), Some(server)) => format!("{pool}/{server}"),
        _ => "-".into(),
    }
}

/// Says on standard error that there are more than were shown.
fn say_rest(shown: usize, total: usize) {
    if shown < total {
        eprintln!("{shown} of {total}; --limit N shows more");
    }
}

fn path_with(path: &str, values: &[(&str, Option<&str>)], limit: Option<usize>) -> String {
    let limit = limit.map(|limit| limit.to_string());
    let values = values.iter().copied().chain([("limit", limit.as_deref())]);
    let values = values.filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded(value?))));
    let values: Vec<String> = values.collect();
    if values.is_empty() { path.into() } else { format!("{path}?{}", values.join("&")) }
}
