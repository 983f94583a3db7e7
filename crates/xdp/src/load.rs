//! Loads the program and creates its maps, or takes over the maps that an earlier process pinned.

use crate::contract::{CONTRACT_VERSION, Config};
use crate::object::{OBJECT, PROGRAM};
use aya::maps::Array;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

/// Sizes of the maps that are set at load time.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Maximum number of associations of IPv4 clients.
    pub flows_v4: u32,
    /// Maximum number of associations of IPv6 clients.
    pub flows_v6: u32,
}

/// A loaded program with its maps.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
}

/// The kernel did not accept the program or a map.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A map or the object file.
    #[error("the XDP program cannot be loaded: {0}")]
    Object(#[from] aya::EbpfError),
    /// The program.
    #[error("the kernel refuses the XDP program: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// A map.
    #[error("a map of the XDP program cannot be used: {0}")]
    Map(#[from] aya::maps::MapError),
}

impl Loaded {
    /// Loads the program with maps of its own, without pinning anything.
    ///
    /// # Errors
    /// The kernel refuses the program or a map, for example for want of permission.
    pub fn load(sizes: Sizes) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("flows_v4", sizes.flows_v4).map_max_entries("flows_v6", sizes.flows_v6);
        let mut ebpf = loader.load(OBJECT)?;
        let mut settings: Array<_, Config> = Array::try_from(ebpf.map_mut("settings").expect("a map"))?;
        settings.set(0, Config { version: CONTRACT_VERSION, ..Config::default() }, 0)?;
        let mut loaded = Self { ebpf };
        loaded.program().load()?;
        Ok(loaded)
    }

    fn program(&mut self) -> &mut Xdp {
        let program = self.ebpf.program_mut(PROGRAM).expect("the object has the program");
        program.try_into().expect("an XDP program")
    }

    /// Runs the program with a packet. Returns the action (`XDP_PASS`, ...) and the packet as the program left it.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn test_run(&mut self, packet: &[u8]) -> Result<(u32, Vec<u8>), LoadError> {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self.program().test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_the_program() {
        let mut loaded = Loaded::load(Sizes { flows_v4: 1024, flows_v6: 1024 }).unwrap();
        let (action, out) = loaded.test_run(&[0; 64]).unwrap();
        assert_eq!((action, out), (2, vec![0; 64]));
    }
}
