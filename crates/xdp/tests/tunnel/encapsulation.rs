//! IP in IP and GUE: headers of the tunnel around an unchanged packet.

use crate::packet::{Frame, Ip, LOCAL_MAC, Packet, SENDER_MAC, TCP, UDP};
use crate::plane::{
    Plane, SERVER_MAC, TUNNEL_V4, TUNNEL_V6, VIP_V4, VIP_V6, XDP_DROP, XDP_PASS, XDP_TX, server, service,
};
use evener_xdp::contract::*;

const SERVER_V4: &str = "10.0.2.11";
const SERVER_V6: &str = "fd00:2::11";
const CLIENTS: [(&str, &str); 2] = [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)];
const GUE_PORT: u16 = 6080;

/// Returns the packet in the tunnel, after the headers of the tunnel have been checked.
fn opened(frame: &[u8], forward: u8, server: &str, inner_protocol: u8) -> (Frame, Ip, Vec<u8>) {
    let frame = Frame::parse(frame);
    let outer = frame.ip();
    let source = if server == SERVER_V4 { TUNNEL_V4 } else { TUNNEL_V6 };
    assert_eq!(outer.addresses(), (source.parse().unwrap(), server.parse().unwrap()));
    let inner = outer.decapsulated((forward == FORWARD_GUE).then_some(GUE_PORT), inner_protocol);
    (frame, outer, inner)
}

#[test]
fn each_mode_carries_each_family_in_each_other() {
    for forward in [FORWARD_IPIP, FORWARD_GUE] {
        for server in [SERVER_V4, SERVER_V6] {
            let Some(mut plane) = Plane::new(service(forward), &[server]) else { return };
            for (client, vip) in CLIENTS {
                for tags in [vec![], vec![(0x8100, 7)], vec![(0x88a8, 9), (0x8100, 7)]] {
                    for protocol in [UDP, TCP] {
                        let packet = Packet::udp(client, vip).with_tags(tags.clone()).with_protocol(protocol);
                        let (action, out) = plane.run(&packet.frame());
                        assert_eq!(action, XDP_TX, "{client} to {server}, mode {forward}, {tags:?}");
                        let inner_protocol = if client.contains(':') { 41 } else { 4 };
                        let (frame, _, inner) = opened(&out, forward, server, inner_protocol);
                        assert_eq!(frame.macs(), [SENDER_MAC, LOCAL_MAC], "MACs are exchanged");
                        assert_eq!(frame.tags(), tags);
                        // The tunnel is one hop; nothing else differs.
                        assert_eq!(inner, packet.after_hop().ip());
                    }
                }
            }
        }
    }
}

#[test]
fn the_next_hop_of_the_server_is_used_if_configured() {
    let routed = Service { next_hop: NEXT_HOP_ROUTE, ..service(FORWARD_IPIP) };
    let Some(mut plane) = Plane::new(routed, &[SERVER_V4]) else { return };
    let (action, out) = plane.run(&Packet::udp("10.0.1.2", VIP_V4).frame());
    let (frame, ..) = opened(&out, FORWARD_IPIP, SERVER_V4, 4);
    let mut mac = SERVER_MAC;
    mac[5] = 1;
    assert_eq!((action, frame.macs()), (XDP_TX, [mac, LOCAL_MAC]));
    // Without a known next hop, the routing table has the last word; here it has no route.
    plane.set_server(1, Server { ifindex: 0, ..server(1, SERVER_V4) });
    let (action, _) = plane.run(&Packet::udp("10.0.1.2", VIP_V4).frame());
    assert_eq!((action, plane.count(REASON_NO_NEXT_HOP)), (XDP_PASS, 1));
}

#[test]
fn dscp_and_ecn_are_copied() {
    for server in [SERVER_V4, SERVER_V6] {
        let Some(mut plane) = Plane::new(service(FORWARD_GUE), &[server]) else { return };
        for (client, vip) in CLIENTS {
            // EF with each of the four values of ECN.
            for traffic in [0xb8, 0xb9, 0xba, 0xbb] {
                let (_, out) = plane.run(&Packet::udp(client, vip).with_traffic(traffic).frame());
                let (_, outer, _) = opened(&out, FORWARD_GUE, server, 0);
                assert_eq!(outer.traffic(), traffic, "{client} to {server}");
            }
        }
    }
}

