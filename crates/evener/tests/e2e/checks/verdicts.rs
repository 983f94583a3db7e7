//! Active checks of servers that fail and recover.

use crate::harness::{Directory, Evener, Server, wait_until};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// An HTTP server that responds to checks with a configurable status.
fn web(status: &Arc<AtomicU16>) -> Server {
    let status = Arc::clone(status);
    Server::start(move |mut stream| {
        let mut request = Vec::new();
        let mut byte = [0; 1];
        while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            request.push(byte[0]);
        }
        let is_check = request.starts_with(b"GET /health HTTP/1.1\r\n")
            && request.windows(14).any(|w| w == b"host: checked\r");
        let code = if is_check { status.load(Ordering::Relaxed) } else { 400 };
        // The body is longer than the part that the check searches.
        let _ = write!(
            stream,
            "HTTP/1.1 {code} X\r\nContent-Length: 100007\r\n\r\nall: ok{}",
            " ".repeat(100_000)
        );
    })
}

fn wait_for(evener: &Evener, server: &str, verdict: &str) {
    wait_until(&format!("{server} to be {verdict}"), || {
        (evener.server(server)["verdict"] == verdict).then_some(())
    });
}

#[test]
fn an_http_check_follows_status_and_body_by_rise_and_fall() {
    let status = Arc::new(AtomicU16::new(200));
    let server = web(&status);
    let config = |body: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\",\n\
             check = check.http {{ path = \"/health\", host = \"checked\", body = \"{body}\", every = \"50ms\", fall = 2, rise = 2 }} }}",
            server.port
        )
    };
    let evener = Evener::run(&config("ok"));
    let name = format!("127.0.0.1:{}", server.port);
    status.store(503, Ordering::Relaxed);
    wait_for(&evener, &name, "down");
    assert_eq!(evener.server(&name)["reason"], "http: status 503");
    wait_until("two failures, for fall = 2", || (evener.log_count("probe_failed") >= 2).then_some(()));
    status.store(203, Ordering::Relaxed);
    wait_for(&evener, &name, "up");
    evener.reload(&config("other text"));
    wait_for(&evener, &name, "down");
    assert_eq!(evener.server(&name)["reason"], "http: the body does not contain \"other text\"");
    evener.expect_log("pool_down pool=s");
}

#[test]
fn an_http_check_compares_the_digest_and_the_regular_expression() {
    let server = web(&Arc::new(AtomicU16::new(200)));
    let config = |keys: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }},\n\
             check = check.http {{ path = \"/health\", host = \"checked\", {keys}, every = \"50ms\", fall = 1, rise = 1 }} }}",
            server.port
        )
    };
    let wrong = "0".repeat(64);
    let evener = Evener::run(&config(&format!("digest = \"{wrong}\"")));
    wait_for(&evener, "a", "down");
    let reason = evener.server("a")["reason"].as_str().unwrap().to_owned();
    let digest = reason.strip_prefix("http: the digest of the body is ").unwrap();
    evener
        .reload(&config(&format!("digest = \"{}\", regex = \"^all: (ok|fine) *$\"", digest.to_uppercase())));
    wait_for(&evener, "a", "up");
    evener.reload(&config("regex = \"^all: (bad|worse)\""));
    wait_for(&evener, "a", "down");
    assert_eq!(evener.server("a")["reason"], "http: the body does not match \"^all: (bad|worse)\"");
}

#[test]
fn an_https_check_verifies_the_certificate() {
    let directory = Directory::new();
    let issued = rcgen::generate_simple_self_signed(vec!["web.example".to_owned()]).unwrap();
    let ca = directory.write("ca.pem", &issued.cert.pem());
    let server = tls_server(&issued);
    let check = |more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"one\" }},\n\
             check = check.https {{ host = \"web.example\", every = \"50ms\", timeout = \"2s\", fall = 1, rise = 1, {more} }} }}",
            server.port
        )
    };
    let evener = Evener::run(&check(&format!("ca = \"{}\"", ca.display())));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(evener.log_count("probe_failed"), 0, "the certificate must be trusted");
    evener.reload(&check(&format!("ca = \"{}\", sni = \"other.example\"", ca.display())));
    wait_for(&evener, "one", "down");
    let expected = "TLS handshake failed: the certificate has another name: it is for web.example";
    assert_eq!(evener.server("one")["reason"], expected);
    evener.reload(&check(&format!("ca = \"{}\"", ca.display())));
    wait_for(&evener, "one", "up");
    evener.reload(&check("sni = \"other.example\", verify = false"));
    let before = evener.log_count("probe_failed");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(
        (evener.log_count("probe_failed"), evener.server("one")["verdict"].as_str()),
        (before, Some("up"))
    );
}

/// An https server with this certificate.
fn tls_server(issued: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    Server::start(move |stream| {
        let Ok(connection) = rustls::ServerConnection::new(Arc::clone(&config)) else { return };
        let mut tls = rustls::StreamOwned::new(connection, stream);
        if tls.read(&mut [0; 2048]).is_ok() {
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    })
}

#[test]
fn a_tcp_check_marks_a_server_down_and_up_without_traffic() {
    let mut a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", check = check.tcp {{ every = \"50ms\" }} }}",
        a.port
    ));
    let name = format!("127.0.0.1:{}", a.port);
    a.stop();
    wait_for(&evener, &name, "down");
    assert_eq!(evener.server(&name)["reason"], "connect: refused");
    let _a = Server::named_at("a", a.port);
    wait_for(&evener, &name, "up");
}

