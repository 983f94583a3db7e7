//! Warnings about a valid configuration: settings without effect, and settings that probably do not do as their
//! author intended. Only what is certain from the configuration is here; nothing here refuses a configuration.

use super::Builder;
use crate::config::hints;
use crate::config::raw::{Made, Value};
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, Plane, Policy, PoolSpec, ProgramSpec, Protocol, ServiceSpec, Spec};
use std::collections::HashMap;
use std::path::Path;

/// Pools and services by name. A configuration may have tens of thousands of them.
struct Index<'a> {
    pools: HashMap<&'a str, &'a PoolSpec>,
    services: HashMap<&'a str, &'a ServiceSpec>,
    /// For each pool, the services that can send clients to it.
    users: HashMap<&'a str, Vec<&'a ServiceSpec>>,
}

impl<'a> Index<'a> {
    fn of(spec: &'a Spec) -> Self {
        let mut users: HashMap<&str, Vec<&ServiceSpec>> = HashMap::new();
        for service in &spec.services {
            for pool in service.pools() {
                users.entry(pool).or_default().push(service);
            }
        }
        Self {
            pools: spec.pools.iter().map(|pool| (&*pool.name, pool)).collect(),
            services: spec.services.iter().map(|service| (&*service.name, service)).collect(),
            users,
        }
    }

    fn users_of(&self, pool: &str) -> &[&'a ServiceSpec] {
        self.users.get(pool).map_or(&[], |users| users)
    }
}

impl Builder<'_> {
    /// Records the warnings about all pools and services.
    pub(super) fn warn(&self) {
        let (run, index) = (self.reading.run(), Index::of(&self.config.spec));
        for (location, name) in run.unused_globals() {
            let message = format!("`{name}` is set and never used: {}", hints::unused_global(name));
            self.reading.warning(&location, message);
        }
        for made in run.pools().iter().filter(|made| index.users_of(made.name()).is_empty()) {
            let name = made.name();
            let message = format!(
                "pool `{name}`: no service uses this pool: write pool = \"{name}\" in a service, or remove the pool"
            );
            self.reading.warning(made.location(), message);
        }
        for made in run.pools().iter().chain(run.services()) {
            // The pool of the servers of a service has the name of the service.
            if let Some(pool) = index.pools.get(made.name()) {
                self.warn_of_pool(made, pool, index.users_of(made.name()));
            }
        }
        self.warn_of_shared_addresses();
        for made in run.services() {
            if let Some(service) = index.services.get(made.name()) {
                self.warn_of_service(made, service, &index);
            }
        }
    }

    /// Records warnings about keys of a pool that have no effect.
    fn warn_of_pool(&self, made: &Made, pool: &PoolSpec, users: &[&ServiceSpec]) {
        let warn = |key: &str, message: &str| {
            let message = format!("{} `{}`: {message}", made.builder(), made.name());
            self.reading.warning_inside(made.location(), &[key], message);
        };
        warn_of_quorum(pool, users, warn);
        warn_of_programs(pool, warn);
        let policy = pool.policy.name();
        let mut weights = pool
            .servers
            .iter()
            .filter(|one| !one.is_sorry)
            .map(|server| server.weight)
            .filter(|weight| *weight > 0);
        let first = weights.next();
        let differ = weights.any(|weight| Some(weight) != first);
        // A scheduler of the kernel takes the place of the policy.
        let has_policy =
            users.iter().any(|service| service.ipvs.as_ref().is_none_or(|ipvs| ipvs.scheduler.is_none()))
                || users.is_empty();
        if differ && has_policy && matches!(pool.policy, Policy::RoundRobin | Policy::First) {
            let message = format!(
                "the servers have different weights, but policy = \"{policy}\" does not use weights: write policy = \"weighted\", or remove weight"
            );
            warn("weight", &message);
        }
        let is_by_client = matches!(pool.policy, Policy::Hash | Policy::Maglev { .. } | Policy::First);
        if is_by_client && pool.slow_start.is_some() {
            let message = format!("slow_start has no effect with policy = \"{policy}\": remove one of them");
            warn("slow_start", &message);
        }
        let has_host = pool.servers.iter().any(|server| matches!(server.endpoint, Endpoint::Host { .. }));
        for key in ["resolver", "resolve"] {
            if is_on(made, key) && !has_host && pool.discover.is_empty() {
                let message = format!("{key} has no effect: the pool has neither host names nor `discover`");
                warn(key, &message);
            }
        }
        for server in &pool.servers {
            let Endpoint::Ip(address) = &server.endpoint else { continue };
            if address.ip().is_unspecified() {
                let local = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
                let message = format!(
                    "server `{}` has the address for listening on all interfaces: write {local}:{} for this machine",
                    server.name,
                    address.port()
                );
                let at = self.config.servers.get(&server.endpoint).unwrap_or(made.location());
                self.reading.warning(at, format!("{} `{}`: {message}", made.builder(), made.name()));
            }
        }
        let has_queue = users.iter().any(|user| {
            user.plane != Plane::Proxy || matches!(user.protocol, Protocol::Tcp | Protocol::Http)
        });
        if is_on(made, "queue") && !users.is_empty() && !has_queue {
            warn("queue", "queue has no effect: only clients of tcp and http services wait in a queue");
        }
    }

    /// Records warnings about keys of a service that have no effect or a surprising effect.
    fn warn_of_service(&self, made: &Made, service: &ServiceSpec, index: &Index<'_>) {
        let warn = |key: &str, message: &str| {
            let message = format!("service `{}`: {message}", service.name);
            self.reading.warning_inside(made.location(), &[key], message);
        };
        self.warn_of_kernel(made, service);
        if is_on(made, "http2") && service.tls.is_none() {
            warn(
                "http2",
                "http2 has no effect without tls: without TLS all clients use HTTP/1.1; add tls or remove http2",
            );
        }
        if let Some(http) = &service.http {
            let local = if http.redirect.is_some() { "redirect" } else { "respond" };
            let responds_to_all = http.redirect.is_some() || http.respond.is_some();
            // The health response depends on the servers of the pool.
            if responds_to_all && http.health.is_none() && service.pool.is_some() {
                let unused = match made.table().get("pool") {
                    Some(_) => "its pool is",
                    None => "its servers are",
                };
                let message = format!(
                    "{local} responds to every request that no route matches, so {unused} never used: remove {}, or write {local} in another service",
                    if unused == "its pool is" { "pool" } else { "the servers" }
                );
                warn(local, &message);
            }
            if let Some(redirect) = http.redirect.filter(|_| service.tls.is_some()) {
                let is_here = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Ip(address) if address.port() == redirect.port);
                if service.listen.iter().any(is_here) {
                    let message = format!(
                        "redirect sends clients to https on port {}, where this service itself listens, so they are redirected without end: write redirect in the service without tls",
                        redirect.port
                    );
                    warn("redirect", &message);
                }
            }
            let asks_certificates = service.tls.as_ref().is_some_and(|tls| tls.client.is_some());
            if http.subject_field.is_some() && !asks_certificates {
                warn(
                    "certificate_header",
                    "certificate_header has no subject to send: clients have certificates only with tls = { client_ca = \"FILE\" }",
                );
            }
        }
        let has_cache = service.dns.as_ref().is_some_and(|dns| dns.cache.is_some());
        let informed = service.pools().filter_map(|name| index.pools.get(&**name));
        if let Some(pool) = informed.into_iter().find(|pool| has_cache && pool.send_proxy.is_some()) {
            let message = format!(
                "pool `{}` reports each client to its servers (send_proxy), but cached responses are shared by all clients: disable the cache if the servers respond differently to different clients",
                pool.name
            );
            self.reading.warning_inside(
                made.location(),
                &["dns", "cache"],
                format!("service `{}`: {message}", service.name),
            );
        }
        let has_unix = service.listen.iter().any(|endpoint| matches!(endpoint, Endpoint::Unix(_)));
        if service.options.unix_mode.is_some() && !has_unix {
            warn("unix_mode", "unix_mode has no effect: the service listens on no unix socket");
        }
    }
}

