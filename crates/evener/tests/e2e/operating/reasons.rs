//! Events that name the reason why a request, a connection, a query or a datagram was not served.

use crate::harness::dns::{query, rcode};
use crate::harness::origin::{Message, Origin, Wire, hang_up, run_http};
use crate::harness::{DEADLINE, Evener, connect, local, reserved_port, wait_until};
use std::io::{Read, Write};
use std::net::UdpSocket;

/// Waits for a line in the log that has all of these parts.
fn expect_line(evener: &Evener, parts: &[&str]) {
    wait_until(&parts.join(" "), || {
        let log = evener.log();
        log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
    });
}

/// Sends bytes to a port and returns everything that arrives until the end.
fn exchange(port: u16, bytes: &[u8]) -> String {
    let mut client = connect(port);
    client.write_all(bytes).unwrap();
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn each_rule_that_a_request_breaks_is_named() {
    let (evener, port) = run_http(&[&Origin::named("a")], "header_bytes_max = 1024");
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(2000));
    for (request, status, reason, detail) in [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
            "400",
            "request_invalid",
            "malformed field name",
        ),
        ("GET / HTTP/1.1\r\n\r\n", "400", "request_invalid", "Host is missing"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "400",
            "request_invalid",
            "Content-Length",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "400",
            "request_invalid",
            "continues on the next line",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "501", "coding_unsupported", ""),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505", "version_unsupported", ""),
        (long.as_str(), "431", "header_too_large", "more than 1024 bytes"),
    ] {
        let response = exchange(port, request.as_bytes());
        assert_eq!(response.get(9..12), Some(status), "{request}");
        let (status, reason) = (format!("status={status}"), format!("reason={reason}"));
        expect_line(&evener, &["request_failed service=s client=127.0.0.1", &status, &reason, detail]);
    }
}

#[test]
fn text_of_clients_is_not_logged() {
    let (evener, port) = run_http(&[&Origin::named("a")], "");
    let request = b"GET /\x1b[31mred HTTP/1.1\r\nHost: evil\x1b[31m\r\n\r\n";
    assert!(exchange(port, request).starts_with("HTTP/1.1 400 "));
    expect_line(&evener, &["reason=request_invalid"]);
    assert!(!evener.log().contains("evil") && !evener.log().contains("red"), "{}", evener.log());
}

#[test]
fn each_fault_of_a_response_is_named_with_its_server() {
    let respond = |wire: &mut Wire, request: &Message| {
        match request.target() {
            "/lengths" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")?,
            "/large" => wire.send(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(40_000)))?,
            "/ssh" => wire.send("SSH-2.0-OpenSSH_9\r\n")?,
            "/half" => wire.send("HTTP/1.1 200 OK\r\nContent-")?,
            "/cut" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")?,
            "/dup" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok")?,
            _ => {}
        }
        hang_up()
    };
    let origin = Origin::start(respond);
    let (evener, port) = run_http(&[&origin], "retries = 0");
    let server = format!("server=127.0.0.1:{}", origin.port);
    for (target, status, parts) in [
        ("/lengths", "502", ["reason=response_invalid", "two Content-Length values that differ"]),
        ("/large", "502", ["reason=response_too_large", "more than 32768 bytes"]),
        ("/ssh", "502", ["reason=response_invalid", "not HTTP/1"]),
        ("/half", "502", ["reason=server_closed", "in the middle of the header section"]),
        ("/fin", "502", ["reason=server_closed", "it sent no byte"]),
        ("/cut", "200", ["reason=response_incomplete", "in the middle of the body"]),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(exchange(port, request.as_bytes()).get(9..12), Some(status), "{target}");
        expect_line(&evener, &["request_failed service=s", &server, parts[0], parts[1]]);
    }
    // A response that was repaired is reported at debug.
    exchange(port, b"GET /dup HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    expect_line(&evener, &["debug response_repaired service=s", &server, "Content-Length was repeated"]);
}

