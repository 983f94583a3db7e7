//! UDP addresses that SIGTERM or a reload removes: pending queries, existing flows and new traffic are served
//! until the queries and flows have ended. Then the address is free, even while other services still have
//! clients.

use crate::harness::dns::{
    A, Nameserver, ReplyPath, address, ask, client, host, id, name_of, query, receive,
};
use crate::harness::{Evener, Server, connect, line, local, reserved_port, wait_until};
use std::io::Write;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

/// Queries that have no response yet.
type Pending = Arc<Mutex<Vec<(Vec<u8>, ReplyPath)>>>;

/// A server that does not respond to queries for names that begin with `slow` until [`release`] is called, and
/// the list of these queries.
fn slow() -> (Nameserver, Pending) {
    let pending = Pending::default();
    let pending_writer = Arc::clone(&pending);
    let server = Nameserver::start(move |query, back| {
        let is_slow = if query.starts_with(b"plain") {
            query.ends_with(b"slow")
        } else {
            name_of(query).starts_with("slow")
        };
        if is_slow {
            pending_writer.lock().unwrap().push((query.to_vec(), back.clone()));
        } else {
            respond(query, back);
        }
    });
    (server, pending)
}

/// Echoes plain text, and responds to a query with an address.
fn respond(query: &[u8], back: &ReplyPath) {
    if query.starts_with(b"plain") {
        back.send(query);
    } else {
        back.send(&address(query, 60, 1));
    }
}

fn release(pending: &Pending) {
    pending.lock().unwrap().drain(..).for_each(|(query, back)| respond(&query, &back));
}

/// Returns `true` if another program can bind the address.
fn is_free(port: u16) -> bool {
    UdpSocket::bind(local(port)).is_ok()
}

fn one_service(protocol: &str, listen: u16, server: &Nameserver) -> String {
    let dns = if protocol == "dns" { "dns = { query_timeout = \"30s\" }, " } else { "" };
    let (port, name) = (server.port, protocol);
    format!(
        "service \"{name}\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", {dns} \"127.0.0.1:{port}\" }}"
    )
}

#[test]
fn a_new_instance_gets_the_address_while_another_service_drains() {
    for protocol in ["dns", "udp"] {
        let ((server, _), tcp, listen) = (slow(), Server::named("t"), reserved_port());
        let service = one_service(protocol, listen, &server);
        let stays = format!("service \"t\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", tcp.port);
        let evener = Evener::run(&format!("{service}\n{stays}\n"));
        let tcp_listen = evener.port("t");
        let mut stream = connect(tcp_listen);
        assert!(line(&mut stream).starts_with("t "));
        assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 1);
        evener.signal("TERM");
        wait_until("the address to be free", || is_free(listen).then_some(()));
        let successor = Evener::run(&service);
        assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 1);
        stream.write_all(b"still here\n").unwrap();
        assert!(!evener.log().contains("stopped"), "expected the old instance to wait for its client");
        drop(successor);
    }
}

#[test]
fn pending_and_new_queries_get_responses_during_a_drain() {
    let ((server, pending), listen) = (slow(), reserved_port());
    let mut evener = Evener::run(&one_service("dns", listen, &server));
    let early = client(listen);
    early.send(&query(7, "slow.example", A)).unwrap();
    wait_until("the query", || (pending.lock().unwrap().len() == 1).then_some(()));
    evener.signal("TERM");
    evener.expect_log(" draining ");
    for number in 0..5 {
        assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 1);
    }
    assert!(!is_free(listen));
    release(&pending);
    let received = receive(&early);
    assert_eq!((id(&received), host(&received)), (7, 1));
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(evener.end(), 0);
}

