//! Random specifications with all settings that a configuration can express.

mod admin;
mod check;
mod discover;
mod dns;
mod failing;
mod http;
mod ipvs;
mod patience;
mod policy;
mod request_log;
mod xdp;

use evener_core::acl::{Access, Acl, Prefix};
use evener_core::limits::Limits;
use evener_core::spec::*;
use evener_core::throttle::{Rate, ThrottleSpec};
use evener_core::wire::proxy;
use evener_core::{Endpoint, Random};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Feature of a pool that not every service supports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Datagrams,
    Plain,
    Tls,
    Cookie,
    Dns,
    Xdp,
    Ipvs,
}

/// Returns a valid specification. Writes the files that it needs to `directory`.
pub(crate) fn spec(random: &mut Random, directory: &Path) -> Spec {
    let ca = directory.join("ca \"1\".pem").display().to_string();
    drop(std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    let apart = random.below(2) == 0;
    let mut chance = Chance { random, ca, number: 0, pools: Vec::new(), apart };
    let count = 1 + chance.below(5);
    let mut pools: Vec<PoolSpec> = (0..count).map(|_| chance.pool()).collect();
    let wanted = 1 + chance.below(5);
    let mut services: Vec<ServiceSpec> = Vec::new();
    for _ in 0..wanted {
        let service = chance.service(&services);
        services.extend(service);
    }
    if services.is_empty() {
        let respond = RespondSpec { status: 200, content_type: "a/b".into(), body: String::new() };
        let http = HttpSpec { respond: Some(respond), ..HttpSpec::default() };
        let service = ServiceSpec::new("only", Protocol::Http);
        let listen = vec!["127.0.0.1:1".parse().unwrap()];
        services.push(ServiceSpec { http: Some(Arc::new(http)), listen, ..service });
    }
    for service in &mut services {
        chance.spread(service, &pools);
        chance.rename_cookies(service, &mut pools);
        omit_warm(service, &pools);
        xdp::omit_ports(service, &mut pools);
        chance.schedule(service, &pools);
    }
    if chance.one_in(2) {
        // This is the order in which pools are read back if each is inline in its service.
        let position = |pool: &PoolSpec| services.iter().position(|service| service.name == pool.name);
        pools.sort_by_key(|pool| position(pool).map_or(0, |position| position + 1));
    }
    pools.iter_mut().for_each(|pool| xdp::complete(pool, &services));
    let xdp = chance.or(XdpSpec::default(), Chance::xdp);
    let ipvs = chance.or(IpvsSpec::default(), Chance::ipvs);
    let admin = chance.or(AdminSpec::default(), Chance::admin);
    Spec { pools, services, xdp, ipvs, admin }
}

/// Disables warm connections if another setting excludes them.
fn omit_warm(service: &mut ServiceSpec, pools: &[PoolSpec]) {
    let pool = pools.iter().find(|pool| service.pool.as_ref() == Some(&pool.name));
    let is_layered = pool.is_some_and(|pool| pool.tls.is_some() || pool.send_proxy.is_some());
    if service.tls.is_some() || service.options.source == Some(Source::Client) || is_layered {
        service.options.warm = 0;
    }
}

struct Chance<'a> {
    random: &'a mut Random,
    ca: String,
    /// Last number that made a name or port unique.
    number: u16,
    pools: Vec<(Arc<str>, Kind)>,
    /// True if each pool is used at most once, so that it can be inline in its service.
    apart: bool,
}

