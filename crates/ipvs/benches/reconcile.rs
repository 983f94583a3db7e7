//! 2 000 destinations with a kernel in memory: planning and applying all, finding no difference, and changing one.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail where it stands")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use evener_ipvs::fake::FakeKernel;
use evener_ipvs::model::{Destination, Forwarding, Service, ServiceKey};
use evener_ipvs::reconcile::{Reconciler, Wanted, WantedService};
use evener_ipvs::{Change, Kernel};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Number of destinations.
const DESTINATIONS: u32 = 2000;

/// Returns a table in which one destination has this weight.
fn wanted(weight: u32) -> Wanted {
    let key = ServiceKey::tcp("192.0.2.1:80".parse().unwrap());
    let mut service = WantedService::new(Service::new(key).scheduler("wrr"), Duration::from_secs(900));
    for number in 0..DESTINATIONS {
        let address = SocketAddr::from((Ipv4Addr::from_bits(0x0a01_0001 + number), 80));
        let destination = Destination::new(address, Forwarding::Nat);
        let weight = if number == 1234 { weight } else { 1 };
        service.destinations.insert(destination.key, destination.weight(weight));
    }
    Wanted::from([(key, service)])
}

/// Reads the table, and applies the differences. Returns their number.
fn round(reconciler: &mut Reconciler, kernel: &mut FakeKernel, wanted: &Wanted) -> usize {
    let steps = reconciler.plan(wanted, &kernel.table().unwrap(), Duration::ZERO);
    let changes: Vec<Change> = steps.into_iter().map(|step| step.change).collect();
    assert!(kernel.apply(&changes).unwrap().iter().all(Result::is_ok));
    changes.len()
}

fn reconcile(criterion: &mut Criterion) {
    let (first, second) = (wanted(1), wanted(5));
    criterion.bench_function("reconcile/plan_all_of_2000", |bencher| {
        bencher.iter_batched(
            Reconciler::default,
            |mut reconciler| reconciler.plan(&first, &[], Duration::ZERO).len(),
            BatchSize::SmallInput,
        );
    });
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeKernel::new());
    assert_eq!(round(&mut reconciler, &mut kernel, &first), 2001);
    criterion.bench_function("reconcile/no_difference_in_2000", |bencher| {
        bencher.iter(|| assert_eq!(round(&mut reconciler, &mut kernel, &first), 0));
    });
    let mut is_second = false;
    criterion.bench_function("reconcile/one_difference_in_2000", |bencher| {
        bencher.iter(|| {
            is_second = !is_second;
            let wanted = if is_second { &second } else { &first };
            assert_eq!(round(&mut reconciler, &mut kernel, wanted), 1);
        });
    });
}

criterion_group!(benches, reconcile);
criterion_main!(benches);
