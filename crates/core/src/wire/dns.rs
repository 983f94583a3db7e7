//! DNS messages (RFC 1035, section 4.1): the parts of a query that a load balancer needs, the match of a
//! response to its query, and the few messages that Evener writes itself. Messages of clients and servers are
//! not encoded again: their bytes are passed on, and only the ID and EDNS options are changed.

mod emit;
mod hop;
mod options;
mod query;
mod record;
#[cfg(test)]
pub(crate) mod samples;
mod subnet;
mod text;
mod transfer;

pub use emit::{emit_malformed, emit_query, rcode_of_malformed};
pub use hop::{Cookies, add_keepalive, has_hop_options, strip_hop_options};
pub use query::{Query, QueryError};
pub use subnet::{Added, strip};
pub use text::{NameError, name_text, parse_name, rcode_name, rcode_number, type_name, type_number};
pub use transfer::Transfer;

pub(crate) use options::retain_options;
pub(crate) use record::{Record, Records, Section, is_name, question_section_end};

/// Size of the header that each message begins with (RFC 1035, section 4.1.1).
pub const HEADER_BYTES: usize = 12;
/// Maximum size of a message (RFC 1035, section 4.2.2).
pub const MESSAGE_BYTES_MAX: usize = 65_535;
/// Maximum size of a response over UDP to a client that did not announce a larger size (RFC 1035, section
/// 4.2.1).
pub const UDP_BYTES: usize = 512;
/// Maximum size of a name in wire form (RFC 1035, section 3.1).
pub const NAME_BYTES_MAX: usize = 255;
/// UDP size in an OPT that Evener writes. A message of this size passes nearly any network without
/// fragmentation (DNS Flag Day 2020).
const UDP_BYTES_OURS: u16 = 1232;

/// No error.
pub const NOERROR: u8 = 0;
/// The query was malformed.
pub const FORMERR: u8 = 1;
/// The server failed.
pub const SERVFAIL: u8 = 2;
/// The name does not exist.
pub const NXDOMAIN: u8 = 3;
/// The server does not support the request.
pub const NOTIMP: u8 = 4;
/// The server refuses the request.
pub const REFUSED: u8 = 5;

// Bits of the third byte of a message (QR, opcode, AA, TC, RD) and of the fourth (RA, Z, AD, CD, RCODE).
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const Z: u8 = 0x40;
const AD: u8 = 0x20;
const CD: u8 = 0x10;
const RCODE: u8 = 0x0f;

const OPCODE_QUERY: u8 = 0;
/// RFC 1996, section 3.3.
const NOTIFY: u8 = 4;
/// RFC 2136, section 1.3.
const UPDATE: u8 = 5;

pub(crate) const TYPE_CNAME: u16 = 5;
pub(crate) const TYPE_SOA: u16 = 6;
const TYPE_SIG: u16 = 24;
pub(crate) const TYPE_DNAME: u16 = 39;
pub(crate) const TYPE_OPT: u16 = 41;
const TYPE_TSIG: u16 = 250;
const TYPE_IXFR: u16 = 251;
const TYPE_AXFR: u16 = 252;
pub(crate) const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_NONE: u16 = 254;
const CLASS_ANY: u16 = 255;

/// Returns the ID of a message, or 0 if the message is too short.
#[must_use]
pub fn id(message: &[u8]) -> u16 {
    message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}

/// Changes the ID of a message. A message that is too short for an ID is not changed.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.first_chunk_mut() {
        *bytes = id.to_be_bytes();
    }
}

/// Returns the RCODE in the header (RFC 1035, section 4.1.1), which is the low part of the extended RCODE (RFC
/// 6891, section 6.1.3).
#[must_use]
pub fn rcode(message: &[u8]) -> u8 {
    message.get(3).map_or(0, |flags| flags & RCODE)
}

/// Returns true if a message is truncated (TC).
#[must_use]
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & TC != 0)
}

/// Returns the opcode of a message.
fn opcode(message: &[u8]) -> u8 {
    message.get(2).map_or(0, |flags| (flags & OPCODE) >> 3)
}

/// Returns true if a message is a response to a standard query (QR and the opcode).
pub(crate) fn is_query_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & (QR | OPCODE) == QR | OPCODE_QUERY << 3)
}

/// Returns the two bytes at an offset as a number, or `None` if the message ends before.
pub(crate) fn number_at(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_and_flags_of_a_header_are_read() {
        let mut message = vec![0x12, 0x34, 0x82, 0x83];
        assert_eq!((id(&message), rcode(&message), is_truncated(&message)), (0x1234, NXDOMAIN, true));
        set_id(&mut message, 0xabcd);
        assert_eq!(message, [0xab, 0xcd, 0x82, 0x83]);
        assert_eq!((id(&[1]), rcode(&[0; 3]), is_truncated(&[0; 2]), opcode(&[0; 2])), (0, 0, false, 0));
        set_id(&mut [1], 7);
    }
}
