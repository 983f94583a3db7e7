//! HTTP/2 at its limits: who asks too much, who takes too long, and how a connection ends when the program does.

use super::client::{
    END_STREAM, Front, GOAWAY, HEADERS, Raw, frame, pause, read, request_block, upload, within,
};
use super::{reporting_server, tell};
use crate::harness::origin::Origin;
use crate::harness::wait_until;
use std::time::{Duration, Instant};

#[test]
fn who_asks_too_often_is_told_429() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "per_client = { request_rate = \"5/s\", exceeded = \"reject\" }");
    within(async {
        let client = front.client().await;
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(client.get("/").await.status);
        }
        assert_eq!(statuses[0], 200);
        assert!(statuses.contains(&429), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
        assert!(origin.requests().len() < 30);
        while client.get("/").await.status == 429 {
            pause(50).await;
        }
    });
    assert_eq!(front.counter("connections"), 1);
    assert!(front.counter("limited") > 0);
}

/// Reads until the connection ends; how long that took.
fn ends(mut client: Raw) -> Duration {
    let started = Instant::now();
    let _ = client.end();
    started.elapsed()
}

#[test]
fn a_connection_without_streams_ends_with_a_goaway() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "keepalive_timeout = \"500ms\"");
    within(async {
        let client = front.client().await;
        client.get("/").await;
        let started = Instant::now();
        client.driver.await.unwrap().unwrap();
        let time = started.elapsed();
        assert!(time > Duration::from_millis(400) && time < Duration::from_secs(10), "{time:?}");
    });
    wait_until("it to be counted", || (front.counter("idle_timeouts") == 1).then_some(()));
}

#[test]
fn a_client_that_says_nothing_more_is_closed_whatever_it_said() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "keepalive_timeout = \"500ms\", header_timeout = \"500ms\"");
    // Nothing at all after the handshake.
    let nothing = Raw::silent(&front);
    // The beginning, and no answer to whatever is asked (a PING is).
    let beginning = front.raw();
    let mut responded = front.raw();
    responded.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    assert_eq!(responded.of(1).unwrap().kind, HEADERS);
    // Half a head.
    let mut half = front.raw();
    half.send(&frame(HEADERS, 0, 1, &request_block("GET", "/", &[])));
    let mut cut = front.raw();
    cut.send(&frame(HEADERS, 5, 1, &request_block("GET", "/", &[]))[..20]);
    for (what, client) in [
        ("nothing", nothing),
        ("beginning", beginning),
        ("answered", responded),
        ("half", half),
        ("cut", cut),
    ] {
        println!("waiting for the end of {what}");
        let time = ends(client);
        assert!(time < Duration::from_secs(15), "{what}: {time:?}");
    }
    wait_until("all to be gone", || {
        (front.evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
}

#[test]
fn a_stream_that_stands_still_ends() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/torrent" {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
            return wire.send(vec![0; 64 << 20]);
        }
        tell(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"500ms\"");
    within(async {
        // An upload that does not go on.
        let client = front.client().await;
        let (response, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 1000].into(), false).await.unwrap();
        assert!(response.await.is_err());
        // An answer that nobody takes.
        let client = front.client().await;
        let unread = client.open("GET", "/torrent").await.unwrap().await.unwrap();
        // Who reads on after that finds no whole answer, be it the stream that ended or the connection.
        pause(2_000).await;
        let mut body = unread.into_body();
        assert!(read(&mut body).await.is_err());
    });
}

#[test]
fn a_slow_server_is_no_client_that_stands_still() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(1500));
        tell(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"300ms\", keepalive_timeout = \"300ms\"");
    within(async {
        let client = front.client().await;
        assert_eq!(client.get("/").await.status, 200);
    });
}

#[test]
fn a_stream_in_flight_ends_well_when_the_program_ends() {
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
        idle.driver.await.unwrap().unwrap();
        assert_eq!(read(&mut response.into_body()).await.unwrap(), b"helloworld");
        assert!(client.open("GET", "/").await.is_err(), "no new stream");
        client.driver.await.unwrap().unwrap();
    });
    assert_eq!(front.evener.end(), 0);
}

#[test]
fn the_end_of_the_program_is_told_before_it_comes() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(1000));
        tell(wire, request)
    });
    let front = Front::run(&[&origin], "");
    let mut client = front.raw();
    client.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    wait_until("the request", || (!origin.requests().is_empty()).then_some(()));
    front.evener.signal("TERM");
    let reported = client.of(1).unwrap();
    assert_eq!((reported.kind, reported.reason()), (GOAWAY, 0), "{reported:?}");
    assert_eq!(client.of(1).unwrap().kind, HEADERS);
}

#[test]
fn clients_that_do_not_answer_a_ping_do_not_hold_the_program() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(Duration::from_millis(500));
        tell(wire, request)
    });
    let mut front = Front::run(&[&origin], "");
    // One that never asked for anything, one that did, and one whose request is under way.
    let _silent = front.raw();
    let mut served = front.raw();
    served.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    assert_eq!(served.of(1).unwrap().kind, HEADERS);
    let mut busy = front.raw();
    busy.headers(1, END_STREAM, &request_block("GET", "/", &[]));
    wait_until("the request", || (origin.requests().len() == 2).then_some(()));
    front.evener.signal("TERM");
    assert_eq!(busy.of(1).unwrap().kind, GOAWAY);
    assert_eq!(busy.of(1).unwrap().kind, HEADERS);
    // The drain timeout is longer than what is waited for here.
    assert_eq!(front.evener.end(), 0);
}

#[test]
fn a_client_that_is_kept_waiting_leaves_nothing_behind() {
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
    wait_until("the server to be left", || (front.evener.server(&name)["active"] == 0).then_some(()));
}

#[test]
fn a_stream_that_stands_still_ends_though_others_go_on() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/torrent" {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
            return wire.send(vec![0; 64 << 20]);
        }
        tell(wire, request)
    });
    let front = Front::run(&[&origin], "stall_timeout = \"500ms\"");
    within(async {
        let mut builder = h2::client::Builder::new();
        let client = front.client_with(builder.initial_connection_window_size(8 << 20)).await;
        let mut unread = client.open("GET", "/torrent").await.unwrap().await.unwrap().into_body();
        let (upload_answer, mut send) = client.begin("POST", "/", &[]).await.unwrap();
        upload(&mut send, vec![0; 1000].into(), false).await.unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert_eq!(client.get("/").await.status, 200);
            pause(20).await;
        }
        let name = format!("127.0.0.1:{}", origin.port);
        assert_eq!(front.evener.server(&name)["active"], 0, "both exchanges are over");
        assert!(upload_answer.await.is_err());
        assert!(read(&mut unread).await.is_err(), "no end that looks whole");
    });
}

#[test]
fn an_answer_that_began_before_the_upload_ended_has_its_time() {
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
