//! `pending_max`: the limit of concurrent connection attempts to servers. Further clients wait in the backlog.

use crate::harness::certificates::{Authority, shake};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, line, local, wait_until};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A server that does not respond to connection attempts: its backlog is full, and the kernel drops further SYNs.
pub(crate) struct Silent {
    port: u16,
    _sockets: Vec<socket2::Socket>,
}

impl Silent {
    pub(crate) fn new() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&local(0).into()).unwrap();
        listener.listen(0).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let fill = (0..8).map(|_| {
            let socket = socket();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&local(port).into());
            socket
        });
        let sockets: Vec<_> = fill.chain([listener]).collect();
        // The backlog is full when a connection attempt times out.
        wait_until("the backlog to be full", || {
            let attempt = std::net::TcpStream::connect_timeout(&local(port), Duration::from_millis(100));
            attempt.is_err().then_some(())
        });
        Self { port, _sockets: sockets }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// A service that tries the silent server first, and then another server.
fn config(listen: u16, silent: &Silent, other: u16, more: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\", {{ \"127.0.0.1:{other}\", tier = 2 }}, \
         passive = {{ failures = 0 }}, connect_timeout = \"600ms\", pending_max = 2, {more} }}",
        silent.port()
    )
}

/// The numbers of pending connection attempts and of active connections.
fn pending(evener: &Evener) -> (u64, u64) {
    let service = &evener.status()["services"][0];
    (service["connects_pending"].as_u64().unwrap(), service["connections_active"].as_u64().unwrap())
}

#[test]
fn clients_beyond_pending_max_wait_and_are_served_later() {
    let (silent, b) = (Silent::new(), Server::named("b"));
    let evener = Evener::run_with(&config(0, &silent, b.port, ""), &["--workers", "2"]);
    let listen = evener.port("s");
    let mut clients: Vec<_> = (0..6).map(|_| connect(listen)).collect();
    wait_until("two pending connection attempts", || (pending(&evener) == (2, 2)).then_some(()));
    let (deadline, before) = (Instant::now() + DEADLINE, evener.cpu_seconds());
    // Six connection attempts of 600 ms each, at most two at a time.
    let mut most = 0;
    loop {
        let (now, connections) = pending(&evener);
        most = most.max(now);
        if connections == 6 && now == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{now} pending, {connections} connections");
    }
    assert_eq!(most, 2);
    clients.iter_mut().for_each(|client| assert_eq!(line(client), "b 127.0.0.1"));
    let used = evener.cpu_seconds() - before;
    assert!(used < 1.5, "{used} s of CPU time while clients waited");
    assert!(evener.service_counter("s", "accept_pauses") > 0);
    assert_eq!(evener.log_count("service_full"), 0, "the service must not count as full");
}

/// Number of connection attempts of other processes to a port (proc_pid_net(5): the state 02 is SYN_SENT). The attempts of
/// the test itself, which fill the backlog, are not counted.
fn in_flight(port: u16) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let local: BTreeSet<String> = links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let remote = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 9 && fields[2].ends_with(&remote) && fields[3] == "02" && !local.contains(fields[9])
    };
    table.lines().filter(is_one).count()
}

#[test]
fn abandoned_connection_attempts_are_closed() {
    let (silent, b) = (Silent::new(), Server::named("b"));
    let config = config(0, &silent, b.port, "").replace("pending_max = 2", "connections_max = 100");
    let evener = Evener::run_with(&config.replace("600ms", "5s"), &["--workers", "1"]);
    let listen = evener.port("s");
    let mut clients: Vec<_> = (0..4).map(|_| connect(listen)).collect();
    wait_until("four connection attempts", || (in_flight(silent.port()) == 4).then_some(()));
    clients.iter_mut().for_each(|client| assert_eq!(line(client), "b 127.0.0.1"));
    wait_until("the timed out attempts to end", || (in_flight(silent.port()) == 0).then_some(()));
    // The operator closes the clients of pending attempts. Otherwise these attempts would take 10 minutes.
    evener.reload(&config.replace("600ms", "10min"));
    let _clients: Vec<_> = (0..4).map(|_| connect(listen)).collect();
    wait_until("four connection attempts", || (in_flight(silent.port()) == 4).then_some(()));
    let listed = evener.run_command(&["connections", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let connecting = listed["connections"].as_array().unwrap().iter();
    for one in connecting.filter(|one| one["stage"] == "connecting") {
        evener.run_command(&["close", &one["number"].to_string()]);
    }
    assert!(evener.service_counter("s", "closed.operator") > 0);
    wait_until("the attempts to end", || (in_flight(silent.port()) == 0).then_some(()));
}

#[test]
fn clients_that_disconnect_and_immediate_connections_do_not_count_as_pending() {
    let (silent, b) = (Silent::new(), Server::named("b"));
    let config = config(0, &silent, b.port, "");
    // With io_uring, Evener notices the end of a client only after the connection attempt for the client has
    // succeeded or failed.
    let slow = config.replace("600ms", "2s");
    let evener = Evener::run(&slow);
    let listen = evener.port("s");
    let clients: Vec<_> = (0..2).map(|_| connect(listen)).collect();
    wait_until("two pending connection attempts", || (pending(&evener) == (2, 2)).then_some(()));
    for client in clients {
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_until("the attempts and connections to end", || (pending(&evener) == (0, 0)).then_some(()));
    // Without the silent server, connections are established almost immediately.
    evener.reload(&slow.replace(&format!("\"127.0.0.1:{}\", ", silent.port()), ""));
    let mut clients: Vec<_> = (0..50).map(|_| connect(listen)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(line(client), "b 127.0.0.1"));
    assert_eq!(pending(&evener), (0, 50));
}

#[test]
fn pending_max_applies_to_tls_and_http() {
    let (directory, authority, silent) = (Directory::new(), Authority::new("test ca"), Silent::new());
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let (b, origin) = (Server::named("b"), Origin::named("o"));
    let evener = Evener::run(&config(0, &silent, b.port, &format!("tls = {{ {keys} }}")));
    let tls = evener.port("s");
    let roots = Arc::new(authority.client(&[&rustls::version::TLS13]));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let roots = Arc::clone(&roots);
            std::thread::spawn(move || {
                let mut received = String::new();
                BufReader::new(shake(tls, "a.example", &roots).unwrap()).read_line(&mut received).unwrap();
                received
            })
        })
        .collect();
    wait_until("pending connection attempts", || (pending(&evener).0 >= 2).then_some(()));
    for client in clients {
        assert_eq!(client.join().unwrap(), "b 127.0.0.1\n");
    }
    assert_eq!(pending(&evener).0, 0);
    let evener = Evener::run(&config(0, &silent, origin.port, "protocol = \"http\""));
    let http = evener.port("s");
    let mut pending_clients = [Wire::to(http), Wire::to(http)];
    pending_clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    wait_until("two pending connection attempts", || (pending(&evener) == (2, 2)).then_some(()));
    let mut late = Wire::to(http);
    late.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the third client to wait", || {
        (evener.service_counter("s", "accept_pauses") > 0).then_some(())
    });
    assert_eq!(evener.service_counter("s", "connections"), 2);
    for client in pending_clients.iter_mut().chain([&mut late]) {
        assert_eq!(client.response("GET").unwrap().text(), "o");
    }
    assert_eq!(pending(&evener).0, 0);
}
