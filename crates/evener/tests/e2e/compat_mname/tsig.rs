//! Signed queries (TSIG, RFC 8945) to processes of npm mname, whose signatures include the message ID: dig signs queries
//! and verifies responses.

use crate::harness::DEADLINE;
use crate::harness::mname::{Balancer, have_all, with_sockets, within};

const NAMES: [&str; 2] = ["5300", "5301"];
const IDS: [u64; 2] = [5300, 5301];
const ALGORITHMS: [&str; 3] = ["hmac-md5", "hmac-sha1", "hmac-sha256"];
/// `known to both`, the key of mname/server.js.
const SECRET: &str = "a25vd24gdG8gYm90aA==";

/// Returns the output of dig for a signed query with these options.
fn signed(balancer: &Balancer, algorithm: &str, words: &[&str]) -> String {
    let key = format!("{algorithm}:{algorithm}:{SECRET}");
    // The time of a signature is a whole second. mname refuses a signature that it verifies in the first
    // millisecond of this second, so a refused query is repeated.
    within(DEADLINE, &format!("a response to {algorithm} {words:?}"), || {
        let text = balancer.dig("127.0.0.1", "a.example", &[&["-y", &key], words].concat());
        (!text.contains("status: REFUSED")).then_some(text)
    })
}

fn check_response(text: &str, algorithm: &str) {
    assert!(text.contains("status: NOERROR") && text.contains("TXT\t\"53"), "{text}");
    let signature = text.lines().find(|line| line.contains("TSIG\t")).unwrap_or_default();
    assert!(signature.contains(algorithm) && signature.contains("NOERROR"), "{text}");
    for problem in ["verify", "expected a TSIG", "ID mismatch"] {
        assert!(!text.contains(problem), "{problem}: {text}");
    }
}

#[test]
fn signed_queries_and_responses_are_verified() {
    if !have_all() {
        return;
    }
    let balancer = Balancer::run(with_sockets(), &[]);
    let _servers = NAMES.map(|name| balancer.server(name));
    balancer.expect_ok(DEADLINE, &IDS);
    for algorithm in ALGORITHMS {
        for words in [&["+noedns"][..], &["+nocookie"], &["+tcp", "+noedns"], &["+tcp", "+nocookie"]] {
            check_response(&signed(&balancer, algorithm, words), algorithm);
        }
    }
    // A query with a wrong key is refused by its server, and not retried.
    let text = balancer.dig("127.0.0.1", "a.example", &["-y", "hmac-sha1:hmac-sha1:d3Jvbmc="]);
    assert!(text.contains("status: REFUSED"), "{text}");
}

#[test]
fn a_signed_zone_transfer_is_complete() {
    if !have_all() {
        return;
    }
    let balancer = Balancer::run(with_sockets(), &[]);
    let _servers = NAMES.map(|name| balancer.server(name));
    balancer.expect_ok(DEADLINE, &IDS);
    for algorithm in ALGORITHMS {
        let key = format!("{algorithm}:{algorithm}:{SECRET}");
        let text = within(DEADLINE, "a transfer", || {
            let text = balancer.dig("127.0.0.1", "z.example", &["-t", "AXFR", "-y", &key, "+nocookie"]);
            (!text.contains("Transfer failed")).then_some(text)
        });
        let records = text.lines().filter(|line| line.contains("IN\tTXT")).count();
        assert_eq!((records, text.matches("IN\tSOA").count()), (100, 2), "{text}");
        assert!(!text.contains("verify") && text.contains("XFR size: 102 records (messages 5"), "{text}");
    }
}
