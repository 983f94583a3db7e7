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
        pin: pin(&line.interface).into(),
        events: line.level,
        ..XdpSpec::default()
    };
    Spec { pools: vec![pool], services: vec![service], xdp, ..Spec::default() }
}

/// Returns the pin directory. Its name cannot have a dot, which the name of a VLAN's interface often has.
fn pin(interface: &str) -> String {
    format!("/sys/fs/bpf/evener-sbulb-{}", interface.replace('.', ":"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::sbulb::SbulbAction;
    use crate::compat::sbulb::Source;
    use crate::compat::sbulb::command_line::parse;
    use crate::config;

    fn spec_of(words: &str) -> Spec {
        let arguments = words.split_whitespace().map(std::ffi::OsString::from).collect();
        let Ok(SbulbAction::Run(line)) = parse(arguments) else { panic!("a command line: {words}") };
        let Source::Addresses(servers) = line.servers.clone() else { panic!("addresses") };
        spec(&line, &servers)
    }

    /// Returns the specification of a configuration file.
    fn loaded(lua: &str, name: &str) -> Spec {
        let file = std::env::temp_dir().join(format!("evener-sbulb-{name}-{}.lua", std::process::id()));
        std::fs::write(&file, lua).unwrap();
        let config = config::load(&file);
        std::fs::remove_file(&file).unwrap();
        config.unwrap().spec
    }

    /// The configuration in docs/migrate-from-sbulb.md is equivalent to the command line there.
    #[test]
    fn the_configuration_in_the_document_is_equivalent() {
        let document = include_str!("../../../../../docs/migrate-from-sbulb.md");
        let line = document.lines().find_map(|line| line.strip_prefix("    evener sbulb ")).unwrap();
        let lua = document.split("```lua\n").nth(1).unwrap().split("```").next().unwrap();
        assert_eq!(loaded(lua, "document"), spec_of(line));
        assert_eq!(lua, config::print(&spec_of(line), &|_| None), "the document shows what --print prints");
    }

    #[test]
    fn a_printed_configuration_is_the_command_line() {
        for line in [
            "eth0 -vs 10.0.0.9 -rs 10.0.0.1 -p 5683",
            "eth0.100 -vs fd00::9 -rs fd00::1 fd00::2 -p 1 65535 -l TRACE -ma 77",
        ] {
            let spec = spec_of(line);
            let printed = config::print(&spec, &|_| None);
            assert_eq!(loaded(&printed, "printed"), spec, "{printed}");
        }
    }
}
