//! Admin sockets of running instances, as commands look for them: where they are, and why one cannot be used.

use crate::output::printable;
use crate::runtime_directory::{SYSTEM_DIRECTORY, runtime_directory};
use crate::unix_socket::{self, is_live};
use anyhow::bail;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::Access;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
    let directory = runtime_directory();
    for directory in [&*directory, Path::new(SYSTEM_DIRECTORY)] {
        let default = directory.join("evener.sock");
        if is_trusted(&default) && is_live(&default) {
            return Ok(default);
        }
        match &live_in(directory)[..] {
            [] => {}
            [one] => return Ok(one.clone()),
            several => {
                let names: Vec<String> = several.iter().map(|path| shown(path)).collect();
                bail!("several instances are running; choose one with --socket: {}", names.join(" "))
            }
        }
    }
    let list = read_list();
    let paths: BTreeSet<PathBuf> = instances_in(&list).collect();
    let (trusted, foreign): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.iter().partition(|path| is_trusted(path));
    let described = trusted.into_iter().chain(foreign).filter_map(|path| of_other_user(path, &list));
    let mut others: Vec<String> = described.take(LISTED_MAX).collect();
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
    let at = format!("{}{from}", shown(socket));
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
        (ErrorKind::WouldBlock, _) => {
            format!(
                "{at} accepts no connections: its queue of waiting connections has been full for some time"
            )
        }
        _ => format!("no instance listens at {at}: {error}"),
    }
}

/// Returns true if the socket belongs to root, or to this user, or is in the directory of root's instances. Any user
/// could have created another socket, and commands must not trust its responses.
fn is_trusted(path: &Path) -> bool {
    let is_of_root_or_user = |uid| uid == 0 || uid == rustix::process::geteuid().as_raw();
    path.parent() == Some(Path::new(SYSTEM_DIRECTORY))
        || fs::metadata(path).is_ok_and(|meta| is_of_root_or_user(meta.uid()))
}

/// Returns a text of one or more lines from another user or process with escapes for the characters that could change
/// a terminal or what is read on it.
pub(super) fn escaped(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Returns a path on one line, with escapes.
fn shown(path: &Path) -> String {
    printable(&path.display().to_string()).into_owned()
}

/// Returns the sockets of a directory that this user can connect to, sorted by name.
fn live_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let mut live: Vec<PathBuf> =
        sockets.map(|entry| entry.path()).filter(|path| is_trusted(path) && is_live(path)).collect();
    live.sort();
    live
}

/// Describes an instance of another user, and how it can be used. Returns `None` if there is no file at the path.
fn of_other_user(path: &Path, list: &str) -> Option<String> {
    unusable(path, list).or_else(|| {
        let owner = user_name(fs::metadata(path).ok()?.uid());
        let at = shown(path);
        Some(if is_trusted(path) {
            format!("no instance of this user is running; an instance of {owner} is: use --socket {at}")
        } else {
            format!("no instance of this user is running; the socket {at} belongs to {owner}")
        })
    })
}

/// Describes an instance that this user may not use, and how it could be used. Returns `None` if the user has the
/// permission to connect, or if there is no socket. Does not connect: any user could listen at the path.
fn unusable(path: &Path, list: &str) -> Option<String> {
    let denied = rustix::fs::access(path, Access::WRITE_OK).err().filter(|error| *error == Errno::ACCESS);
    denied?;
    let runs = if list.lines().any(|line| path_in(line) == Some(path)) {
        "an instance runs at"
    } else {
        "there is an admin socket at"
    };
    let (owner, access) = match fs::metadata(path) {
        Ok(meta) => {
            let owner = user_name(meta.uid());
            let access = access_text(&owner, meta.gid(), meta.mode() & 0o7777);
            (owner, access)
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
        shown(path)
    ))
}

/// Describes who may connect to a socket.
fn access_text(owner: &str, group: u32, mode: u32) -> String {
    let is_open = mode & 0o020 != 0;
    let group = group_name(group);
    let and_group = if is_open { format!(" and group {group}") } else { String::new() };
    let missing = if !is_open && mode & 0o050 != 0 {
        format!(", which lacks the write permission that the group {group} needs to connect")
    } else {
        String::new()
    };
    format!("its socket is for {owner}{and_group} (mode {mode:04o}{missing})")
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
    fn paths_of_other_users_are_shown_with_escapes() {
        assert_eq!(shown(Path::new("/run/\u{1b}[31mx\ny/é")), "/run/\\u{1b}[31mx\\ny/é");
        assert_eq!(escaped("one\ntwo\u{202e}\u{9b}"), "one\ntwo\\u{202e}\\u{9b}");
    }

    #[test]
    fn a_missing_write_permission_of_the_group_is_named() {
        let text = |mode| access_text("root", 0, mode);
        assert_eq!(text(0o600), "its socket is for root (mode 0600)");
        assert_eq!(text(0o660), "its socket is for root and group root (mode 0660)");
        assert_eq!(
            text(0o640),
            "its socket is for root (mode 0640, which lacks the write permission that the group root needs to connect)"
        );
    }

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
