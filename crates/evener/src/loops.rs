//! Services that form a loop: a service has a server that is a listen address of the service itself, or of
//! another service that leads back to the first service. Connections would be forwarded without end. The servers of
//! a configuration are checked after its names are resolved, and servers that are found, before they are used
//! ([`Guard`]). Loops through other instances are found at run time.

use crate::config::{Config, Problem};
use crate::discover::FirstReadings;
use evener_core::spec::{PoolSpec, ServerSpec, ServiceSpec, Transport};
use evener_core::{Endpoint, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A service and a transport, which the service uses with clients and with servers.
type Node = (usize, Transport);

/// A path from one service to another, through this server.
#[derive(Clone, Copy)]
struct Edge<'a> {
    to: Node,
    server: &'a ServerSpec,
}

/// Returns a problem for each loop, unless the configuration allows loops. A loop that shares a service with a
/// reported loop is not reported.
pub(crate) fn problems(config: &Config, addresses: &FirstReadings) -> Vec<Problem> {
    if config.allows_loops() {
        return Vec::new();
    }
    let services = &config.spec.services;
    let listeners = Listeners::of(listen_addresses(services));
    let pools: BTreeMap<&str, &PoolSpec> = config.spec.pools.iter().map(|pool| (&*pool.name, pool)).collect();
    let mut edges: BTreeMap<Node, Vec<Edge<'_>>> = BTreeMap::new();
    for (at, service) in services.iter().enumerate() {
        let servers = service
            .pools()
            .filter_map(|name| pools.get(&**name).copied())
            .flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)));
        for (pool, server) in servers {
            let targets = addresses.targets(pool, server);
            for &transport in service.protocol.transports() {
                for to in targets.iter().filter_map(|target| listeners.find(transport, target)) {
                    edges.entry((at, transport)).or_default().push(Edge { to: (to, transport), server });
                }
            }
        }
    }
    let mut problems: Vec<Problem> = Vec::new();
    let mut reported = BTreeSet::new();
    for &start in edges.keys() {
        let Some(path) = path_back(&edges, start) else { continue };
        // The same loop is found again from each of its services and for each transport.
        if path.iter().any(|edge| reported.contains(&edge.to.0)) {
            continue;
        }
        reported.extend(path.iter().map(|edge| edge.to.0));
        problems.push(problem(config, start.0, &path));
    }
    problems
}

fn problem(config: &Config, start: usize, path: &[Edge<'_>]) -> Problem {
    let name = |at: usize| &config.spec.services[at].name;
    let server = path[0].server;
    let (service, endpoint) = (name(start), &server.endpoint);
    let message = if path.len() == 1 {
        format!(
            "service `{service}`: its server `{endpoint}` is an address of the service itself, so clients would be \
             forwarded without end: give the address of another server"
        )
    } else {
        let steps: Vec<String> = path
            .iter()
            .map(|edge| format!("to `{}` by `{}`", name(edge.to.0), edge.server.endpoint))
            .collect();
        format!(
            "service `{service}` leads back to itself ({}), so clients would be forwarded without end: remove one of these servers",
            steps.join(", ")
        )
    };
    config.problem_with_server(endpoint, message)
}

/// Returns the shortest path from a service back to it.
fn path_back<'a>(edges: &BTreeMap<Node, Vec<Edge<'a>>>, start: Node) -> Option<Vec<Edge<'a>>> {
    let mut reached: BTreeMap<Node, (Node, Edge<'a>)> = BTreeMap::new();
    let mut next = vec![start];
    while !next.is_empty() && !reached.contains_key(&start) {
        let mut further = Vec::new();
        for from in next {
            for edge in edges.get(&from).into_iter().flatten() {
                if let std::collections::btree_map::Entry::Vacant(entry) = reached.entry(edge.to) {
                    entry.insert((from, *edge));
                    further.push(edge.to);
                }
            }
        }
        next = further;
    }
    let &(mut from, edge) = reached.get(&start)?;
    let mut path = vec![edge];
    while from != start {
        let (before, edge) = reached[&from];
        path.push(edge);
        from = before;
    }
    path.reverse();
    Some(path)
}

/// The services by their listen addresses.
struct Listeners<'a> {
    exact: BTreeMap<(Transport, &'a Endpoint), usize>,
    /// By the absolute path.
    unix: BTreeMap<(Transport, PathBuf), usize>,
    /// Listeners on all addresses of a family, by port.
    all: BTreeMap<(Transport, bool, u16), usize>,
    /// Addresses that are local because a service listens there.
    local: BTreeSet<IpAddr>,
}

/// A listen address with its transport and the position of its service.
type Listen<'a> = (usize, &'a Endpoint, Transport);

