//! Tables that ipvsadm saved.

use super::{Hooks, Imported, Persistence, RealServer, VirtualServer};
use crate::config::{Location, Problem};
use evener_core::spec::IpvsScheduler;
use evener_ipvs::model::{Destination, Forwarding, Protocol, ServiceKey, Tunnel};
use evener_ipvs::save::{self, SavedService};
use std::net::SocketAddr;

/// Reads the text of `ipvsadm -Sn`.
pub(super) fn read(file: &str, text: &str) -> Result<Imported, Problem> {
    let at = |line: usize, message: String| {
        Problem::at(&Location::new(file, u32::try_from(line).unwrap_or(u32::MAX)), message)
    };
    let saved = save::parse(text).map_err(|error| at(error.line, error.problem))?;
    if saved.is_empty() {
        return Err(Problem::new(format!("{file}: the table has no services: there is nothing to import")));
    }
    let mut imported = Imported::default();
    for service in &saved {
        let location = Location::new(file, u32::try_from(service.line).unwrap_or(u32::MAX));
        let read = virtual_server(service, location, &mut imported.notes);
        imported.servers.push(read.map_err(|message| at(service.line, message))?);
    }
    Ok(imported)
}

fn virtual_server(
    saved: &SavedService,
    location: Location,
    notes: &mut Vec<String>,
) -> Result<VirtualServer, String> {
    let service = &saved.service;
    let (protocol, name, listen, mark) = match &service.key {
        ServiceKey::Fwmark { mark, .. } => ("tcp", format!("fwmark {mark}"), Vec::new(), Some(*mark)),
        ServiceKey::Address { protocol, address, port } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let shown = endpoint(SocketAddr::new(*address, *port));
            (protocol, shown.clone(), vec![shown], None)
        }
    };
    let mut server = VirtualServer::new(location, name, listen, mark);
    server.has_default_check = protocol == "tcp" && mark.is_none();
    server.protocol = protocol;
    let scheduler = IpvsScheduler::named(&service.scheduler);
    server.scheduler =
        scheduler.ok_or_else(|| format!("the scheduler {} is unknown", service.scheduler))?.name();
    server.is_one_packet = service.flags.one_packet;
    // The first two flags are those of sh and mh (ip_vs.h).
    server.scheduler_flags.extend(service.flags.scheduler_1.then_some("fallback"));
    server.scheduler_flags.extend(service.flags.scheduler_2.then_some("port"));
    server.persistence = service.persistence.as_ref().map(|given| Persistence {
        seconds: Some(given.timeout.as_secs()),
        prefix: Some(given.prefix),
        is_sip: given.engine.is_some(),
    });
    let mut methods = saved.destinations.iter().map(method);
    if service.flags.one_packet
        && saved.destinations.iter().any(|one| matches!(one.forwarding, Forwarding::Nat))
    {
        let advice = "with NAT, one_packet loses the responses: remove one of them";
        notes.push(format!("{}: {advice}", server.location));
    }
    if let Some((forward, port)) = methods.next() {
        (server.forward, server.tunnel_port) = (forward, port);
        if methods.any(|other| other != (forward, port)) {
            let message = "all servers of a service have one way of forwarding: save two services";
            return Err(message.to_owned());
        }
    }
    server.servers.extend(saved.destinations.iter().map(real_server));
    Ok(server)
}

fn real_server(destination: &Destination) -> RealServer {
    let address = SocketAddr::new(destination.key.address, destination.key.port);
    RealServer {
        line: None,
        address: endpoint(address),
        weight: Some(destination.weight),
        upper: Some(destination.upper_threshold).filter(|upper| *upper > 0),
        lower: Some(destination.lower_threshold).filter(|lower| *lower > 0),
        inhibits: false,
        hooks: Hooks::new(),
        check: None,
    }
}

/// Returns an address without the port 0, which means every port.
fn endpoint(address: SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

fn method(destination: &Destination) -> (&'static str, Option<u16>) {
    match destination.forwarding {
        Forwarding::Nat => ("nat", None),
        Forwarding::Direct | Forwarding::Local | Forwarding::Bypass => ("direct", None),
        Forwarding::Tunnel(Tunnel::Ipip) => ("ipip", None),
        Forwarding::Tunnel(Tunnel::Gue { port, .. }) => ("gue", Some(port)),
        Forwarding::Tunnel(Tunnel::Gre { .. }) => ("gre", None),
    }
}
