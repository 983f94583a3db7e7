//! Servers that are silent, gone, or all of that: what it costs, and what clients hear.

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
fn a_silent_server_costs_a_few_time_outs_and_then_nothing() {
    let (silent, good) = (Nameserver::silent(), Nameserver::of(2));
    let more = "dns = { query_timeout = \"300ms\" }, passive = { failures = 1, down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&silent, &good], more), &["--workers", "1"]);
    let listen = evener.port("d");
    // It has every other turn, and three different questions are enough to blame it.
    for turn in 0..3 {
        for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
            assert_eq!(host(&ask(listen, &query(turn, &format!("n{turn}.example"), A))), 2);
        }
    }
    wait_until("it to be down", || (evener.server(&silent.name())["verdict"] == "down").then_some(()));
    let begun = Instant::now();
    for turn in 0..20 {
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(4), "nobody waits for it any more: {elapsed:?}");
    assert_eq!(evener.server(&silent.name())["counters"]["response_timeouts"], silent.count());
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

/// Load by many clients while one of two servers falls silent; how long each question took.
fn latencies(more: &str) -> Vec<Duration> {
    let quiet = Arc::new(AtomicBool::new(false));
    let hush = Arc::clone(&quiet);
    let one = Nameserver::start(move |query, back| {
        if !hush.load(Ordering::Relaxed) {
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
                    assert!([1, 2].contains(&host(&response)), "a true answer");
                    took.push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                took
            })
        })
        .collect();
    wait_until("some load", || (done.load(Ordering::Relaxed) > 500).then_some(()));
    quiet.store(true, Ordering::Relaxed);
    let mut took: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
    assert!(evener.server(&one.name())["counters"]["response_timeouts"].as_u64() > Some(0));
    took.sort();
    took
}

#[test]
fn a_server_that_falls_silent_under_load_costs_nobody_more_than_one_time_out() {
    let took = latencies("");
    let (p99, worst) = (took[took.len() * 99 / 100], took[took.len() - 1]);
    println!(
        "one server silent, time-out 300 ms: p50 {:?}, p99 {p99:?}, worst {worst:?}",
        took[took.len() / 2]
    );
    assert!(p99 < Duration::from_millis(300 + 1000), "p99 {p99:?}");
    assert!(worst < Duration::from_millis(300 + 3000), "worst {worst:?}");
}

#[test]
fn a_server_that_is_gone_is_left_at_once() {
    let (mut gone, good) = (Nameserver::of(1), Nameserver::of(2));
    gone.stop();
    let more = "dns = { query_timeout = \"30s\" }, passive = { failures = 1000 }";
    let evener = Evener::run(&service(0, &[&gone, &good], more));
    let listen = evener.port("d");
    let (begun, stream) = (Instant::now(), connect(listen));
    for turn in 0..20 {
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
        assert_eq!(host(&ask_stream(&stream, &query(turn, "a.example", A))), 2);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(15), "no time-out was waited for: {elapsed:?}");
    let counters = &evener.server(&gone.name())["counters"];
    assert!(counters["connect_refused"].as_u64() > Some(1), "{counters}");
    assert_eq!(counters["response_timeouts"], 0);
    assert!(evener.service_counter("d", "requests_retried") > 1);
}

#[test]
fn a_server_that_dies_under_load_fails_no_question() {
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
    wait_until("it to be down", || (evener.server(&one.name())["verdict"] == "down").then_some(()));
    let back = Nameserver::of_at(one.port, 1);
    clients.into_iter().for_each(|client| client.join().unwrap());
    wait_until("it to be asked again", || {
        ask(listen, &query(1, "a.example", A));
        (back.count() > 0).then_some(())
    });
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

/// A server that takes no notice of so many questions, whatever the transport.
fn deaf_to(queries: usize) -> Nameserver {
    let count = AtomicUsize::new(0);
    Nameserver::start(move |query, back| {
        if count.fetch_add(1, Ordering::Relaxed) >= queries {
            back.send(&address(query, 60, 5));
        }
    })
}

#[test]
fn a_single_server_is_asked_again() {
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let server = deaf_to(2);
        let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"200ms\", retries = 2 }"));
        let listen = evener.port("d");
        assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 5);
        let seen = server.seen();
        assert_eq!((seen.len(), evener.service_counter("d", "requests_retried")), (3, 2));
        assert!(id(&seen[0].message) != id(&seen[1].message) || id(&seen[1].message) != id(&seen[2].message));
        assert!(seen.iter().all(|sent| sent.message[2..] == seen[0].message[2..]));
    }
}

#[test]
fn retries_are_counted_and_then_the_client_hears_of_it() {
    for (word, code) in [("servfail", SERVFAIL), ("refused", REFUSED)] {
        let (one, two) = (Nameserver::silent(), Nameserver::silent());
        let more = format!("dns = {{ query_timeout = \"200ms\", retries = 3, on_failure = \"{word}\" }}");
        let evener = Evener::run(&service(0, &[&one, &two], &more));
        let listen = evener.port("d");
        let (plain, edns) =
            (query(77, "a.Example", A), with_edns(query(78, "a.Example", A), 4096, true, &[]));
        let failed = ask(listen, &plain);
        assert_eq!((rcode(&failed), failed[2], failed.len()), (code, 0x81, plain.len()));
        assert_eq!(failed[4..], plain[4..], "the question comes back, and nothing with it");
        assert_eq!(one.count() + two.count(), 4, "{word}");
        // Who speaks EDNS is answered so (RFC 6891, section 7).
        let failed = ask_tcp(listen, &edns);
        assert_eq!((rcode(&failed), &failed[4..12]), (code, &edns[4..12]));
        assert_eq!((&failed[plain.len()..plain.len() + 3], failed.len()), (&[0, 0, 41][..], edns.len()));
        assert_eq!(evener.service_counter("d", "requests_failed"), 2);
    }
}

#[test]
fn who_is_to_hear_nothing_hears_nothing_and_a_connection_stays() {
    let server = deaf_to(4);
    let more = "dns = { query_timeout = \"200ms\", retries = 1, on_failure = \"drop\" }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let (socket, mut stream) = (client(listen), connect(listen));
    socket.send(&query(1, "udp.example", A)).unwrap();
    stream.write_all(&framed(&query(1, "tcp.example", A))).unwrap();
    wait_until("both to fail", || (evener.service_counter("d", "requests_failed") == 2).then_some(()));
    assert!(is_quiet(&socket));
    assert_eq!(evener.service_counter("d", "drop_no_server"), 2);
    assert_eq!(host(&ask_on(&socket, &query(2, "a.example", A))), 5);
    assert_eq!(host(&ask_stream(&stream, &query(2, "a.example", A))), 5, "and nothing before it");
}

#[test]
fn without_any_server_clients_hear_it_at_once() {
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
    assert!(elapsed < Duration::from_secs(15), "no time-out was waited for: {elapsed:?}");
    // As soon as one is back it is asked, down or not: there is no other.
    let _back = Nameserver::of_at(one.port, 1);
    wait_until("an answer", || (rcode(&ask(listen, &query(1, "a.example", A))) == 0).then_some(()));
    assert_eq!(evener.service_counter("d", "drop_no_server"), 0);
}
