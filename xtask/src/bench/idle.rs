//! The cost of 10 000 idle connections: resident memory of the proxy before and after.

use super::peers::{Case, Ground, Peer, WEB_PORTS, spawn};
use anyhow::Context;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const CONNECTIONS: u64 = 10_000;

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
            command = std::process::Command::new("pen");
            command.args(["-r", "-f", "-x", "12000", "-c", "12000", &format!("127.0.0.1:{}", peer.port)]);
            command.args(WEB_PORTS.map(|port| format!("127.0.0.1:{port}")));
        }
        let running = spawn(command, peer.port, Case::Idle).with_context(|| peer.name.to_owned())?;
        let before = running.group.resident_bytes();
        let held =
            open(peer.port, connections).with_context(|| format!("connections through {}", peer.name))?;
        std::thread::sleep(Duration::from_millis(500));
        let after = running.group.resident_bytes();
        let each = after.saturating_sub(before) / held.len() as u64;
        println!("| {} | {each} | {} KiB | {} KiB |", peer.name, before / 1024, after / 1024);
        drop(held);
        // Ports in TIME_WAIT cannot be used again immediately.
        std::thread::sleep(Duration::from_secs(1));
    }
    println!();
    Ok(())
}

fn open(port: u16, connections: u64) -> anyhow::Result<Vec<TcpStream>> {
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
