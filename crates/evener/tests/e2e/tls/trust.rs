//! Self-signed certificates such as `openssl req -x509` creates, configured as `ca` for servers (traffic and
//! checks) and as `client_ca` for clients; and PEM files in the forms that occur in practice.

use crate::harness::certificates::{ANY, Authority, Issued, line_of, shake, tls_echo};
use crate::harness::origin::Wire;
use crate::harness::{Directory, Evener, Server, wait_until, who};
use crate::http::http2::client::{Front, within};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A self-signed certificate with this name.
fn self_signed(name: &str) -> Issued {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Issued { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// An https server that responds with `hello` to one request of each connection.
fn https(issued: &Issued) -> Server {
    counting_https(issued, &Arc::default())
}

/// Like `https`, but counts the served requests.
fn counting_https(issued: &Issued, served: &Arc<AtomicUsize>) -> Server {
    let served = Arc::clone(served);
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.der()], key)
        .unwrap();
    let config = Arc::new(config);
    Server::start(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        if matches!(tls.read(&mut [0; 4096]), Ok(1..)) {
            served.fetch_add(1, Ordering::Relaxed);
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello");
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    })
}

fn pool(server: &Server, ca: &str, more: &str) -> String {
    format!(
        "local p = pool \"p\" {{ {{ \"127.0.0.1:{}\", name = \"one\" }}, tls = {{ ca = \"{ca}\", sni = \"a.example\" }}, {more} }}\n",
        server.port
    )
}

#[test]
fn a_server_is_trusted_if_its_self_signed_certificate_is_configured() {
    let (directory, named, other) = (Directory::new(), self_signed("a.example"), self_signed("a.example"));
    let ca = directory.write("named.crt", &named.chain).display().to_string();
    let authorities = Directory::new();
    authorities.write("named.crt", &named.chain);
    let directory_path = authorities.file("").display().to_string();
    for (certificate, ca, status, verdict) in
        [(&named, &ca, 200, "up"), (&named, &directory_path, 200, "up"), (&other, &ca, 503, "down")]
    {
        let served = Arc::default();
        let server = counting_https(certificate, &served);
        let check = "check = check.https { every = \"50ms\", timeout = \"3s\", rise = 1, fall = 1 }";
        let evener = Evener::run(&format!(
            "{}service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = p }}",
            pool(&server, ca, check)
        ));
        let listen = evener.port("s");
        wait_until("the check to decide", || {
            let is_probed = verdict == "down" || served.load(Ordering::Relaxed) > 1;
            (evener.server("one")["verdict"] == verdict && is_probed).then_some(())
        });
        assert_eq!(Wire::to(listen).ask("GET", "/", "").unwrap().status(), status);
        assert_eq!(evener.log_count("probe_failed") > 0, verdict == "down");
    }
}

#[test]
fn a_configured_self_signed_certificate_is_trusted_for_http_2_and_tcp() {
    let (directory, named) = (Directory::new(), self_signed("a.example"));
    let ca = directory.write("named.crt", &named.chain).display().to_string();
    let server = https(&named);
    let front = Front::run_ports(
        &[],
        &pool(&server, &ca, ""),
        "routes = { { path = \"/\", pool = \"p\" } }, respond = { status = 404 }",
    );
    within(async {
        let client = front.client().await;
        for _ in 0..2 {
            let response = client.get("/").await;
            assert_eq!((response.status(), response.text().as_str()), (200, "hello"));
        }
    });
    let echo = tls_echo("tcp", &named);
    let evener = Evener::run(&format!(
        "{}service \"s\" {{ listen = \"127.0.0.1:0\", pool = p }}",
        pool(&echo, &ca, "")
    ));
    let listen = evener.port("s");
    assert_eq!(who(listen), "tcp");
}

#[test]
fn a_configured_self_signed_certificate_with_another_name_is_refused() {
    let (directory, named) = (Directory::new(), self_signed("b.example"));
    let ca = directory.write("named.crt", &named.chain).display().to_string();
    let server = https(&named);
    let evener = Evener::run(&format!(
        "{}service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = p }}",
        pool(&server, &ca, "")
    ));
    let listen = evener.port("s");
    assert_eq!(Wire::to(listen).ask("GET", "/", "").unwrap().status(), 502);
    assert_eq!(evener.server("one")["counters"]["tls_failed"], 1);
}

