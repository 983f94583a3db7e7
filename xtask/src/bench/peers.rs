//! The measured programs and their start, and their common ground: backends and files in a temporary directory.

use super::cpu::Group;
use anyhow::{Context, bail};
use clap::ValueEnum;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A measured case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Case {
    /// A small response, keep-alive
    Tiny,
    /// A response of 1 MiB, keep-alive
    Mib,
    /// A connection for each request
    Close,
    /// 1000 connections, small responses
    Many,
    /// DNS queries over UDP, as datagrams of flows
    Udp,
    /// DNS queries over UDP, each on its own
    Dns,
    /// DNS queries over UDP, with a cache
    DnsCache,
    /// HTTP: a small response, keep-alive
    Http,
    /// HTTP: a response of 1 MiB, keep-alive
    HttpMib,
    /// HTTP over TLS: a small response, keep-alive
    Https,
    /// HTTP over TLS: a response of 1 MiB, keep-alive
    HttpsMib,
    /// A handshake of TLS for each request
    Handshake,
    /// HTTP/2 over TLS: small responses, 16 streams for each connection
    Http2,
    /// Memory of idle connections and flows, by protocol
    Idle,
}

impl Case {
    pub(super) const ALL: [Self; 14] = [
        Self::Tiny,
        Self::Mib,
        Self::Close,
        Self::Many,
        Self::Udp,
        Self::Dns,
        Self::DnsCache,
        Self::Http,
        Self::HttpMib,
        Self::Https,
        Self::HttpsMib,
        Self::Handshake,
        Self::Http2,
        Self::Idle,
    ];

    /// Returns true if the client is dnsperf and the backend is nsd.
    pub(super) fn is_dns(self) -> bool {
        matches!(self, Self::Udp | Self::Dns | Self::DnsCache)
    }

    /// Returns the scheme of the URLs of clients.
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::Https | Self::HttpsMib | Self::Handshake | Self::Http2 => "https",
            _ => "http",
        }
    }
}

pub(super) const WEB_PORTS: [u16; 2] = [18_001, 18_002];
/// Port of the backend on all addresses.
pub(super) const WEB_ALL_PORT: u16 = 18_003;
pub(super) const DNS_PORT: u16 = 18_053;
pub(super) const NAMES: usize = 1000;

/// A proxy that is measured.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) port: u16,
    start: Start,
    /// The binary is the one that Evener is compared with.
    is_against: bool,
}

/// Distance of the ports of the binary that Evener is compared with.
const AGAINST_PORTS: u16 = 400;

/// Name of the binary that Evener is compared with.
pub(super) const AGAINST: &str = "evener-against";

/// Function that returns the command that starts a peer on a port.
type Start = fn(&Ground, u16) -> anyhow::Result<Command>;

impl Peer {
    pub(super) fn new(name: &'static str, port: u16, start: Start) -> Self {
        Self { name, port, start, is_against: false }
    }

    /// Returns Evener as another binary runs it.
    pub(super) fn against(&self) -> Self {
        Self { name: AGAINST, port: self.port + AGAINST_PORTS, is_against: true, ..self.clone() }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.name.starts_with("evener")
    }

    fn is_dns(&self) -> bool {
        let port = if self.is_against { self.port - AGAINST_PORTS } else { self.port };
        port >= 18_200
    }

    /// Returns the programs of a case, Evener first.
    pub(super) fn of(case: Case) -> Vec<Self> {
        let peer = Self::new;
        match case {
            Case::Udp => super::dns::flows(),
            Case::Dns => super::dns::queries(),
            Case::DnsCache => super::dns::cached(),
            Case::Http | Case::HttpMib => super::http::clear(),
            Case::Https | Case::HttpsMib | Case::Handshake | Case::Http2 => super::http::tls(),
            Case::Tiny | Case::Mib | Case::Close | Case::Many | Case::Idle => vec![
                peer("evener", 18_100, evener_tcp),
                peer("evener-epoll", 18_106, evener_epoll),
                peer("pen", 18_101, pen_tcp),
                peer("haproxy", 18_102, haproxy),
                peer("haproxy-splice", 18_105, haproxy_splice),
                peer("nginx", 18_103, nginx_tcp),
            ],
        }
    }

