//! Decides which maps a new process uses: the pinned ones, the ones of a program that still runs, or new ones.
//!
//! A process can end between any two steps. So nothing is remembered in files: the next process compares the
//! pinned maps with the maps of the programs behind the pinned links, and repairs what differs.

use super::{Definition, LoadError, Prepared};
use crate::batch::Entries;
use crate::contract::{CONTRACT_VERSION, Config};
use crate::pin::Directory;
use crate::sys::{self, MapInfo};
use aya::maps::{Array, Map, MapData};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// `BPF_MAP_TYPE_LRU_HASH`.
const LRU: u32 = 9;
/// The map with the version of the contract.
const SETTINGS: &str = "settings";

/// Origin of the maps of a new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There were none: new ones.
    New,
    /// Maps of an earlier process.
    TakenOver,
    /// Maps of an earlier process could not be used, for this reason: new ones.
    Replaced(String),
}

impl Definition {
    fn is_lru(&self) -> bool {
        self.map.map_type() == LRU
    }

    /// Returns the map without types of its key and value, which need the BTF of the object.
    fn plain(&self) -> aya_obj::Map {
        aya_obj::Map::new_from_params(
            self.map.map_type(),
            self.map.key_size(),
            self.map.value_size(),
            self.map.max_entries(),
            self.map.map_flags(),
        )
    }

    /// Returns the difference that makes a map unusable, if there is one. The size of an LRU map is none.
    fn conflict(&self, found: &MapInfo) -> Option<String> {
        let (what, wanted, found) = found.difference(&self.map, self.is_lru())?;
        Some(format!("map {} has {what} {found} instead of {wanted}", self.name))
    }
}

/// Maps that belong together: pinned in the directory, or used by one program.
#[derive(Debug, Default)]
struct Set {
    maps: BTreeMap<String, (OwnedFd, MapInfo)>,
}

impl Set {
    fn pinned(directory: &Directory, definitions: &[Definition]) -> Result<Self, LoadError> {
        let mut set = Self::default();
        for definition in definitions {
            if let Some(map) = directory.open_map(&definition.name)? {
                let info = sys::map_info(map.as_fd()).map_err(LoadError::Takeover)?;
                set.maps.insert(definition.name.clone(), (map, info));
            }
        }
        Ok(set)
    }

    /// Returns the maps of the programs behind the pinned links, one set for each program.
    fn live(directory: &Directory) -> Result<Vec<Self>, LoadError> {
        let mut programs = HashSet::new();
        let mut sets = Vec::new();
        for (_, link) in directory.links()? {
            let Some(link) = sys::link_info(link.as_fd()).map_err(LoadError::Takeover)? else { continue };
            if programs.insert(link.program_id) {
                // The program may have gone with its interface meanwhile.
                sets.extend(Self::of_program(link.program_id).ok());
            }
        }
        Ok(sets)
    }

    fn of_program(id: u32) -> std::io::Result<Self> {
        let program = sys::program_by_id(id)?;
        let mut set = Self::default();
        for id in sys::program_info(program.as_fd())?.map_ids {
            let map = sys::map_by_id(id)?;
            let info = sys::map_info(map.as_fd())?;
            set.maps.insert(info.name.clone(), (map, info));
        }
        Ok(set)
    }

    /// Returns why the maps cannot be used, if they cannot.
    fn conflict(&self, definitions: &[Definition]) -> Option<String> {
        let differs = |definition: &Definition| definition.conflict(&self.maps.get(&definition.name)?.1);
        if let Some(conflict) = definitions.iter().find_map(differs) {
            return Some(conflict);
        }
        match self.version() {
            Some(CONTRACT_VERSION) => None,
            Some(0) | None => Some("they were not completed".to_owned()),
            Some(version) => Some(format!("their version is {version} instead of {CONTRACT_VERSION}")),
        }
    }

    fn version(&self) -> Option<u32> {
        let map = self.maps.get(SETTINGS)?.0.try_clone().ok()?;
        let map = Map::from_map_data(MapData::from_fd(map).ok()?).ok()?;
        let settings: Array<MapData, Config> = map.try_into().ok()?;
        Some(settings.get(&0, 0).ok()?.version)
    }
}

/// A map whose entries go into another map: first while it is in use, again when it no longer is.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    map: OwnedFd,
    copied: Entries,
}

