//! UDP flows: sizes, batches, limits, and servers that stop or are removed.

use crate::harness::{Directory, Evener, Reservation, have, have_root, local, reserved_port, wait_until};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A UDP server that responds with its name and the received bytes.
pub(crate) struct Echo {
    pub(crate) port: u16,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    reserved: Option<Reservation>,
}

impl Echo {
    pub(crate) fn start(name: &'static str) -> Self {
        let reserved = Reservation::new();
        let mut echo = Self::start_at(name, reserved.port());
        echo.reserved = Some(reserved);
        echo
    }

    pub(crate) fn start_at(name: &'static str, port: u16) -> Self {
        Self::start_on(name, local(port))
    }

    /// Starts a server on an address of loopback with a reserved port.
    pub(crate) fn start_on(name: &'static str, address: SocketAddr) -> Self {
        let (socket, port) = (UdpSocket::bind(address).unwrap(), address.port());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // A burst of datagrams has room, if the system permits.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20);
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let response = [name.as_bytes(), b" ", &buffer[..length]].concat();
                let _ = socket.send_to(&response[..response.len().min(65_507)], client);
            }
        });
        Self { port, stopped, thread: Some(thread), reserved: None }
    }

    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn client(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

pub(crate) fn ask(socket: &UdpSocket, text: &str) -> String {
    socket.send(text.as_bytes()).unwrap();
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

pub(crate) fn service(listen: u16, servers: &[&Echo], more: &str) -> String {
    let servers: String = servers.iter().map(|server| format!("\"127.0.0.1:{}\", ", server.port)).collect();
    format!("service \"u\" {{ protocol = \"udp\", listen = \"127.0.0.1:{listen}\", {servers} {more} }}")
}

#[test]
fn the_one_liner_gives_each_client_a_flow() {
    let (a, b) = (Echo::start("a"), Echo::start("b"));
    let [a_at, b_at] = [a.port, b.port].map(|port| format!("127.0.0.1:{port}"));
    let evener = Evener::one_liner(&["udp", "127.0.0.1:0", &a_at, &b_at]);
    let listen = evener.port("udp");
    let clients: Vec<UdpSocket> = (0..6).map(|_| client(listen)).collect();
    let first: Vec<String> = clients.iter().map(|client| ask(client, "1")).collect();
    assert_eq!(first.iter().filter(|response| *response == "a 1").count(), 3, "{first:?}");
    for (client, first) in clients.iter().zip(&first) {
        assert_eq!(ask(client, "2"), first.replace('1', "2"), "expected the flow to stay with its server");
    }
    let status = evener.status();
    assert_eq!(status["services"][0]["flows_active"], 6);
    assert_eq!(evener.service_counter("udp", "datagrams_in"), 12);
    assert_eq!(evener.service_counter("udp", "datagrams_out"), 12);
}

#[test]
fn datagrams_pass_unchanged_at_every_size_and_in_bursts() {
    let a = Echo::start("a");
    let evener = Evener::run(&service(0, &[&a], ""));
    let listen = evener.port("u");
    let socket = client(listen);
    for size in [0, 1, 511, 1472, 1473, 9000, 65_000] {
        let text: String = "xyz".chars().cycle().take(size).collect();
        assert!(ask(&socket, &text) == format!("a {text}"), "{size} bytes");
    }
    // Datagrams of equal size are sent as one GSO batch, datagrams of mixed sizes are not. All datagrams must
    // arrive.
    for burst in [vec![100; 50], (0..50).map(|at| 50 + at * 7 % 90).collect::<Vec<usize>>()] {
        for (number, size) in burst.iter().enumerate() {
            socket.send(format!("{number:03}{}", "-".repeat(*size)).as_bytes()).unwrap();
        }
        let mut seen: Vec<String> = burst
            .iter()
            .map(|_| {
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[2..length]).into_owned()
            })
            .collect();
        seen.sort();
        let expected: Vec<String> =
            burst.iter().enumerate().map(|(n, size)| format!("{n:03}{}", "-".repeat(*size))).collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn flows_of_a_stopped_server_move_to_the_next_server() {
    let (mut a, b) = (Echo::start("a"), Echo::start("b"));
    let evener =
        Evener::run_with(&service(0, &[&a, &b], "passive = { down_for = \"1s\" }"), &["--workers", "2"]);
    let listen = evener.port("u");
    let clients: Vec<UdpSocket> = (0..8).map(|_| client(listen)).collect();
    let first: Vec<String> = clients.iter().map(|client| ask(client, "1")).collect();
    assert_eq!(first.iter().filter(|response| *response == "a 1").count(), 4, "{first:?}");
    a.stop();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // The datagram that was sent to the stopped server may be lost. The next datagram must not be lost.
        if ask(client, "2") != "b 2" {
            assert_eq!(ask(client, "3"), "b 3");
        }
    }
    let name = format!("127.0.0.1:{}", a.port);
    assert_eq!(evener.server(&name)["verdict"], "down");
    assert!(evener.service_counter("u", "flows_moved") >= 4);
    let _a = Echo::start_at("a", a.port);
    wait_until("a to be up again", || (evener.server(&name)["verdict"] == "up").then_some(()));
    wait_until("new clients at a", || (ask(&client(listen), "4") == "a 4").then_some(()));
}

#[test]
fn idle_flows_expire_and_the_least_recently_used_flow_is_evicted_at_the_limit() {
    let a = Echo::start("a");
    let config = service(0, &[&a], "idle_timeout = \"600ms\", flows_max = 4");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("u");
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| assert_eq!(ask(client, "x"), "a x"));
    assert_eq!(evener.status()["services"][0]["flows_active"], 4);
    assert_eq!(evener.service_counter("u", "flows_ended.evicted"), 6);
    assert_eq!(ask(&clients[0], "again"), "a again", "expected a new flow for the evicted client");
    wait_until("the flows to expire", || (evener.status()["services"][0]["flows_active"] == 0).then_some(()));
    assert_eq!(evener.service_counter("u", "flows_ended.expired"), 4);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count();
    assert!(descriptors < 40, "{descriptors} descriptors are open");
}

#[test]
fn responses_come_from_the_address_that_the_client_sent_to() {
    let (a, listen) = (Echo::start("a"), reserved_port());
    let _evener = Evener::run(&format!(
        "service \"u\" {{ protocol = \"udp\", listen = {{ \"0.0.0.0:{listen}\", \"[::]:{listen}\" }}, \"127.0.0.1:{}\" }}",
        a.port
    ));
    for address in ["127.0.0.1", "127.0.0.7", "[::1]"] {
        let target: SocketAddr = format!("{address}:{listen}").parse().unwrap();
        let source = if target.is_ipv4() { "127.0.0.3:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(source).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"hello", target).unwrap();
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"a hello"[..], target));
    }
}

