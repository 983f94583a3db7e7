//! Zone transfers: where they end, and how many are sent to a server at the same time.

use crate::harness::dns::{
    A, AXFR, Nameserver, ReplyPath, address, ask, ask_stream, framed, host, id, is_closed, query,
    question_section_end, rcode, read_message, record, reply, service,
};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SOA: u16 = 6;
const IXFR: u16 = 251;

/// An SOA record with this serial, whose two names are the root.
fn soa(serial: u8) -> Vec<u8> {
    record(SOA, 300, &[&[0, 0, 0, 0, 0, serial][..], &[0; 16]].concat())
}

/// Responds to AXFR with a zone in three messages, and to other queries with an address.
fn zone(query: &[u8], back: &ReplyPath) {
    if question_section_end(query) != query.len()
        || query[query.len() - 4..query.len() - 2] != AXFR.to_be_bytes()
    {
        return back.send(&address(query, 60, 4));
    }
    let a = record(A, 300, &[192, 0, 2, 1]);
    back.send(&reply(query, 0, &[soa(7), a.clone()], &[]));
    back.send(&reply(query, 0, &[a.clone(), a.clone()], &[]));
    back.send(&reply(query, 0, &[a, soa(7)], &[]));
}

#[test]
fn a_transfer_ends_with_its_last_soa() {
    let server = Nameserver::start(zone);
    let config = service(0, &[&server], "");
    let mut evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let mut stream = connect(listen);
    let active = || evener.status()["services"][0]["flows_active"].as_u64().unwrap();
    // In total more transfers than one client may have at the same time.
    for number in 0..20 {
        stream.write_all(&framed(&query(number, "zone.example", AXFR))).unwrap();
        for _ in 0..3 {
            assert_eq!(id(&read_message(&stream).unwrap()), number);
        }
    }
    wait_until("no pending query", || (active() == 0).then_some(()));
    assert_eq!(host(&ask_stream(&stream, &query(99, "a.example", A))), 4);
    let begun = Instant::now();
    evener.signal("TERM");
    assert!(is_closed(&stream), "expected a connection without pending queries to be closed");
    assert_eq!(evener.end(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// A query for the changes since this serial.
fn changes_since(number: u16, serial: u8) -> Vec<u8> {
    let mut query = query(number, "zone.example", IXFR);
    query[9] = 1;
    query.extend(soa(serial));
    query
}

#[test]
fn an_incremental_transfer_without_changes_is_one_soa() {
    let server = Nameserver::start(|query, back| match query[question_section_end(query) - 3] {
        251 => back.send(&reply(query, 0, &[soa(7)], &[])),
        _ => zone(query, back),
    });
    let mut evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let stream = connect(listen);
    // In total more transfers than one client may have at the same time, over TCP and UDP. The client has the
    // serial of the server or a newer serial.
    for number in 0..20 {
        let sent = changes_since(number, 7 + (number % 2) as u8);
        let expected = reply(&sent, 0, &[soa(7)], &[]);
        assert_eq!(ask_stream(&stream, &sent), expected);
        assert_eq!(ask(listen, &sent), expected);
    }
    assert_eq!(host(&ask_stream(&stream, &query(99, "a.example", A))), 4);
    let active = || evener.status()["services"][0]["flows_active"].as_u64().unwrap();
    wait_until("no pending query", || (active() == 0).then_some(()));
    // Over UDP a single SOA means that the changes do not fit, and that the client retries over TCP.
    assert_eq!(ask(listen, &changes_since(5, 3))[7], 1);
    let begun = Instant::now();
    evener.signal("TERM");
    assert!(is_closed(&stream));
    assert_eq!(evener.end(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn an_incremental_transfer_with_changes_ends_with_the_last_soa() {
    let server = Nameserver::start(|query, back| {
        if query[question_section_end(query) - 3] != 251 {
            return zone(query, back);
        }
        // The first message may have the SOA alone. The second message has the changes or the whole zone.
        let rest = match query[query.len() - 17] {
            5 => vec![soa(5), record(A, 300, &[192, 0, 2, 1]), soa(7)],
            _ => vec![record(A, 300, &[192, 0, 2, 1])],
        };
        back.send(&reply(query, 0, &[soa(7)], &[]));
        back.send(&reply(query, 0, &rest, &[]));
        back.send(&reply(query, 0, &[soa(7)], &[]));
    });
    let evener = Evener::run_with(&service(0, &[&server], ""), &["--workers", "1"]);
    let listen = evener.port("d");
    let mut stream = connect(listen);
    for number in 0_u16..20 {
        let serial = if number.is_multiple_of(2) { 5 } else { 3 };
        stream.write_all(&framed(&changes_since(number, serial))).unwrap();
        for _ in 0..3 {
            assert_eq!(id(&read_message(&stream).unwrap()), number);
        }
    }
    let active = || evener.status()["services"][0]["flows_active"].as_u64().unwrap();
    wait_until("no pending query", || (active() == 0).then_some(()));
}

/// The current and the highest number of transfers at a server, and the gate that blocks them.
#[derive(Default)]
struct Load {
    now: AtomicUsize,
    max: AtomicUsize,
    gate: Mutex<()>,
}

/// A server whose transfers begin when the gate is unlocked.
fn gated() -> (Nameserver, Arc<Load>) {
    let load = Arc::new(Load::default());
    let count = Arc::clone(&load);
    let server = Nameserver::start(move |query, back| {
        let (query, back, count) = (query.to_vec(), back.clone(), Arc::clone(&count));
        std::thread::spawn(move || {
            let is_transfer = query[question_section_end(&query) - 3] == AXFR as u8;
            if is_transfer {
                let now = count.now.fetch_add(1, Ordering::Relaxed) + 1;
                count.max.fetch_max(now, Ordering::Relaxed);
                drop(count.gate.lock());
                count.now.fetch_sub(1, Ordering::Relaxed);
            }
            zone(&query, &back);
        });
    });
    (server, load)
}

#[test]
fn pipelined_transfers_are_queued_beyond_a_limit() {
    const COUNT: u16 = 40;
    let (server, load) = gated();
    let more = "dns = { query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = load.gate.lock();
    let mut stream = connect(listen);
    for number in 0..COUNT {
        stream.write_all(&framed(&query(number, "zone.example", AXFR))).unwrap();
    }
    wait_until("the first transfers", || (load.now.load(Ordering::Relaxed) == 8).then_some(()));
    assert_eq!(
        host(&ask_stream(&stream, &query(999, "a.example", A))),
        4,
        "expected a query not to wait for the transfers"
    );
    drop(shut);
    let mut pieces = [0; COUNT as usize];
    for _ in 0..3 * COUNT {
        let message = read_message(&stream).unwrap();
        assert_eq!(rcode(&message), 0);
        pieces[usize::from(id(&message))] += 1;
    }
    assert_eq!(pieces, [3; COUNT as usize], "expected each transfer to be complete");
    assert_eq!(load.max.load(Ordering::Relaxed), 8);
    // The queued transfers of a client that disconnects are dropped.
    let shut = load.gate.lock();
    for number in 0..COUNT {
        stream.write_all(&framed(&query(number, "zone.example", AXFR))).unwrap();
    }
    let active = || evener.status()["services"][0]["flows_active"].as_u64().unwrap();
    wait_until("all transfers", || (active() == u64::from(COUNT)).then_some(()));
    drop(stream);
    drop(shut);
    wait_until("no pending query", || (active() == 0).then_some(()));
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}
