//! Comparison of specs field by field. Each function destructures the new spec without `..`, so that a field that is
//! added to a spec is compared, too, or the code does not compile.

mod check;

use super::FieldChange;
use super::text::Text;
use crate::spec::{
    AdminSpec, AdminTls, ClientCertificates, DnsCacheSpec, DnsRateSpec, DnsSpec, ForwardedSpec, HttpSpec,
    IpvsPersistence, IpvsServiceSpec, IpvsSpec, IpvsSync, IpvsTimeouts, NotifySpec, PassiveSpec, PoolSpec,
    QueueSpec, QuorumSpec, RespondSpec, RetryBudgetSpec, ServerSpec, ServerTlsSpec, ServiceOptions,
    ServiceSpec, StickySpec, TlsSpec, XdpServiceSpec, XdpSpec,
};
use crate::throttle::ThrottleSpec;
use crate::wire::http::HeaderLimits;
use check::checks;

/// Fields that differ, or all fields.
struct Fields {
    /// Names of the tables around the field, each with a dot.
    path: String,
    wanted: Wanted,
    found: Vec<FieldChange>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Differing,
    All,
}

/// Returns the fields of a server that differ.
pub(super) fn of_servers(old: &ServerSpec, new: &ServerSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| server(fields, old, new))
}

/// Returns the fields of the XDP plane that differ.
pub(super) fn of_xdp(old: &XdpSpec, new: &XdpSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| xdp(fields, old, new))
}

/// Returns the fields of the IPVS plane that differ.
pub(super) fn of_ipvs(old: &IpvsSpec, new: &IpvsSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| ipvs(fields, old, new))
}

/// Returns the fields of the admin API that differ.
pub(super) fn of_admin(old: &AdminSpec, new: &AdminSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| admin(fields, old, new))
}

/// Returns the fields of a pool that differ, without its servers.
pub(super) fn of_pools(old: &PoolSpec, new: &PoolSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| pool(fields, old, new))
}

/// Returns the fields of a service that differ, without its listen addresses.
pub(super) fn of_services(old: &ServiceSpec, new: &ServiceSpec) -> Vec<FieldChange> {
    Fields::differing(|fields| service(fields, old, new))
}

impl Fields {
    fn differing(compare: impl FnOnce(&mut Self)) -> Vec<FieldChange> {
        let mut fields = Self { path: String::new(), wanted: Wanted::Differing, found: Vec::new() };
        compare(&mut fields);
        fields.found
    }

    /// Returns all fields of a table on one line.
    fn describe(compare: impl FnOnce(&mut Self)) -> String {
        let mut fields = Self { path: String::new(), wanted: Wanted::All, found: Vec::new() };
        compare(&mut fields);
        let fields = fields.found.iter().map(|field| format!("{} {}", field.field, field.after));
        format!("({})", fields.collect::<Vec<_>>().join(", "))
    }

    /// Compares a field.
    fn field<T: Text + PartialEq>(&mut self, name: &str, old: &T, new: &T) {
        if self.wanted == Wanted::All || old != new {
            self.push(name, old.text(), new.text());
        }
    }

    fn push(&mut self, name: &str, before: String, after: String) {
        self.found.push(FieldChange { field: format!("{}{name}", self.path), before, after });
    }

    /// Compares a table that may be absent. If one of the two is absent, the other one is a single value.
    fn table<T>(&mut self, name: &str, old: Option<&T>, new: Option<&T>, compare: fn(&mut Self, &T, &T)) {
        if let (Some(old), Some(new)) = (old, new) {
            let length = self.path.len();
            self.path.extend([name, "."]);
            compare(self, old, new);
            self.path.truncate(length);
        } else if self.wanted == Wanted::All || old.is_some() || new.is_some() {
            let text = |table: Option<&T>| {
                table.map_or_else(
                    || "none".into(),
                    |table| Self::describe(|fields| compare(fields, table, table)),
                )
            };
            self.push(name, text(old), text(new));
        }
    }
}

fn server(fields: &mut Fields, old: &ServerSpec, new: &ServerSpec) {
    // The names are compared before.
    let ServerSpec {
        name: _,
        configured_name: _,
        endpoint,
        dialect,
        weight,
        tier,
        limits,
        acl,
        state,
        is_sorry,
        quic_id,
        check: check_spec,
    } = new;
    fields.field("address", &old.endpoint.server_text(), &endpoint.server_text());
    fields.field("protocol", &old.dialect, dialect);
    fields.field("weight", &old.weight, weight);
    fields.field("tier", &old.tier, tier);
    let crate::limits::Limits { soft, hard } = limits;
    fields.field("max", &old.limits.soft, soft);
    fields.field("hard", &old.limits.hard, hard);
    fields.field("access", &old.acl, acl);
    fields.field("state", &old.state, state);
    fields.field("sorry", &old.is_sorry, is_sorry);
    fields.field("quic_id", &old.quic_id, quic_id);
    checks(fields, old.check.as_deref(), check_spec.as_deref());
}

