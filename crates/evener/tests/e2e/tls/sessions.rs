//! TLS sessions that are resumed, and certificates that are replaced under load.

use crate::harness::certificates::{ANY, Authority, line_of, mirror, s_client, shake};
use crate::harness::{Directory, Evener, Server};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

fn http(listen: u16, server: &Server, tls: &str) -> String {
    let port = server.port;
    format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{port}\", tls = {{ {tls} }} }}"
    )
}

/// Sends a request with `openssl s_client`, and resumes the session in a file (`-sess_in`) or saves a new
/// session (`-sess_out`).
fn request_with_session(listen: u16, version: &str, option: &str, file: &str, more: &[&str]) -> String {
    let arguments = [&["-servername", "a.example", version, option, file][..], more].concat();
    let printed = s_client(listen, &arguments, REQUEST);
    assert!(printed.contains("HTTP/1.1 200"), "{printed}");
    printed
}

#[test]
fn sessions_are_resumed_by_any_worker() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run_with(&http(0, &a, &keys), &["--workers", "2"]);
    let listen = evener.port("s");
    let file = |name: &str| directory.file(name).display().to_string();
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let session = file(version);
        let before = evener.service_counter("s", "tls_resumed");
        let printed = request_with_session(listen, version, "-sess_out", &session, &[]);
        assert!(printed.contains(&format!("New, {name}")), "{printed}");
        for turn in 0..20 {
            let printed = request_with_session(listen, version, "-sess_in", &session, &[]);
            assert!(printed.contains(&format!("Reused, {name}")), "{version}, turn {turn}: {printed}");
        }
        assert_eq!(evener.service_counter("s", "tls_resumed") - before, 20, "{version}");
    }
    // The session of a client without tickets is resumed by the session ID (RFC 5246, section 7.3).
    let session = file("by-id");
    request_with_session(listen, "-tls1_2", "-sess_out", &session, &["-no_ticket"]);
    for turn in 0..10 {
        let printed = request_with_session(listen, "-tls1_2", "-sess_in", &session, &["-no_ticket"]);
        assert!(printed.contains("Reused, TLSv1.2"), "by id, turn {turn}: {printed}");
    }
}

#[test]
fn a_session_of_another_service_is_not_resumed() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let second = http(0, &a, &keys).replace("\"s\"", "\"t\"");
    let evener = Evener::run(&format!("{}\n{second}", http(0, &a, &keys)));
    let listen = evener.port("s");
    let other = evener.port("t");
    let session = directory.file("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        request_with_session(listen, version, "-sess_out", &session, &[]);
        let printed = request_with_session(other, version, "-sess_in", &session, &[]);
        assert!(printed.contains("New, TLS"), "{version}: {printed}");
    }
}

#[test]
fn a_resumed_session_has_the_client_certificate() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let (ca, _) = authority.write(&directory, "ca");
    let (chain, key) = authority.issue_client("someone").write(&directory, "client");
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let tls = format!("{keys}, client_ca = \"{}\"", ca.display());
    let config = http(0, &a, &tls).replace("protocol", "certificate_header = \"X-Subject\", protocol");
    let evener = Evener::run_with(&config, &["--workers", "2"]);
    let listen = evener.port("s");
    let session = directory.file("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        request_with_session(listen, version, "-sess_out", &session, &["-cert", &chain, "-key", &key]);
        // The ticket contains the certificate, which is not sent again.
        let printed = request_with_session(listen, version, "-sess_in", &session, &[]);
        assert!(printed.contains("Reused, TLS"), "{version}: {printed}");
        assert!(printed.contains("CN=someone"), "{version}: {printed}");
    }
    // A ticket from before a change of authorities must not bypass the new authorities.
    let (other, _) = Authority::new("other ca").write(&directory, "other");
    request_with_session(listen, "-tls1_3", "-sess_out", &session, &["-cert", &chain, "-key", &key]);
    evener.reload(&config.replace(&ca.display().to_string(), &other.display().to_string()));
    let printed = s_client(listen, &["-servername", "a.example", "-tls1_3", "-sess_in", &session], REQUEST);
    assert!(!printed.contains("HTTP/1.1 200"), "{printed}");
}

