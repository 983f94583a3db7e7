//! The features that users of sbulb rely on, with real sockets, for IPv4 and IPv6. This table has each part of the page about
//! sbulb that the front end follows, and its test. `TEST_RUN` means the tests of packets in crates/xdp/tests.
//!
//! | part | test |
//! |---|---|
//! | the command line as it stands in its README | [`the_command_line_of_the_readme_runs_as_it_stands`] |
//! | long names, defaults, errors | unit tests of `compat/sbulb/command_line.rs`; `sbulb_command.rs` |
//! | one address family | `sbulb_command.rs`: `wrong_command_lines_are_refused_in_the_style_of_argparse` |
//! | the file, every second; servers that stay keep their places | `sbulb_servers.rs` |
//! | sd_notify, detached at exit | `sbulb_command.rs` |
//! | round robin, then the same server; one server for all ports of a client | `clients_keep_their_servers` |
//! | replies come from the virtual server; ports never change | `clients_keep_their_servers` |
//! | servers that send first | `servers_can_send_first` |
//! | refused packets of other servers | `packets_of_another_server_are_dropped` |
//! | associations until the table is full, without a timeout | `more_clients_than_associations_are_served`; DTLS |
//! | clients of removed servers | `sbulb_servers.rs` |
//! | TTL, checksums, MAC addresses | `TEST_RUN`; a wrong checksum would fail every test here |
//! | passed to the kernel: other protocols, ports and addresses | `other_packets_reach_the_kernel` |
//! | fragments, which sbulb leaves to the kernel, are balanced | `large_datagrams_arrive` |
//! | malformed packets, IPv4 options, extension headers | `TEST_RUN` |
//! | a UDP checksum of zero stays | `datagrams_without_a_checksum_arrive`; `TEST_RUN` |
//! | events with their levels | [`decisions_are_logged_up_to_the_level`] |
//! | DTLS sessions for days | `sbulb_dtls.rs` |
//! | the process ends, and associations stay | `sbulb_dtls.rs`, [`no_packet_is_lost_by_kills_and_restarts`] |

use crate::harness::have;
use crate::harness::sbulb::Sbulb;
use crate::harness::xdp::{
    CLIENT_V4, CLIENT_V6, Echo, Traffic, UdpClient, VIP_V4, VIP_V6, XdpNetwork, server_v4, server_v6,
};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

pub(super) const PORTS: [u16; 2] = [5683, 5684];

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn client(self) -> IpAddr {
        match self {
            Self::V4 => CLIENT_V4,
            Self::V6 => CLIENT_V6,
        }
    }

    pub(super) fn server(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => server_v4(number),
            Self::V6 => server_v6(number),
        }
    }

    pub(super) fn servers(self) -> [IpAddr; 3] {
        [11, 12, 13].map(|number| self.server(number))
    }

    /// Returns the virtual address with a port.
    pub(super) fn virtual_server(self, port: u16) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::new(VIP_V4, port),
            Self::V6 => SocketAddr::new(VIP_V6, port),
        }
    }

    /// Returns a command line for all servers and both ports.
    pub(super) fn command_line(self) -> String {
        let [one, two, three] = self.servers();
        let [first, second] = PORTS;
        let address = self.virtual_server(first).ip();
        format!("eth0 -vs {address} -rs {one} {two} {three} -p {first} {second}")
    }
}

/// Makes a test for each family from a function.
macro_rules! for_both_families {
    ($($name:ident;)*) => {$(
        mod $name {
            #[test]
            fn v4() {
                super::$name(super::Family::V4);
            }

            #[test]
            fn v6() {
                super::$name(super::Family::V6);
            }
        }
    )*};
}

for_both_families! {
    clients_keep_their_servers;
    servers_can_send_first;
    packets_of_another_server_are_dropped;
    more_clients_than_associations_are_served;
    other_packets_reach_the_kernel;
    large_datagrams_arrive;
}

fn clients_keep_their_servers(family: Family) {
    let Some(network) = XdpNetwork::new() else { return };
    let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let _sbulb = Sbulb::start(&network, &family.command_line());
    let [first, second] = PORTS.map(|port| family.virtual_server(port));
    let mut count: HashMap<IpAddr, usize> = HashMap::new();
    let clients: Vec<UdpClient> =
        (0..60).map(|_| UdpClient::bind(network.client(), family.client(), 0)).collect();
    let servers: Vec<IpAddr> = clients
        .iter()
        .map(|client| {
            let reply = client.ask(first, b"hello");
            assert_eq!((reply.from(), reply.client()), (first, client.address()));
            *count.entry(reply.server()).or_default() += 1;
            reply.server()
        })
        .collect();
    // Each CPU takes the servers in turn.
    let cpus = std::thread::available_parallelism().unwrap().get();
    for server in family.servers() {
        let share = count.get(&server).copied().unwrap_or_default();
        assert!(share + cpus >= 20, "expected equal shares, got {count:?}");
    }
    for (client, server) in clients.iter().zip(&servers) {
        let reply = client.ask(second, b"another port");
        assert_eq!((reply.from(), reply.server()), (second, *server), "one server for both ports");
        assert_eq!(client.server(first), *server);
    }
}

