//! Questions that ask the same at once, and answers without a question in them.

use crate::harness::dns::{
    A, FORMERR, Nameserver, SERVFAIL, SOA, TXT, address, ask, ask_on, ask_tcp, client, framed, id,
    is_truncated, query, rcode, read_message, receive, reply, service, sized, with_edns,
};
use crate::harness::{Evener, connect, reserved_port, wait_until};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many ask at once.
const MANY: u16 = 20;

/// A server that answers so, as soon as it may.
fn gated(response: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> (Nameserver, Arc<Mutex<()>>) {
    let (gate, response) = (Arc::new(Mutex::new(())), Arc::new(response));
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |query, back| {
        let (query, back) = (query.to_vec(), back.clone());
        let (wait, response) = (Arc::clone(&wait), Arc::clone(&response));
        std::thread::spawn(move || {
            drop(wait.lock());
            back.send(&response(&query));
        });
    });
    (server, gate)
}

/// The same question in the spelling and with the ID of one of them.
fn own(number: u16) -> Vec<u8> {
    let letters = "www.example".char_indices();
    let spelt =
        letters.map(|(at, letter)| if number >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter });
    query(40_000 + number * 7, &spelt.collect::<String>(), A)
}

/// Clients that asked all at once, half of them over TCP.
struct Crowd {
    datagrams: Vec<(UdpSocket, Vec<u8>)>,
    streams: Vec<(TcpStream, Vec<u8>)>,
}

impl Crowd {
    fn ask(evener: &Evener, listen: u16) -> Self {
        let before = evener.service_counter("d", "requests");
        let datagrams: Vec<_> = (0..MANY).map(|number| (client(listen), own(number))).collect();
        let streams: Vec<_> = (0..MANY).map(|number| (connect(listen), own(number + 100))).collect();
        datagrams.iter().for_each(|(socket, sent)| assert!(socket.send(sent).is_ok()));
        streams.iter().for_each(|(stream, sent)| (&*stream).write_all(&framed(sent)).unwrap());
        wait_until("all to be taken in", || {
            (evener.service_counter("d", "requests") == before + 2 * u64::from(MANY)).then_some(())
        });
        Self { datagrams, streams }
    }

    /// What each of them asked, and what it heard.
    fn hear(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let datagrams = self.datagrams.iter().map(|(socket, sent)| (sent.clone(), receive(socket)));
        let streams = self.streams.iter().map(|(stream, sent)| (sent.clone(), read_message(stream).unwrap()));
        datagrams.chain(streams).collect()
    }
}

#[test]
fn many_who_ask_the_same_at_once_cost_the_server_one_question() {
    let (server, gate) = gated(|query| address(query, 60, 1));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::ask(&evener, listen);
    drop(shut);
    for (sent, received) in crowd.hear() {
        assert_eq!(received, address(&sent, 60, 1), "its own ID and spelling");
    }
    assert_eq!(server.seen().iter().filter(|sent| sent.is_tcp).count(), 1);
    assert_eq!(server.count(), 2, "one over each transport");
    // Whoever comes later hears what is kept.
    assert_eq!(id(&ask(listen, &own(300))), id(&own(300)));
    assert_eq!(server.count(), 2);
    wait_until("nothing to be under way", || {
        (evener.status()["services"][0]["flows_active"] == 0).then_some(())
    });
}

#[test]
fn without_kept_answers_each_of_them_is_asked() {
    let (server, gate) = gated(|query| address(query, 60, 1));
    let more = "dns = { query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::ask(&evener, listen);
    wait_until("all questions", || (server.count() == 2 * usize::from(MANY)).then_some(()));
    drop(shut);
    for (sent, received) in crowd.hear() {
        assert_eq!(received, address(&sent, 60, 1));
    }
    assert_eq!(server.count(), 2 * usize::from(MANY));
}

