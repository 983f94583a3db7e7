//! Servers that respond with SERVFAIL or REFUSED: retries at other servers, and expired responses in place of
//! the failure.

use crate::harness::dns::{
    A, NXDOMAIN, Nameserver, REFUSED, SERVFAIL, TXT, ask, ask_tcp, host, query, rcode, record, reply, service,
};
use crate::harness::{Evener, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Sends a query to a port and returns the response.
type Ask = fn(u16, &[u8]) -> Vec<u8>;

const ASKS: [Ask; 2] = [ask, ask_tcp];

/// A server that responds with the given code, and with a record that identifies the server.
fn failing(code: u8, mark: u8) -> Nameserver {
    Nameserver::start(move |query, back| {
        back.send(&reply(query, code, &[], &[record(TXT, 5, &[1, mark])]));
    })
}

/// Sends four queries and returns their response codes and the number of queries to the second server.
fn codes(code: u8, dns: &str) -> (Vec<u8>, usize) {
    let (one, two) = (failing(code, b'1'), Nameserver::of(2));
    let more = format!("policy = \"first\", dns = {{ query_timeout = \"20s\", {dns} }}");
    let evener = Evener::run_with(&service(0, &[&one, &two], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    let codes = (0..4).map(|turn| {
        let ask = ASKS[usize::from(turn % 2)];
        rcode(&ask(listen, &query(turn, &format!("n{turn}.example"), A)))
    });
    let codes = codes.collect();
    assert_eq!(evener.server(&one.name())["verdict"], "up", "expected a server that responds to stay up");
    assert_eq!(evener.service_counter("d", "requests_retried"), two.count() as u64);
    (codes, two.count())
}

#[test]
fn the_codes_of_retry_on_cause_a_retry_at_another_server() {
    let (noerror, servfail, refused) = (vec![0; 4], vec![SERVFAIL; 4], vec![REFUSED; 4]);
    assert_eq!(codes(SERVFAIL, ""), (noerror.clone(), 4), "expected the default to include SERVFAIL");
    assert_eq!(codes(REFUSED, ""), (refused.clone(), 0));
    assert_eq!(codes(SERVFAIL, "retry_on = { \"refused\" }"), (servfail.clone(), 0));
    assert_eq!(codes(REFUSED, "retry_on = { \"servfail\", \"refused\" }"), (noerror, 4));
    assert_eq!(codes(SERVFAIL, "retry_on = {}"), (servfail.clone(), 0));
    assert_eq!(codes(SERVFAIL, "retries = 0"), (servfail, 0));
    assert_eq!(codes(NXDOMAIN, "retry_on = { \"servfail\", \"refused\" }"), (vec![NXDOMAIN; 4], 0));
}

#[test]
fn the_last_response_is_passed_on_if_all_servers_fail() {
    for ask in ASKS {
        let (one, two) = (failing(SERVFAIL, b'1'), failing(SERVFAIL, b'2'));
        let more = "policy = \"first\", dns = { query_timeout = \"20s\" }";
        let evener = Evener::run(&service(0, &[&one, &two], more));
        let listen = evener.port("d");
        let sent = query(5, "a.example", A);
        let expected = reply(&sent, SERVFAIL, &[], &[record(TXT, 5, &[1, b'2'])]);
        assert_eq!(ask(listen, &sent), expected, "expected the response unchanged");
        assert_eq!((one.count(), two.count()), (1, 1), "expected one query for each server");
        assert_eq!(
            evener.service_counter("d", "requests_failed"),
            0,
            "expected a response not to count as a failure"
        );
    }
}

#[test]
fn the_first_response_is_passed_on_if_the_next_server_does_not_respond() {
    let (one, silent, mut stopped) = (failing(SERVFAIL, b'1'), Nameserver::silent(), Nameserver::of(3));
    stopped.stop();
    for other in [&silent, &stopped] {
        let more = "policy = \"first\", dns = { query_timeout = \"300ms\", retries = 1 }";
        let evener = Evener::run(&service(0, &[&one, other], more));
        let listen = evener.port("d");
        for ask in ASKS {
            let sent = query(5, "a.example", A);
            let expected = reply(&sent, SERVFAIL, &[], &[record(TXT, 5, &[1, b'1'])]);
            assert_eq!(ask(listen, &sent), expected);
        }
    }
}

#[test]
fn a_retry_skips_a_server_that_is_down() {
    let (silent, one) = (Nameserver::silent(), failing(SERVFAIL, b'1'));
    let more = "policy = \"first\", dns = { query_timeout = \"300ms\" }, passive = { down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&silent, &one], more), &["--workers", "1"]);
    let listen = evener.port("d");
    wait_until("the server to be down", || {
        for turn in 0..3 {
            assert_eq!(rcode(&ask(listen, &query(turn, &format!("n{turn}.example"), A))), SERVFAIL);
        }
        (evener.server(&silent.name())["verdict"] == "down").then_some(())
    });
    let before = silent.count();
    for ask in ASKS {
        assert_eq!(rcode(&ask(listen, &query(9, "a.example", A))), SERVFAIL);
    }
    assert_eq!(silent.count(), before);
}

#[test]
fn a_server_that_fails_keeps_its_turn() {
    let (one, two) = (failing(SERVFAIL, b'1'), Nameserver::of(2));
    let evener = Evener::run_with(&service(0, &[&one, &two], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    for turn in 0..20 {
        assert_eq!(host(&ASKS[usize::from(turn % 2)](listen, &query(turn, "a.example", A))), 2);
    }
    assert_eq!(
        (one.count(), two.count()),
        (10, 20),
        "expected every other query to begin at the failing server"
    );
}

#[test]
fn an_expired_response_replaces_a_failure() {
    let code = Arc::new(AtomicU8::new(0));
    let current = Arc::clone(&code);
    let server = Nameserver::start(move |query, back| {
        let code = current.load(Ordering::Relaxed);
        let responses = if code == 0 { vec![record(A, 1, &[192, 0, 2, 9])] } else { Vec::new() };
        back.send(&reply(query, code, &responses, &[]));
    });
    let more = "dns = { query_timeout = \"20s\", cache = { stale = \"1h\" } }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 9);
    for failure in [SERVFAIL, REFUSED] {
        code.store(failure, Ordering::Relaxed);
        for ask in ASKS {
            let before = server.count();
            wait_until("the response to expire", || {
                assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 9);
                (server.count() > before).then_some(())
            });
        }
        let uncached = query(3, &format!("never{failure}.example"), A);
        assert_eq!(rcode(&ask(listen, &uncached)), failure, "expected the failure without a cached response");
    }
    assert!(evener.service_counter("d", "cache_stale") >= 4);
    // NXDOMAIN is not a failure (RFC 8767, section 4).
    code.store(NXDOMAIN, Ordering::Relaxed);
    assert_eq!(rcode(&ask(listen, &query(4, "a.example", A))), NXDOMAIN);
}