    pub(super) fn command(&self, ground: &Ground) -> anyhow::Result<Command> {
        let command = (self.start)(ground, self.port)?;
        let Some(binary) = ground.against.as_ref().filter(|_| self.is_against) else { return Ok(command) };
        let mut other = Command::new(binary);
        other.args(command.get_args());
        Ok(other)
    }
}

pub(super) fn web_servers() -> [String; 2] {
    WEB_PORTS.map(|port| format!("127.0.0.1:{port}"))
}

pub(super) fn evener(ground: &Ground, protocol: &str, port: u16, servers: &[String]) -> Command {
    let mut command = Command::new(&ground.binary);
    command.args([protocol, &format!("127.0.0.1:{port}")]).args(servers);
    alone(&mut command, ground, port);
    command
}

/// Adds the options of Evener that all cases have in common.
pub(super) fn alone(command: &mut Command, ground: &Ground, port: u16) {
    // One worker, because the peers have one thread: the norm is CPU time, which more workers do not change.
    let socket = ground.directory.join(format!("evener-{port}.sock"));
    command.args(["--workers", "1", "--log-level", "warn", "--admin"]).arg(socket);
}

fn evener_tcp(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    Ok(evener(ground, "tcp", port, &web_servers()))
}

fn evener_epoll(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    let mut command = evener(ground, "tcp", port, &web_servers());
    command.args(["--driver", "epoll"]);
    Ok(command)
}

fn pen_tcp(_: &Ground, port: u16) -> anyhow::Result<Command> {
    let mut command = Command::new("pen");
    command.args(["-r", "-f", "-x", "4096", "-c", "8192", &format!("127.0.0.1:{port}")]).args(web_servers());
    Ok(command)
}

fn haproxy_with(ground: &Ground, port: u16, options: &str) -> anyhow::Result<Command> {
    let [a, b] = web_servers();
    // haproxy refuses to start if there are too few descriptors for its pipes.
    let connections = if options.is_empty() { ground.connections_max } else { ground.connections_max / 3 };
    let text = format!(
        "global\n nbthread 1\n maxconn {connections}\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\n{options}frontend f\n bind 127.0.0.1:{port} backlog 4096\n default_backend b\n\
         backend b\n balance roundrobin\n server a {a}\n server b {b}\n"
    );
    let file = ground.write(&format!("haproxy-{port}.cfg"), &text)?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

fn haproxy(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    haproxy_with(ground, port, "")
}

fn haproxy_splice(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    haproxy_with(ground, port, " option splice-request\n option splice-response\n")
}

pub(super) fn nginx_stream(
    ground: &Ground,
    port: u16,
    listen: &str,
    servers: &[String],
) -> anyhow::Result<Command> {
    let servers: String = servers.iter().map(|server| format!("server {server}; ")).collect();
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes 1;\ndaemon off;\npid {0}/s{port}.pid;\n\
         error_log {0}/s{port}.log;\nevents {{ worker_connections {1}; }}\n\
         stream {{ upstream u {{ {servers} }} server {{ listen 127.0.0.1:{port} {listen}; proxy_pass u; proxy_timeout 60s; }} }}\n",
        ground.directory.display(),
        ground.connections_max * 2,
    );
    let file = ground.write(&format!("stream-{port}.conf"), &text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file);
    Ok(command)
}

fn nginx_tcp(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    nginx_stream(ground, port, "backlog=4096", &web_servers())
}

