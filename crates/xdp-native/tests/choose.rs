//! The program and `evener_core` compute the same hashes.

use evener_core::hash;
use evener_xdp_native::{hash_client_v4, hash_client_v6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Numbers that look random (splitmix64), from a seed.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[test]
fn a_million_clients_have_the_hash_of_core() {
    let mut next = numbers(14);
    for _ in 0..500_000 {
        let v4 = Ipv4Addr::from_bits(next() as u32);
        let network = u32::from_ne_bytes(v4.octets());
        assert_eq!(hash_client_v4(network), hash::of_client(IpAddr::V4(v4)), "{v4}");
        let v6 = Ipv6Addr::from_bits(u128::from(next()) << 64 | u128::from(next()));
        let octets = v6.octets();
        let word = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
        let network = [word(0), word(4), word(8), word(12)];
        assert_eq!(hash_client_v6(network), hash::of_client(IpAddr::V6(v6)), "{v6}");
    }
}
