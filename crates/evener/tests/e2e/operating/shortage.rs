//! Short of descriptors: what fails for a reason of our own is no verdict on a server.

use crate::harness::dns::{query, reply};
use crate::harness::origin::{Origin, Wire};
use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, connect, line, local, wait_until, who};
use crate::http::http2::client::{Front, whole, within};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A server that answers datagrams.
struct Datagrams {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Datagrams {
    fn start(response: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (port, over) = (socket.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&response(&buffer[..length]), client);
                }
            }
        });
        Self { port, over }
    }
}

/// From now on an instance gets no more descriptors than it has; it keeps those.
fn starve(evener: &Evener) {
    limit(evener, Some(0));
}

/// It has all that it had by its start.
fn feed(evener: &Evener) {
    limit(evener, getrlimit(Resource::Nofile).maximum);
}

fn limit(evener: &Evener, current: Option<u64>) {
    // It inherited ours.
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Pid::from_raw(evener.pid().cast_signed()), Resource::Nofile, Rlimit { current, maximum })
        .unwrap();
}

fn servers(status: &Value) -> Vec<Value> {
    let pools = status["pools"].as_array().unwrap();
    pools.iter().flat_map(|pool| pool["servers"].as_array().unwrap().clone()).collect()
}

#[test]
fn checks_and_connects_that_fail_for_want_of_descriptors_take_no_server_down() {
    let (tcp, web) = (Server::named("tcp"), Origin::named("web"));
    let echo = Datagrams::start(<[u8]>::to_vec);
    let dns = Datagrams::start(|query| reply(query, 0, &[], &[]));
    let check = "every = \"100ms\", fall = 1, rise = 1, timeout = \"2s\"";
    let evener = Evener::run(&format!(
        "service \"t\" {{ listen = \"127.0.0.1:0\", pool = pool \"t\" {{ \"127.0.0.1:{}\", check = check.tcp {{ {check} }} }} }}
         service \"h\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = pool \"h\" {{ \"127.0.0.1:{}\", check = check.http {{ path = \"/\", {check} }} }} }}
         service \"u\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", pool = pool \"u\" {{ \"127.0.0.1:{}\", check = check.udp {{ send = \"ping\", expect = \"ping\", {check} }} }} }}
         service \"d\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", pool = pool \"d\" {{ \"127.0.0.1:{}\", check = check.dns {{ name = \"a.test\", {check} }} }} }}",
        tcp.port, web.port, echo.port, dns.port
    ));
    let [of_tcp, of_web, of_echo, of_dns] = ["t", "h", "u", "d"].map(|service| evener.port(service));
    let mut retained = Wire::to(of_web);
    wait_until("the accept", || (evener.service_counter("h", "connections") == 1).then_some(()));
    assert_eq!(evener.log_count("server_down"), 0);
    starve(&evener);
    // Something of each kind that traffic wants.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        datagrams.send_to(b"hello", local(of_echo)).unwrap();
        datagrams.send_to(&query(7, "b.test", 1), local(of_dns)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = retained.ask("GET", "/", "").unwrap().status();
    assert!([200, 502, 503].contains(&status), "{status}");
    wait_until("the shortage is said", || (evener.log_count(" local_error ") >= 3).then_some(()));
    feed(&evener);
    let status = wait_until("the admin socket", || {
        let output = evener.run_command(&["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });
    for server in servers(&status) {
        assert_eq!(server["verdict"], "up", "{server}");
        assert!(server["counters"]["local_errors"].as_u64().unwrap() > 0, "{server}");
    }
    assert_eq!((evener.log_count("server_down"), evener.log_count("pool_down")), (0, 0), "{}", evener.log());
    // Said now and then, however often it happens.
    let failures: u64 =
        servers(&status).iter().map(|one| one["counters"]["local_errors"].as_u64().unwrap()).sum();
    assert!((evener.log_count(" local_error ") as u64) < failures, "{failures}");
    wait_until("service as before", || (who(of_tcp) == "tcp").then_some(()));
    assert_eq!(Wire::to(of_web).ask("GET", "/", "").unwrap().status(), 200);
    datagrams.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut response = [0; 512];
    datagrams.send_to(b"again", local(of_echo)).unwrap();
    while datagrams.recv(&mut response).unwrap() != 5 || &response[..5] != b"again" {}
}

/// Runs a configuration with so many descriptors.
fn run_with(descriptors: u32, config: &str) -> Evener {
    // What the test itself holds is more than is usual.
    let mut own = getrlimit(Resource::Nofile);
    own.current = own.maximum;
    let _ = setrlimit(Resource::Nofile, own);
    let directory = Directory::new();
    let file = directory.write("evener.lua", config).display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), BINARY]);
    Evener::start(command, directory, &["run", &file])
}

/// The status, and how long it took, which is not asserted: the machine may be busy.
fn timed_status(evener: &Evener) -> Value {
    let began = Instant::now();
    let status = evener.status();
    println!("status within {:?}: {}", began.elapsed(), status["descriptors"]);
    status
}

fn assert_all_up(evener: &Evener) {
    assert_eq!((evener.log_count("server_down"), evener.log_count("pool_down")), (0, 0), "{}", evener.log());
    let status = timed_status(evener);
    servers(&status).iter().for_each(|server| assert_eq!(server["verdict"], "up", "{server}"));
    assert_eq!(evener.log_count("accept_failed"), 0, "{}", evener.log());
    assert_eq!(evener.log_count(" local_error "), 0, "{}", evener.log());
}

/// What was taken is given back, when clients and servers have left.
fn expect_unused(evener: &Evener) {
    wait_until("descriptors that are given back", || {
        (evener.status()["descriptors"]["used"] == 0).then_some(())
    });
}

/// Four servers with checks, as a pool in Lua.
fn pool(ports: [u16; 4], check: &str) -> String {
    let servers = ports.map(|port| format!("\"127.0.0.1:{port}\"")).join(", ");
    format!("pool \"p\" {{ {servers}, check = {check} }}")
}

const CHECK: &str = "every = \"100ms\", fall = 1, rise = 1, timeout = \"5s\"";

#[test]
fn six_hundred_clients_with_1024_descriptors_are_served_in_turn_and_no_server_goes_down() {
    let servers = ["a", "b", "c", "d"].map(Server::named);
    let pool = pool(servers.each_ref().map(|server| server.port), &format!("check.tcp {{ {CHECK} }}"));
    let evener = run_with(
        1024,
        &format!("service \"s\" {{ listen = \"127.0.0.1:0\", backlog = 1024, pool = {pool} }}"),
    );
    let listen = evener.port("s");
    evener.expect_log("1024 descriptors may be open, enough for ");
    let most = timed_status(&evener)["descriptors"]["connections_max"].as_u64().unwrap();
    assert!((400..500).contains(&most), "{most}");
    let mut waiting: Vec<TcpStream> = (0..600).map(|_| connect(listen)).collect();
    let mut served: Vec<TcpStream> = Vec::new();
    let take_served = |waiting: &mut Vec<TcpStream>, served: &mut Vec<TcpStream>| {
        for mut client in std::mem::take(waiting) {
            client.set_nonblocking(true).unwrap();
            match client.peek(&mut [0]) {
                Ok(1) => {
                    client.set_nonblocking(false).unwrap();
                    assert_eq!(line(&mut client).len(), "a 127.0.0.1".len());
                    served.push(client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => waiting.push(client),
                other => panic!("a client was not served: {other:?}"),
            }
        }
    };
    wait_until("as many as there is room for", || {
        take_served(&mut waiting, &mut served);
        (served.len() >= 400).then_some(())
    });
    evener.expect_log(" descriptors_used_up ");
    // For some seconds, with checks on.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_all_up(&evener);
        take_served(&mut waiting, &mut served);
        assert!(served.len() <= most as usize + 5, "{} of {most}", served.len());
        // Who was accepted is served.
        for client in served.iter_mut().step_by(50) {
            client.write_all(b"again\n").unwrap();
            assert_eq!(line(client), "again");
        }
    }
    wait_until("everybody's turn", || {
        served.clear();
        take_served(&mut waiting, &mut served);
        waiting.is_empty().then_some(())
    });
    assert_all_up(&evener);
    assert_eq!(evener.service_counter("s", "connections"), 600);
    drop(served);
    expect_unused(&evener);
}

#[test]
fn idle_clients_of_http_make_room_for_others() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let pool =
        pool(origins.each_ref().map(|one| one.port), &format!("check.http {{ path = \"/\", {CHECK} }}"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", backlog = 1024, pool = {pool} }}"
    );
    let evener = run_with(200, &config);
    let listen = evener.port("s");
    let most = timed_status(&evener)["descriptors"]["connections_max"].as_u64().unwrap();
    assert!((40..100).contains(&most), "{most}");
    let mut clients = Vec::new();
    for number in 0..150 {
        let mut client = Wire::to(listen);
        let response = client.ask("GET", &format!("/{number}"), "").unwrap();
        assert_eq!(response.status(), 200, "{number}");
        clients.push(client);
        if number % 30 == 0 {
            assert_all_up(&evener);
        }
    }
    assert!(evener.service_counter("s", "idle_shed") > 0);
    // Those that are there still are served again.
    let mut again = 0;
    for client in clients.iter_mut().rev().take(20) {
        again += u32::from(client.ask("GET", "/again", "").is_ok_and(|response| response.status() == 200));
    }
    assert!(again >= 10, "{again}");
    assert_all_up(&evener);
    drop(clients);
    origins.iter().for_each(Origin::hang_up_all);
    expect_unused(&evener);
}

#[test]
fn clients_that_ask_at_once_have_what_they_need_for_their_servers() {
    let origins = ["a", "b", "c", "d"].map(|name| {
        // Slow enough that all are under way together.
        Origin::start(move |wire, _| {
            std::thread::sleep(Duration::from_millis(300));
            wire.reply("200 OK", "", name.as_bytes())
        })
    });
    let pool = pool(origins.each_ref().map(|one| one.port), &format!("check.tcp {{ {CHECK} }}"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", backlog = 1024, pool = {pool} }}"
    );
    let evener = run_with(200, &config);
    let listen = evener.port("s");
    let mut clients: Vec<Wire> = (0..150).map(|_| Wire::to(listen)).collect();
    for _ in 0..2 {
        let asking = clients.drain(..).map(|mut client| {
            std::thread::spawn(move || {
                let status = client.ask("GET", "/", "").map(|response| response.status());
                (client, status)
            })
        });
        for thread in asking.collect::<Vec<_>>() {
            let (_, status) = thread.join().unwrap();
            assert_eq!(status.unwrap(), 200);
        }
        assert_all_up(&evener);
        clients = (0..150).map(|_| Wire::to(listen)).collect();
    }
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
    drop(clients);
    origins.iter().for_each(Origin::hang_up_all);
    expect_unused(&evener);
}

#[test]
fn flows_leave_descriptors_for_the_operator_and_for_checks() {
    let echo = Datagrams::start(<[u8]>::to_vec);
    let check = format!("check.udp {{ send = \"ping\", expect = \"ping\", {CHECK} }}");
    let evener = run_with(
        200,
        &format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", pool = pool \"p\" {{ \"127.0.0.1:{}\", check = {check} }} }}",
            echo.port
        ),
    );
    let listen = evener.port("s");
    let clients: Vec<UdpSocket> = (0..220).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // The first datagram of one flow too many makes the longest unused one go.
        wait_until("an answer", || {
            client.send_to(b"hello", local(listen)).unwrap();
            client.recv(&mut [0; 8]).ok()
        });
    }
    let status = timed_status(&evener);
    let flows = status["services"][0]["flows_active"].as_u64().unwrap();
    assert!((50..190).contains(&flows), "{flows}");
    assert_eq!(evener.log_count("server_down"), 0, "{}", evener.log());
    assert!(evener.service_counter("s", "flows_evicted") > 0);
}

/// A client that asks over TCP with this ID and gets its answer.
fn asks_over_tcp(client: &mut TcpStream, id: u16) -> std::io::Result<()> {
    let query = query(id, "a.test", 1);
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&query);
    client.write_all(&framed)?;
    let mut length = [0; 2];
    client.read_exact(&mut length)?;
    let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
    client.read_exact(&mut response)?;
    assert_eq!(response[..2], id.to_be_bytes());
    Ok(())
}

#[test]
fn idle_clients_of_dns_make_room_for_others() {
    let server = Server::start(|mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut requested = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut requested).is_err() {
                return;
            }
            let response = reply(&requested, 0, &[], &[]);
            let framed = [&(response.len() as u16).to_be_bytes()[..], &response].concat();
            if stream.write_all(&framed).is_err() {
                return;
            }
        }
    });
    let evener = run_with(
        100,
        &format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", \"127.0.0.1:{}\" }}",
            server.port
        ),
    );
    let listen = evener.port("s");
    let mut clients = Vec::new();
    for id in 0..150 {
        let mut client = connect(listen);
        asks_over_tcp(&mut client, id).unwrap();
        clients.push(client);
    }
    assert!(evener.service_counter("s", "idle_shed") > 0);
    assert_eq!(
        (evener.log_count("server_down"), evener.log_count("accept_failed")),
        (0, 0),
        "{}",
        evener.log()
    );
    asks_over_tcp(clients.last_mut().unwrap(), 1000).unwrap();
    drop(clients);
    expect_unused(&evener);
}

