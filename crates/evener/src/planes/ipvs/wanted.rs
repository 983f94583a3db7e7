//! The table that the kernel should have, from the service tables of core.

use super::Setup;
use super::counting::Counted;
use evener_core::Endpoint;
use evener_core::ServerId;
use evener_core::address::Target;
use evener_core::policy::WEIGHT_UNIT;
use evener_core::snapshot::Takes;
use evener_core::spec::{
    IpvsEngine, IpvsForward, IpvsServiceSpec, IpvsTransport, OnDown, Plane, Policy, ServiceSpec, Spec,
};
use evener_core::table::{PoolTable, Row, ServiceTable};
use evener_ipvs::model::{
    Destination, DestinationKey, Family, Flags, Forwarding, Persistence, Protocol, Service, ServiceKey,
    Tunnel, TunnelFlags,
};
use evener_ipvs::reconcile::WantedService;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Name of a scheduler, and of a persistence engine.
pub(super) type Scheduling = (&'static str, Option<&'static str>);

/// A wanted service with the server behind each destination.
pub(super) struct Derived {
    wanted: WantedService,
    /// The servers in their pools.
    servers: Vec<(DestinationKey, Arc<str>, ServerId)>,
}

impl Derived {
    /// Adds the service and the counters of its servers to a table.
    pub(super) fn enter(self, setup: &mut Setup, counted: impl Fn(Arc<str>, ServerId) -> Counted) {
        let key = self.wanted.service.key;
        for (destination, pool, id) in self.servers {
            setup.counted.insert((key, destination), counted(pool, id));
        }
        setup.wanted.insert(key, self.wanted);
    }

    /// Returns the identity of the service in the kernel.
    pub(super) fn key(&self) -> ServiceKey {
        self.wanted.service.key
    }
}

/// Returns the services of the kernel for a service: one for each listen address, or for each family of servers behind a
/// firewall mark.
pub(super) fn derive(table: &ServiceTable) -> Vec<Derived> {
    let Some(settings) = table.traits().ipvs.as_deref() else { return Vec::new() };
    let Some((pool_name, pool)) = table.pools().next() else { return Vec::new() };
    keys(table, settings, pool)
        .into_iter()
        .map(|key| {
            let service = service(key, settings, pool);
            let mut wanted = WantedService::new(service, settings.drain_timeout);
            let servers = destinations(&mut wanted, settings, pool);
            let servers = servers.into_iter().map(|(key, id)| (key, pool_name.clone(), id)).collect();
            Derived { wanted, servers }
        })
        .collect()
}

fn keys(table: &ServiceTable, settings: &IpvsServiceSpec, pool: &PoolTable) -> BTreeSet<ServiceKey> {
    let Some(mark) = settings.fwmark else {
        let protocol = match settings.transport {
            IpvsTransport::Tcp => Protocol::Tcp,
            IpvsTransport::Udp => Protocol::Udp,
            IpvsTransport::Sctp => Protocol::Sctp,
        };
        let key = |endpoint: &Endpoint| match endpoint {
            Endpoint::Ip(address) => {
                Some(ServiceKey::Address { protocol, address: address.ip(), port: address.port() })
            }
            Endpoint::Host { .. } | Endpoint::Unix(_) => None,
        };
        return table.listen().iter().filter_map(key).collect();
    };
    let families = pool.rows().filter_map(|(_, row)| address_of(row));
    let mut families: BTreeSet<Family> = families.map(|address| Family::of(address.ip())).collect();
    if families.is_empty() {
        families.insert(Family::V4);
    }
    families.into_iter().map(|family| ServiceKey::Fwmark { mark, family }).collect()
}

/// Returns the schedulers and persistence engines of a configuration.
pub(super) fn schedulers(spec: &Spec) -> BTreeSet<Scheduling> {
    let policy = |name: &str| spec.pools.iter().find(|pool| *pool.name == *name).map(|pool| pool.policy);
    let of_plane = spec.services.iter().filter(|service| service.plane == Plane::Ipvs);
    let scheduling = |service: &ServiceSpec| {
        let settings = service.ipvs.as_deref()?;
        let engine = settings.persistence.as_ref().and_then(|persistence| persistence.engine);
        let policy = service.pool.as_deref().and_then(policy)?;
        Some((scheduler(settings, policy), engine.map(IpvsEngine::name)))
    };
    of_plane.filter_map(scheduling).collect()
}

/// Returns the scheduler: the name in the settings, or the equivalent of the pool's policy.
fn scheduler(settings: &IpvsServiceSpec, policy: Policy) -> &'static str {
    let by_policy = match policy {
        Policy::Weighted => "wrr",
        Policy::LeastConn => "wlc",
        Policy::Hash => "sh",
        Policy::Maglev { .. } => "mh",
        // The configuration is refused with the others.
        _ => "rr",
    };
    settings.scheduler.map_or(by_policy, |scheduler| scheduler.name())
}

fn service(key: ServiceKey, settings: &IpvsServiceSpec, pool: &PoolTable) -> Service {
    let persistence = settings.persistence.as_ref().map(|persistence| Persistence {
        timeout: persistence.timeout,
        prefix: match key.family() {
            Family::V4 => persistence.prefix_v4,
            Family::V6 => persistence.prefix_v6,
        },
        engine: persistence.engine.map(|engine: IpvsEngine| engine.name().to_owned()),
    });
    Service {
        key,
        scheduler: scheduler(settings, pool.traits().policy).to_owned(),
        flags: Flags {
            one_packet: settings.one_packet,
            scheduler_1: settings.scheduler_flags.fallback,
            scheduler_2: settings.scheduler_flags.port,
            scheduler_3: false,
        },
        persistence,
    }
}

