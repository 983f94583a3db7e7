//! The state file: entries of the kernel's table and addresses that belong to this instance, so that a successor of a
//! killed process recognizes them.

use super::addresses::{Address, Addresses};
use evener_ipvs::reconcile::Owned;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// The file, and its contents as they were read or written last.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    contents: Option<String>,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, contents: None }
    }

    /// Reads the file; a missing file is empty.
    ///
    /// # Errors
    /// The reason why nothing is known.
    pub(super) fn read(&mut self) -> Result<(Owned, Addresses), String> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(self.problem(&error)),
        };
        let is_address = |line: &&str| line.starts_with("address ");
        let addresses: BTreeSet<Address> =
            text.lines().filter(is_address).filter_map(parse_address).collect();
        let entries: String =
            text.lines().filter(|line| !is_address(line)).flat_map(|line| [line, "\n"]).collect();
        let owned = entries.parse::<Owned>().map_err(|error| self.problem(&error))?;
        self.contents = Some(text);
        Ok((owned, Addresses::new(addresses)))
    }

    /// Writes the file, if its contents changed.
    ///
    /// # Errors
    /// The reason why the file is not written.
    pub(super) fn write(&mut self, owned: &Owned, addresses: &Addresses) -> Result<(), String> {
        let mut text = owned.to_string();
        for (address, interface) in addresses.iter() {
            let _ = writeln!(text, "address {address} {interface}");
        }
        if self.contents.as_ref() == Some(&text) {
            return Ok(());
        }
        let write = || {
            if let Some(directory) = self.path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            // A rename replaces the whole file at once.
            let new = self.path.with_extension("new");
            std::fs::write(&new, &text)?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(|error| self.problem(&error))?;
        self.contents = Some(text);
        Ok(())
    }

    fn problem(&self, error: &dyn std::fmt::Display) -> String {
        format!(
            "the state file {}: {error}; entries of a killed process are not recognized",
            self.path.display()
        )
    }
}

fn parse_address(line: &str) -> Option<Address> {
    let (address, interface) = line.strip_prefix("address ")?.split_once(' ')?;
    Some((address.parse().ok()?, interface.into()))
}
