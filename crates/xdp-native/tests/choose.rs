//! The program and `evener_core` compute the same hashes and choose the same servers.

use evener_core::pool::{Pool, PoolSetting};
use evener_core::random::Random;
use evener_core::snapshot::{Request, Snapshot, Takes};
use evener_core::spec::{AdminState, Failover, Policy, PoolSpec, ServerSpec};
use evener_core::table::{ChoiceTable, PoolTable};
use evener_core::{Endpoint, ServerId, Time, hash};
use evener_xdp_native::{Block, Choices, hash_client_v4, hash_client_v6};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Numbers that look random (splitmix64), from a seed.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Returns the hash of a client as the program computes it.
fn hash_of_program(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(address) => hash_client_v4(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let word = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
            hash_client_v6([word(0), word(4), word(8), word(12)])
        }
    }
}

fn client(next: &mut impl FnMut() -> u64) -> IpAddr {
    if next().is_multiple_of(2) {
        IpAddr::V4(Ipv4Addr::from_bits(next() as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(u128::from(next()) << 64 | u128::from(next())))
    }
}

/// A pool in core, and the table and the servers as the program sees them.
struct Chosen {
    snapshot: Snapshot,
    pool: PoolTable,
    choices: ChoiceTable,
    blocks: Vec<Block>,
    /// Identities of the servers by position; position 0 means none.
    ids: Vec<Option<ServerId>>,
    takes: Vec<u8>,
}

impl Chosen {
    /// Makes a pool of 1 to 300 servers with random weights, tiers and states. One in `full_share` servers is full.
    fn random(
        (policy, failover): (Policy, Failover),
        full_share: u64,
        next: &mut impl FnMut() -> u64,
    ) -> Self {
        // Few servers are as likely as many.
        let count = 1 + next() % [3, 12, 60, 300][next() as usize % 4];
        let server = |at: u64| {
            let endpoint: Endpoint =
                format!("10.{}.{}.1:80", at / 256, at % 256).parse().expect("an endpoint");
            let mut server = ServerSpec::new(endpoint);
            // The order of the names is the order of the configuration, so both build the same Maglev table.
            server.name = format!("s{at:03}").into();
            server.weight = [1, 1, 1, 3, 100, 0, 65_535][next() as usize % 7];
            server.tier = [1, 1, 1, 2][next() as usize % 4];
            server.limits.soft = Some(1);
            server
        };
        let mut spec = PoolSpec::new("web", (0..count).map(server).collect());
        (spec.policy, spec.failover) = (policy, failover);
        let targets: Vec<_> = spec.servers.iter().filter_map(|server| server.endpoint.target()).collect();
        let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
        let mut running = Pool::new(&spec, &targets, setting, Time::ZERO);
        // In one pool of five, no server takes new clients.
        let ready = [16, 6, 3, 1, 0][next() as usize % 5];
        for id in 0..count as u32 {
            let state = match next() % 18 {
                number if number < ready + 2 => AdminState::Ready,
                number if number % 2 == 0 => AdminState::Drain,
                _ => AdminState::Maintenance,
            };
            running.set_state(Time::ZERO, ServerId(id), state, None);
        }
        let snapshot = running.snapshot().expect("a new pool");
        let mut leases = Vec::new();
        for server in snapshot.servers() {
            if next().is_multiple_of(full_share) {
                leases.extend(server.live.occupancy.enter(1));
            }
        }
        // The servers stay full until the end of the test.
        std::mem::forget(leases);
        let pool = PoolTable::derive(&spec, &snapshot);
        let choices = ChoiceTable::derive(&pool);
        Self::new(snapshot, pool, choices)
    }

    /// Lays out the table as the loader does, with positions that are not the identities.
    fn new(snapshot: Snapshot, pool: PoolTable, choices: ChoiceTable) -> Self {
        let mut ids = vec![None];
        let mut takes = vec![0];
        let mut positions = HashMap::new();
        let rows: BTreeMap<_, _> = pool.rows().collect();
        for (&id, row) in rows.iter().rev() {
            positions.insert(id, ids.len() as u32);
            ids.push(Some(id));
            takes.push(match row.role.takes {
                Takes::None => 0,
                Takes::Known => 1,
                Takes::New => 2,
            });
        }
        let slots = choices.slots();
        let mut words = vec![slots.len() as u32];
        words.extend(slots.iter().map(|id| positions[id]));
        words.resize(words.len().next_multiple_of(16), 0);
        let blocks = words.chunks_exact(16).map(|block| block.try_into().expect("16 slots")).collect();
        Self { snapshot, pool, choices, blocks, ids, takes }
    }
}

/// One in so many servers is full.
const FULL_SHARE: u64 = 8;
/// No server is full.
const NONE_FULL: u64 = u64::MAX;

/// Compares the choices for a million clients in many pools with failover. `check` gets a pool, a client and a turn.
fn compare_choices(policies: &[Policy], full_share: u64, seed: u64, check: impl Fn(&Chosen, IpAddr, u64)) {
    let policies: Vec<_> = policies.iter().map(|policy| (*policy, Failover::Next)).collect();
    compare(&policies, full_share, seed, check);
}

fn compare(
    policies: &[(Policy, Failover)],
    full_share: u64,
    seed: u64,
    check: impl Fn(&Chosen, IpAddr, u64),
) {
    const POOLS: u64 = 50;
    let mut next = numbers(seed);
    for number in 0..POOLS {
        let chosen = Chosen::random(policies[number as usize % policies.len()], full_share, &mut next);
        for _ in 0..1_000_000 / POOLS {
            let (client, turn) = (client(&mut next), next());
            check(&chosen, client, turn);
        }
    }
}

const SMALL_MAGLEV: Policy = Policy::Maglev { table: 4093 };
const MAGLEV: Policy = Policy::Maglev { table: Policy::MAGLEV_TABLE };

#[test]
fn the_program_and_core_choose_the_same_server_for_a_million_clients() {
    const SEED: u64 = 140;
    compare_choices(&[MAGLEV, Policy::Hash, SMALL_MAGLEV], FULL_SHARE, SEED, |chosen, client, _| {
        let by_program = Choices::new(&chosen.blocks, &chosen.takes).of_client(hash_of_program(client));
        let by_program = chosen.ids[by_program as usize];
        let by_core = chosen.choices.pick(&chosen.pool, hash::of_client(client));
        assert_eq!(by_program, by_core, "the server of the table for {client}, seed {SEED}");
    });
}

#[test]
fn the_program_and_core_choose_the_same_server_for_a_million_turns() {
    const SEED: u64 = 141;
    compare_choices(&[Policy::RoundRobin, Policy::Weighted], FULL_SHARE, SEED, |chosen, client, turn| {
        let by_program = Choices::new(&chosen.blocks, &chosen.takes).in_turn(turn);
        let by_program = chosen.ids[by_program as usize];
        let by_core = chosen.choices.pick(&chosen.pool, turn);
        assert_eq!(by_program, by_core, "the server of turn {turn} for {client}, seed {SEED}");
    });
}

#[test]
fn without_failover_the_program_refuses_the_clients_that_the_proxy_refuses() {
    const SEED: u64 = 143;
    let refused = Cell::new(0_u64);
    let policies = [MAGLEV, SMALL_MAGLEV, Policy::Hash].map(|policy| (policy, Failover::Never));
    compare(&policies, FULL_SHARE, SEED, |chosen, client, _| {
        let hash = hash_of_program(client);
        let by_program = Choices::new(&chosen.blocks, &chosen.takes).of_client_without_failover(hash);
        let by_program = chosen.ids[by_program as usize];
        let by_core = chosen.choices.pick(&chosen.pool, hash::of_client(client));
        assert_eq!(by_program, by_core, "the server of the table for {client}, seed {SEED}");
        refused.set(refused.get() + u64::from(by_program.is_none()));
    });
    assert!((1..1_000_000).contains(&refused.get()), "some clients are refused: {}", refused.get());
}

#[test]
fn without_failover_the_program_chooses_the_server_that_the_proxy_chooses_with_maglev() {
    const SEED: u64 = 144;
    let policies = [MAGLEV, SMALL_MAGLEV].map(|policy| (policy, Failover::Never));
    compare(&policies, FULL_SHARE, SEED, |chosen, client, _| {
        let hash = hash_of_program(client);
        let by_program = Choices::new(&chosen.blocks, &chosen.takes).of_client_without_failover(hash);
        let picked = chosen.snapshot.pick(&Request::of(client, Time::ZERO), &[], &mut Random::seeded(1));
        let by_proxy = picked.map(|choice| choice.server.id).ok();
        assert_eq!(chosen.ids[by_program as usize], by_proxy, "the server for {client}, seed {SEED}");
    });
}

/// In place of a full server, the proxy tries slots by the client and a table of choices has one substitute for all
/// clients of the slot, so the pools of this test have no full servers.
#[test]
fn the_program_chooses_the_server_that_the_proxy_chooses_with_maglev() {
    const SEED: u64 = 142;
    compare_choices(&[MAGLEV, SMALL_MAGLEV], NONE_FULL, SEED, |chosen, client, _| {
        let by_program = Choices::new(&chosen.blocks, &chosen.takes).of_client(hash_of_program(client));
        let picked = chosen.snapshot.pick(&Request::of(client, Time::ZERO), &[], &mut Random::seeded(1));
        let by_proxy = picked.map(|choice| choice.server.id).ok();
        let by_slot = chosen.choices.slot(hash::of_client(client));
        assert_eq!(
            chosen.ids[by_program as usize], by_proxy,
            "the server for {client}, slot {by_slot:?}, seed {SEED}"
        );
    });
}

#[test]
fn a_million_clients_have_the_hash_of_core() {
    let mut next = numbers(14);
    for _ in 0..500_000 {
        let v4 = Ipv4Addr::from_bits(next() as u32);
        let network = u32::from_ne_bytes(v4.octets());
        assert_eq!(hash_client_v4(network), hash::of_client(IpAddr::V4(v4)), "{v4}");
        let v6 = Ipv6Addr::from_bits(u128::from(next()) << 64 | u128::from(next()));
        let octets = v6.octets();
        let word = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
        let network = [word(0), word(4), word(8), word(12)];
        assert_eq!(hash_client_v6(network), hash::of_client(IpAddr::V6(v6)), "{v6}");
    }
}