/// Returns the configured listen addresses.
fn listen_addresses(services: &[ServiceSpec]) -> impl Iterator<Item = Listen<'_>> {
    services.iter().enumerate().flat_map(|(at, service)| {
        let transports = service.protocol.transports();
        service.listen.iter().flat_map(move |each| transports.iter().map(move |one| (at, each, *one)))
    })
}

impl<'a> Listeners<'a> {
    fn of(addresses: impl Iterator<Item = Listen<'a>>) -> Self {
        let mut listeners = Self {
            exact: BTreeMap::new(),
            unix: BTreeMap::new(),
            all: BTreeMap::new(),
            local: BTreeSet::new(),
        };
        for (at, endpoint, transport) in addresses {
            match endpoint {
                Endpoint::Ip(address) if address.ip().is_unspecified() => {
                    listeners.all.insert((transport, address.is_ipv4(), address.port()), at);
                }
                Endpoint::Unix(path) => drop(listeners.unix.insert((transport, absolute(path)), at)),
                _ => drop(listeners.exact.insert((transport, endpoint), at)),
            }
            if let Endpoint::Ip(address) = endpoint {
                listeners.local.insert(address.ip());
            }
        }
        listeners
    }

    /// Returns the service that receives connections to `target`: a service with exactly this address, else a
    /// service on all addresses.
    fn find(&self, transport: Transport, target: &Target) -> Option<usize> {
        let address = match target {
            Target::Unix(path) => {
                return self.unix.get(&(transport, absolute(path))).copied();
            }
            Target::Ip(address) => reached(*address),
        };
        let exact = self.exact.get(&(transport, &Endpoint::Ip(address))).copied();
        let is_local = address.ip().is_loopback() || self.local.contains(&address.ip());
        let all = || self.all.get(&(transport, address.is_ipv4(), address.port())).copied();
        exact.or_else(|| all().filter(|_| is_local))
    }
}

/// Detects addresses by which a pool would lead back to a service that uses it.
pub(crate) struct Guard<'a> {
    services: &'a [ServiceSpec],
    /// Absent if the configuration allows loops.
    listeners: Option<Listeners<'a>>,
}

impl<'a> Guard<'a> {
    /// Creates a guard for a configuration. `bound` are addresses that its services listen on at present, which
    /// include the ports that the system chose.
    pub(crate) fn new(config: &'a Config, bound: impl Iterator<Item = (&'a str, &'a Endpoint)>) -> Self {
        let services = &config.spec.services;
        let by_name: BTreeMap<&str, usize> =
            services.iter().enumerate().map(|(at, service)| (&*service.name, at)).collect();
        let bound = bound.filter_map(|(service, address)| Some((*by_name.get(service)?, address)));
        let bound = bound.flat_map(|(at, address)| {
            services[at].protocol.transports().iter().map(move |transport| (at, address, *transport))
        });
        let addresses = listen_addresses(services).chain(bound);
        Self { services, listeners: (!config.allows_loops()).then(|| Listeners::of(addresses)) }
    }

    /// Returns true if a server at `target` makes `pool` lead back to a service that uses the pool. `targets`
    /// returns the addresses of the servers of a pool.
    pub(crate) fn is_loop(&self, pool: &str, target: &Target, targets: impl Fn(&str) -> Vec<Target>) -> bool {
        let Some(listeners) = &self.listeners else { return false };
        let services = self.services.iter().enumerate();
        let uses = services.filter(|(_, service)| service.pools().any(|name| &**name == pool));
        let mut nodes =
            uses.flat_map(|(at, service)| service.protocol.transports().iter().map(move |one| (at, *one)));
        nodes.any(|(at, transport)| {
            let first = listeners.find(transport, target);
            first.is_some_and(|first| self.leads((first, at), transport, listeners, &targets))
        })
    }

