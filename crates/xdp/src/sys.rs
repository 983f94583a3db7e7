//! The commands of bpf(2) that aya lacks or hides: objects behind pins and ids, links, batches of entries.
//!
//! Each function is one system call and returns its error unchanged.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_GET_FD_BY_ID: u32 = 30;
const LINK_GET_NEXT_ID: u32 = 31;
const LINK_DETACH: u32 = 34;

const ATTACH_TYPE_XDP: u32 = 37;
const LINK_TYPE_XDP: u32 = 6;
/// Maximum number of maps that are read of a program.
const MAPS_MAX: usize = 64;

/// Create an entry only if there is none (`BPF_NOEXIST`).
const NO_EXIST: u64 = 1;

/// Runs a command of bpf(2) with its part of `union bpf_attr`. The kernel takes missing fields as zero.
fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: `attributes` is as long as the third argument says. Addresses in it belong to borrowed buffers of
    // the caller, which are as long as the command needs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf_fd<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the command returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
}

fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>().expose_provenance() as u64
}

fn path_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[repr(C)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens the object that is pinned at a path.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    bpf_fd(OBJ_GET, &mut ObjectAttributes { path: address(path.as_ptr()), fd: 0, flags: 0 })
}

/// Pins an object at a path in a BPF file system.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let fd = raw(object);
    bpf(OBJ_PIN, &mut ObjectAttributes { path: address(path.as_ptr()), fd, flags: 0 })?;
    Ok(())
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("descriptors are not negative")
}

#[repr(C)]
#[derive(Default)]
struct IdAttributes {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a map by its id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(MAP_GET_FD_BY_ID, &mut IdAttributes { id, ..IdAttributes::default() })
}

/// Opens a program by its id.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(PROG_GET_FD_BY_ID, &mut IdAttributes { id, ..IdAttributes::default() })
}

/// Opens a link by its id.
pub(crate) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(LINK_GET_FD_BY_ID, &mut IdAttributes { id, ..IdAttributes::default() })
}

/// Returns the ids of all links of the system.
pub(crate) fn link_ids() -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    let mut attributes = IdAttributes::default();
    loop {
        match bpf(LINK_GET_NEXT_ID, &mut attributes) {
            Ok(_) => ids.push(attributes.next_id),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(ids),
            Err(error) => return Err(error),
        }
        attributes.id = attributes.next_id;
    }
}

#[repr(C)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).expect("a small struct");
    let info = address(std::ptr::from_mut(info).cast_const());
    bpf(OBJ_GET_INFO_BY_FD, &mut InfoAttributes { fd: raw(object), length, info })?;
    Ok(())
}

fn name_of(bytes: [u8; 16]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// Definition and identity of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    id: u32,
    kind: u32,
    key_size: u32,
    value_size: u32,
    pub max_entries: u32,
    flags: u32,
    /// The first 15 bytes of its name.
    pub name: String,
}

impl MapInfo {
    /// Returns the bytes of a key and of a value.
    pub(crate) fn entry_size(&self) -> (usize, usize) {
        (self.key_size as usize, self.value_size as usize)
    }

    /// Returns true if both describe one map of the kernel.
    pub(crate) fn is_same_map(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Returns the first property that differs from a definition, with its wanted and its present value. If
    /// `has_any_size` is true, the number of entries can differ.
    pub(crate) fn difference(
        &self,
        wanted: &aya_obj::Map,
        has_any_size: bool,
    ) -> Option<(&'static str, u32, u32)> {
        let size = if has_any_size { self.max_entries } else { wanted.max_entries() };
        let properties = [
            ("type", wanted.map_type(), self.kind),
            ("key size", wanted.key_size(), self.key_size),
            ("value size", wanted.value_size(), self.value_size),
            ("flags", wanted.map_flags(), self.flags),
            ("size", size, self.max_entries),
        ];
        properties.into_iter().find(|(_, wanted, present)| wanted != present)
    }
}

/// Reads the definition of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut raw = RawMapInfo::default();
    info(map, &mut raw)?;
    Ok(MapInfo {
        id: raw.id,
        kind: raw.kind,
        key_size: raw.key_size,
        value_size: raw.value_size,
        max_entries: raw.max_entries,
        flags: raw.flags,
        name: name_of(raw.name),
    })
}

#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Identity of a program and the maps that it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    pub id: u32,
    tag: [u8; 8],
    uid: u32,
    /// The first 15 bytes of its name.
    pub name: String,
    pub map_ids: Vec<u32>,
}

