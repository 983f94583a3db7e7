//! Malformed requests and responses: Evener refuses messages and removes fields that HTTP/2 forbids.

use super::client::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Front, GOAWAY, HEADERS, RST_STREAM, block, frame,
    request_block, within,
};
use super::{NAME, report, reporting_server};
use crate::harness::origin::Origin;

const PROTOCOL_ERROR: u32 = 1;

#[test]
fn malformed_requests_reach_no_server() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let cases: [&[(&str, &str)]; 12] = [
        &[("connection", "close")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[("Upper", "case")],
        &[("a b", "space")],
        &[("", "empty")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[(":path", "/again")],
    ];
    for fields in cases {
        let mut client = front.raw();
        client.headers(1, END_STREAM, &request_block("GET", "/", fields));
        let response = client.of(1).unwrap();
        // A local error page with status 400 is also correct.
        let refused =
            response.is(RST_STREAM) || response.is(GOAWAY) || response.indexed_status() == Some(400);
        assert!(refused, "{fields:?}: {response:?}");
    }
    let blocks = [
        block(&[(":method", "GET"), (":scheme", "https"), (":path", "/")]),
        block(&[(":method", "GET"), (":scheme", "https"), (":authority", NAME)]),
        block(&[(":scheme", "https"), (":authority", NAME), (":path", "/")]),
        block(&[(":method", "GET"), (":authority", NAME), (":path", "/")]),
        block(&[(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "")]),
        block(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/ HTTP/1.1\r\nx: y"),
        ]),
        block(&[(":method", "GET"), (":scheme", "https"), (":authority", "a\r\nx: y"), (":path", "/")]),
        block(&[(":method", "GET"), (":scheme", "https"), (":authority", "u:p@a"), (":path", "/")]),
        block(&[(":method", "G T"), (":scheme", "https"), (":authority", NAME), (":path", "/")]),
        block(&[("x", "y"), (":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/")]),
        block(&[
            (":status", "200"),
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/"),
        ]),
    ];
    for (number, header) in blocks.iter().enumerate() {
        let mut client = front.raw();
        client.headers(1, END_STREAM, header);
        let response = client.of(1).unwrap();
        let refused =
            response.is(RST_STREAM) || response.is(GOAWAY) || response.indexed_status() == Some(400);
        assert!(refused, "field block {number}: {response:?}");
    }
    assert_eq!(origin.lines(), [""; 0]);
}

#[test]
fn a_body_that_contradicts_content_length_is_refused() {
    let origin = Origin::start(report);
    let front = Front::run(&[&origin], "");
    let header = request_block("POST", "/short", &[("content-length", "5")]);
    let send = |data: &[&[u8]]| {
        let mut client = front.raw();
        client.headers(1, if data.is_empty() { END_STREAM } else { 0 }, &header);
        for (at, part) in data.iter().enumerate() {
            client.send(&frame(DATA, u8::from(at + 1 == data.len()), 1, part));
        }
        let response = client.of(1).unwrap();
        let refused = response.is(RST_STREAM) && response.reason() == PROTOCOL_ERROR;
        // If Evener used the server's connection again, the server would take the next request for the rest of the body.
        client.headers(3, END_STREAM, &request_block("GET", "/next", &[]));
        client.expect(3, HEADERS);
        (refused, response)
    };
    let wrong: [&[&[u8]]; 4] = [&[], &[b"1234"], &[b"123456"], &[b"12", b"3456"]];
    for data in wrong {
        let (refused, response) = send(data);
        assert!(refused, "{data:?}: {response:?}");
    }
    assert!(!send(&[b"12", b"345"]).0);
    let lines = origin.lines();
    assert_eq!(lines.iter().filter(|line| *line == "GET /next").count(), 5, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| *line == "POST /short").count(), 1, "{lines:?}");
    let mut twice = front.raw();
    twice.headers(
        1,
        0,
        &request_block("POST", "/short", &[("content-length", "5"), ("content-length", "6")]),
    );
    twice.send(&frame(DATA, END_STREAM, 1, b"12345"));
    let response = twice.of(1).unwrap();
    assert!(response.is(RST_STREAM) || response.indexed_status() == Some(400), "{response:?}");
}

#[test]
fn connect_opens_no_tunnel() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let mut client = front.raw();
    client.headers(1, 0, &block(&[(":method", "CONNECT"), (":authority", "b.example:443")]));
    let response = client.of(1).unwrap();
    assert!(response.is(RST_STREAM) || response.indexed_status() != Some(200), "{response:?}");
    client.headers(3, END_STREAM, &request_block("GET", "/next", &[]));
    client.expect(3, HEADERS);
    assert_eq!(origin.lines(), ["GET /next"]);
}

