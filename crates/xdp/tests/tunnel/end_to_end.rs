//! Real sockets through real packets: a client, a gateway, the program, and a server that takes packets out of tunnels.

use crate::decapsulator::Decapsulator;
use crate::network::{Namespace, Network, device};
use crate::packet::{ICMP, ICMPV6};
use crate::plane::{PORT, Plane, VIP_V4, VIP_V6, server, service};
use aya::programs::XdpMode;
use evener_xdp::contract::*;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::Duration;

const SERVER_V4: &str = "10.0.2.11";
const SERVER_V6: &str = "fd00:2::11";
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a transfer: more than a window, so that full segments are sent.
const TRANSFER: usize = 300_000;
const CLIENTS: [(&str, &str); 2] = [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)];

/// A network whose director has the program.
struct Scene {
    network: Network,
    plane: Plane,
    decapsulator: Decapsulator,
}

impl Scene {
    /// Attaches the program, with servers at these ends of tunnels.
    fn new(service: Service, servers: &[&str]) -> Option<Self> {
        let mut plane = Plane::new(service, servers)?;
        let network = Network::new();
        let (_, server_mac) = network.server.enter(|| device("eth1"));
        let (ifindex, source_mac) = network.director.enter(|| device("eth1"));
        for (slot, address) in (1..).zip(servers) {
            let known = Server { ifindex, source_mac, destination_mac: server_mac, ..server(slot, address) };
            // No next hop is needed to send packets back where they came from; the MTU is the interface's.
            let unknown = Server { ifindex: 0, mtu: 0, ..server(slot, address) };
            let is_routed = service.forward == FORWARD_DIRECT || service.next_hop == NEXT_HOP_ROUTE;
            plane.set_server(slot, if is_routed { known } else { unknown });
        }
        network.director.enter(|| plane.program().attach("eth0", XdpMode::Driver).unwrap());
        let decapsulator = Decapsulator::start(&network.server);
        Some(Self { network, plane, decapsulator })
    }

    fn udp_client(&self, source: &str, vip: &str) -> UdpSocket {
        self.network.client.enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
            socket.connect(SocketAddr::new(vip.parse().unwrap(), PORT)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket
        })
    }
}

/// A server that returns datagrams until it receives "end".
struct Echo(JoinHandle<()>);

impl Echo {
    fn start(server: &Namespace, vip: &str) -> Self {
        let address = SocketAddr::new(vip.parse().unwrap(), PORT);
        let socket = server.enter(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(TIMEOUT * 3)).unwrap();
        Self(std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                if &buffer[..length] == b"end" {
                    return;
                }
                socket.send_to(&buffer[..length], client).unwrap();
            }
        }))
    }

    fn end(self, client: &UdpSocket) {
        client.send(b"end").unwrap();
        self.0.join().unwrap();
    }
}

/// Returns the bytes of one connection, when the client has sent all.
fn echo_connection(server: &Namespace, vip: &str) -> JoinHandle<()> {
    let address = SocketAddr::new(vip.parse().unwrap(), PORT);
    let listener = server.enter(|| TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    })
}

fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) {
    // SAFETY: the value is an int that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn int_option(socket: &impl AsRawFd, level: i32, option: i32) -> i32 {
    let (mut value, mut length) = (0_i32, size_of::<i32>() as u32);
    // SAFETY: value and length live during the call, and the length is the value's.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// Sends datagrams and expects them back.
fn exchange_datagrams(scene: &Scene, client: &str, vip: &str, what: &str) {
    let echo = Echo::start(&scene.network.server, vip);
    let socket = scene.udp_client(client, vip);
    let mut buffer = [0; 2048];
    for length in [1, 100, 1200] {
        let sent: Vec<u8> = (0..length).map(|at| at as u8).collect();
        socket.send(&sent).unwrap();
        let received =
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}, {length} bytes: {error}"));
        assert!(buffer[..received] == sent, "{what}");
    }
    echo.end(&socket);
}

