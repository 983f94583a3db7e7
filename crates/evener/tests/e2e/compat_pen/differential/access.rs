//! Access lists of clients, servers and the control port, and the abuse server.

use super::differences::differs;
use super::programs::{Pen, alike, name};
use crate::harness::{Server, have, local, reserved_port};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};

fn to(server: &Server) -> Vec<String> {
    vec![format!("127.0.0.1:{}", server.port)]
}

/// Checks that list 1 with these entries permits exactly the expected clients.
#[track_caller]
fn check(entries: &[&str], clients: &[u8], expected: &[u8]) {
    let server = Server::named("a");
    alike("", &to(&server), expected.to_vec(), |pen| {
        for entry in entries {
            pen.run(&[&format!("acl 1 {entry}")]);
        }
        assert_eq!(pen.response("client_acl 1"), "1\n");
        clients.iter().copied().filter(|client| pen.who_from(*client) == "a").collect()
    });
}

#[test]
fn access_lists_permit_the_same_clients() {
    if !have("pen") {
        return;
    }
    check(&[], &[1, 2], &[1, 2]);
    // A client that matches no entry gets the inverse of the last entry.
    check(&["permit 127.0.0.1"], &[1, 2], &[1]);
    check(&["deny 127.0.0.1"], &[1, 2], &[2]);
    check(&["permit 127.0.0.1", "deny 127.0.0.2"], &[1, 2, 3], &[1, 3]);
    check(&["deny 127.0.0.1", "permit 127.0.0.2"], &[1, 2, 3], &[2]);
    // The first entry that matches decides.
    check(&["deny 127.0.0.1", "permit 127.0.0.0 255.255.255.0"], &[1, 2], &[2]);
    check(&["permit 127.0.0.1", "deny 127.0.0.0 255.255.255.0"], &[1, 2], &[1]);
    check(&["deny 127.0.0.1", "permit 127.0.0.1", "deny 127.0.0.1"], &[1, 2], &[2]);
    // Masks with holes: even addresses are permitted; addresses that are 4 or 5 modulo 8 are denied.
    check(&["permit 127.0.0.0 255.255.255.1"], &[1, 2, 3, 4], &[2, 4]);
    check(&["deny 127.0.0.4 255.255.255.6", "permit 0.0.0.0 0.0.0.0"], &[3, 4, 5, 6, 12, 13], &[3, 6]);
    check(&["permit 0.0.0.0 0.0.0.0"], &[1, 2], &[1, 2]);
    // An entry of the other address family matches no client, but counts as the last entry.
    check(&["permit ::/0"], &[1], &[]);
    check(&["deny 2001:db8::/32"], &[1], &[1]);
}

#[test]
fn networks_are_accepted_in_prefix_notation() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    differs("networks", "", &to(&server), (true, false), (false, true), |pen| {
        pen.run(&["acl 1 deny 127.0.0.0/30"]);
        assert_eq!(pen.response("client_acl 1"), "1\n");
        let is_permitted = pen.who_from(2) == "a";
        assert_eq!(pen.who_from(5), "a");
        pen.response("write file");
        (is_permitted, pen.file("file").contains("acl 1 deny 127.0.0.0 255.255.255.252\n"))
    });
}

#[test]
fn host_bits_of_a_network_are_ignored() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    differs("host-bits", "", &to(&server), [false, true], [true, false], |pen| {
        pen.run(&["acl 1 permit 127.0.0.9 255.255.255.0", "acl 2 deny 127.0.0.9 255.255.255.0"]);
        ["client_acl 1", "client_acl 2"].map(|line| {
            pen.response(line);
            pen.who() == "a"
        })
    });
}

#[test]
fn access_lists_change_while_pen_runs() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("-O stubborn", &to(&server), vec![false, true, false, true], |pen| {
        assert_eq!(pen.response("client_acl 2"), "2\n");
        let is_permitted = |line: &str| {
            pen.response(line);
            pen.who() == "a"
        };
        ["acl 2 deny 127.0.0.1", "no acl 2", "acl 2 permit 127.0.0.2", "client_acl 3"]
            .map(is_permitted)
            .into()
    });
}

/// Returns the name of the server that a new client from ::1 reaches.
fn who_from_ipv6(pen: &Pen) -> String {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, pen.address().port()));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
    name(&mut stream)
}

