//! Packets per second of live frames through a pair of virtual interfaces: the plane in native and generic mode, with
//! one and two queues, and nftables and pen in its place.
//!
//! The sender, the measured system and the receiver share the processor of the sender, as the kernel runs all of
//! them in its receive loop. So the rates contain the costs of sending and receiving, and only ratios have a meaning.

use super::bench_program::{BenchProgram, Plan};
use super::packets::{Packet, udp, without_udp_checksum};
use super::per_packet::servers_v4;
use super::scene::{Choose, NextHop, Scene};
use super::{bind_to_cpu, progress, progress_done};
use anyhow::{Context, bail};
use aya::programs::XdpMode;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2)), 40_000);
const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 9, 9)), 5683);
/// Ports of the client; pen has a connection for each.
const PORTS: u32 = 64;

/// The measured system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Native,
    NativeTwoQueues,
    Generic,
    Nftables,
    Pen,
}

impl System {
    const ALL: [Self; 5] = [Self::Native, Self::NativeTwoQueues, Self::Generic, Self::Nftables, Self::Pen];

    fn name(self) -> &'static str {
        match self {
            Self::Native => "evener, native, one queue",
            Self::NativeTwoQueues => "evener, native, two queues",
            Self::Generic => "evener, generic",
            Self::Nftables => "nftables, DNAT",
            Self::Pen => "pen -U",
        }
    }

    fn queues(self) -> usize {
        if self == Self::NativeTwoQueues { 2 } else { 1 }
    }

    /// Returns the goal for the ratio of the rate of native mode to this one.
    fn goal(self) -> &'static str {
        match self {
            Self::Native => "",
            Self::NativeTwoQueues => "<= 0.62",
            Self::Generic => ">= 2",
            Self::Nftables => ">= 2.5",
            Self::Pen => ">= 10",
        }
    }
}

/// Measures and prints the table.
pub(super) fn measure(quick: bool) -> anyhow::Result<()> {
    let (rounds, frames) = if quick { (1, 50_000) } else { (7, 1_000_000) };
    let mut fields = Vec::new();
    for system in System::ALL {
        fields.push(Field::prepare(system).with_context(|| system.name())?);
    }
    for round in 1..=rounds {
        for field in &mut fields {
            progress(&format!("live frames: round {round} of {rounds}, {}", field.system.name()));
            field.round(frames)?;
        }
    }
    progress_done();
    println!("### Live frames of 64 bytes through a pair of virtual interfaces, best of {rounds} rounds\n");
    println!("| system | packets/s | native / it | goal | received of sent |\n|---|---|---|---|---|");
    let native = fields[0].rate;
    for Field { system, rate, share, .. } in &fields {
        let ratio = if *system == System::Native { String::new() } else { format!("{:.2}", native / rate) };
        println!("| {} | {rate:.0} | {ratio} | {} | {:.0} % |", system.name(), system.goal(), share * 100.0);
    }
    println!();
    Ok(())
}

/// A process that ends when this value is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace with the measured system, and the pair of interfaces to it.
struct Field {
    system: System,
    bench: BenchProgram,
    /// Interface of the current namespace.
    interface: u32,
    rate: f64,
    /// Part of the frames that was received in the best round.
    share: f64,
    _scene: Option<Scene>,
    _server: Option<Process>,
    _pair: Pair,
}

/// A network namespace, and a pair of virtual interfaces to its interface `e0`.
pub(super) struct Pair {
    namespace: Process,
    /// Index and MAC address of the interface in the current namespace.
    outer: (u32, [u8; 6]),
    /// Index and MAC address of `e0`.
    inner: (u32, [u8; 6]),
}

impl Pair {
    /// Creates the namespace, with 10.0.9.9 as a local address and 10.0.3.1 as its gateway.
    pub(super) fn new(queues: usize) -> anyhow::Result<Self> {
        let namespace = namespace()?;
        let pid = namespace.0.id();
        let name = format!("g{pid}");
        run(&format!(
            "ip link add {name} numtxqueues {queues} numrxqueues {queues} type veth peer name e0 netns {pid} \
             numtxqueues {queues} numrxqueues {queues}
             ip addr add 10.0.3.1/24 dev {name}; ip link set {name} up
             ethtool -K {name} tx off gso off tso off gro off >/dev/null"
        ))?;
        inside(
            pid,
            "ip link set lo up; ip link set e0 up; ip addr add 10.0.3.2/24 dev e0; ip addr add 10.0.9.9/32 dev lo
             sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.e0.rp_filter=0
             sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.e0.send_redirects=0
             ethtool -K e0 tx off gso off tso off gro on >/dev/null",
        )?;
        let outer = link(&run(&format!("ip -o link show dev {name}"))?)?;
        let inner = link(&inside(pid, "ip -o link show dev e0")?)?;
        let mac = outer.1.map(|byte| format!("{byte:02x}")).join(":");
        inside(
            pid,
            &format!(
                "ip neigh add 10.0.3.1 lladdr {mac} dev e0 nud permanent; ip route add default via 10.0.3.1"
            ),
        )?;
        Ok(Self { namespace, outer, inner })
    }

    /// Returns a process in the namespace.
    pub(super) fn pid(&self) -> u32 {
        self.namespace.0.id()
    }
}

