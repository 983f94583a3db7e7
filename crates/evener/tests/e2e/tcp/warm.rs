//! `warm`: connections to servers that are opened before clients need them.

use crate::harness::{DEADLINE, Evener, Server, connect, line, wait_until, who};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

fn config(listen: u16, servers: &[u16], more: &str) -> String {
    let servers: String = servers.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", {servers} {more} }}")
}

/// The number of warm connections of the service.
fn warm(evener: &Evener) -> u64 {
    evener.status()["services"][0]["warm"].as_u64().unwrap()
}

fn await_warm(evener: &Evener, count: u64) {
    wait_until(&format!("{count} warm connections"), || (warm(evener) == count).then_some(()));
}

/// The number of connections of a server, active and warm.
fn connection_count(evener: &Evener, port: u16) -> u64 {
    let server = evener.server(&format!("127.0.0.1:{port}"));
    server["active"].as_u64().unwrap() + server["warm"].as_u64().unwrap()
}

/// A server that counts its connections, sends its name, echoes bytes, and can close its connections.
struct Counted {
    server: Server,
    accepted: Arc<AtomicUsize>,
    closes: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Counted {
    fn new() -> Self {
        let (accepted, closes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (count, close, open) = (Arc::clone(&accepted), Arc::clone(&closes), Arc::clone(&streams));
        let server = Server::start(move |stream| {
            count.fetch_add(1, Ordering::Relaxed);
            if close.load(Ordering::Relaxed) {
                return;
            }
            let stream = Arc::new(stream);
            open.lock().unwrap().push(Arc::downgrade(&stream));
            let mut stream = &*stream;
            let _ = stream.write_all(b"counted\n");
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                let _ = stream.write_all(&piece[..read]);
            }
        });
        Self { server, accepted, closes, streams }
    }

    /// The number of connections so far.
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes all connections of the server.
    fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn clients_get_warm_connections_and_each_used_connection_is_replaced() {
    let (a, b) = (Server::named("a"), Counted::new());
    let evener = Evener::run_with(&config(0, &[a.port, b.server.port], "warm = 4"), &["--workers", "2"]);
    let listen = evener.port("s");
    await_warm(&evener, 4);
    assert_eq!(
        (b.accepted(), connection_count(&evener, a.port), connection_count(&evener, b.server.port)),
        (2, 2, 2)
    );
    let mut clients: Vec<_> = (0..6).map(|_| connect(listen)).collect();
    // Bytes that a server sent on a warm connection before a client got the connection are not lost.
    let mut names: Vec<String> = clients.iter_mut().map(line).collect();
    names.sort();
    assert_eq!(names, ["a 127.0.0.1", "a 127.0.0.1", "a 127.0.0.1", "counted", "counted", "counted"]);
    for client in &mut clients {
        client.write_all(b"echo\n").unwrap();
        assert_eq!(line(client), "echo");
    }
    assert!(evener.service_counter("s", "warm_used") >= 2, "{}", evener.status());
    await_warm(&evener, 4);
    assert_eq!(
        (b.accepted(), connection_count(&evener, a.port), connection_count(&evener, b.server.port)),
        (5, 5, 5)
    );
    drop(clients);
    wait_until("the clients' connections to end", || {
        (connection_count(&evener, b.server.port) == 2).then_some(())
    });
    assert_eq!(evener.server(&format!("127.0.0.1:{}", a.port))["counters"]["connections"], 3);
}

#[test]
fn a_client_never_gets_a_warm_connection_that_the_server_closed() {
    let server = Counted::new();
    let evener = Evener::run_with(&config(0, &[server.server.port], "warm = 3"), &["--workers", "1"]);
    let listen = evener.port("s");
    for _ in 0..3 {
        await_warm(&evener, 3);
        server.hang_up();
        assert_eq!(who(listen), "counted");
    }
    assert_eq!(evener.service_counter("s", "no_server"), 0);
    assert_eq!(evener.server(&format!("127.0.0.1:{}", server.server.port))["verdict"], "up");
}

#[test]
fn warm_connections_to_a_closing_server_are_opened_slowly() {
    let (server, mut refusing) = (Counted::new(), Server::named("refusing"));
    refusing.stop();
    server.closes.store(true, Ordering::Relaxed);
    let more = "warm = 2, passive = { failures = 0 }";
    let config = config(0, &[server.server.port, refusing.port], more);
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let (since, before) = (Instant::now(), evener.cpu_seconds());
    wait_until("a few connections", || (server.accepted() >= 4).then_some(()));
    assert!(since.elapsed() > Duration::from_millis(2500), "{:?}", since.elapsed());
    let refused =
        evener.server(&format!("127.0.0.1:{}", refusing.port))["counters"]["connect_failures"]["refused"]
            .clone();
    assert!((1..=6).contains(&refused.as_u64().unwrap()), "{refused}");
    let used = evener.cpu_seconds() - before;
    assert!(used < 0.5, "{used} s of CPU time");
    // The server keeps its connections open again.
    server.closes.store(false, Ordering::Relaxed);
    await_warm(&evener, 1);
}

#[test]
fn warm_connections_leave_the_last_permit_to_clients_and_release_the_others_on_demand() {
    let server = Counted::new();
    let limited = format!("{{ \"127.0.0.1:{}\", max = 3 }}", server.server.port);
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", {limited}, warm = 8 }}");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("s");
    await_warm(&evener, 2);
    // The clients need all permits, and get them.
    let mut clients: Vec<_> = (0..3).map(|_| connect(listen)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(line(client), "counted"));
    assert_eq!((warm(&evener), connection_count(&evener, server.server.port)), (0, 3));
    assert_eq!(who(listen), "", "the server must be at its limit");
    clients.truncate(1);
    await_warm(&evener, 1);
    assert_eq!(connection_count(&evener, server.server.port), 2);
}

#[test]
fn warm_connections_of_any_service_and_worker_do_not_keep_out_clients() {
    let (a, b) = (Counted::new(), Server::named("b"));
    let (first, second) = (a.server.port, b.port);
    let evener = Evener::run_with(
        &format!(
            "local p = pool \"p\" {{ {{ \"127.0.0.1:{first}\", max = 8 }}, {{ \"127.0.0.1:{second}\", tier = 2 }} }}
             local q = pool \"q\" {{ {{ \"127.0.0.1:{first}\", name = \"q\", max = 8 }}, failover = false }}
             service \"s\" {{ listen = \"127.0.0.1:0\", pool = p, warm = 7 }}
             service \"other\" {{ listen = \"127.0.0.1:0\", pool = p }}
             service \"alone\" {{ listen = \"127.0.0.1:0\", pool = q, warm = 7 }}
             service \"overflowing\" {{ listen = \"127.0.0.1:0\", pool = p, warm = 7 }}"
        ),
        &["--workers", "2"],
    );
    let [listen, other, alone, overflowing] =
        ["s", "other", "alone", "overflowing"].map(|service| evener.port(service));
    let is_warm = || evener.server("q")["warm"] == 7 && connection_count(&evener, first) == 7;
    wait_until("the warm connections of both pools", || is_warm().then_some(()));
    for port in [listen, other, alone, overflowing] {
        let mut clients: Vec<_> = (0..8).map(|_| connect(port)).collect();
        clients.iter_mut().for_each(|client| assert_eq!(line(client), "counted", "at {port}"));
        assert_eq!(who(port), if port == alone { "" } else { "b" }, "the server must be at its limit");
        let name = if port == alone { "q".to_owned() } else { format!("127.0.0.1:{first}") };
        wait_until("the surplus to be closed", || (evener.server(&name)["warm"] == 0).then_some(()));
        assert_eq!(evener.server(&name)["active"], 8);
        drop(clients);
        wait_until("the warm connections to be opened again", || is_warm().then_some(()));
    }
}

#[test]
fn warm_connections_are_closed_when_their_server_address_or_setting_changes() {
    let (a, b) = (Counted::new(), Counted::new());
    let (first, second) = (a.server.port, b.server.port);
    let evener = Evener::run(&config(0, &[first, second], "warm = 6"));
    let listen = evener.port("s");
    await_warm(&evener, 6);
    let expect_counts = |port: u16, expected: [u64; 2]| {
        let both = || [connection_count(&evener, first), connection_count(&evener, second)];
        wait_until(&format!("{expected:?} after {port}"), || (both() == expected).then_some(()));
    };
    expect_counts(0, [3, 3]);
    // A server that gets no clients gets no warm connections, and the other server gets them all.
    for command in ["maintenance", "drain"] {
        assert!(evener.run_command(&[command, &format!("127.0.0.1:{first}")]).status.success());
        expect_counts(first, [0, 6]);
        assert!(evener.run_command(&["ready", &format!("127.0.0.1:{first}")]).status.success());
        expect_counts(first, [3, 3]);
    }
    evener.reload(&config(0, &[first, second], "warm = 2"));
    await_warm(&evener, 2);
    evener.reload(&config(0, &[second], "warm = 2"));
    wait_until("the connections of the remaining server", || {
        (connection_count(&evener, second) == 2).then_some(())
    });
    // The same server, with another address.
    let named = |port: u16, more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{port}\", name = \"one\" }}, {more} }}"
        )
    };
    evener.reload(&named(second, "warm = 3"));
    await_warm(&evener, 3);
    let before = a.accepted();
    evener.reload(&named(first, "warm = 3"));
    wait_until("warm connections to the new address", || (a.accepted() == before + 3).then_some(()));
    assert_eq!(who(listen), "counted");
    for more in ["send_proxy = \"v1\"", "warm = 0", "warm = 3, protocol = \"http\""] {
        evener.reload(&named(first, "warm = 3"));
        await_warm(&evener, 3);
        evener.reload(&named(first, more));
        await_warm(&evener, 0);
    }
}

