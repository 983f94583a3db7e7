//! pen over TCP: who gets which server, and what becomes of clients when servers fail.

use crate::harness::pen::Pen;
use crate::harness::{DEADLINE, Directory, Server, connect, line, reserved_port, wait_until, who};
use crate::tcp::proxy_protocol::connect_from;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// The server that a client of this address gets; empty when it is closed without one.
pub(crate) fn who_from(from: &str, port: u16) -> String {
    line(&mut connect_from(from, port)).split(' ').next().unwrap().to_owned()
}

pub(crate) fn at(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

#[test]
fn clients_come_back_to_their_server_unless_it_is_round_robin() {
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
    let own = who_from("127.0.0.9", listen);
    assert!((0..4).all(|_| who_from("127.0.0.9", listen) == own));
    let recent = pen.ctl("recent");
    assert!(recent.contains("127.0.0.9 connects 5 sx "), "{recent}");
    assert_eq!(recent.lines().count(), 5, "{recent}");
}

#[test]
fn round_robin_from_the_start_looks_up_no_client() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let _pen = Pen::run(&["-r", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let seen: Vec<String> = (0..6).map(|_| who(listen)).collect();
    assert_eq!(seen, ["a", "b", "a", "b", "a", "b"]);
}

/// How long a client was not seen, as the status page has it.
fn seconds_since(pen: &Pen, client: &str) -> u64 {
    let page = pen.ctl("status");
    let clients = page.split("Active clients").nth(1).unwrap().to_owned();
    let row = clients.split(&format!("<td>{client}</td>\n<td>")).nth(1).unwrap();
    row.split('<').next().unwrap().parse().unwrap()
}

#[test]
fn clients_are_forgotten_after_their_time_or_when_there_is_no_room() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-T", "1", "-c", "2", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    assert_eq!([who_from("127.0.0.1", listen), who_from("127.0.0.1", listen)], ["a", "a"]);
    assert_eq!(pen.ctl("clients_max"), "2\n");
    // Whoever asks is seen: it is forgotten when it has not asked for a second. The next in turn is b.
    wait_until("the time to be over", || (seconds_since(&pen, "127.0.0.1") > 1).then_some(()));
    assert_eq!(who_from("127.0.0.1", listen), "b");
    pen.ctl("tracking 0");
    assert_eq!([who_from("127.0.0.2", listen), who_from("127.0.0.3", listen)], ["a", "b"]);
    // Two have made room for two: the first one is new again.
    assert_eq!(who_from("127.0.0.1", listen), "a");
    assert_eq!(pen.ctl("clients_max 100"), "100\n");
    assert_eq!(pen.ctl("clients_max 5"), "100\n", "it only grows");
}

#[test]
fn a_server_that_fails_is_not_missed_and_used_again_after_its_time() {
    let (mut a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-b", "2", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    assert_eq!([who_from("127.0.0.1", listen), who_from("127.0.0.2", listen)], ["a", "b"]);
    a.stop();
    let seen: Vec<String> = (0..20).map(|n| who_from(&format!("127.0.0.{}", 1 + n % 10), listen)).collect();
    assert!(seen.iter().all(|name| name == "b"), "{seen:?}");
    let status = pen.ctl("status");
    assert!(status.contains("<td>127.0.0.1</td>"), "{status}");
    let _a = Server::named_at("a", a.port);
    // New clients come to it again when its time is over.
    let mut next = 20;
    wait_until("a to be used again", || {
        next += 1;
        (who_from(&format!("127.0.1.{next}"), listen) == "a").then_some(())
    });
    pen.expect_log("server_up");
}

#[test]
fn a_server_is_taken_out_and_brought_back_by_hand() {
    let (mut a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-r", "-b", "3600", &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let four = || -> String { (0..4).map(|_| who(listen)).collect() };
    assert_eq!(four(), "abab");
    pen.order("server 0 blacklist 600");
    assert_eq!(four(), "bbbb");
    pen.order("server 0 blacklist 0");
    assert!(["abab", "baba"].contains(&four().as_str()));
    // The same brings one back that failed by itself.
    a.stop();
    assert_eq!(four(), "bbbb");
    let _a = Server::named_at("a", a.port);
    assert_eq!(four(), "bbbb", "it is left out for an hour");
    pen.order("server 0 blacklist 0");
    assert!(["abab", "baba"].contains(&four().as_str()));
    assert_eq!(pen.ctl("server 7 blacklist 9"), "server 7 has no address and port yet\n");
}

#[test]
fn the_emergency_server_serves_when_all_others_are_gone_and_only_then() {
    let (mut a, mut b, e) = (Server::named("a"), Server::named("b"), Server::named("e"));
    let listen = reserved_port();
    let pen = Pen::run(&["-b", "1", "-e", &at(&e), &format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    let seen: Vec<String> = (1..20).map(|n| who_from(&format!("127.0.0.{n}"), listen)).collect();
    assert!(seen.iter().all(|name| name == "a" || name == "b"), "{seen:?}");
    a.stop();
    assert_eq!(who_from("127.0.0.1", listen), "b");
    b.stop();
    let seen: Vec<String> = (1..20).map(|n| who_from(&format!("127.0.0.{n}"), listen)).collect();
    assert!(seen.iter().all(|name| name == "e"), "{seen:?}");
    // A client that may not come in is closed, not sent there.
    pen.order("acl 1 deny 127.0.0.66");
    pen.ctl("client_acl 1");
    assert_eq!([who_from("127.0.0.66", listen), who_from("127.0.0.67", listen)], ["", "e"]);
    let _b = Server::named_at("b", b.port);
    // Those that it served leave it, too.
    for n in 1..20 {
        let from = format!("127.0.0.{n}");
        wait_until("the emergency to be over", || (who_from(&from, listen) == "b").then_some(()));
    }
}

#[test]
fn the_abuse_server_gets_those_who_may_not_come_in_and_nobody_else() {
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
fn a_list_answers_with_the_inverse_of_its_last_entry() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let seen = || ["127.0.0.1", "127.0.1.1", "127.0.1.9", "127.0.2.1"].map(|from| who_from(from, listen));
    pen.ctl("client_acl 9");
    assert_eq!(seen(), ["a", "a", "a", "a"], "an empty list permits all");
    pen.order("acl 9 deny 127.0.1.9");
    assert_eq!(seen(), ["a", "a", "", "a"]);
    pen.order("acl 9 permit 127.0.1.0 255.255.255.0");
    assert_eq!(seen(), ["", "a", "", ""]);
    pen.order("acl 9 deny 127.0.1.1");
    assert_eq!(seen(), ["a", "a", "", "a"], "the first match counts, then the inverse of the last");
    // A server's own list passes a client on to another one.
    let b = Server::named("b");
    pen.order("no acl 9");
    pen.order(&format!("server 1 address 127.0.0.1 port {}", b.port));
    pen.order("acl 2 permit 127.0.2.1");
    pen.order("server 0 acl 2");
    pen.order("roundrobin");
    let of = |from: &str| -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        (0..6).for_each(|_| *seen.entry(who_from(from, listen)).or_default() += 1);
        seen
    };
    assert_eq!(of("127.0.0.1"), [("b".to_owned(), 6)].into());
    assert_eq!(of("127.0.2.1").len(), 2);
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
    let seen = || ["127.0.1.1", "127.0.2.200", "127.0.3.1", "127.0.0.1"].map(|from| who_from(from, listen));
    assert_eq!(seen(), ["a", "a", "", ""]);
    pen.order("no acl 1");
    pen.order("acl 1 deny country SE");
    assert_eq!(seen(), ["", "a", "a", "a"]);
    // A country that the database does not have changes nothing, and says so.
    assert!(pen.ctl("acl 1 deny country XX").contains("XX"));
    assert_eq!(seen(), ["", "a", "a", "a"]);
    assert!(pen.ctl("geoip /nowhere").contains("/nowhere: No such file"));
    assert_eq!(seen(), ["", "a", "a", "a"]);
}

#[test]
fn hashed_clients_spread_evenly_and_stay() {
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
fn clients_and_servers_of_both_families_and_unix_sockets() {
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
        let mut seen: Vec<String> =
            (0..2).map(|_| line(&mut TcpStream::connect((host, listen)).unwrap())).collect();
        seen.sort();
        assert_eq!(seen, ["four 127.0.0.1", "six ::1"], "{host}");
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
    wait_until("the socket to go", || (!path.exists()).then_some(()));
}

#[test]
fn limits_weights_and_priorities_choose() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&["-r", &format!("127.0.0.1:{listen}"), &format!("{}:1:2", at(&a)), &at(&b)]);
    let mut held = connect(listen);
    assert!(line(&mut held).starts_with("a "));
    let seen: String = (0..4).map(|_| who(listen)).collect();
    assert_eq!(seen, "bbbb", "a has what it may");
    drop(held);
    wait_until("a to be free", || (pen.of_server(0, "conn") == 0).then_some(()));
    // The lowest priority first; by weight none gets nothing.
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