#[test]
fn a_client_is_trusted_if_its_self_signed_certificate_is_configured() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (named, other) = (self_signed("client"), self_signed("client"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let ca = directory.write("named.crt", &named.chain).display().to_string();
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", tls = {{ {keys}, client_ca = \"{ca}\" }} }}",
        a.port
    ));
    let listen = evener.port("s");
    for version in ANY {
        for (certificate, expected) in [(&named, "a 127.0.0.1"), (&other, "")] {
            let mut config = authority.client(&[version]);
            config.client_auth_cert_resolver = certificate.resolver();
            let line = shake(listen, "a.example", &Arc::new(config)).map(|mut client| line_of(&mut client));
            assert_eq!(line.unwrap_or_default(), expected, "{version:?}");
        }
    }
}

#[test]
fn pem_files_may_have_byte_order_marks_and_other_labels() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let issued = authority.issue(&["a.example"]);
    let other = |label: &str| issued.chain.replace(" CERTIFICATE", &format!(" {label} CERTIFICATE"));
    let forms = [
        (format!("\u{feff}{}", issued.chain), format!("\u{feff}{}", issued.key)),
        (format!("\u{feff}{}", issued.chain.replace('\n', "\r\n")), issued.key.clone()),
        (other("X509"), issued.key.clone()),
        (other("TRUSTED"), issued.key.clone()),
    ];
    for (chain, key) in forms {
        let keys = Issued { chain, key }.keys(&directory, "form");
        let ca = directory.write("ca.crt", &format!("\u{feff}{}", authority.pem()));
        let evener = Evener::run(&format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\",\n\
             tls = {{ {keys}, client_ca = \"{}\", client_certificate = \"optional\" }} }}",
            a.port,
            ca.display()
        ));
        let listen = evener.port("s");
        let mut config = authority.client(ANY);
        config.client_auth_cert_resolver = authority.issue_client("me").resolver();
        let mut client = shake(listen, "a.example", &Arc::new(config)).unwrap();
        assert_eq!(line_of(&mut client), "a 127.0.0.1");
    }
}

#[test]
fn the_reason_of_a_failed_handshake_with_a_server_is_logged() {
    let (directory, authority, named) =
        (Directory::new(), Authority::new("test ca"), self_signed("a.example"));
    let ca = directory.write("ca.crt", authority.pem()).display().to_string();
    let closing = Server::start(|mut stream| drop(stream.read(&mut [0; 4096])));
    let plain = Server::start(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    for (server, reason) in [
        (https(&authority.issue(&["b.example"])), "the certificate has another name: it is for b.example"),
        (https(&authority.issue_until("a.example", -1)), "the certificate has expired"),
        (https(&named), "the certificate is not from a trusted authority"),
        (
            https(&Authority::new("other").issue(&["a.example"])),
            "the certificate is not from a trusted authority",
        ),
        (https(&authority.issue_client("a.example")), "the certificate is not for servers"),
        (closing, "the server closed the connection"),
        (plain, "the server does not use TLS"),
    ] {
        let evener = Evener::run(&format!(
            "{}service \"s\" {{ listen = \"127.0.0.1:0\", pool = p }}",
            pool(&server, &ca, "")
        ));
        let listen = evener.port("s");
        assert_eq!(who(listen), "");
        evener
            .expect_log(&format!("server_down pool=p server=one reason=\"TLS handshake failed: {reason}\""));
    }
}

/// An ECDSA key on P-521 (RFC 5915), which is never used for a signature.
const P521: &str = include_str!("p521.pem");

#[test]
fn an_unsupported_key_is_reported_with_the_supported_kinds() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let chain = authority.issue(&["a.example"]).chain;
    let keys = Issued { chain, key: P521.to_owned() }.keys(&directory, "p521");
    let config = directory.write(
        "c.lua",
        &format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"127.0.0.1:1\", tls = {{ {keys} }} }}"),
    );
    let output = Command::new(env!("CARGO_BIN_EXE_evener")).arg("check").arg(&config).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "p521.key: the key is ECDSA on P-521, which is not supported: use RSA of 2048 bits or more, \
                    ECDSA on P-256 or P-384, or Ed25519";
    assert!(!output.status.success() && printed.contains(expected), "{printed}");
}
