//! `warm`: connections to servers that are made before clients want them.

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

fn warm(evener: &Evener) -> u64 {
    evener.status()["services"][0]["warm"].as_u64().unwrap()
}

fn await_warm(evener: &Evener, count: u64) {
    wait_until(&format!("{count} warm connections"), || (warm(evener) == count).then_some(()));
}

/// The connections of a server, clients' and warm ones.
fn has(evener: &Evener, port: u16) -> u64 {
    let server = evener.server(&format!("127.0.0.1:{port}"));
    server["active"].as_u64().unwrap() + server["warm"].as_u64().unwrap()
}

/// A server that counts who came, says its name, sends back what it gets, and can be told to hang up.
struct Counted {
    server: Server,
    came: Arc<AtomicUsize>,
    shuts: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Counted {
    fn new() -> Self {
        let (came, shuts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (count, shut, keep) = (Arc::clone(&came), Arc::clone(&shuts), Arc::clone(&streams));
        let server = Server::start(move |stream| {
            count.fetch_add(1, Ordering::Relaxed);
            if shut.load(Ordering::Relaxed) {
                return;
            }
            let stream = Arc::new(stream);
            keep.lock().unwrap().push(Arc::downgrade(&stream));
            let mut stream = &*stream;
            let _ = stream.write_all(b"counted\n");
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                let _ = stream.write_all(&piece[..read]);
            }
        });
        Self { server, came, shuts, streams }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }

    /// Ends what it has.
    fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn clients_get_what_is_there_already_and_it_is_made_anew() {
    let (a, b) = (Server::named("a"), Counted::new());
    let evener = Evener::run_with(&config(0, &[a.port, b.server.port], "warm = 4"), &["--workers", "2"]);
    let listen = evener.port("s");
    await_warm(&evener, 4);
    assert_eq!((b.came(), has(&evener, a.port), has(&evener, b.server.port)), (2, 2, 2));
    let mut held: Vec<_> = (0..6).map(|_| connect(listen)).collect();
    // What a server says first is not lost, whenever it said it.
    let mut names: Vec<String> = held.iter_mut().map(line).collect();
    names.sort();
    assert_eq!(names, ["a 127.0.0.1", "a 127.0.0.1", "a 127.0.0.1", "counted", "counted", "counted"]);
    for client in &mut held {
        client.write_all(b"echo\n").unwrap();
        assert_eq!(line(client), "echo");
    }
    assert!(evener.service_counter("s", "warm_used") >= 2, "{}", evener.status());
    await_warm(&evener, 4);
    assert_eq!((b.came(), has(&evener, a.port), has(&evener, b.server.port)), (5, 5, 5));
    drop(held);
    wait_until("clients to be gone", || (has(&evener, b.server.port) == 2).then_some(()));
    assert_eq!(evener.server(&format!("127.0.0.1:{}", a.port))["counters"]["connections"], 3);
}

#[test]
fn one_that_died_is_not_seen_by_a_client() {
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
fn a_server_that_hangs_up_is_not_asked_in_haste() {
    let (server, mut away) = (Counted::new(), Server::named("away"));
    away.stop();
    server.shuts.store(true, Ordering::Relaxed);
    let more = "warm = 2, passive = { failures = 0 }";
    let config = config(0, &[server.server.port, away.port], more);
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let (since, before) = (Instant::now(), evener.cpu_seconds());
    wait_until("a few connections", || (server.came() >= 4).then_some(()));
    assert!(since.elapsed() > Duration::from_millis(2500), "{:?}", since.elapsed());
    let refused = evener.server(&format!("127.0.0.1:{}", away.port))["counters"]["connect_refused"].clone();
    assert!((1..=6).contains(&refused.as_u64().unwrap()), "{refused}");
    let used = evener.cpu_seconds() - before;
    assert!(used < 0.5, "{used} s of CPU time");
    // It thinks better of it.
    server.shuts.store(false, Ordering::Relaxed);
    await_warm(&evener, 1);
}

#[test]
fn they_leave_the_last_place_to_clients_and_make_way_for_them() {
    let server = Counted::new();
    let limited = format!("{{ \"127.0.0.1:{}\", max = 3 }}", server.server.port);
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", {limited}, warm = 8 }}");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("s");
    await_warm(&evener, 2);
    // Clients want all places: they get them.
    let mut held: Vec<_> = (0..3).map(|_| connect(listen)).collect();
    held.iter_mut().for_each(|client| assert_eq!(line(client), "counted"));
    assert_eq!((warm(&evener), has(&evener, server.server.port)), (0, 3));
    assert_eq!(who(listen), "", "it is full");
    held.truncate(1);
    await_warm(&evener, 1);
    assert_eq!(has(&evener, server.server.port), 2);
}

#[test]
fn they_keep_no_client_out_whoever_made_them() {
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
    let made = || evener.server("q")["warm"] == 7 && has(&evener, first) == 7;
    wait_until("those of two pools", || made().then_some(()));
    for port in [listen, other, alone, overflowing] {
        let mut clients: Vec<_> = (0..8).map(|_| connect(port)).collect();
        clients.iter_mut().for_each(|client| assert_eq!(line(client), "counted", "at {port}"));
        assert_eq!(who(port), if port == alone { "" } else { "b" }, "it is really full");
        let name = if port == alone { "q".to_owned() } else { format!("127.0.0.1:{first}") };
        wait_until("the surplus to be closed", || (evener.server(&name)["warm"] == 0).then_some(()));
        assert_eq!(evener.server(&name)["active"], 8);
        drop(clients);
        wait_until("them again", || made().then_some(()));
    }
}

#[test]
fn they_end_with_what_they_were_made_for() {
    let (a, b) = (Counted::new(), Counted::new());
    let (first, second) = (a.server.port, b.server.port);
    let evener = Evener::run(&config(0, &[first, second], "warm = 6"));
    let listen = evener.port("s");
    await_warm(&evener, 6);
    let ends = |port: u16, expected: [u64; 2]| {
        let both = || [has(&evener, first), has(&evener, second)];
        wait_until(&format!("{expected:?} after {port}"), || (both() == expected).then_some(()));
    };
    ends(0, [3, 3]);
    // Whoever does not get clients gets none of these, and the other one gets them all.
    for command in ["maintenance", "drain"] {
        assert!(evener.run_command(&[command, &format!("127.0.0.1:{first}")]).status.success());
        ends(first, [0, 6]);
        assert!(evener.run_command(&["ready", &format!("127.0.0.1:{first}")]).status.success());
        ends(first, [3, 3]);
    }
    evener.reload(&config(0, &[first, second], "warm = 2"));
    await_warm(&evener, 2);
    evener.reload(&config(0, &[second], "warm = 2"));
    wait_until("the server that left", || (has(&evener, second) == 2).then_some(()));
    // The same server at another address.
    let named = |port: u16, more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{port}\", name = \"one\" }}, {more} }}"
        )
    };
    evener.reload(&named(second, "warm = 3"));
    await_warm(&evener, 3);
    let before = a.came();
    evener.reload(&named(first, "warm = 3"));
    wait_until("the new address", || (a.came() == before + 3).then_some(()));
    assert_eq!(who(listen), "counted");
    for more in ["send_proxy = \"v1\"", "warm = 0", "warm = 3, protocol = \"http\""] {
        evener.reload(&named(first, "warm = 3"));
        await_warm(&evener, 3);
        evener.reload(&named(first, more));
        await_warm(&evener, 0);
    }
}

