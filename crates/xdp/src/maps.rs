//! Typed handles of the maps of the program.

use crate::contract::{
    BucketV4, BucketV6, Config, Defence, Flow, FlowKeyV4, FlowKeyV6, Fragment, FragmentKey, Identity,
    Returns, Server, ServerCounters, Service, ServiceCounters, Vip,
};
use crate::memory::SharedArray;
use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The maps of the program. The header `bpf/maps.h` describes them.
pub struct Maps {
    /// Hashes of the names of things, by which another process finds their slots.
    pub identities: SharedArray<Identity>,
    /// Settings of the whole program, in entry 0.
    pub settings: Array<MapData, Config>,
    /// Virtual addresses and servers of IPv4, in memory that the program reads, too.
    pub endpoints_v4: SharedArray<BucketV4>,
    /// Virtual addresses and servers of IPv6.
    pub endpoints_v6: SharedArray<BucketV6>,
    /// Services by slot.
    pub services: Array<MapData, Service>,
    /// Limits of services by slot.
    pub defences: Array<MapData, Defence>,
    /// Virtual addresses by slot.
    pub vips: Array<MapData, Vip>,
    /// Servers by slot.
    pub servers: Array<MapData, Server>,
    /// Services of a server's address, in chains.
    pub returning: Array<MapData, Returns>,
    /// Tables of choices by pool.
    pub tables: ArrayOfMaps<MapData>,
    /// The tables before the last change.
    pub tables_before: ArrayOfMaps<MapData>,
    /// Associations of IPv4 clients.
    pub flows_v4: HashMap<MapData, FlowKeyV4, Flow>,
    /// Associations of IPv6 clients.
    pub flows_v6: HashMap<MapData, FlowKeyV6, Flow>,
    /// First fragments.
    pub fragments: HashMap<MapData, FragmentKey, Fragment>,
    /// Counters of servers, for each CPU.
    pub server_counts: PerCpuArray<MapData, ServerCounters>,
    /// Counters of services, for each CPU.
    pub service_counts: PerCpuArray<MapData, ServiceCounters>,
    /// Events of the program; `None` after [`Maps::take_events`].
    events: Option<RingBuf<MapData>>,
    /// The maps of associations of IPv4 and IPv6, to read them in batches.
    associations: [OwnedFd; 2],
    /// Maps without a field here.
    others: Ebpf,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of a loaded object. The object stays here, without its known maps.
    pub(crate) fn take(mut ebpf: Ebpf) -> Result<Self, MapError> {
        let maps = &mut ebpf;
        let associations = [descriptor(maps, "flows_v4")?, descriptor(maps, "flows_v6")?];
        Ok(Self {
            identities: SharedArray::new(raw(maps, "identities"))?,
            settings: taken(maps, "settings")?,
            endpoints_v4: SharedArray::new(raw(maps, "endpoints_v4"))?,
            endpoints_v6: SharedArray::new(raw(maps, "endpoints_v6"))?,
            services: taken(maps, "services")?,
            defences: taken(maps, "defences")?,
            vips: taken(maps, "vips")?,
            servers: taken(maps, "servers")?,
            returning: taken(maps, "returning")?,
            tables: taken(maps, "tables")?,
            tables_before: taken(maps, "tables_before")?,
            flows_v4: taken(maps, "flows_v4")?,
            flows_v6: taken(maps, "flows_v6")?,
            fragments: taken(maps, "fragments")?,
            server_counts: taken(maps, "server_counts")?,
            service_counts: taken(maps, "service_counts")?,
            events: Some(taken(maps, "events")?),
            associations,
            others: ebpf,
        })
    }

    /// Takes the ring of events away from here, for the thread that reads it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// Returns the map of the associations of an address family.
    pub(crate) fn associations(&self, is_v6: bool) -> BorrowedFd<'_> {
        self.associations[usize::from(is_v6)].as_fd()
    }

    /// Takes a map that has no field here, such as a prefix list.
    pub fn take_map(&mut self, name: &str) -> Option<Map> {
        self.others.take_map(name)
    }
}

fn taken<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, MapError> {
    ebpf.take_map(name).expect("the object has the map").try_into()
}

/// Returns another descriptor of a map of associations.
fn descriptor(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, MapError> {
    let Some(Map::LruHashMap(data)) = ebpf.map(name) else { unreachable!("the object has the LRU map") };
    let copied = data.fd().as_fd().try_clone_to_owned();
    copied.map_err(MapError::IoError)
}

fn raw(ebpf: &mut Ebpf, name: &str) -> MapData {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => data,
        _ => unreachable!("the object has the array"),
    }
}
