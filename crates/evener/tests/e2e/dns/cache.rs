//! The response cache: which queries share a response, how long a response stays, and how many fit.

use crate::harness::dns::{
    A, NXDOMAIN, Nameserver, SERVFAIL, SOA, TXT, address, ask, ask_on, ask_tcp, client, client_from, framed,
    host, id, is_quiet, is_truncated, name_of, query, question_section_end, rcode, read_message, receive,
    record, reply, service, sized, with_edns,
};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Returns the TTL of the first record of a response.
fn ttl(response: &[u8]) -> u32 {
    let at = question_section_end(response) + 6;
    u32::from_be_bytes(response[at..at + 4].try_into().unwrap())
}

/// A negative response that may be cached for the given number of seconds.
fn negative_response(query: &[u8], rcode: u8, seconds: u8) -> Vec<u8> {
    let soa = [&[0, 0][..], &[0; 16], &[0, 0, 0, seconds]].concat();
    reply(query, rcode, &[], &[record(SOA, 3600, &soa)])
}

fn cached_service(listen: u16, server: &Nameserver, cache: &str) -> String {
    service(
        listen,
        &[server],
        &format!("dns = {{ cache = {cache}, query_timeout = \"300ms\", retries = 1 }}"),
    )
}

#[test]
fn equal_queries_get_the_cached_response_with_its_remaining_ttl() {
    let server = Nameserver::start(|query, back| back.send(&address(query, 600, 9)));
    let evener = Evener::run_with(&cached_service(0, &server, "true"), &["--workers", "2"]);
    let listen = evener.port("d");
    let begun = Instant::now();
    assert_eq!(ttl(&ask(listen, &query(1, "www.Example", A))), 600);
    for (number, name) in (2..12).zip(["www.example", "WWW.EXAMPLE", "wWw.eXaMpLe"].into_iter().cycle()) {
        let sent = query(1000 + u16::from(number), name, A);
        let client = client_from([127, 0, 0, number], listen);
        for response in [ask_on(&client, &sent), ask_tcp(listen, &sent)] {
            assert_eq!((name_of(&response).as_str(), host(&response)), (name, 9));
        }
    }
    std::thread::sleep(Duration::from_millis(1100));
    let left = ttl(&ask(listen, &query(2, "www.example", A)));
    let spent = begun.elapsed().as_secs() as u32;
    assert!((600 - spent - 1..600).contains(&left), "{left} after {spent} s");
    assert_eq!(server.count(), 1);
    let counters =
        ["requests", "cache_lookups.hit", "cache_lookups.miss"].map(|name| evener.service_counter("d", name));
    assert_eq!(counters, [22, 21, 1]);
}

#[test]
fn responses_are_cached_for_their_ttl() {
    let server = Nameserver::start(|query, back| {
        back.send(&match name_of(query).as_str() {
            "short" => address(query, 1, 1),
            "never" => address(query, 0, 1),
            "long" => reply(query, 0, &[record(A, 60, &[1; 4]), record(A, 90, &[2; 4])], &[]),
            "nodata" => negative_response(query, 0, 60),
            "nxdomain" => negative_response(query, NXDOMAIN, 60),
            "soon" => negative_response(query, NXDOMAIN, 1),
            "no_soa" => reply(query, NXDOMAIN, &[], &[]),
            "failed" => reply(query, SERVFAIL, &[], &[]),
            "refused" => reply(query, 5, &[], &[]),
            _ => {
                let mut response = address(query, 60, 1);
                response[2] |= 2;
                response
            }
        });
    });
    let evener = Evener::run(&cached_service(0, &server, "true"));
    let listen = evener.port("d");
    let queries = |name: &str| server.messages().iter().filter(|message| name_of(message) == name).count();
    let cacheable = ["short", "long", "nodata", "nxdomain", "soon", "failed"];
    let uncacheable = ["never", "no_soa", "refused", "truncated"];
    let ask_all = || {
        let all = cacheable.iter().chain(&uncacheable);
        all.map(|name| rcode(&ask(listen, &query(1, name, A)))).collect::<Vec<u8>>()
    };
    let first = ask_all();
    assert_eq!(first, [0, 0, 0, 3, 3, 2, 0, 3, 5, 0]);
    assert_eq!(ask_all(), first);
    assert_eq!(uncacheable.map(queries), [2; 4], "expected no cached response");
    assert_eq!([queries("long"), queries("nodata"), queries("nxdomain")], [1; 3]);
    assert!(ttl(&ask(listen, &query(1, "long", A))) >= 50, "expected each record to keep its own TTL");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(ask_all(), first);
    assert_eq!(
        [queries("long"), queries("nodata"), queries("nxdomain")],
        [1; 3],
        "expected the cached responses"
    );
    for name in ["short", "soon", "failed"] {
        assert!((2..=3).contains(&queries(name)), "expected {name} to expire: {} queries", queries(name));
    }
}

