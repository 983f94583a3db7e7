//! HTTP when servers fail: which server is tried next, which response the client gets, and which server the
//! client returns to.

use crate::harness::origin::{Message, Origin, Wire, get, hang_up, http_service, run_http};
use crate::harness::{DEADLINE, Evener, wait_until};
use std::io::Read;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Returns true if the response is the local error page for the status.
fn is_page(response: &Message, status: u16) -> bool {
    response.status() == status
        && response.field("Content-Type") == "text/html; charset=utf-8"
        && response.field("Cache-Control") == "no-store"
        && response.text().contains(&format!("<h1>{status} "))
}

#[test]
fn a_dead_server_gives_an_error_page_and_the_client_connection_stays_open() {
    let mut origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "passive = false");
    origin.kill();
    let mut client = Wire::to(port);
    for _ in 0..3 {
        let response = client.ask("GET", "/", "").unwrap();
        assert!(is_page(&response, 502), "{}", response.header);
        assert!(!response.closes());
        assert_eq!(client.ask("HEAD", "/", "").unwrap().status(), 502);
    }
    assert_eq!(evener.service_counter("s", "requests_failed"), 6);
    let _origin = Origin::start_at(origin.port, |wire, _| wire.reply("200 OK", "", b"back"));
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "back");
}

#[test]
fn a_pool_without_a_usable_server_gives_503_with_retry_after() {
    let origin = Origin::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \
         {{ \"127.0.0.1:{}\", state = \"maintenance\" }} }}",
        origin.port
    ));
    let listen = evener.port("s");
    let response = get(listen, "/");
    assert!(is_page(&response, 503), "{}", response.header);
    assert_eq!(response.field("Retry-After"), "1");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_silent_server_gives_504_and_its_late_response_is_discarded() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/silent" {
            std::thread::sleep(Duration::from_millis(900));
        }
        wire.reply("200 OK", "", request.target().as_bytes())
    });
    let (evener, port) = run_http(&[&origin], "response_timeout = \"300ms\"");
    let mut client = Wire::to(port);
    let response = client.ask("GET", "/silent", "").unwrap();
    assert!(is_page(&response, 504), "{}", response.header);
    for turn in 0..6 {
        let target = format!("/{turn}");
        assert_eq!(client.ask("GET", &target, "").unwrap().text(), target);
        std::thread::sleep(Duration::from_millis(200));
    }
    let server = evener.server(&format!("127.0.0.1:{}", origin.port));
    assert_eq!(server["counters"]["response_timeouts"], 1);
}

#[test]
fn the_response_timeout_begins_when_the_upload_is_complete() {
    let origin = Origin::named("a");
    let (_evener, port) = run_http(&[&origin], "response_timeout = \"400ms\"");
    let mut client = Wire::to(port);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").unwrap();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x").unwrap();
    }
    assert_eq!(client.response("POST").unwrap().text(), "a");
}

#[test]
fn a_stalled_response_is_cut_off_and_counted() {
    let origin = Origin::start(|wire, _| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
        std::thread::sleep(Duration::from_secs(5));
        hang_up()
    });
    let (evener, port) = run_http(&[&origin], "stall_timeout = \"400ms\"");
    assert!(Wire::to(port).ask("GET", "/", "").is_err());
    assert_eq!(evener.service_counter("s", "closed.idle_timeout"), 1);
}

/// A server that closes the connection without a response to each of the first `times` requests, and responds to later
/// ones.
fn closes_first(times: usize, name: &'static str) -> Origin {
    let count = Arc::new(AtomicUsize::new(0));
    Origin::start(move |wire, _| {
        if count.fetch_add(1, Ordering::Relaxed) < times {
            hang_up()
        } else {
            wire.reply("200 OK", "", name.as_bytes())
        }
    })
}

