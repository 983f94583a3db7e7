//! Access to the admin socket: the mode and the group of its file. By default only its owner may use it, because
//! the API can change the instance.

use crate::unix_socket;
use anyhow::{Context, bail};
use nix::unistd::Group;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Mode of an admin socket without a group.
const OWNER_ONLY: u32 = 0o600;
/// Mode of an admin socket with a group.
const OWNER_AND_GROUP: u32 = 0o660;
/// Bits of a mode that have a meaning for a socket.
const MODE_MAX: u32 = 0o777;

/// Mode and group of the file of an admin socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions {
    mode: u32,
    group: Option<u32>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self { mode: OWNER_ONLY, group: None }
    }
}

impl Permissions {
    /// Returns the permissions of a mode and the name or number of a group. With a group, the default mode admits
    /// the group.
    ///
    /// # Errors
    /// There is no such group.
    pub(crate) fn new(mode: Option<u32>, group: Option<&str>) -> anyhow::Result<Self> {
        let number = |group: &str| match group.parse() {
            Ok(number) => Ok(number),
            Err(_) => match Group::from_name(group) {
                Ok(Some(group)) => Ok(group.gid.as_raw()),
                Ok(None) => bail!("--admin-group: there is no group `{group}`"),
                Err(error) => bail!("--admin-group: group `{group}` cannot be looked up: {error}"),
            },
        };
        let group = group.map(number).transpose()?;
        if group == Some(u32::MAX) {
            bail!("--admin-group: {} is not the number of a group", u32::MAX);
        }
        let default = if group.is_some() { OWNER_AND_GROUP } else { OWNER_ONLY };
        let mode = mode.unwrap_or(default);
        if group.is_some() && mode & 0o020 == 0 {
            bail!(
                "--admin-mode {mode:04o} does not admit the group of --admin-group: a connection needs write permission; write {:04o}",
                mode | 0o660
            );
        }
        Self::require_write(mode)?;
        Ok(Self { mode, group })
    }

    /// Refuses a mode that gives someone other permissions without write permission, which a connection needs.
    fn require_write(mode: u32) -> anyhow::Result<()> {
        if mode & 0o200 == 0 {
            bail!(
                "--admin-mode {mode:04o} does not admit the owner: a connection needs write permission; write {:04o}",
                mode | 0o600
            );
        }
        for (who, bits) in [("the group", 0o070), ("other users", 0o007)] {
            if mode & bits != 0 && mode & bits & 0o222 == 0 {
                bail!(
                    "--admin-mode {mode:04o} does not admit {who}: a connection needs write permission; write {:04o} to \
                     admit them, or {:04o} not to",
                    mode | (bits & 0o666),
                    mode & !bits
                );
            }
        }
        Ok(())
    }

    /// Parses an octal mode.
    pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
        let mode = u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok();
        let mode = mode.filter(|mode| *mode <= MODE_MAX);
        mode.ok_or_else(|| "must be an octal mode such as 0600 or 0660".into())
    }

    /// Returns true if other users than the owner may use the socket.
    pub(super) fn admits_others(self) -> bool {
        self.mode & 0o077 != 0
    }

    /// Applies the permissions to the file of a socket on which this process listens and which only the owner can
    /// access yet. The path is opened once: a user who can write to its directory could put another file there at any
    /// time, which must not get the permissions.
    pub(super) fn apply(self, path: &Path) -> anyhow::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        let socket = opened_socket(path).with_context(|| {
            format!("the admin socket {} cannot be opened for --admin-mode", path.display())
        })?;
        let Some(socket) = socket else {
            bail!(
                "the admin socket {} was replaced by another file just after it was created; give --admin PATH in a \
                 directory that only this user can change",
                path.display()
            )
        };
        if let Some(group) = self.group {
            let owner = Some(rustix::fs::Gid::from_raw(group));
            rustix::fs::chownat(&socket, "", None, owner, AtFlags::EMPTY_PATH).with_context(|| {
                format!(
                    "the admin socket {} cannot be given to the group {group} (--admin-group); only root and members of the group can do this",
                    path.display()
                )
            })?;
        }
        // The group is set first: no other group ever has access.
        let changed = fs::set_permissions(link_to(&socket), fs::Permissions::from_mode(self.mode));
        changed.with_context(|| format!("the mode of the admin socket {} cannot be set", path.display()))
    }
}

