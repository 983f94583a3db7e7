//! Derives the wanted contents of the maps from the tables of services.

use super::{PoolKey, Wanted, WantedDefence, WantedPool, WantedServer, WantedService};
use crate::contract::{
    CHOOSE_BY_CLIENT, CHOOSE_BY_TURN, FORWARD_DIRECT, FORWARD_GUE, FORWARD_IPIP, FORWARD_NAT, NEXT_HOP_ROUTE,
    NEXT_HOP_SENDER, SERVICE_BY_ADDRESS, SERVICE_IDLE, SERVICE_ONE_SLOT, SERVICE_QUIC, SERVICE_REPORTED,
    Service, TAKES_KNOWN, TAKES_NEW, TAKES_NONE,
};
use crate::defence::ServiceDefence;
use crate::endpoints::{Family, words_of};
use crate::slots::Identity;
use evener_core::ServerId;
use evener_core::address::{Endpoint, Target};
use evener_core::snapshot::Takes;
use evener_core::spec::{Failover, Forward, NextHop, Protocol, StickyBy, XdpServiceSpec};
use evener_core::table::{ChoiceTable, ChooseBy, PoolTable, Row, ServiceTable};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl WantedDefence {
    /// Returns the defence as it is written.
    pub(crate) fn written(&self) -> ServiceDefence<'_> {
        let Self { clients, rate, syn_cookies } = self;
        ServiceDefence { clients: clients.as_deref(), rate: *rate, syn_cookies: *syn_cookies }
    }
}

impl WantedService {
    /// Returns the identity of a virtual address of the service.
    pub(crate) fn vip_identity(&self, address: IpAddr) -> Identity {
        Identity::of(&["vip", &self.name, protocol_name(self.protocol), &address.to_string()])
    }

    /// Returns true if responses pass the program.
    pub(crate) fn is_nat(&self) -> bool {
        self.settings.forward == FORWARD_NAT
    }
}

impl Wanted {
    /// Derives the contents from the tables of the services of the plane. If `is_reported` is true, each decision is an
    /// event.
    pub(crate) fn derive<'a>(tables: impl IntoIterator<Item = &'a ServiceTable>, is_reported: bool) -> Self {
        let mut wanted = Self::default();
        for table in tables {
            for family in [Family::V4, Family::V6] {
                wanted.add(table, family);
            }
        }
        if is_reported {
            wanted.services.iter_mut().for_each(|service| service.settings.flags |= SERVICE_REPORTED);
        }
        wanted
    }

    /// Sets the addresses of this machine.
    pub(crate) fn set_local_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.local = addresses;
    }

    /// Returns the addresses of servers whose next hops are needed.
    pub(crate) fn routed(&self) -> BTreeSet<IpAddr> {
        let servers = self.pools.values().flat_map(|pool| &pool.servers);
        servers.filter(|server| server.is_routed).map(|server| server.address).collect()
    }

    /// Sets the source addresses of tunnels that the configuration leaves to the system; `source_to` returns the
    /// address that it chooses for a server.
    pub(crate) fn set_tunnel_sources(&mut self, mut source_to: impl FnMut(IpAddr) -> Option<IpAddr>) {
        for service in &mut self.services {
            if !matches!(service.settings.forward, FORWARD_IPIP | FORWARD_GUE) {
                continue;
            }
            let servers = || self.pools[&service.pool].servers.iter().map(|server| server.address);
            if service.settings.tunnel_source_v4 == 0
                && let Some(source) = servers().find(IpAddr::is_ipv4).and_then(&mut source_to)
            {
                service.settings.tunnel_source_v4 = words_of(source)[0];
            }
            if service.settings.tunnel_source_v6 == [0; 4]
                && let Some(source) = servers().find(IpAddr::is_ipv6).and_then(&mut source_to)
            {
                service.settings.tunnel_source_v6 = words_of(source);
            }
        }
    }

    fn add(&mut self, table: &ServiceTable, family: Family) {
        let traits = table.traits();
        let Some(xdp) = &traits.xdp else { return };
        let addresses = addresses_of(table, family);
        let Some((name, pool)) = table.pools().find(|(name, _)| traits.default_pool.as_ref() == Some(name))
        else {
            return;
        };
        if addresses.is_empty() {
            return;
        }
        let is_tunnel = xdp.forward.tunnel().is_some();
        let key = (Arc::clone(name), (!is_tunnel).then_some(family));
        let is_routed = xdp.next_hop == NextHop::Route || xdp.forward == Forward::Direct;
        let wanted_pool = self.pools.entry(key.clone()).or_insert_with(|| WantedPool::derive(&key, pool));
        wanted_pool.servers.iter_mut().for_each(|server| server.is_routed |= is_routed);
        let protocol = match traits.protocol {
            Protocol::Udp => libc::IPPROTO_UDP as u8,
            Protocol::Tcp | Protocol::Http | Protocol::Dns => libc::IPPROTO_TCP as u8,
        };
        let defence = WantedDefence {
            clients: traits.acl.clone(),
            rate: xdp.rate,
            syn_cookies: xdp.syn_cookies.filter(|_| traits.protocol == Protocol::Tcp),
        };
        let mut settings = settings_of(xdp, pool, wanted_pool.by_client);
        settings.flags |= defence.written().flags();
        let family_name = if family == Family::V4 { "4" } else { "6" };
        self.services.push(WantedService {
            name: Arc::clone(table.name()),
            identity: Identity::of(&["service", table.name(), protocol_name(protocol), family_name]),
            protocol,
            settings,
            defence,
            pool: key,
            addresses,
        });
    }
}

