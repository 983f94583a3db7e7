//! What of a question is looked at. This is the hot path of the data plane: nothing here allocates, but for a key that grows.

use super::options::{self, COOKIE, HOPS, HOPS_SIGN, KEEPALIVE, OPTION_HEAD, PADDING, SUBNET};
use super::record::{Record, Records, records_start};
use super::{
    AA, CLASS_ANY, CLASS_NONE, HEADER_BYTES, MESSAGE_BYTES_MAX, OPCODE, OPCODE_QUERY, QR, RA, RCODE, TC,
    TYPE_AXFR, TYPE_IXFR, TYPE_OPT, UDP_BYTES, Z, number_at, opcode,
};
use super::{AD, CD, RD};
use super::{NOERROR, NXDOMAIN, UPDATE};

/// In a byte of the key, beside RD, AD and CD: the question has an OPT, and that wants DNSSEC.
const KEY_EDNS: u8 = 0x02;
const KEY_DNSSEC: u8 = 0x04;

/// Why bytes are not a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// They are too few for a header: nothing to answer to.
    #[error("shorter than the header of a DNS message")]
    Short,
    /// They are an answer; to answer it could go on for ever.
    #[error("an answer, not a question")]
    Answer,
    /// They are to be answered by FORMERR.
    #[error("a malformed question")]
    Malformed,
}

/// What was read of a question: offsets into its message, which the methods want again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where the question ends: type and class are its last four bytes. Where there is none, the header ends there.
    pub(super) question_end: u16,
    /// Where the last record ends.
    pub(super) end: u16,
    pub(super) opt: Option<Opt>,
    pub(super) opcode: u8,
    qtype: u16,
    qclass: u16,
    pub(super) is_signed: bool,
    has_other_records: bool,
}

/// What an OPT record says (RFC 6891, section 6.1.2 to 6.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opt {
    pub(super) at: u16,
    pub(super) end: u16,
    size: u16,
    rcode_high: u8,
    pub(super) version: u8,
    flags: u16,
    pub(super) has_subnet: bool,
    pub(super) has_cookie: bool,
    pub(super) has_keepalive: bool,
    has_other_options: bool,
    /// Where the number of instances is that passed it on; 0 where none is said.
    hops_at: u16,
}

impl Opt {
    const DNSSEC_OK: u16 = 0x8000;

