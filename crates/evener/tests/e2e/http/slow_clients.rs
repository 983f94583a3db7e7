//! Slow clients that send or read a body a little at a time, so that it never stalls: only the exchanges below the minimum
//! rate are ended.

use crate::harness::origin::{Framing, Origin, Wire, run_http};
use crate::harness::{Server, wait_until};
use crate::http::http2::client::{DATA, read};
use crate::http::http2::client::{END_STREAM, Front, HEADERS, Raw, frame, request_block, within};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A minimum rate far above the rate of the slow clients of these tests.
const MIN_RATE: &str = "min_rate = { rate = 20000, window = \"1s\" }, stall_timeout = \"10m\"";
const STEP: Duration = Duration::from_millis(50);

fn server_of(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// A server that responds to `/torrent` with a large body, and to other requests with a small one.
fn torrent() -> Origin {
    Origin::start(|wire, request| {
        if request.target() == "/torrent" {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
            return wire.send(vec![0; 64 << 20]);
        }
        wire.reply("200 OK", "", &[b'x'; 1000])
    })
}

/// Sends a body byte by byte until the peer responds or closes, and returns the response.
fn trickle_up<S: Read + Write>(stream: &mut S, set_timeout: impl Fn(&mut S)) -> String {
    let header = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
    stream.write_all(header.as_bytes()).unwrap();
    set_timeout(stream);
    let mut response = Vec::new();
    wait_until("the upload to be ended", || {
        std::thread::sleep(STEP);
        let closed = stream.write_all(b"x").and_then(|()| stream.flush()).is_err();
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => return Some(()),
            Ok(read) => response.extend_from_slice(&piece[..read]),
            Err(_) if closed => return Some(()),
            Err(_) => {}
        }
        response.ends_with(b"\n").then_some(())
    });
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn a_request_body_below_the_minimum_rate_gives_408() {
    let origin = torrent();
    let front = Front::run(&[&origin], MIN_RATE);
    let set_timeout = |stream: &std::net::TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    };
    let mut client = crate::harness::certificates::shake(front.port, "a.example", &front.tls(&[])).unwrap();
    let response = trickle_up(&mut client, |client| set_timeout(&client.sock));
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert_eq!((front.counter("slow_requests"), front.counter("closed.idle_timeout")), (1, 0));

    let (evener, port) = run_http(&[&origin], MIN_RATE);
    let mut client = crate::harness::connect(port);
    let response = trickle_up(&mut client, |client| set_timeout(client));
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert_eq!(evener.service_counter("s", "slow_requests"), 1);
    let name = server_of(origin.port);
    wait_until("the server to have no active request", || {
        (evener.server(&name)["active"] == 0).then_some(())
    });
    assert_eq!(
        evener.server(&name)["counters"]["response_timeouts"],
        0,
        "a slow client must not count as a server's timeout"
    );
}

#[test]
fn streams_with_a_request_body_below_the_minimum_rate_are_reset() {
    let origin = torrent();
    let front = Front::run(&[&origin], MIN_RATE);
    let mut client = front.raw();
    let streams = [1, 3, 5];
    for stream in streams {
        client.headers(stream, 0, &request_block("POST", "/", &[]));
    }
    let name = server_of(origin.port);
    wait_until("the streams to be ended", || {
        std::thread::sleep(STEP);
        for stream in streams {
            client.send(&frame(DATA, 0, stream, b"x"));
        }
        (front.counter("slow_requests") == 3).then_some(())
    });
    wait_until("the server to have no active request", || {
        (front.evener.server(&name)["active"] == 0).then_some(())
    });
    let mut reset = Vec::new();
    while reset.len() < streams.len() {
        let frame = client.next().unwrap();
        reset.extend(frame.reset_stream());
    }
    reset.sort_unstable();
    assert_eq!(reset, streams);
    client.headers(7, END_STREAM, &request_block("GET", "/", &[]));
    // The connection stays open.
    client.expect(7, HEADERS);
}

/// Reads a little at a time until the response was ended.
fn trickle_down(stream: &mut impl Read, ended: impl Fn() -> bool) {
    wait_until("the response to be ended", || {
        std::thread::sleep(STEP);
        let _ = stream.read(&mut [0; 100]);
        ended().then_some(())
    });
}