#[test]
fn queries_that_may_get_different_responses_are_cached_separately() {
    let server = Nameserver::start(|query, back| {
        let kind = query[question_section_end(query) - 3];
        back.send(&reply(query, 0, &[record(kind.into(), 60, &[3, 1, 2, 3])], &[]));
    });
    let evener = Evener::run(&cached_service(0, &server, "true"));
    let listen = evener.port("d");
    let plain = query(1, "a.example", A);
    let flags = |high: u8, low: u8| {
        let mut message = plain.clone();
        (message[2], message[3]) = (high, low);
        message
    };
    let edns = with_edns(plain.clone(), 1232, false, &[]);
    let distinct = [
        plain.clone(),
        query(1, "a.example", TXT),
        query(1, "b.a.example", A),
        edns.clone(),
        with_edns(plain.clone(), 1232, true, &[]),
        flags(0, 0),
        flags(1, 0x10),
        flags(1, 0x20),
    ];
    for turn in 0..3 {
        for (at, message) in distinct.iter().enumerate() {
            ask(listen, message);
            let expected = if turn == 0 { at + 1 } else { distinct.len() };
            assert_eq!(server.count(), expected, "{message:02x?}");
        }
    }
    // A NOTIFY, a query with a client subnet and a query with an unknown option bypass the cache.
    let mut notify = plain.clone();
    notify[2] = 0x20;
    let subnet = [0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2];
    let uncacheable_queries = [
        notify,
        with_edns(plain.clone(), 1232, false, &subnet),
        with_edns(plain.clone(), 1232, false, &[255, 0, 0, 0]),
    ];
    for message in &uncacheable_queries {
        let before = server.count();
        (0..2).for_each(|_| assert_eq!(rcode(&ask(listen, message)), 0));
        assert_eq!(server.count(), before + 2, "{message:02x?}");
    }
    // Neither a cookie (RFC 7873) nor another buffer size changes the response.
    let before = server.count();
    ask(listen, &with_edns(plain.clone(), 1232, false, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]));
    ask(listen, &with_edns(plain, 4096, false, &[]));
    assert_eq!(server.count(), before);
}

#[test]
fn cached_responses_are_truncated_to_the_size_that_each_client_accepts() {
    let server = Nameserver::start(|query, back| back.send(&sized(query, 2000)));
    let evener = Evener::run(&cached_service(0, &server, "true"));
    let listen = evener.port("d");
    let query_of_size = |size| with_edns(query(1, "a.example", TXT), size, false, &[]);
    assert_eq!(ask_tcp(listen, &query_of_size(512)).len(), 2000);
    let short = ask(listen, &query_of_size(1232));
    assert!(is_truncated(&short) && short.len() < 100, "{short:02x?}");
    assert_eq!(ask(listen, &query_of_size(2000)).len(), 2000);
    assert_eq!((server.count(), evener.service_counter("d", "truncated")), (1, 1));
}

#[test]
fn expired_responses_are_used_while_no_server_responds_if_configured() {
    for (stale, expected) in [("1h", 0), ("0s", SERVFAIL)] {
        let is_silent = Arc::new(AtomicBool::new(false));
        let silent = Arc::clone(&is_silent);
        let mut server = Nameserver::start(move |query, back| {
            if !silent.load(Ordering::Relaxed) {
                back.send(&address(query, 1, 1));
            }
        });
        let evener = Evener::run(&cached_service(0, &server, &format!("{{ stale = \"{stale}\" }}")));
        let listen = evener.port("d");
        let sent = query(1, "a.example", A);
        assert_eq!(ttl(&ask(listen, &sent)), 1);
        std::thread::sleep(Duration::from_millis(2100));
        is_silent.store(true, Ordering::Relaxed);
        let check = |response: &[u8]| {
            assert_eq!(rcode(response), expected, "{stale}");
            // RFC 8767, section 4.
            assert!(expected != 0 || (ttl(response), host(response)) == (30, 1));
        };
        check(&ask(listen, &sent));
        server.stop();
        check(&ask(listen, &sent));
        check(&ask_tcp(listen, &sent));
        assert_eq!(
            rcode(&ask(listen, &query(1, "other.example", A))),
            SERVFAIL,
            "expected no cached response"
        );
        assert_eq!(evener.service_counter("d", "cache_stale"), if expected == 0 { 3 } else { 0 });
        let _back = Nameserver::start_at(server.port, |query, back| back.send(&address(query, 500, 2)));
        wait_until("a new response of the server", || (ask(listen, &sent).last() == Some(&2)).then_some(()));
    }
}

