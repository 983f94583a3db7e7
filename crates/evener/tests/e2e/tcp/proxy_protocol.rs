//! The PROXY protocol to servers: haproxy and nginx accept it, and every part of the header is correct.

use crate::harness::certificates::{ANY, Authority, line_of, mirror, shake, shake_over, tls_echo};
use crate::harness::peers::Peer;
use crate::harness::{DEADLINE, Directory, Evener, Server, have, local, reserved_port};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A connection from an address of loopback.
pub(crate) fn connect_from(from: &str, port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&local(port).into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends a request and returns the body of the response.
pub(crate) fn fetch(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").unwrap();
    let _ = stream.flush();
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    let response = String::from_utf8_lossy(&response).into_owned();
    response.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or(response)
}

/// haproxy and nginx that respond with the contents of the header: the addresses and ports of the client and of the service.
fn reporting_servers(haproxy: u16, nginx: u16) -> [Peer; 2] {
    let haproxy = Peer::haproxy(
        haproxy,
        &format!(
            "frontend f\n  mode http\n  bind 127.0.0.1:{haproxy} accept-proxy\n  \
             http-request return status 200 content-type text/plain lf-string \"%ci %cp %fi %fp\""
        ),
    );
    let variables =
        "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
    let nginx = Peer::nginx(
        nginx,
        &format!(
            "http {{ access_log off; server {{ listen 127.0.0.1:{nginx} proxy_protocol; \
             location / {{ return 200 \"{variables}\"; }} }} }}"
        ),
    );
    [haproxy, nginx]
}

#[test]
fn haproxy_and_nginx_receive_the_address_of_the_client() {
    if !have("haproxy") || !have("nginx") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let ports = [reserved_port(), reserved_port()];
    let _servers = reporting_servers(ports[0], ports[1]);
    let listen = reserved_port();
    let client = Arc::new(authority.client(ANY));
    for server in ports {
        for version in ["v1", "v2"] {
            for more in ["", "protocol = \"http\",", &format!("tls = {{ {keys} }},")] {
                let _evener = Evener::run(&format!(
                    "local p = pool \"p\" {{ \"127.0.0.1:{server}\", send_proxy = \"{version}\" }}\n\
                     service \"s\" {{ listen = \"127.0.0.1:{listen}\", pool = p, {more} }}"
                ));
                for from in ["127.0.0.7", "127.0.0.8"] {
                    let mut stream = connect_from(from, listen);
                    let port = stream.local_addr().unwrap().port();
                    let reported = if more.starts_with("tls") {
                        fetch(&mut shake_over(stream, "a.example", &client).unwrap())
                    } else {
                        fetch(&mut stream)
                    };
                    assert_eq!(reported, format!("{from} {port} 127.0.0.1 {listen}"), "{version} {more}");
                }
            }
        }
    }
}

#[test]
fn a_server_connection_with_the_header_of_one_client_is_not_used_for_another_client() {
    if !have("nginx") {
        return;
    }
    let port = reserved_port();
    let _nginx = Peer::nginx(
        port,
        &format!(
            "http {{ access_log off; server {{ listen 127.0.0.1:{port} proxy_protocol; \
             location / {{ return 200 \"$proxy_protocol_addr $connection_requests\\n\"; }} }} }}"
        ),
    );
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", \"127.0.0.1:{port}\", send_proxy = \"v2\" }}"
    ));
    let listen = evener.port("s");
    // Both clients keep their connections open, and send requests in turn.
    let mut clients = ["127.0.0.7", "127.0.0.8"].map(|from| (from, connect_from(from, listen)));
    for turn in 1..4 {
        for (from, client) in &mut clients {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
            let reported = (0..20).map(|_| line_of(client)).find(|line| line.starts_with("127."));
            assert_eq!(reported, Some(format!("{from} {turn}")));
        }
    }
}

/// Types and values of TLVs.
type Tlvs = Vec<(u8, Vec<u8>)>;

/// A version 2 header that a server received, parsed without Evener's code.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) command: u8,
    pub(crate) family: u8,
    pub(crate) addresses: Vec<u8>,
    tlvs: Tlvs,
}

impl Report {
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed).unwrap();
        assert_eq!(&fixed[..12], b"\r\n\r\n\0\r\nQUIT\n");
        let mut body = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        stream.read_exact(&mut body).unwrap();
        let size = match fixed[13] >> 4 {
            1 => 12,
            2 => 36,
            _ => 0,
        };
        let header = Self {
            command: fixed[12],
            family: fixed[13],
            addresses: body[..size].to_vec(),
            tlvs: tlvs(&body[size..]),
        };
        // The checksum is computed with zeros in its field (section 2.2.3).
        let sum = header.tlv(3).expect("a checksum").to_vec();
        let mut whole = [&fixed[..], &body].concat();
        let at = whole.len() - 4;
        assert_eq!(whole[at..], sum, "the checksum must be last");
        whole[at..].fill(0);
        assert_eq!(crc32c(&whole).to_be_bytes(), sum[..]);
        header
    }

    fn tlv(&self, kind: u8) -> Option<&[u8]> {
        find(&self.tlvs, kind)
    }

    /// The client bits, the verify result and the sub-TLVs of the client's TLS.
    fn ssl(&self) -> Option<(u8, u32, Tlvs)> {
        let value = self.tlv(0x20)?;
        Some((value[0], u32::from_be_bytes(value[1..5].try_into().unwrap()), tlvs(&value[5..])))
    }
}

