//! Responses that deviate from RFC 9112 in ways that other programs tolerate: clients of HTTP/1 and HTTP/2 get them in one
//! strict form, and a server connection with faulty framing is not used again.

use crate::harness::origin::{Origin, Wire, run_http};
use crate::http::http2::client::{Front, within};

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

/// Header sections and bodies of responses, and `true` if the server connection is used again.
const RESPONSES: [(&str, &str, bool); 8] = [
    ("HTTP/1.1 200 OK\nX: y\nContent-Length: 5\n\n", "hello", true),
    ("HTTP/1.1 200 OK\r\nX: y\nContent-Length: 5\r\n\n", "hello", true),
    ("HTTP/1.1 200 OK\nX: y\nTransfer-Encoding: chunked\n\n", CHUNKS, true),
    ("HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "hello", true),
    ("HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5, 5\r\n\r\n", "hello", true),
    ("HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKS, false),
    ("HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n", CHUNKS, false),
    (
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKS,
        false,
    ),
];

/// A server that responds to `/N` with response N.
fn tolerated() -> Origin {
    Origin::start(|wire, request| {
        let (header, body, _) = RESPONSES[request.target()[1..].parse::<usize>().unwrap()];
        wire.send(format!("{header}{body}"))
    })
}

/// The number of connections to the server after each of two requests for each response.
fn expected_connections() -> Vec<usize> {
    let mut connections = 1;
    let mut expected = Vec::new();
    for (_, _, stays) in RESPONSES {
        for _ in 0..2 {
            expected.push(connections);
            connections += usize::from(!stays);
        }
    }
    expected
}

#[test]
fn clients_of_http_1_get_tolerated_responses_in_strict_form() {
    let origin = tolerated();
    let (evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    let mut connections = Vec::new();
    for number in 0..RESPONSES.len() {
        for _ in 0..2 {
            let response = client.ask("GET", &format!("/{number}"), "").unwrap();
            assert_eq!((response.status(), response.text().as_str()), (200, "hello"), "{number}");
            assert_eq!((response.field("X"), response.closes()), ("y", false), "{number}");
            // The harness refuses a header section with a bare LF, or with two lengths.
            assert!(response.header.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.header);
            connections.push(origin.connections());
        }
    }
    assert_eq!(connections, expected_connections());
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
}

#[test]
fn clients_of_http_2_get_tolerated_responses_in_strict_form() {
    let origin = tolerated();
    let front = Front::run(&[&origin], "");
    let connections = within(async {
        let client = front.client().await;
        let mut connections = Vec::new();
        for (number, (_, body, _)) in RESPONSES.iter().enumerate() {
            for _ in 0..2 {
                let response = client.get(&format!("/{number}")).await;
                assert_eq!((response.status(), response.text().as_str()), (200, "hello"), "{number}");
                let length = if *body == CHUNKS { "" } else { "5" };
                assert_eq!(
                    (response.field("x"), response.field("content-length")),
                    ("y", length),
                    "{number}"
                );
                assert_eq!(response.field("transfer-encoding"), "", "{number}");
                connections.push(origin.connections());
            }
        }
        connections
    });
    assert_eq!(connections, expected_connections());
    assert_eq!(front.counter("requests_failed"), 0);
}

#[test]
fn a_client_of_http_1_0_gets_the_chunked_body_of_an_http_1_0_server_decoded() {
    let origin = tolerated();
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    client.send("GET /7 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!((response.text().as_str(), response.closes()), ("hello", true));
    assert_eq!(response.field("Transfer-Encoding"), "");
}

#[test]
fn interim_responses_with_bare_line_feeds_are_forwarded_in_strict_form() {
    let origin = Origin::start(|wire, _| {
        wire.send("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nContent-Length: 5\n\nhello")
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for _ in 0..2 {
        let interim = client.ask("GET", "/", "").unwrap();
        assert_eq!(interim.header, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert_eq!(client.response("GET").unwrap().text(), "hello");
    }
    assert_eq!(origin.connections(), 1);
}
