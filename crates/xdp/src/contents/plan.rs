//! The plan of a change: slots and entries for everything that is wanted, and the contents of each slot.

use super::{Contents, ContentsError, Hops, Kind, LEAVE, Plan, Wanted, WantedServer, WantedService};
use crate::contract::{
    ENDPOINT_LOCAL, ENDPOINT_REAL, ENDPOINT_VIP, Returns, SHARED_MAX, Server, Service, SlotAndId, TAKES_NONE,
    Vip,
};
use crate::endpoints::{EndpointKey, words_of};
use crate::slots::Identity;
use evener_core::Time;
use evener_core::hash::of_name;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl Plan {
    /// Returns true if a slot is in use after the change.
    pub(super) fn has(&self, kind: Kind, slot: u32) -> bool {
        match kind {
            Kind::Server => self.servers.contains_key(&slot),
            Kind::Service => self.services.contains_key(&slot),
            Kind::Vip => self.vips.contains_key(&slot),
            Kind::Pool => self.tables.contains_key(&slot),
        }
    }
}

/// Returns the number of a pool's name, by which the program knows stale associations: of a service that has another
/// pool now, or of a service that had the same slot for its virtual address.
fn group_of(pool: &str) -> u32 {
    of_name(pool, 29) as u32
}

impl Contents {
    /// Plans a change. A failure leaves allocations behind, which the caller undoes.
    pub(super) fn plan(&mut self, wanted: &Wanted, hops: &Hops, now: Time) -> Result<Plan, ContentsError> {
        let mut plan = Plan::default();
        for ((name, _), pool) in &wanted.pools {
            let mut slots = Vec::new();
            for server in &pool.servers {
                let slot = self.plan_server(&mut plan, server, hops, now)?;
                plan.servers.entry(slot).and_modify(|planned| planned.group = group_of(name));
                plan.server_slots.insert((Arc::clone(name), server.id), slot);
                slots.push(slot);
            }
            let table: Arc<[u32]> = pool.slots.iter().map(|&at| slots[at]).collect();
            let slot = self.slot(&mut plan, Kind::Pool, pool.identity, now)?;
            plan.tables.insert(slot, (table, pool.by_client));
        }
        for service in &wanted.services {
            self.plan_service(&mut plan, wanted, service, now)?;
        }
        if !wanted.services.is_empty() {
            for address in &wanted.local {
                let address = SocketAddr::new(*address, 0);
                plan.vip_endpoints.insert(EndpointKey { address, protocol: 0, kind: ENDPOINT_LOCAL }, [1, 0]);
            }
        }
        self.plan_leaving(&mut plan, now);
        self.plan_chains(&mut plan, now)?;
        for key in plan.vip_endpoints.keys().chain(plan.chains.keys()) {
            if self.allocations.endpoints.position(key).is_none() {
                let allocated = self.allocations.endpoints.allocate(*key);
                allocated.map_err(|_| ContentsError::NoEntry(key.address))?;
            }
        }
        Ok(plan)
    }

    fn slot(
        &mut self,
        plan: &mut Plan,
        kind: Kind,
        identity: Identity,
        now: Time,
    ) -> Result<u32, ContentsError> {
        let slots = self.allocations.slots.get_mut(&kind).expect("each kind has slots");
        if let Some(slot) = slots.get(identity) {
            return Ok(slot);
        }
        let full = |_| ContentsError::Full { things: kind.things(), max: kind.size() - 1 };
        let slot = slots.take(identity, now).map_err(full)?;
        plan.new.push((kind, slot, identity));
        Ok(slot)
    }

    fn new_id(&mut self) -> u32 {
        let id = self.allocations.next_id;
        self.allocations.next_id += 1;
        id
    }

    fn plan_server(
        &mut self,
        plan: &mut Plan,
        server: &WantedServer,
        hops: &Hops,
        now: Time,
    ) -> Result<u32, ContentsError> {
        let slot = self.slot(plan, Kind::Server, server.identity, now)?;
        self.leaving.remove(&server.identity);
        let known = self.servers.get(&slot).or_else(|| plan.servers.get(&slot)).map(|known| known.id);
        let id = known.unwrap_or_else(|| self.new_id());
        let planned = Server {
            id,
            takes: server.takes,
            family: if server.address.is_ipv4() { 4 } else { 6 },
            port: server.port.to_be(),
            address: words_of(server.address),
            ..Server::default()
        };
        let hop = hops.get(&server.address).copied().unwrap_or_default();
        plan.servers.insert(slot, hop.set_in(planned));
        Ok(slot)
    }

