//! TCP connections to servers that stop responding, close, change their address or never accept; and zone
//! transfers.

use crate::harness::dns::{
    A, AXFR, Nameserver, REFUSED, ReplyPath, SERVFAIL, TXT, address, ask, ask_stream, framed, host, id,
    is_closed, name_of, query, rcode, read_message, reply, service, sized,
};
use crate::harness::dns_mname::{Frame, MnameServer, frame, hello, mname_service, respond};
use crate::harness::{Evener, Server, connect, wait_until};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server that stops responding on its first connection when the returned flag is set.
fn silent_on_its_first_connection() -> (Nameserver, Arc<AtomicBool>) {
    let (silent, first) = (Arc::new(AtomicBool::new(false)), Mutex::new(None::<SocketAddr>));
    let is_silent = Arc::clone(&silent);
    let server = Nameserver::start(move |query, back| {
        if let ReplyPath::Tcp(stream) = back {
            let peer = stream.peer_addr().unwrap();
            let is_first = *first.lock().unwrap().get_or_insert(peer) == peer;
            if is_first && is_silent.load(Ordering::Relaxed) {
                return;
            }
        }
        back.send(&address(query, 60, 1));
    });
    (server, silent)
}

#[test]
fn a_stream_that_falls_silent_is_replaced() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    for sockets in [1, 4] {
        let (server, silent) = silent_on_its_first_connection();
        let more = format!("dns = {{ query_timeout = \"1s\", sockets = {sockets} }}");
        let evener = Evener::run_with(&service(0, &[&server], &more), &["--workers", "1"]);
        let listen = evener.port("d");
        let mut stream = connect(listen);
        assert_eq!(host(&ask_stream(&stream, &query(1, "a.example", A))), 1);
        silent.store(true, Ordering::Relaxed);
        // When the first of these queries times out, the others are still pending on the silent stream.
        for number in 2..5 {
            stream.write_all(&framed(&query(number, "a.example", A))).unwrap();
            std::thread::sleep(TIMEOUT / 10);
        }
        let first = read_message(&stream).unwrap();
        assert_eq!(host(&first), 1, "expected a response over another stream");
        let begun = Instant::now();
        stream.write_all(&framed(&query(5, "a.example", A))).unwrap();
        let mut received = HashSet::from([id(&first)]);
        while !received.contains(&5) {
            let response = read_message(&stream).unwrap();
            assert_eq!(host(&response), 1);
            received.insert(id(&response));
        }
        let elapsed = begun.elapsed();
        assert!(elapsed < TIMEOUT * 9 / 10, "expected no wait for a timeout: {elapsed:?}");
        while received.len() < 4 {
            received.insert(id(&read_message(&stream).unwrap()));
        }
        assert_eq!(received, HashSet::from([2, 3, 4, 5]));
        assert_eq!(evener.service_counter("d", "requests_failed"), 0);
        assert_eq!(evener.server(&server.name())["verdict"], "up");
    }
}

/// Number of messages of a large zone, and the size of each.
const PIECES: u16 = 500;
const PIECE_BYTES: usize = 60_000;

/// A server with a large zone, and the number of messages that it sent.
fn with_a_large_zone() -> (Nameserver, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let server = Nameserver::start(move |query, back| {
        let mut piece = sized(query, PIECE_BYTES);
        for number in 0..PIECES {
            piece[PIECE_BYTES - 2..].copy_from_slice(&number.to_be_bytes());
            back.send(&piece);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (server, sent)
}

#[test]
fn a_transfer_to_a_slow_client_is_complete() {
    let (server, sent) = with_a_large_zone();
    let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"300ms\" }"));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    stream.write_all(&framed(&query(77, "zone.example", AXFR))).unwrap();
    for number in 0..PIECES {
        let piece = read_message(&stream).expect("another message of the zone");
        assert_eq!((id(&piece), piece.len()), (77, PIECE_BYTES));
        assert_eq!(piece[PIECE_BYTES - 2..], number.to_be_bytes(), "expected the messages in order");
        if number == 3 {
            std::thread::sleep(Duration::from_millis(1500));
            let sent = sent.load(Ordering::Relaxed);
            assert!(
                sent < usize::from(PIECES),
                "expected the server to be blocked meanwhile, after {sent} messages"
            );
        }
    }
    assert_eq!(server.count(), 1, "expected no retry");
}

#[test]
fn a_transfer_that_breaks_off_closes_the_connection_of_the_client() {
    let server = Nameserver::start(|query, back| {
        if name_of(query) == "a.example" {
            return back.send(&address(query, 60, 1));
        }
        (0..3).for_each(|_| back.send(&sized(query, 1000)));
        back.close();
    });
    let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"30s\" }"));
    let listen = evener.port("d");
    let (mut stream, other) = (connect(listen), connect(listen));
    assert_eq!(host(&ask_stream(&other, &query(1, "a.example", A))), 1);
    stream.write_all(&framed(&query(77, "zone.example", AXFR))).unwrap();
    for _ in 0..3 {
        assert_eq!(read_message(&stream).map(|piece| (id(&piece), piece.len())), Some((77, 1000)));
    }
    assert!(is_closed(&stream));
    assert_eq!(
        host(&ask_stream(&other, &query(1, "a.example", A))),
        1,
        "expected the connection of another client to stay open"
    );
    let transfers = server.messages().iter().filter(|message| name_of(message) == "zone.example").count();
    assert_eq!(transfers, 1, "expected no retry of a transfer that began");
    assert_eq!(evener.server(&server.name())["verdict"], "up");
}

