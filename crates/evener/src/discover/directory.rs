//! Directories of sockets, each of which is a server.

use super::{Listed, Scan};
use evener_core::Target;
use evener_core::address::UNIX_PATH_BYTES_MAX;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Maximum number of servers of a directory: the first sockets by name. Further sockets are ignored.
const SOCKETS_MAX: usize = 1024;
/// Maximum number of entries of a directory.
const ENTRIES_MAX: usize = 65_536;

/// Scans a directory. A missing directory has no sockets; the sockets of an unreadable directory are unknown.
/// May block.
pub(super) fn read(directory: &Path) -> Scan {
    match sockets_of(directory) {
        Ok(sockets) => {
            let (sockets, problem) = limit(sockets);
            let server = |path| Listed::at(Target::Unix(path));
            Scan::listed(sockets.into_iter().map(server).collect()).with_problem(problem)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Scan::listed(Vec::new()).with_problem(Some("the directory does not exist".into()))
        }
        Err(error) => Scan::Failed(error.to_string()),
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
fn limit(mut sockets: BTreeSet<PathBuf>) -> (BTreeSet<PathBuf>, Option<String>) {
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
    (sockets, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn paths(scan: &Scan) -> Option<BTreeSet<PathBuf>> {
        let path = |server: &Listed| match &server.target {
            Target::Unix(path) => path.clone(),
            Target::Ip(address) => panic!("expected a path, got {address}"),
        };
        Some(scan.servers()?.iter().map(path).collect())
    }

    #[test]
    fn a_scan_finds_sockets_and_links_to_sockets() {
        let directory = std::env::temp_dir().join(format!("evener-discover-{}", std::process::id()));
        let missing = read(&directory);
        assert_eq!(missing.problem(), Some("the directory does not exist"));
        assert_eq!(paths(&missing), Some(BTreeSet::new()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("5300"), "not a socket").unwrap();
        let _socket = UnixListener::bind(directory.join("5301")).unwrap();
        std::os::unix::fs::symlink("5301", directory.join("link")).unwrap();
        std::os::unix::fs::symlink("5302", directory.join("to-nothing")).unwrap();
        let found = read(&directory);
        let expected = BTreeSet::from([directory.join("5301"), directory.join("link")]);
        assert_eq!((paths(&found), found.problem()), (Some(expected), None));
        let file = read(&directory.join("5300"));
        assert!(
            file.servers().is_none() && file.problem().is_some(),
            "a file is not a directory, so its sockets are unknown: {file:?}"
        );
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn long_paths_and_excess_sockets_are_ignored_and_reported() {
        let check = |paths: &mut dyn Iterator<Item = String>, found: usize, expected: Option<&str>| {
            let (sockets, problem) = limit(paths.map(PathBuf::from).collect());
            assert_eq!(sockets.len(), found);
            assert_eq!(problem.is_some(), expected.is_some());
            assert!(problem.unwrap_or_default().contains(expected.unwrap_or_default()));
        };
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        check(&mut [path(107)].into_iter(), 1, None);
        check(&mut [path(107), path(108)].into_iter(), 1, Some("the paths of 1 sockets are longer"));
        check(&mut (0..1024).map(|n| format!("/{n}")), 1024, None);
        check(&mut (0..1026).map(|n| format!("/{n}")), 1024, Some("2 sockets more than 1024"));
    }
}