fn pool(fields: &mut Fields, old: &PoolSpec, new: &PoolSpec) {
    let PoolSpec {
        name: _,
        servers: _,
        discover,
        resolve,
        resolvers,
        policy,
        sticky: sticky_spec,
        check: check_spec,
        passive: passive_spec,
        failover,
        retry_budget: budget,
        on_down,
        slow_start,
        quorum: quorum_spec,
        inhibit_on_failure,
        notify: notify_spec,
        queue: queue_spec,
        tls,
        send_proxy,
    } = new;
    fields.field("discover", &old.discover, discover);
    fields.field("resolve", &old.resolve, resolve);
    fields.field("resolver", &old.resolvers, resolvers);
    fields.field("policy", &old.policy, policy);
    fields.table("sticky", old.sticky.as_ref(), sticky_spec.as_ref(), sticky);
    checks(fields, old.check.as_ref(), check_spec.as_ref());
    fields.table("passive", Some(&old.passive), Some(passive_spec), passive);
    fields.field("failover", &old.failover, failover);
    fields.table("retry_budget", old.retry_budget.as_ref(), budget.as_ref(), retry_budget);
    fields.field("on_down", &old.on_down, on_down);
    fields.field("slow_start", &old.slow_start, slow_start);
    quorum(fields, old.quorum, *quorum_spec);
    fields.field("inhibit_on_failure", &old.inhibit_on_failure, inhibit_on_failure);
    fields.table("notify", old.notify.as_deref(), notify_spec.as_deref(), notify);
    fields.table("queue", old.queue.as_ref(), queue_spec.as_ref(), queue);
    fields.table("tls", old.tls.as_deref(), tls.as_deref(), server_tls);
    fields.field("send_proxy", &old.send_proxy, send_proxy);
}

fn quorum(fields: &mut Fields, old: Option<QuorumSpec>, new: Option<QuorumSpec>) {
    let hysteresis = |spec: Option<QuorumSpec>| spec.map_or(0, |spec| spec.hysteresis);
    fields.field("quorum", &old.map(|spec| spec.weight), &new.map(|spec| spec.weight));
    fields.field("hysteresis", &hysteresis(old), &hysteresis(new));
}

fn notify(fields: &mut Fields, old: &NotifySpec, new: &NotifySpec) {
    for ((name, new), (_, old)) in new.programs().into_iter().zip(old.programs()) {
        fields.field(name, &old.cloned(), &new.cloned());
    }
    fields.field("timeout", &old.timeout, &new.timeout);
}

fn sticky(fields: &mut Fields, old: &StickySpec, new: &StickySpec) {
    let StickySpec { by, size, ttl, failback, rebalance } = new;
    fields.field("by", &old.by, by);
    fields.field("size", &old.size, size);
    fields.field("ttl", &old.ttl, ttl);
    fields.field("failback", &old.failback, failback);
    fields.field("rebalance", &old.rebalance, rebalance);
}

fn passive(fields: &mut Fields, old: &PassiveSpec, new: &PassiveSpec) {
    let PassiveSpec { failures, down_for } = new;
    fields.field("failures", &old.failures, failures);
    fields.field("down_for", &old.down_for, down_for);
}

fn retry_budget(fields: &mut Fields, old: &RetryBudgetSpec, new: &RetryBudgetSpec) {
    let RetryBudgetSpec { share_percent, min_per_second } = new;
    let share = |percent: u32| format!("{percent}%");
    fields.field("share", &share(old.share_percent), &share(*share_percent));
    fields.field("min_per_second", &old.min_per_second, min_per_second);
}

fn queue(fields: &mut Fields, old: &QueueSpec, new: &QueueSpec) {
    let QueueSpec { size, timeout } = new;
    fields.field("size", &old.size, size);
    fields.field("timeout", &old.timeout, timeout);
}

fn server_tls(fields: &mut Fields, old: &ServerTlsSpec, new: &ServerTlsSpec) {
    let ServerTlsSpec { name, authorities, verification, certificate } = new;
    fields.field("name", &old.name, name);
    fields.field("ca", &old.authorities, authorities);
    fields.field("verify", &old.verification, verification);
    fields.field("certificate", &old.certificate, certificate);
}

