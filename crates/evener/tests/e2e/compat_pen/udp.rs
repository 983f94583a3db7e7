//! pen over UDP: the server of a flow, failover, access lists, and the emergency server.

use crate::harness::pen::Pen;
use crate::harness::{local, reserved_port, wait_until};
use crate::udp::flows::{Echo, ask, client};
use std::net::UdpSocket;
use std::time::Duration;

fn at(echo: &Echo) -> String {
    format!("127.0.0.1:{}", echo.port)
}

/// Creates a client with this address and a new port.
fn client_from(from: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Returns the name of the server that responds to a client with this address; empty without a response.
fn who_from(from: &str, port: u16) -> String {
    let response = ask(&client_from(from, port), "?");
    response.split(' ').next().unwrap().to_owned()
}

/// Returns true if a client of this address gets no response.
fn is_ignored(from: &str, port: u16) -> bool {
    let socket = client_from(from, port);
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    ask(&socket, "?").is_empty()
}

#[test]
fn the_flows_of_a_client_go_to_its_server_unless_round_robin_is_set() {
    let (a, b, listen) = (Echo::start("a"), Echo::start("b"), reserved_port());
    let pen = Pen::run(&["-U", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let first = [1, 2, 3, 4].map(|n| who_from(&format!("127.0.0.{n}"), listen));
    assert_eq!(first, ["a", "b", "a", "b"]);
    for _ in 0..3 {
        let again = [4, 3, 2, 1].map(|n| who_from(&format!("127.0.0.{n}"), listen));
        assert_eq!(again, ["b", "a", "b", "a"], "clients keep their server with other ports");
    }
    pen.order("roundrobin");
    let turns: Vec<String> = (0..6).map(|_| who_from("127.0.0.1", listen)).collect();
    assert!(turns.chunks(2).all(|pair| pair == ["a", "b"] || pair == ["b", "a"]), "{turns:?}");
    // A flow keeps its server with round robin, too.
    let one = client(listen);
    let first = ask(&one, "1");
    (0..5).for_each(|_| assert_eq!(ask(&one, "1"), first));
}

#[test]
fn flows_leave_a_failed_server_immediately_and_use_it_again_after_its_blacklist_time() {
    let (mut a, b, listen) = (Echo::start("a"), Echo::start("b"), reserved_port());
    let pen = Pen::run(&["-U", "-r", "-b", "5", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let clients: Vec<UdpSocket> = (0..8).map(|_| client(listen)).collect();
    let first: Vec<String> = clients.iter().map(|client| ask(client, "1")).collect();
    assert_eq!(first.iter().filter(|response| *response == "a 1").count(), 4, "{first:?}");
    a.stop();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // The datagram that was sent to the failed server may be lost. The next datagram must not be lost.
        if ask(client, "2") != "b 2" {
            assert_eq!(ask(client, "3"), "b 3");
        }
    }
    let _a = Echo::start_at("a", a.port);
    wait_until("new clients at a", || (ask(&client(listen), "4") == "a 4").then_some(()));
    drop(pen);
}

#[test]
fn the_emergency_server_responds_while_no_other_server_is_up() {
    let (mut a, e, listen) = (Echo::start("a"), Echo::start("e"), reserved_port());
    let pen = Pen::run(&["-U", "-b", "1", "-e", &at(&e), &format!("127.0.0.1:{listen}"), &at(&a)]);
    assert_eq!([1, 2, 3].map(|n| who_from(&format!("127.0.0.{n}"), listen)), ["a", "a", "a"]);
    a.stop();
    let socket = client(listen);
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    wait_until("the emergency server", || (ask(&socket, "?") == "e ?").then_some(()));
    // A denied client gets no response from the emergency server.
    pen.order("acl 1 deny 127.0.0.66");
    pen.ctl("client_acl 1");
    assert!(is_ignored("127.0.0.66", listen));
    // After each second on the blacklist, the failed server gets a datagram again, which is lost.
    wait_until("another client at the emergency server", || {
        (who_from("127.0.0.67", listen) == "e").then_some(())
    });
    let _a = Echo::start_at("a", a.port);
    wait_until("new clients to leave the emergency server", || {
        (who_from("127.0.0.68", listen) == "a").then_some(())
    });
    wait_until("old clients to leave the emergency server", || {
        (who_from("127.0.0.67", listen) == "a").then_some(())
    });
}

#[test]
fn clients_and_servers_may_have_different_address_families() {
    let (four, listen) = (Echo::start("four"), reserved_port());
    let six = UdpSocket::bind("[::1]:0").unwrap();
    let port = six.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = six.recv_from(&mut buffer) {
            let _ = six.send_to(&[b"six ", &buffer[..length]].concat(), client);
        }
    });
    let _pen = Pen::run(&["-U", "-r", &format!(":::{listen}"), &at(&four), &format!("[::1]:{port}")]);
    for (source, to) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let mut chosen: Vec<String> = (0..2)
            .map(|_| {
                let socket = UdpSocket::bind((source, 0)).unwrap();
                // A connected socket receives only from the address that the query was sent to.
                socket.connect((to, listen)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                ask(&socket, "x")
            })
            .collect();
        chosen.sort();
        assert_eq!(chosen, ["four x", "six x"], "{to}");
    }
}

#[test]
fn the_abuse_server_responds_to_denied_clients() {
    let (a, abuse, listen) = (Echo::start("a"), Echo::start("abuse"), reserved_port());
    let pen = Pen::run(&[
        "-U",
        "-B",
        &at(&abuse),
        "-o",
        "acl 3 deny 127.0.0.64 255.255.255.192",
        "-o",
        "client_acl 3",
        &format!("127.0.0.1:{listen}"),
        &at(&a),
    ]);
    let chosen =
        ["127.0.0.63", "127.0.0.64", "127.0.0.127", "127.0.0.128"].map(|from| who_from(from, listen));
    assert_eq!(chosen, ["a", "abuse", "abuse", "a"]);
    // A client that is permitted later leaves the abuse server, even with an existing flow.
    let flow = client_from("127.0.0.65", listen);
    assert_eq!(ask(&flow, "1"), "abuse 1");
    pen.order("no acl 3");
    wait_until("the flow to change its server", || (ask(&flow, "2") == "a 2").then_some(()));
    pen.order("no abuse");
    pen.order("acl 3 deny 127.0.0.65");
    wait_until("the client to be refused", || is_ignored("127.0.0.65", listen).then_some(()));
    assert_eq!(who_from("127.0.0.64", listen), "a");
}