#[test]
fn do_not_fragment_is_copied_and_other_packets_have_identifications() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V4]) else { return };
    let mut outer = |packet: Packet, protocol| {
        let (_, out) = plane.run(&packet.frame());
        opened(&out, FORWARD_IPIP, SERVER_V4, protocol).1
    };
    let packet = Packet::udp("10.0.1.2", VIP_V4);
    let whole = outer(packet.clone(), 4);
    assert_eq!(whole.fragmentation(), (true, 0));
    assert!(outer(Packet::udp("fd00:1::2", VIP_V6), 41).fragmentation().0, "routers do not fragment IPv6");
    let mut seen: Vec<u16> = (0..20)
        .map(|_| {
            let outer = outer(packet.clone().fragmentable(), 4);
            let (dont_fragment, identification) = outer.fragmentation();
            assert!(!dont_fragment);
            identification
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 10, "identifications differ: {seen:?}");
}

#[test]
fn packets_of_a_flow_have_one_source_port_and_label_and_other_flows_have_others() {
    for (client, vip) in CLIENTS {
        for server in [SERVER_V4, SERVER_V6] {
            let Some(mut plane) = Plane::new(service(FORWARD_GUE), &[server]) else { return };
            let mut path = |port: u16, payload: &[u8]| {
                let packet = Packet::udp(client, vip).with_ports((port, 5000)).with_payload(payload.to_vec());
                let (_, outer, _) = opened(&plane.run(&packet.frame()).1, FORWARD_GUE, server, 0);
                outer.path()
            };
            let mut paths: Vec<_> = (40000..40050)
                .map(|port| {
                    let first = path(port, b"first");
                    assert_eq!(path(port, b"and second"), first);
                    first
                })
                .collect();
            paths.sort_unstable();
            paths.dedup();
            assert!(paths.len() > 45, "{} paths for 50 flows", paths.len());
        }
    }
}

#[test]
fn truncated_packets_are_dropped_without_reading_behind_their_end() {
    for forward in [FORWARD_IPIP, FORWARD_GUE, FORWARD_DIRECT] {
        let Some(mut plane) = Plane::new(service(forward), &[SERVER_V4]) else { return };
        for (client, vip) in CLIENTS {
            let frame = Packet::udp(client, vip).frame();
            for length in 14..frame.len() {
                let (action, out) = plane.run(&frame[..length]);
                assert_ne!(action, XDP_TX, "{client}, {length} of {} bytes: {out:?}", frame.len());
            }
            assert_eq!(plane.run(&frame).0, XDP_TX);
        }
    }
}

#[test]
fn padding_of_short_frames_stays_behind_the_packet() {
    let Some(mut plane) = Plane::new(service(FORWARD_GUE), &[SERVER_V4]) else { return };
    let packet = Packet::udp("10.0.1.2", VIP_V4).with_payload(b"x".to_vec());
    let mut frame = packet.frame();
    frame.resize(60, 0);
    let (_, out) = plane.run(&frame);
    let (_, _, inner) = opened(&out, FORWARD_GUE, SERVER_V4, 0);
    assert_eq!(inner, packet.after_hop().ip());
}

#[test]
fn later_fragments_follow_the_first_one() {
    for forward in [FORWARD_DIRECT, FORWARD_IPIP, FORWARD_GUE] {
        let Some(mut plane) = Plane::new(service(forward), &[SERVER_V4]) else { return };
        let first = Packet::udp("10.0.1.2", VIP_V4).fragmentable().with_fragment((0, true));
        let later = first.clone().with_fragment((4, false));
        assert_eq!(plane.run(&first.frame()).0, XDP_TX);
        let (action, out) = plane.run(&later.frame());
        assert_eq!(action, XDP_TX, "mode {forward}");
        if forward == FORWARD_DIRECT {
            assert_eq!(Frame::parse(&out).into_body(), later.ip());
        } else {
            let (_, _, inner) = opened(&out, forward, SERVER_V4, 4);
            assert_eq!(inner, later.after_hop().ip());
        }
    }
}

#[test]
fn a_server_that_takes_nothing_loses_its_clients() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V4]) else { return };
    let frame = Packet::udp("10.0.1.2", VIP_V4).frame();
    assert_eq!(plane.run(&frame).0, XDP_TX);
    plane.set_server(1, Server { takes: TAKES_NONE, ..server(1, SERVER_V4) });
    assert_eq!((plane.run(&frame).0, plane.count(REASON_NO_SERVER)), (XDP_DROP, 1));
}
