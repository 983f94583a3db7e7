//! The program with maps of services, as a loader would write them.

use crate::packet::{Packet, TCP, UDP};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use evener_xdp::contract::*;
use evener_xdp::object::{OBJECT, PROGRAM};
use std::net::IpAddr;

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const PORT: u16 = 5683;
const BPF_F_INNER_MAP: u32 = 1 << 12;
const HASH_FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const HASH_SECOND: u64 = 0xd6e8_feb8_6659_fd93;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) number: u8,
    pub(crate) client: &'static str,
    pub(crate) vip: &'static str,
    pub(crate) servers: [&'static str; 3],
    pub(crate) router: &'static str,
}

pub(crate) const V4: Family = Family {
    number: 4,
    client: "192.0.2.7",
    vip: "10.0.0.100",
    servers: ["10.1.0.1", "10.1.0.2", "10.1.0.3"],
    router: "10.9.9.9",
};
pub(crate) const V6: Family = Family {
    number: 6,
    client: "2001:db8:7::7",
    vip: "2001:db8::100",
    servers: ["2001:db8:1::1", "2001:db8:1::2", "2001:db8:1::3"],
    router: "2001:db8:9::9",
};
pub(crate) const FAMILIES: [Family; 2] = [V4, V6];

/// Slot of the service, its pool and its virtual address.
pub(crate) const SERVICE: u32 = 1;

pub(crate) fn words(address: &str) -> [u32; 4] {
    match address.parse().unwrap() {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|at| u32::from_ne_bytes(octets[4 * at..4 * at + 4].try_into().unwrap()))
        }
    }
}

pub(crate) fn service() -> Service {
    Service { id: 100, pool: SERVICE, choose_by: CHOOSE_BY_TURN, ..Service::default() }
}

/// Returns true if the process may load programs, which fails a strict run otherwise.
pub(crate) fn may_load() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        println!("skipped: needs CAP_NET_ADMIN, to load a program");
        assert!(std::env::var_os("EVENER_TEST_STRICT").is_none(), "skipped: needs CAP_NET_ADMIN");
    }
    may
}

/// Runs a test for both families with one service (slot 1) that has three servers (slots 1 to 3), as root.
pub(crate) fn for_each_family(service: Service, test: impl Fn(&mut Director, Family)) {
    if !may_load() {
        return;
    }
    for family in FAMILIES {
        let mut director = Director::load();
        director.add_service(SERVICE, service, family.vip, &[PORT, PORT + 1]);
        for (slot, address) in (1..).zip(family.servers) {
            director.add_server(slot, address, 0);
            director.add_return(slot, address, slot, SERVICE);
        }
        director.set_table("tables", SERVICE, &[1, 2, 3]);
        test(&mut director, family);
    }
}

pub(crate) fn request(family: Family, protocol: u8) -> Packet {
    Packet::new(protocol, (family.client, 40000), (family.vip, PORT))
}

/// The loaded program.
pub(crate) struct Director {
    ebpf: Ebpf,
}

impl Director {
    pub(crate) fn load() -> Self {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("flows_v4", 4096).map_max_entries("flows_v6", 4096);
        let mut director = Self { ebpf: loader.load(OBJECT).unwrap() };
        director.set("settings", 0, config(EVENT_ERROR));
        director.program().load().unwrap();
        director
    }

    fn program(&mut self) -> &mut Xdp {
        self.ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap()
    }

