//! `evener pen` with direct server return and a tarpit, in the network of its servers:
//!
//! ```text
//! client eth0 ------ router (10.0.1.1, and a bridge with 10.0.5.1)
//! 10.0.1.2             |            |           |
//!                   director     server 11   server 12
//!                   eth0         eth0        eth0
//!                   10.0.5.2     10.0.5.11   10.0.5.12
//!                   all three have the virtual address 10.0.5.100
//! ```

use crate::harness::namespaces::Namespace;
use crate::harness::pen::Pen;
use crate::harness::xdp::{link, pass_all};
use crate::harness::{BINARY, Directory, have, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const VIP: &str = "10.0.5.100:80";
const DARK: &str = "10.0.5.77:80";
const SERVERS: [&str; 2] = ["10.0.5.11", "10.0.5.12"];

struct Lan {
    client: Namespace,
    router: Namespace,
    director: Namespace,
    servers: [Namespace; 2],
}

impl Lan {
    /// Creates the network. Returns `None` if the test does not run as root or a program is missing.
    fn new() -> Option<Self> {
        if !have("ethtool") {
            return None;
        }
        let client = Namespace::alone()?;
        let router = Namespace::alone()?;
        let director = Namespace::with_mounts();
        let lan = Self { client, router, director, servers: [Namespace::alone()?, Namespace::alone()?] };
        link(&lan.client, "eth0", &lan.router, "clients");
        lan.router.run("ip link add lan type bridge; ip link set lan up; ip address add 10.0.5.1/24 dev lan");
        lan.connect(&lan.director, "director", "10.0.5.2");
        for (number, server) in lan.servers.iter().enumerate() {
            // Only the director responds to ARP requests for the virtual address, and servers send none from it.
            server.run(
                "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
                 ip address add 10.0.5.100/32 dev lo",
            );
            lan.connect(server, &format!("server{number}"), SERVERS[number]);
        }
        lan.director.run("ip address add 10.0.5.100/32 dev eth0");
        pass_all(&lan.router, "director");
        lan.client.run(
            "ip address add 10.0.1.2/24 dev eth0; ip address add 10.0.1.3/24 dev eth0; ip link set eth0 up
             ip route add default via 10.0.1.1",
        );
        lan.router.run(
            "ip address add 10.0.1.1/24 dev clients; ip link set clients up
             echo 1 >/proc/sys/net/ipv4/ip_forward",
        );
        Some(lan)
    }

    /// Connects a namespace with the bridge.
    fn connect(&self, namespace: &Namespace, port: &str, address: &str) {
        link(namespace, "eth0", &self.router, port);
        self.router.run(&format!("ip link set {port} master lan; ip link set {port} up"));
        namespace.run(&format!(
            "ip address add {address}/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.5.1"
        ));
    }

    /// Starts `evener pen` on the director.
    fn pen(&self, words: &[&str]) -> Pen {
        Pen::start(self.director.command(BINARY), Directory::new(), words)
    }

    fn connection(&self, source: &str, to: &str) -> TcpStream {
        // A wait for the path, which is being set up, is part of the kernel's connection attempt.
        let (source, to): (SocketAddr, SocketAddr) = (source.parse().unwrap(), to.parse().unwrap());
        let stream = self.client.enter(|| {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
            let socket = socket.unwrap();
            rustix::net::bind(&socket, &source).unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            TcpStream::from(socket)
        });
        stream.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
        stream
    }
}

/// Serves connections to the virtual address: the name of the server, the client's address, and then an echo.
fn serve(namespace: &Namespace, name: &'static str) {
    let listener = namespace.enter(|| TcpListener::bind(VIP).unwrap());
    // The thread ends with the process of the tests.
    std::thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            std::thread::spawn(move || {
                let _ = stream.write_all(format!("{name} {client}\n").as_bytes());
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
}

/// Reads the line of the server, and sends bytes that the server sends back. Returns the name of the server.
fn exchange(mut stream: &TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (server, client) = line.trim_end().split_once(' ').unwrap();
    assert_eq!(client, stream.local_addr().unwrap().to_string(), "the server receives the client's packets");
    let sent: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let mut received = vec![0; sent.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        stream.read_exact(&mut received).unwrap();
    });
    assert!(received == sent, "expected the bytes that the client sent");
    server.to_owned()
}

fn status(pen: &Pen) -> Value {
    let mut command = Command::new(BINARY);
    let output = command.args(["status", "--json", "--socket"]).arg(pen.file("admin.sock")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn servers_respond_to_clients_directly() {
    let Some(lan) = Lan::new() else { return };
    for (namespace, name) in lan.servers.iter().zip(SERVERS) {
        serve(namespace, name);
    }
    let servers = SERVERS.map(|server| format!("{server}:80"));
    let pen = lan.pen(&["-r", "-O", "dsr_if eth0", VIP, &servers[0], &servers[1]]);
    pen.expect_log("xdp_attached interface=eth0 mode=native");
    let used: Vec<String> = (0..8).map(|_| exchange(&lan.connection("10.0.1.2:0", VIP))).collect();
    let both: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    assert_eq!(both, SERVERS.into(), "new connections get the servers in turn: {used:?}");
    wait_until("the counters", || (status(&pen)["services"][0]["counters"]["flows"] == 8).then_some(()));

    // An open connection outlives the process, and the next process keeps its server.
    let open = lan.connection("10.0.1.3:40000", VIP);
    let mut writer = &open;
    let server = exchange(&open);
    drop(pen);
    let mut echo = |text: &[u8]| {
        writer.write_all(text).unwrap();
        let mut received = vec![0; text.len()];
        writer.read_exact(&mut received).unwrap();
        assert_eq!(received, text, "server {server}");
    };
    echo(b"without a process");
    let pen = lan.pen(&["-r", "-O", "dsr_if eth0", VIP, &servers[0], &servers[1]]);
    pen.expect_log("xdp_attached interface=eth0 mode=native");
    echo(b"with the next process");

    // The responses of servers do not pass the director.
    let before = lan.director.run("cat /sys/class/net/eth0/statistics/rx_bytes");
    echo(&[b'x'; 1000]);
    let after = lan.director.run("cat /sys/class/net/eth0/statistics/rx_bytes");
    let bytes = |text: &str| text.trim().parse::<u64>().unwrap();
    let received = bytes(&after) - bytes(&before);
    assert!((1000..2000).contains(&received), "expected one direction at the director: {received}");
}

#[test]
fn connections_to_dark_addresses_are_accepted_and_stuck() {
    let Some(lan) = Lan::new() else { return };
    for (namespace, name) in lan.servers.iter().zip(SERVERS) {
        serve(namespace, name);
    }
    let list = ["-O", "acl 1 permit 10.0.5.64/26", "-O", "tarpit_acl 1"];
    let words = [&["-r", "-O", "dsr_if eth0"], &list[..], &[VIP, "10.0.5.11:80", "10.0.5.12:80"]].concat();
    let pen = lan.pen(&words);
    pen.expect_log("xdp_attached");
    exchange(&lan.connection("10.0.1.2:0", VIP));
    let mut stuck = lan.connection("10.0.1.2:0", DARK);
    stuck.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    wait_until("responses for the dark address", || {
        let status = status(&pen).to_string();
        let counted = |name: &str| {
            status.contains(&format!("\"{name}\":")) && !status.contains(&format!("\"{name}\":0"))
        };
        ["tarpit_arp", "tarpit_syn", "tarpit_segment"].iter().all(|name| counted(name)).then_some(())
    });
    stuck.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let nothing = stuck.read(&mut [0]).unwrap_err().kind();
    assert!(matches!(nothing, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
    let sockets = lan.client.run("ss -tn state established dst 10.0.5.77");
    assert!(sockets.contains("10.0.5.77:80"), "expected the connection to stay: {sockets}");
    // The virtual address is in the list, and is not dark.
    exchange(&lan.connection("10.0.1.2:0", VIP));
}
