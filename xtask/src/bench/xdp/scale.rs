//! Time for each packet by the number of flows, servers and services.

use super::bench_program::{BenchProgram, Plan};
use super::packets::udp;
use super::per_packet::servers_v4;
use super::scene::{Choose, NextHop, Scene};
use super::{bind_to_cpu, progress, progress_done};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const PORT: u16 = 5683;
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2)), 40_000);
const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 9, 9)), PORT);

/// A number of flows, servers and services.
#[derive(Clone, Copy)]
struct Shape {
    flows: u32,
    servers: u32,
    services: u32,
}

/// Measures and prints the tables.
pub(super) fn measure(quick: bool) -> anyhow::Result<()> {
    bind_to_cpu(1)?;
    let one = Shape { flows: 1, servers: 3, services: 1 };
    let flows: &[u32] =
        if quick { &[1, 1 << 12] } else { &[1, 1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22] };
    let shapes = flows.iter().map(|flows| Shape { flows: *flows, ..one });
    table("flows", quick, shapes, |shape| shape.flows)?;
    let servers: &[u32] = if quick { &[1, 64] } else { &[1, 16, 256, 4000] };
    let flows = if quick { 1 << 12 } else { 1 << 16 };
    let shapes = servers.iter().map(|servers| Shape { servers: *servers, flows, ..one });
    table(&format!("servers, with {flows} flows"), quick, shapes, |shape| shape.servers)?;
    let services: &[u32] = if quick { &[1, 16] } else { &[1, 16, 128, 1024] };
    let shapes = services.iter().map(|services| Shape { services: *services, ..one });
    table("services, a flow in each", quick, shapes, |shape| shape.services)
}

fn table(
    title: &str,
    quick: bool,
    shapes: impl Iterator<Item = Shape>,
    number: impl Fn(&Shape) -> u32,
) -> anyhow::Result<()> {
    println!("### CPU time for each packet of a known client, by the number of {title}\n");
    println!("| number | ns | a new client, ns |\n|---|---|---|");
    for shape in shapes {
        progress(&format!("{title}: {}", number(&shape)));
        let (known, new) = time(shape, quick)?;
        progress_done();
        println!("| {} | {known:.1} | {new:.1} |", number(&shape));
    }
    println!();
    Ok(())
}

/// Returns the address of a service, as the bench program writes it into packets.
fn address_of(service: u32) -> SocketAddr {
    let octets = service.wrapping_mul(2_654_435_761).to_ne_bytes();
    SocketAddr::new(Ipv4Addr::from(octets).into(), PORT)
}

/// Returns the nanoseconds for each packet, net of a program that does nothing: of known clients, and of new ones.
fn time(shape: Shape, quick: bool) -> anyhow::Result<(f64, f64)> {
    let mut bench = BenchProgram::load(64)?;
    let mut scene = Scene::load((shape.flows * 2).max(1 << 20))?;
    let plan = if shape.services == 1 {
        scene.add(VIP, &servers_v4(2, shape.servers), Choose::Turn, NextHop::Sender)?;
        Plan::of_clients(udp(CLIENT, VIP), shape.flows)
    } else {
        let servers = servers_v4(0, shape.services * shape.servers);
        for service in 0..shape.services {
            let first = (service * shape.servers) as usize;
            let servers = &servers[first..first + shape.servers as usize];
            scene.add(address_of(service), servers, Choose::Turn, NextHop::Sender)?;
        }
        Plan::of_services(udp(CLIENT, address_of(1)), shape.services)
    };
    let (no_op, ours) = (bench.descriptor("send_back")?, scene.descriptor()?);
    bench.aim(&ours, plan)?;
    bench.nanos(shape.flows.max(shape.services))?;
    let (passes, packets) = if quick { (3, 20_000) } else { (11, 200_000.max(shape.flows)) };
    let [mut base, mut known, mut new] = [f64::MAX; 3];
    for _ in 0..passes {
        bench.aim(&no_op, plan)?;
        base = base.min(bench.nanos(packets)?);
        bench.aim(&ours, plan)?;
        known = known.min(bench.nanos(packets)?);
    }
    // New clients come last: they replace known ones.
    bench.aim(&ours, Plan::of_new_clients(plan))?;
    for _ in 0..3 {
        new = new.min(bench.nanos(packets.min(200_000))?);
    }
    Ok((known - base, new - base))
}
