//! Three processes of npm mname behind `evener mname-balancer`: dig and dnsperf get correct responses over UDP
//! and TCP, each client has its server, and servers that end, hang, are removed or added are handled within the
//! time limits of mname-balancer.

use crate::harness::mname::{Balancer, Mname, have_all, with_sockets, within};
use crate::harness::pen::signal;
use crate::harness::{DEADLINE, have};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["5300", "5301", "5302"];
const IDS: [u64; 3] = [5300, 5301, 5302];
/// Time limit for a new connection; the longest pause between connection attempts is about 33 s.
const RECONNECT: Duration = Duration::from_secs(45);

fn three() -> (Balancer, [Mname; 3]) {
    let balancer = Balancer::run(with_sockets(), &[]);
    let servers = NAMES.map(|name| balancer.server(name));
    balancer.expect_ok(DEADLINE, &IDS);
    (balancer, servers)
}

fn client(number: usize) -> String {
    format!("127.0.0.{number}")
}

/// Returns the name of the server that responds to each client over UDP.
fn homes(balancer: &Balancer, clients: usize) -> BTreeMap<String, String> {
    (1..=clients).map(|number| (client(number), balancer.who(&client(number), &[]))).collect()
}

fn number(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).unwrap_or_else(|| panic!("`{name}` is not a server"))
}

#[test]
fn each_client_has_one_server_for_udp_and_tcp() {
    if !have_all() {
        return;
    }
    let (balancer, _servers) = three();
    let homes = homes(&balancer, 9);
    for (client, home) in &homes {
        for more in [&["+tcp"][..], &[], &["+tcp", "+keepopen"], &["+noedns"]] {
            assert_eq!(balancer.who(client, more), *home, "{client} {more:?}");
        }
    }
    // Each server gets the same number of clients.
    for name in NAMES {
        assert_eq!(homes.values().filter(|home| *home == name).count(), 3, "{homes:?}");
    }
    assert_eq!(balancer.backends(), IDS.map(|id| (id, true, 3)));
    let balstat = balancer.balstat();
    for (client, home) in &homes {
        let row = format!("{home:<7}  {client}");
        assert!(balstat.lines().any(|line| line == row), "{row}: {balstat}");
    }
    // mname logs no warnings except about the ends of client connections.
    for name in NAMES {
        let errors = balancer.errors_of(name);
        assert!(errors.lines().all(|line| line.contains("\"balancer ended connection\"")), "{errors}");
    }
}

#[test]
fn long_responses_are_truncated_over_udp_and_complete_over_tcp() {
    if !have_all() {
        return;
    }
    let (balancer, _servers) = three();
    for round in 0..4 {
        let client = client(round + 1);
        let truncated = balancer.dig(&client, "big.example", &["+ignore"]);
        assert!(truncated.contains("flags: qr tc"), "{truncated}");
        for more in [&["+tcp"][..], &[]] {
            let response = balancer.dig(&client, "big.example", &[&["+short"], more].concat());
            let home = balancer.who(&client, &[]);
            let numbers: Vec<String> =
                (0..40).map(|n| format!("\"{home} {n} {}\"", "x".repeat(100))).collect();
            assert_eq!(response.lines().collect::<Vec<_>>(), numbers, "{more:?}");
        }
    }
}

#[test]
fn dnsperf_gets_every_response() {
    if !have_all() || !have("dnsperf") {
        return;
    }
    let (balancer, _servers) = three();
    let names: String = (0..1000).map(|n| format!("n{n}.example TXT\n")).collect();
    let file = balancer.write("names", &names);
    for mode in ["udp", "tcp"] {
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &balancer.listen_address().port().to_string(), "-m", mode])
            .args(["-n", "2", "-c", "4", "-q", "40", "-d"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Queries completed:    2000 (100.00%)"), "{mode}: {text}");
        assert!(text.contains("NOERROR 2000 (100.00%)"), "{mode}: {text}");
    }
}

#[test]
fn clients_of_a_killed_server_use_another_server_until_their_server_is_up_again() {
    if !have_all() {
        return;
    }
    let (balancer, mut servers) = three();
    let before = homes(&balancer, 6);
    let victim = before[&client(1)].clone();
    servers[number(&victim)].kill();
    // The socket of the killed server remains, but no process listens on it.
    balancer.expect(DEADLINE, "server_down", &victim);
    for (client, home) in &before {
        let meanwhile = balancer.who(client, &[]);
        assert!(NAMES.contains(&meanwhile.as_str()) && meanwhile != victim, "{client}: {meanwhile}");
        assert!(*home == victim || *home == meanwhile, "{client} had {home}, not {meanwhile}");
        assert_eq!(balancer.who(client, &["+tcp"]), meanwhile, "{client}");
    }
    // The assignment of clients to servers does not change while the server is down.
    assert_eq!(balancer.backends().iter().map(|(.., clients)| *clients).collect::<Vec<_>>(), [2, 2, 2]);
    servers[number(&victim)] = balancer.server(&victim);
    balancer.expect_ok(RECONNECT, &IDS);
    assert_eq!(homes(&balancer, 6), before, "all clients return to their servers");
    assert!(balancer.events("server_removed").is_empty());
}

