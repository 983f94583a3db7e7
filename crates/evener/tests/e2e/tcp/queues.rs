//! Queues of pools: clients that find every server at its limit wait in order, for a limited time.

use crate::harness::certificates::{ANY, Authority, shake};
use crate::harness::origin::{Origin, Wire, get, run_http};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, line, wait_until};
use crate::http::http2::client::{END_STREAM, Front, HEADERS, RST_STREAM, Raw, frame, request_block, within};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A gate that lets a limited number of requests pass.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<u32>, Condvar)>);

impl Gate {
    /// Waits until a request may pass.
    fn pass(&self) {
        let (count, changed) = &*self.0;
        let mut left = count.lock().unwrap();
        while *left == 0 {
            left = changed.wait_timeout(left, DEADLINE).unwrap().0;
        }
        *left -= 1;
    }

    /// Lets this many requests pass.
    fn open(&self, count: u32) {
        *self.0.0.lock().unwrap() += count;
        self.0.1.notify_all();
    }
}

/// A server that responds with the request's target when the gate lets the request pass.
fn gated() -> (Origin, Gate) {
    let gate = Gate::default();
    let server_gate = gate.clone();
    let origin = Origin::start(move |wire, request| {
        server_gate.pass();
        wire.reply("200 OK", "", request.target().as_bytes())
    });
    (origin, gate)
}

fn pool(port: u16, max: u32, more: &str) -> String {
    format!(
        "pool = pool \"p\" {{ {{ \"127.0.0.1:{port}\", name = \"a\", max = {max}, hard = {max} }}, {more} }}"
    )
}

/// Waits until this many clients have been queued.
fn expect_queued(evener: &Evener, count: u64) {
    wait_until("the clients to be queued", || (evener.service_counter("s", "queued") == count).then_some(()));
}

#[test]
fn clients_beyond_the_limit_of_a_server_are_served_later() {
    let origin = Origin::start(|wire, _| {
        std::thread::sleep(Duration::from_millis(50));
        wire.reply("200 OK", "", b"ok")
    });
    let evener = Evener::run_with(
        &format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {} }}",
            pool(origin.port, 2, "")
        ),
        &["--workers", "4"],
    );
    let listen = evener.port("s");
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| assert_eq!(get(listen, "/").status(), 200));
        }
    });
    assert!(evener.service_counter("s", "queued") > 0);
    assert_eq!(evener.service_counter("s", "no_server"), 0);
    assert_eq!(evener.server("a")["active"], 0);
}

#[test]
fn queued_requests_are_served_in_order() {
    let (origin, gate) = gated();
    let (evener, port) = run_http(&[], &pool(origin.port, 1, "queue = { timeout = \"1m\" }"));
    let mut clients = Vec::new();
    for number in 0..6 {
        let client = Wire::to(port);
        client.send(format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")).unwrap();
        clients.push(client);
        expect_queued(&evener, number);
    }
    gate.open(6);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response("POST").unwrap().text(), format!("/{number}"));
    }
    let expected: Vec<String> = (0..6).map(|number| format!("POST /{number}")).collect();
    assert_eq!(origin.lines(), expected);
}

#[test]
fn a_queue_has_a_timeout_and_a_size_and_can_be_disabled() {
    let (origin, gate) = gated();
    let (evener, port) = run_http(&[], &pool(origin.port, 1, "queue = { size = 1, timeout = \"700ms\" }"));
    let mut first = Wire::to(port);
    first.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the request", || (!origin.requests().is_empty()).then_some(()));
    let mut second = Wire::to(port);
    let began = Instant::now();
    second.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    expect_queued(&evener, 1);
    assert_eq!(get(port, "/third").status(), 503);
    assert_eq!(evener.service_counter("s", "queue_failures.full"), 1);
    assert_eq!(second.response("GET").unwrap().status(), 503);
    assert!(began.elapsed() >= Duration::from_millis(650));
    assert_eq!(evener.service_counter("s", "queue_failures.timeout"), 1);
    gate.open(1);
    assert_eq!(first.response("GET").unwrap().text(), "/first");

    let (evener, port) = run_http(&[], &pool(origin.port, 1, "queue = false"));
    first = Wire::to(port);
    first.send("GET /again HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the request", || (origin.requests().len() == 2).then_some(()));
    assert_eq!(get(port, "/").status(), 503);
    assert_eq!(evener.service_counter("s", "queued"), 0);
    gate.open(1);
    assert_eq!(first.response("GET").unwrap().text(), "/again");
}

