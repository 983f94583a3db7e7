//! Names and descriptions of the reasons for which packets are counted, reported and captured: `enum reason`.

use crate::contract::REASONS;

/// Treatment of a packet with a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The packet is dropped.
    Dropped,
    /// The packet passes to the kernel.
    Passed,
    /// The packet is forwarded.
    Forwarded,
    /// A response is sent instead.
    Responded,
    /// No packet.
    None,
}

/// A reason.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    name: &'static str,
    treatment: Treatment,
    help: &'static str,
}

/// The reasons, in the order of `enum reason`.
pub const ALL: [Reason; REASONS] = {
    use Treatment::{Dropped, Forwarded, None, Passed, Responded};
    [
        reason("malformed", Dropped, "A header is truncated or contradicts itself"),
        reason("ttl_exceeded", Dropped, "The TTL or hop limit does not allow another hop"),
        reason(
            "no_server",
            Dropped,
            "No server takes the client; with `failover = false`, its own server does not",
        ),
        reason("refused_egress", Dropped, "A server sent to a client that is associated with another server"),
        reason("no_next_hop", Dropped, "The next hop of the server or client is not known"),
        reason(
            "too_big",
            Dropped,
            "The packet does not fit into the MTU of its route, with the headers of the tunnel",
        ),
        reason("denied", Dropped, "The access list denies the client"),
        reason("limited", Dropped, "The source prefix sends more packets than its rate allows"),
        reason("syn_challenged", Responded, "A client has to prove its address with a SYN cookie"),
        reason("syn_invalid", Dropped, "An acknowledgement has no valid SYN cookie"),
        reason("icmp_unknown", Dropped, "An ICMP error is about a flow without an association"),
        reason("internal", Dropped, "The maps contradict themselves; a packet during a change"),
        reason("fragment_unknown", Passed, "A fragment arrived whose first fragment is not known"),
        reason("unsupported", Passed, "The packet needs a feature that the plane does not have"),
        reason("flow_new", Forwarded, "An association was made for a client"),
        reason(
            "flow_moved",
            Forwarded,
            "The server of an association is not available; the client got another one",
        ),
        reason("flow_expired", Forwarded, "An association was unused for its idle time and was made anew"),
        reason("flow_by_server", Forwarded, "An association was made for a server that sent first"),
        reason("flow_not_stored", Forwarded, "An association could not be stored; the choice alone counted"),
        reason("second_chance", Forwarded, "A packet in mid-flow went to its server by the previous table"),
        reason("icmp_translated", Forwarded, "An ICMP error was translated for its receiver"),
        reason("fragment", Forwarded, "A fragment was treated as its first fragment"),
        reason("quic_routed", Forwarded, "A QUIC connection ID named the server"),
        reason(
            "quic_unknown",
            Forwarded,
            "A QUIC connection ID named no server; the association or the choice counted",
        ),
        reason("syn_validated", Forwarded, "An acknowledgement had a valid SYN cookie"),
        reason("responded_ttl", Responded, "An ICMP error `time exceeded` was sent"),
        reason("responded_too_big", Responded, "An ICMP error `packet too big` was sent"),
        reason("tarpit_arp", Responded, "An ARP request for a dark address got a response"),
        reason("tarpit_syn", Responded, "A connection attempt to a dark address got a response"),
        reason("tarpit_segment", Responded, "A segment of a connection to a dark address got a response"),
        reason("event_lost", None, "An event was left out, by the rate limit or because the ring was full"),
    ]
};

const fn reason(name: &'static str, treatment: Treatment, help: &'static str) -> Reason {
    Reason { name, treatment, help }
}

impl Reason {
    /// Returns a reason by its number.
    #[must_use]
    pub fn of(number: u8) -> Option<&'static Self> {
        ALL.get(usize::from(number))
    }

    /// Returns the name in counters, events and captures.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the treatment of packets.
    #[must_use]
    pub const fn treatment(&self) -> Treatment {
        self.treatment
    }

    /// Returns the description.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        self.help
    }
}

impl Treatment {
    /// Returns the name in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Passed => "to the kernel",
            Self::Forwarded => "forwarded",
            Self::Responded => "response",
            Self::None => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_have_the_names_of_the_header() {
        let header = include_str!("../bpf/contract.h");
        let words = header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let mut names: Vec<String> = Vec::new();
        for word in words.filter_map(|word| word.strip_prefix("REASON_")) {
            if !names.contains(&word.to_lowercase()) {
                names.push(word.to_lowercase());
            }
        }
        let found: Vec<_> = ALL.iter().map(Reason::name).collect();
        assert_eq!(found, names);
    }

    #[test]
    fn the_guide_lists_the_reasons() {
        let guide = include_str!("../../../docs/xdp.md");
        for reason in &ALL {
            let row = format!("| `{}` | {} | {} |", reason.name, reason.treatment.name(), reason.help);
            assert!(guide.contains(&row), "docs/xdp.md has no row\n{row}");
        }
    }
}
