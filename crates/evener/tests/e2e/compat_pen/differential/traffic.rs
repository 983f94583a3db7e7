//! Connections: half-closed sides, addresses, HTTP, logs, status pages, and commands about connections.

use super::differences::differs;
use super::programs::{BOTH, Implementation, Pen, alike, name};
use crate::harness::{DEADLINE, Directory, Server, have, line, local, reserved_port, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

fn to(server: &Server) -> Vec<String> {
    vec![format!("127.0.0.1:{}", server.port)]
}

fn rest(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Starts a server that reads until the client shuts down its write side, and then sends the received bytes
/// after `got`.
fn reader() -> Server {
    Server::start(|mut stream| {
        let sent = rest(&mut stream);
        let _ = stream.write_all(format!("got {sent}").as_bytes());
    })
}

/// Returns the bytes that a client receives after the client has shut down its write side, and the bytes that a
/// server receives after the server has shut down its write side.
fn half_closed(pen: &Pen, ended: &TcpListener) -> (String, String) {
    let mut client = pen.connect();
    let first = client.write_all(b"all").and_then(|()| client.shutdown(Shutdown::Write));
    first.unwrap();
    let down = rest(&mut client);
    pen.run(&[&format!("server 0 port {}", ended.local_addr().unwrap().port())]);
    let mut client = pen.connect();
    let (mut server, _) = ended.accept().unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), "");
    let _ = client.write_all(b"late");
    let _ = client.shutdown(Shutdown::Write);
    (down, rest(&mut server))
}

#[test]
fn half_closed_connections_continue_unless_fast_close_is_set() {
    if !have("pen") {
        return;
    }
    let server = reader();
    let ended = TcpListener::bind(local(0)).unwrap();
    for (how, up, down) in
        [("off", "got all", "late"), ("up", "got all", ""), ("down", "", "late"), ("both", "", "")]
    {
        alike("-P", &to(&server), (up.to_owned(), down.to_owned()), |pen| {
            pen.run(&[&format!("tcp_fastclose {how}")]);
            half_closed(pen, &ended)
        });
    }
}

#[test]
fn servers_see_the_configured_source_address() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let source = |pen: &Pen| line(&mut pen.connect());
    alike("", &to(&server), ["a 127.0.0.1", "a 127.0.0.9"].map(str::to_owned), |pen| {
        let before = source(pen);
        pen.run(&["source 127.0.0.9"]);
        [before, source(pen)]
    });
    differs("no-source", "", &to(&server), "a 127.0.0.9".to_owned(), "a 127.0.0.1".to_owned(), |pen| {
        pen.run(&["source 127.0.0.9", "no source"]);
        source(pen)
    });
}

#[test]
fn both_programs_listen_on_a_unix_socket() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in BOTH {
        let pen = Pen::listening(by, "-P", 0, "./socket", &to(&server));
        let mut client = UnixStream::connect(pen.path("socket")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), "a 127.0.0.1\nhello", "{by:?}");
        assert_eq!(pen.response("listen"), "./socket\n");
        // Debian's pen prints uninitialized memory as the address, often an empty text.
        let recent = pen.response("recent");
        let is_known = by == Implementation::Debian || recent.starts_with("127.0.0.1 ");
        assert!(is_known && recent.contains(" connects 1 "), "unix-clients: {by:?}: {recent}");
    }
}

#[test]
fn the_listen_port_changes_while_pen_runs() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("", &to(&server), (true, true, true), |pen| {
        let mut old = pen.connect();
        assert_eq!(name(&mut old), "a");
        let port = reserved_port();
        let response = format!("127.0.0.1:{port}\n");
        assert_eq!(pen.response(&format!("listen 127.0.0.1:{port}")), response);
        assert_eq!(pen.response("listen"), response);
        let new = wait_until("the new port", || TcpStream::connect(local(port)).ok());
        new.set_read_timeout(Some(DEADLINE)).unwrap();
        let closed =
            wait_until("the old port to close", || TcpStream::connect(pen.address()).err().map(|_| true));
        old.write_all(b"still\n").unwrap();
        (name(&mut { new }) == "a", closed, line(&mut old) == "still")
    });
}

