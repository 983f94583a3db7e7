//! Servers that are given by a host name: the address is the identity when only the name of the server changes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::Request;
use evener_core::spec::{AdminState, Policy, PoolSpec, ServerSpec};
use evener_core::table::PoolTable;
use evener_core::{Endpoint, Random, Target, Time};
use std::net::IpAddr;
use std::sync::atomic::Ordering;

/// Servers of one host as `name=address`, separated by spaces. The first letter of a name is the name in the
/// configuration.
fn spec(servers: &str) -> (PoolSpec, Vec<Target>) {
    let host = Endpoint::Host { name: "app".into(), port: 80 };
    let server = |text: &str| {
        let (name, address) = text.split_once('=').unwrap();
        let target = format!("{address}:80").parse::<Endpoint>().unwrap().target().unwrap();
        let configured_name = Some(name[..1].into());
        (ServerSpec { name: name.into(), configured_name, ..ServerSpec::new(host.clone()) }, target)
    };
    let (servers, targets) = servers.split(' ').map(server).unzip();
    (PoolSpec::new("p", servers), targets)
}

/// Applies two specifications, and returns the identities after the second one, and the names of the events.
fn applied(before: &str, after: &str) -> (String, Vec<&'static str>) {
    let (spec_before, targets) = spec(before);
    let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
    let mut pool = Pool::new(&spec_before, &targets, setting, Time::ZERO);
    let (spec_after, targets) = spec(after);
    let events = pool.apply(&spec_after, &targets, Time::ZERO);
    pool.check_invariants();
    let ids = pool.servers().iter().map(|server| format!("{}={}", server.spec.name, server.id.0));
    (ids.collect::<Vec<_>>().join(" "), events.iter().map(evener_core::event::Event::name).collect())
}

#[test]
fn a_server_whose_address_stays_is_only_renamed() {
    let check = |before: &str, after: &str, ids: &str, events: &[&str]| {
        assert_eq!(applied(before, after), (ids.to_owned(), events.to_vec()), "{before} -> {after}");
    };
    check("x=10.0.0.1", "x=10.0.0.1", "x=0", &[]);
    check("x=10.0.0.1", "x=10.0.0.2", "x=0", &["server_moved"]);
    check("x=10.0.0.1", "x1=10.0.0.1 x2=10.0.0.2", "x1=0 x2=1", &["server_renamed", "server_added"]);
    check("x=10.0.0.2", "x1=10.0.0.1 x2=10.0.0.2", "x1=1 x2=0", &["server_added", "server_renamed"]);
    check("x1=10.0.0.1 x2=10.0.0.2", "x=10.0.0.2", "x=1", &["server_renamed", "server_removed"]);
    check(
        "x1=10.0.0.1 x2=10.0.0.2",
        "x2=10.0.0.2 x3=10.0.0.3",
        "x2=1 x3=2",
        &["server_added", "server_removed"],
    );
    check(
        "x=10.0.0.1",
        "x2=10.0.0.2 x3=10.0.0.3",
        "x2=1 x3=2",
        &["server_added", "server_added", "server_removed"],
    );
}

#[test]
fn two_servers_with_one_host_name_keep_their_identities() {
    let (one, two) = ("a=10.0.0.1 b=10.0.0.1", "a1=10.0.0.1 a2=10.0.0.2 b1=10.0.0.1 b2=10.0.0.2");
    let (ids, events) = applied(one, two);
    assert_eq!(ids, "a1=0 a2=2 b1=1 b2=3");
    assert_eq!(events, ["server_renamed", "server_added", "server_renamed", "server_added"]);
    let (ids, events) = applied(two, one);
    assert_eq!(ids, "a=0 b=2");
    assert_eq!(events, ["server_renamed", "server_renamed", "server_removed", "server_removed"]);
}

#[test]
fn a_server_that_the_configuration_renames_is_another_server() {
    let (ids, events) = applied("a=10.0.0.1", "b=10.0.0.1");
    assert_eq!((&*ids, &*events), ("b=1", &["server_added", "server_removed"][..]));
}