/// A process that is killed when this value is dropped.
pub(super) struct Running {
    child: Child,
    pub(super) group: Group,
    pub(super) port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The workers of nginx continue to run after their master was killed.
        for pid in &self.group.0 {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Backends and files that the cases share.
pub(super) struct Ground {
    pub(super) binary: String,
    /// Another binary to compare with.
    against: Option<String>,
    pub(super) directory: PathBuf,
    /// Number of connections that a proxy can have at the same time on this machine.
    pub(super) connections_max: u64,
    pub(super) web: Option<Running>,
    pub(super) dns: Option<Running>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        (self.web, self.dns) = (None, None);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Ground {
    /// Starts the backends: nginx with one worker, nsd with a small zone.
    pub(super) fn prepare(
        binary: &str,
        against: Option<&String>,
        connections_max: u64,
    ) -> anyhow::Result<Self> {
        for binary in [binary].into_iter().chain(against.map(String::as_str)) {
            if !Path::new(binary).exists() {
                bail!("{binary} does not exist: build it, or give another path");
            }
        }
        let directory = std::env::temp_dir().join(format!("evener-bench-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (binary, against) = (binary.to_owned(), against.cloned());
        let mut ground = Self { binary, against, directory, connections_max, web: None, dns: None };
        super::http::make_certificate(&ground)?;
        ground.web = Some(ground.start_web()?);
        ground.dns = Some(ground.start_dns()?);
        Ok(ground)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }

    fn start_web(&self) -> anyhow::Result<Running> {
        let directory = self.directory.display();
        fs::write(self.directory.join("1m"), vec![b'x'; 1 << 20])?;
        let listen: String = WEB_PORTS.map(|port| format!("listen 127.0.0.1:{port} backlog=4096; ")).concat();
        let listen = format!("{listen}listen {WEB_ALL_PORT} backlog=4096; ");
        let text = format!(
            "worker_processes 1;\ndaemon off;\nuser root;\npid {directory}/web.pid;\nerror_log {directory}/web.log;\n\
             events {{ worker_connections {}; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on; server {{ {listen}\n\
             location /ping {{ return 200 \"pong\"; }} location /1m {{ alias {directory}/1m; }} }} }}\n",
            self.connections_max * 2
        );
        let file = self.write("web.conf", &text)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file);
        spawn(command, WEB_PORTS[0], Case::Tiny)
    }

    fn start_dns(&self) -> anyhow::Result<Running> {
        let directory = self.directory.display();
        let records: String = (0..NAMES).map(|n| format!("n{n} A 192.0.2.{}\n", n % 250)).collect();
        let zone = format!(
            "$ORIGIN example.\n$TTL 60\n@ SOA ns.example. h.example. 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n{records}"
        );
        self.write("example.zone", &zone)?;
        let text = format!(
            "server:\n server-count: 1\n ip-address: 127.0.0.1@{DNS_PORT}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{directory}\"\n \
             database: \"\"\n pidfile: \"{directory}/nsd.pid\"\n xfrdfile: \"{directory}/xfrd\"\n zonelistfile: \"{directory}/zl\"\n \
             rrl-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: example\n zonefile: example.zone\n"
        );
        let file = self.write("nsd.conf", &text)?;
        let queries: String = (0..NAMES).map(|n| format!("n{n}.example A\n")).collect();
        self.write("queries", &queries)?;
        let mut command = Command::new("nsd");
        command.args(["-d", "-c"]).arg(file);
        spawn(command, DNS_PORT, Case::Udp)
    }

    /// Starts the proxies of a case.
    pub(super) fn start(&self, peers: &[Peer]) -> anyhow::Result<Vec<Running>> {
        let start = |peer: &Peer| {
            let case = if peer.is_dns() { Case::Udp } else { Case::Tiny };
            spawn(peer.command(self)?, peer.port, case).with_context(|| peer.name.to_owned())
        };
        peers.iter().map(start).collect()
    }
}

/// Starts a server and waits until it responds.
pub(super) fn spawn(mut command: Command, port: u16, case: Case) -> anyhow::Result<Running> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.with_context(|| format!("{:?} cannot be run", command.get_program()))?;
    let mut running = Running { child, group: Group::default(), port };
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(status) = running.child.try_wait()? {
            bail!("{:?} ended at once: {status}", command.get_program());
        }
        if responds(port, case) {
            break;
        }
        if Instant::now() > until {
            bail!("{:?} does not respond on port {port}", command.get_program());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    running.group = Group::of(running.child.id());
    Ok(running)
}

fn responds(port: u16, case: Case) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if !case.is_dns() {
        return TcpStream::connect(address).is_ok();
    }
    // n0.example A, with recursion desired.
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02n0\x07example\x00\x00\x01\x00\x01";
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(query, address)?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok()
}
