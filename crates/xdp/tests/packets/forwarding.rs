//! Address translation of single packets.

use crate::director::{
    FAMILIES, PORT, SERVICE, V4, V6, XDP_DROP, XDP_PASS, XDP_TX, for_each_family, request, service,
};
use crate::packet::{
    CLIENT_MAC, DESTINATION_OPTIONS, HOP_BY_HOP, ICMP, ICMPV6, LOCAL_MAC, Packet, ROUTING, TCP, UDP, octets,
};
use evener_xdp::contract::*;

const TAGS: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 0x6005)]];

/// A request through the first server, and its response.
fn there_and_back(change: impl Fn(Packet) -> Packet) {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        for protocol in [UDP, TCP] {
            for tags in TAGS {
                let request = change(request(family, protocol).with_tags(tags.to_vec()));
                director.sends(&request, &request.returned().to(family.servers[0], PORT));
                let response = Packet::new(protocol, (family.servers[0], PORT), (family.client, 40000));
                let response = change(response.with_tags(tags.to_vec()));
                director.sends(&response, &response.returned().from(family.vip, PORT));
            }
        }
    });
}

#[test]
fn requests_go_to_the_server_and_responses_come_from_the_virtual_address() {
    there_and_back(|packet| packet);
}

#[test]
fn checksums_are_right_for_all_payloads() {
    // The last word takes each value of the sum, also those whose checksum is computed as zero.
    for low in [0_u16, 1, 0x7fff, 0xfffe, 0xffff] {
        there_and_back(|packet| packet.with_payload(low.to_be_bytes().to_vec()));
    }
}

#[test]
fn a_computed_checksum_of_zero_is_sent_as_ones() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let found = (0..=0xffff_u16).find(|word| {
            let sent = request(family, UDP)
                .returned()
                .to(family.servers[0], PORT)
                .with_payload(word.to_be_bytes().to_vec());
            let ip = sent.ip();
            ip[ip.len() - 4..ip.len() - 2] == [0xff, 0xff]
        });
        let request = request(family, UDP).with_payload(found.unwrap().to_be_bytes().to_vec());
        director.sends(&request, &request.returned().to(family.servers[0], PORT));
    });
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    for_each_family(service(), |director, family| {
        let request = request(family, UDP).without_checksum();
        director.set_table("tables", SERVICE, &[1]);
        director.sends(&request, &request.returned().to(family.servers[0], PORT));
    });
}

#[test]
fn options_of_ipv4_and_extension_headers_of_ipv6_stay() {
    there_and_back(|packet| {
        packet.with_options(vec![7, 7, 4, 0, 0, 0, 0, 0]).with_extensions(vec![
            (HOP_BY_HOP, 0),
            (ROUTING, 8),
            (DESTINATION_OPTIONS, 16),
        ])
    });
}

#[test]
fn a_packet_with_too_many_extension_headers_passes() {
    for_each_family(service(), |director, family| {
        let request = request(family, UDP).with_extensions(vec![(DESTINATION_OPTIONS, 0); 8]);
        if family.number == 6 {
            director.leaves(&request.frame(), XDP_PASS);
        }
    });
}

#[test]
fn ports_are_translated_there_and_back() {
    for_each_family(service(), |director, family| {
        director.add_server(1, family.servers[0], 8080);
        director.set_table("tables", SERVICE, &[1]);
        director.set(
            "returning",
            9,
            Returns { service: SERVICE, vip: SERVICE, server: 1, port: PORT.to_be(), ..Returns::default() },
        );
        for protocol in [UDP, TCP] {
            director.add_endpoint(family.servers[0], 8080, protocol, (ENDPOINT_REAL, 9, 0));
            let request = Packet::new(protocol, (family.client, 40000), (family.vip, PORT));
            director.sends(&request, &request.returned().to(family.servers[0], 8080));
            let response = Packet::new(protocol, (family.servers[0], 8080), (family.client, 40000));
            director.sends(&response, &response.returned().from(family.vip, PORT));
        }
    });
}

#[test]
fn packets_leave_to_the_next_hop_of_the_server_and_to_where_the_client_came_from() {
    let routed = Service { next_hop: NEXT_HOP_ROUTE, ..service() };
    for_each_family(routed, |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        // Test runs arrive at the loopback interface.
        director.change_server(1, |server| {
            (server.ifindex, server.destination_mac, server.source_mac) =
                (1, [2, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]);
        });
        let request = request(family, UDP);
        let sent = request
            .returned()
            .to(family.servers[0], PORT)
            .with_macs([[2, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]]);
        director.sends(&request, &sent);
        let response = Packet::new(UDP, (family.servers[0], PORT), (family.client, 40000))
            .with_macs([[2, 2, 2, 2, 2, 2], [2, 1, 1, 1, 1, 1]]);
        let sent = response.returned().from(family.vip, PORT).with_macs([CLIENT_MAC, LOCAL_MAC]);
        director.sends(&response, &sent);
        // The client moves to another router.
        let router = [2, 9, 9, 9, 9, 9];
        let moved = request.with_macs([LOCAL_MAC, router]);
        assert_eq!(director.run(&moved.frame()).0, XDP_TX);
        director.sends(&response, &sent.with_macs([router, LOCAL_MAC]));
    });
}