fn protocol_name(protocol: u8) -> &'static str {
    if i32::from(protocol) == libc::IPPROTO_UDP { "udp" } else { "tcp" }
}

fn addresses_of(table: &ServiceTable, family: Family) -> BTreeMap<IpAddr, Vec<u16>> {
    let mut addresses: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
    for endpoint in table.listen() {
        if let Endpoint::Ip(address) = endpoint
            && address.is_ipv4() == (family == Family::V4)
        {
            addresses.entry(address.ip()).or_default().insert(address.port());
        }
    }
    addresses.into_iter().map(|(address, ports)| (address, ports.into_iter().collect())).collect()
}

fn settings_of(xdp: &XdpServiceSpec, pool: &PoolTable, by_client: bool) -> Service {
    let mut flags = 0;
    let idle = xdp.idle_timeout.map_or(0, |idle| u32::try_from(idle.as_secs()).unwrap_or(u32::MAX).max(1));
    if idle > 0 {
        flags |= SERVICE_IDLE;
    }
    if pool.traits().sticky.as_ref().is_some_and(|sticky| sticky.by == StickyBy::ClientIp) {
        flags |= SERVICE_BY_ADDRESS;
    }
    // With turns the policy chooses among the usable servers, as in the proxy.
    if by_client && pool.traits().failover == Failover::Never {
        flags |= SERVICE_ONE_SLOT;
    }
    if xdp.quic_id_length.is_some() {
        flags |= SERVICE_QUIC;
    }
    let (source, port) = xdp.forward.tunnel().unwrap_or_default();
    Service {
        id: 0,
        flags,
        pool: 0,
        idle_seconds: idle,
        forward: match xdp.forward {
            Forward::Nat => FORWARD_NAT,
            Forward::Direct => FORWARD_DIRECT,
            Forward::Ipip(_) => FORWARD_IPIP,
            Forward::Gue(..) => FORWARD_GUE,
        },
        next_hop: match xdp.next_hop {
            NextHop::Sender => NEXT_HOP_SENDER,
            NextHop::Route => NEXT_HOP_ROUTE,
        },
        choose_by: if by_client { CHOOSE_BY_CLIENT } else { CHOOSE_BY_TURN },
        quic_id_length: xdp.quic_id_length.unwrap_or(0),
        tunnel_port: port.unwrap_or(0).to_be(),
        tunnel_source_v4: source.v4.map_or(0, |address| words_of(address.into())[0]),
        tunnel_source_v6: source.v6.map_or([0; 4], |address| words_of(address.into())),
        ..Service::default()
    }
}

impl WantedPool {
    fn derive(key: &PoolKey, pool: &PoolTable) -> Self {
        let (name, family) = key;
        let of_family = |row: &Row| {
            let address = address_of(&row.target);
            address.is_some_and(|at| family.is_none_or(|family| at.is_ipv4() == (family == Family::V4)))
        };
        let pool = pool.filtered(of_family);
        let choices = ChoiceTable::derive(&pool);
        let servers: Vec<WantedServer> =
            pool.rows().filter_map(|(id, row)| WantedServer::derive(name, id, row)).collect();
        let positions: BTreeMap<ServerId, usize> =
            servers.iter().enumerate().map(|(at, server)| (server.id, at)).collect();
        let slots = choices.slots().iter().filter_map(|id| positions.get(id).copied()).collect();
        let family = match family {
            None => "all",
            Some(Family::V4) => "4",
            Some(Family::V6) => "6",
        };
        Self {
            identity: Identity::of(&["pool", name, family]),
            servers,
            slots,
            by_client: choices.by() == ChooseBy::Client,
        }
    }
}

impl WantedServer {
    fn derive(pool: &str, id: ServerId, row: &Row) -> Option<Self> {
        let address = address_of(&row.target)?;
        let takes = match row.role.takes {
            Takes::New => TAKES_NEW,
            Takes::Known => TAKES_KNOWN,
            Takes::None => TAKES_NONE,
        };
        let identity = Identity::of(&["server", pool, &row.name, &address.to_string()]);
        let (address, port) = (address.ip(), address.port());
        Some(Self { id, identity, address, port, takes, quic_id: row.quic_id, is_routed: false })
    }
}

fn address_of(target: &Target) -> Option<SocketAddr> {
    match target {
        Target::Ip(address) => Some(*address),
        Target::Unix(_) => None,
    }
}
