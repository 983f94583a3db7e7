//! Responses to packets at the end of their time to live.

use crate::packet::{Frame, ICMP, ICMPV6, LOCAL_MAC, Packet, SENDER_MAC};
use crate::plane::{Plane, VIP_V4, VIP_V6, XDP_DROP, XDP_TX, service};
use evener_xdp::contract::*;

const FORWARDS: [u8; 3] = [FORWARD_NAT, FORWARD_IPIP, FORWARD_GUE];

#[test]
fn senders_learn_that_the_time_to_live_was_exceeded() {
    for forward in FORWARDS {
        let Some(mut plane) = Plane::new(service(forward), &["10.0.2.11"]) else { return };
        for (client, vip, error) in [("10.0.1.2", VIP_V4, (ICMP, 11)), ("fd00:1::2", VIP_V6, (ICMPV6, 3))] {
            // Sizes around the limit of a quoted packet, and odd ones.
            for length in [64, 65, 547, 548, 549, 1231, 1232, 1233, 1499, 1500] {
                let packet = Packet::udp(client, vip).with_ttl(1).with_length(length);
                let (action, out) = plane.run(&packet.frame());
                assert_eq!(action, XDP_TX, "{client}, {length} bytes, mode {forward}");
                let frame = Frame::parse(&out);
                assert_eq!(frame.macs(), [SENDER_MAC, LOCAL_MAC]);
                let response = frame.ip();
                assert_eq!(response.addresses(), (vip.parse().unwrap(), client.parse().unwrap()));
                let (kind, code, unused, quoted) = response.icmp();
                assert_eq!(((response.protocol(), kind), code, unused), (error, 0, 0));
                let limit = if vip == VIP_V4 { 576 - 28 } else { 1280 - 48 };
                assert_eq!(quoted, packet.ip()[..length.min(limit)]);
            }
        }
        assert_eq!((plane.count(REASON_RESPONDED_TTL), plane.count(REASON_TTL_EXCEEDED)), (20, 0));
    }
}

#[test]
fn tags_and_padding_are_handled() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &["10.0.2.11"]) else { return };
    for tags in [vec![], vec![(0x8100, 7)], vec![(0x88a8, 9), (0x8100, 7)]] {
        let packet =
            Packet::udp("10.0.1.2", VIP_V4).with_ttl(1).with_tags(tags.clone()).with_payload(b"x".to_vec());
        let mut frame = packet.frame();
        frame.resize(68, 0);
        let frame = Frame::parse(&plane.run(&frame).1);
        assert_eq!(frame.tags(), tags);
        assert_eq!(frame.ip().icmp().3, packet.ip(), "the packet without its padding");
    }
}

#[test]
fn packets_without_one_sender_have_no_response() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &["10.0.2.11"]) else { return };
    let sources = [
        ("0.0.0.0", VIP_V4),
        ("127.0.0.1", VIP_V4),
        ("224.0.0.1", VIP_V4),
        ("255.255.255.255", VIP_V4),
        ("::", VIP_V6),
        ("::1", VIP_V6),
        ("ff02::1", VIP_V6),
    ];
    for (source, vip) in sources {
        let (action, _) = plane.run(&Packet::udp(source, vip).with_ttl(1).frame());
        assert_eq!(action, XDP_DROP, "{source}");
    }
    let mut frame = Packet::udp("10.0.1.2", VIP_V4).with_ttl(1).frame();
    frame[0] = 0xff;
    assert_eq!(plane.run(&frame).0, XDP_DROP, "a frame to a group");
    let dropped = sources.len() as u64 + 1;
    assert_eq!((plane.count(REASON_RESPONDED_TTL), plane.count(REASON_TTL_EXCEEDED)), (0, dropped));
}

#[test]
fn responses_are_limited_in_rate() {
    let Some(mut plane) = Plane::new(service(FORWARD_IPIP), &["10.0.2.11"]) else { return };
    let frame = Packet::udp("10.0.1.2", VIP_V4).with_ttl(1).frame();
    assert_eq!(plane.run(&frame).0, XDP_TX);
    // As after many responses: the next one is due in the year 2554.
    plane.set_respond_limit(u64::MAX);
    assert_eq!((plane.run(&frame).0, plane.count(REASON_TTL_EXCEEDED)), (XDP_DROP, 1));
    plane.set_respond_limit(0);
    assert_eq!((plane.run(&frame).0, plane.count(REASON_RESPONDED_TTL)), (XDP_TX, 2));
}

#[test]
fn a_response_to_a_cut_packet_has_the_length_of_the_packet() {
    let Some(mut plane) = Plane::new(service(FORWARD_NAT), &["10.0.2.11"]) else { return };
    for (client, vip) in [("10.0.1.2", VIP_V4), ("fd00:1::2", VIP_V6)] {
        let packet = Packet::udp(client, vip).with_ttl(1).with_length(400);
        let mut frame = packet.frame();
        frame.truncate(14 + 100);
        let (action, out) = plane.run(&frame);
        assert_eq!(action, XDP_TX);
        assert_eq!(Frame::parse(&out).ip().icmp().3, packet.ip()[..100], "{client}");
    }
}