/// Adds the destinations of a service, and returns the servers behind them.
fn destinations(
    wanted: &mut WantedService,
    settings: &IpvsServiceSpec,
    pool: &PoolTable,
) -> Vec<(DestinationKey, ServerId)> {
    let service = wanted.service.key;
    let port = match service {
        ServiceKey::Address { port, .. } => port,
        ServiceKey::Fwmark { .. } => 0,
    };
    let inhibited = Inhibited::of(pool);
    let mut servers = Vec::new();
    for (id, row) in pool.rows() {
        let Some(address) = address_of(row) else { continue };
        let is_mark = matches!(service, ServiceKey::Fwmark { .. });
        let is_other = Family::of(address.ip()) != service.family();
        if is_other && (is_mark || !settings.forward.is_tunnel()) {
            continue;
        }
        let at = if address.port() == 0 { port } else { address.port() };
        let key = DestinationKey { address: address.ip(), port: at };
        servers.push((key, id));
        match weight(row, &inhibited) {
            Some(weight) => {
                let (lower, upper) = thresholds(row);
                let destination = Destination::new(key, forwarding(settings.forward)).weight(weight);
                let destination = destination.thresholds(lower, upper);
                // A server that is listed under two names is one destination.
                let present = wanted.destinations.entry(key).or_insert(destination);
                present.weight = present.weight.max(weight);
            }
            // Persistent clients would keep coming to a destination with the weight 0.
            None if leaves_immediately(row, settings, pool.traits().on_down) => {
                wanted.without_drain.insert(key);
            }
            None => {}
        }
    }
    servers
}

/// Returns true if a server that is not a destination is deleted without a drain. A sorry server that is not needed
/// would keep its persistent clients.
fn leaves_immediately(row: &Row, settings: &IpvsServiceSpec, on_down: OnDown) -> bool {
    let is_closed = row.role.takes == Takes::None && on_down == OnDown::Close;
    let is_unneeded = row.role.takes == Takes::None || row.is_sorry;
    is_closed || settings.persistence.is_some() && is_unneeded
}

/// Tiers whose servers stay with the weight 0 when they are down.
struct Inhibited {
    /// The highest number of such a tier; `None` if the pool inhibits no servers.
    tier_max: Option<u8>,
}

impl Inhibited {
    /// Returns the tiers up to the active tier, or all tiers if none is active.
    fn of(pool: &PoolTable) -> Self {
        let of_candidates = pool.rows().filter(|(_, row)| row.role.is_candidate && !row.is_sorry);
        let active = of_candidates.map(|(_, row)| row.tier).max().unwrap_or(u8::MAX);
        Self { tier_max: pool.traits().inhibit_on_failure.then_some(active) }
    }

    fn has(&self, row: &Row) -> bool {
        row.is_down && !row.is_sorry && self.tier_max.is_some_and(|tier_max| row.tier <= tier_max)
    }
}

/// Returns the weight of a server; `None` if the server is not a destination. The weight 0 of a configuration stays, so
/// that its connections do. Inhibited servers that are down stay with the weight 0.
fn weight(row: &Row, inhibited: &Inhibited) -> Option<u32> {
    if row.role.is_candidate {
        return Some(row.share.div_ceil(WEIGHT_UNIT).max(1));
    }
    // A sorry server that is not needed does not belong to the table.
    let stays = row.weight == 0 && row.role.takes == Takes::Known || inhibited.has(row);
    stays.then_some(0)
}

/// Returns the lower and the upper threshold.
fn thresholds(row: &Row) -> (u32, u32) {
    match (row.limits.soft, row.limits.hard) {
        (Some(soft), Some(hard)) => (soft, hard),
        (Some(most), None) | (None, Some(most)) => (0, most),
        (None, None) => (0, 0),
    }
}

fn forwarding(forward: IpvsForward) -> Forwarding {
    let flags = TunnelFlags::NoChecksum;
    match forward {
        IpvsForward::Nat => Forwarding::Nat,
        IpvsForward::Direct => Forwarding::Direct,
        IpvsForward::Ipip => Forwarding::Tunnel(Tunnel::Ipip),
        IpvsForward::Gue(port) => Forwarding::Tunnel(Tunnel::Gue { port, flags }),
        IpvsForward::Gre => Forwarding::Tunnel(Tunnel::Gre { flags }),
    }
}

fn address_of(row: &Row) -> Option<SocketAddr> {
    match row.target {
        Target::Ip(address) => Some(address),
        _ => None,
    }
}

/// Returns the addresses of a service that its interface has while a server takes clients.
pub(super) fn addresses(table: &ServiceTable) -> Vec<(IpAddr, Arc<str>)> {
    let interface = table.traits().ipvs.as_ref().and_then(|settings| settings.address_on.clone());
    let Some(interface) = interface else { return Vec::new() };
    let address = |endpoint: &Endpoint| match endpoint {
        Endpoint::Ip(address) => Some((address.ip(), interface.clone())),
        Endpoint::Host { .. } | Endpoint::Unix(_) => None,
    };
    table.listen().iter().filter_map(address).collect()
}
