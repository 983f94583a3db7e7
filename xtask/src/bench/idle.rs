//! The memory of idle clients: resident memory of the proxy before and after, by protocol.

use super::peers::{Case, Ground, Peer, WEB_PORTS, spawn};
use anyhow::{Context, ensure};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

const CONNECTIONS: u64 = 10_000;
/// Number of connections of HTTP, and of requests a second on each of them.
const HTTP_CONNECTIONS: u64 = 4_000;
const HTTP_RATE: f64 = 0.25;
/// Time until all of them are open and had requests.
const SETTLED: Duration = Duration::from_secs(25);
const FLOWS: u64 = 5_000;

/// Opens the connections through each proxy, sends a request on each connection so that the proxy connects to a
/// server, and prints the table.
pub(super) fn measure(ground: &Ground) -> anyhow::Result<()> {
    let connections = CONNECTIONS.min(ground.connections_max - 50);
    println!(
        "### {connections} idle connections\n\n| | bytes a connection | before | after |\n|---|---|---|---|"
    );
    for peer in Peer::of(Case::Idle).into_iter().filter(|peer| peer.name != "haproxy-splice") {
        let mut command = peer.command(ground)?;
        if peer.name == "pen" {
            // The tables of pen have a fixed size, so pen gets a larger size for this case.
            command = Command::new("pen");
            command.args(["-r", "-f", "-x", "12000", "-c", "12000", &format!("127.0.0.1:{}", peer.port)]);
            command.args(WEB_PORTS.map(|port| format!("127.0.0.1:{port}")));
        }
        let running = spawn(command, peer.port, Case::Idle).with_context(|| peer.name.to_owned())?;
        let before = running.group.resident_bytes();
        let held =
            open(peer.port, connections).with_context(|| format!("connections through {}", peer.name))?;
        std::thread::sleep(Duration::from_millis(500));
        let after = running.group.resident_bytes();
        row(peer.name, (before, after), held.len() as u64);
        drop(held);
        // Ports in TIME_WAIT cannot be used again immediately.
        std::thread::sleep(Duration::from_secs(1));
    }
    println!();
    for (case, name, options) in [
        (Case::Http, "HTTP", &["--h1"][..]),
        (Case::Https, "HTTP over TLS", &["--h1"]),
        (Case::Http2, "HTTP/2 over TLS", &[]),
    ] {
        http(ground, case, name, options)?;
    }
    flows(ground)
}

/// Measures connections that send a request each second.
fn http(ground: &Ground, case: Case, name: &str, options: &[&str]) -> anyhow::Result<()> {
    println!(
        "### {HTTP_CONNECTIONS} connections of {name} with a request every {} seconds\n",
        1.0 / HTTP_RATE
    );
    println!("| | bytes a connection | before | after |\n|---|---|---|---|");
    for peer in Peer::of(case) {
        let running = spawn(peer.command(ground)?, peer.port, case).with_context(|| peer.name.to_owned())?;
        let before = running.group.resident_bytes();
        let mut client = Command::new("h2load")
            .args(["-t1", "-m1", "-D", "60", &format!("--rps={HTTP_RATE}"), "-c"])
            .arg(HTTP_CONNECTIONS.to_string())
            .args(options)
            .arg(format!("{}://127.0.0.1:{}/ping", case.scheme(), peer.port))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("h2load")?;
        // The connections are open, and each has had some requests.
        std::thread::sleep(SETTLED);
        let after = running.group.resident_bytes();
        let ended = client.try_wait()?;
        let _ = client.kill();
        let _ = client.wait();
        ensure!(ended.is_none(), "h2load ended early: {ended:?}");
        row(peer.name, (before, after), HTTP_CONNECTIONS);
        std::thread::sleep(Duration::from_secs(1));
    }
    println!();
    Ok(())
}

/// Measures flows of datagrams, each with one query.
fn flows(ground: &Ground) -> anyhow::Result<()> {
    println!("### {FLOWS} flows of UDP\n\n| | bytes a flow | before | after |\n|---|---|---|---|");
    for peer in Peer::of(Case::Udp) {
        let running =
            spawn(peer.command(ground)?, peer.port, Case::Udp).with_context(|| peer.name.to_owned())?;
        let before = running.group.resident_bytes();
        let mut held = Vec::new();
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02n0\x07example\x00\x00\x01\x00\x01";
        for at in 0..FLOWS {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.send_to(query, (Ipv4Addr::LOCALHOST, peer.port))?;
            // pen has a table of a fixed size.
            let received = socket.recv(&mut [0; 512]);
            if received.is_err() && peer.name != "pen" {
                received.with_context(|| format!("flow {at} through {}", peer.name))?;
            }
            held.push(socket);
        }
        row(peer.name, (before, running.group.resident_bytes()), FLOWS);
    }
    println!();
    Ok(())
}

fn row(name: &str, (before, after): (u64, u64), number: u64) {
    let each = after.saturating_sub(before) / number;
    println!("| {name} | {each} | {} KiB | {} KiB |", before / 1024, after / 1024);
}

/// Opens connections through a proxy, with a response on each.
pub(super) fn open(port: u16, connections: u64) -> anyhow::Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for at in 0..connections {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect(address).with_context(|| format!("connection {at}"))?;
        (&stream).write_all(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")?;
        held.push(stream);
    }
    for stream in &held {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        std::io::Read::read(&mut &*stream, &mut [0; 1024]).context("a response")?;
    }
    Ok(held)
}