    /// Returns true if the first service is the second service, or leads to it.
    fn leads(
        &self,
        (from, to): (usize, usize),
        transport: Transport,
        listeners: &Listeners<'_>,
        targets: &impl Fn(&str) -> Vec<Target>,
    ) -> bool {
        let (mut reached, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(at) = next.pop() {
            let servers = self.services[at].pools().flat_map(|name| targets(name));
            let further: Vec<usize> =
                servers.filter_map(|target| listeners.find(transport, &target)).collect();
            next.extend(further.into_iter().filter(|service| reached.insert(*service)));
        }
        reached.contains(&to)
    }
}

/// Returns the absolute path of a unix socket: `x.sock` and `./x.sock` are equal.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Returns the address that a connection to `address` reaches: `0.0.0.0` is this machine, `::ffff:10.0.0.1` is
/// 10.0.0.1.
fn reached(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match address {
        SocketAddr::V6(mut v6) if ip.is_ipv6() => {
            if let IpAddr::V6(ip) = ip {
                v6.set_ip(ip);
            }
            v6.into()
        }
        _ => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// Checks that a configuration has the expected problems, in this order.
    fn check(text: &str, expected: &[&str]) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("evener-loops-{}-{number}.lua", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let config = crate::config::load(&file).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        std::fs::remove_file(&file).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let targets = runtime.block_on(FirstReadings::of(&config.spec));
        let seen: Vec<String> = problems(&config, &targets).iter().map(ToString::to_string).collect();
        assert_eq!(seen.len(), expected.len(), "{text}: {seen:?}");
        for (seen, expected) in seen.iter().zip(expected) {
            assert!(seen.contains(expected), "{text}: {seen}");
        }
    }

    fn service(name: &str, listen: &str, server: &str, more: &str) -> String {
        format!("service '{name}' {{ listen = '{listen}', '{server}', {more} }}\n")
    }

    #[test]
    fn a_service_with_a_server_at_its_listen_address_is_refused() {
        const ITSELF: &str = "is an address of the service itself";
        for protocol in ["tcp", "http", "udp", "dns"] {
            let more = format!("protocol = '{protocol}'");
            for (listen, server, is_loop) in [
                ("127.0.0.1:8000", "127.0.0.1:8000", true),
                ("127.0.0.1:8000", "0.0.0.0:8000", true),
                ("0.0.0.0:8000", "127.0.0.1:8000", true),
                ("0.0.0.0:8000", "127.3.2.1:8000", true),
                ("[::1]:8000", "[::1]:8000", true),
                ("[::]:8000", "[::1]:8000", true),
                ("10.0.0.1:8000", "[::ffff:10.0.0.1]:8000", true),
                ("127.0.0.1:8000", "127.0.0.1:8001", false),
                ("127.0.0.1:8000", "127.0.0.2:8000", false),
                ("[::]:8000", "127.0.0.1:8000", false),
                ("0.0.0.0:8000", "10.0.0.1:8000", false),
            ] {
                check(&service("s", listen, server, &more), if is_loop { &[ITSELF] } else { &[] });
            }
        }
        check(&service("s", "/run/a.sock", "/run/a.sock", ""), &[ITSELF]);
        check(&service("s", "./a.sock", "unix:a.sock", ""), &[ITSELF]);
        check(&service("s", "/run/a.sock", "/run/b.sock", ""), &[]);
        check(
            &service(
                "s",
                "127.0.0.1:1",
                "127.0.0.1:2",
                "routes = { { sni = 'a', pool = pool 'p' { '127.0.0.1:1' } } }",
            ),
            &[ITSELF],
        );
        check(&service("s", "127.0.0.1:1", "127.0.0.1:2", "denied = pool 'p' { '127.0.0.1:1' }"), &[ITSELF]);
        // An address is local if another service listens there.
        let other = service("t", "10.0.0.1:9", "10.0.0.2:1", "");
        check(&(service("s", "0.0.0.0:8000", "10.0.0.1:8000", "") + &other), &[ITSELF]);
    }

    #[test]
    fn services_that_form_a_loop_are_refused() {
        let chain = |last: &str, more: &str| {
            service("a", "127.0.0.1:1", "127.0.0.1:2", more)
                + &service("b", "127.0.0.1:2", "127.0.0.1:3", more)
                + &service("c", "127.0.0.1:3", last, more)
        };
        check(&chain("127.0.0.1:4", ""), &[]);
        check(
            &chain("127.0.0.1:1", ""),
            &["to `b` by `127.0.0.1:2`, to `c` by `127.0.0.1:3`, to `a` by `127.0.0.1:1`"],
        );
        check(&chain("127.0.0.1:1", "protocol = 'dns'"), &["service `a` leads back to itself"]);
        // A service that leads into a loop is not part of it.
        let into = service("x", "127.0.0.1:9", "127.0.0.1:1", "");
        check(&(into + &chain("127.0.0.1:2", "")), &["service `b` leads back to itself"]);
        // A UDP service does not connect to a listener for TCP.
        let two = |a: &str, b: &str| {
            service("a", "127.0.0.1:1", "127.0.0.1:2", a) + &service("b", "127.0.0.1:2", "127.0.0.1:1", b)
        };
        check(&two("protocol = 'udp'", "protocol = 'tcp'"), &[]);
        check(&two("protocol = 'udp'", "protocol = 'dns'"), &["leads back"]);
        check(&two("protocol = 'http'", "protocol = 'tcp'"), &["leads back"]);
        // A listener on exactly this address is preferred over a listener on all addresses.
        let just =
            service("s", "0.0.0.0:53", "127.0.0.1:53", "") + &service("t", "127.0.0.1:53", "10.0.0.1:53", "");
        check(&just, &[]);
    }
}
