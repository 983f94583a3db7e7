//! A restart while the old instance still has clients: the new instance starts and takes the usual paths
//! immediately.

use crate::harness::pen::Pen;
use crate::harness::{
    BINARY, DEADLINE, Directory, Evener, Server, connect, line, reserved_port, wait_until, who,
};
use crate::udp::flows::{Echo, ask, client};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn draining_socket(admin: &Path, pid: u32) -> PathBuf {
    PathBuf::from(format!("{}.draining-{pid}", admin.display()))
}

fn expect_path(path: &Path) {
    wait_until("the socket of the instance that drains", || path.exists().then_some(()));
}

#[test]
fn the_next_instance_takes_port_and_admin_socket_while_the_old_instance_drains() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let mut old = Evener::run(&config);
    let admin = old.admin_socket();
    let mut idle = connect(listen);
    assert!(line(&mut idle).starts_with("a "));
    old.signal("TERM");
    let drains = draining_socket(&admin, old.pid());
    expect_path(&drains);
    assert!(!admin.exists());
    // Until the next instance starts, commands with the usual path reach the draining instance.
    assert_eq!(old.status()["draining"], true);
    wait_until("the port to be free", || std::net::TcpListener::bind(("127.0.0.1", listen)).ok());
    let new = Evener::run_at(&config, &admin);
    assert_eq!(who(listen), "a");
    assert_eq!(old.status()["pid"], new.pid());
    let socket = drains.display().to_string();
    let output = Command::new(BINARY).args(["status", "--json", "--socket", &socket]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"draining\": true"), "{output:?}");
    // The old connection continues, and the end of the old instance does not affect the new instance.
    idle.write_all(b"x").unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).unwrap();
    drop(idle);
    assert_eq!(old.end(), 0);
    assert!(!drains.exists() && admin.exists());
    assert_eq!(old.status()["pid"], new.pid());
}

#[test]
fn the_next_instance_takes_the_path_of_a_unix_listener_and_keeps_it() {
    let a = Server::named("a");
    let directory = Directory::new();
    let path = directory.file("s.sock");
    let config = format!("service 's' {{ listen = '{}', '127.0.0.1:{}' }}", path.display(), a.port);
    let mut old = Evener::run(&config);
    let mut idle = UnixStream::connect(&path).unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).unwrap();
    old.signal("TERM");
    wait_until("the path to be free", || (!path.exists()).then_some(()));
    let _new = Evener::run(&config);
    UnixStream::connect(&path).unwrap().read_exact(&mut byte).unwrap();
    drop(idle);
    assert_eq!(old.end(), 0);
    UnixStream::connect(&path).unwrap().read_exact(&mut byte).unwrap();
}

#[test]
fn sockets_of_instances_that_were_killed_while_they_drained_are_removed() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let mut old = Evener::run(&config);
    let admin = old.admin_socket();
    let _idle = connect(listen);
    assert_eq!(who(listen), "a");
    old.signal("TERM");
    let drains = draining_socket(&admin, old.pid());
    expect_path(&drains);
    old.signal("KILL");
    old.end();
    assert!(drains.exists());
    let _new = Evener::run_at(&config, &admin);
    assert!(!drains.exists());
}

#[test]
fn a_draining_pen_releases_its_control_and_admin_sockets() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let mut pen = Pen::run(&[&format!("127.0.0.1:{listen}"), &format!("127.0.0.1:{}", a.port)]);
    let idle = connect(listen);
    assert_eq!(who(listen), "a");
    let (admin, control) = (pen.file("admin.sock"), pen.file("ctl"));
    assert!(admin.exists() && control.exists());
    pen.signal("TERM");
    expect_path(&draining_socket(&admin, pen.pid()));
    wait_until("the paths to be free", || (!admin.exists() && !control.exists()).then_some(()));
    assert!(!pen.has_ended());
    drop(idle);
    assert_eq!(pen.end(), Some(0));
}

#[test]
fn a_udp_pen_without_pending_responses_releases_its_port_immediately() {
    let (a, listen) = (Echo::start("a"), reserved_port());
    let words = ["-U", &format!("127.0.0.1:{listen}"), &format!("127.0.0.1:{}", a.port)];
    // With a pending response the drain takes a second. A busy machine may be as slow, but not in every try.
    let is_quick = |_| {
        let mut pen = Pen::run(&words);
        let clients = [client(listen), client(listen)];
        clients.iter().for_each(|client| assert!(ask(client, "1").starts_with("a ")));
        let began = Instant::now();
        pen.signal("TERM");
        assert_eq!(pen.end(), Some(0));
        let took = began.elapsed();
        let bound = UdpSocket::bind(("127.0.0.1", listen));
        assert!(bound.is_ok(), "{bound:?}");
        took < Duration::from_millis(900)
    };
    assert!((0..5).any(is_quick));
}

#[test]
fn a_udp_client_gets_its_pending_response_while_pen_drains() {
    let (server, listen) = (UdpSocket::bind("127.0.0.1:0").unwrap(), reserved_port());
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let to = server.local_addr().unwrap().to_string();
    let mut pen = Pen::run(&["-U", "--drain-timeout", "60s", &format!("127.0.0.1:{listen}"), &to]);
    let one = client(listen);
    one.send(b"?").unwrap();
    let mut buffer = [0; 16];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    pen.signal("TERM");
    pen.expect_log("draining signal=SIGTERM");
    server.send_to(b"late", from).unwrap();
    assert_eq!(one.recv(&mut buffer).unwrap(), 4);
    assert_eq!(pen.end(), Some(0));
}
