//! Addresses that are valid only on one link: addresses of all hosts of the link (broadcast and multicast), and
//! link-local addresses of one host (fe80::/10).

use crate::harness::namespaces::Row;
use crate::harness::{BINARY, Directory, Evener, wait_until};
use crate::tcp::transparent::ChildGuard;
use std::process::Stdio;

/// A server that echoes datagrams on port 7000, sends the client's address over TCP on port 7000, and responds to DNS queries
/// on port 7053 without records, over UDP and TCP.
const SERVER: &str = r#"
import socket, sys, threading, time
hosts = [("10.77.2.2",), ("fd77:2::2",), ("fe80::55", socket.if_nametoindex("eth0"))]

def bind(kind, host, port):
    family = socket.AF_INET6 if ":" in host[0] else socket.AF_INET
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host[0], port, 0, host[1]) if len(host) > 1 else (host[0], port))
    return s

def datagrams(s, respond):
    while True:
        message, client = s.recvfrom(2000)
        s.sendto(respond(message), client)

def stream(c, client):
    c.sendall(client[0].split("%")[0].encode() + b"\n")
    while c.recv(2000): pass

def queries(c, client):
    while length := c.recv(2):
        message = c.recv(int.from_bytes(length, "big"))
        c.sendall(length + empty(message))

def streams(s, serve):
    s.listen(16)
    while True:
        threading.Thread(target=serve, args=s.accept(), daemon=True).start()

empty = lambda message: message[:2] + bytes([message[2] | 0x80, 0x80]) + message[4:]
for host in hosts:
    for kind, port, run, handler in (
        (socket.SOCK_DGRAM, 7000, datagrams, lambda message: b"re:" + message),
        (socket.SOCK_DGRAM, 7053, datagrams, empty),
        (socket.SOCK_STREAM, 7000, streams, stream),
        (socket.SOCK_STREAM, 7053, streams, queries),
    ):
        threading.Thread(target=run, args=(bind(kind, host, port), handler), daemon=True).start()
print("ready", flush=True)
time.sleep(170)
"#;

/// A client that sends to an address from several sockets, and prints the sender and the extra length of each response.
const MANY_SOCKETS: &str = r#"
import socket, struct, sys
host, port, count, patience = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
query = b"\0\7\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"
link = socket.if_nametoindex("eth0")
sockets = []
for _ in range(count):
    if ":" in host:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)
        s.bind(("fd77:1::2", 0))
        s.sendto(query, (host, port, 0, link))
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.1.2"))
        s.bind(("10.77.1.2", 0))
        s.sendto(query, (host, port))
    sockets.append(s)
for s in sockets:
    s.settimeout(10)
    response, sender = s.recvfrom(2000)
    s.settimeout(patience)
    try:
        print("twice", s.recvfrom(2000))
    except TimeoutError:
        print(sender[0].split("%")[0], len(response) - len(query))
"#;

/// A client of a link-local address over UDP or TCP, with plain data or DNS.
const LINK_LOCAL_CLIENT: &str = r#"
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
query = b"\0\7\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"
s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(10)
s.connect(("fe80::99", port, 0, socket.if_nametoindex("eth0")))
if kind == "tcp" and port == 7000:
    print(s.recv(100).decode().strip())
elif kind == "tcp":
    s.sendall(bytes([0, len(query)]) + query)
    print(s.recv(100)[2:4])
else:
    s.send(query)
    response = s.recv(100)
    print(response[:3] if port == 7000 else response[:2])
"#;

fn start_server(row: &Row, directory: &Directory) -> ChildGuard {
    row.server.run("ip address add fe80::55/64 dev eth0 nodad");
    let script = directory.write("server.py", SERVER);
    let ready = directory.file("ready");
    let output = std::fs::File::create(&ready).unwrap();
    let server = row
        .server
        .command("python3")
        .arg(script)
        .stdout(output)
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let server = ChildGuard::new(server);
    wait_until("the server", || std::fs::read_to_string(&ready).unwrap().contains("ready").then_some(()));
    server
}

