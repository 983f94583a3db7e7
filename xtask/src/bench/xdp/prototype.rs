//! The program of the prototype, as the yardstick of times: one service at the address of the benchmark's service,
//! with three servers. Its object file is not part of this project.

use anyhow::Context;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

const UDP: u8 = 17;
const PLACEMENT_SLOTS: u32 = 65_537;
/// Number of the first server of IPv6.
const FIRST_V6: u32 = 100;

/// The loaded program.
pub(super) struct Prototype {
    ebpf: Ebpf,
}

impl Prototype {
    /// Loads the program, with services at these addresses.
    pub(super) fn load(
        file: &Path,
        services: [SocketAddr; 2],
        servers: [&[IpAddr]; 2],
    ) -> anyhow::Result<Self> {
        let object = std::fs::read(file).with_context(|| file.display().to_string())?;
        let mut ebpf = EbpfLoader::new().load(&object).context("the prototype's object file")?;
        program(&mut ebpf)?.load()?;
        let mut prototype = Self { ebpf };
        for (vip, (service, servers)) in (0..).zip(services.into_iter().zip(servers)) {
            prototype.add(vip, service, servers)?;
        }
        Ok(prototype)
    }

    /// Returns the program.
    pub(super) fn descriptor(&mut self) -> anyhow::Result<ProgramFd> {
        Ok(program(&mut self.ebpf)?.fd()?.try_clone()?)
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn add(&mut self, vip: u32, service: SocketAddr, servers: &[IpAddr]) -> anyhow::Result<()> {
        let first = if service.is_ipv4() { 0 } else { FIRST_V6 };
        self.put("vip4", "vip6", service, [vip, servers.len() as u32])?;
        self.set("vips", vip, words(service.ip()))?;
        for (server, address) in (first..).zip(servers) {
            self.set("reals", server, words(*address))?;
            self.put("real4", "real6", SocketAddr::new(*address, service.port()), [vip, server])?;
        }
        let mut table = Array::<MapData, u32>::create(PLACEMENT_SLOTS, 0)?;
        for slot in 0..PLACEMENT_SLOTS {
            let server = (slot.wrapping_mul(2_654_435_761) >> 7) % servers.len() as u32;
            table.set(slot, first + server, 0)?;
        }
        let mut tables: ArrayOfMaps<_, Array<MapData, u32>> = ArrayOfMaps::try_from(self.map("maglev")?)?;
        Ok(tables.set(vip, &table, 0)?)
    }

    fn set(&mut self, map: &str, at: u32, value: [u32; 4]) -> anyhow::Result<()> {
        let mut array: Array<_, [u32; 4]> = Array::try_from(self.map(map)?)?;
        Ok(array.set(at, value, 0)?)
    }

    fn put(&mut self, v4: &str, v6: &str, endpoint: SocketAddr, value: [u32; 2]) -> anyhow::Result<()> {
        let port = endpoint.port().to_be_bytes();
        let tail = u32::from_ne_bytes([port[0], port[1], UDP, 0]);
        let address = words(endpoint.ip());
        if endpoint.is_ipv4() {
            let mut map: HashMap<_, [u32; 2], [u32; 2]> = HashMap::try_from(self.map(v4)?)?;
            return Ok(map.insert([address[3], tail], value, 0)?);
        }
        let mut map: HashMap<_, [u32; 5], [u32; 2]> = HashMap::try_from(self.map(v6)?)?;
        let [a, b, c, d] = address;
        Ok(map.insert([a, b, c, d, tail], value, 0)?)
    }
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    Ok(ebpf.program_mut("director").context("the object file has no program `director`")?.try_into()?)
}

/// Returns the words of an address; an address of IPv4 is in the last one.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [0, 0, 0, u32::from_ne_bytes(address.octets())],
        IpAddr::V6(address) => {
            let octets = address.octets();
            let words = octets.as_chunks::<4>().0;
            std::array::from_fn(|at| u32::from_ne_bytes(words[at]))
        }
    }
}
