//! The configuration that is equivalent to sbulb.

use super::{CommandLine, NAME};
use evener_core::Endpoint;
use evener_core::spec::{
    Forward, NextHop, Plane, Policy, PoolSpec, Protocol, ServerSpec, ServiceSpec, Spec, XdpServiceSpec,
    XdpSpec,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Returns the service and the pool that the command line defines, with these servers.
pub(super) fn spec(line: &CommandLine, servers: &[IpAddr]) -> Spec {
    // Port 0 is the port to which the client sends.
    let server = |address: &IpAddr| ServerSpec::new(Endpoint::Ip(SocketAddr::new(*address, 0)));
    let pool =
        PoolSpec { policy: Policy::RoundRobin, ..PoolSpec::new(NAME, servers.iter().map(server).collect()) };
    let listen = |port: &u16| Endpoint::Ip(SocketAddr::new(line.virtual_server, *port));
    let xdp = XdpServiceSpec {
        interfaces: vec![line.interface.as_str().into()],
        forward: Forward::Nat,
        next_hop: NextHop::Sender,
        ..XdpServiceSpec::default()
    };
    let service = ServiceSpec {
        listen: line.ports.iter().map(listen).collect(),
        plane: Plane::Xdp,
        xdp: Some(Arc::new(xdp)),
        pool: Some(NAME.into()),
        ..ServiceSpec::new(NAME, Protocol::Udp)
    };
    let xdp = XdpSpec {
        flows: line.associations,
        // Another interface can have a separate instance, as with sbulb.
        pin: format!("/sys/fs/bpf/evener-sbulb-{}", line.interface).into(),
        events: line.level,
        ..XdpSpec::default()
    };
    Spec { pools: vec![pool], services: vec![service], xdp }
}
