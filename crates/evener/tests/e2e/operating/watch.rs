//! `evener status` with conditions, colours and again and again; lists of servers and flows.

use crate::admin::access::{error_of, output_of};
use crate::harness::{BINARY, DEADLINE, Evener, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

/// Two pools of two servers, of which nothing is ever connected.
fn run() -> Evener {
    Evener::run(
        "pool \"web\" { { \"127.0.0.1:1\", name = \"a\" }, { \"127.0.0.1:2\", name = \"b\", weight = 3 } }
         pool \"api\" { { \"127.0.0.1:1\", name = \"a\" }, { \"127.0.0.1:2\", name = \"b\" } }
         service \"one\" { listen = \"127.0.0.1:0\", pool = \"web\" }
         service \"two\" { listen = \"127.0.0.1:0\", pool = \"api\" }",
    )
}

fn json(evener: &Evener, arguments: &[&str]) -> Value {
    serde_json::from_str(&output_of(evener, &[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn the_status_is_filtered_by_state_and_pool() {
    let evener = run();
    output_of(&evener, &["drain", "web/b"]);
    let drained = json(&evener, &["status", "--state", "drain"]);
    assert_eq!(drained["services"][0]["name"], "one");
    assert_eq!(
        (drained["services"].as_array().unwrap().len(), &drained["pools"][0]["servers"][0]["name"]),
        (1, &"b".into())
    );
    assert_eq!(drained["pools"][0]["servers"].as_array().unwrap().len(), 1);
    let text = output_of(&evener, &["status", "--state", "drain,down"]);
    assert!(text.contains("  b ") && !text.contains("pool api"), "{text}");
    assert!(output_of(&evener, &["status", "--state", "down"]).contains("no server is down\n"));
    let api = json(&evener, &["status", "--pool", "api"]);
    assert_eq!((&api["pools"][0]["name"], &api["services"][0]["name"]), (&"api".into(), &"two".into()));
    assert!(
        error_of(&evener, &["status", "--pool", "apu"])
            .contains("there is no pool `apu`; did you mean `api`?")
    );
    assert!(output_of(&evener, &["status", "one", "--state", "drain"]).contains("  b "));
}

#[test]
fn servers_are_listed_with_their_states_and_reasons() {
    let evener = run();
    output_of(&evener, &["maintenance", "web/b", "--for", "10m"]);
    let text = output_of(&evener, &["servers"]);
    let row = text.lines().find(|line| line.starts_with("web/b")).unwrap_or_else(|| panic!("{text}"));
    assert!(row.contains("127.0.0.1:2") && row.contains("maint 0s") || row.contains("maint 1s"), "{row}");
    assert!(text.contains("in maintenance: no clients, ready again in"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let listed = json(&evener, &["servers", "--state", "maintenance"]);
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["pool"], &listed[0]["weight"]),
        (1, &"web".into(), &3.into())
    );
    assert_eq!(output_of(&evener, &["servers", "--state", "down"]), "no servers\n");
}

#[test]
fn colours_are_used_on_request_only() {
    let evener = run();
    output_of(&evener, &["drain", "web/b"]);
    let has_colours = |arguments: &[&str]| output_of(&evener, arguments).contains("\x1b[33m");
    assert!(!has_colours(&["status"]));
    assert!(!has_colours(&["status", "--color", "never"]));
    assert!(has_colours(&["status", "--color", "always"]));
    assert!(has_colours(&["servers", "--color", "always"]));
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watched_status_is_appended_and_survives_a_restart_of_the_instance() {
    let directory = crate::harness::Directory::new();
    let socket = directory.file("admin.sock");
    let config = "service \"one\" { listen = \"127.0.0.1:0\", { \"127.0.0.1:1\", name = \"a\" } }";
    let first = Evener::run_at(config, &socket);
    let mut command = Command::new(BINARY);
    command.args(["status", "--json", "--watch", "0.1", "--socket"]).arg(&socket);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut pid = || {
        let line = lines.next().unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["pid"].as_u64().unwrap()
    };
    assert_eq!([pid(), pid()], [u64::from(first.pid()); 2]);
    drop(first);
    let mut errors = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(errors.next().unwrap().unwrap().contains("no instance listens"));
    let second = Evener::run_at(config, &socket);
    wait_until("the second instance", || (pid() == u64::from(second.pid())).then_some(()));
}

#[test]
fn flows_are_listed_without_connections() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let evener = Evener::run(&format!(
        "service \"u\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", {{ \"{}\", name = \"a\" }} }}
         service \"t\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:1\" }}",
        server.local_addr().unwrap()
    ));
    assert_eq!(output_of(&evener, &["flows"]), "no flows\n");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"hello", ("127.0.0.1", evener.port("u"))).unwrap();
    server.recv(&mut [0; 16]).unwrap();
    let listed = json(&evener, &["flows"]);
    assert_eq!(
        (&listed["total"], &listed["connections"][0]["service"]),
        (&1.into(), &"u".into()),
        "{listed}"
    );
    assert_eq!(listed["connections"][0]["client_port"], client.local_addr().unwrap().port());
    assert!(output_of(&evener, &["flows", "u", "--server", "u/a"]).contains("flow"));
    assert_eq!(output_of(&evener, &["flows", "--client", "192.0.2.0/24"]), "no flows\n");
    assert!(error_of(&evener, &["flows", "t"]).contains("has no flows"));
    assert!(error_of(&evener, &["flows", "v"]).contains("there is no service `v`"));
}
