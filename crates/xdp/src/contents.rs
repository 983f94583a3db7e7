//! The contents of the maps: the wanted contents, and the writer that changes the maps to them with the fewest writes,
//! in an order that is safe for packets in between. Nothing is written if there is no room for everything.
//!
//! The order: identities, servers, tables of choices, services, virtual addresses and return entries (values), then
//! endpoints (keys); servers that take fewer clients; removals last. A server that is removed serves its responses in
//! flight for a while ([`LEAVE`]).

pub(crate) mod kernel;
mod plan;
#[cfg(test)]
mod tests;
mod wanted;
mod writer;

use crate::associations::{Index, IndexedServer, IndexedVip};
use crate::contract::{
    POOLS_MAX, RETURNS_MAX, Returns, SERVERS_MAX, SERVICE_IDLE, SERVICES_MAX, SHARED_MAX, Server, Service,
    SlotAndId, VIPS_MAX, Vip,
};
use crate::endpoints::{EndpointKey, EndpointValue, Endpoints, Family, Position};
use crate::slots::{Identity, Numbers, Slots};
use evener_core::acl::Acl;
use evener_core::spec::{QuicId, SourceRate};
use evener_core::{ServerId, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Time for which a removed server still gets its responses through.
pub(crate) const LEAVE: Duration = Duration::from_secs(10);
/// Time for which the table of choices before the last change serves packets in mid-flow.
pub(crate) const SECOND_CHANCE: Duration = Duration::from_secs(300);

/// The arrays whose slots have identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Server,
    Service,
    Vip,
    Pool,
}

/// One write into the maps. Each is atomic for the program, or concerns things that no key leads to yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// The first id that was never given to a thing.
    NextId(u32),
    Identity(Kind, u32, Option<Identity>),
    Service(u32, Service),
    Vip(u32, Vip),
    Server(u32, Server),
    Returns(u32, Returns),
    /// Replaces the defence of a service.
    Defence(u32, WantedDefence),
    /// Sets the server of an identity in connection IDs of QUIC.
    Quic(QuicName, Option<SlotAndId>),
    /// Replaces a table of choices as a whole.
    Table(u32, Arc<[u32]>),
    /// Moves the present table to the previous tables; the next write replaces the present table.
    KeepTable(u32),
    NoTable(u32),
    NoTableBefore(u32),
    /// Writes an entry that is free, its key last.
    NewEndpoint(EndpointKey, Position, EndpointValue),
    /// Changes the value of an entry.
    Endpoint(EndpointKey, Position, EndpointValue),
    NoEndpoint(EndpointKey, Position),
}

/// The maps of the kernel, or a model of them.
pub(crate) trait MapWriter {
    /// Does a write.
    fn write(&mut self, write: &Write) -> io::Result<()>;
}

/// The wanted contents cannot be had. Nothing was changed, except if the kernel refused a write.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentsError {
    /// An array is full.
    #[error("too many {things}: the XDP plane has room for {max}; slots rest for some minutes before reuse")]
    Full { things: &'static str, max: u32 },
    /// Both buckets of an endpoint are full.
    #[error("the table of endpoints has no room for {0}: fewer servers or ports are needed")]
    NoEntry(SocketAddr),
    /// Too many virtual addresses lead to one server.
    #[error(
        "server {0} is behind more than {max} virtual addresses; XDP services with NAT can share a server \
         address and port with {max} at most", max = SHARED_MAX
    )]
    Shared(SocketAddr),
    /// Two services have the same virtual address and port.
    #[error("{0} is the address of two XDP services")]
    Twice(SocketAddr),
    /// The kernel refused a write.
    #[error("a map of the XDP program cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Next hop of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Egress interface; 0 if the neighbour is not known.
    ifindex: u32,
    mtu: u32,
    destination: [u8; 6],
    source: [u8; 6],
}

impl Hop {
    /// Creates a next hop behind an interface, with the MAC addresses of the neighbour and of the interface.
    pub(crate) fn new(ifindex: u32, mtu: u32, destination: [u8; 6], source: [u8; 6]) -> Self {
        Self { ifindex, mtu, destination, source }
    }

    fn of(server: &Server) -> Self {
        Self::new(server.ifindex, server.mtu, server.destination_mac, server.source_mac)
    }

