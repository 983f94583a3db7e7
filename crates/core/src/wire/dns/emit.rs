//! Messages that Evener writes itself: errors, truncated responses, and the queries of checks.

use super::record::{Record, Records, records_start};
use super::{
    CD, CLASS_IN, FORMERR, HEADER_BYTES, NOERROR, NOTIFY, NOTIMP, OPCODE, OPCODE_QUERY, QR, Query, RCODE, RD,
    SERVFAIL, TC, TYPE_OPT, UDP_BYTES_OURS, UPDATE, number_at, opcode,
};

/// Variable fields of an OPT without options.
#[derive(Clone, Copy, Debug)]
struct OptFields {
    size: u16,
    rcode_high: u8,
    is_dnssec_ok: bool,
}

impl Query {
    /// Writes a response without records: ID, opcode, RD and CD of the query, and an OPT if the query has one
    /// (RFC 6891, section 7). An RCODE over 15 needs the OPT (section 6.1.3); if the query has no OPT, SERVFAIL
    /// is written instead.
    pub fn emit_error(&self, message: &[u8], rcode: u8, out: &mut Vec<u8>) {
        let rcode = if self.has_edns() || rcode <= RCODE { rcode } else { SERVFAIL };
        let opt = self.has_edns().then_some(OptFields {
            size: UDP_BYTES_OURS,
            rcode_high: rcode >> 4,
            is_dnssec_ok: self.dnssec_ok(),
        });
        let flags = flags_of(message, rcode & RCODE);
        self.emit(message, flags, opt, out);
    }

    /// Writes a truncated response without records, so that the client retries over TCP (RFC 7766, section 5).
    /// If there is a `response`, its flags are copied; its OPT is copied without options if the query has an
    /// OPT.
    pub fn emit_truncated(&self, message: &[u8], response: Option<&[u8]>, out: &mut Vec<u8>) {
        let Some(response) = response.filter(|response| response.len() >= HEADER_BYTES) else {
            self.emit_error(message, NOERROR, out);
            if let Some(flags) = out.get_mut(2) {
                *flags |= TC;
            }
            return;
        };
        let opt = if self.has_edns() { opt_of(response) } else { None };
        self.emit(message, [response[2] | QR | TC, response[3]], opt, out);
    }

    fn emit(&self, message: &[u8], flags: [u8; 2], opt: Option<OptFields>, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(message.get(..2).unwrap_or(&[0; 2]));
        out.extend_from_slice(&flags);
        out.extend_from_slice(&[
            0,
            u8::from(self.has_question_section()),
            0,
            0,
            0,
            0,
            0,
            u8::from(opt.is_some()),
        ]);
        out.extend_from_slice(self.question_section(message));
        if let Some(opt) = opt {
            emit_opt(opt, out);
        }
    }
}

/// Returns the flags of a local response: opcode, RD and CD are copied from the query (RFC 1035, section 4.1.1;
/// RFC 4035, section 3.2.2).
fn flags_of(message: &[u8], rcode: u8) -> [u8; 2] {
    let high = message.get(2).map_or(0, |high| high & (OPCODE | RD));
    let low = message.get(3).map_or(0, |low| low & CD);
    [QR | high, low | rcode]
}

