//! Truncated and contradictory packets.

use crate::director::{PORT, SERVICE, XDP_DROP, XDP_PASS, XDP_TX, for_each_family, request, service};
use crate::packet::{DESTINATION_OPTIONS, IcmpError, Packet, TCP, UDP};

/// Bytes of an Ethernet header, which the kernel wants in test runs.
const ETHERNET: usize = 14;

#[test]
fn truncated_headers_are_dropped() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        for protocol in [UDP, TCP] {
            for tags in [vec![], vec![(0x8100, 1)], vec![(0x88a8, 1), (0x8100, 2)]] {
                let request = request(family, protocol)
                    .with_tags(tags)
                    .with_options(vec![1; 4])
                    .with_extensions(vec![(DESTINATION_OPTIONS, 8)]);
                let (frame, headers) = request.frame_and_headers();
                for length in ETHERNET..frame.len() {
                    let (action, out) = director.run(&frame[..length]);
                    let expected = if length < headers { XDP_DROP } else { XDP_TX };
                    assert_eq!((action, out.len()), (expected, length), "{length} of {headers}");
                }
            }
        }
    });
}

#[test]
fn truncated_fragments_and_errors_are_not_forwarded() {
    for_each_family(service(), |director, family| {
        let fragment = request(family, UDP).with_fragment(7, 64, true).with_payload(vec![0; 200]);
        let carrier = Packet::new(UDP, (family.router, 0), (family.vip, 0));
        let quoted = Packet::new(UDP, (family.vip, PORT), (family.client, 40000)).ip();
        let kind = if family.number == 4 { (3, 4) } else { (2, 0) };
        let error = IcmpError::new(carrier, kind, 0, quoted);
        for frame in [fragment.frame(), error.frame()] {
            for length in ETHERNET..frame.len() {
                let (action, out) = director.run(&frame[..length]);
                assert!([XDP_DROP, XDP_PASS].contains(&action), "{length}: {action}");
                assert_eq!(out, frame[..length]);
            }
        }
    });
}

#[test]
fn contradictory_headers_are_dropped() {
    for_each_family(service(), |director, family| {
        let frame = request(family, UDP).frame();
        let versions: &[u8] = if family.number == 4 { &[0x44, 0x40, 0x65, 0x4f] } else { &[0x40, 0x70] };
        for version in versions {
            let mut damaged = frame.clone();
            damaged[ETHERNET] = *version;
            director.leaves(&damaged, XDP_DROP);
        }
    });
}
