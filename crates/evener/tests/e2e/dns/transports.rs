//! Servers that speak only one of UDP and TCP: what one transport refuses is no matter of the other.

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

/// A server for UDP alone, which answers with the address 192.0.2.2.
struct DatagramsOnly {
    reserved: Reservation,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramsOnly {
    fn start() -> Self {
        // Nothing of TCP may be on the port: connects are refused.
        let (reserved, over) = (Reservation::new(), Arc::new(AtomicBool::new(false)));
        let socket = UdpSocket::bind(local(reserved.port())).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let _ = socket.send_to(&address(&buffer[..length], 60, 2), from);
            }
        });
        Self { reserved, over, thread: Some(thread) }
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.reserved.port())
    }
}

impl Drop for DatagramsOnly {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// A server for TCP alone, which answers with the address 192.0.2.2.
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

/// Which servers answer.
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
fn a_server_that_speaks_only_udp_is_no_worse_for_it() {
    for more in ["", "check = check.dns { every = \"100ms\" }"] {
        let other = DatagramsOnly::start();
        let (_both, listen, evener) = both_and(&other.name(), more);
        // A client that asks over TCP comes first, and later ones.
        assert_eq!(hosts(ask_tcp, listen), [1].into());
        assert_eq!(hosts(ask, listen), [1, 2].into());
        assert_eq!(hosts(ask_tcp, listen), [1].into());
        assert_eq!(hosts(ask, listen), [1, 2].into());
        let server = evener.server(&other.name());
        assert_eq!(server["verdict"], "up");
        assert_eq!(server["counters"]["connect_refused"], 1, "it is asked over TCP no more for a while");
        assert_eq!(evener.log_count("server_down"), 0);
    }
}

#[test]
fn a_server_that_speaks_only_tcp_is_no_worse_for_it() {
    // Whoever comes first.
    for first in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let (_other, name) = streams_only();
        let (_both, listen, evener) = both_and(&name, "");
        assert!(hosts(first, listen).contains(&1));
        assert_eq!(hosts(ask_tcp, listen), [1, 2].into());
        assert_eq!(hosts(ask, listen), [1].into());
        assert_eq!(hosts(ask_tcp, listen), [1, 2].into());
        assert_eq!(evener.server(&name)["verdict"], "up");
        assert_eq!(evener.server(&name)["counters"]["connect_refused"], 1);
        assert_eq!(evener.log_count("server_down"), 0);
    }
}

#[test]
fn where_no_other_is_left_the_transport_is_tried_all_the_same() {
    let other = DatagramsOnly::start();
    let config = service(0, &[], &format!("\"{}\"", other.name()));
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let listen = evener.port("d");
    for turn in 0..3 {
        assert_eq!(rcode(&ask_tcp(listen, &query(turn, "a.example", A))), SERVFAIL);
        assert_eq!(host(&ask(listen, &query(turn, "a.example", A))), 2);
    }
    assert_eq!(evener.server(&other.name())["verdict"], "up");
    assert_eq!(evener.server(&other.name())["counters"]["connect_refused"], 3);
}

#[test]
fn a_server_that_refuses_both_is_down() {
    let mut gone = Nameserver::of(2);
    gone.stop();
    let (_both, listen, evener) = both_and(&gone.name(), "");
    // Whichever is refused first.
    assert_eq!(hosts(ask_tcp, listen), [1].into());
    assert_eq!(evener.server(&gone.name())["verdict"], "up", "by TCP alone it cannot be told");
    assert_eq!(hosts(ask, listen), [1].into());
    wait_until("it to be down", || (evener.server(&gone.name())["verdict"] == "down").then_some(()));
}