impl Chance<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Returns a value with a probability of one third.
    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(3).then(|| make(self))
    }

    /// Returns the value of `make` with a probability of one third, else the default.
    fn or<T>(&mut self, default: T, make: impl FnOnce(&mut Self) -> T) -> T {
        self.maybe(make).unwrap_or(default)
    }

    fn some<T>(&mut self, count: RangeInclusive<usize>, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = count.start() + self.below(count.end() - count.start() + 1);
        (0..count).map(|_| make(self)).collect()
    }

    fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        match self.below(8) {
            0 => *range.start(),
            1 => *range.end(),
            _ => range.start() + self.below((range.end() - range.start()) as usize + 1) as u32,
        }
    }

    fn unique(&mut self) -> u16 {
        self.number += 1;
        self.number
    }

    fn duration(&mut self, least: Duration, most: Duration) -> Duration {
        let units = [1, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000];
        let duration = Duration::from_nanos(self.pick(&units) * (1 + self.below(2000) as u64));
        duration.clamp(least, most)
    }

    fn time(&mut self) -> Duration {
        self.duration(Duration::from_nanos(1), Duration::from_secs(366 * 24 * 3600))
    }

    /// Returns a text of randomly chosen pieces.
    fn text(&mut self, pieces: &[&str], count: RangeInclusive<usize>) -> String {
        self.some(count, |chance| chance.pick(pieces)).concat()
    }

    fn word(&mut self) -> String {
        self.text(
            &["a", "B", "\"", "\\", "'", "ü", " ", "[[", "]]", "--", "{", "}", "=", "7", "\u{202e}"],
            1..=6,
        )
    }

    /// Returns any text, possibly of several lines.
    fn prose(&mut self) -> String {
        let pieces = ["line", "\n", "\n", " ", "]]", "]=]", "\\", "\"", "'", "\t", "é", "]"];
        let any = ["\0", "1", "\r\n", "\u{85}", "\u{1b}", "\u{7f}9", "\n", "\""];
        if self.one_in(2) { self.text(&pieces, 0..=60) } else { self.text(&any, 0..=40) }
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.some(0..=40, |chance| (chance.random.bits() % 256) as u8)
    }

    fn path(&mut self) -> String {
        let word = self.word();
        format!("/etc/{word}{}.pem", self.unique())
    }

    fn prefix(&mut self) -> Prefix {
        let bits = self.random.bits();
        let (v4, v6) =
            (std::net::Ipv4Addr::from(bits as u32), std::net::Ipv6Addr::from(u128::from(bits) << 64));
        let text = match self.below(4) {
            0 => format!("{v6}/{}", self.below(129)),
            1 => v4.to_string(),
            2 => v6.to_string(),
            _ => format!("{v4}/{}", self.below(33)),
        };
        text.parse().unwrap()
    }

    fn acl(&mut self) -> Arc<Acl> {
        let access = |chance: &mut Self| chance.pick(&[Access::Permit, Access::Deny]);
        let groups = self.some(0..=4, |chance| (access(chance), chance.some(0..=12, Self::prefix)));
        let denied: Vec<_> = self.some(0..=30, |chance| (chance.prefix(), Access::Deny));
        let mixed: Vec<_> = self.some(0..=9, |chance| (chance.prefix(), access(chance)));
        Arc::new(match self.below(4) {
            0 => Acl::new(&denied, Access::Permit),
            1 => Acl::new(&mixed, Access::Deny).after(&[]),
            _ => Acl::in_order(&groups, access(self)),
        })
    }

    fn prefixes(&mut self) -> Arc<Acl> {
        let rules = self.some(0..=9, |chance| (chance.prefix(), Access::Permit));
        Arc::new(Acl::new(&rules, Access::Deny))
    }

    fn endpoint(&mut self, kinds: usize) -> Endpoint {
        let port = self.unique();
        let text = match self.below(kinds) {
            0 => format!("10.0.0.1:{port}"),
            // Zone 1 is the loopback interface on every machine.
            1 => format!("[fe80::{port:x}%1]:{port}"),
            2 => format!("[2001:db8::{port:x}]:{port}"),
            3 => format!("/run/{} {port}", self.word()),
            4 => format!("unix:{port} {}", self.word()),
            _ => format!("host-{port}.example:80"),
        };
        text.parse().unwrap()
    }

    fn server(&mut self, kind: Kind) -> ServerSpec {
        let endpoint = if kind == Kind::Datagrams { self.endpoint(3) } else { self.endpoint(6) };
        let defaults = ServerSpec::new(endpoint.clone());
        let soft = self.maybe(|chance| chance.within(1..=1000));
        ServerSpec {
            dialect: Dialect::Plain,
            configured_name: None,
            name: self.or(defaults.name, |chance| format!("{} {}", chance.word(), chance.unique()).into()),
            endpoint,
            weight: self.or(defaults.weight, |chance| chance.within(0..=WEIGHT_MAX)),
            tier: self.or(defaults.tier, |chance| chance.within(1..=255) as u8),
            limits: Limits { soft, hard: self.maybe(|chance| chance.within(soft.unwrap_or(1)..=u32::MAX)) },
            acl: self.maybe(Self::acl),
            state: self.pick(&AdminState::ALL),
            is_sorry: false,
            quic_id: self.maybe(Self::quic_id),
            check: None,
        }
    }

    fn quic_id(&mut self) -> QuicId {
        let bytes = self.within(1..=15);
        let digits = (0..bytes).map(|_| format!("{:02x}", self.within(0..=255)));
        digits.collect::<String>().parse().unwrap()
    }

    /// Gives some servers a check.
    fn check_servers(&mut self, servers: &mut [ServerSpec], kind: Kind, tls: Option<&ServerTlsSpec>) {
        if matches!(kind, Kind::Plain | Kind::Tls | Kind::Cookie) {
            for server in servers.iter_mut().filter(|server| !server.is_sorry) {
                server.check = self.maybe(|chance| Arc::new(chance.check(kind, tls)));
            }
        }
    }

    fn pool(&mut self) -> PoolSpec {
        let kind = self.pick(&[
            Kind::Datagrams,
            Kind::Plain,
            Kind::Plain,
            Kind::Tls,
            Kind::Cookie,
            Kind::Dns,
            Kind::Xdp,
            Kind::Ipvs,
        ]);
        let name = self.pool_name();
        self.pools.push((Arc::clone(&name), kind));
        let (mut servers, mut discover) = match kind {
            Kind::Dns => self.dns_servers(),
            kind => {
                let server = |chance: &mut Self| match kind {
                    Kind::Xdp => chance.xdp_server(),
                    Kind::Ipvs => chance.ipvs_server(),
                    kind => chance.server(kind),
                };
                let mut servers = self.some(1..=4, server);
                servers[0].weight = servers[0].weight.max(1);
                let sorry = self.one_in(4).then(|| server(self));
                servers.extend(sorry.map(|sorry| self.sorry(sorry)));
                (servers, Vec::new())
            }
        };
        let source = if matches!(kind, Kind::Xdp | Kind::Ipvs) { Self::xdp_source } else { Self::source };
        discover.extend(self.maybe(|chance| chance.some(1..=3, source)).unwrap_or_default());
        let tls = (kind == Kind::Tls || (kind == Kind::Cookie && self.one_in(2))).then(|| self.server_tls());
        let mut check = self.maybe(|chance| chance.check(kind, tls.as_ref()));
        if matches!(kind, Kind::Xdp | Kind::Ipvs) {
            // The servers may have no port.
            check.iter_mut().for_each(|check| check.port = check.port.or(Some(80)));
        }
        self.check_servers(&mut servers, kind, tls.as_ref());
        let is_checked = check.is_some() || servers.iter().any(|server| server.check.is_some());
        let on_down = if is_checked { self.pick(&OnDown::ALL) } else { OnDown::Keep };
        PoolSpec {
            discover,
            resolve: self.pick(&Resolve::ALL),
            resolvers: self.maybe(|chance| chance.some(1..=3, Self::resolver)).unwrap_or_default(),
            policy: match kind {
                Kind::Xdp => self.xdp_policy(),
                Kind::Ipvs => self.ipvs_policy(),
                _ => self.policy(),
            },
            sticky: if kind == Kind::Ipvs { None } else { self.sticky(kind) },
            check,
            on_down,
            passive: self.passive(),
            failover: self.pick(&[Failover::Next, Failover::Never]),
            retry_budget: self.retry_budget(),
            slow_start: self.maybe(Self::time),
            quorum: self.maybe(Self::quorum),
            notify: self.maybe(|chance| Arc::new(chance.notify())),
            inhibit_on_failure: on_down == OnDown::Keep && self.one_in(4),
            queue: self.queue(),
            tls: tls.map(Arc::new),
            send_proxy: match (self.below(4), kind) {
                (_, Kind::Xdp | Kind::Ipvs) => None,
                (0, _) => Some(proxy::Version::V2),
                (1, Kind::Plain | Kind::Tls | Kind::Cookie) => Some(proxy::Version::V1),
                _ => None,
            },
            ..PoolSpec::new(&name, servers)
        }
    }

    fn certificate(&mut self) -> CertificateFiles {
        let chain = self.path();
        CertificateFiles {
            key: self.or(chain.clone(), Self::path),
            ocsp: self.maybe(Self::path),
            issuers: self.maybe(Self::path),
            chain,
        }
    }

    fn server_tls(&mut self) -> ServerTlsSpec {
        let ca = self.ca.clone();
        ServerTlsSpec {
            name: self.maybe(|chance| chance.pick(&["a.example", "192.0.2.1"]).to_owned()),
            authorities: self.maybe(|chance| chance.or(ca, Self::path)),
            verification: self.pick(&[Verification::Full, Verification::Off]),
            certificate: self.maybe(Self::certificate),
        }
    }

    fn check(&mut self, kind: Kind, tls: Option<&ServerTlsSpec>) -> CheckSpec {
        let kind = match self.below(6) {
            _ if matches!(kind, Kind::Datagrams | Kind::Dns) && self.one_in(2) => self.dns_check(),
            0 => CheckKind::Udp { send: self.bytes(), expect: self.maybe(Self::bytes) },
            1 if self.one_in(2) => CheckKind::Exec { program: self.program() },
            1 => CheckKind::Tcp,
            2 if tls.is_none() => self.http_check(None),
            4 if tls.is_none() => {
                CheckKind::Smtp { helo: self.pick(&["localhost", "lb.example", "[192.0.2.1]"]).to_owned() }
            }
            3 if tls.is_none() => self.stream_check(None),
            _ => {
                let ca = self.ca.clone();
                let nested = CheckTls {
                    sni: self.maybe(Self::word),
                    insecure: self.one_in(3),
                    ca_file: self.maybe(|_| ca),
                };
                let tls = Some(check::inherited(nested, tls));
                if self.one_in(2) { self.http_check(tls) } else { self.stream_check(tls) }
            }
        };
        let defaults = CheckSpec::new(kind);
        let (moment, minute) = (Duration::from_nanos(1), Duration::from_secs(60));
        CheckSpec {
            every: self.or(defaults.every, |c| c.duration(Duration::from_millis(10), minute * 60)),
            timeout: self.or(defaults.timeout, |chance| chance.duration(moment, minute)),
            rise: self.or(defaults.rise, |chance| chance.within(1..=100)),
            fall: self.or(defaults.fall, |chance| chance.within(1..=100)),
            jitter: match self.below(6) {
                0 => self.random.fraction(),
                1 => self.random.fraction() / 1e9,
                edge @ 2..=3 => (edge - 2) as f64,
                _ => defaults.jitter,
            },
            warm_up: self.or(defaults.warm_up, |c| c.duration(moment, minute)),
            port: self.maybe(|chance| chance.within(1..=65_535) as u16),
            kind: defaults.kind,
        }
    }
}

