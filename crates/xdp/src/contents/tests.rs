//! Tests of the writer with a model of the maps.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use crate::contract::{FORWARD_NAT, TAKES_KNOWN, TAKES_NEW, TAKES_NONE};
use crate::endpoints::Family;
use crate::slots::GRACE;
use evener_core::Random;
use std::collections::BTreeMap;

/// A model of the maps, as the program reads them.
#[derive(Clone, Debug, Default)]
struct Model {
    next_id: u32,
    identities: BTreeMap<(Kind, u32), Identity>,
    services: HashMap<u32, Service>,
    vips: HashMap<u32, Vip>,
    servers: HashMap<u32, Server>,
    returns: HashMap<u32, Returns>,
    tables: HashMap<u32, Arc<[u32]>>,
    tables_before: HashMap<u32, Arc<[u32]>>,
    endpoints: HashMap<EndpointKey, (Position, EndpointValue)>,
    defences: HashMap<u32, WantedDefence>,
    quic: BTreeMap<QuicName, SlotAndId>,
    writes: Vec<Write>,
    /// The number of writes after which the kernel refuses each write.
    fails_after: Option<usize>,
}

impl MapWriter for Model {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        if self.fails_after.is_some_and(|most| self.writes.len() >= most) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match write.clone() {
            Write::NextId(id) => self.next_id = id,
            Write::Identity(kind, slot, Some(identity)) => {
                self.identities.insert((kind, slot), identity);
            }
            Write::Identity(kind, slot, None) => drop(self.identities.remove(&(kind, slot))),
            Write::Service(slot, service) => drop(self.services.insert(slot, service)),
            Write::Vip(slot, vip) => drop(self.vips.insert(slot, vip)),
            Write::Server(slot, server) => drop(self.servers.insert(slot, server)),
            Write::Returns(position, entry) => drop(self.returns.insert(position, entry)),
            Write::Defence(slot, defence) => drop(self.defences.insert(slot, defence)),
            Write::Quic(key, Some(server)) => drop(self.quic.insert(key, server)),
            Write::Quic(key, None) => drop(self.quic.remove(&key)),
            Write::Table(pool, slots) => drop(self.tables.insert(pool, slots)),
            Write::KeepTable(pool) => {
                let table = self.tables[&pool].clone();
                self.tables_before.insert(pool, table);
            }
            Write::NoTable(pool) => drop(self.tables.remove(&pool)),
            Write::NoTableBefore(pool) => drop(self.tables_before.remove(&pool)),
            Write::NewEndpoint(key, position, value) => {
                let taken = self.endpoints.values().any(|(at, _)| *at == position);
                let same_array = |(other, (at, _)): (&EndpointKey, &(Position, _))| {
                    *at == position && other.family() == key.family()
                };
                assert!(!taken || !self.endpoints.iter().any(same_array), "{key:?} overwrites an entry");
                self.endpoints.insert(key, (position, value));
            }
            Write::Endpoint(key, position, value) => {
                let (at, old) = self.endpoints.get_mut(&key).unwrap();
                assert_eq!(*at, position);
                *old = value;
            }
            Write::NoEndpoint(key, _) => drop(self.endpoints.remove(&key)),
        }
        self.writes.push(write.clone());
        self.check();
        Ok(())
    }
}

impl Model {
    /// Checks what a packet could meet now.
    fn check(&self) {
        for (key, (_, [a, b])) in &self.endpoints {
            if key.kind == crate::contract::ENDPOINT_VIP {
                let (service, vip) = (&self.services[a], &self.vips[b]);
                assert_ne!((service.id, vip.family), (0, 0), "{key:?} leads to nothing");
                self.tables[&service.pool].iter().for_each(|server| {
                    let server = &self.servers[server];
                    assert_ne!(server.id, 0, "the table of {key:?} has a free slot");
                    assert_eq!(server.group, service.group, "associations of {key:?} are not stale");
                    assert_ne!(server.group, 0, "{key:?} has the group of its pool");
                });
                continue;
            }
            if key.kind == crate::contract::ENDPOINT_LOCAL {
                continue;
            }
            let mut position = *a;
            for _ in 0..SHARED_MAX {
                if position == 0 {
                    break;
                }
                let entry = &self.returns[&position];
                assert_ne!(self.servers[&entry.server].id, 0, "{key:?} returns from a free slot");
                assert_ne!(self.vips[&entry.vip].family, 0, "{key:?} returns to a free slot");
                position = entry.next;
            }
            assert_eq!(position, 0, "the chain of {key:?} has an end");
        }
    }

