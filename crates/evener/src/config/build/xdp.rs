//! Services of the XDP plane, and checks of what the plane cannot do. A packet is forwarded by look-ups alone, so
//! settings that count, wait, or read the bytes of clients are refused here, with their location.

mod endpoints;

use super::Builder;
use crate::config::access::read_acl;
use crate::config::address::usual_port;
use crate::config::fields::Fields;
use crate::config::raw::{Made, Run, Value};
use crate::config::sticky::sticky_defaults;
use crate::config::{Location, edge, xdp};
use crate::scope;
use endpoints::{addresses_of, ip_of, lacks_ports, port_of, port_of_source, settle_port};
use evener_core::Endpoint;
use evener_core::address::AddressError;
use evener_core::spec::{
    DiscoverSpec, Forward, Plane, Policy, PoolSpec, Protocol, ServerSpec, ServiceOptions, ServiceSpec,
    StickyBy, Transport, XdpServiceSpec,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Maximum number of services in the plane: SERVICES_MAX of the contract with the program, without slot 0.
const SERVICES_MAX: usize = 4095;
/// Maximum number of virtual addresses: VIPS_MAX of the contract, without slot 0.
const ADDRESSES_MAX: usize = 8191;
/// Maximum number of servers: SERVERS_MAX of the contract, without slot 0.
const SERVERS_MAX: usize = 16_383;
/// Maximum number of slots of a Maglev table. The thread of the plane builds and writes the table at each change of a
/// server, and does nothing else meanwhile.
const MAGLEV_TABLE_MAX: u32 = 262_147;
/// Maximum number of virtual addresses that can have one server address and port in common, with NAT: SHARED_MAX of
/// the contract.
const SHARED_MAX: usize = 8;

/// Need for ports of the addresses of servers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Ports {
    /// An address without a port is a problem.
    Required,
    /// A server without a port has the port of the client.
    Optional,
}

/// Returns the names of the pools of services in the planes of the kernel, whose servers may have no port.
pub(super) fn pools_of_plane(run: &Run) -> HashSet<String> {
    let is_in_plane = |made: &&Arc<Made>| {
        made.table().get("plane").and_then(Value::text).is_some_and(|plane| ["xdp", "ipvs"].contains(&plane))
    };
    let pool = |made: &Arc<Made>| match made.table().get("pool") {
        Some(Value::Text(name)) => name.clone(),
        Some(Value::Made(pool)) => pool.name().to_owned(),
        _ => made.name().to_owned(),
    };
    run.services().iter().filter(is_in_plane).map(pool).collect()
}

impl<'a> Builder<'a> {
    /// Returns the need for ports of the servers of a pool or service.
    pub(super) fn ports_of(&self, made: &Made) -> Ports {
        if self.pools_of_kernel.contains(made.name()) { Ports::Optional } else { Ports::Required }
    }

    /// Parses the address of a server. With the XDP plane a server without a port has the port of the client.
    pub(super) fn server_at(&self, address: &str, made: &Made) -> Result<ServerSpec, AddressError> {
        let without = |error| match self.ports_of(made) {
            Ports::Optional => Endpoint::parse_without_port(address).map(ServerSpec::new).ok_or(error),
            Ports::Required => Err(error),
        };
        scope::server(address).or_else(without)
    }

