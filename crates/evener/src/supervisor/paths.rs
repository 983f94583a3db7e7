//! Files of unix sockets that services listen on. A file that was removed (by a cleaner of /tmp, or by hand) is
//! created again, because clients need it to connect. A file that another program created there stays.

use super::{ListenerKey, Supervisor};
use crate::planes::RunningService;
use evener_core::address::abstract_name;
use evener_core::event::Event;
use evener_core::spec::Transport;
use evener_core::{Endpoint, Time};
use evener_proxy::{Sharing, bind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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
    /// Binds sockets again whose files were removed.
    pub(super) fn check_paths(&mut self, now: Time) {
        if self.paths_deadline() > now {
            return;
        }
        self.paths.next = now + CHECK_EVERY;
        let paths = self.unix_paths();
        self.paths.logged.retain(|path| paths.contains(path));
        let is_missing = |path: &PathBuf| {
            path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        for path in paths.iter().filter(|path| is_missing(path)) {
            self.bind_again(path);
        }
    }

    fn bind_again(&mut self, path: &PathBuf) {
        let (address, workers) = (Endpoint::Unix(path.clone()), self.plane.workers());
        let Some(listener) = self.listeners.get_mut(&ListenerKey::at_path(path)) else { return };
        let service = listener.serving.clone();
        let RunningService::Proxy(proxied) = &service;
        let options = &proxied.settings.load().options;
        match bind(&address, Transport::Stream, options, workers, Sharing::None) {
            Ok(bound) => {
                let before = std::mem::replace(&mut listener.id, self.plane.listen(&service, bound));
                self.plane.unlisten(before);
                self.paths.logged.remove(path);
                let (name, protocol) = (Arc::clone(&service.live().name), service.live().protocol.name());
                self.log(&Event::Listening { service: name, protocol, address: address.to_string() });
            }
            Err(error) => {
                if self.paths.logged.insert(path.clone()) {
                    let text = format!(
                        "service `{}`: its socket file was removed and cannot be created again: {error}",
                        service.live().name
                    );
                    self.log(&Event::Notice { text });
                }
            }
        }
    }

    fn unix_paths(&self) -> BTreeSet<PathBuf> {
        let paths = self.listeners.keys().filter_map(ListenerKey::path);
        paths.filter(|path| abstract_name(path).is_none()).map(Path::to_owned).collect()
    }

    /// Returns the time of the next check. There is none without unix sockets, and none while draining.
    pub(super) fn paths_deadline(&self) -> Time {
        let has_paths = self.listeners.keys().any(|key| key.path().is_some());
        if has_paths && !self.is_draining() { self.paths.next } else { Time::NEVER }
    }
}
