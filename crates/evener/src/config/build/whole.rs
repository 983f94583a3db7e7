//! What only shows when everything is known: addresses used twice, what a protocol cannot have.

use super::Builder;
use crate::config::{Place, dns};
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, Denied, Policy, PoolSpec, Protocol, ServiceSpec, StickyBy, Transport};
use evener_core::wire::proxy::Version;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Builder<'_> {
    /// What only shows when everything is known: addresses used twice, servers that a protocol cannot have.
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
            self.reading.problem(&Place { file, line: 1 }, message);
        }
        let mut taken: BTreeMap<(Transport, &Endpoint), &str> = BTreeMap::new();
        let places: BTreeMap<&str, &Place> = self
            .reading
            .run
            .services
            .iter()
            .map(|made| (made.name.as_deref().unwrap_or_default(), &made.place))
            .collect();
        self.check_checks();
        for service in &self.config.spec.services {
            let Some(place) = places.get(&*service.name) else { continue };
            for endpoint in &service.listen {
                let places = service.protocol.transports().iter().map(|each| (*each, endpoint));
                let others = places.filter_map(|place| taken.insert(place, &service.name));
                // Where the system chooses the port, each service gets one of its own.
                let is_free = |other: &&str| {
                    matches!(endpoint, Endpoint::Ip(ip) if ip.port() == 0) && **other != *service.name
                };
                if let Some(other) = others.last().filter(|other| !is_free(other)) {
                    let at = self.reading.run.refine(place, &[&endpoint.to_string()]);
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
            self.check_cookies(service, place);
            self.check_edge(service, place);
            self.check_dns(service, place);
            if service.protocol == Protocol::Udp {
                self.check_udp(service, place);
                let servers = self
                    .config
                    .spec
                    .pools
                    .iter()
                    .filter(|pool| pools_of(service).any(|name| *name == pool.name));
                let unix =
                    servers.flat_map(|pool| &pool.servers).find(|s| matches!(s.endpoint, Endpoint::Unix(_)));
                if let Some(server) = unix {
                    let at = self.config.places.get(&server.endpoint).unwrap_or(place);
                    let message =
                        format!("server `{}` is a unix socket; a udp service has IP servers", server.name);
                    self.reading.problem(at, message);
                }
            }
        }
    }

    /// What goes together at the edge, and what does not.
    fn check_edge(&self, service: &ServiceSpec, place: &Place) {
        let name = &service.name;
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        let passes = service.protocol == Protocol::Tcp && service.tls.is_none() && !service.routes.is_empty();
        if let Some(pool) = pools().find(|pool| passes && pool.tls.is_some()) {
            let message = format!(
                "service `{name}`: routes by `sni` without `tls` pass TLS through, but pool `{}` has `tls`",
                pool.name
            );
            self.reading.problem(place, message);
        }
        let rates = service.throttle.as_ref().is_some_and(|throttle| throttle.request_rate.is_some());
        if rates && service.protocol != Protocol::Http {
            let at = self.reading.run.refine(place, &["per_client", "request_rate"]);
            self.reading.problem(&at, format!("service `{name}`: only http has requests: `request_rate`"));
        }
        for (key, denied) in [("denied", &service.denied), ("exceeded", &service.exceeded)] {
            let Denied::Pool(pool) = denied else { continue };
            if !self.config.spec.pools.iter().any(|known| known.name == *pool) {
                let at = self.reading.run.refine(place, &[key]);
                let message = format!(
                    "`{key}` is `{pool}`, not \"drop\", \"reject\", \"tarpit\", {{ tarpit = \"10s\" }} or a pool"
                );
                self.reading.problem(&at, message);
            }
        }
    }

    /// Cookies need HTTP.
    fn check_cookies(&self, service: &ServiceSpec, place: &Place) {
        let pools = pools_of(service)
            .filter_map(|name| self.config.spec.pools.iter().find(|pool| pool.name == *name));
        let by_cookie =
            |pool: &&PoolSpec| pool.sticky.as_ref().is_some_and(|sticky| sticky.by != StickyBy::ClientIp);
        if let Some(pool) = pools.filter(|_| service.protocol != Protocol::Http).find(by_cookie) {
            let (service, pool) = (&service.name, &pool.name);
            let message =
                format!("service `{service}`: pool `{pool}` is sticky by a cookie, which only http has");
            self.reading.problem(place, message);
        }
    }

    /// What a dns service cannot have, and what only one has.
    fn check_dns(&self, service: &ServiceSpec, place: &Place) {
        let name = &service.name;
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        let problem = |message: String| self.reading.problem(place, format!("service `{name}`: {message}"));
        if service.protocol != Protocol::Dns {
            if let Some(pool) = pools().find(|pool| dns::has_mname(pool)) {
                let pool = &pool.name;
                problem(format!("pool `{pool}` has servers of mname, which only dns services can have"));
            }
            return;
        }
        if let Some(endpoint) = service.listen.iter().find(|endpoint| matches!(endpoint, Endpoint::Unix(_))) {
            problem(format!("`{endpoint}` is a unix socket; dns is asked at IP addresses"));
        }
        if let Some(server) = pools().find_map(dns::plain_socket) {
            let at = self.config.places.get(&server.endpoint).unwrap_or(place);
            let server = &server.name;
            let message = format!(
                "server `{server}` is a unix socket: a dns service has IP servers, and sockets with mname = true"
            );
            self.reading.problem(at, message);
        }
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol has no UDP; send_proxy = \"v2\"".into());
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a dns service has no TLS, but its pool has".into());
        }
        if matches!(service.denied, Denied::Tarpit(_)) || matches!(service.exceeded, Denied::Tarpit(_)) {
            problem(
                "a dns service keeps nobody waiting: \"drop\", \"reject\" or a pool, no \"tarpit\"".into(),
            );
        }
    }

    /// Whom a check of dns cannot ask.
    fn check_checks(&self) {
        for pool in &self.config.spec.pools {
            let asks = matches!(&pool.check, Some(check) if matches!(check.kind, CheckKind::Dns { .. }));
            let Some(server) = dns::plain_socket(pool).filter(|_| asks) else { continue };
            let Some(at) = self.config.places.get(&server.endpoint) else { continue };
            let message =
                format!("server `{}` is a unix socket; check.dns asks at IP addresses", server.name);
            self.reading.problem(at, message);
        }
    }

    /// What a udp service cannot have.
    fn check_udp(&self, service: &ServiceSpec, place: &Place) {
        let name = &service.name;
        let problem = |message: &str| self.reading.problem(place, format!("service `{name}`: {message}"));
        let pools =
            || pools_of(service).filter_map(|name| self.config.spec.pools.iter().find(|p| p.name == *name));
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol has no UDP; send_proxy = \"v2\"");
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a udp service has no TLS, but its pool has");
        }
        if matches!(service.denied, Denied::Reject | Denied::Tarpit(_)) {
            problem(
                "a udp service drops whom it refuses, or sends them to a pool: no \"reject\", no \"tarpit\"",
            );
        }
        if service.throttle.is_some() {
            problem("a udp service has no `per_client`");
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

/// Every pool that a service may send clients to.
pub(in crate::config) fn pools_of(service: &ServiceSpec) -> impl Iterator<Item = &Arc<str>> {
    let refused = [&service.denied, &service.exceeded].into_iter().filter_map(|denied| match denied {
        Denied::Pool(pool) => Some(pool),
        _ => None,
    });
    service.pool.iter().chain(service.routes.iter().map(|route| &route.to)).chain(refused)
}
