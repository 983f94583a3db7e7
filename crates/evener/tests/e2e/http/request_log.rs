//! `request_log`: lines in the format of pen, written to files that can be rotated or sent as datagrams. The
//! formats of complete requests are in `request_log/at_end.rs`.

mod at_end;
mod upgrades;

use crate::harness::certificates::{ANY, Authority, line_of, shake};
use crate::harness::origin::{Origin, Wire, http_service};
use crate::harness::{DEADLINE, Directory, Evener, Server, connect, line, wait_until};
use crate::http::http2::client::{Front, within};
use crate::tcp::proxy_protocol::connect_from;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

fn tcp(listen: u16, server: u16, log: &Path, more: &str) -> String {
    let log = log.display();
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", request_log = \"{log}\", {more} }}\n"
    )
}

/// The key of a log in a named format, or with placeholders.
fn in_format(log: &Path, format: &str) -> String {
    format!("request_log = {{ file = \"{}\", format = [[{format}]] }}", log.display())
}

/// Waits until a log has this many lines, and returns them without their times.
fn lines(log: &Path, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(log).unwrap_or_default();
    let text = wait_until("the lines", || {
        let text = read();
        let whole = text.is_empty() || text.ends_with('\n');
        (whole && text.lines().count() >= count).then_some(text)
    });
    assert_eq!(text.lines().count(), count, "{text}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let timeless = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let (client, epoch, rest) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        assert!((now - 60..=now).contains(&epoch.parse().unwrap()), "{line}");
        format!("{client} {rest}")
    };
    text.lines().map(timeless).collect()
}

/// Writes bytes and reads their echo, so that the next write is received separately.
fn echo(stream: &mut (impl Read + Write), bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    stream.flush().unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn each_received_piece_of_a_plain_connection_is_logged_as_a_line() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let log = directory.file("requests.log");
    let evener = Evener::run(&tcp(0, a.port, &log, ""));
    let listen = evener.port("s");
    let mut client = connect_from("127.0.0.2", listen);
    line(&mut client);
    let long = "x".repeat(300);
    for piece in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "gr\u{fc}n\n", "\nempty", &long] {
        echo(&mut client, piece.as_bytes());
    }
    let expected =
        ["GET / HTTP/1.1", "gr..n", "", &long[..100]].map(|text| format!("127.0.0.2 127.0.0.1 {text}"));
    assert_eq!(lines(&log, 4), expected);
    assert_eq!(evener.service_counter("s", "log_dropped"), 0);
}

#[test]
fn bulk_data_is_logged_piece_by_piece_and_arrives_unchanged() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let log = directory.file("requests.log");
    let evener = Evener::run(&tcp(0, a.port, &log, ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    let bytes: Vec<u8> = "0123456789ABCDE\n".bytes().cycle().take(8 << 20).collect();
    let (mut writer, sent) = (client.try_clone().unwrap(), bytes.clone());
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == bytes);
    // A piece has at most 64 KiB. If the relay had changed to splice, there would be only a few lines.
    let pieces = bytes.len() / 65_536;
    wait_until("a line for each piece", || {
        let dropped = evener.service_counter("s", "log_dropped") as usize;
        (fs::read_to_string(&log).unwrap().lines().count() + dropped >= pieces).then_some(())
    });
}

#[test]
fn bytes_behind_a_proxy_header_and_decrypted_bytes_are_logged() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let (authority, log, tls_log) =
        (Authority::new("test ca"), directory.file("p.log"), directory.file("t.log"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&format!(
        "{}{}",
        tcp(0, a.port, &log, "proxy_from = \"127.0.0.0/8\""),
        tcp(0, a.port, &tls_log, &format!("tls = {{ {keys} }}")).replace("\"s\"", "\"t\""),
    ));
    let plain = evener.port("s");
    let encrypted = evener.port("t");
    let mut client = connect(plain);
    client.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\nfirst").unwrap();
    line(&mut client);
    client.read_exact(&mut [0; 5]).unwrap();
    echo(&mut client, b"second\r\n");
    assert_eq!(lines(&log, 2), ["192.0.2.7 127.0.0.1 first", "192.0.2.7 127.0.0.1 second"]);
    let mut client = shake(encrypted, "a.example", &Arc::new(authority.client(ANY))).unwrap();
    line_of(&mut client);
    echo(&mut client, b"secret\r\nmore");
    assert_eq!(lines(&tls_log, 1), ["127.0.0.1 127.0.0.1 secret"]);
}