#[test]
fn an_idempotent_request_is_retried_on_another_server() {
    let (bad, good) = (closes_first(usize::MAX, "bad"), Origin::named("good"));
    let (evener, port) = run_http(&[&bad, &good], "");
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let body = "Content-Length: 0\r\n";
        for _ in 0..2 {
            let response = Wire::to(port).ask(method, "/", body).unwrap();
            assert_eq!(response.text(), "good", "{method}");
        }
    }
    assert!(!bad.requests().is_empty());
    assert!(evener.service_counter("s", "requests_retried") >= 4);
}

#[test]
fn a_retried_request_is_sent_with_its_body() {
    let (bad, good) = (closes_first(usize::MAX, "bad"), Origin::named("good"));
    let (_evener, port) = run_http(&[&bad, &good], "");
    for _ in 0..2 {
        let mut client = Wire::to(port);
        client
            .send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .unwrap();
        assert_eq!(client.response("PUT").unwrap().text(), "good");
    }
    assert!(good.requests().iter().all(|request| request.body == b"hello"));
    assert_eq!(good.requests().len(), 2);
    assert!(!bad.requests().is_empty());
}

#[test]
fn a_request_that_is_not_idempotent_is_not_retried() {
    for method in ["POST", "PATCH"] {
        let (bad, good) = (closes_first(usize::MAX, "bad"), Origin::named("good"));
        let (evener, port) = run_http(&[&bad, &good], "");
        let responses =
            [0, 1].map(|_| Wire::to(port).ask(method, "/", "Content-Length: 0\r\n").unwrap().status());
        assert_eq!(responses, [502, 200], "{method}");
        assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
        assert_eq!(evener.service_counter("s", "requests_retried"), 0);
    }
}

#[test]
fn a_request_whose_response_began_is_not_retried() {
    let bad = Origin::start(|wire, _| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Le")?;
        hang_up()
    });
    let good = Origin::named("good");
    let (_evener, port) = run_http(&[&bad, &good], "");
    assert_eq!([get(port, "/").status(), get(port, "/").status()], [502, 200]);
    assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
}

#[test]
fn retries_stop_at_the_configured_number() {
    let origins = [(); 6].map(|()| closes_first(usize::MAX, "bad"));
    let all: Vec<&Origin> = origins.iter().collect();
    let (_evener, port) = run_http(&all, "retries = 3");
    assert_eq!(get(port, "/").status(), 502);
    assert_eq!(origins.iter().map(|origin| origin.requests().len()).sum::<usize>(), 4);
}

#[test]
fn a_pooled_connection_that_the_server_closed_is_not_counted_as_a_failure() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "retries = 0");
    let mut client = Wire::to(port);
    for turn in 0..10 {
        let method = if turn % 2 == 0 { "GET" } else { "POST" };
        assert_eq!(client.ask(method, "/", "Content-Length: 0\r\n").unwrap().text(), "a");
        origin.hang_up_all();
        // Evener sees the close within this time: the test is not about a race between the close and the next request.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
    assert_eq!(origin.connections(), 10);
}

#[test]
fn a_response_before_the_upload_is_complete_reaches_the_client() {
    let origin = crate::harness::Server::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.header().unwrap();
        wire.reply("413 Content Too Large", "Connection: close\r\n", b"too much").unwrap();
        let _ = wire.stream.shutdown(Shutdown::Write);
        std::thread::sleep(Duration::from_millis(300));
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}",
        origin.port
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    let stream = Arc::clone(&client.stream);
    let writing = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(
            &mut &*stream,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n",
        );
        let _ = std::io::Write::write_all(&mut &*stream, &vec![b'x'; 8_000_000]);
    });
    let response = client.response("POST").unwrap();
    assert_eq!((response.status(), response.text().as_str(), response.closes()), (413, "too much", true));
    drop(client);
    writing.join().unwrap();
}

