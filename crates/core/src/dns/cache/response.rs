//! DNS responses in cached form: the cacheable responses, the parts that are stored, and their lifetimes (RFC
//! 1035, section 7.4; RFC 2181, sections 5.2 and 8; RFC 2308).

use crate::spec::DnsCacheSpec;
use crate::wire::dns::{
    HEADER_BYTES, MESSAGE_BYTES_MAX, NOERROR, NXDOMAIN, Record, Records, SERVFAIL, Section, TYPE_ANY,
    TYPE_CNAME, TYPE_DNAME, TYPE_OPT, TYPE_SOA, is_query_response, is_truncated, number_at,
    question_section_end, rcode, retain_options, set_id,
};
use std::time::Duration;

/// TTL of stale records (RFC 8767, section 4).
const STALE_TTL: u32 = 30;
/// Maximum lifetime of a failure (RFC 2308, section 7.1).
const FAILURE_MAX: Duration = Duration::from_secs(300);
/// Minimum size of the data of an SOA: two names of at least a byte each, and five numbers (RFC 1035, section
/// 3.3.13).
const SOA_BYTES_MIN: usize = 22;

/// Kind of a cached response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Records, or a proof that there are none.
    Response,
    /// A failure of the server.
    Failure,
}

/// A response in cached form: its ID is 0 and its OPT has no options.
#[derive(Debug)]
pub(super) struct CachedResponse {
    message: Box<[u8]>,
    /// Offsets of the TTLs in the message.
    ttls: Box<[u16]>,
    kind: Kind,
    /// Time for which the response is fresh.
    lifetime: Duration,
}

impl CachedResponse {
    /// Returns the cached form of a response to the query that `key` begins with, or `None` if the response
    /// may not be cached.
    pub(super) fn new(key: &[u8], response: &[u8], spec: &DnsCacheSpec) -> Option<Self> {
        if !is_query_response(response) || is_truncated(response) || response.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let mut scan = Scan::at(key, response)?;
        let (kind, lifetime) = scan.judge(response, spec)?;
        let mut message = response.to_vec();
        set_id(&mut message, 0);
        scan.lower_negative_ttl(&mut message);
        if scan.has_options {
            // Options, such as a cookie (RFC 7873, section 5), belong to one client.
            if !retain_options(&mut message, |_| false) {
                return None;
            }
            // Records after the options have moved.
            scan = Scan::at(key, &message)?;
        }
        Some(Self { message: message.into(), ttls: scan.ttls.into(), kind, lifetime })
    }

    /// Returns true if the response reports a failure of the server. A failure never replaces a usable
    /// response.
    pub(super) fn is_failure(&self) -> bool {
        self.kind == Kind::Failure
    }

    /// Returns the time for which the response is fresh.
    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Returns the message, with the ID 0.
    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Returns the number of bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.message.len() + size_of_val(&*self.ttls)
    }

    /// Appends the response with its TTLs reduced by `elapsed`, the time since it was stored.
    pub(super) fn emit(&self, elapsed: Duration, out: &mut Vec<u8>) {
        let elapsed = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX);
        self.emit_with(|ttl| ttl.saturating_sub(elapsed), out);
    }

    /// Appends the response with the TTL of stale records.
    pub(super) fn emit_stale(&self, out: &mut Vec<u8>) {
        self.emit_with(|_| STALE_TTL, out);
    }

    fn emit_with(&self, change: impl Fn(u32) -> u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.message);
        for &at in &self.ttls {
            if let Some(bytes) = out.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut) {
                *bytes = change(u32::from_be_bytes(*bytes)).to_be_bytes();
            }
        }
    }
}

/// Results of a scan over a response.
#[derive(Debug)]
struct Scan {
    qtype: u16,
    ttls: Vec<u16>,
    /// The smallest TTL of all records except the OPT, whose TTL field has another meaning.
    ttl_least: u32,
    /// The answer section has a record of the queried type.
    has_match: bool,
    /// The answer section has an alias.
    has_alias: bool,
    /// The SOA of the authority section: the offset of its TTL, and the lifetime of a negative response in
    /// seconds.
    negative: Option<(usize, u32)>,
    has_opt: bool,
    has_options: bool,
}

impl Scan {
    /// Scans a response. Returns `None` if it is malformed or followed by more bytes, is signed, has an OPT of
    /// another version or an extended RCODE, or belongs to another query.
    fn at(key: &[u8], response: &[u8]) -> Option<Self> {
        let end = question_section_end(response)?;
        if !is_query_of(key, &response[HEADER_BYTES..end]) {
            return None;
        }
        let mut scan = Self {
            qtype: number_at(response, end - 4)?,
            ttls: Vec::new(),
            ttl_least: u32::MAX,
            has_match: false,
            has_alias: false,
            negative: None,
            has_opt: false,
            has_options: false,
        };
        let mut records = Records::new(response, end);
        for record in records.by_ref() {
            scan.take(response, &record.ok()?)?;
        }
        (records.at() == response.len()).then_some(scan)
    }

