//! Messages that are not queries are dropped, and malformed queries get a short response. No server receives
//! either.

use crate::harness::dns::{
    A, FORMERR, Nameserver, address, ask, ask_on, ask_stream, client, framed, host, id, is_closed, is_quiet,
    query, question_section_end, rcode, read_message, receive, record, reply, service, wire_name, with_edns,
};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;

/// Messages that must not get a response: fragments, and responses.
fn not_queries() -> Vec<(&'static str, Vec<u8>)> {
    let sent = query(0x1234, "a.example", A);
    vec![
        ("nothing", Vec::new()),
        ("a byte", vec![1]),
        ("eleven bytes", sent[..11].to_vec()),
        ("a response", address(&sent, 60, 1)),
        ("a response of twelve bytes", [&[1, 2, 0x80][..], &[0; 9]].concat()),
        ("a response of random bytes", [&[1, 2, 0xff][..], &[0xff; 99]].concat()),
    ]
}

/// Malformed queries.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let sent = query(0x1234, "a.example", A);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = sent.clone();
        change(&mut message);
        message
    };
    let named = |name: &[u8]| [&sent[..12], name, &[0, 1, 0, 1]].concat();
    let edns = |message: Vec<u8>| with_edns(message, 1232, false, &[]);
    let long = wire_name(&vec!["x".repeat(63); 4].join("."));
    let mut cases = vec![
        ("a question count of 0", with(&|message| message[5] = 0)),
        ("a question count of 2", with(&|message| message[5] = 2)),
        ("a question count of 65535", with(&|message| message[4..6].copy_from_slice(&[255, 255]))),
        ("a missing record", with(&|message| message[7] = 1)),
        ("65535 missing records in each section", with(&|message| message[6..12].copy_from_slice(&[255; 6]))),
        ("a name of 257 bytes", named(&long)),
        ("a name that points to itself", named(&[0xc0, 12])),
        ("a name that points ahead", named(&[1, b'a', 0xc0, 16])),
        ("a name that points beyond the end", named(&[0xff, 0xff])),
        ("a label of type 01", named(&[0x41, 1, 0])),
        ("a label of type 10", named(&[0x81, 1, 0])),
        ("a label beyond the end", named(&[63, 1, 2, 3])),
        ("two OPT records", edns(edns(sent.clone()))),
        (
            "options beyond the OPT record",
            with_edns(sent.clone(), 1232, false, &[])[..sent.len() + 10].to_vec(),
        ),
    ];
    let mut opt_elsewhere = edns(sent.clone());
    (opt_elsewhere[7], opt_elsewhere[11]) = (1, 0);
    cases.push(("an OPT record in the answer section", opt_elsewhere));
    let record = record(A, 60, &[192, 0, 2, 1]);
    let mut short = [&sent[..], &record[..record.len() - 1]].concat();
    short[11] = 1;
    cases.push(("a truncated record", short));
    (12..sent.len()).for_each(|cut| cases.push(("a truncated question section", sent[..cut].to_vec())));
    cases
}

#[test]
fn messages_that_are_not_queries_are_dropped_over_udp_and_close_a_connection() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let socket = client(listen);
    for (what, message) in not_queries() {
        socket.send(&message).unwrap();
        let mut stream = connect(listen);
        stream.write_all(&framed(&message)).unwrap();
        assert!(is_closed(&stream), "{what}");
    }
    assert!(is_quiet(&socket));
    assert_eq!(server.count(), 0);
    assert_eq!(evener.service_counter("d", "drops.no_query"), 2 * not_queries().len() as u64);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), 1);
}

#[test]
fn malformed_queries_get_a_bare_formerr_header() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (socket, stream) = (client(listen), connect(listen));
    for (what, message) in malformed() {
        for response in [ask_on(&socket, &message), ask_stream(&stream, &message)] {
            assert_eq!((response.len(), rcode(&response), response[2] & 0x80), (12, FORMERR, 0x80), "{what}");
            assert_eq!(response[4..], [0; 8], "{what}");
            assert!(response.len() <= message.len(), "expected a response no longer than its query: {what}");
        }
    }
    assert_eq!(evener.service_counter("d", "formerr"), 2 * malformed().len() as u64);
    assert_eq!(server.count(), 0);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), 1);
    assert_eq!(host(&ask_stream(&stream, &query(1, "a.example", A))), 1);
}

