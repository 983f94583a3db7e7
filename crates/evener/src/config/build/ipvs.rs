//! Services of the IPVS plane, and checks of what the plane cannot do. The kernel chooses servers and forwards packets,
//! so settings that wait, or read the bytes of clients, are refused here, with their location.

use super::Builder;
use crate::config::fields::Fields;
use crate::config::hints::one_of;
use crate::config::raw::Made;
use crate::config::{Location, edge, ipvs};
use evener_core::Endpoint;
use evener_core::spec::{
    IpvsForward, IpvsServiceSpec, IpvsTransport, OnDown, Plane, Policy, PoolSpec, Protocol, ServerSpec,
    ServiceOptions, ServiceSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

impl<'a> Builder<'a> {
    /// Returns true if a service names the IPVS plane, which has a protocol that others lack.
    pub(super) fn is_of_ipvs(made: &Made) -> bool {
        made.table().get("plane").and_then(super::Value::text) == Some(Plane::Ipvs.name())
    }

    /// Reads a service of the IPVS plane.
    pub(super) fn ipvs_service(&mut self, made: &'a Made, mut fields: Fields<'a>) {
        let name = made.name();
        fields.set_plane(Plane::Ipvs.name());
        let transport = read_transport(&mut fields);
        // SCTP has connections; it differs from TCP in the kernel only.
        let protocol = if transport == IpvsTransport::Udp { Protocol::Udp } else { Protocol::Tcp };
        fields.set_protocol(protocol.name());
        let settings = ipvs::read_service(&mut fields, transport);
        let listen = self.ipvs_addresses(made, &mut fields, &settings);
        let pool = self.service_pool(name, made, &mut fields, false);
        fields.finish();
        self.config.spec.services.push(ServiceSpec {
            listen,
            plane: Plane::Ipvs,
            ipvs: Some(Arc::new(settings)),
            pool,
            options: ServiceOptions::of(protocol),
            ..ServiceSpec::new(name, protocol)
        });
    }

    /// Reads `listen`, which a service with a firewall mark does not have.
    fn ipvs_addresses(
        &mut self,
        made: &Made,
        fields: &mut Fields<'_>,
        settings: &IpvsServiceSpec,
    ) -> Vec<Endpoint> {
        let name = made.name();
        let given = fields.texts("listen", "an address or a list of addresses", ipvs::parse_virtual);
        if settings.fwmark.is_some() {
            if given.is_some() {
                fields.problem("listen", "listen cannot be combined with fwmark: remove one of them");
            }
            return Vec::new();
        }
        let given = given.or_else(|| ipvs::parse_virtual(name).ok().map(|endpoint| vec![endpoint]));
        let Some(listen) = given.filter(|given| !given.is_empty() || fields.has("listen")) else {
            fields.problem_here(
                "there is no virtual address: add listen = \"192.0.2.1:80\", or fwmark = 1".to_owned(),
            );
            return Vec::new();
        };
        if let Some(whole) = listen.iter().find(|one| one.lacks_port())
            && settings.persistence.is_none()
        {
            let address = whole.server_text();
            let message = format!(
                "{address} has no port, which means every port and needs persistence: write a port, or add persistence = \"5min\""
            );
            fields.problem(&address, message);
        }
        for endpoint in &listen {
            let location = fields.location_of(&endpoint.server_text());
            self.config.listen.insert((name.into(), endpoint.clone()), location);
        }
        listen
    }

    /// Checks the settings of all services and pools that the IPVS plane uses.
    pub(super) fn check_ipvs(&self) {
        let declared: BTreeMap<&str, &Made> =
            self.reading.run().services().iter().map(|made| (made.name(), &**made)).collect();
        let mut marks: BTreeMap<u32, &str> = BTreeMap::new();
        let services = self.config.spec.services.iter();
        for (service, settings) in services.filter_map(|one| Some((one, one.ipvs.as_deref()?))) {
            let Some(made) = declared.get(&*service.name) else { continue };
            if let Some(mark) = settings.fwmark
                && let Some(other) = marks.insert(mark, &service.name)
            {
                let name = &service.name;
                let message = format!(
                    "service `{name}`: service `{other}` has fwmark = {mark}, too: change one of them"
                );
                self.reading.problem_inside(made.location(), &["fwmark"], message);
            }
            let check = IpvsCheck { builder: self, service, settings, location: made.location() };
            for pool in self.pools_of(service) {
                check.pool(pool);
                self.check_planes_of(pool, service, made);
            }
        }
    }

    /// Checks that the XDP plane does not use the pool: each plane of the kernel counts the connections of its servers.
    fn check_planes_of(&self, pool: &PoolSpec, service: &ServiceSpec, made: &Made) {
        let mut in_xdp = self.config.spec.services.iter().filter(|other| other.plane == Plane::Xdp);
        let uses = |other: &&ServiceSpec| other.pools().any(|name| *name == pool.name);
        if let Some(other) = in_xdp.find(uses) {
            let message = format!(
                "service `{}`: plane = \"ipvs\" shares pool `{}` with service `{}` in plane = \"xdp\", whose counters would mix: write a pool for each",
                service.name, pool.name, other.name
            );
            self.reading.problem_inside(made.location(), &["plane"], message);
        }
    }
}

fn read_transport(fields: &mut Fields<'_>) -> IpvsTransport {
    let names = IpvsTransport::ALL.map(IpvsTransport::name);
    let Some(value) = fields.take("protocol") else { return IpvsTransport::Tcp };
    let text = value.text().unwrap_or_default();
    let found = IpvsTransport::ALL.into_iter().find(|one| one.name() == text);
    found.unwrap_or_else(|| {
        match text {
            "http" | "dns" => {
                let instead = if text == "dns" { "udp" } else { "tcp" };
                let message = format!(
                    "protocol = \"{text}\" is not available with plane = \"ipvs\", which forwards packets: write protocol = \"{instead}\", or plane = \"proxy\""
                );
                fields.problem("protocol", message);
            }
            _ => fields.must("protocol", format!("be {}", one_of(&names, ""))),
        }
        if text == "http" {
            drop(edge::read_http(fields));
        }
        if text == "dns" { IpvsTransport::Udp } else { IpvsTransport::Tcp }
    })
}

/// A service of the plane whose pools are checked.
struct IpvsCheck<'b, 'a> {
    builder: &'b Builder<'a>,
    service: &'b ServiceSpec,
    settings: &'b IpvsServiceSpec,
    location: &'b Location,
}

impl IpvsCheck<'_, '_> {
    fn pool(&self, pool: &PoolSpec) {
        self.policy(pool);
        let name = &pool.name;
        let not_available = |key: &str, reason: &str| {
            let message = format!("{key} of pool `{name}` is not available with plane = \"ipvs\": {reason}");
            self.problem_with(pool, key, &message);
        };
        if pool.tls.is_some() {
            not_available(
                "tls",
                "packets are passed on unread, so clients and servers use TLS themselves; remove it",
            );
        }
        if pool.send_proxy.is_some() {
            not_available("send_proxy", "the servers see the addresses of the clients; remove it");
        }
        if pool.sticky.is_some() {
            not_available("sticky", "write persistence = \"5min\" in the service");
        }
        if pool.inhibit_on_failure && pool.on_down == OnDown::Close {
            let message = format!(
                "inhibit_on_failure of pool `{name}` keeps the connections that on_down = \"close\" ends: remove one of them"
            );
            self.problem_with(pool, "inhibit_on_failure", &message);
        }
        pool.servers.iter().for_each(|server| self.server(server));
    }

    fn policy(&self, pool: &PoolSpec) {
        let (name, policy) = (&pool.name, pool.policy.name());
        if let Some(scheduler) = self.settings.scheduler {
            if pool.policy != Policy::RoundRobin {
                let scheduler = scheduler.name();
                let message = format!(
                    "policy = \"{policy}\" of pool `{name}` has no effect with scheduler = \"{scheduler}\": remove one of them"
                );
                self.problem_with(pool, "policy", &message);
            }
            return;
        }
        let (reason, instead) = match pool.policy {
            Policy::RoundRobin
            | Policy::Weighted
            | Policy::LeastConn
            | Policy::Hash
            | Policy::Maglev { table: Policy::MAGLEV_TABLE } => return,
            Policy::Maglev { .. } => ("whose table has the size of the kernel", "write policy = \"maglev\""),
            Policy::First => (
                "whose servers have no order",
                "write scheduler = \"fo\" and give the first server the highest weight",
            ),
            Policy::LeastOutstanding | Policy::Ewma { .. } => {
                ("which measures no latency", "write policy = \"least_conn\", or scheduler = \"sed\"")
            }
            Policy::P2c => {
                ("which has no policy of this name", "write scheduler = \"twos\", or policy = \"least_conn\"")
            }
        };
        let message = format!(
            "policy = \"{policy}\" of pool `{name}` is not available with plane = \"ipvs\", {reason}: {instead}"
        );
        self.problem_with(pool, "policy", &message);
    }

    /// Records a problem with a key of a pool.
    fn problem_with(&self, pool: &PoolSpec, key: &str, message: &str) {
        let location = self.builder.declared.get(&*pool.name).map_or(self.location, |made| made.location());
        let message = format!("service `{}`: {message}, or plane = \"proxy\"", self.service.name);
        self.builder.reading.problem_inside(location, &[key], message);
    }

    /// Records a problem with a server.
    fn problem_with_server(&self, server: &ServerSpec, message: &str) {
        let at = self.builder.config.servers.get(&server.endpoint).unwrap_or(self.location);
        let message = format!("service `{}`: server `{}` {message}", self.service.name, server.name);
        self.builder.reading.problem(at, message);
    }

    fn server(&self, server: &ServerSpec) {
        if matches!(server.endpoint, Endpoint::Unix(_)) {
            return self.problem_with_server(server, "is a unix socket: plane = \"ipvs\" needs IP servers");
        }
        if server.acl.is_some() {
            let message =
                "has an access list: plane = \"ipvs\" has none; remove it, or write plane = \"proxy\"";
            self.problem_with_server(server, message);
        }
        self.port(server);
        self.family(server);
    }

    /// Checks the port of a server: only NAT changes ports, and a service of every port has no port to change.
    fn port(&self, server: &ServerSpec) {
        let port = match &server.endpoint {
            Endpoint::Ip(address) => address.port(),
            Endpoint::Host { port, .. } => *port,
            Endpoint::Unix(_) => 0,
        };
        if port == 0 {
            return;
        }
        let forward = self.settings.forward;
        let text = server.endpoint.server_text();
        let host = text.strip_suffix(&format!(":{port}")).unwrap_or(&text).trim_matches(['[', ']']);
        if self.settings.fwmark.is_some() || self.service.listen.iter().any(Endpoint::lacks_port) {
            let message = format!(
                "has the port {port}, and the service has every port: write \"{host}\", without a port"
            );
            return self.problem_with_server(server, &message);
        }
        let listen: BTreeSet<u16> = self.listen().map(|address| address.port()).collect();
        let other = listen.into_iter().find(|listen| *listen != port);
        if let Some(other) = other.filter(|_| forward != IpvsForward::Nat) {
            let message = format!(
                "has the port {port} and the service {other}: forward = \"{}\" does not change ports; write \"{host}\", without a port, or forward = \"nat\"",
                forward.name()
            );
            self.problem_with_server(server, &message);
        }
    }

    /// Checks that a server has the family of the virtual addresses. A tunnel carries either family.
    fn family(&self, server: &ServerSpec) {
        let Endpoint::Ip(address) = &server.endpoint else { return };
        let other = self.listen().find(|listen| listen.is_ipv6() != address.is_ipv6());
        let Some(other) = other.filter(|_| !self.settings.forward.is_tunnel()) else { return };
        let name = |is_ipv6| if is_ipv6 { "IPv6" } else { "IPv4" };
        let message = format!(
            "has an {} address and the service listens on {other}: forward = \"{}\" does not change the family; declare a service for {}, or write forward = \"ipip\"",
            name(address.is_ipv6()),
            self.settings.forward.name(),
            name(other.is_ipv6()),
        );
        self.problem_with_server(server, &message);
    }

    fn listen(&self) -> impl Iterator<Item = SocketAddr> {
        self.service.listen.iter().filter_map(|endpoint| match endpoint {
            Endpoint::Ip(address) => Some(*address),
            Endpoint::Host { .. } | Endpoint::Unix(_) => None,
        })
    }
}
