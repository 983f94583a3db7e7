//! TLS passthrough: the server name of the ClientHello selects the pool, and every byte is forwarded unchanged.

use crate::harness::certificates::{ANY, Authority, curl, line_of, s_client, shake, shake_over, tls_echo};
use crate::harness::peers::Peer;
use crate::harness::{Directory, Evener, Server, connect, have, line, reserved_port, wait_until};
use crate::tls::clients::Pieces;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes()[..], data].concat()
}

/// A ClientHello with GREASE (RFC 8701) and padding, in records of at most `record` bytes.
fn hello(name: Option<&str>, padding: usize, record: usize) -> Vec<u8> {
    let mut extensions = extension(0x1a1a, &[]);
    if let Some(name) = name {
        extensions.extend(extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat())));
    }
    extensions.extend(extension(0x2a2a, &[0]));
    extensions.extend(extension(21, &vec![0; padding]));
    let mut body = [&[3, 3][..], &[7; 32], &[0]].concat();
    body.extend(vector16(&[0x3a, 0x3a, 0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector16(&extensions));
    let message = [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat();
    message.chunks(record).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
}

/// A service that selects one of three pools by the server name. `more` may add a pool for other names.
fn config(listen: u16, servers: [&Server; 3], more: &str) -> String {
    with_ports(listen, servers.map(|server| server.port), more)
}

fn with_ports(listen: u16, [a, b, c]: [u16; 3], more: &str) -> String {
    format!(
        "local a = pool \"a\" {{ \"127.0.0.1:{a}\" }}\nlocal b = pool \"b\" {{ \"127.0.0.1:{b}\" }}\n\
         local c = pool \"c\" {{ \"127.0.0.1:{c}\" }}\n\
         service \"s\" {{ listen = \"127.0.0.1:{listen}\", {more}\n  routes = {{\n    {{ sni = \"a.example\", pool = a }},\n    \
         {{ sni = {{ \"b.example\", \"exact.wild.example\" }}, pool = b }},\n    {{ sni = \"*.wild.example\", pool = c }},\n  }},\n}}"
    )
}

/// Sends bytes and reads up to the end. Returns the name of the server that received them, and the echoed bytes.
fn send(listen: u16, bytes: &[u8]) -> (String, Vec<u8>) {
    let mut client = connect(listen);
    let _ = client.write_all(bytes);
    let _ = client.shutdown(Shutdown::Write);
    let name = line(&mut client).split(' ').next().unwrap().to_owned();
    let mut back = Vec::new();
    let _ = client.read_to_end(&mut back);
    (name, back)
}

#[test]
fn the_server_name_selects_the_pool_and_every_byte_is_forwarded() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    let cases = [
        ("a.example", "a"),
        ("A.EXAMPLE", "a"),
        ("a.example.", "a"),
        ("b.example", "b"),
        ("exact.wild.example", "b"),
        ("x.wild.example", "c"),
    ];
    for (name, expected) in cases {
        for record in [16_000, 50, 1] {
            // Bytes that directly follow the ClientHello are forwarded, too.
            let bytes = [&hello(Some(name), 300, record)[..], b"and more"].concat();
            let (server, back) = send(listen, &bytes);
            assert_eq!(server, expected, "{name} in records of {record}");
            assert!(back == bytes, "{name} in records of {record}: not the same bytes");
        }
    }
    assert_eq!(evener.service_counter("s", "preamble_refused"), 0);
}

#[test]
fn a_client_with_an_unknown_name_is_closed_or_gets_the_default_pool() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    let unknown = [Some("unknown.example"), Some("wild.example"), Some("xa.example"), None];
    for name in unknown {
        assert_eq!(send(listen, &hello(name, 10, 16_000)), (String::new(), Vec::new()), "{name:?}");
    }
    wait_until("the refused clients to be counted", || {
        (evener.service_counter("s", "preamble_refused") == unknown.len() as u64).then_some(())
    });
    let d = Server::named("d");
    evener.reload(&config(0, [&a, &b, &c], &format!("\"127.0.0.1:{}\",", d.port)));
    for name in unknown {
        assert_eq!(send(listen, &hello(name, 10, 16_000)).0, "d", "{name:?}");
    }
    assert_eq!(send(listen, &hello(Some("a.example"), 10, 16_000)).0, "a");
}

