//! Files of unix sockets. Left-over files are removed, this instance's files are removed at the end, and
//! files of other programs are never changed.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Maximum number of files of a directory that are checked for sockets of instances that drained.
const LEFT_OVER_MAX: usize = 1000;

/// Reason why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathInUse {
    #[error("a file that is not a socket exists there")]
    OtherFile,
    #[error("it is in use: another program listens there")]
    Listening,
    #[error("the left-over socket cannot be removed: {0}")]
    NotRemoved(io::Error),
}

/// Connects to a socket without waiting. If the queue of the listener is full, the error is `WouldBlock`.
pub(crate) fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&client, &SocketAddrUnix::new(path)?)?;
    Ok(client)
}

/// Returns true if this user may connect to the socket and a process listens on it.
pub(crate) fn is_live(path: &Path) -> bool {
    connect_now(path).map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true)
}

/// Removes the file of a socket on which no process listens any more.
pub(crate) fn remove_left_over(path: &Path) -> Result<(), PathInUse> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(PathInUse::OtherFile);
    }
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if !connect_now(path).is_err_and(refused) {
        return Err(PathInUse::Listening);
    }
    fs::remove_file(path).map_err(PathInUse::NotRemoved)
}

/// The file of a socket of this instance. It is removed when this value is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, because another instance may have put its own file at the path since.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Records the file of a socket that has just been bound.
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    /// Records the file of a socket that another process may still serve: it is not removed before [`Self::claim`].
    pub(crate) fn lent(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: None }
    }

    /// Takes the file: it is removed with this value.
    pub(crate) fn claim(&mut self) {
        self.identity = identity(&self.path);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Frees the path for another program. The socket continues under [`draining_name`].
    ///
    /// # Errors
    /// The directory is not writable, or the file was removed or replaced.
    pub(crate) fn make_room(&mut self) -> io::Result<()> {
        if self.identity.is_none() || identity(&self.path) != self.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let renamed = draining_name(&self.path, std::process::id());
        fs::rename(&self.path, &renamed)?;
        self.path = renamed;
        Ok(())
    }

    /// Leaves the file to another process that listens on its socket: it is not removed.
    pub(crate) fn leave(&mut self) {
        (self.path, self.identity) = (PathBuf::new(), None);
    }

    /// Leaves the file to the next instance, which listens on its socket, and creates a socket of this instance at
    /// [`draining_name`], for the same users.
    ///
    /// # Errors
    /// The directory is not writable.
    pub(crate) fn pass_on(&mut self) -> io::Result<UnixListener> {
        let (path, renamed) = (self.path.clone(), draining_name(&self.path, std::process::id()));
        (self.path, self.identity) = (renamed.clone(), None);
        // Others have no access before the mode is set, not even for a moment.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&renamed);
        rustix::process::umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        self.identity = identity(&renamed);
        let meta = fs::symlink_metadata(path)?;
        chown(&renamed, None, Some(meta.gid()))?;
        fs::set_permissions(&renamed, meta.permissions())?;
        Ok(listener)
    }
}

/// Returns the path of the socket of an instance that drains: `PATH.draining-PID`.
fn draining_name(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{DRAINING}{pid}"));
    name.into()
}

const DRAINING: &str = ".draining-";

/// Returns the sockets of instances that drain and had `path` before.
pub(crate) fn draining(path: &Path) -> Vec<PathBuf> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let Ok(files) = fs::read_dir(directory.unwrap_or(Path::new("."))) else { return Vec::new() };
    let Some(prefix) = path.file_name().map(|name| format!("{}{DRAINING}", name.display())) else {
        return Vec::new();
    };
    let files = files.flatten().take(LEFT_OVER_MAX).map(|file| path.with_file_name(file.file_name()));
    files
        .filter(|file| file.file_name().is_some_and(|name| name.display().to_string().starts_with(&prefix)))
        .collect()
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_listener_with_a_full_queue_is_live_and_blocks_no_client() {
        let directory = std::env::temp_dir().join(format!("evener-full-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s.sock");
        let flags = SocketFlags::CLOEXEC;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut queued = Vec::new();
        let full = loop {
            match connect_now(&path) {
                Ok(client) => queued.push(client),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(is_live(&path));
        assert!(matches!(remove_left_over(&path), Err(PathInUse::Listening)));
        drop(listener);
        assert!(!is_live(&path) && remove_left_over(&path).is_ok());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_renamed_socket_leaves_its_path_to_the_next_program() {
        let directory = std::env::temp_dir().join(format!("evener-socket-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s.sock");
        let old = UnixListener::bind(&path).unwrap();
        let mut file = SocketFile::of(&path);
        assert!(matches!(remove_left_over(&path), Err(PathInUse::Listening)));
        file.make_room().unwrap();
        assert!(remove_left_over(&path).is_ok() && !path.exists());
        let (new, new_file) = (UnixListener::bind(&path).unwrap(), SocketFile::of(&path));
        assert_eq!(draining(&path), [file.path()]);
        UnixStream::connect(file.path()).unwrap();
        assert!(old.accept().is_ok());
        drop((old, file));
        assert!(
            draining(&path).is_empty() && path.exists(),
            "the old instance does not remove the socket of the new one"
        );
        drop((new, new_file));
        assert!(!path.exists());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_of_another_program_is_neither_moved_nor_removed() {
        let directory = std::env::temp_dir().join(format!("evener-other-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s.sock");
        let _old = UnixListener::bind(&path).unwrap();
        let mut file = SocketFile::of(&path);
        fs::remove_file(&path).unwrap();
        // A file system may give the new file the inode of the removed file. The two cannot be distinguished
        // then.
        let _new = UnixListener::bind(&path).unwrap();
        if identity(&path) != file.identity {
            assert!(file.make_room().is_err());
            drop(file);
            assert!(path.exists());
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