    /// Reads a service of the XDP plane.
    pub(super) fn xdp_service(&mut self, made: &'a Made, mut fields: Fields<'a>, protocol: Protocol) {
        let name = made.name();
        fields.set_plane(Plane::Xdp.name());
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            let protocol = protocol.name();
            let message = format!(
                "protocol = \"{protocol}\" is not available with plane = \"xdp\", which forwards packets: write protocol = \"{}\", or plane = \"proxy\"",
                if protocol == "dns" { "udp" } else { "tcp" }
            );
            fields.problem("protocol", message);
            if protocol == "http" {
                drop(edge::read_http(&mut fields));
            }
        }
        let transport = if protocol == Protocol::Udp { Protocol::Udp } else { Protocol::Tcp };
        let ports = xdp::read_ports(&mut fields);
        let listen = self.virtual_addresses(made, &mut fields, ports.as_deref());
        let settings = xdp::read_service(&mut fields, transport);
        let acl = read_acl(&mut fields);
        let pool = self.service_pool(name, made, &mut fields, false);
        fields.finish();
        let service = ServiceSpec {
            listen,
            plane: Plane::Xdp,
            xdp: Some(Arc::new(settings)),
            pool,
            acl,
            options: ServiceOptions::of(transport),
            ..ServiceSpec::new(name, transport)
        };
        self.config.spec.services.push(service);
    }

    /// Reads `listen`, whose addresses may leave their ports to `ports`.
    fn virtual_addresses(
        &mut self,
        made: &Made,
        fields: &mut Fields<'_>,
        ports: Option<&[u16]>,
    ) -> Vec<Endpoint> {
        let (name, usual) = (made.name(), usual_port(self.reading.run(), made));
        let parse = |text: &str| xdp::parse_virtual(text, ports.is_some(), usual);
        let given = fields.texts("listen", "an address or a list of addresses", parse);
        let given = given.or_else(|| parse(name).ok().map(|endpoint| vec![endpoint]));
        let Some(given) = given.filter(|given| !given.is_empty() || fields.has("listen")) else {
            let example = if ports.is_some() { "192.0.2.1" } else { "192.0.2.1:80" };
            fields.problem_here(format!("there is no virtual address: add listen = \"{example}\""));
            return Vec::new();
        };
        let is_used = given.iter().any(Endpoint::lacks_port) || given.is_empty();
        if ports.is_some() && !is_used {
            fields.problem("ports", "each address of listen has a port: remove the ports there, or `ports`");
        }
        let mut listen = Vec::new();
        for (written, endpoint) in xdp::with_ports(given, ports.unwrap_or_default()) {
            let location = fields.location_of(&written.server_text());
            self.config.listen.insert((name.into(), endpoint.clone()), location);
            listen.push(endpoint);
        }
        listen
    }

    /// Gives checks the port of the service, if the servers have no port and the service has one port.
    pub(super) fn settle_check_ports(&mut self) {
        let mut ports: BTreeMap<Arc<str>, BTreeSet<u16>> = BTreeMap::new();
        for service in self.config.spec.services.iter().filter(|service| service.plane != Plane::Proxy) {
            let Some(pool) = &service.pool else { continue };
            let listen = service.listen.iter().filter_map(port_of).filter(|port| *port > 0);
            ports.entry(pool.clone()).or_default().extend(listen);
        }
        for (pool, ports) in ports {
            let Some(&at) = self.pools.get(&pool) else { continue };
            let lacks_port = lacks_ports(&self.config.spec.pools[at]);
            let ports: Vec<u16> = ports.into_iter().collect();
            let declared = self.declaration_of(&pool);
            let PoolSpec { check, servers, .. } = &mut self.config.spec.pools[at];
            if let Some(check) = check.as_mut().filter(|_| lacks_port)
                && let Some(problem) = settle_port(check, &ports)
                && let Some(made) = declared
            {
                let message = format!("pool `{pool}`: the servers have no port, and {problem}");
                self.reading.problem_inside(made.location(), &["check"], message);
            }
            for server in servers.iter_mut().filter(|server| server.endpoint.lacks_port()) {
                if let Some(check) = &mut server.check
                    && let Some(problem) = settle_port(Arc::make_mut(check), &ports)
                    && let Some(location) = self.config.servers.get(&server.endpoint)
                {
                    let message = format!("server `{}` has no port, and {problem}", server.name);
                    self.reading.problem(location, message);
                }
            }
        }
    }

    /// Returns the declaration of a pool: of the pool itself, or of the service with its servers.
    fn declaration_of(&self, pool: &str) -> Option<&'a Made> {
        self.declared.get(pool).copied()
    }

    /// Checks the settings of all services and pools that the XDP plane uses.
    pub(super) fn check_xdp(&self) {
        let in_plane = || {
            let services = self.config.spec.services.iter();
            services.filter_map(|service| Some((service, service.xdp.as_deref()?)))
        };
        let declared: BTreeMap<&str, &Made> =
            self.reading.run().services().iter().map(|made| (made.name(), &**made)).collect();
        for (service, settings) in in_plane() {
            let Some(made) = declared.get(&*service.name) else { continue };
            let pools = self.pools_of(service);
            let check = ServiceCheck { builder: self, service, settings, location: made.location() };
            pools.for_each(|pool| check.pool(pool));
        }
        self.check_ports_of_servers();
        self.check_shared_servers(&declared);
        let of_plane: BTreeSet<&Arc<str>> =
            in_plane().filter_map(|(service, _)| service.pool.as_ref()).collect();
        let servers = of_plane.iter().filter_map(|name| self.pool_named(name)).map(|pool| pool.servers.len());
        let addresses = in_plane().map(|(service, _)| addresses_of(service).len());
        let bounds = [
            ("services", in_plane().count(), SERVICES_MAX),
            ("virtual addresses", addresses.sum(), ADDRESSES_MAX),
            ("servers", servers.sum(), SERVERS_MAX),
        ];
        for (what, count, most) in bounds {
            if count > most {
                let message = format!("plane = \"xdp\" has at most {most} {what}, got {count}");
                self.reading.problem(&self.reading.run().beginning(), message);
            }
        }
    }

    /// Checks that the servers of services in other planes have ports.
    fn check_ports_of_servers(&self) {
        let mut reported = BTreeSet::new();
        for service in self.config.spec.services.iter().filter(|service| service.plane == Plane::Proxy) {
            for pool in self.pools_of(service) {
                let lacking = pool.servers.iter().find(|server| server.endpoint.lacks_port());
                let lists = pool.discover.iter().any(|source| port_of_source(source) == Some(0));
                if lacking.is_none() && !lists {
                    continue;
                }
                let Some(made) = self.declaration_of(&pool.name) else { continue };
                if !reported.insert(&pool.name) {
                    continue;
                }
                let server =
                    lacking.map_or("its sources".to_owned(), |server| format!("server `{}`", server.name));
                let message = format!(
                    "pool `{}`: {server} has no port, which only plane = \"xdp\" and \"ipvs\" allow, and service `{}` uses the pool, too: write the port",
                    pool.name, service.name
                );
                let at = lacking.and_then(|server| self.config.servers.get(&server.endpoint));
                self.reading.problem(at.unwrap_or(made.location()), message);
            }
        }
    }

    /// Checks that, with NAT, the packets of a server can come from few virtual addresses.
    fn check_shared_servers(&self, declared: &BTreeMap<&str, &Made>) {
        // The virtual addresses behind which an address and port responds, with the services.
        let mut uses: BTreeMap<(ProtocolName, SocketAddr), BTreeSet<(&str, IpAddr)>> = BTreeMap::new();
        for service in &self.config.spec.services {
            let is_nat = service.xdp.as_ref().is_some_and(|settings| settings.forward == Forward::Nat);
            for pool in self.pools_of(service).filter(|_| is_nat) {
                for server in &pool.servers {
                    let Endpoint::Ip(server) = server.endpoint else { continue };
                    for listen in service.listen.iter().filter_map(ip_of) {
                        let port = if server.port() == 0 { listen.port() } else { server.port() };
                        let real = (service.protocol.name(), SocketAddr::new(server.ip(), port));
                        uses.entry(real).or_default().insert((&service.name, listen.ip()));
                    }
                }
            }
        }
        let crowded = uses.into_iter().find(|(_, uses)| uses.len() > SHARED_MAX);
        let Some(((_, server), uses)) = crowded else { return };
        let Some(made) = uses.last().and_then(|(service, _)| declared.get(service)) else { return };
        let message = format!(
            "service `{}`: with forward = \"nat\" a server can respond behind {SHARED_MAX} virtual addresses, and {server} has {}: give some services another port of the server, or write forward = \"direct\"",
            made.name(),
            uses.len()
        );
        self.reading.problem(made.location(), message);
    }
}

