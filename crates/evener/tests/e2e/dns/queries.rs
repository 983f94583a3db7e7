//! DNS queries and their responses: IDs, spelling, sizes, the choice of the server, and the list of connections.

use crate::harness::dns::{
    A, Nameserver, TXT, Transport, address, ask, ask_on, ask_stream, ask_tcp, client, client_from, host, id,
    is_truncated, name_of, query, question_section_end, receive, record, reply, service, sized, with_edns,
};
use crate::harness::{Evener, connect, reserved_port, wait_until};
use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn responses_have_the_id_and_the_spelling_of_their_query() {
    let server = Nameserver::of(7);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    for turn in 0..40_u16 {
        // A client that randomizes the letter case of names expects its spelling in the response.
        let name: String = "www.example"
            .bytes()
            .enumerate()
            .map(|(at, byte)| {
                let letter = char::from(byte);
                if turn >> (at % 6) & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
            })
            .collect();
        let sent = query(turn, &name, A);
        for response in [ask(listen, &sent), ask_tcp(listen, &sent)] {
            assert_eq!((name_of(&response), host(&response)), (name.clone(), 7));
            assert_eq!(
                response[2..],
                address(&sent, 60, 7)[2..],
                "expected the bytes of the server after the ID"
            );
        }
    }
    let seen = server.messages();
    let same = seen.iter().filter(|message| id(message) < 40).count();
    assert!(same < 5, "expected random IDs, but {same} of 80 are the IDs of clients");
    let ids: HashSet<u16> = seen.iter().map(|message| id(message)).collect();
    assert!(ids.len() > 75, "expected random IDs: {ids:?}");
    let ports: HashSet<u16> = server.source_ports(Transport::Udp).into_iter().collect();
    assert!(ports.len() > 2, "expected several source ports: {ports:?}");
    let counters = ["requests", "requests_failed"].map(|name| evener.service_counter("d", name));
    assert_eq!(counters, [80, 0]);
}

#[test]
fn many_clients_with_one_id_each_get_the_right_response() {
    let server = Nameserver::start(|query, back| {
        let number = name_of(query)[1..].split('.').next().unwrap().parse().unwrap();
        back.send(&address(query, 60, number));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let clients: Vec<UdpSocket> = (0..200).map(|_| client(listen)).collect();
    for _ in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            client.send(&query(42, &format!("n{number}.example"), A)).unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let response = receive(client);
            assert_eq!((id(&response), usize::from(host(&response))), (42, number));
        }
    }
}

