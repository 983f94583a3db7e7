//! The commands of the program, and their error messages.

use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, connect, line, who};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

fn evener(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FIVE_MISTAKES: &str = r#"pool "web" {
  "10.0.0.1:80",
  { "10.0.0.2:80", wieght = 2 },
  policy = "fastest",
  check = check.http {
    every = "soon" },
}
service "www" { listen = "0.0.0.0:port", pool = "web" }
service "api" { listen = "127.0.0.1:9", pool = "wev" }
"#;

#[test]
fn check_lists_every_problem_with_its_line() {
    let directory = Directory::new();
    let file = directory.write("bad.lua", FIVE_MISTAKES).display().to_string();
    let output = evener(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let text = printed(&output);
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "3: server `10.0.0.2:80`: unknown key `wieght`; did you mean `weight`?",
        "4: pool `web`: unknown policy `fastest`; write policy = \"ewma\"",
        "6: check.http: every must be a duration such as \"500ms\", \"2s\" or \"1h\", got \"soon\"",
        "8: service `www`: invalid port `port` in `0.0.0.0:port`",
        "9: service `api`: there is no pool `wev`; did you mean `web`?",
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("evener: {file}:{expected}")), "{line}");
    }
    let good = directory.write("good.lua", "service \"s\" { listen = \"127.0.0.1:9\", \"10.0.0.1:80\" }");
    let output = evener(&["check", &good.display().to_string()]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with(": valid: 1 service, 1 pool, 1 server\n"), "{text}");
}

