//! Loops: a service that is its own server is refused, and two instances that are each other's server notice it and end the
//! loop.

use crate::harness::dns::{SERVFAIL, query, rcode, with_edns};
use crate::harness::origin::{Wire, get};
use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, connect, reserved_port, wait_until, who};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// Two instances that are each other's server.
struct Round {
    port: u16,
    host: &'static str,
    instances: [Evener; 2],
}

/// A PROXY header that tells nothing: whoever sends it speaks for itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

impl Round {
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

    fn counted(&self, name: &str) -> u64 {
        self.instances.iter().map(|instance| instance.service_counter("s", name)).sum()
    }

    fn address(&self) -> SocketAddr {
        format!("{}:{}", self.host, self.port).parse().unwrap()
    }

    /// A client of datagrams.
    fn datagrams(&self) -> UdpSocket {
        let any = if self.host.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(self.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Waits until the loop was noticed, and nothing moves any more.
    fn expect_end(&self, moves: &str) {
        wait_until("the loop to be noticed", || (self.counted("loops") > 0).then_some(()));
        let mut before = u64::MAX;
        wait_until("the loop to end", || {
            let now = self.counted(moves);
            std::thread::sleep(Duration::from_millis(200));
            (std::mem::replace(&mut before, now) == now).then_some(())
        });
        wait_until("the log to tell of it", || {
            let mut instances = self.instances.iter();
            instances.any(|instance| instance.log_count("loop_found service=s") > 0).then_some(())
        });
    }
}

#[test]
fn a_request_that_goes_round_is_answered_with_508() {
    for more in [
        "",
        "forwarded = { mode = 'off' }, connections_max = 100",
        "forwarded = { mode = 'append' }",
        "forwarded = { headers = 'forwarded' }",
    ] {
        let round = Round::new("http", "127.0.0.1", more);
        let response = get(round.port, "/");
        assert_eq!(response.status(), 508, "{more}");
        assert_eq!(round.counted("loops"), 1, "{more}");
        // Without fields that tell of clients it takes a crowd to be suspicious.
        let most = if more.contains("off") { 150 } else { 12 };
        assert!(round.counted("requests") <= most, "{more}");
    }
}

#[test]
fn a_client_says_nothing_of_instances_and_a_chain_of_some_is_no_loop() {
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
    for (printed, status) in [("9", 200), ("10", 508), ("255", 508), ("1000", 508), ("-1", 508)] {
        let response = wire.ask("GET", "/", &format!("X-Evener-Hops: {printed}\r\n"));
        assert_eq!(response.unwrap().status(), status, "{printed}");
        if status == 508 {
            wire = Wire::to(chain[3]);
        }
    }
}

#[test]
fn connections_that_go_round_are_closed() {
    for (host, more) in
        [("127.0.0.1", ""), ("127.0.0.1", "connections_max = 200"), ("[::1]", "connections_max = 200")]
    {
        let round = Round::new("tcp", host, more);
        let mut client = std::net::TcpStream::connect(round.address()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = client.write_all(b"x");
        assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0, "{host} {more}");
        round.expect_end("connections");
        // Until then the way from the client is open.
        drop(client);
        wait_until("all to be closed", || {
            let active = |instance: &Evener| instance.status()["services"][0]["connections_active"].as_u64();
            round.instances.iter().all(|instance| active(instance) == Some(0)).then_some(())
        });
        // The instances are well.
        assert_eq!(round.instances[0].log_count("server_down"), 0, "{host} {more}");
    }
}

#[test]
fn datagrams_that_go_round_stop() {
    for host in ["127.0.0.1", "[::1]"] {
        let round = Round::new("udp", host, "");
        round.datagrams().send(b"x").unwrap();
        round.expect_end("datagrams_in");
    }
}

#[test]
fn queries_that_go_round_get_servfail() {
    let plain = query(7, "loop.test", 1);
    let edns = with_edns(plain.clone(), 1232, true, &[]);
    for host in ["127.0.0.1", "[::1]"] {
        let round = Round::new("dns", host, "");
        for query in [&plain, &edns] {
            let client = round.datagrams();
            client.send(query).unwrap();
            let mut buffer = [0; 2048];
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(rcode(&buffer[..length]), SERVFAIL, "{host}");
            assert_eq!(buffer[..2], query[..2]);
        }
        round.expect_end("datagrams_in");
        let noticed = round.counted("loops");
        let mut stream = std::net::TcpStream::connect(round.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&[&(edns.len() as u16).to_be_bytes(), &edns[..]].concat()).unwrap();
        let mut header = [0; 14];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(rcode(&header[2..]), SERVFAIL, "{host} tcp");
        assert!(round.counted("loops") > noticed);
    }
}

#[test]
fn what_the_proxy_protocol_tells_of_is_counted_there() {
    let more = "proxy_from = '127.0.0.1', send_proxy = 'v2'";
    let round = Round::new("tcp", "127.0.0.1", more);
    let mut client = connect(round.port);
    client.write_all(LOCAL).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0);
    round.expect_end("connections");
    assert!(round.counted("connections") <= 12);
    for (protocol, payload) in [("udp", b"x".to_vec()), ("dns", query(7, "loop.test", 1))] {
        let round = Round::new(protocol, "127.0.0.1", more);
        round.datagrams().send(&[LOCAL, &payload[..]].concat()).unwrap();
        round.expect_end("datagrams_in");
        if protocol == "udp" {
            assert!(round.counted("datagrams_in") <= 12);
        }
    }
}

#[test]
fn a_service_that_leads_back_to_itself_is_refused() {
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
