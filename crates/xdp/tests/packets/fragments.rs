//! Fragments of datagrams.

use crate::director::{
    Director, Family, PORT, SERVICE, XDP_DROP, XDP_PASS, XDP_TX, for_each_family, request, service,
};
use crate::packet::{DESTINATION_OPTIONS, Packet, UDP};
use evener_xdp::contract::*;

/// Returns the three fragments of a datagram.
fn fragments(packet: &Packet, id: u16) -> [Packet; 3] {
    [(0, true), (64, true), (128, false)]
        .map(|(offset, more)| packet.clone().with_fragment(id, offset, more).with_payload((0..180).collect()))
}

fn passes_in_order(director: &mut Director, family: Family, packet: &Packet, id: u16) {
    for fragment in fragments(packet, id) {
        director.sends(&fragment, &fragment.returned().to(family.servers[0], PORT));
    }
    let response = packet.response_of(family.servers[0], PORT);
    for fragment in fragments(&response, id) {
        director.sends(&fragment, &fragment.returned().from(family.vip, PORT));
    }
}

#[test]
fn fragments_follow_the_first_one_in_both_directions() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let mut packet = request(family, UDP);
        passes_in_order(director, family, &packet, 1);
        packet = packet.with_tags(vec![(0x8100, 3)]);
        passes_in_order(director, family, &packet, 2);
        packet = packet.with_extensions(vec![(DESTINATION_OPTIONS, 0)]);
        packet = packet.with_options(vec![1; 4]);
        for fragment in fragments(&packet, 3) {
            director.sends(&fragment, &fragment.returned().to(family.servers[0], PORT));
        }
        assert_eq!(director.count(SERVICE, REASON_FRAGMENT), 15);
    });
}

#[test]
fn later_fragments_without_a_first_one_pass_and_their_payload_is_not_read_as_ports() {
    for_each_family(service(), |director, family| {
        let [_, mut second, third] = fragments(&request(family, UDP), 9);
        // A payload that looks like the ports of the service.
        second = second.with_payload([40000_u16.to_be_bytes(), PORT.to_be_bytes()].concat().repeat(45));
        director.leaves(&second.frame(), XDP_PASS);
        director.leaves(&third.frame(), XDP_PASS);
        assert_eq!(director.count(0, REASON_FRAGMENT_UNKNOWN), 2);
    });
}

#[test]
fn fragments_to_a_server_that_is_gone_are_dropped_and_fragments_of_it_leave() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let [first, second, _] = fragments(&request(family, UDP), 9);
        director.sends(&first, &first.returned().to(family.servers[0], PORT));
        let response = Packet::new(UDP, (family.servers[0], PORT), (family.client, 40000));
        let [begin, middle, _] = fragments(&response, 10);
        director.sends(&begin, &begin.returned().from(family.vip, PORT));
        director.change_server(1, |server| server.takes = TAKES_NONE);
        director.leaves(&second.frame(), XDP_DROP);
        director.sends(&middle, &middle.returned().from(family.vip, PORT));
    });
}

#[test]
fn later_fragments_name_the_first_header_behind_the_fragment_header() {
    for_each_family(service(), |director, family| {
        if family.number == 4 {
            return;
        }
        director.set_table("tables", SERVICE, &[1]);
        let [first, second, _] = fragments(&request(family, UDP), 9);
        let expected = [&first, &second].map(|packet| packet.returned().to(family.servers[0], PORT).frame());
        // Destination options, which are a part of the fragmented packet: in front of UDP, and named by both fragments.
        let options = |mut frame: Vec<u8>, is_first: bool| {
            frame[54] = DESTINATION_OPTIONS;
            if is_first {
                frame.splice(62..62, [UDP, 0, 1, 4, 0, 0, 0, 0]);
                frame[19] += 8;
            }
            frame
        };
        for (at, packet) in [first, second].iter().enumerate() {
            let (action, out) = director.run(&options(packet.frame(), at == 0));
            assert_eq!((action, out), (XDP_TX, options(expected[at].clone(), at == 0)), "fragment {at}");
        }
    });
}
