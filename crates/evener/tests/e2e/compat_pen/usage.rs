//! Messages for new users: the usage, and errors in a command line with advice.

use crate::compat_pen::tcp::at;
use crate::harness::pen::{Daemon, Pen, refused};
use crate::harness::{BINARY, Directory, Server, reserved_port, who};
use std::process::Command;

#[test]
fn help_lists_every_option_of_the_manual_and_succeeds() {
    let output = Command::new(BINARY).args(["pen", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success()
            && text.contains("Usage: evener pen [OPTIONS] [HOST:]PORT|/PATH/TO/SOCKET SERVER...")
    );
    for option in "CFHUOPWXabTcdefhjlmopqrstuxwEKGAZRLNBSQDn".chars() {
        assert!(text.contains(&format!("-{option}")), "-{option} is not in the help");
    }
    assert!(text.lines().all(|line| line.len() <= 100), "a line is too long for a terminal");
}

#[test]
fn mistakes_are_reported_with_advice() {
    let directory = Directory::new();
    let free = reserved_port().to_string();
    let directory = directory.file("").display().to_string();
    for (words, code, part) in [
        (
            "",
            1,
            "there is no port to listen on: give `pen PORT SERVER...`, or `listen PORT` in a file (-F); see `pen --help`",
        ),
        ("-z 80 10.0.0.1", 2, "there is no option -z; `pen --help` lists the options"),
        ("--foreground 80 10.0.0.1", 2, "there is no option --foreground"),
        ("80 10.0.0.1 -b", 2, "missing argument for option '-b'"),
        ("-b soon 80 10.0.0.1", 2, "-b: `soon` is not a number"),
        ("-c 0 80 10.0.0.1", 2, "-c: clients_max: from 1 to 16000000"),
        (
            "-x 80 10.0.0.1",
            2,
            "`10.0.0.1` is not a port to listen on: write [HOST:]PORT (1 to 65535, or a name such as http)",
        ),
        ("-f 99999 10.0.0.1", 2, "`99999` is not a port to listen on"),
        ("-f -C 99999 -u root 81 10.0.0.1", 1, "control port 99999: `99999` is not a port"),
        ("-f -C 81 81 10.0.0.1", 1, "81: -C needs another port than the one for clients"),
        ("80 http://10.0.0.1/", 2, "server `http://10.0.0.1/`: write HOST:PORT, not a URL"),
        ("80 10.0.0.1:8O", 2, "server `10.0.0.1:8O`: `8O` is not a port"),
        ("80 unknown.invalid", 2, "`unknown.invalid` does not resolve"),
        ("80 10.0.0.1:80:1:2:3:4:5", 2, "after the priority nothing follows"),
        ("-O blaclist 80 10.0.0.1", 2, "-O there is no command 'blaclist'; did you mean `blacklist`?"),
        ("-f -l /nowhere/log FREE 10.0.0.1:1", 1, "/nowhere/log: No such file"),
        ("-f -p /nowhere/pid FREE 10.0.0.1:1", 1, "cannot write the pid file /nowhere/pid: No such file"),
        ("-f -l DIR FREE 10.0.0.1:1", 1, "Is a directory"),
        ("-f 192.0.2.7:FREE 10.0.0.1:1", 1, "is not an address of this machine (`ip address` lists them)"),
        ("-U /run/x 10.0.0.1:1", 1, "-U listens on addresses, not on a unix socket: /run/x"),
    ] {
        let words = words.replace("FREE", &free).replace("DIR", &directory);
        let (status, printed) = refused(&words.split_whitespace().collect::<Vec<_>>());
        assert!(
            status == code && printed.starts_with("pen: ") && printed.contains(part),
            "pen {words}: {status} {printed}"
        );
        assert!(printed.lines().count() == 1, "pen {words}: {printed}");
    }
}

#[test]
fn a_file_is_checked_without_running_it() {
    let directory = Directory::new();
    let good = directory
        .write("good", "listen 127.0.0.1:80\nserver 0 address 10.0.0.1 port 80\n")
        .display()
        .to_string();
    let bad = directory.write("bad", "listen 127.0.0.1:80\nrobin\nserver 0 port x\n").display().to_string();
    let check = |file: &str| Command::new(BINARY).args(["pen", "--check", "-F", file]).output().unwrap();
    let output = check(&good);
    assert!(output.status.success() && output.stdout == b"valid\n", "{output:?}");
    let output = check(&bad);
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains(&format!("pen: {bad}:2: ")) && printed.contains(&format!("pen: {bad}:3: ")),
        "{printed}"
    );
}

#[test]
fn probable_mistakes_are_logged_in_the_foreground_and_printed_before_the_background() {
    let listen = reserved_port();
    let listen_at = format!("127.0.0.1:{listen}");
    let pen = Pen::run(&[&listen_at]);
    pen.expect_log("there is no server yet, so clients are refused");
    let a = Server::named("a");
    pen.order(&format!("server 0 address 127.0.0.1 port {}", a.port));
    assert_eq!(who(listen), "a");
    drop(pen);
    let directory = Directory::new();
    let pid = directory.file("pid").display().to_string();
    let (code, printed) = refused(&["-p", &pid, &listen_at, &listen_at]);
    let _daemon = Daemon::adopt(&directory);
    assert!(code == 0 && printed.contains("server 0 is this program itself"), "{code} {printed}");
    let directory = Directory::new();
    let pid = directory.file("pid").display().to_string();
    let (code, printed) = refused(&["-p", &pid, &format!("127.0.0.1:{}", reserved_port()), &at(&a)]);
    let _daemon = Daemon::adopt(&directory);
    assert_eq!((code, printed.as_str()), (0, ""), "a correct command line prints nothing");
}
