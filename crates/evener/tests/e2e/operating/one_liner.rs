//! `evener http LISTEN SERVER...`: HTTP without a configuration file, with and without TLS and checks.

use crate::harness::certificates::{Authority, curl, mirror};
use crate::harness::{BINARY, Directory, Evener, Server, wait_until};
use crate::tcp::proxy_protocol::{connect_from, fetch};
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn name(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[test]
fn http_is_balanced_per_request() {
    let (a, b) = (mirror("a"), mirror("b"));
    let evener = Evener::one_liner(&["http", "127.0.0.1:0", &at(a.port), &at(b.port)]);
    let listen = evener.port("http");
    let mut client = connect_from("127.0.0.7", listen);
    let mut responses = String::new();
    for turn in 0..4 {
        let end = if turn == 3 { "close" } else { "keep-alive" };
        write!(client, "GET /{turn} HTTP/1.1\r\nHost: a.example\r\nConnection: {end}\r\n\r\n").unwrap();
    }
    client.read_to_string(&mut responses).unwrap();
    let names: Vec<&str> = responses.lines().filter(|line| *line == "a" || *line == "b").collect();
    assert_eq!(names, ["a", "b", "a", "b"], "{responses}");
    assert!(responses.contains("X-Forwarded-For: 127.0.0.7"), "{responses}");
    assert_eq!(evener.service_counter("http", "requests"), 4);
    let status = evener.status();
    assert_eq!(status["services"][0]["protocol"], "http");
    assert_eq!(status["services"][0]["listen"][0], at(listen));
}

#[test]
fn sticky_and_policy_options_apply_to_http() {
    let (a, b) = (mirror("a"), mirror("b"));
    let evener = Evener::one_liner(&[
        "http",
        "127.0.0.1:0",
        &at(a.port),
        &at(b.port),
        "--sticky",
        "--policy",
        "least_conn",
    ]);
    let listen = evener.port("http");
    let first = fetch(&mut connect_from("127.0.0.7", listen));
    for _ in 0..6 {
        assert_eq!(name(&fetch(&mut connect_from("127.0.0.7", listen))), name(&first));
    }
}

#[test]
fn a_changed_file_with_certificate_and_key_is_reloaded() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let issued = authority.issue(&["a.example"]);
    let file = directory.write("site.pem", &format!("{}{}", issued.chain, issued.key));
    let (ca, _) = authority.write(&directory, "ca");
    let (ca, file) = (ca.display().to_string(), file.display().to_string());
    let a = mirror("a");
    let evener = Evener::one_liner(&["http", "127.0.0.1:0", &at(a.port), "--tls", &file]);
    let listen = evener.port("http");
    for version in ["--http1.1", "--http2"] {
        let (status, body) = curl(listen, "a.example", "https", &["--cacert", &ca, version]);
        assert_eq!((status, name(&body)), (200, "a"), "{version}");
        assert!(body.contains("X-Forwarded-Proto: https"), "{body}");
    }
    assert_eq!(evener.service_counter("http", "tls_handshakes"), 2);
    assert_eq!(
        curl(listen, "a.example", "http", &[]).0,
        400,
        "plain HTTP on a TLS port is refused with a response"
    );
    let other = Authority::new("other ca");
    let (other_ca, _) = other.write(&directory, "other");
    let issued = other.issue(&["a.example"]);
    directory.write("site.pem", &format!("{}{}", issued.chain, issued.key));
    let other_ca = other_ca.display().to_string();
    wait_until("the other certificate", || {
        (curl(listen, "a.example", "https", &["--cacert", &other_ca]).0 == 200).then_some(())
    });
    // A reload without a configuration file changes nothing.
    let reload = evener.run_command(&["reload"]);
    assert!(!String::from_utf8_lossy(&reload.stderr).contains("panicked"));
    assert_eq!(curl(listen, "a.example", "https", &["--cacert", &other_ca]).0, 200);
}

