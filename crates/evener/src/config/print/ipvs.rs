//! The IPVS plane: the table `ipvs`, and the keys of its services.

use super::source::{Table, one_or_list};
use evener_core::Endpoint;
use evener_core::spec::{
    IpvsEngine, IpvsForward, IpvsPersistence, IpvsScheduler, IpvsServiceSpec, IpvsSpec, IpvsSync,
    IpvsTimeouts, IpvsTransport,
};

/// Writes `ipvs { ... }`.
pub(super) fn settings(ipvs: &IpvsSpec) -> Table {
    let IpvsSpec { own_table, sync, timeouts } = ipvs;
    let mut table = Table::of("ipvs");
    table.unless("own_table", own_table, &false);
    if let Some(IpvsSync { role, interface, id }) = sync {
        let mut nested = Table::new();
        nested.set("role", role.name());
        nested.set("interface", interface);
        nested.unless("id", id, &0);
        table.key("sync", nested);
    }
    let IpvsTimeouts { tcp, tcp_fin, udp } = timeouts;
    let mut nested = Table::new();
    nested.some("tcp", tcp.as_ref());
    nested.some("tcp_fin", tcp_fin.as_ref());
    nested.some("udp", udp.as_ref());
    if !nested.is_empty() {
        table.key("timeouts", nested);
    }
    table
}

/// Writes the listen addresses; an address with every port has no port.
pub(super) fn write_addresses(table: &mut Table, name: &str, listen: &[Endpoint]) {
    let by_name = crate::config::ipvs::parse_virtual(name).is_ok_and(|named| *listen == [named]);
    if !by_name && !listen.is_empty() {
        table.key("listen", one_or_list(listen.iter().map(Endpoint::server_text)));
    }
}

/// Writes the keys of a service in the plane.
pub(super) fn write_ipvs(table: &mut Table, ipvs: &IpvsServiceSpec) {
    let IpvsServiceSpec {
        transport,
        fwmark,
        forward,
        scheduler,
        scheduler_flags,
        one_packet,
        persistence,
        address_on,
        drain_timeout,
    } = ipvs;
    table.unless("protocol", &transport.name(), &IpvsTransport::Tcp.name());
    table.some("fwmark", fwmark.as_ref());
    table.unless("forward", &forward.name(), &IpvsForward::Nat.name());
    if let IpvsForward::Gue(port) = *forward
        && port != IpvsForward::GUE_PORT
    {
        let mut tunnel = Table::new();
        tunnel.set("port", &port);
        table.key("tunnel", tunnel);
    }
    table.some("scheduler", scheduler.map(IpvsScheduler::name).as_ref());
    let flags: Vec<&str> = scheduler_flags.names().collect();
    if !flags.is_empty() {
        table.key("scheduler_flags", one_or_list(flags));
    }
    table.unless("one_packet", one_packet, &false);
    if let Some(persistence) = persistence {
        write_persistence(table, persistence);
    }
    table.some("address_on", address_on.as_ref());
    table.unless("drain_timeout", drain_timeout, &IpvsServiceSpec::DRAIN_TIMEOUT);
}

fn write_persistence(table: &mut Table, persistence: &IpvsPersistence) {
    let IpvsPersistence { timeout, prefix_v4, prefix_v6, engine } = persistence;
    let defaults = IpvsPersistence::default();
    let mut nested = Table::new();
    nested.unless("v4", prefix_v4, &defaults.prefix_v4);
    nested.unless("v6", prefix_v6, &defaults.prefix_v6);
    nested.some("engine", engine.map(IpvsEngine::name).as_ref());
    if nested.is_empty() {
        return table.set("persistence", timeout);
    }
    let mut whole = Table::new();
    whole.set("timeout", timeout);
    whole.extend(nested);
    table.key("persistence", whole);
}