fn find(tlvs: &[(u8, Vec<u8>)], kind: u8) -> Option<&[u8]> {
    tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| &value[..])
}

fn tlvs(mut bytes: &[u8]) -> Tlvs {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_be_bytes([bytes[1], bytes[2]]));
        all.push((bytes[0], bytes[3..3 + length].to_vec()));
        bytes = &bytes[3 + length..];
    }
    all
}

/// CRC-32C, computed bit by bit (RFC 3720, appendix B.4).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(u32::MAX, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), bit))
}

/// A server that reads a header from each connection and echoes the bytes after it, and a channel with the
/// headers.
fn listener() -> (Server, Receiver<Report>) {
    let (sender, headers) = channel();
    let server = Server::start(move |mut stream| {
        let _ = sender.send(Report::read(&mut stream));
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..read]);
        }
    });
    (server, headers)
}

#[test]
fn version_2_has_the_tls_details_of_the_client() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let (ca, _) = authority.write(&directory, "ca");
    let (server, headers) = listener();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", send_proxy = \"v2\",\n\
         tls = {{ {keys}, alpn = \"imap\", client_ca = \"{}\", client_certificate = \"optional\" }} }}",
        server.port,
        ca.display()
    ));
    let listen = evener.port("s");
    let mut ids = Vec::new();
    for version in ANY {
        for certified in [false, true] {
            let mut config = authority.client(&[version]);
            config.alpn_protocols = vec![b"imap".to_vec()];
            if certified {
                let issued = authority.issue_client("someone");
                config.client_auth_cert_resolver = issued.resolver();
            }
            let mut client =
                shake_over(connect_from("127.0.0.7", listen), "a.example", &Arc::new(config)).unwrap();
            client.write_all(b"and back\n").unwrap();
            assert_eq!(line_of(&mut client), "and back");
            let header = headers.recv_timeout(DEADLINE).unwrap();
            let port = client.sock.local_addr().unwrap().port();
            let addresses = [&[127, 0, 0, 7, 127, 0, 0, 1][..], &port.to_be_bytes(), &listen.to_be_bytes()];
            assert_eq!((header.command, header.family), (0x21, 0x11));
            assert_eq!(header.addresses, addresses.concat());
            assert_eq!(header.tlv(1), Some(b"imap".as_slice()));
            assert_eq!(header.tlv(2), Some(b"a.example".as_slice()));
            ids.push(header.tlv(5).expect("a unique id").to_vec());
            let (bits, verify, parts) = header.ssl().unwrap();
            // The bits PP2_CLIENT_SSL, PP2_CLIENT_CERT_CONN and PP2_CLIENT_CERT_SESS. The verify result is zero for a verified
            // client.
            assert_eq!((bits, verify), if certified { (7, 0) } else { (1, 1) }, "{parts:?}");
            let version_name = if *version == &rustls::version::TLS13 { "TLSv1.3" } else { "TLSv1.2" };
            assert_eq!(find(&parts, 0x21), Some(version_name.as_bytes()));
            assert_eq!(find(&parts, 0x22), certified.then_some(b"someone".as_slice()));
            let suite = client.conn.negotiated_cipher_suite().unwrap().suite();
            let suite = suite.as_str().unwrap().replace("TLS13_", "TLS_");
            assert_eq!(find(&parts, 0x23), Some(suite.as_bytes()));
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "each connection must have a different id");
}

#[test]
fn headers_have_the_address_family_of_the_client_and_unix_clients_have_none() {
    let directory = Directory::new();
    let (server, headers) = listener();
    let listen = reserved_port();
    let socket = directory.file("front.sock");
    let _evener = Evener::run(&format!(
        "service \"s\" {{ listen = {{ \"[::1]:{listen}\", \"127.0.0.1:{listen}\", \"{}\" }}, \"127.0.0.1:{}\", send_proxy = \"v2\" }}",
        socket.display(),
        server.port
    ));
    let six = TcpStream::connect(("::1", listen)).unwrap();
    let header = headers.recv_timeout(DEADLINE).unwrap();
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    let port = six.local_addr().unwrap().port().to_be_bytes();
    assert_eq!((header.command, header.family), (0x21, 0x21));
    assert_eq!(header.addresses, [&loopback[..], &loopback, &port, &listen.to_be_bytes()].concat());
    assert_eq!((header.tlv(1), header.tlv(2), header.ssl().is_none()), (None, None, true));
    let mut unix = UnixStream::connect(&socket).unwrap();
    let header = headers.recv_timeout(DEADLINE).unwrap();
    assert_eq!((header.command, header.family), (0x20, 0), "LOCAL");
    unix.write_all(b"goes on\n").unwrap();
    assert_eq!(line_of(&mut unix), "goes on");
}

