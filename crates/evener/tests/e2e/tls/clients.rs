//! TLS with clients: server names, versions, ALPN, refused handshakes, and transfers.

use crate::harness::certificates::{
    ANY, Authority, Issued, curl, line_of, mirror, openssl, s_client, shake, shake_over,
};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, have, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A tcp service that terminates TLS in front of this server.
fn tcp(listen: u16, server: &Server, tls: &str, more: &str) -> String {
    let port = server.port;
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{port}\", tls = {{ {tls} }}, {more} }}"
    )
}

/// An http service that terminates TLS in front of this server.
fn http(listen: u16, server: &Server, tls: &str, more: &str) -> String {
    tcp(listen, server, tls, &format!("protocol = \"http\", {more}"))
}

/// The subject of the certificate that `s_client` receives.
fn subject(port: u16, arguments: &[&str]) -> String {
    let printed = s_client(port, arguments, "");
    let line = printed.lines().find_map(|line| line.strip_prefix("subject="));
    line.unwrap_or_else(|| panic!("no certificate: {printed}")).replace(' ', "")
}

#[test]
fn a_tcp_service_terminates_tls_of_both_versions() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    for version in ANY {
        let config = Arc::new(authority.client(&[version]));
        let mut client = shake(listen, "a.example", &config).unwrap();
        assert_eq!(line_of(&mut client), "a 127.0.0.1", "{version:?}");
        client.write_all(b"there and back").unwrap();
        let mut back = [0; 14];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there and back");
        assert_eq!(client.conn.protocol_version(), Some(version.version));
    }
    assert_eq!(evener.service_counter("s", "tls_handshakes"), 2);
    assert_eq!(evener.service_counter("s", "tls_failed"), 0);
}

#[test]
fn an_http_service_terminates_tls_and_forwards_the_scheme_to_its_servers() {
    if !have("curl") {
        return;
    }
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let ca = directory.write("ca.pem", authority.pem()).display().to_string();
    let issued = authority.issue(&["a.example"]);
    // One file has the certificate and its key.
    let both = directory.write("both.pem", &format!("{}{}", issued.chain, issued.key));
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", tls = \"{}\" }}",
        a.port,
        both.display()
    ));
    let listen = evener.port("s");
    for version in ["--tlsv1.2", "--tlsv1.3"] {
        let (status, body) = curl(listen, "a.example", "https", &["--cacert", &ca, version]);
        let body = body.to_ascii_lowercase();
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("x-forwarded-proto: https"), "{body}");
        assert!(body.contains("x-forwarded-for: 127.0.0.1"), "{body}");
    }
}

#[test]
fn the_server_name_selects_the_certificate() {
    let (directory, more, a) = (Directory::new(), Directory::new(), Server::named("a"));
    let authority = Authority::new("test ca");
    let [first, second] = [&["a.example"][..], &["b.example", "c.example"]].map(|names| {
        let keys = authority.issue(names).keys(&directory, names[0]);
        format!("{{ {keys} }}")
    });
    authority.issue(&["*.wild.example"]).write(&more, "wild");
    authority.issue(&["exact.wild.example"]).write(&more, "exact");
    // This certificate has no DNS name, so its file name is used.
    authority.issue_client("nameless").write(&more, "by-file.example");
    let tls = format!(
        "certificates = {{ {first}, {second} }}, directory = \"{}\"",
        more.file("").display().to_string().trim_end_matches('/')
    );
    let evener = Evener::run(&tcp(0, &a, &tls, ""));
    let listen = evener.port("s");
    let cases = [
        ("a.example", "CN=a.example"),
        ("b.example", "CN=b.example"),
        ("c.example", "CN=b.example"),
        ("C.Example", "CN=b.example"),
        ("x.wild.example", "CN=*.wild.example"),
        ("exact.wild.example", "CN=exact.wild.example"),
        // A wildcard stands for exactly one label.
        ("x.y.wild.example", "CN=a.example"),
        ("wild.example", "CN=a.example"),
        ("by-file.example", "CN=nameless"),
        ("unknown.example", "CN=a.example"),
    ];
    for (name, expected) in cases {
        for version in ["-tls1_2", "-tls1_3"] {
            assert_eq!(subject(listen, &["-servername", name, version]), expected, "{name} {version}");
        }
    }
    assert_eq!(subject(listen, &["-noservername"]), "CN=a.example");
}