#[test]
fn each_request_that_is_sent_to_a_server_is_logged_as_a_line() {
    let (origin, directory) = (Origin::named("a"), Directory::new());
    let log = directory.file("requests.log");
    let more = "health = \"/health\", forwarded = { trust = \"127.0.0.0/8\" }";
    let evener = Evener::run(&http_service(0, &[&origin], &format!("{}, {more}", in_format(&log, "pen"))));
    let listen = evener.port("s");
    let mut wire = Wire::to(listen);
    wire.ask("GET", "/a?b=c", "").unwrap();
    wire.ask("POST", "/p", "Content-Length: 2\r\n\r\n").unwrap();
    let mut wire = Wire::new(connect_from("127.0.0.3", listen));
    wire.ask("GET", "/health", "").unwrap();
    wire.ask("GET", "/t", "X-Forwarded-For: 192.0.2.9\r\n").unwrap();
    wire.send("GET /old HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    wire.response("GET").unwrap();
    let expected = [
        "127.0.0.1 127.0.0.1 GET /a?b=c HTTP/1.1",
        "127.0.0.1 127.0.0.1 POST /p HTTP/1.1",
        "192.0.2.9 127.0.0.1 GET /t HTTP/1.1",
        "127.0.0.3 127.0.0.1 GET /old HTTP/1.0",
    ];
    assert_eq!(lines(&log, 4), expected);
    assert_eq!(evener.service_counter("s", "requests"), 5);
    let long_path = "/".to_owned() + &"x".repeat(5000);
    Wire::to(listen).ask("GET", &long_path, "").unwrap();
    assert_eq!(lines(&log, 5)[4].len(), "127.0.0.1 127.0.0.1 ".len() + 2048);
}

#[test]
fn requests_of_http2_are_logged_with_their_version() {
    let (origin, directory) = (Origin::named("a"), Directory::new());
    let log = directory.file("requests.log");
    let front = Front::run(&[&origin], &in_format(&log, "pen"));
    within(async {
        let client = front.client().await;
        client.get("/one").await;
        client.put("PUT", "/two", &[], "body".into()).await.unwrap();
    });
    let expected = ["127.0.0.1 127.0.0.1 GET /one HTTP/2.0", "127.0.0.1 127.0.0.1 PUT /two HTTP/2.0"];
    assert_eq!(lines(&log, 2), expected);
}

#[test]
fn a_unix_server_is_logged_by_its_path() {
    let directory = Directory::new();
    let (log, path) = (directory.file("requests.log"), directory.file("a.sock"));
    let server = UnixListener::bind(&path).unwrap();
    let log_text = log.display();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"{}\", request_log = \"{log_text}\" }}",
        path.display()
    ));
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"hello").unwrap();
    let (mut stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(lines(&log, 1), [format!("127.0.0.1 {} hello", path.display())]);
}

#[test]
fn a_reload_reopens_a_log_that_was_renamed() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let (log, moved) = (directory.file("requests.log"), directory.file("requests.log.1"));
    let config = tcp(0, a.port, &log, "");
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    let mut log_text = |text: &str| echo(&mut client, text.as_bytes());
    log_text("one");
    lines(&log, 1);
    fs::rename(&log, &moved).unwrap();
    log_text("two");
    assert_eq!(lines(&moved, 2)[1], "127.0.0.1 127.0.0.1 two", "the log is not reopened before the reload");
    // The configuration is the same. Open connections are logged to the new file.
    evener.reload(&config);
    log_text("three");
    assert_eq!(lines(&log, 1), ["127.0.0.1 127.0.0.1 three"]);
    assert_eq!(lines(&moved, 2).len(), 2);
    // The log is rotated even when the configuration is invalid.
    fs::rename(&log, &moved).unwrap();
    evener.write_config("nonsense");
    evener.signal("HUP");
    evener.expect_log("reload_failed");
    log_text("four");
    assert_eq!(lines(&log, 1), ["127.0.0.1 127.0.0.1 four"]);
}

#[test]
fn a_reload_adds_changes_and_removes_a_log_and_rejects_a_log_that_is_not_writable() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let (log, other) = (directory.file("requests.log"), directory.file("other.log"));
    let without = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let evener = Evener::run(&without);
    let listen = evener.port("s");
    let log_text = |text: &str| {
        let mut client = connect(listen);
        line(&mut client);
        echo(&mut client, text.as_bytes());
    };
    log_text("none");
    evener.reload(&tcp(0, a.port, &log, ""));
    log_text("one");
    evener.reload(&tcp(0, a.port, &other, ""));
    log_text("two");
    assert_eq!(lines(&log, 1), ["127.0.0.1 127.0.0.1 one"]);
    assert_eq!(lines(&other, 1), ["127.0.0.1 127.0.0.1 two"]);
    let nowhere = directory.file("no/such/directory.log");
    evener.write_config(&tcp(0, a.port, &nowhere, "connections_max = 1"));
    evener.signal("HUP");
    evener.expect_log("reload_failed");
    evener.expect_log("request_log: ");
    log_text("three");
    assert_eq!(
        lines(&other, 2)[1],
        "127.0.0.1 127.0.0.1 three",
        "the rejected configuration changed the log"
    );
    evener.reload(&without);
    log_text("four");
    let service = &evener.status()["services"][0];
    assert!(service["counters"]["connections"].as_u64() >= Some(5));
    assert_eq!((lines(&log, 1).len(), lines(&other, 2).len()), (1, 2));
}

#[test]
fn a_collector_gets_a_datagram_for_each_line() {
    let a = Server::named("a");
    let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = collector.local_addr().unwrap().port();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", request_log = {{ udp = \"127.0.0.1:{port}\" }} }}",
        a.port
    ));
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    let mut datagram_for = |sent: &[u8]| {
        echo(&mut client, sent);
        let mut datagram = [0; 2000];
        let length = collector.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    };
    assert_eq!(datagram_for(b"GET / HTTP/1.0\r\n\r\n"), "+ 127.0.0.1 127.0.0.1 GET / HTTP/1.0\n");
    let long = datagram_for(&[b'y'; 3000]);
    assert_eq!((long.len(), long.ends_with("y\n")), (1024, true));
}

#[test]
fn clients_do_not_wait_for_the_reader_of_the_log() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let pipe = directory.file("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // The pipe has a reader, which reads nothing.
    let reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let evener = Evener::run_with(&tcp(0, a.port, &pipe, ""), &["--workers", "1"]);
    let listen = evener.port("s");
    let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(listen)).collect();
    clients.iter_mut().for_each(|client| drop(line(client)));
    let piece = [b'x'; 120];
    wait_until("lines to be dropped", || {
        for _ in 0..500 {
            clients.iter_mut().for_each(|client| echo(client, &piece));
        }
        (evener.service_counter("s", "log_dropped") > 0).then_some(())
    });
    drop(reader);
}
