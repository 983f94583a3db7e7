//! Forwarding without NAT in a running instance, with servers that have the virtual addresses, and QUIC connection IDs
//! that name servers.

use crate::harness::namespaces::Namespace;
use crate::harness::xdp::{CLIENT_V4, CLIENT_V6, Echo, UdpClient, VIP_V4, VIP_V6, XdpNetwork, server_v4};
use crate::harness::{DEADLINE, Evener, have, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};

const PORT: u16 = 5683;
/// The other address of the client.
const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3));

/// Takes packets out of tunnels and passes them to the kernel of the servers. (The kernels of these tests have no devices of
/// these kinds.)
struct Decapsulator(Vec<Child>);

impl Drop for Decapsulator {
    fn drop(&mut self) {
        for socat in &mut self.0 {
            let _ = socat.kill();
            let _ = socat.wait();
        }
    }
}

impl Decapsulator {
    /// Starts a decapsulator for each source of socat.
    fn start(servers: &Namespace, sources: &[&str]) -> Self {
        let mut decapsulator = Self(Vec::new());
        for (number, source) in sources.iter().enumerate() {
            let device = format!("tun{number}");
            let sink = format!("TUN,tun-name={device},tun-type=tun,iff-no-pi,iff-up");
            let mut socat = servers.command("socat");
            let child =
                socat.args(["-u", "-b", "65535", source, &sink]).stdin(Stdio::null()).spawn().unwrap();
            decapsulator.0.push(child);
            let is_up = format!("ip link show {device} up 2>/dev/null || true");
            wait_until("a decapsulator", || servers.run(&is_up).contains(&device).then_some(()));
            servers.run(&format!("echo 0 >/proc/sys/net/ipv4/conf/{device}/rp_filter"));
        }
        decapsulator
    }
}

/// Gives the servers the virtual addresses.
fn add_virtual_addresses(network: &XdpNetwork) {
    network.servers().run(&format!(
        "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
         echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
         ip address add {VIP_V4}/32 dev lo; ip address add {VIP_V6}/128 dev lo nodad"
    ));
}

/// Returns services `udp` and `tcp` with virtual addresses and additional keys.
fn config(server: &str, vips: &[IpAddr], keys: &str) -> String {
    let listen: String = vips.iter().map(|vip| format!("\"{}\", ", SocketAddr::new(*vip, PORT))).collect();
    let service = |protocol: &str| {
        format!(
            "service \"{protocol}\" {{ plane = \"xdp\", protocol = \"{protocol}\", {keys}, pool = \"p\", \
             listen = {{ {listen} }} }}\n"
        )
    };
    format!("xdp {{ flows = 4096 }}\npool \"p\" {{ \"{server}\" }}\n") + &service("udp") + &service("tcp")
}

/// Exchanges datagrams and a long stream with virtual addresses.
fn exchange(network: &XdpNetwork, vips: &[IpAddr]) {
    for vip in vips.iter().copied() {
        let address = if vip.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 };
        let to = SocketAddr::new(vip, PORT);
        let client = UdpClient::bind(network.client(), address, 0);
        client.ask_until_reply(to);
        for length in [1, 100, 1200] {
            let reply = client.ask(to, &vec![b'x'; length]);
            assert_eq!((reply.from(), reply.server(), reply.client()), (to, vip, client.address()));
        }
        let mut stream = network.client().enter(|| TcpStream::connect(to).unwrap());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{vip} {}\n", stream.local_addr().unwrap()));
        // More than a window, so that full segments are sent.
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&sent).unwrap());
            reader.read_exact(&mut received).unwrap();
        });
        assert!(received == sent, "{vip}: expected the bytes that the client sent");
    }
}

