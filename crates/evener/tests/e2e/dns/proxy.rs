//! The PROXY protocol around DNS: headers from other balancers, and headers to servers.

use crate::harness::dns::{
    A, Nameserver, address, ask, ask_on, ask_stream, client, client_from, framed, host, is_closed, is_quiet,
    query, read_message, service, with_edns,
};
use crate::harness::{Evener, Server, connect, wait_until};
use crate::tcp::proxy_from::{FOUR, six, v2};
use crate::tcp::proxy_protocol::connect_from;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// Parses a header. Returns its length, and the source, the destination and the protocol, or `None` for a
/// header of type LOCAL or without addresses.
fn parse_header(bytes: &[u8]) -> (usize, Option<(SocketAddr, SocketAddr, u8)>) {
    assert_eq!(&bytes[..12], b"\r\n\r\n\0\r\nQUIT\n", "expected a header first: {bytes:02x?}");
    let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let ip = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let is_v4 = bytes[12] == 0x21 && bytes[13] >> 4 == 1;
    let ends = is_v4.then(|| ((ip(16), port(24)).into(), (ip(20), port(26)).into(), bytes[13] & 15));
    (length, ends)
}

#[test]
fn the_client_is_the_source_address_in_the_header() {
    let server = Nameserver::of(1);
    let more = "proxy_from = \"127.0.0.1\", deny = \"192.0.2.99\", dns = { client_subnet = { v4 = 32 } }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let sent = with_edns(query(1, "a.example", A), 1232, false, &[]);
    let subnet = || {
        let message = server.messages().last().unwrap().clone();
        message[message.len() - 4..].to_vec()
    };
    // Over UDP, each datagram begins with a header. Over TCP, only the connection begins with a header.
    let socket = client(listen);
    let with = |header: Vec<u8>| [header, sent.clone()].concat();
    socket.send(&with(v2(0x21, 0x12, &FOUR))).unwrap();
    assert_eq!(host(&crate::harness::dns::receive(&socket)), 1);
    assert_eq!(subnet(), [192, 0, 2, 7]);
    let mut stream = connect(listen);
    let header = v2(0x21, 0x11, &FOUR);
    for byte in header.iter().chain(&framed(&sent)) {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(host(&read_message(&stream).unwrap()), 1);
    assert_eq!(host(&ask_stream(&stream, &sent)), 1);
    assert_eq!(subnet(), [192, 0, 2, 7]);
    // A LOCAL header, such as for a check by the other balancer, names no client.
    socket.send(&with(v2(0x20, 0, &[]))).unwrap();
    assert_eq!(host(&crate::harness::dns::receive(&socket)), 1);
    assert_eq!(subnet(), [127, 0, 0, 1]);
    socket.send(&with(v2(0x21, 0x22, &six()))).unwrap();
    assert_eq!(host(&crate::harness::dns::receive(&socket)), 1);
    // The access list applies to the client in the header.
    let mut denied = FOUR;
    denied[3] = 99;
    socket.send(&with(v2(0x21, 0x12, &denied))).unwrap();
    assert!(is_quiet(&socket));
    let mut stream = connect(listen);
    stream.write_all(&v2(0x21, 0x11, &denied)).unwrap();
    assert!(is_closed(&stream));
    assert_eq!(evener.service_counter("d", "denied"), 2);
}

#[test]
fn traffic_without_a_valid_header_is_refused() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "proxy_from = \"127.0.0.1\""));
    let listen = evener.port("d");
    let (socket, sent) = (client(listen), query(1, "a.example", A));
    let bad =
        [sent.clone(), v2(0x21, 0x12, &FOUR[..8]), [&v2(0x31, 0x12, &FOUR)[..], &sent].concat(), Vec::new()];
    for datagram in &bad {
        socket.send(datagram).unwrap();
    }
    assert!(is_quiet(&socket));
    assert_eq!(evener.service_counter("d", "drops.preamble"), bad.len() as u64);
    let mut stream = connect(listen);
    stream.write_all(&framed(&sent)).unwrap();
    assert!(is_closed(&stream));
    assert_eq!((evener.service_counter("d", "preamble_refused"), server.count()), (1, 0));
    // A header without a message is not a query.
    socket.send(&v2(0x21, 0x12, &FOUR)).unwrap();
    wait_until("the drop", || (evener.service_counter("d", "drops.no_query") == 1).then_some(()));
    // Other source addresses need no header.
    assert_eq!(host(&ask_on(&client_from([127, 0, 0, 2], listen), &sent)), 1);
    assert_eq!(host(&ask_stream(&connect_from("127.0.0.2", listen), &sent)), 1);
}

