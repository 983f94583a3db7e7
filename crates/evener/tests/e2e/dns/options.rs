//! EDNS options that end at Evener (cookies, idle timeouts), and unusual queries.

use crate::harness::dns::{
    A, AXFR, FORMERR, Nameserver, SERVFAIL, SOA, address, ask, ask_on, ask_stream, ask_tcp, client, framed,
    host, name_of, query, question_section_end, rcode, read_message, receive, record, reply, service,
    with_edns,
};
use crate::harness::dns_mname::{Frame, MnameServer, mname_service, outbound};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const NOTIMP: u8 = 4;

/// A client cookie, and a client cookie with a server cookie.
const COOKIE: &[u8] = &[0, 10, 0, 8, 0xc0, 0x0c, 1, 0xe5, 5, 6, 7, 8];
const BOTH_COOKIES: &[u8] = &[0, 10, 0, 16, 0xc0, 0x0c, 1, 0xe5, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9];
/// The keepalive option: the request of a client, and an idle timeout of two minutes from a server.
const KEEPALIVE: &[u8] = &[0, 11, 0, 0];
const TWO_MINUTES: &[u8] = &[0, 11, 0, 2, 4, 0xb0];
const OTHER: &[u8] = &[255, 0, 0, 1, 7];

fn edns(message: Vec<u8>, options: &[&[u8]]) -> Vec<u8> {
    with_edns(message, 1232, false, &options.concat())
}

fn has(message: &[u8], option: &[u8]) -> bool {
    message.windows(option.len()).any(|window| window == option)
}

/// A server that adds its cookie, its idle timeout and an unknown option to each response.
fn with_options() -> Nameserver {
    Nameserver::start(|sent, back| {
        back.send(&edns(address(sent, 60, 1), &[BOTH_COOKIES, TWO_MINUTES, OTHER]));
    })
}

#[test]
fn a_query_with_an_empty_question_section_gets_notimp_or_formerr() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    for (opcode, expected) in
        [(1, NOTIMP), (2, NOTIMP), (6, NOTIMP), (15, NOTIMP), (0, FORMERR), (5, FORMERR)]
    {
        let message = [&[7, 7, opcode << 3, 0][..], &[0; 8]].concat();
        for response in [ask(listen, &message), ask_tcp(listen, &message)] {
            assert_eq!(response, [&[7, 7, 0x80 | opcode << 3, expected][..], &[0; 8]].concat());
        }
    }
    assert_eq!((server.count(), evener.service_counter("d", "formerr")), (0, 12));
}

#[test]
fn bytes_after_a_message_are_not_passed_on() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "dns = { cache = true, client_subnet = true }"));
    let listen = evener.port("d");
    let plain = query(1, "a.example", A);
    for (name, message) in
        [("a.example", plain.clone()), ("b.example", edns(query(1, "b.example", A), &[OTHER]))]
    {
        let filled = [&message[..], &vec![0; 512 - message.len()]].concat();
        for response in
            [ask(listen, &filled), ask_tcp(listen, &filled), ask(listen, &[&message[..], &message].concat())]
        {
            assert_eq!(host(&response), 1, "{name}");
        }
    }
    let seen = server.messages();
    assert!(seen.iter().all(|message| message.len() < 100 && question_section_end(message) == plain.len()));
    assert!(ask(listen, &plain).len() < 100, "expected the cached response");
}

#[test]
fn a_query_that_requests_only_a_cookie_is_passed_on() {
    let server = Nameserver::start(|sent, back| {
        let bare = [&sent[..2], &[0x80, 0], &[0; 8]].concat();
        back.send(&if sent[5] == 0 { edns(bare, &[BOTH_COOKIES]) } else { address(sent, 60, 1) });
    });
    let config = |more: &str| service(0, &[&server], more);
    let evener = Evener::run(&config(""));
    let listen = evener.port("d");
    let alone = edns([&[7, 7, 0, 0][..], &[0; 8]].concat(), &[COOKIE]);
    for response in [ask(listen, &alone), ask_tcp(listen, &alone)] {
        assert_eq!((rcode(&response), has(&response, BOTH_COOKIES)), (0, true));
    }
    assert!(server.messages().iter().all(|message| message[2..] == alone[2..]));
    // A service with a cache supports no cookies.
    evener.reload(&config("dns = { cache = true }"));
    for response in [ask(listen, &alone), ask_tcp(listen, &alone)] {
        assert_eq!((rcode(&response), response.len()), (FORMERR, 12));
    }
    assert_eq!(server.count(), 2);
    // mname servers accept no query with an empty question section.
    let backend = MnameServer::start(|frame, back| crate::harness::dns_mname::respond(frame, back, 4));
    evener.reload(&mname_service(listen, &[&backend], &[], ""));
    wait_until("the persistent connection", || {
        (evener.server(&backend.name())["verdict"] == "up").then_some(())
    });
    for response in [ask(listen, &alone), ask_tcp(listen, &alone)] {
        assert_eq!(rcode(&response), SERVFAIL);
    }
}