/// Sends many bytes over TCP and expects them back.
fn exchange_stream(scene: &Scene, vip: &str, what: &str) {
    let server = echo_connection(&scene.network.server, vip);
    let sent: Vec<u8> = (0..TRANSFER).map(|at| (at * 7) as u8).collect();
    let address = SocketAddr::new(vip.parse().unwrap(), PORT);
    let mut client = scene.network.client.enter(|| TcpStream::connect_timeout(&address, TIMEOUT)).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.set_write_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap_or_else(|error| panic!("{what}, TCP: {error}"));
    assert!(received == sent, "{what}: {} of {TRANSFER} bytes", received.len());
    server.join().unwrap();
}

fn exchange(scene: &Scene, client: &str, vip: &str, what: &str) {
    exchange_datagrams(scene, client, vip, what);
    exchange_stream(scene, vip, what);
}

#[test]
fn sockets_work_through_direct_forwarding() {
    let Some(scene) = Scene::new(service(FORWARD_DIRECT), &[SERVER_V4]) else { return };
    for (client, vip) in CLIENTS {
        exchange(&scene, client, vip, "direct");
    }
    assert!(scene.decapsulator.take_received().is_empty(), "no tunnel is used");
}

#[test]
fn sockets_work_through_tunnels_and_full_segments_shrink_to_fit() {
    for forward in [FORWARD_IPIP, FORWARD_GUE] {
        for server in [SERVER_V4, SERVER_V6] {
            let Some(mut scene) = Scene::new(service(forward), &[server]) else { return };
            for (client, vip) in CLIENTS {
                exchange(&scene, client, vip, &format!("mode {forward}, {client} to {server}"));
            }
            // The connections began with segments of 1500 bytes, which the server offers.
            assert!(scene.plane.count(REASON_RESPONDED_TOO_BIG) >= 2);
        }
    }
}

/// Options of the sockets of a family, and bytes of IP and UDP headers.
struct PathMtu {
    level: i32,
    discover: i32,
    always: i32,
    mtu: i32,
    headers: usize,
}

const PATH_MTU: [PathMtu; 2] = [
    PathMtu {
        level: libc::IPPROTO_IP,
        discover: libc::IP_MTU_DISCOVER,
        always: libc::IP_PMTUDISC_DO,
        mtu: libc::IP_MTU,
        headers: 28,
    },
    PathMtu {
        level: libc::IPPROTO_IPV6,
        discover: libc::IPV6_MTU_DISCOVER,
        always: libc::IPV6_PMTUDISC_DO,
        mtu: libc::IPV6_MTU,
        headers: 48,
    },
];

impl PathMtu {
    /// Returns a client's socket that does not fragment.
    fn socket(&self, scene: &Scene, (client, vip): (&str, &str)) -> UdpSocket {
        let socket = scene.udp_client(client, vip);
        set_option(&socket, self.level, self.discover, self.always);
        socket
    }

