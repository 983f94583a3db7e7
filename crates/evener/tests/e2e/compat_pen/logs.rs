//! penlog, penlogd and mergelogs, compared with Debian's programs: the same input gives the same output.

mod merge;

use crate::harness::{BINARY, DEADLINE, Directory, have, have_root, local, reserved_port, wait_until};
use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The project whose program a test runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Implementation {
    Debian,
    Evener,
}

const BOTH: [Implementation; 2] = [Implementation::Debian, Implementation::Evener];

fn program(by: Implementation, name: &str) -> Command {
    let mut command = Command::new(if by == Implementation::Evener { BINARY } else { name });
    if by == Implementation::Evener {
        command.arg(name);
    }
    command.env("TZ", "UTC");
    command
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), pid]).status().unwrap().success());
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Returns true if a process runs. The daemon is not a child of the test.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Returns the datagrams that penlog sends for this input. The last line of the input must begin with `last`.
fn penlog(by: Implementation, input: &[u8], source: &[&str]) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind(local(0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    let mut child =
        program(by, "penlog").args(["127.0.0.1", &port]).args(source).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 65_536];
    while datagrams.last().is_none_or(|last: &Vec<u8>| !last.starts_with(b"last")) {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip().to_string(), source.first().copied().unwrap_or("127.0.0.1"));
        datagrams.push(buffer[..length].to_vec());
    }
    assert!(child.wait().unwrap().success());
    datagrams
}

#[test]
fn penlog_sends_the_same_datagrams() {
    if !have("penlog") {
        return;
    }
    let most = "x".repeat(1022);
    let input = format!("one\n\n  two \"GET /\"\r\nbytes\u{fc}\n{most}\nlast without a newline");
    for source in [&[][..], &["127.0.0.5"]] {
        let [debian, evener] = BOTH.map(|by| penlog(by, input.as_bytes(), source));
        assert_eq!(debian, evener);
        assert_eq!(evener.len(), 6);
    }
}

#[test]
fn penlog_cuts_only_lines_that_do_not_fit_into_a_datagram() {
    let long = "x".repeat(30_000);
    let longer = "y".repeat(1_000_000);
    let datagrams = penlog(Implementation::Evener, format!("{long}\n{longer}\nlast\n").as_bytes(), &[]);
    let lengths: Vec<usize> = datagrams.iter().map(Vec::len).collect();
    assert_eq!(lengths, [30_001, 60_001, 5]);
    assert!(datagrams[1].ends_with(b"y\n"));
}

#[test]
fn penlog_continues_while_no_program_listens() {
    let (port, directory) = (reserved_port(), Directory::new());
    let mut child = program(Implementation::Evener, "penlog")
        .args(["localhost", &port.to_string()])
        .stdin(Stdio::piped())
        .stderr(fs::File::create(directory.file("errors")).unwrap())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // penlog reports the refusal of the first line when it sends a later line.
    let expected = format!("penlog: cannot send to 127.0.0.1:{port}: Connection refused");
    wait_until("the refusal", || {
        input.write_all(b"no listener\n").unwrap();
        read(&directory.file("errors")).starts_with(&expected).then_some(())
    });
    let socket = UdpSocket::bind(local(port)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    wait_until("a line", || {
        input.write_all(b"a listener\n").unwrap();
        socket.recv(&mut buffer).ok()
    });
    drop(input);
    assert!(child.wait().unwrap().success());
    let text = read(&directory.file("errors"));
    assert!(text.lines().count() < 10, "{text}");
}

/// A penlogd in the foreground.
struct Collector {
    child: Child,
    port: u16,
    out: PathBuf,
    errors: PathBuf,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    fn start(by: Implementation, directory: &Directory, options: &[&str]) -> Self {
        let port = reserved_port();
        let out = directory.file(&format!("out-{port}"));
        let errors = directory.file(&format!("errors-{port}"));
        let child = program(by, "penlogd")
            .args(["-fb"])
            .args(options)
            .arg(port.to_string())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        wait_until("penlogd to listen", || listens(port).then_some(()));
        Self { child, port, out, errors }
    }

    fn end(&mut self, signal_name: &str) -> Option<i32> {
        signal(signal_name, &self.child.id().to_string());
        wait_until("penlogd to end", || self.child.try_wait().unwrap()).code()
    }
}

/// Returns the number of queued bytes of a UDP port in `/proc`; `None` if no program listens. Probing with a
/// datagram instead would change the input of the tested program.
fn queued(port: u16) -> Option<u64> {
    let tables = read(Path::new("/proc/net/udp")) + &read(Path::new("/proc/net/udp6"));
    let at = format!(":{port:04X}");
    let mut rows = tables.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.get(1).is_some_and(|address| address.ends_with(&at)))?;
    u64::from_str_radix(row.get(4)?.split(':').nth(1)?, 16).ok()
}

