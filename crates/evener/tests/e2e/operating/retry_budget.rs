//! The retry budget: servers are killed and revived under load with retries. One dead server costs no request,
//! and while all servers fail, the number of tries stays below 1.2 times the number of requests.

use crate::harness::dns::{A, Nameserver, SERVFAIL, TXT, ask, ask_on, client, query, rcode, record, reply};
use crate::harness::origin::{Origin, Wire, get, hang_up};
use crate::harness::{Evener, Server, connect, counter, line, reserved_port, wait_until};
use crate::udp::flows::{self, Echo};
use std::io::Read;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of requests of one load: more than the budget permits without earlier requests.
const REQUESTS: u64 = 1_500;
const CLIENTS: u64 = 6;

/// A balancer with three servers, and the load on it.
struct Trial {
    evener: Evener,
    protocol: &'static str,
    ports: [u16; 3],
    sent: AtomicU64,
}

/// Number of requests that were served, and number of those that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    served: u64,
    failed: u64,
}

const ALL_SERVED: Outcome = Outcome { served: REQUESTS, failed: 0 };
const ALL_FAILED: Outcome = Outcome { served: 0, failed: REQUESTS };

impl Trial {
    fn new(protocol: &'static str, ports: [u16; 3]) -> Self {
        let evener = Evener::run(&Self::config(protocol, ports, ""));
        Self { evener, protocol, ports, sent: AtomicU64::new(0) }
    }

    fn config(protocol: &str, ports: [u16; 3], more: &str) -> String {
        let servers = ports.map(|port| format!("'127.0.0.1:{port}'")).join(", ");
        format!(
            "service 's' {{ listen = '127.0.0.1:0', protocol = '{protocol}', {servers}, \
             passive = {{ failures = 1, down_for = '300ms' }}, {more} }}"
        )
    }

