//! Logs of connections, queries and flows, one line each.

use crate::harness::dns::{A, Nameserver, ask, ask_tcp, query, service};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, reserved_port, wait_until, who};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::os::unix::net::UnixDatagram;

/// Returns the complete lines of the log.
fn lines(evener: &Evener) -> Vec<String> {
    let text = fs::read_to_string(evener.file("access.log")).unwrap_or_default();
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete.lines().map(str::to_owned).collect()
}

/// Waits for a number of lines in JSON.
fn records(evener: &Evener, count: usize) -> Vec<Value> {
    let lines =
        wait_until("the lines of the log", || Some(lines(evener)).filter(|lines| lines.len() >= count));
    assert_eq!(lines.len(), count, "{lines:?}");
    lines.iter().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A TCP service with a log, and more settings.
fn tcp(server: &Server, log: &str) -> Evener {
    Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, {log} }}",
        server.port
    ))
}

const JSON: &str = "request_log = { file = \"access.log\", format = \"json\" }";

/// A server that sends back what it receives.
fn echo() -> Server {
    Server::start(|mut stream| {
        let mut bytes = [0; 1024];
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..read]).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_connection_has_one_record_when_it_ends() {
    let server = echo();
    let evener = tcp(&server, JSON);
    let mut stream = connect(evener.port("s"));
    let port = stream.local_addr().unwrap().port();
    stream.write_all(b"hello").unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).unwrap();
    assert!(lines(&evener).is_empty(), "the connection is open");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut echoed).unwrap(), 0);
    let record = &records(&evener, 1)[0];
    let of = |name: &str| record[name].clone();
    assert_eq!(
        (of("service"), of("client"), of("client_port")),
        ("s".into(), "127.0.0.1".into(), port.into())
    );
    assert_eq!((of("pool"), of("server"), of("retries")), ("s".into(), "a".into(), 0.into()), "{record}");
    assert_eq!((of("request_bytes"), of("response_bytes")), (5.into(), 5.into()), "{record}");
    let time = |name: &str| record[name].as_f64().unwrap_or_else(|| panic!("{name} of {record}"));
    assert!(time("connected") <= time("first_byte") && time("first_byte") <= time("duration"), "{record}");
    assert_eq!((of("reason"), of("method"), of("status")), (Value::Null, Value::Null, Value::Null));
}

#[test]
fn the_record_of_a_connection_without_a_server_has_the_reason() {
    let (server, closed) = (echo(), reserved_port());
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{closed}\", name = \"a\" }}, {{ \"127.0.0.1:{closed}\", name = \"b\" }}, {JSON} }}
         service \"t\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", deny = \"127.0.0.0/8\", {JSON} }}",
        server.port
    ));
    assert_eq!(who(evener.port("s")), "");
    let record = &records(&evener, 1)[0];
    assert_eq!((&record["reason"], &record["retries"]), (&"connect_failed".into(), &1.into()), "{record}");
    assert!(["a", "b"].contains(&record["server"].as_str().unwrap()), "{record}");
    assert_eq!(who(evener.port("t")), "");
    let record = &records(&evener, 2)[1];
    assert_eq!((&record["reason"], &record["server"]), (&"client_denied".into(), &Value::Null), "{record}");
}

