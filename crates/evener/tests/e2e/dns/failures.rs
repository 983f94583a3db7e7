//! Servers that are silent or do not listen: the delay for clients, retries, and responses on failure.

use crate::harness::dns::{
    A, Nameserver, REFUSED, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, framed, host, id,
    is_quiet, query, rcode, service, with_edns,
};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_silent_server_is_marked_down_after_a_few_timeouts() {
    let (silent, good) = (Nameserver::silent(), Nameserver::of(2));
    let more = "dns = { query_timeout = \"300ms\" }, passive = { failures = 1, down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&silent, &good], more), &["--workers", "1"]);
    let listen = evener.port("d");
    // Every other query goes to the silent server. Three timeouts of different queries mark it down.
    for turn in 0..3 {
        for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
            assert_eq!(host(&ask(listen, &query(turn, &format!("n{turn}.example"), A))), 2);
        }
    }
    wait_until("the server to be down", || {
        (evener.server(&silent.name())["verdict"] == "down").then_some(())
    });
    let begun = Instant::now();
    for turn in 0..20 {
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(4), "expected no query to wait for the silent server: {elapsed:?}");
    assert_eq!(evener.server(&silent.name())["counters"]["response_timeouts"], silent.count());
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

/// Puts load on two servers, one of which falls silent, and returns the sorted latencies of all queries.
fn latencies(more: &str) -> Vec<Duration> {
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let one = Nameserver::start(move |query, back| {
        if !silent.load(Ordering::Relaxed) {
            back.send(&address(query, 60, 1));
        }
    });
    let two = Nameserver::of(2);
    let evener =
        Evener::run(&service(0, &[&one, &two], &format!("dns = {{ query_timeout = \"300ms\" }}, {more}")));
    let listen = evener.port("d");
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let (socket, stream) = (client(listen), connect(listen));
                let mut took = Vec::new();
                for turn in 0..250 {
                    let (sent, begun) = (query(turn, "a.example", A), Instant::now());
                    let response =
                        if number % 4 == 3 { ask_stream(&stream, &sent) } else { ask_on(&socket, &sent) };
                    assert!([1, 2].contains(&host(&response)), "expected the address of a server");
                    took.push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                took
            })
        })
        .collect();
    wait_until("some load", || (done.load(Ordering::Relaxed) > 500).then_some(()));
    is_silent.store(true, Ordering::Relaxed);
    let mut took: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
    assert!(evener.server(&one.name())["counters"]["response_timeouts"].as_u64() > Some(0));
    took.sort();
    took
}

#[test]
fn a_server_that_falls_silent_under_load_delays_each_query_by_at_most_one_timeout() {
    let took = latencies("");
    let (p99, worst) = (took[took.len() * 99 / 100], took[took.len() - 1]);
    println!(
        "one server silent, timeout 300 ms: p50 {:?}, p99 {p99:?}, worst {worst:?}",
        took[took.len() / 2]
    );
    assert!(p99 < Duration::from_millis(300 + 1000), "p99 {p99:?}");
    assert!(worst < Duration::from_millis(300 + 3000), "worst {worst:?}");
}

#[test]
fn a_server_that_does_not_listen_is_skipped_without_a_timeout() {
    let (mut stopped, good) = (Nameserver::of(1), Nameserver::of(2));
    stopped.stop();
    let more = "dns = { query_timeout = \"30s\" }, passive = { failures = 1000 }";
    let evener = Evener::run(&service(0, &[&stopped, &good], more));
    let listen = evener.port("d");
    let (begun, stream) = (Instant::now(), connect(listen));
    for turn in 0..20 {
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
        assert_eq!(host(&ask_stream(&stream, &query(turn, "a.example", A))), 2);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(15), "expected no query to wait for a timeout: {elapsed:?}");
    let counters = &evener.server(&stopped.name())["counters"];
    assert!(counters["connect_failures"]["refused"].as_u64() > Some(1), "{counters}");
    assert_eq!(counters["response_timeouts"], 0);
    assert!(evener.service_counter("d", "requests_retried") > 1);
}