fn service(fields: &mut Fields, old: &ServiceSpec, new: &ServiceSpec) {
    let ServiceSpec {
        name: _,
        listen: _,
        protocol,
        plane,
        xdp: xdp_spec,
        ipvs: ipvs_spec,
        pool,
        routes,
        acl,
        denied,
        throttle: throttle_spec,
        exceeded,
        proxy_from,
        tls: tls_spec,
        http: http_spec,
        dns: dns_spec,
        clients,
        // Only pen differs.
        records_refused: _,
        request_log,
        options: new_options,
    } = new;
    fields.field("protocol", &old.protocol, protocol);
    fields.field("plane", &old.plane, plane);
    fields.field("pool", &old.pool, pool);
    fields.field("routes", &old.routes, routes);
    fields.field("access", &old.acl, acl);
    fields.field("denied", &old.denied, denied);
    fields.table("per_client", old.throttle.as_ref(), throttle_spec.as_ref(), throttle);
    fields.field("exceeded", &old.exceeded, exceeded);
    fields.field("proxy_from", &old.proxy_from, proxy_from);
    fields.table("tls", old.tls.as_deref(), tls_spec.as_deref(), tls);
    // The keys of HTTP are keys of the service. Their presence follows from the protocol.
    if let (Some(old), Some(new)) = (&old.http, http_spec) {
        http(fields, old, new);
    }
    if let (Some(_), Some(_)) = (&old.dns, dns_spec) {
        fields.table("dns", old.dns.as_deref(), dns_spec.as_deref(), dns);
    }
    // The keys of the plane are keys of the service. Their presence follows from the plane.
    if let (Some(old), Some(new)) = (&old.xdp, xdp_spec) {
        xdp_service(fields, old, new);
    }
    if let (Some(old), Some(new)) = (&old.ipvs, ipvs_spec) {
        ipvs_service(fields, old, new);
    }
    fields.field("clients", &old.clients, clients);
    fields.field("request_log", &old.request_log, request_log);
    options(fields, &old.options, new_options);
}

fn throttle(fields: &mut Fields, old: &ThrottleSpec, new: &ThrottleSpec) {
    let ThrottleSpec { connections, connection_rate, request_rate, size } = new;
    fields.field("connections", &old.connections, connections);
    fields.field("connection_rate", &old.connection_rate, connection_rate);
    fields.field("request_rate", &old.request_rate, request_rate);
    fields.field("size", &old.size, size);
}

fn tls(fields: &mut Fields, old: &TlsSpec, new: &TlsSpec) {
    let TlsSpec {
        certificates,
        directories,
        client: client_spec,
        oldest,
        alpn,
        handshake_timeout,
        handshakes_max,
    } = new;
    fields.field("certificates", &old.certificates, certificates);
    fields.field("directory", &old.directories, directories);
    let client = |client: &Option<ClientCertificates>| {
        let parts = |ClientCertificates { authorities, presence }: &_| (authorities.clone(), *presence);
        client.as_ref().map(parts).unzip()
    };
    let ((old_authorities, old_presence), (authorities, presence)) =
        (client(&old.client), client(client_spec));
    fields.field("client_ca", &old_authorities, &authorities);
    fields.field("client_certificate", &old_presence, &presence);
    fields.field("min_version", &old.oldest, oldest);
    fields.field("alpn", &old.alpn, alpn);
    fields.field("handshake_timeout", &old.handshake_timeout, handshake_timeout);
    fields.field("handshakes_max", &old.handshakes_max, handshakes_max);
}

fn http(fields: &mut Fields, old: &HttpSpec, new: &HttpSpec) {
    let HttpSpec {
        balance,
        forwarded: forwarded_spec,
        limits,
        header_timeout,
        keepalive_timeout,
        stall_timeout,
        min_rate,
        abort_on_close,
        response_timeout,
        retries,
        redirect,
        respond,
        health,
        subject_field,
        http2,
    } = new;
    let HeaderLimits { bytes_max, fields_max } = limits;
    fields.field("balance_per", &old.balance, balance);
    fields.table("forwarded", Some(&old.forwarded), Some(forwarded_spec), forwarded);
    fields.field("header_bytes_max", &old.limits.bytes_max, bytes_max);
    fields.field("header_fields_max", &old.limits.fields_max, fields_max);
    fields.field("header_timeout", &old.header_timeout, header_timeout);
    fields.field("keepalive_timeout", &old.keepalive_timeout, keepalive_timeout);
    fields.field("stall_timeout", &old.stall_timeout, stall_timeout);
    fields.field("min_rate", &old.min_rate, min_rate);
    fields.field("abort_on_close", &old.abort_on_close, abort_on_close);
    fields.field("response_timeout", &old.response_timeout, response_timeout);
    fields.field("retries", &old.retries, retries);
    fields.field("redirect", &old.redirect, redirect);
    fields.table("respond", old.respond.as_ref(), respond.as_ref(), |fields, old, new| {
        let RespondSpec { status, content_type, body } = new;
        fields.field("status", &old.status, status);
        fields.field("type", &old.content_type, content_type);
        fields.field("body", &old.body, body);
    });
    fields.field("health", &old.health, health);
    fields.field("certificate_header", &old.subject_field, subject_field);
    fields.field("http2", &old.http2, http2);
}