    fn take(&mut self, response: &[u8], record: &Record) -> Option<()> {
        if record.is_signature(response) {
            return None;
        }
        if record.rtype() == TYPE_OPT {
            return self.take_opt(response, record);
        }
        let ttl = ttl_at(response, record.ttl_at())?;
        self.ttls.push(u16::try_from(record.ttl_at()).ok()?);
        self.ttl_least = self.ttl_least.min(ttl);
        match record.section() {
            Section::Answer => {
                self.has_match |= record.rtype() == self.qtype || self.qtype == TYPE_ANY;
                self.has_alias |= matches!(record.rtype(), TYPE_CNAME | TYPE_DNAME);
            }
            Section::Authority if record.rtype() == TYPE_SOA => {
                let is_whole = record.data_range().len() >= SOA_BYTES_MIN;
                let minimum = ttl_at(response, record.range().end - 4).filter(|_| is_whole)?;
                self.negative = Some((record.ttl_at(), ttl.min(minimum)));
            }
            Section::Authority | Section::Additional => {}
        }
        Some(())
    }

    fn take_opt(&mut self, response: &[u8], record: &Record) -> Option<()> {
        let (extended, version) = (response.get(record.ttl_at())?, response.get(record.ttl_at() + 1)?);
        if self.has_opt || !record.is_opt_in_place() || *extended != 0 || *version != 0 {
            return None;
        }
        self.has_opt = true;
        self.has_options = !record.data_range().is_empty();
        Some(())
    }

    /// Returns the kind and the lifetime of the response, or `None` if it may not be cached.
    fn judge(&self, response: &[u8], spec: &DnsCacheSpec) -> Option<(Kind, Duration)> {
        let least = Duration::from_secs(self.ttl_least.into());
        let (kind, lifetime) = match rcode(response) {
            SERVFAIL => (Kind::Failure, spec.failure_ttl.min(FAILURE_MAX)),
            _ if self.is_negative(response) => {
                // Without an SOA the lifetime is unknown (RFC 2308, section 5), and the response may be a
                // referral.
                let (_, ttl) = self.negative?;
                (Kind::Response, spec.negative_ttl_max.min(Duration::from_secs(ttl.into())).min(spec.ttl_max))
            }
            NOERROR => (Kind::Response, spec.ttl_max),
            _ => return None,
        };
        let lifetime = lifetime.min(least);
        (!lifetime.is_zero()).then_some((kind, lifetime))
    }

    /// Returns true if the name does not exist or has no record of the type (RFC 2308, section 2). A NOERROR
    /// response that has only an alias is negative only with an SOA, because another server may know the
    /// alias's target.
    fn is_negative(&self, response: &[u8]) -> bool {
        let is_nodata = !self.has_match && (!self.has_alias || self.negative.is_some());
        rcode(response) == NXDOMAIN || rcode(response) == NOERROR && is_nodata
    }

    /// Lowers the TTL of the SOA so that clients do not use a negative response longer than the minimum of the
    /// SOA (RFC 2308, sections 3 and 5).
    fn lower_negative_ttl(&self, message: &mut [u8]) {
        let Some((at, ttl)) = self.negative.filter(|_| self.is_negative(message)) else { return };
        if let Some(bytes) = message.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *bytes = ttl.to_be_bytes();
        }
    }
}

/// Returns true if a key begins with the given question section. The letter case of the name does not matter.
fn is_query_of(key: &[u8], question_section: &[u8]) -> bool {
    let queried = key.get(..question_section.len()).and_then(<[u8]>::split_last_chunk::<4>);
    queried.zip(question_section.split_last_chunk::<4>()).is_some_and(
        |((queried, queried_type), (name, of_type))| {
            queried_type == of_type && queried.eq_ignore_ascii_case(name)
        },
    )
}

