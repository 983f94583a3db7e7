//! Coalesced queries: equal queries at the same time share one query to a server; and responses that are a bare header.

use crate::harness::dns::{
    A, FORMERR, Nameserver, SERVFAIL, SOA, TXT, Transport, address, ask, ask_on, ask_tcp, client, framed, id,
    is_truncated, query, rcode, read_message, receive, reply, service, sized, with_edns,
};
use crate::harness::{Evener, connect, reserved_port, wait_until};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Number of clients for each transport.
const CLIENTS: u16 = 20;

/// A server that sends the given response while its gate is unlocked, and the gate.
fn gated(response: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> (Nameserver, Arc<Mutex<()>>) {
    let (gate, response) = (Arc::new(Mutex::new(())), Arc::new(response));
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |query, back| {
        let (query, back) = (query.to_vec(), back.clone());
        let (wait, response) = (Arc::clone(&wait), Arc::clone(&response));
        std::thread::spawn(move || {
            drop(wait.lock());
            back.send(&response(&query));
        });
    });
    (server, gate)
}

/// The same query with the ID and in the spelling of a client.
fn query_of(number: u16) -> Vec<u8> {
    let letters = "www.example".char_indices();
    let spelling =
        letters.map(|(at, letter)| if number >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter });
    query(40_000 + number * 7, &spelling.collect::<String>(), A)
}

/// Clients that sent the same query at the same time, half of them over TCP.
struct Crowd {
    datagrams: Vec<(UdpSocket, Vec<u8>)>,
    streams: Vec<(TcpStream, Vec<u8>)>,
}

impl Crowd {
    fn query(evener: &Evener, listen: u16) -> Self {
        let before = evener.service_counter("d", "requests");
        let datagrams: Vec<_> = (0..CLIENTS).map(|number| (client(listen), query_of(number))).collect();
        let streams: Vec<_> = (0..CLIENTS).map(|number| (connect(listen), query_of(number + 100))).collect();
        datagrams.iter().for_each(|(socket, sent)| assert!(socket.send(sent).is_ok()));
        streams.iter().for_each(|(stream, sent)| (&*stream).write_all(&framed(sent)).unwrap());
        wait_until("all queries", || {
            (evener.service_counter("d", "requests") == before + 2 * u64::from(CLIENTS)).then_some(())
        });
        Self { datagrams, streams }
    }

    /// Returns the query and the response of each client.
    fn responses(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let datagrams = self.datagrams.iter().map(|(socket, sent)| (sent.clone(), receive(socket)));
        let streams = self.streams.iter().map(|(stream, sent)| (sent.clone(), read_message(stream).unwrap()));
        datagrams.chain(streams).collect()
    }
}

#[test]
fn equal_queries_at_the_same_time_are_one_query_to_the_server() {
    let (server, gate) = gated(|query| address(query, 60, 1));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::query(&evener, listen);
    drop(shut);
    for (sent, received) in crowd.responses() {
        assert_eq!(received, address(&sent, 60, 1), "expected the client's ID and spelling");
    }
    assert_eq!(server.source_ports(Transport::Tcp).len(), 1);
    assert_eq!(server.count(), 2, "expected one query over each transport");
    // A later query gets the cached response.
    assert_eq!(id(&ask(listen, &query_of(300))), id(&query_of(300)));
    assert_eq!(server.count(), 2);
    wait_until("no pending query", || (evener.status()["services"][0]["flows_active"] == 0).then_some(()));
}

#[test]
fn queries_are_not_coalesced_without_a_cache() {
    let (server, gate) = gated(|query| address(query, 60, 1));
    let more = "dns = { query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::query(&evener, listen);
    wait_until("all queries at the server", || (server.count() == 2 * usize::from(CLIENTS)).then_some(()));
    drop(shut);
    for (sent, received) in crowd.responses() {
        assert_eq!(received, address(&sent, 60, 1));
    }
    assert_eq!(server.count(), 2 * usize::from(CLIENTS));
}

