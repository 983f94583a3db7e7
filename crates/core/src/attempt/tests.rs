//! Attempts at pools of servers that fail.

use super::*;
use crate::health::Failure;
use crate::pool::{Pool, PoolSetting};
use crate::spec::{Policy, PoolSpec, RetryBudgetSpec, ServerSpec, StickyBy, StickySpec};
use crate::{Endpoint, Target};
use std::net::Ipv4Addr;

const LIMITS: AttemptLimits =
    AttemptLimits { slow_max: 3, time_max: Duration::from_secs(10), can_wait: true, last_resorts: true };

fn pool(policy: &str, servers: usize, change: impl FnOnce(&mut PoolSpec)) -> Pool {
    let server = |at: usize| {
        let mut server = ServerSpec::new(Endpoint::Unix(format!("/{at}").into()));
        server.tier = u8::from(at.is_multiple_of(3));
        server
    };
    let mut spec = PoolSpec::new("p", (0..servers).map(server).collect());
    spec.policy = Policy::named(policy).unwrap();
    change(&mut spec);
    let targets: Vec<Target> = spec.servers.iter().map(|server| server.endpoint.target().unwrap()).collect();
    Pool::new(&spec, &targets, PoolSetting { workers: 1, key: 1, first_id: 0 }, Time::ZERO)
}

fn sticky(spec: &mut PoolSpec) {
    let by = StickyBy::ClientIp;
    spec.sticky = Some(StickySpec { by, size: 16, ttl: None, failback: true, rebalance: None });
}

fn without_retries(spec: &mut PoolSpec) {
    spec.retry_budget = Some(RetryBudgetSpec { share_percent: 0, min_per_second: 0 });
}

/// Fails at every server. Returns the servers in the order of the attempts, and the final error.
fn all(snapshot: &Snapshot, failed: FailedTry) -> (Vec<ServerId>, NoServer) {
    let (mut attempt, mut random, mut seen) = (Attempt::new(0), Random::seeded(1), Vec::new());
    let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
    loop {
        match attempt.next(snapshot, &request, &LIMITS, &mut random) {
            Ok(choice) => {
                assert!(seen.len() <= attempt.tried());
                seen.push(choice.server.id);
                attempt.failed(choice.server.id, choice.why, failed);
            }
            Err(reason) => return (seen, reason),
        }
    }
}

#[test]
fn trying_a_refusing_server_costs_no_more_in_a_large_pool() {
    const SERVERS: usize = 5_000;
    for policy in Policy::NAMES {
        let snapshot = pool(policy, SERVERS, sticky).snapshot().unwrap();
        let client = Ipv4Addr::LOCALHOST.into();
        snapshot.remember(client, snapshot.servers()[7].id, Time::ZERO);
        work::reset();
        let (mut seen, reason) = all(&snapshot, FailedTry::QUICK);
        // The number of passes over all servers is fixed, not one pass for each server.
        let inspected = work::done();
        assert!(inspected < (CHOSEN_MAX as u64 * 10 + 40) * SERVERS as u64, "{policy}: {inspected}");
        assert_eq!((seen.len(), reason), (SERVERS, NoServer::Failed), "{policy}");
        let tiers: Vec<u8> = seen.iter().skip(1).map(|id| snapshot.server(*id).unwrap().tier).collect();
        assert!(tiers.is_sorted(), "{policy}: a server with a lower tier number came later");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), SERVERS, "{policy}: each server is tried once");
    }
}

#[test]
fn the_order_of_many_servers_equals_picking_one_by_one() {
    for policy in ["hash", "maglev", "first", "least_outstanding"] {
        let snapshot = pool(policy, 60, |_| {}).snapshot().unwrap();
        let (mut tried, mut random) = (Vec::new(), Random::seeded(1));
        let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
        while let Ok(choice) = snapshot.pick(&request, &tried, &mut random) {
            tried.push(choice.server.id);
        }
        assert_eq!(all(&snapshot, FailedTry::QUICK).0, tried, "{policy}");
    }
}

