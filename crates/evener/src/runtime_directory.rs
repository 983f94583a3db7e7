//! The directory of files that live as long as the system runs: admin sockets, and state of kernel planes.

use std::path::PathBuf;

/// The directory of root.
pub(crate) const SYSTEM_DIRECTORY: &str = "/run/evener";

/// Returns the directory: `/run/evener` for root, else `evener` in XDG_RUNTIME_DIR,
/// else `/tmp/evener-UID`.
pub(crate) fn runtime_directory() -> PathBuf {
    let user = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => SYSTEM_DIRECTORY.into(),
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("evener"),
        _ => format!("/tmp/evener-{}", user.as_raw()).into(),
    }
}