#[test]
fn version_1_is_one_line_before_the_first_byte() {
    let directory = Directory::new();
    let socket = directory.file("front.sock");
    let (echo, listen) = (Server::named("a"), reserved_port());
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = {{ \"[::1]:{listen}\", \"127.0.0.1:{listen}\", \"{}\" }}, \"127.0.0.1:{}\", send_proxy = \"v1\" }}",
        socket.display(),
        echo.port
    ));
    let mut four = connect_from("127.0.0.7", listen);
    let port = four.local_addr().unwrap().port();
    assert_eq!(line_of(&mut four), "a 127.0.0.1");
    four.write_all(b"and more\n").unwrap();
    assert_eq!(line_of(&mut four), format!("PROXY TCP4 127.0.0.7 127.0.0.1 {port} {listen}\r"));
    assert_eq!(line_of(&mut four), "and more");
    assert_eq!(
        evener.service_counter("s", "bytes_in"),
        9,
        "the header must not count as bytes of the client"
    );
    assert_eq!(evener.server(&format!("127.0.0.1:{}", echo.port))["counters"]["bytes_in"], 9);
    let mut six = TcpStream::connect(("::1", listen)).unwrap();
    let port = six.local_addr().unwrap().port();
    line_of(&mut six);
    assert_eq!(line_of(&mut six), format!("PROXY TCP6 ::1 ::1 {port} {listen}\r"));
    let mut unix = UnixStream::connect(&socket).unwrap();
    line_of(&mut unix);
    assert_eq!(line_of(&mut unix), "PROXY UNKNOWN\r");
}

#[test]
fn the_header_precedes_tls_that_is_passed_through() {
    let authority = Authority::new("test ca");
    let (sender, headers) = channel();
    let behind = tls_echo("a", &authority.issue(&["a.example"]));
    let behind_port = behind.port;
    let server = Server::start(move |mut stream| {
        let _ = sender.send(Report::read(&mut stream));
        // The rest is TLS for the server behind this one.
        let mut onward = TcpStream::connect(local(behind_port)).unwrap();
        let (mut back, mut again) = (onward.try_clone().unwrap(), stream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back, &mut again));
        let _ = std::io::copy(&mut stream, &mut onward);
    });
    let evener = Evener::run(&format!(
        "local p = pool \"p\" {{ \"127.0.0.1:{}\", send_proxy = \"v2\" }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", routes = {{ {{ sni = \"a.example\", pool = p }} }} }}",
        server.port
    ));
    let listen = evener.port("s");
    let mut client = shake(listen, "a.example", &Arc::new(authority.client(ANY))).unwrap();
    assert_eq!(line_of(&mut client), "a a.example");
    let header = headers.recv_timeout(DEADLINE).unwrap();
    assert_eq!(header.tlv(2), Some(b"a.example".as_slice()));
    assert!(header.ssl().is_none(), "the details of TLS that is passed through are unknown");
}

#[test]
fn the_header_precedes_tls_to_the_server() {
    if !have("nginx") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (port, listen) = (reserved_port(), reserved_port());
    let (chain, key) = authority.issue(&["web.example"]).write(&directory, "web");
    let (ca, _) = authority.write(&directory, "ca");
    let _nginx = Peer::nginx(
        port,
        &format!(
            "http {{ access_log off; server {{ listen 127.0.0.1:{port} ssl proxy_protocol; ssl_certificate {};\n\
             ssl_certificate_key {}; location / {{ return 200 \"$proxy_protocol_addr $ssl_server_name\"; }} }} }}",
            chain.display(),
            key.display()
        ),
    );
    for (protocol, version) in [("tcp", "v1"), ("tcp", "v2"), ("http", "v1"), ("http", "v2")] {
        let _evener = Evener::run(&format!(
            "local p = pool \"p\" {{ \"127.0.0.1:{port}\", send_proxy = \"{version}\", tls = {{ ca = \"{}\", sni = \"web.example\" }} }}\n\
             service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", pool = p }}",
            ca.display()
        ));
        assert_eq!(
            fetch(&mut connect_from("127.0.0.7", listen)),
            "127.0.0.7 web.example",
            "{protocol} {version}"
        );
    }
}

#[test]
fn without_send_proxy_servers_get_no_header() {
    let a = mirror("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", send_proxy = false }}",
        a.port
    ));
    let listen = evener.port("s");
    let body = fetch(&mut connect_from("127.0.0.7", listen));
    assert!(body.starts_with("a\nGET / HTTP/1.1"), "{body}");
}