#[test]
fn only_a_failed_server_makes_the_next_try_a_retry() {
    let (mut pool, mut random) = (pool("first", 6, without_retries), Random::seeded(1));
    let snapshot = pool.snapshot().unwrap();
    let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
    let mut attempt = Attempt::new(0);
    let mut next = |attempt: &mut Attempt| attempt.next(&snapshot, &request, &LIMITS, &mut random);
    for fault in [Fault::Local, Fault::Client] {
        let choice = next(&mut attempt).unwrap();
        assert!(!choice.is_retry);
        attempt.failed(choice.server.id, choice.why, FailedTry { fault, cost: Cost::Quick });
    }
    let choice = next(&mut attempt).unwrap();
    // The reused connection to the server ended.
    attempt.repeat();
    let repeated = next(&mut attempt).unwrap();
    assert_eq!((repeated.server.id, repeated.is_retry), (choice.server.id, true));
    assert!(!attempt.may_retry(&snapshot, Time::ZERO));
    assert!(attempt.has_other(&snapshot, &request, &LIMITS, choice.server.id));
    attempt.failed(choice.server.id, choice.why, FailedTry::QUICK);
    assert_eq!(next(&mut attempt).unwrap_err(), NoServer::RetryBudget);
    assert_eq!(choice.server.live.occupancy.active(), 2, "a refused retry leaves no slot taken");
    let mut attempt = Attempt::new(0);
    let choice = next(&mut attempt).unwrap();
    attempt.retry_elsewhere(choice.server.id);
    assert_eq!(next(&mut attempt).unwrap_err(), NoServer::RetryBudget);
}

#[test]
fn the_first_try_of_a_flow_is_counted_even_if_no_server_takes_the_flow() {
    let spend_all = |spec: &mut PoolSpec| {
        spec.retry_budget = Some(RetryBudgetSpec { share_percent: 200, min_per_second: 0 });
    };
    let snapshot = pool("first", 2, spend_all).snapshot().unwrap();
    let retries_max = || snapshot.retry_budget.usage(Time::ZERO).unwrap().retries_max;
    let (request, mut random) = (Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO), Random::seeded(1));
    let mut attempt = Attempt::uncounted(0);
    attempt.count_first_failure(&snapshot, Time::ZERO);
    assert_eq!(retries_max(), 0, "nothing was tried");
    let choice = attempt.next(&snapshot, &request, &LIMITS, &mut random).unwrap();
    attempt.failed(choice.server.id, choice.why, FailedTry::QUICK);
    attempt.count_first_failure(&snapshot, Time::ZERO);
    assert_eq!(retries_max(), 1);
}

#[test]
fn a_pool_without_another_server_has_not_used_up_its_budget() {
    let snapshot = pool("first", 1, without_retries).snapshot().unwrap();
    assert_eq!(all(&snapshot, FailedTry::QUICK).1, NoServer::Failed);
}

#[test]
fn another_server_is_one_that_was_not_tried_and_may_take_the_client() {
    let mut pool = pool("first", 3, without_retries);
    let ids: Vec<ServerId> = pool.servers().iter().map(|server| server.id).collect();
    let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
    let others = |pool: &mut Pool, attempt: &Attempt| {
        let snapshot = pool.snapshot().unwrap();
        [true, false].map(|last_resorts| {
            let limits = AttemptLimits { last_resorts, ..LIMITS };
            attempt.has_other(&snapshot, &request, &limits, ids[0])
        })
    };
    let mut attempt = Attempt::new(0);
    assert_eq!(others(&mut pool, &attempt), [true, true]);
    attempt.failed(ids[1], Why::Policy, FailedTry::QUICK);
    let _ = pool.on_failure(Time::ZERO, ids[2], &Failure::Timeout);
    assert_eq!(others(&mut pool, &attempt), [true, false]);
    let _ = pool.on_failure(Time::ZERO, ids[0], &Failure::Timeout);
    attempt.pass_over(ids[2]);
    assert_eq!(others(&mut pool, &attempt), [false, false]);
}

#[test]
fn servers_that_do_not_suit_come_last() {
    let snapshot = pool("first", 12, |_| {}).snapshot().unwrap();
    let (mut attempt, mut random, mut seen) = (Attempt::new(0), Random::seeded(1), Vec::new());
    let request = Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO);
    let suits = |server: &Entry| server.id.0.is_multiple_of(5);
    while let Ok(choice) = attempt.next_suitable(&snapshot, &request, &LIMITS, &mut random, suits) {
        seen.push(choice.server.id.0);
        attempt.failed(choice.server.id, choice.why, FailedTry::QUICK);
    }
    assert!(seen[..3].iter().all(|id| id % 5 == 0), "{seen:?}");
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..12), "each server is tried once");
}

