//! Tables of small pools: the clients that servers take, and the changes between tables.

use super::*;
use crate::pool::{Pool, PoolSetting};
use crate::random::Random;
use crate::snapshot::Request;
use crate::spec::{AdminState, CheckKind, CheckSpec, Denied, ServerSpec, StickyBy};
use crate::time::Time;
use crate::{health::Probe, route::Route};

/// Pools by name, and a service for each text: its name, its default pool, then its other pools.
struct Fixture {
    pools: BTreeMap<String, Pool>,
    snapshots: BTreeMap<String, Snapshot>,
    services: Vec<ServiceSpec>,
    tables: Tables,
}

impl Fixture {
    fn new(pools: &[PoolSpec], services: &[&str]) -> Self {
        let pool = |spec: &PoolSpec| {
            let setting = PoolSetting { workers: 1, key: 1, first_id: 0 };
            (spec.name.to_string(), Pool::new(spec, &targets(spec), setting, Time::ZERO))
        };
        let pools = pools.iter().map(pool).collect();
        let services = services.iter().map(|text| service(text)).collect();
        let mut fixture = Self { pools, services, snapshots: BTreeMap::new(), tables: Tables::default() };
        fixture.publish();
        fixture.configure();
        fixture
    }

    fn publish(&mut self) -> Vec<ServiceChanges> {
        let mut changed = Vec::new();
        for (name, pool) in &mut self.pools {
            let Some(snapshot) = pool.snapshot() else { continue };
            changed.extend(self.tables.on_pool(pool.spec(), &snapshot));
            self.snapshots.insert(name.clone(), snapshot);
        }
        changed
    }

    fn configure(&mut self) -> Vec<ServiceChanges> {
        let (pools, snapshots) = (&self.pools, &self.snapshots);
        self.tables.configure(&self.services, |name| Some((pools.get(name)?.spec(), snapshots.get(name)?)))
    }

    fn apply(&mut self, pool: &str, change: impl FnOnce(&mut PoolSpec)) -> Vec<ServiceChanges> {
        let pool = self.pools.get_mut(pool).unwrap();
        let mut spec = pool.spec().clone();
        change(&mut spec);
        pool.apply(&spec, &targets(&spec), Time::ZERO);
        self.publish()
    }

    /// Returns the clients that the servers of pool `web` take, and their marks as candidates: `a=new+`.
    fn roles(&self) -> String {
        let (_, web) = self.tables.of("www").unwrap().pools().find(|(name, _)| &***name == "web").unwrap();
        let text = |(_, row): (ServerId, &Row)| {
            let mark = if row.role.is_candidate { "+" } else { "" };
            format!("{}={}{mark}", row.name, row.role.takes.name())
        };
        web.rows().map(text).collect::<Vec<_>>().join(" ")
    }
}

pub(super) fn targets(spec: &PoolSpec) -> Vec<Target> {
    spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect()
}

fn service(text: &str) -> ServiceSpec {
    let mut names = text.split(' ');
    let mut spec = ServiceSpec::new(names.next().unwrap(), Protocol::Tcp);
    spec.listen.push("192.0.2.1:80".parse().unwrap());
    spec.pool = names.next().map(Into::into);
    spec.routes = names.map(|name| Route { hosts: Vec::new(), path: None, to: name.into() }).collect();
    spec
}

/// Returns a pool: `a b/2 c*3` are three servers, one of tier 2 and one of weight 3.
pub(super) fn pool(name: &str, servers: &str) -> PoolSpec {
    let server = |(at, text): (usize, &str)| {
        let mut spec =
            ServerSpec::new(format!("10.0.{}.{}:80", (at + 1) / 256, (at + 1) % 256).parse().unwrap());
        let (text, weight) = text.split_once('*').unwrap_or((text, "1"));
        let (text, tier) = text.split_once('/').unwrap_or((text, "1"));
        spec.name = text.into();
        (spec.weight, spec.tier) = (weight.parse().unwrap(), tier.parse().unwrap());
        spec
    };
    PoolSpec::new(name, servers.split(' ').enumerate().map(server).collect())
}

fn lines(changed: &[ServiceChanges]) -> Vec<String> {
    let lines = |one: &ServiceChanges| -> Vec<String> {
        one.changes.iter().map(|change| format!("{}: {change}", one.service)).collect()
    };
    changed.iter().flat_map(lines).collect()
}

