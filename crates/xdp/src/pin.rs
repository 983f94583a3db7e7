//! The pin directory: keeps the maps and links of the plane in a BPF file system while no process runs.
//!
//! One process at a time owns a directory. It holds a lock (flock) of the directory itself, which ends with the
//! process, however it ends.

use crate::sys;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, mkdirat, openat, statfs};
use rustix::io::Errno;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The usual place of the BPF file system.
pub const FILE_SYSTEM: &str = "/sys/fs/bpf";
/// Magic number of a BPF file system in statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Prefix of the names of pinned links; the name of the interface follows.
const LINK_PREFIX: &str = "link_";
/// Prefix of a map that is about to replace the map of the rest of its name.
const NEXT_PREFIX: &str = "next_";

/// Time to wait for the lock: a process that another one just started has a copy of it until it executes its program.
const LOCK_WAIT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No BPF file system is mounted there, and it cannot be mounted.
    #[error("no BPF file system at {path}: {error}; mount it: mount -t bpf bpf {path}")]
    NoFileSystem {
        /// The place of the file system.
        path: PathBuf,
        /// Failure of mounting it.
        error: io::Error,
    },
    /// The directory is in another file system.
    #[error("{0} is not in a BPF file system; choose a directory in {FILE_SYSTEM}")]
    OtherFileSystem(PathBuf),
    /// Another process owns the directory.
    #[error("{path} is in use by {owner}")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The process, as far as it can be found.
        owner: String,
    },
    /// A name that the BPF file system does not take.
    #[error("{0}: names in a BPF file system cannot contain a dot")]
    Dot(PathBuf),
    /// Any other failure.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        error: io::Error,
    },
}

impl PinError {
    pub(crate) fn io(path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self::Io { path: path.into(), error: error.into() }
    }
}

/// A pin directory that belongs to this process.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Carries the lock.
    opened: OwnedFd,
}

