//! Which answers are kept, what of them, and for how long (RFC 1035, section 7.4; RFC 2181, sections 5.2 and 8; RFC 2308).

use crate::spec::DnsCacheSpec;
use crate::wire::dns::{
    HEADER_BYTES, MESSAGE_BYTES_MAX, NOERROR, NXDOMAIN, Record, Records, SERVFAIL, Section, TYPE_ANY,
    TYPE_CNAME, TYPE_DNAME, TYPE_OPT, TYPE_SOA, is_query_answer, is_truncated, number_at, question_end,
    rcode, retain_options, set_id,
};
use std::time::Duration;

/// The TTL of stale records (RFC 8767, section 4).
const STALE_TTL: u32 = 30;
/// That a server failed is not believed longer (RFC 2308, section 7.1).
const FAILURE_MAX: Duration = Duration::from_secs(300);
/// Two names of at least a byte, and five numbers (RFC 1035, section 3.3.13).
const SOA_BYTES_MIN: usize = 22;

/// What an answer is to whoever keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is something, or surely nothing.
    Answer,
    /// The server failed.
    Failure,
}

/// An answer as it is kept: its ID is 0, its OPT has no options.
#[derive(Debug)]
pub(super) struct Kept {
    message: Box<[u8]>,
    /// Where its TTLs are.
    ttls: Box<[u16]>,
    pub(super) kind: Kind,
    /// How long it is fresh.
    pub(super) lifetime: Duration,
}

impl Kept {
    /// What is kept of an answer to the question that `key` begins with; none if it is not to be kept.
    pub(super) fn new(key: &[u8], answer: &[u8], spec: &DnsCacheSpec) -> Option<Self> {
        if !is_query_answer(answer) || is_truncated(answer) || answer.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let mut look = Look::at(key, answer)?;
        let (kind, lifetime) = look.judge(answer, spec)?;
        let mut message = answer.to_vec();
        set_id(&mut message, 0);
        look.lower_negative_ttl(&mut message);
        if look.has_options {
            // They are one client's, such as a cookie (RFC 7873, section 5).
            if !retain_options(&mut message, |_| false) {
                return None;
            }
            // What came after the options has moved.
            look = Look::at(key, &message)?;
        }
        Some(Self { message: message.into(), ttls: look.ttls.into(), kind, lifetime })
    }

    /// The bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.message.len() + size_of_val(&*self.ttls)
    }

    /// Writes it as it is after some time.
    pub(super) fn emit(&self, elapsed: Duration, out: &mut Vec<u8>) {
        let elapsed = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX);
        self.emit_with(|ttl| ttl.saturating_sub(elapsed), out);
    }

    /// Writes it as it is given when it has expired.
    pub(super) fn emit_stale(&self, out: &mut Vec<u8>) {
        self.emit_with(|_| STALE_TTL, out);
    }

    fn emit_with(&self, change: impl Fn(u32) -> u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.message);
        for &at in &self.ttls {
            if let Some(place) = out.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut) {
                *place = change(u32::from_be_bytes(*place)).to_be_bytes();
            }
        }
    }
}

/// What was seen on the walk over an answer.
#[derive(Debug)]
struct Look {
    qtype: u16,
    ttls: Vec<u16>,
    /// The least TTL, but for that of the OPT, which is none.
    ttl_least: u32,
    /// Among the answers is one of the type that was asked for.
    has_match: bool,
    /// Among the answers is an alias.
    has_alias: bool,
    /// The SOA of the authority section: where its TTL is, and how long a negative answer is believed.
    negative: Option<(usize, u32)>,
    has_opt: bool,
    has_options: bool,
}

impl Look {
    /// Walks over an answer; none if it does not fill its bytes, is signed, has an OPT of another version or an extended
    /// rcode, or answers another question.
    fn at(key: &[u8], answer: &[u8]) -> Option<Self> {
        let end = question_end(answer)?;
        if !is_asked(key, &answer[HEADER_BYTES..end]) {
            return None;
        }
        let mut look = Self {
            qtype: number_at(answer, end - 4)?,
            ttls: Vec::new(),
            ttl_least: u32::MAX,
            has_match: false,
            has_alias: false,
            negative: None,
            has_opt: false,
            has_options: false,
        };
        let mut records = Records::new(answer, end);
        for record in records.by_ref() {
            look.take(answer, &record.ok()?)?;
        }
        (records.at() == answer.len()).then_some(look)
    }

