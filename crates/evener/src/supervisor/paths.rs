//! Files of unix sockets that services listen on. A file that was removed (by a cleaner of /tmp, or by hand)
//! is created again, because clients need it to connect. A file that another program put there stays.

use super::{ListenerKey, Supervisor};
use evener_core::address::abstract_name;
use evener_core::event::Event;
use evener_core::spec::Transport;
use evener_core::{Endpoint, Time};
use evener_proxy::{Sharing, bind};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
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
}

impl Supervisor {
    /// Binds sockets again whose files are gone.
    pub(super) fn check_paths(&mut self, now: Time) {
        if self.paths_deadline() > now {
            return;
        }
        self.paths.next = now + CHECK_EVERY;
        let paths = self.unix_paths();
        self.paths.logged.retain(|path| paths.contains(path));
        let is_gone = |path: &PathBuf| {
            path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        for path in paths.iter().filter(|path| is_gone(path)) {
            self.make_anew(path);
        }
    }

    fn make_anew(&mut self, path: &PathBuf) {
        let (address, workers) = (Endpoint::Unix(path.clone()), self.plane.workers());
        let Some(listener) = self.listeners.get_mut(&ListenerKey::at_path(path)) else { return };
        let service = Arc::clone(&listener.serving);
        let options = &service.settings.load().options;
        match bind(&address, Transport::Stream, options, workers, Sharing::None) {
            Ok(bound) => {
                let before = std::mem::replace(&mut listener.id, self.plane.listen(&service, bound));
                self.plane.unlisten(before);
                self.paths.logged.remove(path);
                let (name, protocol) = (Arc::clone(&service.name), service.protocol.name());
                self.tell(&Event::Listening { service: name, protocol, address: address.to_string() });
            }
            Err(error) => {
                if self.paths.logged.insert(path.clone()) {
                    let text = format!(
                        "service `{}`: its socket file was removed and cannot be created again: {error}",
                        service.name
                    );
                    self.tell(&Event::Notice { text });
                }
            }
        }
    }

    fn unix_paths(&self) -> BTreeSet<PathBuf> {
        let path = |key: &ListenerKey| match &key.address {
            Endpoint::Unix(path) if abstract_name(path).is_none() => Some(path.clone()),
            _ => None,
        };
        self.listeners.keys().filter_map(path).collect()
    }

    /// Returns the time of the next check; never without socket files.
    pub(super) fn paths_deadline(&self) -> Time {
        let listens = self.listeners.keys().any(|key| matches!(key.address, Endpoint::Unix(_)));
        if listens && !self.is_draining() { self.paths.next } else { Time::NEVER }
    }
}