    fn server_at(&self, address: &str) -> Option<(u32, Server)> {
        let address: IpAddr = address.parse().unwrap();
        let found = self.servers.iter().find(|(_, server)| {
            server.id != 0 && crate::endpoints::ip_of(server.family, server.address) == address
        });
        found.map(|(slot, server)| (*slot, *server))
    }

    /// Returns what another process finds in the maps.
    fn found(&self) -> Found {
        let chain = |(key, (_, [a, _])): (&EndpointKey, &(Position, EndpointValue))| {
            let (mut chain, mut position) = (Vec::new(), *a);
            while position != 0 {
                chain.push((position, self.returns[&position]));
                position = self.returns[&position].next;
            }
            (*key, chain)
        };
        let is_real = |key: &EndpointKey| key.kind == crate::contract::ENDPOINT_REAL;
        let entries = |family| {
            let of_family = self.endpoints.iter().filter(move |(key, _)| key.family() == family);
            of_family.map(|(key, (position, value))| (position.index(), key, *value))
        };
        Found {
            next_id: self.next_id,
            identities: self.identities.iter().map(|((kind, slot), id)| (*kind, *slot, *id)).collect(),
            services: self.services.clone().into_iter().filter(|(_, one)| one.id != 0).collect(),
            vips: self.vips.clone().into_iter().filter(|(_, one)| one.family != 0).collect(),
            servers: self.servers.clone().into_iter().filter(|(_, one)| one.id != 0).collect(),
            tables: self.tables.clone(),
            tables_before: self.tables_before.keys().copied().collect(),
            quic: self.quic.clone(),
            endpoints: Endpoints::taken_over(
                entries(Family::V4).map(|(index, key, value)| (index, key.entry_v4(value))),
                entries(Family::V6).map(|(index, key, value)| (index, key.entry_v6(value))),
            ),
            chains: self.endpoints.iter().filter(|(key, _)| is_real(key)).map(chain).collect(),
        }
    }
}

fn server(id: u32, address: &str) -> WantedServer {
    let (identity, address) = (Identity::of(&["p", address]), address.parse::<SocketAddr>().unwrap());
    let (address, port) = (address.ip(), address.port());
    WantedServer {
        id: ServerId(id),
        identity,
        address,
        port,
        takes: TAKES_NEW,
        quic_id: None,
        is_routed: true,
    }
}

/// Returns services `name=vip:port,...` that use one pool of servers.
fn wanted(services: &[&str], servers: &[WantedServer]) -> Wanted {
    let key: PoolKey = ("p".into(), Some(Family::V4));
    let slots = (0..servers.len()).filter(|&at| servers[at].takes == TAKES_NEW).collect();
    let identity = Identity::of(&["pool", "p"]);
    let pool = WantedPool { identity, servers: servers.to_vec(), slots, by_client: true };
    let service = |text: &&str| {
        let (name, listen) = text.split_once('=').unwrap();
        let mut addresses: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
        for address in listen.split(',') {
            let address: SocketAddr = address.parse().unwrap();
            addresses.entry(address.ip()).or_default().push(address.port());
        }
        WantedService {
            name: name.into(),
            identity: Identity::of(&["service", name]),
            protocol: 17,
            settings: Service { forward: FORWARD_NAT, ..Service::default() },
            defence: WantedDefence::default(),
            pool: key.clone(),
            addresses,
        }
    };
    Wanted {
        services: services.iter().map(service).collect(),
        pools: [(key.clone(), pool)].into(),
        local: BTreeSet::new(),
    }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

#[test]
fn the_same_contents_are_not_written_again() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:53"), server(1, "10.0.0.2:53")];
    let services = ["a=192.0.2.1:53,192.0.2.2:53"];
    contents.apply(wanted(&services, &all), &Hops::new(), at(0), &mut model).unwrap();
    assert_eq!((model.endpoints.len(), model.tables.len()), (4, 1));
    model.writes.clear();
    contents.apply(wanted(&services, &all), &Hops::new(), at(1), &mut model).unwrap();
    assert!(model.writes.iter().all(|write| matches!(write, Write::NextId(_))), "{:?}", model.writes);
}

#[test]
fn a_server_that_is_down_gets_no_flows_after_the_table_lost_it() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let mut all = [server(0, "10.0.0.1:53"), server(1, "10.0.0.2:53")];
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(0), &mut model).unwrap();
    let (slot, before) = model.server_at("10.0.0.1").unwrap();
    all[0].takes = TAKES_NONE;
    model.writes.clear();
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(1), &mut model).unwrap();
    let table = model.writes.iter().position(|write| matches!(write, Write::Table(..))).unwrap();
    let server = model.writes.iter().position(|write| matches!(write, Write::Server(..))).unwrap();
    assert!(table < server, "{:?}", model.writes);
    assert_eq!(model.servers[&slot], Server { takes: TAKES_NONE, ..before });
    assert_eq!(model.tables_before.len(), 1, "packets in mid-flow have a second chance");
    contents.on_time(&Hops::new(), at(1) + SECOND_CHANCE, &mut model).unwrap();
    assert!(model.tables_before.is_empty());
}