impl ProgramInfo {
    /// Returns the tag as text.
    pub(crate) fn tag_text(&self) -> String {
        self.tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for ProgramInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, id, uid, .. } = self;
        write!(f, "`{name}`, id {id}, tag {}, loaded by user {uid}", self.tag_text())
    }
}

/// Reads the identity of a program.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut ids = [0u32; MAPS_MAX];
    let mut raw = RawProgramInfo {
        map_count: u32::try_from(MAPS_MAX).expect("a small number"),
        map_ids: address(ids.as_mut_ptr().cast_const()),
        ..RawProgramInfo::default()
    };
    info(program, &mut raw)?;
    let count = ids.len().min(raw.map_count as usize);
    Ok(ProgramInfo {
        id: raw.id,
        tag: raw.tag,
        uid: raw.uid,
        name: name_of(raw.name),
        map_ids: ids[..count].to_vec(),
    })
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    reserved: u32,
    ifindex: u32,
    reserved_end: u32,
}

/// An XDP link: the program that it attaches, and to which interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// 0 if the interface is gone.
    pub ifindex: u32,
}

/// Reads an XDP link. Returns `None` for a link of another kind.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    let mut raw = RawLinkInfo::default();
    info(link, &mut raw)?;
    let found = LinkInfo { id: raw.id, program_id: raw.program_id, ifindex: raw.ifindex };
    Ok((raw.kind == LINK_TYPE_XDP).then_some(found))
}

#[repr(C)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to an interface. The program stays as long as the link is open or pinned.
pub(crate) fn create_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let program = raw(program);
    bpf_fd(LINK_CREATE, &mut LinkAttributes { program, ifindex, attach_type: ATTACH_TYPE_XDP, flags })
}

#[repr(C)]
struct LinkUpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces the program behind a link, between two packets.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (raw(link), raw(program));
    bpf(LINK_UPDATE, &mut LinkUpdateAttributes { link, program, flags: 0, old_program: 0 })?;
    Ok(())
}

/// Takes the program of a link away from its interface, while the link stays.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut raw(link))?;
    Ok(())
}

#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Result of reading a batch.
#[derive(Debug)]
pub(crate) enum Batch {
    /// Entries were read; `true` at the end of the map.
    Read(usize, bool),
    /// The buffers are too small for a bucket of the map (`ENOSPC`): nothing was read.
    NoSpace,
}

/// Position in a map that is read in batches.
#[derive(Debug, Default)]
pub(crate) struct Position(Option<u64>);

/// Reads entries of a hash map from a position on, at most as many as fit into both buffers.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    position: &mut Position,
    keys: &mut [u8],
    values: &mut [u8],
    count: usize,
) -> io::Result<Batch> {
    let mut next = [0u64; 8];
    let before = position.0;
    let mut attributes = BatchAttributes {
        in_batch: before.as_ref().map_or(0, |before| address(std::ptr::from_ref(before))),
        out_batch: address(next.as_mut_ptr().cast_const()),
        keys: address(keys.as_mut_ptr().cast_const()),
        values: address(values.as_mut_ptr().cast_const()),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(_) => {
            position.0 = Some(next[0]);
            Ok(Batch::Read(attributes.count as usize, false))
        }
        // The entries before the end are in the buffers.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(Batch::Read(attributes.count as usize, true))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(Batch::NoSpace),
        Err(error) => Err(error),
    }
}

/// Writes entries, over present ones. Returns the number of written entries, and the error of the first entry that
/// was refused.
pub(crate) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: usize,
) -> (usize, Option<io::Error>) {
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(MAP_UPDATE_BATCH, &mut attributes) {
        Ok(_) => (count, None),
        Err(error) => {
            // A call that fails before the first entry leaves the number as it was.
            let done = attributes.count as usize;
            (if done == count { 0 } else { done }, Some(error))
        }
    }
}

#[repr(C)]
struct EntryAttributes {
    fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes an entry, unless its key is there. Returns whether it was written.
pub(crate) fn insert_missing(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    let flags = NO_EXIST;
    let (key, value) = (address(key.as_ptr()), address(value.as_ptr()));
    match bpf(MAP_UPDATE_ELEM, &mut EntryAttributes { fd: raw(map), reserved: 0, key, value, flags }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the value of a key. Returns whether the key is there.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let (key, value) = (address(key.as_ptr()), address(value.as_mut_ptr().cast_const()));
    match bpf(MAP_LOOKUP_ELEM, &mut EntryAttributes { fd: raw(map), reserved: 0, key, value, flags: 0 }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
