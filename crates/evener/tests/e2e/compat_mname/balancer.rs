//! `evener mname-balancer` without traffic: options, logs, signals, and sockets that are added to its directory or
//! removed from it.

use crate::harness::mname::{Balancer, with_sockets};
use crate::harness::{BINARY, Directory, node, wait_until};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

/// Time limit for changes that are reported by the kernel, less than the interval of the scan (5 s).
const SOON: Duration = Duration::from_secs(4);

fn ids(balancer: &Balancer) -> Vec<u64> {
    balancer.backends().into_iter().map(|(id, ..)| id).collect()
}

#[test]
fn only_sockets_are_servers_and_a_numeric_name_is_the_number_of_the_server() {
    let directory = with_sockets();
    let socket = |name: &str| UnixListener::bind(directory.file("sockets").join(name)).unwrap();
    let _sockets = [socket("5301"), socket("web"), socket("5300")];
    fs::write(directory.file("sockets").join("5302"), "").unwrap();
    let balancer = Balancer::run(directory, &[]);
    let servers = balancer.events("server_added");
    let names: Vec<_> = servers.iter().map(|line| line["server"].as_str().unwrap()).collect();
    assert_eq!(names, ["5300", "5301", "web"]);
    let path = |name: &str| balancer.socket(name).display().to_string();
    let expected = format!(
        "BACKENDS\nID    OK  REMOTES  PATH\n5300  -   0        {}\n5301  -   0        {}\n5302  -   0        {}\n\n\
         REMOTE PEERS\nBACKEND  ADDRESS\n",
        path("5300"),
        path("5301"),
        path("web")
    );
    // No program serves the protocol of mname at the sockets, so no server is up.
    assert_eq!(balancer.balstat(), expected);
}

#[test]
fn added_and_removed_sockets_are_noticed_and_keep_their_numbers() {
    let balancer = Balancer::run(with_sockets(), &[]);
    let appears = |name: &str, path: &str| {
        let socket = UnixListener::bind(balancer.socket(path)).unwrap();
        balancer.expect(SOON, "server_added", name);
        socket
    };
    let _sockets = [appears("web", "web"), appears("5300", "5300"), appears("b", "b")];
    assert_eq!(ids(&balancer), [1, 5300, 5301]);
    fs::remove_file(balancer.socket("web")).unwrap();
    balancer.expect(SOON, "server_removed", "web");
    assert_eq!(ids(&balancer), [5300, 5301]);
    let _again = UnixListener::bind(balancer.socket("web")).unwrap();
    wait_until("the server to be added again", || (balancer.events("server_added").len() == 4).then_some(()));
    assert_eq!(ids(&balancer), [1, 5300, 5301]);
    // A regular file is not a server. The server of a socket that is moved away is removed.
    fs::write(balancer.socket("c"), "").unwrap();
    fs::rename(balancer.socket("b"), balancer.file("b")).unwrap();
    balancer.expect(SOON, "server_removed", "b");
    assert_eq!(ids(&balancer), [1, 5300]);
}

#[test]
fn a_directory_may_be_created_later_and_removed() {
    let directory = Directory::new();
    let balancer = Balancer::run(directory, &[]);
    let problems = wait_until("the report of the missing directory", || {
        Some(balancer.events("discovery_failed")).filter(|problems| !problems.is_empty())
    });
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        (&problems[0]["level"], &problems[0]["problem"]),
        (&40.into(), &"the directory does not exist".into())
    );
    // The directory is moved into place with its socket.
    fs::create_dir(balancer.file("made")).unwrap();
    let _socket = UnixListener::bind(balancer.file("made").join("5300")).unwrap();
    fs::rename(balancer.file("made"), balancer.file("sockets")).unwrap();
    // The kernel does not report the new directory: the scan every 5 s finds it.
    balancer.expect(Duration::from_secs(10), "server_added", "5300");
    fs::rename(balancer.file("sockets"), balancer.file("made")).unwrap();
    balancer.expect(SOON, "server_removed", "5300");
    assert_eq!(balancer.events("discovery_failed").len(), 2);
}

