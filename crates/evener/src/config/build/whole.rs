//! Checks of the whole configuration: addresses used twice, and settings that a protocol does not support.

use super::Builder;
use crate::config::hints::{nearest, nearest_text, one_of};
use crate::config::locate::Step;
use crate::config::raw::{Made, Value, shown};
use crate::config::{Location, access, dns};
use evener_core::Endpoint;
use evener_core::spec::{
    CheckKind, Denied, Plane, Policy, PoolSpec, Protocol, ServerSpec, ServiceSpec, Source, StickyBy,
    Transport,
};
use evener_core::wire::proxy::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Builder<'_> {
    /// Checks the whole configuration: addresses used twice, and settings and servers that a protocol does not
    /// support.
    pub(super) fn check_whole(&self) {
        if self.config.spec.services.is_empty() && self.reading.is_valid() {
            let message =
                "there is no service: write service \"www\" { listen = \"0.0.0.0:80\", \"10.0.0.1:80\" }";
            self.reading.problem(&self.reading.run().beginning(), message);
        }
        let mut taken: BTreeMap<(&str, Transport, &Endpoint), &str> = BTreeMap::new();
        let declared = self.reading.run().services().iter();
        let declared: BTreeMap<&str, &Made> = declared.map(|made| (made.name(), &**made)).collect();
        self.check_checks();
        self.check_xdp();
        self.check_ipvs();
        let named =
            |name: &str| self.reading.run().services().iter().filter(|made| made.name() == name).count();
        for service in &self.config.spec.services {
            let Some(made) = declared.get(&*service.name) else { continue };
            let location = made.location();
            for endpoint in &service.listen {
                // The kernel keeps services of SCTP apart from those of TCP.
                let transport = service.ipvs.as_ref().map(|ipvs| ipvs.transport.name());
                let plane = transport.unwrap_or(service.plane.name());
                // The XDP plane has no sockets: packets that it does not forward go to a service of the proxy.
                let sockets = service.protocol.transports().iter().map(|each| (plane, *each, endpoint));
                let others = sockets.filter_map(|socket| taken.insert(socket, &service.name));
                // With port 0, the system chooses a different port for each service.
                let is_free = |other: &&str| {
                    matches!(endpoint, Endpoint::Ip(ip) if ip.port() == 0) && **other != *service.name
                };
                // Two services with one name are a problem that is reported already.
                let is_twice = |other: &&str| **other == *service.name && named(&service.name) > 1;
                if let Some(other) = others.last().filter(|other| !is_free(other) && !is_twice(other)) {
                    let message = if *other == *service.name {
                        format!("service `{other}` listens on {endpoint} twice: remove one of them")
                    } else {
                        format!(
                            "service `{}` listens on {endpoint}, and so does service `{other}`: change one of them",
                            service.name
                        )
                    };
                    self.reading.problem_inside(location, &[&endpoint.to_string()], message);
                }
            }
            self.check_cookies(service, location);
            self.check_edge(service, location);
            self.check_routes(service, made);
            self.check_warm(service, location);
            self.check_dns(service, location);
            if service.protocol == Protocol::Udp && service.plane == Plane::Proxy {
                self.check_udp(service, location);
                let unix = self
                    .pools_of(service)
                    .flat_map(|pool| &pool.servers)
                    .find(|s| matches!(s.endpoint, Endpoint::Unix(_)));
                if let Some(server) = unix {
                    let at = self.config.servers.get(&server.endpoint).unwrap_or(location);
                    let message =
                        format!("server `{}` is a unix socket: a udp service needs IP servers", server.name);
                    self.reading.problem(at, message);
                }
            }
        }
    }

    /// Checks that TLS is not passed through to a pool with TLS, that only http services have `request_rate`,
    /// and that the pools for refused clients exist.
    fn check_edge(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let pools = || self.pools_of(service);
        let passes = service.protocol == Protocol::Tcp && service.tls.is_none() && !service.routes.is_empty();
        if let Some(pool) = pools().find(|pool| passes && pool.tls.is_some()) {
            let message = format!(
                "service `{name}`: routes by sni without tls pass TLS through, so pool `{}` must not have tls",
                pool.name
            );
            self.reading.problem(location, message);
        }
        let rates = service.throttle.as_ref().is_some_and(|throttle| throttle.request_rate.is_some());
        if rates && service.protocol != Protocol::Http {
            let message = format!("service `{name}`: per_client.request_rate needs protocol = \"http\"");
            self.reading.problem_inside(location, &["per_client", "request_rate"], message);
        }
        let refused =
            [("denied", "denied", &service.denied), ("per_client.exceeded", "exceeded", &service.exceeded)];
        for (key, word, denied) in refused {
            let Denied::Pool(pool) = denied else { continue };
            if self.has_pool(pool) {
                continue;
            }
            let pools = || self.config.spec.pools.iter().map(|pool| &*pool.name);
            let near = nearest_text(pool, access::DENIED.into_iter());
            let message = match nearest(pool, pools()) {
                hint if near.is_empty() && !hint.is_empty() => format!("there is no pool `{pool}`{hint}"),
                _ => {
                    let list = one_of(&access::DENIED, access::DENIED_OTHERWISE);
                    format!("{key} must be {list}, got {}{near}", shown(pool))
                }
            };
            self.reading.problem_inside(location, &[word], format!("service `{name}`: {message}"));
        }
    }

    /// Checks that no two routes of a service have the same host and path.
    fn check_routes(&self, service: &ServiceSpec, made: &Made) {
        let location = made.location();
        let mut seen = BTreeSet::new();
        // Routes with a mistake are not in the list of the service.
        let listed = match made.table().get("routes") {
            Some(Value::Table(table)) => table.only_list().map_or(0, <[_]>::len),
            _ => 0,
        };
        let is_complete = listed == service.routes.len();
        for (index, route) in service.routes.iter().enumerate() {
            let item = is_complete.then_some(Step::Item(index, None));
            let steps: Vec<Step<'_>> = [Step::Named("routes")].into_iter().chain(item).collect();
            let path = route.path.as_deref().unwrap_or_default().trim_end_matches('/');
            let mut hosts: Vec<String> = route.hosts.iter().map(ToString::to_string).collect();
            if hosts.is_empty() {
                hosts.push(String::new());
            }
            for host in hosts {
                if !seen.insert((host.clone(), path)) {
                    if host.is_empty() && path.is_empty() {
                        let message = format!(
                            "service `{}`: two routes are for any host and path: remove one of them",
                            service.name
                        );
                        self.reading.problem_at(location, &steps, message);
                        continue;
                    }
                    let host = if host.is_empty() { String::new() } else { format!(" host `{host}`") };
                    let path = if path.is_empty() { String::new() } else { format!(" path `{path}`") };
                    let message = format!(
                        "service `{}`: two routes have{host}{path}: remove one of them",
                        service.name
                    );
                    self.reading.problem_at(location, &steps, message);
                }
            }
        }
    }

    /// Checks that `warm` is combined neither with TLS nor with settings that depend on the client: warm
    /// connections are opened before the client is known.
    fn check_warm(&self, service: &ServiceSpec, location: &Location) {
        if service.options.warm == 0 {
            return;
        }
        let pool = service.pool.as_ref().and_then(|name| self.pool_named(name));
        let other = if service.options.source == Some(Source::Client) {
            "source = \"client\""
        } else if service.tls.is_some() || pool.is_some_and(|pool| pool.tls.is_some()) {
            "tls"
        } else if pool.is_some_and(|pool| pool.send_proxy.is_some()) {
            "send_proxy"
        } else {
            return;
        };
        let message =
            format!("service `{}`: warm cannot be combined with {other}: remove warm", service.name);
        self.reading.problem_inside(location, &["warm"], message);
    }

    /// Checks that the cookies that the configuration names differ between the pools of a service.
    pub(super) fn check_cookie_names(&self) {
        for service in &self.config.spec.services {
            let mut named: BTreeMap<&str, &Arc<str>> = BTreeMap::new();
            for pool in self.pools_of(service) {
                let Some(StickyBy::Cookie(cookie)) = pool.sticky.as_ref().map(|sticky| &sticky.by) else {
                    continue;
                };
                let first = named.entry(cookie).or_insert(&pool.name);
                if **first != pool.name && !cookie.is_empty() {
                    let declared =
                        self.reading.run().services().iter().find(|made| *made.name() == *service.name);
                    let Some(made) = declared else { continue };
                    let message = format!(
                        "service `{}`: pools `{first}` and `{}` have the same cookie `{cookie}`: give one of them another name",
                        service.name, pool.name
                    );
                    self.reading.problem(made.location(), message);
                }
            }
        }
    }

    /// Checks that pools that are sticky by cookie are used only by http services.
    fn check_cookies(&self, service: &ServiceSpec, location: &Location) {
        let pools = self.pools_of(service);
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

    /// Checks settings that a dns service does not support, and settings that only dns services support.
    fn check_dns(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let pools = || self.pools_of(service);
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
        if let Some(server) = pools().find_map(|pool| dns::plain_sockets(pool).next()) {
            let at = self.config.servers.get(&server.endpoint).unwrap_or(location);
            let server = &server.name;
            let message = format!(
                "server `{server}` is a unix socket: a dns service needs IP servers, or sockets with mname = true"
            );
            self.reading.problem(at, message);
        }
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol does not support UDP: write send_proxy = \"v2\"".into());
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a dns service cannot use TLS: remove `tls` of its pool".into());
        }
        let refused = [(&["denied"][..], &service.denied), (&["per_client", "exceeded"], &service.exceeded)];
        for (path, _) in refused.into_iter().filter(|(_, denied)| matches!(denied, Denied::Tarpit(_))) {
            let message = format!(
                "service `{name}`: a dns service does not support \"tarpit\": use \"drop\", \"reject\" or a pool"
            );
            self.reading.problem_inside(location, path, message);
        }
    }

    /// Checks that no server with a DNS check is a unix socket.
    fn check_checks(&self) {
        for pool in &self.config.spec.pools {
            let is_by_dns = |server: &&ServerSpec| {
                let check = pool.check_of(server);
                check.is_some_and(|check| matches!(check.kind, CheckKind::Dns { .. }))
            };
            let Some(server) = dns::plain_sockets(pool).find(is_by_dns) else { continue };
            let Some(at) = self.config.servers.get(&server.endpoint) else { continue };
            let message = format!("server `{}` is a unix socket: check.dns needs IP servers", server.name);
            self.reading.problem(at, message);
        }
    }

    /// Checks settings that a udp service does not support.
    fn check_udp(&self, service: &ServiceSpec, location: &Location) {
        let name = &service.name;
        let problem = |message: &str| self.reading.problem(location, format!("service `{name}`: {message}"));
        let pools = || self.pools_of(service);
        if pools().any(|pool| pool.send_proxy == Some(Version::V1)) {
            problem("version 1 of the PROXY protocol does not support UDP: write send_proxy = \"v2\"");
        }
        if pools().any(|pool| pool.tls.is_some()) {
            problem("a udp service cannot use TLS: remove `tls` of its pool");
        }
        let refused = match service.denied {
            Denied::Reject => Some("reject"),
            Denied::Tarpit(_) => Some("tarpit"),
            Denied::Drop | Denied::Pool(_) => None,
        };
        if let Some(word) = refused {
            let message = format!(
                "service `{name}`: a udp service can only drop refused clients or send them to a pool, got \"{word}\": write denied = \"drop\""
            );
            self.reading.problem_inside(location, &["denied"], message);
        }
        if service.throttle.is_some() {
            problem("per_client is not available with protocol = \"udp\"");
        }
        if service.options.spread.is_none() {
            return;
        }
        for pool in pools() {
            let by_client = matches!(pool.policy, Policy::Hash | Policy::Maglev { .. } | Policy::First);
            let (policy, pool_name) = (pool.policy.name(), &pool.name);
            if by_client {
                let message = format!(
                    "service `{name}`: spread cannot be used with policy = \"{policy}\" of pool `{pool_name}`: write policy = \"round_robin\""
                );
                self.reading.problem_inside(location, &["spread"], message);
            } else if pool.sticky.is_some() {
                let message = format!(
                    "service `{name}`: spread cannot be used with sticky of pool `{pool_name}`: remove one of them"
                );
                self.reading.problem_inside(location, &["spread"], message);
            }
        }
    }
}
