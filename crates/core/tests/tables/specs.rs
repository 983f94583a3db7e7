//! Random services and pools.

use evener_core::acl::{Access, Acl};
use evener_core::limits::Limits;
use evener_core::route::Route;
use evener_core::spec::{
    CheckKind, CheckSpec, Denied, Failover, OnDown, PassiveSpec, Policy, PoolSpec, Protocol, QuorumSpec,
    ServerSpec, ServiceSpec, StickyBy, StickySpec,
};
use evener_core::{Endpoint, Random, Target};
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn random_pool(random: &mut Random, name: &str) -> PoolSpec {
    let mut numbers: Vec<u16> = (0..8).filter(|_| random.below(3) > 0).collect();
    let turn = random.below(numbers.len().max(1));
    numbers.rotate_left(turn);
    let lists = random.below(4) == 0;
    let mut servers: Vec<ServerSpec> =
        numbers.into_iter().map(|number| random_server(random, number, lists)).collect();
    let quorum = (random.below(3) == 0).then(|| {
        let weight = 1 + random.below(12) as u32;
        QuorumSpec { weight, hysteresis: random.below(weight as usize) as u32 }
    });
    if random.below(3) == 0 {
        let server = random_server(random, 9, lists);
        let weight = server.weight.max(1);
        servers.push(ServerSpec { name: "sorry".into(), weight, tier: 1, is_sorry: true, ..server });
    }
    let policy = Policy::NAMES[random.below(Policy::NAMES.len())];
    let policy = match Policy::named(policy).expect("a policy of the list") {
        Policy::Maglev { .. } => Policy::Maglev { table: 251 },
        policy => policy,
    };
    PoolSpec {
        policy,
        quorum,
        sticky: (random.below(2) == 0).then_some(StickySpec {
            by: StickyBy::ClientIp,
            size: 1024,
            ttl: None,
            failback: random.below(2) == 0,
            rebalance: None,
        }),
        check: (random.below(2) > 0).then_some(CheckSpec::new(CheckKind::Tcp)),
        passive: PassiveSpec { failures: random.below(3) as u32, down_for: Duration::from_secs(5) },
        slow_start: (random.below(2) == 0).then_some(Duration::from_secs(10)),
        failover: if random.below(4) == 0 { Failover::Never } else { Failover::Next },
        on_down: OnDown::ALL[random.below(2)],
        ..PoolSpec::new(name, servers)
    }
}

fn random_server(random: &mut Random, number: u16, lists: bool) -> ServerSpec {
    let endpoint: Endpoint =
        format!("10.0.{}.1:{}", random.below(20) / 19, 8000 + number).parse().expect("an address");
    let deny = Acl::new(&[("11.0.0.0/21".parse().expect("a prefix"), Access::Deny)], Access::Permit);
    let soft = (random.below(3) == 0).then(|| 1 + random.below(3) as u32);
    ServerSpec {
        name: format!("server-{number}").into(),
        weight: random.below(5) as u32,
        tier: 1 + (random.below(8) / 3) as u8,
        limits: Limits { soft, hard: soft.filter(|_| random.below(2) == 0).map(|soft| soft + 1) },
        acl: (lists && random.below(2) == 0).then(|| Arc::new(deny)),
        ..ServerSpec::new(endpoint)
    }
}

pub(crate) fn random_service(random: &mut Random, name: &str, pools: &[Arc<str>]) -> ServiceSpec {
    let protocol = if random.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp };
    let mut pool = || (!pools.is_empty()).then(|| pools[random.below(pools.len())].clone());
    let (default, routed, refused) = (pool(), pool(), pool());
    let mut service = ServiceSpec::new(name, protocol);
    service.pool = default;
    let route = |to| Route { hosts: Vec::new(), path: None, to };
    service.routes = routed.filter(|_| random.below(3) == 0).into_iter().map(route).collect();
    service.denied = refused.filter(|_| random.below(3) == 0).map_or(Denied::Drop, Denied::Pool);
    let address = |number| format!("192.0.2.{number}:80").parse().expect("an address");
    service.listen = (0..4).filter(|_| random.below(2) == 0).map(address).collect();
    service
}

pub(crate) fn targets(spec: &PoolSpec) -> Vec<Target> {
    let target = |server: &ServerSpec| server.endpoint.target().expect("an address needs no resolving");
    spec.servers.iter().map(target).collect()
}
