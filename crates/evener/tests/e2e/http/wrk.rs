//! Load from wrk on three nginx servers behind Evener: reloads, and a server that is killed and started again.

use crate::harness::{Directory, Evener, have, reserved_port, wait_until};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Nginx {
    child: Child,
    directory: Directory,
}

impl Nginx {
    pub(crate) fn start(port: u16) -> Self {
        let directory = Directory::new();
        let at = directory.file("").display().to_string();
        let config = directory.write(
            "nginx.conf",
            &format!(
                "daemon off; master_process off; pid {at}pid; error_log {at}log;\nevents {{ worker_connections 1024; }}\n\
                 http {{ access_log off; keepalive_requests 1000000; server {{ listen 127.0.0.1:{port}; \
                 location / {{ return 200 \"pong\"; }} }} }}"
            ),
        );
        let mut command = Command::new("nginx");
        let child =
            command.arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("nginx to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Self { child, directory }
    }

    fn kill(self) {
        drop(self);
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx runs as one process, so killing this child ends it immediately.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.directory;
    }
}

pub(crate) struct Wrk(Child);

impl Wrk {
    pub(crate) fn start(port: u16, seconds: u32, close: bool) -> Self {
        let mut command = Command::new("wrk");
        command.args(["-t1", "-c64", &format!("-d{seconds}s")]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://127.0.0.1:{port}/"));
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for the end. Returns the connect, read, write and timeout errors, the number of requests, and the output.
    pub(crate) fn end(self) -> ([u64; 4], u64, String) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("Non-2xx"), "{text}");
        let numbers =
            |line: &str| line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        let errors =
            text.lines().find(|line| line.contains("Socket errors")).map(numbers).unwrap_or(vec![0; 4]);
        let requests = text.lines().find(|line| line.contains("requests in")).map(numbers).unwrap()[0];
        (errors.try_into().unwrap(), requests, text)
    }
}

fn config(listen: u16, ports: &[u16], turn: usize) -> String {
    let servers: String = ports.iter().map(|port| format!("  \"127.0.0.1:{port}\",\n")).collect();
    let policy = ["round_robin", "least_conn", "p2c", "weighted", "ewma", "hash"][turn % 6];
    format!(
        "service \"www\" {{\n  listen = \"127.0.0.1:{listen}\",\n{servers}  policy = \"{policy}\",\n  \
         connections_max = {},\n  check = check.tcp {{ every = \"100ms\", rise = 1, fall = 2 }},\n}}\n",
        10_000 + turn
    )
}

#[test]
fn twenty_reloads_under_load_fail_no_request() {
    if !have("nginx") || !have("wrk") {
        return;
    }
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let _servers = ports.map(Nginx::start);
    let evener = Evener::run(&config(0, &ports, 0));
    let listen = evener.port("www");
    for close in [false, true] {
        let mut wrk = Wrk::start(listen, 8, close);
        for turn in 1..=20 {
            std::thread::sleep(Duration::from_millis(150));
            // Each turn changes the order of the servers, the policy and a limit. Every fourth turn removes a
            // server.
            let mut ports = ports.to_vec();
            ports.rotate_left(turn % 3);
            ports.truncate(if turn % 4 == 0 { 2 } else { 3 });
            evener.reload(&config(0, &ports, turn));
        }
        assert!(wrk.0.try_wait().unwrap().is_none(), "the load must last longer than the reloads");
        let (errors, requests, text) = wrk.end();
        assert_eq!(errors, [0; 4], "close: {close}\n{text}");
        assert!(requests > 1000, "{text}");
    }
    assert!(evener.log_count(" reloaded changes=") >= 40);
}

#[test]
fn only_requests_at_the_killed_server_fail_during_reloads() {
    if !have("nginx") || !have("wrk") {
        return;
    }
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let mut servers: Vec<Nginx> = ports.into_iter().map(Nginx::start).collect();
    let evener = Evener::run(&config(0, &ports, 0));
    let listen = evener.port("www");
    let name = format!("127.0.0.1:{}", ports[0]);
    let verdict =
        |expected: &str| wait_until(expected, || (evener.server(&name)["verdict"] == expected).then_some(()));
    for close in [false, true] {
        let mut wrk = Wrk::start(listen, 10, close);
        let reload = |turns: std::ops::RangeInclusive<usize>| {
            for turn in turns {
                std::thread::sleep(Duration::from_millis(100));
                evener.reload(&config(0, &ports, turn));
            }
        };
        reload(1..=6);
        servers.remove(0).kill();
        verdict("down");
        reload(7..=13);
        servers.insert(0, Nginx::start(ports[0]));
        verdict("up");
        reload(14..=20);
        assert!(wrk.0.try_wait().unwrap().is_none(), "the load must last longer than the reloads");
        let before = evener.server(&name)["counters"]["connections"].as_u64().unwrap();
        let (errors, requests, text) = wrk.end();
        let [connect, read, write, timeout] = errors;
        // Round robin spreads 64 connections over three servers, so at most 22 were at the killed server, each with one
        // request. With a connection for each request there may be a few more.
        assert!(read <= 40 && write <= 40, "close: {close}\n{text}");
        assert_eq!((connect, timeout), (0, 0), "close: {close}\n{text}");
        assert!(requests > 1000, "{text}");
        if close {
            let after = evener.server(&name)["counters"]["connections"].as_u64().unwrap();
            assert!(after > before, "the restarted server must serve again");
        }
    }
}