    /// Returns a server with this next hop.
    fn set_in(self, server: Server) -> Server {
        let Self { ifindex, mtu, destination, source } = self;
        Server { ifindex, mtu, destination_mac: destination, source_mac: source, ..server }
    }
}

/// A service's slot, and the length and bytes of a server ID in connection IDs of QUIC.
pub(crate) type QuicName = (u32, u8, [u8; 15]);

/// The next hops of servers by address.
pub(crate) type Hops = HashMap<IpAddr, Hop>;

/// The allocations, which a failed plan leaves as they were.
#[derive(Clone, Debug)]
struct Allocations {
    slots: BTreeMap<Kind, Slots>,
    returns: Numbers,
    endpoints: Endpoints,
    next_id: u32,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Server, Self::Service, Self::Vip, Self::Pool];

    /// Returns the number of slots.
    pub(crate) const fn size(self) -> u32 {
        match self {
            Self::Server => SERVERS_MAX,
            Self::Service => SERVICES_MAX,
            Self::Vip => VIPS_MAX,
            Self::Pool => POOLS_MAX,
        }
    }

    const fn things(self) -> &'static str {
        match self {
            Self::Server => "servers",
            Self::Service => "services",
            Self::Vip => "virtual addresses",
            Self::Pool => "pools",
        }
    }
}

/// Contents that an earlier process left in the maps.
#[derive(Debug, Default)]
pub(crate) struct Found {
    next_id: u32,
    identities: Vec<(Kind, u32, Identity)>,
    services: HashMap<u32, Service>,
    vips: HashMap<u32, Vip>,
    servers: HashMap<u32, Server>,
    tables: HashMap<u32, Arc<[u32]>>,
    tables_before: BTreeSet<u32>,
    quic: BTreeMap<QuicName, SlotAndId>,
    endpoints: Endpoints,
    chains: HashMap<EndpointKey, Vec<(u32, Returns)>>,
}

/// Everything that the maps should have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    services: Vec<WantedService>,
    pools: BTreeMap<PoolKey, WantedPool>,
    /// Addresses of this machine.
    local: BTreeSet<IpAddr>,
}

/// A pool, or its servers of one address family.
pub(crate) type PoolKey = (Arc<str>, Option<Family>);

/// A service, for the virtual addresses of one family.
#[derive(Clone, Debug)]
pub(crate) struct WantedService {
    name: Arc<str>,
    identity: Identity,
    protocol: u8,
    /// The contents of its slot, without the id and the pool.
    settings: Service,
    pool: PoolKey,
    defence: WantedDefence,
    /// The ports of each virtual address, sorted.
    addresses: BTreeMap<IpAddr, Vec<u16>>,
}

/// The defence of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WantedDefence {
    clients: Option<Arc<Acl>>,
    rate: Option<SourceRate>,
    syn_cookies: Option<u32>,
}

/// The servers of a pool and its table of choices.
#[derive(Clone, Debug)]
pub(crate) struct WantedPool {
    identity: Identity,
    servers: Vec<WantedServer>,
    /// Positions in `servers`.
    slots: Vec<usize>,
    /// The hash of a client names its slot, so packets in mid-flow have a second chance in the previous table.
    by_client: bool,
}

/// A server of a pool.
#[derive(Clone, Debug)]
pub(crate) struct WantedServer {
    id: ServerId,
    identity: Identity,
    address: IpAddr,
    /// 0 for the port of the client's packet.
    port: u16,
    takes: u8,
    /// Identity in connection IDs of QUIC.
    quic_id: Option<QuicId>,
    /// The kernel finds its next hop.
    is_routed: bool,
}

/// The contents of the maps after a change. Every slot and entry is allocated.
#[derive(Debug, Default)]
struct Plan {
    /// Things whose identities are not stored yet.
    new: Vec<(Kind, u32, Identity)>,
    servers: BTreeMap<u32, Server>,
    services: BTreeMap<u32, Service>,
    vips: BTreeMap<u32, Vip>,
    defences: BTreeMap<u32, WantedDefence>,
    quic: BTreeMap<QuicName, SlotAndId>,
    /// The slots of servers by slots of pools, and whether the hash of a client names the slot.
    tables: BTreeMap<u32, (Arc<[u32]>, bool)>,
    vip_endpoints: BTreeMap<EndpointKey, EndpointValue>,
    /// The return entries of each server address, with their positions.
    chains: BTreeMap<EndpointKey, Vec<(u32, Returns)>>,
    server_slots: BTreeMap<(Arc<str>, ServerId), u32>,
    /// The return entries of each server address, without positions.
    returns: BTreeMap<EndpointKey, Vec<Returns>>,
}

