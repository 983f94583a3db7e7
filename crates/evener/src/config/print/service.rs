//! Services: listen addresses, pools and routes, and options.

use super::Lists;
use super::access::{write_acl, write_denied, write_prefixes, write_throttle};
use super::dns::write_dns;
use super::http::write_http;
use super::ipvs::{write_addresses, write_ipvs};
use super::pool::{write_keys, write_servers};
use super::source::{Node, Table, one_or_list, quoted};
use super::tls::write_tls;
use super::xdp::{with_ports, write_xdp};
use evener_core::Endpoint;
use evener_core::route::Route;
use evener_core::spec::{
    Denied, LogDestination, Plane, PoolSpec, Protocol, RequestLog, ServiceOptions, ServiceSpec, Source,
};
use std::sync::Arc;

/// Writes `service "www" { ... }`, with the servers and keys of its inline pool if it has one.
pub(super) fn service(service: &ServiceSpec, in_place: Option<&PoolSpec>, lists: Lists<'_>) -> Table {
    let ServiceSpec {
        name,
        listen,
        protocol,
        plane,
        xdp,
        ipvs,
        pool,
        routes,
        acl,
        denied,
        throttle,
        exceeded,
        proxy_from,
        tls,
        http,
        dns,
        clients,
        // Only pen differs.
        records_refused: _,
        request_log,
        options,
    } = service;
    let mut table = Table::of(format!("service {}", quoted(name.as_bytes())));
    if ipvs.is_some() {
        write_addresses(&mut table, name, listen);
    } else {
        write_listen(&mut table, name, listen, *plane);
        table.unless("protocol", &protocol.name(), &Protocol::Tcp.name());
    }
    table.unless("plane", &plane.name(), &Plane::default().name());
    if let Some(ipvs) = ipvs {
        write_ipvs(&mut table, ipvs);
    }
    if let Some(xdp) = xdp {
        write_xdp(&mut table, xdp);
    }
    write_tls(&mut table, tls.as_deref());
    match in_place {
        None => table.some("pool", pool.as_ref()),
        Some(pool) => {
            write_servers(&mut table, pool, lists);
            write_keys(&mut table, pool);
        }
    }
    write_routes(&mut table, *protocol, routes);
    write_acl(&mut table, acl.as_ref(), lists);
    write_denied(&mut table, "denied", denied, &Denied::Drop);
    write_throttle(&mut table, throttle.as_ref(), exceeded);
    write_prefixes(&mut table, "proxy_from", proxy_from.as_ref(), lists);
    if let Some(http) = http {
        write_http(&mut table, http, lists);
    }
    write_dns(&mut table, dns.as_deref());
    if *plane == Plane::Proxy {
        write_options(&mut table, *protocol, options);
    }
    table.some("clients", clients.as_ref());
    write_request_log(&mut table, request_log.as_ref(), *protocol);
    table
}

/// Writes `listen`, unless the name of the service is the only listen address.
fn write_listen(table: &mut Table, name: &str, listen: &[Endpoint], plane: Plane) {
    if let Some((addresses, ports)) = with_ports(listen).filter(|_| plane == Plane::Xdp) {
        table.key("listen", one_or_list(addresses));
        return table.key("ports", one_or_list(ports));
    }
    let named = crate::scope::parse(name).ok();
    let by_name = named.is_some_and(|named| !matches!(named, Endpoint::Host { .. }) && *listen == [named]);
    if !by_name {
        table.key("listen", one_or_list(listen));
    }
}

fn write_routes(table: &mut Table, protocol: Protocol, routes: &[Route<Arc<str>>]) {
    let mut list = Table::new();
    for Route { hosts, path, to } in routes {
        let mut nested = Table::new();
        if !hosts.is_empty() || path.is_none() {
            nested.key(if protocol == Protocol::Http { "host" } else { "sni" }, one_or_list(hosts));
        }
        nested.some("path", path.as_ref());
        nested.set("pool", to);
        list.item(nested);
    }
    if !list.is_empty() {
        table.key("routes", list);
    }
}

fn write_options(table: &mut Table, protocol: Protocol, options: &ServiceOptions) {
    let ServiceOptions {
        connections_max,
        flows_max,
        spread,
        connect_timeout,
        attempts_max,
        connect_time_max,
        idle_timeout,
        half_closed_timeout,
        freebind,
        backlog,
        nodelay,
        keepalive,
        server_keepalive,
        unix_mode,
        source,
        fast_close,
        pending_max,
        warm,
    } = options;
    let defaults = ServiceOptions::of(protocol);
    table.unless("idle_timeout", idle_timeout, &defaults.idle_timeout);
    table.unless("freebind", freebind, &defaults.freebind);
    match source {
        None => {}
        Some(Source::Client) => table.set("source", "client"),
        Some(Source::Address(address)) => table.set("source", address),
    }
    if protocol == Protocol::Udp {
        table.some("spread", spread.as_ref());
        return table.unless("flows_max", flows_max, &defaults.flows_max);
    }
    table.unless("connections_max", connections_max, &defaults.connections_max);
    table.unless("connect_timeout", connect_timeout, &defaults.connect_timeout);
    table.unless("backlog", backlog, &defaults.backlog);
    table.unless("keepalive", keepalive, &defaults.keepalive);
    if protocol == Protocol::Dns {
        return;
    }
    if let Some(mode) = unix_mode {
        table.key("unix_mode", Node::Source(format!("\"{mode:04o}\"")));
    }
    table.unless("attempts_max", attempts_max, &defaults.attempts_max);
    table.unless("connect_time_max", connect_time_max, &defaults.connect_time_max);
    table.unless("half_closed_timeout", half_closed_timeout, &defaults.half_closed_timeout);
    table.unless("nodelay", nodelay, &defaults.nodelay);
    table.unless("server_keepalive", server_keepalive, &defaults.server_keepalive);
    table.unless("fast_close", &fast_close.name(), &defaults.fast_close.name());
    table.some("pending_max", pending_max.as_ref());
    table.unless("warm", warm, &defaults.warm);
}

fn write_request_log(table: &mut Table, log: Option<&RequestLog>, protocol: Protocol) {
    let Some(log) = log else { return };
    let is_default = *log == RequestLog::new(log.destination.clone(), protocol);
    if let (LogDestination::File(file), true) = (&log.destination, is_default) {
        return table.set("request_log", file);
    }
    let mut nested = Table::new();
    match &log.destination {
        LogDestination::File(file) => nested.set("file", file),
        LogDestination::Udp(address) => nested.set("udp", address),
        LogDestination::Syslog(path) => nested.set("syslog", path),
    }
    if log.format != RequestLog::new(log.destination.clone(), protocol).format {
        nested.set("format", log.format.name());
    }
    if log.sample != RequestLog::ALL {
        nested.set("sample", &(f64::from(log.sample) / f64::from(RequestLog::ALL)));
    }
    table.key("request_log", nested);
}
