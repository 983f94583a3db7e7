//! The PROXY protocol over UDP with another program as the peer: dnsdist as the server, and as the balancer in front.

use crate::harness::peers::Peer;
use crate::harness::{Evener, have, reserved_port, wait_until};
use crate::udp::flows::Nsd;
use std::process::Command;

/// Starts a dnsdist that responds with the source address in the header or, for names that begin with `d`, with
/// the destination address.
fn reporting_server(port: u16) -> Peer {
    let config = "setACL({\"0.0.0.0/0\"})\nsetProxyProtocolACL({\"127.0.0.1/32\"})\n\
        addAction(AllRule(), LuaAction(function(dq)\n\
          local name = dq.qname:toString()\n\
          if name:sub(1, 1) == \"d\" then return DNSAction.Spoof, dq.localaddr:toString() end\n\
          return DNSAction.Spoof, dq.remoteaddr:toString()\n\
        end))";
    Peer::dnsdist(port, config)
}

/// Starts a dnsdist that forwards queries with a header to the given port.
fn front_balancer(port: u16, to: u16) -> Peer {
    let config = format!(
        "setACL({{\"0.0.0.0/0\"}})\n\
         newServer({{address=\"127.0.0.1:{to}\", useProxyProtocol=true, checkName=\"n0.example.\", mustResolve=true, checkInterval=1}})"
    );
    Peer::dnsdist(port, &config)
}

/// Sends a query from the given address and returns the addresses in the response.
fn dig(from: &str, port: u16, name: &str) -> String {
    let output = Command::new("dig")
        .args(["-b", from, "@127.0.0.1", "-p", &port.to_string(), name, "A", "+short", "+time=2", "+tries=2"])
        .output()
        .unwrap();
    // Lines about timeouts are omitted.
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.lines().filter(|line| !line.starts_with(';')).collect()
}

fn have_all() -> bool {
    ["dnsdist", "nsd", "dig", "dnsperf"].iter().all(|program| have(program))
}

#[test]
fn dnsdist_gets_the_client_and_the_destination_address() {
    if !have_all() {
        return;
    }
    let port = reserved_port();
    let _dnsdist = reporting_server(port);
    let evener = Evener::run(&format!(
        "service \"dns\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", \"127.0.0.1:{port}\", send_proxy = \"v2\" }}"
    ));
    let listen = evener.port("dns");
    for from in ["127.0.0.7", "127.0.0.8", "127.9.9.9"] {
        assert_eq!(dig(from, listen, "a.example"), from);
        assert_eq!(dig(from, listen, "d.example"), "127.0.0.1");
    }
    assert_eq!(evener.server(&format!("127.0.0.1:{port}"))["verdict"], "up");
}

fn name_server_behind(listen: u16, port: u16, more: &str) -> Evener {
    Evener::run(&format!(
        "service \"dns\" {{ protocol = \"udp\", listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{port}\", {more} \
         check = check.udp {{ send = \"\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2n0\\7example\\0\\0\\1\\0\\1\", expect = \"\\1\\2\" }} }}"
    ))
}

#[test]
fn clients_behind_dnsdist_get_all_responses() {
    if !have_all() {
        return;
    }
    let (front, port) = (reserved_port(), reserved_port());
    let evener = name_server_behind(0, port, "proxy_from = \"127.0.0.1\", deny = \"127.0.0.66\",");
    let listen = evener.port("dns");
    let _nsd = Nsd::start(&evener, port);
    wait_until("nsd to be up", || evener.log().contains("server_up").then_some(()));
    // The checks of dnsdist, which send LOCAL headers, must succeed first.
    let _dnsdist = front_balancer(front, listen);
    wait_until("a response", || (dig("127.0.0.7", front, "n5.example") == "192.0.2.5").then_some(()));
    assert_eq!(dig("127.0.0.66", front, "n5.example"), "", "expected the client behind dnsdist to be denied");
    assert!(evener.service_counter("dns", "drops.denied") > 0);
    let queries: String = (0..1000).map(|n| format!("n{n}.example A\n")).collect();
    let file = evener.write("queries", &queries);
    let output = Command::new("dnsperf")
        .args(["-T1", "-c16", "-q50", "-t3", "-n3", "-s", "127.0.0.1", "-p", &front.to_string(), "-d"])
        .arg(file)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("Queries completed:    3000 (100.00%)"), "{printed}");
    assert!(printed.contains("NOERROR 3000 (100.00%)"), "{printed}");
    assert_eq!(evener.service_counter("dns", "drops.preamble"), 0);
}

#[test]
fn the_client_address_passes_from_dnsdist_through_evener_to_dnsdist() {
    if !have_all() {
        return;
    }
    let (front, back) = (reserved_port(), reserved_port());
    let _dnsdist = reporting_server(back);
    let evener = Evener::run(&format!(
        "service \"dns\" {{ protocol = \"udp\", listen = \"127.0.0.1:0\", \"127.0.0.1:{back}\", \
         proxy_from = \"127.0.0.1\", send_proxy = \"v2\" }}"
    ));
    let listen = evener.port("dns");
    let _front = front_balancer(front, listen);
    wait_until("a response", || (dig("127.0.0.7", front, "a.example") == "127.0.0.7").then_some(()));
    assert_eq!(dig("127.0.0.8", front, "a.example"), "127.0.0.8");
    assert_eq!(dig("127.0.0.8", front, "d.example"), "127.0.0.1");
}
