//! Loops: a service that is its own server is refused, and two instances that are each other's server detect and end the
//! loop.

use crate::harness::dns::{SERVFAIL, query, rcode, with_edns};
use crate::harness::origin::{Wire, get};
use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, connect, reserved_port, wait_until, who};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// Two instances that are each other's server.
struct Loop {
    port: u16,
    host: &'static str,
    instances: [Evener; 2],
}

/// A PROXY header with the command LOCAL: the sender connects for itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

impl Loop {
    fn new(protocol: &str, host: &'static str, more: &str) -> Self {
        let ports = [reserved_port(), reserved_port()];
        let run = |listen: u16, server: u16| {
            let text = format!(
                "service 's' {{ listen = '{host}:{listen}', '{host}:{server}', protocol = '{protocol}', {more} }}"
            );
            Evener::run_with(&text, &["--workers", "2"])
        };
        Self { port: ports[0], host, instances: [run(ports[0], ports[1]), run(ports[1], ports[0])] }
    }

    /// The sum of a counter over both instances.
    fn counter_sum(&self, name: &str) -> u64 {
        self.instances.iter().map(|instance| instance.service_counter("s", name)).sum()
    }

    fn address(&self) -> SocketAddr {
        format!("{}:{}", self.host, self.port).parse().unwrap()
    }

    /// A UDP client of the first instance.
    fn udp_client(&self) -> UdpSocket {
        let any = if self.host.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(self.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Waits until the loop was detected, and this counter does not change any more.
    fn expect_end(&self, counter: &str) {
        wait_until("the loop to be detected", || (self.counter_sum("loops") > 0).then_some(()));
        let mut before = u64::MAX;
        wait_until("the loop to end", || {
            let now = self.counter_sum(counter);
            std::thread::sleep(Duration::from_millis(200));
            (std::mem::replace(&mut before, now) == now).then_some(())
        });
        wait_until("the loop to be logged", || {
            let mut instances = self.instances.iter();
            instances.any(|instance| instance.log_count("loop_found service=s") > 0).then_some(())
        });
    }
}

#[test]
fn a_request_in_a_loop_gets_508() {
    for more in [
        "",
        "forwarded = { mode = 'off' }, connections_max = 100",
        "forwarded = { mode = 'append' }",
        "forwarded = { headers = 'forwarded' }",
    ] {
        let both = Loop::new("http", "127.0.0.1", more);
        let response = get(both.port, "/");
        assert_eq!(response.status(), 508, "{more}");
        assert_eq!(both.counter_sum("loops"), 1, "{more}");
        // Without forwarded fields a loop is detected only after many requests.
        let most = if more.contains("off") { 150 } else { 12 };
        assert!(both.counter_sum("requests") <= most, "{more}");
    }
}

#[test]
fn a_chain_of_services_is_not_a_loop_and_large_hop_counts_get_508() {
    let server = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(header)) = wire.header() {
            if wire.reply("200 OK", "", header.as_bytes()).is_err() {
                return;
            }
        }
    });
    let chain: Vec<u16> = (0..4).map(|_| reserved_port()).chain([server.port]).collect();
    let text: String = chain
        .windows(2)
        .map(|two| {
            format!(
                "service 's{}' {{ listen = '127.0.0.1:{0}', '127.0.0.1:{}', protocol = 'http' }}\n",
                two[0], two[1]
            )
        })
        .collect();
    let _evener = Evener::run(&text);
    let first = get(chain[3], "/").text();
    assert!(!first.contains("X-Evener-Hops"), "{first}");
    let last = get(chain[0], "/").text();
    assert!(last.contains("\r\nX-Evener-Hops: 3\r\n"), "{last}");
    let mut wire = Wire::to(chain[3]);
    for (hops, status) in [("9", 200), ("10", 508), ("255", 508), ("1000", 508), ("-1", 508)] {
        let response = wire.ask("GET", "/", &format!("X-Evener-Hops: {hops}\r\n"));
        assert_eq!(response.unwrap().status(), status, "{hops}");
        if status == 508 {
            wire = Wire::to(chain[3]);
        }
    }
}

