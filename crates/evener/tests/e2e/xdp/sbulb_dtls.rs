//! DTLS sessions through `evener sbulb`: they last, whatever happens to the process.

use super::sbulb::{Family, PORTS};
use crate::harness::sbulb::Sbulb;
use crate::harness::xdp::XdpNetwork;
use crate::harness::{DEADLINE, Directory, have};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server that sends each line back, its characters in reverse.
fn server(network: &XdpNetwork, directory: &Directory, address: IpAddr) -> Process {
    let mut command = network.servers().command("openssl");
    command.args(["s_server", "-dtls", "-quiet", "-rev", "-key"]).arg(directory.file("key"));
    command.arg("-cert").arg(directory.file("certificate"));
    command.args(["-accept", &SocketAddr::new(address, PORTS[1]).to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Process(command.spawn().unwrap());
    crate::harness::wait_until("a DTLS server", || {
        let sockets = network.servers().run("ss --udp --listening --numeric --no-header");
        sockets.contains(&SocketAddr::new(address, PORTS[1]).to_string()).then_some(())
    });
    server
}

/// A client with a session.
struct Session {
    _process: Process,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    fn start(network: &XdpNetwork, to: SocketAddr) -> Self {
        let mut command = network.client().command("openssl");
        command.args(["s_client", "-dtls", "-quiet", "-connect", &to.to_string()]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (received, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(received.send(line)));
        });
        Self { _process: Process(process), input, lines }
    }

    /// Sends a line, and expects it in reverse.
    fn exchange(&mut self, text: &str, when: &str) {
        writeln!(self.input, "{text}").unwrap();
        let expected: String = text.chars().rev().collect();
        let line = self.lines.recv_timeout(DEADLINE);
        assert_eq!(line.as_deref(), Ok(&*expected), "expected the session to last: {when}");
    }
}

fn check(family: Family) {
    if !["openssl", "ss"].into_iter().all(have) {
        return;
    }
    let Some(network) = XdpNetwork::new() else { return };
    let directory = Directory::new();
    let request = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=a.example"])
        .arg("-keyout")
        .arg(directory.file("key"))
        .arg("-out")
        .arg(directory.file("certificate"))
        .stderr(Stdio::null())
        .status();
    assert!(request.unwrap().success());
    let [one, two, three] = family.servers();
    let _servers = [one, two, three].map(|address| server(&network, &directory, address));
    directory.write("servers.cfg", &format!("[Real Servers]\n{one}\n{two}\n"));
    let virtual_server = family.virtual_server(PORTS[1]);
    let words = format!("eth0 -vs {} -cfg DIR/servers.cfg -p 5683 5684 -l INFO", virtual_server.ip());
    let mut sbulb = Sbulb::start_with(&network, directory, &words);
    let mut session = Session::start(&network, virtual_server);
    session.exchange("first line", "after the handshake");
    sbulb.write("servers.cfg", &format!("[Real Servers]\n{three}\n{two}\n{one}\n"));
    sbulb.expect_log("reloaded");
    session.exchange("second line", "another list of servers");
    sbulb.restart("KILL");
    session.exchange("third line", "a kill and a start");
    sbulb.restart("TERM");
    session.exchange("fourth line", "an ordinary restart");
}

#[test]
fn sessions_outlive_reloads_kills_and_restarts_v4() {
    check(Family::V4);
}

#[test]
fn sessions_outlive_reloads_kills_and_restarts_v6() {
    check(Family::V6);
}
