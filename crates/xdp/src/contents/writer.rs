//! Writes a plan into the maps, in an order that is safe for packets in between.

use super::{Contents, ContentsError, Kind, MapWriter, Plan, QuicName, SECOND_CHANCE, WantedDefence, Write};
use crate::contract::{Returns, Server, Service, Vip};
use crate::endpoints::{EndpointKey, EndpointValue};
use crate::slots::Identity;
use evener_core::Time;
use std::sync::Arc;

impl Contents {
    pub(super) fn write(
        &mut self,
        plan: &Plan,
        now: Time,
        maps: &mut impl MapWriter,
    ) -> Result<(), ContentsError> {
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

    pub(super) fn write_server(
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