#[test]
fn a_denied_client_gets_no_response_and_a_server_that_refuses_is_marked_down() {
    let mut a = Echo::start("a");
    let evener = Evener::run(&service(0, &[&a], "deny = \"127.0.0.5\""));
    let listen = evener.port("u");
    let denied = UdpSocket::bind("127.0.0.5:0").unwrap();
    denied.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    denied.send_to(b"x", local(listen)).unwrap();
    assert!(denied.recv(&mut [0; 8]).is_err());
    assert_eq!(evener.service_counter("u", "drops.denied"), 1);
    a.stop();
    let socket = client(listen);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!([ask(&socket, "1"), ask(&socket, "2"), ask(&socket, "3")], ["", "", ""]);
    let name = format!("127.0.0.1:{}", a.port);
    assert_eq!(evener.server(&name)["verdict"], "down");
}

#[test]
fn a_reload_keeps_flows_and_a_drain_ends_them() {
    let (a, b) = (Echo::start("a"), Echo::start("b"));
    let mut evener = Evener::run(&service(0, &[&a], ""));
    let listen = evener.port("u");
    let socket = client(listen);
    assert_eq!(ask(&socket, "1"), "a 1");
    evener.reload(&service(0, &[&b, &a], "policy = \"hash\""));
    assert_eq!(ask(&socket, "2"), "a 2", "expected the flow to stay with its server");
    evener.reload(&service(0, &[&b], ""));
    assert_eq!(ask(&socket, "3"), "b 3", "expected the flow to move when its server is removed");
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    evener.expect_log("drained");
}

