//! Responses of any bytes: the cache stays within its bounds, returns only responses that match the query, only
//! within their lifetime, and none after an expunge.
#![no_main]

use evener_core::Time;
use evener_core::dns::{Cache, ExpungeScope, Freshness};
use evener_core::spec::DnsCacheSpec;
use evener_core::wire::dns::{self, Query};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

const STALE: Duration = Duration::from_secs(60);

/// Returns a query with the question section of a response.
fn query_of(response: &[u8]) -> Option<Vec<u8>> {
    let mut end = dns::HEADER_BYTES;
    while *response.get(end)? != 0 {
        end += 1 + usize::from(response[end]);
    }
    let mut message = response.get(..end + 5)?.to_vec();
    message[2..4].copy_from_slice(&[1, 0]);
    message[6..12].fill(0);
    Some(message)
}

fuzz_target!(|input: (u16, Vec<&[u8]>)| {
    let spec =
        DnsCacheSpec { entries: 4, bytes: DnsCacheSpec::BYTES_MIN, stale: STALE, ..DnsCacheSpec::default() };
    let (cache, mut now) = (Cache::new(&spec, 1), Time::ZERO);
    let (mut key, mut out) = (Vec::new(), Vec::new());
    for response in input.1 {
        now += Duration::from_millis(input.0.into());
        assert!(!cache.store(&key, &response[..response.len().min(12)], now));
        let Some(message) = query_of(response) else { continue };
        let Ok(query) = Query::parse(&message) else { continue };
        if !query.cache_key(&message, &mut key) {
            continue;
        }
        let is_stored = cache.store(&key, response, now);
        cache.check_invariants();
        if !is_stored {
            continue;
        }
        assert!(cache.lookup(&key, now, Freshness::Fresh, &mut out));
        assert!(out.len() <= response.len() && dns::id(&out) == 0 && !dns::is_truncated(&out));
        assert!(query.matches_response(&message, &out) && dns::rcode(&out) == dns::rcode(response));
        let length = out.len();
        for seconds in [1, 59, 3600] {
            let later = now + Duration::from_secs(seconds);
            let mut stale = Vec::new();
            let is_fresh = cache.lookup(&key, later, Freshness::Fresh, &mut out);
            let is_stale = cache.lookup(&key, later, Freshness::Stale, &mut stale);
            assert!(is_stale || !is_fresh, "a fresh response is also returned if stale ones are allowed");
            assert!(!is_fresh || out.len() == length && out == stale);
        }
        let name = query.name(&message);
        match cache.expunge(name, ExpungeScope::Name) {
            // A lookup after the lifetime of the response removed the response.
            0 => assert!(!cache.lookup(&key, now, Freshness::Stale, &mut out)),
            _ => assert!(cache.store(&key, response, now)),
        }
        let dead = now + spec.ttl_max + STALE;
        assert!(!cache.lookup(&key, dead, Freshness::Stale, &mut out));
        cache.store(&key, response, now);
        assert!(cache.expunge(&[0], ExpungeScope::Below) >= 1);
        assert_eq!(cache.stats().entries, 0);
        cache.store(&key, response, now);
    }
});
