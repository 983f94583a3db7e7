//! Failures with HTTP/2: clients that disconnect, and servers that disconnect, are dead or silent. Other streams go on.

use super::client::{Front, HEADERS, RST_STREAM, frame, pause, request_block, upload, whole, within};
use super::{report, reporting_server};
use crate::harness::origin::{Framing, Origin, Wire, hang_up};
use crate::harness::{Server, reserved_port, wait_until};
use crate::tcp::pending::Silent;
use bytes::Bytes;
use h2::Reason;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A server, and the number of its exchanges that broke off: uploads without an end, and responses that were not read.
fn breakable() -> (Server, Arc<AtomicUsize>) {
    let broken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&broken);
    let server = Server::start(move |stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(header)) = wire.header() {
            let done = if header.starts_with("GET /torrent") {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").and_then(|()| {
                    let part = [format!("{:x}\r\n", 65_536).as_bytes(), &[b'x'; 65_536], b"\r\n"].concat();
                    loop {
                        (&*wire.stream).write_all(&part)?;
                    }
                })
            } else if header.starts_with("POST") {
                let body = wire.body(Framing::Chunked);
                body.and_then(|body| wire.reply("200 OK", "", format!("{}", body.len()).as_bytes()))
            } else if header.starts_with("GET /silent") {
                // The client sends no more bytes: this waits for the end of the connection.
                wire.header().and_then(|_| hang_up())
            } else {
                wire.reply("200 OK", "", b"ok")
            };
            if done.is_err() {
                count.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    });
    (server, broken)
}

#[test]
fn a_reset_stream_ends_at_the_server_and_other_streams_go_on() {
    let (server, broken) = breakable();
    let front = Front::run_ports(&[server.port], "", "");
    let name = format!("127.0.0.1:{}", server.port);
    let expect = |count: usize, what: &str| {
        wait_until(what, || (broken.load(Ordering::SeqCst) == count).then_some(()));
    };
    within(async {
        let client = front.client().await;
        // A reset in the middle of a response.
        let response = client.open("GET", "/torrent").await.unwrap().await.unwrap();
        pause(100).await;
        drop(response);
        pause(100).await;
        expect(1, "the download to end");
        // A reset in the middle of an upload.
        let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 100_000].into(), false).await.unwrap();
        pause(100).await;
        send.send_reset(Reason::CANCEL);
        drop(response);
        pause(100).await;
        expect(2, "the upload to end");
        // A reset before the server has responded.
        let response = client.open("GET", "/silent").await.unwrap();
        pause(100).await;
        drop(response);
        pause(100).await;
        expect(3, "the wait to end");
        assert_eq!(client.get("/").await.text(), "ok");
        wait_until("the server to have no active request", || {
            (front.evener.server(&name)["active"] == 0).then_some(())
        });
    });
    assert_eq!(front.counter("connections"), 1);
    assert_eq!(front.counter("requests_failed"), 0, "a client's reset is not a failed request");
    assert_eq!(front.evener.server(&name)["verdict"], "up");
}

#[test]
fn all_streams_end_when_their_client_disconnects() {
    let (server, broken) = breakable();
    let front = Front::run_ports(&[server.port], "", "");
    within(async {
        let client = front.client().await;
        let mut open = Vec::new();
        for path in ["/torrent", "/silent", "/torrent", "/silent"] {
            open.push(client.open("GET", path).await.unwrap());
        }
        let (_response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 100_000].into(), false).await.unwrap();
        pause(300).await;
        client.disconnect();
    });
    wait_until("every exchange to end", || (broken.load(Ordering::SeqCst) == 5).then_some(()));
    let name = format!("127.0.0.1:{}", server.port);
    wait_until("the server to have no active request", || {
        (front.evener.server(&name)["active"] == 0).then_some(())
    });
    within(async { assert_eq!(front.client().await.get("/").await.text(), "ok") });
}

#[test]
fn a_flood_of_resets_ends_the_connection_and_not_the_process() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let mut client = front.raw();
    let header = request_block("GET", "/", &[]);
    let mut all = Vec::new();
    for stream in (1..100_000).step_by(2) {
        all.extend(frame(HEADERS, 5, stream, &header));
        all.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if all.len() > 60_000 {
            client.send(&std::mem::take(&mut all));
        }
    }
    // The GOAWAY may be lost together with the bytes that were not read; the connection ends in any case.
    if let Some(last) = client.end() {
        assert_eq!(last.reason(), 11, "ENHANCE_YOUR_CALM");
    }
    assert!(front.counter("requests") < 10_000, "{}", front.counter("requests"));
    within(async { assert_eq!(front.client().await.get("/").await.status(), 200) });
}

#[test]
fn a_truncated_response_resets_its_stream() {
    let origin = Origin::start(|wire, request| {
        match request.target() {
            "/length" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?,
            "/chunk" => wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")?,
            "/chunks" => wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?,
            "/bad" => {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")?;
            }
            "/reset" => {
                wire.send("HTTP/1.1 200 OK\r\n\r\nhello")?;
                // The client has received the bytes before the reset.
                std::thread::sleep(Duration::from_millis(200));
                socket2::SockRef::from(&*wire.stream).set_linger(Some(Duration::ZERO))?;
            }
            _ => return report(wire, request),
        }
        hang_up()
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for path in ["/length", "/chunk", "/chunks", "/bad", "/reset"] {
            let error = client.request("GET", path, &[]).await.expect_err(path);
            assert!(error.is_reset() && error.is_remote(), "{path}: {error:?}");
            assert_ne!(error.reason(), Some(Reason::NO_ERROR), "{path}");
            assert_eq!(client.get("/next").await.status(), 200);
        }
    });
    assert_eq!(front.counter("connections"), 1);
    assert_eq!(front.counter("requests_failed"), 5);
}

