//! `fast_close`: when one side ends, both sides are closed, and bytes that were sent before still arrive.

use crate::harness::certificates::{Authority, shake};
use crate::harness::origin::{Wire, pattern};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

const SIZE: usize = 3 << 20;

/// Events of the server of a test.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    /// This many correct bytes arrived before the end of the stream.
    Received(usize),
    /// The connection was closed.
    Closed,
}

/// A server whose actions depend on the first byte. After `r` it receives up to the client's end, then sends until the
/// connection is closed. After `s` it sends, shuts down its write side, and receives up to the client's end.
fn server() -> (Server, Receiver<Report>) {
    let (reports, reported) = channel();
    let server = Server::start(move |mut stream| {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut wire = Wire::new(stream.try_clone().unwrap());
        // A client of HTTP begins with a request to upgrade.
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first[0] == b'G' {
            wire.header().unwrap();
            wire.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
            stream.read_exact(&mut first).unwrap();
        }
        if first[0] == b's' {
            stream.write_all(&pattern(1, SIZE)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == pattern(2, received.len()));
        reports.send(Report::Received(received.len())).unwrap();
        if first[0] == b'r' {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            reports.send(Report::Closed).unwrap();
        }
    });
    (server, reported)
}

fn config(listen: u16, server: &Server, more: &str) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\", {more} }}", server.port)
}

/// Checks that the end of the client's stream closes both sides, although the server keeps sending, and that
/// the server has received all bytes.
fn expect_end_by_client(reported: &Receiver<Report>, client: &mut impl Read) {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    // A few bytes that the server sends immediately may arrive.
    assert!(rest.iter().all(|byte| *byte == b'x') && rest.len() < 100, "{} bytes", rest.len());
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Received(SIZE));
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Closed);
}

/// Checks that the end of the server's stream closes both sides, although the client keeps its side open, and
/// that the client has received all bytes.
fn expect_end_by_server(reported: &Receiver<Report>, client: &mut impl Read) {
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == pattern(1, SIZE), "{} bytes", received.len());
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Received(0));
}

#[test]
fn the_end_of_a_configured_side_closes_both_sides() {
    let (server, reported) = server();
    for side in ["client", "server", "both"] {
        let evener = Evener::run(&config(0, &server, &format!("fast_close = \"{side}\"")));
        let listen = evener.port("s");
        if side != "server" {
            let mut client = connect(listen);
            client.write_all(b"r").unwrap();
            client.write_all(&pattern(2, SIZE)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            expect_end_by_client(&reported, &mut client);
        }
        if side != "client" {
            let mut client = connect(listen);
            client.write_all(b"s").unwrap();
            expect_end_by_server(&reported, &mut client);
        }
    }
}

#[test]
fn the_end_of_a_side_without_fast_close_is_forwarded_and_the_other_side_stays_open() {
    let server = Server::start(|mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        let mut received = String::new();
        if first[0] == b'r' {
            stream.read_to_string(&mut received).unwrap();
            stream.write_all(format!("received {received}").as_bytes()).unwrap();
        } else {
            stream.write_all(b"done\n").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_string(&mut received).unwrap();
            assert_eq!(received, "still here");
        }
    });
    let service = |name: &str, side: &str| {
        config(0, &server, &format!("fast_close = \"{side}\"")).replace("\"s\"", name)
    };
    let evener = Evener::run(&format!("{}\n{}", service("\"c\"", "client"), service("\"v\"", "server")));
    let [by_client, by_server] = ["c", "v"].map(|service| evener.port(service));
    let mut client = connect(by_server);
    client.write_all(b"reverything").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "received everything");
    let mut client = connect(by_client);
    client.write_all(b"s").unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "done\n");
    client.write_all(b"still here").unwrap();
}