#[test]
fn each_coalesced_query_gets_the_failure() {
    let listen = reserved_port();
    let more = "dns = { cache = true, query_timeout = \"1s\", retries = 0 }";
    let check = |server: &Nameserver, evener: &Evener| {
        for (sent, received) in Crowd::query(evener, listen).responses() {
            assert_eq!((rcode(&received), id(&received)), (SERVFAIL, id(&sent)));
            assert_eq!(received[4..], sent[4..], "expected the client's question section alone");
        }
        assert_eq!(server.count(), 2);
    };
    let silent = Nameserver::silent();
    let evener = Evener::run_with(&service(listen, &[&silent], more), &["--workers", "1"]);
    check(&silent, &evener);
    assert_eq!(evener.service_counter("d", "requests_failed"), 2 * u64::from(CLIENTS));
    drop(evener);
    // A failure that the server reports is passed on.
    let failing = Nameserver::start(|query, back| {
        std::thread::sleep(Duration::from_millis(300));
        back.send(&reply(query, SERVFAIL, &[], &[]));
    });
    let more = more.replace("true", "{ failure_ttl = \"30s\" }");
    let evener = Evener::run_with(&service(listen, &[&failing], &more), &["--workers", "1"]);
    check(&failing, &evener);
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn a_shared_response_is_truncated_to_the_size_that_each_client_accepts() {
    let (server, gate) = gated(|query| sized(query, 1000));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let sizes = [512, 4096, 600, 1232, 512];
    let crowd = sizes.map(|size| {
        let socket = client(listen);
        socket.send(&with_edns(query(size, "a.example", TXT), size, false, &[])).unwrap();
        socket
    });
    wait_until("all queries", || (evener.service_counter("d", "requests") == 5).then_some(()));
    drop(shut);
    for (size, socket) in sizes.into_iter().zip(&crowd) {
        let received = receive(socket);
        assert_eq!(
            (id(&received), is_truncated(&received)),
            (size, size < 1000),
            "a client that accepts {size} bytes"
        );
        assert_eq!(received.len() == 1000, size > 1000);
    }
    assert_eq!(server.count(), 3, "expected one query each for sizes up to 512, up to 1232 and above");
}

#[test]
fn coalesced_queries_get_a_response_after_the_client_of_the_first_query_disconnects() {
    // The server does not respond to the first query.
    let count = AtomicUsize::new(0);
    let server = Nameserver::start(move |query, back| {
        if count.fetch_add(1, Ordering::Relaxed) > 0 {
            back.send(&address(query, 60, 1));
        }
    });
    let more = "dns = { cache = true, query_timeout = \"1s\", client_subnet = { v4 = 24 } }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let mut leaving = connect(listen);
    leaving.write_all(&framed(&query_of(1))).unwrap();
    wait_until("the query", || (server.count() == 1).then_some(()));
    let staying: Vec<TcpStream> = (2..7).map(|_| connect(listen)).collect();
    for (mut stream, number) in staying.iter().zip(2..) {
        stream.write_all(&framed(&query_of(number))).unwrap();
    }
    wait_until("all queries", || (evener.service_counter("d", "requests") == 6).then_some(()));
    assert_eq!(server.count(), 1, "expected the other queries to wait for the first query");
    // The client resets the connection. After a half-close it could still read its response.
    socket2::SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
    drop(leaving);
    for (stream, number) in staying.iter().zip(2..) {
        assert_eq!(read_message(stream).unwrap(), address(&query_of(number), 60, 1));
    }
    let seen = server.messages();
    assert_eq!(seen.len(), 2, "expected a second query in place of the first query");
    assert!(seen[0].ends_with(&[0, 1, 24, 0, 127, 0, 0]), "{:02x?}", seen[0]);
    assert!(seen[1].ends_with(&[0, 1, 24, 0, 127, 0, 0]), "{:02x?}", seen[1]);
}

/// A response that is a bare header.
fn bare_header(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut header = query[..12].to_vec();
    (header[2], header[3]) = (header[2] | 0x80, rcode);
    header[4..].fill(0);
    header
}

#[test]
fn a_bare_header_is_a_response_to_an_update() {
    for more in ["", "dns = { cache = true }"] {
        let server = Nameserver::start(|query, back| back.send(&bare_header(query, 0)));
        let evener = Evener::run(&service(0, &[&server], more));
        let listen = evener.port("d");
        let mut update = query(4711, "zone.example", SOA);
        (update[2], update[3]) = (5 << 3, 0);
        assert_eq!(ask(listen, &update), bare_header(&update, 0));
        assert_eq!(ask_tcp(listen, &update), bare_header(&update, 0));
        assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
    }
}

#[test]
fn a_bare_formerr_header_is_a_response_to_a_query() {
    for more in ["", "dns = { cache = true, client_subnet = true }"] {
        let server = Nameserver::start(|query, back| back.send(&bare_header(query, FORMERR)));
        let evener = Evener::run(&service(0, &[&server], more));
        let listen = evener.port("d");
        let sent = with_edns(query(4711, "a.example", A), 1232, false, &[]);
        assert_eq!(ask(listen, &sent), bare_header(&sent, FORMERR));
        assert_eq!(ask_tcp(listen, &sent), bare_header(&sent, FORMERR));
        assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
    }
}

#[test]
fn a_bare_noerror_header_is_not_a_response_to_a_query() {
    let server = Nameserver::start(|query, back| {
        back.send(&bare_header(query, 0));
        back.send(&address(query, 60, 1));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (sent, socket) = (query_of(1), client(listen));
    assert_eq!(ask_on(&socket, &sent), address(&sent, 60, 1));
    assert_eq!(ask_tcp(listen, &sent), address(&sent, 60, 1));
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 2);
}

#[test]
fn coalesced_queries_share_a_bare_header() {
    let (server, gate) = gated(|query| bare_header(query, FORMERR));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::query(&evener, listen);
    drop(shut);
    for (sent, received) in crowd.responses() {
        assert_eq!(received, bare_header(&sent, FORMERR));
    }
    assert_eq!(server.count(), 2);
}
