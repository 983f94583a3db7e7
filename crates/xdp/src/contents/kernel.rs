//! Writes into the maps of the kernel, and reads what an earlier process left in them.

use super::{Found, Kind, MapWriter, QuicName, Write};
use crate::contract::{
    BLOCK_SLOTS, BUCKET_ENTRIES, Block, BucketV4, BucketV6, ENDPOINT_REAL, Identity as Words, QuicKey,
    Returns, SHARED_MAX, SlotAndId,
};
use crate::defence::{DarkAddresses, Defences};
use crate::endpoints::{EndpointKey, EndpointValue, Endpoints, Family, Position, words_v4, words_v6};
use crate::maps::Maps;
use crate::memory::SharedArray;
use crate::slots::Identity;
use crate::sys;
use aya::maps::{Array, HashMap as KernelMap, Map, MapData, MapError};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_F_INNER_MAP`: tables of different sizes fit into one array of maps.
const INNER_MAP: u32 = 0x1000;

impl Kind {
    /// Returns the number of the identity of a slot.
    fn identity_at(self, slot: u32) -> usize {
        let before = match self {
            Self::Server => 0,
            Self::Service => Self::Server.size(),
            Self::Vip => Self::Server.size() + Self::Service.size(),
            Self::Pool => Self::Server.size() + Self::Service.size() + Self::Vip.size(),
        };
        (before + slot) as usize
    }
}

fn failed(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// Returns the words of an entry of a shared array, to be read and written atomically.
fn words<T: aya::Pod>(array: &mut SharedArray<T>, index: usize) -> &[AtomicU64] {
    let count = size_of::<T>() / size_of::<u64>();
    let first = array.entry(index).cast::<AtomicU64>();
    // SAFETY: the entry is in memory that lives as long as the array, its size is a multiple of 8 and its address, too.
    unsafe { std::slice::from_raw_parts(first.as_ptr(), count) }
}

/// The maps of the kernel, as the writer of contents uses them.
#[derive(Debug)]
pub(crate) struct Kernel {
    maps: Maps,
    defences: Defences,
    quic: KernelMap<MapData, QuicKey, SlotAndId>,
}

impl Kernel {
    /// Takes the maps of a loaded program.
    pub(crate) fn new(mut maps: Maps) -> Result<Self, MapError> {
        let taken =
            |map: Option<Map>| map.ok_or_else(|| MapError::InvalidName { name: "quic_servers".into() });
        let quic = taken(maps.take_map("quic_servers"))?.try_into()?;
        let mut others: HashMap<&str, Option<Map>> = HashMap::new();
        for name in ["prefixes_v4", "prefixes_v6", "tarpits"] {
            others.insert(name, maps.take_map(name));
        }
        let defences = Defences::take(|name| others.get_mut(name)?.take(), &maps.defences)?;
        Ok(Self { maps, defences, quic })
    }

    /// Returns the maps.
    pub(crate) fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Writes the dark addresses.
    pub(crate) fn write_dark(&mut self, dark: Option<DarkAddresses<'_>>) -> Result<(), MapError> {
        self.defences.write_dark(&mut self.maps.defences, &mut self.maps.settings, dark)
    }

    /// Reads the contents that an earlier process left.
    pub(crate) fn found(&mut self) -> Result<Found, MapError> {
        let name = |(key, server): (QuicKey, SlotAndId)| ((key.service, key.length, key.id), server);
        let quic = self.quic.iter().map(|entry| entry.map(name)).collect::<Result<_, _>>()?;
        Ok(Found { quic, ..self.maps.found()? })
    }
}

fn quic_key(&(service, length, id): &QuicName) -> QuicKey {
    QuicKey { service, length, id }
}

impl MapWriter for Kernel {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        match write {
            Write::Defence(slot, defence) => {
                let written = defence.written();
                self.defences.write(&mut self.maps.defences, *slot, &written).map_err(failed)
            }
            Write::Quic(name, Some(server)) => self.quic.insert(quic_key(name), server, 0).map_err(failed),
            Write::Quic(name, None) => self.quic.remove(&quic_key(name)).map_err(failed),
            write => self.maps.write(write),
        }
    }
}

impl MapWriter for Maps {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        match write {
            Write::Defence(..) | Write::Quic(..) => {}
            Write::NextId(id) => store_identity(&mut self.identities, 0, [u64::from(*id), 0]),
            Write::Identity(kind, slot, identity) => {
                let words = identity.map_or([0; 2], Identity::words);
                store_identity(&mut self.identities, kind.identity_at(*slot), words);
            }
            Write::Service(slot, service) => self.services.set(*slot, service, 0).map_err(failed)?,
            Write::Vip(slot, vip) => self.vips.set(*slot, vip, 0).map_err(failed)?,
            Write::Server(slot, server) => self.servers.set(*slot, server, 0).map_err(failed)?,
            Write::Returns(position, entry) => self.returning.set(*position, entry, 0).map_err(failed)?,
            Write::Table(pool, slots) => {
                self.tables.set(*pool, &table_of(slots)?, 0).map_err(failed)?;
            }
            Write::KeepTable(pool) => {
                let present = self.tables.get(pool, 0).map_err(failed)?;
                self.tables_before.set(*pool, &present, 0).map_err(failed)?;
            }
            Write::NoTable(pool) => self.tables.set(*pool, &table_of(&[])?, 0).map_err(failed)?,
            Write::NoTableBefore(pool) => {
                self.tables_before.set(*pool, &table_of(&[])?, 0).map_err(failed)?;
            }
            Write::NewEndpoint(key, position, value) => self.store_endpoint(key, *position, *value, true),
            Write::Endpoint(key, position, value) => self.store_endpoint(key, *position, *value, false),
            Write::NoEndpoint(key, position) => self.clear_endpoint(key, *position),
        }
        Ok(())
    }
}

fn store_identity(identities: &mut SharedArray<Words>, index: usize, [high, low]: [u64; 2]) {
    let words = words(identities, index);
    words[0].store(high, Ordering::Relaxed);
    words[1].store(low, Ordering::Release);
}

/// Creates a table of choices.
fn table_of(slots: &[u32]) -> io::Result<MapData> {
    let count = u32::try_from(slots.len()).map_err(io::Error::other)?;
    let all: Vec<u32> = [count].into_iter().chain(slots.iter().copied()).collect();
    let blocks = u32::try_from(all.len().div_ceil(BLOCK_SLOTS)).map_err(io::Error::other)?;
    let (key, value) = (size_of::<u32>() as u32, size_of::<Block>() as u32);
    let definition = aya_obj::Map::new_from_params(ARRAY, key, value, blocks, INNER_MAP);
    let map = MapData::create(definition, "choices", None).map_err(failed)?;
    let keys: Vec<u8> = (0..blocks).flat_map(u32::to_ne_bytes).collect();
    let mut values: Vec<u8> = all.into_iter().flat_map(u32::to_ne_bytes).collect();
    values.resize(blocks as usize * size_of::<Block>(), 0);
    match sys::update_batch(map.fd().as_fd(), &keys, &values, blocks as usize) {
        (_, None) => Ok(map),
        (_, Some(error)) => Err(error),
    }
}

/// Reads a table of choices.
fn slots_of(table: MapData) -> Result<Arc<[u32]>, MapError> {
    let table: Array<MapData, Block> = Map::Array(table).try_into()?;
    let mut all = Vec::new();
    for block in 0..table.len() {
        all.extend(table.get(&block, 0)?.slots);
    }
    let count = all.first().map_or(0, |count| *count as usize);
    Ok(all.into_iter().skip(1).take(count).collect())
}

impl Maps {
    fn store_endpoint(&mut self, key: &EndpointKey, position: Position, value: EndpointValue, is_new: bool) {
        let (index, entry) = (position.index() / BUCKET_ENTRIES, position.index() % BUCKET_ENTRIES);
        match key.family() {
            Family::V4 => {
                let [first, second] = words_v4(&key.entry_v4(value));
                let words = &words(&mut self.endpoints_v4, index)[entry * 2..][..2];
                words[1].store(second, Ordering::Relaxed);
                if is_new {
                    words[0].store(first, Ordering::Release);
                }
            }
            Family::V6 => {
                let [first, second, third, fourth] = words_v6(&key.entry_v6(value));
                let words = &words(&mut self.endpoints_v6, index)[entry * 4..][..4];
                words[3].store(fourth, Ordering::Relaxed);
                if is_new {
                    words[0].store(first, Ordering::Relaxed);
                    words[1].store(second, Ordering::Relaxed);
                }
                words[2].store(third, Ordering::Release);
            }
        }
    }

    /// Clears the word with the kind, which makes the entry free.
    fn clear_endpoint(&mut self, key: &EndpointKey, position: Position) {
        let (index, entry) = (position.index() / BUCKET_ENTRIES, position.index() % BUCKET_ENTRIES);
        match key.family() {
            Family::V4 => words(&mut self.endpoints_v4, index)[entry * 2].store(0, Ordering::Release),
            Family::V6 => words(&mut self.endpoints_v6, index)[entry * 4 + 2].store(0, Ordering::Release),
        }
    }

    fn found(&mut self) -> Result<Found, MapError> {
        let mut found = Found { next_id: self.identities.read(0).words[0] as u32, ..Found::default() };
        for kind in Kind::ALL {
            for slot in 1..kind.size() {
                let words = self.identities.read(kind.identity_at(slot)).words;
                let Some(identity) = Identity::from_words(words) else { continue };
                found.identities.push((kind, slot, identity));
                match kind {
                    Kind::Server => keep(&mut found.servers, slot, self.servers.get(&slot, 0)?),
                    Kind::Service => keep(&mut found.services, slot, self.services.get(&slot, 0)?),
                    Kind::Vip => keep(&mut found.vips, slot, self.vips.get(&slot, 0)?),
                    Kind::Pool => {
                        if let Ok(table) = self.tables.get(&slot, 0) {
                            found.tables.insert(slot, slots_of(table)?);
                        }
                        if self.tables_before.get(&slot, 0).is_ok() {
                            found.tables_before.insert(slot);
                        }
                    }
                }
            }
        }
        found.endpoints = self.found_endpoints();
        let reals: Vec<(EndpointKey, u32)> = found
            .endpoints
            .iter()
            .filter(|(key, _)| key.kind == ENDPOINT_REAL)
            .map(|(key, [first, _])| (*key, first))
            .collect();
        for (key, first) in reals {
            found.chains.insert(key, self.chain(first)?);
        }
        Ok(found)
    }

    fn chain(&self, first: u32) -> Result<Vec<(u32, Returns)>, MapError> {
        let (mut chain, mut position) = (Vec::new(), first);
        while position != 0 && chain.len() < SHARED_MAX as usize {
            let entry = self.returning.get(&position, 0)?;
            chain.push((position, entry));
            position = entry.next;
        }
        Ok(chain)
    }

    fn found_endpoints(&self) -> Endpoints {
        let v4 = (0..self.endpoints_v4.len()).flat_map(|bucket| {
            let BucketV4 { entries } = self.endpoints_v4.read(bucket);
            entries.into_iter().enumerate().map(move |(at, entry)| (bucket * BUCKET_ENTRIES + at, entry))
        });
        let v6 = (0..self.endpoints_v6.len()).flat_map(|bucket| {
            let BucketV6 { entries } = self.endpoints_v6.read(bucket);
            entries.into_iter().enumerate().map(move |(at, entry)| (bucket * BUCKET_ENTRIES + at, entry))
        });
        Endpoints::taken_over(v4, v6)
    }
}

/// Keeps the contents of a slot that is in use.
fn keep<T: Default + PartialEq>(found: &mut HashMap<u32, T>, slot: u32, value: T) {
    if value != T::default() {
        found.insert(slot, value);
    }
}
