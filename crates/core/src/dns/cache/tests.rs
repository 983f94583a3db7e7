//! Tests of the cache: a response is returned for the same query as long as the response may be used.

use super::*;
use crate::Random;
use crate::wire::dns::samples::{key, response};
use crate::wire::dns::{NOERROR, NXDOMAIN, SERVFAIL, id};
use std::collections::HashMap;

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn cache(entries: u32, bytes: u64, stale: u64) -> Cache {
    let stale = Duration::from_secs(stale);
    Cache::new(&DnsCacheSpec { entries, bytes, stale, ..DnsCacheSpec::default() }, 7)
}

/// Returns the TTL of the first record of the cached response.
fn ttl(cache: &Cache, text: &str, millis: u64, freshness: Freshness) -> Option<u32> {
    let (key, mut out) = (key(text), b"before".to_vec());
    let is_found = cache.lookup(&key, at(millis), freshness, &mut out);
    cache.check_invariants();
    assert_eq!(is_found, !out.is_empty());
    // The TTL comes after header, question section, a compression pointer, type and class.
    let offset = 12 + (key.len() - 1) + 6;
    is_found.then(|| u32::from_be_bytes(out[offset..offset + 4].try_into().unwrap()))
}

fn store(cache: &Cache, text: &str, rcode: u8, records: &[&str], millis: u64) -> bool {
    let is_stored = cache.store(&key(text), &response(text, rcode, records), at(millis));
    cache.check_invariants();
    is_stored
}

#[test]
fn a_response_is_returned_until_it_expires() {
    let cache = cache(10, 1 << 20, 0);
    assert_eq!(ttl(&cache, "a.org A", 0, Freshness::Fresh), None);
    assert!(store(&cache, "a.org A", NOERROR, &["1 A 3"], 500));
    let check = |millis, expected| assert_eq!(ttl(&cache, "a.org A", millis, Freshness::Fresh), expected);
    check(500, Some(3));
    // Another worker's clock may be a little behind.
    check(400, Some(3));
    check(1499, Some(3));
    check(1500, Some(2));
    check(3499, Some(1));
    assert_eq!(ttl(&cache, "A.org A", 600, Freshness::Fresh), Some(3));
    assert_eq!(ttl(&cache, "a.org AAAA", 600, Freshness::Fresh), None);
    assert_eq!(ttl(&cache, "b.org A", 600, Freshness::Fresh), None);
    assert_eq!(cache.stats().entries, 1);
    check(3500, None);
    assert_eq!(cache.stats(), CacheStats::default(), "expired entries are removed");
}

#[test]
fn a_cached_response_has_the_question_section_of_the_first_query_and_the_id_zero() {
    let cache = cache(10, 1 << 20, 0);
    let first = response("wWw.a.org A", NOERROR, &["1 A 3"]);
    assert!(cache.store(&key("www.a.org A"), &first, at(0)));
    let mut out = Vec::new();
    assert!(cache.lookup(&key("WWW.a.org A"), at(0), Freshness::Fresh, &mut out));
    assert_eq!((id(&out), &out[2..]), (0, &first[2..]));
}

