//! Reloads, which keep the state of unchanged parts, and the end of the program.

use crate::harness::{Evener, Server, connect, line, local, reserved_port, wait_until, who};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_reload_keeps_connections_counters_verdicts_and_listeners() {
    let (a, mut b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let other = reserved_port();
    let config = |servers: &[u16], more: &str| {
        let servers: String = servers.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
        format!(
            "service \"s\" {{ listen = {{ \"127.0.0.1:0\", {more} }}, {servers} passive = {{ down_for = \"1h\" }} }}"
        )
    };
    let evener = Evener::run(&config(&[a.port, b.port], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a 127.0.0.1");
    b.stop();
    assert_eq!(who(listen), "a");
    assert_eq!(evener.server(&format!("127.0.0.1:{}", b.port))["verdict"], "down");
    let before = evener.service_counter("s", "connections");
    evener.reload(&config(&[c.port, b.port], &format!("\"127.0.0.1:{other}\"")));
    client.write_all(b"still").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    assert_eq!([who(listen), who(other)], ["c", "c"]);
    assert_eq!(
        evener.server(&format!("127.0.0.1:{}", b.port))["verdict"],
        "down",
        "the reload must keep the verdict"
    );
    assert!(evener.service_counter("s", "connections") > before, "the reload must keep the counters");
    evener.reload(&config(&[c.port], ""));
    wait_until("the removed listener to close", || TcpStream::connect(local(other)).is_err().then_some(()));
    client.write_all(b"still").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    let log = evener.log();
    for change in ["- server s/127.0.0.1:", "+ server s/127.0.0.1:", "+ service s listen 127.0.0.1:"] {
        assert!(log.contains(change), "{change}: {log}");
    }
}

#[test]
fn a_reload_that_names_the_default_plane_changes_nothing() {
    let a = Server::named("a");
    let text = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let evener = Evener::run(&text);
    let listen = evener.port("s");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a 127.0.0.1");
    evener.reload(&text.replace("listen", "plane = \"proxy\", listen"));
    client.write_all(b"still").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    assert_eq!((evener.port("s"), who(listen)), (listen, "a".into()));
    assert_eq!(evener.service_counter("s", "connections"), 2, "the reload must keep the counters");
    assert!(!evener.log().contains("~ service s"), "{}", evener.log());
}

#[test]
fn an_invalid_file_changes_nothing_and_the_reason_is_reported() {
    let a = Server::named("a");
    let good = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let evener = Evener::run(&good);
    let listen = evener.port("s");
    let other_listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = other_listener.local_addr().unwrap().port();
    let invalid = [
        ("service \"s\" {".to_owned(), "the file ends inside"),
        (good.replace("listen", "lisen"), "did you mean `listen`?"),
        (format!("{good}\nservice \"t\" {{ listen = \"127.0.0.1:{in_use}\", \"10.0.0.1:1\" }}"), "is in use"),
        (
            good.replace("\"s\"", "\"renamed\"")
                .replace(&format!("127.0.0.1:{}", a.port), "no-such-host.invalid:1"),
            "does not resolve",
        ),
        (
            good.replace("listen", "plane = \"ipvs\", listen"),
            ":1: service `s`: `127.0.0.1:0` is not a virtual address",
        ),
    ];
    let before = evener.status()["pools"].clone();
    for (text, expected) in invalid {
        evener.write_config(&text);
        let output = evener.run_command(&["reload"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(expected),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .ends_with("evener: not reloaded: the instance continues with its previous configuration\n")
        );
        let after = evener.status()["pools"].clone();
        let names = |pools: &serde_json::Value| pools[0]["servers"][0]["name"].clone();
        assert_eq!((names(&before), after.as_array().unwrap().len()), (names(&after), 1));
        assert_eq!(who(listen), "a");
    }
    evener.expect_log("reload_failed");
}

#[test]
fn a_listener_moves_to_another_service_without_losing_a_client() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let config = |name: &str, port: u16| {
        format!("service \"{name}\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{port}\" }}")
    };
    let evener = Evener::run(&config("one", a.port));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut names = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                names.push(who(listen));
            }
            names
        });
        for turn in 0..10 {
            let (name, port) = if turn % 2 == 0 { ("two", b.port) } else { ("one", a.port) };
            evener.reload(&config(name, port));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let names = client.join().unwrap();
        assert!(names.iter().all(|name| name == "a" || name == "b"), "{names:?}");
    });
}

#[test]
fn the_program_drains_clients_until_a_second_signal() {
    let a = Server::named("a");
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let mut evener = Evener::run(&config);
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    evener.signal("TERM");
    wait_until("the listener to close", || TcpStream::connect(local(listen)).is_err().then_some(()));
    client.write_all(b"more").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(evener.status()["draining"], true);
    drop(client);
    assert_eq!(evener.end(), 0);
    evener.expect_log("drained");

    let mut evener = Evener::run(&config);
    let mut client = connect(evener.port("s"));
    line(&mut client);
    evener.signal("TERM");
    wait_until("the drain to begin", || evener.log().contains("draining").then_some(()));
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    evener.expect_log("cut connections=1");
}

#[test]
fn the_program_ends_at_the_drain_timeout() {
    let a = Server::named("a");
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let mut evener = Evener::run_with(&config, &["--drain-timeout", "300ms"]);
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    let began = std::time::Instant::now();
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert!(began.elapsed() >= Duration::from_millis(300));
    evener.expect_log("cut connections=1");
}

