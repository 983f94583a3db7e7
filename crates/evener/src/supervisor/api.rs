//! The address of the admin API over TCP. It is bound before a configuration is applied, and served by a task of its
//! own, which follows it here.

use crate::api_access::{ApiAccess, Endpoint};
use evener_core::event::Event;
use rustix::fd::OwnedFd;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio::sync::watch;

/// Receiver of the address at which the API has to be served.
pub(crate) type Endpoints = watch::Receiver<Option<Arc<Endpoint>>>;

/// The address in use.
#[derive(Default)]
pub(super) struct Api {
    endpoint: watch::Sender<Option<Arc<Endpoint>>>,
    /// Listener of the previous instance, with its address as configured.
    inherited: Option<(SocketAddr, TcpListener)>,
}

impl Api {
    pub(super) fn subscribe(&self) -> Endpoints {
        self.endpoint.subscribe()
    }

    /// Adds the listener of the previous instance, for the address of the next configuration.
    pub(super) fn add_inherited(&mut self, inherited: Option<(SocketAddr, OwnedFd)>) {
        self.inherited = inherited.map(|(address, socket)| (address, TcpListener::from(socket)));
    }

    /// Copies the listener for the next instance. Returns it with its address as configured.
    pub(super) fn copy(&self) -> std::io::Result<Option<(SocketAddr, OwnedFd)>> {
        self.endpoint.borrow().as_ref().map(|endpoint| endpoint.copy()).transpose()
    }

    /// Opens the address of a new configuration. Nothing changes yet.
    pub(super) fn open(&mut self, wanted: Option<&Arc<ApiAccess>>) -> Result<Option<Arc<Endpoint>>, String> {
        let before = self.endpoint.borrow().clone();
        let inherited = self.inherited.take();
        wanted.map(|access| Endpoint::open(Arc::clone(access), before.as_ref(), inherited)).transpose()
    }

    /// Begins to serve the API at an address. Returns the events.
    pub(super) fn serve(&self, wanted: Option<Arc<Endpoint>>) -> Vec<Event> {
        let address =
            |endpoint: &Option<Arc<Endpoint>>| endpoint.as_ref().map(|one| one.address().to_string());
        let opened = address(&wanted);
        let closed = address(&self.endpoint.send_replace(wanted));
        if closed == opened {
            return Vec::new();
        }
        let closed = closed.map(|address| Event::ApiClosed { address });
        closed.into_iter().chain(opened.map(|address| Event::ApiListening { address })).collect()
    }
}
