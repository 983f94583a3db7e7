//! `evener explain`: each test compares the explanation for a client with the result when the client connects.

use crate::harness::origin::{Origin, Wire, get};
use crate::harness::{Evener, Server, connect, line, who};
use serde_json::Value;

fn explain(evener: &Evener, client: &str, more: &[&str]) -> String {
    let output = evener.run_command(&[&["explain", "s", client], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Long notes are wrapped.
    String::from_utf8(output.stdout).unwrap().replace("\n  ", " ")
}

fn json(evener: &Evener, client: &str) -> Value {
    serde_json::from_str(&explain(evener, client, &["--json"])).unwrap()
}

/// A TCP service with one server, and another pool.
fn run(more: &str) -> (Evener, u16, [Server; 2]) {
    let servers = [Server::named("a"), Server::named("jail")];
    let evener = Evener::run(&format!(
        "pool \"jail\" {{ {{ \"127.0.0.1:{}\", name = \"inmate\" }} }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, {more} }}",
        servers[1].port, servers[0].port
    ));
    let listen = evener.port("s");
    (evener, listen, servers)
}

#[test]
fn the_explanation_of_a_denied_client_names_the_refusal_and_no_server() {
    for (denied, refusal, result) in [
        ("\"drop\"", "drop", "the connection is closed without a response"),
        ("\"reject\"", "reject", "the connection is reset"),
        ("{ tarpit = \"100ms\" }", "tarpit", "the connection is held for 100ms, then closed"),
    ] {
        let (evener, listen, _servers) = run(&format!("deny = \"127.0.0.0/8\", denied = {denied}"));
        assert_eq!(who(listen), "");
        let explained = explain(&evener, "127.0.0.1", &[]);
        let expected = format!("the access list of the service refuses this client: {result}\n");
        assert!(explained.contains(&expected) && !explained.contains("chosen"), "{explained}");
        let explained = json(&evener, "127.0.0.1");
        assert_eq!(
            (&explained["permitted"], &explained["refusal"]),
            (&Value::Bool(false), &Value::from(refusal))
        );
        assert_eq!((&explained["pool"], explained["servers"].as_array().unwrap().len()), (&Value::Null, 0));
        assert!(explain(&evener, "192.0.2.1", &[]).contains("chosen by the policy"));
        assert_eq!(json(&evener, "192.0.2.1")["permitted"], true);
    }
}

#[test]
fn the_explanation_of_a_denied_client_names_the_denied_pool() {
    let (evener, listen, _servers) = run("deny = \"127.0.0.0/8\", denied = \"jail\"");
    assert_eq!(who(listen), "jail");
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(explained.contains("the client gets a server of pool jail\n"), "{explained}");
    assert!(explained.contains("inmate  1     chosen by the policy"), "{explained}");
    let explained = json(&evener, "127.0.0.1");
    assert_eq!((&explained["refusal"], &explained["pool"]), (&Value::from("pool"), &Value::from("jail")));
}

#[test]
fn the_explanation_of_a_client_at_a_limit_names_the_limit() {
    let (evener, listen, _servers) = run("per_client = { connections = 1, exceeded = \"drop\" }");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a 127.0.0.1");
    let explained = explain(&evener, "127.0.0.1", &[]);
    let expected = "has 1 of at most 1 connections (`per_client.connections`): the connection is closed without a response";
    assert!(explained.contains(expected) && !explained.contains("chosen"), "{explained}");
    assert_eq!(json(&evener, "127.0.0.1")["limit"], "connections");
    assert_eq!(who(listen), "");
    assert!(
        explain(&evener, "127.0.0.2", &[]).contains("chosen by the policy"),
        "each client must have a separate limit"
    );

    let (evener, listen, _servers) = run("per_client = { connection_rate = \"2/h\", exceeded = \"jail\" }");
    (0..5).for_each(|_| drop(explain(&evener, "127.0.0.1", &[])));
    assert_eq!(
        [who(listen), who(listen), who(listen)],
        ["a", "a", "jail"],
        "an explanation must not count for the rate"
    );
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(
        explained.contains("`per_client.connection_rate = \"2/h\"`: the client gets a server of pool jail"),
        "{explained}"
    );
    assert!(explained.contains("inmate  1     chosen by the policy"), "{explained}");
}

#[test]
fn the_request_rate_and_the_address_from_a_proxy_are_explained() {
    let origin = Origin::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", deny = \"192.0.2.7\", \
         denied = \"reject\", per_client = {{ request_rate = \"2/h\" }}, forwarded = {{ trust = \"127.0.0.1\" }} }}",
        origin.port
    ));
    let listen = evener.port("s");
    assert_eq!(
        [get(listen, "/"), get(listen, "/"), get(listen, "/")].map(|response| response.status()),
        [200, 200, 429]
    );
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(
        explained.contains("`per_client.request_rate = \"2/h\"`: requests get status 429"),
        "{explained}"
    );
    assert_eq!(json(&evener, "127.0.0.1")["limit"], "request_rate");
    let refused = Wire::to(listen).ask("GET", "/", "X-Forwarded-For: 192.0.2.7\r\n").unwrap();
    assert_eq!(refused.status(), 403);
    assert!(explain(&evener, "192.0.2.7", &[]).contains("refuses this client: requests get status 403"));
}

#[test]
fn routes_are_explained_for_a_host_and_a_path() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let evener = Evener::run(&format!(
        "pool \"b\" {{ \"127.0.0.1:{}\" }}\n\
         service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", \
         routes = {{ {{ host = \"b.test\", path = \"/x\", pool = \"b\" }} }} }}",
        b.port, a.port
    ));
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(explained.contains("give --host and --path") && explained.contains("pool s,"), "{explained}");
    let explained = explain(&evener, "127.0.0.1", &["--host", "b.test", "--path", "/x/y"]);
    assert!(explained.contains("a route selects this pool") && explained.contains("pool b,"), "{explained}");
    let explained = explain(&evener, "127.0.0.1", &["--host", "b.test", "--path", "/"]);
    assert!(explained.contains("pool s,"), "{explained}");
}

#[test]
fn a_full_service_and_a_limit_without_effect_on_datagrams_are_explained() {
    let (evener, listen, _servers) = run("connections_max = 1");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a 127.0.0.1");
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(explained.contains("the service is full: 1 of 1 connections (`connections_max`)"), "{explained}");

    let server = crate::harness::dns::Nameserver::of(3);
    let more = "per_client = { connections = 1 }";
    let service = crate::harness::dns::service(0, &[&server], more).replace("service \"d\"", "service \"s\"");
    let evener = Evener::run(&service);
    let listen = evener.port("s");
    let query = crate::harness::dns::query(7, "www.example", crate::harness::dns::A);
    let stream = connect(listen);
    let _ = crate::harness::dns::ask_stream(&stream, &query);
    let explained = explain(&evener, "127.0.0.1", &[]);
    assert!(
        explained.contains("its next connection is refused, its queries over UDP are not"),
        "{explained}"
    );
    assert!(explained.contains("chosen by the policy"), "{explained}");
}
