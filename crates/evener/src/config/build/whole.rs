//! Checks of the whole configuration: addresses used twice, and settings that a protocol does not support.

use super::Builder;
use crate::config::{Location, dns};
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, Denied, Policy, PoolSpec, Protocol, ServiceSpec, StickyBy, Transport};
use evener_core::wire::proxy::Version;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Builder<'_> {
    /// Checks the whole configuration: addresses used twice, and servers that a protocol does not support.
    pub(super) fn check_whole(&self) {
        if self.config.spec.services.is_empty() && self.reading.is_well() {
            let file = self
                .reading
                .run
                .sources
                .first()
                .map_or_else(|| "configuration".into(), |source| Arc::clone(&source.file));
            let message =
                "there is no service: write service \"www\" { listen = \"0.0.0.0:80\", \"10.0.0.1:80\" }";
            self.reading.problem(&Location { file, line: 1 }, message);
        }
        let mut taken: BTreeMap<(Transport, &Endpoint), &str> = BTreeMap::new();
        let locations: BTreeMap<&str, &Location> = self
            .reading
            .run
            .services
            .iter()
            .map(|made| (made.name.as_deref().unwrap_or_default(), &made.location))
            .collect();
        self.check_checks();
        for service in &self.config.spec.services {
            let Some(location) = locations.get(&*service.name) else { continue };
            for endpoint in &service.listen {
                let locations = service.protocol.transports().iter().map(|each| (*each, endpoint));
                let others = locations.filter_map(|location| taken.insert(location, &service.name));
                // Each service gets a port of its own if the system chooses it.
                let is_free = |other: &&str| {
                    matches!(endpoint, Endpoint::Ip(ip) if ip.port() == 0) && **other != *service.name
                };
                if let Some(other) = others.last().filter(|other| !is_free(other)) {
                    let at = self.reading.run.refine(location, &[&endpoint.to_string()]);
                    let message = if *other == *service.name {
                        format!("service `{other}` listens on {endpoint} twice")
                    } else {
                        format!(
                            "service `{}` listens on {endpoint}, and so does service `{other}`",
                            service.name
                        )
                    };
                    self.reading.problem(&at, message);
                }
            }
            self.check_cookies(service, location);
            self.check_edge(service, location);
            self.check_dns(service, location);
            if service.protocol == Protocol::Udp {
                self.check_udp(service, location);
                let servers = self
                    .config
                    .spec
                    .pools
                    .iter()
                    .filter(|pool| pools_of(service).any(|name| *name == pool.name));
                let unix =
                    servers.flat_map(|pool| &pool.servers).find(|s| matches!(s.endpoint, Endpoint::Unix(_)));
                if let Some(server) = unix {
                    let at = self.config.locations.get(&server.endpoint).unwrap_or(location);
                    let message =
                        format!("server `{}` is a unix socket: a udp service needs IP servers", server.name);
                    self.reading.problem(at, message);
                }
            }
        }
    }

    /// Checks settings that exclude each other at the edge.
    fn check_edge(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        let passes = service.protocol == Protocol::Tcp && service.tls.is_none() && !service.routes.is_empty();
        if let Some(pool) = pools().find(|pool| passes && pool.tls.is_some()) {
            let message = format!(
                "service `{name}`: routes by `sni` without `tls` pass TLS through, so pool `{}` must not have `tls`",
                pool.name
            );
            self.reading.problem(location, message);
        }
        let rates = service.throttle.as_ref().is_some_and(|throttle| throttle.request_rate.is_some());
        if rates && service.protocol != Protocol::Http {
            let at = self.reading.run.refine(location, &["per_client", "request_rate"]);
            self.reading.problem(&at, format!("service `{name}`: `request_rate` needs protocol = \"http\""));
        }
        for (key, denied) in [("denied", &service.denied), ("exceeded", &service.exceeded)] {
            let Denied::Pool(pool) = denied else { continue };
            if !self.config.spec.pools.iter().any(|known| known.name == *pool) {
                let at = self.reading.run.refine(location, &[key]);
                let message = format!(
                    "`{key}` is `{pool}`, not \"drop\", \"reject\", \"tarpit\", {{ tarpit = \"10s\" }} or a pool"
                );
                self.reading.problem(&at, message);
            }
        }
    }

    /// Checks that pools which are sticky by cookie belong to http services.
    fn check_cookies(&self, service: &ServiceSpec, location: &Location) {
        let pools = pools_of(service)
            .filter_map(|name| self.config.spec.pools.iter().find(|pool| pool.name == *name));
        let by_cookie =
            |pool: &&PoolSpec| pool.sticky.as_ref().is_some_and(|sticky| sticky.by != StickyBy::ClientIp);
        if let Some(pool) = pools.filter(|_| service.protocol != Protocol::Http).find(by_cookie) {
            let (service, pool) = (&service.name, &pool.name);
            let message = format!(
                "service `{service}`: pool `{pool}` is sticky by cookie, which needs protocol = \"http\""
            );
            self.reading.problem(location, message);
        }
    }

    /// Checks settings that a dns service does not support, and those that only it supports.
    fn check_dns(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        let problem =
            |message: String| self.reading.problem(location, format!("service `{name}`: {message}"));
        if service.protocol != Protocol::Dns {
            if let Some(pool) = pools().find(|pool| dns::has_mname(pool)) {
                let pool = &pool.name;
                problem(format!("pool `{pool}` has servers of mname, which need protocol = \"dns\""));
            }
            return;
        }
        if let Some(endpoint) = service.listen.iter().find(|endpoint| matches!(endpoint, Endpoint::Unix(_))) {
            problem(format!("`{endpoint}` is a unix socket: a dns service must listen on IP addresses"));
        }
        if let Some(server) = pools().find_map(dns::plain_socket) {
            let at = self.config.locations.get(&server.endpoint).unwrap_or(location);
            let server = &server.name;
            let message = format!(
                "server `{server}` is a unix socket: a dns service needs IP servers, or sockets with mname = true"
            );
            self.reading.problem(at, message);
        }
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol does not support UDP: send_proxy = \"v2\"".into());
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a dns service cannot use TLS: remove `tls` of its pool".into());
        }
        if matches!(service.denied, Denied::Tarpit(_)) || matches!(service.exceeded, Denied::Tarpit(_)) {
            problem("a dns service does not support \"tarpit\": use \"drop\", \"reject\" or a pool".into());
        }
    }

    /// Checks that DNS checks have only servers with IP addresses.
    fn check_checks(&self) {
        for pool in &self.config.spec.pools {
            let asks = matches!(&pool.check, Some(check) if matches!(check.kind, CheckKind::Dns { .. }));
            let Some(server) = dns::plain_socket(pool).filter(|_| asks) else { continue };
            let Some(at) = self.config.locations.get(&server.endpoint) else { continue };
            let message = format!("server `{}` is a unix socket: check.dns needs IP servers", server.name);
            self.reading.problem(at, message);
        }
    }

    /// Checks settings that a udp service does not support.
    fn check_udp(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let problem = |message: &str| self.reading.problem(location, format!("service `{name}`: {message}"));
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol does not support UDP: send_proxy = \"v2\"");
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a udp service cannot use TLS: remove `tls` of its pool");
        }
        if matches!(service.denied, Denied::Reject | Denied::Tarpit(_)) {
            problem("a udp service supports only \"drop\" or a pool for refused clients");
        }
        if service.throttle.is_some() {
            problem("a udp service does not support `per_client`");
        }
        let keeps = |pool: &PoolSpec| {
            let by_client = matches!(pool.policy, Policy::Hash | Policy::Maglev { .. } | Policy::First);
            by_client || pool.sticky.is_some()
        };
        if service.options.spread.is_some()
            && let Some(pool) = pools().find(|pool| keeps(pool))
        {
            problem(&format!(
                "`spread` gives each server its turn, but pool `{}` keeps a client with one: no sticky, and a policy \
                 such as round_robin",
                pool.name
            ));
        }
    }
}

/// Returns every pool that a service may send clients to.
pub(in crate::config) fn pools_of(service: &ServiceSpec) -> impl Iterator<Item = &Arc<str>> {
    let refused = [&service.denied, &service.exceeded].into_iter().filter_map(|denied| match denied {
        Denied::Pool(pool) => Some(pool),
        _ => None,
    });
    service.pool.iter().chain(service.routes.iter().map(|route| &route.to)).chain(refused)
}
