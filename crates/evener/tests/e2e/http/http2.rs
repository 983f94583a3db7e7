//! HTTP/2 with clients: negotiation of the protocol, well-formed requests and responses, and routing.

mod bodies;
pub(crate) mod client;
mod failures;
mod limits;
mod malformed;

use crate::harness::certificates::{curl, shake};
use crate::harness::origin::{Message, Origin, Wire};
use crate::harness::{DEADLINE, have, wait_until};
use client::{Front, NAME, Reply, within};
use std::io;
use std::process::Command;

/// A server whose response reports the method, the target and the body length of the request.
fn reporting_server() -> Origin {
    Origin::start(report)
}

fn report(wire: &mut Wire, request: &Message) -> io::Result<()> {
    let report = format!("{} {} {}", request.method(), request.target(), request.body.len());
    let body = if request.method() == "HEAD" { "" } else { &report };
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", report.len()))
}

#[test]
fn alpn_negotiates_http2_unless_it_is_disabled() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let negotiated = |offered: &[&str]| {
        let client = shake(front.port, NAME, &front.tls(offered))?;
        Ok::<_, io::Error>(client.conn.alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(negotiated(&["h2", "http/1.1"]).unwrap(), Some(b"h2".to_vec()));
    assert_eq!(
        negotiated(&["http/1.1", "h2"]).unwrap(),
        Some(b"h2".to_vec()),
        "the server's preference decides"
    );
    assert_eq!(negotiated(&["http/1.1"]).unwrap(), Some(b"http/1.1".to_vec()));
    assert_eq!(negotiated(&[]).unwrap(), None);
    front.reload(&[&origin], "http2 = false");
    assert_eq!(negotiated(&["h2", "http/1.1"]).unwrap(), Some(b"http/1.1".to_vec()));
    assert!(negotiated(&["h2"]).is_err());
}

#[test]
fn curl_gets_responses_over_either_protocol_from_the_same_service() {
    if !have("curl") {
        return;
    }
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let upload = ["-k", option, "--data", "hello", "-w", "\n%{http_version} %{http_code}"];
        let (_, printed) = curl(front.port, NAME, "https", &upload);
        // The harness passes an option `-w` first. The later option `-w` of this test overrides it.
        let text = format!("{printed}\n");
        assert!(text.starts_with("POST / 5\n"), "{text}");
        let status = curl(front.port, NAME, "https", &["-k", option, "-I"]).1;
        assert!(status.starts_with(&format!("HTTP/{version} 200")), "{status}");
    }
}

#[test]
fn h2load_gets_every_response() {
    if !have("h2load") {
        return;
    }
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let url = format!("https://127.0.0.1:{}/", front.port);
    let seconds = (DEADLINE.as_secs() * 2).to_string();
    let output =
        Command::new("timeout").args([&seconds, "h2load", "-n2000", "-c8", "-m100", &url]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{printed}");
    wait_until("all requests to be counted", || (front.counter("requests") == 2000).then_some(()));
    assert_eq!(front.counter("requests_failed"), 0);
}

#[test]
fn requests_of_every_method_share_one_client_and_one_server_connection() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for turn in 0..40 {
            let method = ["GET", "DELETE", "OPTIONS", "PATCH"][turn % 4];
            let response = client.request(method, &format!("/{turn}?x=%20y"), &[]).await.unwrap();
            assert_eq!((response.status(), response.text()), (200, format!("{method} /{turn}?x=%20y 0")));
        }
    });
    assert_eq!((origin.connections(), origin.requests().len()), (1, 40));
    assert_eq!((front.counter("connections"), front.counter("requests")), (1, 40));
}

#[test]
fn responses_without_a_body_keep_their_content_length() {
    let origin = Origin::start(|wire, request| match request.target() {
        "/204" => wire.send("HTTP/1.1 204 No Content\r\nX: 204\r\n\r\n"),
        "/304" => wire.send("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 1000\r\n\r\n"),
        "/head" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        _ => wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    });
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        for _ in 0..3 {
            let cases =
                [("GET", "/204", 204, ""), ("GET", "/304", 304, "1000"), ("HEAD", "/head", 200, "1000")];
            for (method, path, status, length) in cases.into_iter().chain([("HEAD", "/chunks", 200, "")]) {
                let response = client.request(method, path, &[]).await.unwrap();
                assert_eq!((response.status(), response.body().len()), (status, 0), "{path}");
                assert_eq!(response.field("content-length"), length, "{path}");
                assert_eq!(response.field("transfer-encoding"), "");
            }
        }
    });
    assert_eq!(origin.connections(), 1);
}

#[test]
fn split_cookie_fields_are_joined_for_the_server() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let pieces = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
    assert_eq!(
        within(async { front.client().await.request("GET", "/", &pieces).await.unwrap() }).status(),
        200
    );
    let request = &origin.requests()[0];
    assert_eq!(request.field("cookie"), "a=1; b=2; c=3; d=4");
    assert_eq!(request.field("x"), "y");
}

