//! The commands that send a request to a running instance.

use super::{AccessCommand, AdminArgs, ServerCommand};
use crate::admin::client::Client;
use crate::admin::explain::Explained;
use crate::admin::view::{CacheView, DescriptorsView, PoolView, RuleView, ServerView, ServiceView, Status};
use crate::admin::{AccessWanted, Reloaded, StateWanted};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// `evener status`
pub(super) async fn status(admin_args: &AdminArgs) -> anyhow::Result<()> {
    let status: Status = Client::find(admin_args.socket.as_deref())?.get("/v1/status").await?;
    if admin_args.json {
        return print_json(&status);
    }
    print!("{}", status_text(&status));
    Ok(())
}

/// `evener reload`
pub(super) async fn reload(admin_args: &AdminArgs) -> anyhow::Result<()> {
    let reloaded: Reloaded =
        Client::find(admin_args.socket.as_deref())?.post("/v1/reload", &Value::Null).await?;
    if admin_args.json {
        return print_json(&reloaded);
    }
    match &reloaded.changes[..] {
        [] => println!("reloaded; nothing changed"),
        changes => changes.iter().for_each(|change| println!("{change}")),
    }
    Ok(())
}

/// `evener drain|ready|maintenance SERVER`
pub(super) async fn set_state(
    what: &ServerCommand,
    state: &str,
    time: Option<Duration>,
) -> anyhow::Result<()> {
    let wanted = StateWanted {
        server: what.server.clone(),
        state: state.into(),
        time: time.map(|time| humantime::format_duration(time).to_string()),
    };
    let done: Value =
        Client::find(what.admin_args.socket.as_deref())?.post("/v1/servers/state", &wanted).await?;
    if what.admin_args.json {
        return print_json(&done);
    }
    let time = time.map(|time| format!(" for {}", humantime::format_duration(time))).unwrap_or_default();
    println!("{}: {state}{time}", done["server"].as_str().unwrap_or(&what.server));
    Ok(())
}

/// `evener access`
pub(super) async fn access(admin_args: &AdminArgs) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = Client::find(admin_args.socket.as_deref())?.get("/v1/access").await?;
    if admin_args.json {
        return print_json(&rules);
    }
    let left = |rule: &RuleView| match rule.left_s {
        Some(seconds) => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        None => "until forgotten".into(),
    };
    let row =
        |rule: &RuleView| vec![rule.service.clone(), rule.action.clone(), rule.prefix.clone(), left(rule)];
    print!("{}", table(&["SERVICE", "ACTION", "PREFIX", "LEFT"], &rules.iter().map(row).collect::<Vec<_>>()));
    Ok(())
}

/// `evener deny|permit|forget SERVICE PREFIX`
pub(super) async fn change_access(
    what: &AccessCommand,
    action: &str,
    time: Option<Duration>,
) -> anyhow::Result<()> {
    let wanted = AccessWanted {
        service: what.service.clone(),
        prefix: what.prefix.clone(),
        action: action.into(),
        time: time.map(|time| humantime::format_duration(time).to_string()),
    };
    let done: Value = Client::find(what.admin_args.socket.as_deref())?.post("/v1/access", &wanted).await?;
    if what.admin_args.json {
        return print_json(&done);
    }
    println!("{}: {}", what.service, done["done"].as_str().unwrap_or_default());
    Ok(())
}

/// `evener explain SERVICE CLIENT`
pub(super) async fn explain(wanted: &super::ExplainCommand) -> anyhow::Result<()> {
    let super::ExplainCommand { service, client, host, path, admin_args } = wanted;
    let mut query = format!("/v1/explain?service={}&client={client}", percent_encoded(service));
    for (name, value) in [("host", host), ("path", path)] {
        query +=
            &value.as_ref().map_or_else(String::new, |value| format!("&{name}={}", percent_encoded(value)));
    }
    let explained: Explained = Client::find(admin_args.socket.as_deref())?.get(&query).await?;
    if admin_args.json {
        return print_json(&explained);
    }
    print!("{}", explained_text(&explained));
    Ok(())
}

/// Encodes all characters but the unreserved ones (RFC 3986, section 2.1).
pub(super) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn status_text(status: &Status) -> String {
    let Status { version, pid, workers, .. } = status;
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_s));
    let draining = if status.draining { ", draining" } else { "" };
    let mut text = format!("evener {version}, pid {pid}, up {uptime}, {workers} workers{draining}\n");
    text += &descriptors_text(&status.descriptors);
    let heading = [
        "SERVICE",
        "PROTOCOL",
        "LISTEN",
        "POOL",
        "ACTIVE",
        "TOTAL",
        "IN",
        "OUT",
        "NO SERVER",
        "DENIED",
        "DROPPED",
    ];
    text += &table(&heading, &status.services.iter().map(service_row).collect::<Vec<_>>());
    text.extend(status.services.iter().filter_map(cache_text));
    for pool in &status.pools {
        let of_dns = |service: &ServiceView| {
            service.protocol == DNS && service.pool.as_deref() == Some(pool.name.as_str())
        };
        text += &pool_text(pool, status.services.iter().any(of_dns));
    }
    text
}

/// Describes the use of descriptors, and the number of connections that they allow.
fn descriptors_text(view: &DescriptorsView) -> String {
    let DescriptorsView { limit, used, reserved, connections_max } = view;
    let (Some(limit), Some(most)) = (limit, connections_max) else { return "\n".into() };
    format!(
        "descriptors: clients and flows use {used} of {limit}, {reserved} are reserved; enough for {most} connections\n\n"
    )
}