#[test]
fn the_control_port_shows_a_connection_and_closes_it() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let expected = "Connection 0:|state = 2|downfd = DOWN, upfd = UP|client = 0, server = 0|pend = PEND|\
        Socket UP belongs to connection 0|Socket DOWN belongs to connection 0|Forcibly closing connection 0|closed";
    alike("", &to(&server), expected.to_owned(), |pen| {
        let mut client = pen.connect();
        assert_eq!(name(&mut client), "a");
        let reported = pen.response("connection 0");
        let number = |name: &str| {
            let after = reported.split(&format!("{name} = ")).nth(1).unwrap_or_else(|| panic!("{reported}"));
            after.split([',', '\n']).next().unwrap().to_owned()
        };
        let (down, up, pend) = (number("downfd"), number("upfd"), number("pend"));
        assert!(down != "-1" && up != "-1" && down != up, "{reported}");
        let reported = reported.replace(&format!("pend = {pend}"), "pend = PEND");
        let responses = reported
            + &pen.response(&format!("socket {up}"))
            + &pen.response(&format!("socket {down}"))
            + &pen.response("close 0");
        assert_eq!(rest(&mut client), "");
        assert_eq!(pen.response("connection 0").lines().nth(2), Some("downfd = -1, upfd = -1"));
        let responses = responses
            .replace(&format!("downfd = {down},"), "downfd = DOWN,")
            .replace(&format!("upfd = {up}"), "upfd = UP");
        let responses = responses
            .replace(&format!("Socket {up} "), "Socket UP ")
            .replace(&format!("Socket {down} "), "Socket DOWN ");
        responses.replace('\n', "|") + "closed"
    });
}

#[test]
fn an_idle_connection_is_closed() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("", &to(&server), true, |pen| {
        assert_eq!(pen.response("idle_timeout 1"), "Idle timeout: 1 seconds\n");
        let mut client = pen.connect();
        assert_eq!(name(&mut client), "a");
        let since = std::time::Instant::now();
        assert_eq!(rest(&mut client), "");
        since.elapsed() < DEADLINE / 2
    });
}

#[test]
fn both_programs_count_the_same_bytes() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let servers = "0 addr 127.0.0.1 port SERVER conn 0 max 0 hard 0 weight 0 prio 0 sx 5 rx 17\n";
    let clients = "127.0.0.1 connects 1 sx 17 rx 5\n";
    alike("-P", &to(&server), format!("{servers}{clients}"), |pen| {
        let mut client = pen.connect();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), "a 127.0.0.1\nhello");
        pen.wait_idle();
        (pen.response("servers") + &pen.response("recent"))
            .replace(&format!("port {}", server.port), "port SERVER")
    });
}

#[test]
fn evener_lists_clients_by_their_last_connection() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let recent = |pen: &Pen| {
        assert_eq!(pen.servers_of([5, 3, 4]).concat(), "aaa");
        let recent = pen.response("recent");
        recent.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let addresses = |last: [u8; 3]| last.map(|last| format!("127.0.0.{last}")).to_vec();
    differs("client-order", "", &to(&server), addresses([5, 3, 4]), addresses([4, 3, 5]), recent);
}

/// Returns the rows of connections on the status page, without descriptors.
fn rows(page: &str) -> Vec<String> {
    let table = page.split("<h2>Active connections</h2>").nth(1).unwrap();
    let row = |row: &str| {
        let cells: Vec<&str> =
            row.lines().filter_map(|cell| cell.strip_prefix("<td>")?.strip_suffix("</td>")).collect();
        assert!(cells[1].parse::<u32>().is_ok() && cells[2].parse::<u32>().is_ok(), "{row}");
        [&cells[..1], &cells[3..]].concat().join(" ")
    };
    let header = table.lines().next().unwrap().to_owned();
    std::iter::once(header).chain(table.split("<tr>\n").skip(2).map(row)).collect()
}

#[test]
fn the_status_page_shows_the_same_open_connections() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let expected = [
        "Number of connections: 500 max, 2 used, 1 last<p><table bgcolor=\"#c0c0c0\">",
        "0 0 0 0 0",
        "1 0 0 0 0",
    ];
    alike("-w page", &to(&server), expected.map(str::to_owned).to_vec(), |pen| {
        let mut open = [pen.connect(), pen.connect()];
        assert_eq!(open.each_mut().map(name), ["a", "a"]);
        rows(&pen.response("status"))
    });
}

/// Returns the status page without times and ports, which always differ.
fn comparable_page(page: &str, server: u16) -> String {
    let page = page.replace(&format!("<td>{server}</td>"), "<td>SERVER</td>");
    let mut out = String::new();
    for text in page.lines() {
        match text.strip_prefix("Time ") {
            Some(time) => {
                let (stamp, rest) = time.split_once(", ").unwrap();
                let shape: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
                assert_eq!(shape, "0000-00-00 00:00:00", "{text}");
                out += &format!("Time, {rest}\n");
            }
            None => out += &format!("{text}\n"),
        }
    }
    out
}

