//! Connections of real clients through a router, while addresses are forged.

use crate::network::{Namespace, connect, leave, run, send_frames, wait_until};
use crate::packet::{Packet, SYN};
use crate::plane::{Plane, VIP_V4, VIP_V6};
use evener_core::Random;
use evener_xdp::contract::{REASON_SYN_CHALLENGED, REASON_SYN_VALIDATED, Server};
use evener_xdp::defence::ServiceDefence;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 3, 2];
const BALANCER_TO_SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 3, 1];

struct Network {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

impl Network {
    /// Connects the namespaces: client 10.1.0.2, router 10.1.0.1 and 10.2.0.2, balancer 10.2.0.1 and 10.3.0.1, server
    /// 10.3.0.2, and the same in fd00::/16. The router translates the client's addresses and refuses segments that its
    /// connection tracking does not know.
    fn new() -> Self {
        leave();
        let [client, router, server] = [(); 3].map(|()| Namespace::new());
        let off = "tx off gso off tso off gro off rx off > /dev/null";
        run(&format!(
            "ip link add name c0 index 11 address 02:00:00:00:02:01 type veth peer name eth0 address 02:00:00:00:02:02 index 12 netns {}
             ip link add name s0 index 13 address 02:00:00:00:03:01 type veth peer name eth0 address 02:00:00:00:03:02 netns {}
             for i in c0 s0; do ip link set $i up; ethtool -K $i {off}; done
             ip address add 10.2.0.1/24 dev c0; ip address add fd00:2::1/64 dev c0 nodad
             ip address add 10.3.0.1/24 dev s0; ip address add fd00:3::1/64 dev s0 nodad
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.s0.rp_filter=0 net.ipv4.conf.c0.rp_filter=0",
            router.id(),
            server.id()
        ));
        router.run(&format!(
            "ip link add name inside type veth peer name eth0 netns {}
             for i in inside eth0; do ip link set $i up; ethtool -K $i {off}; done
             ip address add 10.2.0.2/24 dev eth0; ip address add fd00:2::2/64 dev eth0 nodad
             ip address add 10.1.0.1/24 dev inside; ip address add fd00:1::1/64 dev inside nodad
             ip route add default via 10.2.0.1; ip -6 route add default via fd00:2::1
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             nft add table inet t
             nft add chain inet t nat {{ type nat hook postrouting priority 100 \\; }}
             nft add rule inet t nat oifname eth0 masquerade
             nft add chain inet t forward {{ type filter hook forward priority 0 \\; }}
             nft add rule inet t forward ct state invalid counter drop",
            client.id()
        ));
        client.run(&format!(
            "ip link set eth0 up; ethtool -K eth0 {off}
             ip address add 10.1.0.2/24 dev eth0; ip address add fd00:1::2/64 dev eth0 nodad
             ip route add default via 10.1.0.1; ip -6 route add default via fd00:1::1"
        ));
        server.run(&format!(
            "ip link set eth0 up; ethtool -K eth0 {off}
             ip address add 10.3.0.2/24 dev eth0; ip address add fd00:3::2/64 dev eth0 nodad
             ip address add {VIP_V4}/32 dev lo; ip address add {VIP_V6}/128 dev lo nodad
             ip route add default via 10.3.0.1; ip -6 route add default via fd00:3::1
             nft add table inet t
             nft add chain inet t input {{ type filter hook prerouting priority -300 \\; }}
             nft add rule inet t input tcp dport 80 tcp flags syn / syn,ack counter comment syns"
        ));
        Self { client, router, server }
    }

    /// Number of SYNs that reached the server.
    fn server_syns(&self) -> u64 {
        let rules = self.server.run("nft list table inet t");
        let packets = rules.split("packets ").nth(1).unwrap();
        packets.split(' ').next().unwrap().parse().unwrap()
    }

    /// Starts a server that sends one byte to each client.
    fn serve(&self) {
        for vip in [VIP_V4, VIP_V6] {
            let address = SocketAddr::new(vip.parse().unwrap(), 80);
            let listener = self.server.within(move || TcpListener::bind(address).unwrap()).join().unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.unwrap().write_all(b"!");
                }
            });
        }
    }
}

/// A SYN from a random address, as the router sends it.
fn forged(random: &mut Random) -> Vec<u8> {
    let bits = random.bits();
    let syn = match bits >> 63 {
        0 => Packet::segment(&Ipv4Addr::from(11 << 24 | bits as u32 & 0x00ff_ffff).to_string(), VIP_V4, SYN),
        _ => Packet::segment(&Ipv6Addr::from_bits(0x2001 << 112 | u128::from(bits)).to_string(), VIP_V6, SYN),
    };
    let syn = syn.with_macs([BALANCER_MAC, ROUTER_MAC]).with_sequence(random.bits() as u32);
    syn.with_ports([1024 | bits as u16, 80]).frame()
}

#[test]
fn clients_connect_during_a_flood_also_through_address_translation() {
    let thread = std::thread::spawn(|| {
        let Some(mut plane) = Plane::new() else { return };
        let network = Network::new();
        network.serve();
        plane.set_server(Server {
            ifindex: 13,
            destination_mac: SERVER_MAC,
            source_mac: BALANCER_TO_SERVER_MAC,
            ..Server::default()
        });
        plane.defend(&ServiceDefence { syn_cookies: Some(20), ..ServiceDefence::default() });
        plane.attach("c0");

        let is_over = Arc::new(AtomicBool::new(false));
        let flood = {
            let (is_over, mut random) = (Arc::clone(&is_over), Random::seeded(51));
            network.router.within(move || {
                send_frames(12, || {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    (!is_over.load(Ordering::Relaxed)).then(|| forged(&mut random))
                })
            })
        };
        wait_until("flood", || plane.count(REASON_SYN_CHALLENGED) > 500);
        let connects = |namespace: &Namespace, vip: &'static str| {
            let server = SocketAddr::new(vip.parse().unwrap(), 80);
            namespace.within(move || (0..10).map(|_| connect(server)).collect::<Vec<_>>())
        };
        let threads = [
            connects(&network.client, VIP_V4),
            connects(&network.client, VIP_V6),
            connects(&network.router, VIP_V4),
            connects(&network.router, VIP_V6),
        ];
        let results = threads.map(|thread| thread.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        for result in results.iter().flatten() {
            assert_eq!(*result.as_ref().unwrap(), b'!');
        }
        let (validated, syns) = (plane.count(REASON_SYN_VALIDATED), network.server_syns());
        println!("{sent} forged SYNs, {validated} proven connections, {syns} SYNs at the server");
        assert!(validated >= 40, "{validated} of 40 connections proved their address");
        // The burst before the flood was noticed is 16 SYNs a processor at least; 40 are the clients'.
        let processors = std::thread::available_parallelism().unwrap().get() as u64;
        assert!(syns < 200 + 32 * processors, "{syns} SYNs of {sent} reached the server");
        assert!(sent > 20 * processors, "{sent} SYNs are no flood");
    });
    thread.join().unwrap();
}