/// The contents of the maps as they were written.
#[derive(Debug)]
pub(crate) struct Contents {
    allocations: Allocations,
    services: HashMap<u32, Service>,
    vips: HashMap<u32, Vip>,
    servers: HashMap<u32, Server>,
    tables: HashMap<u32, Arc<[u32]>>,
    /// Previous tables with the time at which they are removed.
    tables_before: BTreeMap<u32, Time>,
    /// Defences as they were written by this process.
    defences: HashMap<u32, WantedDefence>,
    quic: BTreeMap<QuicName, SlotAndId>,
    /// The return entries of servers, with their positions, in the order of the chain.
    chains: HashMap<EndpointKey, Vec<(u32, Returns)>>,
    /// Removed servers, with the time at which their slots are freed.
    leaving: HashMap<Identity, Time>,
    wanted: Wanted,
    /// Slots of the servers of the wanted pools.
    server_slots: BTreeMap<(Arc<str>, ServerId), u32>,
}

impl Default for Contents {
    fn default() -> Self {
        Self::taken_over(Found::default(), Time::ZERO)
    }
}

impl Contents {
    /// Continues with the contents that an earlier process left.
    pub(crate) fn taken_over(found: Found, now: Time) -> Self {
        let slots = Kind::ALL.map(|kind| {
            let known = found.identities.iter().filter(|(of, ..)| *of == kind);
            (kind, Slots::new(kind.size(), known.map(|(_, slot, identity)| (*identity, *slot))))
        });
        let in_use = found.chains.values().flatten().map(|(position, _)| *position);
        let highest = found.servers.values().map(|server| server.id);
        let highest = highest.chain(found.services.values().map(|service| service.id)).max().unwrap_or(0);
        let allocations = Allocations {
            slots: slots.into_iter().collect(),
            returns: Numbers::new(RETURNS_MAX, in_use),
            endpoints: found.endpoints,
            next_id: found.next_id.max(highest + 1),
        };
        Self {
            allocations,
            services: found.services,
            vips: found.vips,
            servers: found.servers,
            tables: found.tables,
            tables_before: found.tables_before.into_iter().map(|pool| (pool, now + SECOND_CHANCE)).collect(),
            defences: HashMap::new(),
            quic: found.quic,
            chains: found.chains,
            leaving: HashMap::new(),
            wanted: Wanted::default(),
            server_slots: BTreeMap::new(),
        }
    }

    /// Writes the wanted contents. If there is no room, nothing changes; if the kernel refuses a write, the next call
    /// continues there.
    pub(crate) fn apply(
        &mut self,
        wanted: Wanted,
        hops: &Hops,
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        let plan = self.try_plan(&wanted, hops, now)?;
        self.wanted = wanted;
        self.server_slots = plan.server_slots.clone();
        self.write(&plan, now, maps)
    }

    /// Returns the reason why there is no room for these contents.
    pub(crate) fn check(&mut self, wanted: &Wanted, now: Time) -> Result<(), ContentsError> {
        let (before, leaving) = (self.allocations.clone(), self.leaving.clone());
        let planned = self.try_plan(wanted, &Hops::new(), now);
        (self.allocations, self.leaving) = (before, leaving);
        planned.map(drop)
    }

    fn try_plan(&mut self, wanted: &Wanted, hops: &Hops, now: Time) -> Result<Plan, ContentsError> {
        let (before, leaving) = (self.allocations.clone(), self.leaving.clone());
        let planned = self.plan(wanted, hops, now);
        if planned.is_err() {
            (self.allocations, self.leaving) = (before, leaving);
        }
        planned
    }