#[test]
fn servers_receive_the_forwarded_fields_of_the_real_client() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    let spoofed = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "http"), ("te", "trailers")];
    within(async { front.client().await.request("GET", "/", &spoofed).await.unwrap() });
    let request = &origin.requests()[0];
    assert_eq!(request.line(), "GET / HTTP/1.1");
    assert_eq!(request.field("Host"), NAME);
    assert_eq!(request.field("X-Forwarded-For"), "127.0.0.1");
    assert_eq!(request.field("X-Forwarded-Proto"), "https");
    assert_eq!(request.field("X-Forwarded-Host"), NAME);
    assert_eq!(request.field("X-Forwarded-Port"), front.port.to_string());
    assert_eq!(request.field("TE"), "", "the field is for one connection only");
}

#[test]
fn the_authority_takes_precedence_over_the_host_field() {
    let origin = reporting_server();
    let front = Front::run(&[&origin], "");
    within(async {
        let client = front.client().await;
        let response = client.request("GET", "https://b.example:8443/x", &[("host", "evil.example")]).await;
        // Evener may refuse the request or use the authority. It must never use the Host field.
        assert!(matches!(response.unwrap().status(), 200 | 400));
        client.request("GET", "https://b.example:8443/x", &[]).await.unwrap();
    });
    for request in origin.requests() {
        assert_eq!(request.field("Host"), "b.example:8443");
        assert_eq!(request.line(), "GET /x HTTP/1.1");
    }
}

#[test]
fn each_stream_is_routed_separately() {
    let [a, b, rest] = ["a", "b", "rest"].map(Origin::named);
    let pools = format!(
        "local a = pool \"a\" {{ \"127.0.0.1:{}\" }}\nlocal b = pool \"b\" {{ \"127.0.0.1:{}\" }}",
        a.port, b.port
    );
    let routes =
        "routes = { { host = \"a.example\", path = \"/a/\", pool = a }, { host = \"b.example\", pool = b } }";
    let front = Front::run_ports(&[rest.port], &pools, routes);
    within(async {
        let client = front.client().await;
        for _ in 0..3 {
            assert_eq!(client.get("/a/x").await.text(), "a");
            assert_eq!(client.get("https://b.example/a/x").await.text(), "b");
            assert_eq!(client.get("/b/x").await.text(), "rest");
        }
    });
    assert_eq!(front.counter("connections"), 1);
}

#[test]
fn a_stream_with_a_cookie_returns_to_its_server() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let front = Front::run(&[&a, &b], "sticky = { by = \"cookie\", name = \"BACK\" }");
    within(async {
        let client = front.client().await;
        let first = client.get("/").await;
        let cookie = first.field("set-cookie").split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("BACK="), "{first:?}");
        assert!(first.field("set-cookie").contains("; Secure"));
        for _ in 0..10 {
            let pieces = [("cookie", "other=1"), ("cookie", cookie.as_str())];
            let response = client.request("GET", "/", &pieces).await.unwrap();
            assert_eq!((response.text(), response.field("set-cookie")), (first.text(), ""));
        }
    });
}

#[test]
fn redirects_and_health_responses_are_local() {
    let redirecting =
        Front::run_ports(&[], "", "redirect = { status = 301, port = 8443 }, health = \"/health\"");
    within(async {
        let client = redirecting.client().await;
        for method in ["GET", "HEAD", "PUT"] {
            let response = client.request(method, "/a?b=c", &[]).await.unwrap();
            assert_eq!(
                (response.status(), response.field("location")),
                (301, "https://a.example:8443/a?b=c")
            );
        }
        // A body that is not needed is discarded, and the connection stays open.
        let response = client.put("POST", "/", &[], vec![0; 300_000].into()).await.unwrap();
        assert_eq!(response.status(), 301);
        // A service that only redirects is healthy without servers.
        assert_eq!(client.get("/health").await.status(), 200);
    });
    let origin = Origin::named("a");
    let front = Front::run(&[&origin], "health = \"/health\"");
    within(async {
        let client = front.client().await;
        assert_eq!(client.get("/health?x").await.text(), "ok\n");
        let header: Reply = client.request("HEAD", "/health", &[]).await.unwrap();
        assert_eq!((header.status(), header.body().len(), header.field("content-length")), (200, 0, "3"));
        assert_eq!(client.get("/other").await.text(), "a");
    });
}

#[test]
fn a_reload_applies_to_the_next_stream() {
    let slow = Origin::start(|wire, request| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nold ")?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        wire.send(request.target().as_bytes())
    });
    let new = Origin::named("new");
    let front = Front::run(&[&slow], "");
    within(async {
        let client = front.client().await;
        let old = client.open("GET", "/old").await.unwrap().await.unwrap();
        front.reload(&[&new], "");
        assert_eq!(client.get("/").await.text(), "new");
        assert_eq!(client::read(&mut old.into_body()).await.unwrap(), b"old /old");
    });
    assert_eq!(front.counter("connections"), 1);
}