#[test]
fn packets_beyond_the_mtu_of_the_route_have_a_response() {
    let routed = Service { next_hop: NEXT_HOP_ROUTE, ..service() };
    for_each_family(routed, |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        director.change_server(1, |server| (server.ifindex, server.mtu) = (1, 1400));
        let headers = if family.number == 4 { 28 } else { 48 };
        let of_length = |length: usize| request(family, UDP).with_payload(vec![7; length - headers]);
        let (action, out) = director.run(&of_length(1400).frame());
        assert_eq!((action, out.len()), (XDP_TX, 1414), "the largest packet is forwarded");
        let too_big = of_length(1401).frame();
        let (action, out) = director.run(&too_big);
        assert_eq!(action, XDP_TX);
        // The error is from the virtual address to the client, and quotes the packet as the client sent it.
        let (addresses, icmp, limit) = if family.number == 4 { (26, 34, 576) } else { (22, 54, 1280) };
        let source = octets(family.vip.parse().unwrap());
        let destination = octets(family.client.parse().unwrap());
        assert_eq!(out[addresses..][..2 * source.len()], [source, destination].concat());
        assert_eq!(out[icmp..][..2], if family.number == 4 { [3, 4] } else { [2, 0] });
        assert_eq!(out[icmp + 4..][..4], 1400_u32.to_be_bytes());
        assert_eq!(out[icmp + 8..], too_big[14..][..limit - (icmp - 14) - 8]);
        let counts = [REASON_RESPONDED_TOO_BIG, REASON_TOO_BIG].map(|reason| director.count(SERVICE, reason));
        assert_eq!(counts, [1, 0]);
    });
}

#[test]
fn packets_with_an_unknown_next_hop_pass_to_the_kernel_rewritten() {
    let routed = Service { next_hop: NEXT_HOP_ROUTE, ..service() };
    for_each_family(routed, |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let request = request(family, UDP);
        let (action, _) = director.run(&request.frame());
        assert_eq!(action, XDP_PASS);
        assert_eq!(director.count(SERVICE, REASON_NO_NEXT_HOP), 1);
    });
}

#[test]
fn the_time_to_live_ends_here() {
    for_each_family(service(), |director, family| {
        for (ttl, action) in [(0, XDP_DROP), (2, XDP_TX), (255, XDP_TX)] {
            let request = request(family, UDP).with_ttl(ttl);
            assert_eq!(director.run(&request.frame()).0, action, "{ttl}");
        }
        assert_eq!(director.count(SERVICE, REASON_MALFORMED), 1);
        let last = request(family, UDP).with_ttl(1);
        let (action, out) = director.run(&last.frame());
        let protocol = if family.number == 4 { out[23] } else { out[20] };
        assert_eq!((action, protocol), (XDP_TX, if family.number == 4 { ICMP } else { ICMPV6 }));
        assert_eq!(director.count(SERVICE, REASON_RESPONDED_TTL), 1);
    });
}

#[test]
fn packets_for_others_pass_untouched() {
    for_each_family(service(), |director, family| {
        let other = request(family, UDP);
        director.leaves(&other.to(family.vip, PORT + 2).frame(), XDP_PASS);
        director.leaves(&other.to(family.client, PORT).frame(), XDP_PASS);
        director.leaves(&other.from(family.servers[0], PORT + 2).to(family.client, PORT).frame(), XDP_PASS);
        let protocol = other.clone().with_protocol(132);
        director.leaves(&protocol.frame(), XDP_PASS);
        let tags = other.clone().with_tags(vec![(0x8100, 1); 3]);
        director.leaves(&tags.frame(), XDP_PASS);
        let mut arp = vec![0xff; 12];
        arp.extend([8, 6]);
        arp.extend([0; 28]);
        director.leaves(&arp, XDP_PASS);
    });
}

#[test]
fn each_family_has_separate_destinations() {
    for_each_family(service(), |director, family| {
        for other in FAMILIES.iter().filter(|other| other.number != family.number) {
            director.leaves(&request(*other, UDP).frame(), XDP_PASS);
        }
    });
    assert_ne!(V4.number, V6.number);
}

#[test]
fn packets_and_bytes_of_servers_are_counted() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[2]);
        let request = request(family, UDP);
        let response = Packet::new(UDP, (family.servers[1], PORT), (family.client, 40000));
        for _ in 0..3 {
            director.run(&request.frame());
        }
        director.run(&response.frame());
        let counters = director.server_counters(2);
        assert_eq!((counters.packets_in, counters.bytes_in), (3, 3 * request.frame().len() as u64));
        assert_eq!((counters.packets_out, counters.bytes_out), (1, response.frame().len() as u64));
        assert_eq!(counters.flows, 1);
    });
}

#[test]
fn packets_with_segments_left_to_visit_pass_to_the_kernel() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let packet = request(family, UDP).with_extensions(vec![(ROUTING, 8)]);
        let mut frame = packet.frame();
        if family.number == 6 {
            director.sends(&packet, &packet.returned().to(family.servers[0], PORT));
            // The last destination is in the routing header, and the checksum is over that one.
            frame[14 + 40 + 3] = 1;
            director.leaves(&frame, XDP_PASS);
        }
    });
}
