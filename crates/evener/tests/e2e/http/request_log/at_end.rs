//! Formats that log a request at the end of its response: whether a server responds, or Evener itself, over
//! HTTP/1 and HTTP/2.

use super::in_format;
use crate::harness::certificates::curl;
use crate::harness::origin::{Message, Origin, Wire, hang_up, http_service, run_http};
use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, have, wait_until};
use crate::http::http2::client::{Front, NAME, pause, within};
use serde_json::Value;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Shutdown, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A log of JSON in a directory of its own.
pub(super) struct JsonLog {
    path: PathBuf,
    _directory: Directory,
}

impl JsonLog {
    pub(super) fn new() -> Self {
        let directory = Directory::new();
        Self { path: directory.file("requests.log"), _directory: directory }
    }

    /// Returns the key for a service.
    pub(super) fn key(&self) -> String {
        in_format(&self.path, "json")
    }

    /// Waits until the log has this many lines, and returns them.
    fn records(&self, count: usize) -> Vec<Value> {
        let text = whole_lines(&self.path, count);
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// Waits until the log has one line, returns it, and empties the log.
    pub(super) fn take(&self) -> Value {
        let record = self.records(1).remove(0);
        fs::write(&self.path, "").unwrap();
        record
    }

    /// Waits for one line, and returns its method, target, status and reason.
    fn take_summary(&self) -> (String, String, u64, String) {
        let record = self.take();
        let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
        (text("method"), text("target"), record["status"].as_u64().unwrap_or_default(), text("reason"))
    }

    #[track_caller]
    pub(super) fn expect(&self, method: &str, target: &str, status: u64, reason: &str) {
        assert_eq!(self.take_summary(), (method.into(), target.into(), status, reason.into()));
    }
}

/// Waits until a log has this many lines, and no more.
fn whole_lines(log: &Path, count: usize) -> String {
    let text = wait_until("the lines of the log", || {
        let text = fs::read_to_string(log).unwrap_or_default();
        (text.lines().count() >= count && text.ends_with('\n')).then_some(text)
    });
    assert_eq!(text.lines().count(), count, "{text}");
    text
}

/// A server whose responses depend on the target.
fn origin() -> Origin {
    Origin::start(|wire, request| match request.target() {
        "/chunked" => {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        }
        "/empty" => wire.send("HTTP/1.1 204 No Content\r\n\r\n"),
        "/cut" => {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789")?;
            hang_up()
        }
        "/close" => hang_up(),
        "/invalid" => {
            wire.send("220 ready\r\n\r\n")?;
            hang_up()
        }
        "/silent" => {
            // The client sends no more bytes: this waits for the end of the connection.
            let _ = wire.header();
            hang_up()
        }
        _ => reply(wire, request),
    })
}

fn reply(wire: &Wire, request: &Message) -> io::Result<()> {
    let body: &[u8] = if request.method() == "HEAD" { b"" } else { b"hello" };
    wire.reply(if request.target() == "/500" { "500 Internal Server Error" } else { "200 OK" }, "", body)
}

/// Sends a request for a target with curl, over https.
fn curl_target(port: u16, target: &str, arguments: &[&str]) {
    let arguments = [&["-k", "--request-target", target], arguments].concat();
    curl(port, NAME, "https", &arguments);
}

#[test]
fn curl_requests_are_logged_with_bytes_times_and_server_over_each_version() {
    if !have("curl") {
        return;
    }
    let (origin, log) = (origin(), JsonLog::new());
    let front = Front::run(&[&origin], &log.key());
    let server = Value::from(format!("127.0.0.1:{}", origin.port));
    for (option, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        let check = |more: &[&str], method: &str, target: &str, status: u64, bytes: (u64, u64)| {
            let agent = [option, "-A", "agent \"7\"", "-e", "http://r/"];
            curl_target(front.port, target, &[&agent[..], more].concat());
            let record = log.take();
            let expect = |name: &str, value: Value| assert_eq!(record[name], value, "{name} in {record}");
            expect("protocol", version.into());
            expect("method", method.into());
            expect("target", target.into());
            expect("status", status.into());
            expect("request_bytes", bytes.0.into());
            expect("response_bytes", bytes.1.into());
            expect("service", "s".into());
            expect("pool", "s".into());
            expect("server", server.clone());
            expect("server_address", server.clone());
            expect("retries", 0.into());
            expect("client", "127.0.0.1".into());
            expect("host", format!("{NAME}:{}", front.port).into());
            expect("user_agent", "agent \"7\"".into());
            expect("referer", "http://r/".into());
            expect("tls", "TLSv1.3".into());
            expect("sni", NAME.into());
            expect("reason", Value::Null);
            expect("malformed", Value::Null);
            let time = |name: &str| record[name].as_f64().unwrap_or_else(|| panic!("{name} in {record}"));
            let is_ordered =
                time("connected") <= time("first_byte") && time("first_byte") <= time("duration");
            assert!(is_ordered, "expected ascending times: {record}");
            assert!(record["client_port"].as_u64() > Some(0), "{record}");
        };
        check(&[], "GET", "/a?b=c", 200, (0, 5));
        check(&["-I"], "HEAD", "/head", 200, (0, 0));
        check(&["-d", "abc"], "POST", "/post", 200, (3, 5));
        check(&["-H", "Transfer-Encoding: chunked", "-d", "abcd"], "POST", "/upload", 200, (4, 5));
        check(&[], "GET", "/chunked", 200, (0, 5));
        check(&[], "GET", "/empty", 204, (0, 0));
        check(&[], "GET", "/500", 500, (0, 5));
    }
}

/// Sends a request over each version to a service with these settings, and checks the log.
fn check_over_each_version(ports: &[u16], more: &str, field: (&str, &str), status: u64, reason: &str) {
    let log = JsonLog::new();
    let more = format!("{more}, {}", log.key());
    let front = Front::run_ports(ports, "", &more);
    within(async {
        let client = front.client().await;
        let response = client.request("GET", "/a", &[field]).await.unwrap();
        assert_eq!(u64::from(response.status()), status);
    });
    log.expect("GET", "/a", status, reason);
    let servers: String = ports.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {servers} {more} }}"
    ));
    let response = Wire::to(evener.port("s")).ask("GET", "/a", &format!("{}: {}\r\n", field.0, field.1));
    let record = log.take();
    assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()), "{record}");
    let response = response.unwrap();
    assert_eq!(record["response_bytes"].as_u64(), Some(response.body.len() as u64), "{record}");
}

