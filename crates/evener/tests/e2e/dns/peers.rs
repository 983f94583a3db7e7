//! DNS with other programs as servers: nsd with a thousand names, and dnsdist.

use crate::harness::peers::Peer;
use crate::harness::{DEADLINE, Directory, Evener, connect, have, local, reserved_port, wait_until};
use crate::udp::flows::Nsd;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

const NAMES: usize = 1000;

fn have_all() -> bool {
    ["nsd", "dig", "dnsperf", "dnsdist"].iter().all(|program| have(program))
}

/// The configuration of a DNS service with servers on these ports.
fn service(listen: u16, ports: &[u16], more: &str) -> String {
    let servers: String = ports.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
    format!("service \"dns\" {{ protocol = \"dns\", listen = \"127.0.0.1:{listen}\", {servers} {more} }}")
}

/// Runs dig with a source address and returns its output.
fn dig_from(from: &str, port: u16, arguments: &[&str]) -> String {
    let output = Command::new("dig")
        .args(["-b", from, "@127.0.0.1", "-p", &port.to_string(), "+time=3", "+tries=2"])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn dig(port: u16, arguments: &[&str]) -> String {
    dig_from("127.0.0.1", port, arguments)
}

/// Returns the records in the output of dig.
fn records(printed: &str) -> impl Iterator<Item = &str> {
    printed.lines().filter(|line| !line.is_empty() && !line.starts_with(';'))
}

/// Starts a name server and waits until it responds.
fn name_server(directory: &Directory, port: u16) -> Nsd {
    let server = Nsd::start_in(directory, port);
    wait_until("nsd to respond", || {
        (dig(port, &["n7.example", "A", "+short"]).trim() == "192.0.2.7").then_some(())
    });
    server
}

/// Runs dnsperf with queries for all names and returns its output.
fn dnsperf(directory: &Directory, port: u16, options: &[&str]) -> String {
    let queries: String = (0..NAMES).map(|n| format!("n{n}.example A\n")).collect();
    let file = directory.write("queries", &queries);
    let output = Command::new("dnsperf")
        .args(["-T1", "-s", "127.0.0.1", "-p", &port.to_string(), "-d"])
        .arg(file)
        .args(options)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A query for the address of a name.
fn query(id: u16, name: usize) -> Vec<u8> {
    let label = format!("n{name}");
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8]);
    message.extend_from_slice(label.as_bytes());
    message.extend_from_slice(b"\x07example\0\0\x01\0\x01");
    message
}

/// Panics unless the response has the ID, the question section and the address of the name.
fn check_response(response: &[u8], id: u16, name: usize) {
    let query = query(id, name);
    assert_eq!(response[..2], query[..2], "n{name}: ID");
    assert_eq!(response[3] & 15, 0, "n{name}: response code");
    assert_eq!(response[12..query.len()], query[12..], "n{name}: question section");
    // The first record of the answer section: its owner (a pointer), type, class, TTL and length are 12 bytes.
    let address = &response[query.len() + 12..][..4];
    assert_eq!(address, [192, 0, 2, (name % 250) as u8], "n{name}: address");
}

fn check_over_udp(port: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // Chunks are so large that responses can arrive in any order, and small enough for the socket's buffer.
    let id = |name: usize| (name * 61 + 7) as u16;
    for names in (0..NAMES).collect::<Vec<_>>().chunks(50) {
        names.iter().for_each(|name| assert!(socket.send(&query(id(*name), *name)).is_ok()));
        let mut missing = names.to_vec();
        while !missing.is_empty() {
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
            let received = u16::from_be_bytes([buffer[0], buffer[1]]);
            let at = missing.iter().position(|name| id(*name) == received).expect("the ID of a query");
            check_response(&buffer[..length], received, missing.swap_remove(at));
        }
    }
}

fn check_over_tcp(port: u16) {
    let mut stream = connect(port);
    let mut sent = Vec::new();
    for name in 0..NAMES {
        let query = query(name as u16, name);
        sent.extend_from_slice(&(query.len() as u16).to_be_bytes());
        sent.extend_from_slice(&query);
    }
    // All queries are sent before the first response is read.
    stream.write_all(&sent).unwrap();
    let mut missing = vec![true; NAMES];
    for _ in 0..NAMES {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut response).unwrap();
        let name = usize::from(u16::from_be_bytes([response[0], response[1]]));
        assert!(std::mem::take(&mut missing[name]), "expected one response for n{name}");
        check_response(&response, name as u16, name);
    }
}

