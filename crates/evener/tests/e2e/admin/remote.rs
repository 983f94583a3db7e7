//! The admin API over TCP: tokens, hosts and origins, TLS, limits, and changes of its address.

use crate::harness::certificates::Authority;
use crate::harness::{BINARY, DEADLINE, Directory, Evener, connect, line, wait_until};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef-ops";
const SERVICE: &str = "service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:1\" }\n";

pub(crate) fn write_tokens(directory: &Directory, name: &str, text: &str, mode: u32) -> String {
    let file = directory.write(name, text);
    fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    file.display().to_string()
}

fn config(listen: &str, tokens: &str, more: &str) -> String {
    format!("admin {{ listen = \"{listen}\", token_file = \"{tokens}\", {more} }}\n{SERVICE}")
}

/// Returns the port of the API that was opened last.
pub(crate) fn api_port(evener: &Evener) -> u16 {
    wait_until("the API to listen", || {
        let log = evener.log();
        let line = log.lines().rfind(|line| line.contains(" api_listening "))?.to_owned();
        line.rsplit_once(':')?.1.trim_matches('"').parse().ok()
    })
}

/// Sends a request with these header fields, and returns the whole response.
pub(crate) fn request(port: u16, method: &str, path: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    raw(port, &format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{fields}\r\n"))
}

fn raw(port: u16, text: &str) -> String {
    let mut stream = connect(port);
    stream.write_all(text.as_bytes()).unwrap();
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

fn status(response: &str) -> u16 {
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no response: {response:?}"))
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).env_remove("EVENER_SOCKET").output().unwrap()
}

fn checked(text: &str) -> String {
    let directory = Directory::new();
    let file = directory.write("evener.lua", text);
    String::from_utf8(run(&["check", file.to_str().unwrap()]).stderr).unwrap()
}

#[test]
fn every_request_over_tcp_needs_a_token_and_the_right_host_and_origin() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("# comment\nops {TOKEN}\n"), 0o600);
    let evener = Evener::run(&config("127.0.0.1:0", &tokens, "hosts = \"lb.example.org\""));
    let port = api_port(&evener);
    let host = format!("Host: 127.0.0.1:{port}");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let check = |fields: &[&str], expected: u16| {
        for path in ["/v1/status", "/metrics", "/v1/config", "/none"] {
            let response = request(port, "GET", path, fields);
            let expected = if expected == 200 && path.len() < 6 { 404 } else { expected };
            assert_eq!(status(&response), expected, "{path} {fields:?}: {response}");
            let is_problem = response.contains("content-type: application/problem+json\r\n");
            assert_eq!(is_problem, expected != 200, "{response}");
        }
    };
    check(&[&host, &bearer], 200);
    check(&["Host: LOCALHOST", &bearer], 200);
    check(&["Host: lb.example.org:80", &bearer], 200);
    check(&[&host, &bearer, &format!("Origin: http://127.0.0.1:{port}")], 200);
    check(&[&host], 401);
    check(&[&host, "Authorization: Bearer 0123456789abcdef-opt"], 401);
    check(&[&host, "Authorization: Bearer 0123456789abcdef-op"], 401);
    check(&[&host, "Authorization: Bearer "], 401);
    check(&[&host, &format!("Authorization: Basic {TOKEN}")], 401);
    check(&[&host, &bearer, &bearer], 400);
    check(&[&bearer], 400);
    check(&[&host, &host, &bearer], 400);
    check(&["Host: evil.example", &bearer], 421);
    check(&["Host: 127.0.0.1.evil.example", &bearer], 421);
    check(&[&host, &bearer, "Origin: http://evil.example"], 403);
    check(&[&host, &bearer, "Origin: null"], 403);
    check(&[&host, &bearer, &format!("Origin: https://127.0.0.1:{port}")], 403);
    let absolute = format!(
        "GET http://evil.example/v1/status HTTP/1.1\r\nConnection: close\r\n{host}\r\n{bearer}\r\n\r\n"
    );
    assert_eq!(status(&raw(port, &absolute)), 421);
    assert!(
        request(port, "GET", "/v1/status", &[&host])
            .contains("www-authenticate: Bearer realm=\"evener\"\r\n")
    );
    evener.expect_log(" api_refused ");

    let post = request(port, "POST", "/v1/reload", &[&host, &bearer, "Content-Length: 0"]);
    assert_eq!(status(&post), 200, "{post}");
    evener.expect_log("token ops from 127.0.0.1:");
    assert!(!evener.log().contains(TOKEN), "the log has a token");
}

