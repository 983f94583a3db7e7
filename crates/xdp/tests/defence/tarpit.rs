//! Responses for dark addresses.

use crate::packet::{
    ACK, FIN, LOCAL_MAC, Packet, RST, SENDER_MAC, SYN, TCP, UDP, octets, transport_checksum,
};
use crate::plane::{Plane, VIP_V4, XDP_DROP, XDP_PASS, XDP_TX};
use evener_core::acl::{Access, Acl};
use evener_xdp::contract::{REASON_TARPIT_ARP, REASON_TARPIT_SEGMENT, REASON_TARPIT_SYN};
use evener_xdp::defence::DarkAddresses;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Index of the interface of test runs.
const LOOPBACK: u32 = 1;
const DARK_V4: &str = "10.9.0.7";
const DARK_V6: &str = "fd09::7";
const HOSTS: [&str; 2] = ["10.9.0.1", "fd09::1"];

fn plane() -> Option<Plane> {
    let mut plane = Plane::new()?;
    let permit = |prefix: &str| (prefix.parse().unwrap(), Access::Permit);
    let addresses =
        Acl::new(&[permit("10.9.0.0/24"), permit("fd09::/64"), permit("10.0.9.0/24")], Access::Deny);
    let hosts = HOSTS.map(|host| host.parse().unwrap());
    let interfaces = BTreeMap::from([(LOOPBACK, LOCAL_MAC)]);
    plane.set_dark(Some(DarkAddresses { addresses: &addresses, hosts: &hosts, interfaces: &interfaces }));
    Some(plane)
}

fn arp(operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let ip = |address: &str| octets(address.parse().unwrap());
    let header = [0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &SENDER_MAC, &[8, 6], &header, &SENDER_MAC, &ip(sender), &[0; 6], &ip(target)].concat()
}

#[test]
fn arp_requests_for_dark_addresses_get_the_address_of_the_interface() {
    let Some(plane) = plane() else { return };
    let (action, frame) = plane.run(&arp(1, "10.9.0.1", DARK_V4));
    assert_eq!(action, XDP_TX);
    let sender = octets("10.9.0.1".parse().unwrap());
    let dark = octets(DARK_V4.parse().unwrap());
    let header = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    assert_eq!(
        frame,
        [&SENDER_MAC[..], &LOCAL_MAC, &header, &LOCAL_MAC, &dark, &SENDER_MAC, &sender].concat()
    );
    for (operation, sender, target) in [
        (1, "10.9.0.2", "10.9.1.7"),
        (1, "10.9.0.2", "10.9.0.1"),
        (2, "10.9.0.1", DARK_V4),
        (1, "0.0.0.0", DARK_V4),
        (1, DARK_V4, DARK_V4),
    ] {
        assert_eq!(plane.run(&arp(operation, sender, target)).0, XDP_PASS, "{operation} {sender} {target}");
    }
    assert_eq!(plane.count_without(REASON_TARPIT_ARP), 1);
}