#[test]
fn queries_for_a_thousand_names_get_the_right_responses() {
    if !have_all() {
        return;
    }
    let (directory, ports) = (Directory::new(), [reserved_port(), reserved_port()]);
    let _servers = ports.map(|port| name_server(&directory, port));
    let evener = Evener::run(&service(0, &ports, ""));
    let listen = evener.port("dns");
    check_over_udp(listen);
    check_over_tcp(listen);
    for mode in ["udp", "tcp"] {
        let printed = dnsperf(&directory, listen, &["-m", mode, "-c16", "-q50", "-t5", "-n5"]);
        assert!(printed.contains("Queries completed:    5000 (100.00%)"), "{mode}: {printed}");
        assert!(printed.contains("NOERROR 5000 (100.00%)"), "{mode}: {printed}");
    }
    let counters = ["requests_failed", "requests_retried", "formerr", "drops.no_query", "drops.send_full"];
    assert_eq!(counters.map(|name| evener.service_counter("dns", name)), [0; 5]);
    assert_eq!(evener.service_counter("dns", "requests"), 12_000);
    let servers = ports.map(|port| evener.server(&format!("127.0.0.1:{port}"))["counters"].clone());
    let of_both = |name: &str| servers.iter().map(|one| one[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((of_both("responses"), of_both("responses_bad")), (12_000, 0));
    assert!(
        servers.iter().all(|one| one["responses"].as_u64() > Some(3000)),
        "expected both servers to get queries: {servers:?}"
    );
}

#[test]
fn a_zone_transfer_is_complete() {
    if !have_all() {
        return;
    }
    let (directory, port) = (Directory::new(), reserved_port());
    let _server = name_server(&directory, port);
    let evener = Evener::run(&service(0, &[port], ""));
    let listen = evener.port("dns");
    let zone =
        |port: u16| records(&dig(port, &["example", "AXFR"])).map(str::to_owned).collect::<Vec<String>>();
    let (direct, balanced) = (zone(port), zone(listen));
    assert_eq!(direct.len(), NAMES + 5, "expected SOA, NS, ns, the names, big and SOA: {direct:?}");
    assert!(balanced == direct, "{balanced:?}");
    // Queries over TCP still get responses afterwards.
    assert_eq!(dig(listen, &["n8.example", "A", "+tcp", "+short"]).trim(), "192.0.2.8");
}

#[test]
fn truncated_responses_are_fetched_over_tcp_by_the_client() {
    if !have_all() {
        return;
    }
    let (directory, port) = (Directory::new(), reserved_port());
    let _server = name_server(&directory, port);
    let evener = Evener::run(&service(0, &[port], "dns = { cache = true }"));
    let listen = evener.port("dns");
    // The second response comes from the cache.
    for _ in 0..2 {
        for size in ["+bufsize=1232", "+noedns"] {
            let cut = dig(listen, &["big.example", "TXT", size, "+ignore"]);
            let flags = cut.lines().find(|line| line.starts_with(";; flags:")).unwrap_or_default();
            assert!(flags.contains(" tc") && records(&cut).next().is_none(), "{cut}");
            let whole = dig(listen, &["big.example", "TXT", size, "+short"]);
            assert!(whole.trim_end().ends_with(&Nsd::big()), "{whole}");
        }
    }
}

/// Starts a dnsdist that responds with the address of the client or, for names that begin with `s`, with the
/// first three bytes and the prefix length of the client subnet option.
fn reporting_server(port: u16, headers_from: &str) -> Peer {
    let config =
        format!("setACL({{\"0.0.0.0/0\"}})\nsetProxyProtocolACL({{{headers_from}}})\n{REPORT_CLIENT}");
    Peer::dnsdist(port, &config)
}

const REPORT_CLIENT: &str = "addAction(AllRule(), LuaAction(function(dq)\n\
          if dq.qname:toString():sub(1, 1) ~= \"s\" then return DNSAction.Spoof, dq.remoteaddr:toString() end\n\
          local option = dq:getEDNSOptions()[EDNSOptionCode.ECS]\n\
          if option == nil then return DNSAction.Refused, \"\" end\n\
          local value = option:getValues()[1]\n\
          return DNSAction.Spoof, string.format(\"%d.%d.%d.%d\", value:byte(5), value:byte(6), value:byte(7), value:byte(3))\n\
        end))";

#[test]
fn dnsdist_gets_the_client_address_over_udp_and_tcp() {
    if !have_all() {
        return;
    }
    let port = reserved_port();
    let _dnsdist = reporting_server(port, "\"127.0.0.1/32\"");
    let evener = Evener::run(&format!(
        "service \"dns\" {{ protocol = \"dns\", listen = \"127.0.0.1:0\", \"127.0.0.1:{port}\", send_proxy = \"v2\" }}"
    ));
    let listen = evener.port("dns");
    for from in ["127.0.0.7", "127.0.0.8", "127.9.9.9"] {
        for mode in ["+notcp", "+tcp"] {
            assert_eq!(dig_from(from, listen, &["a.example", "A", "+short", mode]).trim(), from, "{mode}");
        }
    }
    // Several queries on one connection.
    let file = evener.write("both", "a.example A\nb.example A\n");
    let printed =
        dig_from("127.0.0.5", listen, &["-f", &file.display().to_string(), "+tcp", "+keepopen", "+short"]);
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["127.0.0.5"; 2]);
    assert_eq!(evener.server(&format!("127.0.0.1:{port}"))["counters"]["responses_bad"], 0);
}

#[test]
fn dnsdist_gets_the_client_subnet_and_a_client_that_sent_no_subnet_gets_none() {
    if !have_all() {
        return;
    }
    let port = reserved_port();
    let _dnsdist = reporting_server(port, "");
    let evener = Evener::run(&service(0, &[port], "dns = { client_subnet = { v4 = 24, v6 = 56 } }"));
    let listen = evener.port("dns");
    for (from, network) in [("127.0.7.9", "127.0.7.24"), ("127.8.1.2", "127.8.1.24")] {
        for mode in ["+notcp", "+tcp"] {
            let query = |more: &str| dig_from(from, listen, &["s.example", "A", mode, more]);
            for more in ["+noedns", "+edns=0"] {
                let printed = query(more);
                assert!(printed.contains(&format!("\tA\t{network}\n")), "{mode} {more}: {printed}");
                assert_eq!(printed.contains("OPT PSEUDOSECTION"), more == "+edns=0", "{mode}: {printed}");
                assert!(!printed.contains("CLIENT-SUBNET"), "{mode}: {printed}");
            }
            // A subnet that the client sends is forwarded, and dnsdist reports it in the response.
            let printed = query("+subnet=10.2.3.0/22");
            assert!(printed.contains("\tA\t10.2.0.22\n"), "{mode}: {printed}");
        }
    }
}

/// Returns the latencies in the output of dnsperf, in milliseconds, sorted.
fn latencies(printed: &str) -> Vec<f64> {
    let of = |line: &str| line.starts_with("> NOERROR").then(|| line.split_whitespace().last()?.parse().ok());
    let mut all: Vec<f64> =
        printed.lines().filter_map(of).flatten().map(|seconds: f64| seconds * 1000.0).collect();
    all.sort_by(f64::total_cmp);
    all
}

#[test]
fn no_query_is_lost_when_a_server_freezes_under_load() {
    if !have_all() {
        return;
    }
    let (directory, ports) = (Directory::new(), [reserved_port(), reserved_port()]);
    let servers = ports.map(|port| name_server(&directory, port));
    let evener = Evener::run(&service(
        0,
        &ports,
        "dns = { query_timeout = \"200ms\" }, passive = { down_for = \"30s\" }",
    ));
    let listen = evener.port("dns");
    let options = ["-c8", "-q2000", "-Q1000", "-l4", "-t10", "-v"];
    let load = std::thread::scope(|scope| {
        let load = scope.spawn(|| dnsperf(&directory, listen, &options));
        wait_until("the load", || (evener.service_counter("dns", "requests") > 1000).then_some(()));
        servers[0].signal("STOP");
        let stopped = Instant::now();
        wait_until("the stopped server to be noticed", || {
            (evener.server(&format!("127.0.0.1:{}", ports[0]))["verdict"] == "down").then_some(())
        });
        println!("noticed after {:?}", stopped.elapsed());
        load.join().unwrap()
    });
    servers[0].signal("CONT");
    let report = load.lines().filter(|line| !line.starts_with('>')).collect::<Vec<_>>().join("\n");
    assert!(report.contains("(100.00%)") && report.contains("Queries lost:         0"), "{report}");
    let all = latencies(&load);
    let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize];
    println!(
        "{} responses: median {:.2} ms, p99 {:.1} ms, p99.9 {:.1} ms, longest {:.1} ms",
        all.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    assert!(all.len() > 2000, "{report}");
    assert!(evener.service_counter("dns", "requests_retried") > 0, "expected some retries");
    assert_eq!(evener.service_counter("dns", "requests_failed"), 0);
    // One timeout, and generous slack for a busy machine.
    assert!(at(1.0) < 1000.0, "expected a lower latency than {} ms", at(1.0));
    let left = evener.server(&format!("127.0.0.1:{}", ports[1]))["counters"]["responses"].as_u64();
    assert!(left > Some(2000), "{left:?}");
}