#[test]
fn a_datagram_that_is_too_large_to_send_marks_no_server_down() {
    let a = Echo::start("a");
    let evener = Evener::run(&format!(
        "service \"u\" {{ protocol = \"udp\", listen = \"[::1]:0\", {{ \"127.0.0.1:{}\", name = \"a\" }} }}",
        a.port
    ));
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(("::1", evener.port("u"))).unwrap();
    // IPv6 carries 65 527 bytes, IPv4 only 65 507.
    socket.send(&[0; 65_520]).unwrap();
    assert_eq!(ask(&socket, "still"), "a still");
    assert_eq!(
        (evener.server("a")["verdict"].as_str(), evener.service_counter("u", "drops.unsendable")),
        (Some("up"), 1)
    );
}

#[test]
fn without_free_local_ports_datagrams_are_dropped_and_servers_stay_up() {
    if !have("ip") || !have_root() {
        return;
    }
    // A separate namespace with ten ports for flows, and a client with twenty addresses.
    let directory = Directory::new();
    let script = directory.write(
        "many.py",
        "import socket\ns=[socket.socket(socket.AF_INET,socket.SOCK_DGRAM) for _ in range(20)]\n\
         for n,x in enumerate(s):\n  x.bind((f'127.0.1.{n+1}',5000))\n  x.sendto(b'x',('127.0.0.1',7001))\n",
    );
    let mut inside = std::process::Command::new("unshare");
    inside.args(["--net", "--", "sh", "-c"]).arg(format!(
        "ip link set lo up; echo '40000 40009' > /proc/sys/net/ipv4/ip_local_port_range; \
         (for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; python3 {}; done) & exec {} \"$@\"",
        script.display(),
        crate::harness::BINARY
    ));
    inside.arg("sh");
    let evener =
        Evener::start(inside, directory, &["udp", "127.0.0.1:7001", "127.0.0.1:7002", "--workers", "1"]);
    // A lack of local ports must not count as an unreachable server.
    wait_until("datagrams to be dropped without free ports", || {
        (evener.service_counter("udp", "drops.no_socket") > 0).then_some(())
    });
    assert!(!evener.log().contains("reason=unreachable"), "{}", evener.log());
}

#[test]
fn a_reload_moves_flows_to_a_new_address_and_applies_a_new_access_list() {
    let (a, b) = (Echo::start("a"), Echo::start("b"));
    let config = |port: u16, more: &str| {
        format!(
            "service \"u\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{port}\", name = \"one\" }}, {more} }}"
        )
    };
    let evener = Evener::run(&config(a.port, ""));
    let listen = evener.port("u");
    let socket = client(listen);
    assert_eq!(ask(&socket, "1"), "a 1");
    evener.reload(&config(b.port, ""));
    assert_eq!(ask(&socket, "2"), "b 2", "expected the flow to follow the server");
    evener.reload(&config(b.port, "deny = \"127.0.0.0/8\""));
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(ask(&socket, "3"), "", "expected no flow for a denied client");
}

#[test]
fn isolated_refusals_are_not_consecutive_failures() {
    let mut a = Echo::start("a");
    let evener = Evener::run(&service(0, &[&a], "passive = { failures = 3, down_for = \"1h\" }"));
    let listen = evener.port("u");
    let name = format!("127.0.0.1:{}", a.port);
    for turn in 0..5 {
        a.stop();
        let socket = client(listen);
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        ask(&socket, "lost");
        wait_until("a refusal", || (evener.log_count("connect_failed") > turn).then_some(()));
        a = Echo::start_at("a", a.port);
        wait_until("a response", || (ask(&client(listen), "x") == "a x").then_some(()));
    }
    assert_eq!(evener.server(&name)["verdict"], "up");
}