#[test]
fn connections_in_a_loop_are_closed() {
    for (host, more) in
        [("127.0.0.1", ""), ("127.0.0.1", "connections_max = 200"), ("[::1]", "connections_max = 200")]
    {
        let both = Loop::new("tcp", host, more);
        let mut client = std::net::TcpStream::connect(both.address()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = client.write_all(b"x");
        assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0, "{host} {more}");
        both.expect_end("connections");
        // Until the client closes, its direction of the connection stays open.
        drop(client);
        wait_until("all connections to end", || {
            let active = |instance: &Evener| instance.status()["services"][0]["connections_active"].as_u64();
            both.instances.iter().all(|instance| active(instance) == Some(0)).then_some(())
        });
        // The instances do not mark each other down.
        assert_eq!(both.instances[0].log_count("server_down"), 0, "{host} {more}");
    }
}

#[test]
fn datagrams_in_a_loop_are_dropped() {
    for host in ["127.0.0.1", "[::1]"] {
        let both = Loop::new("udp", host, "");
        both.udp_client().send(b"x").unwrap();
        both.expect_end("datagrams_in");
    }
}

#[test]
fn queries_in_a_loop_get_servfail() {
    let plain = query(7, "loop.test", 1);
    let edns = with_edns(plain.clone(), 1232, true, &[]);
    for host in ["127.0.0.1", "[::1]"] {
        let both = Loop::new("dns", host, "");
        for query in [&plain, &edns] {
            let client = both.udp_client();
            client.send(query).unwrap();
            let mut buffer = [0; 2048];
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(rcode(&buffer[..length]), SERVFAIL, "{host}");
            assert_eq!(buffer[..2], query[..2]);
        }
        both.expect_end("datagrams_in");
        let detected = both.counter_sum("loops");
        let mut stream = std::net::TcpStream::connect(both.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&[&(edns.len() as u16).to_be_bytes(), &edns[..]].concat()).unwrap();
        let mut header = [0; 14];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(rcode(&header[2..]), SERVFAIL, "{host} tcp");
        assert!(both.counter_sum("loops") > detected);
    }
}

#[test]
fn loops_are_detected_with_the_proxy_protocol() {
    let more = "proxy_from = '127.0.0.1', send_proxy = 'v2'";
    let both = Loop::new("tcp", "127.0.0.1", more);
    let mut client = connect(both.port);
    client.write_all(LOCAL).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0);
    both.expect_end("connections");
    assert!(both.counter_sum("connections") <= 12);
    for (protocol, payload) in [("udp", b"x".to_vec()), ("dns", query(7, "loop.test", 1))] {
        let both = Loop::new(protocol, "127.0.0.1", more);
        both.udp_client().send(&[LOCAL, &payload[..]].concat()).unwrap();
        both.expect_end("datagrams_in");
        if protocol == "udp" {
            assert!(both.counter_sum("datagrams_in") <= 12);
        }
    }
}

#[test]
fn a_service_whose_server_is_itself_is_refused() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let good = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let bad = format!(
        "service 's' {{ listen = '127.0.0.1:{listen}',\n 'localhost:{listen}', '127.0.0.1:{listen}' }}"
    );
    let file = directory.write("loop.lua", &bad);
    let admin = directory.file("admin.sock").display().to_string();
    for (command, options) in [("check", vec![]), ("run", vec!["--admin", &admin])] {
        let output = Command::new(BINARY).arg(command).arg(&file).args(options).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("loop.lua:2: service `s`: its server `"), "{command}: {text}");
        assert!(!output.status.success());
    }
    let evener = Evener::run(&good);
    evener.write_config(&bad);
    let output = evener.run_command(&["reload"]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(who(listen), "a");
}