fn forwarded(fields: &mut Fields, old: &ForwardedSpec, new: &ForwardedSpec) {
    let ForwardedSpec { mode, trust, classic, standard } = new;
    fields.field("mode", &old.mode, mode);
    fields.field("trust", &old.trust, trust);
    let headers = |classic, standard| match (classic, standard) {
        (true, true) => "both",
        (true, false) => "x-forwarded",
        (false, true) => "forwarded",
        (false, false) => "none",
    };
    let (old_headers, headers) = (headers(old.classic, old.standard), headers(*classic, *standard));
    fields.field("headers", &old_headers.to_owned(), &headers.to_owned());
}

fn dns(fields: &mut Fields, old: &DnsSpec, new: &DnsSpec) {
    let DnsSpec {
        query_timeout,
        retries,
        on_failure,
        retry_on,
        outstanding_max,
        sockets,
        pipeline_max,
        cache,
        client_subnet,
        rate_limit,
    } = new;
    fields.field("query_timeout", &old.query_timeout, query_timeout);
    fields.field("retries", &old.retries, retries);
    fields.field("on_failure", &old.on_failure, on_failure);
    fields.field("retry_on", &old.retry_on, retry_on);
    fields.field("outstanding_max", &old.outstanding_max, outstanding_max);
    fields.field("sockets", &old.sockets, sockets);
    fields.field("pipeline_max", &old.pipeline_max, pipeline_max);
    fields.table("cache", old.cache.as_ref(), cache.as_ref(), |fields, old, new| {
        let DnsCacheSpec { entries, bytes, ttl_max, negative_ttl_max, failure_ttl, stale } = new;
        fields.field("entries", &old.entries, entries);
        fields.field("bytes", &old.bytes, bytes);
        fields.field("ttl_max", &old.ttl_max, ttl_max);
        fields.field("negative_ttl_max", &old.negative_ttl_max, negative_ttl_max);
        fields.field("failure_ttl", &old.failure_ttl, failure_ttl);
        fields.field("stale", &old.stale, stale);
    });
    fields.field("client_subnet", &old.client_subnet, client_subnet);
    fields.table("rate_limit", old.rate_limit.as_ref(), rate_limit.as_ref(), |fields, old, new| {
        let DnsRateSpec { rate, v4, v6, slip, size } = new;
        fields.field("rate", &old.rate, rate);
        fields.field("v4", &old.v4, v4);
        fields.field("v6", &old.v6, v6);
        fields.field("slip", &old.slip, slip);
        fields.field("size", &old.size, size);
    });
}

fn options(fields: &mut Fields, old: &ServiceOptions, new: &ServiceOptions) {
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
    } = new;
    fields.field("connections_max", &old.connections_max, connections_max);
    fields.field("flows_max", &old.flows_max, flows_max);
    fields.field("spread", &old.spread, spread);
    fields.field("connect_timeout", &old.connect_timeout, connect_timeout);
    fields.field("attempts_max", &old.attempts_max, attempts_max);
    fields.field("connect_time_max", &old.connect_time_max, connect_time_max);
    fields.field("idle_timeout", &old.idle_timeout, idle_timeout);
    fields.field("half_closed_timeout", &old.half_closed_timeout, half_closed_timeout);
    fields.field("freebind", &old.freebind, freebind);
    fields.field("backlog", &old.backlog, backlog);
    fields.field("nodelay", &old.nodelay, nodelay);
    fields.field("keepalive", &old.keepalive, keepalive);
    fields.field("server_keepalive", &old.server_keepalive, server_keepalive);
    let mode = |mode: &Option<u32>| mode.map(|mode| format!("{mode:04o}"));
    fields.field("unix_mode", &mode(&old.unix_mode), &mode(unix_mode));
    fields.field("source", &old.source, source);
    fields.field("fast_close", &old.fast_close, fast_close);
    fields.field("pending_max", &old.pending_max, pending_max);
    fields.field("warm", &old.warm, warm);
}