#[test]
fn a_header_section_that_is_too_large_gives_431() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "header_bytes_max = 4096, header_fields_max = 16");
    within(async {
        let large = "x".repeat(1000);
        let names: Vec<String> = (0..20).map(|number| format!("x-{number}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
        for method in ["GET", "HEAD"] {
            let client = front.client().await;
            let bytes: Vec<(&str, &str)> =
                names[..6].iter().map(|name| (name.as_str(), large.as_str())).collect();
            assert_eq!(client.request(method, "/", &bytes).await.unwrap().status(), 431, "{method}");
            let response = client.request(method, "/", &many).await.unwrap();
            assert_eq!(response.status(), 431, "{method}");
            assert_eq!(response.body().is_empty(), method == "HEAD", "a response to HEAD has no body");
            assert_eq!(client.get("/next").await.status(), 200);
        }
    });
    assert_eq!(origin.lines(), ["GET /next"; 2]);
}

#[test]
fn each_part_of_a_split_cookie_counts_as_a_field() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "header_bytes_max = 4096, header_fields_max = 16");
    within(async {
        let client = front.client().await;
        let (fitting, too_long) = ("x".repeat(480), "x".repeat(502));
        let cases =
            [(16, "a=b", 200), (17, "a=b", 431), (8, fitting.as_str(), 200), (8, too_long.as_str(), 431)];
        for (pieces, value, status) in cases {
            let fields = vec![("cookie", value); pieces];
            assert_eq!(
                client.request("GET", "/", &fields).await.unwrap().status(),
                status,
                "{pieces} pieces"
            );
        }
    });
    assert_eq!(front.counter("headers_too_large"), 2);
    assert_eq!(front.counter("requests_bad"), 2);
}

#[test]
fn an_endless_header_section_ends_the_connection() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let before = front.memory();
    let mut client = front.raw();
    client.send(&frame(HEADERS, 0, 1, &request_block("GET", "/", &[])));
    let part = frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(15_000))]));
    (0..4000).for_each(|_| client.send(&part));
    let _ = client.end();
    assert!(front.memory().saturating_sub(before) < 16 << 20);
    let mut other = front.raw();
    other.headers(1, END_STREAM | END_HEADERS, &request_block("GET", "/", &[]));
    other.expect(1, HEADERS);
}

#[test]
fn fields_that_http_2_forbids_are_removed_from_responses() {
    let origin = Origin::start(|wire, request| {
        let fields = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
                      Proxy-Connection: keep-alive\r\nX-Kept: Value\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n";
        if request.target() == "/chunks" {
            wire.send(format!(
                "HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            ))
        } else {
            wire.reply("200 OK", fields, b"ok")
        }
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for path in ["/", "/chunks"] {
            let response = client.get(path).await;
            let mut names = response.field_names();
            names.retain(|name| *name != "content-length");
            assert_eq!(names, ["x-kept", "set-cookie"], "{path}");
            assert_eq!(response.field("x-kept"), "Value");
            assert_eq!(response.field_count("set-cookie"), 2);
            assert_eq!(response.text(), "ok");
        }
    });
}

#[test]
fn a_malformed_response_gives_502() {
    let origin = Origin::start(|wire, request| {
        let field = match request.target() {
            "/name" => "a b: c",
            "/empty" => ": c",
            "/nul" => "a: b\0c",
            "/control" => "a: b\u{1}c",
            "/delete" => "a: b\u{7f}c",
            "/lf" => "a: b\nc",
            "/lengths" => "Content-Length: 7",
            "/both" => "Transfer-Encoding: chunked",
            "/switch" => {
                return wire
                    .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
            }
            "/garbage" => return wire.send("SSH-2.0-OpenSSH\r\n\r\n"),
            "/status" => return wire.send("HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
            _ => return report(wire, request),
        };
        wire.reply("200 OK", &format!("{field}\r\n"), b"ok")
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        let bad =
            ["name", "empty", "nul", "control", "delete", "lf", "lengths", "switch", "garbage", "status"];
        for path in bad {
            let response = client.request("GET", &format!("/{path}"), &[]).await;
            let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(
                (response.status(), response.field("content-type")),
                (502, "text/html; charset=utf-8"),
                "{path}"
            );
        }
        // With both framings, another recipient might read the response differently.
        let both = client.request("GET", "/both", &[]).await;
        assert!(both.is_err() || both.unwrap().status() == 502);
        assert_eq!(client.get("/next").await.status(), 200);
    });
}

#[test]
fn interim_responses_are_not_forwarded() {
    let origin = Origin::start(|wire, request| {
        let many = if request.target() == "/many" { 40 } else { 3 };
        for _ in 0..many {
            wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
        }
        wire.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        report(wire, request)
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for _ in 0..3 {
            let response =
                client.put("POST", "/", &[("expect", "100-continue")], "hello".into()).await.unwrap();
            assert_eq!((response.status(), response.text().as_str()), (200, "POST / 5"));
            assert_eq!(response.field("link"), "");
        }
        assert_eq!(client.get("/many").await.status(), 502);
    });
}
