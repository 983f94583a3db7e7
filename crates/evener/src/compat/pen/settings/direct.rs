//! Direct server return (`dsr_if`): the service and its pool in the XDP plane, and the tarpit.

use super::PenSettings;
use evener_core::acl::Acl;
use evener_core::address::Endpoint;
use evener_core::limits::Limits;
use evener_core::spec::{
    Denied, Forward, NextHop, Plane, Policy, PoolSpec, ServerSpec, ServiceOptions, ServiceSpec, Spec,
    XdpServiceSpec, XdpSpec,
};
use std::sync::Arc;

/// Checks the name of an interface.
pub(super) fn interface(word: &str) -> Result<&str, String> {
    let is_name = !word.is_empty()
        && word.len() <= XdpServiceSpec::INTERFACE_BYTES_MAX
        && !word.contains(|one: char| one == '/' || one == ':' || one.is_whitespace());
    if is_name { Ok(word) } else { Err(format!("dsr_if: `{word}` is not the name of an interface")) }
}

impl PenSettings {
    /// Checks that a running instance keeps its interface, so that its clients keep their servers.
    pub(in crate::compat::pen) fn check_interface(&self, running: &Self) -> Result<(), String> {
        if self.dsr_if == running.dsr_if {
            return Ok(());
        }
        Err("dsr_if: a running instance keeps its interface: write dsr_if on the command line (-O) or in the file (-F), \
             and start again"
            .into())
    }

    /// Moves the service into the XDP plane if there is an interface for it. Packets go to the servers unchanged, and the
    /// servers respond to the clients directly.
    pub(super) fn move_into_plane(&self, spec: Spec, lists: &[Option<Arc<Acl>>]) -> Result<Spec, String> {
        let Some(interface) = &self.dsr_if else { return Ok(spec) };
        let is_one =
            |endpoint: &Endpoint| matches!(endpoint, Endpoint::Ip(address) if !address.ip().is_unspecified());
        let Spec { pools, services, .. } = spec;
        if !services.iter().flat_map(|service| &service.listen).all(is_one) {
            return Err("dsr_if: write the virtual address: `pen [options] ADDRESS:PORT SERVER...`".into());
        }
        let refused = [
            ("-E", self.tls.is_enabled()),
            ("http", self.http),
            ("dummy", self.dummy),
            ("abuse", self.abuse.is_some()),
            ("transparent", self.transparent),
            ("source", self.source.is_some()),
        ];
        if let Some((name, _)) = refused.iter().find(|(_, is_set)| *is_set) {
            return Err(format!("{name} cannot be combined with dsr_if, which forwards packets as they are"));
        }
        let xdp = XdpServiceSpec {
            interfaces: vec![interface.as_str().into()],
            forward: Forward::Direct,
            next_hop: NextHop::Route,
            ..XdpServiceSpec::default()
        };
        let service = |service: ServiceSpec| ServiceSpec {
            plane: Plane::Xdp,
            xdp: Some(Arc::new(xdp.clone())),
            denied: Denied::Drop,
            clients: None,
            request_log: None,
            options: ServiceOptions::of(service.protocol),
            ..service
        };
        // pen counts no connections with direct server return, and hashes the addresses of clients, with their ports if
        // there is no tracking.
        let server = |server: ServerSpec| ServerSpec { acl: None, limits: Limits::default(), ..server };
        let pool = |pool: PoolSpec| PoolSpec {
            policy: if self.tracks_clients() || self.hash { Policy::Hash } else { Policy::RoundRobin },
            sticky: None,
            servers: pool.servers.into_iter().map(server).collect(),
            ..pool
        };
        Ok(Spec {
            pools: pools.into_iter().map(pool).collect(),
            services: services.into_iter().map(service).collect(),
            xdp: XdpSpec {
                // Each interface can have an instance of its own. Names here have no dot.
                pin: format!("/sys/fs/bpf/evener-pen-{}", interface.replace('.', ":")).into(),
                tarpit: self.tarpit_acl.and_then(|number| lists[number].clone()),
                ..XdpSpec::default()
            },
            ..Spec::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(lines: &[&str]) -> Result<Spec, String> {
        let mut settings = PenSettings::default();
        for line in lines {
            settings.execute(line)?;
        }
        settings.compile().map(|compiled| compiled.config.spec).map_err(|problems| problems[0].to_string())
    }

    const BASE: [&str; 4] = [
        "listen 192.168.2.10:80",
        "server 0 address 192.168.2.2 port 80 max 5",
        "server 1 address 192.168.2.3 port 80",
        "dsr_if eth1.5",
    ];

    #[test]
    fn an_interface_puts_the_service_into_the_xdp_plane() {
        let spec = compile(&[&BASE[..], &["acl 1 permit 192.168.2.11", "tarpit_acl 1"]].concat()).unwrap();
        let service = &spec.services[0];
        let xdp = service.xdp.as_ref().unwrap();
        assert_eq!((service.plane, xdp.forward, xdp.next_hop), (Plane::Xdp, Forward::Direct, NextHop::Route));
        assert_eq!(*xdp.interfaces[0], *"eth1.5");
        assert_eq!(spec.xdp.pin.to_str(), Some("/sys/fs/bpf/evener-pen-eth1:5"));
        assert_eq!(spec.pools[0].servers.len(), 2);
        assert!(spec.pools[0].servers.iter().all(|server| server.limits == Limits::default()));
        let tarpit = spec.xdp.tarpit.unwrap();
        let is_dark =
            |address: &str| tarpit.access(address.parse().unwrap()) == evener_core::acl::Access::Permit;
        assert!(is_dark("192.168.2.11") && !is_dark("192.168.2.12"));
    }

    #[test]
    fn clients_without_tracking_are_spread_by_connection() {
        let policy = |line: &str| compile(&[&BASE[..], &[line]].concat()).unwrap().pools[0].policy;
        assert_eq!(policy("no roundrobin"), Policy::Hash);
        assert_eq!(policy("roundrobin"), Policy::RoundRobin);
    }

    #[test]
    fn settings_that_need_connections_are_refused() {
        for (line, part) in [
            ("http", "http cannot be combined with dsr_if"),
            ("abuse 192.168.2.9:80", "abuse cannot be combined"),
            ("source 192.168.2.1", "source cannot be combined"),
            ("listen 80", "write the virtual address"),
            ("dsr_if a/b", "is not the name of an interface"),
            ("dsr_if", "an interface is missing"),
            ("tarpit_acl 10", "not an access list"),
        ] {
            let error = compile(&[&BASE[..], &[line]].concat()).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn without_an_interface_the_tarpit_has_no_effect() {
        let spec = compile(&[&BASE[..3], &["acl 1 permit 192.168.2.11", "tarpit_acl 1"]].concat()).unwrap();
        assert_eq!((spec.services[0].plane, spec.xdp), (Plane::Proxy, XdpSpec::default()));
    }
}
