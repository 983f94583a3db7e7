//! Starting, files of commands, signals, the end, and penctl itself.

use super::differences::differs;
use super::programs::{BOTH, By, Pen, alike, is_root, program};
use crate::harness::{BINARY, Directory, Server, have, line, local, reserved_port, wait_until};
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

fn to(server: &Server) -> Vec<String> {
    vec![format!("127.0.0.1:{}", server.port)]
}

const UNUSED: &str = "127.0.0.1:9";

#[test]
fn exit_ends_it_where_it_may() {
    if !have("pen") {
        return;
    }
    alike("", &[UNUSED.to_owned()], "Exit is not enabled; restart with -X flag\n".to_owned(), |pen| {
        pen.ask("exit")
    });
    for by in BOTH {
        let pen = Pen::start(by, "-X", &[UNUSED.to_owned()]);
        assert_eq!(pen.ask("exit"), "", "{by:?}");
        assert_eq!(pen.end(), Some(0), "{by:?}");
    }
}

#[test]
fn term_ends_it_and_takes_its_pid_file_along() {
    if !have("pen") {
        return;
    }
    for by in BOTH {
        let pen = Pen::start(by, "-p pid", &[UNUSED.to_owned()]);
        assert_eq!(pen.file("pid"), pen.pid().to_string(), "{by:?}");
        pen.signal("TERM");
        assert_eq!(pen.end(), Some(0), "{by:?}");
        assert!(!pen.directory.file("pid").exists(), "{by:?}");
        assert!(TcpStream::connect(local(pen.port)).is_err());
    }
}

#[test]
fn term_lets_connections_finish_only_in_ours() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in BOTH {
        let pen = Pen::start(by, "", &to(&server));
        let mut client = pen.connect_from(1);
        assert_eq!(line(&mut client), "a 127.0.0.1");
        pen.signal("TERM");
        wait_until("the port to close", || TcpStream::connect(local(pen.port)).err());
        let goes_on = client.write_all(b"still\n").is_ok() && line(&mut client) == "still";
        assert_eq!(goes_on, by == By::Us, "drain: {by:?}");
        drop(client);
        assert_eq!(pen.end(), Some(0), "{by:?}");
    }
}

/// Whatever the options say, the file says more; its answers are printed.
const FILE: &str = "# commands\nblacklist 9\nmode\nacl 1 deny 127.0.0.7\nclient_acl 1\n\nclients_max 100\n\
    server 1 address 127.0.0.9 port 9 max 3 hard 4 # another\nprio\n";

#[test]
fn a_file_of_commands_is_read_at_the_start_and_again() {
    if !have("pen") {
        return;
    }
    let requested = ["blacklist", "timeout", "mode", "clients_max", "client_acl", "servers"];
    let settings = |pen: &Pen| requested.map(|command| pen.ask(command)).concat();
    let expected = "9\n7\nno hash roundrobin no stubborn no weight prio\n100\n1\n\
        0 addr 127.0.0.1 port 9 conn 0 max 0 hard 0 weight 0 prio 0 sx 0 rx 0\n\
        1 addr 127.0.0.9 port 9 conn 0 max 3 hard 4 weight 0 prio 0 sx 0 rx 0\n";
    for by in BOTH {
        let directory = Directory::new();
        directory.write("cf", FILE);
        let pen = Pen::prepared(by, directory, "-b 5 -t 7 -r -F cf", None, &[UNUSED.to_owned()]);
        assert_eq!(settings(&pen), expected, "{by:?}");
        pen.directory.write("cf", "blacklist 11\nclients_max 50\nserver 1 port 10\n");
        pen.signal("HUP");
        wait_until("the file to be read", || (pen.ask("blacklist") == "11\n").then_some(()));
        let expected = expected.replace("9\n7", "11\n7").replace("9 port 9", "9 port 10");
        assert_eq!(settings(&pen), expected, "{by:?}");
        // Answers of the file are on standard output: Debian's are there at the latest at the end.
        pen.signal("TERM");
        pen.end();
        assert!(
            pen.printed().contains("no hash roundrobin no stubborn no weight no prio\n"),
            "{by:?}: {}",
            pen.printed()
        );
    }
}