    fn take(&mut self, answer: &[u8], record: &Record) -> Option<()> {
        if record.is_signature(answer) {
            return None;
        }
        if record.rtype == TYPE_OPT {
            return self.take_opt(answer, record);
        }
        let ttl = ttl_at(answer, record.ttl_at())?;
        self.ttls.push(u16::try_from(record.ttl_at()).ok()?);
        self.ttl_least = self.ttl_least.min(ttl);
        match record.section {
            Section::Answer => {
                self.has_match |= record.rtype == self.qtype || self.qtype == TYPE_ANY;
                self.has_alias |= matches!(record.rtype, TYPE_CNAME | TYPE_DNAME);
            }
            Section::Authority if record.rtype == TYPE_SOA => {
                let is_whole = record.end - record.data_at() >= SOA_BYTES_MIN;
                let minimum = ttl_at(answer, record.end - 4).filter(|_| is_whole)?;
                self.negative = Some((record.ttl_at(), ttl.min(minimum)));
            }
            Section::Authority | Section::Additional => {}
        }
        Some(())
    }

    fn take_opt(&mut self, answer: &[u8], record: &Record) -> Option<()> {
        let (extended, version) = (answer.get(record.ttl_at())?, answer.get(record.ttl_at() + 1)?);
        if self.has_opt || !record.is_opt_in_place() || *extended != 0 || *version != 0 {
            return None;
        }
        self.has_opt = true;
        self.has_options = record.data_at() < record.end;
        Some(())
    }

    /// What it is, and for how long it is to be kept, if it is.
    fn judge(&self, answer: &[u8], spec: &DnsCacheSpec) -> Option<(Kind, Duration)> {
        let least = Duration::from_secs(self.ttl_least.into());
        let (kind, lifetime) = match rcode(answer) {
            SERVFAIL => (Kind::Failure, spec.failure_ttl.min(FAILURE_MAX)),
            _ if self.is_negative(answer) => {
                // Without an SOA nobody says for how long (RFC 2308, section 5); it may be a referral, too.
                let (_, ttl) = self.negative?;
                (Kind::Answer, spec.negative_ttl_max.min(Duration::from_secs(ttl.into())).min(spec.ttl_max))
            }
            NOERROR => (Kind::Answer, spec.ttl_max),
            _ => return None,
        };
        let lifetime = lifetime.min(least);
        (!lifetime.is_zero()).then_some((kind, lifetime))
    }

    /// Whether there is no such name, or nothing of that type (RFC 2308, section 2). An alias whose target another server
    /// knows is no such answer, unless an SOA says that it is.
    fn is_negative(&self, answer: &[u8]) -> bool {
        let is_nodata = !self.has_match && (!self.has_alias || self.negative.is_some());
        rcode(answer) == NXDOMAIN || rcode(answer) == NOERROR && is_nodata
    }

    /// Whoever gets a negative answer from here must not believe it longer than the SOA says (RFC 2308, sections 3 and 5).
    fn lower_negative_ttl(&self, message: &mut [u8]) {
        let Some((at, ttl)) = self.negative.filter(|_| self.is_negative(message)) else { return };
        if let Some(place) = message.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *place = ttl.to_be_bytes();
        }
    }
}

/// Whether a key begins with the question of an answer.
fn is_asked(key: &[u8], question: &[u8]) -> bool {
    let asked = key.get(..question.len()).and_then(<[u8]>::split_last_chunk::<4>);
    asked.zip(question.split_last_chunk::<4>()).is_some_and(|((asked, asked_type), (name, of_type))| {
        asked_type == of_type && asked.eq_ignore_ascii_case(name)
    })
}

