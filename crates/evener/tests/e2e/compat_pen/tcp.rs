//! pen over TCP: the server that a client gets, and failover when servers fail.

use crate::harness::pen::Pen;
use crate::harness::{DEADLINE, Directory, Server, connect, line, reserved_port, wait_until, who};
use crate::tcp::proxy_protocol::connect_from;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Returns the name of the server that a client with this address gets; empty if pen closes the connection
/// without a server.
pub(crate) fn who_from(from: &str, port: u16) -> String {
    line(&mut connect_from(from, port)).split(' ').next().unwrap().to_owned()
}

pub(crate) fn at(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

#[test]
fn clients_return_to_their_server_unless_round_robin_is_set() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let first = [1, 2, 3, 4].map(|n| who_from(&format!("127.0.0.{n}"), listen));
    assert_eq!(first, ["a", "b", "a", "b"]);
    for _ in 0..3 {
        let again = [4, 3, 2, 1].map(|n| who_from(&format!("127.0.0.{n}"), listen));
        assert_eq!(again, ["b", "a", "b", "a"]);
    }
    pen.order("roundrobin");
    assert!(pen.ctl("mode").contains("hash roundrobin"), "{}", pen.ctl("mode"));
    let turns: Vec<String> = (0..6).map(|_| who_from("127.0.0.1", listen)).collect();
    assert!(turns.chunks(2).all(|pair| pair == ["a", "b"] || pair == ["b", "a"]), "{turns:?}");
    pen.order("no roundrobin");
    let first = who_from("127.0.0.9", listen);
    assert!((0..4).all(|_| who_from("127.0.0.9", listen) == first));
    let recent = pen.ctl("recent");
    assert!(recent.contains("127.0.0.9 connects 5 sx "), "{recent}");
    assert_eq!(recent.lines().count(), 5, "{recent}");
}

#[test]
fn round_robin_spreads_the_connections_of_one_client() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let _pen = Pen::run(&["-r", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let chosen: Vec<String> = (0..6).map(|_| who(listen)).collect();
    assert_eq!(chosen, ["a", "b", "a", "b", "a", "b"]);
}

/// Returns the age of a client on the status page, in seconds.
fn seconds_since(pen: &Pen, client: &str) -> u64 {
    let page = pen.ctl("status");
    let clients = page.split("Active clients").nth(1).unwrap().to_owned();
    let row = clients.split(&format!("<td>{client}</td>\n<td>")).nth(1).unwrap();
    row.split('<').next().unwrap().parse().unwrap()
}

#[test]
fn clients_are_forgotten_after_the_tracking_time_or_when_the_table_is_full() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-T", "1", "-c", "2", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    assert_eq!([who_from("127.0.0.1", listen), who_from("127.0.0.1", listen)], ["a", "a"]);
    assert_eq!(pen.ctl("clients_max"), "2\n");
    // Each connection renews the entry of its client. After a second without a connection, the entry expires,
    // and round robin continues with b.
    wait_until("the tracking time to expire", || (seconds_since(&pen, "127.0.0.1") > 1).then_some(()));
    assert_eq!(who_from("127.0.0.1", listen), "b");
    pen.ctl("tracking 0");
    assert_eq!([who_from("127.0.0.2", listen), who_from("127.0.0.3", listen)], ["a", "b"]);
    // The table has two entries: the first client was removed, and is new again.
    assert_eq!(who_from("127.0.0.1", listen), "a");
    assert_eq!(pen.ctl("clients_max 100"), "100\n");
    assert_eq!(pen.ctl("clients_max 5"), "100\n", "the table only grows");
}