#[test]
fn servers_get_a_header_with_each_query_over_udp() {
    let server = Nameserver::start(|datagram, back| {
        let (length, ends) = parse_header(datagram);
        let (from, to, protocol) = ends.unwrap();
        assert_eq!((from.ip().to_string().as_str(), protocol), ("127.0.0.3", 2), "UDP over IPv4");
        assert!(to.ip().is_loopback());
        back.send(&address(&datagram[length..], 60, (from.port() % 251) as u8));
    });
    let evener = Evener::run(&service(0, &[&server], "send_proxy = \"v2\""));
    let listen = evener.port("d");
    for number in 0..20 {
        let client = client_from([127, 0, 0, 3], listen);
        let port = client.local_addr().unwrap().port();
        assert_eq!(host(&ask_on(&client, &query(number, "a.example", A))), (port % 251) as u8);
    }
}

#[test]
fn servers_get_a_header_on_each_connection_over_tcp() {
    let seen: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let keep = Arc::clone(&seen);
    let server = Server::start(move |mut stream| {
        let mut header = vec![0; 16];
        stream.read_exact(&mut header).unwrap();
        header.resize(16 + usize::from(header[15]), 0);
        stream.read_exact(&mut header[16..]).unwrap();
        let (_, ends) = parse_header(&header);
        let (from, _, protocol) = ends.unwrap();
        assert_eq!(protocol, 1, "TCP over IPv4");
        keep.lock().unwrap().push(from);
        while let Some(message) = read_message(&stream) {
            let response = address(&message, 60, (from.port() % 251) as u8);
            if stream.write_all(&framed(&response)).is_err() {
                return;
            }
        }
    });
    let evener = Evener::run(&format!(
        "service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", send_proxy = \"v2\" }}",
        server.port
    ));
    let listen = evener.port("d");
    let streams: Vec<TcpStream> = (0..5).map(|_| connect_from("127.0.0.3", listen)).collect();
    for number in 0..4 {
        for stream in &streams {
            let port = stream.local_addr().unwrap().port();
            assert_eq!(host(&ask_stream(stream, &query(number, "a.example", A))), (port % 251) as u8);
        }
    }
    let clients: Vec<SocketAddr> = streams.iter().map(|stream| stream.local_addr().unwrap()).collect();
    assert_eq!(*seen.lock().unwrap(), clients, "expected one connection to the server for each client");
}

#[test]
fn two_balancers_in_a_row_pass_the_client_address_on() {
    let server = Nameserver::of(1);
    let more = "proxy_from = \"127.0.0.1\", dns = { client_subnet = { v4 = 32 } }";
    let second = Evener::run(&service(0, &[&server], more));
    let inner = second.port("d");
    let first = Evener::run(&format!(
        "service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", \"127.0.0.1:{inner}\", send_proxy = \"v2\" }}"
    ));
    let outer = first.port("d");
    let sent = query(1, "a.example", A);
    let from = |number: u8| {
        let seen = server.messages();
        seen.iter().filter(|message| message.ends_with(&[127, 0, 0, number])).count()
    };
    for number in 3..6 {
        assert_eq!(ask_on(&client_from([127, 0, 0, number], outer), &sent), address(&sent, 60, 1));
        let stream = connect_from(&format!("127.0.0.{number}"), outer);
        assert_eq!(ask_stream(&stream, &sent), address(&sent, 60, 1));
        assert_eq!(from(number), 2);
    }
    assert_eq!(ask(outer, &sent), address(&sent, 60, 1));
}