impl Source {
    /// Copies the entries that were made or changed since the first copy. An entry that the new program made or
    /// changed stays. Returns the number of copied entries.
    pub(crate) fn copy_again(&self, directory: &Directory) -> Result<usize, LoadError> {
        let Some(target) = directory.open_map(&self.name)? else { return Ok(0) };
        let now = Entries::read(self.map.as_fd()).map_err(LoadError::Takeover)?;
        now.write_changed(&self.copied, target.as_fd()).map_err(LoadError::Takeover)
    }
}

/// Prepares the directory: afterwards, every map in it can be used. Missing maps are created by the loader.
pub(super) fn prepare(directory: &Directory, definitions: &[Definition]) -> Result<Prepared, LoadError> {
    let mut sets = vec![Set::pinned(directory, definitions)?];
    sets.extend(Set::live(directory)?);
    let had_maps = !sets[0].maps.is_empty();
    let reason = sets[0].conflict(definitions);
    let is_pinned_usable = reason.is_none();
    sets.retain(|set| set.conflict(definitions).is_none());
    if !is_pinned_usable {
        unpin_all(directory, definitions)?;
    }
    let origin = match reason {
        _ if !sets.is_empty() => Origin::TakenOver,
        Some(reason) if had_maps => Origin::Replaced(reason),
        _ => Origin::New,
    };
    let mut prepared = Prepared { origin, next: Vec::new(), sources: Vec::new() };
    // The settings come last: their version says that all maps are there.
    let (settings, others): (Vec<_>, Vec<_>) =
        definitions.iter().partition(|definition| definition.name == SETTINGS);
    for definition in others.into_iter().chain(settings) {
        prepare_map(directory, definition, &mut sets, is_pinned_usable, &mut prepared)?;
    }
    Ok(prepared)
}

fn unpin_all(directory: &Directory, definitions: &[Definition]) -> Result<(), LoadError> {
    for definition in definitions.iter().filter(|definition| definition.name != SETTINGS) {
        directory.unpin_map(&definition.name)?;
    }
    Ok(directory.unpin_map(SETTINGS)?)
}

/// A map of a name.
struct Found {
    map: OwnedFd,
    info: MapInfo,
    is_pinned: bool,
    /// A program behind a link uses it.
    is_live: bool,
}

/// Chooses the map of a name from the usable sets, and copies the entries of the others into it.
fn prepare_map(
    directory: &Directory,
    definition: &Definition,
    sets: &mut [Set],
    is_first_pinned: bool,
    prepared: &mut Prepared,
) -> Result<(), LoadError> {
    let name = &definition.name;
    directory.unpin_next(name)?;
    let mut found: Vec<Found> = Vec::new();
    for (position, set) in sets.iter_mut().enumerate() {
        let Some((map, info)) = set.maps.remove(name) else { continue };
        let is_pinned = is_first_pinned && position == 0;
        match found.iter_mut().find(|other| other.info.is_same_map(&info)) {
            Some(other) => other.is_live = true,
            None => found.push(Found { map, info, is_pinned, is_live: !is_pinned }),
        }
    }
    let has_size = |found: &Found| found.info.max_entries == definition.map.max_entries();
    let (target, is_live) = match found.iter().position(has_size) {
        Some(index) => {
            let chosen = found.remove(index);
            if !chosen.is_pinned {
                directory.pin_map(chosen.map.as_fd(), name)?;
            }
            (chosen.map, chosen.is_live)
        }
        None if found.is_empty() => return Ok(()),
        None => {
            let map = MapData::create(definition.plain(), name, None)?;
            directory.pin_next(map.fd().as_fd(), name)?;
            prepared.next.push(name.clone());
            (map.fd().as_fd().try_clone_to_owned().map_err(LoadError::Takeover)?, false)
        }
    };
    if !definition.is_lru() {
        return Ok(());
    }
    for Found { map, .. } in found {
        let copied = Entries::read(map.as_fd()).map_err(LoadError::Takeover)?;
        if is_live {
            copied.write_missing(target.as_fd()).map_err(LoadError::Takeover)?;
        } else {
            copied.write(target.as_fd()).map_err(LoadError::Takeover)?;
        }
        prepared.sources.push(Source { name: name.clone(), map, copied });
    }
    Ok(())
}
