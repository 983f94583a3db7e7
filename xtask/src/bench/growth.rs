//! `cargo xtask bench growth`: CPU time of a request against the number of idle connections, servers, services, sticky
//! clients and access rules. Writes a plot.

use super::load;
use super::peers::{Case, Ground, Running, WEB_ALL_PORT, alone, spawn};
use super::plot::{self, Line};
use crate::shell;
use anyhow::{Context, ensure};
use clap::Args;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// Port of the service that is measured.
const PORT: u16 = 18_900;
/// Number of addresses of each network of servers and clients.
const HOSTS: u64 = 250;
/// The plot, below the root of the project.
const PLOT: &str = "docs/growth.svg";

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Smaller sizes and shorter rounds: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The binary to measure (default: build target/dist/evener)
    #[arg(long)]
    binary: Option<String>,
}

impl Options {
    /// Returns the binary to measure, if one is given.
    pub(super) fn binary(&self) -> Option<String> {
        self.binary.clone()
    }
}

/// A number that grows.
struct Dimension {
    name: &'static str,
    sizes: &'static [u64],
    /// A connection for each request, so that each request has its own choice of a server.
    case: Case,
    /// Writes the configuration in Lua.
    config: fn(&Ground, u64) -> anyhow::Result<String>,
    /// Prepares the instance. Returns the connections that stay open.
    prepare: fn(u64) -> anyhow::Result<Vec<TcpStream>>,
}

const DIMENSIONS: [Dimension; 5] = [
    Dimension {
        name: "idle connections",
        sizes: &[10, 100, 1_000, 9_000],
        case: Case::Tiny,
        config: |_, _| Ok(service("")),
        prepare: |size| super::idle::open(PORT, size),
    },
    Dimension {
        name: "servers",
        sizes: &[1, 10, 100, 1_000, 10_000],
        case: Case::Close,
        config: |_, size| {
            let servers = format!(
                "local servers = {{}} for at = 0, {size} - 1 do servers[at + 1] = string.format(\
                 \"127.1.%d.%d:{WEB_ALL_PORT}\", at // {HOSTS}, at % {HOSTS} + 1) end\n"
            );
            Ok(format!(
                "{servers}service \"s\" {{ listen = \"127.0.0.1:{PORT}\", pool = pool \"p\" {{ check = false, \
                 table.unpack(servers) }} }}\n"
            ))
        },
        prepare: |_| Ok(Vec::new()),
    },
    Dimension {
        name: "services",
        sizes: &[1, 10, 100, 1_000],
        case: Case::Close,
        config: |_, size| {
            let others = format!(
                "for at = 1, {size} - 1 do service(\"s\" .. at) {{ listen = \"127.0.0.1:\" .. 20000 + at, \
                 \"127.0.0.1:{WEB_ALL_PORT}\", check = false }} end\n"
            );
            Ok(service("") + &others)
        },
        prepare: |_| Ok(Vec::new()),
    },
    Dimension {
        name: "sticky clients",
        sizes: &[1, 1_000, 10_000, 100_000, 1_000_000],
        case: Case::Close,
        config: |_, size| Ok(service(&format!("sticky = {{ size = {} }}, ", size.max(1000)))),
        prepare: |size| clients(size).map(|()| Vec::new()),
    },
    Dimension {
        name: "access rules",
        sizes: &[1, 1_000, 10_000, 100_000, 1_000_000],
        case: Case::Close,
        config: |ground, size| {
            let prefix = |at: u64| format!("{}.{}.{}.0/24\n", 11 + at / 65_536, at / 256 % 256, at % 256);
            let file = ground.write("prefixes", &(0..size).map(prefix).collect::<String>())?;
            Ok(service(&format!("deny = prefixes \"{}\", ", file.display())))
        },
        prepare: |_| Ok(Vec::new()),
    },
];

/// Returns the service that is measured, with further keys.
fn service(keys: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{PORT}\", {keys}\"127.0.0.1:{WEB_ALL_PORT}\", \
         \"127.0.0.2:{WEB_ALL_PORT}\", check = false }}\n"
    )
}

/// Lets clients with different addresses connect, so that the sticky table has an entry for each.
fn clients(number: u64) -> anyhow::Result<()> {
    for at in 0..number {
        let host = Ipv4Addr::new(
            127,
            2 + (at / (HOSTS * 250)) as u8,
            (at / HOSTS % 250) as u8,
            (at % HOSTS) as u8 + 1,
        );
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::from((host, 0))))?;
        socket.connect(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET /ping HTTP/1.0\r\n\r\n")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut response = [0; 512];
        while stream.read(&mut response).with_context(|| format!("client {at}"))? > 0 {}
    }
    Ok(())
}

/// Measures all dimensions, prints the tables and writes the plot.
pub(super) fn measure(ground: &Ground, options: &Options) -> anyhow::Result<()> {
    let length = Duration::from_secs(if options.quick { 1 } else { 3 });
    let mut lines = Vec::new();
    println!("| | number | us of CPU time a request | ratio to the first |\n|---|---|---|---|");
    for Dimension { name, sizes, case, config, prepare } in DIMENSIONS {
        let mut points: Vec<(u64, f64)> = Vec::new();
        for &size in sizes.iter().filter(|size| !options.quick || **size <= 10_000) {
            let file = ground.write("growth.lua", &config(ground, size)?)?;
            let running = start(ground, &file).with_context(|| format!("{size} {name}"))?;
            let held = prepare(size).with_context(|| format!("{size} {name}"))?;
            let mut micros = Vec::new();
            for _ in 0..options.rounds.max(1) {
                micros.push(load::sample(case, ground, &running, length)?.micros);
            }
            micros.sort_by(f64::total_cmp);
            let median = micros[micros.len() / 2];
            points.push((size, median));
            println!("| {name} | {size} | {median:.1} | {:.2} |", median / points[0].1);
            drop((held, running));
            // Ports in TIME_WAIT cannot be used again immediately.
            std::thread::sleep(Duration::from_secs(1));
        }
        lines.push(Line::new(name, points));
    }
    if options.quick {
        return Ok(());
    }
    let plot = shell::root().join(PLOT);
    std::fs::write(&plot, plot::svg("CPU time of a request, relative to the smallest number", &lines))?;
    println!("\n{} is written", plot.display());
    Ok(())
}

fn start(ground: &Ground, file: &std::path::Path) -> anyhow::Result<Running> {
    let check = Command::new(&ground.binary).arg("check").arg(file).output()?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let mut command = Command::new(&ground.binary);
    command.arg("run").arg(file);
    alone(&mut command, ground, PORT);
    spawn(command, PORT, Case::Tiny)
}
