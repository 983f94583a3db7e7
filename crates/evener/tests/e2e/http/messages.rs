//! HTTP: well-formed requests and responses in every framing, and routing.

use crate::harness::origin::{
    Framing, Message, Origin, Wire, chunked, get, hang_up, http_service, pattern, run_http,
};
use crate::harness::{Evener, Server, wait_until};
use std::io;
use std::sync::mpsc;

/// A server whose response reports the method, the target and the body length of the request.
fn reporting_server() -> Origin {
    Origin::start(|wire, request| {
        let report = format!("{} {} {}", request.method(), request.target(), request.body.len());
        let body = if request.method() == "HEAD" { "" } else { &report };
        let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", report.len());
        wire.send(header)
    })
}

#[test]
fn one_server_connection_serves_many_requests_of_many_clients() {
    let origin = reporting_server();
    let (evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for turn in 0..50 {
        let method = ["GET", "POST", "PUT", "DELETE", "HEAD"][turn % 5];
        let body = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let response = client.ask(method, &format!("/{turn}"), body).unwrap();
        assert!(!response.closes(), "{}", response.header);
    }
    (0..20).for_each(|turn| assert_eq!(get(port, &format!("/{turn}")).text(), format!("GET /{turn} 0")));
    assert_eq!((origin.connections(), origin.requests().len()), (1, 70));
    assert_eq!(evener.service_counter("s", "requests"), 70);
    assert_eq!(evener.service_counter("s", "connections"), 21);
}

#[test]
fn responses_to_pipelined_requests_come_in_order() {
    let origin = reporting_server();
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    let mut all = String::new();
    for turn in 0..40 {
        let method = if turn % 3 == 1 { "HEAD" } else { "GET" };
        all += &format!("{method} /{turn} HTTP/1.1\r\nHost: a\r\n\r\n");
        all += &format!("PUT /{turn} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    }
    client.send(&all).unwrap();
    for turn in 0..40 {
        let method = if turn % 3 == 1 { "HEAD" } else { "GET" };
        let expected = if method == "HEAD" { String::new() } else { format!("GET /{turn} 0") };
        assert_eq!(client.response(method).unwrap().text(), expected);
        assert_eq!(client.response("PUT").unwrap().text(), format!("PUT /{turn} 3"));
    }
}

#[test]
fn a_client_of_http_1_0_gets_neither_interim_responses_nor_chunks() {
    let origin = Origin::start(|wire, request| match request.target() {
        "/length" => wire.reply("200 OK", "", b"length"),
        "/early" => {
            wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            wire.reply("200 OK", "", b"early")
        }
        _ => wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").and_then(|()| {
            if request.method() == "HEAD" { Ok(()) } else { wire.send("6\r\nchunks\r\n0\r\n\r\n") }
        }),
    });
    let (_evener, port) = run_http(&[&origin], "");
    let request = |client: &mut Wire, method: &str, target: &str, more: &str| {
        client.send(format!("{method} {target} HTTP/1.0\r\nHost: a\r\n{more}\r\n")).unwrap();
        client.response(method).unwrap()
    };
    let mut client = Wire::to(port);
    assert!(request(&mut client, "GET", "/length", "").closes());
    assert!(client.is_over());
    let mut client = Wire::to(port);
    for target in ["/length", "/early", "/length"] {
        let response = request(&mut client, "GET", target, "Connection: keep-alive\r\n");
        assert_eq!((response.text().as_str(), response.field("Connection")), (&target[1..], "keep-alive"));
    }
    let response = request(&mut client, "GET", "/chunks", "Connection: keep-alive\r\n");
    assert_eq!(
        (response.framing, response.text().as_str()),
        (Framing::Close, "chunks"),
        "{}",
        response.header
    );
    assert!(response.closes());
}

#[test]
fn a_head_request_of_http_1_0_gets_no_transfer_encoding() {
    let origin = Origin::start(|wire, _| wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"));
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    client.send("HEAD / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    // RFC 9112, section 6.1.
    assert_eq!(client.response("HEAD").unwrap().field("Transfer-Encoding"), "");
}

#[test]
fn responses_without_a_body_leave_both_connections_open() {
    let origin = Origin::start(|wire, request| match request.target() {
        "/204" => wire.send("HTTP/1.1 204 No Content\r\nX: 204\r\n\r\n"),
        "/304" => wire.send("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 1000\r\n\r\n"),
        "/head" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        _ => wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for turn in 0..12 {
        let (method, target, status) =
            [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200), ("HEAD", "/chunks", 200)]
                [turn % 4];
        let response = client.ask(method, target, "").unwrap();
        assert_eq!((response.status(), response.closes()), (status, false));
        let length = ["", "1000", "1000", ""][turn % 4];
        assert_eq!(response.field("Content-Length"), length, "{target}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_100_continue_of_the_server_reaches_the_client_before_the_body() {
    let (sender, headers) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let origin = Server::start(move |stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(header)) = wire.header() {
            sender.lock().unwrap().send(header).unwrap();
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let body = wire.body(Framing::Length(5)).unwrap();
            wire.reply("200 OK", "", &body).unwrap();
        }
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}",
        origin.port
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    for _ in 0..3 {
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            .unwrap();
        // The client has sent no byte of the body yet.
        assert_eq!(client.response("POST").unwrap().status(), 100);
        assert!(headers.recv().unwrap().contains("Expect: 100-continue\r\n"));
        client.send("hello").unwrap();
        assert_eq!(client.response("POST").unwrap().text(), "hello");
    }
}

#[test]
fn early_hints_come_before_the_response() {
    let origin = Origin::start(|wire, _| {
        wire.send(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\nX: y\r\n\r\n",
        )?;
        wire.send("HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n")?;
        wire.reply("200 OK", "", b"done")
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for _ in 0..3 {
        let hint = client.ask("GET", "/", "").unwrap();
        assert_eq!(hint.header, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
        assert_eq!(client.response("GET").unwrap().field("Link"), "</b.css>");
        assert_eq!(client.response("GET").unwrap().text(), "done");
    }
}

/// A server that responds to `/SIZE?FRAMING` with that many bytes, and to `/0?FRAMING` with the request's body.
fn bulk() -> Origin {
    Origin::start(|wire, request| {
        let (size, framing) = request.target()[1..].split_once('?').unwrap();
        let size: usize = size.parse().unwrap();
        let body = if size == 0 { request.body.clone() } else { pattern(7, size) };
        match framing {
            "length" => wire.reply("200 OK", "", &body),
            "chunks" => {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                wire.send(chunked(&body, 100_000))
            }
            _ => {
                wire.send("HTTP/1.1 200 OK\r\n\r\n")?;
                wire.send(&body)?;
                hang_up()
            }
        }
    })
}

#[test]
fn large_responses_in_every_framing_arrive_unchanged() {
    const SIZE: usize = 64 << 20;
    let origin = bulk();
    let (evener, port) = run_http(&[&origin], "");
    let expected = pattern(7, SIZE);
    let mut client = Wire::to(port);
    for (kind, framing) in
        [("length", Framing::Length(SIZE)), ("chunks", Framing::Chunked), ("close", Framing::Chunked)]
    {
        let response = client.ask("GET", &format!("/{SIZE}?{kind}"), "").unwrap();
        assert_eq!(response.framing, framing, "{kind}");
        assert!(response.body == expected, "{kind}");
    }
    assert!(evener.service_counter("s", "bytes_out") >= 3 * SIZE as u64);
}

#[test]
fn large_uploads_in_every_framing_arrive_unchanged() {
    const SIZE: usize = 64 << 20;
    let origin = bulk();
    let (_evener, port) = run_http(&[&origin], "");
    let body = pattern(9, SIZE);
    let mut client = Wire::to(port);
    for (kind, fields, sent) in [
        ("length", format!("Content-Length: {SIZE}"), body.clone()),
        ("chunks", "Transfer-Encoding: chunked".into(), chunked(&body, 70_000)),
    ] {
        let header = format!("PUT /0?length HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let writer = std::sync::Arc::clone(&client.stream);
        let response = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = &*writer;
                io::Write::write_all(&mut stream, header.as_bytes()).unwrap();
                io::Write::write_all(&mut stream, &sent).unwrap();
            });
            client.response("PUT").unwrap()
        });
        assert!(response.body == body, "{kind}");
        origin.forget();
    }
}

#[test]
fn bodies_of_every_size_arrive_in_every_framing() {
    let origin = bulk();
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for size in [1, 2, 15, 16, 255, 4095, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 131_073, 300_000] {
        let body = pattern(size as u64, size);
        for (chunk, kind) in [(1_000_000, "length"), (97, "chunks"), (16_384, "chunks")] {
            let sent = chunked(&body, chunk);
            client
                .send(format!("POST /0?{kind} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"))
                .unwrap();
            client.send(&sent).unwrap();
            assert!(client.response("POST").unwrap().body == body, "{size} {chunk} {kind}");
        }
        assert!(client.ask("GET", &format!("/{size}?close"), "").unwrap().body == pattern(7, size), "{size}");
    }
}

#[test]
fn routes_match_the_host_and_the_longest_path() {
    let names = ["exact", "wild", "api", "v2", "other"];
    let origins = names.map(Origin::named);
    let pools: String = names
        .iter()
        .zip(&origins)
        .map(|(name, origin)| format!("local {name} = pool \"{name}\" {{ \"127.0.0.1:{}\" }}\n", origin.port))
        .collect();
    let evener = Evener::run(&format!(
        "{pools} service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = other, routes = {{\n\
         {{ path = \"/api\", pool = api }}, {{ path = \"/api/v2/\", pool = v2 }},\n\
         {{ host = \"*.example.org\", pool = wild }}, {{ host = \"www.example.org\", pool = exact }} }} }}"
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    for (host, target, expected) in [
        ("www.example.org", "/", "exact"),
        ("WWW.Example.Org:8080", "/api", "exact"),
        ("www.example.org.", "/", "exact"),
        ("a.example.org", "/api", "wild"),
        ("a.b.example.org", "/", "wild"),
        ("example.org", "/", "other"),
        ("b", "/api", "api"),
        ("b", "/api?x=/api/v2", "api"),
        ("b", "/apis", "other"),
        ("b", "/api/v2", "v2"),
        ("b", "/api/v2/x", "v2"),
        ("b", "/api/v22", "api"),
        ("b", "http://www.example.org/api", "exact"),
        ("b", "http://a.example.org", "wild"),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
        assert_eq!(client.response("GET").unwrap().text(), expected, "{host} {target}");
    }
}

#[test]
fn without_a_default_pool_a_request_that_matches_no_route_gives_404_and_the_connection_stays_open() {
    let origin = Origin::named("a");
    let evener = Evener::run(&format!(
        "local a = pool \"a\" {{ \"127.0.0.1:{}\" }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \
         routes = {{ {{ host = \"a.example\", pool = a }} }} }}",
        origin.port
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    for (host, status) in [("b.example", 404), ("a.example", 200), ("b.example", 404)] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status(), response.closes()), (status, false));
    }
}

const SPOOFED: &str = "X-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nForwarded: for=192.0.2.3\r\nX-Real-IP: 192.0.2.4\r\n";

/// The forwarded fields that a server receives when the client sends `SPOOFED`.
fn forwarded_to_server(config: &str) -> [String; 5] {
    let origin = Origin::named("a");
    let (_evener, port) = run_http(&[&origin], config);
    Wire::to(port).ask("GET", "/", SPOOFED).unwrap();
    let received: Message = origin.requests().remove(0);
    let names = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded"];
    names.map(|name| received.field(name).replace(&port.to_string(), "PORT"))
}

#[test]
fn forwarded_fields_are_replaced_or_appended_as_configured() {
    let replaced = ["127.0.0.1", "http", "test", "PORT", ""];
    assert_eq!(forwarded_to_server(""), replaced);
    assert_eq!(forwarded_to_server("forwarded = \"replace\""), replaced);
    assert_eq!(
        forwarded_to_server("forwarded = \"append\""),
        ["192.0.2.1, 192.0.2.2, 127.0.0.1", "http", "test", "PORT", ""]
    );
    assert_eq!(forwarded_to_server("forwarded = \"off\""), ["", "", "", "", ""]);
    assert_eq!(forwarded_to_server("forwarded = { trust = \"10.0.0.0/8\" }"), replaced);
    assert_eq!(
        forwarded_to_server("forwarded = { trust = \"127.0.0.0/8\" }"),
        ["192.0.2.1, 192.0.2.2, 127.0.0.1", "https", "evil", "1", ""]
    );
    assert_eq!(
        forwarded_to_server("forwarded = { headers = \"forwarded\" }"),
        ["", "", "", "", "for=127.0.0.1;host=\"test\";proto=http"]
    );
    assert_eq!(
        forwarded_to_server("forwarded = { mode = \"append\", headers = \"both\" }"),
        [
            "192.0.2.1, 192.0.2.2, 127.0.0.1",
            "http",
            "test",
            "PORT",
            "for=192.0.2.3, for=127.0.0.1;host=\"test\";proto=http"
        ]
    );
}

#[test]
fn deny_applies_to_the_address_that_a_trusted_proxy_forwards() {
    let origin = Origin::named("a");
    let config = "forwarded = { trust = \"127.0.0.0/8\" }, deny = \"192.0.2.0/24\", denied = \"reject\"";
    let (_evener, port) = run_http(&[&origin], config);
    let status = |list: &str| {
        Wire::to(port).ask("GET", "/", &format!("X-Forwarded-For: {list}\r\n")).unwrap().status()
    };
    assert_eq!(status("198.51.100.1"), 200);
    assert_eq!(status("192.0.2.7"), 403);
    // The client is the last address that is not a trusted proxy. Addresses before it could be forged and do
    // not count.
    assert_eq!(status("192.0.2.7, 198.51.100.1"), 200);
    assert_eq!(status("198.51.100.1, 192.0.2.7, 127.0.0.9"), 403);
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_reload_applies_to_the_next_request_of_an_open_connection() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let evener = Evener::run(&http_service(0, &[&a], ""));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
    evener.reload(&http_service(0, &[&b], ""));
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "b");
    evener.reload(&http_service(0, &[&a], "forwarded = \"off\""));
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
    assert_eq!(a.requests()[1].field("X-Forwarded-For"), "");
}

#[test]
fn a_drain_completes_requests_in_flight_and_closes_idle_connections() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Origin::start(move |wire, request| {
        if request.target() == "/slow" {
            released.lock().unwrap().recv().unwrap();
        }
        wire.reply("200 OK", "", request.target().as_bytes())
    });
    let (mut evener, port) = run_http(&[&origin], "");
    let (mut idle, mut slow) = (Wire::to(port), Wire::to(port));
    assert!(!idle.ask("GET", "/", "").unwrap().closes());
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the slow request", || origin.lines().contains(&"GET /slow".to_owned()).then_some(()));
    evener.signal("TERM");
    assert!(idle.is_over());
    release.send(()).unwrap();
    let response = slow.response("GET").unwrap();
    assert_eq!((response.text().as_str(), response.closes()), ("/slow", true));
    assert!(slow.is_over());
    assert_eq!(evener.end(), 0);
}

#[test]
fn clients_that_never_close_do_not_delay_the_end_of_the_program() {
    let origin = Origin::start(move |wire, _| wire.reply("200 OK", "", b"a"));
    // Shorter than the time for which Evener otherwise waits for a client to close.
    let options = ["--workers", "1", "--drain-timeout", "4s"];
    let mut evener = Evener::run_with(&http_service(0, &[&origin], ""), &options);
    let listen = evener.port("s");
    let (mut idle, mut closed) = (Wire::to(listen), Wire::to(listen));
    assert!(!idle.ask("GET", "/", "").unwrap().closes());
    assert!(closed.ask("GET", "/", "Connection: close\r\n").unwrap().closes());
    evener.signal("TERM");
    assert!(idle.is_over() && closed.is_over());
    assert_eq!(evener.end(), 0);
    assert_eq!(evener.log_count(" cut connections="), 0, "{}", evener.log());
    evener.expect_log("drained");
}

#[test]
fn a_client_that_shut_down_its_write_side_still_gets_its_responses() {
    let origin = Origin::start(|wire, request| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        wire.reply("200 OK", "", &request.body)
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    let one = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    client.send([one, one].concat()).unwrap();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    (0..2).for_each(|_| assert_eq!(client.response("POST").unwrap().text(), "hello"));
    assert!(client.is_over());
}

#[test]
fn hop_by_hop_fields_of_a_response_are_not_forwarded() {
    let origin = Origin::start(|wire, _| {
        let fields = "Connection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\n\
            Upgrade: h2c\r\nServer: a\r\nSet-Cookie: b=c\r\nSet-Cookie: d=e\r\n";
        wire.reply("200 OK", fields, b"a")
    });
    let (_evener, port) = run_http(&[&origin], "");
    let expected =
        "HTTP/1.1 200 OK\r\nServer: a\r\nSet-Cookie: b=c\r\nSet-Cookie: d=e\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(get(port, "/").header, expected);
}

#[test]
fn an_upgrade_that_the_server_ignores_is_an_ordinary_request() {
    let origin = Origin::named("a");
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for _ in 0..3 {
        let response = client.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").unwrap();
        assert_eq!((response.status(), response.text().as_str(), response.closes()), (200, "a", false));
    }
    assert!(origin.requests().iter().all(|request| request.field("Upgrade") == "websocket"));
}

#[test]
fn bytes_that_directly_follow_an_upgrade_arrive_on_both_sides() {
    let origin = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.header().unwrap();
        wire.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst word\r\n\r\n")
            .unwrap();
        let received = wire.header().unwrap().unwrap();
        wire.send(received).unwrap();
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}",
        origin.port
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nI am early\r\n\r\n")
        .unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!(
        (response.status(), response.field("Upgrade"), response.field("Connection")),
        (101, "echo", "upgrade")
    );
    assert_eq!(client.header().unwrap().unwrap(), "first word\r\n\r\n");
    assert_eq!(client.header().unwrap().unwrap(), "I am early\r\n\r\n");
    assert!(client.is_over());
}

#[test]
fn responses_of_a_server_of_http_1_0_are_forwarded() {
    let origin = Origin::start(|wire, request| match request.target() {
        "/kept" => wire.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nkept"),
        "/length" => wire.send("HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nlength").and_then(|()| hang_up()),
        _ => wire.send("HTTP/1.0 200 OK\r\n\r\nclose").and_then(|()| hang_up()),
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    for target in ["/kept", "/kept", "/kept", "/length", "/close", "/length", "/kept"] {
        let response = client.ask("GET", target, "").unwrap();
        assert_eq!((response.line(), response.text().as_str()), ("HTTP/1.1 200 OK", &target[1..]));
    }
    assert_eq!(origin.connections(), 4);
}

/// RFC 9112, section 3.2.4.
#[test]
fn options_with_an_absolute_uri_without_a_path_is_sent_as_an_asterisk() {
    let origin = Origin::named("a");
    let (_evener, port) = run_http(&[&origin], "");
    Wire::to(port).ask("OPTIONS", "http://a.example:8001", "").unwrap();
    assert_eq!(origin.lines(), ["OPTIONS *"]);
}
