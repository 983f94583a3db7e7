//! Limits of HTTP/2: request rates, timeouts, and the end of connections when the program ends.

use super::client::{
    END_STREAM, Front, GOAWAY, HEADERS, Raw, frame, pause, read, request_block, upload, within,
};
use super::{report, reporting_server};
use crate::harness::origin::Origin;
use crate::harness::wait_until;
use std::time::{Duration, Instant};

#[test]
fn a_client_above_its_request_rate_gets_429() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "per_client = { request_rate = \"5/s\", exceeded = \"reject\" }");
    within(async {
        let client = front.client().await;
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(client.get("/").await.status());
        }
        assert_eq!(statuses[0], 200);
        assert!(statuses.contains(&429), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
        assert!(origin.requests().len() < 30);
        while client.get("/").await.status() == 429 {
            pause(50).await;
        }
    });
    assert_eq!(front.counter("connections"), 1);
    assert!(front.counter("limited") > 0);
}

/// Reads until the connection ends, and returns how long that took.
fn time_to_end(mut client: Raw) -> Duration {
    let started = Instant::now();
    let _ = client.end();
    started.elapsed()
}

#[test]
fn an_idle_connection_ends_with_a_goaway_after_the_keepalive_timeout() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "keepalive_timeout = \"500ms\"");
    within(async {
        let client = front.client().await;
        client.get("/").await;
        let started = Instant::now();
        client.closed().await;
        let time = started.elapsed();
        assert!(time > Duration::from_millis(400) && time < Duration::from_secs(10), "{time:?}");
    });
    wait_until("the idle timeout to be counted", || {
        (front.counter("closed.idle_timeout") == 1).then_some(())
    });
}

#[test]
fn a_silent_client_is_closed_in_every_state_of_the_connection() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "keepalive_timeout = \"500ms\", header_timeout = \"500ms\"");
    // No byte after the handshake of TLS.
    let no_preface = Raw::silent(&front);
    // The connection preface, and no response to PING.
    let preface_only = front.raw();
    let mut served = front.raw();
    served.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    served.expect(1, HEADERS);
    // A header section without its end, and a truncated frame.
    let mut half_section = front.raw();
    half_section.send(&frame(HEADERS, 0, 1, &request_block("GET", "/", &[])));
    let mut half_frame = front.raw();
    half_frame.send(&frame(HEADERS, 5, 1, &request_block("GET", "/", &[]))[..20]);
    for (what, client) in [
        ("no preface", no_preface),
        ("preface only", preface_only),
        ("served", served),
        ("half a header section", half_section),
        ("half a frame", half_frame),
    ] {
        println!("waiting for the end of the connection: {what}");
        let time = time_to_end(client);
        assert!(time < Duration::from_secs(15), "{what}: {time:?}");
    }
    wait_until("all connections to end", || {
        (front.evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
}

#[test]
fn a_stream_with_a_stalled_upload_or_response_ends() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/torrent" {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
            return wire.send(vec![0; 64 << 20]);
        }
        report(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"500ms\"");
    within(async {
        // A stalled upload.
        let client = front.client().await;
        let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 1000].into(), false).await.unwrap();
        assert!(response.await.is_err());
        // A response that the client does not read.
        let client = front.client().await;
        let unread = client.open("GET", "/torrent").await.unwrap().await.unwrap();
        // A later read finds an error, not a complete response: the stream or the connection has ended.
        pause(2_000).await;
        let mut body = unread.into_body();
        assert!(read(&mut body).await.is_err());
    });
}

#[test]
fn a_slow_server_does_not_trigger_the_timeouts_of_the_client() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(1500));
        report(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"300ms\", keepalive_timeout = \"300ms\"");
    within(async {
        let client = front.client().await;
        assert_eq!(client.get("/").await.status(), 200);
    });
}

