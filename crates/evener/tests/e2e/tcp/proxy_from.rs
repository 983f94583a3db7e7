//! The PROXY protocol from clients: trusted senders, and malformed headers.

use crate::harness::certificates::{ANY, Authority, line_of, mirror, s_client, shake_over, tls_echo};
use crate::harness::peers::Peer;
use crate::harness::{Directory, Evener, Server, connect, have, line, reserved_port, wait_until};
use crate::tcp::proxy_protocol::{connect_from, crc32c, fetch};
use crate::tls::clients::Pieces;
use std::io::{Read, Write};
use std::sync::Arc;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A version 2 header with the given command, family and body.
pub(crate) fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// 192.0.2.7:4567 to 192.0.2.1:443
pub(crate) const FOUR: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 1, 0x11, 0xd7, 1, 0xbb];

/// Addresses of IPv6 with the same ports: 2001:db8::7 to 2001:db8::1.
pub(crate) fn six() -> Vec<u8> {
    let address = |last: u8| [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
    [address(7), address(1), vec![0x11, 0xd7, 1, 0xbb]].concat()
}

/// A header with a correct or a wrong checksum.
fn with_checksum(wrong: bool) -> Vec<u8> {
    let mut header = v2(0x21, 0x11, &[&FOUR[..], &tlv(3, &[0; 4])].concat());
    let sum = crc32c(&header) ^ u32::from(wrong);
    let at = header.len() - 4;
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Well-formed headers, each with the client that the header names. With `None`, the client is the sender
/// itself.
fn good() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let with = |tlvs: &[u8]| v2(0x21, 0x11, &[&FOUR[..], tlvs].concat());
    let ssl = [&[1, 0, 0, 0, 1][..], &tlv(0x21, b"TLSv1.3")].concat();
    vec![
        ("v1 TCP4", b"PROXY TCP4 192.0.2.7 192.0.2.1 4567 443\r\n".to_vec(), Some("192.0.2.7")),
        ("v1 TCP6", b"PROXY TCP6 2001:db8::7 2001:db8::1 4567 443\r\n".to_vec(), Some("2001:db8::7")),
        ("v1 mapped", b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4567 443\r\n".to_vec(), Some("192.0.2.7")),
        ("v1 port 0", b"PROXY TCP4 192.0.2.7 192.0.2.1 0 65535\r\n".to_vec(), Some("192.0.2.7")),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), None),
        (
            "v1 UNKNOWN with more",
            b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".to_vec(),
            None,
        ),
        ("v2 IPv4", v2(0x21, 0x11, &FOUR), Some("192.0.2.7")),
        ("v2 IPv6", v2(0x21, 0x21, &six()), Some("2001:db8::7")),
        ("v2 LOCAL", v2(0x20, 0, &[]), None),
        ("v2 LOCAL with addresses", v2(0x20, 0x11, &FOUR), None),
        // "the receiver must ... discard the protocol block including the family which is ignored" (section 2.2)
        ("v2 LOCAL of a family without its addresses", v2(0x20, 0x11, &[]), None),
        ("v2 LOCAL with anything", v2(0x20, 0, &[0xff; 5]), None),
        ("v2 UNSPEC", v2(0x21, 0, &[]), None),
        ("v2 unix", v2(0x21, 0x31, &[0; 216]), None),
        ("v2 checksum", with_checksum(false), Some("192.0.2.7")),
        ("v2 unknown TLV", with(&tlv(0xe0, b"custom")), Some("192.0.2.7")),
        ("v2 NOOP", with(&tlv(4, &[0; 30])), Some("192.0.2.7")),
        ("v2 ssl", with(&tlv(0x20, &ssl)), Some("192.0.2.7")),
        ("v2 id", with(&tlv(5, &[b'x'; 128])), Some("192.0.2.7")),
        ("v2 large", with(&tlv(0xe0, &[0; 3000])), Some("192.0.2.7")),
    ]
}

