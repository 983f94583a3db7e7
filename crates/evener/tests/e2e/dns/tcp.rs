//! DNS over TCP: pipelined queries, and clients and servers that are slow or split their messages (RFC 7766).

use crate::harness::dns::{
    A, AXFR, Nameserver, QUIET, ReplyPath, SOA, TXT, Transport, address, ask, ask_stream, client, framed,
    host, id, is_closed, name_of, query, question_section_end, read_message, record, reply, service, sized,
    with_edns,
};
use crate::harness::{DEADLINE, Evener, connect, wait_until};
use std::collections::HashSet;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A server that waits for the given number of queries and responds in reverse order. The address in each
/// response ends in the number in the queried name.
fn in_reverse(count: usize) -> Nameserver {
    let waiting: Mutex<Vec<(Vec<u8>, ReplyPath)>> = Mutex::default();
    Nameserver::start(move |query, back| {
        let mut waiting = waiting.lock().unwrap();
        waiting.push((query.to_vec(), back.clone()));
        if waiting.len() == count {
            for (query, back) in waiting.drain(..).rev() {
                back.send(&address(&query, 60, number(&query)));
            }
        }
    })
}

/// Returns the number in a name such as `n7.example`.
fn number(query: &[u8]) -> u8 {
    name_of(query)[1..].split('.').next().unwrap().parse().unwrap()
}

#[test]
fn a_hundred_pipelined_queries_get_responses_in_any_order() {
    let server = in_reverse(100);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    let all: Vec<u8> = (0..100).flat_map(|n| framed(&query(1000 + n, &format!("n{n}.example"), A))).collect();
    stream.write_all(&all).unwrap();
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    for _ in 0..100 {
        let response = read_message(&stream).unwrap();
        let number = id(&response) - 1000;
        assert_eq!(name_of(&response), format!("n{number}.example"));
        assert_eq!(u16::from(host(&response)), number);
        assert!(seen.insert(number), "expected one response to {number}");
        order.push(number);
    }
    assert!(!order.is_sorted(), "expected the order of the server: {order:?}");
    assert_eq!(evener.service_counter("d", "requests"), 100);
}

