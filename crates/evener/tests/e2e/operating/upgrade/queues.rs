//! Clients and datagrams that wait in the queues of sockets during an upgrade.

use super::{serving, upgraded};
use crate::harness::{Directory, Evener, Server, connect, line, local, reserved_port, wait_until, who};
use crate::udp::flows::Echo;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

/// Number of connections and datagrams that wait.
const CONNECTIONS: usize = 200;
const DATAGRAMS: usize = 1000;

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn queued_connections_and_datagrams_are_served_by_either_process() {
    for (workers, workers_new) in [("2", "2"), ("3", "1"), ("1", "3")] {
        let (a, u, listen) = (Server::named("a"), Echo::start("u"), reserved_port());
        let directory = Directory::new();
        let path = directory.file("s.sock");
        let config = format!(
            "service 's' {{ listen = {{ '127.0.0.1:{listen}', '{}' }}, '127.0.0.1:{}' }}\n\
             service 'u' {{ protocol = 'udp', listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}",
            path.display(),
            a.port,
            u.port
        );
        let evener = Evener::run_with(&config, &["--workers", workers]);
        let old = serving(&evener);
        // The new process has another number of workers: the command line is the same, so a program in between
        // changes it.
        let text = format!(
            "#!/bin/sh\nfor word do shift; [ \"$last\" = --workers ] && word={workers_new}; last=$word; \
             set -- \"$@\" \"$word\"; done\nexec {} \"$@\"\n",
            crate::harness::BINARY
        );
        let program = directory.write("program", &text);
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        signal(old, Signal::STOP);
        let mut clients: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(listen)).collect();
        clients.iter_mut().for_each(|client| client.write_all(b"data\n").unwrap());
        let mut unix: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
        unix.iter_mut().for_each(|client| client.write_all(b"data\n").unwrap());
        let requesters: Vec<UdpSocket> = (0..10).map(|_| crate::udp::flows::client(listen)).collect();
        for number in 0..DATAGRAMS {
            requesters[number % requesters.len()].send(format!("{number}").as_bytes()).unwrap();
        }
        let socket = evener.admin_socket();
        let command = std::process::Command::new(crate::harness::BINARY)
            .args(["upgrade", "--binary"])
            .arg(&program)
            .arg("--socket")
            .arg(&socket)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        signal(old, Signal::CONT);
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success());
        let _new = super::Serving(serving(&evener));
        assert_ne!(serving(&evener), old);
        for client in &mut clients {
            assert!(line(client).starts_with("a "));
            assert_eq!(line(client), "data");
        }
        let mut buffer = [0; 100];
        let responses = requesters.iter().map(|requester| {
            (0..DATAGRAMS / requesters.len()).take_while(|_| requester.recv(&mut buffer).is_ok()).count()
        });
        assert_eq!(responses.sum::<usize>(), DATAGRAMS);
        // Each socket has an acceptor: many connections reach all of them.
        (0..50).for_each(|_| assert_eq!(who(listen), "a"));
        for _ in 0..50 {
            assert!(crate::udp::flows::ask(&crate::udp::flows::client(listen), "x").starts_with("u "));
        }
    }
}

#[test]
fn five_thousand_listeners_pass_to_the_new_process() {
    let (a, port) = (Server::named("a"), reserved_port());
    let addresses = (0..5_000).map(|number| format!("'127.77.{}.{}:{port}'", number / 200, number % 200 + 1));
    let addresses: Vec<String> = addresses.collect();
    let config = format!("service 's' {{ listen = {{ {} }}, '127.0.0.1:{}' }}", addresses.join(", "), a.port);
    let evener = Evener::run_with(&config, &["--workers", "1"]);
    let _new = upgraded(&evener);
    for number in (0..5_000).step_by(97).chain([4_999]) {
        let address = format!("127.77.{}.{}:{port}", number / 200, number % 200 + 1);
        let mut client = TcpStream::connect(&address).unwrap();
        client.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
        assert!(line(&mut client).starts_with("a "), "{address}");
    }
    wait_until("the old process to end", || (!super::runs(evener.pid())).then_some(()));
    assert!(TcpStream::connect(local(port)).is_err());
}
