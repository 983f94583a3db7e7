//! Random settings of the XDP plane, its services and its servers.

use super::{Chance, Kind};
use evener_core::Endpoint;
use evener_core::limits::Limits;
use evener_core::spec::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Length of the identities of servers in QUIC.
const QUIC_ID_BYTES: u8 = 4;

/// Greatest Maglev table of the plane.
const MAGLEV_MAX: u32 = 262_147;

impl Chance<'_> {
    pub(super) fn xdp(&mut self) -> XdpSpec {
        let tarpit = self.maybe(Self::prefixes);
        XdpSpec {
            flows: self.or(XdpSpec::FLOWS, |chance| chance.within(1..=XdpSpec::FLOWS_MAX)),
            mode: self.pick(&XdpMode::ALL),
            pin: self.or(XdpSpec::PIN.into(), |chance| format!("/run/{}", chance.word()).into()),
            events: self.pick(&XdpEventLevel::ALL),
            events_per_second: self.or(XdpSpec::EVENTS_PER_SECOND, |c| c.within(1..=1_000_000_000)),
            tarpit_interfaces: if tarpit.is_some() { self.interfaces(0) } else { Vec::new() },
            tarpit,
        }
    }

    fn interfaces(&mut self, least: usize) -> Vec<Arc<str>> {
        self.some(least..=3, |chance| format!("if{}", chance.unique()).into())
    }

    /// Returns a server with an IPv4 address, and often without a port.
    pub(super) fn xdp_server(&mut self) -> ServerSpec {
        let number = self.unique();
        let ip = Ipv4Addr::from(0x0a01_0000 + u32::from(number));
        let port = if self.one_in(2) { 0 } else { number };
        let endpoint = Endpoint::Ip(SocketAddr::new(ip.into(), port));
        let server = ServerSpec { endpoint: endpoint.clone(), ..self.server(Kind::Datagrams) };
        let has_name = self.one_in(3);
        ServerSpec {
            name: if has_name { format!("n {number}").into() } else { ServerSpec::new(endpoint).name },
            limits: Limits::default(),
            acl: None,
            quic_id: self.maybe(|_| format!("{number:08x}").parse().unwrap()),
            ..server
        }
    }

    pub(super) fn xdp_source(&mut self) -> DiscoverSpec {
        match self.source() {
            DiscoverSpec::File { path, port, settings } => DiscoverSpec::File {
                path,
                // The port of the client.
                port: port.or(Some(0)),
                settings: FoundSettings { limits: Limits::default(), ..settings },
            },
            DiscoverSpec::Dns { name, port, settings } => DiscoverSpec::Dns {
                name,
                port: self.or(port, |_| 0),
                settings: FoundSettings { limits: Limits::default(), ..settings },
            },
            DiscoverSpec::Srv { name, .. } => DiscoverSpec::Srv { name, limits: Limits::default() },
            other @ DiscoverSpec::Mname { .. } => other,
        }
    }

    pub(super) fn xdp_policy(&mut self) -> Policy {
        match self.policy() {
            Policy::Maglev { table } if table > MAGLEV_MAX => Policy::Maglev { table: MAGLEV_MAX },
            policy @ (Policy::Hash | Policy::Maglev { .. } | Policy::Weighted) => policy,
            _ => Policy::RoundRobin,
        }
    }

    /// Returns a service in the XDP plane, if there is a pool for it.
    pub(super) fn xdp_service(&mut self, others: &[ServiceSpec]) -> Option<ServiceSpec> {
        let pool = self.pool_of(&[Kind::Xdp])?;
        let protocol = self.pick(&[Protocol::Tcp, Protocol::Udp]);
        let is_udp = protocol == Protocol::Udp;
        let ips: Vec<IpAddr> =
            self.some(1..=2, |chance| Ipv4Addr::from(0xc000_0200 + u32::from(chance.unique())).into());
        let ports = self.some(1..=3, Self::unique);
        let listen = ips.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
        let rate = self.within(1..=1_000_000_000);
        let xdp = XdpServiceSpec {
            interfaces: self.interfaces(1),
            forward: Forward::Nat,
            next_hop: self.pick(&NextHop::ALL),
            idle_timeout: self.maybe(|chance| Duration::from_secs(u64::from(chance.within(2..=86_400)))),
            rate: self.maybe(|chance| SourceRate {
                packets_per_second: rate,
                burst: chance.or(rate, |chance| chance.within(1..=1_000_000_000)),
                prefix_v4: chance.or(32, |chance| chance.within(1..=32) as u8),
                prefix_v6: chance.or(64, |chance| chance.within(1..=128) as u8),
            }),
            syn_cookies: if is_udp { None } else { self.maybe(|chance| chance.within(1..=1_000_000)) },
            quic_id_length: is_udp.then_some(QUIC_ID_BYTES).filter(|_| self.one_in(2)),
        };
        Some(ServiceSpec {
            listen: listen.map(Endpoint::Ip).collect(),
            plane: Plane::Xdp,
            xdp: Some(Arc::new(xdp)),
            acl: self.maybe(Self::acl),
            ..ServiceSpec::new(&self.service_name(Some(&pool), others), protocol)
        })
        .map(|service| ServiceSpec { pool: Some(pool), ..service })
        .map(|service| self.with_forward(service))
    }

    /// Sets a tunnel, if the ports of the service allow it.
    fn with_forward(&mut self, service: ServiceSpec) -> ServiceSpec {
        let tunnel = TunnelSource {
            v4: self.maybe(|_| Ipv4Addr::new(192, 0, 2, 9)),
            v6: self.maybe(|_| "2001:db8::9".parse().unwrap()),
        };
        let forward = match self.below(6) {
            0 => Forward::Ipip(tunnel),
            1 => Forward::Gue(tunnel, self.or(Forward::GUE_PORT, |chance| chance.within(1..=65_535) as u16)),
            2 => Forward::Direct,
            _ => return with_one_port(service),
        };
        let Some(xdp) = service.xdp.as_deref() else { return service };
        let next_hop = if forward == Forward::Direct { NextHop::Route } else { xdp.next_hop };
        let xdp = XdpServiceSpec { forward, next_hop, ..xdp.clone() };
        ServiceSpec { xdp: Some(Arc::new(xdp)), ..service }
    }
}

