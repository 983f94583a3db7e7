//! Services of the XDP plane in a running instance, with real sockets: forwarding, states of servers, reloads, and an
//! instance that ends while the kernel goes on.

use crate::harness::wait_until;
use crate::harness::xdp::{
    CLIENT_V4, CLIENT_V6, Echo, Traffic, UdpClient, VIP_V4, VIP_V6, XdpNetwork, server_v4, server_v6,
};
use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

const PORT: u16 = 5683;

/// Returns pools `p4` and `p6` of servers with the last parts of their addresses and their keys, and keys of the pools.
fn pool(servers: &[(u8, &str)], keys: &str) -> String {
    let pool = |name: &str, address: fn(u8) -> IpAddr| {
        let server = |(number, keys): &(u8, &str)| {
            format!("server \"{}\" {{ {keys} }}, ", SocketAddr::new(address(*number), PORT))
        };
        let servers: String = servers.iter().map(server).collect();
        format!("pool \"{name}\" {{ {servers} {keys} }}\n")
    };
    pool("p4", server_v4) + &pool("p6", server_v6)
}

/// Returns services for both transports and families, such as `udp4`.
fn services() -> String {
    let service = |protocol: &str, family: u8, vip: IpAddr| {
        format!(
            "service \"{protocol}{family}\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"{protocol}\", \
             listen = \"{}\", pool = \"p{family}\" }}\n",
            SocketAddr::new(vip, PORT)
        )
    };
    let both = |protocol| service(protocol, 4, VIP_V4) + &service(protocol, 6, VIP_V6);
    both("udp") + &both("tcp")
}

fn plain(servers: &[(u8, &str)]) -> String {
    format!("xdp {{ flows = 4096 }}\n{}{}", pool(servers, "policy = \"round_robin\""), services())
}

fn all_servers() -> Vec<IpAddr> {
    (11..=13).flat_map(|number| [server_v4(number), server_v6(number)]).collect()
}

fn client(network: &XdpNetwork, vip: IpAddr) -> UdpClient {
    UdpClient::bind(network.client(), if vip.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 }, 0)
}

/// Returns the server that a new TCP connection gets.
fn tcp_server(network: &XdpNetwork, vip: IpAddr) -> IpAddr {
    let mut stream = network.client().enter(|| TcpStream::connect((vip, PORT)).unwrap());
    let (mut word, mut byte) = (Vec::new(), [0]);
    while stream.read_exact(&mut byte).is_ok() && byte[0] != b' ' {
        word.push(byte[0]);
    }
    String::from_utf8(word).unwrap().parse().unwrap()
}

#[test]
fn clients_of_both_transports_and_families_are_forwarded_and_counted() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let _tcp = Echo::tcp(network.servers(), &all_servers(), &[PORT]);
    let evener = network.evener(&plain(&[(11, ""), (12, ""), (13, "")]));
    evener.expect_log("xdp_attached interface=eth0 mode=native");
    for vip in [VIP_V4, VIP_V6] {
        let to = SocketAddr::new(vip, PORT);
        let first = client(&network, vip);
        let reply = first.ask_until_reply(to);
        assert_eq!((reply.from(), reply.client()), (to, first.address()));
        assert!((0..5).all(|_| first.server(to) == reply.server()), "an association stays");
        let others: BTreeSet<IpAddr> = (0..6).map(|_| client(&network, vip).server(to)).collect();
        assert_eq!(others.len(), 3, "new clients get the servers in turn: {others:?}");
        let streams: BTreeSet<IpAddr> = (0..6).map(|_| tcp_server(&network, vip)).collect();
        assert_eq!(streams.len(), 3, "{streams:?}");
    }
    wait_until("the counters", || {
        let count = |service, name| evener.service_counter(service, name);
        let flows = ["udp4", "udp6", "tcp4", "tcp6"].map(|service| count(service, "flows"));
        flows.iter().all(|flows| (6..=8).contains(flows)).then_some(())
    });
    let status = String::from_utf8(evener.run_command(&["status"]).stdout).unwrap();
    assert!(status.contains(&format!("{VIP_V4}:{PORT}")), "{status}");
}