#[test]
fn formats_are_for_people_or_with_placeholders() {
    let server = Server::named("a");
    let log = |format: &str| format!("request_log = {{ file = \"access.log\", format = '{format}' }}");
    let evener = tcp(&server, &log("text"));
    assert_eq!(who(evener.port("s")), "a");
    let line = wait_until("the line", || lines(&evener).pop());
    for part in [
        " 127.0.0.1 port=",
        " duration=0.",
        " connected=0.",
        " bytes_in=0 ",
        " service=s pool=s server=a retries=0 reason=-",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let evener = tcp(&server, &log("{client} -> {server_address} {bytes_in}/{bytes_out}"));
    assert_eq!(who(evener.port("s")), "a");
    let line = wait_until("the line", || lines(&evener).pop());
    assert!(line.starts_with(&format!("127.0.0.1 -> 127.0.0.1:{} 0/", server.port)), "{line}");
}

#[test]
fn a_sample_has_its_share_of_the_connections() {
    let server = Server::named("a");
    let log = "request_log = { file = \"access.log\", format = \"json\", sample = 0.25 }";
    let evener = tcp(&server, log);
    (0..16).for_each(|_| assert_eq!(who(evener.port("s")), "a"));
    wait_until("all connections to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
    assert_eq!(records(&evener, 4).len(), 4);
}

#[test]
fn the_system_log_gets_lines_with_its_header() {
    let server = Server::named("a");
    let directory = Directory::new();
    let path = directory.file("log.sock");
    let daemon = UnixDatagram::bind(&path).unwrap();
    daemon.set_read_timeout(Some(DEADLINE)).unwrap();
    let evener = tcp(&server, &format!("request_log = {{ syslog = \"{}\" }}", path.display()));
    let received = |daemon: &UnixDatagram| {
        let mut bytes = [0; 2048];
        let length = daemon.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    assert_eq!(who(evener.port("s")), "a");
    let line = received(&daemon);
    assert!(
        line.starts_with(&format!("<30>evener[{}]: ", evener.pid())) && line.contains("server=a"),
        "{line}"
    );
    // The daemon is started again.
    drop(daemon);
    fs::remove_file(&path).unwrap();
    let daemon = UnixDatagram::bind(&path).unwrap();
    daemon.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(who(evener.port("s")), "a");
    assert!(received(&daemon).contains("server=a"));
}

#[test]
fn a_flow_has_one_record_when_it_ends() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"udp\", idle_timeout = \"300ms\", \
         {{ \"{}\", name = \"a\" }}, {JSON} }}",
        server.local_addr().unwrap()
    ));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"hello", ("127.0.0.1", evener.port("s"))).unwrap();
    let mut bytes = [0; 16];
    let (length, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"hello");
    server.send_to(b"bye", from).unwrap();
    assert_eq!(client.recv(&mut bytes).unwrap(), 3);
    let record = &records(&evener, 1)[0];
    assert_eq!(record["client_port"], client.local_addr().unwrap().port());
    assert_eq!(
        (&record["server"], &record["request_bytes"], &record["response_bytes"]),
        (&"a".into(), &5.into(), &3.into())
    );
    assert!(record["first_byte"].as_f64() <= record["duration"].as_f64(), "{record}");
}

#[test]
fn lines_go_to_a_new_file_after_a_rotation() {
    let server = Server::named("a");
    let evener = tcp(&server, JSON);
    assert_eq!(who(evener.port("s")), "a");
    records(&evener, 1);
    fs::rename(evener.file("access.log"), evener.file("access.log.1")).unwrap();
    evener.signal("USR1");
    wait_until("the new file", || evener.file("access.log").exists().then_some(()));
    assert_eq!(who(evener.port("s")), "a");
    records(&evener, 1);
}

#[test]
fn a_query_has_one_record() {
    let server = Nameserver::of(7);
    let evener = Evener::run(&service(0, &[&server], &format!("dns = {{ cache = true }}, {JSON}")));
    let listen = evener.port("d");
    ask(listen, &query(1, "www.example", A));
    ask(listen, &query(2, "www.example", A));
    ask_tcp(listen, &query(3, "mail.example", A));
    let records = records(&evener, 3);
    for (record, (target, is_cached)) in
        records.iter().zip([("www.example.", false), ("www.example.", true), ("mail.example.", false)])
    {
        let of = |name: &str| record[name].clone();
        assert_eq!(
            (of("method"), of("target"), of("status")),
            ("A".into(), target.into(), 0.into()),
            "{record}"
        );
        assert_eq!(of("server").is_null(), is_cached, "{record}");
        assert_eq!(of("request_bytes"), query(1, target.trim_end_matches('.'), A).len());
        assert!(of("response_bytes").as_u64() > of("request_bytes").as_u64(), "{record}");
    }
}

#[test]
fn the_record_of_a_query_without_a_response_of_a_server_has_the_reason() {
    let server = Nameserver::silent();
    let evener = Evener::run(&service(
        0,
        &[&server],
        &format!("dns = {{ query_timeout = \"50ms\", retries = 0 }}, {JSON}"),
    ));
    ask(evener.port("d"), &query(1, "www.example", A));
    let record = &records(&evener, 1)[0];
    assert_eq!(record["status"], 2, "{record}");
    assert!(record["reason"].is_string() && record["server"].is_string(), "{record}");
}
