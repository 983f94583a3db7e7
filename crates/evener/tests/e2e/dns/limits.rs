//! Limits of DNS services, access lists, and the client's network that is sent to servers.

use crate::harness::dns::{
    A, FORMERR, Nameserver, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, client_from, framed,
    host, id, is_closed, is_quiet, is_truncated, query, rcode, read_message, receive, service,
};
use crate::harness::{Evener, connect, reserved_port, wait_until};
use crate::tcp::proxy_protocol::connect_from;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};

#[test]
fn outstanding_max_bounds_the_pending_queries() {
    let server = Nameserver::silent();
    let more = "dns = { outstanding_max = 8, query_timeout = \"1s\", retries = 0 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let socket = client(listen);
    for n in 0..20 {
        socket.send(&query(n, &format!("n{n}.example"), A)).unwrap();
    }
    wait_until("the other queries to be dropped", || {
        (evener.service_counter("d", "drops.outstanding") == 12).then_some(())
    });
    let stream = connect(listen);
    assert_eq!(
        rcode(&ask_stream(&stream, &query(99, "a.example", A))),
        SERVFAIL,
        "expected a response over TCP"
    );
    assert_eq!(evener.service_counter("d", "drops.outstanding"), 13);
    for _ in 0..8 {
        assert_eq!(rcode(&receive(&socket)), SERVFAIL);
    }
    assert_eq!(server.count(), 8);
    assert!(is_quiet(&socket), "expected no response to dropped queries");
    // New queries are accepted again, over UDP and over the open connection.
    assert_eq!(rcode(&ask_on(&socket, &query(1, "a.example", A))), SERVFAIL);
    assert_eq!(rcode(&ask_stream(&stream, &query(2, "a.example", A))), SERVFAIL);
    assert_eq!(server.count(), 10);
}

#[test]
fn rate_limited_networks_get_truncated_responses_or_no_response() {
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
        assert_eq!(
            slipped.len(),
            query(0, "a.example", A).len(),
            "expected a response no longer than its query"
        );
        assert!((10..19).contains(&id(&slipped)));
    }
    assert!(is_quiet(&neighbour));
    assert_eq!((evener.service_counter("d", "rate_limited"), server.count()), (9, 5));
    // Malformed queries count as well, otherwise they would evade the limit.
    let malformed = &query(1, "a.example", A)[..20];
    (0..3).for_each(|_| assert!(socket.send(malformed).is_ok()));
    assert!(is_quiet(&socket), "expected no FORMERR above the limit");
    // A client whose address is not spoofed can query over TCP. Other networks have separate limits.
    assert_eq!(host(&ask_tcp(listen, &query(1, "a.example", A))), 1);
    let other = client_from([127, 0, 1, 1], listen);
    assert_eq!(host(&ask_on(&other, &query(1, "a.example", A))), 1);
    assert_eq!(rcode(&ask_on(&other, &query(1, "a.example", A)[..20])), FORMERR);
}

#[test]
fn denied_clients_get_no_response_over_udp_and_tcp() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "deny = \"127.0.0.5\""));
    let listen = evener.port("d");
    let denied = client_from([127, 0, 0, 5], listen);
    denied.send(&query(1, "a.example", A)).unwrap();
    assert!(is_quiet(&denied));
    assert!(is_closed(&connect_from("127.0.0.5", listen)));
    assert_eq!(evener.service_counter("d", "drops.denied"), 1);
    assert_eq!(evener.service_counter("d", "denied"), 2);
    assert_eq!((host(&ask(listen, &query(1, "a.example", A))), server.count()), (1, 1));
    // A change at run time applies to open sockets, too.
    assert!(evener.run_command(&["permit", "d", "127.0.0.5"]).status.success());
    assert_eq!(host(&ask_on(&denied, &query(1, "a.example", A))), 1);
    assert_eq!(host(&ask_stream(&connect_from("127.0.0.5", listen), &query(1, "a.example", A))), 1);
}

#[test]
fn denied_clients_are_routed_to_the_denied_pool_and_bypass_the_cache() {
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
    assert_eq!(evener.service_counter("d", "drops.denied"), 0);
}

#[test]
fn the_connections_of_each_client_are_limited() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "per_client = { connections = 2 }"));
    let listen = evener.port("d");
    let streams: Vec<TcpStream> = (0..2).map(|_| connect(listen)).collect();
    for stream in &streams {
        assert_eq!(host(&ask_stream(stream, &query(1, "a.example", A))), 1);
    }
    assert!(is_closed(&connect(listen)));
    assert_eq!(
        host(&ask(listen, &query(1, "a.example", A))),
        1,
        "expected datagrams not to count as connections"
    );
    drop(streams);
    wait_until("another connection", || {
        let mut stream = connect(listen);
        stream.write_all(&framed(&query(1, "a.example", A))).ok()?;
        read_message(&stream)
    });
}

/// Returns the data of the client subnet option (RFC 7871, section 6), which must be the only option of the
/// query.
fn subnet(message: &[u8]) -> Option<&[u8]> {
    let at = message.windows(3).rposition(|window| window == [0, 0, 41])?;
    let options = &message[at + 11..];
    (options.get(..2) == Some(&[0, 8])).then(|| &options[4..])
}

#[test]
fn servers_get_the_network_of_the_client_and_clients_get_no_option() {
    // The server responds with a scope, as servers that support the option do.
    let server = Nameserver::start(|query, back| {
        let Some(network) = subnet(query) else { return back.send(&address(query, 60, 99)) };
        let mut scope = network.to_vec();
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
    let sent_subnet = || subnet(server.messages().last().unwrap()).map(<[u8]>::to_vec);
    let near = client_from([127, 1, 2, 3], listen);
    assert_eq!(ask_on(&near, &plain), expected, "expected no OPT record, as in the query");
    assert_eq!(sent_subnet().unwrap(), [0, 1, 24, 0, 127, 1, 2]);
    // A client of the same network gets the cached response, a client of another network does not.
    assert_eq!(ask_on(&client_from([127, 1, 2, 99], listen), &plain)[..plain.len()], expected[..plain.len()]);
    assert_eq!(server.count(), 1);
    assert_eq!(ask_stream(&connect_from("127.1.3.1", listen), &plain), expected);
    assert_eq!((server.count(), sent_subnet().unwrap()), (2, vec![0, 1, 24, 0, 127, 1, 3]));
    let six = UdpSocket::bind("[::1]:0").unwrap();
    six.connect(("::1", listen)).unwrap();
    assert_eq!(ask_on(&six, &plain), expected);
    assert_eq!(sent_subnet().unwrap(), [0, 2, 56, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A client that uses EDNS gets EDNS, without the option. An option that the client sent is passed on.
    let edns = crate::harness::dns::with_edns(plain.clone(), 1400, true, &[]);
    let response = ask_on(&near, &edns);
    assert_eq!(response, crate::harness::dns::with_edns(address(&plain, 60, 1), 1232, false, &[]));
    assert_eq!(sent_subnet().unwrap(), [0, 1, 24, 0, 127, 1, 2]);
    let client_option = [0, 8, 0, 7, 0, 1, 24, 0, 198, 51, 100];
    let response = ask_on(&near, &crate::harness::dns::with_edns(plain, 1400, false, &client_option));
    assert_eq!(sent_subnet().unwrap(), client_option[4..]);
    assert_eq!(
        response[response.len() - 7..],
        [0, 1, 24, 24, 198, 51, 100],
        "expected the scope that the server sent"
    );
}
