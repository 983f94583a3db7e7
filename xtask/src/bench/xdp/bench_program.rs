//! The programs of `crates/xdp/bpf/bench.bpf.c`: one that calls the measured program, and ones that fill an LRU map.

use super::packets::{Packet, client_offset};
use anyhow::Context;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

const OBJECT: &[u8] = include_bytes_aligned!("../../../../crates/xdp/bpf/bench.bpf.o");

/// `struct plan`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    packet: Packet,
    mask: u32,
    offset: u32,
    port: u32,
    reserved: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Plan {}

impl Plan {
    /// Always the same packet.
    pub(super) fn same(packet: Packet) -> Self {
        Self { packet, mask: 0, offset: 0, port: 0, reserved: 0 }
    }

    /// Packets of this number of clients in turn; a power of two, or 0 for a new client with each packet.
    pub(super) fn of_clients(packet: Packet, clients: u32) -> Self {
        Self { mask: clients.wrapping_sub(1), offset: client_offset(&packet), ..Self::same(packet) }
    }

    /// Packets of one client to this number of IPv4 addresses in turn; a power of two.
    pub(super) fn of_services(packet: Packet, services: u32) -> Self {
        Self { mask: services - 1, offset: 30, ..Self::same(packet) }
    }

    /// A new client with each packet, without end.
    pub(super) fn of_new_clients(plan: Self) -> Self {
        Self { mask: u32::MAX, offset: client_offset(&plan.packet), ..plan }
    }

    /// Returns the number of clients, if it has an end.
    pub(super) fn known_clients(&self) -> Option<u32> {
        self.mask.checked_add(1)
    }

    /// Packets of IPv4 from this number of ports of one client in turn; a power of two.
    pub(super) fn of_ports(packet: Packet, ports: u32) -> Self {
        Self { mask: ports - 1, offset: 34, port: 1, ..Self::same(packet) }
    }
}

/// `struct keys`: a range of keys of the LRU map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Keys {
    from: u32,
    step: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Keys {}

impl Keys {
    /// The keys from a position on.
    pub(super) fn from(from: u32) -> Self {
        Self { from, step: 1 }
    }

    /// The same key again and again.
    pub(super) fn only(from: u32) -> Self {
        Self { from, step: 0 }
    }
}

/// `struct counts`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    at: u64,
    present: u64,
    busy: u64,
    no_memory: u64,
    other_errors: u64,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Counts {}

impl Counts {
    pub(super) fn present(self) -> u64 {
        self.present
    }

    /// Returns the failed updates: EBUSY, ENOMEM and others.
    pub(super) fn failures(self) -> [u64; 3] {
        [self.busy, self.no_memory, self.other_errors]
    }

    fn sum(self, other: Self) -> Self {
        Self {
            at: self.at + other.at,
            present: self.present + other.present,
            busy: self.busy + other.busy,
            no_memory: self.no_memory + other.no_memory,
            other_errors: self.other_errors + other.other_errors,
        }
    }
}

/// The loaded programs.
pub(super) struct BenchProgram {
    ebpf: Ebpf,
}

impl BenchProgram {
    /// Loads the programs, with an LRU map of this many entries.
    pub(super) fn load(lru_entries: u32) -> anyhow::Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("lru", lru_entries);
        let mut ebpf = loader.load(OBJECT)?;
        for (_, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        Ok(Self { ebpf })
    }

    fn program(&self, name: &str) -> anyhow::Result<&Xdp> {
        Ok(self.ebpf.program(name).context("no such program")?.try_into()?)
    }

    pub(super) fn program_mut(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(name).context("no such program")?.try_into()?)
    }

    /// Returns a program as the one to be measured.
    pub(super) fn descriptor(&self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Sets the measured program and its packets.
    pub(super) fn aim(&mut self, program: &ProgramFd, plan: Plan) -> anyhow::Result<()> {
        let mut plans: Array<_, Plan> = Array::try_from(self.map("plans")?)?;
        plans.set(0, plan, 0)?;
        let mut measured = ProgramArray::try_from(self.map("measured")?)?;
        measured.set(0, program, 0)?;
        Ok(())
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    /// Runs the measured program with one packet. Returns the action and the packet.
    pub(super) fn once(&self) -> anyhow::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; 256];
        let options = TestRunOptions {
            data_in: Some(&[0; super::packets::LENGTH]),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let result = self.program("measure")?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Runs the measured program. Returns the CPU time of one packet in nanoseconds.
    pub(super) fn nanos(&self, packets: u32) -> anyhow::Result<f64> {
        self.timed("measure", packets)
    }

    /// Runs a program. Returns the CPU time of one repetition in nanoseconds.
    fn timed(&self, name: &str, repeat: u32) -> anyhow::Result<f64> {
        let options =
            TestRunOptions { data_in: Some(&[0; super::packets::LENGTH]), repeat, ..TestRunOptions::new() };
        let program = self.program(name)?;
        let before = cpu_time();
        program.test_run(options)?;
        Ok((cpu_time() - before).as_nanos() as f64 / f64::from(repeat))
    }

    /// Writes or looks up (`fill`, `find`) this many keys on the current processor. Returns the counts.
    pub(super) fn keys(&self, program: &str, count: u32) -> anyhow::Result<()> {
        if count > 0 {
            self.timed(program, count)?;
        }
        Ok(())
    }

    /// Sets the keys of each processor, and clears the counts.
    pub(super) fn set_keys(&mut self, of_cpu: impl Fn(usize) -> Keys) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut ranges: PerCpuArray<_, Keys> = PerCpuArray::try_from(self.map("ranges")?)?;
        ranges.set(0, PerCpuValues::try_from((0..cpus).map(of_cpu).collect::<Vec<_>>())?, 0)?;
        let mut counted: PerCpuArray<_, Counts> = PerCpuArray::try_from(self.map("counted")?)?;
        counted.set(0, PerCpuValues::try_from(vec![Counts::default(); cpus])?, 0)?;
        Ok(())
    }

    /// Returns the counts of all processors.
    pub(super) fn counts(&self) -> anyhow::Result<Counts> {
        let counted: PerCpuArray<_, Counts> =
            PerCpuArray::try_from(self.ebpf.map("counted").context("a map")?)?;
        Ok(counted.get(&0, 0)?.iter().fold(Counts::default(), |sum, counts| sum.sum(*counts)))
    }

    /// Returns the number of packets that the program `receive` counted.
    pub(super) fn received(&self) -> anyhow::Result<u64> {
        let received: PerCpuArray<&MapData, u64> =
            PerCpuArray::try_from(self.ebpf.map("received").context("a map")?)?;
        Ok(received.get(&0, 0)?.iter().sum())
    }

    /// Sends live frames, as if they had arrived at the interface and the program had sent them back.
    pub(super) fn live(&self, interface: u32, frames: u32) -> anyhow::Result<()> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, super::packets::LENGTH as u32, 0, interface, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(&[0; super::packets::LENGTH]),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::new()
        };
        self.program("measure")?.test_run(options)?;
        Ok(())
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