#[test]
fn the_cache_never_exceeds_its_limits() {
    let server = Nameserver::start(|query, back| {
        let wide = name_of(query).starts_with("wide");
        back.send(&if wide { sized(query, 40_000) } else { address(query, 600, 1) });
    });
    let evener = Evener::run(&cached_service(0, &server, "{ entries = 50, bytes = \"256KiB\" }"));
    let listen = evener.port("d");
    let cache = |name: &str| evener.status()["services"][0]["cache"][name].as_u64().unwrap();
    for number in 0..200 {
        ask(listen, &query(1, &format!("n{number}.example"), A));
    }
    assert_eq!(cache("entries"), 50);
    for number in 0..20 {
        ask_tcp(listen, &query(1, &format!("wide{number}.example"), TXT));
        assert!(cache("bytes") <= 256 << 10, "{}", cache("bytes"));
    }
    assert!((1..=6).contains(&cache("entries")), "{}", cache("entries"));
    let before = server.count();
    ask_tcp(listen, &query(1, "wide19.example", TXT));
    assert_eq!(server.count(), before, "expected the newest response in the cache");
    ask_tcp(listen, &query(1, "wide0.example", TXT));
    assert_eq!(server.count(), before + 1, "expected the oldest response to be evicted");
}

#[test]
fn equal_queries_at_the_same_time_share_one_response() {
    let gate = Arc::new(Mutex::new(()));
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |query, back| {
        let (query, back, wait) = (query.to_vec(), back.clone(), Arc::clone(&wait));
        std::thread::spawn(move || {
            drop(wait.lock());
            back.send(&address(&query, 600, 9));
        });
    });
    let more = "dns = { cache = true, query_timeout = \"10s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let spelling = |number: u16| if number.is_multiple_of(2) { "www.example" } else { "WWW.Example" };
    let clients: Vec<UdpSocket> = (0..100).map(|_| client(listen)).collect();
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(listen)).collect();
    for (number, client) in (0..).zip(&clients) {
        client.send(&query(number, spelling(number), A)).unwrap();
    }
    for (number, stream) in (0..).zip(&mut streams) {
        stream.write_all(&framed(&query(number, spelling(number), A))).unwrap();
    }
    wait_until("all queries", || (evener.service_counter("d", "requests") == 110).then_some(()));
    drop(shut);
    let check = |number: u16, response: &[u8]| {
        assert_eq!((id(response), name_of(response).as_str(), host(response)), (number, spelling(number), 9));
    };
    (0..).zip(&clients).for_each(|(number, client)| check(number, &receive(client)));
    (0..).zip(&streams).for_each(|(number, stream)| check(number, &read_message(stream).unwrap()));
    assert_eq!(server.count(), 2, "expected one query over UDP and one over TCP");
    assert!(clients.iter().take(3).all(is_quiet));
}

#[test]
fn an_expired_response_is_used_after_the_second_timeout() {
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let server = Nameserver::start(move |query, back| {
        if !silent.load(Ordering::Relaxed) {
            back.send(&address(query, 1, 9));
        }
    });
    let more = "dns = { cache = { stale = \"1h\" }, query_timeout = \"200ms\", retries = 9 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let sent = query(7, "a.example", A);
    assert_eq!(host(&ask(listen, &sent)), 9);
    is_silent.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(host(&ask(listen, &sent)), 9);
    assert_eq!(evener.service_counter("d", "cache_stale"), 1);
    let cache = &evener.status()["services"][0]["cache"];
    assert_eq!((&cache["hits"], &cache["misses"]), (&1.into(), &1.into()), "a stale response is a hit");
    assert_eq!(server.count(), 3, "expected one query with a response and two without");
}