#[test]
fn curl_accepts_the_certificate_of_each_name_with_and_without_sni() {
    if !have("curl") {
        return;
    }
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let ca = directory.write("ca.pem", authority.pem()).display().to_string();
    let [first, second] = [&["127.0.0.1", "a.example"][..], &["b.example"]].map(|names| {
        let keys = authority.issue(names).keys(&directory, names[names.len() - 1]);
        format!("{{ {keys} }}")
    });
    let evener = Evener::run(&http(0, &a, &format!("certificates = {{ {first}, {second} }}"), ""));
    let listen = evener.port("s");
    for name in ["a.example", "b.example", "127.0.0.1"] {
        assert_eq!(curl(listen, name, "https", &["--cacert", &ca]).0, 200, "{name}");
    }
    assert_eq!(
        curl(listen, "c.example", "https", &["--cacert", &ca]).0,
        0,
        "a name without a certificate must be refused"
    );
}

#[test]
fn versions_below_the_minimum_are_refused() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &format!("{keys}, min_version = \"1.3\""), ""));
    let listen = evener.port("s");
    let old = Arc::new(authority.client(&[&rustls::version::TLS12]));
    let refused = shake(listen, "a.example", &old).unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    let new = Arc::new(authority.client(&[&rustls::version::TLS13]));
    assert_eq!(line_of(&mut shake(listen, "a.example", &new).unwrap()), "a 127.0.0.1");
    wait_until("the failed handshake to be counted", || {
        (evener.service_counter("s", "tls_failed") == 1).then_some(())
    });
    // Versions below 1.2 are never supported. (This openssl supports 1.1 with the right options.)
    evener.reload(&tcp(0, &a, &keys, ""));
    let printed = s_client(listen, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "");
    assert!(printed.contains("no peer certificate available"), "{printed}");
    assert_eq!(line_of(&mut shake(listen, "a.example", &old).unwrap()), "a 127.0.0.1");
}

#[test]
fn alpn_negotiates_the_configured_protocols() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &format!("{keys}, alpn = {{ \"imap\", \"pop3\" }}"), ""));
    let listen = evener.port("s");
    let offer = |offered: &[&str]| {
        let mut config = authority.client(ANY);
        config.alpn_protocols = offered.iter().map(|one| one.as_bytes().to_vec()).collect();
        let client = shake(listen, "a.example", &Arc::new(config))?;
        let negotiated = client.conn.alpn_protocol().map(|one| String::from_utf8_lossy(one).into_owned());
        Ok::<_, std::io::Error>(negotiated)
    };
    // The preference of the service decides.
    assert_eq!(offer(&["pop3", "imap"]).unwrap().as_deref(), Some("imap"));
    assert_eq!(offer(&["h2", "pop3"]).unwrap().as_deref(), Some("pop3"));
    assert_eq!(offer(&[]).unwrap(), None);
    let refused = offer(&["h2"]).unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
}

/// The path of an OCSP response in which the authority reports that the certificate is good.
fn ocsp_response(directory: &Directory, authority: &Authority, chain: &str) -> String {
    let file = |name: &str| directory.file(name).display().to_string();
    let (ca, ca_key) = authority.write(directory, "ca");
    let (ca, ca_key) = (ca.display().to_string(), ca_key.display().to_string());
    let serial = openssl(&["x509", "-in", chain, "-noout", "-serial"], "");
    let serial = serial.trim().strip_prefix("serial=").unwrap().to_owned();
    directory.write("index.txt", &format!("V\t491231235959Z\t\t{serial}\tunknown\t/CN=a.example\n"));
    let (request, index, response) = (file("request"), file("index.txt"), file("a.ocsp"));
    openssl(&["ocsp", "-issuer", &ca, "-cert", chain, "-reqout", &request], "");
    let mut signing = vec!["ocsp", "-index", &index, "-CA", &ca, "-rsigner", &ca, "-rkey", &ca_key];
    signing.extend(["-reqin", &request, "-respout", &response, "-ndays", "3"]);
    let printed = openssl(&signing, "");
    assert!(std::fs::metadata(&response).is_ok(), "{printed}");
    response
}