    /// Writes next hops that changed.
    pub(crate) fn set_hops(&mut self, hops: &Hops, maps: &mut impl MapWriter) -> Result<(), ContentsError> {
        let changed: Vec<(u32, Server)> = self
            .servers
            .iter()
            .filter_map(|(slot, server)| {
                let address = crate::endpoints::ip_of(server.family, server.address);
                let hopped = hops.get(&address).copied().unwrap_or_default().set_in(*server);
                (hopped != *server).then_some((*slot, hopped))
            })
            .collect();
        changed.into_iter().try_for_each(|(slot, server)| self.write_server(slot, server, maps))
    }

    /// Writes the addresses of this machine if they changed.
    pub(crate) fn set_local(
        &mut self,
        local: BTreeSet<IpAddr>,
        hops: &Hops,
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        if local == self.wanted.local {
            return Ok(());
        }
        self.apply(Wanted { local, ..self.wanted.clone() }, hops, now, maps)
    }

    /// Returns the time at which [`Self::on_time`] is due.
    pub(crate) fn deadline(&self) -> Time {
        let times = self.leaving.values().chain(self.tables_before.values());
        times.min().copied().unwrap_or(Time::NEVER)
    }

    /// Removes servers and previous tables whose time has come.
    pub(crate) fn on_time(
        &mut self,
        hops: &Hops,
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        let expired: Vec<u32> =
            self.tables_before.iter().filter(|(_, until)| **until <= now).map(|(pool, _)| *pool).collect();
        for pool in expired {
            maps.write(&Write::NoTableBefore(pool))?;
            self.tables_before.remove(&pool);
        }
        if self.leaving.values().any(|until| *until <= now) {
            self.apply(self.wanted.clone(), hops, now, maps)?;
        }
        Ok(())
    }

    /// Returns the next hops that were written.
    pub(crate) fn hops(&self) -> Hops {
        let known = self.servers.values().filter(|server| server.ifindex != 0);
        known
            .map(|server| (crate::endpoints::ip_of(server.family, server.address), Hop::of(server)))
            .collect()
    }

    /// Returns the virtual addresses and the addresses of servers.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let vips = self.wanted.services.iter().flat_map(|service| service.addresses.keys().copied());
        let servers = self.wanted.pools.values().flat_map(|pool| &pool.servers);
        vips.chain(servers.map(|server| server.address))
    }

    /// Returns the slots of a service: one for each family that it listens on.
    pub(crate) fn service_slots(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        let slots = &self.allocations.slots[&Kind::Service];
        let services = self.wanted.services.iter();
        services.filter_map(|service| Some((&service.name, slots.get(service.identity)?)))
    }

    /// Returns the slots of servers by pool and identity.
    pub(crate) fn server_slots(&self) -> impl Iterator<Item = (&(Arc<str>, ServerId), u32)> {
        self.server_slots.iter().map(|(key, slot)| (key, *slot))
    }

    /// Returns the virtual addresses and servers by slot, to read associations.
    pub(crate) fn index(&self) -> Index {
        let services = self.service_slots().map(|(name, slot)| (slot, name)).collect::<HashMap<_, _>>();
        let vip = |(slot, vip): (&u32, &Vip)| {
            let service = self.services.get(&vip.service)?;
            let has_idle = service.flags & SERVICE_IDLE != 0;
            let name = Arc::clone(services.get(&vip.service)?);
            let address = crate::endpoints::ip_of(vip.family as u8, vip.address);
            let idle = has_idle.then(|| Duration::from_secs(service.idle_seconds.into()));
            let indexed = IndexedVip::new(vip.service, name, address, idle);
            Some((*slot, indexed))
        };
        let server = |((pool, server), slot): (&(Arc<str>, ServerId), &u32)| {
            let id = self.servers.get(slot)?.id;
            Some((*slot, IndexedServer::new(id, Arc::clone(pool), *server)))
        };
        let vips = self.vips.iter().filter_map(vip).collect();
        Index::new(vips, self.server_slots.iter().filter_map(server).collect())
    }

    /// Returns the names of the services of each pool.
    pub(crate) fn services_of_pools(&self) -> BTreeMap<&Arc<str>, BTreeSet<&Arc<str>>> {
        let mut services: BTreeMap<&Arc<str>, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for service in &self.wanted.services {
            services.entry(&service.pool.0).or_default().insert(&service.name);
        }
        services
    }
}