/// Leaves one port of each virtual address: with NAT, only servers without ports are behind several.
fn with_one_port(service: ServiceSpec) -> ServiceSpec {
    let mut addresses = BTreeSet::new();
    let mut listen = service.listen.clone();
    listen.retain(|endpoint| match endpoint {
        Endpoint::Ip(address) => addresses.insert(address.ip()),
        _ => true,
    });
    ServiceSpec { listen, ..service }
}

/// Makes the servers of services that do not change ports follow the port of the client.
pub(super) fn omit_ports(service: &ServiceSpec, pools: &mut [PoolSpec]) {
    let changes_ports = service.xdp.as_ref().is_none_or(|xdp| xdp.forward == Forward::Nat)
        && service.ipvs.as_ref().is_none_or(|ipvs| {
            ipvs.forward == IpvsForward::Nat
                && ipvs.fwmark.is_none()
                && !service.listen.iter().any(Endpoint::lacks_port)
        });
    let pool = pools.iter_mut().find(|pool| service.pool.as_ref() == Some(&pool.name));
    let Some(pool) = pool.filter(|_| !changes_ports) else { return };
    for server in &mut pool.servers {
        let Endpoint::Ip(address) = &mut server.endpoint else { continue };
        let is_named = *server.name != *address.to_string();
        address.set_port(0);
        if !is_named {
            server.name = ServerSpec::new(server.endpoint.clone()).name;
        }
    }
}

/// Gives the servers of a pool ports, unless a service of the plane uses the pool.
pub(super) fn complete(pool: &mut PoolSpec, services: &[ServiceSpec]) {
    let is_user =
        |service: &ServiceSpec| service.plane != Plane::Proxy && service.pool.as_ref() == Some(&pool.name);
    if services.iter().any(is_user) {
        return;
    }
    for server in pool.servers.iter_mut().filter(|server| server.endpoint.lacks_port()) {
        let Endpoint::Ip(address) = &mut server.endpoint else { continue };
        let is_named = *server.name != *address.ip().to_string();
        address.set_port(80);
        if !is_named {
            server.name = ServerSpec::new(server.endpoint.clone()).name;
        }
    }
    for source in &mut pool.discover {
        match source {
            DiscoverSpec::File { port, .. } => *port = port.filter(|port| *port > 0),
            DiscoverSpec::Dns { port, .. } => *port = (*port).max(1),
            DiscoverSpec::Mname { .. } | DiscoverSpec::Srv { .. } => {}
        }
    }
}
