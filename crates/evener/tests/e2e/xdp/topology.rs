//! The network of the XDP tests carries packets without the XDP plane.

use crate::harness::wait_until;
use crate::harness::xdp::{
    CLIENT_V4, CLIENT_V6, Echo, Traffic, UdpClient, VIP_V4, VIP_V6, XdpNetwork, server_v4, server_v6,
};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};

const PORT: u16 = 5683;

#[test]
fn clients_reach_servers_and_the_virtual_addresses() {
    let Some(network) = XdpNetwork::new() else { return };
    let servers = [server_v4(11), server_v4(13), server_v6(11), server_v6(13)];
    let _udp = Echo::udp(network.servers(), &servers, &[PORT]);
    let _tcp = Echo::tcp(network.servers(), &servers, &[PORT]);
    let _director = Echo::udp(network.director(), &[VIP_V4, VIP_V6], &[PORT]);
    for server in servers {
        let client = client_of(&network, server);
        let to = SocketAddr::new(server, PORT);
        let reply = client.ask(to, b"datagram");
        assert_eq!((reply.from(), reply.server(), reply.client()), (to, server, client.address()));
        let mut stream = network.client().enter(|| TcpStream::connect(to).unwrap());
        let expected = format!("{server} {}\n", stream.local_addr().unwrap());
        let mut line = vec![0; expected.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
    for address in [VIP_V4, VIP_V6] {
        let reply = client_of(&network, address).ask(SocketAddr::new(address, PORT), b"datagram");
        assert_eq!(reply.server(), address, "a packet that XDP does not take reaches the director's kernel");
    }
}

fn client_of(network: &XdpNetwork, peer: IpAddr) -> UdpClient {
    UdpClient::bind(network.client(), if peer.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 }, 0)
}

#[test]
fn packets_of_servers_pass_the_director() {
    let Some(network) = XdpNetwork::two_armed() else { return };
    let servers: Vec<IpAddr> =
        ["10.0.2.12", "fd00:2::12", "10.0.4.12", "fd00:4::12"].map(|text| text.parse().unwrap()).into();
    let _udp = Echo::udp(network.servers(), &servers, &[PORT]);
    network.director().run(
        "nft add table inet count
         nft add chain inet count forward '{ type filter hook forward priority 0; }'
         nft add rule inet count forward udp sport 5683 counter",
    );
    for (number, server) in servers.iter().enumerate() {
        client_of(&network, *server).ask(SocketAddr::new(*server, PORT), b"datagram");
        let counted = network.director().run("nft list ruleset");
        assert!(counted.contains(&format!("packets {} ", number + 1)), "{server}: {counted}");
    }
}

#[test]
fn a_stream_without_a_balancer_loses_nothing() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &[server_v4(12)], &[PORT]);
    let to = SocketAddr::new(server_v4(12), PORT);
    client_of(&network, to.ip()).ask(to, b"first");
    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 16, 20_000);
    traffic.wait_for(20_000);
    let report = traffic.stop();
    report.expect_unhurt();
    assert_eq!(report.flows_of(server_v4(12)), 16);
}

#[test]
fn a_stream_counts_lost_datagrams() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &[server_v4(12)], &[PORT]);
    let to = SocketAddr::new(server_v4(12), PORT);
    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 4, 1000);
    traffic.wait_for(100);
    network.gateway().run("ip link set servers down");
    wait_until("the device to be down", || {
        network.gateway().run("ip link show servers").contains("state DOWN").then_some(())
    });
    network.gateway().run("ip link set servers up");
    traffic.wait_for(100);
    assert!(traffic.stop().lost() > 0, "expected lost datagrams while the device was down");
}
