//! Limits of HTTP: denied clients, rate limits, timeouts, and local responses.

use crate::harness::origin::{Message, Origin, Wire, get, run_http};
use crate::harness::{Evener, Server, connect, line, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// Starts an instance with a pool `spare` that refused clients can be routed to, and returns it with its port.
fn with_spare(origins: [&Origin; 2], more: &str) -> (Evener, u16) {
    let config = format!(
        "local spare = pool \"spare\" {{ \"127.0.0.1:{}\" }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\", {more} }}",
        origins[1].port, origins[0].port
    );
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("s");
    (evener, listen)
}

/// Returns true if the peer ends the connection, by a close or a reset, without sending a byte.
fn ends_silently(client: &mut Wire) -> bool {
    let mut byte = [0; 1];
    match (&*client.stream).read(&mut byte) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn the_redirect_changes_only_the_scheme_and_the_port() {
    let evener =
        Evener::run("service \"s\" { listen = \"127.0.0.1:0\", protocol = \"http\", redirect = \"https\" }");
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    for (host, target, location) in [
        ("www.example.org", "/a?b=c", "https://www.example.org/a?b=c"),
        ("www.example.org:8080", "/", "https://www.example.org/"),
        ("[::1]:8080", "/", "https://[::1]/"),
        ("a", "http://b.example/x", "https://b.example/x"),
    ] {
        for method in ["GET", "HEAD", "PUT"] {
            client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            let response = client.response(method).unwrap();
            assert_eq!((response.status(), response.field("Location")), (308, location));
        }
    }
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    assert!(
        client.response("POST").unwrap().closes(),
        "the bytes of an unread body must not be parsed as a request"
    );
    assert!(client.is_over());
    let mut old = Wire::to(listen);
    old.send("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.response("GET").unwrap().status(), 400, "a redirect needs a Host field");
}

#[test]
fn the_redirect_of_connect_does_not_repeat_the_host() {
    let evener =
        Evener::run("service \"s\" { listen = \"127.0.0.1:0\", protocol = \"http\", redirect = \"https\" }");
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    client.send("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n").unwrap();
    let response = client.response("GET").unwrap();
    assert!(!response.field("Location").contains("a.examplea.example"), "{}", response.header);
}

#[test]
fn the_redirect_may_have_another_status_and_port() {
    let evener = Evener::run(
        "service \"s\" { listen = \"127.0.0.1:0\", protocol = \"http\", \
         redirect = { status = 301, port = 8443 } }",
    );
    let listen = evener.port("s");
    let response = get(listen, "/x");
    assert_eq!((response.status(), response.field("Location")), (301, "https://test:8443/x"));
}

#[test]
fn the_health_path_reports_whether_a_server_is_up() {
    let origin = Origin::named("a");
    let check = "health = \"/health\", check = check.tcp { every = \"50ms\", rise = 1, fall = 1 }";
    let (_evener, port) = run_http(&[&origin], check);
    let expect_health = |status: u16| {
        wait_until("the health to change", || (get(port, "/health").status() == status).then_some(()));
    };
    expect_health(200);
    assert_eq!(get(port, "/health?x").text(), "ok\n");
    assert_eq!(get(port, "/healthy").text(), "a");
    drop(origin);
    expect_health(503);
}

#[test]
fn a_client_above_its_request_rate_gets_429_and_is_served_again_later() {
    let origin = Origin::named("a");
    let (evener, port) =
        run_http(&[&origin], "per_client = { request_rate = \"5/s\", exceeded = \"reject\" }");
    let mut client = Wire::to(port);
    let mut last: Option<Message> = None;
    for _ in 0..30 {
        let response = client.ask("GET", "/", "").unwrap();
        if response.status() != 200 {
            last = Some(response);
            break;
        }
    }
    let refused = last.unwrap();
    assert_eq!((refused.status(), refused.field("Retry-After"), refused.closes()), (429, "1", true));
    assert!(client.is_over());
    assert!((5..8).contains(&origin.requests().len()), "{}", origin.requests().len());
    assert_eq!(evener.service_counter("s", "limited"), 1);
    wait_until("the rate to allow more", || (get(port, "/").status() == 200).then_some(()));
}

#[test]
fn a_client_with_too_many_connections_gets_429_and_is_served_again_later() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "per_client = { connections = 2, exceeded = \"reject\" }");
    let mut open = [Wire::to(port), Wire::to(port)];
    open.iter_mut().for_each(|client| assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a"));
    let refused = get(port, "/");
    assert_eq!((refused.status(), refused.closes()), (429, true), "the status must be 429, not 403");
    assert_eq!(open[0].ask("GET", "/", "").unwrap().text(), "a");
    drop(open);
    wait_until("the connection limit to allow another client", || {
        (get(port, "/").status() == 200).then_some(())
    });
    assert!(evener.service_counter("s", "limited") >= 1);
}

#[test]
fn a_client_above_its_connection_rate_is_tarpitted() {
    let origin = Origin::named("a");
    let limit = "per_client = { connection_rate = \"2/m\", exceeded = { tarpit = \"700ms\" } }";
    let (evener, port) = run_http(&[&origin], limit);
    assert_eq!([get(port, "/").text(), get(port, "/").text()], ["a", "a"]);
    let (mut stuck, begun) = (Wire::to(port), Instant::now());
    stuck.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(ends_silently(&mut stuck));
    assert!((600..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!((origin.requests().len(), evener.service_counter("s", "tarpitted")), (2, 1));
}

#[test]
fn a_client_above_its_request_rate_is_tarpitted() {
    let origin = Origin::named("a");
    let limit = "per_client = { request_rate = \"2/m\", exceeded = { tarpit = \"700ms\" } }";
    let (_evener, port) = run_http(&[&origin], limit);
    let mut client = Wire::to(port);
    (0..2).for_each(|_| assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a"));
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(ends_silently(&mut client));
    assert!((600..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn clients_above_a_limit_are_routed_to_the_exceeded_pool() {
    for limit in ["connections = 1", "connection_rate = \"1/m\"", "request_rate = \"1/m\""] {
        let (main, spare) = (Origin::named("main"), Origin::named("spare"));
        let more = format!("per_client = {{ {limit}, exceeded = spare }}");
        let (_evener, port) = with_spare([&main, &spare], &more);
        let mut first = Wire::to(port);
        assert_eq!(first.ask("GET", "/", "").unwrap().text(), "main", "{limit}");
        for _ in 0..3 {
            assert_eq!(get(port, "/").text(), "spare", "{limit}");
        }
    }
}

#[test]
fn denied_clients_are_refused_as_configured() {
    let request = |port: u16| {
        let mut client = Wire::to(port);
        let _ = client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let begun = Instant::now();
        (client.response("GET").map(|response| (response.status(), response.text())), begun.elapsed())
    };
    for denied in ["drop", "reject", "tarpit", "spare"] {
        let (main, spare) = (Origin::named("main"), Origin::named("spare"));
        let action = match denied {
            "tarpit" => "{ tarpit = \"700ms\" }".to_owned(),
            "spare" => "spare".to_owned(),
            word => format!("\"{word}\""),
        };
        let more = format!("deny = \"127.0.0.0/8\", denied = {action}");
        let (evener, port) = with_spare([&main, &spare], &more);
        let (response, elapsed) = request(port);
        match denied {
            "reject" => assert_eq!(response.unwrap().0, 403),
            "spare" => assert_eq!(response.unwrap(), (200, "spare".to_owned())),
            _ => assert!(response.is_err(), "{denied}"),
        }
        assert_eq!(elapsed > Duration::from_millis(600), denied == "tarpit", "{denied}: {elapsed:?}");
        assert_eq!((main.connections(), evener.service_counter("s", "denied")), (0, 1), "{denied}");
    }
}

#[test]
fn a_refused_client_that_sends_nothing_is_closed() {
    let origin = Origin::named("a");
    let more = "deny = \"127.0.0.0/8\", denied = \"reject\", header_timeout = \"500ms\", keepalive_timeout = \"500ms\"";
    let (_evener, port) = run_http(&[&origin], more);
    let mut client = Wire::to(port);
    client.stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    assert!(ends_silently(&mut client), "the refused connection is still open");
}

#[test]
fn a_header_section_that_takes_too_long_gives_408() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "header_timeout = \"600ms\", keepalive_timeout = \"2s\"");
    let mut client = Wire::to(port);
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
    let begun = Instant::now();
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy";
    for byte in text.as_bytes().chunks(1) {
        if client.send(byte).is_err() || begun.elapsed() > Duration::from_millis(1200) {
            break;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    let response = client.response("GET").unwrap();
    assert_eq!((response.status(), response.closes()), (408, true));
    assert!(client.is_over());
    assert_eq!((origin.requests().len(), evener.service_counter("s", "preamble_timeouts")), (1, 1));
    let (mut silent, begun) = (connect(port), Instant::now());
    assert_eq!(line(&mut silent), "", "without a request there must be no response");
    assert!((500..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[test]
fn an_idle_client_is_closed_after_the_keepalive_timeout() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "keepalive_timeout = \"500ms\", header_timeout = \"5s\"");
    let mut client = Wire::to(port);
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
        std::thread::sleep(Duration::from_millis(200));
    }
    let begun = Instant::now();
    assert!(client.is_over());
    assert!((200..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(evener.service_counter("s", "closed.idle_timeout"), 1);
}

#[test]
fn a_stalled_upload_gives_408_and_a_slow_upload_is_completed() {
    let origin = Origin::named("a");
    let (_evener, port) = run_http(&[&origin], "stall_timeout = \"600ms\"");
    let (mut slow, mut stalled) = (Wire::to(port), Wire::to(port));
    let header = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    slow.send(header).unwrap();
    stalled.send(format!("{header}x")).unwrap();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        slow.send("x").unwrap();
    }
    assert_eq!(slow.response("POST").unwrap().text(), "a");
    let response = stalled.response("POST").unwrap();
    assert_eq!((response.status(), response.closes()), (408, true));
}

/// A slow reader is not a stalled reader, even while the kernel buffers many bytes.
#[test]
fn a_client_that_reads_slowly_but_steadily_is_not_cut_off() {
    const SIZE: usize = 16 << 20;
    let origin = Origin::start(|wire, _| wire.reply("200 OK", "", &crate::harness::origin::pattern(5, SIZE)));
    let (_evener, port) = run_http(&[&origin], "stall_timeout = \"1s\"");
    let client = Wire::to(port);
    client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let (mut received, mut buffer) = (0, vec![0; 16_384]);
    let begun = Instant::now();
    while let Ok(read @ 1..) = (&*client.stream).read(&mut buffer) {
        received += read;
        // About 1 MiB a second at first, then at full speed. The client's kernel opens the window only when a large part of
        // its buffer is free again. With a slower reader that may take longer than the stall timeout.
        if begun.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(15));
        }
    }
    assert!(received > SIZE, "received {received} bytes of {SIZE}");
}

/// The memory of a process, in bytes (proc(5), VmRSS).
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_large_response_to_a_slow_client_uses_little_memory() {
    const SIZE: usize = 256 << 20;
    let origin = Server::start(|mut stream| {
        let mut header = [0; 4096];
        let _ = stream.read(&mut header);
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes());
        let piece = vec![b'x'; 1 << 20];
        while stream.write_all(&piece).is_ok() {}
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}",
        origin.port
    ));
    let listen = evener.port("s");
    let client = Wire::to(listen);
    // With a small receive buffer the kernel opens the window in small steps, so that Evener always has bytes waiting.
    socket2::SockRef::from(&client.stream).set_recv_buffer_size(16 * 1024).unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let (mut received, mut buffer) = (0, vec![0; 8192]);
    let before = resident(evener.pid());
    while let Ok(read @ 1..) = (&*client.stream).read(&mut buffer) {
        received += read;
    }
    assert!(received > SIZE, "received {received} bytes of {SIZE}");
    let grown = resident(evener.pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "the memory grew by {grown} bytes");
}

#[test]
fn header_sections_have_the_configured_limits() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "header_bytes_max = 4096, header_fields_max = 20");
    let status = |more: &str| Wire::to(port).ask("GET", "/", more).unwrap().status();
    assert_eq!(status(&format!("X: {}\r\n", "x".repeat(4000))), 200);
    assert_eq!(status(&format!("X: {}\r\n", "x".repeat(4096))), 431);
    assert_eq!([status(&"X: y\r\n".repeat(19)), status(&"X: y\r\n".repeat(20))], [200, 431]);
    assert_eq!(evener.service_counter("s", "requests_bad"), 2);
}

#[test]
fn http_clients_that_disconnect_at_any_point_leave_no_connections_or_descriptors_open() {
    for balance in ["request", "connection"] {
        let origin =
            Origin::start(|wire, _| wire.reply("200 OK", "", &crate::harness::origin::pattern(3, 40_000)));
        let (evener, port) = run_http(&[&origin], &format!("balance_per = \"{balance}\""));
        let until = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            for lane in 0..4 {
                scope.spawn(move || {
                    (lane..)
                        .take_while(|_| Instant::now() < until)
                        .for_each(|turn| disconnect_early(port, turn));
                });
            }
        });
        wait_until("every connection to end", || {
            let status = evener.status();
            let server = &status["pools"][0]["servers"][0];
            (status["services"][0]["connections_active"] == 0 && server["active"] == 0).then_some(())
        });
        origin.hang_up_all();
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count();
        wait_until("every descriptor to be closed", || (descriptors() < 40).then_some(()));
        assert_eq!(get(port, "/").status(), 200, "{balance}");
    }
}

/// A client that disconnects during its request or its response, depending on `turn`.
fn disconnect_early(port: u16, turn: usize) {
    let whole = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let mut client = Wire::to(port);
    let linger = (turn.is_multiple_of(2)).then_some(Duration::ZERO);
    socket2::SockRef::from(&*client.stream).set_linger(linger).unwrap();
    let sent = [0, 10, whole.len() - 3, whole.len(), whole.len(), whole.len()][turn % 6];
    let _ = client.send(&whole[..sent]);
    if turn % 6 == 4 {
        let _ = client.header();
    } else if turn % 6 == 5 {
        let _ = client.response("POST");
    }
}