    pub(crate) fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap()
    }

    pub(crate) fn set<V: aya::Pod>(&mut self, map: &str, slot: u32, value: V) {
        Array::<_, V>::try_from(self.map(map)).unwrap().set(slot, value, 0).unwrap();
    }

    fn value<V: aya::Pod>(&mut self, map: &str, slot: u32) -> V {
        Array::<_, V>::try_from(self.map(map)).unwrap().get(&slot, 0).unwrap()
    }

    /// Adds a service with ports of UDP and TCP; its virtual address gets the same slot.
    pub(crate) fn add_service(&mut self, slot: u32, service: Service, vip: &str, ports: &[u16]) {
        self.set("services", slot, service);
        let family = if vip.contains(':') { 6 } else { 4 };
        self.set("vips", slot, Vip { service: slot, family, address: words(vip) });
        for port in ports {
            for protocol in [UDP, TCP] {
                self.add_endpoint(vip, *port, protocol, (ENDPOINT_VIP, slot, slot));
            }
        }
    }

    /// Adds a server that takes new clients.
    pub(crate) fn add_server(&mut self, slot: u32, address: &str, port: u16) {
        let family = if address.contains(':') { 6 } else { 4 };
        let server =
            Server { id: 1000 + slot, takes: TAKES_NEW, family, port: port.to_be(), ..Server::default() };
        self.set("servers", slot, Server { address: words(address), ..server });
    }

    pub(crate) fn change_server(&mut self, slot: u32, change: impl FnOnce(&mut Server)) {
        let mut server = self.value("servers", slot);
        change(&mut server);
        self.set("servers", slot, server);
    }

    /// Lets a server send from the ports of services that do not translate ports.
    pub(crate) fn add_return(&mut self, position: u32, address: &str, server: u32, service: u32) {
        self.set("returning", position, Returns { service, vip: service, server, ..Returns::default() });
        for port in [PORT, PORT + 1] {
            for protocol in [UDP, TCP] {
                self.add_endpoint(address, port, protocol, (ENDPOINT_REAL, position, 0));
            }
        }
    }

    pub(crate) fn add_endpoint(
        &mut self,
        address: &str,
        port: u16,
        protocol: u8,
        (kind, a, b): (u8, u32, u32),
    ) {
        let (port, key) = (port.to_be(), words(address));
        let rest = u64::from(port) | u64::from(protocol) << 16 | u64::from(kind) << 24;
        let long = |at: usize| u64::from(key[at]) | u64::from(key[at + 1]) << 32;
        if address.contains(':') {
            let hash = [long(0), long(2), rest].into_iter().fold(0, hash_word).wrapping_mul(HASH_SECOND);
            let entry = EndpointV6 { address: key, port, protocol, kind, a, b, reserved: 0 };
            let mut bucket: BucketV6 = self.value("endpoints_v6", hash as u32 % BUCKETS_V6);
            *bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap() = entry;
            self.set("endpoints_v6", hash as u32 % BUCKETS_V6, bucket);
        } else {
            // The second bucket, because a search begins with the first.
            let hash = hash_word(0, u64::from(key[0]) | rest << 32).wrapping_mul(HASH_SECOND) >> 32;
            let entry = EndpointV4 { address: key[0], port, protocol, kind, a, b };
            let mut bucket: BucketV4 = self.value("endpoints_v4", hash as u32 % BUCKETS_V4);
            *bucket.entries.iter_mut().find(|entry| entry.kind == ENDPOINT_FREE).unwrap() = entry;
            self.set("endpoints_v4", hash as u32 % BUCKETS_V4, bucket);
        }
    }

    /// Writes a table of choices: the number of slots, and the slots.
    pub(crate) fn set_table(&mut self, map: &str, pool: u32, servers: &[u32]) {
        let blocks = (1 + servers.len()).div_ceil(BLOCK_SLOTS) as u32;
        let mut table = Array::<MapData, Block>::create(blocks, BPF_F_INNER_MAP).unwrap();
        let mut all = vec![servers.len() as u32];
        all.extend(servers);
        all.resize(blocks as usize * BLOCK_SLOTS, 0);
        for (at, slots) in (0..).zip(all.chunks(BLOCK_SLOTS)) {
            table.set(at, Block { slots: slots.try_into().unwrap() }, 0).unwrap();
        }
        let tables: Result<ArrayOfMaps<_, Array<MapData, Block>>, _> = self.map(map).try_into();
        tables.unwrap().set(pool, &table, 0).unwrap();
    }

    pub(crate) fn set_level(&mut self, level: u32) {
        self.set("settings", 0, config(level));
    }

    /// Runs the program with a frame. Returns the action, and the frame as the program left it.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let program: &Xdp = self.ebpf.program(PROGRAM).unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Asserts that a packet leaves as another one.
    pub(crate) fn sends(&mut self, packet: &Packet, expected: &Packet) {
        assert_sent(self.run(&packet.frame()), &expected.frame());
    }

    /// Asserts an action without a change of the frame.
    pub(crate) fn leaves(&mut self, frame: &[u8], action: u32) {
        assert_eq!(self.run(frame), (action, frame.to_vec()), "{frame:02x?}");
    }

    /// Returns the position of the server that a request goes to.
    pub(crate) fn server_of(&mut self, packet: &Packet, family: Family) -> usize {
        let (action, out) = self.run(&packet.frame());
        assert_eq!(action, XDP_TX);
        let sent = |server: &&str| packet.returned().to_address(server).frame() == out;
        family.servers.iter().position(sent).expect("the request goes to a server")
    }

    pub(crate) fn count(&mut self, service: u32, reason: u8) -> u64 {
        let counters: PerCpuArray<_, ServiceCounters> = self.map("service_counts").try_into().unwrap();
        counters.get(&service, 0).unwrap().iter().map(|counters| counters.reasons[reason as usize]).sum()
    }

    pub(crate) fn server_counters(&mut self, slot: u32) -> ServerCounters {
        let counters: PerCpuArray<_, ServerCounters> = self.map("server_counts").try_into().unwrap();
        let mut sum = ServerCounters::default();
        for cpu in counters.get(&slot, 0).unwrap().iter() {
            sum.packets_in += cpu.packets_in;
            sum.bytes_in += cpu.bytes_in;
            sum.packets_out += cpu.packets_out;
            sum.bytes_out += cpu.bytes_out;
            sum.flows += cpu.flows;
        }
        sum
    }

    /// Changes all associations.
    pub(crate) fn change_flows(&mut self, family: Family, change: impl Fn(&mut Flow)) {
        if family.number == 4 {
            let mut flows: HashMap<_, FlowKeyV4, Flow> = self.map("flows_v4").try_into().unwrap();
            let entries: Vec<_> = flows.iter().map(Result::unwrap).collect();
            for (key, mut flow) in entries {
                change(&mut flow);
                flows.insert(key, flow, 0).unwrap();
            }
        } else {
            let mut flows: HashMap<_, FlowKeyV6, Flow> = self.map("flows_v6").try_into().unwrap();
            let entries: Vec<_> = flows.iter().map(Result::unwrap).collect();
            for (key, mut flow) in entries {
                change(&mut flow);
                flows.insert(key, flow, 0).unwrap();
            }
        }
    }
}

pub(crate) fn assert_sent((action, out): (u32, Vec<u8>), expected: &[u8]) {
    assert_eq!(action, XDP_TX, "the packet is sent");
    assert_eq!(format!("{out:02x?}"), format!("{expected:02x?}"));
}

fn config(level: u32) -> Config {
    Config { version: CONTRACT_VERSION, event_level: level, events_per_second: 100, ..Config::default() }
}

fn hash_word(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(HASH_FIRST);
    hash ^ hash >> 32
}