#[test]
fn a_removed_server_returns_responses_in_flight_before_its_slot_is_free() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:53"), server(1, "10.0.0.2:53")];
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(0), &mut model).unwrap();
    contents.apply(wanted(&["a=192.0.2.1:53"], &all[..1]), &Hops::new(), at(1), &mut model).unwrap();
    let (slot, gone) = model.server_at("10.0.0.2").unwrap();
    assert_eq!((gone.takes, model.endpoints.len()), (TAKES_NONE, 3));
    assert_eq!(contents.deadline(), at(1) + LEAVE);
    contents.on_time(&Hops::new(), at(1) + LEAVE, &mut model).unwrap();
    assert_eq!((model.servers[&slot].id, model.endpoints.len()), (0, 2));
    // It comes back as another server: its old flows were chosen anew.
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(20), &mut model).unwrap();
    let (new_slot, back) = model.server_at("10.0.0.2").unwrap();
    assert!(new_slot != slot && back.id != gone.id, "{new_slot} {}", back.id);
}

#[test]
fn servers_keep_their_slots_and_ids_when_another_process_takes_over() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:53"), server(1, "10.0.0.2:53"), server(2, "10.0.0.3:53")];
    let services = ["a=192.0.2.1:53,192.0.2.1:54", "b=192.0.2.2:53"];
    contents.apply(wanted(&services, &all), &Hops::new(), at(0), &mut model).unwrap();
    let before = model.server_at("10.0.0.3");
    // The other process has another numbering of servers and another order.
    let mut contents = Contents::taken_over(model.found(), at(0));
    let reordered = [server(7, "10.0.0.3:53"), server(8, "10.0.0.1:53"), server(9, "10.0.0.4:53")];
    contents.apply(wanted(&services, &reordered), &Hops::new(), at(1), &mut model).unwrap();
    assert_eq!(model.server_at("10.0.0.3"), before);
    assert_eq!(contents.server_slots().count(), 3);
    model.writes.clear();
    let mut contents = Contents::taken_over(model.found(), at(1));
    contents.apply(wanted(&services, &reordered), &Hops::new(), at(2), &mut model).unwrap();
    let wrote = model.writes.iter().any(|write| !matches!(write, Write::NextId(_)));
    // The order of return entries of the server that leaves may differ.
    assert!(!wrote || model.writes.len() < 8, "{:?}", model.writes);
}

#[test]
fn an_address_passes_from_one_service_to_another() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:0")];
    let hops = Hops::new();
    contents.apply(wanted(&["a=192.0.2.1:53", "b=192.0.2.2:53"], &all), &hops, at(0), &mut model).unwrap();
    contents.apply(wanted(&["b=192.0.2.1:53", "a=192.0.2.2:53"], &all), &hops, at(1), &mut model).unwrap();
    contents.apply(wanted(&["b=192.0.2.1:53"], &all), &hops, at(2), &mut model).unwrap();
    assert_eq!(model.endpoints.len(), 2, "one address of clients and one of a server");
}

#[test]
fn contents_without_room_change_nothing() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:53")];
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(0), &mut model).unwrap();
    let before = model.writes.len();
    let many: Vec<String> = (1..=9).map(|at| format!("192.0.2.{at}:53")).collect();
    let shared = wanted(&[&format!("a={}", many.join(","))], &all);
    let twice = wanted(&["a=192.0.2.1:53", "b=192.0.2.1:53"], &all);
    let servers: Vec<WantedServer> =
        (0..SERVERS_MAX).map(|at| server(at, &format!("10.1.{}.{}:53", at >> 8, at & 255))).collect();
    let full = wanted(&["a=192.0.2.1:53"], &servers);
    for (wrong, expected) in [
        (shared, "server 10.0.0.1:53 is behind more than 8 virtual addresses"),
        (twice, "192.0.2.1:53 is the address of two XDP services"),
        (full, "too many servers: the XDP plane has room for 16383"),
    ] {
        assert!(contents.check(&wrong, at(1)).unwrap_err().to_string().starts_with(expected));
        let refused = contents.apply(wrong, &Hops::new(), at(1), &mut model).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}");
    }
    assert_eq!(model.writes.len(), before);
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(2), &mut model).unwrap();
    assert_eq!(model.writes.len(), before + 1, "the next id only");
}