#[test]
fn broadcasts_and_multicasts_get_one_response_from_the_local_address() {
    let Some(row) = Row::new() else { return };
    let directory = Directory::new();
    let _server = start_server(&row, &directory);
    let script = directory.write("client.py", MANY_SOCKETS).display().to_string();
    let services = |name: &str, protocol: &str, port: u16| {
        format!(
            "service \"{name}4\" {{ listen = \"0.0.0.0:{port}\", \"10.77.2.2:{port}\", protocol = \"{protocol}\" }}\n\
             service \"{name}6\" {{ listen = \"[::]:{port}\", \"[fd77:2::2]:{port}\", protocol = \"{protocol}\" }}\n"
        )
    };
    let long_timeout = "protocol = \"dns\", dns = { query_timeout = \"10s\" }";
    let config =
        services("u", "udp", 7000) + &services("d", "dns", 7053).replace("protocol = \"dns\"", long_timeout);
    let file = directory.write("evener.lua", &config).display().to_string();
    let evener = Evener::start(row.balancer.command(BINARY), directory, &["run", &file, "--workers", "4"]);
    const MANY: usize = 12;
    for (port, added) in [(7000, 3), (7053, 0)] {
        for (host, sender) in [
            ("10.77.1.1", "10.77.1.1"),
            ("10.77.1.255", "10.77.1.1"),
            ("255.255.255.255", "10.77.1.1"),
            ("224.0.0.1", "10.77.1.1"),
            ("fd77:1::1", "fd77:1::1"),
            ("ff02::1", "fd77:1::1"),
        ] {
            let route = "ip route replace 255.255.255.255/32 dev eth0; ";
            let received = row.client.run(&format!("{route} python3 {script} {host} {port} {MANY} 0.02"));
            assert_eq!(received, format!("{sender} {added}\n").repeat(MANY), "{host}:{port}");
        }
    }
    // Each worker receives a copy of a datagram, and only one copy is sent to the server.
    for (server, sent) in [("10.77.2.2:7000", 4 * MANY), ("[fd77:2::2]:7053", 2 * MANY)] {
        assert_eq!(evener.server(server)["counters"]["datagrams_in"], sent, "{server}");
    }
}

#[test]
fn link_local_addresses_work_for_listeners_and_servers() {
    let Some(row) = Row::new() else { return };
    row.balancer.run(
        "ip address add fe80::99/64 dev clients nodad; ip address add fe80::98/64 dev servers nodad
         ip address add fe80::99/64 dev servers nodad",
    );
    row.client.run("ip address add fe80::77/64 dev eth0 nodad");
    let directory = Directory::new();
    let _server = start_server(&row, &directory);
    let script = directory.write("client.py", LINK_LOCAL_CLIENT).display().to_string();
    let service = |name: &str, protocol: &str, port: u16, link: &str| {
        format!(
            "service \"{name}\" {{ listen = \"[fe80::99%{link}]:{port}\", \"[fe80::55%servers]:{port}\", \
             protocol = \"{protocol}\" }}\n"
        )
    };
    let config = service("t", "tcp", 7000, "clients")
        + &service("u", "udp", 7000, "clients")
        + &service("d", "dns", 7053, "clients")
        // The same address on another link is a different address.
        + &service("other", "tcp", 7000, "servers").replace("[fe80::55%servers]:7000", "10.77.2.2:9")
        + "pool \"checked\" { \"[fe80::55%servers]:7000\", check = check.tcp { every = \"100ms\" } }";
    let file = directory.write("evener.lua", &config).display().to_string();
    let evener = Evener::start(row.balancer.command(BINARY), directory, &["run", &file, "--workers", "2"]);
    let run_client = |words: &str| row.client.run(&format!("python3 {script} {words}"));
    let source = run_client("tcp 7000");
    assert!(source.starts_with("fe80::"), "the server must see a link-local address: {source}");
    assert_eq!(run_client("udp 7000"), "b're:'\n");
    assert_eq!([run_client("udp 7053"), run_client("tcp 7053")], ["b'\\x00\\x07'\n"; 2]);
    let name = "[fe80::55%servers]:7000";
    wait_until("the check", || {
        let status = evener.status();
        let pools = status["pools"].as_array().unwrap();
        let checked = pools.iter().find(|pool| pool["name"] == "checked").unwrap();
        let server = &checked["servers"][0];
        (server["name"] == name && server["verdict"] == "up").then_some(())
    });
}

#[test]
fn a_missing_interface_is_reported() {
    let directory = Directory::new();
    let check = |address: &str, expected: &str| {
        for config in [
            format!("service \"a\" {{ listen = \"{address}\", \"127.0.0.1:9\" }}"),
            format!("service \"a\" {{ listen = \"127.0.0.1:9999\", \"{address}\" }}"),
        ] {
            let file = directory.write("evener.lua", &config);
            let output = std::process::Command::new(BINARY).arg("check").arg(file).output().unwrap();
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && printed.contains(expected), "{config}: {printed}");
        }
    };
    check("[fe80::1%none-such]:80", "this machine has no interface `none-such`");
    check("[fe80::1]:80", "without an interface");
    check("[2001:db8::1%lo]:80", "only a link-local address");
}