#[test]
fn a_client_that_reads_slowly_while_it_sends_gets_everything() {
    let server = Server::start(|mut stream| {
        stream.read_exact(&mut [0; 10]).unwrap();
        stream.write_all(&pattern(3, SIZE)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let evener = Evener::run(&config(0, &server, "fast_close = \"both\""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    let mut writer = client.try_clone().unwrap();
    // The client uploads without end, and reads in small pieces.
    let writing = std::thread::spawn(move || while writer.write_all(&[0; 65_536]).is_ok() {});
    let (mut response, mut piece) = (Vec::new(), vec![0; 32 << 10]);
    while let Ok(read @ 1..) = client.read(&mut piece) {
        response.extend_from_slice(&piece[..read]);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(response == pattern(3, SIZE), "{} bytes", response.len());
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    writing.join().unwrap();
}

/// A client that slowly reads the bytes that the server sent before its end, and keeps sending bytes.
fn read_slowly_while_sending(mut client: impl Read + Write) {
    client.write_all(b"s").unwrap();
    let (mut response, mut piece) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        client.write_all(b"x").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3));
        match client.read(&mut piece).unwrap() {
            0 => break,
            read => response.extend_from_slice(&piece[..read]),
        }
    }
    assert!(response == pattern(1, SIZE), "{} bytes", response.len());
}

#[test]
fn a_client_may_keep_sending_until_it_has_received_everything() {
    let server = Server::start(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(&pattern(1, SIZE)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    for side in ["server", "both"] {
        let setting = format!("fast_close = \"{side}\"");
        let behind_tls = config(0, &server, &format!("tls = {{ {keys} }}, {setting}"));
        let config = format!("{}\n{}", config(0, &server, &setting), behind_tls.replace("\"s\"", "\"t\""));
        let evener = Evener::run(&config);
        let plain = evener.port("s");
        let encrypted = evener.port("t");
        read_slowly_while_sending(connect(plain));
        read_slowly_while_sending(shake(encrypted, "a.example", &tls).unwrap());
    }
}

/// A server that reads slowly and sends a message after each piece, and a channel with the number of correct
/// bytes that each connection received.
fn slow_reader() -> (Server, Receiver<usize>) {
    let (counts, reported) = channel();
    let server = Server::start(move |mut stream| {
        let (mut received, mut piece) = (Vec::new(), vec![0; 16 << 10]);
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            received.extend_from_slice(&piece[..read]);
            std::thread::sleep(std::time::Duration::from_millis(2));
            let _ = stream.write_all(b"progress");
        }
        let correct = received.iter().zip(pattern(2, UPLOAD)).take_while(|(got, sent)| **got == *sent);
        counts.send(correct.count()).unwrap();
    });
    (server, reported)
}

/// More bytes than the buffers hold, so that many bytes are in flight when the client ends.
const UPLOAD: usize = 12 << 20;

#[test]
fn a_server_that_sends_while_it_reads_receives_everything() {
    let (server, reported) = slow_reader();
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    for side in ["client", "both"] {
        let setting = format!("fast_close = \"{side}\"");
        let behind_tls = config(0, &server, &format!("tls = {{ {keys} }}, {setting}"));
        let config = format!("{}\n{}", config(0, &server, &setting), behind_tls.replace("\"s\"", "\"t\""));
        let evener = Evener::run(&config);
        let plain = evener.port("s");
        let encrypted = evener.port("t");
        let mut client = connect(plain);
        client.write_all(&pattern(2, UPLOAD)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), UPLOAD);
        let mut client = shake(encrypted, "a.example", &tls).unwrap();
        client.write_all(&pattern(2, UPLOAD)).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        client.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), UPLOAD);
        wait_until("all connections to end", || {
            let status = evener.status();
            let active = |at: usize| status["services"][at]["connections_active"].as_u64().unwrap();
            (active(0) + active(1) == 0).then_some(())
        });
    }
}

#[test]
fn fast_close_applies_to_connections_with_tls() {
    let (server, reported) = server();
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let more = format!("tls = {{ {keys} }}, fast_close = \"both\"");
    let evener = Evener::run(&config(0, &server, &more));
    let listen = evener.port("s");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    let mut client = shake(listen, "a.example", &tls).unwrap();
    client.write_all(b"r").unwrap();
    client.write_all(&pattern(2, SIZE)).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
    expect_end_by_client(&reported, &mut client);
    let mut client = shake(listen, "a.example", &tls).unwrap();
    client.write_all(b"s").unwrap();
    expect_end_by_server(&reported, &mut client);
}

#[test]
fn fast_close_applies_to_upgraded_connections_of_http() {
    let (server, reported) = server();
    let more = "protocol = \"http\", fast_close = \"both\"";
    let evener = Evener::run(&config(0, &server, more));
    let listen = evener.port("s");
    let upgraded = || -> TcpStream {
        let mut stream = connect(listen);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
        // Only the header section of the response arrives: the server waits for the first byte.
        let mut wire = Wire::new(stream.try_clone().unwrap());
        assert!(wire.header().unwrap().unwrap().starts_with("HTTP/1.1 101"));
        stream
    };
    let mut client = upgraded();
    client.write_all(b"r").unwrap();
    client.write_all(&pattern(2, SIZE)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect_end_by_client(&reported, &mut client);
    let mut client = upgraded();
    client.write_all(b"s").unwrap();
    expect_end_by_server(&reported, &mut client);
}
