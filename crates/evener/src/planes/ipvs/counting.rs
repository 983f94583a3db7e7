//! Connections of services and servers, and their counters, as growth of the kernel's statistics. The kernel counts on when a process ends; each
//! process counts the traffic of its own time.

use super::Setup;
use evener_core::ServerId;
use evener_core::service::ServiceLive;
use evener_core::snapshot::ServerLive;
use evener_core::spec::Protocol;
use evener_ipvs::model::{DestinationKey, DestinationState, Entry, ServiceKey, Statistics};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counters of servers by pool and identity.
pub(super) type ServersLive = BTreeMap<(Arc<str>, ServerId), Arc<ServerLive>>;

/// Counters of a destination: its server and its service.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    server: Option<Arc<ServerLive>>,
    service: Arc<ServiceLive>,
}

/// The counted destinations.
#[derive(Debug, Default)]
pub(super) struct Counting {
    counted: HashMap<(ServiceKey, DestinationKey), Counted>,
    last: HashMap<(ServiceKey, DestinationKey), Statistics>,
}

impl Counting {
    pub(super) fn configure(&mut self, setup: &Setup) {
        self.counted = setup.counted.clone();
    }

    /// Sets the numbers of connections, and adds what was counted since the last call.
    pub(super) fn count(&mut self, table: &[Entry]) {
        let mut seen = HashMap::new();
        let mut connections = HashMap::new();
        for entry in table {
            let service = entry.service.service.key;
            for found in &entry.destinations {
                let key = (service, found.destination.key);
                if let (Some(counted), Some(last)) = (self.counted.get(&key), self.last.get(&key)) {
                    counted.add(&growth(last, &found.statistics));
                }
                if let Some(counted) = self.counted.get(&key) {
                    counted.add_connections(found, &mut connections);
                }
                seen.insert(key, found.statistics);
            }
        }
        self.last = seen;
        // A server or service without destinations has no connections.
        for counted in self.counted.values() {
            counted.associations().for_each(|cell| {
                let count = connections.get(&std::ptr::from_ref(cell)).copied().unwrap_or_default();
                cell.store(count, Ordering::Relaxed);
            });
        }
    }
}

/// Returns the growth; statistics that were set to zero grow from there.
fn growth(last: &Statistics, now: &Statistics) -> Statistics {
    let grown = |last: u64, now: u64| if now < last { now } else { now - last };
    Statistics {
        connections: grown(last.connections, now.connections),
        packets_in: grown(last.packets_in, now.packets_in),
        packets_out: grown(last.packets_out, now.packets_out),
        bytes_in: grown(last.bytes_in, now.bytes_in),
        bytes_out: grown(last.bytes_out, now.bytes_out),
        ..Statistics::default()
    }
}

impl Counted {
    pub(super) fn new(server: Option<Arc<ServerLive>>, service: Arc<ServiceLive>) -> Self {
        Self { server, service }
    }

    /// Returns the numbers of connections that a destination contributes to.
    fn associations(&self) -> impl Iterator<Item = &AtomicU32> {
        let server = self.server.iter().map(|server| &server.associations);
        server.chain([&self.service.associations])
    }

    /// Adds the connections of a destination to the sums of its server and service.
    fn add_connections(&self, found: &DestinationState, sums: &mut HashMap<*const AtomicU32, u32>) {
        // Only TCP and SCTP have connections that the kernel calls active.
        let is_udp = self.service.protocol == Protocol::Udp;
        let count = if is_udp { found.inactive } else { found.active };
        for cell in self.associations() {
            let sum = sums.entry(std::ptr::from_ref(cell)).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    fn add(&self, grown: &Statistics) {
        // The last shard belongs to this thread.
        let is_udp = self.service.protocol == Protocol::Udp;
        if let Some(server) = &self.server {
            let counters = server.counters.last();
            if is_udp { &counters.flows } else { &counters.connections }.add(grown.connections);
            counters.packets_in.add(grown.packets_in);
            counters.packets_out.add(grown.packets_out);
            counters.bytes_in.add(grown.bytes_in);
            counters.bytes_out.add(grown.bytes_out);
        }
        let counters = self.service.counters.last();
        if is_udp { &counters.flows } else { &counters.connections }.add(grown.connections);
        counters.packets_in.add(grown.packets_in);
        counters.packets_out.add(grown.packets_out);
        counters.bytes_in.add(grown.bytes_in);
        counters.bytes_out.add(grown.bytes_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_that_were_zeroed_grow_from_zero() {
        let of = |connections| Statistics { connections, ..Statistics::default() };
        for (last, now, expected) in [(0, 5, 5), (5, 5, 0), (5, 8, 3), (5, 2, 2)] {
            assert_eq!(growth(&of(last), &of(now)).connections, expected, "{last} to {now}");
        }
    }
}
