//! Three processes of npm mname behind `evener mname-balancer`: dig and dnsperf get right answers over UDP and TCP, each
//! client has its server, and servers that die, hang, leave and come are dealt with in the times of mname-balancer.

use crate::harness::mname::{Balancer, Mname, have_all, with_sockets, within};
use crate::harness::pen::signal;
use crate::harness::{DEADLINE, have};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["5300", "5301", "5302"];
const IDS: [u64; 3] = [5300, 5301, 5302];
/// The greatest pause between connects is about 33 s.
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

/// The server of each of so many clients, over UDP.
fn homes(balancer: &Balancer, clients: usize) -> BTreeMap<String, String> {
    (1..=clients).map(|number| (client(number), balancer.who(&client(number), &[]))).collect()
}

fn number(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).unwrap_or_else(|| panic!("`{name}` is no server"))
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
    // They take turns.
    for name in NAMES {
        assert_eq!(homes.values().filter(|home| *home == name).count(), 3, "{homes:?}");
    }
    assert_eq!(balancer.backends(), IDS.map(|id| (id, true, 3)));
    let balstat = balancer.balstat();
    for (client, home) in &homes {
        let row = format!("{home:<7}  {client}");
        assert!(balstat.lines().any(|line| line == row), "{row}: {balstat}");
    }
    // That a client's connection ended is all that mname warned of.
    for name in NAMES {
        let errors = balancer.errors_of(name);
        assert!(errors.lines().all(|line| line.contains("\"balancer ended connection\"")), "{errors}");
    }
}

#[test]
fn long_answers_are_truncated_over_udp_and_whole_over_tcp() {
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
fn dnsperf_loses_nothing() {
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
fn clients_of_a_server_that_was_killed_have_another_one_until_it_is_back() {
    if !have_all() {
        return;
    }
    let (balancer, mut servers) = three();
    let before = homes(&balancer, 6);
    let victim = before[&client(1)].clone();
    servers[number(&victim)].kill();
    // Its socket stays behind: nobody listens there.
    balancer.expect(DEADLINE, "server_down", &victim);
    for (client, home) in &before {
        let meanwhile = balancer.who(client, &[]);
        assert!(NAMES.contains(&meanwhile.as_str()) && meanwhile != victim, "{client}: {meanwhile}");
        assert!(*home == victim || *home == meanwhile, "{client} had {home}, not {meanwhile}");
        assert_eq!(balancer.who(client, &["+tcp"]), meanwhile, "{client}");
    }
    // Where clients are at home does not change meanwhile.
    assert_eq!(balancer.backends().iter().map(|(.., clients)| *clients).collect::<Vec<_>>(), [2, 2, 2]);
    servers[number(&victim)] = balancer.server(&victim);
    balancer.expect_ok(RECONNECT, &IDS);
    assert_eq!(homes(&balancer, 6), before, "all go home");
    assert!(balancer.events("server_removed").is_empty());
}

#[test]
fn a_server_that_hangs_is_found_out_by_its_heartbeat_and_the_others_are_not() {
    if !have_all() {
        return;
    }
    let (balancer, servers) = three();
    let before = homes(&balancer, 3);
    let victim = before[&client(1)].clone();
    let pid = servers[number(&victim)].pid();
    let began = Instant::now();
    signal("STOP", pid);
    // 5 s after its last answer it is asked, and has 15 s.
    balancer.expect(Duration::from_secs(30), "server_down", &victim);
    let took = began.elapsed();
    assert!((Duration::from_secs(13)..Duration::from_secs(25)).contains(&took), "{took:?}");
    let meanwhile = balancer.who(&client(1), &[]);
    assert!(NAMES.contains(&meanwhile.as_str()) && meanwhile != victim, "{meanwhile}");
    signal("CONT", pid);
    // What was tried meanwhile had 30 s for its hello.
    balancer.expect_ok(Duration::from_secs(90), &IDS);
    assert_eq!(homes(&balancer, 3), before, "it goes home");
    let down = balancer.events("server_down");
    assert!(down.iter().all(|line| line["server"] == victim.as_str()), "{down:?}");
}

#[test]
fn sockets_that_are_removed_and_that_are_new() {
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
    assert_eq!(homes(&balancer, 6), after, "who was there stays where it is");
}

#[test]
fn homes_are_evened_out_when_a_server_joins() {
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
    // Each 15 s; 5 - 0 is more than three, by two.
    within(Duration::from_secs(25), "the surplus to be forgotten", || {
        let mut clients = clients(&balancer);
        clients.sort_unstable();
        (clients == [0, 3, 5]).then_some(())
    });
}

#[test]
fn without_servers_clients_hear_it_at_once_and_the_log_says_so_now_and_then() {
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
    assert_eq!(printed.len(), 2, "once in 5 s: {printed:?}");
    let _server = balancer.server("5300");
    balancer.expect_ok(DEADLINE, &[5300]);
    assert_eq!(balancer.who(&client(1), &[]), "5300");
}
