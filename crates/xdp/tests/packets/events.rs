//! Events of decisions.

use crate::director::{Director, PORT, SERVICE, for_each_family, request, service, words};
use crate::packet::{Packet, UDP};
use aya::maps::RingBuf;
use evener_xdp::contract::*;

fn events(director: &mut Director) -> Vec<Event> {
    let mut ring: RingBuf<_> = director.map("events").try_into().unwrap();
    let mut events = Vec::new();
    while let Some(item) = ring.next() {
        assert_eq!(item.len(), size_of::<Event>());
        // SAFETY: the item has the size of the struct, which has only integers.
        events.push(unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<Event>()) });
    }
    events
}

#[test]
fn decisions_are_reported_at_their_levels() {
    let reported = Service { flags: SERVICE_REPORTED, ..service() };
    for_each_family(reported, |director, family| {
        let request = request(family, UDP);
        let expired = request.clone().with_ttl(1);
        let other = request.to(family.vip, 9);
        let all = |director: &mut Director, level: u32| {
            director.set_level(level);
            for packet in [&request, &request, &expired, &other] {
                director.run(&packet.frame());
            }
            events(director).iter().map(|event| (event.kind, event.level)).collect::<Vec<_>>()
        };
        assert_eq!(all(director, EVENT_ERROR), []);
        let dropped = (EVENT_DROPPED, EVENT_WARNING as u8);
        assert_eq!(all(director, EVENT_WARNING), [dropped]);
        let reused = (EVENT_FLOW_REUSED, EVENT_DEBUG as u8);
        assert_eq!(all(director, EVENT_DEBUG), [reused, reused, dropped]);
        let passed = (EVENT_PASSED, EVENT_TRACE as u8);
        assert_eq!(all(director, EVENT_TRACE), [reused, reused, dropped, passed]);
    });
}

#[test]
fn an_event_has_the_addresses_before_and_after() {
    let reported = Service { flags: SERVICE_REPORTED, ..service() };
    for_each_family(reported, |director, family| {
        director.set_level(EVENT_DEBUG);
        director.set_table("tables", SERVICE, &[2]);
        director.run(&request(family, UDP).frame());
        director.run(&Packet::new(UDP, (family.servers[1], PORT), (family.client, 40000)).frame());
        let [new, egress] = events(director).try_into().unwrap();
        assert_eq!((new.kind, new.server, new.service), (EVENT_FLOW_NEW, 2, SERVICE));
        assert_eq!((new.family, new.protocol), (family.number, UDP));
        assert_eq!((new.source, new.new_source), (words(family.client), words(family.client)));
        assert_eq!((new.destination, new.new_destination), (words(family.vip), words(family.servers[1])));
        assert_eq!((new.source_port, new.destination_port), (40000_u16.to_be(), PORT.to_be()));
        assert_eq!(egress.kind, EVENT_EGRESS);
        assert_eq!((egress.source, egress.new_source), (words(family.servers[1]), words(family.vip)));
    });
}

#[test]
fn events_are_limited_and_the_others_are_counted() {
    let reported = Service { flags: SERVICE_REPORTED, ..service() };
    for_each_family(reported, |director, family| {
        director.set_level(EVENT_DEBUG);
        for _ in 0..1000 {
            director.run(&request(family, UDP).frame());
        }
        let seen = events(director).len() as u64;
        assert!(seen < 1000, "{seen} events");
        assert_eq!(seen + director.count(SERVICE, REASON_EVENT_LOST), 1000);
    });
}
