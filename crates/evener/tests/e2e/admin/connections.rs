//! Open connections, as `evener connections` lists them, and `evener close`.

use crate::admin::access::{api, error_of, output_of};
use crate::harness::certificates::{ANY, Authority, line_of, shake};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, line, wait_until, who};
use crate::tcp::proxy_protocol::connect_from;
use crate::udp::flows;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

fn tcp(name: &str, listen: u16, server: u16, more: &str) -> String {
    format!("service \"{name}\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", {more} }}\n")
}

/// The open connections of a service.
fn open(evener: &Evener, service: &str) -> Vec<Value> {
    let (status, found) = api(evener, "GET", &format!("/v1/connections?service={service}"), None);
    assert_eq!(status, 200, "{found}");
    assert_eq!(found["total"], found["connections"].as_array().unwrap().len());
    found["connections"].as_array().unwrap().clone()
}

/// Waits until the only open connection of a service is at this stage, and returns it.
fn only(evener: &Evener, service: &str, stage: &str) -> Value {
    wait_until(&format!("one connection at stage {stage}: {:?}", open(evener, service)), || {
        let all = open(evener, service);
        (all.len() == 1 && all[0]["stage"] == stage).then(|| all[0].clone())
    })
}

/// Closes a connection with the API, and returns the status.
fn close(evener: &Evener, one: &Value) -> u16 {
    api(evener, "DELETE", &format!("/v1/connections/{}", one["number"]), None).0
}

/// Returns true if the peer ended the connection, by a close or a reset.
fn is_over(stream: &mut impl Read) -> bool {
    !matches!(stream.read(&mut [0; 1]), Ok(1))
}

/// The end of a client's connection.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

/// A server that sends a line, and a channel that reports how each of its connections ended.
fn watched() -> (Server, Receiver<End>) {
    let (sender, ends) = channel();
    let server = Server::start(move |mut stream| {
        let _ = stream.write_all(b"a\n");
        let end = loop {
            match stream.read(&mut [0; 4096]) {
                Ok(1..) => {}
                Ok(0) => break End::Close,
                Err(_) => break End::Reset,
            }
        };
        let _ = sender.send(end);
    });
    (server, ends)
}

#[test]
fn a_connection_is_listed_with_its_details_and_closed_on_both_sides() {
    let (server, ends) = watched();
    let evener = Evener::run(&tcp("s", 0, server.port, ""));
    let listen = evener.port("s");
    let mut client = connect_from("127.0.0.2", listen);
    line(&mut client);
    let one = only(&evener, "s", "relaying");
    assert_eq!(one["client"], "127.0.0.2");
    assert_eq!(one["client_port"], client.local_addr().unwrap().port());
    assert_eq!((&one["pool"], &one["server"]), (&"s".into(), &format!("127.0.0.1:{}", server.port).into()));
    assert!(one["idle_s"].as_f64().unwrap() < DEADLINE.as_secs_f64());
    assert_eq!((&one["to_client"], &one["to_server"]), (&0.into(), &0.into()));
    for key in ["client_socket", "server_socket"] {
        let link = std::fs::read_link(format!("/proc/{}/fd/{}", evener.pid(), one[key])).unwrap();
        assert!(link.display().to_string().starts_with("socket:"), "{link:?}");
    }
    assert_ne!(one["client_socket"], one["server_socket"]);
    let mut other = connect_from("127.0.0.3", listen);
    line(&mut other);
    assert_eq!(close(&evener, &one), 200);
    assert!(is_over(&mut client));
    let end = ends.recv_timeout(DEADLINE).expect("the end of the server connection");
    assert_eq!(end, End::Reset, "the server must see a reset, not an orderly end");
    assert_eq!(only(&evener, "s", "relaying")["client"], "127.0.0.3");
    assert_eq!(evener.service_counter("s", "closed.operator"), 1);
    assert_eq!(evener.status()["services"][0]["connections_active"], 1);
    // Another connection may have the same slot now. It must not be closed by the old number.
    let mut third = connect_from("127.0.0.4", listen);
    line(&mut third);
    assert_eq!(close(&evener, &one), 404);
    assert!(open(&evener, "s").iter().all(|open| open["number"] != one["number"]));
    evener.expect_log(&format!("connection_closed number={}", one["number"]));
}