#[test]
fn a_server_that_closes_before_its_response_is_named_even_if_there_is_no_other_server() {
    let origin = Origin::start(|_, _| hang_up());
    let (evener, port) = run_http(&[&origin], "");
    let response = exchange(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    assert!(response.contains("The server closed the connection without a response."), "{response}");
    let server = format!("server=127.0.0.1:{}", origin.port);
    expect_line(&evener, &["request_failed service=s", &server, "reason=server_closed", "it sent no byte"]);
}

#[test]
fn a_flood_has_one_event_a_second_at_info_and_the_others_at_debug() {
    let (evener, port) = run_http(&[&Origin::named("a")], "");
    for _ in 0..20 {
        exchange(port, b"GET / HTTP/1.1\r\n\r\n");
    }
    expect_line(&evener, &["info  request_failed", "reason=request_invalid"]);
    wait_until("all failures to be logged at debug", || {
        (evener.log_count("reason=request_invalid") == 20).then_some(())
    });
    assert_eq!(evener.service_counter("s", "reasons.request_invalid"), 20);
    assert!(evener.log_count("info  request_failed") < 20, "{}", evener.log());
}

#[test]
fn a_pool_without_servers_and_a_full_queue_have_different_pages() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/held" {
            std::thread::sleep(DEADLINE);
        }
        wire.reply("200 OK", "", b"ok")
    });
    let evener = Evener::run_with(
        &format!(
            "service \"dead\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}\n\
             service \"down\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {{ \"127.0.0.1:1\", state = \"maintenance\" }} }}\n\
             service \"full\" {{ listen = \"127.0.0.1:0\", protocol = \"http\",\n\
             pool = pool \"p\" {{ {{ \"127.0.0.1:{}\", max = 1 }}, queue = {{ size = 1, timeout = \"100ms\" }} }} }}\n",
            reserved_port(),
            origin.port
        ),
        &["--workers", "1"],
    );
    let page = |service: &str| {
        exchange(evener.port(service), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    };
    let dead = page("dead");
    assert!(dead.starts_with("HTTP/1.1 502 ") && dead.contains("No server could be reached"), "{dead}");
    expect_line(&evener, &["request_failed service=dead", "status=502", "reason=connect_failed", "refused"]);
    let down = page("down");
    assert!(down.starts_with("HTTP/1.1 503 ") && down.contains("No server is available"), "{down}");
    expect_line(&evener, &["request_failed service=down", "status=503", "reason=no_server_up"]);
    let held = Wire::to(evener.port("full"));
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the first request to reach the server", || (!origin.lines().is_empty()).then_some(()));
    let full = page("full");
    assert!(full.starts_with("HTTP/1.1 503 ") && full.contains("All servers were busy"), "{full}");
    expect_line(&evener, &["request_failed service=full", "pool=p", "reason=queue_timeout"]);
}

#[test]
fn tls_at_a_plain_port_gets_a_response() {
    let (evener, port) = run_http(&[&Origin::named("a")], "");
    // The beginning of a ClientHello.
    let response = exchange(port, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("expects plain HTTP"), "{response}");
    expect_line(&evener, &["request_failed service=s", "status=400", "reason=tls_on_plain_port"]);
}

#[test]
fn refused_connections_queries_and_datagrams_have_reasons() {
    let evener = Evener::run(&format!(
        "pool \"dead\" {{ \"127.0.0.1:{}\" }}\n\
         service \"denied\" {{ listen = \"127.0.0.1:0\", deny = {{ \"127.0.0.0/8\" }}, pool = \"dead\" }}\n\
         service \"proxied\" {{ listen = \"127.0.0.1:0\", proxy_from = {{ \"127.0.0.0/8\" }}, pool = \"dead\" }}\n\
         service \"tcp\" {{ listen = \"127.0.0.1:0\", pool = \"dead\" }}\n\
         service \"dns\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", pool = \"dead\" }}\n\
         service \"udp\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", deny = {{ \"127.0.0.0/8\" }}, pool = \"dead\" }}\n",
        reserved_port()
    ));
    assert_eq!(exchange(evener.port("denied"), b""), "");
    expect_line(&evener, &["connection_failed service=denied client=127.0.0.1", "reason=client_denied"]);
    assert_eq!(exchange(evener.port("proxied"), b"GET / HTTP/1.1\r\n\r\n"), "");
    expect_line(
        &evener,
        &["connection_failed service=proxied", "reason=proxy_header_invalid", "begins with HTTP"],
    );
    assert_eq!(exchange(evener.port("tcp"), b""), "");
    expect_line(&evener, &["connection_failed service=tcp", "pool=dead", "reason=connect_failed"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut response = [0; 512];
    client.send_to(&query(7, "a.example", 1), local(evener.port("dns"))).unwrap();
    let length = client.recv(&mut response).unwrap();
    assert_eq!(rcode(&response[..length]), 2);
    expect_line(
        &evener,
        &["query_failed service=dns client=127.0.0.1 status=SERVFAIL pool=dead", "reason=connect_failed"],
    );
    client.send_to(&[0; 20], local(evener.port("dns"))).unwrap();
    expect_line(&evener, &["query_failed service=dns", "status=FORMERR", "reason=query_invalid"]);
    client.send_to(b"x", local(evener.port("udp"))).unwrap();
    expect_line(&evener, &["datagram_dropped service=udp client=127.0.0.1", "reason=client_denied"]);
}

#[test]
fn a_stalled_request_body_has_a_reason() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "stall_timeout = \"1s\"");
    let response = exchange(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab");
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    expect_line(&evener, &["request_failed service=s", "status=408", "reason=request_stalled"]);
}
