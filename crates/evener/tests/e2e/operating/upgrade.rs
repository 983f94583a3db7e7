//! Live upgrades: a new process takes the sockets of the running one, and no client notices.

mod failures;
mod load;
mod queues;
mod state;

use crate::harness::{BINARY, Evener, Server, connect, line, local, reserved_port, wait_until, who};
use crate::udp::flows::{Echo, ask, client};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The process that serves after upgrades. It is killed at the end of its test.
struct Serving(u32);

impl Drop for Serving {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw).unwrap();
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Returns the process that serves the admin socket.
fn serving(evener: &Evener) -> u32 {
    u32::try_from(evener.status()["pid"].as_u64().unwrap()).unwrap()
}

fn upgrade(evener: &Evener, more: &[&str]) -> Output {
    evener.run_command(&[&["upgrade"], more].concat())
}

/// Upgrades, and returns the new process.
fn upgraded(evener: &Evener) -> Serving {
    let before = serving(evener);
    let output = upgrade(evener, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pid = serving(evener);
    assert_ne!(pid, before);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("process {pid} serves now")));
    Serving(pid)
}

/// Returns whether a process runs. A process that ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

fn draining_socket(admin: &Path, pid: u32) -> PathBuf {
    PathBuf::from(format!("{}.draining-{pid}", admin.display()))
}

#[test]
fn a_new_process_takes_all_listeners_and_the_old_one_ends_with_its_last_client() {
    let (a, u, listen) = (Server::named("a"), Echo::start("u"), reserved_port());
    let (path, directory) = ("web.sock", crate::harness::Directory::new());
    let path = directory.file(path);
    let config = format!(
        "service 's' {{ listen = {{ '127.0.0.1:{listen}', '{}' }}, '127.0.0.1:{}' }}\n\
         service 'chosen' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}\n\
         service 'u' {{ protocol = 'udp', listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}",
        path.display(),
        a.port,
        a.port,
        u.port
    );
    let mut evener = Evener::run_with(&config, &["--workers", "2"]);
    let (admin, chosen) = (evener.admin_socket(), evener.port("chosen"));
    let mut idle = connect(listen);
    assert!(line(&mut idle).starts_with("a "));
    let requester = client(listen);
    assert!(ask(&requester, "1").starts_with("u "));

    let new = upgraded(&evener);
    assert_eq!(who(listen), "a");
    assert_eq!(who(chosen), "a");
    assert_eq!(evener.port("chosen"), chosen);
    assert!(ask(&requester, "2").starts_with("u "));
    let mut byte = [0];
    UnixStream::connect(&path).unwrap().read_exact(&mut byte).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut byte).unwrap();
    drop(idle);
    assert_eq!(evener.end(), 0);
    wait_until("the socket of the old process to be removed", || {
        (!draining_socket(&admin, evener.pid()).exists()).then_some(())
    });
    // The end of the old process takes nothing from the new one.
    assert!(path.exists() && admin.exists());
    UnixStream::connect(&path).unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(serving(&evener), new.0);
    assert!(evener.log().contains("took_over"));

    // The new process can be succeeded, too, also by a signal.
    kill_process(Pid::from_raw(i32::try_from(new.0).unwrap()).unwrap(), Signal::USR2).unwrap();
    let third = wait_until("a third process", || {
        let pid = serving(&evener);
        (pid != new.0).then(|| Serving(pid))
    });
    wait_until("the second process to end", || (!runs(new.0)).then_some(()));
    assert_eq!(who(listen), "a");
    assert!(UdpSocket::bind(local(listen)).is_err());
    drop(third);
}

#[test]
fn the_old_process_is_reachable_while_it_drains() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}\n", a.port);
    let evener = Evener::run(&config);
    let mut idle = connect(listen);
    line(&mut idle);
    let new = upgraded(&evener);
    if runs(evener.pid()) {
        let socket = draining_socket(&evener.admin_socket(), evener.pid()).display().to_string();
        let output = Command::new(BINARY).args(["status", "--json", "--socket", &socket]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("\"draining\": true") || !runs(evener.pid()), "{output:?}");
    }
    // A changed file is read by the new process only.
    let more = format!("service 'more' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}", a.port);
    evener.write_config(&(config + &more));
    assert!(evener.run_command(&["reload"]).status.success());
    assert_eq!(who(evener.port("more")), "a");
    assert_eq!(serving(&evener), new.0);
}

#[test]
fn the_service_manager_learns_the_new_main_process() {
    let (a, directory) = (Server::named("a"), crate::harness::Directory::new());
    let path = directory.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
    let config = format!("service 's' {{ listen = '127.0.0.1:0', '127.0.0.1:{}' }}", a.port);
    let file = directory.write("evener.lua", &config).display().to_string();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path);
    let evener = Evener::start(command, crate::harness::Directory::new(), &["run", &file]);
    let next = || {
        let mut buffer = [0; 200];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let ready = "READY=1\nSTATUS=Serving clients";
    assert_eq!(next(), ready);
    let new = upgraded(&evener);
    let mut messages = [next(), next()];
    messages.sort();
    assert_eq!(messages, [format!("MAINPID={}\nREADY=1", new.0), ready.to_owned()]);
    assert_eq!(who(evener.port("s")), "a");
}
