//! Host names whose addresses change while the program runs, with dnsmasq as the name server.

use crate::admin::status_text::unwrapped_status;
use crate::harness::certificates::{Authority, https_origin, tls_echo};
use crate::harness::dns::{A, Nameserver, SERVFAIL, address, ask_on, client, host, query, reply};
use crate::harness::dnsmasq::Dnsmasq;
use crate::harness::origin::{Origin, Wire};
use crate::harness::{Directory, Evener, Server, connect, line, reserved_port, wait_until, who};
use crate::udp::flows::{self, Echo};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Addresses of loopback, which all belong to this machine.
const HOSTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)),
];

/// A client that repeats an exchange until it is stopped.
struct Load {
    stopped: Arc<AtomicBool>,
    exchanges: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts a client. `exchange` panics if the exchange fails.
    fn start(mut exchange: impl FnMut(usize) + Send + 'static) -> Self {
        let (stopped, exchanges) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stop, count) = (Arc::clone(&stopped), Arc::clone(&exchanges));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                exchange(count.fetch_add(1, Ordering::Relaxed));
                // The load must not slow down other tests.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        Self { stopped, exchanges, thread }
    }

    /// Waits until the client has made further exchanges.
    fn expect_more(&self) {
        let before = self.exchanges.load(Ordering::Relaxed);
        wait_until("further exchanges", || {
            assert!(!self.thread.is_finished(), "expected no exchange to fail");
            (self.exchanges.load(Ordering::Relaxed) > before + 50).then_some(())
        });
    }

    /// Ends the client. Panics if an exchange failed.
    fn stop(self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("every exchange must succeed");
    }
}

/// Sends requests over one connection, which the service may close between two requests.
fn requests(port: u16) -> Load {
    let mut wire = Wire::to(port);
    Load::start(move |_| {
        let response = wire.ask("GET", "/", "").unwrap();
        assert_eq!(response.status(), 200, "expected every request to succeed: {}", response.header);
        if response.closes() {
            wire = Wire::to(port);
        }
    })
}

fn queries(port: u16) -> Load {
    let socket = client(port);
    Load::start(move |number| {
        host(&ask_on(&socket, &query(number as u16, "x.test", A)));
    })
}

/// Sends datagrams of one flow.
fn datagrams(port: u16) -> Load {
    let socket = flows::client(port);
    Load::start(move |number| {
        let response = flows::ask(&socket, &format!("{number}."));
        assert!(response.ends_with(&format!(" {number}.")), "expected an echo of {number}, got {response:?}");
    })
}