#[test]
fn the_status_page_is_the_same_by_command_and_by_signal() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let pages = BOTH.map(|by| {
        let pen = Pen::start(by, "-P -w page", &to(&server));
        let mut client = pen.connect();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        rest(&mut client);
        pen.wait_idle();
        let page = pen.response("status");
        assert_eq!(pen.file("page"), page, "{by:?}");
        std::fs::remove_file(pen.path("page")).unwrap();
        pen.signal("USR1");
        let again =
            wait_until("the page", || Some(pen.file("page")).filter(|page| page.ends_with("</html>\n")));
        let expected = comparable_page(&page, server.port);
        let ages = |text: &str| text.replace("<td>1</td>", "<td>0</td>");
        assert_eq!(ages(&comparable_page(&again, server.port)), ages(&expected), "{by:?}");
        ages(&expected)
    });
    assert!(
        pages[0].contains("<td>SERVER</td>\n<td>0</td>\n<td>0</td>\n<td>0</td>\n<td>5</td>\n<td>17</td>\n"),
        "{}",
        pages[0]
    );
    assert_eq!(pages[0], pages[1]);
}

#[test]
fn only_evener_has_a_status_page_without_a_file_and_both_print_statistics() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    differs("status-without-file", "", &to(&server), false, true, |pen| {
        assert_eq!(pen.who(), "a");
        pen.signal("USR1");
        let part = if pen.is_debian() { "last server 0" } else { "client 127.0.0.1 age" };
        wait_until("statistics: in the format of the program", || pen.printed().contains(part).then_some(()));
        let page = pen.response("status");
        assert!(page == "Unable to create webstats\n" || page.starts_with("<html>"), "{page}");
        page.starts_with("<html>")
    });
}

/// Sends a request in one write, and checks that the server echoes the request.
fn request(pen: &Pen, text: &str) {
    let mut client = pen.connect();
    assert_eq!(name(&mut client), "a");
    client.write_all(text.as_bytes()).unwrap();
    let mut echo = vec![0; text.len()];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(echo, text.as_bytes());
}

#[test]
fn a_moved_log_is_opened_again_on_hup_and_has_the_same_lines() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let expected = "127.0.0.1 TIME 127.0.0.1 GET / HTTP/1.0\n127.0.0.1 TIME 127.0.0.1 POST /x\n127.0.0.1 TIME 127.0.0.1 after\n";
    alike("-l log", &to(&server), expected.to_owned(), |pen| {
        request(pen, "GET / HTTP/1.0\r\nHost: x\r\n\r\n");
        request(pen, "POST /x\n");
        pen.wait_idle();
        std::fs::rename(pen.path("log"), pen.path("log.1")).unwrap();
        pen.signal("HUP");
        wait_until("the new log", || pen.path("log").exists().then_some(()));
        request(pen, "after\n");
        pen.wait_idle();
        // Debian's pen may write only when it closes the file.
        pen.run(&["no log"]);
        let text = wait_until("the last line", || {
            Some(pen.file("log.1") + &pen.file("log")).filter(|text| text.lines().count() == 3)
        });
        let stamped = |line: &str| {
            let mut words: Vec<&str> = line.splitn(3, ' ').collect();
            assert!(words[1].parse::<u64>().unwrap() > 1_500_000_000, "{line}");
            words[1] = "TIME";
            words.join(" ") + "\n"
        };
        text.lines().map(stamped).collect()
    });
}

#[test]
fn both_programs_log_the_same_part_of_a_request() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let lines = BOTH.map(|by| {
        let pen = Pen::start(by, "-l log", &to(&server));
        let long = format!("GET /{} HTTP/1.0\r\n\r\n", "x".repeat(300));
        let requests = [
            &long,
            "no end",
            "tab\there\n",
            "\n",
            "two\nlines\n",
            "odd \u{7f} \u{1b}[1m \u{e9} bytes\r\n",
            " blank\n",
        ];
        requests.iter().for_each(|text| request(&pen, text));
        pen.wait_idle();
        pen.run(&["no log"]);
        let text =
            wait_until("the last line", || Some(pen.file("log")).filter(|text| text.contains(" blank")));
        let without_time = |line: &str| line.splitn(3, ' ').nth(2).unwrap_or(line).to_owned();
        text.lines().map(without_time).collect::<Vec<_>>()
    });
    assert!(lines[0].len() >= 7, "{lines:?}");
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn penlogd_gets_the_same_datagrams() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    let collector = UdpSocket::bind(local(0)).unwrap();
    collector.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = collector.local_addr().unwrap().port();
    alike(
        &format!("-l 127.0.0.1:{port}"),
        &to(&server),
        "+ 127.0.0.1 127.0.0.1 GET / HTTP/1.0".to_owned(),
        |pen| {
            request(pen, "GET / HTTP/1.0\r\nHost: x\r\n\r\n");
            let mut buffer = [0; 2048];
            let length = collector.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
        },
    );
}