fn descriptors(evener: &Evener) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count()
}

#[test]
fn refused_transfers_leave_no_descriptors_open() {
    let server = Nameserver::start(|query, back| back.send(&reply(query, REFUSED, &[], &[])));
    let evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let stream = connect(listen);
    let refused = |number| {
        let response = ask_stream(&stream, &query(number, "zone.example", AXFR));
        assert_eq!(rcode(&response), REFUSED, "query {number}");
    };
    (0..3).for_each(refused);
    let before = descriptors(&evener);
    for number in 3..200 {
        refused(number);
        let now = descriptors(&evener);
        assert!(now <= before + 3, "{now} descriptors, {before} before, after {number} queries");
    }
    assert_eq!(server.count(), 200);
}

/// A server that expects a PROXY header on each connection and responds with an address.
fn server_behind_proxy(number: u8) -> Server {
    behind_proxy(move |message| address(message, 60, number))
}

/// A server that expects a PROXY header on each connection and responds with the given number of bytes.
fn sized_server_behind_proxy(bytes: usize) -> Server {
    behind_proxy(move |message| sized(message, bytes))
}

fn behind_proxy(response: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Server {
    Server::start(move |mut stream| {
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        stream.read_exact(&mut vec![0; header[15].into()]).unwrap();
        while let Some(message) = read_message(&stream) {
            let _ = stream.write_all(&framed(&response(&message)));
        }
    })
}

#[test]
fn a_connection_for_one_client_follows_its_server_to_another_address() {
    let (old, new) = (server_behind_proxy(1), server_behind_proxy(2));
    let of = |server: &Server| {
        let more = format!("{{ \"127.0.0.1:{}\", name = \"s\" }}, send_proxy = \"v2\"", server.port);
        service(0, &[], &more)
    };
    let evener = Evener::run_with(&of(&old), &["--workers", "1"]);
    let listen = evener.port("d");
    let streams: Vec<TcpStream> = (0..3).map(|_| connect(listen)).collect();
    for (server, number) in [(&old, 1), (&new, 2), (&old, 1)] {
        evener.reload(&of(server));
        for stream in streams.iter().chain(&streams) {
            assert_eq!(host(&ask_stream(stream, &query(5, "a.example", A))), number);
        }
    }
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn a_client_that_does_not_read_does_not_count_as_a_failure_of_its_server() {
    const QUERIES: u16 = 600;
    let server = sized_server_behind_proxy(60_000);
    let more = format!(
        "{{ \"127.0.0.1:{}\", name = \"s\" }}, send_proxy = \"v2\", passive = {{ failures = 1 }}, \
         dns = {{ query_timeout = \"1500ms\", pipeline_max = 1000 }}, idle_timeout = \"1min\"",
        server.port
    );
    let evener = Evener::run_with(&service(0, &[], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    let mut stream = connect(listen);
    for number in 0..QUERIES {
        stream.write_all(&framed(&query(number, &format!("n{number}.example"), TXT))).unwrap();
    }
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(evener.server("s")["verdict"], "up");
    let mut ids: Vec<u16> = (0..QUERIES).map(|_| id(&read_message(&stream).unwrap())).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..QUERIES), "expected a late response to each query");
    assert_eq!(evener.server("s")["counters"]["response_timeouts"], 0);
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

/// Sends five queries at the same time to a server that closes each connection after one response, and checks the responses.
fn check_five_queries(port: u16, sockets: u8) {
    let more = format!("\"127.0.0.1:{port}\", dns = {{ sockets = {sockets}, query_timeout = \"30s\" }}");
    let evener = Evener::run_with(&service(0, &[], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    for _ in 0..20 {
        let mut stream = connect(listen);
        let all: Vec<u8> = (0..5).flat_map(|n| framed(&query(n, &format!("n{n}.example"), A))).collect();
        stream.write_all(&all).unwrap();
        let responses: Vec<Vec<u8>> = (0..5).map(|_| read_message(&stream).unwrap()).collect();
        assert!(responses.iter().all(|response| host(response) == 1));
        assert!(responses.iter().all(|response| name_of(response) == format!("n{}.example", id(response))));
        assert_eq!(responses.iter().map(|response| id(response)).collect::<HashSet<u16>>().len(), 5);
    }
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
    assert_eq!(evener.server(&format!("127.0.0.1:{port}"))["verdict"], "up");
}

#[test]
fn a_server_may_close_its_connection_after_each_response() {
    let orderly = Nameserver::start(|query, back| {
        back.send(&address(query, 60, 1));
        back.close();
    });
    // Unread queries turn the close into a reset.
    let abrupt = Server::start(|mut stream| {
        if let Some(message) = read_message(&stream) {
            let _ = stream.write_all(&framed(&address(&message, 60, 1)));
        }
    });
    for sockets in [1, 4] {
        check_five_queries(orderly.port, sockets);
        check_five_queries(abrupt.port, sockets);
    }
}

#[test]
fn twenty_tcp_sessions_that_are_not_accepted_count_as_one_fault() {
    let backend = MnameServer::start(|frame, back| match frame {
        Frame::Tcp { .. } => {}
        _ => respond(frame, back, 4),
    });
    let other = Nameserver::of(2);
    let more = "policy = \"first\", dns = { query_timeout = \"500ms\" }";
    let evener = Evener::run_with(&mname_service(0, &[&backend], &[&other], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let state = || evener.server(&backend.name());
    wait_until("the persistent connection", || (state()["verdict"] == "up").then_some(()));
    let streams: Vec<TcpStream> = (0..20).map(|_| connect(listen)).collect();
    for (number, mut stream) in streams.iter().enumerate() {
        stream.write_all(&framed(&query(number as u16, "a.example", A))).unwrap();
    }
    for stream in &streams {
        assert_eq!(host(&read_message(stream).unwrap()), 2, "expected a response of the other server");
    }
    let sessions = backend.frames().iter().filter(|frame| matches!(frame, Frame::Tcp { .. })).count();
    assert_eq!((sessions, backend.open()), (20, 21));
    evener.expect_log("did not accept a TCP session within 10 s");
    wait_until("all TCP sessions to be closed", || (backend.open() <= 1).then_some(()));
    wait_until("another persistent connection", || {
        (state()["counters"]["persistent_connections"] == 2).then_some(())
    });
    assert_eq!(state()["counters"]["persistent_connection_faults"], 1);
    assert_eq!(
        ask(listen, &query(1, "a.example", A)).last(),
        Some(&4),
        "expected a response of the mname server over UDP"
    );
}

#[test]
fn connection_attempts_to_a_server_with_faults_are_repeated_with_backoff() {
    let backend = MnameServer::start(|_, mut back| {
        let _ = back.write_all(&[hello(), frame(&[7])].concat());
    });
    let begun = Instant::now();
    let evener = Evener::run_with(&mname_service(0, &[&backend], &[], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let attempts = || backend.frames().iter().filter(|frame| **frame == Frame::Hello).count();
    wait_until("the third attempt", || (attempts() >= 3).then_some(()));
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_millis(900), "expected attempts after 0 s and 1 s: {elapsed:?}");
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(rcode(&ask(listen, &query(1, "a.example", TXT))), SERVFAIL);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(attempts() < 6, "expected fewer than 6 attempts within 3 s: {}", attempts());
    evener.expect_log("a frame of the unknown type 7");
}
