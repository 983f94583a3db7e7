//! The PROXY protocol over UDP: a header in each datagram, to servers and from other balancers.

use crate::harness::{DEADLINE, Evener, local, reserved_port, wait_until};
use crate::tcp::proxy_from::{FOUR, bad, six, v2};
use crate::tcp::proxy_protocol::Report;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The family byte of a header: UDP over IPv4 and UDP over IPv6.
const DATAGRAM_4: u8 = 0x12;
const DATAGRAM_6: u8 = 0x22;
/// Size of a header with addresses and a checksum.
const HEADER_4: usize = 16 + 12 + 7;
const HEADER_6: usize = 16 + 36 + 7;
/// Largest payload of an IPv4 datagram.
const LARGEST: usize = 65_507;

/// A server that passes each datagram to the test, and responds with its name and the payload after the header.
struct Listener {
    port: u16,
    received: Receiver<Vec<u8>>,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    fn start(name: &'static str) -> Self {
        let socket = UdpSocket::bind(local(0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, (sender, received)) = (Arc::clone(&stopped), channel());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, flow)) = socket.recv_from(&mut buffer) else { continue };
                let bytes = &buffer[..length];
                let payload = after_header(bytes);
                let response = [name.as_bytes(), b" ", &payload[..payload.len().min(1000)]].concat();
                let _ = socket.send_to(&response, flow);
                let _ = sender.send(bytes.to_vec());
            }
        });
        Self { port, received, stopped, thread: Some(thread) }
    }

    /// Waits for the next datagram.
    fn next(&self) -> Vec<u8> {
        self.received.recv_timeout(DEADLINE).unwrap()
    }

    fn expect_no_datagram(&self) {
        assert!(self.received.try_recv().is_err(), "expected no datagram");
    }

    fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the bytes after the header, or all bytes without a header.
fn after_header(bytes: &[u8]) -> &[u8] {
    let length = bytes.starts_with(b"\r\n\r\n\0").then(|| bytes.get(14..16)).flatten();
    let length = length.map_or(0, |length| 16 + usize::from(u16::from_be_bytes([length[0], length[1]])));
    bytes.get(length..).unwrap_or(bytes)
}

/// Splits a datagram into the header and the payload.
fn split(mut bytes: &[u8]) -> (Report, &[u8]) {
    let header = Report::read(&mut bytes);
    (header, bytes)
}

/// The addresses of a header in wire form.
fn ends(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    [octets(source.ip()), octets(destination.ip()), ports].concat()
}

