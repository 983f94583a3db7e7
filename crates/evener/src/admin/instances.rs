//! Admin sockets of running instances, as commands look for them: where they are, and why one cannot be used.

use super::{SYSTEM_DIRECTORY, socket_directory};
use crate::unix_socket;
use anyhow::bail;
use nix::unistd::{Gid, Group, Uid, User};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Maximum number of bytes that are read of the kernel's list of unix sockets.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of instances of other users that a message lists.
const LISTED_MAX: usize = 8;

/// Finds the instance whose admin socket has the path `socket`. If there is no file at the path, an instance that
/// drains may have renamed it.
pub(super) fn at(socket: &Path) -> PathBuf {
    let is_missing = || socket.try_exists().is_ok_and(|exists| !exists);
    let draining = if is_missing() { unix_socket::draining(socket) } else { Vec::new() };
    draining.into_iter().find(|path| is_live(path)).unwrap_or_else(|| socket.to_owned())
}

/// Finds the only running instance that this user may use: at the default path, else in the default directory,
/// else in the directory of root's instances.
///
/// # Errors
/// There is no such instance, or there are several. The error lists them, or the instances of other users.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    let directory = socket_directory();
    for directory in [&*directory, Path::new(SYSTEM_DIRECTORY)] {
        let default = directory.join("evener.sock");
        if is_live(&default) {
            return Ok(default);
        }
        match &live_in(directory)[..] {
            [] => {}
            [one] => return Ok(one.clone()),
            several => {
                let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                bail!("several instances are running; choose one with --socket: {}", names.join(" "))
            }
        }
    }
    let list = read_list();
    let paths: BTreeSet<PathBuf> = instances_in(&list).collect();
    let mut others: Vec<String> =
        paths.iter().map(|path| of_other_user(path, &list)).take(LISTED_MAX).collect();
    if others.is_empty() {
        // An instance in another network namespace is not in the list.
        others.extend(unusable(&Path::new(SYSTEM_DIRECTORY).join("evener.sock"), &list));
    }
    if others.is_empty() {
        bail!(
            "no instance is running (no process listens at {}); give its socket with --socket",
            directory.display()
        )
    }
    bail!("{}", others.join("\n"))
}

/// Describes why a connection to an admin socket failed.
pub(super) fn failure(socket: &Path, error: &io::Error) -> String {
    let from = match std::env::var_os("EVENER_SOCKET") {
        Some(path) if Path::new(&path) == socket => " (from EVENER_SOCKET)",
        _ => "",
    };
    let at = format!("{}{from}", socket.display());
    let is_socket = fs::metadata(socket).map(|meta| meta.file_type().is_socket());
    match (error.kind(), is_socket) {
        (_, Ok(false)) => format!("no instance listens at {at}: the file is not a socket"),
        (ErrorKind::PermissionDenied, _) => {
            unusable(socket, &read_list()).unwrap_or_else(|| format!("{at}: {error}"))
        }
        (ErrorKind::NotFound, _) => format!("no instance listens at {at}: there is no such file"),
        (ErrorKind::ConnectionRefused, _) => {
            format!("no instance listens at {at}: the socket is left over from an instance that ended")
        }
        _ => format!("no instance listens at {at}: {error}"),
    }
}

fn is_live(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Returns the sockets of a directory that this user can connect to, sorted by name.
fn live_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let mut live: Vec<PathBuf> = sockets.map(|entry| entry.path()).filter(|path| is_live(path)).collect();
    live.sort();
    live
}

/// Describes an instance of another user, and how it can be used.
fn of_other_user(path: &Path, list: &str) -> String {
    unusable(path, list).unwrap_or_else(|| {
        let owner = fs::metadata(path).map_or_else(|_| "another user".into(), |meta| user_name(meta.uid()));
        let path = path.display();
        format!("no instance of this user is running; an instance of {owner} is: use --socket {path}")
    })
}

/// Describes an instance that this user may not use, and how it could be used. Returns `None` if the socket can be used,
/// or if no process listens at it.
fn unusable(path: &Path, list: &str) -> Option<String> {
    let denied = UnixStream::connect(path).err().filter(|error| error.kind() == ErrorKind::PermissionDenied);
    denied?;
    let runs = if list.lines().any(|line| path_in(line) == Some(path)) {
        "an instance runs at"
    } else {
        "there is an admin socket at"
    };
    let (owner, access) = match fs::metadata(path) {
        Ok(meta) => {
            let group = (meta.mode() & 0o020 != 0).then(|| format!(" and group {}", group_name(meta.gid())));
            let owner = user_name(meta.uid());
            let group = group.unwrap_or_default();
            (owner.clone(), format!("its socket is for {owner}{group} (mode {:04o})", meta.mode() & 0o7777))
        }
        Err(_) => {
            let parent = path.ancestors().find_map(|parent| fs::metadata(parent).ok());
            let owner = parent.map_or_else(|| "root".into(), |meta| user_name(meta.uid()));
            (owner, "this user may not open its directory".into())
        }
    };
    let sudo = if owner == "root" { "use sudo".into() } else { format!("use sudo -u {owner}") };
    Some(format!(
        "{runs} {}, but {access}: {sudo}, or start it with --admin-group GROUP to admit the members of a group",
        path.display()
    ))
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("#{uid}"), |user| user.name)
}

fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

/// Reads the kernel's list of unix sockets, which also has sockets in directories that this user may not open.
fn read_list() -> String {
    let mut list = Vec::new();
    if let Ok(file) = fs::File::open("/proc/net/unix") {
        let _ = file.take(LIST_BYTES_MAX).read_to_end(&mut list);
    }
    String::from_utf8_lossy(&list).into_owned()
}

/// Returns the sockets of the list that have names of admin sockets.
fn instances_in(list: &str) -> impl Iterator<Item = PathBuf> {
    list.lines().filter_map(path_in).filter(|path| is_admin_socket(path)).map(Path::to_owned)
}

/// Returns the path of a listening socket in a line of the list.
fn path_in(line: &str) -> Option<&Path> {
    // Number, references, protocol, flags, type, state, inode, path. The flag marks listening sockets.
    let mut fields = line.split_ascii_whitespace();
    let flags = fields.nth(3)?;
    let path = fields.nth(3).map(|path| &line[path.as_ptr() as usize - line.as_ptr() as usize..])?;
    (flags == "00010000" && path.starts_with('/')).then(|| Path::new(path))
}

/// Returns true if the path has the form of a default path: `evener/evener.sock` or `evener/evener-PID.sock`.
fn is_admin_socket(path: &Path) -> bool {
    let directory =
        path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("evener-").and_then(|rest| rest.strip_suffix(".sock"));
    (directory == "evener" || directory.starts_with("evener-"))
        && (name == "evener.sock"
            || number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_sockets_are_found_in_the_list_of_the_kernel() {
        let list = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1 /run/evener/evener.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 2 /run/evener/evener-5.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 3 /run/user/7/evener/evener-12.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 4 @/tmp/.X11-unix/X0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 5 /run/other/evener.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 6\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 7 /tmp/evener-7/evener.sock\n";
        let found: Vec<PathBuf> = instances_in(list).collect();
        let expected =
            ["/run/evener/evener.sock", "/run/user/7/evener/evener-12.sock", "/tmp/evener-7/evener.sock"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
