//! Discovery of sockets in directories, each of which is a server: scans the directories and watches them for
//! changes. The supervisor decides which servers a pool gets; this module does not open connections.

use evener_core::address::UNIX_PATH_BYTES_MAX;
use evener_core::spec::{DiscoverSpec, Spec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

/// Maximum number of servers of a directory: the first sockets by name. Further sockets are ignored.
pub(crate) const SOCKETS_MAX: usize = 1024;
/// Maximum number of entries of a directory.
const ENTRIES_MAX: usize = 65_536;
/// Changes within this time count as one. A socket exists a moment before its process listens.
const SETTLE: Duration = Duration::from_millis(50);

/// Result of a scan of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Paths of the sockets; `None` if the directory cannot be read, so that earlier sockets may still exist.
    sockets: Option<BTreeSet<PathBuf>>,
    /// Problem for the operator.
    problem: Option<String>,
}

impl Scan {
    /// Creates the result of a directory that was read.
    pub(crate) fn found(sockets: BTreeSet<PathBuf>, problem: Option<String>) -> Self {
        Self { sockets: Some(sockets), problem }
    }

    /// Creates the result of a directory that cannot be read.
    pub(crate) fn unreadable(problem: String) -> Self {
        Self { sockets: None, problem: Some(problem) }
    }

    /// Returns the paths of the sockets, sorted. There are none if the directory has never been read.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &PathBuf> {
        self.sockets.iter().flatten()
    }

    /// Returns the problem for the operator, if any.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Replaces the result by a newer result. If the directory could not be read, the known sockets stay.
    pub(crate) fn update(&mut self, newer: Self) {
        self.sockets = newer.sockets.or(self.sockets.take());
        self.problem = newer.problem;
    }
}

/// Results of scans, by directory.
pub(crate) type Found = BTreeMap<PathBuf, Scan>;

/// Returns the directories that a configuration needs.
pub(crate) fn directories(spec: &Spec) -> BTreeSet<PathBuf> {
    let wanted = spec.pools.iter().flat_map(|pool| &pool.discover);
    wanted.map(|DiscoverSpec::Mname { directory }| directory.clone()).collect()
}

/// Scans directories. May block.
pub(crate) fn scan(directories: &BTreeSet<PathBuf>) -> Found {
    directories.iter().map(|directory| (directory.clone(), scan_directory(directory))).collect()
}

/// Scans the directories of a configuration before it is applied.
pub(crate) async fn find(spec: &Spec) -> Found {
    let wanted = directories(spec);
    if wanted.is_empty() {
        return Found::new();
    }
    tokio::task::spawn_blocking(move || scan(&wanted)).await.unwrap_or_default()
}

fn scan_directory(directory: &Path) -> Scan {
    match sockets_of(directory) {
        Ok(sockets) => limit(sockets),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Scan::found(BTreeSet::new(), Some("the directory does not exist".into()))
        }
        Err(error) => Scan::unreadable(error.to_string()),
    }
}