impl Directory {
    /// Creates the directory or opens it, and locks it. Mounts the BPF file system at its usual place if nothing
    /// is mounted there.
    ///
    /// # Errors
    /// No BPF file system, no permission, or another process owns the directory.
    pub fn open(path: &Path) -> Result<Self, PinError> {
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains('.')) {
            return Err(PinError::Dot(path.to_owned()));
        }
        require_file_system(path)?;
        match mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(PinError::io(path, error)),
        }
        Self::lock(path)
    }

    /// Opens and locks the directory if there is one.
    ///
    /// # Errors
    /// No permission, not in a BPF file system, or another process owns the directory.
    pub fn open_present(path: &Path) -> Result<Option<Self>, PinError> {
        match std::fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PinError::io(path, error)),
        }
        if !is_bpf(path) {
            return Err(PinError::OtherFileSystem(path.to_owned()));
        }
        Self::try_lock(path).map(Some)
    }

    /// Opens the directory of another process, to read it.
    pub(crate) fn without_lock(path: &Path) -> Result<Self, PinError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).map_err(|error| PinError::io(path, error))?;
        Ok(Self { path: path.to_owned(), opened })
    }

    fn lock(path: &Path) -> Result<Self, PinError> {
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match Self::try_lock(path) {
                Err(PinError::Busy { .. }) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
                locked => return locked,
            }
        }
    }

    fn try_lock(path: &Path) -> Result<Self, PinError> {
        let directory = Self::without_lock(path)?;
        match flock(&directory.opened, FlockOperation::NonBlockingLockExclusive) {
            // The owner before may have removed the directory meanwhile.
            Ok(()) if !directory.is_current() => Self::try_lock(path),
            Ok(()) => Ok(directory),
            Err(Errno::WOULDBLOCK) => Err(PinError::Busy { path: path.to_owned(), owner: owner(path) }),
            Err(error) => Err(PinError::io(path, error)),
        }
    }

    /// Returns whether the path still leads to the opened directory.
    fn is_current(&self) -> bool {
        let at_path = std::fs::metadata(&self.path).map(|found| found.ino());
        let opened = rustix::fs::fstat(&self.opened).map(|found| found.st_ino);
        at_path.is_ok_and(|inode| opened == Ok(inode))
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn map_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn link_path(&self, interface: &str) -> PathBuf {
        // A name of an interface can contain dots (VLANs), which the BPF file system refuses.
        self.path.join(format!("{LINK_PREFIX}{}", interface.replace('.', ":")))
    }

    /// Opens the map that is pinned under a name.
    pub(crate) fn open_map(&self, name: &str) -> Result<Option<OwnedFd>, PinError> {
        open(&self.map_path(name))
    }

    /// Pins a map under a name, in place of the map that was pinned there. The name is never without a map.
    pub(crate) fn pin_map(&self, map: BorrowedFd<'_>, name: &str) -> Result<(), PinError> {
        self.unpin_next(name)?;
        self.pin_next(map, name)?;
        self.replace_by_next(name)
    }

    /// Pins a map that will replace the map of a name.
    pub(crate) fn pin_next(&self, map: BorrowedFd<'_>, name: &str) -> Result<(), PinError> {
        let next = self.next_path(name);
        sys::pin(map, &next).map_err(|error| PinError::io(next, error))
    }

    /// Removes the next map of a name, if there is one.
    pub(crate) fn unpin_next(&self, name: &str) -> Result<(), PinError> {
        remove(&self.next_path(name))
    }

    /// Replaces the map of a name by its next map.
    pub(crate) fn replace_by_next(&self, name: &str) -> Result<(), PinError> {
        let path = self.map_path(name);
        std::fs::rename(self.next_path(name), &path).map_err(|error| PinError::io(path, error))
    }

    pub(crate) fn next_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{NEXT_PREFIX}{name}"))
    }

    /// Removes the map that is pinned under a name, if there is one.
    pub(crate) fn unpin_map(&self, name: &str) -> Result<(), PinError> {
        remove(&self.map_path(name))
    }

    /// Pins a link to an interface.
    pub(crate) fn pin_link(&self, link: BorrowedFd<'_>, interface: &str) -> Result<(), PinError> {
        let path = self.link_path(interface);
        remove(&path)?;
        sys::pin(link, &path).map_err(|error| PinError::io(path, error))
    }

    /// Removes a pinned link, if there is one. Its program is detached with the last descriptor of the link.
    pub(crate) fn unpin_link(&self, interface: &str) -> Result<(), PinError> {
        remove(&self.link_path(interface))
    }

    /// Returns the pinned links with the names of the interfaces that they were made for.
    pub(crate) fn links(&self) -> Result<Vec<(String, OwnedFd)>, PinError> {
        let mut links = Vec::new();
        for name in self.names()? {
            let Some(interface) = name.strip_prefix(LINK_PREFIX) else { continue };
            if let Some(link) = open(&self.path.join(&name))? {
                links.push((interface.replace(':', "."), link));
            }
        }
        Ok(links)
    }

    /// Returns the names of everything in the directory, sorted.
    fn names(&self) -> Result<Vec<String>, PinError> {
        let failed = |error| PinError::io(&self.path, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Returns the names of the pinned maps, sorted.
    pub(crate) fn map_names(&self) -> Result<Vec<String>, PinError> {
        let is_map = |name: &String| !name.starts_with(LINK_PREFIX) && !name.starts_with(NEXT_PREFIX);
        Ok(self.names()?.into_iter().filter(is_map).collect())
    }

    /// Removes everything that is pinned, and the directory.
    pub(crate) fn remove(self) -> Result<(), PinError> {
        for name in self.names()? {
            remove(&self.path.join(name))?;
        }
        std::fs::remove_dir(&self.path).map_err(|error| PinError::io(&self.path, error))
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>, PinError> {
    match sys::open_pin(path) {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PinError::io(path, error)),
    }
}

fn remove(path: &Path) -> Result<(), PinError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io(path, error)),
        _ => Ok(()),
    }
}

/// Returns whether a BPF file system is mounted at its usual place.
pub(crate) fn is_mounted() -> bool {
    is_bpf(Path::new(FILE_SYSTEM))
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|magic| magic == BPF_FS_MAGIC))
}

/// Checks that the parent of a pin directory is in a BPF file system, and mounts one at the usual place.
fn require_file_system(path: &Path) -> Result<(), PinError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if is_bpf(parent) {
        return Ok(());
    }
    if parent != Path::new(FILE_SYSTEM) {
        return Err(PinError::OtherFileSystem(path.to_owned()));
    }
    let mounted = rustix::mount::mount("bpf", FILE_SYSTEM, "bpf", rustix::mount::MountFlags::empty(), None);
    mounted.map_err(|error| PinError::NoFileSystem { path: FILE_SYSTEM.into(), error: error.into() })
}

/// Describes the process that holds the lock of a directory, from /proc/locks.
fn owner(path: &Path) -> String {
    let inode = std::fs::metadata(path).map(|found| found.ino()).unwrap_or_default();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let suffix = format!(":{inode}");
    let pid = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_this = words.get(1) == Some(&"FLOCK") && words.get(5)?.ends_with(&suffix);
        is_this.then(|| words[4].to_owned())
    });
    let Some(pid) = pid else { return "another process".to_owned() };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim_end())
}