/// Panics unless this is a response of the server, or SERVFAIL, without a cookie.
fn check_without_cookie(response: &[u8]) {
    assert!(!has(response, COOKIE) && !has(response, &[0, 10, 0]), "{response:02x?}");
    assert!(
        response[11] == 1 && (rcode(response) == SERVFAIL || has(response, &[192, 0, 2, 1])),
        "{response:02x?}"
    );
}

#[test]
fn a_service_with_a_cache_removes_cookies() {
    let gate = Arc::new(Mutex::new(()));
    let (wait, is_first) = (Arc::clone(&gate), AtomicBool::new(true));
    let server = Nameserver::start(move |sent, back| {
        let response = match name_of(sent).as_str() {
            "failed" => reply(sent, SERVFAIL, &[], &[]),
            "once" if !is_first.swap(false, Ordering::Relaxed) => return,
            "once" => address(sent, 1, 1),
            _ => address(sent, 60, 1),
        };
        drop(wait.lock());
        back.send(&edns(response, &[BOTH_COOKIES, OTHER]));
    });
    let more = "dns = { cache = { stale = \"1h\" }, query_timeout = \"5s\", retries = 0 }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let stream = connect(listen);
    let with_cookie = |id: u16, name: &str| edns(query(id, name, A), &[COOKIE]);
    // New and cached responses, failures, and malformed cookies.
    for number in 0..3 {
        check_without_cookie(&ask(listen, &with_cookie(number, "cached")));
        check_without_cookie(&ask_stream(&stream, &with_cookie(number, "cached")));
        check_without_cookie(&ask_stream(&stream, &with_cookie(number, "failed")));
        let odd = edns(query(number, "odd", A), &[OTHER, &[0, 10, 0, 1, 7], &[0, 10, 0, 0]]);
        check_without_cookie(&ask(listen, &odd));
    }
    // Coalesced queries.
    let clients = [client(listen), client(listen), client(listen)];
    let closed = gate.lock();
    let before = evener.service_counter("d", "requests");
    clients
        .iter()
        .zip(1..)
        .for_each(|(socket, id)| assert!(socket.send(&with_cookie(id, "together")).is_ok()));
    wait_until("all queries", || (evener.service_counter("d", "requests") == before + 3).then_some(()));
    drop(closed);
    clients.iter().for_each(|socket| check_without_cookie(&receive(socket)));
    // Expired responses.
    evener.reload(&service(0, &[&server], &more.replace("5s", "100ms")));
    wait_until("a stale response", || {
        check_without_cookie(&ask(listen, &with_cookie(1, "once")));
        (evener.service_counter("d", "cache_stale") > 0).then_some(())
    });
    assert!(
        server.messages().iter().all(|message| !has(message, &[0, 10, 0])),
        "expected no cookie to reach the server"
    );
}

#[test]
fn a_service_without_a_cache_passes_cookies_on() {
    let server = with_options();
    let evener = Evener::run(&service(0, &[&server], "dns = { client_subnet = true }"));
    let listen = evener.port("d");
    let sent = edns(query(1, "a.example", A), &[COOKIE]);
    for response in [ask(listen, &sent), ask_tcp(listen, &sent)] {
        assert!(has(&response, BOTH_COOKIES) && has(&response, OTHER));
    }
    assert!(server.messages().iter().all(|message| has(message, COOKIE)));
}

#[test]
fn the_keepalive_option_has_the_idle_timeout_of_the_service() {
    let server = with_options();
    let seven = [0, 11, 0, 2, 0, 70];
    for dns in ["{}", "{ cache = true }"] {
        let evener = Evener::run(&service(0, &[&server], &format!("idle_timeout = \"7s\", dns = {dns}")));
        let listen = evener.port("d");
        let stream = connect(listen);
        for number in 0..3 {
            let name = format!("n{}.example", number / 2);
            let with_keepalive = edns(query(number, &name, A), &[KEEPALIVE]);
            let response = ask_stream(&stream, &with_keepalive);
            assert!(has(&response, &seven) && !has(&response, TWO_MINUTES), "{dns}: {response:02x?}");
            assert_eq!(response[11], 1);
            // There is no such option over UDP, nor for a client that did not send it.
            for response in
                [ask(listen, &with_keepalive), ask_stream(&stream, &edns(query(9, &name, A), &[]))]
            {
                assert!(!has(&response, &seven) && !has(&response, TWO_MINUTES), "{dns}: {response:02x?}");
            }
        }
        // A local response to a query without a question section is a bare header, without the option.
        let refused = ask_stream(&stream, &edns([&[7, 7, 0x78, 0][..], &[0; 8]].concat(), &[KEEPALIVE]));
        assert_eq!((rcode(&refused), refused.len()), (NOTIMP, 12));
        drop(evener);
    }
    assert!(
        server.messages().iter().all(|message| !has(message, KEEPALIVE)),
        "expected no keepalive option to reach the server"
    );
}

