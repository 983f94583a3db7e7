//! The choice of a server, as short scenarios: a pool, events, and the servers that are picked.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "choices/homes.rs"]
mod homes;

#[path = "choices/quorum.rs"]
mod quorum;

#[path = "choices/unchecked.rs"]
mod unchecked;

use evener_core::acl::{Access, Acl};
use evener_core::event::Event;
use evener_core::health::{Failure, Probe};
use evener_core::limits::Limits;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::{Choice, NoServer, Request, Snapshot};
use evener_core::spec::{
    AdminState, CheckKind, CheckSpec, Failover, Policy, PoolSpec, ServerSpec, StickyBy, StickySpec,
};
use evener_core::{Endpoint, Random, ServerId, Target, Time};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

struct Story {
    pool: Pool,
    snapshot: Arc<Snapshot>,
    now: Time,
    random: Random,
    held: Vec<Choice>,
}

impl Story {
    /// Creates a pool. `servers` has words such as `a`, `b*3` (weight), `c@2` (tier), `d!1/2` (soft/hard
    /// limit).
    fn new(servers: &str, change: impl FnOnce(&mut PoolSpec)) -> Self {
        let mut spec = PoolSpec::new("web", servers.split(' ').map(server).collect());
        change(&mut spec);
        let mut pool =
            Pool::new(&spec, &targets(&spec), PoolSetting { workers: 1, key: 1, first_id: 0 }, Time::ZERO);
        let snapshot = Arc::new(pool.snapshot().unwrap());
        Self { pool, snapshot, now: Time::ZERO, random: Random::seeded(1), held: Vec::new() }
    }

    fn id(&self, name: &str) -> ServerId {
        self.pool.servers().iter().find(|server| &*server.spec.name == name).unwrap().id
    }

    fn publish(&mut self) {
        if let Some(snapshot) = self.pool.snapshot() {
            self.snapshot = Arc::new(snapshot);
        }
    }

    fn state(&mut self, name: &str, state: AdminState) {
        let id = self.id(name);
        self.pool.set_state(self.now, id, state, None);
        self.publish();
    }

    fn refused(&mut self, name: &str) {
        let id = self.id(name);
        self.pool.on_failure(self.now, id, &Failure::Refused);
        self.publish();
    }

    /// Advances the time and returns the events of the pool.
    fn wait(&mut self, secs: u64) -> Vec<Event> {
        self.now += Duration::from_secs(secs);
        let events = self.pool.on_time(self.now);
        self.publish();
        events
    }

    /// Returns the number of clients of each home.
    fn homes(&self) -> String {
        let name = |id| self.pool.server(id).map_or("?", |server| &*server.spec.name);
        let homes = self.pool.sticky().unwrap().homes(self.now);
        homes.into_iter().map(|(id, clients)| format!("{}={clients}", name(id))).collect::<Vec<_>>().join(" ")
    }

    /// Picks servers for clients, which are given by numbers. Returns the name of the server of each client, or
    /// `-` if there is none. The connections stay open.
    fn picks(&mut self, clients: impl IntoIterator<Item = u32>) -> String {
        let pick = |client: u32| match self.pick(client, &[]) {
            Ok(choice) => {
                self.snapshot.remember(address(client), choice.server.id, self.now);
                let name = choice.server.name.to_string();
                self.held.push(choice);
                name
            }
            Err(_) => "-".into(),
        };
        clients.into_iter().map(pick).collect::<Vec<_>>().join(" ")
    }

    fn pick(&mut self, client: u32, tried: &[ServerId]) -> Result<Choice, NoServer> {
        let request = Request::of(address(client), self.now);
        self.snapshot.pick(&request, tried, &mut self.random)
    }
}

fn address(client: u32) -> IpAddr {
    IpAddr::from((0xc000_0200 + client).to_be_bytes())
}

fn server(word: &str) -> ServerSpec {
    let mut spec = ServerSpec::new(Endpoint::Unix(format!("/run/{}", &word[..1]).into()));
    spec.name = word[..1].into();
    match word.get(1..2) {
        Some("*") => spec.weight = word[2..].parse().unwrap(),
        Some("@") => spec.tier = word[2..].parse().unwrap(),
        Some("!") => {
            let (soft, hard) = word[2..].split_once('/').unwrap();
            spec.limits = Limits { soft: soft.parse().ok(), hard: hard.parse().ok() };
        }
        _ => {}
    }
    spec
}

