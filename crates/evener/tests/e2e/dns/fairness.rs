//! Isolation: a client, name or server that misbehaves does not affect other clients, names or servers.

use crate::harness::dns::{
    A, Nameserver, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, framed, host, id, name_of,
    query, rcode, read_message, receive, service,
};
use crate::harness::{Directory, Evener, connect, reserved_port, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Responses that a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    All,
    Nothing,
}

/// A client that sends queries over one connection as fast as possible, until it is dropped.
struct Flood {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(listen: u16, reads: Reads) -> Self {
        let (stopped, stream) = (Arc::new(AtomicBool::new(false)), Arc::new(connect(listen)));
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, writer) = (Arc::clone(&stopped), Arc::clone(&stream));
        let mut threads = vec![std::thread::spawn(move || flood(&writer, &stop))];
        if reads == Reads::All {
            let stop = Arc::clone(&stopped);
            threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let _ = (&*stream).read(&mut buffer);
                }
            }));
        }
        Self { stopped, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn flood(mut stream: &TcpStream, stopped: &AtomicBool) {
    let all = framed(&query(7, "a.example", A)).repeat(1000);
    let mut at = 0;
    while !stopped.load(Ordering::Relaxed) {
        at = (at + stream.write(&all[at..]).unwrap_or(0)) % all.len();
    }
}

/// Checks that queries to another service of the worker get responses while a client floods `listen`.
fn check_other_service(evener: &Evener, listen: u16, other: u16, reads: Reads) {
    let requests = || evener.service_counter("d", "requests");
    let before = requests();
    let flood = Flood::start(listen, reads);
    wait_until("the flood to begin", || (requests() > before + 500).then_some(()));
    let (socket, mut worst) = (client(other), Duration::ZERO);
    for number in 0..100 {
        let begun = Instant::now();
        assert_eq!(host(&ask_on(&socket, &query(number, "b.example", A))), 2, "{reads:?}");
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_secs(2), "expected no delay by a client that reads {reads:?}: {worst:?}");
    if reads == Reads::All {
        let before = requests();
        wait_until("the flood to go on", || (requests() > before + 500).then_some(()));
    }
    drop(flood);
}

#[test]
fn a_flood_of_queries_with_cached_responses_does_not_block_other_clients() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    let config =
        service(0, &[&one], "dns = { cache = true }") + &service(0, &[&two], "").replace("\"d\"", "\"e\"");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let other = evener.port("e");
    assert_eq!(host(&ask_tcp(listen, &query(1, "a.example", A))), 1);
    for reads in [Reads::All, Reads::Nothing] {
        check_other_service(&evener, listen, other, reads);
    }
    assert_eq!(one.count(), 1, "expected cached responses to all queries but the first");
}

#[test]
fn a_flood_of_queries_without_a_server_does_not_block_other_clients() {
    let (two, empty) = (Nameserver::of(2), Directory::new());
    let config = format!(
        "pool \"none\" {{ discover = {{ mname = \"{}\" }} }}\n\
         service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", pool = \"none\" }}\n{}",
        empty.file("").display(),
        service(0, &[&two], "").replace("\"d\"", "\"e\"")
    );
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let other = evener.port("e");
    assert_eq!(rcode(&ask_tcp(listen, &query(1, "a.example", A))), SERVFAIL);
    for reads in [Reads::All, Reads::Nothing] {
        check_other_service(&evener, listen, other, reads);
    }
}

/// A server that does not respond to queries for names that begin with `start`.
fn silent_for(start: &'static str, number: u8) -> Nameserver {
    Nameserver::start(move |query, back| {
        if !name_of(query).starts_with(start) {
            back.send(&address(query, 60, number));
        }
    })
}

#[test]
fn a_slow_name_on_a_quiet_service_marks_no_server_down() {
    let (one, two) = (silent_for("slow", 1), silent_for("slow", 2));
    let more =
        "dns = { query_timeout = \"150ms\", retries = 1 }, passive = { failures = 1, down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&one, &two], more), &["--workers", "1"]);
    let listen = evener.port("d");
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        // The only queries are those of a client that retries a few times before it gives up.
        for number in 0..3 {
            assert_eq!(rcode(&ask(listen, &query(number, "slow.example", A))), SERVFAIL);
        }
        for server in [&one, &two] {
            assert_eq!(evener.server(&server.name())["verdict"], "up");
        }
        let hosts: Vec<u8> =
            (0..4).map(|number| host(&ask(listen, &query(number, "a.example", A)))).collect();
        assert!(hosts.contains(&1) && hosts.contains(&2), "{hosts:?}");
    }
    assert_eq!(evener.service_counter("d", "requests_failed"), 6);
}

#[test]
fn the_second_tier_is_used_when_the_first_tier_is_silent() {
    let (first, second) = (Nameserver::silent(), Nameserver::of(2));
    let more = format!(
        "{{ \"{}\", tier = 2 }}, passive = false, dns = {{ query_timeout = \"200ms\", retries = 1 }}",
        second.name()
    );
    let evener = Evener::run_with(&service(0, &[&first], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    for number in 0..3 {
        for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
            assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 2);
        }
    }
    assert_eq!(
        (first.count(), second.count()),
        (6, 6),
        "expected the first tier to stay up and to get each query first"
    );
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn pending_queries_move_to_the_new_address_of_their_only_server() {
    let (old, new, listen) = (silent_for("pending", 1), Nameserver::of(2), reserved_port());
    // Pending queries move when a new query reaches the new address, or otherwise after their timeout.
    for (timeout, has_new_query) in [("30s", true), ("1s", false)] {
        let of = |server: &Nameserver| {
            let more = format!(
                "{{ \"{}\", name = \"s\" }}, dns = {{ query_timeout = \"{timeout}\" }}",
                server.name()
            );
            service(listen, &[], &more)
        };
        let evener = Evener::run_with(&of(&old), &["--workers", "1"]);
        let (socket, mut stream, other) = (client(listen), connect(listen), connect(listen));
        assert_eq!(host(&ask_stream(&other, &query(9, "a.example", A))), 1);
        let before = old.count();
        socket.send(&query(1, "pending.udp.example", A)).unwrap();
        stream.write_all(&framed(&query(2, "pending.tcp.example", A))).unwrap();
        wait_until("both queries", || (old.count() == before + 2).then_some(()));
        evener.reload(&of(&new));
        if has_new_query {
            assert_eq!(host(&ask(listen, &query(3, "a.example", A))), 2);
            assert_eq!(host(&ask_stream(&other, &query(3, "a.example", A))), 2);
        }
        let responses = [receive(&socket), read_message(&stream).unwrap()];
        assert_eq!(responses.each_ref().map(|response| (id(response), host(response))), [(1, 2), (2, 2)]);
        assert_eq!(evener.service_counter("d", "requests_failed"), 0);
        drop(evener);
    }
}
