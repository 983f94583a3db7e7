//! Pools: servers, policy and checks.

use super::Lists;
use super::access::write_acl;
use super::discover::{write_discover, write_limits, write_sources};
use super::source::{Node, Table, one_or_list, path, prose, quoted};
use super::tls::write_server_tls;
use crate::config::build::SORRY_NAME;
use crate::config::check::{SMTP_HELO, dns_defaults, http_check};
use crate::config::sticky::sticky_defaults;
use crate::scope;
use evener_core::Endpoint;
use evener_core::spec::{
    CheckKind, CheckSpec, CheckTls, Dialect, Failover, NotifySpec, OnDown, PassiveSpec, Policy, PoolSpec,
    ProgramSpec, QueueSpec, QuorumSpec, Resolve, RetryBudgetSpec, ServerSpec, ServerTlsSpec, StickyBy,
    StickySpec, Verification,
};
use evener_core::wire::{dns, proxy};

/// Writes `pool "web" { ... }`, assigned to the variable `handle` if there is one.
pub(super) fn pool(pool: &PoolSpec, handle: Option<&str>, lists: Lists<'_>) -> Table {
    let local = handle.map(|handle| format!("local {handle} = ")).unwrap_or_default();
    let mut table = Table::of(format!("{local}pool {}", quoted(pool.name.as_bytes())));
    write_servers(&mut table, pool, lists);
    table.gap();
    write_keys(&mut table, pool);
    table
}

/// Writes the servers and their sources as items of a pool or a service.
pub(super) fn write_servers(table: &mut Table, pool: &PoolSpec, lists: Lists<'_>) {
    for spec in pool.servers.iter().filter(|server| !server.is_sorry) {
        table.item(whole_server(spec, pool, lists));
    }
    write_sources(table, &pool.discover);
    for sorry in pool.servers.iter().filter(|server| server.is_sorry) {
        table.key("sorry", whole_server(sorry, pool, lists));
    }
}

/// Returns a server of a pool as its address, or as a table that begins with it.
fn whole_server(spec: &ServerSpec, pool: &PoolSpec, lists: Lists<'_>) -> Node {
    let server = server(spec, pool.tls.as_deref(), lists);
    if server.is_empty() {
        return address(&spec.endpoint);
    }
    let mut whole = Table::new();
    whole.item(address(&spec.endpoint));
    whole.extend(server);
    whole.into()
}

/// Returns the address of a server, without a port if it has none.
fn address(endpoint: &Endpoint) -> Node {
    quoted(text(endpoint).as_bytes()).into()
}

fn text(endpoint: &Endpoint) -> String {
    if endpoint.lacks_port() { endpoint.server_text() } else { scope::text(endpoint) }
}

/// Returns the keys of a server other than its address. `tls` are the settings of its pool.
fn server(server: &ServerSpec, tls: Option<&ServerTlsSpec>, lists: Lists<'_>) -> Table {
    let ServerSpec { name, configured_name: _, endpoint, dialect, weight, tier, .. } = server;
    let ServerSpec { limits, acl, state, is_sorry, quic_id, check, .. } = server;
    let defaults = ServerSpec::new(endpoint.clone());
    let mut table = Table::new();
    let usual_name = if *is_sorry { SORRY_NAME.into() } else { text(endpoint) };
    table.unless("name", name, &usual_name.into());
    match dialect {
        Dialect::Plain => {}
        Dialect::Mname => table.set("mname", &true),
    }
    table.unless("weight", weight, &defaults.weight);
    table.unless("tier", tier, &defaults.tier);
    write_limits(&mut table, *limits);
    write_acl(&mut table, acl.as_ref(), lists);
    table.unless("state", &state.name(), &defaults.state.name());
    table.some("quic_id", quic_id.as_ref().map(ToString::to_string).as_ref());
    write_check(&mut table, check.as_deref(), tls);
    table
}