#[test]
fn changes_are_readable_and_in_a_safe_order() {
    let mut fixture = Fixture::new(&[pool("web", "a b*2"), pool("api", "c/2")], &[]);
    fixture.services = vec![service("www web")];
    assert_eq!(
        lines(&fixture.configure()),
        [
            "www: + service www: protocol tcp, pool web",
            "www: + pool web: policy round_robin, failover next, on_down keep, sticky off",
            "www: + server web/a: address 10.0.0.1:80, weight 1, clients new",
            "www: + server web/b: address 10.0.0.2:80, weight 2, clients new",
            "www: + service www listen 192.0.2.1:80",
        ]
    );
    let changed = fixture.apply("web", |spec| {
        spec.policy = Policy::Hash;
        spec.servers[0].endpoint = "10.0.0.9:80".parse().unwrap();
        spec.servers[1] = ServerSpec::new("10.0.0.3:80".parse().unwrap());
    });
    assert_eq!(
        lines(&changed),
        [
            "www: + server web/10.0.0.3:80: address 10.0.0.3:80, weight 1, clients new",
            "www: ~ pool web: policy round_robin -> hash",
            "www: ~ server web/a: address 10.0.0.1:80 -> 10.0.0.9:80",
            "www: - server web/b",
        ]
    );
    fixture.services = vec![service("www api")];
    fixture.services[0].listen[0] = "192.0.2.2:80".parse().unwrap();
    assert_eq!(
        lines(&fixture.configure()),
        [
            "www: + pool api: policy round_robin, failover next, on_down keep, sticky off",
            "www: + server api/c: address 10.0.0.1:80, tier 2, weight 1, clients new",
            "www: ~ service www: pool web -> api",
            "www: + service www listen 192.0.2.2:80",
            "www: - service www listen 192.0.2.1:80",
            "www: - server web/a",
            "www: - server web/10.0.0.3:80",
            "www: - pool web",
        ]
    );
    fixture.services.clear();
    let removed = ["- service www listen 192.0.2.2:80", "- server api/c", "- pool api", "- service www"];
    assert_eq!(lines(&fixture.configure()), removed.map(|line| format!("www: {line}")));
    assert!(fixture.tables.of("www").is_none());
}

#[test]
fn a_server_takes_the_clients_that_its_state_and_its_tier_allow() {
    let checked = |mut spec: PoolSpec| {
        spec.check = Some(CheckSpec::new(CheckKind::Tcp));
        spec
    };
    let spec = checked(pool("web", "a b c/2 d*0"));
    let mut fixture = Fixture::new(&[spec], &["www web"]);
    let ids: Vec<ServerId> = fixture.pools["web"].servers().iter().map(|server| server.id).collect();
    let [a, b, c, _] = ids[..] else { panic!("the pool has four servers") };
    let mut step = |act: &dyn Fn(&mut Pool), expected: &str| {
        act(fixture.pools.get_mut("web").unwrap());
        fixture.publish();
        assert_eq!(fixture.roles(), expected);
    };
    let up = |id| move |pool: &mut Pool| drop(pool.on_probe(Time::ZERO, id, Probe::Pass));
    let down = |id| {
        move |pool: &mut Pool| {
            (0..3).for_each(|_| drop(pool.on_probe(Time::ZERO, id, Probe::Fail("closed".into()))));
        }
    };
    let state = |id, state| move |pool: &mut Pool| drop(pool.set_state(Time::ZERO, id, state, None));
    step(&|_| (), "a=new+ b=new+ c=known d=known");
    step(&up(c), "a=known b=known c=new+ d=known");
    step(&up(a), "a=new+ b=known c=known d=known");
    step(&state(a, AdminState::Drain), "a=known b=known c=new+ d=known");
    step(&state(a, AdminState::Maintenance), "a=none b=known c=new+ d=known");
    step(&up(b), "a=none b=new+ c=known d=known");
    step(&down(b), "a=none b=none c=new+ d=known");
    step(&down(c), "a=none b=none c=none d=known");
}

#[test]
fn a_full_server_takes_known_clients_and_the_next_tier_is_used() {
    let mut spec = pool("web", "a b/2");
    spec.servers[0].limits.soft = Some(1);
    let mut fixture = Fixture::new(&[spec], &["www web"]);
    assert_eq!(fixture.roles(), "a=new+ b=known");
    let request = Request::of("192.0.2.1".parse().unwrap(), Time::ZERO);
    let choice = fixture.snapshots["web"].pick(&request, &[], &mut Random::seeded(1)).unwrap();
    let changed = fixture.tables.on_pool(fixture.pools["web"].spec(), &fixture.snapshots["web"]);
    assert_eq!(
        lines(&changed),
        [
            "www: ~ server web/b: clients known -> new, candidate false -> true",
            "www: ~ server web/a: clients new -> known",
        ]
    );
    assert_eq!(fixture.roles(), "a=known+ b=new+");
    drop(choice);
    fixture.tables.on_pool(fixture.pools["web"].spec(), &fixture.snapshots["web"]);
    assert_eq!(fixture.roles(), "a=new+ b=known");
}

