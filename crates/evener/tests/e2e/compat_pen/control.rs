//! The control port: responses to every command, its access list, hostile clients, and the files that `write`
//! writes.

use crate::compat_pen::running::listens;
use crate::compat_pen::tcp::{at, who_from};
use crate::harness::pen::{Pen, penctl, refused};
use crate::harness::{BINARY, DEADLINE, Directory, Server, connect, line, reserved_port, wait_until, who};
use crate::tcp::proxy_protocol::connect_from;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;

/// Starts a pen whose control port is a TCP port.
fn start_with_control_port(words: &[&str]) -> (Pen, u16) {
    let control = reserved_port();
    let root = rustix::process::geteuid().is_root();
    let address = format!("127.0.0.1:{control}");
    let user: &[&str] = if root { &["-u", "root"] } else { &[] };
    let all: Vec<&str> = ["-C", &address].iter().chain(user).chain(words).copied().collect();
    (Pen::start(std::process::Command::new(BINARY), Directory::new(), &all), control)
}

/// Sends these bytes, and returns the response.
fn response(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The connection may be closed already.
    let _ = stream.write_all(bytes);
    let mut printed = Vec::new();
    let _ = stream.read_to_end(&mut printed);
    String::from_utf8_lossy(&printed).into_owned()
}

#[test]
fn every_command_of_the_manual_gets_the_response_of_pen() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a), &at(&b)]);
    for (command, expected) in [
        ("mode", "no hash no roundrobin no stubborn no weight no prio\n"),
        ("blacklist", "30\n"),
        ("blacklist 7", "7\n"),
        ("timeout", "3\n"),
        ("timeout 5", "5\n"),
        ("tracking 60", "60\n"),
        ("idle_timeout 9", "Idle timeout: 9 seconds\n"),
        ("clients_max", "2048\n"),
        ("conn_max", "500\n"),
        ("debug 2", "2\n"),
        ("client_acl", "0\n"),
        ("client_acl 4", "4\n"),
        ("control_acl", "0\n"),
        ("log", ""),
        ("web_stats", ""),
        ("recent", ""),
        ("idlers", "Idlers: 0/0\n"),
        (
            "connection 9",
            "Connection 9:\nstate = 0\ndownfd = -1, upfd = -1\nclient = 0, server = 0\npend = 0\n",
        ),
        ("connection 500", "Connection 500 out of range\n"),
        ("socket 4", "Socket 4 belongs to connection -1\n"),
        ("close 9", "Forcibly closing connection 9\n"),
        ("exit", "Exit is not enabled; restart with -X flag\n"),
        ("acl 1 permit 10.0.0.0 255.0.0.0", ""),
        ("acl 1 permit 2001:db8::/32", ""),
        ("no acl 1", ""),
        ("hash", ""),
        ("keepalive", ""),
        ("no keepalive", ""),
        ("tcp_nodelay", ""),
        ("tcp_fastclose both", ""),
        ("source 127.0.0.1", ""),
        ("pending_max 5", ""),
        ("epoll", ""),
        ("block", ""),
        ("no block", ""),
        ("ssl_ciphers HIGH", ""),
        ("stubborn", ""),
        ("mode", "hash no roundrobin stubborn no weight no prio\n"),
    ] {
        assert_eq!(pen.ctl(command), expected, "{command}");
    }
    assert_eq!(pen.ctl("listen"), format!("127.0.0.1:{listen}\n"));
    assert_eq!(pen.ctl("pid"), format!("{}\n", pen.pid()));
    assert_eq!(pen.ctl("control"), format!("{}\n", pen.file("ctl").display()));
    let servers =
        |port| format!("addr 127.0.0.1 port {port} conn 0 max 0 hard 0 weight 0 prio 0 sx 0 rx 0\n");
    assert_eq!(pen.ctl("servers"), format!("0 {}1 {}", servers(a.port), servers(b.port)));
    assert!(pen.ctl("status").starts_with("<html>\n<head>\n<title>Pen status page</title>"));
}