#[test]
fn a_request_ends_when_its_client_disconnects() {
    let (left, leaves) = std::sync::mpsc::channel();
    let left = std::sync::Mutex::new(left);
    let origin = Origin::start(move |wire, request| {
        if request.target() != "/long" {
            return wire.reply("200 OK", "", b"a");
        }
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")?;
        let mut failed = Ok(());
        while failed.is_ok() {
            failed = wire.send([0; 65_536]);
        }
        left.lock().unwrap().send(()).unwrap();
        failed
    });
    let (evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    client.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.header().unwrap();
    drop(client);
    leaves.recv_timeout(DEADLINE).unwrap();
    wait_until("the session to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
    assert_eq!(get(port, "/").text(), "a");
}

#[test]
fn a_slow_reader_slows_down_only_its_server_connection() {
    let origin = Origin::start(|wire, request| match request.target() {
        "/long" => wire.reply("200 OK", "", &crate::harness::origin::pattern(3, 32 << 20)),
        _ => wire.reply("200 OK", "", b"short"),
    });
    let (evener, port) = run_http(&[&origin], "");
    let mut slow = Wire::to(port);
    slow.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", evener.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    for _ in 0..50 {
        assert_eq!(get(port, "/").text(), "short");
    }
    assert!(memory() < 64 * 1024, "{} KiB", memory());
    assert!(slow.response("GET").unwrap().body == crate::harness::origin::pattern(3, 32 << 20));
}

/// The `name=value` of the cookie that a response sets.
fn cookie(response: &Message) -> String {
    response.field("Set-Cookie").split(';').next().unwrap().to_owned()
}

#[test]
fn a_client_with_a_cookie_returns_to_its_server() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let all: Vec<&Origin> = origins.iter().collect();
    let (evener, port) = run_http(&all, "sticky = { by = \"cookie\", name = \"WHO\" }");
    let first: Vec<Message> = (0..6).map(|_| get(port, "/")).collect();
    let names: String = first.iter().map(Message::text).collect();
    assert_eq!(names, "abcabc", "without a cookie the servers take turns");
    for response in &first {
        let field = response.field("Set-Cookie");
        assert!(field.starts_with("WHO=") && field.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{field}");
        for _ in 0..4 {
            let again =
                Wire::to(port).ask("GET", "/", &format!("Cookie: x=y; {}\r\n", cookie(response))).unwrap();
            assert_eq!((again.text(), again.field("Set-Cookie")), (response.text(), ""));
        }
    }
    // The order of the servers in the configuration does not matter.
    let listen_again =
        http_service(port, &[all[2], all[0], all[1]], "sticky = { by = \"cookie\", name = \"WHO\" }");
    evener.reload(&listen_again);
    for response in &first {
        let again = Wire::to(port).ask("GET", "/", &format!("Cookie: {}\r\n", cookie(response))).unwrap();
        assert_eq!(again.text(), response.text());
    }
    let foreign = Wire::to(port).ask("GET", "/", "Cookie: WHO=nonsense\r\n").unwrap();
    assert!(foreign.field("Set-Cookie").starts_with("WHO="));
}

#[test]
fn a_client_with_the_cookie_of_a_dead_server_gets_another_server_and_cookie() {
    let (mut a, b) = (Origin::named("a"), Origin::named("b"));
    let (_evener, port) = run_http(&[&a, &b], "sticky = { by = \"cookie\" }");
    let mut client = Wire::to(port);
    let first = client.ask("GET", "/", "").unwrap();
    assert_eq!(first.text(), "a");
    a.kill();
    let sent_cookie = format!("Cookie: {}\r\n", cookie(&first));
    for method in ["GET", "POST"] {
        let response =
            Wire::to(port).ask(method, "/", &format!("{sent_cookie}Content-Length: 0\r\n")).unwrap();
        assert_eq!(response.text(), "b");
        let other = cookie(&response);
        assert!(other.starts_with("EVENER=") && other != cookie(&first), "{}", response.header);
    }
}

#[test]
fn balance_per_connection_keeps_a_client_with_its_server() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let all: Vec<&Origin> = origins.iter().collect();
    let (_evener, port) = run_http(&all, "balance_per = \"connection\"");
    let mut clients: Vec<Wire> = (0..6).map(|_| Wire::to(port)).collect();
    let mut names = Vec::new();
    for _ in 0..5 {
        let turn: String =
            clients.iter_mut().map(|client| client.ask("GET", "/", "").unwrap().text()).collect();
        names.push(turn);
    }
    assert!(names.iter().all(|turn| *turn == names[0]), "{names:?}");
    assert_eq!(names[0], "abcabc");
    assert_eq!(origins.each_ref().map(Origin::connections), [2, 2, 2], "one connection for each client");
}

