//! A reload that changes the address of a named server: the change is reported, the verdict starts again, and clients are
//! sent to the new address.

use crate::harness::dns::{self, A, Nameserver, host, query};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{Evener, Server, line, reserved_port, wait_until, who};
use crate::udp::flows::{self, Echo};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

/// One named server at an address.
fn config(protocol: &str, listen: u16, address: &str, more: &str) -> String {
    format!(
        "service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", pool = \"p\" }}\n\
         pool \"p\" {{ {{ \"{address}\", name = \"a\" }}, {more} }}"
    )
}

/// An address of loopback.
fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Reloads a configuration, and returns the output of the command.
fn move_to(evener: &Evener, config: &str) -> String {
    evener.write_config(config);
    let output = evener.run_command(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_reload_reports_the_new_address_of_a_server_and_its_clients_are_sent_there() {
    let (one, two) = (Server::named("one"), Server::named("two"));
    let more = "sticky = true, check = check.tcp { every = \"1h\" }";
    let evener = Evener::run(&config("tcp", 0, &at(one.port), more));
    let listen = evener.port("s");
    assert_eq!(who(listen), "one");
    let printed = move_to(&evener, &config("tcp", 0, &at(two.port), more));
    assert!(
        printed.contains(&format!("server p/a: address {} -> {}", at(one.port), at(two.port))),
        "{printed}"
    );
    assert_eq!(who(listen), "two", "a sticky client must stay with the named server");
    evener.expect_log("server_moved pool=p server=a");
    wait_until("the new address to be checked", || (evener.server("a")["verdict"] == "up").then_some(()));
    // No server listens at the third address. Earlier checks do not count for this address, and its first check
    // decides regardless of `fall`.
    let unused = reserved_port();
    move_to(&evener, &config("tcp", 0, &at(unused), more));
    wait_until("the server to be down", || (evener.server("a")["verdict"] == "down").then_some(()));
    assert_eq!(evener.server("a")["reason"], "connect: refused");
    assert_eq!(evener.log_count("probe_failed"), 1, "the first check must decide");
}

#[test]
fn warm_connections_of_the_old_address_are_closed() {
    let waiting_server = |name: &'static str| {
        Server::start(move |mut stream| {
            let _ = stream.write_all(format!("{name} 127.0.0.1\n").as_bytes());
            let _ = stream.read(&mut [0; 16]);
        })
    };
    let (one, two) = (waiting_server("one"), waiting_server("two"));
    let config =
        |port: u16| config("tcp", 0, &at(port), "").replace("pool = \"p\" }", "pool = \"p\", warm = 4 }");
    let evener = Evener::run(&config(one.port));
    let listen = evener.port("s");
    let warm = || evener.status()["services"][0]["warm"] == 4;
    wait_until("warm connections", || warm().then_some(()));
    move_to(&evener, &config(two.port));
    assert_eq!([who(listen), who(listen)], ["two", "two"]);
    wait_until("warm connections", || warm().then_some(()));
}

#[test]
fn requests_of_an_open_client_connection_go_to_the_new_address() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let evener = Evener::run(&config("http", 0, &at(one.port), ""));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "one");
    move_to(&evener, &config("http", 0, &at(two.port), ""));
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "two");
    assert_eq!(client.ask("GET", "/", "").unwrap().text(), "two");
    assert_eq!(two.connections(), 1, "the connection to the new address must be pooled");
}

#[test]
fn flows_go_to_the_new_address() {
    let (one, two) = (Echo::start("one"), Echo::start("two"));
    let evener = Evener::run(&config("udp", 0, &at(one.port), ""));
    let listen = evener.port("s");
    let client = flows::client(listen);
    assert_eq!(flows::ask(&client, "x"), "one x");
    move_to(&evener, &config("udp", 0, &at(two.port), ""));
    assert_eq!(flows::ask(&client, "x"), "two x");
}

#[test]
fn queries_of_both_transports_go_to_the_new_address() {
    let (one, two) = (Nameserver::of(1), Nameserver::of(2));
    let evener = Evener::run(&config("dns", 0, &one.name(), ""));
    let listen = evener.port("s");
    let query = query(7, "www.example", A);
    let (socket, stream) = (dns::client(listen), crate::harness::connect(listen));
    let hosts = || {
        let by_udp = host(&dns::ask_on(&socket, &query));
        (by_udp, host(&dns::ask_stream(&stream, &query)))
    };
    assert_eq!(hosts(), (1, 1));
    move_to(&evener, &config("dns", 0, &two.name(), ""));
    assert_eq!(hosts(), (2, 2));
}

#[test]
fn a_server_moves_between_a_socket_and_addresses_of_both_families() {
    let (four, port) = (Server::named("four"), reserved_port());
    let six = std::net::TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || six.incoming().flatten().for_each(|mut s| drop(s.write_all(b"six ::1\n"))));
    let evener = Evener::run(&config("tcp", 0, &at(four.port), ""));
    let listen = evener.port("s");
    let path = evener.file("unix.sock");
    let unix = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || unix.incoming().flatten().for_each(|mut s| drop(s.write_all(b"unix -\n"))));
    assert_eq!(who(listen), "four");
    let path = path.display().to_string();
    for (address, name) in [(path.clone(), "unix"), (format!("[::1]:{port}"), "six"), (path, "unix")] {
        let printed = move_to(&evener, &config("tcp", 0, &address, ""));
        assert!(printed.contains(&format!(" -> {address}")), "{printed}");
        assert_eq!(line(&mut crate::harness::connect(listen)).split(' ').next(), Some(name));
    }
}
