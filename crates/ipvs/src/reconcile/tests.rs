//! Reconciliations with a kernel in memory.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use crate::kernel::{Kernel, fake::FakeKernel};
use std::net::SocketAddr;

const TIMEOUT: Duration = Duration::from_secs(60);

fn service(number: u8) -> ServiceKey {
    ServiceKey::tcp(SocketAddr::from(([192, 0, 2, number], 80)))
}

fn destination(number: u16, weight: u32) -> Destination {
    let address = SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 80));
    Destination::new(address, Forwarding::Nat).weight(weight)
}

/// Returns a wanted table: numbers of services, each with numbers and weights of destinations.
fn wanted(services: &[(u8, &[(u16, u32)])]) -> Wanted {
    let service = |(number, destinations): &(u8, &[(u16, u32)])| {
        let mut wanted = WantedService::new(Service::new(service(*number)), TIMEOUT);
        let destinations = destinations.iter().map(|(number, weight)| destination(*number, *weight));
        wanted.destinations = destinations.map(|one| (one.key, one)).collect();
        (wanted.service.key, wanted)
    };
    services.iter().map(service).collect()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Applies one round and returns the descriptions of its changes.
fn round(
    reconciler: &mut Reconciler,
    wanted: &Wanted,
    kernel: &mut FakeKernel,
    now: Duration,
) -> Vec<String> {
    let steps = reconciler.plan(wanted, &kernel.table().unwrap(), now);
    for step in &steps {
        kernel.apply_one(step.change.clone()).unwrap();
    }
    steps.iter().map(Step::describe).collect()
}

/// Returns the destinations of a service in the kernel, with their weights.
fn weights(kernel: &mut FakeKernel, number: u8) -> Vec<(String, u32)> {
    let mut found: Vec<_> = kernel.destinations(&service(number)).unwrap();
    found.sort_by_key(|one| one.destination.key);
    found.iter().map(|one| (one.destination.key.to_string(), one.destination.weight)).collect()
}

#[test]
fn only_differences_are_written() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    let many: Vec<(u16, u32)> = (1..=2000).map(|number| (number, 1)).collect();
    round(&mut reconciler, &wanted(&[(1, &many)]), &mut kernel, at(0));
    assert_eq!(kernel.writes(), 2001);
    kernel.forget_messages();
    assert_eq!(round(&mut reconciler, &wanted(&[(1, &many)]), &mut kernel, at(1)), Vec::<String>::new());
    let mut changed = many;
    changed[700].1 = 5;
    let steps = round(&mut reconciler, &wanted(&[(1, &changed)]), &mut kernel, at(2));
    assert_eq!(steps, ["10.0.2.189:80 of TCP 192.0.2.1:80: found weight 1, Masq; set weight 5, Masq"]);
    assert_eq!(kernel.writes(), 1);
}

#[test]
fn a_removed_destination_drains_before_it_is_deleted() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    round(&mut reconciler, &wanted(&[(1, &[(1, 1), (2, 1)])]), &mut kernel, at(0));
    kernel.set_connections(&service(1), &destination(2, 1).key, 1, 0);
    let one = wanted(&[(1, &[(1, 1)])]);
    round(&mut reconciler, &one, &mut kernel, at(1));
    assert_eq!(weights(&mut kernel, 1), [("10.0.0.1:80".to_owned(), 1), ("10.0.0.2:80".to_owned(), 0)]);
    assert!(round(&mut reconciler, &one, &mut kernel, at(30)).is_empty(), "it has a connection");
    kernel.set_connections(&service(1), &destination(2, 1).key, 0, 0);
    round(&mut reconciler, &one, &mut kernel, at(31));
    assert_eq!(weights(&mut kernel, 1), [("10.0.0.1:80".to_owned(), 1)]);
    assert_eq!(
        reconciler.owned().to_string(),
        "service tcp 192.0.2.1:80\ndestination 10.0.0.1:80\ndestination 10.0.0.2:80\n"
    );
    round(&mut reconciler, &one, &mut kernel, at(32));
    assert_eq!(reconciler.owned().to_string(), "service tcp 192.0.2.1:80\ndestination 10.0.0.1:80\n");
}