#[test]
fn each_of_them_hears_that_the_server_failed() {
    let listen = reserved_port();
    let more = "dns = { cache = true, query_timeout = \"1s\", retries = 0 }";
    let fails = |server: &Nameserver, evener: &Evener| {
        for (sent, received) in Crowd::ask(evener, listen).hear() {
            assert_eq!((rcode(&received), id(&received)), (SERVFAIL, id(&sent)));
            assert_eq!(received[4..], sent[4..], "its own spelling, and nothing else");
        }
        assert_eq!(server.count(), 2);
    };
    let silent = Nameserver::silent();
    let evener = Evener::run_with(&service(listen, &[&silent], more), &["--workers", "1"]);
    fails(&silent, &evener);
    assert_eq!(evener.service_counter("d", "requests_failed"), 2 * u64::from(MANY));
    drop(evener);
    // One that says so itself is passed on.
    let failing = Nameserver::start(|query, back| {
        std::thread::sleep(Duration::from_millis(300));
        back.send(&reply(query, SERVFAIL, &[], &[]));
    });
    let more = more.replace("true", "{ failure_ttl = \"30s\" }");
    let evener = Evener::run_with(&service(listen, &[&failing], &more), &["--workers", "1"]);
    fails(&failing, &evener);
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn an_answer_that_is_shared_is_cut_to_what_each_of_them_takes() {
    let (server, gate) = gated(|query| sized(query, 1000));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let sizes = [512, 4096, 600, 1232, 512];
    let crowd = sizes.map(|size| {
        let socket = client(listen);
        socket.send(&with_edns(query(size, "a.example", TXT), size, false, &[])).unwrap();
        socket
    });
    wait_until("all to be taken in", || (evener.service_counter("d", "requests") == 5).then_some(()));
    drop(shut);
    for (size, socket) in sizes.into_iter().zip(&crowd) {
        let received = receive(socket);
        assert_eq!((id(&received), is_truncated(&received)), (size, size < 1000), "who takes {size} bytes");
        assert_eq!(received.len() == 1000, size > 1000);
    }
    assert_eq!(server.count(), 3, "up to 512, up to 1232 and more are asked apart");
}

#[test]
fn those_who_waited_for_one_whose_client_left_wait_for_another_of_them() {
    // The first question over TCP is not answered.
    let count = AtomicUsize::new(0);
    let server = Nameserver::start(move |query, back| {
        if count.fetch_add(1, Ordering::Relaxed) > 0 {
            back.send(&address(query, 60, 1));
        }
    });
    let more = "dns = { cache = true, query_timeout = \"1s\", client_subnet = { v4 = 24 } }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let mut leaving = connect(listen);
    leaving.write_all(&framed(&own(1))).unwrap();
    wait_until("the question", || (server.count() == 1).then_some(()));
    let staying: Vec<TcpStream> = (2..7).map(|_| connect(listen)).collect();
    for (mut stream, number) in staying.iter().zip(2..) {
        stream.write_all(&framed(&own(number))).unwrap();
    }
    wait_until("all to be taken in", || (evener.service_counter("d", "requests") == 6).then_some(()));
    assert_eq!(server.count(), 1, "the others wait for the first");
    // By a reset: who just sends no more may still read its answer.
    socket2::SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
    drop(leaving);
    for (stream, number) in staying.iter().zip(2..) {
        assert_eq!(read_message(stream).unwrap(), address(&own(number), 60, 1));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "one of them is asked in its stead");
    assert!(seen[0].message.ends_with(&[0, 1, 24, 0, 127, 0, 0]), "{:02x?}", seen[0].message);
    assert!(seen[1].message.ends_with(&[0, 1, 24, 0, 127, 0, 0]), "{:02x?}", seen[1].message);
}

/// The header of a message as an answer, and nothing else of it.
fn bare(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut header = query[..12].to_vec();
    (header[2], header[3]) = (header[2] | 0x80, rcode);
    header[4..].fill(0);
    header
}

#[test]
fn an_update_that_is_answered_with_a_bare_header_is_answered() {
    for more in ["", "dns = { cache = true }"] {
        let server = Nameserver::start(|query, back| back.send(&bare(query, 0)));
        let evener = Evener::run(&service(0, &[&server], more));
        let listen = evener.port("d");
        let mut update = query(4711, "zone.example", SOA);
        (update[2], update[3]) = (5 << 3, 0);
        assert_eq!(ask(listen, &update), bare(&update, 0));
        assert_eq!(ask_tcp(listen, &update), bare(&update, 0));
        assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
    }
}

#[test]
fn a_server_that_does_not_understand_a_question_may_say_so_with_a_bare_header() {
    for more in ["", "dns = { cache = true, client_subnet = true }"] {
        let server = Nameserver::start(|query, back| back.send(&bare(query, FORMERR)));
        let evener = Evener::run(&service(0, &[&server], more));
        let listen = evener.port("d");
        let sent = with_edns(query(4711, "a.example", A), 1232, false, &[]);
        assert_eq!(ask(listen, &sent), bare(&sent, FORMERR));
        assert_eq!(ask_tcp(listen, &sent), bare(&sent, FORMERR));
        assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 0);
    }
}

#[test]
fn a_bare_header_that_says_all_is_well_is_no_answer() {
    let server = Nameserver::start(|query, back| {
        back.send(&bare(query, 0));
        back.send(&address(query, 60, 1));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("d");
    let (sent, socket) = (own(1), client(listen));
    assert_eq!(ask_on(&socket, &sent), address(&sent, 60, 1));
    assert_eq!(ask_tcp(listen, &sent), address(&sent, 60, 1));
    assert_eq!(evener.server(&server.name())["counters"]["responses_bad"], 2);
}

#[test]
fn many_who_ask_the_same_share_a_bare_header_too() {
    let (server, gate) = gated(|query| bare(query, FORMERR));
    let more = "dns = { cache = true, query_timeout = \"30s\" }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let shut = gate.lock();
    let crowd = Crowd::ask(&evener, listen);
    drop(shut);
    for (sent, received) in crowd.hear() {
        assert_eq!(received, bare(&sent, FORMERR));
    }
    assert_eq!(server.count(), 2);
}
