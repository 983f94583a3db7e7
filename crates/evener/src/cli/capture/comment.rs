//! Comments at captured packets: service, decision, reason, server.

use evener_xdp::capture::Sample;
use evener_xdp::reason::Reason;
use std::fmt::Write;
use std::net::IpAddr;

const VLAN_TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Returns the comment at a packet.
pub(super) fn of(service: &str, sample: &Sample) -> String {
    let mut text = format!("service={service} action={}", sample.action);
    if let Some(reason) = sample.reason.and_then(Reason::of) {
        let _ = write!(text, " reason={}", reason.name());
    }
    let after = sample.after.as_ref().and_then(|frame| addresses(&frame.bytes));
    if let (Some(before), Some(after)) = (addresses(&sample.before.bytes), after) {
        // A packet to a server gets another destination (of the tunnel, if there is one), a packet of a server another
        // source.
        if before[1] != after[1] {
            let _ = write!(text, " server={}", after[1]);
        } else if before[0] != after[0] {
            let _ = write!(text, " server={}", before[0]);
        }
    }
    text
}

/// Returns the source and destination addresses of a frame of Ethernet.
fn addresses(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let mut at = 12;
    while VLAN_TAGS.iter().any(|tag| frame.get(at..at + 2) == Some(tag)) {
        at += 4;
    }
    let (kind, packet) = frame.get(at..)?.split_at_checked(2)?;
    match kind {
        [0x08, 0x00] => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            Some([address(12)?, address(16)?])
        }
        [0x86, 0xdd] => {
            let address =
                |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            Some([address(8)?, address(24)?])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_xdp::capture::Frame;
    use std::time::UNIX_EPOCH;

    fn frame(source: [u8; 4], destination: [u8; 4], tag: bool) -> Frame {
        let mut bytes = vec![0; 12];
        if tag {
            bytes.extend([0x81, 0x00, 0, 7]);
        }
        bytes.extend([0x08, 0x00, 0x45]);
        bytes.extend([0; 11]);
        bytes.extend([source, destination].concat());
        Frame { time: UNIX_EPOCH, length: bytes.len() as u32, bytes }
    }

    fn check(before: Frame, after: Option<Frame>, expected: &str) {
        let action = if after.is_some() { "tx" } else { "drop" };
        let reason = if after.is_some() { None } else { Some(evener_xdp::contract::REASON_NO_SERVER) };
        assert_eq!(of("web", &Sample { before, after, action, reason }), expected);
    }

    #[test]
    fn a_comment_has_the_service_the_decision_and_the_server() {
        let [client, vip, server] = [[192, 0, 2, 1], [198, 51, 100, 1], [10, 0, 0, 1]];
        for tag in [false, true] {
            let to_server = Some(frame(client, server, tag));
            check(frame(client, vip, tag), to_server, "service=web action=tx server=10.0.0.1");
            let to_client = Some(frame(vip, client, tag));
            check(frame(server, client, tag), to_client, "service=web action=tx server=10.0.0.1");
        }
        check(frame(client, vip, false), None, "service=web action=drop reason=no_server");
    }

    #[test]
    fn a_truncated_frame_has_no_addresses() {
        let bytes = frame([1; 4], [2; 4], true).bytes;
        for length in 0..bytes.len() {
            assert_eq!(addresses(&bytes[..length]), None, "{length} bytes");
        }
    }
}
