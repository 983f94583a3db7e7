//! `evener plan`, `evener apply` and `evener confirm`: the predicted numbers are the observed ones, limits, files that
//! change nothing, and applies that go back by themselves.

use crate::harness::{Evener, Server, line, reserved_port, wait_until, who};
use crate::tcp::proxy_protocol::connect_from;
use crate::udp::flows::{Echo, ask, client};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Output;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command with a file of a configuration beside the file of the start.
fn run(evener: &Evener, command: &str, config: &str, options: &[&str]) -> Output {
    let file = evener.write("new.lua", config).display().to_string();
    evener.run_command(&[&[command, file.as_str()], options].concat())
}

/// Returns the plan of a configuration.
fn plan(evener: &Evener, config: &str) -> Value {
    let output = run(evener, "plan", config, &["--json"]);
    assert!(matches!(output.status.code(), Some(0 | 2)), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn apply(evener: &Evener, config: &str, options: &[&str]) -> String {
    let output = run(evener, "apply", config, options);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs an apply that is refused, and returns its messages.
fn refused(evener: &Evener, config: &str, options: &[&str]) -> String {
    let output = run(evener, "apply", config, options);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let messages = text(&output.stderr);
    assert!(messages.contains("not applied: the instance continues"), "{messages}");
    messages
}

/// Returns a service with these servers.
fn service(keys: &str, ports: &[u16]) -> String {
    let servers: String = ports.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
    format!("service \"s\" {{ listen = \"127.0.0.1:0\", {keys} {servers} }}")
}

#[test]
fn a_plan_lists_the_changes_and_changes_nothing() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let running = service("", &[a.port]);
    let evener = Evener::run(&running);
    let new = format!(
        "{}\nservice \"t\" {{ listen = \"127.0.0.1:{}\", pool = \"s\" }}",
        service("backlog = 9,", &[a.port, b.port]),
        reserved_port()
    );
    let output = run(&evener, "plan", &new, &[]);
    assert_eq!(output.status.code(), Some(2), "a plan with changes has its own status");
    let shown = text(&output.stdout);
    for part in [
        format!("+ server s/127.0.0.1:{}\n", b.port),
        "~ service s: backlog 4096 -> 9\n".to_owned(),
        "+ service t\n".to_owned(),
        "+ listener t 127.0.0.1:".to_owned(),
        "3 to add, 1 to change, 0 to remove\n".to_owned(),
    ] {
        assert!(shown.contains(&part), "{part}: {shown}");
    }
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let unchanged = run(&evener, "plan", &running, &[]);
    assert_eq!(unchanged.status.code(), Some(0), "{}", text(&unchanged.stdout));
    assert!(text(&unchanged.stdout).starts_with("no changes\n"), "{}", text(&unchanged.stdout));
    let wrong = run(&evener, "plan", &running.replace("listen", "lisen"), &[]);
    let problem = text(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(problem.contains("new.lua:1") && problem.contains("did you mean `listen`?"), "{problem}");
    assert!(evener.status()["services"].as_array().unwrap().len() == 1 && who(evener.port("s")) == "a");
}

#[test]
fn sticky_clients_move_as_planned() {
    let servers: Vec<Server> = ["a", "b", "c", "d"].into_iter().map(Server::named).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let config = |ports: &[u16]| service("sticky = true, policy = \"hash\",", ports);
    let evener = Evener::run(&config(&ports[..3]));
    let listen = evener.port("s");
    let ask_all = || -> BTreeMap<String, String> {
        let clients = (1..=40).map(|number| format!("127.0.0.{number}"));
        clients.map(|address| (address.clone(), line(&mut connect_from(&address, listen)))).collect()
    };
    let moved = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
        before.iter().filter(|(address, server)| after[*address] != **server).count()
    };
    let before = ask_all();
    // Another server does not move sticky clients; a removed one does.
    let (more, fewer) = (config(&ports), config(&ports[1..]));
    assert_eq!(plan(&evener, &more)["clients"]["moved"], 0);
    apply(&evener, &more, &["--max-moved", "0"]);
    let same = ask_all();
    assert_eq!(moved(&before, &same), 0);
    let planned = plan(&evener, &fewer);
    let expected = before.values().filter(|server| server.starts_with("a ")).count();
    assert!(expected > 0, "{before:?}");
    assert_eq!(
        (&planned["clients"]["moved"], &planned["clients"]["tracked"]),
        (&expected.into(), &40.into())
    );
    assert_eq!(planned["clients"]["reasons"]["server_removed"]["moved"], expected, "{planned}");
    let why = refused(&evener, &fewer, &["--max-moved", "1%"]);
    assert!(why.contains(&format!("{expected} of 40 clients and flows would move")), "{why}");
    assert_eq!(moved(&same, &ask_all()), 0, "a refused apply changes nothing");
    apply(&evener, &fewer, &["--if-unchanged", planned["plan"].as_str().unwrap(), "--max-moved", "100%"]);
    assert_eq!(moved(&same, &ask_all()), expected);
}

#[test]
fn flows_move_as_planned() {
    let echoes: Vec<Echo> = ["a", "b", "c"].into_iter().map(Echo::start).collect();
    let ports: Vec<u16> = echoes.iter().map(|echo| echo.port).collect();
    let config = |ports: &[u16]| service("protocol = \"udp\", policy = \"round_robin\",", ports);
    let evener = Evener::run(&config(&ports));
    let listen = evener.port("s");
    let clients: Vec<_> = (0..30).map(|_| client(listen)).collect();
    let ask_all = || -> Vec<String> { clients.iter().map(|client| ask(client, "x")).collect() };
    let before = ask_all();
    let new = config(&ports[..2]);
    let planned = plan(&evener, &new);
    let expected = before.iter().filter(|server| server.starts_with("c ")).count();
    assert!(expected > 0, "{before:?}");
    assert_eq!(
        (&planned["flows"]["moved"], &planned["flows"]["tracked"]),
        (&expected.into(), &30.into()),
        "{planned}"
    );
    assert_eq!((&planned["continuing"], &planned["clients"]["tracked"]), (&0.into(), &0.into()), "{planned}");
    let why = refused(&evener, &new, &["--max-moved", &(expected - 1).to_string()]);
    assert!(why.contains("1 more than"), "{why}");
    apply(&evener, &new, &["--max-moved", &expected.to_string()]);
    let after = ask_all();
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(moved, expected, "{before:?} {after:?}");
    // Without its service, every flow ends.
    let other = Server::named("o");
    let gone = format!("service \"o\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", other.port);
    let planned = plan(&evener, &gone);
    assert_eq!(planned["flows"]["reasons"]["service_removed"]["moved"], 30, "{planned}");
}

#[test]
fn an_apply_is_the_reviewed_plan_or_nothing() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let evener = Evener::run(&service("", &[a.port]));
    let listen = evener.port("s");
    let new = service("", &[b.port]);
    let reviewed = plan(&evener, &new)["plan"].as_str().unwrap().to_owned();
    evener.reload(&service("", &[c.port]));
    let why = refused(&evener, &new, &["--if-unchanged", &reviewed]);
    assert!(why.contains(&format!("changed since plan {reviewed}")), "{why}");
    assert_eq!(who(listen), "c");
    let current = plan(&evener, &new)["plan"].as_str().unwrap().to_owned();
    let why = refused(&evener, &service("", &[a.port]), &["--if-unchanged", &current]);
    assert!(why.contains("plan again"), "another file is another plan: {why}");
    let changes = apply(&evener, &new, &["--if-unchanged", &current]);
    assert!(changes.contains(&format!("+ server s/127.0.0.1:{}", b.port)), "{changes}");
    assert_eq!(who(listen), "b");
    // A reload reads the file of the start.
    assert!(evener.status()["applied_file"].as_str().unwrap().ends_with("new.lua"));
    evener.reload(&service("", &[c.port]));
    assert_eq!(who(listen), "c");
    evener.expect_log("the reload replaced the configuration that `evener apply` took from");
    assert!(evener.status().get("applied_file").is_none());
}

#[test]
fn a_broken_file_leaves_the_service_unhurt() {
    let a = Server::named("a");
    let evener = Evener::run(&service("", &[a.port]));
    let listen = evener.port("s");
    let mut open = connect_from("127.0.0.1", listen);
    assert_eq!(line(&mut open), "a 127.0.0.1");
    let in_use = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = service("", &[a.port]);
    let taken = good.replace("127.0.0.1:0", &in_use.local_addr().unwrap().to_string());
    for (config, why) in [
        ("service \"s\" {".to_owned(), "the file ends inside"),
        (good.replace("listen", "lisen"), "new.lua:1"),
        (taken, "is in use"),
    ] {
        let messages = refused(&evener, &config, &["--confirm", "1h"]);
        assert!(messages.contains(why), "{why}: {messages}");
    }
    assert!(evener.status().get("confirmation").is_none());
    assert_eq!((evener.port("s"), who(listen)), (listen, "a".into()));
    use std::io::{Read, Write};
    open.write_all(b"still").unwrap();
    open.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn an_apply_goes_back_unless_it_is_confirmed() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let (old, new) = (service("", &[a.port]), service("", &[b.port]));
    let evener = Evener::run(&old);
    let listen = evener.port("s");
    // Time passes.
    let shown = apply(&evener, &new, &["--confirm", "1s"]);
    assert!(shown.contains("goes back in 1s unless `evener confirm` keeps it"), "{shown}");
    evener.expect_log("confirmation_awaited");
    wait_until("the old configuration to come back", || (who(listen) == "a").then_some(()));
    evener.expect_log("went_back");
    let late = evener.run_command(&["confirm"]);
    assert!(
        text(&late.stderr).contains("no configuration waits for a confirmation"),
        "{}",
        text(&late.stderr)
    );
    // An operator goes back.
    apply(&evener, &new, &["--confirm", "1h"]);
    assert_eq!(who(listen), "b");
    let waiting = evener.status()["confirmation"].clone();
    assert!(waiting["left_s"].as_u64().unwrap() > 3000, "{waiting}");
    let status = text(&evener.run_command(&["status"]).stdout);
    assert!(status.contains("unless `evener confirm`"), "{status}");
    // Nothing else decides meanwhile.
    let why = refused(&evener, &old, &[]);
    assert!(why.contains("waits for its confirmation") && why.contains("evener confirm --back"), "{why}");
    let reload = evener.run_command(&["reload"]);
    assert!(text(&reload.stderr).contains("waits for its confirmation"), "{}", text(&reload.stderr));
    assert_eq!(who(listen), "b");
    assert!(evener.run_command(&["confirm", "--back"]).status.success());
    wait_until("the old configuration to come back", || (who(listen) == "a").then_some(()));
    // The confirmation keeps the configuration.
    apply(&evener, &new, &["--confirm", "1h"]);
    assert!(evener.run_command(&["confirm"]).status.success());
    evener.expect_log(" confirmed ");
    assert!(evener.status().get("confirmation").is_none());
    evener.reload(&new);
    assert_eq!(who(listen), "b");
}

#[test]
fn relative_paths_begin_at_the_directory_of_the_file() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&service("", &[a.port]));
    let pools = format!("pool \"p\" {{ \"127.0.0.1:{}\" }}", b.port);
    evener.write("pools.lua", &pools);
    let new = "include \"pools.lua\"\nservice \"s\" { listen = \"127.0.0.1:0\", pool = \"p\" }";
    apply(&evener, new, &[]);
    assert_eq!(who(evener.port("s")), "b");
    // The file of the start with another text of its own is no other file.
    evener.write_config(new);
    let file = evener.file("evener.lua").display().to_string();
    let output = evener.run_command(&["apply", &file]);
    assert_eq!(text(&output.stdout), "applied; nothing changed\n", "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "the file of the start is applied");
}

#[test]
fn going_back_needs_no_files_and_restores_what_operators_set() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let directory = crate::harness::Directory::new();
    let list = directory.write("servers.txt", &format!("127.0.0.1:{}\n127.0.0.1:{}\n", a.port, b.port));
    let before = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.file \"{}\" }}
         service \"t\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}",
        list.display(),
        a.port
    );
    let evener = Evener::run(&before);
    let name = format!("127.0.0.1:{}", b.port);
    let listed = || evener.servers_of("s").get(&name).cloned();
    wait_until("the listed servers", listed);
    assert!(evener.run_command(&["maintenance", &format!("s/{name}")]).status.success());
    assert!(evener.run_command(&["deny", "t", "192.0.2.0/24"]).status.success());
    let after = format!("service \"u\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    apply(&evener, &after, &["--confirm", "1h"]);
    std::fs::remove_file(&list).unwrap();
    assert!(evener.run_command(&["confirm", "--back"]).status.success());
    evener.expect_log(" went_back ");
    assert_eq!(wait_until("the listed servers", listed)["state"], "maintenance");
    let rules = evener.run_command(&["access"]);
    assert!(text(&rules.stdout).contains("192.0.2.0/24"), "{}", text(&rules.stdout));
}
