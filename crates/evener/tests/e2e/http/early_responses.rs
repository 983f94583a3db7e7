//! Responses that arrive before the request's body is complete: they reach the client, and then the upload ends.

use crate::harness::certificates::curl;
use crate::harness::origin::{Origin, Wire, run_http};
use crate::harness::{Directory, Server, have};
use crate::http::http2::client::{DATA, END_STREAM, Front, HEADERS, NAME, RST_STREAM, frame, request_block};

/// A server that responds with 413 after the header section, and closes.
fn early() -> Server {
    Server::start(|stream| {
        let mut wire = Wire::new(stream);
        if let Ok(Some(_)) = wire.header() {
            let _ = wire.reply("413 Content Too Large", "Connection: close\r\n", b"too large");
        }
    })
}

/// Uploads 20 MB with curl five times, and returns the status and the body of each response.
fn upload(port: u16, scheme: &str, protocol: &str) -> Vec<(u16, String)> {
    let directory = Directory::new();
    let file = directory.write("body", &"x".repeat(20 << 20));
    let body = format!("@{}", file.display());
    let arguments = ["-k", protocol, "-H", "Expect:", "-m", "20", "--data-binary", &body];
    (0..5).map(|_| curl(port, NAME, scheme, &arguments)).collect()
}

#[test]
fn curl_gets_an_early_413_over_each_protocol() {
    if !have("curl") {
        return;
    }
    let server = early();
    let front = Front::run_ports(&[server.port], "", "");
    let pool = format!("pool = pool \"p\" {{ \"127.0.0.1:{}\" }}", server.port);
    let (_clear, listen) = run_http(&[], &pool);
    let expected = vec![(413, "too large".to_owned()); 5];
    assert_eq!(upload(front.port, "https", "--http2"), expected);
    assert_eq!(upload(front.port, "https", "--http1.1"), expected);
    assert_eq!(upload(listen, "http", "--http1.1"), expected);
}

#[test]
fn curl_gets_the_local_response_to_its_upload() {
    if !have("curl") {
        return;
    }
    let origin = Origin::named("a");
    let front = Front::run(&[&origin], "redirect = \"https\"");
    for protocol in ["--http2", "--http1.1"] {
        let statuses: Vec<u16> =
            upload(front.port, "https", protocol).into_iter().map(|(status, _)| status).collect();
        assert_eq!(statuses, [308; 5], "{protocol}");
    }
}

#[test]
fn an_upload_that_goes_on_after_its_response_is_reset_without_an_error() {
    let server = early();
    let front = Front::run_ports(&[server.port], "", "");
    let mut client = front.raw();
    client.headers(1, 0, &request_block("POST", "/", &[]));
    client.send(&frame(DATA, 0, 1, b"the beginning"));
    client.expect(1, HEADERS);
    let body = client.expect(1, DATA);
    assert_eq!((body.ends_stream(), body.text().as_str()), (true, "too large"));
    // Evener does not wait indefinitely for the rest of the upload: it resets the stream.
    assert_eq!(client.expect(1, RST_STREAM).reason(), 0);
    // A stream that ends by itself is not reset.
    client.headers(3, 0, &request_block("POST", "/", &[]));
    client.expect(3, HEADERS);
    client.expect(3, DATA);
    client.send(&frame(DATA, END_STREAM, 3, b"all"));
    client.headers(5, END_STREAM, &request_block("GET", "/", &[]));
    assert_eq!(client.next_stream(&[3, 5]), 5);
}
