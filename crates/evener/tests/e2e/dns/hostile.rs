//! Servers that send unsolicited or forged responses. No such response reaches a client (RFC 5452, sections 4 and 9).

use crate::harness::dns::{
    A, Nameserver, ReplyPath, SERVFAIL, TXT, Transport, address, ask, ask_on, ask_stream, ask_tcp, client,
    framed, host, id, is_closed, is_quiet, name_of, query, question_section_end, rcode, read_message,
    receive, service, with_edns,
};
use crate::harness::{Evener, Server, connect, wait_until};
use std::io::Write;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::time::Duration;

/// The host of every forged response, and the host of the genuine response.
const WRONG: u8 = 66;
const RIGHT: u8 = 7;

/// Messages that are not a response to the query for `www.Example`.
fn forgeries() -> Vec<(&'static str, Vec<u8>)> {
    let sent = query(0, "www.Example", A);
    let genuine = address(&sent, 60, WRONG);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut response = genuine.clone();
        change(&mut response);
        response
    };
    let end = question_section_end(&sent);
    vec![
        ("another name", address(&query(0, "www.Exbmple", A), 60, WRONG)),
        ("a longer name", address(&query(0, "www.Example.a", A), 60, WRONG)),
        ("a shorter name", address(&query(0, "Example", A), 60, WRONG)),
        ("no name", address(&query(0, "", A), 60, WRONG)),
        ("another type", address(&query(0, "www.Example", TXT), 60, WRONG)),
        ("another class", with(&|response| response[end - 1] = 3)),
        ("a query", with(&|response| response[2] &= 0x7f)),
        ("another opcode", with(&|response| response[2] |= 0x20)),
        ("no question section", with(&|response| drop(response.splice(5..end, [0; 7])))),
        ("a question count of 0", with(&|response| response[5] = 0)),
        ("a question count of 2", with(&|response| response[5] = 2)),
        ("a truncated question section", genuine[..end - 1].to_vec()),
        ("a truncated name", genuine[..15].to_vec()),
        ("a header alone", genuine[..12].to_vec()),
        ("half a header", genuine[..7].to_vec()),
        ("an ID alone", genuine[..2].to_vec()),
        ("a name that points to itself", with(&|response| response[12..14].copy_from_slice(&[0xc0, 12]))),
        ("a label of a reserved kind", with(&|response| response[12] = 0x83)),
    ]
}

/// Returns the forged message with the ID of the query.
fn with_id_of(forged: &[u8], query: &[u8]) -> Vec<u8> {
    let mut forged = forged.to_vec();
    forged[..2].copy_from_slice(&query[..2]);
    forged
}

#[test]
fn forged_responses_are_never_passed_on() {
    for (what, forged) in forgeries() {
        let server = Nameserver::start(move |query, back| {
            back.send(&with_id_of(&forged, query));
            back.send(&address(query, 60, RIGHT));
        });
        let evener = Evener::run(&service(0, &[&server], ""));
        let listen = evener.port("d");
        let sent = query(0x4711, "www.Example", A);
        let socket = client(listen);
        assert_eq!(host(&ask_on(&socket, &sent)), RIGHT, "{what}, over UDP");
        assert!(is_quiet(&socket), "{what}, over UDP");
        assert_eq!(host(&ask_tcp(listen, &sent)), RIGHT, "{what}, over TCP");
        assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 2, "{what}");
        assert_eq!(evener.server(&server.name())["counters"]["responses"], 2, "{what}");
    }
}

#[test]
fn a_response_with_another_id_is_never_passed_on() {
    let server = Nameserver::start(|query, back| {
        let mut forged = address(query, 60, WRONG);
        for bit in 0..16 {
            forged[..2].copy_from_slice(&(id(query) ^ 1 << bit).to_be_bytes());
            back.send(&forged);
        }
        back.send(&address(query, 60, RIGHT));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let socket = client(listen);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), RIGHT);
    assert!(is_quiet(&socket));
    assert_eq!(host(&ask_tcp(listen, &query(2, "a.example", A))), RIGHT);
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 32);
}

