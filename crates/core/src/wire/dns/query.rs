//! Zero-copy view of a DNS query. This is the hot path of the data plane: nothing here allocates memory,
//! except `cache_key` if the key outgrows its buffer.

use super::options::{self, COOKIE, KEEPALIVE, PADDING, SUBNET};
use super::record::{Record, Records, records_start};
use super::{
    AA, CLASS_ANY, CLASS_NONE, HEADER_BYTES, MESSAGE_BYTES_MAX, OPCODE, OPCODE_QUERY, QR, RA, RCODE, TC,
    TYPE_AXFR, TYPE_IXFR, TYPE_OPT, UDP_BYTES, Z, number_at, opcode,
};
use super::{AD, CD, RD};
use super::{NOERROR, NXDOMAIN, UPDATE};

/// Bits in the last byte of the cache key, in addition to RD, AD and CD: the query has an OPT, and DO is set.
const KEY_EDNS: u8 = 0x02;
const KEY_DNSSEC: u8 = 0x04;

/// Reason why bytes are not a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Too short for a header, so no response is possible.
    #[error("shorter than the header of a DNS message")]
    Short,
    /// A response. Responding to a response could start a loop.
    #[error("a response, not a query")]
    Response,
    /// Malformed. The client receives FORMERR.
    #[error("a malformed query")]
    Malformed,
}

/// Parsed query: offsets into a message. The methods take the same message as an argument.
///
/// ```
/// use evener_core::wire::dns::{Query, emit_query, parse_name, type_number};
///
/// let mut message = Vec::new();
/// emit_query(7, &parse_name("www.example.org")?, type_number("AAAA").unwrap(), &mut message);
/// let query = Query::parse(&message).unwrap();
/// assert_eq!(query.name(&message), b"\x03www\x07example\x03org\0");
/// assert_eq!((query.qtype(), query.has_edns()), (28, true));
/// # Ok::<(), evener_core::wire::dns::NameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// End of the question section (its last four bytes are type and class), or of the header.
    question_section_end: u16,
    /// End of the last record.
    end: u16,
    opt: Option<Opt>,
    opcode: u8,
    qtype: u16,
    qclass: u16,
    is_signed: bool,
    has_other_records: bool,
}

/// Content of an OPT record (RFC 6891, sections 6.1.2 to 6.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opt {
    at: u16,
    end: u16,
    size: u16,
    rcode_high: u8,
    version: u8,
    flags: u16,
    has_subnet: bool,
    has_cookie: bool,
    has_keepalive: bool,
    has_other_options: bool,
    /// Offset of the hop count; 0 if there is none.
    hops_at: u16,
}

impl Opt {
    const DNSSEC_OK: u16 = 0x8000;

    fn read(message: &[u8], record: &Record) -> Option<Self> {
        let (mut has_subnet, mut has_cookie, mut has_keepalive) = (false, false, false);
        let (mut has_other_options, mut hops_at) = (false, 0);
        for option in options::all(message, record) {
            let option = option?;
            match option.code() {
                PADDING => {}
                COOKIE => has_cookie = true,
                KEEPALIVE => has_keepalive = true,
                SUBNET => has_subnet = true,
                _ => match option.hop_count_at(message) {
                    Some(at) => hops_at = u16::try_from(at).ok()?,
                    None => has_other_options = true,
                },
            }
        }
        let [rcode_high, version] = number_at(message, record.ttl_at())?.to_be_bytes();
        Some(Self {
            at: u16::try_from(record.range().start).ok()?,
            end: u16::try_from(record.range().end).ok()?,
            size: number_at(message, record.class_at())?,
            rcode_high,
            version,
            flags: number_at(message, record.ttl_at() + 2)?,
            has_subnet,
            has_cookie,
            has_keepalive,
            has_other_options,
            hops_at,
        })
    }

    /// Returns true if the response may serve other clients: the OPT has version 0, no flag except DO, no
    /// client subnet and no unknown option.
    fn is_plain(&self) -> bool {
        let flags = self.flags & !Self::DNSSEC_OK;
        self.version == 0 && self.rcode_high == 0 && flags == 0 && !self.has_subnet && !self.has_other_options
    }
}

