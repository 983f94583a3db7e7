//! Tables of choices of small pools: shares, and the clients that move.

use super::super::tests::{pool, targets};
use super::*;
use crate::hash::of_client;
use crate::pool::{Pool, PoolSetting};
use crate::random::Random;
use crate::snapshot::Request;
use crate::spec::{AdminState, PoolSpec};
use crate::time::Time;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const CLIENT_POLICIES: [Policy; 2] = [Policy::Hash, Policy::Maglev { table: Policy::MAGLEV_TABLE }];

fn running(spec: &PoolSpec) -> Pool {
    let setting = PoolSetting { workers: 1, key: 1, first_id: 0 };
    Pool::new(spec, &targets(spec), setting, Time::ZERO)
}

fn table(pool: &mut Pool) -> PoolTable {
    let snapshot = pool.snapshot().expect("the pool changed");
    PoolTable::derive(pool.spec(), &snapshot)
}

fn derive(spec: &PoolSpec) -> (PoolTable, ChoiceTable) {
    let table = table(&mut running(spec));
    let choices = ChoiceTable::derive(&table);
    (table, choices)
}

fn with_policy(servers: &str, policy: Policy) -> PoolSpec {
    PoolSpec { policy, ..pool("web", servers) }
}

/// Returns the names of the servers that the first turns pick.
fn turns(pool: &PoolTable, count: u64) -> String {
    let choices = ChoiceTable::derive(pool);
    let name = |turn| choices.pick(pool, turn).map_or("-", |id| &*pool.row(id).unwrap().name).to_owned();
    (0..count).map(name).collect::<Vec<_>>().join(" ")
}

fn slots_of(choices: &ChoiceTable) -> BTreeMap<ServerId, usize> {
    let mut counts = BTreeMap::new();
    choices.slots().iter().for_each(|id| *counts.entry(*id).or_default() += 1);
    counts
}

/// Returns the number of slots of which both servers are in both tables, and differ.
fn moved(before: &ChoiceTable, after: &ChoiceTable) -> usize {
    assert_eq!(before.slots().len(), after.slots().len());
    let servers = |choices: &ChoiceTable| choices.slots().iter().copied().collect::<BTreeSet<_>>();
    let both: BTreeSet<_> = servers(before).intersection(&servers(after)).copied().collect();
    let pairs = before.slots().iter().zip(after.slots());
    pairs.filter(|(before, after)| before != after && both.contains(before) && both.contains(after)).count()
}

#[test]
fn servers_have_turns_in_the_order_of_their_identities_and_by_weight() {
    let check = |servers, policy, expected| {
        let mut pool = running(&with_policy(servers, policy));
        assert_eq!(turns(&table(&mut pool), 6), expected, "{servers}");
    };
    check("c a b", Policy::RoundRobin, "c a b c a b");
    check("c*9 a/2 b", Policy::RoundRobin, "c b c b c b");
    check("a*2 b", Policy::Weighted, "a b a a b a");
    check("a*0 b*0", Policy::Weighted, "- - - - - -");
    check("a", Policy::RoundRobin, "a a a a a a");
}

#[test]
fn a_server_in_slow_start_has_few_turns() {
    let mut spec = pool("web", "a b");
    spec.slow_start = Some(Duration::from_secs(16));
    let mut pool = running(&spec);
    spec.servers.push(super::super::tests::pool("web", "x x c").servers.remove(2));
    pool.apply(&spec, &targets(&spec), Time::ZERO);
    let at = |pool: &mut Pool, seconds| {
        pool.on_time(Time::ZERO + Duration::from_secs(seconds));
        let choices = ChoiceTable::derive(&table(pool));
        let counts: Vec<usize> = slots_of(&choices).into_values().collect();
        assert_eq!(counts.len(), 3, "every server has turns");
        counts[2] as f64 / counts[0] as f64
    };
    assert!(at(&mut pool, 1) < 0.2);
    let half = at(&mut pool, 8);
    assert!((0.4..0.7).contains(&half), "{half}");
    assert!((at(&mut pool, 100) - 1.0).abs() < 1e-9);
}

#[test]
fn the_slots_of_hash_and_maglev_are_shared_by_weight() {
    for policy in CLIENT_POLICIES {
        let (_, choices) = derive(&with_policy("a*4 b*2 c d e*0", policy));
        assert_eq!(choices.by(), ChooseBy::Client);
        let counts: Vec<usize> = slots_of(&choices).into_values().collect();
        let expected = [32_768, 16_384, 8192, 8192];
        assert_eq!(counts.len(), expected.len(), "a server with the weight 0 has no slot");
        for (count, expected) in counts.iter().zip(expected) {
            assert!(count.abs_diff(expected) <= expected / 20, "{policy:?}: {count} for {expected}");
        }
    }
}

#[test]
fn with_maglev_a_client_gets_the_slot_that_the_policy_of_the_proxy_picks() {
    // The order of the names is the order of the configuration, so both build the same table.
    let spec = with_policy("a b*3 c d", Policy::Maglev { table: 251 });
    let mut pool = running(&spec);
    let snapshot = pool.snapshot().unwrap();
    let table = PoolTable::derive(&spec, &snapshot);
    let choices = ChoiceTable::derive(&table);
    let mut random = Random::seeded(1);
    for number in 0..2000_u32 {
        let client = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let picked = snapshot.pick(&Request::of(client, Time::ZERO), &[], &mut random);
        let picked = picked.map(|choice| choice.server.id).ok();
        assert_eq!(choices.pick(&table, of_client(client)), picked, "{client}");
    }
}