#[test]
fn an_ocsp_response_is_stapled() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let chain = directory.file("a.crt").display().to_string();
    let response = ocsp_response(&directory, &authority, &chain);
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    let status = |version| s_client(listen, &["-status", version], "");
    assert!(status("-tls1_3").contains("OCSP response: no response sent"));
    evener.reload(&tcp(0, &a, &format!("{keys}, ocsp = \"{response}\""), ""));
    // In a directory the response is found by its file name.
    let certificates = Directory::new();
    for name in ["a.crt", "a.key", "a.ocsp"] {
        std::fs::copy(directory.file(name), certificates.file(name)).unwrap();
    }
    let by_name = format!("directory = \"{}\"", certificates.file("").display());
    for tls in [format!("{keys}, ocsp = \"{response}\""), by_name] {
        evener.reload(&tcp(0, &a, &tls, ""));
        for version in ["-tls1_2", "-tls1_3"] {
            let printed = status(version);
            assert!(printed.contains("OCSP Response Status: successful"), "{version} {tls}: {printed}");
            assert!(printed.contains("Cert Status: good"), "{printed}");
        }
    }
}

#[test]
fn a_client_that_does_not_complete_the_handshake_in_time_is_closed() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &format!("{keys}, handshake_timeout = \"500ms\""), ""));
    let listen = evener.port("s");
    let mut silent = connect(listen);
    let slow = std::thread::spawn(move || {
        let mut slow = connect(listen);
        // The beginning of a ClientHello, which is never completed.
        let hello = [&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3][..], &[7; 200]].concat();
        let until = Instant::now() + DEADLINE;
        for byte in hello.iter().cycle() {
            if slow.write_all(&[*byte]).is_err() || Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(Instant::now() < until, "the connection must be closed");
    });
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
    slow.join().unwrap();
    assert_eq!(evener.service_counter("s", "preamble_timeouts"), 2);
    assert_eq!(evener.service_counter("s", "tls_handshakes"), 0);
    let config = Arc::new(authority.client(ANY));
    assert_eq!(line_of(&mut shake(listen, "a.example", &config).unwrap()), "a 127.0.0.1");
}

#[test]
fn concurrent_handshakes_are_limited_as_configured() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &format!("{keys}, handshakes_max = 3"), ""));
    let listen = evener.port("s");
    let config = Arc::new(authority.client(ANY));
    let mut done = shake(listen, "a.example", &config).unwrap();
    assert_eq!(line_of(&mut done), "a 127.0.0.1");
    let pending: Vec<TcpStream> = (0..3).map(|_| connect(listen)).collect();
    wait_until("the clients to be accepted", || {
        (evener.status()["services"][0]["connections_active"] == 4).then_some(())
    });
    assert_eq!(connect(listen).read(&mut [0; 1]).unwrap_or(0), 0, "the fourth handshake must be refused");
    assert_eq!(evener.service_counter("s", "tls_refused"), 1);
    drop(pending);
    wait_until("the handshake permits to be released", || shake(listen, "a.example", &config).ok());
    done.write_all(b"a client stays").unwrap();
    done.read_exact(&mut [0; 14]).unwrap();
}

#[test]
fn bytes_that_are_not_a_handshake_are_refused() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    let garbage: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0; 100],
        &[0xff; 20_000],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0xff, 0xff, 1, 0, 0, 0],
        &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
        &[21, 3, 1, 0, 2, 2, 0],
        // SSL 2
        &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10],
    ];
    for (number, bytes) in garbage.into_iter().enumerate() {
        let mut client = connect(listen);
        client.write_all(bytes).unwrap();
        let _ = client.shutdown(Shutdown::Write);
        let mut response = Vec::new();
        let _ = client.read_to_end(&mut response);
        // The response may be one alert (RFC 8446, section 6): a header of five bytes, a level and a description.
        let is_alert = response.len() == 7 && response[0] == 21;
        assert!(response.is_empty() || is_alert, "{number}: {response:?}");
    }
    wait_until("the failed handshakes to be counted", || {
        (evener.service_counter("s", "tls_failed") == garbage.len() as u64).then_some(())
    });
    assert_eq!(evener.server(&format!("127.0.0.1:{}", a.port))["counters"]["connections"], 0);
    let config = Arc::new(authority.client(ANY));
    assert_eq!(line_of(&mut shake(listen, "a.example", &config).unwrap()), "a 127.0.0.1");
}

