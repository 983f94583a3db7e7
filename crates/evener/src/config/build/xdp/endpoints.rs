//! Addresses and ports of services, servers and sources.

use evener_core::Endpoint;
use evener_core::spec::{CheckSpec, DiscoverSpec, PoolSpec, ServiceSpec};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Returns the virtual addresses of a service, without ports.
pub(super) fn addresses_of(service: &ServiceSpec) -> BTreeSet<IpAddr> {
    service.listen.iter().filter_map(ip_of).map(|address| address.ip()).collect()
}

pub(super) fn ip_of(endpoint: &Endpoint) -> Option<SocketAddr> {
    match endpoint {
        Endpoint::Ip(address) => Some(*address),
        Endpoint::Host { .. } | Endpoint::Unix(_) => None,
    }
}

pub(super) fn port_of(endpoint: &Endpoint) -> Option<u16> {
    match endpoint {
        Endpoint::Ip(address) => Some(address.port()),
        Endpoint::Host { port, .. } => Some(*port),
        Endpoint::Unix(_) => None,
    }
}

/// Returns the port of the servers of a source; 0 if they have none.
pub(super) fn port_of_source(source: &DiscoverSpec) -> Option<u16> {
    match source {
        DiscoverSpec::File { port, .. } => *port,
        DiscoverSpec::Dns { port, .. } => Some(*port),
        DiscoverSpec::Mname { .. } | DiscoverSpec::Srv { .. } => None,
    }
}

/// Gives a check without a port the port of the service. Returns the problem if there are several.
pub(super) fn settle_port(check: &mut CheckSpec, ports: &[u16]) -> Option<String> {
    match ports {
        _ if check.port.is_some() => None,
        [port] => {
            check.port = Some(*port);
            None
        }
        [] => None,
        [port, ..] => Some(format!(
            "the clients use several ports: write the port of the check, such as check.{} {{ port = {port} }}",
            check.kind.name()
        )),
    }
}

pub(super) fn lacks_ports(pool: &PoolSpec) -> bool {
    pool.servers.iter().any(|server| server.endpoint.lacks_port())
        || pool.discover.iter().any(|source| port_of_source(source) == Some(0))
}