#[test]
fn a_failed_server_loses_no_client_and_is_used_again_after_its_blacklist_time() {
    let (mut a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-b", "2", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    assert_eq!([who_from("127.0.0.1", listen), who_from("127.0.0.2", listen)], ["a", "b"]);
    a.stop();
    let chosen: Vec<String> = (0..20).map(|n| who_from(&format!("127.0.0.{}", 1 + n % 10), listen)).collect();
    assert!(chosen.iter().all(|name| name == "b"), "{chosen:?}");
    let status = pen.ctl("status");
    assert!(status.contains("<td>127.0.0.1</td>"), "{status}");
    let _a = Server::named_at("a", a.port);
    // New clients get the server again after its blacklist time.
    let mut next = 20;
    wait_until("a to be used again", || {
        next += 1;
        (who_from(&format!("127.0.1.{next}"), listen) == "a").then_some(())
    });
    pen.expect_log("server_up");
}

#[test]
fn a_server_is_blacklisted_and_restored_by_command() {
    let (mut a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-r", "-b", "3600", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let four = || -> String { (0..4).map(|_| who(listen)).collect() };
    assert_eq!(four(), "abab");
    pen.order("server 0 blacklist 600");
    assert_eq!(four(), "bbbb");
    pen.order("server 0 blacklist 0");
    assert!(["abab", "baba"].contains(&four().as_str()));
    // The command also restores a server that failed.
    a.stop();
    assert_eq!(four(), "bbbb");
    let _a = Server::named_at("a", a.port);
    assert_eq!(four(), "bbbb", "the failed server is blacklisted for an hour");
    pen.order("server 0 blacklist 0");
    assert!(["abab", "baba"].contains(&four().as_str()));
    assert_eq!(pen.ctl("server 7 blacklist 9"), "server 7 has no address and port yet\n");
}

#[test]
fn the_emergency_server_is_used_only_while_all_other_servers_are_down() {
    let (mut a, mut b, e) = (Server::named("a"), Server::named("b"), Server::named("e"));
    let listen = reserved_port();
    let pen = Pen::run(&["-b", "1", "-e", &at(&e), &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let chosen: Vec<String> = (1..20).map(|n| who_from(&format!("127.0.0.{n}"), listen)).collect();
    assert!(chosen.iter().all(|name| name == "a" || name == "b"), "{chosen:?}");
    a.stop();
    assert_eq!(who_from("127.0.0.1", listen), "b");
    b.stop();
    let chosen: Vec<String> = (1..20).map(|n| who_from(&format!("127.0.0.{n}"), listen)).collect();
    assert!(chosen.iter().all(|name| name == "e"), "{chosen:?}");
    // A denied client is closed, not sent to the emergency server.
    pen.order("acl 1 deny 127.0.0.66");
    pen.ctl("client_acl 1");
    assert_eq!([who_from("127.0.0.66", listen), who_from("127.0.0.67", listen)], ["", "e"]);
    let _b = Server::named_at("b", b.port);
    // Clients of the emergency server also return to the restored server.
    for n in 1..20 {
        let from = format!("127.0.0.{n}");
        wait_until("clients to leave the emergency server", || {
            (who_from(&from, listen) == "b").then_some(())
        });
    }
}

#[test]
fn the_abuse_server_gets_only_denied_clients() {
    let (a, abuse, e, listen) =
        (Server::named("a"), Server::named("abuse"), Server::named("e"), reserved_port());
    let pen = Pen::run(&[
        "-B",
        &at(&abuse),
        "-e",
        &at(&e),
        "-o",
        "acl 3 deny 127.0.0.64 255.255.255.192",
        "-o",
        "client_acl 3",
        &format!("127.0.0.1:{listen}"),
        &at(&a),
    ]);
    for (from, expected) in [("127.0.0.63", "a"), ("127.0.0.64", "abuse"), ("127.0.0.127", "abuse")] {
        assert_eq!(who_from(from, listen), expected, "{from}");
    }
    assert_eq!(who_from("127.0.0.128", listen), "a");
    pen.order("no acl 3");
    assert_eq!(who_from("127.0.0.64", listen), "a");
}

#[test]
fn clients_without_a_matching_entry_get_the_inverse_of_the_last_entry() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let chosen = || ["127.0.0.1", "127.0.1.1", "127.0.1.9", "127.0.2.1"].map(|from| who_from(from, listen));
    pen.ctl("client_acl 9");
    assert_eq!(chosen(), ["a", "a", "a", "a"], "an empty list permits all");
    pen.order("acl 9 deny 127.0.1.9");
    assert_eq!(chosen(), ["a", "a", "", "a"]);
    pen.order("acl 9 permit 127.0.1.0 255.255.255.0");
    assert_eq!(chosen(), ["", "a", "", ""]);
    pen.order("acl 9 deny 127.0.1.1");
    assert_eq!(chosen(), ["a", "a", "", "a"], "the first match decides, then the inverse of the last entry");
    // Clients that the access list of a server denies are sent to another server.
    let b = Server::named("b");
    pen.order("no acl 9");
    pen.order(&format!("server 1 address 127.0.0.1 port {}", b.port));
    pen.order("acl 2 permit 127.0.2.1");
    pen.order("server 0 acl 2");
    pen.order("roundrobin");
    let servers_of = |from: &str| -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        (0..6).for_each(|_| *counts.entry(who_from(from, listen)).or_default() += 1);
        counts
    };
    assert_eq!(servers_of("127.0.0.1"), [("b".to_owned(), 6)].into());
    assert_eq!(servers_of("127.0.2.1").len(), 2);
}

#[test]
fn countries_are_permitted_and_denied() {
    let directory = Directory::new();
    if !crate::config::access_lists::database(&directory, "country.mmdb", 6) {
        return;
    }
    let (a, listen) = (Server::named("a"), reserved_port());
    let file = directory.write(
        "commands",
        &format!(
            "geoip {}\nacl 1 permit country SE\nacl 1 permit country no\nclient_acl 1\n",
            directory.file("country.mmdb").display()
        ),
    );
    let pen = Pen::run(&["-F", &file.display().to_string(), &format!("127.0.0.1:{listen}"), &at(&a)]);
    let chosen = || ["127.0.1.1", "127.0.2.200", "127.0.3.1", "127.0.0.1"].map(|from| who_from(from, listen));
    assert_eq!(chosen(), ["a", "a", "", ""]);
    pen.order("no acl 1");
    pen.order("acl 1 deny country SE");
    assert_eq!(chosen(), ["", "a", "a", "a"]);
    // A country that the database does not have is reported, and changes nothing.
    assert!(pen.ctl("acl 1 deny country XX").contains("XX"));
    assert_eq!(chosen(), ["", "a", "a", "a"]);
    assert!(pen.ctl("geoip /nowhere").contains("/nowhere: the file does not exist"));
    assert_eq!(chosen(), ["", "a", "a", "a"]);
}

#[test]
fn hashed_clients_are_spread_evenly_and_keep_their_server() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let _pen = Pen::run(&["-h", "-r", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let clients: Vec<String> = (0..3).flat_map(|x| (1..21).map(move |y| format!("127.0.{x}.{y}"))).collect();
    let all = || -> Vec<String> { clients.iter().map(|from| who_from(from, listen)).collect() };
    let first = all();
    let of_a = first.iter().filter(|name| *name == "a").count();
    assert!((20..=40).contains(&of_a) && first.iter().all(|name| !name.is_empty()), "{of_a} of 60");
    assert_eq!(all(), first);
}

#[test]
fn clients_and_servers_may_use_ipv4_ipv6_and_unix_sockets() {
    let six = TcpListener::bind("[::1]:0").unwrap();
    let port = six.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in six.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(format!("six {peer}\n").as_bytes());
        }
    });
    let (four, listen, directory) = (Server::named("four"), reserved_port(), Directory::new());
    let _pen = Pen::run(&["-r", &format!(":::{listen}"), &at(&four), &format!("[::1]:{port}")]);
    for host in ["127.0.0.1", "::1"] {
        let mut chosen: Vec<String> =
            (0..2).map(|_| line(&mut TcpStream::connect((host, listen)).unwrap())).collect();
        chosen.sort();
        assert_eq!(chosen, ["four 127.0.0.1", "six ::1"], "{host}");
    }
    let path = directory.file("pen.sock");
    let other = Pen::run(&["-r", &path.display().to_string(), &at(&four)]);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"over a path").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut printed = String::new();
    stream.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "four 127.0.0.1\nover a path");
    other.signal("TERM");
    wait_until("the removal of the socket", || (!path.exists()).then_some(()));
}

#[test]
fn limits_weights_and_priorities_decide_the_server() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-r", &format!("127.0.0.1:{listen}"), &format!("{}:1:2", at(&a)), &at(&b)]);
    let mut open = connect(listen);
    assert!(line(&mut open).starts_with("a "));
    let chosen: String = (0..4).map(|_| who(listen)).collect();
    assert_eq!(chosen, "bbbb", "a has reached its soft limit");
    drop(open);
    wait_until("a to be free", || (pen.of_server(0, "conn") == 0).then_some(()));
    // The server with the lowest priority is used. By weight, a server of weight 0 gets no client.
    pen.order("server 0 prio 5 max 0");
    pen.order("server 1 prio 2");
    pen.order("prio");
    assert_eq!((0..4).map(|_| who(listen)).collect::<String>(), "bbbb");
    pen.order("server 0 prio 1");
    assert_eq!((0..4).map(|_| who(listen)).collect::<String>(), "aaaa");
    pen.order("no prio");
    pen.order("server 0 weight 0");
    pen.order("server 1 weight 3");
    pen.order("weight");
    assert_eq!((0..4).map(|_| who(listen)).collect::<String>(), "bbbb");
}
