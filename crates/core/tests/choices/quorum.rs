//! The quorum of a pool and its sorry server.

use super::{Story, sticky, targets};
use evener_core::Time;
use evener_core::explain::explain;
use evener_core::health::Probe;
use evener_core::pool::{Pool, PoolSetting};
use evener_core::snapshot::{Request, Takes};
use evener_core::spec::{AdminState, CheckKind, CheckSpec, Failover, PoolSpec, QuorumSpec};

/// Makes the server `s` the sorry server of a pool with this quorum.
fn with_sorry(spec: &mut PoolSpec, quorum: Option<(u32, u32)>) {
    spec.quorum = quorum.map(|(weight, hysteresis)| QuorumSpec { weight, hysteresis });
    for server in &mut spec.servers {
        server.is_sorry = &*server.name == "s";
    }
}

impl Story {
    fn quorum(&self) -> (u32, bool) {
        self.snapshot.quorum().map(|quorum| (quorum.weight, quorum.is_met)).unwrap()
    }

    fn puts(&mut self, servers: &str, state: AdminState) {
        servers.split(' ').for_each(|name| self.state(name, state));
    }
}

#[test]
fn the_sorry_server_serves_only_while_the_pool_is_below_its_quorum() {
    let mut story = Story::new("a b c s", |spec| with_sorry(spec, Some((2, 0))));
    assert_eq!(story.picks(0..6), "a b c a b c");
    story.state("a", AdminState::Maintenance);
    assert_eq!((story.picks(0..2).contains('s'), story.quorum()), (false, (2, true)));
    story.state("b", AdminState::Maintenance);
    assert_eq!((story.picks(0..3), story.quorum()), ("s s s".into(), (1, false)));
    story.state("b", AdminState::Ready);
    assert!(!story.picks(0..6).contains('s'));
}

#[test]
fn hysteresis_separates_the_loss_of_the_quorum_from_its_return() {
    let mut story = Story::new("a*2 b*2 c d s", |spec| with_sorry(spec, Some((3, 1))));
    assert_eq!(story.quorum(), (6, true));
    story.puts("a b", AdminState::Drain);
    assert_eq!(story.quorum(), (2, true), "2 is the quorum minus the hysteresis");
    story.state("c", AdminState::Drain);
    assert_eq!(story.quorum(), (1, false));
    story.state("a", AdminState::Ready);
    assert_eq!(story.quorum(), (3, false), "3 is less than the quorum plus the hysteresis");
    story.state("c", AdminState::Ready);
    assert_eq!(story.quorum(), (4, true));
}

#[test]
fn without_a_quorum_the_sorry_server_serves_when_no_server_is_usable() {
    let mut story = Story::new("a s", |spec| with_sorry(spec, None));
    assert_eq!(story.picks([1, 2]), "a a");
    story.refused("a");
    assert_eq!(story.picks([1, 2]), "s s");
    // The sorry server failed, too: each server is a last resort.
    story.refused("s");
    assert!(story.pick(1, &[]).is_ok());
    story.wait(60);
    assert_eq!(story.picks([1, 2]), "a a");
}

#[test]
fn the_remaining_servers_serve_clients_that_the_sorry_server_cannot_take() {
    let mut story = Story::new("a b s!1/1", |spec| with_sorry(spec, Some((2, 0))));
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 2]), "s b");
}

#[test]
fn the_sorry_server_has_no_check_and_no_sticky_clients() {
    let mut story = Story::new("a s", |spec| {
        sticky(spec);
        spec.check = Some(CheckSpec::new(CheckKind::Tcp));
        with_sorry(spec, None);
    });
    let due = story.pool.due_probes(story.now + std::time::Duration::from_secs(9), &mut story.random);
    assert_eq!(due, [story.id("a")]);
    story.state("a", AdminState::Maintenance);
    assert_eq!((story.picks([1, 2]), story.homes()), ("s s".into(), String::new()));
    story.state("a", AdminState::Ready);
    assert_eq!(story.picks([1, 2]), "s s", "the server counts for the quorum after its first check");
    let a = story.id("a");
    story.pool.on_probe(story.now, a, Probe::Pass);
    story.publish();
    assert_eq!(story.picks([1, 2]), "a a");
}

