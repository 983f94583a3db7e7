//! The plane's program with maps of its own, filled for the benchmark.

use anyhow::Context;
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use evener_xdp::contract::{
    BLOCK_SLOTS, BUCKET_ENTRIES, BUCKETS_V4, BUCKETS_V6, Block, BucketV4, BucketV6, CHOOSE_BY_CLIENT,
    CHOOSE_BY_TURN, CONTRACT_VERSION, Config, ENDPOINT_FREE, ENDPOINT_REAL, ENDPOINT_VIP, EVENT_ERROR,
    EndpointV4, EndpointV6, FORWARD_NAT, NEXT_HOP_ROUTE, NEXT_HOP_SENDER, Returns, Server, Service,
    TAKES_NEW, Vip,
};
use evener_xdp::load::entries_of;
use evener_xdp::object::{OBJECT, PROGRAM};
use std::net::{IpAddr, SocketAddr};

const UDP: u8 = 17;
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// Interface of packets of TEST_RUN without another one: the loopback interface of the namespace.
const LOOPBACK: u32 = 1;
/// Slots of the table of a service that chooses by client.
const PLACEMENT_SLOTS: usize = 65_537;

/// Choice of servers for new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choose {
    Turn,
    Client,
}

/// Next hop of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextHop {
    Sender,
    Route,
}

/// The loaded plane.
pub(super) struct Scene {
    ebpf: Ebpf,
    endpoints_v4: Vec<BucketV4>,
    endpoints_v6: Vec<BucketV6>,
    services: u32,
    servers: u32,
}

impl Scene {
    /// Loads the program, with room for this many associations.
    pub(super) fn load(flows: u32) -> anyhow::Result<Self> {
        let mut loader = EbpfLoader::new();
        let flows = entries_of(flows);
        loader.map_max_entries("flows_v4", flows).map_max_entries("flows_v6", flows);
        let mut ebpf = loader.load(OBJECT)?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("program {name}"))?;
        }
        let mut scene = Self {
            ebpf,
            endpoints_v4: vec![BucketV4::default(); BUCKETS_V4 as usize],
            endpoints_v6: vec![BucketV6::default(); BUCKETS_V6 as usize],
            services: 0,
            servers: 0,
        };
        let config = Config {
            version: CONTRACT_VERSION,
            event_level: EVENT_ERROR,
            events_per_second: 1000,
            ..Config::default()
        };
        scene.set("settings", 0, config)?;
        Ok(scene)
    }

    /// Returns the plane's program.
    pub(super) fn descriptor(&self) -> anyhow::Result<ProgramFd> {
        let program: &Xdp = self.ebpf.program(PROGRAM).context("no program")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Returns the plane's program, to attach it.
    pub(super) fn program_mut(&mut self) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(PROGRAM).context("no program")?.try_into()?)
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn set<T: Pod>(&mut self, map: &str, at: u32, value: T) -> anyhow::Result<()> {
        let mut array: Array<_, T> = Array::try_from(self.map(map)?)?;
        array.set(at, value, 0).with_context(|| format!("{map}[{at}]"))
    }

    /// Adds a service of UDP with its own pool, whose servers receive at the port of the service.
    pub(super) fn add(
        &mut self,
        listen: SocketAddr,
        servers: &[IpAddr],
        choose: Choose,
        next_hop: NextHop,
    ) -> anyhow::Result<()> {
        self.services += 1;
        // The service, its address and its pool have the same slot.
        let slot = self.services;
        let first = self.servers + 1;
        self.servers += servers.len() as u32;
        for (at, address) in (first..).zip(servers) {
            self.set("servers", at, server(at, *address))?;
        }
        self.add_table(slot, first, servers.len() as u32, choose)?;
        let service = Service {
            id: slot,
            pool: slot,
            forward: FORWARD_NAT,
            next_hop: match next_hop {
                NextHop::Sender => NEXT_HOP_SENDER,
                NextHop::Route => NEXT_HOP_ROUTE,
            },
            choose_by: match choose {
                Choose::Turn => CHOOSE_BY_TURN,
                Choose::Client => CHOOSE_BY_CLIENT,
            },
            ..Service::default()
        };
        self.set("services", slot, service)?;
        let (family, address) = words(listen.ip());
        self.set("vips", slot, Vip { service: slot, family: family.into(), address })?;
        for (at, address) in (first..).zip(servers) {
            self.set(
                "returning",
                at,
                Returns { service: slot, vip: slot, server: at, ..Returns::default() },
            )?;
            self.add_endpoint(SocketAddr::new(*address, listen.port()), ENDPOINT_REAL, at, 0)?;
        }
        self.add_endpoint(listen, ENDPOINT_VIP, slot, slot)
    }

    fn add_table(&mut self, pool: u32, first: u32, servers: u32, choose: Choose) -> anyhow::Result<()> {
        let slots = match choose {
            Choose::Turn => servers as usize,
            Choose::Client => PLACEMENT_SLOTS,
        };
        let scattered = |slot: usize| (slot as u32).wrapping_mul(2_654_435_761) >> 7;
        let mut values = vec![slots as u32];
        values.extend((0..slots).map(|slot| match choose {
            Choose::Turn => first + slot as u32,
            Choose::Client => first + scattered(slot) % servers,
        }));
        let blocks = values.chunks(BLOCK_SLOTS);
        let mut table = Array::<MapData, Block>::create(blocks.len() as u32, BPF_F_INNER_MAP)?;
        for (at, values) in (0..).zip(blocks) {
            let mut block = Block::default();
            block.slots[..values.len()].copy_from_slice(values);
            table.set(at, block, 0)?;
        }
        let mut tables: ArrayOfMaps<_, Array<MapData, Block>> = ArrayOfMaps::try_from(self.map("tables")?)?;
        Ok(tables.set(pool, &table, 0)?)
    }

    fn add_endpoint(&mut self, endpoint: SocketAddr, kind: u8, a: u32, b: u32) -> anyhow::Result<()> {
        let port = endpoint.port().to_be();
        let (_, address) = words(endpoint.ip());
        let tail = u32::from(port) | u32::from(UDP) << 16 | u32::from(kind) << 24;
        if endpoint.is_ipv4() {
            let hash = hash_endpoint_v4(u64::from(address[0]) | u64::from(tail) << 32);
            let entry = EndpointV4 { address: address[0], port, protocol: UDP, kind, a, b };
            let at = bucket_for(hash, BUCKETS_V4, |at| {
                free(self.endpoints_v4[at].entries.iter().map(|entry| entry.kind))
            })?;
            let bucket = &mut self.endpoints_v4[at.0];
            bucket.entries[at.1] = entry;
            let bucket = *bucket;
            return self.set("endpoints_v4", at.0 as u32, bucket);
        }
        let pair = |at: usize| u64::from(address[at]) | u64::from(address[at + 1]) << 32;
        let hash = hash_endpoint_v6(pair(0), pair(2), tail);
        let entry = EndpointV6 { address, port, protocol: UDP, kind, a, b, reserved: 0 };
        let at = bucket_for(hash, BUCKETS_V6, |at| {
            free(self.endpoints_v6[at].entries.iter().map(|entry| entry.kind))
        })?;
        let bucket = &mut self.endpoints_v6[at.0];
        bucket.entries[at.1] = entry;
        let bucket = *bucket;
        self.set("endpoints_v6", at.0 as u32, bucket)
    }
}