#[test]
fn without_failover_the_clients_of_a_server_that_is_down_get_none() {
    for policy in CLIENT_POLICIES {
        let spec = PoolSpec { failover: Failover::Never, ..with_policy("a b c", policy) };
        let mut pool = running(&spec);
        let before = ChoiceTable::derive(&table(&mut pool));
        pool.set_state(Time::ZERO, ServerId(1), AdminState::Maintenance, None);
        let rows = table(&mut pool);
        let after = ChoiceTable::derive(&rows);
        assert_eq!(before, after, "{policy:?}: the servers keep their slots");
        for number in 0..1000 {
            let slot = after.slot(number);
            assert_eq!(after.pick(&rows, number), slot.filter(|id| *id != ServerId(1)));
        }
    }
}

#[test]
fn a_full_server_stays_a_candidate_and_its_slots_are_spread() {
    for policy in CLIENT_POLICIES {
        let mut spec = with_policy("a b c", policy);
        spec.servers[1].limits.soft = Some(1);
        let mut pool = running(&spec);
        let snapshot = pool.snapshot().unwrap();
        let before = ChoiceTable::derive(&PoolTable::derive(&spec, &snapshot));
        let lease = snapshot.server(ServerId(1)).unwrap().live.occupancy.enter(1).unwrap();
        let rows = PoolTable::derive(&spec, &snapshot);
        let after = ChoiceTable::derive(&rows);
        drop(lease);
        assert_eq!(moved(&before, &after), 0, "{policy:?}: clients of other servers stay");
        let counts: Vec<usize> = slots_of(&after).into_values().collect();
        assert!(counts.len() == 2 && counts[0].abs_diff(counts[1]) < 2000, "{policy:?}: {counts:?}");
    }
}

#[test]
fn a_pool_without_a_server_for_new_clients_has_no_pick() {
    for policy in [Policy::RoundRobin, Policy::Weighted].into_iter().chain(CLIENT_POLICIES) {
        let mut pool = running(&with_policy("a", policy));
        pool.set_state(Time::ZERO, ServerId(0), AdminState::Drain, None);
        let rows = table(&mut pool);
        assert_eq!(ChoiceTable::derive(&rows).pick(&rows, 7), None, "{policy:?}");
    }
}

#[test]
fn a_large_pool_with_the_policy_hash_is_even() {
    let servers: Vec<String> = (0..200).map(|at| format!("s{at}")).collect();
    let (_, choices) = derive(&with_policy(&servers.join(" "), Policy::Hash));
    let counts = slots_of(&choices);
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(counts.len() == 200 && *least > 240 && *most < 420, "{least} to {most} of 328");
}

#[test]
fn the_largest_tables_of_the_plane_have_a_bounded_number_of_slots() {
    // 16 383 servers are the maximum of the plane.
    let server = |at: u32| format!("s{at}*{}", if at == 0 { 65_535 } else { 1 + at % 2 });
    let servers: Vec<String> = (0..16_383).map(server).collect();
    let bounds = [(Policy::RoundRobin, 16_383), (Policy::Weighted, 32_767), (Policy::Hash, 65_537)];
    for (policy, most) in bounds.into_iter().chain([(CLIENT_POLICIES[1], Policy::MAGLEV_TABLE as usize)]) {
        let (_, choices) = derive(&with_policy(&servers.join(" "), policy));
        assert!(choices.slots().len() <= most, "{policy:?}: {} slots", choices.slots().len());
        let heaviest = slots_of(&choices)[&ServerId(0)];
        assert!(policy == Policy::RoundRobin || heaviest > 4000, "{policy:?}: {heaviest} slots");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn only_the_slots_of_a_server_that_leaves_or_comes_change(
        weights in proptest::collection::vec(1_u32..5, 2..12),
        leaver in any::<proptest::sample::Index>(),
    ) {
        let mut spec = with_policy("x", Policy::Hash);
        let servers: Vec<String> =
            weights.iter().enumerate().map(|(at, weight)| format!("s{at}*{weight}")).collect();
        spec.servers = pool("web", &servers.join(" ")).servers;
        let mut running = running(&spec);
        let all = ChoiceTable::derive(&table(&mut running));
        let gone = leaver.index(weights.len());
        spec.servers.remove(gone);
        running.apply(&spec, &targets(&spec), Time::ZERO);
        let fewer = ChoiceTable::derive(&table(&mut running));
        for (before, after) in all.slots().iter().zip(fewer.slots()) {
            prop_assert!(before == after || *before == ServerId(gone as u32));
        }
    }

    #[test]
    fn with_maglev_few_other_slots_change(count in 3_usize..40, leaver in any::<proptest::sample::Index>()) {
        let servers: Vec<String> = (0..count).map(|at| format!("s{at}")).collect();
        let mut spec = with_policy(&servers.join(" "), Policy::Maglev { table: Policy::MAGLEV_TABLE });
        let mut running = running(&spec);
        let before = ChoiceTable::derive(&table(&mut running));
        spec.servers.remove(leaver.index(count));
        running.apply(&spec, &targets(&spec), Time::ZERO);
        let after = ChoiceTable::derive(&table(&mut running));
        prop_assert!(moved(&before, &after) <= before.slots().len() / 50, "{}", moved(&before, &after));
    }
}