#[test]
fn paths_that_are_too_long_are_logged_once() {
    let directory = with_sockets();
    let sockets = directory.file("sockets");
    // bind(2) refuses so long a path, so the socket is renamed.
    let long = "x".repeat(108 - sockets.as_os_str().len() - 1);
    let _socket = UnixListener::bind(sockets.join("s")).unwrap();
    fs::rename(sockets.join("s"), sockets.join(&long)).unwrap();
    let _other = UnixListener::bind(sockets.join("5300")).unwrap();
    let balancer = Balancer::run(directory, &[]);
    assert_eq!(ids(&balancer), [5300]);
    // The next scan, after a new socket, does not log the path again.
    let _more = UnixListener::bind(balancer.socket("5301")).unwrap();
    balancer.expect(SOON, "server_added", "5301");
    let problems = balancer.events("discovery_failed");
    assert_eq!(problems.len(), 1);
    assert!(problems[0]["problem"].as_str().unwrap().contains("longer than 107 bytes"));
}

#[test]
fn log_lines_have_the_format_of_bunyan_and_levels_are_applied() {
    let balancer = Balancer::run(with_sockets(), &[]);
    assert_eq!(fs::read_to_string(balancer.file("stderr")).unwrap(), "");
    let started = balancer.events("started").remove(0);
    assert_eq!(
        (&started["name"], &started["v"], &started["level"]),
        (&"mname-balancer".into(), &0.into(), &30.into())
    );
    assert_eq!(started["pid"].as_u64(), Some(balancer.pid().into()));
    assert_eq!(started["msg"], "started");
    assert!(
        started["time"].as_str().unwrap().ends_with('Z') && !started["hostname"].as_str().unwrap().is_empty()
    );
    if let Some(mut bunyan) = node() {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/node/node_modules/bunyan/bin/bunyan");
        let output = bunyan.args([tool, "--no-color"]).arg(balancer.file("log")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let prefix = format!(" INFO: mname-balancer/{} on ", balancer.pid());
        // The number of descriptors depends on the machine.
        let lines = text.lines().filter(|line| !line.contains("descriptors may be open"));
        assert!(lines.clone().count() >= 3 && lines.clone().all(|line| line.contains(&prefix)), "{text}");
    }
    let mut quiet = Command::new(BINARY);
    quiet.env("LOG_LEVEL", "fatal").args(["mname-balancer", "-l", "debug"]);
    let mut quiet = Balancer::start(quiet, with_sockets(), &[]);
    quiet.signal("TERM");
    assert_eq!((quiet.end(), quiet.log().as_str()), (0, ""));
}

#[test]
fn both_transports_are_served_and_released_on_sigterm() {
    let mut balancer = Balancer::run(with_sockets(), &[]);
    let at = balancer.listen_address();
    assert!(TcpListener::bind(at).is_err() && UdpSocket::bind(at).is_err());
    balancer.signal("TERM");
    assert_eq!(balancer.end(), 0);
    assert!(UdpSocket::bind(at).is_ok());
    assert_eq!(balancer.events("stopped").len(), 1);
    assert!(!balancer.file("admin.sock").exists());
}

#[test]
fn symbolic_links_named_like_the_program_run_the_program() {
    let directory = with_sockets();
    for name in ["mname-balancer", "bbal"] {
        let link = directory.file(name);
        std::os::unix::fs::symlink(BINARY, &link).unwrap();
        let output = Command::new(&link).arg("--version").output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("mname-balancer (evener {})\n", env!("CARGO_PKG_VERSION"))
        );
    }
    let link = directory.file("bbal");
    let balancer = Balancer::start(Command::new(link), directory, &[]);
    assert_eq!(balancer.events("started").len(), 1);
}

#[test]
fn errors_of_the_command_line_are_reported_and_prevent_the_start() {
    let directory = with_sockets();
    let sockets = directory.file("sockets").display().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let check = |log_level: &str, words: &[&str], status: i32, printed: &str| {
        let output = Command::new("timeout")
            .args(["20", BINARY, "mname-balancer"])
            .args(words)
            .arg("--admin")
            .arg(directory.file("admin.sock"))
            .env("LOG_LEVEL", log_level)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(status), 1), "{words:?}: {text}");
        assert!(text.starts_with("mname-balancer: ") && text.contains(printed), "{words:?}: {text}");
    };
    check("", &[], 2, "-s is missing");
    check("loud", &["-s", &sockets], 2, "LOG_LEVEL: `loud` is not a level");
    check("", &["-s", &sockets, "-l", "loud"], 2, "-l: `loud` is not a level");
    check("", &["-s", &sockets, "-b", "::1"], 2, "`::1` is not an IPv4 address");
    check("", &["-s", &sockets, "-p", "dns"], 2, "`dns` is not a port between 1 and 65535");
    check("", &["-s", &sockets, "-b", "127.0.0.1", "-p", &port], 1, "is in use");
}