const DNS: &str = "dns";

/// Describes the cache of a service, and its hit rate.
fn cache_text(service: &ServiceView) -> Option<String> {
    let CacheView { entries, bytes: taken, hits, misses } = service.cache.as_ref()?;
    let query = hits + misses;
    let served = if query == 0 { 0.0 } else { 100.0 * *hits as f64 / query as f64 };
    let (name, taken) = (&service.name, bytes(*taken));
    Some(format!(
        "\ncache of {name}: {entries} responses, {taken}; {served:.1} % of {query} queries were hits\n"
    ))
}

/// Counters of failures, which are added up in the row of a server.
const SERVER_FAILURES: [&str; 8] = [
    "connect_refused",
    "connect_timeouts",
    "connect_errors",
    "resets",
    "response_timeouts",
    "responses_bad",
    "tls_failed",
    "persistent_connection_faults",
];

fn service_row(service: &ServiceView) -> Vec<String> {
    let counter = |name: &str| service.counters.get(name).copied().unwrap_or(0);
    let dropped: u64 =
        service.counters.iter().filter(|(name, _)| name.starts_with("drop_")).map(|(_, n)| n).sum();
    vec![
        service.name.clone(),
        format!("{}{}", service.protocol, if service.tls { "+tls" } else { "" }),
        service.listen.join(" "),
        service.pool.clone().unwrap_or_else(|| "by route".into()),
        (service.connections_active + service.flows_active).to_string(),
        served(&service.counters, service.protocol == DNS).to_string(),
        bytes(counter("bytes_in")),
        bytes(counter("bytes_out")),
        counter("no_server").to_string(),
        (counter("denied") + counter("limited")).to_string(),
        dropped.to_string(),
    ]
}

/// Returns the number of clients that were served: connections and flows, or DNS queries, each with a server.
fn served(counters: &BTreeMap<String, u64>, is_dns: bool) -> u64 {
    let names: &[&str] = if is_dns { &["requests"] } else { &["connections", "flows"] };
    names.iter().filter_map(|name| counters.get(*name)).sum()
}

fn pool_text(pool: &PoolView, is_dns: bool) -> String {
    let sticky = pool.sticky_clients.map(|clients| format!(", {clients} sticky clients")).unwrap_or_default();
    let heading =
        ["  SERVER", "TIER", "WEIGHT", "STATE", "VERDICT", "SINCE", "ACTIVE", "TOTAL", "IN", "OUT", "FAILED"];
    let rows: Vec<Vec<String>> = pool.servers.iter().map(|server| server_row(server, is_dns)).collect();
    format!("\npool {} ({}{sticky})\n{}", pool.name, pool.policy, table(&heading, &rows))
}

fn server_row(server: &ServerView, is_dns: bool) -> Vec<String> {
    let counter = |name: &str| server.counters.get(name).copied().unwrap_or(0);
    let failed: u64 = SERVER_FAILURES.map(counter).iter().sum();
    let limits = [server.max, server.hard].into_iter().flatten().map(|limit| format!("/{limit}"));
    let limit: String = limits.collect();
    let reason = server.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    // A host name does not show the address of the server.
    let at = if server.name == server.address { String::new() } else { format!(" ({})", server.address) };
    vec![
        format!("  {}{at}", server.name),
        server.tier.to_string(),
        server.weight.to_string(),
        server.state.clone(),
        format!("{}{reason}", server.verdict),
        humantime::format_duration(Duration::from_secs(server.since_s)).to_string(),
        format!("{}{limit}", server.active),
        served(&server.counters, is_dns).to_string(),
        bytes(counter("bytes_in")),
        bytes(counter("bytes_out")),
        failed.to_string(),
    ]
}

fn explained_text(explained: &Explained) -> String {
    let Explained { service, client, .. } = explained;
    let mut text = format!("client {client} of service {service}");
    if let (Some(pool), Some(policy)) = (&explained.pool, &explained.policy) {
        text += &format!(", pool {pool}, policy {policy}");
    }
    text += "\n";
    explained.notes.iter().for_each(|note| text += &format!("{note}\n"));
    if let Some(server) = &explained.sticky {
        text += &format!("the sticky table names {server}\n");
    }
    if explained.by_chance {
        text += "the policy is random: the order may differ for the next client\n";
    }
    if explained.pool.is_none() {
        return text;
    }
    let rows: Vec<Vec<String>> = (explained.servers.iter())
        .map(|row| vec![row.server.clone(), row.tier.to_string(), row.reason.clone()])
        .collect();
    text + "\n" + &table(&["SERVER", "TIER", "REASON"], &rows)
}

/// Formats columns that are as wide as their widest cell.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&mut heading.iter().copied());
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

/// Formats a number of bytes for people, in powers of 1024.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_sizes_are_short() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  22\n");
        assert_eq!([bytes(5), bytes(1536), bytes(5 << 40)].join(" "), "5 B 1.5 KiB 5.0 TiB");
        assert_eq!(percent_encoded("a b/ü"), "a%20b%2F%C3%BC");
        let counters = [("connections", 1), ("flows", 2), ("requests", 4)];
        let counters = counters.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!((served(&counters, false), served(&counters, true)), (3, 4));
    }
}
