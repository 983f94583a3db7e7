//! The connections, requests and flows of a server are closed when a check marks the server down (`on_down`),
//! or by the operator.

use crate::harness::dns::{self, A, Nameserver, host, query};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{Evener, Server, connect, line, wait_until};
use crate::udp::flows::{self, Echo};
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// A server that responds to checks with a configurable status.
struct Health {
    server: Server,
    status: Arc<AtomicU16>,
}

impl Health {
    fn healthy() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let server_status = Arc::clone(&status);
        let server = Server::start(move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            let code = server_status.load(Ordering::Relaxed);
            let _ = write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n");
        });
        Self { server, status }
    }

    fn fail(&self) {
        self.status.store(503, Ordering::Relaxed);
    }

    /// A service with the server `a` and, in the next tier, `b`. Both are up until `fail`.
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

/// Returns true if a stream was reset.
fn is_reset(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

/// The number of connections, requests and flows that ended because a server went down.
fn closed(evener: &Evener) -> u64 {
    evener.service_counter("s", "closed.server_down")
}

#[test]
fn relayed_connections_of_a_down_server_are_closed_only_with_on_down() {
    for more in [CLOSE, ""] {
        let health = Health::healthy();
        let (sender, ends) = std::sync::mpsc::channel();
        let a = Server::start(move |mut stream| {
            let _ = stream.write_all(b"a\n");
            let mut piece = [0; 16];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                let _ = stream.write_all(&piece[..read]);
            }
            let _ = sender.send(());
        });
        let evener = health.run("tcp", 0, [a.port, a.port], more);
        let listen = evener.port("s");
        let mut client = connect(listen);
        assert_eq!(line(&mut client), "a");
        health.fail();
        wait_until("a to be down", || (evener.server("a")["verdict"] == "down").then_some(()));
        if more.is_empty() {
            client.write_all(b"x\n").unwrap();
            assert_eq!(line(&mut client), "x", "without on_down a connection must stay open");
            assert_eq!(closed(&evener), 0);
        } else {
            assert!(is_reset(&mut client), "the client must see a reset, not an orderly end");
            ends.recv_timeout(crate::harness::DEADLINE).unwrap();
            assert_eq!(closed(&evener), 1);
            evener.expect_log("server_closed pool=p server=a reason=down closed=1");
        }
    }
}

#[test]
fn a_request_in_flight_is_retried_on_another_server_or_fails() {
    let status = Arc::new(AtomicU16::new(200));
    let server_status = Arc::clone(&status);
    // This server responds only to checks.
    let silent = Origin::start(move |wire, request| {
        if request.target() != "/health" {
            std::thread::sleep(crate::harness::DEADLINE);
        }
        wire.reply(&format!("{} X", server_status.load(Ordering::Relaxed)), "", b"")
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
    let request = |method: &'static str| {
        std::thread::spawn(move || {
            let fields = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
            let response = Wire::to(listen).ask(method, "/", fields).unwrap();
            (response.status(), response.text())
        })
    };
    let (get, post) = (request("GET"), request("POST"));
    let request_count = || silent.requests().iter().filter(|request| request.target() == "/").count();
    wait_until("both requests", || (request_count() == 2).then_some(()));
    status.store(503, Ordering::Relaxed);
    assert_eq!(get.join().unwrap(), (200, "b".to_owned()));
    assert_eq!(post.join().unwrap().0, 502, "a request that is not idempotent must not be retried");
    assert_eq!(closed(&evener), 2);
}

#[test]
fn upgraded_connections_of_a_down_server_are_closed() {
    let health = Health::healthy();
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
    health.fail();
    assert!(is_reset(&mut client));
    assert_eq!(closed(&evener), 1);
}

#[test]
fn flows_of_a_down_server_are_closed() {
    let (health, a, b) = (Health::healthy(), Echo::start("a"), Echo::start("b"));
    let evener = health.run("udp", 0, [a.port, b.port], CLOSE);
    let listen = evener.port("s");
    let client = flows::client(listen);
    assert_eq!(flows::ask(&client, "x"), "a x");
    health.fail();
    wait_until("the flow to end", || (closed(&evener) == 1).then_some(()));
    assert_eq!(evener.status()["services"][0]["flows_active"], 0);
}

#[test]
fn queries_in_flight_are_sent_to_another_server() {
    let (a, b) = (Nameserver::silent(), Nameserver::of(2));
    // The operator closes the query of the silent server, because a check would mark both servers down.
    let evener =
        Evener::run(&dns::service(0, &[&a, &b], "policy = \"first\", dns = { query_timeout = \"19s\" }"));
    let listen = evener.port("d");
    let query = query(7, "www.example", A);
    let client = std::thread::spawn(move || host(&dns::ask_tcp(listen, &query)));
    wait_until("the query", || (a.count() == 1).then_some(()));
    assert!(evener.run_command(&["maintenance", &a.name()]).status.success());
    let output = evener.run_command(&["close", "--server", &a.name()]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("d/{}: 1 closed\n", a.name()));
    assert_eq!(client.join().unwrap(), 2);
}

#[test]
fn the_operator_closes_all_connections_and_flows_of_a_server() {
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
    let output = evener.run_command(&["close", "--server", "s/a"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "s/a: 2 closed\n");
    for (client, name) in clients.iter_mut().zip(&names) {
        if name.starts_with('a') {
            assert!(is_reset(client));
        } else {
            client.write_all(b"x\n").unwrap();
            assert_eq!(line(client), "x");
        }
    }
    assert_eq!(evener.service_counter("s", "closed.operator"), 2);
    evener.expect_log("server_closed pool=s server=a reason=operator closed=2");
    assert_eq!(flows::ask(&flows::client(other), "x"), "u x");
    let output = evener.run_command(&["close", "--server", "u", "--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["closed"], 1);
    let unknown = evener.run_command(&["close", "--server", "missing"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no server `missing`"));
    assert_eq!(evener.run_command(&["close"]).status.code(), Some(2), "close needs a number or a server");
}
