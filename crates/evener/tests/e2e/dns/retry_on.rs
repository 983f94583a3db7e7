//! Servers that decline, by SERVFAIL or REFUSED: another one may do better, or what is cached though it expired.

use crate::harness::dns::{
    A, NXDOMAIN, Nameserver, REFUSED, SERVFAIL, TXT, ask, ask_tcp, host, query, rcode, record, reply, service,
};
use crate::harness::{Evener, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Asks a port and waits for the response.
type Ask = fn(u16, &[u8]) -> Vec<u8>;

const ASKS: [Ask; 2] = [ask, ask_tcp];

/// A server that responds with this code, and a record by which its response is known.
fn declining(code: u8, mark: u8) -> Nameserver {
    Nameserver::start(move |query, back| {
        back.send(&reply(query, code, &[], &[record(TXT, 5, &[1, mark])]));
    })
}

/// Asks some, and says which codes come and how often the other server was asked.
fn codes(code: u8, dns: &str) -> (Vec<u8>, usize) {
    let (one, two) = (declining(code, b'1'), Nameserver::of(2));
    let more = format!("policy = \"first\", dns = {{ query_timeout = \"20s\", {dns} }}");
    let evener = Evener::run_with(&service(0, &[&one, &two], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    let seen = (0..4).map(|turn| {
        let ask = ASKS[usize::from(turn % 2)];
        rcode(&ask(listen, &query(turn, &format!("n{turn}.example"), A)))
    });
    let seen = seen.collect();
    assert_eq!(evener.server(&one.name())["verdict"], "up", "whoever declines is there");
    assert_eq!(evener.service_counter("d", "requests_retried"), two.count() as u64);
    (seen, two.count())
}

#[test]
fn another_server_is_asked_for_the_codes_that_are_meant() {
    let (well, servfail, refused) = (vec![0; 4], vec![SERVFAIL; 4], vec![REFUSED; 4]);
    assert_eq!(codes(SERVFAIL, ""), (well.clone(), 4), "the default");
    assert_eq!(codes(REFUSED, ""), (refused.clone(), 0));
    assert_eq!(codes(SERVFAIL, "retry_on = { \"refused\" }"), (servfail.clone(), 0));
    assert_eq!(codes(REFUSED, "retry_on = { \"servfail\", \"refused\" }"), (well, 4));
    assert_eq!(codes(SERVFAIL, "retry_on = {}"), (servfail.clone(), 0));
    assert_eq!(codes(SERVFAIL, "retries = 0"), (servfail, 0));
    assert_eq!(codes(NXDOMAIN, "retry_on = { \"servfail\", \"refused\" }"), (vec![NXDOMAIN; 4], 0));
}

#[test]
fn where_all_decline_the_response_of_the_last_one_is_passed_on() {
    for ask in ASKS {
        let (one, two) = (declining(SERVFAIL, b'1'), declining(SERVFAIL, b'2'));
        let more = "policy = \"first\", dns = { query_timeout = \"20s\" }";
        let evener = Evener::run(&service(0, &[&one, &two], more));
        let listen = evener.port("d");
        let sent = query(5, "a.example", A);
        let expected = reply(&sent, SERVFAIL, &[], &[record(TXT, 5, &[1, b'2'])]);
        assert_eq!(ask(listen, &sent), expected, "byte for byte");
        assert_eq!((one.count(), two.count()), (1, 1), "each was asked once");
        assert_eq!(evener.service_counter("d", "requests_failed"), 0, "it was a response");
    }
}

#[test]
fn the_first_response_is_passed_on_where_the_next_server_is_silent_or_gone() {
    let (one, silent, mut gone) = (declining(SERVFAIL, b'1'), Nameserver::silent(), Nameserver::of(3));
    gone.stop();
    for other in [&silent, &gone] {
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
fn a_server_that_is_down_is_not_waited_for() {
    let (silent, one) = (Nameserver::silent(), declining(SERVFAIL, b'1'));
    let more = "policy = \"first\", dns = { query_timeout = \"300ms\" }, passive = { down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&silent, &one], more), &["--workers", "1"]);
    let listen = evener.port("d");
    wait_until("it to be down", || {
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
fn servers_go_on_taking_turns_though_one_declines() {
    let (one, two) = (declining(SERVFAIL, b'1'), Nameserver::of(2));
    let evener = Evener::run_with(&service(0, &[&one, &two], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    for turn in 0..20 {
        assert_eq!(host(&ASKS[usize::from(turn % 2)](listen, &query(turn, "a.example", A))), 2);
    }
    assert_eq!((one.count(), two.count()), (10, 20), "every other query begins at it");
}

#[test]
fn a_stale_response_is_better_than_one_that_declines() {
    let code = Arc::new(AtomicU8::new(0));
    let says = Arc::clone(&code);
    let server = Nameserver::start(move |query, back| {
        let code = says.load(Ordering::Relaxed);
        let responses = if code == 0 { vec![record(A, 1, &[192, 0, 2, 9])] } else { Vec::new() };
        back.send(&reply(query, code, &responses, &[]));
    });
    let more = "dns = { query_timeout = \"20s\", cache = { stale = \"1h\" } }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 9);
    for declines in [SERVFAIL, REFUSED] {
        code.store(declines, Ordering::Relaxed);
        for ask in ASKS {
            let before = server.count();
            wait_until("it to expire", || {
                assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 9);
                (server.count() > before).then_some(())
            });
        }
        let never = query(3, &format!("never{declines}.example"), A);
        assert_eq!(rcode(&ask(listen, &never)), declines, "there was nothing");
    }
    assert!(evener.service_counter("d", "cache_stale") >= 4);
    // That there is no such name is no failure (RFC 8767, section 4).
    code.store(NXDOMAIN, Ordering::Relaxed);
    assert_eq!(rcode(&ask(listen, &query(4, "a.example", A))), NXDOMAIN);
}
