//! Start, files of commands, signals, the end, and penctl.

use super::differences::differs;
use super::programs::{BOTH, Implementation, Pen, alike, is_root, program};
use crate::harness::{BINARY, Directory, Server, have, line, local, reserved_port, wait_until};
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

fn to(server: &Server) -> Vec<String> {
    vec![format!("127.0.0.1:{}", server.port)]
}

const UNUSED: &str = "127.0.0.1:9";

#[test]
fn exit_ends_pen_if_it_is_enabled() {
    if !have("pen") {
        return;
    }
    alike("", &[UNUSED.to_owned()], "Exit is not enabled; restart with -X flag\n".to_owned(), |pen| {
        pen.response("exit")
    });
    for by in BOTH {
        let pen = Pen::start(by, "-X", &[UNUSED.to_owned()]);
        assert_eq!(pen.response("exit"), "", "{by:?}");
        assert_eq!(pen.end(), Some(0), "{by:?}");
    }
}

#[test]
fn term_ends_pen_and_removes_its_pid_file() {
    if !have("pen") {
        return;
    }
    for by in BOTH {
        let pen = Pen::start(by, "-p pid", &[UNUSED.to_owned()]);
        assert_eq!(pen.file("pid"), pen.pid().to_string(), "{by:?}");
        pen.signal("TERM");
        assert_eq!(pen.end(), Some(0), "{by:?}");
        assert!(!pen.path("pid").exists(), "{by:?}");
        assert!(TcpStream::connect(pen.address()).is_err());
    }
}

#[test]
fn only_evener_lets_connections_finish_on_term() {
    if !have("pen") {
        return;
    }
    let server = Server::named("a");
    for by in BOTH {
        let pen = Pen::start(by, "", &to(&server));
        let mut client = pen.connect_from(1);
        assert_eq!(line(&mut client), "a 127.0.0.1");
        pen.signal("TERM");
        wait_until("the port to close", || TcpStream::connect(pen.address()).err());
        let continues = client.write_all(b"still\n").is_ok() && line(&mut client) == "still";
        assert_eq!(continues, by == Implementation::Evener, "drain: {by:?}");
        drop(client);
        assert_eq!(pen.end(), Some(0), "{by:?}");
    }
}

/// File of commands that overrides options. Both programs print the responses to these commands.
const FILE: &str = "# commands\nblacklist 9\nmode\nacl 1 deny 127.0.0.7\nclient_acl 1\n\nclients_max 100\n\
    server 1 address 127.0.0.9 port 9 max 3 hard 4 # another\nprio\n";

