//! `clients`: the table of recent clients of a service, the queries of this table, and its lifetime.

use crate::admin::access::{api, error_of, output_of};
use crate::harness::certificates::{ANY, Authority, line_of, shake};
use crate::harness::origin::{Origin, Wire, http_service};
use crate::harness::{Directory, Evener, Server, connect, line, local, wait_until};
use crate::tcp::proxy_protocol::connect_from;
use crate::udp::flows;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;

fn tcp(listen: u16, server: u16, more: &str) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", {more} }}\n")
}

/// The clients that the API reports.
fn clients(evener: &Evener, query: &str) -> Vec<Value> {
    let (status, found) = api(evener, "GET", &format!("/v1/clients{query}"), None);
    assert_eq!(status, 200, "{found}");
    found["clients"].as_array().unwrap().clone()
}

fn addresses(evener: &Evener) -> Vec<String> {
    clients(evener, "").iter().map(|one| one["client"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a client has these numbers of connections, of bytes received and of bytes sent.
fn expect(evener: &Evener, client: &str, expected: [u64; 3]) {
    let mut last = String::new();
    wait_until(&format!("{client} with {expected:?}"), || {
        let all = clients(evener, "");
        last = format!("{all:?}");
        let one = all.iter().find(|one| one["client"] == client)?;
        let counters = ["connects", "bytes_in", "bytes_out"].map(|key| one[key].as_u64().unwrap());
        (counters == expected).then_some(())
    });
}

/// Writes bytes and reads their echo.
fn echo(stream: &mut (impl Read + Write), bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    stream.flush().unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn a_connection_is_counted_while_it_is_open() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp(0, a.port, "clients = 100"));
    let listen = evener.port("s");
    let mut long = connect_from("127.0.0.2", listen);
    assert_eq!(line(&mut long), "a 127.0.0.1");
    expect(&evener, "127.0.0.2", [1, 0, 12]);
    echo(&mut long, b"hello");
    expect(&evener, "127.0.0.2", [1, 5, 17]);
    // More bytes than one receive call returns, so that the relay changes to splice.
    let mut writer = long.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&vec![7; 1 << 20]).unwrap());
    long.read_exact(&mut vec![0; 1 << 20]).unwrap();
    sender.join().unwrap();
    expect(&evener, "127.0.0.2", [1, 5 + (1 << 20), 17 + (1 << 20)]);
    let mut second = connect_from("127.0.0.2", listen);
    line(&mut second);
    expect(&evener, "127.0.0.2", [2, 5 + (1 << 20), 29 + (1 << 20)]);
    let one = &clients(&evener, "?service=s")[0];
    assert_eq!((one["pool"].as_str(), one["service"].as_str()), (Some("s"), Some("s")));
    assert_eq!(one["server"], format!("127.0.0.1:{}", a.port));
}

#[test]
fn clients_behind_a_proxy_and_decrypted_bytes_are_counted() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&format!(
        "service \"p\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", clients = 9, proxy_from = \"127.0.0.0/8\" }}\n\
         service \"t\" {{ listen = \"127.0.0.1:0\", pool = \"p\", clients = 9, tls = {{ {keys} }} }}",
        a.port
    ));
    let plain = evener.port("p");
    let encrypted = evener.port("t");
    let mut proxied = connect(plain);
    proxied.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\nhello").unwrap();
    assert_eq!(line(&mut proxied), "a 127.0.0.1");
    proxied.read_exact(&mut [0; 5]).unwrap();
    expect(&evener, "192.0.2.7", [1, 5, 17]);
    let config = Arc::new(authority.client(ANY));
    let mut client = shake(encrypted, "a.example", &config).unwrap();
    assert_eq!(line_of(&mut client), "a 127.0.0.1");
    echo(&mut client, b"sealed");
    expect(&evener, "127.0.0.1", [1, 6, 18]);
    assert_eq!(clients(&evener, "?service=t").len(), 1);
    assert_eq!(clients(&evener, "?service=t")[0]["pool"], "p");
}

#[test]
fn requests_and_bodies_are_counted_with_the_last_server() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let evener =
        Evener::run(&http_service(0, &[&a, &b], "clients = 9, forwarded = { trust = \"127.0.0.0/8\" }"));
    let listen = evener.port("s");
    let mut wire = Wire::new(connect_from("127.0.0.3", listen));
    for name in ["a", "b"] {
        let response = wire.ask("GET", "/", "X-Forwarded-For: 192.0.2.9\r\n").unwrap();
        assert_eq!(response.text(), name);
    }
    // The client is the connecting proxy, regardless of the forwarded fields. The counted bytes are the header
    // sections of requests, and the bodies of requests and responses.
    let header = "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n".len() as u64;
    expect(&evener, "127.0.0.3", [1, 2 * header, 2]);
    assert_eq!(clients(&evener, "")[0]["server"], format!("127.0.0.1:{}", b.port));
}