#[test]
fn a_response_from_another_address_is_never_passed_on() {
    let server = Nameserver::start(|query, back| {
        let ReplyPath::Udp(_, to) = back else { return };
        // Another port of the same address, and another address.
        for from in ["127.0.0.1:0", "127.0.0.2:0"] {
            let elsewhere = UdpSocket::bind(from).unwrap();
            elsewhere.send_to(&address(query, 60, WRONG), to).unwrap();
        }
        back.send(&address(query, 60, RIGHT));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let socket = client(listen);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), RIGHT);
    assert!(is_quiet(&socket));
    // The socket is connected: the kernel drops datagrams from any other address.
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
}

#[test]
fn only_the_first_of_repeated_responses_counts() {
    let server = Nameserver::start(|query, back| {
        for host in [RIGHT, WRONG, WRONG] {
            back.send(&address(query, 60, host));
        }
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (socket, stream) = (client(listen), connect(listen));
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), RIGHT);
    assert!(is_quiet(&socket));
    for id in 0..3 {
        assert_eq!(host(&ask_stream(&stream, &query(id, "a.example", A))), RIGHT);
    }
    wait_until("the other responses to be counted", || {
        (evener.server(&server.name())["counters"]["responses_bad"] == 8).then_some(())
    });
    assert_eq!(evener.server(&server.name())["counters"]["responses"], 4);
}

#[test]
fn a_response_after_the_last_timeout_is_never_passed_on() {
    let server = Nameserver::start(|query, back| {
        let (query, back) = (query.to_vec(), back.clone());
        std::thread::spawn(move || {
            if name_of(&query) == "late.example" {
                std::thread::sleep(Duration::from_millis(600));
                return back.send(&address(&query, 60, WRONG));
            }
            back.send(&address(&query, 60, RIGHT));
        });
    });
    let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"200ms\", retries = 0 }"));
    let listen = evener.port("d");
    let (socket, stream) = (client(listen), connect(listen));
    let late = query(0x1111, "late.example", A);
    let failed = ask_on(&socket, &late);
    assert_eq!((rcode(&failed), &failed[12..]), (SERVFAIL, &late[12..]));
    assert_eq!(rcode(&ask_stream(&stream, &late)), SERVFAIL);
    // The client reuses the ID. The late response must not count as the response to the new query.
    assert_eq!(host(&ask_on(&socket, &query(0x1111, "b.example", A))), RIGHT);
    // Only the late response over UDP is counted: the stream that timed out is already closed.
    wait_until("the late response", || {
        (evener.server(&server.name())["counters"]["responses_bad"] == 1).then_some(())
    });
    assert!(is_quiet(&socket));
    assert_eq!(
        host(&ask_stream(&stream, &query(0x1111, "b.example", A))),
        RIGHT,
        "expected no earlier response on the stream"
    );
    assert_eq!(evener.service_counter("d", "requests_failed"), 2);
    assert_eq!(evener.server(&server.name())["counters"]["response_timeouts"], 2);
}