fn servers_can_send_first(family: Family) {
    let Some(network) = XdpNetwork::new() else { return };
    let echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let _sbulb = Sbulb::start(&network, &family.command_line());
    let [first, second] = PORTS.map(|port| family.virtual_server(port));
    for server in family.servers() {
        let client = UdpClient::bind(network.client(), family.client(), 0);
        echo.send_from(SocketAddr::new(server, PORTS[1]), client.address(), b"wake up");
        assert_eq!(client.receive(), (second, b"wake up".to_vec()));
        assert_eq!(client.server(first), server, "the server that sent first is the client's server");
    }
}

fn packets_of_another_server_are_dropped(family: Family) {
    const OTHER_PORT: u16 = 9999;
    let Some(network) = XdpNetwork::new() else { return };
    let echo = Echo::udp(network.servers(), &family.servers(), &[PORTS[0], OTHER_PORT]);
    let _sbulb = Sbulb::start(&network, &family.command_line());
    let virtual_server = family.virtual_server(PORTS[0]);
    let client = UdpClient::bind(network.client(), family.client(), 0);
    let chosen = client.server(virtual_server);
    let others = family.servers().into_iter().filter(|server| *server != chosen);
    for server in others.clone() {
        echo.send_from(SocketAddr::new(server, PORTS[0]), client.address(), b"refused");
    }
    echo.send_from(SocketAddr::new(chosen, PORTS[0]), client.address(), b"of the chosen server");
    assert_eq!(client.receive(), (virtual_server, b"of the chosen server".to_vec()));
    // The port is not balanced, so the packets are none of the balancer's.
    for server in others {
        echo.send_from(SocketAddr::new(server, OTHER_PORT), client.address(), b"of another port");
        assert_eq!(client.receive(), (SocketAddr::new(server, OTHER_PORT), b"of another port".to_vec()));
    }
    assert_eq!(client.server(virtual_server), chosen);
}

fn more_clients_than_associations_are_served(family: Family) {
    let Some(network) = XdpNetwork::new() else { return };
    let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let _sbulb = Sbulb::start(&network, &(family.command_line() + " -ma 64"));
    let virtual_server = family.virtual_server(PORTS[0]);
    for _ in 0..500 {
        UdpClient::bind(network.client(), family.client(), 0).ask(virtual_server, b"hello");
    }
}

fn other_packets_reach_the_kernel(family: Family) {
    let Some(network) = XdpNetwork::new() else { return };
    let _echo = Echo::udp(network.servers(), &family.servers(), &[PORTS[0], 7]);
    let virtual_server = family.virtual_server(PORTS[0]);
    // The director's chosen servers, on the virtual address.
    let _udp = Echo::udp(network.director(), &[virtual_server.ip()], &[7]);
    let _tcp = Echo::tcp(network.director(), &[virtual_server.ip()], &[PORTS[0]]);
    let _sbulb = Sbulb::start(&network, &family.command_line());
    let client = UdpClient::bind(network.client(), family.client(), 0);
    assert!(family.servers().contains(&client.server(virtual_server)));
    assert_eq!(client.server(family.virtual_server(7)), virtual_server.ip(), "another port");
    let direct = SocketAddr::new(family.server(12), 7);
    assert_eq!(client.server(direct), direct.ip(), "another address");
    let mut stream = network.client().enter(|| TcpStream::connect(virtual_server).unwrap());
    let line = crate::harness::line(&mut stream);
    assert!(line.starts_with(&format!("{} ", virtual_server.ip())), "another protocol: {line}");
}

fn large_datagrams_arrive(family: Family) {
    let Some(network) = XdpNetwork::new() else { return };
    let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let _sbulb = Sbulb::start(&network, &family.command_line());
    let client = UdpClient::bind(network.client(), family.client(), 0);
    for length in [1400, 1473, 4000, 30_000] {
        println!("{length} bytes");
        let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let reply = client.ask(family.virtual_server(PORTS[0]), &payload);
        assert_eq!((reply.payload().len(), reply.client()), (length, client.address()));
    }
}

