//! One client, one name, one server: what is wrong with it is no matter for the others.

use crate::harness::dns::{
    A, Nameserver, SERVFAIL, address, ask, ask_on, ask_stream, ask_tcp, client, framed, host, id, name_of,
    query, rcode, read_message, receive, service,
};
use crate::harness::{Directory, Evener, connect, reserved_port, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whether a client takes what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    All,
    Nothing,
}

/// A client that asks on and on over one connection, as fast as it can.
struct Pour {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pour {
    fn start(listen: u16, reads: Reads) -> Self {
        let (over, stream) = (Arc::new(AtomicBool::new(false)), Arc::new(connect(listen)));
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, writer) = (Arc::clone(&over), Arc::clone(&stream));
        let mut threads = vec![std::thread::spawn(move || pour(&writer, &stop))];
        if reads == Reads::All {
            let stop = Arc::clone(&over);
            threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let _ = (&*stream).read(&mut buffer);
                }
            }));
        }
        Self { over, threads }
    }
}

impl Drop for Pour {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn pour(mut stream: &TcpStream, over: &AtomicBool) {
    let all = framed(&query(7, "a.example", A)).repeat(1000);
    let mut at = 0;
    while !over.load(Ordering::Relaxed) {
        at = (at + stream.write(&all[at..]).unwrap_or(0)) % all.len();
    }
}

/// While somebody pours questions into `listen`, those to another service of the worker are answered.
fn others_are_served(evener: &Evener, listen: u16, other: u16, reads: Reads) {
    let requests = || evener.service_counter("d", "requests");
    let before = requests();
    let pouring = Pour::start(listen, reads);
    wait_until("it to pour", || (requests() > before + 500).then_some(()));
    let (socket, mut worst) = (client(other), Duration::ZERO);
    for number in 0..100 {
        let begun = Instant::now();
        assert_eq!(host(&ask_on(&socket, &query(number, "b.example", A))), 2, "{reads:?}");
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_secs(2), "nobody waits for {reads:?}: {worst:?}");
    if reads == Reads::All {
        let before = requests();
        wait_until("it to pour still", || (requests() > before + 500).then_some(()));
    }
    drop(pouring);
}

#[test]
fn a_client_that_pours_questions_to_which_answers_are_kept_starves_nobody() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    let config =
        service(0, &[&one], "dns = { cache = true }") + &service(0, &[&two], "").replace("\"d\"", "\"e\"");
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let other = evener.port("e");
    assert_eq!(host(&ask_tcp(listen, &query(1, "a.example", A))), 1);
    for reads in [Reads::All, Reads::Nothing] {
        others_are_served(&evener, listen, other, reads);
    }
    assert_eq!(one.count(), 1, "all but the first were answered on the spot");
}

#[test]
fn a_client_that_pours_questions_for_which_there_is_no_server_starves_nobody() {
    let (two, empty) = (Nameserver::of(2), Directory::new());
    let config = format!(
        "pool \"none\" {{ discover = {{ mname = \"{}\" }} }}\n\
         service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", pool = \"none\" }}\n{}",
        empty.file("").display(),
        service(0, &[&two], "").replace("\"d\"", "\"e\"")
    );
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    let other = evener.port("e");
    assert_eq!(rcode(&ask_tcp(listen, &query(1, "a.example", A))), SERVFAIL);
    for reads in [Reads::All, Reads::Nothing] {
        others_are_served(&evener, listen, other, reads);
    }
}

/// A server that is silent for names that begin so.
fn silent_for(start: &'static str, number: u8) -> Nameserver {
    Nameserver::start(move |query, back| {
        if !name_of(query).starts_with(start) {
            back.send(&address(query, 60, number));
        }
    })
}

#[test]
fn a_slow_name_on_a_quiet_service_takes_no_server_down() {
    let (one, two) = (silent_for("slow", 1), silent_for("slow", 2));
    let more =
        "dns = { query_timeout = \"150ms\", retries = 1 }, passive = { failures = 1, down_for = \"1h\" }";
    let evener = Evener::run_with(&service(0, &[&one, &two], more), &["--workers", "1"]);
    let listen = evener.port("d");
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        // A client asks again a few times before it gives up, and nobody asks anything else.
        for number in 0..3 {
            assert_eq!(rcode(&ask(listen, &query(number, "slow.example", A))), SERVFAIL);
        }
        for server in [&one, &two] {
            assert_eq!(evener.server(&server.name())["verdict"], "up");
        }
        let hosts: Vec<u8> =
            (0..4).map(|number| host(&ask(listen, &query(number, "a.example", A)))).collect();
        assert!(hosts.contains(&1) && hosts.contains(&2), "{hosts:?}");
    }
    assert_eq!(evener.service_counter("d", "requests_failed"), 6);
}

#[test]
fn the_second_tier_is_asked_when_the_first_is_silent() {
    let (first, second) = (Nameserver::silent(), Nameserver::of(2));
    let more = format!(
        "{{ \"{}\", tier = 2 }}, passive = false, dns = {{ query_timeout = \"200ms\", retries = 1 }}",
        second.name()
    );
    let evener = Evener::run_with(&service(0, &[&first], &more), &["--workers", "1"]);
    let listen = evener.port("d");
    for number in 0..3 {
        for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
            assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 2);
        }
    }
    assert_eq!((first.count(), second.count()), (6, 6), "nobody counts as down, so it is asked first");
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn what_is_under_way_when_its_only_server_moves_is_answered_by_the_new_one() {
    let (old, new, listen) = (silent_for("held", 1), Nameserver::of(2), reserved_port());
    // Either somebody asks at the new address before the time is out, or the question itself does after that.
    for (timeout, somebody_asks) in [("30s", true), ("1s", false)] {
        let of = |server: &Nameserver| {
            let more = format!(
                "{{ \"{}\", name = \"s\" }}, dns = {{ query_timeout = \"{timeout}\" }}",
                server.name()
            );
            service(listen, &[], &more)
        };
        let evener = Evener::run_with(&of(&old), &["--workers", "1"]);
        let (socket, mut stream, other) = (client(listen), connect(listen), connect(listen));
        assert_eq!(host(&ask_stream(&other, &query(9, "a.example", A))), 1);
        let before = old.count();
        socket.send(&query(1, "held.udp.example", A)).unwrap();
        stream.write_all(&framed(&query(2, "held.tcp.example", A))).unwrap();
        wait_until("both", || (old.count() == before + 2).then_some(()));
        evener.reload(&of(&new));
        if somebody_asks {
            assert_eq!(host(&ask(listen, &query(3, "a.example", A))), 2);
            assert_eq!(host(&ask_stream(&other, &query(3, "a.example", A))), 2);
        }
        let responses = [receive(&socket), read_message(&stream).unwrap()];
        assert_eq!(responses.each_ref().map(|response| (id(response), host(response))), [(1, 2), (2, 2)]);
        assert_eq!(evener.service_counter("d", "requests_failed"), 0);
        drop(evener);
    }
}