    fn read(message: &[u8], record: &Record) -> Option<Self> {
        let (mut has_subnet, mut has_cookie, mut has_keepalive) = (false, false, false);
        let (mut has_other_options, mut hops_at) = (false, 0);
        for option in options::all(message, record) {
            let option = option?;
            match option.code {
                PADDING => {}
                COOKIE => has_cookie = true,
                KEEPALIVE => has_keepalive = true,
                SUBNET => has_subnet = true,
                HOPS if message[option.place.start + OPTION_HEAD..option.place.end]
                    .starts_with(&HOPS_SIGN)
                    && option.place.len() == OPTION_HEAD + HOPS_SIGN.len() + 1 =>
                {
                    hops_at = u16::try_from(option.place.end - 1).ok()?;
                }
                _ => has_other_options = true,
            }
        }
        let [rcode_high, version] = number_at(message, record.ttl_at())?.to_be_bytes();
        Some(Self {
            at: u16::try_from(record.at).ok()?,
            end: u16::try_from(record.end).ok()?,
            size: number_at(message, record.fixed + 2)?,
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

    /// Whether an answer to it is one to whoever asks the same: nothing in it is one client's alone, or unknown.
    fn is_plain(&self) -> bool {
        let flags = self.flags & !Self::DNSSEC_OK;
        self.version == 0 && self.rcode_high == 0 && flags == 0 && !self.has_subnet && !self.has_other_options
    }
}

impl Query {
    /// Reads a question. There is exactly one, its name is well-formed and not compressed; the records of all sections lie
    /// within the message; there is at most one OPT (RFC 6891, section 6.1.1). All opcodes are read alike. Without a question
    /// it is a query if it asks for a cookie and nothing else (RFC 7873, section 5.4). Bytes after the last record are no part
    /// of the message: some clients fill it up to 512.
    pub fn parse(message: &[u8]) -> Result<Self, QueryError> {
        match message.get(..HEADER_BYTES) {
            None => Err(QueryError::Short),
            Some(header) if header[2] & QR != 0 => Err(QueryError::Answer),
            Some(_) => Self::read(message).ok_or(QueryError::Malformed),
        }
    }

    fn read(message: &[u8]) -> Option<Self> {
        if message.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let end = records_start(message)?;
        let has_question = end > HEADER_BYTES;
        let number = |at: usize| if has_question { number_at(message, at) } else { Some(0) };
        let mut query = Self {
            question_end: u16::try_from(end).ok()?,
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
        (has_question || query.asks_for_cookie_alone()).then_some(query)
    }

    fn asks_for_cookie_alone(&self) -> bool {
        let has_cookie = self.opt.is_some_and(|opt| opt.has_cookie);
        self.opcode == OPCODE_QUERY && has_cookie && !self.has_other_records
    }

    fn take(&mut self, message: &[u8], record: &Record) -> Option<()> {
        if record.rtype != TYPE_OPT {
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

    /// The message without what comes after its last record.
    #[must_use]
    pub fn whole<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(..usize::from(self.end)).unwrap_or(message)
    }

    /// Whether it has a question; otherwise it asks for a cookie.
    #[must_use]
    pub fn has_question(&self) -> bool {
        usize::from(self.question_end) > HEADER_BYTES
    }

    /// Returns the number of instances of Evener that passed it on, as far as they said so.
    #[must_use]
    pub fn hops(&self, message: &[u8]) -> u8 {
        self.hops_at().map_or(0, |at| message.get(at).copied().unwrap_or_default())
    }

    /// Counts one more instance that passes it on, where they are counted. A signed message stays as it is.
    pub fn count_hop(&self, message: &mut [u8]) {
        if let Some(hops) = self.hops_at().filter(|_| !self.is_signed).and_then(|at| message.get_mut(at)) {
            *hops = hops.saturating_add(1);
        }
    }

    fn hops_at(&self) -> Option<usize> {
        self.opt.map(|opt| usize::from(opt.hops_at)).filter(|at| *at > 0)
    }

    /// What is wanted: 0 is a query, 4 NOTIFY, 5 UPDATE.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.opcode
    }

    /// The type that is asked for.
    #[must_use]
    pub fn qtype(&self) -> u16 {
        self.qtype
    }

    /// The class that is asked for.
    #[must_use]
    pub fn qclass(&self) -> u16 {
        self.qclass
    }

    /// The name that is asked for, in wire form as it was asked.
    #[must_use]
    pub fn name<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(HEADER_BYTES..usize::from(self.question_end) - 4).unwrap_or_default()
    }

    /// Name, type and class.
    #[must_use]
    pub fn question<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(HEADER_BYTES..usize::from(self.question_end)).unwrap_or_default()
    }

    /// How long an answer over UDP may be (RFC 6891, section 6.2.3).
    #[must_use]
    pub fn udp_size(&self) -> usize {
        self.opt.map_or(UDP_BYTES, |opt| usize::from(opt.size).max(UDP_BYTES))
    }

    /// Whether it has an OPT.
    #[must_use]
    pub fn has_edns(&self) -> bool {
        self.opt.is_some()
    }

    /// Whether signatures are wanted (DO; RFC 3225, section 3).
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.opt.is_some_and(|opt| opt.flags & Opt::DNSSEC_OK != 0)
    }

    /// Whether a zone is asked for, whose answer may be many messages (RFC 5936, RFC 1995).
    #[must_use]
    pub fn is_transfer(&self) -> bool {
        matches!(self.qtype, TYPE_AXFR | TYPE_IXFR)
    }

    /// Writes the key that answers are kept by: the question in lower case, then a byte for RD, AD, CD, the presence of EDNS
    /// and DO. False when its answer is not to be kept: it is no query, a transfer, of a class that is none, has flags that
    /// a question has not, or more than the question and an OPT without options that could matter.
    pub fn cache_key(&self, message: &[u8], key: &mut Vec<u8>) -> bool {
        key.clear();
        let Some(&[_, _, high, low]) = message.first_chunk() else { return false };
        let is_plain = high & (QR | OPCODE | AA | TC) == 0 && low & (RA | Z | RCODE) == 0;
        let is_kept = is_plain
            && self.has_question()
            && self.opcode == OPCODE_QUERY
            && !self.is_transfer()
            && !matches!(self.qclass, CLASS_ANY | CLASS_NONE)
            && !self.has_other_records
            && self.opt.is_none_or(|opt| opt.is_plain());
        if !is_kept {
            return false;
        }
        key.extend_from_slice(self.name(message));
        // No length of a label is a letter: the lengths stay.
        key.make_ascii_lowercase();
        key.extend_from_slice(&self.qtype.to_be_bytes());
        key.extend_from_slice(&self.qclass.to_be_bytes());
        let edns = if self.has_edns() { KEY_EDNS } else { 0 };
        let dnssec = if self.dnssec_ok() { KEY_DNSSEC } else { 0 };
        key.push(high & RD | low & (AD | CD) | edns | dnssec);
        true
    }

    /// Whether `answer` is one to this question (RFC 5452, section 9.1), IDs aside: same opcode, same question. The case of
    /// the name may differ, as servers may change it (RFC 4343, section 4.1). A bare header counts, too, where it is an answer
    /// to UPDATE (RFC 2136, section 3.8) or tells of a failure: so old servers answer what they do not understand.
    #[must_use]
    pub fn is_answered_by(&self, message: &[u8], answer: &[u8]) -> bool {
        if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(answer) {
            let says_no = !matches!(header[3] & 15, NOERROR | NXDOMAIN);
            let is_whole = header[4..].iter().all(|byte| *byte == 0);
            let is_ours = header[2] & (QR | OPCODE) == QR | self.opcode << 3;
            return is_whole && is_ours && (says_no || self.opcode == UPDATE || !self.has_question());
        }
        if !self.has_question() {
            let is_ours = answer.get(2).is_some_and(|flags| flags & (QR | OPCODE) == QR | self.opcode << 3);
            return is_ours && answer.get(4..6) == Some(&[0, 0]);
        }
        let (question, end) = (self.question(message), usize::from(self.question_end));
        let Some(answered) = answer.get(HEADER_BYTES..end) else { return false };
        let Some((name, answered_name)) =
            question.split_last_chunk::<4>().zip(answered.split_last_chunk::<4>())
        else {
            return false;
        };
        answer[2] & (QR | OPCODE) == QR | self.opcode << 3
            && answer[4..6] == [0, 1]
            && name.1 == answered_name.1
            && name.0.eq_ignore_ascii_case(answered_name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    #[test]
    fn what_a_question_says() {
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
                (query.cache_key(&message, &mut Vec::new()), " kept"),
            ];
            let marks: String = marks.iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| *mark).collect();
            let name = query.name(&message).escape_ascii();
            assert_eq!(format!("{opcode} {name} {qtype} {qclass} {size}{marks}"), expected);
            assert!(query.question(&message).starts_with(query.name(&message)));
        };
        check("question", r"0 \x03www\x07example\x03org\x00 1 1 512 kept");
        check("question_edns", r"0 \x03wWw\x07eXample\x03org\x00 65 1 4096 edns do kept");
        check("question_subnet", r"0 \x03www\x07example\x03org\x00 1 1 1232 edns");
        check("question_tsig", r"0 \x03www\x07example\x03org\x00 1 1 1232 edns signed");
        check("update", r"5 \x07example\x03org\x00 6 1 512");
        check("notify", r"4 \x07example\x03org\x00 6 1 512");
        check("ixfr", r"0 \x07example\x03org\x00 251 1 512 transfer");
    }

