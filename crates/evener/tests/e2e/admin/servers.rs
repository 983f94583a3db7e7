//! Servers that operators add, change and remove while the instance runs, and the state file.

use super::access::api;
use crate::harness::{BINARY, Directory, Evener, Server, connect, line, wait_until, who};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Command;

fn pool(servers: &str, listen: u16, admin: &str) -> String {
    format!(
        "{admin}\npool \"web\" {{ {servers} }}\nservice \"s\" {{ listen = \"127.0.0.1:{listen}\", pool = \"web\" }}"
    )
}

fn quoted(server: &Server) -> String {
    format!("\"127.0.0.1:{}\"", server.port)
}

fn run(evener: &Evener, arguments: &[&str]) -> String {
    let output = evener.run_command(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the number of connections of each server among `count` new ones.
fn shares(port: u16, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    (0..count).for_each(|_| *shares.entry(who(port)).or_default() += 1);
    shares
}

fn expected(shares: &[(&str, usize)]) -> BTreeMap<String, usize> {
    shares.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn an_added_server_gets_its_share_at_once_and_a_drained_one_keeps_its_clients() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run_with(&pool(&quoted(&a), 0, ""), &["--workers", "1"]);
    let port = evener.port("s");
    assert_eq!(shares(port, 4), expected(&[("a", 4)]));
    let name = format!("web/127.0.0.1:{}", b.port);
    let added = run(&evener, &["add", "web", &format!("127.0.0.1:{}", b.port)]);
    assert_eq!(added, format!("{name}: added\n"));
    assert_eq!(shares(port, 8), expected(&[("a", 4), ("b", 4)]));

    let mut open = loop {
        let mut stream = connect(port);
        if line(&mut stream).starts_with("b ") {
            break stream;
        }
    };
    run(&evener, &["drain", &name]);
    assert_eq!(shares(port, 8), expected(&[("a", 8)]));
    open.write_all(b"still here\n").unwrap();
    assert_eq!(line(&mut open), "still here");
    run(&evener, &["ready", &name]);
    assert_eq!(run(&evener, &["weight", &name, "0"]), format!("{name}: weight 1 -> weight 0\n"));
    assert_eq!(shares(port, 4), expected(&[("a", 4)]));
    run(&evener, &["weight", &name, "1"]);
    run(&evener, &["remove", &name]);
    assert_eq!(shares(port, 4), expected(&[("a", 4)]));
    open.write_all(b"and here\n").unwrap();
    assert_eq!(line(&mut open), "and here");
}

#[test]
fn changes_are_refused_as_problems_and_logged_with_the_user() {
    let a = Server::named("a");
    let evener = Evener::run(&pool(&quoted(&a), 0, ""));
    let path = "/v1/pools/web/servers";
    let server = format!("{path}/127.0.0.1:{}", a.port);
    let refused: &[(&str, &str, &str, u16, &str)] = &[
        ("POST", "/v1/pools/none/servers", r#"{"address": "127.0.0.1:1"}"#, 404, "no pool `none`"),
        ("POST", path, r#"{"address": "example.org:80"}"#, 422, "host name"),
        ("POST", path, r#"{"address": "127.0.0.1:1", "weight": 70000}"#, 422, "weight must be"),
        ("POST", path, r#"{"address": "127.0.0.1:1", "wieght": 7}"#, 422, "wieght"),
        ("POST", path, r#"{"address": "127.0.0.1:1""#, 400, ""),
        ("POST", path, "{}", 422, "address"),
        ("PATCH", &format!("{path}/none"), r#"{"weight": 1}"#, 404, "no server `none`"),
        ("PATCH", &server, r#"{"weight": 70000}"#, 422, "weight must be"),
        ("PATCH", &server, r#"{"state": "off"}"#, 422, "not a state"),
        ("PATCH", &server, "{}", 422, "`weight` or a `state`"),
        ("DELETE", &format!("{path}/none"), "", 404, "no server `none`"),
        ("PUT", path, "", 405, ""),
        ("GET", "/v1/nothing", "", 404, "no such path"),
        ("GET", "/v1/config?format=xml", "", 422, "lua or json"),
    ];
    for (method, path, body, status, text) in refused {
        let (got, problem) = api(&evener, method, path, Some(body));
        assert_eq!(got, *status, "{method} {path} {body}: {problem}");
        assert_eq!(problem["status"], *status, "{problem}");
        assert_eq!(problem["type"], "about:blank", "{problem}");
        assert!(problem["title"].is_string() && problem["errors"].is_array(), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(text), "{method} {path} {body}: {problem}");
    }
    assert_eq!(evener.log_count(" api_change "), 0);
    let (status, added) =
        api(&evener, "POST", path, Some(r#"{"address": "127.0.0.1:1", "name": "b", "weight": 2}"#));
    assert_eq!(
        (status, added),
        (201, json!({"server": "web/b", "before": "absent", "after": "127.0.0.1:1 weight 2"}))
    );
    let (status, twice) = api(&evener, "POST", path, Some(r#"{"address": "127.0.0.1:1", "name": "c"}"#));
    assert_eq!(status, 409, "{twice}");
    let both = r#"{"weight": 5, "state": "drain", "for": "10m"}"#;
    assert_eq!(api(&evener, "PATCH", "/v1/pools/web/servers/b", Some(both)).0, 200);
    let b = evener.server("b");
    assert_eq!((b["weight"].as_u64(), b["state"].as_str()), (Some(5), Some("drain")));
    assert_eq!(b["source"], "operator");

    let (_, events) = api(&evener, "GET", "/v1/events", None);
    let events = events["events"].as_array().unwrap().iter().filter(|event| event["event"] == "api_change");
    let fields: Vec<&Value> = events.map(|event| &event["fields"]).collect();
    assert_eq!(fields.len(), 2, "{fields:?}");
    let user = rustix::process::geteuid().as_raw();
    assert_eq!(fields[0]["who"], format!("uid {user} pid {}", std::process::id()));
    assert_eq!(fields[0]["action"], "add");
    assert_eq!(fields[0]["subject"], "server web/b");
    assert_eq!(fields[1]["before"], "weight 2, ready");
    assert_eq!(fields[1]["after"], "weight 5, drain for 10m");
}

#[test]
fn changes_survive_a_restart_until_the_file_changes_the_same_field() {
    let directory = Directory::new();
    let state = directory.file("state.json");
    let admin = format!("admin {{ state_file = \"{}\" }}", state.display());
    let file = |c: u32| {
        pool(&format!("\"127.0.0.1:1\", \"127.0.0.1:2\", {{ \"127.0.0.1:3\", weight = {c} }}"), 0, &admin)
    };
    let names = |evener: &Evener| -> Vec<String> {
        let servers = evener.servers_of("web");
        let text = |server: &Value| format!("{} {} {}", server["name"], server["weight"], server["state"]);
        servers.values().map(|server| text(server).replace('"', "")).collect()
    };
    {
        let mut evener = Evener::run(&file(1));
        run(&evener, &["weight", "web/127.0.0.1:3", "7"]);
        run(&evener, &["weight", "web/127.0.0.1:1", "5"]);
        run(&evener, &["drain", "web/127.0.0.1:1"]);
        run(&evener, &["maintenance", "web/127.0.0.1:3", "--for", "1h"]);
        run(&evener, &["remove", "web/127.0.0.1:2"]);
        run(&evener, &["add", "web", "127.0.0.1:4", "--weight", "3"]);
        evener.signal("TERM");
        evener.end();
    }
    let changed = ["127.0.0.1:1 5 drain", "127.0.0.1:3 7 maintenance", "127.0.0.1:4 3 ready"];
    {
        let evener = Evener::run(&file(1));
        assert_eq!(names(&evener), changed);
        let left = evener.server("127.0.0.1:3")["state_left_s"].as_u64().unwrap();
        assert!(left > 3000, "{left}");
        // A crash instead of an orderly end loses nothing.
        evener.signal("KILL");
    }
    {
        let evener = Evener::run(&file(2));
        let newer = ["127.0.0.1:1 5 drain", "127.0.0.1:3 2 maintenance", "127.0.0.1:4 3 ready"];
        assert_eq!(names(&evener), newer);
        evener.reload(&pool("\"127.0.0.1:1\"", 0, &admin));
        assert_eq!(names(&evener), ["127.0.0.1:1 5 drain", "127.0.0.1:4 3 ready"]);
    }
    fs::write(&state, "{\"version\": 1, \"pools\"").unwrap();
    let evener = Evener::run(&file(1));
    evener.expect_log("it is damaged");
    assert_eq!(names(&evener), ["127.0.0.1:1 1 ready", "127.0.0.1:2 1 ready", "127.0.0.1:3 1 ready"]);
    run(&evener, &["drain", "web/127.0.0.1:2"]);
    wait_until("a new state file", || fs::read_to_string(&state).unwrap().contains("drain").then_some(()));
}

#[test]
fn the_saved_configuration_is_the_running_one() {
    let evener = Evener::run(&pool("\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"", 0, ""));
    run(&evener, &["weight", "web/127.0.0.1:1", "5"]);
    run(&evener, &["drain", "web/127.0.0.1:3"]);
    run(&evener, &["remove", "web/127.0.0.1:2"]);
    run(&evener, &["add", "web", "127.0.0.1:4", "--name", "d", "--max", "9"]);
    let saved = evener.file("saved.lua");
    run(&evener, &["save", saved.to_str().unwrap()]);
    let text = fs::read_to_string(&saved).unwrap();
    assert_eq!(run(&evener, &["save"]), text);
    let check = Command::new(BINARY).args(["check", "--print"]).arg(&saved).output().unwrap();
    assert_eq!(String::from_utf8(check.stdout).unwrap(), text);
    let (_, json) = api(&evener, "GET", "/v1/config", None);
    let servers = json!([
        {"address": "127.0.0.1:1", "weight": 5}, {"address": "127.0.0.1:3", "state": "drain"},
        {"address": "127.0.0.1:4", "name": "d", "max": 9}]);
    assert_eq!(json["pools"][0]["servers"], servers, "{json}");
    // Nothing changes if the instance runs the saved file.
    let before = evener.servers_of("web");
    evener.reload(&text);
    let after = evener.servers_of("web");
    let settings = |server: &Value| ["name", "weight", "state", "max"].map(|key| server[key].to_string());
    assert_eq!(
        before.values().map(settings).collect::<Vec<_>>(),
        after.values().map(settings).collect::<Vec<_>>()
    );
}

#[test]
fn a_configuration_with_functions_is_not_saved_without_them() {
    let evener = Evener::run(
        "service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:1\", check = function() return true end }",
    );
    let file = evener.write("precious.lua", "-- as it was");
    let output = evener.run_command(&["save", file.to_str().unwrap()]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("would be lost"), "{message}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "-- as it was");
    let printed = run(&evener, &["save", "-"]);
    assert!(printed.starts_with("-- Without the functions of the file"), "{printed}");
    let (_, json) = api(&evener, "GET", "/v1/config", None);
    assert_eq!(json["has_functions"], true);
}
