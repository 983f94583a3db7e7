//! pen while it runs: signals, files that are read again, the background, users and roots.

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

/// Whether a service listens there.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect(local(port)).is_ok()
}

#[test]
fn a_changed_file_is_read_again_under_load_and_no_client_notices() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let (listen, directory) = (reserved_port(), Directory::new());
    let file = directory.write("commands", &format!("server 1 address 127.0.0.1 port {}\n", b.port));
    let text = file.display().to_string();
    let pen = Pen::run_in(directory, &["-r", "-F", &text, &format!("127.0.0.1:{listen}"), &at(&a)]);
    let (over, requested) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed: usize = std::thread::scope(|scope| {
        let load = || {
            let mut failed = 0;
            while !over.load(Ordering::Relaxed) {
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
        over.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(failed, 0, "of {}", requested.load(Ordering::Relaxed));
    assert!(pen.ctl("servers").contains(&format!("port {}", b.port)));
}

#[test]
fn a_file_with_problems_changes_nothing_and_each_is_told_with_its_line() {
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
    // At the start the same problems keep it from starting.
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
fn a_log_is_rotated_by_moving_it_and_hanging_up() {
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
fn usr1_writes_the_page_or_says_the_numbers() {
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
fn usr2_aborts() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let mut pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&a)]);
    pen.signal("USR2");
    assert_eq!(pen.end(), None, "a signal ended it, as abort() does");
}

/// A server that, once it was asked, sends a byte whenever it is told to, and closes when it is told no more.
fn slow_server() -> (Server, std::sync::mpsc::Sender<()>) {
    let (go, reported) = std::sync::mpsc::channel::<()>();
    let reported = std::sync::Mutex::new(reported);
    let server = Server::start(move |mut stream| {
        if !matches!(stream.read(&mut [0]), Ok(1)) {
            return;
        }
        while reported.lock().unwrap().recv().is_ok() {
            if stream.write_all(b"x").is_err() {
                return;
            }
        }
    });
    (server, go)
}

#[test]
fn term_lets_a_transfer_end_well() {
    let ((server, go), listen) = (slow_server(), reserved_port());
    let mut pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &at(&server)]);
    let mut client = connect(listen);
    client.write_all(b"?").unwrap();
    go.send(()).unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    pen.signal("TERM");
    wait_until("no new clients", || (!listens(listen)).then_some(()));
    for _ in 0..10 {
        go.send(()).unwrap();
        client.read_exact(&mut byte).unwrap();
    }
    assert!(!pen.has_ended());
    drop(go);
    assert_eq!(client.read(&mut byte).unwrap(), 0, "an orderly end");
    drop(client);
    assert_eq!(pen.end(), Some(0));
}

#[test]
fn term_waits_for_its_limit_only_and_a_second_one_for_nothing() {
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
        // Cut, with whatever the kernel makes of it.
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
    }
}

#[test]
fn a_daemon_serves_when_its_caller_ends_and_has_a_pid_file_while_it_does() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let listen_at = format!("127.0.0.1:{listen}");
    let daemon = Daemon::start(&directory, &[&listen_at, &at(&a)]);
    // At once: nobody waits here.
    assert_eq!(who(listen), "a");
    let of = |what: &str| daemon.proc_link(what);
    // As with pen: names of files go on meaning what they meant.
    assert_eq!(of("cwd"), std::env::current_dir().unwrap());
    assert!(["fd/0", "fd/1", "fd/2"].into_iter().all(|fd| of(fd).display().to_string() == "/dev/null"));
    daemon.signal("TERM");
    daemon.expect_end();
    assert!(!directory.file("pid").exists());
    // What the other has says so.
    let taken = TcpListener::bind(local(listen)).unwrap();
    let pid_file = directory.file("other").display().to_string();
    let (code, printed) = refused(&["-p", &pid_file, &listen_at, &at(&a)]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.starts_with(&format!("pen: {listen_at} is in use")), "{printed}");
    assert!(!directory.file("other").exists(), "who does not run leaves no pid file");
    drop(taken);
}

#[test]
fn a_daemon_sees_paths_from_where_it_was_called_also_when_it_reads_them_again() {
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
fn a_daemon_of_udp_makes_room_for_the_next_one_at_once() {
    let (echo, listen, directory) = (crate::udp::flows::Echo::start("a"), reserved_port(), Directory::new());
    let (listen_at, server) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", echo.port));
    let daemon = Daemon::start(&directory, &["-U", &listen_at, &server]);
    let client = crate::udp::flows::client(listen);
    assert_eq!(crate::udp::flows::ask(&client, "1"), "a 1");
    daemon.signal("TERM");
    wait_until("the pid file to go", || (!directory.file("pid").exists()).then_some(()));
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

/// A port below 1024 that is free.
fn low_port() -> u16 {
    let first = 600 + (std::process::id() % 300) as u16;
    let free = |port: &u16| TcpListener::bind(local(*port)).is_ok();
    (first..1024).find(free).unwrap()
}

#[test]
fn another_user_keeps_low_ports_keys_and_commands() {
    if !have_root() {
        return;
    }
    let (a, directory, low) = (Server::named("a"), Directory::new(), low_port());
    let authority = crate::harness::certificates::Authority::new("test ca");
    let (chain, key) = authority.issue(&["a.example"]).write(&directory, "a");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let log = directory.file("requests").display().to_string();
    let commands = directory.write("commands", "blacklist 5\n");
    // The user may write where it is told to.
    fs::set_permissions(directory.file(""), fs::Permissions::from_mode(0o777)).unwrap();
    let [chain, key, commands] = [chain, key, commands].map(|path| path.display().to_string());
    let pen = Pen::run_in(
        directory,
        &[
            "-u",
            "nobody",
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
    // Every command still works, though the key cannot be read any more.
    assert_eq!(pen.ctl("blacklist 9"), "9\n");
    pen.order("acl 1 deny 127.0.0.66");
    assert_eq!(pen.ctl("client_acl 1"), "1\n");
    serves(low);
    let other = low_port();
    assert_ne!(low, other);
    assert_eq!(pen.ctl(&format!("listen 127.0.0.1:{other}")), format!("127.0.0.1:{other}\n"));
    serves(other);
    wait_until("the old port to be closed", || (!listens(low)).then_some(()));
    // A log is rotated and the file of commands read again, with the key that there was.
    fs::rename(&log, format!("{log}.1")).unwrap();
    fs::write(&commands, "blacklist 6\n").unwrap();
    pen.signal("HUP");
    wait_until("the new log", || fs::exists(&log).unwrap().then_some(()));
    wait_until("the new settings", || (pen.ctl("blacklist") == "6\n").then_some(()));
    pen.expect_log("certificates_refused");
    serves(other);
}

#[test]
fn another_root_holds_what_is_written() {
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
fn as_root_no_control_port_is_opened_unless_it_is_said_whom_to_run_as() {
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