#[test]
fn dnsperf_gets_all_responses_of_nsd() {
    if !have("nsd") || !have("dnsperf") {
        return;
    }
    let port = reserved_port();
    let evener = Evener::run(&format!(
        "service \"dns\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", \"127.0.0.1:{port}\", \
         check = check.udp {{ send = \"\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2n0\\7example\\0\\0\\1\\0\\1\", expect = \"\\1\\2\" }} }}"
    ));
    let listen = evener.port("dns");
    let _nsd = Nsd::start(&evener, port);
    wait_until("nsd to be up", || evener.log().contains("server_up").then_some(()));
    let queries: String = (0..1000).map(|n| format!("n{n}.example A\n")).collect();
    let file = evener.write("queries", &queries);
    let output = std::process::Command::new("dnsperf")
        .args(["-T1", "-c16", "-q50", "-t2", "-n5", "-s", "127.0.0.1", "-p", &listen.to_string(), "-d"])
        .arg(file)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("Queries completed:    5000 (100.00%)"), "{printed}");
    assert!(printed.contains("NOERROR 5000 (100.00%)"), "{printed}");
}

/// A name server with a thousand names.
pub(crate) struct Nsd {
    child: std::process::Child,
    /// The directory of the server's files, unless the caller of `start_in` owns it
    _directory: Option<Directory>,
}

impl Nsd {
    pub(crate) fn start(evener: &Evener, port: u16) -> Self {
        // The check has failed before nsd starts, so a `server_up` event means that this nsd runs.
        wait_until("the check to fail", || evener.log().contains("server_down").then_some(()));
        let directory = Directory::new();
        let mut server = Self::start_in(&directory, port);
        server._directory = Some(directory);
        server
    }

    /// Starts a server with its files in the given directory.
    pub(crate) fn start_in(directory: &Directory, port: u16) -> Self {
        let records: String = (0..1000).map(|n| format!("n{n} A 192.0.2.{}\n", n % 250)).collect();
        let zone = format!(
            "$ORIGIN example.\n$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n{records}big TXT {}\n",
            Self::big()
        );
        directory.write("zone", &zone);
        let at = directory.file("").display().to_string();
        let config = directory.write(
            &format!("nsd-{port}.conf"),
            &format!(
                "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{at}\"\n \
                 database: \"\"\n pidfile: \"{at}nsd-{port}.pid\"\n xfrdfile: \"{at}xfrd-{port}\"\n zonelistfile: \"{at}zl-{port}\"\n \
                 rrl-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: example\n zonefile: zone\n \
                 provide-xfr: 127.0.0.1 NOKEY\n"
            ),
        );
        let quiet = std::process::Stdio::null;
        let mut command = std::process::Command::new("nsd");
        let child = command.args(["-d", "-c"]).arg(config).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        Self { child, _directory: None }
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        self.end();
    }
}

impl Nsd {
    /// The text of `big.example`, larger than a datagram.
    pub(crate) fn big() -> String {
        vec![format!("\"{}\"", "x".repeat(200)); 20].join(" ")
    }

    /// Sends a signal to all processes of the server.
    pub(crate) fn signal(&self, name: &str) {
        let mut pids = vec![self.child.id().to_string()];
        let mut at = 0;
        while at < pids.len() {
            let children = format!("/proc/{0}/task/{0}/children", pids[at]);
            let children = std::fs::read_to_string(children).unwrap_or_default();
            pids.extend(children.split_whitespace().map(str::to_owned));
            at += 1;
        }
        let sent = std::process::Command::new("kill").arg(format!("-{name}")).args(&pids).status();
        assert!(sent.unwrap().success(), "{pids:?}");
    }

