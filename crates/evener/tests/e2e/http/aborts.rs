//! Clients that disconnect while a slow server has their request: the request is aborted, and its permit is released.

use crate::harness::certificates::shake;
use crate::harness::origin::{Origin, Wire, http_service, run_http};
use crate::harness::{Evener, Server, wait_until};
use crate::http::http2::client::{END_STREAM, Front, RST_STREAM, frame, request_block};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A server that never completes its response to `/slow` and `/events`, with the number of these requests and
/// the number of their connections that ended.
struct Slow {
    server: Server,
    arrived: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Slow {
    fn start() -> Self {
        let (arrived, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (arrivals, ends) = (Arc::clone(&arrived), Arc::clone(&ended));
        let server = Server::start(move |stream| {
            let mut wire = Wire::new(stream);
            while let Ok(Some(request)) = wire.request() {
                match request.target() {
                    "/slow" => {}
                    "/events" => {
                        let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
                    }
                    _ => {
                        let _ = wire.reply("200 OK", "", b"ok");
                        continue;
                    }
                }
                arrivals.fetch_add(1, Ordering::SeqCst);
                // The client sends no more bytes: this waits for the end of the connection.
                let _ = wire.header();
                ends.fetch_add(1, Ordering::SeqCst);
                return;
            }
        });
        Self { server, arrived, ended }
    }

    fn pool(&self) -> String {
        format!("pool = pool \"p\" {{ {{ \"127.0.0.1:{}\", name = \"a\", max = 1 }} }}", self.server.port)
    }

    /// Waits until this many requests have arrived.
    fn expect(&self, count: usize) {
        wait_until("the request", || (self.arrived.load(Ordering::SeqCst) == count).then_some(()));
    }

    /// Waits until this many requests were aborted, and the permit is released.
    fn expect_end(&self, evener: &Evener, count: usize, what: &str) {
        wait_until(what, || (self.ended.load(Ordering::SeqCst) == count).then_some(()));
        wait_until(what, || (evener.server("a")["active"] == 0).then_some(()));
    }
}

const GET: &[u8] = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";

/// Disconnects a client.
type Disconnect = fn(&std::net::TcpStream);

#[test]
fn a_client_of_http1_that_disconnects_releases_the_permit() {
    let slow = Slow::start();
    let (evener, port) = run_http(&[], &slow.pool());
    let disconnects: [(&str, Disconnect); 3] = [
        ("close", |_| ()),
        ("shutdown", |stream| stream.shutdown(Shutdown::Write).unwrap()),
        ("reset", |stream| socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap()),
    ];
    let mut count = 0;
    let mut half_closed = Vec::new();
    for path in ["/slow", "/events"] {
        for (what, disconnect) in disconnects {
            let mut client = crate::harness::connect(port);
            write!(client, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            count += 1;
            slow.expect(count);
            disconnect(&client);
            if what == "shutdown" {
                half_closed.push(client);
            } else {
                drop(client);
            }
            slow.expect_end(&evener, count, what);
            assert_eq!(evener.service_counter("s", "requests_aborted"), count as u64, "{path} {what}");
        }
    }
    assert_eq!(crate::harness::origin::get(port, "/").text(), "ok");
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
    assert_eq!(evener.server("a")["verdict"], "up");
}

#[test]
fn a_client_that_disconnects_after_pipelined_requests_releases_the_permit() {
    let slow = Slow::start();
    let (evener, port) = run_http(&[], &slow.pool());
    let mut client = crate::harness::connect(port);
    client.write_all(&[GET, GET].concat()).unwrap();
    slow.expect(1);
    drop(client);
    slow.expect_end(&evener, 1, "the request to be aborted");
}

#[test]
fn a_client_of_tls_that_disconnects_releases_the_permit() {
    let slow = Slow::start();
    let front = Front::run_ports(&[], "", &slow.pool());
    let tls = front.tls(&[]);
    for (count, what) in [(1, "close"), (2, "close_notify"), (3, "close_notify without a close")] {
        let mut client = shake(front.port, "a.example", &tls).unwrap();
        client.write_all(GET).unwrap();
        slow.expect(count);
        if what != "close" {
            client.conn.send_close_notify();
            client.flush().unwrap();
        }
        let socket = client.sock.try_clone().unwrap();
        let _open = (what == "close_notify without a close").then_some(socket);
        drop(client);
        slow.expect_end(&front.evener, count, what);
    }
    // Streams of HTTP/2: a reset of one stream, then a close of the connection.
    let mut client = front.raw();
    client.headers(1, END_STREAM, &request_block("GET", "/slow", &[]));
    slow.expect(4);
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    slow.expect_end(&front.evener, 4, "a reset of the stream");
    client.headers(3, END_STREAM, &request_block("POST", "/slow", &[]));
    slow.expect(5);
    drop(client);
    slow.expect_end(&front.evener, 5, "a close of the connection");
    wait_until("all aborted requests to be counted", || {
        (front.counter("requests_aborted") == 5).then_some(())
    });
}

/// Returns true if a request with this method is aborted when its client closes.
fn is_aborted(method: &str, more: &str) -> bool {
    let slow = Slow::start();
    let (evener, port) = run_http(&[], &format!("{}, {more}", slow.pool()));
    let mut client = crate::harness::connect(port);
    write!(client, "{method} /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
    slow.expect(1);
    drop(client);
    // Evener sees the close long before this time is over.
    std::thread::sleep(Duration::from_millis(1000));
    evener.server("a")["active"] == 0
}

#[test]
fn requests_are_aborted_as_configured() {
    let (yes, no) = ("abort_on_close = true", "abort_on_close = false");
    let cases = [
        ("GET", "", true),
        ("PUT", "", true),
        ("POST", "", false),
        ("PATCH", "abort_on_close = \"idempotent\"", false),
        ("POST", yes, true),
        ("GET", no, false),
    ];
    std::thread::scope(|scope| {
        for (method, more, expected) in cases {
            scope.spawn(move || assert_eq!(is_aborted(method, more), expected, "{method} {more}"));
        }
    });
}

#[test]
fn a_client_that_shuts_down_its_write_side_gets_a_prompt_response() {
    let origin = Origin::start(|wire, _| wire.reply("200 OK", "", &vec![b'x'; 4 << 20]));
    let evener = Evener::run(&http_service(0, &[&origin], ""));
    let listen = evener.port("s");
    let mut client = crate::harness::connect(listen);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The client starts to read late.
    std::thread::sleep(Duration::from_millis(700));
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all.starts_with(b"HTTP/1.1 200 OK\r\n") && all.len() > 4 << 20, "{}", all.len());
}