#[test]
fn responses_are_truncated_to_the_size_of_the_client_and_complete_over_tcp() {
    let server = Nameserver::start(|query, back| {
        let size = name_of(query)[1..].split('.').next().unwrap().parse().unwrap();
        back.send(&sized(query, size));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let plain = |size: usize| query(1, &format!("n{size}.example"), TXT);
    let mut truncated = 0;
    // A size below 512 counts as 512 (RFC 6891, section 6.2.3).
    for (advertised, limit) in
        [(None, 512), (Some(0), 512), (Some(511), 512), (Some(1232), 1232), (Some(4096), 4096)]
    {
        let query_of = |size| {
            advertised
                .map_or_else(|| plain(size), |advertised| with_edns(plain(size), advertised, false, &[]))
        };
        let whole = ask(listen, &query_of(limit));
        assert_eq!((whole.len(), is_truncated(&whole)), (limit, false), "{advertised:?}");
        let short = ask(listen, &query_of(limit + 1));
        assert!(is_truncated(&short) && short[6..8] == [0, 0], "{advertised:?}: {short:02x?}");
        assert_eq!(
            short[12..question_section_end(&short)],
            query_of(limit + 1)[12..question_section_end(&short)]
        );
        assert!(short.len() <= query_of(limit + 1).len(), "{advertised:?}");
        assert_eq!(ask_tcp(listen, &query_of(limit + 1)).len(), limit + 1);
        truncated += 1;
        assert_eq!(evener.service_counter("d", "truncated"), truncated);
    }
    assert_eq!(ask(listen, &with_edns(plain(60_000), 65_535, false, &[])).len(), 60_000);
}

#[test]
fn responses_that_the_server_truncated_are_passed_on_unchanged() {
    let server = Nameserver::start(|query, back| {
        let mut response = reply(query, 0, &[record(A, 9, &[192, 0, 2, 5])], &[]);
        response[2] |= 2 * u8::from(!back.is_tcp());
        back.send(&response);
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let sent = query(3, "a.example", A);
    let response = ask(listen, &sent);
    assert!(is_truncated(&response));
    assert_eq!(host(&response), 5, "expected the record of the truncated response");
    assert!(!is_truncated(&ask_tcp(listen, &sent)));
    assert_eq!(evener.service_counter("d", "truncated"), 0);
    assert_eq!(server.transports(), [Transport::Udp, Transport::Tcp]);
}

#[test]
fn least_outstanding_prefers_the_server_with_the_fewest_pending_queries() {
    let is_blocked = Arc::new(AtomicBool::new(true));
    let blocked = Arc::clone(&is_blocked);
    let slow = Nameserver::start(move |query, back| {
        let (query, back, blocked) = (query.to_vec(), back.clone(), Arc::clone(&blocked));
        std::thread::spawn(move || {
            while blocked.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            back.send(&address(&query, 60, 1));
        });
    });
    let quick = Nameserver::of(2);
    let more = "policy = \"least_outstanding\", dns = { query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&slow, &quick], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let waiting = client(listen);
    for turn in 0..60 {
        // The query at the slow server stays pending, and all other queries go to the quick server.
        if slow.count() == 0 {
            waiting.send(&query(turn, &format!("n{turn}.example"), A)).unwrap();
            wait_until("the query", || (slow.count() + quick.count() == usize::from(turn) + 1).then_some(()));
        } else {
            assert_eq!(host(&ask(listen, &query(turn, &format!("n{turn}.example"), A))), 2);
        }
    }
    assert_eq!(slow.count(), 1);
    is_blocked.store(false, Ordering::Relaxed);
    wait_until("no pending query", || (evener.status()["services"][0]["flows_active"] == 0).then_some(()));
}

#[test]
fn a_sticky_client_has_one_server_over_udp_and_tcp() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    let evener = Evener::run(&service(0, &[&one, &two], "sticky = true"));
    let listen = evener.port("d");
    let mut clients_by_server: HashMap<u8, usize> = HashMap::new();
    for number in 10..20 {
        let client = client_from([127, 0, 0, number], listen);
        let server = host(&ask_on(&client, &query(1, "a.example", A)));
        for _ in 0..3 {
            assert_eq!(host(&ask_on(&client, &query(1, "a.example", A))), server);
        }
        let stream = crate::tcp::proxy_protocol::connect_from(&format!("127.0.0.{number}"), listen);
        assert_eq!(host(&ask_stream(&stream, &query(1, "a.example", A))), server);
        *clients_by_server.entry(server).or_default() += 1;
    }
    assert_eq!(clients_by_server, HashMap::from([(1, 5), (2, 5)]));
}

#[test]
fn responses_come_from_the_address_that_was_queried() {
    let (server, listen) = (Nameserver::of(1), reserved_port());
    let both = format!("listen = {{ \"0.0.0.0:{listen}\", \"[::]:{listen}\" }}");
    let _evener =
        Evener::run(&format!("service \"d\" {{ protocol = \"dns\", {both}, \"{}\" }}", server.name()));
    for address in ["127.0.0.1", "127.0.0.7", "[::1]"] {
        let target: SocketAddr = format!("{address}:{listen}").parse().unwrap();
        let socket = UdpSocket::bind(if target.is_ipv4() { "127.0.0.3:0" } else { "[::1]:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&query(9, "a.example", A), target).unwrap();
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((host(&buffer[..length]), from), (1, target));
        let stream = std::net::TcpStream::connect(target).unwrap();
        assert_eq!(host(&ask_stream(&stream, &query(9, "a.example", A))), 1);
    }
}

#[test]
fn open_connections_are_listed_and_can_be_closed() {
    let server = Nameserver::silent();
    let evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"30s\" }"));
    let listen = evener.port("d");
    let stages = || {
        let (status, found) = crate::admin::access::api(&evener, "GET", "/v1/connections?service=d", None);
        assert_eq!(status, 200, "{found}");
        let listed = found["connections"].as_array().unwrap().clone();
        let mut stages: Vec<String> =
            listed.iter().map(|one| one["stage"].as_str().unwrap().to_owned()).collect();
        stages.sort();
        (stages, listed)
    };
    let (idle, mut querying) = (connect(listen), connect(listen));
    std::io::Write::write_all(&mut querying, &crate::harness::dns::framed(&query(1, "a.example", A)))
        .unwrap();
    let listed = wait_until("both connections to be listed", || {
        let (stages, listed) = stages();
        (stages == ["dns idle", "dns queries"]).then_some(listed)
    });
    let number = listed.iter().find(|one| one["stage"] == "dns queries").unwrap()["number"].to_string();
    assert!(evener.run_command(&["close", &number]).status.success());
    assert!(crate::harness::dns::is_closed(&querying));
    assert_eq!(stages().0, ["dns idle"]);
    assert_eq!(evener.service_counter("d", "closed.operator"), 1);
    assert_eq!(evener.service_counter("d", "reasons.operator"), 1);
    let printed = evener.run_command(&["connections", "d"]).stdout;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(
        printed.contains(&idle.local_addr().unwrap().to_string()) && printed.contains("dns idle"),
        "{printed}"
    );
}
