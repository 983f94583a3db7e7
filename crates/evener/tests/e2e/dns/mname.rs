//! Servers that speak the protocol of mname-balancer, with and without faults. Tests with npm mname are in
//! `compat_mname/traffic.rs`.

use crate::harness::dns::{
    A, Nameserver, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, framed, host, id, is_closed,
    is_quiet, name_of, query, rcode, read_message, receive, service, with_edns,
};
use crate::harness::dns_mname::{
    Frame, MnameServer, accepted, alive, frame, hello, mname_service, outbound, respond,
};
use crate::harness::{Directory, Evener, connect, reserved_port, wait_until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn started(listen: u16, backend: &MnameServer, servers: &[&Nameserver], more: &str) -> Evener {
    let evener = Evener::run_with(&mname_service(listen, &[backend], servers, more), &["--workers", "1"]);
    wait_until("the persistent connection", || {
        (evener.server(&backend.name())["verdict"] == "up").then_some(())
    });
    evener
}

#[test]
fn queries_are_sent_in_frames_with_the_address_of_the_client() {
    let backend = MnameServer::start(|frame, back| respond(frame, back, 4));
    let evener = started(0, &backend, &[], "");
    let listen = evener.port("d");
    let (socket, stream) = (client(listen), connect(listen));
    for number in 0..20 {
        let sent = query(number, "a.Example", A);
        for response in [ask_on(&socket, &sent), ask_stream(&stream, &sent)] {
            assert_eq!(response, address(&sent, 60, 4));
        }
    }
    let v4 = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let (udp, tcp) = (v4(socket.local_addr().unwrap().port()), v4(stream.local_addr().unwrap().port()));
    let seen = backend.frames();
    assert_eq!(
        seen.iter().filter(|frame| **frame == Frame::Hello).count(),
        1,
        "expected one persistent connection for one worker"
    );
    let datagrams =
        seen.iter().filter(|frame| matches!(frame, Frame::Udp { from, .. } if *from == udp)).count();
    assert_eq!(datagrams, 20);
    let sessions: Vec<&Frame> = seen.iter().filter(|frame| matches!(frame, Frame::Tcp { .. })).collect();
    assert_eq!(sessions, [&Frame::Tcp { from: tcp }], "expected one TCP session for one client");
    let counters = &evener.server(&backend.name())["counters"];
    assert_eq!((&counters["persistent_connections"], &counters["responses"]), (&1.into(), &40.into()));
    // The TCP session ends with the connection of the client.
    drop(stream);
    wait_until("the TCP session to end", || (backend.open() == 1).then_some(()));
}

#[test]
fn clients_ids_stay_unchanged_unless_two_queries_would_be_ambiguous() {
    // The server responds to queries for "slow" after it has received three of them.
    let waiting = Mutex::new(Vec::new());
    let backend = MnameServer::start(move |frame, mut back| match frame {
        Frame::Udp { from, message } if name_of(message) == "slow" => {
            let mut waiting = waiting.lock().unwrap();
            waiting.push((*from, message.clone()));
            if waiting.len() == 3 {
                for (from, message) in waiting.drain(..) {
                    back.write_all(&outbound(from, &address(&message, 60, 4))).unwrap();
                }
            }
        }
        _ => respond(frame, back, 4),
    });
    let evener = started(0, &backend, &[], "dns = { query_timeout = \"30s\" }");
    let listen = evener.port("d");
    let clients = [client(listen), client(listen)];
    let sent = query(0x1234, "slow", A);
    clients[0].send(&sent).unwrap();
    clients[1].send(&sent).unwrap();
    // The same query while the first is pending. The repeated query needs another ID, or a response could match
    // both.
    clients[0].send(&sent).unwrap();
    for (socket, responses) in [(&clients[0], 2), (&clients[1], 1)] {
        (0..responses).for_each(|_| assert_eq!(receive(socket), address(&sent, 60, 4)));
    }
    let stream = connect(listen);
    for number in [7, 0x1234, 7, u16::MAX, 0] {
        ask_on(&clients[0], &query(number, "a.example", A));
        ask_stream(&stream, &query(number, "a.example", A));
    }
    let mut seen = Vec::new();
    for frame in backend.frames() {
        if let Frame::Udp { message, .. } | Frame::Message(message) = frame {
            seen.push(id(&message));
        }
    }
    assert_ne!(seen[2], 0x1234);
    seen.remove(2);
    assert_eq!(seen, [0x1234, 0x1234, 7, 7, 0x1234, 0x1234, 7, 7, u16::MAX, u16::MAX, 0, 0]);
}

#[test]
fn no_query_is_sent_over_a_tcp_session_before_the_server_accepts_the_session() {
    static EARLY: AtomicUsize = AtomicUsize::new(0);
    let backend = MnameServer::start(|frame, back| {
        if matches!(frame, Frame::Tcp { .. }) {
            back.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            EARLY.fetch_add((&mut &*back).read(&mut [0; 512]).unwrap_or(0), Ordering::Relaxed);
            back.set_read_timeout(None).unwrap();
        }
        respond(frame, back, 4);
    });
    let evener = started(0, &backend, &[], "");
    let listen = evener.port("d");
    assert_eq!(host(&ask_tcp(listen, &query(1, "a.example", A))), 4);
    assert_eq!(EARLY.load(Ordering::Relaxed), 0, "expected no bytes before INBOUND_TCP_OK");
}

#[test]
fn each_protocol_fault_replaces_the_persistent_connection() {
    let client = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1234);
    let faults = [
        ("something before its hello", false, outbound(client, b"x")),
        ("something before its hello", false, alive()),
        ("something before its hello", false, accepted()),
        ("two hellos", true, hello()),
        ("a heartbeat without a request", true, alive()),
        ("a frame of the unknown type 7", true, frame(&[7])),
        ("a frame of the unknown type 7", false, frame(&[7])),
        ("a frame of the unknown type 2", true, frame(&[2])),
        ("a datagram of 1501 bytes, more than 1500", true, outbound(client, &[0; 1501])),
        ("a datagram of 4294967295 bytes", true, frame(&[1002, 1, 1, u32::MAX])),
        ("a datagram for port 65536", true, frame(&[1002, 1, 65_536, 0])),
        ("accepted a TCP session that is none", true, accepted()),
        ("it closed the connection", true, Vec::new()),
        ("it closed the connection", false, Vec::new()),
    ];
    for (reason, after_hello, bytes) in faults {
        // Only the first connection is faulty.
        let first = AtomicBool::new(true);
        let backend = MnameServer::start(move |frame, mut back| {
            let is_faulty = *frame == Frame::Hello && first.swap(false, Ordering::Relaxed);
            if !is_faulty {
                return respond(frame, back, 4);
            }
            let hello = if after_hello { hello() } else { Vec::new() };
            back.write_all(&[hello, bytes.clone()].concat()).unwrap();
            if bytes.is_empty() {
                back.shutdown(std::net::Shutdown::Both).unwrap();
            }
        });
        let config = mname_service(0, &[&backend], &[], "");
        let evener = Evener::run_with(&config, &["--workers", "1"]);
        let listen = evener.port("d");
        evener.expect_log(reason);
        wait_until("a working connection", || {
            (ask(listen, &query(1, "a.example", A)).ends_with(&[192, 0, 2, 4])).then_some(())
        });
        let counters = &evener.server(&backend.name())["counters"];
        assert_eq!(counters["persistent_connection_faults"], u64::from(after_hello), "{reason}");
        assert_eq!(counters["persistent_connections"], 1 + u64::from(after_hello), "{reason}");
    }
}