/// Fewer descriptors from now on: the next reload sees that.
fn narrow(front: &Front, origin: &Origin, descriptors: u64) -> u64 {
    limit(&front.evener, Some(descriptors));
    front.reload(&[origin], "");
    front.evener.expect_log(&format!("{descriptors} descriptors may be open"));
    front.evener.status()["descriptors"]["connections_max"].as_u64().unwrap()
}

#[test]
fn streams_beyond_what_descriptors_allow_are_refused_and_harm_nobody() {
    let origin = Origin::start(|wire, _| {
        std::thread::sleep(Duration::from_millis(500));
        wire.reply("200 OK", "", b"slow")
    });
    let front = Front::run(&[&origin], "");
    let most = narrow(&front, &origin, 70);
    assert!((5..40).contains(&most), "{most}");
    within(async {
        let (client, other) = (front.client().await, front.client().await);
        let mut responses = Vec::new();
        for number in 0..100 {
            responses.push(client.open("GET", &format!("/{number}")).await.unwrap());
        }
        // What was promised to another client is there.
        assert_eq!(other.get("/other").await.status(), 200);
        let (mut served, mut refused) = (0, 0);
        for response in responses {
            match whole(response).await.unwrap().status() {
                200 => served += 1,
                503 => refused += 1,
                status => panic!("{status}"),
            }
        }
        assert!(served >= 2 && refused >= 20, "{served} {refused}");
        // Nothing is left of it.
        assert_eq!(client.get("/again").await.status(), 200);
    });
    front.evener.expect_log("no descriptor is left for a connection to a server");
    assert_eq!(front.evener.log_count("server_down") + front.evener.log_count(" local_error "), 0);
    origin.hang_up_all();
    expect_unused(&front.evener);
}

#[test]
fn idle_clients_of_http2_are_told_to_go_when_others_wait() {
    let origin = Origin::named("a");
    let front = Front::run(&[&origin], "");
    let most = narrow(&front, &origin, 70);
    within(async {
        let mut clients = Vec::new();
        for _ in 0..most * 2 {
            let client = front.client().await;
            assert_eq!(client.get("/").await.status(), 200);
            clients.push(client);
        }
        assert!(front.counter("idle_shed") > 0);
    });
    assert_eq!(front.evener.log_count("accept_failed") + front.evener.log_count(" local_error "), 0);
}
