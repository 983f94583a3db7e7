//! The program with maps of one service, as a loader would write them.

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use evener_xdp::contract::*;
use evener_xdp::object::{OBJECT, PROGRAM};
use std::net::IpAddr;

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

pub(crate) const VIP_V4: &str = "10.0.9.9";
pub(crate) const VIP_V6: &str = "fd00:9::9";
pub(crate) const PORT: u16 = 5000;
pub(crate) const TUNNEL_V4: &str = "10.0.3.2";
pub(crate) const TUNNEL_V6: &str = "fd00:3::2";
/// MAC address of the next hop of the server in a slot is this one with the slot as its last byte.
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];

/// Flag of maps that are values of a map.
const BPF_F_INNER_MAP: u32 = 1 << 12;
const HASH_FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const HASH_SECOND: u64 = 0xd6e8_feb8_6659_fd93;
/// Slots of the service, its pool and its virtual addresses.
const SERVICE: u32 = 1;
const POOL: u32 = 1;
const VIPS: [(u32, &str); 2] = [(1, VIP_V4), (2, VIP_V6)];

/// Returns an address as the maps have it.
pub(crate) fn words(address: &str) -> [u32; 4] {
    match address.parse().unwrap() {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|at| u32::from_ne_bytes(octets[4 * at..4 * at + 4].try_into().unwrap()))
        }
    }
}

/// A service that forwards in this mode, for packets that go back through the host they came from.
pub(crate) fn service(forward: u8) -> Service {
    Service {
        id: 100,
        pool: POOL,
        forward,
        next_hop: NEXT_HOP_SENDER,
        choose_by: CHOOSE_BY_TURN,
        tunnel_port: 6080_u16.to_be(),
        tunnel_source_v4: words(TUNNEL_V4)[0],
        tunnel_source_v6: words(TUNNEL_V6),
        ..Service::default()
    }
}

/// A server that takes new clients.
pub(crate) fn server(slot: u32, address: &str) -> Server {
    let mut destination_mac = SERVER_MAC;
    destination_mac[5] = slot as u8;
    Server {
        id: 200 + slot,
        takes: TAKES_NEW,
        family: if address.contains(':') { 6 } else { 4 },
        address: words(address),
        ifindex: 1,
        mtu: 1500,
        destination_mac,
        source_mac: super::packet::LOCAL_MAC,
        ..Server::default()
    }
}

/// The loaded program.
pub(crate) struct Plane {
    ebpf: Ebpf,
}

