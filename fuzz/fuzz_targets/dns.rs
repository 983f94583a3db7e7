//! Queries and responses of any bytes: everything derived from them is well-formed, within the size limits, and
//! matches the query. Additions to a query are removed again.
#![no_main]

use evener_core::wire::dns::{self, Added, Cookies, Query};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8], &[u8])| {
    let (bits, message, response) = input;
    let mut out = Vec::new();
    for added in [Added::Record, Added::Option] {
        let mut stripped = response.to_vec();
        dns::strip(&mut stripped, added);
        assert!(stripped.len() <= response.len());
    }
    for cookies in [Cookies::Pass, Cookies::Remove] {
        let mut stripped = response.to_vec();
        dns::strip_hop_options(&mut stripped, cookies);
        assert!(stripped.len() <= response.len());
        if let Ok(query) = Query::parse(message) {
            let mut stripped = query.whole(message).to_vec();
            let left = query.without_hop_options(&mut stripped, cookies);
            assert_eq!(left.question_section(&stripped), query.question_section(message));
        }
    }
    dns::emit_malformed(message, &mut out);
    assert_eq!(out.len(), if message.len() < 12 { 0 } else { 12 });
    let Ok(query) = Query::parse(message) else { return };
    let fixed = if query.has_question_section() { 4 } else { 0 };
    assert_eq!(query.question_section(message).len(), query.name(message).len() + fixed);
    assert!(query.name(message).len() <= dns::NAME_BYTES_MAX && query.udp_size() >= dns::UDP_BYTES);
    assert!(!query.matches_response(message, message));

    query.emit_error(message, bits, &mut out);
    assert!(out.len() <= dns::UDP_BYTES && query.matches_response(message, &out));
    for response in [None, Some(response)] {
        query.emit_truncated(message, response, &mut out);
        assert!(out.len() <= dns::UDP_BYTES && dns::is_truncated(&out));
        // The flags are copied from the response, so the result matches the query if the response does.
        if response.is_none_or(|response| query.matches_response(message, response)) {
            assert!(query.matches_response(message, &out));
        }
    }

    let (mut key, mut other) = (Vec::new(), Vec::new());
    if query.cache_key(message, &mut key) {
        let lower = message.to_ascii_lowercase();
        let name = query.name(&lower);
        assert!(key.starts_with(name) && key.len() == name.len() + 5);
        // A query that has only the question section has the same key, except for the byte of flags.
        out.clear();
        out.extend_from_slice(&message[..12]);
        out[6..12].fill(0);
        out.extend_from_slice(query.question_section(message));
        let plain = Query::parse(&out).expect("a query without records");
        assert!(plain.cache_key(&out, &mut other) && other[..other.len() - 1] == key[..key.len() - 1]);
    }

    let client =
        if bits & 1 == 0 { [192, 0, 2, bits].into() } else { [0x2001, 0xdb8, 0, 7, 0, 0, 0, 1].into() };
    let Some(added) = query.with_client_subnet(message, client, bits, &mut out) else { return };
    assert!(out.len() > query.whole(message).len() && out.len() <= dns::MESSAGE_BYTES_MAX);
    let with = Query::parse(&out).expect("still a query");
    assert!(with.has_edns() && with.question_section(&out) == query.question_section(message));
    assert!(
        with.with_client_subnet(&out, client, bits, &mut other).is_none(),
        "a client subnet is added only once"
    );
    // QR marks the message as a response while the addition is removed.
    out[2] |= 0x80;
    dns::strip(&mut out, added);
    out[2] &= 0x7f;
    assert_eq!(out, query.whole(message));
});
