//! Choosing a server: the policies, the sticky table, access lists and the building of Maglev tables.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail where it stands")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use evener_core::acl::{Access, Acl, Prefix};
use evener_core::budget::{RetryBudget, RetryLedger};
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::{Request, Snapshot};
use evener_core::spec::{Policy, PoolSpec, RetryBudgetSpec, ServerSpec, StickyBy, StickySpec};
use evener_core::sticky::Sticky;
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Number of clients in a table.
const CLIENTS: u32 = 100_000;
const PREFIXES: u32 = 100_000;

const POLICIES: [Policy; 9] = [
    Policy::RoundRobin,
    Policy::First,
    Policy::Weighted,
    Policy::LeastConn,
    Policy::LeastOutstanding,
    Policy::P2c,
    Policy::Ewma { decay: Policy::EWMA_DECAY },
    Policy::Hash,
    Policy::Maglev { table: Policy::MAGLEV_TABLE },
];

/// Returns a function that returns `count` clients in a pseudo-random order, so that a table cannot profit from
/// the order.
fn clients(count: u32) -> impl FnMut() -> IpAddr {
    let mut number = 0_u32;
    move || {
        number = number.wrapping_add(1);
        Ipv4Addr::from_bits(0x0a00_0000 + (number.wrapping_mul(0x9e37_79b1) % count)).into()
    }
}

fn pool(policy: Policy, servers: u32) -> Pool {
    let server = |number: u32| {
        let address = Ipv4Addr::from_bits(0xac10_0000 + number);
        let mut spec = ServerSpec::new(Endpoint::Ip((address, 80).into()));
        spec.weight = number % 4 + 1;
        spec
    };
    let mut spec = PoolSpec::new("web", (1..=servers).map(server).collect());
    spec.policy = policy;
    let targets: Vec<Target> = spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect();
    Pool::new(&spec, &targets, PoolSetting { workers: 1, key: 1, first_id: 0 }, Time::ZERO)
}

fn snapshot(policy: Policy, servers: u32) -> Snapshot {
    pool(policy, servers).snapshot().unwrap()
}

/// Measures a choice and the end of its connection, so that at most one connection is open at a time.
fn pick(criterion: &mut Criterion) {
    for servers in [10, 1000] {
        let mut group = criterion.benchmark_group(format!("pick/{servers}"));
        for policy in POLICIES {
            let (snapshot, mut random, mut client) =
                (snapshot(policy, servers), Random::seeded(1), clients(CLIENTS));
            group.bench_function(policy.name(), |bencher| {
                bencher.iter(|| {
                    let request = Request::of(client(), Time::ZERO);
                    snapshot.pick(&request, &[], &mut random).map(|choice| choice.server.id)
                });
            });
        }
    }
}

/// Measures the retry budget: a first try, and a retry that is permitted or not.
fn retry_budget(criterion: &mut Criterion) {
    const WORKERS: usize = 16;
    let mut group = criterion.benchmark_group("retry budget");
    for (name, share_percent) in [("permitted", 100), ("used up", 0)] {
        let spec = RetryBudgetSpec { share_percent, min_per_second: 0 };
        let budget = RetryBudget::new(Some(spec), 3, Arc::new(RetryLedger::new(WORKERS)));
        if share_percent > 0 {
            group.bench_function("first try", |bencher| {
                bencher.iter(|| budget.deposit(3, black_box(Time::ZERO)));
            });
        }
        group.bench_function(format!("retry, {name}"), |bencher| {
            bencher.iter(|| budget.withdraw(black_box(Time::ZERO)));
        });
    }
}

fn sticky(criterion: &mut Criterion) {
    let spec = StickySpec {
        by: StickyBy::ClientIp,
        size: CLIENTS as usize,
        ttl: None,
        failback: false,
        rebalance: None,
    };
    let table = Sticky::new(&spec, 1);
    let mut client = clients(CLIENTS);
    for _ in 0..CLIENTS {
        table.remember(client(), ServerId(1), Time::ZERO, |_| false);
    }
    let mut group = criterion.benchmark_group("sticky");
    group.bench_function("hit", |bencher| bencher.iter(|| table.lookup(client(), Time::ZERO)));
    let unknown: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    group.bench_function("miss", |bencher| bencher.iter(|| table.lookup(black_box(unknown), Time::ZERO)));
    // The table is full, so each new client evicts another client.
    let mut client = clients(u32::MAX / 2);
    group.bench_function("insert", |bencher| {
        bencher.iter(|| table.remember(client(), ServerId(2), Time::ZERO, |_| false));
    });
}

fn access_list(criterion: &mut Criterion) {
    let rule = |number: u32| {
        let address = Ipv4Addr::from_bits(number.wrapping_mul(0x9e37_79b1));
        let prefix: Prefix = format!("{address}/{}", 12 + number % 21).parse().unwrap();
        (prefix, Access::Deny)
    };
    let list = Acl::new(&(0..PREFIXES).map(rule).collect::<Vec<_>>(), Access::Permit);
    let mut client = clients(u32::MAX / 2);
    criterion.bench_function("acl/100000 prefixes", |bencher| bencher.iter(|| list.access(client())));
}

/// Measures the creation of a snapshot with its Maglev table, as after each change of a server.
fn maglev(criterion: &mut Criterion) {
    for servers in [10, 1000] {
        let policy = Policy::Maglev { table: Policy::MAGLEV_TABLE };
        criterion.bench_function(&format!("maglev build/{servers}"), |bencher| {
            bencher.iter_batched_ref(
                || pool(policy, servers),
                |pool| pool.snapshot().unwrap(),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, pick, retry_budget, sticky, access_list, maglev);
criterion_main!(benches);