#[test]
fn many_hangup_signals_are_combined_into_few_reloads() {
    let a = Server::named("a");
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let signals = format!("for i in $(seq 200); do kill -HUP {}; done", evener.pid());
    assert!(std::process::Command::new("sh").args(["-c", &signals]).status().unwrap().success());
    // One more reload, which waits until all earlier reloads are done.
    assert!(evener.run_command(&["reload"]).status.success());
    evener.expect_log(" reloaded changes=0");
    let reloads = evener.log_count(" reloaded changes=0");
    assert!((1..150).contains(&reloads), "{reloads} reloads");
    assert_eq!(who(listen), "a");
}

#[test]
fn a_reload_changes_the_address_and_the_protocol_of_a_listener() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let config = |address: &str, more: &str| {
        format!("service \"s\" {{ listen = \"{address}:{listen}\", \"127.0.0.1:{}\" }}\n{more}", a.port)
    };
    let evener = Evener::run(&config("127.0.0.1", ""));
    for address in ["0.0.0.0", "127.0.0.1", "0.0.0.0"] {
        evener.reload(&config(address, ""));
        assert_eq!(who(listen), "a", "{address}");
    }
    let both = format!("service \"t\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\" }}", a.port);
    evener.reload(&config("0.0.0.0", &both));
    assert_eq!(who(listen), "a");
    assert_eq!(
        evener.service_counter("t", "connections"),
        1,
        "the more specific address must take precedence"
    );
    let udp = config("127.0.0.1", "").replace("service \"s\" {", "service \"s\" { protocol = \"udp\",");
    evener.reload(&udp);
    wait_until("the TCP listener to close", || TcpStream::connect(local(listen)).is_err().then_some(()));
    evener.reload(&config("127.0.0.1", ""));
    assert_eq!(who(listen), "a");
}

#[test]
fn a_late_check_of_an_old_address_does_not_decide_for_the_new_address() {
    let silent = Server::start(|stream| {
        std::thread::sleep(Duration::from_secs(4));
        drop(stream);
    });
    let a = Server::named("a");
    let config = |port: u16| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{port}\", name = \"one\" }},\n\
             check = check.http {{ every = \"1h\", timeout = \"1s\", fall = 1, jitter = 0 }} }}"
        )
    };
    let evener = Evener::run(&config(silent.port));
    let listen = evener.port("s");
    // The probe of the old address is in flight, and will fail.
    std::thread::sleep(Duration::from_millis(200));
    evener.reload(&config(a.port).replace("check.http { every", "check.tcp { every"));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(evener.server("one")["verdict"], "up", "{}", evener.log());
    assert_eq!(who(listen), "a");
}

#[test]
fn the_program_ends_during_a_long_reload_and_with_a_full_log_pipe() {
    let a = Server::named("a");
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port);
    let mut evener = Evener::run(&config);
    // The search runs in C code, where Lua counts no instructions, and takes longer than any timeout.
    evener.write_config("string.find(('a'):rep(5000), ('a-'):rep(20) .. 'b')");
    evener.signal("HUP");
    std::thread::sleep(Duration::from_millis(200));
    let began = std::time::Instant::now();
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert!(began.elapsed() < Duration::from_secs(5));

    // The log goes to a pipe that is not read and fills up. Balancing and the commands go on.
    let (directory, listen) = (crate::harness::Directory::new(), reserved_port());
    let config = config.replace("127.0.0.1:0", &local(listen).to_string());
    let file = directory.write("evener.lua", &config).display().to_string();
    let admin = directory.file("a.sock").display().to_string();
    let mut child = std::process::Command::new(crate::harness::BINARY)
        .args(["run", &file, "--admin", &admin, "--log-level", "debug"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the admin socket", || std::os::unix::net::UnixStream::connect(&admin).ok());
    wait_until("the listener", || TcpStream::connect(local(listen)).ok());
    drop(a);
    // Each refused connection attempt writes a line, and the pipe holds 64 KiB.
    (0..3000).for_each(|_| drop(who(listen)));
    let run_command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::harness::BINARY);
        command.args(arguments).args(["--socket", &admin]).output().unwrap().status.success()
    };
    assert!(run_command(&["status"]), "the instance must still respond");
    assert!(std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let ended = wait_until("the end", || child.try_wait().unwrap());
    assert!(ended.success());
}

#[test]
fn a_reload_of_twenty_thousand_servers_takes_seconds() {
    let a = Server::named("a");
    let config = |policy: &str, reversed: bool| {
        let order = if reversed { "20000, 1, -1" } else { "1, 20000" };
        format!(
            "local s = {{ policy = \"{policy}\" }} for n = {order} do s[#s + 1] = (\"10.%d.%d.1:80\"):format(n // 250, n % 250) end\n\
             pool \"big\" (s)\nservice \"b\" {{ listen = \"127.0.0.1:0\", pool = \"big\" }}\n\
             service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}",
            a.port
        )
    };
    let evener = Evener::run_with(&config("hash", false), &[]);
    let listen = evener.port("s");
    let began = std::time::Instant::now();
    evener.reload(&config("least_conn", true));
    assert_eq!(who(listen), "a");
    // The bound is not a measurement. Comparing each server with every other server would take minutes here.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
