//! Files of unix sockets that services listen on. A file that was removed (by a cleaner of /tmp, or by hand) is
//! created again, because clients need it to connect. A file that another program created there stays.

use super::listeners::RunningListener;
use crate::inherited::ListenerKey;
use crate::planes::Planes;
use evener_core::address::abstract_name;
use evener_core::event::Event;
use evener_core::{Endpoint, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Interval at which the files are checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// State of the checks of socket files.
#[derive(Debug, Default)]
pub(super) struct Paths {
    next: Time,
    /// Paths that could not be bound again. Each is logged once.
    logged: BTreeSet<PathBuf>,
}

impl Paths {
    /// Makes the next check due now.
    pub(super) fn check_now(&mut self) {
        self.next = Time::ZERO;
    }

    /// Returns the time of the next check.
    pub(super) fn next(&self) -> Time {
        self.next
    }

    /// Binds sockets again whose files were removed.
    pub(super) fn check(
        &mut self,
        now: Time,
        listeners: &mut BTreeMap<ListenerKey, RunningListener>,
        plane: &mut Planes,
    ) -> Vec<Event> {
        self.next = now + CHECK_EVERY;
        let paths: BTreeSet<PathBuf> =
            listeners.keys().filter_map(ListenerKey::path).map(Path::to_owned).collect();
        self.logged.retain(|path| paths.contains(path));
        let is_missing = |path: &&PathBuf| {
            let found = path.symlink_metadata();
            abstract_name(path).is_none() && found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        let missing = paths.iter().filter(is_missing);
        missing.filter_map(|path| self.bind_again(path, listeners, plane)).collect()
    }

    fn bind_again(
        &mut self,
        path: &PathBuf,
        listeners: &mut BTreeMap<ListenerKey, RunningListener>,
        plane: &mut Planes,
    ) -> Option<Event> {
        let address = Endpoint::Unix(path.clone());
        let listener = listeners.get_mut(&ListenerKey::at_path(path))?;
        match listener.bind_again(&address, plane) {
            Ok(event) => {
                self.logged.remove(path);
                Some(event)
            }
            Err(problem) => self.logged.insert(path.clone()).then_some(Event::Notice { text: problem }),
        }
    }
}
