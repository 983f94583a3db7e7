//! Instances inside the test's process, started through the library.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use evener::instance::{Embedded, Options};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that is removed at the end of its test.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evener-in-process-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn configuration(&self, text: &str) -> PathBuf {
        let file = self.0.join("evener.lua");
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that accepts this many connections, and sends its name and the received text on each.
fn server(name: &'static str, connections: usize) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(format!("{name} {text}").as_bytes()).unwrap();
        }
    });
    (address, thread)
}

/// A UDP server that echoes each datagram with the bit QR set, so that a DNS query becomes a response.
fn datagram_server() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            let _ = socket.send_to(&buffer[..length], client);
        }
    });
    address
}

/// A query for the address of `a.example` (RFC 1035, section 4).
const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";

/// Sends a query and returns the response.
fn query(service: SocketAddr) -> Vec<u8> {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(QUERY, service).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).unwrap();
    buffer[..length].to_vec()
}

/// Sends a text, shuts down the write side, and returns the response.
fn exchange(mut stream: UnixStream, text: &str) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn an_embedded_instance_balances_reloads_and_ends_on_drop() {
    let directory = Directory::new("balances");
    let socket = directory.0.join("clients.sock");
    let (first, first_thread) = server("first", 1);
    let (second, second_thread) = server("second", 2);
    let configuration = |servers: &str| {
        directory.configuration(&format!("service \"s\" {{ listen = \"{}\", {servers} }}", socket.display()))
    };
    let file = configuration(&format!("\"{first}\", \"{second}\""));
    let instance = Embedded::start(&file, Options::default()).unwrap();
    let connect = || UnixStream::connect(&socket).unwrap();
    let mut served = [exchange(connect(), "hello"), exchange(connect(), "hello")];
    served.sort();
    assert_eq!(served, ["first hello", "second hello"]);

    configuration(&format!("\"{second}\""));
    assert_eq!(instance.reload().unwrap(), [format!("- server s/{first}")]);
    assert_eq!(exchange(connect(), "again"), "second again");
    configuration("\"noport\"");
    let problem = instance.reload().unwrap_err().to_string();
    assert!(problem.contains("evener.lua:1: service `s`: `noport` has no port"), "{problem}");

    drop(instance);
    assert!(UnixStream::connect(&socket).is_err(), "the instance still listens");
    first_thread.join().unwrap();
    second_thread.join().unwrap();
}

#[test]
fn an_invalid_configuration_starts_no_instance() {
    let directory = Directory::new("not-valid");
    let file = directory.configuration("service \"s\" { listen = \"nowhere\" }");
    let problem = Embedded::start(&file, Options::default()).err().unwrap().to_string();
    assert!(problem.contains("evener.lua:1: service `s`"), "{problem}");
}

#[test]
fn ports_that_the_system_chooses_are_reported_and_stay_across_reloads() {
    let directory = Directory::new("ports");
    let server = datagram_server();
    let any = "listen = \"127.0.0.1:0\"";
    let configuration = |more: &str| {
        directory.configuration(&format!(
            "service \"tcp\" {{ {any}, \"{server}\" }}
             service \"udp\" {{ {any}, protocol = \"udp\", \"{server}\" }}
             service \"dns\" {{ {any}, protocol = \"dns\", \"{server}\" }}
             {more}"
        ))
    };
    let names = ["tcp", "udp", "dns"];
    let file = configuration("");
    let options = Options { workers: 3, ..Options::default() };
    let instance = Embedded::start(&file, options).unwrap();
    let bound = |name: &str| -> SocketAddr {
        let addresses = instance.addresses(name);
        assert_eq!(addresses.len(), 1, "{name}: {addresses:?}");
        addresses[0]
    };
    let response: Vec<u8> = [&QUERY[..2], b"\x81", &QUERY[3..]].concat();
    let all_serve = || {
        let [tcp, udp, dns] = names.map(bound);
        for _ in 0..12 {
            TcpStream::connect(tcp).unwrap();
            TcpStream::connect(dns).unwrap();
            assert_eq!([query(udp), query(dns)], [response.clone(), response.clone()]);
        }
    };
    let before = names.map(bound);
    assert!(before.iter().all(|address| address.port() > 0) && before[0] != before[2], "{before:?}");
    all_serve();

    configuration(&format!("service \"more\" {{ {any}, \"{server}\" }}"));
    instance.reload().unwrap();
    assert_eq!(names.map(bound), before);
    assert!(!before.contains(&bound("more")));
    all_serve();

    // Another instance gets different ports.
    let other = Embedded::start(&file, options).unwrap();
    assert!(names.iter().chain(&["more"]).all(|name| !before.contains(&other.addresses(name)[0])));

    // The configuration may name the port that the system chose.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("127.0.0.1:0", &before[0].to_string(), 1)).unwrap();
    instance.reload().unwrap();
    assert_eq!(names.map(bound), before);
    all_serve();
}
