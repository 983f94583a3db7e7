//! A network for the XDP plane, in namespaces without names:
//!
//! ```text
//! client eth0 ---- clients            gateway
//! 10.0.1.2          (10.0.1.1)        routes, and sends what comes from servers
//!                                     to the director
//! director eth0 -- director (10.0.3.1)
//! 10.0.3.2, and the virtual addresses 10.0.9.9 and fd00:9::9
//!
//! servers eth0 --- servers (10.0.2.1)
//! 10.0.2.11 .. 13
//! ```
//!
//! The IPv6 addresses are alike: fd00:1::2, fd00:3::2, fd00:2::11 .. 13. With a second arm, eth1 of the director
//! (10.0.4.1, fd00:4::1) is connected to eth1 of the servers (10.0.4.11 .. 13, fd00:4::11 .. 13), whose responses from
//! these addresses leave there.

mod echo;
mod traffic;

pub(crate) use echo::{Echo, Reply, UdpClient};
pub(crate) use traffic::Traffic;

use crate::harness::namespaces::Namespace;
use crate::harness::{BINARY, Directory, Evener, have};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

/// The virtual address of IPv4.
pub(crate) const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 9, 9));
/// The virtual address of IPv6.
pub(crate) const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9));
/// The client's address of IPv4.
pub(crate) const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
/// The client's address of IPv6.
pub(crate) const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));

/// Returns the IPv4 address of server 11, 12 or 13.
pub(crate) fn server_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 2, number).into()
}

/// Returns the IPv6 address of server 11, 12 or 13, whose last group is written with the same digits.
pub(crate) fn server_v6(number: u8) -> IpAddr {
    format!("fd00:2::{number}").parse().unwrap()
}

/// A program that passes every packet, for the peers of devices with the XDP plane.
const PASS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../xdp/bpf/pass.bpf.o");

/// A client, a gateway, a director on one arm or two, and a namespace with the addresses of all servers.
pub(crate) struct XdpNetwork {
    client: Namespace,
    gateway: Namespace,
    director: Namespace,
    servers: Namespace,
}

impl XdpNetwork {
    /// Creates the network with a director on one arm. Returns `None` if the test does not run as root or a program is
    /// missing.
    pub(crate) fn new() -> Option<Self> {
        if !have("ethtool") || !have("nft") {
            return None;
        }
        let client = Namespace::alone()?;
        let [gateway, servers] = [Namespace::alone()?, Namespace::alone()?];
        let network = Self { client, gateway, director: Namespace::with_mounts(), servers };
        network.connect();
        network.route();
        Some(network)
    }

    /// Creates the network with a second arm, from the director to the servers.
    pub(crate) fn two_armed() -> Option<Self> {
        let network = Self::new()?;
        link(&network.director, "eth1", &network.servers, "eth1");
        network.director.run(
            "ip address add 10.0.4.1/24 dev eth1; ip address add fd00:4::1/64 dev eth1 nodad
             ip link set eth1 up",
        );
        network.servers.run(
            "for number in 11 12 13; do
                 ip address add 10.0.4.$number/24 dev eth1
                 ip address add fd00:4::$number/64 dev eth1 nodad
             done
             ip link set eth1 up
             ip route add default via 10.0.4.1 table 100; ip rule add from 10.0.4.0/24 lookup 100
             ip -6 route add default via fd00:4::1 table 100; ip -6 rule add from fd00:4::/64 lookup 100",
        );
        pass_all(&network.servers, "eth1");
        network
            .gateway
            .run("ip route add 10.0.4.0/24 via 10.0.3.2; ip -6 route add fd00:4::/64 via fd00:3::2");
        Some(network)
    }

    pub(crate) fn client(&self) -> &Namespace {
        &self.client
    }

    pub(crate) fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    pub(crate) fn director(&self) -> &Namespace {
        &self.director
    }

    pub(crate) fn servers(&self) -> &Namespace {
        &self.servers
    }