#[test]
fn flows_are_counted_once_even_when_they_move() {
    let (a, b) = (flows::Echo::start("a"), flows::Echo::start("b"));
    let evener = Evener::run(&flows::service(0, &[&a, &b], "clients = 9, passive = { down_for = \"1s\" }"));
    let listen = evener.port("u");
    let client = flows::client(listen);
    assert_eq!(flows::ask(&client, "one"), "a one");
    expect(&evener, "127.0.0.1", [1, 3, 5]);
    drop(a);
    wait_until("the flow to move", || flows::ask(&client, "x").starts_with('b').then_some(()));
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.connect(local(listen)).unwrap();
    let one = &clients(&evener, "")[0];
    assert_eq!(
        (one["connects"].as_u64(), one["server"].as_str().unwrap()),
        (Some(1), &*format!("127.0.0.1:{}", b.port))
    );
}

#[test]
fn the_table_is_bounded_and_keeps_the_newest_clients_across_reloads() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp(0, a.port, "clients = 3"));
    let listen = evener.port("s");
    // The end of a connection also counts as activity of its client, and another worker may notice the end
    // late. So the next client connects after the end.
    let visit = |last: u8, remaining: u64| {
        assert_eq!(line(&mut connect_from(&format!("127.0.0.{last}"), listen)), "a 127.0.0.1");
        wait_until("the end of the connection", || {
            (evener.status()["services"][0]["connections_active"] == remaining).then_some(())
        });
    };
    (1..=4).for_each(|last| visit(last, 0));
    let mut open = connect_from("127.0.0.9", listen);
    line(&mut open);
    let named = |last: &[u8]| last.iter().map(|last| format!("127.0.0.{last}")).collect::<Vec<_>>();
    assert_eq!(addresses(&evener), named(&[9, 4, 3]));
    evener.reload(&tcp(0, a.port, "clients = 3, connections_max = 99"));
    assert_eq!(addresses(&evener), named(&[9, 4, 3]));
    evener.reload(&tcp(0, a.port, "clients = 10000"));
    assert_eq!(addresses(&evener), named(&[9, 4, 3]));
    visit(5, 1);
    evener.reload(&tcp(0, a.port, "clients = 2"));
    assert_eq!(addresses(&evener), named(&[5, 9]));
    // A connection that stayed open is still counted for its client.
    echo(&mut open, b"hello");
    expect(&evener, "127.0.0.9", [1, 5, 17]);
    assert_eq!(addresses(&evener), named(&[9, 5]));
    evener.reload(&tcp(0, a.port, ""));
    assert!(addresses(&evener).is_empty());
    echo(&mut open, b"hello");
}

/// Returns a number of a client in the table.
fn number(evener: &Evener, client: &str, key: &str) -> u64 {
    let all = clients(evener, "");
    let one =
        all.iter().find(|one| one["client"] == client).unwrap_or_else(|| panic!("no {client} in {all:?}"));
    one[key].as_u64().unwrap()
}

#[test]
fn denied_clients_are_recorded() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let config = |denied: &str| {
        format!(
            "pool \"bad\" {{ \"127.0.0.1:{}\" }}\n{}",
            b.port,
            tcp(0, a.port, &format!("clients = 9, deny = \"127.0.0.2\", denied = \"{denied}\""))
        )
    };
    let evener = Evener::run(&config("drop"));
    let listen = evener.port("s");
    assert_eq!(line(&mut connect_from("127.0.0.2", listen)), "");
    expect(&evener, "127.0.0.2", [0, 0, 0]);
    assert_eq!(number(&evener, "127.0.0.2", "denied"), 1);
    assert_eq!(clients(&evener, "")[0]["server"], Value::Null);
    evener.reload(&config("bad"));
    assert!(line(&mut connect_from("127.0.0.2", listen)).starts_with('b'));
    expect(&evener, "127.0.0.2", [1, 0, 12]);
    assert_eq!(number(&evener, "127.0.0.2", "denied"), 2);
    assert_eq!(clients(&evener, "")[0]["pool"], "bad");
    let text = output_of(&evener, &["clients"]);
    assert!(text.lines().next().unwrap().contains("DENIED"), "{text}");
    assert!(
        !text.contains("LIMITED") && !text.contains("REQS"),
        "columns without numbers are omitted: {text}"
    );
}

