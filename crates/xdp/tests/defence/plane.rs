//! The program with one service, whose packets go to a server by replacing MAC addresses.

use crate::packet::{LOCAL_MAC, Packet, TCP, UDP};
use aya::maps::{Array, ArrayOfMaps, Map, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use evener_xdp::contract::*;
use evener_xdp::defence::{DarkAddresses, Defences, ServiceDefence};
use evener_xdp::object::{OBJECT, PROGRAM};
use std::net::IpAddr;

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

pub(crate) const VIP_V4: &str = "10.0.9.9";
pub(crate) const VIP_V6: &str = "fd00:9::9";
const PORT: u16 = 80;
const SERVICE: u32 = 1;
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const HASH_FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const HASH_SECOND: u64 = 0xd6e8_feb8_6659_fd93;

fn words(address: IpAddr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(crate::packet::octets(address).as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

fn endpoint_hash(address: IpAddr, rest: u64) -> u64 {
    let hash_word = |hash: u64, word: u64| {
        let hash = (hash ^ word).wrapping_mul(HASH_FIRST);
        hash ^ hash >> 32
    };
    let words = words(address);
    let wide = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    let hash = match address {
        IpAddr::V4(_) => hash_word(0, u64::from(words[0]) | rest << 32),
        IpAddr::V6(_) => hash_word(hash_word(hash_word(0, wide(0)), wide(2)), rest),
    };
    hash.wrapping_mul(HASH_SECOND)
}

/// Binds the thread to its processor, because the program counts SYNs on each processor.
fn stay_on_this_processor() {
    let mut set = rustix::thread::CpuSet::new();
    set.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

pub(crate) struct Plane {
    ebpf: Ebpf,
    defences: Defences,
    limits: Array<MapData, Defence>,
}

impl Plane {
    /// Loads the program. Returns `None` without permission.
    pub(crate) fn new() -> Option<Self> {
        Self::with_sources(1024)
    }

    /// Loads the program with a maximum number of source prefixes.
    pub(crate) fn with_sources(sources: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs CAP_NET_ADMIN");
            assert!(std::env::var_os("EVENER_TEST_STRICT").is_none(), "a test needs root");
            return None;
        }
        stay_on_this_processor();
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("flows_v4", 1024).map_max_entries("flows_v6", 1024);
        loader.map_max_entries("sources", sources);
        let mut ebpf = loader.load(OBJECT).unwrap();
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
        let limits: Array<_, Defence> = ebpf.take_map("defences").unwrap().try_into().unwrap();
        let defences = Defences::take(|name| ebpf.take_map(name), &limits).unwrap();
        let mut plane = Self { ebpf, defences, limits };
        plane.write_service();
        Some(plane)
    }

    fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap()
    }

    fn set<V: Pod>(&mut self, map: &str, slot: u32, value: V) {
        Array::<_, V>::try_from(self.map(map)).unwrap().set(slot, value, 0).unwrap();
    }

    fn write_service(&mut self) {
        self.set("settings", 0, Config { version: CONTRACT_VERSION, key: 7, ..Config::default() });
        self.set_flags(0);
        let (destination_mac, source_mac) = (SERVER_MAC, LOCAL_MAC);
        self.set_server(Server { ifindex: 1, destination_mac, source_mac, ..Server::default() });
        let mut table = Array::<MapData, Block>::create(1, 1 << 12).unwrap();
        let mut slots = [0; BLOCK_SLOTS];
        slots[..2].fill(1);
        table.set(0, Block { slots }, 0).unwrap();
        let tables: Result<ArrayOfMaps<_, Array<MapData, Block>>, _> = self.map("tables").try_into();
        tables.unwrap().set(1, &table, 0).unwrap();
        for (vip, address) in [(1, VIP_V4), (2, VIP_V6)] {
            let address: IpAddr = address.parse().unwrap();
            let family = if address.is_ipv4() { 4 } else { 6 };
            self.set("vips", vip, Vip { service: SERVICE, family, address: words(address) });
            for protocol in [UDP, TCP] {
                self.write_endpoint(address, protocol, vip);
            }
        }
    }

    /// Sets the next hop of the server.
    pub(crate) fn set_server(&mut self, hop: Server) {
        self.set("servers", 1, Server { id: 200, takes: TAKES_NEW, mtu: 1500, ..hop });
    }

    /// Attaches the program to an interface of this thread's network namespace.
    pub(crate) fn attach(&mut self, interface: &str) {
        let program: &mut Xdp = self.ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
        program.attach(interface, XdpMode::Skb).unwrap();
    }

    fn write_endpoint(&mut self, address: IpAddr, protocol: u8, vip: u32) {
        let (port, kind, words) = (PORT.to_be(), ENDPOINT_VIP, words(address));
        let rest = u64::from(port) | u64::from(protocol) << 16 | u64::from(kind) << 24;
        let hash = endpoint_hash(address, rest);
        if address.is_ipv4() {
            let mut map: Array<_, BucketV4> = self.map("endpoints_v4").try_into().unwrap();
            let position = hash as u32 % BUCKETS_V4;
            let mut bucket = map.get(&position, 0).unwrap();
            let free = bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap();
            *free = EndpointV4 { address: words[0], port, protocol, kind, a: SERVICE, b: vip };
            map.set(position, bucket, 0).unwrap();
        } else {
            let mut map: Array<_, BucketV6> = self.map("endpoints_v6").try_into().unwrap();
            let position = hash as u32 % BUCKETS_V6;
            let mut bucket = map.get(&position, 0).unwrap();
            let free = bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap();
            *free = EndpointV6 { address: words, port, protocol, kind, a: SERVICE, b: vip, reserved: 0 };
            map.set(position, bucket, 0).unwrap();
        }
    }

    fn set_flags(&mut self, flags: u32) {
        let service = Service {
            id: 100,
            flags,
            pool: 1,
            forward: FORWARD_DIRECT,
            next_hop: NEXT_HOP_ROUTE,
            choose_by: CHOOSE_BY_TURN,
            ..Service::default()
        };
        self.set("services", SERVICE, service);
    }

    pub(crate) fn defend(&mut self, defence: &ServiceDefence<'_>) {
        self.defences.write(&mut self.limits, SERVICE, defence).unwrap();
        self.set_flags(defence.flags());
    }

    pub(crate) fn set_dark(&mut self, dark: Option<DarkAddresses<'_>>) {
        let settings = self.ebpf.take_map("settings");
        let mut settings: Array<_, Config> = match settings {
            Some(map) => map.try_into().unwrap(),
            None => unreachable!("a test sets the dark addresses once"),
        };
        self.defences.write_dark(&mut self.limits, &mut settings, dark).unwrap();
    }

    /// Runs the program with a frame, on this CPU.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let program: &Xdp = self.ebpf.program(PROGRAM).unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    pub(crate) fn action(&self, packet: &Packet) -> u32 {
        self.run(&packet.frame()).0
    }

    /// Returns true if the packet was forwarded to the server.
    pub(crate) fn is_forwarded(&self, packet: &Packet) -> bool {
        let (action, frame) = self.run(&packet.frame());
        assert!([XDP_DROP, XDP_TX].contains(&action), "the action is {action}");
        action == XDP_TX && frame[..6] == SERVER_MAC
    }

    /// Returns the segment that the sender of a packet gets.
    pub(crate) fn response(&self, packet: &Packet) -> Option<Packet> {
        let (action, frame) = self.run(&packet.frame());
        (action == XDP_TX).then(|| Packet::read(&frame))
    }

    /// Number of packets of a service that were counted for a reason.
    fn counted(&self, service: u32, reason: u8) -> u64 {
        let map = self.ebpf.map("service_counts").unwrap();
        let counters: PerCpuArray<_, ServiceCounters> = map.try_into().unwrap();
        counters.get(&service, 0).unwrap().iter().map(|counters| counters.reasons[usize::from(reason)]).sum()
    }

    pub(crate) fn count(&self, reason: u8) -> u64 {
        self.counted(SERVICE, reason)
    }

    /// Number of packets without a service that were counted for a reason.
    pub(crate) fn count_without(&self, reason: u8) -> u64 {
        self.counted(0, reason)
    }
}