#[test]
fn wrong_commands_are_reported_and_change_nothing() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let before = pen.ctl("servers");
    for (command, part) in [
        ("blaclist 7", "do_cmd: ignoring command starting with 'blaclist'"),
        ("blacklist many", "blacklist: `many` is not a number"),
        ("blacklist -1", "blacklist: `-1` is not a number"),
        ("timeout 0", "timeout: at least 1"),
        ("server", "its number is missing"),
        ("server x max 1", "`x` is not a number of a server"),
        ("server 0 max", "`max` lacks its value"),
        ("server 0 max 9 weight x", "weight is not a number: `x`"),
        ("server 0 address no-such-name.invalid", "`no-such-name.invalid` does not resolve"),
        ("server 99999 max 1", "not a number of a server"),
        ("acl 1 allow 10.0.0.1", "`allow` is not permit or deny"),
        ("acl 1 permit 10.0.0.999", "10.0.0.999"),
        ("acl 1 permit country Sweden", "two letters"),
        ("roundrobin on", "takes no argument such as `on`"),
        ("no", "no: what?"),
        ("no servers", "nothing of that name to turn off"),
        ("listen 127.0.0.1:nonsense", "`nonsense` is not a port to listen on"),
        ("listen 192.0.2.1:9", "192.0.2.1:9"),
        ("write", "write: to which file?"),
        ("write /nowhere/file", "/nowhere/file cannot be written: No such file"),
        ("include /nowhere/file", "/nowhere/file: it cannot be read: No such file"),
        ("dsr_if eth0", "dsr_if: a running instance keeps its interface"),
    ] {
        let printed = pen.ctl(command);
        assert!(printed.contains(part) && printed.ends_with('\n'), "{command}: {printed}");
    }
    assert_eq!(pen.ctl("servers"), before);
    assert_eq!(pen.ctl("blacklist"), "30\n");
    assert_eq!(who(listen), "a");
}

#[test]
fn connections_are_shown_and_closed_by_number() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let mut clients = [connect(listen), connect(listen)];
    clients.iter_mut().for_each(|client| assert_eq!(line(client), "a 127.0.0.1"));
    let of = |number: usize| pen.ctl(&format!("connection {number}"));
    let shown = wait_until("the connection", || Some(of(1)).filter(|shown| !shown.contains("downfd = -1")));
    let word = |name: &str| -> i64 {
        let found = shown.split(&format!("{name} = ")).nth(1).unwrap();
        found.split([',', '\n']).next().unwrap().parse().unwrap()
    };
    assert!(shown.contains("server = 0") && word("downfd") > 2 && word("upfd") > 2, "{shown}");
    assert_eq!(
        pen.ctl(&format!("socket {}", word("downfd"))),
        format!("Socket {} belongs to connection 1\n", word("downfd"))
    );
    assert_eq!(pen.of_server(0, "conn"), 2);
    pen.ctl("close 1");
    let ended = wait_until("a connection to end", || {
        clients.iter_mut().position(|client| {
            client.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
            matches!(client.read(&mut [0]), Ok(0))
        })
    });
    clients[1 - ended].write_all(b"still there\n").unwrap();
    clients[1 - ended].set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(line(&mut clients[1 - ended]), "still there");
}

#[test]
fn commands_of_clients_that_the_control_list_denies_are_ignored() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let (pen, control) = start_with_control_port(&[
        "-o",
        "acl 5 permit 127.0.0.1",
        "-o",
        "control_acl 5",
        &format!("127.0.0.1:{listen}"),
        &at(&a),
    ]);
    assert_eq!(response(connect_from("127.0.0.1", control), b"blacklist\n"), "30\n");
    assert_eq!(response(connect_from("127.0.0.2", control), b"blacklist 1\n"), "");
    assert_eq!(response(connect_from("127.0.0.1", control), b"blacklist\n"), "30\n");
    pen.expect_log("control port: 127.0.0.2 is not permitted");
    // The list of the control port does not apply to clients of the service.
    assert_eq!(who_from("127.0.0.2", listen), "a");
}