#[test]
fn bytes_that_are_not_a_client_hello_are_refused_and_reach_no_server() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let d = Server::named("d");
    let evener = Evener::run(&config(0, [&a, &b, &c], &format!("\"127.0.0.1:{}\",", d.port)));
    let listen = evener.port("s");
    let two_names = {
        let one = |name: &str| extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat()));
        let extensions = [one("a.example"), one("b.example")].concat();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0], &vector16(&extensions)].concat();
        let message = [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat();
        [&[22, 3, 1][..], &vector16(&message)].concat()
    };
    let bad: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"\0",
        &[22, 2, 0, 0, 5, 1],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0xff, 0xff],
        &[22, 3, 1, 0, 4, 2, 0, 0, 0],
        &[22, 3, 1, 0, 4, 1, 1, 0, 0],
        &two_names,
    ];
    for (number, bytes) in bad.into_iter().enumerate() {
        let mut client = connect(listen);
        client.write_all(bytes).unwrap();
        // Evener closes the connection immediately, although the client keeps its side open.
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0, "{number}");
    }
    wait_until("the refused clients to be counted", || {
        (evener.service_counter("s", "preamble_refused") == bad.len() as u64).then_some(())
    });
    // A truncated ClientHello, followed by the end of the client's stream.
    let half = hello(Some("a.example"), 300, 16_000);
    assert_eq!(send(listen, &half[..half.len() - 1]).0, "");
    for server in [&a, &b, &c, &d] {
        let name = format!("127.0.0.1:{}", server.port);
        assert_eq!(evener.server(&name)["counters"]["connections"], 0);
    }
}

#[test]
fn a_client_without_a_complete_client_hello_is_closed_after_the_timeout() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    let (mut silent, mut half) = (connect(listen), connect(listen));
    half.write_all(&hello(Some("a.example"), 300, 16_000)[..50]).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(half.read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(evener.service_counter("s", "preamble_timeouts"), 2);
}

#[test]
fn a_client_hello_in_pieces_is_accepted() {
    let authority = Authority::new("test ca");
    let a = tls_echo("a", &authority.issue(&["a.example"]));
    let (b, c) = (Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    for version in ANY {
        for size in [1, 2, 5, 6, 150] {
            let config = Arc::new(authority.client(&[version]));
            let stream = Pieces::new(connect(listen), size);
            let mut client = shake_over(stream, "a.example", &config).unwrap();
            assert_eq!(line_of(&mut client), "a a.example", "{version:?} in pieces of {size}");
            client.write_all(b"there and back\n").unwrap();
            assert_eq!(line_of(&mut client), "there and back");
        }
    }
}

#[test]
fn a_client_hello_of_many_kilobytes_is_accepted_up_to_the_limit() {
    let authority = Authority::new("test ca");
    let a = tls_echo("a", &authority.issue(&["a.example"]));
    let (b, c) = (Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    let mut config = authority.client(ANY);
    config.alpn_protocols = (0..60).map(|number| format!("{number:0>200}").into_bytes()).collect();
    assert_eq!(line_of(&mut shake(listen, "a.example", &Arc::new(config)).unwrap()), "a a.example");
    // A ClientHello of nearly the largest size, in records of two sizes.
    for record in [16_000, 1000] {
        let bytes = hello(Some("b.example"), 14_000, record);
        let (server, back) = send(listen, &bytes);
        assert_eq!((server.as_str(), back == bytes), ("b", true), "records of {record}");
    }
    // A ClientHello above the limit is refused.
    assert_eq!(send(listen, &hello(Some("b.example"), 17_000, 16_000)).0, "");
}

#[test]
fn curl_and_openssl_reach_nginx_by_server_name() {
    if !have("curl") || !have("nginx") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let names = ["a.example", "b.example", "*.wild.example"];
    let server = |(port, name): (u16, &str)| {
        let (chain, key) = authority.issue(&[name]).write(&directory, &port.to_string());
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ return 200 \"$ssl_server_name by {name}\"; }} }}\n",
            chain.display(),
            key.display()
        )
    };
    let servers: String = ports.into_iter().zip(names).map(server).collect();
    let _nginx = Peer::nginx(ports[2], &format!("http {{ access_log off;\n{servers} }}"));
    let (ca, _) = authority.write(&directory, "ca");
    let ca = ca.display().to_string();
    let evener = Evener::run(&with_ports(0, ports, ""));
    let listen = evener.port("s");
    // With many groups, the ClientHello has a key share and a long list of groups.
    let groups = "X25519:P-256:P-384:P-521:X448:ffdhe2048:ffdhe3072:ffdhe4096:ffdhe6144:ffdhe8192";
    for (name, certificate) in
        [("a.example", names[0]), ("b.example", names[1]), ("y.wild.example", names[2])]
    {
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments =
                ["-servername", name, "-CAfile", &ca, "-groups", groups, "-alpn", "h2,http/1.1", version];
            let printed = s_client(listen, &arguments, "");
            assert!(printed.contains("Verify return code: 0 (ok)"), "{name}: {printed}");
        }
        let (status, body) = curl(listen, name, "https", &["--cacert", &ca]);
        assert_eq!((status, body), (200, format!("{name} by {certificate}")));
    }
    assert_eq!(curl(listen, "unknown.example", "https", &["--cacert", &ca]).0, 0);
}

#[test]
fn a_large_transfer_is_passed_through_unchanged() {
    let authority = Authority::new("test ca");
    let a = tls_echo("a", &authority.issue(&["a.example"]));
    let (b, c) = (Server::named("b"), Server::named("c"));
    let evener = Evener::run(&config(0, [&a, &b, &c], ""));
    let listen = evener.port("s");
    crate::tls::clients::check_echo(listen, authority.client(ANY), 32 << 20);
}
