//! Associations of clients with servers, as the maps have them: their number by service and server, and a list. The
//! maps are read in batches between the other work of the plane's thread, so that large maps delay nothing.

use crate::contract::{FLOW_HOP_BITS, FLOW_SLOT_BITS, Flow, FlowKeyV4, FlowKeyV6};
use crate::endpoints::ip_of;
use crate::maps::Maps;
use crate::sys::{self, Batch, Position};
use evener_core::acl::Prefix;
use evener_core::{ServerId, Time};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Entries that are read in one step.
const STEP: usize = 4096;
/// Interval of the steps of counting.
const COUNT_STEP_EVERY: Duration = Duration::from_millis(20);
/// Interval of counting, from begin to begin.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Unit of the time of an association's last packet, as a power of two of nanoseconds.
const USED_SHIFT: u32 = 30;

/// An association of a client with a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// The service.
    pub service: Arc<str>,
    /// Address of the client.
    pub client: IpAddr,
    /// Port of the client; `None` if the association is for all ports of the address.
    pub client_port: Option<u16>,
    /// The address that the client sends to.
    pub virtual_address: IpAddr,
    /// Pool and identity of the server; `None` if the server was removed, so that the client's next packet goes to
    /// another server.
    pub server: Option<(Arc<str>, ServerId)>,
    /// Time without packets, in steps of about a second; `None` if the service has no idle time.
    pub idle: Option<Duration>,
}

/// Conditions on associations. Without conditions, all are listed.
#[derive(Clone, Debug, Default)]
pub struct AssociationFilter {
    /// Only associations of this service.
    pub service: Option<Arc<str>>,
    /// Only associations of these clients.
    pub clients: Option<Prefix>,
    /// Only associations with this server.
    pub server: Option<(Arc<str>, ServerId)>,
}

/// A list of associations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Associations {
    /// Number of associations that meet the conditions, including those that are not listed.
    pub total: usize,
    /// The listed associations, in no order.
    pub listed: Vec<Association>,
}

/// Receives a list.
pub(crate) type Done = Box<dyn FnOnce(Associations) + Send>;

/// The value of an association. Only [`Value::of`] knows its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    slot: u32,
    /// Lower bits of the identity of the server.
    generation: u32,
    used: u32,
}

impl Value {
    fn of(flow: &Flow) -> Self {
        Self {
            slot: flow.server & ((1 << FLOW_SLOT_BITS) - 1),
            generation: flow.server >> FLOW_SLOT_BITS,
            used: flow.hop_and_used >> FLOW_HOP_BITS,
        }
    }

    /// Returns true if the association is with the server of this identity.
    fn is_with(&self, id: u32) -> bool {
        self.generation == id & (u32::MAX >> FLOW_SLOT_BITS)
    }

    /// Returns the time since the last packet; `now` is the monotonic time in nanoseconds.
    fn idle(&self, now: u64) -> Duration {
        let units = ((now >> USED_SHIFT) as u32).wrapping_sub(self.used) & (u32::MAX >> FLOW_HOP_BITS);
        let units = if self.used == 0 { 0 } else { units };
        Duration::from_nanos(u64::from(units) << USED_SHIFT)
    }
}

/// A virtual address of a service.
#[derive(Clone, Debug)]
pub(crate) struct IndexedVip {
    service_slot: u32,
    service: Arc<str>,
    address: IpAddr,
    /// Idle time of associations, if they have one.
    idle: Option<Duration>,
}

/// A server, with the identity that its associations have.
#[derive(Clone, Debug)]
pub(crate) struct IndexedServer {
    id: u32,
    pool: Arc<str>,
    server: ServerId,
}

/// The virtual addresses and servers by slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    vips: HashMap<u32, IndexedVip>,
    servers: HashMap<u32, IndexedServer>,
}

impl IndexedVip {
    /// Creates the virtual address of a service in a slot.
    pub(crate) fn new(service_slot: u32, service: Arc<str>, address: IpAddr, idle: Option<Duration>) -> Self {
        Self { service_slot, service, address, idle }
    }
}

impl IndexedServer {
    /// Creates a server; `id` is its identity in the maps.
    pub(crate) fn new(id: u32, pool: Arc<str>, server: ServerId) -> Self {
        Self { id, pool, server }
    }
}

impl Index {
    /// Creates an index of virtual addresses and servers by slot.
    pub(crate) fn new(vips: HashMap<u32, IndexedVip>, servers: HashMap<u32, IndexedServer>) -> Self {
        Self { vips, servers }
    }
}