#[test]
fn responses_to_random_bytes_are_short() {
    // The server's responses are short, so that only local responses could be too long.
    let server = Nameserver::start(|query, back| back.send(&reply(query, 5, &[], &[])));
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let mut state = 99_u64;
    let mut random = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let sent = with_edns(query(1, "some.example", A), 1232, true, &[0, 3, 0, 0]);
    let socket = client(listen);
    for round in 0..4000_u16 {
        let mut message = sent.clone();
        for _ in 0..=random(4) {
            let at = random(message.len() as u64) as usize;
            message[at] = random(256) as u8;
        }
        message.truncate(random(2 * sent.len() as u64) as usize);
        socket.send(&message).unwrap();
        if round % 50 == 0 {
            // A well-formed query gets its response, regardless of the bytes before it.
            let id_of = |round: u16| 0x8000 | round;
            socket.send(&query(id_of(round), "known.example", A)).unwrap();
            loop {
                let response = receive(&socket);
                assert!(response.len() <= sent.len() + 12, "{response:02x?}");
                if id(&response) == id_of(round) && response.len() > 12 {
                    break;
                }
            }
        }
    }
    let counters = ["formerr", "drops.no_query"].map(|name| evener.service_counter("d", name));
    assert!(counters.iter().all(|count| *count > 100), "{counters:?}");
    assert!(server.messages().iter().all(|message| question_section_end(message) <= message.len()));
}

#[test]
fn well_formed_queries_reach_a_server_unchanged() {
    let server = Nameserver::start(|query, back| back.send(&reply(query, 4, &[], &[])));
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let sent = query(0x1234, "a.example", A);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = sent.clone();
        change(&mut message);
        message
    };
    let end = sent.len();
    let mut update = [&sent[..], &record(A, 60, &[192, 0, 2, 1])].concat();
    (update[2], update[9]) = (0x28, 1);
    let cases = [
        ("the root", query(1, "", A)),
        ("class CH", with(&|message| message[end - 1] = 3)),
        ("class ANY", with(&|message| message[end - 2..].copy_from_slice(&[0, 255]))),
        ("type 65280", with(&|message| message[end - 4..end - 2].copy_from_slice(&[255, 0]))),
        ("NOTIFY", with(&|message| message[2] = 0x20)),
        ("UPDATE", update),
        ("an unassigned opcode", with(&|message| message[2] = 0x78)),
        ("all the other flags", with(&|message| (message[2], message[3]) = (7, 0xff))),
        ("a label of any bytes", [&sent[..12], &[4, 0, 255, b'.', 0xc0, 0, 0, 1, 0, 1]].concat()),
        ("EDNS of version 1", with(&|message| *message = opt_of_version_1(message))),
        ("an unknown option", with_edns(sent.clone(), 0, true, &[255, 0, 0, 1, 9])),
        ("a cookie", with_edns(sent.clone(), 512, false, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8])),
    ];
    let stream = connect(listen);
    for (at, (what, message)) in cases.iter().enumerate() {
        let responses = [ask(listen, message), ask_stream(&stream, message)];
        assert!(responses.iter().all(|response| rcode(response) == 4), "{what}");
        wait_until("both queries", || (server.count() == 2 * at + 2).then_some(()));
        let seen = server.messages();
        assert!(seen[2 * at..].iter().all(|received| received[2..] == message[2..]), "{what}");
    }
    // A message of length 0 closes the connection.
    let mut stream = connect(listen);
    stream.write_all(&framed(&sent)).unwrap();
    assert_eq!(rcode(&read_message(&stream).unwrap()), 4);
    stream.write_all(&[0, 0]).unwrap();
    assert!(is_closed(&stream));
}

fn opt_of_version_1(message: &[u8]) -> Vec<u8> {
    let mut message = with_edns(message.to_vec(), 1232, false, &[]);
    let at = message.len() - 5;
    message[at] = 1;
    message
}
