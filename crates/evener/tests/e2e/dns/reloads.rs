//! DNS services across reloads, drains and the end of the process.

use crate::harness::dns::{
    A, Nameserver, address, ask, ask_on, ask_stream, client, framed, host, id, is_closed, query,
    read_message, receive, service,
};
use crate::harness::{Evener, connect, local, reserved_port, wait_until};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A server that responds while its gate is unlocked, and the gate.
fn gated(host: u8) -> (Nameserver, Arc<Mutex<()>>) {
    let gate = Arc::new(Mutex::new(()));
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |query, back| {
        let (query, back, wait) = (query.to_vec(), back.clone(), Arc::clone(&wait));
        std::thread::spawn(move || {
            drop(wait.lock());
            back.send(&address(&query, 60, host));
        });
    });
    (server, gate)
}

#[test]
fn a_reload_moves_an_address_between_udp_and_dns() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    // A port that the system chose for UDP may be in use for TCP later.
    let listen = reserved_port();
    let of = |server: &Nameserver, protocol: &str| {
        service(listen, &[server], "").replace("\"dns\"", &format!("\"{protocol}\""))
    };
    let evener = Evener::run(&of(&one, "udp"));
    let socket = client(listen);
    let sent = query(1, "a.example", A);
    assert_eq!(host(&ask_on(&socket, &sent)), 1);
    wait_until("the TCP listener to close", || TcpStream::connect(local(listen)).is_err().then_some(()));
    for _ in 0..3 {
        evener.reload(&of(&two, "dns"));
        assert_eq!(host(&ask_on(&socket, &sent)), 2);
        let stream = connect(listen);
        assert_eq!(host(&ask_stream(&stream, &sent)), 2);
        evener.reload(&of(&one, "udp"));
        assert_eq!(host(&ask_on(&socket, &sent)), 1);
        wait_until("the TCP listener to close", || TcpStream::connect(local(listen)).is_err().then_some(()));
    }
}