/// Returns true if a declaration has a key whose value is not `false`.
fn is_on(made: &Made, key: &str) -> bool {
    made.table().get(key).is_some_and(|value| !matches!(value, Value::Bool(false)))
}

/// Records warnings about the quorum of a pool.
fn warn_of_quorum(pool: &PoolSpec, users: &[&ServiceSpec], warn: impl Fn(&str, &str)) {
    let mut sorry = pool.servers.iter().filter(|server| server.is_sorry);
    if pool.inhibit_on_failure && users.iter().all(|service| service.plane != Plane::Ipvs) {
        warn("inhibit_on_failure", "inhibit_on_failure has an effect only with plane = \"ipvs\": remove it");
    }
    let all: u64 = pool.servers.iter().filter(|one| !one.is_sorry).map(|one| u64::from(one.weight)).sum();
    if let Some(quorum) = pool.quorum.filter(|_| pool.discover.is_empty())
        && all < u64::from(quorum.weight) + u64::from(quorum.hysteresis)
    {
        let message = match quorum.hysteresis {
            0 => format!(
                "the weights of all servers are {all}, less than quorum: the pool never has its quorum"
            ),
            _ => format!(
                "the weights of all servers are {all}, less than quorum and hysteresis: the pool cannot regain its quorum"
            ),
        };
        warn("quorum", &message);
    }
    if pool.quorum.is_some()
        && pool.notify.is_none()
        && sorry.next().is_none()
        && users.iter().all(|service| service.plane != Plane::Ipvs)
    {
        warn(
            "quorum",
            "without a sorry server the quorum has no effect but its events: write notify, or sorry = \"10.0.0.9:80\"",
        );
    }
}

/// Records warnings about programs that cannot run.
fn warn_of_programs(pool: &PoolSpec, warn: impl Fn(&str, &str)) {
    let missing = |program: &ProgramSpec| {
        let path = &program.path;
        (!Path::new(path).exists()).then(|| format!("there is no program {path} on this machine: install it"))
    };
    for check in pool.checks() {
        if let CheckKind::Exec { program } = &check.kind
            && let Some(message) = missing(program)
        {
            warn("check", &message);
        }
    }
    let Some(notify) = &pool.notify else { return };
    for (name, program) in notify.programs() {
        let Some(program) = program else { continue };
        if let Some(message) = missing(program) {
            warn("notify", &message);
        }
        if pool.quorum.is_none() && name.starts_with("quorum_") {
            let message = format!("{name} never runs, because the pool has no quorum: write quorum = 1");
            warn("notify", &message);
        }
    }
}