#[test]
fn local_responses_are_logged_with_their_reason_over_each_version() {
    let check = |ports: &[u16], more: &str, status, reason: &str| {
        check_over_each_version(ports, more, ("x-forwarded-for", "192.0.2.9"), status, reason);
    };
    let origin = Origin::named("a");
    let ports = [origin.port];
    check(&ports, "health = \"/a\"", 200, "health");
    check(&[], "redirect = \"https\"", 308, "redirect");
    check(&[], "respond = { status = 410, body = \"gone\" }", 410, "respond");
    check(&[], "routes = { { path = \"/r\", pool = pool \"p\" { \"127.0.0.1:9\" } } }", 404, "no_route");
    let refused = "forwarded = { trust = \"127.0.0.0/8\" }, denied = \"reject\", deny = \"192.0.2.0/24\"";
    check(&ports, refused, 403, "client_denied");
    check(&[], "{ \"127.0.0.1:9\", state = \"maintenance\" }", 503, "no_server_up");
    let mut dead = Origin::named("dead");
    dead.kill();
    check(&[dead.port], "passive = false", 502, "connect_failed");
}

#[test]
fn a_limited_client_is_logged_with_429() {
    let (origin, log) = (Origin::named("a"), JsonLog::new());
    let more = format!("per_client = {{ request_rate = \"1/h\", exceeded = \"reject\" }}, {}", log.key());
    let (_evener, port) = run_http(&[&origin], &more);
    let mut client = Wire::to(port);
    client.ask("GET", "/first", "").unwrap();
    log.take();
    client.ask("GET", "/second", "").unwrap();
    log.expect("GET", "/second", 429, "client_limited");
}