/// Returns the names of the servers that respond to requests.
fn names(port: u16) -> BTreeSet<String> {
    (0..20).map(|_| Wire::to(port).ask("GET", "/", "").unwrap().text()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn changed_addresses_are_followed_under_load_and_a_failed_name_server_changes_nothing() {
    let Some(mut dnsmasq) = Dnsmasq::start(&[("app.test", &HOSTS[..2])]) else { return };
    let [web, ns, game] = [reserved_port(), reserved_port(), reserved_port()];
    let at = |port: u16| HOSTS.map(|ip| SocketAddr::new(ip, port));
    let origins: Vec<Origin> =
        ["a", "b", "c"].into_iter().zip(at(web)).map(|(name, at)| Origin::named_on(name, at)).collect();
    let nameserver =
        |(number, at)| Nameserver::start_on(at, move |query, back| back.send(&address(query, 60, number)));
    let _nameservers: Vec<Nameserver> = (1..).zip(at(ns)).map(nameserver).collect();
    let _echoes: Vec<Echo> =
        ["a", "b", "c"].into_iter().zip(at(game)).map(|(name, at)| Echo::start_on(name, at)).collect();
    let resolver = format!("resolver = \"{}\"", dnsmasq.address());
    let evener = Evener::run(&format!(
        "pool \"web\" {{ \"app.test:{web}\", {resolver} }}
         service \"www\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = \"web\" }}
         pool \"ns\" {{ discover.dns \"app.test:{ns}\", {resolver} }}
         service \"dns\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", pool = \"ns\" }}
         pool \"game\" {{ discover.dns \"app.test:{game}\", {resolver} }}
         service \"udp\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", pool = \"game\" }}"
    ));
    let [www, dns, udp] = ["www", "dns", "udp"].map(|service| evener.port(service));
    let mut load: Vec<Load> = (0..2).map(|_| requests(www)).collect();
    load.extend((0..2).map(|_| queries(dns)));
    load.extend((0..4).map(|_| datagrams(udp)));
    let expect = |numbers: &[usize]| {
        for (pool, port) in [("web", web), ("ns", ns), ("game", game)] {
            let addresses: Vec<SocketAddr> = numbers.iter().map(|number| at(port)[*number]).collect();
            evener.expect_addresses(pool, &addresses);
        }
        load.iter().for_each(Load::expect_more);
    };
    expect(&[0, 1]);
    assert_eq!(names(www), set(&["a", "b"]));

    dnsmasq.change(&[("app.test", &HOSTS[1..])]);
    expect(&[1, 2]);
    assert_eq!(names(www), set(&["b", "c"]));
    assert_eq!(evener.log_count("discovery_failed"), 0);

    // The addresses stay when the name server fails. An attempt to resolve a name sends at most 6 queries.
    dnsmasq.kill();
    let failing =
        Nameserver::start_at(dnsmasq.port(), |query, back| back.send(&reply(query, SERVFAIL, &[], &[])));
    wait_until("three attempts for each of three pools", || (failing.count() >= 3 * 3 * 6).then_some(()));
    expect(&[1, 2]);
    assert_eq!(names(www), set(&["b", "c"]));
    assert_eq!(evener.log_count("discovery_failed"), 3, "expected one event for each pool: {}", evener.log());
    assert_eq!(evener.log_count("discovery_recovered"), 0);
    drop(failing);

    dnsmasq.write(&[("app.test", &[HOSTS[0], HOSTS[2]])]);
    dnsmasq.run();
    expect(&[0, 2]);
    assert_eq!(names(www), set(&["a", "c"]));
    wait_until("the recovery", || (evener.log_count("discovery_recovered") == 3).then_some(()));
    assert_eq!(evener.log_count("discovery_failed"), 3);
    load.into_iter().for_each(Load::stop);
    origins.iter().for_each(|origin| assert_eq!(origin.faults(), [""; 0]));
}

#[test]
fn a_server_with_a_host_name_keeps_its_identity_when_the_number_of_addresses_changes() {
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &HOSTS[..1])]) else { return };
    let port = reserved_port();
    let at = HOSTS.map(|ip| SocketAddr::new(ip, port));
    let _servers: Vec<Server> =
        ["a", "b", "c"].into_iter().zip(at).map(|(name, at)| Server::named_on(name, at)).collect();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"app.test:{port}\", max = 7 }}, resolver = \"{}\" }}",
        dnsmasq.address()
    ));
    let listen = evener.port("s");
    let name = format!("app.test:{port}");
    let connections = |name: &str| evener.server(name)["counters"]["connections"].as_u64().unwrap();
    for _ in 0..3 {
        assert_eq!(who(listen), "a");
    }
    assert_eq!((connections(&name), &evener.server(&name)["max"]), (3, &7.into()));
    let mut open = connect(listen);
    assert!(line(&mut open).starts_with("a "));

    dnsmasq.change(&[("app.test", &HOSTS[..2])]);
    evener.expect_addresses("s", &at[..2]);
    let [first, second] = ["127.0.0.1", "127.0.0.2"].map(|ip| format!("{name} ({ip})"));
    assert_eq!(evener.servers_of("s").into_keys().collect::<Vec<_>>(), [first.clone(), second.clone()]);
    assert_eq!((connections(&first), &evener.server(&second)["max"]), (4, &7.into()));
    assert_eq!(evener.server(&first)["active"], 1);
    assert_eq!(evener.log_count("server_renamed"), 1);

    // The connection to a removed address continues.
    dnsmasq.change(&[("app.test", &HOSTS[1..2])]);
    evener.expect_addresses("s", &at[1..2]);
    assert_eq!(evener.servers_of("s").into_keys().collect::<Vec<_>>(), std::slice::from_ref(&name));
    assert_eq!(who(listen), "b");
    std::io::Write::write_all(&mut open, b"still\n").unwrap();
    assert_eq!(line(&mut open), "still");

    // A single address that changes is the same server at another address, as at a reload.
    dnsmasq.change(&[("app.test", &HOSTS[2..])]);
    evener.expect_addresses("s", &at[2..]);
    assert_eq!(who(listen), "c");
    evener.expect_log("server_moved pool=s");
    assert!(connections(&name) >= 2);
}