fn solicitation(source: &str, target: &str, option: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (source.parse().unwrap(), "ff02::1:ff00:7".parse().unwrap());
    let target = octets(target.parse().unwrap());
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, option].concat();
    let check = transport_checksum(from, to, 58, &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let ip = [0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    [&[0x33, 0x33, 0xff, 0, 0, 7][..], &SENDER_MAC, &[0x86, 0xdd], &ip, &octets(from), &octets(to), &message]
        .concat()
}

#[test]
fn neighbour_solicitations_for_dark_addresses_get_an_advertisement() {
    let Some(plane) = plane() else { return };
    let option = [&[1, 1][..], &SENDER_MAC].concat();
    let (action, frame) = plane.run(&solicitation("fd09::1", DARK_V6, &option));
    assert_eq!((action, &frame[..12]), (XDP_TX, &[SENDER_MAC, LOCAL_MAC].concat()[..]));
    let (dark, client): (IpAddr, IpAddr) = (DARK_V6.parse().unwrap(), "fd09::1".parse().unwrap());
    assert_eq!(
        frame[14..54],
        [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &octets(dark), &octets(client)].concat()
    );
    assert_eq!(transport_checksum(dark, client, 58, &frame[54..]), 0);
    assert_eq!((frame[54], &frame[58..62]), (136, &[0x40, 0, 0, 0][..]));
    assert_eq!(frame[62..], [&octets(dark)[..], &[2, 1], &LOCAL_MAC].concat());
    assert_eq!(plane.run(&solicitation("fd09::1", "fd09:0:0:1::7", &option)).0, XDP_PASS);
    assert_eq!(plane.run(&solicitation("fd09::2", "fd09::1", &option)).0, XDP_PASS);
    // Duplicate address detection has no address to send from, and so no option.
    assert_eq!(plane.run(&solicitation("::", DARK_V6, &[])).0, XDP_PASS);
    assert_eq!(plane.count_without(REASON_TARPIT_ARP), 1);
}

#[test]
fn connections_to_dark_addresses_are_accepted_and_stuck() {
    let Some(plane) = plane() else { return };
    for (source, dark, vlans) in
        [("192.0.2.1", DARK_V4, vec![]), ("2001:db8::1", DARK_V6, vec![]), ("192.0.2.1", DARK_V4, vec![7, 9])]
    {
        let first = u32::MAX - 3;
        let syn = Packet::segment(source, dark, SYN)
            .with_sequence(first)
            .with_vlans(vlans)
            .with_options(vec![2, 4, 5, 180]);
        let accepted = plane.response(&syn).expect("a SYN-ACK");
        let acknowledgement = first.wrapping_add(1);
        let expected = syn
            .response()
            .with_flags(SYN | ACK)
            .with_window(10)
            .with_acknowledgement(acknowledgement)
            .with_sequence(accepted.sequence);
        assert_eq!(accepted, expected);
        let next = accepted.sequence.wrapping_add(1);
        let segment = |flags: u8, offset: u32, payload: &[u8]| {
            syn.clone()
                .with_flags(flags)
                .with_sequence(first.wrapping_add(offset))
                .with_acknowledgement(next)
                .with_options(Vec::new())
                .with_payload(payload.to_vec())
        };
        // The last part of the handshake gets no response.
        assert_eq!(plane.action(&segment(ACK, 1, b"")), XDP_DROP);
        let closed = |packet: &Packet| {
            let response = plane.response(packet).expect("a response");
            let expected = packet
                .response()
                .with_flags(ACK)
                .with_window(0)
                .with_sequence(next)
                .with_acknowledgement(acknowledgement);
            assert_eq!(response, expected);
        };
        closed(&segment(ACK, 1, b"GET / HTTP"));
        closed(&segment(FIN | ACK, 11, b""));
        closed(&segment(ACK, 0, b""));
        for other in [
            segment(RST, 1, b""),
            segment(RST | ACK, 1, b"x"),
            segment(SYN | ACK, 1, b""),
            segment(ACK, 0x20000, b"x"),
        ] {
            assert_eq!(plane.action(&other), XDP_DROP, "{other:?}");
        }
    }
    assert_eq!(plane.count_without(REASON_TARPIT_SYN), 3);
    assert_eq!(plane.count_without(REASON_TARPIT_SEGMENT), 3 * 8);
}

#[test]
fn other_packets_pass() {
    let Some(plane) = plane() else { return };
    for host in HOSTS {
        let source = if host.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
        assert_eq!(plane.action(&Packet::segment(source, host, SYN)), XDP_PASS, "{host}");
    }
    assert_eq!(plane.action(&Packet::new("192.0.2.1", DARK_V4, UDP)), XDP_PASS);
    assert_eq!(plane.action(&Packet::segment("192.0.2.1", "10.8.0.7", SYN)), XDP_PASS);
    assert!(plane.is_forwarded(&Packet::new("192.0.2.1", VIP_V4, TCP)), "services come before the tarpit");
    assert_eq!(plane.count_without(REASON_TARPIT_SYN), 0);
}