/// Malformed headers.
pub(crate) fn bad() -> Vec<(&'static str, Vec<u8>)> {
    let v1 = |line: &str| [b"PROXY ".as_slice(), line.as_bytes()].concat();
    let with = |tlvs: &[u8]| v2(0x21, 0x11, &[&FOUR[..], tlvs].concat());
    vec![
        ("http", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("TLS", vec![22, 3, 1, 0, 5, 1, 0, 0, 1, 0]),
        ("lower case", b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n".to_vec()),
        ("a space before", b" PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n".to_vec()),
        ("LF alone", v1("TCP4 192.0.2.7 192.0.2.1 1 2\n")),
        ("two spaces", v1("TCP4 192.0.2.7  192.0.2.1 1 2\r\n")),
        ("a tab", v1("TCP4\t192.0.2.7 192.0.2.1 1 2\r\n")),
        ("a space at the end", v1("TCP4 192.0.2.7 192.0.2.1 1 2 \r\n")),
        ("an extra word", v1("TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n")),
        ("a missing word", v1("TCP4 192.0.2.7 192.0.2.1 1\r\n")),
        ("nothing", v1("\r\n")),
        ("UDP4", v1("UDP4 192.0.2.7 192.0.2.1 1 2\r\n")),
        ("family 5", v1("TCP5 192.0.2.7 192.0.2.1 1 2\r\n")),
        ("IPv6 in TCP4", v1("TCP4 ::1 ::1 1 2\r\n")),
        ("IPv4 in TCP6", v1("TCP6 192.0.2.7 192.0.2.1 1 2\r\n")),
        ("a name", v1("TCP4 client.example 192.0.2.1 1 2\r\n")),
        ("a number too large", v1("TCP4 192.0.2.256 192.0.2.1 1 2\r\n")),
        ("a leading zero", v1("TCP4 192.0.02.7 192.0.2.1 1 2\r\n")),
        ("a scope", v1("TCP6 fe80::1%1 ::1 1 2\r\n")),
        ("a port too large", v1("TCP4 192.0.2.7 192.0.2.1 65536 2\r\n")),
        ("a negative port", v1("TCP4 192.0.2.7 192.0.2.1 -1 2\r\n")),
        ("a port with a plus", v1("TCP4 192.0.2.7 192.0.2.1 +1 2\r\n")),
        ("a port with a zero", v1("TCP4 192.0.2.7 192.0.2.1 01 2\r\n")),
        ("no end", v1(&"x".repeat(200))),
        ("an UNKNOWN too long", v1(&format!("UNKNOWN {}\r\n", "x".repeat(100)))),
        ("bytes above ASCII", [b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2\r\n".as_slice()].concat()),
        ("a NUL", v1("TCP4 192.0.2.7\0 192.0.2.1 1 2\r\n")),
        ("v2 another version", v2(0x11, 0x11, &FOUR)),
        ("v2 version 3", v2(0x31, 0x11, &FOUR)),
        ("v2 command 2", v2(0x22, 0x11, &FOUR)),
        ("v2 command 15", v2(0x2f, 0x11, &FOUR)),
        ("v2 family 4", v2(0x21, 0x41, &FOUR)),
        ("v2 transport 3", v2(0x21, 0x13, &FOUR)),
        ("v2 too short for IPv4", v2(0x21, 0x11, &FOUR[..11])),
        ("v2 too short for IPv6", v2(0x21, 0x21, &FOUR)),
        ("v2 too short for unix", v2(0x21, 0x31, &[0; 215])),
        ("v2 a truncated TLV", with(&[1, 0])),
        ("v2 a TLV beyond the end", with(&[1, 0, 9, b'x'])),
        ("v2 a wrong checksum", with_checksum(true)),
        ("v2 a short checksum", with(&tlv(3, &[0; 3]))),
        ("v2 an id too long", with(&tlv(5, &[b'x'; 129]))),
        ("v2 ssl too short", with(&tlv(0x20, &[1, 0, 0, 0]))),
        ("v2 ssl with half a part", with(&tlv(0x20, &[1, 0, 0, 0, 0, 0x21, 0]))),
        ("v2 too large", v2(0x21, 0x11, &[&FOUR[..], &tlv(0xe0, &[0; 5000])].concat())),
        ("v2 another signature", [b"\r\n\r\n\0\r\nQUIX\n".as_slice(), &[0x21, 0x11, 0, 12], &FOUR].concat()),
    ]
}

fn http(listen: u16, server: &Server, more: &str) -> String {
    let port = server.port;
    format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{port}\", {more} }}"
    )
}

fn tcp(listen: u16, server: &Server, more: &str) -> String {
    http(listen, server, more).replace("\"http\"", "\"tcp\"")
}

/// The value of `X-Forwarded-For` that the server received.
fn forwarded_for(body: &str) -> &str {
    let value = body.lines().find_map(|line| line.strip_prefix("X-Forwarded-For: "));
    value.unwrap_or_else(|| panic!("no X-Forwarded-For: {body}")).trim()
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

#[test]
fn every_well_formed_header_names_the_client_whether_sent_whole_or_in_pieces() {
    let (a, echo) = (mirror("a"), Server::named("e"));
    let evener = Evener::run(&format!(
        "{}\n{}",
        http(0, &a, "proxy_from = \"127.0.0.1\""),
        tcp(0, &echo, "proxy_from = \"127.0.0.1\"").replace("\"s\"", "\"t\"")
    ));
    let plain = evener.port("t");
    let listen = evener.port("s");
    let mut wrong = Vec::new();
    for (what, header, expected) in good() {
        for size in [1, 13, usize::MAX] {
            let bytes = [&header[..], REQUEST].concat();
            // The header is sent whole, or in pieces.
            let mut pieces = Pieces::new(connect(listen), size);
            let sent = pieces.write_all(&bytes).is_ok();
            let mut response = String::new();
            let _ = pieces.stream().read_to_string(&mut response);
            if !sent
                || !response.starts_with("HTTP/1.1 200")
                || forwarded_for(&response) != expected.unwrap_or("127.0.0.1")
            {
                wrong.push(format!("{what}, http, in pieces of {size}: {response:?}"));
            }
            let mut pieces = Pieces::new(connect(plain), size);
            let sent = pieces.write_all(&[&header[..], b"through\n"].concat()).is_ok();
            line(pieces.stream());
            if !sent || line(pieces.stream()) != "through" {
                wrong.push(format!("{what}, tcp, in pieces of {size}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(evener.service_counter("s", "preamble_refused"), 0);
}

#[test]
fn a_malformed_header_is_refused_and_reaches_no_server() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let a = mirror("a");
    assert!(bad().len() >= 25);
    for (protocol, more) in [("tcp", ""), ("http", ""), ("tcp", &*format!("tls = {{ {keys} }}"))] {
        let config = format!(
            "service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", proxy_from = \"127.0.0.1\", {more} }}",
            a.port
        );
        let evener = Evener::run(&config);
        let listen = evener.port("s");
        for (what, bytes) in bad() {
            let before = evener.service_counter("s", "preamble_refused");
            let mut client = connect(listen);
            let _ = client.write_all(&bytes);
            // Evener closes the connection without sending a byte, although the client keeps its side open.
            assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0, "{protocol} {what}");
            let after = evener.service_counter("s", "preamble_refused");
            assert_eq!(after - before, 1, "{protocol} {what}: the refusal must be counted");
        }
        let server = evener.server(&format!("127.0.0.1:{}", a.port));
        assert_eq!(server["counters"]["connections"], 0, "{protocol}");
    }
}

#[test]
fn headers_of_untrusted_senders_do_not_name_clients() {
    let (a, echo) = (mirror("a"), Server::named("e"));
    let from = "proxy_from = { \"127.0.0.2\", \"10.0.0.0/8\" }, deny = \"192.0.2.7\"";
    let evener =
        Evener::run(&format!("{}\n{}", http(0, &a, from), tcp(0, &echo, from).replace("\"s\"", "\"t\"")));
    let plain = evener.port("t");
    let listen = evener.port("s");
    // A tcp service relays the header as data, an http service refuses it as a malformed request.
    let mut client = connect(plain);
    client.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4567 443\r\n").unwrap();
    assert_eq!(line(&mut client), "e 127.0.0.1");
    assert_eq!(line(&mut client), "PROXY TCP4 192.0.2.7 192.0.2.1 4567 443\r");
    let mut client = connect(listen);
    client.write_all(&[b"PROXY TCP4 192.0.2.7 192.0.2.1 4567 443\r\n", REQUEST].concat()).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    assert_eq!(forwarded_for(&fetch(&mut connect(listen))), "127.0.0.1");
    // A trusted sender has to send a header.
    let mut trusted = connect_from("127.0.0.2", listen);
    trusted.write_all(b"PROXY TCP4 192.0.2.8 192.0.2.1 4567 443\r\n").unwrap();
    assert_eq!(forwarded_for(&fetch(&mut trusted)), "192.0.2.8");
    assert_eq!(
        fetch(&mut connect_from("127.0.0.2", listen)),
        "",
        "a trusted sender without a header must be refused"
    );
}

#[test]
fn access_lists_apply_to_the_client_that_the_header_names() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let a = mirror("a");
    let header = |last: u8| format!("PROXY TCP4 192.0.2.{last} 192.0.2.1 4567 443\r\n").into_bytes();
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4567 443\r\n".to_vec();
    let denied = "proxy_from = \"127.0.0.0/8\", deny = \"192.0.2.7\"";
    let client = Arc::new(authority.client(ANY));
    for (protocol, tls) in [("tcp", false), ("http", false), ("tcp", true), ("http", true)] {
        let more = if tls { format!("{denied}, tls = {{ {keys} }}") } else { denied.to_owned() };
        let config = http(0, &a, &more).replace("\"http\"", &format!("\"{protocol}\""));
        let evener = Evener::run(&config);
        let listen = evener.port("s");
        let fetch_as = |header: &[u8]| {
            let mut stream = connect(listen);
            stream.write_all(header).unwrap();
            if !tls {
                return fetch(&mut stream);
            }
            shake_over(stream, "a.example", &client).map(|mut tls| fetch(&mut tls)).unwrap_or_default()
        };
        assert_eq!(fetch_as(&header(7)), "", "{protocol} {tls}");
        assert_eq!(fetch_as(&mapped), "", "{protocol} {tls}");
        assert!(fetch_as(&header(8)).starts_with("a\nGET /"), "{protocol} {tls}");
        assert_eq!(evener.service_counter("s", "denied"), 2, "{protocol} {tls}");
        // Both clients were denied before the handshake.
        assert_eq!(evener.service_counter("s", "tls_handshakes"), u64::from(tls));
    }
    // The access list does not apply to the address of a proxy whose header names a client.
    let evener = Evener::run(&http(0, &a, "proxy_from = \"127.0.0.0/8\", allow = \"192.0.2.0/24\""));
    let listen = evener.port("s");
    let mut stream = connect(listen);
    stream.write_all(&header(7)).unwrap();
    assert_eq!(forwarded_for(&fetch(&mut stream)), "192.0.2.7");
    let mut local = connect(listen);
    local.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    assert_eq!(fetch(&mut local), "", "the access list must apply to a proxy whose header names no client");
    assert_eq!(evener.service_counter("s", "denied"), 1);
}

#[test]
fn a_sender_without_a_complete_header_is_closed_after_the_timeout() {
    let a = mirror("a");
    let evener = Evener::run(&format!(
        "{}\n{}",
        http(0, &a, "proxy_from = \"127.0.0.1\""),
        tcp(0, &a, "proxy_from = \"127.0.0.1\"").replace("\"s\"", "\"t\"")
    ));
    let plain = evener.port("t");
    let listen = evener.port("s");
    let mut clients: Vec<_> =
        [listen, plain].into_iter().flat_map(|port| (0..2).map(move |_| connect(port))).collect();
    clients[1].write_all(b"PROXY TCP4 192.0").unwrap();
    clients[3].write_all(&SIGNATURE[..11]).unwrap();
    for client in &mut clients {
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    for service in ["s", "t"] {
        assert_eq!(evener.service_counter(service, "preamble_timeouts"), 2, "{service}");
    }
}

#[test]
fn headers_of_haproxy_in_every_mode_name_the_client() {
    if !have("haproxy") {
        return;
    }
    let a = mirror("a");
    let evener = Evener::run(&http(0, &a, "proxy_from = \"127.0.0.1\""));
    let listen = evener.port("s");
    let modes = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2-ssl",
        "send-proxy-v2-ssl-cn",
        "send-proxy-v2 proxy-v2-options crc32c",
        "send-proxy-v2 proxy-v2-options unique-id,crc32c,authority,ssl,cert-cn,ssl-cipher,cert-sig,cert-key",
    ];
    for mode in modes {
        let port = reserved_port();
        let _haproxy = Peer::haproxy(
            port,
            &format!(
                "listen l\n  mode tcp\n  bind 127.0.0.1:{port}\n  unique-id-format id-%ci-%cp\n  server s 127.0.0.1:{listen} {mode}"
            ),
        );
        let body = fetch(&mut connect_from("127.0.0.7", port));
        assert_eq!(forwarded_for(&body), "127.0.0.7", "{mode}");
        let ports = body.lines().find_map(|line| line.strip_prefix("X-Forwarded-Port: "));
        assert_eq!(
            ports,
            Some(port.to_string().as_str()),
            "{mode}: the port must be the one that the client connected to"
        );
    }
    assert_eq!(evener.service_counter("s", "preamble_refused"), 0);
    // The checks of haproxy are requests of haproxy itself.
    let port = reserved_port();
    let _haproxy = Peer::haproxy(
        port,
        &format!(
            "listen l\n  mode http\n  bind 127.0.0.1:{port}\n  option httpchk GET /\n  server s 127.0.0.1:{listen} send-proxy-v2 check inter 100ms"
        ),
    );
    wait_until("checks of haproxy", || (evener.service_counter("s", "requests") > 12).then_some(()));
    assert_eq!(evener.service_counter("s", "requests_bad"), 0);
    assert_eq!(evener.service_counter("s", "preamble_refused"), 0);
}

#[test]
fn the_tls_details_of_a_header_of_haproxy_are_forwarded_to_the_server() {
    if !have("haproxy") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let issued = authority.issue(&["a.example"]);
    let both = directory.write("both.pem", &format!("{}{}", issued.chain, issued.key));
    let (ca, _) = authority.write(&directory, "ca");
    let (chain, key) = authority.issue_client("someone").write(&directory, "client");
    let [chain, key] = [chain, key].map(|path| path.display().to_string());
    let port = reserved_port();
    let server = Server::start(|mut stream| {
        // Sends the header back as text.
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed).unwrap();
        let mut body = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        stream.read_exact(&mut body).unwrap();
        let line = format!("header {}\n", body.escape_ascii());
        let _ = stream.write_all(line.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut body);
    });
    let evener = Evener::run(&tcp(0, &server, "proxy_from = \"127.0.0.1\", send_proxy = \"v2\""));
    let listen = evener.port("s");
    let _haproxy = Peer::haproxy(
        port,
        &format!(
            "listen l\n  mode tcp\n  bind 127.0.0.1:{port} ssl crt {} ca-file {} verify optional alpn imap\n  \
             unique-id-format id-%ci\n  \
             server s 127.0.0.1:{listen} send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,unique-id,authority,crc32c",
            both.display(),
            ca.display()
        ),
    );
    let arguments =
        ["-servername", "a.example", "-alpn", "imap", "-tls1_3", "-cert", &chain, "-key", &key, "-quiet"];
    let printed = s_client(port, &arguments, "hello\n");
    let header =
        printed.lines().find(|line| line.starts_with("header")).unwrap_or_else(|| panic!("{printed}"));
    for part in ["imap", "a.example", "id-127.0.0.1", "TLSv1.3", "someone", "TLS_"] {
        assert!(header.contains(part), "{part}: {header}");
    }
}

#[test]
fn a_header_of_nginx_names_the_client() {
    if !have("nginx") {
        return;
    }
    let (a, port) = (mirror("a"), reserved_port());
    let evener = Evener::run(&http(0, &a, "proxy_from = \"127.0.0.1\", deny = \"127.0.0.9\""));
    let listen = evener.port("s");
    let _nginx = Peer::nginx(
        port,
        &format!(
            "stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{listen}; proxy_protocol on; }} }}"
        ),
    );
    assert_eq!(forwarded_for(&fetch(&mut connect_from("127.0.0.7", port))), "127.0.0.7");
    assert_eq!(fetch(&mut connect_from("127.0.0.9", port)), "");
}

#[test]
fn headers_of_haproxy_are_accepted_before_tls_that_is_terminated_or_passed_through() {
    if !have("haproxy") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let (terminated, passed) = (mirror("terminated"), tls_echo("passed", &authority.issue(&["a.example"])));
    let evener = Evener::run(&format!(
        "{}\nlocal p = pool \"p\" {{ \"127.0.0.1:{}\" }}\n\
         service \"t\" {{ listen = \"127.0.0.1:0\", proxy_from = \"127.0.0.1\", deny = \"127.0.0.9\", routes = {{ {{ sni = \"a.example\", pool = p }} }} }}",
        http(
            0,
            &terminated,
            &format!("proxy_from = \"127.0.0.1\", deny = \"127.0.0.9\", tls = {{ {keys} }}")
        ),
        passed.port
    ));
    let listen = evener.port("s");
    let passthrough = evener.port("t");
    let client = Arc::new(authority.client(ANY));
    for mode in ["send-proxy", "send-proxy-v2"] {
        let ports = [reserved_port(), reserved_port()];
        let section = |(port, to): (u16, u16)| {
            format!("listen l{port}\n  mode tcp\n  bind 127.0.0.1:{port}\n  server s 127.0.0.1:{to} {mode}\n")
        };
        let sections: String = ports.into_iter().zip([listen, passthrough]).map(section).collect();
        let _haproxy = Peer::haproxy(ports[1], &sections);
        let connect_tls = |from: &str, port: u16| shake_over(connect_from(from, port), "a.example", &client);
        assert_eq!(
            forwarded_for(&fetch(&mut connect_tls("127.0.0.7", ports[0]).unwrap())),
            "127.0.0.7",
            "{mode}"
        );
        assert_eq!(line_of(&mut connect_tls("127.0.0.7", ports[1]).unwrap()), "passed a.example", "{mode}");
        for port in ports {
            assert!(
                connect_tls("127.0.0.9", port).is_err(),
                "{mode}: the client must be denied before the handshake"
            );
        }
    }
}
