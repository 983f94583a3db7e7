//! Challenges to SYNs, and the responses to them.

use crate::packet::{ACK, Packet, RST, SYN};
use crate::plane::{Plane, VIP_V4, VIP_V6, XDP_DROP};
use evener_core::Random;
use evener_xdp::contract::{REASON_SYN_CHALLENGED, REASON_SYN_INVALID, REASON_SYN_VALIDATED};
use evener_xdp::defence::ServiceDefence;

const ALWAYS: ServiceDefence<'_> = ServiceDefence { clients: None, rate: None, syn_cookies: Some(0) };

fn syn(source: &str) -> Packet {
    Packet::segment(source, if source.contains(':') { VIP_V6 } else { VIP_V4 }, SYN)
        .with_options(vec![2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7])
}

/// The response of a client to a challenge (RFC 9293, section 3.10.7.3).
fn reset(challenge: &Packet) -> Packet {
    challenge.response().with_flags(RST).with_sequence(challenge.acknowledgement).with_acknowledgement(0)
}

#[test]
fn a_client_that_responds_to_the_challenge_reaches_the_server() {
    let Some(mut plane) = Plane::new() else { return };
    plane.defend(&ALWAYS);
    let mut random = Random::seeded(41);
    let mut clients = 0;
    for (source, vlans) in
        [("192.0.2.1", vec![]), ("2001:db8::1", vec![]), ("192.0.2.1", vec![7]), ("2001:db8::1", vec![7, 8])]
    {
        for _ in 0..50 {
            clients += 1;
            let (sequence, port) = (random.bits() as u32, 1024 + clients);
            let syn = syn(source).with_vlans(vlans.clone()).with_sequence(sequence).with_ports([port, 80]);
            let challenge = plane.response(&syn).expect("a challenge");
            let expected = syn
                .response()
                .with_flags(SYN | ACK)
                .with_window(65_535)
                .with_sequence(challenge.sequence)
                .with_acknowledgement(challenge.acknowledgement);
            assert_eq!(challenge, expected);
            // The client does not accept it: only the next number is acceptable.
            let distance = syn.sequence.wrapping_sub(challenge.acknowledgement);
            assert!(distance <= 0xffff, "{:x} for {:x}", challenge.acknowledgement, syn.sequence);
            assert_eq!(plane.action(&reset(&challenge)), XDP_DROP);
            assert!(plane.is_forwarded(&syn), "the SYN after the challenge");
            assert!(plane.is_forwarded(&syn), "the SYN again");
            let other = syn.clone().with_sequence(challenge.acknowledgement.wrapping_sub(1));
            assert!(!plane.is_forwarded(&other), "a SYN with another number");
            let other = syn.clone().with_ports([port ^ 0x8000, 80]);
            assert!(!plane.is_forwarded(&other), "a SYN from another port");
        }
    }
    assert_eq!(plane.count(REASON_SYN_VALIDATED), u64::from(clients));
    assert_eq!(plane.count(REASON_SYN_CHALLENGED), 3 * u64::from(clients));
}

#[test]
fn forged_segments_do_not_prove_an_address() {
    let Some(mut plane) = Plane::new() else { return };
    plane.defend(&ALWAYS);
    let mut random = Random::seeded(42);
    for source in ["192.0.2.1", "2001:db8::1"] {
        let syn = syn(source);
        let challenge = plane.response(&syn).expect("a challenge");
        let valid = challenge.acknowledgement & 0xffff;
        let before = plane.count(REASON_SYN_INVALID);
        for _ in 0..300 {
            let sequence = random.bits() as u32;
            // The true cookie, and the one of the next minute with little probability.
            if sequence & 0xffff == valid {
                continue;
            }
            assert_eq!(plane.action(&reset(&challenge).with_sequence(sequence)), XDP_DROP);
            assert!(!plane.is_forwarded(&syn));
        }
        // Neither do acknowledgements.
        assert_eq!(plane.action(&reset(&challenge).with_flags(SYN | ACK)), XDP_DROP);
        assert!(!plane.is_forwarded(&syn));
        assert!(plane.count(REASON_SYN_INVALID) >= before + 300);
    }
    assert_eq!(plane.count(REASON_SYN_VALIDATED), 0);
}

#[test]
fn without_a_flood_and_with_an_association_segments_pass() {
    let Some(mut plane) = Plane::new() else { return };
    plane.defend(&ServiceDefence { syn_cookies: Some(1), ..ALWAYS });
    // The burst, which is at least 16 SYNs, is not a flood.
    let admitted = (0..64).take_while(|port| plane.is_forwarded(&syn("192.0.2.1").with_ports([*port, 80])));
    let admitted = admitted.count() as u16;
    assert!((16..64).contains(&admitted), "{admitted} SYNs were admitted");
    assert!(plane.response(&syn("192.0.2.1").with_ports([admitted + 1, 80])).is_some());
    for flags in [ACK, RST, RST | ACK] {
        let known = syn("192.0.2.1").with_flags(flags).with_ports([3, 80]);
        assert!(plane.is_forwarded(&known), "flags {flags}");
    }
    let unknown = syn("192.0.2.1").with_flags(RST).with_ports([admitted + 1, 80]);
    assert_eq!(plane.action(&unknown), XDP_DROP);
}