/// Writes the keys of a pool other than its name and servers.
pub(super) fn write_keys(table: &mut Table, pool: &PoolSpec) {
    let PoolSpec {
        name: _,
        servers: _,
        discover,
        resolve,
        resolvers,
        policy,
        sticky,
        check,
        passive,
        failover,
        retry_budget,
        on_down,
        slow_start,
        quorum,
        inhibit_on_failure,
        notify,
        queue,
        tls,
        send_proxy,
    } = pool;
    write_discover(table, discover);
    table.unless("resolve", &resolve.name(), &Resolve::default().name());
    if !resolvers.is_empty() {
        table.key("resolver", one_or_list(resolvers));
    }
    write_policy(table, *policy);
    write_sticky(table, sticky.as_ref());
    write_server_tls(table, tls.as_deref());
    table.some("send_proxy", send_proxy.map(version).as_ref());
    write_check(table, check.as_ref(), tls.as_deref());
    write_passive(table, passive);
    match failover {
        Failover::Next => {}
        Failover::Never => table.set("failover", &false),
    }
    write_retry_budget(table, *retry_budget);
    if *on_down != OnDown::default() {
        table.set("on_down", on_down.name());
    }
    table.some("slow_start", slow_start.as_ref());
    if let Some(QuorumSpec { weight, hysteresis }) = quorum {
        table.set("quorum", weight);
        table.unless("hysteresis", hysteresis, &0);
    }
    table.unless("inhibit_on_failure", inhibit_on_failure, &false);
    write_notify(table, notify.as_deref());
    write_queue(table, *queue);
}

fn write_notify(table: &mut Table, notify: Option<&NotifySpec>) {
    let Some(spec) = notify else { return };
    let mut nested = Table::new();
    for (key, hook) in spec.programs() {
        if let Some(hook) = hook {
            let mut whole = Table::new();
            write_program(&mut whole, hook);
            nested.key(key, whole);
        }
    }
    nested.unless("timeout", &spec.timeout, &NotifySpec::TIMEOUT);
    table.key("notify", nested);
}

/// Writes the path and the arguments of a program as items.
fn write_program(table: &mut Table, ProgramSpec { path, arguments }: &ProgramSpec) {
    table.item(quoted(path.as_bytes()));
    arguments.iter().for_each(|argument| table.item(quoted(argument.as_bytes())));
}

fn write_queue(table: &mut Table, queue: Option<QueueSpec>) {
    let Some(QueueSpec { size, timeout }) = queue else { return table.set("queue", &false) };
    let mut nested = Table::new();
    nested.unless("size", &size, &QueueSpec::DEFAULT.size);
    nested.unless("timeout", &timeout, &QueueSpec::DEFAULT.timeout);
    if !nested.is_empty() {
        table.key("queue", nested);
    }
}

fn write_retry_budget(table: &mut Table, budget: Option<RetryBudgetSpec>) {
    const DEFAULT: RetryBudgetSpec = RetryBudgetSpec::DEFAULT;
    let Some(RetryBudgetSpec { share_percent, min_per_second }) = budget else {
        return table.set("retry_budget", &false);
    };
    let share = format!("{share_percent}%");
    if min_per_second == DEFAULT.min_per_second {
        return table.unless("retry_budget", &share, &format!("{}%", DEFAULT.share_percent));
    }
    let mut nested = Table::new();
    nested.unless("share", &share, &format!("{}%", DEFAULT.share_percent));
    nested.set("min_per_second", &min_per_second);
    table.key("retry_budget", nested);
}

fn version(version: proxy::Version) -> &'static str {
    match version {
        proxy::Version::V1 => "v1",
        proxy::Version::V2 => "v2",
    }
}

fn write_policy(table: &mut Table, policy: Policy) {
    let mut nested = Table::of(format!("policy.{}", policy.name()));
    match policy {
        Policy::RoundRobin => return,
        Policy::Ewma { decay } => nested.unless("decay", &decay, &Policy::EWMA_DECAY),
        Policy::Maglev { table } => nested.unless("table", &table, &Policy::MAGLEV_TABLE),
        Policy::First
        | Policy::Weighted
        | Policy::LeastConn
        | Policy::LeastOutstanding
        | Policy::P2c
        | Policy::Hash => {}
    }
    if nested.is_empty() { table.set("policy", policy.name()) } else { table.key("policy", nested) }
}

fn write_sticky(table: &mut Table, sticky: Option<&StickySpec>) {
    let Some(StickySpec { by, size, ttl, failback, rebalance }) = sticky else { return };
    let defaults = sticky_defaults();
    let mut nested = Table::new();
    match by {
        StickyBy::ClientIp => {
            nested.unless("size", size, &defaults.size);
            nested.unless("ttl", ttl, &defaults.ttl);
            nested.unless("failback", failback, &defaults.failback);
            nested.some("rebalance", rebalance.as_ref());
        }
        // Clients store cookies, so `size` and `ttl` do not apply.
        StickyBy::Cookie(name) => {
            nested.set("by", "cookie");
            // The default name depends on the other pools of the services, so the name is always written.
            nested.set("name", name.as_str());
        }
    }
    if nested.is_empty() { table.set("sticky", &true) } else { table.key("sticky", nested) }
}