#[test]
fn a_drain_ends_after_its_timeout() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    round(&mut reconciler, &wanted(&[(1, &[(1, 1), (2, 1)])]), &mut kernel, at(0));
    kernel.set_connections(&service(1), &destination(2, 1).key, 1, 0);
    let one = wanted(&[(1, &[(1, 1)])]);
    for now in [1, 60] {
        round(&mut reconciler, &one, &mut kernel, at(now));
        assert_eq!(weights(&mut kernel, 1).len(), 2);
    }
    round(&mut reconciler, &one, &mut kernel, at(61));
    assert_eq!(weights(&mut kernel, 1).len(), 1);
}

#[test]
fn a_destination_that_returns_gets_its_weight_back_even_from_another_process() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    let both = wanted(&[(1, &[(1, 1), (2, 3)])]);
    round(&mut reconciler, &both, &mut kernel, at(0));
    round(&mut reconciler, &wanted(&[(1, &[(1, 1)])]), &mut kernel, at(1));
    assert_eq!(weights(&mut kernel, 1)[1].1, 0);
    let mut successor = Reconciler::new(reconciler.owned().to_string().parse().unwrap());
    round(&mut successor, &both, &mut kernel, at(2));
    assert_eq!(weights(&mut kernel, 1)[1].1, 3);
    assert_eq!(successor.draining(), 0);
}

#[test]
fn another_process_continues_a_drain() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    round(&mut reconciler, &wanted(&[(1, &[(1, 1), (2, 3)])]), &mut kernel, at(0));
    let one = wanted(&[(1, &[(1, 1)])]);
    round(&mut reconciler, &one, &mut kernel, at(1));
    let mut successor = Reconciler::new(reconciler.owned().clone());
    round(&mut successor, &one, &mut kernel, at(0));
    assert_eq!(weights(&mut kernel, 1).len(), 2);
    round(&mut successor, &one, &mut kernel, at(1));
    assert_eq!(weights(&mut kernel, 1).len(), 1);
}

#[test]
fn a_configured_weight_of_zero_stays_zero() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    let table = wanted(&[(1, &[(1, 1), (2, 0)])]);
    for now in 0..3 {
        round(&mut reconciler, &table, &mut kernel, at(now));
        assert_eq!(weights(&mut kernel, 1)[1], ("10.0.0.2:80".to_owned(), 0));
    }
}

#[test]
fn entries_of_other_programs_stay_unless_the_table_is_owned() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    kernel.add_service(&Service::new(service(9))).unwrap();
    kernel.add_destination(&service(9), &destination(9, 1)).unwrap();
    let table = wanted(&[(1, &[(1, 1)])]);
    round(&mut reconciler, &table, &mut kernel, at(0));
    kernel.add_destination(&service(1), &destination(8, 1)).unwrap();
    for now in 1..4 {
        assert!(round(&mut reconciler, &table, &mut kernel, at(now)).is_empty());
    }
    // The service stays as long as another program uses it.
    for now in 4..8 {
        round(&mut reconciler, &Wanted::new(), &mut kernel, at(now));
    }
    assert_eq!(weights(&mut kernel, 1), [("10.0.0.8:80".to_owned(), 1)]);
    reconciler.own_table(true);
    for now in 8..12 {
        round(&mut reconciler, &table, &mut kernel, at(now));
    }
    assert_eq!(weights(&mut kernel, 1), [("10.0.0.1:80".to_owned(), 1)]);
    assert_eq!(kernel.services().unwrap().len(), 1);
}

#[test]
fn drift_is_repaired_and_described() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    let table = wanted(&[(1, &[(1, 1), (2, 1)])]);
    round(&mut reconciler, &table, &mut kernel, at(0));
    kernel.delete_destination(&service(1), &destination(1, 1).key).unwrap();
    kernel.set_service(&Service::new(service(1)).scheduler("rr")).unwrap();
    assert_eq!(
        round(&mut reconciler, &table, &mut kernel, at(1)),
        [
            "10.0.0.1:80 of TCP 192.0.2.1:80: found missing; added with weight 1, Masq",
            "TCP 192.0.2.1:80: found scheduler rr, no persistence; set scheduler wlc, no persistence",
        ]
    );
    kernel.flush().unwrap();
    assert_eq!(round(&mut reconciler, &table, &mut kernel, at(2)).len(), 3);
}