#[test]
fn a_heartbeat_detects_only_the_server_that_hangs() {
    if !have_all() {
        return;
    }
    let (balancer, servers) = three();
    let before = homes(&balancer, 3);
    let victim = before[&client(1)].clone();
    let pid = servers[number(&victim)].pid();
    let began = Instant::now();
    signal("STOP", pid);
    // The heartbeat is sent 5 s after the last response, and times out after 15 s.
    balancer.expect(Duration::from_secs(30), "server_down", &victim);
    let took = began.elapsed();
    assert!((Duration::from_secs(13)..Duration::from_secs(25)).contains(&took), "{took:?}");
    let meanwhile = balancer.who(&client(1), &[]);
    assert!(NAMES.contains(&meanwhile.as_str()) && meanwhile != victim, "{meanwhile}");
    signal("CONT", pid);
    // A connection attempt that began while the server was stopped waits up to 30 s for the hello.
    balancer.expect_ok(Duration::from_secs(90), &IDS);
    assert_eq!(homes(&balancer, 3), before, "the client returns to its server");
    let down = balancer.events("server_down");
    assert!(down.iter().all(|line| line["server"] == victim.as_str()), "{down:?}");
}

#[test]
fn clients_move_from_a_removed_socket_and_a_new_socket_gets_clients() {
    if !have_all() {
        return;
    }
    let (balancer, _servers) = three();
    let before = homes(&balancer, 6);
    let victim = before[&client(1)].clone();
    fs::remove_file(balancer.socket(&victim)).unwrap();
    balancer.expect(DEADLINE, "server_removed", &victim);
    let after = homes(&balancer, 6);
    assert!(after.values().all(|home| *home != victim), "{after:?}");
    assert!(before.iter().all(|(client, home)| *home == victim || after[client] == *home), "{after:?}");
    assert_eq!(balancer.backends().iter().map(|(.., clients)| clients).sum::<u64>(), 6);
    let _new = balancer.server("5303");
    balancer.expect(DEADLINE, "server_up", "5303");
    let fresh: Vec<String> = (7..=9).map(|number| balancer.who(&client(number), &[])).collect();
    assert!(fresh.contains(&"5303".to_owned()), "{fresh:?}");
    assert_eq!(homes(&balancer, 6), after, "known clients keep their servers");
}

#[test]
fn clients_are_rebalanced_when_a_server_is_added() {
    if !have_all() {
        return;
    }
    let balancer = Balancer::run(with_sockets(), &[]);
    let _servers = [balancer.server("5300"), balancer.server("5301")];
    balancer.expect_ok(DEADLINE, &[5300, 5301]);
    homes(&balancer, 10);
    let clients =
        |balancer: &Balancer| balancer.backends().iter().map(|(.., clients)| *clients).collect::<Vec<_>>();
    assert_eq!(clients(&balancer), [5, 5]);
    let _third = balancer.server("5302");
    balancer.expect_ok(DEADLINE, &IDS);
    // Rebalancing runs every 15 s. The difference of 5 clients exceeds the allowed difference of 3 by two
    // clients.
    within(Duration::from_secs(25), "surplus clients to be removed", || {
        let mut clients = clients(&balancer);
        clients.sort_unstable();
        (clients == [0, 3, 5]).then_some(())
    });
}

#[test]
fn without_servers_clients_get_servfail_immediately_and_the_log_line_is_rate_limited() {
    if !have_all() {
        return;
    }
    let balancer = Balancer::run(with_sockets(), &[]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        let response = balancer.dig(&client(1), "a.example", &[]);
        assert!(response.contains("status: SERVFAIL"), "{response}");
    }
    let printed = balancer.events("no_server");
    assert!(printed.iter().all(|line| line["msg"] == "No backends available"), "{printed:?}");
    assert_eq!(printed.len(), 2, "one line every 5 s: {printed:?}");
    let _server = balancer.server("5300");
    balancer.expect_ok(DEADLINE, &[5300]);
    assert_eq!(balancer.who(&client(1), &[]), "5300");
}