impl Query {
    /// Parses a query. The question section must have exactly one entry, whose name is well-formed and not
    /// compressed; the records of all sections must lie within the message; at most one OPT is allowed (RFC
    /// 6891, section 6.1.1). Messages of all opcodes are parsed in the same way. A message without a
    /// question section is a query if it requests a cookie and nothing else (RFC 7873, section 5.4). Bytes
    /// after the last record are ignored: some clients pad messages to 512 bytes.
    pub fn parse(message: &[u8]) -> Result<Self, QueryError> {
        match message.get(..HEADER_BYTES) {
            None => Err(QueryError::Short),
            Some(header) if header[2] & QR != 0 => Err(QueryError::Response),
            Some(_) => Self::read(message).ok_or(QueryError::Malformed),
        }
    }

    fn read(message: &[u8]) -> Option<Self> {
        if message.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let end = records_start(message)?;
        let has_question_section = end > HEADER_BYTES;
        let number = |at: usize| if has_question_section { number_at(message, at) } else { Some(0) };
        let mut query = Self {
            question_section_end: u16::try_from(end).ok()?,
            end: 0,
            opt: None,
            opcode: opcode(message),
            qtype: number(end - 4)?,
            qclass: number(end - 2)?,
            is_signed: false,
            has_other_records: false,
        };
        let mut records = Records::new(message, end);
        for record in records.by_ref() {
            query.take(message, &record.ok()?)?;
        }
        query.end = u16::try_from(records.at()).ok()?;
        (has_question_section || query.asks_for_cookie_alone()).then_some(query)
    }

    fn asks_for_cookie_alone(&self) -> bool {
        let has_cookie = self.opt.is_some_and(|opt| opt.has_cookie);
        self.opcode == OPCODE_QUERY && has_cookie && !self.has_other_records
    }

    fn take(&mut self, message: &[u8], record: &Record) -> Option<()> {
        if record.rtype() != TYPE_OPT {
            self.has_other_records = true;
            self.is_signed |= record.is_signature(message);
            return Some(());
        }
        if self.opt.is_some() || !record.is_opt_in_place() {
            return None;
        }
        self.opt = Some(Opt::read(message, record)?);
        Some(())
    }

