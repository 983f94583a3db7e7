//! Direct forwarding: the server has the virtual address and is in the same network.

use crate::packet::{Frame, LOCAL_MAC, Packet, TCP};
use crate::plane::{Plane, SERVER_MAC, VIP_V4, VIP_V6, XDP_DROP, XDP_TX, server, service};
use evener_xdp::contract::{FORWARD_DIRECT, REASON_NO_NEXT_HOP, REASON_RESPONDED_TOO_BIG};

/// Interface of packets in `BPF_PROG_TEST_RUN`, by default that of loopback.
const INTERFACE: u32 = 1;

fn to_server(slot: u8) -> [u8; 6] {
    let mut mac = SERVER_MAC;
    mac[5] = slot;
    mac
}

#[test]
fn only_the_mac_addresses_change() {
    let Some(mut plane) = Plane::new(service(FORWARD_DIRECT), &["10.0.2.11"]) else { return };
    let tags = [vec![], vec![(0x8100, 7)], vec![(0x88a8, 9), (0x8100, 7)]];
    for (client, vip) in [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)] {
        for tags in &tags {
            for protocol in [crate::packet::UDP, TCP] {
                let packet = Packet::udp(client, vip).with_tags(tags.clone()).with_protocol(protocol);
                let (action, out) = plane.run(&packet.frame());
                let frame = Frame::parse(&out);
                assert_eq!(action, XDP_TX, "{client} with {tags:?}");
                assert_eq!(frame.macs(), [to_server(1), LOCAL_MAC]);
                assert_eq!(frame.tags(), tags);
                assert_eq!(frame.into_body(), packet.ip());
            }
        }
    }
}

#[test]
fn a_packet_at_the_end_of_its_time_to_live_reaches_the_server() {
    let Some(mut plane) = Plane::new(service(FORWARD_DIRECT), &["10.0.2.11"]) else { return };
    for (client, vip) in [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)] {
        let packet = Packet::udp(client, vip).with_ttl(1);
        let (action, out) = plane.run(&packet.frame());
        assert_eq!((action, Frame::parse(&out).into_body()), (XDP_TX, packet.ip()));
    }
}

#[test]
fn a_known_client_stays_with_its_server() {
    let Some(mut plane) = Plane::new(service(FORWARD_DIRECT), &["10.0.2.11", "10.0.2.12", "10.0.2.13"])
    else {
        return;
    };
    let mut servers = Vec::new();
    for port in 40000..40030 {
        let packet = Packet::udp("10.0.1.2", VIP_V4).with_ports((port, 5000)).frame();
        let first = Frame::parse(&plane.run(&packet).1).macs()[0];
        assert_eq!(Frame::parse(&plane.run(&packet).1).macs()[0], first);
        servers.push(first);
    }
    servers.sort_unstable();
    servers.dedup();
    assert_eq!(servers, [to_server(1), to_server(2), to_server(3)]);
}

#[test]
fn a_server_without_a_known_next_hop_gets_no_packets() {
    let Some(mut plane) = Plane::new(service(FORWARD_DIRECT), &["10.0.2.11"]) else { return };
    let mut unknown = server(1, "10.0.2.11");
    unknown.ifindex = 0;
    plane.set_server(1, unknown);
    let (action, _) = plane.run(&Packet::udp("10.0.1.2", VIP_V4).frame());
    assert_eq!((action, plane.count(REASON_NO_NEXT_HOP)), (XDP_DROP, 1));
}

#[test]
fn a_packet_beyond_the_mtu_of_the_server_has_a_response() {
    let Some(mut plane) = Plane::new(service(FORWARD_DIRECT), &["10.0.2.11"]) else { return };
    plane.set_server(
        1,
        evener_xdp::contract::Server { mtu: 1400, ifindex: INTERFACE, ..server(1, "10.0.2.11") },
    );
    let packet = Packet::udp("10.0.1.2", VIP_V4);
    assert_eq!(plane.run(&packet.clone().with_length(1400).frame()).0, XDP_TX);
    assert_eq!(plane.count(REASON_RESPONDED_TOO_BIG), 0);
    plane.run(&packet.with_length(1401).frame());
    assert_eq!(plane.count(REASON_RESPONDED_TOO_BIG), 1);
}