#[test]
fn frames_may_be_split_at_any_byte() {
    let backend = MnameServer::start(|frame, back| {
        let (local, remote) = UnixStream::pair().unwrap();
        respond(frame, &local, 4);
        drop(local);
        let mut bytes = Vec::new();
        (&remote).read_to_end(&mut bytes).unwrap();
        for byte in bytes {
            (&mut &*back).write_all(&[byte]).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let evener = started(0, &backend, &[], "");
    let listen = evener.port("d");
    for number in 0..5 {
        assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 4);
        assert_eq!(host(&ask_tcp(listen, &query(number, "a.example", A))), 4);
    }
}

#[test]
fn forged_mname_responses_are_never_forwarded_to_clients() {
    let backend = MnameServer::start(|frame, mut back| {
        let Frame::Udp { from, message } = frame else { return respond(frame, back, 4) };
        let forged = |to: SocketAddrV4, data: &[u8]| outbound(to, data);
        let mut other_id = address(message, 60, 66);
        other_id[0] ^= 1;
        let unused = SocketAddrV4::new(*from.ip(), from.port() ^ 1);
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), from.port());
        let forgeries = [
            forged(*from, &other_id),
            forged(*from, &address(&query(id(message), "b.example", A), 60, 66)),
            forged(*from, message),
            forged(*from, &message[..1]),
            forged(*from, &[]),
            forged(unused, &address(message, 60, 66)),
            forged(elsewhere, &address(message, 60, 66)),
        ];
        back.write_all(&forgeries.concat()).unwrap();
        respond(frame, back, 4);
        back.write_all(&forged(*from, &address(message, 60, 66))).unwrap();
    });
    let evener = started(0, &backend, &[], "");
    let listen = evener.port("d");
    let socket = client(listen);
    assert_eq!(host(&ask_on(&socket, &query(1, "a.example", A))), 4);
    assert!(is_quiet(&socket));
    let counters = &evener.server(&backend.name())["counters"];
    assert_eq!(
        (&counters["responses_bad"], &counters["persistent_connection_faults"]),
        (&8.into(), &0.into())
    );
}