#[test]
fn servers_that_drain_keep_their_flows_and_servers_that_are_down_lose_them() {
    let Some(network) = XdpNetwork::new() else { return };
    let mut tcp = Some(Echo::tcp(network.servers(), &all_servers(), &[PORT]));
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let check = "policy = \"round_robin\", check = check.tcp { every = \"200ms\", rise = 1, fall = 1 }";
    let config =
        format!("xdp {{ flows = 4096 }}\n{}{}", pool(&[(11, ""), (12, ""), (13, "")], check), services());
    let evener = network.evener(&config);
    let to = SocketAddr::new(VIP_V4, PORT);
    client(&network, VIP_V4).ask_until_reply(to);
    let clients: Vec<UdpClient> = (0..6).map(|_| client(&network, VIP_V4)).collect();
    let servers: Vec<IpAddr> = clients.iter().map(|client| client.server(to)).collect();
    assert!(servers.contains(&server_v4(11)), "{servers:?}");

    let drained = format!("p4/{}:{PORT}", server_v4(11));
    assert!(evener.run_command(&["drain", &drained]).status.success());
    wait_until("new flows to avoid the draining server", || {
        let new: Vec<IpAddr> = (0..4).map(|_| client(&network, VIP_V4).server(to)).collect();
        (!new.contains(&server_v4(11))).then_some(())
    });
    let now: Vec<IpAddr> = clients.iter().map(|client| client.server(to)).collect();
    assert_eq!(now, servers, "known flows stay");

    assert!(evener.run_command(&["maintenance", &drained]).status.success());
    wait_until("flows to leave the server in maintenance", || {
        let now: Vec<IpAddr> = clients.iter().map(|client| client.server(to)).collect();
        (!now.contains(&server_v4(11))).then_some(())
    });
    assert!(evener.run_command(&["ready", &drained]).status.success());

    // All servers fail their checks except one.
    drop(tcp.take());
    let _one = Echo::tcp(network.servers(), &[server_v4(13)], &[PORT]);
    wait_until("all flows to use the last server", || {
        let now: Vec<IpAddr> = clients.iter().map(|client| client.server(to)).collect();
        now.iter().all(|server| *server == server_v4(13)).then_some(())
    });
    assert!(evener.service_counter("udp4", "flows_moved") > 0);
}

#[test]
fn weights_divide_new_flows() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let config = |weight: &str| {
        let servers = pool(&[(11, weight), (12, "")], "policy = \"weighted\"");
        format!("xdp {{ flows = 4096 }}\n{servers}{}", services())
    };
    let evener = network.evener(&config("weight = 3"));
    let to = SocketAddr::new(VIP_V4, PORT);
    // A port that is used again belongs to a known flow, so all clients keep theirs.
    let mut clients = vec![client(&network, VIP_V4)];
    clients[0].ask_until_reply(to);
    let mut of_first = || {
        let new: Vec<UdpClient> = (0..40).map(|_| client(&network, VIP_V4)).collect();
        let count = new.iter().filter(|client| client.server(to) == server_v4(11)).count();
        clients.extend(new);
        count
    };
    // Each core has its own turn.
    assert!((26..=34).contains(&of_first()), "3 of 4 clients");
    evener.reload(&config("weight = 0"));
    assert_eq!(of_first(), 0);
}

#[test]
fn kills_restarts_and_reloads_lose_no_packet_and_move_no_flow() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let to = SocketAddr::new(VIP_V4, PORT);
    // Losses of the network itself are excluded by a run without changes.
    let servers = [(11, ""), (12, ""), (13, "")];
    let mut evener = network.evener(&plain(&servers));
    client(&network, VIP_V4).ask_until_reply(to);
    let control = Traffic::start(network.client(), CLIENT_V4, to, 64, 20_000);
    control.wait_for(10_000);
    control.stop().expect_unhurt();

    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 64, 20_000);
    traffic.wait_for(2000);
    for round in 0..4 {
        if round % 2 == 0 {
            evener.signal("KILL");
        } else {
            evener.signal("TERM");
            assert_eq!(evener.end(), 0);
        }
        traffic.wait_for(2000);
        drop(evener);
        evener = network.evener(&plain(&servers));
        traffic.wait_for(2000);
    }
    traffic.stop().expect_unhurt();

    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 64, 20_000);
    traffic.wait_for(2000);
    for change in 0..50 {
        // Servers 12 and 13 change their weights and order, a service comes and goes, and server 11 stays.
        let (first, second) = (["weight = 2", ""][change % 2], ["", "weight = 5"][change % 2]);
        let servers = if change % 4 < 2 {
            [(11, ""), (12, first), (13, second)]
        } else {
            [(13, first), (11, ""), (12, second)]
        };
        let mut config = plain(&servers);
        if change % 3 == 0 {
            config += &format!(
                "service \"other\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"udp\", \
                 listen = \"{VIP_V4}:9\", pool = \"p4\" }}\n"
            );
        }
        evener.reload(&config);
        traffic.wait_for(200);
    }
    traffic.stop().expect_unhurt();
}

#[test]
fn a_configuration_that_the_kernel_cannot_take_changes_nothing() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let config = plain(&[(11, "")]);
    let evener = network.evener(&config);
    let to = SocketAddr::new(VIP_V4, PORT);
    let known = client(&network, VIP_V4);
    known.ask_until_reply(to);
    evener.write_config(&config.replace("interface = \"eth0\"", "interfaces = { \"eth0\", \"eth7\" }"));
    evener.signal("HUP");
    evener.expect_log("there is no interface eth7");
    assert_eq!(known.server(to), server_v4(11));
    // The reload that removes the services detaches the program.
    evener.reload("pool \"p\" { \"127.0.0.1:9\" } service \"a\" { listen = \"127.0.0.1:0\", pool = \"p\" }");
    wait_until("the program to be detached", || {
        (!network.director().run("ip link show eth0").contains("xdp")).then_some(())
    });
}