/// Starts a server that returns the header section of each request as the body.
fn echo_http() -> Server {
    Server::start(|mut stream| {
        let mut header = Vec::new();
        let mut byte = [0];
        while !header.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            header.push(byte[0]);
        }
        let response = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", header.len());
        let _ = stream.write_all(&[response.as_bytes(), &header].concat());
    })
}

fn exchange(pen: &Pen, text: &str) -> String {
    let mut client = pen.connect();
    client.write_all(text.as_bytes()).unwrap();
    rest(&mut client)
}

#[test]
fn http_servers_receive_the_client_address_in_headers() {
    if !have("pen") {
        return;
    }
    let server = echo_http();
    // The request as the server receives it, with sorted headers, because their order has no meaning.
    let all = |pen: &Pen| {
        let response = exchange(pen, "GET /x HTTP/1.0\r\nHost: h\r\nA: b\r\n\r\n").to_lowercase();
        let requested = response.split_once("\r\n\r\n").unwrap().1.to_owned();
        let mut lines: Vec<String> =
            requested.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        lines[1..].sort_unstable();
        lines.join("|").replace(&pen.address().port().to_string(), "PORT")
    };
    let plain = "get /x http/1.0|a: b|host: h".to_owned();
    let debian = format!("{plain}|x-forwarded-for: 127.0.0.1|x-forwarded-proto: http");
    let evener =
        "get /x http/1.1|a: b|host: h|x-forwarded-for: 127.0.0.1|x-forwarded-host: h|x-forwarded-port: PORT|\
        x-forwarded-proto: http"
            .to_owned();
    alike("", &to(&server), plain.clone(), all);
    differs("http-rewritten", "-H", &to(&server), debian.clone(), evener.clone(), all);
    differs("http-rewritten", "", &to(&server), (debian, plain.clone()), (evener, plain), |pen| {
        pen.run(&["http"]);
        let with_http = all(pen);
        pen.run(&["no http"]);
        (with_http, all(pen))
    });
    let spoofed = "GET / HTTP/1.0\r\nX-Forwarded-For: 10.9.9.9\r\n\r\n";
    differs("spoofed-header", "-H", &to(&server), true, false, |pen| {
        exchange(pen, spoofed).contains("10.9.9.9")
    });
}

#[test]
fn tls_is_served_with_and_without_the_names_of_old_protocols() {
    if !have("pen") || !have("curl") {
        return;
    }
    let server = echo_http();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    for options in
        ["-E both", "-E certificate -K key", "-E both -L tls1", "-E both -L ssl3 -Z", "-E both -L ssl23"]
    {
        for by in BOTH {
            let directory = Directory::new();
            directory.write("certificate", &certificate);
            directory.write("key", &key);
            directory.write("both", &(certificate.clone() + &key));
            let pen = Pen::prepared(by, directory, options, None, &to(&server));
            let url = format!("https://{}/x", pen.address());
            let mut curl = std::process::Command::new("curl");
            let output = curl.args(["-sk", "--tlsv1.2", "--max-time", "15", &url]).output().unwrap();
            let requested = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(requested.starts_with("GET /x HTTP/1.1\r\n"), "{by:?}: {options}: {requested}");
        }
    }
}

#[test]
fn a_dummy_responds_without_a_server() {
    if !have("pen") {
        return;
    }
    alike("-O dummy", &["127.0.0.1:9".to_owned()], ("200".to_owned(), "Ulric was here.".to_owned()), |pen| {
        let response = exchange(pen, "GET / HTTP/1.0\r\n\r\n");
        let (header, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response}"));
        assert!(header.starts_with("HTTP/1."), "{header}");
        assert!(header.to_lowercase().contains("content-type: text/html"), "{header}");
        (header.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    });
}

#[test]
fn udp_responses_come_from_the_listen_port() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "b"].map(|name| {
        let socket = UdpSocket::bind(local(0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&[name.as_bytes(), b" ", &buffer[..length]].concat(), from);
            }
        });
        format!("127.0.0.1:{port}")
    });
    alike("-U -r", &servers, ["a one", "b one"].map(str::to_owned).to_vec(), |pen| {
        let mut responses: Vec<String> = (0..2)
            .map(|_| {
                let client = UdpSocket::bind(local(0)).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                client.connect(pen.address()).unwrap();
                client.send(b"one").unwrap();
                let mut buffer = [0; 2048];
                let length = client.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            })
            .collect();
        responses.sort_unstable();
        responses
    });
}