#[test]
fn datagrams_without_a_checksum_arrive() {
    /// Sends a datagram with `SO_NO_CHECK`, and prints the reply.
    const CLIENT: &str = "
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, 11, 1)
client.settimeout(20)
client.sendto(b'no checksum', ('10.0.9.9', 5683))
print(client.recvfrom(2048)[0].decode())
";
    let Some(network) = XdpNetwork::new() else { return };
    if !have("python3") {
        return;
    }
    let _echo = Echo::udp(network.servers(), &Family::V4.servers(), &PORTS);
    let _sbulb = Sbulb::start(&network, &Family::V4.command_line());
    let output = network.client().command("python3").args(["-c", CLIENT]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("no checksum"), "{printed} {}", String::from_utf8_lossy(&output.stderr));
}

/// The example of sbulb's README, with its addresses.
#[test]
fn the_command_line_of_the_readme_runs_as_it_stands() {
    let Some(network) = XdpNetwork::new() else { return };
    let virtual_server: IpAddr = "10.188.7.99".parse().unwrap();
    let servers: [IpAddr; 2] = ["10.188.100.163", "10.188.100.230"].map(|text| text.parse().unwrap());
    network.add_virtual_address(virtual_server);
    servers.into_iter().for_each(|server| network.add_server_address(server));
    let _echo = Echo::udp(network.servers(), &servers, &PORTS);
    let _sbulb =
        Sbulb::start(&network, "eth0 -vs 10.188.7.99 -rs 10.188.100.163 10.188.100.230 -p 5683 5684");
    let mut seen = Vec::new();
    for _ in 0..20 {
        let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
        let first = client.ask(SocketAddr::new(virtual_server, 5683), b"coap");
        let second = client.ask(SocketAddr::new(virtual_server, 5684), b"coaps");
        assert_eq!(first.server(), second.server());
        seen.push(first.server());
    }
    assert!(servers.iter().all(|server| seen.contains(server)), "expected both servers: {seen:?}");
}

#[test]
fn decisions_are_logged_up_to_the_level() {
    let Some(network) = XdpNetwork::new() else { return };
    let echo = Echo::udp(network.servers(), &Family::V4.servers(), &PORTS);
    let virtual_server = Family::V4.virtual_server(PORTS[0]);
    let refuse = |client: &UdpClient| {
        let chosen = client.server(virtual_server);
        let other = Family::V4.servers().into_iter().find(|server| *server != chosen).unwrap();
        echo.send_from(SocketAddr::new(other, PORTS[0]), client.address(), b"refused");
        (chosen, other)
    };
    let mut sbulb = Sbulb::start(&network, &(Family::V4.command_line() + " -l DEBUG"));
    let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
    let (chosen, other) = refuse(&client);
    // A new association has the addresses before and after; a refused packet has the server.
    sbulb.expect_log(&client.address().to_string());
    sbulb.expect_log(&virtual_server.to_string());
    sbulb.expect_log(&SocketAddr::new(chosen, PORTS[0]).to_string());
    sbulb.expect_log(&SocketAddr::new(other, PORTS[0]).to_string());
    sbulb.end("TERM");
    drop(sbulb);
    // Neither is an error, which is the default level.
    let sbulb = Sbulb::start(&network, &Family::V4.command_line());
    let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
    refuse(&client);
    client.server(virtual_server);
    assert!(!sbulb.log().contains(&client.address().to_string()), "{}", sbulb.log());
}

#[test]
fn no_packet_is_lost_by_kills_and_restarts() {
    let Some(network) = XdpNetwork::new() else { return };
    let _echo = Echo::udp(network.servers(), &Family::V4.servers(), &PORTS);
    let mut sbulb = Sbulb::start(&network, &Family::V4.command_line());
    let virtual_server = Family::V4.virtual_server(PORTS[0]);
    let traffic = Traffic::start(network.client(), CLIENT_V4, virtual_server, 32, 5000);
    for _ in 0..3 {
        traffic.wait_for(2000);
        sbulb.end("KILL");
        traffic.wait_for(2000);
        sbulb.start_again();
    }
    traffic.wait_for(2000);
    traffic.stop().expect_unhurt();
}

/// Runs `evener sbulb` with words on the director, and returns its exit status and its standard error.
pub(super) fn refused(network: &XdpNetwork, words: &str) -> (Option<i32>, String) {
    let mut command: Command = network.evener_command();
    let output = command.arg("sbulb").args(words.split_whitespace()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
