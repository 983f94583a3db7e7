//! The forecast of a change against the change itself, over random pairs of configurations: the clients that are
//! predicted to stay, to move or to be free are those that do. A failure prints the seed.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use evener_core::acl::{Access, Acl};
use evener_core::health::{Failure, Probe, Verdict};
use evener_core::limits::Limits;
use evener_core::pool::{Fate, MoveReason, Pool, PoolSetting};
use evener_core::snapshot::{Choice, Request, Snapshot, Why};
use evener_core::spec::{
    AdminState, CheckKind, CheckSpec, Failover, Policy, PoolSpec, QuorumSpec, ServerSpec, StickyBy,
    StickySpec,
};
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const PAIRS: u64 = 3_000;
const CLIENTS: u32 = 60;
/// Number of choices for one client, after which a server that may be chosen was chosen.
const PICKS: usize = 80;

fn one_in(random: &mut Random, count: usize) -> bool {
    random.below(count) == 0
}

fn random_server(random: &mut Random, name: usize) -> ServerSpec {
    // Another address for a known name is a server that moved.
    let port = if one_in(random, 12) { 81 } else { 80 };
    let address: Endpoint = format!("10.0.0.{name}:{port}").parse().unwrap();
    let mut spec = ServerSpec::new(address);
    spec.name = format!("s{name}").into();
    spec.weight = [1, 1, 1, 2, 3, 0][random.below(6)];
    spec.tier = u8::from(one_in(random, 5));
    spec.is_sorry = one_in(random, 25);
    spec.state = match random.below(12) {
        0 => AdminState::Drain,
        1 => AdminState::Maintenance,
        _ => AdminState::Ready,
    };
    if one_in(random, 10) {
        spec.limits = Limits { soft: Some(3), hard: Some(5) };
    }
    if one_in(random, 15) {
        let denied = ("192.0.2.0/27".parse().unwrap(), Access::Deny);
        spec.acl = Some(Arc::new(Acl::new(&[denied], Access::Permit)));
    }
    spec
}

fn random_spec(random: &mut Random) -> PoolSpec {
    let servers = (0..9).filter(|_| !one_in(random, 3)).collect::<Vec<_>>();
    let servers = servers.into_iter().map(|name| random_server(random, name)).collect();
    let mut spec = PoolSpec::new("web", servers);
    spec.policy = Policy::named(Policy::NAMES[random.below(Policy::NAMES.len())]).unwrap();
    if one_in(random, 2) {
        spec.policy = [Policy::Hash, Policy::Maglev { table: 251 }][random.below(2)];
    }
    if !one_in(random, 3) {
        spec.sticky = Some(StickySpec {
            by: StickyBy::ClientIp,
            size: [8, 40, 100][random.below(3)],
            ttl: [None, Some(Duration::from_secs(30)), Some(Duration::from_secs(90))][random.below(3)],
            failback: one_in(random, 2),
            rebalance: None,
        });
    }
    if one_in(random, 6) {
        spec.failover = Failover::Never;
    }
    if one_in(random, 6) {
        spec.quorum = Some(QuorumSpec { weight: 3, ..QuorumSpec::ANY });
    }
    if one_in(random, 3) {
        spec.check = Some(CheckSpec::new(CheckKind::Tcp));
    }
    spec
}

/// Changes a few things of a specification, or all.
fn random_change(random: &mut Random, spec: &PoolSpec) -> PoolSpec {
    let other = random_spec(random);
    if one_in(random, 4) {
        return other;
    }
    let mut spec = spec.clone();
    for _ in 0..=random.below(2) {
        match random.below(7) {
            0 => drop(
                (!spec.servers.is_empty()).then(|| spec.servers.remove(random.below(spec.servers.len()))),
            ),
            1 => {
                let known: BTreeSet<_> = spec.servers.iter().map(|server| server.name.clone()).collect();
                let new = other.servers.iter().find(|server| !known.contains(&server.name));
                spec.servers.extend(new.cloned());
            }
            2 => {
                spec.servers.iter_mut().take(1).for_each(|server| server.weight = [0, 1, 4][random.below(3)]);
            }
            3 => spec.servers.iter_mut().take(2).for_each(|server| server.state = AdminState::Drain),
            4 => spec.policy = other.policy,
            5 => spec.sticky.clone_from(&other.sticky),
            _ => (spec.failover, spec.quorum) = (other.failover, other.quorum),
        }
    }
    spec
}

fn targets(spec: &PoolSpec) -> Vec<Target> {
    spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect()
}

fn client(number: u32) -> IpAddr {
    IpAddr::from((0xc000_0200 + number).to_be_bytes())
}

struct Pair {
    random: Random,
    now: Time,
    pool: Pool,
    snapshot: Arc<Snapshot>,
    held: Vec<(IpAddr, Choice)>,
}