impl Field {
    fn prepare(system: System) -> anyhow::Result<Self> {
        let pair = Pair::new(system.queues())?;
        let pid = pair.pid();
        let ((interface, mac), (inner, server_mac)) = (pair.outer, pair.inner);
        let mut bench = BenchProgram::load(64)?;
        bench.program_mut("receive")?.attach_to_if_index(interface, XdpMode::Driver)?;
        let plan = Plan::of_ports(packet(server_mac, mac), PORTS);
        let back = bench.descriptor("send_back")?;
        bench.aim(&back, plan)?;
        let scene = match system {
            System::Native | System::NativeTwoQueues => Some(attached(pid, inner, XdpMode::Driver)?),
            System::Generic => Some(attached(pid, inner, XdpMode::Skb)?),
            System::Nftables | System::Pen => None,
        };
        if system == System::Nftables {
            inside(
                pid,
                "nft add table ip n
                 nft 'add chain ip n c { type nat hook prerouting priority -100; }'
                 nft 'add rule ip n c ip daddr 10.0.9.9 udp dport 5683 dnat to numgen inc mod 3 map \
                 { 0 : 10.0.2.11, 1 : 10.0.2.12, 2 : 10.0.2.13 }'",
            )?;
        }
        let server = if system == System::Pen { Some(pen(pid)?) } else { None };
        let mut field = Self {
            system,
            bench,
            interface,
            rate: 0.0,
            share: 0.0,
            _scene: scene,
            _server: server,
            _pair: pair,
        };
        field.round(5000)?;
        field.rate = 0.0;
        Ok(field)
    }

    /// Sends frames, and notes the rate of those that come back.
    fn round(&mut self, frames: u32) -> anyhow::Result<()> {
        let before = self.bench.received()?;
        let start = Instant::now();
        let send = |cpu: usize| {
            bind_to_cpu(cpu)?;
            self.bench.live(self.interface, frames)
        };
        let senders = self.system.queues();
        thread::scope(|scope| {
            let others: Vec<_> = (1..senders).map(|_| scope.spawn(|| send(0))).collect();
            send(1)?;
            others.into_iter().try_for_each(|other| other.join().expect("a sender does not panic"))
        })?;
        let time = start.elapsed();
        // Packets that are in the socket of a process.
        thread::sleep(Duration::from_millis(50));
        let received = self.bench.received()? - before;
        if received == 0 {
            bail!("no frame comes back");
        }
        let rate = received as f64 / time.as_secs_f64();
        if rate > self.rate {
            self.rate = rate;
            self.share = received as f64 / (f64::from(frames) * senders as f64);
        }
        Ok(())
    }
}

/// Returns a packet with these MAC addresses, without a checksum of UDP.
fn packet(destination: [u8; 6], source: [u8; 6]) -> Packet {
    let mut packet = without_udp_checksum(udp(CLIENT, VIP));
    packet[..6].copy_from_slice(&destination);
    packet[6..12].copy_from_slice(&source);
    packet
}

/// Loads the plane and attaches it to the interface of the namespace.
fn attached(pid: u32, interface: u32, mode: XdpMode) -> anyhow::Result<Scene> {
    let mut scene = Scene::load(1 << 16)?;
    scene.add(VIP, &servers_v4(2, 3), Choose::Turn, NextHop::Sender)?;
    let attach = || {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        scene.program_mut()?.attach_to_if_index(interface, mode)?;
        anyhow::Ok(())
    };
    // Only the thread that attaches the program enters the namespace.
    thread::scope(|scope| scope.spawn(attach).join().expect("attaching does not panic"))?;
    Ok(scene)
}

fn pen(pid: u32) -> anyhow::Result<Process> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net"));
    command.args(["pen", "-U", "-r", "-f", "-x", "1024", "10.0.9.9:5683"]);
    command.args(["10.0.2.11:5683", "10.0.2.12:5683", "10.0.2.13:5683"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let process = Process(child.context("pen cannot be run")?);
    let until = Instant::now() + Duration::from_secs(5);
    while !inside(pid, "cat /proc/net/udp")?.contains(":1633") {
        if Instant::now() > until {
            bail!("pen does not listen");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

/// Creates a network namespace, which ends with its process.
fn namespace() -> anyhow::Result<Process> {
    let holder = Command::new("unshare").args(["--net", "sleep", "900"]).spawn()?;
    let process = Process(holder);
    let path = format!("/proc/{}/ns/net", process.0.id());
    let current = std::fs::read_link("/proc/self/ns/net")?;
    while std::fs::read_link(&path)? == current {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}

/// Reads the index and the MAC address of an interface from the output of `ip -o link`.
fn link(shown: &str) -> anyhow::Result<(u32, [u8; 6])> {
    let index = shown.split(':').next().unwrap_or_default().parse()?;
    let after = shown.split("link/ether ").nth(1).context("no MAC address")?;
    let bytes = after.split([':', ' ']).take(6).map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    Ok((index, bytes.try_into().ok().context("not a MAC address")?))
}

fn run(script: &str) -> anyhow::Result<String> {
    output(Command::new("sh").args(["-ec", script]), script)
}

fn inside(pid: u32, script: &str) -> anyhow::Result<String> {
    let path = format!("--net=/proc/{pid}/ns/net");
    output(Command::new("nsenter").args([&path, "sh", "-ec", script]), script)
}

fn output(command: &mut Command, script: &str) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