    /// Connects the gateway with the others and assigns the addresses.
    fn connect(&self) {
        for (namespace, other) in
            [(&self.client, "clients"), (&self.servers, "servers"), (&self.director, "director")]
        {
            link(namespace, "eth0", &self.gateway, other);
        }
        self.gateway.run(
            "for device in clients=1 servers=2 director=3; do
                 ip address add 10.0.${device#*=}.1/24 dev ${device%=*}
                 ip address add fd00:${device#*=}::1/64 dev ${device%=*} nodad
                 ip link set ${device%=*} up
             done",
        );
        let end = |namespace: &Namespace, network: u8, numbers: &str| {
            namespace.run(&format!(
                "for number in {numbers}; do
                     ip address add 10.0.{network}.$number/24 dev eth0
                     ip address add fd00:{network}::$number/64 dev eth0 nodad
                 done
                 ip link set eth0 up
                 ip route add default via 10.0.{network}.1; ip -6 route add default via fd00:{network}::1"
            ));
        };
        end(&self.client, 1, "2 3");
        end(&self.servers, 2, "11 12 13");
        end(&self.director, 3, "2");
        // XDP_TX of the director needs a program at its peer.
        pass_all(&self.gateway, "director");
    }

    /// Makes the gateway and the director forward packets, and leads what servers send through the director.
    fn route(&self) {
        // Redirects would tell the gateway and the servers to leave the director out.
        let forwarding = "
             for file in /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/send_redirects; do
                 echo 0 >$file
             done
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        self.gateway.run(forwarding);
        self.director.run(forwarding);
        self.gateway.run(
            "ip route add default via 10.0.3.2 table 100; ip -6 route add default via fd00:3::2 table 100
             ip rule add iif servers from 10.0.2.0/24 lookup 100
             ip -6 rule add iif servers from fd00:2::/64 lookup 100",
        );
        self.add_virtual_address(VIP_V4);
        self.add_virtual_address(VIP_V6);
    }

    /// Adds a virtual address of the director.
    pub(crate) fn add_virtual_address(&self, address: IpAddr) {
        let (via, length) = if address.is_ipv4() { ("10.0.3.2", 32) } else { ("fd00:3::2", 128) };
        let nodad = if address.is_ipv4() { "" } else { "nodad" };
        self.director.run(&format!("ip address add {address}/{length} dev lo {nodad}"));
        self.gateway.run(&format!("ip route add {address}/{length} via {via}"));
    }

    /// Adds an address of a server.
    pub(crate) fn add_server_address(&self, address: IpAddr) {
        let (via, length) = if address.is_ipv4() { ("10.0.2.11", 32) } else { ("fd00:2::11", 128) };
        let (nodad, family) = if address.is_ipv4() { ("", "-4") } else { ("nodad", "-6") };
        self.servers.run(&format!("ip address add {address}/{length} dev eth0 {nodad}"));
        self.gateway.run(&format!(
            "ip route add {address}/{length} via {via}
             ip {family} rule add iif servers from {address}/{length} lookup 100"
        ));
    }

    /// Runs a configuration on the director.
    pub(crate) fn evener(&self, config: &str) -> Evener {
        let directory = Directory::new();
        let file = directory.write("evener.lua", config).display().to_string();
        Evener::start(self.director.command(BINARY), directory, &["run", &file])
    }

    /// Returns a command that runs the program on the director, without arguments.
    pub(crate) fn evener_command(&self) -> Command {
        self.director.command(BINARY)
    }
}

/// Connects two namespaces by a pair of devices, without offloads: a checksum that a device would complete is wrong in
/// the packets that XDP sees.
pub(crate) fn link(namespace: &Namespace, device: &str, other: &Namespace, peer: &str) {
    let pid = other.pid();
    let queues = "numtxqueues 1 numrxqueues 1";
    namespace
        .run(&format!("ip link add name {device} {queues} type veth peer name {peer} {queues} netns {pid}"));
    for (namespace, device) in [(namespace, device), (other, peer)] {
        namespace.run(&format!("ethtool -K {device} rx off tx off gso off tso off gro off"));
    }
}

/// Attaches a program that passes every packet.
pub(crate) fn pass_all(namespace: &Namespace, device: &str) {
    assert!(Path::new(PASS).exists(), "expected the compiled fixture {PASS}");
    namespace.run(&format!("ip link set dev {device} xdpdrv obj {PASS} sec xdp"));
}