#[test]
fn failures_and_transfers_have_the_keepalive_option() {
    let server = Nameserver::start(move |sent, back| {
        if sent[question_section_end(sent) - 3] == AXFR as u8 {
            let soa = record(SOA, 60, &[&[0, 0][..], &[0; 20]].concat());
            back.send(&edns(reply(sent, 0, std::slice::from_ref(&soa), &[]), &[TWO_MINUTES]));
            back.send(&edns(reply(sent, 0, &[soa], &[]), &[TWO_MINUTES]));
        }
    });
    let more = "idle_timeout = \"7s\", dns = { query_timeout = \"200ms\", retries = 0 }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let stream = connect(listen);
    let seven = [0, 11, 0, 2, 0, 70];
    let failed = ask_stream(&stream, &edns(query(1, "a.example", A), &[KEEPALIVE]));
    assert!(rcode(&failed) == SERVFAIL && failed.ends_with(&seven), "{failed:02x?}");
    (&stream).write_all(&framed(&edns(query(2, "z.example", AXFR), &[KEEPALIVE]))).unwrap();
    for _ in 0..2 {
        let piece = read_message(&stream).unwrap();
        assert!(piece.ends_with(&seven) && !has(&piece, TWO_MINUTES), "{piece:02x?}");
    }
}

#[test]
fn during_a_drain_the_keepalive_option_has_an_idle_timeout_of_zero() {
    let gate = Arc::new(Mutex::new(()));
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |sent, back| {
        drop(wait.lock());
        back.send(&edns(address(sent, 60, 1), &[]));
    });
    let more = "idle_timeout = \"7s\", dns = { query_timeout = \"30s\" }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let stream = connect(listen);
    let closed = gate.lock();
    (&stream).write_all(&framed(&edns(query(1, "a.example", A), &[KEEPALIVE]))).unwrap();
    wait_until("the query", || (server.count() == 1).then_some(()));
    evener.signal("TERM");
    evener.expect_log("draining");
    // Each worker begins to drain separately, and then closes its listener.
    wait_until("the listener to close", || std::net::TcpStream::connect(("127.0.0.1", listen)).err());
    drop(closed);
    assert!(read_message(&stream).unwrap().ends_with(&[0, 11, 0, 2, 0, 0]));
}

#[test]
fn the_keepalive_option_does_not_reach_mname_servers() {
    let backend = MnameServer::start(|frame, mut back| match frame {
        Frame::Udp { from, message } => {
            let response = edns(address(message, 60, 4), &[BOTH_COOKIES, TWO_MINUTES]);
            back.write_all(&outbound(*from, &response)).unwrap();
        }
        Frame::Message(message) => {
            let response = edns(address(message, 60, 4), &[BOTH_COOKIES, TWO_MINUTES]);
            back.write_all(&framed(&response)).unwrap();
        }
        _ => crate::harness::dns_mname::respond(frame, back, 4),
    });
    let evener = Evener::run(&mname_service(0, &[&backend], &[], "idle_timeout = \"7s\""));
    let listen = evener.port("d");
    wait_until("the persistent connection", || {
        (evener.server(&backend.name())["verdict"] == "up").then_some(())
    });
    let sent = edns(query(1, "a.example", A), &[COOKIE, KEEPALIVE]);
    let over_udp = ask_on(&client(listen), &sent);
    let over_tcp = ask_tcp(listen, &sent);
    assert!(over_udp.ends_with(BOTH_COOKIES), "{over_udp:02x?}");
    assert!(over_tcp.ends_with(&[BOTH_COOKIES, &[0, 11, 0, 2, 0, 70]].concat()), "{over_tcp:02x?}");
    for frame in backend.frames() {
        if let Frame::Udp { message, .. } | Frame::Message(message) = frame {
            assert!(message.ends_with(COOKIE), "{message:02x?}");
        }
    }
}
