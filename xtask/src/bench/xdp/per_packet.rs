//! Time for each packet by the path that it takes, and the ratio to the prototype's time.

use super::bench_program::{BenchProgram, Plan};
use super::packets::{Packet, udp};
use super::prototype::Prototype;
use super::scene::{Choose, NextHop, Scene};
use super::{bind_to_cpu, progress, progress_done};
use anyhow::{Context, bail};
use aya::programs::ProgramFd;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Associations that the maps have room for.
const FLOWS: u32 = 1 << 20;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

const VIP_V4: &str = "10.0.9.9:5683";
const VIP_V6: &str = "[fd00:9::9]:5683";
const CLIENT_V4: &str = "10.0.1.2:40000";
const CLIENT_V6: &str = "[fd00:1::2]:40000";
/// Services with other settings.
const BY_CLIENT_V4: &str = "10.0.9.10:5683";
const ROUTED_V4: &str = "10.0.9.11:5683";
const ROUTED_V6: &str = "[fd00:9::11]:5683";

/// A measured path.
struct Route {
    name: &'static str,
    program: ProgramFd,
    plan: Plan,
    /// Goal for the ratio to the prototype's time.
    goal: Option<f64>,
    /// Nanoseconds for each packet: minimum of the passes.
    nanos: f64,
    /// The same path of the prototype.
    prototype: Option<(ProgramFd, Plan, f64)>,
}

/// Measures and prints the table.
pub(super) fn measure(quick: bool, prototype: Option<&Path>) -> anyhow::Result<()> {
    bind_to_cpu(1)?;
    let mut bench = BenchProgram::load(64)?;
    let scene = scene()?;
    let mut prototype = prototype.map(load_prototype).transpose()?;
    let mut paths = paths(&mut bench, &scene, prototype.as_mut())?;
    let (passes, packets) = if quick { (3, 20_000) } else { (25, 200_000) };
    let no_op = bench.descriptor("send_back")?;
    let no_op_plan = Plan::same(udp(address(CLIENT_V4), address(VIP_V4)));
    let mut base = f64::MAX;
    for pass in 1..=passes {
        progress(&format!("per packet: pass {pass} of {passes}"));
        bench.aim(&no_op, no_op_plan)?;
        base = base.min(bench.nanos(packets)?);
        for path in &mut paths {
            bench.aim(&path.program, path.plan)?;
            path.nanos = path.nanos.min(bench.nanos(packets)?);
            if let Some((program, plan, nanos)) = &mut path.prototype {
                bench.aim(program, *plan)?;
                *nanos = nanos.min(bench.nanos(packets)?);
            }
        }
    }
    progress_done();
    print(base, &paths);
    Ok(())
}

fn print(base: f64, paths: &[Route]) {
    println!("### CPU time for each packet, net of a program that does nothing ({base:.1} ns)\n");
    println!("| path | ns | prototype, ns | ratio | goal |\n|---|---|---|---|---|");
    for path in paths {
        let nanos = path.nanos - base;
        let (other, ratio) = match &path.prototype {
            Some((.., other)) => (format!("{:.1}", other - base), format!("{:.2}", nanos / (other - base))),
            None => (String::new(), String::new()),
        };
        let goal = path.goal.map_or(String::new(), |goal| format!("<= {goal:.2}"));
        println!("| {} | {nanos:.1} | {other} | {ratio} | {goal} |", path.name);
    }
    println!();
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a constant address")
}

/// Returns the addresses of servers.
pub(super) fn servers_v4(network: u8, count: u32) -> Vec<IpAddr> {
    (11..11 + count).map(|n| Ipv4Addr::from(u32::from_be_bytes([10, network, 0, 0]) + n).into()).collect()
}

fn servers_v6(network: u16) -> Vec<IpAddr> {
    (11..14).map(|n| Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, n).into()).collect()
}

fn scene() -> anyhow::Result<Scene> {
    let mut scene = Scene::load(FLOWS)?;
    scene.add(address(VIP_V4), &servers_v4(2, 3), Choose::Turn, NextHop::Sender)?;
    scene.add(address(VIP_V6), &servers_v6(2), Choose::Turn, NextHop::Sender)?;
    scene.add(address(BY_CLIENT_V4), &servers_v4(3, 3), Choose::Client, NextHop::Sender)?;
    scene.add(address(ROUTED_V4), &servers_v4(4, 3), Choose::Turn, NextHop::Route)?;
    scene.add(address(ROUTED_V6), &servers_v6(4), Choose::Turn, NextHop::Route)?;
    Ok(scene)
}