#[test]
fn silent_long_and_stuck_connections_do_not_block_other_commands() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let (pen, control) = start_with_control_port(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let run = |command: &str| {
        let output = penctl(&format!("127.0.0.1:{control}"), command);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let silent: Vec<TcpStream> = (0..20).map(|_| connect(control)).collect();
    // A command that is too long is ignored as a whole.
    let mut long = b"blacklist 1".to_vec();
    long.resize(100_000, b' ');
    let printed = response(connect(control), &long);
    assert!(printed.is_empty() || printed.contains("at most 4096 bytes"), "{printed}");
    long.truncate(4096);
    assert_eq!(
        response(connect(control), &[&long[..], b"x\n"].concat()),
        "a command has at most 4096 bytes: this one was ignored\n"
    );
    assert_eq!(run("blacklist"), "30\n");
    assert_eq!(response(connect(control), b"\n"), "");
    assert_eq!(response(connect(control), b"mode\r\n"), run("mode"));
    assert_eq!(
        response(connect(control), b"mode\nblacklist 1\n"),
        run("mode"),
        "only the first command of a connection is executed"
    );
    assert!(response(connect(control), &[0xff, 0x00, 0x1b, b'\n']).contains("ignoring"));
    // A client that never reads its response.
    let mut stuck = connect(control);
    stuck.write_all(b"status\n").unwrap();
    let half = connect(control);
    (&half).write_all(b"blackl").unwrap();
    assert_eq!(run("blacklist"), "30\n");
    assert_eq!(who(listen), "a");
    (&half).write_all(b"ist 8").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(response(half, b""), "8\n", "a line may arrive in pieces and end with the connection");
    assert_eq!(pen.log_count("panicked"), 0);
    drop(silent);
}

#[test]
fn a_command_waits_while_silent_connections_use_up_the_limit() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let (_pen, control) = start_with_control_port(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    let silent: Vec<TcpStream> = (0..70).map(|_| connect(control)).collect();
    // A later command gets its response when the silent connections time out.
    let output = penctl(&format!("127.0.0.1:{control}"), "blacklist");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "30\n");
    assert_eq!(who(listen), "a");
    drop(silent);
}

#[test]
fn penctl_refuses_a_command_that_is_too_long() {
    let output = penctl("127.0.0.1:1", &format!("log /{}", "x".repeat(2000)));
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("longer than 1023 bytes"));
    let unused = penctl("127.0.0.1:1", "mode");
    assert_eq!(unused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unused.stderr).contains("error connecting to server 127.0.0.1:1: "));
}

#[test]
fn exit_ends_the_program_if_it_is_enabled() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let mut pen = Pen::run(&["-X", &format!("127.0.0.1:{listen}"), &at(&a)]);
    assert_eq!(pen.ctl("exit"), "");
    assert_eq!(pen.end(), Some(0));
    assert!(!pen.file("ctl").exists());
}

