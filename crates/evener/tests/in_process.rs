//! Instances inside the test's own process, started through the library.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use evener::instance::{Embedded, Options};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that is removed with its test.
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

/// A server that takes this many connections, and sends back on each what it gets, behind its name.
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

/// Sends a text, ends, and returns all that comes back.
fn exchange(mut stream: UnixStream, text: &str) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn an_embedded_instance_balances_reloads_and_ends_when_it_is_dropped() {
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
    configuration("\"no port\"");
    let problem = instance.reload().unwrap_err().to_string();
    assert!(problem.contains("evener.lua:1: `no port` has no port"), "{problem}");

    drop(instance);
    assert!(UnixStream::connect(&socket).is_err(), "the instance still listens");
    first_thread.join().unwrap();
    second_thread.join().unwrap();
}

#[test]
fn a_configuration_that_is_not_valid_starts_no_instance() {
    let directory = Directory::new("not-valid");
    let file = directory.configuration("service \"s\" { listen = \"nowhere\" }");
    let problem = Embedded::start(&file, Options::default()).err().unwrap().to_string();
    assert!(problem.contains("evener.lua:1: service `s`"), "{problem}");
}