fn listens(port: u16) -> bool {
    queued(port).is_some()
}

fn send(from: &str, port: u16, datagram: &[u8]) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.send_to(datagram, local(port)).unwrap();
}

/// Sends datagrams, each from its address, and returns the log.
fn collect(by: Implementation, options: &[&str], datagrams: &[(&str, Vec<u8>)]) -> String {
    let directory = Directory::new();
    let mut collector = Collector::start(by, &directory, options);
    for (from, datagram) in datagrams {
        send(from, collector.port, datagram);
    }
    // Debian's program may write only when it ends, so it must receive all datagrams before the signal.
    wait_until("all datagrams to be received", || {
        let ended = collector.child.try_wait().unwrap();
        assert!(ended.is_none(), "{by:?} ended: {ended:?} {}", read(&collector.errors));
        (queued(collector.port) == Some(0)).then_some(())
    });
    assert_eq!(collector.end("TERM"), Some(0));
    read(&collector.out)
}

fn web(client: &str, request: &str) -> Vec<u8> {
    format!("{client} - - [09/Jan/2002:00:28:50 +0000] \"{request}\" 200 1\n").into_bytes()
}

fn pen(client: &str, server: &str, request: &str) -> Vec<u8> {
    format!("+ {client} {server} {request}\n").into_bytes()
}

const ONE: &str = "127.0.0.1";
const TWO: &str = "127.0.0.2";

#[test]
fn penlogd_writes_the_same_lines() {
    if !have("penlogd") {
        return;
    }
    let get = "GET / HTTP/1.0";
    let mut datagrams = vec![
        (ONE, web("before", get)),
        (ONE, pen("10.1.1.1", ONE, get)),
        (ONE, pen("10.1.1.2", TWO, get)),
        (ONE, web("w", get)),
        (TWO, web("w", get)),
        ("127.0.0.3", web("unknown", get)),
        (ONE, pen("10.1.1.3", ONE, get)),
        (ONE, web("w", get)),
        (ONE, web("w", get)),
        (ONE, web("other", "GET /other HTTP/1.0")),
        (ONE, web("prefix", "GET /")),
        (ONE, b"+ 10.1.1.4   127.0.0.1   GET /spaces\r\n".to_vec()),
        (ONE, web("w", "GET /spaces")),
        (ONE, b"w \"GET /spaces\" \"referer\" \"agent\"\n".to_vec()),
        (ONE, b"two \"GET /two\" 1\nlines \"GET /two\" 2\n".to_vec()),
        (ONE, web("bytes\u{fc}", "GET /\u{fc}")),
    ];
    // Both programs drop invalid lines.
    for nothing in ["", "\n", "nonsense\n", "\"\n", "a \"b\n", "+\n", "+ a\n", "+ a b\n", "+ a 127.0.0.1 \n"]
    {
        datagrams.push((ONE, nothing.into()));
    }
    for length in [10, 90, 93, 94] {
        let request = format!("GET {}", "x".repeat(length));
        datagrams.push((ONE, pen("10.1.1.5", ONE, &request)));
        datagrams.push((ONE, web("w", &request)));
    }
    let [debian, evener] = BOTH.map(|by| collect(by, &[], &datagrams));
    assert_eq!(debian, evener);
    assert_eq!(evener.matches("10.1.1.3 - - ").count(), 3);
}