/// Reads a TTL. A TTL with the highest bit set counts as zero (RFC 2181, section 8).
fn ttl_at(message: &[u8], at: usize) -> Option<u32> {
    let ttl = message.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
    Some(if ttl >> 31 == 0 { ttl } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::dns::samples::{key, opt, record, response, sample, with_records};
    use crate::wire::dns::{FORMERR, NOTIMP, REFUSED};

    fn cache(text: &str, message: &[u8]) -> Option<CachedResponse> {
        CachedResponse::new(&key(text), message, &DnsCacheSpec::default())
    }

    fn secs(cached: Option<&CachedResponse>) -> Option<u64> {
        cached.map(|cached| cached.lifetime.as_secs())
    }

    #[test]
    fn responses_are_cached_for_their_lifetime() {
        let check = |text: &str, rcode: u8, records: &[&str], expected: Option<u64>| {
            let cached = cache(text, &response(text, rcode, records));
            assert_eq!(secs(cached.as_ref()), expected, "{text} {rcode} {records:?}");
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
        // An alias without its target: alone, with a referral, with an SOA, and in NXDOMAIN.
        check_a(NOERROR, &["1 CNAME 50"], Some(50));
        check_a(NOERROR, &["1 DNAME 50", "2 NS 40"], Some(40));
        check_a(NOERROR, &["1 CNAME 500", "2 SOA 400 30"], Some(30));
        check_a(NXDOMAIN, &["1 CNAME 500", "2 SOA 400 30"], Some(30));
        check_a(NXDOMAIN, &["1 CNAME 20", "2 SOA 400 30"], Some(20));
        check_a(NXDOMAIN, &["1 CNAME 500"], None);
        // A positive response with an SOA.
        check_a(NOERROR, &["1 A 300", "2 SOA 400 30"], Some(300));
        // Negative responses: the smallest of the SOA's TTL, its minimum and the configured maximum counts. A
        // response with a lifetime of 0 is not cached.
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
        // Empty responses, referrals, and errors.
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
    fn lifetimes_are_bounded_by_the_configuration() {
        let spec = DnsCacheSpec {
            ttl_max: Duration::from_secs(20),
            negative_ttl_max: Duration::from_secs(500),
            failure_ttl: Duration::from_secs(900),
            ..DnsCacheSpec::default()
        };
        let check = |spec: &DnsCacheSpec, rcode, records: &[&str], expected| {
            let message = response("a A", rcode, records);
            assert_eq!(secs(CachedResponse::new(&key("a A"), &message, spec).as_ref()), expected);
        };
        check(&spec, NOERROR, &["1 A 300"], Some(20));
        check(&spec, NXDOMAIN, &["2 SOA 300 300"], Some(20));
        check(&spec, SERVFAIL, &[], Some(300));
        check(&DnsCacheSpec { failure_ttl: Duration::ZERO, ..spec }, SERVFAIL, &[], None);
    }

    #[test]
    fn responses_that_are_malformed_or_signed_or_for_another_query_are_not_cached() {
        let text = "www.example.org A";
        let whole = response(text, NOERROR, &["1 A 300"]);
        let check = |message: &[u8]| assert!(cache(text, message).is_none(), "{message:?}");
        assert!(cache(text, &whole).is_some());
        (0..whole.len()).for_each(|end| check(&whole[..end]));
        check(&[&whole[..], &[0]].concat());
        check(&sample("truncated"));
        check(&sample("query"));
        // Another opcode, another QDCOUNT, and another name, type and class.
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
        assert!(cache(text, &with(std::slice::from_ref(&edns))).is_some());
        check(&with(&[edns.clone(), edns.clone()]));
        check(&with(&[opt(1232, 0x0100_0000, &[])]));
        check(&with(&[opt(1232, 0x0001_0000, &[])]));
        check(&with(&[opt(1232, 0, &[0, 10, 0])]));
        check(&with_records(whole.clone(), 2, &[edns]));
        let huge = with_records(whole.clone(), 3, &[record(&[0], 16, 1, 9, &[0; 65_535])]);
        check(&huge);
        assert!(CachedResponse::new(&key(text)[..10], &whole, &DnsCacheSpec::default()).is_none());
        assert!(
            CachedResponse::new(&[&key(text)[..], &[1, 2]].concat(), &whole, &DnsCacheSpec::default())
                .is_some()
        );
    }

    #[test]
    fn ttls_are_counted_down_and_options_are_left_out() {
        let check = |name: &str, elapsed: u64, expected: Vec<u8>| {
            let message = sample(name);
            let cached = cache(if name == "mx" { "example.org MX" } else { "www.example.org A" }, &message);
            let mut out = Vec::new();
            cached.unwrap().emit(Duration::from_secs(elapsed), &mut out);
            assert_eq!(out, expected, "{name}");
        };
        let without_id = |name: &str| {
            let mut message = sample(name);
            message[..2].fill(0);
            message
        };
        check("response", 0, without_id("response"));
        let mut later = without_id("response");
        [41, 57].into_iter().for_each(|at| later[at..at + 2].copy_from_slice(&[0, 1]));
        check("response", 299, later);
        // The SOA has a TTL of 3600 s and a minimum of 60 s. After 10 s its TTL is 50 s.
        let mut later = without_id("nodata");
        later[39..43].copy_from_slice(&[0, 0, 0, 50]);
        check("nodata", 10, later);
        // An OPT at the end. It has no TTL, and its options are removed.
        let mut later = without_id("mx");
        assert!(retain_options(&mut later, |_| false));
        check("mx", 0, later);
    }
}
