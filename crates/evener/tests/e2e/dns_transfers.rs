//! Transfers of zones: where they end, and what that lets go on.

use crate::dns_harness::{
    A, AXFR, Back, Nameserver, address, ask_stream, framed, host, id, is_closed, question, read_message,
    record, reply,
};
use crate::harness::{Evener, connect, free_port, wait_until};
use std::io::Write;
use std::time::{Duration, Instant};

const SOA: u16 = 6;

/// An SOA with the names of the root and this serial.
fn soa(serial: u8) -> Vec<u8> {
    record(SOA, 300, &[&[0, 0, 0, 0, 0, serial][..], &[0; 16]].concat())
}

/// A zone in three messages; to anything else an address.
fn zone(question: &[u8], back: &Back) {
    if crate::dns_harness::question_end(question) != question.len()
        || question[question.len() - 4..question.len() - 2] != AXFR.to_be_bytes()
    {
        return back.send(&address(question, 60, 4));
    }
    let a = record(A, 300, &[192, 0, 2, 1]);
    back.send(&reply(question, 0, &[soa(7), a.clone()], &[]));
    back.send(&reply(question, 0, &[a.clone(), a.clone()], &[]));
    back.send(&reply(question, 0, &[a, soa(7)], &[]));
}

#[test]
fn a_transfer_is_over_with_its_last_soa() {
    let (server, listen) = (Nameserver::start(zone), free_port());
    let config = crate::dns_harness::service(listen, &[&server], "");
    let mut evener = Evener::run_with(&config, &["--workers", "1"]);
    let mut stream = connect(listen);
    let active = || evener.status()["services"][0]["flows_active"].as_u64().unwrap();
    // More of them than one client may have at once.
    for number in 0..20 {
        stream.write_all(&framed(&question(number, "zone.example", AXFR))).unwrap();
        for _ in 0..3 {
            assert_eq!(id(&read_message(&stream).unwrap()), number);
        }
    }
    wait_until("nothing to be under way", || (active() == 0).then_some(()));
    assert_eq!(host(&ask_stream(&stream, &question(99, "a.example", A))), 4);
    let begun = Instant::now();
    evener.signal("TERM");
    assert!(is_closed(&stream), "who got all its answers leaves");
    assert_eq!(evener.end(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