#[test]
fn messages_may_be_split_at_any_byte_on_either_side() {
    // The server sends its response in two parts, split at the number in the name.
    let server = Nameserver::start(|query, back| {
        let (response, split) = (framed(&address(query, 60, 1)), usize::from(number(query)));
        back.send_raw(&response[..split.min(response.len())]);
        std::thread::sleep(Duration::from_millis(5));
        back.send_raw(&response[split.min(response.len())..]);
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    stream.set_nodelay(true).unwrap();
    let length = framed(&address(&query(0, "n10.example", A), 60, 1)).len() as u8;
    for split in 0..=length {
        let sent = framed(&query(split.into(), &format!("n{split:02}.example"), A));
        let (first, second) = sent.split_at(usize::from(split).min(sent.len()));
        stream.write_all(first).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(second).unwrap();
        let response = read_message(&stream).unwrap();
        assert_eq!((id(&response), host(&response)), (split.into(), 1));
    }
}

#[test]
fn a_client_that_half_closes_gets_its_responses() {
    let server = in_reverse(3);
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    for n in 0..2 {
        stream.write_all(&framed(&query(n, &format!("n{n}.example"), A))).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    wait_until("the queries", || (server.count() == 2).then_some(()));
    assert_eq!(host(&ask(listen, &query(2, "n2.example", A))), 2);
    let mut seen =
        [read_message(&stream).unwrap(), read_message(&stream).unwrap()].map(|response| host(&response));
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
    assert!(is_closed(&stream), "expected a close after the last response");
}

#[test]
fn clients_without_complete_queries_are_closed_after_the_idle_timeout() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "idle_timeout = \"1s\""));
    let listen = evener.port("d");
    let (silent, mut trickling, querying) = (connect(listen), connect(listen), connect(listen));
    let begun = Instant::now();
    // Single bytes of a message that never ends do not reset the timeout.
    trickling.write_all(&[0, 200]).unwrap();
    let ended = wait_until("the trickling client to be closed", || {
        assert_eq!(host(&ask_stream(&querying, &query(1, "a.example", A))), 1);
        std::thread::sleep(Duration::from_millis(100));
        trickling.write_all(&[1]).is_err().then(|| begun.elapsed())
    });
    assert!(ended > Duration::from_millis(900), "expected no earlier timeout: {ended:?}");
    assert!(is_closed(&silent));
    assert_eq!(evener.service_counter("d", "closed.idle_timeout"), 2);
    assert_eq!(host(&ask_stream(&querying, &query(2, "a.example", A))), 1);
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_and_blocks_no_other_client() {
    const ALL: usize = 2000;
    const SIZE: usize = 50_000;
    let server = Nameserver::start(|query, back| {
        back.send(&if back.is_tcp() { sized(query, SIZE) } else { address(query, 60, 1) });
    });
    let evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let stream = connect(listen);
    let mut writer = stream.try_clone().unwrap();
    let querying = std::thread::spawn(move || {
        for n in 0..ALL {
            writer.write_all(&framed(&query(n as u16, &format!("n{n:04}.example"), TXT))).unwrap();
        }
    });
    // Queries reach the server until the buffers are full.
    let mut before = 0;
    let sent = wait_until("the queries to cease", || {
        std::thread::sleep(QUIET);
        let count = server.count();
        let ceased = count > 0 && count == std::mem::replace(&mut before, count);
        ceased.then_some(count)
    });
    assert!(sent < ALL / 2, "expected fewer pending queries: {sent} of {ALL}");
    let socket = client(listen);
    for n in 0..50 {
        assert_eq!(host(&crate::harness::dns::ask_on(&socket, &query(n, "a.example", A))), 1);
        assert_eq!(ask_stream(&connect(listen), &query(n, "b.example", TXT)).len(), SIZE);
    }
    let resident = resident_kib(evener.pid());
    assert!(resident < 200_000, "expected less than 200000 KiB: {resident} KiB");
    // As soon as the client reads, it gets all responses.
    let mut seen = HashSet::new();
    for _ in 0..ALL {
        let response = read_message(&stream).unwrap();
        assert_eq!(response.len(), SIZE);
        seen.insert(id(&response));
    }
    querying.join().unwrap();
    assert_eq!(seen.len(), ALL);
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_client_that_never_reads_is_closed_after_the_idle_timeout() {
    let server = Nameserver::start(|query, back| back.send(&sized(query, 60_000)));
    let evener = Evener::run(&service(0, &[&server], "idle_timeout = \"1s\""));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let sent = framed(&query(1, "big.example", TXT));
    wait_until("the client to be closed", || {
        let _ = stream.write(&sent);
        (evener.service_counter("d", "closed.idle_timeout") == 1).then_some(())
    });
}

#[test]
fn pipeline_max_bounds_the_pending_queries_of_a_connection() {
    let server = Nameserver::silent();
    let more = "dns = { pipeline_max = 4, query_timeout = \"1s\", retries = 0 }";
    let evener = Evener::run(&service(0, &[&server], more));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    for n in 0..12 {
        stream.write_all(&framed(&query(n, &format!("n{n}.example"), A))).unwrap();
    }
    wait_until("the first four", || (server.count() == 4).then_some(()));
    std::thread::sleep(QUIET);
    assert_eq!(server.count(), 4);
    // When the first queries fail, the next queries are sent.
    let ids: HashSet<u16> = (0..12).map(|_| id(&read_message(&stream).unwrap())).collect();
    assert_eq!((ids.len(), server.count()), (12, 12));
}

#[test]
fn queries_with_a_local_response_do_not_count_as_pending() {
    let server = Nameserver::of(1);
    let more = "idle_timeout = \"1s\", dns = { cache = true, pipeline_max = 4 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let stream = connect(listen);
    for n in 0..40 {
        // A query with a cached response, and a malformed query.
        assert_eq!(host(&ask_stream(&stream, &query(n, "a.example", A))), 1);
        assert_eq!(ask_stream(&stream, &query(n, "a.example", A)[..20]).len(), 12);
    }
    assert_eq!((evener.service_counter("d", "cache_lookups.hit"), server.count()), (39, 1));
    // A client that has received all its responses is idle, so its connection is closed.
    assert!(is_closed(&stream));
    assert_eq!(evener.service_counter("d", "closed.idle_timeout"), 1);
}

#[test]
fn messages_of_64_kib_pass_unchanged() {
    let server = Nameserver::start(|query, back| back.send(&sized(query, 65_535)));
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let stream = connect(listen);
    let plain = query(7, "a.example", TXT);
    let padding = vec![0; 65_535 - plain.len() - 11 - 4];
    let option = [&[0, 12][..], &(padding.len() as u16).to_be_bytes(), &padding].concat();
    let large = with_edns(plain, 4096, false, &option);
    assert_eq!(large.len(), 65_535);
    let response = ask_stream(&stream, &large);
    assert!(response == sized(&large, 65_535));
    assert!(server.messages()[0][2..] == large[2..], "expected the query unchanged");
}

#[test]
fn a_zone_transfer_may_have_many_messages() {
    let server = Nameserver::start(|query, back| {
        if !name_of(query).starts_with("zone") {
            return back.send(&address(query, 60, 1));
        }
        let soa = record(SOA, 60, &[&[0, 0][..], &[0; 20]].concat());
        let mut piece = query[..12].to_vec();
        piece[2..12].copy_from_slice(&[0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        piece.extend_from_slice(&[1, b'n', 0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        back.send(&reply(query, 0, std::slice::from_ref(&soa), &[]));
        // The following messages need not repeat the question section (RFC 5936, section 2.2.1).
        (0..50).for_each(|_| back.send(&piece));
        back.send(&reply(query, 0, &[soa], &[]));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    stream.write_all(&framed(&query(0xabcd, "zone.example", AXFR))).unwrap();
    stream.write_all(&framed(&query(2, "a.example", A))).unwrap();
    let all: Vec<Vec<u8>> = (0..53).map(|_| read_message(&stream).unwrap()).collect();
    let zone: Vec<&Vec<u8>> = all.iter().filter(|message| id(message) == 0xabcd).collect();
    assert_eq!(zone.len(), 52);
    assert!(zone[1..51].iter().all(|piece| piece[5] == 0 && piece.ends_with(&[192, 0, 2, 1])));
    assert_eq!((zone[0][5], zone[51][5], all.iter().filter(|message| id(message) == 2).count()), (1, 1, 1));
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
}

#[test]
fn a_server_that_closes_its_connections_gets_queries_over_new_connections() {
    let server = Nameserver::start(|query, back| {
        back.send(&address(query, 60, 1));
        back.close();
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let stream = connect(listen);
    for n in 0..50 {
        assert_eq!(host(&ask_stream(&stream, &query(n, "a.example", A))), 1);
    }
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
    assert_eq!(evener.server(&server.name())["verdict"], "up");
}

#[test]
fn clients_share_the_connections_to_a_server() {
    let server = Nameserver::of(1);
    let evener = Evener::run_with(&service(0, &[&server], "dns = { sockets = 2 }"), &["--workers", "1"]);
    let listen = evener.port("d");
    let streams: Vec<_> = (0..20).map(|_| connect(listen)).collect();
    for (n, stream) in streams.iter().chain(&streams).enumerate() {
        assert_eq!(host(&ask_stream(stream, &query(n as u16, "a.example", A))), 1);
    }
    let ports: HashSet<u16> = server.source_ports(Transport::Tcp).into_iter().collect();
    assert!(ports.len() <= 2, "{ports:?}");
}

#[test]
fn a_client_that_disconnects_does_not_affect_the_queries_of_other_clients() {
    let server = in_reverse(30);
    let evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let (mut leaving, mut staying) = (connect(listen), connect(listen));
    for n in 0..15 {
        leaving.write_all(&framed(&query(n, &format!("n{n}.example"), A))).unwrap();
    }
    wait_until("the first queries", || (server.count() == 15).then_some(()));
    drop(leaving);
    for n in 15..30 {
        staying.write_all(&framed(&query(n, &format!("n{n}.example"), A))).unwrap();
    }
    staying.set_read_timeout(Some(DEADLINE)).unwrap();
    for _ in 15..30 {
        let response = read_message(&staying).unwrap();
        assert_eq!(u16::from(host(&response)), id(&response));
        assert!(question_section_end(&response) < response.len());
    }
    wait_until("no pending query", || (evener.status()["services"][0]["flows_active"] == 0).then_some(()));
}

#[test]
fn queries_beyond_pipeline_max_get_responses_after_the_client_half_closes() {
    let server = Nameserver::of(1);
    let evener = Evener::run(&service(0, &[&server], "dns = { pipeline_max = 2 }"));
    let listen = evener.port("d");
    let mut stream = connect(listen);
    let all: Vec<u8> =
        (0..30).flat_map(|number| framed(&query(number, &format!("n{number}.example"), A))).collect();
    stream.write_all(&all).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let seen: HashSet<u16> = (0..30).map(|_| id(&read_message(&stream).unwrap())).collect();
    assert_eq!(seen.len(), 30);
    assert!(is_closed(&stream));
}
