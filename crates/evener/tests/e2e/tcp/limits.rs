//! Limits of TCP services: connections, descriptors, idle time, and connections of servers.

use crate::harness::{BINARY, Directory, Evener, Server, connect, line, reserved_port, wait_until, who};
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

#[test]
fn clients_of_a_full_service_wait_until_a_connection_ends() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", connections_max = 3 }}",
        a.port
    ));
    let listen = evener.port("s");
    let mut active: Vec<_> = (0..3).map(|_| connect(listen)).collect();
    active.iter_mut().for_each(|client| assert_eq!(line(client), "a 127.0.0.1"));
    let mut waiting = connect(listen);
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(waiting.read(&mut [0; 1]).is_err(), "a full service must not serve another client");
    assert_eq!(evener.status()["services"][0]["connections_active"], 3);
    active.pop();
    waiting.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(line(&mut waiting), "a 127.0.0.1");
    evener.expect_log("service_full service=s connections_max=3");
}

#[test]
fn a_shortage_of_descriptors_pauses_accepting_and_uses_no_cpu_time() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let directory = Directory::new();
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\" }}", a.port);
    let file = directory.write("evener.lua", &config).display().to_string();
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n 60; exec {BINARY} \"$@\""), "sh"]);
    let mut evener = Evener::start(limited, directory, &["run", &file]);
    // The status command needs a descriptor of the instance, and must still get a response.
    let clients: Vec<_> = (0..100).map(|_| connect(listen)).collect();
    wait_until("accepting to pause", || evener.log().contains("descriptors_used_up service=s").then_some(()));
    let before = evener.cpu_seconds();
    std::thread::sleep(Duration::from_secs(1));
    let used = evener.cpu_seconds() - before;
    assert!(used < 0.4, "{used} s of CPU time in one second of waiting");
    drop(clients);
    wait_until("the service to accept again", || (who(listen) == "a").then_some(()));
    assert!(evener.service_counter("s", "accept_pauses") > 0);
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_connection_stays_open() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", idle_timeout = \"2s\" }}",
        a.port
    ));
    let listen = evener.port("s");
    let (mut idle, mut busy) = (connect(listen), connect(listen));
    line(&mut idle);
    line(&mut busy);
    for _ in 0..14 {
        busy.write_all(b"x").unwrap();
        busy.read_exact(&mut [0; 1]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    idle.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "the idle connection must be closed");
    busy.write_all(b"y").unwrap();
    busy.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(evener.service_counter("s", "closed.idle_timeout"), 1);
}

#[test]
fn a_client_in_the_backlog_of_a_full_service_is_served_when_a_reload_closes_the_listener() {
    let (a, listen, other) = (Server::named("a"), reserved_port(), reserved_port());
    let config = |port: u16| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:{port}\", \"127.0.0.1:{}\", connections_max = 1 }}",
            a.port
        )
    };
    let evener = Evener::run(&config(listen));
    let mut active = connect(listen);
    line(&mut active);
    let mut waiting = connect(listen);
    std::thread::sleep(Duration::from_millis(200));
    evener.reload(&config(other));
    assert_eq!(line(&mut waiting), "a 127.0.0.1", "a client in the backlog must be served");
}

#[test]
fn the_hard_limit_of_a_server_holds_across_workers() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", hard = 5 }}, {{ \"127.0.0.1:{}\", tier = 2 }} }}",
        a.port, b.port
    ));
    let listen = evener.port("s");
    let mut clients: Vec<_> = (0..12).map(|_| connect(listen)).collect();
    let names: Vec<String> = clients.iter_mut().map(line).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with('a')).count(), 5, "{names:?}");
    assert_eq!(evener.server(&format!("127.0.0.1:{}", a.port))["active"], 5);
}