    /// Sends [`REQUESTS`] requests from several clients. Each client has a state of its own; `request` returns
    /// whether the request was served.
    fn load<C>(&self, new: impl Fn() -> C + Sync, request: impl Fn(&mut C, u64) -> bool + Sync) -> Outcome {
        let (served, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = new();
                    for _ in 0..REQUESTS / CLIENTS {
                        let number = self.sent.fetch_add(1, Ordering::Relaxed);
                        let outcome = if request(&mut client, number) { &served } else { &failed };
                        outcome.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Outcome { served: served.into_inner(), failed: failed.into_inner() }
    }

    /// Runs a load. Meanwhile calls `kill` and `revive` after a third and two thirds of its requests.
    fn disturbed(
        &self,
        load: impl Fn() -> Outcome + Sync,
        kill: impl FnOnce(),
        revive: impl FnOnce(),
    ) -> Outcome {
        let begun = self.sent.load(Ordering::Relaxed);
        let await_sent = |count| {
            wait_until("requests", || (self.sent.load(Ordering::Relaxed) - begun >= count).then_some(()));
        };
        std::thread::scope(|scope| {
            let outcome = scope.spawn(&load);
            await_sent(REQUESTS / 3);
            kill();
            await_sent(REQUESTS * 2 / 3);
            revive();
            outcome.join().unwrap()
        })
    }

    /// Returns the number of tries at all servers: failed connection attempts, and requests that were sent or
    /// connections that were established.
    fn tries(&self) -> u64 {
        const FAILURES: [&str; 3] =
            ["connect_failures.refused", "connect_failures.timeout", "connect_failures.error"];
        let counters = match self.protocol {
            "tcp" => &[FAILURES[0], FAILURES[1], FAILURES[2], "connections"][..],
            "http" => &[FAILURES[0], FAILURES[1], FAILURES[2], "requests"],
            // Failed connection attempts are those of probes: whether the server accepts TCP.
            _ => &["requests"],
        };
        let status = self.evener.status();
        let servers = status["pools"][0]["servers"].as_array().unwrap();
        let of_server = |server: &serde_json::Value| {
            counters.iter().map(|name| counter(&server["counters"], name)).sum::<u64>()
        };
        servers.iter().map(of_server).sum()
    }

    /// Checks that there were less than 1.2 tries for each request so far.
    fn check_tries(&self) {
        let (tries, sent) = (self.tries(), self.sent.load(Ordering::Relaxed));
        assert!(tries * 10 < sent * 12, "{}: {tries} tries for {sent} requests", self.protocol);
    }

    /// Checks that the used-up budget is counted and reported.
    fn check_reports(&self) {
        let counter = |name| self.evener.service_counter("s", name);
        assert!(counter("retries") > 0 && counter("retries_exhausted") > 0);
        self.evener.expect_log("retries_exhausted service=s pool=s");
    }

    /// Checks that the same load causes many more tries without a budget.
    fn check_without_budget(&self, load: impl Fn() -> Outcome) {
        self.evener.reload(&Self::config(self.protocol, self.ports, "retry_budget = false"));
        let (tries, exhausted) = (self.tries(), self.evener.service_counter("s", "retries_exhausted"));
        assert_eq!(load(), ALL_FAILED);
        let more = self.tries() - tries;
        assert!(more * 10 > REQUESTS * 15, "{}: {more} tries for {REQUESTS} requests", self.protocol);
        assert_eq!(self.evener.service_counter("s", "retries_exhausted"), exhausted);
    }

    /// Waits until a load is served again.
    fn await_recovery(&self, load: impl Fn() -> Outcome) {
        wait_until("the servers to serve again", || (load() == ALL_SERVED).then_some(()));
    }
}

#[test]
fn retries_of_http_requests_do_not_multiply_an_overload() {
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let trial = Trial::new("http", ports);
    let listen = trial.evener.port("s");
    let serving = |port| Origin::start_at(port, |wire, _| wire.reply("200 OK", "", b"served"));
    let mut origins = ports.map(serving);
    let load = || {
        trial.load(
            || Wire::to(listen),
            |wire, _| {
                let response = wire.ask("GET", "/", "").unwrap();
                if response.closes() {
                    *wire = Wire::to(listen);
                }
                assert!(matches!(response.status(), 200 | 502), "{}", response.header);
                response.status() == 200
            },
        )
    };
    assert_eq!(load(), ALL_SERVED);
    let revived = std::sync::Mutex::new(None);
    let (first, others) = origins.split_first_mut().unwrap();
    let revive = || *revived.lock().unwrap() = Some(serving(ports[0]));
    assert_eq!(trial.disturbed(load, || first.kill(), revive), ALL_SERVED);
    // Some servers refuse connections.
    revived.into_inner().unwrap().unwrap().kill();
    others.iter_mut().for_each(Origin::kill);
    assert_eq!(load(), ALL_FAILED);
    trial.check_tries();
    // The servers accept connections and requests, and close.
    let mut closing = ports.map(|port| Origin::start_at(port, |_, _| hang_up()));
    assert_eq!(load(), ALL_FAILED);
    trial.check_tries();
    trial.check_reports();
    trial.check_without_budget(load);
    closing.iter_mut().for_each(Origin::kill);
    let _serving = ports.map(serving);
    trial.await_recovery(load);
}

#[test]
fn retries_of_tcp_connections_do_not_multiply_an_overload() {
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let trial = Trial::new("tcp", ports);
    let listen = trial.evener.port("s");
    let mut servers = ports.map(|port| Server::named_at("served", port));
    // A server that closes resets the connections that it has not accepted yet, and clients of TCP cannot be
    // moved from an established connection. So a server closes while no client is connected.
    let connected = RwLock::new(());
    let load = || {
        trial.load(
            || (),
            |(), _| {
                let _connected = connected.read().unwrap();
                line(&mut connect(listen)) == "served 127.0.0.1"
            },
        )
    };
    assert_eq!(load(), ALL_SERVED);
    let revived = std::sync::Mutex::new(None);
    let (first, others) = servers.split_first_mut().unwrap();
    let kill = || {
        let _alone = connected.write().unwrap();
        first.stop();
    };
    let revive = || *revived.lock().unwrap() = Some(Server::named_at("served", ports[0]));
    assert_eq!(trial.disturbed(load, kill, revive), ALL_SERVED);
    revived.into_inner().unwrap().unwrap().stop();
    others.iter_mut().for_each(Server::stop);
    assert_eq!(load(), ALL_FAILED);
    trial.check_tries();
    trial.check_reports();
    trial.check_without_budget(load);
    let _serving = ports.map(|port| Server::named_at("served", port));
    trial.await_recovery(load);
}

#[test]
fn retries_of_dns_queries_do_not_multiply_an_overload() {
    let ports = [reserved_port(), reserved_port(), reserved_port()];
    let trial = Trial::new("dns", ports);
    let listen = trial.evener.port("s");
    let serving = |port| Nameserver::of_at(port, 1);
    let mut servers = ports.map(serving);
    let load = || {
        trial.load(
            || client(listen),
            |client, number| {
                let response = ask_on(client, &query(number as u16, &format!("n{number}.example"), A));
                assert!(matches!(rcode(&response), 0 | SERVFAIL), "{response:02x?}");
                rcode(&response) == 0
            },
        )
    };
    assert_eq!(load(), ALL_SERVED);
    let revived = std::sync::Mutex::new(None);
    let (first, others) = servers.split_first_mut().unwrap();
    let revive = || *revived.lock().unwrap() = Some(serving(ports[0]));
    assert_eq!(trial.disturbed(load, || first.stop(), revive), ALL_SERVED);
    revived.into_inner().unwrap().unwrap().stop();
    others.iter_mut().for_each(Nameserver::stop);
    assert_eq!(load(), ALL_FAILED);
    trial.check_tries();
    trial.check_reports();
    trial.check_without_budget(load);
    let _serving = ports.map(serving);
    trial.await_recovery(load);
}

/// Runs a service that uses the first server and permits no retry.
fn without_retries(protocol: &str, ports: [u16; 2]) -> Evener {
    let [first, second] = ports;
    Evener::run(&format!(
        "service 's' {{ listen = '127.0.0.1:0', protocol = '{protocol}', '127.0.0.1:{first}', '127.0.0.1:{second}', \
         policy = 'first', passive = false, retry_budget = {{ share = '0%', min_per_second = 0 }} }}"
    ))
}

/// Checks that one failed try was not repeated, and that the second server was not tried.
fn check_not_repeated(evener: &Evener, second: u16) {
    let counters = ["retries", "retries_exhausted"].map(|name| evener.service_counter("s", name));
    assert_eq!(counters, [0, 1]);
    let server = evener.server(&format!("127.0.0.1:{second}"));
    assert_eq!((&server["counters"]["connections"], &server["counters"]["requests"]), (&0.into(), &0.into()));
    evener.expect_log("retries_exhausted service=s pool=s");
}

#[test]
fn a_tcp_client_is_closed_when_the_budget_permits_no_retry() {
    let b = Server::named("b");
    let evener = without_retries("tcp", [reserved_port(), b.port]);
    let mut client = connect(evener.port("s"));
    assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0, "expected no byte");
    check_not_repeated(&evener, b.port);
    let explained = evener.run_command(&["explain", "s", "192.0.2.1"]).stdout;
    let note = "the retry budget is used up: 0 of at most 0 retries in the last 10 s (`retry_budget`)";
    let explained = String::from_utf8(explained).unwrap().replace("\n  ", " ");
    assert!(explained.contains(note), "expected a note: {explained}");
    evener.expect_log("no_server service=s reason=\"the retry budget of the pool is used up\"");
}

#[test]
fn an_http_request_gets_502_when_the_budget_permits_no_retry() {
    let (b, closing) = (Origin::named("b"), Origin::start(|_, _| hang_up()));
    for first in [reserved_port(), closing.port] {
        let evener = without_retries("http", [first, b.port]);
        assert_eq!(get(evener.port("s"), "/").status(), 502);
        check_not_repeated(&evener, b.port);
        assert_eq!(evener.service_counter("s", "requests_retried"), 0);
    }
}

#[test]
fn a_query_gets_the_response_that_declines_when_the_budget_permits_no_retry() {
    let b = Nameserver::of(2);
    let declining = Nameserver::start(|query, back| {
        back.send(&reply(query, SERVFAIL, &[], &[record(TXT, 5, &[1, b'1'])]));
    });
    let sent = query(7, "a.example", A);
    let evener = without_retries("dns", [declining.port, b.port]);
    let declined = reply(&sent, SERVFAIL, &[], &[record(TXT, 5, &[1, b'1'])]);
    assert_eq!(ask(evener.port("s"), &sent), declined);
    check_not_repeated(&evener, b.port);
    let evener = without_retries("dns", [reserved_port(), b.port]);
    assert_eq!(rcode(&ask(evener.port("s"), &sent)), SERVFAIL);
    check_not_repeated(&evener, b.port);
}

#[test]
fn a_flow_ends_when_the_budget_permits_no_move_and_the_next_datagram_begins_another() {
    let (mut a, b) = (Echo::start("a"), Echo::start("b"));
    let evener = without_retries("udp", [a.port, b.port]);
    let listen = evener.port("s");
    let socket = flows::client(listen);
    assert_eq!(flows::ask(&socket, "1"), "a 1");
    a.stop();
    wait_until("the end of the flow", || {
        socket.send(b"lost").unwrap();
        (evener.service_counter("s", "retries_exhausted") > 0).then_some(())
    });
    assert_eq!(["retries", "flows_moved"].map(|name| evener.service_counter("s", name)), [0, 0]);
    assert_eq!(evener.server(&format!("127.0.0.1:{}", b.port))["counters"]["flows"], 0);
    let _a = Echo::start_at("a", a.port);
    wait_until("a response", || (flows::ask(&flows::client(listen), "2") == "a 2").then_some(()));
}