/// Runs services, exchanges traffic, and returns the instance when its counters have the traffic.
fn run(network: &XdpNetwork, server: &str, vips: &[IpAddr], keys: &str) -> Evener {
    let _udp = Echo::udp(network.servers(), vips, &[PORT]);
    let _tcp = Echo::tcp(network.servers(), vips, &[PORT]);
    let evener = network.evener(&config(server, vips, keys));
    evener.expect_log("xdp_attached");
    exchange(network, vips);
    for service in ["udp", "tcp"] {
        wait_until("the counters", || {
            (evener.service_counter(service, "flows") >= vips.len() as u64).then_some(())
        });
    }
    let counters = evener.server(server)["counters"].clone();
    assert_eq!(counters["packets_out"], 0, "responses do not pass the director: {counters}");
    evener
}

#[test]
fn packets_reach_servers_in_the_same_network() {
    let Some(network) = XdpNetwork::two_armed() else { return };
    add_virtual_addresses(&network);
    let keys = "interfaces = { \"eth0\", \"eth1\" }, forward = \"direct\"";
    run(&network, "10.0.4.11", &[VIP_V4], keys);
    run(&network, "fd00:4::11", &[VIP_V6], keys);
}

#[test]
fn packets_reach_servers_through_tunnels() {
    let tunnels: [(&str, &[&str]); 2] =
        [("ipip", &["IP4-RECV:4", "IP4-RECV:41"]), ("gue", &["UDP4-RECV:6080"])];
    for (forward, sources) in tunnels {
        let Some(network) = XdpNetwork::new() else { return };
        if !have("socat") {
            return;
        }
        add_virtual_addresses(&network);
        let _decapsulator = Decapsulator::start(network.servers(), sources);
        let keys = format!("interface = \"eth0\", forward = \"{forward}\"");
        let evener = run(&network, "10.0.2.11", &[VIP_V4, VIP_V6], &keys);
        wait_until("full segments to be refused", || {
            (evener.service_counter("tcp", "xdp.responded_too_big") > 0).then_some(())
        });
    }
}

#[test]
fn a_quic_connection_id_names_the_server_from_any_address() {
    let Some(network) = XdpNetwork::new() else { return };
    let servers = [(server_v4(11), "a101"), (server_v4(12), "a102"), (server_v4(13), "a103")];
    let addresses = servers.map(|(address, _)| address);
    let _echo = Echo::udp(network.servers(), &addresses, &[PORT]);
    let pool =
        servers.map(|(address, id)| format!("{{ \"{address}:{PORT}\", quic_id = \"{id}\" }}")).join(", ");
    let config = format!(
        "xdp {{ flows = 4096 }}
         pool \"p\" {{ {pool} }}
         service \"quic\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"udp\", pool = \"p\", \
                             listen = \"{VIP_V4}:{PORT}\", quic_id_length = 2 }}"
    );
    let evener = network.evener(&config);
    let to = SocketAddr::new(VIP_V4, PORT);
    let client = |address| UdpClient::bind(network.client(), address, 0);
    client(CLIENT_V4).ask_until_reply(to);
    let mut routed = 0;
    for (number, (server, _)) in (1..).zip(servers) {
        // Rotation bits and length, the server ID, and a nonce.
        let id = [0x06, 0xa1, number, 1, 2, 3, 4];
        let short = [&[0x43], &id[..], b" protected"].concat();
        let long = [&[0xe3, 0, 0, 0, 1, id.len() as u8], &id[..], &[0], b" protected"].concat();
        for address in [CLIENT_V4, OTHER_V4] {
            let client = client(address);
            for packet in [&short, &long] {
                assert_eq!(client.ask(to, packet).server(), server, "{address}");
                routed += 1;
            }
            assert_eq!(client.server(to), server, "the association of the client's new address");
        }
    }
    wait_until("the counter", || (evener.service_counter("quic", "xdp.quic_routed") == routed).then_some(()));

    // A server that is not available loses its connections to others.
    let first = format!("p/{}:{PORT}", servers[0].0);
    assert!(evener.run_command(&["maintenance", &first]).status.success());
    let packet = [0x43, 0x06, 0xa1, 1, 1, 2, 3, 4, b'x'];
    wait_until("another server", || {
        (client(OTHER_V4).ask(to, &packet).server() != servers[0].0).then_some(())
    });
}
