//! HTTP: large bodies between slow, early and pipelining peers. The proxy moves them without a copy where it can.

use crate::harness::origin::{Framing, Origin, Wire, chunked, hang_up, pattern, run_http};
use crate::harness::{Server, wait_until};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// A server that responds to `/SIZE?FRAMING` with that many bytes. The framing is `length`, `close`, or the size of the
/// chunks.
fn sized() -> Origin {
    Origin::start(|wire, request| {
        let (size, framing) = request.target()[1..].split_once('?').unwrap();
        let body = pattern(3, size.parse().unwrap());
        match framing {
            "length" => wire.reply("200 OK", "", &body),
            "close" => {
                wire.send([b"HTTP/1.1 200 OK\r\n\r\n", &body[..]].concat())?;
                hang_up()
            }
            chunk => {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                wire.send(chunked(&body, chunk.parse().unwrap()))
            }
        }
    })
}

/// Sizes below, at and above the sizes of buffers and pipes.
const SIZES: [usize; 10] = [0, 1, 65_535, 65_536, 131_072, 200_000, 262_144, 400_001, 1 << 20, 5_000_000];

#[test]
fn pipelined_responses_of_every_size_arrive_in_order_and_unchanged() {
    let origin = sized();
    let (evener, port) = run_http(&[&origin], "");
    for framing in ["length", "1000000", "1000", "70000"] {
        let mut client = Wire::to(port);
        let requests = SIZES.map(|size| format!("GET /{size}?{framing} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.send(requests.concat()).unwrap();
        for size in SIZES {
            assert!(client.response("GET").unwrap().body == pattern(3, size), "{framing} {size}");
        }
    }
    assert_eq!(origin.connections(), 1, "the connection to the server stays open");
    assert_eq!(evener.service_counter("s", "bytes_out"), 4 * SIZES.iter().sum::<usize>() as u64);
}

#[test]
fn responses_that_end_with_their_connection_arrive_unchanged() {
    let origin = sized();
    let (_evener, port) = run_http(&[&origin], "");
    for size in SIZES {
        let response = Wire::to(port).ask("GET", &format!("/{size}?close"), "").unwrap();
        assert!(response.body == pattern(3, size), "{size}");
        let mut old = Wire::to(port);
        old.send(format!("GET /{size}?close HTTP/1.0\r\n\r\n")).unwrap();
        let response = old.response("GET").unwrap();
        assert_eq!(response.framing, Framing::Close, "{size}");
        assert!(response.body == pattern(3, size), "{size}, HTTP/1.0");
    }
}

#[test]
fn pipelined_uploads_of_every_size_arrive_unchanged() {
    let origin = Origin::start(|wire, request| wire.reply("200 OK", "", request.target().as_bytes()));
    let (evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    let (mut sent, mut counted) = (Vec::new(), 0);
    for size in SIZES {
        let body = pattern(size as u64, size);
        let length = format!("PUT /{size} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
        let chunks = format!("PUT /{size}c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        counted += length.len() + chunks.len() + 2 * size;
        sent.extend([length.as_bytes(), &body, chunks.as_bytes(), &chunked(&body, 300_000)].concat());
    }
    let writer = Arc::clone(&client.stream);
    std::thread::scope(|scope| {
        scope.spawn(|| std::io::Write::write_all(&mut &*writer, &sent).unwrap());
        for size in SIZES {
            for end in ["", "c"] {
                assert_eq!(client.response("PUT").unwrap().text(), format!("/{size}{end}"));
            }
        }
    });
    assert_eq!(origin.faults(), Vec::<String>::new());
    for (request, size) in origin.requests().chunks(2).zip(SIZES) {
        let body = pattern(size as u64, size);
        assert!(request.iter().all(|request| request.body == body), "{size}");
    }
    assert_eq!(evener.service_counter("s", "bytes_in"), counted as u64);
}

#[test]
fn a_slow_reader_gets_every_byte() {
    const SIZE: usize = 12_000_000;
    let origin = sized();
    let (_evener, port) = run_http(&[&origin], "");
    for framing in ["length", "1000000", "close"] {
        let slow = Wire::to(port);
        slow.send(format!("GET /{SIZE}?{framing} HTTP/1.0\r\n\r\n")).unwrap();
        let (mut received, mut piece) = (Vec::new(), vec![0; 300_000]);
        loop {
            let read = (&*slow.stream).read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..read]);
            if read == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(received.ends_with(&pattern(3, SIZE)), "{framing}");
        let other = Wire::to(port).ask("GET", "/10?length", "").unwrap();
        assert_eq!(other.body, pattern(3, 10));
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_body_disturbs_no_other_client() {
    const SIZE: usize = 64 << 20;
    let server = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(request)) = wire.request() {
            let size = if request.target() == "/large" { SIZE } else { 300_000 };
            if wire.reply("200 OK", "", &pattern(5, size)).is_err() {
                return;
            }
        }
    });
    let pool = format!("pool = pool \"p\" {{ {{ \"127.0.0.1:{}\", name = \"a\", max = 1 }} }}", server.port);
    let (evener, port) = run_http(&[], &pool);
    for _ in 0..5 {
        let mut leaving = Wire::to(port);
        leaving.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        leaving.header().unwrap();
        drop(leaving);
        wait_until("the permit", || (evener.server("a")["active"] == 0).then_some(()));
        let other = Wire::to(port).ask("GET", "/small", "").unwrap();
        assert!(other.body == pattern(5, 300_000));
    }
}

#[test]
fn a_response_that_breaks_off_is_never_complete_for_the_client() {
    let origin = Origin::start(|wire, request| {
        let body = pattern(3, 2_000_000);
        match request.target() {
            "/length" => wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000001\r\n\r\n")?,
            _ => wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1e8481\r\n")?,
        }
        wire.send(&body)?;
        hang_up()
    });
    let (evener, port) = run_http(&[&origin], "");
    for target in ["/length", "/chunk"] {
        assert!(Wire::to(port).ask("GET", target, "").is_err(), "{target}");
    }
    assert_eq!(evener.service_counter("s", "requests_failed"), 2);
}

#[test]
fn an_upload_whose_client_breaks_off_is_never_complete_for_the_server() {
    let origin = Origin::start(|wire, _| wire.reply("200 OK", "", b"complete"));
    let (evener, port) = run_http(&[&origin], "");
    let leaving = Wire::to(port);
    leaving.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000001\r\n\r\n").unwrap();
    leaving.send(pattern(1, 2_000_000)).unwrap();
    drop(leaving);
    wait_until("the request to fail", || {
        (evener.service_counter("s", "requests_failed") + evener.service_counter("s", "requests_aborted")
            == 1)
            .then_some(())
    });
    assert!(origin.requests().is_empty());
    assert_eq!(origin.faults(), Vec::<String>::new(), "the server saw a reset");
}
