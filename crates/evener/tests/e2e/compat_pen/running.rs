//! The running pen: signals, reloads of files, daemons, and changes of user and root.

use crate::compat_pen::tcp::at;
use crate::harness::pen::{Daemon, Pen, refused};
use crate::harness::{
    BINARY, Directory, Server, connect, have_root, line, local, reserved_port, wait_until, who,
};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Returns true if a program listens on this port.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect(local(port)).is_ok()
}

#[test]
fn a_changed_file_is_reloaded_under_load_without_a_failed_client() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let (listen, directory) = (reserved_port(), Directory::new());
    let file = directory.write("commands", &format!("server 1 address 127.0.0.1 port {}\n", b.port));
    let text = file.display().to_string();
    let pen = Pen::run_in(directory, &["-r", "-F", &text, &format!("127.0.0.1:{listen}"), &at(&a)]);
    let (stop, requested) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed: usize = std::thread::scope(|scope| {
        let load = || {
            let mut failed = 0;
            while !stop.load(Ordering::Relaxed) {
                failed += usize::from(!["a", "b", "c"].contains(&who(listen).as_str()));
                requested.fetch_add(1, Ordering::Relaxed);
            }
            failed
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(load)).collect();
        for turn in 0..12 {
            let port = [c.port, b.port][turn % 2];
            let more = ["roundrobin", "hash", "no roundrobin\nno hash\ntracking 1"][turn % 3];
            fs::write(&file, format!("server 1 address 127.0.0.1 port {port}\n{more}\n")).unwrap();
            pen.hang_up();
            let before = requested.load(Ordering::Relaxed);
            wait_until("more clients", || (requested.load(Ordering::Relaxed) > before + 30).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(failed, 0, "failed clients of {}", requested.load(Ordering::Relaxed));
    assert!(pen.ctl("servers").contains(&format!("port {}", b.port)));
}

#[test]
fn a_file_with_problems_changes_nothing_and_each_problem_is_logged_with_its_line() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let file = directory.write("commands", "roundrobin\nblacklist 7\n");
    let text = file.display().to_string();
    let pen = Pen::run_in(directory, &["-F", &text, &format!("127.0.0.1:{listen}"), &at(&a)]);
    fs::write(&file, "blacklist 99\nrobin\n# well\nserver 0 addres 10.0.0.1\nacl 10 permit 10.0.0.1\nhash\n")
        .unwrap();
    pen.signal("HUP");
    for problem in [
        format!("{text}:2: there is no command 'robin'"),
        format!("{text}:4: server: `addres` is not one of acl, address"),
        format!("{text}:5: `10` is not an access list"),
    ] {
        pen.expect_log(&problem);
    }
    assert_eq!(pen.ctl("blacklist"), "7\n");
    assert!(pen.ctl("mode").starts_with("no hash roundrobin"));
    assert_eq!(who(listen), "a");
    // The same problems prevent a start.
    let (code, printed) = refused(&["-f", "-F", &text, "127.0.0.1:1", "127.0.0.1:2"]);
    assert_eq!(code, 1, "{printed}");
    assert!(
        printed.contains(&format!("pen: {text}:2: ")) && printed.contains(&format!("pen: {text}:5: ")),
        "{printed}"
    );
    fs::write(&file, "blacklist 8\n").unwrap();
    pen.hang_up();
    assert_eq!(pen.ctl("blacklist"), "8\n");
}

#[test]
fn a_moved_log_is_opened_again_on_hup() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let log = directory.file("pen.log");
    let pen =
        Pen::run_in(directory, &["-l", &log.display().to_string(), &format!("127.0.0.1:{listen}"), &at(&a)]);
    let moved = pen.file("pen.log.1");
    let request = |text: &str| {
        let mut stream = connect(listen);
        stream.write_all(format!("GET /{text} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(line(&mut stream), "a 127.0.0.1");
    };
    let read = |path: &std::path::Path| fs::read_to_string(path).unwrap_or_default();
    request("before");
    wait_until("the line", || read(&log).contains("GET /before").then_some(()));
    fs::rename(&log, &moved).unwrap();
    request("meanwhile");
    wait_until("the line in the moved file", || read(&moved).contains("GET /meanwhile").then_some(()));
    pen.signal("HUP");
    wait_until("the new file", || log.exists().then_some(()));
    request("after");
    wait_until("the line in the new file", || read(&log).contains("GET /after").then_some(()));
    assert!(!read(&moved).contains("GET /after") && !read(&log).contains("GET /before"));
    let line = read(&log).lines().next().unwrap().to_owned();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!((words[0], words[2], words[3]), ("127.0.0.1", "127.0.0.1", "GET"), "{line}");
}

#[test]
fn usr1_writes_the_status_page_or_logs_statistics() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let page = directory.file("page.html");
    let pen = Pen::run_in(directory, &[&format!("127.0.0.1:{listen}"), &at(&a)]);
    assert_eq!(who(listen), "a");
    pen.signal("USR1");
    pen.expect_log("of 500 connections, 1 of 2048 clients");
    pen.expect_log(&format!("server 0 addr 127.0.0.1 port {}", a.port));
    assert_eq!(pen.ctl(&format!("web_stats {}", page.display())), format!("{}\n", page.display()));
    pen.signal("USR1");
    wait_until("the page", || {
        fs::read_to_string(&page)
            .is_ok_and(|text| text.contains(&format!("<td>{}</td>", a.port)))
            .then_some(())
    });
    fs::remove_file(&page).unwrap();
    assert!(pen.ctl("status").ends_with("</html>\n") && page.exists());
}

#[test]
fn usr2_aborts_the_program() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let mut pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    pen.signal("USR2");
    assert_eq!(pen.end(), None, "abort() ends a process by a signal");
}

/// A server that waits for one byte, then sends a byte for each message in the channel. It closes the
/// connection when the channel closes.
fn slow_server() -> (Server, std::sync::mpsc::Sender<()>) {
    let (send_byte, messages) = std::sync::mpsc::channel::<()>();
    let messages = std::sync::Mutex::new(messages);
    let server = Server::start(move |mut stream| {
        if !matches!(stream.read(&mut [0]), Ok(1)) {
            return;
        }
        while messages.lock().unwrap().recv().is_ok() {
            if stream.write_all(b"x").is_err() {
                return;
            }
        }
    });
    (server, send_byte)
}

#[test]
fn term_lets_a_transfer_finish() {
    let ((server, send_byte), listen) = (slow_server(), reserved_port());
    let mut pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&server)]);
    let mut client = connect(listen);
    client.write_all(b"?").unwrap();
    send_byte.send(()).unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    pen.signal("TERM");
    wait_until("no new clients", || (!listens(listen)).then_some(()));
    for _ in 0..10 {
        send_byte.send(()).unwrap();
        client.read_exact(&mut byte).unwrap();
    }
    assert!(!pen.has_ended());
    drop(send_byte);
    assert_eq!(client.read(&mut byte).unwrap(), 0, "the transfer ends without an error");
    drop(client);
    assert_eq!(pen.end(), Some(0));
}