/// Returns the addresses of the servers that clients get with `policy`, before and after a change.
fn picked(policy: Policy, before: &str, after: &str) -> Vec<(String, String)> {
    let (mut spec_before, targets) = spec(before);
    spec_before.policy = policy;
    let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
    let mut pool = Pool::new(&spec_before, &targets, setting, Time::ZERO);
    let first = pool.snapshot().unwrap();
    let (mut spec_after, targets) = spec(after);
    spec_after.policy = policy;
    pool.apply(&spec_after, &targets, Time::ZERO);
    let second = pool.snapshot().unwrap();
    let mut random = Random::seeded(1);
    let mut pick = |client: u32| {
        let request = Request::of(IpAddr::from(client.to_be_bytes()), Time::ZERO);
        [&first, &second]
            .map(|snapshot| snapshot.pick(&request, &[], &mut random).unwrap().server.target.to_string())
    };
    (0..2_000).map(|client| pick(client).into()).collect()
}

#[test]
fn clients_move_only_to_a_new_address_and_away_from_a_removed_one() {
    let (one, two) = ("a=10.0.0.1 b=10.0.1.1 c=10.0.1.2", "a1=10.0.0.1 a2=10.0.0.2 b=10.0.1.1 c=10.0.1.2");
    // A change of a Maglev table moves a few other clients, too.
    for (policy, moved_max) in [(Policy::Hash, 0), (Policy::Maglev { table: Policy::MAGLEV_TABLE }, 40)] {
        let added = picked(policy, one, two);
        let removed = picked(policy, two, one).into_iter().map(|(before, after)| (after, before));
        for clients in [added, removed.collect()] {
            let at_new = clients.iter().filter(|(_, two)| two == "10.0.0.2:80").count();
            assert!((400..600).contains(&at_new), "{policy:?}: {at_new} of 2000 clients");
            let moved = clients.iter().filter(|(one, two)| two != "10.0.0.2:80" && one != two).count();
            assert!(moved <= moved_max, "{policy:?}: {moved} other clients moved");
        }
    }
}

#[test]
fn only_host_names_are_placed_with_their_addresses() {
    let (mut spec, mut targets) = spec("x=10.0.0.1");
    let plain = ["10.0.0.2:80", "10.0.0.3:80"].map(|address| address.parse::<Endpoint>().unwrap());
    targets.extend(plain.iter().map(|endpoint| endpoint.target().unwrap()));
    spec.servers.extend(plain.map(ServerSpec::new));
    // A server of a source has its address as its name.
    spec.servers[2].endpoint = Endpoint::Host { name: "app".into(), port: 80 };
    let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
    let mut pool = Pool::new(&spec, &targets, setting, Time::ZERO);
    let table = PoolTable::derive(&spec, &pool.snapshot().unwrap());
    let names: Vec<&str> = table.candidates().iter().map(|(_, row)| &*row.placement_name).collect();
    assert_eq!(names, ["10.0.0.2:80", "10.0.0.3:80", "x (10.0.0.1)"]);
}

#[test]
fn a_renamed_server_keeps_its_state_and_counters() {
    let (before, targets) = spec("x=10.0.0.1");
    let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
    let mut pool = Pool::new(&before, &targets, setting, Time::ZERO);
    let id = pool.servers()[0].id;
    pool.set_state(Time::ZERO, id, AdminState::Drain, None);
    pool.servers()[0].live.suspect.store(true, Ordering::Relaxed);
    let (after, targets) = spec("x1=10.0.0.1 x2=10.0.0.2");
    pool.apply(&after, &targets, Time::ZERO);
    let server = pool.server(id).unwrap();
    assert_eq!((&*server.spec.name, server.state), ("x1", AdminState::Drain));
    assert!(server.live.suspect.load(Ordering::Relaxed));
    assert_eq!(pool.servers()[1].state, AdminState::Ready);
}