#[test]
fn a_response_that_is_read_below_the_minimum_rate_is_ended() {
    let origin = torrent();
    let name = server_of(origin.port);
    let (evener, port) = run_http(&[&origin], MIN_RATE);
    let mut client = crate::harness::connect(port);
    client.write_all(b"GET /torrent HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    trickle_down(&mut client, || evener.service_counter("s", "slow_responses") == 1);
    wait_until("the server to have no active request", || {
        (evener.server(&name)["active"] == 0).then_some(())
    });

    // The same through TLS, and as a stream of HTTP/2 with large windows.
    let front = Front::run(&[&origin], MIN_RATE);
    let mut client = crate::harness::certificates::shake(front.port, "a.example", &front.tls(&[])).unwrap();
    client.write_all(b"GET /torrent HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    trickle_down(&mut client, || front.counter("slow_responses") == 1);
    let mut client = with_large_windows(&front);
    client.headers(1, END_STREAM, &request_block("GET", "/torrent", &[]));
    trickle_down(&mut client, || front.counter("slow_responses") == 2);
    wait_until("the server to have no active request", || {
        (front.evener.server(&name)["active"] == 0).then_some(())
    });
}

const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

fn initial_window(size: u32) -> Vec<u8> {
    [&[0, 4][..], &size.to_be_bytes()].concat()
}

/// A client whose windows never limit the server.
fn with_large_windows(front: &Front) -> Raw {
    let mut client = front.raw();
    client.send(&frame(SETTINGS, 0, 0, &initial_window(0x7fff_ffff)));
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()));
    client
}

#[test]
fn streams_whose_window_opens_byte_by_byte_are_reset() {
    let origin = torrent();
    let front = Front::run(&[&origin], MIN_RATE);
    let mut client = front.raw();
    client.send(&frame(SETTINGS, 0, 0, &initial_window(0)));
    let streams: Vec<u32> = (0..10).map(|number| number * 2 + 1).collect();
    for stream in &streams {
        // A small response that is not delivered occupies its server, too.
        let path = if stream % 4 == 1 { "/torrent" } else { "/" };
        client.headers(*stream, END_STREAM, &request_block("GET", path, &[]));
    }
    let name = server_of(origin.port);
    wait_until("the streams to be ended", || {
        std::thread::sleep(STEP);
        for stream in &streams {
            client.send(&frame(WINDOW_UPDATE, 0, *stream, &1_u32.to_be_bytes()));
        }
        (front.counter("slow_responses") == 10).then_some(())
    });
    wait_until("the server to have no active request", || {
        (front.evener.server(&name)["active"] == 0).then_some(())
    });
    assert_eq!(front.counter("closed.idle_timeout"), 0);
    client.send(&frame(SETTINGS, 0, 0, &initial_window(65_535)));
    client.headers(101, END_STREAM, &request_block("GET", "/", &[]));
    // The connection stays open.
    client.expect(101, HEADERS);
}

/// A slow server: a response of occasional events, a late response, one side of a dialogue, and another protocol.
fn patient() -> Server {
    Server::start(|stream| {
        let mut wire = Wire::new(stream);
        let pause = || std::thread::sleep(Duration::from_millis(300));
        while let Ok(Some(header)) = wire.header() {
            let target = header.split(' ').nth(1).unwrap().to_owned();
            match target.as_str() {
                "/events" => {
                    let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    for _ in 0..10 {
                        pause();
                        let _ = wire.send("6\r\nevent\n\r\n");
                    }
                    let _ = wire.send("0\r\n\r\n");
                }
                "/late" => {
                    (0..10).for_each(|_| pause());
                    let _ = wire.reply("200 OK", "", b"late");
                }
                "/dialogue" => {
                    let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    let body = wire.body(Framing::Chunked).unwrap_or_default();
                    let _ = wire.send(crate::harness::origin::chunked(&body, 1000));
                }
                _ => {
                    let header =
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
                    let _ = wire.send(header);
                    let _ = wire.body(Framing::Length(10)).and_then(|body| wire.send(body));
                    return;
                }
            }
        }
    })
}