#[test]
fn check_prints_an_equivalent_configuration() {
    let directory = Directory::new();
    directory.write("bad.txt", "192.0.2.0/24\n# a comment\n198.51.100.7\n");
    directory.write(
        "first.lua",
        r#"for number = 1, 2 do
  pool("p" .. number) { "10.0.0." .. number .. ":80", policy = "round_robin", slow_start = "120s" }
end
service "www" {
  listen = "127.0.0.1:9", pool = "p1", routes = { { sni = "a.example", pool = "p2" } },
  access = { { permit = "192.0.2.1" }, { deny = prefixes "bad.txt" }, otherwise = "permit" },
  request_log = "requests.log", backlog = 4096,
}
"#,
    );
    let print = |file: &str| {
        let mut command = Command::new(BINARY);
        let output =
            command.args(["check", file, "--print"]).current_dir(directory.file("")).output().unwrap();
        assert!(output.status.success(), "{}", printed(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let printed = print("first.lua");
    let log = directory.file("requests.log").display().to_string();
    let expected = format!(
        r#"pool "p1" {{ "10.0.0.1:80", slow_start = "2min" }}
pool "p2" {{ "10.0.0.2:80", slow_start = "2min" }}

service "www" {{
  listen = "127.0.0.1:9",
  pool = "p1",
  routes = {{ {{ sni = "a.example", pool = "p2" }} }},
  access = {{ {{ permit = "192.0.2.1" }}, {{ deny = {{ "198.51.100.7", "192.0.2.0/24" }} }} }},
  request_log = "{log}",
}}
"#
    );
    assert_eq!(printed, expected);
    std::fs::create_dir(directory.file("elsewhere")).unwrap();
    directory.write("elsewhere/second.lua", &printed);
    assert_eq!(print("elsewhere/second.lua"), printed);
    let wrong = directory.write("bad.lua", FIVE_MISTAKES).display().to_string();
    let output = evener(&["check", &wrong, "--print"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
}

#[test]
fn each_failed_start_prints_one_clear_line() {
    let directory = Directory::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let socket = directory.file("a.sock").display().to_string();
    let run = |config: &str| {
        let file = directory.write("c.lua", config).display().to_string();
        let output = evener(&["run", &file, "--admin", &socket]);
        assert_eq!(output.status.code(), Some(1));
        let text = printed(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        text.replace(&format!("{file}:"), "")
    };
    let text = run(&format!("\nservice \"s\" {{ listen = \"127.0.0.1:{port}\", \"10.0.0.1:80\" }}"));
    assert!(
        text.starts_with(&format!(
            "evener: 2: service `s`: 127.0.0.1:{port} is in use: another program listens"
        )),
        "{text}"
    );
    let text = run("service \"s\" { listen = \"127.0.0.1:9\",\n \"no-such-host.invalid:80\" }");
    assert!(text.starts_with("evener: 2: `no-such-host.invalid` does not resolve"), "{text}");
    let text = run("service \"s\" { listen = \"192.0.2.1:9\", \"10.0.0.1:80\" }");
    assert!(text.contains("192.0.2.1:9 is not an address of this machine"), "{text}");
    let text = run("service \"s\" { listen = \"/no/such/directory/x.sock\", \"10.0.0.1:80\" }");
    assert!(text.contains("its directory does not exist"), "{text}");
    let text = run(
        "pool \"web\" { \"127.0.0.1:1\" }\n\nservice \"s\" { listen = \"127.0.0.1:9\", pool = \"web\", source = \"192.0.2.9\" }",
    );
    assert!(text.contains("source 192.0.2.9 is not an address of this machine"), "{text}");
    let missing = evener(&["run", "/no/such/file.lua", "--admin", &socket]);
    assert_eq!(printed(&missing), "evener: /no/such/file.lua: the file does not exist\n");
    let missing = evener(&["status", "--socket", "/no/such.sock"]);
    assert!(
        printed(&missing).starts_with("evener: no instance listens at /no/such.sock"),
        "{}",
        printed(&missing)
    );
    let wrong = evener(&["tcp", "127.0.0.1:9", "nowhere"]);
    assert_eq!(printed(&wrong), "evener: server `nowhere` has no port: write it as nowhere:80\n");
    assert_eq!(evener(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(evener(&["tcp", "127.0.0.1:9"]).status.code(), Some(2));
}

#[test]
fn two_instances_do_not_share_a_port_or_a_socket() {
    let a = Server::named("a");
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let first = Evener::run(&config);
    let listen = first.port("s");
    let fixed = config.replace("127.0.0.1:0", &format!("127.0.0.1:{listen}"));
    let file = first.write("fixed.lua", &fixed).display().to_string();
    let other = first.file("other.sock").display().to_string();
    let second = evener(&["run", &file, "--admin", &other]);
    assert!(printed(&second).contains("is in use"), "{}", printed(&second));
    let admin = first.admin_socket().display().to_string();
    let second = evener(&["run", &file, "--admin", &admin]);
    assert!(printed(&second).contains("another instance listens there"), "{}", printed(&second));
    assert_eq!(who(listen), "a", "the first instance still serves");
    // The socket file of a killed instance does not prevent the next start.
    let directory = Directory::new();
    drop(std::os::unix::net::UnixListener::bind(directory.file("admin.sock")).unwrap());
    let file = directory.write("evener.lua", &config);
    let next = Evener::start(Command::new(BINARY), directory, &["run", &file.display().to_string()]);
    assert_eq!(next.status()["draining"], false);
}

#[test]
fn a_server_is_in_maintenance_for_a_given_time() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }} }}",
        a.port
    ));
    let listen = evener.port("s");
    let done = evener.run_command(&["maintenance", "a", "--for", "1s"]);
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        "s/a: in maintenance for 1s; warning: pool s now has no usable server, and its clients are refused\n",
        "{}",
        printed(&done)
    );
    assert_eq!(who(listen), "");
    crate::harness::wait_until("the server to be ready again", || (who(listen) == "a").then_some(()));
    let wrong = evener.run_command(&["drain", "a", "--for", "soon"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", printed(&wrong));
}

#[test]
fn status_drain_ready_and_explain_reach_the_instance() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\" }} }}",
        a.port, b.port
    ));
    let listen = evener.port("s");
    let text = |output: &Output| {
        assert!(output.status.success(), "{}", printed(output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut client = connect(listen);
    assert!(line(&mut client).starts_with('a'));
    let status = text(&evener.run_command(&["status"]));
    // The address is beside the name, or below it if the figures are wide.
    let address_of_a = format!("127.0.0.1:{}", a.port);
    for expected in
        ["SERVICE", "tcp on 127.0.0.1:", "pool s: 2 of 2 servers usable (round_robin)", &address_of_a]
    {
        assert!(status.contains(expected), "{status}");
    }
    assert_eq!(text(&evener.run_command(&["drain", "a"])), "s/a: draining\n");
    let explained = text(&evener.run_command(&["explain", "s", "192.0.2.7"]));
    assert!(
        explained.contains("b       1     chosen by the policy\na       1     draining: no new clients\n"),
        "{explained}"
    );
    assert!((0..6).all(|_| who(listen) == "b"));
    assert_eq!(evener.server("a")["active"], 1, "the present connection continues");
    assert_eq!(
        text(&evener.run_command(&["maintenance", "s/b"])),
        "s/b: in maintenance; warning: pool s now has no usable server, and its clients are refused\n"
    );
    assert_eq!(who(listen), "");
    assert_eq!(text(&evener.run_command(&["ready", "a"])), "s/a: ready\n");
    assert_eq!(who(listen), "a");
    let unknown = evener.run_command(&["drain", "c"]);
    assert_eq!(
        (unknown.status.code(), printed(&unknown).as_str()),
        (Some(1), "evener: there is no server `c`; `evener status` lists the servers\n")
    );
    let reload = text(&evener.run_command(&["reload"]));
    assert_eq!(reload, "reloaded; nothing changed\n");
    let unknown = evener.run_command(&["explain", "nothing", "192.0.2.7"]);
    assert!(printed(&unknown).contains("there is no service `nothing`"));
}

#[test]
fn json_logs_are_valid_json() {
    let a = Server::named("a");
    // With few connections no line about the descriptors of the machine is logged.
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", connections_max = 100 }}",
        a.port
    );
    let mut evener = Evener::run_with(&config, &["--log", "json"]);
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    let lines: Vec<serde_json::Value> =
        evener.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // An instance that ends immediately may or may not rename its admin socket, which is logged.
    let is_aside = |line: &&serde_json::Value| {
        line["socket"].as_str().is_some_and(|socket| socket.contains(".draining-"))
    };
    let names = lines.iter().filter(|line| !is_aside(line)).map(|line| line["event"].as_str().unwrap());
    let names: Vec<&str> = names.collect();
    assert_eq!(names, ["listening", "started", "admin_listening", "draining", "drained", "stopped"]);
    assert!(!evener.admin_socket().exists(), "the admin socket is removed");
}

#[test]
fn a_signal_ends_the_demo_without_a_failed_request() {
    for signal in [Signal::TERM, Signal::INT] {
        let runtime = Directory::new();
        let mut command = Command::new(BINARY);
        command.arg("demo").env("XDG_RUNTIME_DIR", runtime.file("run"));
        let mut demo = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(demo.stdout.take().unwrap());
        let mut text = String::new();
        // The second table shows that the load runs.
        while text.matches("requests succeeded").count() < 2 {
            assert!(output.read_line(&mut text).unwrap() > 0, "the demo ended early: {text}");
        }
        kill_process(Pid::from_child(&demo), signal).unwrap();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(0), "{text}");
        assert!(text.lines().last().unwrap().contains(" 0 failed,"), "{text}");
    }
}

#[test]
fn the_demo_shows_a_failover_without_a_failed_request() {
    let runtime = Directory::new();
    let mut demo = Command::new(BINARY);
    demo.args(["demo", "--seconds", "6"]).env("XDG_RUNTIME_DIR", runtime.file("run"));
    let began = std::time::Instant::now();
    let output = demo.output().unwrap();
    assert!(began.elapsed() < DEADLINE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", printed(&output));
    for expected in [
        "the demo stops alpha",
        "evener: alpha is down: ",
        "the demo starts alpha again",
        "evener: alpha is up",
        ", 0 failed",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