impl Chance<'_> {
    /// Returns a pool of one of these kinds, if there is one.
    fn pool_of(&mut self, kinds: &[Kind]) -> Option<Arc<str>> {
        let fit: Vec<_> = self.pools.iter().filter(|(_, kind)| kinds.contains(kind)).cloned().collect();
        let (pool, _) = (!fit.is_empty()).then(|| self.pick(&fit))?;
        if self.apart {
            self.pools.retain(|(other, _)| *other != pool);
        }
        Some(pool)
    }

    /// Returns a valid service, if there is a pool for it.
    fn service(&mut self, others: &[ServiceSpec]) -> Option<ServiceSpec> {
        if self.one_in(3)
            && let Some(service) = self.xdp_service(others)
        {
            return Some(service);
        }
        if self.one_in(3)
            && let Some(service) = self.ipvs_service(others)
        {
            return Some(service);
        }
        let protocol =
            self.pick(&[Protocol::Tcp, Protocol::Udp, Protocol::Http, Protocol::Http, Protocol::Dns]);
        let (is_udp, is_http) = (protocol == Protocol::Udp, protocol == Protocol::Http);
        let is_dns = protocol == Protocol::Dns;
        let tls = if is_udp || is_dns { None } else { self.maybe(|chance| Arc::new(chance.tls(protocol))) };
        let passes = protocol == Protocol::Tcp && tls.is_none();
        let kinds: &[Kind] = match protocol {
            Protocol::Udp => &[Kind::Datagrams],
            Protocol::Tcp if passes => &[Kind::Plain],
            Protocol::Tcp => &[Kind::Plain, Kind::Tls],
            Protocol::Http => &[Kind::Plain, Kind::Tls, Kind::Cookie],
            Protocol::Dns => &[Kind::Datagrams, Kind::Dns],
        };
        let pool = self.pool_of(kinds);
        let few = is_udp || is_dns || (self.apart && self.below(4) > 0);
        let routes = if few { Vec::new() } else { self.routes(kinds, is_http) };
        let http = is_http.then(|| Arc::new(self.http()));
        let responds = http.as_ref().is_some_and(|http| http.redirect.is_some() || http.respond.is_some());
        let pool = pool.filter(|_| routes.is_empty() && !responds || self.one_in(2));
        if pool.is_none() && routes.is_empty() && !responds {
            return None;
        }
        let name = self.service_name(pool.as_ref(), others);
        let throttle = if is_udp { None } else { self.maybe(|chance| chance.throttle(is_http)) };
        let listen = match name.strip_prefix("127.0.0.1:") {
            Some(_) if self.one_in(2) => vec![name.parse().unwrap()],
            _ => self.some(1..=3, |chance| chance.endpoint(if is_udp || is_dns { 3 } else { 5 })),
        };
        Some(ServiceSpec {
            listen,
            pool,
            routes,
            acl: self.maybe(Self::acl),
            denied: if is_udp { Denied::Drop } else { self.denied(protocol, kinds) },
            exceeded: if throttle.is_some() { self.denied(protocol, kinds) } else { Denied::Drop },
            throttle,
            proxy_from: self.maybe(Self::prefixes),
            tls,
            http,
            dns: is_dns.then(|| Arc::new(self.dns())),
            clients: self.maybe(|chance| chance.within(1..=ServiceSpec::CLIENTS_MAX)),
            request_log: self.maybe(|chance| chance.request_log(protocol)),
            options: self.options(protocol),
            ..ServiceSpec::new(&name, protocol)
        })
    }

    /// Sets `spread` at random if the pool does not assign all datagrams of a client to one server.
    fn spread(&mut self, service: &mut ServiceSpec, pools: &[PoolSpec]) {
        let pool = pools.iter().find(|pool| service.pool.as_ref() == Some(&pool.name));
        let keeps = |pool: &PoolSpec| {
            matches!(pool.policy, Policy::Hash | Policy::Maglev { .. } | Policy::First)
                || pool.sticky.is_some()
        };
        if service.protocol == Protocol::Udp
            && service.plane == Plane::Proxy
            && pool.is_some_and(|pool| !keeps(pool))
        {
            service.options.spread = self.maybe(|chance| chance.within(1..=ServiceOptions::SPREAD_MAX));
        }
    }

    /// Renames cookies whose name is used by another pool of the service.
    fn rename_cookies(&mut self, service: &ServiceSpec, pools: &mut [PoolSpec]) {
        let mut taken = BTreeSet::new();
        let names: BTreeSet<_> = service.pools().cloned().collect();
        for pool in pools.iter_mut().filter(|pool| names.contains(&pool.name)) {
            if let Some(StickySpec { by: StickyBy::Cookie(name), .. }) = &mut pool.sticky
                && !taken.insert(name.clone())
            {
                name.push_str(&self.unique().to_string());
            }
        }
    }

    /// Returns a name, often the name of the pool.
    fn service_name(&mut self, pool: Option<&Arc<str>>, others: &[ServiceSpec]) -> Arc<str> {
        let nested = format!("{}{}", self.word(), self.unique()).into();
        let name = pool.filter(|_| !self.one_in(4)).cloned().unwrap_or_else(|| Arc::clone(&nested));
        if others.iter().any(|other| other.name == name) { nested } else { name }
    }

    fn denied(&mut self, protocol: Protocol, kinds: &[Kind]) -> Denied {
        match self.below(5) {
            2 | 3 if protocol == Protocol::Dns => Denied::Reject,
            0 => Denied::Drop,
            1 => Denied::Reject,
            2 => Denied::Tarpit(Duration::from_secs(30)),
            3 => Denied::Tarpit(self.duration(Duration::from_nanos(1), Duration::from_secs(3600))),
            _ if self.apart => Denied::Reject,
            _ => self.pool_of(kinds).map_or(Denied::Drop, Denied::Pool),
        }
    }

    fn throttle(&mut self, is_http: bool) -> ThrottleSpec {
        let rate = |chance: &mut Self| Rate {
            count: chance.within(1..=1_000_000_000),
            period: Duration::from_secs(chance.pick(&[1, 60, 3600])),
        };
        let connection_rate = self.maybe(rate);
        let request_rate = if is_http { self.maybe(rate) } else { None };
        let needed = connection_rate.is_none() && request_rate.is_none();
        ThrottleSpec {
            connections: (needed || self.one_in(2)).then(|| self.within(1..=1_000_000)),
            connection_rate,
            request_rate,
            size: self.or(65_536, |chance| chance.within(1..=16_000_000) as usize),
        }
    }

    fn tls(&mut self, protocol: Protocol) -> TlsSpec {
        let defaults = crate::config::edge::tls_defaults();
        let alpn = if protocol == Protocol::Http { Vec::new() } else { self.some(0..=2, Self::word) };
        TlsSpec {
            certificates: self.some(0..=3, Self::certificate),
            directories: self.or(Vec::new(), |chance| chance.some(0..=3, Self::path)),
            client: self.maybe(|chance| ClientCertificates {
                authorities: chance.some(1..=2, Self::path),
                presence: chance.pick(&[Presence::Required, Presence::Optional]),
            }),
            oldest: self.or(defaults.oldest, |_| TlsVersion::V13),
            alpn: self.or(Vec::new(), |_| alpn),
            handshake_timeout: self.or(defaults.handshake_timeout, Self::time),
            handshakes_max: self.or(defaults.handshakes_max, |chance| chance.within(1..=1_000_000)),
        }
    }

    fn options(&mut self, protocol: Protocol) -> ServiceOptions {
        let defaults = ServiceOptions::of(protocol);
        let addresses = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let source = self.maybe(|chance| match chance.below(2) {
            0 if protocol != Protocol::Dns => Source::Client,
            _ => Source::Address(chance.pick(&addresses)),
        });
        let (idle, half_closed) = (self.maybe(Self::time), self.maybe(Self::time));
        let defaults = ServiceOptions { freebind: self.one_in(3), ..defaults };
        if protocol == Protocol::Udp {
            let flows_max = self.or(defaults.flows_max, |chance| chance.within(1..=16_000_000));
            return ServiceOptions {
                source,
                flows_max,
                idle_timeout: idle.or(defaults.idle_timeout),
                ..defaults
            };
        }
        let alive = |c: &mut Self| c.duration(Duration::from_secs(1), Duration::from_secs(32_767));
        if protocol == Protocol::Dns {
            return ServiceOptions {
                connections_max: self.or(defaults.connections_max, |chance| chance.within(1..=16_000_000)),
                connect_timeout: self.or(defaults.connect_timeout, Self::time),
                backlog: self.or(defaults.backlog, |chance| chance.within(1..=65_535)),
                keepalive: self.or(defaults.keepalive, |chance| chance.maybe(alive)),
                idle_timeout: idle.or(defaults.idle_timeout),
                source,
                ..defaults
            };
        }
        let connect_timeout = self.or(defaults.connect_timeout, Self::time);
        ServiceOptions {
            connections_max: self.or(defaults.connections_max, |chance| chance.within(1..=16_000_000)),
            flows_max: defaults.flows_max,
            spread: None,
            connect_timeout,
            attempts_max: self.or(defaults.attempts_max, |chance| chance.within(1..=1000)),
            connect_time_max: self.or(defaults.connect_time_max, |chance| chance.time().max(connect_timeout)),
            idle_timeout: self.or(defaults.idle_timeout, |_| idle),
            freebind: defaults.freebind,
            half_closed_timeout: self.or(defaults.half_closed_timeout, |_| half_closed),
            backlog: self.or(defaults.backlog, |chance| chance.within(1..=65_535)),
            nodelay: self.or(defaults.nodelay, |_| false),
            keepalive: self.or(defaults.keepalive, |chance| chance.maybe(alive)),
            server_keepalive: self.or(defaults.server_keepalive, |chance| chance.maybe(alive)),
            unix_mode: self.maybe(|chance| chance.within(0..=0o777)),
            source,
            fast_close: self.pick(&FastClose::ALL),
            pending_max: self.maybe(|chance| chance.within(1..=16_000_000)),
            warm: self.or(defaults.warm, |chance| chance.within(0..=10_000)),
        }
    }
}