fn targets(spec: &PoolSpec) -> Vec<Target> {
    spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect()
}

fn sticky(spec: &mut PoolSpec) {
    spec.sticky =
        Some(StickySpec { by: StickyBy::ClientIp, size: 16, ttl: None, failback: false, rebalance: None });
}

#[test]
fn a_draining_server_gets_no_new_clients_but_keeps_its_known_clients() {
    let mut story = Story::new("a b", sticky);
    assert_eq!(story.picks([1, 2]), "a b");
    story.state("a", AdminState::Drain);
    assert_eq!(story.picks([3, 4, 1]), "b b a");
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 3]), "b b");
    story.state("a", AdminState::Ready);
    assert_eq!(story.picks([7, 8]).split(' ').filter(|name| *name == "a").count(), 1);
}

#[test]
fn a_temporary_state_ends_by_itself() {
    let mut story = Story::new("a b", |_| ());
    let (a, until) = (story.id("a"), story.now + Duration::from_secs(5));
    story.pool.set_state(story.now, a, AdminState::Maintenance, Some(until));
    story.publish();
    assert_eq!((story.picks(1..=2), story.pool.deadline()), ("b b".into(), until));
    story.wait(4);
    assert_eq!(story.picks(1..=2), "b b");
    story.wait(1);
    assert_eq!((story.picks(1..=2), story.pool.deadline()), ("a b".into(), Time::NEVER));
}

#[test]
fn a_lower_tier_serves_only_when_no_higher_tier_can() {
    let mut story = Story::new("a b@2 c@3", |_| ());
    assert_eq!(story.picks([1, 2]), "a a");
    story.refused("a");
    assert_eq!(story.picks([1, 2]), "b b");
    story.refused("b");
    assert_eq!(story.picks([1]), "c");
    story.refused("c");
    assert_eq!(story.picks([1, 2, 3]).len(), 5, "servers that only traffic marked down are a last resort");
    story.wait(30);
    assert_eq!(story.picks([1]), "a");
}

#[test]
fn candidates_come_in_order_until_the_tiers_are_exhausted() {
    let mut story = Story::new("a b c@2", |_| ());
    let mut tried = Vec::new();
    let mut seen = Vec::new();
    while let Ok(choice) = story.pick(1, &tried) {
        tried.push(choice.server.id);
        seen.push(choice.server.name.to_string());
    }
    seen[..2].sort();
    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(story.pick(1, &tried).unwrap_err(), NoServer::Failed);
}

#[test]
fn a_known_client_may_exceed_the_soft_limit_up_to_the_hard_limit() {
    let mut story = Story::new("a!2/3", sticky);
    assert_eq!(story.picks([1, 2, 3, 1, 1]), "a a - a -");
    assert_eq!(story.pick(3, &[]).unwrap_err(), NoServer::Full);
    story.held.pop();
    assert_eq!(story.picks([3, 1]), "- a");
}

#[test]
fn a_client_returns_from_a_lower_tier_when_a_higher_tier_is_available_again() {
    let mut story = Story::new("a b@2", sticky);
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 1]), "b b");
    story.state("a", AdminState::Ready);
    assert_eq!(story.picks([1, 1]), "a a");
    story.state("a", AdminState::Drain);
    assert_eq!(story.picks([1, 2]), "a b");
}

#[test]
fn a_client_of_a_lower_tier_stays_with_its_server_while_no_higher_tier_takes_the_client() {
    let at_tier_2 = |spec: &mut PoolSpec| {
        sticky(spec);
        spec.servers[1..].iter_mut().for_each(|server| server.tier = 2);
    };
    // The higher tier is full.
    let mut story = Story::new("a!1/1 b c d", at_tier_2);
    assert_eq!(story.picks([9, 1, 2, 3]), "a c d b");
    assert_eq!(story.picks([2, 2, 1, 3, 2]), "d d c b d");
    story.held.remove(0);
    assert_eq!(story.picks([2, 1]), "a c", "a client returns when the higher tier has a free slot");
    // The server of the higher tier was tried for this client and failed.
    let mut story = Story::new("a b c d", at_tier_2);
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 2, 3]), "b c d");
    story.state("a", AdminState::Ready);
    let tried = [story.id("a")];
    for _ in 0..3 {
        assert_eq!(story.pick(2, &tried).unwrap().server.name.as_ref(), "c");
    }
    // The access list of the server of the higher tier refuses this client.
    let mut story = Story::new("a b c d", |spec| {
        at_tier_2(spec);
        let refused = [("192.0.2.2/32".parse().unwrap(), Access::Deny)];
        spec.servers[0].acl = Some(Arc::new(Acl::new(&refused, Access::Permit)));
    });
    assert_eq!(story.picks([2, 1, 2, 2]), "b a b b");
}