/// Opens the file of a socket without following links. Returns `None` if the file is not a socket on which this
/// process listens.
fn opened_socket(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::Socket {
        return Ok(None);
    }
    // The credentials of the peer are those of the process that listens.
    let is_local = match unix_socket::connect_now(&link_to(&file)) {
        Ok(client) => rustix::net::sockopt::socket_peercred(&client)?.pid == rustix::process::getpid(),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => {
            false
        }
        Err(error) => return Err(error),
    };
    Ok(is_local.then_some(file))
}

/// Returns a path that leads to an open file, wherever the path with which it was opened leads now.
fn link_to(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn modes_are_octal_and_unknown_groups_are_refused() {
        assert_eq!(
            ["0660", "600", "0o777"].map(|mode| Permissions::parse_mode(mode).unwrap()),
            [0o660, 0o600, 0o777]
        );
        for wrong in ["", "8", "rw", "1777", "-1"] {
            assert!(Permissions::parse_mode(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Permissions::new(None, None).unwrap(), Permissions::default());
        assert_eq!(Permissions::new(None, Some("7")).unwrap(), Permissions { mode: 0o660, group: Some(7) });
        assert_eq!(
            Permissions::new(Some(0o666), Some("root")).unwrap(),
            Permissions { mode: 0o666, group: Some(0) }
        );
        let error = |group: &str| Permissions::new(None, Some(group)).unwrap_err().to_string();
        assert_eq!(error("no-such-group"), "--admin-group: there is no group `no-such-group`");
        assert_eq!(error("4294967295"), "--admin-group: 4294967295 is not the number of a group");
    }

    #[test]
    fn modes_without_write_permission_are_refused() {
        let error = |mode, group| Permissions::new(Some(mode), group).unwrap_err().to_string();
        assert_eq!(
            error(0o640, Some("7")),
            "--admin-mode 0640 does not admit the group of --admin-group: a connection needs write permission; write 0660"
        );
        assert!(error(0o600, Some("7")).ends_with("write 0660"));
        assert_eq!(
            error(0o640, None),
            "--admin-mode 0640 does not admit the group: a connection needs write permission; write 0660 to admit them, or 0600 not to"
        );
        assert!(error(0o664, Some("7")).contains("does not admit other users: "));
        assert!(error(0o400, None).contains("does not admit the owner: "));
        for mode in [0o600, 0o200, 0o660, 0o666, 0o622, 0o770] {
            assert!(Permissions::new(Some(mode), None).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_file_that_replaced_the_socket_keeps_its_permissions() {
        let directory = std::env::temp_dir().join(format!("evener-replaced-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s.sock");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let permissions = Permissions::new(Some(0o666), None).unwrap();
        let _local = UnixListener::bind(&path).unwrap();
        permissions.apply(&path).unwrap();
        assert_eq!(mode(&path), 0o666);
        let is_refused =
            || permissions.apply(&path).unwrap_err().to_string().contains(" was replaced by another file");

        let victim = directory.join("victim");
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(is_refused(), "a link to a file must be refused");
        fs::remove_file(&path).unwrap();
        let local = directory.join("local.sock");
        let _listener = UnixListener::bind(&local).unwrap();
        symlink(&local, &path).unwrap();
        assert!(is_refused(), "a link to a socket must be refused");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert!(is_refused(), "another file must be refused");
        assert_eq!(mode(&victim), 0o600);
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(is_refused(), "a socket on which another process listened must be refused");
        assert_eq!(mode(&path), 0o600);
        fs::remove_dir_all(&directory).unwrap();
    }
}
