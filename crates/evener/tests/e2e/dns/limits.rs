//! What bounds the DNS way, and who may come in.

use crate::harness::dns::{
    A, FORMERR, Nameserver, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, client_from, framed,
    host, id, is_closed, is_quiet, is_truncated, query, rcode, read_message, receive, service,
};
use crate::harness::{Evener, connect, reserved_port, wait_until};
use crate::tcp::proxy_protocol::connect_from;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};

#[test]
fn no_more_than_outstanding_max_questions_are_under_way() {
    let server = Nameserver::silent();
    let more = "dns = { outstanding_max = 8, query_timeout = \"1s\", retries = 0 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let socket = client(listen);
    for n in 0..20 {
        socket.send(&query(n, &format!("n{n}.example"), A)).unwrap();
    }
    wait_until("the others to be dropped", || {
        (evener.service_counter("d", "drop_outstanding") == 12).then_some(())
    });
    let stream = connect(listen);
    assert_eq!(rcode(&ask_stream(&stream, &query(99, "a.example", A))), SERVFAIL, "over TCP it is told");
    assert_eq!(evener.service_counter("d", "drop_outstanding"), 13);
    for _ in 0..8 {
        assert_eq!(rcode(&receive(&socket)), SERVFAIL);
    }
    assert_eq!(server.count(), 8);
    assert!(is_quiet(&socket), "who was dropped hears nothing");
    // There is room again; and on the connection, too.
    assert_eq!(rcode(&ask_on(&socket, &query(1, "a.example", A))), SERVFAIL);
    assert_eq!(rcode(&ask_stream(&stream, &query(2, "a.example", A))), SERVFAIL);
    assert_eq!(server.count(), 10);
}

#[test]
fn a_network_that_asks_too_much_gets_truncated_answers_or_none() {
    let server = Nameserver::of(1);
    let more = "dns = { rate_limit = { rate = \"5/m\", v4 = 24, slip = 3 } }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let (socket, neighbour) = (client(listen), client_from([127, 0, 0, 200], listen));
    for n in 0..5 {
        assert_eq!(host(&ask_on(if n < 3 { &socket } else { &neighbour }, &query(n, "a.example", A))), 1);
    }
    for n in 10..19 {
        neighbour.send(&query(n, "a.example", A)).unwrap();
    }
    for _ in 0..3 {
        let slipped = receive(&neighbour);
        assert!(is_truncated(&slipped) && slipped[6..12] == [0; 6], "{slipped:02x?}");
        assert_eq!(slipped.len(), query(0, "a.example", A).len(), "no more than was sent");
        assert!((10..19).contains(&id(&slipped)));
    }
    assert!(is_quiet(&neighbour));
    assert_eq!((evener.service_counter("d", "rate_limited"), server.count()), (9, 5));
    // Garbage counts as well, else it would be what to send.
    let malformed = &query(1, "a.example", A)[..20];
    (0..3).for_each(|_| assert!(socket.send(malformed).is_ok()));
    assert!(is_quiet(&socket), "a FORMERR is no way round the limit");
    // Who is really there asks over TCP; and other networks have limits of their own.
    assert_eq!(host(&ask_tcp(listen, &query(1, "a.example", A))), 1);
    let other = client_from([127, 0, 1, 1], listen);
    assert_eq!(host(&ask_on(&other, &query(1, "a.example", A))), 1);
    assert_eq!(rcode(&ask_on(&other, &query(1, "a.example", A)[..20])), FORMERR);
}

#[test]
fn who_may_not_come_in_is_not_heard_over_udp_nor_tcp() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "deny = \"127.0.0.5\""));
    let listen = evener.port("d");
    let denied = client_from([127, 0, 0, 5], listen);
    denied.send(&query(1, "a.example", A)).unwrap();
    assert!(is_quiet(&denied));
    assert!(is_closed(&connect_from("127.0.0.5", listen)));
    assert_eq!(evener.service_counter("d", "drop_denied"), 1);
    assert_eq!(evener.service_counter("d", "denied"), 2);
    assert_eq!((host(&ask(listen, &query(1, "a.example", A))), server.count()), (1, 1));
    // What is said at run time counts for what is open, too.
    assert!(evener.run_command(&["permit", "d", "127.0.0.5"]).status.success());
    assert_eq!(host(&ask_on(&denied, &query(1, "a.example", A))), 1);
    assert_eq!(host(&ask_stream(&connect_from("127.0.0.5", listen), &query(1, "a.example", A))), 1);
}

