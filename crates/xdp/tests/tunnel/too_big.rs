//! Responses to packets that do not fit any more with the headers of the tunnel.

use crate::packet::{Frame, ICMP, ICMPV6, LOCAL_MAC, Packet, SENDER_MAC};
use crate::plane::{Plane, VIP_V4, VIP_V6, XDP_DROP, XDP_TX, server, service};
use evener_xdp::contract::*;

const SERVER_V4: &str = "10.0.2.11";
const SERVER_V6: &str = "fd00:2::11";

#[test]
fn packets_fit_up_to_the_mtu_minus_the_headers() {
    let cases = [
        (FORWARD_IPIP, SERVER_V4, 20),
        (FORWARD_IPIP, SERVER_V6, 40),
        (FORWARD_GUE, SERVER_V4, 28),
        (FORWARD_GUE, SERVER_V6, 48),
    ];
    for (forward, server, overhead) in cases {
        let Some(mut plane) = Plane::new(service(forward), &[server]) else { return };
        for (client, vip) in [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)] {
            let mut run = |length| {
                let (action, out) = plane.run(&Packet::udp(client, vip).with_length(length).frame());
                assert_eq!(action, XDP_TX);
                Frame::parse(&out).ip()
            };
            assert_eq!(run(1500 - overhead).addresses().1.to_string(), server, "the largest packet");
            let response = run(1501 - overhead);
            assert_eq!(response.addresses(), (vip.parse().unwrap(), client.parse().unwrap()));
            let (kind, code, mtu, quoted) = response.icmp();
            let expected = if vip == VIP_V4 { (3, 4) } else { (2, 0) };
            assert_eq!(
                ((kind, code), mtu as usize),
                (expected, 1500 - overhead),
                "mode {forward} to {server}"
            );
            let limit = if vip == VIP_V4 { 576 - 28 } else { 1280 - 48 };
            assert_eq!(quoted, Packet::udp(client, vip).with_length(1501 - overhead).ip()[..limit]);
            assert_eq!(response.protocol(), if vip == VIP_V4 { ICMP } else { ICMPV6 });
        }
        assert_eq!((plane.count(REASON_RESPONDED_TOO_BIG), plane.count(REASON_TOO_BIG)), (2, 0));
    }
}

#[test]
fn the_response_goes_back_with_its_tags() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V4]) else { return };
    for tags in [vec![(0x8100, 7)], vec![(0x88a8, 9), (0x8100, 7)]] {
        let packet = Packet::udp("10.0.1.2", VIP_V4).with_tags(tags.clone());
        let frame = Frame::parse(&plane.run(&packet.with_length(1500).frame()).1);
        assert_eq!(frame.macs(), [SENDER_MAC, LOCAL_MAC]);
        assert_eq!(frame.tags(), tags);
        assert_eq!(frame.ip().icmp().2, 1480);
    }
}

#[test]
fn packets_that_routers_may_fragment_have_the_response_too() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V4]) else { return };
    let packet = Packet::udp("10.0.1.2", VIP_V4).fragmentable();
    let (action, out) = plane.run(&packet.with_length(1500).frame());
    assert_eq!((action, Frame::parse(&out).ip().icmp().2), (XDP_TX, 1480));
}

#[test]
fn later_fragments_are_dropped_without_a_response() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V4]) else { return };
    let first = Packet::udp("10.0.1.2", VIP_V4).fragmentable().with_fragment((0, true));
    assert_eq!(plane.run(&first.frame()).0, XDP_TX);
    let later = first.with_fragment((4, true)).with_payload(vec![0; 1480]);
    assert_eq!(plane.run(&later.frame()).0, XDP_DROP);
    assert_eq!((plane.count(REASON_TOO_BIG), plane.count(REASON_RESPONDED_TOO_BIG)), (1, 0));
}

#[test]
fn senders_of_ipv6_are_not_sent_less_than_1280_bytes() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &[SERVER_V6]) else { return };
    plane.set_server(1, Server { mtu: 1300, ..server(1, SERVER_V6) });
    let (action, _) = plane.run(&Packet::udp("fd00:1::2", VIP_V6).with_length(1280).frame());
    assert_eq!((action, plane.count(REASON_TOO_BIG)), (XDP_DROP, 1));
    plane.set_server(1, Server { mtu: 1320, ..server(1, SERVER_V6) });
    assert_eq!(plane.run(&Packet::udp("fd00:1::2", VIP_V6).with_length(1281).frame()).0, XDP_TX);
    assert_eq!(plane.count(REASON_RESPONDED_TOO_BIG), 1);
}
