//! The incidents of docs/operating.md: each is produced with real servers and clients in a network of its own, and the
//! commands of the page show its cause.

mod network;

use crate::harness::certificates::Authority;
use crate::harness::documented::check_output;
use crate::harness::{Evener, wait_until};
use network::Network;
use serde_json::Value;

const PAGE: &str = "operating.md";

/// Three servers with a check, and a fourth one that is used only if the others are down.
const WEB: &str = r#"
service "www" {
  listen = "198.51.100.10:80",
  protocol = "http",
  clients = 10000,
  "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80",
  check = check.http { path = "/health", every = "200ms" },
}
"#;

/// Returns a counter of a server.
fn of_server(evener: &Evener, server: &str, read: impl Fn(&Value) -> u64) -> u64 {
    read(&evener.server(server)["counters"])
}

#[test]
fn a_slow_server_is_seen_in_the_status() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1 10.0.0.2 10.0.0.3:delay=0.4");
    let evener = network.evener(WEB, &[]);
    network.clients("203.0.113.7:requests=30 203.0.113.8:requests=30");
    let half = |server: &str| evener.server(server)["recent"]["response_seconds"]["p50"].as_f64().unwrap();
    assert!(half("10.0.0.3:80") > 0.25, "half of the responses took {} s", half("10.0.0.3:80"));
    assert!(["10.0.0.1:80", "10.0.0.2:80"].into_iter().all(|server| half(server) < 0.25));
    let output = network.show(&evener, &["evener status"]);
    check_output(PAGE, "slow server", &output);
}

#[test]
fn errors_of_a_server_that_passes_its_check_are_seen_in_the_status() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1 10.0.0.2:status=500 10.0.0.3");
    let evener = network.evener(WEB, &[]);
    network.clients("203.0.113.7:requests=60");
    assert_eq!(of_server(&evener, "10.0.0.2:80", |counters| counters["responses_5xx"].as_u64().unwrap()), 20);
    let output = network.show(&evener, &["evener status"]);
    check_output(PAGE, "errors of a server", &output);
}

#[test]
fn a_server_that_refuses_connections_is_seen_in_the_status_and_the_events() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1 10.0.0.2");
    let evener = network.evener(WEB, &[]);
    wait_until("the server to be down", || (evener.server("10.0.0.3:80")["verdict"] == "down").then_some(()));
    network.clients("203.0.113.7:requests=20");
    let output = network.show(&evener, &["evener status", "evener events --level warn"]);
    check_output(PAGE, "refusing server", &output);
}

#[test]
fn exhausted_descriptors_are_seen_in_the_status_and_the_events() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1:delay=5 10.0.0.2:delay=5 10.0.0.3:delay=5");
    let (before_check, _) = WEB.split_once("  check =").unwrap();
    let evener = network.evener(&format!("{before_check}}}\n"), &["prlimit", "--nofile=120:120"]);
    let _waiting = network.clients_in_background("203.0.113.7:requests=1:connections=60");
    evener.expect_log("descriptors_used_up");
    let output = network.show(&evener, &["evener status", "evener events --level warn"]);
    check_output(PAGE, "descriptors", &output);
}

#[test]
fn an_expired_certificate_is_seen_in_the_check_and_the_status() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1");
    let issued = Authority::new("Example CA").issue_until("www.example.org", -3);
    let evener = network.evener_with(
        r#"
service "www" {
  listen = "198.51.100.10:443",
  protocol = "http",
  tls = { certificate = "www.crt", key = "www.key" },
  "10.0.0.1:80",
}
"#,
        &[],
        |directory| {
            issued.write(directory, "www");
        },
    );
    let output = network.show(&evener, &["evener check evener.lua", "evener status"]);
    check_output(PAGE, "expired certificate", &output);
}

#[test]
fn a_flooding_client_is_seen_among_the_clients() {
    let Some(network) = Network::new() else { return };
    network.servers("10.0.0.1");
    // With one server, the last server of each client is known.
    let evener = network.evener(&WEB.replace("\"10.0.0.2:80\", \"10.0.0.3:80\",", ""), &[]);
    network.clients("203.0.113.7:requests=10 203.0.113.66:requests=600");
    let output = network.show(
        &evener,
        &["evener clients --sort rate --limit 10", "evener deny www 203.0.113.66 --for 1h", "evener access"],
    );
    check_output(PAGE, "flooding client", &output);
}
