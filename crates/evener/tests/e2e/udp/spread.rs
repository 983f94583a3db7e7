//! `spread`: the datagrams of one client are distributed over all servers.

use crate::harness::{BINARY, DEADLINE, Directory, Evener, wait_until};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A server that records each datagram and responds with its letter followed by the same bytes.
struct Collector {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(ip: IpAddr, letter: char) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (seen, stopped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (keep, stop) = (Arc::clone(&seen), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let _ = socket.send_to(format!("{letter}{text}").as_bytes(), from);
                keep.lock().unwrap().push(text);
            }
        });
        Self { port, seen, stopped, thread: Some(thread) }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn at(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// The configuration of a service `u` with these servers, named `a`, `b` and `c`.
fn config(ip: IpAddr, listen: u16, servers: &[(&Collector, &str)], more: &str) -> String {
    let names = ["a", "b", "c"];
    let servers = servers.iter().zip(names).map(|((server, more), name)| {
        format!("{{ \"{}\", name = \"{name}\", {more} }}, ", at(ip, server.port))
    });
    let servers: String = servers.collect();
    format!("service \"u\" {{ protocol = \"udp\", listen = \"{}\", {servers} {more} }}", at(ip, listen))
}

fn client(ip: IpAddr, listen: u16) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect((ip, listen)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Sends datagrams, each after the response to the previous datagram, and returns the letters of the servers
/// that responded.
fn letters(socket: &UdpSocket, count: usize) -> String {
    let mut buffer = [0; 2000];
    let send = |number: usize| {
        socket.send(format!("{number:04}").as_bytes()).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert!(
            buffer[..length].ends_with(format!("{number:04}").as_bytes()),
            "expected the response to {number}"
        );
        char::from(buffer[0])
    };
    (0..count).map(send).collect()
}

#[test]
fn servers_alternate_after_the_configured_number_of_datagrams() {
    for ip in [V4, V6] {
        let (a, b) = (Collector::start(ip, 'a'), Collector::start(ip, 'b'));
        let servers = [(&a, ""), (&b, "")];
        let evener = Evener::run(&config(ip, 0, &servers, "spread = 1"));
        let listen = evener.port("u");
        let socket = client(ip, listen);
        let seen = letters(&socket, 40);
        assert!(seen == "ab".repeat(20) || seen == "ba".repeat(20), "{seen}");
        assert_eq!(evener.service_counter("u", "flows"), 2, "expected one flow for each server");
        assert_eq!(evener.service_counter("u", "datagrams_out"), 40);
        // Many datagrams without waiting for responses.
        let before = (a.count(), b.count());
        (0..40).for_each(|number| assert!(socket.send(format!("{number:04}").as_bytes()).is_ok()));
        wait_until("all datagrams", || {
            ((a.count() - before.0, b.count() - before.1) == (20, 20)).then_some(())
        });

        evener.reload(&config(ip, 0, &servers, "spread = 5"));
        let seen = letters(&client(ip, listen), 40);
        let runs = ["aaaaabbbbb".repeat(4), "bbbbbaaaaa".repeat(4)];
        assert!(runs.contains(&seen), "{seen}");
        // The turns of two clients are independent.
        let (one, other) = (client(ip, listen), client(ip, listen));
        let seen: Vec<(String, String)> = (0..10).map(|_| (letters(&one, 1), letters(&other, 1))).collect();
        let of = |which: fn(&(String, String)) -> &str| seen.iter().map(which).collect::<String>();
        for seen in [of(|both| &both.0), of(|both| &both.1)] {
            assert!(
                ["aaaaa", "bbbbb"].contains(&&seen[..5]) && ["aaaaa", "bbbbb"].contains(&&seen[5..]),
                "{seen}"
            );
        }

        // Without `spread` a client stays with its server.
        evener.reload(&config(ip, 0, &servers, ""));
        let seen = letters(&client(ip, listen), 20);
        assert!(seen == "a".repeat(20) || seen == "b".repeat(20), "{seen}");
    }
}

#[test]
fn weights_states_and_failures_apply_to_each_datagram() {
    let (a, mut b) = (Collector::start(V4, 'a'), Some(Collector::start(V4, 'b')));
    let c = Collector::start(V4, 'c');
    let servers = [(&a, "weight = 3"), (b.as_ref().unwrap(), ""), (&c, "tier = 2")];
    let evener = Evener::run(&config(V4, 0, &servers, "spread = 1, policy = \"weighted\""));
    let listen = evener.port("u");
    let socket = client(V4, listen);
    let seen = letters(&socket, 40);
    assert_eq!((seen.matches('a').count(), seen.matches('b').count()), (30, 10), "{seen}");
    assert!(evener.run_command(&["drain", "u/a"]).status.success());
    assert_eq!(letters(&socket, 10), "b".repeat(10));
    assert!(evener.run_command(&["ready", "u/a"]).status.success());
    let seen = letters(&socket, 8);
    assert_eq!((seen.matches('a').count(), seen.matches('b').count()), (6, 2), "{seen}");
    // A server that refuses loses its turns. Datagrams that it did not receive are lost.
    b.take();
    wait_until("the server to be down", || {
        let _ = socket.send(b"0000");
        (evener.server("b")["verdict"] == "down").then_some(())
    });
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while socket.recv(&mut [0; 100]).is_ok() {}
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(letters(&socket, 10), "a".repeat(10), "expected no server of a lower tier");
}

#[test]
fn servers_at_their_limit_keep_existing_flows() {
    let (a, b) = (Collector::start(V4, 'a'), Collector::start(V4, 'b'));
    let servers = [(&a, "max = 1"), (&b, "max = 1")];
    let evener = Evener::run_with(&config(V4, 0, &servers, "spread = 1"), &["--workers", "1"]);
    let listen = evener.port("u");
    let socket = client(V4, listen);
    let seen = letters(&socket, 20);
    assert!(seen.contains('a') && seen.contains('b'), "{seen}");
    client(V4, listen).send(b"0000").unwrap();
    wait_until("another client to be refused", || {
        (evener.service_counter("u", "drops.no_server") > 0).then_some(())
    });
}

#[test]
fn sticky_policies_are_rejected_with_spread() {
    let directory = Directory::new();
    for (more, what) in [
        ("policy = \"hash\"", "policy = \"hash\""),
        ("policy = \"maglev\"", "policy = \"maglev\""),
        ("policy = \"first\"", "policy = \"first\""),
        ("sticky = true", "sticky"),
    ] {
        let text = format!(
            "service \"u\" {{ protocol = \"udp\", listen = \"127.0.0.1:9999\", \"127.0.0.1:9\", spread = 1, {more} }}"
        );
        let file = directory.write("evener.lua", &text);
        let output = std::process::Command::new(BINARY).arg("check").arg(file).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success()
                && printed.contains(&format!("spread cannot be used with {what} of pool")),
            "{more}: {printed}"
        );
    }
}