#[test]
fn balance_per_connection_applies_to_the_pool_of_each_route() {
    let [a, emergency, usual] = ["a", "emergency", "usual"].map(Origin::named);
    let evener = Evener::run(&format!(
        "local a = pool \"a\" {{ \"127.0.0.1:{}\" }}
         local b = pool \"b\" {{ {{ \"127.0.0.1:{}\", tier = 2 }}, \"127.0.0.1:{}\" }}
         service \"h\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = a,
           balance_per = \"connection\", routes = {{ {{ path = \"/b\", pool = b }} }} }}",
        a.port, emergency.port, usual.port
    ));
    let port = evener.port("h");
    // The server numbers of the two pools overlap.
    let mut client = Wire::to(port);
    for (path, name) in [("/", "a"), ("/b", "usual"), ("/b", "usual"), ("/", "a"), ("/b", "usual")] {
        assert_eq!(client.ask("GET", path, "").unwrap().text(), name, "{path}");
    }
}

#[test]
fn balance_per_connection_moves_a_client_whose_server_died_to_another_server() {
    let (mut a, b) = (Origin::named("a"), Origin::named("b"));
    let (_evener, port) = run_http(&[&a, &b], "balance_per = \"connection\"");
    let mut client = Wire::to(port);
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
    a.kill();
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/", "").unwrap().text(), "b");
    }
}

