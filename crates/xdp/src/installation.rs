//! Lists and removes the content of a pin directory.

use crate::interface::{AttachMode, Interface};
use crate::pin::{Directory, PinError};
use crate::sys;
use std::os::fd::AsFd;
use std::path::Path;

/// The plane on an interface, as its pinned link has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedLink {
    /// Name of the interface; the name in the pin if the interface is gone.
    pub interface: String,
    /// Mode; `None` if the interface is gone or in another network namespace.
    pub mode: Option<AttachMode>,
    /// Id of the program.
    pub program: u32,
    /// Tag of the program, which depends on its instructions.
    pub tag: String,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedMap {
    /// Name.
    pub name: String,
    /// Maximum number of entries.
    pub max_entries: u32,
}

/// Everything in a pin directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// Links, by interface.
    pub links: Vec<PinnedLink>,
    /// Maps, by name.
    pub maps: Vec<PinnedMap>,
    /// The process that owns the directory.
    pub owner: Option<String>,
}

impl Installation {
    /// Reads a pin directory, also while a process owns it. Returns `None` if there is none.
    ///
    /// # Errors
    /// No permission, or not in a BPF file system.
    pub fn read(path: &Path) -> Result<Option<Self>, PinError> {
        let (directory, owner) = match Directory::open_present(path) {
            Ok(Some(directory)) => (directory, None),
            Ok(None) => return Ok(None),
            Err(PinError::Busy { owner, .. }) => (Directory::without_lock(path)?, Some(owner)),
            Err(error) => return Err(error),
        };
        let failed = |error| PinError::io(path, error);
        let mut installation = Self { owner, ..Self::default() };
        for (name, link) in directory.links()? {
            let Some(info) = sys::link_info(link.as_fd()).map_err(failed)? else { continue };
            let interface = Interface::by_index(info.ifindex).ok().flatten().filter(|_| info.ifindex != 0);
            let program = sys::program_by_id(info.program_id);
            let program = program.and_then(|program| sys::program_info(program.as_fd()));
            installation.links.push(PinnedLink {
                mode: interface.as_ref().and_then(|interface| interface.mode_of(info.program_id)),
                interface: interface.map_or(name, |interface| interface.name),
                program: info.program_id,
                tag: program.map(|program| program.tag_text()).unwrap_or_default(),
            });
        }
        for name in directory.map_names()? {
            let Some(map) = directory.open_map(&name)? else { continue };
            let info = sys::map_info(map.as_fd()).map_err(failed)?;
            installation.maps.push(PinnedMap { name, max_entries: info.max_entries });
        }
        Ok(Some(installation))
    }
}

/// Things that were taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces from which the program was detached.
    pub interfaces: Vec<String>,
    /// Number of maps.
    pub maps: usize,
}

/// Detaches the plane from an interface, or from all interfaces and removes its maps, too. Returns `None` if there is
/// no pin directory.
///
/// # Errors
/// No permission, not in a BPF file system, or a process owns the directory.
pub fn detach(path: &Path, interface: Option<&str>) -> Result<Option<Removed>, PinError> {
    let Some(directory) = Directory::open_present(path)? else { return Ok(None) };
    let mut removed = Removed::default();
    for (name, link) in directory.links()? {
        if interface.is_none_or(|interface| interface == name) {
            // A link whose interface is gone cannot be detached any more.
            let _ = sys::detach_link(link.as_fd());
            directory.unpin_link(&name)?;
            removed.interfaces.push(name);
        }
    }
    if interface.is_none() {
        removed.maps = directory.map_names()?.len();
        directory.remove()?;
    }
    Ok(Some(removed))
}