#[test]
fn requests_that_cannot_be_parsed_are_logged_escaped() {
    let (origin, log) = (Origin::named("a"), JsonLog::new());
    let more = format!("header_timeout = \"300ms\", header_bytes_max = 1024, {}", log.key());
    let (_evener, port) = run_http(&[&origin], &more);
    let check = |sent: &[u8], status: u64, reason: &str| {
        let mut client = Wire::to(port);
        client.send(sent).unwrap();
        assert_eq!(u64::from(client.response("GET").unwrap().status()), status);
        let record = log.take();
        assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()), "{record}");
        record
    };
    let record = check(b"nonsense \x1b[31m\xff \"x\r\n\r\n", 400, "request_invalid");
    assert_eq!((&record["method"], &record["target"]), (&Value::Null, &Value::Null), "{record}");
    assert_eq!(record["malformed"], "nonsense \u{1b}[31m\u{fffd} \"x");
    let record = check(b"GET /no-host HTTP/1.1\r\nUser-Agent: x\r\n\r\n", 400, "request_invalid");
    assert!(record["detail"].as_str().is_some_and(|detail| detail.contains("Host")), "{record}");
    assert_eq!((&record["method"], &record["target"]), (&"GET".into(), &"/no-host".into()), "{record}");
    check(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400, "tls_on_plain_port");
    let record = check(b"GET /late HT", 408, "request_timeout");
    assert_eq!(record["malformed"], "GET /late HT");
    assert!(record["duration"].as_f64() >= Some(0.3), "expected at least the timeout: {record}");
    let large = format!("GET /large HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2000));
    let record = check(large.as_bytes(), 431, "header_too_large");
    assert_eq!(record["target"], "/large");
    let raw = fs::read(&log.path).unwrap();
    assert!(raw.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
}

#[test]
fn plain_http_on_a_port_with_tls_is_logged() {
    let (origin, log) = (Origin::named("a"), JsonLog::new());
    let front = Front::run(&[&origin], &log.key());
    let response = Wire::to(front.port).ask("GET", "/plain", "").unwrap();
    assert_eq!(response.status(), 400);
    log.expect("GET", "/plain", 400, "plain_http");
}

#[test]
fn a_request_that_an_operator_ends_is_logged_with_that_reason() {
    let (origin, log) = (origin(), JsonLog::new());
    let (evener, port) = run_http(&[&origin], &log.key());
    let mut client = Wire::to(port);
    client.send("GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the request", || (origin.lines() == ["GET /silent"]).then_some(()));
    let listed = evener.run_command(&["connections", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let number = listed["connections"][0]["number"].to_string();
    let closed = evener.run_command(&["close", &number]);
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    log.expect("GET", "/silent", 0, "operator");
    assert!(client.is_over() || client.response("GET").is_err());
}

#[test]
fn a_header_section_over_http2_that_is_too_large_is_logged() {
    let (origin, log) = (origin(), JsonLog::new());
    let front = Front::run(&[&origin], &log.key());
    within(async {
        let large = "x".repeat(40_000);
        let response = front.client().await.request("GET", "/", &[("x-large", &large)]).await.unwrap();
        assert_eq!(response.status(), 431);
    });
    assert_eq!(log.take()["reason"], "header_too_large");
    assert_eq!(front.counter("headers_too_large"), 1);
}

#[test]
fn a_refused_client_without_a_response_is_logged() {
    let (origin, log) = (Origin::named("a"), JsonLog::new());
    let refused = "forwarded = { trust = \"127.0.0.0/8\" }, deny = \"192.0.2.0/24\"";
    for denied in ["drop", "tarpit"] {
        let more = format!("{refused}, denied = \"{denied}\", {}", log.key());
        let (_evener, port) = run_http(&[&origin], &more);
        let client = Wire::to(port);
        client.send("GET /refused HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n").unwrap();
        let record = log.take();
        assert_eq!(
            (&record["status"], &record["reason"]),
            (&Value::Null, &"client_denied".into()),
            "{record}"
        );
        assert_eq!(
            (&record["client"], &record["target"]),
            (&"192.0.2.9".into(), &"/refused".into()),
            "{record}"
        );
    }
}

#[test]
fn failures_of_servers_are_logged_with_their_reason_over_each_version() {
    let (origin, log) = (origin(), JsonLog::new());
    let more = format!("response_timeout = \"300ms\", retries = 0, passive = false, {}", log.key());
    let front = Front::run(&[&origin], &more);
    let check = |target: &str, status: u64, reason: &str, bytes: Option<u64>| {
        let record = log.take();
        assert_eq!(record["target"], target);
        assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()), "{record}");
        assert_eq!(record["server"], format!("127.0.0.1:{}", origin.port), "{record}");
        if let Some(bytes) = bytes {
            assert_eq!(record["response_bytes"], bytes, "{record}");
        }
    };
    for (target, status, reason, bytes) in [
        ("/cut", 200, "response_incomplete", Some(10)),
        ("/close", 502, "server_closed", None),
        ("/invalid", 502, "response_invalid", None),
        ("/silent", 504, "response_timeout", None),
    ] {
        within(async {
            let client = front.client().await;
            // An incomplete response is an error.
            let _ = client.request("GET", target, &[]).await;
        });
        check(target, status, reason, bytes);
        curl_target(front.port, target, &["--http1.1"]);
        check(target, status, reason, bytes);
    }
}

#[test]
fn a_server_that_refuses_counts_as_a_retry() {
    let (origin, log) = (Origin::named("a"), JsonLog::new());
    let mut dead = Origin::named("dead");
    dead.kill();
    let more = format!("policy = \"first\", passive = false, {}", log.key());
    let (_evener, port) = run_http(&[&dead, &origin], &more);
    Wire::to(port).ask("GET", "/", "").unwrap();
    let record = log.take();
    assert_eq!((&record["status"], &record["retries"]), (&200.into(), &1.into()), "{record}");
    assert_eq!(record["server"], format!("127.0.0.1:{}", origin.port));
}

#[test]
fn a_client_that_leaves_early_is_logged_without_a_status() {
    let (origin, log) = (origin(), JsonLog::new());
    let front = Front::run(&[&origin], &log.key());
    let (_evener, port) = run_http(&[&origin], &log.key());
    let client = Wire::to(port);
    client.send("GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the request", || (origin.lines() == ["GET /silent"]).then_some(()));
    drop(client);
    log.expect("GET", "/silent", 0, "client_closed");
    origin.forget();
    within(async {
        let client = front.client().await;
        let _response = client.open("GET", "/silent").await.unwrap();
        while origin.lines().is_empty() {
            pause(5).await;
        }
        client.disconnect();
    });
    log.expect("GET", "/silent", 0, "client_closed");
}

#[test]
fn each_request_of_a_connection_has_a_line() {
    let (origin, log) = (origin(), JsonLog::new());
    let (_evener, port) = run_http(&[&origin], &log.key());
    let mut client = Wire::to(port);
    client.ask("GET", "/1", "").unwrap();
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.response("GET").unwrap();
    client.response("GET").unwrap();
    client.send("GET /4 HTTP/1.0\r\n\r\n").unwrap();
    client.response("GET").unwrap();
    let records = log.records(4);
    let summary = |record: &Value| {
        let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("target"), text("protocol"), text("host"))
    };
    let found: Vec<String> = records.iter().map(summary).collect();
    assert_eq!(found, ["/1 HTTP/1.1 test", "/2 HTTP/1.1 a", "/3 HTTP/1.1 a", "/4 HTTP/1.0 -"]);
    assert!(records.iter().all(|record| record["client_port"] == records[0]["client_port"]));
}

