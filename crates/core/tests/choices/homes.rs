//! Scenarios of clients with a home: the servers of the clients while the home is unavailable, and the balance
//! between homes.

use super::*;

/// Makes the pool sticky with homes, which are rebalanced every 15 s and expire after 300 s.
fn homes(spec: &mut PoolSpec) {
    spec.sticky = Some(StickySpec {
        by: StickyBy::ClientIp,
        size: 1000,
        ttl: Some(Duration::from_secs(300)),
        failback: true,
        rebalance: Some(Duration::from_secs(15)),
    });
}

#[test]
fn a_client_returns_to_its_home() {
    let mut story = Story::new("a b c", homes);
    assert_eq!(story.picks([1, 2, 3]), "a b c");
    story.refused("a");
    assert_eq!(story.picks([1, 2, 3]), "c b c");
    assert_eq!(story.picks([1, 1]), "c c", "the client stays with its substitute");
    story.state("c", AdminState::Maintenance);
    assert_eq!(story.picks([1, 1]), "b b");
    story.state("c", AdminState::Ready);
    assert_eq!(story.picks([1, 3]), "b c", "a client leaves a working substitute only for its home");
    assert_eq!(story.homes(), "a=1 b=1 c=1", "a client with a substitute counts for its home");
    story.wait(30);
    assert_eq!(story.picks([1, 1]), "a a");
    story.state("a", AdminState::Drain);
    assert_eq!(story.picks([1]), "a", "a home that drains keeps its clients");
}

#[test]
fn without_failback_a_client_keeps_its_new_server() {
    let mut story = Story::new("a b", sticky);
    assert_eq!(story.picks([1, 2]), "a b");
    story.refused("a");
    assert_eq!(story.picks([1]), "b");
    story.wait(30);
    assert_eq!((story.picks([1]), story.homes()), ("b".into(), "b=2".into()));
}

#[test]
fn a_removed_home_is_replaced() {
    let mut story = Story::new("a b", homes);
    assert_eq!(story.picks([1, 2]), "a b");
    story.refused("a");
    assert_eq!(story.picks([1]), "b");
    let mut reload = |servers: &str| {
        let mut spec = story.pool.spec().clone();
        spec.servers = servers.split(' ').map(server).collect();
        story.pool.apply(&spec, &targets(&spec), story.now);
        story.publish();
        let picked = story.picks([1, 2]);
        (picked, story.homes())
    };
    assert_eq!(reload("b"), ("b b".into(), "b=2".into()));
    assert_eq!(
        reload("a b"),
        ("b b".into(), "b=2".into()),
        "a new server with the name of a removed home is not a home"
    );
    assert_eq!(reload("a"), ("a a".into(), "a=2".into()));
}

#[test]
fn the_substitute_of_a_client_may_be_removed_too() {
    let mut story = Story::new("a b c", homes);
    assert_eq!(story.picks([1]), "a");
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 1]), "c c");
    let mut spec = story.pool.spec().clone();
    spec.servers.remove(2);
    story.pool.apply(&spec, &targets(&spec), story.now);
    story.publish();
    assert_eq!((story.picks([1]), story.homes()), ("b".into(), "a=1".into()));
    story.state("a", AdminState::Ready);
    assert_eq!(story.picks([1]), "a");
}

#[test]
fn a_home_of_a_lower_tier_is_replaced_by_a_server_of_a_higher_tier() {
    let mut story = Story::new("a b@2", homes);
    story.state("a", AdminState::Maintenance);
    assert_eq!((story.picks([1]), story.homes()), ("b".into(), "b=1".into()));
    story.state("a", AdminState::Ready);
    assert_eq!((story.picks([1]), story.homes()), ("a".into(), "a=1".into()));
    story.state("a", AdminState::Maintenance);
    assert_eq!((story.picks([1]), story.homes()), ("b".into(), "a=1".into()));
}

#[test]
fn without_failover_a_client_waits_for_its_home() {
    let mut story = Story::new("a b", |spec| {
        homes(spec);
        spec.failover = Failover::Never;
    });
    assert_eq!(story.picks([1, 2]), "a b");
    story.refused("a");
    assert_eq!(story.picks([1, 2, 1]), "- b -");
    story.wait(30);
    assert_eq!(story.picks([1, 2]), "a b");
}

