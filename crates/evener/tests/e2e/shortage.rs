//! Short of descriptors: what fails for a reason of our own is no verdict on a server.

use crate::dns_harness::{question, reply};
use crate::harness::{DEADLINE, Evener, Server, free_port, local, wait_until, who};
use crate::origin::{Origin, Wire};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    fn start(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        let (port, over) = (socket.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&answer(&buffer[..length]), client);
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
    let dns = Datagrams::start(|question| reply(question, 0, &[], &[]));
    let [of_tcp, of_web, of_echo, of_dns] = [(); 4].map(|()| free_port());
    let check = "every = \"100ms\", fall = 1, rise = 1, timeout = \"2s\"";
    let evener = Evener::run(&format!(
        "service \"t\" {{ listen = \"127.0.0.1:{of_tcp}\", pool = pool \"t\" {{ \"127.0.0.1:{}\", check = check.tcp {{ {check} }} }} }}
         service \"h\" {{ listen = \"127.0.0.1:{of_web}\", protocol = \"http\", pool = pool \"h\" {{ \"127.0.0.1:{}\", check = check.http {{ path = \"/\", {check} }} }} }}
         service \"u\" {{ listen = \"127.0.0.1:{of_echo}\", protocol = \"udp\", pool = pool \"u\" {{ \"127.0.0.1:{}\", check = check.udp {{ send = \"ping\", expect = \"ping\", {check} }} }} }}
         service \"d\" {{ listen = \"127.0.0.1:{of_dns}\", protocol = \"dns\", pool = pool \"d\" {{ \"127.0.0.1:{}\", check = check.dns {{ name = \"a.test\", {check} }} }} }}",
        tcp.port, web.port, echo.port, dns.port
    ));
    let mut kept = Wire::to(of_web);
    wait_until("the accept", || (evener.service_counter("h", "connections") == 1).then_some(()));
    assert_eq!(evener.log_count("server_down"), 0);
    starve(&evener);
    // Something of each kind that traffic wants.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        datagrams.send_to(b"hello", local(of_echo)).unwrap();
        datagrams.send_to(&question(7, "b.test", 1), local(of_dns)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let status = kept.ask("GET", "/", "").unwrap().status();
    assert!([200, 502, 503].contains(&status), "{status}");
    wait_until("the shortage is said", || (evener.log_count(" local_error ") >= 3).then_some(()));
    feed(&evener);
    let status = wait_until("the admin socket", || {
        let output = evener.talk(&["status", "--json"]);
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
    let mut answer = [0; 512];
    datagrams.send_to(b"again", local(of_echo)).unwrap();
    while datagrams.recv(&mut answer).unwrap() != 5 || &answer[..5] != b"again" {}
}
