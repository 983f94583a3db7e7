//! Decisions about packets that the program reports through a ring buffer, at most a number a second for each core.

use crate::contents::Contents;
use crate::contract::{
    EVENT_DROPPED, EVENT_EGRESS, EVENT_FLOW_BY_SERVER, EVENT_FLOW_MOVED, EVENT_FLOW_NEW, EVENT_FLOW_REUSED,
    EVENT_PASSED, Event,
};
use crate::endpoints::ip_of;
use crate::reason::Reason;
use aya::maps::{MapData, RingBuf};
use evener_core::spec::XdpEventLevel;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Events that are read before other work of the thread.
const BATCH_MAX: usize = 256;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A decision about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The service; `None` if the packet is for none.
    pub service: Option<Arc<str>>,
    /// The decision, such as `flow_new` or `dropped`.
    pub decision: &'static str,
    /// The reason why the packet was dropped or left to the kernel.
    pub reason: Option<&'static str>,
    /// Level of the decision.
    pub level: XdpEventLevel,
    /// Protocol of the packet; `None` for rare ones.
    pub protocol: Option<&'static str>,
    /// Source of the packet; `None` if it is not IP.
    pub source: Option<SocketAddr>,
    /// Destination of the packet.
    pub destination: Option<SocketAddr>,
    /// Source after rewriting, if it is another one.
    pub new_source: Option<SocketAddr>,
    /// Destination after rewriting, if it is another one.
    pub new_destination: Option<SocketAddr>,
}

/// Reader of the ring buffer.
pub(crate) struct EventReader {
    ring: RingBuf<MapData>,
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl EventReader {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Reads the waiting events, up to a number. Returns the decisions.
    pub(crate) fn read(&mut self, contents: &Contents) -> Vec<Decision> {
        let mut decisions = Vec::new();
        while decisions.len() < BATCH_MAX
            && let Some(record) = self.ring.next()
        {
            if let Some(event) = parse(&record) {
                let mut services = contents.service_slots();
                let name =
                    services.find(|(_, slot)| *slot == event.service).map(|(name, _)| Arc::clone(name));
                decisions.push(decision(&event, name));
            }
        }
        decisions
    }
}

/// Reads a record of the ring.
fn parse(record: &[u8]) -> Option<Event> {
    let record = record.get(..size_of::<Event>())?;
    // SAFETY: the slice has the length of the struct, which consists of integers.
    Some(unsafe { record.as_ptr().cast::<Event>().read_unaligned() })
}

fn decision(event: &Event, service: Option<Arc<str>>) -> Decision {
    let address = |words: [u32; 4], port: u16| {
        let is_ip = matches!(event.family, 4 | 6);
        is_ip.then(|| SocketAddr::new(ip_of(event.family, words), u16::from_be(port)))
    };
    let source = address(event.source, event.source_port);
    let destination = address(event.destination, event.destination_port);
    let changed = |before: Option<SocketAddr>, after| if before == after { None } else { after };
    Decision {
        service,
        decision: match event.kind {
            EVENT_FLOW_NEW => "flow_new",
            EVENT_FLOW_REUSED => "flow_reused",
            EVENT_FLOW_MOVED => "flow_moved",
            EVENT_FLOW_BY_SERVER => "flow_by_server",
            EVENT_EGRESS => "egress",
            EVENT_DROPPED => "dropped",
            EVENT_PASSED => "passed",
            _ => "other",
        },
        // A packet that is for no service passes without a reason.
        reason: Reason::of(event.reason)
            .filter(|_| event.kind == EVENT_DROPPED || event.kind == EVENT_PASSED && event.reason != 0)
            .map(Reason::name),
        level: XdpEventLevel::ALL.get(usize::from(event.level)).copied().unwrap_or(XdpEventLevel::Trace),
        protocol: match event.protocol {
            UDP => Some("udp"),
            TCP => Some("tcp"),
            ICMP | ICMPV6 => Some("icmp"),
            _ => None,
        },
        source,
        destination,
        new_source: changed(source, address(event.new_source, event.new_source_port)),
        new_destination: changed(destination, address(event.new_destination, event.new_destination_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{REASON_MALFORMED, REASON_NO_SERVER};

    fn event(kind: u8, reason: u8) -> Event {
        let address = |last: u8| [u32::from_ne_bytes([10, 0, 0, last]), 0, 0, 0];
        Event {
            kind,
            reason,
            level: 4,
            protocol: UDP,
            family: 4,
            source_port: 1000_u16.to_be(),
            destination_port: 53_u16.to_be(),
            new_source_port: 1000_u16.to_be(),
            new_destination_port: 5353_u16.to_be(),
            source: address(1),
            destination: address(2),
            new_source: address(1),
            new_destination: address(3),
            ..Event::default()
        }
    }

    #[test]
    fn a_decision_has_the_addresses_that_change() {
        let found = decision(&event(EVENT_FLOW_NEW, 0), Some("web".into()));
        assert_eq!((found.decision, found.reason, found.protocol), ("flow_new", None, Some("udp")));
        assert_eq!(found.level, XdpEventLevel::Debug);
        assert_eq!(found.source, Some("10.0.0.1:1000".parse().unwrap()));
        assert_eq!(found.destination, Some("10.0.0.2:53".parse().unwrap()));
        assert_eq!((found.new_source, found.new_destination), (None, Some("10.0.0.3:5353".parse().unwrap())));
    }

    #[test]
    fn only_packets_that_are_not_forwarded_have_a_reason() {
        let reason = |kind, reason| decision(&event(kind, reason), None).reason;
        assert_eq!(reason(EVENT_DROPPED, REASON_MALFORMED), Some("malformed"));
        assert_eq!(reason(EVENT_DROPPED, REASON_NO_SERVER), Some("no_server"));
        assert_eq!(reason(EVENT_PASSED, 0), None, "a packet for other destinations");
        assert_eq!(reason(EVENT_EGRESS, 0), None);
    }

    #[test]
    fn a_packet_that_is_not_ip_has_no_addresses() {
        let found = decision(&Event { family: 0, ..event(EVENT_DROPPED, REASON_MALFORMED) }, None);
        assert_eq!((found.source, found.destination), (None, None));
    }

    #[test]
    fn truncated_records_are_ignored() {
        assert!(parse(&[0; size_of::<Event>() - 1]).is_none());
        assert!(parse(&[0; size_of::<Event>()]).is_some());
    }
}