fn xdp(fields: &mut Fields, old: &XdpSpec, new: &XdpSpec) {
    let XdpSpec { flows, mode, pin, events, events_per_second, tarpit, tarpit_interfaces } = new;
    fields.field("flows", &old.flows, flows);
    fields.field("mode", &old.mode, mode);
    fields.field("pin", &old.pin, pin);
    fields.field("events", &old.events, events);
    fields.field("events_per_second", &old.events_per_second, events_per_second);
    fields.field("tarpit", &old.tarpit, tarpit);
    fields.field("tarpit_interfaces", &old.tarpit_interfaces, tarpit_interfaces);
}

fn xdp_service(fields: &mut Fields, old: &XdpServiceSpec, new: &XdpServiceSpec) {
    let XdpServiceSpec { interfaces, forward, next_hop, idle_timeout, rate, syn_cookies, quic_id_length } =
        new;
    fields.field("interfaces", &old.interfaces, interfaces);
    fields.field("forward", &old.forward, forward);
    fields.field("next_hop", &old.next_hop, next_hop);
    fields.field("idle_timeout", &old.idle_timeout, idle_timeout);
    fields.field("source_rate", &old.rate, rate);
    fields.field("syn_cookies", &old.syn_cookies, syn_cookies);
    fields.field("quic_id_length", &old.quic_id_length, quic_id_length);
}

fn ipvs(fields: &mut Fields, old: &IpvsSpec, new: &IpvsSpec) {
    let IpvsSpec { own_table, sync, timeouts } = new;
    fields.field("own_table", &old.own_table, own_table);
    fields.table("sync", old.sync.as_ref(), sync.as_ref(), |fields, old, new| {
        let IpvsSync { role, interface, id } = new;
        fields.field("role", &old.role, role);
        fields.field("interface", &old.interface, interface);
        fields.field("id", &old.id, id);
    });
    fields.table("timeouts", Some(&old.timeouts), Some(timeouts), |fields, old, new| {
        let IpvsTimeouts { tcp, tcp_fin, udp } = new;
        fields.field("tcp", &old.tcp, tcp);
        fields.field("tcp_fin", &old.tcp_fin, tcp_fin);
        fields.field("udp", &old.udp, udp);
    });
}

fn admin(fields: &mut Fields, old: &AdminSpec, new: &AdminSpec) {
    let AdminSpec { listen, token_file, tls, hosts, state_file } = new;
    fields.field("listen", &old.listen, listen);
    fields.field("token_file", &old.token_file, token_file);
    fields.table("tls", old.tls.as_ref(), tls.as_ref(), |fields, old, new| {
        let AdminTls { certificate, key } = new;
        fields.field("certificate", &old.certificate, certificate);
        fields.field("key", &old.key, key);
    });
    fields.field("hosts", &old.hosts, hosts);
    fields.field("state_file", &old.state_file, state_file);
}

fn ipvs_service(fields: &mut Fields, old: &IpvsServiceSpec, new: &IpvsServiceSpec) {
    let IpvsServiceSpec {
        transport,
        fwmark,
        forward,
        scheduler,
        scheduler_flags,
        one_packet,
        persistence,
        address_on,
        drain_timeout,
    } = new;
    // The protocol of the service tells tcp from udp.
    if transport.name() == "sctp" || old.transport.name() == "sctp" {
        fields.field("protocol", &old.transport, transport);
    }
    fields.field("fwmark", &old.fwmark, fwmark);
    fields.field("forward", &old.forward, forward);
    fields.field("scheduler", &old.scheduler, scheduler);
    fields.field("scheduler_flags", &old.scheduler_flags, scheduler_flags);
    fields.field("one_packet", &old.one_packet, one_packet);
    fields.table("persistence", old.persistence.as_ref(), persistence.as_ref(), |fields, old, new| {
        let IpvsPersistence { timeout, prefix_v4, prefix_v6, engine } = new;
        fields.field("timeout", &old.timeout, timeout);
        fields.field("v4", &old.prefix_v4, prefix_v4);
        fields.field("v6", &old.prefix_v6, prefix_v6);
        fields.field("engine", &old.engine, engine);
    });
    fields.field("address_on", &old.address_on, address_on);
    fields.field("drain_timeout", &old.drain_timeout, drain_timeout);
}