    /// Returns the records of the query's message.
    pub(super) fn records<'a>(&self, message: &'a [u8]) -> Records<'a> {
        Records::new(message, usize::from(self.question_section_end))
    }

    /// Returns true if the OPT has the option `code`, which is SUBNET, COOKIE or KEEPALIVE. Returns false for
    /// any other code.
    pub(super) fn has_option(&self, code: u16) -> bool {
        self.opt.is_some_and(|opt| match code {
            SUBNET => opt.has_subnet,
            COOKIE => opt.has_cookie,
            KEEPALIVE => opt.has_keepalive,
            _ => false,
        })
    }

    /// Returns true if options may be added: the message is a standard query with a question section, and is
    /// not signed.
    pub(super) fn may_take_options(&self) -> bool {
        !self.is_signed && self.opcode == OPCODE_QUERY && self.has_question_section()
    }

    /// Returns the offset of the OPT if it has version 0 and is the last record. Options can be appended to
    /// such an OPT without a change of compression pointers.
    pub(super) fn extensible_opt_at(&self) -> Option<usize> {
        let opt = self.opt.filter(|opt| opt.end == self.end && opt.version == 0)?;
        Some(usize::from(opt.at))
    }

    /// Returns the message without the bytes after its last record.
    #[must_use]
    pub fn whole<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(..usize::from(self.end)).unwrap_or(message)
    }

    /// Returns true if the query has a question section. A query without one requests only a cookie.
    #[must_use]
    pub fn has_question_section(&self) -> bool {
        usize::from(self.question_section_end) > HEADER_BYTES
    }

    /// Returns the number of Evener instances that passed the query on, or 0 if the query has no hop count.
    #[must_use]
    pub fn hops(&self, message: &[u8]) -> u8 {
        self.hops_at().map_or(0, |at| message.get(at).copied().unwrap_or_default())
    }

    /// Increments the hop count if the query has a hop count. A signed message is not changed.
    pub fn count_hop(&self, message: &mut [u8]) {
        if let Some(hops) = self.hops_at().filter(|_| !self.is_signed).and_then(|at| message.get_mut(at)) {
            *hops = hops.saturating_add(1);
        }
    }

    fn hops_at(&self) -> Option<usize> {
        self.opt.map(|opt| usize::from(opt.hops_at)).filter(|at| *at > 0)
    }

    /// Returns the opcode: 0 for a standard query, 4 for NOTIFY, 5 for UPDATE.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.opcode
    }

    /// Returns the queried type.
    #[must_use]
    pub fn qtype(&self) -> u16 {
        self.qtype
    }

    /// Returns the queried class.
    #[must_use]
    pub fn qclass(&self) -> u16 {
        self.qclass
    }

    /// Returns the queried name in wire form, with its letter case.
    #[must_use]
    pub fn name<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(HEADER_BYTES..usize::from(self.question_section_end) - 4).unwrap_or_default()
    }

    /// Returns the question section: name, type and class.
    #[must_use]
    pub fn question_section<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(HEADER_BYTES..usize::from(self.question_section_end)).unwrap_or_default()
    }

    /// Returns the maximum size of a response over UDP (RFC 6891, section 6.2.3).
    #[must_use]
    pub fn udp_size(&self) -> usize {
        self.opt.map_or(UDP_BYTES, |opt| usize::from(opt.size).max(UDP_BYTES))
    }

    /// Returns true if the query has an OPT.
    #[must_use]
    pub fn has_edns(&self) -> bool {
        self.opt.is_some()
    }

    /// Returns true if signatures are requested (DO; RFC 3225, section 3).
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.opt.is_some_and(|opt| opt.flags & Opt::DNSSEC_OK != 0)
    }

    /// Returns true for a zone transfer, whose response may be many messages (RFC 5936, RFC 1995).
    #[must_use]
    pub fn is_transfer(&self) -> bool {
        matches!(self.qtype, TYPE_AXFR | TYPE_IXFR)
    }

    /// Writes the cache key: the question section in lower case, then a byte for RD, AD, CD, EDNS and DO.
    /// Returns false if the response may not be cached: the message is not a standard query with a
    /// question section, requests a zone transfer, has the class ANY or NONE, a flag that queries must not
    /// have, a record other than an OPT, or an OPT with a client subnet or something unknown.
    pub fn cache_key(&self, message: &[u8], key: &mut Vec<u8>) -> bool {
        key.clear();
        let Some(&[_, _, high, low]) = message.first_chunk() else { return false };
        let is_plain = high & (QR | OPCODE | AA | TC) == 0 && low & (RA | Z | RCODE) == 0;
        let is_cacheable = is_plain
            && self.has_question_section()
            && self.opcode == OPCODE_QUERY
            && !self.is_transfer()
            && !matches!(self.qclass, CLASS_ANY | CLASS_NONE)
            && !self.has_other_records
            && self.opt.is_none_or(|opt| opt.is_plain());
        if !is_cacheable {
            return false;
        }
        key.extend_from_slice(self.name(message));
        // The length of a label is never a letter, so lengths do not change.
        key.make_ascii_lowercase();
        key.extend_from_slice(&self.qtype.to_be_bytes());
        key.extend_from_slice(&self.qclass.to_be_bytes());
        let edns = if self.has_edns() { KEY_EDNS } else { 0 };
        let dnssec = if self.dnssec_ok() { KEY_DNSSEC } else { 0 };
        key.push(high & RD | low & (AD | CD) | edns | dnssec);
        true
    }

    /// Returns true if `response` has the opcode and question section of this query (RFC 5452, section 9.1).
    /// The ID is not compared, and the case of the name may differ (RFC 4343, section 4.1). A bare header
    /// matches if it is an error, which old servers send to messages that they do not support, or if the
    /// query is an UPDATE (RFC 2136, section 3.8) or has no question section.
    #[must_use]
    pub fn matches_response(&self, message: &[u8], response: &[u8]) -> bool {
        if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(response) {
            let is_error = !matches!(header[3] & 15, NOERROR | NXDOMAIN);
            let has_zero_counts = header[4..].iter().all(|byte| *byte == 0);
            let has_opcode = header[2] & (QR | OPCODE) == QR | self.opcode << 3;
            return has_zero_counts
                && has_opcode
                && (is_error || self.opcode == UPDATE || !self.has_question_section());
        }
        if !self.has_question_section() {
            let has_opcode =
                response.get(2).is_some_and(|flags| flags & (QR | OPCODE) == QR | self.opcode << 3);
            return has_opcode && response.get(4..6) == Some(&[0, 0]);
        }
        let (question_section, end) =
            (self.question_section(message), usize::from(self.question_section_end));
        let Some(received) = response.get(HEADER_BYTES..end) else { return false };
        let Some((name, received_name)) =
            question_section.split_last_chunk::<4>().zip(received.split_last_chunk::<4>())
        else {
            return false;
        };
        response[2] & (QR | OPCODE) == QR | self.opcode << 3
            && response[4..6] == [0, 1]
            && name.1 == received_name.1
            && name.0.eq_ignore_ascii_case(received_name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    #[test]
    fn the_parts_of_a_query_are_read() {
        let check = |name: &str, expected: &str| {
            let message = sample(name);
            let query = Query::parse(&message).unwrap();
            let (opcode, qtype, qclass, size) =
                (query.opcode(), query.qtype(), query.qclass(), query.udp_size());
            let marks = [
                (query.has_edns(), " edns"),
                (query.dnssec_ok(), " do"),
                (query.is_transfer(), " transfer"),
                (query.is_signed, " signed"),
                (query.cache_key(&message, &mut Vec::new()), " cached"),
            ];
            let marks: String = marks.iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| *mark).collect();
            let name = query.name(&message).escape_ascii();
            assert_eq!(format!("{opcode} {name} {qtype} {qclass} {size}{marks}"), expected);
            assert!(query.question_section(&message).starts_with(query.name(&message)));
        };
        check("query", r"0 \x03www\x07example\x03org\x00 1 1 512 cached");
        check("query_edns", r"0 \x03wWw\x07eXample\x03org\x00 65 1 4096 edns do cached");
        check("query_subnet", r"0 \x03www\x07example\x03org\x00 1 1 1232 edns");
        check("query_tsig", r"0 \x03www\x07example\x03org\x00 1 1 1232 edns signed");
        check("update", r"5 \x07example\x03org\x00 6 1 512");
        check("notify", r"4 \x07example\x03org\x00 6 1 512");
        check("ixfr", r"0 \x07example\x03org\x00 251 1 512 transfer");
    }

    fn query_of(name: &[u8]) -> Vec<u8> {
        [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, 1, 0, 1]].concat()
    }

    #[test]
    fn messages_that_are_not_queries_are_refused() {
        let check =
            |message: &[u8], expected| assert_eq!(Query::parse(message), Err(expected), "{message:?}");
        let malformed = |message: Vec<u8>| check(&message, QueryError::Malformed);
        check(&[], QueryError::Short);
        check(&[0; 11], QueryError::Short);
        check(&sample("response"), QueryError::Response);
        check(&[0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], QueryError::Response);
        malformed(vec![0; 12]);
        let plain = sample("query");
        let changed = |at: usize, value| {
            let mut message = plain.clone();
            message[at] = value;
            message
        };
        malformed(changed(5, 2));
        malformed(changed(4, 1));
        [7, 9, 11].into_iter().for_each(|count| malformed(changed(count, 1)));
        // A compression pointer at the start of the name or within the name; labels of unknown types.
        malformed(query_of(&[0xc0, 12]));
        malformed(query_of(&[1, b'a', 0xc0, 12]));
        malformed(query_of(&[0x40, b'a', 0]));
        malformed(query_of(&[0x80, 0]));
        let long = [&[63; 64][..], &[63; 64], &[63; 64]].concat();
        assert!(Query::parse(&query_of(&[&long[..], &[61; 62], &[0]].concat())).is_ok(), "255 bytes");
        malformed(query_of(&[&long[..], &[62; 63], &[0]].concat()));
        let edns = opt(1232, 0, &[]);
        malformed(with_records(plain.clone(), 3, &[edns.clone(), edns.clone()]));
        malformed(with_records(plain.clone(), 1, std::slice::from_ref(&edns)));
        malformed(with_records(plain.clone(), 2, std::slice::from_ref(&edns)));
        malformed(with_records(plain.clone(), 3, &[record(&[1, b'a', 0], 41, 1232, 0, &[])]));
        malformed(with_records(plain.clone(), 3, &[opt(1232, 0, &[0, 10, 0])]));
        malformed(with_records(plain.clone(), 3, &[opt(1232, 0, &[0, 10, 0, 1])]));
        let huge = record(&[0], 16, 1, 0, &[0; 65_500]);
        malformed(with_records(plain, 3, &[huge]));
    }

    #[test]
    fn a_query_may_request_only_a_cookie() {
        let header = |flags: u8| [&[0, 7, flags, 0][..], &[0; 8]].concat();
        let cookie = opt(1232, 0, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let message = with_records(header(0), 3, std::slice::from_ref(&cookie));
        let query = Query::parse(&message).unwrap();
        assert!(!query.has_question_section() && query.has_edns() && !query.is_transfer());
        assert_eq!((query.name(&message), query.question_section(&message)), (&[][..], &[][..]));
        assert!(!query.cache_key(&message, &mut Vec::new()));
        assert_eq!(query.with_client_subnet(&message, [192, 0, 2, 1].into(), 24, &mut Vec::new()), None);
        let response = |flags: u8| with_records(header(flags), 3, &[opt(1232, 0, &[0, 10, 0, 16])]);
        assert!(
            query.matches_response(&message, &response(0x80))
                && query.matches_response(&message, &header(0x80))
        );
        assert!(
            !query.matches_response(&message, &response(0))
                && !query.matches_response(&message, &response(0xa8))
        );
        assert!(
            !query.matches_response(&message, &sample("response"))
                && !query.matches_response(&message, &[0; 3])
        );
        let mut out = Vec::new();
        query.emit_error(&message, 5, &mut out);
        assert_eq!(out, with_records([&[0, 7, 0x80, 5][..], &[0; 8]].concat(), 3, &[opt(1232, 0, &[])]));
        // Malformed: no cookie, another opcode, or other records.
        let malformed = |message: &[u8]| assert_eq!(Query::parse(message), Err(QueryError::Malformed));
        malformed(&with_records(header(0), 3, &[opt(1232, 0, &[])]));
        malformed(&with_records(header(0x28), 3, std::slice::from_ref(&cookie)));
        malformed(&with_records(header(0), 3, &[cookie, record(&[0], 16, 1, 0, &[])]));
    }

    #[test]
    fn bytes_after_the_message_are_ignored() {
        for name in ["query", "query_edns", "query_tsig", "update", "ixfr"] {
            let message = sample(name);
            let filled = [&message[..], &[0; 100]].concat();
            let query = Query::parse(&filled).unwrap();
            assert_eq!(query, Query::parse(&message).unwrap());
            assert_eq!((query.whole(&filled), query.whole(&message)), (&message[..], &message[..]));
        }
    }

    #[test]
    fn sizes_below_the_minimum_count_as_the_minimum() {
        let with = |size| with_records(sample("query"), 3, &[opt(size, 0, &[])]);
        let size = |size| Query::parse(&with(size)).unwrap().udp_size();
        assert_eq!([0, 511, 512, 513, 65_535].map(size), [512, 512, 512, 513, 65_535]);
    }

    fn key_of(message: &[u8]) -> Option<Vec<u8>> {
        let mut key = b"what was there".to_vec();
        Query::parse(message).unwrap().cache_key(message, &mut key).then_some(key)
    }

    #[test]
    fn the_key_has_the_question_section_in_lower_case_and_the_significant_flags() {
        let key = key_of(&sample("query_edns")).unwrap();
        // RD and AD, EDNS and DO. The type is still 65 (HTTPS), although 65 is also the letter `A`.
        assert_eq!(key, b"\x03www\x07example\x03org\0\0A\0\x01\x27");
        let plain = sample("query");
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = plain.clone();
            change(&mut message);
            key_of(&message).unwrap()
        };
        let edns = |ttl, options: &[u8]| key_of(&with_records(plain.clone(), 3, &[opt(1232, ttl, options)]));
        let keys = [
            key_of(&plain).unwrap(),
            changed(&|message| message[2] &= !RD),
            changed(&|message| message[3] |= AD),
            changed(&|message| message[3] |= CD),
            changed(&|message| message[15] = b'x'),
            changed(&|message| *message.last_mut().unwrap() = 3),
            changed(&|message| message[30] = 28),
            edns(0, &[]).unwrap(),
            edns(0x8000, &[]).unwrap(),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "key {at} equals an earlier key");
        }
        let same = [
            changed(&|message| message[..2].fill(7)),
            changed(&|message| message[13..16].make_ascii_uppercase()),
        ];
        assert!(same.iter().all(|key| *key == keys[0]));
        assert_eq!(
            edns(0, &[0, 10, 0, 1, 7, 0, 12, 0, 0, 0, 11, 0, 0]),
            edns(0, &[]),
            "cookie, padding and keepalive do not change the key"
        );
        // An unknown option, flag, version or RCODE prevents caching.
        assert_eq!(edns(0, &[0, 3, 0, 0]), None);
        assert_eq!([0x4000, 0x1_0000, 0x100_0000].map(|ttl| edns(ttl, &[])), [None, None, None]);
    }

    #[test]
    fn queries_with_unexpected_flags_classes_or_records_have_no_cache_key() {
        let check = |at: usize, value: u8| {
            let mut message = sample("query");
            message[at] |= value;
            assert_eq!(key_of(&message), None, "byte {at} with {value:#x}");
        };
        [(2, AA), (2, TC), (2, 0x10), (3, RA), (3, Z), (3, 1)]
            .into_iter()
            .for_each(|(at, flag)| check(at, flag));
        check(32, 254);
        check(32, 255);
        let other = record(&[0], 16, 1, 0, &[]);
        (1..=3).for_each(|section| {
            assert_eq!(key_of(&with_records(sample("query"), section, std::slice::from_ref(&other))), None);
        });
        let sig0 = record(&[0], 24, 255, 0, &[0; 20]);
        let signed = with_records(sample("query"), 3, &[sig0]);
        assert!(Query::parse(&signed).unwrap().is_signed);
    }

    #[test]
    fn a_response_matches_only_with_the_same_opcode_and_question_section() {
        let message = sample("query");
        let query = Query::parse(&message).unwrap();
        let check = |expected: bool, response: &[u8]| {
            assert_eq!(query.matches_response(&message, response), expected, "{response:?}");
        };
        let changed = |at: usize, value: u8| {
            let mut response = sample("response");
            response[at] = value;
            response
        };
        for name in ["response", "response_edns", "nxdomain", "nodata", "referral", "truncated", "servfail"] {
            check(true, &sample(name));
        }
        check(true, &changed(0, 0xff));
        check(true, &changed(14, b'W'));
        check(true, &sample("response")[..33]);
        check(false, &sample("response")[..32]);
        check(false, &sample("mx"));
        check(false, &message);
        // Another opcode, QDCOUNT (two bytes), letter, label length, type or class.
        for (at, value) in [(2, 0xa1), (4, 1), (5, 0), (5, 2), (13, b'x'), (12, 4), (30, 28), (32, 3)] {
            check(false, &changed(at, value));
        }
        check(false, &[]);
        assert!(!query.matches_response(&[], &sample("response")), "not the parsed message");
        // `[` and `{`, like `@` and the backtick, differ by the same bit as letters of different case, but are
        // not letters.
        let (odd, other) = (query_of(&[2, b'[', b'@', 0]), query_of(&[2, b'{', b'`', 0]));
        let mut response = other.clone();
        response[2] |= QR;
        assert!(Query::parse(&other).unwrap().matches_response(&other, &response));
        assert!(!Query::parse(&odd).unwrap().matches_response(&odd, &response));
    }

    #[test]
    fn a_bare_header_matches_only_as_an_error_or_a_response_to_an_update() {
        let header =
            |flags: [u8; 2], counts: [u8; 2]| [[0, 7], flags, counts, [0; 2], [0; 2], [0; 2]].concat();
        let mut message = [header([1, 0], [0, 1]), b"\x01a\0\0\x01\0\x01".to_vec()].concat();
        let check = |message: &[u8], expected: [bool; 6]| {
            let query = Query::parse(message).unwrap();
            let opcode = message[2] & OPCODE;
            let rcodes = [1, 4, 5, NOERROR, NXDOMAIN];
            let seen =
                rcodes.map(|code| query.matches_response(message, &header([0x80 | opcode, code], [0, 0])));
            let counted = query.matches_response(message, &header([0x80 | opcode, 1], [0, 1]));
            assert_eq!([seen[0], seen[1], seen[2], seen[3], seen[4], counted], expected);
            assert!(
                !query.matches_response(message, &header([opcode, 1], [0, 0])),
                "a query is not a response"
            );
        };
        check(&message, [true, true, true, false, false, false]);
        message[2] = UPDATE << 3;
        check(&message, [true, true, true, true, true, false]);
    }
}