#[test]
fn a_relative_path_is_resolved_in_the_working_directory() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let issued = authority.issue(&["a.example"]);
    directory.write("site.pem", &format!("{}{}", issued.chain, issued.key));
    let (ca, _) = authority.write(&directory, "ca");
    let a = mirror("a");
    let mut command = Command::new(BINARY);
    command.current_dir(directory.file(""));
    let words = ["http", "127.0.0.1:0", &at(a.port), "--tls", "site.pem"];
    let evener = Evener::start(command, Directory::new(), &words);
    let listen = evener.port("http");
    assert_eq!(curl(listen, "a.example", "https", &["--cacert", &ca.display().to_string()]).0, 200);
}

#[test]
fn check_excludes_a_server_that_responds_with_an_error() {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let verdict = Arc::clone(&is_healthy);
    let unstable = Server::start(move |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let status = if verdict.load(Ordering::Relaxed) { "200 OK" } else { "500 No" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 6\r\n\r\nflaky\n");
    });
    let a = mirror("a");
    let evener = Evener::one_liner(&["http", "127.0.0.1:0", &at(unstable.port), &at(a.port), "--check"]);
    let listen = evener.port("http");
    let without = Evener::one_liner(&["http", "127.0.0.1:0", &at(unstable.port), &at(a.port)]);
    let verdict = |evener: &Evener| evener.server(&at(unstable.port))["verdict"].as_str().unwrap().to_owned();
    wait_until("the server to be down", || (verdict(&evener) == "down").then_some(()));
    for _ in 0..4 {
        assert_eq!(name(&fetch(&mut connect_from("127.0.0.7", listen))), "a");
    }
    assert_eq!(verdict(&without), "up", "without --check no server is checked");
    is_healthy.store(true, Ordering::Relaxed);
    wait_until("the server to be up", || (verdict(&evener) == "up").then_some(()));
    wait_until("the server to get requests again", || {
        (name(&fetch(&mut connect_from("127.0.0.7", listen))) == "flaky").then_some(())
    });
}

#[test]
fn errors_of_the_command_line_are_reported_and_prevent_the_start() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (chain, key) = authority.issue(&["a.example"]).write(&directory, "a");
    let [chain, key] = [chain, key].map(|path| path.display().to_string());
    let socket = directory.file("a.sock").display().to_string();
    let run = |arguments: &[&str]| {
        let output =
            Command::new("timeout").arg("20").arg(BINARY).args(arguments).args(["--admin", &socket]).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = at(taken.local_addr().unwrap().port());
    let http = |more: &[&str]| run(&[&["http", "127.0.0.1:0", "127.0.0.1:1"], more].concat());
    let cases = [
        (http(&["--tls", "/no/such.pem"]), 1, "/no/such.pem does not exist"),
        (http(&["--tls", &chain]), 1, "a.crt has no private key: write tls = { certificate = "),
        (http(&["--tls", &key]), 1, "a.key has a private key, but no certificate"),
        (http(&["--tls"]), 2, "--tls"),
        (http(&["127.0.0.1:1"]), 1, "server `127.0.0.1:1` is listed twice"),
        (http(&["--policy", "fastest"]), 2, "fastest"),
        (run(&["http", "127.0.0.1:0"]), 2, "the servers are missing"),
        (run(&["http", "8080", "127.0.0.1:1"]), 1, "8080"),
        (run(&["http", "web.example:80", "127.0.0.1:1"]), 1, "is not a listen address"),
        (run(&["http", "127.0.0.1:0", "nowhere"]), 1, "`nowhere` has no port"),
        (run(&["http", &in_use, "127.0.0.1:1"]), 1, "is in use"),
        (run(&["udp", "127.0.0.1:0", "127.0.0.1:1", "--tls", &chain]), 2, "--tls"),
        (run(&["tcp", "127.0.0.1:0", "127.0.0.1:1", "--tls", &chain]), 2, "--tls"),
    ];
    for ((status, text), expected, printed) in cases {
        assert_eq!(status, expected, "{text}");
        assert!(text.contains(printed), "{printed}: {text}");
        assert!(expected == 2 || text.lines().count() == 1, "{text}");
    }
}