#[test]
fn connections_without_a_server_are_listed_and_closed() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "{}{}",
        tcp("proxied", 0, a.port, "proxy_from = \"127.0.0.0/8\""),
        tcp("slow", 0, a.port, "deny = \"127.0.0.2\", denied = \"tarpit\"")
    ));
    let proxied = evener.port("proxied");
    let slow = evener.port("slow");
    let (mut silent, mut stuck) = (connect(proxied), connect_from("127.0.0.2", slow));
    for (service, stage, client) in [("proxied", "preamble", &mut silent), ("slow", "tarpit", &mut stuck)] {
        let one = only(&evener, service, stage);
        assert_eq!((&one["server"], &one["server_socket"]), (&Value::Null, &Value::Null));
        assert_eq!(close(&evener, &one), 200);
        assert!(is_over(client), "{service}");
        assert!(open(&evener, service).is_empty());
    }
    // The listed client is the client that the PROXY header names.
    let mut client = connect(proxied);
    client.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n").unwrap();
    line(&mut client);
    assert_eq!(only(&evener, "proxied", "relaying")["client"], "192.0.2.7");
}

#[test]
fn buffered_bytes_are_reported_for_both_directions() {
    let flood = Server::start(|mut stream| {
        let _ = stream.write_all(&vec![1; 64 << 20]);
    });
    let unreading = Server::start(|stream| {
        let _open = stream;
        std::thread::park_timeout(DEADLINE);
    });
    let evener = Evener::run(&(tcp("s", 0, flood.port, "") + &tcp("b", 0, unreading.port, "")));
    let listen = evener.port("s");
    let back = evener.port("b");
    let mut client = connect(listen);
    let buffered = |service: &str, key: &str| {
        let all = open(&evener, service);
        all.first().and_then(|one| one[key].as_u64()).filter(|bytes| *bytes > 0)
    };
    wait_until("bytes for a client that does not read", || buffered("s", "to_client"));
    let mut sender = connect(back);
    sender.set_nonblocking(true).unwrap();
    wait_until("bytes for a server that does not read", || {
        while let Ok(1..) = sender.write(&[2; 65_536]) {}
        buffered("b", "to_server")
    });
    client.read_exact(&mut vec![0; 64 << 20]).unwrap();
}

#[test]
fn tls_and_http_connections_are_listed_with_their_stages() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let a = Server::named("a");
    let (release, released) = channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Origin::start(move |wire, _| {
        let _ = released.lock().unwrap().recv_timeout(DEADLINE);
        wire.reply("200 OK", "", b"late")
    });
    let evener = Evener::run(&format!(
        "{}{}",
        tcp("t", 0, a.port, &format!("tls = {{ {keys} }}")),
        tcp("w", 0, origin.port, "protocol = \"http\"")
    ));
    let encrypted = evener.port("t");
    let web = evener.port("w");
    let mut silent = connect(encrypted);
    let one = only(&evener, "t", "handshake");
    assert_eq!(one["client_port"], silent.local_addr().unwrap().port());
    assert_eq!(close(&evener, &one), 200);
    assert!(is_over(&mut silent));
    let mut client = shake(encrypted, "a.example", &Arc::new(authority.client(ANY))).unwrap();
    line_of(&mut client);
    let one = only(&evener, "t", "relaying");
    assert_eq!((&one["pool"], &one["server"]), (&"t".into(), &format!("127.0.0.1:{}", a.port).into()));
    assert!(one["server_socket"].is_i64() && one["client_socket"].is_i64());
    assert_eq!(close(&evener, &one), 200);
    assert!(is_over(&mut client));

    let mut wire = Wire::to(web);
    assert_eq!(only(&evener, "w", "http/1 idle")["server"], Value::Null);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let one = wait_until("the request", || {
        let one = only(&evener, "w", "http/1 request");
        one["server_socket"].is_i64().then_some(one)
    });
    assert_eq!(one["server"], format!("127.0.0.1:{}", origin.port));
    release.send(()).unwrap();
    assert_eq!(wire.response("GET").unwrap().text(), "late");
    let same = only(&evener, "w", "http/1 idle");
    assert_eq!(same["number"], one["number"], "the connection must keep its number");
    assert_eq!(close(&evener, &same), 200);
    assert!(wire.is_over());
    assert_eq!(
        (evener.service_counter("t", "closed.operator"), evener.service_counter("w", "closed.operator")),
        (2, 1)
    );
}

