//! Access lists and limits of sources in the XDP plane of a running instance.

use crate::harness::xdp::{
    CLIENT_V4, CLIENT_V6, Echo, UdpClient, VIP_V4, VIP_V6, XdpNetwork, server_v4, server_v6,
};
use crate::harness::{Evener, wait_until};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 5683;
/// The other address of the client.
const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3));

/// Returns services `udp4` and `udp6` with additional keys.
fn config(keys: &str) -> String {
    let family = |family: u8, server: IpAddr, vip: IpAddr| {
        format!(
            "pool \"p{family}\" {{ \"{}\" }}
             service \"udp{family}\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"udp\", \
                 listen = \"{}\", pool = \"p{family}\", {keys} }}\n",
            SocketAddr::new(server, PORT),
            SocketAddr::new(vip, PORT)
        )
    };
    let plane = "xdp { flows = 4096 }\n".to_owned();
    plane + &family(4, server_v4(11), VIP_V4) + &family(6, server_v6(11), VIP_V6)
}

fn count(evener: &Evener, service: &str, name: &str) -> u64 {
    evener.service_counter(service, &format!("xdp.{name}"))
}

fn expect_count(evener: &Evener, service: &str, name: &str, expected: u64) {
    let mut last = 0;
    wait_until(&format!("{name} of {service} to be {expected}"), || {
        last = count(evener, service, name);
        assert!(last <= expected, "{name} of {service}: expected {expected}, got {last}");
        (last == expected).then_some(())
    });
}

#[test]
fn denied_clients_get_nothing_and_are_counted() {
    let Some(network) = XdpNetwork::new() else { return };
    let _v4 = Echo::udp(network.servers(), &[server_v4(11), server_v6(11)], &[PORT]);
    let [v4, v6] = [VIP_V4, VIP_V6].map(|vip| SocketAddr::new(vip, PORT));
    let client = |address| UdpClient::bind(network.client(), address, 0);
    let evener = network.evener(&config("allow = { \"10.0.1.0/24\", \"fd00:1::/64\" }, deny = \"10.0.1.3\""));
    let (admitted, denied, admitted_v6) = (client(CLIENT_V4), client(OTHER_V4), client(CLIENT_V6));
    admitted.ask_until_reply(v4);
    admitted_v6.ask_until_reply(v6);
    let rounds = 20;
    for _ in 0..rounds {
        denied.send(v4, b"denied");
        // Packets of one path stay in order: a reply shows that the packet before it was treated.
        admitted.ask(v4, b"admitted");
    }
    assert_eq!(denied.receive_within(Duration::from_millis(100)), None);
    expect_count(&evener, "udp4", "denied", rounds);
    expect_count(&evener, "udp6", "denied", 0);

    // A reload admits the client, and denies the other family, also clients with associations.
    evener.reload(&config("allow = \"10.0.1.0/24\""));
    assert_eq!(denied.ask(v4, b"admitted now").server(), server_v4(11));
    admitted_v6.send(v6, b"denied now");
    admitted.ask(v4, b"admitted");
    expect_count(&evener, "udp6", "denied", 1);
    expect_count(&evener, "udp4", "denied", rounds);
    let kernel = Echo::udp(network.director(), &[VIP_V4], &[9]);
    assert_eq!(denied.server(SocketAddr::new(VIP_V4, 9)), VIP_V4, "lists do not count for other ports");
    drop(kernel);
    let status = String::from_utf8(evener.run_command(&["status"]).stdout).unwrap();
    assert!(status.contains("denied"), "{status}");
}

#[test]
fn a_source_that_sends_too_much_is_limited_and_others_are_not() {
    let Some(network) = XdpNetwork::new() else { return };
    let _v4 = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    let to = SocketAddr::new(VIP_V4, PORT);
    let client = |address| UdpClient::bind(network.client(), address, 0);
    let evener = network.evener(&config("source_rate = { rate = \"1/s\", burst = 10 }"));
    evener.expect_log("xdp_attached");
    let other = client(OTHER_V4);
    other.ask_until_reply(to);
    let limited = [client(CLIENT_V4), client(CLIENT_V4)];
    let sent = 200;
    for number in 0..sent {
        limited[number % 2].send(to, b"many");
    }
    // Each packet either has a reply or is counted.
    let mut replies = 0;
    let count = || usize::try_from(count(&evener, "udp4", "limited")).unwrap();
    wait_until("all packets to have their replies or to be counted", || {
        let received = |client: &UdpClient| client.receive_within(Duration::from_millis(10)).is_some();
        replies += limited.iter().filter(|client| received(client)).count();
        let limited = count();
        assert!(replies + limited <= sent, "{replies} replies, and {limited} packets were limited");
        (replies + limited == sent).then_some(())
    });
    assert!((10..sent / 2).contains(&replies), "expected the burst and the rate: {replies} replies");
    let before = count();
    for number in 0..3 {
        assert_eq!(
            other.ask(to, &[b'0' + number]).server(),
            server_v4(11),
            "the other source has its bucket"
        );
    }
    assert_eq!(count(), before, "expected no packet of the other source to be limited");

    // A reload removes the limit.
    evener.reload(&config(""));
    for number in 0..20 {
        limited[0].ask(to, &[b'a' + number]);
    }
    assert_eq!(count(), before, "expected no limit after the reload");
}