#[test]
fn access_lists_permit_the_same_clients_over_ipv6() {
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
        assert_eq!(pen.response("client_acl 1"), "1\n");
        let is_permitted = |entries: &[&str]| {
            pen.run(&["no acl 1"]);
            entries.iter().for_each(|entry| pen.run(&[&format!("acl 1 {entry}")]));
            who_from_ipv6(&pen) == "a"
        };
        assert!(is_permitted(&["permit ::1"]), "{by:?}");
        assert!(is_permitted(&["permit ::1/128"]), "{by:?}");
        assert!(!is_permitted(&["deny ::1"]), "{by:?}");
        assert!(!is_permitted(&["deny ::/64", "permit ::1"]), "{by:?}");
        assert!(is_permitted(&["deny ::2"]), "{by:?}");
        assert!(!is_permitted(&["permit ::2"]), "{by:?}");
        assert!(is_permitted(&["permit ::/126"]), "{by:?}");
        assert!(!is_permitted(&["deny 8000::/1", "permit 2000::/3"]), "{by:?}");
        assert!(!is_permitted(&["permit 127.0.0.1"]), "{by:?}");
    }
}

#[test]
fn the_abuse_server_gets_denied_clients() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "abuse", "emergency"].map(Server::named);
    let abuse = format!("-B 127.0.0.1:{}", servers[1].port);
    let emergency = format!("-e 127.0.0.1:{}", servers[2].port);
    let denied = |pen: &Pen| {
        pen.run(&["acl 3 deny 127.0.0.1"]);
        assert_eq!(pen.response("client_acl 3"), "3\n");
        pen.servers_of([1, 2, 1])
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
fn list_0_does_not_apply_to_the_abuse_server_of_evener() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "abuse"].map(Server::named);
    let abuse = format!("-B 127.0.0.1:{}", servers[1].port);
    // The default list of a server is list 0.
    let denied = |pen: &Pen| {
        pen.run(&["acl 0 deny 127.0.0.1"]);
        pen.servers_of([1, 2, 1])
    };
    let (debian, evener) = (["", "a", ""], ["abuse", "a", "abuse"]);
    let owned = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    differs("abuse-list", &abuse, &to(&servers[0]), owned(debian), owned(evener), denied);
}

#[test]
fn each_server_has_its_access_list() {
    if !have("pen") {
        return;
    }
    let servers = ["a", "b"].map(Server::named);
    let list: Vec<String> = servers.iter().flat_map(to).collect();
    let expected: Vec<String> = ["b", "b", "b", "a", "a"].map(str::to_owned).into();
    alike("-r", &list, expected, |pen| {
        pen.run(&["acl 5 deny 127.0.0.1", "server 0 acl 5", "acl 6 deny 127.0.0.2", "server 1 acl 6"]);
        pen.servers_of([1, 1, 1, 2, 2])
    });
}

/// Returns the response of a TCP control port to a client from 127.0.0.`from`.
fn response(port: u16, from: u8, command: &str) -> String {
    let mut stream = super::programs::connect_from(from, port);
    let _ = stream.write_all(format!("{command}\n").as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn the_control_list_denies_clients_of_the_control_port() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in super::programs::BOTH {
        let control = reserved_port();
        // The last -C applies.
        let pen = Pen::without_control_socket(by, &format!("-C 127.0.0.1:{control}"), &to(&server));
        crate::harness::wait_until("the control port", || TcpStream::connect(local(control)).ok());
        assert_eq!(response(control, 1, "control"), format!("127.0.0.1:{control}\n"), "{by:?}");
        assert_eq!(response(control, 1, "acl 4 deny 127.0.0.2"), "");
        assert_eq!(response(control, 1, "control_acl 4"), "4\n");
        assert_eq!(response(control, 1, "timeout"), "3\n", "{by:?}");
        assert_eq!(response(control, 2, "timeout"), "", "{by:?}");
        assert!(!pen.has_ended());
    }
}

#[test]
fn the_control_list_does_not_apply_to_a_unix_socket() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    alike("", &to(&server), "3\n".to_owned(), |pen| {
        assert_eq!(pen.response("acl 4 permit 10.0.0.1"), "");
        assert_eq!(pen.response("control_acl 4"), "4\n");
        pen.response("timeout")
    });
}

#[test]
fn both_programs_open_no_control_port_as_root_without_a_user() {
    if !have("pen") || !super::programs::is_root() {
        return;
    }
    let server = Server::named("a");
    for by in super::programs::BOTH {
        let control = reserved_port();
        let pen = Pen::without_user(by, &format!("-C 127.0.0.1:{control}"), &to(&server));
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
