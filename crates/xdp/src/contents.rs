//! The contents of the maps, and the writer that brings them to the wanted contents: with the fewest writes, in an
//! order that is safe for packets in between. Nothing is written if there is no room for everything.
//!
//! The order: identities, servers, tables of choices, services, virtual addresses and return entries (values), then
//! endpoints (keys); servers that take fewer clients; removals last. A server that is removed serves its responses in
//! flight for a while ([`LEAVE`]).

mod plan;
#[cfg(test)]
mod tests;

use crate::contract::{
    POOLS_MAX, RETURNS_MAX, Returns, SERVERS_MAX, SERVICES_MAX, SHARED_MAX, Server, Service, SlotAndId,
    VIPS_MAX, Vip,
};
use crate::endpoints::{EndpointKey, EndpointValue, Endpoints, Position};
use crate::slots::{Identity, Numbers, Slots};
use crate::wanted::{Wanted, WantedDefence};
use evener_core::{ServerId, Time};
use plan::Plan;
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
    NoRoom(SocketAddr),
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
    pub(crate) ifindex: u32,
    pub(crate) mtu: u32,
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
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
    pub(crate) next_id: u32,
    pub(crate) identities: Vec<(Kind, u32, Identity)>,
    pub(crate) services: HashMap<u32, Service>,
    pub(crate) vips: HashMap<u32, Vip>,
    pub(crate) servers: HashMap<u32, Server>,
    pub(crate) tables: HashMap<u32, Arc<[u32]>>,
    pub(crate) tables_before: BTreeSet<u32>,
    pub(crate) quic: BTreeMap<QuicName, SlotAndId>,
    pub(crate) endpoints: Endpoints,
    pub(crate) chains: HashMap<EndpointKey, Vec<(u32, Returns)>>,
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
                let hopped = plan::with_hop(*server, hops.get(&address).copied().unwrap_or_default());
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
        let hop = |server: &Server| Hop {
            ifindex: server.ifindex,
            mtu: server.mtu,
            destination: server.destination_mac,
            source: server.source_mac,
        };
        known.map(|server| (crate::endpoints::ip_of(server.family, server.address), hop(server))).collect()
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

    /// Returns the names of the services of each pool.
    pub(crate) fn services_of_pools(&self) -> BTreeMap<&Arc<str>, BTreeSet<&Arc<str>>> {
        let mut services: BTreeMap<&Arc<str>, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for service in &self.wanted.services {
            services.entry(&service.pool.0).or_default().insert(&service.name);
        }
        services
    }

    fn write(&mut self, plan: &Plan, now: Time, maps: &mut impl MapWriter) -> Result<(), ContentsError> {
        maps.write(&Write::NextId(self.allocations.next_id))?;
        for (kind, slot, identity) in &plan.new {
            maps.write(&Write::Identity(*kind, *slot, Some(*identity)))?;
        }
        // Servers that begin to take clients come before the tables, servers that stop after them.
        let mut later = Vec::new();
        for (&slot, server) in &plan.servers {
            match self.servers.get(&slot) {
                Some(old) if old.takes > server.takes => {
                    self.write_server(slot, Server { takes: old.takes, ..*server }, maps)?;
                    later.push((slot, *server));
                }
                _ => self.write_server(slot, *server, maps)?,
            }
        }
        for (&pool, (slots, by_client)) in &plan.tables {
            self.write_table(pool, slots, *by_client, now, maps)?;
        }
        for (&slot, defence) in &plan.defences {
            // A process that takes over does not know what the earlier process wrote.
            if self.defences.get(&slot) != Some(defence) {
                maps.write(&Write::Defence(slot, defence.clone()))?;
                self.defences.insert(slot, defence.clone());
            }
        }
        for (&slot, service) in &plan.services {
            if self.services.get(&slot) != Some(service) {
                maps.write(&Write::Service(slot, *service))?;
                self.services.insert(slot, *service);
            }
        }
        for (&slot, vip) in &plan.vips {
            if self.vips.get(&slot) != Some(vip) {
                maps.write(&Write::Vip(slot, *vip))?;
                self.vips.insert(slot, *vip);
            }
        }
        for (&key, &server) in &plan.quic {
            if self.quic.get(&key) != Some(&server) {
                maps.write(&Write::Quic(key, Some(server)))?;
                self.quic.insert(key, server);
            }
        }
        for (key, chain) in &plan.chains {
            self.write_chain(key, chain, now, maps)?;
        }
        for (key, value) in &plan.vip_endpoints {
            self.write_endpoint(key, *value, maps)?;
        }
        for (slot, server) in later {
            self.write_server(slot, server, maps)?;
        }
        self.remove(plan, now, maps)
    }

    fn write_server(
        &mut self,
        slot: u32,
        server: Server,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        if self.servers.get(&slot) != Some(&server) {
            let old_ifindex = self.servers.get(&slot).map_or(0, |old| old.ifindex);
            if old_ifindex == 0 && server.ifindex != 0 {
                // The interface says that the MAC addresses are known, so it is written after them.
                maps.write(&Write::Server(slot, Server { ifindex: 0, ..server }))?;
            }
            maps.write(&Write::Server(slot, server))?;
            self.servers.insert(slot, server);
        }
        Ok(())
    }

    fn write_table(
        &mut self,
        pool: u32,
        slots: &Arc<[u32]>,
        by_client: bool,
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        let old = self.tables.get(&pool);
        if old == Some(slots) {
            return Ok(());
        }
        if old.is_some() && by_client {
            maps.write(&Write::KeepTable(pool))?;
            self.tables_before.insert(pool, now + SECOND_CHANCE);
        }
        maps.write(&Write::Table(pool, Arc::clone(slots)))?;
        self.tables.insert(pool, Arc::clone(slots));
        Ok(())
    }

    /// Replaces the chain of a server's endpoint as a whole: the new chain is complete before the endpoint leads to it.
    fn write_chain(
        &mut self,
        key: &EndpointKey,
        chain: &[(u32, Returns)],
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        if self.chains.get(key).is_some_and(|old| old == chain) {
            return Ok(());
        }
        for (position, entry) in chain.iter().rev() {
            maps.write(&Write::Returns(*position, *entry))?;
        }
        let Some((first, _)) = chain.first() else { return Ok(()) };
        self.write_endpoint(key, [*first, 0], maps)?;
        let old = self.chains.insert(*key, chain.to_vec()).unwrap_or_default();
        old.iter().for_each(|(position, _)| self.allocations.returns.release(*position, now));
        Ok(())
    }

    fn write_endpoint(
        &mut self,
        key: &EndpointKey,
        value: EndpointValue,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
        let endpoints = &mut self.allocations.endpoints;
        let Some(position) = endpoints.position(key) else { return Ok(()) };
        match endpoints.value(key) {
            Some(old) if old == value => return Ok(()),
            Some([0, 0]) => maps.write(&Write::NewEndpoint(*key, position, value))?,
            _ => maps.write(&Write::Endpoint(*key, position, value))?,
        }
        endpoints.set(key, value);
        Ok(())
    }

    /// Removes everything that is not in the plan: keys first, then the values that they led to.
    fn remove(&mut self, plan: &Plan, now: Time, maps: &mut impl MapWriter) -> Result<(), ContentsError> {
        let is_wanted =
            |key: &EndpointKey| plan.vip_endpoints.contains_key(key) || plan.chains.contains_key(key);
        let endpoints = self.allocations.endpoints.iter().map(|(key, _)| *key);
        let mut gone: Vec<EndpointKey> = endpoints.filter(|key| !is_wanted(key)).collect();
        gone.sort();
        for key in gone {
            if let Some(position) = self.allocations.endpoints.position(&key) {
                maps.write(&Write::NoEndpoint(key, position))?;
            }
            self.allocations.endpoints.remove(&key);
            let chain = self.chains.remove(&key).unwrap_or_default();
            chain.iter().for_each(|(position, _)| self.allocations.returns.release(*position, now));
        }
        let gone: Vec<QuicName> =
            self.quic.keys().filter(|key| !plan.quic.contains_key(key)).copied().collect();
        for key in gone {
            maps.write(&Write::Quic(key, None))?;
            self.quic.remove(&key);
        }
        for (kind, slot, identity) in self.unwanted(plan) {
            let clear = match kind {
                Kind::Service => {
                    self.services.remove(&slot).map(|_| Write::Service(slot, Service::default()))
                }
                Kind::Vip => self.vips.remove(&slot).map(|_| Write::Vip(slot, Vip::default())),
                Kind::Server => {
                    self.leaving.remove(&identity);
                    self.servers.remove(&slot).map(|_| Write::Server(slot, Server::default()))
                }
                Kind::Pool => self.tables.remove(&slot).map(|_| Write::NoTable(slot)),
            };
            clear.iter().try_for_each(|write| maps.write(write))?;
            if kind == Kind::Pool && self.tables_before.remove(&slot).is_some() {
                maps.write(&Write::NoTableBefore(slot))?;
            }
            if kind == Kind::Service {
                maps.write(&Write::Defence(slot, WantedDefence::default()))?;
                self.defences.remove(&slot);
            }
            maps.write(&Write::Identity(kind, slot, None))?;
            if let Some(slots) = self.allocations.slots.get_mut(&kind) {
                slots.release(identity, now);
            }
        }
        Ok(())
    }

    /// Returns the things that are not in a plan: virtual addresses and services before pools and servers.
    fn unwanted(&self, plan: &Plan) -> Vec<(Kind, u32, Identity)> {
        let order = [Kind::Vip, Kind::Service, Kind::Pool, Kind::Server];
        let of_kind = |kind| {
            let slots = self.allocations.slots[&kind].iter();
            let mut gone: Vec<_> = slots
                .filter(|(_, slot)| !plan.has(kind, *slot))
                .map(|(identity, slot)| (kind, slot, identity))
                .collect();
            gone.sort();
            gone
        };
        order.into_iter().flat_map(of_kind).collect()
    }
}
