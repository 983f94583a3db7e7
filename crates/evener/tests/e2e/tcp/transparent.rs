//! `source = "client"`: servers see the addresses of clients.

use crate::harness::namespaces::Row;
use crate::harness::{BINARY, Directory, Evener, have, reserved_port, wait_until};
use std::process::{Child, Command, Output, Stdio};

/// A server that reports the client's address: TCP and UDP on port 7000, HTTP on port 8000 with the connection's number.
const SERVER: &str = r#"
import http.server, itertools, socket, socketserver, threading

class Tcp(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.client_address[0].encode() + b"\n")
        for line in self.rfile:
            self.wfile.write(line)

class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(self.client_address[0].encode(), self.client_address)

class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    numbers = itertools.count(1)
    def setup(self):
        super().setup()
        self.number = next(self.numbers)
    def do_GET(self):
        body = f"{self.client_address[0]} {self.number}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

def serve(kind, family, address, handler):
    class Server(kind):
        address_family = family
        allow_reuse_address = True
        daemon_threads = True
        def server_bind(self):
            # The method of http.server would query a name server for the host's name.
            self.server_name, self.server_port = address
            if kind is http.server.ThreadingHTTPServer:
                socketserver.TCPServer.server_bind(self)
            else:
                super().server_bind()
    server = Server(address, handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

for family, host in ((socket.AF_INET, "10.77.2.2"), (socket.AF_INET6, "fd77:2::2")):
    serve(socketserver.ThreadingTCPServer, family, (host, 7000), Tcp)
    serve(socketserver.ThreadingUDPServer, family, (host, 7000), Udp)
    serve(http.server.ThreadingHTTPServer, family, (host, 8000), Http)
print("ready", flush=True)
threading.Event().wait(170)
"#;

/// A client that connects from an address, and prints the response. The kinds are `tcp`, `udp`, and `http` with three
/// requests.
pub(crate) const CLIENT: &str = r#"
import http.client, socket, sys
kind, source, host = sys.argv[1:4]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if kind == "udp":
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.bind((source, 0))
    s.connect((host, 7000))
    s.send(b"x")
    print(s.recv(100).decode())
elif kind == "http":
    c = http.client.HTTPConnection(host, 8000, 5, (source, 0))
    for _ in range(3):
        c.request("GET", "/")
        print(c.getresponse().read().decode())
else:
    s = socket.create_connection((host, 7000), 5, (source, 0))
    s.send(b"echo\n")
    received = b""
    while received.count(b"\n") < 2:
        received += s.recv(100)
    print(received.decode(), end="")
"#;

/// A process that is killed at the end of its test.
pub(crate) struct ChildGuard(Child);

impl ChildGuard {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A service of each protocol and address family in front of the server.
fn config() -> String {
    let hosts = [("4", "10.77.1.1", "10.77.2.2"), ("6", "[fd77:1::1]", "[fd77:2::2]")];
    let services = |(family, listen, server): (&str, &str, &str)| {
        let service = |name: &str, port: u16, more: &str| {
            format!(
                "service \"{name}{family}\" {{ listen = \"{listen}:{port}\", \"{server}:{port}\", source = \"client\", {more} }}\n"
            )
        };
        service("t", 7000, "")
            + &service("u", 7000, "protocol = \"udp\"")
            + &service("h", 8000, "protocol = \"http\"")
    };
    hosts.into_iter().map(services).collect()
}

pub(crate) fn start_server(row: &Row, directory: &Directory) -> ChildGuard {
    let script = directory.write("server.py", SERVER);
    let ready = directory.file("ready");
    let output = std::fs::File::create(&ready).unwrap();
    let server =
        row.server.command("python3").arg(script).stdout(output).stdin(Stdio::null()).spawn().unwrap();
    let server = ChildGuard::new(server);
    wait_until("the server", || std::fs::read_to_string(&ready).unwrap().contains("ready").then_some(()));
    server
}

#[test]
fn servers_see_the_addresses_of_clients() {
    let Some(row) = Row::new() else { return };
    // Packets from servers to clients are delivered to the balancer: docs/operating.md, "Transparent".
    row.balancer.run(
        "ip rule add iif servers lookup 100; ip route add local default dev lo table 100
         ip -6 rule add iif servers lookup 100; ip -6 route add local default dev lo table 100",
    );
    let directory = Directory::new();
    let script = directory.write("client.py", CLIENT).display().to_string();
    let _server = start_server(&row, &directory);
    let file = directory.write("evener.lua", &config()).display().to_string();
    let in_balancer = row.balancer.command(BINARY);
    let evener = Evener::start(in_balancer, directory, &["run", &file, "--workers", "1"]);
    let run_client = |kind: &str, source: &str| {
        let service = if source.contains(':') { "fd77:1::1" } else { "10.77.1.1" };
        row.client.run(&format!("python3 {script} {kind} {source} {service}"))
    };
    for source in ["10.77.1.2", "fd77:1::2", "10.77.1.3", "fd77:1::3"] {
        assert_eq!(run_client("tcp", source), format!("{source}\necho\n"));
        assert_eq!(run_client("udp", source), format!("{source}\n"));
    }
    // A server connection is used again only for requests of the same client connection.
    for (number, source) in ["10.77.1.2", "10.77.1.3", "10.77.1.2"].iter().enumerate() {
        assert_eq!(run_client("http", source), format!("{source} {}\n", number + 1).repeat(3));
    }
    assert_eq!(run_client("http", "fd77:1::3"), "fd77:1::3 4\n".repeat(3));
    assert_eq!(evener.server("10.77.2.2:7000")["counters"]["connect_failures"]["error"], 0);
}

/// A client with a link-local address uses TCP, then UDP.
const LINK_LOCAL_CLIENT: &str = r#"
import socket
link = socket.if_nametoindex("eth0")
s = socket.socket(socket.AF_INET6)
s.settimeout(5)
s.bind(("fe80::77", 0, 0, link))
s.connect(("fd77:1::1", 7000))
try:
    print(s.recv(100))
except ConnectionResetError:
    print(b"")
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("fe80::77", 0, 0, link))
s.sendto(b"x", ("fd77:1::1", 7000))
"#;

#[test]
fn a_link_local_client_does_not_count_as_a_failure_of_the_server() {
    let Some(row) = Row::new() else { return };
    row.balancer.run("ip -6 rule add iif servers lookup 100; ip -6 route add local default dev lo table 100");
    row.client.run("ip address add fe80::77/64 dev eth0 nodad");
    let directory = Directory::new();
    let script = directory.write("client.py", CLIENT).display().to_string();
    let link_local = directory.write("link.py", LINK_LOCAL_CLIENT).display().to_string();
    let _server = start_server(&row, &directory);
    let file = directory.write("evener.lua", &config()).display().to_string();
    let evener = Evener::start(row.balancer.command(BINARY), directory, &["run", &file, "--workers", "1"]);
    let run_client = |kind: &str| row.client.run(&format!("python3 {script} {kind} fd77:1::2 fd77:1::1"));
    assert_eq!(run_client("udp"), "fd77:1::2\n");
    for count in 1..=3 {
        assert_eq!(row.client.run(&format!("python3 {link_local}")), "b''\n");
        wait_until("the datagram to be dropped", || {
            (evener.service_counter("u6", "drops.no_server") == count).then_some(())
        });
    }
    assert_eq!(
        evener.service_counter("u6", "flows_ended.evicted"),
        0,
        "the flow of another client must stay"
    );
    assert_eq!(evener.log_count("server_down"), 0, "{}", evener.log());
    assert_eq!(
        (run_client("tcp").as_str(), run_client("udp").as_str()),
        ("fd77:1::2\necho\n", "fd77:1::2\n")
    );
}

/// Runs Evener without CAP_NET_ADMIN and CAP_NET_RAW, for at most 10 s.
fn run_without_capabilities(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("10");
    if rustix::process::geteuid().is_root() {
        let capabilities = "-net_admin,-net_raw";
        command.args(["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities]);
    }
    command.arg(BINARY).args(arguments).output().unwrap()
}

#[test]
fn without_the_capability_evener_does_not_start_and_prints_the_reason() {
    if !have("setpriv") {
        return;
    }
    let (directory, listen) = (Directory::new(), reserved_port());
    let config = |source: &str| {
        format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:1\", source = \"{source}\" }}")
    };
    let file = directory.write("evener.lua", &config("client")).display().to_string();
    let admin = directory.file("admin.sock").display().to_string();
    let output = run_without_capabilities(&["run", &file, "--admin", &admin]);
    let printed =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("service `s`: source = \"client\" is not allowed here"), "{printed}");
    assert!(printed.contains("give the program CAP_NET_ADMIN"), "{printed}");
}

#[test]
fn on_loopback_servers_see_the_addresses_of_clients() {
    if !crate::harness::have_root() {
        return;
    }
    let a = crate::harness::Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", source = \"client\" }}",
        a.port
    ));
    let listen = evener.port("s");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.5:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&crate::harness::local(listen).into()).unwrap();
    assert_eq!(crate::harness::line(&mut socket.into()), "a 127.0.0.5");
}
