//! Loads the program and creates its maps, or takes over the maps that an earlier process pinned.

pub mod takeover;

use crate::attach::Links;
use crate::contract::{CONTRACT_VERSION, Config};
use crate::maps::Maps;
use crate::object::{OBJECT, PROGRAM};
use crate::pin::{Directory, PinError};
use aya::maps::MapError;
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use takeover::{Origin, Source};

/// Sizes of the maps that are set at load time.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Maximum number of associations of IPv4 clients.
    pub flows_v4: u32,
    /// Maximum number of associations of IPv6 clients.
    pub flows_v6: u32,
}

impl Sizes {
    fn named(self) -> [(&'static str, u32); 2] {
        [("flows_v4", entries_of(self.flows_v4)), ("flows_v6", entries_of(self.flows_v6))]
    }
}

/// Returns the number of entries of a map for this many associations: one more for a power of two. The kernel
/// rounds the number of buckets up to a power of two, so that this doubles it, and chains have half the length.
/// A new association in a full table takes 18 % less time, for 16 bytes of memory each.
#[must_use]
pub fn entries_of(flows: u32) -> u32 {
    if flows.is_power_of_two() { flows + 1 } else { flows }
}

/// The kernel did not accept the program or a map.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This process must not load programs.
    #[error(
        "no permission to load XDP programs: run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Permission,
    /// The kernel has no type information, which maps need.
    #[error("the kernel has no BTF (/sys/kernel/btf/vmlinux): a kernel with CONFIG_DEBUG_INFO_BTF is needed")]
    NoBtf,
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map or the object file.
    #[error("the XDP program cannot be loaded: {}", with_sources(.0))]
    Object(#[source] Box<EbpfError>),
    /// The program.
    #[error("the kernel refuses the XDP program: {}", first_line(&with_sources(.0)))]
    Program(#[source] Box<ProgramError>),
    /// A map.
    #[error("a map of the XDP program cannot be used: {}", with_sources(.0))]
    Map(#[source] Box<MapError>),
    /// A map of an earlier process.
    #[error("maps of an earlier process cannot be taken over: {0}")]
    Takeover(#[source] io::Error),
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        if is_permission(&error) { Self::Permission } else { Self::Object(Box::new(error)) }
    }
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> Self {
        if is_permission(&error) { Self::Permission } else { Self::Program(Box::new(error)) }
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        if is_permission(&error) { Self::Permission } else { Self::Map(Box::new(error)) }
    }
}

/// Returns whether the cause of an error is a missing permission.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if code == Some(libc::EPERM) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Describes an error with its causes.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A loaded program with its maps, without a pin directory: for tests and checks.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    /// Loads the program with maps of its own, without pinning anything.
    ///
    /// # Errors
    /// The kernel refuses the program or a map, for example for want of permission.
    pub fn load(sizes: Sizes) -> Result<Self, LoadError> {
        let mut ebpf = loader(sizes).load(OBJECT)?;
        program(&mut ebpf).load()?;
        let mut loaded = Self { ebpf };
        loaded.complete()?;
        Ok(loaded)
    }

    /// Writes the version of the contract.
    fn complete(&mut self) -> Result<(), LoadError> {
        let settings = self.ebpf.map_mut("settings").expect("the object has the map");
        let mut settings: aya::maps::Array<_, Config> = settings.try_into()?;
        let before = settings.get(&0, 0)?;
        settings.set(0, Config { version: CONTRACT_VERSION, ..before }, 0)?;
        Ok(())
    }

    /// Returns the object with its maps and programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Runs the program with a packet. Returns the action (`XDP_PASS`, ...) and the packet as the program left it.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn test_run(&mut self, packet: &[u8]) -> Result<(u32, Vec<u8>), LoadError> {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program(&mut self.ebpf).test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}

fn loader(sizes: Sizes) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    for (name, size) in sizes.named() {
        loader.map_max_entries(name, size);
    }
    loader
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    let program = ebpf.program_mut(PROGRAM).expect("the object has the program");
    program.try_into().expect("an XDP program")
}

/// The program, loaded with the maps of a pin directory.
#[derive(Debug)]
pub struct Installed {
    /// Maps; those of an earlier process have its entries.
    pub maps: Maps,
    /// Interfaces. The programs of an earlier process work on until [`Links::set`] replaces them.
    pub links: Links,
    /// Origin of the maps.
    pub origin: Origin,
}

/// A map as the object file defines it, with the sizes of the configuration.
#[derive(Clone, Debug)]
struct Definition {
    name: String,
    map: aya_obj::Map,
}

/// The maps that are ready under their names in the directory, before the program is loaded.
#[derive(Debug)]
struct Prepared {
    origin: Origin,
    /// Names of maps that are pinned as the next map of their name.
    next: Vec<String>,
    sources: Vec<Source>,
}

impl Installed {
    /// Loads the program with the maps that are pinned in a directory, or with new ones that are pinned there.
    ///
    /// # Errors
    /// The kernel refuses the program or a map, or the directory cannot be written.
    pub fn open(directory: Directory, sizes: Sizes) -> Result<Self, LoadError> {
        Self::open_object(OBJECT, directory, sizes)
    }

    /// Does as [`Installed::open`], with another object file than the one in this crate.
    ///
    /// # Errors
    /// As [`Installed::open`].
    pub fn open_object(object: &[u8], directory: Directory, sizes: Sizes) -> Result<Self, LoadError> {
        if aya::Btf::from_sys_fs().is_err() {
            return Err(LoadError::NoBtf);
        }
        let definitions = definitions(object, sizes)?;
        let prepared = takeover::prepare(&directory, &definitions)?;
        let mut loader = loader(sizes);
        for definition in &definitions {
            let is_next = prepared.next.contains(&definition.name);
            let path = if is_next {
                directory.next_path(&definition.name)
            } else {
                directory.map_path(&definition.name)
            };
            loader.map_pin_path(&definition.name, path);
        }
        let mut loaded = Loaded { ebpf: loader.load(object)? };
        program(&mut loaded.ebpf).load()?;
        for name in &prepared.next {
            directory.replace_by_next(name)?;
        }
        loaded.complete()?;
        let program = descriptor(program(&mut loaded.ebpf))?;
        let links = Links::new(directory, program, prepared.sources)?;
        Ok(Self { maps: Maps::take(loaded.ebpf)?, links, origin: prepared.origin })
    }
}

fn descriptor(program: &Xdp) -> Result<OwnedFd, LoadError> {
    program.fd()?.as_fd().try_clone_to_owned().map_err(LoadError::Takeover)
}

/// Returns the maps that the object file defines.
fn definitions(object: &[u8], sizes: Sizes) -> Result<Vec<Definition>, LoadError> {
    let object = aya_obj::Object::parse(object).map_err(EbpfError::from)?;
    let mut definitions: Vec<Definition> = object
        .maps
        .into_iter()
        // Read-only data belongs to the program, which differs from version to version.
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| Definition { name, map })
        .collect();
    for definition in &mut definitions {
        if let Some((_, size)) = sizes.named().iter().find(|(name, _)| *name == definition.name) {
            definition.map.set_max_entries(*size);
        }
    }
    definitions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(definitions)
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
