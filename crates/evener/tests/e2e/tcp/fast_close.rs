//! `fast_close`: one side ends, and both are closed; what was said before still arrives.

use crate::harness::certificates::{Authority, shake};
use crate::harness::origin::{Wire, pattern};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

const SIZE: usize = 3 << 20;

/// What the server of a test went through.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    /// It heard so many bytes, rightly, to the end.
    Received(usize),
    /// Nobody was there any more.
    Gone,
}

/// By the first byte: `h` hears the client to its end, then speaks until nobody listens; `s` speaks, ends its side, and
/// hears the client to its end.
fn server() -> (Server, Receiver<Report>) {
    let (tell, reported) = channel();
    let server = Server::start(move |mut stream| {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut wire = Wire::new(stream.try_clone().unwrap());
        // Of a client of http, what comes before the change of protocol.
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
        tell.send(Report::Received(received.len())).unwrap();
        if first[0] == b'h' {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            tell.send(Report::Gone).unwrap();
        }
    });
    (server, reported)
}

fn config(listen: u16, server: &Server, more: &str) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\", {more} }}", server.port)
}

/// The client ends its side: the server has everything, and both are closed though the server never ends.
fn client_ends(reported: &Receiver<Report>, client: &mut impl Read) {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    // A server that speaks at once may be heard a little.
    assert!(rest.iter().all(|byte| *byte == b'x') && rest.len() < 100, "{} bytes", rest.len());
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Received(SIZE));
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Gone);
}

/// The server ends its side: the client has everything, and both are closed though the client never ends.
fn server_ends(reported: &Receiver<Report>, client: &mut impl Read) {
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == pattern(1, SIZE), "{} bytes", received.len());
    assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), Report::Received(0));
}

#[test]
fn the_end_of_a_named_side_is_that_of_both() {
    let (server, reported) = server();
    for word in ["client", "server", "both"] {
        let evener = Evener::run(&config(0, &server, &format!("fast_close = \"{word}\"")));
        let listen = evener.port("s");
        if word != "server" {
            let mut client = connect(listen);
            client.write_all(b"h").unwrap();
            client.write_all(&pattern(2, SIZE)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client_ends(&reported, &mut client);
        }
        if word != "client" {
            let mut client = connect(listen);
            client.write_all(b"s").unwrap();
            server_ends(&reported, &mut client);
        }
    }
}

#[test]
fn the_end_of_the_other_side_is_passed_on() {
    let talker = Server::start(|mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        let mut received = String::new();
        if first[0] == b'h' {
            stream.read_to_string(&mut received).unwrap();
            stream.write_all(format!("heard {received}").as_bytes()).unwrap();
        } else {
            stream.write_all(b"done\n").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_string(&mut received).unwrap();
            assert_eq!(received, "still here");
        }
    });
    let of = |name: &str, word: &str| {
        config(0, &talker, &format!("fast_close = \"{word}\"")).replace("\"s\"", name)
    };
    let evener = Evener::run(&format!("{}\n{}", of("\"c\"", "client"), of("\"v\"", "server")));
    let [by_client, by_server] = ["c", "v"].map(|service| evener.port(service));
    let mut client = connect(by_server);
    client.write_all(b"heverything").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "heard everything");
    let mut client = connect(by_client);
    client.write_all(b"s").unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "done\n");
    client.write_all(b"still here").unwrap();
}

#[test]
fn a_client_that_reads_slowly_or_still_speaks_gets_everything() {
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
    // It uploads without end, and reads in small bites.
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

/// A client that says a word now and then, while it slowly takes what the server said before it ended.
fn takes_slowly(mut client: impl Read + Write) {
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
fn a_client_that_has_not_received_everything_may_go_on_speaking() {
    let talker = Server::start(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(&pattern(1, SIZE)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    for word in ["server", "both"] {
        let word = format!("fast_close = \"{word}\"");
        let behind_tls = config(0, &talker, &format!("tls = {{ {keys} }}, {word}"));
        let config = format!("{}\n{}", config(0, &talker, &word), behind_tls.replace("\"s\"", "\"t\""));
        let evener = Evener::run(&config);
        let plain = evener.port("s");
        let secure = evener.port("t");
        takes_slowly(connect(plain));
        takes_slowly(shake(secure, "a.example", &tls).unwrap());
    }
}

/// It reads slowly, and says after each piece that it has it, whether anybody listens or not.
fn slow_reader() -> (Server, Receiver<usize>) {
    let (tell, reported) = channel();
    let server = Server::start(move |mut stream| {
        let (mut received, mut piece) = (Vec::new(), vec![0; 16 << 10]);
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            received.extend_from_slice(&piece[..read]);
            std::thread::sleep(std::time::Duration::from_millis(2));
            let _ = stream.write_all(b"progress");
        }
        let right = received.iter().zip(pattern(2, UPLOAD)).take_while(|(got, sent)| **got == *sent);
        tell.send(right.count()).unwrap();
    });
    (server, reported)
}

/// More than buffers hold, so that much is on its way when the client ends.
const UPLOAD: usize = 12 << 20;

#[test]
fn a_server_that_speaks_meanwhile_receives_everything() {
    let (server, reported) = slow_reader();
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    for word in ["client", "both"] {
        let word = format!("fast_close = \"{word}\"");
        let behind_tls = config(0, &server, &format!("tls = {{ {keys} }}, {word}"));
        let config = format!("{}\n{}", config(0, &server, &word), behind_tls.replace("\"s\"", "\"t\""));
        let evener = Evener::run(&config);
        let plain = evener.port("s");
        let secure = evener.port("t");
        let mut client = connect(plain);
        client.write_all(&pattern(2, UPLOAD)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), UPLOAD);
        let mut client = shake(secure, "a.example", &tls).unwrap();
        client.write_all(&pattern(2, UPLOAD)).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        client.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reported.recv_timeout(DEADLINE).unwrap(), UPLOAD);
        wait_until("nothing to be left", || {
            let status = evener.status();
            let active = |at: usize| status["services"][at]["connections_active"].as_u64().unwrap();
            (active(0) + active(1) == 0).then_some(())
        });
    }
}

#[test]
fn it_holds_behind_tls() {
    let (server, reported) = server();
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let more = format!("tls = {{ {keys} }}, fast_close = \"both\"");
    let evener = Evener::run(&config(0, &server, &more));
    let listen = evener.port("s");
    let tls = Arc::new(authority.client(&[&rustls::version::TLS13]));
    let mut client = shake(listen, "a.example", &tls).unwrap();
    client.write_all(b"h").unwrap();
    client.write_all(&pattern(2, SIZE)).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
    client_ends(&reported, &mut client);
    let mut client = shake(listen, "a.example", &tls).unwrap();
    client.write_all(b"s").unwrap();
    server_ends(&reported, &mut client);
}

#[test]
fn it_holds_for_what_http_became() {
    let (server, reported) = server();
    let more = "protocol = \"http\", fast_close = \"both\"";
    let evener = Evener::run(&config(0, &server, more));
    let listen = evener.port("s");
    let upgraded = || -> TcpStream {
        let mut stream = connect(listen);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
        // Its head, and nothing behind it: the server waits for the first byte.
        let mut wire = Wire::new(stream.try_clone().unwrap());
        assert!(wire.header().unwrap().unwrap().starts_with("HTTP/1.1 101"));
        stream
    };
    let mut client = upgraded();
    client.write_all(b"h").unwrap();
    client.write_all(&pattern(2, SIZE)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client_ends(&reported, &mut client);
    let mut client = upgraded();
    client.write_all(b"s").unwrap();
    server_ends(&reported, &mut client);
}