#[test]
fn a_proxy_is_not_counted_as_refused_for_the_clients_that_it_reports() {
    let a = Origin::named("a");
    let refused =
        "clients = 9, forwarded = { trust = \"127.0.0.0/8\" }, deny = \"192.0.2.0/24\", denied = \"reject\"";
    let evener = Evener::run(&http_service(0, &[&a], refused));
    let mut proxy = Wire::new(connect_from("127.0.0.3", evener.port("s")));
    let response = proxy.ask("GET", "/", "X-Forwarded-For: 192.0.2.9\r\n").unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(number(&evener, "127.0.0.3", "requests"), 1);
    assert_eq!(number(&evener, "127.0.0.3", "denied"), 0);
    assert_eq!(evener.service_counter("s", "denied"), 1);
}

#[test]
fn a_client_that_floods_is_first_by_rate() {
    let a = Origin::named("a");
    let limits = "clients = 100, per_client = { request_rate = \"10/h\", exceeded = \"reject\" }";
    let evener = Evener::run(
        &http_service(0, &[&a], limits).replace("\"127.0.0.1:0\"", "{ \"127.0.0.1:0\", \"[::1]:0\" }"),
    );
    let status = evener.status();
    let address = |number: usize| status["services"][0]["listen"][number].as_str().unwrap().to_owned();
    let listen: std::net::SocketAddr = address(0).parse().unwrap();
    for request in 0..60 {
        // A refused request ends its connection.
        let mut flood = Wire::new(connect_from("127.0.0.3", listen.port()));
        let response = flood.ask("GET", "/", "").unwrap();
        assert!(
            response.header.contains(if request < 10 { " 200 " } else { " 429 " }),
            "{}",
            response.header
        );
    }
    for address in ["127.0.0.4", "127.0.0.5"] {
        let mut quiet = Wire::new(connect_from(address, listen.port()));
        quiet.ask("GET", "/", "").unwrap();
    }
    let mut other = Wire::new(TcpStream::connect(address(1)).unwrap());
    other.ask("GET", "/", "").unwrap();
    let by_rate = clients(&evener, "?sort=rate");
    assert_eq!(by_rate[0]["client"], "127.0.0.3", "{by_rate:?}");
    let counts = ["connects", "requests", "limited", "denied"].map(|key| by_rate[0][key].as_u64().unwrap());
    assert_eq!(counts, [60, 60, 50, 0]);
    assert!(by_rate[0]["rate"].as_f64() > by_rate[1]["rate"].as_f64(), "{by_rate:?}");
    assert!(by_rate.iter().any(|one| one["client"] == "::1"), "{by_rate:?}");
    let output = evener.run_command(&["clients", "--sort", "rate", "--limit", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("REQS") && lines[0].contains("LIMITED"), "{text}");
    assert!(lines[1].starts_with("127.0.0.3") && lines.len() == 2, "{text}");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "1 of 4 are shown; 3 more with a higher --limit N\n"
    );
    let (status, body) = api(&evener, "GET", "/v1/clients?sort=size", None);
    assert_eq!(status, 422);
    assert!(body["errors"].to_string().contains("recent, rate, bytes, connections"), "{body}");
}

#[test]
fn the_command_lists_clients_and_reports_errors() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "{}service \"plain\" {{ listen = \"127.0.0.1:0\", pool = \"s\" }}",
        tcp(0, a.port, "clients = 9")
    ));
    let listen = evener.port("s");
    let first_line = |mut stream: TcpStream| line(&mut stream);
    (2..=4).for_each(|last| drop(first_line(connect_from(&format!("127.0.0.{last}"), listen))));
    expect(&evener, "127.0.0.4", [1, 0, 12]);
    let text = output_of(&evener, &["clients", "s", "--since", "1h"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>()[..3], ["CLIENT", "RATE", "OPENED"]);
    assert!(
        lines[1].contains("127.0.0.4") && lines[1].contains(&format!("s/127.0.0.1:{}", a.port)),
        "{text}"
    );
    assert_eq!(lines.len(), 4);
    let two: Value =
        serde_json::from_str(&output_of(&evener, &["clients", "--json", "--limit", "2"])).unwrap();
    assert_eq!((two["total"].as_u64(), two["clients"].as_array().unwrap().len()), (Some(3), 2));
    assert!(error_of(&evener, &["clients", "plain"]).contains("does not record clients"));
    assert!(error_of(&evener, &["clients", "missing"]).contains("there is no service `missing`"));
    assert_eq!(api(&evener, "GET", "/v1/clients?limit=100001", None).0, 422);
    assert_eq!(api(&evener, "GET", "/v1/clients?limit=few", None).0, 422);
    wait_until("no client to be active within the last 0 s", || {
        let (_, found) = api(&evener, "GET", "/v1/clients?since=0", None);
        (found["total"] == 0).then_some(())
    });
}