#[test]
fn the_policy_first_picks_the_first_server_with_room() {
    let mut story = Story::new("a!2/2 b c", |spec| spec.policy = Policy::First);
    assert_eq!(story.picks(1..=4), "a a b b");
    story.state("b", AdminState::Maintenance);
    assert_eq!(story.picks(5..=6), "c c");
}

#[test]
fn without_failover_a_client_has_one_server_or_none() {
    let never = |policy| move |spec: &mut PoolSpec| (spec.policy, spec.failover) = (policy, Failover::Never);
    let mut story = Story::new("a b c@2", never(Policy::Hash));
    let all = story.picks(0..40);
    story.refused("a");
    let left = story.picks(0..40);
    assert_eq!(left, all.replace('a', "-"));
    assert!(left.contains('b') && !left.contains('c'));
    let tried = [story.id("b")];
    assert_eq!(story.pick(1, &tried).unwrap_err(), NoServer::NoFailover);

    let mut story = Story::new("a!1/1 b", never(Policy::RoundRobin));
    assert_eq!(story.picks(1..=4), "a b - b", "a client whose server is full is refused");
    story.refused("b");
    assert_eq!(story.picks(5..=6), "- -");

    let mut story = Story::new("a b@2", sticky);
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1]), "b");
    let alone = PoolSpec { failover: Failover::Never, ..story.pool.spec().clone() };
    story.pool.apply(&alone, &targets(&alone), story.now);
    story.state("a", AdminState::Ready);
    assert_eq!(story.picks([1]), "a", "a client returns from a lower tier");

    let mut story = Story::new("a b", |spec| {
        sticky(spec);
        spec.failover = Failover::Never;
    });
    assert_eq!(story.picks([1, 2]), "a b");
    story.refused("b");
    assert_eq!(story.picks([2, 3, 2]), "- a -");
}

