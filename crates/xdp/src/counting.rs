//! Counters of the program, added up over the CPUs, as growth of the counters that every plane has. The counts of the
//! kernel go on when a process ends; each process counts what it saw, as the other planes do.

use crate::associations::Counts;
use crate::contents::Contents;
use crate::contract::{
    REASON_FLOW_BY_SERVER, REASON_FLOW_EXPIRED, REASON_FLOW_MOVED, REASON_FLOW_NEW, REASON_NO_SERVER,
    REASONS_MAX, ServerCounters, ServiceCounters,
};
use crate::maps::Maps;
use aya::maps::MapError;
use evener_core::ServerId;
use evener_core::service::ServiceLive;
use evener_core::snapshot::ServerLive;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Counters of servers by pool and identity.
pub type ServersLive = BTreeMap<(Arc<str>, ServerId), Arc<ServerLive>>;

/// Counts of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ServerCounts {
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
    flows: u64,
}

/// Counts of a service, by reason.
type ServiceCounts = [u64; REASONS_MAX];

#[derive(Debug)]
struct CountedServer {
    last: ServerCounts,
    lives: Vec<Arc<ServerLive>>,
    /// Services whose bytes and packets these are, if there is one only.
    services: Vec<Arc<ServiceLive>>,
}

#[derive(Debug)]
struct CountedService {
    last: ServiceCounts,
    live: Arc<ServiceLive>,
}

/// The counted slots.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    servers: HashMap<u32, CountedServer>,
    services: HashMap<u32, CountedService>,
}

impl ServerCounts {
    fn read(maps: &Maps, slot: u32) -> Result<Self, MapError> {
        let cpus = maps.server_counts.get(&slot, 0)?;
        let sum = |count: fn(&ServerCounters) -> u64| cpus.iter().map(count).fold(0, u64::wrapping_add);
        Ok(Self {
            packets_in: sum(|cpu| cpu.packets_in),
            bytes_in: sum(|cpu| cpu.bytes_in),
            packets_out: sum(|cpu| cpu.packets_out),
            bytes_out: sum(|cpu| cpu.bytes_out),
            flows: sum(|cpu| cpu.flows),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            packets_in: self.packets_in.wrapping_sub(before.packets_in),
            bytes_in: self.bytes_in.wrapping_sub(before.bytes_in),
            packets_out: self.packets_out.wrapping_sub(before.packets_out),
            bytes_out: self.bytes_out.wrapping_sub(before.bytes_out),
            flows: self.flows.wrapping_sub(before.flows),
        }
    }
}

fn read_service(maps: &Maps, slot: u32) -> Result<ServiceCounts, MapError> {
    let cpus = maps.service_counts.get(&slot, 0)?;
    let mut sums = [0; REASONS_MAX];
    for ServiceCounters { reasons } in cpus.iter() {
        sums.iter_mut().zip(reasons).for_each(|(sum, count)| *sum = u64::wrapping_add(*sum, *count));
    }
    Ok(sums)
}

impl Counting {
    /// Counts the slots in use from now on. Slots that stay continue, and slots that are no longer used are counted for
    /// the last time.
    pub(crate) fn configure(
        &mut self,
        contents: &Contents,
        services: &HashMap<Arc<str>, Arc<ServiceLive>>,
        lives: &ServersLive,
        maps: &Maps,
    ) -> Result<(), MapError> {
        self.count(maps)?;
        let mut old = std::mem::take(&mut self.services);
        // Slot 0 counts packets that belong to no service, such as packets to dark addresses.
        let first = contents.service_slots().map(|(name, _)| (name, 0)).min();
        for (name, slot) in contents.service_slots().chain(first) {
            let Some(live) = services.get(name) else { continue };
            let known = old.remove(&slot).filter(|known| Arc::ptr_eq(&known.live, live));
            let last = match known {
                Some(known) => known.last,
                None => read_service(maps, slot)?,
            };
            self.services.insert(slot, CountedService { last, live: Arc::clone(live) });
        }
        let mut old = std::mem::take(&mut self.servers);
        let users = contents.services_of_pools();
        for ((pool, id), slot) in contents.server_slots() {
            let Some(live) = lives.get(&(Arc::clone(pool), *id)) else { continue };
            let last = match old.remove(&slot) {
                Some(known) => known.last,
                None => ServerCounts::read(maps, slot)?,
            };
            let users = users.get(pool).into_iter().flatten();
            let users = users.filter_map(|name| services.get(*name)).cloned().collect();
            let counted = CountedServer { last, lives: vec![Arc::clone(live)], services: users };
            self.servers.insert(slot, counted);
        }
        Ok(())
    }

    /// Sets the numbers of present associations.
    pub(crate) fn set_associations(&self, counts: &Counts) {
        // A service has a slot for each address family.
        let mut services: BTreeMap<&Arc<str>, (&ServiceLive, u32)> = BTreeMap::new();
        for (slot, counted) in &self.services {
            services.entry(&counted.live.name).or_insert((&counted.live, 0)).1 += counts.of_service(*slot);
        }
        services.values().for_each(|(live, count)| live.associations.store(*count, Ordering::Relaxed));
        for (slot, counted) in &self.servers {
            let count = counts.of_server(*slot);
            counted.lives.iter().for_each(|live| live.associations.store(count, Ordering::Relaxed));
        }
    }

    /// Adds what was counted since the last call.
    pub(crate) fn count(&mut self, maps: &Maps) -> Result<(), MapError> {
        for (slot, counted) in &mut self.servers {
            let now = ServerCounts::read(maps, *slot)?;
            counted.add(&now.since(&counted.last));
            counted.last = now;
        }
        for (slot, counted) in &mut self.services {
            let now = read_service(maps, *slot)?;
            counted.add(&now);
            counted.last = now;
        }
        Ok(())
    }
}

impl CountedServer {
    fn add(&self, grown: &ServerCounts) {
        for live in &self.lives {
            // The last shard belongs to this thread.
            let counters = live.counters.last();
            counters.packets_in.add(grown.packets_in);
            counters.packets_out.add(grown.packets_out);
            counters.bytes_in.add(grown.bytes_in);
            counters.bytes_out.add(grown.bytes_out);
            counters.flows.add(grown.flows);
        }
        // The program counts packets by server. A server of several services counts for each of them only where it
        // is used by one.
        if let [service] = &self.services[..] {
            let counters = service.counters.last();
            counters.packets_in.add(grown.packets_in);
            counters.packets_out.add(grown.packets_out);
            counters.bytes_in.add(grown.bytes_in);
            counters.bytes_out.add(grown.bytes_out);
        }
    }
}

impl CountedService {
    fn add(&self, now: &ServiceCounts) {
        let grown = |reason: u8| {
            let at = usize::from(reason);
            now[at].wrapping_sub(self.last[at])
        };
        let counters = self.live.counters.last();
        counters.flows.add(grown(REASON_FLOW_NEW).wrapping_add(grown(REASON_FLOW_BY_SERVER)));
        counters.flows_moved.add(grown(REASON_FLOW_MOVED));
        counters.flows_ended.expired.add(grown(REASON_FLOW_EXPIRED));
        counters.no_server.add(grown(REASON_NO_SERVER));
        counters.xdp.add(grown);
    }
}