impl Plane {
    /// Loads the program with a service and its servers, which get the slots 1, 2, ... Returns `None` without permission.
    pub(crate) fn new(service: Service, servers: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs CAP_NET_ADMIN, to load a program");
            assert!(
                std::env::var_os("EVENER_TEST_STRICT").is_none(),
                "skipped although EVENER_TEST_STRICT is set: needs CAP_NET_ADMIN"
            );
            return None;
        }
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("flows_v4", 1024).map_max_entries("flows_v6", 1024);
        let mut plane = Self { ebpf: loader.load(OBJECT).unwrap() };
        plane.set("settings", 0, Config { version: CONTRACT_VERSION, ..Config::default() });
        plane.set("services", SERVICE, service);
        let slots: Vec<u32> = (1..).take(servers.len()).collect();
        for (slot, address) in slots.iter().zip(servers) {
            plane.set_server(*slot, server(*slot, address));
        }
        plane.write_table(&slots);
        for (slot, address) in VIPS {
            let family = if address.contains(':') { 6 } else { 4 };
            plane.set("vips", slot, Vip { service: SERVICE, family, address: words(address) });
            for protocol in [super::packet::UDP, super::packet::TCP] {
                plane.write_endpoint(address, protocol, slot);
            }
        }
        plane.program().load().unwrap();
        Some(plane)
    }

    pub(crate) fn program(&mut self) -> &mut Xdp {
        self.ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap()
    }

    fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap()
    }

    fn set<V: aya::Pod>(&mut self, map: &str, slot: u32, value: V) {
        Array::<_, V>::try_from(self.map(map)).unwrap().set(slot, value, 0).unwrap();
    }

    pub(crate) fn set_service(&mut self, service: Service) {
        self.set("services", SERVICE, service);
    }

    pub(crate) fn set_server(&mut self, slot: u32, server: Server) {
        self.set("servers", slot, server);
    }

    /// Writes the table of choices: the number of slots, and the slots.
    pub(crate) fn change_server(&mut self, slot: u32, change: impl FnOnce(&mut Server)) {
        let mut servers: Array<_, Server> = self.map("servers").try_into().unwrap();
        let mut server = servers.get(&slot, 0).unwrap();
        change(&mut server);
        servers.set(slot, server, 0).unwrap();
    }

    fn write_table(&mut self, servers: &[u32]) {
        let blocks = (1 + servers.len()).div_ceil(BLOCK_SLOTS) as u32;
        let mut table = Array::<MapData, Block>::create(blocks, BPF_F_INNER_MAP).unwrap();
        let mut all = vec![servers.len() as u32];
        all.extend(servers);
        all.resize(blocks as usize * BLOCK_SLOTS, 0);
        for (at, slots) in (0..).zip(all.chunks(BLOCK_SLOTS)) {
            table.set(at, Block { slots: slots.try_into().unwrap() }, 0).unwrap();
        }
        let tables: Result<ArrayOfMaps<_, Array<MapData, Block>>, _> = self.map("tables").try_into();
        tables.unwrap().set(POOL, &table, 0).unwrap();
    }

    fn write_endpoint(&mut self, address: &str, protocol: u8, vip: u32) {
        let words = words(address);
        let hash_word = |hash: u64, word: u64| {
            let hash = (hash ^ word).wrapping_mul(HASH_FIRST);
            hash ^ hash >> 32
        };
        let rest = u64::from(PORT.to_be()) | u64::from(protocol) << 16 | u64::from(ENDPOINT_VIP) << 24;
        let wide = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        let (port, kind) = (PORT.to_be(), ENDPOINT_VIP);
        if address.contains(':') {
            let hash = hash_word(hash_word(hash_word(0, wide(0)), wide(2)), rest).wrapping_mul(HASH_SECOND);
            let entry = EndpointV6 { address: words, port, protocol, kind, a: SERVICE, b: vip, reserved: 0 };
            let position = hash as u32 % BUCKETS_V6;
            let mut map: Array<_, BucketV6> = self.map("endpoints_v6").try_into().unwrap();
            let mut bucket = map.get(&position, 0).unwrap();
            *bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap() = entry;
            map.set(position, bucket, 0).unwrap();
        } else {
            let hash = hash_word(0, u64::from(words[0]) | rest << 32).wrapping_mul(HASH_SECOND);
            let entry = EndpointV4 { address: words[0], port, protocol, kind, a: SERVICE, b: vip };
            let position = hash as u32 % BUCKETS_V4;
            let mut map: Array<_, BucketV4> = self.map("endpoints_v4").try_into().unwrap();
            let mut bucket = map.get(&position, 0).unwrap();
            *bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap() = entry;
            map.set(position, bucket, 0).unwrap();
        }
    }

    /// Makes connection IDs with this server ID lead to the server in a slot.
    pub(crate) fn write_quic_server(&mut self, id: &[u8], slot: u32) {
        let mut key = QuicKey { service: SERVICE, length: id.len() as u8, id: [0; 15] };
        key.id[..id.len()].copy_from_slice(id);
        let mut map: HashMap<_, QuicKey, SlotAndId> = self.map("quic_servers").try_into().unwrap();
        map.insert(key, SlotAndId { server: slot, server_id: 200 + slot }, 0).unwrap();
    }

    /// Sets the time from which the next ICMP error may be sent, on all CPUs.
    pub(crate) fn set_respond_limit(&mut self, time_ns: u64) {
        let mut limits: PerCpuArray<_, u64> = self.map("respond_limit").try_into().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        limits.set(0, PerCpuValues::try_from(vec![time_ns; cpus]).unwrap(), 0).unwrap();
    }

    /// Runs the program with a frame. Returns the action, and the frame as the program left it.
    pub(crate) fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self.program().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Number of packets of the service that were counted for a reason.
    pub(crate) fn count(&mut self, reason: u8) -> u64 {
        let counters: PerCpuArray<_, ServiceCounters> = self.map("service_counts").try_into().unwrap();
        counters.get(&SERVICE, 0).unwrap().iter().map(|counters| counters.reasons[usize::from(reason)]).sum()
    }
}