#[test]
fn without_failover_a_lower_tier_gets_none_and_the_pool_is_down_with_its_first_tier() {
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
    // It is checked a while longer, and gets nothing else.
    let came = b.came();
    wait_until("a second or so", || {
        assert_eq!((warm(&evener), has(&evener, b.server.port)), (0, 0));
        (b.came() >= came + 12).then_some(())
    });
}

#[test]
fn a_drain_does_not_wait_for_them_and_a_server_that_goes_loses_them() {
    let (mut a, b) = (Counted::new(), Server::named("b"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {{ \"127.0.0.1:{}\", tier = 2 }}, \
         warm = 4, check = check.tcp {{ every = \"100ms\", fall = 2, rise = 2 }} }}",
        a.server.port, b.port
    );
    let mut evener = Evener::run(&config);
    let listen = evener.port("s");
    wait_until("all at the first tier", || (has(&evener, a.server.port) == 4).then_some(()));
    assert_eq!(has(&evener, b.port), 0);
    a.server.stop();
    // Connections that it has go on; but as it is down, nobody gets them.
    wait_until("all at the second tier", || {
        (has(&evener, b.port) == 4 && has(&evener, a.server.port) == 0).then_some(())
    });
    assert_eq!(who(listen), "b");
    let mut held = connect(listen);
    line(&mut held);
    evener.signal("TERM");
    wait_until("the warm ones to end", || (has(&evener, b.port) == 1).then_some(()));
    drop(held);
    let since = Instant::now();
    assert_eq!(evener.end(), 0);
    assert!(since.elapsed() < DEADLINE / 2);
}