#[test]
fn a_client_that_a_trusted_proxy_reports_is_logged_without_a_port() {
    let (origin, log) = (origin(), JsonLog::new());
    let more = format!("forwarded = {{ trust = \"127.0.0.0/8\" }}, {}", log.key());
    let (_evener, port) = run_http(&[&origin], &more);
    Wire::to(port).ask("GET", "/", "X-Forwarded-For: 2001:db8::7\r\n").unwrap();
    let record = log.take();
    assert_eq!(
        (&record["client"], &record["client_port"]),
        (&"2001:db8::7".into(), &Value::Null),
        "{record}"
    );
}

#[test]
fn an_upgraded_connection_is_logged_at_its_end_with_the_bytes_of_both_directions() {
    let log = JsonLog::new();
    let server = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.header().unwrap();
        wire.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst").unwrap();
        let mut received = Vec::new();
        let _ = (&*wire.stream).read_to_end(&mut received);
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\", {} }}",
        server.port,
        log.key()
    ));
    let mut client = Wire::to(evener.port("s"));
    let header = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    client.send(header).unwrap();
    assert_eq!(client.response("GET").unwrap().status(), 101);
    client.send("second word").unwrap();
    assert_eq!(fs::read_to_string(&log.path).unwrap_or_default(), "", "the line is written at the end");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let record = log.take();
    assert_eq!((&record["status"], &record["reason"]), (&101.into(), &Value::Null), "{record}");
    assert_eq!((&record["request_bytes"], &record["response_bytes"]), (&11.into(), &5.into()), "{record}");
}

#[test]
fn a_collector_gets_each_line_in_a_datagram() {
    let origin = origin();
    let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(DEADLINE)).unwrap();
    let address = collector.local_addr().unwrap();
    let more = format!("request_log = {{ udp = \"{address}\", format = \"json\" }}");
    let (_evener, port) = run_http(&[&origin], &more);
    for target in ["/one", "/two"] {
        Wire::to(port).ask("GET", target, "").unwrap();
        let mut datagram = [0; 65_536];
        let length = collector.recv(&mut datagram).unwrap();
        let record: Value = serde_json::from_slice(&datagram[..length]).unwrap();
        assert_eq!((&record["target"], &record["status"]), (&target.into(), &200.into()));
    }
}

