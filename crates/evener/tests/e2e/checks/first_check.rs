//! The first check of a server alone decides the verdict. Before its first check, a server is used only when no
//! checked server is usable.

use crate::harness::{Directory, Evener, Server, reserved_port, wait_until, who};
use crate::udp::flows::{self, Echo};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn verdict(evener: &Evener, name: &str) -> String {
    evener.server(name)["verdict"].as_str().unwrap().to_owned()
}

fn await_verdict(evener: &Evener, name: &str, expected: &str) {
    wait_until(&format!("{name} to be {expected}"), || (verdict(evener, name) == expected).then_some(()));
}

/// A server that accepts connections, and responds to no request.
fn silent() -> Server {
    Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        std::thread::sleep(Duration::from_secs(60));
    })
}

/// A server that responds to checks with 200, and sends its name to clients that send nothing.
fn healthy(name: &'static str) -> Server {
    Server::start(move |mut stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        let mut request = [0; 1024];
        let _ = match stream.read(&mut request) {
            Ok(1..) => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            _ => stream.write_all(format!("{name} 127.0.0.1\n").as_bytes()),
        };
    })
}

#[test]
fn an_unreachable_server_is_down_after_one_check() {
    for check in ["check.tcp", "check.http", "check.udp"] {
        let send = if check == "check.udp" { "send = \"x\", " } else { "" };
        let protocol = if check == "check.udp" { "udp" } else { "tcp" };
        let unused = reserved_port();
        let evener = Evener::run(&format!(
            "service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:0\", \"127.0.0.1:{unused}\", \
             check = {check} {{ {send}every = \"1h\" }} }}"
        ));
        await_verdict(&evener, &format!("127.0.0.1:{unused}"), "down");
        assert_eq!(evener.log_count("probe_failed"), 1, "{check}");
        evener.expect_log("pool_down");
    }
}

#[test]
fn an_unchecked_pool_serves_clients_and_is_reported() {
    // A check of this server takes a minute.
    let server = silent();
    let (name, other) = (format!("127.0.0.1:{}", server.port), Server::named("other"));
    let config = |more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {more} policy = \"first\",\n\
             check = check.http {{ every = \"1h\", timeout = \"60s\", port = {} }} }}",
            server.port
        )
    };
    let evener = Evener::run(&config(&format!("\"127.0.0.1:{}\", \"{name}\",", other.port)));
    let listen = evener.port("s");
    assert_eq!(who(listen), "other", "a client must be served by the policy before the first check");
    assert_eq!(verdict(&evener, &name), "unchecked");
    let status = String::from_utf8(evener.run_command(&["status"]).stdout).unwrap();
    assert!(status.contains(" unchecked "), "{status}");
    let explained = String::from_utf8(evener.run_command(&["explain", "s", "192.0.2.1"]).stdout).unwrap();
    assert!(
        explained.contains("chosen: not checked yet, but no checked server can take the client"),
        "{explained}"
    );
    assert_eq!(evener.log_count("server_up") + evener.log_count("pool_down"), 0);
}

#[test]
fn a_server_that_a_reload_adds_gets_no_clients_before_its_first_check() {
    let (checked, added) = (healthy("checked"), silent());
    let config = |more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", {more}\n\
             check = check.http {{ every = \"1h\", timeout = \"60s\" }} }}",
            checked.port
        )
    };
    let evener = Evener::run(&config(""));
    let listen = evener.port("s");
    await_verdict(&evener, &format!("127.0.0.1:{}", checked.port), "up");
    evener.reload(&config(&format!("\"127.0.0.1:{}\",", added.port)));
    assert_eq!(verdict(&evener, &format!("127.0.0.1:{}", added.port)), "unchecked");
    assert_eq!([who(listen), who(listen), who(listen)], ["checked"; 3]);
}

#[test]
fn flows_and_queries_are_served_before_the_first_check() {
    let server = Echo::start("a");
    let stalled = silent();
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }},\n\
         check = check.http {{ every = \"1h\", timeout = \"60s\", port = {} }} }}",
        server.port, stalled.port
    ));
    let listen = evener.port("s");
    let client = flows::client(listen);
    assert_eq!([flows::ask(&client, "x"), flows::ask(&client, "y")], ["a x", "a y"]);
    assert_eq!(
        (verdict(&evener, "a").as_str(), evener.service_counter("s", "flows_moved")),
        ("unchecked", 0)
    );
    let dns = crate::harness::dns::Nameserver::of(3);
    let more = format!("check = check.http {{ every = \"1h\", timeout = \"60s\", port = {} }}", stalled.port);
    let evener = Evener::run(&crate::harness::dns::service(0, &[&dns], &more));
    let listen = evener.port("d");
    let query = crate::harness::dns::query(7, "www.example", crate::harness::dns::A);
    assert_eq!(crate::harness::dns::host(&crate::harness::dns::ask(listen, &query)), 3);
    assert_eq!(verdict(&evener, &dns.name()), "unchecked");
}

#[test]
fn a_unix_server_without_a_socket_is_down_after_one_check() {
    let directory = Directory::new();
    let missing = directory.file("missing.sock").display().to_string();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"{missing}\", name = \"a\" }}, check = check.tcp {{ every = \"1h\" }} }}"
    ));
    await_verdict(&evener, "a", "down");
    assert_eq!(evener.server("a")["reason"], "connect: the socket does not exist");
}

/// The check begins while the server is unhealthy. Its result must not apply after the maintenance.
#[test]
fn the_result_of_a_check_that_began_before_maintenance_is_discarded() {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let server_is_healthy = Arc::clone(&is_healthy);
    let server = Server::start(move |mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        if !server_is_healthy.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(60));
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let name = format!("127.0.0.1:{}", server.port);
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"{name}\", \
         check = check.http {{ every = \"100ms\", timeout = \"50s\" }} }}"
    ));
    assert_eq!(verdict(&evener, &name), "unchecked");
    assert!(evener.run_command(&["maintenance", &name]).status.success());
    is_healthy.store(true, Ordering::Relaxed);
    assert!(evener.run_command(&["ready", &name]).status.success());
    await_verdict(&evener, &name, "up");
}