fn load_prototype(file: &Path) -> anyhow::Result<Prototype> {
    let servers = [servers_v4(2, 3), servers_v6(2)];
    Prototype::load(file, [address(VIP_V4), address(VIP_V6)], [&servers[0], &servers[1]])
}

/// Prepares the paths, and checks that each packet takes the path.
fn paths(
    bench: &mut BenchProgram,
    scene: &Scene,
    prototype: Option<&mut Prototype>,
) -> anyhow::Result<Vec<Route>> {
    let ours = scene.descriptor()?;
    let theirs = prototype.map(Prototype::descriptor).transpose()?;
    let mut paths = Vec::new();
    let mut add = |name,
                   goal: Option<f64>,
                   action: u32,
                   plan: &dyn Fn(&mut BenchProgram, &ProgramFd) -> anyhow::Result<Plan>| {
        let mut prepare = |program: &ProgramFd| {
            let plan = plan(bench, program)?;
            bench.aim(program, plan)?;
            if let Some(clients) = plan.known_clients() {
                bench.nanos(clients)?;
            }
            let (found, _) = bench.once()?;
            if found != action && !(action == XDP_TX && found == XDP_REDIRECT) {
                bail!("{name}: the program returns {found} instead of {action}");
            }
            anyhow::Ok(plan)
        };
        let plan = prepare(&ours).context("evener")?;
        let theirs = if goal.is_some() { theirs.as_ref() } else { None };
        let prototype = match theirs {
            Some(program) => {
                let plan = prepare(program).context("the prototype")?;
                Some((program.try_clone()?, plan, f64::MAX))
            }
            None => None,
        };
        paths.push(Route { name, program: ours.try_clone()?, plan, goal, nanos: f64::MAX, prototype });
        anyhow::Ok(())
    };
    let (v4, v6) = (address(CLIENT_V4), address(CLIENT_V6));
    let to = |client: SocketAddr, vip: &str| udp(client, address(vip));
    add("another destination, IPv4", Some(0.72), XDP_PASS, &|_, _| Ok(Plan::same(to(v4, "10.0.9.9:53"))))?;
    add("another destination, IPv6", Some(0.72), XDP_PASS, &|_, _| Ok(Plan::same(to(v6, "[fd00:9::9]:53"))))?;
    add("known client, IPv4, to the server", Some(0.87), XDP_TX, &|_, _| Ok(Plan::same(to(v4, VIP_V4))))?;
    add("known client, IPv4, from the server", Some(0.87), XDP_TX, &|bench, program| {
        response(bench, program, to(v4, VIP_V4))
    })?;
    add("known client, IPv6, to the server", Some(0.95), XDP_TX, &|_, _| Ok(Plan::same(to(v6, VIP_V6))))?;
    add("known client, IPv6, from the server", Some(0.95), XDP_TX, &|bench, program| {
        response(bench, program, to(v6, VIP_V6))
    })?;
    add("one of 65 536 known clients, IPv4, to the server", Some(0.87), XDP_TX, &|_, _| {
        Ok(Plan::of_clients(to(v4, VIP_V4), 1 << 16))
    })?;
    add("known client, next hop by route, IPv4, to the server", None, XDP_TX, &|_, _| {
        Ok(Plan::same(to(v4, ROUTED_V4)))
    })?;
    add("known client, next hop by route, IPv6, to the server", None, XDP_TX, &|_, _| {
        Ok(Plan::same(to(v6, ROUTED_V6)))
    })?;
    add("new client, IPv4", Some(0.96), XDP_TX, &|_, _| Ok(Plan::of_clients(to(v4, VIP_V4), 0)))?;
    add("new client, IPv4, server by hash", None, XDP_TX, &|_, _| {
        Ok(Plan::of_clients(to(v4, BY_CLIENT_V4), 0))
    })?;
    add("new client, IPv6", Some(0.96), XDP_TX, &|_, _| Ok(Plan::of_clients(to(v6, VIP_V6), 0)))?;
    Ok(paths)
}

/// Sends the first packet of a client, and returns the response of the chosen server.
fn response(bench: &mut BenchProgram, program: &ProgramFd, request: Packet) -> anyhow::Result<Plan> {
    bench.aim(program, Plan::same(request))?;
    let (_, packet) = bench.once()?;
    let (destination, source) =
        if request[12..14] == [0x08, 0x00] { (30..34, 26..30) } else { (38..54, 22..38) };
    let ip = |bytes: &[u8]| match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 4]>::try_from(bytes).expect("the length of an IPv4 address")),
    };
    let (server, client) = (ip(&packet[destination]), ip(&packet[source]));
    Ok(Plan::same(udp(SocketAddr::new(server, 5683), SocketAddr::new(client, 40_000))))
}