#[test]
fn a_file_of_commands_is_read_at_the_start_and_on_hup() {
    if !have("pen") {
        return;
    }
    let requested = ["blacklist", "timeout", "mode", "clients_max", "client_acl", "servers"];
    let settings = |pen: &Pen| requested.map(|command| pen.response(command)).concat();
    let expected = "9\n7\nno hash roundrobin no stubborn no weight prio\n100\n1\n\
        0 addr 127.0.0.1 port 9 conn 0 max 0 hard 0 weight 0 prio 0 sx 0 rx 0\n\
        1 addr 127.0.0.9 port 9 conn 0 max 3 hard 4 weight 0 prio 0 sx 0 rx 0\n";
    for by in BOTH {
        let directory = Directory::new();
        directory.write("cf", FILE);
        let pen = Pen::prepared(by, directory, "-b 5 -t 7 -r -F cf", None, &[UNUSED.to_owned()]);
        assert_eq!(settings(&pen), expected, "{by:?}");
        pen.write("cf", "blacklist 11\nclients_max 50\nserver 1 port 10\n");
        pen.signal("HUP");
        wait_until("the file to be read", || (pen.response("blacklist") == "11\n").then_some(()));
        let expected = expected.replace("9\n7", "11\n7").replace("9 port 9", "9 port 10");
        assert_eq!(settings(&pen), expected, "{by:?}");
        // Responses to the commands of the file are on standard output. Debian's pen may write them only when
        // it ends.
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
fn a_file_of_many_lines_is_read_within_the_start_deadline() {
    if !have("pen") {
        return;
    }
    let lines = |number: u32| format!("acl 1 deny 10.{}.{}.1\n", number / 256, number % 256);
    for by in BOTH {
        let directory = Directory::new();
        directory.write("cf", &(0..20_000).map(lines).collect::<String>());
        // The start must complete within the usual deadline. Applying each line separately took twice as long.
        let pen = Pen::prepared(by, directory, "-F cf", None, &[UNUSED.to_owned()]);
        pen.run(&["write file"]);
        assert_eq!(pen.file("file").matches("acl 1 deny ").count(), 20_000, "{by:?}");
    }
}

#[test]
fn write_creates_a_missing_file_of_commands() {
    if !have("pen") {
        return;
    }
    alike("-F cf -b 7", &[UNUSED.to_owned()], true, |pen| {
        pen.run(&["write"]);
        pen.file("cf").contains("blacklist 7\n")
    });
}

#[test]
fn the_file_of_commands_overrides_servers_of_the_command_line() {
    if !have("pen") {
        return;
    }
    for (by, expected) in [(Implementation::Debian, "0"), (Implementation::Evener, "3")] {
        let directory = Directory::new();
        directory.write("cf", "server 0 max 3\n");
        let pen = Pen::prepared(by, directory, "-F cf", None, &[UNUSED.to_owned()]);
        assert_eq!(pen.field(0, "max"), expected, "file-over-line: {by:?}");
        // After a reload, the file applies to both programs.
        pen.signal("HUP");
        wait_until("the file to be read", || (pen.field(0, "max") == "3").then_some(()));
    }
}

/// Returns the lines that `write` writes, without the first two.
fn written(pen: &Pen) -> Vec<String> {
    pen.run(&["write file"]);
    let text = pen.file("file");
    let header: Vec<&str> = text.lines().take(2).collect();
    assert!(header[0].starts_with("# Generated by ") && header[1].starts_with("# pen "), "{header:?}");
    assert!(header[1].contains(" -f "), "{header:?}");
    text.lines().skip(2).map(|line| line.replace(&pen.address().port().to_string(), "PORT")).collect()
}

/// Settings that both programs support.
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
fn a_written_file_has_all_lines_of_debian_and_each_program_reads_the_other_file() {
    if !have("pen") {
        return;
    }
    let [debian, evener] = BOTH.map(|by| Pen::start(by, "-b 9 -t 8 -T 7", &[UNUSED.to_owned()]));
    for pen in [&debian, &evener] {
        pen.run(SETTINGS);
        assert_eq!(
            pen.response("client_acl 1") + &pen.response("log requests") + &pen.response("web_stats page"),
            "1\nrequests\npage\n"
        );
    }
    let (of_debian, of_evener) = (written(&debian), written(&evener));
    assert!(of_debian.len() > 30 && of_evener.len() > of_debian.len(), "written-file: {of_debian:?}");
    for line in &of_debian {
        assert!(of_evener.contains(line), "the line is missing: {line}\n{of_evener:?}");
    }
    let requested = ["blacklist", "timeout", "tracking", "mode", "servers", "client_acl", "log", "web_stats"];
    let settings = |pen: &Pen| requested.map(|command| pen.response(command)).concat();
    let expected = settings(&debian);
    assert_eq!(settings(&evener), expected);
    // Each program includes the file of the other one. Debian's pen ignores unknown lines.
    for (by, file) in
        [(Implementation::Evener, debian.file("file")), (Implementation::Debian, evener.file("file"))]
    {
        let pen = Pen::start(by, "", &[]);
        let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with("listen")).collect();
        pen.write("other", &(lines.join("\n") + "\n"));
        pen.response("include other");
        assert_eq!(settings(&pen), expected, "{by:?}");
        assert!(!pen.has_ended());
    }
}

#[test]
fn a_file_with_an_error_is_applied_in_part_by_debian_and_not_at_all_by_evener() {
    if !have("pen") {
        return;
    }
    differs("include-whole", "-F cf", &[UNUSED.to_owned()], "9\n".to_owned(), "30\n".to_owned(), |pen| {
        // The file did not exist at the start, which Debian's pen ignores.
        pen.write("cf", "blacklist 9\nnonsense\n");
        pen.signal("HUP");
        wait_until("the file to be read", || {
            (pen.response("blacklist") == "9\n" || pen.printed().contains("nonsense")).then_some(())
        });
        pen.response("blacklist")
    });
}

/// Runs a command line that ends immediately. Returns `true` if it succeeded, and its output.
fn ends(by: Implementation, arguments: &str) -> (bool, String) {
    let directory = Directory::new();
    let mut command = Command::new("timeout");
    command.arg("10").arg(program(by, &directory)).args(arguments.split_whitespace());
    let output = command.current_dir(directory.file(".")).output().unwrap();
    assert_ne!(output.status.code(), Some(124), "{by:?} runs: {arguments}");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_wrong_command_line_ends_both_programs() {
    if !have("pen") {
        return;
    }
    // Debian's pen prints its usage and reports success.
    for wrong in ["", "-y 80 127.0.0.1", "-t 0 80 127.0.0.1", "-b"] {
        let (succeeded, printed) = ends(Implementation::Debian, &format!("-f {wrong}"));
        assert!(succeeded && printed.contains("usage:"), "usage: {wrong}: {printed}");
        let (succeeded, printed) = ends(Implementation::Evener, &format!("-f {wrong}"));
        assert!(
            !succeeded && printed.starts_with("pen: ") && printed.lines().count() == 1,
            "usage: {wrong}: {printed}"
        );
    }
    for wrong in
        ["no-such-service 127.0.0.1", "80 no.invalid", "-L none 80 127.0.0.1", "-u no-such-user 80 127.0.0.1"]
    {
        for by in BOTH {
            let (succeeded, printed) = ends(by, &format!("-f {wrong}"));
            assert!(!succeeded && !printed.is_empty(), "{by:?}: {wrong}: {printed}");
        }
    }
}

#[test]
fn only_evener_has_the_option_n() {
    if !have("pen") {
        return;
    }
    let (succeeded, printed) = ends(Implementation::Debian, "-f -N 80 127.0.0.1");
    assert!(succeeded && printed.contains("usage:"), "option-n: {printed}");
    let server = Server::named("a");
    let pen = Pen::start(Implementation::Evener, "-N", &to(&server));
    assert_eq!(pen.who(), "a");
    assert_eq!(pen.response("mode"), "hash no roundrobin no stubborn no weight no prio\n");
}

#[test]
fn options_and_commands_have_the_same_effect() {
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
        |pen| requested.map(|command| pen.response(command)).concat(),
    );
}

/// Runs penctl.
fn penctl(by: Implementation, arguments: &[&str]) -> Output {
    let mut command = Command::new(if by == Implementation::Debian { "/usr/bin/penctl" } else { BINARY });
    command.args((by == Implementation::Evener).then_some("penctl")).args(arguments).output().unwrap()
}

#[test]
fn both_versions_of_penctl_print_the_same() {
    if !have("pen") {
        return;
    }
    for by in BOTH {
        let pen = Pen::start(by, "", &[UNUSED.to_owned()]);
        let control = pen.path("control").display().to_string();
        for command in [
            &["servers"][..],
            &["server", "0", "max", "3"],
            &["servers"],
            &["mode now"],
            &["connection", "2"],
            &["pid"],
        ] {
            let [debian, evener] = BOTH.map(|by| penctl(by, &[&[control.as_str()], command].concat()));
            assert_eq!(debian.stdout, evener.stdout, "{by:?} {command:?}");
            assert_eq!(
                (debian.status.code(), evener.status.code()),
                (Some(0), Some(0)),
                "{by:?} {command:?}"
            );
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
    // Without a command Debian's penctl reports success.
    let codes = BOTH.map(|by| penctl(by, &[&closed]).status.code());
    assert_eq!(codes, [Some(0), Some(2)], "penctl-usage");
}

#[test]
fn root_may_write_to_files_of_other_users() {
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
        assert_eq!(pen.response("log log"), "log\n", "{by:?}");
        assert!(!pen.has_ended());
    }
}

fn read(directory: &Directory, name: &str) -> String {
    std::fs::read_to_string(directory.file(name)).unwrap_or_default()
}

#[test]
fn a_daemon_writes_its_pid_and_responds_to_commands() {
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
        // Debian's pen prints the responses to the commands of its file.
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{by:?}");
        let written =
            wait_until("the pid", || std::fs::read_to_string(&pid).ok().filter(|pid| !pid.is_empty()));
        let response = |words: &str| {
            let output = penctl(Implementation::Debian, &[&control, words]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let pid_response = wait_until("a response", || response("pid"));
        assert_eq!(pid_response, written.clone() + "\n", "{by:?}");
        // The daemon keeps the working directory of the command, so relative paths stay valid.
        let responses: Vec<Option<String>> =
            ["web_stats", "timeout", "log log", "write"].map(response).into();
        let expected = ["page\n", "9\n", "log\n", ""].map(|text| Some(text.to_owned()));
        assert_eq!(responses, expected, "{by:?}");
        wait_until("both files", || {
            (directory.file("log").exists() && read(&directory, "cf").len() > 100).then_some(())
        });
        assert_eq!(crate::harness::who(port), "a", "{by:?}");
        response("exit");
        wait_until("the end of pen", || TcpStream::connect(local(port)).err());
        wait_until("the removal of the pid file", || (!std::path::Path::new(&pid).exists()).then_some(()));
    }
}