/// Returns the lines of a file without comments, because one of the comments contains the time.
fn commands(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn a_written_file_gives_another_instance_the_same_settings() {
    let (a, b, listen) = (Server::named("a"), Server::named("b"), reserved_port());
    let directory = Directory::new();
    let authority = crate::harness::certificates::Authority::new("test ca");
    let (chain, key) = authority.issue(&["a.example"]).write(&directory, "a");
    let (ca, _) = authority.write(&directory, "ca");
    let file = |name: &str| directory.file(name).display().to_string();
    let (log, page) = (file("requests"), file("page.html"));
    let line = format!(
        "-h -s -W -H -b 11 -T 12 -t 13 -x 140 -c 3000 -q 77 -l {log} -w {page} -e 127.0.0.1:9 -B [::1]:8:1:2:3:4 \
         -E {} -K {} -G {} 127.0.0.1:{listen} {} {}:7:9:3:-2",
        chain.display(),
        key.display(),
        ca.display(),
        at(&a),
        at(&b)
    );
    let pen = Pen::run(&line.split(' ').collect::<Vec<_>>());
    for command in [
        "acl 1 permit 10.0.0.0 255.0.255.0",
        "acl 1 deny ::1/128",
        "acl 1 deny 10.0.0.0 255.0.255.0",
        "acl 9 permit 127.0.0.0 255.0.0.0",
        "prio",
        "tcp_nodelay",
        "keepalive",
        "tcp_fastclose up",
        "source 127.0.0.1",
        "server 0 acl 9",
        "server 4 max 3",
        "pending_max 6",
        "ssl_option no_tlsv1.2",
    ] {
        pen.order(command);
    }
    for command in ["client_acl 9", "control_acl 2", "idle_timeout 15", "debug 2", "idlers 1"] {
        pen.ctl(command);
    }
    let first = directory.file("first");
    pen.order(&format!("write {}", first.display()));
    let (mode, servers) = (pen.ctl("mode"), pen.ctl("servers"));
    drop(pen);
    let again = Pen::run(&["-F", &first.display().to_string()]);
    assert_eq!((again.ctl("mode"), again.ctl("servers")), (mode, servers));
    let second = directory.file("second");
    again.order(&format!("write {}", second.display()));
    assert_eq!(commands(&first), commands(&second));
    // The second instance serves the same clients. Without a file name, `write` replaces the file of -F.
    let client = std::sync::Arc::new(authority.client(crate::harness::certificates::ANY));
    assert!(crate::harness::certificates::shake(listen, "a.example", &client).is_ok());
    again.order("no hash");
    again.order("write");
    assert_eq!(commands(&first), commands(&second).replace("\nhash\n", "\nno hash\n"));
    // Reading the file again changes nothing.
    again.hang_up();
    again.order(&format!("write {}", second.display()));
    assert_eq!(commands(&first), commands(&second));
}

#[test]
fn problems_in_included_files_are_reported_with_file_and_line() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let file = |name: &str, text: &str| directory.write(name, text).display().to_string();
    let inner = file("inner", &format!("blacklist 9\nserver 0 address 127.0.0.1 port {}\n", a.port));
    let outer = file("outer", &format!("blacklist 8\ninclude {inner}\ntracking 5\n"));
    let pen = Pen::run(&["-F", &outer, &format!("127.0.0.1:{listen}")]);
    assert_eq!((pen.ctl("blacklist"), pen.ctl("tracking")), ("9\n".into(), "5\n".into()));
    assert_eq!(who(listen), "a");
    let wrong = file("wrong", "blacklist 1\n\nnonsense\n");
    let printed = pen.ctl(&format!("include {wrong}"));
    assert!(printed.contains(&format!("{wrong}:3: ")), "{printed}");
    assert_eq!(pen.ctl("blacklist"), "9\n");
    let cyclic = directory.file("cyclic").display().to_string();
    file("cyclic", &format!("include {cyclic}\n"));
    assert!(pen.ctl(&format!("include {cyclic}")).contains("too many files include each other"));
    let (code, printed) = refused(&["-f", "-F", &cyclic, "127.0.0.1:1", "127.0.0.1:2"]);
    assert!(code == 1 && printed.contains("too many files"), "{code} {printed}");
}

#[test]
fn a_new_listen_address_closes_the_old_one_and_an_address_in_use_changes_nothing() {
    let (a, first, second) = (Server::named("a"), reserved_port(), reserved_port());
    let pen = Pen::run(&[&format!("127.0.0.1:{first}"), &at(&a)]);
    let mut client = connect(first);
    line(&mut client);
    let taken = std::net::TcpListener::bind(("127.0.0.1", second)).unwrap();
    assert!(pen.ctl(&format!("listen 127.0.0.1:{second}")).contains("is in use"));
    assert_eq!((pen.ctl("listen"), who(first)), (format!("127.0.0.1:{first}\n"), "a".into()));
    drop(taken);
    assert_eq!(pen.ctl(&format!("listen 127.0.0.1:{second}")), format!("127.0.0.1:{second}\n"));
    assert_eq!(who(second), "a");
    wait_until("the old port to be closed", || (!listens(first)).then_some(()));
    client.write_all(b"still\n").unwrap();
    assert_eq!(line(&mut client), "still");
}