fn emit_opt(opt: OptFields, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&TYPE_OPT.to_be_bytes());
    out.extend_from_slice(&opt.size.to_be_bytes());
    // The version is 0, and the DO bit of the query is copied (RFC 3225, section 3).
    out.extend_from_slice(&[opt.rcode_high, 0, if opt.is_dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
}

/// Reads the OPT of a message, if the records before the OPT are well-formed.
fn opt_of(message: &[u8]) -> Option<OptFields> {
    let records = Records::new(message, records_start(message)?);
    let opt = records.map_while(Result::ok).find(Record::is_opt_in_place)?;
    Some(OptFields {
        size: number_at(message, opt.class_at())?,
        rcode_high: *message.get(opt.ttl_at())?,
        is_dnssec_ok: *message.get(opt.ttl_at() + 2)? & 0x80 != 0,
    })
}

/// Returns the response code for a malformed message: NOTIMP if its opcode is not supported (RFC 8906, section
/// 3.1.4), FORMERR otherwise.
#[must_use]
pub fn rcode_of_malformed(message: &[u8]) -> u8 {
    let is_short = message.len() < HEADER_BYTES;
    let is_known = is_short || matches!(opcode(message), OPCODE_QUERY | NOTIFY | UPDATE);
    if is_known { FORMERR } else { NOTIMP }
}

/// Writes a FORMERR response to a malformed message, or a NOTIMP response if its opcode is not supported (RFC
/// 8906, section 3.1.4). The response is a header alone, because nothing else of the message can be trusted.
/// `out` is empty afterwards if the message is shorter than a header.
pub fn emit_malformed(message: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let Some(header) = message.get(..HEADER_BYTES) else { return };
    let rcode = rcode_of_malformed(message);
    out.extend_from_slice(&header[..2]);
    out.extend_from_slice(&flags_of(message, rcode));
    out.resize(HEADER_BYTES, 0);
}

/// Writes a query for a name in wire form, of class IN, with RD and an OPT.
pub fn emit_query(id: u16, name: &[u8], qtype: u16, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[RD, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    out.extend_from_slice(name);
    out.extend_from_slice(&qtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    emit_opt(OptFields { size: UDP_BYTES_OURS, rcode_high: 0, is_dnssec_ok: false }, out);
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, sample, with_records};
    use super::super::{is_truncated, parse_name, rcode};
    use super::*;

    #[test]
    fn an_error_repeats_the_required_parts_of_the_query() {
        let check = |message: &[u8], code: u8, header: [u8; 4], edns: Option<Vec<u8>>| {
            let mut out = b"before".to_vec();
            let query = Query::parse(message).unwrap();
            query.emit_error(message, code, &mut out);
            let counts = [0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
            let expected =
                [&header, &counts[..], query.question_section(message), &edns.unwrap_or_default()].concat();
            assert_eq!(out, expected);
            assert!(query.matches_response(message, &out));
        };
        check(&sample("query"), 5, [0x12, 0x34, 0x81, 5], None);
        check(&sample("query"), 16, [0x12, 0x34, 0x81, 2], None);
        check(&sample("update"), 4, [0x12, 0x34, 0xa8, 4], None);
        check(&sample("query_edns"), 2, [0x12, 0x34, 0x81, 2], Some(opt(1232, 0x8000, &[])));
        check(&sample("query_subnet"), 16, [0x12, 0x34, 0x81, 0], Some(opt(1232, 0x0100_0000, &[])));
        let mut odd = sample("query");
        // AA, TC, RA, Z and AD mean nothing in a query; CD is copied.
        (odd[2], odd[3]) = (0x07, 0xff);
        check(&odd, 2, [0x12, 0x34, 0x81, 0x12], None);
    }

    #[test]
    fn a_truncated_response_has_no_records() {
        let check = |query: &str, response: Option<&[u8]>, header: [u8; 4], edns: Option<Vec<u8>>| {
            let message = sample(query);
            let mut out = b"before".to_vec();
            let query = Query::parse(&message).unwrap();
            query.emit_truncated(&message, response, &mut out);
            let counts = [0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
            let expected =
                [&header, &counts[..], query.question_section(&message), &edns.unwrap_or_default()].concat();
            assert_eq!(out, expected);
            assert!(is_truncated(&out) && query.matches_response(&message, &out));
        };
        let with = |ttl, options: &[u8]| with_records(sample("response"), 3, &[opt(4000, ttl, options)]);
        check("query", None, [0x12, 0x34, 0x83, 0], None);
        check("query_edns", None, [0x12, 0x34, 0x83, 0], Some(opt(1232, 0x8000, &[])));
        check("query", Some(&sample("response")), [0x12, 0x34, 0x83, 0x80], None);
        check("query", Some(&with(0, &[])), [0x12, 0x34, 0x83, 0x80], None);
        check("query_edns", Some(&sample("response")), [0x12, 0x34, 0x83, 0x80], None);
        let edns = Some(opt(4000, 0x0100_8000, &[]));
        check("query_edns", Some(&with(0x0100_8000, &[0, 3, 0, 0])), [0x12, 0x34, 0x83, 0x80], edns);
        check("query_edns", Some(&sample("nxdomain")[..40]), [0x12, 0x34, 0x83, 0x83], None);
        check("query", Some(&[0; 5]), [0x12, 0x34, 0x83, 0], None);
    }

    #[test]
    fn malformed_messages_get_a_bare_header() {
        let check = |message: &[u8], expected: &[u8]| {
            let mut out = b"before".to_vec();
            emit_malformed(message, &mut out);
            assert_eq!(out, expected);
        };
        check(&sample("update")[..20], &[0x12, 0x34, 0xa8, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        check(&[1, 2, 0x07, 0xff, 9, 9, 9, 9, 9, 9, 9, 9], &[1, 2, 0x81, 0x11, 0, 0, 0, 0, 0, 0, 0, 0]);
        check(&[7; 11], &[]);
        // IQUERY (1), STATUS (2), DSO (6, RFC 8490) and 15 are not supported. Messages of the other opcodes are
        // malformed without a question section.
        let header = |flags: u8, rcode: u8| [&[0, 9, flags, rcode][..], &[0; 8]].concat();
        for (opcode, rcode) in [(0, 1), (1, 4), (2, 4), (4, 1), (5, 1), (6, 4), (15, 4)] {
            check(&header(opcode << 3, 0), &header(0x80 | opcode << 3, rcode));
        }
    }

    #[test]
    fn an_emitted_query_is_parsed() {
        let (name, mut out) = (parse_name("a.root-servers.net.").unwrap(), Vec::new());
        emit_query(0x1234, &name, 28, &mut out);
        let query = Query::parse(&out).unwrap();
        assert_eq!(
            (query.qtype(), query.qclass(), query.udp_size(), query.name(&out)),
            (28, 1, 1232, &name[..])
        );
        assert_eq!((super::super::id(&out), rcode(&out), out[2]), (0x1234, NOERROR, RD));
    }
}