/// A flow whose server sends datagrams until the returned flag is cleared.
fn busy_flow(listen: u16, pending: &Pending) -> (UdpSocket, Arc<Mutex<bool>>) {
    let socket = client(listen);
    socket.send(b"plain slow").unwrap();
    wait_until("the flow", || (pending.lock().unwrap().len() == 1).then_some(()));
    let is_active = Arc::new(Mutex::new(true));
    let (on, pending, client) = (Arc::clone(&is_active), Arc::clone(pending), socket.try_clone().unwrap());
    std::thread::spawn(move || {
        while *on.lock().unwrap() {
            pending.lock().unwrap().first().iter().for_each(|(_, back)| back.send(b"tick"));
            // A flow whose last datagram has a response ends soon when its listener closes.
            let _ = client.send(b"plain slow");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    (socket, is_active)
}

#[test]
fn existing_and_new_flows_are_served_during_a_drain() {
    let ((server, pending), listen) = (slow(), reserved_port());
    let mut evener = Evener::run_with(&one_service("udp", listen, &server), &["--workers", "1"]);
    let (flow, is_active) = busy_flow(listen, &pending);
    evener.signal("TERM");
    evener.expect_log(" draining ");
    let newcomer = client(listen);
    for _ in 0..5 {
        assert_eq!(receive(&flow), b"tick");
        newcomer.send(b"plain new").unwrap();
        assert_eq!(receive(&newcomer), b"plain new");
    }
    assert!(!is_free(listen));
    *is_active.lock().unwrap() = false;
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(evener.end(), 0);
}

#[test]
fn no_query_fails_when_a_reload_removes_a_dns_address() {
    let ((server, pending), listen, other) = (slow(), reserved_port(), reserved_port());
    let (with, without) = (one_service("dns", listen, &server), one_service("dns", other, &server));
    let both = with.replace(
        &format!("listen = \"127.0.0.1:{listen}\""),
        &format!("listen = {{ \"127.0.0.1:{listen}\", \"127.0.0.1:{other}\" }}"),
    );
    let evener = Evener::run(&both);
    let early = client(listen);
    early.send(&query(7, "slow.example", A)).unwrap();
    wait_until("the query", || (pending.lock().unwrap().len() == 1).then_some(()));
    evener.reload(&without);
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 1, "expected a response to a new query");
    assert!(!is_free(listen));
    // Reloads may add the address again, and remove it again.
    evener.reload(&both);
    assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 1);
    evener.reload(&without);
    release(&pending);
    let received = receive(&early);
    assert_eq!((id(&received), host(&received)), (7, 1));
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(host(&ask(other, &query(3, "a.example", A))), 1);
}

#[test]
fn existing_and_new_flows_are_served_after_a_reload_removes_their_address() {
    let ((server, pending), listen, other) = (slow(), reserved_port(), reserved_port());
    let (with, without) = (one_service("udp", listen, &server), one_service("udp", other, &server));
    let evener = Evener::run_with(&with, &["--workers", "1"]);
    let (flow, is_active) = busy_flow(listen, &pending);
    evener.reload(&without);
    let newcomer = client(listen);
    for _ in 0..5 {
        assert_eq!(receive(&flow), b"tick");
        newcomer.send(b"plain new").unwrap();
        assert_eq!(receive(&newcomer), b"plain new");
    }
    *is_active.lock().unwrap() = false;
    wait_until("the address to be free", || is_free(listen).then_some(()));
    let socket = client(other);
    socket.send(b"plain other").unwrap();
    assert_eq!(receive(&socket), b"plain other");
}

#[test]
fn traffic_without_responses_does_not_block_a_drain() {
    let log = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = log.local_addr().unwrap().port();
    let service =
        format!("service \"s\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", \"127.0.0.1:{target}\" }}");
    let mut evener = Evener::run(&service);
    let listen = evener.port("s");
    let client = client(listen);
    client.send(b"a line").unwrap();
    assert_eq!(log.recv(&mut [0; 16]).unwrap(), 6);
    evener.signal("TERM");
    // The client keeps sending.
    wait_until("the address to be free", || {
        let _ = client.send(b"a line");
        is_free(listen).then_some(())
    });
    assert_eq!(evener.end(), 0);
}
