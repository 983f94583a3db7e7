//! Real DNS messages, cut at every byte and with every bit turned: whatever comes of them is well-formed, and a question is
//! only answered by what answers it.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use evener_core::Time;
use evener_core::dns::{Cache, Freshness};
use evener_core::spec::DnsCacheSpec;
use evener_core::wire::dns::{self, Added, Cookies, Query};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// The names and bytes in `data/dns.txt`.
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

/// What is made of a question, if it is one.
fn check_question(message: &[u8], answer: &[u8]) {
    let (mut out, mut key) = (Vec::new(), Vec::new());
    dns::emit_malformed(message, &mut out);
    assert_eq!(out.len(), if message.len() < dns::HEADER_BYTES { 0 } else { dns::HEADER_BYTES });
    let Ok(query) = Query::parse(message) else { return };
    query.cache_key(message, &mut key);
    query.emit_error(message, dns::SERVFAIL, &mut out);
    assert!(out.len() <= dns::UDP_BYTES && query.is_answered_by(message, &out));
    assert_eq!(dns::rcode(&out), dns::SERVFAIL);
    query.emit_truncated(message, Some(answer), &mut out);
    assert!(out.len() <= dns::UDP_BYTES && dns::is_truncated(&out) && dns::id(&out) == dns::id(message));
    let client = "192.0.2.77".parse().unwrap();
    if let Some(added) = query.with_client_subnet(message, client, 24, &mut out) {
        let with = Query::parse(&out).unwrap();
        assert!(with.has_edns() && with.question(&out) == query.question(message));
        assert!(!with.cache_key(&out, &mut key), "it is one client's");
        out[2] |= 0x80;
        dns::strip(&mut out, added);
        out[2] &= 0x7f;
        assert_eq!(out, query.whole(message));
    }
    check_hops(&query, query.whole(message));
}

/// What is between us and either side comes out of a query and its response, and nothing else does.
fn check_hops(query: &Query, message: &[u8]) {
    for cookies in [Cookies::Pass, Cookies::Remove] {
        let mut stripped = message.to_vec();
        let left = query.without_hop_options(&mut stripped, cookies);
        assert_eq!(left.question(&stripped), query.question(message));
        assert_eq!((left.udp_size(), left.dnssec_ok()), (query.udp_size(), query.dnssec_ok()));
        if stripped != message {
            assert!(!left.asks_for_keepalive() && stripped.len() < message.len());
            assert!(!dns::has_hop_options(&stripped, cookies));
        }
    }
}

/// What is made of an answer.
fn check_answer(question: &[u8], answer: &[u8]) {
    let query = Query::parse(question).unwrap();
    if query.is_answered_by(question, answer) {
        let asked = query.question(question).to_ascii_lowercase();
        assert!(answer[12..].to_ascii_lowercase().starts_with(&asked) && answer[2] & 0xf8 == 0x80);
    }
    for added in [Added::Record, Added::Option] {
        let mut stripped = answer.to_vec();
        dns::strip(&mut stripped, added);
        assert!(stripped.len() <= answer.len());
    }
    for cookies in [Cookies::Pass, Cookies::Remove] {
        let mut stripped = answer.to_vec();
        dns::strip_hop_options(&mut stripped, cookies);
        assert_eq!(query.is_answered_by(question, &stripped), query.is_answered_by(question, answer));
        dns::add_keepalive(&mut stripped, std::time::Duration::from_secs(10));
        assert!(stripped.len() <= answer.len() + 6);
    }
    let (cache, mut key, mut out) = (Cache::new(&DnsCacheSpec::default(), 1), Vec::new(), Vec::new());
    assert!(query.cache_key(question, &mut key));
    if cache.store(&key, answer, Time::ZERO) {
        assert!(cache.lookup(&key, Time::ZERO, Freshness::Fresh, &mut out));
        assert!(query.is_answered_by(question, &out) && !dns::is_truncated(&out));
        assert!(out.len() <= answer.len() && out[2..12] == answer[2..12]);
    }
    cache.check_invariants();
}

fn check(message: &[u8]) {
    check_question(message, &sample("answer_edns"));
    check_question(&sample("question_edns"), message);
    check_answer(&sample("question"), message);
}

#[test]
fn no_bit_and_no_length_of_a_message_is_trusted() {
    for (name, message) in samples() {
        for length in 0..message.len() {
            let cut = &message[..length];
            assert!(Query::parse(cut).is_err(), "{name} cut at {length}");
            check(cut);
        }
        for bit in 0..message.len() * 8 {
            let mut turned = message.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            check(&turned);
        }
        check(&message);
    }
}

#[test]
fn a_bit_turned_in_the_question_makes_it_another_one() {
    let (question, answer) = (sample("question"), sample("answer"));
    let query = Query::parse(&question).unwrap();
    let end = 12 + query.question(&question).len();
    for bit in (2 * 8..3 * 8).chain(4 * 8..6 * 8).chain(12 * 8..end * 8) {
        let mut turned = answer.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        let is_case = bit % 8 == 5 && answer[bit / 8].is_ascii_alphabetic();
        // AA, TC and RD say nothing of the question.
        let is_flag = (2 * 8..2 * 8 + 3).contains(&bit);
        assert_eq!(query.is_answered_by(&question, &turned), is_case || is_flag, "bit {bit}");
    }
}

proptest! {
    #[test]
    fn messages_with_bytes_of_others_are_no_danger(
        first in select(samples()),
        second in select(samples()),
        cuts in any::<(Index, Index)>(),
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
    ) {
        let (head, tail) = (cuts.0.index(first.1.len() + 1), cuts.1.index(second.1.len() + 1));
        let mut message = [&first.1[..head], &second.1[tail..]].concat();
        for (at, value) in changes {
            if !message.is_empty() {
                let at = at.index(message.len());
                message[at] = value;
            }
        }
        check(&message);
    }

    #[test]
    fn names_are_read_as_they_are_written(labels in vec(vec(any::<u8>(), 1..=63), 0..5)) {
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
            check_question(&message, &sample("answer"));
        }
    }
}