#[test]
fn term_drains_until_the_timeout_and_a_second_term_ends_immediately() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let listen_at = format!("127.0.0.1:{listen}");
    for (limit, twice) in [("300ms", false), ("1h", true)] {
        let mut pen = Pen::run(&["--drain-timeout", limit, &listen_at, &at(&a)]);
        let mut client = connect(listen);
        line(&mut client);
        pen.signal("TERM");
        pen.expect_log("draining signal=SIGTERM");
        if twice {
            assert!(!pen.has_ended());
            pen.signal("TERM");
        }
        assert_eq!(pen.end(), Some(0));
        // The connection ends with or without an error.
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
    }
}

#[test]
fn a_daemon_serves_before_its_caller_ends_and_has_a_pid_file_while_it_runs() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let listen_at = format!("127.0.0.1:{listen}");
    let daemon = Daemon::start(&directory, &[&listen_at, &at(&a)]);
    // The daemon serves immediately: the test does not wait.
    assert_eq!(who(listen), "a");
    let link = |name: &str| daemon.proc_link(name);
    // Like Debian's pen, the daemon keeps its working directory, so relative paths stay valid.
    assert_eq!(link("cwd"), std::env::current_dir().unwrap());
    assert!(["fd/0", "fd/1", "fd/2"].into_iter().all(|fd| link(fd).display().to_string() == "/dev/null"));
    daemon.signal("TERM");
    daemon.expect_end();
    assert!(!directory.file("pid").exists());
    // A port in use is reported.
    let taken = TcpListener::bind(local(listen)).unwrap();
    let pid_file = directory.file("other").display().to_string();
    let (code, printed) = refused(&["-p", &pid_file, &listen_at, &at(&a)]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.starts_with(&format!("pen: {listen_at} is in use")), "{printed}");
    assert!(!directory.file("other").exists(), "a failed start leaves no pid file");
    drop(taken);
}