#[test]
fn a_client_whose_only_server_is_down_gets_the_sorry_server_without_failover() {
    let mut story = Story::new("a s", |spec| {
        sticky(spec);
        spec.failover = Failover::Never;
        with_sorry(spec, Some((1, 0)));
    });
    assert_eq!(story.picks([1]), "a");
    story.state("a", AdminState::Maintenance);
    assert_eq!(story.picks([1, 2]), "s s");
}

#[test]
fn tables_of_the_kernel_have_the_sorry_server_instead_of_the_others_below_the_quorum() {
    let mut story = Story::new("a b s", |spec| with_sorry(spec, Some((2, 0))));
    let takes = |story: &Story| -> Vec<(bool, Takes)> {
        story.snapshot.roles().iter().map(|role| (role.is_candidate, role.takes)).collect()
    };
    let (new, known) = ((true, Takes::New), (false, Takes::Known));
    assert_eq!(takes(&story), [new, new, known]);
    story.state("b", AdminState::Drain);
    assert_eq!(takes(&story), [known, known, new]);
}

#[test]
fn an_explanation_names_the_quorum_and_the_sorry_server() {
    let mut story = Story::new("a s", |spec| with_sorry(spec, Some((1, 0))));
    let request = Request::of("192.0.2.1".parse().unwrap(), story.now);
    let codes = |story: &mut Story| -> Vec<&'static str> {
        let explained = explain(&story.snapshot, &request, &mut story.random);
        explained.servers.iter().map(|row| row.reason.code()).collect()
    };
    assert_eq!(codes(&mut story), ["chosen", "sorry_server"]);
    story.state("a", AdminState::Maintenance);
    assert_eq!(codes(&mut story), ["chosen", "maintenance"]);
    let explained = explain(&story.snapshot, &request, &mut story.random);
    assert!(explained.quorum.is_some_and(|quorum| !quorum.is_met));
}

#[test]
fn a_new_pool_needs_the_quorum_without_hysteresis() {
    for (quorum, expected) in [((2, 1), true), ((3, 0), false)] {
        let mut spec = PoolSpec::new("web", "a b".split(' ').map(super::server).collect());
        with_sorry(&mut spec, Some(quorum));
        let setting = PoolSetting { workers: 1, key: 1, first_id: 0 };
        let mut pool = Pool::new(&spec, &targets(&spec), setting, Time::ZERO);
        assert_eq!(pool.snapshot().unwrap().quorum().map(|quorum| quorum.is_met), Some(expected));
    }
}

#[test]
fn an_unchecked_server_does_not_restore_a_lost_quorum() {
    let check = CheckSpec { rise: 1, fall: 1, ..CheckSpec::new(CheckKind::Tcp) };
    let mut story = Story::new("a b s", |spec| {
        spec.check = Some(check);
        with_sorry(spec, Some((2, 0)));
    });
    assert_eq!(story.quorum(), (2, true), "at the start unchecked servers count");
    let (a, b) = (story.id("a"), story.id("b"));
    story.pool.on_probe(story.now, a, Probe::Pass);
    story.pool.on_probe(story.now, b, Probe::Fail("refused".into()));
    story.publish();
    assert_eq!(story.quorum(), (1, false));
    let mut spec = story.pool.spec().clone();
    spec.servers.push(super::server("c"));
    story.pool.apply(&spec, &targets(&spec), story.now);
    story.publish();
    assert_eq!((story.picks(1..3), story.quorum()), ("s s".into(), (1, false)));
    let added = story.id("c");
    story.pool.on_probe(story.now, added, Probe::Pass);
    story.publish();
    assert_eq!(story.quorum(), (2, true));
}