    /// Sends full packets until the client's kernel knows that they are too big, and returns the MTU that it knows.
    fn learn(&self, scene: &Scene, addresses: (&str, &str)) -> i32 {
        let socket = self.socket(scene, addresses);
        let full = vec![0; 1500 - self.headers];
        let deadline = std::time::Instant::now() + TIMEOUT;
        let error = loop {
            if let Err(error) = socket.send(&full) {
                break error;
            }
            assert!(std::time::Instant::now() < deadline, "{addresses:?}: an error within {TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{addresses:?}");
        int_option(&socket, self.level, self.mtu)
    }
}

#[test]
fn clients_learn_the_mtu_of_the_path() {
    let Some(scene) = Scene::new(service(FORWARD_GUE), &[SERVER_V6]) else { return };
    for (addresses, path) in CLIENTS.into_iter().zip(PATH_MTU) {
        // The server's MTU minus 40 bytes of IPv6 and 8 of UDP.
        assert_eq!(path.learn(&scene, addresses), 1500 - 48);
        // The largest packet that fits has a response.
        let echo = Echo::start(&scene.network.server, addresses.1);
        let socket = path.socket(&scene, addresses);
        let sent = vec![7; 1500 - 48 - path.headers];
        socket.send(&sent).unwrap();
        let mut buffer = [0; 2048];
        assert_eq!(socket.recv(&mut buffer).unwrap(), sent.len());
        echo.end(&socket);
    }
}

#[test]
fn clients_learn_the_mtu_of_the_next_hop_with_nat() {
    const MTU: u32 = 1400;
    let nat = Service { next_hop: NEXT_HOP_ROUTE, ..service(FORWARD_NAT) };
    for ((addresses, path), server_address) in CLIENTS.into_iter().zip(PATH_MTU).zip([SERVER_V4, SERVER_V6]) {
        let Some(mut scene) = Scene::new(nat, &[server_address]) else { return };
        scene.network.director.run(&format!("ip link set dev eth1 mtu {MTU}"));
        scene.plane.change_server(1, |server| server.mtu = MTU);
        assert_eq!(path.learn(&scene, addresses), MTU as i32);
        assert!(scene.plane.count(REASON_RESPONDED_TOO_BIG) > 0);
        // The largest packet that fits arrives.
        let address = SocketAddr::new(server_address.parse().unwrap(), PORT);
        let server = scene.network.server.enter(|| UdpSocket::bind(address).unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let sent = vec![7; MTU as usize - path.headers];
        path.socket(&scene, addresses).send(&sent).unwrap();
        assert_eq!(server.recv(&mut [0; 2048]).unwrap(), sent.len());
    }
}

/// Opens a raw socket that receives ICMP messages.
fn open_icmp(v4: bool) -> UdpSocket {
    use std::os::fd::FromRawFd;
    let (family, protocol) = if v4 { (libc::AF_INET, ICMP) } else { (libc::AF_INET6, ICMPV6) };
    // SAFETY: the call has no pointers.
    let socket = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and has no other owner; only functions that any socket has are used.
    let socket = unsafe { UdpSocket::from_raw_fd(socket) };
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[test]
fn the_virtual_address_is_a_hop_of_traceroute() {
    for forward in [FORWARD_NAT, FORWARD_IPIP, FORWARD_GUE] {
        let Some(scene) = Scene::new(service(forward), &[SERVER_V4]) else { return };
        for (client, vip) in CLIENTS {
            let (v4, vip_address): (bool, IpAddr) = (!client.contains(':'), vip.parse().unwrap());
            let icmp = scene.network.client.enter(|| open_icmp(v4));
            let socket = scene.udp_client(client, vip);
            // The gateway is the first hop.
            if v4 {
                set_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, 2);
            } else {
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 2);
            }
            socket.send(b"who is there").unwrap();
            let mut buffer = [0; 2048];
            let kind = loop {
                let (_, from) = icmp.recv_from(&mut buffer).unwrap();
                // Raw sockets of IPv4 have the header of 20 bytes; neighbours of IPv6 are other messages.
                let kind = buffer[if v4 { 20 } else { 0 }];
                if from.ip() == vip_address {
                    break kind;
                }
            };
            assert_eq!(kind, if v4 { 11 } else { 3 }, "{client}, mode {forward}: time exceeded");
        }
    }
}

#[test]
fn a_quic_client_that_changes_its_address_stays_with_its_server() {
    let quic = Service { flags: SERVICE_QUIC, quic_id_length: 4, ..service(FORWARD_IPIP) };
    let servers = [SERVER_V4, "10.0.2.12"];
    let Some(mut scene) = Scene::new(quic, &servers) else { return };
    for (slot, server) in [(2, "10.0.2.12"), (1, SERVER_V4)] {
        scene.plane.write_quic_server(&[0xaa, 0xbb, 0xcc, slot as u8], slot);
        // A short header, and a connection ID with a nonce of 8 bytes.
        let packet = [&[0x40, 0x0c, 0xaa, 0xbb, 0xcc, slot as u8][..], &[9; 8], &[5; 30]].concat();
        scene.decapsulator.take_received();
        let echo = Echo::start(&scene.network.server, VIP_V4);
        let mut sent = 0;
        for client in ["10.0.1.2", "10.0.1.3", "10.0.1.2"] {
            let socket = scene.udp_client(client, VIP_V4);
            for _ in 0..5 {
                socket.send(&packet).unwrap();
                socket.recv(&mut [0; 2048]).unwrap();
                sent += 1;
            }
        }
        let received = scene.decapsulator.take_received();
        echo.end(&scene.udp_client("10.0.1.2", VIP_V4));
        assert_eq!(received.into_iter().collect::<Vec<_>>(), [(server.parse::<IpAddr>().unwrap(), sent)]);
    }
}