#[test]
fn a_file_of_many_lines_is_read_in_no_time() {
    if !have("pen") {
        return;
    }
    let lines = |number: u32| format!("acl 1 deny 10.{}.{}.1\n", number / 256, number % 256);
    for by in BOTH {
        let directory = Directory::new();
        directory.write("cf", &(0..20_000).map(lines).collect::<String>());
        // Within the deadline of every start; line by line it took twice that.
        let pen = Pen::prepared(by, directory, "-F cf", None, &[UNUSED.to_owned()]);
        pen.tell(&["write file"]);
        assert_eq!(pen.file("file").matches("acl 1 deny ").count(), 20_000, "{by:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_made_by_write() {
    if !have("pen") {
        return;
    }
    alike("-F cf -b 7", &[UNUSED.to_owned()], true, |pen| {
        pen.tell(&["write"]);
        pen.file("cf").contains("blacklist 7\n")
    });
}

#[test]
fn a_file_says_more_of_the_servers_of_the_command_line() {
    if !have("pen") {
        return;
    }
    for (by, expected) in [(By::Debian, "0"), (By::Us, "3")] {
        let directory = Directory::new();
        directory.write("cf", "server 0 max 3\n");
        let pen = Pen::prepared(by, directory, "-F cf", None, &[UNUSED.to_owned()]);
        assert_eq!(pen.field(0, "max"), expected, "file-over-line: {by:?}");
        // Read again, it counts for both.
        pen.signal("HUP");
        wait_until("the file to be read", || (pen.field(0, "max") == "3").then_some(()));
    }
}

/// What `write` writes, without its two first lines.
fn written(pen: &Pen) -> Vec<String> {
    pen.tell(&["write file"]);
    let text = pen.file("file");
    let header: Vec<&str> = text.lines().take(2).collect();
    assert!(header[0].starts_with("# Generated by ") && header[1].starts_with("# pen "), "{header:?}");
    assert!(header[1].contains(" -f "), "{header:?}");
    text.lines().skip(2).map(|line| line.replace(&pen.port.to_string(), "PORT")).collect()
}

/// Settings that both know.
const SETTINGS: &[&str] = &[
    "acl 1 permit 10.0.0.1",
    "acl 1 deny 10.0.0.0 255.0.0.0",
    "acl 2 permit ::1",
    "acl 2 deny 2001:db8::/32",
    "ascii",
    "hash",
    "http",
    "roundrobin",
    "stubborn",
    "weight",
    "prio",
    "tcp_nodelay",
    "tcp_fastclose up",
    "server 0 max 4 hard 5 weight 6 prio 7",
];

#[test]
fn what_is_written_has_all_lines_of_debian_s_and_each_reads_the_other_s() {
    if !have("pen") {
        return;
    }
    let [debian, ours] = BOTH.map(|by| Pen::start(by, "-b 9 -t 8 -T 7", &[UNUSED.to_owned()]));
    for pen in [&debian, &ours] {
        pen.tell(SETTINGS);
        assert_eq!(
            pen.ask("client_acl 1") + &pen.ask("log requests") + &pen.ask("web_stats page"),
            "1\nrequests\npage\n"
        );
    }
    let (theirs, mine) = (written(&debian), written(&ours));
    assert!(theirs.len() > 30 && mine.len() > theirs.len(), "written-file: {theirs:?}");
    for line in &theirs {
        assert!(mine.contains(line), "not there: {line}\n{mine:?}");
    }
    let requested = ["blacklist", "timeout", "tracking", "mode", "servers", "client_acl", "log", "web_stats"];
    let settings = |pen: &Pen| requested.map(|command| pen.ask(command)).concat();
    let expected = settings(&debian);
    assert_eq!(settings(&ours), expected);
    // Each with the file of the other, as commands that are included: lines that Debian's does not know are passed over.
    for (by, file) in [(By::Us, debian.file("file")), (By::Debian, ours.file("file"))] {
        let pen = Pen::start(by, "", &[]);
        let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with("listen")).collect();
        pen.directory.write("other", &(lines.join("\n") + "\n"));
        pen.ask("include other");
        assert_eq!(settings(&pen), expected, "{by:?}");
        assert!(!pen.has_ended());
    }
}

#[test]
fn a_file_with_a_mistake_counts_by_halves_for_debian_s_and_not_at_all_for_ours() {
    if !have("pen") {
        return;
    }
    differs("include-whole", "-F cf", &[UNUSED.to_owned()], "9\n".to_owned(), "30\n".to_owned(), |pen| {
        // It was not there at the start: Debian's passes over that.
        pen.directory.write("cf", "blacklist 9\nnonsense\n");
        pen.signal("HUP");
        wait_until("the file to be read", || {
            (pen.ask("blacklist") == "9\n" || pen.printed().contains("nonsense")).then_some(())
        });
        pen.ask("blacklist")
    });
}

/// How a command line ends at once.
fn ends(by: By, arguments: &str) -> (bool, String) {
    let directory = Directory::new();
    let mut command = Command::new("timeout");
    command.arg("10").arg(program(by, &directory)).args(arguments.split_whitespace());
    let output = command.current_dir(directory.file(".")).output().unwrap();
    assert_ne!(output.status.code(), Some(124), "{by:?} runs: {arguments}");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_wrong_command_line_ends_both() {
    if !have("pen") {
        return;
    }
    // Debian's prints its usage and says that all is well.
    for wrong in ["", "-y 80 127.0.0.1", "-t 0 80 127.0.0.1", "-b"] {
        let (well, printed) = ends(By::Debian, &format!("-f {wrong}"));
        assert!(well && printed.contains("usage:"), "usage: {wrong}: {printed}");
        let (well, printed) = ends(By::Us, &format!("-f {wrong}"));
        assert!(
            !well && printed.starts_with("pen: ") && printed.lines().count() == 1,
            "usage: {wrong}: {printed}"
        );
    }
    for wrong in
        ["no-such-service 127.0.0.1", "80 no.invalid", "-L none 80 127.0.0.1", "-u no-such-user 80 127.0.0.1"]
    {
        for by in BOTH {
            let (well, printed) = ends(by, &format!("-f {wrong}"));
            assert!(!well && !printed.is_empty(), "{by:?}: {wrong}: {printed}");
        }
    }
}

#[test]
fn option_n_is_there_only_in_ours() {
    if !have("pen") {
        return;
    }
    let (well, printed) = ends(By::Debian, "-f -N 80 127.0.0.1");
    assert!(well && printed.contains("usage:"), "option-n: {printed}");
    let server = Server::named("a");
    let pen = Pen::start(By::Us, "-N", &to(&server));
    assert_eq!(pen.who(), "a");
    assert_eq!(pen.ask("mode"), "hash no roundrobin no stubborn no weight no prio\n");
}

#[test]
fn options_say_the_same_as_commands() {
    if !have("pen") {
        return;
    }
    let requested = [
        "blacklist",
        "tracking",
        "timeout",
        "clients_max",
        "conn_max",
        "mode",
        "debug",
        "log",
        "web_stats",
        "control",
    ];
    let expected = "4\n5\n6\n70\n80\nhash roundrobin stubborn weight prio\n0\nlog\npage\n./control\n";
    alike(
        "-b4 -T 5 -t6 -c 70 -x80 -hrs -W -o prio -llog -wpage",
        &[UNUSED.to_owned()],
        expected.to_owned(),
        |pen| requested.map(|command| pen.ask(command)).concat(),
    );
}

/// A penctl.
fn penctl(by: By, arguments: &[&str]) -> Output {
    let mut command = Command::new(if by == By::Debian { "/usr/bin/penctl" } else { BINARY });
    command.args((by == By::Us).then_some("penctl")).args(arguments).output().unwrap()
}

#[test]
fn our_penctl_says_what_debian_s_says() {
    if !have("pen") {
        return;
    }
    for by in BOTH {
        let pen = Pen::start(by, "", &[UNUSED.to_owned()]);
        let control = pen.directory.file("control").display().to_string();
        for command in [
            &["servers"][..],
            &["server", "0", "max", "3"],
            &["servers"],
            &["mode now"],
            &["connection", "2"],
            &["pid"],
        ] {
            let [debian, ours] = BOTH.map(|by| penctl(by, &[&[control.as_str()], command].concat()));
            assert_eq!(debian.stdout, ours.stdout, "{by:?} {command:?}");
            assert_eq!((debian.status.code(), ours.status.code()), (Some(0), Some(0)), "{by:?} {command:?}");
        }
    }
    let closed = format!("127.0.0.1:{}", reserved_port());
    for wrong in [
        &[closed.as_str(), "mode"][..],
        &["/no/such", "mode"],
        &["nocolon", "mode"],
        &["127.0.0.1:no", "mode"],
    ] {
        for by in BOTH {
            let output = penctl(by, wrong);
            assert_eq!(output.status.code(), Some(1), "{by:?} {wrong:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{by:?} {wrong:?}");
        }
    }
    // Without a command Debian's says that all is well.
    let codes = BOTH.map(|by| penctl(by, &[&closed]).status.code());
    assert_eq!(codes, [Some(0), Some(2)], "penctl-usage");
}

#[test]
fn root_may_write_to_files_of_others() {
    if !have("pen") || !is_root() {
        return;
    }
    let server = Server::named("a");
    for by in BOTH {
        let directory = Directory::new();
        let log = directory.write("log", "");
        std::os::unix::fs::chown(&log, Some(65_534), Some(65_534)).unwrap();
        std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let pen = Pen::prepared(by, directory, "", None, &to(&server));
        assert_eq!(pen.ask("log log"), "log\n", "{by:?}");
        assert!(!pen.has_ended());
    }
}

fn read(directory: &Directory, name: &str) -> String {
    std::fs::read_to_string(directory.file(name)).unwrap_or_default()
}

#[test]
fn a_daemon_leaves_its_pid_and_answers() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in BOTH {
        let directory = Directory::new();
        let port = reserved_port();
        let file = |name: &str| directory.file(name).display().to_string();
        let (control, pid) = (file("control"), file("pid"));
        directory.write("cf", "timeout 9\n");
        let mut command = Command::new(program(by, &directory));
        command
            .args(["-C", "./control", "-X", "-F", "cf", "-w", "page", "-p", "pid"])
            .args(is_root().then_some(["-u", "root"]).iter().flatten());
        command.args([local(port).to_string(), to(&server)[0].clone()]).current_dir(directory.file("."));
        // Debian's prints what its file answers.
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{by:?}");
        let written =
            wait_until("the pid", || std::fs::read_to_string(&pid).ok().filter(|pid| !pid.is_empty()));
        let ask = |words: &str| {
            let output = penctl(By::Debian, &[&control, words]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let response = wait_until("an answer", || ask("pid"));
        assert_eq!(response, written.clone() + "\n", "{by:?}");
        // It stays where it was called: names mean what they meant, now and later.
        let responses: Vec<Option<String>> = ["web_stats", "timeout", "log log", "write"].map(ask).into();
        let expected = ["page\n", "9\n", "log\n", ""].map(|response| Some(response.to_owned()));
        assert_eq!(responses, expected, "{by:?}");
        wait_until("both files", || {
            (directory.file("log").exists() && read(&directory, "cf").len() > 100).then_some(())
        });
        assert_eq!(crate::harness::who(port), "a", "{by:?}");
        ask("exit");
        wait_until("its end", || TcpStream::connect(local(port)).err());
        wait_until("the pid file to go", || (!std::path::Path::new(&pid).exists()).then_some(()));
    }
}