#[test]
fn a_destination_without_drain_is_deleted_after_its_replacement_was_added() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    round(&mut reconciler, &wanted(&[(1, &[(1, 1)])]), &mut kernel, at(0));
    let mut table = wanted(&[(1, &[(2, 1)])]);
    table.get_mut(&service(1)).unwrap().without_drain.insert(destination(1, 1).key);
    assert_eq!(
        round(&mut reconciler, &table, &mut kernel, at(1)),
        [
            "10.0.0.2:80 of TCP 192.0.2.1:80: found missing; added with weight 1, Masq",
            "10.0.0.1:80 of TCP 192.0.2.1:80: found present; deleted",
        ]
    );
}

#[test]
fn texts_that_list_no_entries_are_refused() {
    for text in
        ["destination 10.0.0.1:80", "service tcp", "service icmp 192.0.2.1:80", "service fwmark x ipv4", "x"]
    {
        assert!(text.parse::<Owned>().is_err(), "{text}");
    }
}

/// Numbers of a linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn table(&mut self) -> Wanted {
        let mut services: Vec<(u8, Vec<(u16, u32)>)> = Vec::new();
        for number in 1..=3 {
            let mut destinations = Vec::new();
            for destination in 1..=5 {
                if self.below(2) > 0 {
                    destinations.push((destination, self.below(3) as u32));
                }
            }
            if self.below(4) > 0 {
                services.push((number, destinations));
            }
        }
        let services: Vec<(u8, &[(u16, u32)])> =
            services.iter().map(|(number, destinations)| (*number, destinations.as_slice())).collect();
        wanted(&services)
    }
}

fn takes_clients(kernel: &mut FakeKernel, key: &ServiceKey) -> bool {
    kernel.destinations(key).unwrap().iter().any(|one| one.destination.weight > 0)
}

/// Random tables, kills, drift and connections: a service that takes clients before and after a round takes them after
/// each change of the round, and the kernel has the wanted table when the connections have ended.
#[test]
fn any_sequence_of_tables_converges_without_an_empty_service() {
    for seed in 0..300 {
        let mut random = Numbers(seed);
        let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
        kernel.add_service(&Service::new(service(9))).unwrap();
        kernel.add_destination(&service(9), &destination(9, 7)).unwrap();
        let mut now = 0;
        let mut table = Wanted::new();
        for _ in 0..8 {
            table = random.table();
            if random.below(4) == 0 {
                reconciler = Reconciler::new(reconciler.owned().to_string().parse().unwrap());
            }
            for _ in 0..random.below(4) {
                now += 1;
                let before: Vec<ServiceKey> =
                    table.keys().copied().filter(|key| takes_clients(&mut kernel, key)).collect();
                let steps = reconciler.plan(&table, &kernel.table().unwrap(), at(now));
                let will = |key: &&ServiceKey| table[*key].destinations.values().any(|one| one.weight > 0);
                let steady: Vec<ServiceKey> = before.iter().filter(will).copied().collect();
                for step in steps {
                    kernel.apply_one(step.change.clone()).unwrap();
                    for key in &steady {
                        assert!(
                            takes_clients(&mut kernel, key),
                            "seed {seed}: {key} is empty after {step:?}"
                        );
                    }
                }
                for entry in kernel.table().unwrap() {
                    for one in &entry.destinations {
                        let active = random.below(2) as u32;
                        kernel.set_connections(&entry.service.service.key, &one.destination.key, active, 0);
                    }
                }
            }
            if random.below(3) == 0
                && let Some(entry) = kernel
                    .table()
                    .unwrap()
                    .iter()
                    .find(|entry| table.contains_key(&entry.service.service.key))
            {
                kernel.delete_service(&entry.service.service.key).unwrap();
            }
        }
        for _ in 0..4 {
            // A successor does not know the drain timeouts of services that are no longer wanted.
            now += Reconciler::DRAIN_TIMEOUT.as_secs() + 1;
            round(&mut reconciler, &table, &mut kernel, at(now));
        }
        assert!(reconciler.plan(&table, &kernel.table().unwrap(), at(now)).is_empty(), "seed {seed}");
        let entries = kernel.table().unwrap();
        assert_eq!(entries.len(), table.len() + 1, "seed {seed}");
        for entry in entries.iter().filter(|entry| entry.service.service.key != service(9)) {
            let found: BTreeMap<DestinationKey, Destination> =
                entry.destinations.iter().map(|one| (one.destination.key, one.destination)).collect();
            assert_eq!(found, table[&entry.service.service.key].destinations, "seed {seed}");
        }
        assert_eq!(weights(&mut kernel, 9), [("10.0.0.9:80".to_owned(), 7)], "seed {seed}");
    }
}
