//! Servers that accept only UDP or only TCP: a refusal over one transport does not affect the other transport.

use crate::harness::dns::{
    A, Nameserver, SERVFAIL, address, ask, ask_tcp, framed, host, query, rcode, read_message, service,
};
use crate::harness::{Evener, Reservation, Server, local, wait_until};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A server for UDP alone that responds with the address 192.0.2.2.
struct DatagramsOnly {
    reserved: Reservation,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramsOnly {
    fn start() -> Self {
        // No TCP listener uses the reserved port: connections are refused.
        let (reserved, stopped) = (Reservation::new(), Arc::new(AtomicBool::new(false)));
        let socket = UdpSocket::bind(local(reserved.port())).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let _ = socket.send_to(&address(&buffer[..length], 60, 2), from);
            }
        });
        Self { reserved, stopped, thread: Some(thread) }
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.reserved.port())
    }
}

impl Drop for DatagramsOnly {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// A server for TCP alone that responds with the address 192.0.2.2.
fn streams_only() -> (Server, String) {
    let server = Server::start(|stream| {
        while let Some(message) = read_message(&stream) {
            if (&stream).write_all(&framed(&address(&message, 60, 2))).is_err() {
                return;
            }
        }
    });
    let name = format!("127.0.0.1:{}", server.port);
    (server, name)
}

/// Returns the hosts of the servers that respond to ten queries.
fn hosts(ask: fn(u16, &[u8]) -> Vec<u8>, listen: u16) -> BTreeSet<u8> {
    (0..10).map(|turn| host(&ask(listen, &query(turn, "a.example", A)))).collect()
}

fn both_and(other: &str, more: &str) -> (Nameserver, u16, Evener) {
    let both = Nameserver::of(1);
    let config = service(0, &[&both], &format!("\"{other}\", {more}"));
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    (both, listen, evener)
}

#[test]
fn a_server_that_accepts_only_udp_stays_up_and_gets_queries_over_udp() {
    for more in ["", "check = check.dns { every = \"100ms\" }"] {
        let other = DatagramsOnly::start();
        let (_both, listen, evener) = both_and(&other.name(), more);
        // A query over TCP comes first.
        assert_eq!(hosts(ask_tcp, listen), [1].into());
        assert_eq!(hosts(ask, listen), [1, 2].into());
        assert_eq!(hosts(ask_tcp, listen), [1].into());
        assert_eq!(hosts(ask, listen), [1, 2].into());
        let server = evener.server(&other.name());
        assert_eq!(server["verdict"], "up");
        assert_eq!(
            server["counters"]["connect_failures"]["refused"], 1,
            "expected no further attempt over TCP for a while"
        );
        assert_eq!(evener.log_count("server_down"), 0);
    }
}

#[test]
fn a_server_that_accepts_only_tcp_stays_up_and_gets_queries_over_tcp() {
    // The first query may come over either transport.
    for first in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let (_other, name) = streams_only();
        let (_both, listen, evener) = both_and(&name, "");
        assert!(hosts(first, listen).contains(&1));
        assert_eq!(hosts(ask_tcp, listen), [1, 2].into());
        assert_eq!(hosts(ask, listen), [1].into());
        assert_eq!(hosts(ask_tcp, listen), [1, 2].into());
        assert_eq!(evener.server(&name)["verdict"], "up");
        assert_eq!(evener.server(&name)["counters"]["connect_failures"]["refused"], 1);
        assert_eq!(evener.log_count("server_down"), 0);
    }
}

#[test]
fn a_refused_transport_is_tried_again_if_there_is_no_other_server() {
    let other = DatagramsOnly::start();
    let config = service(0, &[], &format!("\"{}\"", other.name()));
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    for turn in 0..3 {
        assert_eq!(rcode(&ask_tcp(listen, &query(turn, "a.example", A))), SERVFAIL);
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
    }
    assert_eq!(evener.server(&other.name())["verdict"], "up");
    assert_eq!(evener.server(&other.name())["counters"]["connect_failures"]["refused"], 3);
}

#[test]
fn a_server_that_refuses_both_transports_is_down() {
    let mut stopped = Nameserver::of(2);
    stopped.stop();
    let (_both, listen, evener) = both_and(&stopped.name(), "");
    // TCP is refused first.
    assert_eq!(hosts(ask_tcp, listen), [1].into());
    assert_eq!(
        evener.server(&stopped.name())["verdict"],
        "up",
        "expected a refusal over TCP alone not to count"
    );
    assert_eq!(hosts(ask, listen), [1].into());
    wait_until("the server to be down", || {
        (evener.server(&stopped.name())["verdict"] == "down").then_some(())
    });
}