#[test]
fn pending_queries_go_to_another_server_when_a_persistent_connection_ends() {
    let backend = MnameServer::start(|frame, back| match frame {
        Frame::Udp { .. } | Frame::Message(_) => back.shutdown(std::net::Shutdown::Both).unwrap(),
        _ => respond(frame, back, 4),
    });
    let other = Nameserver::of(2);
    let evener = started(0, &backend, &[&other], "dns = { query_timeout = \"30s\" }");
    let listen = evener.port("d");
    let begun = Instant::now();
    for number in 0..6 {
        assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 2);
        assert_eq!(host(&ask_tcp(listen, &query(number, "a.example", A))), 2);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    assert!(evener.server(&backend.name())["counters"]["persistent_connection_faults"].as_u64() > Some(0));
}

#[test]
fn queries_that_do_not_fit_into_a_frame_go_to_another_server() {
    let backend = MnameServer::start(|frame, back| respond(frame, back, 4));
    let (other, listen) = (Nameserver::of(2), reserved_port());
    let listens = format!("[::1]:{listen}");
    let of = |servers: &[&Nameserver]| {
        mname_service(listen, &[&backend], servers, "dns = { on_failure = \"drop\" }")
            .replace("listen = ", &format!("listen = {{ \"{listens}\", "))
            .replacen(&format!("127.0.0.1:{listen}\","), &format!("127.0.0.1:{listen}\" }},"), 1)
    };
    let evener = Evener::run_with(&of(&[&other]), &["--workers", "1"]);
    wait_until("the persistent connection", || {
        (evener.server(&backend.name())["verdict"] == "up").then_some(())
    });
    let six = UdpSocket::bind("[::1]:0").unwrap();
    six.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    six.connect(("::1", listen)).unwrap();
    let option = |bytes: usize| [&[0, 12, (bytes >> 8) as u8, bytes as u8][..], &vec![0; bytes]].concat();
    let plain = query(1, "a.example", A);
    let large = with_edns(plain.clone(), 1232, false, &option(1500));
    let fitting = with_edns(plain.clone(), 1232, false, &option(1500 - 4 - 11 - plain.len()));
    assert_eq!(fitting.len(), 1500);
    let mut hosts = Vec::new();
    for _ in 0..6 {
        assert_eq!(
            host(&ask_on(&six, &plain)),
            2,
            "expected the server without frames, because a frame cannot carry an IPv6 address"
        );
        let stream = std::net::TcpStream::connect(("::1", listen)).unwrap();
        assert_eq!(host(&ask_stream(&stream, &plain)), 2);
        assert_eq!(host(&ask(listen, &large)), 2);
        hosts.push(host(&ask(listen, &fitting)));
    }
    assert!(hosts.contains(&4), "{hosts:?}");
    evener.reload(&of(&[]));
    six.send(&plain).unwrap();
    wait_until("the drop to be counted", || {
        (evener.service_counter("d", "drops.no_capable_server") == 1).then_some(())
    });
    client(listen).send(&large).unwrap();
    wait_until("the drop to be counted", || {
        (evener.service_counter("d", "drops.no_capable_server") == 2).then_some(())
    });
    assert_eq!(
        ask_tcp(listen, &large).len(),
        address(&large, 60, 4).len(),
        "expected a TCP session to carry a query of any length"
    );
    evener.reload(&mname_service(listen, &[&backend], &[], ""));
    assert_eq!(rcode(&ask(listen, &large)), SERVFAIL, "expected SERVFAIL by default");
    assert_eq!(evener.service_counter("d", "drops.no_capable_server"), 3);
    evener.expect_log("no_capable_server service=d");
    assert_eq!(evener.log_count("no_server"), 0, "expected no event about missing servers");
}

