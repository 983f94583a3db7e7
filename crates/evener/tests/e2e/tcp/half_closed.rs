//! `half_closed_timeout`: connections whose client or server has shut down its write side.

use crate::harness::{Evener, Server, connect, line, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

fn run(listen: u16, server: u16, protocol: &str, timeout: &str) -> Evener {
    Evener::run(&format!(
        "service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", \
         half_closed_timeout = {timeout} }}"
    ))
}

/// Reads up to the end of the connection, which may be a reset.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    rest
}

/// A server that sends one line, reads up to its client's end, and then sends nothing for a minute.
fn stuck() -> Server {
    Server::start(|mut stream| {
        let _ = stream.write_all(b"a\n");
        let _ = stream.read_to_end(&mut Vec::new());
        std::thread::sleep(Duration::from_secs(60));
    })
}

#[test]
fn a_half_closed_client_is_closed_before_the_idle_timeout() {
    let server = stuck();
    let evener = run(0, server.port, "tcp", "\"300ms\"");
    let listen = evener.port("s");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), b"");
    wait_until("the connection to end", || {
        (evener.service_counter("s", "closed.half_closed_timeout") == 1).then_some(())
    });
    assert_eq!(evener.status()["services"][0]["connections_active"], 0);
    assert_eq!(evener.service_counter("s", "closed.idle_timeout"), 0);
}

#[test]
fn a_client_whose_server_half_closes_is_closed_before_the_idle_timeout() {
    let server = Server::start(|mut stream| {
        let _ = stream.write_all(b"a\n");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let evener = run(0, server.port, "tcp", "\"300ms\"");
    let listen = evener.port("s");
    let mut client = connect(listen);
    assert_eq!(rest(&mut client), b"a\n");
    wait_until("the connection to end", || {
        (evener.service_counter("s", "closed.half_closed_timeout") == 1).then_some(())
    });
}

#[test]
fn a_half_closed_connection_that_still_carries_bytes_stays_open() {
    let server = Server::start(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        for _ in 0..40 {
            let _ = stream.write_all(b".");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let evener = run(0, server.port, "tcp", "\"3s\"");
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        rest(&mut client).len(),
        40,
        "the transfer must go on although it takes longer than the timeout"
    );
    assert_eq!(evener.service_counter("s", "closed.half_closed_timeout"), 0);
}

#[test]
fn a_shorter_idle_timeout_ends_half_closed_connections() {
    for timeout in ["\"1h\"", "false"] {
        let server = stuck();
        let evener = run(0, server.port, "tcp", &format!("{timeout}, idle_timeout = \"300ms\""));
        let listen = evener.port("s");
        let mut client = connect(listen);
        assert_eq!(line(&mut client), "a");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), b"", "{timeout}");
        wait_until("the connection to end", || {
            (evener.status()["services"][0]["connections_active"] == 0).then_some(())
        });
    }
}

#[test]
fn half_closed_timeout_applies_to_upgraded_connections_of_http() {
    let server = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello\n",
        );
        std::thread::sleep(Duration::from_secs(60));
    });
    let evener = run(0, server.port, "http", "\"300ms\"");
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").unwrap();
    while line(&mut client) != "hello" {}
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), b"");
    assert_eq!(evener.service_counter("s", "closed.half_closed_timeout"), 1);
}