/// An entry of a map that is an association of a present service.
struct Entry<'a> {
    vip: &'a IndexedVip,
    client: IpAddr,
    client_port: u16,
    slot: u32,
    server: Option<&'a IndexedServer>,
    idle: Duration,
}

impl Entry<'_> {
    fn meets(&self, filter: &AssociationFilter) -> bool {
        let is_with = |(pool, id): &(Arc<str>, ServerId)| {
            self.server.is_some_and(|server| server.pool == *pool && server.server == *id)
        };
        filter.service.as_ref().is_none_or(|service| *service == self.vip.service)
            && filter.clients.is_none_or(|clients| clients.contains(self.client))
            && filter.server.as_ref().is_none_or(is_with)
    }

    fn association(&self) -> Association {
        Association {
            service: Arc::clone(&self.vip.service),
            client: self.client,
            client_port: Some(self.client_port).filter(|port| *port > 0),
            virtual_address: self.vip.address,
            server: self.server.map(|server| (Arc::clone(&server.pool), server.server)),
            idle: self.vip.idle.map(|_| self.idle),
        }
    }
}

/// A way through the maps of both address families, in steps.
#[derive(Debug)]
struct Walk {
    index: Index,
    is_v6: bool,
    position: Position,
    room: usize,
}

impl Walk {
    fn new(index: Index) -> Self {
        Self { index, is_v6: false, position: Position::default(), room: STEP }
    }

    /// Reads the next entries. Returns true at the end.
    fn step(&mut self, maps: &Maps, mut each: impl FnMut(&Entry<'_>)) -> io::Result<bool> {
        let key_size = if self.is_v6 { size_of::<FlowKeyV6>() } else { size_of::<FlowKeyV4>() };
        let mut keys = vec![0; self.room * key_size];
        let mut values = vec![0; self.room * size_of::<Flow>()];
        let map = maps.associations(self.is_v6);
        match sys::lookup_batch(map, &mut self.position, &mut keys, &mut values, self.room)? {
            Batch::NoSpace => self.room *= 2,
            Batch::Read(read, is_end) => {
                let now = monotonic_ns();
                let values = values.chunks_exact(size_of::<Flow>());
                for (key, value) in keys.chunks_exact(key_size).zip(values).take(read) {
                    self.entry(key, value, now).iter().for_each(&mut each);
                }
                if is_end && self.is_v6 {
                    return Ok(true);
                }
                if is_end {
                    (self.is_v6, self.position) = (true, Position::default());
                }
            }
        }
        Ok(false)
    }

    fn entry(&self, key: &[u8], value: &[u8], now: u64) -> Option<Entry<'_>> {
        let (client, port, vip) = if self.is_v6 {
            let key: FlowKeyV6 = read_as(key);
            (ip_of(6, key.address), key.port, key.vip)
        } else {
            let key: FlowKeyV4 = read_as(key);
            (ip_of(4, [key.address, 0, 0, 0]), key.port, key.vip)
        };
        let vip = self.index.vips.get(&u32::from(vip))?;
        let value = Value::of(&read_as(value));
        let idle = value.idle(now);
        // The next packet makes such an association anew.
        if vip.idle.is_some_and(|max| idle > max) {
            return None;
        }
        let server = self.index.servers.get(&value.slot).filter(|server| value.is_with(server.id));
        Some(Entry { vip, client, client_port: u16::from_be(port), slot: value.slot, server, idle })
    }
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Reads a struct of the contract.
fn read_as<T: aya::Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>(), "the entry has the size of the struct");
    // SAFETY: the bytes are as long as the struct, which any bytes are valid for.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// Numbers of associations by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    services: HashMap<u32, u32>,
    servers: HashMap<u32, u32>,
}

impl Counts {
    /// Returns the number of associations of the service in a slot.
    pub(crate) fn of_service(&self, slot: u32) -> u32 {
        self.services.get(&slot).copied().unwrap_or_default()
    }

    /// Returns the number of associations with the server in a slot.
    pub(crate) fn of_server(&self, slot: u32) -> u32 {
        self.servers.get(&slot).copied().unwrap_or_default()
    }
}

/// A list in the making.
struct Listing {
    walk: Walk,
    filter: AssociationFilter,
    most: usize,
    found: Associations,
    done: Done,
}

/// Counts associations from time to time, and lists them on request.
#[derive(Default)]
pub(crate) struct Reader {
    counting: Option<(Walk, Counts)>,
    next_count: Time,
    next_step: Time,
    listings: VecDeque<Listing>,
}