#[test]
fn mname_servers_get_no_proxy_header() {
    let backend = MnameServer::start(|frame, back| respond(frame, back, 4));
    let more = "send_proxy = \"v2\", dns = { query_timeout = \"200ms\" }";
    let config = mname_service(0, &[&backend], &[], more);
    let evener = Evener::run(&config);
    let listen = evener.port("d");
    wait_until("the persistent connection", || {
        (evener.server(&backend.name())["verdict"] == "up").then_some(())
    });
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 4);
    assert_eq!(host(&ask_tcp(listen, &query(2, "a.example", A))), 4);
}

#[test]
fn an_mname_server_that_reads_nothing_counts_as_stuck() {
    // The server sends its hello and then reads nothing, so its socket fills.
    let backend = MnameServer::start(|frame, back| match frame {
        Frame::Hello => respond(frame, back, 4),
        _ => std::thread::sleep(Duration::from_secs(60)),
    });
    let other = Nameserver::of(2);
    let evener = started(0, &backend, &[&other], "dns = { query_timeout = \"200ms\" }");
    let listen = evener.port("d");
    let padding = [&[0, 12, 5, 0][..], &vec![0; 0x500]].concat();
    let flood = client(listen);
    wait_until("the server to count as stuck", || {
        for n in 0..100 {
            let sent = query(n, &format!("n{n}.example"), A);
            flood.send(&with_edns(sent, 1232, false, &padding)).unwrap();
        }
        let stuck = evener.server(&backend.name())["counters"]["drops"]["stuck"].as_u64();
        (stuck > Some(10)).then_some(())
    });
    for number in 0..10 {
        assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 2);
    }
}

#[test]
fn connection_attempts_to_a_missing_socket_are_repeated_with_backoff() {
    let directory = Directory::new();
    let path = directory.file("later");
    let config = format!(
        "service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", {{ \"unix:{}\", mname = true, name = \"m\" }} }}",
        path.display()
    );
    let begun = Instant::now();
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let attempts = || evener.server("m")["counters"]["connect_failures"]["error"].as_u64().unwrap();
    assert_eq!(rcode(&ask(listen, &query(1, "a.example", A))), SERVFAIL);
    wait_until("the third attempt", || (attempts() >= 3).then_some(()));
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_millis(900), "expected attempts after 0 s and 1 s: {elapsed:?}");
    let _backend = MnameServer::start_at(path, |frame, back| respond(frame, back, 4));
    wait_until("the persistent connection", || (evener.server("m")["verdict"] == "up").then_some(()));
    assert!((3..=4).contains(&attempts()), "expected the fourth attempt 3 s later: {}", attempts());
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 4);
}

