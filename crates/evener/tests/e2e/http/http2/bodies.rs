//! Bodies over HTTP/2: every byte arrives in both directions in any framing, and no more bytes are buffered than allowed.

use super::client::{
    DATA, END_STREAM, Front, HEADERS, frame, pause, read, request_block, upload, whole, within,
};
use super::report;
use crate::harness::origin::{Framing, Origin, chunked, pattern};
use crate::harness::wait_until;
use bytes::Bytes;
use h2::client::Builder;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// A server that sends the body back, in the framing that the path requests.
fn echo() -> Origin {
    Origin::start(|wire, request| match request.target() {
        "/chunks" => {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            wire.send(chunked(&request.body, 10_007))
        }
        "/tiny" => {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            wire.send(chunked(&request.body, 3))
        }
        "/close" => {
            wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            wire.send(&request.body)?;
            crate::harness::origin::hang_up()
        }
        "/old" => {
            wire.send("HTTP/1.0 200 OK\r\n\r\n")?;
            wire.send(&request.body)?;
            crate::harness::origin::hang_up()
        }
        _ => wire.reply("200 OK", "", &request.body),
    })
}

#[test]
fn bodies_of_every_size_and_framing_are_echoed_unchanged() {
    let origin = echo();
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for size in [0, 1, 16_383, 16_385, 65_535, 65_536, 131_073, 1_000_003] {
            let body = pattern(size as u64, size);
            let length = size.to_string();
            let with_length = [("content-length", length.as_str())];
            for path in ["/length", "/chunks", "/tiny", "/close", "/old"] {
                for (method, fields) in [("POST", &with_length[..]), ("PUT", &[][..])] {
                    let response = client.put(method, path, fields, body.clone().into()).await.unwrap();
                    assert_eq!(response.status(), 200);
                    assert!(*response.body() == *body, "{method} {path} {size}");
                    let length = if path == "/length" { size.to_string() } else { String::new() };
                    assert_eq!(response.field("content-length"), length);
                }
            }
        }
    });
    assert_eq!(origin.faults(), [""; 0]);
    for request in origin.requests() {
        let expected =
            if request.method() == "POST" { Framing::Length(request.body.len()) } else { Framing::Chunked };
        assert_eq!(request.framing, expected, "{}", request.header);
    }
}

#[test]
fn large_bodies_arrive_unchanged_in_both_directions() {
    let origin = echo();
    let front = Front::run(&[&origin], "");
    let body = Bytes::from(pattern(7, 64 * MIB));
    within(async {
        let client = front.client().await;
        for path in ["/length", "/chunks"] {
            let response = client.put("PUT", path, &[], body.clone()).await.unwrap();
            assert!(*response.body() == *body, "{path}: {} bytes", response.body().len());
        }
    });
}

#[test]
fn many_streams_carry_bodies_in_both_directions_concurrently() {
    let origin = echo();
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        let all = (0..100_u64).map(|number| {
            let (client, body) = (&client, pattern(number, 20_000 + number as usize * 3_001));
            async move {
                let path = ["/length", "/chunks", "/close"][number as usize % 3];
                let response = client.put("POST", path, &[], body.clone().into()).await.unwrap();
                assert!(*response.body() == *body, "stream {number}: {} bytes", response.body().len());
            }
        });
        join_all(all).await;
    });
}

/// Polls all futures until each is complete.
async fn join_all(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn at_most_128_streams_are_open_concurrently() {
    let (in_flight, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let highest = Arc::clone(&most);
    let origin = Origin::start(move |wire, request| {
        most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        in_flight.fetch_sub(1, Ordering::SeqCst);
        report(wire, request)
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        // The service announces its limit of streams before its first response.
        client.get("/").await;
        assert_eq!(client.streams_max(), 128);
        join_all((0..300).map(|number| {
            let client = &client;
            async move {
                let response = client.get(&format!("/{number}")).await;
                assert_eq!(response.text(), format!("GET /{number} 0"));
            }
        }))
        .await;
    });
    let most = highest.load(Ordering::SeqCst);
    assert!((100..=128).contains(&most), "{most} concurrent streams");
}

#[test]
fn a_body_in_very_small_frames_arrives_whole() {
    let origin = Origin::start(report);
    let front = Front::run(&[&origin], "");
    for (turn, count) in [10, 100, 1000, 5000].into_iter().enumerate() {
        let mut client = front.raw();
        // All frames are sent in one write, so that no later frame wakes the connection.
        let mut all = frame(HEADERS, 4, 1, &request_block("POST", "/", &[]));
        for _ in 1..count {
            all.extend(frame(DATA, 0, 1, b"x"));
        }
        all.extend(frame(DATA, END_STREAM, 1, b"x"));
        client.send(&all);
        let response = client.expect(1, HEADERS);
        assert!(!response.ends_stream(), "{count}: {response:?}");
        assert_eq!(client.of(1).unwrap().text(), format!("POST / {count}"));
        assert_eq!(origin.requests()[turn].body.len(), count);
    }
}

#[test]
fn a_response_that_exactly_fills_the_window_ends_without_a_window_update() {
    let origin = echo();
    let front = Front::run(&[&origin], "");
    within(async {
        for path in ["/length", "/chunks", "/tiny", "/close"] {
            let client = front.client_with(Builder::new().initial_window_size(5_000)).await;
            let (response, mut send) = client.begin("POST", path, &[]).await.unwrap();
            upload(&mut send, vec![b'x'; 5_000].into(), true).await.unwrap();
            let mut body = response.await.unwrap().into_body();
            // The client does not release the data, so it sends no WINDOW_UPDATE.
            let (mut unreleased, mut read) = (Vec::new(), 0);
            while let Some(data) = body.data().await {
                unreleased.push(data.unwrap());
                read = unreleased.iter().map(Bytes::len).sum();
            }
            assert_eq!(read, 5_000, "{path}");
        }
    });
}

#[test]
fn trailers_of_requests_and_responses_are_dropped() {
    let origin = Origin::start(|wire, request| {
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")?;
        wire.send(chunked(&request.body, 4).strip_suffix(b"\r\n").unwrap())?;
        wire.send("X-Sum: 1\r\n\r\n")
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for _ in 0..3 {
            let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
            upload(&mut send, Bytes::from_static(b"hello, world"), false).await.unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", "5".parse().unwrap());
            send.send_trailers(trailers).unwrap();
            let response = whole(response).await.unwrap();
            assert_eq!(response.text(), "hello, world");
            assert!(!response.has_trailers());
        }
    });
    assert_eq!((origin.connections(), origin.faults()), (1, Vec::new()));
}

/// A server that responds to `/torrent` with 1 GiB, as fast as the client reads.
fn torrent() -> Origin {
    Origin::start(|wire, request| {
        if request.target() != "/torrent" {
            return report(wire, request);
        }
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1024 * MIB))?;
        let part = vec![b'x'; MIB];
        (0..1024).try_for_each(|_| wire.send(&part))
    })
}