    fn plan_service(
        &mut self,
        plan: &mut Plan,
        wanted: &Wanted,
        service: &WantedService,
        now: Time,
    ) -> Result<(), ContentsError> {
        let slot = self.slot(plan, Kind::Service, service.identity, now)?;
        let pool = &wanted.pools[&service.pool];
        let pool_slot = self.slot(plan, Kind::Pool, pool.identity, now)?;
        let id = match self.services.get(&slot) {
            Some(known) => known.id,
            None => self.new_id(),
        };
        plan.services.insert(
            slot,
            Service { id, pool: pool_slot, group: group_of(&service.pool.0), ..service.settings },
        );
        plan.defences.insert(slot, service.defence.clone());
        if service.settings.quic_id_length > 0 {
            for server in &pool.servers {
                let Some(quic_id) = server.quic_id else { continue };
                let server = self.slot(plan, Kind::Server, server.identity, now)?;
                let server_id = plan.servers.get(&server).map_or(0, |server| server.id);
                let (mut id, bytes) = ([0; 15], quic_id.as_bytes());
                id[..bytes.len()].copy_from_slice(bytes);
                let key = (slot, bytes.len() as u8, id);
                plan.quic.insert(key, SlotAndId { server, server_id });
            }
        }
        for (&address, ports) in &service.addresses {
            let vip = self.slot(plan, Kind::Vip, service.vip_identity(address), now)?;
            let family = if address.is_ipv4() { 4 } else { 6 };
            plan.vips.insert(vip, Vip { service: slot, family, address: words_of(address) });
            for &port in ports {
                let address = SocketAddr::new(address, port);
                let key = EndpointKey { address, protocol: service.protocol, kind: ENDPOINT_VIP };
                if plan.vip_endpoints.insert(key, [slot, vip]).is_some() {
                    return Err(ContentsError::Twice(address));
                }
            }
            if service.is_nat() {
                for server in &pool.servers {
                    let server_slot = self.slot(plan, Kind::Server, server.identity, now)?;
                    let entry = Returns { service: slot, vip, server: server_slot, ..Returns::default() };
                    plan_returns(plan, service.protocol, server, ports, entry);
                }
            }
        }
        Ok(())
    }

    /// Keeps removed servers, and their return entries for virtual addresses that exist, for a while.
    fn plan_leaving(&mut self, plan: &mut Plan, now: Time) {
        let mut leaving = HashSet::new();
        let servers: Vec<(Identity, u32)> = self.allocations.slots[&Kind::Server].iter().collect();
        for (identity, slot) in servers {
            let Some(server) = self.servers.get(&slot) else { continue };
            if plan.servers.contains_key(&slot) {
                continue;
            }
            let until = *self.leaving.entry(identity).or_insert(now + LEAVE);
            if until > now {
                plan.servers.insert(slot, Server { takes: TAKES_NONE, ..*server });
                leaving.insert(slot);
            }
        }
        if leaving.is_empty() {
            return;
        }
        for (key, chain) in &self.chains {
            for (_, entry) in chain.iter().filter(|(_, entry)| leaving.contains(&entry.server)) {
                let is_served =
                    plan.services.contains_key(&entry.service) && plan.vips.contains_key(&entry.vip);
                let planned = plan.returns.entry(*key).or_default();
                // Present servers have precedence.
                if is_served && planned.len() < SHARED_MAX as usize {
                    planned.push(Returns { next: 0, ..*entry });
                }
            }
        }
        plan.returns.retain(|_, entries| !entries.is_empty());
    }

    /// Gives the return entries positions: the present ones if a chain does not change.
    fn plan_chains(&mut self, plan: &mut Plan, now: Time) -> Result<(), ContentsError> {
        for (key, entries) in std::mem::take(&mut plan.returns) {
            if entries.len() > SHARED_MAX as usize {
                return Err(ContentsError::Shared(key.address));
            }
            let present = self.chains.get(&key).filter(|present| {
                let present = present.iter().map(|(_, entry)| Returns { next: 0, ..*entry });
                present.eq(entries.iter().copied())
            });
            let chain = match present {
                Some(present) => present.clone(),
                None => {
                    let full = |_| ContentsError::Full {
                        things: "server addresses",
                        max: crate::contract::RETURNS_MAX - 1,
                    };
                    let positions = entries.iter().map(|_| self.allocations.returns.take(now));
                    let positions = positions.collect::<Result<Vec<u32>, _>>().map_err(full)?;
                    let next = positions.iter().skip(1).copied().chain([0]);
                    let linked = entries.into_iter().zip(next).map(|(entry, next)| Returns { next, ..entry });
                    positions.iter().copied().zip(linked).collect()
                }
            };
            plan.chains.insert(key, chain);
        }
        Ok(())
    }
}

/// Plans the return entries of a server for one virtual address.
fn plan_returns(plan: &mut Plan, protocol: u8, server: &WantedServer, ports: &[u16], entry: Returns) {
    let mut add = |address: IpAddr, port: u16, vip_port: u16| {
        let address = SocketAddr::new(address, port);
        let key = EndpointKey { address, protocol, kind: ENDPOINT_REAL };
        plan.returns.entry(key).or_default().push(Returns { port: vip_port.to_be(), ..entry });
    };
    match (server.port, ports) {
        // The server has the port of the client's packet.
        (0, ports) => ports.iter().for_each(|&port| add(server.address, port, 0)),
        (server_port, [first, ..]) => add(server.address, server_port, *first),
        (_, []) => {}
    }
}