    pub(crate) fn end(&mut self) {
        // The main process stops the other processes on SIGTERM, but cannot on SIGKILL.
        let _ = std::process::Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// A socket that sends from the given address.
fn client_from(from: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[test]
fn denied_clients_are_routed_to_the_denied_pool() {
    let [a, b, c] = ["a", "b", "c"].map(Echo::start);
    let config = |more: &str| {
        format!(
            "pool \"bad\" {{ \"127.0.0.1:{}\" }}\npool \"worse\" {{ \"127.0.0.1:{}\" }}\n{}",
            b.port,
            c.port,
            service(0, &[&a], more)
        )
    };
    let evener = Evener::run(&config("deny = \"127.0.0.2\", denied = \"bad\""));
    let listen = evener.port("u");
    let (good, bad) = (client_from("127.0.0.1", listen), client_from("127.0.0.2", listen));
    assert_eq!([ask(&good, "1"), ask(&bad, "1"), ask(&bad, "2")], ["a 1", "b 1", "b 2"]);
    assert_eq!(evener.status()["services"][0]["flows_active"], 2);
    let counters = ["denied", "drops.denied"].map(|name| evener.service_counter("u", name));
    assert_eq!(counters, [1, 0], "expected one denied client and no drop");
    assert_eq!(evener.server(&format!("127.0.0.1:{}", b.port))["counters"]["datagrams_in"], 2);
    // Changes at run time and reloads apply to existing flows.
    let command =
        |action: &str, prefix: &str| assert!(evener.run_command(&[action, "u", prefix]).status.success());
    command("deny", "127.0.0.1");
    assert_eq!([ask(&good, "3"), ask(&bad, "3")], ["b 3", "b 3"]);
    command("forget", "127.0.0.1");
    command("permit", "127.0.0.2");
    assert_eq!([ask(&good, "4"), ask(&bad, "4")], ["a 4", "a 4"]);
    command("forget", "127.0.0.2");
    evener.reload(&config("deny = \"127.0.0.2\", denied = \"worse\""));
    assert_eq!([ask(&good, "5"), ask(&bad, "5")], ["a 5", "c 5"]);
    let listed = evener.run_command(&["connections", "u"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&format!("worse/127.0.0.1:{}", c.port)));
    evener.reload(&config("deny = \"127.0.0.2\""));
    bad.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!([ask(&good, "6"), ask(&bad, "6")], ["a 6", ""]);
    assert!(evener.service_counter("u", "drops.denied") >= 1);
}

#[test]
fn the_flow_of_a_denied_client_moves_when_its_server_stops_or_is_removed() {
    let (a, mut b, c) = (Echo::start("a"), Echo::start("b"), Echo::start("c"));
    let config = |servers: &[&Echo]| {
        let servers: String = servers.iter().map(|one| format!("\"127.0.0.1:{}\", ", one.port)).collect();
        let bad = format!("pool \"bad\" {{ {servers} passive = {{ down_for = \"1s\" }} }}\n");
        bad + &service(0, &[&a], "deny = \"127.0.0.2\", denied = \"bad\"")
    };
    let evener = Evener::run_with(&config(&[&b, &c]), &["--workers", "1"]);
    let listen = evener.port("u");
    let (good, bad) = (client_from("127.0.0.1", listen), client_from("127.0.0.2", listen));
    assert_eq!([ask(&good, "1"), ask(&bad, "1")], ["a 1", "b 1"]);
    b.stop();
    bad.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    wait_until("the flow to move", || (ask(&bad, "2") == "c 2").then_some(()));
    let name = |echo: &Echo| format!("127.0.0.1:{}", echo.port);
    assert!(evener.server(&name(&b))["counters"]["connect_failures"]["refused"].as_u64() > Some(0));
    assert_eq!(evener.server(&name(&a))["verdict"], "up");
    let b = Echo::start_at("b", b.port);
    evener.reload(&config(&[&b]));
    wait_until("the flow to leave the removed server", || (ask(&bad, "3") == "b 3").then_some(()));
    assert_eq!(ask(&good, "3"), "a 3");
    assert_eq!(evener.service_counter("u", "drops.denied"), 0);
}
