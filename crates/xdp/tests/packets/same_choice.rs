//! The program and `core` choose the same servers.

use crate::director::{Director, Family, PORT, SERVICE, V4, V6, XDP_TX, for_each_family, service};
use crate::packet::{Packet, UDP};
use evener_core::hash::of_client;
use evener_xdp::contract::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A table in which each slot has a server of its own, so that the choice shows the slot.
const SLOTS: u32 = 65537 % 16384;

fn client(family: Family, random: u64) -> IpAddr {
    if family.number == 4 {
        Ipv4Addr::from_bits(random as u32 | 0x0100_0000).into()
    } else {
        Ipv6Addr::from_bits(u128::from(random) << 64 | u128::from(random.rotate_left(17))).into()
    }
}

fn check(director: &mut Director, family: Family) {
    let base: Vec<u32> = (1..=SLOTS).collect();
    for slot in &base {
        let address = if family.number == 4 {
            format!("10.200.{}.{}", slot / 250, slot % 250 + 1)
        } else {
            format!("2001:db8:200::{slot:x}")
        };
        director.add_server(*slot, &address, 0);
    }
    director.set_table("tables", SERVICE, &base);
    let mut random = 0x1234_5678_9abc_def1_u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let client = client(family, random ^ random >> 29);
        let packet = Packet::new(UDP, (&client.to_string(), 1), (family.vip, PORT));
        let (action, out) = director.run(&packet.frame());
        assert_eq!(action, XDP_TX);
        let slot = (of_client(client) % u64::from(SLOTS)) as u32 + 1;
        let expected = if family.number == 4 {
            vec![10, 200, (slot / 250) as u8, (slot % 250 + 1) as u8]
        } else {
            [0x2001, 0xdb8, 0x200, 0, 0, 0, 0, slot as u16]
                .iter()
                .flat_map(|word: &u16| word.to_be_bytes())
                .collect()
        };
        let at = if family.number == 4 { 30 } else { 38 };
        assert_eq!(out[at..at + expected.len()], expected, "{client}");
    }
}

#[test]
fn the_slot_of_a_client_is_the_one_of_core() {
    assert_ne!(V4.number, V6.number);
    for_each_family(Service { choose_by: CHOOSE_BY_CLIENT, ..service() }, check);
}