fn write_passive(table: &mut Table, passive: &PassiveSpec) {
    let PassiveSpec { failures, down_for } = passive;
    let defaults = PassiveSpec::default();
    if *passive == (PassiveSpec { failures: 0, ..defaults }) {
        return table.set("passive", &false);
    }
    let mut nested = Table::new();
    nested.unless("failures", failures, &defaults.failures);
    nested.unless("down_for", down_for, &defaults.down_for);
    if !nested.is_empty() {
        table.key("passive", nested);
    }
}

fn write_check(table: &mut Table, check: Option<&CheckSpec>, servers_tls: Option<&ServerTlsSpec>) {
    // A function cannot be printed: it may use other values of its file.
    let Some(check) = check.filter(|check| !matches!(check.kind, CheckKind::Script { .. })) else { return };
    let CheckSpec { kind, every, timeout, rise, fall, jitter, warm_up, port } = check;
    let mut nested = Table::of(format!("check.{}", kind.name()));
    write_kind(&mut nested, kind, servers_tls);
    let defaults = CheckSpec::new(CheckKind::Tcp);
    nested.unless("every", every, &defaults.every);
    nested.unless("timeout", timeout, &defaults.timeout);
    nested.unless("rise", rise, &defaults.rise);
    nested.unless("fall", fall, &defaults.fall);
    nested.unless("jitter", jitter, &defaults.jitter);
    nested.some("warm_up", Some(warm_up).filter(|delay| !delay.is_zero()));
    nested.some("port", port.as_ref());
    if nested.is_empty() { table.set("check", kind.name()) } else { table.key("check", nested) }
}

fn write_kind(nested: &mut Table, kind: &CheckKind, servers_tls: Option<&ServerTlsSpec>) {
    match kind {
        CheckKind::Tcp => {}
        CheckKind::Stream { send, begins, expect, tls } => {
            let texts = [("send", Some(send)), ("begins", begins.as_ref()), ("expect", expect.as_ref())];
            for (key, text) in texts {
                if let Some(text) = text.filter(|text| !text.is_empty()) {
                    nested.key(key, quoted(text));
                }
            }
            if let Some(tls) = tls {
                write_check_tls(nested, tls, servers_tls);
            }
        }
        CheckKind::Dns { name, qtype, rcode } => {
            let (usual_name, usual_type, _) = dns_defaults();
            nested.unless("name", name, &usual_name);
            nested.unless("type", &dns::type_name(*qtype), &dns::type_name(usual_type));
            nested.some("rcode", rcode.map(dns::rcode_name).as_ref());
        }
        CheckKind::Http { method, path, host, status, body, regex, digest, tls } => {
            let CheckSpec { kind: defaults, .. } = http_check();
            if let CheckKind::Http { method: usual_method, path: usual_path, status: usual, .. } = &defaults {
                nested.unless("method", method, usual_method);
                nested.unless("path", path, usual_path);
                nested.some("host", host.as_ref());
                if status != usual {
                    nested.key("status", one_or_list(status));
                }
            }
            if let Some(body) = body {
                nested.key("body", prose(body));
            }
            if let Some(regex) = regex {
                nested.key("regex", quoted(regex.as_bytes()));
            }
            nested.some("digest", digest.as_ref());
            if let Some(tls) = tls {
                write_check_tls(nested, tls, servers_tls);
            }
        }
        CheckKind::Script { .. } => {}
        CheckKind::Smtp { helo } => nested.unless("helo", helo, &SMTP_HELO.to_owned()),
        CheckKind::Exec { program } => write_program(nested, program),
        CheckKind::Udp { send, expect } => {
            nested.key("send", quoted(send));
            if let Some(expect) = expect {
                nested.key("expect", quoted(expect));
            }
        }
    }
}

/// Writes the TLS settings of a check that differ from the settings of the pool.
fn write_check_tls(nested: &mut Table, tls: &CheckTls, servers: Option<&ServerTlsSpec>) {
    let CheckTls { sni, insecure, ca_file } = tls;
    if sni.as_ref() != servers.and_then(|servers| servers.name.as_ref()) {
        nested.some("sni", sni.as_ref());
    }
    if *insecure && servers.is_none_or(|servers| servers.verification == Verification::Full) {
        nested.set("verify", &false);
    }
    if ca_file.as_ref() != servers.and_then(|servers| servers.authorities.as_ref()) {
        nested.some("ca", ca_file.as_deref().map(path).as_ref());
    }
}