#[test]
fn a_check_without_a_response_fails_after_its_timeout() {
    let silent = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 1 << 16]);
        std::thread::sleep(std::time::Duration::from_secs(3));
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\",\n\
         check = check.http {{ every = \"100ms\", timeout = \"100ms\", fall = 1 }} }}",
        silent.port
    ));
    let name = format!("127.0.0.1:{}", silent.port);
    wait_for(&evener, &name, "down");
    assert_eq!(evener.server(&name)["reason"], "http check: no response within 100ms");
}

/// A server with a role, like Redis. It responds to `INFO replication` with its role, and to other commands with its name.
fn roles(name: &'static str, is_master: &Arc<AtomicU16>) -> Server {
    let is_master = Arc::clone(is_master);
    Server::start(move |mut stream| {
        let mut command = [0; 64];
        let Ok(read @ 1..) = stream.read(&mut command) else { return };
        let role = if is_master.load(Ordering::Relaxed) == 1 { "master" } else { "slave" };
        let response = match &command[..read] {
            b"INFO replication\r\n" => format!("$20\r\n# Replication\r\nrole:{role}\r\n"),
            _ => format!("{name} 127.0.0.1\n"),
        };
        // The response is sent byte by byte, so that the expected text arrives in pieces.
        for byte in response.as_bytes() {
            let _ = stream.write_all(&[*byte]);
        }
        let _ = stream.read(&mut command);
    })
}

#[test]
fn a_tcp_check_with_send_and_expect_follows_the_master() {
    let roles_of = [1, 0].map(|role| Arc::new(AtomicU16::new(role)));
    let servers = [roles("a", &roles_of[0]), roles("b", &roles_of[1])];
    let config = |expect: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\" }},\n\
             check = check.tcp {{ send = \"INFO replication\\r\\n\", {expect}, every = \"50ms\", timeout = \"1s\", fall = 2, rise = 1 }} }}",
            servers[0].port, servers[1].port
        )
    };
    let evener = Evener::run(&config("expect = \"role:master\""));
    let listen = evener.port("s");
    let who = || {
        let mut client = crate::harness::connect(listen);
        client.write_all(b"who\n").unwrap();
        crate::harness::line(&mut client).split(' ').next().unwrap().to_owned()
    };
    wait_for(&evener, "a", "up");
    wait_for(&evener, "b", "down");
    // The server keeps the connection open, so Evener waits for more bytes until the timeout.
    assert_eq!(evener.server("b")["reason"], "tcp check: no matching response within 1s");
    assert_eq!([who(), who()], ["a", "a"]);
    roles_of[0].store(0, Ordering::Relaxed);
    roles_of[1].store(1, Ordering::Relaxed);
    wait_for(&evener, "b", "up");
    wait_for(&evener, "a", "down");
    assert_eq!([who(), who()], ["b", "b"]);
    evener.reload(&config("begins = \"$20\""));
    wait_for(&evener, "a", "up");
    evener.expect_log(
        "changed change=\"~ pool s: check.begins none -> $20, check.expect role:master -> none\"",
    );
}

#[test]
fn a_tls_check_uses_the_tls_settings_of_the_check_or_of_its_pool() {
    let directory = Directory::new();
    let issued = rcgen::generate_simple_self_signed(vec!["web.example".to_owned()]).unwrap();
    let ca = directory.write("ca.pem", &issued.cert.pem()).display().to_string();
    let server = tls_server(&issued);
    let config = |tls: &str, check: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", pool = \"p\" }}\n\
             pool \"p\" {{ {{ \"127.0.0.1:{}\", name = \"one\" }}, {tls}\n\
             check = check.tls {{ every = \"50ms\", timeout = \"5s\", fall = 1, rise = 1, {check} }} }}",
            server.port
        )
    };
    let sni = "sni = \"web.example\"";
    let evener =
        Evener::run(&config("", &format!("{sni}, ca = \"{ca}\", send = \"GET\", begins = \"HTTP/1.1 200\"")));
    wait_for(&evener, "one", "up");
    evener.reload(&config("", &format!("{sni}, ca = \"{ca}\", send = \"GET\", expect = \"nothing\"")));
    wait_for(&evener, "one", "down");
    assert_eq!(evener.server("one")["reason"], "tls: the response does not contain \"nothing\"");
    evener.reload(&config(&format!("tls = {{ {sni}, ca = \"{ca}\" }},"), ""));
    wait_for(&evener, "one", "up");
    evener.reload(&config("", "sni = \"other.example\", verify = true"));
    wait_for(&evener, "one", "down");
    evener.reload(&config("", "sni = \"other.example\", verify = false"));
    wait_for(&evener, "one", "up");
}

#[test]
fn invalid_settings_of_stream_checks_are_refused() {
    for (pool, expected) in [
        ("check = check.tcp { expect = \"\" }", "check.tcp: expect must have 1 to 4096 bytes"),
        ("check = check.tcp { expect = (\"x\"):rep(5000) }", "check.tcp: expect must have 1 to 4096 bytes"),
        ("check = check.tcp { ca = \"/x\" }", "ca"),
        (
            "tls = true, check = check.tcp { expect = \"x\" }",
            "the servers of this pool use TLS: write check = \"tls\"",
        ),
        ("check = \"tsl\"", "did you mean \"tls\"?"),
    ] {
        let directory = Directory::new();
        let text = format!(
            "service \"s\" {{ listen = \"127.0.0.1:80\", pool = pool \"p\" {{ \"127.0.0.1:1\", {pool} }} }}"
        );
        let file = directory.write("evener.lua", &text);
        let output =
            std::process::Command::new(crate::harness::BINARY).arg("check").arg(file).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && printed.contains(expected), "{pool}: {printed}");
    }
}