/// The TTL at a place. One with the highest bit set counts as zero (RFC 2181, section 8).
fn ttl_at(message: &[u8], at: usize) -> Option<u32> {
    let ttl = message.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
    Some(if ttl >> 31 == 0 { ttl } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::dns::samples::{answer, key, opt, record, sample, with_records};
    use crate::wire::dns::{FORMERR, NOTIMP, REFUSED};

    fn keep(text: &str, message: &[u8]) -> Option<Kept> {
        Kept::new(&key(text), message, &DnsCacheSpec::default())
    }

    fn secs(kept: Option<&Kept>) -> Option<u64> {
        kept.map(|kept| kept.lifetime.as_secs())
    }

    #[test]
    fn how_long_answers_are_kept() {
        let check = |text: &str, rcode: u8, records: &[&str], expected: Option<u64>| {
            let kept = keep(text, &answer(text, rcode, records));
            assert_eq!(secs(kept.as_ref()), expected, "{text} {rcode} {records:?}");
        };
        let check_a =
            |rcode, records: &[&str], expected| check("www.example.org A", rcode, records, expected);
        check_a(NOERROR, &["1 A 300"], Some(300));
        check_a(NOERROR, &["1 A 300", "1 A 60"], Some(60));
        check_a(NOERROR, &["1 A 300", "2 NS 200", "3 A 100"], Some(100));
        check_a(NOERROR, &["1 A 300", "1 A 0"], None);
        check_a(NOERROR, &["1 A 2147483648"], None);
        check_a(NOERROR, &["1 A 2147483647"], Some(86_400));
        check_a(NOERROR, &["1 CNAME 50", "1 A 300"], Some(50));
        // An alias without its target: with a referral, with nothing, and with the word that there is nothing.
        check_a(NOERROR, &["1 CNAME 50"], Some(50));
        check_a(NOERROR, &["1 DNAME 50", "2 NS 40"], Some(40));
        check_a(NOERROR, &["1 CNAME 500", "2 SOA 400 30"], Some(30));
        check_a(NXDOMAIN, &["1 CNAME 500", "2 SOA 400 30"], Some(30));
        check_a(NXDOMAIN, &["1 CNAME 20", "2 SOA 400 30"], Some(20));
        check_a(NXDOMAIN, &["1 CNAME 500"], None);
        // A positive answer with an SOA beside it.
        check_a(NOERROR, &["1 A 300", "2 SOA 400 30"], Some(300));
        // Negative ones: TTL and minimum of the SOA, the bound, none of which is zero.
        check_a(NXDOMAIN, &["2 SOA 3600 60"], Some(60));
        check_a(NXDOMAIN, &["2 SOA 60 3600"], Some(60));
        check_a(NXDOMAIN, &["2 SOA 90000 90000"], Some(3600));
        check_a(NXDOMAIN, &["2 SOA 3600 0"], None);
        check_a(NXDOMAIN, &["2 SOA 0 3600"], None);
        check_a(NXDOMAIN, &["2 SOA 3600 4294967295"], None);
        check_a(NOERROR, &["2 SOA 3600 60"], Some(60));
        check_a(NOERROR, &["2 SOA 3600 60", "2 NS 10"], Some(10));
        check_a(NXDOMAIN, &[], None);
        check_a(NXDOMAIN, &["2 SOA 3600"], None);
        check_a(NXDOMAIN, &["3 SOA 3600 60"], None);
        // Nothing, referrals, and what does not answer.
        check_a(NOERROR, &[], None);
        check_a(NOERROR, &["2 NS 300", "3 A 300"], None);
        check_a(NOERROR, &["1 TXT 300"], None);
        check("example.org ANY", NOERROR, &["1 TXT 300"], Some(300));
        check("example.org CNAME", NOERROR, &["1 CNAME 300"], Some(300));
        check_a(SERVFAIL, &[], Some(1));
        check_a(SERVFAIL, &["2 SOA 3600 60"], Some(1));
        [FORMERR, NOTIMP, REFUSED, 9].into_iter().for_each(|rcode| check_a(rcode, &["1 A 300"], None));
        check_a(NOERROR, &["1 A 300", "3 OPT 32768"], None);
    }

    #[test]
    fn bounds_are_those_of_the_configuration() {
        let spec = DnsCacheSpec {
            ttl_max: Duration::from_secs(20),
            negative_ttl_max: Duration::from_secs(500),
            failure_ttl: Duration::from_secs(900),
            ..DnsCacheSpec::default()
        };
        let check = |spec: &DnsCacheSpec, rcode, records: &[&str], expected| {
            let message = answer("a A", rcode, records);
            assert_eq!(secs(Kept::new(&key("a A"), &message, spec).as_ref()), expected);
        };
        check(&spec, NOERROR, &["1 A 300"], Some(20));
        check(&spec, NXDOMAIN, &["2 SOA 300 300"], Some(20));
        check(&spec, SERVFAIL, &[], Some(300));
        check(&DnsCacheSpec { failure_ttl: Duration::ZERO, ..spec }, SERVFAIL, &[], None);
    }

    #[test]
    fn what_is_not_whole_or_not_for_all_is_not_kept() {
        let text = "www.example.org A";
        let whole = answer(text, NOERROR, &["1 A 300"]);
        let check = |message: &[u8]| assert!(keep(text, message).is_none(), "{message:?}");
        assert!(keep(text, &whole).is_some());
        (0..whole.len()).for_each(|end| check(&whole[..end]));
        check(&[&whole[..], &[0]].concat());
        check(&sample("truncated"));
        check(&sample("question"));
        // The opcode, QDCOUNT, and other questions.
        for (at, value) in [(2, 0xa1), (5, 0), (5, 2), (13, b'x'), (30, 28), (32, 3)] {
            let mut message = whole.clone();
            message[at] = value;
            check(&message);
        }
        let with = |records: &[Vec<u8>]| with_records(whole.clone(), 3, records);
        let tsig = record(&[1, b'k', 0], 250, 255, 0, &[0; 16]);
        check(&with(&[tsig]));
        check(&with(&[record(&[0], 24, 255, 0, &[0; 20])]));
        let edns = opt(1232, 0x8000, &[]);
        assert!(keep(text, &with(std::slice::from_ref(&edns))).is_some());
        check(&with(&[edns.clone(), edns.clone()]));
        check(&with(&[opt(1232, 0x0100_0000, &[])]));
        check(&with(&[opt(1232, 0x0001_0000, &[])]));
        check(&with(&[opt(1232, 0, &[0, 10, 0])]));
        check(&with_records(whole.clone(), 2, &[edns]));
        let huge = with_records(whole.clone(), 3, &[record(&[0], 16, 1, 9, &[0; 65_535])]);
        check(&huge);
        assert!(Kept::new(&key(text)[..10], &whole, &DnsCacheSpec::default()).is_none());
        assert!(Kept::new(&[&key(text)[..], &[1, 2]].concat(), &whole, &DnsCacheSpec::default()).is_some());
    }

    #[test]
    fn ttls_are_counted_down_and_options_left_out() {
        let check = |name: &str, elapsed: u64, expected: Vec<u8>| {
            let message = sample(name);
            let kept = keep(if name == "mx" { "example.org MX" } else { "www.example.org A" }, &message);
            let mut out = Vec::new();
            kept.unwrap().emit(Duration::from_secs(elapsed), &mut out);
            assert_eq!(out, expected, "{name}");
        };
        let without_id = |name: &str| {
            let mut message = sample(name);
            message[..2].fill(0);
            message
        };
        check("answer", 0, without_id("answer"));
        let mut later = without_id("answer");
        [41, 57].into_iter().for_each(|at| later[at..at + 2].copy_from_slice(&[0, 1]));
        check("answer", 299, later);
        // The minimum of the SOA, which was told with 3600 s, is 60 s.
        let mut later = without_id("nodata");
        later[39..43].copy_from_slice(&[0, 0, 0, 50]);
        check("nodata", 10, later);
        // An OPT at the end, whose TTL is none and whose options go.
        let mut later = without_id("mx");
        assert!(retain_options(&mut later, |_| false));
        check("mx", 0, later);
    }
}
