//! The XDP plane: the table `xdp`, and the keys of its services.

use super::Lists;
use super::access::write_prefixes;
use super::source::{Table, one_or_list};
use evener_core::Endpoint;
use evener_core::spec::{
    Forward, NextHop, SourceRate, TunnelSource, XdpEventLevel, XdpMode, XdpServiceSpec, XdpSpec,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Writes `xdp { ... }`.
pub(super) fn settings(xdp: &XdpSpec, lists: Lists<'_>) -> Table {
    let XdpSpec { flows, mode, pin, events, events_per_second, tarpit, tarpit_interfaces } = xdp;
    let mut table = Table::of("xdp");
    table.unless("flows", flows, &XdpSpec::FLOWS);
    table.unless("mode", &mode.name(), &XdpMode::Auto.name());
    table.unless("pin", pin, &XdpSpec::PIN.into());
    table.unless("events", &events.name(), &XdpEventLevel::Error.name());
    table.unless("events_per_second", events_per_second, &XdpSpec::EVENTS_PER_SECOND);
    write_prefixes(&mut table, "tarpit", tarpit.as_ref(), lists);
    if !tarpit_interfaces.is_empty() {
        table.key("tarpit_interfaces", one_or_list(tarpit_interfaces));
    }
    table
}

/// Writes the keys of a service in the plane.
pub(super) fn write_xdp(table: &mut Table, xdp: &XdpServiceSpec) {
    let XdpServiceSpec { interfaces, forward, next_hop, idle_timeout, rate, syn_cookies, quic_id_length } =
        xdp;
    let key = if interfaces.len() == 1 { "interface" } else { "interfaces" };
    table.key(key, one_or_list(interfaces));
    table.unless("forward", &forward.name(), &Forward::Nat.name());
    table.unless("next_hop", &next_hop.name(), &NextHop::Route.name());
    if let Some((TunnelSource { v4, v6 }, port)) = forward.tunnel() {
        let mut tunnel = Table::new();
        let sources: Vec<String> = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .map(|source| source.to_string())
            .collect();
        if !sources.is_empty() {
            tunnel.key("source", one_or_list(sources));
        }
        tunnel.unless("port", &port.unwrap_or(Forward::GUE_PORT), &Forward::GUE_PORT);
        if !tunnel.is_empty() {
            table.key("tunnel", tunnel);
        }
    }
    table.some("idle_timeout", idle_timeout.as_ref());
    if let Some(rate) = rate {
        write_rate(table, *rate);
    }
    table.some("syn_cookies", syn_cookies.as_ref());
    table.some("quic_id_length", quic_id_length.as_ref());
}

fn write_rate(table: &mut Table, rate: SourceRate) {
    let SourceRate { packets_per_second, burst, prefix_v4, prefix_v6 } = rate;
    let packets = format!("{packets_per_second}/s");
    let mut nested = Table::new();
    nested.unless("burst", &burst, &packets_per_second);
    nested.unless("v4", &prefix_v4, &SourceRate::PREFIX_V4);
    nested.unless("v6", &prefix_v6, &SourceRate::PREFIX_V6);
    if nested.is_empty() {
        return table.set("source_rate", &packets);
    }
    let mut whole = Table::new();
    whole.set("rate", &packets);
    whole.extend(nested);
    table.key("source_rate", whole);
}

/// Returns the addresses and the ports of a service with several ports, if each address has each port, in this order.
pub(super) fn with_ports(listen: &[Endpoint]) -> Option<(Vec<String>, Vec<u16>)> {
    let address = |endpoint: &Endpoint| match endpoint {
        Endpoint::Ip(address) => Some(*address),
        Endpoint::Host { .. } | Endpoint::Unix(_) => None,
    };
    let listen: Vec<SocketAddr> = listen.iter().map(address).collect::<Option<_>>()?;
    let first = listen.first()?.ip();
    let ports: Vec<u16> = listen.iter().take_while(|one| one.ip() == first).map(SocketAddr::port).collect();
    let addresses: Vec<IpAddr> = listen.chunks(ports.len()).map(|chunk| chunk[0].ip()).collect();
    let expected = addresses.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    let is_unique = addresses.iter().collect::<BTreeSet<_>>().len() == addresses.len();
    let fits = ports.len() > 1 && is_unique && expected.eq(listen.iter().copied());
    fits.then(|| (addresses.iter().map(IpAddr::to_string).collect(), ports))
}
