//! DTLS sessions through `evener sbulb`: they last, whatever happens to the process.

use super::sbulb::{Family, PORTS};
use crate::harness::sbulb::Sbulb;
use crate::harness::xdp::XdpNetwork;
use crate::harness::{DEADLINE, Directory, have, wait_until};
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

/// A peer of DTLS, which sends lines and prints the lines that it receives.
struct Peer {
    _process: Process,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Peer {
    fn start(mut openssl: Command) -> Self {
        let openssl = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = openssl.spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (received, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(received.send(line)));
        });
        Self { _process: Process(process), input, lines }
    }

    /// Starts a server and waits until it listens.
    fn server(network: &XdpNetwork, directory: &Directory, address: IpAddr) -> Self {
        let listen = SocketAddr::new(address, PORTS[1]).to_string();
        let mut openssl = network.servers().command("openssl");
        openssl.args(["s_server", "-dtls", "-quiet", "-accept", &listen, "-key"]);
        openssl.arg(directory.file("key")).arg("-cert").arg(directory.file("certificate"));
        let server = Self::start(openssl);
        wait_until("a DTLS server", || {
            let sockets = network.servers().run("ss --udp --listening --numeric --no-header");
            sockets.contains(&listen).then_some(())
        });
        server
    }

    fn client(network: &XdpNetwork, to: SocketAddr) -> Self {
        let mut openssl = network.client().command("openssl");
        openssl.args(["s_client", "-dtls", "-quiet", "-connect", &to.to_string()]);
        Self::start(openssl)
    }

    fn send(&mut self, text: &str) {
        writeln!(self.input, "{text}").unwrap();
    }
}

/// Sends a line in each direction. Returns the position of the server that received the client's line.
fn exchange(client: &mut Peer, servers: &mut [Peer], when: &str) -> usize {
    client.send(when);
    let at = wait_until(&format!("a line at a server, {when}"), || {
        servers.iter().position(|server| server.lines.try_recv().is_ok_and(|line| line == when))
    });
    servers[at].send(when);
    let line = client.lines.recv_timeout(DEADLINE);
    assert_eq!(line.as_deref(), Ok(when), "expected the session to last");
    at
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
    let mut servers = [one, two, three].map(|address| Peer::server(&network, &directory, address));
    directory.write("servers.cfg", &format!("[Real Servers]\n{one}\n{two}\n"));
    let virtual_server = family.virtual_server(PORTS[1]);
    let words = format!("eth0 -vs {} -cfg DIR/servers.cfg -p 5683 5684 -l INFO", virtual_server.ip());
    let mut sbulb = Sbulb::start_with(&network, directory, &words);
    let mut client = Peer::client(&network, virtual_server);
    let first = exchange(&mut client, &mut servers, "after the handshake");
    sbulb.write("servers.cfg", &format!("[Real Servers]\n{three}\n{two}\n{one}\n"));
    sbulb.expect_log(" reloaded ");
    let mut seen = vec![exchange(&mut client, &mut servers, "after another list of servers")];
    sbulb.restart("KILL");
    seen.push(exchange(&mut client, &mut servers, "after a kill and a start"));
    sbulb.restart("TERM");
    seen.push(exchange(&mut client, &mut servers, "after an ordinary restart"));
    assert_eq!(seen, [first; 3]);
}

#[test]
fn sessions_outlive_reloads_kills_and_restarts_v4() {
    check(Family::V4);
}

#[test]
fn sessions_outlive_reloads_kills_and_restarts_v6() {
    check(Family::V6);
}