#[test]
fn a_flow_keeps_its_number_when_it_moves_and_can_be_closed() {
    let (a, b) = (flows::Echo::start("a"), flows::Echo::start("b"));
    let evener = Evener::run(&flows::service(0, &[&a, &b], "passive = { down_for = \"1s\" }"));
    let listen = evener.port("u");
    let client = flows::client(listen);
    assert_eq!(flows::ask(&client, "one"), "a one");
    let one = only(&evener, "u", "flow");
    assert_eq!(one["client_port"], client.local_addr().unwrap().port());
    assert_eq!(one["server"], format!("127.0.0.1:{}", a.port));
    drop(a);
    // The datagram that finds the server gone is lost.
    client.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    wait_until("the flow to move", || flows::ask(&client, "x").starts_with('b').then_some(()));
    let moved = only(&evener, "u", "flow");
    assert_eq!(moved["server"], format!("127.0.0.1:{}", b.port));
    assert_eq!(moved["number"], one["number"]);
    assert_eq!(close(&evener, &moved), 200);
    assert!(open(&evener, "u").is_empty());
    assert_eq!(evener.status()["services"][0]["flows_active"], 0);
    wait_until("another flow", || flows::ask(&client, "y").starts_with('b').then_some(()));
    assert_ne!(only(&evener, "u", "flow")["number"], one["number"]);
    assert_eq!(evener.service_counter("u", "closed.operator"), 1);
    assert_eq!(evener.service_counter("u", "reasons.operator"), 1);
}

#[test]
fn the_commands_list_a_limited_number_of_connections_and_report_errors() {
    let a = Server::named("a");
    let config = tcp("s", 0, a.port, "") + &tcp("o", 0, a.port, "");
    let evener = Evener::run_with(&config, &["--workers", "3"]);
    let listen = evener.port("s");
    let other = evener.port("o");
    let mut clients: Vec<TcpStream> = (0..12).map(|_| connect(listen)).collect();
    clients.iter_mut().for_each(|client| drop(line(client)));
    let mut other_client = connect(other);
    line(&mut other_client);
    let text = output_of(&evener, &["connections", "s"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NUMBER") && lines[1].contains("relaying"), "{text}");
    assert_eq!(lines.len(), 13);
    let few: Value =
        serde_json::from_str(&output_of(&evener, &["connections", "--json", "--limit", "5"])).unwrap();
    assert_eq!((few["total"].as_u64(), few["connections"].as_array().unwrap().len()), (Some(13), 5));
    // Each connection has a different number, by which it can be closed on any worker.
    let mut numbers: Vec<u64> =
        open(&evener, "s").iter().map(|one| one["number"].as_u64().unwrap()).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), 12);
    for number in numbers {
        assert_eq!(output_of(&evener, &["close", &number.to_string()]), format!("{number}: closed\n"));
    }
    clients.iter_mut().for_each(|client| assert!(is_over(client)));
    assert!(open(&evener, "s").is_empty());
    assert_eq!(only(&evener, "o", "relaying")["service"], "o");
    assert_eq!(who(listen), "a");
    assert_eq!(evener.service_counter("s", "reasons.operator"), 12);
    assert!(error_of(&evener, &["close", "4000000000"]).contains("there is no connection 4000000000"));
    assert!(error_of(&evener, &["connections", "missing"]).contains("there is no service `missing`"));
    for number in [u64::MAX.to_string(), "x".into(), "-1".into()] {
        let status = api(&evener, "DELETE", &format!("/v1/connections/{number}"), None).0;
        assert_eq!(status, if number.len() > 2 { 404 } else { 422 }, "{number}");
    }
}