#[test]
fn addresses_of_both_families_are_servers() {
    let both = [HOSTS[0], IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &both)]) else { return };
    let port = reserved_port();
    let at = both.map(|ip| SocketAddr::new(ip, port));
    let _servers = [Server::named_on("four", at[0]), Server::named_on("six", at[1])];
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.dns \"app.test:{port}\", resolver = \"{}\" }}",
        dnsmasq.address()
    ));
    evener.expect_addresses("s", &at);
    let listen = evener.port("s");
    let names: BTreeSet<String> = (0..8).map(|_| who(listen)).collect();
    assert_eq!(names, set(&["four", "six"]));
}

#[test]
fn a_name_that_no_longer_exists_keeps_its_addresses() {
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &HOSTS[..1])]) else { return };
    let server = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.dns \"app.test:{}\", resolver = \"{}\" }}",
        server.port,
        dnsmasq.address()
    ));
    dnsmasq.change(&[]);
    evener.expect_log("discovery_failed pool=s");
    assert!(evener.log().contains("no such name"), "{}", evener.log());
    assert_eq!(who(evener.port("s")), "a");
    let text = unwrapped_status(&evener);
    assert!(text.contains("`app.test` does not resolve: no such name"), "{text}");
}

#[test]
fn an_address_of_the_service_itself_is_refused() {
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &HOSTS[..1])]) else { return };
    let listen = reserved_port();
    let server = Server::named_on("a", SocketAddr::new(HOSTS[0], listen));
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.2:{listen}\", \"app.test:{listen}\", resolver = \"{}\" }}",
        dnsmasq.address()
    ));
    dnsmasq.change(&[("app.test", &HOSTS[..2])]);
    evener.expect_log("server_refused pool=s");
    evener.expect_addresses("s", &[SocketAddr::new(HOSTS[0], listen)]);
    let mut stream = std::net::TcpStream::connect(("127.0.0.2", listen)).unwrap();
    assert!(line(&mut stream).starts_with("a "));
    drop(server);
}

#[test]
fn a_found_server_is_verified_by_its_host_name() {
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &HOSTS[..1]), ("other.test", &HOSTS[..1])]) else {
        return;
    };
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    authority.write(&directory, "ca");
    let server = tls_echo("a", &authority.issue(&["app.test"]));
    let pool = |name: &str| {
        format!(
            "pool \"{name}\" {{ discover.dns \"{name}.test:{}\", resolver = \"{}\", tls = {{ ca = \"{}\" }} }}
             service \"s-{name}\" {{ listen = \"127.0.0.1:0\", pool = \"{name}\" }}\n",
            server.port,
            dnsmasq.address(),
            directory.file("ca.crt").display()
        )
    };
    let evener = Evener::run(&(pool("app") + &pool("other")));
    assert_eq!(line(&mut connect(evener.port("s-app"))), "a app.test");
    assert_eq!(line(&mut connect(evener.port("s-other"))), "", "expected the certificate to be refused");
}

#[test]
fn an_open_connection_to_a_found_server_is_not_reused_under_another_host_name() {
    let before: [(&str, &[IpAddr]); 2] = [("app.test", &HOSTS[..1]), ("other.test", &HOSTS[2..])];
    let Some(dnsmasq) = Dnsmasq::start(&before) else { return };
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    authority.write(&directory, "ca");
    let server = https_origin(&authority.issue(&["app.test"]));
    let sources = ["app", "other"].map(|name| format!("discover.dns \"{name}.test:{}\"", server.port));
    let evener = Evener::run_with(
        &format!(
            "pool \"p\" {{ {}, resolver = \"{}\", tls = {{ ca = \"{}\" }} }}
             service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = \"p\" }}",
            sources.join(", "),
            dnsmasq.address(),
            directory.file("ca.crt").display()
        ),
        &["--workers", "1"],
    );
    let at = HOSTS.map(|ip| SocketAddr::new(ip, server.port));
    let mut wire = Wire::to(evener.port("s"));
    let mut status = || wire.ask("GET", "/", "").unwrap().status();
    assert_eq!([status(), status(), status()], [200; 3]);
    let connections = || evener.server(&at[0].to_string())["counters"]["connections"].as_u64().unwrap();
    assert_eq!(connections(), 1, "expected the requests to share a connection");
    // While both names have the address, it belongs to the first source.
    dnsmasq.change(&[("app.test", &HOSTS[..1]), ("other.test", &HOSTS[..1])]);
    evener.expect_addresses("p", &at[..1]);
    assert_eq!(status(), 200);
    dnsmasq.change(&[("app.test", &HOSTS[1..2]), ("other.test", &HOSTS[..1])]);
    evener.expect_addresses("p", &at[..2]);
    assert_eq!(status(), 502, "expected the certificate to be refused for the other name");
}