/// After a server closes the private connection of one client, the connection of another client may reuse the
/// slot. The first client must not get the connection of the other client.
#[test]
fn balance_per_connection_never_gives_a_client_the_connection_of_another_client() {
    let origin = Origin::start(|wire, request| {
        let target = request.target().to_owned();
        if target.starts_with("/slow") {
            std::thread::sleep(Duration::from_millis(300));
        }
        wire.reply("200 OK", "", target.as_bytes())
    });
    let (_evener, port) = run_http(&[&origin], "balance_per = \"connection\"");
    let mut early: Vec<Wire> = (0..4).map(|_| Wire::to(port)).collect();
    for (number, client) in early.iter_mut().enumerate() {
        let target = format!("/early/{number}");
        assert_eq!(client.ask("GET", &target, "").unwrap().text(), target);
    }
    origin.hang_up_all();
    std::thread::sleep(Duration::from_millis(100));
    let mut late: Vec<Wire> = (0..4).map(|_| Wire::to(port)).collect();
    for (number, client) in late.iter().enumerate() {
        client.send(format!("GET /slow/{number} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
    }
    wait_until("the requests of the late clients", || (origin.requests().len() == 8).then_some(()));
    for (number, client) in early.iter().enumerate() {
        client.send(format!("GET /again/{number} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
    }
    let mut wrong = Vec::new();
    for (kind, clients) in [("slow", &mut late), ("again", &mut early)] {
        for (number, client) in clients.iter_mut().enumerate() {
            client.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let (target, got) =
                (format!("/{kind}/{number}"), client.response("GET").map(|response| response.text()));
            if got.as_ref().ok() != Some(&target) {
                wrong.push(format!("{target} got {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Closes a client's connection with a reset.
fn reset(client: Wire) {
    socket2::SockRef::from(&*client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

/// A client disconnects after the server closed its private connection. The disconnect must not close the
/// connection of another client that now uses the slot.
#[test]
fn balance_per_connection_never_closes_the_connection_of_another_client() {
    let origin = Origin::start(|wire, request| {
        if request.target() == "/slow" {
            std::thread::sleep(Duration::from_millis(500));
        }
        wire.reply("200 OK", "", request.target().as_bytes())
    });
    let (_evener, port) = run_http(&[&origin], "balance_per = \"connection\"");
    let mut early = Wire::to(port);
    assert_eq!(early.ask("POST", "/", "Content-Length: 0\r\n").unwrap().text(), "/");
    origin.hang_up_all();
    std::thread::sleep(Duration::from_millis(100));
    let mut late = Wire::to(port);
    late.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
    wait_until("the request of the late client", || (origin.requests().len() == 2).then_some(()));
    reset(early);
    late.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!(late.response("POST").unwrap().text(), "/slow");
    let _ = late.stream.shutdown(Shutdown::Write);
    assert_eq!((&*late.stream).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn balance_per_connection_closes_the_server_connections_of_closed_clients() {
    let origin = Origin::named("a");
    let (evener, port) = run_http(&[&origin], "balance_per = \"connection\"");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count();
    let before = descriptors();
    for turn in 0..60 {
        let mut client = Wire::to(port);
        assert_eq!(client.ask("GET", "/", "").unwrap().text(), "a");
        match turn % 3 {
            0 => drop(client),
            1 => reset(client),
            _ => assert_eq!(client.ask("nonsense ", "/", "").unwrap().status(), 400),
        }
    }
    wait_until("the client connections to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
    wait_until("the server connections to be closed", || (descriptors() <= before + 5).then_some(()));
}

/// Reads up to the end of the connection. Returns the bytes, and `true` if the connection ended with a reset.
fn to_the_end(client: &Wire) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let end = (&*client.stream).read_to_end(&mut all);
    (all, end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset))
}

/// A client of HTTP/1.0 takes the orderly close of the connection for the end of the response.
#[test]
fn a_truncated_response_ends_with_a_reset_for_a_client_of_http_1_0() {
    let origin = Origin::start(|wire, request| {
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        if request.target() == "/stall" {
            std::thread::sleep(Duration::from_secs(3));
        } else {
            // The client receives the bytes before the connection ends.
            std::thread::sleep(Duration::from_millis(200));
        }
        hang_up()
    });
    let (_evener, port) = run_http(&[&origin], "stall_timeout = \"500ms\"");
    for target in ["/cut", "/stall"] {
        let client = Wire::to(port);
        client.send(format!("GET {target} HTTP/1.0\r\nHost: a\r\n\r\n")).unwrap();
        let (all, reset) = to_the_end(&client);
        assert!(all.ends_with(b"hello"), "{target}: {}", String::from_utf8_lossy(&all));
        assert!(reset, "{target}: the truncated response ended with an orderly close");
    }
}

#[test]
fn an_endless_series_of_interim_responses_is_cut_off() {
    let origin = Origin::start(|wire, _| {
        while wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").is_ok() {}
        hang_up()
    });
    let (_evener, port) = run_http(&[&origin], "");
    let mut client = Wire::to(port);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let responses = std::iter::repeat_with(|| client.response("GET").unwrap().status());
    let interims = responses.take_while(|status| *status == 103).count();
    assert!((1..=100).contains(&interims), "{interims}");
}

/// The rest of the client's bytes are a chunked body, not the new protocol (RFC 9110, section 7.8).
#[test]
fn a_101_before_the_upload_is_complete_gives_502() {
    let origin = crate::harness::Server::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.header().unwrap();
        wire.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let _ = wire.header();
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\" }}",
        origin.port
    ));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe")
        .unwrap();
    assert_eq!(client.response("POST").unwrap().status(), 502);
}

/// The time that a request spent on a pooled connection must not count as the connect time of a new connection.
#[test]
fn a_retry_after_a_pooled_connection_broke_gets_a_new_connect_timeout() {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |wire, _| {
        if count.fetch_add(1, Ordering::Relaxed) == 1 {
            std::thread::sleep(Duration::from_millis(600));
            return hang_up();
        }
        wire.reply("200 OK", "", b"here")
    });
    let (evener, port) = run_http(&[&origin], "connect_timeout = \"100ms\", connect_time_max = \"200ms\"");
    let mut client = Wire::to(port);
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "here");
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "here");
    assert_eq!((origin.connections(), evener.log_count(" server_down ")), (2, 0));
}