#[test]
fn a_client_that_disconnects_leaves_the_queue() {
    let (origin, gate) = gated();
    let more = pool(origin.port, 1, "queue = { size = 1, timeout = \"1m\" }");
    let front = Front::run_ports(&[], "", &more);
    let tls = front.tls(&[]);
    let mut first = shake(front.port, "a.example", &tls).unwrap();
    first.write_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the request", || (!origin.requests().is_empty()).then_some(()));
    // No server has received the queued request, so the request is aborted regardless of its method.
    for (count, method) in [(1, "GET"), (2, "POST")] {
        let mut client = shake(front.port, "a.example", &tls).unwrap();
        write!(client, "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n").unwrap();
        expect_queued(&front.evener, count);
        drop(client);
        wait_until("the request to be aborted", || {
            (front.counter("requests_aborted") == count).then_some(())
        });
    }
    let mut client: Raw = front.raw();
    client.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    expect_queued(&front.evener, 3);
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    wait_until("the request to be aborted", || (front.counter("requests_aborted") == 3).then_some(()));
    client.headers(3, END_STREAM, &request_block("GET", "/last", &[]));
    expect_queued(&front.evener, 4);
    gate.open(2);
    client.expect(3, HEADERS);
    assert_eq!(origin.lines(), ["GET /first", "GET /last"]);
    assert_eq!(front.counter("queue_failures.full"), 0);
}

#[test]
fn streams_of_http2_are_queued_like_requests_of_http1() {
    let (origin, gate) = gated();
    let front = Front::run_ports(&[], "", &pool(origin.port, 1, "queue = { timeout = \"1m\" }"));
    within(async {
        let client = Arc::new(front.client().await);
        let all: Vec<_> = (0..5)
            .map(|number| {
                let client = Arc::clone(&client);
                let uri = format!("https://a.example:{}/{number}", front.port);
                tokio::spawn(async move { client.get(&uri).await.status() })
            })
            .collect();
        gate.open(5);
        for status in all {
            assert_eq!(status.await.unwrap(), 200);
        }
    });
    assert_eq!(front.counter("no_server"), 0);
}

#[test]
fn a_reload_that_raises_a_limit_releases_queued_requests() {
    let (origin, gate) = gated();
    let config = |max: u32| {
        let pool = pool(origin.port, max, "queue = { timeout = \"1m\" }");
        format!("service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {pool} }}")
    };
    let evener = Evener::run(&config(1));
    let listen = evener.port("s");
    let mut clients: Vec<Wire> = (0..2).map(|_| Wire::to(listen)).collect();
    clients.iter().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    expect_queued(&evener, 1);
    evener.reload(&config(2));
    wait_until("both requests to reach the server", || (origin.requests().len() == 2).then_some(()));
    gate.open(2);
    clients.iter_mut().for_each(|client| assert_eq!(client.response("GET").unwrap().status(), 200));
}

fn tcp(listen: u16, more: &str, pool: &str) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", {more} {pool} }}")
}

#[test]
fn a_queued_client_of_tcp_is_accepted_and_its_bytes_are_buffered() {
    let server = Server::named("a");
    let pool = pool(server.port, 1, "queue = { size = 2, timeout = \"1m\" }");
    // With one worker, the order of the clients is known.
    let evener = Evener::run_with(&tcp(0, "", &pool), &["--workers", "1"]);
    let listen = evener.port("s");
    let mut first = connect(listen);
    assert!(line(&mut first).starts_with("a "));
    // Bytes that the client sends while it is queued, and its shutdown, are forwarded later.
    let mut second = connect(listen);
    second.write_all(b"early").unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    expect_queued(&evener, 1);
    // A client that resets its connection leaves the queue.
    let third = connect(listen);
    expect_queued(&evener, 2);
    socket2::SockRef::from(&third).set_linger(Some(Duration::ZERO)).unwrap();
    drop(third);
    wait_until("the reset connection to end", || {
        (evener.status()["services"][0]["connections_active"] == 2).then_some(())
    });
    let mut fourth = connect(listen);
    expect_queued(&evener, 3);
    assert_eq!(
        connect(listen).read(&mut [0; 1]).unwrap_or(0),
        0,
        "a client beyond the size of the queue must be closed"
    );
    assert_eq!(evener.service_counter("s", "queue_failures.full"), 1);
    drop(first);
    let mut all = String::new();
    second.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("a ") && all.ends_with("\nearly"), "{all}");
    assert!(line(&mut fourth).starts_with("a "));
    fourth.write_all(b"hello\n").unwrap();
    assert_eq!(line(&mut fourth), "hello");
    assert_eq!(evener.service_counter("s", "no_server"), 1);
}

