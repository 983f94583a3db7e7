//! Prefix lists against the access list that they were made of.

use crate::packet::{Packet, TCP, UDP};
use crate::plane::{Plane, VIP_V4, VIP_V6};
use evener_core::Random;
use evener_core::acl::{Access, Acl, Prefix};
use evener_xdp::contract::REASON_DENIED;
use evener_xdp::defence::ServiceDefence;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn random_client(random: &mut Random) -> IpAddr {
    let bits = random.bits();
    match random.below(2) {
        0 => {
            Ipv6Addr::from_bits(0xfd << 120 | u128::from(bits & 0x0303) << 64 | u128::from(bits >> 63)).into()
        }
        _ => Ipv4Addr::from(10 << 24 | (bits as u32) & 0x0003_0303).into(),
    }
}

fn random_acl(random: &mut Random) -> Acl {
    let access = |random: &mut Random| [Access::Permit, Access::Deny][random.below(2)];
    let prefix = |random: &mut Random| {
        let client = random_client(random);
        Prefix::new(client, random.below(if client.is_ipv4() { 33 } else { 129 }) as u8)
    };
    let mut group = || (access(random), (0..random.below(8)).map(|_| prefix(random)).collect::<Vec<_>>());
    let groups: Vec<_> = (0..6).map(|_| group()).collect();
    Acl::in_order(&groups, access(random))
}

#[test]
fn clients_are_admitted_as_by_the_access_list_itself() {
    let Some(mut plane) = Plane::new() else { return };
    let mut random = Random::seeded(31);
    let mut denied = 0;
    for _ in 0..40 {
        let acl = random_acl(&mut random);
        plane.defend(&ServiceDefence { clients: Some(&acl), ..ServiceDefence::default() });
        for _ in 0..50 {
            let client = random_client(&mut random);
            let vip = if client.is_ipv4() { VIP_V4 } else { VIP_V6 };
            let packet = Packet::new(&client.to_string(), vip, [TCP, UDP][random.below(2)])
                .with_vlans(vec![7; random.below(3)]);
            let is_admitted = acl.access(client) == Access::Permit;
            assert_eq!(plane.is_forwarded(&packet), is_admitted, "{client}: {acl:?}");
            denied += u64::from(!is_admitted);
        }
    }
    assert!(denied > 100 && denied < 1900, "{denied} of 2000 are a poor test");
    assert_eq!(plane.count(REASON_DENIED), denied);
    plane.defend(&ServiceDefence::default());
    assert!(plane.is_forwarded(&Packet::new("10.0.0.1", VIP_V4, UDP)));
    assert_eq!(plane.count(REASON_DENIED), denied);
}
