//! The end of what clients have of a server: when a check takes it down (`on_down`), and when the operator wants it.

use crate::harness::dns::{self, A, Nameserver, host, query};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{Evener, Server, connect, line, wait_until};
use crate::udp::flows::{self, Echo};
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Answers checks with a status that can be set.
struct Health {
    server: Server,
    status: Arc<AtomicU16>,
}

impl Health {
    fn well() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let reported = Arc::clone(&status);
        let server = Server::start(move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            let code = reported.load(Ordering::Relaxed);
            let _ = write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n");
        });
        Self { server, status }
    }

    fn falls_ill(&self) {
        self.status.store(503, Ordering::Relaxed);
    }

    /// A service before `a` and, of the next tier, `b`; both are up as long as this is well.
    fn run(&self, protocol: &str, listen: u16, servers: [u16; 2], more: &str) -> Evener {
        let evener = Evener::run(&format!(
            "service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", pool = \"p\" }}\n\
             pool \"p\" {{ {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\", tier = 2 }}, {more}\n\
             check = check.http {{ port = {}, every = \"50ms\", timeout = \"5s\", fall = 1 }} }}",
            servers[0], servers[1], self.server.port
        ));
        wait_until("a to be up", || (evener.server("a")["verdict"] == "up").then_some(()));
        evener
    }
}

const CLOSE: &str = "on_down = \"close\",";

/// Whether a stream was reset.
fn is_reset(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

fn closed(evener: &Evener) -> u64 {
    evener.service_counter("s", "closed_down")
}

#[test]
fn relayed_connections_end_on_both_sides_only_where_it_is_wanted() {
    for more in [CLOSE, ""] {
        let health = Health::well();
        let (over, reported) = std::sync::mpsc::channel();
        let a = Server::start(move |mut stream| {
            let _ = stream.write_all(b"a\n");
            let mut piece = [0; 16];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                let _ = stream.write_all(&piece[..read]);
            }
            let _ = over.send(());
        });
        let evener = health.run("tcp", 0, [a.port, a.port], more);
        let listen = evener.port("s");
        let mut client = connect(listen);
        assert_eq!(line(&mut client), "a");
        health.falls_ill();
        wait_until("a to be down", || (evener.server("a")["verdict"] == "down").then_some(()));
        if more.is_empty() {
            client.write_all(b"x\n").unwrap();
            assert_eq!(line(&mut client), "x", "without the key a connection goes on");
            assert_eq!(closed(&evener), 0);
        } else {
            assert!(is_reset(&mut client), "half of what a server says is not all of it");
            reported.recv_timeout(crate::harness::DEADLINE).unwrap();
            assert_eq!(closed(&evener), 1);
            evener.expect_log("server_closed pool=p server=a reason=down closed=1");
        }
    }
}

#[test]
fn a_request_under_way_goes_to_another_server_or_fails() {
    let status = Arc::new(AtomicU16::new(200));
    let reported = Arc::clone(&status);
    // It answers nothing but its checks.
    let silent = Origin::start(move |wire, request| {
        if request.target() != "/health" {
            std::thread::sleep(crate::harness::DEADLINE);
        }
        wire.reply(&format!("{} X", reported.load(Ordering::Relaxed)), "", b"")
    });
    let b = Origin::named("b");
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", policy = \"first\", on_down = \"close\",\n\
         {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\" }},\n\
         check = check.http {{ path = \"/health\", every = \"50ms\", timeout = \"5s\", fall = 1 }} }}",
        silent.port, b.port
    ));
    let listen = evener.port("s");
    for name in ["a", "b"] {
        wait_until(name, || (evener.server(name)["verdict"] == "up").then_some(()));
    }
    let ask = |method: &'static str| {
        std::thread::spawn(move || {
            let fields = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
            let response = Wire::to(listen).ask(method, "/", fields).unwrap();
            (response.status(), response.text())
        })
    };
    let (get, post) = (ask("GET"), ask("POST"));
    let requested = || silent.requests().iter().filter(|request| request.target() == "/").count();
    wait_until("both requests", || (requested() == 2).then_some(()));
    status.store(503, Ordering::Relaxed);
    assert_eq!(get.join().unwrap(), (200, "b".to_owned()));
    assert_eq!(post.join().unwrap().0, 502, "what cannot be repeated is not");
    assert_eq!(closed(&evener), 2);
}

#[test]
fn tunnels_end_too() {
    let health = Health::well();
    let upgrades = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello\n",
        );
        let _ = stream.read(&mut [0; 1]);
    });
    let evener = health.run("http", 0, [upgrades.port; 2], CLOSE);
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").unwrap();
    while line(&mut client) != "hello" {}
    health.falls_ill();
    assert!(is_reset(&mut client));
    assert_eq!(closed(&evener), 1);
}

#[test]
fn flows_end_too() {
    let (health, a, b) = (Health::well(), Echo::start("a"), Echo::start("b"));
    let evener = health.run("udp", 0, [a.port, b.port], CLOSE);
    let listen = evener.port("s");
    let client = flows::client(listen);
    assert_eq!(flows::ask(&client, "x"), "a x");
    health.falls_ill();
    wait_until("its end", || (closed(&evener) == 1).then_some(()));
    assert_eq!(evener.status()["services"][0]["flows_active"], 0);
}

#[test]
fn queries_under_way_are_asked_elsewhere() {
    let (a, b) = (Nameserver::silent(), Nameserver::of(2));
    // The operator sends them away: the check would say the same of both.
    let evener =
        Evener::run(&dns::service(0, &[&a, &b], "policy = \"first\", dns = { query_timeout = \"19s\" }"));
    let listen = evener.port("d");
    let requested = query(7, "www.example", A);
    let ask = std::thread::spawn(move || host(&dns::ask_tcp(listen, &requested)));
    wait_until("the query", || (a.count() == 1).then_some(()));
    assert!(evener.run_command(&["maintenance", &a.name()]).status.success());
    let printed = evener.run_command(&["close", "--server", &a.name()]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout), format!("d/{}: 1 closed\n", a.name()));
    assert_eq!(ask.join().unwrap(), 2);
}

#[test]
fn the_operator_ends_all_of_a_server() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let echo = Echo::start("u");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\" }} }}\n\
         service \"u\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"u\" }} }}",
        a.port, b.port, echo.port
    ));
    let listen = evener.port("s");
    let other = evener.port("u");
    let mut clients: Vec<_> = (0..4).map(|_| connect(listen)).collect();
    let names: Vec<String> = clients.iter_mut().map(line).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with('a')).count(), 2);
    let printed = evener.run_command(&["close", "--server", "s/a"]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout), "s/a: 2 closed\n");
    for (client, name) in clients.iter_mut().zip(&names) {
        if name.starts_with('a') {
            assert!(is_reset(client));
        } else {
            client.write_all(b"x\n").unwrap();
            assert_eq!(line(client), "x");
        }
    }
    assert_eq!(evener.service_counter("s", "closed"), 2);
    evener.expect_log("server_closed pool=s server=a reason=operator closed=2");
    assert_eq!(flows::ask(&flows::client(other), "x"), "u x");
    let printed = evener.run_command(&["close", "--server", "u", "--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&printed.stdout).unwrap()["closed"], 1);
    let unknown = evener.run_command(&["close", "--server", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no server `nobody`"));
    assert_eq!(evener.run_command(&["close"]).status.code(), Some(2), "a number or a server");
}