/// Name of a protocol as part of a key.
type ProtocolName = &'static str;

/// A service of the plane whose pools are checked.
struct ServiceCheck<'b, 'a> {
    builder: &'b Builder<'a>,
    service: &'b ServiceSpec,
    settings: &'b XdpServiceSpec,
    location: &'b Location,
}

impl ServiceCheck<'_, '_> {
    fn pool(&self, pool: &PoolSpec) {
        self.policy(pool);
        self.maglev_table(pool);
        self.connections(pool);
        for server in &pool.servers {
            self.server(server);
        }
        self.sources(pool);
        self.quic(pool);
    }

    /// Records a problem with a key of a pool.
    fn problem_with(&self, pool: &PoolSpec, key: &str, message: &str) {
        let location = self.builder.declaration_of(&pool.name).map_or(self.location, Made::location);
        let message = format!("service `{}`: {message}, or plane = \"proxy\"", self.service.name);
        self.builder.reading.problem_inside(location, &[key], message);
    }

    /// Records a problem with a server.
    fn problem_with_server(&self, server: &ServerSpec, message: &str) {
        let at = self.builder.config.servers.get(&server.endpoint).unwrap_or(self.location);
        let message = format!("service `{}`: server `{}` {message}", self.service.name, server.name);
        self.builder.reading.problem(at, message);
    }

