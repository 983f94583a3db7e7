//! Token buckets of source prefixes.

use crate::packet::{Packet, UDP};
use crate::plane::{Plane, VIP_V4, VIP_V6};
use evener_core::spec::SourceRate;
use evener_xdp::contract::REASON_LIMITED;
use evener_xdp::defence::ServiceDefence;
use std::time::Instant;

fn limit(burst: u32) -> ServiceDefence<'static> {
    let rate = SourceRate { packets_per_second: 1, burst, prefix_v4: 24, prefix_v6: 60 };
    ServiceDefence { rate: Some(rate), ..ServiceDefence::default() }
}

fn datagram(source: &str) -> Packet {
    Packet::new(source, if source.contains(':') { VIP_V6 } else { VIP_V4 }, UDP)
}

/// Asserts that the burst was admitted, and no more than the tokens of the time since `start`.
fn assert_admitted(admitted: u64, burst: u64, start: Instant) {
    let refilled = start.elapsed().as_secs() + 1;
    assert!((burst..=burst + refilled).contains(&admitted), "{admitted} of {burst} and {refilled}");
}

#[test]
fn addresses_of_a_prefix_share_a_bucket() {
    let Some(mut plane) = Plane::new() else { return };
    let sources = [
        ["192.0.2.1", "192.0.2.255", "192.0.2.7"],
        ["192.0.3.1", "192.0.3.2", "192.0.3.3"],
        ["2001:db8:0:10::1", "2001:db8:0:1f::", "2001:db8:0:11::"],
        ["2001:db8:0:20::1", "2001:db8:0:21::", "2001:db8:0:2f::"],
    ];
    let start = Instant::now();
    plane.defend(&limit(10));
    let mut limited = 0;
    for prefix in sources {
        let packets: Vec<_> = prefix.iter().cycle().take(60).map(|source| datagram(source)).collect();
        let admitted = packets.iter().filter(|packet| plane.is_forwarded(packet)).count() as u64;
        assert_admitted(admitted, 10, start);
        limited += 60 - admitted;
    }
    assert_eq!(plane.count(REASON_LIMITED), limited);
    // A bucket that was larger does not keep its clients waiting.
    plane.defend(&ServiceDefence { rate: None, ..ServiceDefence::default() });
    assert!(plane.is_forwarded(&datagram("192.0.2.1")));
}

#[test]
fn packets_on_several_processors_take_each_token_once() {
    let Some(mut plane) = Plane::new() else { return };
    let start = Instant::now();
    plane.defend(&limit(3000));
    let packet = datagram("192.0.2.1");
    let admitted: u64 = std::thread::scope(|scope| {
        let (plane, packet) = (&plane, &packet);
        let run = |processor: usize| {
            let mut set = rustix::thread::CpuSet::new();
            set.set(processor);
            // With one processor only, the threads take turns.
            let _ = rustix::thread::sched_setaffinity(None, &set);
            (0..4000).filter(|_| plane.is_forwarded(packet)).count() as u64
        };
        let threads = [0, 1].map(|processor| scope.spawn(move || run(processor)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_admitted(admitted, 3000, start);
    assert_eq!(plane.count(REASON_LIMITED), 8000 - admitted);
}

#[test]
fn more_prefixes_than_buckets_are_limited_still() {
    const SOURCES: u32 = 256;
    let Some(mut plane) = Plane::with_sources(SOURCES) else { return };
    plane.defend(&limit(2));
    // Every prefix sends 20 packets in a row: the bucket of the one that sends is not evicted.
    for prefix in 0..4 * SOURCES {
        let packet = datagram(&format!("10.{}.{}.1", prefix >> 8, prefix & 255));
        let admitted = (0..20).filter(|_| plane.is_forwarded(&packet)).count();
        assert!((2..=4).contains(&admitted), "{admitted} packets of prefix {prefix} were admitted");
    }
}