#[test]
fn commands_reach_an_instance_over_tcp_and_tls() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let wrong = write_tokens(&directory, "wrong", "ops 0123456789abcdef-bad\n", 0o600);
    let authority = Authority::new("ca");
    let ca = authority.write(&directory, "ca").0.display().to_string();
    let tls = format!("tls = {{ {} }}", authority.issue(&["localhost", "127.0.0.1"]).keys(&directory, "api"));
    let evener = Evener::run(&config("127.0.0.1:0", &tokens, &tls));
    let url = format!("https://localhost:{}", api_port(&evener));
    let command = |more: &[&str]| {
        let arguments = ["status", "--json", "--api", &url];
        run(&arguments.iter().chain(more).copied().collect::<Vec<_>>())
    };
    let seen = command(&["--token-file", &tokens, "--ca-file", &ca]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
    assert!(String::from_utf8(seen.stdout).unwrap().contains("\"services\""));
    let error = |more: &[&str]| {
        let output = command(more);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&["--token-file", &wrong, "--ca-file", &ca]).contains("no valid token"));
    assert!(error(&["--token-file", &tokens]).contains("TLS failed"));
}

#[test]
fn the_address_and_the_tokens_change_at_a_reload() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let evener = Evener::run(&config("127.0.0.1:0", &tokens, ""));
    let first = api_port(&evener);
    let get = |port: u16, token: &str| {
        status(&request(
            port,
            "GET",
            "/v1/status",
            &["Host: localhost", &format!("Authorization: Bearer {token}")],
        ))
    };
    let mut follower = connect(first);
    let follow = format!(
        "GET /v1/events?follow=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    );
    follower.write_all(follow.as_bytes()).unwrap();
    assert!(line(&mut follower).starts_with("HTTP/1.1 200 "));

    write_tokens(&directory, "tokens", "new 0123456789abcdef-new\n", 0o600);
    evener.reload(&config("127.0.0.1:0", &tokens, ""));
    assert_eq!((get(first, TOKEN), get(first, "0123456789abcdef-new")), (401, 200));
    // A client with the old token receives nothing more.
    let mut rest = Vec::new();
    let _ = follower.read_to_end(&mut rest);

    evener.reload(&config("[::1]:0", &tokens, ""));
    wait_until("the old address to close", || {
        TcpStream::connect(("127.0.0.1", first)).is_err().then_some(())
    });
    evener.reload(SERVICE);
    evener.expect_log(" api_closed ");
    let before = evener.log_count(" reload_failed ");
    write_tokens(&directory, "tokens", "new 0123456789abcdef-new\n", 0o644);
    evener.write_config(&config("127.0.0.1:0", &tokens, ""));
    evener.signal("HUP");
    wait_until("the refusal", || (evener.log_count(" reload_failed ") > before).then_some(()));
    assert!(evener.log().contains("lets others read or change the tokens"));
}

#[test]
fn slow_clients_and_long_requests_are_closed() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let evener = Evener::run(&config("127.0.0.1:0", &tokens, ""));
    let port = api_port(&evener);
    let mut silent = connect(port);
    silent.set_read_timeout(Some(DEADLINE * 2)).unwrap();
    let began = Instant::now();
    silent.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
    let long = format!("X: {}", "x".repeat(40_000));
    // The rest of a request that was not read resets the connection, which may overtake the response.
    let is_refused = |response: &str| response.is_empty() || status(response) == 431;
    assert!(is_refused(&request(port, "GET", "/", &["Host: localhost", &long])));
    let many: Vec<String> = (0..200).map(|number| format!("X{number}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(is_refused(&request(port, "GET", "/", &many)));
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let fields = ["Host: localhost", &bearer, "Content-Type: application/json", "Content-Length: 100000000"];
    assert_eq!(status(&request(port, "POST", "/v1/access", &fields)), 413);
    let fields = ["Host: localhost", &bearer, "Content-Length: 2"];
    let text =
        format!("POST /v1/access HTTP/1.1\r\nConnection: close\r\n{}\r\n\r\n{{}}", fields.join("\r\n"));
    assert_eq!(status(&raw(port, &text)), 415);
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(began.elapsed() >= Duration::from_secs(5), "closed after {:?}", began.elapsed());
}

#[test]
fn an_address_without_tokens_or_without_tls_is_refused() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let open = write_tokens(&directory, "open", &format!("ops {TOKEN}\n"), 0o604);
    let check = |admin: &str, expected: &str| {
        let seen = checked(&format!("admin {{ {admin} }}\n{SERVICE}"));
        assert!(seen.contains(expected), "{admin}: {seen}");
    };
    check("listen = \"127.0.0.1:9900\"", "listen needs a file with tokens");
    check(&format!("listen = \"192.0.2.1:9900\", token_file = \"{tokens}\""), "other machines can reach");
    check(&format!("listen = \"0.0.0.0:9900\", token_file = \"{tokens}\""), "other machines can reach");
    check(&format!("listen = \"[::]:9900\", token_file = \"{tokens}\""), "other machines can reach");
    check(&format!("listen = \"127.0.0.1:9900\", token_file = \"{open}\""), "lets others read or change");
    check("listen = \"127.0.0.1:9900\", token_file = \"/no/such/file\"", "/no/such/file");
    check(&format!("token_file = \"{tokens}\""), "token_file needs an address");
    let valid = format!("admin {{ listen = \"127.0.0.1:9900\", token_file = \"{tokens}\" }}\n{SERVICE}");
    assert_eq!(checked(&valid), "");
}