impl Reader {
    /// Begins a list of at most `most` associations.
    pub(crate) fn list(&mut self, index: Index, filter: AssociationFilter, most: usize, done: Done) {
        let (walk, found) = (Walk::new(index), Associations::default());
        self.listings.push_back(Listing { walk, filter, most, found, done });
    }

    /// Returns the time at which the next step is due.
    pub(crate) fn deadline(&self) -> Time {
        if !self.listings.is_empty() {
            return Time::ZERO;
        }
        if self.counting.is_some() { self.next_step } else { self.next_count }
    }

    /// Does the steps that are due. Returns the numbers of associations when all are counted.
    pub(crate) fn on_time(
        &mut self,
        maps: &Maps,
        now: Time,
        index: impl FnOnce() -> Index,
    ) -> Option<Counts> {
        self.step_list(maps);
        if self.counting.is_none() && self.next_count <= now {
            self.next_count = now + COUNT_EVERY;
            self.counting = Some((Walk::new(index()), Counts::default()));
        }
        if self.next_step > now {
            return None;
        }
        let (walk, counts) = self.counting.as_mut()?;
        self.next_step = now + COUNT_STEP_EVERY;
        let step = walk.step(maps, |entry| {
            *counts.services.entry(entry.vip.service_slot).or_default() += 1;
            if entry.server.is_some() {
                *counts.servers.entry(entry.slot).or_default() += 1;
            }
        });
        match step {
            Ok(false) => None,
            Ok(true) => self.counting.take().map(|(_, counts)| counts),
            // Kernels without batches do not count.
            Err(_) => {
                self.counting = None;
                None
            }
        }
    }

    fn step_list(&mut self, maps: &Maps) {
        let Some(Listing { walk, filter, most, found, .. }) = self.listings.front_mut() else { return };
        let step = walk.step(maps, |entry| {
            if entry.meets(filter) {
                found.total += 1;
                if found.listed.len() < *most {
                    found.listed.push(entry.association());
                }
            }
        });
        if step.unwrap_or(true)
            && let Some(Listing { found, done, .. }) = self.listings.pop_front()
        {
            done(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(idle: Option<Duration>) -> Walk {
        let address = [192, 0, 2, 10].into();
        let vip = IndexedVip { service_slot: 1, service: "coap".into(), address, idle };
        let server = IndexedServer { id: 7, pool: "p".into(), server: ServerId(4) };
        Walk::new(Index { vips: [(3, vip)].into(), servers: [(5, server)].into() })
    }

    fn bytes_of<T: aya::Pod>(value: &T) -> Vec<u8> {
        // SAFETY: a struct of the contract has no padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
    }

    fn flow(slot: u32, generation: u32, used: u32) -> Flow {
        Flow { server: slot | generation << FLOW_SLOT_BITS, hop_and_used: used << FLOW_HOP_BITS }
    }

    /// Returns the association of the client 198.51.100.7 at a time in units.
    fn association(idle: Option<Duration>, vip: u16, flow: Flow, now: u64) -> Option<Association> {
        let address = u32::from_ne_bytes([198, 51, 100, 7]);
        let key = FlowKeyV4 { address, port: 4000_u16.to_be(), vip };
        let walk = walk(idle);
        let entry = walk.entry(&bytes_of(&key), &bytes_of(&flow), now << USED_SHIFT);
        entry.map(|entry| entry.association())
    }

    #[test]
    fn an_association_is_with_a_server_that_has_the_slot_and_the_identity() {
        let with = |slot, generation| {
            let flow = flow(slot, generation, 0);
            association(None, 3, flow, 100).unwrap().server
        };
        assert_eq!(with(5, 7), Some(("p".into(), ServerId(4))));
        assert_eq!(with(5, 6), None, "the slot belongs to another server now");
        assert_eq!(with(6, 7), None);
    }

    #[test]
    fn associations_of_removed_services_and_expired_associations_do_not_count() {
        let flow = flow(5, 7, 90);
        assert_eq!(association(None, 4, flow, 100), None, "no service has the virtual address");
        let listed_one = association(Some(Duration::from_secs(60)), 3, flow, 100).unwrap();
        assert_eq!(listed_one.idle, Some(Duration::from_nanos(10 << USED_SHIFT)));
        assert_eq!((listed_one.client, listed_one.client_port), ([198, 51, 100, 7].into(), Some(4000)));
        assert_eq!(association(Some(Duration::from_secs(5)), 3, flow, 100), None);
        let untimed = association(None, 3, flow, 100).unwrap();
        assert_eq!(untimed.idle, None, "the time is listed_one only with an idle time");
    }
}