    fn question_of(name: &[u8]) -> Vec<u8> {
        [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, 1, 0, 1]].concat()
    }

    #[test]
    fn what_is_no_question() {
        let check =
            |message: &[u8], expected| assert_eq!(Query::parse(message), Err(expected), "{message:?}");
        let malformed = |message: Vec<u8>| check(&message, QueryError::Malformed);
        check(&[], QueryError::Short);
        check(&[0; 11], QueryError::Short);
        check(&sample("answer"), QueryError::Answer);
        check(&[0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], QueryError::Answer);
        malformed(vec![0; 12]);
        let plain = sample("question");
        let changed = |at: usize, value| {
            let mut message = plain.clone();
            message[at] = value;
            message
        };
        malformed(changed(5, 2));
        malformed(changed(4, 1));
        [7, 9, 11].into_iter().for_each(|count| malformed(changed(count, 1)));
        // A pointer, at the begin of the name and amid it; labels of other kinds.
        malformed(question_of(&[0xc0, 12]));
        malformed(question_of(&[1, b'a', 0xc0, 12]));
        malformed(question_of(&[0x40, b'a', 0]));
        malformed(question_of(&[0x80, 0]));
        let long = [&[63; 64][..], &[63; 64], &[63; 64]].concat();
        assert!(Query::parse(&question_of(&[&long[..], &[61; 62], &[0]].concat())).is_ok(), "255 bytes");
        malformed(question_of(&[&long[..], &[62; 63], &[0]].concat()));
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
    fn a_query_may_ask_for_a_cookie_alone() {
        let header = |flags: u8| [&[0, 7, flags, 0][..], &[0; 8]].concat();
        let cookie = opt(1232, 0, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let message = with_records(header(0), 3, std::slice::from_ref(&cookie));
        let query = Query::parse(&message).unwrap();
        assert!(!query.has_question() && query.has_edns() && !query.is_transfer());
        assert_eq!((query.name(&message), query.question(&message)), (&[][..], &[][..]));
        assert!(!query.cache_key(&message, &mut Vec::new()));
        assert_eq!(query.with_client_subnet(&message, [192, 0, 2, 1].into(), 24, &mut Vec::new()), None);
        let answer = |flags: u8| with_records(header(flags), 3, &[opt(1232, 0, &[0, 10, 0, 16])]);
        assert!(
            query.is_answered_by(&message, &answer(0x80)) && query.is_answered_by(&message, &header(0x80))
        );
        assert!(
            !query.is_answered_by(&message, &answer(0)) && !query.is_answered_by(&message, &answer(0xa8))
        );
        assert!(
            !query.is_answered_by(&message, &sample("answer")) && !query.is_answered_by(&message, &[0; 3])
        );
        let mut out = Vec::new();
        query.emit_error(&message, 5, &mut out);
        assert_eq!(out, with_records([&[0, 7, 0x80, 5][..], &[0; 8]].concat(), 3, &[opt(1232, 0, &[])]));
        // Not without a cookie, with another opcode, or beside other records.
        let malformed = |message: &[u8]| assert_eq!(Query::parse(message), Err(QueryError::Malformed));
        malformed(&with_records(header(0), 3, &[opt(1232, 0, &[])]));
        malformed(&with_records(header(0x28), 3, std::slice::from_ref(&cookie)));
        malformed(&with_records(header(0), 3, &[cookie, record(&[0], 16, 1, 0, &[])]));
    }

    #[test]
    fn bytes_after_the_message_are_no_part_of_it() {
        for name in ["question", "question_edns", "question_tsig", "update", "ixfr"] {
            let message = sample(name);
            let filled = [&message[..], &[0; 100]].concat();
            let query = Query::parse(&filled).unwrap();
            assert_eq!(query, Query::parse(&message).unwrap());
            assert_eq!((query.whole(&filled), query.whole(&message)), (&message[..], &message[..]));
        }
    }

    #[test]
    fn sizes_below_the_least_are_the_least() {
        let with = |size| with_records(sample("question"), 3, &[opt(size, 0, &[])]);
        let size = |size| Query::parse(&with(size)).unwrap().udp_size();
        assert_eq!([0, 511, 512, 513, 65_535].map(size), [512, 512, 512, 513, 65_535]);
    }

    fn key_of(message: &[u8]) -> Option<Vec<u8>> {
        let mut key = b"what was there".to_vec();
        Query::parse(message).unwrap().cache_key(message, &mut key).then_some(key)
    }

    #[test]
    fn the_key_is_the_question_in_lower_case_and_what_changes_the_answer() {
        let key = key_of(&sample("question_edns")).unwrap();
        // RD and AD, EDNS and DO; the type is HTTPS still, whose number is that of a letter.
        assert_eq!(key, b"\x03www\x07example\x03org\0\0A\0\x01\x27");
        let plain = sample("question");
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
            assert!(!keys[..at].contains(key), "key {at} is another one's, too");
        }
        let same = [
            changed(&|message| message[..2].fill(7)),
            changed(&|message| message[13..16].make_ascii_uppercase()),
        ];
        assert!(same.iter().all(|key| *key == keys[0]));
        assert_eq!(edns(0, &[0, 10, 0, 1, 7, 0, 12, 0, 0, 0, 11, 0, 0]), edns(0, &[]), "what is no matter");
        // An unknown option, flag, version, and rcode.
        assert_eq!(edns(0, &[0, 3, 0, 0]), None);
        assert_eq!([0x4000, 0x1_0000, 0x100_0000].map(|ttl| edns(ttl, &[])), [None, None, None]);
    }

    #[test]
    fn questions_with_odd_flags_or_classes_are_not_kept() {
        let check = |at: usize, value: u8| {
            let mut message = sample("question");
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
            assert_eq!(
                key_of(&with_records(sample("question"), section, std::slice::from_ref(&other))),
                None
            );
        });
        let sig0 = record(&[0], 24, 255, 0, &[0; 20]);
        let signed = with_records(sample("question"), 3, &[sig0]);
        assert!(Query::parse(&signed).unwrap().is_signed);
    }

    #[test]
    fn an_answer_has_the_same_question() {
        let question = sample("question");
        let query = Query::parse(&question).unwrap();
        let check = |expected: bool, answer: &[u8]| {
            assert_eq!(query.is_answered_by(&question, answer), expected, "{answer:?}");
        };
        let changed = |at: usize, value: u8| {
            let mut answer = sample("answer");
            answer[at] = value;
            answer
        };
        for name in ["answer", "answer_edns", "nxdomain", "nodata", "referral", "truncated", "servfail"] {
            check(true, &sample(name));
        }
        check(true, &changed(0, 0xff));
        check(true, &changed(14, b'W'));
        check(true, &sample("answer")[..33]);
        check(false, &sample("answer")[..32]);
        check(false, &sample("mx"));
        check(false, &question);
        // The opcode, QDCOUNT, a letter, the length of a label, type and class.
        for (at, value) in [(2, 0xa1), (4, 1), (5, 0), (5, 2), (13, b'x'), (12, 4), (30, 28), (32, 3)] {
            check(false, &changed(at, value));
        }
        check(false, &[]);
        assert!(!query.is_answered_by(&[], &sample("answer")), "another message than what was read");
        // `[` and `{` differ by the bit that letters differ by, `A` and `!` do not count as letters, either.
        let (odd, other) = (question_of(&[2, b'[', b'@', 0]), question_of(&[2, b'{', b'`', 0]));
        let mut answer = other.clone();
        answer[2] |= QR;
        assert!(Query::parse(&other).unwrap().is_answered_by(&other, &answer));
        assert!(!Query::parse(&odd).unwrap().is_answered_by(&odd, &answer));
    }

    #[test]
    fn a_bare_header_tells_of_failures_and_of_updates_only() {
        let header =
            |flags: [u8; 2], counts: [u8; 2]| [[0, 7], flags, counts, [0; 2], [0; 2], [0; 2]].concat();
        let mut message = [header([1, 0], [0, 1]), b"\x01a\0\0\x01\0\x01".to_vec()].concat();
        let check = |message: &[u8], expected: [bool; 6]| {
            let query = Query::parse(message).unwrap();
            let opcode = message[2] & OPCODE;
            let rcodes = [1, 4, 5, NOERROR, NXDOMAIN];
            let seen =
                rcodes.map(|code| query.is_answered_by(message, &header([0x80 | opcode, code], [0, 0])));
            let counted = query.is_answered_by(message, &header([0x80 | opcode, 1], [0, 1]));
            assert_eq!([seen[0], seen[1], seen[2], seen[3], seen[4], counted], expected);
            assert!(!query.is_answered_by(message, &header([opcode, 1], [0, 0])), "a question is no answer");
        };
        check(&message, [true, true, true, false, false, false]);
        message[2] = UPDATE << 3;
        check(&message, [true, true, true, true, true, false]);
    }
}