#[test]
fn a_queued_client_of_tcp_is_closed_after_the_queue_timeout() {
    let server = Server::named("a");
    let pool = pool(server.port, 1, "queue = { timeout = \"300ms\" }");
    let evener = Evener::run(&tcp(0, "", &pool));
    let listen = evener.port("s");
    let mut first = connect(listen);
    assert!(line(&mut first).starts_with("a "));
    assert_eq!(line(&mut connect(listen)), "");
    assert_eq!(evener.service_counter("s", "queue_failures.timeout"), 1);
    assert_eq!(evener.service_counter("s", "no_server"), 1);
    first.write_all(b"hello\n").unwrap();
    assert_eq!(line(&mut first), "hello");
}

#[test]
fn a_client_of_tls_is_queued_after_its_handshake() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let server = Server::named("a");
    let pool = pool(server.port, 1, "queue = { size = 1, timeout = \"1m\" }");
    let evener = Evener::run(&tcp(0, &format!("tls = {{ {keys} }},"), &pool));
    let listen = evener.port("s");
    let config = Arc::new(authority.client(ANY));
    let shake = || shake(listen, "a.example", &config).unwrap();
    let first = shake();
    wait_until("the server", || (evener.server("a")["active"] == 1).then_some(()));
    let reset = shake();
    expect_queued(&evener, 1);
    socket2::SockRef::from(&reset.sock).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    wait_until("the reset connection to end", || {
        (evener.status()["services"][0]["connections_active"] == 1).then_some(())
    });
    let mut second = shake();
    expect_queued(&evener, 2);
    drop(first);
    assert!(crate::harness::certificates::line_of(&mut second).starts_with("a "));
}

/// Many clients of TCP at a server with a limit of two connections: all are served, on every worker.
#[test]
fn permits_that_one_worker_releases_are_used_by_another() {
    let server = Server::start(|mut stream: TcpStream| {
        std::thread::sleep(Duration::from_millis(20));
        let _ = stream.write_all(b"served\n");
    });
    let pool = pool(server.port, 2, "queue = { timeout = \"1m\" }");
    let evener = Evener::run_with(&tcp(0, "", &pool), &["--workers", "4"]);
    let listen = evener.port("s");
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert_eq!(line(&mut connect(listen)), "served"));
        }
    });
    assert!(evener.service_counter("s", "queued") > 0);
    assert_eq!(evener.service_counter("s", "no_server"), 0);
}

#[test]
fn queued_clients_of_a_busy_server_do_not_delay_clients_of_another_server() {
    let (busy, gate) = gated();
    let idle = Origin::named("idle");
    let (evener, port) = run_http(
        &[],
        &format!(
            "proxy_from = {{ \"127.0.0.1\" }}, pool = pool \"p\" {{ queue = {{ timeout = \"1m\" }}, \
             {{ \"127.0.0.1:{}\", hard = 1, allow = {{ \"192.0.2.1\" }} }}, \
             {{ \"127.0.0.1:{}\", deny = {{ \"192.0.2.1\" }} }} }}",
            busy.port, idle.port
        ),
    );
    let request = |client: &str, target: &str| {
        let wire = Wire::to(port);
        let header = format!("PROXY TCP4 {client} 192.0.2.9 1 2\r\nGET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.send(header).unwrap();
        wire
    };
    let mut waiting: Vec<Wire> = (0..21).map(|_| request("192.0.2.1", "/busy")).collect();
    expect_queued(&evener, 20);
    assert_eq!(request("192.0.2.2", "/").response("GET").unwrap().status(), 200);
    gate.open(21);
    waiting.iter_mut().for_each(|wire| assert_eq!(wire.response("GET").unwrap().status(), 200));
}