    /// Checks the size of the Maglev table, which the thread of the plane builds and writes at each change of a server.
    fn maglev_table(&self, pool: &PoolSpec) {
        let Policy::Maglev { table } = pool.policy else { return };
        if table > MAGLEV_TABLE_MAX {
            let message = format!(
                "plane = \"xdp\" has tables of at most {MAGLEV_TABLE_MAX} slots, got {table}: the whole table is written \
                 at each change of a server. Write policy.maglev {{ table = {} }}",
                Policy::MAGLEV_TABLE
            );
            self.problem_with(pool, "policy", &message);
        }
    }

    fn policy(&self, pool: &PoolSpec) {
        let (name, policy) = (&pool.name, pool.policy.name());
        let reason = match pool.policy {
            Policy::RoundRobin | Policy::Weighted | Policy::Hash | Policy::Maglev { .. } => return,
            Policy::LeastConn | Policy::LeastOutstanding | Policy::P2c => "counts no connections",
            Policy::Ewma { .. } => "measures no latency",
            Policy::First => "does not know when a server is full",
        };
        let instead = match pool.policy {
            Policy::First => "write policy = \"round_robin\", and tier = 2 for the other servers",
            _ => "write policy = \"round_robin\", \"weighted\", \"hash\" or \"maglev\"",
        };
        let message = format!(
            "policy = \"{policy}\" of pool `{name}` is not available with plane = \"xdp\", which {reason}: {instead}"
        );
        self.problem_with(pool, "policy", &message);
    }

    /// Checks settings that concern connections of the balancer itself, which the plane does not have.
    fn connections(&self, pool: &PoolSpec) {
        let name = &pool.name;
        let not_available = |key: &str, reason: &str| {
            let message =
                format!("{key} of pool `{name}` is not available with plane = \"xdp\": {reason}; remove it");
            self.problem_with(pool, key, &message);
        };
        if pool.tls.is_some() {
            not_available("tls", "packets are passed on unread, so clients and servers use TLS themselves");
        }
        if pool.send_proxy.is_some() {
            not_available("send_proxy", "the servers see the addresses of the clients");
        }
        if pool.sticky.as_ref().is_some_and(|sticky| sticky.rebalance.is_some()) {
            not_available("sticky", "clients are not moved for a balance, so remove sticky.rebalance");
        }
        if pool.sticky.as_ref().is_some_and(|sticky| sticky.failback) {
            not_available("sticky", "clients stay with their new server, so remove sticky.failback");
        }
    }

    fn server(&self, server: &ServerSpec) {
        let limits = server.limits;
        if matches!(server.endpoint, Endpoint::Unix(_)) {
            return self.problem_with_server(server, "is a unix socket: plane = \"xdp\" needs IP servers");
        }
        if limits.soft.is_some() || limits.hard.is_some() {
            let message = "has max or hard: plane = \"xdp\" does not count the flows of a server; remove it, or write plane = \"proxy\"";
            self.problem_with_server(server, message);
        }
        if server.acl.is_some() {
            let message = "has an access list: with plane = \"xdp\" only services have one; move it to the service, or write plane = \"proxy\"";
            self.problem_with_server(server, message);
        }
        if self.settings.forward == Forward::Nat {
            self.one_port(server);
        } else {
            self.unchanged_port(server);
        }
        if let Endpoint::Ip(address) = &server.endpoint {
            self.family(server, address);
        }
    }

    /// Returns two ports of one virtual address of the service, if an address has several.
    fn two_ports(&self) -> Option<(u16, u16)> {
        let mut ports: BTreeMap<IpAddr, u16> = BTreeMap::new();
        self.service.listen.iter().filter_map(ip_of).find_map(|listen| {
            let first = *ports.entry(listen.ip()).or_insert(listen.port());
            (first != listen.port()).then_some((first, listen.port()))
        })
    }

