//! What servers that cannot be reached may cost a client: those that refuse are passed over as long as there are others,
//! those that are silent only a few, for a time.

use crate::harness::origin::{Origin, get};
use crate::harness::{Evener, Server, connect, line, reserved_port, wait_until, who};
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
    let addresses = silent.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
    (silent, addresses)
}

/// Servers that refuse: nobody listens at that port of these addresses.
fn refusing(count: usize) -> Vec<String> {
    let port = reserved_port();
    (0..count).map(|at| format!("127.9.{}.{}:{port}", at / 250, at % 250 + 1)).collect()
}

/// The counters of all servers of the pool, added up.
fn counted(evener: &Evener, name: &str) -> u64 {
    let status = evener.status();
    let servers = status["pools"][0]["servers"].as_array().unwrap();
    servers.iter().map(|server| server["counters"][name].as_u64().unwrap()).sum()
}

/// Has one client come that nobody serves.
fn in_vain(protocol: &str, listen: u16) {
    if protocol == "http" {
        assert_eq!(get(listen, "/").status(), 502);
    } else {
        // Closed without a byte, or reset.
        assert_eq!(connect(listen).read(&mut [0]).unwrap_or_default(), 0);
    }
}

/// Waits until the workers know so many servers as dead.
fn await_down(evener: &Evener, count: usize) {
    wait_until("servers that are down", || (evener.log_count("server_down") >= count).then_some(()));
    // The state is published after what came with it is answered: between two answers.
    let _ = (evener.status(), evener.status());
}

#[test]
fn a_client_waits_for_three_silent_servers_and_no_more() {
    let (_silent, servers) = silent(5);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 0 }";
        let evener = Evener::run(&service(protocol, 0, &servers, more));
        let listen = evener.port("s");
        in_vain(protocol, listen);
        assert_eq!(counted(&evener, "connect_timeouts"), 3, "{protocol}");
        evener.reload(&service(protocol, 0, &servers, "passive = { failures = 0 }, attempts_max = 1"));
        in_vain(protocol, listen);
        assert_eq!(counted(&evener, "connect_timeouts"), 4, "{protocol}");
    }
}

#[test]
fn the_whole_time_is_bounded_too() {
    let (_silent, servers) = silent(5);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 0 }, attempts_max = 100, connect_time_max = '250ms'";
        let evener = Evener::run(&service(protocol, 0, &servers, more));
        let listen = evener.port("s");
        in_vain(protocol, listen);
        // The second one has what is left.
        let timeouts = counted(&evener, "connect_timeouts");
        assert!((1..=2).contains(&timeouts), "{protocol}: {timeouts}");
        // One connect has its time, whatever the whole is.
        let more = "passive = { failures = 0 }, connect_time_max = '1ms'";
        evener.reload(&service(protocol, 0, &servers, more));
        in_vain(protocol, listen);
        assert_eq!(counted(&evener, "connect_timeouts"), timeouts + 1, "{protocol}");
    }
}

#[test]
fn where_all_servers_are_known_to_be_silent_a_client_waits_for_one() {
    let (_silent, servers) = silent(4);
    for protocol in ["tcp", "http"] {
        let more = "passive = { failures = 1, down_for = '10m' }";
        let evener = Evener::run_with(&service(protocol, 0, &servers, more), &["--workers", "1"]);
        let listen = evener.port("s");
        in_vain(protocol, listen);
        await_down(&evener, 3);
        in_vain(protocol, listen);
        await_down(&evener, 4);
        // Three, then the last one that was not known yet and one as a last resort.
        assert_eq!(counted(&evener, "connect_timeouts"), 5, "{protocol}");
        in_vain(protocol, listen);
        assert_eq!(counted(&evener, "connect_timeouts"), 6, "{protocol}");
    }
}

#[test]
fn hundreds_of_servers_that_refuse_are_never_seen_by_a_client() {
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
                assert_eq!(counted(&evener, "connect_refused"), 600, "{protocol}");
            }
            assert_eq!(evener.service_counter("s", "no_server"), 0, "{protocol} {policy}");
        }
    }
}

#[test]
fn a_server_that_returned_is_found_among_dead_ones_that_refuse() {
    let mut servers = refusing(9);
    let b = reserved_port();
    servers.push(format!("127.0.0.1:{b}"));
    let evener = Evener::run(&service("tcp", 0, &servers, "passive = { failures = 1, down_for = '10m' }"));
    let listen = evener.port("s");
    in_vain("tcp", listen);
    assert_eq!(counted(&evener, "connect_refused"), 10);
    await_down(&evener, 10);
    let _b = Server::named_at("b", b);
    assert_eq!(line(&mut connect(listen)), "b 127.0.0.1");
}