impl Pair {
    fn new(seed: u64) -> (Self, PoolSpec) {
        let mut random = Random::seeded(seed);
        let spec = random_spec(&mut random);
        let setting = PoolSetting { workers: 1, key: seed, first_id: 0 };
        let mut pool = Pool::new(&spec, &targets(&spec), setting, Time::ZERO);
        let snapshot = Arc::new(pool.snapshot().unwrap());
        let mut pair = Self { random, now: Time::ZERO, pool, snapshot, held: Vec::new() };
        pair.live();
        let changed = random_change(&mut pair.random, &spec);
        (pair, changed)
    }

    fn publish(&mut self) {
        self.snapshot = self.pool.snapshot().map_or_else(|| Arc::clone(&self.snapshot), Arc::new);
    }

    /// Lets clients come and go, and servers fail.
    fn live(&mut self) {
        for step in 0..3 * CLIENTS {
            self.now += Duration::from_millis(500);
            let address = client(self.random.below(CLIENTS as usize) as u32);
            if let Ok(choice) = self.pick(&Arc::clone(&self.snapshot), address) {
                self.snapshot.remember(address, choice.server.id, self.now);
                if one_in(&mut self.random, 8) {
                    self.held.push((address, choice));
                }
            }
            let ids: Vec<ServerId> = self.pool.servers().iter().map(|server| server.id).collect();
            if step % 10 == 9 && !ids.is_empty() {
                let id = ids[self.random.below(ids.len())];
                match self.random.below(4) {
                    0 => drop(self.pool.on_failure(self.now, id, &Failure::Refused)),
                    1 => drop(self.pool.on_probe(self.now, id, Probe::Fail("no".into()))),
                    2 => drop(self.pool.on_probe(self.now, id, Probe::Pass)),
                    _ => drop(self.pool.on_success(self.now, id)),
                }
                self.publish();
            }
        }
    }

    fn pick(
        &mut self,
        snapshot: &Snapshot,
        address: IpAddr,
    ) -> Result<Choice, evener_core::snapshot::NoServer> {
        snapshot.pick(&Request::of(address, self.now), &[], &mut self.random)
    }

    /// Applies the change, and lets the new servers pass their first checks.
    fn apply(&mut self, spec: &PoolSpec) {
        let unchecked = |pool: &Pool| -> BTreeSet<ServerId> {
            let servers = pool.servers().iter();
            servers.filter(|s| s.health.verdict() == Verdict::Unchecked).map(|server| server.id).collect()
        };
        let before = unchecked(&self.pool);
        self.pool.apply(spec, &targets(spec), self.now);
        for id in unchecked(&self.pool).difference(&before) {
            let _ = self.pool.on_probe(self.now, *id, Probe::Pass);
        }
        self.publish();
    }

    /// Compares what was predicted for a client of a server with what the client gets.
    fn compare(&mut self, seed: u64, address: IpAddr, (server, fate): (ServerId, Fate)) {
        let snapshot = Arc::clone(&self.snapshot);
        let seen: Vec<Option<(ServerId, Why)>> = (0..PICKS)
            .map(|_| self.pick(&snapshot, address).ok().map(|choice| (choice.server.id, choice.why)))
            .collect();
        let gets = |seen: &Option<(ServerId, Why)>| seen.is_some_and(|(id, _)| id == server);
        let context = || format!("seed {seed}, client {address} of {server:?}: {fate:?}, {:?}", seen[0]);
        match fate {
            Fate::Stays => assert!(seen.iter().all(gets), "{}", context()),
            Fate::Moves(_) => assert!(!seen.iter().any(gets), "{}", context()),
            Fate::MayMove(_) => {
                // Without failover the client may also get none.
                let may_get_none = snapshot.has_no_failover();
                let is_chosen =
                    |seen: &Option<(ServerId, Why)>| seen.map_or(may_get_none, |(_, why)| why != Why::Sticky);
                assert!(seen.iter().all(is_chosen), "{}", context());
                let others = snapshot.servers().iter().filter(|other| snapshot.may_choose(other.id, address));
                let may_differ = others.count() > 1 || may_get_none;
                assert!(may_differ && snapshot.may_choose(server, address), "{}", context());
            }
        }
    }
}

/// Number of clients by reason, to see that the pairs are worth something.
type Seen = BTreeMap<MoveReason, usize>;

fn note(seen: &mut Seen, stays: &mut usize, fate: Fate) {
    match fate {
        Fate::Stays => *stays += 1,
        Fate::Moves(reason) | Fate::MayMove(reason) => *seen.entry(reason).or_default() += 1,
    }
}