#[test]
fn the_default_format_is_readable_text() {
    let (origin, directory) = (origin(), Directory::new());
    let log = directory.file("requests.log");
    let (_evener, port) = run_http(&[&origin], &format!("request_log = \"{}\"", log.display()));
    Wire::to(port).ask("GET", "/a?b=c", "").unwrap();
    let text = whole_lines(&log, 1);
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(time.len() == "2026-11-28T21:16:49.123Z".len() && time.ends_with('Z'), "{text}");
    let (before, after) = rest.trim_end().split_once("duration=").unwrap();
    let (seconds, after) = after.split_once(' ').unwrap();
    assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds < 60.0), "{text}");
    assert_eq!(before, "127.0.0.1 \"GET /a?b=c HTTP/1.1\" 200 ");
    let expected = format!(
        "response_bytes=5 request_bytes=0 host=test service=s pool=s server=127.0.0.1:{} retries=0 reason=-",
        origin.port
    );
    assert_eq!(after, expected);
}

#[test]
fn goaccess_reads_the_combined_format() {
    if !have("goaccess") || !have("curl") {
        return;
    }
    let (origin, directory) = (origin(), Directory::new());
    let log = directory.file("access.log");
    let front = Front::run(&[&origin], &format!("health = \"/health\", {}", in_format(&log, "combined")));
    for target in ["/a", "/a", "/500", "/health"] {
        curl_target(
            front.port,
            target,
            &["--http2", "-A", "a \"quoted\" [agent] \u{fc}", "-e", "http://r.example/"],
        );
    }
    curl_target(front.port, "/silent", &["--http1.1", "-m", "0.3"]);
    whole_lines(&log, 5);
    let report = directory.file("report.json");
    let output = Command::new("goaccess")
        .arg(&log)
        .args(["--log-format=COMBINED", "--no-global-config", "--no-progress", "-o"])
        .arg(&report)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    let general = &report["general"];
    assert_eq!(
        (&general["valid_requests"], &general["failed_requests"]),
        (&5.into(), &0.into()),
        "{general}"
    );
    let statuses = report["status_codes"]["data"].as_array().unwrap().iter();
    let codes: Vec<&str> = statuses
        .flat_map(|class| class["items"].as_array().unwrap())
        .map(|item| &item["data"].as_str().unwrap()[..3])
        .collect();
    assert!(["200", "499", "500"].iter().all(|code| codes.contains(code)), "{codes:?}");
}

#[test]
fn a_log_on_standard_output_continues_after_a_reload() {
    let origin = origin();
    let mut evener = Evener::run(&http_service(0, &[&origin], "request_log = \"-\""));
    let port = evener.port("s");
    let get = |target: &str| drop(Wire::to(port).ask("GET", target, "").unwrap());
    get("/one");
    evener.expect_log("\"GET /one HTTP/1.1\" 200");
    evener.reload(&http_service(
        port,
        &[&origin],
        "request_log = { file = \"/dev/stderr\", format = \"{target}!\" }",
    ));
    get("/two");
    evener.expect_log("/two!\n");
    // The last lines are written before the program ends.
    get("/three");
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert!(evener.log().contains("/three!\n"));
}

#[test]
fn a_log_is_written_to_a_socket_on_standard_output() {
    let (origin, directory) = (origin(), Directory::new());
    // A socket cannot be opened by the name /dev/stdout.
    let (mut reader, stdout) = UnixStream::pair().unwrap();
    let config = directory.write("evener.lua", &http_service(0, &[&origin], "request_log = \"/dev/stdout\""));
    let admin = directory.file("admin.sock");
    let mut child = Command::new(BINARY)
        .args(["run", &config.display().to_string(), "--admin", &admin.display().to_string()])
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(stdout))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let port = wait_until("the instance to start", || {
        let arguments = ["status", "--json", "--socket", &admin.display().to_string()];
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        status["services"][0]["listen"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
    });
    Wire::to(port).ask("GET", "/line", "").unwrap();
    reader.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut line = String::new();
    BufReader::new(&mut reader).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("\"GET /line HTTP/1.1\" 200"), "{line}");
}