#[test]
fn dead_silent_and_unavailable_servers_give_502_504_and_503() {
    let dead = reserved_port();
    let front = Front::run_ports(&[dead], "", "");
    within(async {
        let client = front.client().await;
        for method in ["GET", "HEAD", "POST"] {
            assert_eq!(client.request(method, "/", &[]).await.unwrap().status(), 502, "{method}");
        }
        assert_eq!(client.put("POST", "/", &[], vec![0; 500_000].into()).await.unwrap().status(), 502);
        assert!(client.get("/").await.text().contains("No server could be reached"));
    });
    let expect_reason = |status: u16, reason: &str| {
        wait_until(reason, || {
            let (status, reason) = (format!("status={status} "), format!("reason={reason} "));
            let log = front.evener.log();
            log.lines().any(|line| line.contains(&status) && line.contains(&reason)).then_some(())
        });
    };
    expect_reason(502, "connect_failed");
    let closing = Origin::start(|_, _| hang_up());
    front.reload(&[&closing], "");
    within(async { assert_eq!(front.client().await.get("/").await.status(), 502) });
    expect_reason(502, "server_closed");
    let silent = Origin::start(|wire, _| wire.header().map(|_| ()));
    front.reload(&[&silent], "response_timeout = \"300ms\", retries = 0");
    within(async {
        let client = front.client().await;
        let started = Instant::now();
        assert_eq!(client.get("/").await.status(), 504);
        assert!(started.elapsed() >= Duration::from_millis(280));
        assert_eq!(client.put("POST", "/", &[], "hello".into()).await.unwrap().status(), 504);
    });
    expect_reason(504, "response_timeout");
    front.reload(&[], "pool = pool \"none\" { { \"127.0.0.1:1\", state = \"maintenance\" } }");
    within(async { assert_eq!(front.client().await.get("/").await.status(), 503) });
    expect_reason(503, "no_server_up");
}

#[test]
fn a_response_before_the_upload_is_complete_reaches_the_client() {
    let early = |closes: bool| {
        Server::start(move |stream| {
            let mut wire = Wire::new(stream);
            while let Ok(Some(header)) = wire.header() {
                if header.starts_with("GET") {
                    let _ = wire.reply("200 OK", "", b"ok");
                    continue;
                }
                let _ = wire.reply("413 Content Too Large", "", b"too large");
                if closes {
                    return;
                }
                // The server neither reads nor closes.
                std::thread::sleep(Duration::from_secs(2));
                return;
            }
        })
    };
    for closes in [false, true] {
        let server = early(closes);
        let front = Front::run_ports(&[server.port], "", "");
        within(async {
            let client = front.client().await;
            for turn in 0..10 {
                let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
                let body = Bytes::from(vec![0; 32 << 20]);
                let sending = tokio::spawn(async move { upload(&mut send, body, true).await });
                let response =
                    whole(response).await.unwrap_or_else(|error| panic!("{closes} {turn}: {error:?}"));
                assert_eq!((response.status(), response.text().as_str()), (413, "too large"));
                // The stream is reset without an error, so the rest of the body is not sent.
                let _ = sending.await.unwrap();
                assert_eq!(client.get("/").await.text(), "ok");
            }
        });
        assert_eq!(front.counter("connections"), 1);
    }
}

#[test]
fn a_request_goes_to_another_server_when_the_first_is_dead() {
    let (mut a, b) = (Origin::named("a"), Origin::named("b"));
    let front = Front::run(&[&a, &b], "");
    within(async {
        let client = front.client().await;
        for _ in 0..10 {
            client.get("/").await;
        }
        a.kill();
        for _ in 0..10 {
            let response = client.get("/").await;
            assert_eq!((response.status(), response.text().as_str()), (200, "b"));
            let body = client.put("POST", "/", &[], vec![1; 200_000].into()).await.unwrap();
            assert_eq!(body.text(), "b");
        }
    });
    assert_eq!(front.counter("requests_failed"), 0);
}

#[test]
fn a_stream_waits_for_at_most_three_silent_servers_and_skips_all_refusing_servers() {
    let silent: Vec<Silent> = (0..4).map(|_| Silent::new()).collect();
    let ports: Vec<u16> = silent.iter().map(Silent::port).collect();
    let front = Front::run_ports(&ports, "", "connect_timeout = '200ms', passive = { failures = 0 }");
    within(async {
        let client = front.client().await;
        assert_eq!(client.get("/").await.status(), 502);
    });
    let status = front.evener.status();
    let servers = status["pools"][0]["servers"].as_array().unwrap();
    let timeouts =
        servers.iter().map(|server| server["counters"]["connect_failures"]["timeout"].as_u64().unwrap());
    assert_eq!(timeouts.sum::<u64>(), 3);
    let b = Origin::named("b");
    let ports: Vec<u16> = (0..300).map(|_| reserved_port()).chain([b.port]).collect();
    let front = Front::run_ports(&ports, "", "policy = 'first', passive = { failures = 0 }");
    within(async {
        let client = front.client().await;
        assert_eq!(client.get("/").await.text(), "b");
    });
}