#[test]
fn only_flows_of_a_removed_server_move_and_no_packet_is_lost() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let to = SocketAddr::new(VIP_V4, PORT);
    let evener = network.evener(&plain(&[(11, ""), (12, ""), (13, "")]));
    client(&network, VIP_V4).ask_until_reply(to);
    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 60, 5000);
    traffic.wait_for(1000);
    evener.reload(&plain(&[(11, ""), (12, "")]));
    traffic.wait_for(1000);
    // The server returns as another one, and flows stay where they are.
    evener.reload(&plain(&[(11, ""), (12, ""), (13, "")]));
    traffic.wait_for(1000);
    let report = traffic.stop();
    println!("{report}");
    assert_eq!((report.lost(), report.flows_of(server_v4(13))), (0, 0));
    let moved = report.moved();
    assert!((10..=30).contains(&moved), "expected a third of 60 flows to move once: {moved}");
}

#[test]
fn packets_follow_changed_neighbours() {
    let Some(network) = XdpNetwork::two_armed() else { return };
    let server: IpAddr = "10.0.4.11".parse().unwrap();
    let _udp = Echo::udp(network.servers(), &[server], &[PORT]);
    let config = format!(
        "xdp {{ flows = 4096 }} pool \"p\" {{ \"{server}:{PORT}\" }}
         service \"s\" {{ plane = \"xdp\", interfaces = {{ \"eth0\", \"eth1\" }}, protocol = \"udp\", \
                          listen = \"{VIP_V4}:{PORT}\", pool = \"p\" }}"
    );
    let _evener = network.evener(&config);
    let to = SocketAddr::new(VIP_V4, PORT);
    let client = client(&network, VIP_V4);
    assert_eq!(client.ask_until_reply(to).server(), server);
    network.servers().run("ip link set dev eth1 address 02:00:00:00:00:77");
    network.director().run(&format!("ip neighbour replace {server} lladdr 02:00:00:00:00:77 dev eth1"));
    assert_eq!(client.ask_until_reply(to).server(), server, "the new address of the neighbour is used");
}

#[test]
fn packets_follow_changed_routes() {
    let Some(network) = XdpNetwork::two_armed() else { return };
    let server: IpAddr = "10.9.0.1".parse().unwrap();
    network.servers().run(&format!("ip address add {server}/32 dev lo"));
    // No interface has the MAC address of the first gateway.
    network.director().run(&format!(
        "ip neighbour replace 10.0.4.99 lladdr 02:00:00:00:00:99 dev eth1 nud permanent
         ip route add {server}/32 via 10.0.4.99"
    ));
    let _udp = Echo::udp(network.servers(), &[server], &[PORT]);
    let config = format!(
        "xdp {{ flows = 4096 }} pool \"p\" {{ \"{server}:{PORT}\" }}
         service \"s\" {{ plane = \"xdp\", interfaces = {{ \"eth0\", \"eth1\" }}, protocol = \"udp\", \
                          listen = \"{VIP_V4}:{PORT}\", pool = \"p\" }}"
    );
    let _evener = network.evener(&config);
    let to = SocketAddr::new(VIP_V4, PORT);
    let client = client(&network, VIP_V4);
    client.send(to, b"lost");
    assert!(
        client.receive_within(Duration::from_millis(300)).is_none(),
        "the first gateway takes no packets"
    );
    network.director().run(&format!("ip route replace {server}/32 via 10.0.4.11"));
    assert_eq!(client.ask_until_reply(to).server(), server, "the new route is used");
}

#[test]
fn a_service_goes_on_when_its_interface_returns() {
    let Some(network) = XdpNetwork::new() else { return };
    let _udp = Echo::udp(network.servers(), &all_servers(), &[PORT]);
    let evener = network.evener(&plain(&[(11, "")]));
    let to = SocketAddr::new(VIP_V4, PORT);
    let client = client(&network, VIP_V4);
    client.ask_until_reply(to);
    network.director().run("ip link set dev eth0 down; ip link set dev eth0 name eth9");
    evener.expect_log("xdp_problem problem=\"there is no interface eth0\"");
    network.director().run(
        "ip link set dev eth9 name eth0; ip link set dev eth0 up; ip route add default via 10.0.3.1
         ip address add fd00:3::2/64 dev eth0 nodad",
    );
    wait_until("the program to be attached again", || (evener.log_count("xdp_attached") > 1).then_some(()));
    assert_eq!(client.ask_until_reply(to).server(), server_v4(11));
}

#[test]
fn the_program_is_attached_once_at_the_start() {
    let Some(network) = XdpNetwork::new() else { return };
    // The attachment changes the features of the peer, and the thread of the plane sees a changed link before the
    // services follow.
    network
        .director()
        .run("ip link add pair0 type veth peer name pair1; ip link set pair0 up; ip link set pair1 up");
    let evener = network.evener(&plain(&[(11, "")]).replace("eth0", "pair0"));
    evener.expect_log("xdp_attached");
    assert!(evener.run_command(&["reload"]).status.success());
    assert_eq!(evener.log().matches("xdp_attached").count(), 1, "{}", evener.log());
}
