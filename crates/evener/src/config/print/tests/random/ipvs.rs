//! Random settings of the IPVS plane, its services and its servers.

use super::{Chance, Kind};
use evener_core::Endpoint;
use evener_core::limits::Limits;
use evener_core::spec::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

impl Chance<'_> {
    pub(super) fn ipvs(&mut self) -> IpvsSpec {
        IpvsSpec {
            own_table: self.one_in(2),
            sync: self.maybe(|chance| IpvsSync {
                role: chance.pick(&IpvsSyncRole::ALL),
                interface: format!("if{}", chance.unique()).into(),
                id: chance.or(0, |chance| chance.within(1..=255) as u8),
            }),
            timeouts: IpvsTimeouts {
                tcp: self.maybe(Self::seconds),
                tcp_fin: self.maybe(Self::seconds),
                udp: self.maybe(Self::seconds),
            },
        }
    }

    fn seconds(&mut self) -> Duration {
        Duration::from_secs(u64::from(self.within(1..=86_400)))
    }

    /// Returns a server as of the XDP plane, with thresholds.
    pub(super) fn ipvs_server(&mut self) -> ServerSpec {
        let limits = self.server(Kind::Datagrams).limits;
        ServerSpec { limits: self.or(Limits::default(), |_| limits), quic_id: None, ..self.xdp_server() }
    }

    pub(super) fn ipvs_policy(&mut self) -> Policy {
        let maglev = Policy::Maglev { table: Policy::MAGLEV_TABLE };
        self.pick(&[Policy::RoundRobin, Policy::Weighted, Policy::LeastConn, Policy::Hash, maglev])
    }

    /// Names a scheduler at random, if the pool has the policy that allows it.
    pub(super) fn schedule(&mut self, service: &mut ServiceSpec, pools: &[PoolSpec]) {
        let pool = pools.iter().find(|pool| service.pool.as_ref() == Some(&pool.name));
        let is_free = pool.is_some_and(|pool| pool.policy == Policy::RoundRobin);
        if let Some(ipvs) = service.ipvs.as_mut().filter(|_| is_free && self.one_in(2)) {
            let name = self.pick(&IpvsScheduler::NAMES);
            Arc::make_mut(ipvs).scheduler = IpvsScheduler::named(name);
        }
    }

    /// Returns a service in the IPVS plane, if there is a pool for it.
    pub(super) fn ipvs_service(&mut self, others: &[ServiceSpec]) -> Option<ServiceSpec> {
        let pool = self.pool_of(&[Kind::Ipvs])?;
        let transport = self.pick(&IpvsTransport::ALL);
        let is_udp = transport == IpvsTransport::Udp;
        let fwmark = self.maybe(|chance| u32::from(chance.unique()));
        let forward = match self.below(6) {
            0 => IpvsForward::Direct,
            1 => IpvsForward::Ipip,
            2 => IpvsForward::Gue(self.or(IpvsForward::GUE_PORT, |c| c.within(1..=65_535) as u16)),
            3 => IpvsForward::Gre,
            _ => IpvsForward::Nat,
        };
        let persistence = self.maybe(|chance| IpvsPersistence {
            timeout: chance.or(IpvsPersistence::TIMEOUT, Self::seconds),
            prefix_v4: chance.or(32, |chance| chance.within(1..=32) as u8),
            prefix_v6: chance.or(128, |chance| chance.within(1..=128) as u8),
            engine: is_udp.then_some(IpvsEngine::Sip).filter(|_| chance.one_in(2)),
        });
        // An address without a port has every port.
        let whole = persistence.is_some() && self.one_in(2);
        let listen = self.some(1..=3, |chance| {
            let number = chance.unique();
            let ip = Ipv4Addr::from(0xc000_0200 + u32::from(number));
            Endpoint::Ip(SocketAddr::new(ip.into(), if whole { 0 } else { number }))
        });
        let can_be_one_packet = is_udp && forward != IpvsForward::Nat && persistence.is_none();
        let ipvs = IpvsServiceSpec {
            transport,
            fwmark,
            forward,
            scheduler: None,
            scheduler_flags: IpvsSchedulerFlags { fallback: self.one_in(4), port: self.one_in(4) },
            one_packet: can_be_one_packet && self.one_in(2),
            persistence,
            address_on: self
                .maybe(|chance| format!("if{}", chance.unique()).into())
                .filter(|_| fwmark.is_none()),
            drain_timeout: self.or(IpvsServiceSpec::DRAIN_TIMEOUT, Self::time),
        };
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        Some(ServiceSpec {
            listen: if fwmark.is_some() { Vec::new() } else { listen },
            plane: Plane::Ipvs,
            ipvs: Some(Arc::new(ipvs)),
            ..ServiceSpec::new(&self.service_name(Some(&pool), others), protocol)
        })
        .map(|service| ServiceSpec { pool: Some(pool), ..service })
    }
}