#[test]
fn addresses_of_this_machine_follow_its_interfaces() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let local = |text: &[&str]| text.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    let all = [server(0, "10.0.0.1:53")];
    let first = Wanted { local: local(&["10.0.0.9", "fd00::9"]), ..wanted(&["a=192.0.2.1:53"], &all) };
    contents.apply(first, &Hops::new(), at(0), &mut model).unwrap();
    let written = |model: &Model| {
        let local = model.endpoints.keys().filter(|key| key.kind == crate::contract::ENDPOINT_LOCAL);
        local.map(|key| key.address.ip()).collect::<BTreeSet<IpAddr>>()
    };
    assert_eq!(written(&model), local(&["10.0.0.9", "fd00::9"]));
    contents.set_local(local(&["10.0.0.8"]), &Hops::new(), at(1), &mut model).unwrap();
    assert_eq!(written(&model), local(&["10.0.0.8"]));
}

#[test]
fn next_hops_reach_all_servers_with_the_address() {
    let (mut contents, mut model) = (Contents::default(), Model::default());
    let all = [server(0, "10.0.0.1:53"), server(1, "10.0.0.1:54"), server(2, "10.0.0.2:53")];
    contents.apply(wanted(&["a=192.0.2.1:53"], &all), &Hops::new(), at(0), &mut model).unwrap();
    let hop = Hop { ifindex: 3, mtu: 1500, destination: [2; 6], source: [4; 6] };
    let hops: Hops = [("10.0.0.1".parse().unwrap(), hop)].into();
    model.writes.clear();
    contents.set_hops(&hops, &mut model).unwrap();
    assert_eq!(model.writes.len(), 4, "the interface comes after the addresses: {:?}", model.writes);
    contents.set_hops(&hops, &mut model).unwrap();
    assert_eq!(model.writes.len(), 4);
    assert_eq!(contents.hops(), hops);
}

/// Random changes of services, servers and what the servers take, with processes that end in the middle of a change.
#[test]
fn packets_meet_consistent_contents_at_each_moment_of_random_changes() {
    for seed in 0..5 {
        let mut random = Random::seeded(seed);
        let (mut contents, mut model) = (Contents::default(), Model::default());
        let mut now = at(0);
        for step in 0..150 {
            let mut drawn = |most: u64| random.bits() % most;
            let takes = |word: u64| [TAKES_NEW, TAKES_NEW, TAKES_KNOWN, TAKES_NONE][word as usize % 4];
            let servers: Vec<WantedServer> = (0..12_u32)
                .filter(|_| drawn(3) > 0)
                .map(|id| format!("10.0.0.{}:{}", id % 8 + 1, [53, 0][id as usize / 8]))
                .enumerate()
                .map(|(at, address)| server(at as u32, &address))
                .collect();
            let servers: Vec<WantedServer> =
                servers.into_iter().map(|server| WantedServer { takes: takes(drawn(4)), ..server }).collect();
            let names = ["a", "b", "c"];
            let services: Vec<String> = (1..=3)
                .filter(|_| drawn(4) > 0)
                .map(|address| format!("{}=192.0.2.{address}:53", names[(address as usize + step) % 3]))
                .collect();
            let services: Vec<&str> = services.iter().map(String::as_str).collect();
            now += Duration::from_secs(drawn(30));
            let is_killed = drawn(5) == 0;
            model.writes.clear();
            model.fails_after = is_killed.then(|| drawn(25) as usize);
            let applied = contents.apply(wanted(&services, &servers), &Hops::new(), now, &mut model);
            model.fails_after = None;
            if is_killed {
                contents = Contents::taken_over(model.found(), now);
                contents.apply(wanted(&services, &servers), &Hops::new(), now, &mut model).unwrap();
            } else {
                applied.unwrap();
            }
            contents.on_time(&Hops::new(), now, &mut model).unwrap();
            let vips = model.endpoints.keys().filter(|key| key.kind == crate::contract::ENDPOINT_VIP);
            assert_eq!(vips.count(), services.len(), "seed {seed}, step {step}");
        }
        // Everything is removed in the end.
        contents.apply(Wanted::default(), &Hops::new(), now, &mut model).unwrap();
        contents.on_time(&Hops::new(), now + LEAVE + GRACE, &mut model).unwrap();
        assert!(model.endpoints.is_empty() && model.identities.is_empty() && model.tables.is_empty());
        assert!(model.servers.values().all(|server| server.id == 0));
    }
}