#[test]
fn stale_responses_are_returned_for_a_while_on_request() {
    let cache = cache(10, 1 << 20, 60);
    assert!(store(&cache, "a.org A", NOERROR, &["1 A 3"], 0));
    let check = |millis, freshness, expected| assert_eq!(ttl(&cache, "a.org A", millis, freshness), expected);
    check(2000, Freshness::Stale, Some(1));
    check(3000, Freshness::Fresh, None);
    check(3000, Freshness::Stale, Some(30));
    check(62_999, Freshness::Stale, Some(30));
    check(63_000, Freshness::Stale, None);
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn a_failure_is_cached_briefly_unless_there_is_a_usable_response() {
    let cache = cache(10, 1 << 20, 60);
    let cached = |text: &str, millis, freshness| {
        let mut out = Vec::new();
        cache.lookup(&key(text), at(millis), freshness, &mut out).then(|| out[3] & 15)
    };
    assert!(store(&cache, "a.org A", SERVFAIL, &[], 0));
    assert_eq!(cached("a.org A", 999, Freshness::Fresh), Some(SERVFAIL));
    assert_eq!(cached("a.org A", 1000, Freshness::Stale), None, "a failure is never stale");
    assert!(store(&cache, "a.org A", SERVFAIL, &[], 2000));
    assert!(store(&cache, "a.org A", NXDOMAIN, &["2 SOA 5 5"], 2100), "a response replaces a failure");
    assert!(!store(&cache, "a.org A", SERVFAIL, &[], 2200));
    assert!(!store(&cache, "a.org A", SERVFAIL, &[], 60_000), "a stale response can still be used");
    assert_eq!(cached("a.org A", 60_000, Freshness::Stale), Some(NXDOMAIN));
    assert!(
        store(&cache, "a.org A", SERVFAIL, &[], 67_100),
        "a response after its stale time cannot be used"
    );
    assert_eq!(cached("a.org A", 67_200, Freshness::Fresh), Some(SERVFAIL));
}

#[test]
fn a_full_cache_evicts_the_least_recently_used() {
    let small = cache(3, 1 << 20, 0);
    for name in ["a A", "b A", "c A"] {
        assert!(store(&small, name, NOERROR, &["1 A 300"], 0));
    }
    assert!(ttl(&small, "a A", 1, Freshness::Fresh).is_some());
    assert!(store(&small, "d A", NOERROR, &["1 A 300"], 2));
    let are_cached =
        ["a A", "b A", "c A", "d A"].map(|text| ttl(&small, text, 3, Freshness::Fresh).is_some());
    assert_eq!(are_cached, [true, false, true, true]);

    let one = cache(1000, 1 << 20, 0);
    assert!(store(&one, "a A", NOERROR, &["1 A 300"], 0));
    let bytes = one.stats().bytes;
    let short = cache(1000, bytes * 2 + 1, 0);
    for name in ["a A", "b A", "c A"] {
        assert!(store(&short, name, NOERROR, &["1 A 300"], 0));
    }
    assert_eq!(short.stats(), CacheStats { entries: 2, bytes: bytes * 2 });
    assert_eq!(ttl(&short, "a A", 3, Freshness::Fresh), None);
    // Storing the same response again takes no more space.
    assert!(store(&short, "c A", NOERROR, &["1 A 300"], 4));
    assert_eq!(short.stats(), CacheStats { entries: 2, bytes: bytes * 2 });
    // A response that can never fit evicts nothing.
    assert!(!store(&short, "d A", NOERROR, &["1 A 300"; 30], 4));
    assert_eq!(short.stats().entries, 2);
}

#[test]
fn the_number_of_shards_depends_on_the_configured_entries_and_bytes() {
    let check = |entries, bytes, expected| assert_eq!(cache(entries, bytes, 0).shards.len(), expected);
    check(1, 64 << 10, 1);
    check(0, 0, 1);
    check(2047, 64 << 20, 1);
    check(100_000, 64 << 20, 64);
    check(100_000, 3 << 20, 2);
    check(64_000_000, 1 << 40, 1024);
}

#[test]
fn a_long_response_fits_and_names_are_expunged() {
    let cache = cache(100_000, 64 << 20, 0);
    let long = vec!["1 A 300"; 250];
    for name in ["org A", "a.org A", "a.org AAAA", "b.a.org A", "xa.org A", "a.com A"] {
        assert!(store(&cache, name, NOERROR, if name.ends_with("AAAA") { &["2 SOA 9 9"] } else { &long }, 0));
    }
    let network = [&key("a.org A")[..], &[192, 0, 2]].concat();
    assert!(cache.store(&network, &response("a.org A", NOERROR, &["1 A 300"]), at(0)));
    let name = |text| crate::wire::dns::parse_name(text).unwrap();
    assert_eq!(cache.expunge(&name("c.org"), ExpungeScope::Below), 0);
    assert_eq!(cache.expunge(&[], ExpungeScope::Below), 0, "not a name");
    assert_eq!(cache.expunge(&[1], ExpungeScope::Name), 0, "not a name");
    assert_eq!(cache.expunge(b"\x01a\x03org", ExpungeScope::Name), 0, "not a whole name");
    assert_eq!(cache.expunge(&name("org"), ExpungeScope::Name), 1);
    assert_eq!(cache.expunge(&name("A.org"), ExpungeScope::Name), 3);
    cache.check_invariants();
    assert!(store(&cache, "a.org A", NOERROR, &["1 A 300"], 0));
    assert_eq!(cache.expunge(&name("a.oRg"), ExpungeScope::Below), 2);
    assert_eq!(cache.stats().entries, 2);
    assert_eq!(cache.expunge(&name("."), ExpungeScope::Name), 0);
    assert_eq!(cache.expunge(&name("."), ExpungeScope::Below), 2);
    assert!(store(&cache, "a.org A", NOERROR, &["1 A 300"], 0));
    assert_eq!((cache.clear(), cache.clear()), (1, 0));
    assert_eq!(cache.stats(), CacheStats::default());
}

#[test]
fn lookups_return_the_last_stored_response_during_its_lifetime() {
    let mut random = Random::seeded(11);
    let mut below = move |bound: usize| random.below(bound) as u64;
    for entries in [4, 5000] {
        let cache = cache(entries, 8 << 20, 5);
        let mut model: HashMap<String, (u64, u64, Vec<u8>)> = HashMap::new();
        let (mut now, mut hits) = (0, 0);
        for _ in 0..4000 {
            now += below(300);
            let text = format!("n{}.org A", below(12));
            match below(10) {
                0..4 => {
                    let ttl = 1 + below(8);
                    let message = response(&text, NOERROR, &[&format!("1 A {ttl}"), "3 A 100"]);
                    assert!(cache.store(&key(&text), &message, at(now)));
                    model.insert(text, (now, ttl, message));
                }
                4 => {
                    let name = crate::wire::dns::parse_name(&text[..text.len() - 2]).unwrap();
                    let expunged = cache.expunge(&name, ExpungeScope::Name);
                    assert!(expunged <= usize::from(model.remove(&text).is_some()));
                }
                _ => {
                    let freshness = [Freshness::Fresh, Freshness::Stale][below(2) as usize];
                    let mut out = Vec::new();
                    let is_found = cache.lookup(&key(&text), at(now), freshness, &mut out);
                    let known = model.get(&text);
                    let life = |ttl: u64| ttl * 1000 + if freshness == Freshness::Stale { 5000 } else { 0 };
                    let known = known.filter(|(stored, ttl, _)| now < stored + life(*ttl));
                    assert!(is_found <= known.is_some(), "only stored responses are found");
                    assert!(
                        is_found == known.is_some() || entries < 12,
                        "a cache with room loses no response"
                    );
                    if let Some((stored, ttl, message)) = known.filter(|_| is_found) {
                        hits += 1;
                        let elapsed = ((now - stored) / 1000) as u32;
                        let offset = message.len() - 4 - 2 - 4 - 16;
                        let ttl_read = u32::from_be_bytes(out[offset..offset + 4].try_into().unwrap());
                        let is_stale = u64::from(elapsed) >= *ttl;
                        assert_eq!(ttl_read, if is_stale { 30 } else { *ttl as u32 - elapsed });
                        assert_eq!(out[offset + 4..offset + 10], message[offset + 4..offset + 10]);
                    }
                }
            }
            cache.check_invariants();
        }
        assert!(hits > 500, "only {hits} hits");
    }
}
