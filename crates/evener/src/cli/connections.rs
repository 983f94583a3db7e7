//! The commands that list clients and connections, and close connections.

use super::client::percent_encoded;
use super::{AdminArgs, duration};
use crate::admin::connections::{ClientsClosedView, ClosedView, ServerClosedView};
use crate::state::{ClientsView, ConnectionsView, View};
use clap::Args;
use clap::builder::PossibleValuesParser;
use evener_core::acl::Prefix;
use evener_core::clients::ClientOrder;
use std::time::Duration;

/// `evener clients`
#[derive(Args, Debug)]
pub(super) struct ClientsCommand {
    /// The service (default: all)
    service: Option<String>,
    /// Order: most recent activity, most connections or requests a second, most bytes, or most connections
    #[arg(long, value_name = "ORDER", default_value = "recent", value_parser = PossibleValuesParser::new(ClientOrder::NAMED.map(|(name, _)| name)))]
    sort: String,
    /// Only clients that were active within this time, such as 10m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// Maximum number of clients to show (default: 1000)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl ClientsCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let Self { service, sort, since, limit, admin_args } = self;
        let since = since.map(|since| since.as_secs().to_string());
        let values = [
            ("service", service.as_deref()),
            ("since", since.as_deref()),
            ("sort", (sort != "recent").then_some(sort)),
        ];
        let path = path_with("/v1/clients", &values, *limit);
        let clients: ClientsView = admin_args.client()?.get(&path).await?;
        if !admin_args.is_json() && clients.is_unrecorded() {
            anyhow::bail!(
                "no service records clients: give a service `clients`, such as clients = 1000, then `evener reload`"
            );
        }
        let text = |view: &ClientsView| match view.counts() {
            (_, 0) => "no clients are recorded\n".into(),
            _ => view.text(),
        };
        admin_args.print_part(&clients, text, clients.counts())
    }
}

/// `evener connections`
#[derive(Args, Debug)]
pub(super) struct ConnectionsCommand {
    /// The service (default: all)
    service: Option<String>,
    /// Only connections and flows of this client: an address or a prefix, such as 192.0.2.7 or 2001:db8::/32
    #[arg(long, value_name = "PREFIX", value_parser = clients)]
    client: Option<String>,
    /// Only connections and flows to this server: pool/server, or just the server if only one pool has it
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Maximum number of connections and flows to show (default: 1000)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl ConnectionsCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let Self { service, client, server, limit, admin_args } = self;
        let values =
            [("service", service.as_deref()), ("client", client.as_deref()), ("server", server.as_deref())];
        let path = path_with("/v1/connections", &values, *limit);
        let connections: ConnectionsView = admin_args.client()?.get(&path).await?;
        let text = |view: &ConnectionsView| match view.counts() {
            (_, 0) => "no connections or flows are open\n".into(),
            _ => view.text(),
        };
        admin_args.print_part(&connections, text, connections.counts())
    }
}

/// `evener flows`
#[derive(Args, Debug)]
pub(super) struct FlowsCommand {
    /// The service (default: all UDP services and all services of the XDP plane)
    service: Option<String>,
    /// Only flows of this client: an address or a prefix, such as 192.0.2.7 or 2001:db8::/32
    #[arg(long, value_name = "PREFIX", value_parser = clients)]
    client: Option<String>,
    /// Only flows to this server: pool/server, or just the server if only one pool has it
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Maximum number of flows of a service to show (default: 1000)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl FlowsCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let Self { service, client, server, limit, admin_args } = self;
        let instance = admin_args.client()?;
        let view: View = instance.get("/v1/status").await?;
        let services = match service {
            Some(name) => vec![view.flow_service(name).map_err(anyhow::Error::msg)?],
            None => view.flow_services().collect(),
        };
        let mut flows = ConnectionsView::default();
        for service in services {
            let values =
                [("service", Some(service)), ("client", client.as_deref()), ("server", server.as_deref())];
            flows.add(instance.get(&path_with("/v1/connections", &values, *limit)).await?);
        }
        let text = |view: &ConnectionsView| match view.counts() {
            (_, 0) => "no flows\n".into(),
            _ => view.text(),
        };
        admin_args.print_part(&flows, text, flows.counts())
    }
}

/// `evener close`
#[derive(Args, Debug)]
pub(super) struct CloseCommand {
    /// Number of the connection or flow, which `connections` shows
    #[arg(required_unless_present_any = ["server", "client"], value_parser = number)]
    number: Option<u64>,
    /// Close all connections and flows of this server: pool/server, or just the server if only one pool has it
    #[arg(long, value_name = "SERVER", conflicts_with = "number")]
    server: Option<String>,
    /// Close all connections and flows of this client: an address or a prefix, such as 192.0.2.7
    #[arg(long, value_name = "PREFIX", value_parser = clients, conflicts_with_all = ["number", "server"])]
    client: Option<String>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl CloseCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let Self { number, server, client, admin_args } = self;
        let instance = admin_args.client()?;
        let path = path_with(
            "/v1/connections",
            &[("server", server.as_deref()), ("client", client.as_deref())],
            None,
        );
        match (number, client) {
            (Some(number), _) => {
                let closed: ClosedView = instance.delete(&format!("/v1/connections/{number}")).await?;
                admin_args.print(&closed, ClosedView::text)
            }
            (None, Some(_)) => {
                let closed: ClientsClosedView = instance.delete(&path).await?;
                admin_args.print(&closed, ClientsClosedView::text)
            }
            (None, None) => {
                let closed: ServerClosedView = instance.delete(&path).await?;
                admin_args.print(&closed, ServerClosedView::text)
            }
        }
    }
}

/// Parses the number of a connection.
fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        "it must be a number that `evener connections` shows; --server and --client close all connections of a server \
         or client"
            .into()
    })
}

/// Checks an address or a prefix of clients.
fn clients(text: &str) -> Result<String, String> {
    let named = format!("`{text}` is ");
    // The message about the option names the text already.
    let reason = |message: String| message.strip_prefix(&named).map(str::to_owned).unwrap_or(message);
    text.parse::<Prefix>().map(|_| text.to_owned()).map_err(|error| reason(error.to_string()))
}

/// Returns a path with query parameters.
pub(super) fn path_with(path: &str, values: &[(&str, Option<&str>)], limit: Option<usize>) -> String {
    let limit = limit.map(|limit| limit.to_string());
    let values = values.iter().copied().chain([("limit", limit.as_deref())]);
    let values = values.filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded(value?))));
    let values: Vec<String> = values.collect();
    if values.is_empty() { path.into() } else { format!("{path}?{}", values.join("&")) }
}
