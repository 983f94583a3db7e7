//! Namespaces of a client, a gateway, a director with the program, and a server:
//!
//! ```text
//! client 10.0.1.2, .3 --- gateway --- director 10.0.3.2 === server 10.0.4.11 (direct forwarding only)
//!                            `------------------------------ server 10.0.2.11, .12
//! ```
//!
//! The IPv6 addresses are alike. The server has the virtual addresses on loopback, and responds through the gateway.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that passes all packets: the peer of a device needs one to receive the packets that XDP sends.
const PASS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/pass.bpf.o");

/// A network namespace, which lives as long as its process.
pub(crate) struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Namespace {
    fn new() -> Self {
        let current = std::fs::read_link("/proc/self/ns/net").unwrap();
        let namespace = Self(Command::new("unshare").args(["--net", "sleep", "180"]).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::fs::read_link(namespace.path()).is_ok_and(|link| link == current) {
            assert!(Instant::now() < deadline, "a namespace within 30 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.run(
            "ip link set lo up
             for file in /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/send_redirects; do
                 echo 0 >$file
             done",
        );
        namespace
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// Runs a shell script in the namespace.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["sh", "-ec", script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Calls a function on a thread of the namespace. Sockets that it opens stay in the namespace.
    pub(crate) fn enter<T: Send>(&self, open: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                open()
            });
            inside.join().unwrap()
        })
    }
}

/// The namespaces, connected.
pub(crate) struct Network {
    pub(crate) client: Namespace,
    gateway: Namespace,
    pub(crate) director: Namespace,
    pub(crate) server: Namespace,
}

/// Connects two namespaces by a pair of devices without offloads.
fn link(namespace: &Namespace, device: &str, other: &Namespace, peer: &str) {
    let queues = "numtxqueues 1 numrxqueues 1";
    let pid = other.0.id();
    namespace
        .run(&format!("ip link add name {device} {queues} type veth peer name {peer} {queues} netns {pid}"));
    for (namespace, device) in [(namespace, device), (other, peer)] {
        namespace.run(&format!(
            "ethtool -K {device} rx off tx off gso off tso off gro off; ip link set {device} up"
        ));
    }
}

fn pass_all(namespace: &Namespace, device: &str) {
    namespace.run(&format!("ip link set dev {device} xdpdrv obj {PASS} sec xdp"));
}

impl Network {
    /// Creates the network.
    pub(crate) fn new() -> Self {
        let network = Self {
            client: Namespace::new(),
            gateway: Namespace::new(),
            director: Namespace::new(),
            server: Namespace::new(),
        };
        link(&network.client, "eth0", &network.gateway, "client");
        link(&network.director, "eth0", &network.gateway, "director");
        link(&network.server, "eth0", &network.gateway, "server");
        link(&network.director, "eth1", &network.server, "eth1");
        network.configure();
        pass_all(&network.gateway, "director");
        pass_all(&network.server, "eth1");
        network
    }

    fn configure(&self) {
        let end = |namespace: &Namespace, network: u8, numbers: &str| {
            namespace.run(&format!(
                "for number in {numbers}; do
                     ip address add 10.0.{network}.$number/24 dev eth0
                     ip address add fd00:{network}::$number/64 dev eth0 nodad
                 done
                 ip route add default via 10.0.{network}.1; ip -6 route add default via fd00:{network}::1"
            ));
        };
        self.gateway.run(
            "for device in client=1 server=2 director=3; do
                 ip address add 10.0.${device#*=}.1/24 dev ${device%=*}
                 ip address add fd00:${device#*=}::1/64 dev ${device%=*} nodad
             done
             ip route add 10.0.9.9/32 via 10.0.3.2; ip -6 route add fd00:9::9/128 via fd00:3::2
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        );
        end(&self.client, 1, "2 3");
        end(&self.server, 2, "11 12");
        end(&self.director, 3, "2");
        self.server.run("ip address add 10.0.9.9/32 dev lo; ip address add fd00:9::9/128 dev lo nodad");
        // The director's neighbours are known before the first packet.
        self.director.run("ping -c 1 -W 5 10.0.3.1 >/dev/null 2>&1 || true");
    }
}

/// Returns the index of a device and its MAC address, in the namespace of this thread.
pub(crate) fn device(name: &str) -> (u32, [u8; 6]) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let output =
        Command::new("ip").args(["-o", "link", "show", "dev", name.to_str().unwrap()]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let text = line.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    (index, bytes.try_into().unwrap())
}