#[test]
fn slow_failures_are_bounded_in_number_and_time() {
    let snapshot = pool("round_robin", 50, |_| {}).snapshot().unwrap();
    assert_eq!(
        (all(&snapshot, FailedTry::SLOW).0.len(), all(&snapshot, FailedTry::SLOW).1),
        (3, NoServer::Failed)
    );
    let (mut attempt, mut random) = (Attempt::new(0), Random::seeded(1));
    let at = |secs| Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO + Duration::from_secs(secs));
    let choice = attempt.next(&snapshot, &at(5), &LIMITS, &mut random).unwrap();
    let deadline = |attempt: &Attempt, now, timeout| {
        attempt.deadline(now, Duration::from_secs(timeout), &LIMITS).since(now).as_secs()
    };
    assert_eq!(deadline(&attempt, at(5).now, 3), 3);
    attempt.failed(choice.server.id, choice.why, FailedTry::SLOW);
    assert_eq!(deadline(&attempt, at(13).now, 3), 2);
    assert!(attempt.next(&snapshot, &at(14), &LIMITS, &mut random).is_ok());
    assert_eq!(attempt.next(&snapshot, &at(15), &LIMITS, &mut random).unwrap_err(), NoServer::Failed);
    // Another request of the same client, or a retry, has its own time limit.
    attempt.retry_elsewhere(choice.server.id);
    assert!(attempt.next(&snapshot, &at(60), &LIMITS, &mut random).is_ok());
    assert_eq!(attempt.next(&snapshot, &at(90), &LIMITS, &mut random).unwrap_err(), NoServer::Failed);
    attempt.begin_anew();
    assert!(attempt.next(&snapshot, &at(90), &LIMITS, &mut random).is_ok());
    assert_eq!(deadline(&attempt, at(90).now, 3), 3);
}

#[test]
fn a_client_waits_for_a_full_server_before_it_tries_a_server_that_is_marked_down() {
    let mut pool = pool("first", 2, |spec| {
        for server in &mut spec.servers {
            (server.tier, server.limits.hard) = (1, Some(1));
        }
    });
    let dead = pool.servers()[1].id;
    let _ = pool.on_failure(Time::ZERO, dead, &Failure::Timeout);
    let snapshot = pool.snapshot().unwrap();
    let (request, mut random) = (Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO), Random::seeded(1));
    let mut next = |limits| Attempt::new(0).next(&snapshot, &request, limits, &mut random);
    let taken = next(&LIMITS).unwrap();
    assert_eq!(next(&LIMITS).unwrap_err(), NoServer::Full);
    // A client that cannot wait tries the server that is marked down.
    assert_eq!(next(&AttemptLimits::NONE).unwrap().server.id, dead);
    drop(taken);
    assert_ne!(next(&LIMITS).unwrap().server.id, dead);
}

#[test]
fn a_client_that_waited_after_many_failures_gets_the_server_that_was_full() {
    let mut pool = pool("first", 40, |spec| {
        spec.servers.iter_mut().for_each(|server| (server.tier, server.limits.hard) = (1, Some(1)));
    });
    let snapshot = pool.snapshot().unwrap();
    let (request, mut random) = (Request::of(Ipv4Addr::LOCALHOST.into(), Time::ZERO), Random::seeded(1));
    let last = snapshot.servers()[39].live.occupancy.enter(1).unwrap();
    let mut attempt = Attempt::new(0);
    for _ in 0..39 {
        let choice = attempt.next(&snapshot, &request, &LIMITS, &mut random).unwrap();
        attempt.failed(choice.server.id, choice.why, FailedTry::QUICK);
    }
    for _ in 0..10 {
        attempt.begin_anew();
        assert_eq!(attempt.next(&snapshot, &request, &LIMITS, &mut random).unwrap_err(), NoServer::Full);
    }
    drop(last);
    attempt.begin_anew();
    assert!(attempt.next(&snapshot, &request, &LIMITS, &mut random).is_ok());
}

#[test]
fn an_attempt_ends_after_one_slow_failure_if_every_server_is_marked_down() {
    let mut pool = pool("round_robin", 20, |_| {});
    let ids: Vec<ServerId> = pool.servers().iter().map(|server| server.id).collect();
    for id in &ids {
        let _ = pool.on_failure(Time::ZERO, *id, &Failure::Timeout);
    }
    let snapshot = pool.snapshot().unwrap();
    assert_eq!(
        (all(&snapshot, FailedTry::SLOW).0.len(), all(&snapshot, FailedTry::SLOW).1),
        (1, NoServer::Failed)
    );
    // A refusal costs almost no time, so more servers are tried.
    assert_eq!(all(&snapshot, FailedTry::QUICK).0.len(), LAST_RESORTS_MAX as usize);
}