fn server(at: u32, address: IpAddr) -> Server {
    let (family, address) = words(address);
    Server {
        id: at,
        takes: TAKES_NEW,
        family,
        address,
        ifindex: LOOPBACK,
        mtu: 1500,
        destination_mac: [2, 0, 0, 0, 0, 3],
        source_mac: [2, 0, 0, 0, 0, 2],
        ..Server::default()
    }
}

/// Returns the family and the words of an address, in network order.
fn words(address: IpAddr) -> (u8, [u32; 4]) {
    match address {
        IpAddr::V4(address) => (4, [u32::from_ne_bytes(address.octets()), 0, 0, 0]),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let words = octets.as_chunks::<4>().0;
            (6, std::array::from_fn(|at| u32::from_ne_bytes(words[at])))
        }
    }
}

/// Returns the free entries of a bucket.
fn free(kinds: impl Iterator<Item = u8>) -> Vec<usize> {
    kinds.enumerate().filter(|(_, kind)| *kind == ENDPOINT_FREE).map(|(at, _)| at).collect()
}

/// Returns the emptier one of the two buckets of a hash, and a free entry in it.
fn bucket_for(hash: u64, buckets: u32, free: impl Fn(usize) -> Vec<usize>) -> anyhow::Result<(usize, usize)> {
    let both = [hash, hash >> 32].map(|hash| (hash as u32 & (buckets - 1)) as usize);
    let best = both.into_iter().max_by_key(|at| free(*at).len()).unwrap_or(0);
    let entry =
        free(best).first().copied().with_context(|| format!("both buckets have {BUCKET_ENTRIES} entries"))?;
    Ok((best, entry))
}

/// `hash.h`.
fn hash_word(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 32)
}

fn hash_endpoint_v4(key: u64) -> u64 {
    hash_word(0, key).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn hash_endpoint_v6(high: u64, low: u64, tail: u32) -> u64 {
    hash_word(hash_word(hash_word(0, high), low), tail.into()).wrapping_mul(0xd6e8_feb8_6659_fd93)
}