    fn needs_one_port(&self) -> bool {
        self.settings.forward == Forward::Nat && self.two_ports().is_some()
    }

    /// Checks that a server with a port is behind one port: its responses do not tell which port the client used.
    fn one_port(&self, server: &ServerSpec) {
        let Some(port) = port_of(&server.endpoint).filter(|port| *port > 0) else { return };
        let Some((first, second)) = self.two_ports() else { return };
        let message = format!(
            "has the port {port} and the service {first} and {second}: with several ports, servers need the ports of the clients; write one service for each port, or the server without a port"
        );
        self.problem_with_server(server, &message);
    }

    /// Checks that a server behind a virtual address has the port of the service: only NAT changes ports.
    fn unchanged_port(&self, server: &ServerSpec) {
        let Some(port) = port_of(&server.endpoint).filter(|port| *port > 0) else { return };
        let Some(other) = self.service.listen.iter().filter_map(port_of).find(|listen| *listen != port)
        else {
            return;
        };
        let forward = self.settings.forward.name();
        let text = server.endpoint.server_text();
        let host = text.strip_suffix(&format!(":{port}")).unwrap_or(&text);
        let host = host.trim_matches(['[', ']']);
        let message = format!(
            "has the port {port} and the service {other}: forward = \"{forward}\" does not change ports; write \"{host}\", without a port, or forward = \"nat\""
        );
        self.problem_with_server(server, &message);
    }

    /// Checks that a server has the family of the virtual addresses. A tunnel carries either family.
    fn family(&self, server: &ServerSpec, address: &SocketAddr) {
        if matches!(self.settings.forward, Forward::Ipip(_) | Forward::Gue(..)) {
            return;
        }
        let name = |is_ipv6| if is_ipv6 { "IPv6" } else { "IPv4" };
        let other = self.service.listen.iter().filter_map(ip_of).find(|ip| ip.is_ipv6() != address.is_ipv6());
        let Some(other) = other else { return };
        let message = format!(
            "has an {} address and the service listens on {other}: forward = \"{}\" does not change the family; declare a service for {}, or write forward = \"ipip\"",
            name(address.is_ipv6()),
            self.settings.forward.name(),
            name(other.is_ipv6()),
        );
        self.problem_with_server(server, &message);
    }

    fn sources(&self, pool: &PoolSpec) {
        for source in &pool.discover {
            let at = self.builder.config.sources.get(&(pool.name.clone(), source.to_string()));
            let reason = match source {
                DiscoverSpec::File { settings, .. } | DiscoverSpec::Dns { settings, .. }
                    if settings.limits != evener_core::limits::Limits::default() =>
                {
                    limits_of_source()
                }
                DiscoverSpec::Srv { limits, .. } if *limits != evener_core::limits::Limits::default() => {
                    limits_of_source()
                }
                DiscoverSpec::Srv { .. } if self.needs_one_port() => {
                    "names servers with ports, and the service has several ports of one address: write one service for each port".into()
                }
                _ if port_of_source(source).is_some_and(|port| port > 0) && self.needs_one_port() => {
                    "gives servers a port, and the service has several ports of one address: write one service for each port".into()
                }
                _ => continue,
            };
            let message = format!("service `{}`: {source} {reason}", self.service.name);
            self.builder.reading.problem(at.unwrap_or(self.location), message);
        }
    }

    /// Checks that the identities in connection IDs of QUIC have the length of the service, and differ.
    fn quic(&self, pool: &PoolSpec) {
        let Some(length) = self.settings.quic_id_length else { return };
        let mut seen = BTreeMap::new();
        for server in &pool.servers {
            let Some(id) = server.quic_id else { continue };
            if id.as_bytes().len() != usize::from(length) {
                let bytes = id.as_bytes().len();
                let message = format!(
                    "has the quic_id {id} of {bytes} bytes, and the service has quic_id_length = {length}: change one of them"
                );
                self.problem_with_server(server, &message);
            }
            if let Some(other) = seen.insert(id, &server.name) {
                let message = format!("has the quic_id {id} of server `{other}`: give it another one");
                self.problem_with_server(server, &message);
            }
        }
    }
}