#[test]
fn penlogd_handles_long_requests_small_rings_and_lines_without_a_newline() {
    let long = format!("GET /{} HTTP/1.0", "x".repeat(200));
    let written = collect(
        Implementation::Evener,
        &["-n1"],
        &[
            (ONE, pen("10.1.1.1", ONE, &long)),
            (ONE, web("w", &long)),
            (ONE, pen("10.1.1.2", ONE, "GET /")),
            (ONE, web("w", &long)),
            (ONE, b"w \"GET /\"".to_vec()),
        ],
    );
    let firsts: Vec<&str> = written.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(firsts, ["10.1.1.1", "w", "10.1.1.2"]);
}

#[test]
fn penlogd_survives_hostile_datagrams() {
    let mut datagrams: Vec<(&str, Vec<u8>)> = Vec::new();
    for byte in 0..=255 {
        datagrams.push((ONE, vec![byte]));
        datagrams.push((ONE, vec![byte; 2000]));
        datagrams.push((ONE, [b"+ a 127.0.0.1 \"", &[byte; 50][..]].concat()));
        datagrams.push((ONE, [b"+ ", &[byte; 100][..], b" 127.0.0.1 x"].concat()));
    }
    for length in [99, 100, 101, 1023, 1024, 1025, 60_000] {
        datagrams.push((ONE, pen(&"c".repeat(length), ONE, "a")));
        datagrams.push((ONE, pen("c", &"1".repeat(length), "a")));
        datagrams.push((ONE, pen("c", ONE, &"a".repeat(length))));
        datagrams.push((ONE, web(&"c".repeat(length), "a")));
    }
    let directory = Directory::new();
    let mut collector = Collector::start(Implementation::Evener, &directory, &["-n2"]);
    for (from, datagram) in &datagrams {
        send(from, collector.port, datagram);
    }
    // The flood may have filled the socket's queue.
    wait_until("the last line", || {
        send(ONE, collector.port, b"last \"line\"\n");
        read(&collector.out).contains("last \"line\"\n").then_some(())
    });
    assert_eq!(collector.end("INT"), Some(0));
    let errors = read(&collector.errors);
    assert!(errors.contains("127.0.0.1 sent"), "{errors}");
    // At most one message a second, of bounded length, and without control characters for a terminal.
    assert!(errors.lines().count() < 30, "{errors}");
    assert!(errors.lines().all(|line| line.len() < 600 && line.is_ascii()), "{errors}");
    assert!(!errors.contains('\u{1b}'), "{errors}");
}

#[test]
fn penlogd_receives_datagrams_over_ipv4_and_ipv6() {
    let directory = Directory::new();
    let Ok(socket) = UdpSocket::bind("[::1]:0") else {
        println!("skipped: needs IPv6 on loopback");
        return;
    };
    let collector = Collector::start(Implementation::Evener, &directory, &[]);
    let to = ("::1", collector.port);
    socket.send_to(&pen("2001:db8::1", "::1", "GET /"), to).unwrap();
    socket.send_to(&web("w", "GET /"), to).unwrap();
    wait_until("the line", || read(&collector.out).starts_with("2001:db8::1 - - ").then_some(()));
}

/// A penlogd in the background, started through a symbolic link `penlogd` in a new directory.
struct Background {
    directory: Directory,
    port: u16,
    pid: String,
}

impl Drop for Background {
    fn drop(&mut self) {
        if runs(&self.pid) {
            signal("KILL", &self.pid);
        }
    }
}

impl Background {
    fn start(by: Implementation, options: &[&str]) -> Self {
        let directory = Directory::new();
        let port = reserved_port();
        let target = if by == Implementation::Evener { BINARY } else { "/usr/bin/penlogd" };
        std::os::unix::fs::symlink(target, directory.file("penlogd")).unwrap();
        let mut command = Command::new(directory.file("penlogd"));
        // Relative paths are resolved in the working directory of the command.
        command.current_dir(directory.file(".")).args(options).args(["-p", "pid", &port.to_string()]);
        let status = command.stdout(fs::File::create(directory.file("out")).unwrap()).status().unwrap();
        assert!(status.success());
        if by == Implementation::Evener {
            assert!(
                directory.file("pid").exists() && listens(port),
                "the first process ended before the daemon was ready"
            );
        }
        let pid = wait_until("the pid", || Some(read(&directory.file("pid"))).filter(|pid| !pid.is_empty()));
        wait_until("penlogd to listen", || listens(port).then_some(()));
        Self { directory, port, pid }
    }

