//! Addresses of datagrams that are given up, by TERM or by a reload: what is under way there is finished, what comes meanwhile
//! is served, and then the address is free, whatever other services still have.

use crate::harness::dns::{A, Back, Nameserver, address, ask, client, host, id, name_of, query, receive};
use crate::harness::{Evener, Server, connect, line, local, reserved_port, wait_until};
use std::io::Write;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

/// Queries that wait for their responses.
type Held = Arc<Mutex<Vec<(Vec<u8>, Back)>>>;

/// A server that keeps queries for names that begin with `slow` until the test releases them, and what it keeps.
fn slow() -> (Nameserver, Held) {
    let held = Held::default();
    let keep = Arc::clone(&held);
    let server = Nameserver::start(move |query, back| {
        let is_slow = if query.starts_with(b"plain") {
            query.ends_with(b"slow")
        } else {
            name_of(query).starts_with("slow")
        };
        if is_slow {
            keep.lock().unwrap().push((query.to_vec(), back.clone()));
        } else {
            response(query, back);
        }
    });
    (server, held)
}

/// Plain text comes back, a query gets an address.
fn response(query: &[u8], back: &Back) {
    if query.starts_with(b"plain") {
        back.send(query);
    } else {
        back.send(&address(query, 60, 1));
    }
}

fn release(held: &Held) {
    held.lock().unwrap().drain(..).for_each(|(query, back)| response(&query, &back));
}

/// Whether the address can be had by another program.
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
fn after_term_a_successor_gets_the_address_while_another_service_has_a_client() {
    for protocol in ["dns", "udp"] {
        let ((server, _), tcp, listen) = (slow(), Server::named("t"), reserved_port());
        let service = one_service(protocol, listen, &server);
        let stays = format!("service \"t\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", tcp.port);
        let evener = Evener::run(&format!("{service}\n{stays}\n"));
        let tcp_listen = evener.port("t");
        let mut held = connect(tcp_listen);
        assert!(line(&mut held).starts_with("t "));
        assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 1);
        evener.signal("TERM");
        wait_until("the address to be free", || is_free(listen).then_some(()));
        let successor = Evener::run(&service);
        assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 1);
        held.write_all(b"still here\n").unwrap();
        assert!(!evener.log().contains("stopped"), "the old one waits for its client");
        drop(successor);
    }
}

#[test]
fn after_term_what_is_under_way_is_finished_and_what_comes_is_served() {
    let ((server, held), listen) = (slow(), reserved_port());
    let mut evener = Evener::run(&one_service("dns", listen, &server));
    let early = client(listen);
    early.send(&query(7, "slow.example", A)).unwrap();
    wait_until("it to be asked", || (held.lock().unwrap().len() == 1).then_some(()));
    evener.signal("TERM");
    evener.expect_log(" draining ");
    for number in 0..5 {
        assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 1);
    }
    assert!(!is_free(listen));
    release(&held);
    let received = receive(&early);
    assert_eq!((id(&received), host(&received)), (7, 1));
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(evener.end(), 0);
}

/// A flow whose server speaks until the test ends it.
fn busy_flow(listen: u16, held: &Held) -> (UdpSocket, Arc<Mutex<bool>>) {
    let socket = client(listen);
    socket.send(b"plain slow").unwrap();
    wait_until("it to begin", || (held.lock().unwrap().len() == 1).then_some(()));
    let going_on = Arc::new(Mutex::new(true));
    let (on, held) = (Arc::clone(&going_on), Arc::clone(held));
    std::thread::spawn(move || {
        while *on.lock().unwrap() {
            held.lock().unwrap().iter().for_each(|(_, back)| back.send(b"tick"));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    (socket, going_on)
}

#[test]
fn after_term_a_flow_goes_on_and_new_ones_are_served() {
    let ((server, held), listen) = (slow(), reserved_port());
    let mut evener = Evener::run_with(&one_service("udp", listen, &server), &["--workers", "1"]);
    let (flow, going_on) = busy_flow(listen, &held);
    evener.signal("TERM");
    evener.expect_log(" draining ");
    let newcomer = client(listen);
    for _ in 0..5 {
        assert_eq!(receive(&flow), b"tick");
        newcomer.send(b"plain new").unwrap();
        assert_eq!(receive(&newcomer), b"plain new");
    }
    assert!(!is_free(listen));
    *going_on.lock().unwrap() = false;
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(evener.end(), 0);
}

#[test]
fn a_reload_that_takes_a_dns_address_out_loses_no_query() {
    let ((server, held), listen, other) = (slow(), reserved_port(), reserved_port());
    let (with, without) = (one_service("dns", listen, &server), one_service("dns", other, &server));
    let both = with.replace(
        &format!("listen = \"127.0.0.1:{listen}\""),
        &format!("listen = {{ \"127.0.0.1:{listen}\", \"127.0.0.1:{other}\" }}"),
    );
    let evener = Evener::run(&both);
    let early = client(listen);
    early.send(&query(7, "slow.example", A)).unwrap();
    wait_until("it to be asked", || (held.lock().unwrap().len() == 1).then_some(()));
    evener.reload(&without);
    assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 1, "what comes meanwhile");
    assert!(!is_free(listen));
    // It can be taken on again, and out again.
    evener.reload(&both);
    assert_eq!(host(&ask(listen, &query(2, "a.example", A))), 1);
    evener.reload(&without);
    release(&held);
    let received = receive(&early);
    assert_eq!((id(&received), host(&received)), (7, 1));
    wait_until("the address to be free", || is_free(listen).then_some(()));
    assert_eq!(host(&ask(other, &query(3, "a.example", A))), 1);
}

#[test]
fn a_reload_that_takes_a_udp_address_out_lets_its_flows_end() {
    let ((server, held), listen, other) = (slow(), reserved_port(), reserved_port());
    let (with, without) = (one_service("udp", listen, &server), one_service("udp", other, &server));
    let evener = Evener::run_with(&with, &["--workers", "1"]);
    let (flow, going_on) = busy_flow(listen, &held);
    evener.reload(&without);
    let newcomer = client(listen);
    for _ in 0..5 {
        assert_eq!(receive(&flow), b"tick");
        newcomer.send(b"plain new").unwrap();
        assert_eq!(receive(&newcomer), b"plain new");
    }
    *going_on.lock().unwrap() = false;
    wait_until("the address to be free", || is_free(listen).then_some(()));
    let socket = client(other);
    socket.send(b"plain other").unwrap();
    assert_eq!(receive(&socket), b"plain other");
}

#[test]
fn one_way_traffic_holds_an_address_for_a_while_only() {
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
    // Lines come on and on.
    wait_until("the address to be free", || {
        let _ = client.send(b"a line");
        is_free(listen).then_some(())
    });
    assert_eq!(evener.end(), 0);
}
