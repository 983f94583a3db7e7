//! Real DNS messages, cut at every byte and with every bit flipped: the results are well-formed, and only a
//! response that matches a query is accepted as its response.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use evener_core::Time;
use evener_core::dns::{Cache, Freshness};
use evener_core::spec::DnsCacheSpec;
use evener_core::wire::dns::{self, Added, Cookies, Query};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Returns the names and bytes in `data/dns.txt`.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let lines = include_str!("data/dns.txt").lines().filter(|line| !line.starts_with('#'));
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, hex)| (name, bytes(hex))).collect()
}

fn sample(name: &str) -> Vec<u8> {
    samples().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// Checks everything that is derived from a message, if the message is a query.
fn check_query(message: &[u8], response: &[u8]) {
    let (mut out, mut key) = (Vec::new(), Vec::new());
    dns::emit_malformed(message, &mut out);
    assert_eq!(out.len(), if message.len() < dns::HEADER_BYTES { 0 } else { dns::HEADER_BYTES });
    let Ok(query) = Query::parse(message) else { return };
    query.cache_key(message, &mut key);
    query.emit_error(message, dns::SERVFAIL, &mut out);
    assert!(out.len() <= dns::UDP_BYTES && query.matches_response(message, &out));
    assert_eq!(dns::rcode(&out), dns::SERVFAIL);
    query.emit_truncated(message, Some(response), &mut out);
    assert!(out.len() <= dns::UDP_BYTES && dns::is_truncated(&out) && dns::id(&out) == dns::id(message));
    let client = "192.0.2.77".parse().unwrap();
    if let Some(added) = query.with_client_subnet(message, client, 24, &mut out) {
        let with = Query::parse(&out).unwrap();
        assert!(with.has_edns() && with.question_section(&out) == query.question_section(message));
        assert!(!with.cache_key(&out, &mut key), "a query with a client subnet has no cache key");
        out[2] |= 0x80;
        dns::strip(&mut out, added);
        out[2] &= 0x7f;
        assert_eq!(out, query.whole(message));
    }
    check_hops(&query, query.whole(message));
}

/// Checks that only the options of this hop are removed from a query.
fn check_hops(query: &Query, message: &[u8]) {
    for cookies in [Cookies::Pass, Cookies::Remove] {
        let mut stripped = message.to_vec();
        let left = query.without_hop_options(&mut stripped, cookies);
        assert_eq!(left.question_section(&stripped), query.question_section(message));
        assert_eq!((left.udp_size(), left.dnssec_ok()), (query.udp_size(), query.dnssec_ok()));
        if stripped != message {
            assert!(!left.asks_for_keepalive() && stripped.len() < message.len());
            assert!(!dns::has_hop_options(&stripped, cookies));
        }
    }
}

/// Checks everything that is derived from a response.
fn check_response(message: &[u8], response: &[u8]) {
    let query = Query::parse(message).unwrap();
    if query.matches_response(message, response) {
        let queried = query.question_section(message).to_ascii_lowercase();
        assert!(response[12..].to_ascii_lowercase().starts_with(&queried) && response[2] & 0xf8 == 0x80);
    }
    for added in [Added::Record, Added::Option] {
        let mut stripped = response.to_vec();
        dns::strip(&mut stripped, added);
        assert!(stripped.len() <= response.len());
    }
    for cookies in [Cookies::Pass, Cookies::Remove] {
        let mut stripped = response.to_vec();
        dns::strip_hop_options(&mut stripped, cookies);
        assert_eq!(query.matches_response(message, &stripped), query.matches_response(message, response));
        dns::add_keepalive(&mut stripped, std::time::Duration::from_secs(10));
        assert!(stripped.len() <= response.len() + 6);
    }
    let (cache, mut key, mut out) = (Cache::new(&DnsCacheSpec::default(), 1), Vec::new(), Vec::new());
    assert!(query.cache_key(message, &mut key));
    if cache.store(&key, response, Time::ZERO) {
        assert!(cache.lookup(&key, Time::ZERO, Freshness::Fresh, &mut out));
        assert!(query.matches_response(message, &out) && !dns::is_truncated(&out));
        assert!(out.len() <= response.len() && out[2..12] == response[2..12]);
    }
    cache.check_invariants();
}

fn check(message: &[u8]) {
    check_query(message, &sample("response_edns"));
    check_query(&sample("query_edns"), message);
    check_response(&sample("query"), message);
}

#[test]
fn cut_messages_and_flipped_bits_give_well_formed_results() {
    for (name, message) in samples() {
        for length in 0..message.len() {
            let cut = &message[..length];
            assert!(Query::parse(cut).is_err(), "{name} cut at {length}");
            check(cut);
        }
        for bit in 0..message.len() * 8 {
            let mut flipped = message.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            check(&flipped);
        }
        check(&message);
    }
}

#[test]
fn a_response_with_a_flipped_bit_in_the_question_section_is_refused() {
    let (message, response) = (sample("query"), sample("response"));
    let query = Query::parse(&message).unwrap();
    let end = 12 + query.question_section(&message).len();
    for bit in (2 * 8..3 * 8).chain(4 * 8..6 * 8).chain(12 * 8..end * 8) {
        let mut flipped = response.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let is_case = bit % 8 == 5 && response[bit / 8].is_ascii_alphabetic();
        // AA, TC and RD are not compared.
        let is_flag = (2 * 8..2 * 8 + 3).contains(&bit);
        assert_eq!(query.matches_response(&message, &flipped), is_case || is_flag, "bit {bit}");
    }
}

proptest! {
    #[test]
    fn mixtures_of_messages_never_panic(
        first in select(samples()),
        second in select(samples()),
        cuts in any::<(Index, Index)>(),
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
    ) {
        let (start, end) = (cuts.0.index(first.1.len() + 1), cuts.1.index(second.1.len() + 1));
        let mut message = [&first.1[..start], &second.1[end..]].concat();
        for (at, value) in changes {
            if !message.is_empty() {
                let at = at.index(message.len());
                message[at] = value;
            }
        }
        check(&message);
    }

    #[test]
    fn escaped_names_are_parsed_to_their_wire_form(labels in vec(vec(any::<u8>(), 1..=63), 0..5)) {
        let mut wire: Vec<u8> =
            labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect();
        wire.push(0);
        let escape = |byte: &u8| match byte {
            b'.' | b'\\' => format!("\\{}", char::from(*byte)),
            b'!'..=b'~' => char::from(*byte).to_string(),
            _ => format!("\\{byte:03}"),
        };
        let text: String =
            labels.iter().map(|label| label.iter().map(escape).collect::<String>() + ".").collect();
        let text = if text.is_empty() { ".".to_string() } else { text };
        let expected = if wire.len() > dns::NAME_BYTES_MAX { Err(dns::NameError::Long) } else { Ok(wire) };
        prop_assert_eq!(dns::parse_name(&text), expected.clone());
        if let Ok(name) = expected {
            let mut message = Vec::new();
            dns::emit_query(7, &name, 1, &mut message);
            let query = Query::parse(&message).unwrap();
            prop_assert_eq!(query.name(&message), &name[..]);
            check_query(&message, &sample("response"));
        }
    }
}
