//! The directory of files that live as long as the system runs: admin sockets, and state of kernel planes; and the
//! directory of files that outlive it: changes of operators.

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

/// Returns the directory of files that outlive the system: that of the service manager, else `/var/lib/evener` for
/// root, else `evener` in XDG_STATE_HOME or `~/.local/state`; `None` without a home.
pub(crate) fn state_directory() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    // The service manager may list several directories (systemd.exec(5), StateDirectory=).
    let given = from("STATE_DIRECTORY").and_then(|list| {
        let first = list.to_str()?.split(':').next()?.to_owned();
        Some(PathBuf::from(first))
    });
    if let Some(given) = given {
        return Some(given);
    }
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib/evener".into());
    }
    let home = from("XDG_STATE_HOME").or_else(|| Some(from("HOME")?.join(".local/state")));
    home.map(|home| home.join("evener"))
}
