//! Shortage of descriptors: local failures do not count as failures of servers.

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

/// A server that responds to datagrams.
struct DatagramServer {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Drop for DatagramServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl DatagramServer {
    fn start(response: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (port, stop) = (socket.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&response(&buffer[..length]), client);
                }
            }
        });
        Self { port, stop }
    }
}

/// Prevents the instance from opening more descriptors. Open ones stay open.
fn exhaust_descriptors(evener: &Evener) {
    limit(evener, Some(0));
}

/// Restores the limit that the instance started with.
fn restore_descriptors(evener: &Evener) {
    limit(evener, getrlimit(Resource::Nofile).maximum);
}

fn limit(evener: &Evener, current: Option<u64>) {
    // The instance inherited the limit of the test.
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Pid::from_raw(evener.pid().cast_signed()), Resource::Nofile, Rlimit { current, maximum })
        .unwrap();
}

fn servers(status: &Value) -> Vec<Value> {
    let pools = status["pools"].as_array().unwrap();
    pools.iter().flat_map(|pool| pool["servers"].as_array().unwrap().clone()).collect()
}

#[test]
fn checks_and_connection_attempts_without_descriptors_take_no_server_down() {
    let (tcp, web) = (Server::named("tcp"), Origin::named("web"));
    let echo = DatagramServer::start(<[u8]>::to_vec);
    let dns = DatagramServer::start(|query| reply(query, 0, &[], &[]));
    let check = "every = \"100ms\", fall = 1, rise = 1, timeout = \"2s\"";
    let evener = Evener::run(&format!(
        "service \"t\" {{ listen = \"127.0.0.1:0\", pool = pool \"t\" {{ \"127.0.0.1:{}\", check = check.tcp {{ {check} }} }} }}
         service \"h\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = pool \"h\" {{ \"127.0.0.1:{}\", check = check.http {{ path = \"/\", {check} }} }} }}
         service \"u\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", pool = pool \"u\" {{ \"127.0.0.1:{}\", check = check.udp {{ send = \"ping\", expect = \"ping\", {check} }} }} }}
         service \"d\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", pool = pool \"d\" {{ \"127.0.0.1:{}\", check = check.dns {{ name = \"a.test\", {check} }} }} }}",
        tcp.port, web.port, echo.port, dns.port
    ));
    let [of_tcp, of_web, of_echo, of_dns] = ["t", "h", "u", "d"].map(|service| evener.port(service));
    let mut client = Wire::to(of_web);
    wait_until("the connection to be accepted", || {
        (evener.service_counter("h", "connections") == 1).then_some(())
    });
    assert_eq!(evener.log_count("server_down"), 0);
    exhaust_descriptors(&evener);
    // Traffic of each protocol needs descriptors.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        datagrams.send_to(b"hello", local(of_echo)).unwrap();
        datagrams.send_to(&query(7, "b.test", 1), local(of_dns)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = client.ask("GET", "/", "").unwrap().status();
    assert!([200, 502, 503].contains(&status), "{status}");
    wait_until("the shortage to be logged", || (evener.log_count(" local_error ") >= 3).then_some(()));
    restore_descriptors(&evener);
    let status = wait_until("the status over the admin socket", || {
        let output = evener.run_command(&["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });
    for server in servers(&status) {
        assert_eq!(server["verdict"], "up", "{server}");
        assert!(server["counters"]["local_errors"].as_u64().unwrap() > 0, "{server}");
    }
    assert_eq!((evener.log_count("server_down"), evener.log_count("pool_down")), (0, 0), "{}", evener.log());
    // The log lines are rate limited: there are fewer lines than failures.
    let failures: u64 =
        servers(&status).iter().map(|server| server["counters"]["local_errors"].as_u64().unwrap()).sum();
    assert!((evener.log_count(" local_error ") as u64) < failures, "{failures}");
    wait_until("a client to be served after the shortage", || (who(of_tcp) == "tcp").then_some(()));
    assert_eq!(Wire::to(of_web).ask("GET", "/", "").unwrap().status(), 200);
    datagrams.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut response = [0; 512];
    datagrams.send_to(b"again", local(of_echo)).unwrap();
    while datagrams.recv(&mut response).unwrap() != 5 || &response[..5] != b"again" {}
}

/// Runs a configuration with a limit of descriptors.
fn run_with(descriptors: u32, config: &str) -> Evener {
    // The test itself needs more descriptors than the default limit.
    let mut test_limit = getrlimit(Resource::Nofile);
    test_limit.current = test_limit.maximum;
    let _ = setrlimit(Resource::Nofile, test_limit);
    let directory = Directory::new();
    let file = directory.write("evener.lua", config).display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), BINARY]);
    Evener::start(command, directory, &["run", &file])
}

/// Returns the status, and prints how long the command took. No test asserts the duration because the machine
/// may be busy.
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

/// Waits until all descriptors are released, after the end of clients and servers.
fn expect_released(evener: &Evener) {
    wait_until("all descriptors to be released", || {
        (evener.status()["descriptors"]["used"] == 0).then_some(())
    });
}

/// Returns a pool in Lua of four servers with checks.
fn pool(ports: [u16; 4], check: &str) -> String {
    let servers = ports.map(|port| format!("\"127.0.0.1:{port}\"")).join(", ");
    format!("pool \"p\" {{ {servers}, check = {check} }}")
}

const CHECK: &str = "every = \"100ms\", fall = 1, rise = 1, timeout = \"5s\"";

#[test]
fn six_hundred_clients_are_served_in_sequence_with_1024_descriptors() {
    let servers = ["a", "b", "c", "d"].map(Server::named);
    let pool = pool(servers.each_ref().map(|server| server.port), &format!("check.tcp {{ {CHECK} }}"));
    let evener = run_with(
        1024,
        &format!("service \"s\" {{ listen = \"127.0.0.1:0\", backlog = 1024, pool = {pool} }}"),
    );
    let listen = evener.port("s");
    evener.expect_log("capacity descriptors_max=1024 descriptors_reserved=");
    let connections_max = timed_status(&evener)["descriptors"]["connections_max"].as_u64().unwrap();
    assert!((400..500).contains(&connections_max), "{connections_max}");
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
    wait_until("the maximum of clients to be served", || {
        take_served(&mut waiting, &mut served);
        (served.len() >= 400).then_some(())
    });
    evener.expect_log(" descriptors_used_up ");
    // The checks succeed for several seconds.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_all_up(&evener);
        take_served(&mut waiting, &mut served);
        assert!(served.len() <= connections_max as usize + 5, "{} of {connections_max}", served.len());
        // Accepted clients are served.
        for client in served.iter_mut().step_by(50) {
            client.write_all(b"again\n").unwrap();
            assert_eq!(line(client), "again");
        }
    }
    wait_until("all clients to be served", || {
        served.clear();
        take_served(&mut waiting, &mut served);
        waiting.is_empty().then_some(())
    });
    assert_all_up(&evener);
    assert_eq!(evener.service_counter("s", "connections"), 600);
    drop(served);
    expect_released(&evener);
}

#[test]
fn idle_http_clients_are_closed_for_new_ones() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let pool =
        pool(origins.each_ref().map(|one| one.port), &format!("check.http {{ path = \"/\", {CHECK} }}"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", backlog = 1024, pool = {pool} }}"
    );
    let evener = run_with(200, &config);
    let listen = evener.port("s");
    let connections_max = timed_status(&evener)["descriptors"]["connections_max"].as_u64().unwrap();
    assert!((40..100).contains(&connections_max), "{connections_max}");
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
    assert!(evener.service_counter("s", "closed.idle_shed") > 0);
    // Clients that are still connected are served again.
    let mut again = 0;
    for client in clients.iter_mut().rev().take(20) {
        again += u32::from(client.ask("GET", "/again", "").is_ok_and(|response| response.status() == 200));
    }
    assert!(again >= 10, "expected at least 10 of the last 20 clients to be served again, got {again}");
    assert_all_up(&evener);
    drop(clients);
    origins.iter().for_each(Origin::hang_up_all);
    expect_released(&evener);
}

#[test]
fn simultaneous_requests_get_descriptors_for_their_servers() {
    let origins = ["a", "b", "c", "d"].map(|name| {
        // Slow enough that all requests are pending at the same time.
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
        let requests = clients.drain(..).map(|mut client| {
            std::thread::spawn(move || {
                let status = client.ask("GET", "/", "").map(|response| response.status());
                (client, status)
            })
        });
        for thread in requests.collect::<Vec<_>>() {
            let (_, status) = thread.join().unwrap();
            assert_eq!(status.unwrap(), 200);
        }
        assert_all_up(&evener);
        clients = (0..150).map(|_| Wire::to(listen)).collect();
    }
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
    drop(clients);
    origins.iter().for_each(Origin::hang_up_all);
    expect_released(&evener);
}

#[test]
fn udp_flows_leave_descriptors_for_the_admin_socket_and_checks() {
    let echo = DatagramServer::start(<[u8]>::to_vec);
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
        // A flow beyond the maximum evicts the flow that was unused for the longest time.
        wait_until("a response", || {
            client.send_to(b"hello", local(listen)).unwrap();
            client.recv(&mut [0; 8]).ok()
        });
    }
    let status = timed_status(&evener);
    let flows = status["services"][0]["flows_active"].as_u64().unwrap();
    assert!((50..190).contains(&flows), "{flows}");
    assert_eq!(evener.log_count("server_down"), 0, "{}", evener.log());
    assert!(evener.service_counter("s", "flows_ended.evicted") > 0);
}

/// Sends a query with this ID over TCP, and receives the response.
fn query_over_tcp(client: &mut TcpStream, id: u16) -> std::io::Result<()> {
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
fn idle_dns_clients_are_closed_for_new_ones() {
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
        query_over_tcp(&mut client, id).unwrap();
        clients.push(client);
    }
    assert!(evener.service_counter("s", "closed.idle_shed") > 0);
    assert_eq!(
        (evener.log_count("server_down"), evener.log_count("accept_failed")),
        (0, 0),
        "{}",
        evener.log()
    );
    query_over_tcp(clients.last_mut().unwrap(), 1000).unwrap();
    drop(clients);
    expect_released(&evener);
}

/// Lowers the limit of descriptors, which the next reload applies, and returns the new maximum of connections.
fn lower_limit(front: &Front, origin: &Origin, descriptors: u64) -> u64 {
    limit(&front.evener, Some(descriptors));
    front.reload(&[origin], "");
    front.evener.expect_log(&format!("capacity descriptors_max={descriptors} descriptors_reserved="));
    front.evener.status()["descriptors"]["connections_max"].as_u64().unwrap()
}

#[test]
fn streams_beyond_the_descriptors_are_refused_without_effect_on_other_clients() {
    let origin = Origin::start(|wire, _| {
        std::thread::sleep(Duration::from_millis(500));
        wire.reply("200 OK", "", b"slow")
    });
    let front = Front::run(&[&origin], "");
    let connections_max = lower_limit(&front, &origin, 70);
    assert!((5..40).contains(&connections_max), "{connections_max}");
    within(async {
        let (client, other) = (front.client().await, front.client().await);
        let mut responses = Vec::new();
        for number in 0..100 {
            responses.push(client.open("GET", &format!("/{number}")).await.unwrap());
        }
        // The descriptors that another client needs are reserved.
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
        // Later requests of the client are served.
        assert_eq!(client.get("/again").await.status(), 200);
    });
    front.evener.expect_log("no descriptor is left for a connection to a server");
    assert_eq!(front.evener.log_count("server_down") + front.evener.log_count(" local_error "), 0);
    origin.hang_up_all();
    expect_released(&front.evener);
}

#[test]
fn idle_http2_clients_are_closed_for_new_ones() {
    let origin = Origin::named("a");
    let front = Front::run(&[&origin], "");
    let connections_max = lower_limit(&front, &origin, 70);
    within(async {
        let mut clients = Vec::new();
        for _ in 0..connections_max * 2 {
            let client = front.client().await;
            assert_eq!(client.get("/").await.status(), 200);
            clients.push(client);
        }
        assert!(front.counter("closed.idle_shed") > 0);
    });
    assert_eq!(front.evener.log_count("accept_failed") + front.evener.log_count(" local_error "), 0);
}
