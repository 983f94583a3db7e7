//! Answers that are kept: for whom, how long, how many.

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

/// The TTL of the first record of an answer.
fn ttl(response: &[u8]) -> u32 {
    let at = question_section_end(response) + 6;
    u32::from_be_bytes(response[at..at + 4].try_into().unwrap())
}

/// Says that there is nothing of this kind or name, which is believed for so many seconds.
fn nothing(query: &[u8], rcode: u8, seconds: u8) -> Vec<u8> {
    let soa = [&[0, 0][..], &[0; 16], &[0, 0, 0, seconds]].concat();
    reply(query, rcode, &[], &[record(SOA, 3600, &soa)])
}

fn cached(listen: u16, server: &Nameserver, cache: &str) -> String {
    service(
        listen,
        &[server],
        &format!("dns = {{ cache = {cache}, query_timeout = \"300ms\", retries = 1 }}"),
    )
}

#[test]
fn whoever_asks_the_same_gets_the_same_with_the_ttl_counted_down() {
    let server = Nameserver::start(|query, back| back.send(&address(query, 600, 9)));
    let evener = Evener::run_with(&cached(0, &server, "true"), &["--workers", "2"]);
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
    let counters = ["requests", "cache_hits", "cache_misses"].map(|name| evener.service_counter("d", name));
    assert_eq!(counters, [22, 21, 1]);
}

#[test]
fn answers_are_kept_as_long_as_they_say_and_no_longer() {
    let server = Nameserver::start(|query, back| {
        back.send(&match name_of(query).as_str() {
            "short" => address(query, 1, 1),
            "never" => address(query, 0, 1),
            "long" => reply(query, 0, &[record(A, 60, &[1; 4]), record(A, 90, &[2; 4])], &[]),
            "nodata" => nothing(query, 0, 60),
            "nxdomain" => nothing(query, NXDOMAIN, 60),
            "soon" => nothing(query, NXDOMAIN, 1),
            "unbelieved" => reply(query, NXDOMAIN, &[], &[]),
            "failed" => reply(query, SERVFAIL, &[], &[]),
            "refused" => reply(query, 5, &[], &[]),
            _ => {
                let mut response = address(query, 60, 1);
                response[2] |= 2;
                response
            }
        });
    });
    let evener = Evener::run(&cached(0, &server, "true"));
    let listen = evener.port("d");
    let sent = |name: &str| server.seen().iter().filter(|seen| name_of(&seen.message) == name).count();
    let cached_ones = ["short", "long", "nodata", "nxdomain", "soon", "failed"];
    let others = ["never", "unbelieved", "refused", "truncated"];
    let ask_all = || {
        let all = cached_ones.iter().chain(&others);
        all.map(|name| rcode(&ask(listen, &query(1, name, A)))).collect::<Vec<u8>>()
    };
    let first = ask_all();
    assert_eq!(first, [0, 0, 0, 3, 3, 2, 0, 3, 5, 0]);
    assert_eq!(ask_all(), first);
    assert_eq!(others.map(sent), [2; 4], "they are never kept");
    assert_eq!([sent("long"), sent("nodata"), sent("nxdomain")], [1; 3]);
    assert!(ttl(&ask(listen, &query(1, "long", A))) >= 50, "each record has a time of its own");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(ask_all(), first);
    assert_eq!([sent("long"), sent("nodata"), sent("nxdomain")], [1; 3], "they are kept still");
    for name in ["short", "soon", "failed"] {
        assert!((2..=3).contains(&sent(name)), "{name} expired: {}", sent(name));
    }
}

#[test]
fn questions_that_may_be_answered_otherwise_are_apart() {
    let server = Nameserver::start(|query, back| {
        let kind = query[question_section_end(query) - 3];
        back.send(&reply(query, 0, &[record(kind.into(), 60, &[3, 1, 2, 3])], &[]));
    });
    let evener = Evener::run(&cached(0, &server, "true"));
    let listen = evener.port("d");
    let plain = query(1, "a.example", A);
    let flags = |high: u8, low: u8| {
        let mut message = plain.clone();
        (message[2], message[3]) = (high, low);
        message
    };
    let edns = with_edns(plain.clone(), 1232, false, &[]);
    let apart = [
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
        for (at, message) in apart.iter().enumerate() {
            ask(listen, message);
            let expected = if turn == 0 { at + 1 } else { apart.len() };
            assert_eq!(server.count(), expected, "{message:02x?}");
        }
    }
    // What one client alone is concerned with is neither looked for nor kept.
    let mut notify = plain.clone();
    notify[2] = 0x20;
    let subnet = [0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2];
    let unkept = [
        notify,
        with_edns(plain.clone(), 1232, false, &subnet),
        with_edns(plain.clone(), 1232, false, &[255, 0, 0, 0]),
    ];
    for message in &unkept {
        let before = server.count();
        (0..2).for_each(|_| assert_eq!(rcode(&ask(listen, message)), 0));
        assert_eq!(server.count(), before + 2, "{message:02x?}");
    }
    // A cookie makes no other answer (RFC 7873), nor does another size.
    let before = server.count();
    ask(listen, &with_edns(plain.clone(), 1232, false, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]));
    ask(listen, &with_edns(plain, 4096, false, &[]));
    assert_eq!(server.count(), before);
}