#[test]
fn refused_clients_have_servers_of_their_own_and_no_part_in_what_is_kept() {
    let (good, bad) = (Nameserver::of(1), Nameserver::of(2));
    let pool = format!("pool \"bad\" {{ \"{}\" }}\n", bad.name());
    let more = "deny = \"127.0.0.5\", denied = \"bad\", dns = { cache = true }";
    let evener = Evener::run(&(pool + &service(0, &[&good], more)));
    let listen = evener.port("d");
    let denied = client_from([127, 0, 0, 5], listen);
    let sent = query(1, "a.example", A);
    for _ in 0..2 {
        assert_eq!(host(&ask_on(&denied, &sent)), 2);
        assert_eq!(host(&ask_stream(&connect_from("127.0.0.5", listen), &sent)), 2);
        assert_eq!(host(&ask(listen, &sent)), 1);
    }
    assert_eq!((good.count(), bad.count()), (1, 4));
    assert_eq!(evener.service_counter("d", "drop_denied"), 0);
}

#[test]
fn connections_of_a_client_are_limited_as_everywhere() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "per_client = { connections = 2 }"));
    let listen = evener.port("d");
    let streams: Vec<TcpStream> = (0..2).map(|_| connect(listen)).collect();
    for stream in &streams {
        assert_eq!(host(&ask_stream(stream, &query(1, "a.example", A))), 1);
    }
    assert!(is_closed(&connect(listen)));
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 1, "datagrams are none");
    drop(streams);
    wait_until("room for another", || {
        let mut stream = connect(listen);
        stream.write_all(&framed(&query(1, "a.example", A))).ok()?;
        read_message(&stream)
    });
}

/// The option that tells of a client's network in a question that ends with it (RFC 7871, section 6).
fn subnet(message: &[u8]) -> Option<&[u8]> {
    let at = message.windows(3).rposition(|window| window == [0, 0, 41])?;
    let options = &message[at + 11..];
    (options.get(..2) == Some(&[0, 8])).then(|| &options[4..])
}

#[test]
fn servers_hear_of_the_clients_network_and_the_client_of_nothing() {
    // The server answers with an option of its own, as those do that mind it.
    let server = Nameserver::start(|query, back| {
        let Some(reported) = subnet(query) else { return back.send(&address(query, 60, 99)) };
        let mut scope = reported.to_vec();
        scope[3] = scope[2];
        let option = [&[0, 8][..], &(scope.len() as u16).to_be_bytes(), &scope].concat();
        back.send(&crate::harness::dns::with_edns(address(query, 60, 1), 1232, false, &option));
    });
    let listen = reserved_port();
    let both = format!("listen = {{ \"127.0.0.1:{listen}\", \"[::1]:{listen}\" }}");
    let dns = "dns = { client_subnet = { v4 = 24, v6 = 56 }, cache = true }";
    let _evener =
        Evener::run(&format!("service \"d\" {{ protocol = \"dns\", {both}, \"{}\", {dns} }}", server.name()));
    let (plain, expected) = (query(1, "a.example", A), address(&query(1, "a.example", A), 60, 1));
    let reported = || subnet(&server.seen().last().unwrap().message).map(<[u8]>::to_vec);
    let near = client_from([127, 1, 2, 3], listen);
    assert_eq!(ask_on(&near, &plain), expected, "without the OPT that it did not have");
    assert_eq!(reported().unwrap(), [0, 1, 24, 0, 127, 1, 2]);
    // A neighbour in its network gets what is kept, others do not.
    assert_eq!(ask_on(&client_from([127, 1, 2, 99], listen), &plain)[..plain.len()], expected[..plain.len()]);
    assert_eq!(server.count(), 1);
    assert_eq!(ask_stream(&connect_from("127.1.3.1", listen), &plain), expected);
    assert_eq!((server.count(), reported().unwrap()), (2, vec![0, 1, 24, 0, 127, 1, 3]));
    let six = UdpSocket::bind("[::1]:0").unwrap();
    six.connect(("::1", listen)).unwrap();
    assert_eq!(ask_on(&six, &plain), expected);
    assert_eq!(reported().unwrap(), [0, 2, 56, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Whoever has EDNS keeps it, without the option; whoever tells of a network itself is left to it.
    let edns = crate::harness::dns::with_edns(plain.clone(), 1400, true, &[]);
    let response = ask_on(&near, &edns);
    assert_eq!(response, crate::harness::dns::with_edns(address(&plain, 60, 1), 1232, false, &[]));
    assert_eq!(reported().unwrap(), [0, 1, 24, 0, 127, 1, 2]);
    let own = [0, 8, 0, 7, 0, 1, 24, 0, 198, 51, 100];
    let response = ask_on(&near, &crate::harness::dns::with_edns(plain, 1400, false, &own));
    assert_eq!(reported().unwrap(), own[4..]);
    assert_eq!(
        response[response.len() - 7..],
        [0, 1, 24, 24, 198, 51, 100],
        "with what the server said of it"
    );
}
