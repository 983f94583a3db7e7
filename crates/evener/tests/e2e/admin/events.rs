//! `evener events`: recent events, the events that follow, and readers that are too slow.

use crate::harness::{BINARY, DEADLINE, Evener, Server, counter, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// `evener events --follow`, whose lines arrive on a channel.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn new(evener: &Evener, options: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["events", "--follow", "--socket"])
            .arg(evener.admin_socket())
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Waits for a line that contains `text`, and returns it.
    #[track_caller]
    fn expect(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|_| panic!("expected an event with `{text}`"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text_of(evener: &Evener, arguments: &[&str]) -> String {
    let output = evener.run_command(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_server_that_stops_is_among_the_recent_events_and_a_follower_sees_it_when_it_occurs() {
    let mut server = Server::named("a");
    let name = format!("127.0.0.1:{}", server.port);
    let evener = Evener::run(&format!(
        "service 's' {{ listen = '127.0.0.1:0', '{name}', check = check.tcp {{ every = '50ms', fall = 2, rise = 2 }} }}"
    ));
    evener.expect_log("server_checked");
    let follower = Follower::new(&evener, &[]);
    follower.expect(" info  started version=");
    let json = Follower::new(&evener, &["--json", "--level", "warn"]);
    let debug = Follower::new(&evener, &["--level", "debug"]);
    debug.expect(" info  admin_listening ");
    server.stop();
    let down = format!(" warn  server_down pool=s server={name} reason=\"connect: refused\"");
    follower.expect(&down);
    debug.expect(" debug probe_failed ");
    let line: Value = serde_json::from_str(&json.expect("server_down")).unwrap();
    assert_eq!((&line["level"], &line["fields"]["server"]), (&"warn".into(), &name.as_str().into()));
    assert!(text_of(&evener, &["events"]).contains(&down));
    follower.expect(" error pool_down pool=s");

    // Debug events are not among the recent events. The numbers select what is new.
    let recent: Value =
        serde_json::from_str(&text_of(&evener, &["events", "--json", "--level", "debug"])).unwrap();
    let recent = recent["events"].as_array().unwrap();
    assert!(recent.iter().all(|event| event["level"] != "debug"), "{recent:?}");
    let last = recent.last().unwrap()["number"].to_string();
    assert_eq!(text_of(&evener, &["events", "--after", &last]), "");
    assert!(!text_of(&evener, &["events", "--level", "error"]).contains("server_down"));

    let status = evener.status();
    assert_eq!(counter(&status["counters"], "events.server_down"), 1);
    assert_eq!(
        status["declarations"]["instance"]["events"]["values"]["server_down"],
        "A server is no longer used."
    );
    let checks = |result: &str| counter(&evener.server(&name)["counters"], &format!("checks.{result}"));
    assert!(checks("passed") >= 1 && checks("failed") >= 2);
}

#[test]
fn a_follower_ends_with_its_instance_and_a_wrong_level_is_refused() {
    let mut evener = Evener::run("service 's' { listen = '127.0.0.1:0', '127.0.0.1:1' }");
    let mut follower = Follower::new(&evener, &[]);
    follower.expect("started");
    let mut stream = UnixStream::connect(evener.admin_socket()).unwrap();
    stream
        .write_all(b"GET /v1/events?level=loud HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 422 "), "{response}");
    assert!(response.contains("`level` must be debug, info, warn or error, got loud"), "{response}");
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    let status = wait_until("the follower to end", || follower.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
}

/// Emits `count` events: changes of the state of a server.
fn emit(evener: &Evener, server: &str, count: usize) {
    let mut stream = UnixStream::connect(evener.admin_socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut response = [0; 65536];
    for at in 0..count {
        let body = format!("{{\"server\": \"{server}\", \"state\": \"{}\"}}", ["drain", "ready"][at % 2]);
        let length = body.len();
        write!(
            stream,
            "POST /v1/servers/state HTTP/1.1\r\nHost: evener\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let read = stream.read(&mut response).unwrap();
        assert!(
            response[..read].starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&response[..read])
        );
    }
}

#[test]
fn a_follower_that_does_not_read_loses_events_and_receives_their_number() {
    const EVENTS: usize = 6000;
    let evener = Evener::run("service 's' { listen = '127.0.0.1:0', '127.0.0.1:1', '127.0.0.1:2' }");
    let mut stream = UnixStream::connect(evener.admin_socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = b"GET /v1/events?follow=true&level=info HTTP/1.1\r\nHost: evener\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("the stream goes on"));
    lines.find(|line| line.contains("\"started\"")).unwrap();
    emit(&evener, "127.0.0.1:1", EVENTS);

    // The events that were buffered arrive, then the number of lost events, then new events.
    let mut received = 0;
    let lost = loop {
        let line = lines.next().unwrap();
        received += usize::from(line.contains("\"server_state\"") || line.contains("\"api_change\""));
        if line.contains("{\"lost\":") {
            let line: Value = serde_json::from_str(&line).unwrap();
            break line["lost"].as_u64().unwrap() as usize;
        }
    };
    assert!(lost > 0, "a slow reader must lose events");
    // A change of the state is an event, and the request for it another one.
    assert_eq!(received + lost, 2 * EVENTS, "every event must be received or counted as lost");
    emit(&evener, "127.0.0.1:1", 1);
    lines.find(|line| line.contains("\"server_state\"")).unwrap();
    let recent: Value = serde_json::from_str(&text_of(&evener, &["events", "--json"])).unwrap();
    assert_eq!(recent["events"].as_array().unwrap().len(), 1000, "the ring must be bounded");
    let dropped = recent["dropped"].as_u64().unwrap();
    assert!(dropped > EVENTS as u64 - 1000, "{dropped} events must be reported as dropped");
    let first_line = format!("{dropped} older events are no longer kept\n");
    assert!(text_of(&evener, &["events"]).starts_with(&first_line));
}