#[test]
fn the_surplus_of_the_server_with_the_most_clients_is_rebalanced() {
    let mut story = Story::new("a b", homes);
    story.state("b", AdminState::Maintenance);
    story.picks(1..=20);
    assert_eq!(story.wait(15), [], "no other server can take the clients");
    story.state("b", AdminState::Ready);
    assert_eq!(story.wait(14), [], "no client is rebalanced before 15 s have passed");
    assert_eq!(story.pool.deadline(), story.now + Duration::from_secs(1));
    let events = story.wait(1);
    let expected = Event::ClientsRebalanced { pool: "web".into(), server: "a".into(), clients: 18 };
    assert_eq!((events, story.homes()), (vec![expected], "a=2".into()));
    story.picks(1..=20);
    assert_eq!(story.homes(), "a=11 b=9");
    assert_eq!((story.wait(15), story.homes()), (vec![], "a=11 b=9".into()));
    // Server b is unavailable again: the homes of its clients do not change.
    story.refused("b");
    assert_eq!((story.picks(1..=20).contains('b'), story.homes()), (false, "a=11 b=9".into()));
    story.picks(21..=40);
    assert_eq!((story.wait(15), story.homes()), (vec![], "a=31 b=9".into()));
    // Server b is up again and still has its clients, so only the new clients of a are surplus.
    let events: Vec<Event> = (0..2).flat_map(|_| story.wait(15)).collect();
    let names: Vec<&str> = events.iter().map(Event::name).collect();
    assert_eq!((names, story.homes()), (vec!["server_up", "clients_rebalanced"], "a=11 b=9".into()));
}

#[test]
fn only_servers_that_get_new_clients_are_compared() {
    let mut story = Story::new("a b c@2 d", homes);
    story.state("d", AdminState::Drain);
    story.picks(1..=40);
    assert_eq!((story.wait(15), story.homes()), (vec![], "a=20 b=20".into()));
    // The number of clients does not matter if the policy picks by address or by order.
    for policy in [Policy::Hash, Policy::Maglev { table: 251 }, Policy::First] {
        let mut story = Story::new("a b", |spec| {
            homes(spec);
            spec.policy = policy;
        });
        story.state("b", AdminState::Maintenance);
        story.picks(1..=40);
        story.state("b", AdminState::Ready);
        assert_eq!((story.wait(15), story.homes()), (vec![], "a=40".into()));
    }
}

#[test]
fn weights_and_slow_starts_decide_how_many_clients_are_rebalanced() {
    let mut story = Story::new("a*3 b", |spec| {
        homes(spec);
        spec.policy = Policy::Weighted;
    });
    story.picks(1..=40);
    assert_eq!((story.wait(15), story.homes()), (vec![], "a=30 b=10".into()));
    // A new server that has a sixteenth of its share should have a sixteenth of the clients under any policy.
    for policy in [Policy::RoundRobin, Policy::Weighted, Policy::LeastConn] {
        let after = |slow_start| {
            let mut story = Story::new("a*3 b*3", |spec| {
                homes(spec);
                (spec.policy, spec.slow_start) = (policy, slow_start);
            });
            story.state("b", AdminState::Maintenance);
            story.state("b", AdminState::Ready);
            let (a, b) = (story.id("a"), story.id("b"));
            (0..16).for_each(|client| story.snapshot.remember(address(client), a, story.now));
            story.snapshot.remember(address(16), b, story.now);
            story.wait(15);
            story.homes()
        };
        assert_eq!(after(Some(Duration::from_secs(3600))), "a=16 b=1", "{policy:?}");
        assert_eq!(after(None), "a=3 b=1", "{policy:?}");
    }
}

#[test]
fn expired_clients_do_not_count_and_are_removed() {
    let mut story = Story::new("a b", homes);
    story.state("b", AdminState::Maintenance);
    story.picks(1..=40);
    story.state("b", AdminState::Ready);
    assert_eq!(story.pool.remembered(), Some(40));
    assert_eq!((story.wait(300), story.pool.remembered()), (vec![], Some(0)));
    // The table is swept even if nothing is rebalanced.
    let mut story = Story::new("a b", |spec| {
        homes(spec);
        spec.sticky.as_mut().unwrap().rebalance = None;
    });
    story.picks(1..=40);
    assert_eq!(story.pool.deadline(), story.now + Duration::from_secs(30));
    story.wait(299);
    assert_eq!(story.pool.remembered(), Some(40));
    story.wait(30);
    assert_eq!(story.pool.remembered(), Some(0));
}
