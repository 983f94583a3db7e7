//! Signals that Evener does not use, and signals during the start, do not end an instance.

use crate::harness::{BINARY, Directory, Evener, Server, connect, line, reserved_port, wait_until, who};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn config(listen: u16, server: u16, log: &std::path::Path) -> String {
    let log = log.display();
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", request_log = \"{log}\" }}\n"
    )
}

#[test]
fn usr1_opens_request_logs_again() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let (log, moved) = (directory.file("requests.log"), directory.file("requests.log.1"));
    let evener = Evener::run(&config(0, a.port, &log));
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    let mut echo = |text: &[u8]| {
        client.write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    };
    echo(b"before\n");
    let expect_text = |path: &std::path::Path, text: &str| {
        wait_until(text, || fs::read_to_string(path).ok()?.contains(text).then_some(()));
    };
    expect_text(&log, "before");
    fs::rename(&log, &moved).unwrap();
    evener.signal("USR1");
    evener.expect_log("logs_reopened");
    echo(b"after\n");
    expect_text(&log, "after");
    assert!(!fs::read_to_string(&moved).unwrap().contains("after"));
    echo(b"still the same connection\n");
    assert_eq!(who(listen), "a");
}

#[test]
fn usr1_does_not_end_an_instance_without_a_file() {
    let a = Server::named("a");
    let evener = Evener::one_liner(&["tcp", "127.0.0.1:0", &format!("127.0.0.1:{}", a.port)]);
    let listen = evener.port("tcp");
    evener.signal("USR1");
    evener.expect_log("logs_reopened");
    assert_eq!(who(listen), "a");
}

/// Starts a program, and sends signals without a pause until it serves.
fn start_under_signals(
    name: &str,
    mut command: Command,
    signals: &[Signal],
    is_ready: impl Fn() -> bool,
) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    // The dynamic loader runs before `main` and cannot block signals. The signal mask shows that `main` has begun.
    let status = format!("/proc/{}/status", child.id());
    let is_protected = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let mask = |field: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(field));
            u64::from_str_radix(value.unwrap_or("0").trim(), 16).unwrap_or(0)
        };
        // USR1, blocked or caught.
        (mask("SigBlk:") | mask("SigCgt:")) & (1 << 9) != 0
    };
    let until = std::time::Instant::now() + crate::harness::DEADLINE;
    while !is_protected() {
        assert!(
            std::time::Instant::now() < until && child.try_wait().unwrap().is_none(),
            "{name} has not begun"
        );
    }
    while !is_ready() {
        signals.iter().for_each(|&signal| {
            let _ = kill_process(pid, signal);
        });
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{name} ended: {ended:?}");
        assert!(std::time::Instant::now() < until, "{name} does not serve");
        std::thread::sleep(Duration::from_micros(200));
    }
    child
}

#[test]
fn signals_during_the_start_do_not_end_a_program() {
    let directory = Directory::new();
    let (a, listen) = (Server::named("a"), reserved_port());
    let file = directory.write("a.lua", &config(listen, a.port, &directory.file("requests.log")));
    // USR2 begins an upgrade, and aborts `evener pen`, as it aborts Debian's pen.
    let all = [Signal::HUP, Signal::USR1];
    let (here, server) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", a.port));
    let sockets = directory.file("sockets");
    fs::create_dir(&sockets).unwrap();
    let lines: [(Vec<String>, &[Signal]); 4] = [
        (vec!["run".into(), file.display().to_string()], &all),
        (vec!["tcp".into(), here.clone(), server.clone()], &all),
        (["pen", "-f", &here, &server].map(String::from).to_vec(), &all),
        (
            ["mname-balancer", "-b", "127.0.0.1", "-p", &listen.to_string(), "-s"]
                .map(String::from)
                .into_iter()
                .chain([sockets.display().to_string()])
                .collect(),
            &all,
        ),
    ];
    for (words, signals) in lines {
        let mut command = Command::new(BINARY);
        command.args(&words).env("XDG_RUNTIME_DIR", directory.file(""));
        let ready = || std::net::TcpStream::connect(("127.0.0.1", listen)).is_ok();
        let mut child = start_under_signals(&words.join(" "), command, signals, ready);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
