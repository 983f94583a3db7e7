//! `evener import pen`: the printed configuration passes `evener check` and serves clients like pen. Also
//! transparent servers.

use crate::compat_pen::tcp::{at, who_from};
use crate::harness::namespaces::Row;
use crate::harness::origin::Origin;
use crate::harness::pen::Pen;
use crate::harness::{BINARY, Directory, Evener, Server, reserved_port, wait_until, who};
use crate::udp::flows::{Echo, ask, client};
use std::io::Write;
use std::process::Command;

/// Imports a command line of pen, checks the configuration, and runs it.
fn run_imported(words: &[&str]) -> (Evener, String) {
    let output = Command::new(BINARY).args(["import", "pen"]).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let directory = Directory::new();
    let file = directory.write("imported.lua", &text);
    let output = Command::new(BINARY).arg("check").arg(file).output().unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    (Evener::run(&text), text)
}

/// Checks that clients get the same results from pen and from the imported configuration, and returns the
/// results.
fn check_same(words: &[&str], clients: impl Fn() -> Vec<String>) -> Vec<String> {
    let of_pen = {
        let _pen = Pen::run(words);
        clients()
    };
    let (_evener, text) = run_imported(words);
    assert_eq!(clients(), of_pen, "{text}");
    of_pen
}

#[test]
fn imported_tracking_hashing_and_failover_behave_like_pen() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let listen_at = format!("127.0.0.1:{listen}");
    let addresses = || (0..12).map(|n| format!("127.0.{}.{n}", n % 3));
    let clients =
        || -> Vec<String> { addresses().chain(addresses()).map(|from| who_from(&from, listen)).collect() };
    let chosen = check_same(&[&listen_at, &at(&a), &at(&b)], clients);
    assert_eq!(chosen[..12], chosen[12..]);
    check_same(&["-r", &listen_at, &at(&a), &at(&b)], clients);
    check_same(&["-h", "-r", &listen_at, &at(&a), &at(&b)], clients);
    check_same(
        &["-r", "-W", &listen_at, &format!("{}:0:0:3", at(&a)), &format!("{}:0:0:0", at(&b))],
        clients,
    );
    let chosen = check_same(&["-e", &at(&b), &listen_at, "127.0.0.1:1"], clients);
    assert!(chosen.iter().all(|name| name == "b"), "{chosen:?}");
}

#[test]
fn imported_access_lists_and_abuse_servers_behave_like_pen() {
    let (a, abuse, listen) = (Server::named("a"), Server::named("abuse"), reserved_port());
    let listen_at = format!("127.0.0.1:{listen}");
    let clients = || -> Vec<String> {
        ["127.0.0.1", "127.0.0.8", "127.0.1.8", "127.1.0.8"].map(|from| who_from(from, listen)).into()
    };
    let list =
        ["-o", "acl 2 deny 127.0.0.8", "-o", "acl 2 permit 127.0.0.0 255.255.0.0", "-o", "client_acl 2"];
    let plain = check_same(&[&list[..], &[&listen_at, &at(&a)]].concat(), clients);
    assert_eq!(plain, ["a", "", "a", ""]);
    let with_abuse = check_same(&[&list[..], &["-B", &at(&abuse), &listen_at, &at(&a)]].concat(), clients);
    assert_eq!(with_abuse, ["a", "abuse", "a", "abuse"]);
}

#[test]
fn imported_http_and_udp_services_behave_like_pen() {
    let (origin, listen) = (
        Origin::start(|wire, request| {
            let body = request.field("X-Forwarded-For").to_owned() + " " + request.field("X-Forwarded-Proto");
            wire.reply("200 OK", "", body.as_bytes())
        }),
        reserved_port(),
    );
    let (listen_at, server) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", origin.port));
    let clients = || vec![crate::harness::origin::get(listen, "/").text()];
    assert_eq!(check_same(&["-H", &listen_at, &server], clients), ["127.0.0.1 http"]);
    let (echo, six) = (Echo::start("a"), reserved_port());
    let clients = || vec![ask(&client(six), "x")];
    let words = ["-U", &format!("127.0.0.1:{six}"), &format!("127.0.0.1:{}", echo.port)];
    assert_eq!(check_same(&words, clients), ["a x"]);
}

#[test]
fn a_file_that_a_running_pen_wrote_is_imported() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    for command in
        [&format!("server 1 address 127.0.0.1 port {}", b.port), "roundrobin", "acl 1 deny 127.0.0.9"]
    {
        pen.order(command);
    }
    pen.ctl("client_acl 1");
    let file = pen.file("written").display().to_string();
    pen.order(&format!("write {file}"));
    let text = std::fs::read(&file).unwrap();
    drop(pen);
    let retained = Directory::new();
    let file = retained.file("written");
    std::fs::File::create(&file).unwrap().write_all(&text).unwrap();
    let (_evener, text) = run_imported(&[&file.display().to_string()]);
    assert_eq!((0..4).map(|_| who(listen)).collect::<String>(), "abab", "{text}");
    assert_eq!(who_from("127.0.0.9", listen), "", "{text}");
}

#[test]
fn settings_that_cannot_be_imported_are_listed_in_comments() {
    let output = Command::new(BINARY)
        .args(["import", "pen", "-C", "99", "-unobody", "-w", "/tmp/w", "-Z", "80", "10.0.0.1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["-- Instead of the control port", "-- Instead of the status page", "-- Left out: -Z"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let failed =
        Command::new(BINARY).args(["import", "pen", "-x", "many", "80", "10.0.0.1"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("-x: `many` is not a number"));
}

#[test]
fn transparent_servers_see_the_addresses_of_clients() {
    let Some(row) = Row::new() else { return };
    row.balancer.run(
        "ip rule add iif servers lookup 100; ip route add local default dev lo table 100
         ip -6 rule add iif servers lookup 100; ip -6 route add local default dev lo table 100",
    );
    let directory = Directory::new();
    let script = directory.write("client.py", crate::tcp::transparent::CLIENT).display().to_string();
    let _server = crate::tcp::transparent::start_server(&row, &directory);
    for (options, kind) in [(&["-o", "transparent"][..], "tcp"), (&["-U", "-o", "transparent"], "udp")] {
        for (address, server, sources) in [
            ("10.77.1.1", "10.77.2.2", ["10.77.1.2", "10.77.1.3"]),
            ("[fd77:1::1]", "[fd77:2::2]", ["fd77:1::2", "fd77:1::3"]),
        ] {
            let (listen, server) = (format!("{address}:7000"), format!("{server}:7000"));
            let words = [options, &["-unobody", &listen, &server]].concat();
            let mut pen = Pen::start(row.balancer.command(BINARY), Directory::new(), &words);
            for source in sources {
                let to = address.trim_matches(['[', ']']);
                let received = row.client.run(&format!("python3 {script} {kind} {source} {to}"));
                assert_eq!(received.lines().next(), Some(source), "{kind}");
            }
            pen.signal("TERM");
            pen.signal("TERM");
            wait_until("the end", || pen.has_ended().then_some(()));
        }
    }
}