#[test]
fn an_incomplete_message_after_the_handshake_does_not_disturb_other_clients() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let server = Server::start({
        let barrier = Arc::clone(&barrier);
        move |mut stream| {
            stream.write_all(b"a\n").unwrap();
            barrier.wait();
            let _ = stream.write_all(b"more\n");
        }
    });
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run_with(&tcp(0, &server, &keys, ""), &["--workers", "1"]);
    let listen = evener.port("s");
    let mut config = authority.client(&[&rustls::version::TLS13]);
    config.enable_secret_extraction = true;
    let mut client = shake(listen, "a.example", &Arc::new(config)).unwrap();
    assert_eq!(line_of(&mut client), "a");
    // The first bytes of a KeyUpdate (RFC 8446, section 4.6.3), in a correctly encrypted record. The rest is never sent,
    // and the server keeps sending.
    let record = encrypted_record(client.conn, rustls::ContentType::Handshake, &[24, 0, 0]);
    client.sock.write_all(&record).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    barrier.wait();
    assert!(client.sock.read(&mut [0; 100]).unwrap() > 0, "the server's bytes must still arrive");
    let config = Arc::new(authority.client(ANY));
    let again = shake(listen, "a.example", &config);
    assert_eq!(
        again.map(|mut client| line_of(&mut client)).unwrap_or_default(),
        "a",
        "other clients must be served"
    );
    barrier.wait();
    assert_eq!(evener.service_counter("s", "tls_handshakes"), 2);
}

/// Returns the payload encrypted as the next record of the client.
fn encrypted_record(client: rustls::ClientConnection, kind: rustls::ContentType, payload: &[u8]) -> Vec<u8> {
    use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
    let Some(rustls::SupportedCipherSuite::Tls13(suite)) = client.negotiated_cipher_suite() else {
        panic!("expected a cipher suite of TLS 1.3");
    };
    let (number, secrets) = client.dangerous_extract_secrets().unwrap().tx;
    let (rustls::ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | rustls::ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | rustls::ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        panic!("expected one of the three ciphers of rustls");
    };
    let version = rustls::ProtocolVersion::TLSv1_2;
    let message = OutboundPlainMessage { typ: kind, version, payload: OutboundChunks::Single(payload) };
    suite.aead_alg.encrypter(key, iv).encrypt(message, number).unwrap().encode()
}

#[test]
fn bytes_that_a_server_sent_before_its_reset_reach_a_slow_client() {
    const SIZE: usize = 200_000;
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let server = Server::start(|mut stream| {
        let _ = stream.read_exact(&mut [0]);
        stream.write_all(&vec![b'x'; SIZE]).unwrap();
        // The second byte confirms that Evener has received all bytes. Closing then causes a reset.
        let _ = stream.read_exact(&mut [0]);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &server, &keys, ""));
    let listen = evener.port("s");
    let mut client = shake(listen, "a.example", &Arc::new(authority.client(ANY))).unwrap();
    socket2::SockRef::from(&client.sock).set_recv_buffer_size(8192).unwrap();
    client.write_all(b"1").unwrap();
    wait_until("all bytes to be forwarded", || {
        (evener.service_counter("s", "bytes_out") >= SIZE as u64).then_some(())
    });
    client.write_all(b"2").unwrap();
    // The reset arrives before the client reads any more bytes.
    wait_until("the server's connection to end", || {
        let status = evener.server(&format!("127.0.0.1:{}", server.port));
        (status["active"] == 0).then_some(())
    });
    let (mut received, mut piece) = (0, [0; 4096]);
    while let Ok(read @ 1..) = client.read(&mut piece) {
        received += read;
    }
    assert_eq!(received, SIZE);
}

#[test]
fn a_half_close_is_forwarded_through_tls_in_both_directions() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (sender, messages) = std::sync::mpsc::channel();
    let server = Server::start(move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        let mut received = String::new();
        if first[0] == b'1' {
            stream.read_to_string(&mut received).unwrap();
            stream.write_all(format!("received {received}").as_bytes()).unwrap();
        } else {
            stream.write_all(b"I am done").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_string(&mut received).unwrap();
            sender.send(received).unwrap();
        }
    });
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &server, &keys, ""));
    let listen = evener.port("s");
    for version in ANY {
        let config = Arc::new(authority.client(&[version]));
        let mut client = shake(listen, "a.example", &config).unwrap();
        client.write_all(b"1everything").unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert_eq!(response, "received everything", "{version:?}");
        let mut client = shake(listen, "a.example", &config).unwrap();
        client.write_all(b"2").unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert_eq!(response, "I am done", "{version:?}");
        client.write_all(b"still here").unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        assert_eq!(messages.recv_timeout(DEADLINE).unwrap(), "still here", "{version:?}");
    }
}

