//! The server that a client gets: round robin, tracking, hash, weight, priority, failover, blacklist, limits.

use super::differences::differs;
use super::programs::{Pen, alike, name};
use crate::harness::{Server, have, reserved_port, wait_until};
use std::collections::BTreeMap;
use std::io::ErrorKind;

fn named() -> [Server; 3] {
    ["a", "b", "c"].map(Server::named)
}

/// Returns the servers as on the command line, each with its limits, weight and priority.
fn with(servers: &[Server], parameters: &[&str]) -> Vec<String> {
    servers.iter().zip(parameters).map(|(server, text)| format!("127.0.0.1:{}{text}", server.port)).collect()
}

/// Counts how often each name occurs.
fn spread(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(name.as_str()).or_default() += 1);
    counts
}

fn counts(names: &[String]) -> Vec<usize> {
    spread(names).into_values().collect()
}

#[test]
fn round_robin_uses_all_servers_in_turn_and_only_the_first_server_differs() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let list = with(&servers, &["", "", ""]);
    differs("first-server", "-r", &list, "b".to_owned(), "a".to_owned(), Pen::who);
    alike("-r", &list, vec![3, 3, 3], |pen| counts(&pen.servers_of([1; 9])));
    alike("-r", &list, true, |pen| {
        let names = pen.servers_of([1; 6]);
        names[..3] == names[3..] && spread(&names).len() == 3
    });
    // New clients that are tracked get the servers in turn.
    alike("", &list, vec![2, 2, 2], |pen| counts(&pen.servers_of(2..8)));
}

#[test]
fn clients_return_to_their_server_until_they_are_forgotten() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let list = with(&servers, &["", "", ""]);
    alike("", &list, true, |pen| {
        let first = pen.servers_of([1, 2, 3]);
        (0..3).all(|_| pen.servers_of([1, 2, 3]) == first)
    });
    alike("", &list, vec![1, 1, 1], |pen| {
        pen.run(&["roundrobin"]);
        let turns = pen.servers_of([1; 3]);
        pen.run(&["no roundrobin"]);
        assert_eq!(spread(&pen.servers_of([1; 3])).len(), 1);
        counts(&turns)
    });
    // In a table of two entries the third client replaces the first.
    alike("-c 2", &list, vec!["127.0.0.2", "127.0.0.3"], |pen| {
        for client in 1..=3 {
            pen.who_from(client);
            pen.wait_idle();
        }
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            .into_iter()
            .filter(|client| pen.response("recent").contains(&format!("{client} connects 1 sx")))
            .collect()
    });
    differs("tracking-time", "-T 4", &list, false, true, |pen| {
        let first = pen.who();
        assert_eq!(pen.who(), first);
        wait_until("the client to be older than 4 s", || pen.response("recent 4").is_empty().then_some(()));
        pen.who() != first
    });
}

#[test]
fn hashing_is_stable_and_spreads_clients_better_than_debian() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let list = with(&servers, &["", ""]);
    alike("-h", &list, true, |pen| pen.servers_of(2..12) == pen.servers_of(2..12));
    // With -r the connections of a client are spread, by their ports or in turn.
    alike("-h -r", &with(&servers, &["", "", ""]), 3, |pen| spread(&pen.servers_of([1; 40])).len());
    differs("hash", "-h", &list, 1, 2, |pen| spread(&pen.servers_of(2..32)).len());
}

#[test]
fn weights_divide_connections() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let list = with(&servers, &[":0:0:1", ":0:0:3", ":0:0:0"]);
    let hold = |pen: &Pen, count: usize| {
        let mut connections: Vec<_> = (0..count).map(|_| pen.connect_from(1)).collect();
        let names: Vec<String> = connections.iter_mut().map(name).collect();
        let counts = spread(&names).into_iter().map(|(name, count)| (name.to_owned(), count));
        counts.collect::<Vec<_>>()
    };
    let expected = vec![("a".to_owned(), 2), ("b".to_owned(), 6)];
    alike("-W -r", &list, expected.clone(), |pen| hold_one_by_one(pen, 8));
    alike("-r", &list, expected, |pen| {
        pen.run(&["weight"]);
        hold_one_by_one(pen, 8)
    });
    alike("-r", &list, 3, |pen| hold(pen, 3).len());
}