#[test]
fn a_daemon_resolves_relative_paths_in_its_start_directory_even_on_reload() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    directory.write("inner", &format!("server 0 address 127.0.0.1 port {}\n", a.port));
    directory.write("commands", "include inner\nlog requests\nweb_stats page.html\n");
    let output = std::process::Command::new(BINARY)
        .args(["pen", "-p", "pid", "-F", "commands", &format!("127.0.0.1:{listen}")])
        .current_dir(directory.file(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let daemon = Daemon::adopt(&directory);
    assert_eq!(who(listen), "a");
    fs::rename(directory.file("requests"), directory.file("requests.1")).unwrap();
    let b = Server::named("b");
    directory.write("inner", &format!("server 0 address 127.0.0.1 port {}\n", b.port));
    daemon.signal("HUP");
    wait_until("the new log", || directory.file("requests").exists().then_some(()));
    wait_until("the other server", || (who(listen) == "b").then_some(()));
    daemon.signal("USR1");
    wait_until("the page", || directory.file("page.html").exists().then_some(()));
    daemon.signal("TERM");
    daemon.expect_end();
    assert!(!directory.file("pid").exists());
}

#[test]
fn a_udp_daemon_releases_its_port_immediately_on_term() {
    let (echo, listen, directory) = (crate::udp::flows::Echo::start("a"), reserved_port(), Directory::new());
    let (listen_at, server) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", echo.port));
    let daemon = Daemon::start(&directory, &["-U", &listen_at, &server]);
    let client = crate::udp::flows::client(listen);
    assert_eq!(crate::udp::flows::ask(&client, "1"), "a 1");
    daemon.signal("TERM");
    wait_until("the removal of the pid file", || (!directory.file("pid").exists()).then_some(()));
    let next = wait_until("the port", || {
        let (code, _) =
            refused(&["-p", &directory.file("pid").display().to_string(), "-U", &listen_at, &server]);
        (code == 0).then(|| Daemon::adopt(&directory))
    });
    assert_eq!(crate::udp::flows::ask(&client, "2"), "a 2");
    next.signal("TERM");
    next.expect_end();
    daemon.expect_end();
}

/// Returns a free port below 1024.
fn low_port() -> u16 {
    let first = 600 + (std::process::id() % 300) as u16;
    let free = |port: &u16| TcpListener::bind(local(*port)).is_ok();
    (first..1024).find(free).unwrap()
}

#[test]
fn low_ports_keys_and_commands_still_work_after_a_change_of_user() {
    if !have_root() {
        return;
    }
    let (a, directory, low) = (Server::named("a"), Directory::new(), low_port());
    let authority = crate::harness::certificates::Authority::new("test ca");
    let (chain, key) = authority.issue(&["a.example"]).write(&directory, "a");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let log = directory.file("requests").display().to_string();
    let commands = directory.write("commands", "blacklist 5\n");
    // The user may write in this directory.
    fs::set_permissions(directory.file(""), fs::Permissions::from_mode(0o777)).unwrap();
    let [chain, key, commands] = [chain, key, commands].map(|path| path.display().to_string());
    let pen = Pen::run_in(
        directory,
        &[
            "-unobody",
            "-l",
            &log,
            "-F",
            &commands,
            "-E",
            &chain,
            "-K",
            &key,
            &format!("127.0.0.1:{low}"),
            &at(&a),
        ],
    );
    let status = fs::read_to_string(format!("/proc/{}/status", pen.pid())).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(uid.split_whitespace().skip(1).all(|uid| uid != "0"), "{uid}");
    let client = std::sync::Arc::new(authority.client(crate::harness::certificates::ANY));
    let serves = |port: u16| {
        let mut stream = crate::harness::certificates::shake(port, "a.example", &client).unwrap();
        assert_eq!(crate::harness::certificates::line_of(&mut stream), "a 127.0.0.1");
    };
    serves(low);
    // Every command still works, although the user cannot read the key.
    assert_eq!(pen.ctl("blacklist 9"), "9\n");
    pen.order("acl 1 deny 127.0.0.66");
    assert_eq!(pen.ctl("client_acl 1"), "1\n");
    serves(low);
    let other = low_port();
    assert_ne!(low, other);
    assert_eq!(pen.ctl(&format!("listen 127.0.0.1:{other}")), format!("127.0.0.1:{other}\n"));
    serves(other);
    wait_until("the old port to be closed", || (!listens(low)).then_some(()));
    // The log is opened again and the file of commands is read again; the old key stays in use.
    fs::rename(&log, format!("{log}.1")).unwrap();
    fs::write(&commands, "blacklist 6\n").unwrap();
    pen.signal("HUP");
    wait_until("the new log", || fs::exists(&log).unwrap().then_some(()));
    wait_until("the new settings", || (pen.ctl("blacklist") == "6\n").then_some(()));
    pen.expect_log("certificates_refused");
    serves(other);
}

#[test]
fn log_page_and_pid_file_are_written_in_the_changed_root() {
    if !have_root() {
        return;
    }
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    for part in ["jail/log", "jail/run"] {
        fs::create_dir_all(directory.file(part)).unwrap();
    }
    let authority = crate::harness::certificates::Authority::new("test ca");
    let (chain, key) = authority.issue(&["a.example"]).write(&directory, "a");
    let [chain, key] = [chain, key].map(|path| path.display().to_string());
    let jail = directory.file("jail").display().to_string();
    let mut pen = Pen::run_in(
        directory,
        &[
            "-j",
            &jail,
            "-l",
            "/log/pen.log",
            "-w",
            "/log/page.html",
            "-p",
            "/run/pid",
            "-E",
            &chain,
            "-K",
            &key,
            &format!("127.0.0.1:{listen}"),
            &at(&a),
        ],
    );
    let file = |name: &str| fs::read_to_string(format!("{jail}/{name}")).unwrap_or_default();
    assert_eq!(fs::read_link(format!("/proc/{}/root", pen.pid())).unwrap().display().to_string(), jail);
    assert_eq!(file("run/pid"), pen.pid().to_string());
    let client = std::sync::Arc::new(authority.client(crate::harness::certificates::ANY));
    let mut stream = crate::harness::certificates::shake(listen, "a.example", &client).unwrap();
    stream.write_all(b"GET /in-jail\n").unwrap();
    assert_eq!(crate::harness::certificates::line_of(&mut stream), "a 127.0.0.1");
    wait_until("the log", || file("log/pen.log").contains("GET /in-jail").then_some(()));
    assert!(pen.ctl("status").contains("</html>"));
    assert!(file("log/page.html").contains("</html>"));
    pen.order("server 0 max 7");
    drop(stream);
    pen.signal("TERM");
    assert_eq!(pen.end(), Some(0));
    assert_eq!(file("run/pid"), "");
}

#[test]
fn root_opens_no_control_port_unless_a_user_is_given() {
    if !have_root() {
        return;
    }
    let (a, listen, control) = (Server::named("a"), reserved_port(), reserved_port());
    let words = [format!("127.0.0.1:{control}"), format!("127.0.0.1:{listen}"), at(&a)];
    let start = |more: &[&str]| {
        let all: Vec<&str> = ["-C"]
            .into_iter()
            .chain(words[..1].iter().map(String::as_str))
            .chain(more.iter().copied())
            .chain(words[1..].iter().map(String::as_str))
            .collect();
        Pen::start(std::process::Command::new(BINARY), Directory::new(), &all)
    };
    let pen = start(&[]);
    pen.expect_log("Won't open control port running as root; use -u to run as different user (or -u root)");
    assert!(!listens(control) && who(listen) == "a");
    drop(pen);
    let pen = start(&["-u", "root"]);
    assert!(listens(control));
    drop(pen);
    let (code, printed) = refused(&["-f", "-u", "no-such-user", &words[1], &words[2]]);
    assert!(code == 1 && printed.contains("there is no user no-such-user"), "{code} {printed}");
    assert!(!listens(listen));
}