#[test]
fn a_response_to_the_query_of_another_client_is_never_passed_on() {
    // Two queries are pending. The server first sends each client the response to the query of the other
    // client, with the ID that the client expects. Then the server sends the genuine responses.
    let waiting = Mutex::new(Vec::new());
    let server = Nameserver::start(move |query, back| {
        let mut waiting = waiting.lock().unwrap();
        waiting.push((query.to_vec(), back.clone()));
        if let [(one, to_one), (other, to_other)] = &waiting[..] {
            to_one.send(&with_id_of(&address(other, 60, WRONG), one));
            to_other.send(&with_id_of(&address(one, 60, WRONG), other));
            to_one.send(&address(one, 60, 1));
            to_other.send(&address(other, 60, 2));
            waiting.clear();
        }
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (one, other) = (client(listen), client(listen));
    let (first, second) = (query(5, "one.example", A), query(5, "two.example", A));
    one.send(&first).unwrap();
    wait_until("the first query", || (server.count() == 1).then_some(()));
    other.send(&second).unwrap();
    for (socket, query, expected) in [(&one, &first, 1), (&other, &second, 2)] {
        let response = receive(socket);
        assert_eq!((id(&response), name_of(&response), host(&response)), (5, name_of(query), expected));
        assert!(is_quiet(socket));
    }
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 2);
}

#[test]
fn a_server_that_sends_garbage_blocks_no_client() {
    let bad = Nameserver::start(|query, back| {
        // Messages of up to 299 random bytes. Every other message begins with the ID of the query. Then the
        // stream ends within a message.
        let mut state = u32::from(id(query)) | 1;
        for round in 0..300 {
            let bytes: Vec<u8> = (0..round)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let with_id = [&query[..2], &bytes].concat();
            back.send(if round % 2 == 0 { &bytes } else { &with_id });
        }
        back.send_raw(&[0xff, 0xff, 1, 2, 3]);
        back.close();
    });
    let good = Nameserver::of(RIGHT);
    let evener = Evener::run(&service(0, &[&bad, &good], "dns = { query_timeout = \"200ms\" }"));
    let listen = evener.port("d");
    for turn in 0..20 {
        let sent = query(turn, "a.example", A);
        assert_eq!(host(&ask(listen, &sent)), RIGHT);
        assert_eq!(host(&ask_tcp(listen, &sent)), RIGHT);
    }
    assert!(evener.server(&bad.name())["counters"]["responses_bad"].as_u64() > Some(100));
    assert_eq!(evener.server(&bad.name())["counters"]["responses"], 0);
}

#[test]
fn a_socket_is_replaced_after_a_flood_of_unsolicited_responses() {
    let server = Nameserver::start(|query, back| {
        if name_of(query) == "flood.example" {
            let mut forged = address(query, 60, WRONG);
            for guess in 0..3000_u16 {
                forged[..2].copy_from_slice(&(id(query) ^ (guess + 1)).to_be_bytes());
                back.send(&forged);
                // The pauses prevent an overflow of the socket's receive buffer.
                if guess % 100 == 99 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        back.send(&address(query, 60, RIGHT));
    });
    let more = "dns = { sockets = 1, query_timeout = \"10s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), RIGHT);
    assert_eq!(
        host(&ask(listen, &query(2, "flood.example", A))),
        RIGHT,
        "expected a response on the flooded socket"
    );
    assert_eq!(host(&ask(listen, &query(3, "b.example", A))), RIGHT);
    let ports = server.source_ports(Transport::Udp);
    assert_eq!(ports[0], ports[1], "expected one socket before the flood: {ports:?}");
    assert_ne!(ports[1], ports[2], "expected another socket after the flood: {ports:?}");
    assert!(evener.server(&server.name())["counters"]["responses_bad"].as_u64() > Some(1024));
}

#[test]
fn queries_go_to_another_server_when_a_server_closes_its_connections() {
    let bad = Nameserver::start(|_, back| back.close());
    let good = Nameserver::of(RIGHT);
    let evener = Evener::run(&service(0, &[&bad, &good], ""));
    let listen = evener.port("d");
    let stream = connect(listen);
    for turn in 0..10 {
        assert_eq!(host(&ask_stream(&stream, &query(turn, "a.example", A))), RIGHT);
    }
    assert!(evener.server(&bad.name())["counters"]["responses_bad"].as_u64() > Some(0));
    drop(good);
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(!is_closed(&stream));
}

#[test]
fn queries_go_to_another_server_when_a_server_reads_nothing() {
    const ALL: u16 = 300;
    let bad = Server::start(|_stream| std::thread::sleep(Duration::from_secs(60)));
    let good = Nameserver::of(RIGHT);
    let config = format!(
        "service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", \"{}\", passive = false, \
         dns = {{ sockets = 1, query_timeout = \"1s\" }} }}",
        bad.port,
        good.name()
    );
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let stream = connect(listen);
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        // Long queries, so that the buffers to the server fill.
        let padding = [&[0, 12, 0xea, 0x60][..], &[0; 60_000]].concat();
        for number in 0..ALL {
            let sent = query(number, &format!("n{number}.example"), A);
            writer.write_all(&framed(&with_edns(sent, 1232, false, &padding))).unwrap();
        }
    });
    // The good server may be unable to respond to all queries at the same time. Each query still gets a response, and the next
    // client is served.
    for _ in 0..ALL {
        assert!([0, SERVFAIL].contains(&rcode(&read_message(&stream).unwrap())));
    }
    sender.join().unwrap();
    let stream = connect(listen);
    for number in 0..6 {
        assert_eq!(host(&ask_stream(&stream, &query(number, &format!("n{number}.example"), A))), RIGHT);
    }
    assert_eq!(evener.service_counter("d", "drops.no_socket"), 0);
}