#[test]
fn a_client_or_server_without_bytes_to_send_is_not_slow() {
    let server = patient();
    let front = Front::run_ports(&[server.port], "", MIN_RATE);
    let http1 = std::thread::scope(|scope| {
        let request = |target: &'static str| {
            let mut client =
                crate::harness::certificates::shake(front.port, "a.example", &front.tls(&[])).unwrap();
            let more = if target == "/upgrade" { "Connection: upgrade\r\nUpgrade: x\r\n" } else { "" };
            let framing = if target == "/dialogue" { "Transfer-Encoding: chunked\r\n" } else { "" };
            let close = if target == "/events" || target == "/late" { "Connection: close\r\n" } else { "" };
            let header = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{more}{framing}{close}\r\n");
            client.write_all(header.as_bytes()).unwrap();
            let body: &[&str] = match target {
                "/upgrade" => &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
                "/dialogue" => &["1\r\na\r\n"; 10],
                _ => &[],
            };
            for piece in body {
                std::thread::sleep(Duration::from_millis(300));
                client.write_all(piece.as_bytes()).unwrap();
            }
            if target == "/dialogue" {
                client.write_all(b"0\r\n\r\n").unwrap();
            }
            let mut all = String::new();
            let _ = client.read_to_string(&mut all);
            all
        };
        let threads: Vec<_> = ["/events", "/late", "/upgrade", "/dialogue"]
            .map(|target| scope.spawn(move || request(target)))
            .into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(http1[0].matches("event").count(), 10, "{}", http1[0]);
    assert!(http1[1].ends_with("late"), "{}", http1[1]);
    assert!(http1[2].ends_with("0123456789"), "{}", http1[2]);
    assert!(http1[3].contains("aaaaaaaaaa"), "{}", http1[3]);
    within(async {
        let client = front.client().await;
        let (events, late) = tokio::join!(client.get("/events"), client.get("/late"));
        assert_eq!((events.text().matches("event").count(), late.text().as_str()), (10, "late"));
    });
    for name in ["slow_requests", "slow_responses", "closed.idle_timeout"] {
        assert_eq!(front.counter(name), 0, "{name}");
    }
}

#[test]
fn a_client_that_reads_late_but_fast_is_not_slow() {
    let origin = torrent();
    let front = Front::run(&[&origin], MIN_RATE);
    within(async {
        let mut builder = h2::client::Builder::new();
        let client = front.client_with(builder.initial_connection_window_size(8 << 20)).await;
        let response = client.open("GET", "/torrent").await.unwrap().await.unwrap();
        assert_eq!(read(&mut response.into_body()).await.unwrap().len(), 64 << 20);
    });
    assert_eq!(front.counter("slow_responses"), 0);
}

#[test]
fn without_a_minimum_rate_a_body_may_arrive_byte_by_byte() {
    let origin = Origin::start(|wire, request| wire.reply("200 OK", "", &request.body));
    let (_evener, port) = run_http(&[&origin], "min_rate = false");
    let mut client = Wire::to(port);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n").unwrap();
    for _ in 0..30 {
        std::thread::sleep(STEP);
        client.send("x").unwrap();
    }
    assert_eq!(client.response("POST").unwrap().body.len(), 30);
}

#[test]
fn a_server_that_reads_a_request_below_the_minimum_rate_gives_504() {
    let stop = Arc::new(AtomicBool::new(false));
    let open = Arc::new(Mutex::new(Vec::new()));
    let (server_stop, server_open) = (Arc::clone(&stop), Arc::clone(&open));
    let server = Server::start(move |mut stream| {
        while !server_stop.load(Ordering::Relaxed) {
            std::thread::sleep(STEP);
            let _ = stream.read(&mut [0; 100]);
        }
        server_open.lock().unwrap().push(stream);
    });
    let front = Front::run_ports(&[server.port], "", &format!("{MIN_RATE}, retries = 0"));
    let mut client = crate::harness::certificates::shake(front.port, "a.example", &front.tls(&[])).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").unwrap();
    let sock = client.sock.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        // Writes without end: the response ends the connection.
        while client.write_all(&[b'x'; 16_384]).is_ok() {}
        client
    });
    wait_until("the request to be ended", || (front.counter("requests_failed") == 1).then_some(()));
    stop.store(true, Ordering::Relaxed);
    drop(sock);
    drop(writer.join().unwrap());
    assert_eq!(front.counter("slow_requests"), 0, "a slow server must not count as a slow client");
    assert_eq!(front.evener.server(&server_of(server.port))["counters"]["response_timeouts"], 1);
}
