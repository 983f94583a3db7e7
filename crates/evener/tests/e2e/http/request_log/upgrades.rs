//! Lines of upgraded connections that do not end in order, with their reasons.

use super::at_end::JsonLog;
use crate::harness::origin::Wire;
use crate::harness::{Evener, Server};
use serde_json::Value;
use std::io::Read;
use std::time::Duration;

/// A server that upgrades each connection. It resets the connection after a byte of the client.
fn upgrading_server() -> Server {
    Server::start(|stream| {
        let mut wire = Wire::new(stream);
        wire.header().unwrap();
        wire.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let _ = (&*wire.stream).read(&mut [0]);
        let _ = rustix::net::sockopt::set_socket_linger(&*wire.stream, Some(Duration::ZERO));
    })
}

fn config(server: &Server, log: &JsonLog, more: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\", {more} {} }}",
        server.port,
        log.key()
    )
}

fn upgraded_client(evener: &Evener) -> Wire {
    let mut client = Wire::to(evener.port("s"));
    client.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
    assert_eq!(client.response("GET").unwrap().status(), 101);
    client
}

#[test]
fn an_upgraded_connection_that_is_closed_on_purpose_is_logged_with_the_reason() {
    let (server, log) = (upgrading_server(), JsonLog::new());
    let mut evener = Evener::run(&config(&server, &log, ""));
    let client = upgraded_client(&evener);
    let listed = evener.run_command(&["connections", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let number = listed["connections"][0]["number"].to_string();
    assert!(evener.run_command(&["close", &number]).status.success());
    log.expect("GET", "/chat", 101, "operator");
    drop(client);
    let client = upgraded_client(&evener);
    let closed = evener.run_command(&["close", "--server", &format!("127.0.0.1:{}", server.port)]);
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    log.expect("GET", "/chat", 101, "server_ended");
    drop(client);
    let client = upgraded_client(&evener);
    client.send("reset").unwrap();
    let record = log.take();
    assert_eq!(record["reason"], "response_incomplete", "{record}");
    assert_eq!(record["detail"], "the server reset the connection", "{record}");
    drop(client);
    let _client = upgraded_client(&evener);
    evener.signal("TERM");
    evener.expect_log(" draining ");
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    log.expect("GET", "/chat", 101, "drain");
    let ended = evener.log();
    assert!(
        ended
            .lines()
            .any(|line| line.contains("connection_failed service=s") && line.contains("reason=drain")),
        "the last reports of the workers are logged: {ended}"
    );
}

#[test]
fn an_upgraded_connection_without_traffic_is_logged_with_the_idle_timeout() {
    let (server, log) = (upgrading_server(), JsonLog::new());
    let evener = Evener::run(&config(&server, &log, "idle_timeout = \"300ms\","));
    let _client = upgraded_client(&evener);
    log.expect("GET", "/chat", 101, "idle_timeout");
    assert_eq!(evener.service_counter("s", "reasons.idle_timeout"), 1);
}

#[test]
fn a_try_that_fails_after_another_server_got_the_request_has_no_time_of_connection() {
    let closing = Server::start(|stream| {
        let _ = Wire::new(stream).header();
    });
    let (mut dead, log) = (Server::named("dead"), JsonLog::new());
    dead.stop();
    let evener = Evener::run(&config(
        &closing,
        &log,
        &format!("\"127.0.0.1:{}\", policy = \"first\", passive = false, retries = 1,", dead.port),
    ));
    assert_eq!(Wire::to(evener.port("s")).ask("GET", "/", "").unwrap().status(), 502);
    let record = log.take();
    assert_eq!((&record["reason"], &record["retries"]), (&"connect_failed".into(), &1.into()), "{record}");
    assert_eq!(record["server"], format!("127.0.0.1:{}", dead.port), "{record}");
    assert_eq!(record["connected"], Value::Null, "{record}");
}
