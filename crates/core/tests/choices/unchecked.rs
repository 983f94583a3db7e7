//! Servers whose first check has not ended: they are used if there is no checked server, and the first check
//! decides their verdict.

use super::{Story, targets};
use evener_core::Endpoint;
use evener_core::event::Event;
use evener_core::health::{Probe, Verdict};
use evener_core::spec::{
    AdminState, CheckKind, CheckSpec, Failover, Policy, PoolSpec, ServerSpec, StickyBy, StickySpec,
};
use std::time::Duration;

fn checked(spec: &mut PoolSpec) {
    spec.check = Some(CheckSpec::new(CheckKind::Tcp));
}

impl Story {
    /// Records the result of a check and returns the name of the pool's event.
    fn probed(&mut self, name: &str, seen: Probe) -> &'static str {
        let id = self.id(name);
        let event = self.pool.on_probe(self.now, id, seen);
        self.publish();
        event.map_or("-", |event| event.name())
    }

    fn passes(&mut self, name: &str) -> &'static str {
        self.probed(name, Probe::Pass)
    }

    fn fails(&mut self, name: &str) -> &'static str {
        self.probed(name, Probe::Fail("refused".into()))
    }

    fn verdict(&self, name: &str) -> Verdict {
        self.pool.server(self.id(name)).unwrap().health.verdict()
    }

    fn reload(&mut self, change: impl FnOnce(&mut PoolSpec)) -> Vec<&'static str> {
        let mut spec = self.pool.spec().clone();
        change(&mut spec);
        let events = self.pool.apply(&spec, &targets(&spec), self.now);
        self.publish();
        events.iter().map(Event::name).collect()
    }
}

#[test]
fn an_unchecked_pool_serves_by_its_policy_immediately() {
    let mut story = Story::new("a b c", checked);
    assert_eq!(story.picks(0..4), "a b c a");
    for policy in [Policy::Hash, Policy::Maglev { table: 251 }] {
        let plain = Story::new("a b c", |spec| spec.policy = policy).picks(0..20);
        let unchecked = |spec: &mut PoolSpec| {
            checked(spec);
            spec.policy = policy;
        };
        assert_eq!(Story::new("a b c", unchecked).picks(0..20), plain, "{policy:?}");
    }
    assert_eq!(Story::new("a@2 b", checked).picks(0..2), "b b");
}

#[test]
fn a_checked_server_is_preferred_and_the_first_check_decides_the_verdict() {
    let mut story = Story::new("a b c@2", checked);
    assert_eq!(story.passes("c"), "server_checked");
    assert_eq!(story.picks(0..2), "c c", "a checked server of a lower tier is preferred");
    assert_eq!((story.passes("a"), story.picks(0..2)), ("server_checked", "a a".into()));
    assert_eq!((story.fails("b"), story.verdict("b")), ("server_down", Verdict::Down));
    assert_eq!(story.picks(0..2), "a a");
    assert_eq!((story.passes("b"), story.passes("b")), ("-", "server_up"));
}

#[test]
fn an_unchecked_server_is_used_if_the_others_are_full_or_marked_down_by_traffic() {
    let mut story = Story::new("a!1/1 b", checked);
    story.passes("a");
    assert_eq!(story.picks(0..2), "a b", "a is full");
    let mut story = Story::new("a b", checked);
    story.refused("a");
    assert_eq!(story.picks(0..2), "b b");
    story.refused("b");
    assert!(story.snapshot.is_usable() && story.picks(0..1) != "-");
}

#[test]
fn without_failover_an_unchecked_server_takes_its_clients() {
    for policy in [Policy::RoundRobin, Policy::Hash] {
        let alone = |spec: &mut PoolSpec| {
            checked(spec);
            (spec.policy, spec.failover) = (policy, Failover::Never);
        };
        let mut story = Story::new("a b", alone);
        assert!(story.snapshot.is_usable());
        assert!(!story.picks(0..8).contains('-'), "{policy:?}");
        story.fails("a");
        story.fails("b");
        assert!(!story.snapshot.is_usable());
        assert_eq!(story.picks(0..2), "- -");
    }
}

#[test]
fn a_server_that_a_reload_adds_waits_for_its_check() {
    let mut story = Story::new("a", checked);
    story.passes("a");
    story.reload(|spec| spec.servers.push(super::server("b")));
    assert_eq!((story.verdict("b"), story.picks(0..3)), (Verdict::Unchecked, "a a a".into()));
    story.passes("b");
    assert!(story.picks(0..2).contains('b'));
}

#[test]
fn a_server_with_a_new_address_is_checked_again_and_keeps_its_clients() {
    let sticky = StickySpec { by: StickyBy::ClientIp, size: 16, ttl: None, failback: false, rebalance: None };
    let mut story = Story::new("a b", |spec| {
        checked(spec);
        spec.sticky = Some(sticky);
    });
    story.passes("a");
    story.passes("b");
    assert_eq!(story.picks(0..2), "a b");
    let move_to = |address: &str| -> Endpoint { address.parse().unwrap() };
    let moved = |address: &str| {
        let endpoint = move_to(address);
        move |spec: &mut PoolSpec| spec.servers[0] = ServerSpec { endpoint, ..spec.servers[0].clone() }
    };
    story.fails("a");
    assert_eq!(story.reload(moved("/run/other")), ["server_moved"]);
    assert_eq!((story.verdict("a"), story.picks([0])), (Verdict::Unchecked, "a".into()));
    assert_eq!(story.snapshot.servers()[0].target.to_string(), "/run/other");
    assert_eq!(story.picks(5..8), "b b b", "other clients do not use the server before its check");
    assert_eq!(story.fails("a"), "server_down", "failed checks of the old address do not count");
    assert_eq!(story.reload(moved("10.0.0.1:80")), ["server_moved"]);
    assert_eq!(story.verdict("a"), Verdict::Unchecked);
    assert_eq!(story.reload(|_| {}), [""; 0]);
}

#[test]
fn a_server_with_a_new_address_is_up_again_in_a_pool_without_checks() {
    let mut story = Story::new("a", |_| {});
    story.refused("a");
    let moved = story.reload(|spec| spec.servers[0].endpoint = "10.0.0.1:80".parse().unwrap());
    assert_eq!((moved, story.verdict("a")), (vec!["server_moved", "server_up"], Verdict::Up));
}

#[test]
fn a_server_that_leaves_maintenance_is_checked_first() {
    let mut story = Story::new("a b", checked);
    story.passes("a");
    story.passes("b");
    story.state("a", AdminState::Maintenance);
    story.state("a", AdminState::Ready);
    assert_eq!((story.verdict("a"), story.picks(0..2)), (Verdict::Unchecked, "b b".into()));
    assert_eq!(story.fails("a"), "server_down");
}

#[test]
fn a_slow_start_begins_with_the_first_check() {
    let mut story = Story::new("a", |spec| {
        checked(spec);
        spec.slow_start = Some(Duration::from_secs(16));
    });
    story.passes("a");
    story.reload(|spec| spec.servers.push(super::server("b")));
    let share = |story: &Story| story.snapshot.servers()[1].share;
    story.wait(60);
    assert!(story.pool.deadline() <= story.now, "a check is due");
    story.passes("b");
    let full = share(&Story::new("a b", |_| {}));
    assert_eq!(share(&story), full / 16);
    story.wait(17);
    assert_eq!(share(&story), full);
    assert_eq!(
        story.snapshot.servers()[0].share,
        full,
        "a server of the first configuration has its full share"
    );
}
