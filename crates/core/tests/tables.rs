//! A seeded simulation of service tables: services and pools change at random, and a model of a plane that holds
//! rows applies the changes. After each step the model equals the tables, and new clients get only servers whose
//! rows take new clients. A failure prints the seed.
#![allow(clippy::disallowed_methods, reason = "the seed to replay comes from the environment")]

#[path = "tables/model.rs"]
mod model;
#[path = "tables/specs.rs"]
mod specs;

use evener_core::health::{Failure, Probe};
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::{Choice, Request, Snapshot, Takes, Why};
use evener_core::spec::{AdminState, Failover, ServiceSpec};
use evener_core::table::{PoolTable, ServiceChanges, ServiceTable, Tables};
use evener_core::{Random, ServerId, Time};
use model::{Model, Seen};
use specs::{random_pool, random_service, targets};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Names of pools and services; some of them do not exist at a given moment.
const POOLS: usize = 4;
const SERVICES: usize = 5;

struct Simulation {
    random: Random,
    now: Time,
    pools: BTreeMap<Arc<str>, (Pool, Arc<Snapshot>)>,
    services: Vec<ServiceSpec>,
    tables: Tables,
    models: BTreeMap<Arc<str>, Model>,
    connections: Vec<Choice>,
    /// Number of the next client that no sticky table knows.
    new_clients: u32,
    seen: Seen,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            random: Random::seeded(seed),
            now: Time::ZERO,
            pools: BTreeMap::new(),
            services: Vec::new(),
            tables: Tables::default(),
            models: BTreeMap::new(),
            connections: Vec::new(),
            new_clients: 0,
            seen: Seen::default(),
        };
        simulation.configure();
        simulation
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.connect(),
            30..45 => self.disconnect(),
            45..60 => self.probe(),
            60..66 => self.fail(),
            66..74 => self.administer(),
            74..88 => self.pass_time(),
            88..96 => self.change_servers(),
            _ => self.configure(),
        }
        self.publish();
        self.check();
    }

    fn new_client(&mut self) -> IpAddr {
        self.new_clients += 1;
        IpAddr::from((0x0b00_0000 + self.new_clients).to_be_bytes())
    }

    fn any_pool(&mut self) -> Option<Arc<str>> {
        let count = self.pools.len();
        (count > 0).then(|| self.pools.keys().nth(self.random.below(count)).expect("the pool exists").clone())
    }

    fn any_server(&mut self) -> Option<(Arc<str>, ServerId)> {
        let pool = self.any_pool()?;
        let servers = self.pools[&pool].0.servers();
        let count = servers.len();
        (count > 0).then(|| (pool, servers[self.random.below(count)].id))
    }

    /// Connects a client, which some pools know. A retry gets other servers.
    fn connect(&mut self) {
        let Some(name) = self.any_pool() else { return };
        let client = IpAddr::from((0x0a00_0000 + self.random.below(50) as u32).to_be_bytes());
        let (pool, snapshot) = &self.pools[&name];
        let table = PoolTable::derive(pool.spec(), snapshot);
        let request = Request::of(client, self.now);
        let mut tried = Vec::new();
        while let Ok(choice) = snapshot.pick(&request, &tried, &mut self.random) {
            let row = table.row(choice.server.id).expect("a server that is picked has a row");
            match (tried.is_empty(), choice.why) {
                (true, Why::Sticky) => assert_ne!(row.role.takes, Takes::None, "{row:?}"),
                (true, _) => assert_eq!(row.role.takes, Takes::New, "{row:?}"),
                (false, _) => {}
            }
            if self.random.below(4) > 0 {
                snapshot.remember(client, choice.server.id, self.now);
                self.connections.push(choice);
                return;
            }
            tried.push(choice.server.id);
        }
    }

    fn disconnect(&mut self) {
        if !self.connections.is_empty() {
            let at = self.random.below(self.connections.len());
            self.connections.swap_remove(at);
        }
    }

    fn probe(&mut self) {
        let Some((pool, id)) = self.any_server() else { return };
        let result = if self.random.below(3) > 0 { Probe::Pass } else { Probe::Fail("simulated".into()) };
        let now = self.now;
        let _ = self.pool(&pool).on_probe(now, id, result);
    }

    fn fail(&mut self) {
        let Some((pool, id)) = self.any_server() else { return };
        let (now, fails) = (self.now, self.random.below(3) > 0);
        let pool = self.pool(&pool);
        let _ = if fails { pool.on_failure(now, id, &Failure::Refused) } else { pool.on_success(now, id) };
    }

    fn administer(&mut self) {
        let Some((pool, id)) = self.any_server() else { return };
        let (state, now) = (AdminState::ALL[self.random.below(3)], self.now);
        let _ = self.pool(&pool).set_state(now, id, state, None);
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_millis(self.random.below(3_000) as u64);
        let now = self.now;
        self.pools.values_mut().for_each(|(pool, _)| drop(pool.on_time(now)));
    }

    /// Changes the servers or settings of one pool, as a discovered change or a reload does.
    fn change_servers(&mut self) {
        let Some(name) = self.any_pool() else { return };
        let spec = random_pool(&mut self.random, &name);
        let now = self.now;
        let _ = self.pool(&name).apply(&spec, &targets(&spec), now);
    }

    /// Applies another configuration: pools and services come, change and go.
    fn configure(&mut self) {
        let names: Vec<Arc<str>> = (0..POOLS).map(|number| format!("pool-{number}").into()).collect();
        for name in &names {
            match (self.random.below(4), self.pools.contains_key(name)) {
                (0, true) => drop(self.pools.remove(name)),
                (1, true) => {
                    let (spec, now) = (random_pool(&mut self.random, name), self.now);
                    let _ = self.pool(name).apply(&spec, &targets(&spec), now);
                }
                (1.., false) => {
                    let spec = random_pool(&mut self.random, name);
                    let first_id = self.random.below(3) as u32 * 1000;
                    let setting = PoolSetting { workers: 1, key: 1, first_id };
                    let mut pool = Pool::new(&spec, &targets(&spec), setting, self.now);
                    let snapshot = pool.snapshot().expect("a new pool has a snapshot to publish");
                    self.pools.insert(name.clone(), (pool, Arc::new(snapshot)));
                }
                _ => {}
            }
        }
        let pools: Vec<Arc<str>> = self.pools.keys().cloned().collect();
        let names = (0..SERVICES).filter(|_| self.random.below(4) > 0).collect::<Vec<_>>();
        let service = |number| random_service(&mut self.random, &format!("service-{number}"), &pools);
        self.services = names.into_iter().map(service).collect();
        self.publish();
        let pools = &self.pools;
        let find = |name: &str| pools.get(name).map(|(pool, snapshot)| (pool.spec(), &**snapshot));
        let changed = self.tables.configure(&self.services, find);
        self.apply(&changed);
    }

    fn pool(&mut self, name: &Arc<str>) -> &mut Pool {
        &mut self.pools.get_mut(name).expect("the pool exists").0
    }

    /// Publishes changed pools, and derives all tables again, because occupancies may have changed.
    fn publish(&mut self) {
        let names: Vec<Arc<str>> = self.pools.keys().cloned().collect();
        for name in names {
            let (pool, snapshot) = self.pools.get_mut(&name).expect("the pool exists");
            if let Some(new) = pool.snapshot() {
                *snapshot = Arc::new(new);
            }
            let changed = self.tables.on_pool(pool.spec(), snapshot);
            self.apply(&changed);
        }
    }

    fn apply(&mut self, changed: &[ServiceChanges]) {
        for ServiceChanges { service, changes } in changed {
            assert!(!changes.is_empty());
            let model = self.models.entry(service.clone()).or_default();
            model.apply_all(changes, self.tables.of(service), &mut self.seen);
            if model.is_empty() {
                self.models.remove(service);
            }
        }
    }

    fn check(&mut self) {
        assert!(self.models.keys().eq(self.services.iter().map(|service| &service.name)));
        let pool_table = |name: &Arc<str>| {
            let (pool, snapshot) = self.pools.get(name)?;
            Some(Arc::new(PoolTable::derive(pool.spec(), snapshot)))
        };
        for service in &self.services {
            let table = self.tables.of(&service.name).expect("every service has a table");
            assert_eq!(*table, ServiceTable::derive(service, pool_table), "a table is up to date");
            self.models[&service.name].check(table);
        }
        for name in self.pools.keys().cloned().collect::<Vec<_>>() {
            (0..4).for_each(|_| self.check_pick(&name));
        }
    }

    /// Checks that a new client gets a server that takes new clients, and that it gets one if there is one.
    fn check_pick(&mut self, name: &Arc<str>) {
        let client = self.new_client();
        let (pool, snapshot) = &self.pools[name];
        let table = PoolTable::derive(pool.spec(), snapshot);
        let request = Request::of(client, self.now);
        let open: Vec<_> = table.rows().filter(|(_, row)| row.role.takes == Takes::New).collect();
        assert!(open.iter().all(|open| table.candidates().contains(open)));
        assert!(open.iter().all(|(_, row)| row.weight > 0 && row.share > 0));
        let may_refuse =
            pool.spec().failover == Failover::Never || open.iter().any(|(_, row)| row.acl.is_some());
        let picked = snapshot.pick(&request, &[], &mut self.random);
        self.seen.count_client(picked.is_ok());
        match picked {
            Ok(choice) => {
                let chosen = open.iter().find(|(id, _)| *id == choice.server.id);
                let (_, row) = chosen.expect("a new client gets a server that takes new clients");
                assert_eq!(row.target, choice.server.target);
                let tiers = open.iter().any(|(_, other)| other.tier != row.tier);
                assert!(!tiers || may_refuse, "only one tier takes new clients");
            }
            Err(refusal) => {
                assert!(open.is_empty() || may_refuse, "{refusal}, but a server takes new clients");
            }
        }
    }
}

#[test]
fn a_plane_that_applies_the_changes_has_the_table() {
    let from = std::env::var("EVENER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = from.map_or(0..30, |seed: u64| seed..seed + 1);
    let mut seen = Seen::default();
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut simulation = Simulation::new(seed);
            (0..400).for_each(|_| simulation.step());
            simulation.seen
        });
        match std::panic::catch_unwind(run) {
            Ok(of_seed) => seen.add(&of_seed),
            Err(_) => panic!("the simulation failed: run it again with EVENER_SEED={seed}"),
        }
    }
    assert!(from.is_some() || seen.is_enough(), "the simulation lacks some changes: {seen:?}");
}