    fn expect_received(&self) {
        wait_until("all datagrams to be received", || (queued(self.port) == Some(0)).then_some(()));
    }

    fn expect(&self, file: &str, text: &str) {
        wait_until(text, || read(&self.directory.file(file)).contains(text).then_some(()));
    }
}

#[test]
fn a_background_penlogd_opens_its_log_again_on_hup_and_removes_its_pid_file() {
    if !have("penlogd") {
        return;
    }
    for by in BOTH {
        let daemon = Background::start(by, &["-llog"]);
        assert!(!daemon.pid.ends_with('\n') && runs(&daemon.pid), "{:?}", daemon.pid);
        send(ONE, daemon.port, b"one \"GET /\" 1\n");
        // Debian's program may write only when it closes the log, so it must receive all datagrams before the
        // signal.
        daemon.expect_received();
        fs::rename(daemon.directory.file("log"), daemon.directory.file("log.1")).unwrap();
        signal("HUP", &daemon.pid);
        wait_until("the new log", || daemon.directory.file("log").exists().then_some(()));
        send(ONE, daemon.port, b"two \"GET /\" 1\n");
        daemon.expect("log.1", "one \"GET /\" 1\n");
        daemon.expect_received();
        signal("TERM", &daemon.pid);
        wait_until("the end", || (!runs(&daemon.pid)).then_some(()));
        assert!(!daemon.directory.file("pid").exists());
        let both = read(&daemon.directory.file("log.1")) + &read(&daemon.directory.file("log"));
        assert_eq!(both, "one \"GET /\" 1\ntwo \"GET /\" 1\n", "{by:?}");
    }
}

#[test]
fn a_background_penlogd_leaves_the_terminal_and_keeps_its_stdout() {
    let daemon = Background::start(Implementation::Evener, &[]);
    send(ONE, daemon.port, b"a \"GET /\" 1\n");
    daemon.expect("out", "a \"GET /\" 1\n");
    let link = |path: &str| fs::read_link(format!("/proc/{}/{path}", daemon.pid)).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    assert_eq!((link("fd/0"), link("fd/2")), ("/dev/null".into(), "/dev/null".into()));
    let stat = read(Path::new(&format!("/proc/{}/stat", daemon.pid)));
    // After the name: state, parent, process group, session.
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, daemon.pid);
}

#[test]
fn penlogd_changes_its_root_and_its_user() {
    if !have_root() {
        return;
    }
    let root = Directory::new();
    std::os::unix::fs::chown(root.file("."), Some(65_534), Some(65_534)).unwrap();
    let path = root.file(".").canonicalize().unwrap().display().to_string();
    let daemon = Background::start_in(&path, &["-j", &path, "-unobody", "-l/log", "-p/pid"]);
    send(ONE, daemon.port, b"a \"GET /\" 1\n");
    wait_until("the line", || (read(&root.file("log")) == "a \"GET /\" 1\n").then_some(()));
    let status = read(Path::new(&format!("/proc/{}/status", daemon.pid)));
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
    assert!(status.contains("Gid:\t65534\t65534\t65534\t65534\n"), "{status}");
    assert!(status.contains("Groups:\t65534 \n"), "{status}");
    assert_eq!(fs::read_link(format!("/proc/{}/root", daemon.pid)).unwrap(), Path::new(&path));
    signal("TERM", &daemon.pid);
    wait_until("the end", || (!runs(&daemon.pid)).then_some(()));
    assert!(!root.file("pid").exists());
}

impl Background {
    /// Starts a penlogd whose pid file is `pid` in another directory.
    fn start_in(root: &str, options: &[&str]) -> Self {
        let port = reserved_port();
        assert!(
            program(Implementation::Evener, "penlogd")
                .args(options)
                .arg(port.to_string())
                .status()
                .unwrap()
                .success()
        );
        let pid = read(&Path::new(root).join("pid"));
        Self { directory: Directory::new(), port, pid }
    }
}