fn client_at(from: &str, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(format!("{from}:0")).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn response(socket: &UdpSocket) -> String {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn service(listen: &str, servers: &[&Listener], more: &str) -> String {
    let servers: String = servers.iter().map(|server| format!("\"127.0.0.1:{}\", ", server.port)).collect();
    format!("service \"u\" {{ protocol = \"udp\", listen = {listen}, {servers} {more} }}")
}

fn quoted(port: u16) -> String {
    format!("\"127.0.0.1:{port}\"")
}

#[test]
fn each_datagram_has_a_header_in_both_families_and_at_every_size() {
    let (server, listen) = (Listener::start("a"), reserved_port());
    let evener = Evener::run(&service(
        &format!("{{ \"127.0.0.1:{listen}\", \"[::1]:{listen}\" }}"),
        &[&server],
        "send_proxy = \"v2\"",
    ));
    let six: SocketAddr = format!("[::1]:{listen}").parse().unwrap();
    for (from, to, family, header) in
        [("127.0.0.7", local(listen), DATAGRAM_4, HEADER_4), ("[::1]", six, DATAGRAM_6, HEADER_6)]
    {
        let socket = client_at(from, to);
        let expected = ends(socket.local_addr().unwrap(), to);
        for size in [0, 1, 12, 1400, 9000, LARGEST - header] {
            let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
            socket.send(&payload).unwrap();
            let datagram = server.next();
            let (header, rest) = split(&datagram);
            assert_eq!(
                (header.command, header.family, &header.addresses),
                (0x21, family, &expected),
                "{size}"
            );
            assert!(rest == payload, "{from} {size}: got {} bytes", rest.len());
            let mut back = [0; 2000];
            assert_eq!(socket.recv(&mut back).unwrap(), 2 + size.min(1000));
        }
        let before = evener.service_counter("u", "drops.unsendable");
        socket.send(&vec![0; LARGEST - header + 1]).unwrap();
        wait_until("the datagram that is too large with its header to be counted", || {
            (evener.service_counter("u", "drops.unsendable") == before + 1).then_some(())
        });
        socket.send(b"still").unwrap();
        assert_eq!(split(&server.next()).1, b"still", "expected the next datagram at the server");
    }
    assert_eq!(evener.server(&format!("127.0.0.1:{}", server.port))["verdict"], "up");
}

#[test]
fn a_wildcard_listener_puts_the_destination_address_of_the_client_into_the_header() {
    let (server, listen) = (Listener::start("a"), reserved_port());
    let _evener = Evener::run(&service(
        &format!("{{ \"0.0.0.0:{listen}\", \"[::]:{listen}\" }}"),
        &[&server],
        "send_proxy = \"v2\"",
    ));
    for (from, to) in [("127.0.0.7", "127.0.0.9"), ("127.0.0.7", "127.0.0.1"), ("[::1]", "[::1]")] {
        let to: SocketAddr = format!("{to}:{listen}").parse().unwrap();
        let socket = client_at(from, to);
        socket.send(b"x").unwrap();
        assert_eq!(split(&server.next()).0.addresses, ends(socket.local_addr().unwrap(), to));
        assert_eq!(response(&socket), "a x");
    }
}

#[test]
fn each_datagram_of_a_burst_has_a_header() {
    let server = Listener::start("a");
    let config = service(&quoted(0), &[&server], "send_proxy = \"v2\"");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("u");
    let clients = ["127.0.0.7", "127.0.0.8"].map(|from| client_at(from, local(listen)));
    // Datagrams of equal size, of equal size except for a shorter last datagram, of mixed sizes, of two clients
    // in turn, and so large that few fit into a batch.
    let bursts: [(&str, Vec<usize>, usize); 5] = [
        ("equal", vec![1200; 50], 1),
        ("shorter at the end", [vec![1200; 49], vec![7]].concat(), 1),
        ("mixed", (0..50).map(|at| 50 + at * 7 % 900).collect(), 1),
        ("of two clients", vec![900; 50], 2),
        ("large", vec![20_000; 20], 2),
    ];
    for (what, sizes, count) in bursts {
        for (number, size) in sizes.iter().enumerate() {
            let payload = [format!("{number:03}").as_bytes(), &vec![b'-'; *size]].concat();
            clients[number % count].send(&payload).unwrap();
        }
        let mut seen: Vec<(Vec<u8>, Vec<u8>)> = (0..sizes.len())
            .map(|_| {
                let datagram = server.next();
                let (header, rest) = split(&datagram);
                (rest.to_vec(), header.addresses)
            })
            .collect();
        seen.sort();
        for (number, size) in sizes.iter().enumerate() {
            let (payload, addresses) = &seen[number];
            let expected = ends(clients[number % count].local_addr().unwrap(), local(listen));
            assert_eq!(addresses, &expected, "{what} {number}");
            assert!(payload.starts_with(format!("{number:03}-").as_bytes()), "{what} {number}");
            assert_eq!(payload.len(), size + 3, "{what} {number}");
        }
        server.expect_no_datagram();
    }
    assert_eq!(evener.service_counter("u", "drops.send_full"), 0);
}

#[test]
fn datagrams_that_move_to_another_server_have_one_header() {
    let (mut a, b) = (Listener::start("a"), Listener::start("b"));
    let config = service(&quoted(0), &[&a, &b], "send_proxy = \"v2\", passive = { down_for = \"1h\" }");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("u");
    let clients: Vec<UdpSocket> = (0..8).map(|_| client_at("127.0.0.7", local(listen))).collect();
    let moved: Vec<&UdpSocket> = (clients.iter())
        .filter(|client| {
            client.send(b"first").unwrap();
            response(client) == "a first"
        })
        .collect();
    assert_eq!(moved.len(), 4);
    a.stop();
    while b.received.try_recv().is_ok() {}
    // One batch of datagrams, each larger than the previous, so that each is sent separately. The first
    // datagram of each flow is sent to the stopped server and is lost. The other four already have headers and
    // move to the next server.
    evener.signal("STOP");
    for turn in 0..5 {
        for client in &moved {
            client.send(format!("turn {}", "x".repeat(turn)).as_bytes()).unwrap();
        }
    }
    evener.signal("CONT");
    let mut lengths: Vec<usize> = Vec::new();
    for _ in 0..16 {
        let datagram = b.next();
        let (header, rest) = split(&datagram);
        let known =
            |client: &&&UdpSocket| header.addresses == ends(client.local_addr().unwrap(), local(listen));
        assert!(moved.iter().any(|client| known(&client)), "{header:?}");
        assert!(rest.starts_with(b"turn "), "{}", rest.escape_ascii());
        lengths.push(rest.len());
    }
    lengths.sort_unstable();
    assert_eq!(lengths.chunk_by(|a, b| a == b).map(<[usize]>::len).collect::<Vec<_>>(), [4; 4]);
    // A later datagram of the flow.
    moved[0].send(b"turn later").unwrap();
    assert_eq!(split(&b.next()).1, b"turn later");
    assert!(evener.service_counter("u", "flows_moved") >= 4);
}

#[test]
fn a_reload_of_send_proxy_applies_to_existing_flows() {
    let server = Listener::start("a");
    let config = |more: &str| service(&quoted(0), &[&server], more);
    let evener = Evener::run(&config(""));
    let listen = evener.port("u");
    let socket = client_at("127.0.0.7", local(listen));
    socket.send(b"one").unwrap();
    assert_eq!(server.next(), b"one");
    evener.reload(&config("send_proxy = \"v2\""));
    socket.send(b"two").unwrap();
    let datagram = server.next();
    assert!(datagram.starts_with(b"\r\n\r\n"), "expected a header: {}", datagram.escape_ascii());
    assert_eq!(split(&datagram).1, b"two");
    evener.reload(&config(""));
    socket.send(b"three").unwrap();
    assert_eq!(server.next().escape_ascii().to_string(), "three");
}

#[test]
fn clients_behind_one_proxy_have_separate_flows() {
    let (a, b) = (Listener::start("a"), Listener::start("b"));
    let config = service(&quoted(0), &[&a, &b], "proxy_from = \"127.0.0.1\"");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("u");
    let proxy = client_at("127.0.0.1", local(listen));
    let mut other = FOUR;
    other[3] = 8;
    let headers = [v2(0x21, DATAGRAM_4, &FOUR), v2(0x21, DATAGRAM_4, &other), v2(0x21, DATAGRAM_6, &six())];
    for turn in 0..5 {
        let mut responses = Vec::new();
        for (client, header) in headers.iter().enumerate() {
            proxy.send(&[header, format!("{client}.{turn}").as_bytes()].concat()).unwrap();
            responses.push(response(&proxy));
        }
        // Responses have no header.
        assert_eq!(responses, [format!("a 0.{turn}"), format!("b 1.{turn}"), format!("a 2.{turn}")]);
    }
    assert_eq!(evener.status()["services"][0]["flows_active"], 3);
    // The same client through another proxy, and another port of the same client, are separate flows.
    let second = client_at("127.0.0.1", local(listen));
    second.send(&[&headers[0][..], b"x"].concat()).unwrap();
    assert!(response(&second).ends_with(" x"));
    let mut port = FOUR;
    port[9] ^= 1;
    proxy.send(&[v2(0x21, DATAGRAM_4, &port), b"y".to_vec()].concat()).unwrap();
    assert!(response(&proxy).ends_with(" y"));
    assert_eq!(evener.status()["services"][0]["flows_active"], 5);
    // Only the payload of clients reached the servers.
    let received: Vec<Vec<u8>> = [&a, &b].into_iter().flat_map(|server| server.received.try_iter()).collect();
    assert_eq!(received.len(), 17);
    assert!(received.iter().all(|datagram| datagram.len() <= 3), "{received:?}");
}

#[test]
fn the_access_list_applies_to_the_client_in_the_header() {
    let server = Listener::start("a");
    let config = service(&quoted(0), &[&server], "proxy_from = \"127.0.0.1\", allow = \"192.0.2.0/29\"");
    let evener = Evener::run(&config);
    let listen = evener.port("u");
    let proxy = client_at("127.0.0.1", local(listen));
    proxy.send(&[&v2(0x21, DATAGRAM_4, &FOUR)[..], b"in"].concat()).unwrap();
    assert_eq!(response(&proxy), "a in");
    let mut external = FOUR;
    external[3] = 8;
    proxy.send(&[&v2(0x21, DATAGRAM_4, &external)[..], b"out"].concat()).unwrap();
    // A LOCAL header of the proxy, and a client without a proxy.
    proxy.send(&[&v2(0x20, 0, &[])[..], b"local"].concat()).unwrap();
    client_at("127.0.0.2", local(listen)).send(b"direct").unwrap();
    wait_until("three refusals", || (evener.service_counter("u", "drops.denied") == 3).then_some(()));
    assert_eq!(evener.service_counter("u", "denied"), 3);
    assert_eq!(server.next(), b"in");
    server.expect_no_datagram();
}

#[test]
fn bad_headers_are_dropped_from_a_proxy_and_payload_from_other_clients() {
    let server = Listener::start("a");
    let config = service(&quoted(0), &[&server], "proxy_from = \"127.0.0.1\"");
    let evener = Evener::run(&config);
    let listen = evener.port("u");
    let proxy = client_at("127.0.0.1", local(listen));
    let whole = v2(0x21, DATAGRAM_4, &FOUR);
    let truncated = (0..whole.len()).map(|length| ("truncated", whole[..length].to_vec()));
    let wrong: Vec<_> = bad().into_iter().chain(truncated).collect();
    for (turn, (what, bytes)) in wrong.iter().enumerate() {
        proxy.send(bytes).unwrap();
        wait_until(what, || {
            let counted = evener.service_counter("u", "drops.preamble");
            (counted == turn as u64 + 1).then_some(())
        });
    }
    server.expect_no_datagram();
    assert_eq!(evener.status()["services"][0]["flows_active"], 0);
    // A header without payload is an empty datagram, which is forwarded.
    proxy.send(&whole).unwrap();
    assert_eq!(server.next(), b"");
    assert_eq!(response(&proxy), "a ");
    // From other clients all bytes are payload.
    let direct = client_at("127.0.0.2", local(listen));
    for (what, bytes) in wrong.iter().chain([&("whole", whole.clone())]) {
        direct.send(bytes).unwrap();
        assert!(server.next() == *bytes, "{what}");
    }
    assert_eq!(evener.service_counter("u", "drops.preamble"), wrong.len() as u64);
}

#[test]
fn bad_headers_in_a_burst_do_not_affect_the_other_datagrams() {
    let server = Listener::start("a");
    let config = service(&quoted(0), &[&server], "proxy_from = \"127.0.0.1\", send_proxy = \"v2\"");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("u");
    let proxy = client_at("127.0.0.1", local(listen));
    for number in 0..60_u8 {
        let mut client = FOUR;
        client[3] = number % 3;
        let header = v2(0x21, DATAGRAM_4, &client);
        let header = if number % 4 == 0 { &header[..20] } else { &header[..] };
        proxy.send(&[header, &[number]].concat()).unwrap();
    }
    for _ in 0..45 {
        let datagram = server.next();
        let (header, rest) = split(&datagram);
        assert_eq!((rest.len(), header.addresses[3]), (1, rest[0] % 3));
        assert_ne!(rest[0] % 4, 0);
        assert_eq!(header.addresses[4..], FOUR[4..], "expected the destination in the client's header");
    }
    server.expect_no_datagram();
    assert_eq!(evener.service_counter("u", "drops.preamble"), 15);
}

#[test]
fn with_a_local_header_the_proxy_is_the_client() {
    let (server, plain) = (Listener::start("a"), Listener::start("b"));
    let evener = Evener::run(&format!(
        "{}\n{}",
        service(&quoted(0), &[&server], "proxy_from = \"127.0.0.1\", send_proxy = \"v2\""),
        service(&quoted(0), &[&plain], "proxy_from = \"127.0.0.1\"").replace("\"u\"", "\"p\"")
    ));
    let listen = evener.port("u");
    let other = evener.port("p");
    let proxy = client_at("127.0.0.1", local(listen));
    for header in [v2(0x20, 0, &[]), v2(0x20, DATAGRAM_4, &FOUR), v2(0x21, 0, &[])] {
        proxy.send(&[&header[..], b"check"].concat()).unwrap();
        let datagram = server.next();
        let (header, rest) = split(&datagram);
        assert_eq!((header.command, rest), (0x21, &b"check"[..]));
        assert_eq!(header.addresses, ends(proxy.local_addr().unwrap(), local(listen)));
        assert_eq!(response(&proxy), "a check");
    }
    let proxy = client_at("127.0.0.1", local(other));
    proxy.send(&[&v2(0x20, 0, &[])[..], b"check"].concat()).unwrap();
    assert_eq!((plain.next(), response(&proxy).as_str()), (b"check".to_vec(), "b check"));
}

#[test]
fn a_chain_of_services_forwards_the_client_and_the_destination() {
    let (server, first, second) = (Listener::start("a"), reserved_port(), reserved_port());
    // Two services in a row, and a header from another balancer.
    let _evener = Evener::run(&format!(
        "service \"one\" {{ protocol = \"udp\", listen = \"127.0.0.1:{first}\", \"127.0.0.1:{second}\", proxy_from = \"127.0.0.9\", send_proxy = \"v2\" }}\n{}",
        service(&quoted(second), &[&server], "proxy_from = \"127.0.0.1\", send_proxy = \"v2\"")
    ));
    let proxy = client_at("127.0.0.9", local(first));
    for (family, addresses) in [(DATAGRAM_4, FOUR.to_vec()), (DATAGRAM_6, six())] {
        proxy.send(&[&v2(0x21, family, &addresses)[..], b"through"].concat()).unwrap();
        let datagram = server.next();
        let (header, rest) = split(&datagram);
        assert_eq!((header.command, header.family, header.addresses), (0x21, family, addresses));
        assert_eq!(rest, b"through");
        assert_eq!(response(&proxy), "a through");
    }
    // The first service sends the header for a client without a proxy.
    let direct = client_at("127.0.0.7", local(first));
    direct.send(b"direct").unwrap();
    let datagram = server.next();
    assert_eq!(split(&datagram).0.addresses, ends(direct.local_addr().unwrap(), local(first)));
    assert_eq!(response(&direct), "a direct");
}