/// Clients that make new handshakes until `stop` is set. `done` counts the handshakes.
struct Load<'a> {
    listen: u16,
    config: Arc<rustls::ClientConfig>,
    stop: &'a AtomicBool,
    done: &'a AtomicUsize,
}

impl Load<'_> {
    /// Makes handshakes until `stop` is set, and returns the failures.
    fn run(&self) -> Vec<String> {
        let mut failures = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            match shake(self.listen, "a.example", &self.config) {
                Ok(mut client) => {
                    let line = line_of(&mut client);
                    if line != "a 127.0.0.1" {
                        failures.push(format!("the server sent {line:?}"));
                    }
                }
                Err(error) => failures.push(error.to_string()),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        failures
    }
}

/// The certificate that a client receives.
fn served(listen: u16, config: &Arc<rustls::ClientConfig>) -> CertificateDer<'static> {
    shake(listen, "a.example", config).unwrap().conn.peer_certificates().unwrap()[0].clone()
}

#[test]
fn certificates_are_replaced_under_load_and_sessions_stay_valid() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let config =
        format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", tls = {{ {keys} }} }}", a.port);
    let evener = Evener::run_with(&config, &["--workers", "2"]);
    let listen = evener.port("s");
    let mut without_resumption = authority.client(ANY);
    without_resumption.resumption = Resumption::disabled();
    let without_resumption = Arc::new(without_resumption);
    let with_resumption: Vec<_> = ANY.iter().map(|version| Arc::new(authority.client(&[version]))).collect();
    for config in &with_resumption {
        assert_eq!(line_of(&mut shake(listen, "a.example", config).unwrap()), "a 127.0.0.1");
    }
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = || Load { listen, config: Arc::clone(&without_resumption), stop: &stop, done: &done };
        let clients: Vec<_> = (0..3).map(|_| load()).map(|load| scope.spawn(move || load.run())).collect();
        for turn in 0..8 {
            let issued = authority.issue(&["a.example"]);
            issued.write(&directory, "a");
            evener.reload(&config);
            assert!(
                served(listen, &without_resumption) == issued.der(),
                "turn {turn}: the new certificate must be served"
            );
            for config in &with_resumption {
                let mut client = shake(listen, "a.example", config).unwrap();
                assert_eq!(
                    client.conn.handshake_kind(),
                    Some(rustls::HandshakeKind::Resumed),
                    "turn {turn}: {:?}",
                    client.conn.protocol_version()
                );
                // The ticket for the next turn arrives before this line.
                assert_eq!(line_of(&mut client), "a 127.0.0.1");
            }
            let until = Instant::now() + Duration::from_secs(20);
            let goal = done.load(Ordering::Relaxed) + 20;
            while done.load(Ordering::Relaxed) < goal && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert!(failures.is_empty(), "{failures:?}");
    });
    assert!(done.load(Ordering::Relaxed) > 100);
    assert_eq!(evener.service_counter("s", "tls_failed"), 0);
}

#[test]
fn a_connection_stays_open_after_its_certificate_is_replaced() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let config =
        |tls: &str| format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {tls} }}", a.port);
    let evener = Evener::run(&config(&format!("tls = {{ {keys} }}")));
    let listen = evener.port("s");
    let client_config = Arc::new(authority.client(ANY));
    let mut client = shake(listen, "a.example", &client_config).unwrap();
    assert_eq!(line_of(&mut client), "a 127.0.0.1");
    authority.issue(&["a.example"]).write(&directory, "a");
    evener.reload(&config(&format!("tls = {{ {keys} }}")));
    // A reload may even remove TLS from the service.
    evener.reload(&config(""));
    std::io::Write::write_all(&mut client, b"still here\n").unwrap();
    assert_eq!(line_of(&mut client), "still here");
    assert_eq!(crate::harness::who(listen), "a");
}