#[test]
fn no_query_fails_when_a_server_stops_under_load() {
    let (mut one, two) = (Nameserver::of(1), Nameserver::of(2));
    let more = "dns = { query_timeout = \"1s\" }, passive = { down_for = \"500ms\" }";
    let evener = Evener::run(&service(0, &[&one, &two], more));
    let listen = evener.port("d");
    let clients: Vec<_> = (0..6)
        .map(|number| {
            std::thread::spawn(move || {
                let (socket, stream) = (client(listen), connect(listen));
                for turn in 0..400 {
                    let sent = query(turn, "a.example", A);
                    let response =
                        if number % 2 == 1 { ask_stream(&stream, &sent) } else { ask_on(&socket, &sent) };
                    assert!([1, 2].contains(&host(&response)));
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    one.stop();
    wait_until("the server to be down", || (evener.server(&one.name())["verdict"] == "down").then_some(()));
    let restarted = Nameserver::of_at(one.port, 1);
    clients.into_iter().for_each(|client| client.join().unwrap());
    wait_until("a query to the restarted server", || {
        ask(listen, &query(1, "a.example", A));
        (restarted.count() > 0).then_some(())
    });
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

/// A server that ignores the given number of queries over either transport, and then responds.
fn ignoring(queries: usize) -> Nameserver {
    let count = AtomicUsize::new(0);
    Nameserver::start(move |query, back| {
        if count.fetch_add(1, Ordering::Relaxed) >= queries {
            back.send(&address(query, 60, 5));
        }
    })
}

#[test]
fn queries_are_retried_at_a_single_server() {
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let server = ignoring(2);
        let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"200ms\", retries = 2 }"));
        let listen = evener.port("d");
        assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 5);
        let seen = server.messages();
        assert_eq!((seen.len(), evener.service_counter("d", "requests_retried")), (3, 2));
        assert!(id(&seen[0]) != id(&seen[1]) || id(&seen[1]) != id(&seen[2]));
        assert!(seen.iter().all(|message| message[2..] == seen[0][2..]));
    }
}

#[test]
fn the_client_gets_the_configured_failure_after_all_retries() {
    for (word, code) in [("servfail", SERVFAIL), ("refused", REFUSED)] {
        let (one, two) = (Nameserver::silent(), Nameserver::silent());
        let more = format!("dns = {{ query_timeout = \"200ms\", retries = 3, on_failure = \"{word}\" }}");
        let evener = Evener::run(&service(0, &[&one, &two], &more));
        let listen = evener.port("d");
        let (plain, edns) =
            (query(77, "a.Example", A), with_edns(query(78, "a.Example", A), 4096, true, &[]));
        let failed = ask(listen, &plain);
        assert_eq!((rcode(&failed), failed[2], failed.len()), (code, 0x81, plain.len()));
        assert_eq!(failed[4..], plain[4..], "expected the question section alone");
        assert_eq!(one.count() + two.count(), 4, "{word}");
        // A client that uses EDNS gets a response with EDNS (RFC 6891, section 7).
        let failed = ask_tcp(listen, &edns);
        assert_eq!((rcode(&failed), &failed[4..12]), (code, &edns[4..12]));
        assert_eq!((&failed[plain.len()..plain.len() + 3], failed.len()), (&[0, 0, 41][..], edns.len()));
        assert_eq!(evener.service_counter("d", "requests_failed"), 2);
    }
}

#[test]
fn with_on_failure_drop_there_is_no_response_and_the_connection_stays_open() {
    let server = ignoring(4);
    let more = "dns = { query_timeout = \"200ms\", retries = 1, on_failure = \"drop\" }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let (socket, mut stream) = (client(listen), connect(listen));
    socket.send(&query(1, "udp.example", A)).unwrap();
    stream.write_all(&framed(&query(1, "tcp.example", A))).unwrap();
    wait_until("both queries to fail", || {
        (evener.service_counter("d", "requests_failed") == 2).then_some(())
    });
    assert!(is_quiet(&socket));
    assert_eq!(evener.service_counter("d", "drops.no_server"), 2);
    assert_eq!(host(&ask_on(&socket, &query(2, "a.example", A))), 5);
    assert_eq!(
        host(&ask_stream(&stream, &query(2, "a.example", A))),
        5,
        "expected no response to the failed query"
    );
}

#[test]
fn clients_get_servfail_immediately_when_no_server_listens() {
    let (mut one, mut two) = (Nameserver::of(1), Nameserver::of(2));
    one.stop();
    two.stop();
    let evener = Evener::run(&service(0, &[&one, &two], "dns = { query_timeout = \"30s\" }"));
    let listen = evener.port("d");
    let (begun, stream) = (Instant::now(), connect(listen));
    for turn in 0..10 {
        assert_eq!(rcode(&ask(listen, &query(turn, "a.example", A))), SERVFAIL);
        assert_eq!(rcode(&ask_stream(&stream, &query(turn, "a.example", A))), SERVFAIL);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(15), "expected no query to wait for a timeout: {elapsed:?}");
    // A server that listens again is used even while it counts as down, because there is no other server.
    let _restarted = Nameserver::of_at(one.port, 1);
    wait_until("a response", || (rcode(&ask(listen, &query(1, "a.example", A))) == 0).then_some(()));
    assert_eq!(evener.service_counter("d", "drops.no_server"), 0);
}