#[test]
fn without_failover_a_lower_tier_gets_no_warm_connections_and_the_pool_goes_down_with_its_first_tier() {
    let (mut a, b) = (Counted::new(), Counted::new());
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {{ \"127.0.0.1:{}\", tier = 2 }}, \
         failover = false, warm = 2, check = check.tcp {{ every = \"100ms\", fall = 2, rise = 1 }} }}",
        a.server.port, b.server.port
    );
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    await_warm(&evener, 2);
    a.server.stop();
    evener.expect_log("pool_down");
    assert_eq!(who(listen), "");
    evener.expect_log("no server is up and ready");
    await_warm(&evener, 0);
    // The checks of the lower tier go on, and the lower tier gets no other connections.
    let accepted = b.accepted();
    wait_until("twelve more checks", || {
        assert_eq!((warm(&evener), connection_count(&evener, b.server.port)), (0, 0));
        (b.accepted() >= accepted + 12).then_some(())
    });
}

#[test]
fn warm_connections_are_closed_during_a_drain_and_when_their_server_is_down() {
    let (mut a, b) = (Counted::new(), Server::named("b"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {{ \"127.0.0.1:{}\", tier = 2 }}, \
         warm = 4, check = check.tcp {{ every = \"100ms\", fall = 2, rise = 2 }} }}",
        a.server.port, b.port
    );
    let mut evener = Evener::run(&config);
    let listen = evener.port("s");
    wait_until("all warm connections at the first tier", || {
        (connection_count(&evener, a.server.port) == 4).then_some(())
    });
    assert_eq!(connection_count(&evener, b.port), 0);
    a.server.stop();
    // The connections of the stopped server stay open. But the server is down, so no client gets them.
    wait_until("all warm connections at the second tier", || {
        (connection_count(&evener, b.port) == 4 && connection_count(&evener, a.server.port) == 0)
            .then_some(())
    });
    assert_eq!(who(listen), "b");
    let mut client = connect(listen);
    line(&mut client);
    evener.signal("TERM");
    wait_until("the warm connections to end", || (connection_count(&evener, b.port) == 1).then_some(()));
    drop(client);
    let since = Instant::now();
    assert_eq!(evener.end(), 0);
    assert!(since.elapsed() < DEADLINE / 2);
}