#[test]
fn without_failover_a_server_that_is_down_stays_a_candidate() {
    let mut spec = pool("web", "a b c/2");
    (spec.failover, spec.policy) = (Failover::Never, Policy::Hash);
    spec.servers[0].state = AdminState::Maintenance;
    assert_eq!(Fixture::new(&[spec], &["www web"]).roles(), "a=none+ b=new+ c=known");
}

#[test]
fn a_change_of_one_server_derives_only_the_tables_of_its_services() {
    let pools: Vec<PoolSpec> = (0..100)
        .map(|number| {
            let servers: Vec<String> = (0..100).map(|server| format!("server-{server}")).collect();
            pool(&format!("pool-{number}"), &servers.join(" "))
        })
        .collect();
    let services: Vec<String> = (0..100).map(|number| format!("service-{number} pool-{number}")).collect();
    let mut services: Vec<&str> = services.iter().map(String::as_str).collect();
    services[7] = "service-7 pool-7 pool-3";
    services[8] = "service-8 pool-8 pool-3 pool-3";
    let mut fixture = Fixture::new(&pools, &services);
    assert_eq!(fixture.tables.derived(), 100);
    let changed = fixture.apply("pool-3", |spec| spec.servers[50].weight = 3);
    assert_eq!(fixture.tables.derived(), 103, "three services use the pool");
    assert_eq!(
        lines(&changed),
        ["service-3", "service-7", "service-8"]
            .map(|service| format!("{service}: ~ server pool-3/server-50: weight 1 -> 3"))
    );
    let changed = fixture.apply("pool-4", |spec| spec.servers[50].weight = 3);
    assert_eq!((fixture.tables.derived(), changed.len()), (104, 1));
    assert!(fixture.apply("pool-4", |_| ()).is_empty());
    assert_eq!(fixture.tables.derived(), 104, "a table without changes is not derived again");
}

#[test]
fn candidates_are_in_the_order_of_their_names_in_every_instance() {
    let mut fixture = Fixture::new(&[pool("web", "c a d/2")], &["www web"]);
    fixture.apply("web", |spec| spec.servers.push(pool("web", "b").servers.remove(0)));
    let (_, web) = fixture.tables.of("www").unwrap().pools().next().unwrap();
    let names: Vec<&str> = web.candidates().iter().map(|(_, row)| &*row.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn refused_clients_bring_their_pool_into_the_table() {
    let mut fixture = Fixture::new(&[pool("web", "a"), pool("honey", "b")], &["www web"]);
    fixture.services[0].denied = Denied::Pool("honey".into());
    fixture.configure();
    let names: Vec<&str> = fixture.tables.of("www").unwrap().pools().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["honey", "web"]);
}

#[test]
fn a_table_has_the_settings_of_the_xdp_plane() {
    let mut fixture = Fixture::new(&[pool("web", "a")], &[]);
    fixture.services = vec![service("www web")];
    let settings = XdpServiceSpec { interfaces: vec!["eth0".into()], ..XdpServiceSpec::default() };
    fixture.services[0].xdp = Some(Arc::new(settings.clone()));
    let lines_of_service = |changed: &[ServiceChanges]| -> Vec<String> {
        lines(changed).into_iter().filter(|line| line.contains("service www:")).collect()
    };
    assert_eq!(
        lines_of_service(&fixture.configure()),
        ["www: + service www: protocol tcp, pool web, interfaces eth0, forward nat"]
    );
    let idle_timeout = Some(std::time::Duration::from_secs(60));
    fixture.services[0].xdp = Some(Arc::new(XdpServiceSpec { idle_timeout, ..settings }));
    fixture.services[0].acl = Some(Arc::new(Acl::new(&[], crate::acl::Access::Deny)));
    assert_eq!(
        lines_of_service(&fixture.configure()),
        ["www: ~ service www: access list, idle_timeout none -> 60s"]
    );
}

#[test]
fn a_sorry_server_keeps_no_sticky_clients_while_the_pool_has_its_quorum() {
    let mut spec = pool("web", "a b s");
    spec.servers[2].is_sorry = true;
    assert_eq!(Fixture::new(&[spec.clone()], &["www web"]).roles(), "a=new+ b=new+ s=known");
    spec.sticky =
        Some(StickySpec { by: StickyBy::ClientIp, size: 16, ttl: None, failback: false, rebalance: None });
    assert_eq!(Fixture::new(&[spec.clone()], &["www web"]).roles(), "a=new+ b=new+ s=none");
    spec.servers[..2].iter_mut().for_each(|server| server.state = AdminState::Drain);
    assert_eq!(Fixture::new(&[spec], &["www web"]).roles(), "a=known b=known s=new+");
}