#[test]
fn the_clients_that_move_are_those_that_were_predicted() {
    let (mut seen, mut stays) = (Seen::new(), 0);
    for seed in 0..PAIRS {
        let (mut pair, changed) = Pair::new(seed);
        let forecast = pair.pool.forecast(Arc::clone(&pair.snapshot), &changed, &targets(&changed), pair.now);
        let mut predicted = BTreeMap::new();
        forecast.visit_sticky(pair.now, |address, server, fate| {
            assert!(
                predicted.insert(address, (server, fate)).is_none(),
                "seed {seed}: {address} is listed once"
            );
        });
        // The prediction covers exactly the clients that their server in the table takes now.
        let before = Arc::clone(&pair.snapshot);
        let mut by_policy = BTreeMap::new();
        for address in (0..CLIENTS).map(client) {
            let choice = pair.pick(&before, address).ok();
            let assigned = choice.filter(|choice| choice.why == Why::Sticky).map(|choice| choice.server.id);
            assert_eq!(
                predicted.get(&address).map(|(server, _)| *server),
                assigned,
                "seed {seed}, {address}"
            );
            if before.sticky().is_none() && changed.sticky.is_none() {
                by_policy.extend(forecast.fate_by_policy(address, pair.now).map(|found| (address, found)));
            }
        }
        for (address, (server, _)) in &by_policy {
            let choice = pair.pick(&before, *address).unwrap();
            assert_eq!(choice.server.id, *server, "seed {seed}: {address} has this server before the change");
        }
        assert_eq!(
            forecast.tally_sticky(pair.now).tracked,
            predicted.len(),
            "seed {seed}: nothing was changed"
        );
        pair.apply(&changed);
        for (address, found) in predicted.into_iter().chain(by_policy) {
            note(&mut seen, &mut stays, found.1);
            pair.compare(seed, address, found);
        }
    }
    let reasons = [
        MoveReason::ServerRemoved,
        MoveReason::StateChanged,
        MoveReason::StickyChanged,
        MoveReason::PolicyChanged,
        MoveReason::TierChanged,
        MoveReason::ServerAdded,
        MoveReason::WeightChanged,
    ];
    assert!(stays > 10_000, "{stays} clients stayed");
    assert!(reasons.iter().all(|reason| seen.get(reason).is_some_and(|count| *count > 100)), "{seen:?}");
}

#[test]
fn the_flows_that_move_are_those_that_were_predicted() {
    let mut moved = 0;
    for seed in 0..PAIRS {
        let (mut pair, changed) = Pair::new(seed);
        let forecast = pair.pool.forecast(Arc::clone(&pair.snapshot), &changed, &targets(&changed), pair.now);
        let flows: Vec<(IpAddr, ServerId, Target)> =
            pair.held.iter().map(|(at, held)| (*at, held.server.id, held.server.target.clone())).collect();
        let fates: Vec<Fate> =
            flows.iter().map(|(at, server, target)| forecast.fate_of_flow(*server, target, *at)).collect();
        pair.apply(&changed);
        for ((at, server, target), fate) in flows.iter().zip(fates) {
            let stays = pair.snapshot.keeps_flow(*server, target, *at);
            assert_eq!(fate == Fate::Stays, stays, "seed {seed}: {at} at {target}: {fate:?}");
            moved += usize::from(!stays);
        }
    }
    assert!(moved > 1_000, "{moved} flows moved");
}

#[test]
fn a_forecast_changes_nothing() {
    for seed in 0..PAIRS / 10 {
        let (mut pair, changed) = Pair::new(seed);
        let clients = |pool: &Pool, now| pool.sticky().map(|sticky| sticky.clients(now, usize::MAX));
        let (before, generation) = (clients(&pair.pool, pair.now), pair.snapshot.generation);
        let forecast = pair.pool.forecast(Arc::clone(&pair.snapshot), &changed, &targets(&changed), pair.now);
        let _ = (forecast.tally_sticky(pair.now), forecast.share_moved(50, pair.now));
        assert_eq!(clients(&pair.pool, pair.now), before, "seed {seed}");
        pair.publish();
        assert_eq!(pair.snapshot.generation, generation, "seed {seed}: nothing was published");
    }
}

#[test]
fn a_tenth_of_the_addresses_moves_to_a_tenth_server() {
    let servers =
        |count: usize| (0..count).map(|n| ServerSpec::new(format!("10.0.0.{n}:80").parse().unwrap()));
    for policy in [Policy::Hash, Policy::Maglev { table: 65_537 }, Policy::RoundRobin] {
        let spec = |count| PoolSpec { policy, ..PoolSpec::new("web", servers(count).collect()) };
        let setting = PoolSetting { workers: 1, key: 1, first_id: 0 };
        let mut pool = Pool::new(&spec(9), &targets(&spec(9)), setting, Time::ZERO);
        let before = Arc::new(pool.snapshot().unwrap());
        let forecast = pool.forecast(before, &spec(10), &targets(&spec(10)), Time::ZERO);
        match forecast.share_moved(4_000, Time::ZERO) {
            Some(share) => assert!((0.07..0.15).contains(&share), "{policy:?}: {share}"),
            None => assert_eq!(policy, Policy::RoundRobin, "addresses have no server of their own"),
        }
    }
}
