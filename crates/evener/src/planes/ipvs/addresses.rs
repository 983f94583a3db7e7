//! Virtual addresses on interfaces: they are there while their services take clients. An address that an interface had
//! before is never removed.

use super::Report;
use evener_ipvs::address::{Added, add, remove};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

/// An address and its interface.
pub(super) type Address = (IpAddr, Arc<str>);

/// The addresses that the plane added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    added: BTreeSet<Address>,
}

impl Addresses {
    pub(super) fn new(added: BTreeSet<Address>) -> Self {
        Self { added }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.added.iter()
    }

    /// Adds the addresses that are wanted and removes the others. Returns the changes and the problems.
    pub(super) fn apply(&mut self, wanted: &BTreeMap<Address, bool>) -> (Vec<Report>, Vec<String>) {
        let (mut changes, mut problems) = (Vec::new(), Vec::new());
        for ((address, interface), _) in wanted.iter().filter(|(_, is_up)| **is_up) {
            match add(*address, interface) {
                Ok(Added::New) => {
                    self.added.insert((*address, interface.clone()));
                    changes.push(Report::AddressAdded(*address, interface.clone()));
                }
                Ok(Added::Present) => {}
                Err(error) => problems.push(format!("{address} cannot be added to {interface}: {error}")),
            }
        }
        let unwanted = self.added.iter().filter(|added| wanted.get(added) != Some(&true));
        for added in unwanted.cloned().collect::<Vec<_>>() {
            let (address, interface) = &added;
            match remove(*address, interface) {
                Ok(()) => changes.push(Report::AddressRemoved(*address, interface.clone())),
                Err(error) => {
                    problems.push(format!("{address} cannot be removed from {interface}: {error}"));
                    // The next round tries again, unless the interface is missing with its addresses.
                    if error.kind() != ErrorKind::NotFound {
                        continue;
                    }
                }
            }
            self.added.remove(&added);
        }
        (changes, problems)
    }
}