#[test]
fn no_query_fails_during_reloads_under_load() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    let evener = Evener::run(&service(0, &[&one], ""));
    let listen = evener.port("d");
    let stopped = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let (stopped, done) = (Arc::clone(&stopped), Arc::clone(&done));
            std::thread::spawn(move || {
                let (socket, stream) = (client(listen), connect(listen));
                for turn in 0.. {
                    let sent = query(turn as u16, "a.example", A);
                    let response =
                        if number % 2 == 1 { ask_stream(&stream, &sent) } else { ask_on(&socket, &sent) };
                    assert!([1, 2].contains(&host(&response)), "{response:02x?}");
                    done.fetch_add(1, Ordering::Relaxed);
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    let configs = [
        service(0, &[&two], ""),
        service(0, &[&one, &two], "dns = { sockets = 1, query_timeout = \"5s\" }"),
        service(0, &[&one], "dns = { cache = true }, deny = \"192.0.2.0/24\""),
        service(0, &[&two, &one], "policy = \"least_outstanding\", idle_timeout = \"30s\""),
    ];
    for config in configs.iter().cycle().take(12) {
        let before = done.load(Ordering::Relaxed);
        evener.reload(config);
        wait_until("more responses", || (done.load(Ordering::Relaxed) > before + 100).then_some(()));
    }
    stopped.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn pending_queries_get_a_response_when_a_reload_removes_their_server() {
    let ((old, gate), new) = (gated(1), Nameserver::of(2));
    let more = "dns = { query_timeout = \"30s\" }";
    let evener = Evener::run(&service(0, &[&old], more));
    let listen = evener.port("d");
    let (socket, mut stream) = (client(listen), connect(listen));
    let shut = gate.lock();
    socket.send(&query(1, "udp.example", A)).unwrap();
    stream.write_all(&framed(&query(2, "tcp.example", A))).unwrap();
    wait_until("both queries", || (old.count() == 2).then_some(()));
    evener.reload(&service(0, &[&new], more));
    assert_eq!(host(&ask(listen, &query(3, "a.example", A))), 2);
    drop(shut);
    for response in [receive(&socket), read_message(&stream).unwrap()] {
        assert!([1, 2].contains(&host(&response)) && [1, 2].contains(&id(&response)));
    }
}

#[test]
fn sigterm_waits_for_pending_queries() {
    let (server, gate) = gated(1);
    let mut evener = Evener::run(&service(0, &[&server], "dns = { query_timeout = \"30s\" }"));
    let listen = evener.port("d");
    let (socket, mut stream, served, silent) =
        (client(listen), connect(listen), connect(listen), connect(listen));
    assert_eq!(host(&ask_stream(&served, &query(9, "a.example", A))), 1);
    let shut = gate.lock();
    socket.send(&query(1, "udp.example", A)).unwrap();
    stream.write_all(&framed(&query(2, "tcp.example", A))).unwrap();
    wait_until("both queries", || (server.count() == 3).then_some(()));
    evener.signal("TERM");
    assert!(is_closed(&served), "expected a connection without pending queries to be closed");
    assert!(is_closed(&silent), "expected a connection without queries to be closed");
    drop(shut);
    assert_eq!(host(&receive(&socket)), 1);
    assert_eq!(host(&read_message(&stream).unwrap()), 1);
    assert!(is_closed(&stream));
    assert_eq!(evener.end(), 0);
    evener.expect_log("drained");
}

#[test]
fn two_services_with_one_pool_have_separate_caches() {
    let server = Nameserver::of(1);
    let pool = format!("pool \"p\" {{ \"{}\" }}\n", server.name());
    let of = |name: &str| {
        format!(
            "service \"{name}\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", pool = \"p\", dns = {{ cache = true }} }}\n"
        )
    };
    let evener = Evener::run(&(pool + &of("d") + &of("e")));
    let listens = ["d", "e"].map(|service| evener.port(service));
    for listen in listens {
        (0..3).for_each(|n| assert_eq!(host(&ask(listen, &query(n, "a.example", A))), 1));
    }
    assert_eq!(server.count(), 2);
    assert_eq!(["d", "e"].map(|name| evener.service_counter(name, "cache_lookups.hit")), [2, 2]);
}

#[test]
fn connections_and_queries_of_clients_that_disconnected_are_removed() {
    let server = Nameserver::of(1);
    let evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "2"]);
    let listen = evener.port("d");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count();
    for round in 0..6 {
        let streams: Vec<TcpStream> = (0..50).map(|_| connect(listen)).collect();
        for (number, mut stream) in (0..).zip(&streams) {
            let sent = query(number, &format!("n{round}.n{number}.example"), A);
            if number % 3 == 0 {
                // This client does not wait for its response.
                stream.write_all(&framed(&sent)).unwrap();
            } else {
                assert_eq!(host(&ask_stream(stream, &sent)), 1);
            }
            assert_eq!(host(&ask(listen, &sent)), 1);
        }
    }
    // The connections to the server stay: four sockets and four streams for each worker.
    wait_until("connections to be closed", || (descriptors() < 60).then_some(()));
    wait_until("no pending query", || (evener.status()["services"][0]["flows_active"] == 0).then_some(()));
}

#[test]
fn a_draining_server_gets_no_new_queries_and_may_respond_to_pending_queries() {
    let ((one, gate), two) = (gated(1), Nameserver::of(2));
    let more = "policy = \"first\", dns = { query_timeout = \"30s\" }";
    let evener = Evener::run(&service(0, &[&one, &two], more));
    let listen = evener.port("d");
    let socket = client(listen);
    let shut = gate.lock();
    socket.send(&query(1, "a.example", A)).unwrap();
    wait_until("the query", || (one.count() == 1).then_some(()));
    assert!(evener.run_command(&["drain", &one.name()]).status.success());
    for number in 0..10 {
        assert_eq!(host(&ask(listen, &query(number, &format!("n{number}.example"), A))), 2);
    }
    drop(shut);
    assert_eq!((host(&receive(&socket)), one.count()), (1, 1));
    assert!(evener.run_command(&["ready", &one.name()]).status.success());
    wait_until("a query to the ready server", || {
        (host(&ask(listen, &query(1, "b.example", A))) == 1).then_some(())
    });
}

#[test]
fn a_sticky_client_returns_to_its_server_when_the_server_listens_again() {
    let (mut one, two) = (Nameserver::of(1), Nameserver::of(2));
    let more = "sticky = { failback = true }, passive = { down_for = \"1s\" }";
    let evener = Evener::run_with(&service(0, &[&one, &two], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let sent = |number: u8| {
        let socket = crate::harness::dns::client_from([127, 0, 0, number], listen);
        host(&ask_on(&socket, &query(1, "a.example", A)))
    };
    let homes: Vec<u8> = (1..9).map(sent).collect();
    assert!(homes.contains(&1) && homes.contains(&2), "{homes:?}");
    one.stop();
    assert!(
        (1..9).all(|number| sent(number) == 2),
        "expected all clients at the other server while the first server is stopped"
    );
    let _restarted = Nameserver::of_at(one.port, 1);
    wait_until("all clients to return", || ((1..9).map(sent).collect::<Vec<u8>>() == homes).then_some(()));
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}