#[test]
fn unread_responses_block_no_other_stream_and_fill_no_memory() {
    let origin = torrent();
    let front = Front::run(&[&origin], "");
    within(async {
        // The client's window is large for the connection, and small for each stream.
        let mut builder = Builder::new();
        let client = front
            .client_with(builder.initial_window_size(64 * 1024).initial_connection_window_size(8 << 20))
            .await;
        client.get("/").await;
        let before = front.memory();
        let mut unread = Vec::new();
        for _ in 0..20 {
            unread.push(client.open("GET", "/torrent").await.unwrap().await.unwrap().into_body());
        }
        for _ in 0..200 {
            assert_eq!(client.get("/other").await.text(), "GET /other 0");
        }
        pause(500).await;
        let grown = front.memory().saturating_sub(before) / MIB as u64;
        assert!(grown < 32, "the memory grew by {grown} MiB");
        // A client that begins to read receives the bytes.
        let mut body = unread.pop().unwrap();
        let mut taken = 0;
        while taken < 8 * MIB {
            let data = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            taken += data.len();
        }
    });
}

#[test]
fn a_client_that_reads_nothing_fills_no_memory() {
    let origin = torrent();
    let front = Front::run(&[&origin], "");
    let mut client = front.raw();
    let before = front.memory();
    // Every window is as large as possible, and the client reads no byte.
    let mut all = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    all.extend(frame(8, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()));
    for stream in (1..=39).step_by(2) {
        all.extend(frame(HEADERS, 5, stream, &request_block("GET", "/torrent", &[])));
    }
    client.send(&all);
    wait_until("all requests to reach the server", || (origin.requests().len() == 20).then_some(()));
    let mut other = front.raw();
    other.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    other.expect(1, HEADERS);
    std::thread::sleep(Duration::from_millis(500));
    let grown = front.memory().saturating_sub(before) / MIB as u64;
    assert!(grown < 32, "the memory grew by {grown} MiB");
    let cpu = front.evener.cpu_seconds();
    std::thread::sleep(Duration::from_millis(500));
    assert!(front.evener.cpu_seconds() - cpu < 0.25, "a blocked connection must use no CPU time");
}

#[test]
fn an_upload_that_the_server_does_not_read_is_blocked() {
    let origin = crate::harness::Server::start(|mut stream| {
        let mut some = [0; 1024];
        let _ = stream.read(&mut some);
        if some.starts_with(b"GET") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
            return;
        }
        std::thread::sleep(Duration::from_secs(60));
    });
    let front = Front::run_ports(&[origin.port], "", "");
    within(async {
        let client = front.client().await;
        client.get("/").await;
        let before = front.memory();
        let mut stuck = Vec::new();
        for _ in 0..5 {
            let (response, mut send) = client.begin("POST", "/stuck", &[]).await.unwrap();
            let task = tokio::spawn(async move { upload(&mut send, vec![0; 64 * MIB].into(), true).await });
            stuck.push((response, task));
        }
        pause(1000).await;
        assert!(
            stuck.iter().all(|(_, task)| !task.is_finished()),
            "the upload completed although the server did not read it"
        );
        let grown = front.memory().saturating_sub(before) / MIB as u64;
        assert!(grown < 16, "the memory grew by {grown} MiB");
        assert_eq!(client.get("/other").await.text(), "ok", "other streams must go on");
        stuck.iter().for_each(|(_, task)| task.abort());
    });
}

#[test]
fn fast_streams_are_not_delayed_by_slow_streams_of_the_same_connection() {
    let origin = Origin::start(|wire, request| {
        if request.target() != "/slow" {
            return wire.reply("200 OK", "", &vec![b'f'; MIB]);
        }
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..20 {
            wire.send("5\r\ntick\n\r\n")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        wire.send("0\r\n\r\n")
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        let slow: Vec<_> = [client.open("GET", "/slow").await, client.open("GET", "/slow").await].into();
        for _ in 0..20 {
            assert_eq!(client.get("/fast").await.body().len(), MIB);
        }
        for one in slow {
            let mut body = one.unwrap().await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap(), b"tick\n".repeat(20));
        }
    });
}