fn limits_of_source() -> String {
    "has max or hard: plane = \"xdp\" does not count the flows of a server; remove it, or write plane = \"proxy\""
        .into()
}

impl<'a> Builder<'a> {
    /// Records warnings about settings without effect in the planes of the kernel.
    pub(super) fn warn_of_kernel(&self, made: &Made, service: &ServiceSpec) {
        if service.plane == Plane::Proxy {
            return;
        }
        let (name, plane) = (&service.name, service.plane.name());
        for pool in self.pools_of(service) {
            let Some(declared) = self.declaration_of(&pool.name) else { continue };
            let warn = |key: &str, message: String| {
                let message = format!("service `{name}`: {message}");
                self.reading.warning_inside(declared.location(), &[key], message);
            };
            let is_given = |key: &str| !matches!(declared.table().get(key), None | Some(Value::Bool(false)));
            for (key, reason) in [
                ("queue", "packets do not wait"),
                ("retry_budget", "packets are not sent again"),
                ("passive", "the plane does not see whether servers accept; add a check"),
            ] {
                if is_given(key) {
                    let pool = &pool.name;
                    warn(
                        key,
                        format!("{key} of pool `{pool}` has no effect with plane = \"{plane}\": {reason}"),
                    );
                }
            }
            if let Some(sticky) = &pool.sticky {
                let defaults = sticky_defaults();
                if sticky.by == StickyBy::ClientIp && sticky.size != defaults.size {
                    warn(
                        "sticky",
                        "sticky.size has no effect with plane = \"xdp\": write xdp { flows = ... }".into(),
                    );
                }
                if sticky.ttl != defaults.ttl {
                    let message =
                        "sticky.ttl has no effect with plane = \"xdp\": write idle_timeout in the service";
                    warn("sticky", message.into());
                }
            }
            let has_unchecked =
                pool.servers.iter().any(|server| !server.is_sorry && pool.check_of(server).is_none());
            let lacks_check = has_unchecked || !pool.discover.is_empty() && pool.check.is_none();
            if lacks_check && service.protocol == Protocol::Tcp {
                let message = format!(
                    "service `{name}`: pool `{}` has no check, and plane = \"{plane}\" does not see failed connections: add check = \"tcp\"",
                    pool.name
                );
                self.reading.warning(declared.location(), message);
            }
            let ids = pool.servers.iter().filter(|server| server.quic_id.is_some()).count();
            if service.xdp.as_ref().is_some_and(|xdp| xdp.quic_id_length.is_some())
                && ids == 0
                && pool.discover.is_empty()
            {
                self.reading.warning_inside(
                    made.location(),
                    &["quic_id_length"],
                    format!("service `{name}`: quic_id_length has no effect: no server has a quic_id"),
                );
            }
        }
    }

    /// Records warnings about services of the plane that share an address with a service of the proxy.
    pub(super) fn warn_of_shared_addresses(&self) {
        let services = &self.config.spec.services;
        if services.iter().all(|service| service.xdp.is_none()) {
            return;
        }
        let others = services.iter().filter(|service| service.plane != Plane::Xdp).flat_map(|service| {
            let sockets = service.protocol.transports().iter();
            sockets.flat_map(move |each| service.listen.iter().map(move |one| ((each, one), &service.name)))
        });
        let others: HashMap<(&Transport, &Endpoint), &Arc<str>> = others.collect();
        for service in services.iter().filter(|service| service.xdp.is_some()) {
            let sockets = service.protocol.transports().iter();
            let mut sockets = sockets.flat_map(|each| service.listen.iter().map(move |one| (each, one)));
            let shared = sockets.find_map(|socket| Some((socket.1, others.get(&socket)?)));
            let (Some((endpoint, other)), Some(made)) = (shared, self.declared_service(&service.name)) else {
                continue;
            };
            let message = format!(
                "service `{}`: service `{other}` listens on {endpoint}, too, and gets only packets that plane = \"xdp\" does not forward",
                service.name
            );
            self.reading.warning(made.location(), message);
        }
    }

    fn declared_service(&self, name: &str) -> Option<&'a Made> {
        self.reading.run().services().iter().map(AsRef::as_ref).find(|made| made.name() == name)
    }
}