/// Opens connections, each after the previous connection has reached its server, and counts them by server.
fn hold_one_by_one(pen: &Pen, count: usize) -> Vec<(String, usize)> {
    let mut connections = Vec::new();
    let names: Vec<String> = (0..count)
        .map(|_| {
            connections.push(pen.connect_from(1));
            name(connections.last_mut().unwrap())
        })
        .collect();
    spread(&names).into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[test]
fn the_server_of_the_best_priority_is_used_while_it_is_up() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let list = with(&servers, &[":0:0:0:2", ":0:0:0:-1", ":0:0:0:1"]);
    let expected: Vec<String> = ["b", "b", "c", "a", "b"].map(str::to_owned).into();
    alike("-r -o prio", &list, expected, |pen| {
        let mut chosen = pen.servers_of([1, 2]);
        pen.run(&["server 1 blacklist 60"]);
        chosen.push(pen.who());
        pen.run(&["server 2 blacklist 60"]);
        chosen.push(pen.who());
        pen.run(&["server 1 blacklist 0"]);
        chosen.push(pen.who());
        chosen
    });
}

#[test]
fn a_server_that_is_down_is_excluded_unless_pen_is_stubborn() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let mut list = with(&servers[..1], &[""]);
    list.push(format!("127.0.0.1:{}", reserved_port()));
    // By round robin, one of the first two clients would have been sent to the server that is down.
    alike("-r -P", &list, names("a a a a"), |pen| pen.servers_of([1; 4]));
    differs("refused-connect", "-r", &list, names("- a - a"), names("a a a a"), |pen| pen.servers_of([1; 4]));
    alike("-r -P -s", &list, vec![1, 1], |pen| counts(&pen.servers_of([1; 2])));
    // The status page shows how long the server has been excluded, until it is restored.
    alike("-r -P -w page", &list, (true, true, false), |pen| {
        let is_excluded = || {
            let page = pen.response("status");
            let row = page.split("<tr>").nth(3).unwrap().to_owned();
            row.lines().nth(3).unwrap() != "<td>0</td>"
        };
        pen.servers_of([1; 2]);
        let first = is_excluded();
        let still = pen.servers_of([1; 4]) == names("a a a a") && is_excluded();
        pen.run(&["server 1 blacklist 0"]);
        (first, still, !pen.is_debian() && is_excluded())
    });
}

#[test]
fn the_emergency_server_is_used_only_while_all_others_are_down() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let emergency = format!("-r -P -b 1 -e 127.0.0.1:{}", servers[2].port);
    let down = reserved_port();
    let list = vec![format!("127.0.0.1:{down}")];
    alike(&emergency, &list, vec!["c", "c", "back"], |pen| {
        let mut chosen = vec![leak(pen.who()), leak(pen.who())];
        let server = Server::named_at("back", down);
        chosen.push(wait_until("the server to be used again", || {
            Some(leak(pen.who())).filter(|who| *who != "c")
        }));
        drop(server);
        chosen
    });
    // Without an emergency server, clients get no server.
    alike("-r -P", &list, "".to_owned(), Pen::who);
}

/// Leaks a name. The tests leak only a few names.
fn leak(name: String) -> &'static str {
    name.leak()
}

/// Opens connections, keeps all of them open, and returns the names of their servers; empty for a closed
/// connection.
fn hold_all(pen: &Pen, clients: &[u8]) -> Vec<String> {
    let mut connections: Vec<_> = Vec::new();
    let mut names = Vec::new();
    for client in clients {
        let mut stream = pen.connect_from(*client);
        names.push(name(&mut stream));
        connections.push(stream);
    }
    names
}

fn names(text: &str) -> Vec<String> {
    text.split(' ').map(|name| name.trim_matches('-').to_owned()).collect()
}

#[test]
fn soft_limits_apply_to_new_clients_and_hard_limits_to_known_clients() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let check = |options: &str, limits: &str, clients: &[u8], expected: &str| {
        alike(options, &with(&servers, &[limits]), names(expected), |pen| hold_all(pen, clients));
    };
    // A new client is refused at the soft limit, a known client at the hard limit; a dash means no server.
    check("", ":2", &[1, 2, 3], "a a -");
    check("", ":2:4", &[1, 2, 3], "a a -");
    check("", ":2:4", &[1, 1, 1, 1, 1], "a a a a -");
    check("", ":2:0", &[1, 1, 1], "a a -");
    check("", ":2:1", &[1, 1, 1], "a a -");
    check("", ":0:2", &[1, 1, 1, 2], "a a a a");
    check("-r", ":2:4", &[1, 2, 3], "a a -");
    let emergency = format!("-e 127.0.0.1:{}", servers[2].port);
    check(&emergency, ":1", &[1, 2], "a c");
    check("-s", ":1", &[1, 2], "a -");
    let list = with(&servers, &[":2:4"]);
    differs("limit-leak", "-r", &list, names("a a - a - a"), names("a a - - - -"), |pen| {
        hold_all(pen, &[1, 2, 3, 4, 5, 6])
    });
}