fn sockets_of(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut sockets = BTreeSet::new();
    for (number, entry) in std::fs::read_dir(directory)?.enumerate() {
        if number == ENTRIES_MAX {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let path = entry?.path();
        // Entries that were removed after they were listed are skipped. Links are followed.
        match std::fs::metadata(&path) {
            Ok(meta) if meta.file_type().is_socket() => drop(sockets.insert(path)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // An entry that may not be inspected could be a socket, so the scan fails. Any other error, such as
            // a cycle of links, means that the entry is not a socket.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(_) => {}
        }
    }
    Ok(sockets)
}

/// Removes paths that are too long to connect to, and sockets beyond the maximum.
fn limit(mut sockets: BTreeSet<PathBuf>) -> Scan {
    let all = sockets.len();
    sockets.retain(|path| path.as_os_str().as_bytes().len() <= UNIX_PATH_BYTES_MAX);
    let long = all - sockets.len();
    let many = sockets.len().saturating_sub(SOCKETS_MAX);
    let sockets = sockets.into_iter().take(SOCKETS_MAX).collect();
    let problem = match (long, many) {
        (0, 0) => None,
        (0, many) => Some(format!("it has {many} sockets more than {SOCKETS_MAX}: they are ignored")),
        (long, _) => Some(format!(
            "the paths of {long} sockets are longer than {UNIX_PATH_BYTES_MAX} bytes: shorten them"
        )),
    };
    Scan::found(sockets, problem)
}

/// Watches directories for changes (inotify) until this value is dropped. If the system has no more watches,
/// scans still find changes.
#[derive(Debug)]
pub(crate) struct Watcher {
    descriptor: Arc<OwnedFd>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Starts a watcher that calls `changed` after changes, until `changed` returns `false`.
    pub(crate) fn start<F>(changed: impl Fn() -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = bool> + Send,
    {
        let descriptor = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        // The descriptor can be read like a pipe, and tokio requires nothing else.
        let events = Receiver::from_owned_fd_unchecked(descriptor.try_clone()?)?;
        let task = tokio::spawn(async move { drop(receive_events(&events, changed).await) });
        Ok(Self { descriptor, task: task.abort_handle() })
    }

    /// Returns a function that adds these directories to the watch, and returns true if all of them could be
    /// added.
    pub(crate) fn watch(&self, directories: &BTreeSet<PathBuf>) -> impl Fn() -> bool + Send + 'static {
        let (descriptor, directories) = (Arc::clone(&self.descriptor), directories.clone());
        let wanted = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        move || {
            // A missing directory is tried again at the next scan.
            let failed = directories
                .iter()
                .filter(|at| inotify::add_watch(&descriptor, at.as_path(), wanted).is_err());
            failed.count() == 0
        }
    }
}

async fn receive_events<F>(events: &Receiver, changed: impl Fn() -> F) -> io::Result<()>
where
    F: Future<Output = bool>,
{
    let mut buffer = [0; 4096];
    loop {
        events.readable().await?;
        tokio::time::sleep(SETTLE).await;
        // The kind of change does not matter, so all events are read and ignored.
        while events.try_read(&mut buffer).is_ok_and(|read| read > 0) {}
        if !changed().await {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_scan_finds_sockets_and_links_to_sockets() {
        let directory = std::env::temp_dir().join(format!("evener-discover-{}", std::process::id()));
        let scan_one =
            |directory: &Path| scan(&BTreeSet::from([directory.to_owned()])).remove(directory).unwrap();
        assert_eq!(scan_one(&directory).problem.as_deref(), Some("the directory does not exist"));
        assert_eq!(scan_one(&directory).sockets, Some(BTreeSet::new()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("5300"), "not a socket").unwrap();
        let _socket = UnixListener::bind(directory.join("5301")).unwrap();
        std::os::unix::fs::symlink("5301", directory.join("link")).unwrap();
        std::os::unix::fs::symlink("5302", directory.join("to-nothing")).unwrap();
        let found = scan_one(&directory);
        let expected = BTreeSet::from([directory.join("5301"), directory.join("link")]);
        assert_eq!((found.sockets, found.problem), (Some(expected), None));
        let file = scan_one(&directory.join("5300"));
        assert!(
            file.sockets.is_none() && file.problem.is_some(),
            "a file is not a directory, so its sockets are unknown: {file:?}"
        );
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn long_paths_and_excess_sockets_are_ignored_and_reported() {
        let check = |paths: &mut dyn Iterator<Item = String>, found: usize, problem: Option<&str>| {
            let scan = limit(paths.map(PathBuf::from).collect());
            assert_eq!(scan.sockets.map(|sockets| sockets.len()), Some(found));
            assert_eq!(scan.problem.is_some(), problem.is_some());
            assert!(scan.problem.unwrap_or_default().contains(problem.unwrap_or_default()));
        };
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        check(&mut [path(107)].into_iter(), 1, None);
        check(&mut [path(107), path(108)].into_iter(), 1, Some("the paths of 1 sockets are longer"));
        check(&mut (0..1024).map(|n| format!("/{n}")), 1024, None);
        check(&mut (0..1026).map(|n| format!("/{n}")), 1024, Some("2 sockets more than 1024"));
    }
}
