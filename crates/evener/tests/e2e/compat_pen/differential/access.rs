//! Who may come in, who may ask, and where the others go.

use super::differences::differs;
use super::programs::{Pen, alike, name};
use crate::harness::{Server, have, local, reserved_port};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};

fn to(server: &Server) -> Vec<String> {
    vec![format!("127.0.0.1:{}", server.port)]
}

/// Which of these clients come in, when list 1 has these entries.
#[track_caller]
fn check(entries: &[&str], clients: &[u8], expected: &[u8]) {
    let server = Server::named("a");
    alike("", &to(&server), expected.to_vec(), |pen| {
        for entry in entries {
            assert_eq!(pen.ask(&format!("acl 1 {entry}")), "", "{:?}", pen.by);
        }
        assert_eq!(pen.ask("client_acl 1"), "1\n");
        clients.iter().copied().filter(|client| pen.who_from(*client) == "a").collect()
    });
}

#[test]
fn access_lists_decide_alike() {
    if !have("pen") {
        return;
    }
    check(&[], &[1, 2], &[1, 2]);
    // The inverse of the last entry.
    check(&["permit 127.0.0.1"], &[1, 2], &[1]);
    check(&["deny 127.0.0.1"], &[1, 2], &[2]);
    check(&["permit 127.0.0.1", "deny 127.0.0.2"], &[1, 2, 3], &[1, 3]);
    check(&["deny 127.0.0.1", "permit 127.0.0.2"], &[1, 2, 3], &[2]);
    // The first that matches.
    check(&["deny 127.0.0.1", "permit 127.0.0.0 255.255.255.0"], &[1, 2], &[2]);
    check(&["permit 127.0.0.1", "deny 127.0.0.0 255.255.255.0"], &[1, 2], &[1]);
    check(&["deny 127.0.0.1", "permit 127.0.0.1", "deny 127.0.0.1"], &[1, 2], &[2]);
    // Masks with holes: even addresses; every 4th and 5th of 8.
    check(&["permit 127.0.0.0 255.255.255.1"], &[1, 2, 3, 4], &[2, 4]);
    check(&["deny 127.0.0.4 255.255.255.6", "permit 0.0.0.0 0.0.0.0"], &[3, 4, 5, 6, 12, 13], &[3, 6]);
    check(&["permit 0.0.0.0 0.0.0.0"], &[1, 2], &[1, 2]);
    // Entries of the other family match nothing, but are the last ones.
    check(&["permit ::/0"], &[1], &[]);
    check(&["deny 2001:db8::/32"], &[1], &[1]);
}

#[test]
fn entries_of_networks_are_taken_as_everybody_writes_them() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    differs("networks", "", &to(&server), (true, false), (false, true), |pen| {
        pen.tell(&["acl 1 deny 127.0.0.0/30"]);
        assert_eq!(pen.ask("client_acl 1"), "1\n");
        let comes_in = pen.who_from(2) == "a";
        assert_eq!(pen.who_from(5), "a");
        pen.ask("write file");
        (comes_in, pen.file("file").contains("acl 1 deny 127.0.0.0 255.255.255.252\n"))
    });
}

#[test]
fn entries_mean_networks_whatever_their_last_bits_are() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    differs("host-bits", "", &to(&server), [false, true], [true, false], |pen| {
        pen.tell(&["acl 1 permit 127.0.0.9 255.255.255.0", "acl 2 deny 127.0.0.9 255.255.255.0"]);
        ["client_acl 1", "client_acl 2"].map(|line| {
            pen.ask(line);
            pen.who() == "a"
        })
    });
}

#[test]
fn lists_change_while_it_runs() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("-O stubborn", &to(&server), vec![false, true, false, true], |pen| {
        assert_eq!(pen.ask("client_acl 2"), "2\n");
        let comes_in = |line: &str| {
            pen.ask(line);
            pen.who() == "a"
        };
        ["acl 2 deny 127.0.0.1", "no acl 2", "acl 2 permit 127.0.0.2", "client_acl 3"].map(comes_in).into()
    });
}

/// Which server clients of ::1 get.
fn who6(pen: &Pen) -> String {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, pen.port));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
    name(&mut stream)
}

#[test]
fn access_lists_decide_alike_for_ipv6() {
    if !have("pen")
        || TcpStream::connect("[::1]:1")
            .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
    {
        return;
    }
    let server = Server::named("a");
    for by in super::programs::BOTH {
        let port = reserved_port();
        let pen = Pen::listening(by, "", port, &format!("::1:{port}"), &to(&server));
        assert_eq!(pen.ask("client_acl 1"), "1\n");
        let comes_in = |entries: &[&str]| {
            pen.tell(&["no acl 1"]);
            entries.iter().for_each(|entry| pen.tell(&[&format!("acl 1 {entry}")]));
            who6(&pen) == "a"
        };
        assert!(comes_in(&["permit ::1"]), "{by:?}");
        assert!(comes_in(&["permit ::1/128"]), "{by:?}");
        assert!(!comes_in(&["deny ::1"]), "{by:?}");
        assert!(!comes_in(&["deny ::/64", "permit ::1"]), "{by:?}");
        assert!(comes_in(&["deny ::2"]), "{by:?}");
        assert!(!comes_in(&["permit ::2"]), "{by:?}");
        assert!(comes_in(&["permit ::/126"]), "{by:?}");
        assert!(!comes_in(&["deny 8000::/1", "permit 2000::/3"]), "{by:?}");
        assert!(!comes_in(&["permit 127.0.0.1"]), "{by:?}");
    }
}

