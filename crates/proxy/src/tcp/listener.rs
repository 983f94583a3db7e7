//! Listeners of a worker for connections.

use crate::io::listener::{self, UnixPath};
use crate::service::Service;
use evener_core::Time;
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// A listener of a worker for connections.
#[derive(Debug)]
pub(crate) struct StreamListener {
    pub(crate) id: u64,
    pub(crate) service: Arc<Service>,
    /// The path goes with the last worker's listener, and before its socket: the next instance finds nothing there, not
    /// something that looks left over.
    pub(crate) _unix: Option<Arc<UnixPath>>,
    pub(crate) socket: OwnedFd,
    /// When accepting goes on, if it could not.
    pub(crate) paused: Option<Time>,
}

impl StreamListener {
    /// Takes on the options of a new configuration.
    pub(crate) fn reconfigure(&self) {
        listener::reconfigure(&self.socket, &self.service.settings.load().options);
    }
}
