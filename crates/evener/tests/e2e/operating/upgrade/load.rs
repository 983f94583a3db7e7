//! Upgrades one after another under load.

use super::{Serving, serving, upgrade};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, have, line, reserved_port};
use crate::http::wrk::{Nginx, Wrk};
use crate::udp::flows::{Echo, Nsd, ask, client};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Number of upgrades under load.
const UPGRADES: usize = 20;
/// Number of configurations that are applied between them.
const APPLIES: usize = 50;
/// Bytes of a transfer that outlasts the upgrades.
const BYTES: usize = 1 << 30;

/// A thread that repeats an action until it is stopped, and counts.
struct Repeated {
    stopped: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Repeated {
    fn start(every: Duration, mut action: impl FnMut() + Send + 'static) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                action();
                count += 1;
                std::thread::sleep(every);
            }
            count
        });
        Self { stopped, thread }
    }

    /// Ends the thread. Returns the number of actions. A failure of the action is a failure of the test.
    fn end(self) -> usize {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Upgrades again and again, and applies configurations between. Returns the last process.
fn upgrade_often(evener: &Evener, config: impl Fn(usize) -> String) -> Serving {
    let mut last = serving(evener);
    let mut applied = 0;
    for turn in 0..UPGRADES {
        while applied * UPGRADES < APPLIES * (turn + 1) {
            applied += 1;
            evener.write_config(&config(applied));
            let file = evener.file("evener.lua").display().to_string();
            let output = evener.run_command(&["apply", &file]);
            assert!(output.status.success(), "turn {turn}: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(200));
        let output = upgrade(evener, &[]);
        assert!(output.status.success(), "turn {turn}: {}", String::from_utf8_lossy(&output.stderr));
        let pid = serving(evener);
        assert_ne!(pid, last, "turn {turn}");
        last = pid;
    }
    assert_eq!(applied, APPLIES);
    Serving(last)
}

/// Starts a server that sends [`BYTES`] bytes to each client.
fn source() -> Server {
    Server::start(|mut stream| {
        let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        (0..BYTES / block.len()).for_each(|_| stream.write_all(&block).unwrap());
    })
}

/// Receives what [`source`] sends with a pause after each MiB, and checks each byte. Returns the number of bytes.
fn receive(mut client: TcpStream, pause: Duration) -> usize {
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let (mut buffer, mut at) = (vec![0; block.len()], 0_usize);
    loop {
        let begin = at % block.len();
        let read = client.read(&mut buffer[..block.len() - begin]).unwrap();
        if read == 0 {
            return at;
        }
        assert!(buffer[..read] == block[begin..begin + read], "at {at}");
        at += read;
        if at % block.len() == 0 {
            std::thread::sleep(pause);
        }
    }
}

/// A load of queries by dnsperf.
struct Dnsperf(std::process::Child);

impl Dnsperf {
    fn start(evener: &Evener, port: u16) -> Self {
        let queries: String = (0..1000).map(|n| format!("n{n}.example A\n")).collect();
        let file = evener.write("queries", &queries);
        let mut command = Command::new("dnsperf");
        command.args([
            "-T1",
            "-c16",
            "-t2",
            "-Q5000",
            "-l600",
            "-s",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-d",
        ]);
        Self(command.arg(file).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Ends the load. Returns the numbers of queries without a response and with one, and the output.
    fn end(self) -> (u64, u64, String) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |name: &str| {
            let line = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{text}"));
            line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
        };
        (number("Queries lost:"), number("Queries completed:"), text.clone())
    }
}

/// Returns the counters of a text in the format of Prometheus.
fn scrape(port: u16) -> Vec<(String, f64)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let is_counter =
        |name: &str| ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        is_counter(name.split('{').next()?).then(|| Some((name.to_owned(), value.parse().ok()?)))?
    });
    samples.collect()
}

#[test]
fn twenty_upgrades_and_fifty_applies_under_load_lose_nothing_and_counters_never_go_back() {
    if !["nginx", "wrk", "nsd", "dnsperf"].into_iter().all(have) {
        return;
    }
    let ports = [reserved_port(), reserved_port()];
    let _servers = ports.map(Nginx::start);
    let (echo, u, source, name_server) = (Server::named("a"), Echo::start("u"), source(), reserved_port());
    let (nsd_files, metrics) = (Directory::new(), reserved_port());
    let _nsd = Nsd::start_in(&nsd_files, name_server);
    let config = |turn: usize| {
        let policy = ["round_robin", "least_conn", "p2c", "hash"][turn % 4];
        format!(
            "service 'www' {{ listen = '127.0.0.1:0', protocol = 'http', '127.0.0.1:{}', '127.0.0.1:{}', \
             policy = '{policy}', connections_max = {}, check = check.tcp {{ every = '100ms' }} }}\n\
             service 'tcp' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n\
             service 'big' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n\
             service 'u' {{ protocol = 'udp', listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n\
             service 'dns' {{ protocol = 'dns', listen = '127.0.0.1:0', '127.0.0.1:{name_server}' }}\n",
            ports[0],
            ports[1],
            10_000 + turn,
            echo.port,
            source.port,
            u.port
        )
    };
    let options = ["--workers", "2", "--drain-timeout", "60s", "--metrics", &format!("127.0.0.1:{metrics}")];
    let evener = Evener::run_with(&config(0), &options);
    let (www, tcp, udp) = (evener.port("www"), evener.port("tcp"), evener.port("u"));
    let (big, dns) = (connect(evener.port("big")), Dnsperf::start(&evener, evener.port("dns")));
    let big = std::thread::spawn(move || receive(big, Duration::from_millis(8)));
    let mut idle: Vec<TcpStream> = (0..200).map(|_| connect(tcp)).collect();
    idle.iter_mut().for_each(|client| assert!(line(client).starts_with("a ")));

    let mut before: Vec<(String, f64)> = Vec::new();
    let scrapes = Repeated::start(Duration::from_millis(50), move || {
        let now = scrape(metrics);
        assert!(now.len() > 50, "{now:?}");
        for (name, value) in &before {
            let after = now.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
            assert!(after.is_some_and(|after| after >= *value), "{name}: {value} {after:?}");
        }
        before = now;
    });
    let requester = client(udp);
    let queried = Repeated::start(Duration::from_millis(2), move || assert_eq!(ask(&requester, "x"), "u x"));
    let opened =
        Repeated::start(Duration::from_millis(2), move || assert!(line(&mut connect(tcp)).starts_with("a ")));
    let load = [false, true].map(|close| Wrk::start(www, 30, close));
    let _last = upgrade_often(&evener, config);
    for wrk in load {
        let (errors, requests, text) = wrk.end();
        assert_eq!(errors, [0; 4], "{text}");
        assert!(requests > 100, "{text}");
    }
    assert!(opened.end() > 100 && queried.end() > 100 && scrapes.end() > 20);
    for client in &mut idle {
        client.write_all(b"still here\n").unwrap();
        assert_eq!(line(client), "still here");
    }
    let (lost, completed, text) = dns.end();
    assert!(lost == 0 && completed > 1000, "{text}");
    assert_eq!(big.join().unwrap(), BYTES);
}

#[test]
fn a_transfer_and_states_of_servers_outlast_upgrades() {
    let source = source();
    let (a, b) = (Server::named("a"), Server::named("b"));
    let config = format!(
        "service 'big' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n\
         service 's' {{ listen = '127.0.0.1:0', {{ '127.0.0.1:{}', name = 'a' }}, {{ '127.0.0.1:{}', name = 'b' }}, \
         sticky = {{ size = 100 }}, check = check.tcp {{ every = '1h' }} }}\n",
        source.port, a.port, b.port
    );
    let evener = Evener::run_with(&config, &["--drain-timeout", "60s"]);
    let (big, sticky) = (evener.port("big"), evener.port("s"));
    let client = connect(big);
    let reader = std::thread::spawn(move || receive(client, Duration::ZERO));
    let home = line(&mut connect(sticky));
    let other = if home.starts_with("a ") { "b" } else { "a" };
    assert!(evener.run_command(&["maintenance", &format!("s/{other}")]).status.success());
    let before = evener.service_counter("s", "connections");
    let mut last = None;
    for _ in 0..3 {
        last = Some(super::upgraded(&evener));
    }
    assert_eq!(line(&mut connect(sticky)), home);
    assert_eq!(evener.server(other)["state"], "maintenance");
    assert_eq!(evener.server(if other == "a" { "b" } else { "a" })["verdict"], "up");
    assert_eq!(evener.service_counter("s", "connections"), before + 1);
    assert_eq!(reader.join().unwrap(), BYTES);
    drop(last);
}
