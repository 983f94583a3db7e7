//! Files of unix sockets: what was left over is removed, what is ours goes at the end, and nothing else is touched.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Taken {
    #[error("it is there already, and is no socket")]
    NoSocket,
    #[error("it is in use: another program listens there")]
    InUse,
    #[error("it is left over and cannot be removed: {0}")]
    Kept(io::Error),
}

/// Removes the file of a socket that nobody answers at: a program left it that is gone.
pub(crate) fn remove_left_over(path: &Path) -> Result<(), Taken> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Taken::NoSocket);
    }
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if !UnixStream::connect(path).is_err_and(refused) {
        return Err(Taken::InUse);
    }
    fs::remove_file(path).map_err(Taken::Kept)
}

/// The file of a socket that is ours, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another instance may have put its own there since.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Of a socket that was bound just now.
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
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