/// Pseudorandom bytes, in which missing or shifted parts are detected.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(next).take(length).collect()
}

/// Sends bytes to an echo server while reading them back, and checks that they are unchanged. The first line is skipped.
pub(crate) fn check_echo(port: u16, config: rustls::ClientConfig, length: usize) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let sent = noise(length);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    let received = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from("a.example").unwrap();
        let (reader, mut writer) = tokio::io::split(connector.connect(name, stream).await.unwrap());
        let sending = tokio::spawn({
            let sent = sent.clone();
            async move {
                writer.write_all(&sent).await.unwrap();
                writer.flush().await.unwrap();
                writer
            }
        });
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        let mut first = String::new();
        reader.read_line(&mut first).await.unwrap();
        let mut received = vec![0; length];
        reader.read_exact(&mut received).await.unwrap();
        drop(sending.await.unwrap());
        received
    });
    assert!(received == sent, "the echoed bytes differ");
}

#[test]
fn sixty_four_mebibytes_in_both_directions_arrive_unchanged() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    check_echo(listen, authority.client(&[&rustls::version::TLS13]), 64 << 20);
    check_echo(listen, authority.client(&[&rustls::version::TLS12]), 1 << 20);
    assert_eq!(evener.service_counter("s", "bytes_in"), 65 << 20);
}

/// A stream that reads and writes in small pieces.
pub(crate) struct Pieces {
    stream: TcpStream,
    size: usize,
}

impl Pieces {
    pub(crate) fn new(stream: TcpStream, size: usize) -> Self {
        Self { stream, size }
    }

    /// The underlying stream, which does not split reads.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.size.max(3));
        self.stream.read(&mut buffer[..length])
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.set_nodelay(true)?;
        let written = self.stream.write(&bytes[..bytes.len().min(self.size)])?;
        // The pause lets the peer receive each piece separately.
        std::thread::sleep(Duration::from_micros(300));
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn a_handshake_in_pieces_is_accepted() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    for version in ANY {
        for size in [1, 2, 5, 100] {
            let config = Arc::new(authority.client(&[version]));
            let stream = Pieces::new(connect(listen), size);
            let mut client = shake_over(stream, "a.example", &config).unwrap();
            assert_eq!(line_of(&mut client), "a 127.0.0.1", "{version:?} in pieces of {size}");
        }
    }
}

#[test]
fn an_invalid_certificate_changes_nothing_and_its_file_is_reported() {
    let (directory, authority, a, b) =
        (Directory::new(), Authority::new("test ca"), Server::named("a"), Server::named("b"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&tcp(0, &a, &keys, ""));
    let listen = evener.port("s");
    let other = authority.issue(&["b.example"]);
    let write = |name: &str, issued: Issued| issued.keys(&directory, name);
    let bad = [
        ("garbage", Issued { chain: "nonsense".to_owned(), key: other.key.clone() }, "garbage.crt"),
        ("no-key", Issued { chain: other.chain.clone(), key: "nonsense".to_owned() }, "no-key.key"),
        ("swapped", Issued { chain: other.chain.clone(), key: other.chain.clone() }, "swapped.key"),
        (
            "other-key",
            Issued { chain: other.chain.clone(), key: authority.issue(&["c.example"]).key },
            "other-key.key",
        ),
    ];
    let config = Arc::new(authority.client(ANY));
    let mut cases: Vec<(String, &str)> = bad.map(|(name, issued, file)| (write(name, issued), file)).into();
    cases.push((
        "certificate = \"/nowhere/at/all.crt\", key = \"/nowhere/at/all.key\"".into(),
        "/nowhere/at/all.crt",
    ));
    cases.push(("directory = \"/nowhere\"".into(), "/nowhere"));
    let ca = directory.write("empty-ca.pem", "").display().to_string();
    cases.push((format!("{keys}, client_ca = \"{ca}\""), "empty-ca.pem"));
    for (tls, expected) in cases {
        // The rejected configuration would also change the server.
        evener.write_config(&tcp(0, &b, &tls, ""));
        let output = evener.run_command(&["reload"]);
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{tls}: {printed}");
        assert!(printed.contains(expected), "{expected}: {printed}");
        let mut client = shake(listen, "a.example", &config).unwrap();
        assert_eq!(line_of(&mut client), "a 127.0.0.1");
    }
}