#[test]
fn without_failover_lower_tiers_are_never_picked() {
    for policy in [Policy::RoundRobin, Policy::Hash] {
        let mut story = Story::new("a b@2", |spec| (spec.policy, spec.failover) = (policy, Failover::Never));
        let first = |story: &Story| {
            story.snapshot.first_choices().map(|server| server.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!((first(&story), story.snapshot.is_usable()), (vec!["a".to_owned()], true));
        story.refused("a");
        assert_eq!((first(&story), story.snapshot.is_usable()), (Vec::new(), false));
        assert_eq!(story.pick(1, &[]).unwrap_err(), NoServer::Down);
    }
    let mut story = Story::new("a!0/0 b@2", |spec| spec.failover = Failover::Never);
    assert_eq!(story.pick(1, &[]).unwrap_err(), NoServer::NoFailover, "a usable server without a slot");
}

#[test]
fn returning_clients_do_not_advance_the_round_robin() {
    let mut story = Story::new("a b", sticky);
    assert_eq!(story.picks([1, 1, 2, 2, 3, 3, 4, 4]), "a a b b a a b b");
    let mut alone = Story::new("a b", |spec| {
        sticky(spec);
        spec.failover = Failover::Never;
    });
    assert_eq!(alone.picks([1, 1, 2, 2, 3, 3]), "a a b b a a");
}

#[test]
fn new_clients_of_a_full_server_get_the_next_server() {
    let mut story = Story::new("a!1/1 b@2", |spec| spec.policy = Policy::LeastConn);
    assert_eq!(story.picks([1, 2, 3]), "a b b");
}

#[test]
fn clients_are_spread_by_weight_and_a_weight_of_zero_gets_none() {
    let mut story = Story::new("a*5 b*1 c*1 d*0", |spec| spec.policy = Policy::Weighted);
    assert_eq!(story.picks(1..=14), "a a b a c a a a a b a c a a");
}

#[test]
fn a_server_that_came_up_starts_slowly() {
    let mut story = Story::new("a b", |spec| {
        spec.policy = Policy::Weighted;
        spec.slow_start = Some(Duration::from_secs(16));
    });
    let share = |story: &mut Story| story.picks(0..100).split(' ').filter(|name| *name == "a").count();
    assert_eq!(share(&mut story), 50, "at the start every server has its full share");
    story.refused("a");
    assert_eq!(share(&mut story), 0);
    story.wait(30);
    assert!((4..=8).contains(&share(&mut story)));
    story.wait(7);
    assert!((30..=38).contains(&share(&mut story)), "half the weight is a third of the clients");
    story.wait(9);
    assert_eq!(share(&mut story), 50);
}

#[test]
fn a_server_that_fails_its_check_is_not_a_last_resort() {
    let check = CheckSpec { rise: 1, fall: 1, ..CheckSpec::new(CheckKind::Tcp) };
    let mut story = Story::new("a", |spec| spec.check = Some(check));
    story.refused("a");
    assert_eq!(story.picks([1]), "a", "a server that only traffic marked down is a last resort");
    let id = story.id("a");
    story.pool.on_probe(story.now, id, Probe::Fail("refused".into()));
    story.publish();
    assert_eq!(story.pick(1, &[]).unwrap_err(), NoServer::Down);
    story.pool.on_probe(story.now, id, Probe::Pass);
    story.publish();
    assert_eq!(story.picks([1]), "a");
}

#[test]
fn a_reload_keeps_clients_counters_and_verdicts_of_remaining_servers() {
    let mut story = Story::new("a b c", sticky);
    assert_eq!(story.picks([1, 2, 3]), "a b c");
    story.refused("b");
    let mut spec = story.pool.spec().clone();
    spec.servers = "d c b".split(' ').map(server).collect();
    let events = story.pool.apply(&spec, &targets(&spec), story.now);
    let names: Vec<&str> = events.iter().map(Event::name).collect();
    assert_eq!(names, ["server_added", "server_removed"]);
    story.publish();
    assert_eq!(story.picks([3, 1, 4]), "c c d");
    let active = |name: &str| {
        let server = story.pool.servers().iter().find(|server| &*server.spec.name == name).unwrap();
        (server.live.occupancy.active(), server.health.reason().map(str::to_owned))
    };
    assert_eq!(active("c"), (3, None));
    assert_eq!(active("b"), (1, Some("refused".into())));
}

#[test]
fn sixty_clients_by_hash_over_two_servers_spread_evenly_and_stay() {
    let mut story = Story::new("a b", |spec| spec.policy = Policy::Hash);
    let first = story.picks(0..60);
    let of_a = first.split(' ').filter(|name| *name == "a").count();
    assert!((20..=40).contains(&of_a), "{of_a} of 60");
    assert_eq!(story.picks(0..60), first);
}

#[test]
fn the_server_with_the_fewest_outstanding_queries_and_then_the_lowest_latency_is_picked() {
    let by_outstanding = |spec: &mut PoolSpec| spec.policy = Policy::LeastOutstanding;
    let mut story = Story::new("a b c", by_outstanding);
    assert_eq!(story.picks(1..=6), "a b c a b c", "servers without a latency take turns");
    story.held.clear();
    let respond = |story: &Story, name: &str, millis| {
        let server = story.snapshot.server(story.id(name)).unwrap();
        story.snapshot.observe(server, Duration::from_millis(millis), story.now);
    };
    [("a", 30), ("b", 10), ("c", 20)].iter().for_each(|&(name, millis)| respond(&story, name, millis));
    assert_eq!(
        story.picks(1..=6),
        "b c a b c a",
        "latency decides only between servers with equally many queries"
    );
    story.held.retain(|choice| &*choice.server.name == "b");
    assert_eq!(story.picks(7..=10), "c a c a");
    story.refused("c");
    story.held.clear();
    assert_eq!(story.picks(1..=3), "b a b");
    respond(&story, "b", 50);
    story.held.clear();
    assert_eq!(story.picks(1..=3), "a b a", "one slow response is enough");
}

#[test]
fn outstanding_queries_are_divided_by_weight_and_limits_hold() {
    let mut story = Story::new("a*2 b", |spec| spec.policy = Policy::LeastOutstanding);
    assert_eq!(story.picks(1..=6), "a a b a a b");
    let mut story = Story::new("a!1/1 b c@2", |spec| spec.policy = Policy::LeastOutstanding);
    assert_eq!(story.picks(1..=4), "a b b b");
    let tried = [story.id("b")];
    assert_eq!(story.pick(9, &tried).unwrap().server.name.as_ref(), "c");
}