#[test]
fn a_stream_in_flight_is_completed_when_the_program_ends() {
    let origin = Origin::start(|wire, _| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
        std::thread::sleep(Duration::from_millis(1500));
        wire.send("world")
    });
    let mut front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        let idle = front.client().await;
        let response = client.open("GET", "/").await.unwrap().await.unwrap();
        front.evener.signal("TERM");
        idle.closed().await;
        assert_eq!(read(&mut response.into_body()).await.unwrap(), b"helloworld");
        assert!(client.open("GET", "/").await.is_err(), "a draining connection must refuse new streams");
        client.closed().await;
    });
    assert_eq!(front.evener.end(), 0);
}

#[test]
fn a_goaway_announces_the_end_of_the_program() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(1000));
        report(wire, request)
    });
    let front = Front::run(&[&origin], "");
    let mut client = front.raw();
    client.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    wait_until("the request", || (!origin.requests().is_empty()).then_some(()));
    front.evener.signal("TERM");
    assert_eq!(client.expect(1, GOAWAY).reason(), 0);
    client.expect(1, HEADERS);
}

#[test]
fn clients_that_do_not_acknowledge_a_ping_do_not_delay_the_end_of_the_program() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(500));
        report(wire, request)
    });
    let mut front = Front::run(&[&origin], "");
    // A client without a request, one with a completed request, and one with a request in flight.
    let _silent = front.raw();
    let mut served = front.raw();
    served.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    served.expect(1, HEADERS);
    let mut busy = front.raw();
    busy.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    wait_until("the request", || (origin.requests().len() == 2).then_some(()));
    front.evener.signal("TERM");
    busy.expect(1, GOAWAY);
    busy.expect(1, HEADERS);
    // The drain timeout is longer than the deadline of this test.
    assert_eq!(front.evener.end(), 0);
}

#[test]
fn a_tarpitted_client_leaves_no_active_request_behind() {
    let origin = Origin::start(|wire, _| wire.header().map(|_| ()));
    let front =
        Front::run(&[&origin], "per_client = { request_rate = \"1/m\", exceeded = { tarpit = \"500ms\" } }");
    within(async {
        let client = front.client().await;
        let first = client.open("GET", "/").await.unwrap();
        let second = client.open("GET", "/").await.unwrap();
        assert!(second.await.is_err());
        assert!(first.await.is_err());
    });
    let name = format!("127.0.0.1:{}", origin.port);
    wait_until("the server to have no active request", || {
        (front.evener.server(&name)["active"] == 0).then_some(())
    });
}

#[test]
fn a_stalled_stream_ends_although_other_streams_go_on() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/torrent" {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
            return wire.send(vec![0; 64 << 20]);
        }
        report(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"500ms\"");
    within(async {
        let mut builder = h2::client::Builder::new();
        let client = front.client_with(builder.initial_connection_window_size(8 << 20)).await;
        let mut unread = client.open("GET", "/torrent").await.unwrap().await.unwrap().into_body();
        let (upload_response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 1000].into(), false).await.unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert_eq!(client.get("/").await.status(), 200);
            pause(20).await;
        }
        let name = format!("127.0.0.1:{}", origin.port);
        assert_eq!(front.evener.server(&name)["active"], 0, "both stalled exchanges must have ended");
        assert!(upload_response.await.is_err());
        assert!(read(&mut unread).await.is_err(), "the truncated response must end with an error");
    });
}

#[test]
fn the_response_timeout_does_not_cut_off_a_response_that_began_during_the_upload() {
    let origin = crate::harness::Server::start(|stream| {
        let mut wire = crate::harness::origin::Wire::new(stream);
        wire.header().unwrap();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let body = wire.body(crate::harness::origin::Framing::Chunked).unwrap();
        for byte in body {
            std::thread::sleep(Duration::from_millis(150));
            wire.send([b"1\r\n", &[byte][..], b"\r\n"].concat()).unwrap();
        }
        wire.send("0\r\n\r\n").unwrap();
    });
    let front = Front::run_ports(&[origin.port], "", "response_timeout = \"300ms\"");
    within(async {
        let client = front.client().await;
        let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        let response = response.await.unwrap();
        upload(&mut send, "0123456789".into(), true).await.unwrap();
        assert_eq!(read(&mut response.into_body()).await.unwrap(), b"0123456789");
    });
}