#[test]
fn the_abuse_server_has_those_who_may_not_come_in() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "abuse", "emergency"].map(Server::named);
    let abuse = format!("-B 127.0.0.1:{}", servers[1].port);
    let emergency = format!("-e 127.0.0.1:{}", servers[2].port);
    let denied = |pen: &Pen| {
        pen.tell(&["acl 3 deny 127.0.0.1"]);
        assert_eq!(pen.ask("client_acl 3"), "3\n");
        pen.whos([1, 2, 1])
    };
    let names =
        |text: &str| text.split(' ').map(|name| name.trim_matches('-').to_owned()).collect::<Vec<_>>();
    alike(&abuse, &to(&servers[0]), names("abuse a abuse"), denied);
    alike(&format!("{abuse} {emergency}"), &to(&servers[0]), names("abuse a abuse"), denied);
    alike("", &to(&servers[0]), names("- a -"), denied);
    differs(
        "denied-emergency",
        &emergency,
        &to(&servers[0]),
        names("emergency a emergency"),
        names("- a -"),
        denied,
    );
}

#[test]
fn list_0_keeps_nobody_from_our_abuse_server() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "abuse"].map(Server::named);
    let abuse = format!("-B 127.0.0.1:{}", servers[1].port);
    // Every server has list 0, unless it is told otherwise.
    let denied = |pen: &Pen| {
        pen.tell(&["acl 0 deny 127.0.0.1"]);
        pen.whos([1, 2, 1])
    };
    let (debian, ours) = (["", "a", ""], ["abuse", "a", "abuse"]);
    let owned = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    differs("abuse-list", &abuse, &to(&servers[0]), owned(debian), owned(ours), denied);
}

#[test]
fn servers_have_access_lists_of_their_own() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "b"].map(Server::named);
    let list: Vec<String> = servers.iter().flat_map(to).collect();
    let expected: Vec<String> = ["b", "b", "b", "a", "a"].map(str::to_owned).into();
    alike("-r", &list, expected, |pen| {
        pen.tell(&["acl 5 deny 127.0.0.1", "server 0 acl 5", "acl 6 deny 127.0.0.2", "server 1 acl 6"]);
        pen.whos([1, 1, 1, 2, 2])
    });
}

/// What a control port on TCP answers to a client from there.
fn ask(port: u16, from: u8, command: &str) -> String {
    let mut stream = super::programs::connect_from(from, port);
    let _ = stream.write_all(format!("{command}\n").as_bytes());
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response);
    response
}

#[test]
fn the_control_port_has_its_list_too() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in super::programs::BOTH {
        let control = reserved_port();
        // The last -C counts.
        let pen = Pen::unasked(by, &format!("-C 127.0.0.1:{control}"), &to(&server));
        crate::harness::wait_until("the control port", || TcpStream::connect(local(control)).ok());
        assert_eq!(ask(control, 1, "control"), format!("127.0.0.1:{control}\n"), "{by:?}");
        assert_eq!(ask(control, 1, "acl 4 deny 127.0.0.2"), "");
        assert_eq!(ask(control, 1, "control_acl 4"), "4\n");
        assert_eq!(ask(control, 1, "timeout"), "3\n", "{by:?}");
        assert_eq!(ask(control, 2, "timeout"), "", "{by:?}");
        assert!(!pen.has_ended());
    }
}

#[test]
fn a_list_of_the_control_port_binds_nobody_at_its_unix_socket() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("", &to(&server), "3\n".to_owned(), |pen| {
        assert_eq!(pen.ask("acl 4 permit 10.0.0.1"), "");
        assert_eq!(pen.ask("control_acl 4"), "4\n");
        pen.ask("timeout")
    });
}

#[test]
fn root_has_no_control_port_by_accident() {
    if !have("pen") || !super::programs::is_root() {
        return;
    }
    let server = Server::named("a");
    for by in super::programs::BOTH {
        let control = reserved_port();
        let pen = Pen::as_root(by, &format!("-C 127.0.0.1:{control}"), &to(&server));
        crate::harness::wait_until("a client to be served", || {
            Some(pen.try_who()).filter(|name| name == "a")
        });
        assert!(TcpStream::connect(local(control)).is_err(), "{by:?}");
        let printed = pen.printed();
        assert!(
            printed.contains("Won't open control port running as root; use -u to run as different user"),
            "{by:?}: {printed}"
        );
    }
}