#[test]
fn a_background_penlogd_that_cannot_start_reports_the_reason_and_fails() {
    let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let free = reserved_port().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&[&taken], "penlogd: cannot listen to UDP port"),
        (&["-l/no/such/log", &free], "penlogd: cannot open the log file /no/such/log: No such file"),
        (&["-p", "/no/such/pid", &free], "penlogd: cannot write the pid file /no/such/pid: No such file"),
        (&["-u", "no-such-user", &free], "penlogd: there is no user no-such-user"),
        (&["-j/no/such/root", &free], "penlogd: cannot make /no/such/root the root: "),
    ];
    for (arguments, expected) in cases {
        let output = program(Implementation::Evener, "penlogd").args(*arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = printed(&output);
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn a_pid_file_is_removed_if_the_start_fails_later() {
    let directory = Directory::new();
    let pid = directory.file("pid").display().to_string();
    let port = reserved_port().to_string();
    let output = program(Implementation::Evener, "penlogd")
        .args(["-fp", &pid, "-l/no/such/log", &port])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!directory.file("pid").exists());
}

#[test]
fn errors_of_the_command_line_are_reported() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("penlog", &[], "penlog: expected two or three words, got 0\nUsage: penlog server_ip"),
        (
            "penlog",
            &["a", "b"],
            "penlog: the port: `b` is not a number: invalid digit found in string\nUsage",
        ),
        ("penlog", &["a", "1", "b", "c"], "penlog: expected two or three words, got 4"),
        ("penlog", &["-x", "a", "1"], "penlog: invalid option '-x'\nUsage"),
        ("penlog", &["no-such-host.invalid", "1"], "penlog: `no-such-host.invalid` does not resolve: "),
        ("penlog", &["127.0.0.1", "1", "::1"], "penlog: 127.0.0.1 and ::1 are not of the same family\n"),
        ("penlogd", &[], "penlogd: expected one port, got 0\nUsage: penlogd [options] port\n"),
        ("penlogd", &["1", "2"], "penlogd: expected one port, got 2"),
        ("penlogd", &["65536"], "penlogd: the port: 65536 is not between 1 and 65535\n"),
        ("penlogd", &["-fn", "-1", "9"], "penlogd: -n: -1 is not between 0 and 1000000\n"),
        ("penlogd", &["-z", "9"], "penlogd: invalid option '-z'\n"),
        ("mergelogs", &[], "mergelogs: -p is missing: give pen's log\nUsage: mergelogs -p penlog"),
        ("mergelogs", &["-p"], "mergelogs: missing argument for option '-p'\n"),
        ("mergelogs", &["-pp"], "mergelogs: give at least one server with its log: SERVER:LOGFILE\n"),
        ("mergelogs", &["-pp", "w"], "mergelogs: `w` is not SERVER:LOGFILE"),
        ("mergelogs", &["-jx", "-pp", "a:w"], "mergelogs: -j: `x` is not a number"),
        ("mergelogs", &["-p/no/such", "a:w"], "mergelogs: cannot open pen's log /no/such: No such file"),
        ("mergelogs", &["-p/dev/null", "a:/no/w"], "mergelogs: cannot open the log /no/w: No such file"),
    ];
    for (name, arguments, expected) in cases {
        let output =
            program(Implementation::Evener, name).args(*arguments).stdin(Stdio::null()).output().unwrap();
        let text = printed(&output);
        let usage = if text.contains("\nUsage") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(usage), "{name} {arguments:?}");
        assert!(text.starts_with(expected), "{name} {arguments:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_symbolic_link_named_like_a_program_runs_that_program() {
    let directory = Directory::new();
    for name in ["penlog", "penlogd", "mergelogs"] {
        std::os::unix::fs::symlink(BINARY, directory.file(name)).unwrap();
        let output = Command::new(directory.file(name)).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(printed(&output).starts_with(&format!("{name}: ")), "{}", printed(&output));
    }
}
