//! What is no question: dropped, or answered with as little as there is; no server ever sees it.

use crate::harness::dns::{
    A, FORMERR, Nameserver, address, ask, ask_on, ask_stream, client, framed, host, id, is_closed, is_quiet,
    query, question_section_end, rcode, read_message, receive, record, reply, service, wire_name, with_edns,
};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;

/// Messages that are none, or no questions: nobody may be made to answer them.
fn unheard() -> Vec<(&'static str, Vec<u8>)> {
    let sent = query(0x1234, "a.example", A);
    vec![
        ("nothing", Vec::new()),
        ("a byte", vec![1]),
        ("eleven bytes", sent[..11].to_vec()),
        ("an answer", address(&sent, 60, 1)),
        ("an answer of twelve bytes", [&[1, 2, 0x80][..], &[0; 9]].concat()),
        ("an answer of garbage", [&[1, 2, 0xff][..], &[0xff; 99]].concat()),
    ]
}

/// Questions that are malformed.
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
    let mut listed = vec![
        ("no question", with(&|message| message[5] = 0)),
        ("two questions", with(&|message| message[5] = 2)),
        ("65535 questions", with(&|message| message[4..6].copy_from_slice(&[255, 255]))),
        ("a record that is not there", with(&|message| message[7] = 1)),
        ("65535 records that are not there", with(&|message| message[6..12].copy_from_slice(&[255; 6]))),
        ("a name of 257 bytes", named(&long)),
        ("a name that points to itself", named(&[0xc0, 12])),
        ("a name that points ahead", named(&[1, b'a', 0xc0, 16])),
        ("a name that points beyond", named(&[0xff, 0xff])),
        ("a label of the kind 01", named(&[0x41, 1, 0])),
        ("a label of the kind 10", named(&[0x81, 1, 0])),
        ("a label beyond the end", named(&[63, 1, 2, 3])),
        ("two OPT", edns(edns(sent.clone()))),
        ("options beyond the OPT", with_edns(sent.clone(), 1232, false, &[])[..sent.len() + 10].to_vec()),
    ];
    let mut opt_elsewhere = edns(sent.clone());
    (opt_elsewhere[7], opt_elsewhere[11]) = (1, 0);
    listed.push(("an OPT among the answers", opt_elsewhere));
    let record = record(A, 60, &[192, 0, 2, 1]);
    let mut short = [&sent[..], &record[..record.len() - 1]].concat();
    short[11] = 1;
    listed.push(("a record that is cut short", short));
    (12..sent.len()).for_each(|cut| listed.push(("a question that is cut short", sent[..cut].to_vec())));
    listed
}

#[test]
fn what_is_no_question_gets_no_answer_over_udp_and_ends_a_connection() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let socket = client(listen);
    for (what, message) in unheard() {
        socket.send(&message).unwrap();
        let mut stream = connect(listen);
        stream.write_all(&framed(&message)).unwrap();
        assert!(is_closed(&stream), "{what}");
    }
    assert!(is_quiet(&socket));
    assert_eq!(server.count(), 0);
    assert_eq!(evener.service_counter("d", "drop_no_query"), 2 * unheard().len() as u64);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), 1);
}

#[test]
fn malformed_questions_are_answered_with_a_header_alone() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (socket, stream) = (client(listen), connect(listen));
    for (what, message) in malformed() {
        for response in [ask_on(&socket, &message), ask_stream(&stream, &message)] {
            assert_eq!((response.len(), rcode(&response), response[2] & 0x80), (12, FORMERR, 0x80), "{what}");
            assert_eq!(response[4..], [0; 8], "{what}");
            assert!(response.len() <= message.len(), "never more than was sent: {what}");
        }
    }
    assert_eq!(evener.service_counter("d", "formerr"), 2 * malformed().len() as u64);
    assert_eq!(server.count(), 0);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), 1);
    assert_eq!(host(&ask_stream(&stream, &query(1, "a.example", A))), 1);
}

#[test]
fn random_bytes_are_answered_with_no_more_than_themselves() {
    // Everything that gets through is well-formed; what the server says to it is short, so that ours is what may be long.
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
            // What is asked in between is answered, whatever came before.
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
    let counters = ["formerr", "drop_no_query"].map(|name| evener.service_counter("d", name));
    assert!(counters.iter().all(|count| *count > 100), "{counters:?}");
    assert!(server.seen().iter().all(|seen| question_section_end(&seen.message) <= seen.message.len()));
}

#[test]
fn whatever_is_well_formed_reaches_a_server_as_it_is() {
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
        ("an opcode that is none", with(&|message| message[2] = 0x78)),
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
        wait_until("the server to see both", || (server.count() == 2 * at + 2).then_some(()));
        let seen = server.seen();
        assert!(seen[2 * at..].iter().all(|seen| seen.message[2..] == message[2..]), "{what}");
    }
    // A message without bytes in between is none; the connection ends.
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
