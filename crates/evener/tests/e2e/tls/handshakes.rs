//! Events that name the reason of a failed TLS handshake with a client, and plain HTTP at a port that expects TLS.

use crate::harness::certificates::{Authority, curl, s_client};
use crate::harness::{Directory, Evener, Server, connect, have, wait_until};
use std::io::{Read, Write};

/// A directory with certificates, a server, and an instance with services that use TLS.
struct Front {
    directory: Directory,
    authority: Authority,
    evener: Evener,
    _server: Server,
}

impl Front {
    fn run() -> Self {
        let (directory, authority) = (Directory::new(), Authority::new("test ca"));
        let keys = authority.issue(&["a.example"]).keys(&directory, "a");
        let (ca, _) = authority.write(&directory, "ca");
        let server = Server::named("a");
        let service = |name: &str, more: &str| {
            format!(
                "service \"{name}\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {more} }}\n",
                server.port
            )
        };
        let evener = Evener::run(&format!(
            "{}{}{}",
            service("http", &format!("protocol = \"http\", tls = {{ {keys} }}")),
            service("tcp", &format!("tls = {{ {keys} }}")),
            service(
                "mutual",
                &format!("protocol = \"http\", tls = {{ {keys}, client_ca = \"{}\" }}", ca.display())
            ),
        ));
        Self { directory, authority, evener, _server: server }
    }

    fn expect(&self, service: &str, reason: &str, detail: &str) {
        wait_until(&format!("{service} {reason} {detail}"), || {
            let service = format!("tls_failed service={service} client=127.0.0.1 reason={reason} ");
            let log = self.evener.log();
            log.lines().any(|line| line.contains(&service) && line.contains(detail)).then_some(())
        });
    }
}

/// Sends bytes to a port and returns everything that arrives until the end.
fn exchange(port: u16, bytes: &[u8]) -> String {
    let mut client = connect(port);
    client.write_all(bytes).unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).expect("the connection ends in order, without a reset");
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn plain_http_at_a_port_with_tls_gets_400_with_a_sentence() {
    let front = Front::run();
    let port = front.evener.port("http");
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        // The request need not be complete, and its body is not read.
        "POST / HTTP/1.1\r\nHost: a\r\n".to_owned(),
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000)),
        // The preface of HTTP/2.
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
    ] {
        let response = exchange(port, request.as_bytes());
        let page = response.starts_with("HTTP/1.1 400 Bad Request\r\n") && response.contains("expects HTTPS");
        assert!(page, "{}: {response}", &request[..20]);
    }
    let response = exchange(port, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(response.starts_with("HTTP/1.1 400 ") && response.ends_with("\r\n\r\n"), "{response}");
    front.expect("http", "plain_http", "plain HTTP on a port that expects TLS");
    // A service without HTTP only closes the connection.
    assert_eq!(exchange(front.evener.port("tcp"), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "");
    front.expect("tcp", "plain_http", "");
}

#[test]
fn a_method_in_pieces_is_recognized() {
    let front = Front::run();
    let mut client = connect(front.evener.port("http"));
    client.set_nodelay(true).unwrap();
    for piece in ["G", "ET", " / HTTP/1.1\r\n\r\n"] {
        client.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[test]
fn the_reason_of_a_failed_handshake_with_a_client_is_logged() {
    if !have("curl") || !have("openssl") {
        return;
    }
    let front = Front::run();
    let (http, mutual) = (front.evener.port("http"), front.evener.port("mutual"));
    exchange(http, b"SSH-2.0-OpenSSH_9\r\n");
    front.expect("http", "not_tls", "");
    drop(connect(http));
    wait_until("an unused connection", || front.evener.log().contains("reason=unused").then_some(()));
    // This client does not trust the authority.
    assert_eq!(curl(http, "a.example", "https", &[]).0, 0);
    front.expect("http", "tls_not_trusted", "alert unknown_ca");
    s_client(http, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "");
    front.expect("http", "tls_version", "");
    s_client(http, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA"], "");
    front.expect("http", "tls_cipher", "");
    assert_eq!(curl(mutual, "a.example", "https", &["-k"]).0, 0);
    front.expect("mutual", "tls_client_certificate_missing", "");
    let foreign = Authority::new("another").issue_client("me");
    let (chain, key) = foreign.write(&front.directory, "foreign");
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    assert_eq!(curl(mutual, "a.example", "https", &["-k", "--cert", &chain, "--key", &key]).0, 0);
    front.expect("mutual", "tls_client_certificate_invalid", "not from a trusted authority");
    let expired = front.authority.issue_until("me", -1);
    let (chain, key) = expired.write(&front.directory, "expired");
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    assert_eq!(curl(mutual, "a.example", "https", &["-k", "--cert", &chain, "--key", &key]).0, 0);
    front.expect("mutual", "tls_client_certificate_invalid", "it has expired");
}
