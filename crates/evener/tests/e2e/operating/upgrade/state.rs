//! State that passes to the new process: flows with their servers, cached responses, access rules, changes of operators, and
//! the address of the API.

use super::upgraded;
use crate::admin::remote::{api_port, write_tokens};
use crate::harness::dns::{self, Nameserver};
use crate::harness::{Directory, Evener, Server, connect, reserved_port, wait_until, who};
use crate::udp::flows::client;
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// A datagram service whose server is driven by the test.
struct Silent(UdpSocket);

impl Silent {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Receives a datagram. Returns its text and its sender.
    fn receive(&self) -> (String, SocketAddr) {
        let mut buffer = [0; 100];
        let (length, from) = self.0.recv_from(&mut buffer).unwrap();
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
    }
}

#[test]
fn flows_keep_their_servers_and_later_responses_arrive() {
    for (listen, more) in
        [("127.0.0.1", ""), ("0.0.0.0", ""), ("127.0.0.1", ", spread = 1, send_proxy = 'v2'")]
    {
        let (server, port) = (Silent::new(), reserved_port());
        let config = format!(
            "service 'u' {{ protocol = 'udp', listen = '{listen}:{port}', '127.0.0.1:{}'{more} }}",
            server.port()
        );
        let evener = Evener::run_with(&config, &["--workers", "2"]);
        let clients: Vec<UdpSocket> = (0..20).map(|_| client(port)).collect();
        let mut flows = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            client.send(number.to_string().as_bytes()).unwrap();
            flows.push(server.receive());
        }
        let before = evener.service_counter("u", "flows");
        let _new = upgraded(&evener);
        let mut buffer = [0; 100];
        for (number, (client, (first, flow))) in clients.iter().zip(&flows).enumerate() {
            assert!(first.ends_with(&number.to_string()));
            server.0.send_to(b"late", flow).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 4, "{listen}{more}: {number}");
            client.send(b"again").unwrap();
            let (text, from) = server.receive();
            assert!(
                text.ends_with("again") && from == *flow,
                "{listen}{more}: {number}: {text:?} {from} {flow}"
            );
            // A header of the PROXY protocol is the same.
            assert_eq!(text.len() - 5, first.len() - number.to_string().len());
        }
        assert_eq!(evener.service_counter("u", "flows"), before);
        wait_until("the old process to end", || (!super::runs(evener.pid())).then_some(()));
        server.0.send_to(b"later", flows[3].1).unwrap();
        assert_eq!(clients[3].recv(&mut buffer).unwrap(), 5);
    }
}

#[test]
fn cached_responses_and_access_rules_pass_to_the_new_process() {
    let (nameserver, a) = (Nameserver::of(7), Server::named("a"));
    let config = format!(
        "service 'dns' {{ protocol = 'dns', listen = '127.0.0.1:0', '{}', dns = {{ cache = true }} }}\n\
         service 's' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n",
        nameserver.name(),
        a.port
    );
    let evener = Evener::run(&config);
    let (dns, s) = (evener.port("dns"), evener.port("s"));
    for number in 0..50 {
        let query = dns::query(number, &format!("n{number}.example"), 1);
        assert_eq!(dns::host(&dns::ask(dns, &query)), 7);
    }
    assert!(evener.run_command(&["deny", "s", "127.0.0.1", "--for", "1h"]).status.success());
    let (sent, first) = (nameserver.count(), upgraded(&evener));
    let _second = upgraded(&evener);
    for number in 0..50 {
        let response = dns::ask(dns, &dns::query(number + 100, &format!("N{number}.example"), 1));
        assert_eq!((dns::host(&response), dns::id(&response)), (7, number + 100));
    }
    assert_eq!(nameserver.count(), sent);
    assert_eq!(connect(s).read(&mut [0]).unwrap_or(0), 0);
    let rules = String::from_utf8(evener.run_command(&["access"]).stdout).unwrap();
    assert!(rules.contains("127.0.0.1") && rules.contains("59m"), "{rules}");
    drop(first);
}

#[test]
fn the_address_of_the_api_and_changes_of_operators_pass_to_the_new_process() {
    let (a, b, directory) = (Server::named("a"), Server::named("b"), Directory::new());
    let tokens = write_tokens(&directory, "tokens", "ops 0123456789abcdef-ops\n", 0o600);
    let state = directory.file("state.json");
    let config = format!(
        "admin {{ listen = '127.0.0.1:0', token_file = '{tokens}', state_file = '{}' }}\n\
         service 's' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n",
        state.display(),
        a.port
    );
    let evener = Evener::run(&config);
    let (api, s) = (api_port(&evener), evener.port("s"));
    let over_tcp = || {
        let fields = ["Host: localhost", "Authorization: Bearer 0123456789abcdef-ops"];
        crate::admin::remote::request(api, "GET", "/v1/status", &fields)
    };
    assert!(over_tcp().starts_with("HTTP/1.1 200"));
    let added = evener.run_command(&["add", "s", &format!("127.0.0.1:{}", b.port), "--name", "b"]);
    assert!(added.status.success(), "{added:?}");
    let new = upgraded(&evener);
    assert!(over_tcp().contains(&format!("\"pid\":{}", new.0)));
    let mut seen: Vec<String> = (0..10).map(|_| who(s)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["a", "b"]);
    wait_until("the old process to end", || (!super::runs(evener.pid())).then_some(()));
    assert!(over_tcp().starts_with("HTTP/1.1 200"));
}

#[test]
fn an_instance_that_would_lose_changes_of_operators_refuses_to_be_upgraded() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::one_liner(&["tcp", "127.0.0.1:0", &format!("127.0.0.1:{}", a.port)]);
    let pool = evener.status()["pools"][0]["name"].as_str().unwrap().to_owned();
    assert!(evener.run_command(&["add", &pool, &format!("127.0.0.1:{}", b.port)]).status.success());
    let refused = super::upgrade(&evener, &[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("evener save"), "{text}");
    assert!(evener.run_command(&["remove", &format!("{pool}/127.0.0.1:{}", b.port)]).status.success());
    drop(upgraded(&evener));
}