#[test]
fn a_persistent_connection_without_heartbeats_is_replaced() {
    let good = MnameServer::start(|frame, back| respond(frame, back, 4));
    let bad = MnameServer::start(|frame, back| match frame {
        Frame::Heartbeat => {}
        _ => respond(frame, back, 5),
    });
    let config = mname_service(0, &[&good, &bad], &[], "");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let verdict = |backend: &MnameServer| evener.server(&backend.name())["verdict"].clone();
    wait_until("both connections", || (verdict(&good) == "up" && verdict(&bad) == "up").then_some(()));
    let up = Instant::now();
    // Evener requests a heartbeat after 5 s, and replaces the connection if none arrives within another 15 s.
    while !evener.log().contains("no sign of life within 15 s") {
        assert!(up.elapsed() < Duration::from_secs(40), "expected the connection to time out within 40 s");
        std::thread::sleep(Duration::from_millis(200));
    }
    let elapsed = up.elapsed();
    assert!(elapsed > Duration::from_secs(19), "expected the timeout after about 20 s: {elapsed:?}");
    let beats =
        |backend: &MnameServer| backend.frames().iter().filter(|frame| **frame == Frame::Heartbeat).count();
    assert_eq!(beats(&bad), 1);
    assert!((3..=5).contains(&beats(&good)), "expected a heartbeat every 5 s: {}", beats(&good));
    let counters = |backend: &MnameServer| evener.server(&backend.name())["counters"].clone();
    assert_eq!(
        (&counters(&good)["persistent_connections"], &counters(&good)["persistent_connection_faults"]),
        (&1.into(), &0.into())
    );
    wait_until("another connection", || (counters(&bad)["persistent_connections"] == 2).then_some(()));
    assert_eq!(counters(&bad)["persistent_connection_faults"], 1);
}

#[test]
fn a_tcp_session_that_is_not_accepted_is_a_fault() {
    let backend = MnameServer::start(|frame, back| match frame {
        Frame::Tcp { .. } => std::thread::sleep(Duration::from_secs(30)),
        _ => respond(frame, back, 4),
    });
    let other = Nameserver::of(2);
    let more = "policy = \"first\", dns = { query_timeout = \"500ms\" }";
    let evener = started(0, &backend, &[&other], more);
    let listen = evener.port("d");
    let (stream, begun) = (connect(listen), Instant::now());
    assert_eq!(
        host(&ask_stream(&stream, &query(1, "a.example", A))),
        2,
        "expected a response of the other server"
    );
    assert!(backend.frames().iter().any(|frame| matches!(frame, Frame::Tcp { .. })));
    evener.expect_log("did not accept a TCP session within 10 s");
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_secs(9), "expected the timeout after about 10 s: {elapsed:?}");
    assert_eq!(evener.server(&backend.name())["counters"]["persistent_connection_faults"], 1);
    assert!(!is_closed_soon(&stream));
}

fn is_closed_soon(stream: &std::net::TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    is_closed(stream)
}

#[test]
fn a_frame_other_than_the_acceptance_of_a_tcp_session_is_a_fault() {
    let backend = MnameServer::start(|frame, mut back| match frame {
        Frame::Tcp { .. } => back.write_all(&alive()).unwrap(),
        _ => respond(frame, back, 4),
    });
    let other = Nameserver::of(2);
    let evener = started(0, &backend, &[&other], "dns = { query_timeout = \"30s\" }");
    let listen = evener.port("d");
    let mut stream = connect(listen);
    for number in 0..4 {
        stream.write_all(&framed(&query(number, "a.example", A))).unwrap();
        let response = read_message(&stream).unwrap();
        assert_eq!((host(&response), name_of(&response).as_str()), (2, "a.example"));
    }
    evener.expect_log("something else than its acceptance");
    assert!(evener.server(&backend.name())["counters"]["persistent_connection_faults"].as_u64() > Some(0));
}

#[test]
fn each_worker_has_one_persistent_connection_and_a_reload_opens_or_closes_it() {
    let (backend, other) = (MnameServer::start(|frame, back| respond(frame, back, 4)), Nameserver::of(2));
    let with = mname_service(0, &[&backend], &[], "");
    let evener = Evener::run_with(&with, &["--workers", "3"]);
    let listen = evener.port("d");
    wait_until("three connections", || (backend.open() == 3).then_some(()));
    evener.reload(&service(0, &[&other], ""));
    wait_until("all connections to close", || (backend.open() == 0).then_some(()));
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 2);
    evener.reload(&with);
    wait_until("three connections", || (backend.open() == 3).then_some(()));
    wait_until("a response of the server", || {
        (ask(listen, &query(1, "a.example", A)).ends_with(&[4])).then_some(())
    });
}