#[test]
fn kept_answers_are_cut_to_what_each_client_takes() {
    let server = Nameserver::start(|query, back| back.send(&sized(query, 2000)));
    let evener = Evener::run(&cached(0, &server, "true"));
    let listen = evener.port("d");
    let sent = |size| with_edns(query(1, "a.example", TXT), size, false, &[]);
    assert_eq!(ask_tcp(listen, &sent(512)).len(), 2000);
    let short = ask(listen, &sent(1232));
    assert!(is_truncated(&short) && short.len() < 100, "{short:02x?}");
    assert_eq!(ask(listen, &sent(2000)).len(), 2000);
    assert_eq!((server.count(), evener.service_counter("d", "truncated")), (1, 1));
}

#[test]
fn expired_answers_serve_while_no_server_does_if_that_is_wanted() {
    for (stale, expected) in [("1h", 0), ("0s", SERVFAIL)] {
        let mute = Arc::new(AtomicBool::new(false));
        let hush = Arc::clone(&mute);
        let mut server = Nameserver::start(move |query, back| {
            if !hush.load(Ordering::Relaxed) {
                back.send(&address(query, 1, 1));
            }
        });
        let evener = Evener::run(&cached(0, &server, &format!("{{ stale = \"{stale}\" }}")));
        let listen = evener.port("d");
        let sent = query(1, "a.example", A);
        assert_eq!(ttl(&ask(listen, &sent)), 1);
        std::thread::sleep(Duration::from_millis(2100));
        mute.store(true, Ordering::Relaxed);
        let check = |response: &[u8]| {
            assert_eq!(rcode(response), expected, "{stale}");
            // RFC 8767, section 4.
            assert!(expected != 0 || (ttl(response), host(response)) == (30, 1));
        };
        check(&ask(listen, &sent));
        server.stop();
        check(&ask(listen, &sent));
        check(&ask_tcp(listen, &sent));
        assert_eq!(rcode(&ask(listen, &query(1, "other.example", A))), SERVFAIL, "nobody knows that");
        assert_eq!(evener.service_counter("d", "cache_stale"), if expected == 0 { 3 } else { 0 });
        let _back = Nameserver::start_at(server.port, |query, back| back.send(&address(query, 500, 2)));
        wait_until("the server's own answer", || (ask(listen, &sent).last() == Some(&2)).then_some(()));
    }
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let server = Nameserver::start(|query, back| {
        let wide = name_of(query).starts_with("wide");
        back.send(&if wide { sized(query, 40_000) } else { address(query, 600, 1) });
    });
    let evener = Evener::run(&cached(0, &server, "{ entries = 50, bytes = \"256KiB\" }"));
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
    assert_eq!(server.count(), before, "the newest is there");
    ask_tcp(listen, &query(1, "wide0.example", TXT));
    assert_eq!(server.count(), before + 1, "the oldest went");
}

#[test]
fn who_asks_the_same_meanwhile_gets_the_same_answer() {
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
    let spelt = |number: u16| if number.is_multiple_of(2) { "www.example" } else { "WWW.Example" };
    let clients: Vec<UdpSocket> = (0..100).map(|_| client(listen)).collect();
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(listen)).collect();
    for (number, client) in (0..).zip(&clients) {
        client.send(&query(number, spelt(number), A)).unwrap();
    }
    for (number, stream) in (0..).zip(&mut streams) {
        stream.write_all(&framed(&query(number, spelt(number), A))).unwrap();
    }
    wait_until("all to wait", || (evener.service_counter("d", "requests") == 110).then_some(()));
    drop(shut);
    let check = |number: u16, response: &[u8]| {
        assert_eq!((id(response), name_of(response).as_str(), host(response)), (number, spelt(number), 9));
    };
    (0..).zip(&clients).for_each(|(number, client)| check(number, &receive(client)));
    (0..).zip(&streams).for_each(|(number, stream)| check(number, &read_message(stream).unwrap()));
    assert_eq!(server.count(), 2, "one over UDP, one over TCP");
    assert!(clients.iter().take(3).all(is_quiet));
}

#[test]
fn an_old_answer_is_given_after_the_second_time_out() {
    let hushed = Arc::new(AtomicBool::new(false));
    let quiet = Arc::clone(&hushed);
    let server = Nameserver::start(move |query, back| {
        if !quiet.load(Ordering::Relaxed) {
            back.send(&address(query, 1, 9));
        }
    });
    let more = "dns = { cache = { stale = \"1h\" }, query_timeout = \"200ms\", retries = 9 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let sent = query(7, "a.example", A);
    assert_eq!(host(&ask(listen, &sent)), 9);
    hushed.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(host(&ask(listen, &sent)), 9);
    assert_eq!(evener.service_counter("d", "cache_stale"), 1);
    assert_eq!(server.count(), 3, "once when it answered, and twice in vain");
}
