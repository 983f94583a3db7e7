//! Wrong command lines: the program prints what was meant, with the names of the running instance.

use crate::harness::{BINARY, Directory, Evener, Server};
use std::process::{Command, Output};

fn evener() -> (Evener, Server) {
    let server = Server::named("a");
    let config = format!(
        "local web = pool \"web\" {{ {{ \"127.0.0.1:{0}\", name = \"first\" }}, {{ \"127.0.0.1:1\", name = \"second\" }} }}
         service \"www\" {{ listen = \"127.0.0.1:0\", pool = web }}
         service \"raw\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{0}\" }}",
        server.port
    );
    (Evener::run(&config), server)
}

fn check(output: &Output, status: i32, expected: &str) {
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{printed}");
    assert!(printed.contains(expected), "expected `{expected}`, got:\n{printed}");
}

#[test]
fn a_missing_server_or_service_is_named_from_the_running_instance() {
    let (evener, server) = evener();
    let raw = format!("raw/127.0.0.1:{}", server.port);
    check(
        &evener.run_command(&["drain"]),
        2,
        &format!(
            "evener: the server is missing: evener drain POOL/SERVER\n\
             evener: an instance is running; its servers: web/first, web/second, {raw}\n"
        ),
    );
    check(
        &evener.run_command(&["deny", "10.0.0.0/8"]),
        2,
        "evener: the service is missing: evener deny SERVICE 10.0.0.0/8\n\
         evener: an instance is running; its services: www, raw\n",
    );
    check(&evener.run_command(&["explain", "www"]), 2, "evener explain SERVICE 192.0.2.7");
}

#[test]
fn a_wrong_server_gets_the_servers_that_are_near() {
    let (evener, server) = evener();
    let drain = |server: &str, expected: &str| check(&evener.run_command(&["drain", server]), 1, expected);
    drain("web", "evener: `web` is a pool: give one of its servers: web/first, web/second\n");
    drain("web/x", "there is no server `x` in pool `web`; its servers: web/first, web/second\n");
    drain("secnd", "there is no server `secnd`; did you mean `second`?\n");
    let address = format!("127.0.0.1:{}", server.port);
    drain("127.0.0.1:1", "there is no server `127.0.0.1:1`; the server with this address is web/second\n");
    drain("127.0.0.1:2", "there is no server `127.0.0.1:2`; `evener status` lists the servers\n");
    let named = evener.run_command(&["status", "127.0.0.1:1"]);
    check(&named, 1, "the server with this address is web/second\n");
    check(
        &evener.run_command(&["status", &address.replace("127.0.0.1", "127.0.0.2")]),
        1,
        "`; `evener status` lists them\n",
    );
    drain("nothing/x", "there is no server `nothing/x`; `evener status` lists the servers\n");
    check(
        &evener.run_command(&["explain", "wwv", "192.0.2.7"]),
        1,
        "there is no service `wwv`; did you mean `www`?\n",
    );
    check(&evener.run_command(&["clients"]), 1, "no service records clients: give a service `clients`");
    check(&evener.run_command(&["clients", "www"]), 1, "service `www` does not record clients");
}

#[test]
fn words_of_other_programs_get_the_command_that_was_meant() {
    let directory = Directory::new();
    let run = |line: &str| {
        let mut command = Command::new(BINARY);
        command.args(line.split(' ')).env("XDG_RUNTIME_DIR", directory.file("none"));
        command.output().unwrap()
    };
    for (line, expected) in [
        ("start web.lua", "evener: `start` is not a command: `evener run web.lua` runs a configuration"),
        ("web.lua", "evener: `web.lua` is not a command: `evener run web.lua` runs a configuration"),
        ("stop", "SIGTERM stops an instance"),
        ("restart", "`evener reload` applies a changed configuration"),
        ("reload web.lua", "reload takes no file: it applies the file that the instance was started with"),
        ("tcp -p 23000", "the listen address is the first argument"),
        ("tcp 127.0.0.1:0", "the servers are missing: evener tcp 127.0.0.1:8080"),
        ("drain a --for 10", "the unit is missing: write 10s, 10m or 10h"),
        ("run a.lua --drain-timeout 30", "the unit is missing: write 30s, 30m or 30h"),
        ("explain a host", "not an IP address"),
        ("close", "evener close --client 192.0.2.7"),
        ("tcp 127.0.0.1:0 127.0.0.1:1 --check http", "--check takes no value, got `http`"),
        ("http 127.0.0.1:0 127.0.0.1:1 --check /health", "check = check.http { path = \"/health\" }"),
        ("udp 127.0.0.1:0 127.0.0.1:1 --check", "--check needs a text to send"),
    ] {
        check(&run(line), 2, expected);
    }
    for (line, expected) in [
        ("tcp 127.0.0.1:0 24601", "server `24601` has no host: write 127.0.0.1:24601"),
        ("tcp 24602 127.0.0.1:1", "write 0.0.0.0:24602 for all IPv4 addresses, [::]:24602 for all IPv6"),
        ("dns 127.0.0.1:0 9.9.9.9", "write it as 9.9.9.9:53"),
        ("tcp 127.0.0.1:0 127.0.0.1:1 http", "`http` is not a server"),
        ("tcp 192.0.2.1:8080 127.0.0.1:1", "write a file with --print and set `freebind = true`"),
    ] {
        check(&run(line), 1, expected);
    }
}

#[test]
fn a_one_liner_that_cannot_run_is_not_printed() {
    let printed =
        Command::new(BINARY).args("http 0.0.0.0:80 127.0.0.1:80 --print".split(' ')).output().unwrap();
    check(&printed, 1, "is an address of the service itself");
    assert!(printed.stdout.is_empty());
    let line = "tcp 127.0.0.1:0 127.0.0.1:1 --print --admin-group 0 --admin-mode 0600";
    let printed = Command::new(BINARY).args(line.split(' ')).output().unwrap();
    check(&printed, 1, "does not admit the group");
}

#[test]
fn options_beside_print_are_in_the_comment_of_the_file() {
    let mut command = Command::new(BINARY);
    command
        .args("tcp 127.0.0.1:0 127.0.0.1:1 --print --workers 2 --pin --admin-mode 660 --log json".split(' '));
    let printed = command.args(["--admin", "/run/a b.sock"]).output().unwrap();
    let text = String::from_utf8_lossy(&printed.stdout);
    let expected = "evener run FILE --workers 2 --admin '/run/a b.sock' --admin-mode 0660 --log json --pin\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_printed_one_liner_is_a_valid_configuration() {
    let directory = Directory::new();
    let file = directory.file("printed.lua");
    for line in [
        "tcp 127.0.0.1:8080 127.0.0.1:9001 [::1]:9002 --check --sticky --policy least_conn --print",
        "http [::]:8080 127.0.0.1:9001 --check --print",
        "udp 127.0.0.1:5683 127.0.0.1:9001 --check ping --print",
        "dns 127.0.0.1:5353 127.0.0.1:9001 --check www.example --cache --print",
    ] {
        let printed = Command::new(BINARY).args(line.split(' ')).output().unwrap();
        assert!(printed.status.success() && printed.stderr.is_empty(), "{line}");
        std::fs::write(&file, &printed.stdout).unwrap();
        let stdin = std::fs::File::open(&file).unwrap();
        let checked = Command::new(BINARY).args(["check", "-"]).stdin(stdin).output().unwrap();
        check(&checked, 0, "");
        assert!(String::from_utf8_lossy(&checked.stdout).contains("valid: 1 service, 1 pool"), "{line}");
    }
}
