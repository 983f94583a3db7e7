//! Access to the admin socket: the mode and the group of its file. By default only its owner may use it, because
//! the API can change the instance.

use anyhow::{Context, bail};
use nix::unistd::Group;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

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
        let default = if group.is_some() { OWNER_AND_GROUP } else { OWNER_ONLY };
        Ok(Self { mode: mode.unwrap_or(default), group })
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

    /// Applies the permissions to the file of a socket, which only the owner can access yet.
    pub(super) fn apply(self, path: &Path) -> anyhow::Result<()> {
        if let Some(group) = self.group {
            chown(path, None, Some(group)).with_context(|| {
                format!(
                    "the admin socket {} cannot be given to the group {group} (--admin-group); only root and members of the group can do this",
                    path.display()
                )
            })?;
        }
        // The group is set first: no other group ever has access.
        if self.mode != OWNER_ONLY {
            let changed = fs::set_permissions(path, fs::Permissions::from_mode(self.mode));
            changed
                .with_context(|| format!("the mode of the admin socket {} cannot be set", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Permissions::new(Some(0o600), Some("root")).unwrap(),
            Permissions { mode: 0o600, group: Some(0) }
        );
        let error = Permissions::new(None, Some("no-such-group")).unwrap_err().to_string();
        assert_eq!(error, "--admin-group: there is no group `no-such-group`");
    }
}