#[test]
fn limits_change_while_pen_runs() {
    if !have("pen") {
        return;
    }
    let servers = named();
    alike("", &with(&servers, &[""]), names("a a - a"), |pen| {
        let mut open = [pen.connect_from(1), pen.connect_from(2)];
        let mut chosen: Vec<String> = open.iter_mut().map(name).collect();
        pen.run(&["server 0 max 2"]);
        chosen.push(pen.who_from(3));
        pen.run(&["server 0 max 3"]);
        chosen.push(pen.who_from(3));
        chosen
    });
}

#[test]
fn clients_wait_while_pen_has_its_maximum_of_connections() {
    if !have("pen") {
        return;
    }
    let servers = named();
    alike("-x 2", &with(&servers, &[""]), names("a a a"), |pen| {
        let mut open = [pen.connect_from(1), pen.connect_from(1)];
        let mut chosen: Vec<String> = open.iter_mut().map(name).collect();
        wait_until("both to be counted", || (pen.field(0, "conn") == "2").then_some(()));
        let mut waiting = pen.connect_from(1);
        waiting.set_read_timeout(Some(std::time::Duration::from_millis(150))).unwrap();
        let nothing = std::io::Read::read(&mut waiting, &mut [0]).map_err(|error| error.kind());
        assert!(matches!(nothing, Err(ErrorKind::WouldBlock | ErrorKind::Interrupted)), "{nothing:?}");
        drop(open);
        waiting.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
        chosen.push(name(&mut waiting));
        chosen
    });
}

#[test]
fn servers_change_while_pen_runs() {
    if !have("pen") {
        return;
    }
    let servers = named();
    alike("-r", &with(&servers, &[""]), names("a b a b c"), |pen| {
        let (second, third) = (servers[1].port, servers[2].port);
        let mut chosen = vec![pen.who()];
        pen.run(&[&format!("server 0 port {second}")]);
        chosen.push(pen.who());
        pen.run(&[&format!("server 0 port {}", servers[0].port)]);
        chosen.push(pen.who());
        pen.run(&[&format!("server 0 address 127.0.0.1 port {second}")]);
        chosen.push(pen.who());
        pen.run(&[&format!("server 3 address 127.0.0.1 port {third}"), "server 0 blacklist 60"]);
        chosen.push(pen.who());
        chosen
    });
}

/// Creates a server with a full accept queue, so that connection attempts stay pending.
fn silent() -> (socket2::Socket, Vec<socket2::Socket>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&crate::harness::local(0).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        socket
    };
    let full: Vec<_> = (0..3).map(fill).collect();
    (listener, full)
}

#[test]
fn a_server_that_does_not_accept_is_excluded_after_the_timeout() {
    if !have("pen") {
        return;
    }
    let servers = named();
    let (silent, _full) = silent();
    let port = silent.local_addr().unwrap().as_socket().unwrap().port();
    let mut list = with(&servers[..1], &[""]);
    list.push(format!("127.0.0.1:{port}"));
    alike("-r -t 1", &list, names("a a a a"), |pen| pen.servers_of([1; 4]));
}

#[test]
fn a_blacklisted_server_is_used_again_after_its_time() {
    if !have("pen") {
        return;
    }
    let servers = named();
    alike("-r", &with(&servers, &["", ""]), names("b b b a"), |pen| {
        // Both programs count whole seconds, and the present second may end soon.
        let mut chosen = wait_until("a second to begin", || {
            pen.run(&["server 0 blacklist 2"]);
            Some(pen.servers_of([1; 3])).filter(|chosen| *chosen == names("b b b"))
        });
        chosen.push(wait_until("the server to be used again", || Some(pen.who()).filter(|who| who == "a")));
        chosen
    });
}
