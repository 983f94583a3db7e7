//! The delay of a client by unreachable servers: any number of servers that refuse are skipped, but the client
//! waits only for a few silent servers, each for a limited time.

use crate::harness::origin::{Origin, get};
use crate::harness::{Evener, Server, connect, counter, line, reserved_port, wait_until, who};
use crate::tcp::pending::Silent;
use std::io::Read;

fn service(protocol: &str, listen: u16, servers: &[String], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("'{server}'")).collect();
    format!(
        "service 's' {{ listen = '127.0.0.1:{listen}', protocol = '{protocol}', connect_timeout = '200ms', {}, {more} }}",
        servers.join(", ")
    )
}

fn silent(count: usize) -> (Vec<Silent>, Vec<String>) {
    let silent: Vec<Silent> = (0..count).map(|_| Silent::new()).collect();
    let addresses = silent.iter().map(|one| format!("127.0.0.1:{}", one.port())).collect();
    (silent, addresses)
}

/// Addresses of servers that refuse connections.
fn refusing(count: usize) -> Vec<String> {
    let port = reserved_port();
    (0..count).map(|at| format!("127.9.{}.{}:{port}", at / 250, at % 250 + 1)).collect()
}

/// The sum of a counter over all servers of the pool.
fn counter_sum(evener: &Evener, name: &str) -> u64 {
    let status = evener.status();
    let servers = status["pools"][0]["servers"].as_array().unwrap();
    servers.iter().map(|server| counter(&server["counters"], name)).sum()
}

/// Connects a client, and checks that no server serves it.
fn expect_no_server(protocol: &str, listen: u16) {
    if protocol == "http" {
        assert_eq!(get(listen, "/").status(), 502);
    } else {
        // The connection is closed without a byte, or reset.
        assert_eq!(connect(listen).read(&mut [0]).unwrap_or_default(), 0);
    }
}

/// Waits until the workers know that this many servers are down.
fn await_down(evener: &Evener, count: usize) {
    wait_until("servers that are down", || (evener.log_count("server_down") >= count).then_some(()));
    // The new state is published between two status responses, so the workers have the new state after the
    // second response.
    let _ = (evener.status(), evener.status());
}

#[test]
fn a_client_waits_for_at_most_attempts_max_silent_servers() {
    let (_silent, servers) = silent(5);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 0 }";
        let evener = Evener::run(&service(protocol, 0, &servers, more));
        let listen = evener.port("s");
        expect_no_server(protocol, listen);
        assert_eq!(counter_sum(&evener, "connect_failures.timeout"), 3, "{protocol}");
        evener.reload(&service(protocol, 0, &servers, "passive = { failures = 0 }, attempts_max = 1"));
        expect_no_server(protocol, listen);
        assert_eq!(counter_sum(&evener, "connect_failures.timeout"), 4, "{protocol}");
    }
}

#[test]
fn connect_time_max_bounds_the_time_of_all_attempts() {
    let (_silent, servers) = silent(5);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 0 }, attempts_max = 100, connect_time_max = '250ms'";
        let evener = Evener::run(&service(protocol, 0, &servers, more));
        let listen = evener.port("s");
        expect_no_server(protocol, listen);
        // The second attempt has only the remaining time.
        let timeouts = counter_sum(&evener, "connect_failures.timeout");
        assert!((1..=2).contains(&timeouts), "{protocol}: {timeouts}");
        // The first attempt always has the whole connect timeout.
        let more = "passive = { failures = 0 }, connect_time_max = '200ms'";
        evener.reload(&service(protocol, 0, &servers, more));
        expect_no_server(protocol, listen);
        assert_eq!(counter_sum(&evener, "connect_failures.timeout"), timeouts + 1, "{protocol}");
    }
}

#[test]
fn when_all_servers_are_down_a_client_waits_for_one_silent_server() {
    let (_silent, servers) = silent(4);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 1, down_for = '10m' }";
        let evener = Evener::run_with(&service(protocol, 0, &servers, more), &["--workers", "1"]);
        let listen = evener.port("s");
        expect_no_server(protocol, listen);
        await_down(&evener, 3);
        expect_no_server(protocol, listen);
        await_down(&evener, 4);
        // The first client waited for three servers. The second client waited for the last server that was up,
        // and for one server as a last resort.
        assert_eq!(counter_sum(&evener, "connect_failures.timeout"), 5, "{protocol}");
        expect_no_server(protocol, listen);
        assert_eq!(counter_sum(&evener, "connect_failures.timeout"), 6, "{protocol}");
    }
}

#[test]
fn hundreds_of_refusing_servers_are_skipped_without_an_error_for_the_client() {
    let (b, origin, servers) = (Server::named("b"), Origin::named("b"), refusing(600));
    for (protocol, port) in [("tcp", b.port), ("http", origin.port)] {
        let mut servers = servers.clone();
        servers.push(format!("127.0.0.1:{port}"));
        for policy in ["first", "least_conn", "hash", "weighted", "p2c"] {
            let more = format!("passive = {{ failures = 0 }}, policy = '{policy}'");
            let evener = Evener::run(&service(protocol, 0, &servers, &more));
            let listen = evener.port("s");
            if protocol == "tcp" {
                assert_eq!(who(listen), "b", "{policy}");
            } else {
                assert_eq!(get(listen, "/").text(), "b", "{policy}");
            }
            if policy == "first" {
                assert_eq!(counter_sum(&evener, "connect_failures.refused"), 600, "{protocol}");
            }
            assert_eq!(evener.service_counter("s", "no_server"), 0, "{protocol} {policy}");
        }
    }
}

#[test]
fn a_restarted_server_is_found_among_refusing_servers_that_are_down() {
    let mut servers = refusing(9);
    let b = reserved_port();
    servers.push(format!("127.0.0.1:{b}"));
    let evener = Evener::run(&service("tcp", 0, &servers, "passive = { failures = 1, down_for = '10m' }"));
    let listen = evener.port("s");
    expect_no_server("tcp", listen);
    assert_eq!(counter_sum(&evener, "connect_failures.refused"), 10);
    await_down(&evener, 10);
    let _b = Server::named_at("b", b);
    assert_eq!(line(&mut connect(listen)), "b 127.0.0.1");
}
